"""The training loop does what it says: order, offsets, states, stages, parts of batches, dropout, and what it logs."""

import itertools
import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from tinylatent_tasks import MNNS

from tinylatent.core.files import read_lines
from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import train
from tinylatent.methods import GRPO, CoT2, Direct, DiscreteCoT, PauseTokens
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import Loss, ParameterGroup, TrainState
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.checkpoints import METRICS, find_checkpoint
from tinylatent.training.config import Training
from tinylatent.training.loop import batch_indices, batches, fit, offsets, train_step, within
from tinylatent.training.optimizer import make_optimizer, set_learning_rate

TASK, MODEL = MNNS(2, 1, 4), ModelConfig(8, 1, 1)
SEEDS = Seeds.all(3)


def experiment(method=None, task=TASK, config=MODEL, seeds=SEEDS, **recipe):
    return Experiment(task, method or DiscreteCoT(), config, Training(**{"steps": 6, "batch_size": 4, **recipe}), seeds)


def quiet(text):
    pass


def weights(model):
    return torch.cat([tensor.detach().flatten().double() for tensor in model.state_dict().values()])


@dataclass(frozen=True)
class Spy(Direct):
    """Answers directly, writes down what it was given, and can break the loss at one step."""

    seen: list = field(default_factory=list)
    broken: int | None = None

    def loss(self, model, examples, state):
        self.seen.append((examples, state))
        loss = super().loss(model, examples, state)
        return Loss(loss.value * (math.nan if state.step == self.broken else 1.0), {"answers": loss.value.detach()})


# ---------------------------------------------------------------------------------------------------------------------
# Order and offsets


@pytest.mark.parametrize(("count", "batch"), [(12, 4), (13, 4), (5, 5), (7, 1), (9, 8)])
def test_an_epoch_holds_every_row_at_most_once_and_leaves_out_the_ragged_end(count, batch):
    per_epoch = count // batch
    order = batch_indices(count, batch, 0, SEEDS)
    epochs = [torch.cat(list(itertools.islice(order, per_epoch))) for _ in range(4)]
    for rows in epochs:
        assert len(rows) == per_epoch * batch
        assert len(rows.unique()) == len(rows)
        assert 0 <= rows.min() <= rows.max() < count
    assert len({tuple(rows.tolist()) for rows in epochs}) == 4, "every epoch has an order of its own"


def test_over_many_epochs_no_row_is_left_out():
    seen = torch.cat(list(itertools.islice(batch_indices(9, 8, 0, SEEDS), 60)))
    assert len(seen.unique()) == 9


@pytest.mark.parametrize("first", range(11))
def test_order_resumes_at_any_step(first):
    whole = itertools.islice(batch_indices(13, 4, 0, SEEDS), first, 15)
    assert [rows.tolist() for rows in whole] == [
        rows.tolist() for rows in itertools.islice(batch_indices(13, 4, first, SEEDS), 15 - first)
    ]


@pytest.mark.parametrize("first", [0, 1, 2, 5])
def test_batches_are_cut_from_the_examples_in_that_order(first):
    """Gathered several at a time, over the ends of epochs."""
    examples = Symbols(TASK, TASK.problems(13, seed=0)).examples()
    served, order = batches(examples, 4, first, SEEDS), batch_indices(13, 4, first, SEEDS)
    for _ in range(40):
        batch, index = next(served), next(order)
        assert torch.equal(batch.prompt_BN, examples.prompt_BN[index])
        assert torch.equal(batch.frontier.dense(), examples.frontier.dense()[index])
        assert np.array_equal(batch.problems(), examples.problems()[index])


def test_offsets_stay_in_range_and_change_with_step_and_seed():
    drawn = [offsets(200, 3, SEEDS, step) for step in range(4)]
    for offset_B in drawn:
        assert sorted(offset_B.unique().tolist()) == [0, 1, 2, 3]
    assert len({tuple(offset_B.tolist()) for offset_B in drawn}) == 4
    assert torch.equal(drawn[1], offsets(200, 3, SEEDS, 1))
    assert not torch.equal(drawn[1], offsets(200, 3, Seeds.all(4), 1))


