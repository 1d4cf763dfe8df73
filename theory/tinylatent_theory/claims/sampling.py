"""Claims about sampled latents in a linear Markov world (CoT2, section 5), and the capacity of a superposition.

See tinylatent_theory.predictions.markov for the recursions and tinylatent_theory.predictions.capacity for the limits.

Letters: K tokens a step, N chains, V states, d width, k states held.
"""

import math

import numpy as np
import scipy
import torch

from tinylatent.core.seeds import Streams, derive
from tinylatent.engine.force import force
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thought import State
from tinylatent.engine.thoughts import GREEDY, MIXTURE, Dirichlet, Mixture, MultiToken, Token
from tinylatent.lab.findings import FAILS, HOLDS, STRICTER, Finding
from tinylatent.models.backbone import Table
from tinylatent_theory.claims.ledger import ALPHA, EXACT, POWER, Trial, claim, judged, judged_twice, z_test
from tinylatent_theory.predictions.capacity import held_share, needed_width, wendel
from tinylatent_theory.predictions.enumeration import World, simplex_paths, token_paths, walked
from tinylatent_theory.predictions.markov import (
    LinearMarkov,
    covariances,
    enumerated,
    expected_error,
    least_eigenvalue,
    means,
    random_world,
)

MATRIX = 1e-12
"""Eigenvalues above minus this count as not negative."""


def _closest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max())


# ---------------------------------------------------------------------------------------------------------------------
# Consistency


@claim(
    source="CoT2, section 5 (consistency; text not at hand)",
    origin="paper",
    statement="If the next distribution is linear in the last input alone, base CoT2 is the mean of discrete chains.",
    conditions="as stated there; every chain of random worlds of 2 to 4 states, forced through the engine",
    how="exhaustive",
    recorded=HOLDS,
)
def mixtures_average_linear_chains(trial: Trial) -> Finding:
    """Chains weighted by the probability the engine gives them, against the mixtures' last distribution."""
    worst, worlds = 0.0, trial.size(10, 40)
    for number in range(worlds):
        states, steps = 2 + number % 3, 1 + number % 4
        model = LinearMarkov(*random_world(states, steps, trial.torch("world", number)))
        ids_BT = torch.cartesian_prod(*[torch.arange(states)] * steps).view(-1, steps)
        thought, prompt_BN = Token(temperature=1.0), torch.zeros(len(ids_BT), 1, dtype=torch.int64)
        last = GREEDY.given(torch.zeros_like(prompt_BN))
        chains = force(model, (Segment(thought, steps, thought.given(ids_BT)), Segment(GREEDY, 1, last)), prompt_BN)
        chance_B = chains.log_prob_BT[:, :-1].sum(1).exp()
        mean_V = chance_B @ chains.logits_BTV[:, -1].exp()
        mixed = rollout(model, (Segment(Mixture(), steps), Segment(GREEDY, 1)), prompt_BN[:1])
        worst = max(worst, _closest(mean_V, mixed.logits_BTV[0, -1].exp()))
    return judged(worst < EXACT, f"{worlds} worlds: the two distributions differ by at most {worst:.0e}")


