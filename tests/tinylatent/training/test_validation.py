"""Accuracy on validation problems during training: what it is of, and that training does not notice it."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from tinylatent_tasks import MNNS, MultiHop

from tinylatent.core.files import read_lines
from tinylatent.core.seeds import Seeds
from tinylatent.evaluation.evaluate import evaluate, sample_answers
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import load, train
from tinylatent.methods import GRPO, Coconut, CoT2, DiscreteCoT
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import Method
from tinylatent.objectives.rewards import truth
from tinylatent.training import loop
from tinylatent.training.checkpoints import METRICS, OPTIMIZER, WEIGHTS, find_checkpoint
from tinylatent.training.config import Training
from tinylatent.training.loop import STAGES, fit
from tinylatent.training.validation import Validation

pytestmark = pytest.mark.usefixtures("unchecked")
TASK, SEEDS = MNNS(3, 1, 4), Seeds.all(3)


def experiment(method, task=TASK, dropout=0.0, **recipe):
    usual = {"steps": 12, "batch_size": 4, "learning_rate": 0.02, "log_every": 3, "save_every": 5}
    return Experiment(task, method, ModelConfig(8, 1, 1, dropout=dropout), Training(**{**usual, **recipe}), SEEDS)


def quiet(text):
    pass


def lines(folder, *without):
    left_out = ("problems_per_s", *without)
    return [{k: v for k, v in line.items() if k not in left_out} for line in read_lines(folder / METRICS)]


METHODS = {
    "cot2": experiment(CoT2()),
    "dropout": experiment(CoT2(prefix="self"), dropout=0.3, micro_batch=3),
    "coconut": experiment(Coconut(stages=2, share=0.3)),
    "grpo": experiment(GRPO(samples=2, group=3, updates=2, kl=0.1)),
    "drawn": experiment(DiscreteCoT(), MultiHop(hops=2), num_train=40),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "cot2")) for name in METHODS])
def test_asking_changes_no_bit_of_a_run(name, tmp_path):
    """Weights, optimizer, ends of stages and all other metrics are those of a run that asks nothing."""
    whole = METHODS[name]
    for count in (0, 256):
        train(replace(whole, training=replace(whole.training, validate=count)), tmp_path / str(count), say=quiet)
    none, some = (find_checkpoint(tmp_path / str(count)).folder for count in (0, 256))
    for file in (WEIGHTS, OPTIMIZER):
        assert (none / file).read_bytes() == (some / file).read_bytes(), file
    ends = [sorted((tmp_path / count / STAGES).rglob(WEIGHTS)) for count in ("0", "256")]
    assert [path.read_bytes() for path in ends[0]] == [path.read_bytes() for path in ends[1]]
    assert lines(tmp_path / "0") == lines(tmp_path / "256", "validation_accuracy")
    assert all(0 <= line["validation_accuracy"] <= 1 for line in lines(tmp_path / "256"))
    assert not any("validation_accuracy" in line for line in lines(tmp_path / "0"))


def test_training_stops_where_enough_is_right(tmp_path):
    """At the first line that says so, with the weights of that step; the run then counts as done."""
    recipe = {"steps": 50, "log_every": 10, "batch_size": 16, "learning_rate": 0.03, "schedule": "constant"}
    whole = experiment(CoT2(), MNNS(3, 1, 8), warmup=0.0, **recipe)
    train(whole, tmp_path / "whole", say=quiet)
    found = [line["validation_accuracy"] for line in lines(tmp_path / "whole")]
    enough, told = (found[0] + max(found)) / 2, []
    first = next(index for index, right in enumerate(found) if right >= enough)
    assert 0 < first < len(found) - 1
    early = replace(whole, training=replace(whole.training, enough=enough))
    train(early, tmp_path / "early", say=told.append)
    saved = find_checkpoint(tmp_path / "early")
    assert saved.step == 10 * (first + 1)
    assert lines(tmp_path / "early") == lines(tmp_path / "whole")[: first + 1]
    assert "validation answers are right, as training.enough" in saved.manifest["stopped"]
    train(early, tmp_path / "early", say=quiet)
    assert find_checkpoint(tmp_path / "early").step == saved.step


@pytest.mark.slow
def test_it_is_the_accuracy_of_the_model_of_that_step(tmp_path):
    """On all of the part, if that is small: the last line's is that of the trained model."""
    whole = experiment(CoT2(), steps=150, log_every=50, learning_rate=0.03)
    model, speaker = train(whole, tmp_path, say=quiet), whole.speaker("validation")
    found = [line["validation_accuracy"] for line in lines(tmp_path)]
    assert len(speaker.problems) < whole.training.validate
    assert found[-1] == pytest.approx(evaluate(speaker, whole.method, model).right_P.mean(), abs=1e-6)
    assert len(set(found)) > 1


def test_a_part_of_the_problems_is_asked_always_the_same():
    """As many as asked for, drawn from all over the part; judged as in any other evaluation."""
    asked = []

    @dataclass(frozen=True)
    class Listening(DiscreteCoT):
        def solve(self, model, examples, streams=None, **options):
            asked.append(examples.problems().tolist())
            return super().solve(model, examples, streams, **options)

    whole = replace(experiment(Listening(), validate=7), task=MNNS(4, 1, 5))
    train(whole)
    part = whole.speaker("validation").problems.tolist()
    assert len(asked) == 4
    assert all(sorted(each) == sorted(asked[0]) for each in asked)
    places = sorted(map(part.index, asked[0]))
    assert len(set(places)) == 7
    assert places[0] < len(part) / 3 < 2 * len(part) / 3 < places[-1]
    model, index = whole.fresh(), np.array(places)
    again = evaluate(whole.speaker("validation").part(index), DiscreteCoT(), model).right_P.mean()
    validation = Validation(whole.speaker("validation"), 7, SEEDS, torch.device("cpu"), truth)
    assert validation.accuracy(DiscreteCoT(), model) == pytest.approx(again, abs=1e-6)


