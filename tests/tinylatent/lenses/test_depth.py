"""Effects of what is taken away, against one forward a case: one row, one layer, no padding, nothing batched.

The sheets' invariants by number (effective_depth.md, section 10): 1 in test_residuals.py, 2, 3, 5, 6, 7, 9 and 11 here,
the others beside the lens they are about. In float64, on every placement of norms and on families of Hugging Face.
"""

import pytest
import torch
from fakes import random
from families import LAYERED, ROUGHLY, layered
from hypothesis import given
from hypothesis import strategies as st

from tinylatent.lenses import depth
from tinylatent.lenses.depth import (
    depth_score,
    erase,
    local,
    mean_added,
    mean_stream,
    over_later,
    sizes,
    skip,
    skipping,
)
from tinylatent.lenses.residuals import record_tokens
from tinylatent.models.decoder import Decoder, ModelConfig

IDS = torch.tensor([[0, 0, 3, 4, 5, 1], [6, 2, 1, 4, 0, 5], [0, 5, 2, 3, 6, 6]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]], dtype=torch.bool)
SPLITS = torch.tensor([[2, 3], [3, 5], [2, 4]])
KINDS = {
    "pre": {}, "post": {"norm": "post"}, "after": {"norm": "after"}, "protected": {"norm": "protected"},
    "none": {"norm": "none", "mlp": "relu"}, "loops": {"loops": 2}, "experts": {"experts": 2},
}  # fmt: skip
PARTS = ["layer", "attention", "mlp"]


def close(found, wanted):
    rough = found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=2e-3 if rough else 1e-8, atol=1e-4 if rough else 1e-9)


def nothing(found):
    """Whether numbers are 0 up to rounding."""
    return found.abs().max() < (1e-4 if found.dtype == torch.float32 else 1e-9)


@pytest.fixture(scope="module", params=[*KINDS, *LAYERED, *ROUGHLY])
def model(request, tiny):
    return tiny(**KINDS[request.param]) if request.param in KINDS else layered(request.param)


@pytest.fixture(scope="module")
def found(model):
    return record_tokens(model, IDS, MASK)


# ---------------------------------------------------------------------------------------------------------------------
# A second version: whole forwards of one row


def alone(model, row, edit=None):
    """One row by itself: contributions (L, S, D), streams (L + 1, S, D) and probabilities (S, V)."""
    ids_S, seen = IDS[row][MASK[row]], {}

    def look(layer, site, x, slots):
        seen[layer, site] = x if edit is None else edit(layer, site, x, seen)
        return seen[layer, site]

    hidden, _ = model.forward(model.table.rows(ids_S[None]), edit=look)
    L = 1 + max(layer for layer, _ in seen)
    streams = [*(seen[layer, "resid_in"][0] for layer in range(L)), seen[L - 1, "resid_out"][0]]
    ends = [seen[layer, "resid_out"][0] for layer in range(L)]
    added = torch.stack([end - start for start, end in zip(streams[:-1], ends, strict=True)])
    return added, torch.stack(streams), model.readout(hidden)[0].softmax(-1)


def without(layer, part, where_S, filler_D=0.0):
    """An edit that takes a layer or a part of it away at some slots, and adds something in its place."""

    def edit(number, site, x, seen):
        if number != layer:
            return x
        x = x.clone()
        if part == "layer" and site == "resid_out":
            x[0, where_S] = seen[layer, "resid_in"][0, where_S] + filler_D
        if site == {"attention": "attn_add", "mlp": "mlp_add"}.get(part):
            x[0, where_S] = filler_D
        return x

    return edit


def share(clean, changed):
    return (clean - changed).norm(dim=-1) / clean.norm(dim=-1)


# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_skipping_everywhere_is_what_it_is_for_a_row_alone(model, found, part):
    """And so does not depend on other rows or on padding (invariant 11)."""
    effects = skip(found, part)
    assert effects.row_R.tolist() == [0, 1, 2]
    for row in range(3):
        clean, _, likely = alone(model, row)
        where_S = torch.arange(len(likely)) >= 1
        for layer in range(found.depth):
            changed, _, other = alone(model, row, without(layer, part, where_S))
            close(effects.contribution[layer, :, row][:, MASK[row]], share(clean, changed))
            close(effects.output[layer, row][MASK[row]], (likely - other).norm(dim=-1))
    assert not effects.contribution[:, :, ~MASK].any()
    assert not effects.output[:, ~MASK].any()


def test_the_last_stream_without_a_layer_is_that_of_a_row_alone(model, found):
    """Run on from there, and under the edit for rollouts, which takes padding as it comes."""
    first_B = MASK.int().argmax(1)
    for layer in range(found.depth):
        last = depth.without(found, layer)
        edited = record_tokens(model, IDS, MASK, change=skipping(layer, first_B)).stream[-1]
        for row in range(3):
            _, streams, _ = alone(model, row, without(layer, "layer", torch.arange(int(MASK[row].sum())) >= 1))
            close(last[row, MASK[row]], streams[-1].to(last))
            close(edited[row, MASK[row]], streams[-1].to(last))


