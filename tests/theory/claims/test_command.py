"""The command `claims`: checks what it is asked for, shows it, and fails where a verdict has changed."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from tinylatent_theory.claims import command, study
from tinylatent_theory.claims.command import Claims
from tinylatent_theory.claims.ledger import LEDGER

from tinylatent.lab.findings import OPEN
from tinylatent.lab.launchers import LAUNCHERS

NAMES = ("hrpo_printed_sign", "kurtosis_range")


class Here:
    """A launcher that does its jobs in this process, as they are asked for."""

    def __init__(self):
        self.waiting = []

    @contextlib.contextmanager
    def submit(self, jobs):
        self.waiting = [*jobs]
        yield self

    def ended(self, timeout):
        job = self.waiting.pop()
        job.do()
        return [(job, None)]


@pytest.fixture
def here(monkeypatch):
    """Registers Here under the name "here", and returns the numbers of workers that it was made with."""
    made = []
    monkeypatch.setitem(LAUNCHERS.points, "here", None)
    monkeypatch.setitem(LAUNCHERS._found, "here", lambda workers: made.append(workers) or Here())
    return made


def test_named_claims_are_shown_in_full_and_nothing_is_kept(here, capsys, tmp_path, monkeypatch):
    first, last = sorted(NAMES, key=[*LEDGER].index)
    monkeypatch.chdir(tmp_path)
    Claims(id=(last, first), launcher="here", workers=7).run()
    assert here == [7]
    shown = capsys.readouterr().out
    for part in ("counterexample", "theory/tinylatent_theory/claims/hrpo.py:"):
        assert part in shown
    assert shown.index(first) < shown.index(last), "the ledger's order"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_process_of_its_own_finds_the_claims(capsys):
    Claims(id=NAMES[::-1], workers=1, json=True).run()
    found = json.loads(capsys.readouterr().out)
    assert [each["id"] for each in found] == sorted(NAMES, key=[*LEDGER].index)
    assert [each["verdict"] for each in found] == [each["recorded"] for each in found]


def test_the_whole_ledger_is_stored_and_told_in_short(here, monkeypatch, capsys, tmp_path):
    """A ledger of two, that is."""
    monkeypatch.setattr(study, "LEDGER", {name: LEDGER[name] for name in NAMES})
    Claims(results=tmp_path, launcher="here").run()
    shown = capsys.readouterr().out
    assert "hrpo_printed_sign  paper     fails\nkurtosis_range     here      holds\n" in shown
    assert "\npaper: 1, of which 1 fails: counterexample.\nhere: 1, of which 1 holds.\nall: 2, of which " in shown
    assert "2 of 2 verdicts are those on record" in shown
    assert (tmp_path / "runs/quick/claims/table.csv").read_text().count("the same") == 2


def test_a_changed_verdict_is_told_and_fails(here, capsys, monkeypatch):
    monkeypatch.setitem(LEDGER, "kurtosis_range", replace(LEDGER["kurtosis_range"], recorded=OPEN))
    with pytest.raises(SystemExit) as stop:
        Claims(id=("kurtosis_range",), json=True, launcher="here").run()
    assert stop.value.code == 1
    assert "1 of 1 verdicts changed: kurtosis_range: holds (on record: not enough evidence)" in capsys.readouterr().err


def test_an_unknown_id_is_told():
    with pytest.raises(ValueError, match="unknown claim 'kurtosis': expected ids such as kurtosis_identity"):
        Claims(id=("kurtosis_range", "kurtosis")).run()


def test_an_unknown_launcher_is_told():
    with pytest.raises(ValueError, match=r"unknown launcher 'cluster': expected one of .*local"):
        Claims(id=("kurtosis_range",), launcher="cluster").run()


def test_names_are_listed_without_checking(capsys, monkeypatch):
    monkeypatch.setattr(command, "reproduce", None)
    Claims(names=True).run()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*LEDGER]


def test_names_as_json(capsys):
    Claims(names=True, json=True).run()
    found = json.loads(capsys.readouterr().out)
    assert [each["id"] for each in found] == [*LEDGER]
    for each in found:
        claim = LEDGER[each["id"]]
        assert each == {
            "id": claim.name, "origin": claim.origin, "recorded": claim.recorded, "statement": claim.statement
        }  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"names": True, "id": ("kurtosis_range",)}, "--id has no effect beside --names, which checks nothing"),
        ({"names": True, "profile": "full"}, "--profile has no effect beside --names"),
        ({"names": True, "workers": 3}, "--workers has no effect beside --names"),
        ({"names": True, "results": Path("elsewhere")}, "--results has no effect beside --names"),
        (
            {"id": ("kurtosis_range",), "results": Path("elsewhere")},
            "--results has no effect beside --id, which writes",
        ),
    ],
)
def test_flags_that_would_be_ignored_are_refused(flags, said, capsys):
    with pytest.raises(ValueError, match=said):
        Claims(**flags).run()
    assert capsys.readouterr().out == ""
