"""One run and its trained model: what `tinylatent.run` and `tinylatent.load` return, and the command `run` does."""

import contextlib
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tinylatent_tasks.checks import short
from torch import Tensor
from tqdm import tqdm

from tinylatent.engine.plan import distinct
from tinylatent.evaluation.evaluate import evaluate
from tinylatent.evaluation.statistics import Interval, accuracy_interval, cluster_counts
from tinylatent.lab.experiment import Experiment, device_named
from tinylatent.lab.folders import START, load_checkpoint, read_config, train
from tinylatent.lab.folders import load as load_folder
from tinylatent.lab.launchers.launcher import Job, stored_record
from tinylatent.lab.recipes import build, comparisons, recipe
from tinylatent.lab.records import DEFAULT, ExperimentRecord
from tinylatent.lab.run import Progress
from tinylatent.lab.thinking import Thinking, called, think
from tinylatent.lab.words import Words
from tinylatent.lab.written import made
from tinylatent.methods import METHODS
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import Method, Model
from tinylatent.training.checkpoints import CONFIG
from tinylatent.training.config import Training

if TYPE_CHECKING:
    from tinylatent.training.distributed import Spread


@dataclass(frozen=True)
class Trained:
    """A trained model and the experiment it comes from."""

    experiment: Experiment
    model: Model
    record: ExperimentRecord | None
    """What was measured; None if its training was interrupted."""

    def __str__(self) -> str:
        """What it is, and how often it is right."""
        found = (100 * share for share in (self.accuracy.value, self.accuracy.low, self.accuracy.high))
        name = f"{called(self.experiment.method)} on {self.experiment.task.name}, seed {self.experiment.seeds.split}"
        return "{}: {:.2f} % right [{:.2f}, {:.2f}]".format(name, *found)

    @cached_property
    def accuracy(self) -> Interval:
        """Share of right answers on the validation part, with its 95 % interval over keys."""
        if self.record is None:
            return self.evaluate()
        return accuracy_interval([self.record.evaluations[DEFAULT].right], [self.record.total])

    def evaluate(self, control: str | None = None) -> Interval:
        """Share of right answers on the validation part, with its 95 % interval over keys.

        Args:
            control: replaces the latents: "noise", "shuffled" or "zero"; None for the method itself.

        Raises:
            ValueError: unknown control, or the method has no latents to replace.
        """
        speaker, device = self.experiment.speaker("validation"), self._device
        if control is not None:
            self._check_latents(speaker.part(np.arange(1)).examples(device))
        seed = self.experiment.seeds.derive("sampling", "evaluation")
        how: dict[str, Any] = {"control": control, "seed": seed, "batch": self.experiment.asked_at_once}
        found = evaluate(speaker, self.experiment.method, self.model, device=device, **how)
        _, right, total = cluster_counts(self.experiment.task.key(speaker.problems), found.right_P)
        return accuracy_interval([right], [total])

    def _check_latents(self, examples: Examples) -> None:
        """Raises ValueError if the method feeds back nothing that a control could replace."""
        method = self.experiment.method
        if not any(segment.thought.has_latent for segment in distinct(method.plan(self.model, examples))):
            raise ValueError(f"{called(method)} has no latents, so there is nothing to replace: leave out the control")

    def examples(self, problems: Sequence[Any]) -> Examples:
        """Problems as the model reads them: prompt ids, masks, targets, answers.

        Args:
            problems: each as a JSON value, such as [3, 5, 2, 8], or as an array.

        Raises:
            ValueError: one is no problem of this task.
        """
        if not isinstance(problems, list | tuple | np.ndarray | Tensor) or not len(problems):
            raise ValueError(f"problems are {short(problems)}: expected a list of at least one, such as [[3, 5, 2, 8]]")
        task = self.experiment.task
        rows = task.rows([task.read(_listed(problem)).tolist() for problem in problems])
        return self.experiment.asks(rows).examples(self._device)

    def think(self, problem: Any) -> Thinking:
        """One problem step by step: the oracle's frontier beside what the model holds.

        problem: a JSON value such as [3, 5, 2, 8], or an array.

        Raises:
            ValueError: it is no problem of this task.
        """
        problem = _listed(problem)
        task = self.experiment.task.holding(problem)
        return think(task, task.read(problem), self.experiment, self.model)

    def using(self, method: Method) -> "Trained":
        """The same weights, read by another method: other thoughts at inference, for instance.

        Raises:
            ValueError: the method has parts or extra tokens of its own that these weights lack.
        """
        _check_method(method)
        own, there = method.extra_tokens, self.experiment.extra_tokens
        if own and own != there:
            raise ValueError(
                f"{method.name} has the extra tokens {', '.join(own)}, these weights "
                f"{', '.join(there) or 'none'}: expected the same, as tokens are found by their place; train it instead"
            )
        parts = getattr(self.model, "parts", {})
        lacking = {*method.parts(self.model.backbone, torch.Generator())} - {*parts}
        if lacking:
            raise ValueError(
                f"{method.name} has the parts {', '.join(sorted(lacking))}, which these weights lack: train it instead"
            )
        return replace(self, experiment=replace(self.experiment, method=method), record=None)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.model.backbone.table.weight.device
        return device


