"""Recipes of study `hrpo`: every arm on arithmetic, the main ones on multi-hop lookup, all from the same chains.

An arm is a method with its settings; `multihop-` before its name puts it there. The start is a chain of thought that
ends by itself, whose training stops at the first half of right answers or so, so that groups of rollouts differ in
their rewards on every seed. On arithmetic rewards teach in every batch; on multi-hop lookup a run breaks through or
hardly moves. All arms of a seed begin with its weights and see the same problems in the same order. Learning rates are
a family's: tokens alone, HRPO, and its controls, which share one. Study `hrpo-tuning` chose them, on other seeds.

Factors of the learning rate are not the published 20 for gates and 200 for Lambda, which are for a base rate of 5e-6:
at a rate two hundred times as high they would move Lambda by more than its whole range in tens of steps. Their ratio is
kept, and gates move about as far in a run as in a published one, in units of where they start. `rates` has the
published factors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tinylatent_tasks import Arithmetic, MultiHop

from tinylatent.core.seeds import Seeds
from tinylatent.lab import places
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.places import known_arm, split_arm
from tinylatent.methods import HRPO, DiscreteCoT
from tinylatent.methods.hrpo import Latent
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.policy_gradient import Signal
from tinylatent.training.config import Training


@dataclass(frozen=True)
class Place(places.Place):
    """A task, and how models are trained on it."""

    start: Training
    """Of the chain of thought that all arms start from."""
    training: Training
    """Of the arms."""
    rates: Mapping[str, float]
    """Peak learning rates of the arms, by family."""


CHAIN: dict[str, Any] = {"schedule": "constant", "clip_norm": 1.0, "num_train": 20_000, "log_every": 10}
"""Training of the chain of thought, in either place."""
USUALLY: dict[str, Any] = {"warmup": 0.1, "weight_decay": 0.1, "num_train": 20_000, "log_every": 10, "validate": 0}
"""Training of the arms, in either place."""
PREFIX = "multihop-"
PLACES: dict[str, Place] = {
    "": Place(
        "arithmetic",
        Arithmetic(operations=3, least=2, modulus=7, operators="+-"),
        ModelConfig(width=64, heads=4),
        Training(steps=3000, learning_rate=3e-3, enough=0.6, **CHAIN),
        Training(steps=70, batch_size=64, **USUALLY),
        {"token": 1e-3, "hrpo": 1e-3, "control": 1e-3},
    ),
    PREFIX: Place(
        "multi-hop",
        MultiHop(hops=6, least=2, nodes=8, bound=True),
        ModelConfig(heads=4),
        Training(steps=4000, learning_rate=3e-3, enough=0.5, **CHAIN),
        Training(steps=100, batch_size=64, **USUALLY),
        {"token": 1e-3, "hrpo": 1e-3, "control": 1e-3},
    ),
}
"""By what stands before the names of their arms."""
USUAL = HRPO(r_min=0.5, gate_rate=2.0, openness_rate=20.0)
"""HRPO as most arms have it. Gates start more open than published (r_min .95 to .99), where a latent's share of the
input, .04 to .08, could hardly matter in a small model."""
REPLACED: dict[Latent, str] = {"noise": "#8a6b1f", "shuffled": "#d6a13d", "zero": "#777777"}
"""What stands in the soft token's place, and its colour."""
SIGNALS: dict[str, tuple[str, Signal, str]] = {
    "permuted": ("permuted rewards", "permuted", "#7b5ea7"),
    "unrewarded": ("no rewards", "none", "#a0522d"),
}
"""Label, signal and colour of arms that are not told which answers are right."""
FREELY = "-undecayed"
"""After the name of an arm that is trained without weight decay of Lambda, too."""
DECAYED: dict[str, tuple[str, HRPO, str]] = {
    "hrpo": ("HRPO", USUAL, "#b5403a"),
    **{name: (name, replace(USUAL, latent=name), colour) for name, colour in REPLACED.items()},
    **{name: (label, replace(USUAL, signal=signal), colour) for name, (label, signal, colour) in SIGNALS.items()},
    "decay": ("weight decay alone", replace(USUAL, signal="none", kl=0.0), "#c9b458"),
}
"""HRPO, and all that the course of its hidden ratio is held against."""
KINDS: dict[str, tuple[str, HRPO, str]] = {
    "token": ("tokens alone", HRPO(gate="token"), "#3b6fb6"),
    **DECAYED,
    "fixed": ("fixed gate", HRPO(r_min=0.5, gate="fixed"), "#2f8f9d"),
    **{
        name + FREELY: (f"{label}, no decay of Lambda", replace(method, openness_decay=0.0), colour)
        for name, (label, method, colour) in DECAYED.items()
    },
    "r90": ("HRPO, r_min .9", replace(USUAL, r_min=0.9), "#4f8f5b"),
    "r95": ("HRPO, r_min .95", replace(USUAL, r_min=0.95), "#7fae7a"),
    "r99": ("HRPO, r_min .99", replace(USUAL, r_min=0.99), "#b4d3ae"),
    "official": ("official mode", replace(USUAL, temperature=0.5, score_temperature=1.0, top_k=50), "#6b2b52"),
    "rates": ("published factors", HRPO(r_min=0.5), "#c98a83"),
    "graph": ("gradient through h", replace(USUAL, graph=True), "#1f5f8a"),
}
"""Label, method and colour of every kind of arm."""
CONTROLS = (*REPLACED, "fixed")
"""HRPO without what its latents tell, or with gates that do not learn."""
SECOND = ("token", *DECAYED, "fixed")
"""Kinds that are trained on multi-hop as well."""
ARMS: dict[str, tuple[str, HRPO, str]] = {**KINDS, **{PREFIX + kind: KINDS[kind] for kind in SECOND}}
"""Label, method and colour of every arm."""
SEARCHED = tuple(prefix + kind for prefix in PLACES for kind in ("token", "hrpo", "noise"))
"""An arm from every family in either place, whose learning rate was searched for."""


def split(arm: str) -> tuple[str, str]:
    """The prefix of an arm's place, and its kind."""
    return split_arm(arm, PLACES)


def family_of(arm: str) -> str:
    """What an arm shares its learning rate with."""
    kind = split(arm)[1]
    return "token" if kind == "token" else "control" if kind.removesuffix(FREELY) in CONTROLS else "hrpo"


def build(arm: str, seed: int = 0, **settings: Any) -> Experiment:
    """The run of an arm, with the chains it starts from; `settings` are fields of Training that override.

    Raises:
        ValueError: there is no such arm.
    """
    if arm not in ARMS:
        raise ValueError(f"unknown arm {arm!r} of hrpo: expected one of {', '.join(ARMS)}")
    where, seeds = PLACES[split(arm)[0]], Seeds.all(seed)
    start = Experiment(where.task, DiscreteCoT(ends=True), where.model, where.start, seeds)
    training = replace(where.training, **{"learning_rate": where.rates[family_of(arm)], **settings})
    return Experiment(where.task, ARMS[arm][1], where.model, training, seeds, start)


def arm_of(run: Experiment) -> str:
    """The arm of a run.

    Raises:
        ValueError: it is of none.
    """
    return known_arm(run, "hrpo", ARMS, build)
