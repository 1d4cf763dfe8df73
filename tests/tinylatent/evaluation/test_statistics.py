"""Intervals, pass@k, majority votes and counts per key, each against an independent computation.

Statistical tests fix their seed, so they never flicker; each states how often it would fail, on correct code, if the
seed were drawn anew.
"""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from tinylatent.evaluation.statistics import (
    Interval,
    accuracy_interval,
    cluster_counts,
    deviation_interval,
    deviation_ratio,
    majority_at_k,
    paired_difference,
    pass_at_k,
)

EXACT = "exact binomial over the keys of one run"
exact_search = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def clustered_run(rng, keys, mean=0.6, strength=1.0):
    """Counts of one run whose keys differ in difficulty (Beta with the given mean and strength) and in size."""
    total_K = rng.integers(2, 9, size=keys)
    difficulty_K = rng.beta(mean * strength, (1 - mean) * strength, size=keys)
    return rng.binomial(total_K, difficulty_K), total_K


def as_items(correct_K, total_K):
    """The same run with every item under a key of its own: what ignoring the clusters would do."""
    right = np.repeat(np.tile([1, 0], len(total_K)), np.stack([correct_K, total_K - correct_K], axis=1).ravel())
    return right, np.ones_like(right)


def width(interval):
    return interval.high - interval.low


def covers(interval, truth):
    return interval.low <= truth <= interval.high


# Accuracy


def test_value_is_the_mean_over_runs_of_the_share_of_items():
    interval = accuracy_interval([[1, 0], [3, 4, 1]], [[1, 3], [4, 4, 2]])
    assert interval.value == pytest.approx((1 / 4 + 8 / 10) / 2)
    assert interval.kind.startswith("bootstrap over runs and keys, or Student's t")
    assert accuracy_interval([[1, 0]], [[1, 3]]).kind == "bootstrap over keys"


def test_small_bootstrap_agrees_with_enumerating_all_resamples():
    """With 3 keys the 27 resamples give the exact distribution; away from its jumps the quantiles must be equal.

    False alarms: the ends are interior atoms (more than 12 standard errors from the jumps), so below 1e-20.
    """
    correct_K, total_K = np.array([0, 1, 5]), np.array([2, 3, 5])
    picks = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)
    rates = np.sort(correct_K[picks].sum(axis=1) / total_K[picks].sum(axis=1))
    interval = accuracy_interval([correct_K], [total_K], level=0.6)
    assert interval.low == pytest.approx(np.quantile(rates, 0.2, method="inverted_cdf"))
    assert interval.high == pytest.approx(np.quantile(rates, 0.8, method="inverted_cdf"))


@pytest.mark.slow
def test_one_run_covers_as_promised_and_ignoring_clusters_does_not():
    """1,000 worlds of 80 keys: 95 % intervals cover 92 to 98 % of the time; over items alone, less than 80 %.

    The long-run shares are about 94.7 and 71 %, the standard errors 0.7 and 1.4 points: false alarms below 0.001.
    """
    rng = np.random.default_rng(1)
    runs = [clustered_run(rng, keys=80) for _ in range(1000)]
    by_key = np.mean([covers(accuracy_interval([c], [t], draws=500, seed=i), 0.6) for i, (c, t) in enumerate(runs)])
    items = [as_items(c, t) for c, t in runs]
    by_item = np.mean([covers(accuracy_interval([c], [t], draws=500, seed=i), 0.6) for i, (c, t) in enumerate(items)])
    assert 0.92 <= by_key <= 0.98
    assert by_item < 0.80


