"""The frontier's growth, against brute force over a small space and against values worked out by hand."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylatent_tasks import MNNS
from tinylatent_theory.predictions.frontier import growth


def test_growth_of_a_space_of_two_problems_by_hand():
    # digits (1, 1): step 1 is {-1, +1}, step 2 would be {-2, 0, 0, +2} but is the answer's, and not counted
    (only,) = growth(MNNS(digits=2, low=1, high=1))
    assert only == {"step": 1, "support": 2.0, "largest": 2, "entropy": pytest.approx(math.log(2)), "traces": 2}


@given(st.integers(2, 5), st.integers(1, 5), st.integers(0, 4))
def test_support_and_entropy_are_bounded(digits, low, more):
    """At most min(2^t, t high + 1) states (one parity), no more entropy than their number or t bits allow."""
    for row in growth(MNNS(digits=digits, low=low, high=low + more)):
        most = min(row["traces"], row["step"] * (low + more) + 1)
        assert 2 <= row["support"] <= row["largest"] <= most
        assert 0 < row["entropy"] <= math.log(row["largest"]) + 1e-6


def test_growth_equals_brute_force():
    task = MNNS(digits=4, low=1, high=3)
    rows = growth(task)
    for step in (1, 2, 3):
        supports, entropies = [], []
        for digits in itertools.product(range(1, 4), repeat=4):
            sums = [
                sum(s * d for s, d in zip(signs, digits, strict=False))
                for signs in itertools.product((-1, 1), repeat=step)
            ]
            shares = [sums.count(value) / len(sums) for value in set(sums)]
            supports.append(len(shares))
            entropies.append(-sum(share * math.log(share) for share in shares))
        assert rows[step - 1]["support"] == pytest.approx(sum(supports) / len(supports))
        assert rows[step - 1]["largest"] == max(supports)
        assert rows[step - 1]["entropy"] == pytest.approx(sum(entropies) / len(entropies))


def test_spaces_too_large_to_list_are_sampled():
    rows = growth(MNNS(digits=6, low=1, high=30), sample=200)
    assert [row["traces"] for row in rows] == [2, 4, 8, 16, 32]
    assert all(row["support"] <= row["traces"] for row in rows)
    assert rows == growth(MNNS(digits=6, low=1, high=30), sample=200)
