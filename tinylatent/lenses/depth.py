"""Depth: what layers add, and what happens to later layers and to the output if one of them is taken away.

    record = record_tokens(model, ids_BS, mask_BS)
    sizes(record).relative_layer             # |a + m| / |h| for every layer, row and slot
    effects = skip(record)                   # every layer skipped at every slot but the first
    effects = skip(record, splits_BN=..)     # skipped before a split only, evaluated after it: effects on the future
    local(record)                            # what a layer reads of an earlier one directly
    erase(record, mean_stream([record]))     # one slot's residual at one layer replaced by an uninformative one

The measurements of Csordás et al. 2025 (arXiv 2505.13898, section 3; numbers below are those of the fact sheet), by
layer, row and slot: tinylatent.lenses.reducing takes means, quantiles and intervals. Everything is measured without
gradients. Ratios are those of single slots, and nothing is clipped: a layer that adds next to nothing at one slot can
make a relative effect large.

Letters: B rows, S slots, R rows of a sweep (each row with each of N splits), L layers, V vocabulary, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinylatent.lenses.residuals import NUMBERS_AT_ONCE, Record, in_parts
from tinylatent.models.backbone import Edit, Site

LEAST = 1e-6
"""Norms are divided by this at least."""
Part = Literal["layer", "attention", "mlp"]


# ---------------------------------------------------------------------------------------------------------------------
# Sizes and directions


@dataclass(frozen=True)
class Sizes:
    """Norms, ratios and cosines of what every layer adds, at every slot; h enters a layer, a and m are added.

    In a layer that is parallel the MLP is compared with h, otherwise with h + a; where norms are on sums, with nothing
    (NaN), since what it is added to is not recorded.
    """

    residual: Float[Tensor, "L1 B S"]
    """|h|, before every layer and after the last."""
    attention: Float[Tensor, "L B S"]
    """|a|."""
    mlp: Float[Tensor, "L B S"]
    """|m|."""
    relative_attention: Float[Tensor, "L B S"]
    """|a| / |h|."""
    relative_mlp: Float[Tensor, "L B S"]
    """|m| / |h + a|."""
    relative_layer: Float[Tensor, "L B S"]
    """|a + m| / |h|."""
    cosine_attention: Float[Tensor, "L B S"]
    """cos(a, h): above 0 strengthens what is there, below 0 erases, near 0 writes what is new."""
    cosine_mlp: Float[Tensor, "L B S"]
    """cos(m, h + a)."""
    cosine_layer: Float[Tensor, "L B S"]
    """cos(a + m, h)."""
    cosine_neighbours: Float[Tensor, "L B S"]
    """cos of the stream before and after a layer: near 1 wherever a layer adds little."""


@torch.no_grad()
def sizes(record: Record) -> Sizes:
    """Norms, relative contributions and cosines (sheet 3.1, 3.2)."""
    before, after, a, m, c = record.stream[:-1], record.stream[1:], record.attention, record.mlp, record.added
    halfway = before if record.model.parallel else before + a
    if not record.model.sums:
        halfway = torch.full_like(before, torch.nan)
    return Sizes(
        residual=record.stream.norm(dim=-1),
        attention=a.norm(dim=-1),
        mlp=m.norm(dim=-1),
        relative_attention=_ratio(a, before),
        relative_mlp=_ratio(m, halfway),
        relative_layer=_ratio(c, before),
        cosine_attention=_cosine(a, before),
        cosine_mlp=_cosine(m, halfway),
        cosine_layer=_cosine(c, before),
        cosine_neighbours=_cosine(before, after),
    )


def _ratio(x: Tensor, y: Tensor) -> Tensor:
    return x.norm(dim=-1) / y.norm(dim=-1).clamp(min=LEAST)


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    lengths = x.norm(dim=-1).clamp(min=LEAST), y.norm(dim=-1).clamp(min=LEAST)
    return ((x / lengths[0][..., None]) * (y / lengths[1][..., None])).sum(-1)


# ---------------------------------------------------------------------------------------------------------------------
# Layers that are skipped


@dataclass(frozen=True)
class Effects:
    """What changes if something is taken away, at every slot; zero where it is not counted."""

    contribution: Float[Tensor, "L L2 R S"]
    """|c - c'| / |c|: how much the contribution of the second layer changes if the first is skipped."""
    output: Float[Tensor, "L R S"]
    """|y - y'|: how much the next token's probabilities change, between 0 and sqrt(2)."""
    counted_RS: Bool[Tensor, "R S"]
    """Slots that are evaluated."""
    row_R: Int[Tensor, " R"]
    """The row of the record that each row of the sweep comes from."""


