"""Capacity of superpositions: closed forms against brute force, two solvers, and what must be monotone."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats
from tinylatent_theory.predictions import phase_curve
from tinylatent_theory.predictions.capacity import held_share, is_held, is_held_by_least_squares, needed_width, wendel
from tinylatent_theory.stored import StoredFile

from tinylatent.core.files import DamagedError


def test_wendel_by_hand():
    """A line in the plane always enters a half plane; one in space enters a right-angled wedge half of the time."""
    assert wendel(1, 1, 2) == 0.0
    assert wendel(2, 1, 3) == pytest.approx(0.5)
    assert wendel(5, 2, 5) == 1.0


@given(st.integers(0, 30), st.integers(1, 20), st.integers(2, 40))
def test_wendel_is_the_sum_over_faces(width, states, vocabulary):
    """Directly from the cone's intrinsic volumes v_j = C(n, j - k) / 2^n, n = v - k: 1 - 2 (v_{d+1} + v_{d+3} + ..)."""
    if not (states < vocabulary and width < vocabulary):
        return
    n = vocabulary - states
    volumes = {states + i: math.comb(n, i) / 2**n for i in range(n + 1)}
    missed = 2 * sum(volumes.get(j, 0.0) for j in range(width + 1, vocabulary + 1, 2))
    assert wendel(width, states, vocabulary) == pytest.approx(1 - min(1.0, missed), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "states", "vocabulary"), [(4, 1, 7), (6, 2, 10), (7, 3, 10)])
def test_the_linear_programme_has_wendels_probability(width, states, vocabulary):
    """600 embeddings; an exact binomial test fails a correct solver once in a million seeds."""
    share = held_share(width, states, vocabulary, 600, np.random.default_rng(1), known_sum=False)
    assert stats.binomtest(round(600 * share), 600, wendel(width, states, vocabulary)).pvalue > 1e-6


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 9))
def test_what_the_programme_calls_held_least_squares_gives_back(seed, states, width):
    generator = np.random.default_rng(seed)
    embedding, alpha = generator.normal(size=(14, width)), np.zeros(14)
    alpha[:states] = generator.dirichlet(np.ones(states))
    if is_held(embedding, states):
        assert is_held_by_least_squares(embedding, alpha)


def test_corners_of_a_triangle_are_held_and_its_middle_is_not():
    """Three tokens on a line: the ends are held, the middle is a mixture of the others."""
    line = np.array([[0.0], [1.0], [2.0]])
    for order in itertools.permutations(range(3)):
        assert is_held(line[[*order]], 1) == (order[0] != 1)
    assert not is_held(line, 2)


@given(st.integers(1, 40), st.integers(50, 200))
def test_more_states_need_more_width_and_never_more_than_the_vocabulary(states, vocabulary):
    assert states <= needed_width(states, vocabulary) < needed_width(states + 1, vocabulary) <= vocabulary


def test_the_curve_is_the_minimum_by_brute_force():
    for states, vocabulary in ((1, 89), (8, 89), (30, 60)):
        grid = np.linspace(-8, 8, 160_001)
        above = (1 + grid**2) * stats.norm.sf(grid) - grid * stats.norm.pdf(grid)
        values = states * (1 + grid**2) + (vocabulary - states) * above
        assert needed_width(states, vocabulary) == pytest.approx(values.min(), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("states", "vocabulary"), [(2, 89), (8, 89), (15, 40)])
def test_the_correction_is_the_mean_of_the_minimum(states, vocabulary):
    """4000 normal vectors, the distance to the polar cone by one-dimensional search: within 0.35 and closer."""
    generator, found = np.random.default_rng(2), []
    for g in generator.normal(size=(4000, vocabulary)):
        held, rest = g[:states], g[states:]

        def distance(t, held=held, rest=rest):
            return ((held - t) ** 2).sum() + (np.maximum(rest - t, 0) ** 2).sum()

        found.append(optimize.minimize_scalar(distance, bounds=(-6, 6), method="bounded").fun)
    exact = np.mean(found)
    plain, corrected = needed_width(states, vocabulary), needed_width(states, vocabulary, corrected=True)
    assert abs(corrected - exact) < 0.35
    assert abs(corrected - exact) < abs(plain - exact)


@pytest.mark.slow
def test_half_of_the_embeddings_hold_what_the_curve_says():
    """In the middle of the transition the share is far from 0 and 1; well off it, it is not (100 draws each)."""
    generator = np.random.default_rng(0)
    assert 0.2 < held_share(24, 9, 89, 100, generator) < 0.9
    assert held_share(24, 4, 89, 100, generator) > 0.95
    assert held_share(24, 15, 89, 100, generator) < 0.05


def test_impossible_sizes_are_told():
    generator = np.random.default_rng(0)
    for call in (
        lambda: wendel(4, -1, 8),
        lambda: wendel(4, 2, 0),
        lambda: needed_width(9, 8),
        lambda: held_share(4, 0, 8, 5, generator),
    ):
        with pytest.raises(ValueError, match="expected a width of 0 or more and at least 1 state"):
            call()
    with pytest.raises(ValueError, match="0 draws: expected at least 1"):
        held_share(4, 1, 8, 0, generator)


def test_trained_rows_are_those_of_the_table():
    text = b"width,budget,accuracy,low,high\n16,1,84,82,86\n16,16,96,94,98\n24,1,1,1,1\n"
    rows = phase_curve.trained(StoredFile(Path("table.csv"), text), 16)
    assert [(row.budget, row.states, row.accuracy, row.low, row.high) for row in rows] == [
        (1, 1, 84, 82, 86),
        (16, 8, 96, 94, 98),
    ]


@pytest.mark.parametrize("text", [b"a,b\n1,2\n", b"width,budget,accuracy,low,high\n16,1\n", b"width\nwide\n", b"\xff"])
def test_a_table_that_is_none_of_the_study_is_told(text):
    with pytest.raises(DamagedError, match=r"table\.csv is not what study mnns-budget writes .*rebuild mnns-budget"):
        phase_curve.trained(StoredFile(Path("table.csv"), text), 16)
