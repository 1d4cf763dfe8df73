"""The tests that every task passes: bad configurations, reproducible items, valid items, an honest scorer.

A new task needs an entry in EXAMPLES: small configurations, and configurations that must be refused.
"""

from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest

from tasks import REGISTRY, Vocabulary
from tasks.batch import SPECIAL_TOKENS

EXAMPLES = {
    "mnns": {
        "good": [
            {},
            {"digits": 3, "low": 2, "high": 5, "room": 5},
            {"digits": 1, "high": 1},
            {"digits": 6, "high": 30},
        ],
        "bad": [
            ({"digits": 0}, "digits is 0"),
            ({"digits": 13}, "from 1 to 12"),
            ({"low": 0}, "low is 0"),
            ({"low": 5, "high": 4}, "high is 4"),
            ({"high": 1001}, "from 1 to 1000"),
            ({"room": 3}, "room is 3"),
            ({"room": 13}, "room is 13"),
            ({"digits": 2.0}, "an integer was expected"),
            ({"high": "9"}, "an integer was expected"),
            ({"low": True}, "an integer was expected"),
            ({"room": True}, "an integer was expected"),
        ],
    }
}

TASKS = [REGISTRY[name](**config) for name in REGISTRY for config in EXAMPLES[name]["good"]]
over_tasks = pytest.mark.parametrize("task", TASKS, ids=repr)


@pytest.mark.parametrize(
    ("name", "config", "message"), [(name, *bad) for name in REGISTRY for bad in EXAMPLES[name]["bad"]], ids=str
)
def test_bad_configurations_are_refused_with_the_reason(name, config, message):
    with pytest.raises(ValueError, match=message):
        REGISTRY[name](**config)


@over_tasks
def test_a_task_is_a_frozen_value_with_its_registered_name(task):
    assert REGISTRY[task.name] is type(task)
    assert replace(task) == task
    assert hash(replace(task)) == hash(task)
    field = fields(task)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(task, field, 1)


@over_tasks
def test_same_seed_gives_the_same_items_whatever_their_number(task):
    many = task.problems(100, 3)
    assert np.array_equal(task.problems(10, 3), many[:10])
    assert len(task.problems(0, 3)) == 0
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
    assert (batch.prompt_BN[:, 0] == task.vocabulary.bos).all()
    for ids in (batch.prompt_BN, batch.chain_BT, batch.answer_BA):
        assert ids.min() >= 0
        assert ids.max() < size
    assert ((batch.prompt_BN != task.vocabulary.pad) == batch.prompt_mask_BN).all()
    assert (batch.prompt_mask_BN.sum(axis=1) + batch.steps_B <= task.positions).all()
    last = batch.steps_B - 1
    answer_share = batch.frontier_BTV[np.arange(200), last, batch.answer_BA[:, -1]]
    assert (answer_share == 1).all()
    assert (np.take_along_axis(batch.frontier_BTV, batch.chain_BT[:, :, None], axis=2) > 0).all()
    assert np.array_equal(batch.key_B, task.key(rows))


@over_tasks
def test_answers_agree_with_the_slow_solver(task):
    rows = task.problems(50, 2)
    assert task.answer(rows).tolist() == [task.solve_slowly(row)[0] for row in rows]


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
    """Train and validation: all of a space that can be listed, some of one that cannot."""
    try:
        task.space()
        count = None
    except ValueError:
        count = 300
    return task.split("train", seed, count), task.split("validation", seed, count)


@over_tasks
@pytest.mark.parametrize("seed", [0, 1, 42])
def test_parts_are_valid_share_no_key_and_repeat(task, seed):
    train, validation = both_parts(task, seed)
    train_keys, validation_keys = (set(task.key(rows).tolist()) for rows in (train, validation))
    assert train_keys
    assert not train_keys & validation_keys
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
        answer = task.answer(row[None])[0]
        assert f"{answer:+d}" in task.describe(row).splitlines()[1]


@over_tasks
@pytest.mark.parametrize("item", [None, 3, "3", {}, {"digits": "3"}, [], [[1]], [1.5], [True], [10**30]], ids=str)
def test_what_is_not_a_problem_is_not_read(task, item):
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
    row = task.problems(1, seed=1)[0].tolist()
    fitting = type(task).fitting(row)
    assert np.array_equal(fitting.read(row), row)
    assert fitting.answer([row]) == task.answer([row])
