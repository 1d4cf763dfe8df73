"""HRPO's thought: its gate, its soft token, its input, and what of them a rollout feeds; invariants by their number.

Those about rewards, losses and gradients are in test_hrpo_training. Float64 to 1e-9 unless said otherwise.
"""

import math
from dataclasses import replace

import pytest
import torch
from cases import assert_a_thought_is_its_definition
from fakes import random, state
from hybrids import asked, gated_BT, model_of, one_row, rolled
from hypothesis import given
from hypothesis import strategies as st
from naive import Done
from thoughts import D, NaiveToken, V
from tinylatent_tasks import Recommendation

from tinylatent.core.seeds import Streams
from tinylatent.engine.force import replay
from tinylatent.engine.thought import Action
from tinylatent.engine.thoughts import GREEDY
from tinylatent.methods import HRPO, DiscreteCoT
from tinylatent.methods.discrete import THINKING, ended
from tinylatent.methods.hrpo import (
    Gate,
    Gated,
    Sampled,
    hidden_ratio,
    initial_openness,
    log_gate,
    logged_ratio,
    mixed,
    soft_token,
)
from tinylatent.models.backbone import Table

EVERY = (
    HRPO(r_min=0.3, r_max=0.6),
    HRPO(graph=True, r_min=0.3, r_max=0.6),
    HRPO(latent="noise", r_min=0.3, r_max=0.6),
    HRPO(latent="shuffled", r_min=0.3, r_max=0.6),
    HRPO(latent="zero", r_min=0.3, r_max=0.6),
    HRPO(top_k=4, temperature=0.7, soft_temperature=1.5),
    HRPO(gate="token", temperature=0.7),
)
inside = st.floats(0.01, 0.99)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------------------
# The definition, for one row


class NaiveSampled(NaiveToken, of=Sampled):
    """A token of the top k; what was drawn is one of them, whatever its logit."""

    def logits(self, now, id=None):
        k, logits = self.thought.top_k, super().logits(now)
        ranked = sorted(range(V), key=lambda i: -float(logits[i].detach()))
        kept = {*(ranked[:k] if k else ranked), id}
        return logits.masked_fill(torch.tensor([i not in kept for i in range(V)]), -torch.inf)

    def act(self, now, id):
        log_prob = (self.logits(now, int(id)) / (self.thought.temperature or 1)).log_softmax(0)[id]
        return Done(now.table_VD[id], log_prob, int(id) in self.thought.stop_ids)


class NaiveGated(NaiveSampled, of=Gated):
    """The equation, for one row."""

    def given(self, rows, steps, generator):
        action = super().given(rows, steps, generator)
        if self.thought.graph:
            return action
        soft = torch.randn(rows, steps, D, generator=generator, dtype=torch.float64).requires_grad_()
        return replace(action, values={**action.values, "soft": soft})

    def read(self, action):
        return action["id"], action.values.get("soft")

    def choose(self, now):
        id, h = super().choose(now), self.soft(now)
        return id, h if self.thought.graph else h.detach()

    def soft(self, now):
        p = (self.logits(now) / self.thought.soft_temperature).exp()
        return (p @ now.table_VD) / (p @ p).sqrt()

    def act(self, now, chosen):
        id, h = chosen
        done, e, gate = super().act(now, id), now.table_VD[id], self.thought.gate
        if done.stop:
            return done
        h = self.soft(now) if self.thought.graph else h
        r, i = (1 / (1 + (-part).exp()) for part in (gate.weight @ e + gate.bias).chunk(2))
        a = (1 + (-gate.openness_D).exp()) ** (-8 * r)
        return replace(done, input=a * e + (1 - a**2).sqrt() * i * h)


