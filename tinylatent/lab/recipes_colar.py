"""Recipes of study `colar`: every arm on the arithmetic chain and on multi-hop, all from the same chain of thought.

An arm is a method with its settings; `hops-` before its name puts it on multi-hop. All arms of a task start from one
run a seed, a chain of thought that ends by itself, and train for as many steps. Learning rates are a family's: variants
of CoLaR share CoLaR's. Study `colar-tuning` chose them, on other seeds.
"""

from dataclasses import dataclass, replace
from typing import Any

from tinylatent_tasks import Arithmetic, MultiHop

from tinylatent.core.seeds import Seeds
from tinylatent.lab import places
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.places import known_arm
from tinylatent.methods import Coconut, CoLaR, CoLaRGRPO, Direct, DiscreteCoT, PauseTokens
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import Method
from tinylatent.training.config import Training

PREFIX = "hops-"
"""Before the name of an arm on multi-hop."""


@dataclass(frozen=True)
class Place(places.Place):
    """A task, and how models are trained on it."""

    start: Training
    """Of the chain of thought that all arms start from."""
    training: Training
    """Of the arms."""


RATES = {"colar": 8e-3, "coconut": 2e-3, "waiting": 2e-3, "icot": 4e-3, "pause": 1e-3, "direct": 1e-3, "rl": 1e-5}
"""Peak learning rates by family, on both tasks: chosen by study `colar-tuning` on arithmetic, on other seeds."""
USUAL: dict[str, Any] = {"batch_size": 32, "clip_norm": 1.0, "log_every": 500, "validate": 0}
"""Of all runs. Gradients are clipped for everybody: CoLaR's loss sums over vectors, and batches with many of them would
outweigh those with few."""
ARITHMETIC = Place(
    "arithmetic",
    Arithmetic(operations=3, least=2, modulus=3),
    ModelConfig(width=64),
    Training(steps=2000, learning_rate=4e-3, num_train=1900, **USUAL),
    Training(steps=4000, num_train=1900, **USUAL),
)
HOPS = Place(
    "multi-hop",
    MultiHop(hops=7, least=3, nodes=6, bound=True),
    ModelConfig(width=64),
    Training(steps=4000, learning_rate=3e-3, num_train=10_000, **USUAL),
    Training(steps=1800, num_train=10_000, **USUAL),
)
RL_START, RL_SPEED = "c2-nll", 2
"""The arm that reinforcement learning starts from, and its speed, that of the published runs."""
ERRING: dict[str, Any] = {
    "schedule": "constant", "learning_rate": 2e-3, "validate": 256, "enough": 0.6, "log_every": 50,
}  # fmt: skip
"""Training of that arm, where it differs from the others': it stops while it still errs, so that rewards differ."""
RL: dict[str, Any] = {"steps": 160, "weight_decay": 0.0, "log_every": 20}
"""Training of reinforcement learning, where it differs from the other arms'."""
_COCONUT, _HOPS_COCONUT = Coconut(stages=3, share=0.2, mixing=0.0), Coconut(stages=6, share=0.12, mixing=0.0)
_RL = CoLaRGRPO(speeds=(RL_SPEED,), density="mean")
ARMS: dict[str, tuple[str, Method, str]] = {
    "chain": ("chain of thought", DiscreteCoT(ends=True), "#3b6fb6"),
    "random": ("CoLaR, c of 1 to 5", CoLaR(), "#7a3e9d"),
    "odd": ("CoLaR, c of 1, 3, 5", CoLaR(speeds=(1, 3, 5)), "#a97bc4"),
    "c2": ("CoLaR, c of 2 alone", CoLaR(speeds=(2,)), "#2f8f9d"),
    "c3": ("CoLaR, c of 3 alone", CoLaR(speeds=(3,)), "#2a7f9d"),
    "c4": ("CoLaR, c of 4 alone", CoLaR(speeds=(4,)), "#256f8f"),
    "c5": ("CoLaR, c of 5 alone", CoLaR(speeds=(5,)), "#1f5f8a"),
    "c6": ("CoLaR, c of 6 alone", CoLaR(speeds=(6,)), "#1a4f75"),
    "mean": ("mean pooling", CoLaR(pooling="mean"), "#a0522d"),
    "unlabelled": ("no compressed labels", CoLaR(labels=False), "#6b7b3a"),
    "deterministic": ("deterministic head", CoLaR(deterministic=True), "#b58a3e"),
    "nll": ("NLL", CoLaR(latent_loss="nll"), "#b5403a"),
    "c2-nll": ("NLL, c of 2 alone, stopped early", CoLaR(speeds=(2,), latent_loss="nll"), "#d98880"),
    "coconut": ("Coconut", _COCONUT, "#4f8f5b"),
    "waiting": ("pause as thought", replace(_COCONUT, thought="pause"), "#d3b04a"),
    "icot": ("steps removed", replace(_COCONUT, per_step=0), "#8aa36b"),
    "pause": ("pause tokens, c of 5", PauseTokens(compression=5), "#c08a3e"),
    "pause-c6": ("pause tokens, c of 6", PauseTokens(compression=6), "#9a6b2a"),
    "direct": ("direct", Direct(), "#777777"),
    "rl-mean": ("RL, mean over steps", _RL, "#d6453d"),
    "rl-sum": ("RL, sum over steps", replace(_RL, average="sum"), "#e59a95"),
    "rl-policy": ("RL, mean over steps, ratio of the policy", replace(_RL, density="sum"), "#8c2f39"),
    "hops-chain": ("chain of thought", DiscreteCoT(ends=True), "#3b6fb6"),
    "hops-random": ("CoLaR, c of 1 to 5", CoLaR(), "#7a3e9d"),
    "hops-odd": ("CoLaR, c of 1, 3, 5", CoLaR(speeds=(1, 3, 5)), "#a97bc4"),
    "hops-c2": ("CoLaR, c of 2 alone", CoLaR(speeds=(2,)), "#2f8f9d"),
    "hops-c4": ("CoLaR, c of 4 alone", CoLaR(speeds=(4,)), "#256f8f"),
    "hops-mean": ("mean pooling", CoLaR(pooling="mean"), "#a0522d"),
    "hops-coconut": ("Coconut", _HOPS_COCONUT, "#4f8f5b"),
    "hops-icot": ("steps removed", replace(_HOPS_COCONUT, per_step=0), "#8aa36b"),
    "hops-pause": ("pause tokens, c of 5", PauseTokens(compression=5), "#c08a3e"),
    "hops-direct": ("direct", Direct(), "#777777"),
}
"""Label, method and colour of every arm. Arithmetic writes six tokens an operation: with c of 6 alone CoLaR thinks in
as many vectors as Coconut has latents and as there are pauses. Reinforcement learning averages densities over the
width, as in the published code, but for `rl-policy`: the gradients of their sums, which are the policy's, drown those
of stops and answers at standard deviations near the bound."""