@pytest.mark.parametrize("part", PARTS)
def test_a_layer_may_add_its_mean_instead_of_nothing(model, found, part):
    """The mean over tokens of all rows but the first of each."""
    filler_LD, added = mean_added([found, found], part), []
    for row in range(3):
        parts = {"layer": found.added, "attention": found.attention, "mlp": found.mlp}[part]
        added.append(parts[:, row, MASK[row]][:, 1:])
    close(filler_LD, torch.cat(added, 1).mean(1))
    effects = skip(found, part, filler_LD=filler_LD)
    for row in range(3):
        clean, _, likely = alone(model, row)
        where_S = torch.arange(len(likely)) >= 1
        for layer in range(found.depth):
            changed, _, other = alone(model, row, without(layer, part, where_S, filler_LD[layer]))
            close(effects.contribution[layer, :, row][:, MASK[row]], share(clean, changed))
            close(effects.output[layer, row][MASK[row]], (likely - other).norm(dim=-1))


@pytest.mark.parametrize("part", PARTS)
def test_effects_on_the_future_are_what_they_are_for_a_row_alone(model, found, part):
    effects = skip(found, part, SPLITS)
    assert effects.row_R.tolist() == [0, 0, 1, 1, 2, 2]
    for index, split in enumerate(SPLITS.flatten().tolist()):
        row = index // 2
        clean, _, likely = alone(model, row)
        slot_S = torch.arange(len(likely))
        late = slot_S >= split
        for layer in range(found.depth):
            changed, _, other = alone(model, row, without(layer, part, (slot_S >= 1) & ~late))
            where = MASK[row].nonzero()[late, 0]
            close(effects.contribution[layer, :, index, where], share(clean, changed)[:, late])
            close(effects.output[layer, index, where], (likely - other).norm(dim=-1)[late])
        assert effects.counted_RS[index].nonzero()[:, 0].tolist() == where.tolist()


def test_structure_of_skipping(found):
    """Invariant 3: nothing before the layer; the layer itself wholly, or on the future not at all."""
    everywhere, future = skip(found), skip(found, splits_BN=SPLITS)
    L = found.depth
    lower = torch.ones(L, L, dtype=torch.bool).tril(-1)
    first_BS = found.rank_BS() == 0
    assert not everywhere.contribution[lower].any()
    assert not future.contribution[lower].any()
    skipped_BS = MASK & ~first_BS
    for layer in range(L):
        own = everywhere.contribution[layer, layer][skipped_BS]
        close(own, torch.ones_like(own))
        assert nothing(future.contribution[layer, layer])
    assert nothing(future.contribution[L - 1])
    assert nothing(future.output[L - 1])
    assert nothing(everywhere.contribution[:, :, first_BS]), "what comes before changes nothing"
    for effects in (everywhere, future):
        assert (effects.output >= 0).all()
        assert (effects.output <= 2**0.5).all()
    assert future.output[:-1].max() > 1e-4


def test_nothing_skipped_changes_nothing(found):
    """Invariant 2, to the last bit in equal batches: the first six tokens are kept, and no row has more."""
    effects = skip(found, keep_first=6)
    assert not effects.contribution.any()
    assert not effects.output.any()


def test_a_layer_that_adds_nothing_is_skipped_without_effect(tiny):
    model = tiny(seed=3)
    with torch.no_grad():
        model.blocks[0].attention.out_proj.zero_()
        model.blocks[0].mlp.down_proj.zero_()
    effects = skip(record_tokens(model, IDS, MASK))
    assert not effects.output[0].any()
    assert not effects.contribution[0, 1:].any()
    assert effects.output[1].any()


# ---------------------------------------------------------------------------------------------------------------------


def test_local_effects_are_those_of_one_layer_on_the_clean_stream(model, found):
    effects = local(found)
    L = found.depth
    for row in range(3):
        clean, streams, likely = alone(model, row)
        later_S = torch.arange(len(likely)) >= 1
        for layer in range(L):
            for later in range(layer + 1, L):
                less = streams[later] - clean[layer] * later_S[:, None]

                def given(number, site, x, seen, later=later, less=less):
                    return less[None] if (number, site) == (later, "resid_in") else x

                changed, *_ = alone(model, row, given)
                close(effects.contribution[layer, later, row][MASK[row]], share(clean[later], changed[later]))
            last = streams[L] - clean[layer] * later_S[:, None]
            other = model.readout(model.finish(last[None]))[0].softmax(-1)
            close(effects.output[layer, row][MASK[row]], (likely - other).norm(dim=-1))
    assert not effects.contribution[torch.ones(L, L, dtype=torch.bool).tril()].any()


