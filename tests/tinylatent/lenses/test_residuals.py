"""Residuals of whole runs: whatever way it was cut into forwards, they are those of one forward over all."""

import pytest
import torch
from fakes import random

from tinylatent.engine.force import force
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import resume, rollout
from tinylatent.engine.thoughts import Hidden, Mixture, Token
from tinylatent.lenses.residuals import Residuals, record
from tinylatent.models.blocks import Block, Head, Heads
from tinylatent.models.decoder import Decoder

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64
PROMPT = torch.tensor([[1, 2, 3, 4], [0, 6, 5, 2]])
MASK = torch.tensor([[True] * 4, [False] + [True] * 3])
PLAN = (Segment(Mixture(), 2), Segment(Hidden(), 1), Segment(Token(), 2))


def whole(model, x_BSD, mask_BS=None, change=None):
    """By hand, from one forward: the stream at each layer's start and after the last, and both kinds of additions."""
    seen = {}

    def edit(layer, site, x, slots):
        seen[layer, site] = x if change is None else change(layer, site, x, slots)
        return seen[layer, site]

    model.forward(x_BSD, mask_BS=mask_BS, edit=edit)
    L = len(model.blocks) * model.loops
    return (
        torch.stack([*(seen[layer, "resid_in"] for layer in range(L)), seen[L - 1, "resid_out"]]),
        torch.stack([seen[layer, "attn_add"] for layer in range(L)]),
        torch.stack([seen[layer, "mlp_add"] for layer in range(L)]),
    )


def assert_same(residuals, expected, where_BS=...):
    for found, wanted in zip((residuals.stream, residuals.attention, residuals.mlp), expected, strict=True):
        assert found.shape == wanted.shape
        torch.testing.assert_close(found[:, where_BS], wanted[:, where_BS], **EXACT)


@pytest.mark.parametrize("kind", [{}, {"norm": "post"}, {"norm": "none", "mlp": "relu"}, {"loops": 3}, {"experts": 2}])
@pytest.mark.parametrize("masked", [False, True])
def test_a_rollout_is_recorded_as_one_forward_over_all_it_read(tiny, kind, masked):
    """A prompt of four and five steps: eight slots, since nobody reads the last step's input."""
    model, mask_BN = tiny(**kind), MASK if masked else None
    trace, residuals = record(lambda edit: rollout(model, PLAN, PROMPT, mask_BN, edit=edit))
    history = trace.history()
    assert residuals.stream.shape == (2 * kind.get("loops", 1) + 1, 2, 8, 8)
    assert_same(residuals, whole(model, history.inputs_BSD, history.mask_BS if masked else None), history.mask_BS)
    torch.testing.assert_close(trace.logits_BTV, rollout(model, PLAN, PROMPT, mask_BN).logits_BTV, **EXACT)


def test_rows_that_fork_take_their_prompt_along(tiny):
    """Three rollouts of each prompt: the prompt's slots stand in all of them, side by side."""
    model, said_RT = tiny(), torch.tensor([[1, 2], [3, 4], [5, 6], [0, 1], [2, 3], [4, 5]])

    def run(edit):
        _, cache = model.forward(model.table.rows(PROMPT), edit=edit)
        cache = cache.fork(3)
        for said_R1 in said_RT.split(1, 1):
            _, cache = model.forward(model.table.rows(said_R1), cache, edit=edit)

    _, residuals = record(run)
    sequence_RS = torch.cat([PROMPT.repeat_interleave(3, 0), said_RT], 1)
    assert_same(residuals, whole(model, model.table.rows(sequence_RS)))


def test_groups_of_rollouts_fork(tiny):
    trace, residuals = record(lambda edit: rollout(tiny(), PLAN, PROMPT, MASK, group=2, edit=edit))
    assert residuals.stream.shape == (3, 4, 8, 8)
    history = trace.history()
    assert_same(residuals, whole(tiny(), history.inputs_BSD, history.mask_BS), history.mask_BS)


def test_what_is_forced_at_once_is_recorded_as_what_was_rolled_out(tiny):
    model = tiny()
    run, rolled = record(lambda edit: rollout(model, PLAN, PROMPT, MASK, edit=edit))
    _, forced = record(lambda edit: force(model, run.plan(), PROMPT, MASK, edit=edit))
    assert_same(forced, (rolled.stream, rolled.attention, rolled.mlp), run.history().mask_BS)


