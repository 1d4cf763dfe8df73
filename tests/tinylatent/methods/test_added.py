"""A method that another package brings: one line of entry points, and it stands in every comparison.

The packages are written to folders, as pip would install them, and put on the path of fresh processes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinylatent.core.identity import sealed
from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.recipes import COMPARISONS, contenders
from tinylatent.lab.study import STUDIES
from tinylatent.methods import METHODS, Direct

pytestmark = pytest.mark.slow

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
        ids_BT = torch.full_like(examples.chain_BT[:, : examples.max_steps], self.token)
        return (Segment(GREEDY, examples.num_steps, GREEDY.given(ids_BT)),)

    def taught(self, model, examples):
        return self.thinking(model, examples)


@dataclass(frozen=True)
class Echo(Murmur):
    """Goes on from a run of discrete chain of thought."""

    name = "echo"
    label = "Echo!"
    colour = "#123456"
    starts_from = "discrete"
'''
MAIN = "import sys; from tinylatent.cli.main import main; sys.exit(main())"


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """python(packages, words...) runs Python where these packages are installed; returns the finished process.

    A package is (name, source of its module, its entry points): one line for a method, others with their group before.
    """

    def run(packages, *words):
        sites = []
        for name, source, line in packages:
            sites.append(tmp_path_factory.mktemp("site"))
            info = sites[-1] / f"{name}-1.0.dist-info"
            info.mkdir()
            (sites[-1] / f"{name}.py").write_text(source)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            group = "" if line.startswith("[") else "[tinylatent.methods]\n"
            (info / "entry_points.txt").write_text(f"{group}{line}\n" if line else "")
        path = os.pathsep.join(map(str, [ROOT, *sites]))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTEST_XDIST_WORKER", None)
        return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)

    return run


MURMURING = ("murmuring", MODULE, "murmur = murmuring:Murmur")
ECHOING = ("echoing", MODULE, "echo = echoing:Echo")


@pytest.fixture(scope="session")
def started(python):
    """started(words...) runs Python where the method is installed; returns what it printed, and fails if it does."""

    def run(*words, packages=(MURMURING,)):
        done = python(packages, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


# ---------------------------------------------------------------------------------------------------------------------
# With its line it is everywhere

COMPARED = ("mnns", "mnns-tuning", "tasks", "tasks-tuning")
"""Studies that compare all methods."""
PROBE = f"""
import json, sys
from pathlib import Path
from tinylatent.lab.arms import arms
from tinylatent.lab.recipes import COMPARISONS, recipe, recipes
from tinylatent.lab.study import STUDIES, read_runs

def rebuilt(name):
    records = read_runs(STUDIES[name], Path("results") / name)
    if name == "tasks":  # all seeds take long
        records = [record for record in records if record.experiment.seeds.split == 0]
    return [table.csv() for table in STUDIES[name].tables(records)]

