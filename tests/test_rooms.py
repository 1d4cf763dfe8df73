"""The map of rooms is kept: tasks <- tinylatent <- theory, and inside tinylatent each room uses only earlier ones.

Imports count wherever they stand: at the top, in a function, relative, or by importlib with a name written out.
"""

import ast
import json
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("core", "models", "engine", "objectives", "methods", "evaluation", "lenses", "training", "lab", "cli")
"""Rooms of tinylatent, each free to use those before it."""
LOOSE = ("__init__.py", "__main__.py")
"""Files outside rooms: the public face, which uses all, and the command."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DECLARED = {re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]}
MAY_IMPORT = {
    "tinylatent_tasks": {"numpy", "scipy"},
    "tinylatent": DECLARED | {"tinylatent_tasks"},
    "tinylatent_theory": DECLARED | {"tinylatent_tasks", "tinylatent"},
}
"""What each package may import beside itself and the standard library."""
LENT = {
    "tinylatent/models/huggingface": {"transformers", "tokenizers", "peft"},
    "tinylatent/lab/launchers/": {"submitit"},
    "tinylatent/training/optimizer": {"pytorch_optimizer"},
}
"""What only these may import, when they are called; tokenizers comes with transformers."""
PLACES = {"tasks": "tinylatent_tasks", "tinylatent": "", "theory": "tinylatent_theory"}
"""The package inside each folder; tinylatent is one itself."""


def breaks(root):
    """Every break of the map in a tree, as "file:line: what"."""
    return [each for folder in PLACES for path in sorted((root / folder).rglob("*.py")) for each in _of(root, path)]


def _of(root, path) -> Iterator[str]:
    """The breaks in one file."""
    folder, *rest = path.relative_to(root).parts
    inner = PLACES[folder]
    package = inner or folder
    if inner and rest[0] != inner:
        yield f"{path.relative_to(root)}: stands outside {folder}/{inner}"
        return
    if not inner and (rest[0] not in ROOMS if rest[1:] else rest[0] not in LOOSE):
        yield f"{path.relative_to(root)}: stands in no room"
        return
    inside = ".".join([package, *rest[bool(inner) : -1]])
    room = rest[0] if folder == "tinylatent" and rest[1:] else None
    for name, line in imported(path, inside):
        said = _break(path.relative_to(root).as_posix(), package, room, name)
        if said:
            yield f"{path.relative_to(root)}:{line}: {said}"


def _break(place, package, room, name):
    """What an import of a name from a place breaks, if anything."""
    top, *inner = name.split(".")
    lent = {each for where, names in LENT.items() if place.startswith(where) for each in names}
    if top not in sys.stdlib_module_names | MAY_IMPORT[package] | lent | {package}:
        return f"{package} imports {top}"
    if top != "tinylatent" or room is None:
        return None
    if not inner or inner[0] not in ROOMS:
        return f"{room} imports the public face"
    return f"{room} imports {inner[0]}" if ROOMS.index(inner[0]) > ROOMS.index(room) else None


def imported(path, inside) -> Iterator[tuple[str, int]]:
    """Full names of the modules that a file imports, with lines; `inside` is the package it stands in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = inside.split(".")[: len(inside.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            whole = base == "tinylatent"  # what is imported from it may be a room
            yield from ((f"{base}.{alias.name}" if whole else base, node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from ((each.value, node.lineno) for each in node.args[:1] if isinstance(each, ast.Constant))


def test_arrows_go_one_way():
    assert breaks(ROOT) == []


def test_every_room_is_there():
    """So that the test above looks at what it is meant to."""
    assert {path.parent.name for path in ROOT.glob("tinylatent/*/__init__.py")} == {*ROOMS}
    assert all((ROOT / folder / inner / "__init__.py").exists() for folder, inner in PLACES.items())


@pytest.mark.parametrize(
    ("place", "text", "said"),
    [
        ("tasks/tinylatent_tasks/a.py", "import torch", "tinylatent_tasks imports torch"),
        ("tasks/tinylatent_tasks/a.py", "import tinylatent.core.seeds", "tinylatent_tasks imports tinylatent"),
        ("tasks/tinylatent_tasks/a.py", "from networkx import Graph", "tinylatent_tasks imports networkx"),
        ("tinylatent/lab/a.py", "import tinylatent_theory", "tinylatent imports tinylatent_theory"),
        ("tinylatent/core/a.py", "from transformers import AutoModel", "tinylatent imports transformers"),
        ("tinylatent/models/a.py", "def f():\n    import peft", "tinylatent imports peft"),
        ("tinylatent/models/huggingface.py", "import submitit", "tinylatent imports submitit"),
        ("tinylatent/lab/launchers/a.py", "import transformers", "tinylatent imports transformers"),
        ("tinylatent/methods/a.py", "import undeclared", "tinylatent imports undeclared"),
        ("theory/tinylatent_theory/a.py", "import transformers", "tinylatent_theory imports transformers"),
        ("tinylatent/core/a.py", "from tinylatent.models.decoder import Decoder", "core imports models"),
        ("tinylatent/engine/a.py", "import tinylatent.objectives.losses", "engine imports objectives"),
        ("tinylatent/engine/a.py", "from tinylatent import methods", "engine imports methods"),
        ("tinylatent/engine/a.py", "from ..methods import CoT2", "engine imports methods"),
        ("tinylatent/engine/a.py", "from .. import methods", "engine imports methods"),
        ("tinylatent/lab/studies/a.py", "from ...cli import main", "lab imports cli"),
        ("tinylatent/lenses/a.py", "def f():\n    from tinylatent.training import loop", "lenses imports training"),
        ("tinylatent/lab/a.py", "if TYPE_CHECKING:\n    from tinylatent.cli import main", "lab imports cli"),
        ("tinylatent/lab/a.py", 'importlib.import_module("tinylatent.cli.main")', "lab imports cli"),
        ("tinylatent/lab/a.py", "from tinylatent import CoT2", "lab imports the public face"),
        ("tinylatent/lab/a.py", "import tinylatent", "lab imports the public face"),
        ("tinylatent/a.py", "", "stands in no room"),
        ("tinylatent/attic/a.py", "", "stands in no room"),
        ("tasks/a.py", "", "stands outside tasks/tinylatent_tasks"),
        ("theory/claims/a.py", "", "stands outside theory/tinylatent_theory"),
    ],
)
def test_each_rule_is_seen_to_fail(place, text, said, tmp_path):
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(text)
    (found,) = breaks(tmp_path)
    assert found.startswith(place)
    assert found.endswith(said)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("tasks/tinylatent_tasks/a.py", "import json, scipy.stats\nfrom .keys import mixed\nfrom . import keys"),
        ("tinylatent/models/huggingface.py", "def f():\n    import transformers"),
        ("tinylatent/lab/launchers/cluster.py", "def f():\n    import submitit"),
        ("tinylatent/lab/a.py", "from tinylatent.core import seeds\nfrom ..lab import run\nimport tinylatent_tasks"),
        ("tinylatent/__init__.py", "from tinylatent.cli.main import main"),
        ("theory/tinylatent_theory/claims/a.py", "from tinylatent.cli import main\nfrom ..predictions import markov"),
    ],
)
def test_what_is_allowed_is_let_pass(place, text, tmp_path):
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert breaks(tmp_path) == []


def test_no_name_is_undefined():
    """Ruff's F821 is left out of lint, since jaxtyping writes shapes as strings: here it counts outside of strings."""
    places = ["tinylatent", "tasks", "theory", "tests", "examples"]
    words = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "--output-format", "json"]
    found = subprocess.run([*words, *places], cwd=ROOT, capture_output=True, text=True, check=False)
    strings: dict[str, list[tuple[tuple[int, int], tuple[int, int]]]] = {}
    undefined = []
    for each in json.loads(found.stdout):
        name = each["filename"]
        if name not in strings:
            with open(name, "rb") as file:
                tokens = [*tokenize.tokenize(file.readline)]
            strings[name] = [(token.start, token.end) for token in tokens if token.type == tokenize.STRING]
        where = each["location"]["row"], each["location"]["column"] - 1
        if not any(start <= where < end for start, end in strings[name]):
            undefined.append(f"{name}:{where[0]}: {each['message']}")
    assert undefined == []
