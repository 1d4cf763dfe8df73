"""Recipes of study `outliers`: a direct answer to compositions in four layers, by rate, epsilon, block and optimizer.

The first arm is AdamW at 1e-3, with norms before attention and MLP. All stop at one share of right answers, so that
arms which learn at different paces are compared about as good as each other; one goes on, to tell what more training
does. Matrices begin as GPT-2's: at the size of their inputs (`init fan_in`) kurtosis stayed below 2 in a pilot at every
rate. At 1e-2 AdamW did not learn; Shampoo, which knows no moments, did at 0.1. SOAP has the decays of AdamW's moments.
Rates were not searched further. Problems are drawn with equal numbers of hops. Weight decay is of all weights.
"""

from collections.abc import Mapping
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
MODEL = ModelConfig(64, 4, 4, mlp="relu")
STEPS, ENOUGH, LONGER = 6000, 0.9, 3000
"""Most batches of an arm, the share of right answers to problems never trained on at which it stops, and batches of the
one that does not."""
TRAINING = Training(
    STEPS, batch_size=256, learning_rate=1e-3, warmup=1 / 30, schedule="constant", weight_decay=0.01, clip_norm=1.0,
    beta2=0.98, log_every=20, validate=512, enough=ENOUGH, num_train=50_000,
)  # fmt: skip
SOAP: Mapping[str, Any] = {"optimizer": "soap", "beta1": 0.9}
SLOW, FAST = 3e-4, 3e-3


@dataclass(frozen=True)
class Arm:
    """What differs from the first arm."""

    label: str
    colour: str
    training: tuple[tuple[str, Any], ...] = ()
    norm: str = "pre"


def _arm(label: str, colour: str, norm: str = "pre", **training: Any) -> Arm:
    return Arm(label, colour, tuple(training.items()), norm)


ARMS = {
    "adamw": _arm("AdamW 1e-3", "#3b6fb6"),
    "slow": _arm("AdamW 3e-4", "#8fb0d9", learning_rate=SLOW),
    "fast": _arm("AdamW 3e-3", "#1f3f7a", learning_rate=FAST),
    "longer": _arm(
        "AdamW 3e-3, 3,000 batches", "#222222", learning_rate=FAST, steps=LONGER, warmup=1 / 15, enough=None
    ),
    "epsilon": _arm("AdamW 1e-3, epsilon 1e-4", "#6f9a8d", epsilon=1e-4),
    "protected": _arm("protected, AdamW 1e-3", "#4f8f5b", norm="protected"),
    "protected-fast": _arm("protected, AdamW 3e-3", "#2f6f3b", norm="protected", learning_rate=FAST),
    "after": _arm("norms on additions, AdamW 1e-3", "#777777", norm="after"),
    "soap": _arm("SOAP 1e-3", "#b5403a", **SOAP),
    "soap-fast": _arm("SOAP 3e-3", "#7a1f1b", **SOAP, learning_rate=FAST),
    "shampoo": _arm("Shampoo 0.1", "#c08a3e", optimizer="shampoo", beta2=None, learning_rate=0.1),
}
"""All arms, the one that the others are compared with first."""


def build(arm: str, seed: int) -> Experiment:
    """The run of an arm."""
    chosen = ARMS[arm]
    training = replace(TRAINING, **dict(chosen.training))
    model: Any = replace(MODEL, **{"norm": chosen.norm})  # type: ignore[arg-type]
    return Experiment(TASK, Direct(), model, training, Seeds.all(seed))


def arm_of(run: Experiment) -> str:
    """The arm that a run is of, however long it was trained.

    Raises:
        ValueError: it is of none.
    """
    return same_arm(run, "outliers", ARMS, build)
