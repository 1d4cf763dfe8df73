"""Study: one table or figure. A grid of runs is measured, and everything shown is rebuilt from runs.jsonl alone.

A run is known by its identity: all studies and profiles share the finished ones, and an interrupted one is resumed.
What a run starts from is measured before it, in the grid or not. Runs and quick profiles are kept under results/runs/,
which git ignores; a full study writes results/NAME/, to be committed. Until it is whole, the records so far stand there
in unfinished.jsonl, so that it goes on where the store is not.
"""

import inspect
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tqdm import tqdm

from tinylatent.core.files import DamagedError, atomic, json_text, read_json, read_lines, write_json, write_text
from tinylatent.core.identity import checksum
from tinylatent.core.registry import PluginWarning, Registry, owner
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.launchers import Job, Launcher
from tinylatent.lab.launchers.launcher import stored_record
from tinylatent.lab.launchers.local import Local
from tinylatent.lab.run import Record, Run, read_record
from tinylatent.lab.tables import Table, provenance
from tinylatent.lab.unfinished import Unfinished
from tinylatent.lab.words import Words

Profile = Literal["quick", "full"]
RUNS, FINDINGS, PROVENANCE, STORE = "runs.jsonl", "findings.json", "provenance.json", "runs"


class StudyError(ValueError):
    """The code of a study failed; the message names the study, its package and the place."""


@dataclass(frozen=True)
class Study:
    """A named question with its runs and how to show them."""

    name: str
    question: str
    """What it asks, in one sentence."""
    grid: Callable[[Profile], Sequence[Any]]
    """The runs of a profile."""
    tables: Callable[[list[Any]], list[Table]]
    """The tables, from the records alone; the first is the result."""
    figure: Callable[[list[Any], Path], None]
    """Draws the figure into a file, from the records alone."""
    after: Callable[[Profile, list[Any]], Sequence[Any]] = lambda profile, records: ()
    """More runs, chosen by the records so far; called again until it returns no new one."""
    kind: type[Run] = Experiment
    """What its runs are."""


STUDIES: Registry[Study] = Registry(
    "tinylatent.studies", "study", named=True, expects="a Study", fits=lambda found: isinstance(found, Study)
)
"""Studies by name: this package's and any other's."""


@dataclass(frozen=True)
class Outcome:
    """Where a study's results are, its tables and its records."""

    tables: list[Table]
    files: dict[str, Path]
    records: list[Any]
    """The records they show."""


def reproduce(
    study: Study, profile: Profile, results: Path, launcher: Launcher | None = None, device: str = "cpu"
) -> Outcome:
    """Measures what is missing and rebuilds tables, findings, figure and provenance.

    Args:
        study: what to reproduce.
        profile: "quick" (minutes) or "full".
        results: the results folder.
        launcher: does the runs; two processes of this machine unless another is given.
        device: where the runs train.

    Raises:
        ValueError: unknown profile, no runs, or a run cannot be done.
        DamagedError: a stored file is damaged.
    """
    if profile not in ("quick", "full"):
        raise ValueError(f"unknown profile {profile!r}: expected quick or full")
    records, more = [], _asked(study, "list its runs", study.grid, profile)
    store, launcher = results / STORE, Local() if launcher is None else launcher
    target = store / profile / study.name if profile == "quick" else results / study.name
    so_far = Unfinished(target)
    if not more:
        raise ValueError(f"study {study.name} has no runs in profile {profile}")
    while more:
        records += measure_all(more, store, launcher, device, so_far)
        known = {record.id for record in records}
        after = _asked(study, "choose more runs", study.after, profile, records)
        more = [run for run in after if run.identity not in known]
    (target / PROVENANCE).unlink(missing_ok=True)  # it vouches for the runs before
    lines = (json_text({"study": study.name, "profile": profile, **record.to_json()}) for record in records)
    write_text(target / RUNS, "".join(line + "\n" for line in lines))
    so_far.remove()
    return rebuild(study, target)


def rebuild(study: Study, folder: Path) -> Outcome:
    """Tables, findings, figure and provenance from a folder's runs.jsonl.

    Raises:
        DamagedError: runs.jsonl is missing, damaged or not this study's.
        StudyError: the study's own code fails on these records.
    """
    records, runs = read_runs(study, folder), folder / RUNS
    tables, origin = _asked(study, f"make its tables from {runs}", study.tables, records), provenance(records, runs)
    csvs = ["table.csv", *(f"table-{number}.csv" for number in range(2, len(tables) + 1))]
    files = {name: folder / name for name in (*csvs, "table.md", FINDINGS, "figure.png", PROVENANCE, RUNS)}
    with tempfile.TemporaryDirectory() as aside, atomic(files["figure.png"]) as temporary:
        drawn = Path(aside) / "figure.png"  # formats go by the suffix
        _asked(study, f"draw its figure from {runs}", study.figure, records, drawn)
        temporary.write_bytes(drawn.read_bytes())
    for name, table in zip(csvs, tables, strict=True):
        write_text(files[name], table.csv())
    write_text(files["table.md"], f"{study.question}\n\n" + "\n".join(table.markdown() for table in tables))
    found = [
        {"table": name, **each.to_json()} for name, table in zip(csvs, tables, strict=True) for each in table.findings
    ]
    write_json(files[FINDINGS], {"study": study.name, "findings": found})
    write_json(files[PROVENANCE], origin)
    return Outcome(tables, files, records)


