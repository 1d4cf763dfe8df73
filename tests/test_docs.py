"""Pages tell the truth: their commands are understood, their links lead somewhere, their Python runs, their numbers are
stored ones, and what programs print stands there as they print it."""

import json
import re
import shlex
import subprocess
import tomllib
from contextlib import nullcontext
from dataclasses import fields
from functools import cache
from urllib.parse import urldefrag

import pytest
import yaml
from pages import (
    BLOCK,
    ROOT,
    anchors,
    commands,
    files,
    flags,
    links,
    lived,
    misquoted,
    named,
    names,
    outputs,
    pages,
    python,
    rendered,
    resolve,
    started,
    unpacked,
)

import tinylatent
from tinylatent.cli.main import COMMANDS, parse
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.tasks import TASKS
from tinylatent.methods import METHODS

PAGES = pages()
DOCS = {name: text for name, text in PAGES.items() if name.startswith("docs/")}
LOG = (ROOT / "results/LOG.md").read_text(encoding="utf-8")
INSTALLED = {name for name, text in PAGES.items() if "pyproject.toml" in named(text)}
"""Pages that install a package of their own: their commands run there."""
over_pages = pytest.mark.parametrize("name", PAGES)
SLOW = ("run ", "runs ", "status", "show ")
"""Commands whose arguments take long to read."""


def asked():
    """Every command that a page shows and does not run, with its page."""
    found = {each: name for name, text in PAGES.items() if name not in INSTALLED for each in commands(text)}
    slow = {each: [pytest.mark.slow] * each.removeprefix("tinylatent ").startswith(SLOW) for each in found}
    return [pytest.param(each, id=f"{name}: {each}", marks=slow[each]) for each, name in found.items()]


@pytest.mark.parametrize("command", asked())
def test_commands_are_understood(command, monkeypatch, tmp_path):
    """Each is read with all its flags, and not run; folders it names are those of runs that are not there.

    A command with a word in capitals, such as FILE, or without any, is one to fill in: it has to exist.
    """
    monkeypatch.chdir(tmp_path)
    name, *words = shlex.split(command)[1:]
    assert name in COMMANDS
    if not words or "..." in command or any(word.isupper() for word in re.findall(r"[A-Za-z]{2,}", command)):
        return
    if "--help" in words:
        with pytest.raises(SystemExit):
            parse([name, *words])
        return
    lacking = pytest.raises(ValueError, match="holds no run") if "--start" in words else nullcontext()
    with lacking:
        parse([name, *words])


@over_pages
def test_links_lead_to_files_and_headings(name):
    folder = (ROOT / name).parent
    for target, anchor in map(urldefrag, links(PAGES[name])):
        path = (folder / target).resolve() if target else ROOT / name
        assert path.exists(), target
        if anchor:
            text = path.read_text(encoding="utf-8")
            assert anchor in anchors(text) or f'id="{anchor}"' in text, f"{target}#{anchor}"


def test_links_of_the_log_lead_to_files():
    assert len(links(LOG)) > 20
    assert [target for target in links(LOG) if not (ROOT / "results" / urldefrag(target)[0]).exists()] == []


@over_pages
def test_files_of_python_exist(name):
    """By their path from the root or from a package, or by their name alone where only one file has it."""
    places = [ROOT, ROOT / "tinylatent", ROOT / "tasks/tinylatent_tasks", ROOT / "theory/tinylatent_theory"]
    known = {path.name for place in places[1:] for path in place.rglob("*.py")} | {*named(PAGES[name])}
    absent = [
        file
        for file in files(PAGES[name])
        if not any((place / file).exists() for place in places) and ("/" in file or file not in known)
    ]
    assert absent == []


HEAVY = [pytest.param(name, marks=[pytest.mark.slow] * ("huggingface" in str(names(PAGES[name])))) for name in PAGES]
"""Pages, slow where what they name imports transformers."""


@pytest.mark.parametrize("name", HEAVY)
def test_what_is_named_by_its_path_exists(name):
    for path in names(PAGES[name]):
        if path.rpartition(".")[0] != "tinylatent" or path.rpartition(".")[2] not in GROUPS:
            resolve(path)


GROUPS = {"methods", "tasks", "studies", "commands", "launchers"}
"""Groups of entry points."""


@cache
def known_flags():
    """Every flag of a setting: those of all tasks and methods, and of models, training and seeds."""
    parts = {"task": TASKS.loaded().values(), "method": METHODS.loaded().values()}
    whole = Experiment()
    parts |= {part: [type(getattr(whole, part))] for part in ("model", "training", "seeds")}
    return {
        f"--{part}.{field.name.replace('_', '-')}"
        for part, kinds in parts.items()
        for k in kinds
        for field in fields(k)
    }