def own_gate(r_min=0.2, r_max=0.7, width=D):
    return Gate(width, r_min, r_max, torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize(
    "thought",
    [
        Gated(own_gate(), 1.2, (3,)),
        Gated(own_gate(), 0.8, (0, 1), top_k=3, soft_temperature=1.4, graph=True),
        Gated(own_gate(), 0.0, (2,), top_k=5),
        Sampled(1.3, (4,), top_k=4),
    ],
    ids=["stored", "with its graph", "greedy", "tokens"],
)
def test_a_thought_is_its_definition(model, thought):
    """In the engine: sampled, given, forced, replayed; padded, shifted, in groups, steps of each row; and gradients."""
    assert_a_thought_is_its_definition(model, thought)


# ---------------------------------------------------------------------------------------------------------------------
# The gate


@given(st.floats(-12, 12), inside, st.integers(0, 99))
def test_invariant_1_the_shares_are_a_point_of_the_circle_and_bound_the_norm(openness, r, seed):
    log_a = log_gate(number(openness), number(r))
    a, share = log_a.exp().item(), hidden_ratio(log_a).item()
    assert 0 < a <= 1
    assert a**2 + share**2 == pytest.approx(1)
    e, h, i = random(6, seed=seed), random(6, seed=seed + 1), random(6, seed=seed + 2).sigmoid()
    log_a_D = log_gate(number(openness), random(6, seed=seed + 3).sigmoid())
    assert mixed(e, h, log_a_D, i).norm() <= e.norm() + h.norm()


def test_invariant_3_an_open_gate_is_the_soft_token_and_a_shut_one_shrinks_the_token(model):
    e, h = random(4, D, seed=1), random(4, D, seed=2)
    gate, table = own_gate(), Table(e)
    thought, ids = Gated(gate, 1.0), torch.arange(4)
    with torch.no_grad():
        gate.openness_D.fill_(-torch.inf)
        at = replace(state(4, size=(4, D)), table=table)
        fed = thought.embed(at, Action({"id": ids, "soft": h}))
        torch.testing.assert_close(fed, gate(e)[1] * h)
        gate.openness_D.fill_(0.3)
        gate.bias[D:].fill_(-torch.inf)  # of i
        fed = thought.embed(at, Action({"id": ids, "soft": h}))
        torch.testing.assert_close(fed, gate(e)[0].exp() * e)
        assert (fed.abs() < e.abs()).all()


@given(inside, st.floats(0.01, 0.98), st.floats(-6, 8))
def test_invariant_4_the_gate_starts_at_u_falls_with_r_and_rises_with_lambda(u, r, openness):
    weight = initial_openness(number(u))
    assert log_gate(weight, number(1.0)).exp().item() == pytest.approx(u)
    assert log_gate(weight, number(r)).exp().item() == pytest.approx(u**r)
    asked_for = number(openness).requires_grad_()
    log_gate(asked_for, number(r)).exp().backward()
    assert asked_for.grad > 0
    assert log_gate(asked_for, number(r)) > log_gate(asked_for, number(r + 0.01))


def test_invariant_4_a_gate_starts_within_its_bounds():
    gate = Gate(64, 0.9, 0.95, torch.Generator().manual_seed(0))
    u_D = log_gate(gate.openness_D, torch.ones(64)).exp()
    assert (u_D.min() >= 0.9) & (u_D.max() <= 0.95)
    assert u_D.max() - u_D.min() > 0.04
    for weights in (gate.weight, gate.bias):
        assert 0.9 / 8 < weights.abs().max() <= 1 / 8
    assert gate.openness_D.dtype == torch.float32


def test_one_minus_a_square_keeps_its_digits():
    """a = exp(-1e-9) is 1 in float32; the hidden ratio is sqrt(2e-9)."""
    log_a = torch.tensor(-1e-9)
    assert log_a.exp() == 1
    assert hidden_ratio(log_a).item() == pytest.approx(math.sqrt(2e-9), rel=1e-6)


def test_a_backbone_of_half_precision_is_fed_its_own_kind():
    thought = Gated(Gate(D, 0.5, 0.6, torch.Generator().manual_seed(0)), 1.0)
    e = random(4, D).bfloat16()
    fed = thought.embed(replace(state(4, size=(4, D)), table=Table(e)), Action({"id": torch.arange(4), "soft": e}))
    assert fed.dtype == torch.bfloat16
    assert thought.gate(e)[0].dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------------------
# The soft token


def test_invariant_5_a_certain_soft_token_is_the_likeliest_token_and_yet_no_no_op():
    gate, at = own_gate(), state(6, size=(7, D))
    thought = Gated(gate, 0.0, soft_temperature=1e-4)
    action = thought.sample(at, None)
    e = at.table.rows(at.logits.argmax(-1))
    torch.testing.assert_close(action["soft"], e)
    log_a, i = gate(e)
    fed = thought.embed(at, action)
    torch.testing.assert_close(fed, (log_a.exp() + hidden_ratio(log_a) * i) * e)
    assert (fed - e).norm() > 0.1
    assert ((fed / e).abs() <= math.sqrt(2)).all()


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=6), st.floats(0.1, 9.0), st.randoms(use_true_random=False))
def test_invariant_6_the_soft_token_ignores_scale_and_the_order_of_tokens(logits, factor, shuffler):
    p, E = number(logits).softmax(0), random(len(logits), 3)
    h = soft_token(p, Table(E))
    torch.testing.assert_close(soft_token(factor * p, Table(E)), h)
    order = [*range(len(logits))]
    shuffler.shuffle(order)
    torch.testing.assert_close(soft_token(p[order], Table(E[order])), h)


