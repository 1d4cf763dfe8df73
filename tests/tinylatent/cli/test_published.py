"""`published` lists recipes, says what they take, tries them in small, and does them; every mistake is one line."""

import json

import pytest

from tinylatent.cli.main import main, parse
from tinylatent.lab import published as recipes
from tinylatent.lab.published import PUBLISHED, TINY
from tinylatent.lab.published_lenses import LENSED
from tinylatent.models import huggingface_shapes
from tinylatent.models.huggingface_small import save_small_model


def test_all_are_listed_with_model_and_words(capsys):
    assert main(["published"]) == 0
    said = capsys.readouterr().out
    assert all(name in said and each.title in said for name, each in (PUBLISHED | LENSED).items())
    assert main(["published", "--json"]) == 0
    assert [*json.loads(capsys.readouterr().out)] == [*PUBLISHED, *LENSED]


def test_a_plan_is_told(capsys):
    assert main(["published", "coconut-prosqa", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "gpt2, 124,439,808 parameters, 124,439,808 trained; float32" in said
    assert "coconut, stages 6, share 0.1, mixing 0.0" in said
    assert "6,986 steps of 128, 62.5 epochs" in said
    assert said.count("differs: ") == len(PUBLISHED["coconut-prosqa"].departures)
    assert "unless --held names a file for validation, a fifth of the lines is for that" in said
    assert main(["published", "latentseek-gsm8k", "--dry-run"]) == 0
    assert "none: it searches when it is asked" in capsys.readouterr().out
    assert main(["published", "cot2-prosqa", "--dry-run"]) == 0
    assert "random weights" in capsys.readouterr().out


def test_a_plan_as_json_has_all_sizes(capsys):
    assert main(["published", "hrpo-gsm8k", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    held = found["weights"] + found["gradients"] + found["moments"] + max(found["forward"], found["cache"])
    assert found["memory"] == held
    assert found["differs"] == [*PUBLISHED["hrpo-gsm8k"].departures]


def test_an_analysis_is_planned_tried_and_done(tmp_path, monkeypatch, capsys):
    """What it is done on is a small model here."""
    monkeypatch.chdir(tmp_path)
    assert main(["published", "depth-qwen3-8b", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "qwen3-8b, 8,190,735,360 parameters in 36 layers" in said
    assert said.count("differs: ") == len(LENSED["depth-qwen3-8b"].departures)
    assert main(["published", "depth-qwen3-8b", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == 36
    assert main(["published", "depth-qwen3-8b", "--tiny"]) == 0
    said = capsys.readouterr()
    assert "Integrated gradients: " in said.out
    assert "it tells that the analysis runs" in said.err
    assert [*tmp_path.iterdir()] == []
    save_small_model(tmp_path / "model", "Qwen3", chat=False)
    (tmp_path / "lines").write_text('{"question": "1 + 1 =", "answer": "2"}\n' * 2, "utf-8")
    monkeypatch.setattr(huggingface_shapes, "misplaced", lambda name, folder: [])
    words = ["--model", str(tmp_path / "model"), "--lines", str(tmp_path / "lines"), "--out", str(tmp_path / "seen")]
    assert main(["published", "depth-qwen3-8b", *words]) == 0
    said = capsys.readouterr()
    assert (tmp_path / "seen" / "attribution.csv").exists()
    assert f"differs: {LENSED['depth-qwen3-8b'].departures[0]}" in said.err


@pytest.mark.slow
def test_one_is_tried_in_small_and_nothing_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["published", "direct-prosqa", "--tiny"]) == 0
    said = capsys.readouterr()
    assert "in small, with two layers: it tells that the recipe runs" in said.err
    assert "training problems" in said.out
    assert [*tmp_path.iterdir()] == []
    assert main(["published", "direct-prosqa", "--tiny", "--json"]) == 0
    assert "version" in json.loads(capsys.readouterr().out.splitlines()[-1])


def test_one_is_done_on_lines(tmp_path, monkeypatch, capsys):
    """With the recipe's steps cut."""
    model, lines = tmp_path / "model", tmp_path / "lines.json"
    save_small_model(model, "GPT2", chat=False)
    rows = [
        {"question": f"{a} and {b}?", "steps": [f"{a}+{b}"], "answer": str(a + b)} for a in range(5) for b in range(4)
    ]
    lines.write_text(json.dumps(rows), "utf-8")
    known = PUBLISHED["direct-prosqa"]
    short = recipes.replace(known, training=recipes.replace(TINY, num_train=None, steps=3))
    monkeypatch.setitem(PUBLISHED, "direct-prosqa", short)
    monkeypatch.setattr(huggingface_shapes, "misplaced", lambda name, folder: [])  # it is a small GPT-2
    folder = tmp_path / "run"
    words = ["published", "direct-prosqa", "--model", str(model), "--lines", str(lines), "--out", str(folder)]
    assert main(words) == 0
    said = capsys.readouterr()
    assert f"differs: {known.differs[0]}" in said.err
    assert "unless --held names a file" in said.err
    assert "majority baseline" in said.out
    assert (folder / "result.json").exists()
    held = tmp_path / "held.json"
    held.write_text(json.dumps([{**rows[0], "question": f"{a} and 9?"} for a in (7, 8)]), "utf-8")
    assert main([*words[:-1], str(tmp_path / "other"), "--held", str(held)]) == 0
    assert "unless --held names a file" not in capsys.readouterr().err
    assert sum(json.loads((tmp_path / "other" / "result.json").read_text("utf-8"))["total"]) == 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["coconut"], "unknown recipe 'coconut': did you mean coconut-"),
        (["direct-prosqa", "--model", "MODEL", "--held", "x"], "--held without --lines: expected the file to train on"),
        (["--tiny"], "--tiny has no effect without the name of a recipe"),
        (["direct-prosqa", "--tiny", "--out", "x"], "--out has no effect with --tiny, which makes its own model and"),
        (
            ["coconut-prosqa"],
            "coconut-prosqa without --model: expected a folder with gpt2; --dry-run says",
        ),
        (["coconut-prosqa", "--dry-run", "--tiny"], "--dry-run beside --tiny: expected one of the two"),
        (["coconut-prosqa", "--dry-run", "--lines", "x"], "--lines has no effect with --dry-run"),
        (["coconut-prosqa", "--tiny", "--model", "x"], "--model has no effect with --tiny"),
        (["coconut-prosqa", "--dry-run", "--model", "/nowhere"], "/nowhere is no folder: expected one with a model"),
        (["coconut-prosqa", "--model", "MODEL"], "MODEL holds another model than gpt2 (transformer."),
        (["coconut-prosqa", "--dry-run", "--model", "MODEL"], "holds another model than gpt2 (transformer."),
        (["cot2-prosqa", "--model", "MODEL", "--half"], "--half has no effect without --spread fsdp"),
        (["depth-qwen3"], "unknown recipe 'depth-qwen3': did you mean depth-qwen3-8b?"),
        (["depth-qwen3-8b"], "depth-qwen3-8b needs --model, a folder with qwen3-8b, and --lines, a file of prompts"),
        (["depth-qwen3-8b", "--model", "MODEL", "--lines", "LINES"], "MODEL holds another model than qwen3-8b ("),
        (["depth-qwen3-8b", "--seed", "1"], "--seed has no effect with depth-qwen3-8b, which trains nothing"),
        (["depth-qwen3-8b", "--tiny", "--json"], "--json has no effect with depth-qwen3-8b, unless --dry-run"),
    ],
)
def test_mistakes_are_one_line(words, complaint, tmp_path, capsys):
    save_small_model(tmp_path / "model", "GPT2", chat=False)
    (tmp_path / "lines").write_text('{"question": "a", "steps": [], "answer": "b"}\n', "utf-8")
    places = {"MODEL": str(tmp_path / "model"), "LINES": str(tmp_path / "lines")}
    assert main(["published", *(places.get(word, word) for word in words)]) == 2
    said = capsys.readouterr().err.strip()
    assert complaint.replace("MODEL", places["MODEL"]) in said
    assert said.count("\n") == 0


def test_lines_and_tasks_are_asked_for(tmp_path, monkeypatch, capsys):
    """And as many lines as batches need."""
    save_small_model(tmp_path / "model", "GPT2", chat=False)
    (tmp_path / "lines").write_text('{"question": "a", "steps": [], "answer": "b"}\n', "utf-8")
    monkeypatch.setattr(huggingface_shapes, "misplaced", lambda name, folder: [])
    words, lines = ["--model", str(tmp_path / "model")], ["--lines", str(tmp_path / "lines")]
    for given, complaint in (
        (["coconut-prosqa", *words], "trained on lines: expected a file of ProsQA, prosqa_train.json"),
        (["cot2-prosqa", *words, "--lines", str(tmp_path / "lines")], "1 lines, and batches of cot2-prosqa have 16"),
        (
            ["coconut-prosqa", *words, *lines],
            "lines has 1 lines, and batches of coconut-prosqa have 128: expected more",
        ),
    ):
        assert main(["published", *given]) == 2
        assert complaint in capsys.readouterr().err
    rows = [json.dumps({"question": f"{a}?", "steps": [], "answer": a}) for a in range(40)]
    (tmp_path / "lines").write_text("\n".join(rows), "utf-8")
    assert main(["published", "cot2-prosqa", *words, *lines]) == 2
    assert "trained on a task of ours: leave the lines out" in capsys.readouterr().err


def test_flags_are_filled_in():
    assert parse(["published", "cot2-prosqa", "--spread", "fsdp", "--half"]).half
