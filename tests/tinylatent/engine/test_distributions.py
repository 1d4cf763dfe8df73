"""The samplers against scipy's distributions, the density against its formula, and the scores that must average zero.

Statistical tests fix their seed; each states how often it would fail, on correct code, if the seed were drawn anew.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tinylatent.core.seeds import Streams
from tinylatent.engine.distributions import (
    FLOOR,
    categorical,
    dirichlet_log_density,
    log_concentration,
    log_dirichlet,
    log_gamma,
)

FALSE_ALARM = 1e-6
SHAPES = [1e-3, 0.05, 0.4, 1.0, 2.5, 40.0]


def streams(rows, seed=0):
    return Streams(seed, torch.arange(rows))


def test_several_tokens_are_independent_draws():
    """Chi-square over the pairs of two draws; false alarm 1e-6. Two equal draws must fail."""
    n, logits_V = 30_000, torch.tensor([0.5, -0.7, 1.0])
    ids_B2, log_p_B2 = categorical(streams(n), logits_V.expand(n, 3), 2)
    torch.testing.assert_close(log_p_B2, logits_V.double().log_softmax(0)[ids_B2])
    p_V = logits_V.double().softmax(0).numpy()
    counts = np.bincount((3 * ids_B2[:, 0] + ids_B2[:, 1]).numpy(), minlength=9)
    assert stats.chisquare(counts, n * np.outer(p_V, p_V).ravel()).pvalue > FALSE_ALARM
    same = np.bincount((4 * ids_B2[:, 0]).numpy(), minlength=9)
    assert stats.chisquare(same, n * np.outer(p_V, p_V).ravel()).pvalue < FALSE_ALARM


@pytest.mark.parametrize("shape", SHAPES)
def test_gamma_variates_have_their_distribution(shape):
    """Kolmogorov-Smirnov of the logarithm; false alarm 1e-6 over the shapes. A shape a tenth larger must fail."""
    n = 20_000
    log_N = log_gamma(streams(n, 3), torch.full((n, 1), shape)).flatten().numpy()
    bound = FALSE_ALARM / len(SHAPES)
    # P(log g <= x) of small shapes is that of shape log g + log Gamma(shape + 1) as well as of g itself
    assert stats.kstest(log_N, lambda x: stats.loggamma.cdf(x, shape)).pvalue > bound
    assert stats.kstest(log_N, lambda x: stats.loggamma.cdf(x, 1.1 * shape)).pvalue < bound


@pytest.mark.parametrize("shape", [1e-8, 1e-30])
def test_tiny_shapes_tend_to_an_exponential(shape):
    """-shape log g is standard exponential in the limit; Kolmogorov-Smirnov, false alarm 1e-6 over two shapes."""
    n = 20_000
    log_N = log_gamma(streams(n, 4), torch.full((n, 1), shape, dtype=torch.float64)).flatten().numpy()
    assert np.isfinite(log_N).all()
    assert stats.kstest(-shape * log_N, "expon").pvalue > FALSE_ALARM / 2


def test_draws_belong_to_the_row():
    """Neither neighbours nor how many attempts they take change a row's numbers, those it draws later included."""
    shape_BV = torch.rand(50, 7, generator=torch.Generator().manual_seed(0)) * 3 + 1e-3
    together = streams(50)
    whole_BV, after_B = log_gamma(together, shape_BV), together.uniform()
    for row in (0, 13, 49):
        alone = Streams(0, torch.tensor([row]))
        assert torch.equal(log_gamma(alone, shape_BV[row : row + 1])[0], whole_BV[row])
        assert torch.equal(alone.uniform()[0], after_B[row])
    assert not torch.equal(log_gamma(together, shape_BV), whole_BV), "a second draw is another"
    assert not torch.equal(streams(50).uniform(), after_B), "and uniforms after it are not those before it"


