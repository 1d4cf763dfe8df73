"""Every method keeps the promises of the interface, and the methods are equal where theory says so.

The first part runs over all of METHODS: a method that any installed package registers is tested here. The second holds
losses and gradients, in float64 to 1e-9, to plain loops that recompute everything at every step, and ragged batches and
micro-batches to the whole.
"""

import math
from dataclasses import dataclass, field, replace
from typing import get_args

import losses
import numpy as np
import pytest
import torch
from losses import SHAPE, assert_same, enter, in_double, loss_and_gradients, loss_of, with_targets

from tasks import MNNS, Batch, MultiHop, Recommendation
from tinylatent.core.seeds import PURPOSES, Seeds, Streams
from tinylatent.engine.plan import ANSWER
from tinylatent.evaluation.evaluate import cost
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.run import train
from tinylatent.methods import GRPO, METHODS, Coconut, CoT2, Direct
from tinylatent.models.backbone import weights_moved
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.examples import Examples, same_tokens
from tinylatent.objectives.method import TrainState
from tinylatent.objectives.policy_gradient import Average, PolicyGradient
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.config import Training
from tinylatent.training.loop import train_step
from tinylatent.training.optimizer import flatten

EVERY = pytest.mark.parametrize("method", [kind() for kind in METHODS.values()], ids=list(METHODS))
OURS = ("direct", "pause", "discrete", "coconut", "cot2", "grpo")
VARIANTS = [
    *(kind() for kind in METHODS.values()),
    Coconut(stages=2, per_step=2),
    CoT2(budget=2),
    CoT2(prefix="self"),
    CoT2(prefix="teacher-then-self"),
    GRPO(samples=1, updates=2, kl=0.1),
    GRPO(samples=2, curriculum=(1,), ratio="paper"),
    GRPO(ratio="official", average="token", advantage="leave-one-out"),
    GRPO(gamma=2.0),
]
WITH_VARIANTS = pytest.mark.parametrize("method", VARIANTS, ids=repr)
FIXED = pytest.mark.parametrize(
    "method",
    [
        replace(each, mixing=0.0) if isinstance(each, Coconut) else each
        for each in VARIANTS
        if not isinstance(each, PolicyGradient)
    ],
    ids=repr,
)
"""The variants with a loss that samples nothing."""
BY_ROW = pytest.mark.parametrize(
    "method", [each for each in VARIANTS if getattr(each, "average", None) != "token"], ids=repr
)
"""The variants whose loss is a mean over rows."""
WITH_AVERAGES = pytest.mark.parametrize(
    "method",
    [
        *VARIANTS,
        Coconut(mixing=1.0),
        *(GRPO(samples=2, updates=2, kl=0.1, average=average) for average in get_args(Average)),
        GRPO(updates=2, advantage="batch-std", average="token"),
    ],
    ids=repr,
)
TASK = MNNS(3, 1, 4)
ROWS = np.array([[1, 2, 4], [4, 4, 4], [3, 1, 1], [2, 4, 3], [1, 3, 2]])
EARLY, LATE = TrainState(0, 10, 0), TrainState(9, 10, 0)
STATES = pytest.mark.parametrize("state", [EARLY, LATE], ids=["first", "last"])


def model_of(method, task=TASK, state=LATE, **seeds):
    """A model in the stage of a step (the last)."""
    return losses.model_of(method, task, method.stage_at(state.step, state.total), **seeds)


def examples_of(method, task=TASK, rows=ROWS):
    return losses.examples_of(method, task, rows)


def one(examples, number):
    return examples.rows(slice(number, number + 1))


def inferred(method, model, examples, first=0):
    """The method's own inference; what it samples belongs to the row, `first` being the number of the first."""
    return method.solve(model, examples, Streams(7, torch.arange(first, first + len(examples)))).trace


# ---------------------------------------------------------------------------------------------------------------------
# Every method


@EVERY
def test_registered_under_its_name(method):
    assert METHODS[method.name] is type(method)


@STATES
@FIXED
def test_loss_reaches_every_weight_it_should_and_nothing_else(method, state):
    """All matrices and gains, all tokens (they are the readout too), the places of the slots read, and own thoughts."""
    model, examples = model_of(method, state=state), examples_of(method)
    loss, gradients = loss_and_gradients(model, loss_of(method, model, examples, state))
    assert math.isfinite(loss)
    slots = cost(method, model, examples)["slots"]
    places = gradients.pop("backbone.pos_emb")
    assert (places.abs().amax(1) > 0).tolist() == [place < slots for place in range(len(places))]
    assert (gradients.pop("backbone.embedding").abs().amax(1) > 0).all()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
    tensors = [*vars(examples).values(), *vars(examples.frontier).values()]
    assert all(tensor.grad is None for tensor in tensors if isinstance(tensor, torch.Tensor))


