"""Provenance: which code, versions and machine a number comes from."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = ("tinylatent", "torch", "numpy", "scipy")


def environment() -> dict[str, str]:
    """Commit, package versions, Python and processor, as a flat record of strings."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"commit": commit(), "python": platform.python_version(), **versions, "machine": platform.machine()}


def commit() -> str:
    """The commit of the code that runs, with "+changes" if files differ from it; "unknown" outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return "unknown"
    try:
        revision = _git(here, "rev-parse", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no", "--", "tinylatent", "tasks", "theory")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{revision}+changes" if changed else revision


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
