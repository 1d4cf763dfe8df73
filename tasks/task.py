"""What every task offers, and what all of them do alike: batches, parts, scoring, and answers in words.

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

from tasks.batch import Batch, Integers, Keys, Mask, Shares, Vocabulary
from tasks.checks import check_choice, check_integer
from tasks.keys import uniform_integers
from tasks.splits import PARTS, drawn_part, listed_part

MOST_LISTED = 2_000_000
MOST_DESCRIBED = 8
CHUNK_ELEMENTS = 2**20
YES, NO = "yes", "no"


class Task(ABC):
    """A kind of problem with an exact oracle. A problem is one row of an int64 array (P, M).

    A task is a frozen dataclass: two tasks with equal fields make equal problems. Nothing here uses global random
    state. Methods raise ValueError with one clear sentence when given rows that are not problems of the task.
    """

    name: ClassVar[str]
    rules: ClassVar[tuple[str, ...]] = ()
    """Ways in which a budget may choose its traces, where there is more than one."""

    tokens_a_step: ClassVar[int] = 1
    """Tokens of the chain that make up one step of reasoning."""

    # -----------------------------------------------------------------------------------------------------------------
    # What each task says of itself

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """Every token of prompts, steps and answers."""

    @property
    @abstractmethod
    def positions(self) -> int:
        """Positions a model needs for the longest prompt and its steps."""

    @abstractmethod
    def rows(self, problems: npt.ArrayLike) -> Integers:
        """Problems as checked rows (P, M)."""

    @abstractmethod
    def problems(self, n: int, seed: int) -> Integers:
        """n random problems (n, M); problem i depends on the task, the seed and i alone."""

    @abstractmethod
    def key(self, problems: npt.ArrayLike) -> Keys:
        """The key (P,) of each problem, shared by equivalent problems."""

    @abstractmethod
    def answer(self, problems: npt.ArrayLike) -> Integers:
        """The answer (P,) of each problem, as a number."""

    @abstractmethod
    def answer_ids(self, answers: npt.ArrayLike) -> Integers:
        """The tokens (P, A) that say the answers (P,)."""

    @abstractmethod
    def prompt(self, problems: npt.ArrayLike) -> tuple[Integers, Mask]:
        """Prompt ids and mask (P, N), padded on the left; N depends on the task alone."""

    @abstractmethod
    def chain(self, problems: npt.ArrayLike) -> Integers:
        """Token ids (P, T) of the best trace; T depends on the task alone."""

    @abstractmethod
    def frontier(self, problems: npt.ArrayLike, budget: int | None = None) -> Shares:
        """Exact targets (P, T, V): the share of the `budget` best traces (None: all) in each state at each step."""

    @abstractmethod
    def solve_slowly(self, problem: Sequence[int]) -> tuple[int, list[int]]:
        """The answer and the states of the best trace of one problem, found another way; for tests."""

    @abstractmethod
    def states(self, chain_ids_T: Integers) -> list[int]:
        """What the tokens of a chain stand for, as the numbers that `solve_slowly` lists."""

    @abstractmethod
    def describe(self, problem: Sequence[int]) -> str:
        """One problem, its answer and its frontier as readable lines."""

    @abstractmethod
    def question(self, problem: Sequence[int]) -> str:
        """The problem in English, as any language model could be asked."""

    @abstractmethod
    def read(self, item: Any) -> Integers:
        """One JSON value as a problem (M,); ValueError says what is wrong with it."""

    @abstractmethod
    def to_json(self, problem: Sequence[int]) -> dict[str, Any]:
        """A problem as the JSON object that `read` takes."""

    @abstractmethod
    def read_answer(self, value: Any) -> Integers:
        """A JSON value or text as answer tokens (A,); ValueError if it says no answer of this task."""

    @abstractmethod
    def say(self, answer_ids_A: Integers) -> Any:
        """What answer tokens say, as a JSON value; None if they are no answer."""

    @classmethod
    @abstractmethod
    def fitting(cls, item: Any) -> "Task":
        """The task with default settings, enlarged where needed to hold this problem (a JSON value)."""

    # -----------------------------------------------------------------------------------------------------------------
    # What all tasks do alike

    def steps(self, problems: npt.ArrayLike) -> Integers:
        """Number of steps (P,) of each problem; the chain's length unless the task says otherwise."""
        rows_PM = self.rows(problems)
        return np.full(len(rows_PM), self.chain(rows_PM[:1]).shape[1] if len(rows_PM) else 0, np.int64)

    def ladder(self) -> dict[int, "Task"]:
        """Tasks of one difficulty each that share vocabulary, positions and keys with this one, by difficulty.

        It begins where training does and goes on as far as `room` allows; empty where room is not given, and for tasks
        without one.
        """
        return {}

    def attainable(self, problems: npt.ArrayLike) -> float:
        """The highest accuracy that can be expected on problems (P, M): 1, unless the answer is partly chance."""
        return 1.0

    def holding(self, item: Any) -> "Task":
        """This task, or the one of its ladder, that reads a JSON value as its problem; ValueError if none does."""
        try:
            self.read(item)
            return self
        except ValueError as error:
            ladder = self.ladder()
            for rung in ladder.values():
                with suppress(ValueError):
                    rung.read(item)
                    return rung
            room = f"; the room reaches to {max(ladder)}" if ladder else ""
            raise ValueError(f"{error}{room}") from None

    @property
    def size(self) -> int | None:
        """Number of problems, where they can be counted; spaces of at most 2,000,000 are listed."""
        return None

    @property
    def listed(self) -> bool:
        """Whether all problems can be listed, so that parts are exact and need no count."""
        return self.size is not None and self.size <= MOST_LISTED

    def space(self) -> Integers:
        """Every problem (P, M), in lexicographic order; ValueError if there are too many to list."""
        count = "too many to count" if self.size is None else f"{self.size:,} problems"
        raise ValueError(f"{count} are more than the {MOST_LISTED:,} listed: try problems(n, seed)")

    def batch(self, problems: npt.ArrayLike, budget: int | None = None, rule: str | None = None) -> Batch:
        """The problems as a Batch; the budget is that of `frontier`, the rule how it chooses (one of `rules`).

        Raises ValueError for a rule that the task has not, a budget below 1, or bad rows.
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

    def split(self, part: str, seed: int, count: int | None = None) -> Integers:
        """Problems (P, M) of "train" or "validation"; equivalent problems are always in the same part.

        Spaces of at most 2,000,000 problems: all problems of the part, or `count` of them without repetition;
        validation is exactly the lowest 20 % of keys by seeded hash (`splits.listed_part`). Larger spaces: `count`
        random problems, with repetition, about 20 % of keys being validation (`splits.drawn_part`).
        Raises ValueError for an unknown part, a missing count, or one that is negative or larger than the part.
        """
        check_choice("part", part, PARTS)
        if not self.listed:
            return drawn_part(self.problems, self.key, part, seed, count)
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
        """Whether an answer given as JSON or text is right; ValueError if it says no answer of this task."""
        return bool(self.score([problem], self.read_answer(value)[None])[0])

    def write(self, problem: Sequence[int], answer_ids_A: Sequence[int] | Integers) -> dict[str, Any]:
        """A problem and a model's answer as a JSON value; tokens that are no answer are null, and wrong."""
        ids_A = np.asarray(answer_ids_A, np.int64)
        right = bool(self.score([problem], ids_A[None])[0])
        return {**self.to_json(problem), "answer": self.say(ids_A), "right": right}

    # -----------------------------------------------------------------------------------------------------------------
    # For the tasks themselves

    def rungs(self, first: int, last: int, *fields: str) -> dict[int, "Task"]:
        """The task with these fields at each number from first to last; none where room is not given."""
        given = getattr(self, "room", None) is not None
        return {
            level: replace(cast(Any, self), **dict.fromkeys(fields, level))
            for level in (range(first, last + 1) if given else ())
        }

    def one(self, numbers: Sequence[int]) -> Integers:
        """One problem as a checked row (M,), for `read`: what is wrong is said of the problem, not of row 0."""
        try:
            return self.rows([numbers])[0]
        except ValueError as error:
            raise ValueError(re.sub("^row 0 ", "the problem ", str(error))) from None

    def drawn(self, columns: int, n: int, seed: int, low: int, high: int) -> Integers:
        """Uniform integers (n, columns) after a check of n; row i depends on the seed and i, not on n."""
        check_integer("n", n, 0, None, "try n=1000")
        return uniform_integers(low, high, (n, columns), seed)

    def in_words(self, share_V: Shares) -> str:
        """The largest shares as "+2: 0.25, +8: 0.125", equal shares in the order of the vocabulary."""
        ids = np.argsort(-share_V, kind="stable")[: np.count_nonzero(share_V)]
        shown = ", ".join(f"{self.vocabulary.tokens[id_]}: {share_V[id_]:.4g}" for id_ in ids[:MOST_DESCRIBED])
        return shown + (f" and {len(ids) - MOST_DESCRIBED} more" if len(ids) > MOST_DESCRIBED else "")

    def described(self, problem: Sequence[int], lines: dict[str, str]) -> str:
        """Lines under headings, then the largest shares of every step."""
        rows_1M = self.rows([problem])
        steps = self.frontier(rows_1M)[0][: self.steps(rows_1M)[0]]
        lines = lines | {f"step {number}": self.in_words(share_V) for number, share_V in enumerate(steps, 1)}
        return "\n".join(f"{heading:<11s} {text}" for heading, text in lines.items())


def chunks(count: int, elements_each: int) -> Iterator[slice]:
    """Slices of `count` rows, so small that no array of `elements_each` a row has many more than CHUNK_ELEMENTS."""
    rows = max(1, CHUNK_ELEMENTS // max(1, elements_each))
    return (slice(start, start + rows) for start in range(0, count, rows))


def check_budget(budget: int | None) -> None:
    """ValueError unless the budget is None or at least 1."""
    if budget is not None:
        check_integer("budget", budget, 1, None, "try budget=1, or None for all traces")


def one_hot(ids_PT: Integers, size: int) -> Shares:
    """Frontiers (P, T, V) that hold one state a step."""
    frontier_PTV = np.zeros((*ids_PT.shape, size), np.float32)
    np.put_along_axis(frontier_PTV, ids_PT[..., None], 1, axis=2)
    return frontier_PTV


def text_answer(value: Any) -> str:
    """An answer as bare text: {"answer": x} or x, a string or an integer; ValueError for anything else."""
    if isinstance(value, dict):
        value = value.get("answer")
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f'the answer is {value!r}; expected a string or a number, or {{"answer": ...}}')
    return str(value).strip().rstrip(".").lower()
