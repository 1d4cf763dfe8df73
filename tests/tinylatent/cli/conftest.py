"""A finished run that several files ask about."""

import pytest

from tinylatent.cli.main import main

TINY = ["--task.digits", "2", "--task.high", "4", "--model.width", "8", "--model.layers", "1", "--model.heads", "1"]
SHORT = ["--training.steps", "12", "--training.batch-size", "4", "--training.save-every", "5"]


@pytest.fixture(scope="session")
def train(tmp_path_factory):
    """train(recipe, flags...) runs a tiny model of a recipe on MNNS for a few steps; returns its folder."""

    def run(recipe, *flags):
        folder = tmp_path_factory.mktemp("cli") / "run"
        assert main(["run", recipe, "--out", str(folder), *TINY, *SHORT, *flags]) == 0
        return folder

    return run


@pytest.fixture(scope="session")
def run_folder(train):
    """A finished run of a tiny CoT2; read-only for tests."""
    return train("mnns/cot2")


@pytest.fixture
def refused(capsys):
    """refused(words) runs a command that must fail: status 2 and nothing printed but one line, which it returns."""

    def run(words):
        capsys.readouterr()
        assert main(words) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("tinylatent: ")
        assert error.count("\n") == 1
        return error

    return run


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """installed(package, points, module) puts a package with entry points on the path, as pip would."""

    def install(package, points, module="", name="guest_module"):
        site = tmp_path / f"site-{package}"
        info = site / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text(module)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(points)
        monkeypatch.syspath_prepend(str(site))

    return install
