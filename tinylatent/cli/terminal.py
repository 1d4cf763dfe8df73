"""Words in and out: arguments fill a command, errors become one line, entries are listed."""

import argparse
import contextlib
import dataclasses
import inspect
import io
import operator
import re
import typing
from collections.abc import Mapping, Sequence
from itertools import dropwhile, takewhile
from typing import Any, Literal

Device = Literal["auto", "cpu", "cuda", "mps"]
"""Where to compute; auto takes a GPU where there is one, CUDA's before Apple's (mps)."""


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
    import tyro  # a twelfth of a second that the list of commands does not need

    said, own = io.StringIO(), {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=prog, args=arguments, config=(tyro.conf.CascadeSubcommandArgs,), **own)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{in_flags(one_line(said.getvalue()), kind, default)}. See {prog} --help") from None


def peeked(flags: Sequence[str], *names: str) -> argparse.Namespace:
    """What stands behind some flags, before all of them are read: None for one that is missing or has no value.

    names: of the flags, such as "hf.path", whose value is then `hf_path`.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(f"--{name}", dest=name.replace(".", "_"), nargs="?")
    return parser.parse_known_args(flags)[0]


def in_flags(text: str, kind: Any, default: Any = None) -> str:
    """A message with the flags that were typed, where it names settings as the code does.

    "training.batch_size is 0" becomes "--training.batch-size is 0" for a command with such a flag, and "digits is 99;
    try digits=4" becomes "--task.digits is 99; try --task.digits 4" for one that has `--task.digits` alone.

    Args:
        text: the message.
        kind: the command, or the class of it; None leaves the text as it is.
        default: gives the classes of its parts, where the command is not filled in.
    """
    own, parts = _flags(kind, default)
    for name, flag in own.items():
        text = re.sub(rf"^{name}(?= is )", flag, text)
    for flag in {flag for flags in parts.values() for flag in flags}:
        text = re.sub(rf"(?<![\w./-]){flag[2:].replace('-', '_')}(?!\w)", flag, text)
    for name, (flag, *others) in parts.items():
        if others:  # of two parts: which of them is meant cannot be told
            continue
        text = re.sub(rf"(?<![\w./-]){name}=(?=\S)", f"{flag} ", text)
        text = re.sub(rf"(^|: |, ){name}(?= is | -?\d)|^{name}(?= \w)", rf"\g<1>{flag}", text)
    return text


def _flags(kind: Any, default: Any) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The flags of a command itself by field, and those of its parts: all that a name may stand for."""
    import tyro

    _, *positional = typing.get_args(tyro.conf.Positional[str])
    own, parts = {}, dict[str, list[str]]()
    command = typing.get_origin(kind) or kind
    if not dataclasses.is_dataclass(command):
        return {}, {}
    hints = typing.get_type_hints(command if isinstance(command, type) else type(command), include_extras=True)
    for field in dataclasses.fields(command):
        value = getattr(kind if default is None else default, field.name, None)
        filled_in = dataclasses.is_dataclass(value) and not isinstance(value, type)
        groups = [type(value)] if filled_in else _dataclasses_in(hints[field.name])
        names = dict.fromkeys(each.name for group in groups for each in dataclasses.fields(group))
        for name in names:
            parts.setdefault(name, []).append(f"--{field.name}.{name}".replace("_", "-"))
        if not names and not {*positional} & {*getattr(hints[field.name], "__metadata__", ())}:
            own[field.name] = f"--{field.name}".replace("_", "-")
    return own, parts


def _dataclasses_in(hint: Any) -> list[type]:
    """The dataclasses that an annotation names, inside unions too."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [found for each in typing.get_args(hint) for found in _dataclasses_in(each)]


def refuse_idle(command: Any, names: Sequence[str], why: str) -> None:
    """Refuses flags that are given and have no effect beside others.

    Args:
        command: filled in.
        names: fields that have no effect.
        why: what makes them so, such as "beside --names".

    Raises:
        ValueError: one of the fields has another value than its default.
    """
    for field in dataclasses.fields(command):
        if field.name in names and getattr(command, field.name) != field.default:
            raise ValueError(f"--{field.name.replace('_', '-')} has no effect {why}: leave it out")


PLAIN = {
    r".*Error parsing (--\S+): invalid literal for int\(\) with base 10: (.*)": r"\1 is \2: expected a whole number",
    r".*Error parsing (--\S+): could not convert string to float: (.*)": r"\1 is \2: expected a number, such as 1e-3",
    r".*invalid choice (.*) for argument '(--\S+)'. Expected one of \((.*)\)": r"\2 is \1: expected one of \3",
    r".*Missing value for argument '(--\S+)'\. Expected .*": r"\1 needs a value",
    r"Unrecognized options: (.*)": r"unknown: \1",
    r".*Missing from (\S.*?): ([A-Z|]+|--\S+ \S+) (.*?)\.? \(required\)": r"\1 needs \2: \3",
}
"""What the parser of flags says, and the same as the rest of the program says things."""


def one_line(boxed: str) -> str:
    """The first paragraph of a message drawn in a box, as one line; boxes have no walls where there is no Unicode."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("╭╮╰╯│─ \t") for line in boxed.splitlines()]
    title, *body = ["" if set(line) == {"-"} else line for line in lines] or [""]  # rules are empty
    words = " ".join(takewhile(bool, dropwhile(operator.not_, body)))
    text = re.sub(r"^Error parsing (?!--)\S+: ", "", words).removeprefix(f"{title}: ").rstrip(".")
    whole = text if title == "Value error" else f"{title}: {text}"
    for pattern, plain in PLAIN.items():
        if found := re.fullmatch(pattern, whole):
            return found.expand(plain)
    return whole


def description(text: str | None) -> str:
    """A docstring without the sentence, at the end of a paragraph, that says what is raised: help for users."""
    return re.sub(r"\s*\bRaises ValueError\b.*?(?=\n\s*\n|$)", "", inspect.cleandoc(text or ""), flags=re.DOTALL)


def first_sentence(text: str | None) -> str:
    """The first sentence of a docstring, on one line."""
    return " ".join((text or "").split()).split(". ")[0].rstrip(".") + "."


def listed(title: str, entries: Mapping[str, str]) -> str:
    """A title, and below it a line for each name and what is said of it."""
    width = max(map(len, entries), default=0)
    return "\n".join([title, *(f"  {name:{width}s}  {text}" for name, text in entries.items())])
