"""Examples are a task's batch, targets sparse or dense alike, and every part of them keeps its rows together."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tinylatent_tasks import MNNS, Arithmetic, MultiHop, Recommendation

from tinylatent.core.registry import Registry
from tinylatent.engine.thought import State
from tinylatent.engine.thoughts import MIXTURE
from tinylatent.objectives import speakers
from tinylatent.objectives.examples import Examples, Speaker, Targets, same_tokens
from tinylatent.objectives.speakers import Symbols, joined

RAGGED = MultiHop(nodes=5, hops=3)
SMALL = {
    "mnns": MNNS(3, 1, 4),
    "multihop": RAGGED,
    "arithmetic": Arithmetic(2, 5),
    "recommendation": Recommendation(4, 3, 2, events=4),
}
TASKS = pytest.mark.parametrize("task", SMALL.values(), ids=SMALL)


def examples_of(task, rows=12, **supervision):
    return Symbols(task, task.problems(rows, seed=0)).examples(**supervision)


def assert_equal(ours, theirs):
    """Two sets of examples are the same in everything but the form of their targets."""
    for name, value in vars(ours).items():
        other = getattr(theirs, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other), name
        elif name == "frontier":
            assert torch.equal(value.dense(), other.dense())
        elif name not in ("steps_BT", "row_B"):
            assert value is other or value == other, name
    assert np.array_equal(ours.problems(), theirs.problems())


# ---------------------------------------------------------------------------------------------------------------------
# A task's batch


@TASKS
def test_examples_are_the_batch_with_the_answer_at_the_end(task):
    rows = task.problems(12, seed=0)
    batch, examples = task.batch(rows), Symbols(task, rows).examples()
    T, A = batch.chain_BT.shape[1] - 1, batch.answer_BA.shape[1]
    assert np.array_equal(examples.prompt_BN, batch.prompt_BN)
    assert np.array_equal(examples.chain_BT, np.concatenate([batch.chain_BT[:, :-1], batch.answer_BA], 1))
    assert np.array_equal(examples.answer_BA, batch.answer_BA)
    assert (examples.max_steps, examples.answer_tokens, len(examples)) == (T, A, 12)
    assert examples.slots == batch.prompt_BN.shape[1] + T + A - 1
    target_BTV = examples.frontier.dense()
    assert np.array_equal(target_BTV[:, :T], batch.frontier_BTV[:, :-1])
    assert torch.equal(target_BTV[:, T:], F.one_hot(examples.answer_BA, len(task.vocabulary)).float())
    assert np.array_equal(torch.as_tensor(examples.num_steps).expand(12) + 1, batch.steps_B)
    assert examples.answer_mask_BA is None


def test_what_is_the_same_for_all_rows_costs_nothing():
    even, ragged = examples_of(MNNS(3, 1, 4)), examples_of(RAGGED)
    assert (even.num_steps, even.prompt_mask_BN) == (2, None)
    assert sorted(set(ragged.num_steps.tolist())) == [0, 1, 2]


def test_supervision_is_passed_on():
    task = MNNS(3, 1, 4)
    rows = task.problems(12, seed=0)
    for supervision in ({"budget": 1}, {"budget": 2, "rule": "nonnegative"}):
        wanted_BTV = task.batch(rows, **supervision).frontier_BTV
        examples = Symbols(task, rows).examples(**supervision)
        assert np.array_equal(examples.frontier.dense()[:, :-1], wanted_BTV[:, :-1])


def test_no_problems_make_no_examples():
    with pytest.raises(ValueError, match="no problems: expected at least one row"):
        Symbols(MNNS(), MNNS().problems(0, seed=0)).examples()


# ---------------------------------------------------------------------------------------------------------------------
# Targets, sparse and dense


@st.composite
def shares(draw):
    """Distributions over six states, many of them zero; rows beyond a chain hold none."""
    numbers = st.sampled_from([0.0, 0.0, 0.0, 0.25, 1.0, 3.0])
    B, T = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    raw = draw(st.lists(st.lists(numbers, min_size=6, max_size=6), min_size=B * T, max_size=B * T))
    dense_BTV = torch.tensor(raw, dtype=torch.float64).view(B, T, 6)
    return dense_BTV / dense_BTV.sum(-1, keepdim=True).clamp(min=1e-9)


@given(dense_BTV=shares())
def test_sparse_targets_are_the_dense_ones(dense_BTV):
    dense, sparse = Targets(6, dense_BTV=dense_BTV), Targets.from_dense(dense_BTV)
    assert sparse.ids_BTS.shape[2] == max(1, int((dense_BTV > 0).sum(-1).max()))
    assert torch.equal(sparse.dense(), dense_BTV)
    assert torch.equal(Targets(6, *dense.sparse()).dense(), dense_BTV)


def test_shares_of_a_token_that_stands_there_twice_add_up():
    """As those of none do, which fill up shorter targets with any id."""
    ids_BTS, shares_BTS = torch.tensor([[[1, 0, 0], [2, 1, 2]]]), torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.25, 0.25]]])
    assert Targets(3, ids_BTS, shares_BTS).dense().tolist() == [[[0, 1, 0], [0, 0.25, 0.75]]]
    first = torch.tensor([[[0, 0], [0, 0]]]), torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    assert Targets(2, *first).dense().tolist() == [[[1, 0], [0, 0]]]


@given(dense_BTV=shares(), size=st.integers(1, 3))
def test_rows_and_parts_of_targets_are_theirs(dense_BTV, size):
    count = len(dense_BTV)
    for targets in (Targets(6, dense_BTV=dense_BTV), Targets.from_dense(dense_BTV)):
        for index in (slice(1, 3), torch.arange(count).flip(0), torch.zeros(2, dtype=torch.int64)):
            assert torch.equal(targets.rows(index).dense(), dense_BTV[index])
        parts = targets.parts(size)
        assert [len(part.dense()) for part in parts[:-1]] == [size] * (len(parts) - 1)
        assert torch.equal(torch.cat([part.dense() for part in parts]), dense_BTV)


@given(dense_BTV=shares())
def test_mixtures_of_sparse_targets_are_embedded_alike(dense_BTV, tiny):
    """Values and gradients of the table, to 1e-12."""
    table = tiny(vocabulary=6).table
    state = State(torch.empty(0), torch.empty(0), table)
    steps = dense_BTV.shape[1] - 1
    found = []
    for targets in (Targets(6, dense_BTV=dense_BTV), Targets.from_dense(dense_BTV)):
        inputs_BTD = MIXTURE.embed(state, targets.given(steps))
        slopes = torch.autograd.grad(inputs_BTD.sin().sum(), table.weight, allow_unused=True, materialize_grads=True)
        found.append((inputs_BTD, slopes[0]))
    for dense, sparse in zip(*found, strict=True):
        assert dense.shape == sparse.shape
        torch.testing.assert_close(sparse, dense, rtol=1e-12, atol=1e-12)


@TASKS
@pytest.mark.parametrize("budget", [None, 2])
def test_examples_too_large_to_be_dense_are_the_same(task, budget, monkeypatch):
    """Made in chunks of five, whose rows may all have the same number of steps and need no masks."""
    dense = examples_of(task, 23, budget=budget)
    assert dense.frontier.dense_BTV is not None
    monkeypatch.setattr(speakers, "DENSE_BYTES", 0)
    monkeypatch.setattr(speakers, "CHUNK", 5)
    sparse = examples_of(task, 23, budget=budget)
    assert sparse.frontier.dense_BTV is None
    sparse = replace(sparse, speaker=dense.speaker)
    assert_equal(sparse, dense)
    assert_equal(sparse.rows(torch.tensor([7, 22, 0])), dense.rows(torch.tensor([7, 22, 0])))


def test_joined_chunks_agree_on_masks_steps_and_states():
    """One chunk of even rows, one of ragged ones; targets of one and of several states."""
    whole = replace(examples_of(MultiHop(hops=3, nodes=6, branching=2), 12), speaker=None)
    assert whole.frontier.sparse()[0].shape[2] > 1
    longest = whole.rows(whole.num_steps.nonzero()[:3, 0])
    even = replace(longest, num_steps=2, prompt_mask_BN=None)
    padded = replace(whole.rows(slice(0, 4)), prompt_mask_BN=whole.rows(slice(0, 4)).prompt_BN >= 0)
    one = replace(even, frontier=Targets.from_dense(F.one_hot(even.chain_BT, whole.frontier.vocabulary).float()))
    both = joined([one, padded])
    assert both.num_steps.tolist() == [2, 2, 2, *padded.num_steps.tolist()]
    assert both.prompt_mask_BN.all()
    assert torch.equal(both.frontier.dense(), torch.cat([one.frontier.dense(), padded.frontier.dense()]))
    assert joined([even, even]).num_steps == 2
    assert joined([even, even]).prompt_mask_BN is None
    assert joined([even]) is even


# ---------------------------------------------------------------------------------------------------------------------
# Rows and parts


def everything(count=9):
    """Examples with every field filled, and different for every row."""
    number_B = torch.arange(count)
    speaker = Symbols(RAGGED, RAGGED.problems(count, seed=4))
    examples = speaker.examples()
    return replace(
        examples,
        prompt_mask_BN=examples.prompt_BN % 2 == 0,
        num_steps=number_B % 3,
        answer_mask_BA=(number_B % 2 == 0)[:, None],
        step_BT=number_B[:, None] + torch.zeros_like(examples.chain_BT),
        stop_ids=(3,),
        offset_B=number_B * 2,
    )


def picked(examples, index):
    """Some rows by hand: every tensor indexed."""
    fields = {name: x[index] if isinstance(x, torch.Tensor) else x for name, x in vars(examples).items()}
    fields.pop("steps_BT", None)
    fields["frontier"] = Targets(examples.frontier.vocabulary, dense_BTV=examples.frontier.dense()[index])
    fields["row_B"] = (torch.arange(len(examples)) if examples.row_B is None else examples.row_B)[index]
    return Examples(**fields)


@pytest.mark.parametrize("index", [slice(2, 5), slice(7, 100), torch.tensor([4, 0, 8]), torch.tensor([3, 3])], ids=str)
def test_rows_are_cut_from_every_field(index):
    examples = everything()
    some = examples.rows(index)
    assert_equal(some, picked(examples, index))
    assert torch.equal(some.row_B, picked(examples, index).row_B)
    assert np.array_equal(some.problems(), examples.speaker.problems[index])
    assert torch.equal(some.steps_BT, examples.steps_BT[index])


def test_rows_of_rows_know_where_they_come_from():
    examples = everything()
    some = examples.rows(torch.tensor([8, 1, 6, 3])).rows(slice(1, 4)).rows(torch.tensor([2, 0]))
    assert some.row_B.tolist() == [3, 1]
    assert np.array_equal(some.problems(), examples.speaker.problems[[3, 1]])


@pytest.mark.parametrize("size", [1, 2, 4, 9, 50, None])
@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_parts_follow_each_other(size, form):
    examples = everything()
    if form == "sparse":
        examples = replace(examples, frontier=Targets.from_dense(examples.frontier.dense()))
    for whole in (examples, examples.rows(torch.arange(9).flip(0))):
        parts, each = whole.parts(size), size or 9
        assert [len(part) for part in parts] == [min(each, 9 - start) for start in range(0, 9, each)]
        for number, part in enumerate(parts):
            assert_equal(part, picked(whole, slice(number * each, (number + 1) * each)))


def test_repeated_rows_stand_side_by_side():
    examples = everything(3)
    assert_equal(examples.repeated(2), picked(examples, torch.tensor([0, 0, 1, 1, 2, 2])))


def test_offsets_change_nothing_else():
    examples = everything()
    offset_B = torch.arange(9).flip(0)
    assert_equal(examples.with_offsets(offset_B), replace(examples, offset_B=offset_B))


class Listed:
    """A speaker whose problems are a list."""

    problems = ("a", "b", "c", "d")
    vocabulary = 4

    def part(self, index):
        raise AssertionError("nobody asks")

    def examples(self, device="cpu", **supervision):
        ids_BT = torch.arange(4)[:, None]
        return Examples(ids_BT, None, 0, ids_BT, Targets.from_dense(F.one_hot(ids_BT, 4).float()), 1, self)

    def judge(self, examples, answer_BA):
        """Right where an answer is one more than the prompt."""
        return (answer_BA == examples.prompt_BN + 1).all(1)


def test_problems_are_the_speakers_own():
    examples = Listed().examples()
    assert isinstance(Listed(), Speaker)
    assert examples.rows(torch.tensor([3, 1])).problems() == ["d", "b"]
    assert list(examples.problems()) == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match=r"these examples have no speaker: make them by Symbols\(task\)"):
        replace(examples, speaker=None).problems()


def test_the_speaker_judges():
    examples = Listed().examples()
    assert examples.judge(torch.tensor([[1], [1], [3], [4]])).tolist() == [True, False, True, True]
    some = examples.rows(torch.tensor([3, 0]))
    assert some.judge(torch.tensor([[4], [0]])).tolist() == [True, False]
    assert replace(examples, speaker=None).judge(torch.arange(4)[:, None]).all()


# ---------------------------------------------------------------------------------------------------------------------
# Answers


def answering(answer_BA, **fields):
    """Bare examples with these answers and nothing before them."""
    answer_BA = torch.tensor(answer_BA)
    frontier = Targets.from_dense(F.one_hot(answer_BA, 9).float())
    return Examples(answer_BA, None, 0, answer_BA, frontier, answer_BA.shape[1], **fields)


def test_an_answer_is_right_where_all_its_tokens_are():
    examples = answering([[1, 2], [3, 4], [5, 6]])
    assert same_tokens(examples, torch.tensor([[1, 2], [3, 0], [-1, 6]])).tolist() == [True, False, False]


def test_several_answers_to_an_example_stand_side_by_side():
    examples = answering([[1, 2], [3, 4]])
    said_BA = torch.tensor([[1, 2], [3, 4], [1, 2], [1, 2], [3, 4], [3, 4]])
    assert same_tokens(examples, said_BA).tolist() == [True, False, True, False, True, True]


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ([[1, 2, -1], [3, -1, -1]], [True, True]),
        ([[1, 2], [3, -1]], [True, True]),
        ([[1, 2, -1, -1], [3, -1, -1, -1]], [True, True]),
        ([[1, 2, 5], [3, -1, 4]], [False, False]),
        ([[1], [3]], [False, True]),
        ([[1, 2, -1, 7], [3, 8, -1, -1]], [False, False]),
    ],
)
def test_stop_tokens_are_no_part_of_an_answer(said, right):
    """The truth is 1 2 <8> and 3 <8>; the second row's last token is beyond its end."""
    mask_BA = torch.tensor([[True, True, True], [True, True, False]])
    examples = answering([[1, 2, 8], [3, 8, 0]], answer_mask_BA=mask_BA, stop_ids=(7, 8))
    assert same_tokens(examples, torch.tensor(said)).tolist() == right


