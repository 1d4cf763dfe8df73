"""The formula for floating-point operations against torch's own count of what really runs.

torch counts attention over all pairs of slots; the formula counts those that may attend. The difference is added here
in the open.
"""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tasks import MNNS
from tinylatent.evaluation import cost
from tinylatent.experiment import Experiment
from tinylatent.flops import forward_flops, training_flops
from tinylatent.methods import METHODS, CoT2
from tinylatent.problems import Problems
from tinylatent.rollout import rollout
from tinylatent.seeds import Streams
from tinylatent.transformer import Shape, Transformer

SHAPES = pytest.mark.parametrize("shape", [Shape(16, 1, 1), Shape(16, 3, 2), Shape(24, 2, 4)])


def counted(run):
    """What torch counts while this runs; attention spelled out in products, since its fused form counts as nothing."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def never_attended(shape, slots):
    """Operations torch counts for the pairs of slots above the diagonal: a score and a weighted value for each."""
    return 4 * shape.width * shape.layers * (slots * (slots - 1) // 2)


@SHAPES
@pytest.mark.parametrize(("slots", "readouts"), [(1, 1), (5, 1), (5, 5), (20, 3)])
def test_forward(shape, slots, readouts):
    model = Transformer(11, 20, shape)

    def run():
        hidden_BSD, _ = model(torch.zeros(1, slots, shape.width))
        model.readout(hidden_BSD[:, -readouts:])

    assert counted(run) == forward_flops(shape, 11, slots, readouts) + never_attended(shape, slots)


@SHAPES
def test_step_by_step_is_the_same_as_at_once(shape):
    """Over a cache every pair is one that may attend: nothing to add."""
    model = Transformer(11, 20, shape)

    def run():
        cache = None
        for _ in range(7):
            hidden_BSD, cache = model(torch.zeros(1, 1, shape.width), cache)
            model.readout(hidden_BSD)

    assert counted(run) == forward_flops(shape, 11, 7, 7)


@SHAPES
def test_attention_grows_with_the_square_of_the_slots_by_hand(shape):
    """One slot: 12 D^2 weights a layer, one pair. Two slots: twice the weights, three pairs."""
    D, L = shape.width, shape.layers
    assert forward_flops(shape, 11, 1, 0) == L * (24 * D * D + 4 * D)
    assert forward_flops(shape, 11, 2, 0) == L * (48 * D * D + 12 * D)
    assert forward_flops(shape, 11, 1, 3, mixtures=2) - forward_flops(shape, 11, 1, 0) == 5 * 2 * 11 * D


@SHAPES
def test_forward_and_backward_cost_three_forwards(shape):
    """Every product has two in its backward, if its inputs need a gradient too."""
    model = Transformer(11, 20, shape)
    inputs = torch.zeros(1, 6, shape.width, requires_grad=True)

    def run():
        hidden_BSD, _ = model(inputs)
        model.readout(hidden_BSD).sum().backward()

    assert counted(run) == training_flops(shape, 11, 6, 6) + 3 * never_attended(shape, 6)


@pytest.mark.parametrize("name", METHODS)
def test_cost_of_a_method_is_what_its_rollout_runs(name):
    """One problem through the engine: prompt at once, then slot by slot, mixtures embedded, a readout a step."""
    task, shape, method = MNNS(4, 1, 5), Shape(16, 2, 2), METHODS[name]()
    model = Experiment(task, method, shape).model()
    problems = Problems.upload(task.batch([[1, 5, 2, 3]]))
    told = cost(shape, len(task.vocabulary), method, model, problems)
    steps = 1 if name == "direct" else 4
    assert told["steps"] == steps
    assert told["slots"] == 5 + steps - 1

    def run():
        streams = Streams(0, torch.arange(1))
        rollout(model.backbone, method.plan(model, problems), problems.prompt_BN, streams=streams)

    prompt = problems.prompt_BN.shape[1]
    assert counted(run) == told["flops"] + never_attended(shape, prompt)


def test_cost_is_that_of_one_problem():
    """However many problems are shown."""
    task, shape, method = MNNS(4, 1, 5), Shape(16, 2, 2), CoT2()
    model = Experiment(task, method, shape).model()
    one, many = (Problems.upload(task.batch([[1, 5, 2, 3]] * count)) for count in (1, 5))
    assert cost(shape, 20, method, model, one) == cost(shape, 20, method, model, many)
