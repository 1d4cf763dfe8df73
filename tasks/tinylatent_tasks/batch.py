"""What a model gets from a task: a vocabulary and batches of problems.

Letters at the end of a name say the shape of an array:
B rows of a batch, P problems, N prompt tokens, T steps, V vocabulary, A answer tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
Shares = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

SPECIAL_TOKENS = ("<pad>", "<bos>", "<pause>")


@dataclass(frozen=True)
class Vocabulary:
    """The printed form of every token; a token's id is its index in `tokens`.

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
    """Token ids of the best trace; its last step is the answer."""
    frontier_BTV: Shares
    """Target distribution of every step; it sums to 1, and the last step is one-hot on the answer."""
    answer_BA: Integers
    """Token ids of the answer."""
    key_B: Keys
    """Stable hash shared by equivalent problems: splits and intervals go by key."""
