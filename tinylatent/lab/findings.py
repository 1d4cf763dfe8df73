"""Findings: what a study or the ledger says, as data. Sentences, tables and JSON are written from them.

There is one vocabulary of verdicts. A claim about measured differences "holds" or "fails" where the whole interval, of
95 % unless the finding has another `level`, lies on one side of at least FEWEST runs; otherwise there is "not enough
evidence". A statement of the ledger that needs more than its source says "holds under stricter conditions". No verdict
is corrected for how many findings stand beside it, but by such a level.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from tinylatent.evaluation.statistics import Interval

Verdict = Literal["holds", "holds under stricter conditions", "fails", "not enough evidence"]
HOLDS: Verdict
STRICTER: Verdict
FAILS: Verdict
OPEN: Verdict
HOLDS, STRICTER, FAILS, OPEN = get_args(Verdict)
FEWEST = 3
"""Runs that decide anything. Where a run either succeeds or does not, two may agree by luck: simulated intervals of two
such runs, nominally of 95 %, cover the truth in half of all cases, and rounding on another processor moves a run by
points."""


@dataclass(frozen=True)
class Finding:
    """A claim, what was found, and on what evidence."""

    claim: str
    """What is claimed, as a clause without a full stop."""
    verdict: Verdict
    evidence: str = ""
    """The numbers, as they stand in brackets behind the claim."""
    estimate: Interval | None = None
    """What was estimated, if it is one number: a share, or a difference of shares, unless `unit` says otherwise."""
    unit: str = "share"
    """Unit of the estimate."""
    family: str = ""
    """The group of claims that it is read with; empty if it stands alone."""
    curves: Mapping[str, list[float]] = field(default_factory=dict)
    """What a figure may draw."""
    runs: int | None = None
    """How many runs stand behind it, one for each seed; None where none was trained."""
    level: float = 0.95
    """Of the interval, and so of the verdict."""
    exploratory: bool = True
    """Whether the claim was chosen with its runs at hand, so that its verdict is a lead and no test. The ledger's
    statements stand before each check of them; no claim of a study so far was named before its runs."""

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise ValueError(f"verdict {self.verdict!r}: expected one of {', '.join(get_args(Verdict))}")

    def sentence(self) -> str:
        """Verdict, claim and evidence in one sentence."""
        few = "" if self.runs is None or self.runs >= FEWEST else f"from {self.runs} run{'s' * (self.runs != 1)} alone"
        own = "" if self.level == 0.95 or not self.evidence else f" at {100 * self.level:.2f} %"
        told = ": ".join(filter(None, (few, self.evidence + own)))
        evidence = f" ({told})" if told else ""
        return f"{self.verdict.capitalize()}: {self.claim}{evidence}."

    def to_json(self) -> dict[str, Any]:
        """The finding as plain values; curves and what is not known are left out."""
        found: dict[str, Any] = {"claim": self.claim, "verdict": self.verdict, "exploratory": self.exploratory}
        if self.family:
            found["family"] = self.family
        if self.runs is not None:
            found["runs"] = self.runs
        if self.estimate is not None:
            ends = {"estimate": self.estimate.value, "low": self.estimate.low, "high": self.estimate.high}
            found |= {**ends, "unit": self.unit, "kind": self.estimate.kind}
        if self.level != 0.95:
            found["level"] = self.level
        return {**found, "evidence": self.evidence}


def decided(holds: bool, fails: bool, runs: int | None = None) -> Verdict:
    """The verdict on a claim from what its interval shows; fewer than FEWEST runs are never enough.

    Args:
        holds: whether the whole interval speaks for the claim.
        fails: whether the whole interval speaks against it.
        runs: how many runs stand behind it; None where the question does not arise.
    """
    if holds == fails or (runs is not None and runs < FEWEST):
        return OPEN
    return HOLDS if holds else FAILS


def exactly(claim: str, holds: bool, evidence: str, family: str = "") -> Finding:
    """A finding that leaves no room for chance: it holds or it fails."""
    return Finding(claim, HOLDS if holds else FAILS, evidence, family=family)
