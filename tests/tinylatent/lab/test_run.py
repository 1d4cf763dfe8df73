"""How far a run is stands in its metrics file, in the last line that is whole."""

import math

import pytest
from counting import Counting

from tinylatent.lab.run import TAIL, last_line, note_progress


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("", 0),
        ('{"step": 3}\n', 3),
        ('{"step": 3}\n{"step": 7, "loss": 0.5}\n', 7),
        ('{"step": 3}\n{"step": 70', 3),
        ('{"step": 3', 0),
        ('{"step": 3}\nnonsense\n', 0),
        ('{"step": 3}\n\n', 0),
        ('{"loss": 3}\n', 0),
        ("[1]\n", 0),
        ('{"step": null}\n', 0),
        ("[" * 20_000 + "\n", 0),
    ],
)
def test_the_last_whole_line_counts(text, step, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert last_line(tmp_path / "metrics.jsonl").get("step", 0) == step


def test_a_long_file_is_read_from_its_end(tmp_path):
    """Where the part that is read begins, in the middle of a line, does not matter."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "loss": 0.25}}\n' for step in range(1, TAIL)))
    assert last_line(path)["step"] == TAIL - 1


def test_a_missing_file_is_no_progress(tmp_path):
    assert last_line(tmp_path / "metrics.jsonl") == {}
    assert last_line(tmp_path) == {}


def test_a_run_without_training_notes_how_far_it_is(tmp_path):
    """In its folder, which is made if need be, and to whoever listens."""
    run, folder, told = Counting(3), tmp_path / "run", []
    assert run.done(folder) == 0
    note_progress(folder, 1, None)
    assert run.done(folder) == 1
    note_progress(folder, 2, lambda step, loss: told.append((step, math.isnan(loss))))
    assert run.done(folder) == 2
    assert told == [(2, True)]
