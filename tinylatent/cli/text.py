"""The bridge to text: problems out as JSON lines, answers back in, whoever gave them, judged by the same oracle.

`export` writes problems that any language model can be asked, `prosqa` the published ones of ProsQA; `score` judges
answers to either. Files are written whole or not at all, and a bad line is named before anything is done. docs/text.md
says what is read as an answer.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tinylatent_tasks import MNNS
from tinylatent_tasks.checks import check_integer, short
from tinylatent_tasks.prosqa import pose, read_items
from tinylatent_tasks.task import MAX_DRAWN

from tinylatent.cli.choices import AnyTask
from tinylatent.cli.exported import Problem, answered, by_task, exported_problems
from tinylatent.cli.lines import Line, check_output, read_by_id, write_lines
from tinylatent.cli.terminal import filled
from tinylatent.core.files import json_text
from tinylatent.evaluation.statistics import accuracy_interval, cluster_counts
from tinylatent.lab.tasks import TASKS

CHUNK = 1024
"""Problems drawn at a time."""
VERDICTS = {True: "right", False: "wrong", None: "unreadable"}


@dataclass(frozen=True)
class Export:
    """Problems of a task as JSON lines, each with its question in English, for any language model to answer."""

    task: AnyTask = field(default_factory=MNNS)
    """What to export."""
    count: int = 100
    """How many problems; with the same settings and seed, fewer are the first of more."""
    seed: int = 0
    """Which problems."""
    answers: bool = False
    """Write the right answer beside each question."""
    output: Path | None = None
    """File for the lines, written whole or not at all; standard output by default."""
    overwrite: bool = False
    """Replace the output if it exists."""

    @classmethod
    def read(cls, arguments: Sequence[str]) -> "Export":
        """The command that the arguments name: first the task, then flags; ValueError for a task there is none of."""
        if arguments and not arguments[0].startswith("-"):
            TASKS.named(arguments[0])
        command: Export = filled(cls, "tinylatent export", arguments)
        return command

    def run(self) -> None:
        """Writes a line a problem."""
        check_integer("count", self.count, 1, MAX_DRAWN, "try --count 100")
        check_output(self.output, self.overwrite)
        write_lines(self._lines(), self.output, self.count)

    def _lines(self) -> Iterator[dict[str, Any]]:
        """A line for each problem, a chunk of problems at a time."""
        about = {"task": self.task.name, "settings": dataclasses.asdict(self.task)}
        for first in range(0, self.count, CHUNK):
            rows = self.task.problems(min(CHUNK, self.count - first), self.seed, first)
            answer_ids_PA = self.task.answer_ids(self.task.answer(rows)) if self.answers else rows
            for number, (row, ids_A) in enumerate(zip(rows.tolist(), answer_ids_PA, strict=True), first):
                line = {"id": number, **about, "problem": self.task.to_json(row), "question": self.task.question(row)}
                yield line | ({"answer": self.task.say(ids_A)} if self.answers else {})


@dataclass(frozen=True)
class ProsQA:
    """Published ProsQA items, checked, as the lines that export writes: the story to ask, the graph to judge by."""

    file: tyro.conf.Positional[Path]
    """A JSON file in the published format (Coconut, arXiv 2412.06769)."""
    answers: bool = False
    """Write the right answer beside each question."""
    output: Path | None = None
    """File for the lines, written whole or not at all; standard output by default."""
    overwrite: bool = False
    """Replace the output if it exists; never the file that is read."""

    def run(self) -> None:
        """Writes a line an item."""
        check_output(self.output, self.overwrite, self.file)
        items = read_items(self.file)
        if not items:
            raise ValueError(f"{self.file} holds no items: expected a JSON list with at least one")
        task, rows = pose(items)
        settings = dataclasses.asdict(task)
        lines = []
        for number, (item, row) in enumerate(zip(items, rows.tolist(), strict=True)):
            line: dict[str, Any] = {"id": number, "task": task.name, "settings": settings}
            line |= {"problem": task.to_json(row), "symbols": item.symbols, "question": item.question}
            lines.append(line | ({"answer": item.symbols[item.target]} if self.answers else {}))
        write_lines(lines, self.output, len(lines))


@dataclass(frozen=True)
class Score:
    """Judge answers to exported problems: JSON lines such as {"id": 0, "answer": "n3"}, by the task's own oracle."""

    items: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="ITEMS")]
    """File of problems, as `export` wrote it."""
    answers: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="ANSWERS")]
    """File of answers, a line each, in any order; problems without one count as wrong."""
    output: Path | None = None
    """File for a verdict a line: right, wrong, unreadable or missing."""
    overwrite: bool = False
    """Replace the output if it exists; never a file that is read."""
    json: bool = False
    """Print the metrics as JSON instead of text."""

    def run(self) -> None:
        """Checks every line of both files first, then judges."""
        check_output(self.output, self.overwrite, self.items, self.answers)
        exported = read_by_id(self.items)
        items, answers = {id_: (task, row) for id_, task, row in exported_problems(exported)}, read_by_id(self.answers)
        strangers = [(where, id_) for id_, (where, _) in answers.items() if id_ not in items]
        if strangers:
            where, id_ = strangers[0]
            raise ValueError(f"{where}: the id {short(id_)} is not among the {len(items)} of {self.items}")
        values = [answered(id_, answers.get(id_), exported[id_][1], *problem) for id_, problem in items.items()]
        verdicts, keys = ["missing"] * len(items), np.zeros(len(items), np.uint64)
        for task, index, rows in by_task([*items.values()]):
            keys[index] = task.key(rows)
            judged = task.judged(rows, [values[number] for number in index])
            for number, verdict in zip(index, judged, strict=True):
                if values[number] is not None:
                    verdicts[number] = VERDICTS[verdict]
        self._warn(answers, items, exported, dict(zip(items, verdicts, strict=True)))
        _, right, total = cluster_counts(keys, np.array([verdict == "right" for verdict in verdicts]))
        interval = accuracy_interval([right], [total])
        counts = {name: verdicts.count(name) for name in (*VERDICTS.values(), "missing")}
        if self.output is not None:
            lines = [{"id": id_, "verdict": verdict} for id_, verdict in zip(items, verdicts, strict=True)]
            write_lines(lines, self.output, len(lines))
        if self.json:
            metrics = {"accuracy": interval.value, "low": interval.low, "high": interval.high}
            print(json_text({**counts, "problems": len(verdicts), **metrics}))
            return
        low, value, high = (100 * x for x in (interval.low, interval.value, interval.high))
        print(f"{value:.2f} %  [{low:.2f}, {high:.2f}]  of {len(verdicts)} problems")
        print(", ".join(f"{number} {name}" for name, number in counts.items()))

    def _warn(
        self, answers: dict[Any, Line], items: dict[Any, Problem], exported: dict[Any, Line], verdicts: dict[Any, str]
    ) -> None:
        """Says on standard error what looks like a mistake: answers that cannot be read, or that are all wrong."""
        given = [id_ for id_ in answers if verdicts[id_] != "missing"]
        unreadable = [id_ for id_ in given if verdicts[id_] == "unreadable"]
        if 2 * len(unreadable) > len(given):
            (where, value), (task, _) = answers[unreadable[0]], items[unreadable[0]]
            why = f"it names none of the two candidates, {short(value['answer'])}"
            if exported[unreadable[0]][1].get("symbols") is None:
                try:
                    task.read_answer(value)
                except ValueError as error:
                    why = str(error)
            said = f"{len(unreadable)} of {len(given)} answers cannot be read, the first in {where}: {why}"
            print(f"tinylatent: {said}", file=sys.stderr)
        elif len(given) > 1 and not any(verdicts[id_] == "right" for id_ in given):
            said = f"none of {len(given)} answers is right: are they answers to the problems of {self.items}?"
            print(f"tinylatent: {said}", file=sys.stderr)
