"""MNNS: parts of listed and of drawn spaces, and what is said about bad requests."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylatent_tasks import MNNS, Recommendation
from tinylatent_tasks.keys import hashed_fraction
from tinylatent_tasks.splits import CHUNK

SEEDS = st.integers(0, 2**32)
PROBLEM = [3, 5, 2, 8]


@settings(max_examples=30)
@given(SEEDS)
def test_parts_of_a_listed_space_partition_it_by_key(seed):
    task = MNNS(digits=3, high=6)
    train, validation = task.split("train", seed), task.split("validation", seed)
    assert not set(task.key(train).tolist()) & set(task.key(validation).tolist())
    assert sorted(train.tolist() + validation.tolist()) == task.space().tolist()
    some, more = task.split("train", seed, 10), task.split("train", seed, 20)
    assert len(np.unique(more, axis=0)) == 20
    listed = {tuple(row) for row in train.tolist()}
    assert {tuple(row) for row in some.tolist()} < {tuple(row) for row in more.tolist()} < listed


@settings(max_examples=30)
@given(SEEDS)
def test_parts_of_a_space_too_large_to_list_share_no_key(seed):
    task = MNNS(digits=11, high=4)  # 4,194,304 problems but 364 multisets: the draws hit every key again and again
    train, validation = task.split("train", seed, 400), task.split("validation", seed, 400)
    assert train.shape == validation.shape == (400, 11)
    assert not set(task.key(train).tolist()) & set(task.key(validation).tolist())
    assert hashed_fraction(task.key(validation), seed, 0.2).all()
    assert np.array_equal(task.split("validation", seed, 37), validation[:37])
    assert np.array_equal(task.split("train", seed, 399), train[:399])


def test_split_says_what_is_wrong():
    with pytest.raises(ValueError, match="try count=1000"):
        MNNS(digits=6, high=30).split("train", 0)
    with pytest.raises(ValueError, match="from 0 to"):
        MNNS().split("validation", 0, 5000)
    for task in (MNNS(), MNNS(digits=6, high=30)):
        with pytest.raises(ValueError, match="count is -1"):
            task.split("train", 0, -1)


def test_space_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match="729,000,000"):
        MNNS(digits=6, high=30).space()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([PROBLEM, [1, 2, 3, 10], [0, 1, 1, 1]], r"row 1 is \[1, 2, 3, 10\]"),
        ([[1, 1, 0, 1]], "row 0"),
        ([[1, 2, 3]], "row 0 has 3 entries"),
        ([PROBLEM, [1, 2, 3]], r"row 1 is \[1, 2, 3\]"),
        (PROBLEM, r"shape \(4,\)"),
        ([[1.0, 2.0, 3.0, 4.0]], "float64"),
        ([[True, True, True, True]], "bool"),
    ],
)
@pytest.mark.parametrize("method", ["key", "answer", "frontier", "chain", "batch"])
def test_bad_rows_are_named(method, rows, message):
    with pytest.raises(ValueError, match=message):
        getattr(MNNS(), method)(rows)


@pytest.mark.parametrize(
    ("budget", "rule"), [(0, "absolute"), (-1, "nonnegative"), (2.0, "absolute"), (True, "absolute")]
)
def test_bad_budgets_are_refused(budget, rule):
    with pytest.raises(ValueError, match="try budget=1"):
        MNNS().frontier([PROBLEM], budget, rule)


@pytest.mark.parametrize("budget", [None, 4])
def test_unknown_rules_are_refused(budget):
    with pytest.raises(ValueError, match="'absolute', 'nonnegative'"):
        MNNS().frontier([PROBLEM], budget, "beam")


@pytest.mark.parametrize("n", [-1, 2.5, True])
def test_a_bad_number_of_problems_is_refused(n):
    with pytest.raises(ValueError, match="try n=1000"):
        MNNS().problems(n, 0)


def test_problems_are_read_from_json():
    assert MNNS().read({"digits": PROBLEM}).tolist() == PROBLEM
    assert MNNS().read(PROBLEM).dtype == np.int64
    with pytest.raises(ValueError, match="has 3 entries"):
        MNNS().read(PROBLEM[:3])
    with pytest.raises(ValueError, match="from 1 to 9"):
        MNNS().read([3, 5, 2, 10])


def test_answers_are_written_as_json():
    task = MNNS()
    assert task.write(PROBLEM, [task.vocabulary.index("+2")]) == {"digits": PROBLEM, "answer": 2, "right": True}
    assert task.write(PROBLEM, [task.vocabulary.index("-2")])["right"] is False
    assert task.write(PROBLEM, [task.vocabulary.index("3")])["answer"] is None


def test_the_fitting_task_has_digits_up_to_nine_or_the_largest():
    assert MNNS.fitting([1, 2]) == MNNS(digits=2)
    assert MNNS.fitting([1, 40, 3]) == MNNS(digits=3, high=40)
    with pytest.raises(ValueError, match="digits is 0"):
        MNNS.fitting([])


@pytest.mark.parametrize("task", [MNNS(digits=6, high=30), Recommendation()], ids=repr)
def test_a_part_is_drawn_in_chunks_that_change_nothing_and_are_told_of(task):
    told = []
    few, many = task.split("train", 5, 100), task.split("train", 5, 2 * CHUNK + 7, told.append)
    assert np.array_equal(few, many[:100])
    assert told == sorted(told)
    assert told[-1] == len(many) == 2 * CHUNK + 7
    assert len(told) >= 3
