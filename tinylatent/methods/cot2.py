"""CoT2 with continuous supervised fine-tuning (CSFT): thoughts are superpositions of tokens, trained to the frontier.

Gozeten, Ildiz, Zhang, Harutyunyan, Rawat, Oymak 2025, arXiv 2505.23648, sections 2 and 3. Step t < m emits
alpha_t = softmax(logits_t) and is fed back as z_t = E^T alpha_t; the loss is the sum over t of KL(alpha*_t || alpha_t),
with alpha*_t the share of teacher traces in each state and alpha*_m one-hot on the answer. Budget B keeps only the B
best traces: all of them by default, the discrete trace at B = 1.

Where it differs from the paper's code: no dropout; teacher forcing needs one parallel forward instead of m.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from tasks import Batch, Task
from tinylatent.methods.base import Method, Model, Moment, mixture_loss
from tinylatent.plan import Plan, Segment
from tinylatent.problems import Problems
from tinylatent.rollout import rollout
from tinylatent.thoughts import Mixture

Rule = Literal["absolute", "nonnegative"]
Prefix = Literal["teacher", "self", "teacher-then-self"]

MIXTURE = Mixture()


@dataclass(frozen=True)
class CoT2(Method):
    """Thinks in superpositions of tokens, then answers."""

    name = "cot2"
    supervised = True

    budget: int | None = None
    """Traces in the supervision: the B best, or all of them."""
    rule: Rule | None = None
    """How a budget picks its traces, where the task has a choice (MNNS: smallest |final sum|, or final sum >= 0)."""
    prefix: Prefix = "teacher"
    """What the model reads while it trains: the target's latents, its own, or first one and then the other."""
    switch: float = 0.5
    """Share of training after which teacher-then-self turns to its own latents."""

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"budget {self.budget}: expected at least 1 trace; try 1 (discrete) or leave it out (all)")
        if self.prefix not in get_args(Prefix):
            raise ValueError(f"prefix {self.prefix!r}: expected one of {', '.join(get_args(Prefix))}")
        if not 0 <= self.switch <= 1:
            raise ValueError(f"switch {self.switch}: expected a share of training between 0 and 1; try 0.5")

    @property
    def latent(self) -> bool:
        """Its steps are mixtures."""
        return True

    def supervise(self, task: Task, problems: Any) -> Batch:
        """The frontier of the budget's best traces."""
        choice: dict[str, Any] = {} if self.rule is None else {"rule": self.rule}
        return task.batch(problems, budget=self.budget, **choice)

    def before(self, model: Model, problems: Problems, forced: bool, temperature: float = 0.0) -> Plan:
        """One mixture for each step before the answer. Base CoT2 is deterministic: the temperature is the answer's."""
        given = MIXTURE.given(problems.target_BTV[:, : problems.words_before]) if forced else None
        return (Segment(MIXTURE, problems.thinking, given),)

    def loss(self, model: Model, problems: Problems, moment: Moment) -> Float[Tensor, ""]:
        """CSFT's loss under the prefix in force at this moment."""
        own = self.prefix == "self" or (self.prefix == "teacher-then-self" and moment.progress >= self.switch)
        if own:
            plan = self.plan(model, problems)
            run = rollout(
                model.backbone,
                plan,
                problems.prompt_BN,
                problems.prompt_mask_BN,
                offset_B=problems.offset_B,
                grad=True,
            )
        else:
            run = self.forced(model, problems)
        return mixture_loss(run.logits_BTV, problems.target_BTV, run.live_BT)
