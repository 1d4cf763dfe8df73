"""Compare: what all studies say about their records: intervals, paired differences, and findings about them."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal, Protocol, TypeVar

from tinylatent.engine.controls import CONTROLS
from tinylatent.evaluation.statistics import Interval, accuracy_interval, mean_interval, paired_difference
from tinylatent.lab.findings import Finding, decided
from tinylatent.lab.records import DEFAULT, ExperimentRecord, Ranking, Sampling

Name = TypeVar("Name", bound=Hashable)
Item = TypeVar("Item")
Records = Sequence[ExperimentRecord]


class Seeded(Protocol):
    """A record of a run that has seeds, or reads one that has."""

    @property
    def seeds(self) -> Mapping[str, int]:
        """The seeds of that run."""
        ...


OfRun = TypeVar("OfRun", bound=Seeded)
Statistic = Literal["pass", "majority"]
"""What several answers to a problem come to: whether any of k is right, or whether most are."""


def grouped(records: Iterable[Item], name: Callable[[Item], Name]) -> dict[Name, list[Item]]:
    """Records that share a name, in order of appearance."""
    groups: dict[Name, list[Item]] = {}
    for record in records:
        groups.setdefault(name(record), []).append(record)
    return groups


def method_of(record: ExperimentRecord) -> str:
    """The name of a record's method."""
    return str(record.experiment.method.name)


def rights(group: Records, variant: str = DEFAULT) -> list[list[int]]:
    """Right answers per key of each run."""
    return [record.evaluations[variant].right for record in group]


def totals(group: Records) -> list[list[int]]:
    """All problems per key of each run."""
    return [record.total for record in group]


def accuracy(group: Records, variant: str = DEFAULT) -> Interval:
    """Mean accuracy of runs that differ in seeds."""
    return accuracy_interval(rights(group, variant), totals(group))


def share(record: ExperimentRecord, variant: str = DEFAULT) -> float:
    """The accuracy of one run."""
    return sum(record.evaluations[variant].right) / sum(record.total)


GAP = 0.25
"""Runs lie in two clusters where two neighbours, by accuracy, are further apart than that."""


def clustered(group: Records, variant: str = DEFAULT) -> bool:
    """Whether accuracies of runs lie in two clusters, apart by more than GAP: their mean says nothing then."""
    return any(high - low > GAP for low, high in pairwise(sorted(share(record, variant) for record in group)))


def difference(ours: Records, theirs: Records, control: str = DEFAULT) -> Interval:
    """Accuracy of one group of runs minus that of another (under a control, if one is named), on the same splits.

    Raises:
        ValueError: the runs are not on the same splits in the same order.
    """
    require_same_splits(ours, theirs)
    return paired_difference(rights(ours), rights(theirs, control), totals(ours))


def sampling_of(record: ExperimentRecord) -> Sampling:
    """What a record sampled.

    Raises:
        ValueError: it sampled nothing.
    """
    if record.sampling is None:
        raise ValueError(f"run {record.id} of {method_of(record)} sampled no answers: expected pass@k and majority@k")
    return record.sampling


def sampled_counts(group: Records, statistic: Statistic, temperature: str, k: str) -> tuple[list[list[int]], list[int]]:
    """Right shares of a statistic as whole numbers per key of each run, and what one problem counts for."""
    sampled = [sampling_of(record).temperatures[temperature] for record in group]
    counts = [(found.pass_ if statistic == "pass" else found.majority)[k] for found in sampled]
    return [count.right for count in counts], [count.of for count in counts]


def sampled_accuracy(group: Records, statistic: Statistic, temperature: str, k: str) -> Interval:
    """pass@k or majority@k with its interval."""
    right, of = sampled_counts(group, statistic, temperature, k)
    return accuracy_interval(right, [scaled(record.total, by) for record, by in zip(group, of, strict=True)])


def ranking_of(record: ExperimentRecord) -> Ranking:
    """Where right titles stand for a record.

    Raises:
        ValueError: it ranked none.
    """
    if record.ranking is None:
        raise ValueError(f"run {record.id} of {method_of(record)} ranked no titles: expected a task with a catalogue")
    return record.ranking


def gained(
    group: Records, figure: str, k: int, way: str = DEFAULT, quintile: int | None = None
) -> tuple[list[list[int]], list[list[int]]]:
    """Gains of a ranking per key of each run, and the most there could be; see `Ranking.counts`."""
    found = [ranking_of(record).counts(record.total, figure, k, way, quintile) for record in group]
    return [gain for gain, _ in found], [most for _, most in found]


def rate(group: Records, figure: str, k: int, way: str = DEFAULT, quintile: int | None = None) -> Interval:
    """Mean hit rate ("hit") or NDCG ("ndcg") at k of runs that differ in seeds, in all or in one quintile."""
    return accuracy_interval(*gained(group, figure, k, way, quintile))


def rate_difference(
    ours: Records, theirs: Records, figure: str, k: int, way: str = DEFAULT, quintile: int | None = None
) -> Interval:
    """Hit rate or NDCG at k of one group of runs minus that of another (ranked in a way), on the same splits.

    Titles and item tokens may be compared: both ask the same problems.

    Raises:
        ValueError: the runs are not on the same splits, or ask for items of other popularity there.
    """
    require_same_splits(ours, theirs)
    if [ranking_of(record).quintile for record in ours] != [ranking_of(record).quintile for record in theirs]:
        raise ValueError("the runs ask for items of other popularity on the same splits: expected the same problems")
    gain, most = gained(ours, figure, k, DEFAULT, quintile)
    return paired_difference(gain, gained(theirs, figure, k, way, quintile)[0], most)


