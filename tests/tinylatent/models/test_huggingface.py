"""The Hugging Face wrapper keeps the Backbone protocol, whichever model is inside.

A rollout of Llama (rotary positions, grouped queries, untied), Qwen2, Mistral (a sliding window) and the families that
scale embeddings or logits (Gemma, Granite, Cohere) is held against a naive one, row by row, that calls the model
itself, without cache, padding or mask. GPT-2, which our own decoder fits into, is in test_gpt2_twin.
"""

import importlib
import subprocess
import sys

import pytest
import torch
from families import (
    FAMILIES,
    HEADS,
    MASK,
    PROMPT,
    ROUGH,
    SCALE,
    SIZE,
    WIDTH,
    WINDOWS,
    near,
    same,
    small,
    transformers,
)
from naive import score
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tinylatent.engine.force import force, replay
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import Hidden, Mixture, Token
from tinylatent.models.huggingface import HFBackbone

QUICK = ("Llama", "Gemma3")
"""Rotary positions and untied weights; a scale, a cap and a sliding window."""


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in FAMILIES])
def family(request):
    return request.param


@pytest.fixture
def backbone(family):
    return HFBackbone(small(family))


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) for name in ROUGH])
def rough(request):
    return request.param


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts


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
    assert_recomputed(rough, HFBackbone(small(rough).float()), offset_B, near)


def assert_recomputed(family, backbone, offset_B, same):
    """With padding, and with rows that wait unless a sliding window would count the slots they wait in."""
    hidden_steps = [2, 2, 2] if family in WINDOWS else [0, 3, 1]
    plan = (Segment(Hidden(), torch.tensor(hidden_steps)), Segment(Mixture(), 2), Segment(Token(), 2))
    found = rollout(backbone, plan, PROMPT, MASK, offset_B=offset_B, group=2, grad=True)
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
    assert_own_logits(rough, HFBackbone(small(rough).float()), near)


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


# ---------------------------------------------------------------------------------------------------------------------
# The Backbone protocol


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


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


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


@pytest.mark.parametrize("name", ["GPT2", pytest.param("Llama", marks=pytest.mark.slow), "Qwen2"])
def test_positions_beyond_those_of_the_config_are_told(name):
    """GPT-2 would fail on its table, rotary models would go on in silence; by length, by padding that ends, by offset.

    Masked slots take no position: a prompt of eight slots, four of them padding, leaves four.
    """
    if name == "GPT2":
        config = transformers.GPT2Config(vocab_size=23, n_positions=8, n_embd=16, n_layer=1, n_head=2)
        backbone = HFBackbone(transformers.GPT2LMHeadModel(config).double())
    else:
        backbone = HFBackbone(small(name, max_position_embeddings=8))
    prompt_BN, mask_BN = torch.ones(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.bool)
    said = r"position 8, but the model has 8 positions, 0 to 7: take a shorter prompt or fewer steps"
    rollout(backbone, (Segment(Token(), 1),), prompt_BN)
    for offset_B, number in ((None, 2), (torch.tensor([0, 1]), 1)):
        with pytest.raises(ValueError, match=said):
            rollout(backbone, (Segment(Token(), number),), prompt_BN, offset_B=offset_B)
    mask_BN[:, :4] = False
    rollout(backbone, (Segment(Token(), 5),), prompt_BN, mask_BN)
    with pytest.raises(ValueError, match=said):
        rollout(backbone, (Segment(Token(), 6),), prompt_BN, mask_BN)
    given = Token().given(torch.ones(2, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match=said):
        force(backbone, (Segment(Token(), torch.tensor([1, 6]), given),), prompt_BN, mask_BN)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ValueError, match="LlamaModel has no output embeddings: expected a causal language model"):
        HFBackbone(small("Llama").model)


# ---------------------------------------------------------------------------------------------------------------------
# The core does without transformers


@pytest.mark.slow
def test_the_core_never_imports_transformers():
    script = (
        "import importlib, pkgutil, sys, tinylatent\n"
        "for module in pkgutil.walk_packages(tinylatent.__path__, 'tinylatent.'):\n"
        "    if not module.name.startswith('tinylatent.models.huggingface') and not module.name.endswith('__main__'):\n"
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