@pytest.mark.slow
def test_several_runs_cover_as_promised_and_pooling_them_does_not():
    """400 worlds of 10 runs whose true accuracies differ: two levels cover 88.5 to 97.5 %, one pooled level below 75 %.

    The long-run shares are about 93 % (the bootstrap of 10 runs is a little narrow) and 63 %, the standard errors
    1.3 and 2.4 points: false alarms below 0.001.
    """
    rng = np.random.default_rng(2)
    hits = []
    for world in range(400):
        means = rng.beta(12, 8, size=10)
        correct, total = zip(*[clustered_run(rng, keys=60, mean=mean) for mean in means], strict=True)
        two_level = accuracy_interval(correct, total, draws=500, seed=world)
        pooled = accuracy_interval([np.concatenate(correct)], [np.concatenate(total)], draws=500, seed=world)
        hits.append((covers(two_level, 0.6), covers(pooled, 0.6)))
    two_level_share, pooled_share = np.mean(hits, axis=0)
    assert 0.885 <= two_level_share <= 0.975
    assert pooled_share < 0.75


@pytest.mark.slow
@pytest.mark.parametrize("runs", [2, 3, 5])
def test_a_handful_of_runs_covers_as_promised(runs):
    """600 worlds of few runs whose true accuracies differ, of one method and of two: at least 91.5 % are covered.

    The long-run shares are at least 95 %, the standard errors 0.9 points: false alarms below 1e-4 each. The bootstrap
    alone would cover 50 (two runs) to 83 % (five).
    """
    rng = np.random.default_rng(runs)
    singles, pairs = [], []
    for world in range(600):
        counts = [clustered_run(rng, keys=60, mean=mean) for mean in rng.beta(12, 8, size=runs)]
        others = [
            rng.binomial(total_K, rng.beta(12 * 20, 8 * 20, size=len(total_K)) + shift)
            for (_, total_K), shift in zip(counts, rng.normal(0, 0.08, size=runs), strict=True)
        ]
        correct, total = zip(*counts, strict=True)
        singles.append(covers(accuracy_interval(correct, total, draws=300, seed=world), 0.6))
        pairs.append(covers(paired_difference(correct, others, total, draws=300, seed=world), 0.0))
    assert np.mean(singles) > 0.915
    assert np.mean(pairs) > 0.915


def test_two_runs_that_disagree_say_little():
    """Student's t of one degree of freedom: 12.706 standard errors, cut where no share can be."""
    interval = accuracy_interval([[50, 52], [54, 56]], [[100, 100]] * 2)
    assert interval.value == pytest.approx(0.53)
    assert (interval.low, interval.high) == pytest.approx((0.53 - 12.7062 * 0.02, 0.53 + 12.7062 * 0.02), abs=1e-5)
    wide = accuracy_interval([[10, 12], [90, 92]], [[100, 100]] * 2)
    assert (wide.low, wide.high) == (0.0, 1.0)
    gap = paired_difference([[10, 12], [90, 92]], [[90, 92], [10, 12]], [[100, 100]] * 2)
    assert (gap.low, gap.high) == (-1.0, 1.0)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_all_right_and_all_wrong_get_the_exact_binomial_of_the_smallest_run(level):
    total = [np.array([3, 1, 2, 5]), np.full(9, 2)]
    tail = ((1 - level) / 2) ** (1 / 4)
    right = accuracy_interval(total, total, level=level)
    wrong = accuracy_interval([0 * t for t in total], total, level=level)
    assert (right.value, right.low, right.high) == pytest.approx((1.0, tail, 1.0))
    assert (wrong.value, wrong.low, wrong.high) == pytest.approx((0.0, 0.0, 1 - tail))
    assert right.kind == wrong.kind == EXACT


def test_one_key_is_never_certain():
    interval = accuracy_interval([[3]], [[5]])
    assert interval.kind == EXACT
    assert (interval.low, interval.value, interval.high) == pytest.approx((0.6 * 0.025, 0.6, 1 - 0.4 * 0.025))


def test_order_of_keys_does_not_matter():
    rng = np.random.default_rng(3)
    runs = [clustered_run(rng, keys=40) for _ in range(3)]
    orders = [rng.permutation(40) for _ in runs]
    plain = accuracy_interval([c for c, _ in runs], [t for _, t in runs])
    shuffled = accuracy_interval(
        [c[o] for (c, _), o in zip(runs, orders, strict=True)], [t[o] for (_, t), o in zip(runs, orders, strict=True)]
    )
    assert shuffled == plain


