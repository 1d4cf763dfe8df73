"""Checkpoints keep their promise: one is whole or absent, and whatever is damaged is named, never used.

Damage is dealt systematically: every file of a checkpoint is cut, emptied, changed and removed, the manifest is cut at
every byte and changed at every byte, and the metrics are hurt before and after the checkpoint's mark.
"""

import json

import pytest
import torch
from torch import nn

from tinylatent.core.files import DamagedError, write_json
from tinylatent.training import checkpoints
from tinylatent.training.checkpoints import (
    MANIFEST,
    METRICS,
    OPTIMIZER,
    WEIGHTS,
    cut_metrics,
    find_checkpoint,
    load_optimizer,
    load_weights,
    save_checkpoint,
)

HARM = {
    "cut": lambda data: data[:-1],
    "cut in half": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "first byte changed": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "last byte changed": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "grown": lambda data: data + b"\n",
}
NEWLINE_ONLY = ("cut", "last byte changed", "grown")  # harmless to JSON, which ends in a newline
FILES = (WEIGHTS, OPTIMIZER, MANIFEST)


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
    with (folder / METRICS).open("ab") as file:
        file.write(b"".join(lines))


LINES = [json.dumps({"step": step}).encode() + b"\n" for step in range(1, 5)]


@pytest.fixture
def run(tmp_path):
    """A run's folder with two lines of metrics and checkpoint 2."""
    append(tmp_path, *LINES[:2])
    save_checkpoint(tmp_path, 2, *trained())
    return tmp_path


def test_a_checkpoint_gives_back_what_was_saved(run):
    model, optimizer = trained()
    other, other_optimizer = trained(seed=1)
    saved = find_checkpoint(run)
    assert saved is not None
    assert saved.step == 2
    load_weights(saved, other)
    load_optimizer(saved, other_optimizer)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    want, have = optimizer.state_dict(), other_optimizer.state_dict()
    assert want["param_groups"] == have["param_groups"]
    for number, state in want["state"].items():
        assert state.keys() == have["state"][number].keys()
        assert all(torch.equal(value, have["state"][number][name]) for name, value in state.items())


def test_a_checkpoint_without_optimizer_holds_weights_alone(tmp_path):
    save_checkpoint(tmp_path, 7, trained()[0], None)
    saved = find_checkpoint(tmp_path)
    assert sorted(path.name for path in saved.folder.iterdir()) == [MANIFEST, WEIGHTS]
    assert cut_metrics(tmp_path, saved) == 0


def test_no_checkpoint_is_none(tmp_path):
    assert find_checkpoint(tmp_path) is None
    assert find_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / ".step-abc").mkdir()
    assert find_checkpoint(tmp_path) is None, "what a killed save left was never a checkpoint"


def test_a_new_checkpoint_takes_the_place_of_the_older(run):
    for step in (9, 10, 100):
        save_checkpoint(run, step, *trained())
        assert find_checkpoint(run).step == step
    assert sorted(path.name for path in run.iterdir()) == [METRICS, "step-00000100"]


def test_a_checkpoint_of_the_same_step_is_replaced(run):
    save_checkpoint(run, 2, *trained(seed=1))
    model, _ = trained()
    load_weights(find_checkpoint(run), model)
    assert torch.equal(model.weight, trained(seed=1)[0].weight)


@pytest.mark.parametrize("call", range(1, 6))
def test_a_save_that_fails_leaves_the_old_checkpoint_and_no_rest(run, call, monkeypatch):
    """The disk refuses the first, second ... fifth sync: metrics, three files, folder."""
    sync, calls = checkpoints.sync, []

    def full(path):
        calls.append(path)
        if len(calls) == call:
            raise OSError("no space left")
        sync(path)

    monkeypatch.setattr(checkpoints, "sync", full)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(run, 4, *trained())
    assert sorted(path.name for path in run.iterdir()) == [METRICS, "step-00000002"]
    assert find_checkpoint(run).step == 2


def test_leftovers_of_a_killed_save_do_not_disturb(run):
    """A kill leaves a temporary folder, whole or in part, or an older checkpoint that was being removed."""
    (run / ".step-abc").mkdir()
    (run / ".step-abc" / WEIGHTS).write_bytes(b"half")
    (run / ".metrics.jsonl.xyz.tmp").write_bytes(b"half")
    (run / "step-00000001").mkdir()
    saved = find_checkpoint(run)
    assert saved.step == 2
    assert cut_metrics(run, saved) == 0
    save_checkpoint(run, 3, *trained())
    assert find_checkpoint(run).step == 3
    assert not (run / "step-00000001").exists()


