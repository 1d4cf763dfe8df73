"""The bridge to text: problems out as JSON lines, answers back in, whoever gave them, judged by the same oracle.

`export` writes problems that any language model can be asked, `prosqa` the published ones of ProsQA; `score` judges
answers to either; `predict` has one of our own models answer. Files are written whole or not at all, and a bad line is
named before anything is done.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tinylatent_tasks import MNNS
from tinylatent_tasks.checks import short
from tinylatent_tasks.prosqa import pose, read_items

from tinylatent.cli.choices import AnyTask
from tinylatent.core.files import write_text
from tinylatent.evaluation.statistics import accuracy_interval, cluster_counts
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import load
from tinylatent.lab.tasks import TASKS
from tinylatent.objectives.method import Model
from tinylatent.objectives.speakers import Symbols

Line = tuple[str, Any]
"""Where a JSON value stands, in words, and the value."""


@dataclass(frozen=True)
class Export:
    """Problems of a task as JSON lines, each with its question in English, for any language model to answer."""

    task: AnyTask = field(default_factory=MNNS)
    """What to export."""
    count: int = 100
    """How many problems."""
    seed: int = 0
    """Which problems."""
    answers: bool = False
    """Write the right answer beside each question."""
    output: Path | None = None
    """File for the lines, written whole or not at all; standard output by default."""

    def run(self) -> None:
        """Writes a line a problem."""
        if self.count < 1:
            raise ValueError(f"count is {self.count}, but at least one problem was expected; try --count 100")
        rows = self.task.problems(self.count, self.seed)
        settings = dataclasses.asdict(self.task)
        lines = []
        for number, (row, answer_ids_A) in enumerate(
            zip(rows.tolist(), self.task.answer_ids(self.task.answer(rows)), strict=True)
        ):
            line = {"id": number, "task": self.task.name, "settings": settings, "problem": self.task.to_json(row)}
            line["question"] = self.task.question(row)
            lines.append(line | ({"answer": self.task.say(answer_ids_A)} if self.answers else {}))
        _write(lines, self.output)


@dataclass(frozen=True)
class ProsQA:
    """Published ProsQA items, checked, as the lines that export writes: the story to ask, the graph to judge by."""

    file: tyro.conf.Positional[Path]
    """A JSON file in the published format (Coconut, arXiv 2412.06769)."""
    answers: bool = False
    """Write the right answer beside each question."""
    output: Path | None = None
    """File for the lines, written whole or not at all; standard output by default."""

    def run(self) -> None:
        """Writes a line an item."""
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
        _write(lines, self.output)


@dataclass(frozen=True)
class Score:
    """Judge answers to exported problems: JSON lines such as {"id": 0, "answer": "n3"}, by the task's own oracle."""

    items: tyro.conf.Positional[Path]
    """File of problems, as `export` wrote it."""
    answers: tyro.conf.Positional[Path]
    """File of answers, a line each, in any order; problems without one count as wrong."""
    output: Path | None = None
    """File for a verdict a line: right, wrong, unreadable or missing."""
    json: bool = False
    """Print the metrics as JSON instead of text."""

    def run(self) -> None:
        """Checks every line of both files first, then judges."""
        exported = _by_id(self.items)
        items, answers = {id_: (task, row) for id_, task, row in _exported(exported)}, _by_id(self.answers)
        strangers = [(where, id_) for id_, (where, _) in answers.items() if id_ not in items]
        if strangers:
            where, id_ = strangers[0]
            raise ValueError(f"{where}: the id {short(id_)} is not among the {len(items)} of {self.items}")
        verdicts = {}
        for id_, (task, row) in items.items():
            answer = answers[id_][1] if id_ in answers else {}
            symbols = exported[id_][1].get("symbols")
            if answer.get("answer") is None:
                verdicts[id_] = "missing"
            else:
                said = _in_nodes(answer, symbols, task.to_json(row.tolist())) if symbols else answer
                verdicts[id_] = _verdict(task, row, said)
        keys = np.zeros(len(items), np.uint64)
        for task, index, rows in _by_task([*items.values()]):
            keys[index] = task.key(rows)
        _, right, total = cluster_counts(keys, np.array([verdict == "right" for verdict in verdicts.values()]))
        interval = accuracy_interval([right], [total])
        counts = {name: [*verdicts.values()].count(name) for name in ("right", "wrong", "unreadable", "missing")}
        if self.output is not None:
            _write([{"id": id_, "verdict": verdict} for id_, verdict in verdicts.items()], self.output)
        if self.json:
            metrics = {"accuracy": interval.value, "low": interval.low, "high": interval.high}
            print(json.dumps({**counts, "problems": len(verdicts), **metrics}))
            return
        low, value, high = (100 * x for x in (interval.low, interval.value, interval.high))
        print(f"{value:.2f} %  [{low:.2f}, {high:.2f}]  of {len(verdicts)} problems")
        print(", ".join(f"{number} {name}" for name, number in counts.items()))