def test_the_soft_token_has_the_support_of_the_sampler():
    at = state(50, size=(9, D))
    thought = Gated(own_gate(), 2.0, top_k=3, soft_temperature=1.0)
    action, top_B3 = thought.sample(at, Streams(0, 50)), at.logits.topk(3).indices
    assert (action["id"][:, None] == top_B3).any(1).all()
    p_B3 = at.logits.gather(1, top_B3).softmax(1)
    expected = (p_B3[..., None] * at.table.rows(top_B3)).sum(1) / p_B3.norm(dim=1, keepdim=True)
    torch.testing.assert_close(action["soft"], expected)


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["64", "32"])
@pytest.mark.parametrize("method", EVERY, ids=repr)
def test_invariant_7_a_rollout_is_the_teacher_forced_pass(method, dtype, close):
    """Left padding, groups, rows that end early and rows that never do."""
    model, examples = model_of(method, dtype=dtype, scale=7), asked()
    assert examples.prompt_mask_BN is not None
    trace = rolled(method, model, examples)
    lengths = gated_BT(trace).sum(1)[ended(trace)]
    assert 0 < len(lengths) < trace.rows
    assert lengths.min() < examples.max_steps
    again = replay(model.backbone, trace)
    assert again.at_once == (not method.graph)
    for name in ("logits_BTV", "inputs_BTD", "log_prob_BT"):
        torch.testing.assert_close(getattr(again, name), getattr(trace, name), rtol=0, atol=close)
    for row in range(0, trace.rows, 5):
        alone = one_row(model, trace, row)
        torch.testing.assert_close(alone, trace.logits_BTV[row][trace.acted_BT[row]], rtol=0, atol=close)


def test_invariant_8_latents_are_in_the_thinking_before_the_delimiter_alone():
    """Not in the prompt, the delimiter, the answer; the last token is not fed at all."""
    task = Recommendation(4, 3, 2, events=4)
    method = HRPO(r_min=0.3, r_max=0.6)
    model, examples = model_of(method, task), asked(12, task)
    assert examples.answer_tokens > 1
    trace = rolled(method, model, examples)
    plain_BND = model.backbone.table.rows(trace.prompt_BN)
    assert torch.equal(trace.inputs[0], plain_BND)
    ids_BT = torch.cat([span.action["id"] for span in trace.thought_spans], 1)[:, :-1]
    assert trace.inputs_BTD.shape[1] == trace.steps - 1
    hybrid_BT = (trace.inputs_BTD != model.backbone.table.rows(ids_BT)).any(-1)
    thinking = trace.within(trace.span(THINKING))
    live_BT = trace.acted_BT[:, :-1]
    expected_BT = torch.zeros_like(live_BT)
    expected_BT[:, thinking] = gated_BT(trace)
    assert expected_BT.any()
    assert ended(trace).any()
    assert torch.equal(hybrid_BT & live_BT, expected_BT)