def test_the_next_layer_reads_directly_all_that_it_reads(found):
    """Invariant 6: one layer on, what is propagated and what is local are the same."""
    direct, propagated = local(found), skip(found)
    for layer in range(found.depth - 1):
        close(direct.contribution[layer, layer + 1], propagated.contribution[layer, layer + 1])


# ---------------------------------------------------------------------------------------------------------------------


def test_erasing_is_what_it_is_for_a_row_alone(model, found):
    filler = random(found.depth + 1, found.stream.shape[-1]).to(found.stream)
    counted_BS = MASK & (found.rank_BS() >= 2)
    effects = erase(found, filler, counted_BS)
    for row in range(3):
        _, streams, likely = alone(model, row)
        slots, counted_S = MASK[row].nonzero()[:, 0], counted_BS[row][MASK[row]]
        for layer in range(found.depth + 1):
            for slot in range(1, len(slots)):
                changed = streams[layer].clone()
                changed[slot] = filler[layer]
                if layer == found.depth:
                    other = model.readout(model.finish(changed[None]))[0].softmax(-1)
                else:

                    def given(number, site, x, seen, layer=layer, changed=changed):
                        return changed[None] if (number, site) == (layer, "resid_in") else x

                    other = alone(model, row, given)[2]
                wanted = (likely - other).norm(dim=-1) * counted_S
                close(effects[layer, row, slots[slot], MASK[row]], wanted)
        assert not effects[:, row, slots[0]].any(), "the first token is kept"
        assert not effects[:, row, ~MASK[row]].any()


def test_a_slot_may_be_replaced_by_the_mean_of_its_own(found):
    """What stands at a slot in every row is no loss there."""
    by_slot = found.stream.mean(1)
    effects = erase(found, by_slot, MASK)
    for slot in (3, 5):
        whole = erase(found, by_slot[:, slot], MASK)
        close(effects[:, :, slot], whole[:, :, slot])
    assert effects.max() > 1e-3


def test_structure_of_erasing(found):
    """Invariant 7: a slot put in its own place, slots after the last prediction, and the last stream."""
    counted_BS = torch.zeros_like(MASK)
    counted_BS[:, 4] = True
    filler = mean_stream([found])
    effects = erase(found, filler, counted_BS)
    assert nothing(effects[:, :, 5])
    assert not effects[..., :4].any()
    assert not effects[..., 5].any()
    last = effects[-1].clone()
    last[:, 4, 4] = 0
    assert nothing(last)
    assert effects[-1, :, 4, 4].min() > 1e-6
    only = record_tokens(found.model, IDS[:1], MASK[:1])
    own = erase(only, only.stream[:, 0, 3], torch.ones_like(MASK[:1]))
    assert nothing(own[:, 0, 3])
    assert own[:, 0, 4].max() > 1e-6


def test_the_mean_stream_leaves_first_tokens_and_padding_out(found):
    one, two = (record_tokens(found.model, IDS[rows], MASK[rows]) for rows in (slice(0, 1), slice(1, 3)))
    wanted = torch.stack(
        [found.stream[layer][MASK & (found.rank_BS() >= 1)].mean(0) for layer in range(found.depth + 1)]
    )
    close(mean_stream([found]), wanted)
    close(mean_stream([one, two]), wanted)
    every = torch.stack([found.stream[layer][MASK].mean(0) for layer in range(found.depth + 1)])
    close(mean_stream([found], keep_first=0), every)


# ---------------------------------------------------------------------------------------------------------------------


def test_sizes_are_their_formulas(model, found):
    measured = sizes(found)
    for row in range(3):
        for slot in MASK[row].nonzero()[:, 0].tolist():
            for layer in range(found.depth):
                h, a, m, out = (
                    x[row, slot].tolist()
                    for x in (found.stream[layer], found.attention[layer], found.mlp[layer], found.stream[layer + 1])
                )
                middle = h if model.parallel else [x + y for x, y in zip(h, a, strict=True)]
                both = [y - x for x, y in zip(h, out, strict=True)]

                def dot(x, y):
                    return sum(p * q for p, q in zip(x, y, strict=True))

                def length(x):
                    return dot(x, x) ** 0.5

                at, near = (
                    (layer, row, slot),
                    {"rel": 1e-4, "abs": 1e-5} if measured.residual.dtype == torch.float32 else {},
                )
                assert measured.residual[at].item() == pytest.approx(length(h), **near)
                assert measured.attention[at].item() == pytest.approx(length(a), **near)
                assert measured.mlp[at].item() == pytest.approx(length(m), **near)
                for name, x, y in (("attention", a, h), ("mlp", m, middle), ("layer", both, h)):
                    if name == "mlp" and not model.sums:
                        assert measured.relative_mlp[at].isnan()
                        assert measured.cosine_mlp[at].isnan()
                        continue
                    ratio, cosine = getattr(measured, f"relative_{name}"), getattr(measured, f"cosine_{name}")
                    assert ratio[at].item() == pytest.approx(length(x) / length(y), **near)
                    assert cosine[at].item() == pytest.approx(dot(x, y) / length(x) / length(y), **near)
                assert measured.cosine_neighbours[at].item() == pytest.approx(
                    dot(h, out) / length(h) / length(out), **near
                )
    assert measured.residual.shape == (found.depth + 1, 3, 6)


