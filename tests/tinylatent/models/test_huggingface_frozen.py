"""A frozen backbone gives what its backbone gives, step by step; one rollout at a time."""

import pytest
import torch
from families import MASK, PROMPT, WINDOWS, same, small

from tinylatent.core.seeds import Streams
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import resume, rollout
from tinylatent.engine.thoughts import Hidden, Mixture, MultiToken, Token
from tinylatent.models.huggingface import HFBackbone
from tinylatent.models.huggingface_frozen import Frozen

PLAN = (
    Segment(Hidden(), torch.tensor([1, 0, 2])),
    Segment(Mixture(), 2),
    Segment(MultiToken(3), 2),
    Segment(Token(1.0, stop_ids=(3, 4, 5)), 4, name="answer"),
)


def thought(backbone, seed=0, **options):
    return rollout(backbone, PLAN, PROMPT, MASK, streams=Streams(seed, torch.arange(6)), group=2, **options)


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Gemma", "Granite"])
def test_it_gives_what_its_backbone_gives(family):
    """With padding, groups, rows that wait and stop, several rollouts one after another, and weights that move."""
    backbone = HFBackbone(small(family))
    frozen = Frozen(backbone, rows=6, slots=16, compiled=False)
    for seed in range(3):
        wanted, found = thought(backbone, seed), thought(frozen, seed)
        same(found.hidden_BTD, wanted.hidden_BTD)
        assert torch.equal(found.answer(), wanted.answer())
        same(found.sampled_log_prob_BT, wanted.sampled_log_prob_BT)
        assert found.counters == wanted.counters
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.mul_(1.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # inductor's own
def test_the_compiled_step_gives_the_same():
    """With one program for all steps: what is asked again is not compiled again."""
    backbone = HFBackbone(small("Llama").float())
    frozen = Frozen(backbone, rows=6, slots=16)
    torch._dynamo.reset()
    for seed in range(2):
        wanted, found = thought(backbone, seed), thought(frozen, seed)
        torch.testing.assert_close(found.hidden_BTD, wanted.hidden_BTD, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.sampled_log_prob_BT, wanted.sampled_log_prob_BT, rtol=1e-4, atol=1e-4)


def test_one_rollout_at_a_time():
    backbone = HFBackbone(small("Llama"))
    frozen = Frozen(backbone, rows=6, slots=16, compiled=False)
    first = thought(frozen)
    more = (Segment(Token(), 1, name="answer"),)
    second = resume(first, more)
    same(second.hidden_BTD, resume(thought(backbone), more).hidden_BTD)
    with pytest.raises(ValueError, match="keeps one rollout and goes on where that ended"):
        resume(first, more)
    third = thought(frozen)
    with pytest.raises(ValueError, match="keeps one rollout and goes on where that ended"):
        resume(second, more)
    with torch.no_grad():
        backbone.model.lm_head.weight.add_(0.1)
    with pytest.raises(ValueError, match="the weights have changed since this trace was made"):
        third.logits_BTV.sum()
    for copy in (lambda: first.end.cache.fork(2), lambda: first.end.cache.rows(torch.tensor([0]))):
        with pytest.raises(ValueError, match="branch on the backbone itself"):
            copy()


def test_what_it_does_not_do_is_said():
    backbone = HFBackbone(small("Llama"))
    for rows, slots in ((0, 4), (2, 0)):
        with pytest.raises(ValueError, match="expected at least one of each"):
            Frozen(backbone, rows, slots)
    small_one = Frozen(backbone, rows=6, slots=7, compiled=False)
    with pytest.raises(
        ValueError, match="6 rows and 1 new slots after 7: this frozen backbone takes one slot at a time"
    ):
        thought(small_one)
    with pytest.raises(ValueError, match="3 rows and 1 new slots after 5"):
        rollout(small_one, (Segment(Token(), 2),), PROMPT)
    with pytest.raises(ValueError, match="takes no edits"):
        rollout(small_one, (Segment(Token(), 2),), PROMPT, edit=lambda layer, site, x, slots: x)
    for family in WINDOWS - {"Gemma2"}:
        with pytest.raises(ValueError, match="a model with sliding windows: expected attention to all slots"):
            Frozen(HFBackbone(small(family)), 2, 4)
