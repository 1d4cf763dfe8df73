"""HRPO's claims: by hand, by property, and broken on purpose; its hybrid model path by path."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from naive import gradients, naive_hidden
from tinylatent_theory.claims import hrpo
from tinylatent_theory.claims.ledger import LEDGER, Trial
from tinylatent_theory.predictions.enumeration import Paths, World, objective, walked
from verdicts import broken, number

from tinylatent.engine.controls import controlled
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY
from tinylatent.lab.findings import OPEN
from tinylatent.models.backbone import Table

inside = st.floats(0.01, 0.99)


# ---------------------------------------------------------------------------------------------------------------------
# The gate


def test_gates_by_hand():
    """softplus(0) = log 2: a = 2^(-8 r) with either sign."""
    for form in (hrpo.gate, hrpo.printed_gate):
        assert form(number(0.0), number(0.5)).item() == pytest.approx(1 / 16)
    assert hrpo.initial_weight(number(2.0**-8)).item() == pytest.approx(0)
    assert hrpo.hidden_ratio(number(0.6)).item() == pytest.approx(0.8)


@given(inside, inside)
def test_the_gate_is_a_power_of_its_start(u, r):
    assert hrpo.gate(hrpo.initial_weight(number(u)), number(r)).item() == pytest.approx(u**r)


@pytest.mark.parametrize(("r_min", "gate", "ratio"), [(0.9, 0.974, 0.213), (0.95, 0.987, 0.152), (0.99, 0.997, 0.072)])
def test_starts_by_integration(r_min, gate, ratio):
    """u^(1/2) and (1 - u)^(1/2) have closed integrals."""
    width = 0.999 - r_min
    assert hrpo.starts(r_min).mean().item() == pytest.approx((0.999**1.5 - r_min**1.5) / 1.5 / width)
    true = ((1 - r_min) ** 1.5 - 0.001**1.5) / 1.5 / width
    assert hrpo.hidden_ratio(hrpo.starts(r_min)).mean().item() == pytest.approx(true, rel=1e-5)
    assert (hrpo.starts(r_min).mean().item(), true) == pytest.approx((gate, ratio), abs=6e-4)


@given(st.floats(-6, 6), st.floats(0.01, 2), inside)
def test_the_signs_disagree(weight, step, r):
    old, new = (
        [form(number(x), number(r)) for x in (weight, weight - step)] for form in (hrpo.printed_gate, hrpo.gate)
    )
    assert old[0] < old[1]
    assert new[0] > new[1]


@given(st.lists(inside, min_size=1, max_size=6))
def test_the_reported_ratio_is_an_upper_bound(gates):
    a = number(gates)
    assert hrpo.reported_ratio(a) >= hrpo.hidden_ratio(a).mean() - 1e-12
    assert hrpo.reported_ratio(a[:1]).item() == pytest.approx(hrpo.hidden_ratio(a[:1]).mean().item())


def test_other_gates_flip_the_verdicts(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(hrpo, "gate", hrpo.printed_gate)
        assert broken("hrpo_gate_form")
    with monkeypatch.context() as patch:
        patch.setattr(hrpo, "initial_weight", lambda u: -(u ** (-1 / 4) - 1).log())
        assert broken("hrpo_gate_form")
    with monkeypatch.context() as patch:
        patch.setattr(hrpo, "printed_gate", hrpo.gate)
        assert broken("hrpo_printed_sign")
    with monkeypatch.context() as patch:
        patch.setattr(hrpo, "reported_ratio", lambda a: hrpo.hidden_ratio(a).mean())
        assert broken("hrpo_reported_ratio")
    assert "as printed 0.9980 to 0.9583" in hrpo.smaller_weight()
    assert "ratio is 0.620, sqrt(1 - mean(a)^2) is 0.785" in hrpo.two_gates()


# ---------------------------------------------------------------------------------------------------------------------
# The scale of the input


def test_inputs_by_hand():
    assert hrpo.mixed(number([5.0]), number([10.0]), number(0.6), number(0.5)).item() == pytest.approx(3 + 4)
    h = hrpo.soft_token(number([0.6, 0.8, 0.0]) / 1.4, Table(torch.eye(3, dtype=torch.float64)))
    torch.testing.assert_close(h, number([0.6, 0.8, 0.0]))
    assert "variance of 2," in hrpo.same_sign()
    assert "h = 1.4142" in hrpo.twins()
    assert "the input is 1.4142" in hrpo.certain()


@given(inside, st.floats(0, 1))
def test_the_mix_has_the_variance_of_a_sum(a, correlation):
    """Four equal rows of e and two of h besides: e and h of unit variance and any correlation."""
    e, other = hrpo.signs(2).T
    h = correlation * e + math.sqrt(1 - correlation**2) * other
    variance = hrpo.mixed(e, h, number(a), number(1.0)).var(correction=0).item()
    assert variance == pytest.approx(1 + 2 * a * math.sqrt(1 - a**2) * correlation)


@given(inside, st.lists(st.floats(-3, 3), min_size=2, max_size=5))
def test_a_drawn_token_agrees_with_its_soft_token(a, logits):
    """E e h = sum p p / |p| = |p|."""
    p = number(logits).softmax(0)
    expected = 1 + 2 * a * math.sqrt(1 - a**2) * p.norm().item()
    assert hrpo.drawn_variance(p, number(a)) == pytest.approx(expected)


@given(inside)
def test_one_gate_undoes_a_certain_token(a):
    """i = sqrt((1 - a) / (1 + a)) alone gives the embedding back."""
    e = number([[0.3, -2.0]])
    h = hrpo.soft_token(number([1.0]), Table(e))
    undone = hrpo.mixed(e[0], h, number(a), number(math.sqrt((1 - a) / (1 + a))))
    torch.testing.assert_close(undone, e[0])
    assert (hrpo.mixed(e[0], h, number(a), number(1.0)) / e[0]).max() <= 2**0.5 + 1e-12


def test_other_mixes_flip_the_verdicts(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(hrpo, "mixed", lambda e, h, a, i: a * e + (1 - a) * h)
        assert broken("hrpo_mix_keeps_norm")
        assert broken("hrpo_one_hot_is_no_op")
    with monkeypatch.context() as patch:
        patch.setattr(hrpo, "soft_token", lambda p, table: table.mix(p))
        assert broken("hrpo_soft_embedding_scale")


# ---------------------------------------------------------------------------------------------------------------------
# Training


def test_decay_by_hand():
    """Ten steps, one of warm-up at the full rate, then half a cosine whose nine shares add up to five."""
    weight = torch.ones(1, dtype=torch.float64)
    left = hrpo.decayed(weight, 10, hrpo.DECAY).item()
    assert left == pytest.approx(1 - 1e-4 * 6, rel=1e-6)
    assert hrpo.shrinkage(10, hrpo.DECAY) == pytest.approx(left, rel=1e-12)


def test_decay_over_a_published_run():
    """Rates add up to half of all steps: Lambda shrinks by exp(-1e-4 * 467); u = .99 leaves from 6.678."""
    evidence = LEDGER["hrpo_weight_decay_raises_hidden_ratio"].check(Trial()).evidence
    shrunk = -math.log(0.99 ** (-1 / 8) - 1) * math.exp(-1e-4 * 467.5)
    assert math.sqrt(1 - (1 + math.exp(-shrunk)) ** -8) == pytest.approx(0.116, abs=5e-4)
    assert "0.100 to 0.116 (u 0.99), 0.032 to 0.039 (u 0.999)" in evidence


@given(st.floats(0.01, 0.999), st.floats(0.5, 0.999))
def test_decay_raises_the_ratio_of_positive_weights_alone(u, factor):
    """sigmoid(0)^8 = 1/256: below it Lambda is negative, and decay lowers the ratio."""
    if abs(u * 256 - 1) > 1e-3:
        weight = hrpo.initial_weight(number(u))
        before, after = (hrpo.gate(x, number(0.5)) for x in (weight, weight * factor))
        assert (after < before) == (u > 1 / 256)


def test_no_decay_or_the_printed_sign_flips_the_verdict(monkeypatch):
    name = "hrpo_weight_decay_raises_hidden_ratio"
    with monkeypatch.context() as patch:
        patch.setattr(hrpo, "decayed", lambda weight, steps, recipe: weight)
        assert broken(name)
    with monkeypatch.context() as patch:
        patch.setattr(hrpo, "gate", lambda weight, r: (-8 * F.softplus(weight) * r).exp())
        assert broken(name)


def hybrid(world, u):
    """A hybrid thought and all its paths in a world."""
    thought = hrpo.Hybrid(world.width, u, torch.Generator().manual_seed(3))
    ids = torch.tensor(list(itertools.product(range(world.vocabulary), repeat=world.steps)))
    return thought, Paths(thought, thought.given(ids), torch.zeros(len(ids), dtype=torch.float64))


def test_the_objective_path_by_path():
    """The same from a model written a second time: no engine, no batches, the gate spelled out."""
    world, total = World(3, 2, width=4), 0.0
    thought, paths = hybrid(world, 0.7)
    E, answers = world.model.embedding, world.answers
    for prompt, ids in itertools.product(range(3), paths.action["id"].tolist()):
        inputs, chance = [E[prompt]], 1.0
        for token in [*ids, answers[prompt]]:
            p = (E @ naive_hidden(world.model, inputs, range(len(inputs)))[-1]).softmax(0)
            chance = chance * p[token]
            r, i = (1 / (1 + (-(gates @ E[token])).exp()) for gates in thought.gates_2DD)
            a = 0.7**r
            inputs.append(a * E[token] + (1 - a**2).sqrt() * i * (E.T @ p) / (p @ p).sqrt())
        total += chance.item() / 3
    assert objective(world, paths).item() == pytest.approx(total, rel=1e-12)


def test_controls_replace_the_soft_token_and_keep_the_token():
    world = World(3, 2, width=4)
    thought, paths = hybrid(world, 0.7)
    ids = paths.action["id"]
    plan = controlled((Segment(thought, 2, paths.action), Segment(GREEDY, 1)), "zero")
    trace = rollout(world.model, plan, torch.zeros(len(ids), 1, dtype=torch.int64))
    e = world.model.table.rows(ids).detach()
    torch.testing.assert_close(trace.inputs_BTD, (thought.gated(e)[0] * e).detach())
    assert torch.equal(trace.thought_spans[0].thought.token(trace.thought_spans[0].action), ids)
    assert (trace.counters.latents, trace.counters.tokens) == (2 * len(ids), 3 * len(ids))


@pytest.mark.parametrize("detached", [False, True])
def test_the_gradient_is_the_mean_score(detached):
    """sum over paths of chance x gradient of its logarithm, one path after the other, is what autograd makes of J."""
    world = World(3, 2)
    thought, paths = hybrid(world, 0.7)
    thought.detached = detached
    weights = [*world.model.parameters(), *thought.parameters()]
    mean = 0.0
    for prompt, right in enumerate(world.answers):
        latent, answer = walked(world, paths, prompt)
        for log_chance in latent + answer[:, right]:
            mean = mean + log_chance.exp().item() * gradients(log_chance, weights) / 3
    torch.testing.assert_close(gradients(objective(world, paths), weights), mean, rtol=1e-9, atol=1e-12)


def test_the_gap_vanishes_in_proportion_to_the_hidden_ratio():
    near, nearer = (hrpo.bias(World(3, 2), 1 - x, torch.Generator().manual_seed(0))[1] for x in (1e-6, 1e-8))
    assert near["hidden ratio"] / nearer["hidden ratio"] == pytest.approx(10, rel=1e-3)
    assert near["relative error"] / nearer["relative error"] == pytest.approx(10, rel=1e-2)
    assert "relative error 0.0072" in hrpo.one_step()


@pytest.mark.slow
def test_a_kept_gradient_and_a_wrong_slope_flip_the_verdict(monkeypatch):
    claim, slope = LEDGER["hrpo_detached_latent_bias"], hrpo.slope
    with monkeypatch.context() as patch:
        patch.setattr(hrpo, "slope", lambda *arguments: 1.01 * slope(*arguments))
        assert claim.check(Trial()).verdict == OPEN

    def kept(self, state, action):
        return hrpo.soft_token(state.logits.softmax(-1), state.table)

    monkeypatch.setattr(hrpo.Hybrid, "latent", kept)
    assert broken("hrpo_detached_latent_bias")
