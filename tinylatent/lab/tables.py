"""Tables as CSV and Markdown, and where their numbers come from; the same bytes from the same records."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinylatent.core.identity import checksum
from tinylatent.lab.findings import FEWEST, Finding

Value = str | int | float | None


def leads(findings: Iterable[Finding]) -> list[str]:
    """What stands below verdicts on runs, which were chosen with these at hand; nothing where there are none."""
    levels = {each.level for each in findings if each.exploratory and each.runs is not None}
    by = "95 % interval" if levels <= {0.95} else "interval, of 95 % where no other level is told,"
    told = (
        f"Leads, not tests: these claims were chosen with their runs at hand, each is judged by its own {by} however "
        f"many they are, and fewer than {FEWEST} runs decide nothing."
    )
    return [told] if levels else []


@dataclass(frozen=True)
class Table:
    """A titled table. `columns` gives every column's name and how its numbers are written, such as ".2f" or "s"."""

    title: str
    columns: dict[str, str]
    rows: list[dict[str, Value]]
    legend: str = ""
    """What the columns mean."""
    findings: Sequence[Finding] = ()
    """What the numbers say about claims."""
    remarks: Sequence[str] = ()
    """Sentences that are no verdicts."""

    def csv(self) -> str:
        """The rows as CSV with a header; absent values are empty."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([self._cell(row, name, "") for name in self.columns] for row in self.rows)
        return out.getvalue()

    def markdown(self) -> str:
        """The table as aligned Markdown; below it the legend, a sentence for each finding, and the remarks."""
        grid = [list(self.columns), *([self._cell(row, name, "-") for name in self.columns] for row in self.rows)]
        widths = [max(2, *(len(line[i]) for line in grid)) for i in range(len(self.columns))]
        left = [spec == "s" for spec in self.columns.values()]

        def line(cells: list[str]) -> str:
            padded = (c.ljust(w) if is_left else c.rjust(w) for c, w, is_left in zip(cells, widths, left, strict=True))
            return "| " + " | ".join(padded) + " |"

        rule = ["-" * w if is_left else "-" * (w - 1) + ":" for w, is_left in zip(widths, left, strict=True)]
        body = [f"**{self.title}**", "", line(grid[0]), line(rule), *map(line, grid[1:]), ""]
        if self.legend:
            body += [self.legend, ""]
        items = [*(each.sentence() for each in self.findings), *self.remarks, *leads(self.findings)]
        return "\n".join([*body, *(f"- {item}" for item in items), *([""] if items else [])])

    def to_json(self) -> dict[str, Any]:
        """The table as plain values."""
        findings = [finding.to_json() for finding in self.findings]
        return {"title": self.title, "rows": self.rows, "findings": findings, "remarks": [*self.remarks]}

    def _cell(self, row: dict[str, Value], name: str, absent: str) -> str:
        value = row.get(name)
        return absent if value is None else format(value, self.columns[name])


def provenance(records: Sequence[Any], runs: Path) -> dict[str, Any]:
    """Command, code, versions, seeds and checksum behind a folder of results, from its records."""
    first = records[0]
    return {
        "command": f"tinylatent reproduce {first.study} --profile {first.profile}",
        "runs": len(records),
        "runs_checksum": checksum(runs.read_bytes()),
        "trained_in": _distinct(each for record in records for each in record.environments.training or []),
        "measured_in": _distinct(record.environments.measuring for record in records),
        "seeds": _distinct(record.seeds for record in records if record.seeds),
        "training": _distinct(
            {"method": trained["method"]["name"], **trained["training"]}
            for record in records
            if "training" in (trained := record.run if "training" in record.run else record.run.get("start", {}))
        ),
    }


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Values without repetitions, in order of appearance."""
    seen: list[Any] = []
    for value in values:
        if value not in seen:
            seen.append(value)
    return seen
