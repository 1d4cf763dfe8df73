"""Adapters: they add nothing at first, are all that is trained, and switched off they leave the model as it was."""

import sys

import pytest
import torch
from families import MASK, PROMPT, same, small
from naive import score
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tinylatent_tasks import MNNS

from tinylatent.core.seeds import Streams
from tinylatent.engine.force import replay
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import Mixture, MultiToken, Token
from tinylatent.methods import METHODS
from tinylatent.models.huggingface import HFBackbone
from tinylatent.models.huggingface_lora import LoRA, adapted, add_lora, fold, reference_of, switched_off
from tinylatent.objectives.method import TrainState
from tinylatent.objectives.speakers import Symbols

PLAN = (Segment(Mixture(), 2), Segment(Token(), 1, name="answer"))


def with_adapters(family, seed=None, **settings):
    """A small model with adapters; with random second matrices if there is a seed."""
    model = small(family)
    add_lora(model, LoRA(rank=2, alpha=6.0, **settings))
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in adapted(model):
                second = layer.lora_B["default"].weight
                second.copy_(torch.empty(second.shape).normal_(generator=generator))
    return model


@pytest.mark.parametrize("family", ["Llama", "Gemma", pytest.param("Gemma3", marks=pytest.mark.slow)])
def test_adapters_are_a_product_of_two_matrices_added_to_a_layer(family):
    """Held against the model with the products added by hand; nothing at first; all linear layers but the head."""
    plain, fresh, model = small(family), with_adapters(family), with_adapters(family, seed=1)
    wanted = rollout(HFBackbone(plain), PLAN, PROMPT, MASK)
    same(rollout(HFBackbone(fresh), PLAN, PROMPT, MASK).logits_BTV, wanted.logits_BTV)
    weights = dict(plain.named_parameters())
    names = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    ends = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert names == {f"model.layers.{layer}.{'mlp' if 'p_p' in end or end[:2] in ('ga', 'do') else 'self_attn'}.{end}"
                     for layer in range(2) for end in ends}  # fmt: skip
    with torch.no_grad():
        for name in names:
            layer = model.get_submodule(name)
            product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            weights[f"{name}.weight"] += 3.0 * product
    found = rollout(HFBackbone(model), PLAN, PROMPT, MASK)
    same(found.logits_BTV, rollout(HFBackbone(plain), PLAN, PROMPT, MASK).logits_BTV)


def test_adapters_alone_are_trained_and_drawn_from_their_own_generator():
    state = torch.random.get_rng_state()
    one, two = with_adapters("Llama"), with_adapters("Llama")
    assert torch.equal(torch.random.get_rng_state(), state)
    trained = {name for name, parameter in one.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in one.named_parameters() if "lora_" in name}
    for name in trained:
        assert torch.equal(one.get_parameter(name), two.get_parameter(name))
    some = with_adapters("Llama", targets=("q_proj",))
    assert len(adapted(some)) == 2
    with pytest.raises(ValueError, match="nowhere"):
        with_adapters("Llama", targets=("nowhere",))
    with pytest.raises(ValueError, match=r"rank 0 and alpha .*: expected positive ones"):
        LoRA(0)


def test_switched_off_they_leave_the_model_as_it_was():
    """In values and in what is trained; also when the context ends by an error."""
    model = with_adapters("Llama", seed=1)
    backbone, plain = HFBackbone(model), HFBackbone(small("Llama"))
    frozen = model.model.layers[0].mlp.up_proj.lora_A["default"].weight.requires_grad_(False)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    before = rollout(backbone, PLAN, PROMPT, MASK).logits_BTV
    with switched_off(model):
        same(rollout(backbone, PLAN, PROMPT, MASK).logits_BTV, rollout(plain, PLAN, PROMPT, MASK).logits_BTV)
    with pytest.raises(KeyError), switched_off(model):
        raise KeyError
    same(rollout(backbone, PLAN, PROMPT, MASK).logits_BTV, before)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained
    assert not frozen.requires_grad


def test_what_was_learned_is_folded_in():
    model = with_adapters("Llama", seed=1)
    backbone = HFBackbone(model)
    before = rollout(backbone, PLAN, PROMPT, MASK).logits_BTV
    fold(model)
    same(rollout(backbone, PLAN, PROMPT, MASK).logits_BTV, before)
    with switched_off(model):
        same(rollout(backbone, PLAN, PROMPT, MASK).logits_BTV, before)


