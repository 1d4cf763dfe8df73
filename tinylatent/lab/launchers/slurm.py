"""The launcher of a SLURM cluster: runs packed into the tasks of a job array, by the package submitit.

    tinylatent reproduce mnns --profile full --launcher slurm --workers 64

A file slurm.toml in the working directory (another by the variable TINYLATENT_SLURM) has the settings of `Cluster`.
Runs are told apart from failures by what they leave on the shared files, never by what the scheduler remembers: a run
is done when its result is there. A task that is pre-empted is put into the queue again and goes on from the checkpoints
of its runs; what has left the queue without a result is submitted anew, a few times.
"""

import contextlib
import os
import subprocess
import time
import tomllib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tinylatent.core.extras import MissingExtraError
from tinylatent.core.files import read_json, write_json
from tinylatent.lab.launchers.launcher import RESULT, Job
from tinylatent.lab.launchers.local import Local
from tinylatent.lab.written import made

SETTINGS, VARIABLE = "slurm.toml", "TINYLATENT_SLURM"
ERROR = "error.json"
"""What a run leaves in its folder that cannot be done."""
ASKED_S = 10.0
"""Seconds between two questions to the scheduler."""


@dataclass(frozen=True)
class Cluster:
    """Settings of jobs, in slurm.toml."""

    partition: str = ""
    """Partition; the cluster's own by default."""
    account: str = ""
    """Account that is charged."""
    minutes: int = 60
    """Time limit of a task of the array, at least 5: a task is warned before, and goes on in another."""
    cpus: int = 1
    """Processors of a task: as many runs at a time, one thread each."""
    memory_gb: float = 4.0
    """Memory of a task."""
    gpus: int = 0
    """GPUs of a task."""
    packed: int = 8
    """Runs of a task, one after another."""
    retries: int = 3
    """How often runs are submitted again that have left the queue without a result."""
    warning_s: int = 90
    """Seconds before the limit at which a task is warned, so that it goes back into the queue."""
    setup: tuple[str, ...] = ()
    """Lines of shell before a task, such as "module load cuda"."""
    logs: str = "slurm"
    """Folder of logs, seen by all machines."""
    where: Literal["slurm", "local"] = "slurm"
    """A cluster, or processes of this machine, to try it out."""

    def __post_init__(self) -> None:
        for name, least in (("minutes", 5), ("cpus", 1), ("gpus", 0), ("packed", 1), ("retries", 0), ("warning_s", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: expected {least} or more")


def settings() -> Cluster:
    """The settings in slurm.toml; the usual ones where there is no such file.

    Raises:
        ValueError: the file cannot be read, or a setting is wrong; the message names it.
    """
    path = Path(os.environ.get(VARIABLE) or SETTINGS)
    if not path.exists():
        if os.environ.get(VARIABLE):
            raise ValueError(f"{path}, which {VARIABLE} names, is not there")
        return Cluster()
    try:
        found: Cluster = made(Cluster, SETTINGS, tomllib.loads(path.read_text("utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return found


@dataclass
class Pack:
    """Runs of one task of the array; called where the task runs."""

    jobs: Sequence[Job]
    at_once: int = 1

    def __call__(self) -> None:
        """Does every run that is not done; what a run raises is left in its folder."""
        left = [job for job in self.jobs if not (job.folder / RESULT).exists()]
        if self.at_once == 1:
            for job in left:
                _do(job)
            return
        with Local(self.at_once).submit(left) as submitted:
            waiting = len(left)
            while waiting:
                for job, error in submitted.ended(1.0):
                    waiting -= 1
                    if error is not None:
                        _leave(job, error)

    def checkpoint(self) -> Any:
        """What is submitted in place of a task that is pre-empted: the same, which goes on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _do(job: Job) -> None:
    try:
        job.do()
    except Exception as error:
        _leave(job, error)


def _leave(job: Job, error: Exception) -> None:
    """Leaves an error in a run's folder."""
    traceback.print_exception(error)
    job.folder.mkdir(parents=True, exist_ok=True)
    write_json(job.folder / ERROR, {"kind": type(error).__name__, "said": str(error)})


@dataclass
class Slurm:
    """Tasks of job arrays on a SLURM cluster."""

    workers: int = 2
    """Most tasks at a time."""
    cluster: Cluster = field(default_factory=settings)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}: expected at least 1; try 16")

    @contextlib.contextmanager
    def submit(self, jobs: Sequence[Job]) -> Iterator["Arrays"]:
        """Submits the jobs, packed, as a job array.

        Raises:
            MissingExtraError: submitit is not installed.
            ValueError: there is no cluster here.
        """
        arrays = Arrays(self, [*jobs])
        try:
            arrays.submit(arrays.left)
            yield arrays
            arrays.close()
        except BaseException:
            arrays.cancel()
            raise

    def executor(self) -> Any:
        """Of submitit, with the settings.

        Raises:
            MissingExtraError: submitit is not installed.
            ValueError: there is no cluster here.
        """
        try:
            import submitit
        except ImportError as error:
            raise MissingExtraError("The launcher slurm needs", "submitit", "slurm") from error
        own = self.cluster
        try:
            made = submitit.AutoExecutor(folder=Path(own.logs).absolute(), cluster=own.where)
        except RuntimeError as error:
            raise ValueError(f"there is no SLURM here ({error}): use another launcher, or where = 'local'") from None
        asked: dict[str, Any] = {"timeout_min": own.minutes, "cpus_per_task": own.cpus, "mem_gb": own.memory_gb}
        if own.gpus:
            asked["gpus_per_node"] = own.gpus
        if own.where == "slurm":
            asked |= {"slurm_array_parallelism": self.workers, "slurm_signal_delay_s": own.warning_s}
            asked |= {
                f"slurm_{name}": value
                for name, value in (("partition", own.partition), ("account", own.account))
                if value
            }
            asked |= {"slurm_setup": [*own.setup]} if own.setup else {}
        made.update_parameters(**asked, name="tinylatent")
        return made


class Arrays:
    """Jobs that were submitted, and how often.

    Args:
        launcher: how.
        jobs: all of them.
    """

    def __init__(self, launcher: Slurm, jobs: list[Job]):
        self.launcher, self.left = launcher, jobs
        self.tasks: list[tuple[Any, list[Job]]] = []
        self.here: list[Any] = []
        self.submissions = 0
        self.asked = time.monotonic()
        for job in jobs:
            (job.folder / ERROR).unlink(missing_ok=True)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Submits jobs as an array of packs."""
        own = self.launcher.cluster
        packs = [[*jobs[start : start + own.packed]] for start in range(0, len(jobs), own.packed)]
        executor = self.launcher.executor()
        with executor.batch():
            submitted = [executor.submit(Pack(pack, own.cpus)) for pack in packs]
        self.tasks = [*self.tasks, *zip(submitted, packs, strict=True)]
        self.here += submitted if own.where == "local" else []
        self.submissions += 1

    def ended(self, timeout: float) -> list[tuple[Job, Exception | None]]:
        """The jobs that ended since the last call, with what they raised.

        Jobs whose task has left the queue without a result are submitted again; too often, and they have failed.
        """
        found: list[tuple[Job, Exception | None]] = []
        for job in self.left:
            if (job.folder / RESULT).exists():
                found.append((job, None))
            elif (error := _left_error(job)) is not None:
                found.append((job, error))
        if not found:
            time.sleep(timeout)
            if time.monotonic() - self.asked > self._pause:
                self.asked = time.monotonic()
                found = self._lost()
        gone = {id(job) for job, _ in found}
        self.left = [job for job in self.left if id(job) not in gone]
        return found

    @property
    def _pause(self) -> float:
        return ASKED_S if self.launcher.cluster.where == "slurm" else 1.0

    def _lost(self) -> list[tuple[Job, Exception | None]]:
        """Deals with jobs whose task is no longer there: submits them again, or returns them as failed."""
        there = self._queued()
        self.tasks = [(task, jobs) for task, jobs in self.tasks if there(task)]
        held = {id(job) for _, jobs in self.tasks for job in jobs}
        lost = [job for job in self.left if id(job) not in held and not (job.folder / RESULT).exists()]
        lost = [job for job in lost if _left_error(job) is None]
        if not lost:
            return []
        own = self.launcher.cluster
        if self.submissions > own.retries:
            said = f"its task left the queue {self.submissions} times without a result: see {Path(own.logs).absolute()}"
            return [(job, RuntimeError(said)) for job in lost]
        self.submit(lost)
        return []

    def _queued(self) -> Any:
        """A function that says whether a task is still waiting or running."""
        if self.launcher.cluster.where == "local":
            return lambda task: not task.done()
        known = [str(task.job_id) for task, _ in self.tasks]
        if not known:
            return lambda task: False
        asked = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(known)}"]
        told = subprocess.run(asked, capture_output=True, text=True)
        if told.returncode and "Invalid job id" not in told.stderr:
            return lambda task: True  # the scheduler does not answer: ask again later
        there = {*told.stdout.split()}
        return lambda task: str(task.job_id) in there

    def close(self) -> None:
        """Waits until processes of this machine have ended, which they are about to."""
        for task in self.here:
            task.wait()

    def cancel(self) -> None:
        """Cancels what is waiting or running."""
        for task, _ in self.tasks:
            with contextlib.suppress(Exception):
                task.cancel(check=False)


def _left_error(job: Job) -> Exception | None:
    """The error that a run left in its folder; None if it left none."""
    path = job.folder / ERROR
    if not path.exists():
        return None
    told = read_json(path)
    said = f"{told['kind']}: {told['said']}"
    return ValueError(told["said"]) if told["kind"] == "ValueError" else RuntimeError(said)
