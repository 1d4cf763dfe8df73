"""The ledger: every claim is whole, every verdict is the one on record, and the statistical test is sound."""

import inspect
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from scipy import stats

from theory.claims import ledger, study
from theory.claims.ledger import ALPHA, FAILS, HOLDS, LEDGER, OPEN, POWER, STRICTER, Trial, Verdict, z_test

ROOT = Path(ledger.__file__).parent


def test_there_are_many_and_of_every_verdict():
    assert len(LEDGER) >= 60
    assert {claim.recorded for claim in LEDGER.values()} == set(get_args(Verdict))


@pytest.mark.parametrize("claim", LEDGER.values(), ids=lambda claim: claim.name)
def test_an_entry_is_whole_and_leads_to_its_code(claim):
    assert claim.check.__name__ == claim.name
    found = [path for path in ROOT.glob("*.py") if re.search(rf"^def {claim.name}\(", path.read_text(), re.MULTILINE)]
    assert len(found) == 1
    assert inspect.getdoc(claim.check)
    assert claim.source
    assert claim.conditions
    assert claim.statement.endswith(".")
    if claim.recorded in (STRICTER, FAILS):
        assert re.search(r"\d", claim.counterexample())
        assert "\n" not in claim.counterexample()


@pytest.mark.parametrize("claim", LEDGER.values(), ids=lambda claim: claim.name)
def test_verdicts_are_those_on_record(claim, unchecked):
    finding = claim.check(Trial("quick", 7))  # the command itself takes seed 0
    assert finding.verdict == claim.recorded, finding.evidence
    assert finding.evidence
    if claim.how == "statistical":
        assert "level 1e-06" in finding.evidence
        assert "noticed with probability 0.99" in finding.evidence


def test_a_name_is_taken_once_and_failures_bring_a_counterexample():
    def enter(recorded, name="a_new_claim"):
        def check(trial):
            """Nothing."""

        check.__name__ = name
        words = {"source": "s", "statement": "S.", "conditions": "c", "how": "exhaustive"}
        ledger.claim(**words, recorded=recorded)(check)

    with pytest.raises(ValueError, match="expected a counterexample that can be run"):
        enter(FAILS)
    with pytest.raises(ValueError, match="'maybe': expected one each of exhaustive"):
        enter("maybe")
    with pytest.raises(ValueError, match="stands in the ledger already"):
        enter(HOLDS, next(iter(LEDGER)))
    assert "a_new_claim" not in LEDGER


def test_seeds_by_purpose():
    trial = Trial(seed=3)
    assert trial.numpy("a").random() == trial.numpy("a").random() != trial.numpy("b").random()
    assert trial.torch("a").initial_seed() != Trial(seed=4).torch("a").initial_seed()
    assert (Trial("quick").size(1, 9), Trial("full").size(1, 9)) == (1, 9)


def test_the_z_test_is_the_textbooks():
    values = np.array([1.0, 2.0, 4.0, 5.0] * 100)
    test = z_test(values, 2.5)
    assert test.error == pytest.approx(values.std(ddof=1) / 20)
    assert test.rejected == (stats.ttest_1samp(values, 2.5).pvalue < ALPHA)
    assert stats.norm.sf(test.limit - test.detectable / test.error) == pytest.approx(POWER)
    assert z_test(values, 2.5, looks=10).limit > test.limit
    with pytest.raises(ValueError, match="50 values: expected at least 100"):
        z_test(values[:50], 2.5)
    assert not z_test(values, 3.0).rejected
    assert z_test(values, 3.0 + 6 * test.error).rejected
    assert z_test([*values[:-1], float("nan")], 3.0).rejected


def test_verdict_words():
    assert ledger.judged(True, "e").verdict == HOLDS
    assert ledger.judged(False, "e").verdict == FAILS
    assert ledger.judged_twice(True, True, "e").verdict == HOLDS
    assert ledger.judged_twice(False, True, "e").verdict == STRICTER
    assert ledger.judged_twice(True, False, "e").verdict == FAILS
    assert OPEN == "not enough evidence"


# ---------------------------------------------------------------------------------------------------------------------
# Study and command


def test_the_study_is_the_ledger():
    assert sorted(check.claim for check in study.grid("quick")) == sorted(LEDGER)
    assert study.STUDY.fresh


def test_quick_is_seeded_and_full_draws_fresh_seeds():
    name = "kurtosis_range"
    quick, again = (study.measure(study.Check(name), None) for _ in range(2))
    assert quick["experiment"]["seeds"] == again["experiment"]["seeds"] == {"claim": 0}
    assert quick["evidence"] == again["evidence"]
    seeds = {study.measure(study.Check(name, "full"), None)["experiment"]["seeds"]["claim"] for _ in range(3)}
    assert len(seeds) == 3


def test_a_check_goes_to_json_and_back():
    check = study.Check("kurtosis_range", "full")
    assert study.Check.from_json(study.measure(check, None)["experiment"]) == check
    assert check.identity != study.Check("kurtosis_range").identity
    with pytest.raises(ValueError, match="written by version 0 of the ledger"):
        study.Check.from_json({**check.to_json(), "version": 0})


def test_named_claims_are_shown_in_full(capsys, tmp_path):
    study.Claims(id=("hrpo_printed_sign", "kurtosis_range"), results=tmp_path).run()
    shown = capsys.readouterr().out
    for part in ("hrpo_printed_sign", "counterexample", "theory/claims/hrpo.py:", "kurtosis_range"):
        assert part in shown
    assert not list(tmp_path.iterdir())


def test_a_changed_verdict_is_told_and_fails(capsys, monkeypatch):
    claim = LEDGER["kurtosis_range"]
    changed = ledger.Claim(**{**vars(claim), "recorded": OPEN})
    monkeypatch.setitem(LEDGER, "kurtosis_range", changed)
    with pytest.raises(SystemExit) as stop:
        study.Claims(id=("kurtosis_range",), json=True).run()
    assert stop.value.code == 1
    assert "1 of 1 verdicts changed: kurtosis_range: holds (on record: not enough evidence)" in capsys.readouterr().err


def test_an_unknown_id_is_told():
    with pytest.raises(ValueError, match="unknown claim 'kurtosis': expected ids such as kurtosis_identity"):
        study.Claims(id=("kurtosis",)).run()


def test_names_are_listed_without_checking(capsys, monkeypatch):
    monkeypatch.setattr(study, "reproduce", None)
    study.Claims(names=True).run()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*LEDGER]


@pytest.mark.parametrize(
    "damage", [{"verdict": "maybe"}, {"evidence": None}, {"curves": {"x": ["y"]}}, {"seconds": "fast"}]
)
def test_a_damaged_record_is_told(damage):
    record = study.measure(study.Check("kurtosis_range"), None) | damage
    with pytest.raises(ValueError, match="the record of claim kurtosis_range is not one that a check wrote"):
        study.tables([record])
