"""Claims about outlier features: what neuron-RMS kurtosis says of a matrix, of a change to it, and of rounding it.

Neuron-RMS kurtosis compares the energies of the neurons of an activation matrix; it is not the kurtosis of its entries.
All claims check the functions of tinylatent.lenses.

Letters: n tokens, d neurons, R rows.
"""

import math
from statistics import fmean

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tinylatent.lab.findings import FAILS, HOLDS, Finding
from tinylatent.lenses.outliers import budget, centred, input_correlation, kurtosis, max_median, moments
from tinylatent.lenses.quantised import rounded
from tinylatent_theory.claims.ledger import EXACT, Trial, claim, judged

# ---------------------------------------------------------------------------------------------------------------------
# The measure


def activations(generator: torch.Generator) -> Float[Tensor, "n d"]:
    """A random matrix of random size: neurons of very unequal energy, rows that share a part."""
    n, d = (int(torch.randint(2, 9, (), generator=generator)) for _ in range(2))
    normal = torch.randn(n + 2, d, generator=generator, dtype=torch.float64)
    return (normal[:n] + 2 * normal[n]) * (2 * normal[n + 1]).exp()


def rotation(d: int, generator: torch.Generator) -> Float[Tensor, "d d"]:
    """A random orthogonal matrix."""
    return torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]


@claim(
    source="He et al. 2024, arXiv 2405.19279, on signal propagation (their text was not at hand: derived here [R])",
    origin="here",
    statement="With X scaled to mean square 1, n^2 d Kurt(X) is the sum of all squared entries of X X^T less that of "
    "the squared off-diagonal entries of X^T X.",
    conditions="any X that is not zero",
    how="property test",
    recorded=HOLDS,
)
def kurtosis_identity(trial: Trial) -> Finding:
    """The kurtosis of random matrices against their two Gram matrices."""
    generator, worst = trial.torch("activations"), 0.0
    for _ in range(trial.size(50, 1000)):
        x_nd = activations(generator)
        parts = budget(x_nd)
        worst = max(worst, abs(parts.kurtosis - float(kurtosis(x_nd))) / (parts.norms + parts.inputs))
    return judged(worst < EXACT, f"the two sides agree to {worst:.0e} of the first sum")


@claim(
    source="He et al. 2024, arXiv 2405.19279, as a property of their metric [R]",
    origin="here",
    statement="Neuron-RMS kurtosis lies between 1 and the number of neurons d, and reaches both.",
    conditions="any X that is not zero",
    how="property test",
    recorded=HOLDS,
)
def kurtosis_range(trial: Trial) -> Finding:
    """Random matrices in between; neurons of one energy, and one neuron alone, at the ends."""
    generator, low, high, ends = trial.torch("activations"), math.inf, 0.0, 0.0
    for _ in range(trial.size(50, 1000)):
        x_nd = activations(generator)
        n, d = x_nd.shape
        low, high = min(low, float(kurtosis(x_nd))), max(high, float(kurtosis(x_nd)) / d)
        even_nd = x_nd / (x_nd**2).mean(0).sqrt()
        alone_nd = x_nd * F.one_hot(torch.tensor(n % d), d)
        ends = max(ends, abs(float(kurtosis(even_nd)) - 1), abs(float(kurtosis(alone_nd)) / d - 1))
    return judged(
        low > 1 - EXACT and high < 1 + EXACT and ends < EXACT,
        f"between {low:.3f} and {high:.3f} d for random matrices; 1 for neurons of one energy and d for a single one, "
        f"to {ends:.0e}",
    )


def one_feature_rotated() -> str:
    """One feature on one of two neurons, then on both."""
    x_nd, half = torch.tensor([[1.0, 0.0]], dtype=torch.float64), math.sqrt(1 / 2)
    turn_dd = torch.tensor([[half, half], [-half, half]], dtype=torch.float64)
    return (
        f"one feature on the first of two neurons has kurtosis {kurtosis(x_nd):g}; rotated by 45 degrees "
        f"{kurtosis(x_nd @ turn_dd):g}"
    )


