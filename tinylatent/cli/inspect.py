"""What there is: `list` names everything that is registered, `show` a problem with its exact frontier."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from tinylatent.cli.run import arms_listed
from tinylatent.cli.terminal import first_sentence, listed, refuse_idle
from tinylatent.core.environment import environment
from tinylatent.core.files import json_text, json_value
from tinylatent.engine.controls import CONTROLS
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import load
from tinylatent.lab.launchers import LAUNCHERS
from tinylatent.lab.names import run_name
from tinylatent.lab.recipes import is_tuned, recipes
from tinylatent.lab.sheets import format_of
from tinylatent.lab.study import STUDIES
from tinylatent.lab.tasks import TASKS
from tinylatent.lab.thinking import think
from tinylatent.lab.thought_figure import draw_thought
from tinylatent.methods import METHODS


@dataclass(frozen=True)
class List:
    """Tasks, methods, controls, studies, recipes and launchers there are, with a sentence each."""

    json: bool = False
    """Print JSON instead of text; it has a sentence about each recipe, not about each comparison."""

    def run(self) -> None:
        """Prints what is registered."""
        groups = {
            "tasks": {name: first_sentence(kind.__doc__) for name, kind in TASKS.loaded().items()},
            "methods": {name: first_sentence(kind.__doc__) for name, kind in METHODS.loaded().items()},
            "controls": {name: first_sentence(kind.__doc__) for name, kind in CONTROLS.items()},
            "studies": {name: study.question for name, study in STUDIES.loaded().items()},
            "launchers": {name: first_sentence(kind.__doc__) for name, kind in LAUNCHERS.loaded().items()},
        }
        if self.json:
            found = {name: _about(name, build()) for name, build in recipes().items()}
            print(json_text({**groups, "recipes": found}, indent=2))
            return
        groups["recipes (comparison/method)"] = arms_listed()
        print("\n".join(listed(title, entries) for title, entries in groups.items()))


def _about(name: str, run: Experiment) -> str:
    """A sentence about a recipe."""
    rates = f"learning rate {run.training.learning_rate:g}, weight decay {run.training.weight_decay:g}"
    tuned = "tuned" if is_tuned(name) else "not tuned"
    return f"{run.method.label or run.method.name} on {run.task.name}, {run.training.steps} steps, {rates} ({tuned})."


@dataclass(frozen=True)
class Show:
    """One problem, its answer and its exact frontier step by step; with a checkpoint, the model's own beside it."""

    task: tyro.conf.Positional[str]
    """Name of the task, such as mnns."""
    problem: tyro.conf.Positional[tuple[str, ...]]
    """The problem: its numbers, such as 3 5 2 8, or a JSON value; a random one by default."""
    checkpoint: Path | None = None
    """Folder of a run whose model thinks about the problem too."""
    seed: int = 0
    """Which random problem, where none is given."""
    figure: Path | None = None
    """File for a figure of the same, PNG, PDF or SVG by its suffix."""
    json: bool = False
    """Print JSON instead of text: all that the figure shows, and the run, its seeds and the environment."""

    def run(self) -> None:
        """Prints the problem and, step by step, where the oracle and the model are."""
        loaded = None if self.checkpoint is None else load(self.checkpoint)
        if loaded is None or loaded[0].task.name != self.task:  # which may be lines of a file
            TASKS.named(self.task)
        if self.problem:
            refuse_idle(self, ("seed",), "beside a problem")
        if self.figure is not None:
            format_of(self.figure)
        if loaded is not None and loaded[0].task.name != self.task:
            name = loaded[0].task.name
            raise ValueError(f"{self.checkpoint} was trained on {name}, not on {self.task}: show {name} instead")
        task, row = self._chosen(None if loaded is None else loaded[0].task)
        experiment, model = (None, None) if loaded is None else loaded
        found = think(task, row, experiment, model)
        values: dict[str, Any] = {**found.to_json(), "environment": environment()}
        if experiment is not None:
            run = {"id": experiment.identity, "name": run_name(experiment), "seeds": asdict(experiment.seeds)}
            values["run"] = run
        if self.figure is not None:
            draw_thought(values, self.figure)
        if self.json:
            print(json_text(values))
            return
        print(task.describe(row.tolist()) if loaded is None else found)
        if self.figure is not None:
            print(f"figure: {self.figure}")

    def _chosen(self, trained: Any) -> tuple[Any, np.ndarray]:
        """The problem and the task it is of: the one trained on, or one that holds it."""
        kind: Any = TASKS.named(self.task) if trained is None else None
        if not self.problem:
            task = kind() if trained is None else trained
            return task, task.problems(1, self.seed)[0]
        item = parsed(" ".join(self.problem))
        try:
            task = kind.fitting(item) if trained is None else trained.holding(item)
            return task, task.read(item)
        except ValueError as error:
            raise ValueError(f"this is no problem of {self.task}: {error}") from None


def parsed(text: str) -> Any:
    """A problem as typed: numbers with spaces between them, or a JSON value; ValueError for anything else."""
    try:
        return [int(word) for word in text.split()]
    except ValueError:
        pass
    try:
        return json_value(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{text[:80]!r} is no problem: expected numbers, such as 3 5 2 8, or a JSON value") from None
