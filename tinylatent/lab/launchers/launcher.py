"""The protocol of launchers. A job is a run with a folder: doing it leaves result.json there, whoever does it.

How far a job is stands in its own metrics.jsonl, so that progress is read the same way on any machine that shares the
files. A launcher only starts jobs, says which have ended, and stops them.
"""

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from tinylatent.core.files import DamagedError, locked, read_json, write_json
from tinylatent.core.identity import sealed
from tinylatent.core.registry import Registry, owner
from tinylatent.lab.experiment import device_named
from tinylatent.lab.run import Progress, Record, Run, read_record
from tinylatent.training.checkpoints import METRICS

RESULT = "result.json"


@dataclass(frozen=True)
class Job:
    """One run to be done in a folder, on this machine or another."""

    run: Run
    folder: Path
    device: str = "cpu"
    """auto, cpu, cuda or mps: resolved where the job is done."""
    start: Path | None = None
    """Folder of the run it starts from, done before."""

    def do(self, on_progress: Progress | None = None) -> Any:
        """Measures the run with one thread, stores its record in the folder and returns it.

        Raises:
            ValueError: the run cannot be done, or the device is not there.
        """
        device, threads = device_named(self.device), torch.get_num_threads()
        self.run.check(self.folder, self.start)
        torch.set_num_threads(1)  # results depend on their number
        try:
            with locked(self.folder):
                try:
                    record = self.run.measure(self.folder, device, on_progress, self.start)
                except ValueError:
                    if all(path.name.startswith(".") for path in self.folder.iterdir()):
                        shutil.rmtree(self.folder)  # nothing was learnt
                    raise
                write_json(self.folder / RESULT, sealed(record.to_json()))
        finally:
            torch.set_num_threads(threads)
        return record

    def forget(self) -> None:
        """Removes an earlier record and the progress towards it, for runs that are measured again each time."""
        for name in (RESULT, METRICS):
            (self.folder / name).unlink(missing_ok=True)

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
        record = read_record(type(run), read_result(path))
        if record.id != run.identity:
            raise ValueError("it is of another run")
    except DamagedError:
        raise
    except ValueError as error:
        raise DamagedError(
            f"{path} is not the record of its run ({error}): delete this one file to measure it again"
        ) from error
    return record


def read_result(path: Path) -> Any:
    """The JSON of a result.json as it was written; earlier ones have no seal.

    Raises:
        DamagedError: it was changed since, or is not JSON.
    """
    return unsealed(read_json(path), str(path), "this one file")


def unsealed(values: Any, where: str, what: str) -> Any:
    """Values as they were sealed, without the seal; those that have none as they are.

    Args:
        values: JSON of a record.
        where: they stand.
        what: to delete, to have it measured again.

    Raises:
        DamagedError: they were changed since.
    """
    if not isinstance(values, dict) or "seal" not in values:
        return values
    if values != sealed(values):
        raise DamagedError(
            f"{where} was changed after it was written: restore it from a copy, or delete {what} to measure it again"
        )
    return {name: value for name, value in values.items() if name != "seal"}


@runtime_checkable
class Submitted(Protocol):
    """Jobs that were handed to a launcher."""

    def ended(self, timeout: float) -> Sequence[tuple[Job, Exception | None]]:
        """The jobs that ended since the last call, with what they raised; waits at most `timeout` seconds for one."""
        ...


@runtime_checkable
class Launcher(Protocol):
    """Does jobs. Leaving the block of `submit` by an exception stops what is still running."""

    def submit(self, jobs: Sequence[Job]) -> AbstractContextManager[Submitted]:
        """Starts the jobs, each independent of the others."""
        ...


LAUNCHERS: Registry[Any] = Registry("tinylatent.launchers", "launcher")
"""Launchers by name, called with the number of workers: this package's and any other's."""


def launcher_named(name: str, workers: int) -> Launcher:
    """A registered launcher with so many workers.

    Raises:
        ValueError: there is none of this name, or it is no launcher.
    """
    kind = LAUNCHERS.named(name)
    try:
        launcher = kind(workers)
    except TypeError as error:
        launcher = error
    if not isinstance(launcher, Launcher):
        raise ValueError(
            f"the launcher {name!r} of {owner(LAUNCHERS.points[name])} is none: expected a class that takes the number "
            "of workers and has `submit`"
        )
    return launcher
