"""The training loop does what it says: rates, order, offsets, optimizer, files, and refusals in plain words."""

import itertools
import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from tasks import MNNS
from tinylatent import storage
from tinylatent.experiment import Experiment, Training
from tinylatent.methods import CoT2, Direct, DiscreteCoT, Moment
from tinylatent.problems import Problems
from tinylatent.seeds import Seeds
from tinylatent.training import batches, load, make_optimizer, offsets, set_rate, train
from tinylatent.transformer import Shape

TASK, SHAPE = MNNS(2, 1, 4), Shape(8, 1, 1)
SEEDS = Seeds.all(3)


def experiment(method=None, task=TASK, seeds=SEEDS, **recipe):
    return Experiment(task, method or DiscreteCoT(), SHAPE, Training(**{"steps": 6, "batch": 4, **recipe}), seeds)


def quiet(text):
    pass


@dataclass(frozen=True)
class Spy(Direct):
    """Answers directly, writes down what it was given, and can break the loss at one step."""

    seen: list = field(default_factory=list)
    broken: int | None = None

    def loss(self, model, problems, moment):
        self.seen.append((problems, moment))
        return super().loss(model, problems, moment) * (math.nan if moment.step == self.broken else 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# Learning rate


def rates(recipe):
    """The rate of every step, as the optimizer would use it."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=123.0)
    values = []
    for step in range(recipe.steps):
        set_rate(optimizer, recipe, step, recipe.steps)
        values.append(optimizer.param_groups[0]["lr"])
    return values


def test_rate_rises_in_a_line_and_falls_along_half_a_cosine():
    values = rates(Training(steps=20, rate=0.4, warmup=0.2))
    assert values[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert values[12] == pytest.approx(0.2), "half way down"
    assert values[8] == pytest.approx(0.4 * (2 + math.sqrt(2)) / 4), "a quarter of the way: cos(pi / 4)"
    assert all(a >= b for a, b in itertools.pairwise(values[4:]))
    assert 0 < values[-1] < 0.01


@pytest.mark.parametrize("recipe", [Training(steps=1), Training(steps=3, warmup=0.0), Training(steps=4, warmup=0.99)])
def test_rate_is_positive_and_reaches_the_peak_in_the_shortest_runs(recipe):
    values = rates(recipe)
    assert max(values) == recipe.rate
    assert min(values) > 0


# ---------------------------------------------------------------------------------------------------------------------
# Order and offsets


@pytest.mark.parametrize(("count", "batch"), [(12, 4), (13, 4), (5, 5), (7, 1), (9, 8)])
def test_an_epoch_holds_every_row_at_most_once_and_leaves_out_the_ragged_end(count, batch):
    per_epoch = count // batch
    order = batches(count, batch, 0, SEEDS)
    epochs = [torch.cat(list(itertools.islice(order, per_epoch))) for _ in range(4)]
    for rows in epochs:
        assert len(rows) == per_epoch * batch
        assert len(rows.unique()) == len(rows)
        assert 0 <= rows.min() <= rows.max() < count
    assert len({tuple(rows.tolist()) for rows in epochs}) == 4, "every epoch has an order of its own"


def test_over_many_epochs_no_row_is_left_out():
    seen = torch.cat(list(itertools.islice(batches(9, 8, 0, SEEDS), 60)))
    assert len(seen.unique()) == 9


@pytest.mark.parametrize("first", range(11))
def test_batches_resume_at_any_step(first):
    whole = itertools.islice(batches(13, 4, 0, SEEDS), first, 15)
    assert [rows.tolist() for rows in whole] == [
        rows.tolist() for rows in itertools.islice(batches(13, 4, first, SEEDS), 15 - first)
    ]


def test_offsets_stay_in_range_and_change_with_step_and_seed():
    drawn = [offsets(200, 3, SEEDS, step) for step in range(4)]
    for offset_B in drawn:
        assert sorted(offset_B.unique().tolist()) == [0, 1, 2, 3]
    assert len({tuple(offset_B.tolist()) for offset_B in drawn}) == 4
    assert torch.equal(drawn[1], offsets(200, 3, SEEDS, 1))
    assert not torch.equal(drawn[1], offsets(200, 3, Seeds.all(4), 1))


@pytest.mark.parametrize(("room", "spare"), [(None, 0), (2, 0), (3, 2), (5, 6)])
def test_offsets_are_drawn_only_where_there_is_room_to_spare(room, spare):
    """The largest offset puts the last slot where that of the longest problem is: <bos>, digits, all words but one."""
    spy = Spy()
    train(experiment(spy, MNNS(2, 1, 4, room=room), steps=40))
    drawn = [problems.offset_B for problems, _ in spy.seen]
    if spare == 0:
        assert drawn == [None] * 40
    else:
        assert torch.cat(drawn).unique().tolist() == list(range(spare + 1))
        longest = Problems.upload(MNNS(room, 1, 4).batch([[1] * room])).slots
        assert spare + spy.seen[0][0].slots == longest


def test_moments_count_the_steps():
    spy = Spy()
    train(experiment(spy))
    assert [moment for _, moment in spy.seen] == [
        Moment(step, 6, SEEDS.derive("sampling", "train")) for step in range(6)
    ]


def test_every_batch_comes_from_the_training_part_in_the_order_of_its_seed():
    spy = Spy()
    whole = experiment(spy)
    train(whole)
    prompt_PN = torch.from_numpy(TASK.batch(whole.rows("train")).prompt_BN)
    order = batches(len(prompt_PN), 4, 0, SEEDS)
    for problems, _ in spy.seen:
        assert torch.equal(problems.prompt_BN, prompt_PN[next(order)])


# ---------------------------------------------------------------------------------------------------------------------
# Optimizer


def test_training_is_adamw_by_hand():
    """The loop written again with torch's optimizer over the separate parameters: weights equal to 1e-6."""
    whole = experiment(CoT2(), steps=8, rate=0.01, weight_decay=0.3)
    trained = train(whole)
    model, rows = whole.model(), whole.rows("train")
    problems = Problems.upload(TASK.batch(rows))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.3)
    order = batches(len(rows), 4, 0, SEEDS)
    for step in range(8):
        set_rate(optimizer, whole.training, step, 8)
        optimizer.zero_grad()
        whole.method.loss(model, problems.rows(next(order)), Moment(step, 8, 0)).backward()
        for parameter in model.parameters():  # what no loss reaches is decayed like the rest
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        optimizer.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)


