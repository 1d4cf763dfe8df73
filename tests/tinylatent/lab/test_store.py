"""The store of runs: what is there, told by name, found, compared and deleted; damage in one folder leaves the others.

Most runs here were never trained: their records are made by hand.
"""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from counting import Counting
from locks import locked_elsewhere
from records import record_of
from stored import put
from tinylatent_tasks import MNNS

from tinylatent.core.files import read_lines, write_json
from tinylatent.core.seeds import Seeds
from tinylatent.lab import store
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.launchers import Job
from tinylatent.lab.names import run_name
from tinylatent.lab.recipes import build
from tinylatent.lab.records import Answered, Stopped
from tinylatent.lab.run import read_record
from tinylatent.lab.store import (
    check_deletion,
    compare,
    delete,
    find,
    pick,
    pick_one,
    stored_runs,
    study_progress,
)
from tinylatent.lab.study import STUDIES, Study
from tinylatent.methods import GRPO, CoT2, Direct, DiscreteCoT
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

FIRST = Path(__file__).resolve().parents[2] / "data/first_edition"
COT2 = [build("mnns", CoT2(), seed) for seed in (0, 2, 10)]
DISCRETE = build("mnns", DiscreteCoT(), 2)
LONGER = build("mnns", CoT2(), 2, steps=9900)
RL = replace(build("mnns", GRPO(samples=1), 2), start=COT2[1])
TRAIN = Answered(right=[3, 4], total=[4, 4])


@pytest.fixture
def results(tmp_path):
    """A results folder with five runs; one has not ended."""
    for run in COT2:
        put(tmp_path, run, 90, train=TRAIN)
    put(tmp_path, DISCRETE, 80)
    put(tmp_path, LONGER, step=4000)
    return tmp_path


def names(runs):
    return [each.name for each in runs]


FIVE = [
    "mnns/cot2 seed=0",
    "mnns/cot2 seed=2",
    "mnns/cot2 seed=2 training.steps=9900",
    "mnns/cot2 seed=10",
    "mnns/discrete seed=2",
]

# ---------------------------------------------------------------------------------------------------------------------
# What is there


def test_runs_are_listed_by_name_and_numbers_by_size(results):
    (results / "runs" / "quick" / "mnns").mkdir(parents=True)
    (results / "runs" / ".DS_Store").touch()
    (results / "runs" / "notes.txt").touch()
    assert names(stored_runs(results)) == FIVE
    assert stored_runs(results / "nowhere") == []


def test_what_is_told_of_a_finished_run(results):
    stored = stored_runs(results)[0]
    assert (stored.run, stored.identity, stored.folder.name) == (COT2[0], COT2[0].identity, COT2[0].identity)
    assert (stored.state, stored.done, stored.work, stored.reason) == ("finished", 9000, 9000, "")
    assert stored.accuracy.value == pytest.approx(0.9)
    assert stored.accuracy.low < 0.9 < stored.accuracy.high
    assert stored.train_accuracy == 7 / 8
    files = [*stored.folder.iterdir()]
    assert stored.size == sum(path.stat().st_size for path in files)
    assert stored.changed == max(path.stat().st_mtime for path in files)


def test_what_a_link_points_to_is_not_of_the_run(results):
    (results / "large").write_bytes(bytes(100_000))
    (results / "runs" / COT2[0].identity / "link").symlink_to(results / "large")
    assert stored_runs(results)[0].size < 100_000


def test_what_is_told_of_a_run_that_has_not_ended(results):
    stored = pick_one(stored_runs(results), "training.steps=9900")
    assert (stored.state, stored.done, stored.work) == ("stopped", 4000, 9900)
    assert (stored.accuracy, stored.train_accuracy, stored.record) == (None, None, None)
    assert stored.last_metrics() == {"step": 4000, "loss": 0.5, "problems_per_s": 640.0}
    assert stored_runs(results)[0].last_metrics() == {}


def test_a_run_that_ended_early_is_finished_where_it_ended(tmp_path):
    put(tmp_path, COT2[0], 90, step=600, stopped=Stopped(step=600, advice="no reward"))
    (stored,) = stored_runs(tmp_path)
    assert (stored.state, stored.done, stored.work) == ("finished", 600, 9000)


