"""Study `hrpo-tuning`: a learning rate for every family of arms of study `hrpo`, the same four for each.

Tokens alone, HRPO, and HRPO with noise in place of its soft tokens, which stands for all controls. All four rates on
split seed 100, the better two on seed 101; see `search`. What is found stands in `recipes_hrpo`. Factors of the rate,
for gates and Lambda, are the same throughout.
"""

from pathlib import Path

from tinylatent.lab.arms import Arm
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.recipes_hrpo import KINDS, PLACES, SEARCHED, arm_of, build, split
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.compare import grouped
from tinylatent.lab.studies.search import FIRST, Contender, better_rates, draw_rates, rates_table
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
"""The same for every family in either place."""
SECOND = 101
STEPS: dict[Profile, dict[str, int]] = {"quick": {"steps": 20}, "full": {}}
KNOWN = {kind: Arm(KINDS[kind][0], build, KINDS[kind][2]) for _, kind in map(split, SEARCHED)}


def grid(profile: Profile) -> list[Experiment]:
    """Every rate of every family on the first seed; on arithmetic alone in the quick profile."""
    return [
        build(arm, FIRST, learning_rate=rate, **STEPS[profile])
        for arm in SEARCHED
        for rate in RATES
        if profile == "full" or not split(arm)[0]
    ]


def after(profile: Profile, records: list[ExperimentRecord]) -> list[Experiment]:
    """The better two of each family on the second seed."""
    return [
        build(arm, SECOND, learning_rate=rate, **STEPS[profile])
        for arm, group in grouped(records, lambda record: arm_of(record.experiment)).items()
        for rate in better_rates(group, RATES)
    ]


def contender(record: ExperimentRecord) -> Contender:
    """The kind of a record's arm, and its task."""
    prefix, kind = split(arm_of(record.experiment))
    return kind, PLACES[prefix].title


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """Every rate of every family, and which was chosen."""
    return [rates_table("Learning rates of study hrpo", "task", grouped(records, contender), KNOWN, 2)]


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """Draws accuracy against rate, a panel a task."""
    draw_rates(grouped(records, contender), KNOWN, path)


STUDY = Study(
    "hrpo-tuning",
    "Which learning rate suits token-only GRPO, HRPO and its controls, given the same search?",
    grid,
    tables,
    draw,
    after,
)