@torch.no_grad()
def skip(
    record: Record,
    part: Part = "layer",
    splits_BN: Int[Tensor, "B N"] | None = None,
    keep_first: int = 1,
    filler_LD: Float[Tensor, "L D"] | None = None,
) -> Effects:
    """Effects of skipping every layer, or its attention or MLP alone; everything after it is computed anew (sheet 3.3).

    A layer that is skipped leaves a stream that the model has never seen: beside it, let each layer add what it adds on
    average (`mean_added`), which takes away only what it says of its token.

    Args:
        record: of the clean run.
        part: what is skipped.
        splits_BN: None skips at all slots and counts them all. Otherwise row b is swept N times: skipped before its
            split-th token, counted from there on, so that only what moves to later tokens is seen. Tokens of a row
            are counted from 0 and without padding.
        keep_first: so many tokens at a row's start are never skipped: they often hold what every layer relies on.
        filler_LD: what every layer, or part, adds where it is skipped; nothing by default.

    Raises:
        ValueError: an unknown part, or a split that leaves nothing to skip or to count.
    """
    if part not in get_args(Part):
        raise ValueError(f"part is {part!r}: expected one of {', '.join(get_args(Part))}")
    row_R, skipped_RS, counted_RS = _sweep(record, splits_BN, keep_first)
    clean, outcome, L, S = record.added, _Outcome(record, record.mask_BS), record.depth, record.mask_BS.shape[1]
    changed, output = clean.new_zeros(L, L, len(row_R), S), clean.new_zeros(L, len(row_R), S)
    for layer in range(L):
        for rows in in_parts(record, len(row_R)):
            source_r = row_R[rows]
            added_D = None if filler_LD is None else filler_LD[layer]
            last, after = _without(record, layer, part, source_r, skipped_RS[rows], added_D)
            for later, contribution in after.items():
                changed[layer, later, rows] = _relative(clean[later][source_r], contribution)
            output[layer, rows] = outcome.moved(last, source_r, counted_RS[rows])
    return Effects(changed * counted_RS, output, counted_RS, row_R)


def mean_added(records: Sequence[Record], part: Part = "layer", keep_first: int = 1) -> Float[Tensor, "L D"]:
    """What every layer, or its attention or MLP, adds on average, over all tokens but the first of every row."""
    names: dict[Part, str] = {"layer": "added", "attention": "attention", "mlp": "mlp"}
    return _mean(records, attrgetter(names[part]), keep_first)


def _mean(
    records: Sequence[Record], of: Callable[[Record], Float[Tensor, "L B S D"]], keep_first: int
) -> Float[Tensor, "L D"]:
    """The mean over all tokens but the first `keep_first` of every row."""
    kept = [(of(record), record.mask_BS & (record.rank_BS() >= keep_first)) for record in records]
    total = torch.stack([(values * free_BS[..., None]).sum((1, 2)) for values, free_BS in kept]).sum(0)
    return (total / sum(int(free_BS.sum()) for _, free_BS in kept)).detach()


@torch.no_grad()
def without(record: Record, layer: int, keep_first: int = 1) -> Float[Tensor, "B S D"]:
    """The last stream of a run with one layer skipped at all tokens but the first `keep_first` of every row."""
    skipped_BS1 = (record.rank_BS() >= keep_first)[..., None]
    return record.on(layer + 1, torch.where(skipped_BS1, record.stream[layer], record.stream[layer + 1]))


def skipping(layer: int, first_B: Int[Tensor, " B"]) -> Edit:
    """An edit that skips a layer at every slot behind this one, for rollouts: latents are made anew by what is left.

    first_B: the slot of every row's first token, or the last that is kept.
    """
    entered: list[Tensor] = []

    def edit(number: int, site: Site, x_BTD: Tensor, slots: range) -> Tensor:
        if number == layer and site == "resid_in":
            entered[:] = [x_BTD]
        if number == layer and site == "resid_out":
            slot_T = torch.arange(slots.start, slots.stop, device=x_BTD.device)
            return torch.where((slot_T > first_B[:, None])[..., None], entered[0], x_BTD)
        return x_BTD

    return edit


