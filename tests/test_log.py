"""The log corrects itself in the open: what was struck out is followed by what is so, and what it counts is counted."""

import json
import re
from collections import Counter
from pathlib import Path

from tinylatent_theory.claims.study import LEDGER

from tinylatent.lab.findings import FAILS, FEWEST, HOLDS, OPEN

RESULTS = Path(__file__).resolve().parents[1] / "results"
LOG = " ".join((RESULTS / "LOG.md").read_text(encoding="utf-8").split())


def findings(study, table=None):
    found = json.loads((RESULTS / study / "findings.json").read_text(encoding="utf-8"))["findings"]
    return [each for each in found if table in (None, each["table"])]


def test_a_struck_sentence_is_followed_by_its_dated_correction():
    struck = re.findall(r"~~(.+?)~~(.{0,14})", LOG)
    assert len(struck) > 20
    assert [sentence for sentence, behind in struck[1:] if behind != " *Corrected 20"] == []
    assert struck[0][0] == "struck out", "the explanation at the top"


def test_what_is_struck_out_is_told_nowhere_else():
    kept = re.sub(r"~~.+?~~", "", LOG)
    for wrong in (
        "No claim carries over",
        "falls at K = 1 alone",
        "the more the worse it began",
        "though it gains most",
        "or stays at a guess",
        "the latents carry the answer, in both",
        "is gone.",
        "CoT2 not quite",
        "from groups of four on.",
    ):
        assert wrong in LOG
        assert wrong not in kept


def test_six_comparisons_carry_over_from_mnns():
    """Three to subset sum, three to multi-hop, none to reachability."""
    usual = {each["claim"] for each in findings("mnns", "table.csv") if each["verdict"] == HOLDS}
    carried = [
        sum(each["claim"] in usual and each["verdict"] == HOLDS for each in findings("tasks", table))
        for table in ("table-3.csv", "table-4.csv", "table-5.csv")
    ]
    assert carried == [3, 3, 0]
    assert "six of the comparisons that hold on MNNS hold on another task, three each" in LOG


def test_intervals_of_two_runs_that_lie_on_one_side_decide_nothing():
    found = [each for each in findings("tasks-tuning") if each["low"] > 0 or each["high"] < 0]
    assert len(found) == 2
    assert all(each["runs"] < FEWEST and each["verdict"] == OPEN for each in found)
    assert "two in [tasks-tuning]" in LOG


def test_the_ledger_is_counted_by_origin():
    counts = Counter(claim.origin for claim in LEDGER.values())
    paper, code, folklore, ours = (counts[word] for word in ("paper", "code", "folklore", "here"))
    assert (
        f"{paper} of the {len(LEDGER)} are a paper's, {code} an authors' code's, {folklore} folklore, {ours} ours"
        in LOG
    )
    fails = [claim for claim in LEDGER.values() if claim.recorded == FAILS]
    assert f"Of the {len(fails)} that fail, eleven are ours" in LOG
    assert sum(claim.origin == "here" for claim in fails) == 11
