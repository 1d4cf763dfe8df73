"""Lines of a file in place of a task: questions with steps and answers, split into parts like problems.

A problem is the number of a line. Lines with the same question, but for case and white space, share a key, so that no
question is both trained on and asked.
"""

import hashlib
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tinylatent_tasks.checks import check_choice, short
from tinylatent_tasks.published import Line, read_lines, words
from tinylatent_tasks.splits import PARTS, listed_part

from tinylatent.core.identity import file_checksum


@dataclass(frozen=True)
class LinesFile:
    """Lines of question, steps and answer, in one of the forms of `tinylatent_tasks.published`."""

    path: str = field(compare=False)
    """The file. Where it lies is no part of a run's identity; what is in it is."""
    digest: str = ""
    """Its checksum; found when a run is made."""

    name: ClassVar[str] = "lines"
    listed: ClassVar[bool] = True
    """All lines are there, so that parts are exact and need no count."""

    def found(self) -> "LinesFile":
        """The same with its digest.

        Raises:
            ValueError: the file holds other lines than the digest says, or none that can be read.
        """
        _read(self.path)
        digest = file_checksum(Path(self.path))[:16]
        if self.digest not in ("", digest):
            raise ValueError(
                f"{self.path} holds other lines than this run was made with: restore it, or begin a new run"
            )
        return replace(self, digest=digest)

    @property
    def lines(self) -> list[Line]:
        """The lines themselves.

        Raises:
            ValueError: as `found`.
        """
        self.found()
        return _read(self.path)

    @property
    def size(self) -> int:
        """Number of lines."""
        return len(_read(self.path))

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
        lines = _read(self.path)
        told = (words(lines[place].question).encode() for place in self.rows(problems)[:, 0].tolist())
        return np.array(
            [int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") for text in told], np.uint64
        )

    def answer(self, problems: Any) -> np.ndarray:
        """For each line the number of the first line with the same answer."""
        lines, first = _read(self.path), dict[str, int]()
        for place, line in enumerate(lines):
            first.setdefault(words(line.answer), place)
        return np.array([first[words(lines[place].answer)] for place in self.rows(problems)[:, 0].tolist()])

    def split(self, part: str, seed: int, count: int | None = None, tell: Any = None) -> np.ndarray:
        """The lines of "train" or "validation", all or `count` of them; lines of one key are in the same part.

        Raises:
            ValueError: an unknown part, or more lines than it has.
        """
        check_choice("part", part, PARTS)
        every = np.arange(self.size)[:, None]
        return listed_part(every, self.key(every), part, seed, count)

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
        line = _read(self.path)[int(np.asarray(problem).flat[0])]
        return {"question": line.question}

    def holding(self, item: Any) -> "LinesFile":
        """This file."""
        return self


def _read(path: str) -> list[Line]:
    """The lines of a file, read once unless it changes."""
    about = Path(path).stat()
    return _as_it_is(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=8)
def _as_it_is(path: str, changed: int, size: int) -> list[Line]:
    """The lines of a file that has not changed since then."""
    return read_lines(Path(path))
