"""Problems as text: what is exported can be answered by anyone and is judged by the task's own oracle."""

import json
from pathlib import Path

import pytest

from tasks import REGISTRY
from tinylatent.cli.main import main
from tinylatent.lab import measure

TINY = ["--task.hops", "2", "--task.nodes", "5", "--task.room", "3", "--shape.width", "8", "--shape.layers", "1"]
PROSQA = Path(__file__).parents[2] / "data/prosqa_small.json"
SHORT = ["--training.steps", "12", "--training.batch", "4", "--training.problems", "64", "--shape.heads", "1"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


@pytest.mark.parametrize("name", REGISTRY)
def test_right_answers_of_every_task_score_everything(name, tmp_path, capsys):
    items = tmp_path / "items.jsonl"
    assert main(["export", name, "--count", "20", "--seed", "4", "--answers", "--output", str(items)]) == 0
    task, exported = REGISTRY[name](), lines(items)
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
    assert items[0]["settings"] == {"hops": 3, "least": 1, "nodes": 8, "branching": 1, "bound": False, "room": None}


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
}


@pytest.mark.parametrize(("answers", "message"), BAD.values(), ids=BAD)
def test_bad_answer_files_are_one_line_and_nothing_is_written(answers, message, tmp_path, capsys):
    items, verdicts = tmp_path / "items.jsonl", tmp_path / "verdicts.jsonl"
    assert main(["export", "subset-sum", "--count", "2", "--output", str(items)]) == 0
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
    write(items, [first, second | change])
    assert main(["score", str(items), write(tmp_path / "a.jsonl", [{"id": 0, "answer": 1}])]) == 2
    error = capsys.readouterr().err
    assert "items.jsonl, line 2" in error
    assert len(error.splitlines()) == 1


def test_a_model_answers_exported_problems_of_any_length_it_has_room_for(tmp_path, capsys):
    run, items, answers = tmp_path / "run", tmp_path / "items.jsonl", tmp_path / "answers.jsonl"
    assert main(["run", "cot2", "multihop", "--out", str(run), *TINY, *SHORT]) == 0
    longer = ["--task.hops", "3", "--task.least", "3", "--task.nodes", "5"]
    assert main(["export", "multihop", "--count", "5", *longer, "--output", str(items)]) == 0
    words = ["predict", "--checkpoint", str(run), "--input", str(items), "--output", str(answers)]
    assert main(words) == 0
    assert [each["id"] for each in lines(answers)] == list(range(5))
    assert main(["score", str(items), str(answers), "--json"]) == 0
    right = json.loads(capsys.readouterr().out.splitlines()[-1])["right"]
    assert right == sum(each["right"] for each in lines(answers))
    assert main(["show", "multihop", json.dumps(lines(items)[0]["problem"]), "--checkpoint", str(run)]) == 0
    assert "step 3" in capsys.readouterr().out


def test_a_model_is_not_asked_problems_of_another_task(tmp_path, capsys):
    run, items = tmp_path / "run", tmp_path / "items.jsonl"
    assert main(["run", "cot2", "multihop", "--out", str(run), *TINY, *SHORT]) == 0
    assert main(["export", "mnns", "--count", "1", "--output", str(items)]) == 0
    assert main(["predict", "--checkpoint", str(run), "--input", str(items)]) == 2
    assert "line 1 is a problem of 'mnns', but the model was trained on multihop" in capsys.readouterr().err


def test_a_model_is_not_asked_in_tokens_it_does_not_know(tmp_path, capsys):
    run, items = tmp_path / "run", tmp_path / "items.jsonl"
    assert main(["run", "cot2", "multihop", "--out", str(run), *TINY, *SHORT]) == 0
    assert main(["export", "multihop", "--count", "1", "--task.nodes", "6", "--output", str(items)]) == 0
    assert main(["predict", "--checkpoint", str(run), "--input", str(items)]) == 2
    assert "line 1: its settings make other tokens" in capsys.readouterr().err


def test_a_story_without_some_names_is_refused(tmp_path, capsys):
    items = tmp_path / "items.jsonl"
    assert main(["prosqa", str(PROSQA), "--output", str(items)]) == 0
    first, *others = lines(items)
    write(items, [first | {"symbols": ["Ada"]}, *others])
    assert main(["score", str(items), write(tmp_path / "a.jsonl", [{"id": 0, "answer": "x"}])]) == 2
    assert "line 1: symbols is ['Ada']; expected the name of every node" in capsys.readouterr().err


def test_room_that_the_task_cannot_fill_is_refused_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "RUNG", 20)
    words = ["run", "direct", "reachability", "--out", str(tmp_path / "run"), "--task.room", "5", *SHORT[:6]]
    assert main([*words, "--shape.width", "8"]) == 2
    error = capsys.readouterr().err
    assert "at difficulty 5, for which room was given, only 0 of" in error
    assert not list(tmp_path.glob("run/step*"))


def test_export_refuses_no_problems(capsys):
    assert main(["export", "mnns", "--count", "0"]) == 2
    assert "count is 0" in capsys.readouterr().err


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
