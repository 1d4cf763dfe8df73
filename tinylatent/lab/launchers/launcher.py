"""The protocol of launchers. A job is a run with a folder: doing it leaves result.json there, whoever does it.

How far a job is stands in its own metrics.jsonl, so that progress is read the same way on any machine that shares the
files. A launcher only starts jobs, says which have ended, and stops them.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tinylatent.core.files import DamagedError, locked, read_json, write_json
from tinylatent.core.registry import Registry
from tinylatent.lab.run import Record, Run, read_record

RESULT = "result.json"


@dataclass(frozen=True)
class Job:
    """One run to be done in a folder."""

    run: Run
    folder: Path
    device: str = "cpu"
    start: Path | None = None
    """Folder of the run it starts from, done before."""

    def do(self) -> None:
        """Measures the run and stores its record in the folder."""
        with locked(self.folder):
            record = self.run.measure(self.folder, self.device, start=self.start)
            write_json(self.folder / RESULT, record.to_json())

    def record(self) -> Record | None:
        """The record it left; None if it has not been done.

        Raises:
            DamagedError: what is stored is not the record of this run.
        """
        return stored_record(self.run, self.folder)

    @property
    def done(self) -> int:
        """Units of work so far."""
        return self.run.done(self.folder)


def stored_record(run: Run, folder: Path) -> Any:
    """The record of a run in a folder; None if there is none.

    Raises:
        DamagedError: it is damaged, or another run's.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        record = read_record(type(run), read_json(path))
        if record.id != run.identity:
            raise ValueError("it is of another run")
    except ValueError as error:
        raise DamagedError(f"{path} is not the record of its run ({error}): delete {folder} to run it again") from error
    return record


@runtime_checkable
class Submitted(Protocol):
    """Jobs that were handed to a launcher."""

    def ended(self, timeout: float) -> Sequence[Job]:
        """The jobs that ended well since the last call; waits at most `timeout` seconds for one.

        Raises:
            Exception: what a job raised; the others are stopped when the block is left.
        """
        ...


@runtime_checkable
class Launcher(Protocol):
    """Does jobs. Leaving the block of `submit` by an exception stops what is still running."""

    def submit(self, jobs: Sequence[Job]) -> AbstractContextManager[Submitted]:
        """Starts the jobs, each independent of the others."""
        ...


LAUNCHERS: Registry[Any] = Registry("tinylatent.launchers", "launcher")
"""Launchers by name, called with the number of workers: this package's and any other's."""
