"""Runs that start from others: with their weights, on their problems, trained first or found elsewhere."""

import json
from dataclasses import replace

import msgspec
import pytest
import torch
from tinylatent_tasks import MNNS, SubsetSum

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import begun, load, train
from tinylatent.lab.measure import check, measure
from tinylatent.lab.records import DEFAULT
from tinylatent.methods import GRPO, HRPO, Coconut, CoLaRGRPO, Direct, DiscreteCoT, LatentSeek
from tinylatent.methods.colar import CoLaR
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.checkpoints import OPTIMIZER, WEIGHTS, find_checkpoint
from tinylatent.training.config import Training

TASK = MNNS(3, 1, 3)


def recipe(**changes):
    return Training(
        **{"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "weight_decay": 0.0, "log_every": 2, **changes}
    )


def begun_from(method=None, steps=20, **changes):
    """A short run that starts from a supervised one of so many steps."""
    first = Training(steps=steps, batch_size=8, learning_rate=1e-2, log_every=10)
    start = Experiment(TASK, DiscreteCoT(), ModelConfig(16, 1, 1), first)
    return replace(start, method=method or GRPO(samples=2), training=recipe(**changes), start=start)


def quiet(text):
    pass


def cut(whole, folder, at):
    """Trains until a step is logged, and no further."""

    class Stop(Exception):
        pass

    def on_progress(step, loss):
        if step == at:
            raise Stop

    with pytest.raises(Stop):
        train(whole, folder, on_progress=on_progress, say=quiet)


def plain(evaluations):
    """Evaluations, less the timing."""
    return {name: msgspec.structs.replace(found, problems_per_s=0) for name, found in evaluations.items()}


def test_a_run_begins_with_the_weights_it_starts_from(tmp_path, unchecked):
    """Trained under its own folder, or found elsewhere: the same run, and its record tells before from after."""
    whole = begun_from(GRPO(samples=2, kl=0.1), steps=150)
    record = measure(whole, tmp_path / "a")
    train(whole.start, tmp_path / "start", say=quiet)
    again = measure(whole, tmp_path / "b", start=tmp_path / "start")
    assert plain(record.evaluations) == plain(again.evaluations)
    assert plain(record.before.evaluations) == plain(again.before.evaluations)
    assert (record.sampling, record.before.sampling) == (again.sampling, again.before.sampling)
    assert (tmp_path / "a" / "start" / "config.json").exists()
    _, model = load(tmp_path / "b")
    _, start = load(tmp_path / "start")
    reference = model.parts["reference"].backbone.state_dict()
    assert all(torch.equal(reference[name], value) for name, value in start.backbone.state_dict().items())
    before = record.before.evaluations
    assert set(before) == {DEFAULT, "noise", "shuffled", "zero", "greedy", "mixture"}
    assert before["greedy"].right != before["zero"].right
    assert [line["step"] for line in record.metrics] == [2, 4, 6]
    assert Experiment.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_a_run_from_a_start_that_is_cut_ends_as_one_that_was_not(tmp_path, unchecked):
    whole = begun_from(GRPO(samples=2, curriculum=(1,), kl=0.1, updates=2), save_every=2)
    train(whole, tmp_path / "whole", say=quiet)

    cut(whole, tmp_path / "cut", at=4)
    train(whole, tmp_path / "cut", say=quiet)
    ends = [find_checkpoint(tmp_path / name).folder for name in ("whole", "cut")]
    for name in (WEIGHTS, OPTIMIZER):
        assert len({(end / name).read_bytes() for end in ends}) == 1


def test_another_or_unfinished_start_is_refused(tmp_path, unchecked):
    whole = begun_from()
    train(replace(whole.start, seeds=Seeds(init=1)), tmp_path / "other", say=quiet)
    with pytest.raises(ValueError, match="holds another run than this experiment starts from"):
        train(whole, tmp_path / "a", start=tmp_path / "other")
    with pytest.raises(ValueError, match="holds no run"):
        train(whole, tmp_path / "b", start=tmp_path / "nowhere")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()

    half = replace(whole, start=replace(whole.start, training=replace(whole.start.training, save_every=5)))
    cut(half.start, tmp_path / "half", at=10)
    with pytest.raises(ValueError, match="is not trained to its end"):
        train(half, tmp_path / "c", start=tmp_path / "half")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": MNNS(3, 1, 4)}, "another task"),
        ({"model": ModelConfig(32, 1, 1)}, "another model"),
        ({"seeds": Seeds(split=3)}, "another split seed"),
        ({"training": recipe(num_train=40)}, "another training.num_train"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(change, said):
    with pytest.raises(ValueError, match=f"the run to start from has {said}"):
        replace(begun_from(), **change)


@pytest.mark.parametrize(
    ("method", "ends", "said"),
    [
        (CoLaR(), False, "is of discrete with ends False: expected True, as colar needs"),
        (HRPO(), False, "is of discrete with ends False: expected True, as hrpo needs"),
        (LatentSeek(ends=True), False, "is of discrete with ends False: expected True, as latentseek needs"),
        (LatentSeek(), True, "is of discrete with ends True: expected False, as latentseek needs"),
    ],
)
def test_chains_of_a_start_must_end_as_the_method_reads_them(method, ends, said):
    start = replace(begun_from().start, method=DiscreteCoT(ends=ends))
    with pytest.raises(ValueError, match=said):
        replace(start, method=method, start=start)
    replace(start, method=method, start=replace(start, method=DiscreteCoT(ends=not ends)))


def test_a_judge_that_the_task_has_not_is_refused_before_the_start_is_trained(tmp_path, unchecked):
    def judged(task):
        start = Experiment(task, DiscreteCoT(), ModelConfig(16, 1, 1), recipe(num_train=8))
        none = replace(start.training, steps=0)
        return replace(start, method=LatentSeek(judge="certificate"), training=none, start=start)

    with pytest.raises(ValueError, match="mnns has no certificates"):
        check(judged(TASK), tmp_path / "a")
    check(judged(SubsetSum(numbers=4)), tmp_path / "b")


@pytest.mark.parametrize("change", [{"speeds": (2,)}, {"head": 7}, {"deterministic": True}])
def test_rewards_go_on_with_the_head_and_the_speeds_of_colar(change):
    start = replace(begun_from().start, method=CoLaR())
    with pytest.raises(ValueError, match="the run to start from is of colar with"):
        replace(start, method=CoLaRGRPO(**change), start=start)


def test_a_start_may_have_fewer_positions_or_more(unchecked):
    """Those that are new stay as they were drawn, the others are the start's; what a method does not use is kept."""
    short = begun_from().start
    whole = replace(begun_from(), method=Coconut(per_step=2, stages=1))
    assert whole.positions == short.positions + 1
    began, there = begun(whole, None, "cpu", quiet), train(short, say=quiet)
    own, theirs = began.backbone.pos_emb, there.backbone.pos_emb
    assert torch.equal(own[:-1], theirs)
    assert torch.equal(own[-1], whole.fresh().backbone.pos_emb[-1])
    assert torch.equal(began.backbone.embedding, there.backbone.embedding)
    back = begun(replace(whole, method=GRPO(), start=replace(whole, start=None)), None, "cpu", quiet)
    assert len(back.backbone.pos_emb) == whole.positions


def test_a_start_may_have_tokens_that_a_method_without_its_own_does_not_use(unchecked):
    """Its table is taken over whole; other tokens in the same rows would be mistaken for each other."""
    start = replace(begun_from().start, method=DiscreteCoT(ends=True))
    whole = replace(begun_from(), method=Direct(), start=start)
    began, there = begun(whole, None, "cpu", quiet), train(start, say=quiet)
    assert whole.tokens == len(TASK.vocabulary) + 1
    assert torch.equal(began.backbone.embedding, there.backbone.embedding)
    with pytest.raises(ValueError, match="has the extra tokens <end>, <x1>, this method <end>: expected the same"):
        replace(whole, method=start.method, start=replace(start, method=CoLaR(speeds=(1,))))
