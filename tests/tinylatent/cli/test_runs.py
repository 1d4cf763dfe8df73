"""Stored runs by name on the command line: what is printed, what is refused, and with which exit status."""

import json
from dataclasses import replace

import pytest
from locks import locked_elsewhere
from records import evaluation
from stored import put

from tinylatent.cli.main import main
from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.recipes import build
from tinylatent.lab.records import Answered
from tinylatent.methods import GRPO, CoT2, DiscreteCoT

COT2 = [build("mnns", CoT2(), seed) for seed in (0, 3)]
DISCRETE, LONGER = build("mnns", DiscreteCoT(), 3), build("mnns", CoT2(), 3, steps=9900)
RL = replace(build("mnns", GRPO(samples=1), 3), start=COT2[1])
TRAIN = Answered(right=[3, 4], total=[4, 4])


@pytest.fixture
def results(tmp_path):
    """A results folder with three finished runs and one that was stopped."""
    for run in COT2:
        put(tmp_path, run, 90, train=TRAIN)
    put(tmp_path, DISCRETE, 80)
    put(tmp_path, LONGER, step=4400)
    return tmp_path


@pytest.fixture
def told(results, capsys):
    """told(command, words...) runs a command on the results; returns its exit status, its output and its errors."""

    def run(*words):
        capsys.readouterr()
        try:
            status = main([*words, "--results", str(results)])
        except SystemExit as stop:
            status = stop.code
        return (status, *capsys.readouterr())

    return run


# ---------------------------------------------------------------------------------------------------------------------
# Listed and found


def test_runs_are_listed_with_a_line_each(told):
    status, out, _ = told("runs", "list")
    head, *lines = out.splitlines()
    assert (status, len(lines)) == (0, 4)
    assert head.split("  ")[0] == "id"
    for column in ("name", "state", "steps", "accuracy %", "train %", "when", "size"):
        assert column in head
    first = " ".join(lines[0].split())
    assert first.startswith(f"{COT2[0].identity} mnns/cot2 seed=0 finished 9000/9000 90.00 [")
    assert "] 87.50 20" in first
    stopped = f"{LONGER.identity} mnns/cot2 seed=3 training.steps=9900 stopped 4400/9900 2"
    assert " ".join(lines[2].split()).startswith(stopped)


def test_the_list_as_json(told, results):
    found = json.loads(told("runs", "list", "--json")[1])
    assert [each["name"] for each in found][:2] == ["mnns/cot2 seed=0", "mnns/cot2 seed=3"]
    assert [each["state"] for each in found] == ["finished", "finished", "stopped", "finished"]
    assert found[0]["accuracy"]["value"] == pytest.approx(0.9)
    assert (found[0]["train"], found[2]["accuracy"], found[2]["done"], found[2]["work"]) == (7 / 8, None, 4400, 9900)
    assert found[0]["folder"] == str(results / "runs" / COT2[0].identity)


def test_a_long_name_is_cut_in_a_table_only(told, results):
    put(results, replace(RL, training=replace(RL.training, steps=12, batch_size=32, weight_decay=0.1)), 70)
    assert "mnns/grpo seed=3 method.samples=1 training.steps=12 train..." in told("runs", "list")[1]
    assert json.loads(told("runs", "find", "grpo", "--json")[1])[0]["name"].endswith("training.weight_decay=0.1")


