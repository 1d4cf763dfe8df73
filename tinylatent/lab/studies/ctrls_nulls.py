"""The null hypotheses of study `ctrls`, as docs/methods/ctrls.md states them, and the verdict on each of their parts.

They and the margins here were written down before any run. A part says that something does as well as another, or no
better: it holds where the whole interval lies within the margin, fails where the whole interval lies beyond it, and is
open otherwise. Intervals of a hypothesis are corrected for the number of its parts (Bonferroni).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.findings import FAILS, HOLDS, OPEN, Finding, decided
from tinylatent.lab.recipes_ctrls import CHAIN, GRID, KINDS, PLACES
from tinylatent.lab.state_reading import BLOCKS, PLAIN
from tinylatent.lab.studies.compare import over_seeds, points
from tinylatent.lab.studies.ctrls_counts import (
    Groups,
    Records,
    answered,
    apart,
    best,
    bound_of,
    bounded,
    excess,
    few_lead,
    fixed,
    lead,
    paired,
    pairs_of_ways,
    passed,
    resampled,
)
from tinylatent.lab.tables import Table, Value

MARGIN = 0.03
"""Accuracies apart by less are called equal."""
AGREEMENTS = 0.05
"""The same of agreements, which are 1 at most."""
CHAINS = 0.1
"""The same of mean numbers of different right derivations."""
ALIKE, ALIKE_SHARE = 0.1, 0.25
"""Entropies apart by less are called matched: in nats, and as a share of the larger."""
NULLS = {
    1: "the bound: states reach no more than resampled tokens, rewards no more than the best fixed sequence",
    2: "Dirichlet: with single states it does as well as categorical",
    3: "states: random, shuffled and prefix states, and no states at all, do as well as fitted ones",
    4: "meaning: states agree with a step's index, bag of tokens and next token as well as with true states",
    5: "exploration and bonus: neither changes accuracy, nor do drawn states reach more than tokens of equal entropy",
}
"""By number, in short."""
CONTROLS = {
    "fitted": ("shuffled", "random", "prefix"),
    "rl": ("rl-shuffled", "rl-random"),
    "rl-warm": ("rl-prefix",),
}
"""What arms of fitted states are held against, beside the same weights without states."""
EXPLORERS = ("hard", "rl-hard")
"""Arms whose draws are held against tokens: single states, since the bound leaves the spread of mixtures untaught."""


@dataclass(frozen=True)
class Part:
    """A part of a null hypothesis."""

    null: int
    claim: str
    """What it says, as a clause."""
    runs: int
    gap: Callable[[float], Interval]
    """The difference at a level of confidence: of what should be no larger, minus the other."""
    margin: float = MARGIN
    equal: bool = False
    """Whether both directions count against it."""
    below: bool = False
    """Whether what should be no larger is known from below alone, so that the part can fail but not hold."""
    above: bool = False
    """Whether the other is known from below alone, so that the part can hold but not fail."""
    void: str = ""
    """Why it cannot be judged, if it cannot."""
    unit: str = "share"

    def judged(self, level: float) -> Finding:
        """The verdict at a level."""
        found = self.gap(level)
        low = -self.margin if self.equal else -float("inf")
        holds = low < found.low and found.high < self.margin
        fails = found.low > self.margin or (self.equal and found.high < -self.margin)
        verdict = decided(holds, fails, self.runs)
        if self.void or (self.below and verdict == HOLDS) or (self.above and verdict == FAILS):
            verdict = OPEN
        told = points(found) if self.unit == "share" else f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        told += self.void and f"; {self.void}"
        return Finding(
            f"null {self.null}, {self.claim}", verdict, told, found, self.unit, f"null {self.null}", runs=self.runs,
            exploratory=False,
        )  # fmt: skip


def nulls(places: Mapping[str, Groups]) -> Table:
    """A row a part of a null hypothesis and place."""
    rows: list[dict[str, Value]] = []
    findings: list[Finding] = []
    for number in NULLS:
        here = [(prefix, part) for prefix, groups in places.items() for part in PARTS[number](groups)]
        for prefix, part in here:
            level = 1 - 0.05 / len(here)
            found = part.judged(level)
            assert found.estimate is not None, "every part is a difference"
            scale = 100 if part.unit == "share" else 1
            row: dict[str, Value] = {"null": number, "task": PLACES[prefix].title, "part": part.claim}
            row |= {"difference": scale * found.estimate.value, "low": scale * found.estimate.low}
            row |= {"high": scale * found.estimate.high, "margin": scale * part.margin}
            row |= {"unit": "points" if part.unit == "share" else part.unit, "seeds": part.runs}
            rows.append({**row, "the null": found.verdict})
            findings.append(replace(found, claim=f"{PLACES[prefix].title}: {found.claim}"))
    columns = {
        "null": "d", "task": "s", "part": "s", "difference": "+.3f", "low": "+.3f", "high": "+.3f", "margin": "g",
        "unit": "s", "seeds": "d", "the null": "s",
    }  # fmt: skip
    told = "; ".join(f"{number}, {words}" for number, words in NULLS.items())
    legend = (
        f"A RECONSTRUCTION of CTRLS: nothing here is a statement about the paper. The null hypotheses: {told}. They "
        "and the margins were written down before any run; a part holds where the whole interval lies within the "
        "margin, fails where it lies beyond, in the direction that counts. Intervals: 95 % for all parts of a "
        "hypothesis together. difference: of what should be no larger, minus the other, problem by problem and seed "
        "by seed. Best and fixed sequences stand beside samples of as many chains, at that of the temperatures tried "
        "which suits tokens best on these very problems. Mixtures are tried on a lattice, which is below their bound "
        "and below their best fixed sequence: what is held against the first can fail and cannot hold, what is held "
        "against the second can hold and cannot fail. Draws of states and tokens whose entropies are apart by more "
        f"than {ALIKE:g} nats in a run are not judged. Agreement is above chance, by permutation. On multi-hop lookup "
        "a step is one token, its true state: there the bag of tokens is no other label. Different right derivations "
        "are counted on subset sum alone: elsewhere a problem has one."
    )
    return Table("The null hypotheses of a reconstruction", columns, rows, legend, findings)


def _bound(groups: Groups) -> Iterator[Part]:
    """States against resampled tokens, and rewards against fixed sequences."""
    for kind in ("hard", "fitted"):
        if {kind, CHAIN} <= groups.keys() and bounded(groups[kind]):
            ours, chains, whole = groups[kind], groups[CHAIN], bound_of(groups[kind][0])
            n = whole.sequences
            way = resampled(chains, n)
            claim = f"{KINDS[kind][0]}: the best of {n} sequences solves no more than {n} samples of tokens ({way})"
            yield Part(1, claim, len(ours), _resampled(ours, chains, way, n), below=not whole.exact)
    for kind in ("rl-hard", "rl"):
        if kind in groups and bounded(groups[kind]):
            group = groups[kind]
            claim = f"{KINDS[kind][0]} solves no more than the best fixed sequence"
            yield Part(1, claim, len(group), _own(group), above=not bound_of(group[0]).exact)


def _resampled(ours: Records, chains: Records, way: str, n: int) -> Callable[[float], Interval]:
    """The best sequence minus n samples of tokens."""
    return lambda level: few_lead(ours, chains, best, passed(way, n), level)


def _own(group: Records) -> Callable[[float], Interval]:
    """Answers of a run minus those of its best fixed sequence."""
    return lambda level: few_lead(group, group, answered(), fixed, level)


def _against(ours: Records, theirs: Records) -> Callable[[float], Interval]:
    """Accuracy of one arm minus another's."""
    return lambda level: lead(ours, theirs, level=level)


