"""Float64 where a device has it. CPU tensors stand in for those of a device that has none: there is none at hand."""

import re
from pathlib import Path

import pytest
import torch
from fakes import Always

import tinylatent
from tinylatent.core import precision
from tinylatent.core.precision import back, exact_device, wide
from tinylatent.core.seeds import Streams
from tinylatent.engine.controls import Noise
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY, MIXTURE, Dirichlet, MultiToken, Stopping, Token
from tinylatent.models.decoder import Decoder, ModelConfig

CPU = torch.device("cpu")


@pytest.fixture
def without(monkeypatch):
    """The CPU counts as a device without float64."""
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", ("cpu",))


def test_float64_is_computed_on_a_device_that_has_it():
    assert exact_device(torch.device("mps", 0)) == exact_device(CPU) == CPU
    assert exact_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    x = torch.tensor([0.1], requires_grad=True)
    assert wide(x).dtype == torch.float64
    assert torch.autograd.grad(wide(x).sum(), x)[0].dtype == torch.float32
    assert back(wide(x), CPU).dtype == torch.float64


def test_it_comes_back_in_what_the_device_has(without):
    for x, dtype in ((0.1, torch.float32), (True, torch.bool), (1, torch.int64)):
        x = torch.tensor(x, dtype=torch.float64 if isinstance(x, float) else None)
        assert back(x, CPU).dtype == dtype


THOUGHTS = [
    Token(1.0),
    MultiToken(3),
    Dirichlet(2.0),
    Noise(MIXTURE),
    Stopping(MIXTURE, Always(-0.5).float()),
]


@pytest.mark.parametrize("thought", THOUGHTS, ids=lambda thought: type(thought).__name__)
def test_a_device_without_float64_draws_the_same(thought, monkeypatch):
    """The same actions, log-probabilities in float32: it is the same computation, on the CPU."""
    model = Decoder.fresh(7, 16, ModelConfig(8, 2, 2))
    plan, prompt_BN = (Segment(thought, 3), Segment(GREEDY, 1)), torch.tensor([[1, 2], [3, 4], [5, 6]])
    own = rollout(model, plan, prompt_BN, streams=Streams(0, 3))
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", ("cpu",))
    other = rollout(model, plan, prompt_BN, streams=Streams(0, 3))
    for a, b in zip(own.thought_spans, other.thought_spans, strict=True):
        assert a.action.values.keys() == b.action.values.keys()
        assert all(torch.equal(value, b.action[name]) for name, value in a.action.values.items())
    assert other.sampled_log_prob_BT.dtype == other.log_prob_BT.dtype == torch.float32
    torch.testing.assert_close(other.log_prob_BT, own.log_prob_BT.float())
    torch.testing.assert_close(other.sampled_log_prob_BT, own.sampled_log_prob_BT.float())
    assert torch.equal(other.hidden_BTD, own.hidden_BTD)


def test_float64_is_asked_for_in_one_place():
    """What runs on a model's device calls `wide`; what draws is on `exact_device` already."""
    root = Path(tinylatent.__file__).parent
    files = [path for room in ("models", "engine", "objectives", "methods") for path in (root / room).glob("*.py")]
    assert len(files) > 20
    found = {path.name for path in files if re.search(r"\.double\(|dtype=torch\.float64", path.read_text("utf-8"))}
    assert not found
