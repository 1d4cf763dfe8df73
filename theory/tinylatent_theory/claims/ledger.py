"""The ledger: what is claimed, by whom, and what a check of it says.

A claim is a function that checks a statement and returns a Finding; `@claim` says what the statement is, where it comes
from, and which verdict is on record. The claim's id is the function's name, so a verdict in a table leads to its code
by one search. A claim that fails, or needs stricter conditions than stated, brings its smallest counterexample as a
function of its own that anybody can run. Most statements are no paper's: `origin` says whose each is.

Checks are either exact (enumeration, algebra in float64) or statistical. A statistical one is a test at level ALPHA,
at most 1e-6 each: a correct statement is rejected that rarely. Its power says what it would have noticed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import scipy
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tinylatent.core.seeds import derive
from tinylatent.lab.findings import FAILS, HOLDS, STRICTER, Finding, Verdict
from tinylatent.lab.study import Profile

How = Literal["exhaustive", "exact algebra", "property test", "statistical", "stored study"]
"""exhaustive: over every case of a stated size; exact algebra: closed forms against each other, in float64; property
test: over random cases, each of them exact; statistical: samples against a prediction; stored study: committed runs."""
Origin = Literal["paper", "code", "folklore", "here"]
"""Who makes the statement. paper: the cited paper, in so many words; code: the cited authors' code does what is right
only if the statement is, or reports a number under its name; folklore: it is said without a source of its own; here: it
was derived, or stated this way, here, a strict reading of others and a reconstruction included."""
OURS = "[R]"
"""Marks in a source what was derived, or stated this way, here."""
FAMILY = "ledger"
"""The family of all findings of the ledger."""
ALPHA = 1e-6
"""Level of every statistical test."""
EXACT = 1e-9
"""Relative error below which two quantities in float64 count as equal."""
POWER = 0.99
"""What a difference called detectable is noticed with."""


@dataclass(frozen=True)
class Trial:
    """How hard to try: sizes by profile, and randomness by purpose from one seed."""

    profile: Profile = "quick"
    seed: int = 0

    def size(self, quick: int, full: int) -> int:
        """The number of cases, samples or steps of this profile."""
        return quick if self.profile == "quick" else full

    def torch(self, *purpose: int | str) -> torch.Generator:
        """A fresh torch generator for a purpose."""
        return torch.Generator().manual_seed(derive(self.seed, *purpose))

    def numpy(self, *purpose: int | str) -> np.random.Generator:
        """A fresh numpy generator for a purpose."""
        return np.random.default_rng(derive(self.seed, *purpose))


@dataclass(frozen=True)
class Claim:
    """A statement and how it is checked."""

    name: str
    source: str
    """Paper and section, or "folklore"; OURS where it was derived, or stated this way, here."""
    origin: Origin
    """Who makes the statement."""
    statement: str
    """One sentence."""
    conditions: str
    """Under which it was checked; the stricter ones where it needs them."""
    how: How
    recorded: Verdict
    check: Callable[[Trial], Finding]
    counterexample: Callable[[], str] | None = None
    """Returns the smallest case where the statement, without stricter conditions, is wrong."""

    def examine(self, trial: Trial) -> Finding:
        """Runs the check and returns its finding about the statement."""
        return replace(self.check(trial), claim=self.statement.removesuffix("."))


LEDGER: dict[str, Claim] = {}
"""Every claim by its id."""


def claim(
    *,
    source: str,
    origin: Origin,
    statement: str,
    conditions: str,
    how: How,
    recorded: Verdict,
    counterexample: Callable[[], str] | None = None,
) -> Callable[[Callable[[Trial], Finding]], Callable[[Trial], Finding]]:
    """Enters a check into the ledger under its own name.

    Raises:
        ValueError: the name is taken, a word is none of the ledger's, OURS marks the source of another's statement or
            is missing at one of ours, a failure has no counterexample.
    """

    def enter(check: Callable[[Trial], Finding]) -> Callable[[Trial], Finding]:
        name = check.__name__
        if name in LEDGER:
            raise ValueError(f"claim {name} stands in the ledger already: give it another name")
        for word, words in ((how, get_args(How)), (recorded, get_args(Verdict)), (origin, get_args(Origin))):
            if word not in words:
                raise ValueError(f"claim {name}: {word!r}: expected one of {', '.join(words)}")
        if (OURS in source) != (origin == "here"):
            raise ValueError(
                f"claim {name}: origin {origin!r}, source {source!r}: expected {OURS} just where it is here"
            )
        if recorded in (STRICTER, FAILS) and counterexample is None:
            raise ValueError(f"claim {name} is recorded as {recorded!r}: expected a counterexample that can be run")
        LEDGER[name] = Claim(name, source, origin, statement, conditions, how, recorded, check, counterexample)
        return check

    return enter


def concluded(verdict: Verdict, evidence: str, **curves: list[float]) -> Finding:
    """A check's finding; `Claim.examine` adds the statement."""
    return Finding("", verdict, evidence, family=FAMILY, curves=curves, exploratory=False)


def judged(true: bool, evidence: str, **curves: list[float]) -> Finding:
    """A finding that the statement holds, or fails."""
    return concluded(HOLDS if true else FAILS, evidence, **curves)


def judged_twice(as_stated: bool, strictly: bool, evidence: str, **curves: list[float]) -> Finding:
    """A finding that the statement holds as it stands, or under the stricter conditions alone, or not even there."""
    return concluded(FAILS if not strictly else HOLDS if as_stated else STRICTER, evidence, **curves)


def relative(value: Tensor, truth: Tensor) -> float:
    """|value - truth| / |truth| of two vectors."""
    return float((value - truth).norm() / truth.norm())


@dataclass(frozen=True)
class ZTest:
    """A mean against what it should be."""

    mean: float
    expected: float
    error: float
    """Standard error of the mean."""
    values: int
    """How many values there are."""
    looks: int = 1
    """How many tests this is the worst of: all together have level ALPHA."""

    @property
    def limit(self) -> float:
        """Standard errors beyond which a mean is off (two-sided, Student's t)."""
        return float(scipy.stats.t.isf(ALPHA / 2 / self.looks, self.values - 1))

    @property
    def rejected(self) -> bool:
        """Whether the mean is off, at level ALPHA; a mean that is no number always is."""
        return not abs(self.mean - self.expected) <= self.limit * self.error

    @property
    def detectable(self) -> float:
        """The smallest difference that is noticed with probability POWER."""
        return float((self.limit + scipy.stats.norm.ppf(POWER)) * self.error)

    def __str__(self) -> str:
        """The comparison with its level and power."""
        return (
            f"{self.mean:.4g} against {self.expected:.4g} (standard error {self.error:.2g}; level {ALPHA:g}, "
            f"a difference of {self.detectable:.2g} is noticed with probability {POWER:g})"
        )


def z_test(values: ArrayLike, expected: float, looks: int = 1) -> ZTest:
    """Tests independent values against an expected mean; hundreds are needed, for their mean to be near normal.

    Raises:
        ValueError: fewer than 100 values.
    """
    sample = np.asarray(values, float)
    if len(sample) < 100:
        raise ValueError(f"{len(sample)} values: expected at least 100 for a test of this level; draw more")
    error = float(sample.std(ddof=1) / math.sqrt(len(sample)))
    return ZTest(float(sample.mean()), expected, error, len(sample), looks)
