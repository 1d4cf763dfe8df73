"""Discrete chain of thought: the optimal trace, token by token, under teacher forcing; greedy or sampled at inference.

It is CoT2 with budget 1, written with tokens; a test shows that the two losses are equal.
"""

from dataclasses import dataclass

from tinylatent.engine.plan import Plan, Segment
from tinylatent.engine.thoughts import GREEDY, Token
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.losses import token_loss
from tinylatent.objectives.method import Loss, Method, Model, TrainState


@dataclass(frozen=True)
class DiscreteCoT(Method):
    """Writes every step of one trace as tokens, then the answer."""

    name = "discrete"
    label = "discrete CoT"
    colour = "#3b6fb6"
    supervised = True
    temperatures = (0.5, 0.7, 1.0, 1.4)

    def thinking(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """One token per step of the chain before the answer."""
        return (Segment(Token(temperature) if temperature else GREEDY, examples.num_steps),)

    def taught(self, model: Model, examples: Examples) -> Plan:
        """The same with the chain's tokens given."""
        given = GREEDY.given(examples.chain_BT[:, : examples.max_steps])
        return (Segment(GREEDY, examples.num_steps, given),)

    def loss(self, model: Model, batch: Examples, state: TrainState) -> Loss:
        """Cross-entropy of every token of the trace, the answer included."""
        trace = self.forced(model, batch)
        return Loss(token_loss(trace, batch.chain_BT, state.rows, batch.loss_mask(trace)))
