"""Experiment: everything that determines one run, as one frozen value that goes to JSON and back.

Two experiments with equal values are the same run; `identity` is the hash of the value and its method's version.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tasks import MNNS, REGISTRY, Task
from tinylatent import storage
from tinylatent.methods import METHODS, CoT2, Method, Model
from tinylatent.seeds import Seeds, Streams
from tinylatent.transformer import Shape, Transformer

MOST_VALIDATED = 1000
"""Problems to validate on, where training.problems is given."""


@dataclass(frozen=True)
class Training:
    """How long and how fast to train: AdamW, linear warm-up, then cosine decay to zero or a constant rate."""

    steps: int = 9000
    """Optimizer steps."""
    batch: int = 64
    """Problems per step."""
    rate: float = 5e-3
    """Peak learning rate."""
    warmup: float = 0.05
    """Share of the steps spent warming up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What the rate does after the warm-up: falls along half a cosine to zero, or stays at its peak."""
    weight_decay: float = 0.05
    """AdamW's decoupled weight decay, on all weights."""
    problems: int | None = None
    """Training problems to use, and a quarter as many, at most 1000, to validate on; all of them by default. Spaces too
    large to list need a number."""
    log_every: int = 100
    """Steps between lines in metrics.jsonl."""
    save_every: int = 1000
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}: expected at least 1")
        if self.problems is not None and self.problems < 4:
            raise ValueError(
                f"training.problems is {self.problems}: expected at least 4, or nothing for all; try 10000"
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(f"training.warmup is {self.warmup}: expected a share of the steps in [0, 1); try 0.05")
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(f"training.schedule is {self.schedule!r}: expected cosine or constant")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"training.rate is {self.rate}: expected a positive learning rate; try 5e-3")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"training.weight_decay is {self.weight_decay}: expected 0 or more; try 0.05")


@dataclass(frozen=True)
class Experiment:
    """One method on one task, with a model size, a training recipe and seeds."""

    task: Any = field(default_factory=MNNS)
    method: Method = field(default_factory=CoT2)
    shape: Shape = field(default_factory=Shape)
    training: Training = field(default_factory=Training)
    seeds: Seeds = field(default_factory=Seeds)
    start: "Experiment | None" = None
    """The run whose backbone's weights this one begins with; fresh weights by default."""

    def __post_init__(self) -> None:
        if self.start is None:
            return
        for name, ours, theirs in (
            ("task", self.task, self.start.task),
            ("shape", self.shape, self.start.shape),
            ("number of positions", self.positions, self.start.positions),
            ("split seed", self.seeds.split, self.start.seeds.split),
            ("training.problems", self.training.problems, self.start.training.problems),
        ):
            if ours != theirs:
                raise ValueError(
                    f"the run to start from has another {name}, {theirs} instead of {ours}: its weights must fit, and "
                    "must not have seen what this run is validated on"
                )

    def to_json(self) -> dict[str, Any]:
        """The experiment as plain values; task and method carry their registered names, a start is one in turn."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "start"}
        values = {name: dataclasses.asdict(value) for name, value in values.items()}
        values["task"] = {"name": self.task.name, **values["task"]}
        lists = {name: list(value) for name, value in values["method"].items() if isinstance(value, tuple)}
        values["method"] = {"name": self.method.name, "version": self.method.version, **values["method"], **lists}
        return values if self.start is None else {**values, "start": self.start.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Experiment":
        """The experiment that wrote these values.

        Raises:
            ValueError: a part is missing, unknown, or was written by another version of the method.
        """
        try:
            method = dict(values["method"])
            kind, version = METHODS[method.pop("name")], method.pop("version")
            if version != kind.version:
                raise ValueError(
                    f"written by version {version} of method {kind.name}, this is {kind.version}: train it again"
                )
            task = dict(values["task"])
            lists = {name: tuple(value) for name, value in method.items() if isinstance(value, list)}
            return cls(
                REGISTRY[task.pop("name")](**task),
                kind(**{**method, **lists}),
                Shape(**values["shape"]),
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
        return storage.identity(self.to_json())

    @property
    def positions(self) -> int:
        """Positions its model has: those of the task and of steps beyond its chain."""
        return self.task.positions + self.method.extra

    def model(self, device: torch.device | str = "cpu") -> Model:
        """A fresh model with this experiment's initial weights."""
        generator = self.seeds.generator("init")
        backbone = Transformer(len(self.task.vocabulary), self.positions, self.shape, generator)
        return Model(backbone, self.method.thoughts(backbone, generator)).to(device)


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
