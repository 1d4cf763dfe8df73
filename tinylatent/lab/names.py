"""Names of runs: the nearest recipe and what differs from it, such as "mnns/cot2 seed=3 training.steps=900"."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from tinylatent.lab.experiment import Experiment
from tinylatent.lab.recipes import recipes
from tinylatent.lab.run import Run

Settings = dict[str, Any]
"""Values by dotted name, such as "training.steps"."""
WIDEST = 60
"""Characters of a shortened name."""


def settings(run: Run) -> Settings:
    """Every setting of a run, defaults included."""
    return dict(_flat(_whole(run) if isinstance(run, Experiment) else run.to_json()))


def _whole(run: Experiment) -> dict[str, Any]:
    parts = {name: getattr(run, name) for name in ("task", "method", "model", "training", "seeds")}
    parts |= {name: part for name, part in (("hf", run.hf), ("text", run.text)) if part is not None}
    named = {"task": {"name": run.task.name}, "method": {"name": run.method.name, "version": run.method.version}}
    values: dict[str, Any] = {name: named.get(name, {}) | dataclasses.asdict(part) for name, part in parts.items()}
    return values if run.start is None else {**values, "start": _whole(run.start)}


def _flat(values: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def written(value: Any) -> str:
    """A setting as names and filters have it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(map(written, value))
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def run_name(run: Run, known: Mapping[str, Settings] | None = None) -> str:
    """The name of a run: the nearest recipe, the seed, and every setting that differs from the recipe's.

    The nearest recipe has the run's task, model and method, and differs in the fewest other settings. Where no recipe
    has all three, it is "task/method", and where that does not exist either, the defaults go by this name. A run that
    is no experiment, or has a model of transformers, is named by its label.

    Args:
        run: what to name.
        known: `recipe_settings()`, for many names at once.
    """
    if not isinstance(run, Experiment) or run.hf is not None:
        return run.label
    recipes = recipe_settings() if known is None else known
    required = {
        name: value for name, value in settings(run).items() if name.startswith(("task.", "model.", "method.name"))
    }
    differing = {
        name: _differing(run, recipe) for name, recipe in recipes.items() if required.items() <= recipe.items()
    }
    if not differing:
        usual = f"{run.task.name}/{run.method.name}"
        recipe = recipes.get(usual) or settings(Experiment(type(run.task)(), type(run.method)()))
        differing = {usual: _differing(run, recipe)}
    nearest = min(differing, key=lambda name: len(differing[name]))
    changes = [f"{name}={value}" for name, value in differing[nearest].items()]
    return " ".join([nearest, f"seed={run.seeds.split}", *changes])


def short(name: str) -> str:
    """A name that fits into a table or a message."""
    return name if len(name) <= WIDEST else name[: WIDEST - 3] + "..."


def recipe_settings() -> dict[str, Settings]:
    """The settings of every recipe."""
    return {name: settings(build(0)) for name, build in recipes().items()}


SHARED = ("start.task.", "start.model.", "start.seeds.split", "start.training.num_train")
"""Settings that a run has in common with the one it starts from."""


def _differing(run: Experiment, recipe: Settings) -> dict[str, str]:
    """The settings of a run that differ from a recipe's of the same seed."""
    left_out = SHARED if (run.start is not None) == ("start.task.name" in recipe) else ("start.",)
    theirs = {name: run.seeds.split if ".seeds." in f".{name}" else value for name, value in recipe.items()}
    found = {
        name: written(value)
        for name, value in settings(run).items()
        if not name.startswith(left_out) and (name not in theirs or theirs[name] != value)
    }
    if left_out is SHARED:
        return found
    return found | {"start": "none" if run.start is None else run.start.identity}
