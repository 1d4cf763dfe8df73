"""Two hundred fuzzed inputs in a process of their own, and what ten thousand came to."""

import json
import subprocess
import sys

import pytest

from tests.robustness.fuzz import ROOT, SHARES, shares


def test_shares_of_kinds_add_up():
    assert sum(share for share, _ in SHARES.values()) == 100
    for cases in (len(SHARES), 300, 10_000):
        assert sum(shares(cases).values()) == max(cases, len(SHARES))


def test_ten_thousand_inputs_ended_cleanly_or_right():
    stored = json.loads((ROOT / "results/robustness/fuzz.json").read_text(encoding="utf-8"))
    assert stored["cases"] == sum(stored["endings"].values()) == 10_000
    assert set(stored["endings"]) == {"clean", "right"}
    assert {name: sum(endings.values()) for name, endings in stored["kinds"].items()} == shares(10_000)
    assert len(stored["environment"]["commit"]) == 40


@pytest.mark.slow
def test_two_hundred_inputs_end_cleanly_or_right(tmp_path):
    output = tmp_path / "fuzz.json"
    words = ["-m", "tests.robustness.fuzz", "--cases", "200", "--seed", "7", "--output", str(output)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(output.read_text(encoding="utf-8"))["endings"]) == {"clean", "right"}
