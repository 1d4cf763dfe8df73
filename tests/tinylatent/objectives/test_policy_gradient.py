"""The shared pieces of policy-gradient methods, against plain loops, numpy and enumeration."""

import math
import statistics
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from losses import examples_of, model_of
from tinylatent_tasks import MNNS

from tinylatent.core.seeds import Seeds, Streams
from tinylatent.engine.force import replay
from tinylatent.engine.plan import Segment
from tinylatent.engine.thoughts import GREEDY, MultiToken
from tinylatent.lab.experiment import Experiment
from tinylatent.methods import GRPO
from tinylatent.models.decoder import Decoder, ModelConfig
from tinylatent.objectives.method import Model, TrainState
from tinylatent.objectives.policy_gradient import (
    MAX_LOG_RATIO,
    MIN_LOG_RATIO,
    advantages,
    averaged,
    clipped,
    denominator_of,
    frac_reward_zero_std,
    k3,
)
from tinylatent.training.config import Training
from tinylatent.training.loop import fit

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS[:-1])
@given(values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=4), group=st.integers(2, 9))
@example(values=[0.7, 0.7], group=8)  # the mean of eight times 0.7 is not 0.7 in float32
def test_equal_rewards_teach_nothing(kind, dtype, values, group):
    """Exactly nothing, whatever their value and whatever other groups got."""
    rewards = torch.tensor(values).repeat_interleave(group).to(dtype)
    found = advantages(rewards, group, kind)
    assert found.dtype == dtype
    assert found.tolist() == [0.0] * len(rewards)
    assert frac_reward_zero_std(found, group) == 1
    mixed = advantages(torch.cat([rewards, 2 * rewards[:1].abs() + 1, rewards[1:group]]), group, kind)
    assert mixed[: len(rewards)].tolist() == [0.0] * len(rewards)
    assert mixed[len(rewards) :].any()


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_the_share_of_groups_that_teach_nothing_is_counted(kind):
    rewards = torch.tensor([1.0, 1, 0, 0, 1, 0, 1, 1])
    assert frac_reward_zero_std(advantages(rewards, 2, kind), 2).item() == 0.75


def test_one_right_of_eight_has_the_whole_advantage():
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
def test_clipping_is_as_computed_by_hand(ratio, advantage, expected, held):
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


@given(st.one_of(st.floats(-1e4, 1e4), st.sampled_from([-math.inf, -1e38, 30.0, 31.0, 100.0, 1e38, math.inf])))
def test_k3_is_its_formula_inside_its_bounds_and_finite_beyond(gap):
    """Value and gradient in float32, against the formula in float64."""
    current = torch.tensor([[-gap]], requires_grad=True)
    value = k3(torch.zeros(1, 1), current)
    (slope,) = torch.autograd.grad(value.sum(), current)
    gap = -current.item()  # as float32 holds it
    held = min(max(gap, MIN_LOG_RATIO), MAX_LOG_RATIO)
    assert value.item() == pytest.approx(math.exp(held) - held - 1, rel=1e-5, abs=1e-6)
    assert slope.item() == pytest.approx(1 - math.exp(gap) if gap == held else 0.0, rel=1e-5, abs=1e-6)


def test_k3_of_what_the_current_policy_cannot_do_is_finite():
    never = torch.full((1, 1), -math.inf)
    for reference, current in ((torch.zeros(1, 1), never.clone()), (never, torch.zeros(1, 1))):
        value = k3(reference, current.requires_grad_())
        assert value.isfinite().all()
        assert torch.autograd.grad(value.sum(), current)[0].item() == 0


def test_averages_are_plain_loops():
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


# ---------------------------------------------------------------------------------------------------------------------
# Parts of a batch