def test_an_empty_store_is_said_to_be_empty(tmp_path, capsys):
    assert main(["runs", "list", "--results", str(tmp_path / "none")]) == 0
    assert f"{tmp_path / 'none' / 'runs'} holds no run" in capsys.readouterr().out
    assert main(["runs", "list", "--results", str(tmp_path / "none"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_folders_elsewhere_are_listed_too(told, tmp_path):
    put(None, RL, 70, folder=tmp_path / "mine")
    put(None, RL, 70, folder=tmp_path / "yours")
    status, out, _ = told("runs", "list", "--folder", str(tmp_path / "mine"), "--folder", str(tmp_path / "yours"))
    assert (status, out.count(RL.identity), len(out.splitlines())) == (0, 2, 7)
    status, _, err = told("runs", "list", "--folder", str(tmp_path / "ours"))
    assert (status, "ours holds no run" in err) == (2, True)


def test_an_unreadable_run_is_named_with_the_reason(told, results):
    (results / "runs" / COT2[0].identity / "config.json").write_text("{")
    status, out, _ = told("runs", "list")
    *_, line, reason = out.splitlines()
    assert status == 0
    assert line.split()[:3] == [COT2[0].identity, COT2[0].identity, "unreadable"]
    assert reason.startswith(f"unreadable: {results / 'runs' / COT2[0].identity}: ")
    assert "config.json cannot be read" in reason


def test_words_find_runs(told):
    status, out, _ = told("runs", "find", "cot2", "seed=3")
    assert (status, [line.split()[0] for line in out.splitlines()[1:]]) == (0, [COT2[1].identity, LONGER.identity])
    found = json.loads(told("runs", "find", "training.learning_rate=0.01", "seeds.split=0", "--json")[1])
    assert [each["id"] for each in found] == [COT2[0].identity]


def test_what_is_not_found_is_said_with_exit_status_1(told):
    assert told("runs", "find", "cot2", "seed=7") == (1, "", "tinylatent: no run fits cot2 seed=7\n")
    assert told("runs", "find", "seed=7", "--json") == (1, "[]\n", "tinylatent: no run fits seed=7\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["find"], "find needs words such as mnns/cot2 or seed=3"),
        (["find", "training.lr=1"], "no run has a setting 'training.lr': expected one such as training.batch_size"),
        (["show", "mnns/cot3"], "no run fits 'mnns/cot3': expected 4 or more digits of an id, or a name"),
        (["show", "cot2"], "'cot2' names 3 runs: "),
        (["compare", "seed=0"], "compare needs two or more runs"),
        (["compare", "seed=0", "mnns/cot2 seed=0"], "is named twice: expected two or more different runs"),
        (["compare", "seed=0", "cot2"], "'cot2' names 3 runs: "),
        (["delete"], "delete needs the id or name of a run"),
        (["delete", "seed=7", "--yes"], "no run fits 'seed=7'"),
    ],
)
def test_what_is_refused_is_said_in_a_line(words, said, told, results):
    status, out, err = told("runs", *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert len([*(results / "runs").iterdir()]) == 4


# ---------------------------------------------------------------------------------------------------------------------
# Shown and compared


def test_a_run_is_shown_with_every_setting(told, results):
    status, out, err = told("runs", "show", COT2[1].identity[:6])
    assert "measured elsewhere than here: " in err
    shown = dict(line.split(None, 1) for line in out.splitlines() if line)
    assert status == 0
    assert (shown["name"], shown["state"]) == ("mnns/cot2 seed=3", "finished")
    assert shown["folder"] == str(results / "runs" / COT2[1].identity)
    assert (shown["training.learning_rate"], shown["training.schedule"]) == ("0.01", "cosine")
    assert (shown["training.num_train"], shown["model.dropout"], shown["task.digits"]) == ("none", "0", "4")
    found = json.loads(told("runs", "show", "mnns/cot2 seed=3", "--json")[1])
    assert (found["id"], found["settings"]["training.num_train"]) == (COT2[1].identity, None)
    assert found["settings"].keys() == shown.keys() & found["settings"].keys()


def test_a_run_is_named_by_any_path_to_its_folder(told, results, monkeypatch):
    """As tab completion writes it, or from elsewhere."""
    folder = results / "runs" / COT2[1].identity
    monkeypatch.chdir(results)
    for name in (f"{folder}/", f"runs/{COT2[1].identity}/", f"./runs/../runs/{COT2[1].identity}"):
        status, out, _ = told("runs", "show", name)
        assert (status, out.splitlines()[1].split()) == (0, ["name", "mnns/cot2", "seed=3"]), name


def test_an_unreadable_run_is_shown_with_the_reason(told, results):
    (results / "runs" / COT2[0].identity / "config.json").write_text("{")
    status, out, _ = told("runs", "show", COT2[0].identity)
    assert status == 0
    assert "unreadable" in out.splitlines()[2]
    assert "config.json cannot be read" in out


def test_runs_are_compared_side_by_side(told):
    status, out, _ = told("runs", "compare", "mnns/cot2 seed=3", "discrete", "training.steps=9900")
    shown = {line[:20].strip(): line[20:].split() for line in out.splitlines()}
    assert status == 0
    assert shown["id"] == [COT2[1].identity, DISCRETE.identity, LONGER.identity]
    assert shown["method.name"] == ["cot2", "discrete", "cot2"]
    assert shown["training.steps"] == ["9000", "9000", "9900"]
    assert shown["method.prefix"] == ["teacher", "-", "teacher"]
    assert shown["train %"] == ["87.50", "-", "-"]
    assert shown["majority baseline %"][:2] == ["40.00", "40.00"]
    assert shown["minus the first"][:3] == ["-", "-10.00", "points"]
    assert "no difference" not in out


def test_a_comparison_on_other_problems_gives_no_difference(told, results):
    put(results, build("mnns", CoT2(), 4), 85, keys=[f"other {key}" for key in range(10)])
    out = told("runs", "compare", "seed=0", "seed=4")[1]
    assert out.splitlines()[-1].startswith("no difference is given where a run was not validated on the very problems")
    assert out.splitlines()[-3].split() == ["minus", "the", "first", "-", "-"]


def test_a_comparison_as_json(told):
    found = json.loads(told("runs", "compare", "mnns/cot2 seed=3", "discrete", "--json")[1])
    assert found["settings"]["method.name"] == ["cot2", "discrete"]
    first, second = found["runs"]
    assert (first["minus_first"], second["minus_first"]["value"]) == (None, pytest.approx(-0.1))
    assert (first["train"], first["majority_baseline"], second["train"]) == (7 / 8, 0.4, None)


def test_stored_intervals_are_shown_as_they_were_stored(told, results):
    own = replace_accuracy(evaluation(90), Interval(0.9, 0.85, 0.93, "as stored"))
    put(results, build("mnns", CoT2(), 4), 90, evaluations={"default": own})
    assert "90.00 [85.00, 93.00]" in told("runs", "find", "seed=4")[1]


def replace_accuracy(found, interval):
    """An evaluation with an interval of its own."""
    return type(found)(**{**{name: getattr(found, name) for name in found.__struct_fields__}, "accuracy": interval})


# ---------------------------------------------------------------------------------------------------------------------
# Deleted


def test_nothing_is_deleted_without_yes(told, results):
    status, out, err = told("runs", "delete", "mnns/cot2 seed=0", "stopped")
    assert status == 2
    assert [line.split()[:3] for line in out.splitlines()] == [
        ["would", "delete", COT2[0].identity],
        ["would", "delete", LONGER.identity],
    ]
    assert "nothing was deleted: add --yes to delete these 2 runs, of 4 there are" in err
    assert len([*(results / "runs").iterdir()]) == 4


def test_runs_are_deleted_with_yes(told, results):
    status, out, _ = told("runs", "delete", COT2[0].identity[:4], "cot2 seed=0", "stopped", "--yes")
    assert (status, len(out.splitlines())) == (0, 2)
    assert all(line.startswith("deleted  ") for line in out.splitlines())
    assert {path.name for path in (results / "runs").iterdir()} == {COT2[1].identity, DISCRETE.identity}


def test_what_another_run_starts_from_is_kept_unless_forced(told, results):
    put(results, RL, 70)
    status, out, err = told("runs", "delete", COT2[1].identity, "--yes")
    assert (status, out) == (2, "")
    assert f"starts from {COT2[1].identity}" in err
    assert told("runs", "delete", COT2[1].identity, "--yes", "--force")[0] == 0
    assert {path.name for path in (results / "runs").iterdir()} >= {RL.identity, DISCRETE.identity}
    assert not (results / "runs" / COT2[1].identity).exists()


def test_a_run_in_training_is_never_deleted(told, results):
    """Nor is any other that is named beside it."""
    with locked_elsewhere(results / "runs" / LONGER.identity):
        status, out, err = told("runs", "delete", "seed=0", "training.steps=9900", "--yes", "--force")
    assert (status, out) == (2, "")
    assert "is being trained: stop that first" in err
    assert len([*(results / "runs").iterdir()]) == 4


# ---------------------------------------------------------------------------------------------------------------------
# Status


def test_status_tells_what_is_in_training(told, results):
    with locked_elsewhere(results / "runs" / LONGER.identity):
        status, out, _ = told("status")
        found = json.loads(told("status", "--json")[1])
    lines = out.splitlines()
    assert (status, lines[0]) == (0, "in training")
    assert lines[2].split() == [
        LONGER.identity,
        *("mnns/cot2", "seed=3", "training.steps=9900", "4400/9900", "0.5000", "10.0", "9.2"),
    ]
    (training,) = found["training"]
    assert (training["done"], training["work"], training["loss"], training["steps_per_s"]) == (4400, 9900, 0.5, 10.0)
    assert training["seconds_left"] == 550
    assert told("status")[1].startswith("in training: nothing\n")


def test_runs_where_the_readme_keeps_them_are_found(told, results, tmp_path_factory, monkeypatch):
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    assert "runs/mine" not in told("runs", "list")[1]
    (here / "runs").mkdir()
    (results / "runs" / DISCRETE.identity).rename(here / "runs" / "mine")
    found = json.loads(told("runs", "list", "--json")[1])
    assert [each["folder"] for each in found if each["id"] == DISCRETE.identity] == ["runs/mine"]
    with locked_elsewhere(here / "runs" / "mine"):
        assert DISCRETE.identity in told("status")[1]
    assert "runs/mine" not in told("runs", "list", "--folder", str(results / "runs"), "--json")[1]


def test_status_of_a_run_that_has_just_begun(told, results):
    with locked_elsewhere(results / "runs" / "0123456789ab"):
        lines = told("status")[1].splitlines()
    assert lines[2].split() == ["0123456789ab", "0123456789ab", "0/?"]


@pytest.mark.slow
def test_status_tells_how_far_studies_are(told, results):
    path = results / "runs" / "quick" / "mnns" / "runs.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"study": "mnns", "profile": "quick"}\n' * 3)
    (line,) = (line.split() for line in told("status")[1].splitlines() if line.startswith("mnns "))
    found = {each["study"]: each for each in json.loads(told("status", "--json")[1])["studies"]}
    full = found["mnns"]["full"]
    assert full["finished"] == 3
    assert line[3:] == [f"3/{full['grid']}", "-"]
    assert line[2] == "3"
    assert found["mnns"]["quick"]["written"] == 3
    assert found["mnns-rl"]["full"]["finished"] == 0
    path.write_text('{"study": "mnns", "profile": "quick"}\n{"study"')
    (line,) = (line.split() for line in told("status")[1].splitlines() if line.startswith("mnns "))
    assert line[2] == "damaged"


def test_status_tells_the_environment(told):
    found = json.loads(told("status", "--json")[1])["environment"]
    assert {"commit", "python", "torch", "machine", "cuda"} <= found.keys()
    out = told("status")[1]
    assert all(value in out for value in found.values())
