"""Studies: a grid is measured once, and what is shown comes from runs.jsonl alone, which is read with care.

Launchers and progress are tested in test_launchers.py, the studies themselves under studies/.
"""

import json
import re
import warnings
from dataclasses import replace
from importlib.metadata import EntryPoint
from shutil import rmtree

import pytest
from counting import Counting, Here, Lost
from tinylatent_tasks import MNNS

from tinylatent.cli.main import main
from tinylatent.core.files import DamagedError, read_json, read_lines
from tinylatent.core.identity import checksum
from tinylatent.core.registry import PluginWarning
from tinylatent.core.seeds import Seeds
from tinylatent.lab import study as lab
from tinylatent.lab import words
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import exactly
from tinylatent.lab.launchers import Job
from tinylatent.lab.launchers.launcher import read_result
from tinylatent.lab.launchers.local import Local
from tinylatent.lab.measure import measure
from tinylatent.lab.records import DEFAULT
from tinylatent.lab.store import study_progress
from tinylatent.lab.studies import mnns
from tinylatent.lab.studies.search import FIRST, OTHERS
from tinylatent.lab.study import STUDIES, Study, StudyError, rebuild, reproduce
from tinylatent.lab.tables import Table
from tinylatent.methods import GRPO, Coconut, CoT2, Direct, DiscreteCoT
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training


def tiny(method, seed):
    """A run of seconds."""
    training = Training(steps=8, batch_size=4)
    return Experiment(MNNS(digits=2, high=5), method, ModelConfig(8, 1, 1), training, Seeds.all(seed))


METHODS = (Direct(), DiscreteCoT(), Coconut(), CoT2())
TINY = Study("tiny", "Runs?", lambda profile: [tiny(m, s) for m in METHODS for s in (0, 1)], mnns.tables, mnns.draw)
NAMES = ("table.csv", "table-2.csv", "table.md", "findings.json", "figure.png", "provenance.json", "runs.jsonl")


