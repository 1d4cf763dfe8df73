"""Report: tables as CSV and Markdown, and where their numbers come from; the same bytes from the same records."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinylatent.core.identity import checksum

Value = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A titled table. `columns` gives every column's name and how its numbers are written, such as ".2f" or "s"."""

    title: str
    columns: dict[str, str]
    rows: list[dict[str, Value]]
    notes: Sequence[str] = field(default_factory=tuple)

    def csv(self) -> str:
        """The rows as CSV with a header; absent values are empty."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([self._cell(row, name, "") for name in self.columns] for row in self.rows)
        return out.getvalue()

    def markdown(self) -> str:
        """The table as aligned Markdown, its notes below."""
        grid = [list(self.columns), *([self._cell(row, name, "-") for name in self.columns] for row in self.rows)]
        widths = [max(2, *(len(line[i]) for line in grid)) for i in range(len(self.columns))]
        left = [spec == "s" for spec in self.columns.values()]

        def line(cells: list[str]) -> str:
            padded = (c.ljust(w) if is_left else c.rjust(w) for c, w, is_left in zip(cells, widths, left, strict=True))
            return "| " + " | ".join(padded) + " |"

        rule = ["-" * w if is_left else "-" * (w - 1) + ":" for w, is_left in zip(widths, left, strict=True)]
        body = [f"**{self.title}**", "", line(grid[0]), line(rule), *map(line, grid[1:]), ""]
        return "\n".join([*body, *self.notes, ""] if self.notes else body) + ""

    def _cell(self, row: dict[str, Value], name: str, absent: str) -> str:
        value = row.get(name)
        return absent if value is None else format(value, self.columns[name])


def provenance(records: list[dict[str, Any]], runs: Path) -> dict[str, Any]:
    """Command, code, versions, seeds and checksum behind a folder of results, from its records."""
    first = records[0]
    return {
        "command": f"tinylatent reproduce {first['study']} --profile {first['profile']}",
        "runs": len(records),
        "runs_checksum": checksum(runs.read_bytes()),
        "environments": _distinct(record["environment"] for record in records),
        "seeds": _distinct(record["experiment"]["seeds"] for record in records),
        "training": _distinct(
            {"method": record["experiment"]["method"]["name"], **record["experiment"]["training"]}
            for record in records
            if "training" in record["experiment"]
        ),
    }


def _distinct(values: Any) -> list[Any]:
    """Values without repetitions, in order of appearance."""
    seen: list[Any] = []
    for value in values:
        if value not in seen:
            seen.append(value)
    return seen
