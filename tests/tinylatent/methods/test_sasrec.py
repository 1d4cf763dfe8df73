"""SASRec's loss is that of a loop over histories, and on recommendation it learns from every item of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from losses import assert_same, examples_of, loss_and_gradients, loss_of, model_of
from tinylatent_tasks import MNNS, Recommendation

from tinylatent.lab.experiment import Experiment
from tinylatent.methods.direct import Direct
from tinylatent.methods.sasrec import SASRec
from tinylatent.objectives.method import TrainState
from tinylatent.objectives.speakers import Symbols

TASK = Recommendation(4, 3, 2, events=4, item_tokens=True)
ROWS = TASK.problems(6, seed=2)
STATE = TrainState(0, 10, 0)


def by_row(model, examples):
    """The loss one row and one token at a time, padding cut away, everything read anew for each token."""
    backbone, total = model.backbone, 0.0
    masks = examples.prompt_mask_BN
    for row in range(len(examples)):
        prompt = examples.prompt_BN[row] if masks is None else examples.prompt_BN[row][masks[row]]
        answer = examples.answer_BA[row]
        if examples.answer_mask_BA is not None:
            answer = answer[examples.answer_mask_BA[row]]
        ids, start = torch.cat([prompt, answer]), 0 if examples.offset_B is None else int(examples.offset_B[row])
        for t in range(1, len(ids)):
            places = torch.arange(start, start + t)[None]
            hidden, _ = backbone.forward(backbone.embedding[ids[:t]][None], positions_BT=places)
            total = total - (hidden[0, -1] @ backbone.embedding.T).log_softmax(-1)[ids[t]]
    return total / len(examples)


@pytest.mark.parametrize("task", [TASK, replace(TASK, item_tokens=False), MNNS(3, 1, 4)], ids=lambda task: task.name)
def test_the_loss_is_that_of_a_loop_over_rows_and_tokens(task):
    rows = task.problems(4, seed=2)
    model, examples = model_of(SASRec(), task), examples_of(SASRec(), task, rows)
    found = loss_and_gradients(model, loss_of(SASRec(), model, examples, STATE))
    assert_same(found, loss_and_gradients(model, by_row(model, examples)))


def test_the_loss_of_rows_that_begin_elsewhere_and_of_shorter_answers():
    task = replace(TASK, item_tokens=False, events=6)
    model = model_of(SASRec(), task)
    examples = examples_of(SASRec(), replace(TASK, item_tokens=False), ROWS)
    moved = examples.with_offsets(torch.tensor([0, 3, 1, 2, 0, 4]))
    mask_BA = torch.arange(3) < torch.tensor([3, 1, 2, 3, 2, 1])[:, None]
    for changed in (moved, replace(examples, answer_mask_BA=mask_BA), replace(moved, answer_mask_BA=mask_BA)):
        found = loss_and_gradients(model, loss_of(SASRec(), model, changed, STATE))
        assert_same(found, loss_and_gradients(model, by_row(model, changed)))


def test_a_part_of_a_batch_is_divided_by_the_whole():
    model, examples = model_of(SASRec(), TASK), examples_of(SASRec(), TASK, ROWS)
    whole = loss_of(SASRec(), model, examples, STATE)
    parts = [loss_of(SASRec(), model, part, replace(STATE, rows=len(ROWS))) for part in examples.parts(4)]
    assert whole.item() == pytest.approx(sum(parts).item(), abs=1e-9)


def test_it_answers_as_direct_does():
    model, examples = model_of(SASRec(), TASK), examples_of(SASRec(), TASK, ROWS)
    found, direct = (method.solve(model, examples) for method in (SASRec(), Direct()))
    assert torch.equal(found.answer_BA, direct.answer_BA)
    assert torch.equal(found.trace.logits_BTV, direct.trace.logits_BTV)


def test_training_sees_no_event_that_validation_asks_for():
    """A row of training ends at one of the first events, and all it holds are a user's items until then."""
    run = Experiment(TASK, SASRec(), training=replace(Experiment().training, num_train=300))
    train, later = run.rows("train"), {tuple(row[:2]) for row in run.rows("validation").tolist()}
    for user, length in train[:, :2].tolist():
        assert all(length < asked for someone, asked in later if someone == user)
    examples = Symbols(TASK, train).examples()
    assert examples.prompt_mask_BN.sum(1).tolist() == (train[:, 1] + 1).tolist()
    assert np.array_equal(examples.answer_BA[:, 0] - 3, train[:, -1])
