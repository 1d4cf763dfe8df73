"""CoLaR's claims: by hand, by property, and broken on purpose."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tinylatent_theory.claims import colar
from tinylatent_theory.claims.ledger import z_test
from torch.distributions import Normal
from verdicts import broken

positive = st.floats(0.05, 20)


# ---------------------------------------------------------------------------------------------------------------------
# The latent of a group


def test_root_c_by_hand():
    tokens = torch.tensor([[1.0, 2.0], [3.0, -2.0]])
    torch.testing.assert_close(colar.compressed(tokens), torch.tensor([4.0, 0.0]) / 2**0.5)
    assert "variance 1 make a latent of 2" in colar.equal_tokens()


@given(st.integers(1, 6), st.floats(-3, 3))
def test_equal_tokens_grow_by_root_c(c, value):
    latent = colar.compressed(torch.full((c, 1), value, dtype=torch.float64))
    assert latent.item() == pytest.approx(value * c**0.5)


@given(st.integers(1, 5), st.floats(0, 0.9))
def test_repeating_tokens_grow_by_their_correlations(c, repeat):
    """Tokens k apart have correlation repeat^k."""
    variance, _ = colar.growth(torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64), c, repeat)
    assert variance == pytest.approx(1 + 2 / c * sum((c - k) * repeat**k for k in range(1, c)))


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_another_power_of_c_flips_the_verdict(monkeypatch, power):
    monkeypatch.setattr(colar, "compressed", lambda tokens: tokens.sum(-2) / tokens.shape[-2] ** power)
    assert broken("colar_root_c_keeps_variance")


def test_order_by_hand():
    """The middle two of 00, 01, 10, 11 look alike; y <- 2 y + token makes 0, 1, 2, 3 of them."""
    chains = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    found = colar.latents(chains, torch.tensor([[1.0], [3.0]], dtype=torch.float64), 2)
    torch.testing.assert_close(found[:, 0, 0] * 2**0.5, torch.tensor([2.0, 4.0, 4.0, 6.0], dtype=torch.float64))
    assert colar.best_accuracy(found, torch.tensor([0, 1, 2, 3])) == 0.75
    assert colar.best_accuracy(found, torch.tensor([0, 1, 1, 2])) == 1


@given(st.lists(st.integers(0, 4), min_size=4, max_size=4), st.permutations(range(4)))
def test_order_inside_a_group_is_lost(chain, order):
    embedding = torch.arange(10, dtype=torch.float64).view(5, 2) ** 2
    both = torch.tensor([chain, [chain[i] for i in order]])
    first, second = colar.latents(both, embedding, 4)
    assert torch.equal(first, second)
    first, second = colar.latents(both, embedding, 1)
    assert torch.equal(first, second) == torch.equal(both[0], both[1])


def test_a_sum_that_weighs_places_flips_the_verdict(monkeypatch):
    monkeypatch.setattr(colar, "compressed", lambda x: (x * (1.0 + torch.arange(x.shape[-2]))[:, None]).sum(-2))
    assert broken("colar_sum_forgets_order")


# ---------------------------------------------------------------------------------------------------------------------
# The losses


def test_losses_by_hand():
    three, two, half = torch.tensor([3.0]), torch.tensor(2.0), torch.tensor(0.5)
    assert colar.soft_mse(three, two, 0.0).item() == 13
    entropy = Normal(0.0, 2.0).entropy().item()
    assert colar.soft_mse(three, two, 0.1).item() == pytest.approx(13 - 0.1 * entropy)
    assert colar.printed_nll(three, half).item() == pytest.approx(9 + math.log(0.5))
    assert colar.soft_mse_sigma(0.02) == pytest.approx(0.1)


@given(st.floats(-5, 5), positive, st.floats(0.6, 1.7).filter(lambda factor: abs(factor - 1) > 1e-3))
def test_any_other_sigma_is_worse(residual, alpha, factor):
    at = torch.tensor([1.0, factor], dtype=torch.float64) * colar.soft_mse_sigma(alpha)
    least, other = colar.soft_mse(torch.full((2,), residual, dtype=torch.float64), at, alpha)
    assert least < other


@given(positive)
def test_the_printed_loss_is_least_at_half_the_variance(root):
    residual = torch.tensor([root, -root], dtype=torch.float64)
    assert colar.best_sigma(lambda sigma: colar.printed_nll(residual, sigma)) == pytest.approx(root**2 / 2)
    assert colar.best_sigma(lambda sigma: -Normal(0.0, sigma).log_prob(residual)) == pytest.approx(root)


def test_the_sampled_loss_by_sampling():
    """Against draws of epsilon: fails for 1 of 10^6 seeds on correct code."""
    residual, sigma, alpha = torch.tensor([0.3, -1.1]), torch.tensor(0.7), 0.4
    epsilon = torch.randn(20000, 1, generator=torch.Generator().manual_seed(0))
    draws = ((residual + sigma * epsilon) ** 2).mean(1) - alpha * Normal(0.0, sigma).entropy()
    test = z_test(draws, colar.sampled_soft_mse(residual.double(), sigma.double(), alpha).item())
    assert not test.rejected, str(test)


def test_wrong_optima_and_losses_flip_the_verdicts(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(colar, "soft_mse_sigma", math.sqrt)
        assert broken("colar_soft_mse_sigma")
    with monkeypatch.context() as patch:
        patch.setattr(colar, "soft_mse", lambda r, sigma, alpha: r**2 + sigma**2 - alpha * sigma.log())
        assert broken("colar_soft_mse_sigma")
    with monkeypatch.context() as patch:
        patch.setattr(colar, "printed_nll", lambda r, sigma: r**2 / (2 * sigma**2) + sigma.log())
        assert broken("colar_printed_nll")
    assert "sigma = 0.5, the likelihood at 1" in colar.printed_optimum()


# ---------------------------------------------------------------------------------------------------------------------
# The policy ratio


def test_ratio_by_hand():
    """d log-densities of -(z - mu)^2 / 2: from 0 to 1 at z = 1 each gains a half, over sigma^2."""
    zero, one, sigma = torch.zeros(4), torch.ones(4), torch.full((4,), 2.0)
    assert colar.mean_log_ratio(one, zero, one, sigma).item() == 1 / 8
    assert "1.197 instead of 1.433" in colar.two_coordinates()


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(-2, 2), positive, st.integers(1, 9))
def test_the_ratio_is_a_geometric_mean(action, old, new, sigma, d):
    rows = [torch.full((d,), value, dtype=torch.float64) for value in (action, old, new, sigma)]
    one = Normal(new, sigma).log_prob(torch.tensor(action)) - Normal(old, sigma).log_prob(torch.tensor(action))
    assert colar.mean_log_ratio(*rows).item() == pytest.approx(one.item(), rel=1e-3, abs=1e-3)


def test_shares_outside_the_clip():
    ratio = torch.tensor([0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 3.0, 1.0])
    assert colar.share_clipped(ratio.log()[:, None]) == 0.5
    draws = Normal(-0.1, 0.3).icdf((torch.arange(10000) + 0.5) / 10000)
    assert colar.share_outside(-0.1, 0.09) == pytest.approx(colar.share_clipped(draws[:, None]), abs=1e-3)


def test_the_sum_over_the_width_flips_the_verdict(monkeypatch):
    mean = colar.mean_log_ratio
    monkeypatch.setattr(colar, "mean_log_ratio", lambda z, old, new, sigma: mean(z, old, new, sigma) * z.shape[-1])
    assert broken("colar_mean_density_ratio")


# ---------------------------------------------------------------------------------------------------------------------
# Decisions to go on


def test_stop_times_by_hand():
    assert colar.stop_times(3).stop.tolist() == [[False, True, False], [False, False, True], [False, False, False]]
    assert "is -0.25, and 0 with the stop alone counted" in colar.only_longer_is_right()


@given(st.integers(2, 5), st.integers(0, 9))
def test_likelihoods_of_stop_times_from_the_delimiter_s_probabilities(most, seed):
    """Going on at every step before, then stopping, or being cut; the first latent is not decided on."""
    chain = colar.Chain(most, torch.Generator().manual_seed(seed))
    inputs = torch.cat([chain.backbone.embedding[:1][None], chain.vectors_1Td], 1)
    end_T = chain.backbone.readout(chain.backbone.forward(inputs)[0])[0].softmax(-1)[1:, 5]
    expected = [end_T[:t].neg().log1p().sum() + (end_T[t].log() if t < most - 1 else 0.0) for t in range(most)]
    torch.testing.assert_close(chain.log_prob(True), torch.stack(expected))
    stops = [end_T[t].log() if t < most - 1 else end_T[t] * 0 for t in range(most)]
    torch.testing.assert_close(chain.log_prob(False), torch.stack(stops))


def test_counting_every_decision_flips_the_verdict(monkeypatch):
    whole = colar.Ending
    monkeypatch.setattr(colar, "Ending", lambda inner, end, temperature=1.0, go_on=True: whole(inner, end, temperature))
    assert broken("colar_go_on_is_left_out")
