"""Study: one table or figure. A grid of runs is measured, and everything shown is rebuilt from runs.jsonl alone.

A run is known by its identity: all studies and profiles share the finished ones, and an interrupted one is resumed.
Most are experiments; a study may bring runs of another kind, with its own way to measure them. What a run starts from
is measured before it, in the grid or not.
Runs and quick profiles are kept under results/runs/, which git ignores; a full study writes results/NAME/, to be
committed.
"""

import contextlib
import importlib.metadata
import json
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from tqdm import tqdm

from tinylatent.core.files import DamagedError, atomic, read_json, read_lines, write_json, write_text
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.measure import measure
from tinylatent.lab.report import Table, provenance

Profile = Literal["quick", "full"]
Record = dict[str, Any]
RESULT, RUNS = "result.json", "runs.jsonl"


@runtime_checkable
class Run(Protocol):
    """What a grid is made of: a frozen value that goes to JSON and back. `Experiment` is one."""

    @property
    def identity(self) -> str:
        """Short and stable: equal values have equal ones."""
        ...

    @property
    def work(self) -> int:
        """Units of progress it takes."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The value in plain terms, its seeds under "seeds"."""
        ...

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Run":
        """The run that wrote these values; ValueError or KeyError if there is none."""
        ...


def accuracy_remark(record: Record) -> str:
    """One line about a finished experiment."""
    right = sum(record["evaluations"]["itself"]["right"]) / sum(record["total"])
    name, seed = record["experiment"]["method"]["name"], record["experiment"]["seeds"]["split"]
    return f"{name:10s} seed {seed}: {100 * right:5.1f} % in {record['cost']['training_seconds']:.0f} s"


@dataclass(frozen=True)
class Study:
    """A named question with its runs and how to show them."""

    name: str
    question: str
    """What it asks, in one sentence."""
    grid: Callable[[Profile], Sequence[Any]]
    """The runs of a profile."""
    tables: Callable[[list[Record]], list[Table]]
    """The tables, from the records alone; the first is the result."""
    figure: Callable[[list[Record], Path], None]
    """Draws the figure into a file, from the records alone."""
    after: Callable[[Profile, list[Record]], Sequence[Any]] = lambda profile, records: ()
    """Runs that only the records so far can tell: asked again and again, until it names no new one."""
    kind: type[Any] = Experiment
    """What its runs are: see `Run`."""
    measure: Callable[..., Record] = measure
    """measure(run, folder, device, on_progress=...) -> record, with "id", "experiment" (the run as JSON) and
    "environment"; a function of a module, and start=folder where a run starts from another."""
    remark: Callable[[Record], str] = accuracy_remark
    """One line about a finished run."""
    fresh: bool = False
    """Whether finished runs are measured again: where what is asked about is the code, not its settings."""


@dataclass(frozen=True)
class Outcome:
    """Where a study's results are, and its tables."""

    tables: list[Table]
    files: dict[str, Path]


def studies() -> dict[str, Study]:
    """Every registered study (entry-point group "tinylatent.studies"), by name."""
    points = importlib.metadata.entry_points(group="tinylatent.studies")
    return {point.name: point.load() for point in sorted(points, key=lambda point: point.name)}


def reproduce(study: Study, profile: Profile, results: Path, workers: int = 2, device: str = "cpu") -> Outcome:
    """Measures what is missing and rebuilds table, figure and provenance.

    Args:
        study: what to reproduce.
        profile: "quick" (minutes) or "full".
        results: the results folder.
        workers: processes, one thread each.
        device: where the runs train.

    Raises:
        ValueError: fewer than one worker, or results is no folder.
        DamagedError: a stored file is damaged.
    """
    if workers < 1:
        raise ValueError(f"{workers} workers: expected at least 1; try --workers 2")
    if results.exists() and not results.is_dir():
        raise ValueError(f"{results} is a file: expected a folder for results; try --results PATH")
    work = results / "runs" / "work"
    records: list[Record] = []
    more = list(study.grid(profile))
    while more:
        records += _records(study, more, work, workers, device)
        known = {record["id"] for record in records}
        more = [experiment for experiment in study.after(profile, records) if experiment.identity not in known]
    target = results / "runs" / profile / study.name if profile == "quick" else results / study.name
    lines = (json.dumps({"study": study.name, "profile": profile, **record}) for record in records)
    write_text(target / RUNS, "".join(line + "\n" for line in lines))
    return rebuild(study, target)


def rebuild(study: Study, folder: Path) -> Outcome:
    """Tables, figure and provenance from a folder's runs.jsonl.

    Raises:
        DamagedError: runs.jsonl is missing, damaged or not this study's.
    """
    records, runs = _stored(folder), folder / RUNS
    _check(study, records, runs)
    try:
        tables, origin = study.tables(records), provenance(records, runs)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(
            f"{runs} does not hold what {study.name} needs ({type(error).__name__}: {error}): reproduce it again"
        ) from error
    csvs = ["table.csv", *(f"table-{number}.csv" for number in range(2, len(tables) + 1))]
    files = {name: folder / name for name in (*csvs, "table.md", "figure.png", "provenance.json", RUNS)}
    with atomic(files["figure.png"]) as temporary:
        study.figure(records, temporary)
    for name, table in zip(csvs, tables, strict=True):
        write_text(files[name], table.csv())
    write_text(files["table.md"], f"{study.question}\n\n" + "\n".join(table.markdown() for table in tables))
    write_json(files["provenance.json"], origin)
    return Outcome(tables, files)


