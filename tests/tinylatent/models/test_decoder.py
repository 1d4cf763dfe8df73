"""The decoder equals its formula, whatever shortcut it takes.

The reference (`naive_hidden`) works on one row without padding, cache or mask. Against it, in float64, in
values and gradients: plain forwards, forwards over a cache, left padding, holes, explicit positions, packed attention,
slots that nobody reads. Then what the Backbone protocol promises: edits at four sites, forks, causality, weights that
come from the generator. Blocks other than the default ones are in test_blocks.
"""

import pytest
import torch
from fakes import random
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import assert_same_function, naive_hidden

from tinylatent.models import blocks
from tinylatent.models.backbone import SITES, Backbone
from tinylatent.models.decoder import Decoder, ModelConfig

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64


# The formula


def test_it_is_a_backbone(model):
    assert isinstance(model, Backbone)


def test_plain_forward_is_the_formula(model):
    x_BTD = random(3, 5, 8).requires_grad_()
    hidden_BTD, cache = model.forward(x_BTD)
    expected_BTD = torch.stack([naive_hidden(model, x_TD, range(5)) for x_TD in x_BTD])
    assert_same_function(model, hidden_BTD, expected_BTD, x_BTD)
    assert (cache.size, len(cache.layers)) == (5, 2)
    assert cache.layers[0][0].shape == (3, 2, 5, 4)


@settings(max_examples=20)
@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=4), masked=st.booleans())
def test_forward_over_a_cache_is_the_formula(model, cuts, masked):
    """In pieces of any size; with a mask, the second row has two slots of padding."""
    S = sum(cuts) + 2
    x_BSD = random(2, S, 8).requires_grad_()
    mask_BS = torch.ones(2, S, dtype=torch.bool)
    mask_BS[1, :2] = not masked
    cache, parts, start = None, [], 0
    for stop in [2, *(2 + sum(cuts[: i + 1]) for i in range(len(cuts)))]:
        hidden, cache = model.forward(x_BSD[:, start:stop], cache, mask_BS[:, :stop] if masked else None)
        parts.append(hidden)
        start = stop
    first = 2 if masked else 0
    got = torch.cat([torch.cat(parts, 1)[0], torch.cat(parts, 1)[1, first:]])
    expected = torch.cat(
        [naive_hidden(model, x_BSD[0], range(S)), naive_hidden(model, x_BSD[1, first:], range(S - first))]
    )
    assert_same_function(model, got, expected, x_BSD)


@settings(max_examples=20)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_left_padding_changes_nothing(model, lengths, seed):
    N = max(lengths)
    x_BND = random(len(lengths), N, 8, seed=seed).requires_grad_()
    mask_BN = torch.arange(N) >= N - torch.tensor(lengths)[:, None]
    hidden_BND, _ = model.forward(x_BND, mask_BS=mask_BN)
    assert hidden_BND.isfinite().all()
    expected = [naive_hidden(model, x_ND[N - n :], range(n)) for x_ND, n in zip(x_BND, lengths, strict=True)]
    assert_same_function(model, hidden_BND[mask_BN], torch.cat(expected), x_BND)


def test_a_hole_in_the_mask_is_a_slot_that_is_not_there(model):
    x_BSD, keep = random(2, 6, 8), [0, 1, 3, 5]
    mask_BS = torch.zeros(2, 6, dtype=torch.bool)
    mask_BS[:, keep] = True
    hidden_BSD, _ = model.forward(x_BSD, mask_BS=mask_BS)
    for x_SD, hidden_SD in zip(x_BSD, hidden_BSD, strict=True):
        torch.testing.assert_close(hidden_SD[keep], naive_hidden(model, x_SD[keep], range(4)), **EXACT)


def test_a_masked_slot_sees_itself(model):
    """Padding before a prompt, which sees nothing else, is a sequence of its own: finite, and never used."""
    x_BSD = random(1, 4, 8)
    hidden_BSD, _ = model.forward(x_BSD, mask_BS=torch.tensor([[False, False, True, True]]))
    for s in (0, 1):
        torch.testing.assert_close(hidden_BSD[0, s], naive_hidden(model, x_BSD[0, s : s + 1], [0])[0], **EXACT)


