"""Sequential recommendation with an exact ceiling: which item does a user choose next?

The setting of LatentR3 (arXiv 2505.19092), where a model thinks in latents before it names the next item; here users
are made, so that the best possible hit rate is known. An item is a category, a brand and a number, and so is its title:
"c3 b1 k4". A user has a hidden intent, two lags i < j at least two apart. With probability 1 - noise the next item is
what the intent's rule makes of the item A at lag i (i items before it) and the item B at lag j: the category of A, the
brand of B, the sum of their numbers modulo `numbers`. Otherwise, and for a user's first `memory` items, it is drawn by
popularity, which falls as 1 / rank^zipf. Histories begin with a user's first item, and all intents are equally frequent
at first; so the posterior over intents given the history, and the distribution of the next item, are exact.

Prompt: padding <bos>, then three tokens an item. Steps: the intent, whose frontier is the posterior; then the answer,
three tokens, of which the frontier's and the chain's last row hold the last.

Letters: P problems, H items of the longest history, M = H + 3 integers of a problem (the user's number, the length of
the history, its items with -1 after the last, the next item), E events, Z intents, I items, T = 2 steps, V vocabulary,
A = 3 answer tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count as counting
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tasks.batch import SPECIAL_TOKENS, Integers, Keys, Mask, Shares, Vocabulary
from tasks.checks import (
    check_choice,
    check_integer,
    check_number,
    checked_rows,
    integers_in,
    is_integer,
    refuse_rows,
    short,
)
from tasks.keys import derived_seed, random_orders, stable_hash
from tasks.recommendation_slowly import Shop, most_likely_slowly
from tasks.splits import PARTS
from tasks.task import Task, check_budget, chunks, text_answer

FEWEST_ITEMS, MOST_ITEMS = 8, 500
MOST_INTENTS = 21
MOST_EVENTS = 200
MOST_ZIPF = 4.0
LEAST_NOISE = 1e-6
MOST_USER = 2**31 - 1
FILL = -1
EXPECTED = (
    'a problem is {"history": [item, ..], "next": item} with the user\'s number as "user" if there is one, or a row: '
    "user, length of the history, its items with -1 after the last, next item"
)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Recommendation(Task):
    """Sequential recommendation of categories * brands * numbers items to users with hidden intents.

    A user's items are a function of the settings and the user's number alone, so that a user is the same person at
    every time. Raises ValueError for settings that are not numbers or out of range.
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
    """Items of a user after the first `memory` (2 to 200); each of them can be asked for."""
    zipf: float = 1.0
    """How steeply popularity falls (0 to 4); 0 makes all items equally popular."""
    noise: float = 0.2
    """How often the rule is not followed (0.000001 to 1); above 0, so that no history is impossible."""

    name: ClassVar[str] = "recommendation"

    def __post_init__(self) -> None:
        check_integer("categories", self.categories, 2, MOST_ITEMS, "try categories=10")
        check_integer("brands", self.brands, 2, MOST_ITEMS, "try brands=6")
        check_integer("numbers", self.numbers, 2, MOST_ITEMS, "try numbers=5")
        if not FEWEST_ITEMS <= self.items <= MOST_ITEMS:
            raise ValueError(
                f"categories, brands and numbers make {self.items} items, but there must be {FEWEST_ITEMS} to "
                f"{MOST_ITEMS}; try categories=10, brands=6, numbers=5"
            )
        check_integer("intents", self.intents, 1, MOST_INTENTS, "try intents=4")
        check_integer("events", self.events, 2, MOST_EVENTS, "try events=10")
        check_number("zipf", self.zipf, 0, MOST_ZIPF, "try zipf=1.0")
        check_number("noise", self.noise, LEAST_NOISE, 1, "try noise=0.2")

    @property
    def items(self) -> int:
        """I, the number of items; an item's number is (category * brands + brand) * numbers + number."""
        return self.categories * self.brands * self.numbers

    @cached_property
    def lags(self) -> tuple[tuple[int, int], ...]:
        """The lags (i, j) of every intent: (1, 3), (1, 4), (2, 4), (1, 5), (2, 5), .., which reach back little."""
        return tuple(islice(((i, j) for j in counting(3) for i in range(1, j - 1)), self.intents))

    @property
    def memory(self) -> int:
        """The largest lag of any intent, and the number of items a user begins with."""
        return self.lags[-1][1]

    @property
    def longest(self) -> int:
        """H, the number of items of the longest history."""
        return self.memory + self.events - 1

    @property
    def positions(self) -> int:
        """3 * longest + 5: <bos>, the history, the intent and the three tokens of the answer."""
        return 3 * self.longest + 5

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Special tokens, then categories ("c0"), brands ("b0"), numbers ("k0") and intents ("z0")."""
        kinds = {"c": self.categories, "b": self.brands, "k": self.numbers, "z": self.intents}
        return Vocabulary((*SPECIAL_TOKENS, *(f"{kind}{i}" for kind, many in kinds.items() for i in range(many))))

    @cached_property
    def weights(self) -> Floats:
        """1 / rank^zipf of every item (I,); the ranks are a shuffle that depends on the number of items alone."""
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
        rows_PM = checked_rows(problems, self.longest + 3, FILL, MOST_USER)
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
        """The hidden intent (P,) of users by their numbers (P,), which no problem shows; for probes and tests."""
        hash_P = stable_hash(np.asarray(users, np.int64)[:, None], derived_seed(0, "recommendation: intents"))
        return (hash_P % np.uint64(self.intents)).astype(np.int64)

    def lives(self, users: npt.ArrayLike) -> Integers:
        """All memory + events items (P, H+1) of users by their numbers (P,)."""
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
        """What a rule makes of items of any shape: category of one, brand of the other, numbers added."""
        category, brand = early // (self.brands * self.numbers), late // self.numbers % self.brands
        return (category * self.brands + brand) * self.numbers + (early + late) % self.numbers

    def problems(self, n: int, seed: int) -> Integers:
        """n problems (n, M) of random users at random times.

        User i has a number of 31 bits that is a hash of the seed and i; the time is uniform among the events.
        """
        return self._at_times(n, seed, "times", 0, self.events - 1)

    def _at_times(self, n: int, seed: int, purpose: str, first: int, last: int) -> Integers:
        """Problems (n, M) of the seed's users, the next item being an event from first to last."""
        time_P = self.drawn(1, n, derived_seed(seed, purpose), first, last)[:, 0]
        hash_P = stable_hash(np.arange(n)[:, None], derived_seed(seed, "users"))
        user_P, length_P = (hash_P >> np.uint64(33)).astype(np.int64), self.memory + time_P
        life_PH = self.lives(user_P)
        history_PH = np.where(np.arange(self.longest) < length_P[:, None], life_PH[:, :-1], FILL)
        return np.column_stack([user_P, length_P, history_PH, life_PH[np.arange(n), length_P]])

    def key(self, problems: npt.ArrayLike) -> Keys:
        """Stable hash (P,) of the user's number alone, so that intervals go by user."""
        return stable_hash(self.rows(problems)[:, :1])

    @property
    def train_events(self) -> int:
        """How many of a user's events are for training: four fifths, rounded down."""
        return self.events * 4 // 5

    def split(self, part: str, seed: int, count: int | None = None) -> Integers:
        """`count` problems (P, M) of "train" or "validation", by time: validation is the future of training's users.

        Problem i of either part is of the same user, the i-th of the seed; it asks for one of the first
        `train_events` events in train and for one of the later ones in validation. Keys, which are users, are
        therefore in both parts. Raises ValueError for an unknown part, or a count that is missing or negative.
        """
        check_choice("part", part, PARTS)
        check_integer("count", count, 0, None, "the space cannot be listed, so say how many to draw: try count=1000")
        assert count is not None
        train = self.train_events
        first, last = (0, train - 1) if part == "train" else (train, self.events - 1)
        return self._at_times(count, derived_seed(seed, "draw"), part, first, last)

    # -----------------------------------------------------------------------------------------------------------------
    # The oracle

    def posterior(self, problems: npt.ArrayLike) -> Floats:
        """The exact probability (P, Z) of every intent given the history; the next item is not looked at."""
        rows_PM = self.rows(problems)
        posterior_PZ = np.zeros((len(rows_PM), self.intents))
        for part in self._chunks(len(rows_PM)):
            posterior_PZ[part] = self._posterior(rows_PM[part, 2:-1])
        return posterior_PZ

    def _posterior(self, history_PH: Integers) -> Floats:
        """An intent gains where it foretold an item: (1 - noise + noise p) / (noise p), if p is the item's popularity.

        Logarithms are sorted before they are added, so that intents that foretold equal items tie exactly.
        """
        gain_I = np.log1p((1 - self.noise) / (self.noise * self.popularity))
        memory, longest = self.memory, self.longest
        event_PE = history_PH[:, memory:]
        gain_PZE = np.zeros((len(history_PH), self.intents, longest - memory))
        for intent, (i, j) in enumerate(self.lags):
            rule_PE = self._combined(history_PH[:, memory - i : longest - i], history_PH[:, memory - j : longest - j])
            foretold_PE = (rule_PE == event_PE) & (event_PE >= 0)
            gain_PZE[:, intent] = np.where(foretold_PE, gain_I[event_PE], 0)
        evidence_PZ = np.sort(gain_PZE, axis=2).sum(axis=2)
        share_PZ = np.exp(evidence_PZ - evidence_PZ.max(axis=1, keepdims=True))
        return share_PZ / share_PZ.sum(axis=1, keepdims=True)

    def predictive(self, problems: npt.ArrayLike) -> Floats:
        """The exact probability (P, I) that an item is next given the history: rules by posterior, and popularity."""
        rows_PM = self.rows(problems)
        posterior_PZ, row_P = self.posterior(rows_PM), np.arange(len(rows_PM))
        predictive_PI = np.tile(self.noise * self.popularity, (len(rows_PM), 1))
        for intent, (i, j) in enumerate(self.lags):
            early_P, late_P = (rows_PM[row_P, 2 + rows_PM[:, 1] - lag] for lag in (i, j))
            predictive_PI[row_P, self._combined(early_P, late_P)] += (1 - self.noise) * posterior_PZ[:, intent]
        return predictive_PI

    def ceiling(self, problems: npt.ArrayLike, k: int) -> dict[str, float]:
        """The highest expected "hit" rate and "ndcg" of k items a history, as a mean over at least one problem.

        Both are those of ranking items by `predictive`, and are taken over the next item given the history: no way to
        rank expects more. One item is relevant, so NDCG@k is 1 / log2(1 + its rank), or 0 beyond k.
        """
        rows_PM = self._some_rows(problems, k)
        best_PK = np.zeros((len(rows_PM), k))
        for part in self._chunks(len(rows_PM)):
            best_PK[part] = -np.sort(-self.predictive(rows_PM[part]), axis=1)[:, :k]
        gain_K = 1 / np.log2(np.arange(2, k + 2))
        return {"hit": best_PK.sum(axis=1).mean().item(), "ndcg": (best_PK @ gain_K).mean().item()}

    def attainable(self, problems: npt.ArrayLike) -> float:
        """The expected hit rate of always naming the likeliest item."""
        return self.ceiling(problems, 1)["hit"]

    def hits(self, problems: npt.ArrayLike, scores_PI: npt.ArrayLike, k: int) -> dict[str, float]:
        """The "hit" rate and "ndcg" at k of ranking items by scores (P, I), higher first, then by the item's number.

        Judged by the items that happened. Raises ValueError for scores of another shape or that are not numbers.
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
        """Checked rows, at least one, after a check of k."""
        check_integer("k", k, 1, self.items, "try k=10")
        rows_PM = self.rows(problems)
        if not len(rows_PM):
            raise ValueError("there are no problems to take a mean over, but at least one was expected; try [problem]")
        return rows_PM

    def _chunks(self, count: int) -> Any:
        return chunks(count, max(self.items, self.intents * self.events))

    def answer(self, problems: npt.ArrayLike) -> Integers:
        """The number (P,) of the item that happened next."""
        return self.rows(problems)[:, -1]

    def answer_ids(self, answers: npt.ArrayLike) -> Integers:
        """The three tokens (P, 3) of the items' titles."""
        item_P = np.asarray(answers, np.int64)
        parts = (item_P // (self.brands * self.numbers), item_P // self.numbers % self.brands, item_P % self.numbers)
        return np.stack(parts, axis=-1) + self._starts[:3]

    @property
    def _starts(self) -> Integers:
        """The ids of c0, b0, k0 and z0."""
        return len(SPECIAL_TOKENS) + np.cumsum([0, self.categories, self.brands, self.numbers])

    def prompt(self, problems: npt.ArrayLike) -> tuple[Integers, Mask]:
        """<bos>, then the titles of the history; padded on the left to the longest history."""
        rows_PM = self.rows(problems)
        missing_P = self.longest - rows_PM[:, 1]
        place_PH = np.arange(self.longest) - missing_P[:, None]
        item_PH = np.take_along_axis(rows_PM[:, 2:-1], np.maximum(place_PH, 0), axis=1)
        title_PH3 = np.where(place_PH[..., None] >= 0, self.answer_ids(item_PH), Vocabulary.pad)
        prompt_PN = np.insert(title_PH3.reshape(len(rows_PM), 3 * self.longest), 0, Vocabulary.pad, axis=1)
        prompt_PN[np.arange(len(rows_PM)), 3 * missing_P] = Vocabulary.bos
        return prompt_PN, prompt_PN != Vocabulary.pad

    def chain(self, problems: npt.ArrayLike) -> Integers:
        """Token ids (P, 2): the most probable intent, the lowest of equals; then the answer's last token."""
        rows_PM = self.rows(problems)
        last_P = self.answer_ids(rows_PM[:, -1])[:, -1]
        return np.column_stack([self.posterior(rows_PM).argmax(axis=1) + self._starts[3], last_P])

    def frontier(self, problems: npt.ArrayLike, budget: int | None = None) -> Shares:
        """The posterior over intents, then one-hot on the answer's last token (P, 2, V).

        With a budget only the `budget` most probable intents, the lowest of equals, keep their probabilities, which
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
        frontier_PTV[:, 0, self._starts[3] :] = posterior_PZ
        frontier_PTV[np.arange(len(rows_PM)), 1, self.answer_ids(rows_PM[:, -1])[:, -1]] = 1
        return frontier_PTV

    def shop(self) -> Shop:
        """The settings as the second solver takes them."""
        return Shop(self.brands, self.numbers, self.intents, self.noise, tuple(self.weights.tolist()))

    def solve_slowly(self, problem: Sequence[int]) -> tuple[int, list[int]]:
        """The next item and, in a list, the most probable intent, in exact fractions (for tests)."""
        _, length, *history, item = map(int, problem)
        return item, [most_likely_slowly(self.shop(), history[:length])]

    def states(self, chain_ids_T: Integers) -> list[int]:
        """The intent, without the token after it."""
        return (np.asarray(chain_ids_T)[:-1] - self._starts[3]).tolist()

    # -----------------------------------------------------------------------------------------------------------------
    # In words

    def title(self, item: int) -> str:
        """An item's title, such as "c3 b1 k4"."""
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
        return (
            "The title of an item is its category, brand and number. A user chose these items, the latest last: "
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
        """A title, such as "c3 b1 k4"."""
        words = text_answer(value).split()
        known = [self.vocabulary.index(word) for word in words if word in self.vocabulary.tokens]
        ids_A = np.array(known, np.int64)
        if len(known) < len(words) or self.say(ids_A) is None:
            raise ValueError(f'the answer is {" ".join(words)!r}; expected a title such as "{self.title(0)}"')
        return ids_A

    def say(self, answer_ids_A: Integers) -> str | None:
        """The title; None unless the tokens are a category, a brand and a number in this order."""
        ids_A = np.asarray(answer_ids_A, np.int64)
        inside = ids_A.shape == (3,) and ((ids_A >= self._starts[:3]) & (ids_A < self._starts[1:])).all()
        return self.vocabulary.decode(ids_A) if inside else None

    @classmethod
    def fitting(cls, item: Any) -> "Recommendation":
        """The default task with more events where a longer history needs them, and those of a row that is a list."""
        memory = cls().memory
        if isinstance(item, dict):
            return cls(events=max(cls.events, len(_history(item)) - memory + 1))
        return cls(events=len(integers_in(item, "history", EXPECTED)) - memory - 2)


def _uniform(user_P: Integers, time: int, purpose: str) -> Floats:
    """Uniform numbers (P,) from 0 to 1, without 1, that depend on user, time and purpose alone."""
    seed = derived_seed(0, f"recommendation: {purpose}")
    hash_P = stable_hash(np.column_stack([user_P, np.full_like(user_P, time)]), seed)
    return (hash_P >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _history(item: dict[str, Any]) -> list[int]:
    """The history of a JSON object that has all it needs; ValueError otherwise."""
    if not is_integer(item.get("next")) or not is_integer(item.get("user", 0)):
        raise ValueError(f"got {short(item)}, but {EXPECTED}")
    return integers_in(item, "history", EXPECTED)
