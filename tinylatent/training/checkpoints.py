"""Checkpoints with checksums, and metrics that are cut back to a checkpoint's step.

A checkpoint is a folder `step-NNNNNNNN` with weights.safetensors, optimizer.pt and manifest.json. It is written under
another name and renamed when complete, so a run that is killed keeps its previous checkpoint. The manifest has the
checksum of every file and of the metrics so far: anything damaged raises DamagedError and is not used. Numbers that are
not finite are neither saved nor loaded. One process may read while another writes: `look_again` reads anew where the
checkpoint was replaced meanwhile. Of a model with adapters those alone are written, and not what lies in its folder.
"""

import contextlib
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from tinylatent.core.files import (
    DamagedError,
    atomic,
    is_locked_elsewhere,
    json_text,
    naming,
    read_json,
    read_lines,
    sync,
)
from tinylatent.core.identity import checksum, file_checksum, sealed

WEIGHTS, OPTIMIZER, MANIFEST, METRICS = "weights.safetensors", "optimizer.pt", "manifest.json", "metrics.jsonl"
CONFIG = "config.json"
SHARDS, MODEL = ".metadata", "model"  # of a checkpoint that several processes wrote: its index, and weights in it
STAGES = "stages"  # folder of checkpoints at the end of every stage but the last
PARTIAL = ".step-"  # what a checkpoint is called until it is complete
Read = TypeVar("Read")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its step, its folder, and its manifest."""

    step: int
    folder: Path
    manifest: dict[str, Any]


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    seconds: float = 0.0,
    stopped: str | None = None,
    environments: Sequence[Mapping[str, str]] | None = (),
    write: Callable[[Path], Mapping[str, Any]] | None = None,
) -> None:
    """Writes checkpoint `step` under `folder` atomically, then removes older ones.

    Args:
        folder: of the run.
        step: steps of training so far.
        model: its weights are saved.
        optimizer: its state is saved; None to save none.
        seconds: the time training took so far.
        stopped: why training stopped early; None if it did not.
        environments: code, versions and machines that trained it so far; None where not all of them are known.
        write: writes weights and the optimizer's state into a folder and returns what else its manifest is to say; by
            default one file of either.

    Raises:
        ValueError: weights or the optimizer's state are not finite; nothing is written then.
        OSError: the disk is full, or refuses for another reason; earlier checkpoints stay.
    """
    check_finite(model, step, optimizer)
    target = folder / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    try:
        more = _written(temporary, model, optimizer) if write is None else write(temporary)
        files = {path.name: file_checksum(path) for path in sorted(temporary.iterdir())}
        metrics = folder / METRICS
        written = metrics.read_bytes() if metrics.exists() else b""
        record = {
            "step": step,
            "seconds": seconds,
            "stopped": stopped,
            "environments": None if environments is None else [dict(environment) for environment in environments],
            "config": _config_checksum(folder),
            "files": files,
            **more,
            "metrics_bytes": len(written),
            "metrics": checksum(written),
        }
        _write(temporary / MANIFEST, (json_text(sealed(record), indent=2) + "\n").encode())
        for path in (*([metrics] if written else []), *sorted(temporary.iterdir()), temporary):
            sync(path)
        _put(temporary, target)
        sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for older in _steps(folder)[:-1]:
        shutil.rmtree(older)


def _write(path: Path, data: bytes) -> None:
    """Writes bytes; an error of the system names the file as it would be called."""
    with naming(path):
        path.write_bytes(data)


def _written(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Writes weights and the optimizer's state; returns what the manifest is to say of them."""
    state, tied = _tensors(model)
    with naming(folder / WEIGHTS), _system_errors():
        safetensors.torch.save_file(state, folder / WEIGHTS)
    if optimizer is not None:
        with naming(folder / OPTIMIZER), (folder / OPTIMIZER).open("wb") as file:
            torch.save(optimizer.state_dict(), file)
    return ({"tied": tied} if tied else {}) | left_out(model)


def given(model: nn.Module) -> set[str]:
    """Names of tensors that need not be stored, since they are those with which the model is made."""
    return {f"backbone.{name}" for name in getattr(getattr(model, "backbone", None), "given", ())}


