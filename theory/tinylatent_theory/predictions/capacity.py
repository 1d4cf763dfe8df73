"""How many states a superposition of width d can hold: z = E^T alpha, with k of v shares positive.

z holds alpha if no other distribution has the same z. For a random (normal) embedding E it depends on (d, v, k) alone:
the null space of E^T must miss the cone of directions that stay non-negative. Two cases can be told without a run:

- the shares' sum is not used: the probability is exactly P(Bin(v - k - 1, 1/2) <= d - k - 1) (Wendel 1962; Donoho and
  Tanner 2010), so d must exceed half of v, however few states there are;
- the sum is known to be 1, as for thoughts: success turns from sure to hopeless about the statistical dimension of the
  simplex's descent cone, d* = min over t of k (1 + t^2) + (v - k) E (g - t)_+^2 (Donoho and Tanner 2005; Amelunxen et
  al. 2014), far below v / 2 for few states.

Whether alpha is held is asked of a linear programme; non-negative least squares is a second solver, used by tests.

Letters: d width, V vocabulary v, k states, S support.
"""

import numpy as np
import numpy.typing as npt
import scipy

Floats = npt.NDArray[np.float64]
TOLERANCE = 1e-7


def _check(states: float, vocabulary: int, width: int = 0) -> None:
    """ValueError for sizes that no superposition has."""
    if not (1 <= states <= vocabulary and width >= 0):
        raise ValueError(
            f"width {width}, {states} states of {vocabulary}: expected a width of 0 or more and at least 1 state, at "
            "most as many as the vocabulary"
        )


def is_held(embedding_Vd: Floats, support: int, known_sum: bool = True) -> bool:
    """Whether z = E^T alpha determines alpha, for every alpha whose support is the first `support` tokens.

    A linear programme looks for the distribution (or non-negative vector) with the same z that puts most outside the
    support: alpha is determined if there is none. (Within the support E's rows must be independent, as they are for
    random E and k <= d.)
    """
    V = len(embedding_Vd)
    alpha_V = np.zeros(V)
    alpha_V[:support] = 1 / support
    rows_RV = np.vstack([embedding_Vd.T, np.ones(V)]) if known_sum else embedding_Vd.T
    if support > len(rows_RV):
        return False
    outside_V = (np.arange(V) >= support).astype(float)
    # Without the sum the outside could be unbounded: it is asked for 1 at most.
    found = scipy.optimize.linprog(
        -outside_V, A_ub=outside_V[None], b_ub=[1.0], A_eq=rows_RV, b_eq=rows_RV @ alpha_V, bounds=(0, None)
    )
    assert found.status == 0, found.message
    return bool(-found.fun < TOLERANCE)


def is_held_by_least_squares(embedding_Vd: Floats, alpha_V: Floats, known_sum: bool = True) -> bool:
    """Whether non-negative least squares gives this alpha back: a second solver."""
    V = len(embedding_Vd)
    rows_RV = np.vstack([embedding_Vd.T, np.ones(V)]) if known_sum else embedding_Vd.T
    found_V, _ = scipy.optimize.nnls(rows_RV, rows_RV @ alpha_V)
    return bool(np.abs(found_V - alpha_V).max() < 1e-5)


def held_share(
    width: int, states: int, vocabulary: int, draws: int, generator: np.random.Generator, known_sum: bool = True
) -> float:
    """Share of random embeddings that hold `states` states.

    Raises:
        ValueError: impossible sizes, or no draws.
    """
    _check(states, vocabulary, width)
    if draws < 1:
        raise ValueError(f"{draws} draws: expected at least 1")
    held = [is_held(generator.normal(size=(vocabulary, width)), states, known_sum) for _ in range(draws)]
    return float(np.mean(held))


def wendel(width: int, states: int, vocabulary: int) -> float:
    """Probability that a normal embedding holds k states when their sum is not used, exactly.

    Raises:
        ValueError: impossible sizes.
    """
    _check(states, vocabulary, width)
    if states >= vocabulary:
        return float(width >= vocabulary)
    return float(scipy.stats.binom.cdf(width - states - 1, vocabulary - states - 1, 0.5))


def needed_width(states: float, vocabulary: int, corrected: bool = False) -> float:
    """d*: about the width at which half of all normal embeddings hold k states of sum 1 (k may be real).

    The statistical dimension of the cone is the mean, over normal vectors, of a minimum over t. To leading order it is
    the minimum of the mean, up to 1 too wide; the corrected one, which fits small sizes, takes off the next term,
    Var f' / (2 f'') at the minimum.

    Raises:
        ValueError: impossible sizes.
    """
    _check(states, vocabulary)
    others = vocabulary - states

    def dimension(t: float) -> float:
        return states * (1 + t * t) + others * _above(t)

    found = scipy.optimize.minimize_scalar(dimension, bounds=(-10, 10), method="bounded")
    if not corrected:
        return float(found.fun)
    t = float(found.x)
    spread = _above(t) - (scipy.stats.norm.pdf(t) - t * scipy.stats.norm.sf(t)) ** 2  # Var (g - t)_+
    return float(found.fun - (states + others * spread) / (states + others * scipy.stats.norm.sf(t)))


def _above(t: float) -> float:
    """E (g - t)_+^2 of a standard normal g."""
    return float((1 + t * t) * scipy.stats.norm.sf(t) - t * scipy.stats.norm.pdf(t))
