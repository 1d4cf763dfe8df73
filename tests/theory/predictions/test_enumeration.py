"""The enumeration is what it says: against brute force over ordered draws and whole groups, scipy, and GRPO itself.

Monte Carlo checks fix their seed; each states how often it would fail, on correct code, if the seed were drawn anew.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy import integrate, stats
from tinylatent_theory.predictions.enumeration import (
    CHUNK,
    Moments,
    StraightThrough,
    World,
    combined,
    dirichlet_information,
    gradient,
    group_estimate,
    objective,
    score_moments,
    simplex_paths,
    straight_through,
    token_information,
    token_paths,
    walked,
)

from tinylatent.core.seeds import Streams
from tinylatent.engine.distributions import dirichlet_log_density, log_concentration, log_dirichlet
from tinylatent.engine.thought import State
from tinylatent.engine.thoughts import Dirichlet, MultiToken
from tinylatent.methods import GRPO
from tinylatent.models.backbone import Table
from tinylatent.objectives.method import Model, TrainState
from tinylatent.objectives.policy_gradient import advantages

KINDS = ("none", "leave-one-out", "mean", "std")


def near(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------------------------------------------------------------
# The objective and its gradient, by brute force


def ordered_objective(world, samples, temperature=1.0):
    """J by every ordered draw of every step, each path from its whole sequence: no engine, no multisets."""
    model, total = world.model, 0.0

    def read(inputs):
        hidden_SD, _ = model.forward(torch.stack(inputs)[None])
        return model.embedding @ hidden_SD[0, -1]

    def from_here(inputs, step, right):
        logits_V = read(inputs)
        if step == world.steps:
            return logits_V.softmax(0)[right]
        p_V, value = (logits_V / temperature).softmax(0), 0.0
        for ids in itertools.product(range(world.vocabulary), repeat=samples):
            chance = math.prod([p_V[i] for i in ids], start=torch.ones(()).double())
            value = value + chance * from_here(
                [*inputs, sum(model.embedding[i] for i in ids) / samples], step + 1, right
            )
        return value

    for prompt, right in enumerate(world.answers):
        total = total + from_here([model.embedding[prompt]], 0, right)
    return total / world.vocabulary


@pytest.mark.parametrize(
    ("vocabulary", "steps", "samples", "temperature"), [(3, 2, 1, 1.0), (2, 3, 2, 1.0), (3, 1, 3, 1.0), (2, 2, 3, 3.0)]
)
def test_objective_and_gradient_by_ordered_draws(vocabulary, steps, samples, temperature):
    world = World(vocabulary, steps, seed=1)
    ours = objective(world, token_paths(MultiToken(samples, temperature), vocabulary, steps))
    theirs = ordered_objective(world, samples, temperature)
    near(ours, theirs)
    near(gradient(world, ours), gradient(world, theirs))
    assert gradient(world, ours).norm() > 1e-3


def test_paths_are_all_multisets():
    paths = token_paths(MultiToken(3), 4, 2)
    assert len(paths.log_weight) == math.comb(6, 3) ** 2
    assert paths.log_weight.exp().sum().item() == pytest.approx(4**6)
    assert [len(part.log_weight) for part in paths.cut(CHUNK)] == [64] * 6 + [16]


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [0.7, 2.0, 5.0])
def test_the_grid_is_scipys_integral(gamma):
    """One latent step over the simplex of two tokens, by adaptive quadrature of the plain Dirichlet density."""
    world, thought = World(2, 1, seed=2), Dirichlet(gamma)
    ours, theirs = objective(world, simplex_paths(thought, 1)), 0.0
    model = world.model
    for prompt, right in enumerate(world.answers):
        first = model.embedding[prompt]
        alpha_V = (model.embedding @ model.forward(first[None, None])[0][0, -1]).softmax(0).detach() * gamma

        def value(a, right=right, first=first, alpha_V=alpha_V):
            z = a * model.embedding[0] + (1 - a) * model.embedding[1]
            hidden_SD, _ = model.forward(torch.stack([first, z])[None])
            chance = (model.embedding @ hidden_SD[0, -1]).softmax(0)[right].item()
            return chance * stats.beta.pdf(a, *alpha_V.tolist())

        theirs += integrate.quad(value, 0, 1, limit=400, epsabs=1e-7)[0] / 2
    assert ours.item() == pytest.approx(theirs, abs=1e-5)


def test_a_finer_grid_changes_little():
    """Mass and score to rounding, the objective's gradient to half a percent."""
    world, thought = World(2, 2, seed=1), Dirichlet(2.0)
    coarse, fine = (gradient(world, objective(world, simplex_paths(thought, 2, spacing=h))) for h in (0.25, 0.125))
    assert (coarse - fine).norm() < 5e-3 * fine.norm()
    for paths in (simplex_paths(thought, 2), simplex_paths(thought, 2, spacing=0.125)):
        mass = walked(world, paths, 0)[0].exp().sum()
        assert mass.item() == pytest.approx(1, abs=1e-10)
        assert gradient(world, mass).norm() < 1e-8


