"""Trajectory: what a rollout did, step by step, and the plan that would do it again.

Letters: B rows, N prompt, T steps of the plan, D width, V vocabulary.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinylatent.plan import Plan, Segment
from tinylatent.thoughts import Action, State, Thought


@dataclass(frozen=True)
class Span:
    """Steps start..stop of a trajectory, made by one thought, with its actions over (B, stop - start, ...)."""

    thought: Thought
    start: int
    stop: int
    action: Action


@dataclass(frozen=True)
class Trajectory:
    """What a rollout did. Step t's action was taken in the state whose hidden is hidden_BTD[:, t]."""

    prompt_BN: Int[Tensor, "B N"]
    prompt_mask_BN: Bool[Tensor, "B N"] | None
    spans: tuple[Span, ...]
    hidden_BTD: Float[Tensor, "B T D"]
    logits_BTV: Float[Tensor, "B T V"]
    embeddings_BTD: Float[Tensor, "B T_minus_1 D"]
    """The inputs the actions were turned into, the last action's left out: nothing has read it yet."""
    live_BT: Bool[Tensor, "B T"] | None
    """False where a row waited; None if none ever did."""
    group_B: Int[Tensor, " B"] | None
    """Which prompt each row belongs to; None if each has its own."""
    embedding: Float[Tensor, "V D"]
    offset_B: Int[Tensor, " B"] | None = None
    end: Any = None
    """Where a later rollout goes on (the engine's own record of its slots); None after `force`."""

    @property
    def steps(self) -> int:
        """T, waiting included."""
        return self.hidden_BTD.shape[1]

    @property
    def length_B(self) -> Int[Tensor, " B"]:
        """Steps each row really took."""
        B, T = self.hidden_BTD.shape[:2]
        if self.live_BT is None:
            return torch.full((B,), T, device=self.hidden_BTD.device)
        return self.live_BT.sum(1)

    def action(self, name: str) -> Tensor:
        """One field of the last span that has it, over (B, steps, ...): `action("id")` holds the answer tokens.

        Raises:
            KeyError: no span has such a field.
        """
        for span in reversed(self.spans):
            if name in span.action.values:
                return span.action[name]
        raise KeyError(name)

    @cached_property
    def log_prob_BT(self) -> Float[Tensor, "B T"]:
        """Log-probability of each action under the logits of this trajectory; 0 where a row waited."""
        parts = [span.thought.log_prob(self._state(span), span.action) for span in self.spans if span.stop > span.start]
        log_prob_BT = torch.cat(parts, 1)
        return log_prob_BT if self.live_BT is None else log_prob_BT.masked_fill(~self.live_BT, 0.0)

    def _state(self, span: Span) -> State:
        steps = slice(span.start, span.stop)
        return State(self.hidden_BTD[:, steps], self.logits_BTV[:, steps], self.embedding, self.group_B)

    def plan(self) -> Plan:
        """The plan that forces exactly these actions."""
        segments: list[Segment] = []
        for span in self.spans:
            steps = span.stop - span.start if self.live_BT is None else self.live_BT[:, span.start : span.stop].sum(1)
            segments.append(Segment(span.thought, steps, span.action))
        return tuple(segments)