def test_half_precision_takes_nothing_in_and_says_so():
    """A hundredth of a matrix' spacing would be lost; adapters that have learned nothing change nothing."""
    fresh = small("Llama").bfloat16()
    add_lora(fresh, LoRA(rank=2))
    fold(fresh)
    model = small("Llama").bfloat16()
    add_lora(model, LoRA(rank=2))
    second = adapted(model)[-1].lora_B["default"].weight
    with torch.no_grad():
        second.fill_(1e-5)
    weights = {name: x.clone() for name, x in model.named_parameters()}
    with pytest.raises(ValueError, match=r"a model in bfloat16 is too coarse to take in.*load it as float32"):
        fold(model)
    assert all(torch.equal(x, weights[name]) for name, x in model.named_parameters())


def test_a_view_is_a_backbone_without_adapters():
    model = with_adapters("Llama", seed=1)
    backbone, plain = HFBackbone(model), HFBackbone(small("Llama"))
    view = reference_of(backbone)
    plan = (Segment(MultiToken(3), 2), Segment(Token(1.0), 1, name="answer"))
    trace = rollout(backbone, plan, PROMPT, MASK, streams=Streams(0, torch.arange(3)))
    same(replay(view, trace).log_prob_BT, replay(plain, trace).log_prob_BT)
    assert (replay(view, trace).log_prob_BT - trace.log_prob_BT).abs().max() > 0.1
    assert view.flops(3) == backbone.flops(3)
    model.lm_head.weight.requires_grad_()
    assert reference_of(backbone) is None
    assert reference_of(plain) is None


def test_adapters_of_a_model_in_half_precision_are_float32():
    model = small("Llama").bfloat16()
    add_lora(model, LoRA(rank=2))
    backbone = HFBackbone(model)
    trace = rollout(backbone, PLAN, PROMPT, MASK, grad=True)
    assert (trace.hidden_BTD.dtype, trace.logits_BTV.dtype) == (torch.bfloat16, torch.float32)
    score(trace.logits_BTV).backward()
    for layer in adapted(model):
        second = layer.lora_B["default"].weight
        assert second.dtype == second.grad.dtype == torch.float32
        assert second.grad.isfinite().all()
        assert second.grad.any()


# ---------------------------------------------------------------------------------------------------------------------
# The reference of a policy gradient


TASK = MNNS(digits=3, high=2)
WARNS = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks by the older name


def test_the_reference_is_the_model_without_its_adapters():
    """The same divergence as from a copy of the model, whose adapters had learned something when training began."""
    method = METHODS["grpo"](samples=2, group=2, kl=0.5)
    examples = Symbols(TASK, TASK.problems(4, 0)).examples()
    values, kept = [], []
    for everything in (False, True):
        model = with_adapters("Llama", seed=1)
        if everything:
            model.requires_grad_()  # so that a copy is made
        made = method.model(HFBackbone(model, len(TASK.vocabulary)), torch.Generator().manual_seed(0))
        state = TrainState(0, 10, seed=3)
        method.enter(made, 0, examples, state)
        kept.append([name for name, _ in made.parts["reference"].named_parameters()])
        with torch.no_grad():
            for layer in adapted(model):
                layer.lora_B["default"].weight += 0.05  # what training may do
        batch = method.collect(made, examples, state)
        loss = method.loss(made, batch, state)
        values.append(loss.metrics["reference_kl"].item())
    assert kept[0] == []
    assert len(kept[1]) > 10
    assert values[0] > 1e-3
    assert values[0] == pytest.approx(values[1], rel=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Wrappers of peft


@WARNS
def test_a_wrapper_of_peft_is_its_model():
    wrapped = get_peft_model(small("Llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    backbone = HFBackbone(wrapped)
    same(
        rollout(backbone, PLAN, PROMPT, MASK).logits_BTV,
        rollout(HFBackbone(small("Llama")), PLAN, PROMPT, MASK).logits_BTV,
    )
    trace = rollout(backbone, PLAN, PROMPT, MASK, grad=True)
    score(trace.logits_BTV).backward()
    assert wrapped.base_model.model.model.layers[1].self_attn.q_proj.lora_B["default"].weight.grad.any()


@WARNS
def test_wrappers_that_change_the_input_are_refused():
    wrapped = get_peft_model(small("Llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match=r"of kind .* lives in its wrapper, which embeddings pass by"):
        HFBackbone(wrapped)


@WARNS
@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")
def test_a_copy_of_a_tied_embedding_is_refused():
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    wrapped = get_peft_model(small("Gemma"), config)
    with pytest.raises(ValueError, match="input and output embeddings of GemmaForCausalLM are two tensors, though"):
        HFBackbone(wrapped)


def test_a_missing_package_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"LoRA needs the package peft: pip install 'tinylatent\[lora\]'"):
        add_lora(small("Llama"), LoRA())
