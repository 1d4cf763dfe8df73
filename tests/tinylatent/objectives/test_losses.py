"""Losses against plain loops, over kept logits and over logits that are computed again in chunks of rows."""

import pytest
import torch
from losses import assert_same, loss_and_gradients

from tinylatent.engine import force, trace
from tinylatent.engine.plan import Segment
from tinylatent.engine.thoughts import GREEDY
from tinylatent.objectives.examples import Targets
from tinylatent.objectives.losses import mixture_loss, token_loss

B, T, V = 4, 3, 7
MASK_BT = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [True, True, False]])
GENERATOR = torch.Generator().manual_seed(0)
IDS_BT = torch.randint(V, (B, T), generator=GENERATOR)
PROMPT_BN = torch.randint(V, (B, 2), generator=GENERATOR)


def targets():
    """Shares with one to five states a step, dense and sparse."""
    dense_BTV = torch.rand(B, T, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dense_BTV[:, :, :2] = 0
    dense_BTV[0, 0, :6] = 0
    dense_BTV /= dense_BTV.sum(-1, keepdim=True)
    return Targets(V, dense_BTV=dense_BTV), Targets.from_dense(dense_BTV)


def said(model):
    """A trace of three tokens a row."""
    return force.force(model, (Segment(GREEDY, T, GREEDY.given(IDS_BT)),), PROMPT_BN)


@pytest.fixture
def chunks(monkeypatch):
    """chunks(rows) has logits computed when they are asked for, in chunks of so many rows."""

    def computed_again(rows):
        monkeypatch.setattr(trace, "KEPT_BYTES", rows * T * V * 8)

    return computed_again


def over_tokens(run, mask_BT):
    """Cross-entropy to the ids, token by token."""
    total = 0.0
    for b, t in mask_BT.nonzero().tolist():
        total = total - run.logits_BTV[b, t].log_softmax(-1)[IDS_BT[b, t]]
    return total


@pytest.mark.parametrize("mask_BT", [None, MASK_BT], ids=["all", "masked"])
@pytest.mark.parametrize("rows", [None, 1, 3, 0], ids=["kept", "by one", "by three", "nothing kept at all"])
def test_token_loss_is_a_plain_loop(mask_BT, rows, model, chunks):
    loop = over_tokens(said(model), torch.ones(B, T, dtype=torch.bool) if mask_BT is None else mask_BT)
    expected = loss_and_gradients(model, loop / B)
    if rows is not None:
        chunks(rows)
    run = said(model)
    assert (run.kept_logits is None) == (rows is not None)
    assert_same(loss_and_gradients(model, token_loss(run, IDS_BT, mask_BT=mask_BT)), expected)


@pytest.mark.parametrize("rows", [None, 1, 3])
def test_token_loss_counts_some_steps_and_a_part_of_a_batch(rows, model, chunks):
    """The last two steps, divided by the rows of a batch of ten."""
    late_BT = MASK_BT & torch.tensor([False, True, True])
    expected = loss_and_gradients(model, over_tokens(said(model), late_BT) / 10)
    if rows is not None:
        chunks(rows)
    last = slice(1, None)
    value = token_loss(said(model), IDS_BT[:, last], 10, MASK_BT[:, last], last)
    assert_same(loss_and_gradients(model, value), expected)


@pytest.mark.parametrize("mask_BT", [None, MASK_BT], ids=["all", "masked"])
@pytest.mark.parametrize("rows", [None, 1, 3, 0], ids=["kept", "by one", "by three", "nothing kept at all"])
@pytest.mark.parametrize("form", [0, 1], ids=["dense", "sparse"])
def test_mixture_loss_is_kl_plus_entropy(mask_BT, rows, form, model, chunks):
    """A constant apart from CSFT's sum of KL divergences; zeros in the target cost nothing."""
    run, target_BTV, loop = said(model), targets()[0].dense(), 0.0
    for b, t in (torch.ones(B, T) if mask_BT is None else mask_BT).nonzero().tolist():
        shares_V, logs_V = target_BTV[b, t], run.logits_BTV[b, t].log_softmax(-1)
        positive = shares_V > 0
        kl = (shares_V[positive] * (shares_V[positive].log() - logs_V[positive])).sum()
        loop = loop + kl - (shares_V[positive] * shares_V[positive].log()).sum()
    expected = loss_and_gradients(model, loop / B)
    if rows is not None:
        chunks(rows)
    run = said(model)
    assert_same(loss_and_gradients(model, mixture_loss(run, targets()[form], mask_BT=mask_BT)), expected)
    assert mixture_loss(run, targets()[form], 8, mask_BT).item() == pytest.approx(expected[0] / 2, abs=1e-12)


def test_one_hot_mixtures_are_tokens(model):
    one_hot = Targets(V, dense_BTV=torch.nn.functional.one_hot(IDS_BT, V).double())
    ours = loss_and_gradients(model, mixture_loss(said(model), one_hot, mask_BT=MASK_BT))
    assert_same(ours, loss_and_gradients(model, token_loss(said(model), IDS_BT, mask_BT=MASK_BT)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_are_computed_in_single(dtype, tiny):
    """What the logits say exactly, not the nearest of few numbers."""
    model = tiny().to(dtype)
    run = said(model)
    logs_BTV = run.logits_BTV.float().log_softmax(-1)
    expected = -logs_BTV.gather(2, IDS_BT[..., None]).sum().item() / B
    assert token_loss(run, IDS_BT).item() == pytest.approx(expected, rel=1e-6)
    target = Targets(V, dense_BTV=torch.nn.functional.one_hot(IDS_BT, V).float())
    assert mixture_loss(run, target).item() == pytest.approx(expected, rel=1e-6)


def test_logits_of_weights_that_have_moved_are_refused(tiny):
    model = tiny()
    run = said(model)
    with torch.no_grad():
        model.embedding.add_(1.0)
    with pytest.raises(ValueError, match="the weights have changed since this trace was made"):
        token_loss(run, IDS_BT)
