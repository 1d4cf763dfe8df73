"""Recommendation: an example by hand, exact fractions, parts by time, and the ceiling against what happens."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylatent_tasks.recommendation import Recommendation
from tinylatent_tasks.recommendation_slowly import posterior_slowly, predictive_slowly, rule_slowly

# By hand: 8 items (category, brand, number), all equally popular; the two intents look at lags 1 and 3, or 1 and 4.
# The user begins with 0 = (0,0,0), 3 = (0,1,1), 5 = (1,0,1), 6 = (1,1,0). The rules then foretell, with the category of
# 6: brand 1 and number 0+1 of item 3, which is 7; or brand 0 and number 0+0 of item 0, which is 4. The user takes 7:
# probability 1/2 + 1/16 under the first intent and 1/16 under the second, 9 to 1. Next, with the category of 7 =
# (1,1,1): brand 0 and number 1+1 of item 5, which is 4; or brand 1 and number 1+1 of item 3, which is 6.
HAND_TASK = Recommendation(categories=2, brands=2, numbers=2, intents=2, events=3, zipf=0.0, noise=0.5)
HAND = [77, 5, 0, 3, 5, 6, 7, -1, 6]
JSON = {"user": 77, "history": [0, 3, 5, 6, 7], "next": 6}
# 1/16 each, and half of 9/10 and of 1/10.
HAND_PREDICTIVE = [1 / 16] * 4 + [1 / 16 + 9 / 20, 1 / 16, 1 / 16 + 1 / 20, 1 / 16]

CONFIGS = st.builds(
    Recommendation,
    categories=st.integers(2, 5),
    brands=st.integers(2, 4),
    numbers=st.integers(2, 4),
    intents=st.integers(1, 8),
    events=st.integers(2, 12),
    zipf=st.just(0.0) | st.floats(0.1, 2),
    noise=st.just(1.0) | st.floats(0.01, 0.9),
    item_tokens=st.booleans(),
)
SEEDS = st.integers(0, 2**32)


def test_an_example_is_as_computed_by_hand():
    task = HAND_TASK
    assert (task.items, task.lags, task.memory, task.longest) == (8, ((1, 3), (1, 4)), 4, 6)
    np.testing.assert_allclose(task.posterior([HAND]), [[0.9, 0.1]], rtol=1e-14)
    np.testing.assert_allclose(task.predictive([HAND]), [HAND_PREDICTIVE], rtol=1e-14)
    batch = task.batch([HAND])
    assert task.vocabulary.decode(batch.prompt_BN[0]) == (
        "<pad> <pad> <pad> <bos> c0 b0 k0 c0 b1 k1 c1 b0 k1 c1 b1 k0 c1 b1 k1"
    )
    assert task.vocabulary.decode(batch.chain_BT[0]) == "z0 k0"
    assert task.vocabulary.decode(batch.answer_BA[0]) == "c1 b1 k0"
    assert task.answer([HAND]).tolist() == [6]
    assert batch.steps_B.tolist() == [2]
    assert task.positions == 19 + 1 + 3
    shares = {
        task.vocabulary.tokens[id_]: batch.frontier_BTV[0, 0, id_] for id_ in np.flatnonzero(batch.frontier_BTV[0, 0])
    }
    assert shares == {"z0": np.float32(0.9), "z1": np.float32(0.1)}
    assert task.solve_slowly(HAND) == (6, [0])
    assert posterior_slowly(task.shop(), HAND[2:7]) == [Fraction(9, 10), Fraction(1, 10)]


def test_ceiling_and_hits_are_as_computed_by_hand():
    task = HAND_TASK
    first, second = HAND_PREDICTIVE[4], HAND_PREDICTIVE[6]
    for k, hit, ndcg in ((1, first, first), (2, first + second, first + second / math.log2(3)), (8, 1, None)):
        found = task.ceiling([HAND], k)
        assert found["hit"] == pytest.approx(hit)
        assert ndcg is None or found["ndcg"] == pytest.approx(ndcg)
    assert task.hits([HAND], task.predictive([HAND]), 1) == {"hit": 0, "ndcg": 0}  # item 6 is second
    assert task.hits([HAND], task.predictive([HAND]), 2) == {"hit": 1, "ndcg": pytest.approx(1 / math.log2(3))}
    assert task.hits([HAND], np.zeros((1, 8)), 6) == {"hit": 0, "ndcg": 0}  # equal scores: item 6 is seventh
    assert task.hits([HAND], np.zeros((1, 8)), 7) == {"hit": 1, "ndcg": pytest.approx(1 / 3)}
    assert task.hits([HAND], [[0, 0, 0, 0, 0, 0, 1, 0]], 1) == {"hit": 1, "ndcg": 1}
    for scores in (np.zeros((1, 7)), np.zeros(8), [[math.nan] * 8]):
        with pytest.raises(ValueError, match="score every item"):
            task.hits([HAND], scores, 1)
    for k in (0, 9, 1.5):
        with pytest.raises(ValueError, match="k is"):
            task.ceiling([HAND], k)
    with pytest.raises(ValueError, match="no problems"):
        task.ceiling(task.problems(0, 0), 1)


def test_an_example_is_described_asked_and_written_as_json():
    assert HAND_TASK.describe(HAND).splitlines() == [
        "problem     user 77 after 5 items",
        "answer      c1 b1 k0",
        "most likely c1 b0 k0 (0.5125)",
        "history     c0 b0 k0, c0 b1 k1, c1 b0 k1, c1 b1 k0, c1 b1 k1",
        "step 1      z0: 0.9, z1: 0.1",
        "step 2      k0: 1",
    ]
    assert "c1 b0 k1, c1 b1 k0, c1 b1 k1. Which item does the user choose next?" in HAND_TASK.question(HAND)
    assert HAND_TASK.to_json(HAND) == JSON
    assert HAND_TASK.read(JSON).tolist() == HAND_TASK.read(HAND).tolist() == HAND
    assert HAND_TASK.read({"history": JSON["history"], "next": 6}).tolist() == [0, *HAND[1:]]
    assert HAND_TASK.judge(HAND, {"answer": "C1 b1 k0."})
    assert not HAND_TASK.judge(HAND, "c1 b1 k1")
    ids = HAND_TASK.answer_ids([6])[0]
    assert HAND_TASK.write(HAND, ids) == {**JSON, "answer": "c1 b1 k0", "right": True}
    assert HAND_TASK.say(ids[::-1]) is None
    for value in ("c1 b1", "c1 k0 b1", "c1 b1 k2", "c1 b1 z0", "c1 b1 k0 k0", 6, None):
        with pytest.raises(ValueError, match="the answer is"):
            HAND_TASK.read_answer(value)


def test_with_item_tokens_the_same_problems_are_said_in_one_token_an_item():
    """Users, splits, keys, posterior and ceiling are those of the task with titles; only the words differ."""
    named, task = HAND_TASK, replace(HAND_TASK, item_tokens=True)
    for part in ("train", "validation"):
        assert np.array_equal(task.split(part, 3, 50), named.split(part, 3, 50))
    rows = named.problems(50, 1)
    assert np.array_equal(task.key(rows), named.key(rows))
    assert np.array_equal(task.predictive(rows), named.predictive(rows))
    assert task.vocabulary.tokens[3:] == ("i0", "i1", "i2", "i3", "i4", "i5", "i6", "i7", "z0", "z1")
    batch = task.batch([HAND])
    assert task.vocabulary.decode(batch.prompt_BN[0]) == "<pad> <bos> i0 i3 i5 i6 i7"
    assert task.vocabulary.decode(batch.answer_BA[0]) == "i6"
    assert task.vocabulary.decode(batch.chain_BT[0]) == "z0 i6"
    assert task.positions == 7 + 1 + 1
    assert task.title(7) == "i7"
    assert task.read_answer("i6").tolist() == batch.answer_BA[0].tolist()
    assert "The title of an item is a name of its own. A user chose these items, the latest last: i0, i3" in (
        task.question(HAND)
    )
    for wrong in ("c1 b1 k0", "i8", "z0", "i6 i6"):
        with pytest.raises(ValueError, match=r'the answer is .*"i0"'):
            task.read_answer(wrong)


@pytest.mark.parametrize("item_tokens", [False, True])
def test_the_catalogue_is_every_title_once(item_tokens):
    task = replace(HAND_TASK, item_tokens=item_tokens)
    assert [task.say(ids) for ids in task.catalogue] == [task.title(item) for item in range(8)]
    assert len({tuple(ids) for ids in task.catalogue.tolist()}) == 8


def test_the_default_shop_is_as_documented():
    task = Recommendation()
    assert task.items == 300
    assert task.lags == ((1, 3), (1, 4), (2, 4), (1, 5))
    assert (task.memory, task.longest, task.train_events) == (5, 14, 8)
    assert sorted(task.weights, reverse=True) == pytest.approx([1 / rank for rank in range(1, 301)])
    assert np.array_equal(task.weights, Recommendation(intents=2, noise=0.5, events=4).weights)
    assert task.popularity.sum() == pytest.approx(1)
    assert np.array_equal(Recommendation(zipf=2).weights.argsort(), task.weights.argsort())
    every = Recommendation(intents=21).lags
    assert len(set(every)) == 21
    assert all(i >= 1 and i + 2 <= j for i, j in every)
    assert [j for _, j in every] == sorted(j for _, j in every)
    titles = [task.title(item) for item in range(300)]
    assert (titles[0], titles[299], len(set(titles))) == ("c0 b0 k0", "c9 b5 k4", 300)
    assert [task.say(ids) for ids in task.answer_ids(np.arange(300))] == titles


@pytest.mark.slow
def test_exact_fractions_agree_on_ten_thousand_problems_of_random_settings():
    compared = 0

    @settings(max_examples=100)
    @given(CONFIGS, SEEDS)
    def compare(task, seed):
        nonlocal compared
        rows, shop = task.problems(110, seed), task.shop()
        answers, chains, posteriors = task.answer(rows), task.chain(rows), task.posterior(rows)
        for row, answer, chain, posterior in zip(rows.tolist(), answers, chains, posteriors, strict=True):
            exact = posterior_slowly(shop, row[2 : 2 + row[1]])
            assert task.states(chain) == [exact.index(max(exact))]
            assert answer == row[-1]
            np.testing.assert_allclose(posterior, [float(share) for share in exact], rtol=1e-10)
        assert task.solve_slowly(rows[0]) == (answers[0], task.states(chains[0]))
        compared += len(rows)

    compare()
    assert compared >= 10_000


@settings(max_examples=40)
@given(CONFIGS, SEEDS, st.integers(1, 8))
def test_predictive_and_ceiling_equal_exact_fractions(task, seed, k):
    rows = task.problems(3, seed)
    exact = [predictive_slowly(task.shop(), row[2 : 2 + row[1]]) for row in rows.tolist()]
    assert [sum(row) for row in exact] == [1, 1, 1]
    np.testing.assert_allclose(task.predictive(rows), np.array(exact, float), rtol=1e-10)
    best = [sorted(row, reverse=True)[:k] for row in exact]
    found = task.ceiling(rows, k)
    assert found["hit"] == pytest.approx(float(sum(map(sum, best)) / 3), rel=1e-10)
    ndcg = sum(float(share) / math.log2(1 + rank) for row in best for rank, share in enumerate(row, 1)) / 3
    assert found["ndcg"] == pytest.approx(ndcg, rel=1e-10)


def test_histories_that_no_user_is_likely_to_have_are_exact_too():
    """Rows that were read, not drawn: uniform items, in which rules are followed by chance only."""
    task = Recommendation(categories=2, brands=2, numbers=2, intents=6, events=20, zipf=3.0, noise=0.001)
    generator = np.random.default_rng(0)
    for _ in range(200):
        history = generator.integers(0, 8, 15).tolist()
        row = task.read({"history": history, "next": 0})
        np.testing.assert_allclose(
            task.posterior([row])[0], [float(share) for share in posterior_slowly(task.shop(), history)], rtol=1e-10
        )


@pytest.mark.slow
def test_intents_that_foretold_the_same_items_in_another_order_tie_exactly():
    """Sums of floats depend on their order; a tie that is not exact would give the chain to the wrong intent."""
    task = Recommendation(categories=2, brands=2, numbers=2, intents=21, events=20, noise=0.3)
    generator, compared = np.random.default_rng(0), 0
    for _ in range(300):
        history = generator.integers(0, 8, task.longest).tolist()
        posterior_Z = task.posterior([[0, task.longest, *history, 0]])[0]
        by_items: dict[tuple[int, ...], set[float]] = {}
        for intent, share in enumerate(posterior_Z.tolist()):
            times = range(task.memory, task.longest)
            foretold = [history[t] for t in times if rule_slowly(task.shop(), intent, history[:t]) == history[t]]
            by_items.setdefault(tuple(sorted(foretold)), set()).add(share)
            compared += len(foretold) > 2
        assert all(len(shares) == 1 for shares in by_items.values())
    assert compared > 1000


@settings(max_examples=60)
@given(CONFIGS, SEEDS, st.none() | st.integers(1, 9))
def test_frontier_is_the_posterior_of_the_most_probable_intents(task, seed, budget):
    rows = task.problems(20, seed)
    frontier_PTV, posterior_PZ = task.frontier(rows, budget), task.posterior(rows)
    np.testing.assert_allclose(frontier_PTV.sum(axis=2, dtype=np.float64), 1, rtol=0, atol=1e-6)
    chain_PT = task.chain(rows)
    assert (np.take_along_axis(frontier_PTV, chain_PT[..., None], axis=2) > 0).all()
    for first_V, posterior_Z, row in zip(frontier_PTV[:, 0], posterior_PZ, rows, strict=True):
        kept = sorted(range(task.intents), key=lambda intent: (-posterior_Z[intent], intent))[:budget]
        total = sum(posterior_Z[kept])
        for intent in range(task.intents):
            expected = posterior_Z[intent] / total if intent in kept else 0
            assert first_V[task.vocabulary.index(f"z{intent}")] == np.float32(expected)
        assert first_V[: task.vocabulary.index("z0")].sum() == 0
        assert frontier_PTV.shape[1] == 2
        assert task.title(row[-1]).endswith(task.vocabulary.tokens[task.chain([row])[0, 1]])
    if budget == 1:
        assert np.array_equal(frontier_PTV, np.eye(len(task.vocabulary), dtype=np.float32)[chain_PT])


def test_a_user_is_the_same_person_at_every_time():
    task = Recommendation()
    rows = task.problems(500, 0)
    lives = task.lives(rows[:, 0])
    for row, life in zip(rows.tolist(), lives.tolist(), strict=True):
        assert life[: row[1]] == row[2 : 2 + row[1]]
        assert life[row[1]] == row[-1]
    assert set(rows[:, 1].tolist()) == set(range(5, 15))
    assert np.array_equal(task.lives(rows[:, 0])[:, :8], Recommendation(events=3).lives(rows[:, 0]))
    assert not np.array_equal(rows[:, 0], task.problems(500, 1)[:, 0])


def test_parts_are_past_and_future_of_the_same_users():
    task = Recommendation()
    train, validation = task.split("train", 3, 400), task.split("validation", 3, 400)
    assert np.array_equal(train[:, 0], validation[:, 0])
    assert np.array_equal(task.key(train), task.key(validation))
    assert len(np.unique(task.key(train))) == len(np.unique(train[:, 0])) > 390
    assert set(train[:, 1].tolist()) == set(range(5, 13))  # after the 5 first items, events 0 to 7
    assert set(validation[:, 1].tolist()) == {13, 14}
    for past, future in zip(train.tolist(), validation.tolist(), strict=True):
        assert future[2 : 3 + past[1]] == [*past[2 : 2 + past[1]], past[-1]]
    assert np.array_equal(task.split("train", 3, 50), train[:50])
    assert not np.array_equal(task.split("train", 4, 400), train)
    assert np.array_equal(task.key(task.rows(train)), task.key(np.where(np.arange(17) < 16, train, 0)))
    for events, most in ((2, 1), (3, 2), (7, 5), (10, 8), (11, 8)):
        assert Recommendation(events=events).train_events == most
    for part, count, message in (
        ("test", 3, "'train', 'validation'"),
        ("train", None, "count=1000"),
        ("train", -1, "-1"),
    ):
        with pytest.raises(ValueError, match=message):
            task.split(part, 0, count)


def test_parts_by_users_share_no_user_and_have_histories_of_all_lengths():
    task = Recommendation(by_users=True)
    train, validation = task.split("train", 3, 2000), task.split("validation", 3, 500)
    assert not set(train[:, 0].tolist()) & set(validation[:, 0].tolist())
    for rows in (train, validation):
        assert set(rows[:, 1].tolist()) == set(range(5, 15))
        assert np.array_equal(task.lives(rows[:, 0])[np.arange(len(rows)), rows[:, 1]], rows[:, -1])
    assert np.array_equal(task.split("train", 3, 50), train[:50])
    assert not np.array_equal(task.split("train", 4, 400), train[:400])
    for part, count, message in (("test", 3, "'train', 'validation'"), ("train", None, "count=1000")):
        with pytest.raises(ValueError, match=message):
            task.split(part, 0, count)


@pytest.mark.parametrize("k", [1, 10])
def test_the_ceiling_is_what_happens_to_the_best_ranking(k):
    """20,000 users, within five exact standard deviations: a false alarm has probability 6e-7 for each figure."""
    task = Recommendation()
    rows = task.problems(20_000, 5)
    predictive_PI = task.predictive(rows)
    best_PK = -np.sort(-predictive_PI, axis=1)[:, :k]
    happened, expected = task.hits(rows, predictive_PI, k), task.ceiling(rows, k)
    for figure, gain_K in (("hit", np.ones(k)), ("ndcg", 1 / np.log2(np.arange(2, k + 2)))):
        variance = (best_PK @ gain_K**2 - (best_PK @ gain_K) ** 2).sum()
        assert abs(happened[figure] - expected[figure]) < 5 * math.sqrt(variance) / len(rows)
        popular = task.hits(rows, np.tile(task.popularity, (len(rows), 1)), k)
        assert popular[figure] < expected[figure] / 2


def test_intents_are_what_the_posterior_says():
    """The true intent has the probability that it is given: five standard deviations, a false alarm of 6e-7."""
    task = Recommendation(noise=0.6)
    rows = task.problems(20_000, 6)
    posterior_PZ, intent_P = task.posterior(rows), task.intent(rows[:, 0])
    of_truth_P = np.take_along_axis(posterior_PZ, intent_P[:, None], axis=1)[:, 0]
    mean_P = (posterior_PZ**2).sum(axis=1)
    variance = ((posterior_PZ**3).sum(axis=1) - mean_P**2).sum()
    assert abs(of_truth_P.sum() - mean_P.sum()) < 5 * math.sqrt(variance)
    assert (np.bincount(intent_P, minlength=4) > 4_600).all()  # 5,000 each, with a standard deviation of 61


def test_first_items_are_as_popular_as_they_should_be():
    """Each of 300 counts of 100,000 first items within six standard deviations: a false alarm below 1e-5 in all."""
    task = Recommendation()
    first = task.lives(np.arange(20_000))[:, :5].ravel()
    expected = len(first) * task.popularity
    assert (np.abs(np.bincount(first, minlength=300) - expected) < 6 * np.sqrt(expected) + 3).all()


def test_the_fitting_task_has_events_enough():
    assert Recommendation.fitting({"history": [1] * 14, "next": 3}) == Recommendation()
    long = {"user": 4, "history": [1] * 30, "next": 3}
    task = Recommendation.fitting(long)
    assert task == Recommendation(events=26)
    assert task.to_json(task.read(long)) == long
    row = Recommendation(events=4).problems(1, 0)[0].tolist()
    assert Recommendation.fitting(row) == Recommendation(events=4)
    for item, message in (({"history": [1] * 300, "next": 3}, "events is 296"), ({}, "problem"), ([1.5], "problem")):
        with pytest.raises(ValueError, match=message):
            Recommendation.fitting(item)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"categories": 1}, "categories is 1"),
        ({"brands": 1}, "brands is 1"),
        ({"numbers": 1}, "numbers is 1"),
        ({"categories": 20}, "make 600 items"),
        ({"categories": 10.0}, "an integer was expected"),
        ({"intents": 0}, "intents is 0"),
        ({"intents": 22}, "from 1 to 21"),
        ({"events": 1}, "events is 1"),
        ({"events": 201}, "from 2 to 200"),
        ({"zipf": -0.1}, "zipf is -0.1"),
        ({"zipf": 5}, "from 0 to 4"),
        ({"zipf": math.nan}, "zipf is nan"),
        ({"noise": 0}, "noise is 0"),
        ({"noise": 1.1}, "try noise=0.2"),
        ({"noise": "0.2"}, "a number was expected"),
        ({"noise": True}, "a number was expected"),
    ],
    ids=str,
)
def test_bad_configurations_are_refused_with_the_reason(config, message):
    with pytest.raises(ValueError, match=message):
        Recommendation(**config)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"history": [0, 3, 5], "next": 1}, "has 3 items, but 4 to 6"),
        ({"history": [0] * 7, "next": 1}, "has 7 items"),
        ({"history": [0, 3, 5, 8], "next": 1}, "items outside 0 to 7"),
        ({"history": [0, 3, 5, -1], "next": 1}, "items outside 0 to 7"),
        ({"history": [0, 3, 5, 1], "next": 8}, "next item outside 0 to 7"),
        ({"history": [0, 3, 5, 1], "next": -1}, "next item outside 0 to 7"),
        ({"history": [0, 3, 5, 1], "next": 1, "user": -1}, "a user below 0"),
        ({"history": [0, 3, 5, 1], "next": 1, "user": 2**31}, "from -1 to 2147483647"),
        ({"history": [0, 3, 5, 1]}, "a problem is"),
        ({"history": "0351", "next": 1}, "a problem is"),
        ({"history": [0, 3, 5, 1], "next": "1"}, "a problem is"),
        (HAND[:-1], "has 8 entries"),
        ([77, 3, *HAND[2:]], "history outside 4 to 6 items"),
        ([77, 7, *HAND[2:]], "history outside 4 to 6 items"),
        ([77, 4, *HAND[2:]], "something other than -1 after its history"),
        ([77, 6, *HAND[2:]], "items outside 0 to 7"),
    ],
    ids=str,
)
def test_bad_items_are_refused_with_the_reason(item, message):
    with pytest.raises(ValueError, match=message):
        HAND_TASK.read(item)


def test_what_cannot_be_counted_or_taken_is_refused():
    task = Recommendation()
    assert task.size is None
    with pytest.raises(ValueError, match="too many to count"):
        task.space()
    for call in (lambda: task.problems(-1, 0), lambda: task.problems(2.5, 0)):
        with pytest.raises(ValueError, match="try n=1000"):
            call()
    with pytest.raises(ValueError, match="try budget=1"):
        task.frontier(task.problems(1, 0), 0)