def _asked(study: Study, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """What a study's own code returns, lists for other sequences.

    Raises:
        StudyError: it failed, for whatever reason but a damaged file or one that the system refuses.
    """
    try:
        found = call(*arguments)
        return [*found] if isinstance(found, (tuple, Iterator)) else found
    except (DamagedError, StudyError, OSError):
        raise
    except Exception as error:
        whose = f" of {owner(STUDIES.points[study.name])}" if study.name in STUDIES else ""
        raise StudyError(
            f"the study {study.name!r}{whose} cannot {what}: {_place(error, call)} raised {type(error).__name__}: "
            f"{error}; mend it, or restore what was edited (TINYLATENT_TRACEBACK=1 shows the traceback)"
        ) from error


def _place(error: Exception, call: Callable[..., Any]) -> str:
    """File and line where an error arose: in the folder of the function that was called, if it is on the way."""
    frames = traceback.extract_tb(error.__traceback__)
    home = Path(inspect.getsourcefile(inspect.unwrap(call)) or "") if inspect.isfunction(call) else Path()
    frame = next((each for each in reversed(frames) if Path(each.filename).parent == home.parent), frames[-1])
    return f"{frame.filename}:{frame.lineno}"


def _of_job(error: Exception) -> str:
    """An error of a job in one line; one that no user can have caused tells where it arose, also in another process."""
    if isinstance(error, (ValueError, OSError)):
        return str(error)
    told = "".join(traceback.format_exception(error))  # a worker's traceback is the cause
    places = re.findall(r'File "(.+)", line (\d+)', told.partition("\n\nThe above exception")[0])
    where = " at {}:{}".format(*places[-1]) if places else ""
    return f"{type(error).__name__}: {error}{where}"


def kept(results: Path) -> list[Path]:
    """Every folder of stored results: one with a runs.jsonl."""
    return sorted(path.parent for path in results.glob(f"*/{RUNS}"))


def study_of(folder: Path) -> Study:
    """The study that a folder's runs belong to.

    Raises:
        DamagedError: the runs are damaged, or of a study that is not registered.
    """
    name = stored_lines(folder)[0]["study"]
    if name not in STUDIES:
        raise DamagedError(f"{folder / RUNS} is of an unknown study {name}: expected one of {', '.join(STUDIES)}")
    return STUDIES[name]


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_runs(study: Study, folder: Path) -> list[Any]:
    """The records of a folder's runs.jsonl, in today's form: each of the run it names, once, and none missing.

    A method that has no record at all is left out, with a warning: it was installed after these runs.

    Raises:
        DamagedError: something is missing, damaged or another study's.
    """
    lines, path = stored_lines(folder), folder / RUNS
    others = [line["study"] for line in lines if line["study"] != study.name]
    if others:
        raise DamagedError(f"{path} holds runs of study {others[0]}, not of {study.name}")
    records, runs = [], {}
    for number, line in enumerate(lines, 1):
        try:
            record = read_record(study.kind, line)
            run = study.kind.from_json(record.run)
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"{path}, line {number} cannot be used ({error}): reproduce the study") from error
        if run.identity in runs:
            raise DamagedError(f"{path}, line {number}: the same run stands there twice")
        runs[run.identity] = run
        records.append(record)
    _check_complete(study, lines[0]["profile"], records, runs, path)
    return records


def _check_complete(study: Study, profile: Profile, records: list[Any], runs: dict[str, Run], path: Path) -> None:
    """Raises DamagedError if a run of a study is missing, or warns if all runs of a method are."""
    grid = _asked(study, "list its runs", study.grid, profile)
    after = _asked(study, "choose more runs", study.after, profile, records)
    wanted = {run.identity: run for run in [*grid, *after]}
    absent = [run for identity, run in wanted.items() if identity not in runs]
    known = {_method(run) for run in runs.values()}
    missing = [run for run in absent if _method(run) in known]
    if missing:
        raise DamagedError(
            f"{path} lacks {len(missing)} of the {len(wanted)} runs of {study.name} as it is now, such as "
            f"{missing[0].label}: reproduce it again"
        )
    if absent:
        names = ", ".join(sorted({_method(run) for run in absent}))
        warnings.warn(f"left out: {path} has no runs of {names}; reproduce the study to add them", PluginWarning, 3)


