"""`run`: a recipe is what the study trains, flags that are given override it, and it is kept where studies look."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tinylatent_tasks import splits

from tinylatent.cli import finished
from tinylatent.cli import run as cli
from tinylatent.cli.main import main, parse
from tinylatent.core.identity import sealed
from tinylatent.core.seeds import Seeds
from tinylatent.evaluation.statistics import accuracy_interval
from tinylatent.lab import measure
from tinylatent.lab.launchers.launcher import stored_record
from tinylatent.lab.recipes import contenders, is_tuned, recipe, recipes
from tinylatent.lab.records import Answered, Stopped
from tinylatent.lab.run import Environments
from tinylatent.lab.study import STUDIES, Study, reproduce
from tinylatent.lab.tables import Table
from tinylatent.training.config import Training

SHORT = ["--training.steps", "12", "--training.batch-size", "4", "--training.save-every", "5"]
TINY = ["--task.digits", "2", "--task.high", "4", "--model.width", "8", "--model.layers", "1", "--model.heads", "1"]
REPORTED = {
    "mnns": ("mnns", ""),
    "mnns-d16": ("mnns-budget", "discrete cot2"),
    "mnns-d24": ("mnns-budget", "discrete cot2"),
    "mnns-d24-l1": ("mnns-passk", "discrete cot2"),
    "mnns-paper": ("mnns-faithful", "discrete cot2"),
    "mnns-longer": ("tasks", ""),
    "subset-sum": ("tasks", ""),
    "multihop": ("tasks", ""),
    "reachability": ("tasks", ""),
    "mnns-rl": ("mnns-rl", ""),
}
"""The study that reports each comparison, and the methods it reports; all but grpo where none are named."""


def experiment(*words):
    """The experiment that the words of a command name."""
    return parse(["run", *words]).experiment()


# ---------------------------------------------------------------------------------------------------------------------
# The recipe and the flags


@pytest.mark.parametrize("comparison", REPORTED)
def test_a_recipe_without_flags_is_a_run_of_its_study(comparison):
    study, reported = REPORTED[comparison]
    grid = {run.identity: run for run in STUDIES[study].grid("full")}
    methods = [name.partition("/")[2] for name in recipes() if name.startswith(f"{comparison}/")]
    for method in [name for name in methods if name in contenders() and (not reported or name in reported.split())]:
        seeds = sorted({run.seeds.split for run in grid.values()})
        found = (experiment(f"{comparison}/{method}", "--seed", str(seed)).identity in grid for seed in seeds)
        assert any(found), method


@pytest.mark.slow
def test_a_recipe_without_flags_is_the_recipe():
    for name in recipes():
        assert experiment(name) == recipe(name), name


def test_a_given_flag_overrides_also_where_its_value_is_a_global_default():
    """grpo's own recipe has 1000 steps and no decay; those of Training are given here."""
    usual = Training()
    flags = ["--training.steps", str(usual.steps), "--training.weight-decay", str(usual.weight_decay)]
    found = experiment("mnns/grpo", *flags)
    assert (found.training.steps, found.training.weight_decay) == (9000, 0.05)
    assert found.training == replace(recipe("mnns/grpo").training, steps=9000, weight_decay=0.05)


def test_flags_that_are_left_out_keep_the_recipe():
    found, usual = experiment("mnns-rl/k6-from-cot2", "--training.steps", "5"), recipe("mnns-rl/k6-from-cot2")
    assert found == replace(usual, training=replace(usual.training, steps=5))
    found, usual = experiment("multihop/coconut", "--task.hops", "4", "--model.width", "16"), recipe("multihop/coconut")
    expected = replace(usual, task=replace(usual.task, hops=4), model=replace(usual.model, width=16))
    assert found == expected


def test_seeds_can_be_varied_alone():
    found = experiment("mnns/cot2", "--seed", "3", "--init-seed", "7", "--sampling-seed", "0")
    assert found.seeds == Seeds(split=3, init=7, order=3, sampling=0)


