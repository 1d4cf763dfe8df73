"""Study `mnns-tuning-small`: learning rates for the models smaller than that of study `mnns`.

Discrete chain of thought and CoT2, in each smaller shape that studies `mnns-budget` and `mnns-passk` use, at the weight
decay that study `mnns-tuning` chose for both. Three peak learning rates train on split seed 100, the better two on
seeds 101 and 102 as well; the best mean over the three seeds is frozen in `lineup.SMALL`. A rate that suits a large
model is too low for a small one, and discrete chain of thought suffers most from that.
"""

from dataclasses import replace
from pathlib import Path

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.report import Table
from tinylatent.lab.studies.compare import grouped, method_of
from tinylatent.lab.studies.lineup import RECIPES
from tinylatent.lab.studies.search import FIRST, OTHERS, Contender, better_rates, draw_rates, rates_table
from tinylatent.lab.study import Profile, Record, Study
from tinylatent.methods import CoT2, DiscreteCoT
from tinylatent.models.decoder import ModelConfig

METHODS = (DiscreteCoT(), CoT2())
SHAPES = (ModelConfig(16), ModelConfig(24), ModelConfig(24, 1, 1))
RATES, DECAY = (2e-3, 5e-3, 1e-2), 0.05


def run(method: DiscreteCoT | CoT2, shape: ModelConfig, rate: float, seed: int, profile: Profile) -> Experiment:
    """One run of the search; the quick profile takes a tenth of the steps."""
    recipe = replace(RECIPES[method.name], rate=rate)
    if profile == "quick":
        recipe = replace(recipe, steps=recipe.steps // 10)
    return Experiment(method=method, shape=shape, training=recipe, seeds=Seeds.all(seed))


def grid(profile: Profile) -> list[Experiment]:
    """The first round: every method, shape and rate on the first seed."""
    return [run(method, shape, rate, FIRST, profile) for method in METHODS for shape in SHAPES for rate in RATES]


def after(profile: Profile, records: list[Record]) -> list[Experiment]:
    """The second round: the better half of the rates on the other seeds."""
    groups = grouped(records, contender)
    return [
        run(method, shape, rate, seed, profile)
        for method in METHODS
        for shape in SHAPES
        for rate in better_rates(groups[method.name, written(shape)], RATES, DECAY)
        for seed in OTHERS
    ]


def contender(record: Record) -> Contender:
    """The method and shape of a record."""
    return method_of(record), written(ModelConfig(**record["experiment"]["shape"]))


def written(shape: ModelConfig) -> str:
    """A shape as it stands in the table."""
    return f"d = {shape.width}, layers {shape.layers}, heads {shape.heads}"


def tables(records: list[Record]) -> list[Table]:
    """Every rate of every method and shape, which was chosen, and how surely."""
    return [rates_table("Learning rates of smaller models, on tuning splits", "shape", grouped(records, contender))]


def draw(records: list[Record], path: Path) -> None:
    """A panel a shape."""
    draw_rates(grouped(records, contender), path)


STUDY = Study(
    "mnns-tuning-small",
    "Which learning rate suits discrete chain of thought and CoT2 in models smaller than that of study mnns?",
    grid,
    tables,
    draw,
    after,
)
