"""Controls replace the latent part of an input and nothing else."""

import pytest
import torch
from cases import CLOSE, streams
from fakes import Gated, state
from scipy import stats

from tinylatent.core.seeds import Streams
from tinylatent.engine.controls import CONTROLS, Control, Noise, Shuffled, Zero, controlled
from tinylatent.engine.force import replay
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thought import Action, State
from tinylatent.engine.thoughts import GREEDY, Dirichlet, Hidden, Mixture, MultiToken, Pause, Token

V, D = 5, 4
FALSE_ALARM = 1e-6
LATENTS = [Mixture(), Hidden(), MultiToken(99), Dirichlet(2.0)]  # so many tokens that no two rows draw alike


@pytest.mark.parametrize("inner", LATENTS)
def test_noise_has_the_norm_of_what_it_replaces(inner):
    noise, at = Noise(inner), state(3)
    action = noise.sample(at, Streams(0, torch.arange(3)))
    fed_BD = noise.embed(at, action)
    latent_BD = inner.embed(at, inner.sample(at, Streams(0, torch.arange(3))))
    torch.testing.assert_close(fed_BD.norm(dim=-1), latent_BD.norm(dim=-1))
    cosine_B = torch.cosine_similarity(fed_BD, action["noise"], dim=-1)
    torch.testing.assert_close(cosine_B, torch.ones_like(cosine_B))
    assert (torch.cosine_similarity(fed_BD, latent_BD, dim=-1) < 0.999).all()


def test_noise_is_one_normal_vector_for_each_row():
    """Kolmogorov-Smirnov over 40 000 numbers, false alarm 1e-6; rows keyed by their streams, not by their place."""
    noise, at = Noise(Hidden()), state(10_000)
    drawn_BD = noise.sample(at, Streams(0, torch.arange(10_000)))["noise"]
    assert stats.kstest(drawn_BD.flatten().numpy(), "norm").pvalue > FALSE_ALARM
    rows = torch.tensor([70, 3])
    few = State(at.hidden[rows], at.logits[rows], at.table)
    assert torch.equal(noise.sample(few, Streams(0, rows))["noise"], drawn_BD[rows])


@pytest.mark.parametrize("inner", LATENTS)
def test_zero_feeds_zeros(inner):
    at = state(3)
    action = Zero(inner).sample(at, Streams(0, torch.arange(3)))
    assert torch.equal(Zero(inner).embed(at, action), torch.zeros(3, D).double())


