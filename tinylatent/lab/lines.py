"""Lines of a file in place of a task: questions with steps and answers, split into parts like problems.

A problem is the number of a line. Lines with the same question, but for case and white space, share a key, so that no
question is both trained on and asked. A fifth of the questions is for validation, unless a second file holds those.
"""

import hashlib
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tinylatent_tasks.checks import check_choice, short
from tinylatent_tasks.published import Line, read_lines, words
from tinylatent_tasks.splits import PARTS, listed_part, subset

from tinylatent.core.identity import file_checksum


@dataclass(frozen=True)
class LinesFile:
    """Lines of question, steps and answer, in one of the forms of `tinylatent_tasks.published`."""

    path: str = field(compare=False)
    """The file. Where it lies is no part of a run's identity; what is in it is."""
    digest: str = ""
    """Its checksum; found when a run is made."""
    held: str = field(default="", compare=False)
    """A file of lines for validation alone, numbered behind those of the first; a fifth of the first if there is none.
    Lines of the first that ask one of its questions are not trained on."""
    held_digest: str = ""
    """Its checksum, likewise."""

    name: ClassVar[str] = "lines"
    listed: ClassVar[bool] = True
    """All lines are there, so that parts are exact and need no count."""

    def found(self) -> "LinesFile":
        """The same with its digest.

        Raises:
            ValueError: the file holds other lines than the digest says, or none that can be read.
        """
        digest = _checked(self.path, self.digest)
        return replace(self, digest=digest, held_digest=_checked(self.held, self.held_digest) if self.held else "")

    @property
    def lines(self) -> list[Line]:
        """The lines themselves.

        Raises:
            ValueError: as `found`.
        """
        self.found()
        return self._every

    @property
    def _every(self) -> list[Line]:
        """The lines, those for validation alone at the end."""
        return _read(self.path, self.held) if self.held else _read(self.path)

    @property
    def size(self) -> int:
        """Number of lines."""
        return len(self._every)

    def problems(self, n: int, seed: int, first: int = 0) -> np.ndarray:
        """Some lines (n, 1), from `first` on."""
        return (np.arange(first, first + n)[:, None]) % self.size

    def rows(self, problems: Any) -> np.ndarray:
        """Numbers of lines as rows (P, 1).

        Raises:
            ValueError: there is no such line.
        """
        rows_P1 = np.asarray(problems, np.int64).reshape(-1, 1)
        bad_P = (rows_P1[:, 0] < 0) | (rows_P1[:, 0] >= self.size)
        if bad_P.any():
            raise ValueError(f"line {int(rows_P1[bad_P][0, 0])} of {self.size}: they are numbered from 0")
        return rows_P1

    def key(self, problems: Any) -> np.ndarray:
        """A hash (P,) of each question, in lower case and with single spaces."""
        lines = self._every
        told = (words(lines[place].question).encode() for place in self.rows(problems)[:, 0].tolist())
        return np.array(
            [int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") for text in told], np.uint64
        )

    def answer(self, problems: Any) -> np.ndarray:
        """For each line the number of the first line with the same answer."""
        lines, first = self._every, dict[str, int]()
        for place, line in enumerate(lines):
            first.setdefault(words(line.answer), place)
        return np.array([first[words(lines[place].answer)] for place in self.rows(problems)[:, 0].tolist()])

    def split(self, part: str, seed: int, count: int | None = None, tell: Any = None) -> np.ndarray:
        """The lines of "train" or "validation", all or `count` of them; lines of one key are in the same part.

        Raises:
            ValueError: an unknown part, or more lines than it has.
        """
        check_choice("part", part, PARTS)
        every_P1 = np.arange(self.size)[:, None]
        key_P = self.key(every_P1)
        if not self.held:
            return listed_part(every_P1, key_P, part, seed, count)
        own = len(_read(self.path))
        is_held_P = every_P1[:, 0] >= own
        asked_P = np.isin(key_P, key_P[is_held_P])
        rows_P1 = every_P1[is_held_P if part == "validation" else ~asked_P]
        if not len(rows_P1):
            raise ValueError(f"{self.held} asks every question of {self.path}: nothing is left to train on")
        return subset(rows_P1, seed, count)

    def levels(self) -> dict[int, Any]:
        """None: how hard a line is nobody knows."""
        return {}

    def accuracy_ceiling(self, problems: Any) -> float:
        """1: every line has an answer."""
        return 1.0

    def read(self, item: Any) -> np.ndarray:
        """The number of a line, as a row (1,).

        Raises:
            ValueError: it is none.
        """
        number = item[0] if isinstance(item, list) and len(item) == 1 else item
        if isinstance(number, bool) or not isinstance(number, int):
            raise ValueError(f"{short(item)} is no line: expected its number, from 0 to {self.size - 1}")
        return self.rows([number])[0]

    def to_json(self, problem: Any) -> dict[str, Any]:
        """A line's question, and what is stored as its answer."""
        line = self._every[int(np.asarray(problem).flat[0])]
        return {"question": line.question}

    def holding(self, item: Any) -> "LinesFile":
        """This file."""
        return self


def _checked(path: str, known: str) -> str:
    """The checksum of a file of lines.

    Raises:
        ValueError: it is not the one that is known, or no lines can be read.
    """
    _read(path)
    digest = file_checksum(Path(path))[:16]
    if known not in ("", digest):
        raise ValueError(f"{path} holds other lines than this run was made with: restore it, or begin a new run")
    return digest


def _read(*paths: str) -> list[Line]:
    """The lines of files, one behind the other, read once unless one changes."""
    return _as_they_are(tuple((path, Path(path).stat().st_mtime_ns, Path(path).stat().st_size) for path in paths))


@lru_cache(maxsize=8)
def _as_they_are(files: tuple[tuple[str, int, int], ...]) -> list[Line]:
    """The lines of files that have not changed since then."""
    return [line for path, _, _ in files for line in read_lines(Path(path))]