def counts(*runs, **fields):
    """A study of runs that count."""

    def tables(records):
        rows = [{"to": record.counted} for record in records]
        return [Table("Counted", {"to": "d"}, rows, findings=[exactly("they count", True, f"{len(rows)} of them")])]

    kind = type(runs[0]) if runs else Counting
    return Study("counts", "How far?", lambda profile: runs, tables, lambda records, path: path.touch(), kind=kind)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The tiny study, measured here."""
    return reproduce(TINY, "quick", tmp_path_factory.mktemp("results"), Here())


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def test_reproduce_writes_everything(outcome):
    assert {*outcome.files} == {*NAMES}
    folder = outcome.files["table.csv"].parent
    assert {path.name for path in folder.iterdir()} == {*NAMES}
    assert all(path.stat().st_size > 0 for path in outcome.files.values())
    assert folder.parts[-3:] == ("runs", "quick", "tiny")
    text = outcome.files["table.md"].read_text()
    assert text.startswith("Runs?\n\n**MNNS")
    assert all(table.markdown() in text for table in outcome.tables)
    assert outcome.files["table-2.csv"].read_text() == outcome.tables[1].csv()


def test_runs_stand_in_the_order_of_the_grid_each_in_a_folder_of_its_own(outcome):
    stored, grid = read_lines(outcome.files["runs.jsonl"]), TINY.grid("quick")
    assert [record["id"] for record in stored] == [run.identity for run in grid]
    assert {(record["study"], record["profile"]) for record in stored} == {("tiny", "quick")}
    assert [record.experiment for record in outcome.records] == grid
    store = outcome.files["table.csv"].parents[2]
    for run, record in zip(grid, stored, strict=True):
        left = read_result(store / run.identity / "result.json")
        assert {**left, "study": "tiny", "profile": "quick"} == record
        assert (store / run.identity / "config.json").exists()


def test_a_full_study_is_written_beside_the_runs(tmp_path):
    found = reproduce(counts(Counting(2)), "full", tmp_path, Here())
    assert found.files["table.csv"] == tmp_path / "counts" / "table.csv"
    assert (tmp_path / "runs" / Counting(2).identity / "result.json").exists()


class Stopped(Here):
    """Is interrupted after two runs."""

    def ended(self, timeout):
        if len(self.done) == 2:
            raise KeyboardInterrupt
        return super().ended(timeout)


def test_an_interrupted_study_goes_on_without_its_store(tmp_path):
    """From the records in its folder, which a kill may have cut; the outcome is that of one in a single turn."""
    study, folder = counts(*map(Counting, range(2, 7))), tmp_path / "counts"
    with pytest.raises(KeyboardInterrupt):
        reproduce(study, "full", tmp_path, Stopped())
    assert [path.name for path in folder.iterdir()] == ["unfinished.jsonl"]
    rmtree(tmp_path / "runs")
    assert study_progress(study, "full", tmp_path).finished == 2
    with (folder / "unfinished.jsonl").open("a") as file:
        file.write('{"id": "cut')
    launcher = Here()
    with pytest.raises(KeyboardInterrupt):
        reproduce(study, "full", tmp_path, Stopped())
    assert study_progress(study, "full", tmp_path).finished == 4
    found = reproduce(study, "full", tmp_path, launcher)
    assert len(launcher.done) == 1
    assert not (folder / "unfinished.jsonl").exists()
    whole = reproduce(study, "full", tmp_path / "whole", Here())
    assert found.files["table.csv"].read_bytes() == whole.files["table.csv"].read_bytes()
    assert [record.id for record in found.records] == [record.id for record in whole.records]


def test_records_of_an_unfinished_study_that_were_changed_are_not_taken(tmp_path):
    study, path = counts(*map(Counting, range(2, 7))), tmp_path / "counts" / "unfinished.jsonl"
    with pytest.raises(KeyboardInterrupt):
        reproduce(study, "full", tmp_path, Stopped())
    rmtree(tmp_path / "runs")
    path.write_text(path.read_text().replace('"counted": 6', '"counted": 9'))
    with pytest.raises(DamagedError, match=r"unfinished\.jsonl, line 1 was changed after it was written: .* this line"):
        reproduce(study, "full", tmp_path, Here())
    assert study_progress(study, "full", tmp_path).finished == 0
    path.write_text("no record\n")
    with pytest.raises(DamagedError, match="line 1 is damaged"):
        reproduce(study, "full", tmp_path, Here())


@pytest.mark.slow
def test_other_processes_measure_what_this_one_does(tmp_path):
    run = tiny(DiscreteCoT(), 0)
    with Local(1).submit([Job(run, tmp_path)]) as submitted:
        ((job, _),) = submitted.ended(120.0)
    here, there = measure(run, None), job.record()
    assert there.evaluations[DEFAULT].right == here.evaluations[DEFAULT].right
    assert there.evaluations[DEFAULT].kl == here.evaluations[DEFAULT].kl
    assert (there.sampling, there.keys, there.train) == (here.sampling, here.keys, here.train)


def test_what_a_run_starts_from_is_measured_first(tmp_path):
    """Once, however many start from it, in the grid or not; each record says what was before."""
    start = tiny(DiscreteCoT(), 0)
    runs = [replace(start, method=GRPO(samples=samples, group=2), start=start) for samples in (1, 2)]
    few = replace(counts(), grid=lambda profile: [*runs, start], kind=Experiment, tables=lambda records: [])
    few = replace(few, tables=lambda records: [Table("few", {"runs": "d"}, [{"runs": len(records)}])])
    launcher = Here()
    found = reproduce(few, "quick", tmp_path, launcher)
    assert [record.id for record in found.records] == [run.identity for run in (*runs, start)]
    assert [record.before is not None for record in found.records] == [True, True, False]
    assert [job.run for job in launcher.done] == [start, *reversed(runs)]
    folders = {job.run: job.folder for job in launcher.done}
    assert [job.start for job in launcher.done] == [None, folders[start], folders[start]]
    assert not (folders[runs[0]] / "start").exists()


class Always(Counting):
    """Asks about the code, not about its settings."""

    always = True


def test_runs_that_ask_about_the_code_are_always_done_again(tmp_path):
    launcher = Here()
    for kind, expected in ((Counting, 1), (Always, 2)):
        launcher.done.clear()
        for _ in range(2):
            reproduce(counts(kind(3)), "quick", tmp_path / kind.__name__, launcher)
        assert len(launcher.done) == expected
    assert [line["step"] for line in read_lines(launcher.done[0].folder / "metrics.jsonl")] == [1, 2, 3]


def test_an_ended_job_without_a_record_is_named(tmp_path):
    class Careless(Here):
        def ended(self, timeout):
            return [(self.waiting.pop(), None)]

    with pytest.raises(ValueError, match=r"1 of 1 runs failed: counting to 3 .no record in "):
        reproduce(counts(Counting(3)), "quick", tmp_path, Careless())
    kind = Always(3)
    reproduce(counts(kind), "quick", tmp_path, Here())
    with pytest.raises(ValueError, match=r"1 of 1 runs failed"):  # an earlier record is not taken for a new one
        reproduce(counts(kind), "quick", tmp_path, Careless())


class Failing(Counting):
    def measure(self, folder, device="cpu", on_progress=None, start=None):
        raise ValueError(f"cannot count to {self.up_to}")


def test_a_run_that_fails_does_not_keep_the_others_from_ending(tmp_path, capsys):
    runs, launcher = [Counting(2), Failing(3), Counting(4), Failing(5)], Here()
    with pytest.raises(ValueError, match=r"2 of 4 runs failed: counting to 5 .*, and 1 more; the others are kept"):
        reproduce(counts(*runs), "quick", tmp_path, launcher)
    assert [job.run.up_to for job in launcher.done] == [4, 2]
    assert "failed: counting to 3: cannot count to 3" in capsys.readouterr().err
    reproduce(counts(Counting(2), Counting(4)), "quick", tmp_path, launcher)
    assert len(launcher.done) == 2


def test_what_is_no_profile_and_no_grid_is_refused(tmp_path, unchecked):
    with pytest.raises(ValueError, match="unknown profile 'endless': expected quick or full"):
        reproduce(counts(Counting(3)), "endless", tmp_path)
    with pytest.raises(ValueError, match="study counts has no runs in profile full"):
        reproduce(counts(), "full", tmp_path)


def test_registered_studies_have_distinct_runs_and_tuning_keeps_off_reported_splits():
    tuned = {FIRST, *OTHERS}
    for name in STUDIES:
        for profile in ("quick", "full"):
            grid = STUDIES[name].grid(profile)
            assert len({run.identity for run in grid}) == len(grid), name
            splits = {run.seeds.split for run in grid if isinstance(run, Experiment)}
            assert splits <= tuned if "tuning" in name else splits.isdisjoint(tuned), name


# ---------------------------------------------------------------------------------------------------------------------
# What is shown


def test_everything_is_rebuilt_from_the_runs_alone(outcome, tmp_path):
    (tmp_path / "runs.jsonl").write_bytes(outcome.files["runs.jsonl"].read_bytes())
    rebuilt = rebuild(TINY, tmp_path)
    for name in NAMES:
        assert rebuilt.files[name].read_bytes() == outcome.files[name].read_bytes()


def test_findings_are_written_as_data(outcome):
    found = read_json(outcome.files["findings.json"])
    assert found["study"] == "tiny"
    expected = [
        {"table": name, **each.to_json()}
        for name, table in zip(("table.csv", "table-2.csv"), outcome.tables, strict=True)
        for each in table.findings
    ]
    assert found["findings"] == expected
    assert {
        "table",
        "claim",
        "verdict",
        "family",
        "estimate",
        "low",
        "high",
        "unit",
        "evidence",
        "kind",
        "runs",
        "exploratory",
    } == {*expected[0]}


def test_provenance_names_command_seeds_and_runs(outcome):
    found = read_json(outcome.files["provenance.json"])
    assert found["command"] == "tinylatent reproduce tiny --profile quick"
    assert found["runs"] == 8
    assert found["runs_checksum"] == checksum(outcome.files["runs.jsonl"].read_bytes())
    assert [seeds["split"] for seeds in found["seeds"]] == [0, 1]
    for where in ("trained_in", "measured_in"):
        (environment,) = found[where]
        assert {"commit", "torch", "numpy"} <= {*environment}
    assert [each["method"] for each in found["training"]] == ["direct", "discrete", "coconut", "cot2"]


# ---------------------------------------------------------------------------------------------------------------------
# What is read


@pytest.fixture
def stored(outcome, tmp_path):
    """A results folder with the tiny study's runs and nothing else."""
    folder = tmp_path / "results" / "first"
    folder.mkdir(parents=True)
    (folder / "runs.jsonl").write_bytes(outcome.files["runs.jsonl"].read_bytes())
    return folder


