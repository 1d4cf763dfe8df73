"""Problems as text: what is exported can be answered by anyone and is judged by the task's own oracle."""

import io
import json
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tinylatent.cli.main import main
from tinylatent.cli.text import CHUNK, Export
from tinylatent.lab.tasks import TASKS

TINY = ["--task.hops", "2", "--task.nodes", "5", "--task.capacity", "3", "--task.no-bound"]
TINY += ["--model.width", "8", "--model.layers", "1", "--model.heads", "1"]
PROSQA = Path(__file__).parents[2] / "data/prosqa_small.json"
SHORT = ["--training.steps", "12", "--training.batch-size", "4", "--training.num-train", "64"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


@pytest.mark.parametrize("name", TASKS)
def test_right_answers_of_every_task_score_everything(name, tmp_path, capsys):
    items = tmp_path / "items.jsonl"
    assert main(["export", name, "--count", "20", "--seed", "4", "--answers", "--output", str(items)]) == 0
    task, exported = TASKS[name](), lines(items)
    assert [each["problem"] for each in exported] == [task.to_json(row) for row in task.problems(20, 4).tolist()]
    assert all(each["question"] for each in exported)
    answers = [{"id": each["id"], "answer": each["answer"]} for each in reversed(exported)]
    assert main(["score", str(items), write(tmp_path / "answers.jsonl", answers), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["right"], figures["problems"], figures["accuracy"]) == (20, 20, 1.0)
    assert figures["low"] < 1.0


def test_the_same_problems_without_their_answers(capsys):
    assert main(["export", "multihop", "--count", "3"]) == 0
    items = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["id"] for each in items] == [0, 1, 2]
    assert all("answer" not in each for each in items)
    assert items[0]["settings"] == {"hops": 3, "least": 1, "nodes": 8, "branching": 1, "bound": False, "capacity": None}


def test_wrong_unreadable_and_missing_answers_are_told_apart(tmp_path, capsys):
    items = tmp_path / "items.jsonl"
    assert main(["export", "subset-sum", "--count", "4", "--answers", "--output", str(items)]) == 0
    truth = [each["answer"] for each in lines(items)]
    wrong = "no" if truth[1] == "yes" else "yes"
    answers = [{"id": 0, "answer": truth[0].upper() + "."}, {"id": 1, "answer": wrong}, {"id": 2, "answer": "maybe"}]
    answers.append({"id": 3, "answer": None})
    verdicts = tmp_path / "verdicts.jsonl"
    assert main(["score", str(items), write(tmp_path / "a.jsonl", answers), "--output", str(verdicts)]) == 0
    assert [each["verdict"] for each in lines(verdicts)] == ["right", "wrong", "unreadable", "missing"]
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("25.00 %")
    assert out[1] == "1 right, 1 wrong, 1 unreadable, 1 missing"


BAD = {
    "no id": ([{"answer": "yes"}], 'a.jsonl, line 1 has no "id"'),
    "twice": ([{"id": 0, "answer": "yes"}, {"id": 0, "answer": "no"}], "line 2: the id 0 stands there twice"),
    "stranger": ([{"id": 7, "answer": "yes"}], "line 1: the id 7 is not among the 2"),
    "not an object": ([3], "line 1 has no"),
    "empty": ([], "is empty"),
    "truth for an id": ([{"id": True, "answer": "yes"}], "line 1 has no"),
    "not a number": ([{"id": 0, "answer": math.nan}], "line 1 is not JSON (it knows no NaN)"),
}


@pytest.mark.parametrize(("answers", "message"), BAD.values(), ids=BAD)
def test_bad_answer_files_are_one_line_and_nothing_is_written(answers, message, tmp_path, capsys):
    items, verdicts = tmp_path / "items.jsonl", tmp_path / "verdicts.jsonl"
    assert main(["export", "subset-sum", "--count", "2", "--output", str(items)]) == 0
    capsys.readouterr()
    assert main(["score", str(items), write(tmp_path / "a.jsonl", answers), "--output", str(verdicts)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not verdicts.exists()


DAMAGED = {
    "task": {"task": "sums"},
    "settings": {"settings": {"digits": 99}},
    "settings name": {"settings": {"bits": 4}},
    "problem": {"problem": {"digits": [1, 2, 3]}},
    "symbols": {"symbols": 3},
    "symbols of no story": {"symbols": ["a", "b"]},
    "settings' type": {"settings": [1]},
    "task's type": {"task": ["mnns"]},
    "problem's type": {"problem": {"digits": [1, 2, 3, 4.5]}},
}


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED)
def test_damaged_items_are_named(change, tmp_path, capsys):
    items = tmp_path / "items.jsonl"
    assert main(["export", "mnns", "--count", "2", "--output", str(items)]) == 0
    first, second = lines(items)
    capsys.readouterr()
    write(items, [first, second | change])
    assert main(["score", str(items), write(tmp_path / "a.jsonl", [{"id": 0, "answer": 1}])]) == 2
    error = capsys.readouterr().err
    assert "items.jsonl, line 2" in error
    assert len(error.splitlines()) == 1


@pytest.fixture(scope="module")
def hopping(tmp_path_factory):
    """A finished run of a tiny CoT2 on multi-hop lookup; read-only for tests."""
    folder = tmp_path_factory.mktemp("text") / "run"
    assert main(["run", "multihop/cot2", "--out", str(folder), *TINY, *SHORT]) == 0
    return folder


def test_a_model_answers_exported_problems_of_any_length_within_its_capacity(hopping, tmp_path, capsys):
    items, answers = tmp_path / "items.jsonl", tmp_path / "answers.jsonl"
    longer = ["--task.hops", "3", "--task.least", "3", "--task.nodes", "5"]
    assert main(["export", "multihop", "--count", "5", *longer, "--output", str(items)]) == 0
    assert main(["predict", "--checkpoint", str(hopping), "--input", str(items), "--output", str(answers)]) == 0
    assert [each["id"] for each in lines(answers)] == list(range(5))
    assert main(["score", str(items), str(answers), "--json"]) == 0
    right = json.loads(capsys.readouterr().out.splitlines()[-1])["right"]
    assert right == sum(each["right"] for each in lines(answers))
    assert main(["show", "multihop", json.dumps(lines(items)[0]["problem"]), "--checkpoint", str(hopping)]) == 0
    assert "step 3" in capsys.readouterr().out


def test_a_model_is_not_asked_problems_of_another_task(hopping, tmp_path, refused):
    items = tmp_path / "items.jsonl"
    assert main(["export", "mnns", "--count", "1", "--output", str(items)]) == 0
    error = refused(["predict", "--checkpoint", str(hopping), "--input", str(items)])
    assert "line 1 is a problem of 'mnns', but the model was trained on multihop" in error


def test_a_model_is_not_asked_in_tokens_it_does_not_know(hopping, tmp_path, refused):
    items = tmp_path / "items.jsonl"
    assert main(["export", "multihop", "--count", "1", "--task.nodes", "6", "--output", str(items)]) == 0
    assert "line 1: its settings make other tokens" in refused(
        ["predict", "--checkpoint", str(hopping), "--input", str(items)]
    )


def test_predict_answers_every_line(run_folder, tmp_path, capsys, monkeypatch):
    problems = [[1, 2], {"digits": [4, 4]}, [3, 1]]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(map(json.dumps, problems)) + "\n\n")
    words = ["predict", "--checkpoint", str(run_folder)]
    assert main([*words, "--input", str(source), "--output", str(target)]) == 0
    assert "wrote 3 lines to" in capsys.readouterr().err
    answers = lines(target)
    assert [answer["digits"] for answer in answers] == [[1, 2], [4, 4], [3, 1]]
    assert [answer["right"] for answer in answers] == [
        answer["answer"] == abs(a - b) for answer, (a, b) in zip(answers, [(1, 2), (4, 4), (3, 1)], strict=True)
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO(source.read_text()))
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().out == target.read_text()


def test_predict_writes_nothing_when_a_line_is_bad(run_folder, tmp_path, refused):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('[1, 2]\n{"digits": [1, 99]}\n')
    words = ["predict", "--checkpoint", str(run_folder), "--input", str(source), "--output", str(target)]
    assert "in.jsonl, line 2" in refused(words)
    assert not target.exists()


def test_predict_needs_a_run(refused):
    assert "/nonexistent holds no run" in refused(["predict", "--checkpoint", "/nonexistent"])


def test_an_input_that_is_not_text_is_named(run_folder, tmp_path, refused):
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\xff[1, 2]")
    words = ["predict", "--checkpoint", str(run_folder), "--input", str(source)]
    assert "in.jsonl is not UTF-8" in refused(words)
    source.write_bytes(b"\xef\xbb\xbf[1, 2]")
    assert main(words) == 0


def test_a_story_without_some_names_is_refused(tmp_path, capsys):
    items = tmp_path / "items.jsonl"
    assert main(["prosqa", str(PROSQA), "--output", str(items)]) == 0
    first, *others = lines(items)
    twice = first | {"symbols": [*first["symbols"][:-1], first["symbols"][0].upper()]}
    write(items, [twice, *others])
    assert main(["score", str(items), write(tmp_path / "a.jsonl", [{"id": 0, "answer": "x"}])]) == 2
    assert "expected another name for every node" in capsys.readouterr().err
    write(items, [first | {"symbols": ["Ada"]}, *others])
    assert main(["score", str(items), write(tmp_path / "a.jsonl", [{"id": 0, "answer": "x"}])]) == 2
    assert "line 1: symbols is ['Ada']; expected the name of every node" in capsys.readouterr().err


def test_export_refuses_no_problems(capsys):
    assert main(["export", "mnns", "--count", "0"]) == 2
    assert "count is 0" in capsys.readouterr().err


def test_export_names_the_tasks_there_are(refused):
    assert "unknown task 'nosuch': expected one of arithmetic, composition, mnns" in refused(["export", "nosuch"])


def test_a_billion_problems_stream(capsys):
    """The lines are made as they are read, and a small export is the beginning of a large one."""
    some = Export(TASKS["multihop"](), count=10**9)._lines()
    assert main(["export", "multihop", "--count", str(CHUNK + 3)]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert json.loads(line) == next(some)


def test_lines_that_will_not_fit_on_the_disk_are_refused_after_the_first(tmp_path, monkeypatch, refused):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    target = tmp_path / "items.jsonl"
    assert "all lines need about 3" in refused(["export", "mnns", "--count", "100000000", "--output", str(target)])
    assert not [*tmp_path.iterdir()]


def test_published_items_are_asked_in_words_and_judged_by_their_graph(tmp_path, capsys):
    items = tmp_path / "items.jsonl"
    assert main(["prosqa", str(PROSQA), "--answers", "--output", str(items)]) == 0
    exported, published = lines(items), json.loads(PROSQA.read_text())
    assert [each["question"] for each in exported] == [each["question"] for each in published]
    said = [{"id": number, "answer": each["answer"]} for number, each in enumerate(published)]
    said[1]["answer"] = exported[1]["answer"]
    said[2]["answer"] = published[2]["idx_to_symbol"][published[2]["neg_target"]].upper()
    said[3]["answer"] = published[3]["answer"].replace(" is ", " is not ")
    said[4]["answer"] = "Nobody is a " + published[4]["answer"].split()[-1]
    said[0]["answer"] = f"**Answer:** *{published[0]['answer']}*"
    verdicts = tmp_path / "verdicts.jsonl"
    assert main(["score", str(items), write(tmp_path / "a.jsonl", said), "--output", str(verdicts)]) == 0
    assert [each["verdict"] for each in lines(verdicts)] == ["right", "right", "wrong", "unreadable", "unreadable"]


def test_a_bad_item_is_named_and_nothing_is_written(tmp_path, capsys):
    published, target = json.loads(PROSQA.read_text()), tmp_path / "items.jsonl"
    del published[3]["edges"]
    source = tmp_path / "bad.json"
    source.write_text(json.dumps(published))
    assert main(["prosqa", str(source), "--output", str(target)]) == 2
    error = capsys.readouterr().err
    assert "bad.json, item 3: the field 'edges' is missing" in error
    assert len(error.splitlines()) == 1
    assert not target.exists()


# ---------------------------------------------------------------------------------------------------------------------
# Outputs and inputs


def copied(kind, source, target):
    """Another name of a file: the same path written otherwise, a hard link or a symbolic one."""
    if kind == "path":
        return source.parent / ".." / source.parent.name / source.name
    if kind == "folder that is not there":
        return source.parent / "nowhere" / ".." / source.name
    (target.symlink_to if kind == "symlink" else target.hardlink_to)(source)
    return target


@pytest.mark.parametrize("kind", ["path", "folder that is not there", "hardlink", "symlink"])
@pytest.mark.parametrize("command", ["score items", "score answers", "prosqa", "predict", "predict in folder"])
def test_no_output_overwrites_what_is_read(command, kind, tmp_path, run_folder, refused):
    items = tmp_path / "items.jsonl"
    assert main(["export", "mnns", "--count", "2", "--task.digits", "2", "--output", str(items)]) == 0
    answers = Path(write(tmp_path / "answers.jsonl", [{"id": 0, "answer": 1}]))
    story = Path(shutil.copy(PROSQA, tmp_path))
    source, words = {
        "score items": (items, ["score", str(items), str(answers)]),
        "score answers": (answers, ["score", str(items), str(answers)]),
        "prosqa": (story, ["prosqa", str(story)]),
        "predict": (items, ["predict", "--checkpoint", str(run_folder), "--input", str(items)]),
        "predict in folder": (run_folder / "config.json", ["predict", "--checkpoint", str(run_folder)]),
    }[command]
    before = source.read_bytes()
    output = copied(kind, source, tmp_path / "other.jsonl") if "folder" not in command else source
    error = refused([*words, "--output", str(output), "--overwrite"])
    assert "which is read: name another file" in error
    assert source.read_bytes() == before


def test_an_output_that_is_a_loop_of_links_is_refused(tmp_path, refused):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert "a link leads to itself" in refused(["export", "mnns", "--output", str(tmp_path / "a"), "--overwrite"])


def test_no_output_overwrites_standard_input(tmp_path, run_folder, monkeypatch, refused):
    source = tmp_path / "in.jsonl"
    source.write_text("[1, 2]\n")
    with source.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        words = ["predict", "--checkpoint", str(run_folder), "--output", str(source), "--overwrite"]
        assert "would overwrite standard input" in refused(words)
    assert source.read_text() == "[1, 2]\n"


def test_an_output_that_exists_is_replaced_only_when_told(tmp_path, refused, capsys):
    target = tmp_path / "items.jsonl"
    target.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(target)
    words = ["export", "mnns", "--count", "2", "--output", str(link)]
    assert "link exists: name another file, or add --overwrite" in refused(words)
    assert target.read_text() == "mine"
    assert main([*words, "--overwrite"]) == 0
    assert link.is_symlink()
    assert len(lines(target)) == 2
    assert "wrote 2 lines to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("", "is a folder: name a file in it"),
        ("folder", "is a folder: name a file in it"),
        ("nowhere/items.jsonl", "there is no folder"),
        ("items.jsonl/more", "there is no folder"),
        ("pipe", "is no ordinary file"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(output, message, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("items.jsonl").write_text("mine")
    os.mkfifo("pipe")
    before = sorted(tmp_path.rglob("*"))
    words = ["export", "mnns", "--count", "1000000000000", "--output", output, "--overwrite"]
    assert message in refused(words)
    assert sorted(tmp_path.rglob("*")) == before


JSON_THAT_IS_NONE = {
    "[1, 2": "is not JSON",
    "[1, NaN]": "it knows no NaN",
    "[1, -Infinity]": "it knows no -Infinity",
    "[1, 1e999]": "1e999 is too large a number",
    "9" * 5000: "an integer of thousands of digits",
    '{"digits": [1, 2], "digits": [1, 3]}': "the name 'digits' stands there twice",
    "[" * 100_000: "nested too deeply",
    '{"digits": [1, 2], "id": null}': 'has no "id", or one that is no integer or string',
    '{"digits": [1, 2], "id": [1]}': 'has no "id", or one that is no integer or string',
}


@pytest.mark.parametrize(("line", "message"), JSON_THAT_IS_NONE.items(), ids=range(len(JSON_THAT_IS_NONE)))
def test_lines_that_are_no_standard_json_are_named(line, message, run_folder, tmp_path, refused):
    source = tmp_path / "in.jsonl"
    source.write_text("[1, 2]\n" + line)
    error = refused(["predict", "--checkpoint", str(run_folder), "--input", str(source)])
    assert "in.jsonl, line 2" in error
    assert message in error


def test_nothing_in_standard_input_is_said(run_folder, monkeypatch, refused):
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n\n"))
    assert "standard input is empty" in refused(["predict", "--checkpoint", str(run_folder)])


# ---------------------------------------------------------------------------------------------------------------------
# What looks like a mistake


def test_answers_that_cannot_be_read_are_pointed_out(tmp_path, capsys):
    items = tmp_path / "items.jsonl"
    assert main(["export", "mnns", "--count", "4", "--output", str(items)]) == 0
    capsys.readouterr()
    said = [{"id": 0, "answer": 3}, {"id": 1, "answer": "about 2"}, {"id": 2, "answer": "4 or so"}]
    assert main(["score", str(items), write(tmp_path / "a.jsonl", said)]) == 0
    error = capsys.readouterr().err
    assert "2 of 3 answers cannot be read, the first in" in error
    assert "line 2: the answer is 'about 2'; expected an integer from -36 to 36" in error


def test_answers_that_are_all_wrong_are_pointed_out(tmp_path, capsys):
    items = tmp_path / "items.jsonl"
    assert main(["export", "mnns", "--count", "4", "--output", str(items)]) == 0
    capsys.readouterr()
    assert main(["score", str(items), write(tmp_path / "a.jsonl", [{"id": i, "answer": -1} for i in range(4)])]) == 0
    out, error = capsys.readouterr()
    assert "none of 4 answers is right: are they answers to the problems of" in error
    assert out.startswith("0.00 %")


def test_answers_that_bring_other_problems_are_refused(tmp_path, refused):
    items = tmp_path / "items.jsonl"
    assert main(["export", "mnns", "--count", "2", "--output", str(items)]) == 0
    said = [{"id": 1, "digits": [1, 1, 1, 1], "answer": 0, "right": True}]
    error = refused(["score", str(items), write(tmp_path / "a.jsonl", said)])
    assert "a.jsonl, line 1: it answers another problem than 1 is" in error
