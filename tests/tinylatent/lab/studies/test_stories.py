"""Study `stories` says what its records say: break-throughs, clusters without a mean, controls."""

import pytest
from records import changed, evaluation, record_of

from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import FAILS, HOLDS
from tinylatent.lab.recipes_stories import ARMS, TRAINING, arm_of, build
from tinylatent.lab.studies import stories

SEEDS = range(5)
CONTROLS = {"noise": 52, "shuffled": 55, "zero": 50}


def record(arm, seed, percent, course=None):
    """A run with this percentage right, and less with its latents replaced."""
    made = record_of(build(arm, seed), percent)
    turn = 1 + [*ARMS].index(arm) % 4
    found = {name: evaluation(CONTROLS[name]) for name in made.evaluations if name in CONTROLS}
    return changed(made, evaluations={"default": evaluation(percent, turn), **found}, course=course or {})


def records(**arms):
    """Five seeds of arms: a percentage, or one for each seed."""
    given = {arm.replace("_", "-"): each if isinstance(each, tuple) else (each,) * 5 for arm, each in arms.items()}
    return [record(arm, seed, each[seed]) for arm, each in given.items() for seed in SEEDS]


def found(made):
    return {each.claim: each.verdict for each in stories.tables(made)[0].findings}


def test_arms_are_held_against_their_rivals_and_controls():
    told = found(records(direct=50, discrete=80, coconut_pause=60, coconut=55, cot2=90))
    assert told["CoT2 is more often right than discrete CoT"] == HOLDS
    assert told["Coconut is more often right than Coconut, pause as thought"] == FAILS
    assert told["Coconut is more often right than discrete CoT"] == FAILS
    assert told["CoT2 is more often right than Coconut"] == HOLDS
    assert told["CoT2 needs its own latents"] == HOLDS
    assert "pause tokens is more often right than direct" not in told, "it was not run"


def test_of_two_clusters_nothing_is_claimed():
    made = records(discrete=(50, 93, 93, 50, 93), cot2=90)
    assert [claim for claim in found(made) if "discrete" in claim] == []
    row = stories.tables(made)[0].rows[0]
    assert (row["method"], row["through"], row["seeds"]) == ("discrete CoT", 3, 5)
    assert (row["least"], row["most"]) == (pytest.approx(50), pytest.approx(93))


def test_break_throughs_are_dated():
    courses = {"250": 0.5, "500": 0.8, "750": 0.9}, {"500": 0.5, "1000": 0.8}, {"500": 0.6}
    runs = [record("discrete", seed, 90, course) for seed, course in enumerate(courses)]
    assert stories.tables(runs)[0].rows[0]["breaks"] == pytest.approx(750)
    assert stories.tables(records(direct=50))[0].rows[0]["breaks"] is None


def test_controls_stand_below_the_run_itself():
    rows = stories.tables(records(cot2=90))[0].rows
    assert [row["latents"] for row in rows] == ["own", *CONTROLS]
    assert [row["accuracy"] for row in rows] == pytest.approx([90, *CONTROLS.values()])


def test_runs_are_of_their_arms():
    for arm in ARMS:
        run = build(arm, 7)
        assert isinstance(run, Experiment)
        assert arm_of(run) == arm
        assert run.training == TRAINING
    assert build("cot2", 0, steps=3).training.steps == 3
    with pytest.raises(ValueError, match="unknown arm 'x' of stories: expected one of direct, pause"):
        build("x")
