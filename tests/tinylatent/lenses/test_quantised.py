"""Rounding to eight bits by its definition, in every linear map and nowhere else; other weights of one function."""

import pytest
import torch
import torch.nn.functional as F
from fakes import random
from families import LAYERED, ROUGHLY, layered
from hypothesis import given
from hypothesis import strategies as st

from tinylatent.lenses.outliers import kurtosis
from tinylatent.lenses.preserving import inject, rotated
from tinylatent.lenses.quantised import quantised, rounded, watched
from tinylatent.lenses.residuals import record_tokens

IDS = torch.tensor([[3, 4, 5, 1], [6, 2, 1, 4]])


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10**6), st.sampled_from(["tensor", "token"]))
def test_rounding_is_a_multiple_within_half_a_step(n, d, seed, scale):
    """Invariant 10."""
    x = (2 * random(n, d, seed=seed)).sinh()
    found = rounded(x, scale)
    largest = x.abs().amax(1, keepdim=True) if scale == "token" else x.abs().max()
    step = largest / 127
    assert ((found - x).abs() <= step / 2 * (1 + 1e-9)).all()
    multiple = found / step
    torch.testing.assert_close(multiple, multiple.round(), rtol=0, atol=1e-9)
    assert multiple.abs().max() <= 127 + 1e-9
    torch.testing.assert_close(rounded(found, scale), found)
    assert torch.equal(rounded(-x, scale), -found)


def test_rounding_by_a_largest_entry_that_was_seen_before():
    x = torch.tensor([[1.0, -0.4, 3.0]])
    assert rounded(x, "tensor", 1.27).tolist() == [pytest.approx([1.0, -0.4, 1.27])]
    torch.testing.assert_close(rounded(x, "tensor", 3.0), rounded(x))
    assert torch.equal(rounded(x, "token", 1.0), rounded(x, "token"))
    assert rounded(torch.zeros(0, 3)).shape == (0, 3)


def test_rounding_nothing_leaves_nothing():
    assert torch.equal(rounded(torch.zeros(2, 3)), torch.zeros(2, 3))
    x = torch.tensor([[0.0, 0.0], [1.0, 0.5]])
    assert torch.equal(rounded(x, "token")[0], torch.zeros(2))


@pytest.fixture(scope="module", params=["decoder", *LAYERED, *ROUGHLY])
def model(request, tiny):
    return tiny() if request.param == "decoder" else layered(request.param)


def logits(model):
    return model.readout(model.forward(model.table.rows(IDS))[0])


@pytest.mark.parametrize("inputs", ["tensor", "token", None])
def test_every_linear_map_is_rounded(model, inputs):
    """Against rounded weights put into the model, and hooks that round what is read where maps are modules."""
    plain = logits(model)
    with quantised(model, inputs):
        found = logits(model)
    assert torch.equal(logits(model), plain)
    assert not torch.allclose(found, plain, atol=1e-6)
    kept = {name: p.clone() for name, p in model.named_parameters()}
    tables = ("embed", "pos_emb", "wte", "wpe", "lm_head")
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and not any(x in name for x in tables)]
    with torch.no_grad():
        for matrix in matrices:
            matrix.copy_(rounded(matrix))
        with quantised(model, inputs, weights=False):
            expected = logits(model)
        if inputs is None:
            assert torch.equal(expected, logits(model)), "nothing is left to round"
        for name, parameter in model.named_parameters():
            parameter.copy_(kept[name])
    rough = found.dtype == torch.float32  # a rounding that falls on the other side is a whole step
    torch.testing.assert_close(found, expected, rtol=1e-5 if rough else 1e-9, atol=1e-5 if rough else 1e-12)


def test_rounding_what_is_read_by_hand(tiny):
    """One attention layer and an MLP, written out."""
    model, x = tiny(norm="none"), random(1, 1, 8)
    block = model.blocks[0]
    with quantised(model, "token"):
        found = block(x)[0]
    read = rounded(x[0, 0])
    value = rounded(block.attention.qkv_proj)[16:] @ read
    stream = x[0, 0] + rounded(block.attention.out_proj) @ rounded(value)
    hidden = F.gelu(rounded(block.mlp.up_proj) @ rounded(stream))
    torch.testing.assert_close(found[0, 0], stream + rounded(block.mlp.down_proj) @ rounded(hidden))


def test_what_linear_maps_read_is_watched(model):
    with watched(model) as seen:
        logits(model)
    known = {name for name, p in model.named_parameters() if p.ndim == 2}
    assert set(seen) <= known
    assert not any("embed" in name or "lm_head" in name or "wte" in name for name in seen)
    assert len(seen) >= 2 * 4
    assert all(stats.tokens == 8 for stats in seen.values())
    assert all(1 <= stats.kurtosis() <= stats.neurons for stats in seen.values())