@STATES
@WITH_VARIANTS
def test_loss_does_not_touch_weights_or_examples(method, state):
    model, examples = model_of(method), examples_of(method)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    target_BTV, chain_BT = examples.frontier.dense().clone(), examples.chain_BT.clone()
    assert loss_of(method, model, examples, state).item() == loss_of(method, model, examples, state).item()
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert torch.equal(examples.frontier.dense(), target_BTV)
    assert torch.equal(examples.chain_BT, chain_BT)


@pytest.mark.parametrize("name", OURS)
def test_only_pause_has_parameters_of_its_own(name):
    own = [name for name, _ in model_of(METHODS[name]()).parts.named_parameters()]
    assert own == (["pause.constant_D"] if name == "pause" else [])


@WITH_VARIANTS
def test_inference_is_the_same_alone_and_in_a_batch(method):
    model, examples = model_of(method), examples_of(method)
    together = inferred(method, model, examples)
    for number in range(len(ROWS)):
        alone = inferred(method, model, one(examples, number), first=number)
        assert torch.equal(alone.action("id")[0], together.action("id")[number])
        torch.testing.assert_close(alone.logits_BTV[0], together.logits_BTV[number], atol=1e-9, rtol=1e-9)


@STATES
@BY_ROW
def test_loss_of_a_batch_is_the_mean_over_its_rows(method, state):
    """Each in its own place, so that it draws what it draws there."""
    model, examples = model_of(method), examples_of(method)
    whole = loss_of(method, model, examples, state)
    rows = [loss_of(method, model, one(examples, n), replace(state, first=n)) for n in range(len(ROWS))]
    assert whole.item() == pytest.approx(sum(rows).item() / len(rows), abs=1e-9)


@WITH_VARIANTS
def test_plan_fits_the_positions_and_ends_in_the_answer(method):
    """At most the steps of the chain and the extra ones that a method declares."""
    model, examples = model_of(method), examples_of(method)
    *before, answer = method.plan(model, examples)
    assert sum(segment.longest for segment in before) <= TASK.digits - 1 + method.extra_steps
    assert (answer.label, answer.longest) == (ANSWER, 1)


@pytest.mark.parametrize("name", OURS)
def test_plan_is_as_long_as_the_chain(name):
    method = METHODS[name]()
    *before, answer = [segment.longest for segment in method.plan(model_of(method), examples_of(method))]
    assert (sum(before), answer) == (0 if name == "direct" else TASK.digits - 1, 1)


@FIXED
def test_one_digit_needs_no_thought(method):
    """With nothing to think all methods are the direct answer."""
    task = MNNS(1, 1, 4)
    model, examples = model_of(method, task), examples_of(method, task, np.array([[1], [4]]))
    loss, direct = (loss_of(each, model, examples, EARLY) for each in (method, Direct()))
    assert loss.item() == pytest.approx(direct.item(), abs=1e-9)
    assert inferred(method, model, examples).logits_BTV.shape[1] == 1


@WITH_VARIANTS
def test_offsets_move_positions_and_nothing_else(method):
    """With room to spare, a loss at offset k is the loss at offset 0 of a model whose places start at k."""
    task = MNNS(3, 1, 4, room=5)
    model, moved, examples = model_of(method, task), model_of(method, task), examples_of(method, task)
    stage = method.stage_at(LATE.step, LATE.total)
    enter(method, model, stage, examples)  # a reference is what the weights are now
    plain = loss_and_gradients(model, loss_of(method, model, examples, EARLY))
    for offset in (0, 1, task.positions - examples.slots):
        with torch.no_grad():
            moved.backbone.pos_emb.copy_(model.backbone.pos_emb.roll(offset, 0))
        enter(method, moved, stage, examples)
        there = examples.with_offsets(torch.full((len(ROWS),), offset))
        loss, gradients = loss_and_gradients(moved, loss_of(method, moved, there, EARLY))
        gradients["backbone.pos_emb"] = gradients["backbone.pos_emb"].roll(-offset, 0)
        assert_same((loss, gradients), plain)


@EVERY
def test_trains_with_room_and_validates_longer_problems(method):
    """What was trained on three digits runs on five: vocabulary and positions are large enough."""
    task = MNNS(3, 1, 4, room=5)
    model = train(Experiment(task, method, ModelConfig(8, 1, 1), Training(steps=8, batch=8)))
    longer = MNNS(5, 1, 4)
    examples = examples_of(method, longer, longer.problems(4, seed=0))
    assert inferred(method, model, examples).logits_BTV.isfinite().all()


@EVERY
def test_temperature_samples_the_answer(method):
    model, examples = model_of(method), examples_of(method)
    *_, answer = method.plan(model, examples, temperature=0.7)
    assert answer.thought.temperature == 0.7
    assert answer.steps == examples.answer_tokens
    *_, answer = method.plan(model, examples)
    assert not answer.thought.needs_streams