def test_what_a_run_starts_from_shares_its_task_model_split_and_problems():
    flags = ["--task.digits", "3", "--model.width", "16", "--training.num-train", "40", "--split-seed", "9"]
    found = experiment("mnns-rl/k3-from-discrete", "--seed", "2", *flags)
    assert found.start.training == replace(recipe("mnns/discrete").training, num_train=40)
    assert found.start.seeds == Seeds(split=9, init=2, order=2, sampling=2)
    assert (found.start.task, found.start.model) == (found.task, found.model)
    assert (found.task.digits, found.model.width) == (3, 16)


def test_blocks_and_bounds_are_flags():
    flags = ["--model.norm", "post", "--model.mlp", "swiglu", "--model.loops", "2", "--model.dropout", "0.1"]
    found = experiment("mnns/direct", *flags, "--training.micro-batch", "2", "--training.clip-norm", "1.0")
    usual = recipe("mnns/direct")
    assert found.model == replace(usual.model, norm="post", mlp="swiglu", loops=2, dropout=0.1)
    assert found.training == replace(usual.training, micro_batch=2, clip_norm=1.0)


def test_help_shows_the_values_of_the_recipe(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["run", "mnns/cot2", "--help"])
    assert not stop.value.code
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "usage: tinylatent run mnns/cot2" in said
    assert "--training.learning-rate FLOAT Peak learning rate. (default: 0.01)" in said
    assert "--method.budget" in said
    assert "recipe" not in said.partition("options")[2].partition("--seed")[0]


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_without_a_recipe_it_says_how_to_name_one(words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["run", *words])
    assert not stop.value.code
    said = capsys.readouterr().out
    assert "mnns/cot2" in said
    assert all(name.partition("/")[0] in said and name.partition("/")[2] in said for name in recipes())


ERRORS = {
    "no such recipe": (["mnns/nonsense"], "unknown recipe 'mnns/nonsense'"),
    "a method alone": (["cot2"], "such as mnns/cot2"),
    "a flag first": (["--seed", "1", "mnns/cot2"], "name it first"),
    "no such flag": (["mnns/cot2", "--shape.width", "8"], "--shape.width"),
    "a flag of another task": (["mnns/cot2", "--task.hops", "3"], "--task.hops"),
    "a flag of another method": (["mnns/direct", "--method.budget", "3"], "--method.budget"),
    "not a number": (["mnns/cot2", "--training.steps", "many"], "--training.steps is 'many': expected a whole number."),
    "not a real number": (["mnns/cot2", "--training.learning-rate", "x"], "learning-rate is 'x': expected a number, "),
    "no value": (["mnns/cot2", "--seed"], "--seed needs a value."),
    "no such norm": (["mnns/cot2", "--model.norm", "x"], "--model.norm is 'x': expected one of 'pre', 'post', "),
    "a flag misspelt": (["mnns/cot2", "--seeed", "1"], "unknown: --seeed, 1."),
    "no folder": (["mnns/grpo", "--start"], "--start"),
    "bad task": (["mnns/cot2", "--task.low", "5", "--task.high", "3"], "high"),
    "bad budget": (["mnns/cot2", "--method.budget", "0"], "budget"),
    "bad width": (["mnns/cot2", "--model.width", "7"], "width"),
    "absurd width": (["mnns/cot2", "--model.width", "4000000", "--model.heads", "1"], "width"),
    "experts of another kind": (["mnns/cot2", "--model.mlp", "swiglu", "--model.experts", "2"], "experts"),
    "no micro-batch": (["mnns/cot2", "--training.micro-batch", "0"], "--training.micro-batch is 0"),
    "nothing to validate": (["mnns/cot2", "--task.digits", "1", "--task.high", "2"], "validation"),
    "two places": (["mnns/cot2", "--out", "run", "--results", "elsewhere"], "--results has no effect beside --out"),
    "too few for both parts": (["mnns/cot2", "--training.num-train", "6000"], "6000"),
}


