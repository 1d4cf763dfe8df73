"""Study `mnns`: what each of Coconut's stages had learnt."""

import pytest
from records import changed, record_of

from tinylatent.lab.findings import OPEN
from tinylatent.lab.records import DEFAULT, StageEnd
from tinylatent.lab.studies import mnns
from tinylatent.lab.studies.compare import method_of
from tinylatent.training.config import Training

PERCENTS = {"direct": 45, "pause": 40, "discrete": 80, "coconut": 90, "cot2": 94}


def run_of(experiment):
    """A run as right as PERCENTS says, a point more for each seed; Coconut's first stage 30 points less, key by key."""
    record = record_of(experiment, PERCENTS[experiment.method.name] + experiment.seeds.split - 2)
    ends = [StageEnd(step=5, right=[right - 30 for right in record.evaluations[DEFAULT].right])]
    return changed(record, stages=ends) if record.stages else record


def test_stages_stand_below_each_other_and_the_last_beside_discrete_chain_of_thought():
    _, stages = mnns.tables([run_of(each) for each in mnns.grid("full")])
    assert [row["accuracy"] for row in stages.rows] == pytest.approx([60, 90])
    assert [row["until step"] for row in stages.rows] == [5, Training().steps]
    rise, last = stages.findings
    assert (rise.claim, rise.verdict) == ("Coconut is more often right after stage 1 than after stage 0", OPEN)
    assert rise.estimate.kind.startswith("exact"), "every key of every run gains the same: ten keys do not suffice"
    assert [each.estimate.value for each in (rise, last)] == pytest.approx([0.3, 0.1])
    assert "discrete CoT trained for as many steps" in last.claim


def test_methods_that_have_no_runs_are_left_out(tmp_path):
    """Without Coconut there are no stages, and without discrete chain of thought nothing to hold the last against."""
    runs = [run_of(each) for each in mnns.grid("quick")]
    without = {absent: [each for each in runs if method_of(each) != absent] for absent in PERCENTS}
    assert {absent: len(mnns.tables(left)) for absent, left in without.items()} == {
        absent: 1 if absent == "coconut" else 2 for absent in PERCENTS
    }
    assert len(mnns.tables(without["discrete"])[1].findings) == 1
    mnns.draw(without["coconut"], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
