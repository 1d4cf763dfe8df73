"""Exact tasks: problems, frontiers and answers from vectorised programmes, each with an independent slow solver.

Imports numpy and scipy only. To add a task, write a frozen dataclass that follows `tasks.Task` and put it into
REGISTRY: the tests of tests/tasks/test_registry.py then run over it.
"""

from tasks.batch import Batch, Task, Vocabulary
from tasks.mnns import MNNS

REGISTRY: dict[str, type[Task]] = {"mnns": MNNS}

__all__ = ["MNNS", "REGISTRY", "Batch", "Task", "Vocabulary"]
