"""The machine is a transformer like any other: cache, padding, groups, one-pass forcing; bad input is told."""

import numpy as np
import pytest
import torch

from tasks import MNNS, Reachability
from theory.constructions.bfs import bfs_searcher
from theory.constructions.choice_sums import mnns_solver
from theory.constructions.parts import circle, nearness, only_at
from tinylatent.backbone import SITES, Backbone
from tinylatent.plan import Segment
from tinylatent.rollout import force, rollout
from tinylatent.thoughts import GREEDY, Mixture


def test_it_is_a_backbone():
    assert isinstance(mnns_solver(MNNS(digits=2, high=3)), Backbone)


@pytest.mark.parametrize("machine", [mnns_solver(MNNS(digits=3, high=4)), bfs_searcher(Reachability(nodes=8))])
def test_a_cached_forward_is_a_whole_one(machine):
    generator = torch.Generator().manual_seed(0)
    inputs_BSD = torch.randn(3, 6, machine.width, generator=generator, dtype=torch.float64)
    whole_BSD, _ = machine.forward(inputs_BSD)
    first_BSD, cache = machine.forward(inputs_BSD[:, :4])
    rest_BSD, _ = machine.forward(inputs_BSD[:, 4:], cache)
    torch.testing.assert_close(torch.cat([first_BSD, rest_BSD], 1), whole_BSD)
    twice_BSD, _ = machine.forward(inputs_BSD.repeat_interleave(2, 0)[:, 4:], machine.fork(cache, 2))
    torch.testing.assert_close(twice_BSD[::2], rest_BSD)


def test_padding_changes_nothing():
    machine = bfs_searcher(Reachability(nodes=8))
    generator = torch.Generator().manual_seed(1)
    inputs_BSD = torch.randn(2, 5, machine.width, generator=generator, dtype=torch.float64)
    plain_BSD, _ = machine.forward(inputs_BSD)
    padded_BSD = torch.cat([torch.randn(2, 3, machine.width, generator=generator).double(), inputs_BSD], 1)
    mask_BS = torch.tensor([[False] * 3 + [True] * 5] * 2)
    torch.testing.assert_close(machine.forward(padded_BSD, mask_BT=mask_BS)[0][:, 3:], plain_BSD)


def test_forcing_a_rollout_gives_its_states_again():
    task = MNNS(digits=4, high=5)
    machine, prompt = mnns_solver(task), torch.from_numpy(task.prompt(task.problems(50, 0))[0])
    run = rollout(machine, (Segment(Mixture(), 3), Segment(GREEDY, 1)), prompt)
    again = force(machine, run.plan(), prompt)
    torch.testing.assert_close(again.hidden_BTD, run.hidden_BTD)


def test_edits_see_every_site_and_can_change_it():
    task = MNNS(digits=2, high=3)
    machine, seen = mnns_solver(task), []
    prompt = torch.from_numpy(task.prompt(task.space())[0])

    def silence(layer, site, tensor):
        seen.append((layer, site))
        return torch.zeros_like(tensor) if site == "mlp_add" else tensor

    plan = (Segment(GREEDY, 1),)
    run = rollout(machine, plan, prompt, edit=silence)
    assert seen == [(0, site) for site in SITES]
    assert not torch.allclose(run.logits_BTV, rollout(machine, plan, prompt).logits_BTV)


def test_too_long_a_sequence_is_told():
    machine = mnns_solver(MNNS(digits=2, high=3))
    with pytest.raises(ValueError, match="6 slots: the machine has 5 positions"):
        machine.forward(torch.zeros(1, 6, machine.width, dtype=torch.float64))


@pytest.mark.parametrize("positions", [3, 9, 30])
def test_a_place_is_told_from_all_others(positions):
    for position in range(positions):
        weights, bias = only_at(position, positions)
        score_P = circle(positions) @ weights + bias
        assert (score_P > 0).tolist() == [place == position for place in range(positions)]
        np.testing.assert_allclose(score_P.abs().min(), nearness(positions) / 2)
