"""Runs in folders: kept, refused where they do not fit, resumed, and loaded again, those of the first edition too."""

from dataclasses import replace

import pytest
import torch
from locks import locked_elsewhere
from tinylatent_tasks import MNNS

from tinylatent.cli.main import main
from tinylatent.core.environment import environment
from tinylatent.core.files import DamagedError, read_json, write_json
from tinylatent.core.seeds import Seeds
from tinylatent.lab import folders
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import load, train
from tinylatent.lab.measure import measure
from tinylatent.methods import CoT2, DiscreteCoT
from tinylatent.models.decoder import ModelConfig
from tinylatent.training import loop
from tinylatent.training.checkpoints import (
    CONFIG,
    METRICS,
    WEIGHTS,
    find_checkpoint,
    load_weights,
    read_metrics,
    save_checkpoint,
)
from tinylatent.training.config import Training

TASK, MODEL = MNNS(2, 1, 4), ModelConfig(8, 1, 1)
SEEDS = Seeds.all(3)


def experiment(method=None, task=TASK, seeds=SEEDS, **recipe):
    return Experiment(task, method or DiscreteCoT(), MODEL, Training(**{"steps": 6, "batch_size": 4, **recipe}), seeds)


def quiet(text):
    pass


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(experiment())
    assert not list(tmp_path.iterdir())


def test_a_folder_changes_no_weight(tmp_path):
    alone, kept = train(experiment()), train(experiment(save_every=2), tmp_path, say=quiet)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(kept.state_dict()[name], tensor)


# ---------------------------------------------------------------------------------------------------------------------
# Refused


def test_a_folder_of_another_experiment_is_refused(tmp_path):
    train(experiment(), tmp_path, say=quiet)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for other in (
        experiment(CoT2()),
        experiment(learning_rate=0.1),
        experiment(seeds=Seeds.all(4)),
        experiment(task=MNNS(3)),
    ):
        with pytest.raises(ValueError, match="holds another experiment"):
            train(other, tmp_path, say=quiet)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 0.1}, r"training\.learning_rate is 0\.005 there and 0\.1 here\): choose another folder$"),
        ({"steps": 5}, r"training\.steps is 6 there and 5 here\): choose another folder$"),
        (
            {"steps": 9},
            r"training\.steps is 6 there and 9 here\): choose another folder; to train a finished run further, start "
            r"another from it, as --start .*/run does$",
        ),
        (
            {"steps": 9, "warmup": 0.5, "batch_size": 3, "clip_norm": 1.0, "log_every": 2},
            r"\(training\.steps is 6 there and 9 here; training\.batch_size is 4 there and 3 here; training\.warmup is "
            r"0\.05 there and 0\.5 here; and 2 more\)",
        ),
    ],
)
def test_what_differs_in_a_folder_of_another_experiment_is_named(tmp_path, change, said):
    folder = tmp_path / "run"
    train(experiment(), folder, say=quiet)
    with pytest.raises(ValueError, match=said):
        train(experiment(**change), folder, say=quiet)


def test_another_method_task_or_start_is_named(tmp_path):
    start = experiment()
    train(start, tmp_path / "run", say=quiet)
    for other, said in (
        (experiment(CoT2()), r"method\.name is discrete there and cot2 here"),
        (experiment(task=MNNS(3)), r"task\.digits is 2 there and 3 here"),
        (replace(start, start=start), rf"\(start is none there and {start.identity} here\)"),
        (replace(start, seeds=Seeds.all(4)), r"seeds\.split is 3 there and 4 here; "),
    ):
        with pytest.raises(ValueError, match=said):
            train(other, tmp_path / "run", say=quiet)


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no config"):
        train(experiment(), tmp_path, say=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_batch_larger_than_the_part_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"a batch of 64 from \d+ training problems: lower training\.batch_size"):
        train(experiment(batch_size=64), tmp_path / "run", say=quiet)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Loaded


def test_load_gives_back_experiment_and_weights(tmp_path):
    whole = experiment(CoT2(budget=2), MNNS(2, 1, 4, capacity=3))
    model = train(whole, tmp_path, say=quiet)
    assert read_json(tmp_path / CONFIG) == whole.to_json()
    experiment_again, model_again = load(tmp_path)
    assert experiment_again == whole
    for name, tensor in model.state_dict().items():
        assert torch.equal(model_again.state_dict()[name], tensor)


