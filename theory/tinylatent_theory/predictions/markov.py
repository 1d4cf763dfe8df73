"""Latents in a linear Markov world: what sampled thoughts have for mean and covariance, exactly (CoT2, section 5).

Assume that the next distribution depends on the last input alone, and linearly: alpha_{t+1} = P_t^T x_t, where x_t is
alpha_t itself (base CoT2), the mean of K tokens drawn from it (multi-token sampling), or a Dirichlet draw around it.
Then E alpha_t is base CoT2's alpha_t whatever is sampled, and the covariances C_t follow a recursion:

    C_{t+1} = P_t^T [(diag(a_t) - a_t a_t^T - C_t) / K + C_t] P_t        a_t = E alpha_t,    C_1 = 0

because Cov(x_t | alpha_t) = (diag(alpha_t) - alpha_t alpha_t^T) / K. For a Dirichlet of concentration gamma it is the
same with K = gamma + 1. By induction C^(1) / K <= C^(K) <= C^(1) as quadratic forms: K tokens a step are worth at most
K chains, and at least one.

`LinearMarkov` is that world as a Backbone, so that the laboratory's own thoughts and engine can be held against it.

Letters: B rows, V states, T steps, K samples, N chains.
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tinylatent.models.backbone import Cache, Edit, Table, default_positions

Matrix = Float[Tensor, "V V"]


def means(start_V: Float[Tensor, " V"], moves: Sequence[Matrix]) -> list[Float[Tensor, " V"]]:
    """a_1, a_2, ..: the distribution after every step, whatever is sampled on the way."""
    found = [start_V]
    for move_VV in moves:
        found.append(move_VV.T @ found[-1])
    return found


def covariance_step(mean_V: Float[Tensor, " V"], covariance_VV: Matrix, move_VV: Matrix, samples: float) -> Matrix:
    """C_{t+1} from a_t and C_t; `samples` is K, or gamma + 1 for Dirichlet thoughts.

    Raises:
        ValueError: fewer than one sample.
    """
    if not samples >= 1:
        raise ValueError(f"{samples} samples: expected at least 1 token a step, or gamma + 1")
    drawn_VV = torch.diag(mean_V) - torch.outer(mean_V, mean_V) - covariance_VV
    return move_VV.T @ (drawn_VV / samples + covariance_VV) @ move_VV


def covariances(start_V: Float[Tensor, " V"], moves: Sequence[Matrix], samples: float) -> list[Matrix]:
    """C_1, C_2, ..: the covariance of alpha_t over runs, for every step."""
    found = [torch.zeros(len(start_V), len(start_V)).to(start_V)]
    for mean_V, move_VV in zip(means(start_V, moves), moves, strict=False):
        found.append(covariance_step(mean_V, found[-1], move_VV, samples))
    return found


def expected_error(covariance_VV: Matrix, chains: int) -> tuple[float, float]:
    """Error of a mean of N runs: E |error|_2^2 = tr C / N exactly, and the bound sum sqrt(C_ii / N) on E |error|_1.

    For many chains the second is sqrt(pi / 2) times E |error|_1, which is that of a normal distribution.

    Raises:
        ValueError: fewer than one chain.
    """
    if chains < 1:
        raise ValueError(f"{chains} chains: expected at least 1")
    variance_V = covariance_VV.diagonal().clamp(min=0) / chains
    return float(variance_V.sum()), float(variance_V.sqrt().sum())


def least_eigenvalue(matrix_VV: Matrix) -> float:
    """The least eigenvalue: below 0 if the quadratic form takes negative values."""
    return float(torch.linalg.eigvalsh((matrix_VV + matrix_VV.T) / 2)[0])


def random_world(states: int, steps: int, generator: torch.Generator) -> tuple[Float[Tensor, " V"], list[Matrix]]:
    """A start and transition matrices with rows drawn uniformly from the simplex.

    Raises:
        ValueError: no states, or no steps.
    """
    if states < 1 or steps < 1:
        raise ValueError(f"{states} states and {steps} steps: expected at least 1 of each")

    def rows(count: int) -> Tensor:
        return F.normalize(torch.empty(count, states).double().exponential_(generator=generator), p=1, dim=-1)

    return rows(1)[0], [rows(states) for _ in range(steps)]


def enumerated(
    start_V: Float[Tensor, " V"], moves: Sequence[Matrix], samples: int
) -> tuple[Float[Tensor, " V"], Matrix]:
    """Mean and covariance of the last alpha by going through every sequence of ordered draws: a second solver."""
    V = len(start_V)
    mean_V, second_VV = torch.zeros_like(start_V), torch.zeros(V, V).to(start_V)
    for path in itertools.product(itertools.product(range(V), repeat=samples), repeat=len(moves)):
        alpha_V, chance = start_V, 1.0
        for drawn, move_VV in zip(path, moves, strict=True):
            chance *= math.prod(float(alpha_V[i]) for i in drawn)
            alpha_V = move_VV[list(drawn)].mean(0)
        mean_V = mean_V + chance * alpha_V
        second_VV = second_VV + chance * torch.outer(alpha_V, alpha_V)
    return mean_V, second_VV - torch.outer(mean_V, mean_V)


class LinearMarkov(nn.Module):
    """The world behind the Backbone protocol: tokens are states, hidden states log-probabilities.

    The prompt is one token, which is state 0 by convention: it says nothing, and the first thought is drawn from
    `start_V`. After the input x of step t the next distribution is P_t^T x.
    """

    def __init__(self, start_V: Float[Tensor, " V"], moves: Sequence[Matrix]):
        super().__init__()
        self.start_V, self.moves_TVV = nn.Parameter(start_V), nn.Parameter(torch.stack([*moves]))

    @property
    def table(self) -> Table:
        """One-hot: an input is a point of the simplex."""
        return Table(torch.eye(len(self.start_V)).to(self.start_V))

    def readout(self, hidden: Float[Tensor, "*shape V"]) -> Float[Tensor, "*shape V"]:
        """The hidden state itself."""
        return hidden

    def forward(
        self,
        embeddings_BTD: Float[Tensor, "B T V"],
        cache: Cache | None = None,
        mask_BS: Bool[Tensor, "B S"] | None = None,
        positions_BT: Int[Tensor, "rows T"] | None = None,
        edit: Edit | None = None,
        read_from: int = 0,
        keep: bool = True,
    ) -> tuple[Float[Tensor, "B R V"], Cache]:
        """Log-probabilities after each slot from `read_from` on; the cache only counts slots.

        Raises:
            ValueError: more steps than the world has.
        """
        B, T, V = embeddings_BTD.shape
        past = 0 if cache is None else cache.size
        if positions_BT is None:
            positions_BT = default_positions(past, T, mask_BS, embeddings_BTD.device)
        if int(positions_BT.max()) > len(self.moves_TVV):
            raise ValueError(
                f"step {int(positions_BT.max()) + 1} of a world with {len(self.moves_TVV) + 1}: think less"
            )
        move_BTVV = self.moves_TVV[(positions_BT - 1).clamp(min=0)].expand(B, T, V, V)
        next_BTV = (embeddings_BTD[:, :, None] @ move_BTVV)[:, :, 0]
        first_BT1 = (positions_BT == 0)[..., None]
        return torch.where(first_BT1, self.start_V, next_BTV).log()[:, read_from:], Cache(past + T, ())

    def flops(self, new: int, past: int = 0, read: int | None = None) -> int:
        """One product of a row and a matrix for each slot."""
        return 2 * len(self.start_V) ** 2 * new
