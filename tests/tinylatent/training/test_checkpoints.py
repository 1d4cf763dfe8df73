"""Checkpoints keep their promise: one is whole or absent, and whatever is damaged is named, never used.

Damage is dealt systematically: every file of a checkpoint is cut, emptied, changed and removed, the manifest is cut at
every byte and changed at every byte, and the metrics are hurt before and after the checkpoint's mark.
"""

import errno
import json
import math
import re
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from locks import locked_elsewhere
from safetensors import SafetensorError
from torch import nn

from tinylatent.core.files import DamagedError, locked, write_json
from tinylatent.training import checkpoints
from tinylatent.training.checkpoints import (
    MANIFEST,
    METRICS,
    OPTIMIZER,
    STAGES,
    WEIGHTS,
    check_finite,
    clear_leftovers,
    cut_metrics,
    find_checkpoint,
    load_optimizer,
    load_weights,
    look_again,
    read_metrics,
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


def test_a_checkpoint_of_the_same_contents_stays_for_those_who_read_it(run):
    """As at the start of a stage that is begun again."""
    before = (run / "step-00000002" / WEIGHTS).stat()
    save_checkpoint(run, 2, *trained())
    assert (run / "step-00000002" / WEIGHTS).stat().st_ino == before.st_ino
    assert sorted(path.name for path in run.iterdir()) == [METRICS, "step-00000002"]


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


def test_a_writer_clears_what_killed_saves_left(run):
    """At the ends of stages too; complete checkpoints and metrics stay."""
    save_checkpoint(run / STAGES / "0", 1, trained()[0], None)
    left = [run / ".step-abc", run / STAGES / "0" / ".step-def"]
    for folder in left:
        folder.mkdir()
        (folder / WEIGHTS).write_bytes(b"half")
    clear_leftovers(run)
    assert not any(folder.exists() for folder in left)
    assert find_checkpoint(run).step == 2
    assert find_checkpoint(run / STAGES / "0").step == 1
    assert len(read_metrics(run)) == 2


def test_a_full_disk_is_told_by_the_name_of_the_file(run):
    """In a process that may write no file of more than 100 bytes, as where a quota is used up."""
    script = (
        "import resource, signal, torch\n"
        "from pathlib import Path\n"
        "from tinylatent.training.checkpoints import save_checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try:\n"
        f"    save_checkpoint(Path({str(run)!r}), 4, torch.nn.Linear(30, 20), None)\n"
        "except OSError as error:\n"
        "    print(error.errno, error.filename)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    number, _, name = found.stdout.strip().partition(" ")
    assert int(number) == errno.EFBIG
    assert re.fullmatch(rf"{run}/\.step-.*/{WEIGHTS}", name)
    assert find_checkpoint(run).step == 2
    assert not [*run.glob(".step-*")]


def test_what_is_no_error_of_the_system_is_raised_as_it_is(run, monkeypatch):
    def broken(*_):
        raise SafetensorError("no header")

    monkeypatch.setattr(checkpoints.safetensors.torch, "save_file", broken)
    with pytest.raises(SafetensorError, match="no header"):
        save_checkpoint(run, 4, *trained())


def test_a_file_that_is_gone_when_it_is_mapped_is_an_error_of_the_system(run, monkeypatch):
    """So that a reader looks again: torch has words of its own for it."""
    saved = find_checkpoint(run)

    def refused(path, *_, **__):
        raise RuntimeError(f"unable to open file <{path}> in read-only mode: No such file or directory (2)")

    monkeypatch.setattr(checkpoints.safetensors.torch, "load_file", refused)
    with pytest.raises(FileNotFoundError):
        load_weights(saved, trained()[0])


class Tied(nn.Module):
    """A matrix by two names, a slice of a larger one, a transposed one, and an empty one."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding, self.head = nn.Linear(3, 5, bias=False), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        whole = torch.empty(4, 6).normal_(generator=generator)
        self.first, self.second = (nn.Parameter(part) for part in whole.view(2, 12))
        self.turned = nn.Parameter(torch.empty(2, 3).normal_(generator=generator).t())
        self.register_buffer("nothing", torch.empty(0))
        self.register_buffer("neither", torch.empty(0))
        with torch.no_grad():
            self.embedding.weight.normal_(generator=generator)


def test_a_tensor_with_two_names_is_stored_once(tmp_path):
    model, other = Tied(), Tied(1)
    save_checkpoint(tmp_path, 1, model, None)
    saved = find_checkpoint(tmp_path)
    assert saved.manifest["tied"] == {"head.weight": "embedding.weight"}
    stored = safetensors.torch.load_file(saved.folder / WEIGHTS)
    assert {*stored} == {"embedding.weight", "first", "second", "turned", "nothing", "neither"}
    load_weights(saved, other)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    assert other.head.weight is other.embedding.weight


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
    with pytest.raises(
        DamagedError, match=r"its lines up to step 2 .* weights of step 2 are whole: .* delete this one"
    ):
        cut_metrics(run, saved)
    (run / METRICS).unlink()
    assert cut_metrics(run, saved) == -len(b"".join(LINES[:2]))
    append(run, LINES[2])
    save_checkpoint(run, 3, *trained())
    assert cut_metrics(run, find_checkpoint(run)) == 0


def test_metrics_are_read_while_they_are_written(run):
    """A line without end is one that is being written."""
    append(run, LINES[2], LINES[3][:-4])
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3]
    assert read_metrics(run / "nowhere") == []


# ---------------------------------------------------------------------------------------------------------------------
# A reader beside a writer


def test_whoever_reads_looks_again_where_the_checkpoint_was_replaced(run):
    """Replaced once between listing and reading, then again between checking and reading: the third look is good."""
    looks = []

    def read():
        saved = find_checkpoint(run)
        looks.append(saved.step)
        if saved.step < 4:
            save_checkpoint(run, saved.step + 1, *trained(seed=saved.step))
        model, _ = trained()
        load_weights(saved, model)
        return model

    assert torch.equal(look_again(run, read).weight, trained(seed=3)[0].weight)
    assert looks == [2, 3, 4]


def test_a_checkpoint_that_is_replaced_while_it_is_checked_is_no_damage(run, monkeypatch):
    """As soon as its manifest is read, a newer one takes its place."""
    read_json = checkpoints.read_json

    def replaced(path):
        monkeypatch.undo()
        found = read_json(path)
        save_checkpoint(run, 3, *trained(seed=1))
        return found

    monkeypatch.setattr(checkpoints, "read_json", replaced)
    assert find_checkpoint(run).step == 3


def test_nobody_is_told_to_delete_what_another_process_writes(run):
    """The advice is given where nobody writes, or whoever is told has the folder."""
    (run / "step-00000002" / WEIGHTS).write_bytes(b"")
    for who, advice in (
        (locked_elsewhere(run), f"another process writes to {run}: try again when it has ended"),
        (locked(run), f"delete {run} to start over"),
    ):
        with who, pytest.raises(DamagedError, match=f"{WEIGHTS} is damaged .*: {advice}"):
            find_checkpoint(run)
    shutil.rmtree(run / "step-00000002")
    assert find_checkpoint(run) is None


# ---------------------------------------------------------------------------------------------------------------------
# What is finite


class Masked(nn.Module):
    """A parameter, a mask with infinities on purpose, and a count."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        self.register_buffer("count", torch.tensor(3))


def broken(what, value):
    """A model and its optimizer, one number of which is not finite, and what messages call it."""
    model = Masked()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model.weight.sum().backward()
    optimizer.step()
    state = optimizer.state[model.weight]
    tensors = {
        "weight": model.weight,
        "mask": model.mask,
        "exp_avg": state["exp_avg"],
        "exp_avg_sq": state["exp_avg_sq"],
    }
    tensors[what].data[..., 1] = value
    return model, optimizer


NOT_FINITE = [
    *((what, value) for what in ("weight", "exp_avg", "exp_avg_sq") for value in (math.nan, math.inf, -math.inf)),
    ("mask", math.nan),
]


@pytest.mark.parametrize(("what", "value"), NOT_FINITE)
def test_what_is_not_finite_is_not_saved(run, what, value):
    """The last healthy checkpoint stays, and nothing is left beside it."""
    named = "moments" if "exp" in what else "weights"
    said = rf"^{named} are not finite at step 4 \({what}\): training diverged; lower training\.learning_rate"
    with pytest.raises(ValueError, match=said):
        save_checkpoint(run, 4, *broken(what, value))
    assert sorted(path.name for path in run.iterdir()) == [METRICS, "step-00000002"]
    if named == "weights":
        with pytest.raises(ValueError, match=said):
            check_finite(broken(what, value)[0], 4)


@pytest.mark.parametrize(("what", "value"), NOT_FINITE)
def test_what_is_not_finite_is_not_loaded(tmp_path, what, value, monkeypatch):
    """As an earlier version, or another program, may have stored it; the model keeps its own weights."""
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "check_finite", lambda *_: None)
        save_checkpoint(tmp_path, 4, *broken(what, value))
    saved, (model, optimizer) = find_checkpoint(tmp_path), broken("weight", 1.0)
    file, load = (OPTIMIZER, lambda: load_optimizer(saved, optimizer)) if "exp" in what else (
        WEIGHTS, lambda: load_weights(saved, model),
    )  # fmt: skip
    with pytest.raises(DamagedError, match=rf"{file} holds .* that are not finite \({what}\): its training diverged"):
        load()
    check_finite(model, 0)


def test_infinities_of_a_mask_are_saved_and_loaded(tmp_path):
    model, optimizer = broken("weight", 2.0)
    save_checkpoint(tmp_path, 1, model, optimizer)
    other = Masked()
    other.mask.zero_()
    load_weights(find_checkpoint(tmp_path), other)
    assert torch.equal(other.mask, model.mask)
    assert other.mask[1] == -math.inf
