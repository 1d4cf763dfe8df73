"""Minimum non-negative sum (MNNS): choose signs of m digits so that their sum is as small as possible but not negative.

A task of CoT2 (Gozeten et al., arXiv 2505.23648). The state after step t is the sum of the
first t signed digits, so the frontier over all traces is alpha*_t(g) = (number of sign tuples with sum g) / 2^t.

Prompt: <bos> d_1 .. d_m. Steps: m sums, the last of them the answer. Two differences from the official code: the
vocabulary is sized from the configuration, so that no sum falls outside it, and the prompt has no marker tokens.

Letters: P or B problems, M digits, T = M steps, V vocabulary, A = 1 answer token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tasks import signed_sums_slowly
from tasks.batch import SPECIAL_TOKENS, Batch, Integers, Keys, Mask, Shares, Vocabulary
from tasks.checks import check_choice, check_integer, checked_rows, is_integer
from tasks.keys import stable_hash, uniform_integers
from tasks.signed_sums import RULES, Rule, all_shares, best_traces, least_sums
from tasks.splits import drawn_part, listed_part

MOST_DIGITS = 12
MOST_HIGH = 1000
MOST_LISTED = 2_000_000
MOST_DESCRIBED = 8
NOT_A_SUM = -(2**31)
"""What `MNNS.sum_values` returns for a token that is not a sum."""
_CHUNK_ELEMENTS = 2**20


@dataclass(frozen=True)
class MNNS:
    """Minimum non-negative sum of `digits` integers from `low` to `high`; a problem is a row of digits.

    Raises ValueError for sizes that are not integers or out of range.
    """

    digits: int = 4
    """Number of integers in a problem, and so of steps (1 to 12)."""
    low: int = 1
    """Smallest integer (at least 1)."""
    high: int = 9
    """Largest integer (low to 1000)."""
    room: int | None = None
    """Largest number of digits that vocabulary and positions have room for (digits to 12); digits when not given."""

    name: ClassVar[str] = "mnns"

    def __post_init__(self) -> None:
        check_integer("digits", self.digits, 1, MOST_DIGITS, "try digits=4 (every digit more doubles the traces)")
        check_integer("low", self.low, 1, MOST_HIGH, "try low=1")
        check_integer("high", self.high, self.low, MOST_HIGH, f"try high={min(max(9, self.low), MOST_HIGH)}")
        check_integer("room", self.capacity, self.digits, MOST_DIGITS, f"digits must fit: try room={self.digits}")

    @property
    def capacity(self) -> int:
        """`room`, or `digits` when room was not given."""
        return self.digits if self.room is None else self.room

    @property
    def positions(self) -> int:
        """2 * capacity + 1: <bos>, the digits and the steps of the longest problem."""
        return 2 * self.capacity + 1

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Special tokens, one per integer ("3"), and one per sum from -capacity*high to capacity*high ("+0", "-36")."""
        numbers = (str(number) for number in range(self.low, self.high + 1))
        sums = (f"{total:+d}" for total in range(-self._most, self._most + 1))
        return Vocabulary((*SPECIAL_TOKENS, *numbers, *sums))

    @property
    def _most(self) -> int:
        return self.capacity * self.high

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
        """Token ids of sums of any shape; ValueError for one beyond +-capacity*high."""
        values = np.asarray(sums)
        if (np.abs(values) > self._most).any():
            raise ValueError(f"there are tokens for the sums {-self._most} to {self._most} only; got another one")
        return values.astype(np.int64) + self._zero

    def sum_values(self, ids: npt.ArrayLike) -> Integers:
        """The sums that token ids of any shape stand for; NOT_A_SUM for every id that is not a sum."""
        values = np.asarray(ids, np.int64) - self._zero
        return np.where(np.abs(values) <= self._most, values, NOT_A_SUM)

    def space(self) -> Integers:
        """All (high-low+1)^digits problems (P, M) in lexicographic order; ValueError for more than 2,000,000."""
        if self._size > MOST_LISTED:
            raise ValueError(f"{self._size:,} problems are more than the {MOST_LISTED:,} listed: try problems(n, seed)")
        grid = np.indices((self.high - self.low + 1,) * self.digits)
        return np.ascontiguousarray(grid.reshape(self.digits, -1).T + self.low)

    @property
    def _size(self) -> int:
        return (self.high - self.low + 1) ** self.digits

    def problems(self, n: int, seed: int) -> Integers:
        """n uniform problems (n, M), with repetition; integer (i, j) depends on the seed, i and j, not on n."""
        check_integer("n", n, 0, None, "try n=1000")
        return uniform_integers(self.low, self.high, (n, self.digits), seed)

    def key(self, problems: npt.ArrayLike) -> Keys:
        """Stable hash (P,) of the multiset of digits: the order of the digits does not matter."""
        return stable_hash(np.sort(self._rows(problems), axis=1))

    def answer(self, problems: npt.ArrayLike) -> Integers:
        """Minimum non-negative signed sum (P,)."""
        rows_PM = self._rows(problems)
        answer_P = np.zeros(len(rows_PM), np.int64)
        for part in self._chunks(len(rows_PM)):
            answer_P[part] = least_sums(rows_PM[part], self.high)
        return answer_P

    def frontier(self, problems: npt.ArrayLike, budget: int | None = None, rule: Rule = "absolute") -> Shares:
        """Share of the chosen traces in each partial sum (P, T, V); the last step is one-hot on the answer.

        budget None chooses all 2^m traces, whatever the rule. Otherwise the `budget` best are chosen, or all there
        are: under "absolute" those with the smallest |final sum| (non-negative first), under "nonnegative" those with
        the smallest final sum >= 0; ties go to the first tuple of signs, -1 before +1. The budget is CoT2's, the
        rules are "beam_minabs" and "beam" of its official code. Raises ValueError for a budget below 1, an unknown
        rule, or bad rows.
        """
        rows_PM = self._rows(problems)
        check_choice("rule", rule, RULES)
        if budget is not None:
            check_integer("budget", budget, 1, None, "try budget=1, or None for all traces")
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
        for step, shares_PG in enumerate(all_shares(rows_PM, self.high)):
            reach = (step + 1) * self.high
            frontier_PTV[:, step, self._zero - reach : self._zero + reach + 1] = shares_PG

    def _fill_best(self, frontier_PTV: Shares, rows_PM: Integers, budget: int, rule: Rule) -> None:
        sums_PBT, counts_PB = best_traces(rows_PM, budget, rule)
        row_and_step = np.arange(frontier_PTV.shape[0] * self.digits).reshape(-1, 1, self.digits)
        cells_PBT = row_and_step * frontier_PTV.shape[2] + self.sum_ids(sums_PBT)
        counts = np.bincount(cells_PBT[counts_PB].ravel(), minlength=frontier_PTV.size).reshape(frontier_PTV.shape)
        frontier_PTV[:] = counts / counts_PB.sum(axis=1)[:, None, None]

    def _chunks(self, count: int) -> Iterator[slice]:
        """Slices of rows, so small that no intermediate array has many more than _CHUNK_ELEMENTS elements."""
        rows = max(1, _CHUNK_ELEMENTS // (self.digits * max(len(self.vocabulary), 2**self.digits)))
        return (slice(start, start + rows) for start in range(0, count, rows))

    def chain(self, problems: npt.ArrayLike) -> Integers:
        """Token ids (P, T) of the best trace: smallest non-negative sum, then first tuple of signs, -1 before +1."""
        rows_PM = self._rows(problems)
        chain_PT = np.zeros_like(rows_PM)
        for part in self._chunks(len(rows_PM)):
            chain_PT[part] = self.sum_ids(best_traces(rows_PM[part], 1, "absolute")[0][:, 0])
        return chain_PT

    def batch(self, problems: npt.ArrayLike, budget: int | None = None, rule: Rule = "absolute") -> Batch:
        """The problems as a Batch with N = M + 1, T = M and A = 1; budget and rule are those of `frontier`."""
        rows_BM = self._rows(problems)
        prompt_BN = np.insert(self.digit_ids(rows_BM), 0, Vocabulary.bos, axis=1)
        chain_BT = self.chain(rows_BM)
        return Batch(
            prompt_BN=prompt_BN,
            prompt_mask_BN=np.ones(prompt_BN.shape, bool),
            steps_B=np.full(len(rows_BM), self.digits, np.int64),
            chain_BT=chain_BT,
            frontier_BTV=self.frontier(rows_BM, budget, rule),
            answer_BA=chain_BT[:, -1:],
            key_B=self.key(rows_BM),
        )

    def split(self, part: str, seed: int, count: int | None = None) -> Integers:
        """Problems (P, M) of "train" or "validation"; permutations of a problem are always in the same part.

        Spaces of at most 2,000,000 problems: all problems of the part, or `count` of them without repetition;
        validation is exactly the lowest 20 % of multisets by seeded hash (`splits.listed_part`). Larger spaces:
        `count` random problems, with repetition, about 20 % of multisets being validation (`splits.drawn_part`).
        Raises ValueError for an unknown part, a missing count, or one that is negative or larger than the part.
        """
        if self._size > MOST_LISTED:
            return drawn_part(self.problems, self.key, part, seed, count)
        space_PM = self.space()
        return listed_part(space_PM, self.key(space_PM), part, seed, count)

    def score(self, problem_rows: npt.ArrayLike, answer_ids_BA: npt.ArrayLike) -> Mask:
        """True (P,) where the answer tokens (P, 1) are right; ValueError for another shape."""
        right_BA = self.sum_ids(self.answer(problem_rows))[:, None]
        given_BA = np.asarray(answer_ids_BA)
        if given_BA.shape != right_BA.shape:
            raise ValueError(f"expected one answer token a problem, shape {right_BA.shape}, got shape {given_BA.shape}")
        return (given_BA == right_BA).all(axis=1)

    def solve_slowly(self, problem: Sequence[int]) -> tuple[int, list[int]]:
        """The answer and the partial sums of the best trace of one problem, by brute force (for tests)."""
        return signed_sums_slowly.solve_slowly(problem)

    def describe(self, problem: Sequence[int]) -> str:
        """One problem as lines of text: its digits, the answer, the best trace, and the largest shares of each step."""
        rows_PM = self._rows([problem])
        sums = self.sum_values(self.chain(rows_PM)[0])
        signed = " ".join(f"{change:+d}" for change in np.diff(sums, prepend=0))
        lines = [
            f"problem     {' '.join(map(str, rows_PM[0]))}",
            f"answer      {sums[-1]:+d}",
            f"best trace  {signed} = {sums[-1]:+d}",
        ]
        for step, share_V in enumerate(self.frontier(rows_PM)[0], start=1):
            lines.append(f"step {step:<6} {self._in_words(share_V)}")
        return "\n".join(lines)

    def _in_words(self, share_V: Shares) -> str:
        """The largest shares as "+2: 0.25, +8: 0.125", equal shares by rising sum."""
        ids = np.argsort(-share_V, kind="stable")[: np.count_nonzero(share_V)]
        shown = ", ".join(f"{self.vocabulary.tokens[id_]}: {share_V[id_]:g}" for id_ in ids[:MOST_DESCRIBED])
        return shown + (f" and {len(ids) - MOST_DESCRIBED} more" if len(ids) > MOST_DESCRIBED else "")

    def read(self, item: Any) -> Integers:
        """A list of integers, or {"digits": [...]}, as a problem (M,); ValueError says what is wrong with it."""
        digits = item.get("digits") if isinstance(item, dict) else item
        if not isinstance(digits, list) or not all(map(is_integer, digits)):
            raise ValueError(f'got {item!r}, but a problem is a list of integers, or {{"digits": [3, 5, 2, 8]}}')
        return self._rows([digits])[0]

    def write(self, problem: Sequence[int], answer_ids_A: Sequence[int] | Integers) -> dict[str, Any]:
        """A problem and a model's answer as a JSON value; an answer that is no sum is null, and wrong."""
        ids_1A = np.asarray(answer_ids_A, dtype=np.int64)[None]
        value = int(self.sum_values(ids_1A[0, :1])[0])
        return {
            "digits": [int(digit) for digit in problem],
            "answer": None if value == NOT_A_SUM else value,
            "right": bool(self.score([problem], ids_1A)[0]),
        }

    @classmethod
    def fitting(cls, problem: Sequence[int]) -> "MNNS":
        """The task a problem of any length belongs to: digits 1..9, or up to the problem's largest."""
        return cls(digits=len(problem), high=max(9, *problem) if problem else 9)

    def _rows(self, problems: npt.ArrayLike) -> Integers:
        return checked_rows(problems, self.digits, self.low, self.high)
