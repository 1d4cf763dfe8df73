"""Parts of machines: places on a circle, named ranges, heads that look back, units that clear and write."""

import numpy as np
import pytest
import torch
from tinylatent_tasks import MNNS, Reachability
from tinylatent_theory.constructions.bfs import bfs_searcher
from tinylatent_theory.constructions.choice_sums import mnns_solver
from tinylatent_theory.constructions.parts import Room, Units, circle, looks_back, mlp, nearness, only_at

from tinylatent.engine.force import force
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY, Mixture
from tinylatent.models.backbone import Backbone


@pytest.mark.parametrize("positions", [3, 9, 30])
def test_a_place_is_told_from_all_others(positions):
    for position in range(positions):
        weights, bias = only_at(position, positions)
        score_P = circle(positions) @ weights + bias
        assert (score_P > 0).tolist() == [place == position for place in range(positions)]
        np.testing.assert_allclose(score_P.abs().min(), nearness(positions) / 2)


@pytest.mark.parametrize("back", [0, 1, 3])
def test_a_head_looks_back_as_far_as_it_is_told(back):
    room = Room(held=2, copied=2, place=2)
    x_BTD = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_BTD[..., room["place"]] = circle(7)
    added_BTD, _ = looks_back(room, back, 7, room.copies(("held", "copied")))(x_BTD)
    torch.testing.assert_close(added_BTD[:, back:, room["copied"]], x_BTD[:, : 7 - back, room["held"]])
    assert not added_BTD[..., room["held"]].any()
    assert not added_BTD[..., room["place"]].any()


def test_units_clear_and_write_and_leave_the_rest():
    room = Room(held=2, other=1)
    x_BTD = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    after_BTD = x_BTD + mlp(Units(room).clear("held").write("held", 7.0))(x_BTD)
    torch.testing.assert_close(after_BTD[..., room["held"]], torch.full((2, 4, 2), 7.0).double())
    assert torch.equal(after_BTD[..., room["other"]], x_BTD[..., room["other"]])


@pytest.mark.parametrize("machine", [mnns_solver(MNNS(digits=3, high=4)), bfs_searcher(Reachability(nodes=8))])
def test_a_machine_is_a_backbone_that_goes_on_from_a_cache(machine):
    assert isinstance(machine, Backbone)
    generator = torch.Generator().manual_seed(0)
    inputs_BSD = torch.randn(3, 6, machine.width, generator=generator, dtype=torch.float64)
    whole_BSD, _ = machine.forward(inputs_BSD)
    _, cache = machine.forward(inputs_BSD[:, :4], read_from=4)
    last_BRD, _ = machine.forward(inputs_BSD.repeat_interleave(2, 0)[:, 4:], cache.fork(2), read_from=1)
    torch.testing.assert_close(last_BRD[::2], whole_BSD[:, 5:])


def test_forcing_a_rollout_gives_its_states_again():
    task = MNNS(digits=4, high=5)
    machine, prompt = mnns_solver(task), torch.from_numpy(task.prompt(task.problems(50, 0))[0])
    run = rollout(machine, (Segment(Mixture(), 3), Segment(GREEDY, 1)), prompt)
    torch.testing.assert_close(force(machine, run.plan(), prompt).hidden_BTD, run.hidden_BTD)
