"""Recipes hold what the stored tuning runs found, and are whole runs by name."""

from itertools import product
from pathlib import Path

import pytest

from tinylatent.lab.recipes import COMPARISONS, SAMPLERS, STARTS, recipe
from tinylatent.lab.studies import mnns_rl_tuning, mnns_tuning_small, search, tasks_tuning
from tinylatent.lab.studies.compare import grouped, method_of
from tinylatent.lab.study import STUDIES, read_runs

RESULTS = Path(__file__).resolve().parents[3] / "results"


def tuned(*comparisons):
    """The recipes of these comparisons whose settings were found."""
    return [f"{where}/{name}" for where in comparisons for name in COMPARISONS[where].tuned]


@pytest.mark.parametrize(
    ("study", "contender", "seeds", "names"),
    [
        ("mnns-tuning", method_of, 3, tuned("mnns")),
        (
            "mnns-tuning-small",
            mnns_tuning_small.contender,
            3,
            [f"{where}/{name}" for where, name in product(mnns_tuning_small.WHERE, ("discrete", "cot2"))],
        ),
        ("tasks-tuning", tasks_tuning.contender, 2, tuned("subset-sum", "multihop", "reachability")),
        (
            "mnns-rl-tuning",
            mnns_rl_tuning.contender,
            2,
            [f"mnns-rl/{sampler}-from-{start}" for start, sampler in product(STARTS, SAMPLERS)],
        ),
    ],
)
def test_recipes_are_the_best_of_the_stored_tuning_runs(study, contender, seeds, names):
    """On the first tuning split, each recipe is the very run that came out best of its search."""
    groups = grouped(read_runs(STUDIES[study], RESULTS / study), contender)
    best = [search.tried_on_all(group, seeds)[search.winner(group, seeds)][0] for group in groups.values()]
    assert {record.experiment for record in best} == {recipe(name, search.FIRST) for name in names}
