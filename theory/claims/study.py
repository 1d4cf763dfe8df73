"""Study `claims` and the command of the same name: every claim of the ledger checked, with its verdict and evidence.

Claims are always checked anew: what they ask about is the code as it is. The quick profile is seeded; the full one
draws fresh seeds, which are stored with what they gave.
"""

import dataclasses
import difflib
import inspect
import json
import secrets
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from matplotlib.axes import Axes

from theory.claims import (  # noqa: F401 - each enters its claims into the ledger
    colar,
    cot2,
    ctrls,
    ctrls_states,
    depth,
    estimators,
    hrpo,
    latentr3,
    latentseek,
    sampling,
    scores,
    superposition,
)
from theory.claims.ledger import ALPHA, LEDGER, Claim, Trial, Verdict
from tinylatent.core.environment import environment
from tinylatent.core.files import read_lines
from tinylatent.core.identity import identity
from tinylatent.lab.plots import figure
from tinylatent.lab.report import Table, Value
from tinylatent.lab.study import Profile, Record, Study, reproduce

VERSION = 1
ROOT = Path(__file__).resolve().parents[2]
LONGEST = "two_layers_search_every_dag"
COLUMNS = {"claim": "s", "verdict": "s", "on record": "s", "checked by": "s", "source": "s", "seconds": ".1f"}


@dataclass(frozen=True)
class Check:
    """One claim under one profile."""

    claim: str
    profile: Profile = "quick"

    @property
    def identity(self) -> str:
        """Twelve hexadecimal digits that stand for claim and profile, whatever the seed."""
        return identity(self.to_json())

    @property
    def work(self) -> int:
        """One claim."""
        return 1

    def to_json(self) -> dict[str, Any]:
        """The check as plain values; its seed is drawn when it runs."""
        return {"version": VERSION, "claim": self.claim, "profile": self.profile, "seeds": {}}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Check":
        """The check that wrote these values; KeyError if one is missing, ValueError if another version wrote them."""
        if values["version"] != VERSION:
            raise ValueError(f"written by version {values['version']} of the ledger, this is {VERSION}")
        return cls(values["claim"], values["profile"])


def measure(
    check: Check, folder: Path | None, device: str = "cpu", on_progress: Callable[[int, float], None] | None = None
) -> Record:
    """Runs a claim's check and its counterexample; folder stays empty."""
    claim, seed = LEDGER[check.claim], 0 if check.profile == "quick" else secrets.randbits(31)
    started = time.perf_counter()
    finding = claim.check(Trial(check.profile, seed))
    record = {
        "id": check.identity,
        "experiment": {**check.to_json(), "seeds": {"claim": seed}},
        "verdict": finding.verdict,
        "evidence": finding.evidence,
        "counterexample": None if claim.counterexample is None else claim.counterexample(),
        "curves": {name: [float(value) for value in values] for name, values in finding.curves.items()},
        "seconds": time.perf_counter() - started,
        "environment": environment(),
    }
    if on_progress is not None:
        on_progress(1, 0.0)
    return record


def remark(record: Record) -> str:
    """One line about a checked claim."""
    differs = "" if _as_recorded(record) else f" (on record: {_claim(record).recorded})"
    return f"{record['experiment']['claim']}: {record['verdict']}{differs}"


def _claim(record: Record) -> Claim:
    return LEDGER[record["experiment"]["claim"]]


def _as_recorded(record: Record) -> bool:
    return bool(record["verdict"] == _claim(record).recorded)


# ---------------------------------------------------------------------------------------------------------------------
# Table and figure


