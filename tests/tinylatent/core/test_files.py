"""Files are whole or absent, and whatever cannot be read is named by file and line."""

import fcntl

import pytest
from locks import locked_elsewhere

from tinylatent.core import files
from tinylatent.core.files import DamagedError, atomic, is_locked, locked, read_json, read_lines, write_json, write_text


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


@pytest.mark.parametrize("bad", [b'{"a": 1', b'{"a": 1}', b"{a: 1}\n", b"\n", b"\xff\n", b"3\n"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_bad_line_is_named_by_file_and_number(tmp_path, bad, number):
    """Cut in the middle, cut before the newline, not JSON, empty, not text, not a record."""
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"fine": 1}\n' * (number - 1) + bad)
    with pytest.raises(DamagedError, match=rf"lines\.jsonl, line {number} is damaged"):
        read_lines(path)


def test_a_folder_has_one_writer(tmp_path):
    folder = tmp_path / "run"
    with locked_elsewhere(folder):
        assert is_locked(folder)
        with pytest.raises(ValueError, match="in use by another process"), locked(folder):
            pass
    assert not is_locked(folder)
    with locked(folder), locked(folder):
        assert is_locked(folder)
    assert not is_locked(folder)
    assert not is_locked(tmp_path)


def test_a_look_at_a_lock_does_not_keep_a_writer_out(tmp_path, monkeypatch):
    """Whoever looks takes the lock for an instant, here for as long as the writer waits before it tries again."""
    folder = tmp_path / "run"
    folder.mkdir()
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        monkeypatch.setattr(files.time, "sleep", lambda seconds: fcntl.flock(handle, fcntl.LOCK_UN))
        with locked(folder):
            assert is_locked(folder)
