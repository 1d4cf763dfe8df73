"""Intervals and rates for accuracies counted per key.

Equivalent problems share a key, so items are dependent inside a key and independent across keys: a key, not an item,
is the unit that is resampled. Several runs (seeds) add a second level: runs are resampled first, then keys in each run.

Letters: R runs, K keys of one run (it may differ from run to run), C classes of keys with the same counts,
D bootstrap draws, B problems, S samples of one problem, G disjoint blocks of k samples.
Accuracies, rates and interval ends are shares between 0 and 1 (differences between -1 and 1), never per cent.

What the intervals assume and where they are weak:
- Runs are exchangeable and have their own keys. Runs that are evaluated on the very same keys share the luck of that
  draw of keys; averaging over runs does not remove it, and the interval then describes these keys.
- Resampling keys inside resampled runs counts the variance inside a run twice (wide when runs agree), and a handful
  of runs understates the variance between runs by the factor (R - 1) / R (narrow when runs disagree). Student's t over
  the runs does neither but knows nothing of keys; the wider end of the two is taken on each side.
- With only a few keys unlike the others the percentile interval is optimistic: of 200 keys, one wrong gives a low end
  of 0.985 while none wrong gives, exactly, 0.982. Do not rank methods on such ends.

Sources: Davison and Hinkley, Bootstrap Methods and their Application (1997), section 3.8 (two-level resampling);
Clopper and Pearson, Biometrika 26 (1934); Chen et al., arXiv:2107.03374, equation 1 (pass@k);
Wang et al., arXiv:2203.11171 (majority vote).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = list[NDArray[np.int64]]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval: shares, or differences of shares."""

    value: float
    """The estimate."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end."""
    kind: str
    """How they were computed, in one phrase."""


