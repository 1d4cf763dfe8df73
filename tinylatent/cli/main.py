"""The command `tinylatent`: finds its commands, reads the arguments, and speaks one clear line when something is wrong.

Commands are dataclasses registered under the entry-point group "tinylatent.commands", the package's own and any other's
alike; their fields are the arguments, their field docstrings the help.
"""

import contextlib
import importlib.metadata
import io
import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Annotated, Any, Protocol, Union, runtime_checkable

import torch
import tyro


@runtime_checkable
class Command(Protocol):
    """A command: fields are arguments, `run` does the work."""

    def run(self) -> None:
        """Does the work, printing to standard output; ValueError and OSError are the user's to mend."""
        ...


def commands() -> dict[str, type[Command]]:
    """Every registered command by name."""
    points = importlib.metadata.entry_points(group="tinylatent.commands")
    return {point.name: point.load() for point in sorted(points, key=lambda point: point.name)}


def parse(arguments: Sequence[str] | None = None) -> Command:
    """The command the arguments name, filled in.

    Raises:
        ValueError: the arguments are wrong; the message is one line.
        SystemExit: help was asked for and printed.
    """
    kinds = tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in commands().items())
    union: Any = Union[kinds]  # noqa: UP007 - the members are only known at run time
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(union, prog="tinylatent", args=arguments, config=(tyro.conf.CascadeSubcommandArgs,))
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(one_line(said.getvalue())) from None


def one_line(boxed: str) -> str:
    """The first paragraph of a message drawn in a box, as one line."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│ \t") for line in boxed.splitlines()]
    title = lines[0].strip("╭╮─ ") if lines else ""
    body = [line for line in lines[1:] if not line.startswith("╰")]
    rule = next((i for i, line in enumerate(body) if line.startswith("──")), len(body))
    text = re.sub(r"^Error parsing __\S+: ", "", " ".join(body[:rule])).removeprefix(f"{title}: ")
    return f"{title}: {text.rstrip('.')}. See tinylatent --help, or --help after a command."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status: 0, 2 for a user's error, 130 when interrupted."""
    torch.set_num_threads(1)  # two threads in one process wait for each other when anything else runs
    try:
        parse(arguments).run()
        sys.stdout.flush()
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output left, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if os.environ.get("TINYLATENT_TRACEBACK"):
            raise
        print(f"tinylatent: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (MemoryError, BrokenProcessPool, RuntimeError) as error:
        known = isinstance(error, (MemoryError, BrokenProcessPool, torch.OutOfMemoryError))
        if not known and "can't allocate memory" not in str(error):  # torch's word for it on a CPU
            raise
        advice = "use a smaller model, batch or training.problems, or fewer workers"
        print(f"tinylatent: out of memory, or a worker was killed: {advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "what training has finished, and last checkpoints, are kept; the same command goes on from there"
        print(f"\ntinylatent: interrupted; {kept}", file=sys.stderr)
        return 130
    return 0
