"""What there is: `list` names everything that is registered, `show` a problem with its exact frontier."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from tinylatent.cli.run import arms_listed
from tinylatent.cli.terminal import first_sentence, listed
from tinylatent.engine.controls import CONTROLS
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import load
from tinylatent.lab.launchers import LAUNCHERS
from tinylatent.lab.recipes import is_tuned, recipes
from tinylatent.lab.study import STUDIES
from tinylatent.lab.tasks import TASKS
from tinylatent.methods import METHODS
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import Model
from tinylatent.objectives.speakers import Symbols


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
            print(json.dumps({**groups, "recipes": found}, indent=2))
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
    """Which random problem."""
    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> None:
        """Prints the problem and, step by step, where the oracle and the model are."""
        TASKS.named(self.task)
        loaded = None if self.checkpoint is None else load(self.checkpoint)
        if loaded is not None and loaded[0].task.name != self.task:
            name = loaded[0].task.name
            raise ValueError(f"{self.checkpoint} was trained on {name}, not on {self.task}: show {name} instead")
        task, row = self._chosen(None if loaded is None else loaded[0].task)
        if self.json:
            print(json.dumps(self._steps(task, row, loaded)))
            return
        print(task.describe(row.tolist()))
        if loaded is None:
            return
        for step in self._steps(task, row, loaded)["steps"]:
            print(f"\nstep {step['step']:<4d} oracle   {loaded[0].method.name}")
            for token, shares in step["shares"].items():
                model = f"{shares['model']:8.4f}" if "model" in shares else f"{'-':>8s}"
                print(f"  {token:>6s} {shares['oracle']:8.4f} {model}")

    def _chosen(self, trained: Any) -> tuple[Any, np.ndarray]:
        """The problem and the task it is of: the one trained on, or one that holds it."""
        kind: Any = TASKS.named(self.task)
        if not self.problem:
            task = kind() if trained is None else trained
            return task, task.problems(1, self.seed)[0]
        item = parsed(" ".join(self.problem))
        try:
            task = kind.fitting(item) if trained is None else trained.holding(item)
            return task, task.read(item)
        except ValueError as error:
            raise ValueError(f"this is no problem of {self.task}: {error}") from None

    def _steps(self, task: Any, row: np.ndarray, loaded: tuple[Experiment, Model] | None) -> dict[str, Any]:
        """Every step's states of more than a thousandth, by the oracle and the model. The model's last step answers."""
        batch = task.batch(row[None])
        oracle_TV, model_TV, answer = batch.frontier_BTV[0, : batch.steps_B[0]], None, {}
        if loaded is not None:
            experiment, model = loaded
            model_TV, answer_A = _think(experiment, model, Symbols(task, row[None]).examples())
            answer = {"model": task.write(row, answer_A)}
        steps = []
        for t, oracle_V in enumerate(oracle_TV):
            # Answers of several tokens end later than the oracle, which knows the last of them alone.
            thought = None if model_TV is None else t - len(oracle_TV) + len(model_TV)
            model_V = model_TV[thought] if model_TV is not None and thought is not None and thought >= 0 else None
            shown = oracle_V > 1e-3 if model_V is None else (oracle_V > 1e-3) | (model_V > 1e-3)
            shares = {
                task.vocabulary.tokens[i]: {"oracle": float(oracle_V[i])}
                | ({} if model_V is None else {"model": float(model_V[i])})
                for i in np.flatnonzero(shown)
            }
            steps.append({"step": t + 1, "shares": shares})
        right = task.say(task.answer_ids(task.answer(row[None]))[0])
        return {"problem": task.to_json(row.tolist()), "answer": right, "steps": steps, **answer}


def parsed(text: str) -> Any:
    """A problem as typed: numbers with spaces between them, or a JSON value; ValueError for anything else."""
    try:
        return [int(word) for word in text.split()]
    except ValueError:
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{text[:80]!r} is no problem: expected numbers, such as 3 5 2 8, or a JSON value") from None


def _think(experiment: Experiment, model: Model, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """The model's distribution at each step (T, V) and its answer's ids (A,), for one problem."""
    solution = experiment.method.solve(model, examples, experiment.streams(torch.arange(1)))
    with torch.no_grad():
        return solution.trace.logits_BTV[0].softmax(-1).numpy(), solution.answer_BA[0].numpy()
