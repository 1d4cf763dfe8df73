"""A reading asks one trained model in several ways, and tells problem by problem what changed."""

from dataclasses import replace

import numpy as np
import pytest
from tinylatent_tasks import MultiHop

from tinylatent.evaluation.evaluate import evaluate
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import load, train
from tinylatent.lab.launchers.local import Local
from tinylatent.lab.reading import ALL, Reader, Reading
from tinylatent.lab.run import read_record
from tinylatent.lab.study import measure_all
from tinylatent.methods import CoT2, Direct, DiscreteCoT
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

TASK = MultiHop(hops=3, nodes=5, bound=True)
START = Experiment(TASK, CoT2(), ModelConfig(8, 1, 1), Training(steps=20, batch_size=16, num_train=200))
READERS = (Reader("mixtures", CoT2()), Reader("tokens", DiscreteCoT()), Reader("noise", CoT2(), control="noise"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "run"
    train(START, folder)
    return folder


def read(run, trained, tmp_path):
    return run.measure(tmp_path / "reading", start=trained)


def test_every_reader_is_evaluated_on_the_same_problems(trained, tmp_path):
    """Right, gained and lost problems, and costs, are those of evaluations by hand."""
    record, (_, model) = read(Reading(START, READERS), trained, tmp_path), load(trained)
    seed = START.seeds.derive("sampling", "evaluation")
    by_hand = [
        evaluate(START.speaker("validation"), reader.method, model, control=reader.control or None, seed=seed)
        for reader in READERS
    ]
    part = record.parts[ALL]
    for reader, result in zip(READERS, by_hand, strict=True):
        found = part.readers[reader.name]
        assert sum(found.right) == result.right_P.sum()
        assert sum(found.gained) == (result.right_P & ~by_hand[0].right_P).sum()
        assert sum(found.lost) == (by_hand[0].right_P & ~result.right_P).sum()
        assert found.costs.steps == result.counters.steps
    assert sum(part.readers["tokens"].gained) + sum(part.readers["noise"].lost) > 0
    assert sum(part.total) == len(START.rows("validation")) == 50
    assert record.costs("mixtures")["latents"] == part.readers["mixtures"].costs.latents / 50


def test_parts_by_steps_are_all_problems_once(trained, tmp_path):
    """Every part holds the problems whose chains have so many steps, and together they answer as all do."""
    record = read(Reading(START, READERS[:2], by_steps=True), trained, tmp_path)
    steps_P = TASK.batch(START.rows("validation")).steps_B - 1
    assert {name: sum(part.total) for name, part in record.parts.items()} == {
        str(steps): (steps_P == steps).sum() for steps in (0, 1, 2)
    }
    whole = read(Reading(START, READERS[:2]), trained, tmp_path)
    for name in ("mixtures", "tokens"):
        assert sum(record.right(name)[0]) == sum(whole.right(name)[0])
        assert record.right(name, "1")[1] == record.parts["1"].total


def test_a_reading_goes_to_json_and_back(trained, tmp_path):
    run = Reading(START, READERS, problems=20, by_steps=True)
    assert Reading.from_json(run.to_json()) == run
    record = read(run, trained, tmp_path)
    assert read_record(Reading, record.to_json()) == record
    assert record.reading == run
    assert sum(record.right("tokens")[1]) == 20


def test_problems_are_spread_over_the_validation_part(trained, tmp_path):
    rows = START.rows("validation")
    (few,) = Reading(START, READERS, problems=3)._rows().values()
    assert np.array_equal(few, rows[[0, 24, 49]])


def test_what_is_read_is_trained_first(tmp_path):
    run = Reading(START, READERS[:1])
    (record,) = measure_all([run], tmp_path, Local(1))
    assert record.id == run.identity
    assert load(tmp_path / START.identity)[0] == START


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"readers": ()}, "readers none: expected at least one"),
        ({"readers": (READERS[0], READERS[0])}, "each with its own name"),
        ({"problems": 1}, "problems is 1: expected at least 2"),
        ({"readers": (Reader("ends", DiscreteCoT(ends=True)),)}, "needs the extra tokens <end>, the model of cot2 has"),
    ],
)
def test_a_reading_that_makes_no_sense_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        replace(Reading(START, READERS), **change)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"control": "louder"}, "unknown control 'louder'"), ({"verifier": "nobody"}, "unknown verifier 'nobody'")],
)
def test_a_reader_that_makes_no_sense_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Reader("reader", Direct(), **settings)


@pytest.mark.parametrize(
    "values",
    [{}, {"version": 2}, {"version": 1, "readers": []}, {"version": 1, "readers": [{}], "start": {}}],
)
def test_what_is_no_reading_is_refused(values):
    with pytest.raises(ValueError, match="measure it again"):
        Reading.from_json(values)