def run(
    name: str,
    method: Method | None = None,
    *,
    seed: int = 0,
    out: Path | str | None = None,
    device: str = "cpu",
    **settings: Any,
) -> Trained:
    """Trains and evaluates a recipe, or goes on where it was interrupted; a finished run is read.

    Args:
        name: a recipe, comparison/method such as "mnns/cot2"; or a comparison such as "mnns", with a method.
        method: what to train in the comparison, one of your own for instance.
        seed: all seeds.
        out: folder of the run: config, metrics, checkpoints, result.json. None keeps nothing.
        device: "cpu", "cuda", "mps", or "auto" for the fastest there is.
        settings: fields of `Training` that override the recipe's, such as steps=1500.

    Raises:
        ValueError: no such recipe or setting, the folder holds another run, or training diverged.
    """
    if method is not None:
        _check_method(method)
    seed, settings = _listed(seed), _listed(settings)
    if not isinstance(name, str) or type(seed) is not int:
        raise ValueError(f"a recipe {short(name)} with seed {short(seed)}: expected such as 'mnns/cot2' and 0")
    _check_path(out)
    if method is None and name in comparisons():
        raise ValueError(
            f"{name!r} is a comparison: name a recipe of it, such as {name}/cot2, or pass a method as well"
        )
    if method is None:
        usual = recipe(name, seed)
    elif name in comparisons():
        usual = build(name, method, seed)
    else:
        raise ValueError(
            f"{name!r} with a method of your own: expected a comparison, one of {', '.join(comparisons())}"
        )
    experiment = replace(usual, training=_with(usual.training, settings))
    if out is not None and METHODS.get(usual.method.name) is not type(usual.method):
        raise ValueError(
            f"{type(usual.method).__name__} is not registered, so a folder of it could not be read again: leave out "
            "`out`, or register it under the entry-point group tinylatent.methods"
        )
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return _trained(experiment, Path(folder) / "run", device)
    return _trained(experiment, Path(out), device)


def load(folder: Path | str, device: str = "cpu") -> Trained:
    """A run from its folder, with the weights of its newest checkpoint.

    Raises:
        ValueError: the folder holds no run, or no checkpoint yet.
        DamagedError: a stored file is damaged.
    """
    _check_path(folder)
    experiment, model = load_folder(Path(folder), device_named(device))
    return Trained(experiment, model, stored_record(experiment, Path(folder)))


def _with(training: Training, settings: Mapping[str, Any]) -> Training:
    """Training with settings of a user; ValueError unless each is known and of its type."""
    usual = {field.name: getattr(training, field.name) for field in fields(training)}
    try:
        changed: Training = made(Training, "training", {**usual, **settings})
    except TypeError as error:
        raise ValueError(f"{error}: expected settings of tinylatent.Training, such as steps=1500") from None
    return changed


def _listed(value: Any) -> Any:
    """The value as JSON has it: numbers of numpy and torch as plain ones, arrays and tuples as lists, at any depth."""
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {name: _listed(each) for name, each in value.items()}
    return [_listed(each) for each in value] if isinstance(value, list | tuple) else value