def test_explicit_positions_are_used(model):
    x_BTD, positions_BT = random(2, 4, 8), torch.tensor([[5, 6, 7, 8], [0, 9, 3, 3]])
    hidden_BTD, _ = model.forward(x_BTD, positions_BT=positions_BT)
    for x_TD, positions_T, hidden_TD in zip(x_BTD, positions_BT, hidden_BTD, strict=True):
        torch.testing.assert_close(hidden_TD, naive_hidden(model, x_TD, positions_T), **EXACT)


def test_a_cache_is_a_value(model):
    """Two continuations of one cache do not disturb each other."""
    _, cache = model.forward(random(2, 3, 8))
    kept = [tensor.clone() for pair in cache.layers for tensor in pair]
    first, _ = model.forward(random(2, 2, 8, seed=1), cache)
    model.forward(random(2, 2, 8, seed=2), cache)
    again, _ = model.forward(random(2, 2, 8, seed=1), cache)
    assert torch.equal(first, again)
    assert all(torch.equal(old, new) for old, new in zip(kept, (t for pair in cache.layers for t in pair), strict=True))


def test_embed_and_readout_share_the_matrix(model):
    ids = torch.tensor([[0, 3], [6, 3]])
    hidden = random(2, 3, 8)
    assert torch.equal(model.table.rows(ids), model.embedding[ids])
    torch.testing.assert_close(model.readout(hidden), torch.einsum("btd,vd->btv", hidden, model.embedding))
    assert model.table.weight is model.embedding
    assert (len(model.table), model.table.width) == (7, 8) == (model.table.weight.shape[0], model.width)


@pytest.mark.parametrize("positions_BT", [None, [[3, 4, 6]], [[0, 1, 2], [9, 6, 0]], [[-1, 0, 1]]])
def test_a_sequence_too_long_is_told_however_its_positions_come_about(tiny, positions_BT):
    """By their number, by a mask that leaves too many, by offsets; what fits is served, whatever is masked."""
    said = "but the model has 6 positions, 0 to 5: give its task a larger capacity, or take fewer steps"
    model = tiny(positions=6)
    assert model.positions == 6
    x_BTD, mask_BS = random(2, 5, 8), torch.ones(2, 8, dtype=torch.bool)
    _, cache = model.forward(x_BTD)
    if positions_BT is None:
        with pytest.raises(ValueError, match=f"position 7, {said}"):
            model.forward(x_BTD[:, :3], cache)
        with pytest.raises(ValueError, match=f"position 7, {said}"):
            model.forward(x_BTD[:, :3], cache, mask_BS)
        mask_BS[:, :2] = False
        assert model.forward(x_BTD[:, :3], cache, mask_BS)[0].isfinite().all()
        return
    for mask in (None, mask_BS):
        with pytest.raises(ValueError, match=f"position (6|9|-1), {said}"):
            model.forward(x_BTD[:, :3], cache, mask, torch.tensor(positions_BT))
        below_BT = torch.tensor(positions_BT).clamp(0, 5)
        assert model.forward(x_BTD[:, :3], cache, mask, below_BT)[0].isfinite().all()


# Slots that nobody reads


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("past", [0, 1, 3])
def test_reading_from_a_slot_on_is_reading_all_and_leaving_some_out(model, past, masked):
    """From every slot; with a mask, the second row has a slot of padding and a hole. The cache holds all."""
    x_BSD, keep = random(2, 6, 8).requires_grad_(), [1, 2, 4, 5]
    mask_BS = torch.ones(2, 6, dtype=torch.bool)
    if masked:
        mask_BS[1] = torch.tensor([s in keep for s in range(6)])
    cache = model.forward(x_BSD[:, :past], None, mask_BS[:, :past] if masked else None)[1] if past else None
    rows = [
        naive_hidden(model, x_SD[mask_S], range(int(mask_S.sum()))) for x_SD, mask_S in zip(x_BSD, mask_BS, strict=True)
    ]
    expected_BSD = torch.zeros(2, 6, 8).double().masked_scatter(mask_BS[..., None], torch.cat(rows))
    for read_from in range(6 - past):
        got_BRD, grown = model.forward(x_BSD[:, past:], cache, mask_BS if masked else None, read_from=read_from)
        assert got_BRD.shape == (2, 6 - past - read_from, 8)
        read_BR = mask_BS[:, past + read_from :]
        assert_same_function(model, got_BRD[read_BR], expected_BSD[:, past + read_from :][read_BR], x_BSD)
        assert (grown.size, grown.layers[1][0].shape) == (6, (2, 2, 6, 4))


