"""An experiment goes to JSON and back unchanged, and its identity stands for every field of it."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch

from tasks import MNNS
from tinylatent.core.files import read_lines
from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment, device_named
from tinylatent.methods import METHODS, CoT2
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

RESULTS = Path(__file__).resolve().parents[3] / "results"
BASE = Experiment(MNNS(3, 1, 5), CoT2(), ModelConfig(16, 1, 2), Training(steps=10))
OTHER = {
    "task": {"digits": 2, "low": 2, "high": 6, "room": 4},
    "shape": {
        "width": 32,
        "layers": 2,
        "heads": 4,
        "norm": "post",
        "mlp": "relu",
        "experts": 2,
        "loops": 2,
        "dropout": 0.1,
    },
    "training": {
        "steps": 11,
        "batch": 8,
        "rate": 0.1,
        "warmup": 0.2,
        "schedule": "constant",
        "weight_decay": 0.3,
        "problems": 50,
        "log_every": 7,
        "save_every": 9,
        "micro_batch": 3,
        "clip_norm": 1.0,
    },
    "seeds": {"split": 1, "init": 1, "order": 1, "sampling": 1},
    "method": {"budget": 3, "rule": "nonnegative", "prefix": "self", "switch": 0.25},
}


LATER = {"shape": ("norm", "mlp", "experts", "loops", "dropout"), "training": ("micro_batch", "clip_norm")}
"""Fields that the first edition's records lack."""


@pytest.mark.parametrize("name", METHODS)
def test_json_round_trip(name):
    for task in (MNNS(), MNNS(3, 2, 5, room=6)):
        whole = Experiment(task, METHODS[name](), ModelConfig(16, 1, 2), Training(steps=3), Seeds.all(4))
        values = json.loads(json.dumps(whole.to_json()))
        assert values == whole.to_json(), "nothing is lost in the file"
        assert Experiment.from_json(values) == whole
        assert Experiment.from_json(values).identity == whole.identity
        assert type(Experiment.from_json(values).method) is METHODS[name]


def test_the_table_above_lists_every_field():
    for part, fields in OTHER.items():
        assert fields.keys() == {field.name for field in dataclasses.fields(getattr(BASE, part))}, part


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, fields in OTHER.items() for name in fields])
def test_every_field_changes_the_identity_and_survives_the_round_trip(part, name):
    changed = dataclasses.replace(BASE, **{part: dataclasses.replace(getattr(BASE, part), **{name: OTHER[part][name]})})
    assert changed.identity != BASE.identity
    assert Experiment.from_json(json.loads(json.dumps(changed.to_json()))) == changed


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in LATER.items() for name in names])
def test_fields_that_came_later_are_written_only_where_they_say_something(part, name):
    """At their defaults, said or not, they stand in no file, so that earlier runs keep their identities."""
    assert name not in BASE.to_json()[part]
    default = {each.name: each.default for each in dataclasses.fields(getattr(BASE, part))}[name]
    said = dataclasses.replace(BASE, **{part: dataclasses.replace(getattr(BASE, part), **{name: default})})
    assert (said.to_json(), said.identity) == (BASE.to_json(), BASE.identity)
    changed = dataclasses.replace(BASE, **{part: dataclasses.replace(getattr(BASE, part), **{name: OTHER[part][name]})})
    assert changed.to_json()[part][name] == OTHER[part][name]
    assert changed.to_json()[part].keys() - BASE.to_json()[part].keys() == {name}


@pytest.mark.parametrize("study", ["mnns", "mnns-rl", "tasks"])
def test_runs_of_the_first_edition_are_known_by_the_identities_they_had(study):
    """One of each method, with what it starts from: the same values, the same hash, a method of the same fields."""
    records = {each["experiment"]["method"]["name"]: each for each in read_lines(RESULTS / study / "runs.jsonl")}
    assert records
    for record in records.values():
        found = Experiment.from_json(record["experiment"])
        assert found.to_json() == record["experiment"]
        assert found.identity == record["id"]


def test_methods_and_their_versions_change_the_identity(monkeypatch):
    identities = {dataclasses.replace(BASE, method=kind()).identity for kind in METHODS.values()}
    assert len(identities) == len(METHODS)
    before = BASE.identity
    monkeypatch.setattr(CoT2, "version", CoT2.version + 1)
    assert BASE.identity != before


