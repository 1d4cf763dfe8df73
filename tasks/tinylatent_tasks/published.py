"""Questions with steps and answers in words, from files: our own, GSM8K, its equations, multiplications, ProsQA, lists.

    lines            {"question": "..", "steps": ["..", ".."], "answer": ".."}                    a JSON object a line
    GSM8K            {"question": "..", "answer": "a step\\na step\\n#### 72"}                    a JSON object a line
    equations        question||<<48/2=24>> <<48+24=72>> #### 72                                   a line of text each
    multiplication   5 6 3 2 * 7 4 3 4||5 5 5 6 1 + 0 0 6 4 9 0 ( .. ) + .. #### 5 5 6 0 8 2 0 1  a line of text each
    ProsQA           a JSON list of items with their graphs, see `prosqa`
    list             a JSON list of what a line of ours holds, as the authors of Coconut keep ProntoQA and GSM8K

GSM8K is Cobbe et al. 2021; its equations and the multiplications, whose digits stand in reverse, are those that
implicit chain of thought (Deng et al. 2024) and the latent methods after it train on. A file's form is seen from its
lines, which are all of one. Marks of a calculator (<<48/2=24>>) are taken out of GSM8K's steps. Products are checked,
and ProsQA's items against their graphs; other steps are taken as they stand.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from tinylatent_tasks.answers import readings
from tinylatent_tasks.checks import short
from tinylatent_tasks.prosqa import read_items

MARK = re.compile(r"<<[^<>]*>>")
AMOUNT = re.compile(r"([+-]?)\$?([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(\.[0-9]+)?")
"""A number as people write it: 5000, 5,000, $5,000, -3.50; a comma before three digits alone."""


@dataclass(frozen=True)
class Line:
    """A question with the steps of one solution and its answer, all in words."""

    question: str
    steps: tuple[str, ...]
    answer: str


def read_lines(path: Path) -> list[Line]:
    """The lines of a file in any of the forms above.

    Raises ValueError for a file that is empty or not UTF-8, and for a line that has none of the forms or another than
    the first; the message names it, counted from 1. OSError for a file that cannot be opened.
    """
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    if text.lstrip().startswith("["):
        return _of_list(path, text)
    found, form = list[Line](), ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                now = form_of(line)
                if form and now != form:
                    raise ValueError(f"of the form {now}, but the lines before are {form}")
                form = now
                found.append(FORMS[form](line))
            except ValueError as error:
                raise ValueError(f"{path.name}, line {number}: {error}; correct or remove it") from None
    if not found:
        raise ValueError(f"{path.name} holds no lines: expected at least one question with steps and answer")
    return found


def _of_list(path: Path, text: str) -> list[Line]:
    """The lines of a JSON list: items of ProsQA, which bring their graphs, or questions with steps and answers."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path.name}: not JSON ({error}); expected a list of questions with steps and answers"
        ) from None
    if any(isinstance(value, dict) and "edges" in value for value in values):
        read_items(path)  # checks every item
    found = []
    for number, value in enumerate(values):
        try:
            if not isinstance(value, dict) or "steps" not in value:
                raise ValueError(f"{short(value)} has no steps: expected an object with question, steps and answer")
            found.append(_of_value(value))
        except ValueError as error:
            raise ValueError(f"{path.name}, item {number}: {error}; correct or remove it") from None
    if not found:
        raise ValueError(f"{path.name} holds no lines: expected at least one question with steps and answer")
    return found


def form_of(line: str) -> str:
    """Which form a line has, by what is on it.

    Raises ValueError if it has none.
    """
    if line.lstrip().startswith("{"):
        return "GSM8K" if "steps" not in _object(line) else "lines"
    if "||" not in line or "####" not in line.rpartition("||")[2]:
        raise ValueError(f'{short(line)} is neither a JSON object nor "question||steps #### answer"')
    return "multiplication" if re.fullmatch(r"[0-9* ]+", line.partition("||")[0]) else "equations"


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    assert isinstance(value, dict), "it begins with a brace"
    return value


