"""Discrete chain of thought: the optimal trace, token by token, under teacher forcing; greedy or sampled at inference.

The same as CoT2 with budget 1, written with tokens: a test holds the two losses equal.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tinylatent.methods.base import Method, Model, Moment, token_loss
from tinylatent.plan import Plan, Segment
from tinylatent.problems import Problems
from tinylatent.thoughts import GREEDY, Token


@dataclass(frozen=True)
class DiscreteCoT(Method):
    """Says every step of one trace, then the answer."""

    name = "discrete"
    supervised = True
    temperatures = (0.5, 0.7, 1.0, 1.4)

    def before(self, model: Model, problems: Problems, forced: bool, temperature: float = 0.0) -> Plan:
        """One token for each step of the chain before the answer."""
        token = Token(temperature) if temperature else GREEDY
        given = token.given(problems.words_BT[:, : problems.words_before]) if forced else None
        return (Segment(token, problems.thinking, given),)

    def loss(self, model: Model, problems: Problems, moment: Moment) -> Float[Tensor, ""]:
        """Cross-entropy of every word of the trace, the answer included."""
        trajectory = self.forced(model, problems)
        return token_loss(trajectory.logits_BTV, problems.words_BT, trajectory.live_BT)
