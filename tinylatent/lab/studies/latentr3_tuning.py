"""Study `latentr3-tuning`: a learning rate for every family of arms of study `latentr3`, the same number for each.

Three rates for every arm that is taught, three for every second stage, whatever its estimator: all on split seed 100,
the better two on seed 101; see `search`. Second stages start from `attention` as `recipes_latentr3` has it, whose rate
must be settled first. What is found is to stand there. The best is that of the highest accuracy: on recommendation the
hit rate at 1.
"""

from pathlib import Path

from tinylatent.lab.arms import Arm
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.recipes_latentr3 import ARMS, FAMILIES, PLACES, SECOND, arm_of, build, split
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.compare import grouped
from tinylatent.lab.studies.latentr3 import QUICK, shortened
from tinylatent.lab.studies.search import FIRST, Contender, better_rates, draw_rates, rates_table
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table

RATES, SECOND_RATES = (1e-3, 3e-3, 1e-2), (1e-4, 5e-4, 2.5e-3)
"""Of arms that are taught, and of second stages."""
SECOND_SEED = 101
KNOWN = {arm: Arm(ARMS[arm][0], build, ARMS[arm][2]) for arm in FAMILIES}


def rates_of(arm: str) -> tuple[float, ...]:
    """The rates tried for an arm."""
    return SECOND_RATES if split(arm)[1] in SECOND else RATES


def grid(profile: Profile) -> list[Experiment]:
    """Every rate of every family on the first seed; of one family in the quick profile."""
    chosen = FAMILIES if profile == "full" else QUICK[:1]
    return [shortened(build(arm, FIRST, learning_rate=rate), profile) for arm in chosen for rate in rates_of(arm)]


def after(profile: Profile, records: list[ExperimentRecord]) -> list[Experiment]:
    """The better two of each family on the second seed."""
    return [
        shortened(build(arm, SECOND_SEED, learning_rate=rate), profile)
        for arm, group in grouped(records, lambda record: arm_of(record.experiment)).items()
        for rate in better_rates(group, rates_of(arm))
    ]


def contender(record: ExperimentRecord) -> Contender:
    """The arm of a record, and its task."""
    arm = arm_of(record.experiment)
    return arm, PLACES[split(arm)[0]].title


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """Every rate of every family, and which was chosen: of arms that are taught, then of second stages."""
    groups, shown = grouped(records, contender), []
    for title, second in (("arms that are taught", False), ("second stages", True)):
        here = {who: group for who, group in groups.items() if (split(who[0])[1] in SECOND) == second}
        if here:
            shown.append(rates_table(f"Learning rates of study latentr3: {title}", "task", here, KNOWN, 2))
    return shown


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """Draws accuracy against rate, a panel a task."""
    draw_rates(grouped(records, contender), KNOWN, path)


STUDY = Study(
    "latentr3-tuning",
    "Which learning rate suits each family of arms of study latentr3, given the same search?",
    grid,
    tables,
    draw,
    after,
)
