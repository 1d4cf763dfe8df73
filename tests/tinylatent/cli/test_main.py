"""The command itself: it finds commands, loads the one that is named, and every user's error is one clear line."""

import errno
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from tinylatent_tasks import MNNS

from tinylatent.__main__ import main as program
from tinylatent.cli import main as cli
from tinylatent.cli.inspect import List
from tinylatent.cli.main import COMMANDS, main, parse
from tinylatent.cli.terminal import description, first_sentence, in_flags, one_line
from tinylatent.core.registry import Registry
from tinylatent.training.config import Training

LOADED = """
import contextlib, io, json, sys
from tinylatent.cli.main import main
found = {}
for words in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main(words.split())
        except SystemExit as stop:
            pass
    found[words] = [*sys.modules]
json.dump(found, sys.stdout)
"""
HEAVY = {"torch", "numpy", "tyro", "scipy.stats", "scipy.optimize", "matplotlib", "transformers", "networkx"}
LEAST = {
    "--help": set(),
    "--version": set(),
    "frontier --task.digits 2": {"numpy", "tyro"},
    "export mnns --count 2": {"numpy", "tyro"},
    "score nowhere.jsonl nowhere.jsonl": {"numpy", "tyro"},
}
"""What a light command needs of what takes long to load."""
OTHERS = [
    "run --help",
    "run mnns/cot2 --help",
    "runs list",
    "plot nothing",
    "show mnns 3 5",
    "predict --help",
    "reproduce --help",
    "bench --help",
    "list",
    "status",
    "claims --names",
]
"""Commands that need numpy and torch beside, and no more."""
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


def loaded(commands, folder):
    """What is loaded of HEAVY after each command, one after the other in a process of their own."""
    words = [sys.executable, "-c", LOADED, *commands]
    done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=folder)
    return {name: {*modules} & {*HEAVY, "tinylatent.cli.run"} for name, modules in json.loads(done.stdout).items()}


def test_a_light_command_loads_no_more_than_it_needs(tmp_path):
    assert loaded(LEAST, tmp_path) == LEAST


def test_the_package_alone_loads_nothing_heavy():
    program = "import sys, tinylatent; sys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) & {*HEAVY, "scipy", "jaxtyping", "msgspec"} == set()


@pytest.mark.slow
def test_a_command_loads_no_more_than_it_needs(tmp_path):
    """No time is measured: what is loaded is what a start takes. Drawing comes last, and loads what draws."""
    draw = "show mnns 3 5 --figure frontier.svg"
    found = loaded([*OTHERS, draw], tmp_path)
    usual = {"torch", "numpy", "tyro", "tinylatent.cli.run"}
    assert {name: modules - usual for name, modules in found.items()} == {
        **{name: set() for name in OTHERS},
        draw: {"matplotlib"},
    }


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
        usual = cli.COMMANDS
        fresh = Registry(usual.group, usual.word, expects=usual.expects, fits=usual.fits)
        monkeypatch.setattr(cli, "COMMANDS", fresh)
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


def test_a_name_that_two_packages_register_is_refused_alone(guests, refused, capsys):
    guests("doubling", "frontier = guest_module:Greet\ngreet = guest_module:Greet")
    for words in (["frontier"], ["frontier", "--help"]):
        error = refused(words)
        assert "two packages register a command 'frontier': " in error
        assert "doubling" in error
        assert "tinylatent" in error.removeprefix("tinylatent: ")
    assert main(["greet"]) == 0
    assert capsys.readouterr().out == "hello\n"


NO_COMMANDS = {
    "no dataclass": ("plain", "class Plain:\n    def run(self):\n        print('ran')\n"),
    "no run": ("idle", "from dataclasses import dataclass\n\n\n@dataclass\nclass Idle:\n    pass\n"),
    "a function": ("call", "def Call():\n    print('called')\n"),
}


@pytest.mark.parametrize(("name", "module"), NO_COMMANDS.values(), ids=NO_COMMANDS)
def test_an_entry_that_is_no_command_is_named_with_its_package(name, module, guests, refused):
    guests("careless", f"{name} = guest_module:{name.title()}", module)
    said = f"the command {name!r} of careless, guest_module:{name.title()}, is not a dataclass with a method `run`"
    assert said in refused([name])


def test_an_unknown_command_names_the_known_ones_and_a_close_one(refused):
    error = refused(["reproduc", "mnns"])
    assert "unknown command 'reproduc': did you mean reproduce?" in error
    assert all(name in error for name in COMMANDS)
    assert "expected one of bench" in refused(["nonsense"])


def test_an_unknown_option_is_named(refused):
    error = refused(["list", "--nonsense"])
    assert "--nonsense" in error
    assert "See tinylatent list --help" in error


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert not stop.value.code
    assert capsys.readouterr().out == f"tinylatent {importlib.metadata.version('tinylatent')}\n"


def test_it_runs_as_a_module_too():
    """As the package, and as the module itself, which would otherwise do nothing and say nothing."""
    for module in ("tinylatent", "tinylatent.cli.main"):
        done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("tinylatent "), module


def failing(error):
    def run(self):
        raise error

    return run


def test_interruption_says_how_to_go_on(monkeypatch, capsys):
    monkeypatch.setattr(List, "run", failing(KeyboardInterrupt()))
    assert main(["list"]) == 130
    assert "same command" in capsys.readouterr().err


class Interrupting:
    """Finds modules as if Ctrl-C came while the command line is being imported."""

    def find_spec(self, name, path=None, target=None):
        if name == "tinylatent.cli.main":
            raise KeyboardInterrupt


