"""Study `mnns-tuning-small`: learning rates for the models smaller than that of study `mnns`.

Discrete chain of thought and CoT2, in each smaller shape that studies `mnns-budget` and `mnns-passk` use, at the weight
decay that study `mnns-tuning` chose for both. Three peak learning rates train on split seed 100, the better two on
seeds 101 and 102 as well; the best mean over the three seeds is what `recipes` holds. A rate that suits a large model
is too low for a small one, and discrete chain of thought suffers most from that.
"""

from pathlib import Path

from tinylatent.lab.arms import arms
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.recipes import COMPARISONS, Settings, build
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.compare import grouped, method_of
from tinylatent.lab.studies.search import FIRST, OTHERS, Contender, better_rates, draw_rates, rates_table
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table
from tinylatent.methods import CoT2, DiscreteCoT
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import Method

TUNED: tuple[Method, ...] = (DiscreteCoT(), CoT2())
WHERE = ("mnns-d16", "mnns-d24", "mnns-d24-l1")
"""Comparisons in models smaller than the usual one."""
RATES = (2e-3, 5e-3, 1e-2)
LENGTH: dict[Profile, Settings] = {"quick": {"steps": 900}, "full": {}}


def run(method: Method, where: str, rate: float, seed: int, profile: Profile) -> Experiment:
    """One run of the search; the quick profile takes a tenth of the steps."""
    return build(where, method, seed, learning_rate=rate, **LENGTH[profile])


def grid(profile: Profile) -> list[Experiment]:
    """The first round: every method, shape and rate on the first seed."""
    return [run(method, where, rate, FIRST, profile) for method in TUNED for where in WHERE for rate in RATES]


def after(profile: Profile, records: list[ExperimentRecord]) -> list[Experiment]:
    """The second round: the better half of the rates on the other seeds."""
    groups = grouped(records, contender)
    return [
        run(method, where, rate, seed, profile)
        for method in TUNED
        for where in WHERE
        for rate in better_rates(groups[method.name, in_words(COMPARISONS[where].model)], RATES)
        for seed in OTHERS
    ]


def contender(record: ExperimentRecord) -> Contender:
    """The method and shape of a record."""
    return method_of(record), in_words(record.experiment.model)


def in_words(model: ModelConfig) -> str:
    """The shape of a model as it stands in the table."""
    return f"d = {model.width}, layers {model.layers}, heads {model.heads}"


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """Every rate of every method and shape, which was chosen, and how surely."""
    title = "Learning rates of smaller models, on tuning splits"
    return [rates_table(title, "shape", grouped(records, contender), arms("mnns"))]


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """Draws a panel a shape."""
    draw_rates(grouped(records, contender), arms("mnns"), path)


STUDY = Study(
    "mnns-tuning-small",
    "Which learning rate suits discrete chain of thought and CoT2 in models smaller than that of study mnns?",
    grid,
    tables,
    draw,
    after,
)
