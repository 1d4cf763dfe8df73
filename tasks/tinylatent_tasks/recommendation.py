"""Sequential recommendation with an exact ceiling: which item does a user choose next?

The setting of LatentR3 (arXiv 2505.19092), where a model thinks in latents before it names the next item; here users
are synthetic, so that the best possible hit rate is known. An item is a category, a brand and a number, and so is its
title: "c3 b1 k4". A user has a hidden intent, two lags i < j at least two apart. With probability 1 - noise the next
item follows the intent's rule from the item A at lag i (i items before it) and the item B at lag j: the category of A,
the brand of B, the sum of their numbers modulo `numbers`. Otherwise, and for a user's first `memory` items, it is drawn
by popularity, which falls as 1 / rank^zipf. Histories begin with a user's first item, and the prior over intents is
uniform; so the posterior over intents given the history, and the distribution of the next item, are exact.

Prompt: padding <bos>, then three tokens an item. Steps: the intent, whose frontier is the posterior; then the answer of
three tokens, the last of which is the last step of chain and frontier. With `item_tokens` a title is one token of the
item's own, as sequential recommenders such as SASRec (arXiv 1808.09781) read items; users, parts and keys are the same.

Letters: P problems, H items of the longest history, M = H + 3 integers of a problem (user, length of the history, its
items with -1 after the last, next item), E events, Z intents, I items, T = 2 steps, V vocabulary, A tokens of a title.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count as counting
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tinylatent_tasks.answers import read_as
from tinylatent_tasks.batch import SPECIAL_TOKENS, Integers, Keys, Mask, Shares, Vocabulary
from tinylatent_tasks.checks import (
    check_choice,
    check_flag,
    check_integer,
    check_number,
    checked_rows,
    integers_in,
    is_integer,
    refuse_rows,
    short,
)
from tinylatent_tasks.keys import derived_seed, random_orders, stable_hash
from tinylatent_tasks.recommendation_slowly import Shop, most_likely_slowly
from tinylatent_tasks.splits import PARTS, Tell, drawn_in_chunks
from tinylatent_tasks.task import Task, check_budget, chunks

MIN_ITEMS, MAX_ITEMS = 8, 500
MAX_INTENTS = 21
MAX_EVENTS = 200
MAX_ZIPF = 4.0
MIN_NOISE = 1e-6
MAX_USER = 2**31 - 1
FILL = -1
EXPECTED = (
    'a problem is {"history": [item, ..], "next": item} with the user\'s number as "user" if there is one, or a row: '
    "user, length of the history, its items with -1 after the last, next item"
)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Recommendation(Task):
    """Sequential recommendation of categories * brands * numbers items to users with hidden intents.

    A user's items depend on the settings and the user's number alone. Raises ValueError for settings that are not
    numbers or out of range.
    """

    categories: int = 10
    """Number of categories (at least 2)."""
    brands: int = 6
    """Number of brands (at least 2)."""
    numbers: int = 5
    """Number of numbers (at least 2); there may be 8 to 500 items in all."""
    intents: int = 4
    """Number of intents (1 to 21)."""
    events: int = 10
    """Items of a user after the first `memory` (2 to 200); a problem asks for one of them."""
    zipf: float = 1.0
    """Exponent of popularity (0 to 4); 0 makes all items equally popular."""
    noise: float = 0.2
    """Probability that the rule is not followed (0.000001 to 1); above 0, so that no history is impossible."""
    item_tokens: bool = False
    """Whether a title is one token of the item's own, instead of a category, a brand and a number."""
    by_users: bool = False
    """Whether training and validation have other users, at any time, instead of the past and the future of the same."""

    name: ClassVar[str] = "recommendation"

    def __post_init__(self) -> None:
        check_integer("categories", self.categories, 2, MAX_ITEMS, "try categories=10")
        check_integer("brands", self.brands, 2, MAX_ITEMS, "try brands=6")
        check_integer("numbers", self.numbers, 2, MAX_ITEMS, "try numbers=5")
        if not MIN_ITEMS <= self.items <= MAX_ITEMS:
            raise ValueError(
                f"categories, brands and numbers make {self.items} items, but there must be {MIN_ITEMS} to "
                f"{MAX_ITEMS}; try categories=10, brands=6, numbers=5"
            )
        check_integer("intents", self.intents, 1, MAX_INTENTS, "try intents=4")
        check_integer("events", self.events, 2, MAX_EVENTS, "try events=10")
        check_number("zipf", self.zipf, 0, MAX_ZIPF, "try zipf=1.0")
        check_number("noise", self.noise, MIN_NOISE, 1, "try noise=0.2")
        check_flag("item_tokens", self.item_tokens)
        check_flag("by_users", self.by_users)

    @property
    def items(self) -> int:
        """I, the number of items; an item's number is (category * brands + brand) * numbers + number."""
        return self.categories * self.brands * self.numbers

    @cached_property
    def lags(self) -> tuple[tuple[int, int], ...]:
        """The lags (i, j) of every intent: (1, 3), (1, 4), (2, 4), (1, 5), (2, 5), .., the shortest first."""
        return tuple(islice(((i, j) for j in counting(3) for i in range(1, j - 1)), self.intents))

    @property
    def memory(self) -> int:
        """The largest lag of any intent; a user's first `memory` items follow no rule."""
        return self.lags[-1][1]

    @property
    def longest(self) -> int:
        """H, the number of items of the longest history."""
        return self.memory + self.events - 1

    @property
    def positions(self) -> int:
        """<bos>, the titles of the history, the intent and the title of the answer: A * longest + A + 2."""
        return self.title_tokens * (self.longest + 1) + 2

    @property
    def title_tokens(self) -> int:
        """A, the number of tokens of a title: 3, or 1 with item_tokens."""
        return 1 if self.item_tokens else 3

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Special tokens, then those of titles, "c0", "b0" and "k0" or items ("i0"), then intents ("z0")."""
        parts = {"c": self.categories, "b": self.brands, "k": self.numbers}
        kinds = {**({"i": self.items} if self.item_tokens else parts), "z": self.intents}
        return Vocabulary((*SPECIAL_TOKENS, *(f"{kind}{i}" for kind, many in kinds.items() for i in range(many))))

    @cached_property
    def weights(self) -> Floats:
        """1 / rank^zipf of every item (I,); ranks are a permutation that depends on the number of items alone."""
        rank_I = random_orders((1, self.items), derived_seed(0, "recommendation: ranks"))[0] + 1
        return 1 / rank_I.astype(np.float64) ** self.zipf

    @cached_property
    def popularity(self) -> Floats:
        """The probability (I,) of every item where the rule is not followed."""
        return self.weights / self.weights.sum()

    # -----------------------------------------------------------------------------------------------------------------
    # Problems

    def rows(self, problems: npt.ArrayLike) -> Integers:
        """Rows of a user's number, the length of the history, `longest` items or -1, and the next item."""
        rows_PM = checked_rows(problems, self.longest + 3, FILL, MAX_USER)
        length_P, history_PH, next_P = rows_PM[:, 1], rows_PM[:, 2:-1], rows_PM[:, -1]
        there_PH = np.arange(self.longest) < length_P[:, None]
        item_PH = (history_PH >= 0) & (history_PH < self.items)
        refuse_rows(
            {
                "has a user below 0": rows_PM[:, 0] < 0,
                f"has a history outside {self.memory} to {self.longest} items": (length_P < self.memory)
                | (length_P > self.longest),
                f"has items outside 0 to {self.items - 1} in its history": (there_PH & ~item_PH).any(axis=1),
                f"has something other than {FILL} after its history": (~there_PH & (history_PH != FILL)).any(axis=1),
                f"has a next item outside 0 to {self.items - 1}": (next_P < 0) | (next_P >= self.items),
            }
        )
        return rows_PM

    def intent(self, users: npt.ArrayLike) -> Integers:
        """The hidden intents (P,) of users (P,), which no problem shows; for probes and tests."""
        hash_P = stable_hash(np.asarray(users, np.int64)[:, None], derived_seed(0, "recommendation: intents"))
        return (hash_P % np.uint64(self.intents)).astype(np.int64)

    def lives(self, users: npt.ArrayLike) -> Integers:
        """All memory + events items (P, H+1) of users (P,)."""
        user_P = np.asarray(users, np.int64)
        intent_P, by_popularity = self.intent(user_P), np.cumsum(self.popularity)[:-1]
        lag_P2 = np.array(self.lags)[intent_P]
        life_PH = np.zeros((len(user_P), self.longest + 1), np.int64)
        row_P = np.arange(len(user_P))
        for time in range(self.longest + 1):
            life_PH[:, time] = np.searchsorted(by_popularity, _uniform(user_P, time, "items"), side="right")
            if time >= self.memory:
                follows_P = _uniform(user_P, time, "noise") >= self.noise
                early_P, late_P = (life_PH[row_P, time - lag_P] for lag_P in lag_P2.T)
                life_PH[follows_P, time] = self._combined(early_P, late_P)[follows_P]
        return life_PH

    def _combined(self, early: Integers, late: Integers) -> Integers:
        """The items that a rule makes of two arrays of items: category of one, brand of the other, sum of numbers."""
        category, brand = early // (self.brands * self.numbers), late // self.numbers % self.brands
        return (category * self.brands + brand) * self.numbers + (early + late) % self.numbers

    def problems(self, n: int, seed: int, first: int = 0) -> Integers:
        """Problems first, first + 1, .. (n, M): user i is a 31-bit hash of the seed and i, the time is uniform."""
        return self._at_times(n, seed, "times", (0, self.events - 1), first)

    def _at_times(self, n: int, seed: int, purpose: str, times: tuple[int, int], first: int = 0) -> Integers:
        """Problems first, first + 1, .. (n, M) of the seed's users, whose next item is one of a span of events."""
        time_P = self.drawn(1, n, derived_seed(seed, purpose), *times, first)[:, 0]
        hash_P = stable_hash(np.arange(first, first + n)[:, None], derived_seed(seed, "users"))
        user_P, length_P = (hash_P >> np.uint64(33)).astype(np.int64), self.memory + time_P
        life_PH = self.lives(user_P)
        history_PH = np.where(np.arange(self.longest) < length_P[:, None], life_PH[:, :-1], FILL)
        return np.column_stack([user_P, length_P, history_PH, life_PH[np.arange(n), length_P]])

    def key(self, problems: npt.ArrayLike) -> Keys:
        """Stable hash (P,) of the user alone, so that intervals resample users."""
        return stable_hash(self.rows(problems)[:, :1])

    @property
    def train_events(self) -> int:
        """Number of a user's events for training: four fifths, rounded down."""
        return self.events * 4 // 5

    def split(self, part: str, seed: int, count: int | None = None, tell: Tell | None = None) -> Integers:
        """`count` problems (P, M) of "train" or "validation"; by default split by time, with the same users in both.

        Problem i of both parts is about user i of the seed; it asks for one of the first `train_events` events in
        train and for a later one in validation. Keys, which are users, are therefore in both parts, and histories of
        validation are longer than any of train: a model with learned positions has never seen the ends of them. With
        `by_users` no user is in both parts, and both have histories of all lengths (`splits.drawn_part`).
        Raises ValueError for an unknown part, or a count that is missing or negative. `tell` hears how many have been
        drawn.
        """
        if self.by_users:
            return super().split(part, seed, count, tell)
        check_choice("part", part, PARTS)
        check_integer("count", count, 0, None, "the space cannot be listed, so say how many to draw: try count=1000")
        assert count is not None
        times = (0, self.train_events - 1) if part == "train" else (self.train_events, self.events - 1)
        seed = derived_seed(seed, "draw")
        return drawn_in_chunks(lambda n, first: self._at_times(n, seed, part, times, first), count, tell)

    # -----------------------------------------------------------------------------------------------------------------
    # The oracle

    def posterior(self, problems: npt.ArrayLike) -> Floats:
        """The exact probability (P, Z) of every intent given the history, without the next item."""
        rows_PM = self.rows(problems)
        posterior_PZ = np.zeros((len(rows_PM), self.intents))
        for part in self._chunks(len(rows_PM)):
            posterior_PZ[part] = self._posterior(rows_PM[part, 2:-1])
        return posterior_PZ

    def _posterior(self, history_PH: Integers) -> Floats:
        """The posterior: an intent that predicts an item gains (1 - noise + noise p) / (noise p), p its popularity."""
        gain_I = np.log1p((1 - self.noise) / (self.noise * self.popularity))
        memory, longest = self.memory, self.longest
        event_PE = history_PH[:, memory:]
        gain_PZE = np.zeros((len(history_PH), self.intents, longest - memory))
        for intent, (i, j) in enumerate(self.lags):
            rule_PE = self._combined(history_PH[:, memory - i : longest - i], history_PH[:, memory - j : longest - j])
            foretold_PE = (rule_PE == event_PE) & (event_PE >= 0)
            gain_PZE[:, intent] = np.where(foretold_PE, gain_I[event_PE], 0)
        evidence_PZ = np.sort(gain_PZE, axis=2).sum(axis=2)  # sorted, so that intents with equal gains tie exactly
        share_PZ = np.exp(evidence_PZ - evidence_PZ.max(axis=1, keepdims=True))
        return share_PZ / share_PZ.sum(axis=1, keepdims=True)

    def predictive(self, problems: npt.ArrayLike) -> Floats:
        """The exact probability (P, I) of every next item given the history: rules weighted by posterior, and noise."""
        rows_PM = self.rows(problems)
        posterior_PZ, row_P = self.posterior(rows_PM), np.arange(len(rows_PM))
        predictive_PI = np.tile(self.noise * self.popularity, (len(rows_PM), 1))
        for intent, (i, j) in enumerate(self.lags):
            early_P, late_P = (rows_PM[row_P, 2 + rows_PM[:, 1] - lag] for lag in (i, j))
            predictive_PI[row_P, self._combined(early_P, late_P)] += (1 - self.noise) * posterior_PZ[:, intent]
        return predictive_PI

    def ceiling(self, problems: npt.ArrayLike, k: int) -> dict[str, float]:
        """The highest expected "hit" rate and "ndcg" at k, as means over problems.

        Ranking items by `predictive` attains both, in expectation over the next item given the history. One item is
        relevant, so NDCG@k is 1 / log2(1 + its rank), or 0 beyond k. Raises ValueError for no problems or a bad k.
        """
        rows_PM = self._some_rows(problems, k)
        best_PK = np.zeros((len(rows_PM), k))
        for part in self._chunks(len(rows_PM)):
            best_PK[part] = -np.sort(-self.predictive(rows_PM[part]), axis=1)[:, :k]
        gain_K = 1 / np.log2(np.arange(2, k + 2))
        return {"hit": best_PK.sum(axis=1).mean().item(), "ndcg": (best_PK @ gain_K).mean().item()}

    def accuracy_ceiling(self, problems: npt.ArrayLike) -> float:
        """The expected accuracy of always naming the likeliest item."""
        return self.ceiling(problems, 1)["hit"]

    def hits(self, problems: npt.ArrayLike, scores_PI: npt.ArrayLike, k: int) -> dict[str, float]:
        """The "hit" rate and "ndcg" at k of ranking items by scores (P, I), higher first, then by the item's number.

        The relevant item is the problem's next one. Raises ValueError for no problems, a bad k, scores of another
        shape, or NaN.
        """
        rows_PM, score_PI = self._some_rows(problems, k), np.asarray(scores_PI, np.float64)
        if score_PI.shape != (len(rows_PM), self.items) or np.isnan(score_PI).any():
            raise ValueError(
                f"scores have shape {score_PI.shape}, {np.isnan(score_PI).sum()} of them NaN, but a number for each of "
                f"{self.items} items was expected, shape {(len(rows_PM), self.items)}; score every item"
            )
        next_P1 = rows_PM[:, -1:]
        of_next_P1 = np.take_along_axis(score_PI, next_P1, axis=1)
        ahead_PI = (score_PI > of_next_P1) | ((score_PI == of_next_P1) & (np.arange(self.items) < next_P1))
        rank_P = 1 + ahead_PI.sum(axis=1)
        gain_P = np.where(rank_P <= k, 1 / np.log2(1 + rank_P), 0)
        return {"hit": (rank_P <= k).mean().item(), "ndcg": gain_P.mean().item()}

    def _some_rows(self, problems: npt.ArrayLike, k: int) -> Integers:
        """Checked rows; ValueError if there are none, or for a k out of range."""
        check_integer("k", k, 1, self.items, "try k=10")
        rows_PM = self.rows(problems)
        if not len(rows_PM):
            raise ValueError("there are no problems to take a mean over, but at least one was expected; try [problem]")
        return rows_PM

    def _chunks(self, count: int) -> Any:
        return chunks(count, max(self.items, self.intents * self.events))

    def answer(self, problems: npt.ArrayLike) -> Integers:
        """The numbers (P,) of the next items."""
        return self.rows(problems)[:, -1]

    def answer_ids(self, answers: npt.ArrayLike) -> Integers:
        """The tokens (P, A) of the items' titles."""
        item_P = np.asarray(answers, np.int64)
        if self.item_tokens:
            return item_P[..., None] + self._starts[:1]
        parts = (item_P // (self.brands * self.numbers), item_P // self.numbers % self.brands, item_P % self.numbers)
        return np.stack(parts, axis=-1) + self._starts[:3]

    @cached_property
    def catalogue(self) -> Integers:
        """The tokens (I, A) of every item's title, in the order of the items."""
        return self.answer_ids(np.arange(self.items))

    @property
    def _starts(self) -> Integers:
        """The ids of c0, b0, k0 and z0; of i0 and z0 with item_tokens."""
        parts = [self.items] if self.item_tokens else [self.categories, self.brands, self.numbers]
        return len(SPECIAL_TOKENS) + np.cumsum([0, *parts])

    def prompt(self, problems: npt.ArrayLike) -> tuple[Integers, Mask]:
        """<bos>, then the titles of the history; padded on the left to the longest history."""
        rows_PM = self.rows(problems)
        missing_P = self.longest - rows_PM[:, 1]
        index_PH = np.arange(self.longest) - missing_P[:, None]
        item_PH = np.take_along_axis(rows_PM[:, 2:-1], np.maximum(index_PH, 0), axis=1)
        title_PHA, A = np.where(index_PH[..., None] >= 0, self.answer_ids(item_PH), Vocabulary.pad), self.title_tokens
        prompt_PN = np.insert(title_PHA.reshape(len(rows_PM), A * self.longest), 0, Vocabulary.pad, axis=1)
        prompt_PN[np.arange(len(rows_PM)), A * missing_P] = Vocabulary.bos
        return prompt_PN, prompt_PN != Vocabulary.pad

    def chain(self, problems: npt.ArrayLike) -> Integers:
        """Token ids (P, 2): the most probable intent (the lowest if several are), then the answer's last token."""
        rows_PM = self.rows(problems)
        last_P = self.answer_ids(rows_PM[:, -1])[:, -1]
        return np.column_stack([self.posterior(rows_PM).argmax(axis=1) + self._starts[-1], last_P])

    def frontier(self, problems: npt.ArrayLike, budget: int | None = None) -> Shares:
        """The posterior over intents, then one-hot on the answer's last token (P, 2, V).

        With a budget only the `budget` most probable intents keep their probabilities (ties go to the lowest), which
        are then divided by their sum; budget 1 is one-hot. Raises ValueError for a budget below 1.
        """
        rows_PM = self.rows(problems)
        check_budget(budget)
        posterior_PZ = self.posterior(rows_PM)
        if budget is not None:
            dropped_PZ = np.argsort(-posterior_PZ, axis=1, kind="stable")[:, budget:]
            np.put_along_axis(posterior_PZ, dropped_PZ, 0, axis=1)
            posterior_PZ /= posterior_PZ.sum(axis=1, keepdims=True)
        frontier_PTV = np.zeros((len(rows_PM), 2, len(self.vocabulary)), np.float32)
        frontier_PTV[:, 0, self._starts[-1] :] = posterior_PZ
        frontier_PTV[np.arange(len(rows_PM)), 1, self.answer_ids(rows_PM[:, -1])[:, -1]] = 1
        return frontier_PTV

    def shop(self) -> Shop:
        """The settings for `recommendation_slowly`."""
        return Shop(self.brands, self.numbers, self.intents, self.noise, tuple(self.weights.tolist()))

    def solve_slowly(self, problem: Sequence[int]) -> tuple[int, list[int]]:
        """The next item, and a list with the most probable intent, computed in exact fractions (for tests)."""
        _, length, *history, item = map(int, problem)
        return item, [most_likely_slowly(self.shop(), history[:length])]

    def states(self, chain_ids_T: Integers) -> list[int]:
        """The intent, without the answer."""
        return (np.asarray(chain_ids_T)[:-1] - self._starts[-1]).tolist()

    # -----------------------------------------------------------------------------------------------------------------
    # In words

    def title(self, item: int) -> str:
        """An item's title, such as "c3 b1 k4", or "i94" with item_tokens."""
        return self.vocabulary.decode(self.answer_ids(item))

    def describe(self, problem: Sequence[int]) -> str:
        """One problem as lines of text: user, answer, the most probable item, the history, and the posterior."""
        row_M = self.rows([problem])[0]
        likely_I = self.predictive([row_M])[0]
        lines = {
            "problem": f"user {row_M[0]} after {row_M[1]} items",
            "answer": self.title(row_M[-1]),
            "most likely": f"{self.title(int(likely_I.argmax()))} ({likely_I.max():.4g})",
            "history": ", ".join(map(self.title, row_M[2 : 2 + row_M[1]])),
        }
        return self.described(problem, lines)

    def question(self, problem: Sequence[int]) -> str:
        """The task in words."""
        row_M = self.rows([problem])[0]
        made = "a name of its own" if self.item_tokens else "its category, brand and number"
        return (
            f"The title of an item is {made}. A user chose these items, the latest last: "
            f"{', '.join(map(self.title, row_M[2 : 2 + row_M[1]]))}. Which item does the user choose next? Answer with "
            "its title alone."
        )

    def read(self, item: Any) -> Integers:
        """{"history": [..], "next": item}, with "user" or for user 0, or a row as one list, as a problem (M,)."""
        if isinstance(item, dict):
            history = _history(item)
            if not self.memory <= len(history) <= self.longest:
                raise ValueError(
                    f"the problem's history has {len(history)} items, but {self.memory} to {self.longest} were "
                    "expected; try a task with other events or intents"
                )
            fill = [FILL] * (self.longest - len(history))
            item = [item.get("user", 0), len(history), *history, *fill, item["next"]]
        return self.one(integers_in(item, "history", EXPECTED))

    def to_json(self, problem: Sequence[int]) -> dict[str, Any]:
        """{"user": .., "history": [..], "next": item}."""
        user, length, *history, item = map(int, problem)
        return {"user": user, "history": history[:length], "next": item}

    def read_answer(self, value: Any) -> Integers:
        """A title, such as "c3 b1 k4", or "i94" with item_tokens."""

        def parse(text: str) -> tuple[int, ...] | None:
            ids = tuple(self.vocabulary.index(word) if word in self.vocabulary.tokens else -1 for word in text.split())
            return None if self.say(np.array(ids, np.int64)) is None else ids

        return np.array(read_as(value, parse, f'a title such as "{self.title(0)}"'))

    def say(self, answer_ids_A: Integers) -> str | None:
        """The title; None unless the tokens are one: a category, a brand and a number in this order, or an item."""
        ids_A = np.asarray(answer_ids_A, np.int64)
        inside = (
            ids_A.shape == (self.title_tokens,) and ((ids_A >= self._starts[:-1]) & (ids_A < self._starts[1:])).all()
        )
        return self.vocabulary.decode(ids_A) if inside else None

    @classmethod
    def fitting(cls, item: Any) -> "Recommendation":
        """The default task, with more events if the history needs them; a row given as a list fixes their number."""
        memory = cls().memory
        if isinstance(item, dict):
            return cls(events=max(cls.events, len(_history(item)) - memory + 1))
        return cls(events=len(integers_in(item, "history", EXPECTED)) - memory - 2)


def _uniform(user_P: Integers, time: int, purpose: str) -> Floats:
    """Uniform numbers (P,) in [0, 1) that depend on user, time and purpose alone."""
    seed = derived_seed(0, f"recommendation: {purpose}")
    hash_P = stable_hash(np.column_stack([user_P, np.full_like(user_P, time)]), seed)
    return (hash_P >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _history(item: dict[str, Any]) -> list[int]:
    """The history of a JSON object with valid "history", "next" and "user"; ValueError otherwise."""
    if not is_integer(item.get("next")) or not is_integer(item.get("user", 0)):
        raise ValueError(f"got {short(item)}, but {EXPECTED}")
    return integers_in(item, "history", EXPECTED)
