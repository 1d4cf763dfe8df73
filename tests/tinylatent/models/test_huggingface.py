"""The Hugging Face wrapper keeps the Backbone protocol, whichever model is inside.

Our Decoder, its weights copied into a GPT-2, is the same function: all values and gradients of latent rollouts must
agree. Llama (rotary positions, grouped queries, untied), Qwen2, Mistral (a sliding window) and the families that scale
embeddings or logits (Gemma, Granite, Cohere) have no such twin: there the rollout is held against a naive one, row by
row, that calls the model itself, without cache, padding or mask.
"""

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tasks import MNNS
from tinylatent.core.seeds import Streams
from tinylatent.engine.force import replay
from tinylatent.engine.plan import Repeat, Segment
from tinylatent.engine.rollout import resume, rollout
from tinylatent.engine.thoughts import Hidden, Mixture, Pause, Token
from tinylatent.lenses.residuals import record
from tinylatent.methods import METHODS
from tinylatent.models.backbone import SITES
from tinylatent.models.blocks import Block, Head, Heads, Norm
from tinylatent.models.decoder import Decoder, ModelConfig
from tinylatent.objectives.examples import Targets
from tinylatent.objectives.method import Model, TrainState
from tinylatent.objectives.speakers import Symbols

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import transformers

from tinylatent.models.huggingface import HFBackbone, as_gpt2

