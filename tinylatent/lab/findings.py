"""Findings: what a study or the ledger says, as data. Sentences, tables and JSON are written from them.

There is one vocabulary of verdicts. A claim about measured differences "holds" or "fails" where the whole 95 % interval
lies on one side; otherwise, and whenever a single run is all there is, there is "not enough evidence". A published
statement that needs more than its paper says "holds under stricter conditions".
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
EXPLORATORY = "exploratory"
"""The family of findings that nobody announced before the runs: they are not corrected for their number."""


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
    family: str = EXPLORATORY
    """Claims that are read, and corrected, together."""
    curves: Mapping[str, list[float]] = field(default_factory=dict)
    """What a figure may draw."""

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise ValueError(f"verdict {self.verdict!r}: expected one of {', '.join(get_args(Verdict))}")

    def sentence(self) -> str:
        """Verdict, claim and evidence in one sentence."""
        evidence = f" ({self.evidence})" if self.evidence else ""
        return f"{self.verdict.capitalize()}: {self.claim}{evidence}."

    def to_json(self) -> dict[str, Any]:
        """The finding as plain values; curves are left out."""
        found: dict[str, Any] = {"claim": self.claim, "verdict": self.verdict, "family": self.family}
        if self.estimate is not None:
            estimate = self.estimate
            found |= {"estimate": estimate.value, "low": estimate.low, "high": estimate.high, "unit": self.unit}
        return {**found, "evidence": self.evidence}


def decided(holds: bool, fails: bool, runs: int | None = None) -> Verdict:
    """The verdict on a claim from what its interval shows; of a single run nothing is said.

    Args:
        holds: whether the whole interval speaks for the claim.
        fails: whether the whole interval speaks against it.
        runs: how many runs stand behind it; None where the question does not arise.
    """
    if holds == fails or (runs is not None and runs < 2):
        return OPEN
    return HOLDS if holds else FAILS


def exactly(claim: str, holds: bool, evidence: str, family: str = EXPLORATORY) -> Finding:
    """A finding that leaves no room for chance: it holds or it fails."""
    return Finding(claim, HOLDS if holds else FAILS, evidence, family=family)
