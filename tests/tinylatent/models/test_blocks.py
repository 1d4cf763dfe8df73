"""Every kind of block is its formula, trained or made by hand; dropout drops where it is told to, and nowhere else.

Blocks that a ModelConfig names are held against `naive_hidden`; heads of any width and unweighted experts,
of which constructions by hand are made, against a second version here, slot by slot. In float64, values and gradients.
"""

import math
import re
from itertools import pairwise

import pytest
import torch
from fakes import random
from naive import assert_same_function, gradients, naive_hidden, score

from tinylatent.models.backbone import SITES
from tinylatent.models.blocks import MLP, Attention, Block, Dropout, Experts, Head, Heads, Norm, Unit
from tinylatent.models.decoder import Decoder, ModelConfig

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64


def generator(seed):
    return torch.Generator().manual_seed(seed)


# Every kind of block

KINDS = {
    "post": {"norm": "post"},
    "none": {"norm": "none"},
    "after": {"norm": "after"},
    "protected": {"norm": "protected"},
    "relu": {"mlp": "relu"},
    "swiglu": {"mlp": "swiglu"},
    "experts": {"experts": 3},
    "loops": {"loops": 3},
    "post, swiglu, loops": {"norm": "post", "mlp": "swiglu", "loops": 2},
    "none, experts, loops": {"norm": "none", "experts": 2, "loops": 2},
    "protected, swiglu, loops": {"norm": "protected", "mlp": "swiglu", "loops": 2},
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def by_formula(model, x_SD, kind):
    return naive_hidden(model, x_SD, range(len(x_SD)), **{k: v for k, v in kind.items() if k != "experts"})


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("past", [0, 2])
def test_every_kind_is_its_formula_whatever_is_read(tiny, kind, past, masked):
    """From every slot, with and without a cache; with a mask, the second row has a slot of padding."""
    model, x_BSD, first = tiny(**kind), random(2, 5, 8).requires_grad_(), int(masked)
    mask_BS = torch.tensor([[True] * 5, [not masked] + [True] * 4]) if masked else None
    cache = model.forward(x_BSD[:, :past], None, mask_BS[:, :past] if masked else None)[1] if past else None
    rows = by_formula(model, x_BSD[0], kind), by_formula(model, x_BSD[1, first:], kind)
    for read_from in range(5 - past):
        got_BRD, grown = model.forward(x_BSD[:, past:], cache, mask_BS, read_from=read_from)
        read = past + read_from
        got = torch.cat([got_BRD[0], got_BRD[1, max(first - read, 0) :]])
        assert_same_function(model, got, torch.cat([rows[0][read:], rows[1][max(read - first, 0) :]]), x_BSD)
        assert len(grown.layers) == 2 * kind.get("loops", 1)
    assert any("router" in name for name, _ in model.named_parameters()) == ("experts" in kind)


def test_every_kind_is_its_formula_over_a_cache_and_with_padding(tiny, kind):
    """Slot by slot after a prompt, rows forked in between, the first row with two slots of padding."""
    model, x_BSD = tiny(**kind), random(2, 6, 8).requires_grad_()
    mask_BS = torch.tensor([[False] * 2 + [True] * 4, [True] * 6])
    expected = torch.cat([by_formula(model, x_SD[m], kind) for x_SD, m in zip(x_BSD, mask_BS, strict=True)])
    hidden_B3D, cache = model.forward(x_BSD[:, :3], mask_BS=mask_BS[:, :3])
    parts, cache, mask_RS = [hidden_B3D.repeat_interleave(2, 0)], cache.fork(2), mask_BS.repeat_interleave(2, 0)
    for s in (3, 4, 5):
        hidden_R1D, cache = model.forward(x_BSD[:, s : s + 1].repeat_interleave(2, 0), cache, mask_RS[:, : s + 1])
        parts.append(hidden_R1D)
    for fork in (0, 1):
        assert_same_function(model, torch.cat(parts, 1)[fork::2][mask_BS], expected, x_BSD)


def test_edits_of_a_looped_stack_count_its_layers_on(tiny):
    model, x_BTD, seen = tiny(loops=3), random(2, 3, 8), {}
    hidden_BTD, _ = model.forward(x_BTD, edit=lambda layer, site, x, slots: seen.setdefault((layer, site), x))
    assert [*seen] == [(layer, site) for layer in range(6) for site in SITES]
    for layer in range(5):
        assert torch.equal(seen[layer, "resid_out"], seen[layer + 1, "resid_in"])
    torch.testing.assert_close(model.norm(seen[5, "resid_out"]), hidden_BTD)
    assert not torch.allclose(seen[0, "attn_add"], seen[2, "attn_add"])


def test_a_loop_of_one_block_is_that_block_as_often():
    """Tied by hand: a stack of four layers that hold the same weights."""
    once = Decoder.fresh(7, 9, ModelConfig(8, 1, 2, loops=4), torch.Generator().manual_seed(1)).double()
    stacked = Decoder.fresh(7, 9, ModelConfig(8, 4, 2)).double()
    weights = once.state_dict()
    stacked.load_state_dict({name: weights[re.sub(r"blocks\.\d", "blocks.0", name)] for name in stacked.state_dict()})
    x_BTD = random(2, 5, 8)
    torch.testing.assert_close(once.forward(x_BTD)[0], stacked.forward(x_BTD)[0], **EXACT)


# Made by hand: heads of any width, experts that are not weighted, hidden states of length one


def by_hand():
    """Two layers in width 6: heads with keys of width 1 and 4 and experts; one head and nothing else."""
    draw = generator(7)

    def w(*shape):
        return 0.5 * torch.randn(*shape, generator=draw, dtype=torch.float64)

    first = Block(
        Heads([Head(w(1, 6), w(1, 6), w(6, 6), w(1), w(1)), Head(w(4, 6), w(4, 6), w(6, 6))]),
        Experts(w(3, 6), w(3), w(3, 5, 6), w(3, 5), w(3, 6, 5), w(3, 6)),
    )
    second = Block(Heads([Head(w(2, 6), w(2, 6), w(6, 6), None, w(2))]), None)
    return Decoder(w(7, 6), w(9, 6), [first, second], Unit())


def naive_by_hand(decoder, x_SD):
    """The same, for one row, slot by slot: no softmax but exp, no masks but ranges."""
    weight = dict(decoder.named_parameters())
    stream = [x_D + weight["pos_emb"][s] for s, x_D in enumerate(x_SD)]
    for layer, heads in ((0, 2), (1, 1)):
        added = [torch.zeros(6).double() for _ in stream]
        for head in range(heads):
            of = {n: weight[f"blocks.{layer}.attention.heads.{head}.{n}"] for n in ("query", "key", "value")}
            b, c = (weight[f"blocks.{layer}.attention.heads.{head}.{n}_bias"] for n in ("query", "key"))
            for t, x_D in enumerate(stream):
                raw = torch.stack([((of["query"] @ x_D + b) * (of["key"] @ y_D + c)).sum() for y_D in stream[: t + 1]])
                share = raw.exp() / raw.exp().sum()
                added[t] = added[t] + sum(p * (of["value"] @ y_D) for p, y_D in zip(share, stream, strict=False))
        stream = [x_D + add_D for x_D, add_D in zip(stream, added, strict=True)]
        if layer == 0:
            of = {n.split(".")[-1]: v for n, v in weight.items() if n.startswith("blocks.0.mlp.")}
            for t, x_D in enumerate(stream):
                x = int((of["router"] @ x_D + of["router_bias"]).argmax())
                hidden_F = (of["up_proj"][x] @ x_D + of["up_bias"][x]).clamp(min=0)
                stream[t] = x_D + of["down_proj"][x] @ hidden_F + of["down_bias"][x]
    return torch.stack([x_D / (x_D**2).sum().sqrt() for x_D in stream])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("past", [0, 2])
def test_what_is_made_by_hand_is_its_formula_whatever_is_read(past, masked):
    """From every slot, with and without a cache; with a mask, the second row has a slot of padding."""
    model, x_BSD, first = by_hand(), random(2, 5, 6).requires_grad_(), int(masked)
    mask_BS = torch.tensor([[True] * 5, [not masked] + [True] * 4]) if masked else None
    cache = model.forward(x_BSD[:, :past], None, mask_BS[:, :past] if masked else None)[1] if past else None
    rows = naive_by_hand(model, x_BSD[0]), naive_by_hand(model, x_BSD[1, first:])
    for read_from in range(5 - past):
        got_BRD, _ = model.forward(x_BSD[:, past:], cache, mask_BS, read_from=read_from)
        read = past + read_from
        got = torch.cat([got_BRD[0], got_BRD[1, max(first - read, 0) :]])
        assert_same_function(model, got, torch.cat([rows[0][read:], rows[1][max(read - first, 0) :]]), x_BSD)
    assert model.forward(x_BSD[:, past:], cache, mask_BS, read_from=5 - past)[0].shape == (2, 0, 6)


def test_a_head_has_the_weights_it_is_given():
    sizes = {"query": (2, 6), "key": (2, 6), "value": (6, 6), "query_bias": (2,), "key_bias": (2,)}
    given = {name: random(*size, seed=seed) for seed, (name, size) in enumerate(sizes.items())}
    head = Head(*given.values())
    assert all(torch.equal(getattr(head, name), weight) for name, weight in given.items())
    plain = Head(*[*given.values()][:3])
    assert not any(bias.any() for bias in (plain.query_bias, plain.key_bias))


def test_a_cache_of_heads_forks_and_goes_on():
    model, x_BSD = by_hand(), random(2, 5, 6)
    whole_BSD, _ = model.forward(x_BSD)
    _, cache = model.forward(x_BSD[:, :3])
    forked_RTD, grown = model.forward(x_BSD[:, 3:].repeat_interleave(3, 0), cache.fork(3))
    for fork in range(3):
        torch.testing.assert_close(forked_RTD[fork::3], whole_BSD[:, 3:], **EXACT)
    assert grown.size == 5
    assert [len(layer) for layer in grown.layers] == [2, 1]
    assert [keys.shape for keys, _ in grown.layers[0]] == [(6, 5, 1), (6, 5, 4)]


def test_a_layer_without_an_mlp_has_no_such_site():
    seen = []
    by_hand().forward(random(1, 2, 6), edit=lambda layer, site, x, slots: seen.append((layer, site)) or x)
    assert seen == [(0, site) for site in SITES] + [(1, "resid_in"), (1, "attn_add"), (1, "resid_out")]


def test_unit_scales_to_length_one_and_norm_to_its_gain():
    x_BTD, norm = random(2, 3, 6), Norm(6).double()
    torch.testing.assert_close(Unit()(x_BTD).norm(dim=-1), torch.ones(2, 3).double())
    torch.testing.assert_close(Unit()(x_BTD) * x_BTD.norm(dim=-1, keepdim=True), x_BTD)
    torch.testing.assert_close(norm(x_BTD).mean(-1), torch.zeros(2, 3).double())
    torch.nn.init.constant_(norm.weight, 3.0)
    torch.testing.assert_close(norm(x_BTD).std(-1, correction=0), torch.full((2, 3), 3.0).double(), rtol=1e-4, atol=0)


# Experts


def naive_experts(experts, x_RD, weighted):
    """Slot by slot."""
    out = []
    for x_D in x_RD:
        score_X = experts.router @ x_D + experts.router_bias
        x = int(score_X.argmax())
        hidden_F = (experts.up_proj[x] @ x_D + experts.up_bias[x]).clamp(min=0)
        out.append(experts.down_proj[x] @ hidden_F + experts.down_bias[x])
        if weighted:
            out[-1] = out[-1] * (score_X[x] - score_X.logsumexp(0)).exp()
    return torch.stack(out)


@pytest.mark.parametrize("weighted", [False, True])
def test_experts_are_their_formula(weighted):
    """Two of five experts are chosen by many slots, one by none; only weighted ones train their router."""
    sizes = ((5, 6), (5,), (5, 4, 6), (5, 4), (5, 6, 4), (5, 6))
    experts = Experts(*(random(*size, seed=seed) for seed, size in enumerate(sizes)), weighted=weighted)
    with torch.no_grad():
        experts.router_bias[3] = -100.0
    x_BTD = random(2, 20, 6, seed=9).requires_grad_()
    chosen = (x_BTD.detach() @ experts.router.T + experts.router_bias).argmax(-1).unique().tolist()
    assert len(chosen) > 2
    assert 3 not in chosen
    expected = naive_experts(experts, x_BTD.flatten(0, 1), weighted).view_as(x_BTD)
    assert_same_function(experts, experts(x_BTD), expected, x_BTD)
    assert bool(gradients(score(experts(x_BTD)), [experts.router]).any()) == weighted


def test_fresh_experts_are_half_as_wide_as_a_plain_mlp_and_weighted():
    experts, plain = Experts.fresh(8, 3), MLP(8)
    assert experts.weighted
    assert experts.up_proj.shape == (3, 16, 8)
    assert plain.up_proj.shape == (32, 8)
    assert experts(torch.zeros(2, 0, 8)).shape == (2, 0, 8)


@pytest.mark.parametrize(("activation", "up"), [("gelu", (20, 8)), ("relu", (20, 8)), ("swiglu", (40, 8))])
def test_hidden_units_of_an_mlp_are_as_many_as_told(activation, up):
    mlp = MLP(8, 20, activation)
    assert (mlp.up_proj.shape, mlp.down_proj.shape) == (up, (8, 20))


def test_impossible_blocks_are_rejected(unchecked):
    with pytest.raises(ValueError, match="norm 'middle': expected one of pre, post, after, protected, none"):
        Block(Attention(8, 2), MLP(8), 8, "middle")
    with pytest.raises(ValueError, match="norm 'pre' without a width: expected the width of the residual stream"):
        Block(Attention(8, 2), MLP(8), placement="pre")


# What a protected block promises


def test_a_protected_block_without_gain_is_the_identity(tiny):
    """And skipping it changes nothing."""
    model, x_BTD = tiny(norm="protected"), random(2, 5, 8)
    block = model.blocks[1]
    with torch.no_grad():
        for gain in (block.attn_gain, block.mlp_gain):
            gain.zero_()
    assert torch.equal(block(x_BTD)[0], x_BTD)
    assert torch.equal(model.through(x_BTD, range(0, 2)), model.through(x_BTD, range(0, 1)))
    with torch.no_grad():
        block.mlp_gain.fill_(1.0)
    assert not torch.allclose(block(x_BTD)[0], x_BTD)


@pytest.mark.parametrize("part", [slice(0, 8), slice(8, 16)])
def test_norms_of_queries_and_keys_bound_attention(part):
    """Attention depends on the direction of queries and keys alone: their weights may be of any size."""
    x_BTD, attention, before = 3 * random(2, 5, 8), Attention(8, 2, qk_norm=True).double(), []
    for factor in (1.0, 1000.0):
        with torch.no_grad():
            attention.qkv_proj.copy_(random(24, 8, seed=1))
            attention.out_proj.copy_(random(8, 8, seed=2))
            attention.qkv_proj[part] *= factor
        before.append(attention(x_BTD)[0])
    torch.testing.assert_close(*before, **EXACT)
    with torch.no_grad():
        attention.query_norm.copy_(torch.tensor([1.0, -2.0, 0.5, 1.5]))
        attention.key_norm.copy_(torch.tensor([0.5, 3.0, -1.0, 2.0]))
    q_BTHK = (x_BTD @ attention.qkv_proj[:8].T).unflatten(-1, (2, 4))
    query = torch.nn.functional.rms_norm(q_BTHK, (4,), attention.query_norm).transpose(1, 2)
    _, (key, _) = attention(x_BTD)
    scores = query @ key.transpose(-1, -2) / 2
    assert scores.abs().max() <= 2 * (attention.query_norm * attention.key_norm).abs().max(), "sqrt(d_head) times gains"


def test_first_sizes_of_a_protected_decoder():
    """Gains of 1 / sqrt(2 layers loops), which divide what other blocks divide by weights; one norm in all blocks."""
    model = Decoder.fresh(50, 9, ModelConfig(128, 4, 2, norm="protected", loops=2, init="fan_in"))
    gains = [gain.item() for block in model.blocks for gain in (block.attn_gain, block.mlp_gain)]
    assert gains == pytest.approx([0.25] * 8)
    assert [block.attn_norm is not None for block in model.blocks] == [True, False, False, False]
    assert all(block.mlp_norm is None for block in model.blocks)
    assert model.norm is not None
    assert model.blocks[2].mlp.down_proj.std().item() == pytest.approx(512**-0.5, rel=0.02)


@pytest.mark.parametrize("init", ["gpt2", "fan_in"])
def test_first_sizes_of_matrices(init):
    model = Decoder.fresh(50, 9, ModelConfig(128, 4, 2, init=init, mlp="swiglu", loops=2))
    block = model.blocks[2]
    for matrix, inputs, into in (
        (model.embedding, 128, False), (block.attention.qkv_proj, 128, False), (block.attention.out_proj, 128, True),
        (block.mlp.up_proj, 128, False), (block.mlp.down_proj, 512, True),
    ):  # fmt: skip
        std = (0.02 if init == "gpt2" else inputs**-0.5) / (4 if into else 1)
        assert matrix.std().item() == pytest.approx(std, rel=0.05)


# Dropout


def additions(model, x_BTD):
    """What every layer adds, in order."""
    seen = []
    model.forward(x_BTD, edit=lambda n, site, x, _: seen.append(x) or x if site.endswith("add") else x)
    return seen


def test_nothing_is_dropped_outside_of_dropping(tiny):
    """Whatever mode the module is in; afterwards, and after an error, neither."""
    model, plain, x_BTD = tiny(dropout=0.5), tiny(), random(2, 5, 8)
    model.load_state_dict(plain.state_dict())
    expected_BTD, before = plain.forward(x_BTD)[0], torch.get_rng_state()
    assert torch.equal(model.train().forward(x_BTD)[0], expected_BTD)
    with model.dropping(generator(0)):
        assert not torch.allclose(model.forward(x_BTD)[0], expected_BTD)
    assert torch.equal(model.forward(x_BTD)[0], expected_BTD)
    with pytest.raises(RuntimeError, match="no"), model.dropping(generator(0)):
        raise RuntimeError("no")
    assert torch.equal(model.forward(x_BTD)[0], expected_BTD)
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.dropout, plain.dropout, by_hand().dropout) == (0.5, 0.0, 0.0)
    unused = generator(3)
    with plain.dropping(unused):
        assert torch.equal(plain.forward(x_BTD)[0], expected_BTD)
    assert torch.equal(unused.get_state(), generator(3).get_state())


