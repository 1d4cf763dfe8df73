"""Plan: a sequence of segments, each a thought and how long to think it.

CoT2 on MNNS is [Mixture x (m - 1), Token x 1]; Coconut's stage k is [Hidden x k, Token x (m - k)]; a given action
forces a step instead of choosing it.

Letters: B rows, T steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool
from torch import Tensor

from tinylatent.thoughts import CONTROLS, Action, State, Thought


@dataclass(frozen=True)
class Segment:
    """`steps` steps of one thought: a number, or one number per row; rows that stop earlier wait.

    Raises:
        ValueError: negative steps, or given actions that do not cover them.
    """

    thought: Thought
    steps: int | Tensor
    given: Action | None = None
    """Actions over (B, steps, ...) that are taken instead of sampled ones."""

    def __post_init__(self) -> None:
        if isinstance(self.steps, int) and self.steps < 0:
            raise ValueError(f"a segment of {self.steps} steps: expected 0 or more")
        if self.given is not None:
            held = min((value.shape[1] for value in self.given.values.values()), default=0)
            if held < self.longest:
                raise ValueError(f"given actions cover {held} steps of a segment of {self.longest}")

    @cached_property
    def longest(self) -> int:
        """Steps of the longest row."""
        return self.steps if isinstance(self.steps, int) else int(self.steps.max())

    def live_BT(self, rows: int, device: torch.device) -> Bool[Tensor, "B T"]:
        """Which rows want which steps."""
        t = torch.arange(self.longest, device=device)[None]
        return (t < (self.steps if isinstance(self.steps, int) else self.steps[:, None])).expand(rows, -1)

    def forked(self, groups: int) -> "Segment":
        """The segment for `groups` rollouts of every prompt: per-row steps repeated."""
        return self if isinstance(self.steps, int) else replace(self, steps=self.steps.repeat_interleave(groups))


@dataclass(frozen=True)
class Repeat:
    """Segments run again and again, until a row is done or `at_most` times; rows that are done wait."""

    segments: tuple[Segment, ...]
    until: Callable[[State], Bool[Tensor, " B"]]
    """Looks at the state after a pass and says which rows are done."""
    at_most: int

    def forked(self, groups: int) -> "Repeat":
        """The same for `groups` rollouts of every prompt."""
        return replace(self, segments=tuple(segment.forked(groups) for segment in self.segments))


Plan = tuple[Segment | Repeat, ...]


def controlled(plan: Plan, control: str) -> Plan:
    """The plan with every latent thought replaced by a control of it: "noise", "shuffled" or "zero".

    Raises:
        ValueError: unknown control.
    """
    if control not in CONTROLS:
        raise ValueError(f"unknown control {control!r}: expected one of {', '.join(CONTROLS)}")

    def swap(part: Segment | Repeat) -> Segment | Repeat:
        if isinstance(part, Repeat):
            return replace(part, segments=tuple(swap(segment) for segment in part.segments))
        return replace(part, thought=CONTROLS[control](part.thought)) if part.thought.latent else part

    return tuple(swap(part) for part in plan)
