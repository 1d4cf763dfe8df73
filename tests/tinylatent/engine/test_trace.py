"""The trace: one record, read in several ways. Wide runs, moved weights, answers, parts."""

import copy

import pytest
import torch
from cases import CLOSE, streams
from fakes import Always
from naive import gradients
from thoughts import D, V

import tinylatent.engine.trace
from tinylatent.engine.force import force, replay
from tinylatent.engine.plan import ANSWER, Segment
from tinylatent.engine.rollout import resume, rollout
from tinylatent.engine.thoughts import (
    GREEDY,
    HIDDEN,
    MIXTURE,
    Mixture,
    MultiToken,
    Pause,
    Stopping,
    Token,
)
from tinylatent.engine.trace import NO_TOKEN
from tinylatent.models.backbone import weights_moved

PROMPT = torch.tensor([[1, 2, 5], [3, 4, 0]])
PLAN = (Segment(MIXTURE, 2), Segment(MultiToken(2), 2), Segment(Token(1.0), 2, name=ANSWER))


# ---------------------------------------------------------------------------------------------------------------------
# Logits: kept, or computed again in chunks


@pytest.fixture
def wide(monkeypatch):
    """Everything counts as wide: no logits are kept, and chunks hold a single row."""
    monkeypatch.setattr(tinylatent.engine.trace, "KEPT_BYTES", 0)


def test_wide_runs_say_the_same(model, request):
    """Log-probabilities, logits and gradients of a run whose logits are not kept, sampled and replayed."""
    runs = [rollout(model, PLAN, PROMPT, streams=streams(4), group=2, grad=True)]
    runs.append(replay(model, runs[0]))
    request.getfixturevalue("wide")
    runs.append(rollout(model, PLAN, PROMPT, streams=streams(4), group=2, grad=True))
    runs.append(replay(model, runs[0]))
    assert [run.kept_logits is None for run in runs] == [False, False, True, True]
    calls = []
    runs[2].over_logits(lambda logits, rows: calls.append((tuple(logits.shape), rows)) or logits)
    assert calls == [((2, 6, V), slice(i, i + 2)) for i in (0, 2)]  # whole groups
    for run in runs[1:]:
        torch.testing.assert_close(run.log_prob_BT, runs[0].log_prob_BT, **CLOSE)
        grads = [gradients(each.log_prob_BT.sum(), model.parameters()) for each in (run, runs[0])]
        torch.testing.assert_close(*grads, **CLOSE)
        torch.testing.assert_close(run.logits_BTV, runs[0].logits_BTV, **CLOSE)


def test_chunks_are_not_held_for_the_backward(model, wide):
    """The graph of a wide run keeps hidden states alone: no tensor of the size of all logits."""
    saved = []

    def pack(x):
        saved.append(x.numel())
        return x

    trace = force(model, rollout(model, PLAN, PROMPT, streams=streams(2)).plan(), PROMPT)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        total = trace.sum_over_logits(lambda logits, rows: logits.logsumexp(-1).sum())
    assert saved
    assert max(saved) <= 6 * D  # hidden states of a row
    total.backward()


def test_a_step_without_logits_makes_no_readout(tiny, wide):
    """A wide vocabulary is read where a thought asks for it: hidden states and pauses do not."""
    model, reads = tiny(), []
    readout = model.readout
    model.readout = lambda hidden: reads.append(hidden.shape) or readout(hidden)
    pause = Pause(D).double()
    rollout(model, (Segment(HIDDEN, 3), Segment(pause, 2), Segment(GREEDY, 1)), PROMPT)
    assert reads == [(2, D)]


def test_places_and_logits_do_not_depend_on_chunks(model, monkeypatch):
    """Places within groups, and float32 for models of half precision."""
    places = []

    class Placed(MultiToken):
        def log_prob(self, state, action):
            places.append(state.index_in_group_B.tolist())
            return super().log_prob(state, action)

    monkeypatch.setattr(tinylatent.engine.trace, "KEPT_BYTES", 4 * 2 * V * 8)
    trace = rollout(model, (Segment(Placed(2), 1), Segment(GREEDY, 1)), PROMPT, streams=streams(6), group=3)
    places.clear()
    assert trace.log_prob_BT.shape == (6, 2)
    assert places == [[0, 1, 2], [0, 1, 2]]
    half = copy.deepcopy(model).bfloat16()
    assert rollout(half, PLAN, PROMPT, streams=streams(2)).log_prob_BT.dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------------------
# Weights that move


def in_place(model):
    with torch.no_grad():
        next(model.parameters()).add_(0.1)