def test_a_run_whose_folder_is_held_is_in_training(results):
    with locked_elsewhere(results / "runs" / LONGER.identity):
        assert [each.state for each in stored_runs(results)] == ["finished", "finished", "training"] + ["finished"] * 2
        assert names(stored_runs(results, only_training=True)) == [FIVE[2]]
    assert stored_runs(results, only_training=True) == []
    assert stored_runs(results)[2].state == "stopped"


def test_a_trained_run_is_told_by_its_own_files(tmp_path):
    """As a launcher leaves them: here nothing is made by hand."""
    run = Experiment(MNNS(2, 1, 4), Direct(), ModelConfig(8, 1, 1), Training(steps=4, batch_size=4), Seeds.all(1))
    Job(run, tmp_path / "runs" / run.identity).do()
    (stored,) = stored_runs(tmp_path)
    assert (stored.run, stored.state, stored.done) == (run, "finished", 4)
    assert stored.accuracy == stored.record.evaluations["default"].accuracy
    assert stored.last_metrics()["step"] == 4


def test_folders_elsewhere_are_told_once(results, monkeypatch):
    """A folder of a run, the folder it is in, and by another path."""
    elsewhere = results / "mine"
    put(results, RL, 70, folder=elsewhere / "rl")
    (elsewhere / "notes").mkdir()
    expected = [*FIVE, run_name(RL)]
    for folders in (
        [elsewhere / "rl"],
        [elsewhere],
        [elsewhere, elsewhere / "rl"],
        [elsewhere / "notes" / ".." / "rl"],
    ):
        assert names(stored_runs(results, folders)) == expected
    monkeypatch.chdir(elsewhere / "rl")
    assert names(stored_runs(results, [Path(".")])) == expected
    with pytest.raises(ValueError, match=r"notes holds no run: expected a folder with config\.json"):
        stored_runs(results, [elsewhere / "notes"])
    with pytest.raises(ValueError, match="nowhere holds no run"):
        stored_runs(results, [elsewhere / "nowhere"])


# ---------------------------------------------------------------------------------------------------------------------
# The first edition


def first_edition(results, study="mnns", is_finished=True, step=None):
    """A run in a store of the first edition: under the id it had then, its config and metrics in a subfolder."""
    line = read_lines(FIRST / f"{study}.jsonl")[0]
    folder = results / "runs" / line["id"]
    (folder / "run").mkdir(parents=True)
    write_json(folder / "run/config.json", line["experiment"])
    if step is not None:
        (folder / "run/metrics.jsonl").write_text(f'{{"step": {step}}}\n')
    if is_finished:
        write_json(folder / "result.json", line)
    return line, folder


@pytest.mark.parametrize("study", ["mnns", "mnns-rl", "tasks"])
def test_runs_of_the_first_edition_are_told_by_their_names_of_today(study, tmp_path):
    line, folder = first_edition(tmp_path, study)
    (stored,) = stored_runs(tmp_path)
    record = read_record(Experiment, line)
    assert (stored.state, stored.reason, stored.folder) == ("finished", "", folder)
    assert (stored.run, stored.record, stored.name) == (record.experiment, record, run_name(record.experiment))
    assert stored.accuracy.value == pytest.approx(record.accuracy)
    assert stored.identity == record.experiment.identity != folder.name
    for name in (folder.name, folder.name[:5], stored.identity, stored.name):
        assert pick_one([stored], name) is stored


@pytest.mark.parametrize("study", ["mnns", "claims", "capacity", "estimators"])
def test_a_result_of_the_first_edition_alone_tells_its_run(study, tmp_path):
    """Other kinds never had a config."""
    line = read_lines(FIRST / f"{study}.jsonl")[0]
    (tmp_path / "runs" / line["id"]).mkdir(parents=True)
    write_json(tmp_path / "runs" / line["id"] / "result.json", line)
    (stored,) = stored_runs(tmp_path)
    kind = STUDIES[study].kind
    assert (stored.state, stored.reason) == ("finished", "")
    assert stored.run == kind.from_json(read_record(kind, line).run)


def test_a_run_that_the_first_edition_began_is_told(tmp_path):
    _, folder = first_edition(tmp_path, is_finished=False, step=40)
    (stored,) = stored_runs(tmp_path)
    assert (stored.state, stored.done, stored.reason) == ("stopped", 40, "")
    assert stored.last_metrics() == {"step": 40}
    assert stored.changed == max(path.stat().st_mtime for path in (folder / "run").iterdir())
    with locked_elsewhere(folder / "run"):
        assert [run.state for run in stored_runs(tmp_path, only_training=True)] == ["training"]
        with pytest.raises(ValueError, match="is being trained"):
            check_deletion([stored], [stored])