@pytest.mark.parametrize("masked", [False, True])
def test_a_cache_of_slots_that_nobody_read_goes_on_as_any_other(model, masked):
    """Even if none was read."""
    x_BTD, mask_BS = random(3, 6, 8), torch.tensor([[True] * 6, [False] + [True] * 5, [False] * 2 + [True] * 4])
    masks = (mask_BS[:, :4], mask_BS) if masked else (None, None)
    whole_BTD, _ = model.forward(x_BTD, mask_BS=masks[1])
    for read_from in range(5):
        read_BRD, cache = model.forward(x_BTD[:, :4], mask_BS=masks[0], read_from=read_from)
        assert read_BRD.shape == (3, 4 - read_from, 8)
        torch.testing.assert_close(model.forward(x_BTD[:, 4:], cache, masks[1])[0], whole_BTD[:, 4:], **EXACT)


def test_an_edit_sees_all_slots_whatever_is_read(model):
    x_BTD, seen = random(2, 5, 8), []

    def edit(layer, site, x, slots):
        seen.append(x.shape)
        return x + (site == "attn_add")

    got_BRD, _ = model.forward(x_BTD, edit=edit, read_from=3)
    assert torch.equal(got_BRD, model.forward(x_BTD, edit=edit)[0][:, 3:])
    assert set(seen) == {x_BTD.shape}


def test_packed_attention_of_slots_that_are_read(model):
    """64 rows of 6 slots pack in threes; the last layer has fewer queries than keys and does not."""
    x_BTD = random(66, 6, 8)
    whole_BTD, _ = model.forward(x_BTD)
    for read_from in range(6):
        torch.testing.assert_close(model.forward(x_BTD, read_from=read_from)[0], whole_BTD[:, read_from:], **EXACT)


# Packed attention


@pytest.fixture
def packs(monkeypatch):
    """How many rows were packed together, for each time packing was used."""
    seen, real = [], blocks.attend_packed
    monkeypatch.setattr(blocks, "attend_packed", lambda q, k, v, pack: seen.append(pack) or real(q, k, v, pack))
    return seen