def left_out(model: nn.Module) -> dict[str, Any]:
    """What a manifest says where such tensors are not stored."""
    return {"given": True} if given(model) else {}


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a model on the CPU, each once; and the other names of those with several, as tied embeddings."""
    state: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[Any, str] = {}
    known = given(model)
    for name, tensor in model.state_dict().items():
        if name in known:
            continue
        where = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        if where in first:
            tied[name] = first[where]
        else:
            first[where], state[name] = name, tensor.detach().cpu().contiguous()
    return state, tied


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    """Raises errors of the system as such that safetensors tells in words alone, as that of a full disk.

    Reading a file that is gone since it was looked for is told by torch, which maps it into memory.
    """
    try:
        yield
    except (safetensors.SafetensorError, RuntimeError) as error:
        if (number := re.search(r"os error (\d+)|unable to open file .*\((\d+)\)$", str(error))) is None:
            raise
        code = int(number[1] or number[2])
        raise OSError(code, os.strerror(code)) from error


def _put(temporary: Path, target: Path) -> None:
    """Gives a complete checkpoint its name. One of this step with the same contents stays, for those who read it."""
    if target.exists():
        if _contents(target) == _contents(temporary):
            shutil.rmtree(temporary)
            return
        shutil.rmtree(target)
    temporary.chmod(0o755)
    temporary.rename(target)


def _contents(folder: Path) -> dict[str, str]:
    return {path.name: file_checksum(path) for path in folder.iterdir()}


def clear_leftovers(folder: Path) -> None:
    """Removes what killed writers left in a run's folder: checkpoints that were never complete, here and of stages."""
    for place in (folder, *(folder / STAGES).glob("*")):
        for left in place.glob(f"{PARTIAL}*"):
            shutil.rmtree(left, ignore_errors=True)


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-" + "[0-9]" * 8))


def _config_checksum(folder: Path) -> str:
    """The checksum of the folder's config.json, or of nothing if there is none."""
    config = folder / CONFIG
    return checksum(config.read_bytes() if config.exists() else b"")


def look_again(folder: Path, read: Callable[[], Read]) -> Read:
    """The result of `read`, which is called again where it fails because a writer replaced the checkpoint meanwhile.

    Raises:
        DamagedError, OSError: it fails, and the checkpoints under `folder` are those that were there before.
    """
    while True:
        before = _steps(folder)
        try:
            return read()
        except (DamagedError, OSError):
            if _steps(folder) == before:
                raise


def restart(run: Path) -> str:
    """What to do about a folder with damage in it, unless somebody is writing there, who may be about to mend it."""
    if is_locked_elsewhere(run):
        return f"another process writes to {run}: try again when it has ended"
    return f"delete {run} to start over, or restore it from a copy"


def find_checkpoint(folder: Path, run: Path | None = None) -> Checkpoint | None:
    """The newest checkpoint under a folder, verified; None if there is none.

    run: the folder that messages say to delete, if that is not `folder`.

    Raises:
        DamagedError: a file of the checkpoint is missing, cut or changed.
    """
    return look_again(folder, lambda: _found(folder, run or folder))


def _found(folder: Path, run: Path) -> Checkpoint | None:
    """`find_checkpoint`, at a first look."""
    steps = _steps(folder)
    if not steps:
        return None
    newest = steps[-1]
    try:
        manifest = read_json(newest / MANIFEST)
    except DamagedError as error:
        raise DamagedError(f"{newest / MANIFEST} is damaged ({error.__cause__}): {restart(run)}") from error
    if not isinstance(manifest, dict) or manifest != sealed(manifest):
        raise DamagedError(f"{newest / MANIFEST} is damaged (it differs from its seal): {restart(run)}")
    if manifest["config"] != _config_checksum(folder):
        raise DamagedError(f"{folder / CONFIG} was changed after its checkpoint: {restart(run)}")
    for name, expected in manifest["files"].items():
        path = newest / name
        if not path.exists() or file_checksum(path) != expected:
            raise DamagedError(f"{path} is damaged (its checksum differs from the manifest's): {restart(run)}")
    return Checkpoint(int(manifest["step"]), newest, manifest)


def load_weights(saved: Checkpoint, model: nn.Module) -> None:
    """Loads a checkpoint's weights into the model.

    Raises:
        DamagedError: the weights do not fit the model, or are not finite.
        OSError: they are gone, as where a writer has replaced the checkpoint.
    """
    path = saved.folder / WEIGHTS
    if path.exists() or not (saved.folder / SHARDS).exists():
        with _system_errors():
            state = safetensors.torch.load_file(path)
        state |= {name: state[other] for name, other in saved.manifest.get("tied", {}).items()}
    else:
        state = _of_shards(saved, model)
    if saved.manifest.get("given"):
        own = model.state_dict()
        state |= {name: own[name] for name in given(model)}
    elif given(model):  # all were stored, because they have moved
        backbone: Any = model.get_submodule("backbone")
        backbone.is_moved = True
    trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    broken = _not_finite((name, tensor, name in trained) for name, tensor in state.items())
    if broken is not None:
        raise DamagedError(f"{path} holds weights that are not finite ({broken}): its training diverged; train it anew")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise DamagedError(
            f"{path} does not fit the model of {CONFIG} ({error}): read it with the version that wrote it, or train "
            "it anew"
        ) from error


