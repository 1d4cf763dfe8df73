"""What is given is run in one forward, and that is the rollout; replays read a trace under the weights of now."""

from dataclasses import replace

import pytest
import torch
from cases import CLOSE, Case, assert_equal_runs, assert_naive, cases, given_action, streams
from fakes import Gated, random
from hypothesis import given, settings
from hypothesis import strategies as st
from thoughts import PARALLEL, THOUGHTS, D, V, dirichlet_density

from tinylatent.engine.controls import Noise, Shuffled, Zero
from tinylatent.engine.force import force, replay
from tinylatent.engine.plan import ANSWER, Repeat, Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY, MIXTURE, Dirichlet, Hidden, Mixture, Pause, Token

RECALL = THOUGHTS["recall"]
PROMPT = torch.tensor([[1, 2], [3, 4]])
IDS = torch.tensor([[1, 2], [3, 4]])
PLAN = (Segment(GREEDY, 1),)


# ---------------------------------------------------------------------------------------------------------------------
# Force


@settings(max_examples=20)
@given(make=cases(PARALLEL, forced="always", most_group=1))
def test_force_is_the_stepwise_rollout_of_the_same_plan(model, make):
    """Values of all steps, waiting ones too, and gradients with respect to weights and given actions."""
    case = make()
    forced = force(model, case.plan, case.prompt_BN, case.mask_BN, offset_B=case.offset_B)
    assert forced.end is None
    assert forced.forwards == 1
    assert_equal_runs(model, forced, case.run(model, grad=True), case.plan)


def test_force_falls_back_to_steps_for_thoughts_that_look_around(model):
    ids = torch.tensor([[1, 2, 3], [4, 6, 0]])
    plan = (Segment(RECALL, torch.tensor([3, 2]), THOUGHTS["recall"].given(ids)), Segment(Token(), 1))
    plan = (plan[0], replace(plan[1], given=Token().given(ids[:, :1])))
    case = Case([[1, 2], [5]], None, 1, plan, 0)
    assert_naive(model, case, force(model, plan, case.prompt_BN, case.mask_BN))


def test_force_makes_one_forward(model):
    calls = []
    edit = lambda n, site, x, slots: calls.append(x.shape[1]) or x  # noqa: E731
    plan = (
        Segment(Mixture(), 3, given_action(MIXTURE, 2, 3, 0)),
        Segment(Token(), 2, given_action(GREEDY, 2, 2, 0)),
    )
    force(model, plan, torch.tensor([[1, 2], [3, 4]]), edit=edit)
    assert calls == [2 + 5 - 1] * 8


def test_a_thought_that_only_says_parallel_is_found_out(model):
    """It reads its state to make an input, which one forward for all cannot give it."""

    class Wrong(Gated):
        def __init__(self):
            super().__init__(1.0)
            self.parallel = True

    trace = rollout(model, (Segment(Wrong(), 2), Segment(GREEDY, 1)), PROMPT, streams=streams(2))
    with pytest.raises(ValueError, match="with parallel True reads read of its state"):
        replay(model, trace)


@pytest.mark.parametrize("plan", [(), (Segment(Token(), 0, Token().given(IDS)),)])
def test_force_without_steps_is_rejected(model, plan):
    with pytest.raises(ValueError, match="the plan has no steps: expected at least one"):
        force(model, plan, PROMPT)


@pytest.mark.parametrize("plan", [PLAN, (Repeat((Segment(Token(), 2, Token().given(IDS)),), bool, 1),)])
def test_force_needs_every_action(model, plan):
    with pytest.raises(ValueError, match="force needs every action given; use rollout"):
        force(model, plan, PROMPT)


# ---------------------------------------------------------------------------------------------------------------------
# Replay


@settings(max_examples=20)
@given(make=st.one_of(cases(), cases(PARALLEL)))
def test_replay_is_the_rollout(model, make):
    """Sampled tokens with stop ids, repeats, groups, waiting rows; step by step, and in one forward."""
    run = make().run(model)
    again = replay(model, run)
    assert again.logits_BTV.requires_grad
    assert_equal_runs(model, again, run)
    assert (again.log_prob_BT - run.log_prob_BT).abs().max() < 1e-9
    assert_equal_runs(model, replay(model, again), again)


