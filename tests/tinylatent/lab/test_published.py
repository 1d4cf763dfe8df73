"""Published runs: true shapes have the published sizes, what a run takes is counted rightly, and each runs in small."""

from dataclasses import replace

import pytest
import torch

from tinylatent.lab.folders import train
from tinylatent.lab.measure import check
from tinylatent.lab.published import PUBLISHED, TINY_STEPS, plan, published, small
from tinylatent.models.huggingface_lora import LoRA
from tinylatent.models.huggingface_shapes import SHAPES, cache_bytes, kept_for_backward, misplaced, on_meta
from tinylatent.models.huggingface_small import save_small_model

PARAMETERS = {
    "gpt2": 124_439_808, "smollm2-135m": 134_515_008, "llama-3.2-1b": 1_235_814_400, "llama-3.1-8b": 8_030_261_248,
    "qwen2.5-1.5b": 1_543_714_304, "qwen3-8b": 8_190_735_360,
}  # fmt: skip
"""Published by those who made the models."""
LEAVES = [name for name in PUBLISHED if name not in {each.before for each in PUBLISHED.values()}]
SEEN = ("cot2-mts-prosqa", "hrpo-gsm8k", "colar-rl-gsm8k", "latentr3-rl-titles")
"""Recipes that are run in small here: they start from most of the others, and have three families between them."""


@pytest.mark.parametrize("name", SHAPES)
def test_true_shapes_have_the_published_number_of_parameters(name):
    backbone = on_meta(name, torch.bfloat16)
    assert sum(x.numel() for x in backbone.parameters()) == PARAMETERS[name]
    assert backbone.table.weight.is_meta


def test_adapters_add_what_their_ranks_say():
    """Two matrices of rank r a layer: r (inputs + outputs)."""
    backbone = on_meta("llama-3.2-1b", lora=LoRA(8, targets=("q_proj", "v_proj")))
    assert sum(x.numel() for x in backbone.parameters() if x.requires_grad) == 16 * 8 * (2 * 2048 + 2048 + 512)


