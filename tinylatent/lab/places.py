"""Places: studies whose arms are trained on several tasks; a prefix of an arm's name says which."""

from collections.abc import Callable, Iterable, Mapping

from tinylatent_tasks import Task

from tinylatent.lab.experiment import Experiment
from tinylatent.objectives.method import Method


def split_arm(arm: str, prefixes: Iterable[str]) -> tuple[str, str]:
    """The prefix of an arm's place, the longest that fits, and its kind; "" is the main place's."""
    prefix = max((prefix for prefix in prefixes if arm.startswith(prefix)), key=len)
    return prefix, arm.removeprefix(prefix)


def known_arm(
    run: Experiment, study: str, arms: Mapping[str, tuple[str, Method, str]], task_of: Callable[[str], Task]
) -> str:
    """The arm that a run is of, by its method and task.

    Args:
        run: the run.
        study: the study's name, for the error.
        arms: label, method and colour of every arm.
        task_of: the task of an arm.

    Raises:
        ValueError: it is of none.
    """
    for arm, (_, method, _) in arms.items():
        if method == run.method and task_of(arm) == run.task:
            return arm
    raise ValueError(
        f"a run of {run.method.name} on {run.task.name} is of no arm of study {study}: expected {', '.join(arms)}"
    )
