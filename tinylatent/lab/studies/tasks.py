"""Study `tasks`: the methods on four tasks, and how far each reaches beyond what it was trained on.

MNNS, subset sum, multi-hop lookup and reachability at one small size each, in models of the same kind; learning rates
are each method's own on each task (`tasks-tuning`; on MNNS those of study `mnns`). Two of the tasks have more
capacity than training uses: MNNS is trained on 4 numbers and asked about 5, lookup is trained on up to 3 hops and asked
about 6; there training places prompts at random positions, so that none is new.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tinylatent_tasks import MNNS, MultiHop, Task

from tinylatent.engine.controls import CONTROLS
from tinylatent.evaluation.statistics import Interval, accuracy_interval, paired_difference
from tinylatent.lab.arms import Arm, arms
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import Finding
from tinylatent.lab.plots import figure, interval_column, legend_below, legend_mark
from tinylatent.lab.recipes import COMPARISONS
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.compare import (
    Records,
    accuracy,
    better,
    controls,
    difference,
    grouped,
    method_of,
    percent,
    positive,
)
from tinylatent.lab.studies.comparison import comparison
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value

if TYPE_CHECKING:
    import matplotlib.axes  # which commands that draw nothing do not load

COMPARED = ("mnns-longer", "subset-sum", "multihop", "reachability")
"""Comparisons of `recipes`, one a task."""
SEEDS: dict[Profile, range] = {"quick": range(2), "full": range(5)}
PARTS: dict[Profile, int] = {"quick": 3, "full": 1}
"""By what the steps of training are divided."""
PUBLISHED = {
    "CoT2 paper, ProsQA": {"direct": 54.91, "discrete": 68.50, "coconut": 90.03, "cot2": 93.37},
    "CoT2 paper, ProntoQA": {"direct": 73.65, "discrete": 82.47, "coconut": 96.94, "cot2": 98.01},
    "Coconut paper, ProsQA": {"direct": 76.7, "pause": 75.9, "discrete": 77.5, "coconut": 97.0},
    "Coconut paper, ProntoQA": {"direct": 93.8, "pause": 77.7, "discrete": 98.8, "coconut": 99.8},
}
"""Accuracy in percent as others published it. Coconut's values are from memory of its paper, not verified."""
NOT_COMPARABLE = (
    "here: this study's reachability, for orientation only: the others are not the same task. ProsQA's published "
    "validation items are stories in words about 17 to 28 nodes; ours are lists of edges, an edge a token, between 10 "
    "nodes, all targets three edges away and both candidates drawn alike. The Coconut paper trains GPT-2 small, "
    "pretrained, and its values here are from memory, unverified; the CoT2 paper trains small models from scratch, how "
    "small on these tasks is unverified, too; ours has 30 thousand weights. ProntoQA asks whether one node can be "
    "reached within 5 steps, which `reachability` can pose (asks=whether) but this study does not."
)
LEVELS_LEGEND = (
    "accuracy in percent at each difficulty alone, mean over seeds, with its 95 % interval; at most 1000 problems a "
    "seed, of keys held out from training (in multi-hop a key is facts and start, whatever the hops). trained: whether "
    "such problems were trained on. Every method takes as many steps as the longer chain has. Coconut's last stage has "
    "three latent steps and says what follows them in tokens, which that stage never trained; CoT2 and discrete chain "
    "of thought do more of the same."
)
CONTROL_MARKS = dict(zip(CONTROLS, ("^", "s", "v"), strict=True))
"""What a figure draws for a method whose latents are replaced."""
ByMethod = Mapping[str, Records]
"""Records of one task by the name of their method."""


def grid(profile: Profile) -> list[Experiment]:
    """Every method on every task and seed."""
    return [
        shortened(arm.recipe(seed), profile)
        for name in COMPARED
        for arm in arms(name).values()
        for seed in SEEDS[profile]
    ]


