"""Compare: what all studies say about their records, and how: intervals, paired differences, and verdicts in words.

A verdict names its claim and one of three findings. It "holds" or "fails" where the whole 95 % interval lies on one
side of zero; otherwise, and whenever a single run is all there is, there is "not enough evidence".
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from tinylatent.engine.controls import CONTROLS
from tinylatent.evaluation.statistics import Interval, accuracy_interval, paired_difference
from tinylatent.lab.measure import ITSELF
from tinylatent.lab.study import Record

Name = TypeVar("Name", bound=Hashable)


def grouped(records: Iterable[Record], name: Callable[[Record], Name]) -> dict[Name, list[Record]]:
    """Records that share a name, in order of appearance."""
    groups: dict[Name, list[Record]] = {}
    for record in records:
        groups.setdefault(name(record), []).append(record)
    return groups


def method_of(record: Record) -> str:
    """The name of a record's method."""
    return record["experiment"]["method"]["name"]


def rights(group: Sequence[Record], variant: str = ITSELF) -> list[list[int]]:
    """Right answers per key of each run."""
    return [record["evaluations"][variant]["right"] for record in group]


def totals(group: Sequence[Record]) -> list[list[int]]:
    """All problems per key of each run."""
    return [record["total"] for record in group]


def share(record: Record) -> float:
    """Accuracy of one run, as a share."""
    return sum(record["evaluations"][ITSELF]["right"]) / sum(record["total"])


def accuracy(group: Sequence[Record], variant: str = ITSELF) -> Interval:
    """Mean accuracy of runs that differ in seeds."""
    return accuracy_interval(rights(group, variant), totals(group))


def difference(ours: Sequence[Record], theirs: Sequence[Record], control: str = ITSELF) -> Interval:
    """Accuracy of one group of runs minus that of another (under a control, if one is named), on the same splits.

    Raises:
        ValueError: the runs are not on the same splits in the same order.
    """
    require_same_splits(ours, theirs)
    return paired_difference(rights(ours), rights(theirs, control), totals(ours))


def sampled_counts(
    group: Sequence[Record], figure_of: str, temperature: str, k: str
) -> tuple[list[list[int]], list[int]]:
    """Right shares of "pass" or "majority" as whole numbers per key of each run, and what one problem counts for."""
    found = [record["sampling"]["temperatures"][temperature][figure_of][k] for record in group]
    return [each["right"] for each in found], [each["of"] for each in found]


def sampled_accuracy(group: Sequence[Record], figure_of: str, temperature: str, k: str) -> Interval:
    """pass@k or majority@k with its interval."""
    right, of = sampled_counts(group, figure_of, temperature, k)
    return accuracy_interval(right, [scaled(r["total"], each) for r, each in zip(group, of, strict=True)])


def scaled(values: Sequence[int], by: int) -> list[int]:
    """Counts in units of a finer count."""
    return [value * by for value in values]


def require_same_splits(ours: Sequence[Record], theirs: Sequence[Record]) -> None:
    """Raises ValueError unless both groups have the same keys and totals, run by run."""
    pairs = list(zip(ours, theirs, strict=True))
    if any(a["keys"] != b["keys"] or a["total"] != b["total"] for a, b in pairs):
        names = f"{method_of(ours[0])} and {method_of(theirs[0])}"
        raise ValueError(f"runs of {names} are not on the same splits, in the same order")


def controls(group: Sequence[Record]) -> list[str]:
    """The controls a group was put under: none, or all."""
    return [name for name in CONTROLS if name in group[0]["evaluations"]]


def percent(interval: Interval, name: str = "accuracy", low: str = "low", high: str = "high") -> dict[str, Any]:
    """An interval as cells of a table, in percent."""
    return {name: 100 * interval.value, low: 100 * interval.low, high: 100 * interval.high}


def points(gap: Interval) -> str:
    """A difference in percentage points with its interval."""
    low, value, high = (f"{100 * x:+.2f}" for x in (gap.low, gap.value, gap.high))
    return f"{value} points [{low}, {high}]"


def finding(holds: bool, fails: bool, runs: int) -> str:
    """The word that a verdict begins with."""
    return "Not enough evidence" if runs < 2 or holds == fails else "Holds" if holds else "Fails"


def verdict(claim: str, gap: Interval, runs: int) -> str:
    """Whether a claim that a difference over this many runs is positive holds, as a sentence."""
    alone = " of one run" if runs == 1 else ""
    return f"{finding(gap.low > 0, gap.high < 0, runs)}: {claim} ({points(gap)}{alone})."


def better(label: str, ours: Sequence[Record], other: str, theirs: Sequence[Record]) -> str:
    """Whether one group of runs is more often right than another, as a sentence."""
    return verdict(f"{label} is more often right than {other}", difference(ours, theirs), len(ours))


def latents_matter(label: str, group: Sequence[Record]) -> str:
    """Whether a latent method needs its own latents: it must lose under every control."""
    gaps = {control: difference(group, group, control) for control in controls(group)}
    word = finding(all(g.low > 0 for g in gaps.values()), any(g.high < 0 for g in gaps.values()), len(group))
    each = ", ".join(f"{points(gap)} over {control}" for control, gap in gaps.items())
    return f"{word}: {label} needs its own latents ({each})."


def against_published(label: str, interval: Interval, published: float) -> str:
    """Where a published accuracy in percent lies beside a measured interval, as a sentence.

    How far the published value itself is off is not known: it has no interval.
    """
    low, value, high = (100 * x for x in (interval.low, interval.value, interval.high))
    place = "below" if published < low else "above" if published > high else "inside"
    return (
        f"{label}: the published {published:.2f} lies {place} what was measured, {value:.2f} [{low:.2f}, {high:.2f}]."
    )


def listed(lines: Iterable[str]) -> list[str]:
    """Sentences as a list below a table."""
    return ["", *(f"- {line}" for line in lines)]
