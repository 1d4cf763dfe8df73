"""Policy gradient: what methods that learn from rewards share. `collect` rolls out, `loss` replays.

A group is the G rollouts of one prompt; rows stand group by group. All quantities are per row and step, and the choices
that papers make silently (how advantages are scaled, how steps are averaged) have names. Steps that were given, not
drawn, are no part of the policy and count nowhere.

Letters: B rows = groups * G, G rollouts of a group, T steps.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from tinylatent.engine.force import replay
from tinylatent.engine.plan import ANSWER, distinct
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thought import Thought
from tinylatent.engine.trace import Trace
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import Loss, Method, Model, TrainState

Advantage = Literal["std", "mean", "leave-one-out", "batch-std", "none"]
"""How rewards become advantages: "std" (r - mean) / std of the group (GRPO, Shao et al. 2024), "mean" r - mean (Dr.
GRPO, Liu et al. 2025), "leave-one-out" r - mean of the others (RLOO, Ahmadian et al. 2024), "batch-std" r - mean of the
group over the std of all rewards of the batch, "none" r itself (REINFORCE, Williams 1992)."""
Average = Literal["sequence", "token", "sum"]
"""How steps are averaged: "sequence" over the steps of a row, then over rows (GRPO); "token" over all live steps of the
batch (DAPO, Yu et al. 2025); "sum" over the steps of a row, then mean over rows (the policy gradient itself)."""


MOST = 1000
"""Most rollouts a group, updates a batch: more fit no memory, or no patience."""
SILENT = 0.999
"""Share of groups that teach nothing from which on a stretch of the log counts as silent."""
REFERENCE = "parts.reference."
MOST_LOG_RATIO = 30.0  # beyond, a ratio is no longer a number worth having, and infinity times zero is none at all


def advantages(
    reward_B: Float[Tensor, " B"],
    group: int,
    kind: Advantage = "std",
    epsilon: float = 1e-6,
    gather: Callable[[Tensor], Tensor] = lambda x: x,
) -> Float[Tensor, " B"]:
    """The advantage of every rollout.

    Args:
        reward_B: rewards, the G rollouts of a prompt side by side.
        group: G.
        kind: see `Advantage`.
        epsilon: added to a standard deviation (unbiased) before dividing; a group of equal rewards has advantage 0.
        gather: gives the rewards of all processes from these; a batch's deviation is of the whole batch.

    Raises:
        ValueError: unknown kind, rows that are no whole groups, or groups of one where others are needed.
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
    return centred_PG.flatten()


def silent_groups(advantage_B: Float[Tensor, " B"], group: int) -> Float[Tensor, ""]:
    """Share of groups whose advantages are all zero, as those of equal rewards are: they teach nothing."""
    return (advantage_B.view(-1, group) == 0).all(1).to(advantage_B).mean()


