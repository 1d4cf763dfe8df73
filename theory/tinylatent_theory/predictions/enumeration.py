"""Enumeration: on a tiny vocabulary the objective of sampled latents, its gradient, and every estimator's mean and
variance are sums over all paths, so that bias is a fact and not an estimate.

A world is a small transformer, a few prompts of one token, and a right answer for each. A path is one choice of all its
latent steps. Multisets of tokens with multinomial weights cover MultiToken's paths; a grid over log-ratios covers
Dirichlet's, for two tokens, where the trapezoid rule converges faster than any power of the spacing. Paths run through
the laboratory's own engine: what is checked is what trains.

The group estimator of a prompt is g = 1/G sum_i A_i s_i, with score s_i = c L_i + S_i (L of the latent steps, S of the
answer, c = 1, or 1/K in ratio mode `paper`). Rewards are 0 or 1 and rollouts independent, so A_i depends on the others
through their number of right answers alone, and mean and variance follow from E[s; r] and E[|s|^2; r] by sums over a
binomial distribution.

Letters: P prompts, n paths, T latent steps, V vocabulary, K samples, G group, D weights of the model, all in one.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import scipy
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tinylatent.core.seeds import derive
from tinylatent.engine.force import force
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thought import Action, State, Thought
from tinylatent.engine.thoughts import GREEDY, Dirichlet, MultiToken
from tinylatent.models.decoder import Decoder, ModelConfig
from tinylatent.objectives.examples import Examples, Targets
from tinylatent.objectives.policy_gradient import Advantage, advantages

CHUNK = 64  # paths whose scores are taken from one forward: a backward touches them all


@dataclass(frozen=True)
class World:
    """A random small transformer in float64, prompts 0 .. V - 1, and a right answer for each."""

    vocabulary: int
    steps: int
    """Latent steps T before the answer."""
    seed: int = 0
    width: int = 8
    spread: float = 0.5
    """Standard deviation of the weights: how far from uniform its distributions are."""

    def __post_init__(self) -> None:
        if self.vocabulary < 2 or self.steps < 1 or self.width < 1 or not 0 <= self.spread < math.inf:
            raise ValueError(
                f"{self}: expected at least 2 tokens, 1 step, width 1 and a finite spread; try World(3, 2)"
            )

    @cached_property
    def model(self) -> Decoder:
        """The policy's backbone."""
        generator = torch.Generator().manual_seed(derive(self.seed, "world"))
        model = Decoder.fresh(self.vocabulary, self.steps + 2, ModelConfig(self.width, 1, 1)).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * self.spread)
                if parameter.ndim == 1:
                    parameter.add_(1)
        return model

    @property
    def answers(self) -> list[int]:
        """The right answer of every prompt: any token but the prompt, drawn by the seed."""
        generator = torch.Generator().manual_seed(derive(self.seed, "answers"))
        shifts = torch.randint(1, self.vocabulary, (self.vocabulary,), generator=generator).tolist()
        return [(prompt + shift) % self.vocabulary for prompt, shift in enumerate(shifts)]

    def examples(self) -> Examples:
        """Its prompts as methods read them; their steps are taught nothing."""
        V, answer_V = self.vocabulary, torch.tensor(self.answers)
        chain_BT = F.pad(answer_V[:, None], (self.steps, 0))
        frontier = Targets(V, dense_BTV=torch.zeros(V, self.steps + 1, V))
        return Examples(torch.arange(V)[:, None], None, self.steps, chain_BT, frontier, answer_tokens=1)


@dataclass(frozen=True)
class Paths:
    """Every choice of all latent steps, with what its probability (or density) is to be multiplied by."""

    thought: Thought
    action: Action
    """The choices, (n, T, ...)."""
    log_weight: Float[Tensor, " n"]

    def cut(self, size: int) -> "Iterator[Paths]":
        """The same in parts."""
        for start in range(0, len(self.log_weight), size):
            here = slice(start, start + size)
            action = Action({name: value[here] for name, value in self.action.values.items()})
            yield Paths(self.thought, action, self.log_weight[here])


def token_paths(thought: MultiToken, vocabulary: int, steps: int) -> Paths:
    """All multisets of K tokens at every step; the weight is the number of orders they can be drawn in."""
    K = thought.samples
    multisets = list(itertools.combinations_with_replacement(range(vocabulary), K))
    orders = [math.lgamma(K + 1) - sum(math.lgamma(ids.count(i) + 1) for i in set(ids)) for ids in multisets]
    chosen = torch.cartesian_prod(*[torch.arange(len(multisets))] * steps).view(-1, steps)
    ids = torch.tensor(multisets)[chosen]
    return Paths(thought, thought.given(ids), torch.tensor(orders, dtype=torch.float64)[chosen].sum(1))


