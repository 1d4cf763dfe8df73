"""A history is all that was read up to a step, whole or refused; hidden states that nobody reads are left out."""

import pytest
import torch
import torch.nn.functional as F
from cases import CLOSE, streams
from naive import gradients
from thoughts import D

import tinylatent.engine.force
import tinylatent.engine.rollout
from tinylatent.engine.force import replay
from tinylatent.engine.plan import ANSWER, Repeat, Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY, MIXTURE, Mixture, MultiToken, Pause, Token

PROMPT = torch.tensor([[1, 2, 5], [3, 4, 0]])
PLAN = (Segment(MIXTURE, 2), Segment(MultiToken(2), 2), Segment(Token(1.0), 2, name=ANSWER))


def test_history_names_what_wrote_each_slot(model):
    seen = []

    class Spy(Pause):
        reads_history = True

        def embed(self, state, action):
            history = state.history()
            spans = tuple((span.name, span.start, span.stop) for span in history.spans)
            seen.append((spans, history.mask_BS.tolist(), tuple(history.inputs_BSD.shape)))
            return super().embed(state, action)

    plan = (Segment(Mixture(), torch.tensor([2, 1])), Segment(Token(), 1), Segment(Spy(D).double(), 2))
    rollout(model, plan, torch.tensor([[1, 2], [3, 4]]))
    spans = (("prompt", 0, 2), ("Mixture", 2, 4), ("Token", 4, 5))
    assert seen[0] == (spans, [[True] * 5, [True, True, True, False, True]], (2, 5, D))
    assert seen[1][0] == (*spans, ("Spy", 5, 6))  # the segment that runs, so far


class Averaging(Token):
    """Draws a token from logits moved by the mean of all it has read, and looks at what it did so far."""

    parallel, reads_history = True, True

    def __init__(self, temperature):
        super().__init__(temperature)
        self.seen = []

    def _logits(self, state):
        history = state.history()
        self.seen.append([span.action["id"].tolist() for span in history.spans if span.name == "Averaging"])
        mask_BS1 = history.mask_BS[..., None]
        mean_BD = (history.hidden_BSD * mask_BS1).sum(1) / mask_BS1.sum(1)
        return state.logits + 3 * F.linear(mean_BD, state.table.weight)


def test_a_history_ends_where_the_step_stands(model):
    """What was drawn and its scores, in the trace and in a replay, are of the same history: no step sees later ones."""
    thought = Averaging(1.0)
    plan = (Segment(thought, torch.tensor([3, 2])), Segment(Token(1.0), 1))
    trace = rollout(model, plan, PROMPT, streams=streams(2), grad=True)
    first, second = thought.seen[0], thought.seen[2]
    assert first == []
    assert torch.tensor(second[0]).shape == (2, 1)  # the step before, of both rows
    torch.testing.assert_close(trace.sampled_log_prob_BT, trace.log_prob_BT.detach(), check_dtype=False, **CLOSE)
    again = replay(model, trace)
    torch.testing.assert_close(again.log_prob_BT, trace.log_prob_BT, **CLOSE)
    grads = [gradients(each.log_prob_BT.sum(), model.parameters()) for each in (again, trace)]
    torch.testing.assert_close(*grads, **CLOSE)


def test_a_history_is_whole_or_refused(model, monkeypatch):
    """A thought, or the end of a repeat, that reads it without saying so does not get half of it."""
    monkeypatch.setattr(tinylatent.engine.rollout, "MIN_UNREAD", 1)
    silent = Averaging(1.0)
    silent.reads_history = False
    with pytest.raises(ValueError, match="says so by reads_history, or pass whole=True"):
        rollout(model, (Segment(silent, 2),), PROMPT, streams=streams(2))
    until = lambda state: state.history().prompt[0][:, 0, 0] > 9  # noqa: E731
    ends = Repeat((Segment(GREEDY, 1),), until, 2)
    with pytest.raises(ValueError, match="says so by reads_history"):
        rollout(model, (ends,), PROMPT)
    assert rollout(model, (Repeat(ends.segments, until, 2, reads_history=True),), PROMPT).steps == 2


@pytest.mark.parametrize("padded", [False, True])
def test_leaving_out_what_nobody_reads_changes_nothing(model, monkeypatch, padded):
    mask_BN = torch.tensor([[False, True, True], [True, True, True]]) if padded else None

    def runs():
        sampled = rollout(model, PLAN, PROMPT, mask_BN, streams=streams(6), group=3, grad=True)
        return sampled, replay(model, sampled)

    whole = runs()
    monkeypatch.setattr(tinylatent.engine.rollout, "MIN_UNREAD", 1)
    monkeypatch.setattr(tinylatent.engine.force, "unread", tinylatent.engine.rollout.unread)
    for got, expected in zip(runs(), whole, strict=True):
        assert (got.prompt_read, expected.prompt_read) == (1, None)
        torch.testing.assert_close(got.logits_BTV, expected.logits_BTV, **CLOSE)
        grads = [gradients(each.logits_BTV.square().sum(), model.parameters()) for each in (got, expected)]
        torch.testing.assert_close(*grads, **CLOSE)
        assert got.counters.flops < expected.counters.flops
        with pytest.raises(ValueError, match="holds no hidden states of its prompt: pass whole=True"):
            got.history()
        assert expected.history().prompt[0].shape == (6, 3, D)
    kept = rollout(model, PLAN, PROMPT, mask_BN, streams=streams(2), whole=True)
    assert kept.history().hidden_BSD.shape == (2, 3 + 6 - 1, D)
