"""Experiment: everything that determines one trained run, as one frozen value that goes to JSON and back.

Two experiments with equal values are the same run; `identity` is the hash of what differs from the defaults. What its
JSON is made of stands in `written`.
"""

from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Int
from tinylatent_tasks import MNNS, Task
from tinylatent_tasks.checks import short
from torch import Tensor
from tqdm import tqdm

from tinylatent.core.environment import memory
from tinylatent.core.identity import identity, plain
from tinylatent.core.seeds import Seeds, Streams
from tinylatent.evaluation.evaluate import BATCH
from tinylatent.lab.lines import LinesFile
from tinylatent.lab.records import ExperimentRecord, lift_record
from tinylatent.lab.run import Progress, Run
from tinylatent.lab.tasks import TASKS
from tinylatent.lab.words import Words
from tinylatent.lab.written import anywhere, check_objects, installed, lifted, made, read_method, written_method
from tinylatent.methods import CoT2
from tinylatent.models.decoder import Decoder, ModelConfig
from tinylatent.models.pretrained import Pretrained
from tinylatent.objectives.examples import Speaker
from tinylatent.objectives.method import Method, Model
from tinylatent.objectives.speakers import Symbols
from tinylatent.objectives.text import InText, Lines, Text, Wording
from tinylatent.training.config import Training

PROBED = 16
"""Problems whose size is taken for that of all."""
MAX_VALIDATED = 1000
"""Problems to validate on, where training.num_train is given."""
NO_ROWS = np.empty((0, 1), np.int64)


