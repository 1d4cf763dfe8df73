"""Claims about CoLaR, compressed latent reasoning (Tan et al. 2025, arXiv 2505.16552).

A group of c token embeddings becomes one latent, their sum over sqrt(c); a latent head predicts the next one as a
normal distribution with mean mu and standard deviation sigma, by likelihood or by a softened squared error. Pooling,
losses, densities and stops are those of `tinylatent.methods.colar`. Where a source is the authors' project page or
code, the paper's own text was not compared.

Letters: V vocabulary, c tokens of a group, G groups, T tokens of a chain or steps, N chains or cases, d width, v mean
squared residual, P weights.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import scipy
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from tinylatent.engine.force import force
from tinylatent.engine.plan import Segment
from tinylatent.engine.thought import Action, State
from tinylatent.lab.findings import FAILS, HOLDS, STRICTER, Finding
from tinylatent.methods.colar import Ending, Gaussian, LatentHead, log_density, nll, pooled, soft_mse
from tinylatent.models.backbone import Table
from tinylatent.models.decoder import Decoder, ModelConfig
from tinylatent.objectives.policy_gradient import clipped
from tinylatent_theory.claims.ledger import EXACT, Trial, claim, judged, judged_twice

CLIP = 0.2
"""How far from 1 a policy ratio may go before the objective is flat (CoLaR's code; GRPO's and PPO's default)."""


def compressed(tokens_cd: Float[Tensor, "*rows c d"]) -> Float[Tensor, "*rows d"]:
    """CoLaR's latent of a group of token embeddings: their sum over sqrt(c) (section 3.1)."""
    return pooled(tokens_cd, torch.ones(tokens_cd.shape[:-1], dtype=torch.bool))


# ---------------------------------------------------------------------------------------------------------------------
# The latent of a group


def equal_tokens() -> str:
    """Two equal tokens: the group's latent has twice their variance."""
    token_d = torch.tensor([1.0, -1.0], dtype=torch.float64)
    latent_d = compressed(torch.stack([token_d, token_d]))
    return f"two equal tokens of variance {token_d.var(correction=0):g} make a latent of {latent_d.var(correction=0):g}"


def growth(tokens_V: Float[Tensor, " V"], c: int, repeat: float) -> tuple[float, float]:
    """Variance and mean square of a group's latent over the tokens', from every group and its probability.

    Args:
        tokens_V: embeddings of width 1, all equally likely.
        c: tokens of a group.
        repeat: chance that a token is the one before again; otherwise it is drawn anew.
    """
    V = len(tokens_V)
    ids_Nc = torch.cartesian_prod(*[torch.arange(V)] * c).view(-1, c)
    again_Nc = (ids_Nc[:, 1:] == ids_Nc[:, :-1]).double()
    chance_N = (repeat * again_Nc + (1 - repeat) / V).prod(1) / V
    latent_N = compressed(tokens_V[ids_Nc][..., None])[:, 0]
    mean, square = float(chance_N @ latent_N), float(chance_N @ latent_N**2)
    return (square - mean**2) / float(tokens_V.var(correction=0)), square / float((tokens_V**2).mean())


@claim(
    source="CoLaR, section 3.1 (text not at hand)",
    origin="paper",
    statement="Dividing the sum of c token embeddings by sqrt(c) keeps their variance.",
    conditions="independent embeddings; of mean zero, for the mean square to be kept too",
    how="exact algebra",
    recorded=STRICTER,
    counterexample=equal_tokens,
)
def colar_root_c_keeps_variance(trial: Trial) -> Finding:
    """Draws from random finite vocabularies, independent or repeating: a sum over all groups, exactly."""
    kept = off_scale = 0.0  # largest relative errors of independent tokens: what should vanish, and the scale at mean 1
    repeating = 1.0
    for c in range(2, trial.size(4, 6)):
        tokens_V = torch.randn(5, generator=trial.torch("tokens", c), dtype=torch.float64)
        centred_V = tokens_V - tokens_V.mean()
        variance, square = growth(centred_V, c, repeat=0.0)
        variance_1, square_1 = growth(centred_V + 1, c, repeat=0.0)
        kept = max(kept, abs(variance - 1), abs(square - 1), abs(variance_1 - 1))
        off_scale = max(off_scale, abs(square_1 - 1))
        repeating = max(repeating, growth(centred_V, c, repeat=0.5)[0])
    return judged_twice(
        as_stated=max(kept, off_scale, repeating - 1) < EXACT,
        strictly=kept < EXACT,
        evidence=f"independent tokens: variance kept to {kept:.0e} at any mean, the mean square too at mean 0, but at "
        f"mean 1 it is {off_scale:.2g} times that off; tokens that repeat half of the time: {repeating:.3g} times the "
        "variance",
    )


def latents(chains_NT: Int[Tensor, "N T"], embedding_Vd: Float[Tensor, "V d"], c: int) -> Float[Tensor, "N G d"]:
    """The latents of whole chains, in groups of c from the left; T is a multiple of c."""
    return compressed(embedding_Vd[chains_NT.unflatten(1, (-1, c))])


def best_accuracy(latents_NGd: Float[Tensor, "N G d"], answer_N: Int[Tensor, " N"]) -> float:
    """How often the best reader of the latents knows the answer, all chains equally likely."""
    classes, class_N = latents_NGd.flatten(1).unique(dim=0, return_inverse=True)
    counts = torch.zeros(len(classes), int(answer_N.max()) + 1)
    counts.index_put_((class_N, answer_N), torch.ones(len(answer_N)), accumulate=True)
    return float(counts.amax(1).sum()) / len(answer_N)


@claim(
    source="[R]; CoLaR, section 3.1 (the sum; text not at hand)",
    origin="here",
    statement="A latent is the same for every order of the tokens in its group, so that chains whose answers differ "
    "by that order alone cannot be told apart.",
    conditions="all chains of up to six tokens of vocabularies of two to four; groups of two, three and six; random "
    "integer embeddings, whose sums are exact",
    how="exhaustive",
    recorded=HOLDS,
)
def colar_sum_forgets_order(trial: Trial) -> Finding:
    """Every chain against its sorted self, and the best reader's accuracy on an answer with and without order."""
    true, notes = True, []
    for V, T, c in ((2, 2, 2), (3, 4, 2), (3, 6, 3), (4, 6, 2), (4, 6, 6))[: trial.size(4, 5)]:
        embedding_Vd = torch.randint(-(2**40), 2**40, (V, 2), generator=trial.torch("order", V, T, c)).double()
        chains_NT = torch.cartesian_prod(*[torch.arange(V)] * T)
        sorted_NT = chains_NT.unflatten(1, (-1, c)).sort(-1).values.flatten(1)
        latents_NGd = latents(chains_NT, embedding_Vd, c)
        same = bool((latents_NGd == latents(sorted_NT, embedding_Vd, c)).all())
        kinds = len(latents_NGd.flatten(1).unique(dim=0))
        multisets = math.comb(V + c - 1, c) ** (T // c)
        ordered_N = (chains_NT * 2 ** torch.arange(T).flip(0)).sum(1) % 5  # y <- 2 y + token, modulo 5
        accuracy = best_accuracy(latents_NGd, ordered_N)
        whole = best_accuracy(latents(chains_NT, embedding_Vd, 1), ordered_N)
        unordered = best_accuracy(latents_NGd, chains_NT.sum(1) % 5)
        true = true and same and kinds == multisets and accuracy < 1 and whole == unordered == 1
        notes.append(f"{accuracy:.3f} (V {V}, T {T}, c {c}: {kinds} latents of {len(chains_NT)} chains)")
    return judged(
        true,
        "equal for every order in a group; the best reader of y <- 2 y + token mod 5 is right with "
        f"{', '.join(notes)}; at c = 1, and on the sum of the tokens, always",
    )


# ---------------------------------------------------------------------------------------------------------------------
# The losses of the latent head


def soft_mse_sigma(alpha: float) -> float:
    """The sigma at which soft-MSE is least ([R])."""
    return math.sqrt(alpha / 2)


def printed_nll(
    residual: Float[Tensor, "*rows"], sigma: Float[Tensor, "*rows"] | Float[Tensor, ""]
) -> Float[Tensor, "*rows"]:
    """The latent loss as printed, residual^2 / (2 sigma) + log sigma (project page)."""
    return residual**2 / (2 * sigma) + sigma.log()


def best_sigma(loss: Callable[[Tensor], Tensor]) -> float:
    """Where a loss of sigma, its mean over rows, is least: the root of its derivative by autograd, over log sigma."""

    def slope(log_sigma: float) -> float:
        at = torch.tensor(log_sigma, dtype=torch.float64, requires_grad=True)
        return float(torch.autograd.grad(loss(at.exp()).mean(), at)[0])

    return math.exp(scipy.optimize.brentq(slope, math.log(1e-5), math.log(1e5), xtol=1e-14))


def sampled_soft_mse(residual_N: Tensor, sigma: Tensor, alpha: float) -> Float[Tensor, ""]:
    """E (residual + sigma epsilon)^2 - alpha H by Gauss-Hermite quadrature over epsilon, one for all N coordinates."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    epsilon_K, weight_K = torch.tensor(nodes), torch.tensor(weights / math.sqrt(2 * math.pi))
    square_K = ((residual_N[:, None] + sigma * epsilon_K) ** 2).mean(0)
    surprise_K = -Normal(torch.zeros_like(sigma), sigma).log_prob(sigma * epsilon_K)
    return (weight_K * (square_K - alpha * surprise_K)).sum()


@claim(
    source="[R]; CoLaR, soft-MSE as on the project page",
    origin="here",
    statement="Soft-MSE, E (mu + sigma epsilon - e)^2 - alpha H, is least at sigma = sqrt(alpha / 2) for any data.",
    conditions="alpha > 0; any targets and any mean; sigma free",
    how="exact algebra",
    recorded=HOLDS,
)
def colar_soft_mse_sigma(trial: Trial) -> Finding:
    """The expectation by quadrature: its value against the closed form, its stationary point against sqrt(alpha/2)."""
    worst = {"value": 0.0, "sigma": 0.0}
    for alpha in (1e-6, 1e-3, 0.1, 1.0, 10.0):
        for case in range(trial.size(4, 20)):
            scale = 10.0 ** (case % 4 - 2)
            residual_N = torch.randn(7, generator=trial.torch("soft", case), dtype=torch.float64) * scale
            best = best_sigma(partial(sampled_soft_mse, residual_N, alpha=alpha))
            worst["sigma"] = max(worst["sigma"], abs(best / soft_mse_sigma(alpha) - 1))
            for sigma in torch.tensor([0.03, 0.5, 4.0], dtype=torch.float64):
                numeric = float(sampled_soft_mse(residual_N, sigma, alpha))
                closed = float(soft_mse(residual_N, sigma, alpha).mean())
                worst["value"] = max(worst["value"], abs(closed - numeric) / (abs(numeric) + 1e-3))
    return judged(
        max(worst.values()) < EXACT,
        f"the numerical optimum is sqrt(alpha/2) to {worst['sigma']:.0e} for alpha 1e-6 to 10 and residuals of .01 to "
        f"10, and the closed form is the expectation to {worst['value']:.0e}; alpha = 1e-6 means sigma = "
        f"{soft_mse_sigma(1e-6):.2g}",
    )


def printed_optimum() -> str:
    """One residual of 1: the printed loss and the likelihood are least at different sigma."""
    residual = torch.ones((), dtype=torch.float64)
    printed = best_sigma(partial(printed_nll, residual))
    true = best_sigma(partial(nll, residual))
    return f"with a residual of 1 the printed loss is least at sigma = {printed:.3g}, the likelihood at {true:.3g}"


@claim(
    source="CoLaR, latent loss as printed on the project page",
    origin="paper",
    statement="The latent loss (e - mu)^2 / (2 sigma) + log sigma is the negative log-likelihood of a normal "
    "distribution, up to a constant.",
    conditions="with 2 sigma^2 in the denominator, as in the authors' code; as printed its optimum is right at v = 4 "
    "alone",
    how="exact algebra",
    recorded=FAILS,
    counterexample=printed_optimum,
)
def colar_printed_nll(trial: Trial) -> Finding:
    """Compares with torch's normal distribution: the difference should be constant, and the optimum sqrt(v)."""
    spread, off, half, shipped = 0.0, 0.0, 0.0, 0.0
    for case, scale in enumerate((0.1, 0.5, 1.0, 10.0)):
        residual_N = torch.randn(trial.size(50, 500), generator=trial.torch("nll", case), dtype=torch.float64) * scale
        v = float((residual_N**2).mean())
        sigma_N = torch.rand(len(residual_N), generator=trial.torch("sigma", case), dtype=torch.float64) + 0.5
        gap_N = printed_nll(residual_N, sigma_N) - nll(residual_N, sigma_N)
        normal_N = -Normal(torch.zeros_like(sigma_N), sigma_N).log_prob(residual_N)
        shipped = max(shipped, float((nll(residual_N, sigma_N) - normal_N).abs().max()))
        spread = max(spread, float(gap_N.max() - gap_N.min()))
        best = best_sigma(partial(printed_nll, residual_N))
        off, half = max(off, abs(best / math.sqrt(v) - 1)), max(half, abs(best / (v / 2) - 1))
    return judged(
        max(spread, off) < EXACT,
        f"the two differ by what is no constant (it varies by {spread:.2g}); the printed optimum misses sqrt(v) by up "
        f"to {off:.2g} times that and is v/2 to {half:.0e}; the method's own loss is torch's to {shipped:.0e}",
    )


# ---------------------------------------------------------------------------------------------------------------------
# The policy ratio of a latent


def mean_log_ratio(
    action: Float[Tensor, "*rows d"],
    old_mean: Float[Tensor, "*rows d"],
    new_mean: Float[Tensor, "*rows d"],
    sigma: Float[Tensor, "*rows d"],
) -> Float[Tensor, "*rows"]:
    """log of the ratio in the authors' code: log N(action; mean, sigma), new minus old, averaged over the width."""
    new, old = (log_density(action, mean, sigma, "mean") for mean in (new_mean, old_mean))
    return new - old


def two_coordinates() -> str:
    """Width 2: a ratio within the clip whose true value is outside."""
    zero, shift = torch.zeros(2, dtype=torch.float64), torch.full((2,), 0.6, dtype=torch.float64)
    averaged = float(mean_log_ratio(shift, zero, shift, torch.ones_like(zero)).exp())
    new, old = (MultivariateNormal(mean, torch.eye(2, dtype=torch.float64)) for mean in (shift, zero))
    true = float((new.log_prob(shift) - old.log_prob(shift)).exp())
    return f"width 2, sigma 1, both means from 0 to .6, action at the new mean: {averaged:.4g} instead of {true:.4g}"


def share_outside(mean: float, variance: float) -> float:
    """Chance that a ratio whose logarithm is normal lies outside [1 - CLIP, 1 + CLIP]."""
    law = scipy.stats.norm(mean, math.sqrt(variance))
    return float(law.cdf(math.log(1 - CLIP)) + law.sf(math.log(1 + CLIP)))


def share_clipped(log_ratio_B1: Float[Tensor, "B 1"]) -> float:
    """Share of ratios that the laboratory's clip stops, for an advantage of one sign or the other."""
    sides = [clipped(log_ratio_B1, torch.full((len(log_ratio_B1),), sign), CLIP)[1] for sign in (1.0, -1.0)]
    return float((sides[0] | sides[1]).double().mean())


@claim(
    source="CoLaR's code, policy loss of the RL stage",
    origin="code",
    statement="The exponential of the log-density averaged over the width, new minus old, is the policy ratio of a "
    "latent.",
    conditions="width 1; at width d it is the d-th root of the ratio",
    how="exact algebra",
    recorded=FAILS,
    counterexample=two_coordinates,
)
def colar_mean_density_ratio(trial: Trial) -> Finding:
    """Compares with torch's multivariate normal; then where the clip acts, at width 2048 and a shift of .05 sigma."""
    off, root = 0.0, 0.0
    for d in (2, 3, 8, 32):
        generator = trial.torch("ratio", d)
        draw_4d = torch.randn(4, d, generator=generator, dtype=torch.float64)
        sigma_d = draw_4d[3].abs() + 0.5
        old_d, new_d, action_d = draw_4d[0], draw_4d[0] + 0.3 * draw_4d[1], draw_4d[0] + sigma_d * draw_4d[2]
        true = [MultivariateNormal(mean_d, torch.diag(sigma_d**2)).log_prob(action_d) for mean_d in (new_d, old_d)]
        averaged = mean_log_ratio(action_d, old_d, new_d, sigma_d)
        off = max(off, float((averaged - (true[0] - true[1])).abs()))
        root = max(root, float((averaged - (true[0] - true[1]) / d).abs()))
    d, shift = 2048, 0.05
    noise_Bd = torch.randn(trial.size(500, 2000), d, generator=trial.torch("clip"), dtype=torch.float64)
    zero_Bd = torch.zeros_like(noise_Bd)
    averaged_B = mean_log_ratio(noise_Bd, zero_Bd, zero_Bd + shift, zero_Bd + 1)
    acts = [share_clipped(log_B[:, None]) for log_B in (averaged_B, d * averaged_B)]
    law = [share_outside(-(shift**2) / 2, shift**2 / d), share_outside(-d * shift**2 / 2, d * shift**2)]
    return judged(
        off < EXACT,
        f"off by up to {off:.2g} in the logarithm; it is the d-th root of the ratio to {root:.0e}. At width {d} and a "
        f"shift of {shift} sigma the true ratio (median {math.exp(-d * shift**2 / 2):.2g}) leaves [.8, 1.2] with "
        f"probability {law[1]:.3f}, the averaged one with {law[0]:.2g}; the clip stops {acts[1]:.3f} and {acts[0]:g} "
        f"of samples, and half of the averaged from a shift of {math.sqrt(-2 * math.log(1 - CLIP)):.2f} sigma on",
    )


# ---------------------------------------------------------------------------------------------------------------------
# Decisions to go on


def stop_times(most: int) -> Action:
    """Every way a row may go: to stop after 1, 2, .. most - 1 latents, or to be cut at the limit; one a row."""
    time_N1 = torch.arange(1, most + 1)[:, None]
    return Action({}, torch.arange(most) == time_N1, stop_slot=False)


class Chain:
    """A model that thinks in fixed latents of a small decoder and decides after each whether to stop.

    Args:
        most: the limit of latents.
        generator: of weights and latents.
    """

    def __init__(self, most: int, generator: torch.Generator):
        V, d = 6, 4
        self.backbone = Decoder.fresh(V, most + 2, ModelConfig(width=d, layers=1, heads=1), generator).double()
        with torch.no_grad():
            for weight in self.backbone.parameters():
                weight.mul_(4.0)
        self.head = LatentHead(self.backbone.table, d, True, generator).double()
        self.most = most
        self.vectors_1Td = torch.randn(1, most, d, generator=generator, dtype=torch.float64)

    def log_prob(self, go_on: bool) -> Float[Tensor, " N"]:
        """Log-likelihood of every stop time, decisions to go on counted or not, as CoLaR's thought scores them."""
        ways, N = stop_times(self.most), self.most
        thought = Ending(Gaussian(self.head, 0.0), end=5, go_on=go_on)
        given = Action({"vector": self.vectors_1Td.expand(N, -1, -1)}, ways.stop, stop_slot=False)
        plan = (Segment(thought, self.most, given, min_steps=1),)
        return force(self.backbone, plan, torch.zeros(N, 1, dtype=torch.int64)).log_prob_BT.sum(1)

    def gradient(self, value: Tensor) -> Float[Tensor, " P"]:
        """The gradient of a number by all weights of the decoder."""
        weights = [*self.backbone.parameters()]
        found = torch.autograd.grad(value, weights, allow_unused=True, materialize_grads=True)
        return torch.cat([each.flatten() for each in found])

    def gradients(self, reward_N: Float[Tensor, " N"]) -> tuple[Float[Tensor, " P"], dict[bool, Float[Tensor, " P"]]]:
        """That of the expected reward, and the mean of reward times score by which likelihood the score is of."""
        p_N = self.log_prob(True).exp()
        counted = {
            go_on: self.gradient((p_N.detach() * reward_N * self.log_prob(go_on)).sum()) for go_on in (True, False)
        }
        return self.gradient((p_N * reward_N).sum()), counted


def only_longer_is_right() -> str:
    """At most two latents, the stop as likely as not, and only the second makes the answer right."""
    logit = torch.zeros((), dtype=torch.float64, requires_grad=True)
    table = Table(torch.eye(2, dtype=torch.float64))
    head = LatentHead(table, 2, True, torch.Generator().manual_seed(0)).double()
    logits = torch.stack([torch.zeros_like(logit), logit])[None]
    state = State(torch.zeros(1, 2, dtype=torch.float64), logits, table)
    went_on = Action({"vector": torch.zeros(1, 2, dtype=torch.float64)}, torch.tensor([False]), stop_slot=False)
    found = {}
    for go_on in (True, False):
        log_p = Ending(Gaussian(head, 0.0), end=1, go_on=go_on).log_prob(state, went_on).sum()
        (score,) = torch.autograd.grad(log_p, logit, allow_unused=True, materialize_grads=True, retain_graph=True)
        found[go_on] = 0.5 * float(score)  # its probability times its reward of 1; the other way earns nothing
    return (
        "at most two latents, a stop of probability .5 after the first, a right answer after two alone: the gradient "
        f"of the expected reward by the stop's logit is {found[True]:g}, and {found[False]:g} with the stop alone "
        "counted"
    )


@claim(
    source="CoLaR's code, policy loss of the RL stage",
    origin="code",
    statement="Reward times the score of the stop alone, decisions to go on left out of the likelihood, has the "
    "gradient of the expected reward as its mean.",
    conditions="with every decision to go on counted; a baseline does not mend it",
    how="exact algebra",
    recorded=FAILS,
    counterexample=only_longer_is_right,
)
def colar_go_on_is_left_out(trial: Trial) -> Finding:
    """Sums over all stop times of small decoders: both likelihoods against the gradient of the expected reward."""
    off, whole, score, cosines, centred = 0.0, 0.0, 0.0, [], []
    for case in range(trial.size(6, 40)):
        chain = Chain(2 + case % 5, trial.torch("chain", case))
        reward_N = torch.randint(2, (chain.most,), generator=trial.torch("reward", case)).double()
        reward_N[int(reward_N.argmax())], reward_N[int(reward_N.argmin())] = 1.0, 0.0  # of both kinds
        true_P, counted = chain.gradients(reward_N)
        p_N = chain.log_prob(True).detach().exp()
        size = float(true_P.norm())
        whole = max(whole, float((counted[True] - true_P).norm()) / size, abs(float(p_N.sum()) - 1))
        off = max(off, float((counted[False] - true_P).norm()) / size)
        score = max(score, float(chain.gradients(torch.ones_like(reward_N))[1][False].norm()))
        based_P = chain.gradients(reward_N - p_N @ reward_N)[1][False]
        cosines.append(float(torch.cosine_similarity(counted[False], true_P, 0)))
        centred.append(float(torch.cosine_similarity(based_P, true_P, 0)))
    return judged(
        max(off, score) < EXACT,
        f"all decisions counted it is the gradient to {whole:.0e}; the stop alone misses by up to {off:.3g} times its "
        f"norm, with cosines down to {min(cosines):.3f}, or {min(centred):.3f} with the mean reward as baseline; equal "
        f"rewards, whose gradient is 0, have one of norm up to {score:.3g}, towards stopping",
    )
