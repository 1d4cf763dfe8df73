"""The store of runs: what lies under results/runs, named by what it is, and found, compared and deleted by that name.

A run's name is the nearest recipe and what differs from it, such as "mnns/cot2 seed=3 training.steps=900". A folder
that cannot be read is listed with the reason; it keeps nobody from the others.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tinylatent.core.files import DamagedError, is_locked, locked, read_json
from tinylatent.evaluation.statistics import Interval, accuracy_interval, paired_difference
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.launchers.launcher import RESULT, read_result
from tinylatent.lab.names import Settings, recipe_settings, run_name, settings, short, written
from tinylatent.lab.records import DEFAULT, ExperimentRecord
from tinylatent.lab.run import Record, Run, last_line, read_record
from tinylatent.lab.study import RUNS, STORE, STUDIES, Profile, Study, stored_lines
from tinylatent.lab.unfinished import Unfinished
from tinylatent.training.checkpoints import CONFIG, METRICS

State = Literal["finished", "training", "stopped", "unreadable"]
IDENTITY = re.compile(r"[0-9a-f]{12}")
PREFIX = re.compile(r"[0-9a-f]{4,12}")
MAX_LISTED = 10
"""Runs that an error lists."""
FIRST = "run"
"""Subfolder of a stored run where the first edition kept all but its record."""
DELETED = ".tinylatent-deleted-"
"""How the folder of a run is called while it is being removed."""


@dataclass(frozen=True, eq=False)
class Stored:
    """A run in a folder."""

    folder: Path
    name: str
    """The nearest recipe and what differs; the folder's name where the run cannot be read."""
    run: Run | None = None
    """None where it cannot be read."""
    record: Record | None = None
    """What it left when it was finished."""
    is_training: bool = False
    """Whether a process trains it at this moment."""
    reason: str = ""
    """Why it cannot be read."""

    @property
    def state(self) -> State:
        """Finished; in training at this moment; stopped: begun, and nobody trains it; or unreadable."""
        if self.is_training:
            return "training"
        if self.reason:
            return "unreadable"
        return "stopped" if self.record is None else "finished"

    @property
    def identity(self) -> str:
        """That of its run today; the folder's name where the run cannot be read."""
        return self.folder.name if self.run is None else self.run.identity

    @property
    def done(self) -> int:
        """Units of work so far."""
        if self.run is None:
            return int(self.last_metrics().get("step", 0))
        finished = self.record is not None and getattr(self.record, "stopped", None) is None
        return self.run.work if finished else self.run.done(_files_of(self.folder))

    @property
    def work(self) -> int | None:
        """Units of work in all; None where the run cannot be read."""
        return None if self.run is None else self.run.work

    @cached_property
    def settings(self) -> Settings:
        """Every setting, defaults included; empty where the run cannot be read."""
        return {} if self.run is None else settings(self.run)

    @cached_property
    def accuracy(self) -> Interval | None:
        """Accuracy on the validation part, where it was measured."""
        if not isinstance(self.record, ExperimentRecord):
            return None
        found = self.record.evaluations[DEFAULT]
        return found.accuracy or accuracy_interval([found.right], [self.record.total])

    @property
    def train_accuracy(self) -> float | None:
        """Share of right answers on the training part, where it was measured."""
        answered = self.record.train if isinstance(self.record, ExperimentRecord) else None
        return None if answered is None else sum(answered.right) / sum(answered.total)

    @property
    def changed(self) -> float:
        """When it was last written to, in seconds since 1970."""
        paths = [self.folder / RESULT, *(_files_of(self.folder) / name for name in (METRICS, CONFIG))]
        written = [path for path in paths if os.path.exists(path)] or [self.folder]
        return max((path.stat().st_mtime for path in written), default=0.0)

    @property
    def size(self) -> int:
        """Bytes of its files; what links point to does not count."""
        total = 0
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):  # a checkpoint was replaced meanwhile
                    total += os.lstat(os.path.join(folder, name)).st_size
        return total

    def last_metrics(self) -> dict[str, Any]:
        """The last whole line of its metrics.jsonl; empty if there is none."""
        return last_line(self.metrics)

    @property
    def metrics(self) -> Path:
        """Its metrics.jsonl, which need not be there."""
        return _files_of(self.folder) / METRICS


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def stored_runs(results: Path, folders: Sequence[Path] = (), only_training: bool = False) -> list[Stored]:
    """Every run of a results folder's store and of other folders, sorted by name, unreadable ones last.

    Args:
        results: the results folder.
        folders: folders of runs, as `tinylatent run --out` writes, or folders that hold such folders.
        only_training: whether to read only what is being trained at this moment.

    Raises:
        ValueError: one of the folders is neither.
    """
    found = _runs_in(results / STORE)
    for folder in folders:
        own = folder if folder.name.strip(".") else Path(os.path.abspath(folder))
        inside = [own] if _is_run(own) else _runs_in(own)
        if not inside:
            raise ValueError(
                f"{folder} holds no run: expected a folder with {CONFIG}, as `tinylatent run --out` writes"
            )
        found += inside
    once, known = {path.resolve(): path for path in reversed(found)}, recipe_settings()
    chosen = (path for path in once.values() if not only_training or _is_training(path))
    return sorted((_stored(path, known) for path in chosen), key=_order)