def _sweep(record: Record, splits_BN: Tensor | None, keep_first: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a sweep, where they are skipped and where counted."""
    rank_BS, length_B = record.rank_BS(), record.mask_BS.sum(1)
    rows = torch.arange(len(rank_BS), device=rank_BS.device)
    free_BS = record.mask_BS & (rank_BS >= keep_first)
    if splits_BN is None:
        return rows, free_BS, record.mask_BS
    wrong = (splits_BN <= keep_first) | (splits_BN >= length_B[:, None])
    if wrong.any():
        row, place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"split {int(splits_BN[row, place])} of row {row}, which has {int(length_B[row])} tokens: expected "
            f"{keep_first + 1} to {int(length_B[row]) - 1}, so that something is skipped before it and counted from it "
            "on"
        )
    row_R, split_R1 = rows.repeat_interleave(splits_BN.shape[1]), splits_BN.reshape(-1, 1)
    before_RS = rank_BS[row_R] < split_R1
    return row_R, free_BS[row_R] & before_RS, record.mask_BS[row_R] & ~before_RS


def _without(
    record: Record, skipped: int, part: Part, source_R: Tensor, where_RS: Tensor, added_D: Tensor | None
) -> tuple[Tensor, dict[int, Tensor]]:
    """The last stream, and the contribution of every layer from the skipped one on, without it; `added_D` for it."""
    given_D = record.stream.new_zeros(record.stream.shape[-1]) if added_D is None else added_D
    entered: dict[int, Tensor] = {}
    after: dict[int, Tensor] = {}

    def edit(layer: int, site: Site, x: Tensor, slots: range) -> Tensor:
        if site == "resid_in":
            entered[layer] = x
        if layer == skipped and site == {"attention": "attn_add", "mlp": "mlp_add"}.get(part):
            x = torch.where(where_RS[..., None], given_D.to(x), x)
        if site == "resid_out":
            if layer == skipped and part == "layer":
                x = torch.where(where_RS[..., None], entered[layer] + given_D.to(x), x)
            after[layer] = x - entered[layer]
        return x

    return record.on(skipped, record.stream[skipped][source_R], edit, source_R), after


def _relative(clean: Tensor, changed: Tensor) -> Tensor:
    return (clean - changed).norm(dim=-1) / clean.norm(dim=-1).clamp(min=LEAST)


class _Outcome:
    """The next token's probabilities in the clean run, and how far those of other runs are from them."""

    def __init__(self, record: Record, counted_BS: Bool[Tensor, "B S"]):
        self.record = record
        self.clean_NV = self._probabilities(record.stream[-1][counted_BS])
        self.place_BS = counted_BS.flatten().cumsum(0).view_as(counted_BS) - 1

    def moved(
        self, last_RSD: Float[Tensor, "R S D"], row_R: Int[Tensor, " R"], counted_RS: Bool[Tensor, "R S"]
    ) -> Float[Tensor, "R S"]:
        """|y - y'| where it is counted, given the last stream of a run of these rows of the record; 0 elsewhere."""
        found = last_RSD.new_zeros(counted_RS.shape)
        clean_nV = self.clean_NV[self.place_BS[row_R][counted_RS]]
        found[counted_RS] = (clean_nV - self._probabilities(last_RSD[counted_RS])).norm(dim=-1).to(found)
        return found

    def _probabilities(self, last_nD: Tensor) -> Tensor:
        size = max(1, NUMBERS_AT_ONCE // len(self.record.model.table))
        parts = [self.record.logits(last_mD).softmax(-1) for last_mD in last_nD.split(size)]
        return torch.cat(parts) if parts else self.record.logits(last_nD).softmax(-1)


@torch.no_grad()
def local(record: Record, keep_first: int = 1) -> Effects:
    """What every layer reads directly of what an earlier one wrote (sheet 3.4).

    The later layer is given the clean stream less the earlier one's contribution; nothing is propagated. The formula is
    that of the authors' code, which subtracts the contribution; the paper's text agrees, its equation says the stream.
    `output` is what the readout reads directly of it.
    """
    row_R, taken_RS, counted_RS = _sweep(record, None, keep_first)
    clean, outcome, L, (B, S) = record.added, _Outcome(record, counted_RS), record.depth, taken_RS.shape
    taken = clean * taken_RS[..., None]
    changed, output = clean.new_zeros(L, L, B, S), clean.new_zeros(L, B, S)
    for later in range(1, L + 1):
        given = (record.stream[later] - taken[:later]).flatten(0, 1)  # earlier layers one after the other
        row_G, found = row_R.repeat(later), given.new_zeros(given.shape[:2])
        for rows in in_parts(record, len(given)):
            source_r = row_G[rows]
            if later == L:
                found[rows] = outcome.moved(given[rows], source_r, counted_RS[source_r])
            else:
                after = record.on(later, given[rows], rows_R=source_r, stop=later + 1)
                found[rows] = _relative(clean[later][source_r], after - given[rows])
        if later == L:
            output[:] = found.view(L, B, S)
        else:
            changed[:later, later] = found.view(later, B, S)
    return Effects(changed * counted_RS, output, counted_RS, row_R)


def depth_score(effect_L: Float[Tensor, "*shape L"]) -> Float[Tensor, "*shape"]:
    """The mean layer, from 0 to L - 1, weighted by what skipping each does (sheet 3.8; the paper counts from 1).

    NaN where no layer has an effect. A measure that saturates gives (L - 1) / 2, whatever the model does.
    """
    place_L = torch.arange(effect_L.shape[-1], dtype=effect_L.dtype, device=effect_L.device)
    return (place_L * effect_L).sum(-1) / effect_L.sum(-1)


def over_later(contribution: Float[Tensor, "L L2 *shape"]) -> Float[Tensor, "L *shape"]:
    """The mean effect of every layer on those after it; 0 for the last."""
    L = len(contribution)
    later = torch.ones(L, L, dtype=torch.bool, device=contribution.device).triu(1)
    later = later.view(L, L, *[1] * (contribution.ndim - 2))
    return (contribution * later).sum(1) / later.sum(1).clamp(min=1)


# ---------------------------------------------------------------------------------------------------------------------
# Residuals that are erased


def mean_stream(records: Sequence[Record], keep_first: int = 1) -> Float[Tensor, "L1 D"]:
    """The mean residual before every layer and after the last: a vector that says nothing of its token.

    Over all tokens but the first `keep_first` of every row, as the erasure leaves these out.
    """
    return _mean(records, lambda record: record.stream, keep_first)


@torch.no_grad()
def erase(
    record: Record,
    filler: Float[Tensor, "L1 D"] | Float[Tensor, "L1 S D"],
    counted_BS: Bool[Tensor, "B S"],
    keep_first: int = 1,
) -> Float[Tensor, "L1 B S S2"]:
    """|y - y'| at every counted slot if one slot's residual before one layer is replaced (sheet 3.6).

    Args:
        record: of the clean run.
        filler: what replaces it, from `mean_stream`, or slot by slot, where it is to say as much of its place; its
            last row stands in after the last layer.
        counted_BS: slots whose prediction is looked at, such as those that predict the answer.
        keep_first: so many tokens at a row's start are not erased.

    Returns:
        the change in probabilities by layer, row, erased slot and predicting slot; 0 for slots that are not counted or
        not erased. Its largest entry over predicting slots is what the paper calls maximum prediction norm change.
    """
    row_R, free_BS, _ = _sweep(record, None, keep_first)
    B, S = free_BS.shape
    outcome, found = _Outcome(record, counted_BS), record.stream.new_zeros(record.depth + 1, B, S, S)
    row_G, slot_G = row_R.repeat_interleave(S), torch.arange(S, device=row_R.device).repeat(B)
    kept_G = free_BS.flatten().nonzero()[:, 0]
    row_G, slot_G = row_G[kept_G], slot_G[kept_G]
    for layer in range(record.depth + 1):
        for rows in in_parts(record, len(row_G)):
            row_g, slot_g = row_G[rows], slot_G[rows]
            given = record.stream[layer][row_g]
            given[torch.arange(len(row_g)), slot_g] = filler[layer] if filler.ndim == 2 else filler[layer, slot_g]
            last = record.on(layer, given, rows_R=row_g)
            found[layer, row_g, slot_g] = outcome.moved(last, row_g, counted_BS[row_g])
    return found