def _string(value: dict[str, Any], field: str) -> str:
    """A field that must be a string with something in it."""
    if field not in value:
        raise ValueError(f"{field} is missing, but a string was expected")
    found = value[field]
    if isinstance(found, (int, float)) and not isinstance(found, bool):
        found = f"{found}"
    if not isinstance(found, str) or not found.strip():
        raise ValueError(f"{field} is {short(found)}, but a string was expected")
    return found.strip()


def _of_lines(line: str) -> Line:
    return _of_value(_object(line))


def _of_value(value: dict[str, Any]) -> Line:
    steps = value["steps"]
    if not isinstance(steps, list) or not all(isinstance(step, str) and step.strip() for step in steps):
        raise ValueError(f"steps is {short(steps)}, but a list of strings was expected")
    return Line(_string(value, "question"), tuple(step.strip() for step in steps), _string(value, "answer"))


def _of_gsm8k(line: str) -> Line:
    value = _object(line)
    question, solution = _string(value, "question"), _string(value, "answer")
    before, mark, answer = solution.rpartition("####")
    if not mark or not answer.strip():
        raise ValueError(f'answer ends in {short(solution[-20:])}, but "#### result" was expected')
    steps = [MARK.sub("", step).strip() for step in before.splitlines()]
    return Line(question, tuple(step for step in steps if step), answer.strip())


def _parts(line: str) -> tuple[str, str, str]:
    """Question, steps and answer of a line of text."""
    question, _, rest = line.rpartition("||")
    steps, _, answer = rest.rpartition("####")
    if not question.strip() or not answer.strip():
        raise ValueError(f"{short(line)} lacks its question or answer")
    return question.strip(), steps.strip(), answer.strip()


def _of_equations(line: str) -> Line:
    question, steps, answer = _parts(line)
    marks = MARK.findall(steps)
    if MARK.sub("", steps).strip():
        raise ValueError(f"{short(MARK.sub('', steps).strip())} stands between equations such as <<1+2=3>>")
    return Line(question, tuple(marks), answer)


def _of_multiplication(line: str) -> Line:
    question, steps, answer = _parts(line)
    factors = [_reversed(part) for part in question.split("*")]
    if len(factors) != 2 or factors[0] * factors[1] != _reversed(answer):
        raise ValueError(f"{short(answer)} is not the product of {short(question)}, digits in reverse")
    return Line(question, tuple(part.strip() for part in steps.split("+")), answer)


def _reversed(digits: str) -> int:
    """The number whose digits stand in reverse, such as 12 for "2 1"."""
    if not re.fullmatch(r"[0-9]( [0-9])*", digits.strip()):
        raise ValueError(f"{short(digits)} is no number in single digits, such as 2 1 for 12")
    return int(digits.replace(" ", "")[::-1])


FORMS: dict[str, Callable[[str], Line]] = {
    "lines": _of_lines, "GSM8K": _of_gsm8k, "equations": _of_equations, "multiplication": _of_multiplication,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Judging


def is_right(said: Any, wanted: str) -> bool:
    """Whether an answer in words is the one wanted, whatever stands around it (see `answers`).

    Numbers are compared as numbers: "5,000", "$5000" and "5000.0" are one. Other answers must be the same words, in any
    case and with any white space between them, with or without a full stop. An answer that can be read as two numbers
    is wrong.
    """
    texts = readings(said) | ({said.strip().lower()} if isinstance(said, str) else set())
    number = amount(wanted)
    if number is not None:
        return {amount(text) for text in texts} - {None} == {number}
    return words(wanted) in {words(text) for text in texts}


def amount(text: str) -> Decimal | None:
    """The number that a text is, as people write it; None if it is none."""
    found = AMOUNT.fullmatch(text.strip())
    return None if found is None else Decimal(f"{found[1]}{found[2].replace(',', '')}{found[3] or ''}")


def words(text: str) -> str:
    """The words of a text in lower case, one space between them, without a full stop at the end."""
    return " ".join(text.lower().split()).removesuffix(".")
