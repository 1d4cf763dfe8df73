"""LatentR3's claims: by hand, by property, and broken on purpose."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from tinylatent_theory.claims import latentr3
from tinylatent_theory.claims.ledger import LEDGER, Trial
from verdicts import broken, number

from tinylatent.lab.findings import HOLDS
from tinylatent.methods import latentr3_rl
from tinylatent.objectives.policy_gradient import advantages

log_prob = st.floats(-8, -1e-3)
SIGMOID = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
THREE = torch.tensor([[1.0, 0.2], [-0.5, 1.0], [0.3, -1.0]], dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------------------
# Reward and advantage


def test_formulas_are_the_method_s_own():
    for name in ("perplexity_reward", "compared", "one_signed"):
        assert getattr(latentr3, name) is getattr(latentr3_rl, name)


def test_rewards_by_hand():
    """Probabilities 1/2 and 1/8 have the geometric mean 1/4; a sigmoid at 0 a perplexity of 2."""
    assert latentr3.perplexity_reward(number([0.5, 0.125]).log()).item() == pytest.approx(-4)
    torch.testing.assert_close(latentr3.rewards(SIGMOID, number([[0.0], [math.log(3)]])), number([-2.0, -4 / 3]))


@given(st.lists(log_prob, min_size=1, max_size=6))
def test_repeating_an_answer_changes_no_reward(values):
    once, twice = (latentr3.perplexity_reward(number(each)) for each in (values, values * 2))
    assert once.item() == pytest.approx(twice.item())
    assert once < -1


def test_advantages_by_hand():
    """b = (-1 - 3) / 2; differences 1, 0, -1, -1."""
    found = latentr3.compared(number([[-1.0, -2.0], [-3.0, -3.0]]))
    torch.testing.assert_close(found, number([[1.0, 0.0], [-1.0, -1.0]]) / 3**0.5, rtol=1e-5, atol=0)
    assert latentr3.one_signed(found).tolist() == [0, 1]


@given(st.lists(st.lists(log_prob, min_size=2, max_size=2), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_prompts_is_no_matter(values, random):
    """The release swaps neighbours before it averages: without effect."""
    reward = latentr3.perplexity_reward(number(values)[..., None])
    order = random.sample(range(len(values)), len(values))
    torch.testing.assert_close(latentr3.compared(reward)[order], latentr3.compared(reward[order]))
    assert latentr3.compared(reward).norm() <= 1


def test_equal_rewards_have_no_advantage():
    assert not latentr3.compared(torch.full((3, 4), -2.0)).any()


@given(st.floats(0.05, 2))
def test_the_exact_share_by_integration(sigma):
    """Midpoints of 2000 quantiles of the noise; the seven noisy latents are independent."""
    x = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000)
    total = 0.0
    for r, sign in ((0.0, 1), (-math.log(3), -1)):
        total += ((latentr3.rewards(SIGMOID, (r + sigma * x)[:, None]) + 3) * sign > 0).double().mean() ** 7 / 2
    assert latentr3.easy_and_hard(sigma) == pytest.approx(float(total), abs=3e-3)


@pytest.mark.slow
def test_other_rewards_and_norms_flip_the_verdicts(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(latentr3, "perplexity_reward", lambda log_prob: -(-log_prob.sum(-1)).exp())
        assert broken("latentr3_perplexity_reward_range")
    with monkeypatch.context() as patch:
        patch.setattr(latentr3, "compared", lambda s: (s - latentr3_rl.batch_baseline(s)) / s.std())
        assert broken("latentr3_advantages_have_unit_norm")
    with monkeypatch.context() as patch:
        patch.setattr(latentr3, "compared", lambda s: s - s.mean(1, keepdim=True))
        assert broken("latentr3_two_prompts_grade_difficulty")
    assert "4.8% of prompts have advantages of one sign at sigma 1.5, and 100.0% at 0.1" in latentr3.loud_noise()


# ---------------------------------------------------------------------------------------------------------------------
# Directions


def test_the_expected_reward_by_hand():
    """A sigmoid has E(1 + e^-x) = 1 + e^(-r + sigma^2 / 2), rising by the exponential."""
    assert latentr3.expected_reward(SIGMOID, number([0.0]), 1.0).item() == pytest.approx(-1 - math.exp(0.5))
    assert latentr3.reward_gradient(SIGMOID, number([1.0]), 2.0).item() == pytest.approx(math.exp(-1 + 2))
    grid, weight = latentr3.normal_grid(2, 9.0, 0.5)
    by_grid = weight @ latentr3.rewards(THREE, number([0.3, -0.2]) + 0.7 * grid)
    assert latentr3.expected_reward(THREE, number([0.3, -0.2]), 0.7).item() == pytest.approx(by_grid.item())


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=2))
def test_directions_are_slopes(r):
    """They are those of log p in the latent, and of the log-density of the latents in their mean."""
    r = number(r)
    x = r.clone().requires_grad_()
    slope = torch.autograd.grad(latentr3.answer_log_prob(THREE, x), x)[0]
    torch.testing.assert_close(latentr3.likelihood_direction(THREE, r, r, 1.0), slope)
    mean, action = torch.zeros(2, dtype=torch.float64, requires_grad=True), r
    slope = torch.autograd.grad(torch.distributions.Normal(mean, 0.7).log_prob(action).sum(), mean)[0]
    torch.testing.assert_close(latentr3.gaussian_direction(THREE, mean.detach(), action, 0.7), slope)


@pytest.mark.parametrize("direction", [latentr3.likelihood_direction, latentr3.gaussian_direction])
@pytest.mark.parametrize("baseline", [None, -3.0])
def test_the_expected_update_over_all_groups(monkeypatch, direction, baseline):
    """Groups of three, the first without noise: one after the other, with the laboratory's advantages."""
    monkeypatch.setattr(latentr3, "GROUP", 3)
    r, (x, weight) = number([0.4]), latentr3.normal_grid(1, 7.0, 0.5)
    total = 0.0
    for i, j in itertools.product(range(len(x)), repeat=2):
        latents = r + 0.8 * torch.stack([torch.zeros(1, dtype=torch.float64), x[i], x[j]])
        s = latentr3.rewards(SIGMOID, latents)
        worth = advantages(s, 3, "mean") if baseline is None else s - baseline
        total += weight[i] * weight[j] * (worth @ direction(SIGMOID, r, latents, 0.8)) / 3
    update = latentr3.expected_update(SIGMOID, r, 0.8, direction, baseline, (x, weight))
    torch.testing.assert_close(update, total)


