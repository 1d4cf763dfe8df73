"""Minimum non-negative sum (MNNS): choose signs of m digits so that their sum is as small as possible but not negative.

A task of CoT2 (Gozeten et al., arXiv 2505.23648). The state after step t is the sum of the
first t signed digits, so the frontier over all traces is alpha*_t(g) = (number of sign tuples with sum g) / 2^t.

Prompt: <bos> d_1 .. d_m. Steps: m sums, the last of them the answer. Two differences from the official code: the
vocabulary is sized from the configuration, so that no sum falls outside it, and the prompt has no marker tokens.

Letters: P or B problems, M digits, T = M steps, V vocabulary, A = 1 answer token.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt

from tinylatent_tasks.answers import integer, read_as
from tinylatent_tasks.batch import SPECIAL_TOKENS, Integers, Keys, Mask, Shares, Vocabulary
from tinylatent_tasks.checks import check_choice, check_integer, checked_rows, integers_in
from tinylatent_tasks.choice_sums import Choices, all_shares, best_traces, shares_of
from tinylatent_tasks.choice_sums_slowly import solve_mnns_slowly
from tinylatent_tasks.keys import stable_hash
from tinylatent_tasks.task import MAX_LISTED, Task, check_budget, chunks

Rule = Literal["absolute", "nonnegative"]
SIGNS: Choices = (-1, 1)
MAX_DIGITS = 12
EXPECTED = 'a problem is a list of integers, or {"digits": [3, 5, 2, 8]}'
MAX_HIGH = 1000
NOT_A_SUM = -(2**31)
"""What `MNNS.sum_values` returns for a token that is not a sum."""


def _farthest_last(final_PK: Any) -> Any:
    """Distance from zero, the non-negative before the negative."""
    return 2 * np.abs(final_PK) + (final_PK < 0)


def _negative_last(final_PK: Any) -> Any:
    """The sum itself; negative sums cost more than the largest."""
    return np.where(final_PK < 0, np.abs(final_PK).max(initial=0) + 1, final_PK)


COSTS: dict[str, Callable[[Any], Any]] = {"absolute": _farthest_last, "nonnegative": _negative_last}
"""The cost of a final sum by which a budget chooses traces, for every rule."""


@dataclass(frozen=True)
class MNNS(Task):
    """Minimum non-negative sum of `digits` integers from `low` to `high`; a problem is a row of digits.

    Raises ValueError for sizes that are not integers or out of range.
    """

    digits: int = 4
    """Number of integers in a problem, which is the number of steps (1 to 12)."""
    low: int = 1
    """Smallest integer (at least 1)."""
    high: int = 9
    """Largest integer (low to 1000)."""
    capacity: int | None = None
    """Largest number of digits that vocabulary and positions allow (digits to 12); `digits` if not given."""

    name: ClassVar[str] = "mnns"
    rules: ClassVar[tuple[str, ...]] = get_args(Rule)

    def __post_init__(self) -> None:
        check_integer("digits", self.digits, 1, MAX_DIGITS, "try digits=4 (every digit more doubles the traces)")
        check_integer("low", self.low, 1, MAX_HIGH, "try low=1")
        check_integer("high", self.high, self.low, MAX_HIGH, f"try high={min(max(9, self.low), MAX_HIGH)}")
        check_integer("capacity", self.longest, self.digits, MAX_DIGITS, f"digits must fit: try capacity={self.digits}")

    @property
    def longest(self) -> int:
        """`capacity`, or `digits` if capacity is not given."""
        return self.digits if self.capacity is None else self.capacity

    @property
    def positions(self) -> int:
        """2 * longest + 1: <bos>, the digits and the steps of the longest problem."""
        return 2 * self.longest + 1

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Special tokens, a token per integer ("3"), and one per sum from -longest*high to longest*high ("-36")."""
        numbers = (str(number) for number in range(self.low, self.high + 1))
        sums = (f"{total:+d}" for total in range(-self._most, self._most + 1))
        return Vocabulary((*SPECIAL_TOKENS, *numbers, *sums))

    @property
    def _most(self) -> int:
        return self.longest * self.high

    @property
    def _zero(self) -> int:
        """The id of the sum +0."""
        return len(SPECIAL_TOKENS) + self.high - self.low + 1 + self._most

    def digit_ids(self, digits: npt.ArrayLike) -> Integers:
        """Token ids of integers of any shape; ValueError for one outside low..high."""
        values = np.asarray(digits)
        if ((values < self.low) | (values > self.high)).any():
            raise ValueError(f"there are tokens for the integers {self.low} to {self.high} only; got another one")
        return values.astype(np.int64) - self.low + len(SPECIAL_TOKENS)

    def sum_ids(self, sums: npt.ArrayLike) -> Integers:
        """Token ids of sums of any shape; ValueError for one beyond +-longest*high."""
        values = np.asarray(sums)
        if (np.abs(values) > self._most).any():
            raise ValueError(f"there are tokens for the sums {-self._most} to {self._most} only; got another one")
        return values.astype(np.int64) + self._zero

    def sum_values(self, ids: npt.ArrayLike) -> Integers:
        """The sums that token ids of any shape stand for; NOT_A_SUM for every id that is not a sum."""
        values = np.asarray(ids, np.int64) - self._zero
        return np.where(np.abs(values) <= self._most, values, NOT_A_SUM)

    def rows(self, problems: npt.ArrayLike) -> Integers:
        """Rows of `digits` integers from low to high."""
        return checked_rows(problems, self.digits, self.low, self.high)

    def space(self) -> Integers:
        """All (high-low+1)^digits problems (P, M) in lexicographic order; ValueError for more than 2,000,000."""
        if self.size > MAX_LISTED:
            return super().space()
        grid = np.indices((self.high - self.low + 1,) * self.digits)
        return np.ascontiguousarray(grid.reshape(self.digits, -1).T + self.low)

    @property
    def size(self) -> int:
        """(high-low+1)^digits."""
        return (self.high - self.low + 1) ** self.digits

    def problems(self, n: int, seed: int, first: int = 0) -> Integers:
        """Uniform problems first, first + 1, .. (n, M), with repetition; integer (i, j) depends on seed, i and j."""
        return self.drawn(self.digits, n, seed, self.low, self.high, first)

    def key(self, problems: npt.ArrayLike) -> Keys:
        """Stable hash (P,) of the multiset of digits: the order of the digits does not matter."""
        return stable_hash(np.sort(self.rows(problems), axis=1))

    def answer(self, problems: npt.ArrayLike) -> Integers:
        """Minimum non-negative signed sum (P,); it always exists, since flipping all signs maps a sum s to -s."""
        rows_PM = self.rows(problems)
        answer_P = np.zeros(len(rows_PM), np.int64)
        zero = self.digits * self.high
        for part in self._chunks(len(rows_PM)):
            *_, shares_PG = all_shares(rows_PM[part], self.high, SIGNS)
            answer_P[part] = (shares_PG[:, zero:] > 0).argmax(axis=1)
        return answer_P

    def answer_ids(self, answers: npt.ArrayLike) -> Integers:
        """The sums' tokens (P, 1)."""
        return self.sum_ids(answers)[:, None]

    def frontier(self, problems: npt.ArrayLike, budget: int | None = None, rule: Rule = "absolute") -> Shares:
        """Shares (P, T, V) of partial sums among the chosen traces; the last step is one-hot on the answer.

        budget None chooses all 2^m traces, whatever the rule. Otherwise the `budget` best are chosen, if there are as
        many: under "absolute" those with the smallest |final sum| (non-negative first), under "nonnegative" those with
        the smallest final sum >= 0; ties go to the first tuple of signs, -1 before +1. The budget is CoT2's, the
        rules are "beam_minabs" and "beam" of its official code. Raises ValueError for a budget below 1, an unknown
        rule, or bad rows.
        """
        rows_PM = self.rows(problems)
        check_choice("rule", rule, self.rules)
        check_budget(budget)
        frontier_PTV = np.zeros((len(rows_PM), self.digits, len(self.vocabulary)), np.float32)
        for part in self._chunks(len(rows_PM)):
            if budget is None:
                self._fill_all(frontier_PTV[part], rows_PM[part])
            else:
                self._fill_best(frontier_PTV[part], rows_PM[part], budget, rule)
        frontier_PTV[:, -1] = 0
        frontier_PTV[np.arange(len(rows_PM)), -1, self.sum_ids(self.answer(rows_PM))] = 1
        return frontier_PTV

    def _fill_all(self, frontier_PTV: Shares, rows_PM: Integers) -> None:
        for step, shares_PG in enumerate(all_shares(rows_PM, self.high, SIGNS)):
            reach = (step + 1) * self.high
            frontier_PTV[:, step, self._zero - reach : self._zero + reach + 1] = shares_PG

    def _fill_best(self, frontier_PTV: Shares, rows_PM: Integers, budget: int, rule: Rule) -> None:
        sums_PBT = best_traces(rows_PM, SIGNS, COSTS[rule], budget)
        counts_PB = (sums_PBT[:, :, -1] >= 0) | (rule == "absolute")
        frontier_PTV[:] = shares_of(self.sum_ids(sums_PBT), counts_PB, len(self.vocabulary))

    def _chunks(self, count: int) -> Iterator[slice]:
        return chunks(count, self.digits * max(len(self.vocabulary), 2**self.digits))

    def chain(self, problems: npt.ArrayLike) -> Integers:
        """Token ids (P, T) of the best trace: smallest non-negative sum, then first tuple of signs, -1 before +1."""
        rows_PM = self.rows(problems)
        chain_PT = np.zeros_like(rows_PM)
        for part in self._chunks(len(rows_PM)):
            chain_PT[part] = self.sum_ids(best_traces(rows_PM[part], SIGNS, COSTS["absolute"], 1)[:, 0])
        return chain_PT

    def prompt(self, problems: npt.ArrayLike) -> tuple[Integers, Mask]:
        """<bos> and the digits."""
        prompt_PN = np.insert(self.digit_ids(self.rows(problems)), 0, Vocabulary.bos, axis=1)
        return prompt_PN, np.ones(prompt_PN.shape, bool)

    def levels(self) -> dict[int, Task]:
        """The task with `digits` digits, one more, and so on."""
        return self.at_levels(self.digits, self.longest, "digits")

    def solve_slowly(self, problem: Sequence[int]) -> tuple[int, list[int]]:
        """The answer and the partial sums of the best trace of one problem, by brute force (for tests)."""
        return solve_mnns_slowly(problem)

    def states(self, chain_ids_T: Integers) -> list[int]:
        """The sums."""
        return self.sum_values(chain_ids_T).tolist()

    def describe(self, problem: Sequence[int]) -> str:
        """One problem as lines of text: digits, answer, best trace, and the largest shares of every step."""
        rows_PM = self.rows([problem])
        sums = self.sum_values(self.chain(rows_PM)[0])
        signed = " ".join(f"{change:+d}" for change in np.diff(sums, prepend=0))
        return self.described(
            problem,
            {
                "problem": " ".join(map(str, rows_PM[0])),
                "answer": f"{sums[-1]:+d}",
                "best trace": f"{signed} = {sums[-1]:+d}",
            },
        )

    def question(self, problem: Sequence[int]) -> str:
        """The task in words."""
        numbers = ", ".join(map(str, problem))
        return (
            f"Put a plus or a minus sign before each of the numbers {numbers} and add them up. What is the smallest "
            "sum that is not negative? Answer with the number alone."
        )

    def read(self, item: Any) -> Integers:
        """A list of integers, or {"digits": [...]}, as a problem (M,); ValueError says what is wrong with it."""
        return self.one(integers_in(item, "digits", EXPECTED))

    def to_json(self, problem: Sequence[int]) -> dict[str, Any]:
        """{"digits": [...]}."""
        return {"digits": [int(digit) for digit in problem]}

    def read_answer(self, value: Any) -> Integers:
        """A sum, such as 2, "2" or "+2"."""

        def parse(text: str) -> int | None:
            number = integer(text)
            return number if number is not None and abs(number) <= self._most else None

        return self.sum_ids([read_as(value, parse, f"an integer from {-self._most} to {self._most}")])

    def say(self, answer_ids_A: Integers) -> int | None:
        """The sum."""
        value = int(self.sum_values(answer_ids_A)[0])
        return None if value == NOT_A_SUM else value

    @classmethod
    def fitting(cls, item: Any) -> "MNNS":
        """The task that a problem of any length belongs to: integers 1 to 9, or up to the problem's largest."""
        problem = integers_in(item, "digits", EXPECTED)
        return cls(digits=len(problem), high=max(9, *problem) if problem else 9)
