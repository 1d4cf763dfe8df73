"""What every run is: a frozen value that goes to JSON and back, has an identity, and measures itself.

Studies are grids of runs. Most runs are experiments (a method trained on a task); others enumerate, or check a claim.
A record remembers the run it is of as the JSON that was written then, and its id is the hash of that JSON: it is
checked first, and only then lifted to the form of today.
"""

import copy
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import torch

from tinylatent.core.environment import environment
from tinylatent.core.identity import identity
from tinylatent.training.checkpoints import METRICS

Progress = Callable[[int, float], None]
"""on_progress(units done, loss): NaN where there is no loss."""
VERSION = 2
"""Form of records: 1 is the first edition's, which had no such field."""


class Environments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where a run's numbers come from: code, versions, machine."""

    training: list[dict[str, str]] = msgspec.field(default_factory=list)
    """What trained it, one for every sitting on another machine or commit; empty where nothing was trained."""
    measuring: dict[str, str]
    """What measured it."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """What a finished run left: a line of runs.jsonl. Every kind of run has a subclass of its own."""

    version: int
    """Form of the record."""
    id: str
    """Hash of `run` as it was written."""
    run: dict[str, Any]
    """The run as JSON, fields at their default left out."""
    environments: Environments
    """What trained it and what measured it."""
    study: str = ""
    """The study it was measured for; empty for a run on its own."""
    profile: str = ""
    """Profile of that study: quick or full."""

    @property
    def seeds(self) -> Mapping[str, int]:
        """The seeds of its random numbers, by purpose."""
        return dict(self.run.get("seeds", {}))

    def summary(self) -> str:
        """One line about it."""
        return self.id

    def to_json(self) -> dict[str, Any]:
        """The record as plain values."""
        return dict(msgspec.to_builtins(self))


class Run(ABC):
    """One run. Subclasses are frozen dataclasses; their `record` names the class of their records."""

    version: ClassVar[int] = 1
    """Raised when results or defaults change, so that stored runs are not taken for new ones."""
    record: ClassVar[type[Record]] = Record
    """The class of its records."""
    always: ClassVar[bool] = False
    """Whether finished runs are measured again: where what is asked about is the code, not its settings."""

    @property
    @abstractmethod
    def work(self) -> int:
        """Units of progress it takes."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What it is, in a few words."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The run as plain values."""

    @classmethod
    @abstractmethod
    def from_json(cls, values: dict[str, Any]) -> "Run":
        """The run that these values of today's form describe; ValueError if there is none."""

    @abstractmethod
    def measure(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        on_progress: Progress | None = None,
        start: Path | None = None,
    ) -> Record:
        """Does the run and returns its record.

        Args:
            folder: its own; what it keeps goes there, and lines of metrics.jsonl tell how far it is.
            device: where to compute.
            on_progress: told as it goes on.
            start: folder of the run it starts from, where it starts from one that was done before.
        """

    @classmethod
    def lift(cls, written: dict[str, Any]) -> dict[str, Any]:
        """A record in today's form, from any form that was ever written. It may change `written`, a copy."""
        if "version" not in written:
            written["run"] = written.pop("experiment")
            written["environments"] = {"measuring": written.pop("environment")}
            written["version"] = 2
        return written

    @classmethod
    def written_identity(cls, run: dict[str, Any]) -> str:
        """The id of a run from the JSON that was written for it, in whatever form."""
        return identity(run)

    @property
    def starts_from(self) -> "Run | None":
        """The run whose weights this one begins with."""
        return None

    @property
    def identity(self) -> str:
        """Twelve hexadecimal digits that stand for the whole value."""
        return identity(self.to_json())

    def done(self, folder: Path) -> int:
        """Units of progress so far, by the last whole line of its metrics.jsonl."""
        return int(last_line(folder / METRICS).get("step", 0))


def read_record(kind: type[Run], values: Any) -> Any:
    """A record of a kind of run from JSON of any form: its id is checked as written, then it is lifted.

    Raises:
        ValueError: the run was changed after it was recorded, or this is no record of this kind.
    """
    if not isinstance(values, dict):
        raise ValueError(f"a record is a JSON object, this is {type(values).__name__}")
    form = values.get("version", 1)
    if not isinstance(form, int) or not 1 <= form <= VERSION:
        raise ValueError(f"a record of form {form!r}: this program reads 1 to {VERSION}; use a newer one")
    name = "run" if "version" in values else "experiment"
    run = values.get(name)
    if not isinstance(run, dict):
        raise ValueError(f"a record of form {form} has its run under {name!r}: this has none")
    if values.get("id") != kind.written_identity(run):
        raise ValueError("its id is not that of its run: one of the two was changed")
    try:
        return msgspec.convert(kind.lift(copy.deepcopy(values)), kind.record)
    except (msgspec.ValidationError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no record of the kind {kind.__name__} ({type(error).__name__}: {error})") from error


def new_record(run: Run, training: list[dict[str, str]] | None = None, **values: Any) -> Any:
    """A record of a run that was measured here and now.

    Args:
        run: what was measured.
        training: the environments it was trained in.
        values: the other fields of its class of records.
    """
    where = Environments(training=training or [], measuring=environment())
    return run.record(version=VERSION, id=run.identity, run=run.to_json(), environments=where, **values)


def note_progress(folder: Path, step: int, on_progress: Progress | None) -> None:
    """Tells how far a run without training is: a line of its metrics.jsonl, and whoever listens."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step}) + "\n")
    if on_progress is not None:
        on_progress(step, math.nan)


TAIL = 16_384
"""Bytes of a metrics file that hold at least one whole line."""


def last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a metrics file; empty where there is none, or it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = file.read().split(b"\n")[:-1]
        line = json.loads(lines[-1]) if lines else {}
        return line if isinstance(line.get("step", 0), int) else {}
    except (OSError, ValueError, AttributeError):
        return {}
