"""Provenance: which code, versions and machine a number comes from."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

PACKAGES = ("tinylatent", "torch", "numpy", "scipy")


def environment() -> dict[str, str]:
    """Commit, package versions, Python and processor, as a flat record of strings."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "commit": commit(),
        "python": platform.python_version(),
        **versions,
        "machine": f"{platform.system()} {platform.machine()}, {processor()}",
        "threads": str(torch.get_num_threads()),
    }


def processor() -> str:
    """The processor's name and number of cores, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'unknown processor'}, {os.cpu_count()} cores"


def commit() -> str:
    """The commit of the code that runs, with "+changes" if files differ from it; "unknown" outside a checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return "unknown"
    try:
        revision = _git(here, "rev-parse", "HEAD")
        changed = _git(here, "status", "--porcelain", "--", "tinylatent", "tasks", "theory")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{revision}+changes" if changed else revision


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
