"""The tests that every task passes: bad configurations, reproducible items, valid items, an honest scorer.

A new task of this repository needs an entry in EXAMPLES: small configurations, configurations that must be refused, and
random ones for the comparison with its second solver. One that another package brings is tested with its defaults.
"""

import math
import re
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylatent_tasks import (
    MNNS,
    Arithmetic,
    Composition,
    MultiHop,
    Reachability,
    Recommendation,
    Stories,
    SubsetSum,
    Vocabulary,
)
from tinylatent_tasks.batch import SPECIAL_TOKENS
from tinylatent_tasks.keys import hashed_fraction

from tinylatent.core.registry import Registry

KINDS = Registry("tinylatent.tasks", "task", named=True).loaded()
"""Every task that is installed, by name."""
CHOSEN, SMALL = st.integers(1, 6), st.integers(1, 10)
EXAMPLES = {
    "mnns": {
        "good": [
            {},
            {"digits": 3, "low": 2, "high": 5, "capacity": 5},
            {"digits": 1, "high": 1},
            {"digits": 6, "high": 30},
        ],
        "bad": [
            ({"digits": 0}, "digits is 0"),
            ({"digits": 13}, "from 1 to 12"),
            ({"low": 0}, "low is 0"),
            ({"low": 5, "high": 4}, "high is 4"),
            ({"high": 1001}, "from 1 to 1000"),
            ({"capacity": 3}, "capacity is 3"),
            ({"capacity": 13}, "capacity is 13"),
            ({"digits": 2.0}, "an integer was expected"),
            ({"high": "9"}, "an integer was expected"),
            ({"low": True}, "an integer was expected"),
            ({"capacity": True}, "an integer was expected"),
        ],
        "random": st.builds(lambda digits, low, more: MNNS(digits, low, low + more), CHOSEN, SMALL, st.integers(0, 20)),
    },
    "subset-sum": {
        "good": [{}, {"numbers": 3, "high": 5, "capacity": 5}, {"numbers": 2, "high": 5}, {"numbers": 6, "high": 30}],
        "bad": [
            ({"numbers": 1}, "numbers is 1"),
            ({"numbers": 13}, "from 2 to 12"),
            ({"high": 0}, "high is 0"),
            ({"capacity": 3}, "capacity is 3"),
            ({"high": 2.5}, "an integer was expected"),
        ],
        "random": st.builds(SubsetSum, st.integers(2, 6), st.integers(1, 30)),
    },
    "multihop": {
        "good": [
            {},
            {"hops": 2, "least": 2, "nodes": 5, "bound": True, "capacity": 4},
            {"hops": 3, "nodes": 6, "branching": 2},
            {"hops": 1, "nodes": 4},
        ],
        "bad": [
            ({"hops": 0}, "hops is 0"),
            ({"least": 4}, "least is 4"),
            ({"nodes": 1}, "nodes is 1"),
            ({"branching": 8}, "nodes is 8"),
            ({"capacity": 2}, "capacity is 2"),
            ({"branching": 3, "hops": 8}, "6,561 walks"),
            ({"nodes": "8"}, "an integer was expected"),
            ({"bound": 1}, "True or False"),
        ],
        "random": st.builds(
            lambda hops, nodes, branching: MultiHop(hops, 1, max(nodes, branching + 1), branching),
            st.integers(1, 4),
            st.integers(2, 9),
            st.integers(1, 3),
        ),
    },
    "reachability": {
        "good": [
            {},
            {"depth": 2, "least": 1, "nodes": 9, "edges": 12, "capacity": 3},
            {"asks": "whether", "depth": 3, "least": 1},
            {"nodes": 8, "edges": 40, "bound": True},
        ],
        "bad": [
            ({"asks": "who"}, "'which', 'whether'"),
            ({"depth": 0}, "depth is 0"),
            ({"least": 4}, "least is 4"),
            ({"nodes": 7}, "need 8"),
            ({"edges": 9}, "edges is 9"),
            ({"capacity": 2}, "capacity is 2"),
            ({"depth": True}, "an integer was expected"),
            ({"bound": "no"}, "True or False"),
        ],
        "random": st.builds(
            lambda asks, depth, more, extra: Reachability(
                asks, 2 * depth + 2 + more, 2 * depth + more + extra, depth, 1
            ),
            st.sampled_from(["which", "whether"]),
            st.integers(1, 4),
            st.integers(0, 4),
            st.integers(0, 8),
        ),
    },
    "stories": {
        "good": [{}, {"depth": 2, "least": 1, "nodes": 9, "edges": 12, "capacity": 3}, {"nodes": 64, "edges": 80}],
        "bad": [
            ({"asks": "whether"}, "a story has an edge in six words and asks which of two"),
            ({"bound": True}, "a story has an edge in six words"),
            ({"depth": 0}, "depth is 0"),
            ({"nodes": 65}, "from 8 to 64"),
        ],
        "random": st.builds(
            lambda depth, more, extra: Stories(
                nodes=2 * depth + 2 + more, edges=2 * depth + more + extra, depth=depth, least=1
            ),
            st.integers(1, 4),
            st.integers(0, 4),
            st.integers(0, 8),
        ),
    },
    "arithmetic": {
        "good": [
            {},
            {"operations": 2, "modulus": 5, "capacity": 3},
            {"operators": "-", "operations": 10},
            {"operations": 4, "modulus": 5, "least": 2, "capacity": 5},
        ],
        "bad": [
            ({"operations": 1}, "operations is 1"),
            ({"modulus": 98}, "from 2 to 97"),
            ({"operators": ""}, "operators"),
            ({"least": 5}, "least is 5"),
            ({"capacity": 3}, "capacity is 3"),
            ({"modulus": 7.0}, "an integer was expected"),
        ],
        "random": st.builds(
            lambda most, modulus, operators, least: Arithmetic(
                most, modulus, operators, least=least and min(least, most)
            ),
            st.integers(2, 10),
            st.integers(2, 97),
            st.sampled_from(["+-*", "*+", "-"]),
            st.none() | st.integers(2, 10),
        ),
    },
    "composition": {
        "good": [
            {},
            {"hops": 3, "least": 2, "items": 5, "functions": 2, "capacity": 5, "tables": 3},
            {"hops": 7, "functions": 9},
            {"hops": 1, "items": 3, "functions": 4},
        ],
        "bad": [
            ({"hops": 0}, "hops is 0"),
            ({"hops": 13}, "from 1 to 12"),
            ({"least": 5}, "least is 5"),
            ({"items": 1}, "items is 1"),
            ({"functions": 0}, "functions is 0"),
            ({"capacity": 3}, "the hops must fit"),
            ({"tables": -1}, "tables is -1"),
            ({"tables": True}, "an integer was expected"),
        ],
        "random": st.builds(
            lambda hops, least, items, functions, tables: Composition(
                hops, min(least, hops), items, functions, tables=tables
            ),
            st.integers(1, 12),
            st.integers(1, 12),
            st.integers(2, 20),
            st.integers(1, 20),
            st.integers(0, 2**40),
        ),
    },
    "recommendation": {
        "good": [
            {},
            {"categories": 4, "brands": 3, "numbers": 2, "events": 5},
            {"noise": 1.0, "zipf": 0.0},
            {"categories": 4, "item_tokens": True},
        ],
        "bad": [
            ({"categories": 1}, "categories is 1"),
            ({"categories": 100}, "items"),
            ({"noise": 0.0}, "noise is 0"),
            ({"events": 1}, "events is 1"),
            ({"intents": 1.0}, "an integer was expected"),
            ({"item_tokens": 1}, "True or False"),
            ({"by_users": "yes"}, "True or False"),
        ],
        "random": st.builds(
            lambda c, b, k, intents, noise, events, item_tokens: Recommendation(
                c, b, k, intents=intents, noise=noise, events=events, item_tokens=item_tokens
            ),
            st.integers(2, 5),
            st.integers(2, 4),
            st.integers(2, 4),
            st.integers(1, 6),
            st.floats(0.01, 1.0),
            st.integers(2, 8),
            st.booleans(),
        ),
    },
}
EXAMPLES = {name: {"good": [{}], "bad": [], "random": st.builds(kind)} for name, kind in KINDS.items()} | EXAMPLES

