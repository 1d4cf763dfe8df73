"""The ledger: what is claimed, by whom, and what a check of it says.

A claim is a function that checks a published statement and returns a Finding; `@claim` says what the statement is,
where it stands, and which verdict is on record. The claim's id is the function's name, so a verdict in a table leads to
its code by one search. A claim that fails, or needs stricter conditions than published, brings its smallest
counterexample as a function of its own that anybody can run.

Checks are either exact (enumeration, algebra in float64) or statistical. A statistical one is a test at level ALPHA,
at most 1e-6 each: a correct statement is rejected that rarely. Its power says what it would have noticed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats
from torch import Tensor

from tinylatent.core.seeds import derive
from tinylatent.lab.findings import FAILS, HOLDS, STRICTER, Finding, Verdict
from tinylatent.lab.study import Profile

How = Literal["exhaustive", "exact algebra", "property test", "statistical", "stored study"]
"""exhaustive: over every case of a stated size; exact algebra: closed forms against each other, in float64; property
test: over random cases, each of them exact; statistical: samples against a prediction; stored study: committed runs."""
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
    """A published statement and how it is checked."""

    name: str
    source: str
    """Paper and section, or "folklore"; "[R]" where it was derived, or stated this way, here."""
    statement: str
    """One sentence, as published."""
    conditions: str
    """Under which it was checked; the stricter ones where it needs them."""
    how: How
    recorded: Verdict
    check: Callable[[Trial], Finding]
    counterexample: Callable[[], str] | None = None
    """Returns the smallest case where the statement, as published, is wrong."""

    def examine(self, trial: Trial) -> Finding:
        """Runs the check and returns its finding about the statement."""
        return replace(self.check(trial), claim=self.statement.removesuffix("."))


LEDGER: dict[str, Claim] = {}
"""Every claim by its id."""


def claim(
    *,
    source: str,
    statement: str,
    conditions: str,
    how: How,
    recorded: Verdict,
    counterexample: Callable[[], str] | None = None,
) -> Callable[[Callable[[Trial], Finding]], Callable[[Trial], Finding]]:
    """Enters a check into the ledger under its own name.

    Raises:
        ValueError: the name is taken, `how` or verdict is no word of the ledger, a failure has no counterexample.
    """

    def enter(check: Callable[[Trial], Finding]) -> Callable[[Trial], Finding]:
        name = check.__name__
        if name in LEDGER:
            raise ValueError(f"claim {name} stands in the ledger already: give it another name")
        if how not in get_args(How) or recorded not in get_args(Verdict):
            words = ", ".join((*get_args(How), *get_args(Verdict)))
            raise ValueError(f"claim {name}: {how!r}, {recorded!r}: expected one each of {words}")
        if recorded in (STRICTER, FAILS) and counterexample is None:
            raise ValueError(f"claim {name} is recorded as {recorded!r}: expected a counterexample that can be run")
        LEDGER[name] = Claim(name, source, statement, conditions, how, recorded, check, counterexample)
        return check

    return enter


def concluded(verdict: Verdict, evidence: str, **curves: list[float]) -> Finding:
    """A check's finding; `Claim.examine` adds the statement."""
    return Finding("", verdict, evidence, family=FAMILY, curves=curves, exploratory=False)


def judged(true: bool, evidence: str, **curves: list[float]) -> Finding:
    """A finding that the statement holds, or fails."""
    return concluded(HOLDS if true else FAILS, evidence, **curves)


def judged_twice(as_published: bool, strictly: bool, evidence: str, **curves: list[float]) -> Finding:
    """A finding that the statement holds as published, or under the stricter conditions alone, or not even there."""
    return concluded(FAILS if not strictly else HOLDS if as_published else STRICTER, evidence, **curves)


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
        return float(stats.t.isf(ALPHA / 2 / self.looks, self.values - 1))

    @property
    def rejected(self) -> bool:
        """Whether the mean is off, at level ALPHA; a mean that is no number always is."""
        return not abs(self.mean - self.expected) <= self.limit * self.error

    @property
    def detectable(self) -> float:
        """The smallest difference that is noticed with probability POWER."""
        return float((self.limit + stats.norm.ppf(POWER)) * self.error)

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