def _of_shards(saved: Checkpoint, model: nn.Module) -> dict[str, Tensor]:
    """The weights of a checkpoint that several processes wrote."""
    from torch.distributed import checkpoint  # a fifth of a second that most runs do not need

    known = given(model) if saved.manifest.get("given") else set()
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items() if name not in known}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # as no_dist says
        checkpoint.load({MODEL: state}, checkpoint_id=saved.folder, no_dist=True)
    return state


def load_optimizer(saved: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
    """Loads a checkpoint's optimizer state into the optimizer.

    Raises:
        DamagedError: it is not finite.
    """
    path = saved.folder / OPTIMIZER
    if not path.exists() and (saved.folder / SHARDS).exists():
        raise ValueError(
            f"{saved.folder} was written by several processes: go on under torchrun, with any number of them"
        )
    optimizer.load_state_dict(torch.load(path, weights_only=True))
    broken = _not_finite(_moments(optimizer))
    if broken is not None:
        raise DamagedError(f"{path} holds numbers that are not finite ({broken}): its training diverged; train it anew")


# ---------------------------------------------------------------------------------------------------------------------
# What is finite


def check_finite(model: nn.Module, step: int, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Refuses a model that has diverged.

    Buffers may hold infinities, as masks do, but nothing that is no number.

    Raises:
        ValueError: a parameter, a buffer or a number of the optimizer's state is not finite; the message names one.
    """
    weights: list[tuple[str, Tensor, bool]] = [(name, parameter, True) for name, parameter in model.named_parameters()]
    weights += [(name, buffer, False) for name, buffer in model.named_buffers()]
    for what, tensors in (("weights", weights), ("moments", [] if optimizer is None else _moments(optimizer))):
        broken = _not_finite(tensors)
        if broken is not None:
            raise ValueError(
                f"{what} are not finite at step {step} ({broken}): training diverged; lower training.learning_rate"
            )


def _moments(optimizer: torch.optim.Optimizer) -> Iterable[tuple[str, Tensor, bool]]:
    """The tensors of an optimizer's state, by name."""
    for state in optimizer.state.values():
        for name, value in state.items():  # SOAP keeps lists of matrices
            parts = value if isinstance(value, list | tuple) else [value]
            yield from ((name, part, True) for part in parts if isinstance(part, Tensor))


def _not_finite(tensors: Iterable[tuple[str, Tensor, bool]]) -> str | None:
    """The name of the first tensor that has a number that is not finite, or where infinities are allowed a NaN."""
    for name, tensor, is_strict in tensors:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all() if is_strict else not tensor.isnan().any()):
            return name
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Metrics


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics so far, while it is trained too; none where nothing is logged.

    Raises:
        DamagedError: a line is not JSON; the message names it.
    """
    path = folder / METRICS
    try:
        return read_lines(path, whole=True)
    except FileNotFoundError:
        return []


def cut_metrics(folder: Path, saved: Checkpoint | None) -> int:
    """Removes lines from metrics.jsonl that are newer than the checkpoint, so that a resumed run writes them once.

    A metrics.jsonl that is gone stays so: whoever deleted it goes on without its lines.

    Returns:
        the number of bytes removed, half-written lines included; if negative, as many are missing.

    Raises:
        DamagedError: the lines before differ from those that the checkpoint recorded.
    """
    path = folder / METRICS
    written = path.read_bytes() if path.exists() else b""
    size, expected = (
        (0, checksum(b"")) if saved is None else (saved.manifest["metrics_bytes"], saved.manifest["metrics"])
    )
    if size and not path.exists():
        return -size
    if checksum(written[:size]) != expected:
        assert saved is not None, "nothing is expected of metrics before the first checkpoint"
        raise DamagedError(
            f"{path} is damaged (its lines up to step {saved.step} differ from what the checkpoint recorded), but the "
            f"weights of step {saved.step} are whole: restore it from a copy, or delete this one file to go on from "
            "these weights without those lines"
        )
    if len(written) > size:
        with atomic(path) as temporary:
            temporary.write_bytes(written[:size])
    return len(written) - size
