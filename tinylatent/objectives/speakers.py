"""Speakers: words between task and model. A speaker turns rows into examples and judges what is answered to them.

Symbols speak a task's own tokens. Whoever speaks otherwise (text through a tokenizer, JSON lines of question, steps and
answer) keeps to the protocol `Speaker` beside the examples.

Letters: B rows, N prompt, T tokens of the chain, A answer tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tasks import Task
from tinylatent.objectives.examples import DENSE_BYTES, Examples, Targets, same_tokens

CHUNK = 4096  # problems whose frontiers are dense at a time, at most


class Symbols:
    """A task in its own symbols.

    Args:
        task: what is asked.
        problems: rows of the task, as it gives them.
    """

    def __init__(self, task: Task, problems: np.ndarray):
        self.task, self.problems = task, problems

    @property
    def vocabulary(self) -> int:
        """The task's tokens."""
        return len(self.task.vocabulary)

    def part(self, index: np.ndarray) -> "Symbols":
        """The same task with some of its problems."""
        return Symbols(self.task, self.problems[index])

    def examples(self, device: torch.device | str = "cpu", **supervision: Any) -> Examples:
        """Examples of all problems, in order.

        supervision: what `Task.batch` takes beside them: budget, rule.

        Raises:
            ValueError: no problems, or a budget or rule that the task has not.
        """
        if len(self.problems) == 0:
            raise ValueError("no problems: expected at least one row")
        one = self.task.batch(self.problems[:1], **supervision)
        dense = len(self.problems) * one.frontier_BTV.nbytes <= DENSE_BYTES
        if dense:
            examples = Examples.upload(self.task.batch(self.problems, **supervision), device, self)
        else:
            size = max(1, min(CHUNK, DENSE_BYTES // one.frontier_BTV.nbytes))
            starts = range(0, len(self.problems), size)
            batches = (self.task.batch(self.problems[start : start + size], **supervision) for start in starts)
            examples = joined([Examples.upload(batch, device, self, dense=False) for batch in batches])
        return _with_steps(examples, self.task)

    def judge(self, examples: Examples, answer_BA: Int[Tensor, "B A"]) -> Bool[Tensor, " B"]:
        """Symbolic answers are right where their tokens are the truth's."""
        return same_tokens(examples, answer_BA)


def _with_steps(examples: Examples, task: Task) -> Examples:
    """The examples, knowing which step of reasoning each token belongs to where that is not one a token."""
    each = task.tokens_a_step
    if each == 1:
        return examples
    T, before = examples.chain_BT.shape[1], examples.most_steps
    token_T = torch.arange(T, device=examples.chain_BT.device)
    step_T = torch.where(token_T < before, token_T // each, -(-before // each))
    return replace(examples, step_BT=step_T.expand(len(examples), -1))


def joined(parts: Sequence[Examples]) -> Examples:
    """Symbolic examples of one task, one after the other; sparse targets are widened to the same number of states."""
    first = parts[0]
    if len(parts) == 1:
        return first
    sparse = [part.frontier.sparse() for part in parts]
    most = max(ids.shape[2] for ids, _ in sparse)

    def column(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        if all(value is None for value in values):
            return None
        if name == "num_steps":
            if all(isinstance(value, int) and value == values[0] for value in values):
                return values[0]
            values = [torch.as_tensor(v).expand(len(part)) for v, part in zip(values, parts, strict=True)]
        if name == "prompt_mask_BN":
            values = [
                torch.ones_like(part.prompt_BN, dtype=torch.bool) if value is None else value
                for value, part in zip(values, parts, strict=True)
            ]
        return torch.cat(values)

    def widened(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, most - x.shape[2]))

    frontier = Targets(
        first.frontier.vocabulary, *(torch.cat([widened(x) for x in each]) for each in zip(*sparse, strict=True))
    )
    return Examples(
        column("prompt_BN"),
        column("prompt_mask_BN"),
        column("num_steps"),
        column("chain_BT"),
        frontier,
        first.answer_tokens,
        first.speaker,
    )
