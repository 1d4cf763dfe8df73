"""Recipes of study `depth`: a direct answer to compositions of up to four permutations, in six layers.

Arms differ from the first, which is trained on answers alone, in one thing: the loss on all tokens, weights that layers
share, where norms stand, weight decay (of all weights, those of norms too), or the number of layers. Problems are drawn
with equal numbers of hops. The rate is one for all and was not searched; matrices begin at the size of their inputs
(`init fan_in`), without which six narrow layers did not learn in a pilot, and after 3,000 steps models of all tokens
were right in 83 % alone. Only runs that learn are told of.
"""

from dataclasses import dataclass, replace
from typing import Any

from tinylatent_tasks import Composition

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.methods import Direct
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

TASK = Composition()
LAYERS = 6
MODEL = ModelConfig(64, LAYERS, 4, mlp="relu", init="fan_in")
STEPS = 5000
TRAINING = Training(
    STEPS, batch_size=256, learning_rate=1e-3, warmup=0.04, schedule="constant", weight_decay=0.01, clip_norm=1.0,
    beta2=0.98, log_every=250, num_train=50_000,
)  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """What differs from the first arm."""

    label: str
    colour: str
    question: float = 0.0
    """Weight of the loss on the question's tokens."""
    model: tuple[tuple[str, Any], ...] = ()
    weight_decay: float = TRAINING.weight_decay


ANSWER, ALL, SHALLOW = "answer", "all", "shallow"
ARMS = {
    ANSWER: Arm("answers alone", "#3b6fb6"),
    ALL: Arm("all tokens", "#b5403a", question=1.0),
    "tied": Arm("one layer six times", "#4f8f5b", model=(("layers", 1), ("loops", LAYERS))),
    "post": Arm("norms on sums", "#7b5ea7", model=(("norm", "post"),)),
    "after": Arm("norms on additions", "#b79ad1", model=(("norm", "after"),)),
    "decay-30": Arm("weight decay 0.3", "#8a5f1b", weight_decay=0.3),
    SHALLOW: Arm("three layers", "#777777", model=(("layers", 3),)),
}
"""All arms, the one that the others are compared with first."""


def build(arm: str, seed: int) -> Experiment:
    """The run of an arm."""
    chosen = ARMS[arm]
    training = replace(TRAINING, weight_decay=chosen.weight_decay)
    model = replace(MODEL, **dict(chosen.model))
    return Experiment(TASK, Direct(question=chosen.question), model, training, Seeds.all(seed))


def arm_of(run: Experiment) -> str:
    """The arm that a run is of, however long it was trained.

    Raises:
        ValueError: it is of none.
    """
    for arm in ARMS:
        usual = build(arm, run.seeds.split)
        if replace(run, training=replace(run.training, steps=STEPS), seeds=usual.seeds) == usual:
            return arm
    raise ValueError(f"{run.label} is no run of study depth: expected one of {', '.join(ARMS)}")
