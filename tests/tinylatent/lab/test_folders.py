"""Runs in folders: kept, refused where they do not fit, resumed, and loaded again, those of the first edition too."""

from dataclasses import replace

import pytest
import torch
from tinylatent_tasks import MNNS

from tinylatent.core.environment import environment
from tinylatent.core.files import DamagedError, read_json, write_json
from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import load, train
from tinylatent.lab.measure import measure
from tinylatent.methods import CoT2, DiscreteCoT
from tinylatent.models.decoder import ModelConfig
from tinylatent.training import loop
from tinylatent.training.checkpoints import CONFIG, WEIGHTS, find_checkpoint, load_weights
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
    later = ("micro_batch", "clip_norm", "norm", "mlp", "experts", "loops", "dropout")
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
