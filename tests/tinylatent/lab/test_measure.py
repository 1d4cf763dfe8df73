"""Measuring: a record says what the trained model does on every part, in every way of thinking, and what it cost.

What only one method or task has (stages, levels, what was before) is tested with it.
"""

from dataclasses import replace

import numpy as np
import pytest
from tinylatent_tasks import MNNS

from tinylatent.core.identity import checksum
from tinylatent.core.seeds import Seeds
from tinylatent.evaluation.evaluate import cost, evaluate
from tinylatent.evaluation.statistics import accuracy_interval, cluster_counts
from tinylatent.lab import measure as measuring
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import load, train
from tinylatent.lab.measure import measure
from tinylatent.lab.records import DEFAULT
from tinylatent.methods import Coconut, CoT2, Direct, DiscreteCoT
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.speakers import Symbols
from tinylatent.training import loop
from tinylatent.training.checkpoints import find_checkpoint
from tinylatent.training.config import Training

RUN = Experiment(
    MNNS(3, 1, 4), CoT2(), ModelConfig(8, 1, 1), Training(steps=12, batch_size=8, learning_rate=0.02), Seeds.all(5)
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A record, and the model it is of."""
    folder = tmp_path_factory.mktemp("run")
    record = measure(RUN, folder)
    seconds = find_checkpoint(folder).manifest["seconds"]
    assert seconds > 0
    assert record.cost.training_seconds == round(seconds, 1)
    return record, load(folder)[1]


def test_a_record_is_of_its_run(measured):
    record, _ = measured
    assert (record.id, record.run, record.experiment) == (RUN.identity, RUN.to_json(), RUN)


def test_every_way_of_thinking_is_judged_on_the_whole_validation_part(measured):
    record, model = measured
    rows, seed = RUN.rows("validation"), RUN.seeds.derive("sampling", "evaluation")
    keys, total = np.unique(RUN.task.key(rows), return_counts=True)
    assert record.keys == [f"{key:016x}" for key in keys.tolist()]
    assert record.total == total.tolist()
    assert [*record.evaluations] == [DEFAULT, "noise", "shuffled", "zero"]
    for name, found in record.evaluations.items():
        control = None if name == DEFAULT else name
        again = evaluate(RUN.speaker("validation"), RUN.method, model, control=control, seed=seed)
        assert found.right == cluster_counts(RUN.task.key(rows), again.right_P)[1].tolist()
        assert (found.kl, found.entropy, found.norm) == (again.kl_T, again.entropy_T, again.norm_T)
        assert found.accuracy == accuracy_interval([found.right], [record.total])
        assert found.problems_per_s > 0


def test_accuracy_on_what_was_trained_on_stands_beside(measured):
    record, model = measured
    rows = RUN.rows("train")
    keys, right, total = cluster_counts(RUN.task.key(rows), evaluate(RUN.speaker("train"), RUN.method, model).right_P)
    assert (record.train.right, record.train.total) == (right.tolist(), total.tolist())
    assert record.train.keys == checksum(keys.tobytes())
    assert record.train.accuracy == accuracy_interval([right], [total])


def test_a_large_training_part_is_asked_in_places_evenly_spread(monkeypatch):
    """Neighbours in a listed space are alike."""
    monkeypatch.setattr(measuring, "MAX_OF_TRAINING", 5)
    record, rows = measure(RUN, None), RUN.rows("train")
    chosen = rows[[0, (len(rows) - 1) // 4, (len(rows) - 1) // 2, 3 * (len(rows) - 1) // 4, len(rows) - 1]]
    assert sum(record.train.total) == 5
    assert record.train.keys == checksum(np.unique(RUN.task.key(chosen)).tobytes())


def test_the_course_is_what_training_validated():
    run = replace(RUN, training=replace(RUN.training, log_every=4, validate=6))
    course = measure(run, None).course
    assert [*course] == ["4", "8", "12"]
    assert all(round(6 * right, 3) == round(6 * right) for right in course.values())
    assert measure(replace(run, training=replace(run.training, validate=0)), None).course == {}


def test_the_majority_baseline_is_the_most_frequent_training_answer(measured):
    record, _ = measured
    assert record.majority_baseline == measuring.majority_baseline(RUN, RUN.rows("validation"))
    run = replace(RUN, task=MNNS())
    train, validation = (run.task.answer(run.rows(part)).tolist() for part in ("train", "validation"))
    share = validation.count(max({*train}, key=train.count)) / len(validation)
    assert measuring.majority_baseline(run, run.rows("validation")) == pytest.approx(share)
    assert 0.3 < share < 0.5


def test_costs_are_counted(measured):
    record, model = measured
    spent = cost(RUN.method, model, Symbols(RUN.task, RUN.rows("validation")[:1]).examples())
    assert (record.cost.steps, record.cost.slots, record.cost.flops) == (spent["steps"], spent["slots"], spent["flops"])
    assert record.cost.training_flops == spent["flops"] * RUN.method.forwards * 12 * 8
    rows = RUN.rows("validation")
    all_of_them = evaluate(Symbols(RUN.task, rows), RUN.method, model).counters
    each = (record.cost.tokens, record.cost.latents, record.cost.operations)
    assert each == tuple(count / len(rows) for count in (all_of_them.tokens, all_of_them.latents, all_of_them.flops))
    assert min(each) > 0
    assert record.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert record.accuracy_ceiling == 1.0


def test_what_trained_is_told_from_what_measured(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "environment", lambda device: {"machine": "a cluster"})
        train(RUN, tmp_path)
    record = measure(RUN, tmp_path)
    assert record.environments.training == [{"machine": "a cluster"}]
    assert record.environments.measuring["machine"] != "a cluster"


def test_where_it_was_trained_is_told_only_where_every_sitting_recorded_it(tmp_path, monkeypatch):
    """Checkpoints of the first edition did not."""
    half = replace(RUN, training=replace(RUN.training, save_every=6))

    def kill(*options, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "environments", lambda saved, device: None)
        patch.setattr(loop._Log, "write", kill)
        with pytest.raises(KeyboardInterrupt):
            train(half, tmp_path)
    assert find_checkpoint(tmp_path).step == 6
    record = measure(half, tmp_path)
    assert record.environments.training is None
    assert record.environments.measuring["device"] == "cpu"
    (where,) = measure(half, None).environments.training
    assert where == record.environments.measuring


def test_what_is_sampled_is_drawn_from_the_seed_of_the_run(monkeypatch):
    """At every difficulty it is the same in all runs, as it was in the first edition."""
    seeds = []

    def evaluated(*words, **options):
        seeds.append(options["seed"])
        return evaluate(*words, **options)

    monkeypatch.setattr(measuring, "evaluate", evaluated)
    run = replace(RUN, task=MNNS(2, 1, 4, capacity=3), method=Direct())
    measure(run, None)
    own = run.seeds.derive("sampling", "evaluation")
    assert seeds == [own, own, 0, 0], "validation, training, and the difficulties 2 and 3"


def test_every_stage_has_its_accuracy():
    run = replace(RUN, method=Coconut())
    record = measure(run, None)
    assert record.stages
    for stage in record.stages:
        assert stage.accuracy == accuracy_interval([stage.right], [record.total])


def test_methods_without_latents_have_no_controls_and_those_that_sample_are_sampled():
    run = replace(RUN, method=DiscreteCoT())
    record = measure(run, None)
    assert [*record.evaluations] == [DEFAULT]
    assert [*record.sampling.temperatures] == [f"{t:g}" for t in DiscreteCoT.temperatures]
    for sampled in record.sampling.temperatures.values():
        assert [*sampled.pass_] == [*sampled.majority] == [str(k) for k in measuring.KS]
        assert sampled.pass_["1"] == sampled.majority["1"], "one sample is its own majority"
        shares = [sum(counts.right) / counts.of for counts in sampled.pass_.values()]
        assert shares == sorted(shares), "more tries are never worse"
        assert shares[-1] <= len(run.rows("validation"))
    assert measure(replace(run, training=replace(run.training, num_train=20)), None).sampling is None
    assert measure(replace(RUN, method=Direct()), None).sampling is None


def test_answers_of_several_tokens_are_numbered_as_wholes():
    answers_PSA = np.array([[[1, 2], [2, 1], [1, 2]], [[2, 1], [3, 3], [1, 2]]])
    numbers_PS = measuring._numbered(answers_PSA)
    assert numbers_PS[0, 0] == numbers_PS[0, 2] == numbers_PS[1, 2] != numbers_PS[0, 1] == numbers_PS[1, 0]
    assert len(np.unique(numbers_PS)) == 3


def test_what_cannot_be_measured_is_refused_before_it_is_trained(tmp_path):
    run = replace(RUN, task=MNNS(2, 1, 2))
    said = "a validation part of 1 problems tells nothing: use more digits, a larger range, or more lines"
    with pytest.raises(ValueError, match=said):
        measure(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_progress_is_told_and_nothing_is_kept_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = []
    record = measure(RUN, None, on_progress=lambda step, loss: told.append(step))
    assert told[0] == 0
    assert told[-1] == RUN.work
    assert list(tmp_path.iterdir()) == []
    assert record.evaluations[DEFAULT].right == RUN.measure(tmp_path / "kept").evaluations[DEFAULT].right
    assert (tmp_path / "kept/config.json").exists()
