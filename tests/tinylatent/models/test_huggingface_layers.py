"""Layers of Hugging Face models: edits at every site, what is added, some layers alone; nothing stays behind."""

import pytest
import torch
from families import LAYERED, MASK, PROMPT, layered, near, same, small

from tinylatent.lenses.residuals import record_tokens
from tinylatent.models.huggingface import HFBackbone

EDITED = [*LAYERED, "GPTNeoX, in turn", "Glm4", "Phi"]
PARALLEL = {"GPTNeoX", "Phi"}
AFTER = {"Gemma3", "Olmo2", "Glm4"}
"""Families where what is added is a norm's output."""


@pytest.fixture(scope="module", params=EDITED)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def backbone(family):
    return layered(family)


@pytest.fixture
def x_BND(backbone):
    return backbone.table.rows(PROMPT).detach()


def last_norm(backbone):
    model = backbone.model.base_model
    return next(
        getattr(model, name) for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm") if hasattr(model, name)
    )


def nothing_left(backbone):
    """No hook, and no forward of a block replaced."""
    modules = [*backbone.model.modules()]
    return not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in modules)


def test_edits_do_what_they_say(backbone, x_BND):
    """Without additions a model is its last norm; reading alone changes nothing; what is put in last comes out."""
    norm = last_norm(backbone)
    first, _ = backbone.forward(x_BND, edit=lambda layer, site, x, _: x)
    same(first, backbone.forward(x_BND)[0])
    quiet, _ = backbone.forward(x_BND, edit=lambda layer, site, x, _: x * 0 if site.endswith("add") else x)
    same(quiet, norm(record_tokens(backbone, PROMPT).stream[0]))
    last, _ = backbone.forward(x_BND, edit=lambda layer, site, x, _: x_BND if (layer, site) == (1, "resid_out") else x)
    same(last, norm(x_BND))
    late, _ = backbone.forward(
        x_BND,
        edit=lambda layer, site, x, _: (
            x_BND if (layer, site) == (1, "resid_in") else x * (layer == 0 or site[:5] == "resid")
        ),
    )
    same(late, norm(x_BND))
    assert nothing_left(backbone)


def test_the_stream_is_the_sum_of_what_is_added(backbone, family):
    """By norms that stand after attention and MLP where a family has them, whose own outputs are something else."""
    found = record_tokens(backbone, PROMPT, MASK)
    assert found.gap() < 1e-14
    assert not torch.allclose(found.attention[0], torch.zeros_like(found.attention[0]))
    normed = "Norm" in type(backbone._layers()[0][0].attention).__name__
    assert normed == (family in AFTER)
    assert backbone.parallel == (family in PARALLEL)


def test_layers_alone_compute_what_they_compute_together(backbone):
    found, norm = record_tokens(backbone, PROMPT, MASK), last_norm(backbone)
    assert backbone.depth == found.depth == 2
    for start in range(3):
        for stop in range(start, 3):
            stream = backbone.through(found.stream[start], range(start, stop), MASK)
            same(stream[MASK], found.stream[stop][MASK])
    same(backbone.finish(found.stream[1]), norm(found.stream[1]))
    assert nothing_left(backbone)


@pytest.mark.parametrize(("layers", "ran"), [(range(0, 1), [0]), (range(1, 2), [1]), (range(0), [])])
def test_other_layers_do_not_compute(backbone, x_BND, layers, ran):
    seen, found = [], backbone._layers()[0]
    hooks = [
        layer.attention.register_forward_hook(lambda *_, number=number: seen.append(number))
        for number, layer in enumerate(found)
    ]
    backbone.through(x_BND, layers) if len(layers) else backbone.finish(x_BND)
    for hook in hooks:
        hook.remove()
    assert seen == ran


