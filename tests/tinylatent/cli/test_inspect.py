"""`list` and `show`: what there is, and problems with their exact frontier beside a model's."""

import json
import shutil

import pytest

from tinylatent.cli import inspect
from tinylatent.cli.main import main
from tinylatent.core.registry import Registry
from tinylatent.lab import recipes
from tinylatent.lab.folders import load
from tinylatent.lab.thinking import MOST_LINES
from tinylatent.lab.thought_figure import draw_thought


def test_list_as_text_and_json(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert main(["list", "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)
    assert set(groups) == {"tasks", "methods", "controls", "studies", "recipes", "launchers"}
    assert groups["methods"]["direct"] == "Answers at once."
    assert [*groups["recipes"]] == [*recipes.recipes()]
    assert "CoT2 on mnns, 9000 steps, learning rate 0.01, weight decay 0.05 (tuned)." in groups["recipes"]["mnns/cot2"]
    assert "(not tuned)" in groups["recipes"]["arithmetic/cot2"]
    assert all(name in text for group, entries in groups.items() if group != "recipes" for name in entries)
    assert all(name.partition("/")[0] + "/" in text for name in groups["recipes"])


def test_what_is_broken_is_named_once_and_left_out(installed, monkeypatch, capsys):
    installed("breaking", "[tinylatent.methods]\nbroken = nowhere:Nothing\n")
    methods = Registry("tinylatent.methods", "method", named=True)
    monkeypatch.setattr(inspect, "METHODS", methods)
    monkeypatch.setattr(recipes, "METHODS", methods)  # which asks again
    assert main(["list", "--json"]) == 0
    out, error = capsys.readouterr()
    assert {"direct", "cot2"} <= set(json.loads(out)["methods"])
    assert "broken" not in out
    assert error.startswith("tinylatent: left out: the method 'broken' of breaking cannot be loaded")
    assert error.count("\n") == 1


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
    assert "oracle   CoT2" in capsys.readouterr().out


def test_show_is_json_where_a_method_skips_steps(train, capsys):
    folder = str(train("mnns/direct"))
    capsys.readouterr()
    assert main(["show", "mnns", "3", "1", "--checkpoint", folder, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert ["model" in share for step in shown["steps"] for share in step["shares"].values()][:2] == [False, False]
    assert main(["show", "mnns", "3", "1", "--checkpoint", folder]) == 0
    assert "nan" not in capsys.readouterr().out


@pytest.mark.slow
def test_rows_are_few_however_many_states_a_model_holds(train, capsys):
    """An untrained readout spreads over the whole vocabulary: the smallest shares are one line together."""
    folder = str(train("mnns/coconut", "--task.high", "9", "--training.steps", "8"))
    capsys.readouterr()
    assert main(["show", "mnns", "3", "1", "--checkpoint", folder, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert main(["show", "mnns", "3", "1", "--checkpoint", folder]) == 0
    lines = capsys.readouterr().out.splitlines()
    steps = [number for number, line in enumerate(lines) if line.startswith("step")]
    for step, first, end in zip(shown["steps"], steps, [*steps[1:], len(lines) - 2], strict=True):
        rows = [line.split() for line in lines[first + 1 : end]]
        assert len(rows) == MOST_LINES + 1 < len(step["shares"])
        assert rows[-1][:2] == [str(len(step["shares"]) - MOST_LINES), "more"]
        assert sum(float(row[-2]) for row in rows) == pytest.approx(1, abs=2e-3)
        assert sum(float(row[-1]) for row in rows) == pytest.approx(1, abs=5e-2)
    assert lines[-2] == "Coconut trains its answer alone: what it holds before is not taught to name states"
    verdict = "right" if shown["right"] else "wrong"
    assert lines[-1] == f"Coconut answers {shown['model']}: {verdict}"


@pytest.mark.slow
def test_a_figure_and_json_to_draw_it_again(run_folder, tmp_path, capsys):
    path, again = tmp_path / "thought.png", tmp_path / "again.png"
    words = ["show", "mnns", "3", "1", "--checkpoint", str(run_folder)]
    assert main([*words, "--figure", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"figure: {path}"
    assert main([*words, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    draw_thought(shown, again)
    assert again.read_bytes() == path.read_bytes()
    experiment, _ = load(run_folder)
    assert shown["run"]["id"] == experiment.identity
    assert shown["run"]["seeds"] == {"split": 0, "init": 0, "order": 0, "sampling": 0}
    assert {"commit", "torch", "machine"} <= shown["environment"].keys()
    assert (shown["task"], shown["method"], shown["taught"]) == ("mnns", "CoT2", True)


def test_a_figure_needs_no_model_but_a_format(tmp_path, refused):
    path = tmp_path / "frontier.svg"
    assert main(["show", "reachability", "--seed", "4", "--figure", str(path)]) == 0
    assert path.stat().st_size > 5000
    error = refused(["show", "mnns", "1", "2", "--figure", str(tmp_path / "frontier.gif")])
    assert "frontier.gif names no format of figures: expected a file that ends in .png, .pdf or .svg" in error


ERRORS = {
    "unknown task": (["nonsense", "1", "2"], "unknown task 'nonsense': expected one of arithmetic"),
    "digit too small": (["mnns", "0", "2"], "this is no problem of mnns"),
    "a seed beside a problem": (["mnns", "1", "2", "--seed", "3"], "--seed has no effect beside a problem: leave it"),
    "no digits": (["mnns", "three"], "'three' is no problem"),
    "no such run": (["mnns", "1", "2", "--checkpoint", "/nonexistent"], "/nonexistent holds no run"),
}


@pytest.mark.parametrize(("words", "said"), ERRORS.values(), ids=ERRORS)
def test_what_cannot_be_shown_is_said(words, said, refused):
    assert said in refused(["show", *words])


def test_a_model_is_not_shown_problems_of_another_task(run_folder, refused):
    assert "was trained on mnns, not on multihop" in refused(["show", "multihop", "--checkpoint", str(run_folder)])


def test_a_changed_config_is_refused(run_folder, tmp_path, refused):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"digits": 2', '"digits": 3'))
    assert "config.json was changed" in refused(["show", "mnns", "3", "1", "2", "--checkpoint", str(folder)])