def test_seed_decides_the_draws_and_noise_is_small():
    """Two seeds differ by less than 6 % of the width.

    The noise of 10,000 draws is 0.9 % of the width at each end: false alarms below 1e-5.
    """
    correct_K, total_K = clustered_run(np.random.default_rng(4), keys=40)
    one, same, two = [accuracy_interval([correct_K], [total_K], seed=seed) for seed in (0, 0, 1)]
    assert one == same
    assert one != two
    assert abs(one.low - two.low) + abs(one.high - two.high) < 0.06 * width(one)


def test_higher_level_gives_a_wider_interval():
    correct_K, total_K = clustered_run(np.random.default_rng(5), keys=40)
    widths = [width(accuracy_interval([correct_K], [total_K], level=level)) for level in (0.5, 0.8, 0.95, 0.99)]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1] / 2


# Paired difference


def related_methods(rng, runs=3, keys=60):
    """Counts of two methods that find the same keys hard; the second loses one item on every fourth key."""
    counts = [clustered_run(rng, keys) for _ in range(runs)]
    worse = [np.maximum(correct_K - (np.arange(keys) % 4 == 0), 0) for correct_K, _ in counts]
    return [c for c, _ in counts], worse, [t for _, t in counts]


def test_difference_is_that_of_the_mean_accuracies_and_far_narrower_than_unpaired():
    a, b, total = related_methods(np.random.default_rng(6))
    paired = paired_difference(a, b, total)
    alone_a, alone_b = accuracy_interval(a, total), accuracy_interval(b, total)
    assert paired.value == pytest.approx(alone_a.value - alone_b.value)
    assert width(paired) < 0.5 * np.hypot(width(alone_a), width(alone_b))
    assert paired.low > 0


def test_swapping_the_methods_mirrors_the_interval():
    """Values mirror exactly, ends up to 6 % of the width.

    The noise of 10,000 draws is 1.1 % of the width for such a pair of ends: false alarms below 1e-6.
    """
    a, b, total = related_methods(np.random.default_rng(7))
    ab, ba = paired_difference(a, b, total), paired_difference(b, a, total)
    assert ba.value == -ab.value
    assert (ba.low, ba.high) == pytest.approx((-ab.high, -ab.low), abs=0.06 * width(ab))


@pytest.mark.slow
def test_paired_interval_covers_as_promised():
    """500 worlds, a 0.1 more often right than b on every key: 90.5 to 98 % of the intervals cover 0.1.

    The long-run share is about 94.3 %, the standard error 1 point: false alarms below 0.001.
    """
    rng = np.random.default_rng(8)
    total_K = np.full(60, 4)
    hits = []
    for world in range(500):
        difficulty_K = rng.uniform(0.0, 0.9, size=60)
        a_K, b_K = rng.binomial(total_K, difficulty_K + 0.1), rng.binomial(total_K, difficulty_K)
        hits.append(covers(paired_difference([a_K], [b_K], [total_K], draws=500, seed=world), 0.1))
    assert 0.905 <= np.mean(hits) <= 0.98


def test_identical_methods_are_not_declared_equal_beyond_the_keys_seen():
    a, _, total = related_methods(np.random.default_rng(9), keys=60)
    interval = paired_difference(a, a, total)
    bound = 1 - 0.025 ** (1 / 60)
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.0, -bound, bound))
    assert interval.kind == EXACT


def test_one_method_is_always_right_and_the_other_never():
    total = [np.full(10, 2, dtype=np.uint8)]
    interval = paired_difference([0 * total[0]], total, total)
    assert (interval.value, interval.low) == (-1.0, -1.0)
    assert interval.high == pytest.approx(-1 + 2 * (1 - 0.025 ** (1 / 10)))


# Bad counts


