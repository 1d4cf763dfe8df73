"""The hand-made solvers, exhaustively: zero errors in float32, leakage within its bound, width by its formula."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylatent_tasks import MNNS, SubsetSum
from tinylatent_theory.constructions import choice_sums
from tinylatent_theory.constructions.checks import deviation
from tinylatent_theory.constructions.choice_sums import (
    log_hinges,
    mnns_hidden,
    mnns_leakage,
    mnns_solver,
    mnns_width,
    modulus,
    reach,
    subset_sum_leakage,
    subset_sum_solver,
    subset_sum_width,
)

FRONTIER = 1e-4  # largest error of a share that is allowed in float32
FRESH = (1 + 1e-5, 1e-9)  # rounding in float32, of a leakage and of its absence


def every_subset_problem(task):
    numbers = itertools.product(range(1, task.high + 1), repeat=task.numbers)
    return np.array([(*row, target) for row in numbers for target in range(task.numbers * task.high + 1)])


@pytest.mark.parametrize("basis", ["one-hot", "fourier"])
@pytest.mark.parametrize(("digits", "low", "high"), [(1, 1, 9), (2, 1, 9), (2, 5, 9), (3, 4, 11), (5, 1, 4), (7, 2, 3)])
def test_mnns_is_solved_exhaustively(digits, low, high, basis):
    """The sizes of the paper are a claim of the ledger."""
    task = MNNS(digits=digits, low=low, high=high)
    machine = mnns_solver(task, basis).float()
    found = deviation(task, machine, task.space())
    assert (found.problems, found.wrong) == ((high - low + 1) ** digits, 0)
    assert found.thoughts < FRONTIER
    assert found.leakage <= mnns_leakage(task) * FRESH[0] + FRESH[1]
    assert machine.width == mnns_width(task, basis)


@pytest.mark.parametrize(("digits", "hidden"), [(4, 330), (5, 730), (8, 8382)])
def test_hidden_units_grow_exponentially_with_the_digits(digits, hidden):
    """Of digits 1..9; the machine itself is built at the first two sizes, and measured by a claim of the ledger."""
    task = MNNS(digits=digits)
    assert mnns_hidden(task) == hidden == (2 * (digits - 1) * 9 + 1) * (2 ** (digits - 2) + 2)


@pytest.mark.parametrize(("digits", "low", "high"), [(3, 1, 4), (3, 4, 11), (4, 1, 9)])
def test_hidden_units_are_those_of_the_machine(digits, low, high):
    task = MNNS(digits=digits, low=low, high=high)
    assert mnns_solver(task).blocks[0].mlp.up_proj.shape[1] == mnns_hidden(task)


@pytest.mark.parametrize(("numbers", "high"), [(2, 6), (3, 5), (4, 3), (5, 2)])
def test_subset_sum_is_solved_exhaustively(numbers, high):
    task = SubsetSum(numbers=numbers, high=high)
    machine, problems = subset_sum_solver(task).float(), every_subset_problem(task)
    found = deviation(task, machine, problems)
    assert (found.problems, found.wrong) == (len(problems), 0)
    assert found.thoughts < FRONTIER
    assert found.leakage <= subset_sum_leakage(task) * FRESH[0] + FRESH[1]
    assert machine.width == subset_sum_width(task)


@pytest.mark.slow
@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 12), st.sampled_from(["one-hot", "fourier"]))
@settings(max_examples=30)
def test_any_number_and_range_of_digits(digits, low, more, basis):
    task = MNNS(digits=digits, low=low, high=low + more, capacity=max(digits, 6))
    found = deviation(task, mnns_solver(task, basis).float(), task.problems(64, seed=0))
    assert found.wrong == 0
    assert found.thoughts < FRONTIER


def test_in_float64_the_error_is_the_leakage_alone():
    """Without rounding the thoughts are off by what has leaked so far, and no more."""
    task = MNNS(digits=5, high=4)
    found = deviation(task, mnns_solver(task), task.space())
    assert found.thoughts <= task.digits * mnns_leakage(task)


@pytest.mark.parametrize(("digits", "low", "high"), [(3, 1, 4), (4, 1, 9), (5, 1, 4)])
def test_frequencies_are_as_many_as_the_frontiers_have_dimensions(digits, low, high):
    """No linear map holds all frontiers in fewer coordinates; with one frequency fewer the machine errs."""
    task = MNNS(digits=digits, low=low, high=high)
    frontiers = task.frontier(task.space())[:, :-1].astype(float)
    rank = np.linalg.matrix_rank(np.unique(frontiers.reshape(-1, frontiers.shape[-1]), axis=0))
    assert rank == modulus(task) // 2 + 1 == reach(task) + 1
    fewer = deviation(task, mnns_solver(task, "fourier", period=modulus(task) - 2).float(), task.space())
    assert fewer.thoughts > 0.3


@given(st.integers(1, 64), st.floats(5, 40))
def test_the_broken_line_is_the_logarithm_on_its_grid(half, floor):
    M = 2 * half
    floor = floor + np.log(M)

    def line(x):
        return -floor + sum(change * max(0.0, x - at) for at, change in log_hinges(M, floor))

    assert line(0.0) == pytest.approx(-floor)
    for k in range(1, half + 1):
        assert line(k / M) == pytest.approx(np.log(k / M), abs=1e-9)


@pytest.mark.parametrize("broken", ["shift", "hinges", "fetch"])
def test_a_broken_part_is_noticed(broken, monkeypatch):
    task = MNNS(digits=4, high=4)
    if broken == "shift":
        once = choice_sums.one_hot
        monkeypatch.setattr(choice_sums, "one_hot", lambda states, zero, choices: once(states, zero, (-1, 0)))
    elif broken == "hinges":
        monkeypatch.setattr(choice_sums, "log_hinges", lambda M, floor: log_hinges(M, floor)[:-1])
    else:
        fetch = choice_sums.looks_back
        monkeypatch.setattr(choice_sums, "looks_back", lambda room, back, *rest: fetch(room, back - 1, *rest))
    found = deviation(task, mnns_solver(task).float(), task.space())
    assert found.thoughts > 0.01


def test_weights_are_made_in_float64_and_run_in_any():
    machine = mnns_solver(MNNS(digits=3, high=3))
    assert {parameter.dtype for parameter in machine.parameters()} == {torch.float64}


def test_bad_arguments_are_told():
    task = MNNS(digits=3, high=3)
    for call, words in (
        (lambda: mnns_solver(task, "Fourier"), "basis 'Fourier': expected one of one-hot, fourier"),
        (lambda: mnns_width(task, "onehot"), "basis 'onehot': expected"),
        (lambda: mnns_solver(task, "fourier", 0), "period 0: expected a positive integer; try 13"),
        (lambda: mnns_solver(task, "one-hot", 13), "only the Fourier basis has one"),
        (lambda: mnns_solver(MNNS(digits=3, high=200)), "would need .* GiB, expected 4 at most"),
        (lambda: subset_sum_solver(SubsetSum(numbers=8)), "would need .* GiB, expected 4 at most"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