def test_what_is_resumed_is_recorded_from_there_on(tiny):
    """The forward over the earlier run's last step is the first of the new one."""
    model = tiny()
    before = rollout(model, PLAN, PROMPT, whole=True)
    after, residuals = record(lambda edit: resume(before, PLAN[:1], edit=edit))
    assert_same(residuals, [x[:, :, 8:] for x in whole(model, after.history().inputs_BSD)])


def test_contributions_stand_in_the_order_of_adding(tiny):
    model, x_BSD = tiny(), random(2, 5, 8)
    _, residuals = record(lambda edit: model.forward(x_BSD, edit=edit))
    assert residuals.layers == 2
    expected = [residuals.attention[0], residuals.mlp[0], residuals.attention[1], residuals.mlp[1]]
    assert torch.equal(residuals.contributions, torch.stack(expected))
    torch.testing.assert_close(residuals.stream[0], x_BSD + model.pos_emb[:5], **EXACT)
    torch.testing.assert_close(residuals.stream[0] + residuals.contributions.sum(0), residuals.stream[-1], **EXACT)


@pytest.mark.parametrize(
    ("kind", "adds_up"), [({}, True), ({"norm": "none"}, True), ({"loops": 2}, True), ({"norm": "post"}, False)]
)
def test_the_stream_is_the_sum_of_its_additions_unless_norms_stand_after_them(tiny, kind, adds_up):
    _, residuals = record(lambda edit: rollout(tiny(**kind), PLAN, PROMPT, MASK, edit=edit))
    assert (residuals.gap() < 1e-14) == adds_up
    assert adds_up or residuals.gap() > 0.1


def test_the_gap_is_as_computed_by_hand():
    """2 + 1 + 0 is 3, not 4; and after it 1 + 1 more are 5, not 5.5: off by 1 of 5.5."""
    stream, attention, mlp = (torch.tensor(x).view(-1, 1, 1, 1) for x in ([2.0, 4.0, 5.5], [1.0, 1.0], [0.0, 1.0]))
    assert Residuals(stream, attention, mlp).gap() == pytest.approx(1 / 5.5)


def test_a_layer_without_an_mlp_adds_nothing():
    head = Head(random(2, 4), random(2, 4), random(4, 4))
    model = Decoder(random(7, 4), random(9, 4), [Block(Heads([head]), None)])
    _, residuals = record(lambda edit: model.forward(random(2, 3, 4), edit=edit))
    assert residuals.mlp.shape == (1, 2, 3, 4)
    assert not residuals.mlp.any()
    assert residuals.gap() < 1e-14


def test_a_change_comes_first_and_its_result_is_recorded(tiny):
    model, x_BSD, returned = tiny(), random(2, 5, 8), []

    def change(layer, site, x, slots):
        return -x if (layer, site) == (0, "attn_add") else x

    def run(edit):
        returned.append(model.forward(x_BSD, edit=edit)[0])
        return "returned"

    word, residuals = record(run, change)
    assert word == "returned"
    assert torch.equal(returned[0], model.forward(x_BSD, edit=change)[0])
    assert_same(residuals, whole(model, x_BSD, change=change))
    _, plain = record(run)
    assert torch.equal(residuals.attention[0], -plain.attention[0])
    assert not torch.allclose(residuals.mlp[0], plain.mlp[0])
    assert torch.equal(returned[1], model.forward(x_BSD)[0])


def test_gradients_reach_what_is_recorded(tiny):
    x_BSD = random(2, 3, 8).requires_grad_()
    _, residuals = record(lambda edit: tiny().forward(x_BSD, edit=edit))
    assert torch.autograd.grad(residuals.mlp[1].sin().sum(), x_BSD)[0].any()


def test_a_run_without_forwards_is_told(tiny):
    for run in (lambda edit: None, lambda edit: rollout(tiny(), PLAN, PROMPT)):
        with pytest.raises(ValueError, match="the run made no forward with the edit: expected one that passes it on"):
            record(run)


def test_two_runs_in_one_are_told(tiny):
    def twice(edit):
        for _ in range(2):
            tiny().forward(random(2, 3, 8), edit=edit)

    with pytest.raises(ValueError, match="2 rows from slot 0 on came after 2 rows up to slot 2: expected forwards"):
        record(twice)


def test_rows_that_do_not_fork_are_told(tiny):
    model = tiny()

    def run(edit):
        _, cache = model.forward(random(2, 3, 8), edit=edit)
        cache = type(cache)(cache.size, tuple((keys[[0, 1, 1]], values[[0, 1, 1]]) for keys, values in cache.layers))
        model.forward(random(3, 1, 8), cache, edit=edit)

    with pytest.raises(ValueError, match="3 rows from slot 3 on came after 2 rows up to slot 2"):
        record(run)
