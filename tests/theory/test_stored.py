"""Stored studies: the working directory's results come first, then the checkout's; what is missing is told in full."""

import json
from pathlib import Path

import pytest
from tinylatent_theory import stored as room
from tinylatent_theory.claims.cot2 import best_budget_grows_with_width
from tinylatent_theory.claims.ledger import Trial
from tinylatent_theory.stored import stored

from tinylatent.core.files import DamagedError, write_text
from tinylatent.core.identity import checksum
from tinylatent.lab.findings import HOLDS

CHECKOUT = Path(__file__).resolve().parents[2] / "results"
GROWS = {"claim": "the best budget grows with the width", "verdict": HOLDS, "evidence": "4 to 16"}


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """A working directory without results."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_outside_a_checkout_its_own_results_are_read(elsewhere):
    found = stored("mnns-budget", "table.csv")
    assert found.path == CHECKOUT / "mnns-budget/table.csv"
    assert found.checksum == checksum(found.path.read_bytes())


def test_results_of_the_working_directory_come_first(elsewhere):
    write_text(elsewhere / "results/mnns-budget/table.csv", "mine\n")
    assert stored("mnns-budget", "table.csv").text == "mine\n"
    assert stored("mnns-budget", "findings.json").path.is_relative_to(CHECKOUT)


def test_a_missing_study_is_told_with_what_to_do(elsewhere, monkeypatch):
    monkeypatch.setattr(room, "PLACES", (Path("results"), elsewhere / "installed"))
    with pytest.raises(DamagedError) as told:
        stored("mnns-budget", "table.csv")
    said = str(told.value)
    assert said.startswith(
        f"mnns-budget/table.csv is missing in {elsewhere / 'results'} and in {elsewhere}/installed: "
    )
    assert "start it in a checkout of the repository" in said
    assert "tinylatent reproduce mnns-budget --profile full --results results" in said


def test_the_claim_about_budgets_names_the_file_it_read(elsewhere):
    write_text(elsewhere / "results/mnns-budget/findings.json", json.dumps({"findings": [GROWS]}))
    found = best_budget_grows_with_width(Trial())
    key = checksum((elsewhere / "results/mnns-budget/findings.json").read_bytes())
    assert (found.verdict, found.evidence) == (HOLDS, f"4 to 16; findings.json of mnns-budget, checksum {key}")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"findings": []}', json.dumps({"findings": [GROWS] * 2})])
def test_findings_without_that_claim_are_told(elsewhere, text):
    write_text(elsewhere / "results/mnns-budget/findings.json", text)
    with pytest.raises(DamagedError, match=r"findings\.json is not what study mnns-budget writes"):
        best_budget_grows_with_width(Trial())