def simplex_paths(thought: Dirichlet, steps: int, reach: float = 8.0, spacing: float = 0.25) -> Paths:
    """A grid over all points of the simplex of two tokens at every step; its cell is the weight.

    da_1 / (a_1 a_2), which the thought's density refers to, is the plain measure of the log-ratio x = log a_1 / a_2.
    With x = sinh(u) the density falls off double-exponentially, and the trapezoid rule over u in [-reach, reach] is
    exact to rounding for its mass and its scores, for concentrations above 35 / sinh(reach), 0.024 by default. What the
    model makes of a is less smooth: an objective's gradient is good to a percent or so, which a finer grid tells.
    """
    u = torch.arange(-reach, reach + spacing / 2, spacing, dtype=torch.float64)
    log_a = torch.stack([F.logsigmoid(u.sinh()), F.logsigmoid(-u.sinh())], 1)
    chosen = torch.cartesian_prod(*[torch.arange(len(u))] * steps).view(-1, steps)
    return Paths(thought, thought.given(log_a[chosen]), (spacing * u.cosh()).log()[chosen].sum(1))


def walked(world: World, paths: Paths, prompt: int) -> tuple[Float[Tensor, " n"], Float[Tensor, "n V"]]:
    """log-probability of every path, its weight included, and of every answer after it; with the graph."""
    n, tokens = len(paths.log_weight), paths.action.values.get("log_a")
    if tokens is not None and tokens.shape[-1] != world.vocabulary:
        raise ValueError(
            f"a grid over {tokens.shape[-1]} tokens for a world of {world.vocabulary}: expected World(2, ...)"
        )
    answer = GREEDY.given(torch.zeros(n, 1, dtype=torch.int64))  # any: the last action is not read
    plan = (Segment(paths.thought, world.steps, paths.action), Segment(GREEDY, 1, answer))
    run = force(world.model, plan, torch.full((n, 1), prompt))
    return run.log_prob_BT[:, :-1].sum(1) + paths.log_weight, F.log_softmax(run.logits_BTV[:, -1], -1)


def objective(world: World, paths: Paths) -> Float[Tensor, ""]:
    """J: the probability that the answer is right, mean over prompts, with the graph.

    Raises:
        ValueError: the paths do not cover the probability (a grid too short or too coarse).
    """
    total = torch.zeros((), dtype=torch.float64)
    for prompt, right in enumerate(world.answers):
        latent, answer = walked(world, paths, prompt)
        covered = latent.exp().sum().item()
        if not abs(covered - 1) <= 1e-6:
            raise ValueError(
                f"the paths cover {covered:.8f} of the probability: expected 1; they must be of this world's size, and "
                "a grid wide and fine enough"
            )
        total = total + (latent + answer[:, right]).exp().sum()
    return total / len(world.answers)


