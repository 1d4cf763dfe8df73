"""Study `capacity`: how many states random embeddings hold, against theory, and beside it what trained models held.

Measured: the share of normal embeddings of width d from whose z = E^T alpha a linear programme gets k states of v back,
v = 89 above all (MNNS with four digits). Predicted: Donoho and Tanner's curve where the sum is known to be 1, Wendel's
exact probability where it is not used; see `capacity`. Beside: accuracy of CoT2 by budget and width, copied from the
stored study mnns-budget, with the states that each budget's frontiers have to hold.
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import numpy as np
import scipy
import torch
from tinylatent_tasks import MNNS

from tinylatent.core.seeds import derive
from tinylatent.lab.findings import OPEN, Finding, decided, exactly
from tinylatent.lab.plots import figure, legend_under, shade
from tinylatent.lab.run import Progress, Record, new_record, note_progress
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value
from tinylatent.methods import CoT2
from tinylatent_theory.predictions.capacity import held_share, needed_width, wendel
from tinylatent_theory.runs import PlainRun, settings_of
from tinylatent_theory.stored import StoredFile, stored

if TYPE_CHECKING:
    import matplotlib.axes  # which commands that draw nothing do not load

VOCABULARY = 89
FAMILY = "capacity"
"""The family of its findings."""
WIDTHS = (8, 12, 16, 20, 24, 28, 32)
OTHERS = ((40, 16), (40, 24), (200, 16), (200, 32))
"""Other vocabularies and widths: is it a function of (d, v, k) alone?"""
FREE_WIDTHS = (48, 56, 64)
"""Where the sum is not used: more than half of the vocabulary is needed."""
BUDGETS = "mnns-budget"
"""The stored study with the accuracy of CoT2 by budget and width."""
REACHED = 90.0
"""Percent right, by the lower end of the interval, from which training has reached a budget."""
LEVEL = 1e-6
"""Level of each exact binomial test against Wendel's probability."""
NEAR = 1.0
"""States by which the middle of the transition may differ from the predicted curve."""
ERROR = 0.05
"""Chance that any interval of a middle misses it, of all sizes together."""