def _runs_in(folder: Path) -> list[Path]:
    """The folders of runs in a folder, those that only look like one by their name included."""
    paths = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return [path for path in paths if path.name[0] != "." and (IDENTITY.fullmatch(path.name) or _is_run(path))]


def _is_run(path: Path) -> bool:
    return any(os.path.isfile(path / name) for name in (CONFIG, RESULT))


def _files_of(folder: Path) -> Path:
    """Where a run's config, metrics and checkpoints are: its folder, or the subfolder of the first edition."""
    return folder if os.path.exists(folder / CONFIG) or not _is_run(folder / FIRST) else folder / FIRST


def _is_training(folder: Path) -> bool:
    """Whether a process trains it at this moment."""
    return is_locked(folder) or is_locked(_files_of(folder))


def _stored(folder: Path, known: Mapping[str, Settings]) -> Stored:
    """The run in a folder, or why it cannot be read."""
    is_training = _is_training(folder)
    try:
        run, record = _read(folder)
        if run is not None:
            found = Stored(folder, run_name(run, known), run, record, is_training)
            _ = found.accuracy, found.train_accuracy  # a record that was changed may lack what they need
            return found
        begun = is_training or os.path.exists(folder / METRICS)  # other kinds are told by their record
        reason = "" if begun else f"it holds neither {CONFIG} nor {RESULT}: delete it"
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
    return Stored(folder, folder.name, is_training=is_training, reason=reason)


def _read(folder: Path) -> tuple[Run | None, Record | None]:
    """The run of a folder and its record, as far as they are there.

    Raises:
        ValueError: one cannot be read, or they are of different runs.
    """
    run: Run | None = None
    record: Record | None = None
    written_ids: set[str] = set()
    config = _files_of(folder) / CONFIG
    if config.exists():
        values = read_json(config)
        run = Experiment.from_json(values)
        written_ids.add(Experiment.written_identity(values))
    if (folder / RESULT).exists():
        kind, record = _recorded(read_result(folder / RESULT))
        written_ids.add(record.id)
        of = kind.from_json(record.run)
        if run is not None and of != run:
            raise ValueError(f"its {RESULT} is of another run than its {CONFIG}: delete the one that is wrong")
        run = of
    if run is not None and IDENTITY.fullmatch(folder.name) and folder.name not in {run.identity, *written_ids}:
        raise ValueError(f"it holds the run {run.identity}: rename or delete it")
    return run, record


def _recorded(values: Any) -> tuple[type[Run], Record]:
    """The kind of a stored record, which it does not say itself, and the record."""
    try:
        return Experiment, read_record(Experiment, values)
    except ValueError as error:
        ours = values.get("run", values.get("experiment")) if isinstance(values, dict) else None
        if not isinstance(ours, dict) or "method" in ours:
            raise
        for kind in dict.fromkeys(study.kind for study in STUDIES.loaded().values()):
            with contextlib.suppress(ValueError):
                return kind, read_record(kind, values)
        raise ValueError(f"its {RESULT} is of no kind of run that is installed") from error