def test_interruption_while_the_program_is_being_loaded_is_a_line(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "tinylatent.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    assert program() == 130
    assert capsys.readouterr().err == "\ntinylatent: interrupted before it began\n"


def test_interruption_while_a_command_is_being_loaded_is_a_line_too(guests, capsys):
    """A second or more goes by while torch is imported."""
    guests("slow", "slow = guest_module:Slow", "raise KeyboardInterrupt")
    assert main(["slow"]) == 130
    error = capsys.readouterr().err
    assert error.startswith("\ntinylatent: interrupted; ")
    assert error.count("\n") == 2


def test_being_told_to_end_is_as_being_interrupted(monkeypatch, capsys):
    """What `kill` and job schedulers send; what was there before is there again."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(List, "run", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["list"]) == 143
    assert "interrupted; what training has finished" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


CLOSED = """
import os, sys
from tinylatent.cli.main import main
for name in ("stdin", "stdout", "stderr"):
    setattr(sys, name, None)  # as Python does where a descriptor is closed
os._exit(main(sys.argv[1:]))
"""


def test_closed_streams_are_no_error():
    for words, status in ((["frontier", "--task.digits", "2"], 0), (["nonsense"], 2)):
        done = subprocess.run([sys.executable, "-c", CLOSED, *words], capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")


@pytest.mark.slow
def test_output_that_knows_no_unicode_is_written_all_the_same():
    settings = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    settings.pop("PYTHONIOENCODING", None)
    for words in (["--help"], ["frontier", "--help"], ["frontier", "--task.digits", "2", "--nonsense", "ä"]):
        command = [sys.executable, "-m", "tinylatent", *words]
        done = subprocess.run(command, capture_output=True, check=False, env=settings)
        assert done.returncode == (2 if "ä" in words else 0)
        assert b"Traceback" not in done.stderr
        assert b"frontier" in done.stdout + done.stderr


FILES = {
    "may not": (PermissionError(errno.EACCES, "Permission denied", "/results/.table.csv.x1.tmp"), "/results: you may"),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "/results/runs"), "/results/runs: it is read-only"),
    "full": (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: free some space"),
    "full, a file": (
        OSError(errno.ENOSPC, "No space left", "/x/metrics.jsonl"),
        "/x/metrics.jsonl: the disk is full: f",
    ),
    "full, ours": (OSError(errno.EDQUOT, "Quota", "/x/.step-ab/weights.safetensors"), "/x: the disk is full: free"),
    "a folder": (IsADirectoryError(errno.EISDIR, "Is a directory", b"/x"), "/x: it is a folder, where a file was"),
    "missing": (
        FileNotFoundError(errno.ENOENT, "No such file", "/x/a.jsonl"),
        "/x/a.jsonl: there is no such file or folder",
    ),
    "other": (OSError(errno.EIO, "Input/output error", "/x"), "/x: Input/output error"),
    "of ours": (OSError("a socket was closed"), "a socket was closed"),
}


@pytest.mark.parametrize(("error", "said"), FILES.values(), ids=FILES)
def test_errors_of_the_system_name_the_file_and_what_to_do(error, said, monkeypatch, refused):
    monkeypatch.setattr(List, "run", failing(error))
    found = refused(["list"])
    assert found.startswith(f"tinylatent: {said}")
    assert "Errno" not in found


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


# ---------------------------------------------------------------------------------------------------------------------
# Words for users


@dataclass
class Ask:
    task: MNNS = field(default_factory=MNNS)
    training: Training = field(default_factory=Training)
    count: int = 1


FLAGS = {
    "training.batch_size is 0: expected at least 1": "--training.batch-size is 0: expected at least 1",
    "a batch of 9: lower training.batch_size": "a batch of 9: lower --training.batch-size",
    "digits is 99; try digits=4 (every digit more)": "--task.digits is 99; try --task.digits 4 (every digit more)",
    "low 5, high 3: expected": "--task.low 5, --task.high 3: expected",
    "steps excludes warmup": "--training.steps excludes warmup",
    "of 4 digits, is high": "of 4 digits, is high",
    "count is 0; try 5": "--count is 0; try 5",
    "runs/training.steps/x": "runs/training.steps/x",
    "--training.steps is 0": "--training.steps is 0",
    "the training has steps": "the training has steps",
}


@pytest.mark.parametrize(("text", "expected"), FLAGS.items(), ids=FLAGS)
def test_settings_are_named_as_they_are_typed(text, expected):
    assert in_flags(text, Ask) == expected
    assert in_flags(text, Ask()) == expected


def test_messages_of_commands_without_such_flags_stay_as_they_are():
    for command in (None, List, List()):
        assert in_flags("training.batch_size is 0; digits is 3", command) == "training.batch_size is 0; digits is 3"


def test_every_command_names_flags(refused):
    said = "--task.digits is 99, but it must be from 1 to 12; try --task.digits 4"
    for words in (["export", "mnns"], ["frontier"], ["run", "mnns/cot2"]):
        assert said in refused([*words, "--task.digits", "99"])
    assert "--count is 0" in refused(["export", "mnns", "--count", "0"])
    assert "--workers is 0" in refused(["reproduce", "mnns", "--workers", "0"])
    assert "--training.batch-size is 0" in refused(["run", "mnns/cot2", "--training.batch-size", "0"])


def test_help_says_nothing_of_exceptions(capsys):
    assert (
        description("Some.\n\n    More. Raises ValueError for\n    this and that.\n\n    End.")
        == "Some.\n\nMore.\n\nEnd."
    )
    with pytest.raises(SystemExit):
        main(["export", "mnns", "--help"])
    out = capsys.readouterr().out
    assert "Minimum non-negative sum" in out
    assert "Raises" not in out