def _check_path(path: Any) -> None:
    """Raises ValueError unless it is a path, or None."""
    if path is not None and not isinstance(path, Path | str):
        raise ValueError(f"a folder {short(path)}: expected a path, such as 'runs/a'")


def _check_method(method: Any) -> None:
    """Raises ValueError unless it is a method, and not its class or name."""
    if not isinstance(method, Method) or not hasattr(method, "name"):
        raise ValueError(
            f"{short(method)} is no method: expected an instance of a subclass of tinylatent.Method that has a name, "
            "such as tinylatent.METHODS['cot2']()"
        )


def _trained(experiment: Experiment, folder: Path, device: str) -> Trained:
    record = done(experiment, folder, device)
    return Trained(experiment, load_checkpoint(experiment, folder, device_named(device)), record)


def done(
    experiment: Experiment, folder: Path, device: str, start: Path | None = None, store: Path | None = None
) -> ExperimentRecord:
    """The record of an experiment in its folder: the stored one, or it is measured now, under a bar, and stored.

    Args:
        experiment: what to train.
        folder: where it is kept.
        device: where to train.
        start: folder of the run it starts from.
        store: where that run is done first, if no folder is given; by default it is trained under folder/start.
    """
    record = _stored(experiment, folder)
    if record is not None:
        print(f"finished before: {folder}", file=sys.stderr)
        return record
    if experiment.start is not None and start is None:
        experiment.check(folder)  # before its start costs minutes
        first = folder / START if store is None else store / experiment.start.identity
        steps = f"{experiment.start.work} steps with settings of its own"
        print(f"first what it starts from, {experiment.start.label}, {steps}: {first}", file=sys.stderr)
        if store is not None:
            start = first
            try:
                done(experiment.start, first, device, store=store)
            except ValueError as error:
                raise ValueError(f"its start cannot be done ({error}): name one of your own by --start") from error
    with _bar(experiment) as on_progress:
        found: ExperimentRecord = Job(experiment, folder, device, start).do(on_progress)
    return found


def train_together(
    experiment: Experiment, folder: Path, device: str, spread: "Spread", half: bool = False, start: Path | None = None
) -> bool:
    """Trains an experiment in its folder by all processes that torchrun has started; each of them calls this.

    Args:
        experiment: what to train.
        folder: where it is kept; all processes see it.
        device: where to train.
        spread: whether each process has the whole model, "ddp", or a part of it, "fsdp".
        half: whether "fsdp" computes in bfloat16.
        start: folder of the run it starts from; by default that is trained first, under folder/start.

    Returns:
        whether this process is the first, which is to measure what was trained.

    Raises:
        ValueError: torchrun has not started this process; or as `train`.
    """
    from tinylatent.training.distributed import joined  # a fifth of a second that most runs do not need

    if _stored(experiment, folder) is not None:
        return os.environ.get("RANK", "0") == "0"
    with joined(spread, half) as team, _bar(experiment) if team.leads else contextlib.nullcontext() as on_progress:
        team.check(experiment.method)  # before its start costs hours
        train(experiment, folder, device_named(device), on_progress, start=start, team=team)
        return team.leads


@contextlib.contextmanager
def _bar(experiment: Experiment) -> Iterator[Progress]:
    """A bar that begins at the step where training does, so that its pace is that of the steps made here."""
    bars: list[tqdm] = []
    words: list[Words] = []
    with contextlib.ExitStack() as stack:

        def on_progress(step: int, loss: float) -> None:
            if not bars:
                how: dict[str, Any] = {"desc": experiment.label, "unit": "step", "mininterval": 0.5, "disable": None}
                bars.append(stack.enter_context(tqdm(total=experiment.work, initial=step, **how)))
                words.extend([Words(experiment.work)] if bars[0].disable else [])
            if math.isfinite(loss):  # there is none before the first step
                bars[0].set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bars[0].update(step - bars[0].n)
            for each in words:
                each.tell(step)

        yield on_progress


def _stored(experiment: Experiment, folder: Path) -> ExperimentRecord | None:
    """The record of a finished run in its own folder; None in any other folder, which training refuses or takes."""
    if not (folder / CONFIG).exists() or read_config(folder) != experiment:
        return None
    return stored_record(experiment, folder)
