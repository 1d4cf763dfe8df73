"""Claims about CTRLS-style thoughts: chain of thought as transitions between latent states. The policy.

The published algorithm (Wu et al. 2025, arXiv 2507.08182) was not available in full. What is checked is a
reconstruction [R] from its abstracts and from quotations of it: a state's concentrations alpha give a distribution over
next states, a ~ Dirichlet(alpha), and the next state z ~ a; policy gradient with epsilon-greedy exploration and an
entropy bonus trains them. No number of the paper is compared with. Where states come from is in `ctrls_states`.

Letters: K states, alpha_0 sum of the concentrations, m = alpha / alpha_0 their mean, Q nodes of a quadrature.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import scipy
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tinylatent.engine.thoughts import Dirichlet
from tinylatent.lab.findings import FAILS, STRICTER, Finding
from tinylatent.methods.ctrls_thought import dirichlet_entropy, point_log_density, state_entropy, total_variance
from tinylatent_theory.claims.ledger import EXACT, Trial, claim, judged, judged_twice, relative
from tinylatent_theory.predictions.enumeration import simplex_paths

SOURCE = "CTRLS (Wu et al. 2025), reconstruction [R]"


def simplex_grid() -> tuple[Float[Tensor, "Q 2"], Float[Tensor, " Q"]]:
    """log a and log weights of a trapezoid rule over the simplex of two states, for densities of the laboratory."""
    paths = simplex_paths(Dirichlet(2.0), 1, reach=8.0, spacing=1 / 64)
    return paths.action["log_a"][:, 0], paths.log_weight


def densities(alpha_2: Float[Tensor, " 2"], grid: tuple[Tensor, Tensor]) -> Float[Tensor, " Q"]:
    """Log of the probability of every cell of the grid under Dirichlet(alpha)."""
    log_a_Q2, weight_Q = grid
    return point_log_density(alpha_2.expand(log_a_Q2.shape), log_a_Q2, 0.0) + weight_Q


def largest(f: Callable[[Tensor], Tensor], start: Float[Tensor, " M"]) -> tuple[Float[Tensor, " M"], float]:
    """Where a smooth function is largest, by ascent from a start, and its value there."""

    def down(x: Any) -> tuple[float, Any]:
        x_M = torch.as_tensor(x).requires_grad_()
        value = -f(x_M)
        return value.item(), torch.autograd.grad(value, x_M)[0].numpy()

    found = scipy.optimize.minimize(down, start.numpy(), jac=True, tol=1e-12)
    return torch.as_tensor(found.x), -float(found.fun)


# ---------------------------------------------------------------------------------------------------------------------
# Draws


def draws_log_prob(alpha_K: Float[Tensor, " K"], counts_K: Int[Tensor, " K"]) -> Float[Tensor, ""]:
    """log-probability of draws in one order, `counts_K` of each state, that share one a ~ Dirichlet(alpha).

    The Dirichlet-multinomial distribution: log of Gamma(alpha_0) / Gamma(alpha_0 + n) prod_k Gamma(alpha_k + n_k) /
    Gamma(alpha_k).
    """
    total = torch.lgamma(alpha_K.sum()) - torch.lgamma(alpha_K.sum() + counts_K.sum())
    return total + (torch.lgamma(alpha_K + counts_K) - torch.lgamma(alpha_K)).sum()


def integrated(alpha_K: Float[Tensor, " K"], k: int, draws: int, grid: tuple[Tensor, Tensor]) -> float:
    """E[a_k^draws], by quadrature: a component against all others is a Dirichlet of two."""
    pair_2 = torch.stack([alpha_K[k], alpha_K.sum() - alpha_K[k]])
    return float((densities(pair_2, grid) + draws * grid[0][:, 0]).exp().sum())


@claim(
    source=SOURCE,
    origin="here",
    statement="With one state drawn from each a, the sum of the concentrations has no effect on the states.",
    conditions="a fresh a every step; two draws from one a tell the sum",
    how="exact algebra",
    recorded="holds",
)
def ctrls_alpha0_is_invisible(trial: Trial) -> Finding:
    """The chance of each state for sums from 0.5 to 500, by quadrature and by the Dirichlet-multinomial formula."""
    grid, one, formula, twice = simplex_grid(), 0.0, 0.0, math.inf
    for number in range(trial.size(3, 30)):
        K = 2 + number % 3
        m_K = torch.rand(K, generator=trial.torch("mean", number), dtype=torch.float64) + 0.3
        m_K = m_K / m_K.sum()
        again = []  # the probability that two draws are both the first state
        for alpha_0 in (0.5, 2.0, 20.0, 500.0):
            for k in range(K):
                counts_K = torch.eye(K, dtype=torch.int64)[k]
                values = [integrated(alpha_0 * m_K, k, draws, grid) for draws in (1, 2)]
                one = max(one, abs(values[0] - float(m_K[k])))
                for draws, value in zip((1, 2), values, strict=True):
                    closed = draws_log_prob(alpha_0 * m_K, draws * counts_K).exp().item()
                    formula = max(formula, abs(closed - value))
            again.append(values[1])
        twice = min(twice, again[0] / again[-1])
    return judged(
        max(one, formula) < EXACT and twice > 1.1,
        f"one draw: the mean to {one:.0e} at sums 0.5 ... 500, and the formula to {formula:.0e}; two draws from one a "
        f"are both a given state {twice:.2f} times as often at 0.5 as at 500, or more",
    )


# ---------------------------------------------------------------------------------------------------------------------
# The entropy bonus


@claim(
    source=SOURCE,
    origin="here",
    statement="The entropy of a Dirichlet distribution is largest where all concentrations are 1, and nowhere else.",
    conditions="K = 2 ... 6; all concentrations, equal or not",
    how="property test",
    recorded="holds",
)
def ctrls_entropy_is_largest_at_ones(trial: Trial) -> Finding:
    """Random concentrations stay below -log Gamma(K); ascents from anywhere end at ones; quadrature for two states."""
    below, end, integral, grid = -math.inf, 0.0, 0.0, simplex_grid()
    for K in range(2, 7):
        generator, top = trial.torch("entropy", K), -math.lgamma(K)
        log_alpha_BK = torch.rand(trial.size(1000, 20000), K, generator=generator, dtype=torch.float64) * 8 - 4
        away_B = log_alpha_BK.norm(dim=-1)
        below = max(below, float(((dirichlet_entropy(log_alpha_BK.exp()) - top) / away_B**2).max()))
        for start_K in log_alpha_BK[: trial.size(2, 10)] / 2:
            x_K, value = largest(lambda x_K: dirichlet_entropy(x_K.exp()), start_K)
            end = max(end, float(x_K.abs().max()), abs(value - top))
    for alpha_2 in ([1.0, 1.0], [0.3, 2.0], [5.0, 0.7], [30.0, 40.0]):
        log_p_Q = densities(torch.tensor(alpha_2, dtype=torch.float64), grid)
        usual_Q = log_p_Q - grid[1] - grid[0].sum(-1)  # with respect to da_1
        value = -float((log_p_Q.exp() * usual_Q).sum())
        closed = dirichlet_entropy(torch.tensor(alpha_2, dtype=torch.float64))
        integral = max(integral, abs(float(closed) - value))
    return judged(
        below < 0 and end < 1e-4 and integral < EXACT,
        f"every other entropy is lower, by {-below:.2g} of the squared distance in log alpha or more; ascents end at "
        f"ones to {end:.0e}; the formula is the integral to {integral:.0e}",
    )


def bonus_effect(log_alpha_BK: Float[Tensor, "B K"], spread: Callable[[Tensor], Tensor]) -> Float[Tensor, " B"]:
    """Cosine between the entropy's gradient and a spread's, in log alpha: positive where the bonus widens."""
    x_BK = log_alpha_BK.detach().requires_grad_()
    bonus_BK, other_BK = (torch.autograd.grad(f(x_BK.exp()).sum(), x_BK)[0] for f in (dirichlet_entropy, spread))
    return F.cosine_similarity(bonus_BK, other_BK, dim=-1)


def two_halves() -> str:
    """Two states with concentrations of a half: the bonus raises the entropy and narrows the distributions."""
    start_2 = torch.tensor([0.5, 0.5], dtype=torch.float64)
    x_2 = start_2.log().requires_grad_()
    slope_2 = torch.autograd.grad(dirichlet_entropy(x_2.exp()), x_2)[0]
    after_2 = (x_2.detach() + slope_2).exp()
    return (
        f"concentrations 0.5, 0.5 become {after_2[0]:.3f}, {after_2[1]:.3f} by one step of the bonus: the variance of "
        f"a_1 falls from {total_variance(start_2) / 2:.4f} to {total_variance(after_2) / 2:.4f}"
    )


@claim(
    source=SOURCE + "; the abstract of version 1 names entropy regularisation",
    origin="here",
    statement="An entropy bonus on the Dirichlet makes the policy's distributions over states more varied.",
    conditions="all concentrations at least 1, steps in log alpha; the entropy of one drawn state rises anyway",
    how="property test",
    recorded=STRICTER,
    counterexample=two_halves,
)
def ctrls_entropy_bonus_widens(trial: Trial) -> Finding:
    """Whether a small step of the bonus raises the variance of a, for concentrations on either side of 1."""
    lowest = {"above 1": 1.0, "anywhere": 1.0}
    narrowed, single, number = 0.0, 1.0, trial.size(2000, 50000)
    for K in range(2, 7):
        random_BK = torch.rand(number, K, generator=trial.torch("bonus", K), dtype=torch.float64)
        effect_B = bonus_effect(4 * random_BK, total_variance)
        lowest["above 1"] = min(lowest["above 1"], float(effect_B.min()))
        below_B = bonus_effect(-4 * random_BK, total_variance)
        lowest["anywhere"] = min(lowest["anywhere"], float(effect_B.min()), float(below_B.min()))
        narrowed += float((below_B < 0).double().mean()) / 5
        single = min(single, float(bonus_effect(8 * random_BK - 4, state_entropy).min()))
    return judged_twice(
        as_stated=lowest["anywhere"] > 0,
        strictly=lowest["above 1"] > 0,
        evidence=f"concentrations above 1: the variance of a rises (least cosine seen {lowest['above 1']:.2f}); below: "
        f"it falls in {narrowed:.0%} of cases; the entropy of one drawn state rose in all (least cosine {single:.1g})",
    )


# ---------------------------------------------------------------------------------------------------------------------
# Exploration


def mixed_log_density(alpha_2: Float[Tensor, " 2"], epsilon: float, grid: tuple[Tensor, Tensor]) -> Float[Tensor, " Q"]:
    """Log of the probability of every cell under (1 - epsilon) Dir(alpha) + epsilon Dir(1): what exploration draws."""
    log_a_Q2, weight_Q = grid
    return point_log_density(alpha_2.expand(log_a_Q2.shape), log_a_Q2, epsilon) + weight_Q


def naive_log_density(alpha_2: Float[Tensor, " 2"], epsilon: float, grid: tuple[Tensor, Tensor]) -> Float[Tensor, " Q"]:
    """The same as if nothing had been mixed_log_density, log Dir(a; alpha)."""
    return densities(alpha_2, grid)


Density = Callable[[Tensor, float, tuple[Tensor, Tensor]], Tensor]


def expected_score(
    density: Density, alpha_2: Float[Tensor, " 2"], epsilon: float, reward_Q: Float[Tensor, " Q"]
) -> Float[Tensor, " 2"]:
    """E[R(a) grad log density(a)] in alpha, a drawn by epsilon-greedy exploration: the mean policy gradient."""
    grid, x_2 = simplex_grid(), alpha_2.detach().requires_grad_()
    chance_Q = mixed_log_density(alpha_2, epsilon, grid).exp()
    return torch.autograd.grad((chance_Q * reward_Q) @ density(x_2, epsilon, grid), x_2)[0]


def explored_reward(alpha_2: Float[Tensor, " 2"], epsilon: float, powers: tuple[int, int]) -> Float[Tensor, ""]:
    """E[a_1^i a_2^j] under epsilon-greedy exploration, in closed form: the reference."""
    counts_2 = torch.tensor(powers)
    uniform = draws_log_prob(torch.ones_like(alpha_2), counts_2).exp()
    return (1 - epsilon) * draws_log_prob(alpha_2, counts_2).exp() + epsilon * uniform


def score_errors(density: Density, trial: Trial) -> tuple[float, float]:
    """The largest relative error of the mean policy gradient, and its mean size under a constant reward."""
    worst, constant, log_a_Q2 = 0.0, 0.0, simplex_grid()[0]
    cases = list(itertools.product(range(trial.size(3, 20)), (0.1, 0.3)))
    for number, epsilon in cases:
        generator = trial.torch("exploration", number)
        alpha_2 = (torch.rand(2, generator=generator, dtype=torch.float64) * 3 - 1).exp()
        for powers in ((1, 0), (0, 1), (2, 1)):
            x_2 = alpha_2.clone().requires_grad_()
            truth_2 = torch.autograd.grad(explored_reward(x_2, epsilon, powers), x_2)[0]
            reward_Q = (log_a_Q2 @ torch.tensor(powers, dtype=torch.float64)).exp()
            worst = max(worst, relative(expected_score(density, alpha_2, epsilon, reward_Q), truth_2))
        flat_2 = expected_score(density, alpha_2, epsilon, torch.ones(len(log_a_Q2), dtype=torch.float64))
        constant += float(flat_2.norm()) / len(cases)
    return worst, constant


def two_and_one() -> str:
    """Concentrations 2 and 1, one draw in five explored, every reward 1: nothing to gain, and yet a gradient."""
    alpha_2 = torch.tensor([2.0, 1.0], dtype=torch.float64)
    reward_Q = torch.ones(len(simplex_grid()[0]), dtype=torch.float64)
    naive, mixed = (
        expected_score(density, alpha_2, 0.2, reward_Q).tolist() for density in (naive_log_density, mixed_log_density)
    )
    return (
        f"alpha = (2, 1), epsilon 0.2, reward 1 for everything: the mean gradient is ({naive[0]:.4f}, {naive[1]:.4f}) "
        f"with the density of the Dirichlet, ({abs(mixed[0]):.4f}, {abs(mixed[1]):.4f}) with that of the mixture"
    )


@claim(
    source=SOURCE + "; the abstract of version 1 names epsilon-greedy exploration",
    origin="here",
    statement="Under epsilon-greedy exploration the score of log Dir(a; alpha) gives the policy gradient.",
    conditions="two states, epsilon 0.1 and 0.3; right for epsilon 0 alone",
    how="exact algebra",
    recorded=FAILS,
    counterexample=two_and_one,
)
def ctrls_naive_density_under_epsilon_greedy(trial: Trial) -> Finding:
    """The mean gradient by quadrature against the closed form, for rewards a_1, a_2 and a_1^2 a_2."""
    worst, constant = score_errors(naive_log_density, trial)
    return judged(
        worst < 1e-6 and constant < 1e-6,
        f"relative error up to {worst:.2g}; under a constant reward of 1 a mean gradient of {constant:.2g} where the "
        "true one is 0",
    )


@claim(
    source=SOURCE,
    origin="here",
    statement="Under epsilon-greedy exploration the score of the mixture's log-density gives the policy gradient.",
    conditions="two states, epsilon 0.1 and 0.3",
    how="exact algebra",
    recorded="holds",
)
def ctrls_mixture_density_is_exact(trial: Trial) -> Finding:
    """The mean gradient by quadrature against the closed form, for rewards a_1, a_2 and a_1^2 a_2."""
    worst, constant = score_errors(mixed_log_density, trial)
    return judged(
        worst < 1e-6 and constant < 1e-6,
        f"relative error at most {worst:.0e}; under a constant reward of 1 the mean gradient is {constant:.0e}",
    )
