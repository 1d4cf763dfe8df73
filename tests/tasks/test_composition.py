"""Composition by hand, its tables, and what its rows and JSON may hold; what all tasks share: test_registry.py."""

import numpy as np
import pytest
from tinylatent_tasks import Composition
from tinylatent_tasks.batch import SPECIAL_TOKENS
from tinylatent_tasks.keys import hashed_fraction

HAND = [2, 1, 0, 1, -1]
JSON = {"start": 2, "functions": [1, 0, 1]}


@pytest.fixture
def task():
    """Two functions on three states: f0 swaps s0 and s1, f1 goes round."""
    task = Composition(hops=4, items=3, functions=2)
    vars(task)["permutations"] = np.array([[1, 0, 2], [1, 2, 0]])
    return task


def test_a_problem_by_hand(task):
    """s2 goes round to s0, is swapped to s1, and goes round to s2."""
    batch = task.batch([HAND])
    tokens = task.vocabulary.tokens
    assert tokens == (*SPECIAL_TOKENS, "=", "s0", "s1", "s2", "f0", "f1")
    assert [tokens[i] for i in batch.prompt_BN[0]] == ["<pad>", "<bos>", "s2", "f1", "f0", "f1", "="]
    assert batch.prompt_mask_BN[0].tolist() == [False] + [True] * 6
    assert [tokens[i] for i in batch.chain_BT[0]] == ["s0", "s1", "s2", "<pad>"]
    assert tokens[batch.answer_BA[0, 0]] == "s2"
    assert batch.steps_B.tolist() == [3]
    assert task.solve_slowly(HAND) == (2, [0, 1, 2])


def test_in_words(task):
    assert task.describe(HAND).splitlines() == [
        "problem     s2 f1 f0 f1",
        "answer      s2",
        "f0          s0 to s1, s1 to s0, s2 to s2",
        "f1          s0 to s1, s1 to s2, s2 to s0",
        "step 1      s0: 1",
        "step 2      s1: 1",
        "step 3      s2: 1",
    ]
    assert task.question(HAND) == (
        "f0 sends s0 to s1, s1 to s0, s2 to s2. f1 sends s0 to s1, s1 to s2, s2 to s0. Start at s2 and apply f1, then "
        "f0, then f1. Where do you end? Answer with the name alone."
    )


def test_the_same_functions_do_not_commute():
    """Or the order would not matter: of the default's pairs some do not."""
    first, second = ([[0, a, b] for a in range(6) for b in range(6)] for _ in range(2))
    swapped = [[start, b, a] for start, a, b in second]
    task = Composition(hops=2)
    assert (task.answer(first) != task.answer(swapped)).any()


def test_permutations_are_the_tables_own():
    task = Composition(functions=20)
    assert (np.sort(task.permutations, axis=1) == np.arange(8)).all()
    assert len(np.unique(task.permutations, axis=0)) == 20
    assert np.array_equal(Composition(functions=3).permutations, task.permutations[:3])
    assert np.array_equal(Composition(hops=9).permutations, Composition(hops=1).permutations)
    assert not np.array_equal(Composition(tables=1).permutations, Composition().permutations)


def test_problems_are_counted_and_listed():
    task = Composition(hops=3, least=2, items=3, functions=2)
    space = task.space()
    assert task.size == len(space) == 3 * 2**2 + 3 * 2**3
    assert space.tolist() == sorted(map(list, {tuple(row) for row in space.tolist()}))
    assert np.array_equal(task.rows(space), space)
    drawn = {tuple(row) for row in task.problems(1000, 0).tolist()}
    assert drawn == {tuple(row) for row in space.tolist()}  # one is missed with probability below 36 * e^-20
    assert len(np.unique(task.key(space))) == len(space)
    with pytest.raises(ValueError, match="more than the 2,000,000 listed"):
        Composition(hops=8).space()


def test_numbers_of_hops_are_drawn_alike():
    found, times = np.unique(Composition().steps(Composition().problems(4000, 0)), return_counts=True)
    assert found.tolist() == [1, 2, 3, 4]
    assert (abs(times - 1000) < 5 * np.sqrt(4000 * 0.25 * 0.75)).all()  # five standard deviations


