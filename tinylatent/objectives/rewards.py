"""Rewards: what a rollout's answer is worth. A verifier sees the examples, so the task's own rows, and the answers.

Letters: B rows, A answer tokens.
"""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

from tinylatent.objectives.examples import Examples

Verifier = Callable[[Examples, Int[Tensor, "B A"]], Float[Tensor, " B"]]
"""verify(examples, answer_BA) -> a number for each answer. Answers are token ids, -1 where nothing was said; there may
be several to an example, side by side."""


def truth(examples: Examples, answer_BA: Int[Tensor, "B A"]) -> Float[Tensor, " B"]:
    """1 for a right answer, else 0: the speaker judges."""
    return examples.judge(answer_BA).float()