def answers_by_chains_and_mixture(world: World) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of the answers to prompt 0: mean over all discrete chains, and after mixtures."""
    latent, answer = walked(world, token_paths(MultiToken(1), world.vocabulary, world.steps), 0)
    plan = (Segment(Mixture(), world.steps), Segment(GREEDY, 1))
    mixed = rollout(world.model, plan, torch.zeros(1, 1, dtype=torch.int64))
    return (latent.exp() @ answer.exp()).detach(), mixed.logits_BTV[0, -1].softmax(-1)


def one_step_of_a_transformer() -> str:
    """Two tokens, one latent step, a random transformer of width 8."""
    chains_V, mixed_V = answers_by_chains_and_mixture(World(2, 1))
    return (
        f"two tokens, one thought: the chains' mean answers token 0 with probability {chains_V[0]:.4f}, the mixture "
        f"with {mixed_V[0]:.4f}"
    )


@claim(
    source="CoT2, section 5 (text not at hand), read without its assumption [R]",
    origin="here",
    statement="Feeding the mixture gives the average of the discrete chains' predictions.",
    conditions="random transformers: attention and softmax are not linear in the input",
    how="exhaustive",
    recorded=FAILS,
    counterexample=one_step_of_a_transformer,
)
def mixtures_average_chains_of_a_transformer(trial: Trial) -> Finding:
    """The total variation between the two, over random worlds."""
    gaps = []
    for seed in range(trial.size(5, 20)):
        chains_V, mixed_V = answers_by_chains_and_mixture(World(3, 2, derive(trial.seed, "world", seed)))
        gaps.append(float((chains_V - mixed_V).abs().sum() / 2))
    return judged(
        max(gaps) < EXACT, f"total variation {min(gaps):.4f} to {max(gaps):.4f} over {len(gaps)} transformers"
    )


# ---------------------------------------------------------------------------------------------------------------------
# K tokens a step


def two_steps_of_two_tokens() -> str:
    """Two equally likely states that stay: two sampled steps of K = 2."""
    start_V, still = torch.full((2,), 0.5, dtype=torch.float64), [torch.eye(2, dtype=torch.float64)] * 2
    one, two = (covariances(start_V, still, samples)[-1][0, 0] for samples in (1, 2))
    return (
        f"two states that stay, two sampled steps: variance {one:.4f} with one token, {two:.4f} with two, which is "
        f"{2 * two / one:.2f} times that of two chains"
    )


@claim(
    source="CoT2, section 5 (K tokens in parallel; text not at hand), the strong reading [R]",
    origin="here",
    statement="Sampling K tokens a step is worth K discrete chains.",
    conditions="a single sampled step; with more the variance is at least that of K chains",
    how="property test",
    recorded=STRICTER,
    counterexample=two_steps_of_two_tokens,
)
def k_tokens_are_worth_k_chains(trial: Trial) -> Finding:
    """K tr C^(K) against tr C^(1), which is at most 1, after one sampled step and after several."""
    exact, excess, ratios = 0.0, 0.0, []
    for number in range(trial.size(50, 500)):
        start_V, moves = random_world(2 + number % 6, 4, trial.torch("world", number))
        one_T, three_T = ([float(each.trace()) for each in covariances(start_V, moves, K)] for K in (1, 3))
        exact = max(exact, abs(3 * three_T[1] - one_T[1]))
        if len(start_V) == 2:  # and by every draw of three tokens
            exact = max(exact, abs(float(enumerated(start_V, moves[:1], 3)[1].trace()) - three_T[1]))
        excess = max(excess, 3 * three_T[-1] - one_T[-1])
        ratios.append(3 * three_T[-1] / one_T[-1])
    start_V, moves = random_world(6, 4, trial.torch("curve"))
    curve = [
        float(K * covariances(start_V, moves, K)[-1].trace() / covariances(start_V, moves, 1)[-1].trace())
        for K in range(1, 11)
    ]
    even_V, still = torch.full((2,), 0.5, dtype=torch.float64), [torch.eye(2, dtype=torch.float64)] * 4
    staying = [float(K * covariances(even_V, still, K)[-1][0, 0] / 0.25) for K in range(1, 11)]
    return judged_twice(
        as_stated=excess < EXACT,
        strictly=exact < EXACT,
        evidence=f"K = 3, variance times K against that of one token: equal to {exact:.0e} after one sampled step, "
        f"{min(ratios):.3f} to {max(ratios):.3f} times as much after four",
        variance_of_k_tokens=curve,
        variance_if_states_stay=staying,
    )


@claim(
    source="CoT2, section 5 (text not at hand) [R]",
    origin="here",
    statement="The covariance of K-token sampling lies between that of one token over K and that of one token.",
    conditions="linear Markov worlds; as quadratic forms",
    how="property test",
    recorded=HOLDS,
)
def k_token_covariance_is_bounded(trial: Trial) -> Finding:
    """The recursion against sums over all draws on tiny worlds, then its bounds on larger ones."""
    off, least = 0.0, 0.0
    for number in range(trial.size(4, 12)):
        start_V, moves = random_world(2 + number % 2, 2, trial.torch("tiny", number))
        for samples in (1, 2):
            mean_V, covariance_VV = enumerated(start_V, moves, samples)
            off = max(off, _closest(mean_V, means(start_V, moves)[-1]))
            off = max(off, _closest(covariance_VV, covariances(start_V, moves, samples)[-1]))
    for number in range(trial.size(60, 600)):
        start_V, moves = random_world(2 + number % 7, 1 + number % 5, trial.torch("world", number))
        one_VV = covariances(start_V, moves, 1)[-1]
        for samples in (2, 3, 10):
            many_VV = covariances(start_V, moves, samples)[-1]
            least = min(least, least_eigenvalue(many_VV - one_VV / samples), least_eigenvalue(one_VV - many_VV))
    return judged(
        off < EXACT and least > -MATRIX,
        f"recursion and sums over all draws differ by at most {off:.0e}; least eigenvalue of a difference {least:.0e}",
    )


@claim(
    source="CoT2, section 5 (multi-token sampling; text not at hand)",
    origin="paper",
    statement="One token a step is discrete chain of thought, and with growing K the next input tends to base CoT2's.",
    conditions="temperature 1; the mean is the mixture for every K, the variance falls as 1/K",
    how="exact algebra",
    recorded=HOLDS,
)
def multi_token_sampling_interpolates(trial: Trial) -> Finding:
    """The laboratory's thoughts: K = 1 against Token, and mean and variance over all draws of K = 2, 3 tokens."""
    generator = trial.torch("state")
    logits_V, embedding_VD = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((4,), (4, 3)))
    table = Table(embedding_VD)
    at = State(torch.zeros(1, 3).double(), logits_V[None], table)
    mixture_D = MIXTURE.embed(at, MIXTURE.sample(at, None))[0]
    spread = float((logits_V.softmax(-1) @ (embedding_VD - mixture_D) ** 2).sum())
    off = 0.0
    for K in (1, 2, 3):
        thought, ids_RK = MultiToken(K), torch.cartesian_prod(*[torch.arange(4)] * K).view(-1, K)
        state = State(torch.zeros(len(ids_RK), 3).double(), logits_V.expand(len(ids_RK), 4), table)
        action = thought.given(ids_RK)
        latent_RD, chance_R = thought.embed(state, action), thought.log_prob(state, action).exp()
        variance = float((chance_R @ (latent_RD - mixture_D) ** 2).sum())
        off = max(off, _closest(chance_R @ latent_RD, mixture_D), abs(K * variance / spread - 1))
        if K == 1:
            token, said = Token(temperature=1.0), GREEDY.given(ids_RK[:, 0])
            off = max(off, _closest(latent_RD, token.embed(state, said)))
            off = max(off, _closest(chance_R, token.log_prob(state, said).exp()))
    return judged(off < EXACT, f"K = 1 is Token, means are the mixture, K times the variance is constant: to {off:.0e}")


