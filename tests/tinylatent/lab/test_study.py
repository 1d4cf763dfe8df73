"""Studies: a grid is measured once, what is shown comes from runs.jsonl alone, frozen choices match their runs."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tasks import MNNS
from tinylatent.cli import commands
from tinylatent.cli.main import main
from tinylatent.core.files import DamagedError, read_lines
from tinylatent.core.identity import checksum
from tinylatent.core.seeds import Seeds
from tinylatent.lab import study
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.measure import ITSELF, measure
from tinylatent.lab.report import Table
from tinylatent.lab.studies import (
    lineup,
    mnns,
    mnns_rl_tuning,
    mnns_tuning,
    mnns_tuning_small,
    rl_lineup,
    search,
    task_lineup,
    tasks_tuning,
)
from tinylatent.lab.studies.compare import grouped, method_of
from tinylatent.lab.studies.lineup import RECIPES
from tinylatent.lab.study import Study, rebuild, reproduce, studies
from tinylatent.methods import GRPO, Coconut, CoT2, Direct, DiscreteCoT, PauseTokens
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

RESULTS = Path(__file__).resolve().parents[3] / "results"


def tiny(method, seed, rate=5e-3):
    return Experiment(
        MNNS(digits=2, high=5), method, ModelConfig(8, 1, 1), Training(steps=8, batch=4, rate=rate), Seeds.all(seed)
    )


METHODS = (Direct(), PauseTokens(), DiscreteCoT(), Coconut(), CoT2())
CONTROLLED = ("", ", noise", ", shuffled", ", zero")
TINY = Study(
    "tiny", "Does it run?", lambda profile: [tiny(m, s) for m in METHODS for s in (0, 1)], mnns.tables, mnns.draw
)
NAMES = ("table.csv", "table-2.csv", "table.md", "figure.png", "provenance.json", "runs.jsonl")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The tiny study, measured by two workers."""
    return reproduce(TINY, "quick", tmp_path_factory.mktemp("results"), workers=2)


def test_reproduce_writes_everything(outcome):
    assert set(outcome.files) == set(NAMES)
    assert all(path.stat().st_size > 0 for path in outcome.files.values())
    folder = outcome.files["table.csv"].parent
    assert (folder.name, folder.parent.name, folder.parent.parent.name) == ("tiny", "quick", "runs")
    header = outcome.files["table.csv"].read_text().splitlines()[0].split(",")
    assert header[:5] == ["method", "accuracy", "low", "high", "published"]
    methods = [row["method"] for row in outcome.tables[0].rows]
    latent = [f"{name}{control}" for name in ("Coconut", "CoT2") for control in CONTROLLED]
    assert methods == ["direct", "pause", "discrete CoT", *latent]


def test_records_equal_what_one_process_measures(outcome):
    stored = read_lines(outcome.files["runs.jsonl"])
    for record, experiment in zip(stored, TINY.grid("quick"), strict=True):
        fresh = measure(experiment, None)
        assert record["id"] == fresh["id"]
        assert record["keys"] == fresh["keys"]
        for name, evaluation in fresh["evaluations"].items():
            assert evaluation["right"] == record["evaluations"][name]["right"]
        assert record["sampling"] == fresh["sampling"]
        assert record["stages"] == fresh["stages"]


