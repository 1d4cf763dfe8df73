"""Studies `tasks` and `tasks-tuning` say what their records say."""

import pytest
from records import changed, record_of

from tinylatent.core.seeds import Seeds
from tinylatent.lab.findings import HOLDS
from tinylatent.lab.recipes import COMPARISONS, recipe
from tinylatent.lab.studies import tasks, tasks_tuning
from tinylatent.lab.studies.compare import method_of

PERCENTS = {"direct": 50, "pause": 50, "discrete": 60, "coconut": 80, "cot2": 90}


@pytest.fixture(scope="module")
def records():
    """The full study, every method with its percentage on every task."""
    return [record_of(each, PERCENTS[each.method.name]) for each in tasks.grid("full")]


def findings(table):
    """Findings of a table by claim."""
    return {each.claim: each for each in table.findings}


def test_every_task_is_compared_on_its_own(records):
    overview, *compared, _, published = tasks.tables(records)
    assert [row["accuracy"] for row in overview.rows] == pytest.approx([*PERCENTS.values()] * 4)
    for task in ("MNNS", "subset sum", "multi-hop", "reachability"):
        found = findings(overview)[f"{task}: CoT2 is more often right than discrete CoT"]
        assert (found.verdict, found.estimate.value) == (HOLDS, pytest.approx(0.3))
    titles = ["MNNS: MNNS(", "Subset sum: SubsetSum(", "Multi-hop: MultiHop(", "Reachability: Reachability("]
    assert all(table.title.startswith(title) for table, title in zip(compared, titles, strict=True))
    assert "a key being a multiset of numbers and the target" in compared[1].legend
    assert [row["here"] for row in published.rows] == pytest.approx([*PERCENTS.values()])
    assert published.rows[-1]["CoT2 paper, ProsQA"] == 93.37


def test_accuracy_beyond_training_is_told_by_level(records):
    *_, levels, _ = tasks.tables(records)
    hops = [row for row in levels.rows if (row["task"], row["method"]) == ("multi-hop", "CoT2")]
    assert [row["accuracy"] for row in hops] == pytest.approx([90, 80, 70, 60, 50, 40])
    assert [row["trained"] for row in hops] == ["yes"] * 3 + ["no"] * 3
    assert [row["trained"] for row in levels.rows if row["task"] == "MNNS"] == ["yes"] * 5 + ["no"] * 5
    gaps = {"discrete CoT": pytest.approx(0.3), "Coconut": pytest.approx(0.1)}
    assert {each.claim: (each.verdict, each.estimate.value) for each in levels.findings} == {
        f"{where}, beyond training: CoT2 is more often right than {other}": (HOLDS, gap)
        for where in ("MNNS at 5", "multi-hop at 4")
        for other, gap in gaps.items()
    }


def test_levels_are_compared_on_the_same_problems(records):
    first = next(each for each in records if each.levels and method_of(each) == "cot2")
    other = changed(first, levels={**first.levels, "5": changed(first.levels["5"], keys="x")})
    with pytest.raises(ValueError, match="runs of cot2 and discrete were not asked the same problems at difficulty"):
        tasks.tables([other if each is first else each for each in records])


@pytest.mark.parametrize("absent", ["cot2", "coconut", "discrete"])
def test_tables_tell_what_is_there(absent, records, tmp_path):
    there = [each for each in records if method_of(each) != absent]
    shown = tasks.tables(there)
    assert all(row["accuracy"] for row in shown[0].rows)
    assert len(shown[0].rows) == 4 * 4
    claims = [each.claim for table in (shown[0], *shown[-2:]) for each in table.findings]
    assert len(claims) == {"cot2": 0, "coconut": 4 + 2 + 1, "discrete": 4 + 2}[absent]
    tasks.draw(there, tmp_path / "figure.png")


def test_the_better_rates_of_every_method_go_on_to_a_second_seed():
    """The middle rate is best, the lowest comes second."""
    rates, names = tasks_tuning.RATES, {COMPARISONS[name].task: name for name in tasks_tuning.RATES}
    first = []
    for each in tasks_tuning.grid("quick"):
        index = rates[names[each.task]].index(each.training.learning_rate)
        first.append(record_of(each, (80, 90, 70)[index]))
    second = tasks_tuning.after("quick", first)
    assert {each.seeds for each in second} == {Seeds.all(101)}
    assert [each.training.learning_rate for each in second] == [
        rate for name in rates for _ in PERCENTS for rate in rates[name][:2]
    ]
    assert {each.training.steps for each in second} == {2000, 1333}, "a third of what the full study takes"


def test_the_quick_profile_shortens_what_a_run_starts_from_too():
    """So that a method begins with a run of the same grid."""
    whole = recipe("multihop/grpo")
    short = tasks.shortened(whole, "quick")
    assert (short.training.steps, short.start) == (333, tasks.shortened(recipe("multihop/cot2"), "quick"))
    assert tasks.shortened(whole, "full") == whole


def test_a_run_on_another_task_is_told():
    other = record_of(recipe("arithmetic/cot2"), 50)
    with pytest.raises(
        ValueError, match=rf"run {other.id} is on Arithmetic\(.*expected a task of mnns-longer, subset-sum"
    ):
        tasks.tables([other])
