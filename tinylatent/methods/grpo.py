"""GRPO over latent steps: rollouts that sample their thoughts, rewarded by the answer alone.

CoT2's second half (Gozeten et al. 2025, arXiv 2505.23648, section 5), with group advantages after Shao et al. 2024
(arXiv 2402.03300). A group of rollouts of one prompt thinks in sampled latents (MultiToken with K tokens a step, or
Dirichlet) and says an answer; the reward is 1 where it is right. The policy's probability of a latent step is that of
its action, and the ratio of new and old comes in three modes:

    exact      the probability of the K tokens: their product. With steps summed and advantages that are unbiased (none
               or leave-one-out) the loss has the policy gradient
    paper      their geometric mean, product^(1/K): latent steps count 1/K against the answer, so it is biased
    official   as the paper's code: the product, of logits divided by K in the latent sampler too, evaluation included.
               Another policy than the paper's, judged by its own objective

With K = 1 the three are one: discrete chain of thought. Old and new policy are always the same function of the weights
(no dropout, the same mode and temperature), so that equal weights give a log-ratio of exactly 0. With one update a
batch the ratio is 1 when it is used, and clipping cannot act. Divergences are of the actions' probabilities in every
mode.

Letters: B rows = prompts * G, G rollouts of a group, T steps, A answer tokens, K samples.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tinylatent.methods.base import Loss, Method, Model, Moment, Stage
from tinylatent.methods.cot2 import CoT2
from tinylatent.methods.discrete import DiscreteCoT
from tinylatent.plan import Plan, Segment
from tinylatent.policy import Advantage, Average, advantages, averaged, clipped, k3, silent_groups
from tinylatent.problems import Problems
from tinylatent.rollout import replay, rollout
from tinylatent.thoughts import Dirichlet, MultiToken, Thought
from tinylatent.trajectory import Trajectory

Ratio = Literal["exact", "paper", "official"]
MOST = 1000
"""Most tokens a step, rollouts a group, updates a batch: more fit no memory, or no patience."""
SILENT = 0.999
"""Share of groups that teach nothing from which on a stretch of the log counts as silent."""


@dataclass(frozen=True)
class GRPO(Method):
    """Learns from rewards, by groups of rollouts with sampled latents; starts from a trained run."""

    name = "grpo"
    temperatures = (1.0,)
    recipe = MappingProxyType({"steps": 1000, "rate": 3e-4, "weight_decay": 0.0, "save_every": 100})

    samples: int = 3
    """Tokens K sampled in a latent step; 1 is discrete chain of thought."""
    curriculum: tuple[int, ...] = ()
    """K of earlier stages of training, all of equal length; the last stage takes `samples`."""
    gamma: float | None = None
    """Dirichlet latents of this concentration instead of tokens; gamma + 1 tokens vary as much."""
    ratio: Ratio = "exact"
    """What stands for a latent step's probability ratio: exact, paper or official."""
    temperature: float = 1.0
    """Of everything sampled in training's rollouts; the latents' at evaluation too."""
    group: int = 8
    """Rollouts per prompt."""
    updates: int = 1
    """Optimizer steps per batch of rollouts."""
    clip: float = 0.1
    """How far a ratio may leave 1 before it stops to count."""
    kl: float = 0.0
    """Weight of the divergence from the weights it started with: k3 of every step's action. Of densities it is
    unbounded: with gamma keep weight and rate small."""
    advantage: Advantage = "std"
    """How rewards of a group become advantages."""
    average: Average = "sequence"
    """How the steps of rollouts are averaged."""
    patience: int = 100
    """Batches of rollouts in a row without two different rewards in any group, after which training stops."""

    def __post_init__(self) -> None:
        for name in ("samples", "group", "updates", "patience"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ValueError(f"{name} {getattr(self, name)}: expected 1 to {MOST}")
        grown = (0, *self.curriculum, self.samples)
        if self.curriculum and any(later <= earlier for earlier, later in pairwise(grown)):
            raise ValueError(
                f"curriculum {self.curriculum} before samples {self.samples}: expected tokens a step that grow, from 1 "
                "on and up to samples; try (1, 3) before 6"
            )
        for name, options in (("ratio", Ratio), ("advantage", Advantage), ("average", Average)):
            if getattr(self, name) not in get_args(options):
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(get_args(options))}")
        if self.group < 2 and self.advantage != "none":
            raise ValueError(f"group {self.group}: expected at least 2 rollouts to compare; try 8")
        if not 0 < self.clip < math.inf:
            raise ValueError(f"clip {self.clip}: expected more than 0; try 0.1")
        if not 0 <= self.kl < math.inf:
            raise ValueError(f"kl {self.kl}: expected 0 or more; try 0")
        if not 0.01 <= self.temperature <= 100:
            raise ValueError(f"temperature {self.temperature}: expected 0.01 to 100; try 1.0")
        if self.gamma is not None:
            Dirichlet(self.gamma)  # raises where it has no such
            usual = type(self).samples
            if self.samples != usual or self.curriculum or self.ratio != "exact" or self.temperature != 1:
                raise ValueError(
                    "gamma goes without samples, curriculum, ratio and temperature, which are of sampled tokens: leave "
                    "them out"
                )

    @property
    def latent(self) -> bool:
        """Whether a step carries more than one token, at evaluation."""
        return self.gamma is not None or self.samples > 1

    @property
    def readings(self) -> Mapping[str, Method]:
        """The same weights thinking in the likeliest token, and in mixtures."""
        return {"greedy": DiscreteCoT(), "mixture": CoT2()}

    def thoughts(self, backbone: Any, generator: torch.Generator) -> nn.ModuleDict:
        """The curriculum's stage and, where it is compared with, a frozen copy of the weights at the start."""
        parts: dict[str, nn.Module] = {"stage": Stage()} if self.curriculum else {}
        if self.kl:
            parts["reference"] = deepcopy(backbone).requires_grad_(False)
        return nn.ModuleDict(parts)

    def starts(self, steps: int) -> tuple[int, ...]:
        """First step of every stage: one for each K, equally long."""
        stages = len(self.curriculum) + 1
        return tuple(round(stage * steps / stages) for stage in range(stages))

    def enter(self, model: Model, stage: int) -> None:
        """Takes this stage's K from now on; at the beginning keeps the weights as the reference."""
        if self.curriculum:
            reached = model.thoughts["stage"].reached
            assert isinstance(reached, Tensor)
            reached.fill_(stage)
        if self.kl and stage == 0:
            model.thoughts["reference"].load_state_dict(model.backbone.state_dict())

    @property
    def forwards(self) -> int:
        """A rollout for each of the group, and forward and backward for each update; the reference reads them once."""
        return self.group * (1 + 3 * self.updates + (1 if self.kl else 0))

    def thought(self, model: Model) -> Thought:
        """How a latent step is sampled by now."""
        if self.gamma is not None:
            return Dirichlet(self.gamma)
        stage = int(model.thoughts["stage"].reached) if self.curriculum else 0  # type: ignore[arg-type]
        samples = (*self.curriculum, self.samples)[stage]
        return MultiToken(samples, self.temperature * (samples if self.ratio == "official" else 1))

    def before(self, model: Model, problems: Problems, forced: bool, temperature: float = 0.0) -> Plan:
        """One sampled latent for each step before the answer, whatever the answer's temperature."""
        assert not forced, "nothing is taught, so nothing can be forced"
        return (Segment(self.thought(model), problems.thinking),)

    def loss(self, model: Model, problems: Problems, moment: Moment) -> Float[Tensor, ""]:
        """The first loss of a batch of rollouts, where old and new policy are equal."""
        value = next(self.losses(model, problems, moment)).value
        assert value is not None, "an update has a loss"
        return value

    def losses(self, model: Model, problems: Problems, moment: Moment) -> Iterator[Loss]:
        """Rollouts once, then the clipped surrogate of the weights as they become, once for each update.

        The last has no value: the divergence of the policy that sampled from the one the last update made.
        """
        backbone = model.backbone
        run = rollout(
            backbone,
            self.plan(model, problems, self.temperature),
            problems.prompt_BN,
            problems.prompt_mask_BN,
            streams=moment.streams(len(problems) * self.group, problems.prompt_BN.device),
            offset_B=problems.offset_B,
            groups=self.group,
        )
        reward_B = rewards(run, problems, self.group)
        advantage_B = advantages(reward_B, self.group, self.advantage)
        figures = {"reward": reward_B.mean(), "silent_groups": silent_groups(advantage_B, self.group)}
        reference_BT = old_BT = None
        if self.kl:
            with torch.no_grad():
                reference: Any = model.thoughts["reference"]
                reference_BT = replay(reference, run).log_prob_BT
        for _ in range(self.updates):
            now = replay(backbone, run)
            now_BT = self.log_prob_BT(now)
            if old_BT is None:
                old_BT, sampled_BT = now_BT.detach(), now.log_prob_BT.detach()
                figures |= {"entropy": entropies(now, problems)}
            objective_BT, held_BT = clipped(now_BT - old_BT, advantage_B, self.clip)
            value = -averaged(objective_BT, run.live_BT, self.average)
            figures["clip_fraction"] = averaged(held_BT.to(now_BT), run.live_BT, "token")
            if reference_BT is not None:
                divergence = averaged(k3(reference_BT, now.log_prob_BT), run.live_BT, self.average)
                value, figures["reference_kl"] = value + self.kl * divergence, divergence.detach()
            yield Loss(value, figures)
            figures = {}
        with torch.no_grad():
            after_BT = replay(backbone, run).log_prob_BT
        yield Loss(None, {"approximate_kl": averaged(k3(after_BT, sampled_BT), run.live_BT, "token")})

    def log_prob_BT(self, run: Trajectory) -> Float[Tensor, "B T"]:
        """Log-probability of every step as the ratio's mode counts it; 0 where a row waited."""
        if self.ratio != "paper":
            return run.log_prob_BT
        shares = [1 / span.thought.samples if isinstance(span.thought, MultiToken) else 1.0 for span in run.spans]
        steps = [share for span, share in zip(run.spans, shares, strict=True) for _ in range(span.start, span.stop)]
        return run.log_prob_BT * run.log_prob_BT.new_tensor(steps)

    def hopeless(self, lines: Sequence[Mapping[str, Any]], ends: bool) -> str | None:
        """No group to speak of has taught anything for `patience` batches of rollouts, or in a whole shorter run."""
        taught = next((line["step"] for line in reversed(lines) if line["silent_groups"] < SILENT), 0)
        if not lines or lines[-1]["step"] - taught < (1 if ends and taught == 0 else self.patience):
            return None
        since = f"groups had no two different rewards in the last {lines[-1]['step'] - taught} batches of rollouts"
        reward = lines[-1]["reward"]
        if reward > 0.95:
            return f"{since}: nearly every answer is right, and there is nothing left to learn from this reward"
        if reward < 0.05:
            return f"{since}: nearly no answer is right; start from a better run (--start), or take larger groups"
        return (
            f"{since}, {100 * reward:.0f} % of the answers being right: the policy says the same whatever it samples; "
            "take a lower rate, a higher temperature or more prompts a batch"
        )


def rewards(run: Trajectory, problems: Problems, group: int) -> Float[Tensor, " B"]:
    """1 for each rollout whose answer tokens are the right ones, else 0."""
    said_BA = run.action("id")[:, -problems.answer_tokens :]
    return (said_BA == problems.answer_BA.repeat_interleave(group, 0)).all(1).to(run.logits_BTV)


@torch.no_grad()
def entropies(run: Trajectory, problems: Problems) -> Float[Tensor, " T"]:
    """Mean entropy of every step's softmax in nats, over the rows that are live then; NaN for steps no row takes."""
    log_p_BTV = F.log_softmax(run.logits_BTV, -1)
    entropy_BT = -(log_p_BTV.exp() * log_p_BTV).sum(-1)
    if run.live_BT is not None:
        entropy_BT = entropy_BT.masked_fill(~run.live_BT, torch.nan)
    entropy_T, tokens = entropy_BT.nanmean(0), problems.answer_tokens
    absent = entropy_T.new_full((problems.words_before + tokens - run.steps,), torch.nan)
    return torch.cat([entropy_T[: run.steps - tokens], absent, entropy_T[run.steps - tokens :]])