@claim(
    source="CoT2, section 5 (Dirichlet sampling; text not at hand) [R]",
    origin="here",
    statement="Dirichlet latents of concentration gamma have mean and covariance of K = gamma + 1 tokens.",
    conditions="linear Markov worlds, two states, two steps, K = 2, 3; to second order only, third moments differ",
    how="exact algebra",
    recorded=HOLDS,
)
def dirichlet_matches_k_tokens(trial: Trial) -> Finding:
    """Two states, two sampled steps: quadrature over the laboratory's density against sums over all draws."""
    off, third = 0.0, 0.0
    for number, K in enumerate((2, 3)):
        start_V, moves = random_world(2, 2, trial.torch("world", number))
        start_V, *moves = (0.8 * each + 0.1 for each in (start_V, *moves))  # off corners: the grid is too coarse there
        thought, model = Dirichlet(K - 1.0), LinearMarkov(start_V, moves)
        paths = simplex_paths(thought, 2)
        prompt_BN = torch.zeros(len(paths.log_weight), 1, dtype=torch.int64)
        last = GREEDY.given(torch.zeros_like(prompt_BN))
        run = force(model, (Segment(thought, 2, paths.action), Segment(GREEDY, 1, last)), prompt_BN)
        weight_B = (run.log_prob_BT[:, :-1].sum(1) + paths.log_weight).exp()
        alpha_BV = run.logits_BTV[:, -1].exp()
        mean_V = weight_B @ alpha_BV
        covariance_VV = (alpha_BV * weight_B[:, None]).T @ alpha_BV - torch.outer(mean_V, mean_V)
        draws_V, draws_VV = enumerated(start_V, moves, K)
        off = max(off, _closest(mean_V, draws_V), _closest(covariance_VV, draws_VV))
        third = max(third, abs(_third_moments(float(start_V[0]), K)))
    return judged(
        off < 1e-6,
        f"means and covariances differ by at most {off:.0e} (quadrature); third central moments of one step by "
        f"{third:.1e}",
    )


