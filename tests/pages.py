"""Pages: README, docs and notebooks, taken apart so that tests can hold what they say against the code.

`python -m tests.pages` writes docs/records.md anew, and what stands between markers in all other pages:

    <!-- session -->    indented lines "$ command", each with what it prints; one folder for all sessions of a page
    <!-- settings: x --> the settings of task or method x
    <!-- bench -->      the stored figures of `tinylatent bench`
    <!-- ledger -->     every claim; <!-- origins --> counts them by whose they are, <!-- studies --> lists all studies,
                        <!-- published --> all published runs; <!-- analyses --> all published analyses
    <!-- printed: n --> what the n-th block of code of docs/real_model.md printed; `python -m tests.real_model` runs it
"""

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.listed import analyses, ledger, origins, published, studies
from tests.schema import _default as default
from tests.schema import own_fields, render

ROOT = Path(__file__).resolve().parents[1]
INDENT = "    "
BLOCK = re.compile(r"(<!-- (?P<kind>[\w-]+)(?:: (?P<about>[^>]*))? -->\n)(?P<body>.*?)(<!-- /(?P=kind) -->)", re.DOTALL)
FENCED = {kind: re.compile(rf"^```{kind}\n(.*?)^```$", re.DOTALL | re.MULTILINE) for kind in ("python", "toml")}


def pages() -> dict[str, str]:
    """The text of every page by its path from the root; a notebook as its cells, code between fences."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
    found = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    for path in sorted(ROOT.glob("examples/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        told = ("".join(cell["source"]) for cell in cells)
        fenced = (
            text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
            for cell, text in zip(cells, told, strict=True)
        )
        found[path.relative_to(ROOT).as_posix()] = "\n\n".join(fenced)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What a page says


def block(text: str, name: str) -> str:
    """What stands between two markers, without the indentation of code."""
    found = next((each for each in BLOCK.finditer(text) if each["kind"] == name), None)
    assert found is not None, name
    return "\n".join(line.removeprefix(INDENT) for line in found["body"].splitlines())


def commands(text: str, spans: bool = True) -> list[str]:
    """Every command of ours on a page, without what is said behind it: lines of code and, if asked, of sentences."""
    found = re.findall(r"^ +(?:\$ )?(tinylatent [a-z].*)$", text, re.MULTILINE)
    found += re.findall(r"`(tinylatent [a-z][^`]*)`", text) if spans else []
    return [*dict.fromkeys(re.split(r"  +| # | [|>]+ ", " ".join(each.split("\n")))[0].strip() for each in found)]


def links(text: str) -> list[str]:
    """The targets of all links that lead to files of the repository, anchors included."""
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in targets if not re.match(r"https?:|mailto:", target)]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as they are made where it is shown."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def files(text: str) -> set[str]:
    """The files of Python that a page names."""
    return {*re.findall(r"`([\w/]+\.py)`", text)}


def names(text: str) -> set[str]:
    """The modules, classes and functions that a page names by their full path."""
    return {*re.findall(r"`(tinylatent(?:_tasks|_theory)?(?:\.\w+)+)(?:\(.*?\))?`", text)}


def flags(text: str) -> set[str]:
    """The flags of ours that a page names."""
    return {*re.findall(r"--(?:task|method|model|training|seeds)\.[\w-]+", text)}


def python(text: str) -> list[str]:
    """The blocks of Python on a page, in order: fenced ones, or indented ones that begin with an import."""
    indented = re.findall(r"(?:^|\n\n)((?: {4}(?:import|from) .*\n)(?:(?: {4}.*)?\n)*)", text)
    return FENCED["python"].findall(text) or [re.sub(r"^ {4}", "", each, flags=re.MULTILINE) for each in indented]


def named(text: str) -> dict[str, str]:
    """The files that a page writes out whole, by name: fenced blocks whose first line is a comment with the name."""
    blocks = [block for fence in FENCED.values() for block in fence.findall(text)]
    found = ((re.match(r"# ([\w.-]+\.(?:py|toml))\n", block), block) for block in blocks)
    return {name[1]: block for name, block in found if name}


def lived(text: str, folder: Path) -> str:
    """Does what a page shows, in a process and a folder of its own, and returns what it printed.

    Its files are written, and installed if one is a pyproject.toml; its Python runs in order; where files were
    installed, its commands run too.
    """
    whole = unpacked(text, folder)
    (folder / "page.py").write_text("\n\n".join(each for each in python(text) if each not in whole.values()))
    asked = [shlex.split(each)[1:] for each in commands(text, spans=False)] if "pyproject.toml" in whole else []
    (folder / "driver.py").write_text(DRIVER.format(asked))
    return started(folder, folder, "driver.py")


def unpacked(text: str, folder: Path) -> dict[str, str]:
    """Writes the files of a page into a folder, installs them if one is a pyproject.toml, and returns them."""
    whole = named(text)
    for name, block in whole.items():
        (folder / name).write_text(block, encoding="utf-8")
    if "pyproject.toml" in whole:
        _install(tomllib.loads(whole["pyproject.toml"])["project"], folder)
    return whole


def started(folder: Path, site: Path, *words: str) -> str:
    """What Python prints in a folder where a page's files are installed; it must end well."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site), "MPLBACKEND": "agg"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


DRIVER = """
import runpy
from tinylatent.cli.main import main

if __name__ == "__main__":
    runpy.run_path("page.py", run_name="__main__")
    for words in {}:
        print("$", *words, flush=True)
        assert main(words) == 0, words
"""


