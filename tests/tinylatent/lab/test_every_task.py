"""Every method on every task: trains, is measured, and thinks the same in any batch, whatever rows stand beside it."""

from dataclasses import replace

import numpy as np
import pytest
from tinylatent_tasks import MNNS, Arithmetic, Composition, MultiHop, Reachability, Recommendation, Stories, SubsetSum

from tinylatent.core.seeds import Seeds
from tinylatent.evaluation.evaluate import evaluate
from tinylatent.lab.experiment import MAX_VALIDATED, Experiment
from tinylatent.lab.folders import train
from tinylatent.lab.measure import measure
from tinylatent.lab.records import DEFAULT
from tinylatent.lab.tasks import TASKS
from tinylatent.methods import METHODS
from tinylatent.methods.searching import Prefixed, Search
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.config import Training

SMALL = {
    "mnns": MNNS(3, 1, 5, capacity=4),
    "subset-sum": SubsetSum(3, 6),
    "multihop": MultiHop(3, 1, 5, capacity=4),
    "multihop, two facts": MultiHop(3, 2, 5, branching=2),
    "which": Reachability(depth=3, least=1, nodes=9, edges=12),
    "whether": Reachability("whether", depth=2, least=1, nodes=8, edges=10, bound=True),
    "stories": Stories(depth=2, least=1, nodes=8, edges=8),
    "arithmetic": Arithmetic(2, 5),
    "composition": Composition(3, items=4, functions=3, capacity=4),
    "recommendation": Recommendation(4, 3, 2, events=4),
}
SHORT = Training(steps=6, batch_size=8, num_train=64)


def experiment(task, method):
    """A small run; a search changes every token it may, but does not go on for long."""
    recipe, kind = replace(SHORT, steps=24) if method == "coconut" else SHORT, METHODS[method]
    quick = {"rounds": 2} if issubclass(kind, Search) else {}
    quick |= {"share": 1.0} if issubclass(kind, Prefixed) else {}
    return Experiment(task, kind(**quick), ModelConfig(8, 2, 2), recipe, Seeds.all(0))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", SMALL.values(), ids=SMALL)
def test_every_method_thinks_about_every_task_alike_in_any_batch(task, method):
    each = experiment(task, method)
    model, rows = train(each), task.problems(40, 1)
    whole, parts = (evaluate(Symbols(task, rows), each.method, model, batch=size) for size in (1000, 3))
    assert np.array_equal(whole.answer_PA, parts.answer_PA)
    assert whole.answer_PA.shape == (40, task.batch(rows[:1]).answer_BA.shape[1])
    for name in ("kl_T", "entropy_T", "norm_T"):
        np.testing.assert_allclose(getattr(whole, name), getattr(parts, name), rtol=1e-4, atol=1e-5)
        assert np.isfinite(getattr(whole, name)).all()


def test_every_registered_task_is_among_them():
    assert {task.name for task in SMALL.values()} == set(TASKS)


@pytest.mark.slow
def test_every_level_is_measured_on_keys_never_trained_on():
    task = MultiHop(3, 1, 8, capacity=4)
    assert task.quotiented
    each = experiment(task, "cot2")
    record = measure(each, None)
    assert list(record.levels) == ["1", "2", "3", "4"]
    split = each.seeds.derive("split")
    for level, answered in record.levels.items():
        assert sum(answered.total) == 1000
        own = task.levels()[int(level)]
        keys = own.key(own.split("validation", split, 1000))
        assert len(answered.total) == len(answered.right) == len(np.unique(keys))
        assert not set(keys.tolist()) & set(task.key(each.rows("train")).tolist())


def test_tasks_without_capacity_to_spare_have_no_levels():
    assert measure(experiment(SMALL["subset-sum"], "cot2"), None).levels == {}


def test_a_level_that_is_small_and_listed_is_taken_whole():
    task = SMALL["mnns"]
    record = measure(replace(experiment(task, "direct"), training=replace(SHORT, num_train=None)), None)
    assert sum(record.levels["3"].total) == len(task.split("validation", Seeds.all(0).derive("split")))
    assert record.levels["3"].right == record.evaluations[DEFAULT].right


def test_validation_parts_of_large_tasks_are_capped():
    task = SubsetSum(4, 30)
    rows = Experiment(task, training=Training(num_train=40_000)).rows("validation")
    assert len(rows) == MAX_VALIDATED
    assert len(Experiment(task, training=Training(num_train=400)).rows("validation")) == 100
