"""Lines of problems and answers: which task and problem a line holds, and what was answered to it.

A line of `export` or `prosqa` names its task, its settings and its problem; for a model it may be the problem alone.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tinylatent_tasks.answers import readings
from tinylatent_tasks.checks import short

from tinylatent.cli.lines import Line, identity, progress
from tinylatent.lab.tasks import TASKS

Problem = tuple[Any, np.ndarray]
"""A task and a problem of it."""


def exported_problems(lines: dict[Any, Line]) -> Iterator[tuple[Any, Any, np.ndarray]]:
    """The id, the task and the problem of each exported line."""
    known: dict[str, Any] = {}
    for id_, (where, value) in progress(lines.items(), "checking", "line"):
        try:
            text = json.dumps([value["task"], value["settings"]], sort_keys=True)
            if text not in known:
                known[text] = _task(value)
            row = known[text].read(value["problem"])
            if "symbols" in value:
                _check_symbols(value["symbols"], known[text].to_json(row.tolist()))
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
    """ValueError unless there are no symbols, or one for every node of a problem with two candidates, all different."""
    if symbols is None:
        return
    named = isinstance(symbols, list) and all(isinstance(symbol, str) for symbol in symbols)
    nodes = [problem["root"], *problem["candidates"]] if "root" in problem else []
    if not named or len(nodes) != 3 or max(nodes) >= len(symbols):
        raise ValueError(f"symbols is {short(symbols)}; expected the name of every node of a reachability problem")
    if len({symbol.lower() for symbol in symbols}) < len(symbols):
        raise ValueError(f"symbols is {short(symbols)}; expected another name for every node")


def reader_for(trained: Any) -> Callable[[str, Any], Problem]:
    """Reads problems for a model: a function of where a line stands and its value, which gives task and problem.

    The task is the one trained on, or the level of it that holds the problem; in a line of `export` that is "problem".
    """
    known: dict[str, None] = {}

    def held(where: str, value: Any) -> Problem:
        exported = isinstance(value, dict) and "problem" in value
        item = value["problem"] if exported else value
        if isinstance(value, dict) and "id" in value:
            identity(value, where)
        if exported and value.get("task", trained.name) != trained.name:
            named = short(value["task"])
            raise ValueError(f"{where} is a problem of {named}, but the model was trained on {trained.name}")
        try:
            if exported and "settings" in value and (text := json.dumps(value["settings"])) not in known:
                if _task({"task": trained.name, **value}).vocabulary != trained.vocabulary:
                    raise ValueError(f"its settings make other tokens than those the model knows; expected {trained}")
                known[text] = None
            problem: Problem = trained.held(item)
            return problem
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    return held


def by_task(problems: list[Problem]) -> Iterator[tuple[Any, list[int], np.ndarray]]:
    """Each task among the problems, the indices of its problems, and these as rows."""
    found: dict[Any, list[int]] = {}
    for number, (task, _) in enumerate(problems):
        found.setdefault(task, []).append(number)
    for task, index in found.items():
        yield task, index, np.stack([problems[number][1] for number in index])


def answered(id_: Any, answer: Line | None, exported: dict[str, Any], task: Any, row: np.ndarray) -> Any:
    """What was answered to a problem, in the task's own words; None if nothing was.

    ValueError for an answer that brings its problem, as `predict` writes it, and this is another.
    """
    where, value = answer or ("", {})
    problem = task.to_json(row.tolist())
    if problem.keys() <= value.keys() and any(value[name] != problem[name] for name in problem):
        raise ValueError(f"{where}: it answers another problem than {short(id_)} is; name the file that was asked")
    if value.get("answer") is None:
        return None
    symbols = exported.get("symbols")
    return value if symbols is None else _in_nodes(value, symbols, problem)


def _in_nodes(answer: Any, symbols: list[str], problem: dict[str, Any]) -> str:
    """An answer in the words of a story, "Tom is a lempus." or "lempus", in nodes; "" for one in other words.

    Only the root's name may stand before and only a candidate's after, so that neither "Tom is not a lempus" nor
    "lempus or scrompus" is an answer.
    """
    root, *candidates = (symbols[node].lower() for node in (problem["root"], *problem["candidates"]))
    found = (re.fullmatch(rf"(?:{re.escape(root)} is an? )?(\S+)", text) for text in readings(answer))
    named = {candidates.index(match[1]) for match in found if match is not None and match[1] in candidates}
    return f"n{problem['candidates'][named.pop()]}" if len(named) == 1 else ""
