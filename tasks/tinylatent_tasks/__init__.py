"""Exact tasks: vectorised problems, frontiers and answers, every task with an independent slow solver.

Imports numpy and scipy only. To add a task, write a frozen dataclass that is a `tinylatent_tasks.Task` and register it
by one line of entry points, under "tinylatent.tasks": commands find it there; tests/tasks/test_registry.py tests it.
"""

from tinylatent_tasks.arithmetic import Arithmetic
from tinylatent_tasks.batch import Batch, Vocabulary
from tinylatent_tasks.composition import Composition
from tinylatent_tasks.mnns import MNNS
from tinylatent_tasks.multihop import MultiHop
from tinylatent_tasks.reachability import Reachability
from tinylatent_tasks.recommendation import Recommendation
from tinylatent_tasks.stories import Stories
from tinylatent_tasks.subset_sum import SubsetSum
from tinylatent_tasks.task import Task

__all__ = [
    "MNNS",
    "Arithmetic",
    "Batch",
    "Composition",
    "MultiHop",
    "Reachability",
    "Recommendation",
    "Stories",
    "SubsetSum",
    "Task",
    "Vocabulary",
]