@pytest.mark.parametrize(("capacity", "spare"), [(None, 0), (2, 0), (5, 6)])
def test_offsets_are_drawn_only_where_positions_are_to_spare(capacity, spare):
    """The largest offset puts the last slot where that of the longest problem is: <bos>, digits, all words but one."""
    spy = Spy()
    train(experiment(spy, MNNS(2, 1, 4, capacity=capacity), steps=20))
    drawn = [examples.offset_B for examples, _ in spy.seen]
    if spare == 0:
        assert drawn == [None] * 20
    else:
        assert torch.cat(drawn).unique().tolist() == list(range(spare + 1))
        longest = Symbols(MNNS(capacity, 1, 4), np.array([[1] * capacity])).examples().slots
        assert spare + spy.seen[0][0].slots == longest


def test_states_count_the_steps():
    spy = Spy()
    train(experiment(spy))
    assert [state for _, state in spy.seen] == [
        TrainState(step, 6, SEEDS.derive("sampling", "train")) for step in range(6)
    ]


def test_every_batch_comes_from_the_training_part_in_the_order_of_its_seed():
    spy = Spy()
    whole = experiment(spy)
    train(whole)
    prompt_PN = torch.from_numpy(TASK.batch(whole.rows("train")).prompt_BN)
    order = batch_indices(len(prompt_PN), 4, 0, SEEDS)
    for examples, _ in spy.seen:
        assert torch.equal(examples.prompt_BN, prompt_PN[next(order)])


# ---------------------------------------------------------------------------------------------------------------------
# Parts of a batch


def stepped(method, examples, state, **recipe):
    """One training step of a fresh model."""
    whole = experiment(method, **recipe)
    model = whole.fresh()
    return train_step(model, method, make_optimizer(model, whole.training), whole.training, examples, state)


def test_parts_of_a_batch_know_their_place_and_the_size_of_the_whole():
    spy, examples = Spy(), Symbols(TASK, TASK.problems(8, seed=0)).examples()
    (loss,) = stepped(spy, examples, TrainState(2, 10, 7), micro_batch=3)
    assert [len(part) for part, _ in spy.seen] == [3, 3, 2]
    assert [state for _, state in spy.seen] == [TrainState(2, 10, 7, 8, first) for first in (0, 3, 6)]
    assert torch.equal(torch.cat([part.prompt_BN for part, _ in spy.seen]), examples.prompt_BN)
    (whole,) = stepped(Spy(), examples, TrainState(2, 10, 7))
    assert loss.value.item() == pytest.approx(whole.value.item(), rel=1e-6)
    assert loss.metrics["gradient_norm"].item() == pytest.approx(whole.metrics["gradient_norm"].item(), rel=1e-5)


def test_a_batch_that_is_a_part_itself_is_cut_within_the_whole():
    """As where processes share a batch: this one has rows 10 to 15 of 20."""
    spy, examples = Spy(), Symbols(TASK, TASK.problems(6, seed=0)).examples()
    stepped(spy, examples, TrainState(2, 10, 7, rows=20, first=10), micro_batch=4)
    assert [(state.rows, state.first) for _, state in spy.seen] == [(20, 10), (20, 14)]


def test_metrics_of_parts_count_as_many_times_as_they_have_rows():
    """And where a part has no number, as for steps that none of its rows takes, the others'."""

    @dataclass(frozen=True)
    class Measuring(Direct):
        def loss(self, model, examples, state):
            first = float(state.first)
            steps = torch.tensor([first, first if state.first else math.nan, math.nan])
            found = {"first": torch.tensor(first), "steps": steps}
            if state.first == 3:
                found["once"] = torch.tensor(5.0)
            return Loss(super().loss(model, examples, state).value, found)

        def after(self, model, batch, state):
            return {"rows": torch.tensor(float(len(batch)))}

    examples = Symbols(TASK, TASK.problems(8, seed=0)).examples()
    (loss,) = stepped(Measuring(), examples, TrainState(0, 10, 0), micro_batch=3)
    assert loss.metrics["first"].item() == pytest.approx((0 * 3 + 3 * 3 + 6 * 2) / 8)
    assert loss.metrics["rows"].item() == pytest.approx((3 * 3 + 3 * 3 + 2 * 2) / 8)
    assert loss.metrics["once"].item() == 5
    steps = loss.metrics["steps"]
    assert steps[:2].tolist() == pytest.approx([21 / 8, (3 * 3 + 6 * 2) / 5])
    assert steps[2].isnan()


