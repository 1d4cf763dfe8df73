"""Study `mnns-budget`: how many traces should the supervision hold, and does the answer depend on the width?

The 3 x 3 table of Gozeten et al. 2025: budget B in {1, 4, 16} (16 are all traces of four digits) times width d in
{16, 24, 32}. B = 1 is discrete chain of thought; B = 4 and 16 are CoT2 with the same recipe, tuned at B = 16. Each
width has learning rates of its own (studies `mnns-tuning` and `mnns-tuning-small`).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import Finding, decided
from tinylatent.lab.plots import figure, interval_column, legend_below, legend_mark, published_mark, shade
from tinylatent.lab.recipes import build
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.compare import (
    Records,
    accuracy,
    controls,
    difference,
    grouped,
    latents_matter,
    percent,
    points,
    positive,
)
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value
from tinylatent.methods import CoT2, DiscreteCoT
from tinylatent.objectives.method import Method

ALL = 16
BUDGETS: dict[int, Method] = {1: DiscreteCoT(), 4: CoT2(budget=4), ALL: CoT2()}
WIDTHS = {16: "mnns-d16", 24: "mnns-d24", 32: "mnns"}
"""The comparison of each width."""
SEEDS: dict[Profile, range] = {"quick": range(1), "full": range(5)}
PUBLISHED = {
    (16, 1): 55.48, (16, 4): 64.20, (16, 16): 55.27,
    (24, 1): 70.43, (24, 4): 88.31, (24, 16): 96.56,
    (32, 1): 84.92, (32, 4): 99.04, (32, 16): 98.94,
}  # fmt: skip
"""Validation accuracy in percent of (width, budget), from the paper."""
COLUMNS = {
    "width": "d", "budget": "d", "accuracy": ".2f", "low": ".2f", "high": ".2f", "published": ".2f", "seeds": "d",
    "noise": ".2f", "shuffled": ".2f", "zero": ".2f",
}  # fmt: skip
LEGEND = (
    "accuracy, low, high: percent of the validation part, mean over seeds, 95 % interval (bootstrap over seeds and "
    "keys, or Student's t over seeds where that is wider). published: Gozeten et al. 2025, by another recipe. budget: "
    "traces in the supervision, those of smallest |final sum| first; 1 is discrete CoT, which has no latents to "
    "replace. noise, shuffled, zero: accuracy with the latents replaced at evaluation. Learning rates are tuned for B "
    "= 1 and B = 16 at each width, weight decay at d = 32; B = 4 takes the rates of B = 16."
)
Cells = Mapping[tuple[int, int], Records]
"""Records by (width, budget)."""


def grid(profile: Profile) -> list[Experiment]:
    """Every width, budget and seed; the quick profile's corners."""
    return [
        build(where, method, seed)
        for where in [*WIDTHS.values()][:: 1 if profile == "full" else 2]
        for method in BUDGETS.values()
        for seed in SEEDS[profile]
    ]


def cell(record: ExperimentRecord) -> tuple[int, int]:
    """(width, budget) of a record.

    Raises:
        ValueError: its method is none of those in BUDGETS.
    """
    budgets, run = {method: budget for budget, method in BUDGETS.items()}, record.experiment
    if run.method not in budgets:
        raise ValueError(
            f"run {record.id} is of {run.method}: expected discrete chain of thought or CoT2 with a budget"
        )
    return run.model.width, budgets[run.method]


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """A row a width and budget."""
    cells, rows = grouped(records, cell), []
    for (width, budget), group in cells.items():
        row: dict[str, Value] = {"width": width, "budget": budget, **percent(accuracy(group)), "seeds": len(group)}
        row |= {control: 100 * accuracy(group, control).value for control in controls(group)}
        rows.append(row | {"published": PUBLISHED[width, budget]})
    title = "MNNS, m = 4, digits 1..9: traces in the supervision and width of the model"
    return [Table(title, COLUMNS, rows, LEGEND, [*_findings(cells)])]


def _findings(cells: Cells) -> Iterator[Finding]:
    """The best budget of each width, and whether it grows with the width."""
    widths = list(dict.fromkeys(width for width, _ in cells))
    best = {}
    for width in widths:
        first, second = sorted(BUDGETS, key=lambda budget: -accuracy(cells[width, budget]).value)[:2]
        best[width] = first
        claim = f"at d = {width} B = {first}, the best measured, is better than B = {second}, the second best"
        gap = difference(cells[width, first], cells[width, second])
        yield positive(claim, gap, len(cells[width, first]), "budget")
    yield _growth(cells, best)
    for (width, budget), group in cells.items():
        if controls(group):
            yield latents_matter(f"B = {budget} at d = {width}", group)


def _growth(cells: Cells, best: dict[int, int]) -> Finding:
    """Whether the best budget grows from the narrowest width to the widest.

    It does if, of the two budgets that measured best there, each is surely better where it measured best, and the wide
    one's is larger; it fails if it is smaller, or if one budget is surely the best at both ends.
    """
    narrow, wide = min(best), max(best)
    small, large = best[narrow], best[wide]
    rivals = [(narrow, small, large), (wide, large, small)]
    if small == large:
        rivals = [(width, small, other) for width in (narrow, wide) for other in BUDGETS if other != small]
    gaps = [difference(cells[width, ours], cells[width, other]) for width, ours, other in rivals]
    sure = all(gap.low > 0 for gap in gaps)
    runs = len(cells[narrow, small])
    verdict = decided(sure and small < large, sure and small >= large, runs)
    measured = ", ".join(f"{budget} at d = {width}" for width, budget in best.items())
    told = "; ".join(
        f"B = {ours} minus B = {other} at d = {width}: {points(gap)}"
        for (width, ours, other), gap in zip(rivals, gaps, strict=True)
    )
    evidence = f"best measured: {measured}; {told}"
    return Finding("the best budget grows with the width", verdict, evidence, family="budget", runs=runs)


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """Draws accuracy against width, a colour a budget, published values beside."""
    cells = grouped(records, cell)
    with figure(path, 5.5, 3.7) as (axes,):
        for index, budget in enumerate(BUDGETS):
            tint = DiscreteCoT.colour if budget == 1 else shade(CoT2.colour, index - 1, len(BUDGETS) - 1)
            label: str | None = "B = 1 (discrete CoT)" if budget == 1 else f"B = {budget}"
            for width in [width for width, of in cells if of == budget]:
                x = width + 1.4 * (index - 1)
                interval_column(axes, x, accuracy(cells[width, budget]), tint, label=label)
                published_mark(axes, x + 0.45, PUBLISHED[width, budget], colour=tint)
                label = None
        published_mark(axes, label="published")
        legend_mark(axes, "bar: 95 %", "|", hollow=False)
        axes.set(xlabel="width d", ylabel="validation accuracy, %", ylim=(0, 102), xticks=[*WIDTHS])
        legend_below([axes], 5)


STUDY = Study(
    "mnns-budget",
    "How many traces should CoT2's supervision hold, and does the best budget grow with the width?",
    grid,
    tables,
    draw,
)
