"""The claims about CTRLS-style thoughts: by hand, by property, and broken on purpose."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tinylatent_theory.claims import ctrls, ctrls_states
from tinylatent_theory.claims.ledger import LEDGER, Trial, z_test
from torch.distributions import Dirichlet, kl_divergence
from verdicts import broken, number

from tinylatent.core.seeds import Streams
from tinylatent.engine.distributions import log_dirichlet
from tinylatent.lab.findings import HOLDS

concentrations = st.lists(st.floats(0.05, 20), min_size=2, max_size=5)
unit = st.floats(0.02, 0.98)


# ---------------------------------------------------------------------------------------------------------------------
# Draws


def test_draws_by_hand():
    """Polya's urn: 2 and 1 balls, each draw adds one of its colour."""
    alpha = number([2.0, 1.0])
    for counts, chance in (([1, 0], 2 / 3), ([2, 0], 2 / 3 * 3 / 4), ([1, 1], 2 / 3 * 1 / 4)):
        assert ctrls.draws_log_prob(alpha, torch.tensor(counts)).exp().item() == pytest.approx(chance)
    assert ctrls.integrated(alpha, 0, 2, ctrls.simplex_grid()) == pytest.approx(1 / 2)


@given(concentrations, st.floats(0.1, 100))
def test_one_draw_does_not_see_the_sum(alpha, factor):
    once = torch.eye(len(alpha), dtype=torch.int64)
    for k in range(len(alpha)):
        chance = ctrls.draws_log_prob(factor * number(alpha), once[k]).exp().item()
        assert chance == pytest.approx(alpha[k] / sum(alpha))


def test_two_draws_by_sampling():
    """Against the laboratory's sampler: fails for 1 of 10^6 seeds on correct code."""
    alpha = number([0.4, 1.1, 0.7])
    log_a = log_dirichlet(Streams(0, torch.arange(20000)), alpha.log().expand(20000, 3))
    test = z_test((2 * log_a[:, 1]).exp(), ctrls.draws_log_prob(alpha, torch.tensor([0, 2, 0])).exp().item())
    assert not test.rejected, str(test)


def test_a_wrong_total_flips_the_verdict(monkeypatch):
    def without_total(alpha, counts):
        return (torch.lgamma(alpha + counts) - torch.lgamma(alpha)).sum()

    monkeypatch.setattr(ctrls, "draws_log_prob", without_total)
    assert broken("ctrls_alpha0_is_invisible")


# ---------------------------------------------------------------------------------------------------------------------
# The entropy bonus


def test_entropies_by_hand():
    """The uniform law lives on a simplex of volume 1 / Gamma(K); variances 1/12 each for a uniform a_1."""
    for K in (2, 3, 6):
        assert ctrls.dirichlet_entropy(torch.ones(K)).item() == pytest.approx(-math.lgamma(K), abs=1e-5)
    assert ctrls.total_variance(number([1.0, 1.0])).item() == pytest.approx(2 / 12)
    assert ctrls.state_entropy(number([5.0, 5.0])).item() == pytest.approx(math.log(2))
    assert "the variance of a_1 falls from 0.1250 to" in ctrls.two_halves()


@given(concentrations)
def test_entropy_and_variance_against_torch(alpha):
    law = Dirichlet(number(alpha))
    assert ctrls.dirichlet_entropy(number(alpha)).item() == pytest.approx(law.entropy().item(), abs=1e-9)
    assert ctrls.total_variance(number(alpha)).item() == pytest.approx(law.variance.sum().item())
    short = -math.lgamma(len(alpha)) - ctrls.dirichlet_entropy(number(alpha)).item()
    ones = Dirichlet(torch.ones(len(alpha), dtype=torch.float64))
    assert short == pytest.approx(kl_divergence(law, ones).item(), abs=1e-9)  # so it is positive, but at ones


def test_the_largest_by_ascent():
    x, value = ctrls.largest(lambda x: -((x - number([1.0, -2.0])) ** 4).sum() + 3, number([0.0, 0.0]))
    torch.testing.assert_close(x, number([1.0, -2.0]), rtol=0, atol=1e-2)
    assert value == pytest.approx(3)


@given(st.floats(1.01, 30), st.integers(2, 6))
def test_equal_concentrations_are_drawn_to_one(alpha, K):
    """From above 1 the bonus widens a, from below it narrows it."""
    for start, sign in ((alpha, 1), (1 / alpha, -1)):
        effect = ctrls.bonus_effect(torch.full((1, K), math.log(start), dtype=torch.float64), ctrls.total_variance)
        assert effect.item() == pytest.approx(sign)


def test_other_entropies_flip_the_verdicts(monkeypatch):
    entropy = ctrls.dirichlet_entropy
    with monkeypatch.context() as patch:
        patch.setattr(ctrls, "dirichlet_entropy", ctrls.state_entropy)
        assert broken("ctrls_entropy_is_largest_at_ones")
    with monkeypatch.context() as patch:
        patch.setattr(ctrls, "dirichlet_entropy", lambda alpha: entropy(alpha) + alpha.sum(-1).log() / 100)
        assert broken("ctrls_entropy_is_largest_at_ones")
    with monkeypatch.context() as patch:
        patch.setattr(ctrls, "dirichlet_entropy", lambda alpha: -entropy(alpha))
        assert broken("ctrls_entropy_bonus_widens")
    with monkeypatch.context() as patch:
        patch.setattr(ctrls, "total_variance", ctrls.state_entropy)
        assert LEDGER["ctrls_entropy_bonus_widens"].check(Trial()).verdict == HOLDS


