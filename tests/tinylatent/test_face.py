"""The public face: its names are loaded when asked for, and ten lines of Python train, look and think."""

import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch

import tinylatent as tl
from tinylatent.lab.thought_figure import draw_thought
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
    assert str(run).startswith(f"CoT2 on mnns, seed 0: {100 * run.accuracy.value:.2f} % right [")
    assert run.evaluate().value == pytest.approx(run.accuracy.value)
    zero = run.record.evaluations["zero"].right
    assert run.evaluate(control="zero").value == pytest.approx(sum(zero) / sum(total))


def test_a_control_needs_latents(run):
    with pytest.raises(ValueError, match="discrete CoT has no latents, so there is nothing to replace"):
        run.using(tl.METHODS["discrete"]()).evaluate(control="zero")
    with pytest.raises(ValueError, match="unknown control"):
        run.evaluate(control="nonsense")


def test_numbers_of_numpy_are_numbers(run, unchecked):
    given = {name: np.int64(value) for name, value in TINY.items()}
    again = tl.run("mnns/cot2", seed=np.int64(0), **given, learning_rate=np.float64(0.01))
    assert again.record.id == run.record.id
    usual = run.think([3, 5, 2, 8])
    for problem in (
        np.array([3, 5, 2, 8]),
        (3, 5, 2, 8),
        {"digits": np.array([3, 5, 2, 8])},
        torch.tensor([3, 5, 2, 8]),
    ):
        assert again.think(problem) == usual


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
    assert str(narrow).startswith("Narrow on mnns, seed 0: ")
    assert narrow.accuracy.value == narrow.evaluate().value
    wide, found = run.think([3, 5, 2, 8]), narrow.think([3, 5, 2, 8])
    assert found.method == "Narrow"
    for step in found.steps[:-1]:  # what the thought put into the vector, not what the model reads out
        assert sum(share > 0 for share in step.model.values()) <= 2
        assert sum(step.model.values()) == pytest.approx(1)
    assert sum(share > 0 for share in wide.steps[1].model.values()) > 2
    own = tl.run("mnns", Narrow(), **TINY)
    assert isinstance(own.experiment.method, Narrow)


def test_thoughts_roll_out(run):
    problem = run.examples([[3, 5, 2, 8]])
    plan = (tl.Segment(tl.MultiToken(3), 3), tl.Segment(tl.Token(), 1, name="answer"))
    trace = tl.rollout(run.model.backbone, plan, problem.prompt_BN, streams=tl.Streams(0, 8), group=8)
    assert trace.answer().shape == (8, 1)
    assert torch.equal(tl.Streams(0, 8).uniform(), tl.Streams(0, torch.arange(8)).uniform())


def test_what_is_held_is_what_the_thought_makes(run):
    """Two tokens drawn a step are two halves, whatever the model reads out."""
    drawn = run.using(tl.METHODS["grpo"](samples=2)).think([3, 5, 2, 8])
    for step in drawn.steps[:-1]:
        assert {*step.model.values()} <= {0.0, 0.5, 1.0}
        assert sum(step.model.values()) == pytest.approx(1)


class Gate(tl.Thought):
    """Keeps half of the hidden state: its action has a name that mixtures use, and is none."""

    has_latent = True

    def sample(self, state, streams):
        return tl.Action({"alpha": torch.full_like(state.hidden[..., :1], 0.5), "hidden": state.hidden})

    def latent(self, state, action):
        return action["alpha"] * action["hidden"]


class Sharp(tl.Mixture):
    def sample(self, state, streams):
        return self.given((20 * state.logits).softmax(-1))


class Odd(tl.Mixture):
    """Feeds back twice what its action says."""

    def latent(self, state, action):
        return 2 * super().latent(state, action)


def thinking_with(thought):
    class Own(CoT2):
        def thinking(self, model, examples, temperature=0.0):
            return (tl.Segment(thought, examples.num_steps),)

    return Own()


def test_what_is_no_mixture_of_tokens_is_not_told_as_one(run):
    plain = run.think([3, 5, 2, 8])
    assert plain.is_held
    assert run.using(thinking_with(Sharp())).think([3, 5, 2, 8]).steps[0].model != plain.steps[0].model
    for thought in (Gate(), Odd()):
        found = run.using(thinking_with(thought)).think([3, 5, 2, 8])
        assert not found.is_held
        assert found.steps[0].model == plain.steps[0].model, "what is read out of the prompt"
        assert "feeds back no mixture of tokens: shown is what it reads out" in str(found)
    assert run.using(tl.METHODS["discrete"]()).think([3, 5, 2, 8]).is_held, "tokens are no latents"