def tables(records: list[Record]) -> list[Table]:
    """Every verdict, and below it what was claimed and what was found."""
    for record in records:
        _check(record)
    rows: list[dict[str, Value]] = [
        {
            "claim": claim.name,
            "verdict": record["verdict"],
            "on record": "the same" if _as_recorded(record) else claim.recorded,
            "checked by": claim.how,
            "source": claim.source,
            "seconds": record["seconds"],
        }
        for record in records
        for claim in [_claim(record)]
    ]
    same = sum(map(_as_recorded, records))
    counts = {verdict: sum(record["verdict"] == verdict for record in records) for verdict in _verdicts(records)}
    legend = (
        "The id of a claim is the name of the function that checks it, under theory/claims. [R]: derived, or stated "
        f"this way, here. Statistical checks are tests of level {ALPHA:g} each. "
        + ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        + "."
    )
    word = "Holds" if same == len(records) else "Fails"
    summary = f"- {word}: every verdict is the one on record [{same} of {len(records)}]."
    return [Table("The ledger of claims", COLUMNS, rows, [legend, "", *map(_entry, records), "", summary])]


def _check(record: Record) -> None:
    """ValueError for a record that no check wrote."""
    name, curves = record["experiment"]["claim"], record["curves"]
    whole = (
        name in LEDGER
        and record["verdict"] in get_args(Verdict)
        and isinstance(record["evidence"], str)
        and isinstance(record["counterexample"], (str, type(None)))
        and isinstance(record["seconds"], (int, float))
        and isinstance(curves, dict)
        and all(isinstance(value, (int, float)) for values in curves.values() for value in values)
    )
    if not whole:
        raise ValueError(f"the record of claim {name} is not one that a check wrote")


def _verdicts(records: Sequence[Record]) -> list[Verdict]:
    return list(dict.fromkeys(record["verdict"] for record in records))


def _entry(record: Record) -> str:
    """A claim as an item of a list."""
    claim, counterexample = _claim(record), record["counterexample"]
    found = f" Counterexample: {counterexample}." if counterexample else ""
    return (
        f"- **{claim.name}**. {claim.statement} *{record['verdict'].capitalize()}* ({claim.conditions}). "
        f"{record['evidence'].rstrip('.')}.{found}"
    )


def draw(records: list[Record], path: Path) -> None:
    """What committing costs, what K tokens are worth, and how little of 2^t a frontier holds."""
    curves = {record["experiment"]["claim"]: record["curves"] for record in records}
    with figure(path, 11, 3.4, columns=3) as (left, middle, right):
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
        middle.legend()
        growth = curves.get("traces_double_and_states_do_not", {})
        for (name, values), colour in zip(_supports(growth), ("#3b6fb6", "#b5403a"), strict=False):
            right.plot(range(1, len(values) + 1), values, "o-", color=colour, label=name)
        steps = range(1, 1 + max((len(values) for _, values in _supports(growth)), default=0))
        right.plot(steps, [2.0**t for t in steps], "--", color="#8c8c8c", label="traces, 2^t")
        right.set_yscale("log", base=2)
        right.set(xlabel="step", ylabel="states in the frontier", title="MNNS")
        right.legend()


def _committing(axes: Axes, curve: dict[str, list[float]]) -> None:
    digits = curve.get("digits", [])
    axes.plot(digits, [100.0] * len(digits), "o-", color="#b5403a", label="CoT2")
    for name, label, colour in (
        ("online", "best signs, digits one by one", "#3b6fb6"),
        ("by_coin", "signs drawn", "#8c8c8c"),
    ):
        axes.plot(digits, [100 * share for share in curve.get(name, [])], "o-", color=colour, label=label)
    axes.set(xlabel="digits m", ylabel="right, % of all problems", title="a discrete chain must commit", xticks=digits)
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.93))


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
    "Which published statements about latent chain-of-thought hold, where do they stop, and on what evidence?",
    grid,
    tables,
    draw,
    kind=Check,
    measure=measure,
    remark=remark,
    fresh=True,
)


# ---------------------------------------------------------------------------------------------------------------------
# Command


