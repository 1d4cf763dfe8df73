"""Fuzzed lines of problems and answers, files of ProsQA, problems to show, and flags of every command."""

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tinylatent_tasks.answers import AROUND
from tinylatent_tasks.prosqa import read_items

from tests.robustness.inputs import (
    DATA,
    METHODS,
    SMALLEST,
    STARTED,
    Base,
    Check,
    Draw,
    broken,
    changed,
    damage,
    each_line,
    flag_values,
    flat,
    judged,
    nothing,
    slow_answer,
    standard,
    strict,
    tiny_flags,
    training_flags,
)
from tinylatent.core.identity import sealed
from tinylatent.lab.recipes import recipe
from tinylatent.lab.tasks import TASKS
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

LEADS = ("Answer: ", "The answer is ", "**Answer:** ", "Final answer: ")
NOT_ANSWERS = ("maybe", "", "4 or 5", "yes and no", "1_0", "٣", "n1 n2", "not sure", "9" * 40)
wraps = st.one_of(st.sampled_from(AROUND), st.sampled_from([(lead, "") for lead in LEADS]), st.just(("", ".")))
tasks = st.sampled_from(sorted(TASKS))


def small(name: str) -> Any:
    """A small task of this name."""
    kind: Any = TASKS[name]
    return kind(**{field: int(value) for field, value in SMALLEST[name].items()})


def exported(task: Any, count: int, seed: int) -> list[dict[str, Any]]:
    """Lines as `export` writes them."""
    settings = {field.name: getattr(task, field.name) for field in fields(task)}
    rows = task.problems(count, seed).tolist()
    return [
        {"id": number, "task": task.name, "settings": settings, "problem": task.to_json(row), "question": ""}
        for number, row in enumerate(rows)
    ]


