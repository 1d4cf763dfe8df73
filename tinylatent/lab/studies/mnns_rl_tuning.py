"""Study `mnns-rl-tuning`: a learning rate for every sampler of study `mnns-rl`, from either start.

Four peak learning rates each, the same number for every sampler, the better two on a second seed; see `search`. What is
found stands in `recipes.RL_RATES`. Accuracy is that of the sampler's own inference: latents sampled as in training, the
answer greedy.
"""

from pathlib import Path

from tinylatent.lab.arms import arms, sampler_arms
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.recipes import SAMPLERS, STARTS
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.compare import grouped
from tinylatent.lab.studies.mnns_rl import way_of
from tinylatent.lab.studies.search import FIRST, Contender, better_rates, draw_rates, rates_table
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table
from tinylatent.methods import GRPO

RATES: dict[str, tuple[float, ...]] = {
    name: (3e-5, 1e-4, 3e-4, 1e-3) if sampler.gamma else (1e-4, 3e-4, 1e-3, 3e-3) for name, sampler in SAMPLERS.items()
}
"""As many for each. Dirichlet's were moved a step lower after a first search from discrete chain of thought, in which
its accuracy fell with every rise of the rate; the lowest is still chosen there."""
SECOND = 101
STEPS: dict[Profile, int] = {"quick": GRPO.recipe["steps"] // 10, "full": GRPO.recipe["steps"]}


def grid(profile: Profile) -> list[Experiment]:
    """The first round: every sampler from every start at every rate, on the first seed."""
    return [
        arm.recipe(FIRST, learning_rate=rate, steps=STEPS[profile])
        for start in STARTS
        for name, arm in sampler_arms(start).items()
        for rate in RATES[name]
    ]


def after(profile: Profile, records: list[ExperimentRecord]) -> list[Experiment]:
    """The second round: the better half of the rates on one seed more."""
    return [
        sampler_arms(start)[name].recipe(SECOND, learning_rate=rate, steps=STEPS[profile])
        for (start, name), group in grouped(records, way_of).items()
        for rate in better_rates(group, RATES[name])
    ]


def contender(record: ExperimentRecord) -> Contender:
    """The sampler and start of a record."""
    start, sampler = way_of(record)
    return sampler, f"from {arms('mnns')[start].label}"


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """Every rate of every sampler and start, which was chosen, and how surely."""
    title = "Learning rates of reinforcement learning on MNNS, on tuning splits"
    return [rates_table(title, "start", grouped(records, contender), sampler_arms(STARTS[0]), 2)]


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """A panel a start."""
    draw_rates(grouped(records, contender), sampler_arms(STARTS[0]), path)


STUDY = Study(
    "mnns-rl-tuning",
    "Which learning rate suits each way of sampling latents in reinforcement learning, given the same search?",
    grid,
    tables,
    draw,
    after,
)
