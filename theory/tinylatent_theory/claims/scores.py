"""Claims about what a policy's loss is made of: the score of Dirichlet latents, and the divergence estimator k3.

The score of a latent a ~ Dirichlet(gamma alpha) is the gradient of its log-density in the logits of alpha. The
laboratory samples log a and never a itself.

Letters: n draws, V vocabulary, c = gamma alpha concentrations, p current and q reference policy.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Dirichlet as TorchDirichlet
from torch.distributions import kl_divergence

from tinylatent.core.seeds import Streams, derive
from tinylatent.engine.distributions import log_concentration, log_dirichlet
from tinylatent.engine.thought import State
from tinylatent.engine.thoughts import Dirichlet
from tinylatent.lab.findings import FAILS, HOLDS, Finding
from tinylatent.models.backbone import Table
from tinylatent.objectives.policy_gradient import k3
from tinylatent_theory.claims.ledger import EXACT, Trial, ZTest, claim, judged, relative, z_test
from tinylatent_theory.predictions.enumeration import dirichlet_information, simplex_paths

DIGITS = 1e-7
"""Relative error of the curvature: the digamma function of tiny concentrations takes its last digits."""


def log_density(logits_nV: Float[Tensor, "n V"], gamma: float, log_a_nV: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
    """The laboratory's log-density of every point; it reads the logits alone, so the state has no width."""
    n, V = logits_nV.shape
    thought, state = Dirichlet(gamma), State(torch.empty(n, 0), logits_nV, Table(torch.empty(V, 0)))
    return thought.log_prob(state, thought.given(log_a_nV))


def dirichlet_scores(
    logits_V: Float[Tensor, " V"], gamma: float, log_a_nV: Float[Tensor, "n V"]
) -> Float[Tensor, "n V"]:
    """The gradient of the laboratory's log-density of every point, in the logits."""
    n, V = log_a_nV.shape
    logits_nV = logits_V.expand(n, V).clone().requires_grad_()
    return torch.autograd.grad(log_density(logits_nV, gamma, log_a_nV).sum(), logits_nV)[0]


def quadrature_score(logits_V: Float[Tensor, "2"], gamma: float) -> Float[Tensor, "2"]:
    """Mean score of two tokens, by the grid over their simplex."""
    paths = simplex_paths(Dirichlet(gamma), 1, reach=14.0, spacing=0.125)
    log_a_nV = paths.action["log_a"][:, 0]
    chance_n = (log_density(logits_V.expand(len(log_a_nV), 2), gamma, log_a_nV) + paths.log_weight).exp()
    return chance_n @ dirichlet_scores(logits_V, gamma, log_a_nV)


def worst_mean(score_nV: Float[Tensor, "n V"]) -> ZTest:
    """The logit whose mean score is farthest from 0, in standard errors."""
    tests = [z_test(score_n.numpy(), 0.0, looks=score_nV.shape[1]) for score_n in score_nV.T]
    return max(tests, key=lambda test: abs(test.mean) / test.error)


@claim(
    source="folklore (every smooth density's score has mean zero)",
    origin="folklore",
    statement="The score of a Dirichlet latent has mean zero in every logit, however small the concentrations.",
    conditions="log a is sampled in log space; samplers that return a itself clamp what is too small for a float",
    how="statistical",
    recorded=HOLDS,
)
def dirichlet_score_has_mean_zero(trial: Trial) -> Finding:
    """Uses quadrature for two tokens, and the laboratory's sampler at concentrations of 2.5e-7, torch's beside it."""
    generator = trial.torch("logits")
    exact = 0.0
    for gamma in (0.5, 2.0, 10.0):
        logits_V = torch.rand(2, generator=generator, dtype=torch.float64)
        exact = max(exact, float(quadrature_score(logits_V, gamma).abs().max()))
    n, gamma, rest = trial.size(4000, 100_000), 2.0, 1e-6
    alpha_V = torch.tensor([0.7 * (1 - rest), 0.3 * (1 - rest), *[rest / 8] * 8], dtype=torch.float64)
    log_c_nV = log_concentration(alpha_V.log(), gamma).expand(n, -1)
    log_a_nV = log_dirichlet(Streams(derive(trial.seed, "dirichlet"), torch.arange(n)), log_c_nV)
    test = worst_mean(dirichlet_scores(alpha_V.log(), gamma, log_a_nV))
    # torch.distributions.Dirichlet draws by this function, from the global generator
    clamped_nV = torch._sample_dirichlet(log_c_nV.exp(), generator=trial.torch("clamped")).log()
    off_V = dirichlet_scores(alpha_V.log(), gamma, clamped_nV).mean(0)
    return judged(
        exact < EXACT and not test.rejected,
        f"two tokens by quadrature: {exact:.0e}; ten tokens, eight of them sharing {rest:g}, worst mean score {test}; "
        f"of torch's clamped sampler {off_V[2]:.2f} for each unlikely token and {off_V[0]:.2f} for the likeliest",
    )


def dirichlet_curvature(alpha_V: Float[Tensor, " V"], gamma: float) -> float:
    """Trace of the Fisher information in the logits: the curvature of torch's divergence at equal distributions."""
    fixed = TorchDirichlet(gamma * alpha_V, validate_args=False)

    def divergence(logits_V: Tensor) -> Tensor:
        return kl_divergence(fixed, TorchDirichlet(gamma * F.softmax(logits_V, -1), validate_args=False))

    return float(torch.autograd.functional.hessian(divergence, alpha_V.log()).trace())