def course(group: Records, metric: str, at: float) -> list[float]:
    """A logged metric of each run, at a share of its lines: 0 is the first, 1 the last; missing values left out."""
    found = []
    for record in group:
        values = [*logged(record, metric).values()]
        if values:
            found.append(values[round(at * (len(values) - 1))])
    return found


def logged(record: ExperimentRecord, metric: str) -> dict[int, float]:
    """A metric of a run by step, where it is known."""
    return {line["step"]: line[metric] for line in record.metrics if line.get(metric) is not None}


def over_seeds(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean and interval over seeds; a single seed has no width of its own."""
    if len(values) < 2:
        value = values[0] if values else float("nan")
        return Interval(value, value, value, "one run")
    return mean_interval(values, level)


def _split_seed(record: Seeded) -> int:
    """The seed of a run's split, which is left out of what was written where it is 0."""
    return record.seeds.get("split", 0)


def paired(ours: Sequence[OfRun], theirs: Sequence[OfRun]) -> tuple[list[OfRun], list[OfRun]]:
    """The runs of two arms in the order of their seeds.

    Raises:
        ValueError: a seed is missing in one of them, or there twice.
    """
    mine, other = ({_split_seed(record): record for record in group} for group in (ours, theirs))
    if mine.keys() != other.keys() or {len(ours), len(theirs)} != {len(mine)}:
        told = (", ".join(str(_split_seed(record)) for record in group) for group in (ours, theirs))
        raise ValueError(
            f"runs of seeds {' and '.join(told)} are no pairs: expected one run of either arm for every seed"
        )
    return [mine[seed] for seed in sorted(mine)], [other[seed] for seed in sorted(mine)]


def before(group: Records) -> list[list[int]]:
    """Right answers per key of each run before it was trained, read as its own method reads.

    Raises:
        ValueError: a run starts from no other.
    """
    found = []
    for record in group:
        if record.before is None:
            raise ValueError(f"run {record.id} was not evaluated before its training: expected a run with a start")
        found.append(record.before.evaluations[DEFAULT].right)
    return found


def lead(ours: Records, theirs: Records) -> Interval:
    """Accuracy of one arm minus another's, on the same problems, seed by seed."""
    return difference(*paired(ours, theirs))


def scaled(values: Sequence[int], by: int) -> list[int]:
    """Counts in units of a finer count."""
    return [value * by for value in values]


def require_same_splits(ours: Records, theirs: Records) -> None:
    """Raises ValueError unless both groups have the same keys and totals, run by run."""
    pairs = list(zip(ours, theirs, strict=True))
    if any(a.keys != b.keys or a.total != b.total for a, b in pairs):
        names = f"{method_of(ours[0])} and {method_of(theirs[0])}"
        raise ValueError(f"runs of {names} are not on the same splits, in the same order")


def controls(group: Records) -> list[str]:
    """The controls a group was put under: none, or all."""
    return [name for name in CONTROLS if name in group[0].evaluations]


# ---------------------------------------------------------------------------------------------------------------------
# Findings


def percent(interval: Interval, name: str = "accuracy", low: str = "low", high: str = "high") -> dict[str, Any]:
    """An interval as cells of a table, in percent."""
    return {name: 100 * interval.value, low: 100 * interval.low, high: 100 * interval.high}


def points(gap: Interval) -> str:
    """A difference in percentage points with its interval."""
    low, value, high = (f"{100 * x:+.2f}" for x in (gap.low, gap.value, gap.high))
    return f"{value} points [{low}, {high}]"


def positive(claim: str, gap: Interval, runs: int, family: str = "") -> Finding:
    """Whether a difference over this many runs is positive, as the claim says."""
    return Finding(claim, decided(gap.low > 0, gap.high < 0, runs), points(gap), gap, family=family, runs=runs)


def better(label: str, ours: Records, other: str, theirs: Records, family: str = "") -> Finding:
    """Whether one group of runs is more often right than another."""
    return positive(f"{label} is more often right than {other}", difference(ours, theirs), len(ours), family)


def latents_matter(label: str, group: Records) -> Finding:
    """Whether a latent method needs its own latents: it must lose under every control.

    The estimate is the smallest of the losses.
    """
    gaps = {control: difference(group, group, control) for control in controls(group)}
    return needs_own(f"{label} needs its own latents", gaps, len(group))


def needs_own(claim: str, gaps: Mapping[str, Interval], runs: int) -> Finding:
    """Whether all losses under controls, by the control's name, are positive; the estimate is the smallest."""
    verdict = decided(all(g.low > 0 for g in gaps.values()), any(g.high < 0 for g in gaps.values()), runs)
    evidence = ", ".join(f"{points(gap)} over {control}" for control, gap in gaps.items())
    least = min(gaps.values(), key=lambda gap: gap.value)
    return Finding(claim, verdict, evidence, least, family="controls", runs=runs)


WIDEST = 6
"""Points between the ends of an interval that says something about a published value inside it: 3 to either side."""


def against_published(label: str, interval: Interval, published: float) -> str:
    """Where a published accuracy in percent lies beside a measured interval, as a sentence.

    How far the published value itself is off is not known: it has no interval. One of more than WIDEST points does not
    tell it from much else that lies inside.
    """
    low, value, high = (100 * x for x in (interval.low, interval.value, interval.high))
    where = "below" if published < low else "above" if published > high else "inside"
    wide = ", which is too wide to tell them apart" if where == "inside" and high - low > WIDEST else ""
    measured = f"{value:.2f} [{low:.2f}, {high:.2f}]{wide}"
    return f"{label}: the published {published:.2f} lies {where} what was measured, {measured}."


def placed(place: str, found: Finding) -> Finding:
    """A finding whose claim says where."""
    return replace(found, claim=f"{place}: {found.claim}")
