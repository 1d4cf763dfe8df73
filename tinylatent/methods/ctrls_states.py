"""States of reasoning steps, for CTRLS-style methods: features of a step's hidden states, and clusters of them.

A RECONSTRUCTION after abstracts and quotations of Wu et al. 2025, arXiv 2507.08182, whose body was not at hand and
which has no published code: not the paper's algorithm. Quoted as its eq. 5 are the leading eigenpairs of the Gram
matrix of a step's hidden states; dividing by the number of tokens, signs, clusters and temperatures are ours.

    X = H / sqrt(n) = sum of S_i P_i V_i^T          H: hidden states of a step's n tokens, (n, D)
    e = [S_1 V_1 ; .. ; S_k V_k]                    the largest entry of each V_i in magnitude is positive; 0 past n
    q_j = softmax_j(-|pca(e) - C_j|^2 / (tau s))    C: k-means centres; s: mean squared distance to one's own centre

Letters: B rows, S steps of a chain, n tokens of a step, W tokens of a chain, D width, k directions, F = k D, M steps
that states are fitted to, p dimensions after PCA, K states.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tinylatent.core.precision import back, wide
from tinylatent.core.seeds import derive
from tinylatent.objectives.examples import Examples

Kind = Literal["fitted", "shuffled", "random", "prefix"]
"""What a step's state is: "fitted" the cluster it falls into; "shuffled" that of another step, always the same one for
a problem and a step; "random" the nearest of points that were drawn, not fitted; "prefix" one learned vector for all
steps, without states."""
RESTARTS, ITERATIONS, BANK = 16, 100, 512


# ---------------------------------------------------------------------------------------------------------------------
# Steps of chains


class Steps(NamedTuple):
    """Chains cut into their steps of reasoning, the answer left out."""

    index_BSn: Int[Tensor, "B S n"]
    """Where in the chain a step's tokens are; 0 where it has fewer."""
    real_BSn: Bool[Tensor, "B S n"]
    """Where there is a token."""

    @property
    def count_BS(self) -> Int[Tensor, "B S"]:
        """Tokens of every step; 0 for steps that a row does not have."""
        return self.real_BSn.sum(-1)

    @property
    def live_BS(self) -> Bool[Tensor, "B S"]:
        """Which steps a row has."""
        return self.real_BSn.any(-1)

    def ids(self, chain_BT: Int[Tensor, "B T"]) -> Int[Tensor, "B S n"]:
        """The tokens of every step; 0 where it has fewer."""
        found_BSn = chain_BT.gather(1, self.index_BSn.flatten(1)).view_as(self.index_BSn)
        return found_BSn.masked_fill(~self.real_BSn, 0)

    def hidden(self, hidden_BWD: Float[Tensor, "B W D"]) -> Float[Tensor, "B S n D"]:
        """What a model makes of every token, by step; 0 where a step has fewer."""
        D = hidden_BWD.shape[-1]
        found_BMD = hidden_BWD.gather(1, self.index_BSn.flatten(1)[..., None].expand(-1, -1, D))
        found_BSnD = found_BMD.view(*self.index_BSn.shape, D)
        return found_BSnD.masked_fill(~self.real_BSn[..., None], 0.0)


def steps_of(examples: Examples) -> Steps:
    """The steps of chains, by the task's own boundaries: every token is one, unless the examples say otherwise."""
    step_BW, steps = examples.steps_BT[:, : examples.max_steps], examples.num_steps
    B, W = step_BW.shape
    real_BW = (torch.arange(W, device=step_BW.device) < (steps if isinstance(steps, int) else steps[:, None])).expand(
        B, -1
    )
    S = int(step_BW.masked_fill(~real_BW, -1).max()) + 1 if W else 0
    inside_BSW = real_BW[:, None] & (step_BW[:, None] == torch.arange(S, device=step_BW.device)[:, None])
    count_BS = inside_BSW.sum(-1)
    n = int(count_BS.max()) if S else 0
    order_BSn = (~inside_BSW).long().argsort(stable=True, dim=-1)[..., :n]
    real_BSn = torch.arange(n, device=step_BW.device) < count_BS[..., None]
    return Steps(order_BSn.masked_fill(~real_BSn, 0), real_BSn)


# ---------------------------------------------------------------------------------------------------------------------
# Features


