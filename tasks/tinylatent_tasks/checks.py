"""Checks of a user's input to a task. They raise ValueError: what was wrong, what was expected, what to try."""

from collections.abc import Collection
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from tinylatent_tasks.batch import Integers

SHORT = 60
"""Most characters of a value that a message quotes."""


def short(value: Any) -> str:
    """A value as one line of not much more than SHORT characters, for messages."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of more than 4300 digits
        return "an integer of thousands of digits"
    return text if len(text) <= SHORT + 2 else f"{text[:SHORT]}..."


def is_integer(value: object) -> bool:
    """True for Python's and numpy's integers; False for booleans, floats and everything else."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_integer(name: str, value: Any, least: int, most: int | None, hint: str) -> None:
    """ValueError, ending in the hint, unless value is an integer from least to most (None: without upper limit)."""
    if not is_integer(value):
        raise ValueError(f"{name} is {short(value)}, but an integer was expected; {hint}")
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is {short(value)}, but it must be {limits}; {hint}")


def check_number(name: str, value: Any, least: float, most: float, hint: str) -> None:
    """ValueError, ending in the hint, unless value is a number from least to most."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{name} is {short(value)}, but a number was expected; {hint}")
    if not least <= value <= most:  # which nan is not either
        raise ValueError(f"{name} is {short(value)}, but it must be from {least} to {most}; {hint}")


def check_flag(name: str, value: Any) -> None:
    """ValueError unless value is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {short(value)}, but it must be True or False; try {name}=True")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """ValueError unless value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {short(value)}, but it must be one of: {', '.join(map(repr, choices))}")


def checked_rows(rows: npt.ArrayLike, width: int, low: int, high: int) -> Integers:
    """The rows as int64 (P, width); ValueError naming the first that is not `width` integers from low to high."""
    expected = f"a problem is {width} integers from {low} to {high}"
    try:
        array = np.asarray(rows)
    except ValueError:  # rows of unequal length
        first, bad = next((i, row) for i, row in enumerate(rows) if not _flat(row, width))  # type: ignore[arg-type]
        raise ValueError(f"row {first} is {short(bad)}, but {expected}; remove or complete it") from None
    if array.ndim != 2:
        raise ValueError(
            f"problems have shape {array.shape}, but (P, {width}) was expected; for one problem try [problem]"
        )
    if array.shape[1] != width:
        raise ValueError(f"row 0 has {array.shape[1]} entries, but {expected}; give every problem {width}")
    if array.dtype == object and all(is_integer(value) for value in array.flat):
        raise ValueError(f"a row holds an integer of more than 64 bits, but {expected}; correct it")
    if array.dtype.kind not in "iu":
        raise ValueError(f"row 0 holds entries of type {array.dtype}, but {expected}; convert them to integers")
    bad_P = ((array < low) | (array > high)).any(axis=1)
    if bad_P.any():
        first = int(bad_P.argmax())
        raise ValueError(f"row {first} is {short(array[first].tolist())}, but {expected}; remove or correct it")
    return array.astype(np.int64)


def integers_in(item: Any, field: str, expected: str) -> list[int]:
    """A list of integers: a JSON value, or a field of a JSON object; ValueError says what was expected."""
    found = item.get(field) if isinstance(item, dict) else item
    if not isinstance(found, list) or not all(map(is_integer, found)):
        raise ValueError(f"got {short(item)}, but {expected}")
    return found


def _flat(row: Any, width: int) -> bool:
    """Whether a row is `width` single values."""
    return hasattr(row, "__len__") and len(row) == width and all(np.ndim(value) == 0 for value in row)


def joined(heads: list[Any], pairs: Any) -> list[Any] | None:
    """One list of `heads` and the members of a list of pairs; None if `pairs` is no such list."""
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        return None
    return [*heads, *(member for pair in pairs for member in pair)]


def refuse_rows(complaints: dict[str, Any], before: int = 0) -> None:
    """ValueError naming the first row where a complaint is True.

    Args:
        complaints: for every complaint the rows (P,) that have it.
        before: number of rows before these, for the row number in the message.
    """
    for complaint, bad_P in complaints.items():
        if bad_P.any():
            raise ValueError(f"row {before + int(bad_P.argmax())} {complaint}; correct it")
