"""Study `hrpo-tuning`: a learning rate for every family of arms of study `hrpo`, the same three for each.

Tokens alone, HRPO, and HRPO with noise in place of its soft tokens, which stands for all controls. All three rates on
split seed 100, the better two on seed 101; see `search`. What is found stands in `recipes_hrpo`. Factors of the rate,
for gates and Lambda, are the same throughout.
"""

from pathlib import Path

from tinylatent.lab.arms import Arm
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.recipes_hrpo import ARMS, build
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.compare import grouped
from tinylatent.lab.studies.hrpo_tables import arm_of
from tinylatent.lab.studies.search import FIRST, Contender, better_rates, draw_rates, rates_table
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table

TUNED = ("token", "hrpo", "noise")
"""An arm of every family."""
RATES = (3e-4, 1e-3, 3e-3)
SECOND = 101
STEPS: dict[Profile, dict[str, int]] = {"quick": {"steps": 20}, "full": {}}
KNOWN = {arm: Arm(ARMS[arm][0], build, ARMS[arm][2]) for arm in TUNED}


def grid(profile: Profile) -> list[Experiment]:
    """Every rate of every family on the first seed."""
    return [build(arm, FIRST, learning_rate=rate, **STEPS[profile]) for arm in TUNED for rate in RATES]


def after(profile: Profile, records: list[ExperimentRecord]) -> list[Experiment]:
    """The better two of each family on the second seed."""
    return [
        build(arm, SECOND, learning_rate=rate, **STEPS[profile])
        for (arm, _), group in grouped(records, contender).items()
        for rate in better_rates(group, RATES)
    ]


def contender(record: ExperimentRecord) -> Contender:
    """The arm of a record, and its task."""
    return arm_of(record), "multi-hop"


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """Every rate of every family, and which was chosen."""
    return [rates_table("Learning rates of study hrpo", "task", grouped(records, contender), KNOWN, 2)]


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """Draws accuracy against rate."""
    draw_rates(grouped(records, contender), KNOWN, path)


STUDY = Study(
    "hrpo-tuning",
    "Which learning rate suits token-only GRPO, HRPO and its controls, given the same search?",
    grid,
    tables,
    draw,
    after,
)