@pytest.mark.parametrize(("words", "said"), ERRORS.values(), ids=ERRORS)
def test_errors_are_one_line_and_leave_nothing(words, said, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refused(["run", *words])
    assert list(tmp_path.iterdir()) == []


def test_capacity_that_the_task_cannot_fill_is_refused_before_training(tmp_path, monkeypatch, refused):
    monkeypatch.setattr(measure, "MAX_OF_A_LEVEL", 2)
    monkeypatch.setattr(splits, "MAX_DRAWS", 64)
    words = ["reachability/direct", "--task.nodes", "12", "--task.capacity", "5", "--training.num-train", "64"]
    error = refused(["run", *words, "--out", str(tmp_path / "run")])
    assert "at difficulty 5, within the capacity that was given, only 0 of" in error
    assert not (tmp_path / "run").exists()


def test_a_start_of_another_task_is_refused_and_one_of_another_method_is_named(run_folder, refused, capsys):
    error = refused(["run", "subset-sum/grpo", "--start", str(run_folder)])
    assert "is of task mnns, the recipe subset-sum/grpo of subset-sum: choose a recipe of its task" in error
    experiment("mnns-rl/k3-from-discrete", "--start", str(run_folder))
    assert "starting from cot2, where mnns-rl/k3-from-discrete starts from discrete" in capsys.readouterr().err


def test_rates_that_nobody_searched_for_are_said(run_folder, capsys):
    """Of a tuned recipe, too, where flags made it another run; of the recipe itself there is nothing to say."""
    main(["run", "mnns/cot2", "--out", str(run_folder), *TINY, *SHORT])
    assert "have not been tuned for these settings of mnns/cot2" in capsys.readouterr().err
    assert is_tuned("mnns/cot2", experiment("mnns/cot2", "--seed", "4"))
    assert not is_tuned("recommendation/pause", experiment("recommendation/pause"))


@pytest.mark.slow
def test_a_space_that_is_too_large_to_list_is_drawn_from(tmp_path, capsys):
    flags = ["--task.digits", "8", "--training.steps", "1", "--training.validate", "8", "--json"]
    assert main(["run", "mnns/cot2", "--out", str(tmp_path / "run"), *flags]) == 0
    out, error = capsys.readouterr()
    assert "10000 problems to train on, since those of mnns of this size are too many to list" in error
    record = json.loads(out)
    assert record["run"]["training"]["num_train"] == 10_000
    assert sum(record["total"]) == 1000


IDLE = {
    "a rule": (["mnns/cot2", "--method.rule", "absolute"], "--method.rule has no effect without a budget of traces"),
    "a switch": (["mnns/cot2", "--method.switch", "0.3"], "--method.switch has no effect unless the prefix is teacher"),
    "a clip": (["mnns/grpo", "--method.clip", "0.3"], "--method.clip has no effect with one update a batch"),
    "a ratio": (["mnns/grpo", "--method.samples", "1", "--method.ratio", "paper"], "--method.ratio has no effect with"),
    "tokens beside densities": (
        ["mnns/grpo", "--method.samples", "3", "--method.gamma", "0.5"],
        "--method.samples has no effect with gamma, which draws no tokens",
    ),
    "parts": (["mnns/cot2", "--training.micro-batch", "64"], "--training.micro-batch has no effect with batches of 64"),
    "an MLP": (["mnns/cot2", "--model.mlp", "relu", "--model.experts", "2"], "--model.mlp has no effect with experts"),
    "a rule of another task": (
        ["multihop/cot2", "--method.budget", "2", "--method.rule", "absolute"],
        "--method.rule is 'absolute', but multihop knows one way to choose traces",
    ),
    "an order of another task": (
        ["reachability/cot2", "--method.budget", "2"],
        "--method.budget is 2, but walks have no order",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("words", "said"), IDLE.values(), ids=IDLE)
def test_settings_that_would_be_ignored_are_refused_before_anything_is_trained(words, said, tmp_path, capsys):
    """They would make another run of the very same training. What it starts from is not trained in vain."""
    assert main(["run", *words, "--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error.splitlines()[-1]
    assert "first what it starts from" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_settings_that_have_an_effect_are_not_called_idle():
    for words in (
        ["mnns/cot2", "--method.rule", "absolute", "--method.budget", "2"],
        ["mnns/cot2", "--method.switch", "0.3", "--method.prefix", "teacher-then-self"],
        ["mnns/grpo", "--method.clip", "0.3", "--method.updates", "2"],
        ["mnns/grpo", "--method.samples", "6", "--method.ratio", "paper"],
        ["mnns/cot2", "--training.micro-batch", "63", "--model.experts", "2"],
    ):
        assert measure.idle_settings(experiment(*words)) == {}, words
    for name in recipes():
        assert measure.idle_settings(recipe(name)) == {}, name


HERE = {"code": "c1", "torch": "2.13", "commit": "a", "threads": "1"}


@pytest.mark.parametrize(
    ("training", "measuring", "now", "said"),
    [
        ([HERE], HERE, {**HERE, "commit": "b"}, []),
        ([HERE], {**HERE, "torch": "2.14"}, {**HERE, "torch": "2.14"}, ["trained and measured in different"]),
        (
            [HERE, {**HERE, "code": "c2"}],
            HERE,
            HERE,
            ["trained and measured in different environments: code c1 and c2"],
        ),
        (
            [HERE],
            HERE,
            {**HERE, "code": "c2"},
            ["measured elsewhere than here: code c1 and c2; delete runs/a to train"],
        ),
        (None, {"torch": "2.13"}, HERE, []),
        (
            [{"commit": "0123456789ab" + "c" * 28}],
            {"commit": "ba9876543210" + "d" * 28 + "+changes"},
            {"torch": "2.13"},
            ["trained and measured in different environments: commit 0123456789ab and ba9876543210+changes"],
        ),
    ],
)
def test_code_and_machines_that_changed_on_the_way_are_said(training, measuring, now, said, run_folder):
    record = stored_record(experiment("mnns/cot2", *TINY, *SHORT), run_folder)
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    where = Environments(training=training, measuring=measuring)
    right = {"default": changed(record.evaluations["default"], right=record.total)}
    own = type(record)(**{**fields, "environments": where, "evaluations": right, "majority_baseline": 0.1})
    found = [*finished.remarks(own, now, Path("runs/a"))]
    assert len(found) == len(said)
    assert all(each.startswith(start) for each, start in zip(found, said, strict=True))


def changed(value, **fields):
    """A struct with other values of some fields."""
    return type(value)(**{**{name: getattr(value, name) for name in value.__struct_fields__}, **fields})


def test_an_accuracy_that_the_commonest_answer_reaches_too_is_said(run_folder):
    """The lower end of its interval counts."""
    record = stored_record(experiment("mnns/cot2", *TINY, *SHORT), run_folder)
    right = [total * (key % 3 > 0) for key, total in enumerate(record.total)]
    interval = accuracy_interval([right], [record.total])
    assert interval.low < interval.value
    record = changed(record, evaluations={"default": changed(record.evaluations["default"], right=right)})
    now = record.environments.measuring
    (said,) = finished.remarks(changed(record, majority_baseline=interval.low), now, run_folder)
    assert said.startswith(f"the accuracy is not above the majority baseline of {100 * interval.low:.2f} %")
    assert [*finished.remarks(changed(record, majority_baseline=interval.low - 1e-6), now, run_folder)] == []


# ---------------------------------------------------------------------------------------------------------------------
# Where it is kept


def test_a_folder_of_its_own_holds_all_of_it(run_folder, capsys):
    assert {"config.json", "metrics.jsonl", "result.json"} <= {path.name for path in run_folder.iterdir()}
    record = json.loads((run_folder / "result.json").read_text())
    assert set(record["evaluations"]) == {"default", "noise", "shuffled", "zero"}
    for each in record["evaluations"].values():
        assert each["accuracy"]["value"] == pytest.approx(sum(each["right"]) / sum(record["total"]))
        assert each["accuracy"]["low"] <= each["accuracy"]["value"] <= each["accuracy"]["high"]
    assert main(["run", "mnns/cot2", "--out", str(run_folder), *TINY, *SHORT, "--json"]) == 0
    out, error = capsys.readouterr()
    assert sealed(json.loads(out)) == record
    assert f"finished before: {run_folder}" in error


def test_it_prints_accuracies_and_what_to_compare_them_with(run_folder, capsys):
    assert main(["run", "mnns/cot2", "--out", str(run_folder), *TINY, *SHORT]) == 0
    lines = capsys.readouterr().out.splitlines()
    record = stored_record(experiment("mnns/cot2", *TINY, *SHORT), run_folder)
    names = ["cot2", "cot2, noise", "cot2, shuffled", "cot2, zero", "training problems", "majority baseline"]
    assert [line[:22].strip() for line in lines] == [*names, "result: " + str(run_folder / "result.json")[:14]]
    first = record.evaluations["default"].accuracy
    assert lines[0].split()[1:] == [
        f"{100 * first.value:.2f}",
        "%",
        f"[{100 * first.low:.2f},",
        f"{100 * first.high:.2f}]",
    ]
    assert f"{100 * record.majority_baseline:.2f} %" in lines[5]


def test_levels_of_difficulty_ceiling_and_an_early_end_are_printed(run_folder):
    record = stored_record(experiment("mnns/cot2", *TINY, *SHORT), run_folder)
    level, stop = Answered(right=[1, 1], total=[2, 2]), Stopped(step=3, advice="all rewards are equal")
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    changed = {**fields, "levels": {"3": level}, "accuracy_ceiling": 0.75, "stopped": stop}
    said = finished.described(type(record)(**changed))
    assert "difficulty 3            50.00 %" in said
    assert "accuracy ceiling        75.00 %" in said
    assert "stopped at step 3: all rewards are equal" in said


def test_another_run_in_the_folder_is_refused(run_folder, refused):
    assert "holds another experiment" in refused(["run", "mnns/direct", "--out", str(run_folder), *TINY, *SHORT])


ONE = ["mnns/direct", *TINY, *SHORT]


@pytest.fixture
def study():
    """A study of one run, the very one that ONE trains."""
    table = Table("One", {"n": "d"}, [{"n": 1}])
    return Study(
        "one", "One?", lambda profile: [experiment(*ONE)], lambda records: [table], lambda records, file: file.touch()
    )


def test_a_run_without_a_folder_is_the_studys(study, tmp_path, capsys, monkeypatch):
    """What `run` has finished `reproduce` does not train again, nor the other way round."""
    assert main(["run", *ONE, "--results", str(tmp_path)]) == 0
    folder = tmp_path / "runs" / experiment(*ONE).identity
    assert str(folder / "result.json") in capsys.readouterr().out
    assert {"config.json", "metrics.jsonl", "result.json"} <= {path.name for path in folder.iterdir()}
    monkeypatch.setattr(measure, "train", lambda *arguments, **more: pytest.fail("it was trained again"))
    reproduce(study, "quick", tmp_path)
    stored = json.loads((tmp_path / "runs" / "quick" / "one" / "runs.jsonl").read_text())
    assert stored["id"] == folder.name
    assert main(["run", *ONE, "--results", str(tmp_path), "--json"]) == 0
    out, error = capsys.readouterr()
    assert sealed(json.loads(out)) == json.loads((folder / "result.json").read_text())
    assert f"finished before: {folder}" in error


# ---------------------------------------------------------------------------------------------------------------------
# Starting from another run

RL = ["mnns-rl/k3-from-cot2", "--method.group", "2", "--training.steps", "4", "--training.batch-size", "4"]


def quick(monkeypatch):
    """Recipes for reinforcement learning start from runs of a few steps."""
    usual = cli.recipe

    def shorter(name, seed=0):
        found = usual(name, seed)
        training = replace(found.training, steps=12, batch_size=4, save_every=5)
        return found if found.start is None else replace(found, start=replace(found.start, training=training))

    monkeypatch.setattr(cli, "recipe", shorter)


def test_what_a_run_starts_from_is_done_first_in_the_store(tmp_path, monkeypatch, capsys):
    quick(monkeypatch)
    words = [*RL, *TINY, "--results", str(tmp_path)]
    assert main(["run", *words]) == 0
    out, error = capsys.readouterr()
    found = experiment(*words)
    first = tmp_path / "runs" / found.start.identity
    assert str(first) in error
    assert stored_record(found.start, first) is not None
    record = stored_record(found, tmp_path / "runs" / found.identity)
    assert record.before.evaluations["mixture"].right == stored_record(found.start, first).evaluations["default"].right
    assert [line[:22].strip() for line in out.splitlines() if "grpo  " in line] == ["before grpo", "grpo"]
    assert not (tmp_path / "runs" / found.identity / "start").exists()


def test_a_start_that_cannot_be_done_is_said_to_be_the_start(tmp_path, capsys):
    """Flags of training are the run's own: its start takes batches of 64."""
    assert main(["run", *RL, *TINY, "--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("tinylatent: its start cannot be done (a batch of 64 from")
    assert error.endswith("name one of your own by --start")


@pytest.mark.slow
def test_flags_of_training_are_said_to_be_the_runs_own(tmp_path, monkeypatch, capsys):
    quick(monkeypatch)
    assert main(["run", *RL, *TINY, "--results", str(tmp_path)]) == 0
    error = capsys.readouterr().err
    assert "flags of training are this run's own: for a start with other settings train one, and give --start" in error
    assert "first what it starts from, mnns/cot2 seed 0, 12 steps with settings of its own: " in error


def test_a_lost_checkpoint_of_a_finished_run_is_not_waited_for(run_folder, tmp_path, refused):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder, ignore=shutil.ignore_patterns("step-*"))
    for words in (["show", "mnns", "3", "1", "--checkpoint", str(folder)], ["run", RL[0], "--start", str(folder)]):
        assert f"{folder} has lost its checkpoint, though its run was finished: restore" in refused(words)
    (folder / "result.json").unlink()
    assert "has no checkpoint yet: let its training reach the first one" in refused(words)


def test_in_a_folder_of_its_own_it_brings_its_start(tmp_path, monkeypatch, capsys):
    quick(monkeypatch)
    out = tmp_path / "rl"
    assert main(["run", *RL, *TINY, "--out", str(out)]) == 0
    assert str(out / "start") in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["rl"]
    config = json.loads((out / "start" / "config.json").read_text())
    assert config == experiment(*RL, *TINY).start.to_json()
    assert main(["show", "mnns", "3", "1", "--checkpoint", str(out)]) == 0
    assert "oracle   grpo" in capsys.readouterr().out


@pytest.mark.parametrize("spelling", [lambda path: ["--start", path], lambda path: [f"--start={path}"]])
def test_a_given_start_decides_task_model_split_and_problems(train, run_folder, spelling):
    """Training and method are the recipe's, or as the flags say."""
    found = experiment(*RL, *spelling(str(run_folder)), "--seed", "5")
    start = experiment("mnns/cot2", *TINY, *SHORT)
    assert found.start == start
    assert (found.task, found.model, found.training.num_train) == (start.task, start.model, start.training.num_train)
    assert found.seeds == Seeds(split=0, init=5, order=5, sampling=5)
    assert found.training.learning_rate == recipe(RL[0]).training.learning_rate
    assert found.training.steps == 4


def test_a_start_on_some_problems_decides_how_many(train):
    folder = train("mnns/cot2", "--training.num-train", "8")
    found = experiment(*RL, "--start", str(folder))
    assert found.training.num_train == found.start.training.num_train == 8


def test_a_run_from_a_given_start(run_folder, tmp_path, capsys):
    assert main(["run", *RL, "--start", str(run_folder), "--out", str(tmp_path / "rl")]) == 0
    assert "before grpo" in capsys.readouterr().out
    config = json.loads((tmp_path / "rl" / "config.json").read_text())
    assert config["start"] == json.loads((run_folder / "config.json").read_text())
    assert not (tmp_path / "rl" / "start").exists()


CONTRADICTIONS = {
    "task": (["--task.digits", "4"], "--task.digits is 4, but the run in"),
    "model": (["--model.width", "32"], "--model.width is 32, but the run in"),
    "split": (["--split-seed", "7"], "--split-seed is 7, but the run in"),
    "problems": (["--training.num-train", "8"], "--training.num-train is 8, but the run in"),
}


@pytest.mark.parametrize(("flags", "said"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_flag_that_contradicts_the_start_is_named(flags, said, run_folder, refused, tmp_path):
    """4 and 32 are what the recipe has: a flag that is given counts, whatever the default is."""
    assert said in refused(["run", *RL, "--start", str(run_folder), "--out", str(tmp_path / "rl"), *flags])
    assert not (tmp_path / "rl").exists()


def test_a_start_that_is_no_run_is_refused(refused, tmp_path):
    assert "holds no run" in refused(["run", *RL, "--start", str(tmp_path / "nowhere")])
