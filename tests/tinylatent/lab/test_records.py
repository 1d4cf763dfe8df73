"""Records: lines of the first edition are read and lifted, today's go to JSON and back, damage is told in a sentence.

tests/data/first_edition holds whole lines of that edition's runs.jsonl as they were written, and rows of its table of
the runs on MNNS.
"""

import copy
import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from records import record_of
from schema import fields, kinds, render
from tinylatent_tasks import MNNS

from tinylatent.core.files import DamagedError, read_lines, write_json
from tinylatent.core.identity import identity
from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.launchers.launcher import RESULT, stored_record
from tinylatent.lab.measure import measure
from tinylatent.lab.records import DEFAULT, ExperimentRecord
from tinylatent.lab.run import Record, new_record, read_record
from tinylatent.lab.studies.comparison import comparison
from tinylatent.lab.study import STUDIES
from tinylatent.methods import CoT2, Direct
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

ROOT = Path(__file__).resolve().parents[3]
FIRST = ROOT / "tests/data/first_edition"
TRAINED = ("mnns", "mnns-rl", "mnns-rl-tuning", "tasks")
OTHERS = ("claims", "capacity", "estimators")
RUN = Experiment(MNNS(2, 1, 5), CoT2(), ModelConfig(8, 1, 1), Training(steps=2, batch_size=4), Seeds.all(3))


def lines(study):
    """The lines of a study, as written."""
    return read_lines(FIRST / f"{study}.jsonl")


def first(study="mnns"):
    """The first line of a study, and its record."""
    line = lines(study)[0]
    return line, read_record(Experiment, copy.deepcopy(line))


# ---------------------------------------------------------------------------------------------------------------------
# The first edition


@pytest.mark.parametrize("study", [*TRAINED, *OTHERS])
def test_lines_of_the_first_edition_are_read(study):
    """Each names the run it names today, under the id it had then."""
    kind = STUDIES[study].kind
    for line in lines(study):
        record = read_record(kind, line)
        assert (record.id, record.study, record.version) == (line["id"], study, 2)
        assert kind.from_json(record.run).label
        assert record.environments.measuring == line["environment"]
        assert record.summary()


@pytest.mark.parametrize("study", TRAINED)
def test_ids_are_checked_against_the_json_as_it_was_written(study):
    """Today the same run has another id: fields at their default are left out."""
    for line in lines(study):
        assert identity(line["experiment"]) == line["id"]
        run = read_record(Experiment, line).experiment
        assert run.identity == identity(run.to_json()) != line["id"]


def test_reading_a_line_leaves_it_as_it_was():
    line = lines("mnns")[0]
    before = copy.deepcopy(line)
    read_record(Experiment, line)
    assert line == before


def test_settings_have_the_names_of_today():
    line, record = first("tasks")
    written, run = line["experiment"], record.experiment
    assert (run.task.capacity, written["task"]["room"]) == (5, 5)
    training = written["training"]
    assert (run.training.learning_rate, run.training.batch_size) == (training["rate"], training["batch"])
    assert run.training.num_train is training["problems"] is None
    assert run.model == ModelConfig(**written["shape"])
    assert record.run["task"]["capacity"] == 5
    assert not {"shape", "room", "rate", "batch", "problems"} & {*record.run, *record.run["training"]}


def test_what_a_run_starts_from_is_lifted_too():
    line, record = first("mnns-rl")
    start = record.experiment.start
    assert start.training.learning_rate == line["experiment"]["start"]["training"]["rate"]
    assert start.method.name == line["experiment"]["start"]["method"]["name"]
    assert record.run["start"]["version"] == 2
    assert record.run["start"]["training"]["learning_rate"] == start.training.learning_rate


def test_results_have_the_names_of_today():
    line, record = first("tasks")
    assert record.majority_baseline == line["constant"]
    assert record.accuracy_ceiling == line["attainable"]
    assert {name: level.right for name, level in record.levels.items()} == {
        name: level["right"] for name, level in line["ladder"].items()
    }
    assert [*record.evaluations] == [DEFAULT]
    assert record.evaluations[DEFAULT].right == line["evaluations"]["itself"]["right"]
    assert record.accuracy == sum(line["evaluations"]["itself"]["right"]) / sum(line["total"])