def test_making_the_optimizer_leaves_the_weights_as_they_are():
    whole = experiment()
    model, fresh = whole.model(), whole.model()
    make_optimizer(model, whole.training)
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


# ---------------------------------------------------------------------------------------------------------------------
# Files and words


def test_metrics_and_ticks_tell_the_same(tmp_path):
    ticks = []
    whole = experiment(steps=7, log_every=3)
    train(whole, tmp_path, tick=lambda *told: ticks.append(told), say=quiet)
    records = storage.read_lines(tmp_path / storage.METRICS)
    assert ticks[0][0] == 0
    assert math.isnan(ticks[0][1])
    assert ticks[1:] == [(record["step"], record["loss"]) for record in records]
    assert [record["step"] for record in records] == [3, 6, 7]
    values = rates(whole.training)
    assert [record["rate"] for record in records] == [values[2], values[5], values[6]]
    assert all(record["problems_per_s"] > 0 for record in records)


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


def test_a_diverging_loss_is_refused_and_not_recorded(tmp_path):
    """The loss is no number at the fourth step: metrics end at the third, and no checkpoint follows."""
    with pytest.raises(ValueError, match=r"the loss is nan at step 4: training diverged; lower training\.rate"):
        train(experiment(Spy(broken=3), log_every=1), tmp_path, say=quiet)
    assert [record["step"] for record in storage.read_lines(tmp_path / storage.METRICS)] == [1, 2, 3]
    assert storage.find_checkpoint(tmp_path) is None


def test_a_rate_beyond_all_measure_is_refused():
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d+: training diverged"):
        train(experiment(rate=1e30, log_every=1))


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
    storage.write_json(tmp_path / "config.json", experiment().to_json())
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        load(tmp_path)


def test_load_refuses_damage_and_other_versions(tmp_path):
    train(experiment(), tmp_path, say=quiet)
    config = storage.read_json(tmp_path / "config.json")
    storage.write_json(tmp_path / "config.json", {**config, "shape": {"width": 16, "layers": 1, "heads": 1}})
    with pytest.raises(storage.DamagedError, match=r"config\.json was changed"):
        load(tmp_path)
    storage.write_json(tmp_path / "config.json", config)
    saved, other = storage.find_checkpoint(tmp_path), replace(experiment(), shape=Shape(16, 1, 1))
    with pytest.raises(storage.DamagedError, match="does not fit the model"):
        storage.load_weights(saved, other.model())
    storage.write_json(tmp_path / "config.json", {**config, "method": {"name": "telepathy", "version": 1}})
    with pytest.raises(ValueError, match="telepathy"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(storage.DamagedError, match=r"config\.json"):
        load(tmp_path)
    storage.write_json(tmp_path / "config.json", config)
    weights = next(tmp_path.rglob(storage.WEIGHTS))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(storage.DamagedError, match=r"weights\.safetensors"):
        load(tmp_path)
