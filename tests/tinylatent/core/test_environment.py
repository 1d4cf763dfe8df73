"""Where a number comes from: the commit is that of this checkout, the versions are those that are installed."""

import subprocess
from pathlib import Path

import pytest
import torch

from tinylatent.core.environment import code, commit, device_name, differences, environment, plugins

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


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """changed(text) is the checksum of all code once a package with a method has this text in its second module."""
    info, package = tmp_path / "murmur-0.1.dist-info", tmp_path / "murmur"
    info.mkdir()
    package.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: murmur\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[tinylatent.methods]\nmurmur = murmur.own:Own\n")
    (package / "__init__.py").write_text("raise RuntimeError('nobody imports it for that')\n")
    monkeypatch.syspath_prepend(tmp_path)

    def change(text):
        (package / "own.py").write_text(text)
        return code.__wrapped__()

    return change


def test_the_code_is_told_by_a_checksum_that_any_edit_changes(changed):
    """Of packages that bring methods or tasks, too; the same code has the same one, wherever it lies."""
    one, two, again = changed("a = 1\n"), changed("a = 2\n"), changed("a = 1\n")
    assert one == again
    assert len({one, two, code()}) == 3
    assert environment()["code"] == code()
    assert len(code()) == 12


def test_environments_differ_in_what_they_tell_otherwise():
    old = {"commit": "a", "torch": "2.6", "threads": "1", "python": "3.11"}
    new = {"commit": "b", "torch": "2.7", "threads": "2", "python": "3.11", "code": "c1"}
    assert differences([old, new]) == {"commit": ["a", "b"], "torch": ["2.6", "2.7"]}
    assert differences([old, old]) == differences([new]) == differences([]) == {}
    assert differences([new, {**new, "commit": "c"}]) == {}
    assert differences([new, {**new, "code": "c2"}, new]) == {"code": ["c1", "c2"]}
    assert differences([new, {**new, "device": "GPU"}]) == {}
