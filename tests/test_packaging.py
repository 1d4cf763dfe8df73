"""The wheel holds the three packages and the licence, leaves a user's own tasks.py and theory.py alone, and tells mypy
its types.

All of it in a copy of the repository and an environment of its own, without a network.
"""

import email
import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
import torch

import tinylatent

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
APACHE = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""SHA-256 of the licence's text."""
PACKAGES = ("tinylatent", "tinylatent_tasks", "tinylatent_theory")
HEAVY = ("numpy", "scipy", "torch", "matplotlib", "tyro", "transformers")
"""Packages whose own types say nothing here, and take mypy most of its time."""


def run(*words, cwd, fails=False):
    """What a command prints; it must end well, or badly where that is expected."""
    done = subprocess.run([*map(str, words)], cwd=cwd, capture_output=True, text=True)
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what the repository packs."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("tinylatent", "tasks", "theory"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def python(tree, tmp_path_factory):
    """The Python of an environment that has the wheel, and what it needs from ours, but not our checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "ours.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", "dist", ".", cwd=tree)
    run(
        *pip, "install", "--no-deps", "--no-index", "--no-compile", "--target", site, *tree.glob("dist/*.whl"), cwd=tree
    )
    return folder / "bin/python"


USER = """
import json
import tasks, theory
import torch
import tinylatent, tinylatent_tasks, tinylatent_theory.claims.ledger
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.tasks import TASKS
from tinylatent.methods import METHODS
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.speakers import Symbols

experiment = Experiment(TASKS["mnns"](2, 1, 4), METHODS["cot2"](), ModelConfig(8, 1, 1))
rows = experiment.rows("validation")
examples, streams = Symbols(experiment.task, rows).examples(), experiment.streams(torch.arange(len(rows)))
solution = experiment.method.solve(experiment.fresh(), examples, streams)
print(json.dumps({
    "mine": [tasks.MINE, theory.MINE],
    "answers": list(solution.answer_BA.shape),
    "files": [tinylatent.__file__, tinylatent_tasks.__file__, tinylatent_theory.__file__],
}))
"""


def test_a_users_own_tasks_and_theory_are_left_alone(python, tmp_path):
    """They stand beside the script; ours come from the wheel, and a rollout runs."""
    (tmp_path / "tasks.py").write_text("MINE = 'my tasks'\n")
    (tmp_path / "theory.py").write_text("MINE = 'my theory'\n")
    (tmp_path / "script.py").write_text(USER)
    found = json.loads(run(python, "script.py", cwd=tmp_path))
    assert found["mine"] == ["my tasks", "my theory"]
    assert found["answers"] == [3, 1]
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    assert [Path(file).parent for file in found["files"]] == [site / name for name in PACKAGES]


def test_the_wheel_holds_the_packages_and_nothing_else(python, tree):
    """Each whole: every module of the tree, and the mark that it is typed."""
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    (info,) = site.glob("tinylatent-*.dist-info")
    packed = {line.split(",")[0] for line in (info / "RECORD").read_text().splitlines()}
    sources = {
        path.relative_to(tree / where).as_posix()
        for where, name in zip((".", "tasks", "theory"), PACKAGES, strict=True)
        for pattern in ("*.py", "py.typed")
        for path in (tree / where / name).rglob(pattern)
    }
    assert len([each for each in sources if each.endswith("py.typed")]) == len(PACKAGES)
    assert sources == {each for each in packed if each.startswith(PACKAGES) and not each.startswith(info.name)}


def test_the_wheel_brings_its_licence_and_says_what_it_is(python):
    """The text is the one that apache.org publishes, to the byte."""
    (info,) = python.parents[1].glob("lib/python*/site-packages/tinylatent-*.dist-info")
    assert hashlib.sha256((info / "licenses/LICENSE").read_bytes()).hexdigest() == APACHE
    about = email.message_from_string((info / "METADATA").read_text(encoding="utf-8"))
    assert (about["License-Expression"], about.get_all("License-File")) == ("Apache-2.0", ["LICENSE"])
    assert about["Version"] == tinylatent.__version__
    assert about.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    assert {about["Author"], about["Requires-Python"]} == {PROJECT["project"]["authors"][0]["name"], ">=3.11"}
    assert about.get_all("Classifier") == PROJECT["project"]["classifiers"]


PLANTED = {
    "tasks": "from tinylatent_tasks import MNNS\n\nMNNS(digits='four')\n",
    "tinylatent": "from tinylatent.core.identity import checksum\n\nchecksum('text')\n",
    "theory": "from tinylatent_theory.predictions.capacity import needed_width\n\nneeded_width('one', 89)\n",
}
"""A call with a wrong type of each package."""
WRONG = {"tasks": '"MNNS" has incompatible type "str"', "tinylatent": '"checksum" has', "theory": '"needed_width" has'}


def mypy(*words, cwd, config):
    """What mypy finds wrong, without a look at the packages that are heavy."""
    skipped = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\nfollow_imports_for_stubs = true\n" for name in HEAVY)
    (cwd / "mypy.ini").write_text(f"[mypy]\n{config}{skipped}")
    return run(sys.executable, "-m", "mypy", "--config-file", "mypy.ini", *words, cwd=cwd, fails=True)


def test_a_wrong_type_across_packages_is_found_in_the_tree(tree):
    """Where tinylatent calls tinylatent_tasks, and theory tinylatent, with the settings of this project."""
    planted = {
        tree / "tinylatent/lab/planted.py": PLANTED["tasks"],
        tree / "theory/tinylatent_theory/planted.py": PLANTED["tinylatent"],
    }
    for path, text in planted.items():
        path.write_text(text)
    settings = {**PROJECT["tool"]["mypy"], "files": [path.relative_to(tree).as_posix() for path in planted]}
    said = mypy(cwd=tree, config="".join(f"{name} = {written(value)}\n" for name, value in settings.items()))
    for path in planted:
        path.unlink()
    found = [line for line in said.splitlines() if "planted.py" in line]
    assert len(found) == len(planted)
    assert all(any(WRONG[name] in line for line in found) for name in ("tasks", "tinylatent"))


def written(value):
    """A setting of mypy in the words of mypy.ini."""
    return ", ".join(value) if isinstance(value, list) else value


def test_a_wrong_type_is_found_where_only_the_wheel_is_installed(python, tmp_path):
    for name, text in PLANTED.items():
        (tmp_path / f"uses_{name}.py").write_text(text)
    said = mypy("--python-executable", python, ".", cwd=tmp_path, config="")
    assert all(each in said for each in WRONG.values())
    assert f"Found {len(PLANTED)} errors in {len(PLANTED)} files" in said
