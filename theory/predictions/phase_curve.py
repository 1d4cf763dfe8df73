"""Study `capacity`: how many states random embeddings hold, against theory, and beside it what trained models held.

Measured: the share of normal embeddings of width d from whose z = E^T alpha a linear programme gets k states of v back,
v = 89 above all (MNNS with four digits). Predicted: Donoho and Tanner's curve where the sum is known to be 1, Wendel's
exact probability where it is not used; see `capacity`. Beside: accuracy of CoT2 by budget and width, copied from the
stored study mnns-budget, with the states that each budget's frontiers have to hold.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy import optimize, stats

from tasks import MNNS
from theory.predictions.capacity import held_share, needed_width, wendel
from tinylatent.core.environment import environment
from tinylatent.core.files import DamagedError
from tinylatent.core.identity import identity
from tinylatent.core.seeds import derive
from tinylatent.lab.plots import figure, shade
from tinylatent.lab.report import Table, Value
from tinylatent.lab.studies.compare import listed
from tinylatent.lab.study import Profile, Record, Study

VERSION = 2
VOCABULARY = 89
WIDTHS = (8, 12, 16, 20, 24, 28, 32)
OTHERS = ((40, 16), (40, 24), (200, 16), (200, 32))
"""Other vocabularies and widths: is it a function of (d, v, k) alone?"""
FREE_WIDTHS = (48, 56, 64)
"""Where the sum is not used: more than half of the vocabulary is needed."""
STORED = Path(__file__).resolve().parents[2] / "results" / "mnns-budget" / "table.csv"
LEVEL = 1e-6
"""Of each exact binomial test against Wendel's probability."""
NEAR = 1.0
"""States by which the measured middle of the transition may differ from the predicted curve."""


@dataclass(frozen=True)
class Width:
    """Random embeddings of one width, for every number of states about the transition."""

    width: int
    draws: int
    vocabulary: int = VOCABULARY
    known_sum: bool = True
    """Whether the shares' sum is known to be 1."""
    seed: int = 0

    @property
    def identity(self) -> str:
        """Twelve hexadecimal digits that stand for the whole value."""
        return identity(self.to_json())

    @property
    def states(self) -> range:
        """From one state to a few beyond where hardly any embedding holds them."""
        if self.known_sum:
            return range(1, min(self.width, round(1.7 * middle(self.width, self.vocabulary)) + 3) + 1)
        return range(1, min(self.width, 2 * self.width - self.vocabulary + 15), 2)

    @property
    def work(self) -> int:
        """Numbers of states to go through."""
        return len(self.states)

    def to_json(self) -> dict[str, Any]:
        """The case as plain values."""
        values = asdict(self)
        return {"version": VERSION, "seeds": {"embeddings": values.pop("seed")}, **values}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Width":
        """The case that wrote these values; KeyError if one is missing, ValueError if another version wrote them."""
        if values["version"] != VERSION:
            raise ValueError(f"written by version {values['version']} of this study, this is {VERSION}")
        names = ("width", "draws", "vocabulary", "known_sum")
        return cls(**{name: values[name] for name in names}, seed=values["seeds"]["embeddings"])


def middle(width: int, vocabulary: int = VOCABULARY, corrected: bool = False) -> float:
    """The number of states (a real one) for which `width` is what half of all embeddings need."""
    if needed_width(1, vocabulary, corrected) >= width:
        return 1.0
    return float(optimize.brentq(lambda k: needed_width(k, vocabulary, corrected) - width, 1, width))


def measure(
    case: Width, folder: Path | None, device: str = "cpu", on_progress: Callable[[int, float], None] | None = None
) -> Record:
    """For every number of states how many of the embeddings hold them; folder stays empty."""
    held = []
    for done, states in enumerate(case.states, 1):
        place = (case.vocabulary, case.width, states, int(case.known_sum))
        generator = np.random.default_rng(derive(case.seed, "embeddings", *place))
        share = held_share(case.width, states, case.vocabulary, case.draws, generator, case.known_sum)
        held.append(round(share * case.draws))
        if on_progress is not None:
            on_progress(done, 0.0)
    return {
        "id": case.identity,
        "experiment": case.to_json(),
        "states": [*case.states],
        "held": held,
        "trained": trained(case.width) if case.known_sum and case.vocabulary == VOCABULARY else [],
        "environment": environment(),
    }