def _order(stored: Stored) -> tuple[Any, ...]:
    """Sorts by name, numbers by their size."""
    parts = re.split(r"(\d+)", stored.name)
    return stored.run is None, [int(part) if part.isdecimal() else part for part in parts], str(stored.folder)


# ---------------------------------------------------------------------------------------------------------------------
# Finding


def find(runs: Sequence[Stored], words: Iterable[str]) -> list[Stored]:
    """The runs that every word fits.

    A word is the beginning of an id (4 digits or more), a part of the name such as mnns/cot2, cot2 or seed=3, a state,
    or a setting such as training.learning_rate=0.01.

    Raises:
        ValueError: a word asks for a setting that no run has.
    """
    found = list(runs)
    for word in words:
        found = [run for run in found if _fits(run, word)]
        if not found:
            _check_setting(runs, word)
    return found


def _fits(stored: Stored, word: str) -> bool:
    recipe, *others = stored.name.split(" ")
    if word in (stored.state, stored.identity, recipe, *recipe.split("/"), *others):
        return True
    if PREFIX.fullmatch(word) and any(known.startswith(word) for known in (stored.identity, stored.folder.name)):
        return True
    name, _, value = word.partition("=")
    if name not in stored.settings:
        return False
    ours = stored.settings[name]
    if isinstance(ours, (int, float)) and not isinstance(ours, bool):
        with contextlib.suppress(ValueError):
            return float(value) == ours
    return written(ours) == value


def _check_setting(runs: Sequence[Stored], word: str) -> None:
    """Raises ValueError if a word asks for a setting that no run has."""
    name, is_setting, _ = word.partition("=")
    known = {name for run in runs for name in run.settings} | {"seed", "start"}
    if is_setting and runs and name not in known:
        part = name.partition(".")[0] + "."
        near = sorted(setting for setting in known if setting.startswith(part)) or ["seed", "training.learning_rate"]
        raise ValueError(f"no run has a setting {name!r}: expected one such as {', '.join(near)}")


def pick(runs: Sequence[Stored], name: str) -> list[Stored]:
    """The runs of a name, an id or a folder: that very one if there is one, else all that its words fit.

    Raises:
        ValueError: there is none.
    """
    folder = Path(name).resolve() if name and Path(name).is_dir() else None
    exact = [run for run in runs if name in (run.name, run.identity) or run.folder.resolve() == folder]
    found = exact or (find(runs, name.split()) if name.split() else [])
    if not found:
        raise ValueError(
            f"no run fits {name!r}: expected 4 or more digits of an id, or a name; `tinylatent runs list` shows them"
        )
    return found


def pick_one(runs: Sequence[Stored], name: str) -> Stored:
    """The run of a name, an id or a folder.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = pick(runs, name)
    if len(found) > 1:
        several = ", ".join(f"{run.folder} ({short(run.name)})" for run in found[:MAX_LISTED])
        more = f" and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
        raise ValueError(
            f"{name!r} names {len(found)} runs: {several}{more}; give an id, or more of the name in quotes"
        )
    return found[0]


# ---------------------------------------------------------------------------------------------------------------------
# Comparing


@dataclass(frozen=True)
class Compared:
    """Runs side by side."""

    runs: Sequence[Stored]
    differing: dict[str, list[str | None]]
    """Settings that are not the same in all, with each run's value; None where it has no such setting."""
    gaps: list[Interval | None]
    """Accuracy of each run minus that of the first; None where it was not measured on the same keys."""