def by_optimizer(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()


@pytest.mark.parametrize("move", [in_place, by_optimizer, weights_moved])
def test_moved_weights_are_noticed(tiny, move):
    model = tiny(3)
    trace = rollout(model, PLAN, PROMPT, streams=streams(2))
    stored, before = trace.sampled_log_prob_BT, trace.log_prob_BT.clone()
    again = rollout(model, PLAN, PROMPT, streams=streams(2))
    move(model)
    asked = [lambda: again.logits_BTV, lambda: again.log_prob_BT, lambda: again.over_logits(lambda x, rows: x)]
    for ask in (*asked, lambda: resume(again, (Segment(GREEDY, 1),))):
        with pytest.raises(ValueError, match="the weights have changed since this trace was made"):
            ask()
    assert torch.equal(again.sampled_log_prob_BT, stored)  # what was drawn stays known
    drawn = torch.tensor([False, False, True, True, True, True])
    torch.testing.assert_close(stored, before.masked_fill(~drawn, 0.0), check_dtype=False, **CLOSE)
    assert replay(model, again).log_prob_BT.shape == (2, 6)


def test_a_copy_of_a_model_moves_alone(tiny):
    model = tiny(4)
    trace = rollout(model, PLAN, PROMPT, streams=streams(2))
    in_place(copy.deepcopy(model))
    assert trace.logits_BTV.shape == (2, 6, V)


def test_weights_of_thoughts_are_watched_too(model):
    thought = Stopping(HIDDEN, Always(0))
    trace = rollout(model, (Segment(thought, 2), Segment(GREEDY, 1)), PROMPT, streams=streams(2))
    with torch.no_grad():
        thought.head.logit.add_(1)
    with pytest.raises(ValueError, match="the weights have changed"):
        trace.check_weights()


# ---------------------------------------------------------------------------------------------------------------------
# Answers, actions, parts


def test_an_answer_ends_at_its_stop_token(model):
    """Nothing at and after the stop token; an answer that is cut at the limit has none."""
    token = Token(stop_ids=(6,))
    ids = torch.tensor([[1, 6, 2], [3, 4, 5], [6, 0, 0]])
    plan = (Segment(MIXTURE, 1), Segment(token, 3, token.given(ids), ANSWER), Segment(GREEDY, 1))
    trace = rollout(model, plan, torch.tensor([[1], [2], [3]]))
    assert trace.answer().tolist() == [[1, NO_TOKEN, NO_TOKEN], [3, 4, 5], [NO_TOKEN] * 3]
    assert trace.length_B.tolist() == [1 + 2 + 1, 1 + 3 + 1, 1 + 1 + 1]
    again = replay(model, trace)
    assert torch.equal(again.answer(), trace.answer())
    with pytest.raises(ValueError, match="no span 'answer' of at least one step: there are prompt, Token"):
        rollout(model, (Segment(GREEDY, 1),), PROMPT).answer()
    with pytest.raises(ValueError, match="Mixture, which has no tokens"):
        rollout(model, (Segment(MIXTURE, 1, name=ANSWER),), PROMPT).answer()


@pytest.mark.parametrize("stop_slot", [True, False])
def test_a_chosen_answer_ends_at_its_stop_token_in_every_row_of_every_group(model, stop_slot):
    """Tokens before the first stop are those chosen; the stop and whatever the engine drew after it are NO_TOKEN."""
    plan = (Segment(MIXTURE, 1), Segment(Token(1.0, (2, 6), stop_slot), 6, name=ANSWER))
    trace = rollout(model, plan, PROMPT, streams=streams(2 * 20), group=20)
    chosen, answer = trace.action("id").tolist(), trace.answer().tolist()
    lengths = [next((t for t, id in enumerate(row) if id in (2, 6)), len(row)) for row in chosen]
    assert answer == [row[:n] + [NO_TOKEN] * (len(row) - n) for row, n in zip(chosen, lengths, strict=True)]
    assert len(set(lengths)) > 3  # some rows stop at once, others later, others never
    assert any(id not in (2, 6) for row, n in zip(chosen, lengths, strict=True) for id in row[n:])


def test_actions_are_found_by_name_from_the_end(model):
    plan = (Segment(Token(), 1), Segment(Mixture(), 1), Segment(Token(), 2))
    run = rollout(model, plan, torch.tensor([[1, 2]]))
    assert run.action("id").shape == (1, 2)
    assert run.action("alpha").shape == (1, 1, V)
    with pytest.raises(KeyError, match="hidden"):
        run.action("hidden")


def test_a_part_is_the_rows_it_says(model):
    trace = rollout(model, PLAN, PROMPT, streams=streams(6), group=3)
    for rows in (slice(0, 3), slice(3, 6)):
        part = trace.part(rows)
        assert torch.equal(part.logits_BTV, trace.logits_BTV[rows])
        assert torch.equal(part.answer(), trace.answer()[rows])
        assert torch.equal(part.sampled_log_prob_BT, trace.sampled_log_prob_BT[rows])
        torch.testing.assert_close(replay(model, part).log_prob_BT, trace.log_prob_BT[rows], **CLOSE)
    parts = trace.part(slice(0, 3)).counters + trace.part(slice(3, 6)).counters
    assert (parts.slots, parts.flops, parts.tokens) == (
        trace.counters.slots,
        trace.counters.flops,
        trace.counters.tokens,
    )


def test_groups_know_their_places(model):
    trace = rollout(model, PLAN, PROMPT, streams=streams(6), group=3)
    assert trace.group_B.tolist() == [0, 0, 0, 1, 1, 1]
    assert trace.index_in_group_B.tolist() == [0, 1, 2, 0, 1, 2]
