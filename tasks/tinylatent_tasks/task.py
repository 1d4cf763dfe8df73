"""Task: the base class of all tasks, and what they share: batches, splits, scoring, and answers as text.

Letters: P problems, M integers of a problem, N prompt tokens, T steps, V vocabulary, A answer tokens.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from tinylatent_tasks.batch import Batch, Integers, Keys, Mask, Shares, Vocabulary
from tinylatent_tasks.checks import check_choice, check_integer
from tinylatent_tasks.keys import uniform_integers
from tinylatent_tasks.splits import PARTS, Tell, drawn_part, listed_part

MAX_LISTED = 2_000_000
MAX_DESCRIBED = 8
MAX_DRAWN = 2**48
"""Most problems that can be drawn, and the number of the last."""
CHUNK_ELEMENTS = 2**20


class Task(ABC):
    """A kind of problem with an exact oracle. A problem is one row of an int64 array (P, M).

    A task is a frozen dataclass: two tasks with equal fields make equal problems. No task uses global random state.
    Methods raise ValueError for rows that are not problems of the task.
    """

    name: ClassVar[str]
    rules: ClassVar[tuple[str, ...]] = ()
    """Names of the rules by which a budget may choose its traces; empty if there is one."""

    tokens_a_step: ClassVar[int] = 1
    """Tokens of the chain that make up one step of reasoning."""

    # -----------------------------------------------------------------------------------------------------------------
    # What a task defines

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """All tokens of prompts, steps and answers."""

    @property
    @abstractmethod
    def positions(self) -> int:
        """Number of positions a model needs for the longest prompt and its steps."""

    @abstractmethod
    def rows(self, problems: npt.ArrayLike) -> Integers:
        """Problems as checked rows (P, M); ValueError names the first bad row."""

    @abstractmethod
    def problems(self, n: int, seed: int, first: int = 0) -> Integers:
        """Random problems first, first + 1, .. (n, M); problem i depends on the task, the seed and i alone."""

    @abstractmethod
    def key(self, problems: npt.ArrayLike) -> Keys:
        """Keys (P,); equivalent problems share one."""

    @abstractmethod
    def answer(self, problems: npt.ArrayLike) -> Integers:
        """Answers (P,) as numbers."""

    @abstractmethod
    def answer_ids(self, answers: npt.ArrayLike) -> Integers:
        """Token ids (P, A) of answers (P,)."""

    @abstractmethod
    def prompt(self, problems: npt.ArrayLike) -> tuple[Integers, Mask]:
        """Prompt ids and mask (P, N), padded on the left; N depends on the task alone."""

    @abstractmethod
    def chain(self, problems: npt.ArrayLike) -> Integers:
        """Token ids (P, T) of the best trace; T depends on the task alone."""

    @abstractmethod
    def frontier(self, problems: npt.ArrayLike, budget: int | None = None) -> Shares:
        """Exact targets (P, T, V): at step t, the share of the `budget` best traces (None: all) that are in a state."""

    @abstractmethod
    def solve_slowly(self, problem: Sequence[int]) -> tuple[int, list[int]]:
        """The answer and the states of the best trace of one problem, found another way; for tests."""

    @abstractmethod
    def states(self, chain_ids_T: Integers) -> list[int]:
        """The states that a chain's tokens stand for, as numbers like those of `solve_slowly`."""

    @abstractmethod
    def describe(self, problem: Sequence[int]) -> str:
        """One problem, its answer and its frontier as readable lines."""

    @abstractmethod
    def question(self, problem: Sequence[int]) -> str:
        """The problem in English, for any language model."""

    @abstractmethod
    def read(self, item: Any) -> Integers:
        """A JSON value as a problem (M,); ValueError says what is wrong with it."""

    @abstractmethod
    def to_json(self, problem: Sequence[int]) -> dict[str, Any]:
        """A problem as the JSON object that `read` takes."""

    @abstractmethod
    def read_answer(self, value: Any) -> Integers:
        """A JSON value or text as answer tokens (A,); ValueError if it is no answer of this task."""

    @abstractmethod
    def say(self, answer_ids_A: Integers) -> Any:
        """The answer that tokens stand for, as a JSON value; None if they are no answer."""

    @classmethod
    @abstractmethod
    def fitting(cls, item: Any) -> "Task":
        """The task with default settings, enlarged as far as this problem (a JSON value) needs."""

    # -----------------------------------------------------------------------------------------------------------------
    # What all tasks share

    def steps(self, problems: npt.ArrayLike) -> Integers:
        """Numbers of steps (P,); by default the length of the chain."""
        rows_PM = self.rows(problems)
        return np.full(len(rows_PM), self.chain(rows_PM[:1]).shape[1] if len(rows_PM) else 0, np.int64)

    def levels(self) -> dict[int, "Task"]:
        """Tasks of a single difficulty that share vocabulary, positions and keys with this one, by difficulty.

        Difficulties go from training's lowest up to `capacity`; empty if the task has no capacity or none is given.
        """
        return {}

    def accuracy_ceiling(self, problems: npt.ArrayLike) -> float:
        """The highest accuracy to expect on problems (P, M): 1, unless answers are partly random."""
        return 1.0

    def holding(self, item: Any) -> "Task":
        """This task or the level of it that can read a JSON value as a problem; ValueError if none can."""
        return self.held(item)[0]

    def held(self, item: Any) -> "tuple[Task, Integers]":
        """A JSON value as a problem (M,) of this task or of a level of it, after that task; ValueError if of none."""
        try:
            return self, self.read(item)
        except ValueError as error:
            levels = self.levels()
            for level in levels.values():
                with suppress(ValueError):
                    return level, level.read(item)
            reach = f"; the capacity reaches to {max(levels)}" if levels else ""
            raise ValueError(f"{error}{reach}") from None

    @property
    def size(self) -> int | None:
        """Number of problems; None if unknown. Spaces of at most 2,000,000 are listed."""
        return None

    @property
    def listed(self) -> bool:
        """Whether all problems are listed, so that splits are exact and need no count."""
        return self.size is not None and self.size <= MAX_LISTED

    def space(self) -> Integers:
        """Every problem (P, M), in lexicographic order; ValueError if there are too many to list."""
        count = "too many to count" if self.size is None else f"{self.size:,} problems"
        raise ValueError(f"{count} are more than the {MAX_LISTED:,} listed: try problems(n, seed)")

    def batch(self, problems: npt.ArrayLike, budget: int | None = None, rule: str | None = None) -> Batch:
        """The problems as a Batch; `budget` is that of `frontier`, `rule` one of `rules`.

        Raises ValueError for an unknown rule, a budget below 1, or bad rows.
        """
        rows_BM = self.rows(problems)
        prompt_BN, mask_BN = self.prompt(rows_BM)
        chosen: dict[str, str] = {}
        if rule is not None:
            if not self.rules:
                raise ValueError(f"rule is {rule!r}, but {self.name} knows one way to choose traces; leave rule out")
            check_choice("rule", rule, self.rules)
            chosen = {"rule": rule}
        return Batch(
            prompt_BN=prompt_BN,
            prompt_mask_BN=mask_BN,
            steps_B=self.steps(rows_BM),
            chain_BT=self.chain(rows_BM),
            frontier_BTV=self.frontier(rows_BM, budget, **chosen),
            answer_BA=self.answer_ids(self.answer(rows_BM)),
            key_B=self.key(rows_BM),
        )

    def split(self, part: str, seed: int, count: int | None = None, tell: Tell | None = None) -> Integers:
        """Problems (P, M) of "train" or "validation"; equivalent problems are always in the same part.

        Spaces of at most 2,000,000 problems: all problems of the part, or `count` of them without repetition;
        validation is exactly the lowest 20 % of keys by seeded hash (`splits.listed_part`). Larger spaces: `count`
        random problems, with repetition; about 20 % of keys are validation (`splits.drawn_part`). `tell` hears how
        many have been found as they are drawn.
        Raises ValueError for an unknown part, a missing count, or one that is negative or larger than the part.
        """
        check_choice("part", part, PARTS)
        if not self.listed:
            return drawn_part(self.problems, self.key, part, seed, count, tell)
        space_PM = self.space()
        return listed_part(space_PM, self.key(space_PM), part, seed, count)

    def score(self, problems: npt.ArrayLike, answer_ids_PA: npt.ArrayLike) -> Mask:
        """True (P,) where the answer tokens (P, A) are right; ValueError for another shape."""
        right_PA = self.answer_ids(self.answer(problems))
        given_PA = np.asarray(answer_ids_PA)
        if given_PA.shape != right_PA.shape:
            raise ValueError(
                f"expected {right_PA.shape[1]} answer tokens a problem, shape {right_PA.shape}, got {given_PA.shape}"
            )
        return (given_PA == right_PA).all(axis=1)

    def judge(self, problem: Sequence[int], value: Any) -> bool:
        """Whether an answer given as JSON or text is right; ValueError if it is no answer of this task."""
        (right,) = self.judged([problem], [value])
        if right is None:
            self.proves(problem, value)
            self.read_answer(value)  # says what is wrong with it
        return bool(right)

    def judged(self, problems: npt.ArrayLike, values: Sequence[Any]) -> list[bool | None]:
        """Whether each answer, given as JSON or text, is right for its problem; None if it is no answer of this task.

        Raises ValueError for bad rows, or another number of them than of answers.
        """
        rows_PM = self.rows(problems)
        found: list[bool | None] = [None] * len(rows_PM)
        read: dict[int, Integers] = {}
        for number, (row, value) in enumerate(zip(rows_PM.tolist(), values, strict=True)):
            with suppress(ValueError):
                ids_A = self.read_answer(value)
                if self.proves(row, value):
                    read[number] = ids_A
                else:
                    found[number] = False
        if read:
            for number, right in zip(read, self.score(rows_PM[[*read]], np.stack([*read.values()])), strict=True):
                found[number] = bool(right)
        return found

    def proves(self, problem: Sequence[int], value: Any) -> bool:
        """Whether what an answer brings beside itself as proof holds; True where a task knows no proofs.

        Raises ValueError if it is no proof at all.
        """
        return True

    def certified(self, problems: npt.ArrayLike, chain_PT: npt.ArrayLike, answer_PA: npt.ArrayLike) -> Mask:
        """True (P,) where a chain of tokens proves its answer, as far as the task's own rows show; for a search.

        Args:
            problems: rows (P, M).
            chain_PT: tokens before the answer, -1 behind the last.
            answer_PA: tokens of the answer, -1 for none.

        Raises:
            ValueError: the task knows no proofs.
        """
        raise ValueError(
            f"{self.name} has no certificates: a chain of it proves nothing that the answer alone does not; use the "
            "verifier truth or confidence, or a task such as subset-sum"
        )

    def written(self, problems: npt.ArrayLike, answer_ids_PA: npt.ArrayLike) -> list[dict[str, Any]]:
        """Problems with a model's answers as JSON values; tokens that are no answer become None, and wrong."""
        rows_PM, ids_PA = self.rows(problems), np.asarray(answer_ids_PA, np.int64)
        right_P = self.score(rows_PM, ids_PA)
        return [
            {**self.to_json(row), "answer": self.say(ids_A), "right": right}
            for row, ids_A, right in zip(rows_PM.tolist(), ids_PA, right_P.tolist(), strict=True)
        ]

    def write(self, problem: Sequence[int], answer_ids_A: Sequence[int] | Integers) -> dict[str, Any]:
        """One problem with a model's answer, as `written` makes it."""
        return self.written([problem], np.asarray(answer_ids_A, np.int64)[None])[0]

    # -----------------------------------------------------------------------------------------------------------------
    # For subclasses

    def at_levels(self, first: int, last: int, *fields: str) -> dict[int, "Task"]:
        """The task with these fields set to every number from first to last; empty if no capacity is given."""
        given = getattr(self, "capacity", None) is not None
        return {
            level: replace(cast(Any, self), **dict.fromkeys(fields, level))
            for level in (range(first, last + 1) if given else ())
        }

    def one(self, numbers: Sequence[int]) -> Integers:
        """One problem as a checked row (M,), for `read`; messages say "the problem" instead of "row 0"."""
        try:
            return self.rows([numbers])[0]
        except ValueError as error:
            raise ValueError(re.sub("^row 0 ", "the problem ", str(error))) from None

    def drawn(self, columns: int, n: int, seed: int, low: int, high: int, first: int = 0) -> Integers:
        """Rows first, first + 1, .. of uniform integers (n, columns) from low to high; row i depends on the seed and i.

        Raises ValueError for a negative n or first, and for more than MAX_DRAWN.
        """
        check_integer("n", n, 0, MAX_DRAWN, "try n=1000")
        check_integer("first", first, 0, MAX_DRAWN, "try first=0")
        return uniform_integers(low, high, (n, columns), seed, first)

    def in_words(self, share_V: Shares) -> str:
        """The largest shares as "+2: 0.25, +8: 0.125", equal shares in the order of the vocabulary."""
        ids = np.argsort(-share_V, kind="stable")[: np.count_nonzero(share_V)]
        shown = ", ".join(f"{self.vocabulary.tokens[id_]}: {share_V[id_]:.4g}" for id_ in ids[:MAX_DESCRIBED])
        return shown + (f" and {len(ids) - MAX_DESCRIBED} more" if len(ids) > MAX_DESCRIBED else "")

    def described(self, problem: Sequence[int], lines: dict[str, str]) -> str:
        """Lines with their headings, then the largest shares of every step."""
        rows_1M = self.rows([problem])
        steps = self.frontier(rows_1M)[0][: self.steps(rows_1M)[0]]
        lines = lines | {f"step {number}": self.in_words(share_V) for number, share_V in enumerate(steps, 1)}
        return "\n".join(f"{heading:<11s} {text}" for heading, text in lines.items())


