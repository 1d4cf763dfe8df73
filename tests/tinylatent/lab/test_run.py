"""Runs in folders: kept, refused where they do not fit, and loaded again."""

from dataclasses import replace

import pytest
import torch

from tasks import MNNS
from tinylatent.core.files import DamagedError, read_json, write_json
from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.measure import measure
from tinylatent.lab.run import load, train
from tinylatent.methods import CoT2, DiscreteCoT
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.checkpoints import WEIGHTS, find_checkpoint, load_weights
from tinylatent.training.config import Training

TASK, SHAPE = MNNS(2, 1, 4), ModelConfig(8, 1, 1)
SEEDS = Seeds.all(3)


def experiment(method=None, task=TASK, seeds=SEEDS, **recipe):
    return Experiment(task, method or DiscreteCoT(), SHAPE, Training(**{"steps": 6, "batch": 4, **recipe}), seeds)


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


def test_a_folder_of_another_experiment_is_refused(tmp_path):
    train(experiment(), tmp_path, say=quiet)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for other in (experiment(CoT2()), experiment(rate=0.1), experiment(seeds=Seeds.all(4)), experiment(task=MNNS(3))):
        with pytest.raises(ValueError, match="holds another experiment"):
            train(other, tmp_path, say=quiet)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no config"):
        train(experiment(), tmp_path, say=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_batch_larger_than_the_part_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"a batch of 64 from \d+ training problems: lower training\.batch"):
        train(experiment(batch=64), tmp_path / "run", say=quiet)
    assert not (tmp_path / "run").exists()


def test_load_gives_back_experiment_and_weights(tmp_path):
    whole = experiment(CoT2(budget=2), MNNS(2, 1, 4, room=3))
    model = train(whole, tmp_path, say=quiet)
    experiment_again, model_again = load(tmp_path)
    assert experiment_again == whole
    for name, tensor in model.state_dict().items():
        assert torch.equal(model_again.state_dict()[name], tensor)


def test_load_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        load(tmp_path / "nowhere")
    write_json(tmp_path / "config.json", experiment().to_json())
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        load(tmp_path)


def test_load_refuses_damage_and_other_versions(tmp_path):
    train(experiment(), tmp_path, say=quiet)
    config = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", {**config, "shape": {"width": 16, "layers": 1, "heads": 1}})
    with pytest.raises(DamagedError, match=r"config\.json was changed"):
        load(tmp_path)
    write_json(tmp_path / "config.json", config)
    saved, other = find_checkpoint(tmp_path), replace(experiment(), shape=ModelConfig(16, 1, 1))
    with pytest.raises(DamagedError, match="does not fit the model"):
        load_weights(saved, other.model())
    write_json(tmp_path / "config.json", {**config, "method": {"name": "telepathy", "version": 1}})
    with pytest.raises(ValueError, match="telepathy"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DamagedError, match=r"config\.json"):
        load(tmp_path)
    write_json(tmp_path / "config.json", config)
    weights = next(tmp_path.rglob(WEIGHTS))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=r"weights\.safetensors"):
        load(tmp_path)


def test_no_steps_are_a_model_as_its_start_left_it(tmp_path, unchecked):
    """For methods that only search; without a start it is refused."""
    start = Experiment(task=MNNS(3, 1, 3), training=Training(steps=3, batch=4))
    whole = replace(start, training=replace(start.training, steps=0), start=start)
    record = measure(whole, tmp_path / "run")
    trained, begun = load(tmp_path / "run")[1], load(tmp_path / "run" / "start")[1]
    for got, expected in zip(trained.parameters(), begun.parameters(), strict=True):
        assert torch.equal(got, expected)
    assert record["evaluations"]["itself"]["right"] == record["before"]["evaluations"]["itself"]["right"]
    with pytest.raises(ValueError, match="steps is 0: expected at least 1, or a run to start from"):
        replace(whole, start=None)