def test_it_is_asked_in_parts_where_batches_have_parts(monkeypatch):
    run, sizes = experiment(CoT2(), micro_batch=3, steps=1, log_every=1, save_every=1), []
    usual = CoT2.solve

    def counting(method, model, examples, *arguments, **options):
        sizes.append(len(examples))
        return usual(method, model, examples, *arguments, **options)

    monkeypatch.setattr(CoT2, "solve", counting)
    examples = run.method.supervise(run.speaker("train"))
    fit(run.fresh(), run.method, examples, run.training, SEEDS, validation=run.speaker("validation"))
    assert sum(sizes) == len(run.rows("validation"))
    assert max(sizes) == 3


def test_a_method_that_samples_draws_the_same_each_time():
    whole = METHODS["grpo"]
    first, second = (Validation(whole.speaker("validation"), 256, SEEDS, torch.device("cpu"), truth) for _ in range(2))
    model = whole.fresh()
    found = [each.accuracy(whole.method, model) for each in (first, first, second)]
    assert found[0] == found[1] == found[2]


def test_a_search_that_leaves_gradients_changes_nothing(tmp_path):
    """Its verifier is that of the training."""
    verified = []

    @dataclass(frozen=True)
    class Searching(DiscreteCoT):
        def solve(self, model, examples, streams=None, *, verify=None, **options):
            found = super().solve(model, examples, streams, **options)
            verified.append(verify)
            self.forced(model, examples).logits_BTV.square().sum().backward()
            return found

    def verify(examples, trace):
        return truth(examples, trace)

    models = []
    for method in (DiscreteCoT(), Searching()):
        whole = experiment(method)
        examples, speaker = whole.speaker("train").examples(), whole.speaker("validation")
        models.append(fit(whole.fresh(), method, examples, whole.training, SEEDS, verify=verify, validation=speaker))
    assert verified == [verify] * 4
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", METHODS)
def test_a_model_that_diverged_gives_no_answer(name, value):
    """Neither here nor in any other evaluation, sampled or under a control."""
    whole = METHODS[name]
    speaker, model = whole.speaker("validation").part(np.arange(2)), whole.fresh()
    with torch.no_grad():
        model.backbone.table.weight[1:] = value
    for ask in (
        lambda: Validation(speaker, 2, SEEDS, torch.device("cpu"), truth).accuracy(whole.method, model),
        lambda: evaluate(speaker, whole.method, model, control="noise"),
        lambda: sample_answers(speaker, whole.method, model, 2),
    ):
        with pytest.raises(ValueError, match="the logits are not finite, training diverged"):
            ask()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coconut", "grpo"])
def test_a_resumed_run_writes_the_same_lines(name, tmp_path):
    whole = METHODS[name]
    train(whole, tmp_path / "whole", say=quiet)

    class Stop(Exception):
        pass

    def stop(step, loss):
        if step == 9:
            raise Stop

    with pytest.raises(Stop):
        train(whole, tmp_path / "cut", on_progress=stop, say=quiet)
    train(whole, tmp_path / "cut", say=quiet)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


@dataclass(frozen=True)
class Clock:
    """A clock that only asking and training move."""

    now: list = field(default_factory=lambda: [0.0])

    def perf_counter(self):
        return self.now[0]


def test_its_time_is_not_that_of_training(tmp_path, monkeypatch):
    """A batch takes a second, asking a hundred."""
    clock = Clock()

    @dataclass(frozen=True)
    class Timed(DiscreteCoT):
        def collect(self, model, examples, state):
            clock.now[0] += 1.0
            return super().collect(model, examples, state)

        def solve(self, *words, **options):
            clock.now[0] += 100.0
            return Method.solve(self, *words, **options)

    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr("tinylatent.training.validation.time", clock)
    train(experiment(Timed()), tmp_path, say=quiet)
    assert find_checkpoint(tmp_path).manifest["seconds"] == 12.0
    assert [line["problems_per_s"] for line in read_lines(tmp_path / METRICS)] == [4.0] * 4


def test_nothing_is_asked_where_there_is_nothing(tmp_path):
    """Without a speaker, or with one that has no problems."""
    whole = experiment(CoT2())
    examples, speaker = whole.speaker("train").examples(), whole.speaker("validation")
    for number, validation in enumerate((None, speaker.part(np.array([], dtype=int)))):
        folder = tmp_path / str(number)
        fit(whole.fresh(), whole.method, examples, whole.training, SEEDS, folder=folder, validation=validation)
        assert not any("validation_accuracy" in line for line in lines(folder))


def test_how_many_are_asked_is_part_of_a_run_where_it_is_not_the_default(tmp_path):
    """So that runs of earlier versions keep their names."""
    usual = experiment(CoT2())
    assert "validate" not in usual.to_json()["training"]
    none = replace(usual, training=replace(usual.training, validate=0))
    assert none.to_json()["training"]["validate"] == 0
    assert none.identity != usual.identity
    train(none, tmp_path, say=quiet)
    assert load(tmp_path)[0] == none
