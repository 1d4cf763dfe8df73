"""Residuals of whole runs, latent steps included: those of the run's own forwards, and what follows from any layer."""

import pytest
import torch
from fakes import Aside, random

from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import Hidden, Mixture, Token
from tinylatent.lenses.residuals import in_parts, record, record_tokens, record_trace
from tinylatent.models.blocks import Block, Head, Heads
from tinylatent.models.decoder import Decoder, ModelConfig

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64
PROMPT = torch.tensor([[1, 2, 3, 4], [0, 6, 5, 2]])
MASK = torch.tensor([[True] * 4, [False] + [True] * 3])
PLAN = (Segment(Mixture(), 2), Segment(Hidden(), 1), Segment(Token(), 2))
KINDS = [
    {}, {"norm": "post"}, {"norm": "after"}, {"norm": "protected"}, {"norm": "none", "mlp": "relu"}, {"loops": 3},
    {"experts": 2},
]  # fmt: skip


def same(found, wanted):
    torch.testing.assert_close(found, wanted, **EXACT)


def looked(run):
    """All that edits see in the forwards of a run, slots concatenated: {(layer, site): (B, S, D)}."""
    seen = {}

    def edit(layer, site, x, slots):
        seen.setdefault((layer, site), []).append(x)
        return x

    trace = run(edit)
    return trace, {at: torch.cat(parts, 1) for at, parts in seen.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_a_rollout_is_recorded_as_its_forwards_went(tiny, kind, masked):
    """A prompt of four and five steps: eight slots, since nobody reads the last step's input."""
    model, mask_BN = tiny(**kind), MASK if masked else None
    trace, seen = looked(lambda edit: rollout(model, PLAN, PROMPT, mask_BN, edit=edit))
    found = record_trace(trace)
    L, live_BS = 2 * kind.get("loops", 1), trace.mask_BS[:, :-1]
    assert found.stream.shape == (L + 1, 2, 8, 8)
    assert found.depth == L
    assert torch.equal(found.mask_BS, live_BS)
    for layer in range(L):
        same(found.stream[layer][live_BS], seen[layer, "resid_in"][live_BS])
        same(found.attention[layer][live_BS], seen[layer, "attn_add"][live_BS])
        same(found.mlp[layer][live_BS], seen[layer, "mlp_add"][live_BS])
    same(found.stream[L][live_BS], seen[L - 1, "resid_out"][live_BS])
    same(found.logits(found.stream[L][:, 3:]), trace.logits_BTV)


def test_rows_of_a_group_positions_from_an_offset_and_slots_aside(tiny):
    """Slots that take no position keep their neighbour's, and a run that was moved keeps its offset."""
    model = tiny()
    plan = (Segment(Aside(8).double(), 2), *PLAN)
    trace = rollout(model, plan, PROMPT, MASK, offset_B=torch.tensor([0, 3]), group=2)
    found = record_trace(trace)
    assert found.positions_BS.tolist()[2] == [3, 3, 4, 5, 5, 5, 6, 7, 8, 9]
    same(found.logits(found.stream[-1][:, 3:]), trace.logits_BTV)


def test_an_edit_that_was_there_before_is_recorded(tiny):
    model, ids_BS = tiny(), torch.tensor([[1, 2, 3]])

    def change(layer, site, x, slots):
        return -x if (layer, site) == (0, "attn_add") else x

    found, plain = record_tokens(model, ids_BS, change=change), record_tokens(model, ids_BS)
    assert torch.equal(found.attention[0], -plain.attention[0])
    same(found.stream[0] - plain.attention[0] + found.mlp[0], found.stream[1])
    same(found.model.finish(found.stream[-1]), model.forward(model.table.rows(ids_BS), edit=change)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_from_any_layer_on_it_ends_as_it_ended(tiny, kind):
    found = record(tiny(**kind), random(2, 5, 8), torch.tensor([[False, True, True, True, True], [True] * 5]))
    for layer in range(found.depth + 1):
        same(found.on(layer, found.stream[layer])[found.mask_BS], found.stream[-1][found.mask_BS])
    same(found.on(0, found.stream[0], stop=1)[found.mask_BS], found.stream[1][found.mask_BS])


def test_rows_that_are_repeated_have_their_own_mask_and_positions(tiny):
    found = record_tokens(tiny(), PROMPT, MASK)
    rows_R = torch.tensor([1, 0, 1])
    last = found.on(1, found.stream[1][rows_R], rows_R=rows_R)
    same(last[found.mask_BS[rows_R]], found.stream[2][rows_R][found.mask_BS[rows_R]])


def test_padding_that_is_cut_off_changes_nothing(tiny):
    ids_BS, mask_BS = torch.tensor([[0, 6, 5, 2], [0, 0, 3, 4]]), torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1]]).bool()
    found = record_tokens(tiny(), ids_BS, mask_BS)
    alone, cut, row = record_tokens(tiny(), ids_BS[:1, 1:]), found.cut(1), found.alone(0)
    for name in ("stream", "attention", "mlp"):
        same(getattr(cut, name)[:, :1], getattr(alone, name))
        same(getattr(row, name), getattr(alone, name))
    assert torch.equal(row.positions_BS, alone.positions_BS)
    same(cut.on(1, cut.stream[1])[cut.mask_BS], cut.stream[2][cut.mask_BS])
    same(row.on(1, row.stream[1]), row.stream[2])


