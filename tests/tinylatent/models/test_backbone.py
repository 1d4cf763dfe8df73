"""What every backbone shares: tables with and without a scale, caches that fork, positions, weights that move."""

import pytest
import torch
from fakes import random
from hypothesis import given
from hypothesis import strategies as st
from naive import gradients

from tinylatent.models.backbone import Backbone, Cache, Table, default_positions, weights_moved, weights_version

SCALES = pytest.mark.parametrize("scale", [None, 0.5, -3.0])


@pytest.fixture
def weight():
    return random(5, 3).requires_grad_()


# Tables


@SCALES
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_rows_are_rows(weight, scale, shape):
    ids = torch.randint(5, shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(Table(weight, scale).rows(ids), weight[ids] * (scale or 1.0))


@SCALES
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_a_mixture_is_a_sum_of_rows(weight, scale, shape):
    table, shares = Table(weight, scale), random(*shape, 5, seed=1).softmax(-1).requires_grad_()
    mixed = table.mix(shares)
    expected = sum(shares[..., v, None] * table.rows(torch.tensor(v)) for v in range(5))
    torch.testing.assert_close(mixed, expected)
    found, wanted = (gradients(x.sin().sum(), [weight, shares]) for x in (mixed, expected))
    torch.testing.assert_close(found, wanted)


@SCALES
@pytest.mark.parametrize("shared", [False, True])
def test_a_mixture_of_few_rows_is_one_of_all_of_them(weight, scale, shared):
    """An id twice counts twice; without shares each of K has 1/K."""
    table, ids = Table(weight, scale), torch.tensor([[0, 1, 1], [4, 2, 0]])
    shares = random(2, 3, seed=1).softmax(-1).requires_grad_()
    given_BK = shares if shared else torch.full((2, 3), 1 / 3, dtype=torch.float64)
    all_BV = torch.zeros(2, 5).double().scatter_add(1, ids, given_BK)
    mixed = table.mix_rows(ids, shares if shared else None)
    torch.testing.assert_close(mixed, table.mix(all_BV))
    found, wanted = (gradients(x.sin().sum(), [weight, shares]) for x in (mixed, table.mix(all_BV)))
    torch.testing.assert_close(found, wanted)


def test_a_table_tells_its_size_and_its_unit():
    table = Table(torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]]))
    assert (len(table), table.width) == (3, 2)
    assert table.unit().item() == 2.0
    assert Table(table.weight, 2.5).unit().item() == 5.0


# Caches


def test_a_fork_repeats_every_row_of_every_tensor_in_place():
    keys, values = random(2, 3, 4), random(2, 1, seed=1)
    cache = Cache(3, (((keys, values), (keys,)), (values,)))
    forked = cache.fork(3)
    assert forked.size == 3
    ((a, b), (c,)), (d,) = forked.layers
    for found, tensor in ((a, keys), (b, values), (c, keys), (d, values)):
        assert torch.equal(found, tensor[[0, 0, 0, 1, 1, 1]])
    assert Cache(4, ()).fork(2) == Cache(4, ())
    assert torch.equal(cache.layers[0][0][0], keys)


# Positions


@given(st.lists(st.booleans(), min_size=3, max_size=8), st.integers(0, 2))
def test_positions_count_unmasked_slots(mask, past):
    (found,) = default_positions(past, len(mask) - past, torch.tensor([mask]), torch.device("cpu")).tolist()
    assert found == [max(sum(mask[: s + 1]) - 1, 0) for s in range(past, len(mask))]


def test_without_a_mask_one_row_of_positions_serves_all():
    assert default_positions(2, 3, None, torch.device("cpu")).tolist() == [[2, 3, 4]]


# Weights that move


def test_every_change_of_weights_is_noticed(tiny):
    model = tiny()
    versions = [weights_version(model)]

    def moved():
        versions.append(weights_version(model))
        return versions[-1] > versions[-2]

    assert not moved()
    with torch.no_grad():
        model.blocks[1].mlp.up_proj.mul_(2)
    assert moved()
    weights_moved(model)
    assert moved()
    model.load_state_dict(model.state_dict())
    assert moved()
    model.forward(model.table.rows(torch.tensor([[1, 2]])))
    assert not moved()


def test_any_object_with_the_members_is_a_backbone_and_without_weights_it_never_moves(model):
    class Fixed:
        table, readout, flops, forward = model.table, model.readout, model.flops, model.forward

    assert isinstance(Fixed(), Backbone)
    weights_moved(Fixed())
    assert weights_version(Fixed()) == 0
