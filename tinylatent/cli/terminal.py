"""Words in and out: arguments fill a command, errors become one line, entries are listed."""

import contextlib
import io
import operator
import re
from collections.abc import Mapping, Sequence
from itertools import dropwhile, takewhile
from typing import Any, Literal

import tyro

Device = Literal["auto", "cpu", "cuda"]
"""Where to compute; auto takes a GPU where there is one."""


def filled(kind: Any, prog: str, arguments: Sequence[str], default: Any = None) -> Any:
    """A command of this kind, filled in from its arguments.

    Args:
        kind: a dataclass, whose field docstrings are the help.
        prog: how the command is called in its help.
        arguments: what follows its name.
        default: gives the values of arguments that are left out; those of the fields by default.

    Raises:
        ValueError: the arguments are wrong; the message is one line.
        SystemExit: help was asked for and printed.
    """
    said, own = io.StringIO(), {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=prog, args=arguments, config=(tyro.conf.CascadeSubcommandArgs,), **own)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{one_line(said.getvalue())}. See {prog} --help") from None


def one_line(boxed: str) -> str:
    """The first paragraph of a message drawn in a box, as one line; boxes have no walls where there is no Unicode."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("╭╮╰╯│─ \t") for line in boxed.splitlines()]
    title, *body = ["" if set(line) == {"-"} else line for line in lines] or [""]  # rules are empty
    words = " ".join(takewhile(bool, dropwhile(operator.not_, body)))
    text = re.sub(r"^Error parsing (?!--)\S+: ", "", words).removeprefix(f"{title}: ").rstrip(".")
    return text if title == "Value error" else f"{title}: {text}"


def first_sentence(text: str | None) -> str:
    """The first sentence of a docstring, on one line."""
    return " ".join((text or "").split()).split(". ")[0].rstrip(".") + "."


def listed(title: str, entries: Mapping[str, str]) -> str:
    """A title, and below it a line for each name and what is said of it."""
    width = max(map(len, entries), default=0)
    return "\n".join([title, *(f"  {name:{width}s}  {text}" for name, text in entries.items())])
