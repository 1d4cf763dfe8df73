"""Study `mnns-budget`: the best budget of each width, and when it is said to grow."""

import itertools
from dataclasses import replace

import pytest
from records import record_of

from tinylatent.lab.findings import FAILS, HOLDS, OPEN
from tinylatent.lab.studies import mnns_budget
from tinylatent.lab.studies.compare import grouped
from tinylatent.methods import Direct


def table_of(percents):
    """The table of a full grid with a percentage for every (width, budget)."""
    blank = [record_of(each, 50) for each in mnns_budget.grid("full")]
    runs = [record_of(each.experiment, percents[mnns_budget.cell(each)]) for each in blank]
    assert {len(group) for group in grouped(runs, mnns_budget.cell).values()} == {5}
    (table,) = mnns_budget.tables(runs)
    return table


@pytest.mark.parametrize(
    ("narrow", "wide", "verdict"),
    [
        ({1: 50, 4: 70, 16: 60}, {1: 50, 4: 90, 16: 95}, HOLDS),
        ({1: 60, 4: 50, 16: 55}, {1: 50, 4: 90, 16: 95}, HOLDS),
        ({1: 50, 4: 60, 16: 70}, {1: 50, 4: 90, 16: 95}, FAILS),
        ({1: 50, 4: 70, 16: 60}, {1: 50, 4: 95, 16: 90}, FAILS),
        ({1: 50, 4: 70, 16: 60}, {1: 97, 4: 90, 16: 95}, FAILS),
        ({1: 70, 4: 50, 16: 60}, {1: 97, 4: 90, 16: 95}, FAILS),
        ({1: 50, 4: 60, 16: 60}, {1: 50, 4: 90, 16: 95}, OPEN),
    ],
)
def test_the_best_budget_grows_only_where_both_ends_say_so(narrow, wide, verdict):
    cells = itertools.product(mnns_budget.WIDTHS, mnns_budget.BUDGETS)
    table = table_of({(w, b): (narrow if w == 16 else wide)[b] for w, b in cells})
    (growth,) = [each for each in table.findings if each.claim == "the best budget grows with the width"]
    assert growth.verdict == verdict
    row = next(row for row in table.rows if (row["width"], row["budget"]) == (32, 4))
    assert [row[name] for name in ("accuracy", "published", "zero")] == pytest.approx([wide[4], 99.04, 10])


def test_the_best_budget_of_each_width_is_named():
    cells = itertools.product(mnns_budget.WIDTHS, mnns_budget.BUDGETS)
    table = table_of({(w, b): 50 + b * (w > 16) - b * (w == 16) for w, b in cells})
    assert [(row["width"], row["budget"]) for row in table.rows] == [*mnns_budget.PUBLISHED]
    narrow, _, wide = table.findings[:3]
    assert narrow.claim.startswith("at d = 16 B = 1, the best measured, is better than B = 4")
    assert wide.claim == "at d = 32 B = 16, the best measured, is better than B = 4, the second best"
    assert (wide.verdict, wide.estimate.value) == (HOLDS, pytest.approx(0.12))


def test_a_run_of_another_method_is_told():
    other = record_of(replace(mnns_budget.grid("full")[0], method=Direct()), 50)
    with pytest.raises(
        ValueError, match=rf"run {other.id} is of Direct\(question=0\.0\): expected discrete chain of thought or CoT2"
    ):
        mnns_budget.tables([other])
