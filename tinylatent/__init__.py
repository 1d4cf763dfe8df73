"""tinylatent: a laboratory for latent chain-of-thought.

What a script or a notebook needs stands here and is loaded when it is asked for: `import tinylatent as tl`, then
`tl.run("mnns/cot2")` trains, `tl.load(folder)` reads a run again, and `tl.rollout` runs thoughts of one's own.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinylatent_tasks import Task

    from tinylatent.core.seeds import Seeds, Streams
    from tinylatent.engine.controls import controlled
    from tinylatent.engine.force import replay
    from tinylatent.engine.plan import Segment
    from tinylatent.engine.rollout import rollout
    from tinylatent.engine.thought import Action, State, Thought
    from tinylatent.engine.thoughts import Dirichlet, Hidden, Mixture, MultiToken, Pause, Token
    from tinylatent.evaluation.evaluate import evaluate
    from tinylatent.lab.experiment import Experiment
    from tinylatent.lab.tasks import TASKS
    from tinylatent.lab.trained import Trained, load, run
    from tinylatent.methods import METHODS
    from tinylatent.models.decoder import ModelConfig
    from tinylatent.objectives.method import Loss, Method, Model
    from tinylatent.objectives.policy_gradient import PolicyGradient
    from tinylatent.training.config import Training

__version__ = "0.1.0"

_HOMES = {
    "tinylatent_tasks": ("Task",),
    "tinylatent.core.seeds": ("Seeds", "Streams"),
    "tinylatent.engine.controls": ("controlled",),
    "tinylatent.engine.force": ("replay",),
    "tinylatent.engine.plan": ("Segment",),
    "tinylatent.engine.rollout": ("rollout",),
    "tinylatent.engine.thought": ("Action", "State", "Thought"),
    "tinylatent.engine.thoughts": ("Dirichlet", "Hidden", "Mixture", "MultiToken", "Pause", "Token"),
    "tinylatent.evaluation.evaluate": ("evaluate",),
    "tinylatent.lab.experiment": ("Experiment",),
    "tinylatent.lab.tasks": ("TASKS",),
    "tinylatent.lab.trained": ("Trained", "load", "run"),
    "tinylatent.methods": ("METHODS",),
    "tinylatent.models.decoder": ("ModelConfig",),
    "tinylatent.objectives.method": ("Loss", "Method", "Model"),
    "tinylatent.objectives.policy_gradient": ("PolicyGradient",),
    "tinylatent.training.config": ("Training",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022 - in the order in which a newcomer meets them
    "run",
    "load",
    "Trained",
    "Experiment",
    "Training",
    "ModelConfig",
    "Seeds",
    "TASKS",
    "METHODS",
    "Task",
    "rollout",
    "replay",
    "Segment",
    "Thought",
    "Action",
    "State",
    "Streams",
    "Token",
    "Mixture",
    "MultiToken",
    "Dirichlet",
    "Hidden",
    "Pause",
    "controlled",
    "Method",
    "PolicyGradient",
    "Model",
    "Loss",
    "evaluate",
]


def __getattr__(name: str) -> Any:
    """A public name, loaded from its room."""
    if name not in _HOME:
        raise AttributeError(f"module 'tinylatent' has no attribute {name!r}: expected one of {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """All public names."""
    return [*__all__, "__version__"]
