"""What committing costs: closed form, engine, brute force and the best online policy by recursion."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylatent_tasks import MNNS
from tinylatent_theory.constructions.choice_sums import mnns_solver
from tinylatent_theory.constructions.commit import best_online, committed, committed_by_engine


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6))
def test_committed_by_brute_force(digits):
    task = MNNS(digits=len(digits))
    every = [
        sum(s * d for s, d in zip(signs, digits, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(digits))
    ]
    answer = min(total for total in every if total >= 0)
    reach = []
    for signs in itertools.product((-1, 1), repeat=len(digits) - 1):
        before = sum(s * d for s, d in zip(signs, digits, strict=False))
        last = [total for total in (before - digits[-1], before + digits[-1]) if total >= 0]
        reach.append(bool(last) and min(last) == answer)
    assert committed(task, [digits])[0] == pytest.approx(np.mean(reach))


@pytest.mark.parametrize(("digits", "high"), [(2, 9), (3, 5), (4, 4), (5, 3)])
def test_the_engine_agrees(digits, high):
    task = MNNS(digits=digits, high=high)
    by_engine = committed_by_engine(task, mnns_solver(task).float(), task.space())
    np.testing.assert_allclose(by_engine, committed(task, task.space()), atol=1e-5)


@pytest.mark.parametrize(("digits", "high"), [(1, 4), (2, 5), (3, 3), (4, 2)])
def test_best_online_by_recursion(digits, high):
    task = MNNS(digits=digits, high=high)
    values = range(1, high + 1)
    answers = {
        tuple(row): int(answer) for row, answer in zip(task.space().tolist(), task.answer(task.space()), strict=True)
    }

    @functools.cache
    def value(seen, total):
        if len(seen) == digits:
            return float(total == answers[seen])
        return sum(max(value((*seen, d), total + s * d) for s in (-1, 1)) for d in values) / high

    assert best_online(task) == pytest.approx(value((), 0))


def test_by_hand():
    """1, 1, 2: of the signs of 1, 1 both that cancel lead to 2, and both others to 0, the answer."""
    assert committed(MNNS(digits=3), [[1, 1, 2]])[0] == 0.5


def test_committing_never_beats_foresight():
    for digits in (2, 3, 4):
        task = MNNS(digits=digits, high=5)
        assert committed(task, task.space()).mean() <= best_online(task) <= 1
