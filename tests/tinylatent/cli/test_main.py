"""The command itself: it finds commands, loads the one that is named, and every user's error is one clear line."""

import subprocess
import sys

import pytest

from tinylatent.cli import main as cli
from tinylatent.cli.inspect import List
from tinylatent.cli.main import COMMANDS, main, parse
from tinylatent.cli.terminal import first_sentence, one_line
from tinylatent.core.registry import Registry

UNLOADED = """
import sys
from tinylatent.cli.main import main
try:
    main(["--help"])
except SystemExit as stop:
    assert not stop.code
heavy = {"torch", "numpy", "scipy", "tinylatent.cli.run"} & {*sys.modules}
assert not heavy, heavy
"""
GUEST = '''
from dataclasses import dataclass


@dataclass
class Greet:
    """Says hello. Then it stops."""

    def run(self):
        """Greets."""
        print("hello")


Late = dataclass(type("Late", (), {"__doc__": "Made when loaded.", "run": print}))
'''


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_all_commands_are_listed_with_a_line_each(words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(words)
    assert not stop.value.code
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [line[0] for line in lines] == [*COMMANDS]
    assert dict(lines)["bench"] == first_sentence(COMMANDS["bench"].__doc__)


def test_the_list_of_commands_loads_none_of_them():
    subprocess.run([sys.executable, "-c", UNLOADED], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("name", sorted({*COMMANDS} - {"run"}))
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        parse([name, "--help"])
    assert not stop.value.code
    assert f"usage: tinylatent {name}" in capsys.readouterr().out


def test_commands_of_other_rooms_are_found(capsys):
    assert main(["frontier", "--task.digits", "2"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["step", "traces"]


@pytest.fixture
def guests(installed, monkeypatch):
    """guests(package, points, module) installs commands of another package."""

    def install(package, points, module=GUEST):
        installed(package, f"[tinylatent.commands]\n{points}\n", module)
        monkeypatch.setattr(cli, "COMMANDS", Registry("tinylatent.commands", "command"))
        sys.modules.pop("guest_module", None)

    return install


def test_a_command_of_another_package_is_listed_and_run(guests, capsys):
    """Its line is its docstring's first sentence, read from its source, or loaded where it does not stand there."""
    guests("greeting", "greet = guest_module:Greet\nlate = guest_module:Late")
    assert main(["greet"]) == 0
    assert capsys.readouterr().out == "hello\n"
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert "  greet      Says hello.\n" in out
    assert "  late       Made when loaded.\n" in out


def test_a_broken_command_is_named_on_one_line_and_left_out(guests, refused, capsys):
    guests("breaking", "broken = guest_module:Nothing")
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert not stop.value.code
    out, error = capsys.readouterr()
    assert "broken" not in out
    assert all(name in out for name in COMMANDS)
    assert error.startswith("tinylatent: left out: the command 'broken' of breaking cannot be loaded")
    assert error.count("\n") == 1
    assert "the command 'broken' of breaking cannot be loaded" in refused(["broken"])
    assert main(["list", "--json"]) == 0


def test_a_name_that_two_packages_register_is_an_error(guests, refused):
    guests("doubling", "list = guest_module:Greet")
    for words in (["--help"], ["list"], ["bench", "--help"]):
        error = refused(words)
        assert "two packages register a command 'list': " in error
        assert "doubling" in error
        assert "tinylatent" in error.removeprefix("tinylatent: ")


def test_an_unknown_command_names_the_known_ones_and_a_close_one(refused):
    error = refused(["reproduc", "mnns"])
    assert "unknown command 'reproduc': did you mean reproduce?" in error
    assert all(name in error for name in COMMANDS)
    assert "expected one of bench" in refused(["nonsense"])


def test_an_unknown_option_is_named(refused):
    error = refused(["list", "--nonsense"])
    assert "--nonsense" in error
    assert "See tinylatent list --help" in error


def failing(error):
    def run(self):
        raise error

    return run


def test_interruption_says_how_to_go_on(monkeypatch, capsys):
    monkeypatch.setattr(List, "run", failing(KeyboardInterrupt()))
    assert main(["list"]) == 130
    assert "same command" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        type("OutOfMemoryError", (RuntimeError,), {})(),
    ],
)
def test_running_out_of_memory_says_what_to_try(error, monkeypatch, refused):
    monkeypatch.setattr(List, "run", failing(error))
    assert "use a smaller model" in refused(["list"])


def test_a_mistake_of_ours_is_not_taken_for_the_users(monkeypatch):
    monkeypatch.setattr(List, "run", failing(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["list"])


def test_a_traceback_is_shown_when_asked_for(monkeypatch, refused):
    monkeypatch.setattr(List, "run", failing(ValueError("two\nlines")))
    assert refused(["list"]) == "tinylatent: two lines\n"
    monkeypatch.setenv("TINYLATENT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="two"):
        main(["list"])


def test_a_reader_that_leaves_is_no_error():
    """As `| head -1` does: the pipe is closed before anything is written."""
    program = "import sys; from tinylatent.cli.main import main; sys.exit(main(['frontier', '--task.digits', '2']))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


BOXES = {
    "drawn": "╭─ Wrong ─╮\n│ --one   │\n│ is two. │\n│ ─────── │\n│ more    │\n╰─────────╯",
    "without walls": " Wrong \n ------- \n  --one \n  is two. \n ------- \n  more  \n",
}


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_one_line_joins_the_first_paragraph_of_a_box(box):
    assert one_line(box) == "Wrong: --one is two"
    assert one_line(box.replace("Wrong", "Value error").replace("--one", "Error parsing task: one")) == "one is two"