def accuracy_interval(
    correct: Sequence[ArrayLike], total: Sequence[ArrayLike], level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Interval:
    """Mean accuracy over runs with its two-level bootstrap interval.

    `correct[r]` and `total[r]` hold, for run r, the right items and all items per key: integers of shape (K,).
    The value is the mean over runs of sum(correct) / sum(total); the interval is the percentile interval at `level` of
    `draws` resamples of runs and of keys within runs, widened to Student's t over the runs where there are several and
    they disagree. Where no two keys differ (every item right, say) resampling
    shows no spread, and the exact binomial bound over the keys of the smallest run stands in; for accuracy 1 and K
    keys it is [((1 - level) / 2)^(1 / K), 1].

    Raises ValueError for no runs, unequal shapes, counts that are not integers, total < 1, correct outside 0..total,
    a level outside (0, 1) or draws < 1.
    """
    totals = _checked_totals(total)
    return _remembered(_checked_correct("correct", correct, totals), totals, 0.0, level, draws, seed)


def paired_difference(
    correct_a: Sequence[ArrayLike],
    correct_b: Sequence[ArrayLike],
    total: Sequence[ArrayLike],
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean accuracy of method a minus that of method b, both measured on the same runs, keys and items.

    Shapes, resampling and errors are those of `accuracy_interval`. A resample takes the same runs and keys for both
    methods, so what they share cancels. Where all keys show the same difference (none, say) the exact binomial bound
    on the share of keys that may behave otherwise stands in, each moving the difference to -1 or to 1 at worst.
    """
    totals = _checked_totals(total)
    counts_a = _checked_correct("correct_a", correct_a, totals)
    counts_b = _checked_correct("correct_b", correct_b, totals)
    gains = [a_K - b_K for a_K, b_K in zip(counts_a, counts_b, strict=True)]
    return _remembered(gains, totals, -1.0, level, draws, seed)


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of values with its interval, both in the unit of the values, by Student's t distribution.

    Exact for independent normal values. Raises ValueError for fewer than two values.
    """
    from scipy.stats import t  # half a second that most commands do not need

    freedom, sd = _deviation("values", values)
    half = float(t.ppf((1 + level) / 2, freedom)) * sd / float(np.sqrt(freedom + 1))
    value = float(np.mean(values))
    return Interval(value, value - half, value + half, "Student's t")


def deviation_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Standard deviation of values with its interval, both in the unit of the values, by the chi-square distribution.

    Exact for independent normal values. Raises ValueError for fewer than two values.
    """
    from scipy.stats import chi2

    freedom, sd = _deviation("values", values)
    ends = (chi2.ppf(share, freedom) for share in ((1 + level) / 2, (1 - level) / 2))
    low, high = (float(np.sqrt(freedom / end)) * sd for end in ends)
    return Interval(sd, low, high, "chi-square for normal values")


def deviation_ratio(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Interval:
    """Ratio of two groups' standard deviations with its interval, by the F distribution.

    Exact for independent normal values. Where b does not vary the ratio is infinite and its interval says nothing.
    Raises ValueError for fewer than two values in a group.
    """
    from scipy.stats import f

    (freedom_a, sd_a), (freedom_b, sd_b) = _deviation("a", a), _deviation("b", b)
    if sd_b == 0:
        return Interval(np.inf, 0.0, np.inf, "F for normal values")
    ends = (f.ppf(share, freedom_a, freedom_b) for share in ((1 + level) / 2, (1 - level) / 2))
    low, high = (float(sd_a / sd_b / np.sqrt(end)) for end in ends)
    return Interval(sd_a / sd_b, low, high, "F for normal values")


def _deviation(name: str, values: Sequence[float]) -> tuple[int, float]:
    """Degrees of freedom and standard deviation."""
    if len(values) < 2:
        raise ValueError(f"{name} must hold at least two values to have a deviation, but it holds {len(values)}.")
    return len(values) - 1, float(np.std(values, ddof=1))


def pass_at_k(n: int | ArrayLike, c: int | ArrayLike, k: int) -> NDArray[np.float64]:
    """Unbiased chance that at least one of k samples is right: 1 - C(n - c, k) / C(n, k) (arXiv:2107.03374, eq. 1).

    `n` samples were drawn per problem, `c` of them right; both are integers or integer arrays that broadcast together,
    and the result has their common shape. The quotient is a product of k factors in [0, 1], so nothing overflows.

    Raises ValueError for counts that are not integers, k < 1, k > n, or c outside 0..n.
    """
    samples, right = np.broadcast_arrays(_integers("n", n), _integers("c", c))
    if k < 1 or np.any(samples < k):
        raise ValueError(f"k must lie between 1 and the number of samples n of every problem, but k is {k}.")
    if np.any(right < 0) or np.any(right > samples):
        raise ValueError("c, the number of right samples, must lie between 0 and n for every problem.")
    earlier = np.arange(k)
    still_wrong = np.maximum((samples - right)[..., None] - earlier, 0)
    return np.asarray(1.0 - np.prod(still_wrong / (samples[..., None] - earlier), axis=-1))


def majority_at_k(answers_BS: ArrayLike, truth_B: ArrayLike, k: int) -> NDArray[np.float64]:
    """Share of blocks of k samples whose plurality vote is the truth, per problem: floats of shape (B,).

    `answers_BS` holds S integer answers per problem, `truth_B` the right one. Samples are cut in order into S // k
    disjoint blocks (what is left over is not used); a tie goes to the answer that appears first in its block.

    Raises ValueError for answers or truths that are not integers, shapes other than (B, S) and (B,), k < 1 or k > S.
    """
    answers, truth = _integers("answers_BS", answers_BS), _integers("truth_B", truth_B)
    if answers.ndim != 2 or truth.shape != answers.shape[:1]:
        raise ValueError(
            f"answers_BS must have shape (B, S) and truth_B shape (B,), but they have {answers.shape}, {truth.shape}."
        )
    problems, samples = answers.shape
    if not 1 <= k <= samples:
        raise ValueError(f"k must lie between 1 and the number of samples, {samples}, but it is {k}.")
    blocks_BGk = answers[:, : samples // k * k].reshape(problems, samples // k, k)
    votes_BGk = np.zeros(blocks_BGk.shape, dtype=np.int64)
    for voter in range(k):
        votes_BGk += blocks_BGk == blocks_BGk[..., voter : voter + 1]
    first_BG1 = votes_BGk.argmax(axis=-1, keepdims=True)  # argmax takes the earliest of equals: the tie rule
    winner_BG = np.take_along_axis(blocks_BGk, first_BG1, axis=-1)[..., 0]
    return (winner_BG == truth[:, None]).mean(axis=1)


def cluster_counts(
    keys: ArrayLike, right: ArrayLike
) -> tuple[NDArray[np.generic], NDArray[np.int64], NDArray[np.int64]]:
    """Count items per key: (unique keys in sorted order, right items, all items), each of shape (K,).

    `keys` and `right` have one entry per item: its key (anything that sorts) and whether it was answered rightly.

    Raises ValueError unless both have the same shape (N,) and `right` is boolean.
    """
    items, is_right = np.asarray(keys), np.asarray(right)
    if items.ndim != 1 or items.shape != is_right.shape:
        raise ValueError(f"keys and right must share one shape (N,), but they have {items.shape}, {is_right.shape}.")
    if is_right.dtype != np.bool_:
        raise ValueError(f"right must be boolean, one value per item, but its type is {is_right.dtype}.")
    unique_K, position_N = np.unique(items, return_inverse=True)
    count = len(unique_K)
    return unique_K, np.bincount(position_N[is_right], minlength=count), np.bincount(position_N, minlength=count)


MEMO: dict[bytes, Interval] = {}
"""Intervals by a digest of their inputs: tables, figures and sentences ask for the same ones."""


def _remembered(gains: Counts, totals: Counts, lowest: float, level: float, draws: int, seed: int) -> Interval:
    """`_interval`, computed once for the same counts."""
    digest = hashlib.blake2b(repr((lowest, level, draws, seed)).encode())
    for counts_K in (*gains, *totals):
        digest.update(np.int64(len(counts_K)).tobytes() + counts_K.astype(np.int64).tobytes())
    key = digest.digest()[:16]
    if key not in MEMO:
        MEMO[key] = _interval(gains, totals, lowest, level, draws, seed)
    return MEMO[key]


def _interval(gains: Counts, totals: Counts, lowest: float, level: float, draws: int, seed: int) -> Interval:
    """Mean over runs of sum(gain) / sum(total), a share between `lowest` and 1, with its interval."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie strictly between 0 and 1 (0.95, say), but it is {level}.")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, but it is {draws}.")
    value = float(np.mean([gain_K.sum() / total_K.sum() for gain_K, total_K in zip(gains, totals, strict=True)]))
    rates = np.concatenate([gain_K / total_K for gain_K, total_K in zip(gains, totals, strict=True)])
    if np.all(rates == rates[0]):
        return _interval_of_equal_keys(value, lowest, min(len(total_K) for total_K in totals), level)
    means_D = _bootstrap_means(gains, totals, draws, np.random.default_rng(seed))
    low, high = np.quantile(means_D, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    if len(totals) == 1:
        return Interval(value, float(low), float(high), "bootstrap over keys")
    from scipy.stats import t

    rates_R = [gain_K.sum() / total_K.sum() for gain_K, total_K in zip(gains, totals, strict=True)]
    half = float(t.ppf((1.0 + level) / 2.0, len(rates_R) - 1) * np.std(rates_R, ddof=1) / np.sqrt(len(rates_R)))
    low, high = max(lowest, min(float(low), value - half)), min(1.0, max(float(high), value + half))
    return Interval(value, low, high, "bootstrap over runs and keys, or Student's t over runs where that is wider")


def _interval_of_equal_keys(value: float, lowest: float, keys: int, level: float) -> Interval:
    """None of `keys` keys differs: bound the share that may (Clopper-Pearson), and let those go to either extreme."""
    from scipy.stats import binomtest

    unseen = float(binomtest(0, keys).proportion_ci(level, method="exact").high)
    low, high = value - unseen * (value - lowest), value + unseen * (1.0 - value)
    return Interval(value, low, high, "exact binomial over the keys of one run")


def _bootstrap_means(gains: Counts, totals: Counts, draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """The mean over runs in each resample, shape (D,); a run that is drawn twice gets two draws of its keys."""
    runs = len(totals)
    picked_DR = rng.integers(runs, size=(draws, runs))
    rates_DR = np.empty((draws, runs))
    for run, (gain_K, total_K) in enumerate(zip(gains, totals, strict=True)):
        here_DR = picked_DR == run
        rates_DR[here_DR] = _resampled_rates(gain_K, total_K, int(here_DR.sum()), rng)
    return rates_DR.mean(axis=1)


def _resampled_rates(
    gain_K: NDArray[np.int64], total_K: NDArray[np.int64], size: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """sum(gain) / sum(total) over K keys drawn with replacement, `size` times; keys with equal counts form a class."""
    classes_C2, members_C = np.unique(np.stack([gain_K, total_K], axis=1), axis=0, return_counts=True)
    drawn_DC = rng.multinomial(len(total_K), members_C / len(total_K), size=size)
    sums_D2 = drawn_DC @ classes_C2
    return sums_D2[:, 0] / sums_D2[:, 1]


def _checked_totals(total: Sequence[ArrayLike]) -> Counts:
    totals = [_integers("total", run) for run in total]
    if not totals:
        raise ValueError("total is empty: give one array of counts per run, for at least one run.")
    if any(total_K.ndim != 1 or total_K.size == 0 or np.any(total_K < 1) for total_K in totals):
        raise ValueError("total must hold, for each run, a non-empty 1-D array of counts that are at least 1.")
    return totals


def _checked_correct(name: str, correct: Sequence[ArrayLike], totals: Counts) -> Counts:
    counts = [_integers(name, run) for run in correct]
    shapes, expected = [count.shape for count in counts], [total_K.shape for total_K in totals]
    if shapes != expected:
        raise ValueError(f"{name} must have the shapes of total, run by run, {expected}, but it has {shapes}.")
    if any(np.any(count < 0) or np.any(count > total_K) for count, total_K in zip(counts, totals, strict=True)):
        raise ValueError(f"{name} must lie between 0 and total for every key.")
    return counts


def _integers(name: str, values: int | ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.dtype.kind not in "iub":
        raise ValueError(f"{name} must hold integers, but its type is {array.dtype}.")
    return array.astype(np.int64)
