"""The package's own commands; each is a dataclass whose fields are its arguments."""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from tasks import REGISTRY
from tinylatent.cli.choices import AnyMethod, AnyTask
from tinylatent.core.environment import environment
from tinylatent.core.files import write_json
from tinylatent.core.seeds import Seeds
from tinylatent.engine.controls import CONTROLS
from tinylatent.evaluation.statistics import accuracy_interval
from tinylatent.lab import bench
from tinylatent.lab.experiment import Experiment, device_named
from tinylatent.lab.measure import ITSELF, measure
from tinylatent.lab.run import load
from tinylatent.lab.study import RUNS, kept, rebuild, reproduce, studies, study_of
from tinylatent.methods import METHODS, CoT2
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import Model
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.config import Training

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class List:
    """Tasks, methods, controls and studies there are, with a sentence each."""

    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> None:
        """Prints what is registered."""
        groups = {
            "tasks": {name: _first_sentence(kind) for name, kind in REGISTRY.items()},
            "methods": {name: _first_sentence(kind) for name, kind in METHODS.items()},
            "controls": {name: _first_sentence(kind) for name, kind in CONTROLS.items()},
            "studies": {name: study.question for name, study in studies().items()},
        }
        if self.json:
            print(json.dumps(groups, indent=2))
            return
        for title, entries in groups.items():
            print(title)
            width = max(map(len, entries))
            for name, text in entries.items():
                print(f"  {name:{width}s}  {text}")


def _first_sentence(kind: type) -> str:
    text = " ".join((kind.__doc__ or "").split())
    return text.split(". ")[0].rstrip(".") + "."


@dataclass(frozen=True)
class Run:
    """Train one method on one task and evaluate it; interrupted runs go on where they stopped."""

    out: Path
    """Folder of the run: config, metrics, checkpoint, and result.json at the end."""
    method: AnyMethod = field(default_factory=CoT2)
    """How to think."""
    task: AnyTask = field(default_factory=REGISTRY["mnns"])
    """What to solve."""
    shape: ModelConfig = field(default_factory=ModelConfig)
    """Size of the transformer."""
    training: Training = field(default_factory=Training)
    """How to train it; what is left at its default is the method's own where it has one (grpo: 1000 steps, rate 3e-4,
    no decay, checkpoints every 100 steps)."""
    start: Path | None = None
    """Folder of a finished run whose weights to start from; task, shape, split and number of problems are taken from
    it."""
    seed: int = 0
    """Root seed of split, initial weights, order and sampling."""
    split_seed: int | None = None
    """Varies the split alone; the root seed by default."""
    init_seed: int | None = None
    """Varies the initial weights alone."""
    order_seed: int | None = None
    """Varies the order of training problems alone."""
    sampling_seed: int | None = None
    """Varies what is sampled alone."""
    device: Device = "auto"
    """Where to train."""
    json: bool = False
    """Print the record as JSON instead of a table."""

    def run(self) -> None:
        """Trains, evaluates, stores and prints."""
        experiment = self._experiment()
        own = {
            name: value for name, value in vars(experiment.training).items() if value != getattr(self.training, name)
        }
        if own:
            taken = ", ".join(f"{name} {value}" for name, value in own.items())
            print(f"training as {self.method.name} and its start have it: {taken}", file=sys.stderr)
        with tqdm(
            total=experiment.training.steps, desc=self.method.name, unit="step", mininterval=0.5, disable=None
        ) as bar:

            def on_progress(step: int, loss: float) -> None:
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update(step - bar.n)

            record = measure(experiment, self.out, device_named(self.device), on_progress, self.start)
        write_json(self.out / "result.json", record)
        if self.json:
            print(json.dumps(record))
            return
        for part, judged in (("before ", record.get("before")), ("", record)):
            for name, evaluation in {} if judged is None else judged["evaluations"].items():
                interval = accuracy_interval([evaluation["right"]], [record["total"]])
                label = part + (self.method.name if name == ITSELF else f"{self.method.name}, {name}")
                low, value, high = (100 * x for x in (interval.low, interval.value, interval.high))
                print(f"{label:18s} {value:6.2f} %  [{low:.2f}, {high:.2f}]")
        for level, rung in record.get("ladder", {}).items():
            interval = accuracy_interval([rung["right"]], [rung["total"]])
            low, value, high = (100 * x for x in (interval.low, interval.value, interval.high))
            print(f"{f'difficulty {level}':18s} {value:6.2f} %  [{low:.2f}, {high:.2f}]")
        if record["attainable"] < 1:
            print(f"{'attainable':18s} {100 * record['attainable']:6.2f} %  expected of the best guess")
        print(f"result: {self.out / 'result.json'}")

    def _experiment(self) -> Experiment:
        seeds, task, shape, usual = self._seeds(), self.task, self.shape, Training()
        own = {
            name: value
            for name, value in self.method.recipe.items()
            if getattr(self.training, name) == getattr(usual, name)
        }
        training = replace(self.training, **own)
        if self.start is None:
            return Experiment(task, self.method, shape, training, seeds)
        start, _ = load(self.start)
        for name, given, default in (("task", task, REGISTRY["mnns"]()), ("shape", shape, ModelConfig())):
            if given not in (default, getattr(start, name)):
                raise ValueError(f"--{name} is not that of {self.start}: leave it out, it is taken from the start")
        if self.split_seed not in (None, start.seeds.split):
            raise ValueError(f"--split-seed is not that of {self.start}: leave it out, it is taken from the start")
        if training.problems not in (None, start.training.problems):
            raise ValueError(
                f"--training.problems is not that of {self.start}: leave it out, it is taken from the start"
            )
        training = replace(training, problems=start.training.problems)
        return Experiment(
            start.task, self.method, start.shape, training, replace(seeds, split=start.seeds.split), start
        )

    def _seeds(self) -> Seeds:
        given = (self.split_seed, self.init_seed, self.order_seed, self.sampling_seed)
        return Seeds(*(self.seed if seed is None else seed for seed in given))