def test_what_form_1_did_not_write_down_is_absent():
    _, record = first("mnns")
    assert record.accuracy_ceiling == 1.0
    assert record.levels == {}
    assert (record.train, record.before, record.stopped) == (None,) * 3
    assert record.evaluations[DEFAULT].accuracy is None


@pytest.mark.parametrize("study", [*TRAINED, *OTHERS])
def test_form_1_does_not_say_where_a_run_was_trained(study):
    """It has the environment that measured it, and may have been trained on another machine."""
    for line in lines(study):
        environments = read_record(STUDIES[study].kind, line).environments
        assert (environments.training, environments.measuring) == (None, line["environment"])


def test_what_reinforcement_learning_logged_has_the_names_of_today():
    line, record = first("mnns-rl-tuning")
    assert (record.stopped.step, record.stopped.advice) == (line["stopped"]["step"], line["stopped"]["advice"])
    for now, then in zip(record.metrics, line["metrics"], strict=True):
        assert now["learning_rate"] == then["rate"]
        assert now["frac_reward_zero_std"] == then["silent_groups"]
        assert len(now) == len(then)
    assert [*record.before.evaluations] == [DEFAULT, *list(line["before"]["evaluations"])[1:]]
    assert record.sampling.temperatures["1"].pass_["2"].of == line["sampling"]["temperatures"]["1"]["pass"]["2"]["of"]


def test_records_of_the_first_edition_make_the_rows_they_made_then():
    """Of three methods, two seeds each: accuracies, intervals, controls and costs, to the byte."""
    table = comparison([read_record(Experiment, line) for line in lines("mnns")], "MNNS", "mnns")
    assert table.csv() == (FIRST / "mnns.csv").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# Today


def test_a_measured_record_goes_to_json_and_back(unchecked):
    record = measure(RUN, None)
    text = json.dumps(record.to_json())
    again = read_record(Experiment, json.loads(text))
    assert again == record
    assert json.dumps(again.to_json()) == text
    assert again.experiment == RUN
    assert again.id == RUN.identity == identity(record.run)


def test_nan_survives_the_round_trip():
    """A divergence has no value where no problem has a step that late."""
    record = record_of(RUN, 90)
    evaluation = msgspec.structs.replace(record.evaluations[DEFAULT], kl=[0.5, math.nan, math.inf])
    record = msgspec.structs.replace(record, evaluations={DEFAULT: evaluation})
    text = json.dumps(record.to_json())
    assert "NaN" in text
    again = read_record(Experiment, json.loads(text))
    assert json.dumps(again.to_json()) == text
    assert math.isnan(again.evaluations[DEFAULT].kl[1])


@pytest.mark.parametrize(
    ("field", "value"), [("parameters", 1.5), ("cost", None), ("keys", "many"), ("majority_baseline", np.float64(0.5))]
)
def test_what_could_not_be_read_is_not_recorded(field, value):
    """Nothing can be read from a file that could not be written, or is refused."""
    whole = {name: getattr(record_of(RUN, 90), name) for name in ExperimentRecord.__struct_fields__[6:]}
    assert new_record(RUN, **whole).evaluations == record_of(RUN, 90).evaluations
    with pytest.raises(ValueError, match="what was measured is no ExperimentRecord, which could not be read: "):
        new_record(RUN, **{**whole, field: value})


def test_nan_is_recorded():
    before = record_of(RUN, 90)
    evaluations = {DEFAULT: msgspec.structs.replace(before.evaluations[DEFAULT], kl=[math.nan])}
    whole = {name: getattr(before, name) for name in ExperimentRecord.__struct_fields__[6:]}
    assert math.isnan(new_record(RUN, **{**whole, "evaluations": evaluations}).evaluations[DEFAULT].kl[0])


