"""GRPO over latent steps: rollouts that sample their thoughts, rewarded by the answer alone.

CoT2's second half (Gozeten et al. 2025, arXiv 2505.23648, section 5), with group advantages after Shao et al. 2024
(arXiv 2402.03300). A group of rollouts of one prompt thinks in sampled latents (MultiToken with K tokens a step, or
Dirichlet) and answers; the reward is 1 for a right answer. The probability of a latent step is that of its action, and
the ratio of new to old has three modes:

    exact      the probability of the K tokens: their product. With steps summed and advantages that are unbiased (none
               or leave-one-out) the loss has the policy gradient
    paper      their geometric mean, product^(1/K): latent steps count 1/K against the answer, so it is biased
    official   as in the paper's code: the product, with logits divided by K, also in the sampler and at evaluation.
               It is another policy than the paper's, with its own objective

With K = 1 the three agree: discrete chain of thought. Old and new policy are always the same function of the weights
(no dropout, the same mode and temperature), so that equal weights give a log-ratio of exactly 0. With one update per
batch the ratio is 1 when it is used, and clipping has no effect. KL divergences use the actions' probabilities in every
mode.

Letters: B rows = prompts * G, G rollouts of a group, T steps, A answer tokens, K samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from tinylatent.engine.plan import Plan, Segment
from tinylatent.engine.thought import Thought
from tinylatent.engine.thoughts import Dirichlet, MultiToken
from tinylatent.engine.trace import Trace
from tinylatent.methods.cot2 import CoT2
from tinylatent.methods.discrete import DiscreteCoT
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import Method, Model
from tinylatent.objectives.policy_gradient import MAX_COUNT, PolicyGradient

Ratio = Literal["exact", "paper", "official"]


@dataclass(frozen=True)
class GRPO(PolicyGradient):
    """Learns from rewards, with groups of rollouts that sample latents; starts from a trained run.

    Raises ValueError for settings out of range, and for gamma with settings of sampled tokens.
    """

    name = "grpo"
    starts_from = "cot2"
    compared = False  # it has a study of its own
    temperatures = (1.0,)
    recipe = MappingProxyType({"steps": 1000, "learning_rate": 3e-4, "weight_decay": 0.0})

    samples: int = 3
    """K, tokens sampled in a latent step; 1 is discrete chain of thought."""
    curriculum: tuple[int, ...] = ()
    """K in earlier stages of training, all of equal length; the last stage has K = `samples`."""
    gamma: float | None = None
    """Concentration of Dirichlet latents, instead of sampled tokens; gamma + 1 tokens have the same variance."""
    ratio: Ratio = "exact"
    """Mode of a latent step's probability ratio: exact, paper or official."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.samples <= MAX_COUNT:
            raise ValueError(f"samples {self.samples}: expected 1 to {MAX_COUNT}")
        grown = (0, *self.curriculum, self.samples)
        if self.curriculum and any(later <= earlier for earlier, later in pairwise(grown)):
            raise ValueError(
                f"curriculum {self.curriculum} before samples {self.samples}: expected tokens a step that grow, from 1 "
                "on and up to samples; try (1, 3) before 6"
            )
        if self.ratio not in get_args(Ratio):
            raise ValueError(f"ratio {self.ratio!r}: expected one of {', '.join(get_args(Ratio))}")
        if self.gamma is not None:
            Dirichlet(self.gamma)  # raises for a gamma out of range
            usual = type(self).samples
            if self.samples != usual or self.curriculum or self.ratio != "exact" or self.temperature != 1:
                raise ValueError(
                    "gamma excludes samples, curriculum, ratio and temperature, which are of sampled tokens: leave "
                    "them out"
                )

    @property
    def idle(self) -> Mapping[str, str]:
        """What one update makes idle, a ratio where all three agree, and what is of tokens where none are sampled."""
        found = dict(super().idle)
        if self.samples == 1 and not self.curriculum:
            found["ratio"] = "with one token a step, where all ratios agree"
        if self.gamma is not None:
            found |= dict.fromkeys(
                ("samples", "curriculum", "ratio", "temperature"), "with gamma, which draws no tokens"
            )
        return found

    @property
    def decoders(self) -> Mapping[str, Method]:
        """The same weights, decoded with the likeliest token per step, and with mixtures."""
        return {"greedy": DiscreteCoT(), "mixture": CoT2()}

    def stage_starts(self, steps: int) -> tuple[int, ...]:
        """First step of every stage: one per K, equally long."""
        stages = len(self.curriculum) + 1
        return tuple(round(stage * steps / stages) for stage in range(stages))

    def thought(self, model: Model) -> Thought:
        """The thought of a latent step in the model's current stage."""
        if self.gamma is not None:
            return Dirichlet(self.gamma)
        samples = (*self.curriculum, self.samples)[int(model.stage)] if self.curriculum else self.samples
        return MultiToken(samples, self.temperature * (samples if self.ratio == "official" else 1))

    def thinking(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """One sampled latent per step before the answer, whatever the answer's temperature."""
        return (Segment(self.thought(model), examples.num_steps),)

    def ratio_log_prob(self, trace: Trace) -> Float[Tensor, "B T"]:
        """Log-probability of every step in the ratio's mode; 0 where a row took none."""
        if self.ratio != "paper":
            return trace.log_prob_BT
        spans = trace.thought_spans
        shares = [1 / span.thought.samples if isinstance(span.thought, MultiToken) else 1.0 for span in spans]
        steps = [share for span, share in zip(spans, shares, strict=True) for _ in range(span.start, span.stop)]
        return trace.log_prob_BT * trace.log_prob_BT.new_tensor(steps)