def test_shorter_answers_end_where_the_mask_says():
    examples = answering([[1, 2], [3, 4]], answer_mask_BA=torch.tensor([[True, True], [True, False]]))
    assert same_tokens(examples, torch.tensor([[1, 2], [3, -1]])).tolist() == [True, True]
    assert same_tokens(examples, torch.tensor([[1, -1], [3, 4]])).tolist() == [False, False]
    assert same_tokens(examples, torch.tensor([[1], [3]])).tolist() == [False, True]


@pytest.mark.parametrize("task", Registry("tinylatent.tasks", "task", named=True).loaded().values())
def test_symbols_judge_as_the_task_scores(task):
    """Right answers, wrong ones, and several to a problem."""
    task = task()
    rows = task.problems(6, seed=3)
    examples = Symbols(task, rows).examples()
    answer_BA = examples.answer_BA.repeat_interleave(2, 0)
    answer_BA[1::2] = examples.answer_BA.roll(1, 0)
    answer_BA[0, -1] = -1
    right_B = torch.as_tensor(task.score(rows.repeat(2, axis=0), answer_BA.numpy())).bool()
    assert examples.judge(answer_BA).tolist() == right_B.tolist()
    assert right_B.sum() >= 5


# ---------------------------------------------------------------------------------------------------------------------
# Steps


def test_every_token_is_a_step_of_its_own_by_default():
    examples = examples_of(MNNS(4, 1, 4), 3)
    assert examples.steps_BT.tolist() == [[0, 1, 2, 3]] * 3


def test_a_step_of_arithmetic_has_six_tokens():
    """Of a chain of two steps; the answer is a step too, of one token."""
    task = Arithmetic(2, 5)
    examples = examples_of(task, 4)
    before = examples.max_steps
    steps = math.ceil(before / 6)
    assert before == 6 * steps
    assert examples.steps_BT.tolist() == [[token // 6 for token in range(before)] + [steps]] * 4
    assert examples.rows(slice(1, 3)).steps_BT.shape == (2, before + 1)
    assert [part.steps_BT.shape[0] for part in examples.parts(3)] == [3, 1]