TASKS = [
    pytest.param(KINDS[name](**config), marks=[pytest.mark.slow] * (place > 1))
    for name in KINDS
    for place, config in enumerate(EXAMPLES[name]["good"])
]
EXEMPT = {"recommendation"}
"""Tasks split by time: a user is in both parts."""
over_tasks = pytest.mark.parametrize("task", TASKS, ids=repr)


@pytest.mark.parametrize(
    ("name", "config", "message"), [(name, *bad) for name in KINDS for bad in EXAMPLES[name]["bad"]], ids=str
)
def test_bad_configurations_are_refused_with_the_reason(name, config, message):
    with pytest.raises(ValueError, match=message):
        KINDS[name](**config)


ODD = [True, False, 1.5, math.nan, math.inf, -1, 0, 10**30, 10**5000, -(10**400), None, "", "3", "x" * 500, [], [3], {}]
"""Values of settings that are out of range, or of a type that the setting does not have."""


@pytest.mark.parametrize("name", KINDS)
def test_any_value_of_a_setting_makes_a_task_or_one_sentence(name):
    for field in fields(KINDS[name]):
        for value in ODD:
            try:
                task = KINDS[name](**{field.name: value})
            except ValueError as error:
                said = str(error)
                assert field.name in said or "items" in said
                assert len(said) < 300
                assert "\n" not in said
            else:
                assert not (isinstance(value, float) and math.isnan(value))
                assert len(task.vocabulary) < 100_000
                assert len(task.problems(2, 0)) == 2