def test_json_on_standard_output_is_all_there_is(tmp_path, monkeypatch, capsys):
    one = Study("one", "One?", lambda profile: TINY.grid(profile), mnns.tables, mnns.draw)
    monkeypatch.setattr(commands, "studies", lambda: {"one": one})
    assert main(["reproduce", "one", "--results", str(tmp_path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert Path(shown["files"]["table.csv"]).exists()
    assert len(shown["tables"][0]["rows"]) == 11


ORPHAN = """
import multiprocessing, os, signal, threading
from concurrent.futures import ProcessPoolExecutor
from tinylatent.lab.study import _start_worker

def work():
    print("working", flush=True)
    threading.Event().wait(60)
    print("survived", flush=True)

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start_worker, (None,))
    pool.submit(work).result()
"""


def test_workers_end_with_a_killed_parent(tmp_path):
    """The pipe closes only when every process that holds it has ended, so reading on waits for the worker."""
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "working\n"
        parent.kill()
        assert parent.stdout.read() == ""


def test_finished_runs_are_skipped(outcome, monkeypatch):
    def refuse(study, runs, *others):
        assert runs == []
        return iter(())

    monkeypatch.setattr(study, "_measured", refuse)
    before = {name: path.read_bytes() for name, path in outcome.files.items()}
    again = reproduce(TINY, "quick", outcome.files["table.csv"].parents[3])
    assert {name: path.read_bytes() for name, path in again.files.items()} == before


def test_a_fresh_study_measures_finished_runs_again(outcome, monkeypatch):
    asked = []

    def measured(study, runs, *others):
        asked.extend(run.identity for run in runs)
        return iter(read_lines(outcome.files["runs.jsonl"]))

    monkeypatch.setattr(study, "_measured", measured)
    reproduce(replace(TINY, fresh=True), "quick", outcome.files["table.csv"].parents[3])
    assert asked == [run.identity for run in TINY.grid("quick")]


def test_everything_is_rebuilt_from_the_runs_alone(outcome, tmp_path):
    (tmp_path / "runs.jsonl").write_bytes(outcome.files["runs.jsonl"].read_bytes())
    rebuilt = rebuild(TINY, tmp_path)
    for name in NAMES:
        assert rebuilt.files[name].read_bytes() == outcome.files[name].read_bytes()


def test_damaged_runs_are_refused(outcome, tmp_path):
    (tmp_path / "runs.jsonl").write_bytes(outcome.files["runs.jsonl"].read_bytes()[:-20])
    with pytest.raises(DamagedError, match=r"runs\.jsonl, line 10"):
        rebuild(TINY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["runs.jsonl"]


def test_accuracies_in_the_table_are_those_of_the_runs(outcome):
    stored = read_lines(outcome.files["runs.jsonl"])
    plain = [row for row in outcome.tables[0].rows if "," not in row["method"]]
    for row, name in zip(plain, ("direct", "pause", "discrete", "coconut", "cot2"), strict=True):
        shares = [
            sum(record["evaluations"][ITSELF]["right"]) / sum(record["total"])
            for record in stored
            if record["experiment"]["method"]["name"] == name
        ]
        assert row["accuracy"] == pytest.approx(100 * sum(shares) / len(shares))
        assert row["low"] <= row["accuracy"] <= row["high"]
        assert row["published"] == mnns.PUBLISHED.get(name)


def test_provenance_names_command_seeds_and_runs(outcome):
    found = json.loads(outcome.files["provenance.json"].read_text())
    assert found["command"] == "tinylatent reproduce tiny --profile quick"
    assert found["runs"] == 10
    assert found["runs_checksum"] == checksum(outcome.files["runs.jsonl"].read_bytes())
    assert [seeds["split"] for seeds in found["seeds"]] == [0, 1]
    assert {"commit", "torch", "numpy"} <= set(found["environments"][0])


def test_registered_studies_have_distinct_runs_and_tuning_keeps_off_reported_splits():
    tuned = {mnns_tuning.FIRST, *mnns_tuning.OTHERS}
    assert {"mnns", "mnns-tuning"} <= set(studies())
    for each in studies().values():
        for profile in ("quick", "full"):
            grid = each.grid(profile)
            identities = [experiment.identity for experiment in grid]
            assert len(set(identities)) == len(identities)
            splits = {run.seeds.split for run in grid if isinstance(run, Experiment)}
            assert splits <= tuned if "tuning" in each.name else splits.isdisjoint(tuned)


def test_frozen_recipes_are_the_best_of_the_stored_tuning_runs():
    groups = grouped(read_lines(RESULTS / "mnns-tuning" / "runs.jsonl"), method_of)
    assert list(groups) == list(RECIPES)
    for method in lineup.METHODS:
        rate, decay, own = search.winner(groups[method.name])
        assert RECIPES[method.name] == Training(rate=rate, weight_decay=decay)
        assert search.own({"experiment": {"method": {"name": method.name, **vars(method)}}}) == own


def test_frozen_rates_of_rl_are_the_best_of_the_stored_tuning_runs():
    groups = grouped(read_lines(RESULTS / "mnns-rl-tuning" / "runs.jsonl"), mnns_rl_tuning.contender)
    assert {(start.removeprefix("from "), arm) for arm, start in groups} == set(rl_lineup.RATES)
    for (arm, start), group in groups.items():
        assert rl_lineup.RATES[start.removeprefix("from "), arm] == search.winner(group, seeds=2)[0]


def test_what_a_run_starts_from_is_measured_first(tmp_path):
    """Once, however many start from it, in the grid or not; each record says what was before."""
    start = tiny(DiscreteCoT(), 0)
    runs = [replace(start, method=GRPO(samples=samples, group=2), start=start) for samples in (1, 2)]
    few = replace(
        TINY,
        grid=lambda profile: [*runs, start],
        tables=lambda records: [Table("few", {"runs": "d"}, [{"runs": len(records)}])],
        figure=lambda records, path: None,
    )
    outcome = reproduce(few, "quick", tmp_path, workers=2)
    records = read_lines(outcome.files["runs.jsonl"])
    assert [record["id"] for record in records] == [run.identity for run in (*runs, start)]
    assert [("before" in record) for record in records] == [True, True, False]
    assert len(list((tmp_path / "runs" / "work").iterdir())) == 3
    assert not (tmp_path / "runs" / "work" / runs[0].identity / "run" / "start").exists()


def test_later_rounds_depend_on_the_earlier_ones(tmp_path):
    """What the records so far ask for is measured too, until they ask for nothing new."""
    first, second, third = (tiny(Direct(), seed) for seed in range(3))

    def after(profile, records):
        asked = {1: [second], 2: [second, third], 3: [second, third]}
        return asked[len(records)]

    both = Study("both", "Both?", lambda profile: [first], TINY.tables, lambda records, path: path.touch(), after)
    both = replace(both, tables=lambda records: [Table("t", {"x": "d"}, [{"x": len(records)}])])
    outcome = reproduce(both, "quick", tmp_path, workers=1)
    stored = read_lines(outcome.files["runs.jsonl"])
    assert [record["id"] for record in stored] == [each.identity for each in (first, second, third)]


# ---------------------------------------------------------------------------------------------------------------------
# The command `rebuild`


@pytest.fixture
def committed(outcome, tmp_path, monkeypatch):
    """A results folder with the tiny study's runs and nothing else."""
    monkeypatch.setattr(study, "studies", lambda: {"tiny": TINY})
    folder = tmp_path / "results" / "first"
    folder.mkdir(parents=True)
    (folder / "runs.jsonl").write_bytes(outcome.files["runs.jsonl"].read_bytes())
    return folder


@pytest.mark.parametrize("words", [["--all"], ["first"], ["first/"]])
def test_rebuild_makes_the_same_files_again(words, committed, outcome, capsys):
    assert main(["rebuild", *words, "--results", str(committed.parent)]) == 0
    for name in NAMES:
        assert (committed / name).read_bytes() == outcome.files[name].read_bytes()
    assert len(capsys.readouterr().out.splitlines()) == 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "rebuild needs names or --all, one of the two: there are first"),
        (["first", "--all"], "rebuild needs names or --all"),
        (["second"], "has no results 'second': expected one of first"),
        (["--all", "--results", "nowhere"], "nowhere holds no results"),
    ],
)
def test_rebuild_says_what_it_needs(words, said, committed, capsys):
    assert main(["rebuild", "--results", str(committed.parent), *words]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in committed.iterdir()] == ["runs.jsonl"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no runs of a study"),
        ('{"id": "x"}\n', "holds no runs of a study"),
        ('{"study": "other"}\n', "is of an unknown study other: expected one of tiny"),
        ('{"study": "ti', "line 1 is damaged"),
    ],
)
def test_rebuild_refuses_runs_that_are_none(text, said, committed, capsys):
    (committed / "runs.jsonl").write_text(text)
    assert main(["rebuild", "--all", "--results", str(committed.parent)]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in committed.iterdir()] == ["runs.jsonl"]