@pytest.mark.parametrize("name", [name for name in PAGES if name not in INSTALLED])
def test_flags_of_settings_exist(name):
    assert flags(PAGES[name]) - known_flags() == set()


@over_pages
def test_what_is_quoted_stands_in_the_tables(name):
    """Every number with two decimals in a paragraph that links tables."""
    assert misquoted(PAGES[name], (ROOT / name).parent)[1] == []


@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if BLOCK.search(text)])
def test_what_programs_print_stands_there(name):
    """`make docs` writes it anew."""
    assert rendered(PAGES[name]) == PAGES[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if python(text)])
def test_python_runs(name, tmp_path):
    """With trainings cut short, where they take thousands of steps."""
    assert lived(re.sub(r"\bsteps=\d{4,}\b", "steps=200", PAGES[name]), tmp_path)


@pytest.mark.slow
def test_the_suite_of_all_tasks_takes_the_one_of_extending(tmp_path):
    """For methods `test_added` has such a test."""
    unpacked(DOCS["docs/extending.md"], tmp_path)
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-rA", "-k", "Parity or parity")
    said = started(ROOT, tmp_path, "-m", "pytest", "tests/tasks/test_registry.py", *options)
    assert len(re.findall(r"^PASSED.*parity", said, re.MULTILINE | re.IGNORECASE)) > 15


def test_every_page_is_found_from_the_readme():
    reached, waiting = set(), ["README.md"]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            folder = (ROOT / name).parent
            targets = [(folder / urldefrag(link)[0]).resolve() for link in links(PAGES[name])]
            waiting += [path for path in (each.relative_to(ROOT).as_posix() for each in targets) if path in PAGES]
    assert {*PAGES} - reached == set()


def test_every_task_and_method_has_its_page():
    about = DOCS["docs/tasks.md"]
    assert [name for name in TASKS if f"\n## {name}\n" not in about] == []
    methods = "".join(text for name, text in DOCS.items() if name.startswith("docs/methods"))
    assert [name for name in METHODS if name not in methods] == []


def test_the_citation_is_whole():
    """The keys that CFF 1.2.0 demands, nothing that it does not know, and what pyproject says."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= {*cited} <= CFF
    assert cited["cff-version"] == "1.2.0"
    assert (cited["version"], cited["license"], cited["keywords"]) == (
        project["version"],
        project["license"],
        project["keywords"],
    )
    assert [person["name"] for person in cited["authors"]] == [person["name"] for person in project["authors"]]
    for reference in cited["references"]:
        assert {"type", "title", "authors"} <= {*reference}
        assert all({*person} <= {"family-names", "given-names", "name"} for person in reference["authors"])


CFF = {
    "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords",
    "license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact",
    "repository-code", "title", "type", "url", "version",
}  # fmt: skip
"""Every key that CFF 1.2.0 knows at the top."""


def test_the_changelog_knows_the_version():
    told = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+?):", told, re.MULTILINE) == ["Unreleased", tinylatent.__version__]
    assert [link for link in links(told) if not (ROOT / link).exists()] == []


def test_notebooks_are_whole_and_hold_no_output():
    """The keys of nbformat 4.5, ids that differ, no output that could be out of date; `test_python_runs` runs them."""
    notebooks = [*ROOT.glob("examples/*.ipynb")]
    assert notebooks
    for path in notebooks:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
        assert {*notebook} == {"cells", "metadata", "nbformat", "nbformat_minor"}
        cells = notebook["cells"]
        assert len({cell["id"] for cell in cells}) == len(cells)
        for cell in cells:
            of_code = {"execution_count": None, "outputs": []} if cell["cell_type"] == "code" else {}
            assert cell == {**{key: cell[key] for key in ("cell_type", "id", "metadata", "source")}, **of_code}


def test_what_pages_write_is_ignored_and_what_is_stored_is_not():
    if not (ROOT / ".git").exists():
        pytest.skip("git alone knows what it ignores")
    written = {path for text in PAGES.values() for path in outputs(text) if not path.startswith("/")}
    assert len(written) > 5
    stored = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("results/*/*.*") if path.parent.name != "runs"]
    asked = [*sorted(written), *stored, *PAGES]
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", *asked], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert {*done.stdout.splitlines()} == written


def test_the_makefile_has_what_it_and_the_pages_say():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {*re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()}
    assert {*re.findall(r"^([a-z]+):", makefile, re.MULTILINE)} == targets
    assert {*re.findall(r"^# make ([a-z]+) ", makefile, re.MULTILINE)} == targets - {"install", "check"}
    assert {
        name for text in PAGES.values() for name in re.findall(r"(?:`|^ +)make ([a-z]+)", text, re.MULTILINE)
    } <= targets