def test_fields_at_their_default_are_left_out():
    written = record_of(RUN, 90, levels={}).to_json()
    assert not {"study", "profile", "stopped", "before", "levels", "metrics", "train"} & written.keys()
    assert "sampling" in written, "that nothing was sampled is said"
    assert record_of(RUN, 90, accuracy_ceiling=0.5).to_json()["accuracy_ceiling"] == 0.5


def test_a_record_has_its_experiment_and_one_line_about_it():
    record = record_of(RUN, 90)
    assert record.experiment == RUN
    assert record.experiment is record.experiment
    assert record.accuracy == pytest.approx(0.9)
    assert record.summary() == "cot2       seed 3:  90.0% in 2 s"


def test_records_of_runs_that_train_nothing_say_so():
    class Plain(Experiment):
        record = Record

    record_run = Plain(RUN.task, RUN.method, RUN.model, RUN.training, RUN.seeds)
    record = new_record(record_run)
    assert record.environments.training == []
    assert record.environments.measuring.keys() >= {"commit", "torch", "machine"}
    assert record.to_json()["environments"]["training"] == []
    unknown = new_record(record_run, training=None)
    assert unknown.environments.training is None
    assert "training" not in unknown.to_json()["environments"]
    assert record.summary() == record.id == RUN.identity


def test_the_schema_is_written_down():
    page = (ROOT / "docs/records.md").read_text(encoding="utf-8")
    assert page == render(), "write it again: python -m tests.schema > docs/records.md"


def test_every_field_has_a_meaning():
    assert [(kind, name) for kind in kinds() for name, _, meaning in fields(kind) if not meaning] == []


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def today():
    """A record of today as it stands in a file."""
    return json.loads(json.dumps(record_of(RUN, 90).to_json()))


def then():
    """A record of the first edition as it stands in a file."""
    return lines("mnns")[0]


CHANGED = "its id is not that of its run: one of the two was changed"
KIND = r"no record of the kind Experiment \(ValidationError: "


@pytest.mark.parametrize(
    ("record", "change", "said"),
    [
        (today, lambda r: r["run"]["training"].update(steps=3), CHANGED),
        (today, lambda r: r.update(id="0" * 12), CHANGED),
        (then, lambda r: r["experiment"]["training"].update(rate=1.0), CHANGED),
        (then, lambda r: r.update(id="0" * 12), CHANGED),
        (today, lambda r: r.pop("id"), CHANGED),
        (today, lambda r: r.pop("run"), "a record of form 2 has its run under 'run': this has none"),
        (then, lambda r: r.pop("experiment"), "a record of form 1 has its run under 'experiment': this has none"),
        (today, lambda r: r.update(version=3), "a record of form 3: this program reads 1 to 2; use a newer one"),
        (today, lambda r: r.update(version=1), "it says that it is of form 1 and is of another: it was changed"),
        (today, lambda r: r.update(version="new"), "a record of form 'new': this program reads 1 to 2"),
        (today, lambda r: r.update(mood="good"), KIND + "Object contains unknown field `mood`"),
        (today, lambda r: r.update(constant=0.5), KIND + "Object contains unknown field `constant`"),
        (today, lambda r: r["cost"].update(tea=1), KIND + r"Object contains unknown field `tea` - at `\$.cost`"),
        (today, lambda r: r["environments"].update(cloud={}), KIND + "Object contains unknown field `cloud`"),
        (today, lambda r: r.update(keys="many"), KIND + r"Expected `array`, got `str` - at `\$.keys`"),
        (today, lambda r: r.update(parameters=1.5), KIND + r"Expected `int`, got `float` - at `\$.parameters`"),
        (today, lambda r: r.pop("keys"), KIND + "Object missing required field `keys`"),
        (then, lambda r: r.pop("constant"), r"no record of the kind Experiment \(KeyError: 'constant'\)"),
        (then, lambda r: r.pop("environment"), r"no record of the kind Experiment \(KeyError: 'environment'\)"),
        (then, lambda r: r.update(evaluations=None), r"no record of the kind Experiment \(AttributeError: "),
    ],
)  # fmt: skip
def test_a_changed_record_is_refused_in_a_sentence(record, change, said):
    values = record()
    read_record(Experiment, copy.deepcopy(values))
    change(values)
    with pytest.raises(ValueError, match=said) as raised:
        read_record(Experiment, values)
    assert "\n" not in str(raised.value)