def _third_moments(p: float, K: int) -> float:
    """Third central moment of a share of one Dirichlet(K - 1) step minus that of K tokens, in closed form."""
    skew = float(scipy.stats.beta(p * (K - 1), (1 - p) * (K - 1)).stats("s"))
    return skew * (p * (1 - p) / K) ** 1.5 - p * (1 - p) * (1 - 2 * p) / K**2


@claim(
    source="CoT2, section 5 (error of the average; text not at hand)",
    origin="paper",
    statement="The error of the average of N sampled runs falls like 1/sqrt(N), and K tokens a step lower it further.",
    conditions="linear Markov worlds; squared error tr C^(K) / N exactly, absolute error at most sum sqrt(C_ii / N)",
    how="statistical",
    recorded=HOLDS,
)
def error_falls_like_root_n(trial: Trial) -> Finding:
    """Batches of N runs through the engine: squared error against tr C / N, absolute error against its bound."""
    start_V, moves = random_world(5, 3, trial.torch("world"))
    truth_V, batches, said, right = means(start_V, moves)[-1], trial.size(400, 4000), [], True
    for K, N in ((1, 4), (1, 16), (3, 16)):
        rows = batches * N
        streams = Streams(derive(trial.seed, "runs", K, N), torch.arange(rows))
        plan = (Segment(MultiToken(K), 3), Segment(GREEDY, 1))
        run = rollout(LinearMarkov(start_V, moves), plan, torch.zeros(rows, 1, dtype=torch.int64), streams=streams)
        error_GV = run.logits_BTV[:, -1].detach().exp().view(batches, N, -1).mean(1) - truth_V
        squared, absolute = expected_error(covariances(start_V, moves, K)[-1], N)
        test = z_test((error_GV**2).sum(1).numpy(), squared)
        l1 = z_test(error_GV.abs().sum(1).numpy(), absolute)  # the bound; only a mean above it counts against
        right &= not test.rejected and not (l1.rejected and l1.mean > absolute)
        said.append(f"K = {K}, N = {N}: {test}, absolute error {l1.mean:.4f} of at most {absolute:.4f}")
    return judged(right, "squared error, measured against tr C / N: " + "; ".join(said))


# ---------------------------------------------------------------------------------------------------------------------
# Capacity


