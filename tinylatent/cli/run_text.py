"""One run on a model of transformers: a method on a task in text, or on lines of question, steps and answer."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import tyro
from tinylatent_tasks.splits import VALIDATION_SHARE

from tinylatent.cli.finished import carried_out
from tinylatent.cli.terminal import Device, filled, peeked
from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import read_config
from tinylatent.lab.lines import LinesFile
from tinylatent.lab.tasks import TASKS
from tinylatent.methods import METHODS
from tinylatent.models.huggingface_lora import LoRA
from tinylatent.models.pretrained import Pretrained
from tinylatent.objectives.text import InText, Naming
from tinylatent.training.config import Training

SomeTask = TypeVar("SomeTask")
SomeMethod = TypeVar("SomeMethod")
USUAL = Training(
    steps=300, batch_size=8, learning_rate=2e-5, weight_decay=0.0, num_train=2000, log_every=10, save_every=100,
    validate=0, clip_norm=1.0,
)  # fmt: skip
"""How a pretrained model is trained unless flags say otherwise; nobody has tuned this."""
RATE_OF_ADAPTERS = 2e-4
TRAIN_SHARE = 1 - VALIDATION_SHARE


@dataclass(frozen=True)
class Posed:
    """What is put into words, and how; one of task and lines."""

    task: str | None = None
    """Name of a task, such as multihop; its settings are flags such as --task.hops."""
    lines: Path | None = None
    """File of questions with steps and answers: JSON lines, GSM8K, its equations, multiplications, ProsQA."""
    held: Path | None = None
    """With --text.lines: a second such file to validate on; by default a fifth of the lines is held out for that."""
    names: Naming = "own"
    """How states of a task are named: by tokens of their own, by existing words, or spelled in pieces."""
    words: tuple[str, ...] = ()
    """With names "words", a word of one token for every symbol of the task's vocabulary, in its order."""
    chat: bool | None = None
    """Whether questions are put into the tokenizer's chat template; None where it has one."""