@given(st.floats(-3, 3), st.lists(st.floats(-3, 3), min_size=2, max_size=8, unique=True))
def test_between_two_tokens_no_group_is_right(r, noise):
    """The reward rises with the latent and the likelihood's gradient falls: their covariance is never positive."""
    latents = r + number(noise)[:, None]
    s, g = latentr3.rewards(SIGMOID, latents), latentr3.likelihood_direction(SIGMOID, latents[0], latents, 1.0)
    assert (advantages(s, len(noise), "mean") @ g).item() <= 1e-12


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=2), st.floats(-6, -1))
def test_what_the_update_is(r, baseline):
    """E (s - b) grad log p = -grad E s - b grad E log p."""
    r, (x, weight) = number(r).requires_grad_(), latentr3.normal_grid(2, 9.0, 0.3)
    mean = weight @ latentr3.answer_log_prob(THREE, r + 0.5 * x)
    likelihood = torch.autograd.grad(mean, r)[0]
    latents = r.detach() + 0.5 * x
    g = latentr3.likelihood_direction(THREE, r.detach(), latents, 0.5)
    update = (weight * (latentr3.rewards(THREE, latents) - baseline)) @ g
    expected = -latentr3.reward_gradient(THREE, r.detach(), 0.5) - baseline * likelihood
    torch.testing.assert_close(update, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_the_other_direction_flips_both_verdicts(monkeypatch):
    gaussian, likelihood = latentr3.gaussian_direction, latentr3.likelihood_direction
    with monkeypatch.context() as patch:
        patch.setattr(latentr3, "likelihood_direction", gaussian)
        assert LEDGER["latentr3_surrogate_follows_reward"].check(Trial()).verdict == HOLDS
    for wrong in (likelihood, lambda head, r, latents, sigma: gaussian(head, r, latents, sigma) * sigma):
        with monkeypatch.context() as patch:
            patch.setattr(latentr3, "gaussian_direction", wrong)
            assert broken("latentr3_score_function_follows_reward")


def test_the_counterexample_by_quadrature():
    """s(x) = -(1 + e^-x), g(x) = 1 / (1 + e^x); seven noisy latents of eight, the un-noised one has advantage 0."""

    def weighted(x):
        return (1 - math.exp(-x)) / (1 + math.exp(x)) * stats.norm.pdf(x)

    update = 7 / 8 * integrate.quad(weighted, -12, 12)[0]
    assert f"the update is {update:+.3f} on average" in latentr3.two_tokens()
    assert f"the gradient of the expected reward {math.exp(0.5):+.3f}" in latentr3.two_tokens()


@pytest.mark.slow
def test_a_scaled_advantage_is_biased(monkeypatch):
    kinds = {"mean": "std", "leave-one-out": "std"}
    monkeypatch.setattr(latentr3, "advantages", lambda s, group, kind: advantages(s, group, kinds[kind]))
    assert broken("latentr3_score_function_follows_reward")


# ---------------------------------------------------------------------------------------------------------------------
# Several devices


def test_the_surrogate_s_gradient_by_finite_differences():
    """A = (s - b) / norm is held constant; l is that of each prompt's own latents."""
    generator = torch.Generator().manual_seed(0)
    head, _ = latentr3.decoders(generator, 2, 5, 3)
    maps, hidden, noise = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((2, 3, 4), (2, 4), (2, 6, 3))
    )

    def log_prob(p, matrix):
        return (((matrix @ hidden[p] + noise[p]) @ head[p].T).log_softmax(-1))[:, 0]

    reward = torch.stack([-(-log_prob(p, maps[p])).exp() for p in range(2)])
    gap = reward - reward[:, 0].mean()
    weight = gap / (gap.norm() + 1e-6)
    found = latentr3.surrogate_gradients(maps, head, hidden, noise)
    for p, d, h in itertools.product(range(2), range(3), range(4)):
        step = torch.zeros(3, 4, dtype=torch.float64)
        step[d, h] = 1e-6
        rise = log_prob(p, maps[p] + step) - log_prob(p, maps[p] - step)
        assert found[p, d, h].item() == pytest.approx((weight[p] @ rise / 6 / 2e-6).item(), rel=1e-4, abs=1e-8)


def test_devices_that_add_up_or_never_do_flip_the_verdict(monkeypatch):
    replicas = latentr3.replicas
    with monkeypatch.context() as patch:
        patch.setattr(latentr3, "replicas", lambda trial, number, together: replicas(trial, number, True))
        assert LEDGER["latentr3_devices_make_one_update"].check(Trial()).verdict == HOLDS
    with monkeypatch.context() as patch:
        patch.setattr(latentr3, "replicas", lambda trial, number, together: replicas(trial, number, False))
        assert broken("latentr3_devices_make_one_update")
    assert "2.08 apart" in latentr3.two_replicas()