@pytest.mark.parametrize("method", [EVERY[0], HRPO(temperature=0.6, top_k=3)], ids=repr)
def test_invariant_9_a_replay_has_the_probabilities_that_were_drawn_with(method):
    model = model_of(method)
    trace = rolled(method, model, asked())
    torch.testing.assert_close(replay(model.backbone, trace).log_prob_BT, trace.sampled_log_prob_BT)


def test_invariant_9_the_official_score_is_another_one():
    """Scored at temperature 1 among all tokens, drawn at .5 among three."""
    method = HRPO(temperature=0.5, top_k=3, score_temperature=1.0)
    model = model_of(method)
    trace = rolled(method, model, asked())
    again = replay(model.backbone, trace)
    ids_BT = torch.cat([span.action["id"] for span in trace.thought_spans], 1)
    plain_BT = again.logits_BTV.log_softmax(-1).gather(-1, ids_BT[..., None]).squeeze(-1)
    torch.testing.assert_close(again.log_prob_BT, plain_BT * trace.acted_BT)
    gap_BT = (again.log_prob_BT - trace.sampled_log_prob_BT)[trace.acted_BT]
    assert (gap_BT.exp() < 0.9).float().mean() > 0.5


def test_what_was_drawn_stays_possible_where_a_replay_ranks_it_below_the_top():
    at = state(1, size=(5, 4))
    last = int(at.logits.argmin())
    thought = Sampled(1.0, top_k=2)
    log_p = thought.log_prob(at, thought.given(torch.tensor([last])))
    three = at.logits[0, [*at.logits[0].topk(2).indices.tolist(), last]]
    assert log_p.item() == pytest.approx(three.log_softmax(0)[-1].item())


@given(st.lists(inside, min_size=1, max_size=6))
def test_invariant_15_the_logged_ratio_is_an_upper_bound(gates):
    log_a = number(gates).log()
    assert logged_ratio(log_a) >= hidden_ratio(log_a).mean() - 1e-12
    assert logged_ratio(log_a[:1]).item() == pytest.approx(hidden_ratio(log_a[:1]).item())


