"""Study `tasks-tuning`: a learning rate for every method on every task of study `tasks` but MNNS, which has its own.

Three peak learning rates each, the same number for every method, the better two on a second seed; see `search`. Weight
decay is 0.05, Coconut's schedule the one that study `mnns-tuning` chose. What is found is frozen in
`task_lineup.RATES`.
"""

from pathlib import Path

from tinylatent.lab.experiment import Experiment
from tinylatent.lab.report import Table
from tinylatent.lab.studies.compare import grouped, method_of
from tinylatent.lab.studies.lineup import METHODS
from tinylatent.lab.studies.search import FIRST, Contender, better_rates, draw_rates, rates_table
from tinylatent.lab.studies.task_lineup import experiment, place_of
from tinylatent.lab.study import Profile, Record, Study

RATES: dict[str, tuple[float, ...]] = {
    "subset sum": (2e-3, 5e-3, 1e-2),
    "multi-hop": (1e-3, 3e-3, 1e-2),
    "reachability": (2e-3, 5e-3, 1e-2),
}
DECAY, SECOND = 0.05, 101


def grid(profile: Profile) -> list[Experiment]:
    """The first round: every method, task and rate on the first seed."""
    return [
        experiment(place, method, FIRST, profile, rate)
        for place, rates in RATES.items()
        for method in METHODS
        for rate in rates
    ]


def after(profile: Profile, records: list[Record]) -> list[Experiment]:
    """The second round: the better half of the rates on one seed more."""
    groups = grouped(records, contender)
    return [
        experiment(place, method, SECOND, profile, rate)
        for place, rates in RATES.items()
        for method in METHODS
        for rate in better_rates(groups[method.name, place], rates, DECAY)
    ]


def contender(record: Record) -> Contender:
    """The method and task of a record."""
    return method_of(record), place_of(record)


def tables(records: list[Record]) -> list[Table]:
    """Every rate of every method and task, which was chosen, and how surely."""
    return [
        rates_table("Learning rates on other tasks, on tuning splits", "task", grouped(records, contender), seeds=2)
    ]


def draw(records: list[Record], path: Path) -> None:
    """A panel a task."""
    draw_rates(grouped(records, contender), path)


STUDY = Study(
    "tasks-tuning",
    "Which learning rate suits each method on subset sum, multi-hop lookup and reachability, given the same search?",
    grid,
    tables,
    draw,
    after,
)
