"""Subset sum: is there a subset of n positive integers whose sum is the target?

The decision behind CoT2's argument for superposition (Gozeten et al., arXiv 2505.23648): to take a number or not
doubles the traces. The state after step t is the sum of the taken ones of the first t numbers, so the frontier over all
traces is (number of subsets of the first t numbers with sum g) / 2^t; the last step is yes or no. The best trace ends
nearest to the target: if the answer is yes, it reaches the target and proves the answer.

Half of the targets can be reached, as far as the numbers allow, and simple features do not tell which. A reachable
target lies between the least number and the total minus it, and is neither a number nor the total minus one; an
unreachable target is the nearest of that kind to a reachable one, so that both have the same size. A test measures how
far simple features still go (far with fewer than four numbers). A target and the total minus it have the same answer
but mirrored traces: they are two problems.

Prompt: <bos> d_1 .. d_n target. Letters: P problems, M = n + 1 integers (the numbers, then the target), T = n + 1
steps, G sums, V vocabulary, A = 1 answer token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tinylatent_tasks.answers import NO, YES, read_as, truth
from tinylatent_tasks.batch import SPECIAL_TOKENS, Integers, Keys, Mask, Shares, Vocabulary
from tinylatent_tasks.checks import check_integer, checked_rows, integers_in, is_integer, refuse_rows, short
from tinylatent_tasks.choice_sums import Choices, all_shares, best_traces, shares_of
from tinylatent_tasks.choice_sums_slowly import solve_subset_slowly
from tinylatent_tasks.keys import derived_seed, stable_hash
from tinylatent_tasks.task import Task, check_budget, chunks, of_width

MAX_NUMBERS = 12
MAX_HIGH = 1000
TAKEN: Choices = (0, 1)
EXPECTED = 'a problem is {"numbers": [3, 5, 2, 8], "target": 10}, or the numbers and then the target as one list'


@dataclass(frozen=True)
class SubsetSum(Task):
    """Subset sum of `numbers` integers from 1 to `high`; a problem is a row of numbers and the target.

    Raises ValueError for sizes that are not integers or out of range.
    """

    numbers: int = 4
    """Number of integers to choose from (2 to 12)."""
    high: int = 20
    """Largest integer (1 to 1000)."""
    capacity: int | None = None
    """Most numbers that vocabulary and positions allow (numbers to 12); `numbers` if not given."""

    name: ClassVar[str] = "subset-sum"

    def __post_init__(self) -> None:
        check_integer("numbers", self.numbers, 2, MAX_NUMBERS, "try numbers=4 (every number more doubles the traces)")
        check_integer("high", self.high, 1, MAX_HIGH, "try high=20")
        check_integer("capacity", self.longest, self.numbers, MAX_NUMBERS, f"try capacity={self.numbers}")

    @property
    def longest(self) -> int:
        """`capacity`, or `numbers` if capacity is not given."""
        return self.numbers if self.capacity is None else self.capacity

    @property
    def positions(self) -> int:
        """2 * longest + 3: <bos>, numbers, target, as many sums, and the answer."""
        return 2 * self.longest + 3

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Special tokens, a token per number ("3"), per sum or target from 0 to longest*high ("=0"), "no", "yes"."""
        numbers = (str(number) for number in range(1, self.high + 1))
        sums = (f"={total}" for total in range(self._most + 1))
        return Vocabulary((*SPECIAL_TOKENS, *numbers, *sums, NO, YES))

    @property
    def _most(self) -> int:
        return self.longest * self.high

    @property
    def _zero(self) -> int:
        """The id of the sum 0."""
        return len(SPECIAL_TOKENS) + self.high

    def rows(self, problems: npt.ArrayLike) -> Integers:
        """Rows of `numbers` integers from 1 to high and a target from 0 to numbers*high."""
        rows_PM = checked_rows(problems, self.numbers + 1, 0, self.numbers * self.high)
        outside_P = np.any((rows_PM[:, :-1] < 1) | (rows_PM[:, :-1] > self.high), axis=1)
        refuse_rows({f"has a number outside 1 to {self.high} before its target": outside_P})
        return rows_PM

    def problems(self, n: int, seed: int, first: int = 0) -> Integers:
        """Problems first, first + 1, .. (n, M): uniform numbers, a fair coin for the answer, and a target."""
        numbers_PM = self.drawn(self.numbers, n, seed, 1, self.high, first)
        coin_P2 = self.drawn(2, n, derived_seed(seed, "target"), 0, 2**31, first)
        target_P = np.zeros(n, np.int64)
        for part in self._chunks(n):
            target_P[part] = self._targets(numbers_PM[part], coin_P2[part])
        return np.column_stack([numbers_PM, target_P])

    def _targets(self, numbers_PM: Integers, coin_P2: Integers) -> Integers:
        """A target for every row of numbers: the first coin chooses the answer, the second the target."""
        *_, shares_PG = all_shares(numbers_PM, self.high, TAKEN)
        rows_P, sum_G, reached_PG = np.arange(len(numbers_PM)), np.arange(shares_PG.shape[1]), shares_PG > 0
        least_P1, total_P1 = numbers_PM.min(axis=1, keepdims=True), numbers_PM.sum(axis=1, keepdims=True)
        inside_PG = (sum_G >= least_P1) & (sum_G <= total_P1 - least_P1)
        hidden_PG = inside_PG.copy()
        for number_P in numbers_PM.T:
            hidden_PG[rows_P, number_P] = hidden_PG[rows_P, total_P1[:, 0] - number_P] = False
        # With few numbers no sum may be hidden, or none unreachable: then take any inside, or a reached one.
        open_PG = _unless_empty(hidden_PG & reached_PG, inside_PG & reached_PG)
        rank_P = coin_P2[:, 1] % open_PG.sum(axis=1)
        target_P = (open_PG.cumsum(axis=1) > rank_P[:, None]).argmax(axis=1)
        missed_PG = _unless_empty(hidden_PG & ~reached_PG, inside_PG & ~reached_PG)
        above_PG = (sum_G > target_P[:, None]) ^ (coin_P2[:, :1] // 2 % 2 == 1)  # breaks the tie of two as near
        away_PG = 2 * np.abs(sum_G - target_P[:, None]) + above_PG
        nearest_P = np.where(missed_PG, away_PG, 2 * away_PG.max(initial=0) + 2).argmin(axis=1)
        return np.where((coin_P2[:, 0] % 2 == 1) | ~missed_PG.any(axis=1), target_P, nearest_P)

    def key(self, problems: npt.ArrayLike) -> Keys:
        """Stable hash (P,) of the multiset of numbers and the target: the order of the numbers does not matter."""
        rows_PM = self.rows(problems)
        return stable_hash(np.column_stack([np.sort(rows_PM[:, :-1], axis=1), rows_PM[:, -1]]))

    def answer(self, problems: npt.ArrayLike) -> Integers:
        """1 (P,) where a subset reaches the target, else 0."""
        rows_PM = self.rows(problems)
        answer_P = np.zeros(len(rows_PM), np.int64)
        for part in self._chunks(len(rows_PM)):
            *_, shares_PG = all_shares(rows_PM[part, :-1], self.high, TAKEN)
            answer_P[part] = np.take_along_axis(shares_PG, rows_PM[part, -1:], axis=1)[:, 0] > 0
        return answer_P

    def answer_ids(self, answers: npt.ArrayLike) -> Integers:
        """The token "yes" or "no" (P, 1)."""
        return (np.asarray(answers, np.int64) + len(self.vocabulary) - 2)[:, None]

    def prompt(self, problems: npt.ArrayLike) -> tuple[Integers, Mask]:
        """<bos>, the numbers, the target."""
        rows_PM = self.rows(problems)
        ids_PM = rows_PM + np.array([len(SPECIAL_TOKENS) - 1] * self.numbers + [self._zero])
        prompt_PN = np.insert(ids_PM, 0, Vocabulary.bos, axis=1)
        return prompt_PN, np.ones(prompt_PN.shape, bool)

    def chain(self, problems: npt.ArrayLike) -> Integers:
        """Token ids (P, T): the sums of the trace nearest to the target, leaving before taking; then the answer."""
        rows_PM = self.rows(problems)
        sums_PT = np.zeros_like(rows_PM[:, :-1])
        for part in self._chunks(len(rows_PM)):
            sums_PT[part] = self._best(rows_PM[part], 1)[:, 0]
        return np.column_stack([sums_PT + self._zero, self.answer_ids(self.answer(rows_PM))])

    def _best(self, rows_PM: Integers, budget: int) -> npt.NDArray[np.int32]:
        """The sums (P, B, n) of the traces that end nearest to the target."""
        target_P1 = rows_PM[:, -1:].astype(np.int32)
        return best_traces(rows_PM[:, :-1], TAKEN, lambda final_PK: np.abs(final_PK - target_P1), budget)

    def frontier(self, problems: npt.ArrayLike, budget: int | None = None) -> Shares:
        """Shares (P, T, V) of partial sums among the chosen subsets; the last step is one-hot on the answer.

        budget None chooses all 2^n subsets, otherwise the `budget` whose sums are nearest to the target; ties go to
        the first in lexicographic order, leaving a number before taking it. Raises ValueError for a budget below 1.
        """
        rows_PM = self.rows(problems)
        check_budget(budget)
        frontier_PTV = np.zeros((len(rows_PM), self.numbers + 1, len(self.vocabulary)), np.float32)
        for part in self._chunks(len(rows_PM)):
            states_PTV = frontier_PTV[part, :-1]
            if budget is not None:
                sums_PBT = self._best(rows_PM[part], budget) + self._zero
                states_PTV[:] = shares_of(sums_PBT, np.ones(sums_PBT.shape[:2], bool), len(self.vocabulary))
                continue
            for step, shares_PG in enumerate(all_shares(rows_PM[part, :-1], self.high, TAKEN)):
                states_PTV[:, step, self._zero : self._zero + shares_PG.shape[1]] = shares_PG
        frontier_PTV[np.arange(len(rows_PM)), -1, self.answer_ids(self.answer(rows_PM))[:, 0]] = 1
        return frontier_PTV

    def _chunks(self, count: int) -> Any:
        return chunks(count, self.numbers * max(len(self.vocabulary), 2**self.numbers))

    def certifies(self, problems: npt.ArrayLike, sums_PT: npt.ArrayLike) -> Mask:
        """True (P,) where partial sums (P, n) take or leave every number and end at the target: proof of a yes.

        Raises ValueError for sums of another shape or type.
        """
        rows_PM, sums = self.rows(problems), np.asarray(sums_PT)
        if sums.shape != (len(rows_PM), self.numbers) or sums.dtype.kind not in "iu":
            raise ValueError(f"expected integers of shape {(len(rows_PM), self.numbers)}, a sum after each number")
        taken_PT = np.diff(sums, axis=1, prepend=0)
        honest_PT = (taken_PT == 0) | (taken_PT == rows_PM[:, :-1])
        return honest_PT.all(axis=1) & (sums[:, -1] == rows_PM[:, -1])

    def certified(self, problems: npt.ArrayLike, chain_PT: npt.ArrayLike, answer_PA: npt.ArrayLike) -> Mask:
        """True (P,) for a yes after sums that prove it, one for each number; nothing proves a no."""
        sums_PT, whole_P = of_width(chain_PT, self.numbers)
        yes_P = (np.asarray(answer_PA) == self.answer_ids([1])).all(axis=1)
        return self.certifies(problems, sums_PT - self._zero) & whole_P & yes_P

    def levels(self) -> dict[int, Task]:
        """The task with `numbers` numbers, one more, and so on."""
        return self.at_levels(self.numbers, self.longest, "numbers")

    def solve_slowly(self, problem: Sequence[int]) -> tuple[int, list[int]]:
        """The answer and the partial sums of the best trace of one problem, by brute force (for tests)."""
        *numbers, target = map(int, problem)
        reached, trace = solve_subset_slowly(numbers, target)
        return int(reached), list(trace)

    def states(self, chain_ids_T: Integers) -> list[int]:
        """The sums, without the answer."""
        return (np.asarray(chain_ids_T)[:-1] - self._zero).tolist()

    def describe(self, problem: Sequence[int]) -> str:
        """One problem as lines of text: numbers, target, answer, best trace, and the largest shares of every step."""
        row_M = self.rows([problem])[0]
        sums = self.chain([row_M])[0, :-1] - self._zero
        taken = " + ".join(str(change) for change in np.diff(sums, prepend=0) if change) or "nothing"
        lines = {
            "problem": f"{' '.join(map(str, row_M[:-1]))}, target {row_M[-1]}",
            "answer": YES if self.answer([row_M])[0] else NO,
            "best trace": f"{taken} = {sums[-1]}",
        }
        return self.described(problem, lines)

    def question(self, problem: Sequence[int]) -> str:
        """The task in words."""
        *numbers, target = problem
        return (
            f"Is there a subset of the numbers {', '.join(map(str, numbers))} whose sum is {target}? Each number may "
            "be used once. Answer yes or no."
        )

    def read(self, item: Any) -> Integers:
        """{"numbers": [...], "target": g}, or both as one list, as a problem (M,); ValueError says what is wrong."""
        return self.one(_as_list(item))

    def to_json(self, problem: Sequence[int]) -> dict[str, Any]:
        """{"numbers": [...], "target": g}."""
        *numbers, target = map(int, problem)
        return {"numbers": numbers, "target": target}

    def read_answer(self, value: Any) -> Integers:
        """The word yes or no, or true or false."""
        return self.answer_ids([read_as(value, truth, "yes or no")])[0]

    def proves(self, problem: Sequence[int], value: Any) -> bool:
        """Whether a "subset" beside a yes, where there is one, is of the problem's numbers and has the target's sum."""
        if not (isinstance(value, dict) and "subset" in value and read_as(value, truth, "yes or no")):
            return True
        *left, target = map(int, problem)
        subset = integers_in(value["subset"], "subset", "a subset is a list of integers")
        for number in subset:
            if number not in left:
                return False
            left.remove(number)
        return sum(subset) == target

    def say(self, answer_ids_A: Integers) -> str | None:
        """The word yes or no."""
        place = int(answer_ids_A[0]) - len(self.vocabulary) + 2
        return {0: NO, 1: YES}.get(place)

    @classmethod
    def fitting(cls, item: Any) -> "SubsetSum":
        """The task that a problem of any length belongs to: `high` is the default, or the problem's largest number."""
        *numbers, _ = _as_list(item) or [0]
        return cls(numbers=len(numbers), high=max(cls.high, *numbers) if numbers else cls.high)


def _unless_empty(wanted_PG: Mask, others_PG: Mask) -> Mask:
    """`wanted_PG` in rows where it has a True, else `others_PG`."""
    return np.where(wanted_PG.any(axis=1, keepdims=True), wanted_PG, others_PG)


def _as_list(item: Any) -> list[int]:
    """Numbers and target in one list; ValueError for anything else."""
    if not isinstance(item, dict):
        return integers_in(item, "numbers", EXPECTED)
    if not is_integer(item.get("target")):
        raise ValueError(f"got {short(item)}, but {EXPECTED}")
    return [*integers_in(item, "numbers", EXPECTED), item["target"]]