print(json.dumps({{
    "arms": {{name: [*arms(name)] for name in COMPARISONS}},
    "colours": {{name: arm.colour for name, arm in arms("mnns").items()}},
    "labels": {{name: arm.label for name, arm in arms("mnns").items()}},
    "grids": {{
        f"{{name}} {{profile}}": [*dict.fromkeys(run.method.name for run in STUDIES[name].grid(profile))]
        for name in {COMPARED} for profile in ("quick", "full")
    }},
    "recipes": [name for name in recipes() if "murmur" in name],
    "recipe": "mnns/murmur" in recipes() and recipe("mnns/murmur", 3).to_json(),
    "same": "murmur" in arms("mnns") and arms("mnns")["murmur"].recipe(3) == recipe("mnns/murmur", 3),
    "starts": {{name: arms(name)["echo"].recipe(3).start == recipe(f"{{name}}/discrete", 3) for name in COMPARISONS}}
    if "echo" in arms("mnns") else {{}},
    "rebuilt": {{name: rebuilt(name) for name in {COMPARED} if sys.argv[1:]}},
}}))
"""


@pytest.fixture(scope="session")
def found(started):
    """What the lab is made of where the method is installed."""
    return json.loads(started("-c", PROBE, "rebuild"))


def test_it_is_an_arm_of_every_comparison(found):
    assert {*found["arms"]} == {*COMPARISONS}
    assert all(arms == [*contenders(), "murmur"] for arms in found["arms"].values())
    assert found["colours"]["murmur"] not in [colour for name, colour in found["colours"].items() if name != "murmur"]


def test_it_is_in_the_grids_of_the_studies_that_compare(found):
    assert all("murmur" in methods for methods in found["grids"].values()), found["grids"]


def test_it_has_a_recipe_in_every_comparison(found):
    assert found["recipes"] == [f"{name}/murmur" for name in COMPARISONS]
    expected = Experiment(method=Direct(), seeds=Seeds.all(3)).to_json()
    assert found["recipe"] == {**expected, "method": {"name": "murmur", "version": 1}}
    assert found["same"]


def test_one_that_starts_from_a_run_joins_all_comparisons_by_its_line_alone(started):
    """With the look of its class; it begins with what its comparison trains, and each study has that run too."""
    found = json.loads(started("-c", PROBE, packages=[ECHOING]))
    assert {*found["arms"]} == {*COMPARISONS}
    assert all(arms == [*contenders(), "echo"] for arms in found["arms"].values())
    assert (found["labels"]["echo"], found["colours"]["echo"]) == ("Echo!", "#123456")
    assert all("echo" in methods for methods in found["grids"].values()), found["grids"]
    assert found["starts"] == dict.fromkeys(COMPARISONS, True)


def stored(study):
    """The tables of stored results."""
    paths = (ROOT / "results" / study).glob("table*.csv")
    return [path.read_text(encoding="utf-8") for path in sorted(paths, key=lambda path: (len(path.name), path.name))]


def first_cells(tables):
    return [[line.split(",")[0] for line in table.splitlines()] for table in tables]


@pytest.mark.parametrize("study", COMPARED)
def test_stored_results_that_lack_it_are_rebuilt(study, found):
    if study == "tasks":
        assert first_cells(found["rebuilt"][study]) == first_cells(stored(study))
    else:
        assert found["rebuilt"][study] == stored(study)


COMPARE = """
import json, sys
from dataclasses import replace
from pathlib import Path
from matplotlib.figure import Figure
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.measure import measure
from tinylatent.lab.launchers.launcher import read_result
from tinylatent.lab.run import read_record
from tinylatent.lab.studies.comparison import comparison, draw_accuracies
from tinylatent.methods import Direct

