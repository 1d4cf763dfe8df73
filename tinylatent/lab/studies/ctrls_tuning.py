"""Study `ctrls-tuning`: a learning rate for every family of arms of study `ctrls`, the same number for each.

Three rates for every family in every place: all on split seed 100, the better two on seed 101; see `search`. Families
are states, their controls (shuffled stands for random), prefix, rewards of soft draws with all of their grid, of
controls, of either kind of single states, of a prefix, and of the language model itself. Rewarded arms start from what
is taught at the rate of `recipes_ctrls`, which must be settled first. The best is that of the highest accuracy, greedy
but for token GRPO, whose chains are sampled here and greedy in the study.
"""

from pathlib import Path

from tinylatent.lab.arms import Arm
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.recipes_ctrls import CANDIDATES, KINDS, PLACES, TOKENS, arm_of, build, split
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.compare import grouped
from tinylatent.lab.studies.ctrls import shortened
from tinylatent.lab.studies.search import FIRST, Contender, better_rates, draw_rates, rates_table
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table

TAUGHT, REWARDED = (3e-3, 1e-2, 3e-2), (3e-4, 1e-3, 3e-3)
"""Rates of what is taught, and of what is rewarded."""
WIDER = {"rl-prefix": (3e-3, 1e-2, 3e-2), TOKENS: (1e-4, 3e-4, 1e-3)}
"""Rates of a single vector, and of the whole language model."""
SECOND = 101
KNOWN = {kind: Arm(KINDS[kind][0], build, KINDS[kind][2]) for _, kind in map(split, CANDIDATES)}
QUICK = "fitted"
"""The only arm of the quick profile."""


def rates_of(arm: str) -> tuple[float, ...]:
    """The rates tried for an arm."""
    kind = split(arm)[1]
    return WIDER.get(kind, REWARDED if kind.startswith("rl") else TAUGHT)


def grid(profile: Profile) -> list[Experiment]:
    """Every rate of every family on the first seed; of one arm in the quick profile."""
    chosen = CANDIDATES if profile == "full" else (QUICK,)
    return [shortened(build(arm, FIRST, learning_rate=rate), profile) for arm in chosen for rate in rates_of(arm)]


def after(profile: Profile, records: list[ExperimentRecord]) -> list[Experiment]:
    """The better two of each family on the second seed."""
    return [
        shortened(build(arm, SECOND, learning_rate=rate), profile)
        for arm, group in grouped(records, lambda record: arm_of(record.experiment)).items()
        for rate in better_rates(group, rates_of(arm))
    ]


def contender(record: ExperimentRecord) -> Contender:
    """The kind of a record's arm, and its task."""
    prefix, kind = split(arm_of(record.experiment))
    return kind, PLACES[prefix].title


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """Every rate of every family, and which was chosen."""
    title = "Learning rates of study ctrls, a reconstruction"
    return [rates_table(title, "task", grouped(records, contender), KNOWN, 2)]


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """Draws accuracy against rate, a panel a task."""
    draw_rates(grouped(records, contender), KNOWN, path)


STUDY = Study(
    "ctrls-tuning",
    "Which learning rate suits each family of arms of study ctrls, given the same search?",
    grid,
    tables,
    draw,
    after,
)
