"""Stored runs by name: listed, found, shown, compared and deleted; and what is going on at this moment."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from tinylatent.cli.finished import remarks
from tinylatent.core.environment import environment
from tinylatent.core.files import json_text
from tinylatent.core.registry import owner
from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.names import short, written
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.store import (
    Stored,
    check_deletion,
    compare,
    delete,
    find,
    pick,
    pick_one,
    stored_runs,
    study_progress,
)
from tinylatent.lab.studies.compare import points
from tinylatent.lab.study import STORE, STUDIES, Profile

Word = tyro.conf.Positional[str]
Words = tyro.conf.Positional[tuple[str, ...]]
OUT = Path("runs")
"""Where the README keeps runs, by --out."""
PROFILES: tuple[Profile, ...] = ("quick", "full")
TRAINING = ("id", "name", "steps", "loss", "steps/s", "minutes left")
STUDY = ("study", "quick", "table", "full", "table")


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where runs are."""

    results: Path = Path("results")
    """Folder of results, whose runs/ is the store."""
    folder: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """A folder elsewhere, of one run, as `tinylatent run --out` writes, or of several; may be given again. By default
    runs/, where there is one."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where to look beside the store."""
        return self.folder or ((OUT,) if OUT.is_dir() else ())

    def stored(self, names: Sequence[str] = ()) -> list[Stored]:
        """Every run there is, those in the folders among names included."""
        return stored_runs(self.results, (*self.folders, *(Path(name) for name in names if Path(name).is_dir())))


@dataclass(frozen=True, kw_only=True)
class List(Where):
    """Every stored run."""

    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        """Prints a line for each."""
        runs = self.stored()
        if not runs and not self.json:
            print(f"{self.results / STORE} holds no run; --results PATH and --folder PATH look elsewhere")
            return
        _print_runs(runs, self.json)