record = read_record(Experiment, read_result(Path(sys.argv[1])))
records = [measure(replace(record.experiment, method=Direct()), None), record]
axes = Figure().subplots()
draw_accuracies(axes, records, "mnns")
print(json.dumps({
    "rows": [row["method"] for row in comparison(records, "Two", "mnns").rows],
    "drawn": [label.get_text() for label in axes.get_yticklabels()],
    "colours": len({line.get_color() for line in axes.lines[:4]}),
    "cost": [record.cost.steps, record.cost.slots],
}))
"""


def test_the_command_trains_it_and_it_stands_in_a_comparison(started, tmp_path):
    """Beside direct, on the same splits: by its own name, in a colour of its own."""
    flags = "--task.digits 2 --task.high 4 --model.width 8 --model.layers 1 --model.heads 1 --method.token 2"
    flags += " --training.steps 20 --training.batch-size 4 --json"
    printed = started("-c", MAIN, "run", "mnns/murmur", "--out", str(tmp_path / "run"), *flags.split())
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert sealed(json.loads(printed)) == stored
    assert stored["run"]["method"] == {"name": "murmur", "version": 1, "token": 2}
    shown = json.loads(started("-c", COMPARE, str(tmp_path / "run" / "result.json")))
    assert shown == {"rows": ["direct", "murmur"], "drawn": ["murmur", "direct"], "colours": 2, "cost": [2, 4]}


def test_the_conformance_suite_takes_it(started):
    """Every test over all methods runs for it as well, and passes."""
    suites = [str(Path(__file__).with_name(name)) for name in ("test_methods.py", "test_batches.py")]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-rA"]
    said = started("-m", "pytest", *suites, "-k", "murmur", *options)
    passed = [line for line in said.splitlines() if line.startswith("PASSED")]
    assert len(passed) >= 20
    assert all("murmur" in line.lower() for line in passed)


# ---------------------------------------------------------------------------------------------------------------------
# Without it, or broken, nothing else changes


def test_without_its_line_it_is_nowhere(started, found):
    """The package is there, but registers nothing."""
    without = json.loads(started("-c", PROBE, packages=[("murmuring", MODULE, "")]))
    for part in ("arms", "grids"):
        assert without[part] == {
            name: [method for method in methods if method != "murmur"] for name, methods in found[part].items()
        }
    assert (without["recipes"], without["recipe"]) == ([], False)


BROKEN = ("breaking", "raise RuntimeError('no display')", "broken = breaking:Broken")
SAID = (
    "the method 'broken' of breaking cannot be loaded from breaking:Broken (RuntimeError: no display): repair or unin"
)


NEEDY = ("needy", MODULE.replace("murmur", "needy").replace("token: int = 1", "token: int"), "needy = needy:Murmur")


def test_broken_ones_are_named_and_left_out(python):
    """One cannot be imported, one cannot be made: its field has no default."""
    done = python([BROKEN, MURMURING, NEEDY], "-c", MAIN, "list", "--json")
    assert done.returncode == 0
    listed = json.loads(done.stdout)
    assert [*listed["methods"]] == sorted([*METHODS, "murmur", "needy"])
    assert {*listed["studies"]} == {*STUDIES}
    assert "mnns/murmur" in listed["recipes"]
    assert not {"mnns/broken", "mnns/needy"} & {*listed["recipes"]}
    imported, made = done.stderr.splitlines()
    assert f"left out: {SAID}" in imported
    assert "left out: the method 'needy' of needy has no usual settings (" in made
    assert made.endswith(": give its fields defaults")


def test_asking_for_a_broken_one_says_why_there_is_none(python):
    done = python([BROKEN], "-c", MAIN, "run", "mnns/broken")
    assert done.returncode == 2
    assert f"tinylatent: {SAID}" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


TASK = """
from dataclasses import dataclass

from tinylatent_tasks import MNNS


@dataclass(frozen=True)
class Riddle(MNNS):
    name = "riddle"

    def __post_init__(self):
        raise OSError("no riddles on this machine")
"""
RIDDLING = ("riddling", TASK, "[tinylatent.tasks]\nriddle = riddling:Riddle")


@pytest.mark.parametrize("words", [("list", "--json"), ("run", "mnns/cot2", "--help"), ("run", "--help")], ids=" ".join)
def test_a_task_that_cannot_be_made_is_named_and_left_out(words, python):
    done = python([RIDDLING], "-c", MAIN, *words)
    assert done.returncode == 0, done.stderr
    assert "mnns/cot2" in done.stdout
    assert "riddle/" not in done.stdout
    (line,) = done.stderr.splitlines()
    said = (
        "tinylatent: left out: the task 'riddle' of riddling has no usual settings (OSError: no riddles on this machine"
    )
    assert line.startswith(said)


STUDY = """
from tinylatent.lab.study import Study


def grid(profile):
    raise OSError("no runs on this machine")


STUDY = Study("gridless", "Why?", grid, None, None)
"""
GRIDLESS = ("gridding", STUDY, "[tinylatent.studies]\ngridless = gridding:STUDY")


def test_a_study_without_a_grid_is_named_and_left_out_of_the_status(python, tmp_path):
    done = python([GRIDLESS], "-c", MAIN, "status", "--json", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [each["study"] for each in json.loads(done.stdout)["studies"]] == [*STUDIES]
    (line,) = done.stderr.splitlines()
    assert line == (
        "tinylatent: left out: the study 'gridless' of gridding has no grid (OSError: no runs on this machine)"
    )


def test_two_packages_with_one_name_are_both_named(python):
    other = ("muttering", MODULE, "murmur = muttering:Murmur")
    done = python([MURMURING, other], "-c", MAIN, "list")
    assert done.returncode == 0, "the others are there"
    (line,) = done.stderr.splitlines()
    assert line.startswith("tinylatent: left out: two packages register a method 'murmur': ")
    assert "murmuring" in line
    assert "muttering" in line
