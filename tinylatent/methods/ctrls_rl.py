"""Reinforcement learning of transitions alone, after `ctrls`. A RECONSTRUCTION, not the paper's algorithm.

The abstracts of Wu et al. 2025, arXiv 2507.08182, name on-policy reinforcement learning of transitions between latent
states, the language model being frozen; that of version 1 names epsilon-greedy exploration and an entropy bonus too.
Equations are ours. A group of rollouts of one prompt draws a point of the simplex before every step, writes the step's
likeliest tokens behind it, and answers; the transition network f is all that learns:

    alpha = softplus(f(h)) + floor;  a ~ (1 - epsilon) Dirichlet(alpha) + epsilon Dirichlet(1)
    loss = - mean of min(rho A, clip(rho) A)  -  entropy mean H(Dirichlet(alpha)),  rho: ratio of the densities of a

The density is that of the mixture: with that of Dirichlet(alpha) the score of explored draws is not zero on average,
and the gradient is biased. H is largest where all concentrations are 1, so that the bonus pulls there, to distributions
that are neither all alike nor all certain. The policy explores for as long as it is trained; inference does not.

With `states` prefix the same is trained without states: one vector, by the scores of sampled tokens.

Letters: B rows = prompts * G, G rollouts of a group, S states of a rollout, T steps, D width, K states.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import ClassVar, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tinylatent.engine.plan import Plan
from tinylatent.engine.thoughts import GREEDY, Token
from tinylatent.engine.trace import Trace
from tinylatent.methods.ctrls import CTRLS, STATE, Stateful, interleaved, states_of, transition_of
from tinylatent.methods.ctrls_states import steps_of
from tinylatent.methods.ctrls_thought import (
    Density,
    LatentState,
    Prefix,
    dirichlet_entropy,
    state_entropy,
)
from tinylatent.methods.discrete import DiscreteCoT
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import Loss, Method, Model, ParameterGroup, TrainState
from tinylatent.objectives.policy_gradient import PolicyGradient, Rollouts


@dataclass(frozen=True)
class CTRLSRL(PolicyGradient, Stateful):
    """Learns from rewards which states lead to right answers; starts from CTRLS-style training. A reconstruction.

    Raises ValueError for settings out of range, for a soft categorical, and for a prefix without sampled tokens.
    """

    name = "ctrls-rl"
    label = "CTRLS-style, RL"
    starts_from = "ctrls"
    inherits = ("backbone", "parts.states", "parts.transition")
    temperatures = (1.0,)
    coldest: ClassVar[float] = 0.0
    recipe = MappingProxyType({"steps": 300, "learning_rate": 1e-3, "weight_decay": 0.0})

    clip: float = 0.2
    """Clips the probability ratio to 1 - clip .. 1 + clip."""
    temperature: float = 0.0
    """Sampling temperature of tokens, answers included, in rollouts of training; at 0 states alone are drawn."""
    draws: bool = True
    """Whether states are drawn in rollouts of training, without which only a prefix can learn."""
    epsilon: float = 0.1
    """Probability of a uniform draw in rollouts of training; inference does not explore."""
    density: Density = "mixture"
    """Density of what was drawn, in the ratio: that of the mixture with uniform draws, or as if there were none."""
    entropy: float = 0.01
    """Weight of the mean entropy of the Dirichlet distributions (of m, if categorical), the bonus."""

    def __post_init__(self) -> None:
        PolicyGradient.__post_init__(self)
        Stateful.__post_init__(self)
        if self.density not in get_args(Density):
            raise ValueError(f"density {self.density!r}: expected one of {', '.join(get_args(Density))}")
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon {self.epsilon}: expected a probability from 0 to 1; try 0.1")
        if not 0 <= self.entropy < math.inf:
            raise ValueError(f"entropy {self.entropy}: expected 0 or more; try 0.01")
        if self.states == "prefix" and self.temperature == 0:
            raise ValueError("states prefix draws no states to learn from: set a temperature, such as 1.0, for tokens")

    @property
    def idle(self) -> Mapping[str, str]:
        """What one update, no exploration and a prefix make idle."""
        quiet = {"density": "without exploration"} if self.epsilon == 0 else {}
        return {**super().idle, **quiet, **self.idle_beside_prefix("epsilon", "density", "entropy")}

    @property
    def decoders(self) -> Mapping[str, Method]:
        """The same weights without states, and with states drawn from the prior."""
        plain: dict[str, Method] = {"plain": DiscreteCoT()}
        if self.states == "prefix":
            return plain
        shared = {field.name: getattr(self, field.name) for field in fields(Stateful)}
        return plain | {"drawn": CTRLS(**{**shared, "draws": True})}

    def parameter_groups(self, stage: int) -> tuple[ParameterGroup, ...]:
        """All but the transition network, frozen; all but the prefix, where that is what learns."""
        still = ("backbone",) if self.states == "prefix" else ("backbone", "parts.states")
        return (ParameterGroup(still, frozen=True),)

    def thinking(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """A state, the tokens of a step, and so on, without exploration; states are drawn where tokens are."""
        thought = self.thought(model, temperature > 0)
        return interleaved(examples, steps_of(examples), thought, Token(temperature) if temperature else GREEDY)

    def sampled_plan(self, model: Model, examples: Examples) -> Plan:
        """The plan of rollouts in training: states are drawn, with exploration, whatever the tokens' temperature."""
        *_, answer = self.plan(model, examples, self.temperature)
        token = Token(self.temperature) if self.temperature else GREEDY
        return (*interleaved(examples, steps_of(examples), self.explorer(model), token), answer)

    def explorer(self, model: Model) -> LatentState | Prefix:
        """The thought of a state in training, its likelihood counted as the settings say."""
        if self.states == "prefix" or not self.draws:
            return self.thought(model, False)
        parts = states_of(model), transition_of(model)
        return LatentState(*parts, self.transition, self.feed, True, self.epsilon, self.density)

    def most_before(self, examples: Examples) -> int:
        """A state for every token, at most."""
        return 2 * examples.max_steps

    def extra_loss(self, model: Model, now: Trace, batch: Rollouts, state: TrainState) -> Loss | None:
        """The entropy bonus, a mean over the states of a rollout, then over rollouts; both entropies are metrics."""
        if self.states == "prefix":
            return None
        alpha_BSK, mask_BS = self.concentrations(model, now)
        rows = (state.rows or len(batch)) * now.group
        share_BS = mask_BS.to(alpha_BSK) / mask_BS.sum(1, keepdim=True).clamp(min=1)
        spread, single, total = (
            (found_BS * share_BS).sum()
            for found_BS in (dirichlet_entropy(alpha_BSK), state_entropy(alpha_BSK), alpha_BSK.detach().sum(-1))
        )
        bonus = single if self.transition == "categorical" else spread
        metrics = {"dirichlet_entropy": spread, "state_entropy": single, "concentration": total}
        found = {name: value.detach() / now.rows for name, value in metrics.items()}
        return Loss(-self.entropy * bonus / rows, found if state.update == 0 else {})

    def concentrations(self, model: Model, trace: Trace) -> tuple[Float[Tensor, "B S K"], Bool[Tensor, "B S"]]:
        """alpha at every state of a trace, and which of them a row has."""
        places = [trace.within(span).start for span in trace.thought_spans if span.name == STATE]
        hidden_BSD = trace.hidden_BTD[:, places]
        mask_BS = torch.ones(hidden_BSD.shape[:2], dtype=torch.bool, device=hidden_BSD.device)
        alpha_BSK = transition_of(model)(hidden_BSD)
        return alpha_BSK, mask_BS if trace.acted_BT is None else trace.acted_BT[:, places]