def test_a_row_that_waited_is_alone_without_the_slots_it_waited_in(tiny):
    """Slots in the middle of a run, while other rows took more steps."""
    plan = (Segment(Mixture(), torch.tensor([3, 1])), Segment(Token(), 2))
    trace = rollout(tiny(), plan, PROMPT, MASK)
    found = record_trace(trace)
    assert found.mask_BS[1].tolist() == [False, True, True, True, True, False, False, True]
    row = found.alone(1)
    assert row.mask_BS.all()
    assert row.positions_BS.tolist() == [[0, 1, 2, 3, 4]]
    same(row.on(0, row.stream[0]), row.stream[2])


def test_half_precision_is_recorded_in_full():
    model = Decoder.fresh(7, 9, ModelConfig(8, 2, 2)).bfloat16()
    found = record_tokens(model, PROMPT)
    assert found.stream.dtype == found.mlp.dtype == torch.float32
    assert found.on(1, found.stream[1]).dtype == torch.float32
    torch.testing.assert_close(found.on(1, found.stream[1]), found.stream[2], rtol=0.02, atol=0.02)
    assert found.logits(found.stream[2]).dtype == torch.float32


def test_an_edit_on_the_way_sees_the_layers_that_run(tiny):
    found, seen = record_tokens(tiny(loops=2), PROMPT), []

    def half(layer, site, x, slots):
        seen.append((layer, site))
        return x / 2 if (layer, site) == (2, "mlp_add") else x

    last = found.on(1, found.stream[1], half, stop=3)
    assert [layer for layer, site in seen if site == "resid_in"] == [1, 2]
    same(last, found.stream[3] - found.mlp[2] / 2)


def test_contributions_stand_in_the_order_of_adding(tiny):
    model, x_BSD = tiny(), random(2, 5, 8)
    found = record(model, x_BSD)
    expected = [found.attention[0], found.mlp[0], found.attention[1], found.mlp[1]]
    assert torch.equal(found.contributions, torch.stack(expected))
    same(found.stream[0], x_BSD + model.pos_emb[:5])
    same(found.stream[0] + found.contributions.sum(0), found.stream[-1])
    same(found.stream[0] + found.added.sum(0), found.stream[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_is_the_sum_of_its_additions_unless_norms_are_of_the_sum(tiny, kind):
    found = record_tokens(tiny(**kind), PROMPT, MASK)
    assert found.gap() > 0.1 if kind == {"norm": "post"} else found.gap() < 1e-14


def test_a_gap_is_seen_and_padding_makes_none(tiny):
    found = record_tokens(tiny(), PROMPT, MASK)
    found.stream[1, 1, 0] += 5
    assert found.gap() < 1e-14
    largest = (found.stream * found.mask_BS[None, ..., None]).abs().max().item()
    found.mlp[1, 1, 1, 0] += 0.01 * largest
    assert found.gap() == pytest.approx(0.01)


def test_a_layer_without_an_mlp_adds_nothing():
    head = Head(random(2, 4), random(2, 4), random(4, 4))
    model = Decoder(random(7, 4), random(9, 4), [Block(Heads([head]), None)])
    found = record(model, random(2, 3, 4))
    assert found.mlp.shape == (1, 2, 3, 4)
    assert not found.mlp.any()
    assert found.gap() < 1e-14


def test_gradients_reach_what_is_recorded(tiny):
    x_BSD = random(2, 3, 8).requires_grad_()
    assert torch.autograd.grad(record(tiny(), x_BSD).mlp[1].sin().sum(), x_BSD)[0].any()


def test_what_has_no_layers_is_told(unchecked):
    class Flat:
        forward = readout = flops = table = None

    with pytest.raises(ValueError, match="Flat has no layers to look into: expected a Decoder or an HFBackbone"):
        record(Flat(), random(2, 3, 8))


def test_a_trace_of_other_weights_is_told(tiny):
    model = tiny(seed=5)
    trace = rollout(model, PLAN, PROMPT)
    with torch.no_grad():
        model.embedding.add_(1)
    with pytest.raises(ValueError, match="the weights have changed since this trace was made"):
        record_trace(trace)


def test_parts_of_a_sweep_are_all_its_rows(monkeypatch, tiny):
    """Four slots of eight numbers, eight times as many while they are computed: two rows are 512 numbers."""
    found = record_tokens(tiny(), PROMPT)
    monkeypatch.setattr("tinylatent.lenses.residuals.NUMBERS_AT_ONCE", 600)
    assert in_parts(found, 5) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    monkeypatch.setattr("tinylatent.lenses.residuals.NUMBERS_AT_ONCE", 1)
    assert in_parts(found, 2) == [slice(0, 1), slice(1, 2)]
