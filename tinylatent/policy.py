"""Policy: the small functions that policy-gradient methods share, each tested alone.

A rollout's group is the G rollouts of one prompt; rows stand group by group. All quantities are per row and step, and
the choices that papers make silently (how advantages are scaled, how steps are averaged) have names.

Letters: B rows = groups * G, G rollouts of a group, T steps.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Advantage = Literal["std", "mean", "leave-one-out", "batch-std", "none"]
"""How rewards become advantages: "std" (r - mean) / std of the group (GRPO, Shao et al. 2024), "mean" r - mean (Dr.
GRPO, Liu et al. 2025), "leave-one-out" r - mean of the others (RLOO, Ahmadian et al. 2024), "batch-std" r - mean of the
group over the std of all rewards of the batch, "none" r itself (REINFORCE, Williams 1992)."""
Average = Literal["sequence", "token", "sum"]
"""How steps are averaged: "sequence" over the steps of a row, then over rows (GRPO); "token" over all live steps of the
batch (DAPO, Yu et al. 2025); "sum" over the steps of a row, then mean over rows (the policy gradient itself)."""


MOST_LOG_RATIO = 30.0  # beyond, a ratio is no longer a number worth having, and infinity times zero is none at all


def advantages(
    reward_B: Float[Tensor, " B"], group: int, kind: Advantage = "std", epsilon: float = 1e-6
) -> Float[Tensor, " B"]:
    """The advantage of every rollout.

    Args:
        reward_B: rewards, the G rollouts of a prompt side by side.
        group: G.
        kind: see `Advantage`.
        epsilon: added to a standard deviation (unbiased) before dividing; a group of equal rewards has advantage 0.

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
            centred_PG = centred_PG / (reward_B.std() + epsilon)
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
    values_BT: Float[Tensor, "B T"], live_BT: Bool[Tensor, "B T"] | None = None, over: Average = "sequence"
) -> Float[Tensor, ""]:
    """One number from values of every step, those where a row waited left out; see `Average`.

    Raises:
        ValueError: unknown way to average.
    """
    if over not in get_args(Average):
        raise ValueError(f"average {over!r}: expected one of {', '.join(get_args(Average))}")
    B, T = values_BT.shape
    if live_BT is not None:
        values_BT = values_BT.masked_fill(~live_BT, 0.0)
    sum_B = values_BT.sum(1)
    if over == "sum":
        return sum_B.mean()
    if over == "token":
        return sum_B.sum() / (B * T if live_BT is None else live_BT.sum())
    return (sum_B / (T if live_BT is None else live_BT.sum(1).clamp(min=1))).mean()
