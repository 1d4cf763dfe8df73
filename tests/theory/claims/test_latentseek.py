"""LatentSeek's claims: by hand, by property, and broken on purpose."""

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tinylatent_theory.claims import latentseek, latentseek_oracle
from tinylatent_theory.claims.latentseek_oracle import chances
from tinylatent_theory.claims.ledger import LEDGER, Trial
from verdicts import broken, number

from tinylatent.lab.findings import HOLDS

logit = st.floats(-4, 4)
HEAD = torch.tensor([[1.0, 0.5], [-1.0, 2.0], [0.0, -1.0]], dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------------------
# The gradient


def test_scores_by_hand():
    """Two tokens at p = 3/4: the score of the first is 1 - (3/4 - 1/4), of the second -1 - (3/4 - 1/4)."""
    z, head = number([[3.0]]).log() / 2, number([[1.0], [-1.0]])
    for token, score in ((0, 0.5), (1, -1.5)):
        assert latentseek.token_score(z, head, torch.tensor([token])).item() == pytest.approx(score)
    assert latentseek.token_log_prob(z, head, torch.tensor([0])).exp().item() == pytest.approx(0.75)
    assert "probability 0.75, both worth -1: the gradient is 0, the update -0.5" in latentseek.constant_reward()


def test_objective_by_hand():
    """Probabilities 3/4, 1/4 at one position and 1/2, 1/2 at the other; rewards 00, 01, 10, 11."""
    z, head = number([[math.log(3) / 2], [0.0]]), number([[1.0], [-1.0]])
    assert latentseek.objective(z, head, number([8.0, 4.0, 2.0, 0.0])).item() == pytest.approx(3 + 1.5 + 0.25)
    assert latentseek.looked_up(number([8.0, 4.0, 2.0, 0.0]), 2)(torch.tensor([1, 0])) == 2


@given(st.lists(logit, min_size=2, max_size=2), st.integers(0, 2))
def test_the_score_is_the_slope_of_the_log_probability(z, token):
    x = number([z]).requires_grad_()
    tokens = torch.tensor([token])
    slope = torch.autograd.grad(latentseek.token_log_prob(x, HEAD, tokens).sum(), x)[0]
    torch.testing.assert_close(latentseek.token_score(x.detach(), HEAD, tokens), slope)


@given(st.lists(logit, min_size=4, max_size=4), st.lists(st.floats(-1, 0), min_size=9, max_size=9), st.floats(-2, 2))
def test_a_baseline_changes_no_mean(z, reward, baseline):
    """Against differences of J, by hand over all nine prefixes."""
    z, reward = number(z).view(2, 2), number(reward)

    def mean(z):
        p = (z @ HEAD.T).softmax(-1)
        return sum(p[0, i] * p[1, j] * reward[3 * i + j] for i, j in itertools.product(range(3), repeat=2))

    update = latentseek.sampled_update(z, HEAD, reward - baseline)
    for n, d in itertools.product(range(2), repeat=2):
        step = torch.zeros(2, 2, dtype=torch.float64)
        step[n, d] = 1e-5
        assert update[n, d].item() == pytest.approx(((mean(z + step) - mean(z - step)) / 2e-5).item(), abs=1e-8)


@given(st.lists(logit, min_size=4, max_size=4))
def test_one_wrong_prefix_is_the_exception(z):
    """Where no other prefix has a reward, the update is the gradient over the prefix's probability."""
    z, reward = number(z).view(2, 2), torch.zeros(9, dtype=torch.float64)
    said = latentseek.shown(z, HEAD)
    reward.view(3, 3)[tuple(said)] = -1
    chance = latentseek.token_log_prob(z, HEAD, said).sum().exp()
    update = latentseek.argmax_update(z, HEAD, latentseek.looked_up(reward, 3))
    torch.testing.assert_close(chance * update, latentseek.objective_gradient(z, HEAD, reward), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_other_scores_flip_the_verdicts(monkeypatch):
    ascent = latentseek.ascent

    def uncentred(read, z, ids, reward):
        """W[x_t] without what is expected of it."""
        head = read(z).table.weight
        return torch.einsum("bm,bmnd->bnd", reward / reward.shape[1], head[ids])

    for wrong in (lambda *arguments: 2 * ascent(*arguments), uncentred):
        with monkeypatch.context() as patch:
            patch.setattr(latentseek, "ascent", wrong)
            assert broken("latentseek_sampled_update_is_policy_gradient")

    def all_prefixes(z, head, reward):
        every = latentseek.prefixes(len(head), len(z))
        return latentseek.sampled_update(z, head, number([reward(x) for x in every]))

    monkeypatch.setattr(latentseek, "argmax_update", all_prefixes)
    assert LEDGER["latentseek_argmax_update_is_policy_gradient"].check(Trial()).verdict == HOLDS


# ---------------------------------------------------------------------------------------------------------------------
# The search


def test_search_by_hand():
    """Adam's first steps are the rate: z = 0.045 falls by 0.03 until the other token stands."""
    z, head = latentseek.between_two(0.045)
    path = latentseek.search(z, head, latentseek.constant(-1.0), steps=2)
    torch.testing.assert_close(path.flatten(), number([0.045, 0.015, -0.015]), rtol=0, atol=1e-4)
    assert latentseek.shown(path, head).flatten().tolist() == [0, 0, 1]
    assert len(latentseek.search(z, head, latentseek.psrm(torch.tensor([True, False]), 2), steps=9)) == 1
    assert len(latentseek.search(z, head, latentseek.psrm(torch.tensor([False, True]), 2), steps=9)) == 3
    assert len(latentseek.search(z, head, latentseek.constant(-1 / 6), steps=9)) == 1  # above the threshold


@given(st.floats(-8, 8).filter(lambda gap: abs(gap) > 1e-3), st.floats(-1, -0.25))
def test_the_first_step_is_a_sign(gap, worth):
    z, head = latentseek.between_two(gap)
    step = latentseek.first_step(z, head, worth).item()
    assert step == pytest.approx(-math.copysign(latentseek.RATE, gap), rel=1e-3)


def test_near_certainty():
    """A gradient g moves by g / (g + 1e-8) of the rate."""
    z, head = latentseek.between_two(-math.log(3e-8))  # the gradient of the shown token is 3e-8 at reward -1
    assert abs(latentseek.first_step(z, head, -1.0).item()) / latentseek.RATE == pytest.approx(3 / 4, rel=1e-3)
    assert abs(latentseek.first_step(z, head, -1 / 3).item()) / latentseek.RATE == pytest.approx(1 / 2, rel=1e-3)
    assert "0.5 of the rate at reward -1 and 0.25 of it at -1/3" in latentseek.nearly_certain()


@given(st.lists(logit, min_size=4, max_size=4), st.floats(0.01, 1000), st.floats(-1.3, -0.01))
def test_a_plain_step_walks_away_at_any_rate(z, rate, worth):
    z = number(z).view(2, 2)
    step = rate * latentseek.argmax_update(z, HEAD, latentseek.constant(worth))
    rise = latentseek.rises(torch.stack([z, z + step]), HEAD)
    assert (rise < 0).all()
    assert (rise <= -(step**2).sum(-1) / (rate * -worth) * (1 - 1e-9)).all()


@pytest.mark.slow
def test_other_optimisers_and_rewards_flip_the_verdicts(monkeypatch):
    update, psrm = latentseek.argmax_update, latentseek.psrm
    with monkeypatch.context() as patch:
        patch.setattr(latentseek, "psrm", lambda accepted, V: lambda x: psrm(accepted, V)(x) / 2)
        assert broken("latentseek_psrm_is_constant_reward_with_oracle_stop")
    with monkeypatch.context() as patch:
        patch.setattr(latentseek, "advanced", partial(latentseek.advanced, optimizer="sgd"))
        assert broken("latentseek_adam_erases_reward_size")
        assert LEDGER["latentseek_negative_reward_only_walks_away"].check(Trial()).verdict == HOLDS
    with monkeypatch.context() as patch:
        patch.setattr(latentseek, "argmax_update", lambda z, head, reward: -update(z, head, reward))
        assert broken("latentseek_negative_reward_only_walks_away")
    assert "tokens 0, 0, then 1; the third step raises the log-probability of 1" in latentseek.momentum()


# ---------------------------------------------------------------------------------------------------------------------
# What an oracle stop is worth


def test_chances_by_hand():
    """Two tokens at 3/4 and 1/4, the second right: n samples find it but for (3/4)^n, the search once it turns."""
    z, head = latentseek.between_two(math.log(3))
    law = torch.ones(2, dtype=torch.float64)
    for proposals in (1, 3, 40):
        found = chances(z, head, law, proposals)
        assert found.samples == pytest.approx(1 - 0.75**proposals)
        assert found.search == (proposals > math.log(3) / latentseek.RATE)
        assert found.most == 1
    assert chances(z, head, law, 3, rate=1.0).search == 1
    assert "wrong one of probability 0.7311" in latentseek_oracle.same_wrong_answer()
    assert "with probability 0, samples with 0.9564" in latentseek_oracle.same_wrong_answer()


def test_no_proposals_find_more_than_as_many_of_the_likeliest():
    for case in range(10):
        z, head, reward = latentseek.drawn(Trial(), "most", case, 4, 2, 3)
        for law in (-reward, latentseek.token_log_prob(z, head, latentseek.prefixes(4, 2)).sum(1).exp()):
            found = chances(z, head, law, 5, rate=0.3)
            assert max(found.search, found.samples) <= found.most + 1e-12
            assert 0 < found.samples < 1


@pytest.mark.slow
def test_a_search_that_tries_the_likeliest_first_would_hold(monkeypatch):
    def likeliest(z, head, reward, steps, rate):
        """Latents that say the greedy prefix, then all others, the likeliest first."""
        every = latentseek.prefixes(len(head), len(z))
        order = latentseek.token_log_prob(z, head, every).sum(1).argsort(descending=True)
        return every[order[: steps + 1]]

    monkeypatch.setattr(latentseek_oracle, "search", likeliest)
    shown = latentseek.shown
    monkeypatch.setattr(latentseek_oracle, "shown", lambda z, head: z if z.dtype == torch.int64 else shown(z, head))
    assert LEDGER["latentseek_oracle_stop_beats_pass_at_n"].check(Trial()).verdict == HOLDS


# ---------------------------------------------------------------------------------------------------------------------
# Precision


def test_bfloat16_by_hand():
    values = torch.tensor([4.0, 7.96875, 8.0, 8.0625, 20.0], dtype=torch.bfloat16)
    up, down = (latentseek.released_step(values, gradient) for gradient in (-1.0, 1.0))
    assert up.tolist() == [4.03125, 8.0, 8.0, 8.0625, 20.0]
    assert down.tolist() == [3.96875, 7.9375, 7.96875, 8.0625, 20.0]
    assert len(latentseek.bfloat16_values()) == 2**16 - 2 * 2**7 - 1  # no infinities, no NaN, one zero
    assert "8.125 after a step of 0.03 is 8.125; after one of 0.05 it is 8.1875" in latentseek.stuck_at_eight()


@given(st.floats(8.1, 1e6), st.sampled_from([-1.0, 1.0]))
def test_large_numbers_stay_and_single_precision_moves(value, gradient):
    coarse = torch.tensor([value], dtype=torch.bfloat16)
    assert latentseek.released_step(coarse, gradient).equal(coarse)
    if value < 2**18:
        fine = torch.tensor([value], dtype=torch.float32)
        assert not latentseek.released_step(fine, gradient).equal(fine)


def test_single_precision_flips_the_verdict(monkeypatch):
    step = latentseek.released_step
    monkeypatch.setattr(latentseek, "released_step", lambda x, gradient: step(x.float(), gradient))
    assert LEDGER["latentseek_bfloat16_steps"].check(Trial()).verdict == HOLDS