def _install(project: dict[str, Any], folder: Path) -> None:
    """Tells Python of a package in a folder on its path, as pip would."""
    info = folder / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = (
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in points.items()), ""])
        for group, points in project["entry-points"].items()
    )
    (info / "entry_points.txt").write_text("\n".join(groups))


def outputs(text: str) -> set[str]:
    """The files and folders that a page's commands and Python write."""
    return {*re.findall(r"--(?:out|output|figure) ([\w./-]+)", text), *re.findall(r"\bout=\"([^\"]+)\"", text)}


def resolve(name: str) -> Any:
    """What a full path names: a module, or an attribute of one."""
    parts = name.split(".")
    for stop in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            found = importlib.import_module(".".join(parts[:stop]))
            for part in parts[stop:]:
                found = getattr(found, part)
            return found
    raise ModuleNotFoundError(name)


def misquoted(text: str, folder: Path) -> tuple[int, list[str]]:
    """How many numbers with two decimals stand in paragraphs that link tables, and those that stand in no such table.

    folder: where the page's links begin.
    """
    checked, wrong = 0, []
    for paragraph in text.split("\n\n"):
        tables = re.findall(r"\]\(([^)#]+/table\.md)\)", paragraph)
        told = "".join((folder / table).read_text(encoding="utf-8") for table in tables)
        for number in re.findall(r"(?<![\d.])\d+\.\d\d(?![\d.])", paragraph) if tables else []:
            checked += 1
            if number not in told:
                wrong.append(f"{number} in: {paragraph[:60]}")
    return checked, wrong


# ---------------------------------------------------------------------------------------------------------------------
# What is written by programs


def rendered(text: str) -> str:
    """The page with everything between markers written anew."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        return BLOCK.sub(_written, text)


def _written(found: re.Match[str]) -> str:
    if found["kind"] not in WRITERS:
        return found[0]
    return f"{found[1]}\n{WRITERS[found['kind']](found['about'], found['body'])}\n{found[5]}"


def _session(about: str | None, body: str) -> str:
    """The commands of a session, and what each prints."""
    said = []
    for command in re.findall(r"^ {4}\$ (.*)$", body, re.MULTILINE):
        printed = _run(command).rstrip()
        said += [f"$ {command}", *printed.splitlines()]
    return "".join(f"{INDENT}{line}".rstrip() + "\n" for line in said)


def _run(command: str) -> str:
    """What a command prints: one of ours in this process, another in a shell."""
    if not command.startswith("tinylatent ") or ">" in command:
        return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout
    from tinylatent.cli.main import main  # not at the top: shape checks of tests hook in first

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert main(shlex.split(command)[1:]) == 0, command
    return out.getvalue()


def _settings(about: str | None, body: str) -> str:
    """A table of the settings of a task or method: names, defaults, meanings."""
    from tinylatent.lab.tasks import TASKS
    from tinylatent.methods import METHODS

    kind: Any = {**TASKS.loaded(), **METHODS.loaded()}[str(about)]
    rows: dict[str, str] = {}  # a class that changes a default says what it means anew
    for owner in reversed(kind.__mro__):
        fields = getattr(owner, "__dataclass_fields__", {})
        own = own_fields(owner) if fields and owner.__module__.startswith("tinylatent") else {}
        rows |= {
            name: f"| `{name}` | `{default(fields[name]).removeprefix(' = ')}` | {' '.join(meaning.split())} |"
            for name, (hint, meaning) in own.items()
            if name in fields and "ClassVar" not in hint
        }
    return "\n".join(["| setting | default | meaning |", "| --- | --- | --- |", *rows.values(), ""])


def _bench(about: str | None, body: str) -> str:
    """The stored figures of `tinylatent bench`."""
    stored = json.loads((ROOT / "results/bench/bench.json").read_text(encoding="utf-8"))
    figures = {name: value for name, value in stored.items() if isinstance(value, float)}
    lines = (
        f"{name:36s} {value:12,.3f}" if value < 100 else f"{name:36s} {value:12,.0f}" for name, value in figures.items()
    )
    return "".join(f"{INDENT}{line}\n" for line in lines)


def _printed(about: str | None, body: str) -> str:
    """What a block of code of docs/real_model.md printed where it was run, counted from 1."""
    stored = json.loads((ROOT / "results/bench/real_model.json").read_text(encoding="utf-8"))
    return "".join(f"{INDENT}{line}".rstrip() + "\n" for line in stored["printed"][int(str(about)) - 1].splitlines())


WRITERS: dict[str, Callable[[str | None, str], str]] = {
    "session": _session,
    "settings": _settings,
    "bench": _bench,
    "ledger": ledger,
    "published": published,
    "analyses": analyses,
    "printed": _printed,
    "origins": origins,
    "studies": studies,
}
"""What writes a kind of block, from what its marker says and what it held."""


def written() -> dict[str, str]:
    """Every page that programs write, whole or between markers, as it should be."""
    found = {name: rendered(text) for name, text in pages().items() if name.endswith(".md")}
    return found | {"docs/records.md": render()}


if __name__ == "__main__":
    for page, text in written().items():
        if text != (ROOT / page).read_text(encoding="utf-8"):
            (ROOT / page).write_text(text, encoding="utf-8")
            print(f"{page} written anew")
