"""Files that are whole or absent: atomic writes, strict JSON, and locks on folders."""

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn


class DamagedError(ValueError):
    """A stored file is not what was written; the message names it and says what to do."""


TEMPORARY = re.compile(r"\..*\.\w{8}\.tmp")
"""Names of the temporary files of `atomic`."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives errors of the system that name no file, such as that of a full disk, or a temporary one this name."""
    try:
        yield
    except OSError as error:
        other = error.filename is not None and not TEMPORARY.fullmatch(os.path.basename(os.fsdecode(error.filename)))
        if error.errno is None or other:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` if the block succeeds, deletes it if it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(value: Any, indent: int | None = None) -> str:
    """The value as JSON that every parser reads, on one line unless it is indented.

    Raises:
        ValueError: a number in it is not finite, which JSON does not know; the message says where it stands.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        where, number = next(_not_finite(value), ("", None))
        if number is None:
            raise
        raise ValueError(
            f"{where or 'the value'} is {number}, which JSON has no word for: expected finite numbers; look at the "
            "model or the run that gave it"
        ) from None


def _not_finite(value: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a JSON value that is not finite, after where it stands."""
    if isinstance(value, float) and not math.isfinite(value):
        yield where, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _not_finite(each, f"{where}.{name}" if where else str(name))
    elif isinstance(value, (list, tuple)):
        for number, each in enumerate(value):
            yield from _not_finite(each, f"{where}[{number}]")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, indented, with a final newline.

    Raises:
        ValueError: a number in it is not finite.
    """
    write_text(path, json_text(value, indent=2) + "\n")


def json_value(text: str | bytes) -> Any:
    """The value of standard JSON: no NaN, no number beyond a float, no name twice in an object.

    Raises:
        ValueError: it is not; the message says what.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_object)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"it knows no {word}")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is too large a number")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)[:60]!r} stands there twice")
    return found


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        DamagedError: the file is missing or not JSON.
    """
    try:
        return json_value(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(
            f"{path} cannot be read ({error}): expected the JSON this program wrote; restore it from a copy"
        ) from error


def read_lines(path: Path, whole: bool = False) -> list[dict[str, Any]]:
    """The records of a JSON-lines file.

    whole: whether to leave out a last line without an end, as a writer or a kill may leave it.

    Raises:
        DamagedError: a line is cut or not JSON; the message names file and line.
    """
    records, lines = [], path.read_bytes().splitlines(keepends=True)
    if whole and lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("it has no end")
            records.append(json_value(line))
            if not isinstance(records[-1], dict):
                raise ValueError("it is no record")
        except (ValueError, RecursionError) as error:
            raise DamagedError(
                f"{path}, line {number} is damaged ({error}): expected one whole JSON record a line"
            ) from error
    return records


def sync(path: Path) -> None:
    """Waits until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_ours: set[tuple[str, int]] = set()  # folders that a thread of this process has locked
PATIENCE_S = 0.2
"""Seconds to wait for a folder that somebody only looks at."""
TAKEN = (errno.EAGAIN, errno.EACCES)
"""What the system says where somebody else has the lock."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder for this thread while the block runs; the system frees the lock if the process dies.

    Temporary files that a killed writer left there are removed. A block within a block that locked the same folder
    changes nothing.

    Raises:
        ValueError: another process or thread has locked it, or its file system has no locks.
    """
    there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    own = _key(folder)
    if own in _ours:
        yield
        return
    with (folder / ".lock").open("w") as handle:
        try:
            _lock(handle, folder)
        except _NoLocksError:
            (folder / ".lock").unlink(missing_ok=True)
            if not there:
                folder.rmdir()
            raise
        for left in folder.iterdir():
            if TEMPORARY.fullmatch(left.name):
                left.unlink(missing_ok=True)
        _ours.add(own)
        try:
            yield
        finally:
            _ours.discard(own)


class _NoLocksError(ValueError):
    """The file system has no locks."""


def _lock(handle: IO[str], folder: Path) -> None:
    """Locks an open file, or says why it cannot be locked."""
    for last in (False, True):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in TAKEN:
                raise _NoLocksError(
                    f"{folder} is on a file system that cannot lock files ({error.strerror}), and two processes that "
                    "train in one folder would spoil it: choose a folder on a local disk and copy it afterwards, or "
                    "have the file system mounted with locks"
                ) from error
            if last:
                raise ValueError(f"{folder} is in use by another process: wait for it to end, or stop it") from None
            time.sleep(PATIENCE_S)  # `is_locked` takes it for an instant


def _key(folder: Path) -> tuple[str, int]:
    """What stands for a folder that this thread has locked."""
    return str(folder.resolve()), threading.get_ident()


def is_locked(folder: Path) -> bool:
    """Whether somebody has locked a folder; False where the file system has no locks."""
    try:
        with (folder / ".lock").open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in TAKEN and error.filename is None  # with a name it is `open` that was refused
    return False


def is_locked_elsewhere(folder: Path) -> bool:
    """Whether another process or thread has locked a folder."""
    return _key(folder) not in _ours and is_locked(folder)