@dataclass(frozen=True, kw_only=True)
class Find(Where):
    """The stored runs that all words fit. Exit status 1 if there is none."""

    words: Words
    """Each the beginning of an id, a part of the name (mnns/cot2, cot2, seed=3), a state (stopped), or a setting
    (training.learning_rate=0.01)."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        """Prints a line for each.

        Raises:
            SystemExit: with 1, if there is none.
        """
        if not self.words:
            raise ValueError("find needs words such as mnns/cot2 or seed=3; `tinylatent runs list` lists every run")
        found = find(self.stored(), self.words)
        if found or self.json:
            _print_runs(found, self.json)
        if not found:
            print(f"tinylatent: no run fits {' '.join(self.words)}", file=sys.stderr)
            raise SystemExit(1)


@dataclass(frozen=True, kw_only=True)
class Show(Where):
    """One stored run with all its settings, defaults included."""

    run_named: Annotated[Word, tyro.conf.arg(metavar="ID|NAME")]
    """Which: 4 or more digits of its id, its name, or its folder."""
    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> None:
        """Prints it."""
        stored = pick_one(self.stored([self.run_named]), self.run_named)
        if self.json:
            print(json_text({**_values(stored), "settings": stored.settings}, indent=2))
            return
        if isinstance(stored.record, ExperimentRecord):
            for remark in remarks(stored.record, environment(), stored.folder):
                print(remark, file=sys.stderr)
        facts = {**_cells(stored), "folder": str(stored.folder), "unreadable": stored.reason}
        settings = {name: written(value) for name, value in stored.settings.items()}
        print(_aligned([(name, text) for name, text in facts.items() if text]))
        if settings:
            print()
            print(_aligned([*settings.items()]))


@dataclass(frozen=True, kw_only=True)
class Compare(Where):
    """Two or more stored runs side by side: settings that differ, accuracies, and differences from the first."""

    runs: Annotated[Words, tyro.conf.arg(metavar="ID|NAME ID|NAME ...")]
    """Which: 4 or more digits of an id, a name in quotes, or a folder."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        """Prints a column for each."""
        stored = self.stored(self.runs)
        runs = [pick_one(stored, name) for name in self.runs]
        compared = compare(runs)
        if self.json:
            values = [
                {**_values(each), "majority_baseline": _baseline(each), "minus_first": _ends(gap)}
                for each, gap in zip(runs, compared.gaps, strict=True)
            ]
            print(json_text({"settings": compared.differing, "runs": values}, indent=2))
            return
        cells = [_cells(each) for each in runs]
        lines: list[tuple[str, ...]] = [(name, *(short(each[name]) for each in cells)) for name in ("id", "name")]
        lines += [(name, *(value or "-" for value in values)) for name, values in compared.differing.items()]
        lines += [
            (name, *(each[name] or "-" for each in cells)) for name in ("state", "steps", "accuracy %", "train %")
        ]
        lines.append(("majority baseline %", *(_percent(_baseline(each)) or "-" for each in runs)))
        lines.append(("minus the first", *("-" if gap is None else points(gap) for gap in compared.gaps)))
        print(_aligned(lines))
        if any(
            gap is None and each.accuracy is not None for each, gap in zip(runs[1:], compared.gaps[1:], strict=True)
        ):
            print("\nno difference is given where a run was not validated on the very problems of the first")


@dataclass(frozen=True, kw_only=True)
class Delete(Where):
    """Delete stored runs for good; without --yes it only says which, with exit status 2."""

    runs: Annotated[Words, tyro.conf.arg(metavar="ID|NAME ...")]
    """Which: 4 or more digits of an id, a name in quotes, or a folder. A part of a name stands for all that it fits."""
    yes: bool = False
    """Do it."""
    force: bool = False
    """Also delete runs that others start from."""

    def run(self) -> None:
        """Says what is deleted and deletes it, or refuses to touch anything.

        Raises:
            ValueError: --yes is missing, or a run must not be deleted.
        """
        stored = self.stored(self.runs)
        if not self.runs:
            raise ValueError("delete needs the id or name of a run; `tinylatent runs list` shows them")
        chosen = [*{each.folder: each for name in self.runs for each in pick(stored, name)}.values()]
        check_deletion(chosen, stored, self.force)
        for each in chosen:
            said = f"{each.identity}  {each.name}, {each.state}, {_bytes(each.size)}, {each.folder}"
            if self.yes:
                delete(each)
            print(f"{'deleted' if self.yes else 'would delete'}  {said}")
        if not self.yes:
            what = "this run" if len(chosen) == 1 else f"these {len(chosen)} runs"
            raise ValueError(f"nothing was deleted: add --yes to delete {what}, of {len(stored)} there are")


@dataclass(frozen=True)
class Runs:
    """Stored runs by name: list, find, show, compare, delete."""

    action: Annotated[
        Annotated[List, tyro.conf.subcommand("list", prefix_name=False)]
        | Annotated[Find, tyro.conf.subcommand("find", prefix_name=False)]
        | Annotated[Show, tyro.conf.subcommand("show", prefix_name=False)]
        | Annotated[Compare, tyro.conf.subcommand("compare", prefix_name=False)]
        | Annotated[Delete, tyro.conf.subcommand("delete", prefix_name=False)],
        tyro.conf.arg(name=""),
    ]
    """What to do with them."""

    def run(self) -> None:
        """Does it."""
        self.action.run()


@dataclass(frozen=True, kw_only=True)
class Status(Where):
    """What is being trained at this moment, how far the studies are, and the environment."""

    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> None:
        """Prints it."""
        training = [_pace(each) for each in stored_runs(self.results, self.folders, only_training=True)]
        studies = [*self._studies()]
        where = {**environment(), "cuda": _cuda()}
        if self.json:
            print(json_text({"training": training, "studies": studies, "environment": where}, indent=2))
            return
        print("in training" if training else "in training: nothing")
        if training:
            print(_aligned([TRAINING, *(_of_training(each) for each in training)]))
        print("\nstudies: finished runs of the grid, and runs behind the table")
        print(_aligned([STUDY, *(_of_study(each) for each in studies)]))
        print("\nenvironment")
        print(_aligned([*where.items()]))

    def _studies(self) -> Iterator[dict[str, Any]]:
        """How far the studies are; one whose grid cannot be made is left out with a PluginWarning."""
        for name, study in STUDIES.loaded().items():
            try:
                found = [vars(study_progress(study, profile, self.results)) for profile in PROFILES]
            except Exception as error:  # it is another package's code
                whose = owner(STUDIES.points[name])
                STUDIES.leave_out(
                    {name: f"the study {name!r} of {whose} has no grid ({type(error).__name__}: {error})"}
                )
            else:
                yield {"study": name, **dict(zip(PROFILES, found, strict=True))}


def _of_training(progress: dict[str, Any]) -> tuple[str, ...]:
    """What is told of a run in training, as text."""
    loss, pace, left = (progress[name] for name in ("loss", "steps_per_s", "seconds_left"))
    numbers: list[str] = [
        "" if value is None else f"{value / scale:{spec}}"
        for value, scale, spec in ((loss, 1, ".4f"), (pace, 1, ".1f"), (left, 60, ".1f"))
    ]
    return progress["id"], short(progress["name"]), f"{progress['done']}/{progress['work'] or '?'}", *numbers


def _of_study(progress: dict[str, Any]) -> list[str]:
    """What is told of a study, as text."""
    cells = [progress["study"]]
    for profile in PROFILES:
        found = progress[profile]
        written = "damaged" if found["written"] is None else str(found["written"] or "-")
        cells += [f"{found['finished']}/{found['grid']}", written]
    return cells


def _pace(stored: Stored) -> dict[str, Any]:
    """How far and how fast a run in training is."""
    line, run = stored.last_metrics(), stored.run
    pace = left = None
    if isinstance(run, Experiment) and line.get("problems_per_s"):
        pace = line["problems_per_s"] / run.training.batch_size
        left = (run.work - stored.done) / pace
    return {
        "id": stored.identity,
        "name": stored.name,
        "folder": str(stored.folder),
        "done": stored.done,
        "work": stored.work,
        "loss": line.get("loss"),
        "steps_per_s": pace,
        "seconds_left": left,
    }


def _cuda() -> str:
    """The GPU and the CUDA that torch was built with, or none."""
    if not torch.cuda.is_available():
        return "none"
    return f"{torch.version.cuda}, {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"


# ---------------------------------------------------------------------------------------------------------------------
# Words


def _print_runs(runs: Sequence[Stored], as_json: bool) -> None:
    if as_json:
        print(json_text([_values(each) for each in runs], indent=2))
        return
    cells = [{**_cells(each), "name": short(each.name)} for each in runs]
    print(_aligned([tuple(cells[0]), *(tuple(each.values()) for each in cells)]))
    for each in runs:
        if each.reason:
            print(f"unreadable: {each.folder}: {each.reason}")


def _values(stored: Stored) -> dict[str, Any]:
    """What a list tells of a run, as plain values; accuracies are shares."""
    return {
        "id": stored.identity,
        "name": stored.name,
        "state": stored.state,
        "done": stored.done,
        "work": stored.work,
        "accuracy": _ends(stored.accuracy),
        "train": stored.train_accuracy,
        "changed": datetime.fromtimestamp(stored.changed).astimezone().isoformat(timespec="seconds"),
        "bytes": stored.size,
        "folder": str(stored.folder),
        "reason": stored.reason,
    }


def _cells(stored: Stored) -> dict[str, str]:
    """The same as text; accuracies are percent."""
    found, done = stored.accuracy, stored.done
    accuracy = "" if found is None else f"{100 * found.value:.2f} [{100 * found.low:.2f}, {100 * found.high:.2f}]"
    return {
        "id": stored.identity,
        "name": stored.name,
        "state": stored.state,
        "steps": str(done or "") if stored.work is None else f"{done}/{stored.work}",
        "accuracy %": accuracy,
        "train %": _percent(stored.train_accuracy),
        "when": datetime.fromtimestamp(stored.changed).strftime("%Y-%m-%d %H:%M"),
        "size": _bytes(stored.size),
    }


def _baseline(stored: Stored) -> float | None:
    return stored.record.majority_baseline if isinstance(stored.record, ExperimentRecord) else None


def _ends(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else {"value": interval.value, "low": interval.low, "high": interval.high}


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _bytes(size: int) -> str:
    """A number of bytes in a readable unit."""
    steps = min(3, (len(str(size)) - 1) // 3)
    return f"{size / 1000**steps:.{steps // 3}f} {('B', 'kB', 'MB', 'GB')[steps]}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as columns; columns that are empty in all lines but the first are left out."""
    kept = [i for i in range(len(lines[0])) if any(line[i] for line in lines[1:]) or len(lines) == 1]
    widths = [max(len(line[i]) for line in lines) for i in kept]
    rows = ("  ".join(line[i].ljust(width) for i, width in zip(kept, widths, strict=True)) for line in lines)
    return "\n".join(row.rstrip() for row in rows)
