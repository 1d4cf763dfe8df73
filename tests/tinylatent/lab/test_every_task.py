"""Every method on every task: trains, is measured, and thinks the same in any batch, whatever rows stand beside it."""

from dataclasses import replace

import numpy as np
import pytest

from tasks import REGISTRY, Arithmetic, MultiHop, Reachability, Recommendation, SubsetSum
from tinylatent.core.seeds import Seeds
from tinylatent.evaluation.evaluate import evaluate
from tinylatent.lab.experiment import MOST_VALIDATED, Experiment
from tinylatent.lab.measure import ITSELF, measure
from tinylatent.lab.run import train
from tinylatent.methods import METHODS
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.config import Training

SMALL = {
    "mnns": REGISTRY["mnns"](3, 1, 5, room=4),
    "subset-sum": SubsetSum(3, 6),
    "multihop": MultiHop(3, 1, 5, room=4),
    "multihop, two facts": MultiHop(3, 2, 5, branching=2),
    "which": Reachability(depth=3, least=1, nodes=9, edges=12),
    "whether": Reachability("whether", depth=2, least=1, nodes=8, edges=10, bound=True),
    "arithmetic": Arithmetic(2, 5),
    "recommendation": Recommendation(4, 3, 2, events=4),
}
SHORT = Training(steps=6, batch=8, problems=64)


def experiment(task, method):
    recipe = replace(SHORT, steps=24) if method == "coconut" else SHORT
    return Experiment(task, METHODS[method](), ModelConfig(8, 2, 2), recipe, Seeds.all(0))


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
    assert {task.name for task in SMALL.values()} == set(REGISTRY)


def test_a_ladder_is_measured_rung_by_rung_on_keys_never_trained_on():
    task = MultiHop(3, 1, 8, room=4)
    assert task.quotiented
    each = experiment(task, "cot2")
    record = measure(each, None)
    assert list(record["ladder"]) == ["1", "2", "3", "4"]
    split = each.seeds.derive("split")
    for level, rung in record["ladder"].items():
        assert sum(rung["total"]) == 1000
        keys = task.ladder()[int(level)].key(task.ladder()[int(level)].split("validation", split, 1000))
        assert len(rung["total"]) == len(rung["right"]) == len(np.unique(keys))
        assert not set(keys.tolist()) & set(task.key(each.rows("train")).tolist())
    assert "ladder" not in measure(experiment(SMALL["subset-sum"], "cot2"), None)


def test_a_small_listed_rung_is_taken_whole():
    task = SMALL["mnns"]
    record = measure(replace(experiment(task, "direct"), training=replace(SHORT, problems=None)), None)
    assert sum(record["ladder"]["3"]["total"]) == len(task.split("validation", Seeds.all(0).derive("split")))
    assert record["ladder"]["3"]["right"] == record["evaluations"][ITSELF]["right"]


def test_validation_parts_of_large_tasks_are_capped():
    task = SubsetSum(4, 30)
    rows = Experiment(task, training=Training(problems=40_000)).rows("validation")
    assert len(rows) == MOST_VALIDATED
    assert len(Experiment(task, training=Training(problems=400)).rows("validation")) == 100
