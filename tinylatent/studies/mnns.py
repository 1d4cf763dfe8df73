"""Study `mnns`: direct answer, pause tokens, discrete chain of thought, Coconut and CoT2 on Minimum Non-Negative Sum.

The headline comparison of Gozeten et al. 2025 (m = 4, digits 1..9, d = 32, 2 layers, 2 heads; validation on multisets
of digits never seen). All methods take the same number of steps; learning rate and weight decay are each method's own,
the best of the twelve pairs that study `mnns-tuning` tried on other splits.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tinylatent.experiment import Experiment
from tinylatent.measure import ITSELF
from tinylatent.plots import COLOURS, figure, interval_column, interval_row, published_mark
from tinylatent.report import Table, Value
from tinylatent.seeds import Seeds
from tinylatent.statistics import Interval, accuracy_interval
from tinylatent.studies.compare import (
    accuracy,
    against_published,
    controls,
    difference,
    grouped,
    latents_matter,
    listed,
    method_of,
    percent,
    totals,
    verdict,
)
from tinylatent.studies.lineup import LABELS, METHODS, RECIPES
from tinylatent.study import Profile, Record, Study

PUBLISHED = {"direct": 68.35, "discrete": 84.92, "coconut": 92.58, "cot2": 98.94}
"""Validation accuracy in percent, from the paper; it has no pause tokens."""
SEEDS: dict[Profile, range] = {"quick": range(2), "full": range(5)}
COLUMNS = {
    "method": "s", "accuracy": ".2f", "low": ".2f", "high": ".2f", "published": ".2f", "seeds": "d", "kl": ".4f",
    "norm": ".2f", "steps": "d", "kflop": ".0f", "parameters": "d", "train_s": ".0f", "eval_per_s": ".0f",
}  # fmt: skip
LEGEND = (
    "accuracy, low, high: percent of the validation part, mean over seeds, 95 % interval (bootstrap over seeds and "
    "keys, a key being a multiset of digits). published: Gozeten et al. 2025, another implementation and other splits. "
    "kl: nats from the oracle's frontier, mean over steps. norm: of what is fed back, in units of the mean token "
    "embedding. steps, kflop: decoded steps and thousand operations per problem at inference. train_s: seconds a run; "
    "eval_per_s: problems a second, one thread. noise, shuffled, zero: the same model, its latents replaced at "
    "evaluation by noise of the same norm, by another problem's latents, by nothing."
)


def grid(profile: Profile) -> list[Experiment]:
    """Every method on every seed."""
    return [
        Experiment(method=method, training=RECIPES[method.name], seeds=Seeds.all(seed))
        for method in METHODS
        for seed in SEEDS[profile]
    ]


def intervals(records: list[Record]) -> Iterator[tuple[str, str, Interval]]:
    """(method, variant, accuracy) of every method itself and under every control."""
    for name, group in grouped(records, method_of).items():
        for variant in group[0]["evaluations"]:
            yield name, variant, accuracy(group, variant)


def tables(records: list[Record]) -> list[Table]:
    """The comparison, and what each of Coconut's stages had learnt."""
    groups = grouped(records, method_of)
    rows = [_row(groups[name], name, variant, interval) for name, variant, interval in intervals(records)]
    comparison = Table("MNNS, m = 4, digits 1..9", COLUMNS, rows, [LEGEND, *_verdicts(groups)])
    return [comparison, _by_stage(groups["coconut"])] if "coconut" in groups else [comparison]


def _row(group: list[Record], name: str, variant: str, interval: Interval) -> dict[str, Any]:
    first, evaluations = group[0], [record["evaluations"][variant] for record in group]
    row: dict[str, Any] = {
        "method": LABELS[name] if variant == ITSELF else f"{LABELS[name]}, {variant}",
        **percent(interval),
        "kl": fmean([fmean(e["kl"]) for e in evaluations]) if evaluations[0]["kl"] else None,
        "norm": fmean([fmean(e["norm"]) for e in evaluations]) if evaluations[0]["norm"] else None,
    }
    if variant == ITSELF:
        row |= {
            "published": PUBLISHED.get(name),
            "seeds": len(group),
            "steps": first["cost"]["steps"],
            "kflop": first["cost"]["flops"] / 1000,
            "parameters": first["parameters"],
            "train_s": fmean([record["cost"]["training_seconds"] for record in group]),
            "eval_per_s": fmean([e["problems_per_s"] for e in evaluations]),
        }
    return row


