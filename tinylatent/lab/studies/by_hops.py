"""By hops: what studies of depth share: who has learnt, how a score rises with hops, and findings about such runs.

A run counts where it answers LEARNT of the problems of every number of hops; readings look into those that it answers
rightly. LEARNT was 0.9 until a run of all tokens was right in 88 % of one hop and in more of all others; it was changed
before any effect was looked at.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Protocol, TypeVar

from tinylatent.lab.findings import Finding, decided
from tinylatent.lab.studies.compare import Seeded, over_seeds, paired

LEARNT = 0.8
"""Share of right answers, at every number of hops, of a run that counts."""
USED = 0.1
"""Distance of probabilities, of at most the root of two, that counts as a use of an erased residual."""


class Level(Protocol):
    """Problems of one number of hops."""

    @property
    def right(self) -> int:
        """Right answers."""
        ...

    @property
    def total(self) -> int:
        """Problems that were asked."""
        ...

    @property
    def scores(self) -> Mapping[str, float | None]:
        """Depth scores by name."""
        ...


class ByHops(Seeded, Protocol):
    """A record that tells problems apart by their number of hops."""

    @property
    def levels(self) -> Mapping[str, Level]:
        """By the number of hops."""
        ...


OfHops = TypeVar("OfHops", bound=ByHops)


def has_learnt(record: ByHops) -> bool:
    """Whether a run answers problems of every number of hops."""
    return all(each.right >= LEARNT * each.total for each in record.levels.values())


def learnt(groups: Mapping[str, Sequence[OfHops]]) -> dict[str, list[OfHops]]:
    """The runs of each arm that have learnt; arms without any are left out."""
    kept = {arm: [record for record in group if has_learnt(record)] for arm, group in groups.items()}
    return {arm: group for arm, group in kept.items() if group}


def slope(record: ByHops, score: str, least: int = 0) -> float | None:
    """Least-squares slope of a depth score with the number of hops from `least` on, in layers a hop; None where one is
    missing."""
    points = {int(hops): level.scores[score] for hops, level in record.levels.items() if int(hops) >= least}
    known = {hops: value for hops, value in points.items() if value is not None}
    if len(known) < len(points):
        return None
    centre = fmean(known)
    return sum((hops - centre) * value for hops, value in known.items()) / sum((hops - centre) ** 2 for hops in known)


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are there."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


# ---------------------------------------------------------------------------------------------------------------------
# Findings


def above(claim: str, group: Sequence[OfHops], value: Callable[[OfHops], float | None], unit: str) -> Finding:
    """Whether a value is above 0 in runs that have learnt and have one."""
    found = [value(each) for each in group if has_learnt(each)]
    return _found(claim, [each for each in found if each is not None], unit)


def more(
    claim: str,
    ours: Sequence[OfHops],
    theirs: Sequence[OfHops],
    value: Callable[[OfHops], float | None],
    unit: str,
) -> Finding:
    """Whether a value is larger in one arm than in another, on the seeds where both have learnt and have one."""

    def gap(mine: OfHops, other: OfHops) -> float | None:
        found = value(mine), value(other)
        return None if found[0] is None or found[1] is None else found[0] - found[1]

    return apart(claim, ours, theirs, gap, unit)


def apart(
    claim: str,
    ours: Sequence[OfHops],
    theirs: Sequence[OfHops],
    gap: Callable[[OfHops, OfHops], float | None],
    unit: str,
) -> Finding:
    """Whether a difference between two arms is above 0, on the seeds where both have learnt and there is one."""
    pairs = [pair for pair in zip(*paired(ours, theirs), strict=True) if has_learnt(pair[0]) and has_learnt(pair[1])]
    found = [gap(mine, other) for mine, other in pairs]
    return _found(claim, [each for each in found if each is not None], unit)


def _found(claim: str, gaps: Sequence[float], unit: str) -> Finding:
    gap = over_seeds(gaps)
    verdict = decided(gap.low > 0, gap.high < 0, len(gaps))
    evidence = f"{gap.value:+.2f} {unit} [{gap.low:+.2f}, {gap.high:+.2f}]"
    return Finding(claim, verdict, evidence, gap if gaps else None, unit, runs=len(gaps))
