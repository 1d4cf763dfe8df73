"""A method that another package brings: nothing of this one is changed, and everything takes it.

The package is written to a folder, as pip would install it, and put on the path of fresh processes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from tasks import MNNS
from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.measure import measure
from tinylatent.lab.studies.lineup import comparison, draw_accuracies
from tinylatent.methods import METHODS, Direct
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

ROOT = Path(__file__).resolve().parents[3]
MODULE = '''
"""Murmur: the same token again and again, then the answer."""

from dataclasses import dataclass

import torch

from tinylatent.engine.plan import Segment
from tinylatent.engine.thoughts import GREEDY
from tinylatent.objectives.method import Method


@dataclass(frozen=True)
class Murmur(Method):
    """Says one token for as long as others think. Then it answers."""

    name = "murmur"

    token: int = 1
    """What it says."""

    def thinking(self, model, examples, temperature=0.0):
        ids_BT = torch.full_like(examples.chain_BT[:, : examples.most_steps], self.token)
        return (Segment(GREEDY, examples.num_steps, GREEDY.given(ids_BT)),)

    def taught(self, model, examples):
        return self.thinking(model, examples)
'''
MAIN = "import sys; from tinylatent.cli.main import main; sys.exit(main())"


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """started(words...) runs Python where the package is installed; returns what it printed, and fails if it does."""
    site = tmp_path_factory.mktemp("site")
    info = site / "murmuring-1.0.dist-info"
    info.mkdir()
    (site / "murmuring.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: murmuring\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tinylatent.methods]\nmurmur = murmuring:Murmur\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)]), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)

    def python(*words):
        done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return python


def test_the_command_trains_it_and_it_stands_in_a_comparison(started, tmp_path):
    """Beside direct, on the same splits: by its own name, in a colour of its own."""
    words = [
        "--task.digits",
        "2",
        "--task.high",
        "4",
        "--shape.width",
        "8",
        "--shape.layers",
        "1",
        "--shape.heads",
        "1",
    ]
    words += ["--method.token", "2", "--training.steps", "20", "--training.batch", "4", "--json"]
    printed = started("-c", MAIN, "run", "murmur", "--out", str(tmp_path / "run"), *words)
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert json.loads(printed) == record
    assert record["experiment"]["method"] == {"name": "murmur", "version": 1, "token": 2}
    assert (record["cost"]["steps"], record["cost"]["slots"]) == (2, 4)
    task, shape, recipe = MNNS(2, 1, 4), ModelConfig(8, 1, 1), Training(steps=20, batch=4)
    direct = measure(Experiment(task, Direct(), shape, recipe, Seeds.all(0)), None)
    table = comparison([direct, record], "Two", {})
    assert [row["method"] for row in table.rows] == ["direct", "murmur"]
    assert table.rows[1]["accuracy"] == 100 * sum(record["evaluations"]["itself"]["right"]) / sum(record["total"])
    axes = Figure().subplots()
    draw_accuracies(axes, [direct, record], {})
    assert [label.get_text() for label in axes.get_yticklabels()] == ["murmur", "direct"]
    assert len({line.get_color() for line in axes.lines[:4]}) == 2


def test_the_conformance_suite_takes_it(started):
    """Every test over all methods runs for it as well, and passes."""
    suite = Path(__file__).with_name("test_methods.py")
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-rA"]
    said = started("-m", "pytest", str(suite), "-k", "murmur", *options)
    passed = [line for line in said.splitlines() if line.startswith("PASSED")]
    assert len(passed) >= 20
    assert all("murmur" in line.lower() for line in passed)


def test_it_is_gone_with_its_package(started):
    listed = json.loads(started("-c", MAIN, "list", "--json"))["methods"]
    assert list(listed) == sorted([*METHODS, "murmur"])
    assert listed["murmur"] == "Says one token for as long as others think."
    assert "murmur" not in METHODS
