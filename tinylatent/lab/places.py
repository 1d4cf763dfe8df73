"""Places: studies whose arms are trained on several tasks; a prefix of an arm's name says which. And whose a run is."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from tinylatent_tasks import Task

from tinylatent.lab.experiment import Experiment
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import Method


@dataclass(frozen=True)
class Place:
    """A task, and the model that is trained on it; studies add how."""

    title: str
    """What tables call it."""
    task: Task
    model: ModelConfig


def split_arm(arm: str, prefixes: Iterable[str]) -> tuple[str, str]:
    """The prefix of an arm's place, the longest that fits, and its kind; "" is the main place's."""
    prefix = max((prefix for prefix in prefixes if arm.startswith(prefix)), key=len)
    return prefix, arm.removeprefix(prefix)


def known_arm(
    run: Experiment, study: str, arms: Mapping[str, tuple[str, Method, str]], build: Callable[[str], Experiment]
) -> str:
    """The arm that a run is of, by its method and task; where several fit, by its model, then by its steps.

    Args:
        run: the run; if its steps, those of its start included, are of no arm that fits, as in a quick profile, it is
            of the first.
        study: the study's name, for the error.
        arms: label, method and colour of every arm.
        build: the run of an arm.

    Raises:
        ValueError: it is of none.
    """
    fits = {arm: build(arm) for arm, (_, method, _) in arms.items() if method == run.method}
    fits = {arm: usual for arm, usual in fits.items() if usual.task == run.task}
    if not fits:
        raise ValueError(
            f"a run of {run.method.name} on {run.task.name} is of no arm of study {study}: expected {', '.join(arms)}"
        )
    return max(fits, key=lambda arm: (fits[arm].model == run.model, _steps(fits[arm]) == _steps(run)))


def same_arm(run: Experiment, study: str, arms: Iterable[str], build: Callable[[str, int], Experiment]) -> str:
    """The arm that a run is of, which is as in it but for its seeds and how long it was trained.

    Raises:
        ValueError: it is of none.
    """
    for arm in arms:
        usual = build(arm, run.seeds.split)
        if replace(run, training=replace(run.training, steps=usual.training.steps), seeds=usual.seeds) == usual:
            return arm
    raise ValueError(f"{run.label} is no run of study {study}: expected one of {', '.join(arms)}")


def _steps(run: Experiment | None) -> tuple[int, ...]:
    """Steps of a run and of all that it starts from."""
    return () if run is None else (run.training.steps, *_steps(run.start))