def _verdicts(groups: dict[str, list[Record]]) -> list[str]:
    """What holds and what does not: each method against the others on the same splits, its controls, the paper."""
    lines = []
    for better, worse in _claims(list(groups)):
        claim = f"{LABELS[better]} is more often right than {LABELS[worse]} on the same splits"
        lines.append(verdict(claim, difference(groups[better], groups[worse])))
    lines += [latents_matter(LABELS[name], group) for name, group in groups.items() if controls(group)]
    for name in groups:
        if name in PUBLISHED:
            lines.append(against_published(LABELS[name], accuracy(groups[name]), PUBLISHED[name]))
    constant = 100 * fmean([record["constant"] for group in groups.values() for record in group])
    lines.append(f"Always saying the most frequent training answer would score {constant:.2f} %.")
    return listed(lines)


def _claims(names: list[str]) -> Iterator[tuple[str, str]]:
    """Pairs (claimed better, claimed worse): CoT2 over all, Coconut over what comes before it in the table."""
    for better in ("cot2", "coconut"):
        if better in names:
            yield from ((better, worse) for worse in names[: names.index(better)])


def stage_intervals(group: list[Record]) -> list[Interval]:
    """Accuracy at the end of each stage, the last included."""
    stages = [
        accuracy_interval([record["stages"][stage]["right"] for record in group], totals(group))
        for stage in range(len(group[0]["stages"]))
    ]
    return [*stages, accuracy(group)]


def _by_stage(group: list[Record]) -> Table:
    """How Coconut fares as its chain is unlearnt."""
    ends = [stage["step"] for stage in group[0]["stages"]] + [group[0]["experiment"]["training"]["steps"]]
    rows: list[dict[str, Value]] = [
        {"latent steps": stage, "until step": end, **percent(interval)}
        for stage, (end, interval) in enumerate(zip(ends, stage_intervals(group), strict=True))
    ]
    columns = {"latent steps": "d", "until step": "d", "accuracy": ".2f", "low": ".2f", "high": ".2f"}
    note = "Accuracy at the end of each stage, thinking as that stage taught; with no latent step it is discrete CoT."
    return Table("Coconut, stage by stage", columns, rows, [note])


def draw(records: list[Record], path: Path) -> None:
    """Accuracy beside the published values, the distance from the oracle step by step, and Coconut's stages."""
    groups = grouped(records, method_of)
    with figure(path, 11, 3.6, columns=3) as (left, middle, right):
        rows = list(intervals(records))
        for place, (name, variant, interval) in enumerate(reversed(rows)):
            interval_row(left, place, interval, COLOURS[name], hollow=variant != ITSELF)
            if variant == ITSELF and name in PUBLISHED:
                published_mark(left, PUBLISHED[name], place)
        labels = [LABELS[name] if variant == ITSELF else f"{variant} latents" for name, variant, _ in reversed(rows)]
        left.set_yticks(range(len(rows)), labels)
        published_mark(left, label="published")
        left.plot([], [], "o-", color="black", label="measured, 95 %")
        left.legend(loc="lower right")
        left.set(xlabel="validation accuracy, %", xlim=(0, 102))
        for name, group in groups.items():
            _draw_kl(middle, name, group)
        middle.set(xlabel="step", ylabel="KL from the oracle's frontier, nats", yscale="log")
        middle.xaxis.set_major_locator(MaxNLocator(integer=True))
        middle.legend()
        for stage, interval in enumerate(stage_intervals(groups.get("coconut", records[:1]))):
            interval_column(right, stage, interval, COLOURS["coconut"])
        right.set(xlabel="Coconut's latent steps", ylabel="accuracy at the end of the stage, %", ylim=(0, 102))
        right.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_kl(axes: Axes, name: str, group: list[Record]) -> None:
    """A line a seed, for methods whose steps are taught the frontier or a trace of it."""
    for record in group:
        kl = record["evaluations"][ITSELF]["kl"]
        if kl:
            label = LABELS[name] if record is group[0] else None
            axes.plot(range(1, len(kl) + 1), kl, "o-", color=COLOURS[name], alpha=0.7, label=label)


STUDY = Study(
    "mnns",
    "How do a direct answer, pause tokens, discrete chain of thought, Coconut and CoT2 compare on MNNS?",
    grid,
    tables,
    draw,
)
