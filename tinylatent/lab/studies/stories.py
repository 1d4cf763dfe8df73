"""Study `stories`: ProsQA in small: what do latents do for a story's question, in a model that learns from nothing?

The arms that Coconut's paper compares on ProsQA (Hao et al. 2024, arXiv 2412.06769), and CoT2, on stories of our own
generator, where both candidates have the same distribution: a model that does not follow the edges is right half of the
time. Their full size, GPT-2 on the paper's files, is a recipe of `tinylatent published` and has not been run here; so
nothing is compared with the paper's numbers. Where runs of an arm lie in two clusters, those that broke through and
those that did not, how many are in either is told in place of their mean.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean

from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import Finding
from tinylatent.lab.plots import figure, interval_row, legend_below, legend_mark
from tinylatent.lab.recipes_stories import ARMS, PLACE, arm_of, build
from tinylatent.lab.records import DEFAULT, ExperimentRecord
from tinylatent.lab.studies.compare import (
    Records,
    accuracy,
    better,
    clustered,
    controls,
    grouped,
    latents_matter,
    percent,
    share,
)
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value

SEEDS: dict[Profile, range] = {"quick": range(3), "full": range(5, 10)}
QUICK, QUICK_STEPS = ("discrete",), 1500
THROUGH = 0.75
"""Share of right answers of a run that broke through, half way from chance."""
RIVALS = (
    ("cot2", "discrete"), ("coconut", "coconut-pause"), ("coconut", "discrete"), ("cot2", "coconut"),
    ("discrete", "direct"), ("pause", "direct"),
)  # fmt: skip
"""Who is claimed to be more often right than whom: the first two are retrained controls."""
Groups = Mapping[str, Records]


def grid(profile: Profile) -> list[Experiment]:
    """Every arm on every seed; one of them, for fewer steps, in the quick profile."""
    if profile == "full":
        return [build(arm, seed) for arm in ARMS for seed in SEEDS[profile]]
    return [build(arm, seed, steps=QUICK_STEPS) for arm in QUICK for seed in SEEDS[profile]]


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """A row an arm and control, with the findings."""
    groups = grouped(records, lambda record: arm_of(record.experiment))
    rows: list[dict[str, Value]] = []
    for arm, group in groups.items():
        for control in group[0].evaluations:
            shares = sorted(share(record, control) for record in group)
            row: dict[str, Value] = {"method": ARMS[arm][0], "latents": "own" if control == DEFAULT else control}
            row |= percent(accuracy(group, control))
            row |= {"least": 100 * shares[0], "most": 100 * shares[-1], "through": sum(x > THROUGH for x in shares)}
            own = control == DEFAULT
            kl = [record.evaluations[control].kl for record in group]
            row["kl"] = fmean(fmean(steps) for steps in kl) if all(kl) else None
            row["breaks"] = _breaks(group) if own else None
            row["train_s"] = fmean(record.cost.training_seconds for record in group) if own else None
            rows.append(row | {"seeds": len(group)})
    columns = {
        "method": "s", "latents": "s", "accuracy": ".2f", "low": ".2f", "high": ".2f", "least": ".2f", "most": ".2f",
        "through": "d", "kl": ".3f", "breaks": ".0f", "train_s": ".0f", "seeds": "d",
    }  # fmt: skip
    legend = (
        "percent right on problems of graphs never trained on, mean over seeds with its 95 % interval (bootstrap over "
        "seeds and keys; Student's t over seeds where that is wider); least, most: of the runs. through: runs above "
        f"{100 * THROUGH:g} %; breaks: the mean step at which those first were, asked 256 problems. latents: the run's "
        "own, or replaced when it is asked. kl: nats from the oracle's frontier, mean over steps, where steps are "
        "taught. Direct and pause have no taught step. train_s: seconds of one core."
    )
    return [Table(f"{PLACE.title.capitalize()}: {PLACE.task}", columns, rows, legend, [*_findings(groups)])]


def _breaks(group: Records) -> float | None:
    """The mean step at which runs that broke through first validated above THROUGH."""
    found = []
    for record in group:
        steps = [int(step) for step, right in record.course.items() if right > THROUGH]
        if steps and share(record) > THROUGH:
            found.append(min(steps))
    return fmean(found) if found else None


def _findings(groups: Groups) -> Iterator[Finding]:
    """Who is more often right than whom, and who needs its latents; of arms in two clusters nothing is claimed."""
    whole = {arm: group for arm, group in groups.items() if not clustered(group)}
    for ours, theirs in RIVALS:
        if {ours, theirs} <= whole.keys():
            yield better(ARMS[ours][0], whole[ours], ARMS[theirs][0], whole[theirs], "stories")
    for arm, group in whole.items():
        if controls(group):
            yield latents_matter(ARMS[arm][0], group)


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """Accuracy of every arm, a dot a run, and validation accuracy along training."""
    groups = grouped(records, lambda record: arm_of(record.experiment))
    with figure(path, 10, 4, columns=2) as (after, course):
        for y, (arm, group) in enumerate(groups.items()):
            label, _, colour = ARMS[arm]
            interval_row(after, -y, accuracy(group), colour)
            after.plot([100 * share(record) for record in group], [-y] * len(group), ".", color=colour, alpha=0.5)
            for name in controls(group):
                after.plot(100 * accuracy(group, name).value, -y, "o", color=colour, markerfacecolor="none", ms=4)
            for number, record in enumerate(group):
                course.plot(
                    [*map(int, record.course)], [100 * right for right in record.course.values()],
                    color=colour, alpha=0.7, linewidth=1, label=None if number else label,
                )  # fmt: skip
        after.set_yticks([-y for y in range(len(groups))], [ARMS[arm][0] for arm in groups])
        after.set(xlabel="validation accuracy, %", xlim=(40, 102))
        course.set(xlabel="step", ylabel="validation accuracy, %", ylim=(0, 102))
        legend_mark(after, "latents replaced")
        legend_mark(after, "a run", ".", hollow=False)
        legend_below([after, course], 4)


STUDY = Study(
    "stories",
    "How do the arms of Coconut's paper and CoT2 compare on ProsQA-like stories, in a small model from scratch?",
    grid,
    tables,
    draw,
)