def _verdict(task: Any, row: np.ndarray, answer: Any) -> str:
    """right, wrong, or unreadable."""
    try:
        return "right" if task.judge(row.tolist(), answer) else "wrong"
    except ValueError:
        return "unreadable"


def _in_nodes(answer: Any, symbols: list[str], problem: dict[str, Any]) -> Any:
    """An answer in the words of a story, "Tom is a lempus." or "lempus", in nodes; one in other words is no answer.

    Only the root's name may stand before and only a candidate's after, so that neither "Tom is not a lempus" nor
    "lempus or scrompus" is an answer.
    """
    said = str(answer.get("answer", "")).strip().rstrip(".").lower()
    root, *candidates = (symbols[node].lower() for node in (problem["root"], *problem["candidates"]))
    found = re.fullmatch(rf"(?:{re.escape(root)} is an? )?(\S+)", said)
    index = candidates.index(found[1]) if found is not None and found[1] in candidates else None
    return "no answer" if index is None else f"n{problem['candidates'][index]}"


@dataclass(frozen=True)
class Predict:
    """Answers of a trained model: problems as JSON lines in, one JSON answer a line out."""

    checkpoint: Path
    """Folder of a run."""
    input: Path | None = None
    """File of problems, such as {"digits": [3, 5, 2, 8]} a line, or as `export` wrote it; standard input by default."""
    output: Path | None = None
    """File for the answers, written whole or not at all; standard output by default."""

    def run(self) -> None:
        """Checks every line first, then answers them all in batches."""
        experiment, model = load(self.checkpoint)
        read = [(value, *_held(experiment.task, where, value)) for where, value in _lines(self.input)]
        answers: list[dict[str, Any]] = [{} for _ in read]
        for task, index, rows in _by_task([(task, row) for _, task, row in read]):
            for number, answer in zip(index, _answers(experiment, task, model, rows), strict=True):
                value = read[number][0]
                answers[number] = ({"id": value["id"]} if isinstance(value, dict) and "id" in value else {}) | answer
        _write(answers, self.output)


def _held(task: Any, where: str, value: Any) -> tuple[Any, np.ndarray]:
    """The task that holds a problem, at whatever difficulty, and the problem; in a line of `export` it is "problem"."""
    exported = isinstance(value, dict) and "problem" in value
    item = value["problem"] if exported else value
    if exported and value.get("task", task.name) != task.name:
        raise ValueError(f"{where} is a problem of {short(value['task'])}, but the model was trained on {task.name}")
    try:
        if exported and "settings" in value and _task({"task": task.name, **value}).vocabulary != task.vocabulary:
            raise ValueError(f"its settings make other tokens than those the model knows; expected {task}")
        holding = task.holding(item)
        return holding, holding.read(item)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _by_task(problems: list[tuple[Any, np.ndarray]]) -> Iterator[tuple[Any, list[int], np.ndarray]]:
    """Each task among the problems, the indices of its problems, and these as rows."""
    for task in dict.fromkeys(task for task, _ in problems):
        index = [number for number, (its, _) in enumerate(problems) if its == task]
        yield task, index, np.stack([problems[number][1] for number in index])


