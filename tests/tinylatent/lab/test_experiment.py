"""An experiment goes to JSON and back unchanged, and its identity stands for every field of it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tinylatent_tasks import MNNS

from tinylatent.core.files import read_lines
from tinylatent.core.identity import identity
from tinylatent.core.seeds import Seeds
from tinylatent.lab import experiment as lab
from tinylatent.lab import written
from tinylatent.lab.experiment import Experiment, device_named
from tinylatent.methods import METHODS, CoT2
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

FIRST = Path(__file__).resolve().parents[2] / "data/first_edition"
BASE = Experiment(MNNS(3, 1, 5), CoT2(), ModelConfig(16, 1, 2), Training(steps=10))
OTHER = {
    "task": {"digits": 2, "low": 2, "high": 6, "capacity": 4},
    "method": {"budget": 3, "rule": "nonnegative", "prefix": "self", "switch": 0.25},
    "model": {
        "width": 64,
        "layers": 3,
        "heads": 4,
        "norm": "post",
        "mlp": "relu",
        "experts": 2,
        "loops": 2,
        "init": "fan_in",
        "dropout": 0.1,
    },
    "training": {
        "steps": 11,
        "batch_size": 8,
        "learning_rate": 0.1,
        "warmup": 0.2,
        "schedule": "constant",
        "weight_decay": 0.3,
        "num_train": 50,
        "log_every": 7,
        "save_every": 9,
        "validate": 100,
        "enough": 0.5,
        "micro_batch": 3,
        "clip_norm": 1.0,
        "optimizer": "soap",
        "epsilon": 1e-6,
        "beta1": 0.8,
        "beta2": 0.9,
    },
    "seeds": {"split": 1, "init": 1, "order": 1, "sampling": 1},
}
"""Another value of every field."""


def with_field(part, name, value):
    """BASE with one field of one part changed."""
    return dataclasses.replace(BASE, **{part: dataclasses.replace(getattr(BASE, part), **{name: value})})


@pytest.mark.parametrize("name", METHODS)
def test_json_round_trip(name):
    for task in (MNNS(), MNNS(3, 2, 5, capacity=6)):
        whole = Experiment(task, METHODS[name](), ModelConfig(16, 1, 2), Training(steps=3), Seeds.all(4))
        values = json.loads(json.dumps(whole.to_json()))
        assert values == whole.to_json(), "nothing is lost in the file"
        assert Experiment.from_json(values) == whole
        assert Experiment.from_json(values).identity == whole.identity
        assert type(Experiment.from_json(values).method) is METHODS[name]


@dataclasses.dataclass(frozen=True)
class Paired(CoT2):
    """Has tuples inside a tuple."""

    name = "paired"
    pairs: tuple[tuple[int, int], ...] = ()


def test_tuples_inside_tuples_survive_the_round_trip(monkeypatch, unchecked):
    monkeypatch.setattr(written, "METHODS", {"paired": Paired})
    whole = dataclasses.replace(BASE, method=Paired(pairs=((1, 2), (3, 4))))
    again = Experiment.from_json(json.loads(json.dumps(whole.to_json())))
    assert again == whole
    assert json.loads(json.dumps(whole.to_json())) == whole.to_json()


def test_the_table_above_lists_every_field():
    for part, fields in OTHER.items():
        assert fields.keys() == {field.name for field in dataclasses.fields(getattr(BASE, part))}, part


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, fields in OTHER.items() for name in fields])
def test_every_field_changes_the_identity_and_survives_the_round_trip(part, name):
    changed = with_field(part, name, OTHER[part][name])
    assert changed.identity != BASE.identity
    assert Experiment.from_json(json.loads(json.dumps(changed.to_json()))) == changed


@pytest.mark.parametrize(
    ("part", "name"), [(part, name) for part in ("task", "method", "model", "training") for name in OTHER[part]]
)
def test_fields_are_written_only_where_they_say_something(part, name):
    """At their defaults, said or not, they stand in no file: a field that is added later changes no identity."""
    default = {each.name: each.default for each in dataclasses.fields(getattr(BASE, part))}[name]
    said, other = with_field(part, name, default), with_field(part, name, OTHER[part][name])
    assert name not in said.to_json()[part]
    assert other.to_json()[part][name] == OTHER[part][name]
    assert other.to_json()[part].keys() - said.to_json()[part].keys() == {name}


def test_what_an_experiment_writes():
    """Names of task and method, the versions, all seeds, and the settings that are not the defaults."""
    assert BASE.to_json() == {
        "version": 2,
        "task": {"name": "mnns", "digits": 3, "high": 5},
        "method": {"name": "cot2", "version": CoT2.version},
        "model": {"width": 16, "layers": 1},
        "training": {"steps": 10},
        "seeds": {"split": 0, "init": 0, "order": 0, "sampling": 0},
    }
    later = dataclasses.replace(BASE, start=BASE)
    assert later.to_json() == {**BASE.to_json(), "start": BASE.to_json()}
    assert Experiment.from_json(later.to_json()) == later
    assert BASE.identity == identity(BASE.to_json()) != later.identity


@pytest.mark.parametrize("study", ["mnns", "mnns-rl", "tasks"])
def test_a_configuration_of_the_first_edition_is_read(study):
    """All its fields are written out; the same experiment has another identity today."""
    for line in read_lines(FIRST / f"{study}.jsonl"):
        found = Experiment.from_json(line["experiment"])
        written = line["experiment"]["training"]
        assert found.training.learning_rate == written["rate"]
        assert (found.training.steps, found.training.batch_size) == (written["steps"], written["batch"])
        assert found.task.digits == line["experiment"]["task"]["digits"]
        assert Experiment.from_json(found.to_json()) == found
        assert found.identity != line["id"]


def test_methods_and_their_versions_change_the_identity(monkeypatch):
    identities = {dataclasses.replace(BASE, method=kind()).identity for kind in METHODS.values()}
    assert len(identities) == len(METHODS)
    before = BASE.identity
    monkeypatch.setattr(CoT2, "version", CoT2.version + 1)
    assert BASE.identity != before


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


NOT_ONE = {
    "nothing": {},
    "a list": [],
    **{f"no {part}": without(BASE.to_json(), part) for part in OTHER},
    "no name of a method": without(BASE.to_json(), "method", "name"),
    "no version of a method": without(BASE.to_json(), "method", "version"),
    "no name of a task": without(BASE.to_json(), "task", "name"),
    "another task": {**BASE.to_json(), "task": {"name": "chess"}},
    "another method": {**BASE.to_json(), "method": {"name": "telepathy", "version": 1}},
    "another field": {**BASE.to_json(), "model": {"depth": 3}},
    "no training": {**BASE.to_json(), "training": None},
    "a word for a number": {**BASE.to_json(), "training": {"steps": "ten"}},
    "a word for a seed": {**BASE.to_json(), "seeds": {"init": "0"}},
    "a truth for a rate": {**BASE.to_json(), "training": {"learning_rate": True}},
    "a fraction for a number of steps": {**BASE.to_json(), "training": {"steps": 2.0}},
    "another schedule": {**BASE.to_json(), "training": {"schedule": "steep"}},
    "nothing for a width": {**BASE.to_json(), "model": {"width": None}},
    "a word for a number of the task": {**BASE.to_json(), "task": {"name": "mnns", "digits": "3"}},
    "a word for a number of the method": {**BASE.to_json(), "method": {**BASE.to_json()["method"], "budget": "all"}},
    "a part too many": {**BASE.to_json(), "mood": "good"},
    "no object": None,
    "a part that is no object": {**BASE.to_json(), "task": "x"},
    "a start that is no object": {**BASE.to_json(), "start": ["x"]},
    "a long name of no setting": {**BASE.to_json(), "training": {"steps": 2, "x" * 5000: 1}},
    "a long name of no part": {**BASE.to_json(), "x" * 5000: {}},
    "half a character": {**BASE.to_json(), "training": {"schedule": "\ud800"}},
    "form 1 without a shape": without(BASE.to_json(), "version"),
}


@pytest.mark.parametrize("values", NOT_ONE.values(), ids=NOT_ONE)
def test_what_is_no_experiment_is_refused_in_words(values, unchecked):
    with pytest.raises(ValueError, match=r"not an experiment this version can read: .*; (expected|install)") as caught:
        Experiment.from_json(values)
    assert len(str(caught.value)) < 400


def test_a_value_of_another_type_is_named():
    values = {**BASE.to_json(), "training": {"learning_rate": True}}
    with pytest.raises(ValueError, match=r"training\.learning_rate is True \(Expected `float`, got `bool`\); expected"):
        Experiment.from_json(values)


def test_whole_numbers_stand_for_fractions(unchecked):
    values = {**BASE.to_json(), "training": {"learning_rate": 1, "clip_norm": 2}}
    found = Experiment.from_json(values)
    assert (found.training.learning_rate, found.training.clip_norm) == (1.0, 2.0)


class Unheard:
    """A type that JSON does not know."""


@dataclasses.dataclass(frozen=True)
class Odd(CoT2):
    """Its fields have types that cannot be checked."""

    name = "odd"
    own: Unheard | str = "x"
    nested: tuple[Unheard, ...] = ()
    plain: int = 1


def test_a_type_that_json_does_not_know_is_not_checked(monkeypatch, unchecked):
    monkeypatch.setattr(written, "METHODS", {"odd": Odd})
    whole = dataclasses.replace(BASE, method=Odd(own=3, nested=(1, 2)))
    assert Experiment.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    with pytest.raises(ValueError, match=r"method\.plain is 'y' \(Expected `int`, got `str`\)"):
        Experiment.from_json(dataclasses.replace(BASE, method=Odd(plain="y")).to_json())


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"can read: it has no 'seeds'; expected what config\.json holds"):
        Experiment.from_json(without(BASE.to_json(), "seeds"))


def test_a_form_of_a_newer_program_is_refused():
    with pytest.raises(ValueError, match=r"an experiment of form 3: this program reads 1 to 2"):
        Experiment.from_json({**BASE.to_json(), "version": 3})


def test_models_have_the_size_of_the_task_and_the_weights_of_the_seed():
    model = BASE.fresh()
    assert model.backbone.embedding.shape == (len(BASE.task.vocabulary), 16)
    assert model.backbone.pos_emb.shape == (BASE.task.positions, 16)
    assert torch.equal(model.backbone.embedding, BASE.fresh().backbone.embedding)
    reseeded = dataclasses.replace(BASE, seeds=Seeds(init=1))
    assert not torch.equal(model.backbone.embedding, reseeded.fresh().backbone.embedding)


def test_rows_of_the_parts():
    """Training and validation share no key; training.num_train limits the one, and the other to a quarter of it."""
    task = BASE.task
    train, validation = BASE.rows("train"), BASE.rows("validation")
    assert not set(task.key(train).tolist()) & set(task.key(validation).tolist())
    assert len(train) + len(validation) == 5**3
    few = dataclasses.replace(BASE, training=Training(num_train=40))
    assert (len(few.rows("train")), len(few.rows("validation"))) == (40, 10)


def test_devices_by_name(monkeypatch):
    for place in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(place, "is_available", lambda: False)
    assert device_named("cpu") == device_named("auto") == torch.device("cpu")
    for name in ("cuda", "mps"):
        with pytest.raises(ValueError, match=f"no {name.upper()} device found: use --device cpu, or "):
            device_named(name)
    for place, name in ((torch.backends.mps, "mps"), (torch.cuda, "cuda")):  # auto prefers CUDA
        monkeypatch.setattr(place, "is_available", lambda: True)
        assert device_named(name) == device_named("auto") == torch.device(name)
    assert device_named("mps") == torch.device("mps")
    assert device_named("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"unknown device 'abacus': expected auto, cpu, cuda or mps"):
        device_named("abacus")


def test_a_model_has_the_blocks_of_its_configuration():
    config = ModelConfig(8, 3, 1, norm="post", mlp="relu", experts=2, loops=2, init="fan_in", dropout=0.25)
    backbone = dataclasses.replace(BASE, model=config).fresh().backbone
    assert (len(backbone.blocks), backbone.loops, backbone.dropout, backbone.norm) == (3, 2, 0.25, None)
    assert backbone.blocks[0].mlp.router.shape == (2, 8)


@dataclasses.dataclass(frozen=True)
class Wordy(CoT2):
    """Needs two tokens and three steps more than the task has."""

    name = "wordy"
    extra_tokens = ("<begin>", "<end>")
    extra_steps = 3


def test_models_have_the_tokens_and_positions_that_the_method_adds():
    backbone = dataclasses.replace(BASE, method=Wordy()).fresh().backbone
    assert len(backbone.table) == len(BASE.task.vocabulary) + 2
    assert backbone.positions == BASE.task.positions + 3


def sized(count, task=MNNS(8)):  # noqa: B008 - a frozen value
    return Experiment(task, training=Training(num_train=count))


def test_more_problems_than_there_are_or_than_memory_holds_are_refused_before_they_are_drawn(monkeypatch):
    with pytest.raises(ValueError, match="there are 105 problems to train on: leave it out for all"):
        sized(106, MNNS(3, 1, 5)).rows("train")
    monkeypatch.setattr(MNNS, "split", lambda *_: pytest.fail("it was drawn"))
    with pytest.raises(ValueError, match=r"too many to list, so say how many to train on: try training\.num_train"):
        sized(None).rows("validation")
    with pytest.raises(ValueError, match="more than half of the memory here"):
        sized(10**15).rows("validation")


def test_all_problems_of_a_small_space_leave_all_others_for_validation():
    """A quarter of the training problems may be more than validation has."""
    assert len(sized(105, BASE.task).rows("train")) == 105
    assert len(sized(105, BASE.task).rows("validation")) == 20


def test_the_estimate_of_memory_is_that_of_rows_and_examples(monkeypatch):
    task, count = MNNS(8), 5000
    batch = task.batch(task.split("train", 0, count))
    found = lab._bytes_each(task) * count
    arrays = sum(array.nbytes for name, array in vars(batch).items() if name != "frontier_BTV") + 8 * 8 * count
    most = 12 * batch.chain_BT.size * int((batch.frontier_BTV > 0).sum(2).max())
    assert 0.7 * (arrays + most) < found < 1.01 * (arrays + most)
    monkeypatch.setattr(lab, "memory", lambda: 2.2 * found)
    assert len(sized(count, task).rows("train")) == count
    with pytest.raises(ValueError, match=r"num_train is 10000: that many problems of mnns take about 0 GB"):
        sized(2 * count, task).rows("train")
