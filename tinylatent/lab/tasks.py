"""Tasks by name: this package's and any other's, registered under the entry-point group "tinylatent.tasks"."""

import dataclasses

from tinylatent_tasks import Task

from tinylatent.core.registry import Registry

TASKS: Registry[type[Task]] = Registry(
    "tinylatent.tasks",
    "task",
    named=True,
    expects="a dataclass that inherits from Task",
    fits=lambda kind: isinstance(kind, type) and issubclass(kind, Task) and dataclasses.is_dataclass(kind),
)
"""Tasks by name: reading it finds what is installed."""