def test_a_grid_that_misses_probability_is_refused():
    with pytest.raises(ValueError, match=r"the paths cover 0.* of the probability: expected 1"):
        objective(World(2, 1), simplex_paths(Dirichlet(0.5), 1, reach=1.0))


def test_worlds_and_paths_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="expected at least 2 tokens"):
        World(1, 1)
    with pytest.raises(ValueError, match="a finite spread"):
        World(3, 2, spread=math.nan)
    with pytest.raises(ValueError, match="a grid over 2 tokens for a world of 3"):
        objective(World(3, 1), simplex_paths(Dirichlet(2.0), 1))


# ---------------------------------------------------------------------------------------------------------------------
# Estimators


def outcomes(world, paths, prompt, scale):
    """(probability, reward, score) of every path and answer."""
    latent, answer = walked(world, paths, prompt)
    for path in range(len(latent)):
        for token in range(world.vocabulary):
            chance = (latent[path] + answer[path, token]).exp().item()
            score = scale * gradient(world, latent[path]) + gradient(world, answer[path, token])
            yield chance, float(token == world.answers[prompt]), score


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("samples", "group", "scale"), [(1, 2, 1.0), (1, 3, 1.0), (2, 2, 0.5)])
def test_mean_and_variance_by_whole_groups(kind, samples, group, scale):
    """Every group of every outcome, multiplied out."""
    world = World(2, 1, seed=3)
    paths = token_paths(MultiToken(samples), 2, 1)
    every = list(outcomes(world, paths, 0, scale))
    mean, square = 0.0, 0.0
    for members in itertools.product(every, repeat=group):
        chance = math.prod(member[0] for member in members)
        worth = advantages(torch.tensor([member[1] for member in members], dtype=torch.float64), group, kind)
        estimate = sum(a * member[2] for a, member in zip(worth, members, strict=True)) / group
        mean, square = mean + chance * estimate, square + chance * (estimate @ estimate)
    ours = group_estimate(score_moments(world, paths, 0, scale), kind, group)
    near(ours.mean, mean)
    assert ours.variance == pytest.approx((square - mean @ mean).item(), rel=1e-9)


def estimates(world, paths, kind, group=8, scale=1.0):
    each = [score_moments(world, paths, prompt, scale) for prompt in range(world.vocabulary)]
    return combined([group_estimate(moments, kind, group) for moments in each])


@pytest.mark.slow
def test_the_papers_ratio_is_biased_in_direction_for_more_tokens_alone():
    world = World(3, 2, seed=0)
    for samples in (1, 3):
        paths = token_paths(MultiToken(samples), 3, 2)
        truth = gradient(world, objective(world, paths))
        found = estimates(world, paths, "leave-one-out", scale=1 / samples).against(truth)
        assert (found["cosine"] < 1 - 1e-4) == (samples > 1)
        assert (found["error"] > 1e-3) == (samples > 1)


def test_straight_through_by_hand():
    """One token, one step: the mean over tokens of the gradient of sigma(right | z), z moving with the mixture."""
    world, total = World(3, 1, seed=5), 0.0
    model = world.model
    for prompt, right in enumerate(world.answers):
        first = model.embedding[prompt]
        p_V = (model.embedding @ model.forward(first[None, None])[0][0, -1]).softmax(0)
        for token in range(3):
            mixture = p_V @ model.embedding
            z = model.embedding[token] + mixture - mixture.detach()
            hidden_SD, _ = model.forward(torch.stack([first, z])[None])
            total = total + p_V[token].detach() * (model.embedding @ hidden_SD[0, -1]).softmax(0)[right] / 3
    near(straight_through(world, token_paths(MultiToken(1), 3, 1), 8).mean, gradient(world, total))


def test_straight_through_feeds_what_was_sampled():
    embedding = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state = State(torch.zeros(2, 3).double(), torch.randn(2, 4).double(), Table(embedding))
    inner = MultiToken(2)
    action = inner.given(torch.tensor([[0, 1], [3, 3]]))
    near(StraightThrough(inner).embed(state, action), inner.embed(state, action))