@pytest.mark.parametrize(
    ("correct", "total", "message"),
    [
        ([], [], "at least one run"),
        ([[1]], [[1], [1]], "shapes of total"),
        ([[1, 1]], [[1]], "shapes of total"),
        ([[[1]]], [[[1]]], "1-D"),
        ([[]], [np.zeros(0, dtype=int)], "non-empty|integers"),
        ([np.zeros(0, dtype=int)], [np.zeros(0, dtype=int)], "non-empty"),
        ([[0]], [[0]], "at least 1"),
        ([[2]], [[1]], "between 0 and total"),
        ([[-1]], [[1]], "between 0 and total"),
        ([[0.5]], [[1]], "integers"),
        ([[1]], [[1.0]], "integers"),
    ],
)
def test_bad_counts_are_rejected(correct, total, message):
    with pytest.raises(ValueError, match=message):
        accuracy_interval(correct, total)
    with pytest.raises(ValueError, match=message):
        paired_difference(correct, correct, total)


@pytest.mark.parametrize("option", [{"level": 0.0}, {"level": 1.0}, {"level": 95.0}, {"draws": 0}])
def test_bad_options_are_rejected_by_name(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        accuracy_interval([[1, 0]], [[1, 1]], **option)


def test_the_message_names_the_faulty_argument():
    with pytest.raises(ValueError, match="correct_b"):
        paired_difference([[1]], [[2]], [[1]])
    with pytest.raises(ValueError, match="correct_a"):
        paired_difference([[2]], [[1]], [[1]])


def test_interval_is_frozen():
    with pytest.raises(AttributeError):
        Interval(0.5, 0.4, 0.6, "by hand").value = 1.0  # type: ignore[misc]


# pass@k


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n):
    for k in range(1, n + 1):
        slow = [np.mean([min(subset) < c for subset in combinations(range(n), k)]) for c in range(n + 1)]
        np.testing.assert_allclose(pass_at_k(n, np.arange(n + 1), k), slow, atol=1e-12)


@exact_search
@given(st.integers(1, 10**6), st.floats(0, 1))
def test_pass_at_one_is_the_share_of_right_samples(n, share):
    c = round(share * n)
    assert pass_at_k(n, c, 1) == pytest.approx(c / n, abs=1e-12)


def test_pass_at_k_broadcasts_and_survives_huge_binomials():
    np.testing.assert_allclose(pass_at_k([[2], [4]], [0, 1, 2], 2), [[0, 1, 1], [0, 1 / 2, 5 / 6]])
    assert pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5)
    assert pass_at_k(100_000, 50_000, 100_000) == 1.0


@pytest.mark.parametrize(
    ("n", "c", "k", "message"),
    [
        (5, 2, 0, "k must"),
        (5, 2, 6, "k must"),
        ([5, 3], 2, 4, "k must"),
        (5, 6, 1, "c, the"),
        (5, -1, 1, "c, the"),
        ([5.0], 2, 1, "n must hold integers"),
        (5, [2.0], 1, "c must hold integers"),
    ],
)
def test_pass_at_k_rejects_bad_input(n, c, k, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(n, c, k)


# Majority


def slow_majority(answers, truth, k):
    """Counter keeps the order of first appearance, and most_common is stable: the tie rule."""
    blocks = [answers[start : start + k] for start in range(0, len(answers) - k + 1, k)]
    return np.mean([Counter(block).most_common(1)[0][0] == truth for block in blocks])


@exact_search
@given(st.data(), st.integers(1, 4), st.integers(1, 12))
def test_majority_agrees_with_counting_each_block(data, problems, samples):
    k = data.draw(st.integers(1, samples))
    seed = data.draw(st.integers(0, 10**6))
    answers = np.random.default_rng(seed).integers(-1, 3, size=(problems, samples))
    truth = np.random.default_rng(seed + 1).integers(-1, 3, size=problems)
    slow = [slow_majority(row.tolist(), answer, k) for row, answer in zip(answers, truth, strict=True)]
    np.testing.assert_allclose(majority_at_k(answers, truth, k), slow)


def test_majority_breaks_ties_by_first_appearance_and_drops_the_rest():
    answers = [[2, 1, 1, 2, 9, 9, 9], [1, 2, 2, 1, 9, 9, 9]]
    np.testing.assert_array_equal(majority_at_k(answers, [2, 2], 4), [1.0, 0.0])


@pytest.mark.parametrize(
    ("answers", "truth", "k", "message"),
    [
        ([[1, 2]], [1], 0, "k must"),
        ([[1, 2]], [1], 3, "k must"),
        ([1, 2], [1, 2], 1, r"shape \(B, S\)"),
        ([[1, 2]], [1, 2], 1, r"shape \(B, S\)"),
        ([[1.0, 2.0]], [1], 1, "answers_BS must hold integers"),
        ([[1, 2]], [1.0], 1, "truth_B must hold integers"),
    ],
)
def test_majority_rejects_bad_input(answers, truth, k, message):
    with pytest.raises(ValueError, match=message):
        majority_at_k(answers, truth, k)


# Counts per key


@exact_search
@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), max_size=40))
def test_cluster_counts_agree_with_counters(items):
    unique, correct, total = cluster_counts(
        np.array([key for key, _ in items], dtype=np.int64), np.array([right for _, right in items], dtype=bool)
    )
    slow_total, slow_correct = Counter(key for key, _ in items), Counter(key for key, right in items if right)
    assert unique.tolist() == sorted(slow_total)
    assert total.tolist() == [slow_total[key] for key in sorted(slow_total)]
    assert correct.tolist() == [slow_correct[key] for key in sorted(slow_total)]