@pytest.mark.parametrize(
    ("name", "harm"),
    [(name, harm) for name in FILES for harm in HARM if name != MANIFEST or harm not in NEWLINE_ONLY],
)
def test_a_damaged_file_is_named(run, name, harm):
    path = run / "step-00000002" / name
    before = path.read_bytes()
    path.write_bytes(HARM[harm](before))
    with pytest.raises(DamagedError, match=name.replace(".", r"\.")):
        find_checkpoint(run)
    path.write_bytes(before)
    assert find_checkpoint(run).step == 2


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(run, name):
    (run / "step-00000002" / name).unlink()
    with pytest.raises(DamagedError, match=name.replace(".", r"\.")):
        find_checkpoint(run)


def test_a_manifest_cut_or_changed_anywhere_is_noticed(run):
    """Every prefix and every flipped bit either raises or (white space) reads as what was written."""
    path = run / "step-00000002" / MANIFEST
    whole, written = path.read_bytes(), find_checkpoint(run).manifest
    harmed = [whole[:size] for size in range(len(whole))]
    harmed += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    noticed = 0
    for data in harmed:
        path.write_bytes(data)
        try:
            found = find_checkpoint(run).manifest
        except DamagedError as error:
            noticed += str(path) in str(error)
        else:
            noticed += found == written
    assert noticed == len(harmed)


@pytest.mark.parametrize("value", [[], {}, 3, None, {"step": 2, "files": {}, "metrics_bytes": 0}])
def test_a_manifest_of_another_form_is_named(run, value):
    write_json(run / "step-00000002" / MANIFEST, value)
    with pytest.raises(DamagedError, match=r"manifest\.json"):
        find_checkpoint(run)


def test_the_newest_checkpoint_is_never_passed_over_in_silence(run):
    """An older one beside a damaged one is not used: the metrics would not fit."""
    older = {path.name: path.read_bytes() for path in (run / "step-00000002").iterdir()}
    save_checkpoint(run, 4, *trained())
    (run / "step-00000002").mkdir()
    for name, data in older.items():
        (run / "step-00000002" / name).write_bytes(data)
    (run / "step-00000004" / WEIGHTS).write_bytes(b"")
    with pytest.raises(DamagedError, match="step-00000004"):
        find_checkpoint(run)


def test_weights_of_another_model_are_refused(run):
    with pytest.raises(DamagedError, match=r"weights\.safetensors does not fit"):
        load_weights(find_checkpoint(run), nn.Linear(4, 2))


# ---------------------------------------------------------------------------------------------------------------------
# Metrics


@pytest.mark.parametrize("later", [[], [LINES[2]], [LINES[2], LINES[3][:-4]], [LINES[2][:3]], [LINES[2][:-1]]])
def test_lines_after_the_checkpoint_are_dropped(run, later):
    append(run, *later)
    saved = find_checkpoint(run)
    assert cut_metrics(run, saved) == sum(map(len, later))
    assert (run / METRICS).read_bytes() == b"".join(LINES[:2])
    assert cut_metrics(run, saved) == 0


def test_without_a_checkpoint_all_lines_are_dropped(tmp_path):
    assert cut_metrics(tmp_path, None) == 0
    append(tmp_path, LINES[0], LINES[1][:5])
    assert cut_metrics(tmp_path, None) == len(LINES[0]) + 5
    assert (tmp_path / METRICS).read_bytes() == b""


@pytest.mark.parametrize("harm", [name for name in HARM if name != "grown"])
@pytest.mark.parametrize("later", [b"", b"".join(LINES[2:])])
def test_metrics_changed_before_the_checkpoints_mark_are_named(run, harm, later):
    damaged = HARM[harm](b"".join(LINES[:2])) + later
    (run / METRICS).write_bytes(damaged)
    with pytest.raises(DamagedError, match=r"metrics\.jsonl is damaged"):
        cut_metrics(run, find_checkpoint(run))
    assert (run / METRICS).read_bytes() == damaged, "what is damaged is left for a person to look at"


def test_damaged_metrics_keep_nobody_from_whole_weights(run):
    """The message names the lines that are lost and the one file to delete; without it the run goes on."""
    saved = find_checkpoint(run)
    (run / METRICS).write_bytes(LINES[0])
    with pytest.raises(DamagedError, match=r"its lines up to step 2 .* weights of step 2 are whole: .* delete this one"):
        cut_metrics(run, saved)
    (run / METRICS).unlink()
    assert cut_metrics(run, saved) == -len(b"".join(LINES[:2]))
    append(run, LINES[2])
    save_checkpoint(run, 3, *trained())
    assert cut_metrics(run, find_checkpoint(run)) == 0