def _dirichlet(groups: Groups) -> Iterator[Part]:
    """Dirichlet against categorical, with single states."""
    if {"rl-hard", "rl-categorical"} <= groups.keys():
        ours, theirs = groups["rl-hard"], groups["rl-categorical"]
        claim = "single states by a Dirichlet are right as often as by a categorical"
        yield Part(2, claim, len(ours), _against(ours, theirs), equal=True)


def _states(groups: Groups) -> Iterator[Part]:
    """Fitted states against controls and against none, after the bound and after rewards."""
    for ours, controls in CONTROLS.items():
        group = groups.get(ours, ())
        for control in controls:
            if group and control in groups:
                claim = f"{KINDS[ours][0]}: fitted is no better than {control.removeprefix('rl-')}"
                yield Part(3, claim, len(group), _against(group, groups[control]))
        if group:
            yield Part(3, f"{KINDS[ours][0]}: fitted is no better than no states", len(group), _without(group))


def _without(group: Records) -> Callable[[float], Interval]:
    """Accuracy of runs minus that of the same weights without states."""
    return lambda level: lead(group, group, other=PLAIN, level=level)


def _meaning(groups: Groups) -> Iterator[Part]:
    """Agreement with true states against agreement with what is on the surface."""
    for kind in ("fitted", "eight"):
        group = groups.get(kind, ())
        if not group or any(each.meaning is None or "true" not in each.meaning.agreement for each in group):
            continue
        surface = {"index": "a step's index", "next": "the token behind it"}
        if group[0].reading.start.task.tokens_a_step > 1:
            surface["tokens"] = "its bag of tokens"
        for label, words in surface.items():
            claim = f"{KINDS[kind][0]} agree with true states no more than with {words}"
            gaps = [excess(record, "true") - excess(record, label) for record in group]
            yield Part(4, claim, len(group), _seeds(gaps), AGREEMENTS, unit="agreement")


