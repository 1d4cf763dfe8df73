"""Losses of supervised steps: cross-entropies, summed over the steps of a row and divided by the number of rows.

The denominator is the number of rows of the whole batch, even if the trace is a part of it: gradients of parts add up
to the gradient of the whole, however rows are split into micro-batches or processes.

Letters: B rows, T steps, V vocabulary.
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinylatent.engine.trace import ALL, Trace
from tinylatent.objectives.examples import Targets

SKIP = -100  # cross_entropy's own mark


def token_loss(
    trace: Trace,
    ids_BT: Int[Tensor, "B T"],
    rows: int | None = None,
    mask_BT: Bool[Tensor, "B T"] | None = None,
    steps: slice = ALL,
) -> Float[Tensor, ""]:
    """Cross-entropy to tokens, summed over the steps of a row and divided by rows, in nats.

    Args:
        trace: gives the logits.
        ids_BT: target tokens.
        rows: the denominator; the trace's number of rows by default.
        mask_BT: False where a step has no target; None if all have one.
        steps: the steps of the trace that ids_BT and mask_BT cover; all by default.
    """
    if mask_BT is not None:
        ids_BT = ids_BT.masked_fill(~mask_BT, SKIP)

    def summed(logits_bTV: Tensor, chosen: slice) -> Tensor:
        ids_bT = ids_BT if logits_bTV.shape[0] == ids_BT.shape[0] else ids_BT[chosen]
        return F.cross_entropy(logits_bTV.flatten(0, 1), ids_bT.flatten(), reduction="sum")

    return trace.sum_over_logits(summed, steps) / (rows or trace.rows)


def question_loss(trace: Trace, rows: int | None = None) -> Float[Tensor, ""]:
    """Cross-entropy of the prompt's own tokens after the first, summed over a row and divided by rows, in nats.

    Args:
        trace: made with `whole`, so that it holds the prompt's hidden states.
        rows: the denominator; the trace's number of rows by default.
    """
    ids_BN, N = trace.prompt_BN, trace.prompt_BN.shape[1]
    hidden_BND = trace.history().hidden_BSD[:, : N - 1]
    asked_BN = trace.mask_BS[:, : N - 1] & trace.mask_BS[:, 1:N]
    logits_nV = trace.backbone.readout(hidden_BND[asked_BN])
    return F.cross_entropy(logits_nV, ids_BN[:, 1:][asked_BN], reduction="sum") / (rows or trace.rows)


def mixture_loss(
    trace: Trace, frontier: Targets, rows: int | None = None, mask_BT: Bool[Tensor, "B T"] | None = None
) -> Float[Tensor, ""]:
    """Cross-entropy to distributions, summed over the steps of a row and divided by rows, in nats.

    It is CSFT's sum of KL(target || model) plus the targets' entropy, a constant (Gozeten et al. 2025, section 3).

    Args:
        trace: gives the logits, of the whole chain.
        frontier: target distributions.
        rows: the denominator; the trace's number of rows by default.
        mask_BT: False where a step has no target; None if all have one.
    """

    def summed(logits_bTV: Tensor, chosen: slice) -> Tensor:
        part = logits_bTV.shape[0] != trace.rows
        target_bTV = (frontier.rows(chosen) if part else frontier).dense(logits_bTV.shape[-1])
        if mask_BT is not None:
            target_bTV = target_bTV * (mask_BT[chosen] if part else mask_BT)[..., None]
        return F.cross_entropy(logits_bTV.flatten(0, 1), target_bTV.flatten(0, 1), reduction="sum")

    return trace.sum_over_logits(summed) / (rows or trace.rows)
