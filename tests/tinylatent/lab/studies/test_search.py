"""Successive halving: the first seed sends the better half on, the mean over all seeds chooses."""

import pytest
from records import record_of

from tinylatent.lab.arms import Arm
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import HOLDS
from tinylatent.lab.recipes import build
from tinylatent.lab.studies import search
from tinylatent.lab.studies.search import Configuration
from tinylatent.methods import GRPO, Coconut, CoT2

LOW, MIDDLE, HIGH = (Configuration(rate, 0.05) for rate in (1e-3, 2e-3, 5e-3))


def tried(scores, method=None):
    """Records of configurations that scored these percentages on seeds 100, 101 and so on."""
    return [
        record_of(build("mnns", method or CoT2(), seed, learning_rate=each[0], weight_decay=each[1]), percent)
        for each, percents in scores.items()
        for seed, percent in enumerate(percents, search.FIRST)
    ]


def test_the_better_half_is_that_of_the_first_seed():
    records = tried({LOW: [50, 95, 95], MIDDLE: [60, 10, 10], HIGH: [70], Configuration(9e-3, 0.05): [80]})
    assert search.better_half(records, [LOW, MIDDLE, HIGH]) == [MIDDLE, HIGH]
    assert search.better_rates(records, [1e-3, 2e-3, 5e-3]) == [2e-3, 5e-3]


def test_ties_go_to_the_smaller_rate_then_to_the_smaller_decay():
    grid = [Configuration(rate, decay) for rate in (5e-3, 1e-3) for decay in (0.25, 0.01)]
    records = tried({each: [50] for each in grid})
    assert search.better_half(records, grid) == [(1e-3, 0.01, ""), (1e-3, 0.25, "")]


def test_the_best_mean_wins_among_those_that_saw_every_seed():
    records = tried({LOW: [50, 60, 70], MIDDLE: [90, 30, 30], HIGH: [97]})
    assert search.winner(records) == LOW
    assert search.winner(records, seeds=1) == HIGH


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Coconut(), ""),
        (Coconut(mixing=0.0), "mixing 0.0"),
        (GRPO(samples=6, curriculum=(1, 3)), "samples 6, curriculum [1, 3]"),
    ],
)
def test_settings_of_a_method_s_own_are_told(method, words):
    start = None if isinstance(method, Coconut) else Experiment()
    assert search.own(record_of(Experiment(method=method, start=start), 50)) == words


@pytest.mark.parametrize(
    ("scores", "edge"),
    [
        ({LOW: [30] * 3, MIDDLE: [95] * 3, HIGH: [45] * 3}, ""),
        ({LOW: [95] * 3, MIDDLE: [45] * 3}, "; it has the lowest rate that was tried, better ones may lie beyond"),
        (
            {LOW: [45] * 3, Configuration(5e-3, 0.25): [95] * 3},
            "; it has the highest rate and the highest decay that was tried, better ones may lie beyond",
        ),
        ({LOW: [45] * 3, MIDDLE: [95] * 3, HIGH: [60]}, ""),
    ],
    ids=["inside", "lowest", "corner", "one seed beyond"],
)
def test_a_margin_says_how_sure_the_choice_is_and_where_it_stands(scores, edge):
    records = tried(scores)
    found, (rate, decay, _) = search.margin("X", records), search.winner(records)
    assert found.claim == f"the best of X (rate {rate:g}, decay {decay:g}) is better than its second best"
    assert (found.verdict, found.family) == (HOLDS, "tuning")
    assert found.estimate.value == pytest.approx(0.5)
    assert found.evidence.partition("]")[2] == edge


def test_contenders_go_by_the_labels_of_their_arms():
    group = tried({LOW: [50, 50], MIDDLE: [80, 80], HIGH: [60]})
    groups = {("a", "here"): group, ("b", "there"): group}
    known = {name: Arm(name.upper(), build, "black") for name in "ab"}
    table = search.rates_table("Title", "where", groups, known, seeds=2)
    assert [(row["method"], row["where"], row["rate"]) for row in table.rows if row["chosen"]] == [
        ("A", "here", 2e-3),
        ("B", "there", 2e-3),
    ]
    assert [row["seeds"] for row in table.rows] == [2, 2, 1] * 2
    assert [each.claim.partition(" (")[0] for each in table.findings] == [
        "the best of A, here",
        "the best of B, there",
    ]
    assert "Weight decay is 0.05 throughout. chosen: the best mean over two seeds." in table.legend