@pytest.mark.parametrize("inner", LATENTS)
@pytest.mark.parametrize(("rows", "group"), [(4, 1), (6, 2), (6, 3)])
def test_shuffled_feeds_another_problem(inner, rows, group):
    """The same place in another group, and every problem's latents are used once."""
    at = state(rows, group=group)
    latent_BD, fed_BD = (
        thought.embed(at, thought.sample(at, Streams(0, torch.arange(rows)))) for thought in (inner, Shuffled(inner))
    )
    source_B = [next(i for i in range(rows) if torch.equal(latent_BD[i], fed_BD[b])) for b in range(rows)]
    assert sorted(source_B) == list(range(rows))
    assert all(i // group != b // group and i % group == b % group for b, i in enumerate(source_B))


@pytest.mark.parametrize(("rows", "group"), [(1, 1), (3, 3)])
def test_shuffled_needs_two_problems(rows, group):
    at, thought = state(rows, group=group), Shuffled(Hidden())
    with pytest.raises(ValueError, match="at least two problems in a batch; pass more problems"):
        thought.embed(at, thought.sample(at, None))


def test_shuffled_takes_from_the_prompts_it_is_told():
    at, source_B = state(4), torch.tensor([2, 1, 0, 0])
    thought = Shuffled(Hidden(), source_B)
    assert torch.equal(thought.embed(at, thought.sample(at, None)), at.hidden[source_B])
    pairs, thought = state(4, group=2), Shuffled(Hidden(), torch.tensor([1, 0]))
    assert torch.equal(thought.embed(pairs, thought.sample(pairs, None)), pairs.hidden[[2, 3, 0, 1]])


@pytest.mark.parametrize("control", ["noise", "shuffled"])
def test_some_rows_of_a_controlled_run_replay_what_they_were_fed(control, model):
    """A donor may be among the other rows: what it gave is part of the action."""
    plan = controlled((Segment(Mixture(), 2), Segment(GREEDY, 1)), control)
    trace = rollout(model, plan, torch.tensor([[1, 2], [3, 4], [0, 5], [2, 2]]), streams=streams(8), group=2)
    for rows in (slice(0, 2), slice(2, 6), slice(6, 8)):
        part = replay(model, trace.part(rows))
        torch.testing.assert_close(part.inputs_BTD, trace.inputs_BTD[rows], **CLOSE)
        torch.testing.assert_close(part.logits_BTV, trace.logits_BTV[rows], **CLOSE)


def test_given_actions_are_shuffled_among_the_rows_that_are_there():
    at = state(3)
    given = Hidden().sample(at, None)
    assert torch.equal(Shuffled(Hidden()).embed(at, given), at.hidden.roll(1, 0))


def test_given_actions_have_no_noise():
    with pytest.raises(ValueError, match="a given action holds no noise"):
        Noise(Hidden()).embed(state(2), Action({"hidden": state(2).hidden}))


@pytest.mark.parametrize("kind", [Noise, Shuffled, Zero])
def test_controls_leave_token_choice_and_log_prob_alone(kind):
    inner, at = Gated(1.5, stop_ids=(1,)), state(6)
    plain, action = (thought.sample(at, Streams(3, torch.arange(6))) for thought in (inner, kind(inner)))
    assert torch.equal(action["id"], plain["id"])
    assert torch.equal(action.stop, plain.stop)
    assert torch.equal(kind(inner).log_prob(at, action), inner.log_prob(at, plain))
    assert torch.equal(kind(inner).token(action), plain["id"])
    fed, tokens = kind(inner).embed(at, action), at.table.rows(plain["id"])
    assert not torch.allclose(fed, inner.embed(at, plain))
    torch.testing.assert_close(fed, 0.8 * tokens + 0.6 * kind(inner).latent(at, action))


class Recalling(Hidden):
    """A latent that is read with its history."""

    parallel, reads_history = False, True


def test_controls_say_what_they_need():
    assert Zero(Recalling()).reads_history
    assert [kind(Hidden()).parallel for kind in (Noise, Shuffled, Zero)] == [True, True, True]
    assert [kind(Hidden()).needs_streams for kind in (Noise, Shuffled, Zero)] == [True, False, False]
    assert Zero(MultiToken(2)).needs_streams
    assert not Zero(Recalling()).parallel
    with pytest.raises(ValueError, match="Token has no latent part to replace"):
        Zero(Token())


@pytest.mark.parametrize("name", ["noise", "shuffled", "zero"])
def test_a_controlled_plan_feeds_the_control(model, name):
    """In the engine: the latents of a run are replaced, its tokens are not."""
    prompt_BN = torch.tensor([[1, 2], [3, 4], [5, 6]])
    plan = (Segment(Token(), 1), Segment(Mixture(), 2), Segment(Token(), 2))
    plain = rollout(model, plan, prompt_BN)
    run = rollout(model, controlled(plan, name), prompt_BN, streams=Streams(0, torch.arange(3)))
    assert torch.equal(run.inputs_BTD[:, 0], plain.inputs_BTD[:, 0])
    first_BD, fed_BD = plain.inputs_BTD[:, 1], run.inputs_BTD[:, 1]
    if name == "shuffled":
        assert sorted(fed_BD.tolist()) == sorted(first_BD.tolist())
        assert not any(torch.equal(a, b) for a, b in zip(fed_BD, first_BD, strict=True))
    else:
        norm_B = torch.zeros(3).double() if name == "zero" else first_BD.norm(dim=-1)
        torch.testing.assert_close(fed_BD.norm(dim=-1), norm_B)
    assert torch.equal(run.inputs_BTD[:, 3], model.table.rows(run.action("id")[:, 0]))
    assert isinstance(run.spans[2].thought, Control)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_gated_thought_keeps_its_token_under_controls(model, name):
    plan = controlled((Segment(Gated(), 2), Segment(GREEDY, 1)), name)
    trace = rollout(model, plan, torch.tensor([[1, 2, 5], [3, 4, 0]]), streams=streams(2))
    tokens = model.table.rows(trace.spans[1].action["id"])
    rest = trace.inputs_BTD - 0.8 * tokens
    own = 0.6 * model.table.mix(trace.logits_BTV[:, :2].softmax(-1))
    if name == "zero":
        torch.testing.assert_close(rest, torch.zeros_like(rest), **CLOSE)
    elif name == "shuffled":
        torch.testing.assert_close(rest, own.roll(1, 0), **CLOSE)
    else:
        torch.testing.assert_close(rest.norm(dim=-1), own.norm(dim=-1), **CLOSE)
        assert not torch.allclose(rest, own)
    assert plan[0].label == "Gated"


def test_controls_pass_by_what_has_no_latent_part(model):
    plan = (Segment(Pause(D).double(), 2), Segment(MultiToken(1), 1), Segment(GREEDY, 1))
    assert controlled(plan, "zero") == plan
    with pytest.raises(ValueError, match="Pause has no latent part to replace"):
        CONTROLS["zero"](Pause(D))
