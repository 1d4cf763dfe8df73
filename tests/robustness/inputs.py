"""Fuzzed inputs: values, files and flags as careless hands, other programs and broken disks make them.

A kind of input is a function of a hypothesis `draw`, what was made once (`Base`) and a folder of its own. It prepares
files there and returns the command's words with a check of what the command did if it succeeded.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinylatent.lab.recipes import recipe

DATA = Path(__file__).parents[1] / "data"
ROOT = Path(__file__).parents[2]
Draw = Callable[[Any], Any]
Check = Callable[[str, str], None]
"""Asserts what standard output and standard error say of a command that succeeded."""
Kind = Callable[[Draw, "Base", Path], tuple[list[str], str, Check]]
"""Words of a command, its standard input, and a check of what it prints."""

SMALLEST = {
    "mnns": {"digits": "2", "high": "4"},
    "subset-sum": {"numbers": "3", "high": "4"},
    "multihop": {"hops": "2", "nodes": "5", "capacity": "3"},
    "reachability": {"depth": "2", "nodes": "8", "edges": "9"},
    "stories": {"depth": "2", "nodes": "8", "edges": "9"},
    "arithmetic": {"operations": "2", "modulus": "5"},
    "composition": {"hops": "2", "items": "4", "functions": "3"},
    "recommendation": {"categories": "2", "brands": "2", "numbers": "2", "events": "4", "intents": "2"},
}
"""Settings that make each task small."""
TINY = {"--model.width": "8", "--model.layers": "1", "--model.heads": "1", "--training.steps": "2"}
TINY |= {"--training.batch-size": "4", "--training.save-every": "1", "--training.log-every": "1"}
METHODS = ("direct", "pause", "discrete", "coconut", "cot2")
STARTED = ("mnns/grpo", "mnns-rl/k3-from-cot2", "mnns-rl/dirichlet2-from-cot2", "mnns-rl/k136-from-discrete")

NUMBERS = ["-1", "0", "1", "2", "3", "5", "0.5", "1e-3", "1e30", "1e999", "nan", "-inf", "9" * 25]
WORDS = ["", "None", "True", "abc", "1_0", "٣", "[1]", "{}", "cosine", "--", "-", "\udcff", "a\nb", "x" * 300, "./."]
SOUND = ["1", "2", "3", "4", "5", "8", "0.1", "0.5", "1e-3"]
flag_values = st.one_of(st.sampled_from(SOUND), st.sampled_from(NUMBERS * 2 + WORDS))
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([10**30, -(10**30), 2**63, 1e308, -0.0, 0.5, math.nan, math.inf, -math.inf]),
    st.sampled_from(["", "4", "cot2", "mnns", "\0", "\ud800", "../..", "x" * 300, "1e5", "n3", "yes"]),
    st.text(max_size=6),
    st.sampled_from([[], {}, [[[]]], [1, 2], {"a": 1}, [None], ["n1"]]).map(deepcopy),  # they are changed again
)


@dataclass
class Base:
    """What is made once: finished tiny runs, what they answer, and stored results."""

    runs: dict[str, Path]
    """Folders of finished runs by recipe."""
    flags: dict[str, list[str]]
    """The flags each was trained with."""
    lines: dict[str, Path]
    """Exported problems of the task of each run."""
    answers: dict[str, str]
    """What each run answers to them."""
    results: Path
    """Stored results of a study."""


def tiny_flags(name: str) -> dict[str, str | None]:
    """Flags that make a recipe tiny; those without a value have None."""
    task = recipe(name).task.name
    flags: dict[str, str | None] = {f"--task.{field}": value for field, value in SMALLEST[task].items()}
    flags |= TINY | ({"--task.no-bound": None} if task == "multihop" else {})
    return flags if task == "mnns" else {**flags, "--training.num-train": "40"}


def training_flags(name: str) -> dict[str, str | None]:
    """Those of them that say how to train."""
    return {flag: value for flag, value in tiny_flags(name).items() if flag.startswith("--training")}


def flat(flags: Mapping[str, str | None]) -> list[str]:
    """Flags as words."""
    return [word for pair in flags.items() for word in pair if word is not None]


# ---------------------------------------------------------------------------------------------------------------------
# Damage

BYTES = [b"", b"\0", b"\xff\xfe", b"[" * 3000, b"\n\n", b"{", b"NaN", b"\xef\xbb\xbf", b'"', b"9" * 5000]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON value can be changed."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for name, each in inner for place in places(each, (*path, name)))]


def changed(draw: Draw, value: Any) -> Any:
    """A JSON value with one or two places changed: replaced, left out, added to, or nudged."""
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(places(value)))
        action = draw(st.sampled_from(["replace", "replace", "delete", "add", "nudge"]))
        if not path:
            value = draw(leaves) if action in ("replace", "delete") and draw(st.integers(0, 3)) == 0 else value
            continue
        holder = value
        for name in path[:-1]:
            holder = holder[name]
        old = holder[path[-1]]
        if action == "delete":
            del holder[path[-1]]
        elif action == "add" and isinstance(holder, dict):
            holder[draw(st.text(max_size=5))] = draw(leaves)
        elif action == "add":
            holder.append(draw(leaves))
        elif action == "nudge" and isinstance(old, (int, float)):
            holder[path[-1]] = old + draw(st.sampled_from([1, -1, 0.5, 1000]))
        else:
            holder[path[-1]] = draw(leaves)
    return value


def broken(draw: Draw, data: bytes) -> bytes:
    """Bytes with something cut, replaced, inserted or repeated."""
    place = draw(st.integers(0, max(0, len(data) - 1)))
    more = draw(st.sampled_from(BYTES))
    way = draw(st.sampled_from(["cut", "replace", "insert", "flip", "repeat", "end"]))
    if way == "cut":
        return data[:place]
    if way == "flip" and data:
        return data[:place] + bytes([data[place] ^ 1 << draw(st.integers(0, 7))]) + data[place + 1 :]
    return {
        "replace": data[:place] + more + data[place + len(more) :],
        "insert": data[:place] + more + data[place:],
        "repeat": data + data[place:],
    }.get(way, data + more)


def damage(draw: Draw, path: Path, as_lines: bool = False) -> None:
    """Spoils a file of JSON, or of JSON lines: a value in it, its bytes, or what stands at its path."""
    way = draw(st.sampled_from(["value"] * 6 + ["bytes"] * 3 + ["gone", "folder", "loop"]))
    if way == "value":
        text = path.read_text(encoding="utf-8")
        parts = text.splitlines() if as_lines else [text]
        number = draw(st.integers(0, len(parts) - 1))
        parts[number] = json.dumps(changed(draw, json.loads(parts[number])))
        path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    elif way == "bytes":
        path.write_bytes(broken(draw, path.read_bytes()))
    else:
        path.unlink()
        if way == "folder":
            path.mkdir()
        if way == "loop":
            path.symlink_to(path.name)


# ---------------------------------------------------------------------------------------------------------------------
# What is right


def strict(text: str) -> Any:
    """A JSON value; AssertionError if it is not standard JSON."""

    def no(word: str) -> Any:
        raise AssertionError(f"{word} is not standard JSON")

    return json.loads(text, parse_constant=no)


def each_line(text: str) -> list[Any]:
    """The JSON values of lines."""
    return [strict(line) for line in text.splitlines()]


def slow_answer(task: Any, item: Any) -> Any:
    """The answer to a problem by the task's second solver, as the task says it."""
    row = task.read(item)
    answer, _ = task.solve_slowly(row.tolist())
    return task.say(task.answer_ids(np.array([answer]))[0])