def test_a_folder_with_a_config_of_the_first_edition_has_the_id_of_then(tmp_path):
    """Any other is that of another run."""
    line, folder = first_edition(tmp_path, is_finished=False)
    (folder / "run/config.json").rename(folder / "config.json")
    assert [run.state for run in stored_runs(tmp_path)] == ["stopped"]
    folder.rename(folder.with_name("0" * 12))
    (stored,) = stored_runs(tmp_path)
    assert (stored.state, stored.reason) == (
        "unreadable",
        f"it holds the run {Experiment.from_json(line['experiment']).identity}: rename or delete it",
    )


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def damaged(change):
    """A finished run whose record was changed."""

    def make(folder):
        put(None, COT2[0], folder=folder)
        record = record_of(COT2[0], 90).to_json()
        change(record)
        write_json(folder / "result.json", record)

    return make


def config(text):
    """A run whose config.json is this text."""

    def make(folder):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(text)

    return make


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder.mkdir(parents=True), r"it holds neither config\.json nor result\.json: delete it"),
        (config("{"), r"config\.json cannot be read"),
        (config("[]"), "not an experiment this version can read"),
        (config('{"version": 9}'), "an experiment of form 9"),
        (lambda folder: (folder / "config.json").mkdir(parents=True), r"config\.json cannot be read"),
        (damaged(lambda r: r.update(id="0" * 12)), "its id is not that of its run"),
        (damaged(lambda r: r["run"]["method"].update(name="telepathy")), "its id is not that of its run"),
        (damaged(lambda r: r.pop("keys")), "no record of the kind Experiment"),
        (damaged(lambda r: r["evaluations"].pop("default")), "expected the evaluation 'default'"),
        (damaged(lambda r: r["evaluations"]["default"].update(right=[999])), "expected for each key a number of right"),
        (damaged(lambda r: r.update(train={"right": [], "total": []})), "and at least one key"),
        (damaged(lambda r: r.update(record_of(COT2[1], 90).to_json())), "is of another run than its config"),
        (
            lambda folder: put(None, COT2[1], 90, folder=folder),
            f"it holds the run {COT2[1].identity}: rename or delete",
        ),
    ],
)
def test_damage_is_told_and_keeps_nobody_from_the_others(make, said, results, unchecked):
    folder = results / "runs" / COT2[0].identity
    shutil.rmtree(folder)
    make(folder)
    *others, last = stored_runs(results)
    assert names(others) == FIVE[1:]
    assert (last.state, last.name, last.identity, last.run) == ("unreadable", folder.name, folder.name, None)
    assert re.search(said, last.reason)
    assert (last.work, last.settings, last.accuracy) == (None, {}, None)
    assert last.changed > 0


def test_what_is_not_json_in_a_result_is_told(results):
    for text in ("", "{", "[]", "3"):
        (results / "runs" / COT2[0].identity / "result.json").write_text(text)
        assert stored_runs(results)[-1].state == "unreadable"


# ---------------------------------------------------------------------------------------------------------------------
# Other kinds of runs


def study(grid, kind=Counting):
    return Study("counts", "How far?", lambda profile: grid, lambda records: [], lambda records, path: None, kind=kind)


def test_other_kinds_are_told_by_their_records(results, monkeypatch):
    monkeypatch.setattr(store.STUDIES, "loaded", lambda: {"mnns": study([], Experiment), "counts": study([])})
    Job(Counting(7), results / "runs" / Counting(7).identity).do()
    stored = stored_runs(results)[0]
    assert (stored.name, stored.state, stored.run) == ("counting to 7", "finished", Counting(7))
    assert (stored.done, stored.work, stored.accuracy, stored.settings) == (7, 7, None, {"up_to": 7})
    put(results, Counting(8), step=5)
    begun = stored_runs(results)[-1]
    assert (begun.name, begun.state, begun.done, begun.work) == (Counting(8).identity, "stopped", 5, None)


