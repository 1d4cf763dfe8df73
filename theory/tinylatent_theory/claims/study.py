"""Study `claims`: every claim of the ledger checked, with its verdict and evidence.

Claims are always checked anew: what they ask about is the code as it is. The quick profile is seeded; the full one
draws fresh seeds, which are stored with what they gave. Importing this module fills the ledger.
"""

import difflib
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import msgspec
import torch

from tinylatent.core.identity import identity
from tinylatent.lab.findings import FAILS, Finding, Verdict, exactly
from tinylatent.lab.plots import figure, legend_under
from tinylatent.lab.run import Progress, Record, new_record, note_progress
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value
from tinylatent_theory.claims import (  # noqa: F401 - each enters its claims into the ledger
    colar,
    cot2,
    ctrls,
    ctrls_states,
    depth,
    estimators,
    hrpo,
    hrpo_gradients,
    latentr3,
    latentseek,
    latentseek_oracle,
    outliers,
    sampling,
    scores,
    superposition,
)
from tinylatent_theory.claims.ledger import ALPHA, FAMILY, LEDGER, Claim, Origin, Trial
from tinylatent_theory.runs import PlainRun, settings_of

if TYPE_CHECKING:
    import matplotlib.axes  # which commands that draw nothing do not load

LONGEST = "two_layers_search_every_dag"
REFUTED = "fails: counterexample"
"""How tables, and records of form 1, write that a counterexample shows the failure."""
COLUMNS = {
    "claim": "s", "verdict": "s", "on record": "s", "origin": "s", "checked by": "s", "source": "s", "seconds": ".1f",
}  # fmt: skip


