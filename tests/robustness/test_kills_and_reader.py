"""A few kills and a few loads of the proofs whose large versions are stored, and that both can fail."""

import random
from dataclasses import replace

import pytest

from tests.robustness import kills, reader
from tests.robustness.jobs import RESULTS
from tinylatent.core.files import read_json
from tinylatent.lab.folders import train

STORED = {"kills": ("kills", 100), "reader": ("loads", 5000)}


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_as_ones_that_were_not():
    found = kills.proved(4, seed=7, told=lambda text: None)
    assert found["kills"] >= 4
    assert [*found["methods"]] == ["cot2", "coconut", "grpo", "pause"]
    assert all(each["runs"] for each in found["methods"].values())


@pytest.mark.slow
def test_a_run_that_ends_in_an_error_is_no_kill(tmp_path):
    """Here because its folder holds a config.json that is damaged."""
    run = kills.experiments()["cot2"]
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RuntimeError, match=r"ended in an error, status 3"):
        kills.until_it_ends(run, tmp_path, random.Random(0), 1000.0, kills.Tally())


def test_any_difference_between_two_runs_is_seen(tmp_path, unchecked):
    """In weights, optimizer, metrics and config; not in times, which are left out."""
    run = kills.experiments()["pause"]
    run = replace(run, training=replace(run.training, steps=6, log_every=2, save_every=4))
    for name, each in (("one", run), ("again", run), ("other", replace(run, seeds=replace(run.seeds, order=2)))):
        train(each, tmp_path / name, say=lambda text: None)
    one, again, other = (kills.outcome(tmp_path / name) for name in ("one", "again", "other"))
    assert kills.differences(one, again) == []
    assert kills.differences(one, other) == ["/optimizer.pt", "/weights.safetensors", "config.json", "metrics"]
    (tmp_path / "again" / ".step-abc").mkdir()
    assert kills.differences(one, kills.outcome(tmp_path / "again")) == ["left"]
    assert kills.untimed([{"loss": 1, "problems_per_s": 2, "cost": {"training_seconds": 3}}]) == [
        {"loss": 1, "cost": {}}
    ]


@pytest.mark.slow
def test_loads_beside_a_writer_meet_nothing_but_what_is_not_there_yet():
    found = reader.proved(200, told=lambda text: None)
    assert sum(found.get(kind, 0) for kind in ("loaded", *reader.NOT_YET)) == 200
    assert found["loaded"] > 0


def test_any_other_error_of_a_reader_is_raised(tmp_path, unchecked):
    assert [*reader._met(tmp_path)] == ["holds no run"]
    run = reader.experiment()
    train(replace(run, training=replace(run.training, steps=20, save_every=10)), tmp_path, say=lambda text: None)
    assert [*reader._met(tmp_path)] == ["loaded"]
    for path in tmp_path.glob("step-*/weights.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"DamagedError: .* is damaged"):
        [*reader._met(tmp_path)]


@pytest.mark.parametrize("name", STORED)
def test_the_stored_proof_is_a_large_one_without_a_fault(name):
    count, least = STORED[name]
    found = read_json(RESULTS / f"{name}.json")
    assert found[count] >= least
    assert found["differences" if name == "kills" else "other errors"] == 0
    assert len(found["environment"]["commit"]) == 40, "of code that was committed"
    if name == "kills":
        assert sum(each["kills"] for each in found["methods"].values()) == found["kills"]
        assert len(found["methods"]) == 4
    else:
        assert found["loaded"] + sum(found.get(kind, 0) for kind in reader.NOT_YET) == found["loads"]