class Spectrum(NamedTuple):
    """The leading singular values and directions of steps, in float64."""

    values: Float[Tensor, "*rows k"]
    """Singular values of X, falling; 0 beyond its rank."""
    directions: Float[Tensor, "*rows k D"]
    """Right singular vectors, their signs fixed; 0 beyond the number of tokens or the width."""

    @property
    def features(self) -> Float[Tensor, "*rows F"]:
        """e, the directions times their singular values, one behind the other."""
        return (self.values[..., None] * self.directions).flatten(-2)

    @property
    def eigenvalues(self) -> Float[Tensor, "*rows k"]:
        """Eigenvalues of the Gram matrix over n: squares of the singular values."""
        return self.values**2


def spectrum(hidden: Float[Tensor, "*rows n D"], real: Bool[Tensor, "*rows n"], k: int) -> Spectrum:
    """The k leading singular values and directions of X = H / sqrt(n).

    The sign of a direction is no function of a step; here its entry of largest magnitude is positive. Where two
    singular values are nearly equal their directions may turn into each other: see `eigengaps`.
    """
    count = real.sum(-1).clamp(min=1)
    x = wide(hidden).masked_fill(~real[..., None], 0.0) / wide(count).sqrt()[..., None, None]
    _, values, directions = torch.linalg.svd(x, full_matrices=False)
    lacking = max(0, k - values.shape[-1])
    values, directions = values[..., :k], directions[..., :k, :]
    return Spectrum(F.pad(values, (0, lacking)), F.pad(signed(directions), (0, 0, 0, lacking)))