def compare(runs: Sequence[Stored]) -> Compared:
    """Two or more runs side by side.

    Raises:
        ValueError: fewer than two, one twice, or one that cannot be read.
    """
    if len(runs) < 2:
        raise ValueError("compare needs two or more runs: name them by id, name or folder")
    folders = [run.folder.resolve() for run in runs]
    for number, stored in enumerate(runs):
        if folders[number] in folders[:number]:
            raise ValueError(f"{stored.folder} is named twice: expected two or more different runs")
    for stored in runs:
        if stored.run is None:
            why = stored.reason or "what it is stands in no file yet"
            raise ValueError(f"{stored.folder} cannot be compared: {why}")
    names = dict.fromkeys(name for stored in runs for name in stored.settings)
    values = {name: [stored.settings.get(name) for stored in runs] for name in names}
    differing = {
        name: [None if name not in run.settings else written(run.settings[name]) for run in runs]
        for name, found in values.items()
        if any(value != found[0] for value in found)
    }
    return Compared(runs, differing, [None, *(_gap(run.record, runs[0].record) for run in runs[1:])])


def _gap(ours: Record | None, theirs: Record | None) -> Interval | None:
    """The paired difference of two records, where they have the same keys."""
    if not isinstance(ours, ExperimentRecord) or not isinstance(theirs, ExperimentRecord):
        return None
    if (ours.keys, ours.total) != (theirs.keys, theirs.total):
        return None
    right, other = ([record.evaluations[DEFAULT].right] for record in (ours, theirs))
    return paired_difference(right, other, [ours.total])


# ---------------------------------------------------------------------------------------------------------------------
# Deleting


def check_deletion(chosen: Sequence[Stored], runs: Sequence[Stored], force: bool = False) -> None:
    """Refuses what must not be deleted.

    Args:
        chosen: what to delete.
        runs: everything there is.
        force: whether runs that others start from may be deleted too.

    Raises:
        ValueError: one is being trained, is a link, or a run that is kept starts from it.
    """
    gone = {run.folder for run in chosen}
    for run in chosen:
        if _is_training(run.folder):
            raise ValueError(f"{run.folder} ({short(run.name)}) is being trained: stop that first")
        if run.folder.is_symlink():
            raise ValueError(f"{run.folder} is a link: remove it by hand; what it points to is not in the store")
        for other in runs:
            start = None if other.run is None else other.run.starts_from
            if not force and other.folder not in gone and start is not None and start.identity == run.identity:
                raise ValueError(
                    f"{other.identity} ({short(other.name)}) starts from {run.identity} ({short(run.name)}): "
                    "delete both, or use --force"
                )


def delete(stored: Stored) -> None:
    """Deletes a run's folder: it is renamed at once and then removed, so that no half run is ever found.

    What a kill left of earlier ones beside it is removed as well. Links are removed, never what they point to.

    Raises:
        ValueError: the run is being trained.
        OSError: a file cannot be removed.
    """
    folder = stored.folder.absolute()
    hidden = folder.with_name(DELETED + folder.name)
    for left in folder.parent.glob(f"{DELETED}*"):
        shutil.rmtree(left, ignore_errors=True)
    with locked(folder):
        folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)  # another process may be removing what it takes for a leftover
        if hidden.exists():
            shutil.rmtree(hidden)


# ---------------------------------------------------------------------------------------------------------------------
# How far studies are


@dataclass(frozen=True)
class StudyProgress:
    """How far one profile of a study is."""

    finished: int
    """Runs of its grid that are in the store, finished."""
    grid: int
    """Runs of its grid; a study may choose more once these are done."""
    written: int | None
    """Runs its table was made of; 0 where there is none, None where its runs.jsonl is damaged."""


def study_progress(study: Study, profile: Profile, results: Path) -> StudyProgress:
    """How far a profile of a study is, counted from the store and from what it wrote."""
    grid, store = study.grid(profile), results / STORE
    folder = (store / profile if profile == "quick" else results) / study.name
    try:
        so_far = Unfinished(folder).identities
    except DamagedError:
        so_far = set()
    finished = sum(run.identity in so_far or (store / run.identity / RESULT).is_file() for run in grid)
    try:
        written = len(stored_lines(folder)) if (folder / RUNS).is_file() else 0
    except DamagedError:
        written = None
    return StudyProgress(finished, len(grid), written)