def clipped(
    log_ratio_BT: Float[Tensor, "B T"],
    advantage_B: Float[Tensor, " B"],
    low: float,
    high: float | None = None,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """min(ratio A, clip(ratio, 1 - low, 1 + high) A) of every step, and where the clipped side was taken (PPO, eq. 7).

    Args:
        log_ratio_BT: log-probability under the current policy minus that under the one that sampled.
        advantage_B: one per row.
        low: how far below 1 the ratio counts.
        high: how far above; `low` by default. Infinite bounds do not clip.
    """
    ratio_BT, advantage_B1 = log_ratio_BT.clamp(max=MOST_LOG_RATIO).exp(), advantage_B[:, None]
    plain_BT = ratio_BT * advantage_B1
    held_BT = ratio_BT.clamp(1 - low, 1 + (low if high is None else high)) * advantage_B1
    return torch.minimum(plain_BT, held_BT), held_BT < plain_BT


def k3(reference_BT: Float[Tensor, "B T"], current_BT: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """exp(q - p) - (q - p) - 1 for log-probabilities p of the current policy and q of the reference: never negative.

    Its mean over actions of the current policy is KL(current || reference) (Schulman 2020, estimator k3). As a loss
    over given actions, which is how GRPO uses it, its gradient is on average that of KL(reference || current) instead.
    """
    gap_BT = reference_BT - current_BT
    return gap_BT.exp() - gap_BT - 1


def averaged(
    values_BT: Float[Tensor, "B T"],
    mask_BT: Bool[Tensor, "B T"] | None = None,
    over: Average = "sequence",
    weight: int | Tensor | None = None,
) -> Float[Tensor, ""]:
    """One number from values of every step, those that are masked left out; see `Average`.

    weight: what sums are divided by where these rows are part of a batch; see `weight_of`.

    Raises:
        ValueError: unknown way to average.
    """
    if over not in get_args(Average):
        raise ValueError(f"average {over!r}: expected one of {', '.join(get_args(Average))}")
    if weight is None:
        weight = weight_of(values_BT, mask_BT, over)
    if mask_BT is not None:
        values_BT = values_BT.masked_fill(~mask_BT, 0.0)
    sum_B = values_BT.sum(1)
    if over == "sequence":
        sum_B = sum_B / (values_BT.shape[1] if mask_BT is None else mask_BT.sum(1).clamp(min=1))
    return sum_B.sum() / weight


def weight_of(values_BT: Tensor, mask_BT: Bool[Tensor, "B T"] | None, over: Average) -> int | Tensor:
    """What `averaged` divides by for a whole batch: its rows, or its live steps."""
    if over != "token":
        return len(values_BT)
    return values_BT.numel() if mask_BT is None else mask_BT.sum()


# ---------------------------------------------------------------------------------------------------------------------
# Methods that learn from rewards


@dataclass
class Rollouts:
    """A batch of rollouts with what they are worth; after the first loss, with what the policy then said of them."""

    examples: Examples
    trace: Trace
    advantage_B: Float[Tensor, " B"]
    weight: int | Tensor
    """What sums over rows or steps are divided by: of the whole batch, also in a part of it."""
    metrics: Mapping[str, Tensor]
    old_BT: Float[Tensor, "B T"] | None = None
    """Log-probabilities, as the ratio counts them, under the policy that sampled."""
    sampled_BT: Float[Tensor, "B T"] | None = None
    """Log-probabilities of the actions under that policy."""
    reference_BT: Float[Tensor, "B T"] | None = None

    def __len__(self) -> int:
        """Prompts."""
        return len(self.examples)

    def parts(self, size: int | None) -> "list[Rollouts]":
        """The rollouts of at most `size` prompts each; themselves where that is None."""
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
    """Base of methods that roll out groups, score their answers and follow the clipped surrogate of their actions."""

    drops_out: ClassVar[bool] = False

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
    temperature: float = 1.0
    """Of everything sampled in training's rollouts; the latents' at evaluation too."""
    patience: int = 100
    """Batches of rollouts in a row without two different rewards in any group, after which training stops."""

    def __post_init__(self) -> None:
        for name in ("group", "updates", "patience"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ValueError(f"{name} {getattr(self, name)}: expected 1 to {MOST}")
        for name, options in (("advantage", Advantage), ("average", Average)):
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

    def model(self, backbone: Any, generator: torch.Generator) -> Model:
        """The model and, where its policy is held to the one at the start, a frozen copy of all of it."""
        model = super().model(backbone, generator)
        if self.kl:
            model.parts["reference"] = deepcopy(model).requires_grad_(False)
        return model

    def enter(self, model: Model, stage: int, examples: Examples, state: TrainState) -> None:
        """Enters a stage as any method does; at the beginning the weights of then become the reference."""
        super().enter(model, stage, examples, state)
        if self.kl:
            reference: Any = model.parts["reference"]
            if stage == 0:
                own = {name: value for name, value in model.state_dict().items() if not name.startswith(REFERENCE)}
                reference.load_state_dict(own)
            reference.stage.fill_(stage)

    @property
    def forwards(self) -> int:
        """A rollout for each of the group, and forward and backward for each update; the reference reads them once."""
        return self.group * (1 + 3 * self.updates + (1 if self.kl else 0))

    def reference_thought(self) -> Thought | None:
        """What reads actions with a latent part for the reference; the reference's own thoughts if None."""
        return None

    def counted(self, trace: Trace) -> Float[Tensor, "B T"]:
        """Log-probability of every step as the ratio counts it; 0 where a row took none."""
        return trace.log_prob_BT

    def collect(self, model: Model, examples: Examples, state: TrainState) -> Rollouts:
        """Rolls out a group for each example, without a graph, and scores the answers.

        Raises:
            ValueError: the plan draws nothing, so there is no policy to learn.
        """
        return model(lambda inside: self._collect(inside, examples, state))

    def _collect(self, model: Model, examples: Examples, state: TrainState) -> Rollouts:
        trace = rollout(
            model.backbone,
            self.plan(model, examples, self.temperature),
            examples.prompt_BN,
            examples.prompt_mask_BN,
            streams=state.streams(len(examples) * self.group, examples.prompt_BN.device, each=self.group),
            offset_B=examples.offset_B,
            groups=self.group,
        )
        if not any(span.drawn for span in trace.thought_spans):
            raise ValueError(f"the plan of {self.name} draws nothing: a policy gradient needs actions that are sampled")
        reward_B = self.reward(model, examples, trace, state)
        advantage_B = advantages(reward_B, self.group, self.advantage, gather=state.gather)
        metrics = {"reward": reward_B.mean(), "silent_groups": silent_groups(advantage_B, self.group)}
        weight = weight_of(trace.hidden_BTD[..., 0], trace.drawn_BT, self.average)
        if self.average == "token":
            weight = state.gather(torch.as_tensor(weight, device=advantage_B.device)[None]).sum()
        else:
            weight = len(state.gather(advantage_B))
        return Rollouts(examples, replace(trace, end=None), advantage_B, weight, metrics)  # its cache is done with

    def reward(self, model: Model, examples: Examples, trace: Trace, state: TrainState) -> Float[Tensor, " B"]:
        """What each rollout is worth: what the verifier says of its answer."""
        return state.verify(examples, trace.answer()).to(trace.hidden_BTD)

    def loss(self, model: Model, batch: Rollouts, state: TrainState) -> Loss:
        """The clipped surrogate of the weights of now, with its weighted divergence from the reference.

        At the first update old and new policy are the same numbers, so that their log-ratio is exactly 0.
        """
        now, mask_BT, metrics = replay(model.backbone, batch.trace), batch.trace.drawn_BT, {}
        now_BT = self.counted(now)
        if state.update == 0:
            batch.old_BT, batch.sampled_BT = now_BT.detach(), now.log_prob_BT.detach()
            metrics = {**batch.metrics, "entropy": entropies(now, batch.trace, batch.examples)}
            if self.kl:
                batch.reference_BT = self.referred(model, batch)
        assert batch.old_BT is not None, "the first update comes first"
        objective_BT, held_BT = clipped(now_BT - batch.old_BT, batch.advantage_B, self.clip)
        value = -averaged(objective_BT, mask_BT, self.average, batch.weight)
        metrics["clip_fraction"] = averaged(held_BT.to(now_BT), mask_BT, "token")
        if batch.reference_BT is not None:
            gap_BT = k3(batch.reference_BT, now.log_prob_BT)
            value = value + self.kl * averaged(gap_BT, mask_BT, self.average, batch.weight)
            metrics["reference_kl"] = averaged(gap_BT.detach(), mask_BT, self.average)
        return Loss(value, metrics)

    @torch.no_grad()
    def referred(self, model: Model, batch: Rollouts) -> Float[Tensor, "B T"]:
        """Log-probability of every action under the reference: its own backbone, heads and gates."""
        reference: Any = model.parts["reference"]
        thought = self.reference_thought()
        if thought is not None:
            return replay(reference.backbone, batch.trace, thought=thought).log_prob_BT
        plan = self.plan(reference, batch.examples, self.temperature)
        readers = {segment.label: segment.thought for segment in distinct(plan)}
        return replay(reference.backbone, batch.trace, thought=readers).log_prob_BT

    @torch.no_grad()
    def after(self, model: Model, batch: Rollouts, state: TrainState) -> Mapping[str, Tensor]:
        """The divergence of the policy that sampled from the one the last update made."""
        assert batch.sampled_BT is not None, "measured after the losses"
        now_BT = model(lambda inside: replay(inside.backbone, batch.trace).log_prob_BT)
        return {"approximate_kl": averaged(k3(now_BT, batch.sampled_BT), batch.trace.drawn_BT, "token")}

    def early_stop(self, lines: Sequence[Mapping[str, Any]], ends: bool) -> str | None:
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


@torch.no_grad()
def entropies(trace: Trace, rolled: Trace, examples: Examples) -> Float[Tensor, " T"]:
    """Mean entropy of every step's softmax in nats, over the rows that act then; NaN for steps no row takes.

    Batches differ in how far their rows go: the list has a place for every step that `rolled`, of which the trace is a
    replay, might have taken.
    """
    entropy_T, spans = entropy_of(trace).nanmean(0), rolled.thought_spans
    padded = [F.pad(entropy_T[trace.within(s)], (0, s.room - (s.stop - s.start)), value=torch.nan) for s in spans]
    before = torch.cat([entropy_T[:0], *(part for part, s in zip(padded, spans, strict=True) if s.name != ANSWER)])
    answer = [part for part, s in zip(padded, spans, strict=True) if s.name == ANSWER]
    return torch.cat([F.pad(before, (0, max(0, examples.most_steps - len(before))), value=torch.nan), *answer])


def entropy_of(trace: Trace) -> Float[Tensor, "B T"]:
    """Entropy of every step's softmax in nats; NaN where a row took no action."""

    def entropy(logits_bTV: Tensor, rows: slice) -> Tensor:
        log_p_bTV = F.log_softmax(logits_bTV, -1)
        return -(log_p_bTV.exp() * log_p_bTV).sum(-1)

    parts = trace.over_logits(entropy)
    entropy_BT = parts[0] if len(parts) == 1 else torch.cat(parts)
    return entropy_BT if trace.acted_BT is None else entropy_BT.masked_fill(~trace.acted_BT, torch.nan)
