"""CoLaR's second stage: GRPO on the vectors and stops of CoLaR (`colar`), rewarded by the answer alone.

Tan et al. 2025, arXiv 2505.16552, section 3.3, after its published code (its text was not at hand). A group of rollouts
of one prompt draws vectors from the latent head, decides after each whether to go on, and answers. Losses are averaged
over the steps of a rollout (`average` "sequence"), which is what shortens chains: the same advantage counts for more on
a step of a short one. `average` "sum" is without it. There is no KL term.

The policy is the density of the vector, over its whole width, and the probability of every decision to stop or go on;
options are what the published code counts instead. With a mean over the width the ratio is the d-th root of the
policy's, and without the decisions to go on the likelihood is that of another policy, whose score is not zero on
average.

Letters: B rows = prompts * G, G rollouts of a group, T steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tinylatent.engine.thought import Thought
from tinylatent.engine.trace import Trace
from tinylatent.methods.colar import Compressing, Density, Ending, Gaussian, head_of
from tinylatent.methods.discrete import END, THINKING
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import Method, Model, TrainState
from tinylatent.objectives.policy_gradient import PolicyGradient, Rollouts


@dataclass(frozen=True)
class CoLaRGRPO(PolicyGradient, Compressing):
    """Learns from rewards which vectors and how many of them lead to right answers; starts from CoLaR.

    Raises ValueError for settings out of range.
    """

    name = "colar-rl"
    label = "CoLaR, RL"
    starts_from = "colar"
    inherits = ("backbone", "parts.head")
    recipe = MappingProxyType({"steps": 1000, "learning_rate": 1e-4, "weight_decay": 0.0})

    clip: float = 0.2
    """Clips the probability ratio to 1 - clip .. 1 + clip."""
    temperature: float = 1.0
    """Sampling temperature of rollouts in training: of answers, and a factor on the standard deviation of vectors."""
    density: Density = "sum"
    """Log-density of a vector in the ratio: summed over its width, or the published code's mean over its width."""
    go_on: bool = True
    """Whether decisions to go on count; the published code counts the stop alone."""
    per_latent: bool = False
    """Whether the reward is divided by the number of vectors, as in an option of the published code."""

    def __post_init__(self) -> None:
        PolicyGradient.__post_init__(self)
        Compressing.__post_init__(self)
        if self.density not in get_args(Density):
            raise ValueError(f"density {self.density!r}: expected one of {', '.join(get_args(Density))}")

    @property
    def start_settings(self) -> Mapping[str, Any]:
        """The head and the tokens of speeds that it takes over."""
        return {"speeds": self.speeds, "head": self.head, "deterministic": self.deterministic}

    @property
    def idle(self) -> Mapping[str, str]:
        """What one update makes idle, and a density where no vector is drawn."""
        density = {"density": "with a deterministic head, which draws no vectors"} if self.deterministic else {}
        return {**super().idle, **density}

    @property
    def decoders(self) -> Mapping[str, Method]:
        """The same weights at every speed."""
        return {f"x{c}": replace(self, speed=c) for c in range(1, max(self.speeds) + 1)}

    def thought(self, model: Model, temperature: float) -> Thought:
        """The thought of a vector, its likelihood counted as the settings say."""
        inner = Gaussian(head_of(model), temperature, self.density)
        return Ending(inner, self.extra_id(model, END), float(temperature > 0), self.go_on)

    def reward(self, model: Model, examples: Examples, trace: Trace, state: TrainState) -> Float[Tensor, " B"]:
        """The verifier's value, over the number of vectors if so set."""
        reward_B = super().reward(model, examples, trace, state)
        return reward_B / latents(trace) if self.per_latent else reward_B

    def collect(self, model: Model, examples: Examples, state: TrainState) -> Rollouts:
        """Samples a group of rollouts for every example; the mean number of vectors is a metric of its own."""
        found: Rollouts = super().collect(model, examples, state)
        return replace(found, metrics={**found.metrics, "latents": latents(found.trace).to(found.advantage_B).mean()})


def latents(trace: Trace) -> Int[Tensor, " B"]:
    """How many vectors every row has thought."""
    within = trace.within(trace.span(THINKING))
    if trace.live_BT is None:
        return torch.full((trace.rows,), within.stop - within.start, device=trace.hidden_BTD.device)
    return trace.live_BT[:, within].sum(1)
