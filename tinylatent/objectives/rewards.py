"""Rewards: a verifier maps examples (and so the task's own rows) and answers to rewards.

Letters: B rows, A answer tokens.
"""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

from tinylatent.objectives.examples import Examples

Verifier = Callable[[Examples, Int[Tensor, "B A"]], Float[Tensor, " B"]]
"""verify(examples, answer_BA) -> reward_B. Answers are token ids, -1 for no token; several answers to an example are
consecutive."""


def truth(examples: Examples, answer_BA: Int[Tensor, "B A"]) -> Float[Tensor, " B"]:
    """1 for a right answer, else 0: the speaker judges."""
    return examples.judge(answer_BA).float()
