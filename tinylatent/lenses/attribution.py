"""Attribution: integrated gradients over the residual stream, with the error by which they fail to add up.

    found = integrated_gradients(record, layer, counted_BS, ids_BS)
    found.attribution_BS       # what every slot's residual before this layer contributes to the answer
    found.error_B              # their sum less the change they should explain: look at it before anything else

Csordás et al. 2025 (arXiv 2505.13898, section 3.3) after Sundararajan et al. 2017 (arXiv 1703.01365): the path runs
from a baseline, the mean of the row's own residuals, to the residual itself. They take 256 nodes from the left, which
leaves an error of order 1/256 and never looks at the end. Here nodes are midpoints of pieces of the path. How far the
slope of a piece misses the change from its one end to the other is known exactly, so that a piece is cut into three
where it misses much, and there alone: a sharp prediction has all its slope in a few places. The midpoint that is there
is used again. Every row has as many nodes as it needs by itself.

Letters: B rows, S slots, D width, V vocabulary, i pieces of paths, n predictions.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinylatent.lenses.residuals import Record, in_parts

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
    """Gradients that were taken."""
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
        target: what is summed over them.
        tolerance: largest error of a row, as a share of the change or, where that is smaller, of 0.01; of a piece, its
            share of that.
        most: pieces of a path at most: it begins with 9, and none becomes shorter than one in so many.

    Raises:
        ValueError: a layer that does not exist, an unknown target, or rows that predict nothing.
    """
    if not 0 <= layer <= record.depth:
        raise ValueError(f"layer is {layer}: expected 0 to {record.depth}, where {record.depth} is after the last")
    if target not in get_args(Target):
        raise ValueError(f"target is {target!r}: expected one of {', '.join(get_args(Target))}")
    if not counted_BS.any(1).all():
        raise ValueError("a row has no slot that predicts its answer: count one in every row")
    path, B = _Path(record, layer, counted_BS, ids_BS, target), len(counted_BS)
    allowed_B = tolerance * path.change_B.abs().clamp(min=0.01)
    nodes_B, found_BSD = torch.zeros_like(counted_BS[:, 0], dtype=torch.long), torch.zeros_like(path.step)
    missed_B = torch.zeros_like(allowed_B)  # by pieces that are done with
    pieces, count = path.cut(torch.arange(B, device=counted_BS.device), FIRST), FIRST
    while True:
        nodes_B += torch.bincount(pieces.row_i[pieces.is_new_i], minlength=B)
        missed_i = (path.step[pieces.row_i] * pieces.slope_iSD).sum((1, 2)) / count - pieces.ends_i2.diff(dim=1)[:, 0]
        is_rough_B = missed_B.index_add(0, pieces.row_i, missed_i.abs()) > allowed_B
        rough_i = is_rough_B[pieces.row_i] & (missed_i.abs() > allowed_B[pieces.row_i] / count) & (3 * count <= most)
        missed_B.index_add_(0, pieces.row_i[~rough_i], missed_i[~rough_i].abs())
        found_BSD.index_add_(0, pieces.row_i[~rough_i], pieces.slope_iSD[~rough_i] / count)
        if not rough_i.any():
            break
        pieces, count = path.thirds(pieces, rough_i, count), 3 * count
    attribution_BS = (path.step * found_BSD).sum(-1)
    error_B = attribution_BS.sum(1) - path.change_B
    return Attribution(attribution_BS, path.change_B, error_B, nodes_B, error_B.abs() <= allowed_B)


@dataclass(frozen=True)
class _Pieces:
    """Pieces of paths, all of one length, in order."""

    row_i: Tensor
    """Whose path."""
    place_i: Tensor
    """Which piece of it, counted from 0."""
    ends_i2: Tensor
    """The target at both ends."""
    slope_iSD: Tensor
    """Its gradient at the middle."""
    is_new_i: Tensor
    """Whether it was not known before."""


