"""The formula for floating-point operations against torch's own count of what really runs.

torch counts attention over all pairs of slots; the formula counts those that may attend. The difference is added here
in the open.
"""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import Hidden, Mixture, Token
from tinylatent.models.blocks import Block, Experts, Head, Heads
from tinylatent.models.decoder import Decoder, ModelConfig

SHAPES = {
    "narrow": {"width": 16, "layers": 1, "heads": 1},
    "deep": {"width": 16, "layers": 3, "heads": 2},
    "wide": {"width": 24, "layers": 2, "heads": 4},
    "post, relu": {"width": 16, "norm": "post", "mlp": "relu"},
    "none, swiglu": {"width": 16, "norm": "none", "mlp": "swiglu"},
    "protected": {"width": 16, "norm": "protected"},
    "experts": {"width": 16, "experts": 3},
    "loops": {"width": 16, "layers": 2, "loops": 3},
}


@pytest.fixture(params=SHAPES)
def model(request):
    return Decoder.fresh(11, 20, ModelConfig(**{"layers": 2, "heads": 2} | SHAPES[request.param]))


def counted(run):
    """What torch counts while this runs; attention spelled out in products, since its fused form counts as nothing."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def never_attended(model, new, read=None):
    """Operations torch counts for the pairs of new slots above the diagonal: a score and a weighted value for each.

    In the last layer among the slots that are read alone.
    """
    read, layers = new if read is None else read, len(model.blocks) * model.loops
    return 4 * model.width * ((layers - 1) * (new * (new - 1) // 2) + read * (read - 1) // 2)


@pytest.mark.parametrize(("new", "past"), [(1, 0), (5, 0), (20, 0), (1, 7), (3, 9)])
def test_a_forward_costs_what_is_counted_whatever_is_read(model, new, past):
    cache = model(torch.zeros(1, past, model.width))[1] if past else None
    for read in sorted({0, 1, new // 2, new - 1, new}):
        found = counted(lambda read=read: model(torch.zeros(1, new, model.width), cache, read_from=new - read))
        assert found == model.flops(new, past, read) + never_attended(model, new, read)
    assert model.flops(new, past) == model.flops(new, past, new)


def test_step_by_step_is_the_same_as_at_once(model):
    """Over a cache every pair is one that may attend: nothing to add."""

    def run():
        cache = None
        for _ in range(7):
            _, cache = model(torch.zeros(1, 1, model.width), cache)

    assert counted(run) == model.flops(7) == sum(model.flops(1, past) for past in range(7))


def test_attention_grows_with_the_square_of_the_slots():
    """One slot: 12 D^2 weights a layer, one pair. Two slots: twice the weights, three pairs."""
    for D, L in ((16, 1), (24, 2)):
        model = Decoder.fresh(11, 20, ModelConfig(D, L, 2))
        assert model.flops(1) == L * (24 * D * D + 4 * D)
        assert model.flops(2) == L * (48 * D * D + 12 * D)
        assert model.flops(2) - model.flops(2, read=1) == 20 * D * D + 4 * D  # all but one slot's keys and values
        assert model.flops(2) - model.flops(2, read=0) == 40 * D * D + 12 * D


def test_forward_and_backward_cost_three_forwards(model):
    """Every product has two in its backward, if its inputs need a gradient too."""
    inputs = torch.zeros(1, 6, model.width, requires_grad=True)
    found = counted(lambda: model(inputs)[0].sum().backward())
    assert found == 3 * (model.flops(6) + never_attended(model, 6))


@pytest.mark.parametrize("read", [0, 1, 3, 4])
def test_heads_of_any_width_are_counted_by_theirs(read):
    """The pairs that may not attend cost K + D products each, for every head."""
    D = 6
    heads = [Head(torch.zeros(K, D), torch.zeros(K, D), torch.zeros(D, D)) for K in (1, 4)]
    experts = Experts(*map(torch.zeros, ((2, D), (2,), (2, 5, D), (2, 5), (2, D, 5), (2, D))))
    model = Decoder(torch.zeros(3, D), torch.zeros(9, D), [Block(Heads(heads), experts)])
    _, cache = model(torch.zeros(1, 2, D))
    found = counted(lambda: model(torch.zeros(1, 4, D), cache, read_from=4 - read))
    assert found == model.flops(4, 2, read) + 2 * (1 + D + 4 + D) * (read * (read - 1) // 2)


@pytest.mark.parametrize(("prompt", "read"), [(5, 5), (18, 1)])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("thought", [Mixture(), Hidden(), Token()], ids=["mixture", "hidden", "token"])
def test_what_a_rollout_says_it_cost_is_what_it_runs(thought, group, prompt, read):
    """The prompt at once, then slot by slot, mixtures embedded, a readout a step; of a long prompt the end is read."""
    model = Decoder.fresh(11, 30, ModelConfig(16, 2, 2))
    plan, ids_BN, traces = (Segment(thought, 3), Segment(Token(), 2)), torch.zeros(2, prompt, dtype=torch.int64), []
    found = counted(lambda: traces.append(rollout(model, plan, ids_BN, group=group)))
    assert found == traces[0].counters.flops + 2 * never_attended(model, prompt, read)
