"""Study `tasks-tuning`: a learning rate for every method on every task of study `tasks` but MNNS, which has its own.

Three peak learning rates each, the same number for every method, the better two on a second seed; see `search`. All
else is as study `tasks` trains, with Coconut's schedule the one that study `mnns-tuning` chose. What is found stands in
`recipes.COMPARISONS`.
"""

from pathlib import Path

from tinylatent.lab.arms import arms
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.recipes import COMPARISONS
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.compare import grouped, method_of
from tinylatent.lab.studies.search import FIRST, Contender, better_rates, draw_rates, rates_table
from tinylatent.lab.studies.tasks import comparison_of, shortened
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table

RATES: dict[str, tuple[float, ...]] = {
    "subset-sum": (2e-3, 5e-3, 1e-2),
    "multihop": (1e-3, 3e-3, 1e-2),
    "reachability": (2e-3, 5e-3, 1e-2),
}
"""Peak learning rates by comparison."""
SECOND = 101


def grid(profile: Profile) -> list[Experiment]:
    """The first round: every method, task and rate on the first seed."""
    return [
        shortened(arm.recipe(FIRST, learning_rate=rate), profile)
        for name, rates in RATES.items()
        for arm in arms(name).values()
        for rate in rates
    ]


def after(profile: Profile, records: list[ExperimentRecord]) -> list[Experiment]:
    """The second round: the better half of the rates on one seed more."""
    return [
        shortened(arms(name)[method].recipe(SECOND, learning_rate=rate), profile)
        for (name, method), group in grouped(records, lambda record: (comparison_of(record), method_of(record))).items()
        for rate in better_rates(group, RATES[name])
    ]


def contender(record: ExperimentRecord) -> Contender:
    """The method and task of a record."""
    return method_of(record), COMPARISONS[comparison_of(record)].title


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """Every rate of every method and task, which was chosen, and how surely."""
    title = "Learning rates on other tasks, on tuning splits"
    return [rates_table(title, "task", grouped(records, contender), arms("subset-sum"), seeds=2)]


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """A panel a task."""
    draw_rates(grouped(records, contender), arms("subset-sum"), path)


STUDY = Study(
    "tasks-tuning",
    "Which learning rate suits each method on subset sum, multi-hop lookup and reachability, given the same search?",
    grid,
    tables,
    draw,
    after,
)
