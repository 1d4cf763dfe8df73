"""Splits of a task's problems into "train" and "validation" by key: no key is in both parts, whatever the seed.

Letters: P problems, M integers of a problem.
"""

from collections.abc import Callable

import numpy as np

from tinylatent_tasks.batch import Integers, Keys
from tinylatent_tasks.checks import check_choice, check_integer
from tinylatent_tasks.keys import derived_seed, hashed_fraction, lowest_fraction, stable_hash

PARTS = ("train", "validation")
VALIDATION_SHARE = 0.2
MAX_DRAWS = 100_000
"""Draws after which a part that none of them hit counts as empty."""


def listed_part(space_PM: Integers, key_P: Keys, part: str, seed: int, count: int | None) -> Integers:
    """The problems of a listed space that are in the part, in the order of the list.

    Validation has exactly the lowest 20 % of unique keys by seeded hash. With `count`, a second seeded hash chooses
    that many problems without repetition; a smaller count gives a subset of a larger one.
    Raises ValueError for an unknown part, or a count that is negative or larger than the part.
    """
    check_choice("part", part, PARTS)
    rows_PM = space_PM[lowest_fraction(key_P, seed, VALIDATION_SHARE) == (part == "validation")]
    if count is None:
        return rows_PM
    check_integer("count", count, 0, len(rows_PM), "leave it out to get the whole part")
    order = np.argsort(stable_hash(rows_PM, derived_seed(seed, "subset")))
    return rows_PM[np.sort(order[:count])]


def drawn_part(
    draw: Callable[[int, int], Integers], key: Callable[[Integers], Keys], part: str, seed: int, count: int | None
) -> Integers:
    """The first `count` random problems that are in the part, with repetition, for spaces too large to list.

    draw(n, seed) makes n problems, where problem i does not depend on n; key maps them to keys. Keys with the lowest
    20 % of hashes are validation. A smaller count gives a prefix of a larger one.
    Raises ValueError for an unknown part, a count that is missing or negative, or a part that hardly any draw hits.
    """
    check_choice("part", part, PARTS)
    check_integer("count", count, 0, None, "the space is too large to list, so say how many to draw: try count=1000")
    assert count is not None
    drawn = 2 * count + 64
    while True:
        rows_PM = draw(drawn, derived_seed(seed, "draw"))
        inside_P = hashed_fraction(key(rows_PM), seed, VALIDATION_SHARE) == (part == "validation")
        if inside_P.sum() >= count:
            return rows_PM[inside_P][:count]
        if drawn > MAX_DRAWS + 64 * count:
            raise ValueError(
                f"only {inside_P.sum()} of {drawn:,} random problems are in {part}, fewer than the {count} that were "
                "wanted: make the task larger"
            )
        drawn *= 2
