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
MAX_DRAWS = 200_000
"""Draws after which a part that none of them hit counts as empty."""
CHUNK = 4096
"""Problems drawn at a time."""

Tell = Callable[[int], None]
"""Hears how many problems have been found so far."""


def listed_part(space_PM: Integers, key_P: Keys, part: str, seed: int, count: int | None) -> Integers:
    """The problems of a listed space that are in the part, in the order of the list.

    Validation has exactly the lowest 20 % of unique keys by seeded hash. With `count`, a second seeded hash chooses
    that many problems without repetition; a smaller count gives a subset of a larger one.
    Raises ValueError for an unknown part, or a count that is negative or larger than the part.
    """
    check_choice("part", part, PARTS)
    return subset(space_PM[lowest_fraction(key_P, seed, VALIDATION_SHARE) == (part == "validation")], seed, count)


def subset(rows_PM: Integers, seed: int, count: int | None) -> Integers:
    """So many of these rows, chosen by a seeded hash and in their order; all of them without a count.

    Raises ValueError for a count that is negative or larger than there are.
    """
    if count is None:
        return rows_PM
    check_integer("count", count, 0, len(rows_PM), "leave it out to get the whole part")
    order = np.argsort(stable_hash(rows_PM, derived_seed(seed, "subset")))
    return rows_PM[np.sort(order[:count])]


def drawn_part(
    draw: Callable[[int, int, int], Integers],
    key: Callable[[Integers], Keys],
    part: str,
    seed: int,
    count: int | None,
    tell: Tell | None = None,
) -> Integers:
    """The first `count` random problems that are in the part, with repetition, for spaces too large to list.

    draw(n, seed, first) makes problems first, first + 1, ..; key maps them to keys. Keys with the lowest 20 % of
    hashes are validation. A smaller count gives a prefix of a larger one. `tell` hears how many have been found.
    Raises ValueError for an unknown part, a count that is missing or negative, or a part that hardly any draw hits.
    """
    check_choice("part", part, PARTS)
    check_integer("count", count, 0, None, "the space is too large to list, so say how many to draw: try count=1000")
    assert count is not None
    draw_seed = derived_seed(seed, "draw")
    inside, found, drawn = [draw(0, draw_seed, 0)], 0, 0
    while found < count:
        if drawn > MAX_DRAWS + 128 * count:
            raise ValueError(
                f"only {found} of {drawn:,} random problems are in {part}, fewer than the {count} that were wanted: "
                "make the task larger"
            )
        rows_PM = draw(min(CHUNK, 2 * (count - found) + 64), draw_seed, drawn)
        inside.append(rows_PM[(hashed_fraction(key(rows_PM), seed, VALIDATION_SHARE) == (part == "validation"))])
        drawn, found = drawn + len(rows_PM), found + len(inside[-1])
        if tell is not None:
            tell(min(found, count))
    return np.concatenate(inside)[:count]


def drawn_in_chunks(draw: Callable[[int, int], Integers], count: int, tell: Tell | None = None) -> Integers:
    """What draw(n, first) makes for numbers 0 to count - 1, a chunk at a time; `tell` hears how many there are."""
    parts = []
    for first in range(0, max(count, 1), CHUNK):
        parts.append(draw(min(CHUNK, count - first), first))
        if tell is not None:
            tell(first + len(parts[-1]))
    return np.concatenate(parts)
