"""Outlier features: whether few neurons carry most of an activation matrix, and what that has to do with its inputs.

    kurtosis(x_nd)                   # neuron-RMS kurtosis: 1 if all neurons have one energy, d if one has it all
    stats = Outliers(); stats.add(x_nd); stats.kurtosis(), stats.max_median()      # the same, over many batches
    stream_outliers(record)          # of the residual stream before every layer and after the last

He et al. 2024 (arXiv 2405.19279); equations by the fact sheet, since their text was not at hand. Neuron-RMS kurtosis
is not the kurtosis of entries (scipy's), it is not centred unless asked, and it depends on the basis: a rotation of
the neurons changes it. It is at most d and saturates there, while the max-median ratio does not: report both. Leave
padding out, and look with and without first tokens, which often hold massive activations.

Letters: n tokens, d neurons, B rows, S slots, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tinylatent.lenses.residuals import Record


def energy(x_nd: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """v, the mean square of every neuron over tokens."""
    return x_nd.square().mean(0)


def kurtosis(x_nd: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Neuron-RMS kurtosis: mean of v^2 over squared mean of v, v the energy of every neuron; between 1 and d."""
    v_d = energy(x_nd)
    return v_d.square().mean() / v_d.mean().square()


def centred(x_nd: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Without each token's mean over neurons, which a layer norm does not see. The authors' code does so."""
    return x_nd - x_nd.mean(-1, keepdim=True)


def max_median(x_nd: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Largest over median absolute entry of every token, 1 at least; NaN where the median is 0.

    The median of an even number of neurons is the mean of the middle two (the authors' code takes the lower one).
    """
    sorted_nd = x_nd.abs().sort(-1).values
    d = x_nd.shape[-1]
    median_n = (sorted_nd[:, (d - 1) // 2] + sorted_nd[:, d // 2]) / 2
    return torch.where(median_n > 0, sorted_nd[:, -1] / median_n, torch.nan)


def scaled(x_nd: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Divided by one number, so that the mean square of all entries is 1."""
    return x_nd / x_nd.square().mean().sqrt()


def input_correlation(x_nd: Float[Tensor, "n d"]) -> float:
    """Mean of the off-diagonal of X X^T / d, X scaled to mean square 1: 1 where all tokens are alike, 0 where they are
    orthogonal. It needs n^2 numbers: take a sample of the tokens."""
    x_nd = scaled(x_nd.detach())
    gram_nn = x_nd @ x_nd.T / x_nd.shape[1]
    n = len(gram_nn)
    return float((gram_nn.sum() - gram_nn.trace()) / (n * (n - 1)))


# ---------------------------------------------------------------------------------------------------------------------
# Exact bookkeeping


@dataclass(frozen=True)
class Budget:
    """The parts of n^2 d Kurt = norms + inputs - neurons, each divided by n^2 d, X scaled to mean square 1."""

    norms: float
    """Of squared entries on the diagonal of X X^T: the tokens' own norms."""
    inputs: float
    """Of squared entries beside it: how alike different tokens are."""
    neurons: float
    """Of squared entries beside the diagonal of X^T X: how correlated different neurons are."""

    @property
    def kurtosis(self) -> float:
        """What the three leave."""
        return self.norms + self.inputs - self.neurons


def budget(x_nd: Float[Tensor, "n d"]) -> Budget:
    """Where kurtosis comes from (sheet 1.3): tr (X^T X)^2 = tr (X X^T)^2, each split into diagonal and the rest.

    Tokens that are all alike must show as kurtosis or as correlated neurons; which of them, this tells.
    """
    x_nd = scaled(x_nd.detach().double())
    tokens_nn, neurons_dd = (x_nd @ x_nd.T).square(), (x_nd.T @ x_nd).square()
    norms, whole = tokens_nn.trace(), len(x_nd) ** 2 * x_nd.shape[1]
    inputs, neurons = tokens_nn.sum() - norms, neurons_dd.sum() - neurons_dd.trace()
    return Budget(*(float(x) / whole for x in (norms, inputs, neurons)))


@dataclass(frozen=True)
class Moments:
    """What a change D of X does to m2 = mean v and m4 = mean v^2, by powers of D."""

    m2: tuple[float, float]
    """2 mean p and mean q, with p = mean of X D over tokens and q that of D^2."""
    m4: tuple[float, float, float, float]
    """Means over neurons of 4 v p, of 4 p^2 + 2 v q, of 4 p q, and of q^2."""


def moments(x_nd: Float[Tensor, "n d"], change_nd: Float[Tensor, "n d"]) -> Moments:
    """How the second and fourth moments change from X to X + D, exactly (sheet 1.4).

    A step of learning rate r changes X by about r: its terms are of order r, r^2, r^3, r^4. The authors find that the
    second term of m4 is the one that adds up.
    """
    x_nd, change_nd = x_nd.detach().double(), change_nd.detach().double()
    v_d, p_d, q_d = energy(x_nd), (x_nd * change_nd).mean(0), energy(change_nd)
    terms = 2 * p_d, q_d, 4 * v_d * p_d, 4 * p_d**2 + 2 * v_d * q_d, 4 * p_d * q_d, q_d**2
    first, second, *fourth = (float(term_d.mean()) for term_d in terms)
    return Moments((first, second), (fourth[0], fourth[1], fourth[2], fourth[3]))


# ---------------------------------------------------------------------------------------------------------------------
# Over many batches


class Outliers:
    """Kurtosis and max-median ratio of an activation, over batches that are added one by one, in float64.

    Args:
        centre: whether each token's mean over neurons is taken away first.
    """

    def __init__(self, centre: bool = False):
        self.centre, self.tokens, self._squares, self._ratios, self._rated = centre, 0, None, 0.0, 0
        self.largest = 0.0

    _squares: Tensor | None
    largest: float
    """Largest absolute entry of all tokens."""

    def add(self, x_nd: Float[Tensor, "n d"]) -> "Outliers":
        """Takes tokens into account; returns itself.

        Raises:
            ValueError: another number of neurons than before.
        """
        x_nd = x_nd.detach().double()
        if self.centre:
            x_nd = centred(x_nd)
        squares_d, ratio_n = x_nd.square().sum(0), max_median(x_nd)
        if self._squares is not None and self._squares.shape != squares_d.shape:
            raise ValueError(f"{len(squares_d)} neurons after {len(self._squares)}: measure each site by itself")
        self._squares = squares_d if self._squares is None else self._squares + squares_d
        self.tokens += len(x_nd)
        self.largest = max(self.largest, float(x_nd.abs().amax())) if len(x_nd) else self.largest
        self._rated += int(ratio_n.isfinite().sum())
        self._ratios += float(ratio_n.nansum())
        return self

    def _known(self) -> Tensor:
        if self._squares is None:
            raise ValueError("no tokens were added: add some before asking")
        return self._squares

    @property
    def neurons(self) -> int:
        """d."""
        return len(self._known())

    def kurtosis(self) -> float:
        """Neuron-RMS kurtosis over all tokens; the number of tokens cancels."""
        squares_d = self._known()
        return float(squares_d.square().mean() / squares_d.mean().square())

    def share(self) -> float:
        """(Kurt - 1) / (d - 1), between 0 and 1, to compare models of different width; 0 for one neuron."""
        return (self.kurtosis() - 1) / max(1, self.neurons - 1)

    def max_median(self) -> float:
        """Mean of the ratio over tokens whose median is not 0; NaN if there is none."""
        self._known()
        return self._ratios / self._rated if self._rated else float("nan")

    @property
    def unrated(self) -> int:
        """Tokens that were left out of the ratio, since half of their entries are 0."""
        return self.tokens - self._rated


def stream_outliers(records: Sequence[Record], keep_first: int = 1, centre: bool = False) -> list[Outliers]:
    """Of the residual stream before every layer and after the last, over all tokens but the first of every row."""
    found = [Outliers(centre) for _ in range(records[0].depth + 1)]
    for record in records:
        free_BS = record.mask_BS & (record.rank_BS() >= keep_first)
        for layer, stats in enumerate(found):
            stats.add(record.stream[layer][free_BS])
    return found