def test_a_decoder_is_watched_by_the_names_of_its_weights(tiny):
    model = tiny()
    with watched(model) as seen:
        logits(model)
    parts = ["attention.qkv_proj", "attention.out_proj", "mlp.up_proj", "mlp.down_proj"]
    assert [*seen] == [f"blocks.{layer}.{part}" for layer in (0, 1) for part in parts]
    read = model.blocks[0].attn_norm(record_tokens(model, IDS).stream[0])
    assert seen["blocks.0.attention.qkv_proj"].kurtosis() == pytest.approx(kurtosis(read.flatten(0, 1)).item())


@pytest.mark.parametrize("inputs", ["tensor", "token"])
def test_other_rows_and_padding_do_not_matter_once_tensors_are_scaled(model, inputs):
    """Without what was seen before, a tensor's own largest entry depends on all that is in it."""
    ids, mask = torch.tensor([[0, 0, 5, 1], [6, 2, 1, 4]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).bool()
    with watched(model) as seen:
        model.forward(model.table.rows(ids[1:]))
        model.forward(model.table.rows(ids[:1, 2:]))
    with quantised(model, inputs, seen):
        both = model.readout(model.forward(model.table.rows(ids), mask_BS=mask)[0])
        alone = model.readout(model.forward(model.table.rows(ids[:1, 2:]))[0])
    torch.testing.assert_close(both[:1, 2:], alone, rtol=1e-8, atol=1e-9)


def test_experts_are_seen_and_rounded_by_the_whole_of_their_weights(tiny):
    """Every token once, whichever expert it goes to; one that gets none is no error."""
    model = tiny(experts=5)
    with watched(model) as seen:
        logits(model)
    assert seen["blocks.0.mlp.up_proj"].tokens == seen["blocks.0.mlp.down_proj"].tokens == 8
    with quantised(model, "tensor", seen):
        assert logits(model).isfinite().all()


def test_an_error_switches_rounding_off(tiny):
    model = tiny()
    plain = logits(model)
    with pytest.raises(RuntimeError, match="no"), quantised(model):
        raise RuntimeError("no")
    assert torch.equal(logits(model), plain)


def test_an_unknown_rounding_is_told(tiny, unchecked):
    with (
        pytest.raises(ValueError, match="inputs is 'row': expected tensor, token, or None for weights alone"),
        quantised(tiny(), "row"),
    ):
        pass  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Other weights, the same function


@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_an_outlier_put_in_changes_no_logit_and_shows(tiny, part):
    """Invariant 9: kurtosis of what is read grows to the number of neurons, and rounding hurts more and more."""
    model, before, shares, damage = tiny(), logits(tiny()), [], []
    name = {"attention": "blocks.1.attention.qkv_proj", "mlp": "blocks.1.mlp.up_proj"}[part]
    for factor in (1.0, 10.0, 100.0, 1000.0):
        changed = inject(model, 1, part, 3, factor)
        torch.testing.assert_close(logits(changed), before, rtol=1e-9, atol=1e-9)
        with watched(changed) as seen:
            logits(changed)
        shares.append(seen[name].kurtosis())
        with quantised(changed, "tensor", weights=False):
            damage.append((logits(changed) - before).norm().item())
    assert shares == sorted(shares)
    assert shares[-1] > 7.99
    assert damage[:3] == sorted(damage[:3]), "and later all else is rounded away"
    assert damage[3] > 10 * damage[0]
    assert torch.equal(logits(model), before)


def test_a_rotation_changes_no_logit_and_flattens_an_outlier(tiny):
    """The stream of a model with one large channel; the mean over neurons, which norms do not see, stays."""
    model = tiny(seed=4, loops=2)
    with torch.no_grad():
        model.embedding[:, 2] *= 30
    turned = rotated(model, torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits(turned), logits(model), rtol=1e-8, atol=1e-8)
    sharp, flat = (record_tokens(x, IDS) for x in (model, turned))
    assert kurtosis(flat.stream[1].flatten(0, 1)) < 0.7 * kurtosis(sharp.stream[1].flatten(0, 1))
    torch.testing.assert_close(flat.stream.mean(-1), sharp.stream.mean(-1), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(flat.stream.norm(dim=-1), sharp.stream.norm(dim=-1), rtol=1e-8, atol=1e-9)
    other = rotated(model, torch.Generator().manual_seed(1))
    assert not torch.allclose(other.embedding, turned.embedding)


def test_what_cannot_be_preserved_is_told(tiny):
    for kind in ({"norm": "post"}, {"norm": "none"}, {"experts": 2}):
        with pytest.raises(ValueError, match="weights can be moved only where norms stand before attention and MLP"):
            inject(tiny(**kind), 0, "mlp", 0, 2.0)
        with pytest.raises(ValueError, match="expected norm 'pre'"):
            rotated(tiny(**kind), torch.Generator())
    with pytest.raises(ValueError, match="layer 2, channel 0: expected a layer below 2 and a channel below 8"):
        inject(tiny(), 2, "mlp", 0, 2.0)
    with pytest.raises(ValueError, match=r"part 'mlp', factor 0.0: expected attention or mlp, and a positive one"):
        inject(tiny(), 1, "mlp", 0, 0.0)