def first_edition(whole):
    """The config.json that the first edition wrote for an experiment: other names, every setting, no version."""
    names = {"capacity": "room", "batch_size": "batch", "learning_rate": "rate", "num_train": "problems"}
    later = ("micro_batch", "clip_norm", "validate", "norm", "mlp", "experts", "loops", "dropout")
    values = {}
    for part in ("task", "method", "model", "training", "seeds"):
        config = getattr(whole, part)
        found = {names.get(name, name): value for name, value in vars(config).items() if name not in later}
        called = {"task": {"name": TASK.name}, "method": {"name": whole.method.name, "version": whole.method.version}}
        values["shape" if part == "model" else part] = {**called.get(part, {}), **found}
    return values


def test_a_run_of_the_first_edition_is_loaded(tmp_path):
    """Its checkpoint vouches for config.json as it was written then."""
    whole = experiment(CoT2(budget=2), MNNS(2, 1, 4, capacity=3), num_train=8)
    write_json(tmp_path / CONFIG, first_edition(whole))
    assert read_json(tmp_path / CONFIG)["training"]["rate"] == whole.training.learning_rate
    model = train(whole, tmp_path, say=quiet)
    experiment_again, model_again = load(tmp_path)
    assert experiment_again == whole
    for name, tensor in model.state_dict().items():
        assert torch.equal(model_again.state_dict()[name], tensor)


def test_load_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        load(tmp_path / "nowhere")
    write_json(tmp_path / CONFIG, experiment().to_json())
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        load(tmp_path)


def test_load_refuses_damage_and_other_versions(tmp_path):
    train(experiment(), tmp_path, say=quiet)
    config = read_json(tmp_path / CONFIG)
    write_json(tmp_path / CONFIG, {**config, "model": {"width": 16, "layers": 1, "heads": 1}})
    with pytest.raises(DamagedError, match=r"config\.json was changed"):
        load(tmp_path)
    write_json(tmp_path / CONFIG, config)
    saved, other = find_checkpoint(tmp_path), replace(experiment(), model=ModelConfig(16, 1, 1))
    with pytest.raises(DamagedError, match="does not fit the model"):
        load_weights(saved, other.fresh())
    write_json(tmp_path / CONFIG, {**config, "method": {"name": "telepathy", "version": 1}})
    with pytest.raises(ValueError, match="telepathy"):
        load(tmp_path)
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(DamagedError, match=r"config\.json"):
        load(tmp_path)
    write_json(tmp_path / CONFIG, config)
    weights = next(tmp_path.rglob(WEIGHTS))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=r"weights\.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config.pop("model"), "it has no 'model'"),
        (lambda config: config["training"].update(steps="six"), r"training\.steps is 'six'"),
        (lambda config: config["training"].update(steps=-6), r"training\.steps is -6"),
        (lambda config: config["task"].update(digits=None), r"task\.digits is None"),
        (lambda config: config["seeds"].update(split=[3]), r"seeds\.split is \[3\]"),
        (lambda config: config["method"].update(name="telepathy"), "method 'telepathy' is not installed"),
        (lambda config: config["model"].update(wings=2), "wings"),
    ],
)
def test_what_is_wrong_in_config_json_is_named_by_file_and_setting(tmp_path, change, said):
    train(experiment(), tmp_path, say=quiet)
    config = read_json(tmp_path / CONFIG)
    change(config)
    write_json(tmp_path / CONFIG, config)
    for work in (load, lambda folder: train(experiment(), folder, say=quiet)):
        with pytest.raises(ValueError, match=rf"^{tmp_path / CONFIG}: .*{said}"):
            work(tmp_path)


def test_what_another_process_writes_is_not_to_be_deleted(tmp_path):
    """The advice to start over is for those whom nobody disturbs."""
    train(experiment(), tmp_path, say=quiet)
    (tmp_path / CONFIG).write_text("{")
    with locked_elsewhere(tmp_path), pytest.raises(DamagedError, match=r"another process writes to .*: try again"):
        load(tmp_path)
    with pytest.raises(
        DamagedError, match=f"config.json cannot be read .*: delete {tmp_path} to start over, or restore"
    ):
        load(tmp_path)


def test_a_checkpoint_that_is_replaced_while_it_is_loaded_is_loaded_anew(tmp_path, monkeypatch):
    """Between the check of its checksums and the reading of its weights."""
    whole = experiment(save_every=2)
    train(whole, tmp_path, say=quiet)

    def replaced(saved, model):
        monkeypatch.undo()
        save_checkpoint(tmp_path, 7, experiment(seeds=Seeds.all(9)).fresh(), None)
        load_weights(saved, model)

    monkeypatch.setattr(folders, "load_weights", replaced)
    _, model = load(tmp_path)
    for tensor, other in zip(model.parameters(), experiment(seeds=Seeds.all(9)).fresh().parameters(), strict=True):
        assert torch.equal(tensor, other)


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong on the way


