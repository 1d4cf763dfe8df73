"""Problems as text: what is exported can be answered by anyone and is judged by the task's own oracle."""

import io
import json
from pathlib import Path

import pytest

from tinylatent.cli.main import main
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
    write(items, [first | {"symbols": ["Ada"]}, *others])
    assert main(["score", str(items), write(tmp_path / "a.jsonl", [{"id": 0, "answer": "x"}])]) == 2
    assert "line 1: symbols is ['Ada']; expected the name of every node" in capsys.readouterr().err


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