def test_gradients_reach_the_stream_that_enters_a_layer(backbone):
    x = record_tokens(backbone, PROMPT, MASK).stream[1].detach().requires_grad_()
    with torch.no_grad():
        direction = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)
        step = 1e-5 * direction
        ends = [backbone.through(x + sign * step, range(1, 2), MASK)[MASK].sin().sum() for sign in (1, -1)]
    slope = torch.autograd.grad(backbone.through(x, range(1, 2), MASK)[MASK].sin().sum(), x)[0]
    torch.testing.assert_close((slope * direction).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-6)


def test_an_edit_of_layers_alone_is_kept_and_sees_no_others(backbone):
    found, seen = record_tokens(backbone, PROMPT, MASK), []

    def double(layer, site, x, slots):
        seen.append((layer, site))
        return 2 * x if site == "resid_out" else x

    same(backbone.through(found.stream[0], range(0, 1), MASK, None, double)[MASK], 2 * found.stream[1][MASK])
    assert {layer for layer, _ in seen} == {0}


@pytest.mark.parametrize("layers", [range(0, 1), range(1, 2), range(0, 2)])
def test_an_error_leaves_nothing_behind(backbone, x_BND, layers):
    def fail(layer, site, x, slots):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        backbone.forward(x_BND, edit=fail)
    assert nothing_left(backbone)
    with pytest.raises(RuntimeError, match="no"):
        backbone.through(x_BND, layers, None, None, fail)
    assert nothing_left(backbone)
    with pytest.raises(ValueError, match="position 99"):
        backbone.through(x_BND, layers, None, torch.tensor([[0, 1, 2, 3, 99]]))
    assert nothing_left(backbone)


def test_a_forward_that_somebody_put_there_stays(backbone, x_BND):
    block = backbone._layers()[0][0].block

    def own(*inputs, **more):
        return type(block).forward(block, *inputs, **more)

    block.forward = own
    backbone.through(x_BND, range(1, 2))
    assert vars(block)["forward"] is own
    del block.forward


def test_more_vectors_than_positions_can_be_finished(backbone):
    """Forty positions, and a hundred and fifty vectors: each is a row of its own."""
    found = record_tokens(backbone, PROMPT.repeat(10, 1))
    same(found.logits(found.stream[-1])[:3], found.logits(found.stream[-1][:3]))


@pytest.mark.parametrize("family", ["Gemma2", "Olmo2"])
def test_what_is_added_is_found_in_half_precision_too(family):
    """By which module adds up best, beside what it adds: a large stream hides what is wrong."""
    model = small(family).to(torch.bfloat16)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)
    found = HFBackbone(model)
    assert "Norm" in type(found._layers()[0][0].attention).__name__


@pytest.mark.parametrize("family", ["GPTJ", "CodeGen"])
def test_blocks_that_return_several_values_can_be_passed_by(family):
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 40, "rotary_dim": 4}
    backbone = HFBackbone(small(family, **sizes).float())
    found = record_tokens(backbone, PROMPT)
    near(found.on(1, found.stream[1]), found.stream[2])
    near(found.on(0, found.stream[0], stop=1), found.stream[1])
    assert backbone.parallel


def test_other_blocks_are_refused_only_when_an_edit_is_asked_for():
    """Granite multiplies what it adds; OPT keeps its blocks elsewhere."""
    for family, options, words in (
        ("Granite", {}, "expected blocks that only add attention and MLP"),
        ("OPT", {"ffn_dim": 24, "word_embed_proj_dim": 16}, "expected blocks h or layers, each with mlp and self_attn"),
    ):
        with pytest.raises(ValueError, match=f"{family}ForCausalLM cannot be edited: {words}"):
            _ = HFBackbone(small(family, **options).to(torch.bfloat16)).depth
        backbone = HFBackbone(small(family, **options))
        x_BND = backbone.table.rows(PROMPT)
        plain, _ = backbone.forward(x_BND)
        for _ in range(2):
            with pytest.raises(ValueError, match=f"{family}ForCausalLM cannot be edited: {words}"):
                backbone.forward(x_BND, edit=lambda layer, site, x, _: x)
        same(backbone.forward(x_BND)[0], plain)
        assert nothing_left(backbone)