@over_tasks
def test_a_task_is_a_frozen_value_with_its_registered_name(task):
    assert KINDS[task.name] is type(task)
    assert replace(task) == task
    assert hash(replace(task)) == hash(task)
    field = fields(task)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(task, field, 1)


@over_tasks
def test_same_seed_gives_the_same_items_whatever_their_number(task):
    many = task.problems(100, 3)
    assert np.array_equal(task.problems(10, 3), many[:10])
    assert np.array_equal(task.problems(30, 3, 70), many[70:])
    assert len(task.problems(0, 3)) == len(task.problems(0, 3, 5)) == 0
    for bad in ((-1, 3), (10**30, 3), (2, 3, -1), (2, 3, 10**30), (1.5, 3)):
        with pytest.raises(ValueError, match=r"n is|first is"):
            task.problems(*bad)
    if len(np.unique(many, axis=0)) > 1:
        assert not np.array_equal(task.problems(100, 4), many)


@over_tasks
def test_no_item_depends_on_the_rows_beside_it(task):
    rows = task.problems(40, 0)
    whole, part = task.batch(rows), task.batch(rows[25:])
    for name, array in vars(whole).items():
        assert np.array_equal(array[25:], getattr(part, name)), name


@over_tasks
def test_every_item_of_a_batch_is_valid(task):
    rows = task.problems(200, 1)
    batch = task.batch(rows)
    size = len(task.vocabulary)
    assert batch.prompt_BN.dtype == batch.steps_B.dtype == batch.chain_BT.dtype == batch.answer_BA.dtype == np.int64
    assert batch.prompt_mask_BN.dtype == bool
    assert batch.frontier_BTV.dtype == np.float32
    assert batch.key_B.dtype == np.uint64
    assert batch.frontier_BTV.shape == (*batch.chain_BT.shape, size)
    for ids in (batch.prompt_BN, batch.chain_BT, batch.answer_BA):
        assert ids.min() >= 0
        assert ids.max() < size
    assert ((batch.prompt_BN != task.vocabulary.pad) == batch.prompt_mask_BN).all()
    assert (np.diff(batch.prompt_mask_BN.astype(int), axis=1) >= 0).all(), "padding is on the left"
    first = batch.prompt_mask_BN.argmax(axis=1)
    assert (batch.prompt_BN[np.arange(200), first] == task.vocabulary.bos).all()
    assert (batch.prompt_mask_BN.sum(axis=1) + batch.steps_B <= task.positions).all()
    assert np.array_equal(batch.key_B, task.key(rows))
    last = batch.steps_B - 1
    assert (batch.frontier_BTV[np.arange(200), last, batch.answer_BA[:, -1]] == 1).all()
    live_BT = np.arange(batch.chain_BT.shape[1]) < batch.steps_B[:, None]
    np.testing.assert_allclose(batch.frontier_BTV.sum(2, dtype=np.float64), live_BT, rtol=0, atol=1e-6)
    on_chain_BT = np.take_along_axis(batch.frontier_BTV, batch.chain_BT[:, :, None], axis=2)[..., 0]
    assert ((on_chain_BT > 0) == live_BT).all(), "the chain lies inside the frontier"
    assert ((batch.chain_BT != task.vocabulary.pad) == live_BT).all()
    assert ((batch.steps_B - 1) % task.tokens_a_step == 0).all(), "steps of reasoning are whole"


