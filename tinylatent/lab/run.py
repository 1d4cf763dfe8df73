"""What every run is: a frozen value that goes to JSON and back, has an identity, and measures itself.

Studies are grids of runs. Most runs are experiments (a method trained on a task); others enumerate, or check a claim.
A record holds its run as the JSON that was written, and its id is the hash of that JSON. Reading checks the id first,
then that the run writes this very JSON, and only then lifts the record to the form of today.
"""

import math
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import torch

from tinylatent.core.environment import environment
from tinylatent.core.files import json_text, json_value, naming
from tinylatent.core.identity import identity
from tinylatent.training.checkpoints import METRICS

Progress = Callable[[int, float], None]
"""on_progress(units done, loss): NaN where there is no loss."""
VERSION = 2
"""Form of records: 1 is the first edition's, which had no such field."""


class Environments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where a run's numbers come from: code, versions, machine."""

    training: list[dict[str, str]] | None = None
    """What trained it, one for every sitting on another machine or commit; empty where nothing was trained, absent
    where it was not recorded, as in form 1."""
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
        """The seeds of its random numbers, by purpose; those of the run that was read, where it draws none."""
        return dict(self.run.get("seeds") or self.run.get("start", {}).get("seeds", {}))

    def summary(self) -> str:
        """One line about it."""
        return self.id

    def to_json(self) -> dict[str, Any]:
        """The record as plain values."""
        return dict(msgspec.to_builtins(self))


class NotInstalledError(ValueError):
    """A stored run names a task or a method that is not installed, or not in the version that wrote it."""


class Run(ABC):
    """One run. Subclasses are frozen dataclasses; their `record` names the class of their records."""

    version: ClassVar[int] = 1
    """Raised when results or defaults change, so that stored runs are not taken for new ones."""
    record: ClassVar[type[Record]] = Record
    """The class of its records."""
    always: ClassVar[bool] = False
    """Whether a study measures finished runs again; so do checks of the code, which changes while settings do not."""

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
        """The run as plain values. `from_json` must give a run that writes the same, or its records are refused."""

    @classmethod
    @abstractmethod
    def from_json(cls, values: dict[str, Any]) -> "Run":
        """The run that these values of today's form describe.

        Raises:
            NotInstalledError: what they name is not installed.
            ValueError: they describe no run.
        """

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

    def check(self, folder: Path, start: Path | None = None) -> None:  # noqa: B027 - most runs can always be done
        """Refuses what cannot be done, before anything is touched; ValueError says why."""

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
    """A record of a kind of run from JSON of any form: id and run are checked as written, then it is lifted.

    Where a package that the run names is not installed, the run cannot be checked; its numbers are read all the same.

    Raises:
        ValueError: the run was changed after it was recorded, or this is no record of this kind.
    """
    if not isinstance(values, dict):
        raise ValueError(f"a record is a JSON object, this is {type(values).__name__}")
    form = values.get("version", 1)
    if not isinstance(form, int) or not 1 <= form <= VERSION:
        raise ValueError(f"a record of form {form!r}: this program reads 1 to {VERSION}; use a newer one")
    if form == 1 and "version" in values:
        raise ValueError("it says that it is of form 1 and is of another: it was changed, measure it again")
    name = "run" if "version" in values else "experiment"
    run = values.get(name)
    if not isinstance(run, dict):
        raise ValueError(f"a record of form {form} has its run under {name!r}: this has none")
    if values.get("id") != kind.written_identity(run):
        raise ValueError("its id is not that of its run: one of the two was changed")
    try:
        if "version" in values:
            _check_run(kind, run)
        return msgspec.convert(kind.lift(_copied(values)), kind.record)
    except (msgspec.ValidationError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no record of the kind {kind.__name__} ({type(error).__name__}: {error})") from error


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    """Another of the same plain values, which may be changed; `deepcopy` takes five times as long."""
    copied: dict[str, Any] = pickle.loads(pickle.dumps(values))
    return copied


def _check_run(kind: type[Run], written: dict[str, Any]) -> None:
    """Raises ValueError unless the run that this JSON describes writes the same JSON."""
    try:
        again = kind.from_json(_copied(written)).to_json()
    except NotInstalledError:
        return
    if identity(again) != identity(written):
        names = sorted(name for name in again.keys() | written.keys() if again.get(name) != written.get(name))
        raise ValueError(
            f"its run is not what a {kind.__name__} of these settings writes, see {', '.join(names) or 'its numbers'}: "
            "it was changed by hand; measure it again"
        )


def new_record(
    run: Run,
    training: Sequence[dict[str, str]] | None = (),
    device: torch.device | str = "cpu",
    **values: Any,
) -> Any:
    """A record of a run that was measured here and now.

    Args:
        run: what was measured.
        training: the environments it was trained in; None where they were not recorded.
        device: where it was measured.
        values: the other fields of its class of records.

    Raises:
        ValueError: a field's value is of another type than its class says.
    """
    where = Environments(training=None if training is None else [*training], measuring=environment(device))
    about: dict[str, Any] = {"version": VERSION, "id": run.identity, "run": run.to_json(), "environments": where}
    try:
        plain = msgspec.to_builtins(run.record(**about, **values))
        return msgspec.convert(plain, run.record)
    except (ValueError, TypeError) as error:  # a ValidationError is a ValueError
        raise ValueError(f"what was measured is no {run.record.__name__}, which could not be read: {error}") from error


def note_progress(folder: Path, step: int, on_progress: Progress | None) -> None:
    """Tells how far a run without training is: a line of its metrics.jsonl, and whoever listens."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / METRICS
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(json_text({"step": step}) + "\n")
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
        line = json_value(lines[-1]) if lines else {}
        return line if isinstance(line.get("step", 0), int) else {}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def short(value: Any) -> Any:
    """Numbers to five digits, at any depth of lists, as records keep what is measured at many places."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().tolist()
    if isinstance(value, list):
        return [short(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
