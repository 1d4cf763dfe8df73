"""Tasks by name: this package's and any other's, registered under the entry-point group "tinylatent.tasks"."""

from tinylatent_tasks import Task

from tinylatent.core.registry import Registry

TASKS: Registry[type[Task]] = Registry("tinylatent.tasks", "task", named=True)
"""Tasks by name: reading it finds what is installed."""
