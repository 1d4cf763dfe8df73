"""Arithmetic modulo p: hand-computed chains, the second solver, and what is said about bad requests."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylatent_tasks.arithmetic import Arithmetic

# By hand, modulo 17: 3 + 5 = 8; 8 * 2 = 16; 16 - 9 = 7; 7 * 4 = 28 = 17 + 11.
HAND = [3, 0, 5, 2, 2, 1, 9, 2, 4]
JSON = {"start": 3, "operations": [["+", 5], ["*", 2], ["-", 9], ["*", 4]]}
CHAIN = "3 + 5 = 8 ; 8 * 2 = 16 ; 16 - 9 = 7 ; 7 * 4 = 11 ; 11"

CONFIGS = st.builds(
    Arithmetic,
    operations=st.integers(2, 10),
    modulus=st.integers(2, 97),
    operators=st.lists(st.sampled_from("+-*"), min_size=1, max_size=3, unique=True).map("".join),
)
VARIED = st.builds(
    lambda least, more, modulus: Arithmetic(least + more, modulus, least=least),
    least=st.integers(2, 5),
    more=st.integers(0, 5),
    modulus=st.integers(2, 97),
)
SEEDS = st.integers(0, 2**32)
SHORTER = [3, 0, 5, 2, 2, -1, 0, -1, 0]
"""The first two operations of HAND among places for four."""


def test_an_example_is_as_computed_by_hand():
    task = Arithmetic()
    batch = task.batch([HAND])
    assert task.answer([HAND]).tolist() == [11]
    assert task.results([HAND]).tolist() == [[3, 8, 16, 7, 11]]
    assert task.vocabulary.decode(batch.prompt_BN[0]) == "<bos> 3 + 5 * 2 - 9 * 4"
    assert task.vocabulary.decode(batch.chain_BT[0]) == CHAIN
    assert task.vocabulary.decode(batch.answer_BA[0]) == "11"
    assert batch.steps_B.tolist() == [25]
    assert task.positions == 10 + 25


def test_there_is_no_precedence_and_no_number_below_zero():
    # (1 + 2) * 3 = 9, not 7; 0 - 1 = 4 and 4 * 4 = 16 = 1 modulo 5.
    assert Arithmetic(operations=2).answer([[1, 0, 2, 2, 3]]).tolist() == [9]
    small = Arithmetic(operations=2, modulus=5)
    assert small.vocabulary.decode(small.chain([[0, 1, 1, 2, 4]])[0]) == "0 - 1 = 4 ; 4 * 4 = 1 ; 1"


def test_an_example_is_described_and_asked():
    assert Arithmetic().describe(HAND).splitlines() == [
        "problem     3 + 5 * 2 - 9 * 4 modulo 17, from left to right",
        "answer      11",
        "steps 1-6   3 + 5 = 8 ;",
        "steps 7-12  8 * 2 = 16 ;",
        "steps 13-18 16 - 9 = 7 ;",
        "steps 19-24 7 * 4 = 11 ;",
        "step 25     11",
    ]
    question = Arithmetic().question(HAND)
    for words in ("3 + 5 * 2 - 9 * 4 modulo 17", "from left to right", "from 0 to 16"):
        assert words in question


@pytest.mark.parametrize(("operations", "thinking"), [(2, 12), (4, 24), (10, 60)])
def test_every_operation_is_six_tokens_of_thinking(operations, thinking):
    task = Arithmetic(operations=operations)
    batch = task.batch(task.problems(20, 0))
    assert (batch.steps_B - 1 == thinking).all()
    assert batch.chain_BT.shape == (20, thinking + 1)
    assert thinking == operations * task.tokens_a_step
    assert batch.prompt_BN.shape[1] + thinking + 1 == task.positions


def padding(row):
    """Tokens that the chain of a row is shorter than the longest."""
    return 6 * int((row[1::2] == -1).sum())


@settings(max_examples=40)
@given(CONFIGS | VARIED, SEEDS)
def test_every_equation_of_a_chain_is_true_and_goes_on_from_the_one_before(task, seed):
    """The printed chain is read back as text: nothing is assumed about ids."""
    for row in task.problems(5, seed):
        text = task.vocabulary.decode(task.chain([row])[0]).removesuffix(" <pad>" * padding(row))
        *equations, last = text.split(" ; ")
        result = str(row[0])
        assert task.fewest <= len(equations) == (row[1::2] >= 0).sum() <= task.operations
        for equation, (operator, number) in zip(equations, task.to_json(row)["operations"], strict=True):
            left, right = equation.split(" = ")
            assert left == f"{result} {operator} {number}"
            assert operator in task.operators
            assert (eval(left) - int(right)) % task.modulus == 0
            assert 0 <= int(right) < task.modulus
            result = right
        assert last == result == task.vocabulary.decode(task.answer_ids(task.answer([row]))[0])


@settings(max_examples=60)
@given(CONFIGS | VARIED, SEEDS, st.none() | st.integers(1, 5))
def test_the_frontier_is_one_hot_on_the_chain_whatever_the_budget(task, seed, budget):
    rows = task.problems(5, seed)
    one_hot = np.eye(len(task.vocabulary), dtype=np.float32)[task.chain(rows)]
    for row, frontier, wanted in zip(rows, task.frontier(rows, budget), one_hot, strict=True):
        end = len(wanted) - padding(row)
        assert np.array_equal(frontier[:end], wanted[:end])
        assert not frontier[end:].any()


# ---------------------------------------------------------------------------------------------------------------------
# A number of operations that is drawn


def test_a_shorter_problem_is_padded_on_the_left_and_its_chain_on_the_right():
    task = Arithmetic(least=2)
    batch = task.batch([HAND, SHORTER])
    assert task.vocabulary.decode(batch.prompt_BN[0]) == "<bos> 3 + 5 * 2 - 9 * 4"
    assert task.vocabulary.decode(batch.prompt_BN[1]) == "<pad> " * 4 + "<bos> 3 + 5 * 2"
    assert batch.prompt_mask_BN.tolist() == [[True] * 10, [False] * 4 + [True] * 6]
    assert task.vocabulary.decode(batch.chain_BT[0]) == CHAIN
    assert task.vocabulary.decode(batch.chain_BT[1]) == "3 + 5 = 8 ; 8 * 2 = 16 ; 16" + " <pad>" * 12
    assert batch.steps_B.tolist() == [25, 13]
    assert task.answer([HAND, SHORTER]).tolist() == [11, 16]
    assert task.positions == Arithmetic().positions == 35
    assert task.describe(SHORTER).splitlines()[-2:] == ["steps 7-12  8 * 2 = 16 ;", "step 13     16"]
    assert "3 + 5 * 2 modulo 17" in task.question(SHORTER)


@settings(max_examples=25)
@given(st.integers(2, 8), st.integers(0, 2), st.integers(2, 97), SEEDS)
def test_a_shorter_problem_is_that_of_the_task_with_as_many_operations(operations, fewer, modulus, seed):
    """Its tokens, answer, key, words and JSON form, each beside those that the shorter task makes."""
    short, wide = Arithmetic(operations, modulus), Arithmetic(operations + fewer, modulus, least=operations)
    rows = short.problems(4, seed)
    padded = np.array([wide.read(short.to_json(row)) for row in rows])
    assert np.array_equal(padded[:, : rows.shape[1]], rows)
    own, among = short.batch(rows), wide.batch(padded)
    tokens = own.chain_BT.shape[1]
    assert np.array_equal(own.prompt_BN, among.prompt_BN[:, 2 * fewer :])
    assert not among.prompt_mask_BN[:, : 2 * fewer].any()
    assert np.array_equal(own.chain_BT, among.chain_BT[:, :tokens])
    assert np.array_equal(own.frontier_BTV, among.frontier_BTV[:, :tokens])
    for name in ("steps_B", "answer_BA", "key_B"):
        assert np.array_equal(getattr(own, name), getattr(among, name)), name
    for row, wider in zip(rows, padded, strict=True):
        assert wide.to_json(wider) == short.to_json(row)
        assert wide.question(wider) == short.question(row)
        assert wide.describe(wider) == short.describe(row)
        assert np.array_equal(wide.read(row.tolist()), wider)
        assert type(wide).fitting(wider.tolist()).operations == operations


@settings(max_examples=20)
@given(CONFIGS | VARIED, SEEDS)
def test_a_chain_proves_its_answer_if_every_token_is_right(task, seed):
    rows = task.problems(8, seed)
    batch = task.batch(rows)
    before_PT = np.where(np.arange(batch.chain_BT.shape[1]) < batch.steps_B[:, None] - 1, batch.chain_BT, -1)
    chain_PT = np.pad(before_PT[:, :-1], ((0, 0), (0, 2)), constant_values=-1)
    assert task.certified(rows, chain_PT, batch.answer_BA).all()
    assert not task.certified(rows, chain_PT, batch.answer_BA + 1).any()
    for place in range(0, 12, 5):
        wrong_PT = chain_PT.copy()
        wrong_PT[:, place] = (wrong_PT[:, place] + 1) % len(task.vocabulary)
        assert not task.certified(rows, wrong_PT, batch.answer_BA).any()
    longer_PT = chain_PT.copy()
    longer_PT[np.arange(8), batch.steps_B - 1] = 3
    assert not task.certified(rows, longer_PT, batch.answer_BA).any()
    assert not task.certified(rows, chain_PT[:, :6], batch.answer_BA).any()


def test_numbers_of_operations_are_drawn_alike():
    counts = (Arithmetic(operations=6, least=2).problems(5000, 0)[:, 1::2] >= 0).sum(axis=1)
    found, times = np.unique(counts, return_counts=True)
    assert found.tolist() == [2, 3, 4, 5, 6]
    assert (abs(times - 1000) < 5 * np.sqrt(5000 * 0.2 * 0.8)).all()  # five standard deviations


def test_the_most_operations_as_the_fewest_change_nothing():
    fixed, least = Arithmetic(3), Arithmetic(3, least=3)
    assert np.array_equal(fixed.problems(200, 7), least.problems(200, 7))
    for name, array in vars(fixed.batch(fixed.problems(200, 7))).items():
        assert np.array_equal(array, getattr(least.batch(least.problems(200, 7)), name)), name


def test_shorter_problems_are_counted_and_listed():
    task = Arithmetic(operations=3, modulus=2, operators="*-", least=2)
    space = task.space()
    assert task.size == len(space) == 2**3 * 2**2 + 2**4 * 2**3
    assert space.tolist() == sorted(map(list, {tuple(row) for row in space.tolist()}))
    assert np.array_equal(task.rows(space), space)
    drawn = {tuple(row) for row in task.problems(4000, 0).tolist()}
    assert drawn == {tuple(row) for row in space.tolist()}  # one is missed with probability below 160 * e^-15
    assert len(np.unique(task.key(space))) == len(space)


def test_a_problem_is_in_the_same_part_whatever_the_number_of_operations():
    """No validation problem of a level is among the training problems of the task that draws the number."""
    task = Arithmetic(operations=3, modulus=5, least=2, capacity=4)
    train = task.split("train", 0, 3000)
    counts = (train[:, 1::2] >= 0).sum(axis=1)
    assert list(task.levels()) == [2, 3, 4]
    for count, level in list(task.levels().items())[:2]:
        held = set(level.key(level.split("validation", 0, 1500)).tolist())
        assert (level.least, level.operations) == (count, count)
        assert not held & set(task.key(train).tolist())
        assert len(held) > 150
        assert (counts == count).sum() > 1000
    assert not task.listed
    with pytest.raises(ValueError, match="say how many to draw"):
        task.split("train", 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([3, -1, 0, 2, 2, 1, 9, 2, 4], "before one that is used"),
        ([3, 0, 5, 2, 2, -1, 1, -1, 0], "number other than 0 in an unused"),
        ([3, 0, 5, -1, 0, -1, 0, -1, 0], "has fewer than 2 operations"),
        ([3, 0, -1, 2, 2, -1, 0, -1, 0], "a number outside 0 to 16"),
        ([3, 0, 5, 2, -2, -1, 0, -1, 0], "integers from -1 to 16"),
        ({"start": 3, "operations": [["+", 5]]}, "has fewer than 2 operations"),
        ({"start": 3, "operations": [["+", 5]] * 5}, "has 11 entries"),
        ([3, 0, 5, 2], "has 4 entries"),
    ],
    ids=str,
)
def test_rows_with_operations_left_out_in_another_way_are_refused(row, message):
    with pytest.raises(ValueError, match=message):
        Arithmetic(least=2).read(row)


def test_without_least_a_shorter_problem_is_refused():
    with pytest.raises(ValueError, match="has 5 entries"):
        Arithmetic().read({"start": 3, "operations": [["+", 5], ["*", 2]]})
    with pytest.raises(ValueError, match="integers from 0 to 16"):
        Arithmetic().read(SHORTER)


# ---------------------------------------------------------------------------------------------------------------------
# Problems, keys and JSON


def test_problems_are_counted_and_listed():
    task = Arithmetic(operations=2, modulus=3, operators="*-")
    space = task.space()
    assert task.size == len(space) == 3**3 * 2**2
    assert space.tolist() == sorted(map(list, {tuple(row) for row in space.tolist()}))
    assert space[[0, -1]].tolist() == [[0, 1, 0, 1, 0], [2, 2, 2, 2, 2]]
    assert np.array_equal(task.rows(space), space)
    drawn = {tuple(row) for row in task.problems(2000, 0).tolist()}
    assert drawn == {tuple(row) for row in space.tolist()}  # one is missed with probability below 108 * e^-18
    assert Arithmetic().size == 17**5 * 3**4
    with pytest.raises(ValueError, match="115,008,417"):
        Arithmetic().space()


def test_no_two_problems_share_a_key_and_parts_share_none():
    task = Arithmetic(operations=2, modulus=5)
    space = task.space()
    assert len(np.unique(task.key(space))) == len(space) == 5**3 * 9
    assert np.array_equal(task.key(space[::-1]), task.key(space)[::-1])
    train, validation = task.split("train", 0), task.split("validation", 0)
    assert sorted(train.tolist() + validation.tolist()) == space.tolist()
    assert len(validation) == 225
    large = Arithmetic()
    parts = [large.split(part, 0, 300) for part in ("train", "validation")]
    assert not set(large.key(parts[0]).tolist()) & set(large.key(parts[1]).tolist())


def test_the_order_of_operators_means_nothing():
    assert np.array_equal(Arithmetic(operators="*+").problems(50, 3), Arithmetic(operators="+*").problems(50, 3))
    assert set(np.unique(Arithmetic(operators="*+").problems(50, 3)[:, 1::2])) == {0, 2}


def test_all_levels_share_vocabulary_and_positions():
    assert Arithmetic().levels() == {}
    task = Arithmetic(operations=3, capacity=5)
    levels = task.levels()
    assert list(levels) == [3, 4, 5]
    for operations, level in levels.items():
        assert (level.vocabulary, level.positions, level.operations) == (task.vocabulary, task.positions, operations)
    assert task.positions == Arithmetic(operations=5).positions
    assert task.holding(JSON) == levels[4]


def test_problems_and_answers_are_json():
    task = Arithmetic()
    assert task.read(JSON).tolist() == task.read(HAND).tolist() == HAND
    assert task.to_json(HAND) == JSON
    for value in (11, "11", " 11. ", {"answer": 11}):
        assert task.judge(HAND, value)
    assert not task.judge(HAND, 12)
    assert task.write(HAND, [task.vocabulary.index("11")]) == {**JSON, "answer": 11, "right": True}
    assert task.write(HAND, [task.vocabulary.index("+")])["answer"] is None
    for value in (17, -1, "+", "eleven", None):
        with pytest.raises(ValueError, match="the answer is"):
            task.read_answer(value)


def test_the_modulus_is_written_where_it_cannot_be_guessed():
    task = Arithmetic(modulus=13)
    assert task.to_json(HAND) == {**JSON, "modulus": 13}
    assert task.read({**JSON, "modulus": 13}).tolist() == task.read(JSON).tolist() == HAND
    with pytest.raises(ValueError, match="modulo 13, but modulo 17"):
        Arithmetic().read({**JSON, "modulus": 13})


def test_the_fitting_task_has_the_modulus_that_is_named_or_the_default():
    assert Arithmetic.fitting(JSON) == Arithmetic()
    assert Arithmetic.fitting({**JSON, "modulus": 13}) == Arithmetic(modulus=13)
    assert Arithmetic.fitting([1, 0, 2, 2, 40]) == Arithmetic(operations=2)
    with pytest.raises(ValueError, match="from 0 to 16"):
        Arithmetic.fitting([1, 0, 2, 2, 40]).read([1, 0, 2, 2, 40])
    for item, message in (([1, 0, 2], "operations is 1"), ([1, 0], "got 2 integers"), ([], "got 0"), (3, "problem")):
        with pytest.raises(ValueError, match=message):
            Arithmetic.fitting(item)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"operations": 1}, "operations is 1"),
        ({"operations": 11}, "from 2 to 10"),
        ({"operations": 4.0}, "an integer was expected"),
        ({"modulus": 1}, "modulus is 1"),
        ({"modulus": 98}, "from 2 to 97"),
        ({"operators": ""}, "each once"),
        ({"operators": "++"}, "each once"),
        ({"operators": "+/"}, r"operators is '\+/'"),
        ({"operators": ["+"]}, "each once"),
        ({"least": 1}, "least is 1"),
        ({"least": 5}, "from 2 to 4"),
        ({"capacity": 3}, "capacity is 3"),
        ({"capacity": 11}, "capacity is 11"),
    ],
    ids=str,
)
def test_bad_configurations_are_refused_with_the_reason(config, message):
    with pytest.raises(ValueError, match=message):
        Arithmetic(**config)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (HAND[:-1], "has 8 entries"),
        ([17, *HAND[1:]], "from 0 to 16"),
        ([3, 3, *HAND[2:]], "the problem has an operator other than"),
        ({"start": 3}, "a problem is"),
        ({"operations": JSON["operations"]}, "a problem is"),
        ({**JSON, "operations": [["/", 2]] * 4}, "operator other than"),
        ({**JSON, "operations": [[["+"], 2]] * 4}, "operator other than"),
        ({**JSON, "operations": [["+", 2, 3]] * 4}, "a problem is"),
        ({**JSON, "operations": [["+", 2.5]] * 4}, "a problem is"),
    ],
    ids=str,
)
def test_bad_items_are_refused_with_the_reason(item, message):
    with pytest.raises(ValueError, match=message):
        Arithmetic().read(item)


def test_operators_and_numbers_outside_the_settings_are_refused():
    with pytest.raises(ValueError, match=r"row 1 has an operator other than 0 \(\+\), 2 \(\*\)"):
        Arithmetic(operations=2, operators="+*").rows([[1, 0, 1, 2, 1], [1, 0, 1, 1, 1]])
    with pytest.raises(ValueError, match="row 0 has a number outside 0 to 1"):
        Arithmetic(operations=2, modulus=2).rows([[2, 2, 1, 2, 1]])
    with pytest.raises(ValueError, match="try budget=1"):
        Arithmetic().frontier([HAND], 0)
    with pytest.raises(ValueError, match="try n=1000"):
        Arithmetic().problems(-1, 0)
    with pytest.raises(ValueError, match="an integer was expected"):
        Arithmetic().problems(2.5, 0)
