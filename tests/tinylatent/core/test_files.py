"""Files are whole or absent, and whatever cannot be read is named by file and line."""

import errno
import fcntl
import json
import math

import pytest
from locks import locked_elsewhere

from tinylatent.core import files
from tinylatent.core.files import (
    DamagedError,
    atomic,
    is_locked,
    is_locked_elsewhere,
    json_text,
    locked,
    naming,
    read_json,
    read_lines,
    write_json,
    write_text,
)


def test_a_block_that_ends_well_replaces_the_file(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old")
    with path.open() as reader:
        with atomic(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old", "the old file stays until the block has ended"
        assert reader.read() == "old", "it is replaced, not written over: readers keep a whole file"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("old", ["old", None])
def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path, error, old):
    path = tmp_path / "file.txt"
    if old is not None:
        path.write_text(old)

    def write():
        with atomic(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        write()
    assert [file.read_text() for file in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_full_disk_is_told_by_the_name_of_the_file(tmp_path, monkeypatch):
    """The system names no file where a write or a sync fails, and a temporary one where a rename does."""
    path = tmp_path / "file.txt"
    said = r"No space left on device: .*/file\.txt'$"
    with pytest.raises(OSError, match=said), atomic(path):
        full(path)
    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", full)
        with pytest.raises(OSError, match=said):
            write_text(path, "text")
    path.mkdir()
    with pytest.raises(IsADirectoryError, match=r"/file\.txt'$"):
        write_text(path, "text")


def full(path):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_that_an_error_names_itself_stays_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"/source\.txt'$"), atomic(tmp_path / "file.txt"):
        (tmp_path / "source.txt").read_text()
    with pytest.raises(OSError, match="no number"), naming(tmp_path):
        raise OSError("no number")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "the value is nan"),
        ({"a": {"b": [0.0, {"c": (1, -math.inf)}]}}, r"a\.b\[1\]\.c\[1\] is -inf"),
        ({"a": [1.0, math.inf], "b": math.nan}, r"a\[1\] is inf"),
    ],
)
def test_numbers_that_are_not_finite_are_no_json(tmp_path, value, said):
    """The message says where the first one stands, and the old file stays."""
    path = tmp_path / "value.json"
    write_json(path, {"fine": 1})
    with pytest.raises(ValueError, match=f"^{said}, which JSON has no word for: expected finite numbers"):
        write_json(path, value)
    assert read_json(path) == {"fine": 1}
    with pytest.raises(ValueError, match=said):
        json_text(value)


def test_json_on_one_line_is_that_of_the_library():
    value = {"b": [1, 2.5, None, True], "a": "ü", "c": (1,)}
    assert json_text(value) == json.dumps(value)
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text({math.nan: "as a key"})


def test_json_round_trip_and_file_ends_with_a_newline(tmp_path):
    value = {"name": "Gözeten", "list": [1, 2.5, None, True]}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value
    assert (tmp_path / "value.json").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"\xff\xfe", b"{} {}"])
def test_json_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "value.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"value\.json cannot be read"):
        read_json(path)


def test_lines_round_trip(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": "\\u2028 \xe2\x80\xa8"}\n')
    assert read_lines(path) == [{"a": 1}, {"b": "\u2028 \u2028"}]
    path.write_bytes(b"")
    assert read_lines(path) == []


@pytest.mark.parametrize(
    "bad", [b'{"a": 1', b'{"a": 1}', b"{a: 1}\n", b"\n", b"\xff\n", b"3\n", b"[" * 200_000 + b"\n"]
)
@pytest.mark.parametrize("number", [1, 3])
def test_a_bad_line_is_named_by_file_and_number(tmp_path, bad, number):
    """Cut in the middle, cut before the newline, not JSON, empty, not text, not a record, too deep."""
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"fine": 1}\n' * (number - 1) + bad)
    with pytest.raises(DamagedError, match=rf"lines\.jsonl, line {number} is damaged"):
        read_lines(path)


def test_a_last_line_without_end_may_be_left_out(tmp_path):
    """It is what a writer is writing; a bad line that has an end is still named."""
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2')
    assert read_lines(path, whole=True) == [{"a": 1}]
    path.write_bytes(b'{"a"')
    assert read_lines(path, whole=True) == []
    path.write_bytes(b'{"a": 1\n{"a": 2')
    with pytest.raises(DamagedError, match="line 1 is damaged"):
        read_lines(path, whole=True)


def test_a_folder_has_one_writer(tmp_path):
    folder = tmp_path / "run"
    with locked_elsewhere(folder):
        assert is_locked(folder)
        assert is_locked_elsewhere(folder)
        with pytest.raises(ValueError, match="in use by another process"), locked(folder):
            pass
    assert not is_locked(folder)
    with locked(folder), locked(folder):
        assert is_locked(folder)
        assert not is_locked_elsewhere(folder)
    assert not is_locked(folder)
    assert not is_locked(tmp_path)
    assert not is_locked_elsewhere(tmp_path)


def test_a_look_at_a_lock_does_not_keep_a_writer_out(tmp_path, monkeypatch):
    """Whoever looks takes the lock for an instant, here for as long as the writer waits before it tries again."""
    folder = tmp_path / "run"
    folder.mkdir()
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        monkeypatch.setattr(files.time, "sleep", lambda seconds: fcntl.flock(handle, fcntl.LOCK_UN))
        with locked(folder):
            assert is_locked(folder)


def test_a_writer_removes_what_killed_ones_left(tmp_path):
    """Temporary files alone, by the names that `atomic` gives them."""
    left = tmp_path / ".config.json.a1b2c3_4.tmp"
    others = [tmp_path / name for name in (".lock", "config.json", ".notes.tmp", "mine.a1b2c3_4.tmp")]
    for path in (left, *others):
        path.write_text("")
    with atomic(tmp_path / "file.txt") as temporary:
        assert files.TEMPORARY.fullmatch(temporary.name)
    with locked(tmp_path):
        assert not left.exists()
    assert all(path.exists() for path in others)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
@pytest.mark.parametrize("there", [True, False])
def test_a_file_system_without_locks_is_told_as_one(tmp_path, monkeypatch, number, there):
    """Nobody is said to use the folder, and what was made for the lock is gone again."""

    def refuse(handle, how):
        raise OSError(number, "No locks available")

    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    monkeypatch.setattr(files.fcntl, "flock", refuse)
    said = r"run is on a file system that cannot lock files \(No locks available\), .*: choose a folder on a local disk"
    with pytest.raises(ValueError, match=said), locked(folder):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == (["run"] if there else [])
    assert not is_locked(folder)
    (folder if there else tmp_path).joinpath(".lock").touch()
    assert not is_locked(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": NaN}', "it knows no NaN"),
        ('{"a": -Infinity}', "it knows no -Infinity"),
        ('{"a": 1e999}', "1e999 is too large a number"),
        ('{"a": 1, "a": 2}', "the name 'a' stands there twice"),
    ],
)
def test_only_standard_json_is_read(text, said, tmp_path):
    path = tmp_path / "value.json"
    path.write_text(text + "\n")
    with pytest.raises(DamagedError, match=said):
        read_json(path)
    with pytest.raises(DamagedError, match=said):
        read_lines(path)