@pytest.mark.parametrize("control", [Noise, Shuffled, Zero])
@pytest.mark.parametrize("group", [1, 3])
def test_replay_feeds_what_a_control_fed(model, control, group):
    plan = (Segment(control(Hidden()), torch.tensor([2, 1, 3])), Segment(control(Mixture()), 2), Segment(Token(1.0), 2))
    case = Case([[1, 2], [5], [3, 3, 3]], torch.tensor([0, 3, 1]), group, plan, 0)
    run = case.run(model)
    assert_equal_runs(model, replay(model, run), run)


def test_replay_keeps_steps_that_nobody_took(model):
    """A row that wants one step beside a row that stops at once: the third step is empty, and must stay there."""
    stopper = Token(stop_ids=tuple(range(V)))
    case = Case([[1, 2], [5, 3]], None, 1, (Segment(stopper, torch.tensor([0, 3])), Segment(Token(), 1)), 0)
    given_stops = Segment(stopper, 3, stopper.given(torch.ones(2, 3, dtype=torch.long)))
    for part in (*case.plan[:1], given_stops):
        run = replace(case, plan=(part, case.plan[1])).run(model)
        assert_equal_runs(model, replay(model, run), run)


def test_replay_is_under_the_weights_of_today(tiny):
    """The actions stay, the logits change: the ratio is that of the two policies."""
    old, new = tiny(0), tiny(1)
    case = Case([[1, 2], [5]], None, 1, (Segment(Token(1.5, (4,)), 4), Segment(Mixture(), 2), Segment(Token(), 1)), 0)
    run = case.run(old)
    again = replay(new, run)
    assert torch.equal(again.action("id"), run.action("id"))
    given_case = replace(case, plan=run.plan())
    assert_naive(new, given_case, again)
    assert not torch.allclose(again.log_prob_BT, run.log_prob_BT)


@pytest.mark.parametrize("gamma", [2.0, 1e5])
def test_ratios_of_replayed_densities_are_right_in_float32(tiny, gamma):
    """Old and new policy of a small step of training: to 1e-6, where float32 would be off by 0.01 and more."""
    model = tiny(vocabulary=89).float()
    run = rollout(model, (Segment(Dirichlet(gamma), 2), Segment(GREEDY, 1)), PROMPT, streams=streams(40), group=20)
    before = replay(model, run)
    old_BT, exact_BT = (
        before.log_prob_BT.detach(),
        -dirichlet_density(before.logits_BTV[:, :2], run.action("log_a"), gamma),
    )
    assert torch.equal(replay(model, run).log_prob_BT, old_BT)
    torch.testing.assert_close(run.log_prob_BT, old_BT, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(random(*parameter.shape), alpha=1e-5)
    after = replay(model, run)
    exact_BT += dirichlet_density(after.logits_BTV[:, :2], run.action("log_a"), gamma)
    assert exact_BT.abs().max() > 1e-5
    torch.testing.assert_close((after.log_prob_BT - old_BT)[:, :2], exact_BT, rtol=0, atol=1e-6)


def test_replay_under_another_thought_reads_tokens_only(model):
    """What carries a latent part is read by the other thought; tokens and pauses stay what they are."""
    plan = (Segment(Gated(1.0), 3), Segment(Pause(D).double(), 1), Segment(Token(1.0), 2, name=ANSWER))
    trace = rollout(model, plan, PROMPT, streams=streams(2))
    bare = replay(model, trace, thought=Token(1.0))
    ids = trace.spans[1].action["id"]
    given = (
        Segment(GREEDY, 3, GREEDY.given(ids)),
        Segment(plan[1].thought, 1, trace.spans[2].action),
        Segment(GREEDY, 2, GREEDY.given(trace.action("id"))),
    )
    torch.testing.assert_close(bare.logits_BTV, force(model, given, PROMPT).logits_BTV, **CLOSE)
    assert bare.at_once
    assert not replay(model, trace).at_once
    assert not torch.allclose(bare.logits_BTV[:, 1:], trace.logits_BTV[:, 1:])
    with pytest.raises(KeyError, match="id"):
        replay(model, rollout(model, (Segment(MIXTURE, 2), Segment(GREEDY, 1)), PROMPT), thought=GREEDY)
