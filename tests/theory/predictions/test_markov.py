"""The recursions of the linear Markov world, against enumeration of all draws and against the laboratory's thoughts."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tinylatent_theory.predictions.markov import (
    LinearMarkov,
    covariances,
    enumerated,
    expected_error,
    least_eigenvalue,
    means,
    random_world,
)

from tinylatent.core.seeds import Streams
from tinylatent.engine.force import force
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY, Dirichlet, Mixture, MultiToken, Token
from tinylatent.models.backbone import Backbone


def world(states, steps, seed):
    return random_world(states, steps, torch.Generator().manual_seed(seed))


def near(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@given(st.integers(2, 3), st.integers(1, 2), st.integers(1, 2), st.integers(0, 1000))
def test_recursions_are_sums_over_all_draws(states, steps, samples, seed):
    start, moves = world(states, steps, seed)
    mean, covariance = enumerated(start, moves, samples)
    near(mean, means(start, moves)[-1])
    near(covariance, covariances(start, moves, samples)[-1])


@given(st.integers(2, 7), st.integers(1, 5), st.integers(2, 12), st.integers(0, 1000))
def test_bounds(states, steps, samples, seed):
    """C1 / K <= CK <= C1 as quadratic forms, with equality on the left after a single sampled step."""
    start, moves = world(states, steps, seed)
    one, many = covariances(start, moves, 1), covariances(start, moves, samples)
    for c1, ck in zip(one, many, strict=True):
        assert least_eigenvalue(ck - c1 / samples) > -1e-12
        assert least_eigenvalue(c1 - ck) > -1e-12
    near(many[1], one[1] / samples)


def test_one_step_by_hand():
    """Two states, alpha (1/4, 3/4), identity: variance 3/16 for one token, 3/32 for two."""
    start, still = torch.tensor([0.25, 0.75], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    for samples, variance in ((1, 3 / 16), (2, 3 / 32)):
        near(covariances(start, [still], samples)[-1][0, 0], torch.tensor(variance, dtype=torch.float64))
    assert expected_error(covariances(start, [still], 1)[-1], 4) == pytest.approx((3 / 32, 2 * math.sqrt(3 / 64)))


@given(st.integers(2, 4), st.integers(1, 3), st.integers(0, 100))
def test_mixtures_are_the_mean_of_all_discrete_chains_through_the_engine(states, steps, seed):
    """Consistency: every chain of tokens, forced through the engine, weighted by its probability."""
    start, moves = world(states, steps, seed)
    model = LinearMarkov(start, moves)
    ids = torch.tensor([*itertools.product(range(states), repeat=steps)])
    thought, prompt = Token(temperature=1.0), torch.zeros(len(ids), 1, dtype=torch.int64)
    last = GREEDY.given(torch.zeros(len(ids), 1, dtype=torch.int64))
    plan = (Segment(thought, steps, thought.given(ids)), Segment(GREEDY, 1, last))
    run = force(model, plan, prompt)
    chance = run.log_prob_BT[:, :-1].sum(1).exp()
    near(chance.sum(), torch.ones(()).double())
    mixed = rollout(model, (Segment(Mixture(), steps), Segment(GREEDY, 1)), prompt[:1]).logits_BTV[0, -1].exp()
    near(chance @ run.logits_BTV[:, -1].exp(), mixed)
    near(mixed, means(start, moves)[-1])


@pytest.mark.parametrize(
    ("thought", "samples"), [(Token(1.0), 1), (MultiToken(2), 2), (MultiToken(5), 5), (Dirichlet(0.5), 1.5)]
)
def test_sampled_thoughts_have_the_predicted_moments(thought, samples):
    """Every entry of mean and covariance of 20,000 runs within six standard errors: false alarms below 1e-7 a test."""
    start, moves = world(4, 2, 7)
    rows = 20_000
    plan = (Segment(thought, 2), Segment(GREEDY, 1))
    streams = Streams(3, torch.arange(rows))
    run = rollout(LinearMarkov(start, moves), plan, torch.zeros(rows, 1, dtype=torch.int64), streams=streams)
    alpha = run.logits_BTV[:, -1].exp()
    mean, covariance = means(start, moves)[-1], covariances(start, moves, samples)[-1]
    assert ((alpha.mean(0) - mean).abs() < 6 * (covariance.diagonal() / rows).sqrt()).all()
    products = (alpha - mean)[:, :, None] * (alpha - mean)[:, None]
    assert ((products.mean(0) - covariance).abs() < 6 * products.std(0) / rows**0.5).all()


def test_it_is_a_backbone_that_says_where_it_ends():
    model = LinearMarkov(*world(3, 2, 0))
    assert isinstance(model, Backbone)
    with pytest.raises(ValueError, match="step 4 of a world with 3"):
        rollout(model, (Segment(Mixture(), 3), Segment(GREEDY, 1)), torch.zeros(1, 1, dtype=torch.int64))


def test_bad_sizes_are_told():
    start, moves = world(3, 2, 0)
    for call, words in (
        (lambda: covariances(start, moves, 0), "0 samples: expected at least 1"),
        (lambda: expected_error(moves[0], 0), "0 chains: expected at least 1"),
        (lambda: world(0, 3, 0), "0 states and 3 steps"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
