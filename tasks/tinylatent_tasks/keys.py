"""Stable hashing, counter-based random integers, and splits by key; no state, the same on every machine.

The mixer is splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): the
golden-ratio increment followed by Stafford's mix13 finaliser. It is a bijection on 64 bits, so that distinct keys
never collide under one seed. Arithmetic is modulo 2^64 on uint64 arrays.
"""

import numpy as np
import numpy.typing as npt

from tinylatent_tasks.batch import Integers, Keys, Mask

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def _mix(values: Keys) -> Keys:
    """One splitmix64 step of every element of an array with at least one dimension (scalars would warn of overflow)."""
    values = values + _INCREMENT
    values = (values ^ (values >> np.uint64(30))) * _MULTIPLIERS[0]
    values = (values ^ (values >> np.uint64(27))) * _MULTIPLIERS[1]
    return values ^ (values >> np.uint64(31))


def stable_hash(columns: npt.ArrayLike, seed: int = 0) -> Keys:
    """Hashes the rows of an integer array (P, m) to uint64 (P,).

    The hash depends on the order and the number of the columns and on the seed; negative integers are allowed (an
    integer and its residue modulo 2^64 are the same). Raises ValueError unless `columns` is a 2-D integer array.
    """
    rows_PM = np.asarray(columns)
    if rows_PM.ndim != 2 or rows_PM.dtype.kind not in "iu":
        raise ValueError(
            f"stable_hash hashes the rows of a 2-D integer array, got shape {rows_PM.shape} of {rows_PM.dtype}: "
            "reshape or convert it"
        )
    hash_P = _start(len(rows_PM), rows_PM.shape[1], seed)
    for column_P in rows_PM.T:
        hash_P = _mix(hash_P ^ column_P.astype(np.uint64))
    return hash_P


def _start(count: int, columns: int, seed: int) -> Keys:
    """The initial hash (count,) of every row, from seed and number of columns."""
    return _mix(_mix(np.full(count, seed % 2**64, np.uint64)) ^ np.uint64(columns))


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose, so that streams derived from the same user's seed are independent."""
    return int(stable_hash(np.frombuffer(purpose.encode(), np.uint8)[None, :], seed)[0])


def uniform_integers(low: int, high: int, shape: tuple[int, int], seed: int, first: int = 0) -> Integers:
    """Integers from low to high, both included, as int64 (n, m); item (i, j) depends on (low, high, seed, i, j) alone.

    The rows are first, first + 1, ..

    The probability of a value differs from uniform by less than 2^-64; the differences sum to less than 2^-32.
    Raises ValueError if low > high, if there are more than 2^32 values, or for a negative shape.
    """
    if not 0 <= high - low < 2**32:
        raise ValueError(f"expected between 1 and 2^32 values from low to high, got low={low} and high={high}")
    if min(shape) < 0:
        raise ValueError(f"expected a shape (n, m) of numbers that are not negative, got {shape}")
    # The hash of the pair (i, j), as stable_hash makes it; what a row's pairs share is worked out once.
    row_P = _mix(_start(shape[0], 2, seed) ^ np.arange(first, first + shape[0], dtype=np.uint64))
    drawn_PM = _mix(row_P[:, None] ^ np.arange(shape[1], dtype=np.uint64)) % np.uint64(high - low + 1)
    return low + drawn_PM.astype(np.int64)


def lowest_fraction(keys: Keys, seed: int, fraction: float) -> Mask:
    """True (P,) for rows whose key is among the lowest round(fraction * unique keys), ranked by seeded hash.

    The number of unique keys chosen is exact, and rows with equal keys get equal results.
    Raises ValueError if fraction is outside 0..1.
    """
    _check_fraction(fraction)
    unique, row_to_unique = np.unique(keys, return_inverse=True)
    order = np.argsort(stable_hash(unique[:, None], seed))
    inside = np.zeros(len(unique), bool)
    inside[order[: round(fraction * len(unique))]] = True
    return inside[row_to_unique]


def hashed_fraction(keys: Keys, seed: int, fraction: float) -> Mask:
    """True (P,) for rows whose seeded hash is in the lowest `fraction` of all 64-bit values.

    For spaces too large to list: it looks at one key at a time, so that the share chosen is `fraction` on average.
    Raises ValueError if fraction is outside 0..1.
    """
    _check_fraction(fraction)
    uniform_P = (stable_hash(keys[:, None], seed) >> np.uint64(11)) * 2.0**-53
    return uniform_P < fraction


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction <= 1:
        raise ValueError(f"a fraction is between 0 and 1, got {fraction}")


def random_orders(shape: tuple[int, int], seed: int, first: int = 0) -> Integers:
    """Uniform permutations of 0..m-1 in rows first, first + 1, .. (n, m); row i depends on (m, seed, i) alone."""
    rank_PM = uniform_integers(0, 2**32 - 1, shape, seed, first)
    return np.argsort(rank_PM, axis=1, kind="stable")
