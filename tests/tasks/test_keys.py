"""Hashes against a plain-Python splitmix64, counters that ignore n, and parts of exact size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylatent_tasks.keys import derived_seed, hashed_fraction, lowest_fraction, stable_hash, uniform_integers

INT64 = st.integers(-(2**63), 2**63 - 1)
SEEDS = st.integers(-5, 2**64)


def splitmix64(state):
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
    return state ^ state >> 31


def hash_slowly(row, seed):
    value = splitmix64(splitmix64(seed % 2**64) ^ len(row))
    for item in row:
        value = splitmix64(value ^ item % 2**64)
    return value


def test_reference_mixer_gives_the_published_first_outputs_for_seed_zero():
    increment = 0x9E3779B97F4A7C15
    outputs = [splitmix64(step * increment % 2**64) for step in range(3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@settings(max_examples=100)
@given(st.integers(0, 4).flatmap(lambda m: st.lists(st.lists(INT64, min_size=m, max_size=m), min_size=1)), SEEDS)
def test_stable_hash_equals_the_plain_reference(rows, seed):
    array = np.array(rows, np.int64).reshape(len(rows), -1)
    assert stable_hash(array, seed).tolist() == [hash_slowly(row, seed) for row in rows]


def test_stable_hash_is_the_same_forever():
    assert stable_hash(np.array([[1, 2, 3], [-1, 0, 9]])).tolist() == [
        hash_slowly([1, 2, 3], 0),
        hash_slowly([-1, 0, 9], 0),
    ]
    assert stable_hash(np.array([[1, 2, 3]])).tolist() == [0xA96CBEB09E7EDBE6]


def test_stable_hash_knows_order_length_seed_and_sign_but_not_the_integer_type():
    hashes = [stable_hash(np.array([row]))[0] for row in ([1, 2], [2, 1], [1, 2, 0], [0, 1, 2], [1, -2], [-1, 2])]
    hashes.append(stable_hash(np.array([[1, 2]]), seed=1)[0])
    assert len(set(hashes)) == len(hashes)
    assert stable_hash(np.array([[1, -2]], np.int8))[0] == stable_hash(np.array([[1, -2]]))[0]
    assert stable_hash(np.zeros((0, 3), int)).shape == (0,)


@pytest.mark.parametrize("columns", [[1, 2], [[1.0, 2.0]], [[True]], np.zeros((1, 1, 1), int)])
def test_stable_hash_rejects_what_is_not_a_matrix_of_integers(columns):
    with pytest.raises(ValueError, match="2-D integer array"):
        stable_hash(columns)


@settings(max_examples=100)
@given(st.integers(-50, 50), st.integers(0, 2**32 - 1), st.integers(0, 20), st.integers(0, 20), SEEDS)
def test_an_item_of_uniform_integers_depends_on_its_place_alone(low, width, few, more, seed):
    large = uniform_integers(low, low + width, (few + more, 5), seed)
    assert large.min(initial=low) >= low
    assert large.max(initial=low) <= low + width
    assert np.array_equal(uniform_integers(low, low + width, (few, 3), seed), large[:few, :3])
    places = np.indices(large.shape).reshape(2, -1).T
    hashed = stable_hash(places, seed) % np.uint64(width + 1)
    assert np.array_equal(large.ravel(), low + hashed.astype(np.int64))


@pytest.mark.parametrize("seed", range(3))
def test_uniform_integers_are_uniform_and_independent_across_columns(seed):
    drawn = uniform_integers(-3, 3, (70_000, 2), seed)
    pairs = np.bincount((drawn[:, 0] + 3) * 7 + drawn[:, 1] + 3, minlength=49)
    expected = 70_000 / 49
    chi_squared = ((pairs - expected) ** 2 / expected).sum()
    assert chi_squared < 48 + 6 * np.sqrt(2 * 48)


@pytest.mark.parametrize(("low", "high", "shape"), [(3, 2, (1, 1)), (0, 2**32, (1, 1)), (0, 1, (-1, 2))])
def test_uniform_integers_refuse_bad_requests(low, high, shape):
    with pytest.raises(ValueError, match="expected"):
        uniform_integers(low, high, shape, 0)


@settings(max_examples=100)
@given(st.lists(st.integers(0, 30), max_size=60), SEEDS, st.floats(0, 1))
def test_lowest_fraction_has_the_exact_size_in_unique_keys(items, seed, fraction):
    keys = np.array(items, np.uint64)
    inside = lowest_fraction(keys, seed, fraction)
    assert len(np.unique(keys[inside])) == round(fraction * len(np.unique(keys)))
    assert not set(keys[inside].tolist()) & set(keys[~inside].tolist())
    chosen = {hash_slowly([key], seed) for key in keys[inside].tolist()}
    others = {hash_slowly([key], seed) for key in keys[~inside].tolist()}
    assert max(chosen, default=-1) < min(others, default=2**64)


def test_lowest_fraction_ignores_order_and_multiplicity_of_the_rows():
    keys = np.arange(100, dtype=np.uint64)
    once = set(keys[lowest_fraction(keys, 7, 0.2)].tolist())
    many = np.repeat(keys[::-1], 3)
    assert set(many[lowest_fraction(many, 7, 0.2)].tolist()) == once
    assert set(keys[lowest_fraction(keys, 8, 0.2)].tolist()) != once


def test_hashed_fraction_judges_each_key_alone_and_is_right_on_average():
    keys = np.arange(50_000, dtype=np.uint64)
    inside = hashed_fraction(keys, 3, 0.2)
    assert abs(inside.mean() - 0.2) < 6 * np.sqrt(0.2 * 0.8 / 50_000)
    assert np.array_equal(hashed_fraction(keys[::7], 3, 0.2), inside[::7])
    assert inside.tolist()[:200] == [hash_slowly([key], 3) / 2**64 < 0.2 for key in range(200)]
    assert hashed_fraction(keys, 3, 1.0).all()
    assert not hashed_fraction(keys, 3, 0.0).any()


@pytest.mark.parametrize("part", [lowest_fraction, hashed_fraction])
@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_parts_reject_what_is_not_a_fraction(part, fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        part(np.zeros(1, np.uint64), 0, fraction)


def test_derived_seeds_differ_by_seed_and_by_purpose():
    seeds = {derived_seed(seed, purpose) for seed in range(10) for purpose in ("draw", "subset", "")}
    assert len(seeds) == 30