VOCABULARY, POSITIONS, WIDTH = 23, 40, 16
SIZE = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
FAMILIES = {
    "Llama": {},
    "Qwen2": {},
    "Mistral": {"sliding_window": 3},
    "Gemma": {"head_dim": 8, "tie_word_embeddings": True},
    "Gemma3": {"head_dim": 4, "tie_word_embeddings": True, "final_logit_softcapping": 1.5, "sliding_window": 3},
    "Granite": {"logits_scaling": 8.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
}
ROUGH = {
    "Gemma2": {"head_dim": 4, "tie_word_embeddings": True, "final_logit_softcapping": 2.0, "sliding_window": 3},
    "Cohere": {"logit_scale": 0.25, "tie_word_embeddings": True},
}
"""Families that are not exact in float64: Gemma 2 has eager attention alone, Cohere rotates in float32."""
SCALE = {"Gemma": 4.0, "Gemma2": 4.0, "Gemma3": 4.0}
"""What a lookup multiplies rows by: the root of the width."""
HEADS = {
    "Gemma2": lambda logits: 2.0 * torch.tanh(logits / 2.0),
    "Gemma3": lambda logits: 1.5 * torch.tanh(logits / 1.5),
    "Granite": lambda logits: logits / 8.0,
    "Cohere": lambda logits: logits * 0.25,
}
"""What is done to logits after the head."""
WINDOWS = {"Mistral", "Gemma2", "Gemma3"}
PROMPT = torch.tensor([[0, 0, 3, 4, 5], [6, 7, 8, 9, 10], [0, 11, 12, 13, 14]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]], dtype=torch.bool)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def score(x):
    """A scalar that depends on every number differently."""
    return (x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sin().sum()


def spread(model, seed=0):
    """Weights wide enough that attention and arg max are decided, and nothing hides behind logits near zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(generator=generator), alpha=0.3)
    return model


def small(family, **options):
    """A small random model of a family, in float64; its norms too, which transformers computes in float32."""
    config = getattr(transformers, f"{family}{'Text' * (family == 'Gemma3')}Config")
    config = config(**SIZE | (FAMILIES | ROUGH).get(family, {}) | options)
    with torch.random.fork_rng(devices=[]):
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, norm in list(model.named_modules()):
        if type(norm).__name__.endswith(("RMSNorm", "CohereLayerNorm")):
            parent, _, child = name.rpartition(".")
            kind = torch.nn.RMSNorm if "RMS" in type(norm).__name__ else partial(torch.nn.LayerNorm, bias=False)
            setattr(model.get_submodule(parent), child, kind(norm.weight.shape, eps=1e-6))
    return spread(model.double())


@pytest.fixture
def ours():
    return spread(Decoder.fresh(VOCABULARY, POSITIONS, ModelConfig(WIDTH, 2, 4)).double())


@pytest.fixture
def theirs(ours):
    return HFBackbone(as_gpt2(ours))


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def backbone(family):
    return HFBackbone(small(family))


@pytest.fixture(params=ROUGH)
def rough(request):
    return request.param


# ---------------------------------------------------------------------------------------------------------------------
# Our weights in a GPT-2


def test_logits_agree(ours, theirs):
    hidden_BND, _ = ours.forward(ours.table.rows(PROMPT))
    same(theirs.model(input_ids=PROMPT).logits, ours.readout(hidden_BND))
    same(theirs.forward(theirs.table.rows(PROMPT))[0], hidden_BND)
    same(theirs.readout(hidden_BND), ours.readout(hidden_BND))


def test_the_copy_has_no_biases_shares_nothing_and_leaves_the_global_generator_alone(ours):
    before = torch.get_rng_state()
    copy = as_gpt2(ours)
    assert torch.equal(torch.get_rng_state(), before)
    assert copy.lm_head.weight is copy.transformer.wte.weight
    biases = [parameter for name, parameter in copy.named_parameters() if name.endswith("bias")]
    assert len(biases) == 13
    assert not any(bias.any() for bias in biases)
    ours.embedding.data.add_(1)
    same(copy.lm_head.weight + 1, ours.embedding)


@pytest.mark.parametrize(
    "kind", [{"norm": "post"}, {"norm": "none"}, {"mlp": "relu"}, {"mlp": "swiglu"}, {"experts": 2}, {"loops": 2}]
)
def test_other_blocks_than_those_of_gpt2_cannot_be_copied(kind):
    with pytest.raises(ValueError, match="only a decoder with the blocks of GPT-2 can be copied: expected norm 'pre'"):
        as_gpt2(Decoder.fresh(VOCABULARY, POSITIONS, ModelConfig(WIDTH, 2, 4, **kind)))


def test_what_is_made_by_hand_cannot_be_copied():
    head = Head(torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(4, 4))
    for blocks in ([], [Block(Heads([head]), None)]):
        with pytest.raises(ValueError, match="only a decoder with the blocks of GPT-2"):
            as_gpt2(Decoder(torch.zeros(3, 4), torch.zeros(5, 4), blocks, Norm(4)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_explicit_positions_agree_in_one_forward_and_over_a_cache(ours, theirs, masked, rows):
    """Positions jump and run backwards; one row of them may serve all rows of the batch."""
    positions = torch.stack([torch.tensor([3, 4, 0, 1, 30]).roll(row) for row in range(rows)])
    mask = MASK if masked else None
    x_BND = ours.table.rows(PROMPT)
    wanted, _ = ours.forward(x_BND, mask_BS=mask, positions_BT=positions.expand(3, -1))
    found, _ = theirs.forward(x_BND, mask_BS=mask, positions_BT=positions)
    first, cache = theirs.forward(x_BND[:, :2], None, None if mask is None else mask[:, :2], positions[:, :2])
    second, _ = theirs.forward(x_BND[:, 2:], cache, mask, positions[:, 2:])
    same(found[MASK], wanted[MASK])
    same(torch.cat([first, second], 1)[MASK], wanted[MASK])


def test_default_positions_count_unmasked_slots(ours, theirs):
    x_BND = ours.table.rows(PROMPT)
    same(theirs.forward(x_BND, mask_BS=MASK)[0][MASK], ours.forward(x_BND, mask_BS=MASK)[0][MASK])
    _, cache = theirs.forward(x_BND)
    _, cache_ours = ours.forward(x_BND)
    same(theirs.forward(x_BND[:, :3], cache)[0], ours.forward(x_BND[:, :3], cache_ours)[0])


PAUSE = Pause(WIDTH).double()
EVEN = tuple(range(0, VOCABULARY, 2))
PLANS = {
    "mixture": (Segment(Mixture(), 3), Segment(Token(), 2)),
    "hidden": (Segment(Hidden(), 3), Segment(Token(), 2)),
    "greedy": (Segment(Token(), 4),),
    "sampled": (Segment(Token(1.0), 4),),
    "pause": (Segment(PAUSE, 2), Segment(Token(), 2)),
    "all": (Segment(PAUSE, 1), Segment(Hidden(), 2), Segment(Mixture(), 1), Segment(Token(1.0), 2)),
    "uneven": (Segment(Hidden(), torch.tensor([0, 3, 1])), Segment(Mixture(), 1), Segment(Token(), 2)),
    "stopping": (Segment(Token(1.0, stop_ids=EVEN), 4), Segment(Mixture(), 1), Segment(Token(), 1)),
    "repeated": (Repeat((Segment(Hidden(), 1),), lambda state: state.logits[:, 0] > 0, 3), Segment(Token(), 2)),
}  # fmt: skip
CALLS = {
    "whole": {},
    "padded": {"mask_BN": MASK},
    "groups": {"mask_BN": MASK, "groups": 3},
    "offset": {"offset_B": torch.tensor([0, 9, 4])},
    "offset, padded, groups": {"mask_BN": MASK, "offset_B": torch.tensor([7, 0, 20]), "groups": 2},
}


def think(model, plan, call, **options):
    """A differentiable rollout; sampling thoughts get the same streams whichever model thinks."""
    streams = Streams(3, torch.arange(len(PROMPT) * call.get("groups", 1)))
    return rollout(model, PLANS[plan], PROMPT, streams=streams, grad=True, **call, **options)


def assert_same_trace(found, wanted):
    for name in ("hidden_BTD", "logits_BTV", "inputs_BTD", "log_prob_BT"):
        same(getattr(found, name), getattr(wanted, name))
    assert torch.equal(found.length_B, wanted.length_B)
    assert torch.equal(found.action("id"), wanted.action("id"))


def assert_same_gradients(found, wanted, ours, gpt2):
    """Of all weights, the input embedding first among them, and of the constant that pauses."""
    pairs = [(ours.embedding, gpt2.wte), (ours.pos_emb, gpt2.wpe), (ours.norm.weight, gpt2.ln_f)]
    linear = []
    for a, b in zip(ours.blocks, gpt2.h, strict=True):
        pairs += [(a.attn_norm.weight, b.ln_1), (a.mlp_norm.weight, b.ln_2)]
        linear += [(a.attention.qkv_proj, b.attn.c_attn), (a.attention.out_proj, b.attn.c_proj)]
        linear += [(a.mlp.up_proj, b.mlp.c_fc), (a.mlp.down_proj, b.mlp.c_proj)]

    def gradients(trace, weights):
        loss = score(trace.logits_BTV) + trace.log_prob_BT.sum()
        weights = [*weights, PAUSE.constant_D]
        return torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True)

    mine = gradients(wanted, [a for a, _ in pairs + linear])
    his = gradients(found, [b.weight for _, b in pairs + linear])
    for number, (a, b) in enumerate(zip(mine, his, strict=True)):
        same(b.T if len(pairs) <= number < len(pairs + linear) else b, a)
    assert mine[0].any()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("plan", PLANS)
def test_rollouts_agree_in_values_and_gradients(ours, theirs, plan, call):
    wanted, found = think(ours, plan, CALLS[call]), think(theirs, plan, CALLS[call])
    assert_same_trace(found, wanted)
    assert_same_gradients(found, wanted, ours, theirs.model.transformer)


@pytest.mark.parametrize("call", ["whole", "offset, padded, groups"])
def test_continuing_twice_agrees(ours, theirs, call):
    wanted, found = think(ours, "hidden", CALLS[call]), think(theirs, "hidden", CALLS[call])
    for plan in ("mixture", "pause", "mixture"):
        again, again_ours = (
            resume(t, PLANS[plan], backbone=m, grad=True) for m, t in ((theirs, found), (ours, wanted))
        )
        assert_same_trace(again, again_ours)
        assert_same_gradients(again, again_ours, ours, theirs.model.transformer)


@pytest.mark.parametrize("plan", ["uneven", "stopping"])
def test_replay_agrees(ours, theirs, plan):
    wanted, found = (replay(model, think(model, plan, CALLS["groups"])) for model in (ours, theirs))
    assert_same_trace(found, wanted)
    assert_same_gradients(found, wanted, ours, theirs.model.transformer)


# ---------------------------------------------------------------------------------------------------------------------
# Edits


@pytest.mark.parametrize("site", SITES)
def test_edits_see_and_change_the_same_values(ours, theirs, site):
    """At every step of a rollout, in the same order; one site is changed, all are recorded."""
    direction_D = torch.linspace(-1, 2, WIDTH, dtype=torch.float64)

    def recorder(seen):
        def edit(layer, where, x_BTD, slots):
            seen.append((layer, where, slots, x_BTD))
            return x_BTD * (1 + layer) + direction_D if where == site else x_BTD

        return edit

    seen_ours, seen = [], []
    wanted = think(ours, "all", {}, edit=recorder(seen_ours))
    found = think(theirs, "all", {}, edit=recorder(seen))
    assert_same_trace(found, wanted)
    assert_same_gradients(found, wanted, ours, theirs.model.transformer)
    seen = seen[-len(seen_ours) :]
    assert [entry[:3] for entry in seen] == [entry[:3] for entry in seen_ours]
    for (*_, x), (*_, x_ours) in zip(seen, seen_ours, strict=True):
        same(x, x_ours)
    assert not torch.allclose(found.logits_BTV, think(theirs, "all", {}).logits_BTV)  # and the hooks are gone


def test_residuals_are_recorded_the_same(ours, theirs):
    """Over a prompt and steps, rows forking in between."""
    (_, wanted), (_, found) = (
        record(lambda edit, m=m: think(m, "all", {"groups": 2}, edit=edit)) for m in (ours, theirs)
    )
    for name in ("stream", "attention", "mlp"):
        same(getattr(found, name), getattr(wanted, name))
    assert found.gap() < 1e-14


def test_an_edit_that_fails_leaves_no_hook_behind(theirs):
    x_BND = theirs.table.rows(PROMPT)
    theirs.forward(x_BND, edit=lambda layer, site, x, _: x)

    def fail(layer, site, x, slots):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        theirs.forward(x_BND, edit=fail)
    theirs.forward(x_BND)


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Mistral", "Gemma"])
def test_edits_of_other_families(backbone):
    """Without additions a model is its last norm; reading alone changes nothing; what is put in last comes out."""
    x_BND, norm = backbone.table.rows(PROMPT), backbone.model.model.norm
    quiet, _ = backbone.forward(x_BND, edit=lambda layer, site, x, _: x * 0 if site.endswith("add") else x)
    same(quiet, norm(x_BND))
    same(backbone.forward(x_BND, edit=lambda layer, site, x, _: x)[0], backbone.forward(x_BND)[0])
    last, _ = backbone.forward(x_BND, edit=lambda layer, site, x, _: x_BND if (layer, site) == (1, "resid_out") else x)
    same(last, norm(x_BND))
    late, _ = backbone.forward(
        x_BND,
        edit=lambda layer, site, x, _: (
            x_BND if (layer, site) == (1, "resid_in") else x * (layer == 0 or site[:5] == "resid")
        ),
    )
    same(late, norm(x_BND))


@pytest.mark.parametrize("family", ["GPTNeoX", "Olmo2", "Gemma3", "Granite"])
def test_unknown_blocks_are_refused_only_when_an_edit_is_asked_for(backbone):
    """GPT-NeoX names its parts otherwise; others have norms or factors between their parts and the residual stream."""
    x_BND = backbone.table.rows(PROMPT)
    plain, _ = backbone.forward(x_BND)
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be edited: expected"):
            backbone.forward(x_BND, edit=lambda layer, site, x, _: x)
    same(backbone.forward(x_BND)[0], plain)


# ---------------------------------------------------------------------------------------------------------------------
# Other families


def naive(family, model, prompt, thoughts, first):
    """One row's hidden states and logits, (T, D) and (T, V): a full forward of the model itself before each thought."""
    embedding, states = SCALE.get(family, 1.0) * model.model.embed_tokens.weight, []
    x_SD = embedding[prompt]
    for thought in thoughts:
        positions = torch.arange(first, first + len(x_SD))[None]
        found = model.model(inputs_embeds=x_SD[None], position_ids=positions, use_cache=False)
        hidden_D = found.last_hidden_state[0, -1]
        logits_V = HEADS.get(family, lambda logits: logits)(model.lm_head(hidden_D))
        states.append((hidden_D, logits_V))
        thinks = {Hidden: hidden_D, Mixture: logits_V.softmax(0) @ embedding, Token: embedding[logits_V.argmax()]}
        x_SD = torch.cat([x_SD, thinks[thought][None]])
    return tuple(torch.stack(values) for values in zip(*states, strict=True))


OFFSETS = pytest.mark.parametrize("offset_B", [None, torch.tensor([7, 0, 20])], ids=["", "offset"])


@OFFSETS
def test_cached_rollouts_equal_full_recomputation(family, backbone, offset_B):
    assert_recomputed(family, backbone, offset_B, same)


@OFFSETS
def test_cached_rollouts_equal_full_recomputation_in_float32(rough, offset_B):
    near = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4)
    assert_recomputed(rough, HFBackbone(small(rough).float()), offset_B, near)


