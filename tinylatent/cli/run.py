"""One run of a recipe: `run` trains what a study trains, but for the flags that are given."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import tyro

from tinylatent.cli.finished import kept_in, say, shown
from tinylatent.cli.run_text import RunText
from tinylatent.cli.terminal import Device, filled, first_sentence, listed, peeked
from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import load
from tinylatent.lab.recipes import OF_STUDIES, comparisons, is_tuned, recipe, recipes
from tinylatent.lab.trained import done
from tinylatent.methods import METHODS
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

NUM_DRAWN = 10_000
"""Problems to train on where a flag makes a task too large to list, and no number is given."""
SomeTask = TypeVar("SomeTask")
SomeMethod = TypeVar("SomeMethod")


@dataclass(frozen=True)
class Run(Generic[SomeTask, SomeMethod]):
    """Train a recipe and evaluate it. Interrupted runs go on where they stopped, finished ones are shown.

    Defaults are the recipe's: without flags it is the very run that a study of these recipes trains.
    """

    recipe: tyro.conf.Suppress[tyro.conf.Fixed[str]]
    """Its name, such as mnns/cot2."""
    task: SomeTask
    """What to solve."""
    method: SomeMethod
    """How to think."""
    model: ModelConfig
    """Size of the transformer."""
    training: Training
    """How to train it."""
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
    start: Path | None = None
    """Folder of a finished run whose weights to start from; task, model, split and number of training problems are
    taken from it. Recipes that start from another run train that one first by default."""
    out: Path | None = None
    """Folder of the run: config, metrics, checkpoints, and result.json at the end. By default the store that studies
    share, RESULTS/runs, under the run's identity."""
    results: Path = Path("results")
    """Folder of results."""
    device: Device = "cpu"
    """Where to train and evaluate; runs of different devices share a name, their records say which it was."""
    json: bool = False
    """Print the record as JSON instead of a table."""

    @classmethod
    def read(cls, arguments: Sequence[str]) -> "Run[Any, Any] | RunText[Any, Any]":
        """The run that the arguments name: first the recipe, or for a model of transformers the method; then flags.

        Raises:
            ValueError: there is no such recipe, or a flag is wrong.
            SystemExit: help was asked for and printed.
        """
        name, *flags = arguments or ["--help"]
        if name in ("-h", "--help"):
            print(introduction())
            raise SystemExit(0)
        if name in METHODS:
            return RunText.read(arguments)
        if name.startswith("-"):
            raise ValueError(f"{name} before the recipe: name it first, as in tinylatent run mnns/cot2 --seed 1")
        usual, folder = recipe(name), peeked(flags, "start").start
        task, model, training = usual.task, usual.model, usual.training
        if folder is not None:
            start, _ = load(Path(folder))
            if start.task.name != task.name:
                raise ValueError(
                    f"the run in {folder} is of task {start.task.name}, the recipe {name} of {task.name}: choose a "
                    "recipe of its task"
                )
            task, model = start.task, start.model
            training = replace(training, num_train=start.training.num_train)
        kind: Any = cls
        default = cls(name, task, usual.method, model, training)  # type: ignore[arg-type]
        found = filled(kind[type(task), type(usual.method)], f"tinylatent run {name}", flags, default)
        for flag in (flag.partition("=")[0] for flag in flags if flag.startswith("--method.")):
            why = found.method.idle.get(flag.removeprefix("--method.").replace("-", "_"))
            if why is not None:  # also where the value is the default, which no record would show
                raise ValueError(f"{flag} has no effect {why}: leave it out")
        return found

    def experiment(self) -> Experiment:
        """The whole run.

        Raises:
            ValueError: its parts do not go together, or a flag contradicts the run in the folder `start`.
        """
        given = (self.split_seed, self.init_seed, self.order_seed, self.sampling_seed)
        seeds = Seeds(*(self.seed if seed is None else seed for seed in given))
        task: Any = self.task
        training = self.training
        if training.num_train is None and not task.listed:
            training = replace(training, num_train=NUM_DRAWN)
            say(
                f"{NUM_DRAWN} problems to train on, since those of {task.name} of this size are too many to list; "
                "--training.num-train takes another number"
            )
        method: Any = self.method
        start = recipe(self.recipe, self.seed).start
        if self.start is not None:
            usual, (start, _) = start, load(self.start)
            if usual is not None and usual.method.name != start.method.name:
                print(
                    f"starting from {start.method.name}, where {self.recipe} starts from {usual.method.name}",
                    file=sys.stderr,
                )
            for flag, ours, theirs in self._contradictions(start):
                raise ValueError(
                    f"{flag} is {ours}, but the run in {self.start} has {theirs}: leave it out, task, model, split and "
                    "number of training problems are taken from the start"
                )
            seeds = replace(seeds, split=start.seeds.split)
        elif start is not None:
            earlier = replace(start.training, num_train=training.num_train)
            shared = replace(start.seeds, split=seeds.split)
            before = start.method
            if before.name == method.starts_from:
                before = replace(before, **method.start_settings)
            start = replace(start, task=task, method=before, model=self.model, training=earlier, seeds=shared)
        return Experiment(task, method, self.model, training, seeds, start)

    def _contradictions(self, start: Experiment) -> Iterator[tuple[str, Any, Any]]:
        """Flag, its value, and that of the start, wherever they differ and must not."""
        for word, ours, theirs in (("task", self.task, start.task), ("model", self.model, start.model)):
            for field in fields(theirs):
                pair = getattr(ours, field.name), getattr(theirs, field.name)
                if pair[0] != pair[1]:
                    yield f"--{word}.{field.name.replace('_', '-')}", *pair
        if self.split_seed not in (None, start.seeds.split):
            yield "--split-seed", self.split_seed, start.seeds.split
        if self.training.num_train != start.training.num_train:
            yield "--training.num-train", self.training.num_train, start.training.num_train

    def run(self) -> None:
        """Trains, evaluates, stores and prints."""
        experiment = self.experiment()
        folder, store = kept_in(self, experiment)
        if experiment.start is not None and self.start is None and self.training != recipe(self.recipe).training:
            say(
                f"flags of training are this run's own: for a start with other settings train one, and give --start; "
                f"this one is {experiment.start.label}"
            )
        record = done(experiment, folder, self.device, self.start, store)
        shown(record, folder, self.device, [*self._untuned(experiment)], self.json)

    def _untuned(self, experiment: Experiment) -> Iterator[str]:
        """Says if nobody searched for its learning rate."""
        if not is_tuned(self.recipe, experiment):
            yield f"learning rate and weight decay have not been tuned for these settings of {self.recipe}"


def introduction() -> str:
    """How to name a recipe."""
    methods = {name: first_sentence(kind.__doc__) for name, kind in METHODS.loaded().items()}
    return "\n".join(
        [
            "usage: tinylatent run RECIPE [flags]; tinylatent run RECIPE --help explains the flags",
            "       tinylatent run METHOD --hf.path FOLDER [flags] on a model of transformers; see docs/huggingface.md",
            "\nA recipe is comparison/method, such as mnns/cot2. It trains what studies train; flags override it.\n",
            listed("comparisons and their methods", arms_listed()),
            listed("methods", methods),
        ]
    )


def arms_listed() -> dict[str, str]:
    """A line about each comparison: its title and the second halves of its recipes' names."""
    found: dict[str, list[str]] = {}
    for name in recipes():
        comparison, _, arm = name.partition("/")
        found.setdefault(comparison, []).append(arm)
    titles = {name: comparison.title for name, comparison in comparisons().items()}
    titles |= {name: "arms of its study" for name in OF_STUDIES}
    return {f"{name}/": f"{titles.get(name, 'from a run of mnns')}: {', '.join(arms)}" for name, arms in found.items()}
