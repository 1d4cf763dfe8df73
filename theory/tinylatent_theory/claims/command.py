"""Command `claims`: the ledger checked on this machine. The claims themselves load when it runs."""

import inspect
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylatent.cli.terminal import refuse_idle
from tinylatent.core.files import json_text
from tinylatent.lab.launchers import launcher_named
from tinylatent.lab.study import Profile, measure_all, reproduce

if TYPE_CHECKING:
    from tinylatent_theory.claims.ledger import Claim
    from tinylatent_theory.claims.study import CheckRecord

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Claims:
    """Check the ledger of claims: verdicts, whose they are, evidence. Exit status 1 if a verdict has changed."""

    id: tuple[str, ...] = ()
    """Claims to check, by id, and to show in full; all by default."""
    names: bool = False
    """Only list ids, origins and statements; nothing is checked."""
    profile: Profile = "quick"
    """Two minutes with fixed seeds, or larger sizes with fresh ones."""
    workers: int = 2
    """Checks at a time; each has a process with one thread where they run on this machine."""
    launcher: str = "local"
    """What does the checks; `tinylatent list` shows what there is."""
    results: Path = Path("results")
    """Folder of results; nothing is written where claims are named."""
    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> None:
        """Checks, prints, stores.

        Raises:
            ValueError: an id or the launcher is unknown, or a flag has no effect beside another.
            SystemExit: with 1, if a verdict is not the one on record.
        """
        if self.names:
            from tinylatent_theory.claims.study import LEDGER

            refuse_idle(
                self, ("id", "profile", "workers", "launcher", "results"), "beside --names, which checks nothing"
            )
            print(
                json_text([about(each) for each in LEDGER.values()], indent=2) if self.json else listed(LEDGER.values())
            )
            return
        if self.id:
            refuse_idle(self, ("results",), "beside --id, which writes nothing")
        records = self._records()
        if self.json:
            print(json_text([described(record) for record in records], indent=2))
        elif self.id:
            print("\n\n".join(map(card, records)))
        else:
            print(short_table(records))
        changed = [record.summary() for record in records if not record.is_as_recorded]
        if changed:
            said = f"{len(changed)} of {len(records)} verdicts changed: {'; '.join(changed)}"
            print(f"tinylatent: {said}", file=sys.stderr)
            raise SystemExit(1)

    def _records(self) -> list["CheckRecord"]:
        """The records of the claims asked for, in the ledger's order."""
        from tinylatent_theory.claims.study import LEDGER, STUDY, Check

        launcher = launcher_named(self.launcher, self.workers)
        if not self.id:
            return reproduce(STUDY, self.profile, self.results, launcher).records
        checks = {name: Check(name, self.profile) for name in self.id}
        with tempfile.TemporaryDirectory() as store:
            return measure_all([checks[name] for name in LEDGER if name in checks], Path(store), launcher)


def listed(claims: Iterable["Claim"]) -> str:
    """Every id with its origin and statement, as lines of text."""
    found = list(claims)
    width = max(len(claim.name) for claim in found)
    return "\n".join(f"{claim.name:{width}s}  {claim.origin:8s}  {claim.statement}" for claim in found)


def about(claim: "Claim") -> dict[str, str]:
    """What a claim says, before it is checked, as plain values."""
    return {"id": claim.name, "origin": claim.origin, "recorded": claim.recorded, "statement": claim.statement}


def place(claim: "Claim") -> str:
    """File and line of a claim's check."""
    path = Path(inspect.getsourcefile(claim.check) or "")
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{inspect.getsourcelines(claim.check)[1]}"


def described(record: "CheckRecord") -> dict[str, Any]:
    """A checked claim as plain values."""
    claim = record.claim
    return {
        "id": claim.name,
        "verdict": record.verdict,
        "recorded": claim.recorded,
        "origin": claim.origin,
        "source": claim.source,
        "statement": claim.statement,
        "conditions": claim.conditions,
        "how": claim.how,
        "evidence": record.evidence,
        "counterexample": record.counterexample,
        "seed": record.seed,
        "seconds": record.seconds,
        "code": place(claim),
    }


def card(record: "CheckRecord") -> str:
    """Everything about one checked claim, as lines of text."""
    lines = []
    for name, value in described(record).items():
        if value is not None:
            text = f"{value:.1f}" if isinstance(value, float) else str(value)
            lines.append(textwrap.fill(text, 120, initial_indent=f"{name:16s}", subsequent_indent=" " * 16))
    return "\n".join(lines)


def short_table(records: Sequence["CheckRecord"]) -> str:
    """Id, origin and verdict of every claim, and the verdicts counted by origin, as lines of text."""
    from tinylatent_theory.claims.study import tally

    width = max(len(record.claim.name) for record in records)
    lines = [
        f"{record.claim.name:{width}s}  {record.claim.origin:8s}  {record.summary().partition(': ')[2]}"
        for record in records
    ]
    same = sum(record.is_as_recorded for record in records)
    ending = f"{same} of {len(records)} verdicts are those on record; tinylatent claims --id ID shows the evidence"
    return "\n".join([*lines, "", *tally(records), ending])
