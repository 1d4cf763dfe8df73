"""The README tells the truth: its numbers are those of stored runs, and its commands do what it says.

That its Python runs, and that its links and flags lead somewhere, is tested with all other pages in test_docs.
"""

import csv
import json
import re
import shlex

import pytest
from pages import ROOT, block, commands, pages
from tinylatent_theory.claims.study import LEDGER

from tinylatent.cli.main import main
from tinylatent.lab.study import STUDIES
from tinylatent.lab.tasks import TASKS
from tinylatent.lab.thinking import think

README = pages()["README.md"]
RESULTS = ROOT / "results"
NAMES = {"pause tokens": "pause"}
"""Methods that the README calls by more words than the table."""
LONG = {"reproduce", "claims"}
"""Commands that take minutes; each has tests of its own."""


def test_it_is_short():
    assert len(README.splitlines()) < 170


def test_the_headline_is_the_stored_table():
    with (RESULTS / "mnns/table.csv").open(encoding="utf-8") as file:
        stored = {row["method"]: row for row in csv.DictReader(file)}
    shown = re.findall(r"^\| (.+?) +\| +([\d.]+) \| ([\d.]+) – ([\d.]+) \| +(\S+) \| +(\S+) \|$", README, re.MULTILINE)
    assert {NAMES.get(name, name) for name, *_ in shown} == {name for name in stored if ", " not in name}
    for name, right, low, high, control, published in shown:
        own = stored[NAMES.get(name, name)]
        controls = [float(row["accuracy"]) for each, row in stored.items() if each.startswith(f"{name}, ")]
        assert (right, low, high) == (own["accuracy"], own["low"], own["high"])
        assert control == (f"{max(controls):.2f}" if controls else "-")
        assert published == (own["published"] or "-")


def test_its_verdicts_are_the_stored_ones():
    told = re.findall(r"^- ((?:Holds|Fails|Not enough).*)$", README, re.MULTILINE)
    assert len(told) >= 3
    table = (RESULTS / "mnns/table.md").read_text(encoding="utf-8")
    assert [line for line in told if f"- {line}\n" not in table] == []


def test_the_output_of_make_lab_is_stored():
    lines = [line for line in block(README, "quick").splitlines() if line.strip(" .")]
    assert len(lines) >= 6
    stored = (RESULTS / "mnns-quick/table.md").read_text(encoding="utf-8").splitlines()
    for line in lines:  # cut after a column
        assert any(whole.startswith(line.removesuffix("...")) for whole in stored), line


def test_the_figure_shows_what_is_stored_beside_it():
    """The oracle's half is computed again; the model's half is that of a run whose settings stand there."""
    stored = json.loads((RESULTS / "superposition/thought.json").read_text(encoding="utf-8"))
    task = TASKS["mnns"](digits=4)
    exact = think(task, task.read(stored["problem"]))
    for step, again in zip(stored["steps"], exact.steps, strict=True):
        oracle = {token: share["oracle"] for token, share in step["shares"].items() if share["oracle"]}
        assert oracle == pytest.approx(again.oracle)
    assert stored["right"]
    assert max(step["kl"] for step in stored["steps"]) < 0.1


def test_its_counts_are_right():
    words = " ".join(README.split())
    assert f"ledger of {len(LEDGER)} claims" in words
    stored = [name for name in STUDIES if (RESULTS / name / "runs.jsonl").exists()]
    assert f"{len(stored)} tables and figures" in words


@pytest.mark.slow
def test_its_commands_run(monkeypatch, tmp_path, capsys):
    """One after another in one folder, as a reader types them, trainings cut short; but for those that take minutes."""
    monkeypatch.chdir(tmp_path)
    readme = re.sub(r"(?<=--training.steps )\d{4,}\b", "200", README)
    told = [command for command in commands(readme) if shlex.split(command)[1] not in LONG]
    assert len(told) >= 5
    for command in told:
        assert main(shlex.split(command)[1:]) == 0, command
    assert (tmp_path / "thought.png").stat().st_size > 10_000
    assert (tmp_path / "curves.png").stat().st_size > 10_000