def trained(width: int) -> list[dict[str, Any]]:
    """CoT2's stored accuracies at this width, by budget, with the most states a thought of that budget holds.

    Raises:
        DamagedError: the stored table is not there.
    """
    if not STORED.exists():
        raise DamagedError(f"{STORED} is missing: expected the stored study; run tinylatent rebuild mnns-budget")
    with STORED.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if int(row["width"]) == width]
    task, found = MNNS(), []
    for row in rows:
        frontier_PTV = task.frontier(task.space(), budget=int(row["budget"]))[:, :-1]
        measured = {name: float(row[name]) for name in ("accuracy", "low", "high")}
        states = int((frontier_PTV > 0).sum(-1).max())
        found.append({"budget": int(row["budget"]), "states": states, **measured})
    return found


def grid(profile: Profile) -> list[Width]:
    """Every width, with the sum known and not."""
    quick = profile == "quick"
    known = [Width(width, 20 if quick else 400) for width in WIDTHS]
    known += [] if quick else [Width(width, 200, vocabulary) for vocabulary, width in OTHERS]
    return known + [Width(width, 10 if quick else 100, known_sum=False) for width in FREE_WIDTHS]


def remark(record: Record) -> str:
    """One line about a finished case."""
    return f"d = {record['experiment']['width']}: half of the embeddings hold {measured_middle(record):.1f} states"


def measured_middle(record: Record) -> float:
    """Where the share of embeddings that hold k states falls through one half, between the k that were measured."""
    shares, states = [held / record["experiment"]["draws"] for held in record["held"]], record["states"]
    for place, share in enumerate(shares):
        if share < 0.5:
            if place == 0:
                return float(states[0])
            before = shares[place - 1]
            return float(states[place - 1] + (before - 0.5) / (before - share) * (states[place] - states[place - 1]))
    return float(states[-1])


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def tables(records: list[Record]) -> list[Table]:
    """The transition at each width, and what trained models did there."""
    known = [record for record in records if record["experiment"]["known_sum"]]
    free = [record for record in records if not record["experiment"]["known_sum"]]
    return [_transitions(known), _exact(free), _beside(known)]


def _transitions(records: list[Record]) -> Table:
    rows: list[dict[str, Value]] = []
    for record in records:
        width, vocabulary = record["experiment"]["width"], record["experiment"]["vocabulary"]
        rows.append(
            {
                "v": vocabulary,
                "d": width,
                "predicted k": middle(width, vocabulary),
                "corrected k": middle(width, vocabulary, corrected=True),
                "measured k": measured_middle(record),
                "k held by 9 of 10": _held_by(record, 0.9),
                "k held by 1 of 10": _held_by(record, 0.1),
                "embeddings": record["experiment"]["draws"],
            }
        )
    curves = {"predicted k": "Donoho and Tanner's curve says", "corrected k": "the curve with its next term says"}
    said = [_close(rows, column, words) for column, words in curves.items()]
    legend = (
        "States k of a vocabulary of v, shares of sum 1. predicted: d*(k) = d; measured: where the share of embeddings "
        "that hold k states falls through one half (linear between whole k). predicted is the middle of the transition "
        "to leading order, corrected with the next term; the columns after measured say how wide the transition is."
    )
    columns = {
        "v": "d", "d": "d", "predicted k": ".2f", "corrected k": ".2f", "measured k": ".2f", "k held by 9 of 10": "d",
        "k held by 1 of 10": "d", "embeddings": "d",
    }  # fmt: skip
    return Table("States that random embeddings hold, sum known", columns, rows, [legend, *listed(said)])


def _close(rows: list[dict[str, Value]], column: str, words: str) -> str:
    """Whether a column predicts what was measured."""
    gaps = [row["measured k"] - row[column] for row in rows]  # type: ignore[operator]
    word = "Holds" if max(map(abs, gaps)) <= NEAR else "Fails"
    return (
        f"{word}: half of random embeddings hold as many states as {words}, to within {NEAR:g} state (measured minus "
        f"predicted [{min(gaps):+.2f}, {max(gaps):+.2f}] over {len(rows)} sizes)."
    )


def _held_by(record: Record, share: float) -> int:
    """The most states that at least this share of the embeddings holds."""
    least = share * record["experiment"]["draws"]
    enough = (k for k, held in zip(record["states"], record["held"], strict=True) if held >= least)
    return max(enough, default=0)


def _exact(records: list[Record]) -> Table:
    rows: list[dict[str, Value]] = []
    tested: list[float] = []
    for record in records:
        width, draws = record["experiment"]["width"], record["experiment"]["draws"]
        for k, held in zip(record["states"], record["held"], strict=True):
            chance = wendel(width, k, VOCABULARY)
            p = float(stats.binomtest(held, draws, chance).pvalue)
            tested.append(p)
            if 0.02 < chance < 0.98:
                rows.append({"d": width, "k": k, "predicted": 100 * chance, "measured": 100 * held / draws, "p": p})
    word = "Holds" if min(tested) >= LEVEL else "Fails"
    said = (
        f"{word}: without the sum, k states are held with Wendel's probability (exact binomial tests of level "
        f"{LEVEL:g} each, p-values [{min(tested):.2g}, {max(tested):.2g}] over {len(tested)} cells)."
    )
    legend = f"Percent of normal embeddings that hold k states of {VOCABULARY} when the sum of shares is not used."
    columns = {"d": "d", "k": "d", "predicted": ".1f", "measured": ".1f", "p": ".3f"}
    return Table("States that random embeddings hold, sum not used", columns, rows, [legend, *listed([said])])