class CheckRecord(Record, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """What the check of a claim gave."""

    verdict: Verdict
    """Whether the statement holds."""
    evidence: str
    """One or two sentences with the numbers."""
    seconds: float
    """Wall-clock seconds of the check and its counterexample."""
    seed: int
    """The seed of everything it drew."""
    counterexample: str | None = None
    """The smallest case where the statement as it stands is wrong, for claims that bring one."""
    curves: dict[str, list[float]] = msgspec.field(default_factory=dict)
    """What the figure may draw."""

    @property
    def claim(self) -> Claim:
        """The claim that was checked, as the ledger has it."""
        return LEDGER[Check.from_json(self.run).claim]

    @property
    def seeds(self) -> Mapping[str, int]:
        """The seed of the check, under the name "claim"."""
        return {"claim": self.seed}

    @property
    def is_as_recorded(self) -> bool:
        """Whether the verdict is the one on record."""
        return self.verdict == self.claim.recorded

    def finding(self) -> "Entry":
        """The finding about the claim's statement."""
        claim = self.claim
        return Entry(
            claim.statement.removesuffix("."),
            self.verdict,
            self.evidence,
            family=FAMILY,
            id=claim.name,
            origin=claim.origin,
            conditions=claim.conditions,
            counterexample=self.counterexample,
            exploratory=False,
        )

    def summary(self) -> str:
        """The claim's id and verdict, and the verdict on record if it is another."""
        differs = "" if self.is_as_recorded else f" (on record: {self.claim.recorded})"
        return f"{self.claim.name}: {self.verdict}{differs}"


@dataclass(frozen=True)
class Check(PlainRun):
    """One claim under one profile; the seed is drawn when it runs, and stands in the record.

    Raises:
        ValueError: there is no such claim.
    """

    record = CheckRecord
    version: ClassVar[int] = 2
    always: ClassVar[bool] = True

    claim: str
    profile: Profile = "quick"

    def __post_init__(self) -> None:
        if self.claim not in LEDGER:
            raise ValueError(
                f"unknown claim {self.claim!r}: expected ids such as {_like(self.claim)}; see tinylatent claims --names"
            )

    @property
    def work(self) -> int:
        """One claim."""
        return 1

    @property
    def label(self) -> str:
        """The claim's id."""
        return self.claim

    @classmethod
    def lift_run(cls, record: dict[str, Any]) -> None:
        """Moves the seed of a run of version 1 into its record, where a verdict could be REFUTED.

        Raises:
            ValueError: the run has not exactly one seed, or the record one of its own.
        """
        run = record["run"]
        if run.get("version") == 1:
            if "seed" in record:
                raise ValueError("it has a seed of its own: a record of form 1 keeps its seed in its run")
            settings = settings_of(run, "claim", cls.version)
            record["seed"] = settings.pop("seed")
            record["verdict"] = FAILS if record["verdict"] == REFUTED else record["verdict"]
            record["run"] = cls.from_json(settings).to_json()

    @classmethod
    def written_identity(cls, run: dict[str, Any]) -> str:
        """The id of a check; that of version 1 leaves out the seed, which form 1 kept in the run."""
        return identity({**run, "seeds": {}} if run.get("version") == 1 else run)

    def measure(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        on_progress: Progress | None = None,
        start: Path | None = None,
    ) -> CheckRecord:
        """Runs the claim's check and its counterexample."""
        claim, seed = LEDGER[self.claim], 0 if self.profile == "quick" else secrets.randbits(31)
        started = time.perf_counter()
        finding = claim.examine(Trial(self.profile, seed))
        record: CheckRecord = new_record(
            self,
            verdict=finding.verdict,
            evidence=finding.evidence,
            counterexample=None if claim.counterexample is None else claim.counterexample(),
            curves={name: [float(value) for value in values] for name, values in finding.curves.items()},
            seconds=time.perf_counter() - started,
            seed=seed,
        )
        note_progress(folder, 1, on_progress)
        return record


def _like(name: str) -> str:
    """A few ids that resemble a wrong one."""
    close = [known for known in LEDGER if known.startswith(name)]
    close = close or difflib.get_close_matches(name, LEDGER, n=3, cutoff=0.4)
    return ", ".join((close or [*LEDGER])[:3])


# ---------------------------------------------------------------------------------------------------------------------
# Table and figure


@dataclass(frozen=True)
class Entry(Finding):
    """A finding of the ledger, told with its claim's id, origin, conditions and counterexample."""

    id: str = ""
    origin: str = ""
    conditions: str = ""
    counterexample: str | None = None

    def sentence(self) -> str:
        """The claim as an entry of the ledger."""
        word = _word(self.verdict, self.counterexample).capitalize()
        shown = f" Counterexample: {self.counterexample}." if self.counterexample else ""
        return f"**{self.id}**. {self.claim}. *{word}* ({self.conditions}). {self.evidence.rstrip('.')}.{shown}"

    def to_json(self) -> dict[str, Any]:
        """The entry as plain values."""
        more = {"conditions": self.conditions, "counterexample": self.counterexample}
        return {"id": self.id, "origin": self.origin, **super().to_json(), **more}


def _word(verdict: Verdict, counterexample: object) -> str:
    """A verdict as tables write it."""
    return REFUTED if verdict == FAILS and counterexample is not None else verdict


def tally(records: Sequence[CheckRecord]) -> list[str]:
    """Verdicts counted by origin, a sentence for each origin that occurs and one for all."""
    found = [(record.claim.origin, _word(record.verdict, record.counterexample)) for record in records]
    groups = [(origin, [word for where, word in found if where == origin]) for origin in get_args(Origin)]
    groups.append(("all", [word for _, word in found]))
    return [
        f"{origin}: {len(words)}, of which {', '.join(f'{count} {word}' for word, count in Counter(words).items())}."
        for origin, words in groups
        if words
    ]


def tables(records: list[CheckRecord]) -> list[Table]:
    """Every verdict, and below it what was claimed and what was found."""
    words = [_word(record.verdict, record.counterexample) for record in records]
    rows: list[dict[str, Value]] = [
        {
            "claim": claim.name,
            "verdict": word,
            "on record": "the same" if record.is_as_recorded else _word(claim.recorded, claim.counterexample),
            "origin": claim.origin,
            "checked by": claim.how,
            "source": claim.source,
            "seconds": record.seconds,
        }
        for record, word in zip(records, words, strict=True)
        for claim in [record.claim]
    ]
    legend = (
        "The id of a claim is the name of the function that checks it, under theory/tinylatent_theory/claims. origin: "
        "who makes the statement: the cited paper, the cited authors' code, folklore, or we, here, by deriving it, by "
        "reading others strictly or by reconstruction, which [R] marks in the source; what fails there refutes nobody. "
        "text not at hand: sections and theorems of that paper are named from notes, and are to be verified before "
        f"they are quoted. A statistical check is a test of level {ALPHA:g}: a statement it does not reject is said to "
        f"hold, and the evidence names the difference that it would have noticed. {' '.join(tally(records))}"
    )
    same = sum(record.is_as_recorded for record in records)
    whole = "every verdict is the one on record"
    found = [
        *(record.finding() for record in records),
        exactly(whole, same == len(records), f"{same} of {len(records)}", FAMILY),
    ]
    return [Table("The ledger of claims", COLUMNS, rows, legend, found)]


def draw(records: list[CheckRecord], path: Path) -> None:
    """What committing costs, what K tokens are worth, and how little of 2^t a frontier holds."""
    curves = {record.claim.name: record.curves for record in records}
    with figure(path, 11, 4, columns=3) as (left, middle, right):
        _committing(left, curves.get("discrete_chains_must_commit", {}))
        worlds = curves.get("k_tokens_are_worth_k_chains", {})
        tokens = range(1, 1 + max(map(len, worlds.values()), default=0))
        for name, label, colour in (
            ("variance_of_k_tokens", "K tokens, six states, random moves", "#b5403a"),
            ("variance_if_states_stay", "K tokens, two states that stay", "#3b6fb6"),
        ):
            middle.plot(tokens, worlds.get(name, []), "o-", color=colour, label=label)
        middle.plot(tokens, [1.0] * len(tokens), "--", color="#8c8c8c", label="K chains")
        middle.plot(tokens, tokens, ":", color="#8c8c8c", label="one chain")
        middle.set(
            xlabel="tokens K a step",
            ylabel="K times the variance, one token: 1",
            title="linear Markov worlds, four steps",
        )
        legend_under(middle)
        growth = curves.get("traces_double_and_states_do_not", {})
        for (name, values), colour in zip(_supports(growth), ("#3b6fb6", "#b5403a"), strict=False):
            right.plot(range(1, len(values) + 1), values, "o-", color=colour, label=name)
        steps = range(1, 1 + max((len(values) for _, values in _supports(growth)), default=0))
        right.plot(steps, [2.0**t for t in steps], "--", color="#8c8c8c", label="traces, 2^t")
        right.set_yscale("log", base=2)
        right.set(xlabel="step", ylabel="states in the frontier", title="MNNS")
        legend_under(right)


def _committing(axes: "matplotlib.axes.Axes", curve: dict[str, list[float]]) -> None:
    digits = curve.get("digits", [])
    axes.plot(digits, [100.0] * len(digits), "o-", color="#b5403a", label="CoT2")
    for name, label, colour in (
        ("online", "best signs, digits one by one", "#3b6fb6"),
        ("by_coin", "signs drawn", "#8c8c8c"),
    ):
        axes.plot(digits, [100 * share for share in curve.get(name, [])], "o-", color=colour, label=label)
    axes.set(xlabel="digits m", ylabel="right, % of all problems", title="a discrete chain must commit", xticks=digits)
    legend_under(axes)


def _supports(curve: dict[str, list[float]]) -> list[tuple[str, list[float]]]:
    return [
        (f"digits 1..{name.removeprefix('support_')}", values)
        for name, values in curve.items()
        if name.startswith("support_")
    ]


def grid(profile: Profile) -> list[Check]:
    """Every claim of the ledger, the longest first, so that no worker waits for it at the end."""
    names = sorted(LEDGER, key=lambda name: name != LONGEST)
    return [Check(name, profile) for name in names]


STUDY = Study(
    "claims",
    "Which statements about latent chain-of-thought hold, whose are they, where do they stop, and on what evidence?",
    grid,
    tables,
    draw,
    kind=Check,
)