def test_every_update_of_a_batch_is_numbered():
    seen = []

    @dataclass(frozen=True)
    class Thrice(Direct):
        updates = 3

        def loss(self, model, examples, state):
            seen.append((state.update, state.first))
            return super().loss(model, examples, state)

    examples = Symbols(TASK, TASK.problems(4, seed=0)).examples()
    losses = stepped(Thrice(), examples, TrainState(0, 10, 0), micro_batch=2)
    assert seen == [(update, first) for update in range(3) for first in (0, 2)]
    assert losses[0].value > losses[2].value, "each update is a step of its own"


def test_a_verifier_reaches_the_rollouts_through_the_loop():
    asked = []

    def verify(examples, trace):
        asked.append((examples.problems(), trace.rows))
        return torch.zeros(trace.rows)

    whole = experiment(GRPO(samples=2, group=3), steps=2)
    examples = whole.speaker("train").examples()
    fit(whole.fresh(), whole.method, examples, whole.training, SEEDS, verify=verify)
    order = batch_indices(len(examples), 4, 0, SEEDS)
    assert len(asked) == 2
    for problems, answers in asked:
        assert answers == 12
        assert np.array_equal(problems, examples.problems()[next(order)])


# ---------------------------------------------------------------------------------------------------------------------
# Dropout

DROPPING = ModelConfig(8, 2, 1, dropout=0.5)


@pytest.mark.parametrize("method", [CoT2(prefix="self"), DiscreteCoT()], ids=repr)
def test_dropout_is_seeded(method):
    """The same run twice is the same, bit for bit; another sampling seed drops other numbers, and none is another."""
    base = weights(train(experiment(method, config=DROPPING)))
    assert torch.equal(base, weights(train(experiment(method, config=DROPPING))))
    other = replace(SEEDS, sampling=4)
    assert not torch.equal(base, weights(train(experiment(method, config=DROPPING, seeds=other))))
    plain = ModelConfig(8, 2, 1)
    assert not torch.equal(base, weights(train(experiment(method, config=plain))))
    alone = weights(train(experiment(method, config=plain)))
    assert torch.equal(alone, weights(train(experiment(method, config=plain, seeds=other))))


def test_every_step_and_part_drops_its_own():
    """The same examples at another step, or at another place in the batch, have another loss."""
    whole = experiment(CoT2(), config=DROPPING, learning_rate=1e-30)
    examples = whole.speaker("train").examples().rows(slice(0, 4))

    def loss(state, **recipe):
        return stepped(whole.method, examples, state, config=DROPPING, **recipe)[0].value.item()

    states = [TrainState(0, 10, 0), TrainState(1, 10, 0), TrainState(0, 10, 1), TrainState(0, 10, 0, rows=4, first=4)]
    assert len({loss(state) for state in states}) == 4
    assert loss(states[0]) == loss(states[0])
    assert loss(states[0], micro_batch=2) != loss(states[0])


def test_global_generators_are_left_alone():
    before = torch.random.get_rng_state()
    train(experiment(CoT2(), config=DROPPING))
    assert torch.equal(before, torch.random.get_rng_state())


def test_rollouts_and_their_losses_never_drop():
    """Old and new policy must be the same function: a run with dropout is one without."""
    method = GRPO(samples=2, group=3, updates=2, kl=0.1)
    with_dropout = train(experiment(method, config=DROPPING))
    without = train(experiment(method, config=ModelConfig(8, 2, 1)))
    assert torch.equal(weights(with_dropout), weights(without))


def test_a_trained_model_does_not_drop():
    whole = experiment(CoT2(), config=DROPPING)
    model, examples = train(whole), whole.speaker("validation").examples()
    logits = [whole.method.solve(model, examples).trace.logits_BTV for _ in range(2)]
    assert torch.equal(*logits)


