"""Recipes of study `depth`: a direct answer to compositions of up to four permutations, in six layers.

Arms differ from the first, which is trained on answers alone, in one thing: the loss on all tokens, weights that layers
share, where norms stand, weight decay (of all weights, those of norms too), or the number of layers. Models of all
tokens learn at a third of the pace (after 5,000 batches three were right in 76 to 87 % of what they had not seen), so
that they may train for twice as long, and stop at a share of right answers; answers alone are there a second time,
stopped at the same share. Problems are drawn with equal numbers of hops. The rate is one for all and was not searched;
matrices begin at the size of their inputs (`init fan_in`), without which six narrow layers did not learn in a pilot.
Only runs that learn are told of.
"""

from dataclasses import dataclass, replace
from typing import Any

from tinylatent_tasks import Composition

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.places import same_arm
from tinylatent.methods import Direct
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

TASK = Composition()
LAYERS = 6
MODEL = ModelConfig(64, LAYERS, 4, mlp="relu", init="fan_in")
STEPS = 2500
TRAINING = Training(
    STEPS, batch_size=256, learning_rate=1e-3, warmup=0.08, schedule="constant", weight_decay=0.01, clip_norm=1.0,
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
    training: tuple[tuple[str, Any], ...] = ()


ENOUGH = 0.85
"""Share of right answers, of 256 problems a run does not train on, at which arms stop. It is looked at every 250
batches, and does not make arms equal at every number of hops."""
STOPPED = (("enough", ENOUGH),)
LONGER = (("steps", 4 * STEPS), ("warmup", TRAINING.warmup / 4))
ANSWER, EARLY, ALL, SHALLOW = "answer", "early", "all", "shallow"
ARMS = {
    ANSWER: Arm("answers alone", "#3b6fb6"),
    EARLY: Arm(f"answers alone, stopped at {100 * ENOUGH:g} %", "#8fb0d9", training=STOPPED),
    ALL: Arm(f"all tokens, stopped at {100 * ENOUGH:g} %", "#b5403a", question=1.0, training=STOPPED + LONGER),
    "tied": Arm("one layer six times", "#4f8f5b", model=(("layers", 1), ("loops", LAYERS))),
    "post": Arm("norms on sums", "#7b5ea7", model=(("norm", "post"),)),
    "after": Arm("norms on additions", "#b79ad1", model=(("norm", "after"),)),
    "decay-30": Arm("weight decay 0.3", "#8a5f1b", training=(("weight_decay", 0.3),)),
    SHALLOW: Arm("three layers", "#777777", model=(("layers", 3),)),
}
"""All arms, the one that the others are compared with first."""


def build(arm: str, seed: int) -> Experiment:
    """The run of an arm."""
    chosen = ARMS[arm]
    training: Any = replace(TRAINING, **dict(chosen.training))
    model = replace(MODEL, **dict(chosen.model))
    return Experiment(TASK, Direct(question=chosen.question), model, training, Seeds.all(seed))


def arm_of(run: Experiment) -> str:
    """The arm that a run is of, however long it was trained.

    Raises:
        ValueError: it is of none.
    """
    return same_arm(run, "depth", ARMS, build)