def signed(vectors: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """Each vector or its negative, so that its entry of largest magnitude is positive (the first, if two are equal)."""
    largest = vectors.gather(-1, vectors.abs().argmax(-1, keepdim=True))
    return torch.where(largest < 0, -vectors, vectors)


def effective_rank(eigenvalues: Float[Tensor, "*rows k"]) -> Float[Tensor, "*rows"]:
    """(sum of lambda)^2 / sum of lambda^2, from 1 to k; NaN for a step without any."""
    return eigenvalues.sum(-1) ** 2 / (eigenvalues**2).sum(-1)


def eigengaps(eigenvalues: Float[Tensor, "*rows k"]) -> Float[Tensor, "*rows k_minus_1"]:
    """lambda_i - lambda_(i+1), over the largest: near 0 where directions i and i + 1 are not determined."""
    return -eigenvalues.diff(dim=-1) / eigenvalues[..., :1]


# ---------------------------------------------------------------------------------------------------------------------
# Clusters


def principal(points_MF: Float[Tensor, "M F"], p: int) -> tuple[Float[Tensor, " F"], Float[Tensor, "p F"]]:
    """The mean of points and their p principal directions, signs fixed; 0 beyond the rank of the points."""
    mean_F = points_MF.mean(0)
    _, values, directions = torch.linalg.svd(points_MF - mean_F, full_matrices=False)
    found = signed(directions[:p]) * (values[:p, None] > 1e-9 * values[:1, None])
    return mean_F, F.pad(found, (0, 0, 0, p - len(found)))


class Clusters(NamedTuple):
    """Centres of points, and who is nearest to which."""

    centre_Kp: Float[Tensor, "K p"]
    """In lexicographic order."""
    label_M: Int[Tensor, " M"]
    inertia: float
    """Sum of squared distances to one's own centre."""


def k_means(points_Mp: Float[Tensor, "M p"], K: int, seed: int, restarts: int = RESTARTS) -> Clusters:
    """The best of several runs of k-means (Lloyd's steps from k-means++), the same for the same seed.

    Where there are fewer different points than K, centres repeat.

    Raises:
        ValueError: K below 1, no restarts, or no points.
    """
    if K < 1 or restarts < 1 or not len(points_Mp):
        raise ValueError(
            f"k-means of {len(points_Mp)} points with {K} centres and {restarts} restarts: expected 1 or more of each"
        )
    generator = torch.Generator().manual_seed(seed)
    points_Mp = wide(points_Mp.detach().cpu())
    return min((_lloyd(points_Mp, _seeded(points_Mp, K, generator)) for _ in range(restarts)), key=lambda c: c.inertia)


def _seeded(points_Mp: Tensor, K: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007): each centre a point, by its squared distance to those before."""
    chosen = [int(torch.randint(len(points_Mp), (), generator=generator))]
    nearest_M = _squared(points_Mp, points_Mp[chosen]).squeeze(1)
    while len(chosen) < K:
        threshold = wide(torch.rand((), generator=generator)) * nearest_M.sum()
        place = int(torch.searchsorted(nearest_M.cumsum(0), threshold, right=True))
        chosen.append(min(place, len(points_Mp) - 1))
        nearest_M = torch.minimum(nearest_M, _squared(points_Mp, points_Mp[chosen[-1:]]).squeeze(1))
    return points_Mp[chosen].clone()


def _lloyd(points_Mp: Tensor, centre_Kp: Tensor) -> Clusters:
    """Lloyd's steps until no label moves; a centre that nobody is nearest to stays where it is."""
    label_M = _squared(points_Mp, centre_Kp).argmin(1)
    for _ in range(ITERATIONS):
        count_K = wide(torch.bincount(label_M, minlength=len(centre_Kp)))
        total_Kp = torch.zeros_like(centre_Kp).index_add_(0, label_M, points_Mp)
        centre_Kp = torch.where(count_K[:, None] > 0, total_Kp / count_K.clamp(min=1)[:, None], centre_Kp)
        before_M, label_M = label_M, _squared(points_Mp, centre_Kp).argmin(1)
        if torch.equal(label_M, before_M):
            break
    centre_Kp = centre_Kp[sorted(range(len(centre_Kp)), key=centre_Kp.tolist().__getitem__)]
    distance_MK = _squared(points_Mp, centre_Kp)
    return Clusters(centre_Kp, distance_MK.argmin(1), float(distance_MK.amin(1).sum()))


def _squared(points: Float[Tensor, "*rows p"], centre_Kp: Float[Tensor, "K p"]) -> Float[Tensor, "*rows K"]:
    """Squared distances, without the cancellation of expanding the square."""
    return ((points[..., None, :] - centre_Kp) ** 2).sum(-1)


class States(nn.Module):
    """States of steps: what is fitted to features once, and a learned embedding of each state.

    Args:
        width: D.
        K: number of states.
        k: directions of a feature.
        p: dimensions after PCA; at most F.
        generator: draws the embeddings.
    """

    mean_F: Tensor
    principal_pF: Tensor
    centre_Kp: Tensor
    spread: Tensor
    bank_MK: Tensor

    def __init__(self, width: int, K: int, k: int, p: int, generator: torch.Generator):
        super().__init__()
        p = min(p, k * width)
        self.k = k
        self.embedding_KD = nn.Parameter(torch.empty(K, width).normal_(0.0, 0.02, generator=generator))
        self.register_buffer("mean_F", torch.zeros(k * width))
        self.register_buffer("principal_pF", torch.zeros(p, k * width))
        self.register_buffer("centre_Kp", torch.zeros(K, p))
        self.register_buffer("spread", torch.ones(()))
        self.register_buffer("bank_MK", torch.full((BANK, K), 1 / K))

    @torch.no_grad()
    def fit(self, features_MF: Float[Tensor, "M F"], kind: Kind, tau: float, seed: int) -> None:
        """Fits PCA and centres to features, and keeps the states of BANK of them; with "random" draws the centres."""
        K, p = self.centre_Kp.shape
        features_MF = wide(features_MF.cpu())
        mean_F, principal_pF = principal(features_MF, p)
        points_Mp = (features_MF - mean_F) @ principal_pF.T
        generator = torch.Generator().manual_seed(derive(seed, "states", kind))
        if kind == "random":
            drawn_Kp = wide(torch.randn(K, p, generator=generator))
            centre_Kp = drawn_Kp * points_Mp.std(0, correction=0)
        else:
            centre_Kp = k_means(points_Mp, K, derive(seed, "k-means")).centre_Kp
        spread = _squared(points_Mp, centre_Kp).amin(1).mean()
        floor = 1e-6 * points_Mp.pow(2).sum(1).mean() + torch.finfo(torch.float32).tiny  # states may be points
        for name, value in (("mean_F", mean_F), ("principal_pF", principal_pF), ("centre_Kp", centre_Kp)):
            getattr(self, name).copy_(value)
        self.spread.copy_(torch.maximum(spread, floor))
        kept_M = torch.randint(len(features_MF), (BANK,), generator=generator)
        self.bank_MK.copy_(self.assigned(features_MF[kept_M].to(self.mean_F.device), tau))

    @torch.no_grad()
    def assigned(self, features: Float[Tensor, "*rows F"], tau: float) -> Float[Tensor, "*rows K"]:
        """q, the soft assignment of features to states, in float64."""
        points = (wide(features) - wide(self.mean_F)) @ wide(self.principal_pF).T
        q = F.softmax(-_squared(points, wide(self.centre_Kp)) / (tau * wide(self.spread)), -1)
        return back(q, features.device)
