"""Study `mnns-tuning-small`: learning rates for the models smaller than that of study `mnns`.

Discrete chain of thought and CoT2, in each smaller shape that studies `mnns-budget` and `mnns-passk` use, at the weight
decay that study `mnns-tuning` chose for both. Three peak learning rates train on split seed 100, the better two on
seeds 101 and 102 as well; the best mean over the three seeds is frozen in `lineup.SMALL`. A rate that suits a large
model is too low for a small one, and discrete chain of thought suffers most from that.
"""

from dataclasses import replace
from pathlib import Path

from tinylatent.experiment import Experiment
from tinylatent.methods import CoT2, DiscreteCoT
from tinylatent.plots import COLOURS, figure, interval_column
from tinylatent.report import Table, Value
from tinylatent.seeds import Seeds
from tinylatent.studies.compare import accuracy, grouped, listed, method_of, percent
from tinylatent.studies.lineup import LABELS, RECIPES
from tinylatent.studies.mnns_tuning import FIRST, OTHERS, better_half, margin, searched, winner
from tinylatent.study import Profile, Record, Study
from tinylatent.transformer import Shape

METHODS = (DiscreteCoT(), CoT2())
SHAPES = (Shape(16), Shape(24), Shape(24, 1, 1))
RATES = (2e-3, 5e-3, 1e-2)
COLUMNS = {
    "method": "s", "shape": "s", "rate": "g", "seeds": "d", "accuracy": ".2f", "low": ".2f", "high": ".2f",
    "chosen": "s",
}  # fmt: skip
LEGEND = (
    "accuracy: percent of the validation part, mean over seeds 100 (seeds 1) or 100 to 102 (seeds 3), 95 % interval "
    "(bootstrap over seeds and keys, or Student's t over seeds where that is wider; over keys alone for one seed). "
    "Weight decay is 0.05 throughout. chosen: the best mean over three seeds."
)
Contender = tuple[str, Shape]
"""A method's name and the shape of its model."""


def run(method: DiscreteCoT | CoT2, shape: Shape, rate: float, seed: int, profile: Profile) -> Experiment:
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
        for rate, _, _ in better_half(groups[method.name, shape], [(rate, 0.05, "") for rate in RATES])
        for seed in OTHERS
    ]


def contender(record: Record) -> Contender:
    """The method and shape of a record."""
    return method_of(record), Shape(**record["experiment"]["shape"])


def written(shape: Shape) -> str:
    """A shape as it stands in the table."""
    return f"d = {shape.width}, layers {shape.layers}, heads {shape.heads}"


def tables(records: list[Record]) -> list[Table]:
    """Every rate of every method and shape, which was chosen, and how surely."""
    rows: list[dict[str, Value]] = []
    groups = grouped(records, contender)
    for (name, shape), group in groups.items():
        chosen = winner(group)
        for each, runs in searched(group).items():
            row: dict[str, Value] = {"method": LABELS[name], "shape": written(shape), "rate": each[0]}
            rows.append(
                row | {"seeds": len(runs), **percent(accuracy(runs)), "chosen": "yes" if each == chosen else ""}
            )
    found = (margin(f"{LABELS[name]} at {written(shape)}", group) for (name, shape), group in groups.items())
    return [Table("Learning rates of smaller models, on tuning splits", COLUMNS, rows, [LEGEND, *listed(found)])]


def draw(records: list[Record], path: Path) -> None:
    """A panel a shape: accuracy against rate, intervals drawn; hollow dots saw one seed."""
    groups = grouped(records, contender)
    with figure(path, 2.7 * len(SHAPES), 2.8, columns=len(SHAPES), sharey=True) as panels:
        for axes, shape in zip(panels, SHAPES, strict=True):
            for method in METHODS:
                found, label = searched(groups[method.name, shape]), LABELS[method.name]
                for (rate, _, _), runs in found.items():
                    interval_column(axes, rate, accuracy(runs), COLOURS[method.name], len(runs) == 1)
                values = [100 * accuracy(runs).value for runs in found.values()]
                axes.plot([rate for rate, _, _ in found], values, color=COLOURS[method.name], label=label)
            axes.set(title=written(shape), xlabel="peak learning rate", xscale="log", ylim=(0, 102))
            axes.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
            axes.minorticks_off()
        panels[0].set_ylabel("validation accuracy, % (95 %)")
        panels[0].legend(loc="lower center")
        panels[1].text(0.03, 0.03, "hollow: one seed", transform=panels[1].transAxes, fontsize=7)


STUDY = Study(
    "mnns-tuning-small",
    "Which learning rate suits discrete chain of thought and CoT2 in models smaller than that of study mnns?",
    grid,
    tables,
    draw,
    after,
)