# ---------------------------------------------------------------------------------------------------------------------
# Exploration


def test_explored_rewards_by_hand():
    """E a_1 = (1 - epsilon) 2/3 + epsilon / 2; E a_1 a_2 = 2/12 under (2, 1) and 1/6 under ones."""
    alpha = number([2.0, 1.0])
    assert ctrls.explored_reward(alpha, 0.2, (1, 0)).item() == pytest.approx(0.8 * 2 / 3 + 0.1)
    assert ctrls.explored_reward(alpha, 0.2, (1, 1)).item() == pytest.approx(1 / 6)


@given(st.lists(st.floats(0.2, 9), min_size=2, max_size=2), st.floats(0.01, 0.99))
def test_the_naive_bias_under_a_constant_reward(alpha, epsilon):
    """epsilon E_uniform[grad log Dir]: psi(alpha_0) - psi(alpha_k) + E log a_k, and E log a_k = -1 if uniform."""
    x = number(alpha)
    ones = torch.ones(len(ctrls.simplex_grid()[0]), dtype=torch.float64)
    found = ctrls.expected_score(ctrls.naive_log_density, x, epsilon, ones)
    torch.testing.assert_close(found, epsilon * (torch.digamma(x.sum()) - torch.digamma(x) - 1), rtol=1e-7, atol=1e-9)
    mixed = ctrls.expected_score(ctrls.mixed_log_density, x, epsilon, ones)
    torch.testing.assert_close(mixed, torch.zeros_like(x), rtol=0, atol=1e-9)


def test_densities_swapped_or_unweighted_flip_the_verdicts(monkeypatch):
    mixed = ctrls.mixed_log_density
    with monkeypatch.context() as patch:
        patch.setattr(ctrls, "naive_log_density", mixed)
        assert LEDGER["ctrls_naive_density_under_epsilon_greedy"].check(Trial()).verdict == HOLDS
    with monkeypatch.context() as patch:
        patch.setattr(ctrls, "mixed_log_density", lambda alpha, epsilon, grid: mixed(alpha, epsilon / 2, grid))
        assert broken("ctrls_mixture_density_is_exact")
    assert "(-0.1000, 0.1000) with the density of the Dirichlet, (0.0000, 0.0000)" in ctrls.two_and_one()


# ---------------------------------------------------------------------------------------------------------------------
# States


def test_the_bound_by_hand():
    """A uniform posterior of a state that is kept for sure, text of probability 1: KL = log 2 at the second step."""
    half, keep = number([0.5, 0.5]), number([[1 - 1e-15, 1e-15], [1e-15, 1 - 1e-15]])
    text = torch.ones(2, 2, dtype=torch.float64)
    assert ctrls_states.elbo(half, keep[None], half, keep, text).item() == pytest.approx(0)
    certain = number([1 - 1e-15, 1e-15])
    bound = ctrls_states.elbo(certain, certain.expand(1, 2, 2), half, keep, text)
    assert bound.item() == pytest.approx(-math.log(2), abs=1e-9)
    assert "log P(x) is -1.3863, the best factorised bound -1.8841" in ctrls_states.copied_state()