def _answers(
    experiment: Experiment, task: Any, model: Model, rows_P: np.ndarray, batch: int = 1024
) -> list[dict[str, Any]]:
    answers = []
    for start in range(0, len(rows_P), batch):
        rows = rows_P[start : start + batch]
        streams = experiment.streams(torch.arange(start, start + len(rows)))
        ids_BA = experiment.method.solve(model, Symbols(task, rows).examples(), streams).answer_BA.numpy()
        answers += [task.write(row, ids_A) for row, ids_A in zip(rows, ids_BA, strict=True)]
    return answers


# ---------------------------------------------------------------------------------------------------------------------
# Lines in and out


def _lines(path: Path | None) -> list[Line]:
    """Every line that is not empty, as JSON, with where it stands; ValueError naming where one that is not stands."""
    source = "standard input" if path is None else str(path)
    try:
        text = sys.stdin.read() if path is None else path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text ({error}): save it as UTF-8") from None
    lines = [
        (f"{source}, line {number}", _value(line, f"{source}, line {number}"))
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]
    if not lines:
        raise ValueError(f"{source} is empty: expected one JSON value a line")
    return lines


def _value(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply: expected one JSON value a line") from None
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error}): expected one JSON value a line") from None


def _by_id(path: Path) -> dict[Any, Line]:
    """The lines of a file by their "id"; ValueError for a line without one, or two with the same."""
    found: dict[Any, Line] = {}
    for where, value in _lines(path):
        id_ = value.get("id") if isinstance(value, dict) else None
        if not isinstance(id_, (int, str)) or isinstance(id_, bool):
            raise ValueError(f'{where} has no "id": expected an object such as {{"id": 0, ...}}')
        if id_ in found:
            raise ValueError(f"{where}: the id {id_!r} stands there twice")
        found[id_] = where, value
    return found


def _exported(lines: dict[Any, Line]) -> Iterator[tuple[Any, Any, np.ndarray]]:
    """The id, the task and the problem of each exported line."""
    known: dict[str, Any] = {}
    for id_, (where, value) in lines.items():
        try:
            text = json.dumps([value["task"], value["settings"]], sort_keys=True)
            if text not in known:
                known[text] = _task(value)
            row = known[text].read(value["problem"])
            _check_symbols(value.get("symbols"), known[text].to_json(row.tolist()))
            yield id_, known[text], row
        except KeyError as error:
            raise ValueError(
                f"{where} lacks {error}: expected id, task, settings and problem, as export writes them"
            ) from None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


def _task(value: dict[str, Any]) -> Any:
    """The task that an exported line names; ValueError where there is none with these settings."""
    name, settings = value["task"], value["settings"]
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"the task is {short(name)}; expected one of {', '.join(TASKS)}")
    kind: Any = TASKS[name]
    fields = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(settings, dict) or not settings.keys() <= fields:
        raise ValueError(f"the settings are {short(settings)}; {name} has {', '.join(sorted(fields))}")
    return kind(**settings)


def _check_symbols(symbols: Any, problem: dict[str, Any]) -> None:
    """ValueError unless there are no symbols, or one for every node of a ProsQA problem."""
    if symbols is None:
        return
    named = isinstance(symbols, list) and all(isinstance(symbol, str) for symbol in symbols)
    nodes = [problem["root"], *problem["candidates"]] if "root" in problem else []
    if not named or not nodes or max(nodes) >= len(symbols):
        raise ValueError(f"symbols is {short(symbols)}; expected the name of every node of a reachability problem")


def _write(values: list[dict[str, Any]], path: Path | None) -> None:
    lines = "".join(json.dumps(value) + "\n" for value in values)
    if path is None:
        sys.stdout.write(lines)
    else:
        write_text(path, lines)