def test_kinds_that_are_not_installed_are_told(results, monkeypatch):
    monkeypatch.setattr(store.STUDIES, "loaded", lambda: {})
    Job(Counting(7), results / "runs" / Counting(7).identity).do()
    last = stored_runs(results)[-1]
    assert (last.state, last.reason) == ("unreadable", "its result.json is of no kind of run that is installed")


# ---------------------------------------------------------------------------------------------------------------------
# Finding


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([COT2[0].identity], [0]),
        ([COT2[0].identity[:4]], [0]),
        (["mnns/cot2"], [0, 1, 2, 3]),
        (["cot2", "seed=2"], [1, 2]),
        (["mnns"], [0, 1, 2, 3, 4]),
        (["stopped"], [2]),
        (["finished", "discrete"], [4]),
        (["training.steps=9900"], [2]),
        (["training.steps=9000", "seeds.split=2"], [1, 4]),
        (["training.learning_rate=1e-2"], [0, 1, 2, 3]),
        (["training.learning_rate=0.01"], [0, 1, 2, 3]),
        (["training.schedule=cosine", "method.name=discrete"], [4]),
        (["training.num_train=none", "method.budget=none", "seed=10"], [3]),
        (["training.steps=many"], []),
        (["seed=1"], []),
        (["cot"], []),
        ([COT2[0].identity[:3]], []),
        ([], [0, 1, 2, 3, 4]),
    ],
)
def test_words_narrow_down(words, found, results):
    assert names(find(stored_runs(results), words)) == [FIVE[index] for index in found]


def test_a_setting_that_no_run_has_is_refused(results):
    runs = stored_runs(results)
    with pytest.raises(ValueError, match=r"no run has a setting 'training\.lr': expected one such as training\.batch_"):
        find(runs, ["cot2", "training.lr=0.01"])
    with pytest.raises(ValueError, match=r"no run has a setting 'lr': expected one such as seed, training\.learning"):
        find(runs, ["lr=0.01"])
    assert find([], ["lr=0.01"]) == []


def test_a_name_picks_the_run_of_that_very_name(results):
    runs = stored_runs(results)
    for name in ("mnns/cot2 seed=2", COT2[1].identity, str(results / "runs" / COT2[1].identity)):
        assert names(pick(runs, name)) == ["mnns/cot2 seed=2"]
    assert names(pick(runs, "cot2 seed=2")) == FIVE[1:3]
    for name in ("seed=1", "", " ", "mnns/cot3"):
        with pytest.raises(ValueError, match=r"no run fits .*: expected 4 or more digits of an id, or a name"):
            pick(runs, name)


def test_a_name_of_several_is_refused_where_one_is_expected(results):
    runs = stored_runs(results)
    assert pick_one(runs, "discrete").run == DISCRETE
    with pytest.raises(
        ValueError, match=r"'seed=2' names 3 runs: .*\(mnns/cot2 seed=2\), .*\(mnns/discrete seed=2\); "
    ):
        pick_one(runs, "seed=2")
    with pytest.raises(ValueError, match=r"names 12 runs: .* and 2 more; give an id"):
        pick_one([*runs, *runs, *runs], "cot2")


# ---------------------------------------------------------------------------------------------------------------------
# Comparing


def test_runs_are_compared_with_the_first(results):
    put(results, RL, 70)
    first, *others = (pick_one(stored_runs(results), name) for name in (FIVE[1], FIVE[4], FIVE[2], RL.identity))
    compared = compare([first, *others])
    assert compared.differing["method.name"] == ["cot2", "discrete", "cot2", "grpo"]
    assert compared.differing["training.steps"] == ["9000", "9000", "9900", "1000"]
    assert compared.differing["method.prefix"] == ["teacher", None, "teacher", None]
    assert compared.differing["start.method.name"] == [None, None, None, "cot2"]
    assert "model.width" not in compared.differing
    nothing, gap, unfinished, rl = compared.gaps
    assert nothing is unfinished is None
    assert gap.value == pytest.approx(-0.1)
    assert gap.low < -0.1 < gap.high < 0
    assert rl.value == pytest.approx(-0.2)


def test_there_is_no_difference_between_runs_on_other_problems(tmp_path):
    put(tmp_path, COT2[0], 90)
    put(tmp_path, COT2[1], 80, keys=[f"other {key}" for key in range(10)])
    put(tmp_path, COT2[2], 80, total=[101] * 10)
    assert compare(stored_runs(tmp_path)).gaps == [None, None, None]