def test_what_is_dropped_comes_from_the_generator_alone(tiny):
    model, x_BTD, found = tiny(dropout=0.5, loops=2), random(2, 5, 8), []
    for seed in (1, 1, 2):
        torch.manual_seed(len(found))
        with model.dropping(generator(seed)):
            found.append([model.forward(x_BTD)[0] for _ in range(2)])
    assert torch.equal(torch.stack(found[0]), torch.stack(found[1]))
    assert not torch.allclose(found[0][0], found[2][0])
    assert not torch.allclose(found[0][0], found[0][1])


def test_parts_of_additions_are_dropped_and_the_others_make_up_for_it(tiny):
    """Three quarters are left, as 4/3 of what they are; every addition has a mask of its own."""
    model, x_BTD = tiny(dropout=0.25, loops=2), random(30, 20, 8)
    first, *_ = additions(model, x_BTD)
    with model.dropping(generator(0)):
        found = additions(model, x_BTD)
    masks = [addition != 0 for addition in found]
    torch.testing.assert_close(found[0], torch.where(masks[0], first / 0.75, 0.0), **EXACT)
    share = torch.stack(masks).double().mean((1, 2, 3))
    assert len(share) == 8
    assert ((share - 0.75).abs() < 6 * (0.25 * 0.75 / masks[0].numel()) ** 0.5).all()
    assert not any(torch.equal(a, b) for a, b in pairwise(masks))


def test_gradients_pass_through_what_is_kept(tiny):
    """The same generator, the same masks: a finite difference along one direction."""
    model, x_BTD, step_BTD = tiny(dropout=0.5), random(2, 4, 8).requires_grad_(), 1e-6 * random(2, 4, 8, seed=1)

    def value(x):
        with model.dropping(generator(5)):
            return score(model.forward(x)[0])

    slope = gradients(value(x_BTD), [x_BTD]) @ step_BTD.flatten()
    torch.testing.assert_close((value(x_BTD + step_BTD) - value(x_BTD - step_BTD)) / 2, slope, rtol=1e-5, atol=0)


def test_dropout_keeps_the_expectation():
    """The mean of 40,000 masks of one number: within six standard errors, false alarms below 1e-8."""
    drop, x = Dropout(0.3), torch.ones(40_000, dtype=torch.float64)
    assert drop(x) is x
    drop.generator = generator(1)
    dropped = drop(x)
    assert set(dropped.tolist()) == {0.0, 1 / 0.7}
    assert abs(dropped.mean().item() - 1) < 6 * math.sqrt(0.3 / 0.7 / 40_000)