def test_every_number_of_hops_is_trained_on_alike():
    """Five standard deviations of 2000 draws; a list would hold six times as many of each further hop."""
    task = Composition()
    assert not task.listed
    assert Composition(least=4).listed
    _, times = np.unique(task.steps(task.split("train", 0, 2000)), return_counts=True)
    assert (abs(times - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75) + 100).all(), "parts differ a little in what they have"
    with pytest.raises(ValueError, match="say how many to draw"):
        task.split("train", 0)


def test_levels_have_one_number_of_hops_and_share_keys():
    task = Composition(hops=3, capacity=5)
    levels = task.levels()
    assert list(levels) == [1, 2, 3, 4, 5]
    for hops, level in levels.items():
        assert (level.vocabulary, level.positions) == (task.vocabulary, task.positions)
        assert set(level.steps(level.problems(50, 0)).tolist()) == {hops}
    trained = set(task.key(task.split("train", 0, 3000)).tolist())
    for hops in (1, 2, 3):
        rows = levels[hops].space()
        held = rows[hashed_fraction(task.key(np.pad(rows, ((0, 0), (0, 3 - hops)), constant_values=-1)), 0, 0.2)]
        assert not trained & set(levels[hops].key(held).tolist())
    assert task.holding({"start": 0, "functions": [1] * 5}) == levels[5]


def test_problems_and_answers_are_json(task):
    assert task.read(JSON).tolist() == task.read(HAND).tolist() == task.read([2, 1, 0, 1]).tolist() == HAND
    assert Composition().to_json(HAND) == JSON
    assert task.to_json(HAND) == {**JSON, "items": 3}
    assert Composition(tables=4).to_json(HAND) == {**JSON, "tables": 4}
    for value in ("s2", " s2. ", {"answer": "s2"}):
        assert task.judge(HAND, value)
    assert not task.judge(HAND, "s1")
    for value in ("s3", 2, "f1", None):
        with pytest.raises(ValueError, match="a state from s0 to s2"):
            task.read_answer(value)
    assert task.write(HAND, [task.vocabulary.index("f0")])["answer"] is None


def test_the_fitting_task_has_room_and_the_tables_that_are_named():
    assert Composition.fitting(JSON) == Composition()
    assert Composition.fitting({**JSON, "items": 5, "tables": 3}) == Composition(items=5, tables=3)
    assert Composition.fitting([0, 7, 1, 1, 1, 1]) == Composition(hops=5, functions=8)


def test_chains_prove_their_answers(task):
    rows = task.problems(50, 0)
    batch = task.batch(rows)
    chain_PT = batch.chain_BT.copy()
    last_B = batch.steps_B - 1
    chain_PT[np.arange(50), last_B] = -1
    chain_PT[batch.chain_BT == 0] = -1
    assert task.certified(rows, chain_PT, batch.answer_BA).all()
    assert not task.certified(rows, chain_PT, batch.answer_BA % 3 + 4 + (batch.answer_BA == 4)).all()
    wrong_PT = chain_PT.copy()
    wrong_PT[:, 0] = np.where(wrong_PT[:, 0] == 4, 5, 4)
    assert not task.certified(rows, wrong_PT, batch.answer_BA).any()
    assert not task.certified(rows, np.pad(chain_PT, ((0, 0), (0, 1)), constant_values=4), batch.answer_BA).any()


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ([3, 0], "starts at a state outside 0 to 2|integers from -1 to 2"),
        ([0, 2], "has a function outside 0 to 1"),
        ([0, -1, 1, -1, -1], "has an unused place"),
        ([0], "has fewer than 1 functions"),
        ([0, 1, 1, 1, 1, 1], "has 6 entries"),
        ({"start": 0}, "a problem is"),
        ({"start": 0, "functions": 1}, "a problem is"),
        ({"start": 0, "functions": ["f1"]}, "a problem is"),
        ({"start": 0, "functions": [1], "items": 8}, "items 8, but 3 was expected; try a task with its items"),
        ({"start": 0, "functions": [1], "tables": 1}, "tables 1, but 0 was expected"),
        (3, "a problem is"),
        ([], "a problem is"),
    ],
    ids=str,
)
def test_bad_items_are_refused_with_the_reason(task, item, message):
    with pytest.raises(ValueError, match=message):
        task.read(item)
