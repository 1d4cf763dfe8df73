"""A rollout that is resumed is one rollout, wherever it is cut."""

from dataclasses import replace

import pytest
import torch
from cases import CLOSE, assert_equal_runs, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from thoughts import PAUSE, THOUGHTS

import tinylatent.engine.rollout
from tinylatent.engine.force import force, replay
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import Runner, resume, rollout
from tinylatent.engine.thoughts import GREEDY, Mixture, Token

RECALL = THOUGHTS["recall"]
PROMPT = torch.tensor([[1, 2], [3, 4]])
IDS = torch.tensor([[1, 2], [3, 4]])
PLAN = (Segment(GREEDY, 1),)


@settings(max_examples=15)
@given(make=cases(), cut=st.integers(1, 3))
def test_a_resumed_rollout_is_one_rollout(model, make, cut):
    """Cut anywhere between parts; twice from the same trace, which stays as it was; replayed as a whole."""
    case = make()
    cut = min(cut, len(case.plan) - 1)
    later = tuple(part.forked(case.group) for part in case.plan[cut:])
    first = replace(case, plan=(*case.plan[:cut], Segment(PAUSE, 1)))
    whole = replace(case, plan=(*first.plan, *case.plan[cut:])).run(model, grad=True, whole=True)
    begin = first.run(model, grad=True, whole=True)
    before = begin.hidden_BTD.clone()
    resume(begin, (Segment(Token(), 3),))
    rest = resume(begin, later, streams=case.streams(), grad=True)
    assert torch.equal(begin.hidden_BTD, before)
    assert_equal_runs(model, rest, whole, case.plan)
    assert rest.counters == whole.counters
    for name in ("inputs_BSD", "hidden_BSD", "mask_BS"):
        torch.testing.assert_close(getattr(rest.history(), name), getattr(whole.history(), name), **CLOSE)
    assert_equal_runs(model, replay(model, rest), replay(model, whole))


def test_resuming_may_take_another_model(tiny):
    """The cache is the earlier model's; what is new is read by the model that is passed."""
    old, new = tiny(0), tiny(1)
    begin = rollout(old, (Segment(Token(), 1),), torch.tensor([[1, 2]]))
    plan = (Segment(Mixture(), 1), Segment(Token(), 1))
    kept, changed = resume(begin, plan), resume(begin, plan, backbone=new)
    assert torch.equal(kept.logits_BTV[:, :1], changed.logits_BTV[:, :1])
    assert not torch.allclose(kept.logits_BTV[:, 1:], changed.logits_BTV[:, 1:])
    assert changed.backbone is new


def test_what_cannot_be_resumed_is_rejected(model, monkeypatch):
    forced = force(model, (Segment(Token(), 2, Token().given(IDS)),), PROMPT)
    begin = rollout(model, PLAN, PROMPT)
    for trace in (forced, begin.part(slice(0, 1))):
        with pytest.raises(ValueError, match="cannot be resumed: only what rollout or resume returned"):
            resume(trace, PLAN)
    with pytest.raises(ValueError, match="the plan has no steps"):
        resume(begin, ())
    monkeypatch.setattr(tinylatent.engine.rollout, "MIN_UNREAD", 1)
    with pytest.raises(ValueError, match="holds no hidden states of its prompt, which the plan reads: pass whole=True"):
        resume(rollout(model, PLAN, PROMPT), (Segment(RECALL, 1),))


def test_some_rows_go_on_from_their_prompts_as_if_they_were_alone(model):
    """Named twice, in another order, with padding and offsets; after a step it is too late."""
    prompt, mask = torch.tensor([[1, 2, 3], [0, 4, 5], [6, 2, 5]]), torch.ones(3, 3, dtype=torch.bool)
    mask[1, 0] = False
    offset, plan, index = torch.tensor([0, 2, 1]), (Segment(GREEDY, 3),), torch.tensor([2, 1, 1])
    with torch.no_grad():
        read = Runner(model, prompt, mask, offset, 1, None, 0)
        some = read.rows(index).follow(plan, None)
        whole = read.copy(model, None).follow(plan, None)
    alone = rollout(model, plan, prompt[index], mask[index], offset_B=offset[index])
    torch.testing.assert_close(some.hidden_BTD, alone.hidden_BTD, **CLOSE)
    torch.testing.assert_close(whole.hidden_BTD[index], alone.hidden_BTD, **CLOSE)
    assert some.counters == alone.counters
    assert some.prompt_counters.slots == 3 + 2 + 2
    assert some.prompt_counters.flops == model.flops(3) + 2 * model.flops(2)
    with pytest.raises(ValueError, match=r"3 steps were taken: expected a rollout that has read its prompt alone"):
        whole.end.rows(index)
