"""The shared pieces of policy-gradient methods, against plain loops, numpy and enumeration."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinylatent.policy import advantages, averaged, clipped, k3, silent_groups

KINDS = ("std", "mean", "leave-one-out", "batch-std", "none")


def loop(rewards, group, kind, epsilon=1e-6):
    """Advantages by their definitions, one rollout at a time."""

    def one(i):
        r, start = rewards[i], i // group * group
        mates = rewards[start : start + group]
        others = mates[: i - start] + mates[i - start + 1 :]
        match kind:
            case "none":
                return r
            case "mean":
                return r - sum(mates) / group
            case "leave-one-out":
                return r - sum(others) / (group - 1)
            case "std":
                return (r - sum(mates) / group) / (statistics.stdev(mates) + epsilon)
            case "batch-std":
                return (r - sum(mates) / group) / (statistics.stdev(rewards) + epsilon)

    return [one(i) for i in range(len(rewards))]


@st.composite
def batches(draw):
    group, prompts = draw(st.integers(2, 5)), draw(st.integers(1, 4))
    reward = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-3, 3))
    return group, draw(st.lists(reward, min_size=group * prompts, max_size=group * prompts))


@pytest.mark.parametrize("kind", KINDS)
@given(batch=batches())
def test_advantages_are_their_definitions(kind, batch):
    group, rewards = batch
    got = advantages(torch.tensor(rewards, dtype=torch.float64), group, kind)
    assert got.tolist() == pytest.approx(loop(rewards, group, kind), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS[:-1])
@given(batch=batches(), shift=st.floats(-5, 5))
def test_a_constant_added_to_all_rewards_changes_nothing(kind, batch, shift):
    """And a group's advantages sum to zero: nothing is gained by all being better."""
    group, rewards = batch
    rewards = [round(r, 3) for r in rewards]  # a spread of 1e-300 would be lost in the shift
    plain, shifted = (
        advantages(torch.tensor(rewards, dtype=torch.float64) + by, group, kind) for by in (0.0, round(shift, 3))
    )
    torch.testing.assert_close(plain, shifted, rtol=1e-6, atol=1e-6)
    assert plain.view(-1, group).sum(1).abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_equal_rewards_teach_nothing(kind):
    assert advantages(torch.ones(8), 4, kind).tolist() == [0] * 8
    rewards = torch.tensor([1.0, 1, 0, 0, 1, 0, 1, 1])
    assert silent_groups(advantages(rewards, 2, kind), 2).item() == 0.75


def test_one_right_of_eight():
    """By hand: mean 1/8, unbiased variance 1/8."""
    got = advantages(torch.tensor([1.0] + [0.0] * 7, dtype=torch.float64), 8)
    assert got[0].item() == pytest.approx((7 / 8) / math.sqrt(1 / 8), rel=1e-5)
    assert got[1].item() == pytest.approx((-1 / 8) / math.sqrt(1 / 8), rel=1e-5)


@pytest.mark.parametrize(
    ("rewards", "group", "kind", "said"),
    [
        (4, 2, "median", "advantage 'median': expected one of std, mean, leave-one-out, batch-std, none"),
        (5, 2, "std", "5 rewards are no whole groups of 2"),
        (4, 0, "std", "4 rewards are no whole groups of 0"),
        (4, 1, "mean", "a group of 1 has no others to compare with"),
    ],
)
def test_groups_that_cannot_be_compared_are_refused(rewards, group, kind, said, unchecked):
    with pytest.raises(ValueError, match=said):
        advantages(torch.zeros(rewards), group, kind)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "held"),
    [
        (1.0, 2.0, 2.0, False),
        (1.05, 2.0, 2.1, False),
        (1.5, 2.0, 2.2, True),  # no more than 1.1 is worth
        (0.5, 2.0, 1.0, False),  # worse than before: it counts in full
        (0.5, -2.0, -1.8, True),
        (1.5, -2.0, -3.0, False),
        (1.5, 0.0, 0.0, False),
    ],
)
def test_clipping_by_hand(ratio, advantage, expected, held):
    log_ratio = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    got, where = clipped(log_ratio, torch.tensor([advantage], dtype=torch.float64), 0.1)
    assert got.item() == pytest.approx(expected)
    assert where.item() == held
    (slope,) = torch.autograd.grad(got.sum(), log_ratio)
    assert slope.item() == pytest.approx(0 if held else ratio * advantage)


def test_a_ratio_beyond_numbers_does_not_poison_the_batch():
    """exp(1000) is infinite, and infinity times an advantage of 0 is no number."""
    got, _ = clipped(torch.tensor([[1000.0, 0.0]]), torch.zeros(1), 0.1)
    assert got.tolist() == [[0.0, 0.0]]


def test_bounds_may_differ_or_be_absent():
    log_ratio = torch.tensor([[2.0, 0.2]], dtype=torch.float64).log()
    up, down = torch.ones(1, dtype=torch.float64), -torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(clipped(log_ratio, up, 0.1, 0.3)[0], torch.tensor([[1.3, 0.2]]).double())
    torch.testing.assert_close(clipped(log_ratio, down, 0.1, 0.3)[0], torch.tensor([[-2.0, -0.9]]).double())
    torch.testing.assert_close(clipped(log_ratio, up, math.inf)[0], torch.tensor([[2.0, 0.2]]).double())


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=2, max_size=6))
def test_k3_averages_to_the_divergence(logits):
    """Over the actions of the current policy, enumerated; never negative; 0 where both agree."""
    p, q = (torch.tensor(each, dtype=torch.float64).log_softmax(0) for each in zip(*logits, strict=True))
    values = k3(q[None], p[None])[0]
    assert (values >= -1e-12).all()  # but for rounding
    divergence = (p.exp() * (p - q)).sum()
    assert (p.exp() * values).sum().item() == pytest.approx(divergence.item(), abs=1e-9)
    assert k3(p[None], p[None]).abs().max() == 0


def test_averages_by_plain_loops():
    generator = torch.Generator().manual_seed(0)
    values_BT = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    live_BT = torch.tensor(
        [[True] * 5, [True, False, True, False, False], [False] * 4 + [True], [True, True, True, True, False]]
    )
    rows = [[values_BT[b, t].item() for t in range(5) if live_BT[b, t]] for b in range(4)]
    expected = {
        "sequence": sum(sum(row) / len(row) for row in rows) / 4,
        "token": sum(map(sum, rows)) / sum(map(len, rows)),
        "sum": sum(map(sum, rows)) / 4,
    }
    for over, value in expected.items():
        assert averaged(values_BT, live_BT, over).item() == pytest.approx(value, abs=1e-12)
        everywhere = torch.ones_like(live_BT)
        assert averaged(values_BT, None, over).item() == pytest.approx(averaged(values_BT, everywhere, over).item())
    assert len({round(value, 6) for value in expected.values()}) == 3


def test_an_unknown_average_is_refused(unchecked):
    with pytest.raises(ValueError, match="average 'row': expected one of sequence, token, sum"):
        averaged(torch.zeros(1, 1), None, "row")
