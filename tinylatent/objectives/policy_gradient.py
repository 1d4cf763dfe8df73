"""Policy gradient: what methods that learn from rewards share. `collect` rolls out, `loss` replays.

A group is the G rollouts of one prompt, in consecutive rows. Choices that papers make silently (how advantages are
scaled, how steps are averaged) have names. Steps that were given, not sampled, are no part of the policy and do not
count.

Letters: B rows = groups * G, G rollouts of a group, T steps.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinylatent.core.precision import full
from tinylatent.core.seeds import derive
from tinylatent.engine.force import replay
from tinylatent.engine.plan import ANSWER, Plan, distinct
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thought import Thought
from tinylatent.engine.trace import Trace
from tinylatent.models.huggingface_lora import SwitchedOff, reference_of
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import Loss, Method, Model, TrainState
from tinylatent.objectives.rewards import told

Advantage = Literal["std", "mean", "leave-one-out", "batch-std", "none"]
"""How rewards become advantages: "std" (r - mean) / std of the group (GRPO, Shao et al. 2024), "mean" r - mean (Dr.
GRPO, Liu et al. 2025), "leave-one-out" r - mean of the others (RLOO, Ahmadian et al. 2024), "batch-std" r - mean of the
group over the std of all rewards of the batch, "none" r itself (REINFORCE, Williams 1992)."""
Average = Literal["sequence", "token", "sum"]
"""How steps are averaged: "sequence" over the steps of a row, then over rows (GRPO); "token" over all sampled steps of
the batch (DAPO, Yu et al. 2025); "sum" the sum over the steps of a row, then the mean over rows (the policy gradient
itself)."""

Signal = Literal["reward", "permuted", "none"]
"""Where advantages come from: "reward" the rewards; "permuted" the rewards of every group in random order, a control
that keeps each group's rewards (one that teaches nothing still does not) and cuts their tie to what was written; "none"
nothing, so that weight decay and a KL term alone move the weights."""

MAX_COUNT = 1000
"""Upper limit of the settings group, updates, patience and samples."""
SILENT = 0.999
"""Early stopping counts log lines where at least this share of groups has rewards without variance."""
MAX_LOG_RATIO = 30.0  # keeps ratios finite: infinity times an advantage of zero would be NaN
MIN_LOG_RATIO = -1e30  # only infinity must be cut on this side, where k3 grows linearly; sums of values stay finite


def advantages(
    reward_B: Float[Tensor, " B"],
    group: int,
    kind: Advantage = "std",
    epsilon: float = 1e-6,
    gather: Callable[[Tensor], Tensor] = lambda x: x,
) -> Float[Tensor, " B"]:
    """The advantage of every rollout.

    Args:
        reward_B: rewards, the G rollouts of a prompt in consecutive rows.
        group: G.
        kind: see `Advantage`.
        epsilon: added to a standard deviation (unbiased) before dividing. A group of equal rewards has advantage 0, for
            every kind but "none".
        gather: maps rewards of this process to those of all, for the standard deviation of the whole batch.

    Raises:
        ValueError: unknown kind, rows that are not whole groups, or groups of one unless kind is "none".
    """
    if kind not in get_args(Advantage):
        raise ValueError(f"advantage {kind!r}: expected one of {', '.join(get_args(Advantage))}")
    if group < 1 or len(reward_B) % group:
        raise ValueError(f"{len(reward_B)} rewards are no whole groups of {group}")
    if kind == "none":
        return reward_B
    if group < 2:
        raise ValueError("a group of 1 has no others to compare with: take at least 2 rollouts, or advantage none")
    reward_PG = reward_B.view(-1, group)
    centred_PG = reward_PG - reward_PG.mean(1, keepdim=True)
    match kind:
        case "std":
            centred_PG = centred_PG / (reward_PG.std(1, keepdim=True) + epsilon)
        case "leave-one-out":
            centred_PG = centred_PG * (group / (group - 1))
        case "batch-std":
            centred_PG = centred_PG / (gather(reward_B).std() + epsilon)
    equal_P1 = (reward_PG == reward_PG[:, :1]).all(1, keepdim=True)  # their mean is off by rounding: 0.7 is no binary
    return centred_PG.masked_fill(equal_P1, 0.0).flatten()


def frac_reward_zero_std(advantage_B: Float[Tensor, " B"], group: int) -> Float[Tensor, ""]:
    """Share of groups whose advantages are all zero because their rewards are equal: they give no gradient."""
    return (advantage_B.view(-1, group) == 0).all(1).to(advantage_B).mean()


def clipped(
    log_ratio_BT: Float[Tensor, "B T"],
    advantage_B: Float[Tensor, " B"],
    low: float,
    high: float | None = None,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """min(ratio A, clip(ratio, 1 - low, 1 + high) A) of every step, and where the clipped side is smaller (PPO, eq. 7).

    Args:
        log_ratio_BT: log-probability under the current policy minus that under the one that sampled.
        advantage_B: one per row.
        low: clips the ratio below 1 - low.
        high: clips it above 1 + high; `low` by default. Infinite bounds do not clip.
    """
    ratio_BT, advantage_B1 = full(log_ratio_BT).clamp(max=MAX_LOG_RATIO).exp(), advantage_B[:, None]
    plain_BT = ratio_BT * advantage_B1
    clipped_BT = ratio_BT.clamp(1 - low, 1 + (low if high is None else high)) * advantage_B1
    return torch.minimum(plain_BT, clipped_BT), clipped_BT < plain_BT


def k3(reference_BT: Float[Tensor, "B T"], current_BT: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """exp(q - p) - (q - p) - 1 for log-probabilities p of the current policy and q of the reference: never negative.

    Its mean over actions of the current policy is KL(current || reference) (Schulman 2020, estimator k3). As a loss
    over given actions, which is how GRPO uses it, its gradient is on average that of KL(reference || current) instead.
    Gaps q - p above MAX_LOG_RATIO count as that, and infinite ones below 0 as MIN_LOG_RATIO: value and gradient are
    finite, and the gradient is 0 outside of these bounds.
    """
    gap_BT = (full(reference_BT) - full(current_BT)).clamp(MIN_LOG_RATIO, MAX_LOG_RATIO)
    return gap_BT.exp() - gap_BT - 1


def averaged(
    values_BT: Float[Tensor, "B T"],
    mask_BT: Bool[Tensor, "B T"] | None = None,
    over: Average = "sequence",
    denominator: int | Tensor | None = None,
) -> Float[Tensor, ""]:
    """The average of all values that are not masked; see `Average`.

    Args:
        values_BT: a value of every step.
        mask_BT: False where a step does not count.
        over: how to average.
        denominator: that of the whole batch, if these rows are a part of it; see `denominator_of`.

    Raises:
        ValueError: unknown `over`.
    """
    if over not in get_args(Average):
        raise ValueError(f"average {over!r}: expected one of {', '.join(get_args(Average))}")
    if denominator is None:
        denominator = denominator_of(values_BT, mask_BT, over)
    if mask_BT is not None:
        values_BT = values_BT.masked_fill(~mask_BT, 0.0)
    sum_B = values_BT.sum(1)
    if over == "sequence":
        sum_B = sum_B / (values_BT.shape[1] if mask_BT is None else mask_BT.sum(1).clamp(min=1))
    return sum_B.sum() / denominator


def denominator_of(values_BT: Tensor, mask_BT: Bool[Tensor, "B T"] | None, over: Average) -> int | Tensor:
    """The denominator of `averaged` for a whole batch: its number of rows, or of steps that are not masked."""
    if over != "token":
        return len(values_BT)
    return values_BT.numel() if mask_BT is None else mask_BT.sum()


# ---------------------------------------------------------------------------------------------------------------------
# Methods that learn from rewards


@dataclass
class Rollouts:
    """A batch of rollouts with their advantages; the first loss adds log-probabilities under the old policy."""

    examples: Examples
    trace: Trace
    advantage_B: Float[Tensor, " B"]
    denominator: int | Tensor
    """That of the whole batch, also in a part of it; see `denominator_of`."""
    metrics: Mapping[str, Tensor]
    old_BT: Float[Tensor, "B T"] | None = None
    """`ratio_log_prob` under the policy that sampled."""
    sampled_BT: Float[Tensor, "B T"] | None = None
    """Log-probabilities of the actions under the policy that sampled."""
    reference_BT: Float[Tensor, "B T"] | None = None
    """Log-probabilities of the actions under the reference policy."""

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.examples)

    def parts(self, size: int | None) -> "list[Rollouts]":
        """The rollouts in parts of at most `size` prompts; in one part if that is None."""
        if size is None or size >= len(self):
            return [self]
        G, found = self.trace.group, []
        for start in range(0, len(self), size):
            prompts = slice(start, min(start + size, len(self)))
            rows = slice(prompts.start * G, prompts.stop * G)
            part = replace(
                self,
                examples=self.examples.rows(prompts),
                trace=self.trace.part(rows),
                advantage_B=self.advantage_B[rows],
                metrics=self.metrics if start == 0 else {},
            )
            found.append(part)
        return found


@dataclass(frozen=True)
class PolicyGradient(Method):
    """Base of methods that sample groups of rollouts, reward their answers and train on the clipped surrogate.

    Raises ValueError for settings out of range.
    """

    drops_out: ClassVar[bool] = False
    coldest: ClassVar[float] = 0.01
    """Lowest temperature: 0 where something else than tokens is drawn."""

    group: int = 8
    """Rollouts per prompt."""
    updates: int = 1
    """Optimizer steps per batch of rollouts."""
    clip: float = 0.1
    """Clips the probability ratio to 1 - clip .. 1 + clip."""
    kl: float = 0.0
    """Weight of the KL divergence from the initial policy, estimated by k3. For densities (gamma) the estimate may be
    very large: keep the weight and the learning rate small."""
    advantage: Advantage = "std"
    """How rewards of a group become advantages."""
    average: Average = "sequence"
    """How the steps of rollouts are averaged."""
    temperature: float = 1.0
    """Sampling temperature of rollouts in training; that of latents at evaluation too."""
    patience: int = 100
    """Training stops after this many batches in a row in which no group has two different rewards."""
    signal: Signal = "reward"
    """Where advantages come from: rewards, or a control of them; metrics always tell the rewards."""

    def __post_init__(self) -> None:
        for name in ("group", "updates", "patience"):
            if not 1 <= getattr(self, name) <= MAX_COUNT:
                raise ValueError(f"{name} {getattr(self, name)}: expected 1 to {MAX_COUNT}")
        for name, options in (("advantage", Advantage), ("average", Average), ("signal", Signal)):
            if getattr(self, name) not in get_args(options):
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(get_args(options))}")
        if self.group < 2 and self.advantage != "none":
            raise ValueError(f"group {self.group}: expected at least 2 rollouts to compare; try 8")
        if not 0 < self.clip < math.inf:
            raise ValueError(f"clip {self.clip}: expected more than 0; try 0.1")
        if not 0 <= self.kl < math.inf:
            raise ValueError(f"kl {self.kl}: expected 0 or more; try 0")
        if not self.coldest <= self.temperature <= 100:
            raise ValueError(f"temperature {self.temperature}: expected {self.coldest:g} to 100; try 1.0")

    @property
    def idle(self) -> Mapping[str, str]:
        """A clip where old and new policy are the same at the only update."""
        return {"clip": "with one update a batch, where the probability ratio is 1"} if self.updates == 1 else {}

    def model(self, backbone: Any, generator: torch.Generator) -> Model:
        """The model; with a KL term, also a frozen copy of it as the reference.

        Where adapters alone are trained, the copy has the same backbone, with its adapters switched off.
        """
        model = super().model(backbone, generator)
        if self.kl:
            view = reference_of(backbone)
            reference = deepcopy(model) if view is None else Model(view, deepcopy(model.parts))
            model.parts["reference"] = reference.requires_grad_(False)
        return model

    def enter(self, model: Model, stage: int, examples: Examples, state: TrainState) -> None:
        """Enters a stage as any method does; at stage 0 the reference gets the current weights."""
        super().enter(model, stage, examples, state)
        if self.kl:
            reference: Any = model.parts["reference"]
            if stage == 0:
                now = model.state_dict()
                reference.load_state_dict({name: now[name] for name in reference.state_dict()})
                if isinstance(reference.backbone, SwitchedOff):
                    reference.backbone.start_here()
            reference.stage.fill_(stage)

    @property
    def forwards(self) -> int:
        """Cost of training on a prompt, in forwards: rollouts, a forward and backward per update, the reference."""
        return self.group * (1 + 3 * self.updates + (1 if self.kl else 0))

    def reference_thought(self) -> Thought | Mapping[str, Thought] | None:
        """The thought with which the reference replays spans that have a latent part, or thoughts by names of spans.

        Its own thoughts if None.
        """
        return None

    def sampled_plan(self, model: Model, examples: Examples) -> Plan:
        """The plan of rollouts in training: that of inference at the temperature, unless training explores."""
        return self.plan(model, examples, self.temperature)

    def most_before(self, examples: Examples) -> int:
        """Most steps before the answer in any batch of such examples: entropies have as many places, to be averaged."""
        return examples.max_steps

    def ratio_log_prob(self, trace: Trace) -> Float[Tensor, "B T"]:
        """Log-probability of every step as it enters the probability ratio; 0 where a row took none."""
        return trace.log_prob_BT

    def collect(self, model: Model, examples: Examples, state: TrainState) -> Rollouts:
        """Samples a group of rollouts for every example, without a graph, and rewards the answers.

        Raises:
            ValueError: the plan samples nothing, so there is no policy to train.
        """
        return model(lambda inside: self._collect(inside, examples, state))

    def _collect(self, model: Model, examples: Examples, state: TrainState) -> Rollouts:
        plan = self.sampled_plan(model, examples)
        if not any(segment.given is None and segment.thought.needs_streams for segment in distinct(plan)):
            raise ValueError(
                f"the plan of {self.name} samples nothing: a policy gradient needs sampled actions; try a temperature"
            )
        trace = rollout(
            model.backbone,
            plan,
            examples.prompt_BN,
            examples.prompt_mask_BN,
            streams=state.streams(len(examples) * self.group, examples.prompt_BN.device, per_example=self.group),
            offset_B=examples.offset_B,
            group=self.group,
        )
        reward_B = self.reward(model, examples, trace, state)
        advantage_B = advantages(reward_B, self.group, self.advantage, gather=state.gather)
        metrics = {"reward": reward_B.mean(), "frac_reward_zero_std": frac_reward_zero_std(advantage_B, self.group)}
        if self.signal == "none":
            advantage_B = torch.zeros_like(advantage_B)
        elif self.signal == "permuted":
            order_PG = self._order(len(examples), state).to(reward_B.device)
            mixed_B = reward_B.view(-1, self.group).gather(1, order_PG).flatten()
            advantage_B = advantages(mixed_B, self.group, self.advantage, gather=state.gather)
        denominator = denominator_of(trace.hidden_BTD[..., 0], trace.drawn_BT, self.average)
        if self.average == "token":
            denominator = state.gather(torch.as_tensor(denominator, device=advantage_B.device)[None]).sum()
        else:
            denominator = len(state.gather(advantage_B))
        return Rollouts(examples, replace(trace, end=None), advantage_B, denominator, metrics)  # frees the cache

    def _order(self, groups: int, state: TrainState) -> Int[Tensor, "P G"]:
        """The order of permuted rewards within every group at a step."""
        generator = torch.Generator().manual_seed(derive(state.seed, "permuted rewards", state.step, state.first))
        return torch.rand(groups, self.group, generator=generator).argsort(1)

    def reward(self, model: Model, examples: Examples, trace: Trace, state: TrainState) -> Float[Tensor, " B"]:
        """The reward of every rollout: the verifier's value of what it wrote."""
        return told(state.verify(examples, trace), trace)

    def loss(self, model: Model, batch: Rollouts, state: TrainState) -> Loss:
        """The clipped surrogate under the current weights, plus the weighted KL divergence from the reference.

        At the first update old and new log-probabilities are the same tensor, so that their log-ratio is exactly 0.
        """
        now, mask_BT, metrics = replay(model.backbone, batch.trace), batch.trace.drawn_BT, {}
        now_BT = self.ratio_log_prob(now)
        if state.update == 0:
            batch.old_BT, batch.sampled_BT = now_BT.detach(), now.log_prob_BT.detach()
            metrics = {**batch.metrics, "entropy": entropies(now, batch.trace, self.most_before(batch.examples))}
            if self.kl:
                batch.reference_BT = self.reference_log_prob(model, batch)
        assert batch.old_BT is not None, "the first update comes first"
        objective_BT, clipped_BT = clipped(now_BT - batch.old_BT, batch.advantage_B, self.clip)
        value = -averaged(objective_BT, mask_BT, self.average, batch.denominator)
        metrics["clip_fraction"] = averaged(clipped_BT.to(now_BT), mask_BT, "token")
        if batch.reference_BT is not None:
            gap_BT = k3(batch.reference_BT, now.log_prob_BT)
            value = value + self.kl * averaged(gap_BT, mask_BT, self.average, batch.denominator)
            metrics["reference_kl"] = averaged(gap_BT.detach(), mask_BT, self.average)
        extra = self.extra_loss(model, now, batch, state)
        if extra is not None:
            value, metrics = value + extra.value, {**metrics, **extra.metrics}
        return Loss(value, metrics)

    def extra_loss(self, model: Model, now: Trace, batch: Rollouts, state: TrainState) -> Loss | None:
        """What a method adds to the surrogate, from the replay under the current weights; None for nothing."""
        return None

    @torch.no_grad()
    def reference_log_prob(self, model: Model, batch: Rollouts) -> Float[Tensor, "B T"]:
        """Log-probability of every action under the reference, with its own backbone, heads and gates."""
        reference: Any = model.parts["reference"]
        thought = self.reference_thought()
        if thought is not None:
            return replay(reference.backbone, batch.trace, thought=thought).log_prob_BT
        plan = self.sampled_plan(reference, batch.examples)
        readers = {segment.label: segment.thought for segment in distinct(plan)}
        return replay(reference.backbone, batch.trace, thought=readers).log_prob_BT

    @torch.no_grad()
    def after(self, model: Model, batch: Rollouts, state: TrainState) -> Mapping[str, Tensor]:
        """The approximate KL divergence between the policy that sampled and the one after the last update."""
        assert batch.sampled_BT is not None, "the losses come first"
        now_BT = model(lambda inside: replay(inside.backbone, batch.trace).log_prob_BT)
        return {"approximate_kl": averaged(k3(now_BT, batch.sampled_BT), batch.trace.drawn_BT, "token")}

    def early_stop(self, lines: Sequence[Mapping[str, Any]], ends: bool) -> str | None:
        """Stops after `patience` batches with reward variance in hardly any group, or after a whole shorter run."""
        taught = next((line["step"] for line in reversed(lines) if line["frac_reward_zero_std"] < SILENT), 0)
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


