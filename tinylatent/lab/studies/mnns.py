"""Study `mnns`: direct answer, pause tokens, discrete chain of thought, Coconut and CoT2 on Minimum Non-Negative Sum.

The headline comparison of Gozeten et al. 2025 (m = 4, digits 1..9, d = 32, 2 layers, 2 heads; validation on multisets
of digits never seen). All methods take the same number of steps; learning rate and weight decay are each method's own,
the best of those that study `mnns-tuning` tried on other splits. The paper has no pause tokens.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from tinylatent.evaluation.statistics import Interval, accuracy_interval, paired_difference
from tinylatent.lab.arms import Arm, arms
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import Finding
from tinylatent.lab.plots import figure, interval_column, legend_under
from tinylatent.lab.records import DEFAULT, ExperimentRecord
from tinylatent.lab.studies.compare import Records, better, grouped, method_of, percent, positive, rights, totals
from tinylatent.lab.studies.comparison import comparison, draw_accuracies
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value

if TYPE_CHECKING:
    import matplotlib.axes  # which commands that draw nothing do not load

COMPARISON = "mnns"
SEEDS: dict[Profile, range] = {"quick": range(3), "full": range(5)}


def grid(profile: Profile) -> list[Experiment]:
    """Every method on every seed."""
    return [arm.recipe(seed) for arm in arms(COMPARISON).values() for seed in SEEDS[profile]]


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """The comparison, and what each of Coconut's stages had learnt."""
    groups = grouped(records, method_of)
    stages = [_by_stage(groups["coconut"], groups.get("discrete", []))] if "coconut" in groups else []
    return [comparison(records, "MNNS, m = 4, digits 1..9", COMPARISON), *stages]


def stage_intervals(group: Records) -> list[Interval]:
    """Accuracy at the end of each stage, the last included."""
    return [accuracy_interval(right, totals(group)) for right in _stage_rights(group)]


def _stage_rights(group: Records) -> list[list[list[int]]]:
    """Right answers per key of each run, at the end of each stage, the last included."""
    earlier = range(len(group[0].stages))
    return [*([record.stages[stage].right for record in group] for stage in earlier), rights(group)]


def _by_stage(group: Records, discrete: Records) -> Table:
    """How Coconut fares as its chain is unlearnt."""
    ends = [stage.step for stage in group[0].stages] + [group[0].experiment.training.steps]
    rows: list[dict[str, Value]] = [
        {"stage": stage, "until step": end, **percent(interval)}
        for stage, (end, interval) in enumerate(zip(ends, stage_intervals(group), strict=True))
    ]
    columns = {"stage": "d", "until step": "d", "accuracy": ".2f", "low": ".2f", "high": ".2f"}
    legend = (
        "Accuracy at the end of each stage, thinking as it taught: stage k has k latent steps, stage 0 none. All "
        "stages together get as many training steps as discrete CoT alone, so a later one is also trained for longer: "
        "a rise is no measure of what latents add, the last line below is."
    )
    return Table("Coconut, stage by stage", columns, rows, legend, [*_stage_findings(group, discrete)])


def _stage_findings(group: Records, discrete: Records) -> Iterator[Finding]:
    """Each stage against the one before, and the last against discrete chain of thought."""
    for stage, (before, now) in enumerate(pairwise(_stage_rights(group)), 1):
        claim = f"Coconut is more often right after stage {stage} than after stage {stage - 1}"
        yield positive(claim, paired_difference(now, before, totals(group)), len(group), "stages")
    if discrete:
        yield better("Coconut, all latent,", group, "discrete CoT trained for as many steps", discrete, "stages")


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """Draws accuracy beside the published values, the distance from the oracle step by step, and Coconut's stages."""
    from matplotlib.ticker import MaxNLocator

    groups, known = grouped(records, method_of), arms(COMPARISON)
    with figure(path, 11, 4, columns=3) as (left, middle, right):
        draw_accuracies(left, records, COMPARISON)
        legend_under(left)
        for name, group in groups.items():
            _draw_kl(middle, known[name], group)
        middle.set(xlabel="step", ylabel="KL from the oracle's frontier, nats", yscale="log")
        middle.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_under(middle)
        for stage, interval in enumerate(stage_intervals(groups["coconut"]) if "coconut" in groups else []):
            interval_column(right, stage, interval, known["coconut"].colour)
        right.set(xlabel="Coconut's latent steps", ylabel="accuracy at the end of the stage, %", ylim=(0, 102))
        right.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_kl(axes: "matplotlib.axes.Axes", arm: Arm, group: Records) -> None:
    """Draws a line a seed, for methods whose steps are taught the frontier or a trace of it."""
    for record in group:
        kl = record.evaluations[DEFAULT].kl
        if kl:
            label = arm.label if record is group[0] else None
            axes.plot(range(1, len(kl) + 1), kl, "o-", color=arm.colour, alpha=0.7, label=label)


STUDY = Study(
    "mnns",
    "How do a direct answer, pause tokens, discrete chain of thought, Coconut and CoT2 compare on MNNS?",
    grid,
    tables,
    draw,
)
