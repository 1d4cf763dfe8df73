"""Hit rate, NDCG and their ceiling: by hand, from exact fractions, and against what happens to fresh users."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylatent_tasks import MNNS, Recommendation
from tinylatent_tasks.recommendation_slowly import predictive_slowly

from tinylatent.evaluation.ranking import (
    FIGURES,
    KS,
    QUINTILES,
    Shop,
    best_by_quintile,
    best_gains,
    excess,
    gains,
    listed_ranks,
    quintiles,
    ranks,
)

SHOP = Recommendation(4, 3, 2, events=4, zipf=1.5, noise=0.4)


def gain_slowly(figure, rank, k):
    """What a rank is worth."""
    if rank > k:
        return 0.0
    return 1.0 if figure == "hit" else 1 / math.log2(1 + rank)


def test_a_rank_counts_all_that_is_not_worse():
    scores = np.array([[0.1, 0.5, 0.5, 0.2], [3.0, 1.0, math.nan, 2.0], [1.0, 1.0, 1.0, 1.0]])
    assert ranks(scores, np.array([1, 3, 0])).tolist() == [2, 3, 4]
    assert ranks(scores, np.array([0, 2, 3])).tolist() == [4, 4, 4], "NaN is no score to win by"
    assert ranks(np.array([5, 9, 5, 1]), np.array([0, 1, 2, 3])).tolist() == [3, 1, 3, 4], "one ranking for all"
    assert listed_ranks(np.array([[4, 7, 8], [2, 1, 0]]), np.array([7, 5]), 9).tolist() == [2, 9]
    for shape in ((2, 4), (4, 4), (3, 4, 1)):
        with pytest.raises(ValueError, match="expected a score for every item of 3 problems"):
            ranks(np.zeros(shape), np.array([1, 3, 0]))


def test_gains_are_as_computed_by_hand():
    rank_P = np.array([1, 2, 3, 10, 11])
    assert gains(rank_P, "hit", 1).tolist() == [1, 0, 0, 0, 0]
    assert gains(rank_P, "hit", 10).tolist() == [1, 1, 1, 1, 0]
    assert gains(rank_P, "ndcg", 3) == pytest.approx([1, 1 / math.log2(3), 0.5, 0, 0])
    for figure, k in (("mrr", 10), ("hit", 0)):
        with pytest.raises(ValueError, match="expected one of hit, ndcg, at 1 or more"):
            gains(rank_P, figure, k)


def test_gains_agree_with_the_task_where_nothing_ties():
    rows, scores = SHOP.problems(300, 4), np.random.default_rng(0).normal(size=(300, SHOP.items))
    rank_P = ranks(scores, SHOP.answer(rows))
    for k in KS:
        for figure in FIGURES:
            assert gains(rank_P, figure, k).mean() == pytest.approx(SHOP.hits(rows, scores, k)[figure])


def test_quintiles_are_fifths_of_the_items_the_most_popular_first():
    assert quintiles(np.array([1, 5, 3, 4, 2])).tolist() == [5, 1, 3, 2, 4]
    assert quintiles(np.ones(10)).tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    found = quintiles(Recommendation().popularity)
    assert np.bincount(found).tolist() == [0, 60, 60, 60, 60, 60]
    least = [Recommendation().popularity[found == quintile].min() for quintile in range(1, 5)]
    most = [Recommendation().popularity[found == quintile].max() for quintile in range(2, 6)]
    assert all(low > high for low, high in zip(least, most, strict=True))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 24), st.sampled_from(FIGURES), st.sampled_from([0.0, 1.0, 2.0]))
def test_the_ceiling_is_that_of_exact_fractions(seed, k, figure, zipf):
    """All histories' items one by one, their probabilities multiplied out, without the task's fast oracle."""
    task = Recommendation(4, 3, 2, intents=3, events=4, zipf=zipf, noise=0.4)
    rows, quintile_I = task.problems(4, seed), quintiles(task.popularity).tolist()
    of_problems, worth, mass = [], dict.fromkeys(range(1, 6), 0.0), dict.fromkeys(range(1, 6), 0.0)
    for row in rows.tolist():
        exact = predictive_slowly(task.shop(), row[2 : 2 + row[1]])
        order = sorted(range(task.items), key=lambda item: (-exact[item], item))
        of_problems.append(0.0)
        for rank, item in enumerate(order, 1):
            gain = float(exact[item]) * gain_slowly(figure, rank, k)
            of_problems[-1] += gain
            worth[quintile_I[item]] += gain
            mass[quintile_I[item]] += float(exact[item])
    predictive_PI = task.predictive(rows)
    assert best_gains(predictive_PI, figure, k) == pytest.approx(of_problems, rel=1e-9)
    assert task.ceiling(rows, k)[figure] == pytest.approx(np.mean(of_problems), rel=1e-9)
    if zipf:  # else equal probabilities tie, by an order that floats and fractions need not share
        expected = [worth[quintile] / mass[quintile] for quintile in range(1, 6)]
        found = best_by_quintile(predictive_PI, np.array(quintile_I), figure, k)
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("k", KS)
def test_the_ceiling_is_what_happens_to_fresh_users(figure, k):
    """20,000 users who are drawn, not enumerated: within five standard deviations, over all and in each quintile."""
    rows, quintile_I = SHOP.problems(20_000, 9), quintiles(SHOP.popularity)
    predictive_PI, right_P = SHOP.predictive(rows), SHOP.answer(rows)
    gain_P = gains(ranks(predictive_PI, right_P), figure, k)
    best_P = best_gains(predictive_PI, figure, k)
    error = (gain_P - best_P).std() / math.sqrt(len(rows))
    assert abs(gain_P.mean() - best_P.mean()) < 5 * error
    expected = best_by_quintile(predictive_PI, quintile_I, figure, k)
    for quintile in range(1, QUINTILES + 1):
        own_P = gain_P[quintile_I[right_P] == quintile]
        mean, count = expected[quintile - 1], len(own_P)
        assert count > 500
        assert abs(own_P.mean() - mean) < 5 * math.sqrt(max(mean * (1 - mean), 1 / count) / count)
    by_popularity = gains(ranks(SHOP.popularity, right_P), figure, k)
    assert excess(by_popularity, best_P, SHOP.key(rows)).high < 0


def test_no_ranking_exceeds_the_ceiling_but_one_that_knows_the_answers():
    rows = SHOP.problems(2000, 2)
    predictive_PI, right_P, key_P = SHOP.predictive(rows), SHOP.answer(rows), SHOP.key(rows)
    best_P = best_gains(predictive_PI, "hit", 1)
    fair = excess(gains(ranks(predictive_PI, right_P), "hit", 1), best_P, key_P)
    assert fair.low < 0 < fair.high
    leaked = predictive_PI.copy()
    leaked[np.arange(0, 2000, 5), right_P[::5]] = 1
    assert excess(gains(ranks(leaked, right_P), "hit", 1), best_P, key_P).low > 0


def test_the_interval_of_an_excess_has_its_level_and_is_over_users():
    """Of 400 samples about a twentieth miss the truth; a user's problems are no more than one."""
    rng, missed = np.random.default_rng(0), 0
    for _ in range(400):
        found = excess(rng.random(60) < 0.3, np.full(60, 0.3), np.arange(60))
        missed += not found.low <= 0 <= found.high
    assert 5 <= missed <= 40
    gain_P = rng.random(60) < 0.3
    once = excess(gain_P, np.full(60, 0.3), np.arange(60))
    copied = excess(np.repeat(gain_P, 9), np.full(540, 0.3), np.repeat(np.arange(60), 9))
    assert (copied.value, copied.low, copied.high) == pytest.approx((once.value, once.low, once.high))
    wider = excess(gain_P, np.full(60, 0.3), np.arange(60), level=0.99)
    assert wider.high > once.high
    for gain, key in ((np.zeros(3), np.zeros(3)), (np.zeros(2), np.arange(3)), (np.zeros(0), np.zeros(0))):
        with pytest.raises(ValueError, match="two users or more"):
            excess(gain, np.zeros(len(gain)), key)


def test_a_shop_is_a_task_with_a_catalogue():
    assert isinstance(SHOP, Shop)
    assert not isinstance(MNNS(), Shop)
