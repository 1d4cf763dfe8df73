"""Pause tokens: as many steps as the chain has, whose input is one learned vector; only the answer is supervised.

The baseline of equal compute: what a latent method gains over this one comes from the content of its latents (Goyal et
al. 2023, "Think before you speak"; Pfau et al. 2024 for filler tokens).
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
    """Waits as long as the chain would take, then answers."""

    name = "pause"
    colour = "#c08a3e"

    def parts(self, backbone: Any, generator: torch.Generator) -> nn.ModuleDict:
        """The learned vector."""
        return nn.ModuleDict({"pause": Pause(backbone.table.width, generator)})

    def thinking(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """One pause per step of the chain before the answer."""
        return (Segment(_pause(model), examples.num_steps),)

    def taught(self, model: Model, examples: Examples) -> Plan:
        """The same with the pauses given, so that one forward runs them."""
        pause = _pause(model)
        given = pause.given((len(examples), examples.max_steps), examples.prompt_BN.device)
        return (Segment(pause, examples.num_steps, given),)


def _pause(model: Model) -> Pause:
    pause = model.parts["pause"]
    assert isinstance(pause, Pause)
    return pause
