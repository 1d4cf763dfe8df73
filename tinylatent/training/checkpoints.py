"""Checkpoints with checksums, and metrics that can be cut back to a step.

A checkpoint is a folder `step-NNNNNNNN` that holds weights.safetensors, optimizer.pt and manifest.json. It is written
under another name and renamed when complete, so a run killed at any moment leaves the previous one in place. The
manifest carries the checksum of every file and of the metrics so far: anything damaged is reported, never used.
"""

import io
import json
import shutil
import tempfile
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
class Saved:
    """A verified checkpoint: its step, its folder, and what the manifest says."""

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
) -> None:
    """Writes checkpoint `step` under `folder` atomically, then removes older ones.

    seconds: the time it took; stopped: why training ends here, where it ends early.
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
    """The record with a checksum of its own, so that a changed manifest is noticed as well."""
    plain = {name: value for name, value in record.items() if name != "seal"}
    return {**plain, "seal": checksum(json.dumps(plain).encode())}


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-" + "[0-9]" * 8))


def _config_checksum(folder: Path) -> str:
    """What a checkpoint belongs to: the configuration beside it, or nothing."""
    config = folder / CONFIG
    return checksum(config.read_bytes() if config.exists() else b"")


def find_checkpoint(folder: Path, run: Path | None = None) -> Saved | None:
    """The newest checkpoint under a folder, verified; None if there is none.

    run: the folder to delete should it be damaged, where that is not the same one.

    Raises:
        DamagedError: a file of it is missing, cut or changed.
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
    return Saved(int(manifest["step"]), newest, manifest)


def load_weights(saved: Saved, model: nn.Module) -> None:
    """Puts a checkpoint's weights into the model.

    Raises:
        DamagedError: the weights do not fit the model.
    """
    try:
        model.load_state_dict(safetensors.torch.load_file(saved.folder / WEIGHTS))
    except RuntimeError as error:
        raise DamagedError(f"{saved.folder / WEIGHTS} does not fit the model of config.json: {error}") from error


def load_optimizer(saved: Saved, optimizer: torch.optim.Optimizer) -> None:
    """Puts a checkpoint's optimizer state into the optimizer."""
    optimizer.load_state_dict(torch.load(saved.folder / OPTIMIZER, weights_only=True))


# ---------------------------------------------------------------------------------------------------------------------
# Metrics


def cut_metrics(folder: Path, saved: Saved | None) -> int:
    """Cuts metrics.jsonl back to what the checkpoint vouches for, so that a resumed run writes every line once.

    Returns:
        the number of bytes dropped: lines written after the checkpoint, a half-written one included.

    Raises:
        DamagedError: what the checkpoint vouches for is not there.
    """
    path = folder / METRICS
    held = path.read_bytes() if path.exists() else b""
    size, expected = (
        (0, checksum(b"")) if saved is None else (saved.manifest["metrics_bytes"], saved.manifest["metrics"])
    )
    if checksum(held[:size]) != expected:
        raise DamagedError(
            f"{path} is damaged (it differs from what the checkpoint recorded): delete {folder} to start over"
        )
    if len(held) > size:
        with atomic(path) as temporary:
            temporary.write_bytes(held[:size])
    return len(held) - size
