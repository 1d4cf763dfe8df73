"""Checkpoints with checksums, and metrics that are cut back to a checkpoint's step.

A checkpoint is a folder `step-NNNNNNNN` with weights.safetensors, optimizer.pt and manifest.json. It is written under
another name and renamed when complete, so a run that is killed keeps its previous checkpoint. The manifest has the
checksum of every file and of the metrics so far: anything damaged raises DamagedError and is not used.
"""

import io
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from tinylatent.core.files import DamagedError, atomic, read_json, sync
from tinylatent.core.identity import checksum

WEIGHTS, OPTIMIZER, MANIFEST, METRICS = "weights.safetensors", "optimizer.pt", "manifest.json", "metrics.jsonl"
CONFIG = "config.json"


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
    """
    target = folder / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".step-", dir=folder))
    try:
        state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        (temporary / WEIGHTS).write_bytes(safetensors.torch.save(state))  # a full disk is an OSError this way
        if optimizer is not None:
            buffer = io.BytesIO()
            torch.save(optimizer.state_dict(), buffer)
            (temporary / OPTIMIZER).write_bytes(buffer.getvalue())
        files = {path.name: checksum(path.read_bytes()) for path in sorted(temporary.iterdir())}
        metrics = folder / METRICS
        written = metrics.read_bytes() if metrics.exists() else b""
        record = {
            "step": step,
            "seconds": seconds,
            "stopped": stopped,
            "environments": None if environments is None else [dict(environment) for environment in environments],
            "config": _config_checksum(folder),
            "files": files,
            "metrics_bytes": len(written),
            "metrics": checksum(written),
        }
        (temporary / MANIFEST).write_text(json.dumps(_sealed(record), indent=2) + "\n", encoding="utf-8")
        for path in (*([metrics] if written else []), *sorted(temporary.iterdir()), temporary):
            sync(path)
        if target.exists():
            shutil.rmtree(target)
        temporary.chmod(0o755)
        temporary.rename(target)
        sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for older in _steps(folder)[:-1]:
        shutil.rmtree(older)


def _sealed(record: dict[str, Any]) -> dict[str, Any]:
    """The record with a checksum of itself, so that a changed manifest is detected."""
    plain = {name: value for name, value in record.items() if name != "seal"}
    return {**plain, "seal": checksum(json.dumps(plain).encode())}


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-" + "[0-9]" * 8))


def _config_checksum(folder: Path) -> str:
    """The checksum of the folder's config.json, or of nothing if there is none."""
    config = folder / CONFIG
    return checksum(config.read_bytes() if config.exists() else b"")


def find_checkpoint(folder: Path, run: Path | None = None) -> Checkpoint | None:
    """The newest checkpoint under a folder, verified; None if there is none.

    run: the folder that messages say to delete, if that is not `folder`.

    Raises:
        DamagedError: a file of the checkpoint is missing, cut or changed.
    """
    steps, whole = _steps(folder), run or folder
    if not steps:
        return None
    newest = steps[-1]
    manifest = read_json(newest / MANIFEST)
    if not isinstance(manifest, dict) or manifest != _sealed(manifest):
        raise DamagedError(f"{newest / MANIFEST} is damaged (it differs from its seal): delete {whole} to start over")
    if manifest["config"] != _config_checksum(folder):
        raise DamagedError(f"{folder / CONFIG} was changed after its checkpoint: restore it, or delete {whole}")
    for name, expected in manifest["files"].items():
        path = newest / name
        if not path.exists() or checksum(path.read_bytes()) != expected:
            raise DamagedError(
                f"{path} is damaged (its checksum differs from the manifest's): delete {whole} to start over"
            )
    return Checkpoint(int(manifest["step"]), newest, manifest)


def load_weights(saved: Checkpoint, model: nn.Module) -> None:
    """Loads a checkpoint's weights into the model.

    Raises:
        DamagedError: the weights do not fit the model.
    """
    try:
        model.load_state_dict(safetensors.torch.load_file(saved.folder / WEIGHTS))
    except RuntimeError as error:
        raise DamagedError(f"{saved.folder / WEIGHTS} does not fit the model of config.json: {error}") from error


def load_optimizer(saved: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
    """Loads a checkpoint's optimizer state into the optimizer."""
    optimizer.load_state_dict(torch.load(saved.folder / OPTIMIZER, weights_only=True))


# ---------------------------------------------------------------------------------------------------------------------
# Metrics


def cut_metrics(folder: Path, saved: Checkpoint | None) -> int:
    """Removes lines from metrics.jsonl that are newer than the checkpoint, so that a resumed run writes them once.

    Returns:
        the number of bytes removed, half-written lines included.

    Raises:
        DamagedError: the lines before differ from those that the checkpoint recorded.
    """
    path = folder / METRICS
    written = path.read_bytes() if path.exists() else b""
    size, expected = (
        (0, checksum(b"")) if saved is None else (saved.manifest["metrics_bytes"], saved.manifest["metrics"])
    )
    if checksum(written[:size]) != expected:
        raise DamagedError(
            f"{path} is damaged (it differs from what the checkpoint recorded): delete {folder} to start over"
        )
    if len(written) > size:
        with atomic(path) as temporary:
            temporary.write_bytes(written[:size])
    return len(written) - size