@given(unit, st.lists(unit, min_size=4, max_size=4), unit, st.lists(unit, min_size=2, max_size=2), st.integers(0, 99))
def test_the_bound_is_an_expectation(first, following, initial, transition, seed):
    """E_Q[log P(x, z) - log Q(z)], over all eight sequences."""
    pair = [torch.stack([number(x), 1 - number(x)], -1) for x in (first, following, initial, transition)]
    q, rows, p, P = pair[0], pair[1].view(2, 2, 2), pair[2], pair[3]
    text = torch.rand(3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    joint, expected = ctrls_states.chains(p, P, text), 0.0
    for place, (a, b, c) in enumerate(itertools.product(range(2), repeat=3)):
        chance = q[a] * rows[0, a, b] * rows[1, b, c]
        expected += chance * (joint[place] / chance).log()
    bound = ctrls_states.elbo(q, rows, p, P, text)
    assert bound.item() == pytest.approx(expected.item())
    assert bound <= joint.sum().log() + 1e-12


@given(st.lists(unit, min_size=3, max_size=3), st.integers(0, 99))
def test_forgetful_transitions_have_a_factorised_posterior(chances, seed):
    """Each state's posterior is its prior times its evidence, alone."""
    p, row = number([chances[0], 1 - chances[0]]), number([chances[1], 1 - chances[1]])
    text = torch.rand(3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    first, rows = ctrls_states.posterior(ctrls_states.chains(p, row.expand(2, 2), text), 3)
    torch.testing.assert_close(first, p * text[0] / (p @ text[0]))
    torch.testing.assert_close(rows, (row * text[1:] / (text[1:] @ row)[:, None])[:, None].expand(2, 2, 2))


@pytest.mark.slow
def test_a_bound_without_its_divergence_flips_the_verdicts(monkeypatch):
    elbo = ctrls_states.elbo

    def rewarded(first, rows, initial, transition, text):
        return elbo(first, rows, initial, transition, text) - (first @ (initial / first).log())

    monkeypatch.setattr(ctrls_states, "elbo", rewarded)
    assert broken("ctrls_elbo")
    assert broken("ctrls_factorised_posterior_is_exact")


def test_gram_by_hand():
    tokens = number([[3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert ctrls_states.gram_eigenvalues(tokens).tolist() == pytest.approx([9, 2])
    assert ctrls_states.gram_eigenvalues(tokens, divide=True).tolist() == pytest.approx([3, 2 / 3])


@given(st.permutations(range(6)), st.integers(0, 99), st.integers(1, 4))
def test_order_and_copies(order, seed, copies):
    tokens = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rotation = torch.linalg.qr(tokens[:3])[0]
    values = ctrls_states.gram_eigenvalues(tokens)
    torch.testing.assert_close(ctrls_states.gram_eigenvalues(tokens[list(order)] @ rotation), values)
    many = ctrls_states.gram_eigenvalues(tokens.repeat(copies, 1))
    torch.testing.assert_close(many, copies * values)


def test_weighed_places_or_no_division_flip_the_verdict(monkeypatch):
    gram = ctrls_states.gram_eigenvalues
    for wrong in (
        lambda tokens, divide=False: gram(tokens * torch.arange(1.0, len(tokens) + 1)[:, None], divide),
        lambda tokens, divide=False: gram(tokens),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(ctrls_states, "gram_eigenvalues", wrong)
            assert broken("ctrls_gram_forgets_order")


@pytest.mark.parametrize("logit", [-1000.0, 40.0, 1000.0])
def test_a_posterior_that_is_sure_has_a_bound(logit):
    """An ascent may step there: the bound and its gradient are numbers."""
    logits_T = torch.full((3,), logit, dtype=torch.float64, requires_grad=True)
    half_2, half_22 = torch.full((2,), 0.5, dtype=torch.float64), torch.full((2, 2), 0.5, dtype=torch.float64)
    bound = ctrls_states.elbo(
        *ctrls_states.factorised(logits_T), half_2, half_22, torch.full((3, 2), 0.5, dtype=torch.float64)
    )
    assert bound.item() == pytest.approx(6 * math.log(0.5), abs=1e-9)
    assert torch.autograd.grad(bound, logits_T)[0].isfinite().all()


def test_clusters_of_all_tokens_so_far_are_the_index_where_steps_are_alike():
    """Every chain the same: eigenvalues are a function of the index, and clusters find it; own ones are constant."""
    tokens = number([[1.0, 0.0], [0.0, 2.0]]).expand(5, 3, 2, 2)
    so_far, own = ctrls_states.eigenvalues_so_far(tokens), ctrls_states.own_eigenvalues(tokens)
    torch.testing.assert_close(so_far[4], number([[4.0, 1.0], [8.0, 2.0], [12.0, 3.0]]))
    torch.testing.assert_close(own, so_far[:, :1].expand(-1, 3, -1))
    assert ctrls_states.agreement_with_index(so_far, 0) == pytest.approx(1)
    assert ctrls_states.agreement_with_index(own, 0) == 0


@pytest.mark.parametrize(("put", "instead"), [("eigenvalues_so_far", "own"), ("own_eigenvalues", "so_far")])
def test_own_tokens_for_all_so_far_or_the_reverse_flip_the_verdict(monkeypatch, put, instead):
    others = {"own": ctrls_states.own_eigenvalues, "so_far": ctrls_states.eigenvalues_so_far}
    monkeypatch.setattr(ctrls_states, put, others[instead])
    assert broken("ctrls_cumulative_states_count_steps")


def test_changes_by_hand():
    """One token: its feature is itself, up to the sign that makes its largest entry positive."""
    assert ctrls_states.change(number([[3.0, 1.0]]), number([[0.0, 1e-3]])) == pytest.approx(1)
    assert ctrls_states.change(number([[1.0, -2.0]]), number([[2e-3, 0.0]])) == pytest.approx(1)
    assert ctrls_states.change(number([[1.0, -1.01]]), number([[0.0, 0.02]])) == pytest.approx(
        2.0 / 0.02 * 2**0.5, rel=0.1
    )
    assert "8e+05 times as far" in ctrls_states.near_ties()


def test_eigenvalues_alone_are_continuous_and_turned_vectors_never(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ctrls_states, "change", lambda tokens, shift: 0.5)
        assert LEDGER["ctrls_features_are_continuous"].check(Trial()).verdict == HOLDS
    with monkeypatch.context() as patch:
        patch.setattr(ctrls_states, "change", lambda tokens, shift: 1 / shift.norm().item())
        assert broken("ctrls_features_are_continuous")
