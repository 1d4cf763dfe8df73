"""Attribution: integrated gradients over the residual stream, with the error by which they fail to add up.

    found = integrated_gradients(record, layer, counted_BS, ids_BS)
    found.attribution_BS       # what every slot's residual before this layer contributes to the answer
    found.error_B              # their sum less the change they should explain: look at it before anything else

Csordás et al. 2025 (arXiv 2505.13898, section 3.3) after Sundararajan et al. 2017 (arXiv 1703.01365): the path runs
from a baseline, the mean of the row's own residuals, to the residual itself. They take 256 nodes from the left, which
leaves an error of order 1/256 and never looks at the end; here nodes are midpoints, tripled until the error is small,
so that those of the coarser rule are used again. Every row has as many as it needs by itself.

Letters: B rows, S slots, D width, V vocabulary, n nodes.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinylatent.lenses.residuals import Record

Target = Literal["probability", "log_probability", "logit"]
FIRST = 9
"""Nodes of the coarsest rule."""


@dataclass(frozen=True)
class Attribution:
    """What the residual of every slot contributes, and how far the sum of all is from what it should be."""

    attribution_BS: Float[Tensor, "B S"]
    change_B: Float[Tensor, " B"]
    """f(residual) - f(baseline): what the attributions of a row should add up to."""
    error_B: Float[Tensor, " B"]
    """The sum of a row's attributions less that."""
    nodes_B: Int[Tensor, " B"]
    """Of the rule that was used."""
    refined_B: Bool[Tensor, " B"]
    """Whether the error became as small as was asked."""


def integrated_gradients(
    record: Record,
    layer: int,
    counted_BS: Bool[Tensor, "B S"],
    ids_BS: Int[Tensor, "B S"],
    target: Target = "probability",
    tolerance: float = 0.01,
    most: int = 729,
) -> Attribution:
    """Integrated gradients of what is predicted at the counted slots, over the residual before a layer (sheet 3.7).

    Args:
        record: of the clean run.
        layer: 0 for the embeddings, L for what the last norm reads.
        counted_BS: slots that predict the answer.
        ids_BS: the token that each of these should predict.
        target: what is summed over them. A sharp model's probability has all its slope in a few places of the path:
            the logarithm needs fewer nodes.
        tolerance: largest error of a row, as a share of the change or, where that is smaller, of 0.01.
        most: nodes at most; the rule is refined from 9 by factors of three.

    Raises:
        ValueError: a layer that does not exist, an unknown target, or rows that predict nothing.
    """
    if not 0 <= layer <= record.depth:
        raise ValueError(f"layer is {layer}: expected 0 to {record.depth}, where {record.depth} is after the last")
    if target not in get_args(Target):
        raise ValueError(f"target is {target!r}: expected one of {', '.join(get_args(Target))}")
    if not counted_BS.any(1).all():
        raise ValueError("a row has no slot that predicts its answer: count one in every row")
    path = _Path(record, layer, counted_BS, ids_BS, target)
    every_B = torch.arange(len(counted_BS), device=counted_BS.device)
    nodes, nodes_B = FIRST, torch.full_like(every_B, FIRST)
    slope = path.mean_slope([(k + 0.5) / FIRST for k in range(FIRST)], every_B)
    while True:
        attribution_BS = (path.step * slope).sum(-1)
        error_B = attribution_BS.sum(1) - path.change_B
        refined_B = error_B.abs() <= tolerance * path.change_B.abs().clamp(min=0.01)
        rough_b = (~refined_B).nonzero()[:, 0]
        if not len(rough_b) or 3 * nodes > most:
            return Attribution(attribution_BS, path.change_B, error_B, nodes_B, refined_B)
        new = [(k + place) / nodes for k in range(nodes) for place in (1 / 6, 5 / 6)]  # beside the midpoints there are
        slope[rough_b] = (slope[rough_b] + 2 * path.mean_slope(new, rough_b)) / 3
        nodes *= 3
        nodes_B[rough_b] = nodes


class _Path:
    """The straight path from a row's mean residual to its residuals, and the slopes of the target along it."""

    def __init__(self, record: Record, layer: int, counted_BS: Tensor, ids_BS: Tensor, target: Target):
        self.record, self.layer, self.target = record, layer, target
        self.counted_BS, self.ids_BS = counted_BS, ids_BS
        end, live = record.stream[layer].detach(), record.mask_BS[..., None]
        self.base = (end * live).sum(1, keepdim=True) / live.sum(1, keepdim=True)
        self.step = (end - self.base) * live
        every_B = torch.arange(len(counted_BS), device=counted_BS.device)
        with torch.no_grad():
            ends = [self.value(self.at(share, every_B), every_B) for share in (1.0, 0.0)]
        self.change_B = ends[0] - ends[1]

    def at(self, share: float, rows_b: Tensor) -> Tensor:
        """The residuals of some rows at a point of the path."""
        return self.base[rows_b] + share * self.step[rows_b]

    def value(self, stream: Tensor, rows_b: Tensor) -> Tensor:
        """The target of these rows."""
        counted_bS, ids_bS = self.counted_BS[rows_b], self.ids_BS[rows_b]
        logits_nV = self.record.logits(self.record.on(self.layer, stream, rows_R=rows_b)[counted_bS])
        if self.target == "log_probability":
            logits_nV = logits_nV.log_softmax(-1)
        elif self.target == "probability":
            logits_nV = logits_nV.softmax(-1)
        each_n = logits_nV.gather(1, ids_bS[counted_bS][:, None])[:, 0]
        row_n = counted_bS.nonzero()[:, 0]
        return stream.new_zeros(len(stream)).index_add(0, row_n, each_n.to(stream))

    def mean_slope(self, shares: list[float], rows_b: Tensor) -> Tensor:
        """The mean gradient of the target of these rows over points of the path."""
        total = torch.zeros_like(self.step[rows_b])
        for share in shares:
            with torch.enable_grad():
                stream = self.at(share, rows_b).requires_grad_()
                (slope,) = torch.autograd.grad(self.value(stream, rows_b).sum(), stream)
            total += slope
        return total / len(shares)
