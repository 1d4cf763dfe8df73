"""Randomness by purpose: every random number is a pure function of a seed, a row and a step.

`derive` turns (root seed, purpose) into an independent seed, so that split, init, order and sampling can be varied one
at a time. `Streams` gives every row of a batch its own stream of uniforms, so that a problem draws the same numbers
whatever batch it is in. Nothing in the package uses a global generator.

Letters: B rows.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tinylatent.core.precision import exact_device

PURPOSES = ("split", "init", "order", "sampling")


@dataclass(frozen=True)
class Seeds:
    """One root seed per purpose; vary one to vary that purpose alone."""

    split: int = 0
    """Which problems are held out."""
    init: int = 0
    """Initial weights."""
    order: int = 0
    """Order of the training problems, and random position offsets."""
    sampling: int = 0
    """Everything sampled in rollouts."""

    @classmethod
    def all(cls, root: int) -> "Seeds":
        """The same root for every purpose (the purposes still get independent streams)."""
        return cls(split=root, init=root, order=root, sampling=root)

    def derive(self, purpose: str, *parts: int | str) -> int:
        """The seed of one purpose, optionally refined by parts such as an epoch number.

        Raises:
            ValueError: the purpose is unknown.
        """
        if purpose not in PURPOSES:
            raise ValueError(f"unknown purpose {purpose!r}: expected one of {', '.join(PURPOSES)}")
        return derive(getattr(self, purpose), purpose, *parts)

    def generator(self, purpose: str, *parts: int | str) -> torch.Generator:
        """A fresh torch generator (on the CPU) for one purpose."""
        return torch.Generator().manual_seed(self.derive(purpose, *parts))


def derive(root: int, *parts: int | str) -> int:
    """An independent 63-bit seed from a root seed and a path of parts, stable across versions and machines."""
    text = "/".join(str(part) for part in (root, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


# ---------------------------------------------------------------------------------------------------------------------
# One stream per row: splitmix64 (Steele, Lea, Flood 2014) on int64 tensors, whose products wrap as wanted.


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


_STEP, _MIX1, _MIX2 = (_signed(word) for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch shifts arithmetically)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The splitmix64 output of each state: an avalanche over all 64 bits."""
    x = x + _STEP
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def _uniform(state: Tensor) -> Tensor:
    """A uniform in (0, 1) from each state, of 52 bits: with one more the largest would round to 1."""
    return (_shift(mix(state), 12).double() + 0.5) * 2.0**-52


@lru_cache(maxsize=1024)
def _mixed(start: int, count: int, device: torch.device) -> Tensor:
    """mix(start), mix(start + 1), ...; cached, since every step asks for the same few numbers."""
    return mix(torch.arange(start, start + count, device=device))


class Streams:
    """A stream of uniforms for each row, keyed by (seed, row, the row's own step, draw).

    The rollout engine calls `at` with each row's own step count before a step; draws within a step are numbered by
    call. A row's numbers therefore depend neither on its neighbours nor on how long they take. They are float64,
    on the CPU where the device of the rows has none (see `core.precision`).

    Args:
        seed: any integer, usually `Seeds.derive("sampling", ...)`.
        rows_B: identity of each row; two rows with the same identity draw the same numbers. A number B stands for
            rows 0 .. B - 1.
    """

    def __init__(self, seed: int, rows_B: Int[Tensor, " B"] | int):
        if not isinstance(rows_B, int | Tensor) or (isinstance(rows_B, int) and rows_B < 1):
            raise ValueError(f"streams for {rows_B!r} rows: expected a number of at least 1, or a tensor of identities")
        rows_B = torch.arange(rows_B) if isinstance(rows_B, int) else rows_B.to(exact_device(rows_B.device))
        root = torch.full_like(rows_B, _signed(seed % (1 << 64)))
        self.root_B = mix(mix(root) ^ rows_B)
        self.at(torch.zeros_like(rows_B))

    def at(self, steps_B: Int[Tensor, " B"] | int) -> None:
        """Moves every row to its own step, or all to the same, and restarts the numbering of draws."""
        device = self.root_B.device
        mixed = _mixed(steps_B, 1, device) if isinstance(steps_B, int) else mix(steps_B.to(device))
        self.step_B = mix(self.root_B ^ mixed)
        self.draw = 0

    def uniform(self, count: int = 1) -> Float[Tensor, "B count"]:
        """The next `count` uniforms of every row, float64 in the open interval (0, 1)."""
        draws = _mixed(self.draw, count, self.step_B.device)
        self.draw += count
        return _uniform(self.step_B[:, None] ^ draws)

    def branch(self) -> "Streams":
        """Independent streams for an unknown number of draws, as in rejection sampling; counts as one draw of a row."""
        child = object.__new__(Streams)
        child.root_B = child.step_B = mix(self.step_B ^ mix(torch.full_like(self.step_B, -1 - self.draw)))
        child.draw, self.draw = 0, self.draw + 1
        return child

    def derived(self, *parts: int | str) -> "Streams":
        """Independent streams for the same rows, at step 0; `parts` name their purpose, such as a round of search."""
        child = object.__new__(Streams)
        child.root_B = mix(self.root_B ^ _signed(derive(0, *parts)))
        child.at(0)
        return child

    def repeated(self, times: int) -> "Streams":
        """Independent streams for `times` rollouts of every row, side by side."""
        child = object.__new__(Streams)
        copy_B = torch.arange(times, device=self.root_B.device).repeat(len(self.root_B))
        child.root_B = mix(self.root_B.repeat_interleave(times) ^ mix(copy_B))
        child.at(0)
        return child

    def rows(self, index_b: Int[Tensor, " b"]) -> "Streams":
        """The streams of some rows, at step 0: as if the others had never been there."""
        child = object.__new__(Streams)
        child.root_B = self.root_B[index_b.to(self.root_B.device)]
        child.at(0)
        return child

    def pick(self, rows_M: Int[Tensor, " M"], draws_M: Int[Tensor, " M"]) -> Float[Tensor, " M"]:
        """The uniforms that rows have at given draw numbers of this step."""
        return _uniform(self.step_B[rows_M] ^ mix(draws_M))

    def normal(self, count: int = 1) -> Float[Tensor, "B count"]:
        """The next `count` standard normals of every row, float64, by the Box-Muller transform."""
        radius, angle = self.uniform(2 * count).chunk(2, dim=1)
        return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()