# ---------------------------------------------------------------------------------------------------------------------
# Stages


@dataclass(frozen=True)
class Staged(DiscreteCoT):
    """Three stages, and a list of what it was told when each began."""

    told: list = field(default_factory=list)

    def stage_starts(self, steps):
        return (0, steps // 3, steps // 2)

    def begin_stage(self, model, stage, examples, state):
        self.told.append((stage, int(model.stage), len(examples), state.step))


def test_stages_begin_with_all_examples():
    method = Staged()
    model = train(experiment(method, steps=6))
    count = len(experiment().rows("train"))
    assert method.told == [(0, 0, count, 0), (1, 1, count, 2), (2, 2, count, 3)]
    assert int(model.stage) == 2
    assert [method.stage_at(step, 6) for step in range(6)] == [0, 0, 1, 2, 2, 2]
    assert [within(method, TrainState(step, 6, 0)) for step in range(6)] == [
        (0, 2), (1, 2), (0, 1), (0, 3), (1, 3), (2, 3),
    ]  # fmt: skip


@dataclass(frozen=True)
class Thawing(PauseTokens):
    """Trains the pause alone, then the embedding alone, then all; keeps what the weights were when each began."""

    kept: list = field(default_factory=list)

    def stage_starts(self, steps):
        return (0, 2, 4)

    def parameter_groups(self, stage):
        rest = tuple(f"backbone.{name}" for name in ("blocks", "norm", "pos_emb"))
        return ((ParameterGroup(("backbone",), frozen=True),), (ParameterGroup(("parts", *rest), frozen=True),), ())[
            stage
        ]

    def begin_stage(self, model, stage, examples, state):
        self.kept.append({name: tensor.detach().clone() for name, tensor in model.named_parameters()})


def test_groups_change_with_the_stage():
    """Within one run: what a stage freezes does not move in it, all else does."""
    method = Thawing()
    model = train(experiment(method, steps=6))
    names = {name for name, _ in model.named_parameters()}
    kept = [*method.kept, dict(model.named_parameters())]
    pairs = itertools.pairwise(kept)
    moved = [{name for name in names if not torch.equal(now[name], then[name])} for now, then in pairs]
    assert moved == [{"parts.pause.constant_D"}, {"backbone.embedding"}, names]


# ---------------------------------------------------------------------------------------------------------------------
# What is logged


def test_metrics_and_progress_tell_the_same(tmp_path):
    ticks = []
    whole = experiment(steps=7, log_every=3)
    train(whole, tmp_path, on_progress=lambda *told: ticks.append(told), say=quiet)
    records = read_lines(tmp_path / METRICS)
    assert ticks[0][0] == 0
    assert math.isnan(ticks[0][1])
    assert ticks[1:] == [(record["step"], record["loss"]) for record in records]
    assert [record["step"] for record in records] == [3, 6, 7]
    optimizer, values = make_optimizer(whole.fresh(), whole.training), []
    for step in range(7):
        set_learning_rate(optimizer, whole.training, step, 7)
        values.append(optimizer.param_groups[0]["lr"])
    assert [record["learning_rate"] for record in records] == [values[2], values[5], values[6]]
    assert all(record["problems_per_s"] > 0 for record in records)


def test_a_diverging_loss_is_refused_and_not_recorded(tmp_path):
    """The loss is no number at the fourth step: metrics end at the third, and no checkpoint follows."""
    with pytest.raises(
        ValueError, match=r"the loss is nan at step 4: training diverged; lower training\.learning_rate"
    ):
        train(experiment(Spy(broken=3), log_every=1), tmp_path, say=quiet)
    assert [record["step"] for record in read_lines(tmp_path / METRICS)] == [1, 2, 3]
    assert find_checkpoint(tmp_path) is None


def test_a_rate_beyond_all_measure_is_refused():
    """At the next line, whether problems are asked there or the loss alone tells."""
    for validate, said in ((0, r"the loss is (nan|inf) at step 2: training diverged"), (1, "training diverged")):
        with pytest.raises(ValueError, match=said):
            train(experiment(learning_rate=1e30, log_every=1, validate=validate))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("warmup", [0.0, 0.5])
def test_weights_that_diverged_are_never_a_checkpoint(tmp_path, warmup):
    """Between two lines, where no loss is looked at, and at the end; the last healthy checkpoint is loaded still."""
    whole = experiment(learning_rate=1e30, warmup=warmup, steps=40, log_every=40, save_every=5, validate=0)
    with pytest.raises(
        ValueError, match=r"are not finite at step 5 .*: training diverged; lower training\.learning_rate"
    ):
        train(whole, tmp_path / "between", say=quiet)
    assert find_checkpoint(tmp_path / "between") is None
    calm = experiment(Spiking(last=23), steps=24, log_every=24, save_every=5)
    with pytest.raises(ValueError, match="weights are not finite at step 24 "):
        train(replace(calm, training=replace(calm.training, save_every=15)), tmp_path / "end", say=quiet)
    assert find_checkpoint(tmp_path / "end").step == 15
    with pytest.raises(ValueError, match="weights are not finite at step 24 "):
        train(replace(calm, training=replace(calm.training, validate=0)))


@dataclass(frozen=True)
class Spiking(Spy):
    """Has a gradient that is no number after a step; its loss is finite."""

    last: int = 0

    def loss(self, model, examples, state):
        found = super().loss(model, examples, state)
        if state.step < self.last:
            return found
        weight = model.backbone.table.weight
        return Loss(found.value + (weight - weight.detach()).square().sum().sqrt(), found.metrics)


def test_metrics_are_means_since_the_last_line(tmp_path):
    """Of every step's, where the loss is that of the last."""
    train(experiment(Spy(), log_every=2), tmp_path / "run", say=quiet)
    train(experiment(Spy(), log_every=1), tmp_path / "each", say=quiet)
    lines, each = (read_lines(tmp_path / name / METRICS) for name in ("run", "each"))
    answers = [line["answers"] for line in each]
    assert answers == pytest.approx([line["loss"] for line in each], rel=1e-5)
    assert [line["answers"] for line in lines] == pytest.approx(
        [sum(answers[i : i + 2]) / 2 for i in (0, 2, 4)], rel=1e-5
    )
    assert [line["loss"] for line in lines] == [each[i]["loss"] for i in (1, 3, 5)]


@dataclass(frozen=True)
class Content(Spy):
    """Stops as soon as four steps are logged; says so too where training ends anyway."""

    def early_stop(self, lines, ends):
        return f"enough after {len(lines)}, {ends}" if lines[-1]["step"] >= 4 else None


def test_a_method_does_not_stop_early_by_lines_that_are_lost(tmp_path):
    """It would take them for silence; neither at once nor in a later sitting."""
    whole, remarks = experiment(Content(), log_every=2, save_every=2, steps=8), []

    def work(until):
        def on_progress(step, loss):
            if step == until:
                raise KeyboardInterrupt

        made = whole.fresh(), whole.method, whole.speaker("train").examples(), whole.training, SEEDS
        fit(*made, folder=tmp_path, on_progress=on_progress, say=remarks.append)

    with pytest.raises(KeyboardInterrupt):
        work(4)
    (tmp_path / METRICS).unlink()
    with pytest.raises(KeyboardInterrupt):
        work(8)
    work(None)
    assert find_checkpoint(tmp_path).step == 8
    assert [line["step"] for line in read_lines(tmp_path / METRICS)] == [4, 6, 8]
    assert not any("stopped" in remark for remark in remarks)
    assert "without them training will not stop early" in remarks[0]


def test_a_method_may_stop_early(tmp_path):
    remarks = []
    train(experiment(Content(), log_every=2, steps=60), tmp_path, say=remarks.append)
    assert remarks == ["stopped at step 4: enough after 2, False"]
    assert find_checkpoint(tmp_path).manifest["stopped"] == "enough after 2, False"
    train(experiment(Content(), steps=5, log_every=5), say=remarks.append)
    assert remarks[1:] == ["stopped at step 5: enough after 1, True"]
