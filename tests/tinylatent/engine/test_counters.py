"""Counters say what the model did, and leave out rows that wait."""

import pytest
import torch
from cases import streams
from thoughts import D, V

import tinylatent.engine.rollout
from tinylatent.engine.force import replay
from tinylatent.engine.plan import ANSWER, Segment
from tinylatent.engine.rollout import resume, rollout
from tinylatent.engine.thoughts import GREEDY, MIXTURE, MultiToken, Token

PROMPT = torch.tensor([[1, 2, 5], [3, 4, 0]])
PLAN = (Segment(MIXTURE, 2), Segment(MultiToken(2), 2), Segment(Token(1.0), 2, name=ANSWER))


class Counting:
    """A model that counts what it is asked to do, slot by slot and readout by readout."""

    def __init__(self, model):
        self.model, self.forwards, self.flop, self.reads = model, 0, 0, 0

    table = property(lambda self: self.model.table)

    def flops(self, new, past=0, read=None):
        return self.model.flops(new, past, read)

    def forward(self, embeddings_BTD, cache=None, **options):
        self.forwards += 1
        past = 0 if cache is None else cache.size
        read = embeddings_BTD.shape[1] - options.get("read_from", 0)
        self.flop += len(embeddings_BTD) * self.model.flops(embeddings_BTD.shape[1], past, read)
        return self.model.forward(embeddings_BTD, cache, **options)

    def readout(self, hidden):
        self.reads += hidden.numel() // D
        return self.model.readout(hidden)


@pytest.mark.parametrize("worth", [1, 100])
def test_counters_are_what_the_model_did(model, monkeypatch, worth):
    """Nobody waits and nothing is padded here, so the model's own count is the record's."""
    monkeypatch.setattr(tinylatent.engine.rollout, "MIN_UNREAD", worth)
    counting = Counting(model)
    trace = rollout(counting, PLAN, PROMPT, streams=streams(6), group=3)
    spent = trace.counters
    assert (spent.forwards, counting.forwards) == (6, 6)
    assert spent.slots == 2 * 3 + 6 * 5
    assert (spent.steps, spent.tokens, spent.latents) == (36, 12, 24)
    mixtures = 12
    assert spent.flops == counting.flop + 2 * V * D * (counting.reads + mixtures)
    more = resume(trace, (Segment(GREEDY, 1),))
    assert (more.forwards, counting.forwards) == (7, 7)
    assert more.counters.flops == counting.flop + 2 * V * D * (counting.reads + mixtures)
    again = Counting(model)
    forced = replay(again, trace)
    assert forced.counters.flops == again.flop + 2 * V * D * (again.reads + mixtures)
    assert forced.counters.forwards == 1
    assert (spent + spent).slots == 2 * spent.slots


def test_counters_leave_out_waiting_and_padding(model):
    """A padded, early row costs what it costs alone."""
    mask_BN = torch.tensor([[False, True, True], [True, True, True]])
    plan = lambda steps: (Segment(MIXTURE, torch.tensor(steps)), Segment(GREEDY, 1))  # noqa: E731
    both = rollout(model, plan([1, 3]), PROMPT, mask_BN).counters
    alone = [rollout(model, plan([1]), PROMPT[:1, 1:]), rollout(model, plan([3]), PROMPT[1:])]
    for name in ("slots", "steps", "tokens", "latents", "flops"):
        assert getattr(both, name) == sum(getattr(trace.counters, name) for trace in alone), name