def chunks(count: int, elements_each: int) -> Iterator[slice]:
    """Slices that cover `count` rows, with about CHUNK_ELEMENTS elements at `elements_each` a row."""
    rows = max(1, CHUNK_ELEMENTS // max(1, elements_each))
    return (slice(start, start + rows) for start in range(0, count, rows))


def check_budget(budget: int | None) -> None:
    """ValueError unless the budget is None or at least 1."""
    if budget is not None:
        check_integer("budget", budget, 1, None, "try budget=1, or None for all traces")


def of_width(ids_PT: npt.ArrayLike, width: int) -> tuple[Integers, Mask]:
    """Token ids (P, width), -1 where there is none, and which rows (P,) have no token beyond that width."""
    ids = np.asarray(ids_PT, np.int64)
    padded = np.pad(ids, ((0, 0), (0, max(0, width - ids.shape[1]))), constant_values=-1)
    return padded[:, :width], (padded[:, width:] == -1).all(axis=1)


def one_hot(ids_PT: Integers, size: int) -> Shares:
    """Frontiers (P, T, V) with one state a step."""
    frontier_PTV = np.zeros((*ids_PT.shape, size), np.float32)
    np.put_along_axis(frontier_PTV, ids_PT[..., None], 1, axis=2)
    return frontier_PTV
