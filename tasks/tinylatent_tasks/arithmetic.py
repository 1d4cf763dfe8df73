"""Arithmetic modulo p, written out: evaluate x_0 op x_1 op x_2 .. from left to right, one operation after the other.

A chain of chosen length, for methods that compress chains: CoLaR (arXiv 2505.16552) averages groups of neighbouring
tokens into one latent. Every operation is six tokens, "a op b = s ;", where a is the result so far; the step after the
last operation is the answer. There is no precedence: 1 + 2 * 3 is 9. There is one trace, so the frontier is one-hot.
Multiplying by 0 is allowed, which makes 0 the most frequent answer if there is "*".

Prompt: <bos> x_0 op_1 x_1 op_2 x_2 ..  Letters: P problems, K operations, M = 1 + 2K integers of a problem (the first
number, then for every operation its index in "+-*" and its number), T = 6K + 1 steps, V vocabulary, A = 1 answer token.
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
from tinylatent_tasks.task import MAX_LISTED, Task, check_budget, one_hot

OPERATORS = "+-*"
EQUALS, END = "=", ";"
TOKENS_EACH = 6
MIN_OPERATIONS, MAX_OPERATIONS = 2, 10
MAX_MODULUS = 97
EXPECTED = (
    'a problem is {"start": 3, "operations": [["+", 5], ["*", 2]]}, or the start and then an operator\'s place in '
    '"+-*" and a number for each operation, all in one list'
)


@dataclass(frozen=True)
class Arithmetic(Task):
    """A chain of `operations` operations modulo `modulus`; a problem is its first number, then operators and numbers.

    Raises ValueError for sizes that are not integers or out of range, and for operators that do not exist.
    """

    operations: int = 4
    """Number of operations, with six tokens each in the chain (2 to 10)."""
    modulus: int = 17
    """p: numbers are 0 to p-1 (2 to 97)."""
    operators: str = OPERATORS
    """Which of +, - and * occur, as one string; their order means nothing."""
    capacity: int | None = None
    """Most operations that positions allow (operations to 10); `operations` if not given."""

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
        check_integer("capacity", self.longest, self.operations, MAX_OPERATIONS, f"try capacity={self.operations}")

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
        """Rows of numbers from 0 to p-1 with indices of allowed operators between them."""
        rows_PM = checked_rows(problems, 1 + 2 * self.operations, 0, max(self.modulus - 1, len(OPERATORS) - 1))
        number_PK, operator_PK = rows_PM[:, ::2], rows_PM[:, 1::2]
        known = ", ".join(f"{index} ({OPERATORS[index]})" for index in self._allowed)
        refuse_rows(
            {
                f"has a number outside 0 to {self.modulus - 1}": (number_PK >= self.modulus).any(axis=1),
                f"has an operator other than {known}": ~np.isin(operator_PK, self._allowed).all(axis=1),
            }
        )
        return rows_PM

    @property
    def size(self) -> int:
        """p^(operations+1) choices of numbers times (number of operators)^operations."""
        return self.modulus ** (self.operations + 1) * len(self.operators) ** self.operations

    def space(self) -> Integers:
        """Every problem (P, M) in lexicographic order; ValueError for more than 2,000,000."""
        if self.size > MAX_LISTED:
            return super().space()
        grid = np.indices((self.modulus, *(len(self.operators), self.modulus) * self.operations))
        rows_PM = np.ascontiguousarray(grid.reshape(len(grid), -1).T)
        rows_PM[:, 1::2] = self._allowed[rows_PM[:, 1::2]]
        return rows_PM

    def problems(self, n: int, seed: int, first: int = 0) -> Integers:
        """Uniform problems first, first + 1, .. (n, M), with repetition; row i depends on the seed and i alone."""
        number_PK = self.drawn(self.operations + 1, n, seed, 0, self.modulus - 1, first)
        index_PK = self.drawn(self.operations, n, derived_seed(seed, "operators"), 0, len(self.operators) - 1, first)
        return np.insert(number_PK, range(1, self.operations + 1), self._allowed[index_PK], axis=1)

    def key(self, problems: npt.ArrayLike) -> Keys:
        """Stable hash (P,) of the row itself: different problems are never equivalent."""
        return stable_hash(self.rows(problems))

    def levels(self) -> dict[int, Task]:
        """The task with `operations` operations, one more, and so on."""
        return self.at_levels(self.operations, self.longest, "operations")

    def results(self, problems: npt.ArrayLike) -> Integers:
        """The first number and the result of every operation (P, K+1), each from 0 to p-1."""
        rows_PM = self.rows(problems)
        result_PK = rows_PM[:, ::2].copy()
        for step in range(1, self.operations + 1):
            before_P, number_P = result_PK[:, step - 1], rows_PM[:, 2 * step]
            results = (before_P + number_P, before_P - number_P, before_P * number_P)
            result_PK[:, step] = np.choose(rows_PM[:, 2 * step - 1], results) % self.modulus
        return result_PK

    def answer(self, problems: npt.ArrayLike) -> Integers:
        """The result (P,) of the last operation."""
        return self.results(problems)[:, -1]

    def answer_ids(self, answers: npt.ArrayLike) -> Integers:
        """The numbers' tokens (P, 1)."""
        return np.asarray(answers, np.int64)[:, None] + self._zero

    def prompt(self, problems: npt.ArrayLike) -> tuple[Integers, Mask]:
        """<bos>, then numbers with operators between them."""
        ids_PM = self.rows(problems) + self._zero
        ids_PM[:, 1::2] += self._plus - self._zero
        prompt_PN = np.insert(ids_PM, 0, Vocabulary.bos, axis=1)
        return prompt_PN, np.ones(prompt_PN.shape, bool)

    def chain(self, problems: npt.ArrayLike) -> Integers:
        """Token ids (P, T): "a op b = s ;" for every operation, then the answer."""
        rows_PM = self.rows(problems)
        result_PK = self.results(rows_PM) + self._zero
        chain_PT = np.empty((len(rows_PM), TOKENS_EACH * self.operations + 1), np.int64)
        chain_PT[:, 0:-1:TOKENS_EACH] = result_PK[:, :-1]
        chain_PT[:, 1::TOKENS_EACH] = rows_PM[:, 1::2] + self._plus
        chain_PT[:, 2::TOKENS_EACH] = rows_PM[:, 2::2] + self._zero
        chain_PT[:, 3::TOKENS_EACH] = self.vocabulary.index(EQUALS)
        chain_PT[:, 4::TOKENS_EACH] = result_PK[:, 1:]
        chain_PT[:, 5::TOKENS_EACH] = self.vocabulary.index(END)
        chain_PT[:, -1] = result_PK[:, -1]
        return chain_PT

    def frontier(self, problems: npt.ArrayLike, budget: int | None = None) -> Shares:
        """One-hot on the chain (P, T, V), whatever the budget; ValueError for a budget below 1."""
        rows_PM = self.rows(problems)
        check_budget(budget)
        return one_hot(self.chain(rows_PM), len(self.vocabulary))

    def solve_slowly(self, problem: Sequence[int]) -> tuple[int, list[int]]:
        """The answer and the results of all operations, computed without reducing intermediate values (for tests)."""
        first, *rest = map(int, problem)
        value, results = first, []
        for operator, number in zip(rest[::2], rest[1::2], strict=True):
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
        tokens = self.vocabulary.decode(self.chain([row_M])[0]).split()
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
        return " ".join(OPERATORS[entry] if index % 2 else str(entry) for index, entry in enumerate(row_M))

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
        return self.one(_as_list(item))

    def to_json(self, problem: Sequence[int]) -> dict[str, Any]:
        """{"start": .., "operations": [[operator, number], ..]}, with "modulus" if it is not the default."""
        first, *rest = map(int, problem)
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
        numbers = _as_list(item)
        if len(numbers) % 2 == 0:
            raise ValueError(f"got {len(numbers)} integers, but {EXPECTED}")
        modulus = item.get("modulus", cls.modulus) if isinstance(item, dict) else cls.modulus
        return cls(operations=len(numbers) // 2, modulus=modulus)


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