def again(values, change):
    """A record whose run was changed, under the id of what it is now."""
    change(values["run"])
    return {**values, "id": identity(values["run"])}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: run.update(mood="good"), "it has the unknown 'mood'; expected what config.json holds"),
        (lambda run: run["seeds"].update(init="0"), r"seeds.init is '0' \(Expected `int`, got `str`\)"),
        (lambda run: run["training"].update(learning_rate=True), "training.learning_rate is True"),
        (lambda run: run["training"].update(steps=2.0), r"training.steps is 2.0 \(Expected `int`, got `float`\)"),
        (lambda run: run["training"].update(schedule="steep"), "training.schedule is 'steep'"),
        (lambda run: run["task"].update(digits=None), "task.digits is None"),
        (lambda run: run["method"].update(budget="all"), "method.budget is 'all'"),
        (lambda run: run["training"].update(warmup=Training().warmup), "these settings writes, see training: it was"),
        (lambda run: run["training"].update(learning_rate=1), "these settings writes, see its numbers: it was"),
        (lambda run: run["seeds"].pop("init"), "these settings writes, see seeds: it was changed by hand; measure it"),
        (lambda run: run.update(start=None), "not an experiment this version can read"),
        (lambda run: run.update(version=True), "an experiment of form True"),
    ],
)
def test_a_run_that_no_experiment_writes_is_refused_under_whatever_id(change, said, unchecked):
    with pytest.raises(ValueError, match=said) as raised:
        read_record(Experiment, again(today(), change))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", [STUDIES[name].kind for name in OTHERS])
def test_runs_of_other_kinds_are_what_these_write_too(kind):
    """A run with one setting more is refused, under whatever id."""
    for run in [run for name in OTHERS for run in STUDIES[name].grid("quick") if STUDIES[name].kind is kind][:3]:
        values = {"version": 2, "id": run.identity, "run": run.to_json()}
        with pytest.raises(ValueError, match="missing required field"):
            read_record(kind, values)
        with pytest.raises(ValueError, match="measure it again"):
            read_record(kind, again(values, lambda written: written.update(mood="good")))


@pytest.mark.parametrize("values", [None, [], "x", 3])
def test_what_is_no_object_is_no_record(values):
    with pytest.raises(ValueError, match="a record is a JSON object, this is"):
        read_record(Experiment, values)


def test_a_run_of_an_uninstalled_method_is_a_record_without_an_experiment():
    """Its numbers can be read; what it is of is said when that is asked for."""
    values = today()
    values["run"]["method"]["name"] = "telepathy"
    values["id"] = identity(values["run"])
    record = read_record(Experiment, values)
    with pytest.raises(ValueError, match="method 'telepathy' is not installed"):
        record.experiment  # noqa: B018 - reading it raises


def test_a_stored_record_is_that_of_its_run(tmp_path):
    assert stored_record(RUN, tmp_path) is None
    write_json(tmp_path / RESULT, today())
    assert stored_record(RUN, tmp_path) == record_of(RUN, 90)
    other = Experiment(RUN.task, Direct(), RUN.model, RUN.training)
    with pytest.raises(DamagedError, match=r"result\.json is not the record of its run \(it is of another run\): dele"):
        stored_record(other, tmp_path)
    for wrong, said in (({**today(), "keys": 1}, "no record of the kind"), ([], "a record is a JSON object")):
        write_json(tmp_path / RESULT, wrong)
        with pytest.raises(DamagedError, match=said):
            stored_record(RUN, tmp_path)