def test_density_is_scipys_but_for_the_factor_of_the_action():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    log_a = torch.randn(4, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    got = dirichlet_log_density(log_concentration(logits, 2.5), log_a)
    for row in range(4):
        alpha, a = (2.5 * logits[row].softmax(0)).numpy(), log_a[row].exp().numpy()
        expected = stats.dirichlet.logpdf(a / a.sum(), alpha) + log_a[row].sum().item()
        assert got[row].item() == pytest.approx(expected, abs=1e-10)


def test_points_of_the_simplex_have_their_mean_and_covariance():
    """Variance-matched: the covariance is that of gamma + 1 tokens. z-scores within 6; false alarm below 1e-6."""
    n, gamma, logits_V = 200_000, 2.0, torch.tensor([1.0, 0.2, -1.5, -4.0], dtype=torch.float64)
    p_V = logits_V.softmax(0)
    a_BV = log_dirichlet(streams(n, 5), log_concentration(logits_V, gamma).expand(n, 4)).exp()
    torch.testing.assert_close(a_BV.sum(1), torch.ones(n, dtype=torch.float64))
    centred_BV = a_BV - p_V
    products_BVV = centred_BV[:, :, None] * centred_BV[:, None]
    covariance_VV = (p_V.diag() - p_V.outer(p_V)) / (gamma + 1)
    for values, expected in ((a_BV, p_V), (products_BVV, covariance_VV)):
        error = values.std(0) / math.sqrt(n)
        assert ((values.mean(0) - expected).abs() < 6 * error).all()
    wrong_VV = (p_V.diag() - p_V.outer(p_V)) / gamma
    assert ((products_BVV.mean(0) - wrong_VV).abs() > 6 * products_BVV.std(0) / math.sqrt(n)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("least", [1e-1, 1e-6, 1e-30])
def test_scores_are_finite_and_average_zero(dtype, least):
    """Of a draw whose smallest concentration is `least`: every mean score is 0 within 4 standard errors.

    The score of a tiny concentration's logarithm is 1 minus an exponential variate, so its deviation is 1, not 0. False
    alarm: 24 z-scores at 6e-5 each, 1.5e-3 if seeds were drawn anew (Bonferroni).
    """
    n = 40_000
    log_c_V = torch.tensor([1.8, 1.2, least, 1e-2], dtype=torch.float64).log().to(dtype)
    log_c_BV = log_c_V.expand(n, 4).clone().requires_grad_()
    log_a_BV = log_dirichlet(streams(n, 6), log_c_BV.detach())
    density_B = dirichlet_log_density(log_c_BV, log_a_BV)
    (score_BV,) = torch.autograd.grad(density_B.sum(), log_c_BV)
    assert log_a_BV.dtype == dtype
    assert log_a_BV.isfinite().all()
    assert density_B.isfinite().all()
    mean_V, deviation_V = score_BV.double().mean(0), score_BV.double().std(0)
    assert deviation_V[2].item() == pytest.approx(1, abs=0.1)
    assert (mean_V.abs() < 4 * deviation_V / math.sqrt(n)).all(), mean_V / deviation_V * math.sqrt(n)


def test_clamping_the_point_would_bias_the_score():
    """What samplers do that return the point itself: tails cut at 1e-6, say, shift the mean score by many errors."""
    n, gamma = 20_000, 3.0
    logits_BV = torch.tensor([0.7, 0.3 - 1e-4, 1e-4]).log().double().expand(n, 3).clone().requires_grad_()
    log_c_BV = log_concentration(logits_BV, gamma)
    log_a_BV = log_dirichlet(streams(n, 7), log_c_BV.detach()).clamp(min=math.log(1e-6))
    (score_BV,) = torch.autograd.grad(dirichlet_log_density(log_c_BV, log_a_BV).sum(), logits_BV)
    assert (score_BV.mean(0) / (score_BV.std(0) / math.sqrt(n))).abs().max() > 20


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_there_is_nothing_to_draw_from_logits_that_are_no_numbers(bad):
    logits_BV = torch.tensor([[0.0, 1.0], [bad, 0.0]])
    with pytest.raises(ValueError, match="the logits are not finite, training diverged"):
        categorical(streams(2), logits_BV)
    with pytest.raises(ValueError, match="the logits are not finite, training diverged"):
        log_dirichlet(streams(2), logits_BV)


def test_less_than_the_floor_counts_as_the_floor():
    """No gradient reaches what is below it, and everything stays finite in float32."""
    logits_BV = torch.tensor([[0.0, -60.0, -500.0, -math.inf]], requires_grad=True)
    log_c_BV = log_concentration(logits_BV, 2.0)
    assert log_c_BV.exp().tolist()[0][2:] == pytest.approx([FLOOR, FLOOR], rel=1e-4)
    log_a_BV = log_dirichlet(streams(1), log_c_BV.detach())
    assert log_a_BV.isfinite().all()
    density_B = dirichlet_log_density(log_c_BV, log_a_BV)
    (score_BV,) = torch.autograd.grad(density_B.sum(), logits_BV)
    assert score_BV[0, :3].isfinite().all()
    assert score_BV[0, 2] == 0
