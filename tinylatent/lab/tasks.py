"""Tasks by name: this package's and any other's, registered under the entry-point group "tinylatent.tasks"."""

from tinylatent_tasks import Task

from tinylatent.core.registry import Registry, dataclass_of

TASKS: Registry[type[Task]] = Registry(
    "tinylatent.tasks",
    "task",
    named=True,
    expects="a dataclass that inherits from Task",
    fits=dataclass_of(Task),
)
"""Tasks by name: reading it finds what is installed."""