@claim(
    source="[R]: a strict reading of He et al. 2024, arXiv 2405.19279 (text not at hand)",
    origin="here",
    statement="Neuron-RMS kurtosis is a property of the representation, whatever orthogonal basis it is written in.",
    conditions="it is one of the representation in its basis; rotations among the tokens leave it alone",
    how="property test",
    recorded=FAILS,
    counterexample=one_feature_rotated,
)
def kurtosis_is_basis_free(trial: Trial) -> Finding:
    """Random matrices under random rotations of their neurons, and of their tokens."""
    generator, neurons, tokens, correlation = trial.torch("activations"), 0.0, 0.0, 0.0
    for _ in range(trial.size(50, 1000)):
        x_nd = activations(generator)
        n, d = x_nd.shape
        rotated_nd = x_nd @ rotation(d, generator)
        neurons = max(neurons, abs(float(kurtosis(rotated_nd) / kurtosis(x_nd)) - 1))
        correlation = max(correlation, abs(input_correlation(rotated_nd) - input_correlation(x_nd)))
        tokens = max(tokens, abs(float(kurtosis(rotation(n, generator) @ x_nd) / kurtosis(x_nd)) - 1))
    return judged(
        neurons < EXACT,
        f"rotating the neurons changes it by up to {neurons:.0%}, rotating the tokens by {tokens:.0e} of it; the input "
        f"correlation, which it is related to, moves by {correlation:.0e}",
    )


def flattest(row_d: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """Descends from a row to one whose copies, as the only input, have the least kurtosis."""
    row_d = row_d.clone().requires_grad_()
    descent = torch.optim.LBFGS(
        [row_d], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def value() -> float:
        descent.zero_grad()
        least = kurtosis(row_d[None])
        least.backward()
        return least.item()

    descent.step(value)
    return row_d.detach()


def equal_rows() -> str:
    """Two equal tokens, two neurons of one energy."""
    x_nd = torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    return f"two equal rows (1, -1): input correlation {input_correlation(x_nd):g}, kurtosis {kurtosis(x_nd):g}"


@claim(
    source="He et al. 2024, arXiv 2405.19279, read strictly (they report that the two go together) [R]",
    origin="here",
    statement="Bad signal propagation, all inputs becoming alike, implies high neuron kurtosis.",
    conditions="it implies high kurtosis or correlated neurons: the two share a sum",
    how="property test",
    recorded=FAILS,
    counterexample=equal_rows,
)
def bad_signal_propagation_forces_outliers(trial: Trial) -> Finding:
    """The least kurtosis of inputs that are all alike, by descent; that of a random direction beside it."""
    generator, least, alike = trial.torch("rows"), math.inf, math.inf
    for _ in range(trial.size(10, 100)):
        n, d = activations(generator).shape
        x_nd = flattest(torch.randn(d, generator=generator, dtype=torch.float64)).expand(n, -1)
        least, alike = min(least, float(kurtosis(x_nd))), min(alike, input_correlation(x_nd))
    d = 16
    rows_Rd = torch.randn(trial.size(2000, 20_000), d, generator=generator, dtype=torch.float64)
    usual = fmean(float(kurtosis(row_d[None])) for row_d in rows_Rd)
    return judged(
        least > 1 + EXACT,  # one case refutes what is said of all; not every descent gets as far
        f"equal rows (input correlation {alike:.6f}) descend to kurtosis {least:.6f}; in a random direction of {d} "
        f"neurons they have {usual:.2f} on average, 3 d / (d + 2) being {3 * d / (d + 2):.2f}",
    )


def one_neuron_of_two() -> str:
    """All energy on the first of two neurons, after the mean over both is taken away."""
    x_nd = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]], dtype=torch.float64)
    return (
        f"tokens (1, -1, 0) and (-1, 1, 0): kurtosis less one is {float(kurtosis(x_nd)) - 1:g}, and {logged(x_nd):g} "
        "is logged"
    )


def logged(x_nd: Float[Tensor, "n d"]) -> float:
    """What the authors' code logs: the unbiased variance over neurons of their relative energies, tokens centred."""
    v_d = (x_nd - x_nd.mean(1, keepdim=True)).square().mean(0)
    return float((v_d / v_d.mean()).var())


@claim(
    source="code of He et al. 2024 (bobby-he/simplified_transformers, train_utils.py), whose README says that it logs"
    " kurtosis less one",
    origin="code",
    statement="What the authors' code logs is neuron-RMS kurtosis less one.",
    conditions="it is d / (d - 1) times that, of tokens whose mean over neurons was taken away",
    how="property test",
    recorded=FAILS,
    counterexample=one_neuron_of_two,
)
def logged_kurtosis_is_kurtosis_less_one(trial: Trial) -> Finding:
    """Random matrices: against kurtosis less one, with and without centring, and against the corrected formula."""
    generator, plain, corrected = trial.torch("activations"), 0.0, 0.0
    for _ in range(trial.size(50, 1000)):
        x_nd = activations(generator)
        d, found = x_nd.shape[1], logged(x_nd)
        less_one, raw = (float(kurtosis(y_nd)) - 1 for y_nd in (centred(x_nd), x_nd))
        plain = max(plain, min(abs(found - less_one), abs(found - raw)))
        corrected = max(corrected, abs(found - d / (d - 1) * less_one))
    return judged(
        plain < EXACT,
        f"off by up to {plain:.2f}, with the mean over neurons or without it; d / (d - 1) times (Kurt - 1) of centred "
        f"tokens agrees to {corrected:.0e}",
    )


