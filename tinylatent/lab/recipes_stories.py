"""Recipes of study `stories`: ProsQA in small, the arms of Coconut's paper and CoT2 in four layers from random weights.

Stories of our own generator, in which nothing but the graph gives the answer away. All arms take as many steps at one
rate, which was not searched for. Coconut's stages take a part of them each, so that its last has the fewest. The full
size, GPT-2 on ProsQA's files, stands ready as recipes of `tinylatent published`.
"""

from dataclasses import replace
from typing import Any

from tinylatent_tasks import Stories

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.places import Place, known_arm
from tinylatent.methods import Coconut, CoT2, Direct, DiscreteCoT, PauseTokens
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import Method
from tinylatent.training.config import Training

PLACE = Place("stories", Stories(nodes=8, edges=10), ModelConfig(64, 4, 4, init="fan_in"))
TRAINING = Training(5000, learning_rate=2e-3, clip_norm=1.0, num_train=50_000, log_every=250)
STAGED = Coconut(stages=2, share=0.3, mixing=0.0)
ARMS: dict[str, tuple[str, Method, str]] = {
    "direct": ("direct", Direct(), "#777777"),
    "pause": ("pause tokens", PauseTokens(), "#c08a3e"),
    "discrete": ("discrete CoT", DiscreteCoT(), "#3b6fb6"),
    "coconut-pause": ("Coconut, pause as thought", replace(STAGED, thought="pause"), "#8aa36b"),
    "coconut": ("Coconut", STAGED, "#4f8f5b"),
    "cot2": ("CoT2", CoT2(), "#222222"),
}
"""Label, method and colour of every arm."""
SEARCHED: tuple[str, ...] = ()
"""Arms whose learning rates were searched for."""


def build(arm: str, seed: int = 0, **settings: Any) -> Experiment:
    """The run of an arm.

    Args:
        arm: its name.
        seed: all seeds.
        settings: fields of Training that override.

    Raises:
        ValueError: there is no such arm.
    """
    if arm not in ARMS:
        raise ValueError(f"unknown arm {arm!r} of stories: expected one of {', '.join(ARMS)}")
    training = replace(TRAINING, **settings)
    return Experiment(PLACE.task, ARMS[arm][1], PLACE.model, training, Seeds.all(seed))


def arm_of(run: Experiment) -> str:
    """The arm that a run is of.

    Raises:
        ValueError: it is of none.
    """
    return known_arm(run, "stories", ARMS, build)
