"""Claims about Dirichlet scores and k3: digamma functions, a bandit by hand, clamped samples, broken on purpose."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tinylatent_theory.claims import scores
from tinylatent_theory.predictions.enumeration import dirichlet_information
from verdicts import verdict

from tinylatent.engine import thoughts
from tinylatent.engine.distributions import dirichlet_log_density, log_dirichlet
from tinylatent.lab.findings import FAILS, HOLDS

LOGITS = st.lists(st.floats(-4, 4), min_size=2, max_size=6)


def test_score_by_its_formula():
    """c_i (log a_i - psi(c_i)), less alpha_i times the sum of these."""
    logits_V, gamma = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64), 2.5
    log_a_nV = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    alpha_V = logits_V.softmax(0)
    each_nV = gamma * alpha_V * (log_a_nV - torch.digamma(gamma * alpha_V))
    expected_nV = each_nV - alpha_V * each_nV.sum(1, keepdim=True)
    torch.testing.assert_close(scores.dirichlet_scores(logits_V, gamma, log_a_nV), expected_nV)


@given(st.floats(-3, 3), st.floats(0.1, 10))
def test_quadrature_score_is_zero_for_two_tokens(logit, gamma):
    score_V = scores.quadrature_score(torch.tensor([0.0, logit], dtype=torch.float64), gamma)
    assert score_V.abs().max() < 1e-10


@given(st.floats(0.01, 0.99), st.floats(0.05, 50))
def test_curvature_of_two_tokens_by_hand(share, gamma):
    """Both scores are gamma a (1 - a) times log x_1 / x_2, up to sign, of variance psi'(c_1) + psi'(c_2)."""
    c = torch.tensor([share * gamma, (1 - share) * gamma], dtype=torch.float64)
    by_hand = 2 * (share * (1 - share) * gamma) ** 2 * float(torch.polygamma(1, c).sum())
    assert dirichlet_information([share, 1 - share], gamma) == pytest.approx(by_hand, rel=1e-9)
    assert scores.dirichlet_curvature(c / gamma, gamma) == pytest.approx(by_hand, rel=1e-7)


@given(LOGITS, st.floats(1e-6, 1e4))
def test_score_varies_by_one_for_every_token_but_one(logits, gamma):
    alpha = torch.tensor(logits, dtype=torch.float64).softmax(0).tolist()
    assert dirichlet_information(alpha, gamma) >= len(alpha) - 1 - 1e-9


@given(LOGITS)
def test_k3_gradient_by_hand(logits):
    """p - q in the logits, against an even policy; k2 has that of the divergence, p (log p/q - KL)."""
    reference_V = torch.tensor(logits, dtype=torch.float64)
    even_V = torch.zeros_like(reference_V)
    p_V, q_V = even_V.softmax(0), reference_V.softmax(0)
    value, gradient_V = scores.loss_gradient(scores.k3, even_V, reference_V)
    kl = float((p_V * (p_V / q_V).log()).sum())
    assert value == pytest.approx(kl, abs=1e-12)
    torch.testing.assert_close(gradient_V, p_V - q_V)
    torch.testing.assert_close(scores.loss_gradient(scores.k2, even_V, reference_V)[1], p_V * ((p_V / q_V).log() - kl))
    torch.testing.assert_close(scores.kl_gradient(even_V, reference_V)[1], p_V * ((p_V / q_V).log() - kl))


def test_counterexample_by_hand():
    said = scores.even_against_nine_to_one()
    assert "k3 has gradient -0.4000" in said
    assert f"KL(current || reference) {-math.log(9) / 4:.4f}, KL(reference || current) -0.4000" in said


def test_clamped_samples_flip_the_verdict(monkeypatch):
    monkeypatch.setattr(scores, "log_dirichlet", lambda *at: log_dirichlet(*at).clamp(min=math.log(1e-38)))
    assert verdict("dirichlet_score_has_mean_zero") == FAILS


def test_a_density_without_a_normaliser_flips_the_verdict(monkeypatch):
    def broken(log_concentration, log_a):
        return dirichlet_log_density(log_concentration, log_a) + torch.lgamma(log_concentration.exp() + 1).sum(-1)

    monkeypatch.setattr(thoughts, "dirichlet_log_density", broken)
    assert verdict("dirichlet_score_has_mean_zero") == FAILS


@pytest.mark.parametrize("factor", [0.5, 1.001, 2.0])
def test_another_information_flips_the_verdict(factor, monkeypatch):
    monkeypatch.setattr(scores, "dirichlet_information", lambda *at: factor * dirichlet_information(*at))
    assert verdict("dirichlet_score_grows_with_vocabulary") == FAILS


def test_a_loss_with_the_right_gradient_flips_the_verdict(monkeypatch):
    monkeypatch.setattr(scores, "k3", scores.k2)
    assert verdict("k3_gradient_is_that_of_its_kl") == HOLDS
