"""`run` with a model of transformers, `predict` and `show` with what it trained; every mistake is one line."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from tinylatent.cli.main import main, parse
from tinylatent.cli.run_text import RATE_OF_ADAPTERS, USUAL
from tinylatent.methods import METHODS
from tinylatent.models.huggingface_lora import LoRA
from tinylatent.models.huggingface_small import save_small_model
from tinylatent.training.checkpoints import read_metrics

SHORT = ["--training.steps", "4", "--training.batch-size", "4", "--training.num-train", "16"]
POSED = ["--text.task", "mnns", "--task.digits", "2", "--task.high", "6"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a small Llama with its tokenizer."""
    path = tmp_path_factory.mktemp("models") / "small"
    save_small_model(path)
    return str(path)


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """A run of CoT2 on it."""
    folder = tmp_path_factory.mktemp("runs") / "cot2"
    assert main(["run", "cot2", "--hf.path", model, *POSED, *SHORT, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def lines(tmp_path):
    """A file of lines."""
    path = tmp_path / "lines.jsonl"
    rows = [{"question": f"{a} plus {b}?", "steps": [f"{a}+{b}"], "answer": a + b} for a in range(5) for b in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_a_run_is_stored_shown_and_read_again(trained, model, capsys):
    assert json.loads((trained / "config.json").read_text())["hf"]["path"] == model
    assert main(["run", "cot2", "--hf.path", model, *POSED, *SHORT, "--out", str(trained)]) == 0
    said = capsys.readouterr()
    assert "finished before" in said.err
    assert "cot2, zero" in said.out


def test_flags_make_the_run(model):
    run = parse(["run", "cot2", "--hf.path", model, *POSED]).experiment()
    assert (run.task.digits, run.task.high, run.hf.lora, run.training) == (2, 6, None, replace(USUAL, num_train=None))
    assert parse(["run", "cot2", "--hf.path", model, "--text.task", "multihop"]).experiment().training == USUAL
    words = ["--hf.lora.rank", "4", "--hf.dtype", "bfloat16", "--text.names", "spelled", "--seed", "7"]
    run = parse(["run", "discrete", "--hf.path", model, *POSED, *words, "--method.ends"]).experiment()
    assert run.hf.lora == LoRA(rank=4)
    assert run.training.learning_rate == RATE_OF_ADAPTERS
    assert (run.hf.dtype, run.text.names, run.seeds.split, run.method.ends) == ("bfloat16", "spelled", 7, True)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_run_with_what_it_starts_from(model, name):
    run = parse(["run", name, "--hf.path", model, *POSED]).experiment()
    assert run.method.name == name
    assert (run.start is not None) == (run.method.starts_from is not None)
    assert run.training.steps == (0 if METHODS[name].recipe.get("steps") == 0 else USUAL.steps)


def test_a_start_gives_model_task_and_problems(trained, model):
    """Of which the task may be named again, and must be the same."""
    run = parse(["run", "grpo", "--start", str(trained)]).experiment()
    assert run.start.method.name == "cot2"
    assert (run.hf, run.text, run.task, run.training.num_train) == (run.start.hf, run.start.text, run.start.task, 16)
    assert parse(["run", "grpo", "--start", str(trained), "--hf.path", model, *POSED]).experiment() == run
    with pytest.raises(ValueError, match="the run to start from has another task"):
        parse(["run", "grpo", "--start", str(trained), "--text.task", "subset-sum"]).experiment()


def test_a_start_of_our_own_is_refused(run_folder):
    with pytest.raises(ValueError, match="has a transformer of our own: start a recipe from it, such as mnns/grpo"):
        parse(["run", "grpo", "--start", str(run_folder)])


def test_problems_are_answered_in_text(trained, tmp_path, capsys):
    items = tmp_path / "items.jsonl"
    items.write_text('{"id": 5, "digits": [1, 2]}\n{"digits": [4, 4]}\n', "utf-8")
    assert main(["predict", "--checkpoint", str(trained), "--input", str(items)]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first.keys() == {"id", "digits", "answer", "right"}
    assert first["id"] == 5
    assert isinstance(second["answer"], str)
    assert second["right"] is False


def test_a_problem_is_shown_as_its_largest_tokens(trained, capsys):
    assert main(["show", "mnns", "1", "2", "--checkpoint", str(trained)]) == 0
    said = capsys.readouterr().out
    assert "problem [1, 2], answer 1" in said
    assert "<+1>" in said
    assert "KL" in said
    assert main(["show", "mnns", "1", "2", "--checkpoint", str(trained), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    shares = found["steps"][0]["shares"]
    assert shares["<+1>"]["oracle"] == shares["<-1>"]["oracle"] == 0.5
    assert len(shares) >= 12


def test_lines_are_trained_on_asked_and_shown(model, lines, tmp_path, capsys):
    folder = str(tmp_path / "run")
    words = ["run", "discrete", "--hf.path", model, "--text.lines", str(lines), "--training.steps", "4"]
    assert main([*words, "--training.batch-size", "4", "--out", folder]) == 0
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"question": "9 plus 9?", "id": 1}\n{"question": "1 plus 1?", "answer": 2}\n', "utf-8")
    capsys.readouterr()
    assert main(["predict", "--checkpoint", folder, "--input", str(asked)]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first.keys() == {"id", "question", "answer"}
    assert second.keys() == {"question", "answer", "right"}
    assert main(["show", "lines", "3", "--checkpoint", folder]) == 0
    assert "problem 0 plus 3?, answer 3" in capsys.readouterr().out
    asked.write_text('{"ask": "9 plus 9?"}\n', "utf-8")
    assert main(["predict", "--checkpoint", folder, "--input", str(asked)]) == 2
    assert "expected a question" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cot2"], "cot2 without --hf.path: expected the folder of a model of transformers, or a recipe such as mnns/"),
        (["cot2", "--hf.path"], "--hf.path"),
        (["cot2", "--hf.path", "nowhere", *POSED], "nowhere is no folder: expected one with config.json"),
        (["cot2", "--hf.path", "MODEL", "--text.task", "chess"], "unknown task 'chess'"),
        (["cot2", "--hf.path", "MODEL", *POSED, "--text.lines", "x"], "expected one of the two"),
        (["cot2", "--hf.path", "MODEL", "--text.lines", "x"], "x: there is no such file"),
        (["cot2", "--hf.path", "MODEL", *POSED, "--text.held", "x"], "--text.held without --text.lines"),
        (["cot2", "--hf.path", "MODEL", *POSED, "--hf.dtype", "int8"], "--hf.dtype"),
        (["cot2", "--hf.path", "MODEL", *POSED, "--hf.lora.rank", "0"], "expected positive ones"),
        (["cot2", "--hf.path", "MODEL", *POSED, "--text.names", "words"], "expected words with names 'words'"),
        (["cot2", "--start", "nowhere"], "nowhere holds no run"),
        (["cot2", "--hf.path", "MODEL"], "cot2 without a task: expected --text.task, one of arithmetic"),
        (["cot2", "--hf.path", "MODEL", *POSED, "--training.batch-size", "99"], "a batch of 99 from"),
    ],
)
def test_mistakes_are_one_line(words, said, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [model if word == "MODEL" else word for word in words]
    assert main(["run", *words, "--training.steps", "2", "--training.num-train", "16"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "spread", "more"),
    [("cot2", "ddp", []), ("grpo", "fsdp", ["--hf.lora.rank", "2", "--method.kl", "0.1"])],
    ids=["cot2-ddp", "grpo-fsdp-adapters"],
)
def test_several_processes_train_and_one_measures(model, tmp_path, name, spread, more):
    """What one trains alone, to within rounding, and what it starts from first."""
    words = ["run", name, "--hf.path", model, *POSED, *SHORT, "--training.log-every", "1", *more, "--out"]
    assert main([*words, str(tmp_path / "alone")]) == 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TOKENIZERS_PARALLELISM": "false"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    both = [*torchrun, "-m", "tinylatent", *words, str(tmp_path / "both"), "--spread", spread]
    said = subprocess.run(both, env=environment, capture_output=True, text=True, timeout=600)
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("result:") == 1
    one, other = (read_metrics(tmp_path / name) for name in ("alone", "both"))
    assert [line["step"] for line in other] == [1, 2, 3, 4]
    for mine, theirs in zip(one, other, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-3)
    records = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("alone", "both")]
    assert records[0]["id"] == records[1]["id"]
    assert main([*words, str(tmp_path / "both"), "--spread", spread]) == 0, "it is finished"


def test_one_process_is_no_team(model, tmp_path, capsys):
    words = ["run", "cot2", "--hf.path", model, *POSED, *SHORT, "--out", str(tmp_path / "a")]
    assert main([*words, "--spread", "ddp"]) == 2
    assert "start it by torchrun" in capsys.readouterr().err
    assert main([*words, "--half"]) == 2
    assert "--half has no effect without --spread fsdp" in capsys.readouterr().err


def test_help_shows_every_flag(model, capsys):
    for words in (["cot2", "--help"], ["cot2", "--hf.path", model, *POSED, "--help"]):
        with pytest.raises(SystemExit):
            main(["run", *words])
        said = capsys.readouterr().out
        for flag in ("--hf.path", "--text.task", "--text.lines", "--text.names", "--training.steps", "--hf.dtype"):
            assert flag in said


def test_a_missing_package_is_one_line(model, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "tinylatent.models.huggingface_loading", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["run", "cot2", "--hf.path", model, *POSED, *SHORT]) == 2
    assert "pip install 'tinylatent[hf]'" in capsys.readouterr().err
