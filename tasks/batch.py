"""What a task hands to a model: a vocabulary, batches of problems, and the protocol every task follows.

Letters at the end of a name say the shape of an array:
B rows of a batch, P problems, N prompt tokens, T steps, V vocabulary, A answer tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
Shares = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

SPECIAL_TOKENS = ("<pad>", "<bos>", "<pause>")


@dataclass(frozen=True)
class Vocabulary:
    """The printed form of every token; a token's id is its place in `tokens`.

    Raises ValueError if the first three tokens are not SPECIAL_TOKENS, or if a token occurs twice.
    """

    tokens: tuple[str, ...]

    pad: ClassVar[int] = 0
    bos: ClassVar[int] = 1
    pause: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.tokens[:3] != SPECIAL_TOKENS:
            raise ValueError(
                f"a vocabulary starts with the tokens {SPECIAL_TOKENS}, got {self.tokens[:3]}: prepend them"
            )
        if len(self._ids) != len(self.tokens):
            twice = next(token for id_, token in enumerate(self.tokens) if self._ids[token] != id_)
            raise ValueError(f"the token {twice!r} occurs twice; every token needs its own printed form: rename one")

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: id_ for id_, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        """V, the number of tokens."""
        return len(self.tokens)

    def index(self, token: str) -> int:
        """The id of `token`; ValueError if the vocabulary does not hold it."""
        if token not in self._ids:
            raise ValueError(
                f"the token {token!r} is not among the {len(self)} tokens; look at `tokens` for those that are"
            )
        return self._ids[token]

    def decode(self, ids: Sequence[int] | Integers) -> str:
        """The tokens of a one-dimensional sequence of ids, joined by spaces; ValueError for an id outside 0..V-1."""
        outside = [int(id_) for id_ in ids if not 0 <= id_ < len(self)]
        if outside:
            raise ValueError(f"the ids {outside[:5]} are not tokens; expected ids from 0 to {len(self) - 1}")
        return " ".join(self.tokens[id_] for id_ in ids)


@dataclass(frozen=True, eq=False)
class Batch:
    """B problems as arrays. B rows, N prompt tokens, T steps, V vocabulary, A answer tokens.

    Rows with fewer than N prompt tokens are padded, rows with fewer than T steps are filled with the pad token
    (chain) and zeros (frontier). Two batches are equal only if they are the same object.
    """

    prompt_BN: Integers
    """Token ids of the prompt, <bos> included."""
    prompt_mask_BN: Mask
    """True where the prompt holds a token, False where it is padding."""
    steps_B: Integers
    """Number of steps of each row, at most T; the last of them emits the answer."""
    chain_BT: Integers
    """Token ids of one optimal trace; its last step is the answer."""
    frontier_BTV: Shares
    """Target distribution of each step; every row sums to 1, and the last step is one-hot on the answer."""
    answer_BA: Integers
    """Token ids of the answer."""
    key_B: Keys
    """Stable hash shared by equivalent problems: splits and intervals go by key."""


@runtime_checkable
class Task(Protocol):
    """What every task offers. A problem is one row of an int64 array (P, m); nothing here uses global random state.

    A task is a frozen dataclass: two tasks with equal fields make equal problems. Methods raise ValueError with one
    clear sentence when given rows that are not problems of the task.
    """

    name: ClassVar[str]

    @property
    def vocabulary(self) -> Vocabulary:
        """Every token of prompts, steps and answers."""
        ...

    @property
    def positions(self) -> int:
        """Positions a model needs for the longest prompt and its steps."""
        ...

    def space(self) -> Integers:
        """Every problem, in lexicographic order; ValueError if there are too many to list."""
        ...

    def problems(self, n: int, seed: int) -> Integers:
        """n random problems; problem i depends on the task, the seed and i alone."""
        ...

    def key(self, problems: npt.ArrayLike) -> Keys:
        """The key (P,) of each problem, shared by equivalent problems."""
        ...

    def answer(self, problems: npt.ArrayLike) -> Integers:
        """The answer (P,) of each problem, as a number."""
        ...

    def frontier(self, problems: npt.ArrayLike, budget: int | None = None) -> Shares:
        """Exact targets (P, T, V): the share of the `budget` best traces (None: all) in each state at each step."""
        ...

    def batch(self, problems: npt.ArrayLike, budget: int | None = None) -> Batch:
        """The problems as a Batch."""
        ...

    def split(self, part: str, seed: int, count: int | None = None) -> Integers:
        """Problems of "train" or "validation"; no key is in both, whatever the seed."""
        ...

    def score(self, problem_rows: npt.ArrayLike, answer_ids_BA: npt.ArrayLike) -> Mask:
        """True (P,) where the given answer tokens are right."""
        ...

    def solve_slowly(self, problem: Sequence[int]) -> tuple[int, list[int]]:
        """The answer and the states of the best trace of one problem, by brute force; for tests."""
        ...

    def describe(self, problem: Sequence[int]) -> str:
        """One problem, its answer and its frontier as readable lines."""
        ...

    def read(self, item: Any) -> Integers:
        """One JSON value as a problem (m,); ValueError says what is wrong with it."""
        ...

    def write(self, problem: Sequence[int], answer_ids_A: Sequence[int] | Integers) -> dict[str, Any]:
        """A problem, an answer given in tokens and whether it is right, as a JSON value."""
        ...

    @classmethod
    def fitting(cls, problem: Sequence[int]) -> "Task":
        """The task with default settings, enlarged where needed to hold this problem."""
        ...
