"""Tables: the same rows as CSV, Markdown and JSON, with what they say below; and where the numbers come from."""

from dataclasses import replace

import pytest
from counting import Counting
from records import NOWHERE, changed, record_of
from tinylatent_tasks import MNNS

from tinylatent.core.identity import checksum
from tinylatent.core.seeds import Seeds
from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import HOLDS, Finding, exactly
from tinylatent.lab.run import Environments, new_record
from tinylatent.lab.tables import Table, leads, provenance
from tinylatent.methods import CoT2, Direct
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

ROWS = [{"name": "a,b", "x": 1.25, "n": 1000}, {"name": "c"}, {"name": "", "x": -0.04, "n": 0}]
TABLE = Table(
    "Title",
    {"name": "s", "x": ".1f", "n": "d"},
    ROWS,
    "x: a number.",
    [exactly("x is a number", True, "seen")],
    ["Nothing else is."],
)


def test_csv_quotes_what_must_be_and_leaves_absent_cells_empty():
    assert TABLE.csv() == 'name,x,n\n"a,b",1.2,1000\nc,,\n,-0.0,0\n'


def test_markdown_is_aligned_with_legend_findings_and_remarks_below():
    assert TABLE.markdown() == (
        "**Title**\n"
        "\n"
        "| name |    x |    n |\n"
        "| ---- | ---: | ---: |\n"
        "| a,b  |  1.2 | 1000 |\n"
        "| c    |    - |    - |\n"
        "|      | -0.0 |    0 |\n"
        "\n"
        "x: a number.\n"
        "\n"
        "- Holds: x is a number (seen).\n"
        "- Nothing else is.\n"
    )


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({"legend": "", "findings": (), "remarks": ()}, "0 |\n"),
        ({"findings": (), "remarks": ()}, "0 |\n\nx: a number.\n"),
        ({"legend": "", "remarks": ()}, "0 |\n\n- Holds: x is a number (seen).\n"),
        ({"legend": "", "findings": ()}, "0 |\n\n- Nothing else is.\n"),
    ],
)
def test_parts_that_are_absent_leave_no_gap(fields, end):
    assert replace(TABLE, **fields).markdown().endswith(end)
    assert "\n\n\n" not in replace(TABLE, **fields).markdown()


def test_a_table_without_rows_has_a_header():
    empty = Table("Title", {"name": "s"}, [])
    assert empty.csv() == "name\n"
    assert empty.markdown() == "**Title**\n\n| name |\n| ---- |\n"


def test_json_has_the_numbers_as_they_are():
    assert TABLE.to_json() == {
        "title": "Title",
        "rows": ROWS,
        "findings": [{"claim": "x is a number", "verdict": "holds", "exploratory": True, "evidence": "seen"}],
        "remarks": ["Nothing else is."],
    }


def test_verdicts_on_runs_are_called_leads_where_their_claims_were_chosen_afterwards():
    of_runs = Finding("CoT2 wins", HOLDS, "+1.00 points", runs=5)
    (told,) = leads([of_runs])
    assert "judged by its own 95 % interval however many they are" in told
    assert replace(TABLE, findings=[of_runs]).markdown().endswith(f"- Nothing else is.\n- {told}\n")
    assert not leads([replace(of_runs, exploratory=False)])
    assert not leads(TABLE.findings), "a verdict without runs"


def test_an_interval_of_another_level_is_told():
    primary = Finding("CoT2 wins", HOLDS, "+1.00 points", Interval(0.01, 0.0, 0.02, ""), runs=5, level=0.99)
    assert primary.sentence() == "Holds: CoT2 wins (+1.00 points at 99.00 %)."
    assert primary.to_json()["level"] == 0.99
    assert "its own interval, of 95 % where no other level is told, however" in leads([primary])[0]


# ---------------------------------------------------------------------------------------------------------------------
# Provenance


def run(method, seed):
    return Experiment(MNNS(2, 1, 4), method, ModelConfig(8, 1, 1), Training(steps=4), Seeds.all(seed))


def test_provenance_tells_apart_what_trained_and_what_measured(tmp_path):
    """Each environment, seed and recipe once, in order of appearance."""
    (tmp_path / "runs.jsonl").write_text("lines\n")
    runs = [run(method, seed) for method in (Direct(), CoT2()) for seed in (0, 1)]
    elsewhere = Environments(training=[{"machine": "a"}, {"machine": "b"}], measuring={"machine": "c"})
    records = [changed(record_of(each, 90), study="mine", profile="full") for each in runs]
    records = [*records[:3], changed(records[3], environments=elsewhere)]
    found = provenance(records, tmp_path / "runs.jsonl")
    assert found == {
        "command": "tinylatent reproduce mine --profile full",
        "runs": 4,
        "runs_checksum": checksum(b"lines\n"),
        "trained_in": [{"machine": "a"}, {"machine": "b"}],
        "measured_in": [NOWHERE.measuring, {"machine": "c"}],
        "seeds": [run(Direct(), seed).to_json()["seeds"] for seed in (0, 1)],
        "training": [{"method": "direct", "steps": 4}, {"method": "cot2", "steps": 4}],
    }


def test_provenance_of_runs_that_train_nothing_has_no_training(tmp_path):
    (tmp_path / "runs.jsonl").touch()
    found = provenance([new_record(Counting(2), counted=2)], tmp_path / "runs.jsonl")
    assert (found["trained_in"], found["seeds"], found["training"]) == ([], [], [])
    assert len(found["measured_in"]) == 1