@pytest.mark.parametrize(
    ("keys", "right", "message"),
    [([1, 2], [True], "share one shape"), ([[1]], [[True]], "share one shape"), ([1, 2], [1, 0], "boolean")],
)
def test_cluster_counts_reject_bad_input(keys, right, message):
    with pytest.raises(ValueError, match=message):
        cluster_counts(keys, right)


# Deviations


def test_deviation_interval_is_the_tabulated_one():
    """Ten values: s times 0.6878 and 1.8256 (chi-square of 9 degrees: 2.700 and 19.023)."""
    values = [float(x) for x in range(10)]
    found = deviation_interval(values)
    assert found.value == pytest.approx(np.sqrt(55 / 6))
    assert found.low / found.value == pytest.approx(np.sqrt(9 / 19.0228), rel=1e-4)
    assert found.high / found.value == pytest.approx(np.sqrt(9 / 2.7004), rel=1e-4)


def test_deviation_ratio_is_the_tabulated_one():
    """Ten values against ten: divided and multiplied by the root of F(9, 9) = 4.026."""
    a, b = [3.0 * x for x in range(10)], [float(x) for x in range(10)]
    found = deviation_ratio(a, b)
    assert found.value == pytest.approx(3)
    assert found.low == pytest.approx(3 / np.sqrt(4.02599), rel=1e-4)
    assert found.high == pytest.approx(3 * np.sqrt(4.02599), rel=1e-4)
    assert deviation_ratio(b, a).high == pytest.approx(1 / found.low)


@pytest.mark.slow
def test_deviation_intervals_cover():
    """Of 4,000 intervals at 90 % for normal values a tenth miss; false alarm 1e-6 for each of the two."""
    rng = np.random.default_rng(0)
    low, high = binom.interval(1 - 1e-6, 4000, 0.9)
    draws = rng.normal(5.0, 2.0, size=(4000, 4))
    singles = (deviation_interval(row.tolist(), 0.9) for row in draws)
    assert low <= sum(each.low <= 2.0 <= each.high for each in singles) <= high
    others = rng.normal(0.0, 1.0, size=(4000, 6))
    ratios = (deviation_ratio(a.tolist(), b.tolist(), 0.9) for a, b in zip(draws, others, strict=True))
    assert low <= sum(each.low <= 2.0 <= each.high for each in ratios) <= high


def test_constants_do_not_deviate_and_single_values_are_refused():
    assert deviation_interval([2.0, 2.0]).high == 0
    assert deviation_ratio([1.0, 2.0], [3.0, 3.0]).low == 0
    for bad in ([], [1.0]):
        with pytest.raises(ValueError, match="at least two values"):
            deviation_interval(bad)
        with pytest.raises(ValueError, match="b must hold at least two values"):
            deviation_ratio([1.0, 2.0], bad)
