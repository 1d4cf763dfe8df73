"""Pause tokens: as many steps as the chain has, whose input is one learned vector; only the answer is supervised.

The baseline of equal compute: what a latent method gains over this one comes from the content of its latents (Goyal et
al. 2023, "Think before you speak"; Pfau et al. 2024 for filler tokens). `compression` shortens the wait, so that it can
be compared with methods that think in fewer latents than the chain has tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tinylatent.engine.plan import Plan, Segment
from tinylatent.engine.thoughts import Pause
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import Method, Model


@dataclass(frozen=True)
class PauseTokens(Method):
    """Waits as long as the chain would take, or a part of that, then answers.

    Raises ValueError for a compression below 1.
    """

    name = "pause"
    colour = "#c08a3e"

    compression: int = 1
    """Steps of the chain that one pause stands for; a chain of L steps has L / compression pauses, rounded up."""

    def __post_init__(self) -> None:
        if self.compression < 1:
            raise ValueError(f"compression {self.compression}: expected at least 1 step of the chain a pause; try 1")

    def parts(self, backbone: Any, generator: torch.Generator) -> nn.ModuleDict:
        """The learned vector."""
        return nn.ModuleDict({"pause": Pause(backbone.table.width, generator)})

    def thinking(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """The pauses of every row's chain before the answer."""
        return (Segment(pause_of(model), -(-examples.num_steps // self.compression)),)

    def taught(self, model: Model, examples: Examples) -> Plan:
        """The same with the pauses given, so that one forward runs them."""
        pause = pause_of(model)
        most = -(-examples.max_steps // self.compression)
        given = pause.given((len(examples), most), examples.prompt_BN.device)
        return (Segment(pause, -(-examples.num_steps // self.compression), given),)


def pause_of(model: Model) -> Pause:
    """A model's learned vector."""
    pause = model.parts["pause"]
    assert isinstance(pause, Pause)
    return pause