@pytest.mark.parametrize(
    ("method", "vocabulary", "scale"),
    [
        (GRPO(samples=1), 3, 1.0),
        (GRPO(samples=2), 3, 1.0),
        (GRPO(samples=2, ratio="paper"), 3, 0.5),
        (GRPO(samples=2, ratio="official"), 3, 1.0),
        (GRPO(samples=2, advantage="leave-one-out"), 3, 1.0),
        (GRPO(gamma=2.0), 2, 1.0),
    ],
    ids=["K=1", "K=2", "paper", "official", "leave-one-out", "Dirichlet"],
)
@pytest.mark.slow
def test_the_methods_gradients_have_the_enumerated_mean_and_variance(method, vocabulary, scale):
    """GRPO's own losses on 500 batches of 30 groups.

    False alarm: Hotelling's test of the mean in 6 directions at 1e-6; one standard deviation of the total variance is
    6.3 % if a single direction holds it all, and 38 % is allowed.
    """
    method = replace(method, average="sum")
    world = World(vocabulary, 1 if method.gamma else 2, seed=0)
    if method.gamma:
        paths = simplex_paths(Dirichlet(method.gamma), 1)
    else:
        paths = token_paths(MultiToken(method.samples, 2.0 if method.ratio == "official" else 1.0), vocabulary, 2)
    each = [score_moments(world, paths, prompt, scale) for prompt in range(vocabulary)]
    expected = combined([group_estimate(moments, method.advantage, method.group) for moments in each])
    copies, batches = 30 // vocabulary, 500
    examples, model = world.examples().rows(torch.arange(vocabulary).repeat(copies)), Model(world.model)
    got = []
    for step in range(batches):
        state = TrainState(step, batches, 11)
        got.append(-gradient(world, method.loss(model, method.collect(model, examples, state), state).value))
    got_BD = torch.stack(got)
    directions_6D = torch.randn(6, got_BD.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    directions_6D = torch.linalg.qr(torch.cat([expected.mean[None], directions_6D])[:6].T)[0].T
    projected_B6 = (got_BD - expected.mean) @ directions_6D.T
    covariance_66 = projected_B6.T.cov()
    mean_6 = projected_B6.mean(0)
    hotelling = batches * (mean_6 @ torch.linalg.solve(covariance_66, mean_6)).item()
    p_value = stats.f.sf(hotelling * (batches - 6) / (6 * (batches - 1)), 6, batches - 6)
    assert p_value > 1e-6
    variance = got_BD.var(0).sum().item() * copies
    assert variance == pytest.approx(expected.variance, rel=0.38)
    off = (got_BD - 1.3 * expected.mean).mean(0) @ directions_6D[0]
    assert abs(off) > 6 * projected_B6[:, 0].std() / math.sqrt(batches), "a factor of 1.3 would be noticed"


def test_moments_are_those_of_a_score():
    """The mean score over both rewards is zero, and probabilities sum to one."""
    world = World(3, 1, seed=6)
    moments = score_moments(world, token_paths(MultiToken(2), 3, 1), 1)
    assert isinstance(moments, Moments)
    assert sum(moments.probability) == pytest.approx(1)
    assert moments.mean.sum(0).abs().max() < 1e-12
    assert moments.mean.abs().max() > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# Information


@pytest.mark.parametrize("alpha", [[0.5, 0.3, 0.2], [0.7, 0.3 - 1e-9, 1e-9]])
def test_information_is_the_variance_of_sampled_scores(alpha):
    """Trace of the covariance of 40 000 scores within 5 %, some five standard errors."""
    n, gamma = 40_000, 2.0
    logits_BV = torch.tensor(alpha, dtype=torch.float64).log().expand(n, 3).clone().requires_grad_()
    log_c_BV = log_concentration(logits_BV, gamma)
    log_a_BV = log_dirichlet(Streams(0, torch.arange(n)), log_c_BV.detach())
    (score_BV,) = torch.autograd.grad(dirichlet_log_density(log_c_BV, log_a_BV).sum(), logits_BV)
    assert score_BV.var(0).sum().item() == pytest.approx(dirichlet_information(alpha, gamma), rel=0.05)
    ids_BK = torch.multinomial(
        torch.tensor(alpha).expand(n, 3), 3, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    thought = MultiToken(3)
    state = State(torch.zeros(n, 1).double(), logits_BV, Table(torch.zeros(3, 1).double()))
    (score_BV,) = torch.autograd.grad(thought.log_prob(state, thought.given(ids_BK)).sum(), logits_BV)
    assert score_BV.var(0).sum().item() == pytest.approx(token_information(alpha, 3), rel=0.05)


def test_every_unlikely_token_adds_one():
    """The finding: however small its share, a token adds one (and a little) to the variance of Dirichlet's score."""
    base = dirichlet_information([0.5, 0.5], 2.0)
    for extra in (10, 1000):
        alpha = [(1 - 1e-9) / 2] * 2 + [1e-9 / extra] * extra
        assert dirichlet_information(alpha, 2.0) - base == pytest.approx(extra * 1.5, rel=1e-3)
        assert token_information(alpha, 3) == pytest.approx(1.5, abs=1e-6)
