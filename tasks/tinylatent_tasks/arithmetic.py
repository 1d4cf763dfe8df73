"""Arithmetic modulo p, written out: evaluate x_0 op x_1 op x_2 .. from left to right, one operation after the other.

A chain of chosen length, for methods that compress chains: CoLaR (arXiv 2505.16552) averages groups of neighbouring
tokens into one latent. Every operation is six tokens, "a op b = s ;", where a is the result so far; the step after the
last operation is the answer. There is no precedence: 1 + 2 * 3 is 9. There is one trace, so the frontier is one-hot.
Multiplying by 0 is allowed, which makes 0 the most frequent answer if there is "*".

With `least` the number of operations is drawn for every problem; a row keeps places for the most, and each unused one
at its end holds the operator -1 and the number 0.

Prompt: padding <bos> x_0 op_1 x_1 op_2 x_2 ..  Letters: P problems, K operations, M = 1 + 2K integers of a problem (the
first number, then for every operation its index in "+-*" and its number), T = 6K + 1 steps, V vocabulary, A = 1 answer
token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tinylatent_tasks.answers import integer, read_as
from tinylatent_tasks.batch import SPECIAL_TOKENS, Integers, Keys, Mask, Shares, Vocabulary
from tinylatent_tasks.checks import check_integer, checked_rows, is_integer, joined, refuse_rows, short
from tinylatent_tasks.keys import derived_seed, stable_hash
from tinylatent_tasks.task import MAX_LISTED, Task, check_budget, of_width, one_hot

OPERATORS = "+-*"
EQUALS, END = "=", ";"
TOKENS_EACH = 6
UNUSED = -1
MIN_OPERATIONS, MAX_OPERATIONS = 2, 10
MAX_MODULUS = 97
EXPECTED = (
    'a problem is {"start": 3, "operations": [["+", 5], ["*", 2]]}, or the start and then an operator\'s place in '
    '"+-*" and a number for each operation, all in one list'
)


@dataclass(frozen=True)
class Arithmetic(Task):
    """A chain of operations modulo `modulus`; a problem is its first number, then operators and numbers.

    Raises ValueError for sizes that are not integers or out of range, and for operators that do not exist.
    """

    operations: int = 4
    """Number of operations, with six tokens each in the chain (2 to 10); the most, if `least` is given."""
    modulus: int = 17
    """p: numbers are 0 to p-1 (2 to 97)."""
    operators: str = OPERATORS
    """Which of +, - and * occur, as one string; their order means nothing."""
    capacity: int | None = None
    """Most operations that positions allow (operations to 10); `operations` if not given."""
    least: int | None = None
    """Fewest operations of a problem (2 to operations), whose number is then drawn; `operations` if not given."""

    name: ClassVar[str] = "arithmetic"
    tokens_a_step: ClassVar[int] = TOKENS_EACH

    def __post_init__(self) -> None:
        check_integer("operations", self.operations, MIN_OPERATIONS, MAX_OPERATIONS, "try operations=4")
        check_integer("modulus", self.modulus, 2, MAX_MODULUS, "try modulus=17")
        given = self.operators
        if not isinstance(given, str) or not given or len(set(given)) < len(given) or set(given) - set(OPERATORS):
            raise ValueError(
                f'operators is {short(given)}, but it must be some of the characters {OPERATORS}, each once; try "+-"'
            )
        check_integer("least", self.fewest, MIN_OPERATIONS, self.operations, f"try least={MIN_OPERATIONS}")
        check_integer("capacity", self.longest, self.operations, MAX_OPERATIONS, f"try capacity={self.operations}")

    @property
    def fewest(self) -> int:
        """`least`, or `operations` if least is not given."""
        return self.operations if self.least is None else self.least

    @property
    def longest(self) -> int:
        """`capacity`, or `operations` if capacity is not given."""
        return self.operations if self.capacity is None else self.capacity

    @property
    def positions(self) -> int:
        """8 * longest + 3: <bos>, numbers and operators, six tokens an operation, and the answer."""
        return (2 + TOKENS_EACH) * self.longest + 3

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Special tokens, one per number from "0" to p-1, the three operators, "=" and ";"."""
        numbers = (str(number) for number in range(self.modulus))
        return Vocabulary((*SPECIAL_TOKENS, *numbers, *OPERATORS, EQUALS, END))

    @property
    def _zero(self) -> int:
        """The id of the number 0."""
        return len(SPECIAL_TOKENS)

    @property
    def _plus(self) -> int:
        """The id of the first operator."""
        return self._zero + self.modulus

    @property
    def _allowed(self) -> Integers:
        """The indices in "+-*" of the operators that occur, in order."""
        return np.array(sorted(map(OPERATORS.index, self.operators)))

    # -----------------------------------------------------------------------------------------------------------------
    # Problems

    def rows(self, problems: npt.ArrayLike) -> Integers:
        """Rows of numbers from 0 to p-1 with indices of allowed operators between them, unused operations last."""
        lowest = 0 if self.least is None else UNUSED
        rows_PM = checked_rows(problems, 1 + 2 * self.operations, lowest, max(self.modulus - 1, len(OPERATORS) - 1))
        number_PK, operator_PK = rows_PM[:, ::2], rows_PM[:, 1::2]
        unused_PK = (operator_PK == UNUSED) & (self.least is not None)
        known = ", ".join(f"{index} ({OPERATORS[index]})" for index in self._allowed)
        refuse_rows(
            {
                f"has a number outside 0 to {self.modulus - 1}": (number_PK % self.modulus != number_PK).any(axis=1),
                f"has an operator other than {known}": ~(np.isin(operator_PK, self._allowed) | unused_PK).all(axis=1),
                "has an unused operation (-1) before one that is used": (np.diff(unused_PK * 1) < 0).any(axis=1),
                "has a number other than 0 in an unused operation (-1)": (number_PK[:, 1:] * unused_PK).any(axis=1),
                f"has fewer than {self.fewest} operations": (~unused_PK).sum(axis=1) < self.fewest,
            }
        )
        return rows_PM

    @property
    def size(self) -> int:
        """p^(k+1) choices of numbers times (number of operators)^k, summed over the numbers k of operations."""
        used = range(self.fewest, self.operations + 1)
        return sum(self.modulus ** (count + 1) * len(self.operators) ** count for count in used)

    @property
    def listed(self) -> bool:
        """Whether all problems are listed; never with `least`.

        A problem is then in the same part of every task with its modulus, whatever numbers of operations they draw.
        """
        return self.least is None and super().listed

    def space(self) -> Integers:
        """Every problem (P, M) in lexicographic order; ValueError for more than 2,000,000."""
        if self.size > MAX_LISTED:
            return super().space()
        parts = [self._space(count) for count in range(self.fewest, self.operations + 1)]
        rows_PM = np.concatenate(parts)
        return rows_PM if len(parts) == 1 else rows_PM[np.lexsort(rows_PM.T[::-1])]

    def _space(self, count: int) -> Integers:
        """Every problem (P, M) of `count` operations in lexicographic order."""
        grid = np.indices((self.modulus, *(len(self.operators), self.modulus) * count))
        rows_PM = np.ascontiguousarray(grid.reshape(len(grid), -1).T)
        rows_PM[:, 1::2] = self._allowed[rows_PM[:, 1::2]]
        return np.hstack([rows_PM, np.tile([UNUSED, 0], (len(rows_PM), self.operations - count))])

    def problems(self, n: int, seed: int, first: int = 0) -> Integers:
        """Problems first, first + 1, .. (n, M), with repetition; row i depends on the seed and i alone.

        The number of operations is uniform, and so are operators and numbers given it.
        """
        number_PK = self.drawn(self.operations + 1, n, seed, 0, self.modulus - 1, first)
        index_PK = self.drawn(self.operations, n, derived_seed(seed, "operators"), 0, len(self.operators) - 1, first)
        count_P1 = self.drawn(1, n, derived_seed(seed, "count"), self.fewest, self.operations, first)
        unused_PK = np.arange(self.operations) >= count_P1
        number_PK[:, 1:][unused_PK] = 0
        operator_PK = np.where(unused_PK, UNUSED, self._allowed[index_PK])
        return np.insert(number_PK, range(1, self.operations + 1), operator_PK, axis=1)

    def key(self, problems: npt.ArrayLike) -> Keys:
        """Stable hash (P,) of the row without unused operations: different problems are never equivalent."""
        rows_PM = self.rows(problems)
        key_P, count_P = np.zeros(len(rows_PM), np.uint64), _counts(rows_PM)
        for count in np.unique(count_P).tolist():
            key_P[count_P == count] = stable_hash(rows_PM[count_P == count, : 1 + 2 * count])
        return key_P

    def levels(self) -> dict[int, Task]:
        """The task with exactly `fewest` operations, one more, and so on."""
        fields = ("operations",) if self.least is None else ("least", "operations")
        return self.at_levels(self.fewest, self.longest, *fields)

    # -----------------------------------------------------------------------------------------------------------------
    # The oracle

    def steps(self, problems: npt.ArrayLike) -> Integers:
        """Six steps an operation and one for the answer (P,)."""
        return TOKENS_EACH * _counts(self.rows(problems)) + 1

    def results(self, problems: npt.ArrayLike) -> Integers:
        """The first number and the result of every operation (P, K+1), each from 0 to p-1.

        An unused operation repeats the result before it.
        """
        rows_PM = self.rows(problems)
        result_PK = rows_PM[:, ::2].copy()
        for step in range(1, self.operations + 1):
            before_P, number_P = result_PK[:, step - 1], rows_PM[:, 2 * step]
            results = (before_P + number_P, before_P - number_P, before_P * number_P)
            # An unused operation, whose number is 0, adds it.
            operator_P = rows_PM[:, 2 * step - 1].clip(0)
            result_PK[:, step] = np.choose(operator_P, results) % self.modulus
        return result_PK

    def answer(self, problems: npt.ArrayLike) -> Integers:
        """The result (P,) of the last operation."""
        return self.results(problems)[:, -1]

    def answer_ids(self, answers: npt.ArrayLike) -> Integers:
        """The numbers' tokens (P, 1)."""
        return np.asarray(answers, np.int64)[:, None] + self._zero

    def prompt(self, problems: npt.ArrayLike) -> tuple[Integers, Mask]:
        """<bos>, then numbers with operators between them; padded on the left to the most operations."""
        rows_PM = self.rows(problems)
        ids_PM = rows_PM + self._zero
        ids_PM[:, 1::2] += self._plus - self._zero
        prompt_PN = np.insert(ids_PM, 0, Vocabulary.bos, axis=1)
        index_PN = np.arange(prompt_PN.shape[1]) - 2 * (self.operations - _counts(rows_PM))[:, None]
        prompt_PN = np.take_along_axis(prompt_PN, index_PN.clip(0), axis=1)
        return np.where(index_PN < 0, Vocabulary.pad, prompt_PN), index_PN >= 0

    def chain(self, problems: npt.ArrayLike) -> Integers:
        """Token ids (P, T): "a op b = s ;" for every operation, then the answer; padding follows a shorter chain."""
        rows_PM = self.rows(problems)
        result_PK = self.results(rows_PM) + self._zero
        chain_PT = np.empty((len(rows_PM), TOKENS_EACH * self.operations + 1), np.int64)
        chain_PT[:, 0:-1:TOKENS_EACH] = result_PK[:, :-1]
        chain_PT[:, 1::TOKENS_EACH] = rows_PM[:, 1::2] + self._plus
        chain_PT[:, 2::TOKENS_EACH] = rows_PM[:, 2::2] + self._zero
        chain_PT[:, 3::TOKENS_EACH] = self.vocabulary.index(EQUALS)
        chain_PT[:, 4::TOKENS_EACH] = result_PK[:, 1:]
        chain_PT[:, 5::TOKENS_EACH] = self.vocabulary.index(END)
        last_P1 = self.steps(rows_PM)[:, None] - 1
        np.put_along_axis(chain_PT, last_P1, result_PK[:, -1:], axis=1)
        return np.where(np.arange(chain_PT.shape[1]) <= last_P1, chain_PT, Vocabulary.pad)

    def frontier(self, problems: npt.ArrayLike, budget: int | None = None) -> Shares:
        """One-hot on the chain (P, T, V), whatever the budget; ValueError for a budget below 1."""
        chain_PT = self.chain(problems)
        check_budget(budget)
        frontier_PTV = one_hot(chain_PT, len(self.vocabulary))
        frontier_PTV[chain_PT == Vocabulary.pad] = 0
        return frontier_PTV

    def certified(self, problems: npt.ArrayLike, chain_PT: npt.ArrayLike, answer_PA: npt.ArrayLike) -> Mask:
        """True (P,) where every operation is the problem's, its first number the result before and its result right,
        and the answer the last result. Only one chain is so."""
        right_PT, given_PT = self.chain(problems), of_width(chain_PT, TOKENS_EACH * self.operations)
        last_P1 = self.steps(problems)[:, None] - 1
        answer_P1 = np.take_along_axis(right_PT, last_P1, axis=1)
        right_PT = np.where(np.arange(right_PT.shape[1]) < last_P1, right_PT, -1)[:, :-1]
        return (given_PT[0] == right_PT).all(axis=1) & given_PT[1] & (np.asarray(answer_PA) == answer_P1).all(axis=1)

    def solve_slowly(self, problem: Sequence[int]) -> tuple[int, list[int]]:
        """The answer and the results of all operations, computed without reducing intermediate values (for tests)."""
        first, *rest = map(int, problem)
        value, results = first, []
        for operator, number in zip(rest[::2], rest[1::2], strict=True):
            if operator == UNUSED:
                break
            value = {"+": value.__add__, "-": value.__sub__, "*": value.__mul__}[OPERATORS[operator]](number)
            results.append(value % self.modulus)
        return results[-1], results

    def states(self, chain_ids_T: Integers) -> list[int]:
        """The results of the operations."""
        return (np.asarray(chain_ids_T)[4::TOKENS_EACH] - self._zero).tolist()

    # -----------------------------------------------------------------------------------------------------------------
    # In words

    def describe(self, problem: Sequence[int]) -> str:
        """One problem as lines of text: the expression, the answer, and the chain, an operation a line."""
        row_M = self.rows([problem])[0]
        tokens = self.vocabulary.decode(self.chain([row_M])[0, : self.steps([row_M])[0]]).split()
        lines = {
            "problem": f"{self._expression(row_M)} modulo {self.modulus}, from left to right",
            "answer": tokens[-1],
        }
        for start in range(0, len(tokens) - 1, TOKENS_EACH):
            lines[f"steps {start + 1}-{start + TOKENS_EACH}"] = " ".join(tokens[start : start + TOKENS_EACH])
        lines[f"step {len(tokens)}"] = tokens[-1]
        return "\n".join(f"{heading:<11s} {text}" for heading, text in lines.items())

    def _expression(self, row_M: Integers) -> str:
        """The problem as "3 + 5 * 2"."""
        return " ".join(OPERATORS[entry] if index % 2 else str(entry) for index, entry in enumerate(_used(row_M)))

    def question(self, problem: Sequence[int]) -> str:
        """The task in words."""
        return (
            f"Work out {self._expression(self.rows([problem])[0])} modulo {self.modulus}, strictly from left to right: "
            f"multiplication does not come first. Answer with a number from 0 to {self.modulus - 1} alone."
        )

    def read(self, item: Any) -> Integers:
        """{"start": .., "operations": [[operator, number], ..]}, or the row as one list, as a problem (M,).

        The object may name its "modulus"; ValueError if that is not the task's.
        """
        if isinstance(item, dict) and item.get("modulus", self.modulus) != self.modulus:
            raise ValueError(
                f"the problem is modulo {short(item['modulus'])}, but modulo {self.modulus} was expected; try a task "
                "with its modulus"
            )
        numbers = _as_list(item)
        if self.least is not None and len(numbers) % 2:
            numbers = numbers + [UNUSED, 0] * (self.operations - len(numbers) // 2)
        return self.one(numbers)

    def to_json(self, problem: Sequence[int]) -> dict[str, Any]:
        """{"start": .., "operations": [[operator, number], ..]}, with "modulus" if it is not the default."""
        first, *rest = _used(problem)
        pairs = zip(rest[::2], rest[1::2], strict=True)
        item = {"start": first, "operations": [[OPERATORS[operator], number] for operator, number in pairs]}
        return item if self.modulus == type(self).modulus else {**item, "modulus": self.modulus}

    def read_answer(self, value: Any) -> Integers:
        """A number from 0 to p-1, such as 2 or "2"."""

        def parse(text: str) -> int | None:
            number = integer(text)
            return number if number is not None and 0 <= number < self.modulus else None

        return np.array([read_as(value, parse, f"a number from 0 to {self.modulus - 1}") + self._zero])

    def say(self, answer_ids_A: Integers) -> int | None:
        """The number."""
        number = int(answer_ids_A[0]) - self._zero
        return number if 0 <= number < self.modulus else None

    @classmethod
    def fitting(cls, item: Any) -> "Arithmetic":
        """The task with the problem's number of operations and its modulus, or the default modulus."""
        numbers = _used(_as_list(item))
        if len(numbers) % 2 == 0:
            raise ValueError(f"got {len(numbers)} integers, but {EXPECTED}")
        modulus = item.get("modulus", cls.modulus) if isinstance(item, dict) else cls.modulus
        return cls(operations=len(numbers) // 2, modulus=modulus)


def _counts(rows_PM: Integers) -> Integers:
    """Operations (P,) that rows use."""
    return (rows_PM[:, 1::2] != UNUSED).sum(axis=1)


def _used(problem: Sequence[int] | Integers) -> list[int]:
    """A problem without its unused operations."""
    numbers = [*map(int, problem)]
    return numbers[: 1 + 2 * sum(operator != UNUSED for operator in numbers[1::2])]


def _as_list(item: Any) -> list[int]:
    """The row as one list; ValueError for anything else."""
    numbers = joined([item.get("start")], item.get("operations")) if isinstance(item, dict) else item
    if isinstance(item, dict) and numbers is not None:
        if not all(isinstance(operator, str) and operator in [*OPERATORS] for operator in numbers[1::2]):
            raise ValueError(f"got {short(item)} with an operator other than {', '.join(OPERATORS)}, but {EXPECTED}")
        numbers[1::2] = map(OPERATORS.index, numbers[1::2])
    if not isinstance(numbers, list) or not all(map(is_integer, numbers)):
        raise ValueError(f"got {short(item)}, but {EXPECTED}")
    return numbers