@pytest.mark.parametrize(("B", "T"), [(64, 2), (64, 8), (66, 6), (64, 15)])
def test_packed_attention_is_plain_attention(model, packs, B, T):
    x_BTD = random(B, T, 8).requires_grad_()
    packed_BTD, _ = model.forward(x_BTD)
    assert packs == [-(-16 // T)] * 2
    plain_BTD = torch.cat([model.forward(rows)[0] for rows in x_BTD.split(1)])
    assert len(packs) == 2
    assert_same_function(model, packed_BTD, plain_BTD, x_BTD)


def test_packed_attention_is_the_formula(model, packs):
    x_BTD = random(64, 7 + 1, 8)
    hidden_BTD, _ = model.forward(x_BTD)
    assert packs
    for b in (0, 1, 63):
        torch.testing.assert_close(hidden_BTD[b], naive_hidden(model, x_BTD[b], range(8)), **EXACT)


def test_packing_is_not_used_where_it_would_be_wrong(model, packs):
    x_BTD = random(65, 8, 8)
    model.forward(x_BTD)  # rows do not pack evenly
    model.forward(x_BTD[:62])  # few rows
    model.forward(x_BTD[:64], mask_BS=torch.ones(64, 8, dtype=torch.bool))
    model.forward(x_BTD[:64, :1])
    assert packs == []
    _, cache = model.forward(x_BTD[:64, :4])
    packs.clear()
    model.forward(x_BTD[:64, 4:], cache)
    model.forward(x_BTD[:64, 4:5], cache)
    assert packs == []


# Edits


def test_edits_see_every_site_in_order_and_an_identity_changes_nothing(model):
    x_BTD, seen = random(2, 3, 8), []

    def look(layer, site, tensor_BTD, slots):
        seen.append((layer, site))
        assert tensor_BTD.shape == x_BTD.shape
        return tensor_BTD

    assert torch.equal(model.forward(x_BTD, edit=look)[0], model.forward(x_BTD)[0])
    assert seen == [(layer, site) for layer in range(2) for site in SITES]


def test_edits_are_told_where_their_slots_stand(model):
    """Within the whole sequence: after the cache's."""
    x_BSD, seen = random(2, 6, 8), []

    def push(layer, site, x_BTD, slots):
        seen.append(slots)
        return x_BTD + 5.0 * torch.tensor([slot == 4 for slot in slots])[:, None]

    whole_BSD, _ = model.forward(x_BSD, edit=push)
    assert seen == [range(6)] * 8
    seen.clear()
    first_BTD, cache = model.forward(x_BSD[:, :2], edit=push)
    second_BTD, cache = model.forward(x_BSD[:, 2:5], cache, edit=push)
    third_BTD, _ = model.forward(x_BSD[:, 5:], cache, edit=push)
    assert seen == [range(0, 2)] * 8 + [range(2, 5)] * 8 + [range(5, 6)] * 8
    torch.testing.assert_close(torch.cat([first_BTD, second_BTD, third_BTD], 1), whole_BSD, **EXACT)
    assert torch.equal(whole_BSD[:, :4], model.forward(x_BSD)[0][:, :4])


def test_what_edits_see_adds_up(model):
    """resid_in + attn_add + mlp_add = resid_out = the next layer's resid_in; the last one, normed, is the output."""
    x_BTD, seen = random(2, 3, 8), {}
    hidden_BTD, _ = model.forward(x_BTD, edit=lambda layer, site, x, slots: seen.setdefault((layer, site), x))
    torch.testing.assert_close(seen[0, "resid_in"], x_BTD + model.pos_emb[:3], **EXACT)
    for layer in range(2):
        total = sum(seen[layer, site] for site in ("resid_in", "attn_add", "mlp_add"))
        torch.testing.assert_close(seen[layer, "resid_out"], total, **EXACT)
    assert torch.equal(seen[0, "resid_out"], seen[1, "resid_in"])
    assert torch.equal(model.norm(seen[1, "resid_out"]), hidden_BTD)


def test_without_additions_the_embedding_stream_is_left(model):
    x_BTD = random(2, 3, 8)
    hidden_BTD, _ = model.forward(x_BTD, edit=lambda layer, site, x, slots: x * 0 if site.endswith("_add") else x)
    torch.testing.assert_close(hidden_BTD, model.norm(x_BTD + model.pos_emb[:3]), **EXACT)


@pytest.mark.parametrize("site", SITES)
def test_an_edit_at_each_site_reaches_the_output(model, site):
    x_BTD = random(2, 3, 8)
    push_D = random(8, seed=3)
    for layer in range(2):
        edited_BTD, _ = model.forward(
            x_BTD, edit=lambda n, s, x, _, at=(layer, site): x + push_D if (n, s) == at else x
        )
        assert not torch.allclose(edited_BTD, model.forward(x_BTD)[0], atol=1e-3)


def test_replacing_the_stream_replaces_the_output(model):
    """resid_out of the last layer decides alone, and resid_in of the first forgets the input."""
    new_BTD, x_BTD = random(2, 3, 8, seed=5), random(2, 3, 8)
    last, _ = model.forward(x_BTD, edit=lambda n, s, x, _: new_BTD if (n, s) == (1, "resid_out") else x)
    assert torch.equal(last, model.norm(new_BTD))
    first, _ = model.forward(x_BTD, edit=lambda n, s, x, _: new_BTD if (n, s) == (0, "resid_in") else x)
    torch.testing.assert_close(first, model.forward(new_BTD - model.pos_emb[:3])[0], **EXACT)


# Forks, causality, initial weights


def test_a_fork_repeats_rows_in_place(model):
    prompt_BND, x_BTD = random(2, 3, 8), random(6, 2, 8, seed=1)
    forked = model.forward(prompt_BND)[1].fork(3)
    expected, _ = model.forward(torch.cat([prompt_BND[[0, 0, 0, 1, 1, 1]], x_BTD], 1))
    torch.testing.assert_close(model.forward(x_BTD, forked)[0], expected[:, 3:], **EXACT)


@given(t=st.integers(0, 5), masked=st.booleans(), many=st.booleans())
def test_a_later_input_does_not_change_an_earlier_hidden_state(model, t, masked, many):
    """To the last bit, for plain, masked and packed attention."""
    B = 66 if many else 3  # six slots pack in threes
    x_BTD = random(B, 6, 8)
    mask_BT = None
    if masked:
        mask_BT = torch.ones(B, 6, dtype=torch.bool)
        mask_BT[0, 0] = False
    changed_BTD = x_BTD.clone()
    changed_BTD[:, t] += random(8, seed=1)  # not a constant: the norm would remove it
    before, after = (model.forward(x, mask_BS=mask_BT)[0] for x in (x_BTD, changed_BTD))
    assert torch.equal(before[:, :t], after[:, :t])
    assert not torch.isclose(before[1:, t:], after[1:, t:]).all(-1).any()


@pytest.mark.parametrize("kind", [{}, {"experts": 3}, {"mlp": "swiglu", "loops": 2, "norm": "post"}])
def test_initial_weights_come_from_the_generator_alone(kind):
    def weights(seed):
        return Decoder.fresh(11, 5, ModelConfig(**kind), torch.Generator().manual_seed(seed)).state_dict()

    torch.manual_seed(0)
    first = weights(3)
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    again, other = weights(3), weights(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(
        torch.equal(first[name], other[name]) for name in first if first[name].ndim > 1 and "bias" not in name
    )
    torch.manual_seed(0)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("loops", [1, 3])
def test_initial_scale_is_that_of_gpt2(loops):
    """Standard deviations 0.02, and 0.02 / sqrt(2 L) into the residual stream, L layers counted as often as they run.

    Each matrix has 4096 weights or more. A sample deviation of 4096 normals is off by 6 % with probability below 1e-7:
    five and a half standard errors.
    """
    model = Decoder.fresh(64, 64, ModelConfig(width=64, layers=3, heads=4, loops=loops))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones_like(parameter))
        else:
            std = 0.02 / (6 * loops) ** 0.5 if name.endswith(("out_proj", "down_proj")) else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.06), name


@pytest.mark.parametrize("sizes", [(0, 2, 2), (32, 0, 2), (32, 2, 0), (30, 2, 4), (-8, 2, 2)])
def test_impossible_sizes_are_rejected(sizes):
    with pytest.raises(ValueError, match=rf"width {sizes[0]}, layers {sizes[1]}.*multiple of heads; try width \d+"):
        ModelConfig(*sizes)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"norm": "rms"}, "norm 'rms': expected one of pre, post, after, protected, none"),
        ({"mlp": "elu"}, "mlp 'elu': expected one of gelu, relu, swiglu"),
        ({"loops": 0}, "loops 0, experts 1: expected 1 to 64 and 1 to 64"),
        ({"loops": 65}, "loops 65"),
        ({"experts": 65}, "experts 65"),
        ({"experts": 2, "mlp": "swiglu"}, "mlp 'swiglu' with experts 2: experts are ReLU MLPs; leave mlp out"),
        ({"dropout": 1.0}, r"dropout 1.0: expected a share in \[0, 1\); try 0.1"),
        ({"dropout": -0.1}, "dropout -0.1"),
        ({"layers": 300}, "layers 300: expected at most 8192 and 256"),
    ],
)
def test_impossible_kinds_are_rejected(unchecked, kind, words):
    with pytest.raises(ValueError, match=words):
        ModelConfig(**kind)