def test_what_a_forward_keeps_is_what_it_keeps_where_it_computes(monkeypatch):
    """The same count on a model with values, which is asked without its cache; and it grows with the rows."""
    settings = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    monkeypatch.setitem(SHAPES, "other", ("Llama", {**settings, "num_key_value_heads": 2, "vocab_size": 50}))
    counted = kept_for_backward(on_meta("other"), 2, 24)
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**settings, num_key_value_heads=2, vocab_size=50))
    held = {x.untyped_storage().data_ptr() for x in model.parameters()}
    found = {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in held:
            found[storage.data_ptr()] = storage
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        x_BTD = torch.randn(2, 24, 64, requires_grad=True)
        model.model(inputs_embeds=x_BTD, use_cache=False)
    real = sum(storage.nbytes() for storage in found.values())
    assert counted.blocks == pytest.approx(real, rel=0.02)
    assert counted.logits == 2 * 24 * (50 + 64) * 4, "log-probabilities, and what the head reads"
    assert counted.inputs == 3 * 2 * 24 * 64 * 4
    assert kept_for_backward(on_meta("other"), 4, 24).blocks == pytest.approx(2 * counted.blocks, rel=0.02)


@pytest.mark.parametrize("name", ["gpt2", "qwen3-8b"])
def test_the_cache_has_the_size_of_its_tensors(name):
    backbone = on_meta(name, torch.bfloat16, layers=2)
    x_BTD = torch.empty(3, 5, backbone.table.width, dtype=torch.bfloat16, device="meta")
    _, cache = backbone.forward(x_BTD)
    assert sum(x.numel() * x.element_size() for layer in cache.layers for x in layer) == cache_bytes(backbone, 3, 5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_recipe_says_what_it_takes(name):
    recipe = published(name)
    found = plan(recipe)
    assert found.parameters >= PARAMETERS[recipe.shape]
    assert (found.trained > 0) == (recipe.training.steps > 0)
    assert found.moments == 2 * found.gradients
    assert found.memory >= found.weights
    if recipe.lora is None and name != "latentr3-rl-titles":
        assert found.trained >= PARAMETERS[recipe.shape]
    assert recipe.differs, "no run of ours is the paper's to the letter"


def test_sizes_of_one_recipe_by_hand():
    """Coconut on GPT-2 in float32: four bytes a weight, a gradient and each of two moments; 50 epochs of 17,886."""
    found = plan(published("coconut-prosqa"))
    assert (found.weights, found.gradients, found.moments) == tuple(124_439_808 * 4 * k for k in (1, 1, 2))
    assert (found.steps, found.tokens) == (50 * 17_886 // 128, 50 * 17_886 // 128 * 128 * 512)
    assert found.cache == 0
    halved = replace(published("coconut-prosqa"), checkpointing=True)
    assert plan(halved).forward < found.forward / 3


def test_a_reference_that_must_be_a_copy_is_counted():
    """It is one where the whole model is trained; adapters are switched off."""
    recipe = published("hrpo-gsm8k")
    for lora, copies in ((recipe.lora, 1), (None, 2)):
        changed = replace(recipe, lora=lora)
        without = plan(replace(changed, method=replace(recipe.method, kl=0.0)))
        assert plan(changed).weights == pytest.approx(copies * without.weights, rel=0.01)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"unknown recipe 'HRPO': did you mean hrpo-gsm8k\? Recipes are coconut-"):
        published("HRPO")
    with pytest.raises(ValueError, match="unknown recipe '': expected one of coconut-prosqa, "):
        published("")
    with pytest.raises(ValueError, match="unknown shape 'gpt5': expected one of gpt2, "):
        on_meta("gpt5")


# ---------------------------------------------------------------------------------------------------------------------
# In small, and for real


@pytest.mark.parametrize("name", LEAVES)
def test_every_recipe_can_be_tried_in_small(name, tmp_path):
    run = small(published(name), tmp_path)
    check(run, None)
    known = published(name)
    while True:
        assert type(run.method) is type(known.method)
        assert run.training.learning_rate == known.training.learning_rate
        assert run.training.steps == min(TINY_STEPS, known.training.steps)
        if known.before is None:
            break
        run, known = run.start, published(known.before)
    assert run.start is None


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEN)
def test_recipes_run_in_small(name, tmp_path):
    run = small(published(name), tmp_path)
    model = train(run, tmp_path / "run")
    assert all(bool(x.isfinite().all()) for x in model.parameters())
    fresh = dict(run.fresh().named_parameters())
    assert any(not torch.equal(x, fresh[key]) for key, x in model.named_parameters() if x.requires_grad)


def test_lines_and_tasks_of_ours_are_asked_for(tmp_path):
    save_small_model(tmp_path / "model", "GPT2")
    with pytest.raises(ValueError, match=r"trained on lines: expected a file of ProsQA, prosqa_train\.json"):
        published("coconut-prosqa").experiment(str(tmp_path / "model"))
    run = published("cot2-mts-prosqa").experiment(str(tmp_path / "model"), seed=3)
    assert (run.training.num_train, run.start.training.num_train, run.start.seeds.split) == (17_886, 17_886, 3)
    assert run.task.nodes == 22


def test_a_folder_is_compared_with_its_shape(tmp_path, monkeypatch):
    settings = {"vocab_size": 272, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    save_small_model(tmp_path / "model", "Llama", vocab_size=272)
    monkeypatch.setitem(SHAPES, "small", ("Llama", settings))
    assert misplaced("small", tmp_path / "model") == []
    monkeypatch.setitem(SHAPES, "small", ("Llama", settings | {"intermediate_size": 64, "num_hidden_layers": 3}))
    said = misplaced("small", tmp_path / "model")
    assert "model.layers.2.mlp.up_proj.weight is missing" in said
    assert "model.layers.0.mlp.up_proj.weight is [48, 32] instead of [64, 32]" in said
    monkeypatch.setitem(SHAPES, "small", ("Llama", settings | {"num_hidden_layers": 1}))
    assert "model.layers.1.mlp.up_proj.weight has no place" in misplaced("small", tmp_path / "model")
    with pytest.raises(ValueError, match=r"holds no \*\.safetensors: expected a folder"):
        misplaced("small", tmp_path)