def kept(results: Path) -> list[Path]:
    """Every folder of stored results: one with a runs.jsonl."""
    return sorted(path.parent for path in results.glob(f"*/{RUNS}"))


def study_of(folder: Path) -> Study:
    """The study that a folder's runs belong to.

    Raises:
        DamagedError: the runs are damaged, or of a study that is not registered.
    """
    known, name = studies(), _stored(folder)[0]["study"]
    if name not in known:
        raise DamagedError(f"{folder / RUNS} is of an unknown study {name}: expected one of {', '.join(known)}")
    return known[name]


def _stored(folder: Path) -> list[Record]:
    """The records of a folder's runs.jsonl, at least one, each with the study's name."""
    path = folder / RUNS
    if not path.exists():
        raise DamagedError(f"{path} is missing: expected the stored runs; reproduce the study to make them")
    records = read_lines(path)
    if not records or any("study" not in record for record in records):
        raise DamagedError(f"{path} holds no runs of a study: reproduce the study to make them")
    return records


def _check(study: Study, records: list[Record], path: Path) -> None:
    """Raises DamagedError unless each record is of the run it names, once, and the study's grid is there."""
    if records[0]["study"] != study.name:
        raise DamagedError(f"{path} holds runs of study {records[0]['study']}, not of {study.name}")
    seen: set[str] = set()
    for number, record in enumerate(records, 1):
        try:
            identity = study.kind.from_json(record["experiment"]).identity
        except (KeyError, ValueError) as error:
            raise DamagedError(f"{path}, line {number} cannot be used ({error}): reproduce the study") from error
        if record.get("id") != identity:
            raise DamagedError(f"{path}, line {number}: the experiment was changed, its id is another's")
        if identity in seen:
            raise DamagedError(f"{path}, line {number}: the same run stands there twice")
        seen.add(identity)
    grid = [experiment.identity for experiment in study.grid(records[0].get("profile", "full"))]
    missing = len(set(grid) - seen)
    if missing:
        raise DamagedError(
            f"{path} lacks {missing} of the {len(grid)} runs of {study.name} as it is now: reproduce it again"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Running the grid


def _records(study: Study, grid: Sequence[Run], work: Path, workers: int, device: str) -> list[Record]:
    """A record for each run of a grid, in its order; what is missing is measured, after what it starts from."""
    finished = {run.identity: None if study.fresh else _finished(run, work) for run in grid}
    starts = [start for run in grid if finished[run.identity] is None and (start := _start(run)) is not None]
    if starts:
        _records(study, starts, work, workers, device)
    missing = list({run.identity: run for run in grid if finished[run.identity] is None}.values())
    for record in _measured(study, missing, work, workers, device, len(grid)):
        finished[record["id"]] = record
    return [record for record in finished.values() if record is not None]


def _start(run: Run) -> Run | None:
    """The run whose weights another starts with."""
    return getattr(run, "start", None)


def _finished(run: Run, work: Path) -> Record | None:
    path = work / run.identity / RESULT
    if not path.exists():
        return None
    record = read_json(path)
    if not isinstance(record, dict) or record.get("id") != run.identity:
        raise DamagedError(f"{path} is not the record of its run: delete {path.parent} to run it again")
    return record


class _Worker:
    """What a worker process keeps: where it reports its steps."""

    ticks: Any = None


def _run(measured: Callable[..., Record], run: Run, work: Path, device: str) -> Record:
    """One run in a worker: measured, stored, returned."""
    folder, start = work / run.identity, _start(run)
    options = {} if start is None else {"start": work / start.identity / "run"}
    record = measured(
        run, folder / "run", device, on_progress=lambda step, _: _Worker.ticks.put((run.identity, step)), **options
    )
    write_json(folder / RESULT, record)
    return record


def _start_worker(ticks: Any) -> None:
    """Prepares a worker: one thread, a place to report, and an end when its parent ends, be it killed.

    Nobody else would end it then, and a new start needs its folders.
    """
    torch.set_num_threads(1)
    _Worker.ticks = ticks
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def _children_ignore_interrupts() -> Iterator[None]:
    """Processes started in the block leave Ctrl-C to us, from their first instruction on."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may change signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _measured(study: Study, runs: Sequence[Run], work: Path, workers: int, device: str, total: int) -> Iterator[Record]:
    """Records as they are finished, by a pool of processes that ends with us, under one bar of all their work."""
    if not runs:
        return
    context = multiprocessing.get_context("spawn")
    ticks = context.Queue()
    pool = ProcessPoolExecutor(min(workers, len(runs)), context, _start_worker, (ticks,))
    with _children_ignore_interrupts():
        waiting: set[Future[Record]] = {pool.submit(_run, study.measure, run, work, device) for run in runs}
    with pool:
        steps = sum(run.work for run in runs)
        say = f"{len(runs)} of {total} runs to do"
        try:
            with tqdm(total=steps, desc=say, unit="step", unit_scale=True, mininterval=0.5, disable=None) as bar:
                reached: dict[str, int] = {}
                while waiting:
                    done, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                    _drain(ticks, reached, bar)
                    for future in done:
                        waiting.remove(future)
                        record = future.result()
                        bar.write(f"  {study.remark(record)}", file=sys.stderr)
                        yield record
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _drain(ticks: Any, reached: dict[str, int], bar: tqdm) -> None:
    """Moves the bar by what the workers reported."""
    while True:
        try:
            identity, step = ticks.get_nowait()
        except queue.Empty:
            return
        bar.update(step - reached.get(identity, 0))
        reached[identity] = step
