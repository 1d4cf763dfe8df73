"""Recipes of study `latentseek`: chains of thought that are right about half of the time, and searches that read them.

An arm is a search with its usual settings on arithmetic; `sums-` before its name puts it on subset sum. A search trains
nothing: its run starts from the arm `discrete` of its task. That one must err: on arithmetic, where learning breaks
through, it stops at the first half of right answers; on subset sum a model of this size ends between chance and right.
Its rates were not searched for; settings of the searches are chosen within the study, as many for each.
"""

from dataclasses import dataclass, replace
from typing import Any

from tinylatent_tasks import Arithmetic, SubsetSum

from tinylatent.core.seeds import Seeds
from tinylatent.lab import places
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.places import split_arm
from tinylatent.methods import BestOfN, DiscreteCoT, LatentSeek, NoiseSearch, TabooSearch
from tinylatent.methods.searching import Search
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import Method
from tinylatent.training.config import Training


@dataclass(frozen=True)
class Place(places.Place):
    """A task with certificates, and how its chain of thought is trained."""

    training: Training
    proves: str
    """What a certificate of it is, in words."""


PLACES: dict[str, Place] = {
    "": Place(
        "arithmetic",
        Arithmetic(operations=4, modulus=7, operators="+-"),
        ModelConfig(width=64),
        Training(4000, 32, 1e-3, num_train=20_000, log_every=5, save_every=100_000, enough=0.5),
        "every operation is right",
    ),
    "sums-": Place(
        "subset sum",
        SubsetSum(numbers=8),
        ModelConfig(),
        Training(3000, learning_rate=1e-2, num_train=20_000, log_every=500, save_every=100_000, validate=0),
        "sums of a subset end at the target: it proves a yes, and nothing proves a no",
    ),
}
"""By what stands before the names of their arms."""
CHAIN = "discrete"
"""The arm that is trained; all others read it."""
SEARCHES: dict[str, tuple[str, Search, str]] = {
    "latentseek": ("LatentSeek", LatentSeek(), "#7b5ea7"),
    "sampled": ("LatentSeek, sampled", LatentSeek(mode="sampled", samples=4, baseline="loo"), "#b79ad1"),
    "plain": ("LatentSeek, plain steps", LatentSeek(optimizer="sgd"), "#c76b98"),
    "random": ("random prefix", LatentSeek(mode="sampled", rate=0.0), "#2f8f83"),
    "best-of-n": ("best of N", BestOfN(), "#6b7b3a"),
    "vote": ("majority vote", BestOfN(select="vote"), "#555555"),
    "noise": ("noise", NoiseSearch(), "#8a6b1f"),
    "taboo": ("taboo", TabooSearch(), "#a0522d"),
}
"""Label, method and colour of every search."""
ARMS: dict[str, tuple[str, Method, str]] = {
    f"{prefix}{name}": arm
    for prefix in PLACES
    for name, arm in {CHAIN: ("discrete CoT", DiscreteCoT(), "#3b6fb6"), **SEARCHES}.items()
}
"""Label, method and colour of every arm."""
SEARCHED: tuple[str, ...] = ()
"""Arms whose learning rates were searched for."""


def build(arm: str, seed: int = 0, **settings: Any) -> Experiment:
    """The run of an arm; `settings` are fields of Training that override, those of the chain that a search reads.

    Raises:
        ValueError: there is no such arm.
    """
    if arm not in ARMS:
        raise ValueError(f"unknown arm {arm!r} of latentseek: expected one of {', '.join(ARMS)}")
    where, method = PLACES[split_arm(arm, PLACES)[0]], ARMS[arm][1]
    training = replace(where.training, **settings)
    chain = Experiment(where.task, DiscreteCoT(), where.model, training, Seeds.all(seed))
    if not isinstance(method, Search):
        return chain
    return replace(chain, method=method, training=replace(training, steps=0), start=chain)
