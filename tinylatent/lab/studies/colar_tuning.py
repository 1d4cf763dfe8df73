"""Study `colar-tuning`: a learning rate for every family of arms of study `colar`, the same three for each.

On arithmetic, all three on split seed 100, the better two on seed 101; see `search`. CoLaR's rate is its usual form's,
at c = 5, which its ablations share; Coconut, pause as thought, removed steps, pause tokens and direct answers are tuned
as it is, and so is reinforcement learning. What is found stands in `recipes_colar`, for multi-hop too.
"""

from pathlib import Path

from tinylatent.lab.arms import Arm
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.recipes_colar import ARMS, FAMILIES, build, family_of, place_of
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.compare import grouped
from tinylatent.lab.studies.search import FIRST, Contender, better_rates, draw_rates, rates_table
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table

RATES, RL_RATES = (2e-3, 4e-3, 8e-3), (1e-4, 3e-4, 1e-3)
SECOND = 101
QUICK = ("direct",)


def rates_of(arm: str) -> tuple[float, ...]:
    """The rates tried for an arm."""
    return RL_RATES if family_of(arm) == "rl" else RATES


def grid(profile: Profile) -> list[Experiment]:
    """Every rate of every family on the first seed."""
    chosen = FAMILIES if profile == "full" else QUICK
    return [build(arm, FIRST, learning_rate=rate) for arm in chosen for rate in rates_of(arm)]


def after(profile: Profile, records: list[ExperimentRecord]) -> list[Experiment]:
    """The better two of each family on the second seed."""
    groups = grouped(records, contender)
    return [
        build(arm, SECOND, learning_rate=rate)
        for (arm, _), group in groups.items()
        for rate in better_rates(group, rates_of(arm))
    ]


def contender(record: ExperimentRecord) -> Contender:
    """The arm of a record and its task.

    Raises:
        ValueError: it is of no arm that is tuned.
    """
    run = record.experiment
    for arm in FAMILIES:
        if ARMS[arm][1] == run.method and run.task == place_of(arm).task:
            return arm, place_of(arm).title
    raise ValueError(f"run {record.id} is none of study colar-tuning: expected an arm of recipes_colar")


KNOWN = {arm: Arm(ARMS[arm][0], build, ARMS[arm][2]) for arm in FAMILIES}


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """Every rate of every family, and which was chosen."""
    return [rates_table("Learning rates of study colar", "task", grouped(records, contender), KNOWN, 2)]


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """Accuracy against rate, a panel a task."""
    draw_rates(grouped(records, contender), KNOWN, path)


STUDY = Study(
    "colar-tuning",
    "Which learning rate suits each family of arms of study colar?",
    grid,
    tables,
    draw,
    after,
)