def shortened(run: Experiment, profile: Profile) -> Experiment:
    """The run as a profile has it, and the run that it starts from too: the quick one takes a third of the steps."""
    start = None if run.start is None else shortened(run.start, profile)
    training = replace(run.training, steps=run.training.steps // PARTS[profile])
    return replace(run, training=training, start=start)


def comparison_of(record: ExperimentRecord) -> str:
    """The name, in COMPARED, of the comparison whose task a record's is.

    Raises:
        ValueError: there is none.
    """
    names = {COMPARISONS[name].task: name for name in COMPARED}
    if record.experiment.task not in names:
        raise ValueError(f"run {record.id} is on {record.experiment.task}: expected a task of {', '.join(COMPARED)}")
    return names[record.experiment.task]


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """The overview, a comparison a task, accuracy by difficulty, and what others published."""
    groups = grouped(records, comparison_of)
    compared = []
    for name, group in groups.items():
        title = COMPARISONS[name].title
        compared.append(comparison(group, f"{title[:1].upper()}{title[1:]}: {COMPARISONS[name].task}", name))
    methods = {name: grouped(group, method_of) for name, group in groups.items()}
    return [_overview(methods), *compared, _by_level(methods), _published(methods["reachability"])]


def _rivals(groups: ByMethod) -> list[tuple[str, str]]:
    """CoT2 against discrete chain of thought and Coconut, as far as they are there."""
    return [("cot2", other) for other in ("discrete", "coconut") if {"cot2", other} <= groups.keys()]


def _overview(compared: Mapping[str, ByMethod]) -> Table:
    """A row a method and task, and whether superposition beats one discrete chain on each."""
    rows: list[dict[str, Value]] = []
    findings = []
    for comparison_name, groups in compared.items():
        title, known = COMPARISONS[comparison_name].title, arms(comparison_name)
        for name, group in groups.items():
            rows.append({"task": title, "method": known[name].label, **percent(accuracy(group)), "seeds": len(group)})
        for ours, theirs in _rivals(groups):
            claimed, other = f"{title}: {known[ours].label}", known[theirs].label
            findings.append(better(claimed, groups[ours], other, groups[theirs], "methods"))
    legend = (
        "accuracy: percent of problems of keys never seen in training, mean over seeds, with its 95 % interval. On "
        "subset sum Coconut's last stage has three latent steps and says the fourth word of its chain; on the others "
        "it is all latent."
    )
    columns = {"task": "s", "method": "s", "accuracy": ".2f", "low": ".2f", "high": ".2f", "seeds": "d"}
    return Table("The methods on four tasks", columns, rows, legend, findings)


# ---------------------------------------------------------------------------------------------------------------------
# Difficulty levels


def by_level(group: Records) -> dict[int, Interval]:
    """Accuracy of runs that differ in seeds, at each difficulty level of their task."""
    return {int(level): accuracy_interval(*_counts(group, level)) for level in group[0].levels}


def _counts(group: Records, level: str) -> tuple[list[list[int]], list[list[int]]]:
    """Right answers and problems per key of each run, at one difficulty level."""
    answered = [record.levels[level] for record in group]
    return [level.right for level in answered], [level.total for level in answered]


def trained(task: Task) -> int:
    """The greatest difficulty that a task is trained on."""
    assert isinstance(task, MNNS | MultiHop), "of the tasks in COMPARED only these have capacity to spare"
    return task.digits if isinstance(task, MNNS) else task.hops


def _with_levels(compared: Mapping[str, ByMethod]) -> dict[str, ByMethod]:
    """The tasks with capacity beyond training, which are asked at several difficulty levels."""
    return {name: groups for name, groups in compared.items() if COMPARISONS[name].task.levels()}


def _by_level(compared: Mapping[str, ByMethod]) -> Table:
    """A row a task, difficulty and method."""
    rows: list[dict[str, Value]] = []
    findings: list[Finding] = []
    for comparison_name, groups in _with_levels(compared).items():
        where, known = COMPARISONS[comparison_name], arms(comparison_name)
        title, most = where.title, trained(where.task)
        found = {name: by_level(group) for name, group in groups.items()}
        for level in next(iter(found.values())):
            about: dict[str, Value] = {"task": title, "difficulty": level, "trained": "yes" if level <= most else "no"}
            rows += [{**about, "method": known[name].label, **percent(at[level])} for name, at in found.items()]
        for ours, theirs in _rivals(groups):
            claim = (
                f"{title} at {most + 1}, beyond training: {known[ours].label} is more often right than "
                f"{known[theirs].label}"
            )
            findings.append(_beyond(claim, str(most + 1), groups, ours, theirs))
    columns = {
        "task": "s", "difficulty": "d", "trained": "s", "method": "s", "accuracy": ".2f", "low": ".2f", "high": ".2f",
    }  # fmt: skip
    title = "Beyond training: numbers of MNNS, hops of multi-hop"
    return Table(title, columns, rows, LEVELS_LEGEND, findings)


def _beyond(claim: str, level: str, groups: ByMethod, ours: str, theirs: str) -> Finding:
    """Whether one method is more often right than another at a difficulty level that none was trained on.

    Raises:
        ValueError: they were not asked the same problems, run by run.
    """
    keys = [[record.levels[level].keys for record in groups[name]] for name in (ours, theirs)]
    if keys[0] != keys[1]:
        raise ValueError(f"runs of {ours} and {theirs} were not asked the same problems at difficulty level {level}")
    (right, totals), (other, _) = (_counts(groups[name], level) for name in (ours, theirs))
    return positive(claim, paired_difference(right, other, totals), len(right), "beyond training")


def _published(groups: ByMethod) -> Table:
    """A row a method: ours on reachability, and what others published on their tasks."""
    rows: list[dict[str, Value]] = []
    known = arms("reachability")
    for name, group in groups.items():
        values = {title: published.get(name) for title, published in PUBLISHED.items()}
        rows.append({"method": known[name].label, **percent(accuracy(group), "here"), **values})
    columns = {"method": "s", "here": ".2f", "low": ".2f", "high": ".2f", **dict.fromkeys(PUBLISHED, ".2f")}
    claim = "CoT2's lead over discrete CoT, which its paper has on both tasks, is there on ours"
    findings = []
    if ("cot2", "discrete") in _rivals(groups):
        gap = difference(groups["cot2"], groups["discrete"])
        findings.append(positive(claim, gap, len(groups["cot2"]), "methods"))
    return Table("Published ProsQA and ProntoQA, not comparable", columns, rows, NOT_COMPARABLE, findings)


# ---------------------------------------------------------------------------------------------------------------------
# The figure


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """Accuracy a task, methods side by side with their controls hollow; then the curves beyond training."""
    compared = {name: grouped(group, method_of) for name, group in grouped(records, comparison_of).items()}
    levels = _with_levels(compared)
    with figure(path, 5.5 + 3 * len(levels), 3.9, columns=1 + len(levels)) as (left, *others):
        for middle, (comparison_name, groups) in enumerate(compared.items()):
            for number, (name, runs) in enumerate(groups.items()):
                arm, x = arms(comparison_name)[name], middle + 0.75 / len(groups) * (number - (len(groups) - 1) / 2)
                interval_column(left, x, accuracy(runs), arm.colour, label=None if middle else arm.label)
                for place, control in enumerate(controls(runs)):
                    at, mean = x + 0.03 * (place - 1), 100 * accuracy(runs, control).value
                    left.plot(at, mean, CONTROL_MARKS[control], color=arm.colour, markerfacecolor="none", markersize=4)
        left.set_xticks(range(len(compared)), [COMPARISONS[name].title for name in compared])
        left.set(title="keys never seen in training", ylabel="validation accuracy, %", ylim=(0, 102))
        for control, marker in CONTROL_MARKS.items():
            legend_mark(left, f"latents: {control}", marker)
        legend_mark(left, "bar: 95 %", "|", hollow=False)
        for axes, (name, methods) in zip(others, levels.items(), strict=True):
            _draw_levels(axes, COMPARISONS[name].title, COMPARISONS[name].task, methods, arms(name))
        legend_below([left], 9)


def _draw_levels(
    axes: "matplotlib.axes.Axes", title: str, task: Task, groups: ByMethod, known: Mapping[str, Arm]
) -> None:
    """Accuracy against difficulty, a line a method."""
    for number, (name, runs) in enumerate(groups.items()):
        found, tint, apart = by_level(runs), known[name].colour, 0.08 * (number - (len(groups) - 1) / 2)
        places = [level + apart for level in found]
        axes.plot(places, [100 * interval.value for interval in found.values()], color=tint, linewidth=1)
        for x, interval in zip(places, found.values(), strict=True):
            interval_column(axes, x, interval, tint, linewidth=1.5)
    axes.axvspan(trained(task) + 0.5, max(found) + 0.5, color="black", alpha=0.06, linewidth=0)
    axes.set(title=f"{title}: shaded is beyond training", ylim=(0, 102), xticks=list(found))
    axes.set_ylabel("accuracy, %")
    axes.set_xlabel("numbers" if isinstance(task, MNNS) else "hops")


STUDY = Study(
    "tasks",
    "How do the methods compare on MNNS, subset sum, multi-hop and reachability, and beyond training?",
    grid,
    tables,
    draw,
)
