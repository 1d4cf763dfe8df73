"""Study `mnns-rl-tuning`: a learning rate for every arm of study `mnns-rl`, from either start.

Four peak learning rates each, the same number for every arm, the better two on a second seed; see `search`. What is
found is frozen in `rl_lineup.RATES`. Accuracy is that of the arm's own inference: latents sampled as in training, the
answer greedy.
"""

from pathlib import Path

from tinylatent.lab.experiment import Experiment
from tinylatent.lab.report import Table
from tinylatent.lab.studies.compare import grouped
from tinylatent.lab.studies.rl_lineup import ARMS, STARTS, STEPS, arm_of, experiment, start_of
from tinylatent.lab.studies.search import FIRST, Contender, better_rates, draw_rates, rates_table
from tinylatent.lab.study import Profile, Record, Study

RATES = {arm: (3e-5, 1e-4, 3e-4, 1e-3) if arm.startswith("Dirichlet") else (1e-4, 3e-4, 1e-3, 3e-3) for arm in ARMS}
"""As many for each. Dirichlet's were moved a step lower after a first search from discrete chain of thought, in which
its accuracy fell with every rise of the rate; the lowest is still chosen there."""
DECAY, SECOND = 0.0, 101
QUICK = 10
"""The quick profile takes this part of the steps."""


def grid(profile: Profile) -> list[Experiment]:
    """The first round: every arm from every start at every rate, on the first seed."""
    steps = STEPS if profile == "full" else STEPS // QUICK
    return [experiment(start, arm, FIRST, rate, steps) for start in STARTS for arm in ARMS for rate in RATES[arm]]


def after(profile: Profile, records: list[Record]) -> list[Experiment]:
    """The second round: the better half of the rates on one seed more."""
    groups, steps = grouped(records, contender), STEPS if profile == "full" else STEPS // QUICK
    return [
        experiment(start, arm, SECOND, rate, steps)
        for start in STARTS
        for arm in ARMS
        for rate in better_rates(groups[arm, f"from {start}"], RATES[arm], DECAY)
    ]


def contender(record: Record) -> Contender:
    """The arm and start of a record."""
    return arm_of(record), f"from {start_of(record)}"


def tables(records: list[Record]) -> list[Table]:
    """Every rate of every arm and start, which was chosen, and how surely."""
    title = "Learning rates of reinforcement learning on MNNS, on tuning splits"
    return [rates_table(title, "start", grouped(records, contender), seeds=2)]


def draw(records: list[Record], path: Path) -> None:
    """A panel a start."""
    draw_rates(grouped(records, contender), path)


STUDY = Study(
    "mnns-rl-tuning",
    "Which learning rate suits each way of sampling latents in reinforcement learning, given the same search?",
    grid,
    tables,
    draw,
    after,
)