def _seeds(gaps: list[float]) -> Callable[[float], Interval]:
    """The mean of differences over seeds."""
    return lambda level: over_seeds(gaps, level)


def _exploration(groups: Groups) -> Iterator[Part]:
    """The grid against neither exploration nor bonus; drawn states against tokens of equal entropy."""
    none = GRID[0.0, 0.0]
    for (epsilon, bonus), kind in GRID.items():
        if kind != none and {kind, none} <= groups.keys():
            claim = f"epsilon {epsilon:g} and bonus {bonus:g} are right as often as neither"
            yield Part(5, claim, len(groups[kind]), _against(groups[kind], groups[none]), equal=True)
    most = max(BLOCKS)
    for kind in EXPLORERS:
        group = groups.get(kind, ())
        if not group:
            continue
        drawn, matched = pairs_of_ways(group[0])[0]
        claim = f"{KINDS[kind][0]}: one of {most} draws of states is right no more often than one of {most} of tokens"
        void = unlike(group, drawn, matched)
        yield Part(5, claim, len(group), _drawn(group, drawn, matched, most), void=void)
        if all(record.draws[way].different for record in group for way in (drawn, matched)) and several(group):
            gaps = [apart(record, drawn, most) - apart(record, matched, most) for record in paired(group, group)[0]]
            claim = f"{KINDS[kind][0]}: {most} draws of states make no more different right derivations than of tokens"
            yield Part(5, claim, len(group), _seeds(gaps), CHAINS, unit="derivations", void=void)


def unlike(group: Records, drawn: str, matched: str) -> str:
    """How far entropies of two ways of sampling are apart at most, in words; nothing where they are alike."""
    pairs = [(record.draws[drawn].entropy, record.draws[matched].entropy) for record in group]
    most = max(abs(ours - theirs) for ours, theirs in pairs)
    share = max(abs(ours - theirs) / max(ours, theirs, 1e-9) for ours, theirs in pairs)
    if most <= ALIKE and share <= ALIKE_SHARE:
        return ""
    return f"entropies differ by up to {most:.2f} nats, {100 * share:.0f} % of the larger"


def _drawn(group: Records, drawn: str, matched: str, n: int) -> Callable[[float], Interval]:
    """pass@n of drawn states minus that of tokens of equal entropy."""
    return lambda level: few_lead(group, group, passed(drawn, n), passed(matched, n), level)


def several(group: Records) -> bool:
    """Whether problems may have several right derivations."""
    return group[0].reading.start.task.name in SEVERAL


SEVERAL = ("subset-sum", "mnns", "reachability")
"""Tasks whose problems may have several right derivations."""
PARTS: dict[int, Callable[[Groups], Iterator[Part]]] = {
    1: _bound,
    2: _dirichlet,
    3: _states,
    4: _meaning,
    5: _exploration,
}
"""By the number of the hypothesis."""