# ---------------------------------------------------------------------------------------------------------------------
# Seeds


@dataclass(frozen=True)
class Spy(Direct):
    """Answers directly and writes down what it was given."""

    seen: dict = field(default_factory=dict)

    def loss(self, model, examples, state):
        self.seen.setdefault("order", []).append((examples.prompt_BN.tolist(), examples.offset_B.tolist()))
        self.seen.setdefault("sampling", []).append(state.streams(3).uniform(2).tolist())
        if state.step == 0:
            self.seen["init"] = model.backbone.embedding.tolist()
        return super().loss(model, examples, state)


def spied(**seeds):
    """What a run with these seeds gets: weights, order, sampling; and for the split all problems of an epoch."""
    spy = Spy()
    task = MNNS(3, 1, 4, room=4)
    rows = Experiment(task, spy, seeds=Seeds(**seeds)).rows("train")
    train(Experiment(task, spy, ModelConfig(8, 1, 1), Training(steps=4, batch=8), Seeds(**seeds)))
    return {**spy.seen, "split": rows.tolist()}


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_seed_changes_what_it_should_and_only_that(purpose):
    """Another split brings other problems into the same order, so order is then compared by itself."""
    base, changed = spied(), spied(**{purpose: 1})
    assert {name for name in base if base[name] != changed[name]} - {"order"} == {purpose} - {"order"}
    if purpose != "split":
        assert (base["order"] != changed["order"]) == (purpose == "order")
    else:
        offsets = [[offset_B for _, offset_B in run["order"]] for run in (base, changed)]
        assert offsets[0] == offsets[1]


@WITH_VARIANTS
def test_same_seeds_same_weights(method):
    def weights(seeds):
        whole = Experiment(TASK, method, ModelConfig(8, 1, 1), Training(steps=8, batch=8), seeds)
        return torch.cat([tensor.flatten() for tensor in train(whole).state_dict().values()])

    base = weights(Seeds())
    assert torch.equal(base, weights(Seeds()))
    assert not torch.equal(base, weights(Seeds(init=1)))
    assert not torch.equal(base, weights(Seeds(order=1)))
    assert not torch.equal(base, weights(Seeds(split=1)))


def test_methods_share_initial_weights():
    """The backbone is drawn before any part beside it: methods are compared from the same start."""
    models = [model_of(kind()) for kind in METHODS.values() if not (kind().extra_tokens or kind().extra_steps)]
    assert len(models) >= len(OURS)
    for model in models[1:]:
        for name, tensor in models[0].backbone.state_dict().items():
            assert torch.equal(model.backbone.state_dict()[name], tensor), name


# ---------------------------------------------------------------------------------------------------------------------
# Ragged batches


RAGGED = [MNNS(digits, 1, 4, room=4) for digits in (4, 2, 3, 1)]
RAGGED_ROWS = [np.array([[1, 2, 4, 3]]), np.array([[4, 1]]), np.array([[3, 3, 1]]), np.array([[2]])]


class Ragged:
    """Speaks problems of four lengths in one batch, prompts padded on the left."""

    problems = RAGGED_ROWS
    vocabulary = len(RAGGED[0].vocabulary)

    def part(self, index):
        raise AssertionError("nobody asks")

    def judge(self, examples, answer_BA):
        return same_tokens(examples, answer_BA)

    def examples(self, device="cpu", **supervision):
        batches = [task.batch(rows, **supervision) for task, rows in zip(RAGGED, RAGGED_ROWS, strict=True)]
        N, T = (max(getattr(batch, name).shape[1] for batch in batches) for name in ("prompt_BN", "chain_BT"))

        def left(array):
            return np.pad(array, ((0, 0), (N - array.shape[1], 0)))

        def right(array):
            return np.pad(array, ((0, 0), (0, T - array.shape[1]), *[(0, 0)] * (array.ndim - 2)))

        whole = Batch(
            prompt_BN=np.concatenate([left(batch.prompt_BN) for batch in batches]),
            prompt_mask_BN=np.concatenate([left(batch.prompt_mask_BN) for batch in batches]),
            steps_B=np.concatenate([batch.steps_B for batch in batches]),
            chain_BT=np.concatenate([right(batch.chain_BT) for batch in batches]),
            frontier_BTV=np.concatenate([right(batch.frontier_BTV) for batch in batches]),
            answer_BA=np.concatenate([batch.answer_BA for batch in batches]),
            key_B=np.concatenate([batch.key_B for batch in batches]),
        )
        return Examples.upload(whole, device, self)


def ragged(method):
    """Problems of four lengths in one batch; and each of them alone."""
    together = in_double(method.supervise(Ragged()))
    return together, [examples_of(method, task, rows) for task, rows in zip(RAGGED, RAGGED_ROWS, strict=True)]