def refused(folder, said, study=TINY):
    """Nothing is written where runs cannot be used."""
    with pytest.raises(DamagedError, match=said) as raised:
        rebuild(study, folder)
    assert "\n" not in str(raised.value)
    assert {path.name for path in folder.iterdir()} <= {"runs.jsonl"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["run"]["training"].update(steps=5), "line 1 cannot be used .its id is not that of its run"),
        (lambda r: r.update(version=9), "line 1 cannot be used .a record of form 9"),
        (lambda r: r["run"].pop("model"), "line 1 cannot be used .its id is not that of its run"),
        (lambda r: r.pop("environments"), "line 1 cannot be used .no record of the kind Experiment"),
        (
            lambda r: r["evaluations"]["default"].update(right=[999]),
            "line 1 cannot be used .no record of the kind Experiment",
        ),
        (lambda r: r.update(profile="endless"), "holds no runs of a study"),
        (lambda r: r.update(profile=None), "holds no runs of a study"),
        (lambda r: r.update(profile=["quick"]), "holds no runs of a study"),
        (lambda r: r.update(study=["tiny"]), "holds no runs of a study"),
        (lambda r: r.update(study="other"), "holds runs of study other, not of tiny"),
    ],
)
def test_changed_runs_are_refused(change, said, stored):
    records = read_lines(stored / "runs.jsonl")
    change(records[0])
    (stored / "runs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    refused(stored, said)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda lines: [*lines[:-1], lines[-1][:-20]], r"runs\.jsonl, line 8 is damaged"),
        (lambda lines: [*lines, lines[0]], "line 9: the same run stands there twice"),
        (lambda lines: lines[1:], "lacks 1 of the 8 runs of tiny as it is now, such as mnns/direct seed 0: reproduce"),
        (lambda lines: [], "holds no runs of a study: reproduce the study"),
        (lambda lines: ['{"id": "x"}\n'], "holds no runs of a study: reproduce the study"),
    ],
)
def test_runs_that_are_cut_doubled_or_missing_are_refused(edit, said, stored):
    lines = (stored / "runs.jsonl").read_text().splitlines(keepends=True)
    (stored / "runs.jsonl").write_text("".join(edit(lines)))
    refused(stored, said)


