"""Answers as they are written: read in every dress that docs/text.md lists, and never a wrong one as right."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylatent_tasks import MNNS, MultiHop, SubsetSum
from tinylatent_tasks.answers import AROUND, read_as, readings

from tinylatent.lab.tasks import TASKS

PAGE = Path(__file__).parents[2] / "docs/text.md"
CELL = re.compile(r"(`+) ?(.+?) ?\1(?=,|$)")
KINDS = {"4": [MNNS()], "yes": [SubsetSum()], "no": [SubsetSum()], "n3": [MultiHop()]}
EVERY = [MNNS(), SubsetSum(), MultiHop()]


def documented():
    """What each row of the page's table lists as JSON, and what it is read as."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            written, read = (cell.strip() for cell in line.strip("|").split(" | "))
            yield from ((json.loads(value), read) for _, value in CELL.findall(written))


TABLE = [*documented()]


def said(task, value):
    """What a task reads, as it says it; "unreadable" if it reads nothing."""
    try:
        return str(task.say(task.read_answer(value)))
    except ValueError:
        return "unreadable"


def test_the_page_lists_dresses_and_what_is_no_answer():
    assert len(TABLE) > 70
    assert {read for _, read in TABLE} == {*KINDS, "unreadable"}


@pytest.mark.parametrize(("value", "read"), TABLE, ids=str)
def test_what_the_page_lists_is_read_as_it_says(value, read):
    for task in KINDS.get(read, []):
        assert said(task, value) == read
        assert said(task, {"answer": value}) == read
    if read == "unreadable":
        number = isinstance(value, int) or value == "1"  # those in the row of yes and no are numbers elsewhere
        assert {said(task, value) for task in (EVERY[1:] if number else EVERY)} == {"unreadable"}


LEADS = (
    "answer: ",
    "Answer:",
    "The answer is ",
    "FINAL ANSWER: ",
    "The final answer is: ",
    "**Answer:** ",
    "__answer__: ",
)
wrappers = st.one_of(
    st.sampled_from(AROUND).map(lambda pair: lambda text: pair[0] + text + pair[1]),
    st.sampled_from(LEADS).map(lambda lead: lambda text: lead + text),
    st.sampled_from((" ", "\n", "\t", "\u00a0")).map(lambda space: lambda text: space + text + space),
    st.sampled_from((str.upper, str.title, lambda text: text + ".")),
)


def worn(text, chosen):
    """The text in several dresses, one in another."""
    for wrap in chosen:
        text = wrap(text)
    return text


def answers_of(task):
    """Everything the task takes for an answer of one token, as it says it."""
    return [task.say([id_]) for id_ in range(len(task.vocabulary)) if task.say([id_]) is not None]


SMALL = [
    MNNS(3, high=4), SubsetSum(3, 6), MultiHop(nodes=5), TASKS["arithmetic"](2, 7), TASKS["reachability"](),
    TASKS["reachability"]("whether"),
]  # fmt: skip


@given(st.sampled_from(SMALL), st.integers(0, 20), st.lists(wrappers, max_size=4), st.data())
def test_every_dress_of_the_right_answer_is_right_and_of_a_wrong_one_never(task, seed, chosen, data):
    (row,) = task.problems(1, seed)
    right = str(task.say(task.answer_ids(task.answer([row]))[0]))
    other = str(data.draw(st.sampled_from(answers_of(task))))
    assert task.judged([row], [worn(right, chosen)]) == [True]
    assert task.judged([row], [worn(other, chosen)]) == [other == right]
    two = f"{other} {data.draw(st.sampled_from(['or', 'and', 'not', '**', '.']))} {right}"
    assert task.judged([row], [worn(two, chosen)]) == [None]


@given(st.text(st.sampled_from("4*_`.$\\(){}boxedanswr: +-0n"), max_size=14))
def test_noise_around_a_number_never_makes_it_another(text):
    """Whatever is read of such noise is the only number in it."""
    try:
        number = int(MNNS(12, high=1000).say(MNNS(12, high=1000).read_answer(text)))
    except ValueError:
        return
    digits = re.findall(r"\d+", re.sub(r"\.0{1,2}(?!\d)", "", text))
    assert [str(abs(number))] == [each.lstrip("0") or "0" for each in digits]


@settings(max_examples=30)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=3))
def test_any_json_value_has_readings_or_none(value):
    assert all(isinstance(text, str) for text in readings(value))
    assert {bool(text) for text in readings(value)} <= {True, False}
    for task in SMALL:
        assert said(task, value) is not None


def test_what_can_be_read_in_two_ways_is_not_read():
    """A parser that finds something in more of the text and something else in less of it."""
    with pytest.raises(ValueError, match=r"the answer is '\*4\*'; expected a number"):
        read_as("*4*", {"*4*": 5, "4": 4}.get, "a number")
    assert read_as("*4*", {"*4*": 4, "4": 4}.get, "a number") == 4


NOISE = ["*" * 200, "*" * 100_000, ("answer: " * 25)[:200], "_*" * 100, ["4"], 10**5000]


@pytest.mark.parametrize("value", NOISE, ids=range(len(NOISE)))
def test_long_noise_is_no_answer(value):
    assert said(MNNS(), value) == "unreadable"
