"""JSON lines in and out: checked as they are read, with where they stand; written whole or not at all.

What is read must be standard JSON: no NaN, no number beyond a float, no name twice in an object. An output never
replaces what is read, and another file only when told to.
"""

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tinylatent_tasks.checks import short
from tqdm import tqdm

from tinylatent.core.files import atomic, json_text, json_value, naming

Each = TypeVar("Each")
Line = tuple[str, Any]
"""Where a JSON value stands, in words, and the value."""
PROBE = 1000
"""Lines after which the size of all of them is known well enough."""


# ---------------------------------------------------------------------------------------------------------------------
# In


def read_lines(path: Path | None) -> list[Line]:
    """Every line of a file, or of standard input, that is not empty.

    Raises:
        ValueError: there is none, or one is not JSON in UTF-8; the message says where it stands.
    """
    source = "standard input" if path is None else str(path)
    try:
        text = sys.stdin.read().removeprefix("\ufeff") if path is None else path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text ({error}): save it as UTF-8") from None
    lines = [
        (f"{source}, line {number}", _value(line, f"{source}, line {number}"))
        for number, line in enumerate(progress(text.split("\n"), "reading", "line"), 1)
        if line.strip()
    ]
    if not lines:
        raise ValueError(f"{source} is empty: expected one JSON value a line")
    return lines


def _value(line: str, where: str) -> Any:
    try:
        return json_value(line)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply: expected one JSON value a line") from None
    except ValueError as error:
        said = "an integer of thousands of digits" if "set_int_max_str_digits" in str(error) else error
        raise ValueError(f"{where} is not JSON ({said}): expected one JSON value a line") from None


def identity(value: Any, where: str) -> int | str:
    """The "id" of a line; ValueError unless there is one, an integer or a string."""
    id_ = value.get("id") if isinstance(value, dict) else None
    if not isinstance(id_, (int, str)) or isinstance(id_, bool):
        raise ValueError(f'{where} has no "id", or one that is no integer or string: expected such as {{"id": 0, ...}}')
    return id_


def read_by_id(path: Path) -> dict[int | str, Line]:
    """The lines of a file by their "id"; ValueError for a line without one, or two with the same."""
    found: dict[int | str, Line] = {}
    for where, value in read_lines(path):
        id_ = identity(value, where)
        if id_ in found:
            raise ValueError(f"{where}: the id {short(id_)} stands there twice")
        found[id_] = where, value
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Out


def check_output(output: Path | None, overwrite: bool, *inputs: Path | None) -> None:
    """Refuses an output before any work.

    Args:
        output: the file to write; None is standard output, which is never refused.
        overwrite: whether it may replace a file.
        inputs: files that are read, and folders in which files are read; None is standard input.

    Raises:
        ValueError: it is an input by whatever name, or in a folder of inputs, or a folder; or it exists already and
            may not be replaced; or its folder does not exist.
    """
    if output is None:
        return
    target = output.resolve()  # where it would be written: ".." and links may lead to what is read
    if target.is_dir():
        raise ValueError(f"--output {output} is a folder: name a file in it, such as {output / 'lines.jsonl'}")
    for source in inputs:
        if _is_input(target, source):
            name = "standard input" if source is None else source
            how = "lies in" if source is not None and source.is_dir() else "would overwrite"
            raise ValueError(f"--output {output} {how} {name}, which is read: name another file")
    if (os.path.lexists(output) or target.exists()) and not overwrite:
        raise ValueError(f"--output {output} exists: name another file, or add --overwrite to replace it")
    if target.exists() and not target.is_file():
        raise ValueError(f"--output {output} is no ordinary file: leave it out and redirect standard output")
    folder = target.parent
    if not folder.is_dir():
        raise ValueError(f"--output {output}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK):
        raise PermissionError(13, "Permission denied", str(folder))


def _is_input(target: Path, source: Path | None) -> bool:
    """Whether a file, its path resolved, is what is read, or in the folder that is."""
    if source is not None and source.is_dir():
        return target.is_relative_to(source.resolve())
    with contextlib.suppress(OSError, ValueError, AttributeError, io.UnsupportedOperation):
        there = os.fstat(sys.stdin.fileno()) if source is None else os.stat(source)
        return os.path.samestat(os.stat(target), there)
    return False


def write_lines(values: Iterable[dict[str, Any]], output: Path | None, total: int) -> None:
    """Writes a line of JSON for each, to a file whole or not at all, or to standard output.

    A line on standard error says how many went to a file.

    Raises:
        ValueError: all `total` lines will not fit on the disk, as far as the first ones tell.
    """
    values = progress(values, "writing", "line", total, quiet=output is None and sys.stdout.isatty())
    if output is None:
        with naming(Path("standard output")):
            sys.stdout.writelines(json_text(value) + "\n" for value in values)
        return
    path = output.resolve()  # a link goes on to lead there
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for number, value in enumerate(values):
            file.write(json_text(value) + "\n")
            if number + 1 == PROBE:
                _check_room(path, file.tell() / PROBE * (total - PROBE))
    print(f"wrote {total} lines to {output}", file=sys.stderr)


def _check_room(path: Path, needed: float) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise ValueError(
            f"all lines need about {needed / 1e9:.1f} GB more, but {path.parent} has {free / 1e9:.1f} GB: write fewer, "
            "or to another disk"
        )


def progress(
    values: Iterable[Each], said: str, unit: str, total: int | None = None, quiet: bool = False
) -> Iterable[Each]:
    """The values, under a bar on standard error after two seconds; without one if that is no terminal."""
    bar: Iterator[Each] = tqdm(
        values, desc=said, unit=unit, total=total, delay=2, mininterval=0.5, leave=False, disable=quiet or None
    )
    return bar
