"""However rows are put together, every method learns and says what they alone do: ragged batches, and parts of one.

Losses and gradients are held, in float64 to 1e-9, to those of the rows alone and of the whole.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from losses import MODEL, assert_same, in_double, loss_and_gradients, loss_of, with_targets
from tinylatent_tasks import MNNS, Batch, MultiHop, Recommendation
from variants import (
    BY_ROW,
    EARLY,
    FIXED,
    LATE,
    STATES,
    TASK,
    WITH_AVERAGES,
    WITH_VARIANTS,
    examples_of,
    inferred,
    logits_of,
    model_of,
    one,
    open_ended,
    without_padding,
)

from tinylatent.lab.experiment import Experiment
from tinylatent.models.backbone import weights_moved
from tinylatent.objectives.examples import Examples, same_tokens
from tinylatent.objectives.policy_gradient import PolicyGradient
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.config import Training
from tinylatent.training.loop import train_step
from tinylatent.training.optimizer import flatten

RAGGED = [MNNS(digits, 1, 4, capacity=4) for digits in (4, 2, 3, 1)]
RAGGED_ROWS = [np.array([[1, 2, 4, 3]]), np.array([[4, 1]]), np.array([[3, 3, 1]]), np.array([[2]])]


OVER_STEPS = ("entropy", "clip_fraction", "approximate_kl")
"""Metrics that are means over steps."""


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


def ragged(method, chooses=True):
    """Problems of four lengths in one batch; and each of them alone.

    A problem alone is made by its own task. Not where a model that ends its chain itself chooses what it writes: its
    limit is that of the batch's longest chain, so that the row alone keeps that, and loses its padding.
    """
    together = in_double(method.supervise(Ragged()))
    if chooses and open_ended(method):
        return together, [without_padding(one(together, number)) for number in range(len(RAGGED))]
    return together, [examples_of(method, task, rows) for task, rows in zip(RAGGED, RAGGED_ROWS, strict=True)]


@BY_ROW
def test_a_ragged_batch_is_the_mean_of_its_rows_alone(method):
    """Rows of one to four steps behind prompts of two to five tokens: no row sees another's padding or waiting."""
    model = model_of(method, RAGGED[0])
    together, alone = ragged(method, chooses=isinstance(method, PolicyGradient))
    assert together.prompt_mask_BN is not None
    assert together.num_steps.tolist() == [3, 1, 2, 0]
    for state in (EARLY, replace(EARLY, step=4), LATE):
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
        torch.testing.assert_close(logits_of(single, 0), logits_of(run, number), atol=1e-9, rtol=1e-9)
        assert torch.equal(single.answer_BA[0], run.answer_BA[number])
        assert single.trace.length_B[0] == run.trace.length_B[number]


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
    """Parts of 3, 3 and 2 rows: weights after the step, the loss, and every metric that is a mean over rows.

    Means over steps are no means over rows where rows take unequally many.
    """
    examples = examples_of(method, task, task.problems(8, seed=3))
    whole_W, found = stepped(method, task, examples, None)
    parts_W, summed = stepped(method, task, examples, 3)
    torch.testing.assert_close(parts_W, whole_W, atol=1e-9, rtol=1e-9)
    for one_whole, of_parts in zip(found, summed, strict=True):
        assert of_parts.value.item() == pytest.approx(one_whole.value.item(), abs=1e-9)
        assert of_parts.metrics.keys() == one_whole.metrics.keys()
        for name, value in one_whole.metrics.items():
            if task is TASK and not (open_ended(method) and name in OVER_STEPS):
                torch.testing.assert_close(of_parts.metrics[name], value, atol=1e-9, rtol=1e-9, equal_nan=True)


@FIXED
def test_the_loss_does_not_notice_packed_attention(method):
    """From 64 rows on short sequences are packed two to a block: 64 rows give what two batches of 32 give."""
    task = MNNS()
    model, examples = (
        Experiment(task, method, MODEL).fresh(),
        method.supervise(Symbols(task, task.problems(64, seed=0))),
    )
    whole = method.forced(model, examples).logits_BTV
    halves = [method.forced(model, part).logits_BTV for part in examples.parts(32)]
    torch.testing.assert_close(whole, torch.cat(halves), rtol=1e-4, atol=1e-6)