@dataclass(frozen=True)
class Claims:
    """Check the ledger of published claims: verdicts and evidence. Exit status 1 if a verdict has changed."""

    id: tuple[str, ...] = ()
    """Claims to check, by id, and to show in full; all by default."""
    names: bool = False
    """Only list ids and statements; nothing is checked."""
    profile: Profile = "quick"
    """Two minutes with fixed seeds, or larger sizes with fresh ones."""
    workers: int = 2
    """Processes, one thread each."""
    results: Path = Path("results")
    """Folder of results; nothing is written where claims are named."""
    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> None:
        """Checks, prints, stores.

        Raises:
            ValueError: an id is unknown.
            SystemExit: with 1, if a verdict is not the one on record.
        """
        if self.names:
            print(_listed())
            return
        records = self._records()
        if self.json:
            print(json.dumps([_described(record) for record in records], indent=2))
        elif self.id:
            print("\n\n".join(map(card, records)))
        else:
            print(_short_table(records))
        changed = [remark(record) for record in records if not _as_recorded(record)]
        if changed:
            print(
                f"tinylatent: {len(changed)} of {len(records)} verdicts changed: {'; '.join(changed)}", file=sys.stderr
            )
            raise SystemExit(1)

    def _records(self) -> list[Record]:
        """The records of the claims asked for, in the ledger's order."""
        unknown = [name for name in self.id if name not in LEDGER]
        if unknown:
            raise ValueError(f"unknown claim {unknown[0]!r}: expected ids such as {_like(unknown[0])}; see --names")
        if not self.id:
            return read_lines(reproduce(STUDY, self.profile, self.results, self.workers).files["runs.jsonl"])
        chosen = [Check(name, self.profile) for name in LEDGER if name in self.id]
        with tempfile.TemporaryDirectory() as folder:
            some = dataclasses.replace(STUDY, grid=lambda profile: chosen)
            return read_lines(reproduce(some, self.profile, Path(folder), self.workers).files["runs.jsonl"])


def _like(name: str) -> str:
    """A few ids that resemble a wrong one."""
    close = [known for known in LEDGER if known.startswith(name)]
    close = close or difflib.get_close_matches(name, LEDGER, n=3, cutoff=0.4)
    return ", ".join((close or [*LEDGER])[:3])


def _listed() -> str:
    """Every id with its statement, as lines of text."""
    width = max(map(len, LEDGER))
    return "\n".join(f"{claim.name:{width}s}  {claim.statement}" for claim in LEDGER.values())


def _place(claim: Claim) -> str:
    """File and line of a claim's check."""
    path = Path(inspect.getsourcefile(claim.check) or "")
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{inspect.getsourcelines(claim.check)[1]}"


def _described(record: Record) -> dict[str, Any]:
    """A checked claim as plain values."""
    claim = _claim(record)
    return {
        "id": claim.name,
        "verdict": record["verdict"],
        "recorded": claim.recorded,
        "source": claim.source,
        "statement": claim.statement,
        "conditions": claim.conditions,
        "how": claim.how,
        "evidence": record["evidence"],
        "counterexample": record["counterexample"],
        "seed": record["experiment"]["seeds"]["claim"],
        "seconds": record["seconds"],
        "code": _place(claim),
    }


def card(record: Record) -> str:
    """Everything about one checked claim, as lines of text."""
    lines = []
    for name, value in _described(record).items():
        if value is not None:
            text = f"{value:.1f}" if isinstance(value, float) else str(value)
            lines.append(textwrap.fill(text, 120, initial_indent=f"{name:16s}", subsequent_indent=" " * 16))
    return "\n".join(lines)


def _short_table(records: Sequence[Record]) -> str:
    """Id and verdict of every claim."""
    width = max(len(record["experiment"]["claim"]) for record in records)
    lines = [f"{_claim(record).name:{width}s}  {remark(record).partition(': ')[2]}" for record in records]
    same = sum(map(_as_recorded, records))
    ending = f"{same} of {len(records)} verdicts are those on record; tinylatent claims --id ID shows the evidence"
    return "\n".join([*lines, "", ending])