class Trained(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What CoT2 reached at a width with a budget."""

    budget: int
    """Traces in the supervision."""
    states: int
    """The most that a thought of this budget holds."""
    accuracy: float
    """Percent of the validation part."""
    low: float
    """Lower end of its 95 % interval, in percent."""
    high: float
    """Upper end."""


class WidthRecord(Record, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """How many random embeddings of a width hold so many states."""

    states: list[int]
    """Numbers of states."""
    held: list[int]
    """Embeddings that hold so many."""
    trained: list[Trained]
    """Trained models of this width, by budget."""
    trained_checksum: str = ""
    """Checksum of the table that `trained` was copied from; empty where none was read, or its checksum was not kept."""

    @property
    def case(self) -> "Width":
        """The width that was measured."""
        return Width.from_json(self.run)

    @property
    def seeds(self) -> Mapping[str, int]:
        """The seed of the embeddings, under the name "embeddings"."""
        return {"embeddings": self.case.seed}

    @property
    def shares(self) -> list[float]:
        """Share of the embeddings that hold so many states."""
        draws = self.case.draws
        return [held / draws for held in self.held]

    @property
    def middle(self) -> float:
        """Where the share falls through one half, between the numbers of states that were measured."""
        return crossing(self.states, self.shares, self.states[-1])

    def middle_within(self, level: float) -> tuple[float, float]:
        """The ends of the middle if every share may be anywhere in its exact binomial interval of this level."""
        ends = [scipy.stats.binomtest(held, self.case.draws).proportion_ci(level) for held in self.held]
        low = crossing(self.states, [end.low for end in ends], self.states[-1])
        return low, crossing(self.states, [end.high for end in ends], math.inf)

    def summary(self) -> str:
        """The width and its measured middle."""
        return f"d = {self.case.width}: half of the embeddings hold {self.middle:.1f} states"


@dataclass(frozen=True)
class Width(PlainRun):
    """Random embeddings of one width, for every number of states about the transition."""

    record = WidthRecord
    version: ClassVar[int] = 3

    width: int
    draws: int
    vocabulary: int = VOCABULARY
    known_sum: bool = True
    """Whether the shares' sum is known to be 1."""
    seed: int = 0

    @property
    def states(self) -> range:
        """Numbers of states from 1 to a few beyond where hardly any embedding holds them."""
        if self.known_sum:
            return range(1, min(self.width, round(1.7 * middle(self.width, self.vocabulary)) + 3) + 1)
        return range(1, min(self.width, 2 * self.width - self.vocabulary + 15), 2)

    @property
    def work(self) -> int:
        """Numbers of states to go through."""
        return len(self.states)

    @property
    def label(self) -> str:
        """Width and vocabulary."""
        return f"d = {self.width}, v = {self.vocabulary}"

    @classmethod
    def lift_run(cls, record: dict[str, Any]) -> None:
        """Rewrites a run of version 2, which wrote every setting, and its seed apart."""
        if record["run"].get("version") == 2:
            record["run"] = cls.from_json(settings_of(record["run"], "embeddings", cls.version)).to_json()

    def measure(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        on_progress: Progress | None = None,
        start: Path | None = None,
    ) -> WidthRecord:
        """Counts for every number of states the embeddings that hold them."""
        is_beside = self.known_sum and self.vocabulary == VOCABULARY
        table, held = stored(BUDGETS, "table.csv") if is_beside else None, []
        beside = [] if table is None else trained(table, self.width)
        for done, states in enumerate(self.states, 1):
            place = (self.vocabulary, self.width, states, int(self.known_sum))
            generator = np.random.default_rng(derive(self.seed, "embeddings", *place))
            share = held_share(self.width, states, self.vocabulary, self.draws, generator, self.known_sum)
            held.append(round(share * self.draws))
            note_progress(folder, done, on_progress)
        checksum = "" if table is None else table.checksum
        record: WidthRecord = new_record(
            self, states=[*self.states], held=held, trained=beside, trained_checksum=checksum
        )
        return record


def crossing(states: Sequence[int], shares: Sequence[float], beyond: float) -> float:
    """Where falling shares pass one half, linear between numbers of states; `beyond` where they never do."""
    for place, share in enumerate(shares):
        if share < 0.5:
            if place == 0:
                return float(states[0])
            before = shares[place - 1]
            step = states[place] - states[place - 1]
            return float(states[place - 1] + (before - 0.5) / (before - share) * step)
    return float(beyond)


def middle(width: int, vocabulary: int = VOCABULARY, corrected: bool = False) -> float:
    """The number of states (a real one) for which `width` is what half of all embeddings need."""
    if needed_width(1, vocabulary, corrected) >= width:
        return 1.0
    return float(scipy.optimize.brentq(lambda k: needed_width(k, vocabulary, corrected) - width, 1, width))


def trained(table: StoredFile, width: int) -> list[Trained]:
    """CoT2's stored accuracies at this width, by budget, with the most states a thought of that budget holds.

    Raises:
        DamagedError: the file is not the table of the stored study.
    """
    task, found = MNNS(), []
    try:
        for row in csv.DictReader(io.StringIO(table.text, newline="")):
            if int(row["width"]) == width:
                frontier_PTV = task.frontier(task.space(), budget=int(row["budget"]))[:, :-1]
                measured = {name: float(row[name]) for name in ("accuracy", "low", "high")}
                states = int((frontier_PTV > 0).sum(-1).max())
                found.append(Trained(budget=int(row["budget"]), states=states, **measured))
    except (KeyError, TypeError, ValueError) as error:
        raise table.damaged(BUDGETS, error) from error
    return found


def grid(profile: Profile) -> list[Width]:
    """Every width, with the sum known and not."""
    quick = profile == "quick"
    known = [Width(width, 20 if quick else 400) for width in WIDTHS]
    known += [] if quick else [Width(width, 200, vocabulary) for vocabulary, width in OTHERS]
    return known + [Width(width, 10 if quick else 100, known_sum=False) for width in FREE_WIDTHS]


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def tables(records: list[WidthRecord]) -> list[Table]:
    """The transition at each width, and what trained models did there."""
    known = [record for record in records if record.case.known_sum]
    free = [record for record in records if not record.case.known_sum]
    return [_transitions(known), _exact(free), _beside(known)]


def _transitions(records: list[WidthRecord]) -> Table:
    rows: list[dict[str, Value]] = []
    for record in records:
        case = record.case
        width, vocabulary = case.width, case.vocabulary
        rows.append(
            {
                "v": vocabulary,
                "d": width,
                "predicted k": middle(width, vocabulary),
                "corrected k": middle(width, vocabulary, corrected=True),
                "measured k": record.middle,
                "k held by 9 of 10": _held_by(record, 0.9),
                "k held by 1 of 10": _held_by(record, 0.1),
                "embeddings": case.draws,
            }
        )
    curves = {"predicted k": "Donoho and Tanner's curve says", "corrected k": "the curve with its next term says"}
    findings = [_close(records, rows, column, words) for column, words in curves.items()]
    legend = (
        "States k of a vocabulary of v, shares of sum 1. predicted: d*(k) = d; measured: where the share of embeddings "
        "that hold k states falls through one half (linear between whole k). predicted is the middle of the transition "
        "to leading order, corrected with the next term; the columns after measured say how wide the transition is."
    )
    columns = {
        "v": "d", "d": "d", "predicted k": ".2f", "corrected k": ".2f", "measured k": ".2f", "k held by 9 of 10": "d",
        "k held by 1 of 10": "d", "embeddings": "d",
    }  # fmt: skip
    return Table("States that random embeddings hold, sum known", columns, rows, legend, findings)


def _close(records: list[WidthRecord], rows: list[dict[str, Value]], column: str, words: str) -> Finding:
    """Whether a column predicts the middle at every size, by intervals that hold for all sizes together.

    The two shares beside a middle decide where it is, so the error is divided among twice as many as there are sizes.
    """
    level = 1 - ERROR / (2 * len(records))
    predicted = [float(row[column]) for row in rows]  # type: ignore[arg-type]
    gaps = [record.middle - value for record, value in zip(records, predicted, strict=True)]
    ends = [record.middle_within(level) for record in records]
    lows, highs = zip(*((low - k, high - k) for (low, high), k in zip(ends, predicted, strict=True)), strict=True)
    return Finding(
        f"half of random embeddings hold as many states as {words}, to within {NEAR:g} state",
        decided(min(lows) >= -NEAR and max(highs) <= NEAR, min(highs) < -NEAR or max(lows) > NEAR),
        f"measured minus predicted [{min(gaps):+.2f}, {max(gaps):+.2f}] over {len(rows)} sizes; "
        f"{100 * (1 - ERROR):g} % intervals of all sizes together lie within [{min(lows):+.2f}, {max(highs):+.2f}]",
        family=FAMILY,
    )


def _held_by(record: WidthRecord, share: float) -> int:
    """The most states that at least this share of the embeddings holds."""
    least = share * record.case.draws
    enough = (k for k, held in zip(record.states, record.held, strict=True) if held >= least)
    return max(enough, default=0)


def _exact(records: list[WidthRecord]) -> Table:
    rows: list[dict[str, Value]] = []
    tested: list[float] = []
    for record in records:
        width, draws = record.case.width, record.case.draws
        for k, held in zip(record.states, record.held, strict=True):
            chance = wendel(width, k, VOCABULARY)
            p = float(scipy.stats.binomtest(held, draws, chance).pvalue)
            tested.append(p)
            if 0.02 < chance < 0.98:
                rows.append({"d": width, "k": k, "predicted": 100 * chance, "measured": 100 * held / draws, "p": p})
    finding = exactly(
        f"without the sum, Wendel's probability of holding k states is not rejected at level {LEVEL:g} in any cell",
        min(tested) >= LEVEL,
        f"exact binomial tests, p-values [{min(tested):.2g}, {max(tested):.2g}] over {len(tested)} cells",
        FAMILY,
    )
    legend = f"Percent of normal embeddings that hold k states of {VOCABULARY} when the sum of shares is not used."
    columns = {"d": "d", "k": "d", "predicted": ".1f", "measured": ".1f", "p": ".3f"}
    return Table("States that random embeddings hold, sum not used", columns, rows, legend, [finding])


def _beside(records: list[WidthRecord]) -> Table:
    rows: list[dict[str, Value]] = []
    for record in records:
        shares = dict(zip(record.states, record.shares, strict=True))
        for cell in record.trained:
            held = 100 * shares.get(cell.states, 0.0)
            rows.append({"d": record.case.width, **msgspec.structs.asdict(cell), "held": held})
    columns = {"d": "d", "budget": "d", "states": "d", "held": ".1f", "accuracy": ".2f", "low": ".2f", "high": ".2f"}
    legend = (
        "states: the most that a thought of this budget has to hold; held: percent of random embeddings of this width "
        "that hold as many; accuracy, low, high: percent, CoT2 trained with this budget (study mnns-budget, MNNS, m = "
        "4, five seeds; B = 1 is discrete chain of thought)."
    )
    return Table("What trained models hold", columns, rows, legend, [*_limits(rows)])


def _limits(rows: list[dict[str, Value]]) -> Iterator[Finding]:
    """For each budget whose states most random embeddings do not hold, whether training fails at it too."""
    claim = "a budget whose states random embeddings of that width cannot hold is out of reach of training"
    beyond = [row for row in rows if isinstance(row["held"], float) and row["held"] < 50]
    if not beyond:
        yield Finding(claim, OPEN, f"no such budget was trained: [{len(rows)} cells]", family=FAMILY)
    for row in beyond:
        yield Finding(
            f"{claim}: B = {row['budget']} at d = {row['d']}",
            decided(False, isinstance(row["low"], float) and row["low"] > REACHED),
            f"{row['states']} states, held by {row['held']:.1f} % of random embeddings; CoT2 "
            f"{row['accuracy']:.2f} % [{row['low']:.2f}, {row['high']:.2f}]",
            family=FAMILY,
        )


# ---------------------------------------------------------------------------------------------------------------------
# Figure


def draw(records: list[WidthRecord], path: Path) -> None:
    """The phase diagram with its curve, and the budgets of trained models against width."""
    known = [record for record in records if record.case.known_sum and record.case.vocabulary == VOCABULARY]
    with figure(path, 9.5, 4, columns=2) as (left, right):
        _phases(left, known)
        trained = [(record.case.width, cell) for record in known for cell in record.trained]
        budgets = sorted({cell.budget for _, cell in trained})
        for place, budget in enumerate(budgets):
            cells = [(width, cell) for width, cell in trained if cell.budget == budget]
            tint, states = shade(CoT2.colour, place, len(budgets)), cells[0][1].states
            label = f"B = {budget}, up to {states} state{'s' if states > 1 else ''}"
            right.plot([d for d, _ in cells], [cell.accuracy for _, cell in cells], "o-", color=tint, label=label)
            for d, cell in cells:
                right.plot([d, d], [cell.low, cell.high], color=tint, linewidth=2)
            right.axvline(needed_width(states, VOCABULARY), color=tint, linestyle=":")
        right.plot([], [], ":", color="black", label="width random embeddings need")
        right.plot([], [], color="black", label="bar: 95 %")
        right.set(xlabel="width d", ylabel="validation accuracy, %", title="CoT2 trained on MNNS")
        legend_under(right)


def _phases(axes: "matplotlib.axes.Axes", records: list[WidthRecord]) -> None:
    for record in records:
        places = [record.case.width] * len(record.states)
        shares = axes.scatter(
            places, record.states, c=record.shares, cmap="RdBu", vmin=0, vmax=1, s=42, marker="s", linewidths=0
        )
    most = max(max(record.states) for record in records)
    states = np.linspace(1, most, 100)
    for corrected, line, label in ((False, "-", "Donoho and Tanner"), (True, "--", "with the next term")):
        axes.plot([needed_width(k, VOCABULARY, corrected) for k in states], states, line, color="black", label=label)
    axes.set(
        xlabel="width d",
        ylabel="states k",
        xlim=(WIDTHS[0] - 2, WIDTHS[-1] + 2),
        title=f"random embeddings, v = {VOCABULARY}",
    )
    axes.figure.colorbar(shares, ax=axes, label="share of embeddings that hold k states")
    legend_under(axes)


STUDY = Study(
    "capacity",
    "How many states does a superposition of width d hold, and is that the limit for trained models?",
    grid,
    tables,
    draw,
    kind=Width,
)