@over_tasks
def test_a_budget_of_one_is_the_chain(task):
    batch = task.batch(task.problems(50, 1), budget=1)
    on_chain_BT = np.take_along_axis(batch.frontier_BTV, batch.chain_BT[:, :, None], axis=2)[..., 0]
    assert np.array_equal(on_chain_BT, np.arange(batch.chain_BT.shape[1]) < batch.steps_B[:, None])
    for budget in (0, 1.5):
        with pytest.raises(ValueError, match="budget is"):
            task.frontier(task.problems(1, 0), budget)
    if not task.rules:
        with pytest.raises(ValueError, match="leave rule out"):
            task.batch(task.problems(1, 0), rule="absolute")


@pytest.mark.parametrize("examples", [5, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_oracles_agree_with_their_second_solver(name, examples):
    """Answers and best traces, over random configurations: ten thousand problems in all, a few hundred in short."""
    compared = 0

    @settings(max_examples=examples)
    @given(EXAMPLES[name]["random"], st.integers(0, 2**32))
    def compare(task, seed):
        nonlocal compared
        rows = task.problems(150, seed)
        answers, steps, batch_chain = task.answer(rows), task.steps(rows), task.chain(rows)
        for row, answer, ids, length in zip(rows.tolist(), answers, batch_chain, steps, strict=True):
            slow_answer, slow_states = task.solve_slowly(row)
            assert answer == slow_answer
            assert task.states(ids[:length]) == slow_states
        compared += len(rows)

    compare()
    assert compared >= 100 * examples


@over_tasks
def test_scorer_accepts_the_truth_and_rejects_every_other_token(task):
    rows = task.problems(20, 5)
    truth = task.batch(rows).answer_BA
    assert task.score(rows, truth).all()
    for shift in range(1, len(task.vocabulary)):
        wrong = truth.copy()
        wrong[:, -1] = (wrong[:, -1] + shift) % len(task.vocabulary)
        assert not task.score(rows, wrong).any()
    with pytest.raises(ValueError, match="shape"):
        task.score(rows, truth[:-1])


def both_parts(task, seed):
    """Train and validation: all of a space that is listed, some of one that is not."""
    count = None if task.listed else 300
    return task.split("train", seed, count), task.split("validation", seed, count)


@over_tasks
@pytest.mark.parametrize("seed", [0, 42])
def test_parts_are_valid_share_no_key_and_repeat(task, seed):
    train, validation = both_parts(task, seed)
    train_keys, validation_keys = (set(task.key(rows).tolist()) for rows in (train, validation))
    assert train_keys
    assert not train_keys & validation_keys or task.name in EXEMPT
    again_train, again_validation = both_parts(task, seed)
    assert np.array_equal(train, again_train)
    assert np.array_equal(validation, again_validation)


@over_tasks
def test_a_part_that_does_not_exist_is_refused(task):
    with pytest.raises(ValueError, match="'train', 'validation'"):
        task.split("test", seed=0)


@over_tasks
def test_a_problem_survives_json_and_is_described(task):
    for row in task.problems(5, 9):
        assert np.array_equal(task.read(row.tolist()), row)
        assert np.array_equal(task.read(task.to_json(row)), row)
        answer = task.say(task.answer_ids(task.answer(row[None]))[0])
        assert str(answer) in task.describe(row).splitlines()[1]
        assert task.judge(row, answer)
        assert task.judge(row, {"answer": f" {answer} "})


@over_tasks
def test_a_question_names_all_that_is_given(task):
    row = task.problems(1, 11)[0]
    question = task.question(row.tolist())
    assert question.endswith((".", "?"))
    batch = task.batch(row[None])
    for id_ in batch.prompt_BN[0][batch.prompt_mask_BN[0]][1:]:
        for word in task.vocabulary.tokens[id_].strip("=?.").split(">"):
            assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", question), word


@over_tasks
def test_what_is_no_answer_is_not_judged(task):
    for value in (None, 0.5, [], "nonsense", "", {"answer": None}, {}, {"answer": {"answer": 1}}):
        with pytest.raises(ValueError, match="answer"):
            task.judge(task.problems(1, 0)[0], value)


@over_tasks
def test_all_levels_share_vocabulary_and_positions(task):
    levels = task.levels()
    assert list(levels) == sorted(levels)
    for level in levels.values():
        assert level.vocabulary == task.vocabulary
        assert level.positions == task.positions
        row = level.problems(1, 0)[0]
        assert level.prompt(row[None])[0].shape[1] + level.chain(row[None]).shape[1] <= task.positions
        item = level.to_json(row.tolist())
        assert np.array_equal(task.holding(item).read(item)[: len(row)], row)
    with pytest.raises(ValueError, match="problem"):
        task.holding("nonsense")


@over_tasks
def test_what_is_not_a_problem_is_not_read(task):
    for item in (None, 3, "3", {}, {"digits": "3"}, [], [[1]], [1.5], [True], [10**30]):
        with pytest.raises(ValueError, match="problem"):
            task.read(item)


@over_tasks
def test_vocabulary_starts_with_the_special_tokens_and_inverts_itself(task):
    vocabulary = task.vocabulary
    assert vocabulary.tokens[:3] == SPECIAL_TOKENS
    assert [vocabulary.tokens[id_] for id_ in (vocabulary.pad, vocabulary.bos, vocabulary.pause)] == [*SPECIAL_TOKENS]
    assert [vocabulary.index(token) for token in vocabulary.tokens] == list(range(len(vocabulary)))
    assert vocabulary.decode(range(len(vocabulary))).split() == [*vocabulary.tokens]


def test_vocabulary_refuses_wrong_starts_repeated_tokens_and_unknown_ones():
    with pytest.raises(ValueError, match="starts with"):
        Vocabulary(("<bos>", "<pad>", "<pause>"))
    with pytest.raises(ValueError, match="'a' occurs twice"):
        Vocabulary((*SPECIAL_TOKENS, "a", "b", "a"))
    vocabulary = Vocabulary((*SPECIAL_TOKENS, "a"))
    with pytest.raises(ValueError, match="'b'"):
        vocabulary.index("b")
    for ids in ([4], [-1]):
        with pytest.raises(ValueError, match="0 to 3"):
            vocabulary.decode(ids)


@over_tasks
def test_an_answer_is_written_with_its_verdict(task):
    row = task.problems(1, seed=0)
    truth_A = task.batch(row).answer_BA[0]
    assert task.write(row[0], truth_A)["right"] is True
    for wrong in (truth_A + 1, np.full_like(truth_A, Vocabulary.pad)):
        written = task.write(row[0], wrong)
        assert written["right"] is False
        assert np.array_equal(task.read({name: written[name] for name in written if name != "answer"}), row[0])


@over_tasks
def test_the_fitting_task_holds_the_problem(task):
    item = task.to_json(task.problems(1, seed=1)[0].tolist())
    fitting = type(task).fitting(item)
    assert fitting.to_json(fitting.read(item)) == item
    assert fitting.answer([fitting.read(item)]) == task.answer([task.read(item)])


def test_a_part_without_problems_is_refused():
    """Two ones and the target 1 are the only problem, and in one part alone."""
    task = SubsetSum(numbers=2, high=1)
    held = hashed_fraction(task.key(task.problems(1, 0)), 0, 0.2)[0]
    part, other = ("validation", "train") if held else ("train", "validation")
    assert len(task.split(part, 0, 10)) == 10
    with pytest.raises(ValueError, match="make the task larger"):
        task.split(other, 0, 10)
