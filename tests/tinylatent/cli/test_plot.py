"""`plot`: runs are named as `runs` names them, and whatever cannot be drawn is one sentence."""

import json

import pytest
from stored import put

from tinylatent.cli import plot
from tinylatent.cli.main import main
from tinylatent.lab.recipes import build
from tinylatent.methods import CoT2, DiscreteCoT

COT2 = [build("mnns", CoT2(), seed) for seed in (0, 3)]
DISCRETE = build("mnns", DiscreteCoT(), 3)
LINES = [{"step": step, "loss": 1 / step, "validation_accuracy": step / 400} for step in (100, 200, 300)]


def write(folder, lines, tail=""):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)


@pytest.fixture
def results(tmp_path):
    """A results folder with three finished runs and their metrics."""
    for run in (*COT2, DISCRETE):
        write(put(tmp_path / "results", run, 90), LINES)
    return tmp_path / "results"


@pytest.fixture
def drawn(results, monkeypatch):
    """drawn(words...) is what would be drawn, by name: the command's exit status is 0."""

    def run(*words):
        found = {}
        monkeypatch.setattr(plot, "draw_curves", lambda curves, path: found.update(curves))
        assert main(["plot", *words, "--results", str(results), "--output", "x.png"]) == 0
        return found

    return run


def test_a_figure_of_a_run_is_written_whole(results, tmp_path, capsys):
    path = tmp_path / "curves.svg"
    assert main(["plot", "mnns/cot2 seed=0", "--results", str(results), "--output", str(path)]) == 0
    assert capsys.readouterr().out == f"figure: {path}\n"
    assert path.stat().st_size > 5000
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["curves.svg"]


def test_runs_are_named_by_id_name_part_or_folder_each_once(drawn, results):
    names = ["mnns/cot2 seed=0", "mnns/cot2 seed=3", "mnns/discrete seed=3"]
    assert [*drawn(COT2[0].identity[:5])] == names[:1]
    assert [*drawn("cot2")] == names[:2]
    assert [*drawn("discrete", "cot2", "mnns/cot2 seed=3")] == [names[2], names[0], names[1]]
    assert [*drawn(f"{results / 'runs' / DISCRETE.identity}/")] == names[2:]
    assert drawn("cot2 seed=3") == {names[1]: LINES}


def test_runs_of_one_name_are_told_apart_by_their_folders(drawn, tmp_path):
    folder = put(None, COT2[0], 90, folder=tmp_path / "mine")
    write(folder, LINES[:1])
    found = drawn("mnns/cot2 seed=0", str(folder))
    assert [name.startswith("mnns/cot2 seed=0 (") for name in found] == [True, True]
    assert found[f"mnns/cot2 seed=0 ({folder})"] == LINES[:1]


def test_a_run_in_training_is_drawn_as_far_as_it_is(drawn, results):
    write(results / "runs" / COT2[0].identity, LINES[:2], '{"step": 300, "lo')
    assert drawn("seed=0") == {"mnns/cot2 seed=0": LINES[:2]}


def test_metrics_without_accuracy_are_drawn_and_it_is_said(drawn, results, capsys):
    lines = [{"step": 100, "loss": 2.0, "reward": [0.5, None]}]
    write(results / "runs" / COT2[0].identity, lines)
    assert drawn("seed=0") == {"mnns/cot2 seed=0": lines}
    assert "mnns/cot2 seed=0 has no validation accuracy in its metrics" in capsys.readouterr().err


def test_what_is_refused_is_a_sentence_and_writes_nothing(results, tmp_path, refused, monkeypatch):
    where = ["--results", str(results), "--output", str(tmp_path / "curves.png")]
    assert "plot needs the id, name or folder of a run" in refused(["plot", *where])
    assert "no run fits 'grpo'" in refused(["plot", "grpo", *where])
    assert "no run fits '/nowhere'" in refused(["plot", "/nowhere", *where])
    error = refused(["plot", "cot2", *where[:3], str(tmp_path / "curves.jpg")])
    assert "curves.jpg names no format of figures" in error
    monkeypatch.setattr(plot, "MOST", 1)
    assert "2 runs fit: a figure tells 1 apart" in refused(["plot", "cot2", *where])
    assert [each.name for each in tmp_path.iterdir()] == ["results"]


DAMAGE = {
    "missing": (None, "is missing: expected the metrics of the run"),
    "empty": ("", "has no metrics yet: let its training reach the first line"),
    "begun": ('{"step": 1', "has no metrics yet"),
    "no JSON": ('{"step": 1, "loss": 1.0}\nnonsense\n', "metrics.jsonl, line 2 is damaged"),
    "no object": ("[1]\n", "line 1 is damaged"),
    "no step": ('{"loss": 1.0}\n', "line 1 is damaged"),
    "words": ('{"step": 1, "loss": "high"}\n', "line 1 is damaged"),
    "a list": ('{"step": 1, "loss": [1.0]}\n', "line 1 is damaged"),
    "not text": (b"\xff\xfe\n", "line 1 is damaged"),
    "deep": ("[" * 200_000 + "\n", "line 1 is damaged"),
    "not a number": ('{"step": 1, "loss": NaN}\n', "line 1 is damaged"),
}


@pytest.mark.parametrize(("text", "said"), DAMAGE.values(), ids=DAMAGE)
def test_metrics_that_cannot_be_read_are_named(text, said, results, tmp_path, refused):
    path = results / "runs" / COT2[0].identity / "metrics.jsonl"
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    output = tmp_path / "curves.png"
    error = refused(["plot", "seed=0", "--results", str(results), "--output", str(output)])
    assert said in error
    assert COT2[0].identity in error
    assert not output.exists()
