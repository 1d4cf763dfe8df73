"""The command line: what it prints, and that every user's error is one clear line and a non-zero exit."""

import io
import json

import pytest

from tinylatent.cli import commands
from tinylatent.cli import main as cli
from tinylatent.cli.main import main, one_line, parse
from tinylatent.core.seeds import Seeds

TINY = ["--task.digits", "2", "--task.high", "4", "--shape.width", "8", "--shape.layers", "1", "--shape.heads", "1"]
SHORT = ["--training.steps", "12", "--training.batch", "4", "--training.save-every", "5"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A finished run of a tiny CoT2."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["run", "cot2", "--out", str(folder), *TINY, *SHORT]) == 0
    return folder


def test_every_command_has_help(capsys):
    for name in ("list", "run", "reproduce", "show", "predict", "bench", "frontier"):
        with pytest.raises(SystemExit) as stop:
            parse([name, "--help"])
        assert not stop.value.code
        assert name in capsys.readouterr().out


def test_list_as_text_and_json(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert main(["list", "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)
    assert set(groups) == {"tasks", "methods", "controls", "studies"}
    assert {"direct", "pause", "discrete", "cot2"} <= set(groups["methods"])
    assert all(name in text for entries in groups.values() for name in entries)


def test_show_prints_the_exact_frontier(capsys):
    assert main(["show", "mnns", "3", "5", "2", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "answer      +2" in lines
    assert "step 2      -8: 0.25, -2: 0.25, +2: 0.25, +8: 0.25" in lines


def test_show_beside_a_model(run_folder, capsys):
    assert main(["show", "mnns", "3", "1", "--checkpoint", str(run_folder), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["steps"][0]["shares"]["+3"]["oracle"] == 0.5
    for step in shown["steps"]:
        assert sum(share["model"] for share in step["shares"].values()) == pytest.approx(1, abs=0.05)
        assert sum(share["oracle"] for share in step["shares"].values()) == pytest.approx(1, abs=1e-6)
    assert main(["show", "mnns", "3", "1", "--checkpoint", str(run_folder)]) == 0
    assert "oracle   cot2" in capsys.readouterr().out


def test_show_json_is_json_where_a_method_skips_steps(tmp_path, capsys):
    assert main(["run", "direct", "--out", str(tmp_path / "run"), *TINY, *SHORT]) == 0
    capsys.readouterr()
    assert main(["show", "mnns", "3", "1", "--checkpoint", str(tmp_path / "run"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert ["model" in share for step in shown["steps"] for share in step["shares"].values()][:2] == [False, False]
    assert main(["show", "mnns", "3", "1", "--checkpoint", str(tmp_path / "run")]) == 0
    assert "nan" not in capsys.readouterr().out


def test_seeds_can_be_varied_alone(tmp_path):
    words = ["run", "cot2", "--out", str(tmp_path), "--seed", "3", "--init-seed", "7"]
    assert parse(words)._seeds() == Seeds(split=3, init=7, order=3, sampling=3)


def test_a_run_starts_from_another(run_folder, tmp_path, capsys):
    """Task, shape and split are the start's; left at their defaults, training's settings are the method's own."""
    out = tmp_path / "rl"
    options = ["--method.group", "2", "--training.steps", "4", "--training.batch", "4"]
    assert main(["run", "grpo", "--start", str(run_folder), "--out", str(out), *options]) == 0
    printed = capsys.readouterr().out
    assert "before grpo" in printed
    assert "grpo, mixture" in printed
    config = json.loads((out / "config.json").read_text())
    start = json.loads((run_folder / "config.json").read_text())
    assert config["start"] == start
    assert (config["task"], config["shape"]) == (start["task"], start["shape"])
    assert (config["training"]["steps"], config["training"]["rate"], config["training"]["weight_decay"]) == (4, 3e-4, 0)
    assert main(["show", "mnns", "3", "1", "--checkpoint", str(out)]) == 0
    assert "oracle   grpo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--task.digits", "3"], "--task is not that of"),
        (["--shape.width", "64"], "--shape is not that of"),
        (["--split-seed", "7"], "--split-seed is not that of"),
    ],
)
def test_a_start_decides_what_it_decides(run_folder, tmp_path, capsys, options, said):
    assert main(["run", "grpo", "--start", str(run_folder), "--out", str(tmp_path / "rl"), *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "rl").exists()


def test_blocks_and_bounds_are_options_and_stand_in_the_configuration(tmp_path):
    """Beside what is always there; left at their defaults they are not."""
    options = ["--shape.norm", "post", "--shape.mlp", "swiglu", "--shape.loops", "2", "--shape.dropout", "0.1"]
    options += ["--training.micro-batch", "2", "--training.clip-norm", "1.0"]
    assert main(["run", "direct", "--out", str(tmp_path / "run"), *TINY, *SHORT, *options]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    shape = {"width": 8, "layers": 1, "heads": 1, "norm": "post", "mlp": "swiglu", "loops": 2, "dropout": 0.1}
    assert config["shape"] == shape
    assert (config["training"]["micro_batch"], config["training"]["clip_norm"]) == (2, 1.0)


def test_run_prints_and_stores_its_record(run_folder, capsys):
    record = json.loads((run_folder / "result.json").read_text())
    assert set(record["evaluations"]) == {"itself", "noise", "shuffled", "zero"}
    assert main(["run", "cot2", "--out", str(run_folder), *TINY, *SHORT, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [e["right"] for e in again["evaluations"].values()] == [e["right"] for e in record["evaluations"].values()]


def test_predict_answers_every_line(run_folder, tmp_path, capsys, monkeypatch):
    problems = [[1, 2], {"digits": [4, 4]}, [3, 1]]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(map(json.dumps, problems)) + "\n\n")
    words = ["predict", "--checkpoint", str(run_folder)]
    assert main([*words, "--input", str(source), "--output", str(target)]) == 0
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert [answer["digits"] for answer in answers] == [[1, 2], [4, 4], [3, 1]]
    assert all(
        answer["right"] == (answer["answer"] == abs(a - b))
        for answer, (a, b) in zip(answers, [(1, 2), (4, 4), (3, 1)], strict=True)
    )
    monkeypatch.setattr("sys.stdin", io.StringIO(source.read_text()))
    assert main(words) == 0
    assert capsys.readouterr().out == target.read_text()


def test_predict_writes_nothing_when_a_line_is_bad(run_folder, tmp_path, capsys):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('[1, 2]\n{"digits": [1, 99]}\n')
    assert main(["predict", "--checkpoint", str(run_folder), "--input", str(source), "--output", str(target)]) == 2
    error = capsys.readouterr().err
    assert "in.jsonl, line 2" in error
    assert len(error.splitlines()) == 1
    assert not target.exists()


ERRORS = {
    "no command": [],
    "unknown command": ["nonsense"],
    "unknown option": ["list", "--nonsense"],
    "not a number": ["run", "cot2", "--out", "x", "--training.steps", "many"],
    "missing option": ["run"],
    "bad task": ["run", "cot2", "--out", "x", "--task.low", "5", "--task.high", "3"],
    "bad budget": ["run", "cot2", "--out", "x", "--method.budget", "0"],
    "absurd shape": ["run", "cot2", "--out", "x", "--shape.width", "4000000", "--shape.heads", "1"],
    "space too large": ["run", "cot2", "--out", "x", "--task.digits", "6", "--task.high", "30"],
    "nothing to validate": ["run", "cot2", "--out", "x", "--task.digits", "1", "--task.high", "2"],
    "validation too small": ["run", "cot2", "--out", "x", "--training.problems", "6000"],
    "experts of another kind": ["run", "cot2", "--out", "x", "--shape.mlp", "swiglu", "--shape.experts", "2"],
    "no micro-batch": ["run", "cot2", "--out", "x", "--training.micro-batch", "0"],
    "bad shape": ["run", "cot2", "--out", "x", "--shape.width", "7"],
    "unknown task": ["show", "nonsense", "1", "2"],
    "digit too small": ["show", "mnns", "0", "2"],
    "no digits": ["show", "mnns", "three"],
    "no such run": ["show", "mnns", "1", "2", "--checkpoint", "/nonexistent"],
    "no such input": ["predict", "--checkpoint", "/nonexistent"],
    "unknown study": ["reproduce", "nonsense"],
    "no workers": ["reproduce", "mnns", "--workers", "0"],
    "unknown profile": ["reproduce", "mnns", "--profile", "endless"],
    "no rounds": ["bench", "--rounds", "0"],
}


@pytest.mark.parametrize("arguments", ERRORS.values(), ids=ERRORS)
def test_errors_are_one_line(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("tinylatent: ")
    assert len(error.splitlines()) == 1
    assert len(error) > 30
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_of_another_experiment_is_refused(run_folder, capsys):
    assert main(["run", "direct", "--out", str(run_folder), *TINY, *SHORT]) == 2
    assert "holds another experiment" in capsys.readouterr().err


def test_interruption_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.List, "run", interrupt)
    assert main(["list"]) == 130
    assert "same command" in capsys.readouterr().err


def test_one_line_joins_a_wrapped_box():
    lines = ("╭─ Value error ─╮", "│ first half    │", "│ second half   │", "│ ───────────── │", "│ more          │")
    box = "\n".join([*lines, "╰───────────────╯"])
    assert one_line(box).startswith("Value error: first half second half. See tinylatent --help")


def test_commands_of_other_rooms_are_found():
    assert cli.commands()["frontier"].__module__ == "theory.predictions.frontier"


def test_a_changed_config_is_refused(tmp_path, capsys):
    assert main(["run", "direct", "--out", str(tmp_path / "run"), *TINY, *SHORT]) == 0
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"digits": 2', '"digits": 3'))
    assert main(["show", "mnns", "3", "1", "2", "--checkpoint", str(tmp_path / "run")]) == 2
    assert "config.json was changed" in capsys.readouterr().err


def test_an_input_that_is_not_text_is_named(run_folder, tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\xff[1, 2]")
    assert main(["predict", "--checkpoint", str(run_folder), "--input", str(source)]) == 2
    assert "in.jsonl is not UTF-8" in capsys.readouterr().err
    source.write_bytes(b"\xef\xbb\xbf[1, 2]")
    assert main(["predict", "--checkpoint", str(run_folder), "--input", str(source)]) == 0