@dataclass(frozen=True)
class Experiment(Run):
    """One method on one task, with a model size, a training recipe and seeds."""

    version: ClassVar[int] = 2
    record = ExperimentRecord

    task: Any = field(default_factory=MNNS)
    method: Method = field(default_factory=CoT2)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: Training = field(default_factory=Training)
    seeds: Seeds = field(default_factory=Seeds)
    start: "Experiment | None" = None
    """The run whose weights this one begins with, as far as its method takes them over; fresh weights by default."""
    hf: Pretrained | None = None
    """A model of transformers in place of a transformer of that size."""
    text: InText | None = None
    """How the task is put into that model's words."""

    def __post_init__(self) -> None:
        if (self.hf is None) != (self.text is None):
            raise ValueError("a model of transformers needs a task in text, and text a model: give both, hf and text")
        if self.hf is not None and self.model != ModelConfig():
            raise ValueError("a size of model beside a model of transformers, which has its own: leave model out")
        if self.start is None:
            if self.training.steps == 0:
                raise ValueError("training.steps is 0: expected at least 1, or a run to start from")
            return
        for name, ours, theirs in (
            ("task", self.task, self.start.task),
            ("model", self.model, self.start.model),
            ("model of transformers", self.hf, self.start.hf),
            ("text", self.text, self.start.text),
            ("split seed", self.seeds.split, self.start.seeds.split),
            ("training.num_train", self.training.num_train, self.start.training.num_train),
        ):
            if ours != theirs:
                raise ValueError(
                    f"the run to start from has another {name}, {theirs} instead of {ours}: its weights must fit, and "
                    "must not have seen what this run is validated on"
                )
        if self.start.method.name == self.method.starts_from:
            for name, needed in self.method.start_settings.items():
                given = getattr(self.start.method, name)
                if given != needed:
                    raise ValueError(
                        f"the run to start from is of {self.start.method.name} with {name} {given}: expected {needed}, "
                        f"as {self.method.name} needs; train one so, or leave the start out"
                    )
        own, theirs = self.method.extra_tokens, self.start.method.extra_tokens
        if own and theirs != own[: len(theirs)]:
            raise ValueError(
                f"the run to start from has the extra tokens {', '.join(theirs)}, this method {', '.join(own)}: "
                "expected the same and perhaps more, or none at all, so that each keeps its row of the table"
            )

    # -----------------------------------------------------------------------------------------------------------------
    # To JSON and back

    def to_json(self) -> dict[str, Any]:
        """The experiment as plain values: names of task and method, and every setting that is not the default."""
        values = {
            "version": self.version,
            "task": {"name": self.task.name, **plain(self.task)},
            "method": written_method(self.method),
            "model": plain(self.model),
            **{name: plain(part) for name, part in (("hf", self.hf), ("text", self.text)) if part is not None},
            "training": plain(self.training),
            "seeds": {name: getattr(self.seeds, name) for name in ("split", "init", "order", "sampling")},
        }
        return values if self.start is None else {**values, "start": self.start.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Experiment":
        """The experiment that wrote these values, in any form.

        Raises:
            NotInstalledError: task or method is not installed, or the method not in the version that wrote this.
            ValueError: a part is missing or unknown, or a value is of another type than its setting.
        """
        try:
            check_objects(values)
            values = lifted(values)
            if values["version"] != cls.version:
                raise ValueError(f"an experiment of form {values['version']}: this program reads 1 to {cls.version}")
            if unknown := sorted(values.keys() - {"version", *(part.name for part in fields(cls))}):
                raise TypeError(f"it has the unknown {short(unknown[0])}")
            model = made(ModelConfig, "model", values["model"])
            training = made(Training, "training", values["training"])
            seeds = made(Seeds, "seeds", values["seeds"])
            hf = made(Pretrained, "hf", values["hf"]) if "hf" in values else None
            text = made(InText, "text", values["text"]) if "text" in values else None
            start = cls.from_json(values["start"]) if "start" in values else None
            task = dict(values["task"])
            name = task.pop("name")
            task = made(LinesFile if name == LinesFile.name else installed(TASKS, name, "task"), "task", task)
            return cls(task, read_method(values["method"]), model, training, seeds, start, hf, text)
        except (KeyError, TypeError, AttributeError) as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"not an experiment this version can read: {what}; expected what config.json holds"
            ) from error

    @classmethod
    def lift(cls, written: dict[str, Any]) -> dict[str, Any]:
        """A record in today's form."""
        if "version" in written:
            return written
        record = lift_record(super().lift(written))
        return {**record, "run": lifted(record["run"])}

    # -----------------------------------------------------------------------------------------------------------------
    # What it is made of

    def fresh(self, device: torch.device | str = "cpu") -> Model:
        """A model with this experiment's initial weights."""
        generator, backbone = self.seeds.generator("init"), None
        if self.hf is None:
            backbone = Decoder.fresh(self.tokens, self.positions, self.model, generator)
        else:
            backbone = self.hf.backbone(self.tokens, self._added, generator)
        return self.method.model(backbone, generator).to(device)

    @property
    def positions(self) -> int:
        """Positions its model has: those of the task and of steps beyond its chain, and no fewer than its start has."""
        own = self.task.positions + self.method.extra_steps
        return own if self.start is None else max(own, self.start.positions)

    @property
    def tokens(self) -> int:
        """Rows of its model's table: the task's tokens and the method's extra ones, and no fewer than its start has."""
        own = self.asks(NO_ROWS).vocabulary + len(self.method.extra_tokens)
        return own if self.start is None else max(own, self.start.tokens)

    @property
    def _added(self) -> list[list[int]]:
        """For every token that a model of transformers gets, ids whose mean its row begins as; none to draw it."""
        speaker: Any = self.asks(NO_ROWS)
        named: list[list[int]] = getattr(speaker, "added", [])
        return [*named, *[[] for _ in range(self.tokens - speaker.vocabulary)]]

    @property
    def extra_tokens(self) -> tuple[str, ...]:
        """Names of the last rows of that table: the method's extra tokens, or its start's where it has none."""
        own = self.method.extra_tokens
        return own if own or self.start is None else self.start.extra_tokens

    def rows(self, part: Literal["train", "validation"]) -> np.ndarray:
        """The problems of a part under this experiment's split.

        Raises:
            ValueError: the task's space is too large to list and training.num_train is not set, or that is more than
                there are, or than memory holds.
        """
        count, seed = self.training.num_train, self.seeds.derive("split")
        if count is None or self.task.listed:
            if count is None and not self.task.listed:
                raise ValueError(
                    f"the problems of {self.task.name} are too many to list, so say how many to train on: try "
                    "training.num_train 10000"
                )
            there = len(_rows(self.task, part, seed, None))
            if count is not None and part == "train" and count > there:
                raise ValueError(
                    f"training.num_train is {count}, but there are {there} problems to train on: leave it out for all"
                )
        else:
            there = MAX_VALIDATED
            _check_memory(self.task, count)
        if count is not None and part == "validation":
            count = max(1, min(count // 4, MAX_VALIDATED, there))
        return _rows(self.task, part, seed, count)

    def speaker(self, part: Literal["train", "validation"]) -> Speaker:
        """The problems of a part, in the task's own symbols or in words."""
        return self.asks(self.rows(part))

    def asks(self, rows: np.ndarray, task: Any = None) -> Speaker:
        """Problems of the task in its own symbols or, where there is a model of transformers, in words.

        Args:
            rows: the problems.
            task: what they are of, if not of this experiment's task: a level of it.
        """
        task = self.task if task is None else task
        if self.hf is None or self.text is None:
            return Symbols(task, rows)
        if isinstance(task, LinesFile):
            lines = task.lines
            return Lines([lines[place] for place in task.rows(rows)[:, 0].tolist()], self.wording)
        return Text(task, rows, self.wording, self.text.names, self.text.words)

    @property
    def wording(self) -> Wording:
        """How text becomes tokens of its model of transformers, and back.

        Raises:
            ValueError: it has none.
        """
        if self.hf is None or self.text is None:
            raise ValueError("a transformer of our own knows no text, only the symbols of its task")
        return Wording(self.hf.tokenizer(), self.text.chat)

    @property
    def asked_at_once(self) -> int:
        """Problems that a model is asked at a time when it is measured: as many as it is trained on, if it is large."""
        return BATCH if self.hf is None else self.training.micro_batch or self.training.batch_size

    def streams(self, rows_B: Int[Tensor, " B"]) -> Streams:
        """What these rows sample when the trained model answers problems of its user."""
        return Streams(self.seeds.derive("sampling", "answer"), rows_B)

    # -----------------------------------------------------------------------------------------------------------------
    # As a run

    @property
    def work(self) -> int:
        """Units of progress: optimizer steps, or batches of rollouts."""
        return self.training.steps

    @property
    def label(self) -> str:
        """Task, method and seed; and the model, where that is one of transformers."""
        model = "" if self.hf is None else f" on {Path(self.hf.path).name}"
        return f"{self.task.name}/{self.method.name}{model} seed {self.seeds.split}"

    @property
    def starts_from(self) -> "Experiment | None":
        """The run whose weights this one begins with."""
        return self.start

    @classmethod
    def written_identity(cls, run: dict[str, Any]) -> str:
        """The id of a run from its JSON, but for where files lie."""
        return identity(anywhere(run))

    @property
    def identity(self) -> str:
        """Twelve hexadecimal digits that stand for the whole value, but for where files lie."""
        return identity(anywhere(self.to_json()))

    def check(self, folder: Path, start: Path | None = None) -> None:
        """Refuses what cannot be trained, evaluated, or kept in this folder; see `measure.check`."""
        from tinylatent.lab.measure import check  # which is about experiments, and so imports them

        check(self, folder, start)

    def measure(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        on_progress: Progress | None = None,
        start: Path | None = None,
    ) -> ExperimentRecord:
        """Trains it and puts it through every evaluation: see `measure.measure`."""
        from tinylatent.lab.measure import measure  # which is about experiments, and so imports them

        return measure(self, folder, device, on_progress, start)


@lru_cache(maxsize=2)
def _rows(task: Task, part: str, seed: int, count: int | None) -> np.ndarray:
    """The problems of a part; drawing those of a large task takes seconds, and a run needs both parts several times.

    A bar on standard error says how far it is after two seconds, or lines where that is no terminal.
    """
    if task.listed:
        rows = task.split(part, seed, count)
    else:
        said = f"drawing problems of {task.name}"
        with tqdm(total=count, desc=said, unit="problem", delay=2, leave=False, disable=None) as bar:
            words = Words(count or 0, of=f"problems of {task.name} drawn") if bar.disable else None

            def tell(found: int) -> None:
                bar.update(found - bar.n)
                if words is not None:
                    words.tell(found)

            rows = task.split(part, seed, count, tell)
    rows.flags.writeable = False
    return rows


@lru_cache(maxsize=8)
def _bytes_each(task: Task) -> float:
    """Bytes that a problem takes in memory as a row and as an example, from a few of the task's."""
    rows = task.problems(PROBED, 0)
    batch = task.batch(rows)
    frontier = 12 * int((batch.frontier_BTV > 0).sum(axis=2).max(initial=1)) * batch.chain_BT.size  # id and share
    others = (batch.prompt_BN, batch.prompt_mask_BN, batch.steps_B, batch.chain_BT, batch.answer_BA, batch.key_B)
    return (rows.nbytes + frontier + sum(array.nbytes for array in others)) / PROBED


def _check_memory(task: Task, count: int) -> None:
    """ValueError if problems take more than half the memory, before any is drawn."""
    each, have = _bytes_each(task), memory() / 2
    if count * each > have:
        raise ValueError(
            f"training.num_train is {count}: that many problems of {task.name} take about {count * each / 1e9:.0f} GB, "
            f"more than half of the memory here; at most {int(have / each)} fit, try 10000"
        )


def device_named(name: str) -> torch.device:
    """The device for "auto", "cpu", "cuda" or "mps" (the GPU of a Mac); auto takes cuda, else mps, else cpu.

    Raises:
        ValueError: unknown name, or a GPU was asked for and there is none.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(each for each, found in there.items() if found)
    if name not in there:
        raise ValueError(f"unknown device {name!r}: expected auto, cpu, cuda or mps")
    if not there[name]:
        builds = {"cuda": "install a CUDA build of torch", "mps": "compute on a Mac with an Apple GPU"}
        raise ValueError(f"no {name.upper()} device found: use --device cpu, or {builds[name]}")
    return torch.device(name)