@BY_ROW
def test_a_ragged_batch_is_the_mean_of_its_rows_alone(method):
    """Rows of one to four steps behind prompts of two to five tokens: no row sees another's padding or waiting."""
    model = model_of(method, RAGGED[0])
    together, alone = ragged(method)
    assert together.prompt_mask_BN is not None
    assert together.num_steps.tolist() == [3, 1, 2, 0]
    for state in (EARLY, TrainState(4, 10, 0), LATE):
        rows = [loss_of(method, model, each, replace(state, first=number)) for number, each in enumerate(alone)]
        whole = loss_of(method, model, together, state)
        assert_same(loss_and_gradients(model, whole), loss_and_gradients(model, sum(rows) / len(rows)))


@WITH_VARIANTS
def test_ragged_inference_is_that_of_the_rows_alone(method):
    model = model_of(method, RAGGED[0])
    together, alone = ragged(method)
    run = inferred(method, model, together)
    for number, examples in enumerate(alone):
        single = inferred(method, model, examples, first=number)
        torch.testing.assert_close(single.logits_BTV[0, -1], run.logits_BTV[number, -1], atol=1e-9, rtol=1e-9)
        assert torch.equal(single.action("id")[0, -1:], run.action("id")[number, -1:])
        assert single.length_B[0] == run.length_B[number]


@STATES
@FIXED
@pytest.mark.parametrize("said", [1, 2])
def test_tokens_beyond_an_answer_are_not_taught(method, state, said):
    """An answer of one or two tokens among longer ones is learnt as it is alone, whatever stands behind it."""
    task = Recommendation(4, 3, 2, events=4)
    model, whole = model_of(method, task, state), examples_of(method, task, task.problems(1, seed=0))
    unsaid = whole.answer_tokens - said
    target_BTV = whole.frontier.dense()
    alone = replace(with_targets(whole, target_BTV[:, :-unsaid]), chain_BT=whole.chain_BT[:, :-unsaid])
    alone = replace(alone, answer_tokens=said)
    expected = loss_and_gradients(model, loss_of(method, model, alone, state))
    mask_BA = torch.arange(whole.answer_tokens)[None] < said
    for token in (0, 3):
        chain_BT = torch.cat([alone.chain_BT, torch.full((1, unsaid), token)], 1)
        masked = replace(whole, chain_BT=chain_BT, answer_mask_BA=mask_BA)
        assert_same(loss_and_gradients(model, loss_of(method, model, masked, state)), expected)


# ---------------------------------------------------------------------------------------------------------------------
# Micro-batches


def stepped(method, task, examples, micro_batch):
    """Weights after a training step by plain gradient descent, so that they tell of every gradient; and its losses."""
    model = model_of(method, task)
    flat = flatten([parameter for parameter in model.parameters() if parameter.requires_grad])
    optimizer = torch.optim.SGD([{"params": [flat], "peak": 0.1}])
    optimizer.register_step_post_hook(lambda *_: weights_moved(model.backbone))
    recipe = Training(micro_batch=micro_batch, warmup=0.0, schedule="constant")
    losses = train_step(model, method, optimizer, recipe, examples, LATE)
    return flat.detach(), losses


@WITH_AVERAGES
@pytest.mark.parametrize("task", [TASK, MultiHop(nodes=5, hops=3)], ids=["even", "ragged"])
def test_gradients_of_micro_batches_add_up_to_those_of_the_whole(method, task):
    """Parts of 3, 3 and 2 rows: weights after the step, the loss, and every metric that is a mean over rows."""
    examples = examples_of(method, task, task.problems(8, seed=3))
    whole_W, found = stepped(method, task, examples, None)
    parts_W, summed = stepped(method, task, examples, 3)
    torch.testing.assert_close(parts_W, whole_W, atol=1e-9, rtol=1e-9)
    for one_whole, of_parts in zip(found, summed, strict=True):
        assert of_parts.value.item() == pytest.approx(one_whole.value.item(), abs=1e-9)
        assert of_parts.metrics.keys() == one_whole.metrics.keys()
        for name, value in one_whole.metrics.items():
            if task is TASK:
                torch.testing.assert_close(of_parts.metrics[name], value, atol=1e-9, rtol=1e-9, equal_nan=True)


@FIXED
def test_the_loss_does_not_notice_packed_attention(method):
    """From 64 rows on short sequences are packed two to a block: 64 rows give what two batches of 32 give."""
    task = MNNS()
    model, examples = (
        Experiment(task, method, SHAPE).model(),
        method.supervise(Symbols(task, task.problems(64, seed=0))),
    )
    whole = method.forced(model, examples).logits_BTV
    halves = [method.forced(model, part).logits_BTV for part in examples.parts(32)]
    torch.testing.assert_close(whole, torch.cat(halves), rtol=1e-4, atol=1e-6)
