"""Reading: a trained run read in other ways: by other methods' inference, under controls, with a verifier.

Readers are no trainings. They share one model and one set of problems, so that what one reader gets right and another
does not can be told problem by problem: gained and lost are counted against the first reader. Accuracy and costs may
be told apart by the number of steps of a problem's chain.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import msgspec
import numpy as np
import torch

from tinylatent.core.identity import checksum
from tinylatent.engine.controls import CONTROLS
from tinylatent.engine.counters import Counters
from tinylatent.evaluation.evaluate import evaluate
from tinylatent.evaluation.statistics import Interval, accuracy_interval, cluster_counts
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import START, load, train
from tinylatent.lab.run import NotInstalledError, Progress, Record, Run, new_record, note_progress
from tinylatent.lab.written import read_method, written_method
from tinylatent.objectives.method import Method, Model
from tinylatent.objectives.rewards import verifier_named
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.checkpoints import Checkpoint, find_checkpoint

ALL = "all"
"""The part of a reading that is not told apart by steps."""


@dataclass(frozen=True)
class Reader:
    """One way to read a model.

    Raises ValueError for an unknown control or verifier.
    """

    name: str
    """What tables call it."""
    method: Method
    """Its inference solves the problems."""
    control: str = ""
    """A control of the latents; empty for none."""
    verifier: str = ""
    """Judges a search, by its name in `objectives.rewards`; empty for the method's own judge."""

    def __post_init__(self) -> None:
        if self.control and self.control not in CONTROLS:
            raise ValueError(f"unknown control {self.control!r}: expected one of {', '.join(CONTROLS)}, or none")
        verifier_named(self.verifier)

    def to_json(self) -> dict[str, Any]:
        """The reader as plain values; what is empty is left out."""
        values = {"name": self.name, "control": self.control, "verifier": self.verifier}
        return {**{name: value for name, value in values.items() if value}, "method": written_method(self.method)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Reader":
        """The reader that wrote these values; KeyError, TypeError or ValueError where they are none."""
        return cls(**{**values, "method": read_method(values["method"])})


class Read(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a reader made of the problems of a part."""

    right: list[int]
    """Right answers of each key."""
    gained: list[int]
    """Problems of each key that the first reader has wrong and this one right."""
    lost: list[int]
    """Problems of each key that the first reader has right and this one wrong."""
    costs: Counters
    """What solving them cost."""
    accuracy: Interval
    """Share of right answers with its 95 % interval over keys."""


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Problems that were read, all or those whose chains have equally many steps."""

    total: list[int]
    """Problems of each key."""
    keys: str
    """Checksum of the keys."""
    readers: dict[str, Read]
    """By the reader's name."""


class ReadingRecord(Record, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """A trained run read in several ways."""

    parts: dict[str, Part]
    """By the number of steps before the answer, or "all"."""

    @cached_property
    def reading(self) -> "Reading":
        """The run it is of."""
        return Reading.from_json(self.run)

    def right(self, reader: str, part: str = "") -> tuple[list[int], list[int]]:
        """Right answers and problems of each key, in one part or in all."""
        parts = [self.parts[part]] if part else [*self.parts.values()]
        rights = [right for each in parts for right in each.readers[reader].right]
        return rights, [total for each in parts for total in each.total]

    def costs(self, reader: str, part: str = "") -> dict[str, float]:
        """What a reader spent on a problem, on average, in one part or in all."""
        parts = [self.parts[part]] if part else [*self.parts.values()]
        problems = sum(sum(each.total) for each in parts)
        spent = [msgspec.to_builtins(each.readers[reader].costs) for each in parts]
        return {name: sum(each[name] for each in spent) / problems for name in spent[0]}

    def summary(self) -> str:
        """The run that was read, and the first reader's accuracy."""
        first = self.reading.readers[0].name
        right, total = self.right(first)
        return f"{self.reading.label}: {first} {sum(right) / sum(total):.1%} of {sum(total)}"


@dataclass(frozen=True)
class OfTrained(Run):
    """Base of all that is asked of a trained experiment."""

    about: ClassVar[str] = ""
    """What is asked, as errors say it after "a reading", such as " of states"."""
    start: Experiment
    """The run that is read."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The reading that wrote these values.

        Raises:
            NotInstalledError: a task or method is not installed.
            ValueError: they describe no reading of this version.
        """
        if values.get("version") != cls.version:
            raise ValueError(f"not a reading{cls.about} of version {cls.version}: measure it again")
        try:
            others = {name: value for name, value in values.items() if name not in ("version", "start")}
            settings = cls._settings(others)
            return cls(Experiment.from_json(values["start"]), **settings)
        except NotInstalledError:
            raise
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a reading{cls.about} this version can read ({error}): measure it again") from error

    @classmethod
    def _settings(cls, values: dict[str, Any]) -> dict[str, Any]:
        """What else it was made with, from the other values that were written."""
        return values

    @property
    def starts_from(self) -> Experiment:
        """The run that is read: it is trained first."""
        return self.start

    def opened(self, folder: Path, device: torch.device | str, start: Path | None) -> tuple[Path, Model, Checkpoint]:
        """The run's folder, its model and its last checkpoint; trained under `folder` if there is no `start`."""
        if start is None:
            train(self.start, folder / START, device)
            start = folder / START
        _, model = load(start, device)
        saved = find_checkpoint(start)
        assert saved is not None, "a model was loaded from it"
        return start, model, saved

    def spread(self, most: int) -> np.ndarray:
        """At most so many problems of the validation part, evenly: in a listed space neighbours are alike."""
        rows = self.start.rows("validation")
        return rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int)]


@dataclass(frozen=True)
class Reading(OfTrained):
    """A trained experiment and the readers that its model is asked by.

    Raises ValueError for no readers, two of one name, or fewer than two problems.
    """

    version: ClassVar[int] = 1
    record = ReadingRecord

    readers: tuple[Reader, ...]
    """The first is what gained and lost are counted against."""
    problems: int = 1000
    """Most problems to ask, from the validation part."""
    by_steps: bool = False
    """Whether problems are told apart by the steps of their chains."""

    def __post_init__(self) -> None:
        names = [reader.name for reader in self.readers]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"readers {', '.join(names) or 'none'}: expected at least one, each with its own name")
        if self.problems < 2:
            raise ValueError(f"problems is {self.problems}: expected at least 2; try 1000")
        for reader in self.readers:
            tokens, there = reader.method.extra_tokens, self.start.method.extra_tokens
            if tokens and tokens != there:
                raise ValueError(
                    f"reader {reader.name} needs the extra tokens {', '.join(tokens)}, the model of "
                    f"{self.start.method.name} has {', '.join(there) or 'none'}: read a run that has them"
                )

    def to_json(self) -> dict[str, Any]:
        """The reading as plain values."""
        return {
            "version": self.version,
            "start": self.start.to_json(),
            "readers": [reader.to_json() for reader in self.readers],
            "problems": self.problems,
            "by_steps": self.by_steps,
        }

    @classmethod
    def _settings(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "readers": tuple(Reader.from_json(each) for each in values["readers"])}

    @property
    def work(self) -> int:
        """Readers to go through."""
        return len(self.readers)

    @property
    def label(self) -> str:
        """The run that is read."""
        return f"reading {self.start.label}"

    def measure(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        on_progress: Progress | None = None,
        start: Path | None = None,
    ) -> ReadingRecord:
        """Loads the run from its folder, or trains it under this one's, and asks it by every reader."""
        _, model, saved = self.opened(folder, device, start)
        rows, found = self._rows(), {}
        for number, reader in enumerate(self.readers):
            found[reader.name] = {name: self._read(model, reader, part, device) for name, part in rows.items()}
            note_progress(folder, number + 1, on_progress)
        parts = {
            name: self._part(part, {who: each[name] for who, each in found.items()}) for name, part in rows.items()
        }
        record: ReadingRecord = new_record(
            self, training=saved.manifest.get("environments"), device=device, parts=parts
        )
        return record

    def _rows(self) -> dict[str, np.ndarray]:
        """The problems of every part."""
        rows = self.spread(self.problems)
        if not self.by_steps:
            return {ALL: rows}
        steps_P = self.start.task.batch(rows).steps_B - 1
        return {str(steps): rows[steps_P == steps] for steps in np.unique(steps_P).tolist()}

    def _read(
        self, model: Model, reader: Reader, rows: np.ndarray, device: torch.device | str
    ) -> tuple[np.ndarray, Counters]:
        """Which problems a reader has right, and what it spent."""
        result = evaluate(
            Symbols(self.start.task, rows),
            reader.method,
            model,
            control=reader.control or None,
            seed=self.start.seeds.derive("sampling", "evaluation"),
            device=device,
            verify=verifier_named(reader.verifier),
        )
        return result.right_P, result.counters

    def _part(self, rows: np.ndarray, found: Mapping[str, tuple[np.ndarray, Counters]]) -> Part:
        """What all readers made of the problems of a part."""
        keys_P, (first_P, _) = self.start.task.key(rows), next(iter(found.values()))
        readers = {}
        for name, (right_P, spent) in found.items():
            keys, right, total = cluster_counts(keys_P, right_P)
            _, gained, _ = cluster_counts(keys_P, right_P & ~first_P)
            _, lost, _ = cluster_counts(keys_P, first_P & ~right_P)
            counts = right.tolist(), gained.tolist(), lost.tolist()
            readers[name] = Read(
                right=counts[0],
                gained=counts[1],
                lost=counts[2],
                costs=spent,
                accuracy=accuracy_interval([right], [total]),
            )
        return Part(total=total.tolist(), keys=checksum(keys.tobytes()), readers=readers)
