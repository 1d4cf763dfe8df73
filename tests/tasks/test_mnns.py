"""MNNS: the fast programmes against a slow solver, a hand-computed example, and the paper's numbers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylatent_tasks import MNNS
from tinylatent_tasks.choice_sums_slowly import mnns_frontier_slowly as frontier_slowly
from tinylatent_tasks.choice_sums_slowly import solve_mnns_slowly as solve_slowly
from tinylatent_tasks.mnns import NOT_A_SUM

RULES = ("absolute", "nonnegative")


@st.composite
def tasks_with_rows(draw, most_digits=6):
    """A configuration and 0 to 4 of its problems, ties between digits being likely."""
    digits = draw(st.integers(1, most_digits))
    low = draw(st.integers(1, 30))
    high = draw(st.integers(low, 30))
    capacity = draw(st.none() | st.integers(digits, digits + 2))
    row = st.lists(st.integers(low, high), min_size=digits, max_size=digits)
    rows = draw(st.lists(row, max_size=4))
    return MNNS(digits, low, high, capacity), np.array(rows, np.int64).reshape(-1, digits)


def as_dictionary(task, share_V):
    return {task.sum_values(id_).item(): float(share_V[id_]) for id_ in np.flatnonzero(share_V)}


# By hand: +-3 +-5 +-2 +-8. The digits sum to 18, and no part of them sums to 9, so 0 is out of reach;
# 18 - 2 * 8 = 2 is reached by {3, 5, 2} - {8} (twice 8 is 16) and by {2, 8} - {3, 5}.
HAND = [3, 5, 2, 8]


def test_an_example_is_as_computed_by_hand():
    task = MNNS()
    assert task.answer([HAND]).tolist() == [2]
    assert task.sum_values(task.chain([HAND])).tolist() == [[-3, -8, -6, 2]]
    frontier_TV = task.frontier([HAND])[0]
    assert [as_dictionary(task, share_V) for share_V in frontier_TV] == [
        {-3: 1 / 2, 3: 1 / 2},
        {-8: 1 / 4, -2: 1 / 4, 2: 1 / 4, 8: 1 / 4},
        {-10: 1 / 8, -6: 1 / 8, -4: 1 / 8, 0: 1 / 4, 4: 1 / 8, 6: 1 / 8, 10: 1 / 8},
        {2: 1},
    ]


def test_budgets_and_tie_breaks_are_as_computed_by_hand():
    """The final sums +-2 of HAND have two traces each: -3-5+2+8 and +3+5+2-8, and their mirror images."""
    task = MNNS()

    def states(budget, rule):
        return [as_dictionary(task, share_V) for share_V in task.frontier([HAND], budget, rule)[0]]

    both_positive = [{-3: 0.5, 3: 0.5}, {-8: 0.5, 8: 0.5}, {-6: 0.5, 10: 0.5}, {2: 1.0}]
    assert states(2, "absolute") == both_positive
    assert states(2, "nonnegative") == both_positive
    # Third under "absolute": the first of the two that end in -2, -3-5-2+8.
    third = np.float32(1 / 3).item()
    two_thirds = np.float32(2 / 3).item()
    assert states(3, "absolute") == [
        {-3: two_thirds, 3: third},
        {-8: two_thirds, 8: third},
        {-10: third, -6: third, 10: third},
        {2: 1.0},
    ]
    # Third under "nonnegative": the smallest final sum above 2 is 4, +3-5-2+8.
    assert states(3, "nonnegative") == [
        {-3: third, 3: two_thirds},
        {-8: third, -2: third, 8: third},
        {-6: third, -4: third, 10: third},
        {2: 1.0},
    ]


def test_the_default_task_has_this_vocabulary_and_prompt():
    task = MNNS()
    assert len(task.vocabulary) == 3 + 9 + 73
    assert task.positions == 9
    batch = task.batch([HAND])
    assert task.vocabulary.decode(batch.prompt_BN[0]) == "<bos> 3 5 2 8"
    assert task.vocabulary.decode(batch.chain_BT[0]) == "-3 -8 -6 +2"
    assert task.vocabulary.decode(batch.answer_BA[0]) == "+2"
    assert task.vocabulary.tokens[3:13] == (*"123456789", "-36")
    assert task.vocabulary.tokens[-1] == "+36"
    assert batch.steps_B.tolist() == [4]


def test_an_example_is_described():
    assert MNNS().describe(HAND).splitlines() == [
        "problem     3 5 2 8",
        "answer      +2",
        "best trace  -3 -5 +2 +8 = +2",
        "step 1      -3: 0.5, +3: 0.5",
        "step 2      -8: 0.25, -2: 0.25, +2: 0.25, +8: 0.25",
        "step 3      +0: 0.25, -10: 0.125, -6: 0.125, -4: 0.125, +4: 0.125, +6: 0.125, +10: 0.125",
        "step 4      +2: 1",
    ]
    long = MNNS(digits=6).describe([1, 2, 3, 4, 5, 6]).splitlines()
    assert [line.count(":") for line in long[3:]] == [2, 4, 7, 8, 8, 1]
    assert long[6].endswith(" and 3 more")  # 11 even sums from -10 to 10 after four steps


def test_the_numbers_of_the_paper_come_out():
    """4 digits 1..9: 6,561 inputs, 495 multisets, 99 of them for validation (CoT2's official split sizes)."""
    task = MNNS()
    space = task.space()
    assert len(space) == 6561
    assert space[[0, 1, -1]].tolist() == [[1, 1, 1, 1], [1, 1, 1, 2], [9, 9, 9, 9]]
    assert len(np.unique(task.key(space))) == math.comb(12, 4) == 495
    for seed in range(20):
        train, validation = task.split("train", seed), task.split("validation", seed)
        assert len(train) + len(validation) == 6561
        assert len({tuple(sorted(row)) for row in validation.tolist()}) == 99
        assert len({tuple(sorted(row)) for row in train.tolist()}) == 396


def test_answers_of_the_whole_space_equal_the_slow_solver():
    task = MNNS(digits=4, high=6)
    space = task.space()
    assert task.answer(space).tolist() == [solve_slowly(row)[0] for row in space.tolist()]
    assert task.sum_values(task.chain(space)).tolist() == [solve_slowly(row)[1] for row in space.tolist()]


@settings(max_examples=60)
@given(tasks_with_rows(), st.none() | st.integers(1, 70), st.sampled_from(RULES))
def test_frontier_equals_the_slow_frontier(task_rows, budget, rule):
    task, rows = task_rows
    frontier_PTV = task.frontier(rows, budget, rule)
    assert frontier_PTV.dtype == np.float32
    assert frontier_PTV.shape == (len(rows), task.digits, len(task.vocabulary))
    for row, frontier_TV in zip(rows.tolist(), frontier_PTV, strict=True):
        expected = frontier_slowly(row, budget, rule)
        expected_float32 = [{s: np.float32(share).item() for s, share in step.items()} for step in expected]
        assert [as_dictionary(task, share_V) for share_V in frontier_TV] == expected_float32


@settings(max_examples=60)
@given(tasks_with_rows(), st.none() | st.integers(1, 70), st.sampled_from(RULES))
def test_no_mass_is_lost_and_all_of_it_lies_on_sums(task_rows, budget, rule):
    task, rows = task_rows
    frontier_PTV = task.frontier(rows, budget, rule)
    np.testing.assert_allclose(frontier_PTV.sum(axis=2, dtype=np.float64), 1, rtol=0, atol=1e-6)
    steps, ids = np.nonzero(frontier_PTV)[1:]
    sums = task.sum_values(ids)
    assert (sums != NOT_A_SUM).all()
    assert (np.abs(sums) <= (steps + 1) * task.high).all()


@settings(max_examples=60)
@given(tasks_with_rows())
def test_chain_is_the_frontier_of_budget_one_and_the_slow_best_trace(task_rows):
    task, rows = task_rows
    chain_PT = task.chain(rows)
    one_hot = np.eye(len(task.vocabulary), dtype=np.float32)[chain_PT]
    for rule in RULES:
        assert np.array_equal(task.frontier(rows, 1, rule), one_hot)
    assert task.sum_values(chain_PT).tolist() == [solve_slowly(row)[1] for row in rows.tolist()]
    assert task.answer(rows).tolist() == [solve_slowly(row)[0] for row in rows.tolist()]


@settings(max_examples=60)
@given(tasks_with_rows(), st.integers(0, 3))
def test_a_budget_of_every_trace_is_no_budget(task_rows, more):
    task, rows = task_rows
    assert np.array_equal(task.frontier(rows, 2**task.digits + more), task.frontier(rows))


@pytest.mark.parametrize("budget", [None, 3000])
def test_twelve_digits_and_large_integers_keep_their_mass_over_several_chunks(budget):
    task = MNNS(digits=12, high=40)
    rows = np.concatenate([task.problems(30, seed=0), np.full((1, 12), 40)])
    frontier_PTV = task.frontier(rows, budget)
    np.testing.assert_allclose(frontier_PTV.sum(axis=2, dtype=np.float64), 1, rtol=0, atol=1e-6)
    for index in (0, 29, 30):
        expected = frontier_slowly(rows[index].tolist(), budget, "absolute")
        expected_float32 = [{s: np.float32(share).item() for s, share in step.items()} for step in expected]
        assert [as_dictionary(task, share_V) for share_V in frontier_PTV[index]] == expected_float32


def test_capacity_widens_the_vocabulary_without_changing_the_frontier():
    small, large, long = MNNS(digits=4), MNNS(digits=4, capacity=6), MNNS(digits=6)
    assert large.vocabulary == long.vocabulary
    assert large.positions == long.positions == 13
    rows = small.problems(50, 0)
    narrow, wide = small.frontier(rows), large.frontier(rows)
    sums = np.arange(-36, 37)
    assert np.array_equal(wide[..., large.sum_ids(sums)], narrow[..., small.sum_ids(sums)])
    assert np.array_equal(wide.sum(axis=2), np.ones((50, 4)))


@settings(max_examples=60)
@given(tasks_with_rows(), st.randoms(use_true_random=False))
def test_permuted_problems_share_key_and_answer(task_rows, random):
    task, rows = task_rows
    order = random.sample(range(task.digits), task.digits)
    assert np.array_equal(task.key(rows[:, order]), task.key(rows))
    assert np.array_equal(task.answer(rows[:, order]), task.answer(rows))


def test_tokens_and_numbers_invert_each_other():
    task = MNNS(digits=3, low=2, high=7, capacity=4)
    sums, numbers = np.arange(-28, 29), np.arange(2, 8)
    assert np.array_equal(task.sum_values(task.sum_ids(sums)), sums)
    assert [task.vocabulary.tokens[id_] for id_ in task.sum_ids(sums)] == [f"{total:+d}" for total in sums]
    assert [task.vocabulary.tokens[id_] for id_ in task.digit_ids(numbers)] == [str(number) for number in numbers]
    others = [-1, 0, 1, 2, *task.digit_ids(numbers), len(task.vocabulary)]
    assert (task.sum_values(others) == NOT_A_SUM).all()
    for ids, outside in ((task.sum_ids, 29), (task.sum_ids, -29), (task.digit_ids, 1), (task.digit_ids, 8)):
        with pytest.raises(ValueError, match="there are tokens for"):
            ids([outside])
