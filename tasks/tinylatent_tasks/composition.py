"""Composition: fixed permutations of a few states, applied to a start one after the other; where does it end?

The permutations are the task's own and never shown: a model has to keep them in its weights, and to apply as many as a
prompt names. So the work of a problem is its number k of hops, which makes it a test bed for how models use their depth
(Csordás et al. 2025, arXiv 2505.13898, ask so of large ones). Multi-hop lookup shows its facts instead. There is one
trace, so the frontier is one-hot.

Prompt: padding <bos> s f_1 .. f_k =. Steps: the states, the last of which is the answer; k varies within a batch. A row
keeps places for the most functions, and each unused one at its end holds -1.

Letters: P problems, M = 1 + K integers of a problem (the start, then functions), K most hops, C states, F functions,
T = K steps, V vocabulary, A = 1 answer token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tinylatent_tasks.answers import read_as
from tinylatent_tasks.batch import SPECIAL_TOKENS, Integers, Keys, Mask, Shares, Vocabulary
from tinylatent_tasks.checks import check_integer, checked_rows, is_integer, refuse_rows, short
from tinylatent_tasks.keys import derived_seed, random_orders, stable_hash
from tinylatent_tasks.task import MAX_LISTED, Task, check_budget, of_width, one_hot

EQUALS = "="
UNUSED = -1
MAX_HOPS, MAX_STATES, MAX_FUNCTIONS = 12, 64, 64
EXPECTED = 'a problem is {"start": 2, "functions": [0, 3]}, or the start and then the functions in one list'


@dataclass(frozen=True)
class Composition(Task):
    """Up to `hops` fixed permutations composed; a problem is its start, then its functions in the order they apply.

    Raises ValueError for sizes that are not integers or out of range.
    """

    hops: int = 4
    """Most functions of a problem (1 to 12); problems draw theirs between `least` and `hops`."""
    least: int = 1
    """Fewest functions of a problem (1 to hops)."""
    items: int = 8
    """Number of states (2 to 64)."""
    functions: int = 6
    """Number of permutations (1 to 64)."""
    capacity: int | None = None
    """Most hops that positions allow (hops to 12); `hops` if not given."""
    tables: int = 0
    """Which permutations: they depend on this number and on `items` alone (0 or more)."""

    name: ClassVar[str] = "composition"

    def __post_init__(self) -> None:
        check_integer("hops", self.hops, 1, MAX_HOPS, "try hops=4")
        check_integer("least", self.least, 1, self.hops, "try least=1")
        check_integer("items", self.items, 2, MAX_STATES, "try items=8")
        check_integer("functions", self.functions, 1, MAX_FUNCTIONS, "try functions=6")
        check_integer("capacity", self.longest, self.hops, MAX_HOPS, f"the hops must fit: try capacity={self.hops}")
        check_integer("tables", self.tables, 0, 2**63 - 1, "try tables=0")

    @property
    def longest(self) -> int:
        """`capacity`, or `hops` if capacity is not given."""
        return self.hops if self.capacity is None else self.capacity

    @property
    def positions(self) -> int:
        """<bos>, the start, a function a hop, "=", and as many steps as hops."""
        return 3 + 2 * self.longest

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Special tokens, "=", a token per state ("s0"), a token per function ("f0")."""
        states = (f"s{state}" for state in range(self.items))
        functions = (f"f{function}" for function in range(self.functions))
        return Vocabulary((*SPECIAL_TOKENS, EQUALS, *states, *functions))

    @property
    def _first(self) -> int:
        """The id of state 0."""
        return len(SPECIAL_TOKENS) + 1

    @cached_property
    def permutations(self) -> Integers:
        """Where each function leads from each state (F, C): random permutations, each its own whatever their number."""
        return random_orders((self.functions, self.items), derived_seed(self.tables, "permutations"))

    # -----------------------------------------------------------------------------------------------------------------
    # Problems

    def rows(self, problems: npt.ArrayLike) -> Integers:
        """Rows of a start and functions, unused places last."""
        rows_PM = checked_rows(problems, 1 + self.hops, UNUSED, max(self.items, self.functions) - 1)
        start_P, function_PK = rows_PM[:, 0], rows_PM[:, 1:]
        unused_PK = function_PK == UNUSED
        refuse_rows(
            {
                f"starts at a state outside 0 to {self.items - 1}": (start_P < 0) | (start_P >= self.items),
                f"has a function outside 0 to {self.functions - 1}": (function_PK >= self.functions).any(axis=1),
                "has an unused place (-1) before a function": (np.diff(unused_PK * 1) < 0).any(axis=1),
                f"has fewer than {self.least} functions": (~unused_PK).sum(axis=1) < self.least,
            }
        )
        return rows_PM

    @property
    def size(self) -> int:
        """C F^k, summed over the numbers k of hops."""
        return sum(self.items * self.functions**hops for hops in range(self.least, self.hops + 1))

    @property
    def listed(self) -> bool:
        """Whether all problems are listed; never where their number of hops is drawn.

        Of a list most problems would have the most hops: drawn, every number of hops is trained on alike. A problem is
        then in the same part of every task with these states, whatever numbers of hops they draw.
        """
        return self.least == self.hops and super().listed

    def space(self) -> Integers:
        """Every problem (P, M) in lexicographic order; ValueError for more than 2,000,000."""
        if self.size > MAX_LISTED:
            return super().space()
        rows_PM = np.concatenate([self._space(hops) for hops in range(self.least, self.hops + 1)])
        return rows_PM[np.lexsort(rows_PM.T[::-1])]

    def _space(self, hops: int) -> Integers:
        """Every problem (P, M) of so many hops."""
        grid = np.indices((self.items, *(self.functions,) * hops)).reshape(1 + hops, -1).T
        return np.pad(grid, ((0, 0), (0, self.hops - hops)), constant_values=UNUSED)

    def problems(self, n: int, seed: int, first: int = 0) -> Integers:
        """Problems first, first + 1, .. (n, M): uniform start, number of hops, and functions."""
        start_P1 = self.drawn(1, n, derived_seed(seed, "start"), 0, self.items - 1, first)
        hops_P1 = self.drawn(1, n, derived_seed(seed, "hops"), self.least, self.hops, first)
        function_PK = self.drawn(self.hops, n, derived_seed(seed, "functions"), 0, self.functions - 1, first)
        function_PK[np.arange(self.hops) >= hops_P1] = UNUSED
        return np.hstack([start_P1, function_PK])

    def key(self, problems: npt.ArrayLike) -> Keys:
        """Stable hash (P,) of start and functions: different problems are never equivalent."""
        rows_PM = self.rows(problems)
        key_P, hops_P = np.zeros(len(rows_PM), np.uint64), self.steps(rows_PM)
        for hops in np.unique(hops_P).tolist():
            key_P[hops_P == hops] = stable_hash(rows_PM[hops_P == hops, : 1 + hops])
        return key_P

    def levels(self) -> dict[int, Task]:
        """The task with exactly `least` hops, one more, and so on."""
        return self.at_levels(self.least, self.longest, "least", "hops")

    # -----------------------------------------------------------------------------------------------------------------
    # The oracle

    def steps(self, problems: npt.ArrayLike) -> Integers:
        """The hops (P,)."""
        return (self.rows(problems)[:, 1:] != UNUSED).sum(axis=1)

    def visited(self, problems: npt.ArrayLike) -> Integers:
        """The states (P, T) after every function; an unused place repeats the state before it."""
        rows_PM = self.rows(problems)
        state_P, visited_PT = rows_PM[:, 0], rows_PM[:, 1:].copy()
        for step, function_P in enumerate(rows_PM[:, 1:].T):
            moved_P = self.permutations[function_P.clip(0), state_P]
            state_P = visited_PT[:, step] = np.where(function_P == UNUSED, state_P, moved_P)
        return visited_PT

    def answer(self, problems: npt.ArrayLike) -> Integers:
        """The last state (P,)."""
        return self.visited(problems)[:, -1]

    def answer_ids(self, answers: npt.ArrayLike) -> Integers:
        """The states' tokens (P, 1)."""
        return np.asarray(answers, np.int64)[:, None] + self._first

    def prompt(self, problems: npt.ArrayLike) -> tuple[Integers, Mask]:
        """<bos>, the start, the functions, "="; padded on the left to the most hops."""
        rows_PM = self.rows(problems)
        ids_PM = rows_PM + self._first
        ids_PM[:, 1:] += self.items
        prompt_PN = np.pad(ids_PM, ((0, 0), (1, 1)))
        prompt_PN[:, 0] = Vocabulary.bos
        index_PN = np.arange(prompt_PN.shape[1]) - (self.hops - self.steps(rows_PM))[:, None]
        prompt_PN = np.take_along_axis(prompt_PN, index_PN.clip(0), axis=1)
        prompt_PN[:, -1] = self.vocabulary.index(EQUALS)
        return np.where(index_PN < 0, Vocabulary.pad, prompt_PN), index_PN >= 0

    def chain(self, problems: npt.ArrayLike) -> Integers:
        """Token ids (P, T): the state after every function, the last of which is the answer; padding follows."""
        rows_PM = self.rows(problems)
        chain_PT = self.visited(rows_PM) + self._first
        return np.where(rows_PM[:, 1:] == UNUSED, Vocabulary.pad, chain_PT)

    def frontier(self, problems: npt.ArrayLike, budget: int | None = None) -> Shares:
        """One-hot on the chain (P, T, V), whatever the budget; ValueError for a budget below 1."""
        chain_PT = self.chain(problems)
        check_budget(budget)
        frontier_PTV = one_hot(chain_PT, len(self.vocabulary))
        frontier_PTV[chain_PT == Vocabulary.pad] = 0
        return frontier_PTV

    def certified(self, problems: npt.ArrayLike, chain_PT: npt.ArrayLike, answer_PA: npt.ArrayLike) -> Mask:
        """True (P,) where the chain holds the state after every function but the last, and the answer that after it."""
        rows_PM = self.rows(problems)
        last_P1 = self.steps(rows_PM)[:, None] - 1
        right_PT, (given_PT, whole_P) = self.chain(rows_PM), of_width(chain_PT, self.hops)
        answer_P1 = np.take_along_axis(right_PT, last_P1, axis=1)
        right_PT = np.where(np.arange(self.hops) < last_P1, right_PT, -1)
        return (given_PT == right_PT).all(axis=1) & whole_P & (np.asarray(answer_PA) == answer_P1).all(axis=1)

    def solve_slowly(self, problem: Sequence[int]) -> tuple[int, list[int]]:
        """The answer and all states, by composing the functions before any of them is applied (for tests)."""
        start, *functions = (number for number in map(int, problem) if number != UNUSED)
        whole, states = {state: state for state in range(self.items)}, []
        for function in functions:
            whole = {state: int(self.permutations[function][whole[state]]) for state in whole}
            states.append(whole[start])
        return states[-1], states

    def states(self, chain_ids_T: Integers) -> list[int]:
        """The states."""
        return (np.asarray(chain_ids_T) - self._first).tolist()

    # -----------------------------------------------------------------------------------------------------------------
    # In words

    def describe(self, problem: Sequence[int]) -> str:
        """One problem as lines of text: start and functions, the answer, the functions' tables, every step."""
        row_M = self.rows([problem])[0]
        tokens = self.vocabulary.decode(self.chain([row_M])[0, : self.steps([row_M])[0]])
        named = _used(row_M)[1:]
        lines = {"problem": " ".join([f"s{row_M[0]}", *(f"f{f}" for f in named)]), "answer": tokens.split()[-1]}
        lines |= {f"f{f}": ", ".join(self._table(f)) for f in sorted(set(named))}
        return self.described(problem, lines)

    def _table(self, function: int) -> list[str]:
        """A function as "s0 to s3" for every state."""
        return [f"s{state} to s{end}" for state, end in enumerate(self.permutations[function])]

    def question(self, problem: Sequence[int]) -> str:
        """The task in words, with the tables of the functions that it names."""
        start, *named = _used(self.rows([problem])[0])
        tables = " ".join(f"f{f} sends {', '.join(self._table(f))}." for f in sorted(set(named)))
        order = ", then ".join(f"f{f}" for f in named)
        return f"{tables} Start at s{start} and apply {order}. Where do you end? Answer with the name alone."

    def read(self, item: Any) -> Integers:
        """{"start": .., "functions": [..]}, or both in one list, as a problem (M,).

        The object may name its "items" and "tables"; ValueError if those are not the task's.
        """
        for name in ("items", "tables"):
            if isinstance(item, dict) and item.get(name, getattr(self, name)) != getattr(self, name):
                raise ValueError(
                    f"the problem has {name} {short(item[name])}, but {getattr(self, name)} was expected; try a task "
                    f"with its {name}"
                )
        numbers = _as_list(item)
        return self.one(numbers + [UNUSED] * (1 + self.hops - len(numbers)))

    def to_json(self, problem: Sequence[int]) -> dict[str, Any]:
        """{"start": .., "functions": [..]}, with "items" and "tables" where they are not the default."""
        start, *named = _used(problem)
        usual = {name: getattr(self, name) for name in ("items", "tables")}
        differing = {name: value for name, value in usual.items() if value != getattr(type(self), name)}
        return {"start": start, "functions": named, **differing}

    def read_answer(self, value: Any) -> Integers:
        """A state, such as "s3"."""
        names = {f"s{state}": state for state in range(self.items)}
        return np.array([read_as(value, names.get, f"a state from s0 to s{self.items - 1}") + self._first])

    def say(self, answer_ids_A: Integers) -> str | None:
        """The state's name."""
        id_ = int(answer_ids_A[0])
        return self.vocabulary.tokens[id_] if self._first <= id_ < self._first + self.items else None

    @classmethod
    def fitting(cls, item: Any) -> "Composition":
        """The task with at least the default's hops and functions, and the problem's own items and tables."""
        _, *named = _used(_as_list(item))
        own = {name: item[name] for name in ("items", "tables") if isinstance(item, dict) and name in item}
        return cls(hops=max(cls.hops, len(named)), functions=max(cls.functions, *(f + 1 for f in named), 1), **own)


def _used(problem: Sequence[int] | Integers) -> list[int]:
    """A problem without its unused places."""
    start, *named = map(int, problem)
    return [start, *(function for function in named if function != UNUSED)]


def _as_list(item: Any) -> list[int]:
    """Start and functions in one list; ValueError for anything else."""
    numbers = item
    if isinstance(item, dict):
        named = item.get("functions")
        numbers = [item.get("start"), *named] if isinstance(named, list) else None
    if not isinstance(numbers, list) or not numbers or not all(map(is_integer, numbers)):
        raise ValueError(f"got {short(item)}, but {EXPECTED}")
    return numbers