def test_runs_of_another_study_and_no_runs_are_refused(stored):
    refused(stored, "holds runs of study tiny, not of mnns", mnns.STUDY)
    (stored / "runs.jsonl").unlink()
    refused(stored, r"runs\.jsonl is missing: expected the stored runs")


def test_a_method_that_was_installed_later_may_be_missing_as_a_whole(stored):
    lines = (stored / "runs.jsonl").read_text().splitlines(keepends=True)
    (stored / "runs.jsonl").write_text("".join(line for line in lines if '"cot2"' not in line))
    with pytest.warns(PluginWarning, match="has no runs of cot2; reproduce the study to add them"):
        rebuild(TINY, stored)
    with warnings.catch_warnings(action="ignore"):
        assert [row["method"] for row in rebuild(TINY, stored).tables[0].rows][-1] == "Coconut, zero"


def test_runs_that_only_earlier_ones_name_must_be_there_too(tmp_path):
    """The grid alone would not miss the second round."""
    study = replace(counts(Counting(2)), after=lambda profile, records: [Counting(3)])
    path = reproduce(study, "quick", tmp_path, Here()).files["runs.jsonl"]
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    (path.parent / "provenance.json").unlink()
    with pytest.raises(DamagedError, match="lacks 1 of the 2 runs of counts as it is now, such as counting to 3"):
        rebuild(study, path.parent)


