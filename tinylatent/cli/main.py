"""The command `tinylatent`: finds the command that is named, loads it alone, and speaks one clear line if one is wrong.

Commands are dataclasses registered under the entry-point group "tinylatent.commands", the package's own and any other's
alike; their fields are the arguments, their field docstrings the help. One whose arguments depend on its first word has
a class method `read(arguments)` that returns it filled in.
"""

import ast
import contextlib
import dataclasses
import difflib
import errno
import importlib.metadata
import importlib.util
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

from tinylatent.cli.terminal import filled, first_sentence, in_flags, listed
from tinylatent.core.extras import MissingExtraError
from tinylatent.core.registry import PluginWarning, Registry


@runtime_checkable
class Command(Protocol):
    """A command: fields are arguments, `run` does the work."""

    def run(self) -> None:
        """Does the work, printing to standard output; ValueError and OSError are the user's to mend."""
        ...


COMMANDS: Registry[Any] = Registry(
    "tinylatent.commands",
    "command",
    expects="a dataclass with a method `run`",
    fits=lambda kind: isinstance(kind, type) and dataclasses.is_dataclass(kind) and hasattr(kind, "run"),
)
"""Commands by name, this package's and any other's: a class that makes a `Command`."""
TRACEBACK = "TINYLATENT_TRACEBACK"
"""Variable of the environment that, unless it is empty, has errors shown with the traceback that led to them."""


def summaries() -> dict[str, str]:
    """A sentence about each command. A command is loaded only if its docstring cannot be read from its source.

    What cannot be loaded either is named in a PluginWarning and left out.
    """
    found, errors = {}, {}
    for name, point in sorted(COMMANDS.points.items()):
        try:
            found[name] = first_sentence(_docstring(point.module, point.attr) or COMMANDS[name].__doc__)
        except ValueError as error:
            errors[name] = str(error)
    COMMANDS.leave_out(errors)
    return found


def _docstring(module: str, kind: str) -> str | None:
    """The docstring of a class from the source of its module, which is not imported; None where it is not found."""
    package, *inner = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent.joinpath(*inner).with_suffix(".py") if inner else Path(spec.origin)
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind]
    return ast.get_docstring(found[0]) if found else None


def parse(arguments: Sequence[str] | None = None) -> Command:
    """The command the arguments name, filled in.

    Raises:
        ValueError: the arguments are wrong; the message is one line.
        SystemExit: help was asked for and printed.
    """
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    if name in ("-h", "--help"):
        usage = (
            "usage: tinylatent COMMAND [arguments]; tinylatent COMMAND --help explains them, --version the version\n"
        )
        print(usage, listed("commands", summaries()), sep="\n")
        raise SystemExit(0)
    if name == "--version":
        print(f"tinylatent {importlib.metadata.version('tinylatent')}")
        raise SystemExit(0)
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f"did you mean {close[0]}? Commands are" if close else "expected one of"
        raise ValueError(f"unknown command {name!r}: {meant} {', '.join(COMMANDS)}")
    kind = COMMANDS[name]
    return kind.read(rest) if hasattr(kind, "read") else filled(kind, f"tinylatent {name}", rest)


@contextlib.contextmanager
def _left_out_in_a_line() -> Iterator[None]:
    """What is left out because it is broken is named on standard error, on one line for each package."""
    with warnings.catch_warnings():
        usual, said = warnings.showwarning, set()

        def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if not issubclass(category, PluginWarning):
                usual(message, category, *where, **more)
            elif (whose := getattr(message, "package", "") or str(message)) not in said:
                said.add(whose)
                print(f"tinylatent: {' '.join(str(message).split())}", file=sys.stderr)

        warnings.simplefilter("always", PluginWarning)
        warnings.showwarning = show
        yield


class _Terminated(KeyboardInterrupt):
    """SIGTERM: the system, or who runs us, asks us to end."""


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that workers are stopped and a line is said."""
    main_thread = threading.current_thread() is threading.main_thread()  # no other may change signals
    if not main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(*_: Any) -> NoReturn:
        raise _Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _prepare_streams() -> None:
    """Gives a closed stream the null device, and lets output that knows no Unicode replace what it cannot write."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # in this order each takes the descriptor that was closed
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - until we end
    for stream in (sys.stdout, sys.stderr):
        encoding = (getattr(stream, "encoding", None) or "utf-8").lower().replace("_", "-")
        if not encoding.startswith("utf") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status: 0, 2 for a user's error, 130 when interrupted, 143 on SIGTERM."""
    _prepare_streams()
    command = None
    try:
        with _terminated_as_interrupted(), _left_out_in_a_line():
            command = parse(arguments)
            if "torch" in sys.modules:  # two threads in one process wait for each other when anything else runs
                sys.modules["torch"].set_num_threads(1)
            command.run()
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, MissingExtraError) as error:
        if os.environ.get(TRACEBACK):
            raise
        said = _of_file(error) if isinstance(error, OSError) else in_flags(str(error), command)
        print(f"tinylatent: {' '.join(said.split())}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if "Symlink loop" in str(error):  # Python's word for it
            print(f"tinylatent: a link leads to itself ({error}): remove it, or name another file", file=sys.stderr)
            return 2
        known = isinstance(error, MemoryError) or type(error).__name__ in ("BrokenProcessPool", "OutOfMemoryError")
        if not known and "can't allocate memory" not in str(error):  # torch's word for it on a CPU
            raise
        advice = "use a smaller model, batch or number of problems, or fewer workers"
        print(f"tinylatent: out of memory, or a worker was killed: {advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        kept = "what training has finished, and last checkpoints, are kept; the same command goes on from there"
        print(f"\ntinylatent: interrupted; {kept}", file=sys.stderr)
        return 143 if isinstance(stop, _Terminated) else 130
    return 0


def _of_file(error: OSError) -> str:
    """An error of the system in one sentence: which file, what is wrong, what to try."""
    if error.errno is None:
        return str(error)
    full = "the disk is full: free some space, then give the same command again"
    advice = {
        errno.ENOSPC: full,
        errno.EDQUOT: full,
        errno.EACCES: "you may not use it: change its permissions, or name another place",
        errno.EPERM: "you may not use it: change its permissions, or name another place",
        errno.EROFS: "it is read-only: name another place",
        errno.ENOENT: "there is no such file or folder",
        errno.EISDIR: "it is a folder, where a file was expected",
        errno.ENOTDIR: "a part of it is a file, where a folder was expected",
        errno.EEXIST: "it is a file, where a folder was expected",
    }
    reason = advice.get(error.errno, error.strerror or str(error))
    name = error.filename2 or error.filename  # the second is the target of a renaming
    path = Path(os.fsdecode(name)) if isinstance(name, (str, bytes)) else None
    if path is None:
        return reason
    for place in (path.parent, path):
        if re.fullmatch(r"\..+\.tmp|\.(step|figure)-.+|\.lock", place.name):  # ours, on the way to the user's
            path = place.parent
            break
    return f"{path}: {reason}"


if __name__ == "__main__":
    raise SystemExit(main())