def written(path: Path, values: list[Any]) -> Path:
    """A file with a line of JSON for each value."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def spoilt(draw: Draw, path: Path, values: list[Any]) -> Path:
    """The same, one line changed or the bytes damaged."""
    if draw(st.integers(0, 2)) == 0:
        written(path, values).write_bytes(broken(draw, path.read_bytes()))
        return path
    number = draw(st.integers(0, len(values) - 1))
    values = json.loads(json.dumps(values))
    values[number] = changed(draw, values[number])
    return written(path, values)


# ---------------------------------------------------------------------------------------------------------------------
# Answers and items


def answers(draw: Draw, base: Base, folder: Path) -> tuple[list[str], str, Check]:
    """Answers in every dress, right, wrong and none, judged one by one."""
    task = small(draw(tasks))
    items = exported(task, 6, draw(st.integers(0, 99)))
    lines, verdicts = [], {}
    for item in items:
        right = slow_answer(task, item["problem"])
        meant = draw(st.sampled_from(["right", "other", "none", "absent"]))
        bare: Any = right
        if meant == "other":
            single = task.name != "recommendation"
            ids = [[id_] for id_ in range(len(task.vocabulary))] if single else task.answer_ids(range(8))
            bare = draw(st.sampled_from([said for said in map(task.say, ids) if said is not None]))
        value = bare
        if meant == "none":
            value = draw(st.sampled_from(NOT_ANSWERS))
        elif draw(st.booleans()):
            for before, after in draw(st.lists(wraps, max_size=3)):
                value = f"{before}{value}{after}"
        elif isinstance(value, int) and draw(st.booleans()):
            value = float(value)
        if meant != "absent":
            lines.append({"id": item["id"], "answer": value})
        judgement = "right" if bare == right else "wrong"
        verdicts[item["id"]] = {"absent": "missing", "none": "unreadable"}.get(meant, judgement)
    output = folder / "verdicts.jsonl"
    words = ["score", str(written(folder / "items.jsonl", items)), str(written(folder / "answers.jsonl", lines))]
    if not lines:
        return words, "", never

    def right_verdicts(out: str, err: str) -> None:
        assert {line["id"]: line["verdict"] for line in each_line(output.read_text(encoding="utf-8"))} == verdicts
        assert strict(out)["right"] == sum(verdict == "right" for verdict in verdicts.values())

    return [*words, "--json", "--output", str(output)], "", right_verdicts


def never(out: str, err: str) -> None:
    """It must not succeed."""
    raise AssertionError("it succeeded")


def spoilt_score(draw: Draw, base: Base, folder: Path) -> tuple[list[str], str, Check]:
    """Damaged lines of problems or of answers; what can be judged all the same is judged right."""
    task = small(draw(tasks))
    items = exported(task, 3, draw(st.integers(0, 99)))
    said = [{"id": item["id"], "answer": slow_answer(task, item["problem"])} for item in items]
    which = draw(st.sampled_from(["items", "answers"]))
    paths = {"items": folder / "items.jsonl", "answers": folder / "answers.jsonl"}
    for name, values in (("items", items), ("answers", said)):
        (spoilt(draw, paths[name], values) if name == which else written(paths[name], values))

    def right(out: str, err: str) -> None:
        counts = strict(out)
        assert counts["right"] <= 3
        assert sum(counts[name] for name in ("right", "wrong", "unreadable", "missing")) == counts["problems"]

    return ["score", str(paths["items"]), str(paths["answers"]), "--json"], "", right


def predict(draw: Draw, base: Base, folder: Path) -> tuple[list[str], str, Check]:
    """Damaged lines of problems for a model, in a file or in standard input."""
    name = draw(st.sampled_from(sorted(base.runs)))
    lines = [json.loads(line) for line in base.lines[name].read_text(encoding="utf-8").splitlines()]
    if draw(st.booleans()):
        lines = [line["problem"] for line in lines]
    path = spoilt(draw, folder / "in.jsonl", lines)
    words = ["predict", "--checkpoint", str(base.runs[name])]

    def right(out: str, err: str) -> None:
        for line in each_line(out):
            judged(type(recipe(name).task), line)

    if draw(st.booleans()):
        return words, path.read_bytes().decode("utf-8", "surrogateescape"), right
    return [*words, "--input", str(path)], "", right


def prosqa(draw: Draw, base: Base, folder: Path) -> tuple[list[str], str, Check]:
    """A damaged file of ProsQA; what is accepted has the answer that its own graph gives."""
    path = Path(shutil.copy(DATA / "prosqa_small.json", folder))
    values = json.loads(path.read_text(encoding="utf-8"))
    number = draw(st.integers(0, len(values) - 1))
    if draw(st.integers(0, 3)):
        values[number] = changed(draw, values[number])
        path.write_text(json.dumps(values), encoding="utf-8")
    else:
        damage(draw, path)

    def right(out: str, err: str) -> None:
        lines = each_line(out)
        for line, item in zip(lines, read_items(path), strict=True):
            task = TASKS["reachability"](**line["settings"])
            node = slow_answer(task, line["problem"])
            assert line["answer"] == item.symbols[int(node[1:])] == line["symbols"][int(node[1:])]

    return ["prosqa", str(path), "--answers"], "", right


def show(draw: Draw, base: Base, folder: Path) -> tuple[list[str], str, Check]:
    """A problem of any task, whole or changed, as JSON or as numbers."""
    name = draw(tasks)
    task = small(name)
    (row,) = task.problems(1, draw(st.integers(0, 99))).tolist()
    item: Any = draw(st.sampled_from([task.to_json(row), row]))
    if draw(st.integers(0, 3)):
        item = changed(draw, item)
    words = [json.dumps(item)]
    if isinstance(item, list) and draw(st.booleans()):
        words = [str(each) for each in item]
    elif draw(st.integers(0, 5)) == 0:
        words = [broken(draw, words[0].encode()).decode("utf-8", "surrogateescape").replace("\0", "")]

    def right(out: str, err: str) -> None:
        value = strict(out)
        kind: Any = TASKS[name]
        assert value["answer"] == slow_answer(kind.fitting(value["problem"]), value["problem"])
        for step in value["steps"]:
            assert 0.99 < sum(share["oracle"] for share in step["shares"].values()) < 1.001 or len(step["shares"]) > 50

    return ["show", name, *words, "--json"], "", right


# ---------------------------------------------------------------------------------------------------------------------
# Flags


def _fields(prefix: str, value: Any) -> list[str]:
    return [f"--{prefix}.{field.name.replace('_', '-')}" for field in fields(value)]


def export(draw: Draw, base: Base, folder: Path) -> tuple[list[str], str, Check]:
    """Flags of export, settings of the task among them; answers are those of the second solver."""
    name = draw(tasks)
    flags = {"--count": draw(st.sampled_from(["1", "2", "5"])), "--seed": draw(st.sampled_from(["0", "7", "-3"]))}
    flags |= {f"--task.{field}": value for field, value in SMALLEST[name].items()} if draw(st.booleans()) else {}
    for _ in range(draw(st.integers(1, 2))):
        flag = draw(st.sampled_from(["--count", "--seed", "--output", *_fields("task", small(name)) * 2]))
        flags[flag] = draw(flag_values)
    if flags["--count"] in ("1e30", "9" * 25):
        flags["--count"] = "0"
    kind: Any = TASKS[name]

    def right(out: str, err: str) -> None:
        output = None if flags.get("--output") == "None" else flags.get("--output")  # the parser's word for none
        for number, line in enumerate(each_line(out if output is None else Path(output).read_text(encoding="utf-8"))):
            assert line["id"] == number
            assert line["answer"] == slow_answer(kind(**line["settings"]), line["problem"])
        assert number + 1 == int(flags["--count"])

    return ["export", name, *flat(flags), "--answers"], "", right


def run(draw: Draw, base: Base, folder: Path) -> tuple[list[str], str, Check]:
    """Flags of a tiny run: its task, method, model, training and seeds."""
    started = draw(st.integers(0, 4)) == 0
    task_name = draw(st.sampled_from(["mnns", *sorted(TASKS)]))
    name = draw(st.sampled_from(STARTED)) if started else f"{task_name}/{draw(st.sampled_from(METHODS))}"
    usual, flags = recipe(name), tiny_flags(name)
    if started:
        start = "mnns/discrete" if "discrete" in name else "mnns/cot2"
        flags = training_flags(name)
        flags["--start"] = str(base.runs[start])
    known = [*_fields("task", usual.task), *_fields("method", usual.method), *_fields("model", ModelConfig())]
    known += _fields("training", Training()) * 2
    known += [f"--{which}seed" for which in ("", "split-", "init-", "order-", "sampling-")]
    known += ["--device", "--start", "--nosuch"]
    for _ in range(draw(st.integers(1, 3))):
        flag = draw(st.sampled_from(known))
        value = draw(flag_values)
        endless = flag in ("--training.steps", "--training.num-train") and value == "9" * 25
        flags[flag] = "0" if endless else value
    out = folder / "out"

    def right(out_text: str, err: str) -> None:
        record = strict(out_text)
        assert strict((out / "result.json").read_text(encoding="utf-8")) == sealed(record)
        for evaluation in record["evaluations"].values():
            assert all(0 <= right <= total for right, total in zip(evaluation["right"], record["total"], strict=True))
        assert all(strict(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())

    return ["run", name, *flat(flags), "--out", str(out), "--json"], "", right


COMMANDS = {
    "list": ["--json"],
    "frontier": ["--json", "--task.digits", "--task.low", "--task.high", "--task.capacity"],
    "status": ["--json", "--results", "--folder"],
    "claims": ["--names", "--json", "--id", "--profile", "--workers", "--launcher", "--results"],
    "runs": ["list", "find", "show", "compare", "delete", "--json", "--results", "--folder", "--force", "mnns/cot2"],
    "rebuild": ["--all", "--results", "capacity", "nosuch"],
    "reproduce": ["nosuch", "--profile", "--workers", "--launcher", "--results", "--json"],
    "bench": ["--nosuch", "--device", "abacus", "--profile", "nosuch"],
    "score": ["--json", "--output"],
    "prosqa": ["--answers", "--output"],
    "predict": ["--checkpoint", "--input", "--output"],
    "show": ["mnns", "1", "2", "--json", "--seed", "--checkpoint"],
    "export": ["--count", "--seed", "mnns"],
    "run": ["mnns/cot2", "--help", "--seed", "mnns/nosuch", "nosuch/cot2"],
    "plot": ["mnns/cot2", "--output", "x.png", "x.gif", "--results", "--folder"],
    "nosuch": [],
    "--help": [],
    "--version": [],
}
"""Words of every command that do not set off work of minutes by themselves."""


def commands(draw: Draw, base: Base, folder: Path) -> tuple[list[str], str, Check]:
    """Words of any command in any order, with fuzzed ones among them."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    some = st.one_of(st.sampled_from([*COMMANDS[name], "--help"]), flag_values, st.just(str(folder)))
    words = draw(st.lists(some, max_size=4)) if COMMANDS[name] else []
    if name == "claims":
        words.append("--names")
    if name == "run":
        words.append("--nosuch")
    if name in ("reproduce", "bench"):  # neither may begin
        words.append("nosuch" if name == "reproduce" else "--nosuch")
    if name in ("rebuild", "runs", "status"):
        words += ["--results", str(folder)]
    return [name, *words], "", standard if "--json" in words and "--help" not in words and name == "list" else nothing
