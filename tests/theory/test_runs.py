"""Runs of theory as JSON: what differs from the defaults is written, and what was ever stored is read."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from records import NOWHERE
from tinylatent_theory.claims.study import Check
from tinylatent_theory.predictions.estimators import Case
from tinylatent_theory.predictions.phase_curve import Width

from tinylatent.core.files import read_lines
from tinylatent.core.identity import identity
from tinylatent.lab.run import VERSION, read_record
from tinylatent.lab.study import STUDIES

FIRST = Path(__file__).resolve().parents[1] / "data/first_edition"
STORED = Path(__file__).resolve().parents[2] / "results"
KINDS = {"estimators": Case, "capacity": Width, "claims": Check}


@dataclass(frozen=True)
class MoreCase(Case):
    more: int = 0


@dataclass(frozen=True)
class MoreWidth(Width):
    more: int = 0


@dataclass(frozen=True)
class MoreCheck(Check):
    more: int = 0


LATER = {"estimators": MoreCase, "capacity": MoreWidth, "claims": MoreCheck}
"""The same kinds, with a setting more."""
RUNS = {
    "estimators": (Case(3, 2, 1), {"version": 2, "vocabulary": 3, "steps": 2, "samples": 1}),
    "capacity": (Width(8, 400), {"version": 3, "width": 8, "draws": 400}),
    "claims": (Check("kurtosis_range"), {"version": 2, "claim": "kurtosis_range"}),
}


def lines(study):
    """The lines of a study in the first edition."""
    return read_lines(FIRST / f"{study}.jsonl")


def rewritten(line, change):
    """The line with another run, and the id that fits it."""
    name = "run" if "version" in line else "experiment"
    run = {**line[name], **change}
    run = {key: value for key, value in run.items() if value is not ...}
    kind = KINDS[line["study"]]
    return {**line, name: run, "id": kind.written_identity(run)}


def recorded(check, **changes):
    """The record of a check in form 2, as JSON."""
    about = {"version": VERSION, "id": check.identity, "run": check.to_json(), "environments": NOWHERE}
    record = check.record(**about, verdict="holds", evidence="1", seconds=1.0, seed=5)
    return {**json.loads(json.dumps(record.to_json())), "study": "claims", **changes}


@pytest.mark.parametrize("study", KINDS)
def test_a_run_writes_what_is_not_the_default(study):
    run, values = RUNS[study]
    assert run.to_json() == values
    assert run.identity == identity(values)
    assert type(run).from_json(values) == run


@pytest.mark.parametrize("study", KINDS)
def test_a_setting_that_is_added_later_changes_no_id_and_no_stored_line(study):
    run, values = RUNS[study]
    later = LATER[study].from_json(values)
    assert (later.more, later.identity) == (0, run.identity)
    assert LATER[study].from_json({**values, "more": 1}).identity != run.identity
    for line in lines(study):
        assert LATER[study].from_json(read_record(LATER[study], line).run).more == 0


@pytest.mark.parametrize("study", KINDS)
def test_every_stored_line_is_a_run_of_the_grid(study):
    """Its id is checked as it was written; whether it is of the grid is asked of the lifted run."""
    records = [read_record(KINDS[study], line) for line in read_lines(STORED / study / "runs.jsonl")]
    found = [KINDS[study].from_json(record.run) for record in records]
    assert {*found} == {*STUDIES[study].grid("full")}
    assert len(found) == len({run.identity for run in found})


@pytest.mark.parametrize("study", KINDS)
def test_a_lifted_record_keeps_its_id_and_its_seed(study):
    for line in lines(study):
        record = read_record(KINDS[study], line)
        assert record.id == line["id"]
        assert record.seeds == line["experiment"]["seeds"]
        assert record.run == KINDS[study].from_json(record.run).to_json()


@pytest.mark.parametrize("study", KINDS)
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 0}, "written by version 0 of "),
        ({"seeds": {}}, "its seeds are {}: expected one whole number"),
        ({"seeds": ...}, "its seeds are None"),
        ({"seeds": {"other": 1}}, "its seeds are {'other': 1}"),
        ({"seeds": {"claim": 1, "world": 1, "embeddings": 1}}, "expected one whole number"),
        ({"unknown": 1}, "not the settings of a "),
    ],
)
def test_a_first_edition_run_that_was_never_written_is_refused(study, change, told):
    with pytest.raises(ValueError, match=told):
        read_record(KINDS[study], rewritten(lines(study)[0], change))


@pytest.mark.parametrize("study", KINDS)
@pytest.mark.parametrize("seed", [1.5, True, "1", None])
def test_a_first_edition_seed_that_is_no_whole_number_is_refused(study, seed):
    (line, *_), (purpose,) = lines(study), lines(study)[0]["experiment"]["seeds"]
    with pytest.raises(ValueError, match=f"expected one whole number, named '{purpose}'"):
        read_record(KINDS[study], rewritten(line, {"seeds": {purpose: seed}}))


def test_worlds_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"its worlds have {'width': 9, 'spread': 0.5}: expected 8 and 0.5"):
        read_record(Case, rewritten(lines("estimators")[0], {"width": 9}))


@pytest.mark.parametrize("study", KINDS)
@pytest.mark.parametrize("values", [{"version": 0}, {"version": 9}, {}])
def test_values_of_another_version_are_no_run(study, values):
    with pytest.raises(ValueError, match="written by version"):
        KINDS[study].from_json({**RUNS[study][1], "version": None, **values})


def test_a_missing_setting_is_told():
    with pytest.raises(ValueError, match=r"not the settings of a Width \(.*draws"):
        Width.from_json({"version": 3, "width": 8})


# ---------------------------------------------------------------------------------------------------------------------
# The seed and the form of a check


def test_a_check_of_form_2_has_its_seed_in_the_record():
    assert read_record(Check, recorded(Check("kurtosis_range"))).seed == 5


@pytest.mark.parametrize("version", [1, 2])
def test_a_check_of_form_2_has_no_seeds_in_its_run(version):
    forged = rewritten(recorded(Check("kurtosis_range")), {"version": version, "seeds": {"claim": 777}})
    with pytest.raises(ValueError, match=r"seeds|written by version 1"):
        read_record(Check, forged)


def test_a_check_of_form_1_has_no_other_seed():
    with pytest.raises(ValueError, match="it has a seed of its own"):
        read_record(Check, {**lines("claims")[0], "seed": 777})


def test_a_body_of_form_2_that_says_it_is_of_form_1_is_refused():
    with pytest.raises(ValueError, match="it says that it is of form 1"):
        read_record(Check, recorded(Check("kurtosis_range"), version=1))