# ---------------------------------------------------------------------------------------------------------------------
# What changes it, and what it does not tell


@claim(
    source="He et al. 2024, arXiv 2405.19279, on moments during training (text not at hand: derived here [R])",
    origin="here",
    statement="The fourth moment after X changes to X + D is that before and four terms of first to fourth order in D,"
    " of which the second and fourth are never negative, so that changes of random sign can only raise its mean.",
    conditions="any X and D",
    how="property test",
    recorded=HOLDS,
)
def fourth_moment_bookkeeping(trial: Trial) -> Finding:
    """Terms of random changes: their sum, their orders, their signs, and those of the opposite change."""
    generator, worst, least, opposite = trial.torch("activations"), 0.0, math.inf, 0.0
    for _ in range(trial.size(50, 1000)):
        x_nd = activations(generator)
        change_nd = torch.randn(x_nd.shape, generator=generator, dtype=torch.float64)
        before, after = ((y.square().mean(0) ** 2).mean() for y in (x_nd, x_nd + change_nd))
        terms, back = moments(x_nd, change_nd).m4, moments(x_nd, -change_nd).m4
        size = float(before) + sum(map(abs, terms))
        worst = max(worst, abs(sum(terms) - float(after - before)) / size)
        least = min(least, terms[1] / size, terms[3] / size)
        signed = zip(terms, back, (-1, 1, -1, 1), strict=True)
        opposite = max(opposite, *(abs(y - sign * x) / size for x, y, sign in signed))
    return judged(
        max(worst, opposite) < EXACT and least >= 0,
        f"the four terms add up to {worst:.0e}; the second and fourth are {least:.0e} of all or more, and keep their "
        f"sign where that of D changes, the others turning theirs, to {opposite:.0e}",
    )


def grown(x_nd: Float[Tensor, "n d"], factor: float) -> Float[Tensor, "n d"]:
    """Its first neuron multiplied; the weights that read it would be divided by as much."""
    return torch.cat([factor * x_nd[:, :1], x_nd[:, 1:]], 1)


@claim(
    source="[R], on whether kurtosis tells what rounding to int8 does (He et al. 2024, arXiv 2405.19279, report that"
    " the two correlate)",
    origin="here",
    statement="If one neuron grows by a factor c, kurtosis ends at d, while max-median ratio and step of int8 keep"
    " growing in proportion to c, until all other neurons are rounded to nothing.",
    conditions="the weights that read the neuron shrink by as much, so that the function stays; one scale per tensor",
    how="property test",
    recorded=HOLDS,
)
def kurtosis_saturates_while_rounding_grows(trial: Trial) -> Finding:
    """Normal entries: kurtosis, ratio and error of rounding the other neurons at c = 1e3, twice that, and 1e9."""
    generator, missing, ratios, steps, lost = trial.torch("normal"), 0.0, 0.0, 0.0, 0.0
    for _ in range(trial.size(20, 200)):
        n, d = (int(torch.randint(4, 12, (), generator=generator)) for _ in range(2))
        x_nd = torch.randn(n, d, generator=generator, dtype=torch.float64).clamp(-3, 3)
        x_nd[:, 0] = x_nd[:, 0].sign()  # the neuron is nowhere near 0
        some, more, most = (grown(x_nd, c) for c in (1e3, 2e3, 1e9))
        missing = max(missing, abs(1 - float(kurtosis(some)) / d))
        ratios = max(ratios, float((max_median(more) / max_median(some) / 2 - 1).abs().max()))
        steps = max(steps, abs(_step(more) / _step(some) / 2 - 1))
        lost = max(lost, float(rounded(most)[:, 1:].abs().max()))
    return judged(
        missing < 1e-3 and max(ratios, steps) < EXACT and lost == 0,
        f"at c = 1000 kurtosis is within {missing:.0e} of d; from there to 2000 the ratio doubles to {ratios:.0e} and "
        f"the step to {steps:.0e}; at 1e9 the largest other entry is {lost:g}",
    )


def _step(x_nd: Float[Tensor, "n d"]) -> float:
    """The least difference that rounding leaves between numbers near 0, which are put below the others."""
    most = x_nd.abs().max()
    near_m = torch.linspace(-1, 1, 2001, dtype=x_nd.dtype) * most / 30
    column_md = near_m[:, None] * F.one_hot(torch.tensor(1), x_nd.shape[1])
    return float(rounded(torch.cat([x_nd, column_md]))[len(x_nd) :, 1].unique().diff().min())
