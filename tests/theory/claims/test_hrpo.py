"""HRPO's claims: by hand, by property, and broken on purpose; its hybrid model path by path."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tinylatent_theory.claims import hrpo
from tinylatent_theory.claims.ledger import LEDGER, Trial
from verdicts import broken, number

from tinylatent.models.backbone import Table

inside = st.floats(0.01, 0.99)


# ---------------------------------------------------------------------------------------------------------------------
# The gate


def test_gates_by_hand():
    """softplus(0) = log 2: a = 2^(-8 r) with either sign."""
    for form in (hrpo.log_gate, hrpo.printed_log_gate):
        assert form(number(0.0), number(0.5)).exp().item() == pytest.approx(1 / 16)
    assert hrpo.initial_openness(number(2.0**-8)).item() == pytest.approx(0)
    assert hrpo.hidden_ratio(number(0.6).log()).item() == pytest.approx(0.8)


@given(inside, inside)
def test_the_gate_is_a_power_of_its_start(u, r):
    assert hrpo.log_gate(hrpo.initial_openness(number(u)), number(r)).exp().item() == pytest.approx(u**r)


@pytest.mark.parametrize(("r_min", "gate", "ratio"), [(0.9, 0.974, 0.213), (0.95, 0.987, 0.152), (0.99, 0.997, 0.072)])
def test_starts_by_integration(r_min, gate, ratio):
    """u^(1/2) and (1 - u)^(1/2) have closed integrals."""
    width = 0.999 - r_min
    assert hrpo.starts(r_min).exp().mean().item() == pytest.approx((0.999**1.5 - r_min**1.5) / 1.5 / width)
    true = ((1 - r_min) ** 1.5 - 0.001**1.5) / 1.5 / width
    assert hrpo.hidden_ratio(hrpo.starts(r_min)).mean().item() == pytest.approx(true, rel=1e-5)
    assert (hrpo.starts(r_min).exp().mean().item(), true) == pytest.approx((gate, ratio), abs=6e-4)


@given(st.floats(-6, 6), st.floats(0.01, 2), inside)
def test_the_signs_disagree(weight, step, r):
    old, new = (
        [form(number(x), number(r)) for x in (weight, weight - step)] for form in (hrpo.printed_log_gate, hrpo.log_gate)
    )
    assert old[0] < old[1]
    assert new[0] > new[1]


@given(st.lists(inside, min_size=1, max_size=6))
def test_the_reported_ratio_is_an_upper_bound(gates):
    log_a = number(gates).log()
    assert hrpo.logged_ratio(log_a) >= hrpo.hidden_ratio(log_a).mean() - 1e-12
    assert hrpo.logged_ratio(log_a[:1]).item() == pytest.approx(hrpo.hidden_ratio(log_a[:1]).mean().item())


def test_other_gates_flip_the_verdicts(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(hrpo, "log_gate", hrpo.printed_log_gate)
        assert broken("hrpo_gate_form")
    with monkeypatch.context() as patch:
        patch.setattr(hrpo, "initial_openness", lambda u: -(u ** (-1 / 4) - 1).log())
        assert broken("hrpo_gate_form")
    with monkeypatch.context() as patch:
        patch.setattr(hrpo, "printed_log_gate", hrpo.log_gate)
        assert broken("hrpo_printed_sign")
    with monkeypatch.context() as patch:
        patch.setattr(hrpo, "logged_ratio", lambda log_a: hrpo.hidden_ratio(log_a).mean())
        assert broken("hrpo_reported_ratio")
    assert "as printed 0.9980 to 0.9583" in hrpo.smaller_weight()
    assert "ratio is 0.620, sqrt(1 - mean(a)^2) is 0.785" in hrpo.two_gates()


# ---------------------------------------------------------------------------------------------------------------------
# The scale of the input


def test_inputs_by_hand():
    assert hrpo.mixed(number([5.0]), number([10.0]), number(0.6).log(), number(0.5)).item() == pytest.approx(3 + 4)
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
    variance = hrpo.mixed(e, h, number(a).log(), number(1.0)).var(correction=0).item()
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
    undone = hrpo.mixed(e[0], h, number(a).log(), number(math.sqrt((1 - a) / (1 + a))))
    torch.testing.assert_close(undone, e[0])
    assert (hrpo.mixed(e[0], h, number(a).log(), number(1.0)) / e[0]).max() <= 2**0.5 + 1e-12


def test_other_mixes_flip_the_verdicts(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(hrpo, "mixed", lambda e, h, log_a, i: log_a.exp() * e + (1 - log_a.exp()) * h)
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
        weight = hrpo.initial_openness(number(u))
        before, after = (hrpo.log_gate(x, number(0.5)) for x in (weight, weight * factor))
        assert (after < before) == (u > 1 / 256)


def test_no_decay_or_the_printed_sign_flips_the_verdict(monkeypatch):
    name = "hrpo_weight_decay_raises_hidden_ratio"
    with monkeypatch.context() as patch:
        patch.setattr(hrpo, "decayed", lambda weight, steps, recipe: weight)
        assert broken(name)
    with monkeypatch.context() as patch:
        patch.setattr(hrpo, "log_gate", hrpo.printed_log_gate)
        assert broken(name)