def test_what_killed_writers_left_is_cleared(tmp_path):
    """As soon as another writes to the folder, were it only to find that all is done."""
    train(experiment(), tmp_path, say=quiet)
    left = [tmp_path / ".step-abc", tmp_path / ".result.json.abcd_123.tmp"]
    left[0].mkdir()
    left[1].touch()
    train(experiment(), tmp_path, say=quiet)
    assert not any(path.exists() for path in left)


@pytest.mark.usefixtures("unchecked")
def test_lost_metrics_keep_nobody_from_going_on(tmp_path):
    """Whoever deletes them goes on from the weights, and is told which lines are lost."""
    whole, remarks = experiment(save_every=2, log_every=1), []

    def stop(step, loss):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(whole, tmp_path / "run", on_progress=stop, say=quiet)
    train(whole, tmp_path / "whole", say=quiet)
    (tmp_path / "run" / METRICS).write_text("")
    with pytest.raises(DamagedError, match=r"its lines up to step 4 differ .* delete this one file to go on"):
        train(whole, tmp_path / "run", say=remarks.append)
    (tmp_path / "run" / METRICS).unlink()
    train(whole, tmp_path / "run", say=remarks.append)
    assert "metrics.jsonl is missing: going on from the weights of step 4; its lines so far are lost, " in remarks[0]
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [5, 6]
    ends = [find_checkpoint(tmp_path / name).folder / WEIGHTS for name in ("run", "whole")]
    assert ends[0].read_bytes() == ends[1].read_bytes()


@pytest.mark.parametrize("validate", [0, 256])
def test_a_run_that_diverged_leaves_no_result(tmp_path, capsys, validate):
    """Status 2 and one line; nothing is there that reads as finished."""
    flags = ["--training.steps", "1", "--training.learning-rate", "1e38", "--training.batch-size", "16"]
    flags += ["--training.warmup", "0", "--training.validate", str(validate), "--out", str(tmp_path / "run")]
    assert main(["run", "mnns/cot2", "--task.digits", "3", *flags]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "not finite" in said.err
    assert "training diverged; lower" in said.err
    assert not list(tmp_path.rglob("result.json"))
    assert not list(tmp_path.rglob(WEIGHTS))


# ---------------------------------------------------------------------------------------------------------------------
# Where it was trained, and from what


@pytest.mark.parametrize(("commits", "known"), [(("one", "one"), ["one"]), (("one", "two"), ["one", "two"])])
def test_a_run_knows_every_environment_it_was_trained_in(commits, known, tmp_path, monkeypatch):
    """Of all its sittings, once each; where it was measured stands beside them."""

    def kill(*after_the_first):
        monkeypatch.undo()
        raise KeyboardInterrupt

    whole = experiment(save_every=2)
    for sitting, commit in enumerate(commits):
        monkeypatch.setattr(
            loop, "environment", lambda device, commit=commit: {**environment(device), "commit": commit}
        )
        if sitting == 0:
            monkeypatch.setattr(loop._Log, "write", kill)
            with pytest.raises(KeyboardInterrupt):
                train(whole, tmp_path, say=quiet)
    saved = find_checkpoint(tmp_path)
    assert (saved.step, [each["commit"] for each in saved.manifest["environments"]]) == (4, ["one"])
    record = measure(whole, tmp_path)
    assert [each["commit"] for each in record.environments.training] == known
    assert record.environments.measuring == environment("cpu")


def test_no_steps_are_a_model_as_its_start_left_it(tmp_path, unchecked):
    """For methods that only search; without a start it is refused."""
    start = Experiment(task=MNNS(3, 1, 3), training=Training(steps=3, batch_size=4))
    whole = replace(start, training=replace(start.training, steps=0), start=start)
    record = measure(whole, tmp_path / "run")
    trained, begun = load(tmp_path / "run")[1], load(tmp_path / "run" / "start")[1]
    for got, expected in zip(trained.parameters(), begun.parameters(), strict=True):
        assert torch.equal(got, expected)
    assert record.evaluations["default"].right == record.before.evaluations["default"].right
    with pytest.raises(ValueError, match="steps is 0: expected at least 1, or a run to start from"):
        replace(whole, start=None)
