"""Comparison: a table and a figure of methods side by side, each latent one followed by its controls.

The records are of one comparison of `recipes.COMPARISONS`, and the methods those of the records.
"""

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import TYPE_CHECKING

from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.arms import Arm, arms
from tinylatent.lab.findings import Finding
from tinylatent.lab.plots import interval_row, legend_mark, published_mark
from tinylatent.lab.recipes import COMPARISONS
from tinylatent.lab.records import DEFAULT
from tinylatent.lab.studies.compare import (
    Records,
    accuracy,
    against_published,
    better,
    controls,
    grouped,
    latents_matter,
    method_of,
    percent,
)
from tinylatent.lab.tables import Table, Value

if TYPE_CHECKING:
    import matplotlib.axes  # which commands that draw nothing do not load

COLUMNS = {
    "method": "s", "accuracy": ".2f", "low": ".2f", "high": ".2f", "published": ".2f", "seeds": "d", "kl": ".4f",
    "norm": ".2f", "steps": "d", "kflop": ".0f", "parameters": "d", "train_s": ".0f", "eval_per_s": ".0f",
}  # fmt: skip
PUBLISHED_LEGEND = (
    "published: Gozeten et al. 2025, another implementation and other splits, without interval; that one lies inside "
    "what was measured does not say that both are equal. "
)
LEGEND = (
    "accuracy, low, high: percent of the validation part, mean over seeds, 95 % interval (bootstrap over seeds and "
    "keys, a key being {key}; Student's t over seeds where that is wider). {published}"
    "kl: nats from the oracle's frontier of all traces, mean over steps, for methods with taught steps; discrete CoT "
    "is taught one trace, so it stands far from all. norm: of what is fed back, in units of the mean token embedding "
    "(tokens differ). steps, kflop: decoded steps and thousand operations per problem at inference. train_s: seconds "
    "a run; eval_per_s: problems a second, one thread. noise, shuffled, zero: the same model, its latents replaced at "
    "evaluation by noise of the same norm, by another problem's latents, by nothing; a loss shows that the answer "
    "depends on what is fed back, and not what is in it. Differences are on the same splits."
)


def comparison(records: Records, title: str, name: str) -> Table:
    """A row for each method and each of its controls, with findings about both.

    Args:
        records: runs of one comparison, the same seeds for every method.
        title: of the table.
        name: of the comparison in `COMPARISONS`, which knows published values and what a key is.
    """
    where, known, groups = COMPARISONS[name], arms(name), grouped(records, method_of)
    columns = {column: spec for column, spec in COLUMNS.items() if where.published or column != "published"}
    rows = [_row(known[method], groups[method], variant, interval) for method, variant, interval in intervals(records)]
    beside = [
        against_published(arm.label, accuracy(groups[method]), arm.published)
        for method, arm in known.items()
        if method in groups and arm.published is not None
    ]
    baseline = 100 * fmean(record.majority_baseline for record in records)
    return Table(
        title,
        columns,
        [{column: row[column] for column in columns if column in row} for row in rows],
        LEGEND.format(key=where.key, published=PUBLISHED_LEGEND if where.published else ""),
        [*_findings(groups, known)],
        [*beside, f"The majority baseline, always saying the most frequent training answer, scores {baseline:.2f} %."],
    )


def intervals(records: Records) -> Iterator[tuple[str, str, Interval]]:
    """(method, variant, accuracy) of every method as it is and under every control."""
    for name, group in grouped(records, method_of).items():
        for variant in group[0].evaluations:
            yield name, variant, accuracy(group, variant)


def _row(arm: Arm, group: Records, variant: str, interval: Interval) -> dict[str, Value]:
    """One method as it is, or under a control."""
    first, evaluations = group[0], [record.evaluations[variant] for record in group]
    row: dict[str, Value] = {
        "method": arm.label if variant == DEFAULT else f"{arm.label}, {variant}",
        **percent(interval),
        "kl": fmean(fmean(found.kl) for found in evaluations) if evaluations[0].kl else None,
        "norm": fmean(fmean(found.norm) for found in evaluations) if evaluations[0].norm else None,
    }
    if variant == DEFAULT:
        row |= {
            "published": arm.published,
            "seeds": len(group),
            "steps": first.cost.steps,
            "kflop": first.cost.flops / 1000,
            "parameters": first.parameters,
            "train_s": fmean(record.cost.training_seconds for record in group),
            "eval_per_s": fmean(found.problems_per_s for found in evaluations),
        }
    return row


def _findings(groups: Mapping[str, Records], known: Mapping[str, Arm]) -> Iterator[Finding]:
    """Each latent method against all that stand before it on the same splits, and against its controls."""
    names = list(groups)
    latent = [name for name in names if controls(groups[name])]
    for claimed in reversed(latent):
        for other in names[: names.index(claimed)]:
            yield better(known[claimed].label, groups[claimed], known[other].label, groups[other], "methods")
    for name in latent:
        yield latents_matter(known[name].label, groups[name])


def draw_accuracies(axes: "matplotlib.axes.Axes", records: Records, name: str) -> None:
    """Draws a comparison's intervals from top to bottom, controls hollow, published values as diamonds."""
    known, rows = arms(name), list(intervals(records))[::-1]
    for y, (method, variant, interval) in enumerate(rows):
        arm = known[method]
        interval_row(axes, y, interval, arm.colour, hollow=variant != DEFAULT)
        if variant == DEFAULT and arm.published is not None:
            published_mark(axes, arm.published, y)
    labels = [known[method].label if variant == DEFAULT else f"{variant} latents" for method, variant, _ in rows]
    axes.set_yticks(range(len(rows)), labels)
    published_mark(axes, label="published")
    axes.plot([], [], "o-", color="black", label="measured, 95 %")
    if any(variant != DEFAULT for _, variant, _ in rows):
        legend_mark(axes, "latents replaced")
    axes.set(xlabel="validation accuracy, %", xlim=(0, 102))
