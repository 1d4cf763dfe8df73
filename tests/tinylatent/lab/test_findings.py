"""Findings: one vocabulary of verdicts, and sentences and JSON from the same data."""

import json
from typing import get_args

import pytest

from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.findings import FAILS, HOLDS, OPEN, STRICTER, Finding, Verdict, decided, exactly

GAP = Interval(0.1, 0.05, 0.15, "bootstrap")


def test_there_are_four_verdicts():
    assert get_args(Verdict) == (HOLDS, STRICTER, FAILS, OPEN)
    assert (HOLDS, STRICTER) == ("holds", "holds under stricter conditions")
    assert (FAILS, OPEN) == ("fails", "not enough evidence")


def test_another_verdict_is_refused(unchecked):
    with pytest.raises(ValueError, match="verdict 'maybe': expected one of holds, holds under stricter conditions, fa"):
        Finding("the earth is flat", "maybe")


@pytest.mark.parametrize(
    ("holds", "fails", "runs", "verdict"),
    [
        (True, False, None, HOLDS),
        (False, True, None, FAILS),
        (False, False, None, OPEN),
        (True, True, None, OPEN),
        (True, False, 3, HOLDS),
        (False, True, 3, FAILS),
        (True, False, 2, OPEN),
        (False, True, 2, OPEN),
        (True, False, 1, OPEN),
        (False, True, 1, OPEN),
        (True, False, 0, OPEN),
    ],
)
def test_a_verdict_needs_one_side_alone_and_three_runs(holds, fails, runs, verdict):
    assert decided(holds, fails, runs) == verdict


def test_what_is_exact_leaves_no_third_verdict():
    assert exactly("1 + 1 = 2", True, "by hand").verdict == HOLDS
    assert exactly("1 + 1 = 3", False, "by hand", "sums") == Finding("1 + 1 = 3", FAILS, "by hand", family="sums")


@pytest.mark.parametrize(
    ("finding", "sentence"),
    [
        (Finding("CoT2 wins", HOLDS, "+1.00 points"), "Holds: CoT2 wins (+1.00 points)."),
        (Finding("CoT2 wins", HOLDS, "+1.00 points", runs=3), "Holds: CoT2 wins (+1.00 points)."),
        (Finding("CoT2 wins", OPEN, "+1.00", runs=2), "Not enough evidence: CoT2 wins (from 2 runs alone: +1.00)."),
        (Finding("CoT2 wins", OPEN, runs=1), "Not enough evidence: CoT2 wins (from 1 run alone)."),
        (Finding("CoT2 wins", OPEN), "Not enough evidence: CoT2 wins."),
        (Finding("K tokens do", STRICTER, "K > 2"), "Holds under stricter conditions: K tokens do (K > 2)."),
    ],
)
def test_a_sentence_has_verdict_claim_and_evidence(finding, sentence):
    assert finding.sentence() == sentence


def test_as_json_an_estimate_is_there_with_its_interval_and_unit():
    finding = Finding("CoT2 wins", HOLDS, "+10 points", GAP, "nats", "methods", {"x": [1.0]}, runs=5)
    assert json.loads(json.dumps(finding.to_json())) == {
        "claim": "CoT2 wins",
        "verdict": "holds",
        "exploratory": True,
        "family": "methods",
        "runs": 5,
        "estimate": 0.1,
        "low": 0.05,
        "high": 0.15,
        "unit": "nats",
        "kind": "bootstrap",
        "evidence": "+10 points",
    }


def test_as_json_what_was_not_estimated_is_absent():
    found = exactly("1 + 1 = 2", True, "by hand").to_json()
    assert found == {"claim": "1 + 1 = 2", "verdict": "holds", "exploratory": True, "evidence": "by hand"}
