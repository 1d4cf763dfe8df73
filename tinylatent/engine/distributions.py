"""Distributions that thoughts sample from, every row from its own stream: categorical, gamma, Dirichlet.

The Dirichlet is sampled and scored in log space. A sampler that returns the simplex point clamps components near zero,
and their logarithms are then wrong: the mean score of a logit, which should be 0, is off by several units.

Letters: B rows, V vocabulary, K samples, M pairs of a row and a component.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tinylatent.core.precision import back, wide
from tinylatent.core.seeds import Streams

DIVERGED = (
    "there is nothing to choose from: the logits are not finite, training diverged; lower training.learning_rate, or "
    "take an earlier checkpoint (or a thought of your own fed back what is not finite)"
)
FLOOR = 1e-30
"""Smaller concentrations are raised to this, so that the log of a component fits float32."""


def categorical(
    streams: Streams, logits_BV: Float[Tensor, "B V"], count: int = 1, temperature: float = 1.0
) -> tuple[Int[Tensor, "B count"], Float[Tensor, "B count"]]:
    """`count` independent draws from softmax(logits / temperature) by inverting the cumulative distribution, and their
    log-probabilities, without a graph; both are computed in float64.

    Raises:
        ValueError: logits are not finite: training diverged.
    """
    p_BV = F.softmax(wide(logits_BV.detach()) / temperature, dim=-1)
    cumulative_BV = p_BV.cumsum(-1)
    if not cumulative_BV[:, -1].isfinite().all():
        raise ValueError(DIVERGED)
    thresholds_BK = streams.uniform(count) * cumulative_BV[:, -1:]
    ids_BK = torch.searchsorted(cumulative_BV, thresholds_BK, right=True)
    return back(ids_BK, logits_BV.device), back(p_BV.gather(-1, ids_BK).log(), logits_BV.device)


@torch.no_grad()
def log_gamma(streams: Streams, shape_BV: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
    """The logarithm of a gamma variate (scale 1) for every shape > 0, in float64 on the streams' device.

    Marsaglia and Tsang 2000: rejection for shape + 1, then the boost log gamma(shape) = log gamma(shape + 1) +
    log(uniform) / shape, all in log space. A row's result depends on the row alone: every attempt has draw numbers of
    its own. No gradient flows through a draw.

    Raises:
        ValueError: a shape is not positive and finite: training diverged.
    """
    if not ((shape_BV > 0) & shape_BV.isfinite()).all():
        raise ValueError(DIVERGED)
    own, width = streams.branch(), shape_BV.shape[1]
    shape_M = wide(shape_BV).flatten()
    log_M = torch.empty_like(shape_M)
    left_M = torch.arange(len(shape_M), device=shape_M.device)
    attempt = 0
    while len(left_M):
        row_M, draw_M = left_M // width, 4 * (attempt * width + left_M % width)
        u, v, w, boost = (own.pick(row_M, draw_M + index) for index in range(4))
        normal_M = (-2 * u.log()).sqrt() * (2 * math.pi * v).cos()
        centre_M = shape_M[left_M] + 2 / 3
        cube_M = (1 + normal_M / (9 * centre_M).sqrt()) ** 3
        log_cube_M = cube_M.clamp(min=torch.finfo(torch.float64).tiny).log()
        bound_M = normal_M**2 / 2 + centre_M * (1 - cube_M + log_cube_M)
        taken_M = (cube_M > 0) & (w.log() < bound_M)
        value_M = centre_M.log() + log_cube_M + boost.log() / shape_M[left_M]
        log_M[left_M[taken_M]] = value_M[taken_M]
        left_M, attempt = left_M[~taken_M], attempt + 1
    return log_M.view(shape_BV.shape)


def log_concentration(logits: Float[Tensor, "*rows V"], gamma: float) -> Float[Tensor, "*rows V"]:
    """log of the concentrations gamma softmax(logits), none below FLOOR."""
    return (F.log_softmax(logits, -1) + math.log(gamma)).clamp(min=math.log(FLOOR))


def log_dirichlet(streams: Streams, log_concentration_BV: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
    """The logarithm of a draw from the Dirichlet distribution, in the dtype of the concentrations."""
    log_g_BV = log_gamma(streams, wide(log_concentration_BV).exp())
    return F.log_softmax(log_g_BV, -1).to(log_concentration_BV)


def dirichlet_log_density(
    log_concentration: Float[Tensor, "*rows V"], log_a: Float[Tensor, "*rows V"]
) -> Float[Tensor, "*rows"]:
    """Log-density of the Dirichlet distribution at a, with respect to da_1 ... da_V-1 / (a_1 ... a_V).

    The usual density times a_1 ... a_V: the factor depends on the action alone, so ratios and scores are the same, and
    without it they would drown where a component's logarithm is -1e30.
    """
    concentration = log_concentration.exp()
    terms = log_concentration - torch.lgamma(concentration + 1) + concentration * log_a
    return torch.lgamma(concentration.sum(-1)) + terms.sum(-1)