def test_runs_of_an_older_study_are_refused(committed, capsys):
    """Here the runs of a method that the grid now has are missing."""
    lines = (committed / "runs.jsonl").read_text().splitlines(keepends=True)
    (committed / "runs.jsonl").write_text("".join(line for line in lines if '"coconut"' not in line))
    assert main(["rebuild", "first", "--results", str(committed.parent)]) == 2
    assert "lacks 2 of the 10 runs of tiny as it is now: reproduce it" in capsys.readouterr().err
    assert [path.name for path in committed.iterdir()] == ["runs.jsonl"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda r: r["experiment"]["training"].update(steps=5),
            "line 1: the experiment was changed, its id is another's",
        ),
        (lambda r: r["experiment"].pop("shape"), "line 1 cannot be used"),
        (lambda r: r.pop("environment"), "does not hold what tiny needs (KeyError: 'environment')"),
        (lambda r: r["evaluations"]["itself"].update(right=[999]), "does not hold what tiny needs (ValueError: "),
    ],
)
def test_changed_records_are_refused_before_anything_is_written(change, said, committed, capsys):
    records = read_lines(committed / "runs.jsonl")
    change(records[0])
    (committed / "runs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["rebuild", "--all", "--results", str(committed.parent)]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in committed.iterdir()] == ["runs.jsonl"]


def test_the_same_run_twice_is_refused(committed, capsys):
    text = (committed / "runs.jsonl").read_text()
    (committed / "runs.jsonl").write_text(text + text.splitlines(keepends=True)[0])
    assert main(["rebuild", "--all", "--results", str(committed.parent)]) == 2
    assert "line 11: the same run stands there twice" in capsys.readouterr().err


def test_a_damaged_folder_does_not_keep_others_from_being_rebuilt(committed):
    other = committed.parent / "second"
    other.mkdir()
    (other / "runs.jsonl").write_text("{")
    assert main(["rebuild", "first", "--results", str(committed.parent)]) == 0
    assert main(["rebuild", "--all", "--results", str(committed.parent)]) == 2


def test_a_study_does_not_rebuild_the_runs_of_another(committed):
    with pytest.raises(DamagedError, match="holds runs of study tiny, not of mnns"):
        rebuild(mnns.STUDY, committed)
    with pytest.raises(DamagedError, match=r"runs\.jsonl is missing"):
        rebuild(mnns.STUDY, committed.parent)


def test_frozen_rates_of_small_models_are_the_best_of_the_stored_tuning_runs():
    runs = read_lines(RESULTS / "mnns-tuning-small" / "runs.jsonl")
    groups = grouped(runs, mnns_tuning_small.contender)
    frozen = {(name, mnns_tuning_small.written(shape)): rate for (name, shape), rate in lineup.SMALL.items()}
    assert {contender: search.winner(group)[0] for contender, group in groups.items()} == frozen
    assert {search.winner(group)[1:] for group in groups.values()} == {(0.05, "")}


def test_frozen_rates_on_other_tasks_are_the_best_of_the_stored_tuning_runs():
    groups = grouped(read_lines(RESULTS / "tasks-tuning" / "runs.jsonl"), tasks_tuning.contender)
    assert {(place, name): search.winner(group, 2)[0] for (name, place), group in groups.items()} == task_lineup.RATES
    for (_, place), group in groups.items():
        assert {record["experiment"]["training"]["rate"] for record in group} == {*tasks_tuning.RATES[place]}


def test_table_as_csv_and_markdown():
    table = Table("Title", {"name": "s", "x": ".1f"}, [{"name": "a,b", "x": 1.25}, {"name": "c"}], ["note"])
    assert table.csv() == 'name,x\n"a,b",1.2\nc,\n'
    assert table.markdown() == "**Title**\n\n| name |   x |\n| ---- | --: |\n| a,b  | 1.2 |\n| c    |   - |\n\nnote\n"
