"""Pause tokens: as many steps as the chain has, all fed the same learned constant; only the answer is supervised.

The control of equal compute: whatever a latent method gains over this one, it gains by what its latents carry
(Goyal et al. 2023, "Think before you speak"; Pfau et al. 2024 for filler tokens).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tinylatent.methods.base import Method, Model
from tinylatent.plan import Plan, Segment
from tinylatent.problems import Problems
from tinylatent.thoughts import Pause


@dataclass(frozen=True)
class PauseTokens(Method):
    """Waits as long as the chain would take, then answers."""

    name = "pause"

    def thoughts(self, backbone: Any, generator: torch.Generator) -> nn.ModuleDict:
        """The learned constant."""
        return nn.ModuleDict({"pause": Pause(backbone.embedding.shape[1], generator)})

    def before(self, model: Model, problems: Problems, forced: bool, temperature: float = 0.0) -> Plan:
        """One pause for each step of the chain before the answer."""
        pause = model.thoughts["pause"]
        assert isinstance(pause, Pause)
        given = pause.given((len(problems), problems.words_before), problems.prompt_BN.device) if forced else None
        return (Segment(pause, problems.thinking, given),)