def _method(run: Run) -> str:
    """The name of an experiment's method; empty for runs of other kinds."""
    return run.method.name if isinstance(run, Experiment) else ""


def stored_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a folder's runs.jsonl as JSON: at least one, all of one profile, each with the name of its study.

    Raises:
        DamagedError: the file is missing or damaged, or not the one that provenance.json vouches for.
    """
    path = folder / RUNS
    if not path.exists():
        raise DamagedError(f"{path} is missing: expected the stored runs; reproduce the study to make them")
    lines, known = read_lines(path), path.with_name(PROVENANCE)
    if not lines or any(
        not isinstance(line.get("study"), str) or line.get("profile") not in get_args(Profile) for line in lines
    ):
        raise DamagedError(f"{path} holds no runs of a study: reproduce the study to make them")
    if len({line["profile"] for line in lines}) > 1:
        raise DamagedError(f"{path} mixes runs of both profiles: reproduce the study to make them again")
    vouched = read_json(known) if known.exists() else {"runs_checksum": checksum(path.read_bytes())}
    if not isinstance(vouched, dict) or vouched.get("runs_checksum") != checksum(path.read_bytes()):
        raise DamagedError(
            f"{path} is not the file that {known.name} vouches for: restore it, or delete {known} to accept the change"
        )
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# Running the grid


def measure_all(
    grid: Sequence[Run],
    store: Path,
    launcher: Launcher,
    device: str = "cpu",
    so_far: Unfinished | None = None,
) -> list[Any]:
    """Measures the runs that a store lacks, each after what it starts from, and returns every record.

    Args:
        grid: the runs.
        store: folder of a folder for each run.
        launcher: does the runs.
        device: where they compute.
        so_far: records that need no store, to which those of the grid are added as they are made.
    """
    runs = {run.identity: run for run in grid}
    found = {key: None if run.always else stored_record(run, store / key) for key, run in runs.items()}
    if so_far is not None:
        found |= {key: so_far.record(runs[key]) for key, record in found.items() if record is None}
        for record in filter(None, found.values()):
            so_far.add(record)
    starts = [run.starts_from for key, run in runs.items() if found[key] is None and run.starts_from is not None]
    if starts:
        before = measure_all(starts, store, launcher, device)
        found |= {record.id: record for record in before if record.id in found}
    missing = [_job(run, store, device) for key, run in runs.items() if found[key] is None]
    for record in _done(missing, launcher, len(runs)):
        found[record.id] = record
        if so_far is not None and not runs[record.id].always:
            so_far.add(record)
    return [*found.values()]


def _job(run: Run, store: Path, device: str) -> Job:
    """A run as a job in the store."""
    start = run.starts_from
    return Job(run, store / run.identity, device, None if start is None else store / start.identity)


def _done(jobs: Sequence[Job], launcher: Launcher, total: int) -> Iterator[Record]:
    """Records as their jobs end, under one bar of all their work; it is read from their own metrics files.

    Raises:
        ValueError: some jobs failed; all others were done first.
    """
    if not jobs:
        return
    for job in jobs:
        if job.run.always:
            job.forget()
    units, say = sum(job.run.work for job in jobs), f"{len(jobs)} of {total} runs to do"
    waiting, failed = {job.run.identity: job for job in jobs}, {}
    with (
        launcher.submit(jobs) as submitted,
        tqdm(total=units, desc=say, unit="step", unit_scale=True, mininterval=0.5, disable=None) as bar,
    ):
        words = Words(units, say) if bar.disable else None
        while waiting:
            for job, error in submitted.ended(0.5):
                del waiting[job.run.identity]
                record = job.record() if error is None else None
                if record is None:
                    failed[job.run.label] = f"no record in {job.folder}" if error is None else _of_job(error)
                    bar.write(f"  failed: {job.run.label}: {failed[job.run.label]}", file=sys.stderr)
                    continue
                bar.write(f"  {record.summary()}", file=sys.stderr)
                yield record
            ended = sum(job.run.work for job in jobs if job.run.identity not in waiting)
            done = ended + sum(min(job.done, job.run.work) for job in waiting.values())
            bar.update(done - bar.n)
            if words is not None:
                words.tell(done)
    if failed:
        label, reason = next(iter(failed.items()))
        more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise ValueError(
            f"{len(failed)} of {len(jobs)} runs failed: {label} ({reason}){more}; the others are kept in the store"
        )
