"""Exact tasks: problems, frontiers and answers from vectorised programmes, each with an independent slow solver.

Imports numpy and scipy only. To add a task, write a frozen dataclass that is a `tasks.Task` and put it into
REGISTRY: the tests of tests/tasks/test_registry.py then run over it.
"""

from tasks.arithmetic import Arithmetic
from tasks.batch import Batch, Vocabulary
from tasks.mnns import MNNS
from tasks.multihop import MultiHop
from tasks.reachability import Reachability
from tasks.recommendation import Recommendation
from tasks.subset_sum import SubsetSum
from tasks.task import Task

REGISTRY: dict[str, type[Task]] = {
    task.name: task for task in (MNNS, SubsetSum, MultiHop, Reachability, Arithmetic, Recommendation)
}

__all__ = [
    "MNNS",
    "REGISTRY",
    "Arithmetic",
    "Batch",
    "MultiHop",
    "Reachability",
    "Recommendation",
    "SubsetSum",
    "Task",
    "Vocabulary",
]