class _Path:
    """The straight path from a row's mean residual to its residuals, and the target along it."""

    def __init__(self, record: Record, layer: int, counted_BS: Tensor, ids_BS: Tensor, target: Target):
        self.record, self.layer, self.target = record, layer, target
        self.counted_BS, self.ids_BS = counted_BS, ids_BS
        end, live = record.stream[layer].detach(), record.mask_BS[..., None]
        self.base = (end * live).sum(1, keepdim=True) / live.sum(1, keepdim=True)
        self.step = (end - self.base) * live
        every_B = torch.arange(len(counted_BS), device=counted_BS.device)
        self.change_B = self.values(every_B, torch.ones_like(self.step[:, 0, 0])) - self.values(
            every_B, torch.zeros_like(self.step[:, 0, 0])
        )

    def cut(self, row_b: Tensor, count: int) -> _Pieces:
        """The whole paths of some rows in so many pieces."""
        ends = torch.arange(count + 1, device=row_b.device).to(self.step) / count
        value_be = self.values(row_b.repeat_interleave(count + 1), ends.repeat(len(row_b))).view(-1, count + 1)
        row_i, place_i = row_b.repeat_interleave(count), torch.arange(count, device=row_b.device).repeat(len(row_b))
        slope_iSD = self.slopes(row_i, (place_i.to(self.step) + 0.5) / count)
        ends_i2 = value_be.unfold(1, 2, 1).flatten(0, 1)
        return _Pieces(row_i, place_i, ends_i2, slope_iSD, torch.ones_like(row_i, dtype=torch.bool))

    def thirds(self, pieces: _Pieces, rough_i: Tensor, count: int) -> _Pieces:
        """Some of the pieces, of which a whole path has `count`, each cut into three; the middles of old ones stay."""
        row_r, place_r, count = pieces.row_i[rough_i], pieces.place_i[rough_i], 3 * count
        place_i = (3 * place_r[:, None] + torch.arange(3, device=row_r.device)).flatten()
        row_i, is_new_i = row_r.repeat_interleave(3), torch.tensor([True, False, True]).to(row_r.device)
        is_new_i = is_new_i.repeat(len(row_r))
        inner_2r = [self.values(row_r, (3 * place_r + third).to(self.step) / count) for third in (1, 2)]
        low_r, high_r = pieces.ends_i2[rough_i].unbind(1)
        ends_i2 = torch.stack([low_r, *inner_2r, high_r], 1).unfold(1, 2, 1).flatten(0, 1)
        slope_iSD = pieces.slope_iSD[rough_i].repeat_interleave(3, 0)
        slope_iSD[is_new_i] = self.slopes(row_i[is_new_i], (place_i[is_new_i].to(self.step) + 0.5) / count)
        return _Pieces(row_i, place_i, ends_i2, slope_iSD, is_new_i)

    def at(self, row_i: Tensor, share_i: Tensor) -> Tensor:
        """The residuals of rows at points of their paths."""
        return self.base[row_i] + share_i[:, None, None] * self.step[row_i]

    def value(self, stream: Tensor, row_i: Tensor) -> Tensor:
        """The target of rows with these residuals."""
        counted_iS, ids_iS = self.counted_BS[row_i], self.ids_BS[row_i]
        logits_nV = self.record.logits(self.record.on(self.layer, stream, rows_R=row_i)[counted_iS])
        if self.target == "log_probability":
            logits_nV = logits_nV.log_softmax(-1)
        elif self.target == "probability":
            logits_nV = logits_nV.softmax(-1)
        each_n = logits_nV.gather(1, ids_iS[counted_iS][:, None])[:, 0]
        row_n = counted_iS.nonzero()[:, 0]
        return stream.new_zeros(len(stream)).index_add(0, row_n, each_n.to(stream))

    @torch.no_grad()
    def values(self, row_i: Tensor, share_i: Tensor) -> Tensor:
        """The target at points of paths."""
        parts = in_parts(self.record, len(row_i))
        return torch.cat([self.value(self.at(row_i[part], share_i[part]), row_i[part]) for part in parts])

    def slopes(self, row_i: Tensor, share_i: Tensor) -> Tensor:
        """The gradient of the target at points of paths."""
        found: list[Tensor] = []
        for part in in_parts(self.record, len(row_i), self.record.depth):
            with torch.enable_grad():
                stream = self.at(row_i[part], share_i[part]).requires_grad_()
                found += torch.autograd.grad(self.value(stream, row_i[part]).sum(), stream)
        return torch.cat(found)