def test_fewer_than_two_runs_are_not_compared(results):
    runs = stored_runs(results)
    for chosen in ([], runs[:1]):
        with pytest.raises(ValueError, match="compare needs two or more runs"):
            compare(chosen)
    for chosen in ([runs[0], runs[0]], [runs[0], runs[1], runs[0]]):
        with pytest.raises(ValueError, match=f"{runs[0].folder} is named twice: expected two or more different runs"):
            compare(chosen)
    (results / "runs" / COT2[0].identity / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot be compared: .*config\.json cannot be read"):
        compare([stored_runs(results)[-1], runs[1]])


# ---------------------------------------------------------------------------------------------------------------------
# Deleting


def test_a_deleted_run_is_gone_and_nothing_else_is(results):
    outside = results / "outside"
    outside.mkdir()
    (outside / "precious").write_text("data")
    folder = results / "runs" / COT2[0].identity
    (folder / "step-00000001").mkdir()
    (folder / "step-00000001" / "weights.safetensors").touch()
    (folder / "data").symlink_to(outside)
    (folder / "file").symlink_to(outside / "precious")
    delete(stored_runs(results)[0])
    assert names(stored_runs(results)) == FIVE[1:]
    assert len([*(results / "runs").iterdir()]) == 4
    assert (outside / "precious").read_text() == "data"


def test_a_run_that_is_a_link_is_not_deleted(results):
    put(results, RL, 70, folder=results / "mine")
    (results / "runs" / RL.identity).symlink_to(results / "mine")
    runs = stored_runs(results)
    with pytest.raises(ValueError, match="is a link: remove it by hand"):
        check_deletion([runs[-1]], runs, force=True)
    with pytest.raises(OSError, match="symbolic link"):
        delete(runs[-1])
    assert (results / "mine" / "result.json").exists()


def test_a_run_in_training_is_not_deleted(results):
    runs = stored_runs(results)
    with locked_elsewhere(runs[0].folder):
        with pytest.raises(ValueError, match=r"\(mnns/cot2 seed=0\) is being trained: stop that first"):
            check_deletion(runs[:2], runs, force=True)
        with pytest.raises(ValueError, match="is in use by another process"):
            delete(runs[0])
    assert names(stored_runs(results)) == FIVE


def test_what_a_kept_run_starts_from_is_only_deleted_by_force(results):
    put(results, RL, 70)
    runs = stored_runs(results)
    start, rl = pick_one(runs, COT2[1].identity), pick_one(runs, RL.identity)
    with pytest.raises(
        ValueError, match=rf"{RL.identity} .* starts from {COT2[1].identity} .*: delete both, or use --"
    ):
        check_deletion([start], runs)
    for chosen in ([start, rl], [rl], [runs[0]]):
        check_deletion(chosen, runs)
    check_deletion([start], runs, force=True)


def test_a_kill_while_a_run_is_deleted_leaves_no_half_run(results, monkeypatch):
    """What is left is not listed, and goes with the next run that is deleted."""

    def kill(*options, **more):
        raise KeyboardInterrupt

    runs = stored_runs(results)
    monkeypatch.setattr(store.shutil, "rmtree", kill)
    with pytest.raises(KeyboardInterrupt):
        delete(runs[0])
    monkeypatch.undo()
    assert names(stored_runs(results)) == FIVE[1:]
    assert len([*(results / "runs").iterdir()]) == 5
    put(results, COT2[0], 90)
    delete(stored_runs(results)[0])
    assert len([*(results / "runs").iterdir()]) == 4


# ---------------------------------------------------------------------------------------------------------------------
# Studies


def test_progress_of_a_study_is_counted_from_the_store(results):
    counts = study([*COT2, LONGER, DISCRETE])
    assert vars(study_progress(counts, "quick", results)) == {"finished": 4, "grid": 5, "written": 0}
    for folder, lines in (("runs/quick", 2), ("", 3)):
        path = results / folder / "counts" / "runs.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(f'{{"study": "counts", "profile": "quick", "n": {n}}}\n' for n in range(lines)))
    assert [study_progress(counts, profile, results).written for profile in ("quick", "full")] == [2, 3]
    for damage in ("{}\n", '{"study": "cou', "[]\n", "not JSON\n"):
        path.write_text(damage)
        assert study_progress(counts, "full", results).written is None
