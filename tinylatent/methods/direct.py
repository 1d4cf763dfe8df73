"""Direct answer: no thinking; the model answers right after the prompt. The lowest baseline of every table."""

from dataclasses import dataclass
from typing import Any

from tinylatent.objectives.losses import question_loss, token_loss
from tinylatent.objectives.method import Loss, Method, Model, TrainState


@dataclass(frozen=True)
class Direct(Method):
    """Answers at once.

    Raises ValueError for a weight that is negative.
    """

    question: float = 0.0
    """Weight of the loss of the question's own tokens, each predicted from those before it. 0 trains the answer alone;
    1 trains all tokens alike, as language models are trained."""

    name = "direct"
    colour = "#8c8c8c"

    def __post_init__(self) -> None:
        if not 0 <= self.question < float("inf"):
            raise ValueError(f"question is {self.question}: expected a weight of 0 or more; try 1")

    def loss(self, model: Model, batch: Any, state: TrainState) -> Loss:
        """Cross-entropy of the answer's tokens, and of the question's if they have a weight."""
        if not self.question:
            return super().loss(model, batch, state)
        trace, tokens = self.forced(model, batch, whole=True), batch.answer_tokens
        answer = slice(trace.steps - tokens, None)
        loss = token_loss(trace, batch.answer_BA, state.rows, batch.answer_mask_BA, answer)
        question = question_loss(trace, state.rows)
        return Loss(loss + self.question * question, {"question_loss": question.detach()})