def judged(kind: Any, line: dict[str, Any]) -> None:
    """Asserts that a line of `predict` judges its answer as the second solver does."""
    item = {name: value for name, value in line.items() if name not in ("answer", "right", "id")}
    right = slow_answer(kind.fitting(item), item)
    assert line["right"] is (line["answer"] == right), (line, right)


def nothing(out: str, err: str) -> None:
    """Nothing more is asked than a clean end."""


def standard(out: str, err: str) -> None:
    """What is printed is standard JSON."""
    strict(out)


# ---------------------------------------------------------------------------------------------------------------------
# Folders of runs


def readers(
    draw: Draw, base: Base, name: str, folder: Path, check: Check | None = None, loading: bool = False
) -> tuple[list[str], str, Check]:
    """A command that reads a run's folder, or loads its model, and what must hold if it succeeds."""
    task, elsewhere = recipe(name).task, str(folder / "none")
    predict = ["predict", "--checkpoint", str(folder), "--input", str(base.lines[name])]
    learner = [*flat(training_flags(name)), "--start", str(folder), "--out", str(folder.parent / "out")]
    known = [
        (predict, "predict"),
        (predict, "predict"),
        (["show", task.name, "--checkpoint", str(folder), "--json"], "show"),
        (["show", task.name, "--checkpoint", str(folder)], ""),
        (["run", "mnns/grpo" if task.name == "mnns" else name, *learner, "--json"], "json"),
    ]
    if not loading:
        known += [
            (["run", name, *base.flags[name], "--out", str(folder), "--json"], "json"),
            (["runs", "show", str(folder), "--json"], "json"),
            (["runs", "list", "--folder", str(folder), "--results", elsewhere, "--json"], "json"),
            (["runs", "compare", str(folder), str(base.runs[name]), "--json"], "json"),
            (["status", "--folder", str(folder), "--results", elsewhere, "--json"], "json"),
            (["plot", str(folder), "--output", str(folder.parent / "curves.svg")], ""),
        ]
    words, found = draw(st.sampled_from(known))

    def right(out: str, err: str) -> None:
        if found == "predict":
            for line in each_line(out):
                judged(type(task), line)
        if found == "show":
            value = strict(out)
            assert value["answer"] == slow_answer(type(task).fitting(value["problem"]), value["problem"])
        if found == "json":
            strict(out)
        if check is not None and found == "predict":
            check(out, err)

    return words, "", right