def test_identity_is_a_hash_of_the_values_whatever_their_order_and_process():
    """Python's own hash would differ from process to process; this one can be computed by anyone from config.json."""
    text = json.dumps(BASE.to_json(), sort_keys=True).encode()
    assert BASE.identity == hashlib.blake2b(text, digest_size=6).hexdigest()
    again = Experiment(MNNS(3, 1, 5), CoT2(), ModelConfig(16, 1, 2), Training(steps=10))
    assert again.identity == BASE.identity


def test_another_version_of_a_method_is_refused():
    values = BASE.to_json()
    now = values["method"]["version"]
    values["method"]["version"] = now + 1
    with pytest.raises(ValueError, match=f"written by version {now + 1} of method cot2, this is {now}: train it again"):
        Experiment.from_json(values)


def without(values, *path):
    """A copy of nested values that lacks one entry."""
    copy = json.loads(json.dumps(values))
    inner = copy
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return copy


@pytest.mark.parametrize(
    "values",
    [
        {},
        *(without(BASE.to_json(), part) for part in OTHER),
        without(BASE.to_json(), "method", "name"),
        without(BASE.to_json(), "method", "version"),
        without(BASE.to_json(), "task", "name"),
        {**BASE.to_json(), "task": {"name": "chess"}},
        {**BASE.to_json(), "method": {"name": "telepathy", "version": 1}},
        {**BASE.to_json(), "shape": {"depth": 3}},
        {**BASE.to_json(), "training": None},
    ],
    ids=lambda values: json.dumps(values)[:30],
)
def test_what_is_no_experiment_is_refused_in_words(values):
    with pytest.raises(ValueError, match="not an experiment this version can read"):
        Experiment.from_json(values)


def test_models_have_the_size_of_the_task_and_the_weights_of_the_seed():
    model = BASE.model()
    assert model.backbone.embedding.shape == (len(BASE.task.vocabulary), 16)
    assert model.backbone.pos_emb.shape == (BASE.task.positions, 16)
    assert torch.equal(model.backbone.embedding, BASE.model().backbone.embedding)
    reseeded = dataclasses.replace(BASE, seeds=Seeds(init=1))
    assert not torch.equal(model.backbone.embedding, reseeded.model().backbone.embedding)


def test_rows_of_the_parts():
    """Training and validation share no key; training.problems limits the one, and the other to a quarter of it."""
    task = BASE.task
    train, validation = BASE.rows("train"), BASE.rows("validation")
    assert not set(task.key(train).tolist()) & set(task.key(validation).tolist())
    assert len(train) + len(validation) == 5**3
    few = dataclasses.replace(BASE, training=Training(problems=40))
    assert (len(few.rows("train")), len(few.rows("validation"))) == (40, 10)


def test_devices_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_named("cpu") == device_named("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="no CUDA device found: use --device cpu"):
        device_named("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_named("cuda") == device_named("auto") == torch.device("cuda")
    assert device_named("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"unknown device 'abacus': expected auto, cpu or cuda"):
        device_named("abacus")


def test_a_model_has_the_blocks_of_its_shape():
    shape = ModelConfig(8, 3, 1, norm="post", mlp="relu", experts=2, loops=2, dropout=0.25)
    backbone = dataclasses.replace(BASE, shape=shape).model().backbone
    assert (len(backbone.blocks), backbone.loops, backbone.dropout, backbone.norm) == (3, 2, 0.25, None)
    assert backbone.blocks[0].mlp.router.shape == (2, 8)


@dataclasses.dataclass(frozen=True)
class Wordy(CoT2):
    """Needs two tokens and three steps more than the task has."""

    name = "wordy"
    extra_tokens = ("<begin>", "<end>")
    extra_steps = 3


def test_models_have_the_tokens_and_positions_that_the_method_adds():
    backbone = dataclasses.replace(BASE, method=Wordy()).model().backbone
    assert len(backbone.table) == len(BASE.task.vocabulary) + 2
    assert backbone.positions == BASE.task.positions + 3