def assert_recomputed(family, backbone, offset_B, same):
    """With padding, and with rows that wait unless a sliding window would count the slots they wait in."""
    hidden_steps = [2, 2, 2] if family in WINDOWS else [0, 3, 1]
    plan = (Segment(Hidden(), torch.tensor(hidden_steps)), Segment(Mixture(), 2), Segment(Token(), 2))
    found = rollout(backbone, plan, PROMPT, MASK, offset_B=offset_B, groups=2, grad=True)
    again = replay(backbone, found)
    wanted = []
    for row in range(6):
        thoughts = [Hidden] * hidden_steps[row // 2] + [Mixture] * 2 + [Token] * 2
        first = 0 if offset_B is None else int(offset_B[row // 2])
        wanted.append(naive(family, backbone.model, PROMPT[row // 2][MASK[row // 2]], thoughts, first))
    hidden, logits = (torch.cat(rows) for rows in zip(*wanted, strict=True))
    weights = [*backbone.model.parameters()]
    gradients = torch.autograd.grad(score(hidden) + score(logits), weights)
    for trace in (found, again):
        live_BT = trace.live_BT
        same(trace.hidden_BTD[live_BT], hidden)
        same(trace.logits_BTV[live_BT], logits)
        loss = score(trace.hidden_BTD[live_BT]) + score(trace.logits_BTV[live_BT])
        for a, b in zip(torch.autograd.grad(loss, weights, retain_graph=True), gradients, strict=True):
            same(a, b)


def test_logits_are_those_the_model_itself_gives_for_ids(family, backbone):
    """Looked up by its own embedding and read by its own head, whatever either does besides."""
    assert_own_logits(family, backbone, same)


def test_logits_are_those_the_model_itself_gives_for_ids_in_float32(rough):
    assert_own_logits(rough, HFBackbone(small(rough).float()), torch.testing.assert_close)


def assert_own_logits(family, backbone, same):
    hidden_BND, _ = backbone.forward(backbone.table.rows(PROMPT[:, 2:]))
    logits_BNV = backbone.readout(hidden_BND)
    same(logits_BNV, backbone.model(input_ids=PROMPT[:, 2:]).logits)
    same(backbone.table.rows(PROMPT), backbone.model.get_input_embeddings()(PROMPT))
    assert backbone.table.scale == SCALE.get(family)
    assert torch.equal(logits_BNV, backbone.model.lm_head(hidden_BND)) == (family not in HEADS)


def test_a_scale_is_taken_in_the_precision_of_the_rows():
    """The root of 24 is not a number in bfloat16; a model loaded in that precision keeps it in float32."""
    model = small("Gemma", hidden_size=24).bfloat16()
    model.model.embed_tokens.embed_scale = torch.tensor(24**0.5)
    backbone = HFBackbone(model)
    assert backbone.table.scale == torch.tensor(24**0.5).bfloat16().item() != 24**0.5
    assert torch.equal(backbone.table.rows(PROMPT), backbone.model.get_input_embeddings()(PROMPT))


@pytest.mark.parametrize("masked", [False, True])
def test_slots_that_nobody_reads_are_left_out_of_what_comes_back(backbone, masked):
    x_BND, mask = backbone.table.rows(PROMPT), MASK if masked else None
    whole_BND, _ = backbone.forward(x_BND, mask_BS=mask)
    _, cache = backbone.forward(x_BND[:, :2], None, None if mask is None else mask[:, :2])
    for read_from in range(6):
        found_BRD, grown = backbone.forward(x_BND, mask_BS=mask, read_from=read_from)
        assert torch.equal(found_BRD, whole_BND[:, read_from:])
        assert grown.size == 5
    same(backbone.forward(x_BND[:, 2:], cache, mask, read_from=1)[0][MASK[:, 3:]], whole_BND[:, 3:][MASK[:, 3:]])


@pytest.mark.parametrize(("new", "past"), [(5, 0), (1, 4), (3, 2)])
def test_operations_are_those_that_are_counted(family, backbone, new, past):
    """By torch, which counts the pairs of slots that may not attend too: a score and a weighted value for each."""
    x_BTD = backbone.table.rows(PROMPT[:1]).detach()
    cache = backbone.forward(x_BTD[:, :past])[1] if past else None
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        backbone.forward(x_BTD[:, :new], cache)
    width = 4 * FAMILIES[family].get("head_dim", WIDTH // 4)
    never_attended = 2 * 4 * width * (new * (new - 1) // 2)
    assert counter.get_total_flops() == backbone.flops(new, past) + never_attended


def test_operations_are_those_of_the_same_decoder(ours, theirs):
    for new, past in ((1, 0), (5, 0), (3, 7)):
        assert theirs.flops(new, past) == ours.flops(new, past) == theirs.flops(new, past, read=1)


def test_a_cache_is_a_value(backbone):
    """Two continuations from one cache, either of them with gradients, and the cache is what it was."""
    x_BND = backbone.table.rows(PROMPT)
    whole, _ = backbone.forward(x_BND)
    _, cache = backbone.forward(x_BND[:, :2])
    kept = [tensor.clone() for pair in cache.layers for tensor in pair]
    versions = [tensor._version for pair in cache.layers for tensor in pair]
    first, grown = backbone.forward(x_BND[:, 2:], cache)
    backbone.forward(x_BND[:, 2:].flip(1), cache)
    second, _ = backbone.forward(x_BND[:, 2:], cache)
    same(first, whole[:, 2:])
    same(second, whole[:, 2:])
    assert grown.size == 5
    assert grown.layers[0][0].shape == (*kept[0].shape[:2], 5, kept[0].shape[3])
    assert [tensor._version for pair in cache.layers for tensor in pair] == versions
    for before, tensor in zip(kept, (tensor for pair in cache.layers for tensor in pair), strict=True):
        assert torch.equal(before, tensor)
    weights = [*backbone.model.model.parameters()]
    wanted = torch.autograd.grad(2 * score(whole[:, 2:]), weights, retain_graph=True)
    for a, b in zip(torch.autograd.grad(score(first) + score(second), weights), wanted, strict=True):
        same(a, b)


def test_forked_rows_stand_side_by_side(backbone):
    x_BND = backbone.table.rows(PROMPT)
    _, cache = backbone.forward(x_BND[:, :3], mask_BS=MASK[:, :3])
    mask = MASK.repeat_interleave(2, 0)
    next_BTD = x_BND[:, 3:].repeat_interleave(2, 0) * torch.tensor([1.0, -2.0]).repeat(3)[:, None, None]
    forked, _ = backbone.forward(next_BTD, cache.fork(2), mask)
    for branch in range(2):
        plain, _ = backbone.forward(next_BTD[branch::2], cache, MASK)
        same(forked[branch::2], plain)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_masked_slots_stay_finite_and_unseen(family, implementation):
    """Left padding looks at nothing at all: no NaN comes of it, and what stands in it does not matter."""
    backbone = HFBackbone(small(family, attn_implementation=implementation).float())
    x_BND = backbone.table.rows(PROMPT).detach().requires_grad_()
    hidden_BND, cache = backbone.forward(x_BND, mask_BS=MASK)
    next_B1D, _ = backbone.forward(x_BND[:, -1:], cache, torch.cat([MASK, MASK[:, :1]], 1))
    assert hidden_BND.isfinite().all()
    gradient_BND = torch.autograd.grad(score(hidden_BND[MASK]) + score(next_B1D[MASK[:, 0]]), x_BND)[0]
    assert gradient_BND.isfinite().all()
    assert not gradient_BND[~MASK].any()
    other, _ = backbone.forward(torch.where(MASK[..., None], x_BND, 5.0), mask_BS=MASK)
    torch.testing.assert_close(other[MASK], hidden_BND[MASK])


def test_training_mode_brings_neither_dropout_nor_a_lost_cache():
    model = small("Llama", attention_dropout=0.5)
    model.activation_checkpointing_enable()
    backbone = HFBackbone(model.train())
    assert backbone.train().training
    x_BND = backbone.table.rows(PROMPT)
    whole, _ = backbone.forward(x_BND)
    _, cache = backbone.forward(x_BND[:, :4])
    same(backbone.forward(x_BND[:, 4:], cache)[0], whole[:, 4:])


@pytest.mark.parametrize(
    ("family", "options", "complaint"),
    [
        ("Llama", {"attn_implementation": "eager"}, "other logits .* in float64, sdpa"),
        ("Bloom", {}, "position_ids"),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}, "keys and values"),
    ],
)
def test_models_that_do_not_fit_are_refused(family, options, complaint):
    with pytest.raises(ValueError, match=f"{family}ForCausalLM .*{complaint}"):
        HFBackbone(small(family, **options))


class Shifted(transformers.LlamaForCausalLM):
    """Does something to its logits that nobody knows of."""

    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.logits = output.logits + 1
        return output


def test_a_model_with_other_logits_is_refused():
    with pytest.raises(ValueError, match="Shifted gives other logits from embeddings than from ids: expected inputs"):
        HFBackbone(Shifted(transformers.LlamaConfig(**SIZE)))


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_an_error_of_the_model_itself_is_a_refusal_that_quotes_it(error):
    model = small("Llama")

    def forward(inputs_embeds=None, position_ids=None, **rest):
        raise error("this model needs input_ids")

    model.model.forward = forward
    words = "LlamaForCausalLM cannot be driven by embeddings, .* transformers says: this model needs input_ids"
    with pytest.raises(ValueError, match=words) as refusal:
        HFBackbone(model)
    assert type(refusal.value.__cause__) is error


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ValueError, match="LlamaModel has no output embeddings: expected a causal language model"):
        HFBackbone(small("Llama").model)


# ---------------------------------------------------------------------------------------------------------------------
# The core does without transformers


def test_the_core_never_imports_transformers():
    script = (
        "import importlib, pkgutil, sys, tinylatent\n"
        "for module in pkgutil.walk_packages(tinylatent.__path__, 'tinylatent.'):\n"
        "    if module.name != 'tinylatent.models.huggingface' and not module.name.endswith('__main__'):\n"
        "        importlib.import_module(module.name)\n"
        "assert 'tinylatent.engine.rollout' in sys.modules\n"
        "assert 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_missing_package_is_said_in_one_sentence(monkeypatch):
    monkeypatch.delitem(sys.modules, "tinylatent.models.huggingface")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'tinylatent\[hf\]'"):
        importlib.import_module("tinylatent.models.huggingface")


# ---------------------------------------------------------------------------------------------------------------------
# Methods never know which backbone they hold


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_thinks_the_same_on_a_wrapped_model(name):
    task, method = MNNS(digits=3, high=5), METHODS[name]()
    examples = method.supervise(Symbols(task, task.problems(6, seed=0)))
    examples = replace(examples, frontier=Targets(len(task.vocabulary), dense_BTV=examples.frontier.dense_BTV.double()))
    backbone = spread(Decoder.fresh(len(task.vocabulary), task.positions, ModelConfig(16, 2, 2)).double())
    losses, gradients, runs = [], [], []
    for each in (backbone, HFBackbone(as_gpt2(backbone))):
        model = Model(each, method.parts(each, torch.Generator().manual_seed(1)).double())
        state = TrainState(0, 10, 0)
        loss = method.loss(model, method.collect(model, examples, state), state).value
        losses.append(loss)
        gradients.append(torch.autograd.grad(loss, each.table.weight)[0])
        runs.append(method.solve(model, examples, Streams(0, torch.arange(6))))
    same(*losses)
    same(*gradients)
    same(*(run.trace.logits_BTV for run in runs))
    assert torch.equal(*(run.answer_BA for run in runs))