def test_bounds_of_sizes(model, found):
    """Invariant 5: a layer adds at most what its parts do, and scale does not matter."""
    measured = sizes(found)
    mlp_too = ("mlp",) if model.sums else ()
    for name in ("attention", *mlp_too, "layer", "neighbours"):
        assert getattr(measured, f"cosine_{name}").abs().max() <= 1 + 1e-6
    assert model.sums == (found.gap() < 1e-5)
    if model.sums:
        mlp = measured.relative_mlp * (1 if model.parallel else 1 + measured.relative_attention)
        assert (measured.relative_layer <= measured.relative_attention + mlp + 1e-5)[:, MASK].all()
    scaled = type(found)(
        found.model, 7 * found.stream, 7 * found.attention, 7 * found.mlp, found.mask_BS, found.positions_BS
    )
    for name in ("relative_attention", "relative_layer", "cosine_attention", *(f"relative_{x}" for x in mlp_too)):
        close(getattr(sizes(scaled), name)[:, MASK], getattr(measured, name)[:, MASK])


# ---------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=9), st.floats(0.1, 10))
def test_a_depth_score_is_a_mean_layer(effects, factor):
    """Invariant 9."""
    effect_L = torch.tensor(effects, dtype=torch.float64)
    score = depth_score(effect_L).item()
    L = len(effects)
    assert score == pytest.approx(sum(s * e for s, e in enumerate(effects)) / sum(effects))
    assert -1e-9 <= score <= L - 1 + 1e-9
    assert depth_score(factor * effect_L).item() == pytest.approx(score)
    for layer in range(L):
        assert depth_score(torch.nn.functional.one_hot(torch.tensor(layer), L).double()).item() == layer
    assert depth_score(torch.ones(L)).item() == pytest.approx((L - 1) / 2)


def test_a_depth_score_of_no_effect_is_no_number():
    scores = depth_score(torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
    assert scores[0].isnan()
    assert scores[1] == 1


def test_the_mean_over_later_layers_is_of_those_alone():
    table = torch.tensor([[9.0, 2.0, 4.0], [9.0, 9.0, 5.0], [9.0, 9.0, 9.0]])
    assert over_later(table).tolist() == [3.0, 5.0, 0.0]
    assert over_later(table[..., None, None].expand(3, 3, 2, 4))[0, 1, 2] == 3


# ---------------------------------------------------------------------------------------------------------------------


def test_sweeps_cut_into_parts_are_the_same(monkeypatch, tiny):
    found = record_tokens(tiny(), IDS, MASK)
    filler = mean_stream([found])
    whole = [skip(found, splits_BN=SPLITS), local(found)], erase(found, filler, MASK)
    monkeypatch.setattr("tinylatent.lenses.residuals.NUMBERS_AT_ONCE", 6 * 64 * 2)
    parts = [skip(found, splits_BN=SPLITS), local(found)], erase(found, filler, MASK)
    for a, b in zip(whole[0], parts[0], strict=True):
        close(a.contribution, b.contribution)
        close(a.output, b.output)
    close(whole[1], parts[1])


def test_what_cannot_be_swept_is_told(tiny):
    found = record_tokens(tiny(), IDS, MASK)
    with pytest.raises(ValueError, match="split 4 of row 0, which has 4 tokens: expected 2 to 3, so that something"):
        skip(found, splits_BN=torch.tensor([[3, 4], [2, 3], [2, 3]]))
    with pytest.raises(ValueError, match="split 1 of row 1, which has 6 tokens: expected 2 to 5"):
        skip(found, splits_BN=torch.tensor([[3], [1], [2]]))


def test_an_unknown_part_is_told(tiny, unchecked):
    with pytest.raises(ValueError, match="part is 'head': expected one of layer, attention, mlp"):
        skip(record_tokens(tiny(), IDS), "head")


def test_measuring_keeps_no_graph():
    model = Decoder.fresh(7, 9, ModelConfig(8, 2, 2))
    found = record_tokens(model, IDS)
    assert found.stream.requires_grad
    assert not skip(found).output.requires_grad
    assert not sizes(found).mlp.requires_grad
    assert not erase(found, mean_stream([found]), MASK).requires_grad
