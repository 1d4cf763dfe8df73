"""Storage keeps its promise: a file is whole or absent, and whatever is damaged is named, never used.

Damage is dealt systematically: every file of a checkpoint is cut, emptied, changed and removed, the manifest is cut at
every byte and changed at every byte, and the metrics are hurt before and after the checkpoint's mark.
"""

import json

import pytest
import torch
from torch import nn

from tinylatent import storage
from tinylatent.storage import DamagedError

HARM = {
    "cut": lambda data: data[:-1],
    "cut in half": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "first byte changed": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "last byte changed": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "grown": lambda data: data + b"\n",
}
NEWLINE_ONLY = ("cut", "last byte changed", "grown")  # harmless to JSON, which ends in a newline
FILES = (storage.WEIGHTS, storage.OPTIMIZER, storage.MANIFEST)


def trained(seed=0):
    """A small model and its optimizer after one step, so that both have something to store."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def append(folder, *lines):
    with (folder / storage.METRICS).open("ab") as file:
        file.write(b"".join(lines))


LINES = [json.dumps({"step": step}).encode() + b"\n" for step in range(1, 5)]


@pytest.fixture
def run(tmp_path):
    """A run's folder with two lines of metrics and checkpoint 2."""
    append(tmp_path, *LINES[:2])
    storage.save_checkpoint(tmp_path, 2, *trained())
    return tmp_path


# ---------------------------------------------------------------------------------------------------------------------
# Atomic writes


def test_a_block_that_ends_well_replaces_the_file(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    storage.write_text(path, "old")
    with path.open() as reader:
        with storage.atomic(path) as temporary:
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
        with storage.atomic(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        write()
    assert [file.read_text() for file in tmp_path.iterdir()] == ([] if old is None else [old])


def test_json_round_trip_and_file_ends_with_a_newline(tmp_path):
    value = {"name": "Gözeten", "list": [1, 2.5, None, True]}
    storage.write_json(tmp_path / "value.json", value)
    assert storage.read_json(tmp_path / "value.json") == value
    assert (tmp_path / "value.json").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"\xff\xfe", b"{} {}"])
def test_json_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "value.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"value\.json cannot be read"):
        storage.read_json(path)


