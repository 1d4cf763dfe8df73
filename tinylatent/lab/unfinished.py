"""Unfinished: the records of a study that is under way, in a file of its folder.

A full grid can take longer than a machine is there. Every record that a run of the study leaves is also appended to
results/NAME/unfinished.jsonl; where the store was lost, on another machine, say, that file is enough to go on. It goes
when the study is whole.
"""

from pathlib import Path
from typing import Any

from tinylatent.core.files import DamagedError, json_text, read_lines
from tinylatent.core.identity import sealed
from tinylatent.lab.launchers.launcher import unsealed
from tinylatent.lab.run import Record, Run, read_record

NAME = "unfinished.jsonl"


class Unfinished:
    """Records of a study by their identity.

    Args:
        folder: of the study.

    Raises DamagedError for a line that is no record, or was changed.
    """

    def __init__(self, folder: Path):
        self.path = folder / NAME
        lines = read_lines(self.path, whole=True) if self.path.exists() else []
        self._known = {
            str(line.get("id")): unsealed(line, f"{self.path}, line {number}", "this line")
            for number, line in enumerate(lines, 1)
        }

    @property
    def identities(self) -> set[str]:
        """Of the runs whose records are there."""
        return {*self._known}

    def record(self, run: Run) -> Any:
        """The record of a run; None if there is none.

        Raises:
            DamagedError: it is no record of this run.
        """
        line = self._known.get(run.identity)
        if line is None or run.always:
            return None
        try:
            return read_record(type(run), line)
        except ValueError as error:
            raise DamagedError(
                f"{self.path} holds no record of {run.label} ({error}): delete its line to measure it again"
            ) from error

    def add(self, record: Record) -> None:
        """Appends a record that is not there yet."""
        if record.id in self._known:
            return
        values = record.to_json()
        self._known[record.id] = values
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._cut()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json_text(sealed(values)) + "\n")

    def _cut(self) -> None:
        """Removes a last line without an end, as a kill may leave it."""
        if self.path.exists() and not (written := self.path.read_bytes()).endswith(b"\n"):
            self.path.write_bytes(written[: written.rfind(b"\n") + 1])

    def remove(self) -> None:
        """Removes the file."""
        self.path.unlink(missing_ok=True)
