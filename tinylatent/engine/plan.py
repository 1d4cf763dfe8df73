"""Plan: a sequence of segments; a segment is a thought and its number of steps.

CoT2 on MNNS is [Mixture x (m - 1), Token x 1]; Coconut's stage k is [Hidden x k, Token x (m - k)]. Given actions force
a segment's steps instead of sampling them.

Letters: B rows, T steps.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool
from torch import Tensor

from tinylatent.engine.thought import Action, State, Thought

ANSWER = "answer"
"""Name of the answer's segment."""


@dataclass(frozen=True)
class Segment:
    """At most `steps` steps of one thought: a number, or one number per row; rows that stop earlier wait.

    Raises:
        ValueError: steps that are negative or not whole numbers, or given actions that do not cover them.
    """

    thought: Thought
    steps: int | Tensor
    given: Action | None = None
    """Actions over (B, steps, ...) that are taken instead of sampled ones. With steps per row the segment is as long as
    these actions, even if no row takes all of them."""
    name: str = ""
    """Name of the span; the thought's class name by default, "answer" for the answer."""
    min_steps: int = 0
    """Steps a row takes before it may stop."""

    def __post_init__(self) -> None:
        if not isinstance(self.thought, Thought):
            raise ValueError(f"a segment of {self.thought!r}: expected a thought, such as tinylatent.Token()")
        if not isinstance(self.steps, int) and not (
            isinstance(self.steps, Tensor) and self.steps.ndim == 1 and not self.steps.is_floating_point()
        ):
            raise ValueError(f"steps {self.steps!r}: expected a whole number, or a tensor of one for each row")
        fewest, most = (self.steps, self.steps) if isinstance(self.steps, int) else map(int, self.steps.aminmax())
        if fewest < 0 or self.min_steps < 0:
            raise ValueError(f"a segment of {fewest} steps, at least {self.min_steps}: expected 0 or more")
        if self.given is not None and self.given_steps < most:
            raise ValueError(
                f"given actions cover {self.given_steps} steps of a segment of {most}; pass more or take fewer"
            )

    @property
    def label(self) -> str:
        """The span's name."""
        return self.name or type(self.thought).__name__

    @property
    def given_steps(self) -> int:
        """Number of steps that the given actions cover."""
        assert self.given is not None
        return min((value.shape[1] for value in self.given.values.values()), default=0)

    @cached_property
    def longest(self) -> int:
        """Length of the segment: the most steps of any row."""
        if isinstance(self.steps, int):
            return self.steps
        return int(self.steps.max()) if self.given is None else self.given_steps

    def check(self, rows: int) -> None:
        """Checks that the segment fits a batch of `rows` rows.

        Raises:
            ValueError: steps or given actions are for another number of rows.
        """
        if not isinstance(self.steps, int) and self.steps.shape != (rows,):
            raise ValueError(f"steps of shape {tuple(self.steps.shape)}: expected one for each of {rows} prompts")
        given = rows if self.given is None else next((value.shape[0] for value in self.given.values.values()), 0)
        if given != rows:
            raise ValueError(f"actions given for {given} rows: expected one for each of {rows} prompts")

    @property
    def whole(self) -> bool:
        """Whether every row takes every step, as far as steps and given actions tell."""
        return isinstance(self.steps, int) and (self.given is None or self.given.stop is None)

    def acted_BT(self, rows: int, device: torch.device) -> Bool[Tensor, "B T"]:
        """Which rows act at which steps; a row with a given stop acts at the step that stops and at none after."""
        t = torch.arange(self.longest, device=device)[None]
        acted_BT = (t < (self.steps if isinstance(self.steps, int) else self.steps[:, None])).expand(rows, -1)
        if self.given is None or self.given.stop is None:
            return acted_BT
        stop_BT = self.given.stop[:, : self.longest].long()
        return acted_BT & (stop_BT.cumsum(1) == stop_BT)

    def live_BT(self, acted_BT: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Which of these actions write a slot: all but given stops without `stop_slot`."""
        if self.given is None or self.given.stop is None or self.given.stop_slot:
            return acted_BT
        return acted_BT & ~self.given.stop[:, : self.longest]

    def forked(self, group: int) -> "Segment":
        """The segment for `group` rollouts of every prompt: per-row steps and given actions repeated."""
        steps = self.steps if isinstance(self.steps, int) else self.steps.repeat_interleave(group)
        given = None if self.given is None else self.given.map(lambda x: x.repeat_interleave(group, 0))
        return replace(self, steps=steps, given=given)


@dataclass(frozen=True)
class Repeat:
    """Segments that are repeated until a row is done, `at_most` times; rows that are done wait.

    Raises:
        ValueError: at_most below 1.
    """

    segments: tuple[Segment, ...]
    until: Callable[[State], Bool[Tensor, " B"]]
    """Maps the state after a pass to the rows that are done."""
    at_most: int
    reads_history: bool = False
    """Whether `until` calls `state.history`."""

    def __post_init__(self) -> None:
        if self.at_most < 1:
            raise ValueError(f"at most {self.at_most} passes: expected at least 1")

    def forked(self, group: int) -> "Repeat":
        """The same for `group` rollouts of every prompt."""
        return replace(self, segments=tuple(segment.forked(group) for segment in self.segments))


Plan = tuple[Segment | Repeat, ...]


def segments(plan: Plan) -> Iterator[Segment]:
    """The segments in running order, repeated ones as often as they may run."""
    for part in plan:
        if isinstance(part, Repeat):
            for _ in range(part.at_most):
                yield from part.segments
        else:
            yield part


def all_given(plan: Plan) -> bool:
    """Whether every action is given, so that the plan can be forced."""
    return all(isinstance(part, Segment) and part.given is not None for part in plan)


def distinct(plan: Plan) -> Iterator[Segment]:
    """The segments in running order, repeated ones once."""
    for part in plan:
        yield from part.segments if isinstance(part, Repeat) else (part,)