def gradient(world: World, value: Tensor) -> Float[Tensor, " D"]:
    """The gradient of a value with respect to all weights, as one vector."""
    parts = torch.autograd.grad(
        value, list(world.model.parameters()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([part.flatten() for part in parts])


# ---------------------------------------------------------------------------------------------------------------------
# Estimators


@dataclass(frozen=True)
class Moments:
    """Sums over a prompt's paths for reward r = 0 and 1: probability, score and squared score, unnormalised."""

    probability: tuple[float, float]
    mean: Float[Tensor, "2 D"]
    """E[s; r]."""
    square: tuple[float, float]
    """E[|s|^2; r]."""


def score_moments(world: World, paths: Paths, prompt: int, scale: float = 1.0) -> Moments:
    """Moments of the score s = scale L + S, from every path and every answer."""
    right = world.answers[prompt]
    probability, mean, square = [0.0, 0.0], torch.zeros(2, 0, dtype=torch.float64), [0.0, 0.0]
    for part in paths.cut(CHUNK):
        latent, answer = walked(world, part, prompt)
        for path in range(len(latent)):
            score = gradient(world, latent[path]) * scale
            for token in range(world.vocabulary):
                share = (latent[path] + answer[path, token]).exp().item()
                whole, r = score + gradient(world, answer[path, token]), int(token == right)
                if mean.shape[1] == 0:
                    mean = mean.new_zeros(2, len(whole))
                probability[r] += share
                mean[r] += share * whole
                square[r] += share * float(whole @ whole)
    return Moments((probability[0], probability[1]), mean, (square[0], square[1]))


@dataclass(frozen=True)
class Estimate:
    """An estimator's mean and the trace of its covariance."""

    mean: Float[Tensor, " D"]
    variance: float

    def against(self, truth: Float[Tensor, " D"]) -> dict[str, float]:
        """Relative error and cosine of the mean; variance over the squared norm of the truth; noise, the standard
        deviation over the mean's scipy.stats.norm."""
        return {
            "variance": self.variance / float(truth @ truth),
            "error": float((self.mean - truth).norm() / truth.norm()),
            "cosine": float(self.mean @ truth / (self.mean.norm() * truth.norm())),
            "noise": math.sqrt(max(0.0, self.variance)) / float(self.mean.norm()),
        }


def group_estimate(moments: Moments, kind: Advantage, group: int) -> Estimate:
    """Mean and variance of 1/G sum_i A_i s_i over the groups of one prompt."""
    p = moments.probability[1] / sum(moments.probability)
    worth = advantage_table(kind, group)

    others = [float(scipy.stats.binom.pmf(n, group - 1, p)) for n in range(group)]
    others_but_one = [float(scipy.stats.binom.pmf(n, group - 2, p)) for n in range(group - 1)]
    mean = torch.zeros_like(moments.mean[0])
    squares = products = 0.0
    for r in (0, 1):
        mean += sum(chance * worth[n + r][r] for n, chance in enumerate(others)) * moments.mean[r]
        squares += sum(chance * worth[n + r][r] ** 2 for n, chance in enumerate(others)) * moments.square[r]
        for q in (0, 1):
            both = sum(chance * worth[n + r + q][r] * worth[n + r + q][q] for n, chance in enumerate(others_but_one))
            products += both * float(moments.mean[r] @ moments.mean[q])
    second = (group * squares + group * (group - 1) * products) / group**2
    return Estimate(mean, second - float(mean @ mean))


def advantage_table(kind: Advantage, group: int) -> list[tuple[float, float]]:
    """The advantage of a wrong and of a right answer, for every number of right ones in a group."""
    table = []
    for right in range(group + 1):
        reward_B = torch.tensor([1.0] * right + [0.0] * (group - right), dtype=torch.float64)
        value_B = advantages(reward_B, group, kind).tolist()
        table.append((value_B[-1], value_B[0]))  # where there is none of a kind, its entry is never asked for
    return table


def combined(estimates: list[Estimate]) -> Estimate:
    """The mean of independent estimates, one a prompt."""
    mean = torch.stack([each.mean for each in estimates]).mean(0)
    return Estimate(mean, sum(each.variance for each in estimates) / len(estimates) ** 2)


class StraightThrough(Thought):
    """Feeds what was sampled and sends the gradient through the mixture (Bengio et al. 2013, arXiv 1308.3432)."""

    has_latent = True

    def __init__(self, inner: MultiToken):
        super().__init__()
        self.inner = inner

    def latent(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """The sample's embedding, with the gradient of E^T alpha added to it."""
        mixture = state.table.mix(F.softmax(state.logits / self.inner.temperature, -1))
        return self.inner.embed(state, action) + mixture - mixture.detach()


def straight_through(world: World, paths: Paths, group: int) -> Estimate:
    """The gradient of the right answer's probability through the sampled latents, mean of `group` rollouts a prompt."""
    assert isinstance(paths.thought, MultiToken)
    thought, estimates = StraightThrough(paths.thought), []
    for prompt, right in enumerate(world.answers):
        mean, square = torch.zeros(0, dtype=torch.float64), 0.0
        for part in paths.cut(CHUNK):
            n = len(part.log_weight)
            share = walked(world, part, prompt)[0].exp().detach()
            answer = GREEDY.given(torch.zeros(n, 1, dtype=torch.int64))
            plan = (Segment(thought, world.steps, part.action), Segment(GREEDY, 1, answer))
            run = rollout(world.model, plan, torch.full((n, 1), prompt), grad=True)
            for path, chance in enumerate(F.softmax(run.logits_BTV[:, -1], -1)[:, right]):
                each = gradient(world, chance)
                mean = share[path] * each + (mean if len(mean) else torch.zeros_like(each))
                square += (share[path] * (each @ each)).item()
        estimates.append(Estimate(mean, (square - float(mean @ mean)) / group))
    return combined(estimates)


# ---------------------------------------------------------------------------------------------------------------------
# How much the scores themselves vary


def token_information(alpha: list[float], samples: int) -> float:
    """Trace of the Fisher information of K sampled tokens in their logits: K (1 - sum alpha^2)."""
    return samples * (1 - sum(share**2 for share in alpha))


def dirichlet_information(alpha: list[float], gamma: float) -> float:
    """Trace of the Fisher information of Dirichlet(gamma alpha) in the logits of alpha.

    With c = gamma alpha it is sum_i c_i^2 psi'(c_i) ((1 - alpha_i)^2 + sum_{j != i} alpha_j^2). A component with c near
    0 adds c^2 psi'(c) = 1 and a little, however unlikely it is: the score's variance grows with the vocabulary.
    """
    shares = torch.tensor(alpha, dtype=torch.float64)
    c = shares * gamma
    # c^2 psi'(c) = 1 + c^2 psi'(c + 1), which loses nothing where c is tiny
    each = 1 + c**2 * torch.polygamma(1, c + 1)
    squares = (shares**2).sum()
    return float((each * ((1 - shares) ** 2 + squares - shares**2)).sum())
