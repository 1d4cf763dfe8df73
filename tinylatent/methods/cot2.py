"""CoT2 with continuous supervised fine-tuning (CSFT): thoughts are superpositions of tokens, trained to the frontier.

Gozeten, Ildiz, Zhang, Harutyunyan, Rawat, Oymak 2025, arXiv 2505.23648, sections 2 and 3. Step t < m emits
alpha_t = softmax(logits_t) and is fed back as z_t = E^T alpha_t; the loss is the sum over t of KL(alpha*_t || alpha_t),
with alpha*_t the shares of the teacher's traces over states and alpha*_m one-hot on the answer. A budget B keeps the B
best traces: all by default, the discrete trace at B = 1.

Where it differs from the paper's code: no dropout; teacher forcing needs one parallel forward instead of m.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from tinylatent.engine.plan import Plan, Segment
from tinylatent.engine.thoughts import MIXTURE
from tinylatent.objectives.examples import Examples, Speaker
from tinylatent.objectives.losses import mixture_loss
from tinylatent.objectives.method import Loss, Method, Model, TrainState

Rule = Literal["absolute", "nonnegative"]
Prefix = Literal["teacher", "self", "teacher-then-self"]


@dataclass(frozen=True)
class CoT2(Method):
    """Thinks in superpositions of tokens, then answers.

    Raises ValueError for settings out of range.
    """

    name = "cot2"
    label = "CoT2"
    colour = "#b5403a"
    supervised = True

    budget: int | None = None
    """Traces in the targets: the B best, or all if None."""
    rule: Rule | None = None
    """How a budget chooses traces, if the task has several rules (MNNS: smallest |final sum|, or final sum >= 0)."""
    prefix: Prefix = "teacher"
    """The latents that the model reads in training: the targets, its own, or first the targets and then its own."""
    switch: float = 0.5
    """Share of training after which teacher-then-self switches to the model's own latents."""

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"budget {self.budget}: expected at least 1 trace; try 1 (discrete) or leave it out (all)")
        if self.prefix not in get_args(Prefix):
            raise ValueError(f"prefix {self.prefix!r}: expected one of {', '.join(get_args(Prefix))}")
        if not 0 <= self.switch <= 1:
            raise ValueError(f"switch {self.switch}: expected a share of training between 0 and 1; try 0.5")

    @property
    def idle(self) -> Mapping[str, str]:
        """A rule that has no traces to choose, a switch that switches nothing."""
        rule = {"rule": "without a budget of traces to choose"} if self.budget is None else {}
        switched = self.prefix == "teacher-then-self"
        return rule | ({} if switched else {"switch": "unless the prefix is teacher-then-self"})

    def supervise(self, speaker: Speaker, device: torch.device | str = "cpu") -> Examples:
        """Examples with the frontier of the budget's traces."""
        choice: dict[str, Any] = {} if self.rule is None else {"rule": self.rule}
        return speaker.examples(device, budget=self.budget, **choice)

    def thinking(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """One mixture per step before the answer. Base CoT2 is deterministic: the temperature is the answer's."""
        return (Segment(MIXTURE, examples.num_steps),)

    def taught(self, model: Model, examples: Examples) -> Plan:
        """The same with the frontier's mixtures given."""
        return (Segment(MIXTURE, examples.num_steps, examples.frontier.given(examples.max_steps)),)

    def loss(self, model: Model, batch: Examples, state: TrainState) -> Loss:
        """CSFT's loss, under the prefix of this point of training."""
        own = self.prefix == "self" or (self.prefix == "teacher-then-self" and state.progress >= self.switch)
        trace = self.forced(model, batch, self.thinking(model, batch) if own else None)
        return Loss(mixture_loss(trace, batch.frontier, state.rows, batch.loss_mask(trace)))
