"""Stories are reachability in words: the same problems and answers, and a text that says the graph."""

import re

import numpy as np
import pytest
from tinylatent_tasks import Reachability, Stories
from tinylatent_tasks.prosqa import STATEMENT

SIZES = {"nodes": 9, "edges": 10, "depth": 3, "least": 2}
TASK, LIKE = Stories(**SIZES), Reachability(**SIZES)


def test_problems_answers_and_frontiers_are_those_of_reachability():
    rows = TASK.problems(200, 3)
    np.testing.assert_array_equal(rows, LIKE.problems(200, 3))
    np.testing.assert_array_equal(TASK.answer(rows), LIKE.answer(rows))
    np.testing.assert_array_equal(TASK.key(rows), LIKE.key(rows))
    ours, theirs = TASK.frontier(rows), LIKE.frontier(rows)
    np.testing.assert_array_equal(ours[..., : theirs.shape[-1]], theirs)
    assert not ours[..., theirs.shape[-1] :].any()


def test_the_prompt_is_the_story_word_by_word():
    rows = TASK.problems(50, 4)
    prompt_PN, mask_PN = TASK.prompt(rows)
    for row, ids_N, mask_N in zip(rows.tolist(), prompt_PN, mask_PN, strict=True):
        words = re.sub(r"([.?])", r" \1", TASK.question(row).lower()).split()
        assert TASK.vocabulary.decode(ids_N[mask_N]).split() == ["<bos>", *words]


def test_a_story_says_its_graph():
    """Read back by what reads ProsQA's sentences."""
    for row in TASK.problems(50, 5).tolist():
        story, _, asked = TASK.question(row).rpartition(" Is every ")
        pairs = [[TASK.names.index(word) for word in pair] for pair in STATEMENT.findall(story)]
        assert pairs == TASK.to_json(row)["edges"]
        root, first, second = (TASK.names.index(word) for word in re.findall(r"\w+pus", asked))
        assert (root, [first, second]) == (row[0], row[1:3])


def test_names_are_different_and_answers_are_read_by_them():
    names = Stories(nodes=64, edges=70).names
    assert len({*names}) == 64
    rows = TASK.problems(20, 6)
    said = [TASK.say(ids) for ids in TASK.answer_ids(TASK.answer(rows))]
    assert all(TASK.judged(rows, said))
    assert TASK.read_answer(f"The answer is {names[3]}.") == TASK.answer_ids([3])[0]
    with pytest.raises(ValueError, match="a node from bampus to "):
        TASK.read_answer("n3")
