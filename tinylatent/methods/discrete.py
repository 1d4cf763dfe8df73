"""Discrete chain of thought: the optimal trace, token by token, under teacher forcing; greedy or sampled at inference.

It is CoT2 with budget 1, written with tokens; a test shows that the two losses are equal. Usually it takes as many
steps as the problem's chain has. With `ends` the model decides itself: it learns to write the delimiter END after its
chain, as language models do, and its answer is what follows. A chain that is not ended within the steps of the task's
longest chain has no answer.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tinylatent.engine.plan import Plan, Segment
from tinylatent.engine.thought import Action
from tinylatent.engine.thoughts import GREEDY, Token
from tinylatent.engine.trace import NO_TOKEN, Trace
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.losses import token_loss
from tinylatent.objectives.method import Loss, Method, Model, Solution, TrainState

END = "<end>"
"""The delimiter between a chain that ends by itself and the answer."""
THINKING = "thinking"
"""Name of the segment that ends by itself."""


def ended(trace: Trace) -> Bool[Tensor, " B"]:
    """Which rows ended their chain by the delimiter, instead of being cut at the limit."""
    acted_BT, ends = trace.acted_BT, []
    for span in trace.thought_spans:
        if span.name == THINKING:
            assert span.action.stop is not None, "a chain that ends by itself has a stop at each step"
            ends.append(span.action.stop if acted_BT is None else span.action.stop & acted_BT[:, trace.within(span)])
    return torch.cat(ends, 1).any(1)


def ended_answer(trace: Trace) -> Int[Tensor, "B A"]:
    """The answers of a trace; NO_TOKEN where a chain was cut at the limit."""
    return trace.answer().masked_fill(~ended(trace)[:, None], NO_TOKEN)


def only_ended(solution: Solution) -> Solution:
    """A solution without the answers of chains that were cut at the limit."""
    return Solution(ended_answer(solution.trace), solution.trace, solution.spent)


def with_end(examples: Examples, end: int) -> tuple[Tensor, Tensor, Tensor | int]:
    """The chain before the answer with the delimiter behind it.

    Returns:
        tokens (B, W + 1), W being the most steps of any chain; True at the delimiter, the same shape; steps per row.
    """
    chain_BW, steps = examples.chain_BT[:, : examples.max_steps], examples.num_steps
    place_W = torch.arange(chain_BW.shape[1] + 1, device=chain_BW.device)
    end_BW = (place_W == (steps if isinstance(steps, int) else steps[:, None])).expand(len(chain_BW), -1)
    padded_BW = torch.nn.functional.pad(chain_BW, (0, 1))
    return padded_BW.masked_fill(end_BW, end), end_BW, steps + 1


@dataclass(frozen=True)
class DiscreteCoT(Method):
    """Writes every step of one trace as tokens, then the answer."""

    name = "discrete"
    label = "discrete CoT"
    colour = "#3b6fb6"
    temperatures: ClassVar[tuple[float, ...]] = (0.5, 0.7, 1.0, 1.4)

    ends: bool = False
    """Whether the model ends its chain itself, by a delimiter, instead of taking as many steps as the chain has."""

    @property
    def supervised(self) -> bool:
        """Whether steps are the chain's: not where the model ends its chain, since it may end elsewhere."""
        return not self.ends

    @property
    def extra_tokens(self) -> tuple[str, ...]:
        """The delimiter, if the chain ends by itself."""
        return (END,) if self.ends else ()

    @property
    def extra_steps(self) -> int:
        """The delimiter's step."""
        return int(self.ends)

    def token(self, model: Model, temperature: float = 0.0) -> Token:
        """The thought of a step of the chain."""
        if self.ends:
            return Token(temperature, (self.extra_id(model, END),))
        return Token(temperature) if temperature else GREEDY

    def thinking(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """One token per step of the chain before the answer; or until the delimiter."""
        if self.ends:
            return (Segment(self.token(model, temperature), examples.max_steps + 1, name=THINKING),)
        return (Segment(self.token(model, temperature), examples.num_steps),)

    def taught(self, model: Model, examples: Examples) -> Plan:
        """The same with the chain's tokens given."""
        if self.ends:
            id_BW, end_BW, steps = with_end(examples, self.extra_id(model, END))
            return (Segment(self.token(model), steps, Action({"id": id_BW}, end_BW), THINKING),)
        given = GREEDY.given(examples.chain_BT[:, : examples.max_steps])
        return (Segment(GREEDY, examples.num_steps, given),)

    def solve(self, model: Model, examples: Examples, *arguments: Any, **options: Any) -> Solution:
        """Solves every problem with one rollout; a chain that was not ended has no answer."""
        solution = super().solve(model, examples, *arguments, **options)
        return only_ended(solution) if self.ends else solution

    def loss(self, model: Model, batch: Examples, state: TrainState) -> Loss:
        """Cross-entropy of every token of the trace, the delimiter and the answer included."""
        trace, ids_BT = self.forced(model, batch), batch.chain_BT
        if self.ends:
            ids_BT = torch.cat([with_end(batch, self.extra_id(model, END))[0], batch.answer_BA], 1)
        return Loss(token_loss(trace, ids_BT, state.rows, batch.loss_mask(trace)))
