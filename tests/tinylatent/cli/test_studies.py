"""`reproduce`: what it refuses, and what it hands on. tests/tinylatent/lab/test_study.py holds what it writes."""

import json

import pytest

from tinylatent.cli import studies
from tinylatent.cli.main import main
from tinylatent.core.registry import Registry
from tinylatent.lab.findings import exactly
from tinylatent.lab.launchers import launcher as launcher_module
from tinylatent.lab.study import Outcome
from tinylatent.lab.tables import Table

ERRORS = {
    "study": (["nonsense"], "unknown study 'nonsense': expected one of"),
    "workers": (["mnns", "--workers", "0"], "workers is 0"),
    "launcher": (["mnns", "--launcher", "cluster"], "unknown launcher 'cluster': expected one of local"),
    "profile": (["mnns", "--profile", "endless"], "--profile"),
}


@pytest.mark.parametrize(("words", "said"), ERRORS.values(), ids=ERRORS)
def test_what_cannot_be_reproduced_is_said(words, said, refused, tmp_path):
    assert said in refused(["reproduce", *words, "--results", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def asked(monkeypatch):
    """What reproduce was called with; it returns one table with a finding."""
    calls = []
    table = Table("One", {"n": "d"}, [{"n": 1}], findings=[exactly("one is one", True, "1 of 1")])

    def reproduce(*arguments):
        calls.append(arguments)
        return Outcome([table], {"table.csv": arguments[2] / "one" / "table.csv"}, [])

    monkeypatch.setattr(studies, "reproduce", reproduce)
    return calls


def test_tables_with_their_findings_as_json(asked, tmp_path, capsys):
    assert main(["reproduce", "mnns", "--results", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["files"] == {"table.csv": str(tmp_path / "one" / "table.csv")}
    (table,) = printed["tables"]
    assert (table["title"], table["rows"]) == ("One", [{"n": 1}])
    assert [(each["claim"], each["verdict"]) for each in table["findings"]] == [("one is one", "holds")]


def test_tables_as_text(asked, tmp_path, capsys):
    assert main(["reproduce", "mnns", "--results", str(tmp_path)]) == 0
    assert "- Holds: one is one (1 of 1)." in capsys.readouterr().out


GUEST = """
class Far:
    def __init__(self, workers):
        self.workers = workers

    def submit(self, jobs):
        ...


def none():
    ...
"""


def test_a_launcher_is_chosen_by_name(asked, installed, monkeypatch, tmp_path, capsys):
    installed(
        "launching", "[tinylatent.launchers]\nfar = far_launcher:Far\nnone = far_launcher:none\n", GUEST, "far_launcher"
    )
    monkeypatch.setattr(launcher_module, "LAUNCHERS", Registry("tinylatent.launchers", "launcher"))
    words = ["--launcher", "far", "--workers", "7", "--profile", "full", "--results", str(tmp_path)]
    assert main(["reproduce", "mnns", *words]) == 0
    ((study, profile, results, launcher, device),) = asked
    assert (study.name, profile, results, launcher.workers, device) == ("mnns", "full", tmp_path, 7, "cpu")
    assert type(launcher).__name__ == "Far"
    words[1] = "none"
    assert main(["reproduce", "mnns", *words]) == 2
    assert "the launcher 'none' of launching is none: expected a class" in capsys.readouterr().err