def test_lines_round_trip(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": "\\u2028 \xe2\x80\xa8"}\n')
    assert storage.read_lines(path) == [{"a": 1}, {"b": "\u2028 \u2028"}]
    path.write_bytes(b"")
    assert storage.read_lines(path) == []


@pytest.mark.parametrize("bad", [b'{"a": 1', b'{"a": 1}', b"{a: 1}\n", b"\n", b"\xff\n", b"3\n"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_bad_line_is_named_by_file_and_number(tmp_path, bad, number):
    """Cut in the middle, cut before the newline, not JSON, empty, not text, not a record."""
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"fine": 1}\n' * (number - 1) + bad)
    with pytest.raises(DamagedError, match=rf"lines\.jsonl, line {number} is damaged"):
        storage.read_lines(path)


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def test_checkpoint_round_trip(run):
    model, optimizer = trained()
    other, other_optimizer = trained(seed=1)
    saved = storage.find_checkpoint(run)
    assert saved is not None
    assert saved.step == 2
    storage.load_weights(saved, other)
    storage.load_optimizer(saved, other_optimizer)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    want, have = optimizer.state_dict(), other_optimizer.state_dict()
    assert want["param_groups"] == have["param_groups"]
    for number, state in want["state"].items():
        assert state.keys() == have["state"][number].keys()
        assert all(torch.equal(value, have["state"][number][name]) for name, value in state.items())


def test_a_checkpoint_without_optimizer_holds_weights_alone(tmp_path):
    storage.save_checkpoint(tmp_path, 7, trained()[0], None)
    saved = storage.find_checkpoint(tmp_path)
    assert sorted(path.name for path in saved.folder.iterdir()) == [storage.MANIFEST, storage.WEIGHTS]
    assert storage.cut_metrics(tmp_path, saved) == 0


def test_no_checkpoint_is_none(tmp_path):
    assert storage.find_checkpoint(tmp_path) is None
    assert storage.find_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / ".step-abc").mkdir()
    assert storage.find_checkpoint(tmp_path) is None, "what a killed save left was never a checkpoint"


def test_a_new_checkpoint_takes_the_place_of_the_older(run):
    for step in (9, 10, 100):
        storage.save_checkpoint(run, step, *trained())
        assert storage.find_checkpoint(run).step == step
    assert sorted(path.name for path in run.iterdir()) == [storage.METRICS, "step-00000100"]


def test_a_checkpoint_of_the_same_step_is_replaced(run):
    storage.save_checkpoint(run, 2, *trained(seed=1))
    model, _ = trained()
    storage.load_weights(storage.find_checkpoint(run), model)
    assert torch.equal(model.weight, trained(seed=1)[0].weight)


@pytest.mark.parametrize("call", range(1, 6))
def test_a_save_that_fails_leaves_the_old_checkpoint_and_no_rest(run, call, monkeypatch):
    """The disk refuses the first, second ... fifth sync: metrics, three files, folder."""
    sync, calls = storage._sync, []

    def full(path):
        calls.append(path)
        if len(calls) == call:
            raise OSError("no space left")
        sync(path)

    monkeypatch.setattr(storage, "_sync", full)
    with pytest.raises(OSError, match="no space left"):
        storage.save_checkpoint(run, 4, *trained())
    assert sorted(path.name for path in run.iterdir()) == [storage.METRICS, "step-00000002"]
    assert storage.find_checkpoint(run).step == 2


def test_leftovers_of_a_killed_save_do_not_disturb(run):
    """A kill leaves a temporary folder, whole or in part, or an older checkpoint that was being removed."""
    (run / ".step-abc").mkdir()
    (run / ".step-abc" / storage.WEIGHTS).write_bytes(b"half")
    (run / ".metrics.jsonl.xyz.tmp").write_bytes(b"half")
    (run / "step-00000001").mkdir()
    saved = storage.find_checkpoint(run)
    assert saved.step == 2
    assert storage.cut_metrics(run, saved) == 0
    storage.save_checkpoint(run, 3, *trained())
    assert storage.find_checkpoint(run).step == 3
    assert not (run / "step-00000001").exists()


@pytest.mark.parametrize(
    ("name", "harm"),
    [(name, harm) for name in FILES for harm in HARM if name != storage.MANIFEST or harm not in NEWLINE_ONLY],
)
def test_a_damaged_file_is_named(run, name, harm):
    path = run / "step-00000002" / name
    before = path.read_bytes()
    path.write_bytes(HARM[harm](before))
    with pytest.raises(DamagedError, match=name.replace(".", r"\.")):
        storage.find_checkpoint(run)
    path.write_bytes(before)
    assert storage.find_checkpoint(run).step == 2


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(run, name):
    (run / "step-00000002" / name).unlink()
    with pytest.raises(DamagedError, match=name.replace(".", r"\.")):
        storage.find_checkpoint(run)


def test_a_manifest_cut_or_changed_anywhere_is_noticed(run):
    """Every prefix and every flipped bit either raises or (white space) reads as what was written."""
    path = run / "step-00000002" / storage.MANIFEST
    whole, written = path.read_bytes(), storage.find_checkpoint(run).manifest
    harmed = [whole[:size] for size in range(len(whole))]
    harmed += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    noticed = 0
    for data in harmed:
        path.write_bytes(data)
        try:
            found = storage.find_checkpoint(run).manifest
        except DamagedError as error:
            noticed += str(path) in str(error)
        else:
            noticed += found == written
    assert noticed == len(harmed)


@pytest.mark.parametrize("value", [[], {}, 3, None, {"step": 2, "files": {}, "metrics_bytes": 0}])
def test_a_manifest_of_another_form_is_named(run, value):
    storage.write_json(run / "step-00000002" / storage.MANIFEST, value)
    with pytest.raises(DamagedError, match=r"manifest\.json"):
        storage.find_checkpoint(run)


def test_the_newest_checkpoint_is_never_passed_over_in_silence(run):
    """An older one beside a damaged one is not used: the metrics would not fit."""
    older = {path.name: path.read_bytes() for path in (run / "step-00000002").iterdir()}
    storage.save_checkpoint(run, 4, *trained())
    (run / "step-00000002").mkdir()
    for name, data in older.items():
        (run / "step-00000002" / name).write_bytes(data)
    (run / "step-00000004" / storage.WEIGHTS).write_bytes(b"")
    with pytest.raises(DamagedError, match="step-00000004"):
        storage.find_checkpoint(run)


def test_weights_of_another_model_are_refused(run):
    with pytest.raises(DamagedError, match=r"weights\.safetensors does not fit"):
        storage.load_weights(storage.find_checkpoint(run), nn.Linear(4, 2))


# ---------------------------------------------------------------------------------------------------------------------
# Metrics


@pytest.mark.parametrize("later", [[], [LINES[2]], [LINES[2], LINES[3][:-4]], [LINES[2][:3]], [LINES[2][:-1]]])
def test_lines_after_the_checkpoint_are_dropped(run, later):
    append(run, *later)
    saved = storage.find_checkpoint(run)
    assert storage.cut_metrics(run, saved) == sum(map(len, later))
    assert (run / storage.METRICS).read_bytes() == b"".join(LINES[:2])
    assert storage.cut_metrics(run, saved) == 0


def test_without_a_checkpoint_all_lines_are_dropped(tmp_path):
    assert storage.cut_metrics(tmp_path, None) == 0
    append(tmp_path, LINES[0], LINES[1][:5])
    assert storage.cut_metrics(tmp_path, None) == len(LINES[0]) + 5
    assert (tmp_path / storage.METRICS).read_bytes() == b""


@pytest.mark.parametrize("harm", [name for name in HARM if name != "grown"])
@pytest.mark.parametrize("later", [b"", b"".join(LINES[2:])])
def test_metrics_changed_before_the_checkpoints_mark_are_named(run, harm, later):
    damaged = HARM[harm](b"".join(LINES[:2])) + later
    (run / storage.METRICS).write_bytes(damaged)
    with pytest.raises(DamagedError, match=r"metrics\.jsonl is damaged"):
        storage.cut_metrics(run, storage.find_checkpoint(run))
    assert (run / storage.METRICS).read_bytes() == damaged, "what is damaged is left for a person to look at"


def test_missing_metrics_are_named(run):
    (run / storage.METRICS).unlink()
    with pytest.raises(DamagedError, match=r"metrics\.jsonl is damaged"):
        storage.cut_metrics(run, storage.find_checkpoint(run))


def test_a_folder_has_one_writer(tmp_path):
    with (
        storage.locked(tmp_path / "run"),
        pytest.raises(ValueError, match="in use by another process"),
        storage.locked(tmp_path / "run"),
    ):
        pass
    with storage.locked(tmp_path / "run"):
        pass
