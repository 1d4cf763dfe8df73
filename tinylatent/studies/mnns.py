"""Study `mnns`: direct answer, pause tokens, discrete chain of thought and CoT2 on Minimum Non-Negative Sum.

The headline comparison of Gozeten et al. 2025 (m = 4, digits 1..9, d = 32, 2 layers, 2 heads; validation on multisets
of digits never seen). Everything but the learning rate is the same for all methods; each method's rate is the best of
the four that study `mnns-rates` tried on other splits.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.ticker import MaxNLocator

from tinylatent.experiment import Experiment
from tinylatent.measure import ITSELF
from tinylatent.plots import COLOURS, figure, interval_row
from tinylatent.report import Table
from tinylatent.seeds import Seeds
from tinylatent.statistics import Interval, accuracy_interval, paired_difference
from tinylatent.studies.lineup import LABELS, METHODS, RECIPES, by_contender, contender
from tinylatent.study import Profile, Record, Study

PUBLISHED = {"direct": 68.35, "discrete": 84.92, "cot2": 98.94}
"""Validation accuracy in percent, from the paper; it has no pause tokens."""
SEEDS: dict[Profile, range] = {"quick": range(2), "full": range(5)}
COLUMNS = {
    "method": "s", "accuracy": ".2f", "low": ".2f", "high": ".2f", "published": ".2f", "seeds": "d", "kl": ".4f",
    "steps": "d", "slots": "d", "kflop": ".0f", "parameters": "d", "train_s": ".0f", "eval_per_s": ".0f",
}  # fmt: skip
LEGEND = (
    "accuracy, low, high: percent of the validation part, mean over seeds, 95 % interval (bootstrap over seeds and "
    "keys, a key being a multiset of digits). published: Gozeten et al. 2025, another implementation and other splits. "
    "kl: nats from the oracle's frontier, mean over steps. steps, slots, kflop: decoded steps, slots read and thousand "
    "operations per problem at inference. train_s: seconds a run; eval_per_s: problems a second, one thread. "
    "noise, shuffled, zero: the same model with its latents replaced at evaluation."
)


def grid(profile: Profile) -> list[Experiment]:
    """Every method on every seed."""
    return [
        Experiment(method=method, training=RECIPES[contender(method)], seeds=Seeds.all(seed))
        for method in METHODS
        for seed in SEEDS[profile]
    ]


def intervals(records: list[Record]) -> Iterator[tuple[str, str, Interval]]:
    """(method, variant, accuracy) of every method itself and under every control."""
    for name, group in by_contender(records).items():
        totals = [record["total"] for record in group]
        for variant in group[0]["evaluations"]:
            yield name, variant, accuracy_interval([r["evaluations"][variant]["right"] for r in group], totals)


def tables(records: list[Record]) -> list[Table]:
    """The comparison, and the sampling figures of discrete chain of thought."""
    groups = by_contender(records)
    rows = [_row(groups[name], name, variant, interval) for name, variant, interval in intervals(records)]
    return [Table("MNNS, m = 4, digits 1..9", COLUMNS, rows, [LEGEND, *_differences(groups)]), _sampled(groups)]


def _row(group: list[Record], name: str, variant: str, interval: Interval) -> dict[str, Any]:
    first, evaluations = group[0], [record["evaluations"][variant] for record in group]
    row: dict[str, Any] = {
        "method": LABELS[name] if variant == ITSELF else f"{LABELS[name]}, {variant}",
        "accuracy": 100 * interval.value,
        "low": 100 * interval.low,
        "high": 100 * interval.high,
        "kl": fmean([fmean(e["kl"]) for e in evaluations]) if evaluations[0]["kl"] else None,
    }
    if variant == ITSELF:
        row |= {
            "published": PUBLISHED.get(name),
            "seeds": len(group),
            "steps": first["cost"]["steps"],
            "slots": first["cost"]["slots"],
            "kflop": first["cost"]["flops"] / 1000,
            "parameters": first["parameters"],
            "train_s": fmean([record["cost"]["training_seconds"] for record in group]),
            "eval_per_s": fmean([e["problems_per_s"] for e in evaluations]),
        }
    return row


def _differences(groups: dict[str, list[Record]]) -> list[str]:
    """CoT2 minus every other method, paired on the same splits, and the score of a constant, as sentences."""
    lines = []
    for name in groups:
        if name != "cot2":
            pairs = list(zip(groups["cot2"], groups[name], strict=True))
            if any(a["keys"] != b["keys"] or a["total"] != b["total"] for a, b in pairs):
                raise ValueError(f"runs of cot2 and {name} are not on the same splits, in the same order")
            ours, theirs = ([pair[i]["evaluations"][ITSELF]["right"] for pair in pairs] for i in (0, 1))
            gap = paired_difference(ours, theirs, [a["total"] for a, _ in pairs])
            low, value, high = (f"{100 * x:+.2f}" for x in (gap.low, gap.value, gap.high))
            lines.append(f"CoT2 minus {LABELS[name]}, same splits: {value} points [{low}, {high}].")
    constant = 100 * fmean([record["constant"] for group in groups.values() for record in group])
    lines.append(f"Always saying the most frequent training answer would score {constant:.2f} %.")
    return ["", *(f"- {line}" for line in lines)]


def _sampled(groups: dict[str, list[Record]]) -> Table:
    """pass@k and majority@k of sampled discrete chains at temperature 1, mean over seeds."""
    records, rows = groups["discrete"], []
    samples = records[0]["sampling"]["samples"]
    found = [record["sampling"]["temperatures"]["1"] for record in records]
    for k in found[0]["pass"]:
        row: dict[str, Any] = {"k": k}
        for name in ("pass", "majority"):
            counts = [figures[name][k] for figures in found]
            totals = [[n * c["of"] for n in r["total"]] for r, c in zip(records, counts, strict=True)]
            interval = accuracy_interval([c["right"] for c in counts], totals)
            for part in ("value", "low", "high"):
                row[f"{name}@k" if part == "value" else f"{name} {part}"] = 100 * getattr(interval, part)
        rows.append(row)
    columns = {"k": "s"} | {name: ".2f" for name in rows[0] if name != "k"}
    title = f"Discrete CoT sampled at temperature 1, {samples} samples a problem"
    note = f"pass@k: unbiased from {samples} samples. majority@k: over {samples} // k disjoint blocks of k samples."
    return Table(title, columns, rows, [note])


def draw(records: list[Record], path: Path) -> None:
    """Accuracy with intervals beside the published values, and the distance from the oracle step by step."""
    rows = list(intervals(records))
    with figure(path, 8.5, 3.2, columns=2) as (left, right):
        for place, (name, variant, interval) in enumerate(reversed(rows)):
            interval_row(left, place, interval, COLOURS[name], hollow=variant != ITSELF)
            if variant == ITSELF and name in PUBLISHED:
                left.plot(PUBLISHED[name], place, "D", color="black", markerfacecolor="none", markersize=6)
        labels = [LABELS[name] if variant == ITSELF else f"{variant} latents" for name, variant, _ in reversed(rows)]
        left.set_yticks(range(len(rows)), labels)
        left.plot([], [], "D", color="black", markerfacecolor="none", label="published")
        left.plot([], [], "o-", color="black", label="measured, 95 %")
        left.legend(loc="center left")  # where the accurate methods leave room
        left.set(xlabel="validation accuracy, %", xlim=(0, 102))
        for name, group in by_contender(records).items():
            for record in group:
                kl = record["evaluations"][ITSELF]["kl"]
                if kl:
                    label = LABELS[name] if record is group[0] else None
                    right.plot(range(1, len(kl) + 1), kl, "o-", color=COLOURS[name], alpha=0.7, label=label)
        right.set(xlabel="step", ylabel="KL from the oracle's frontier, nats", yscale="log")
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.legend()


STUDY = Study(
    "mnns",
    "How do a direct answer, pause tokens, discrete chain of thought and CoT2 compare on MNNS?",
    grid,
    tables,
    draw,
)
