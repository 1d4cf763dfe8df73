"""The command `tinylatent`: finds the command that is named, loads it alone, and speaks one clear line if one is wrong.

Commands are dataclasses registered under the entry-point group "tinylatent.commands", the package's own and any other's
alike; their fields are the arguments, their field docstrings the help. One whose arguments depend on its first word has
a class method `read(arguments)` that returns it filled in.
"""

import ast
import contextlib
import difflib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tinylatent.cli.terminal import filled, first_sentence, listed
from tinylatent.core.registry import PluginWarning, Registry


@runtime_checkable
class Command(Protocol):
    """A command: fields are arguments, `run` does the work."""

    def run(self) -> None:
        """Does the work, printing to standard output; ValueError and OSError are the user's to mend."""
        ...


COMMANDS: Registry[Any] = Registry("tinylatent.commands", "command")
"""Commands by name, this package's and any other's: a class that makes a `Command`."""


def summaries() -> dict[str, str]:
    """A sentence about each command. A command is loaded only if its docstring cannot be read from its source.

    What cannot be loaded either is named in a PluginWarning and left out.
    """
    found = {}
    for name, point in sorted(COMMANDS.points.items()):
        try:
            found[name] = first_sentence(_docstring(point.module, point.attr) or COMMANDS[name].__doc__)
        except ValueError as error:
            warnings.warn(f"left out: {error}", PluginWarning, stacklevel=2)
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
        usage = "usage: tinylatent COMMAND [arguments]; tinylatent COMMAND --help explains them\n"
        print(usage, listed("commands", summaries()), sep="\n")
        raise SystemExit(0)
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f"did you mean {close[0]}? Commands are" if close else "expected one of"
        raise ValueError(f"unknown command {name!r}: {meant} {', '.join(COMMANDS)}")
    kind = COMMANDS[name]
    return kind.read(rest) if hasattr(kind, "read") else filled(kind, f"tinylatent {name}", rest)


@contextlib.contextmanager
def _left_out_in_a_line() -> Iterator[None]:
    """What is left out because it is broken is named on one line of standard error, once."""
    with warnings.catch_warnings():
        usual, said = warnings.showwarning, set()

        def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if not issubclass(category, PluginWarning):
                usual(message, category, *where, **more)
            elif str(message) not in said:
                said.add(str(message))
                print(f"tinylatent: {' '.join(str(message).split())}", file=sys.stderr)

        warnings.simplefilter("always", PluginWarning)
        warnings.showwarning = show
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status: 0, 2 for a user's error, 130 when interrupted."""
    try:
        with _left_out_in_a_line():
            command = parse(arguments)
            if "torch" in sys.modules:  # two threads in one process wait for each other when anything else runs
                sys.modules["torch"].set_num_threads(1)
            command.run()
        sys.stdout.flush()
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output left, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if os.environ.get("TINYLATENT_TRACEBACK"):
            raise
        print(f"tinylatent: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError) or type(error).__name__ in ("BrokenProcessPool", "OutOfMemoryError")
        if not known and "can't allocate memory" not in str(error):  # torch's word for it on a CPU
            raise
        advice = "use a smaller model, batch or training.num_train, or fewer workers"
        print(f"tinylatent: out of memory, or a worker was killed: {advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "what training has finished, and last checkpoints, are kept; the same command goes on from there"
        print(f"\ntinylatent: interrupted; {kept}", file=sys.stderr)
        return 130
    return 0
