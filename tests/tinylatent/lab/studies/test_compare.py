"""What studies say about groups of records: verdicts, published values beside measured ones, the same splits."""

import pytest
from records import CONTROLS, changed, record_of

from tinylatent.core.seeds import Seeds
from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import FAILS, HOLDS, OPEN
from tinylatent.lab.studies import compare
from tinylatent.methods import CoT2, DiscreteCoT


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.01, 0.2, HOLDS), (-0.2, -0.01, FAILS), (-0.1, 0.1, OPEN), (0.0, 0.1, OPEN)]
)
def test_a_verdict_needs_the_whole_interval_and_three_runs(low, high, verdict):
    gap = Interval((low + high) / 2, low, high, "")
    found = compare.positive("a is better", gap, runs=3)
    assert (found.verdict, found.estimate, found.runs) == (verdict, gap, 3)
    assert found.evidence == f"{50 * (low + high):+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]"
    agreeing = compare.positive("a is better", gap, runs=2)
    assert (agreeing.verdict, agreeing.evidence) == (OPEN, found.evidence)
    assert agreeing.sentence().endswith(f"(from 2 runs alone: {found.evidence}).")


@pytest.mark.parametrize(
    ("published", "where"), [(89.0, "below"), (99.9, "above"), (95.0, "inside"), (90.0, "inside"), (99.0, "inside")]
)
def test_published_values_are_told_beside_measured_ones(published, where):
    said = compare.against_published("X", Interval(0.95, 0.90, 0.99, ""), published)
    wide = ", which is too wide to tell them apart" if where == "inside" else ""
    assert said == f"X: the published {published:.2f} lies {where} what was measured, 95.00 [90.00, 99.00]{wide}."
    narrow = compare.against_published("X", Interval(0.95, 0.93, 0.98, ""), 95.0)
    assert narrow == "X: the published 95.00 lies inside what was measured, 95.00 [93.00, 98.00]."


@pytest.mark.parametrize(
    ("zero", "verdict"), [(10, HOLDS), (90, OPEN), (93, FAILS)], ids=["harmful", "harmless", "helpful"]
)
def test_latents_matter_only_if_every_control_hurts(zero, verdict):
    runs = [record_of(Experiment(seeds=Seeds.all(s)), 90, {**CONTROLS, "zero": zero}) for s in range(3)]
    found = compare.latents_matter("X", runs)
    assert (found.claim, found.verdict, found.family) == ("X needs its own latents", verdict, "controls")
    assert found.runs == 3
    assert "+60.00 points [+59.50, +60.50] over shuffled" in found.evidence
    assert found.estimate.value == pytest.approx(min(60, 90 - zero) / 100)
    assert compare.latents_matter("X", runs[:1]).verdict == OPEN


def test_differences_demand_the_same_splits():
    ours, theirs = ([record_of(Experiment(method=each), 90)] for each in (CoT2(), DiscreteCoT()))
    assert compare.difference(ours, theirs).value == 0
    for other in (changed(theirs[0], keys=[*theirs[0].keys[1:], "x"]), changed(theirs[0], total=[101] * 10)):
        with pytest.raises(ValueError, match="runs of cot2 and discrete are not on the same splits"):
            compare.difference(ours, [other])


def test_what_sampled_nothing_has_no_pass_at_k():
    record = changed(record_of(Experiment(method=DiscreteCoT()), 90), sampling=None)
    with pytest.raises(ValueError, match=f"run {record.id} of discrete sampled no answers: expected pass@k"):
        compare.sampled_accuracy([record], "pass", "1", "5")
