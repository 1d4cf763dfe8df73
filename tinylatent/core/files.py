"""Files that are whole or absent: atomic writes, JSON, and locks on folders."""

import contextlib
import fcntl
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class DamagedError(ValueError):
    """A stored file is not what was written; the message names it and says what to do."""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` if the block succeeds, deletes it if it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
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


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, indented, with a final newline."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        DamagedError: the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(
            f"{path} cannot be read ({error}): expected the JSON this program wrote; delete its folder to start over"
        ) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file.

    Raises:
        DamagedError: a line is cut or not JSON; the message names file and line.
    """
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("it has no end")
            records.append(json.loads(line))
            if not isinstance(records[-1], dict):
                raise ValueError("it is no record")
        except ValueError as error:
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


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder for this thread while the block runs; the system frees the lock if the process dies.

    A block within a block that locked the same folder changes nothing.

    Raises:
        ValueError: another process or thread has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = (str(folder.resolve()), threading.get_ident())
    if own in _ours:
        yield
        return
    with (folder / ".lock").open("w") as handle:
        for last in (False, True):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if last:
                    raise ValueError(f"{folder} is in use by another process: wait for it to end, or stop it") from None
                time.sleep(PATIENCE_S)  # `is_locked` takes it for an instant
        _ours.add(own)
        try:
            yield
        finally:
            _ours.discard(own)


def is_locked(folder: Path) -> bool:
    """Whether somebody has locked a folder."""
    try:
        with (folder / ".lock").open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # nobody ever did
        return False
    return False
