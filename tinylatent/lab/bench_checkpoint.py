"""Checkpoint: what it takes to write one of a model of transformers whose every weight is trained by AdamW."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tinylatent.training.checkpoints import save_checkpoint

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def checkpoint(backbone: Any) -> dict[str, float]:
    """Seconds of writing weights and both moments, its gigabytes, and the most memory meanwhile over that before.

    Memory is that of the process, on Linux, and only for a model on the CPU.
    """
    model = backbone.model.requires_grad_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    with tempfile.TemporaryDirectory() as folder:
        resident = _restarted_peak()
        begin = time.perf_counter()
        save_checkpoint(Path(folder), 1, model, optimizer)
        figures = {"checkpoint_s": time.perf_counter() - begin}
        if resident and next(model.parameters()).device.type == "cpu":
            figures["checkpoint_peak_over_resident"] = _kilobytes("VmHWM") / resident
        figures["checkpoint_gb"] = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e9
    return figures


def _restarted_peak() -> float:
    """Kilobytes that the process holds now, from which its peak is measured; 0 where the system does not tell."""
    if not CLEAR.exists():
        return 0.0
    CLEAR.write_text("5", encoding="ascii")
    return _kilobytes("VmRSS")


def _kilobytes(name: str) -> float:
    """A line of the process's own figures."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))