def test_an_edit_is_noticed_until_it_is_accepted(tmp_path):
    found = reproduce(counts(Counting(2)), "quick", tmp_path, Here())
    runs, known = found.files["runs.jsonl"], found.files["provenance.json"]
    runs.write_text(runs.read_text().replace('"counted": 2', '"counted": 9'))
    with pytest.raises(DamagedError, match=r"is not the file that provenance\.json vouches for: restore it"):
        rebuild(counts(Counting(2)), runs.parent)
    known.unlink()
    assert rebuild(counts(Counting(2)), runs.parent).records[0].counted == 9


@pytest.mark.parametrize("text", ["null", "[]", "3"])
def test_a_provenance_that_is_no_object_vouches_for_nothing(text, tmp_path):
    found = reproduce(counts(Counting(2)), "quick", tmp_path, Here())
    found.files["provenance.json"].write_text(text)
    with pytest.raises(DamagedError, match=r"is not the file that provenance\.json vouches for"):
        rebuild(counts(Counting(2)), found.files["runs.jsonl"].parent)


def test_runs_of_both_profiles_do_not_stand_in_one_file(stored):
    lines = (stored / "runs.jsonl").read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace('"profile": "quick"', '"profile": "full"')
    (stored / "runs.jsonl").write_text("".join(lines))
    refused(stored, "mixes runs of both profiles")


def test_runs_of_other_kinds_must_be_all_there(tmp_path):
    found = reproduce(counts(Counting(2), Counting(3)), "quick", tmp_path, Here())
    path = found.files["runs.jsonl"]
    found.files["provenance.json"].unlink()
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(DamagedError, match="lacks 1 of the 2 runs of counts"):
        rebuild(counts(Counting(2), Counting(3)), path.parent)


# ---------------------------------------------------------------------------------------------------------------------
# A study's own code


def broken(records):
    return [Table("Counted", {"to": "d"})]


def sketch(records, path):
    path.touch()
    raise KeyError("colour")


def endless(profile, records):
    raise ValueError("no more")


BROKEN = {
    "tables": ({"tables": broken}, "make its tables from .*runs.jsonl", "TypeError: "),
    "figure": ({"figure": sketch}, "draw its figure from .*runs.jsonl", "KeyError: 'colour'"),
    "after": ({"after": endless}, "choose more runs", "ValueError: no more"),
    "grid": ({"grid": lambda profile: profile.runs}, "list its runs", "AttributeError: 'str' object has no attribute"),
}


@pytest.mark.parametrize(("change", "what", "error"), BROKEN.values(), ids=BROKEN)
def test_a_mistake_in_a_study_is_not_taken_for_damaged_data(change, what, error, tmp_path):
    """Its author learns where it is, and how to see all of it; nothing is drawn over."""
    folder = reproduce(counts(Counting(2)), "quick", tmp_path, Here()).files["runs.jsonl"].parent
    (folder / "figure.png").write_text("as before")
    with pytest.raises(StudyError) as raised:
        rebuild(replace(counts(Counting(2)), **change), folder)
    said = str(raised.value)
    assert re.match(rf"the study 'counts' cannot {what}: {re.escape(__file__)}:\d+ raised {re.escape(error)}", said)
    assert said.endswith("(TINYLATENT_TRACEBACK=1 shows the traceback)")
    assert not isinstance(raised.value, DamagedError)
    assert (folder / "figure.png").read_text() == "as before"


def test_a_mistake_in_a_registered_study_names_its_package(tmp_path, monkeypatch, capsys):
    folder = reproduce(counts(Counting(2)), "quick", tmp_path / "runs", Here()).files["runs.jsonl"].parent
    studies = {"counts": replace(counts(Counting(2)), tables=broken)}
    points = {"counts": EntryPoint("counts", "counting:STUDY", "tinylatent.studies")}
    monkeypatch.setattr(lab, "owner", lambda point: point.module)
    monkeypatch.setattr(lab, "STUDIES", type("Registered", (dict,), {"points": points})(studies))
    assert main(["rebuild", "counts", "--results", str(folder.parent)]) == 2
    assert "the study 'counts' of counting cannot make its tables" in capsys.readouterr().err


class Mistaken(Counting):
    def measure(self, folder, device="cpu", on_progress=None, start=None):
        return {}["rows"]


