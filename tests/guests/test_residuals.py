"""Guest: what a model adds to its residual stream while it thinks, on our decoder and on a tiny Llama."""

import os

import pytest
import torch
from tinylatent_tasks import MNNS

from tinylatent.lab.experiment import Experiment
from tinylatent.lenses.residuals import record_trace
from tinylatent.methods import Coconut, CoT2
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import Model
from tinylatent.objectives.speakers import Symbols

TASK = MNNS(digits=3, high=3)


def decoder():
    return Experiment(task=TASK, model=ModelConfig(layers=3)).fresh()


def llama():
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = pytest.importorskip("transformers")
    from tinylatent.models.huggingface import HFBackbone

    config = transformers.LlamaConfig(
        vocab_size=len(TASK.vocabulary), hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(HFBackbone(transformers.LlamaForCausalLM(config)))


@pytest.mark.parametrize("make", [decoder, llama])
@pytest.mark.parametrize("method", [CoT2(), Coconut()])
def test_contributions_add_up(make, method, unchecked):
    model, examples = make(), Symbols(TASK, TASK.split("train", 0)[:5]).examples()
    model.stage.fill_(2)
    solution = method.solve(model, examples, group=2)
    residuals = record_trace(solution.trace)
    slots = examples.prompt_BN.shape[1] + solution.trace.steps - 1
    assert residuals.stream.shape == (4, 10, slots, model.backbone.table.width)
    assert residuals.gap() < 1e-5
    total = residuals.stream[0] + residuals.attention.sum(0) + residuals.mlp.sum(0)
    torch.testing.assert_close(total, residuals.stream[-1], rtol=1e-4, atol=1e-5)
    said = residuals.logits(residuals.stream[-1][:, -1]).argmax(-1)
    assert torch.equal(said[:, None], solution.answer_BA)
    fed = residuals.stream[0][:, examples.prompt_BN.shape[1] :]  # what is fed, beside positions where a model adds them
    places = getattr(model.backbone, "pos_emb", torch.zeros(slots, 1))[examples.prompt_BN.shape[1] : slots]
    torch.testing.assert_close(fed - places, solution.trace.inputs_BTD, rtol=1e-4, atol=1e-5)
