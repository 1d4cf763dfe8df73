"""The public face: its names are loaded when asked for, and ten lines of Python train, look and think."""

import importlib
import subprocess
import sys

import pytest
import torch

import tinylatent as tl
from tinylatent.methods import CoT2

TINY = {"steps": 12, "batch_size": 4, "save_every": 5}


@pytest.fixture(scope="module")
def run():
    return tl.run("mnns/cot2", **TINY)


def test_every_public_name_is_what_its_room_has():
    for name, module in tl._HOME.items():
        assert getattr(tl, name) is getattr(importlib.import_module(module), name)
    assert [*tl.__all__] == [*dict.fromkeys(tl.__all__)]
    assert {*tl.__all__} == {*tl._HOME} == {*dir(tl)} - {"__version__"}


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(AttributeError, match=r"no attribute 'rollouts': expected one of run, load,"):
        _ = tl.rollouts


def test_importing_loads_nothing_heavy():
    code = "import sys, tinylatent; print(sorted({'torch', 'numpy', 'scipy', 'matplotlib'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_run_says_how_often_it_is_right(run):
    right, total = run.record.evaluations["default"].right, run.record.total
    assert run.accuracy.value == pytest.approx(sum(right) / sum(total))
    assert run.accuracy.low <= run.accuracy.value <= run.accuracy.high
    assert str(run).startswith(f"mnns/cot2 seed 0: {100 * run.accuracy.value:.2f} % right [")
    assert run.evaluate().value == pytest.approx(run.accuracy.value)
    zero = run.record.evaluations["zero"].right
    assert run.evaluate(control="zero").value == pytest.approx(sum(zero) / sum(total))


def test_a_run_is_read_again_from_its_folder(run, tmp_path, capsys):
    kept = tl.run("mnns/cot2", out=tmp_path / "run", **TINY)
    again = tl.load(tmp_path / "run")
    assert again.record == tl.run("mnns/cot2", out=tmp_path / "run", **TINY).record
    assert "finished before" in capsys.readouterr().err
    for name, weights in run.model.state_dict().items():  # in a folder or not, the run is the same
        assert torch.equal(weights, kept.model.state_dict()[name])
        assert torch.equal(weights, again.model.state_dict()[name])


def test_an_interrupted_run_has_weights_and_no_record(run, tmp_path):
    (tmp_path / "run").mkdir()
    tl.run("mnns/cot2", out=tmp_path / "run", **TINY)
    (tmp_path / "run/result.json").unlink()
    loaded = tl.load(tmp_path / "run")
    assert loaded.record is None
    assert loaded.accuracy.value == pytest.approx(run.accuracy.value)


class Two(tl.Mixture):
    """The mixture of the two likeliest tokens."""

    def sample(self, state, streams):
        share, ids = state.logits.softmax(-1).topk(2)
        return self.given_sparse(ids, share / share.sum(-1, keepdim=True))


class Narrow(CoT2):
    def thinking(self, model, examples, temperature=0.0):
        return (tl.Segment(Two(), examples.num_steps),)


def test_a_thought_of_ones_own_reads_a_trained_model(run):
    narrow = run.using(Narrow())
    assert narrow.accuracy.value == narrow.evaluate().value
    wide, found = run.think([3, 5, 2, 8]), narrow.think([3, 5, 2, 8])
    assert found.steps[0].model == wide.steps[0].model  # of the prompt alone
    assert found.steps[-1].model != wide.steps[-1].model
    own = tl.run("mnns", Narrow(), **TINY)
    assert isinstance(own.experiment.method, Narrow)


def test_thoughts_roll_out(run):
    problem = run.examples([[3, 5, 2, 8]])
    plan = (tl.Segment(tl.MultiToken(3), 3), tl.Segment(tl.Token(), 1, name="answer"))
    trace = tl.rollout(run.model.backbone, plan, problem.prompt_BN, streams=tl.Streams(0, 8), group=8)
    assert trace.answer().shape == (8, 1)
    assert torch.equal(tl.Streams(0, 8).uniform(), tl.Streams(0, torch.arange(8)).uniform())


REFUSED = {
    "no such recipe": (lambda: tl.run("mnns/nonsense"), "unknown recipe 'mnns/nonsense'"),
    "no such setting": (lambda: tl.run("mnns/cot2", step=5), "'step': expected fields of tinylatent.Training"),
    "a recipe and a method": (lambda: tl.run("mnns/cot2", CoT2()), "'mnns/cot2' with a method of your own"),
    "not registered": (lambda: tl.run("mnns", Narrow(), out="never"), "Narrow is not registered"),
    "no such device": (lambda: tl.run("mnns/cot2", device="tpu", **TINY), "unknown device 'tpu'"),
    "no run": (lambda: tl.load("/nonexistent"), "/nonexistent holds no run"),
}


@pytest.mark.parametrize(("call", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_said(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_parts_that_weights_lack_are_named(run):
    with pytest.raises(ValueError, match=r"pause has the parts .* which these weights lack"):
        run.using(tl.METHODS["pause"]())
    with pytest.raises(ValueError, match="give every problem 4"):
        run.think([0, 1])
