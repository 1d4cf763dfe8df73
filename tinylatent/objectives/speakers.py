"""Speakers: a speaker encodes a task's rows as examples and judges the model's answers to them.

Symbols encodes problems in the task's own tokens. Other speakers (text through a tokenizer, JSON lines of question,
steps and answer) implement the protocol `tinylatent.objectives.examples.Speaker`.

Letters: B rows, N prompt, T tokens of the chain, A answer tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from tinylatent_tasks import Task
from torch import Tensor

from tinylatent.objectives.examples import DENSE_BYTES, Examples, Targets, same_tokens

CHUNK = 4096  # most problems with dense frontiers in memory at a time


class Symbols:
    """Problems of a task in the task's own tokens.

    Args:
        task: gives prompts, targets and answers.
        problems: rows of the task (P, M).
    """

    def __init__(self, task: Task, problems: np.ndarray):
        self.task, self.problems = task, problems

    @property
    def vocabulary(self) -> int:
        """Number of the task's tokens."""
        return len(self.task.vocabulary)

    @property
    def titles(self) -> np.ndarray:
        """Tokens (I, A) of every title of its task's catalogue."""
        task: Any = self.task
        titles_IA: np.ndarray = task.catalogue
        return titles_IA

    def part(self, index: np.ndarray) -> "Symbols":
        """The speaker of some of the problems."""
        return Symbols(self.task, self.problems[index])

    def examples(self, device: torch.device | str = "cpu", **supervision: Any) -> Examples:
        """Examples of all problems, in order.

        supervision: further arguments of `Task.batch`: budget, rule.

        Raises:
            ValueError: no problems, or a budget or rule that the task does not know.
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
        """Whether answers have exactly the tokens of the true answers."""
        return same_tokens(examples, answer_BA)

    def proved(self, problems: np.ndarray, chain_BW: Tensor, answer_BA: Tensor) -> np.ndarray:
        """Whether chains prove their answers (B,), as the task checks them; see `Task.certified`."""
        return self.task.certified(problems, chain_BW.cpu().numpy(), answer_BA.cpu().numpy())


def _with_steps(examples: Examples, task: Task) -> Examples:
    """The examples with the step of reasoning of every token, for tasks with several tokens a step."""
    per_step = task.tokens_a_step
    if per_step == 1:
        return examples
    T, before = examples.chain_BT.shape[1], examples.max_steps
    token_T = torch.arange(T, device=examples.chain_BT.device)
    step_T = torch.where(token_T < before, token_T // per_step, -(-before // per_step))
    return replace(examples, step_BT=step_T.expand(len(examples), -1))


def joined(parts: Sequence[Examples]) -> Examples:
    """The concatenation of symbolic examples of one task; sparse targets are padded to the same number of states."""
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
        first.frontier.vocabulary, *(torch.cat([widened(x) for x in xs]) for xs in zip(*sparse, strict=True))
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