@claim(
    source="CoT2, section 4 (capacity of z; text not at hand), sharpened by Wendel 1962, Donoho and Tanner 2010 [R]",
    origin="here",
    statement="A superposition of width d holds k of v states, their sum unknown, with a probability that depends on "
    "(d, v, k) alone: P(Bin(v - k - 1, 1/2) <= d - k - 1).",
    conditions="normal random embeddings",
    how="statistical",
    recorded=HOLDS,
)
def superposition_holds_what_wendel_says(trial: Trial) -> Finding:
    """A linear programme over random embeddings against the closed form, exact binomial tests."""
    draws, least, said = trial.size(300, 3000), 1.0, []
    for width, states, vocabulary in ((6, 2, 10), (8, 3, 12), (10, 1, 20)):
        share = held_share(width, states, vocabulary, draws, trial.numpy("embeddings", width), known_sum=False)
        chance = wendel(width, states, vocabulary)
        least = min(least, float(scipy.stats.binomtest(round(share * draws), draws, chance).pvalue))
        said.append(f"(d, k, v) = ({width}, {states}, {vocabulary}): {share:.3f} against {chance:.3f}")
    seen = (scipy.stats.norm.isf(ALPHA / 2) + scipy.stats.norm.ppf(POWER)) * math.sqrt(0.25 / draws)
    return judged(
        least > ALPHA,
        f"{'; '.join(said)} of {draws} embeddings (three exact binomial tests, level {ALPHA:g} each, a difference of "
        f"{seen:.2f} is noticed with probability {POWER:g})",
    )


@claim(
    source="CoT2, section 4 (capacity of z; text not at hand), sharpened by Donoho and Tanner 2005 [R]",
    origin="here",
    statement="A distribution over k of v states survives in z = E^T alpha up to a threshold in (d, v, k), which gets "
    "sharper as k and v grow together.",
    conditions="normal random embeddings, sum 1; v = 89: at least 9 of 10 above 1.5 d*, at most 2 of 10 below 0.5 d*; "
    "k = v/10: at 0.7 and 1.3 d* fewer are on the wrong side with v = 160 than with 40; with 2 of 89 it is not sharp",
    how="statistical",
    recorded=HOLDS,
)
def superposition_has_a_phase_transition(trial: Trial) -> Finding:
    """Embeddings that hold k of v states well above and well below d*; study capacity has the whole curve."""
    draws, right, said = trial.size(150, 600), True, []
    for states in (2, 4, 8):
        middle, generator = needed_width(states, 89), trial.numpy("embeddings", states)
        for width, share, side in ((math.ceil(1.5 * middle), 0.9, "less"), (math.floor(0.5 * middle), 0.2, "greater")):
            held = round(draws * held_share(width, states, 89, draws, generator))
            right &= float(scipy.stats.binomtest(held, draws, share, alternative=side).pvalue) > ALPHA
            right &= (held > draws / 2) == (side == "less")
            said.append(f"k = {states}, d* = {middle:.1f}: {held / draws:.3f} at d = {width}")
    noticed = (scipy.stats.norm.isf(ALPHA) + scipy.stats.norm.ppf(POWER)) * math.sqrt(0.25 / draws)
    few, many = (_misplaced(v, 2 * draws, trial.numpy("sharper", v)) for v in (40, 160))
    counts = [[wrong, 4 * draws - wrong] for wrong in (many, few)]
    right &= float(scipy.stats.fisher_exact(counts, alternative="less").pvalue) <= ALPHA
    shares = " and ".join(f"{wrong / (4 * draws):.3f}" for wrong in (few, many))
    return judged(
        right,
        f"{'; '.join(said)} ({draws} embeddings each; six exact binomial tests of at least 0.9 and at most 0.2, level "
        f"{ALPHA:g} each, a difference of {noticed:.2f} is noticed with probability {POWER:g}); on the wrong side at "
        f"0.7 and 1.3 d*: {shares} of {4 * draws} with 4 of 40 and 16 of 160 states (Fisher's exact test, same level)",
    )


def _misplaced(vocabulary: int, draws: int, generator: np.random.Generator) -> int:
    """How many of twice `draws` embeddings of v states hold a tenth of them at 0.7 d*, or do not at 1.3 d*."""
    states = vocabulary // 10
    middle = needed_width(states, vocabulary)
    below = held_share(math.floor(0.7 * middle), states, vocabulary, draws, generator)
    above = held_share(math.ceil(1.3 * middle), states, vocabulary, draws, generator)
    return round(draws * (below + 1 - above))