@dataclass(frozen=True)
class RunText(Generic[SomeTask, SomeMethod]):
    """Train a method on a model of transformers and evaluate it. Interrupted runs go on, finished ones are shown.

    Adapters are trained in place of the whole model with flags such as --hf.lora.rank 16.
    """

    name: tyro.conf.Suppress[tyro.conf.Fixed[str]]
    """Name of the method."""
    method: SomeMethod
    """How to think."""
    task: SomeTask
    """What to solve."""
    hf: tyro.conf.AvoidSubcommands[Pretrained]
    """The model."""
    text: Posed = field(default_factory=Posed)
    """How the task is put into words."""
    training: Training = USUAL
    """How to train it."""
    seed: int = 0
    """Root seed of split, added rows, order and sampling."""
    start: Path | None = None
    """Folder of a finished run on the same model and task whose weights to start from. Methods that start from another
    train that one first by default."""
    out: Path | None = None
    """Folder of the run; by default the store that studies share, RESULTS/runs, under the run's identity."""
    results: Path = Path("results")
    """Folder of results."""
    device: Device = "cpu"
    """Where to train and evaluate."""
    spread: Literal["ddp", "fsdp"] | None = None
    """Under torchrun: whether every process has the whole model (ddp) or a part of it (fsdp)."""
    half: bool = False
    """With --spread fsdp: compute in bfloat16, and keep weights and moments in their own precision."""
    json: bool = False
    """Print the record as JSON instead of a table."""

    @classmethod
    def read(cls, arguments: Sequence[str]) -> "RunText[Any, Any]":
        """The run that the arguments name: first the method, then flags.

        Raises:
            ValueError: there is no such method or task, or a flag is wrong.
            SystemExit: help was asked for and printed.
        """
        name, *flags = arguments
        method, given = METHODS.named(name)(), peeked(flags, "hf.path", "text.task", "text.lines", "text.held", "start")
        started, asks_help = _started(given.start), bool({"--help", "-h"} & {*flags})
        if given.hf_path is None and started is None and not asks_help:
            raise ValueError(
                f"{name} without --hf.path: expected the folder of a model of transformers, or a recipe such as "
                f"mnns/{name} for a transformer of our own"
            )
        if given.text_task is not None and given.text_lines is not None:
            raise ValueError("--text.task beside --text.lines: expected one of the two")
        if given.text_held is not None and given.text_lines is None:
            raise ValueError("--text.held without --text.lines: expected the file to train on as well")
        posed = given.text_task is not None or given.text_lines is not None or started is not None
        if not posed and not asks_help:
            raise ValueError(
                f"{name} without a task: expected --text.task, one of {', '.join(TASKS)}, or a file with --text.lines"
            )
        hf, task, text = Pretrained(given.hf_path or "FOLDER"), _task_named(given), Posed()
        if started is not None:
            hf = replace(started.hf, path=given.hf_path or started.hf.path)
            task = task if given.text_task is not None or given.text_lines is not None else started.task
            text = Posed(names=started.text.names, words=started.text.words, chat=started.text.chat)
        if hf.lora is None and any(flag.startswith("--hf.lora") for flag in flags):
            hf = replace(hf, lora=LoRA())
        training = USUAL if hf.lora is None else replace(USUAL, learning_rate=RATE_OF_ADAPTERS)
        training = replace(training, steps=method.recipe["steps"]) if method.recipe.get("steps") == 0 else training
        if started is not None or isinstance(task, LinesFile):
            training = replace(training, num_train=None if started is None else started.training.num_train)
        kind: Any = cls
        hidden: Any = tyro.conf.Suppress[tyro.conf.Fixed[LinesFile]]
        fixed = hidden if isinstance(task, LinesFile) else type(task)
        default = cls(name, method, task, hf, text, training)  # type: ignore[arg-type]
        found: RunText[Any, Any] = filled(kind[fixed, type(method)], f"tinylatent run {name}", flags, default)
        return found

    def experiment(self) -> Experiment:
        """The whole run.

        Raises:
            ValueError: its parts do not go together, or the model or the lines cannot be found.
        """
        task: Any = self.task.found() if isinstance(self.task, LinesFile) else self.task
        text = InText(self.text.names, self.text.words, self.text.chat)
        method: Any = self.method
        seeds, hf, training = Seeds.all(self.seed), self.hf.found(), self.training
        few = task.listed and task.size * TRAIN_SHARE < USUAL.num_train
        if training.num_train == USUAL.num_train and few:
            training = replace(training, num_train=None)
        start = read_config(self.start) if self.start is not None else None
        if start is None and method.starts_from is not None:
            start = _before(method, task, training, seeds, hf, text)
        return Experiment(task, method, training=training, seeds=seeds, start=start, hf=hf, text=text)

    def run(self) -> None:
        """Trains, evaluates, stores and prints."""
        remarks = ["learning rate and weight decay have not been tuned"]
        carried_out(self, self.experiment(), self.start, remarks)


def _before(method: Any, task: Any, training: Training, seeds: Seeds, hf: Pretrained, text: InText) -> Experiment:
    """The run that a method starts from, on the same model and task."""
    earlier: Any = replace(METHODS.named(method.starts_from)(), **method.start_settings)
    rate = USUAL.learning_rate if hf.lora is None else RATE_OF_ADAPTERS
    usual = replace(USUAL, learning_rate=rate, num_train=training.num_train, batch_size=training.batch_size)
    start = None if earlier.starts_from is None else _before(earlier, task, usual, seeds, hf, text)
    return Experiment(task, earlier, training=usual, seeds=seeds, start=start, hf=hf, text=text)


def _task_named(given: argparse.Namespace) -> Any:
    """The task with its default settings, or the lines; some task where help alone is asked for."""
    return (
        LinesFile(str(given.text_lines), held=given.text_held or "")
        if given.text_lines is not None
        else TASKS.named(given.text_task or "multihop")()
    )


def _started(start: str | None) -> Any:
    """The run in a folder that another is to start from.

    Raises:
        ValueError: there is none, or it has no model of transformers.
    """
    found = None if start is None else read_config(Path(start))
    if found is not None and found.hf is None:
        raise ValueError(f"the run in {start} has a transformer of our own: start a recipe from it, such as mnns/grpo")
    return found