@pytest.mark.parametrize("over", ["sequence", "token", "sum"])
def test_averages_of_parts_add_up_where_they_know_the_whole(over):
    values_BT = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    live_BT = torch.tensor([[True, True, True], [True, False, False], [False, False, True], [True, True, False]])
    for mask_BT in (None, live_BT):
        weight = denominator_of(values_BT, mask_BT, over)
        parts = (
            averaged(values_BT[rows], None if mask_BT is None else mask_BT[rows], over, weight)
            for rows in (slice(0, 3), slice(3, 4))
        )
        assert sum(parts).item() == pytest.approx(averaged(values_BT, mask_BT, over).item(), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_processes_that_share_a_batch_find_the_advantages_of_the_whole(kind):
    reward_B = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    halves = [advantages(part, 3, kind, gather=lambda x: reward_B) for part in reward_B.split(6)]
    assert torch.equal(torch.cat(halves), advantages(reward_B, 3, kind))


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts

TASK = MNNS(3, 1, 3)
EXAMPLES = examples_of(GRPO(), TASK, TASK.problems(6, seed=1))
STATE = TrainState(3, 10, 5)


def even(examples, trace):
    """Rewards the tokens' sum for being even, more for the first problems than for others."""
    answer_BA = trace.answer()
    first_B = torch.tensor([1.0 + (row[0] == 1) for row in examples.problems().tolist()])
    return (answer_BA.sum(1) % 2 == 0) * first_B.repeat_interleave(len(answer_BA) // len(examples))


def test_rollouts_are_rewarded_by_the_verifier_that_is_passed_in():
    method = GRPO(samples=2)
    model = model_of(method, TASK)
    batch = method.collect(model, EXAMPLES, replace(STATE, verify=even))
    reward_B = even(EXAMPLES, batch.trace).double()
    assert 0 < reward_B.mean() < 2
    assert batch.metrics["reward"].item() == reward_B.mean().item()
    assert torch.equal(batch.advantage_B, advantages(reward_B, method.group))
    judged_B = EXAMPLES.judge(batch.trace.answer()).double()
    assert not torch.equal(judged_B, reward_B)
    plain = method.collect(model, EXAMPLES, STATE)
    assert torch.equal(plain.advantage_B, advantages(judged_B, method.group)), "by default the speaker judges"


def test_permuted_rewards_are_the_same_rewards_elsewhere():
    """Within every group, in one order of their own for each step; metrics tell the true ones."""
    method = GRPO(samples=2, advantage="none")
    model = model_of(method, TASK)
    orders = []
    for step in (0, 0, 1):
        state = replace(STATE, step=step, verify=even)
        plain, moved = (
            replace(method, signal=signal).collect(model, EXAMPLES, state) for signal in ("reward", "permuted")
        )
        groups = [batch.advantage_B.view(6, -1) for batch in (plain, moved)]
        assert torch.equal(*(group.sort(1).values for group in groups))
        assert not torch.equal(*groups)
        assert moved.metrics["reward"] == plain.metrics["reward"]
        orders.append(moved.advantage_B)
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_without_a_signal_no_gradient_is_left():
    """The share of groups that would teach nothing is that of the true rewards all the same."""
    method = GRPO(samples=2, signal="none")
    model = model_of(method, TASK)
    batch, plain = (each.collect(model, EXAMPLES, STATE) for each in (method, GRPO(samples=2)))
    assert batch.metrics["frac_reward_zero_std"] == plain.metrics["frac_reward_zero_std"] < 1
    gradients = torch.autograd.grad(method.loss(model, batch, STATE).value, [*model.parameters()], allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)


def test_an_unknown_signal_is_refused(unchecked):
    with pytest.raises(ValueError, match="signal 'loud': expected one of reward, permuted, none"):
        GRPO(signal="loud")


def test_training_with_a_verifier_learns_what_it_rewards(unchecked):
    """Never the truth: most answers are even in the end."""

    def some_even(examples, trace):
        return (trace.answer()[:, 0] % 2 == 0).float()

    task, method, model = MNNS(2, 1, 4), GRPO(samples=1), None
    experiment = Experiment(task, method, ModelConfig(16, 1, 2))
    model, examples = experiment.fresh(), experiment.speaker("train").examples()
    fit(model, method, examples, Training(steps=40, batch_size=8, learning_rate=3e-3), Seeds(), verify=some_even)
    trace = method.solve(model, examples, Streams(0, torch.arange(len(examples)))).trace
    assert some_even(examples, trace).mean() > 0.9


@pytest.mark.parametrize("average", ["sequence", "token", "sum"])
def test_a_process_divides_by_the_batch_of_all(average):
    """`gather` is asked for rewards where they are compared across the batch, and for what sums are divided by."""
    method = GRPO(samples=2, advantage="batch-std", average=average)
    model, others_B = model_of(method, TASK), torch.linspace(-2, 5, 48, dtype=torch.float64)

    def gather(x):
        return torch.cat([x, others_B.to(x)[: len(x)]])

    alone = method.collect(model, EXAMPLES, STATE)
    batch = method.collect(model, EXAMPLES, replace(STATE, gather=gather))
    reward_B = EXAMPLES.judge(batch.trace.answer()).double()
    centred_PG = reward_B.view(6, 8) - reward_B.view(6, 8).mean(1, keepdim=True)
    spread = torch.cat([reward_B, others_B]).std() + 1e-6
    torch.testing.assert_close(batch.advantage_B, (centred_PG / spread).flatten())
    expected = (
        alone.denominator - 2 if average == "token" else 2 * alone.denominator
    )  # the other process's number there is -2
    assert int(batch.denominator) == int(expected)


def test_parts_of_rollouts_are_whole_groups():
    method = GRPO(samples=2, group=4)
    batch = method.collect(model_of(method, TASK), EXAMPLES, STATE)
    parts = batch.parts(4)
    assert [len(part) for part in parts] == [4, 2]
    for part, prompts, rows in zip(parts, (slice(0, 4), slice(4, 6)), (slice(0, 16), slice(16, 24)), strict=True):
        assert np.array_equal(part.examples.problems(), EXAMPLES.problems()[prompts])
        assert torch.equal(part.trace.action("ids"), batch.trace.action("ids")[rows])
        assert torch.equal(part.trace.prompt_BN, batch.trace.prompt_BN[rows])
        assert torch.equal(part.advantage_B, batch.advantage_B[rows])
        assert part.denominator == batch.denominator
    assert (set(parts[0].metrics), set(parts[1].metrics)) == ({"reward", "frac_reward_zero_std"}, set())
    assert batch.parts(None) == [batch]
    assert batch.parts(6) == [batch]


@dataclass(frozen=True)
class Delimited(GRPO):
    """Writes a token of its own, the same for all, between thoughts and answer."""

    name = "delimited"

    def thinking(self, model, examples, temperature=0.0):
        given = GREEDY.given(torch.full((len(examples), 1), 2))
        return (*super().thinking(model, examples, temperature), Segment(GREEDY, 1, given, "delimiter"))


@pytest.mark.parametrize("average", ["sequence", "token", "sum"])
def test_given_steps_are_no_part_of_the_policy(average):
    """Its log-probability changes with the weights, and counts neither in the loss nor in what sums are divided by."""
    method = Delimited(samples=2, average=average, updates=2)
    model = Model(tiny_backbone(TASK, positions=1))
    batch = method.collect(model, EXAMPLES, STATE)
    assert batch.trace.drawn_BT.tolist() == [[True, True, False, True]] * 48
    method.loss(model, batch, STATE)
    with torch.no_grad():
        model.backbone.embedding.mul_(1.01)
    value = method.loss(model, batch, replace(STATE, update=1)).value
    kept = [0, 1, 3]
    log_ratio_BT = (replay(model.backbone, batch.trace).log_prob_BT - batch.old_BT)[:, kept]
    objective_BT, _ = clipped(log_ratio_BT, batch.advantage_B, method.clip)
    assert value.item() == pytest.approx(-averaged(objective_BT, None, average).item(), abs=1e-12)


def tiny_backbone(task, positions=0):
    """A float64 decoder whose weights are large enough to matter."""
    generator = torch.Generator().manual_seed(0)
    backbone = Decoder.fresh(len(task.vocabulary), task.positions + positions, ModelConfig(8, 1, 2), generator).double()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(10 if parameter.ndim > 1 else 1)
    return backbone


class First(MultiToken):
    """Reads only the first of the tokens that were drawn."""

    def log_prob(self, state, action):
        return super().log_prob(state, self.given(action["ids"][..., :1]))

    def latent(self, state, action):
        return super().latent(state, self.given(action["ids"][..., :1]))


@dataclass(frozen=True)
class Readers(GRPO):
    """Its reference sees the first token of each thought alone."""

    name = "readers"

    def reference_thought(self):
        return First(2)


def test_the_reference_may_read_actions_another_way():
    method = Readers(samples=2, kl=0.3)
    model = model_of(method, TASK)
    batch = method.collect(model, EXAMPLES, STATE)
    loss = method.loss(model, batch, STATE)
    again = replay(model.parts["reference"].backbone, batch.trace, thought=First(2))
    assert torch.equal(batch.reference_BT, again.log_prob_BT)
    own_BT = replay(model.backbone, batch.trace).log_prob_BT
    assert loss.metrics["reference_kl"].item() == pytest.approx(k3(again.log_prob_BT, own_BT).mean().item())
    assert loss.metrics["reference_kl"] > 0.1, "the same weights, read otherwise, are another policy"


def test_ratios_of_half_precision_are_taken_in_single():
    old, new = torch.tensor([[-1.0]]).bfloat16(), torch.tensor([[-1.01]]).bfloat16()
    gap = float(old) - float(new)
    assert gap > 0.005
    assert float(k3(old, new)) == pytest.approx(math.exp(gap) - gap - 1, rel=2e-3)  # in float32
    objective, _ = clipped(torch.tensor([[gap]]).bfloat16(), torch.ones(1), 0.2)
    assert float(objective) == pytest.approx(math.exp(float(torch.tensor(gap).bfloat16())), rel=1e-6)
