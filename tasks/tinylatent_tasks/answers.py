"""Answers as people and language models write them: what stands around one is taken off, the rest is read exactly.

An answer is a JSON string, number or truth value, or an object {"answer": ...}. Around it in a string may stand, one in
another: white space, a full stop after it, Markdown (**4**, *4*, `4`), quotation marks, LaTeX ($4$, \\boxed{4},
\\text{4}), or a lead such as "Answer:" or "The answer is". What is left must be the whole answer: "4 or 5" and "not 4"
are none. If different answers are left when more or less is taken off, there is none either.
"""

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

from tinylatent_tasks.checks import is_integer, short

Read = TypeVar("Read")

YES, NO = "yes", "no"
LONGEST = 200
"""Most characters of an answer with all that stands around it."""
DIGITS = 15
"""Most digits of a number; every whole float of as many is exact."""
AROUND = (
    ("**", "**"), ("*", "*"), ("__", "__"), ("_", "_"), ("`", "`"), ('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"),
    ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("\\boxed{", "}"), ("\\text{", "}"), ("\\textbf{", "}"),
    ("\\mathrm{", "}"), ("\\mathbf{", "}"),
)  # fmt: skip
"""What may stand before and after an answer."""
_WORDS = r"(?:the )?(?:final )?answer(?: is)?"
LEAD = re.compile(rf"{_WORDS}(?::|\s)|(\*\*|__){_WORDS}(?:\1\s*:|:\s*\1|\1\s)")
"""What may introduce an answer, in lower case, itself in bold or not."""
NUMBER = re.compile(rf"[+-]?[0-9]{{1,{DIGITS}}}(?:\.00?)?")
"""4, +4, -4, 4.0 or 4.00; three zeros are none, since 1.000 is a thousand to half the world."""
TRUTH = {YES: True, NO: False, "true": True, "false": False}


def read_as(value: Any, parse: Callable[[str], Read | None], expected: str) -> Read:
    """An answer, read by a function that returns None for text that is no answer.

    Args:
        value: the answer as JSON: a string, a number, true or false, or {"answer": one of these}.
        parse: reads bare text in lower case.
        expected: the answer that was expected, in words.

    Raises:
        ValueError: it is no answer, or can be read as two.
    """
    found = {parse(text) for text in readings(value)} - {None}
    if len(found) != 1:
        said = value.get("answer") if isinstance(value, dict) else value
        raise ValueError(f"the answer is {short(said)}; expected {expected}")
    return next(read for read in found if read is not None)


def readings(value: Any) -> set[str]:
    """The texts that an answer may be, in lower case, with more or less of what stands around it taken off."""
    if isinstance(value, dict):
        value = value.get("answer")
    if is_integer(value):
        return {str(int(value))} if abs(value) < 10**DIGITS else set()
    if isinstance(value, float):
        whole = math.isfinite(value) and value == int(value) and abs(value) < 10**DIGITS
        return {str(int(value))} if whole else set()
    if not isinstance(value, (str, bool)) or len(str(value)) > LONGEST:
        return set()
    found: set[str] = set()
    waiting = [str(value).strip().lower()]
    while waiting:
        text = waiting.pop()
        if text not in found:
            found.add(text)
            waiting += _with_less_around(text)
    return found


def _with_less_around(text: str) -> list[str]:
    """The text without one of the things that may stand around an answer, for each that does."""
    less = [
        text[len(before) : -len(after)]
        for before, after in AROUND
        if len(text) > len(before + after) and text.startswith(before) and text.endswith(after)
    ]
    if text.endswith("."):
        less.append(text[:-1])
    if lead := LEAD.match(text):
        less.append(text[lead.end() :])
    return [inner.strip() for inner in less]


def integer(text: str) -> int | None:
    """The whole number that a text is, such as 4, +4, -4 or 4.0, in ASCII digits; None if it is none."""
    return int(text.partition(".")[0]) if NUMBER.fullmatch(text) else None


def truth(text: str) -> bool | None:
    """True for yes and true, False for no and false, None for any other text."""
    return TRUTH.get(text)