def test_a_thought_is_drawn(run, tmp_path):
    """As `tinylatent show` draws its JSON."""
    found = run.think([3, 5, 2, 8])
    found.draw(tmp_path / "thought.svg")
    found.draw(str(tmp_path / "thought.png"))
    for suffix in ("svg", "png"):
        draw_thought(found.to_json(), tmp_path / f"again.{suffix}")
        assert (tmp_path / f"thought.{suffix}").read_bytes() == (tmp_path / f"again.{suffix}").read_bytes()
    with pytest.raises(ValueError, match=r"thought\.jpg names no format"):
        found.draw(tmp_path / "thought.jpg")


REFUSED = {
    "no such recipe": (lambda: tl.run("mnns/nonsense"), "unknown recipe 'mnns/nonsense'"),
    "no such setting": (
        lambda: tl.run("mnns/cot2", step=5),
        "training has the unknown setting 'step': expected",
    ),
    "a recipe and a method": (lambda: tl.run("mnns/cot2", CoT2()), "'mnns/cot2' with a method of your own"),
    "text for a number": (
        lambda: tl.run("mnns/cot2", steps="300"),
        r"training.steps is '300' \(Expected `int`",
    ),
    "a share for a number": (
        lambda: tl.run("mnns/cot2", steps=3.5),
        r"training.steps is 3\.5 \(Expected `int`",
    ),
    "a yes for a number": (
        lambda: tl.run("mnns/cot2", steps=True),
        r"training.steps is True \(Expected `int`",
    ),
    "a word for a seed": (lambda: tl.run("mnns/cot2", seed="a"), "a recipe 'mnns/cot2' with seed 'a'"),
    "a comparison": (lambda: tl.run("mnns"), "'mnns' is a comparison: name a recipe of it, such as mnns/cot2"),
    "no folder": (lambda: tl.run("mnns/cot2", out=3), "a folder 3: expected a path"),
    "nothing to load": (lambda: tl.load(3), "a folder 3: expected a path"),
    "no recipe": (lambda: tl.run(None), "a recipe None with seed 0: expected such as 'mnns/cot2'"),
    "a method's name": (lambda: tl.run("mnns", "cot2"), "'cot2' is no method: expected an instance"),
    "a method's class": (lambda: tl.run("mnns", CoT2), "CoT2'> is no method: expected an instance"),
    "not registered": (lambda: tl.run("mnns", Narrow(), out="never"), "Narrow is not registered"),
    "no such device": (lambda: tl.run("mnns/cot2", device="tpu", **TINY), "unknown device 'tpu'"),
    "no run": (lambda: tl.load("/nonexistent"), "/nonexistent holds no run"),
}


@pytest.mark.parametrize(("call", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_said(call, said, unchecked):
    with pytest.raises(ValueError, match=said):
        call()


def test_parts_that_weights_lack_are_named(run):
    with pytest.raises(ValueError, match=r"pause has the parts .* which these weights lack"):
        run.using(tl.METHODS["pause"]())
    with pytest.raises(ValueError, match=r"discrete has the extra tokens .*, these weights none: expected the same"):
        run.using(tl.METHODS["discrete"](ends=True))
    with pytest.raises(ValueError, match="give every problem 4"):
        run.think([0, 1])


def test_what_is_no_plan_is_told(run, unchecked):
    prompt = run.examples([[3, 5, 2, 8]]).prompt_BN
    with pytest.raises(ValueError, match="a plan of Segment: expected a tuple of segments"):
        tl.rollout(run.model.backbone, tl.Segment(tl.Token(), 1), prompt)
    with pytest.raises(ValueError, match="a prompt of type list"):
        tl.rollout(run.model.backbone, (tl.Segment(tl.Token(), 1),), [[1, 2]])
    with pytest.raises(ValueError, match="expected a thought"):
        tl.Segment(tl.Token, 1)
    with pytest.raises(ValueError, match="temperature nan"):
        tl.Token(float("nan"))
    with pytest.raises(ValueError, match=r"samples 2\.5"):
        tl.MultiToken(2.5)
    with pytest.raises(ValueError, match="streams for -1 rows"):
        tl.Streams(0, -1)
    with pytest.raises(KeyError, match="unknown method 'nope': expected one of best-of-n, coconut"):
        tl.METHODS["nope"]
    with pytest.raises(ValueError, match="'discrete' is no method"):
        run.using("discrete")
