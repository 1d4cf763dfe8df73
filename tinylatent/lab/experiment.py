"""Experiment: everything that determines one run, as one frozen value that goes to JSON and back.

Two experiments with equal values are the same run; `identity` is the hash of the value and its method's version.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tasks import MNNS, REGISTRY, Task
from tinylatent.core.identity import identity, plain
from tinylatent.core.seeds import Seeds, Streams
from tinylatent.methods import METHODS, CoT2
from tinylatent.models.decoder import Decoder, ModelConfig
from tinylatent.objectives.method import Method, Model
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.config import Training

MOST_VALIDATED = 1000
"""Problems to validate on, where training.problems is given."""


@dataclass(frozen=True)
class Experiment:
    """One method on one task, with a model size, a training recipe and seeds."""

    task: Any = field(default_factory=MNNS)
    method: Method = field(default_factory=CoT2)
    shape: ModelConfig = field(default_factory=ModelConfig)
    training: Training = field(default_factory=Training)
    seeds: Seeds = field(default_factory=Seeds)
    start: "Experiment | None" = None
    """The run whose weights this one begins with, as far as its method takes them over; fresh weights by default."""

    def __post_init__(self) -> None:
        if self.start is None:
            if self.training.steps == 0:
                raise ValueError("training.steps is 0: expected at least 1, or a run to start from")
            return
        for name, ours, theirs in (
            ("task", self.task, self.start.task),
            ("shape", self.shape, self.start.shape),
            ("split seed", self.seeds.split, self.start.seeds.split),
            ("training.problems", self.training.problems, self.start.training.problems),
        ):
            if ours != theirs:
                raise ValueError(
                    f"the run to start from has another {name}, {theirs} instead of {ours}: its weights must fit, and "
                    "must not have seen what this run is validated on"
                )
        if self.positions < self.start.positions:
            raise ValueError(
                f"the run to start from has {self.start.positions} positions, this method {self.positions}: it must "
                "take as many steps as the one it starts from, or more"
            )

    def to_json(self) -> dict[str, Any]:
        """The experiment as plain values; task and method carry their registered names, a start is one in turn."""
        values = {part: plain(getattr(self, part)) for part in ("task", "method", "shape", "training", "seeds")}
        values["task"] = {"name": self.task.name, **values["task"]}
        values["method"] = {"name": self.method.name, "version": self.method.version, **values["method"]}
        return values if self.start is None else {**values, "start": self.start.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Experiment":
        """The experiment that wrote these values.

        Raises:
            ValueError: a part is missing, unknown, or was written by another version of the method.
        """
        try:
            method = dict(values["method"])
            named = method.pop("name")
            if named not in METHODS:
                known = ", ".join(METHODS)
                raise ValueError(
                    f"not an experiment this version can read: method {named!r} is not installed, there are {known}; "
                    "install the package that brings it"
                )
            kind, version = METHODS[named], method.pop("version")
            if version != kind.version:
                raise ValueError(
                    f"written by version {version} of method {kind.name}, this is {kind.version}: train it again"
                )
            task = dict(values["task"])
            lists = {name: tuple(value) for name, value in method.items() if isinstance(value, list)}
            return cls(
                REGISTRY[task.pop("name")](**task),
                kind(**{**method, **lists}),
                ModelConfig(**values["shape"]),
                Training(**values["training"]),
                Seeds(**values["seeds"]),
                cls.from_json(values["start"]) if "start" in values else None,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"not an experiment this version can read: {error}; expected what config.json holds"
            ) from error

    def rows(self, part: Literal["train", "validation"]) -> np.ndarray:
        """The problems of a part under this experiment's split.

        Raises:
            ValueError: the task's space is too large to list and training.problems is not set.
        """
        count = self.training.problems
        if count is not None and part == "validation":
            count = max(1, min(count // 4, MOST_VALIDATED))
        return _rows(self.task, part, self.seeds.derive("split"), count)

    def streams(self, rows_B: Int[Tensor, " B"]) -> Streams:
        """What these rows sample when the trained model answers problems of its user."""
        return Streams(self.seeds.derive("sampling", "answer"), rows_B)

    @property
    def work(self) -> int:
        """Units of progress: optimizer steps, or batches of rollouts."""
        return self.training.steps

    @property
    def identity(self) -> str:
        """Twelve hexadecimal digits that stand for the whole value."""
        return identity(self.to_json())

    @property
    def positions(self) -> int:
        """Positions its model has: those of the task and of steps beyond its chain."""
        return self.task.positions + self.method.extra_steps

    def model(self, device: torch.device | str = "cpu") -> Model:
        """A fresh model with this experiment's initial weights."""
        generator = self.seeds.generator("init")
        vocabulary = len(self.task.vocabulary) + len(self.method.extra_tokens)
        backbone = Decoder.fresh(vocabulary, self.positions, self.shape, generator)
        return self.method.model(backbone, generator).to(device)

    def speaker(self, part: Literal["train", "validation"]) -> Symbols:
        """The problems of a part, in the task's own symbols."""
        return Symbols(self.task, self.rows(part))


@lru_cache(maxsize=2)
def _rows(task: Task, part: str, seed: int, count: int | None) -> np.ndarray:
    """The problems of a part; drawing those of a large task takes seconds, and a run needs both parts several times."""
    rows = task.split(part, seed, count)
    rows.flags.writeable = False
    return rows


def device_named(name: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda".

    Raises:
        ValueError: unknown name, or a GPU was asked for and there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {name!r}: expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device found: use --device cpu, or install a CUDA build of torch")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