@dataclass(frozen=True)
class Reproduce:
    """Run a study: a table and a figure, with intervals and provenance. Finished runs are skipped."""

    study: tyro.conf.Positional[str]
    """Name of the study; `tinylatent list` shows them."""
    profile: Literal["quick", "full"] = "quick"
    """Minutes, or the whole grid."""
    workers: int = 2
    """Processes, one thread each."""
    results: Path = Path("results")
    """Folder of results."""
    device: Device = "cpu"
    """Where the runs train."""
    json: bool = False
    """Print the tables as JSON instead of text."""

    def run(self) -> None:
        """Measures what is missing and prints the tables and where the files are."""
        known = studies()
        if self.study not in known:
            raise ValueError(f"unknown study {self.study!r}: expected one of {', '.join(known)}")
        device = str(device_named(self.device))
        outcome = reproduce(known[self.study], self.profile, self.results, self.workers, device)
        if self.json:
            tables = [{"title": table.title, "rows": table.rows} for table in outcome.tables]
            print(json.dumps({"tables": tables, "files": {name: str(path) for name, path in outcome.files.items()}}))
            return
        print()
        for table in outcome.tables:
            print(table.markdown())
        for name, path in outcome.files.items():
            print(f"{name:16s} {path}")


@dataclass(frozen=True)
class Rebuild:
    """Tables, figures and provenance again, from the stored runs alone; tables come out the same, byte for byte."""

    folders: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders of results by name, such as mnns."""
    all: bool = False
    """All folders of results."""
    results: Path = Path("results")
    """Folder that holds them; results/runs/quick for those of quick profiles."""

    def run(self) -> None:
        """Rebuilds and prints what was written."""
        found = kept(self.results)
        names = ", ".join(folder.name for folder in found)
        if not found:
            raise ValueError(f"{self.results} holds no results: expected folders with a runs.jsonl; try --results PATH")
        if self.all == bool(self.folders):
            raise ValueError(f"rebuild needs names or --all, one of the two: there are {names}")
        chosen = found if self.all else [self.results / name for name in self.folders]
        missing = [folder.name for folder in chosen if folder not in found]
        if missing:
            raise ValueError(f"{self.results} has no results {missing[0]!r}: expected one of {names}")
        for folder in tqdm(chosen, unit="study", disable=None):
            outcome = rebuild(study_of(folder), folder)
            tqdm.write("\n".join(str(path) for name, path in outcome.files.items() if name != RUNS), file=sys.stdout)


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
        if self.task not in REGISTRY:
            raise ValueError(f"unknown task {self.task!r}: expected one of {', '.join(REGISTRY)}")
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
        kind = REGISTRY[self.task]
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


@dataclass(frozen=True)
class Bench:
    """Speed on this machine, one thread: training, evaluation, and the same without the laboratory around it."""

    rounds: int = 20
    """Rounds of short interleaved timings; ratios are taken within a round, medians over rounds."""
    groups: tuple[int, ...] = ()
    """Time GRPO's rollouts at these group sizes instead, such as 8 64 256."""
    device: Device = "cpu"
    """Where those are timed."""
    json: bool = False
    """Print JSON instead of a table."""
    profile: bool = True
    """Show where a training step's time goes (on standard error with --json)."""

    def run(self) -> None:
        """Times everything in turn and prints medians."""
        torch.set_num_threads(1)
        where = device_named(self.device)
        if self.groups:
            figures = bench.grouped_rollouts(self.groups, self.rounds, where)
        elif where.type == "cpu":
            figures = bench.measure(self.rounds)
        else:
            raise ValueError("bench compares with one CPU thread: give --groups to time rollouts on another device")
        if self.json:
            name = torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"
            print(json.dumps({**figures, "rounds": self.rounds, "device": name, "environment": environment()}))
        else:
            for name, value in figures.items():
                print(f"{name:24s} {value:12,.3f}" if value < 100 else f"{name:24s} {value:12,.0f}")
        if self.profile and not self.groups:
            print("\n" + bench.profile(), file=sys.stderr if self.json else sys.stdout)