def _beside(records: list[Record]) -> Table:
    rows: list[dict[str, Value]] = []
    for record in records:
        shares = dict(zip(record["states"], record["held"], strict=True))
        for cell in record["trained"]:
            held = 100 * shares.get(cell["states"], 0) / record["experiment"]["draws"]
            rows.append({"d": record["experiment"]["width"], **cell, "held": held})
    columns = {"d": "d", "budget": "d", "states": "d", "held": ".1f", "accuracy": ".2f", "low": ".2f", "high": ".2f"}
    legend = (
        "states: the most that a thought of this budget has to hold; held: percent of random embeddings of this width "
        "that hold as many; accuracy, low, high: percent, CoT2 trained with this budget (study mnns-budget, MNNS, m = "
        "4, five seeds; B = 1 is discrete chain of thought)."
    )
    return Table("What trained models hold", columns, rows, [legend, *listed(_limits(rows))])


def _limits(rows: list[dict[str, Value]]) -> Iterator[str]:
    """Whether a model that would need more than its width's random embeddings hold does badly."""
    claim = "a budget whose states random embeddings of that width cannot hold is out of reach of training"
    beyond = [row for row in rows if isinstance(row["held"], float) and row["held"] < 50]
    if not beyond:
        yield f"Not enough evidence: {claim} (no such budget was trained: [{len(rows)} cells])."
    for row in beyond:
        word = "Fails" if isinstance(row["low"], float) and row["low"] > 90 else "Not enough evidence"
        yield (
            f"{word}: {claim} (d = {row['d']}: {row['states']} states, held by {row['held']:.1f} % of random "
            f"embeddings; CoT2 with B = {row['budget']}: {row['accuracy']:.2f} % [{row['low']:.2f}, "
            f"{row['high']:.2f}])."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Figure


def draw(records: list[Record], path: Path) -> None:
    """The phase diagram with its curve, and the budgets of trained models against width."""
    known = [record for record in records if record["experiment"]["known_sum"]]
    known = [record for record in known if record["experiment"]["vocabulary"] == VOCABULARY]
    with figure(path, 9, 3.6, columns=2) as (left, right):
        _phases(left, known)
        budgets = sorted({cell["budget"] for record in known for cell in record["trained"]})
        for place, budget in enumerate(budgets):
            cells = [
                (record["experiment"]["width"], cell)
                for record in known
                for cell in record["trained"]
                if cell["budget"] == budget
            ]
            colour, states = shade("cot2", place, len(budgets)), cells[0][1]["states"]
            label = f"B = {budget}, up to {states} state{'s' if states > 1 else ''}"
            right.plot([d for d, _ in cells], [cell["accuracy"] for _, cell in cells], "o-", color=colour, label=label)
            for d, cell in cells:
                right.plot([d, d], [cell["low"], cell["high"]], color=colour, linewidth=2)
            right.axvline(needed_width(states, VOCABULARY), color=colour, linestyle=":")
        right.set(xlabel="width d", ylabel="accuracy, %", title="trained; dotted: the width random embeddings need")
        right.legend(loc="lower right")


def _phases(axes: Axes, records: list[Record]) -> None:
    for record in records:
        shares = [held / record["experiment"]["draws"] for held in record["held"]]
        places = [record["experiment"]["width"]] * len(shares)
        axes.scatter(places, record["states"], c=shares, cmap="RdBu", vmin=0, vmax=1, s=42, marker="s", linewidths=0)
    most = max(max(record["states"]) for record in records)
    states = np.linspace(1, most, 100)
    for corrected, line, label in ((False, "-", "Donoho and Tanner"), (True, "--", "with the next term")):
        axes.plot([needed_width(k, VOCABULARY, corrected) for k in states], states, line, color="black", label=label)
    axes.set(
        xlabel="width d",
        ylabel="states k",
        xlim=(WIDTHS[0] - 2, WIDTHS[-1] + 2),
        title=f"held by random embeddings, v = {VOCABULARY} (blue: all)",
    )
    axes.legend(loc="upper left")


STUDY = Study(
    "capacity",
    "How many states does a superposition of width d hold, and is that the limit for trained models?",
    grid,
    tables,
    draw,
    kind=Width,
    measure=measure,
    remark=remark,
)