def test_a_mistake_in_a_run_is_told_with_its_place(tmp_path):
    """KeyError says no more than the key; in another process the place is in what comes with the error."""

    class Patient(Here):
        def ended(self, timeout):
            job = self.waiting.pop()
            try:
                job.do()
            except KeyError as error:
                return [(job, error)]

    with pytest.raises(ValueError, match=rf"1 of 1 runs failed: .* \(KeyError: 'rows' at {re.escape(__file__)}:\d+\)"):
        reproduce(counts(Mistaken(3)), "quick", tmp_path, Patient())


@pytest.mark.slow
def test_a_mistake_in_a_worker_is_told_with_its_place(tmp_path):
    with pytest.raises(ValueError, match=r"KeyError: 'no_such_task' at \S+\.py:\d+"):
        reproduce(counts(Lost(3)), "quick", tmp_path, Local(1))


def test_runs_are_told_in_words_as_they_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(words, "FIRST_WORD_S", 0)
    monkeypatch.setattr(words, "LATER_WORDS_S", 0)
    reproduce(counts(Counting(2), Counting(3), Counting(4)), "quick", tmp_path, Here())
    told = [line for line in capsys.readouterr().err.splitlines() if " steps" in line]
    assert told[0].startswith("3 of 3 runs to do, 9 steps in all")
    assert [line.split(",")[0] for line in told[1:]] == ["  4 of 9 steps", "  7 of 9 steps"]


def test_nothing_is_said_of_runs_that_are_all_there(tmp_path, capsys):
    for expected in (True, False):
        reproduce(counts(Counting(2)), "quick", tmp_path, Here())
        assert ("1 of 1 runs to do" in capsys.readouterr().err) == expected


# ---------------------------------------------------------------------------------------------------------------------
# The command `rebuild`


@pytest.fixture
def registered(stored, monkeypatch):
    """The results folder of `stored`, its study being registered."""
    monkeypatch.setattr(lab, "STUDIES", {"tiny": TINY})
    return stored.parent


@pytest.mark.parametrize(
    "words",
    [
        ["--all"],
        ["first/"],
        ["results/first"],
        pytest.param(["first"], marks=pytest.mark.slow),
        pytest.param(["./results/../results/first/"], marks=pytest.mark.slow),
    ],
)
def test_rebuild_makes_the_same_files_again(words, registered, outcome, capsys, monkeypatch):
    """Named as the list names it, or by a path from where one is, as tab completion writes it."""
    monkeypatch.chdir(registered.parent)
    assert main(["rebuild", *words, "--results", str(registered)]) == 0
    for name in NAMES:
        assert (registered / "first" / name).read_bytes() == outcome.files[name].read_bytes()
    printed = {line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines()}
    assert printed == {*NAMES} - {"runs.jsonl"}


def test_a_folder_elsewhere_is_rebuilt_by_its_path(registered, monkeypatch, capsys):
    monkeypatch.chdir(registered)
    (registered / "runs").mkdir()
    assert main(["rebuild", "../results/first", "--results", "runs"]) == 0
    assert (registered / "first" / "table.csv").exists()
    assert main(["rebuild", "../first"]) == 2
    assert "holds no results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "rebuild needs names or --all, one of the two: there are first"),
        (["first", "--all"], "rebuild needs names or --all"),
        (["second"], "has no results 'second': expected one of first"),
        (["--all", "--results", "nowhere"], "nowhere holds no results"),
    ],
)
def test_rebuild_says_what_it_needs(words, said, registered, capsys):
    assert main(["rebuild", "--results", str(registered), *words]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in (registered / "first").iterdir()] == ["runs.jsonl"]


def test_runs_of_a_study_that_is_not_registered_are_refused(registered, monkeypatch, capsys):
    monkeypatch.setattr(lab, "STUDIES", {"other": TINY})
    assert main(["rebuild", "--all", "--results", str(registered)]) == 2
    assert "is of an unknown study tiny: expected one of other" in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_folder_does_not_keep_others_from_being_rebuilt(registered, capsys):
    (registered / "second").mkdir()
    (registered / "second" / "runs.jsonl").write_text('{"study": "ti')
    assert main(["rebuild", "first", "--results", str(registered)]) == 0
    assert main(["rebuild", "--all", "--results", str(registered)]) == 2
    assert "second/runs.jsonl, line 1 is damaged" in capsys.readouterr().err