def test_invariant_15_metrics_are_counted_by_hand():
    """From the rollout's own tokens, row by row."""
    method = EVERY[0]
    model = model_of(method)
    examples = asked(20)
    trace = rolled(method, model, examples)
    reward_B = ended(trace) & (trace.answer()[:, 0] % 2 == 0)
    found, gate = method.metrics(model, examples, trace, reward_B.double()), model.parts["gate"]
    true, logged, lengths = [], [], []
    ids_BT, stop_BT = trace.span(THINKING).action["id"], trace.span(THINKING).action.stop
    for id_T, stop_T in zip(ids_BT.tolist(), stop_BT.tolist(), strict=True):
        lengths.append(stop_T.index(True) if any(stop_T) else len(stop_T))
        for id in id_T[: lengths[-1]]:
            e = model.backbone.embedding[id]
            r = 1 / (1 + (-(gate.weight[:16] @ e + gate.bias[:16])).exp())
            a = (1 + (-gate.openness_D).exp()) ** (-8 * r)
            true.append((1 - a**2).sqrt().mean().item())
            logged.append((1 - a.mean() ** 2).sqrt().item())
    assert found["hidden_ratio"].item() == pytest.approx(sum(true) / len(true))
    assert found["logged_ratio"].item() == pytest.approx(sum(logged) / len(logged))
    assert found["length"].item() == pytest.approx(sum(lengths) / len(lengths))
    assert found["ended"].item() == pytest.approx(stop_BT.any(1).double().mean().item())
    right = [row for row, value in enumerate(reward_B.tolist()) if value]
    beyond = [lengths[row] - int(examples.num_steps[row // 4]) for row in right]
    assert found["right_length"].item() == pytest.approx(sum(lengths[row] for row in right) / len(right))
    assert found["right_excess"].item() == pytest.approx(sum(beyond) / len(beyond))
    bare = HRPO(gate="token").metrics(model, examples, trace, torch.zeros(trace.rows))
    assert {"hidden_ratio", "logged_ratio"}.isdisjoint(bare)
    assert bare["right_length"].isnan()


def test_invariant_16_greedy_answers_are_the_same_again_and_depend_on_the_soft_temperature():
    method = HRPO(r_min=0.3, r_max=0.6)
    model, examples = model_of(method), asked(20)
    first, again, other = (
        each.solve(model, examples).trace for each in (method, method, replace(method, soft_temperature=3.0))
    )
    assert torch.equal(first.logits_BTV, again.logits_BTV)
    steps = min(first.steps, other.steps)
    gap = (first.logits_BTV[:, :steps] - other.logits_BTV[:, :steps]).abs().amax((0, 2))
    assert gap[0] == 0
    assert gap[1] > 1e-3


def test_the_decoder_of_tokens_is_the_chain_that_ends_by_itself():
    method = HRPO(r_min=0.3, r_max=0.6)
    model, examples = model_of(method), asked(20)
    tokens = method.decoders["tokens"].solve(model, examples)
    chain = DiscreteCoT(ends=True).solve(model, examples)
    assert torch.equal(tokens.answer_BA, chain.answer_BA)
    assert (chain.answer_BA == -1).any()
    assert not torch.equal(method.solve(model, examples).trace.logits_BTV, chain.trace.logits_BTV)
    assert method.decoders["sharp"].soft_temperature == 0.1
    assert not HRPO(gate="token").decoders


def test_controls_keep_the_share_of_the_token():
    """With zero in the soft token's place, a e is left; noise has the soft token's norm before the gate."""
    method = HRPO(latent="zero", r_min=0.3, r_max=0.6)
    model = model_of(method)
    trace = rolled(method, model, asked())
    span = trace.span(THINKING)
    e_BTD = model.backbone.table.rows(span.action["id"])
    shares = trace.inputs_BTD[:, : e_BTD.shape[1]] / e_BTD
    assert ((shares > 0) & (shares < 1))[gated_BT(trace)].all()
    noisy = HRPO(latent="noise", r_min=0.3, r_max=0.6).thought(model, 1.0)
    at = state(6, size=(len(model.backbone.table), 16))
    action = noisy.sample(at, Streams(0, 6))
    torch.testing.assert_close(noisy.latent(at, action).norm(dim=-1), action["soft"].norm(dim=-1))


def test_one_problem_alone_keeps_its_own_latents():
    """There is no other to shuffle with, as where the cost of a problem is measured."""
    method = HRPO(latent="shuffled", r_min=0.3, r_max=0.6)
    model = model_of(method)
    alone = method.solve(model, asked(1)).trace
    assert torch.equal(alone.logits_BTV, replace(method, latent="soft").solve(model, asked(1)).trace.logits_BTV)
    two, soft = (each.solve(model, asked(2)).trace for each in (method, replace(method, latent="soft")))
    assert not torch.equal(two.logits_BTV[:, 1], soft.logits_BTV[:, 1])


def test_a_stop_token_is_fed_plain_and_a_greedy_token_without_latents_is_the_greedy_token():
    thought = Gated(own_gate(), 0.0, (2,))
    at = state(3, size=(5, D))
    action = replace(thought.given(torch.tensor([0, 2, 4])), values={"id": torch.tensor([0, 2, 4]), "soft": at.hidden})
    fed = thought.embed(at, action)
    assert torch.equal(fed[1], at.table.rows(torch.tensor(2)))
    assert (fed[[0, 2]] != at.table.rows(torch.tensor([0, 4]))).any(1).all()
    assert torch.equal(Sampled().sample(at, None)["id"], GREEDY.sample(at, None)["id"])