def run_file(file: str, as_lines: bool = False) -> Kind:
    """Damage to a file of a run's folder; * stands for its newest step."""

    def kind(draw: Draw, base: Base, folder: Path) -> tuple[list[str], str, Check]:
        name = draw(st.sampled_from(sorted(base.runs)))
        copy = folder / "run"
        shutil.copytree(base.runs[name], copy)
        damage(draw, max(copy.glob(file)), as_lines)
        return readers(draw, base, name, copy, None if file == "config.json" else same(base.answers[name]))

    return kind


def same(answers: str) -> Check:
    """What is damaged has no part in answers: they are those of the healthy run, or there are none."""

    def check(out: str, err: str) -> None:
        assert out == answers

    return check


def weights(draw: Draw, base: Base, folder: Path) -> tuple[list[str], str, Check]:
    """Damage to the bytes of weights."""
    name = draw(st.sampled_from(sorted(base.runs)))
    copy = folder / "run"
    shutil.copytree(base.runs[name], copy)
    for path in copy.rglob("weights.safetensors"):
        path.write_bytes(broken(draw, path.read_bytes()))
    return readers(draw, base, name, copy, same(base.answers[name]), loading=True)


def results_file(file: str, as_lines: bool = False) -> Kind:
    """Damage to a file of a study's stored results, which are then rebuilt."""

    def kind(draw: Draw, base: Base, folder: Path) -> tuple[list[str], str, Check]:
        copy = folder / "capacity"
        shutil.copytree(base.results, copy)
        vouched = draw(st.booleans()) or file == "provenance.json"
        if not vouched:
            (copy / "provenance.json").unlink()
        damage(draw, copy / file, as_lines)
        table = (base.results / "table.md").read_text(encoding="utf-8")

        def right(out: str, err: str) -> None:
            assert not vouched or (copy / "table.md").read_text(encoding="utf-8") == table, "edited without a word"
            strict((copy / "findings.json").read_text(encoding="utf-8"))

        return ["rebuild", "capacity", "--results", str(folder)], "", right

    return kind
