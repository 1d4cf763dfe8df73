"""Where a number comes from: the commit is that of this checkout, the versions are those that are installed."""

import subprocess
from pathlib import Path

import torch

from tinylatent.core.environment import commit, environment

ROOT = Path(__file__).resolve().parents[3]


def test_the_commit_is_that_of_this_checkout():
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert commit().removesuffix("+changes") == head.stdout.strip()
    else:
        assert commit() == "unknown"


def test_versions_and_machine_are_told():
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["threads"] == "1"
    assert all(isinstance(value, str) and value for value in found.values())
    assert {"commit", "python", "tinylatent", "numpy", "machine"} <= set(found)
