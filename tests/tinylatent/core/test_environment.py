"""Where a number comes from: the commit is that of this checkout, the versions are those that are installed."""

import subprocess
from pathlib import Path

import torch

from tinylatent.core.environment import commit, device_name, environment, plugins

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


def test_the_device_is_told_where_there_is_one(monkeypatch):
    assert "device" not in environment()
    assert environment("cpu")["device"] == environment(torch.device("cpu"))["device"] == "cpu"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert device_name(torch.device("cuda", 1)) == "GPU 1, CUDA 12.8"


def test_packages_that_add_to_this_one_are_told(tmp_path, monkeypatch):
    """A method's package is, one that registers elsewhere is not."""
    assert "plugins" not in environment()
    for name, group in (("zither", "tinylatent.tasks"), ("murmur", "tinylatent.methods"), ("other", "pytest11")):
        info = tmp_path / f"{name}-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {name}:Own\nmore = {name}:More\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert plugins() == ["murmur 0.1", "zither 0.1"]
    assert environment()["plugins"] == "murmur 0.1, zither 0.1"