FAMILIES = ("random", "coconut", "waiting", "icot", "pause", "direct", "rl-mean")
"""An arm of every family that trains from the chain of thought, or from CoLaR: those that `colar-tuning` searches."""
SEARCHED = FAMILIES
"""Arms whose learning rates were searched for."""


def place_of(arm: str) -> Place:
    """Where an arm is trained."""
    return HOPS if arm.startswith(PREFIX) else ARITHMETIC


def family_of(arm: str) -> str:
    """What an arm shares its learning rate with."""
    method, own = ARMS[arm][1], arm.removeprefix(PREFIX)
    shared = {CoLaR: "colar", CoLaRGRPO: "rl", PauseTokens: "pause"}
    return shared.get(type(method), own)


def build(arm: str, seed: int = 0, **settings: Any) -> Experiment:
    """The run of an arm, with what it starts from; `settings` are fields of Training that override.

    Raises:
        ValueError: there is no such arm.
    """
    if arm not in ARMS:
        raise ValueError(f"unknown arm {arm!r} of colar: expected one of {', '.join(ARMS)}")
    where, method, seeds = place_of(arm), ARMS[arm][1], Seeds.all(seed)
    if isinstance(method, DiscreteCoT):
        return Experiment(where.task, method, where.model, replace(where.start, **settings), seeds)
    start = build(RL_START if isinstance(method, CoLaRGRPO) else "hops-chain" if where is HOPS else "chain", seed)
    own = RL if isinstance(method, CoLaRGRPO) else ERRING if arm == RL_START else {}
    training = replace(where.training, **{"learning_rate": RATES[family_of(arm)], **own, **settings})
    return Experiment(where.task, method, where.model, training, seeds, start)


def arm_of(run: Experiment) -> str:
    """The arm of a run.

    Raises:
        ValueError: it is of none.
    """
    return known_arm(run, "colar", ARMS, build)