@claim(
    source="[R]",
    origin="here",
    statement="The variance of a Dirichlet latent's score, summed over the logits, is at least one for every token of "
    "the vocabulary but one, however unlikely they are.",
    conditions="any shares and any gamma; a further token whose concentration goes to 0 adds one and sum alpha^2",
    how="exact algebra",
    recorded=HOLDS,
)
def dirichlet_score_grows_with_vocabulary(trial: Trial) -> Finding:
    """The closed form against the curvature of the divergence, its bound V - 1, and what an unlikely token adds."""
    generator, tiny = trial.torch("shares"), 1e-7  # of so small a share, gamma up to 100, the rest is below 1e-4
    curvature, least, added = 0.0, math.inf, 0.0
    for _ in range(trial.size(20, 200)):
        V = int(torch.randint(2, 9, (), generator=generator))
        gamma = 10 ** float(torch.rand((), generator=generator) * 3 - 1)
        alpha_V = F.softmax(3 * torch.randn(V, generator=generator, dtype=torch.float64), -1)
        trace = dirichlet_information(alpha_V.tolist(), gamma)
        curvature = max(curvature, abs(trace / dirichlet_curvature(alpha_V, gamma) - 1))
        least = min(least, trace / (V - 1))
        more = dirichlet_information([*(alpha_V * (1 - tiny)).tolist(), tiny], gamma) - trace
        added = max(added, abs(more - 1 - float(alpha_V @ alpha_V)))
    even, wide = (dirichlet_information([1 / V] * V, gamma) for V, gamma in ((4, 1e-9), (1000, 2.0)))
    return judged(
        curvature < DIGITS and least > 1 - EXACT and added < 1e-4,
        f"closed form and curvature of the divergence agree to {curvature:.0e}; at least {least:.2f} times V - 1, and "
        f"{even:.4f} for 4 equal shares as gamma goes to 0; a token of share {tiny:g} adds 1 + sum alpha^2 to "
        f"{added:.0e}; 1000 equal shares at gamma 2 have {wide:.0f}",
    )


def k2(reference_BT: Float[Tensor, "B T"], current_BT: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Half the squared log-ratio (Schulman 2020, estimator k2): biased in value."""
    return (reference_BT - current_BT) ** 2 / 2


def loss_gradient(
    estimator: Callable[[Tensor, Tensor], Tensor], current_V: Float[Tensor, " V"], reference_V: Float[Tensor, " V"]
) -> tuple[float, Float[Tensor, " V"]]:
    """Mean of an estimator over the current policy's own actions, and of its gradient in the logits, actions given."""
    logits_V = current_V.clone().requires_grad_()
    log_p_V, log_q_V = F.log_softmax(logits_V, -1), F.log_softmax(reference_V, -1)
    mean = log_p_V.detach().exp() @ estimator(log_q_V[:, None], log_p_V[:, None])[:, 0]
    return mean.item(), torch.autograd.grad(mean, logits_V)[0]


def kl_gradient(
    current_V: Float[Tensor, " V"], reference_V: Float[Tensor, " V"], reverse: bool = False
) -> tuple[float, Float[Tensor, " V"]]:
    """KL(current || reference), or of the reverse order, and its gradient in the current logits."""
    logits_V = current_V.clone().requires_grad_()
    p_V, q_V = F.softmax(logits_V, -1), F.softmax(reference_V, -1)
    first_V, second_V = (q_V, p_V) if reverse else (p_V, q_V)
    value = (first_V * (first_V / second_V).log()).sum()
    return value.item(), torch.autograd.grad(value, logits_V)[0]


def even_against_nine_to_one() -> str:
    """Two tokens: current (1/2, 1/2), reference (9/10, 1/10)."""
    current_V, reference_V = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64).log()
    ours, forward, reverse = (
        gradients[1][0]
        for gradients in (
            loss_gradient(k3, current_V, reference_V),
            kl_gradient(current_V, reference_V),
            kl_gradient(current_V, reference_V, reverse=True),
        )
    )
    return (
        f"current (0.5, 0.5), reference (0.9, 0.1), in the first logit: k3 has gradient {ours:.4f}, "
        f"KL(current || reference) {forward:.4f}, KL(reference || current) {reverse:.4f}"
    )


@claim(
    source="folklore on GRPO (Shao et al. 2024, arXiv 2402.03300, equation 4, after Schulman 2020)",
    origin="folklore",
    statement="k3 as a loss over the policy's own actions has the gradient of KL(current || reference).",
    conditions="actions given, no gradient through their sampling; it has the gradient of KL(reference || current)",
    how="exact algebra",
    recorded=FAILS,
    counterexample=even_against_nine_to_one,
)
def k3_gradient_is_that_of_its_kl(trial: Trial) -> Finding:
    """Sums over all actions of random policies, against autograd through both divergences."""
    generator, value, forward, reverse, squared = trial.torch("policies"), 0.0, 0.0, 0.0, 0.0
    for V in (2, 3, 10):
        for _ in range(trial.size(5, 100)):
            current_V, reference_V = torch.randn(2, V, generator=generator, dtype=torch.float64)
            mean, ours_V = loss_gradient(k3, current_V, reference_V)
            kl, forward_V = kl_gradient(current_V, reference_V)
            value = max(value, abs(mean - kl))
            forward = max(forward, relative(ours_V, forward_V))
            reverse = max(reverse, relative(ours_V, kl_gradient(current_V, reference_V, reverse=True)[1]))
            squared = max(squared, relative(loss_gradient(k2, current_V, reference_V)[1], forward_V))
    return judged(
        forward < EXACT,
        f"its mean is KL(current || reference) to {value:.0e}; its gradient is off that one's by up to {forward:.2f} "
        f"of it, and that of KL(reference || current) to {reverse:.0e}; half the squared log-ratio, k2, has the "
        f"gradient of KL(current || reference) to {squared:.0e}",
    )