@torch.no_grad()
def entropies(trace: Trace, rolled: Trace, most: int) -> Float[Tensor, " T"]:
    """Mean entropy of every step's softmax in nats, over the rows that act; NaN for steps no row takes.

    Args:
        trace: gives the logits; a replay of `rolled`.
        rolled: the rollout; the result has an entry for every step it might have taken, so that batches align.
        most: number of entries before the answer, at least.
    """
    entropy_T, spans = entropy_of(trace).nanmean(0), rolled.thought_spans
    padded = [F.pad(entropy_T[trace.within(s)], (0, s.max_steps - (s.stop - s.start)), value=torch.nan) for s in spans]
    before = torch.cat([entropy_T[:0], *(part for part, s in zip(padded, spans, strict=True) if s.name != ANSWER)])
    answer = [part for part, s in zip(padded, spans, strict=True) if s.name == ANSWER]
    return torch.cat([F.pad(before, (0, max(0, most - len(before))), value=torch.nan), *answer])


def entropy_of(trace: Trace) -> Float[Tensor, "B T"]:
    """Entropy of every step's softmax in nats; NaN where a row took no action."""

    def entropy(logits_bTV: Tensor, rows: slice) -> Tensor:
        log_p_bTV = F.log_softmax(logits_bTV, -1)
        return -(log_p_bTV.exp() * log_p_bTV).sum(-1)

    parts = trace.over_logits(entropy)
    entropy_BT = parts[0] if len(parts) == 1 else torch.cat(parts)
    return entropy_BT if trace.acted_BT is None else entropy_BT.masked_fill(~trace.acted_BT, torch.nan)
