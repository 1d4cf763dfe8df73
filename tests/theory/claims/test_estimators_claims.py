"""Claims about policy gradients: a policy of one logit by hand, a second way to every estimator, broken on purpose."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tinylatent_theory.claims import estimators
from tinylatent_theory.claims.estimators import Case, group_gradient, relative, std_weight, surrogate_gradient, turned
from tinylatent_theory.predictions import enumeration
from tinylatent_theory.predictions.enumeration import (
    World,
    combined,
    group_estimate,
    objective,
    score_moments,
    token_paths,
)
from verdicts import verdict

from tinylatent.engine.thoughts import MultiToken
from tinylatent.lab.findings import FAILS, HOLDS
from tinylatent.methods import GRPO
from tinylatent.objectives.policy_gradient import advantages

CHANCES = st.floats(0.01, 0.99)
GROUPS = st.integers(2, 6)


# ---------------------------------------------------------------------------------------------------------------------
# One logit: every outcome of a group


@given(CHANCES, GROUPS)
def test_advantages_of_one_logit(p, group):
    """The gradient is p (1 - p); the group's mean takes 1/G of it."""
    assert group_gradient(p, group, "none") == pytest.approx(p * (1 - p))
    assert group_gradient(p, group, "leave-one-out") == pytest.approx(p * (1 - p))
    assert group_gradient(p, group, "mean") == pytest.approx(p * (1 - p) * (1 - 1 / group))


@given(CHANCES, GROUPS)
def test_weight_of_a_prompt_is_that_of_one_logit(p, group):
    assert std_weight(p, group) == pytest.approx(group_gradient(p, group, "std") / (p * (1 - p)))


@given(CHANCES)
def test_weights_by_hand(p):
    """Unequal rewards have the one standard deviation 1/sqrt(2), 1/sqrt(3) in groups of 2, 3; of 4 there are two."""
    assert std_weight(p, 2, 0.0) == pytest.approx(math.sqrt(1 / 2))
    assert std_weight(p, 3, 0.0) == pytest.approx(math.sqrt(4 / 3))
    assert std_weight(p, 4, 0.0) == pytest.approx(1.5 - 1.5 * (2 - math.sqrt(3)) * p * (1 - p))


def test_pairs_of_graded_rewards_by_hand():
    """The better of two unequal ones moves by what the worse does, 1/2 of (e_better - e_worse) times sqrt(1/2).

    Three equally likely actions meet in three such pairs, each with probability 2/9, whatever their rewards.
    """
    got = torch.tensor([-2.0, 0.0, 2.0])  # times a constant: the middle one gains from the worst what it loses
    truth = torch.tensor([0.0, 0.1, 1.0]) - 1.1 / 3
    cosine = float(got @ truth / (got.norm() * truth.norm()))
    assert estimators.graded_pairs([0, 0, 0], [0, 0.1, 1]) == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-3)
    assert estimators.graded_pairs([0, 1, -2], [0, 1, 1]) == pytest.approx(0, abs=1e-4), "rewards of 0 and 1"
    assert estimators.graded_pairs([1, -1], [0.3, 0.9]) == pytest.approx(0, abs=1e-4), "two actions"


def test_large_groups_divide_by_the_standard_deviation():
    assert std_weight(0.3, 4000) == pytest.approx(1 / math.sqrt(0.3 * 0.7), rel=1e-3)


def test_angle_by_hand():
    a, b = torch.tensor([1.0, 0.0]).double(), torch.tensor([3.0, 4.0]).double()
    assert turned(b, a) == pytest.approx(0.8)
    assert turned(-b, a) == 1
    assert relative(b, a) == pytest.approx(math.sqrt(20))


def test_counterexamples_by_hand():
    assert "0.125 on average, the gradient is 0.25" in estimators.two_rollouts()
    one, other = 1.5 - 0.375 * (2 - math.sqrt(3)), 1.5 - 1.5 * 0.09 * (2 - math.sqrt(3))
    degrees = math.degrees(math.atan2(0.09 * other, 0.25 * one) - math.atan2(0.09, 0.25))
    said = estimators.one_prompt()
    assert f"{one:.4f} and {other:.4f}" in said
    assert f"{degrees:.2f} degrees" in said
    assert "turned by 24.8 degrees" in said
    assert "by 53.7 with rewards 0, 0.05, 1" in said
    assert "(0.0625, 0.1250) on average, the gradient is (0.1250, 0.1250): turned by 18.4" in (
        estimators.two_tokens_a_step()
    )
    # alpha (1 - alpha) is 3/16; straight through it is times the mean of 2 z, which is 1/2
    assert "0.0938 on average, the gradient is 0.1875" in estimators.square_reward()


# ---------------------------------------------------------------------------------------------------------------------
# Worlds, a second way


def test_gradient_of_a_world_by_differences():
    world = World(2, 2, seed=6)
    paths = token_paths(MultiToken(2), 2, 2)
    case, step = Case(world, paths), 1e-5
    direction = torch.randn(len(case.truth), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameters, values = list(world.model.parameters()), []
    for sign in (1, -2):
        torch.nn.utils.vector_to_parameters(
            torch.nn.utils.parameters_to_vector(parameters) + sign * step * direction, parameters
        )
        values.append(objective(world, paths).item())
    assert (values[0] - values[1]) / (2 * step) == pytest.approx((case.truth @ direction).item(), rel=1e-5)


@pytest.mark.parametrize(("samples", "ratio"), [(1, "paper"), (2, "paper"), (3, "paper"), (2, "exact")])
def test_surrogate_is_the_mean_score(samples, ratio):
    """Reward times score, summed path by path, with latent steps scaled by 1/K."""
    world = World(3, 1, seed=7)
    paths = token_paths(MultiToken(samples), 3, 1)
    scale = 1 / samples if ratio == "paper" else 1.0
    scores = [group_estimate(score_moments(world, paths, prompt, scale), "none", 2) for prompt in range(3)]
    ours = surrogate_gradient(world, paths, GRPO(samples=samples, ratio=ratio))
    torch.testing.assert_close(ours, combined(scores).mean, rtol=1e-9, atol=1e-12)


def test_parts_and_prompts_add_up():
    case = Case(World(3, 1, seed=8), token_paths(MultiToken(2), 3, 1))
    torch.testing.assert_close(sum(case.parts()), case.truth)
    torch.testing.assert_close(sum(case.of_prompt(prompt)[1] for prompt in range(3)) / 3, case.truth)
    chances = [case.of_prompt(prompt)[0] for prompt in range(3)]
    assert sum(chances) / 3 == pytest.approx(objective(case.world, case.paths).item())


def test_what_is_wrong_is_known():
    """The group's mean costs 1/G of the gradient; the geometric mean 1 - 1/K of its latent part."""
    case = Case(World(2, 2, seed=9), token_paths(MultiToken(2), 2, 2))
    assert relative(case.mean("mean", 3), case.truth * 2 / 3) < 1e-9
    of_latent, of_answer = case.parts()
    got = surrogate_gradient(case.world, case.paths, GRPO(samples=2, ratio="paper"))
    assert relative(got, of_answer + of_latent / 2) < 1e-9
    assert relative(got, case.truth) > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# Broken on purpose


def taken_as(kind):
    """Advantages of this kind, whatever is asked for."""
    return lambda reward_B, group, _: advantages(reward_B, group, kind)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("reinforce_is_unbiased", "std", FAILS),
        ("leave_one_out_is_unbiased", "mean", FAILS),
        ("group_mean_is_unbiased", "leave-one-out", HOLDS),
        ("group_std_only_rescales", "mean", FAILS),
    ],
)
@pytest.mark.slow
def test_other_advantages_flip_the_verdict(name, kind, expected, monkeypatch):
    monkeypatch.setattr(enumeration, "advantages", taken_as(kind))
    assert verdict(name) == expected


def test_a_weight_without_its_group_size_flips_the_verdict(monkeypatch):
    monkeypatch.setattr(estimators, "std_weight", lambda p, group: std_weight(p, group) / (1 - 1 / group))
    assert verdict("group_std_only_rescales") == FAILS


def test_whole_log_probabilities_flip_the_verdict(monkeypatch):
    monkeypatch.setattr(GRPO, "ratio_log_prob", lambda self, trace: trace.log_prob_BT)
    assert verdict("mts_ratio_is_policy_gradient") == HOLDS


def test_a_ratio_that_forgets_the_answer_flips_the_verdict(monkeypatch):
    monkeypatch.setattr(GRPO, "ratio_log_prob", lambda self, trace: trace.log_prob_BT[:, :-1])
    assert verdict("mts_ratio_is_policy_gradient") == FAILS


def test_undivided_logits_flip_the_verdict(monkeypatch):
    monkeypatch.setattr(GRPO, "thought", lambda self, model: MultiToken(self.samples))
    assert verdict("official_ratio_has_its_own_objective") == FAILS


def test_scores_instead_of_straight_through_flip_the_verdict(monkeypatch):
    def scored(world, paths, group):
        return combined([group_estimate(score_moments(world, paths, p), "none", 2) for p in range(world.vocabulary)])

    monkeypatch.setattr(estimators, "straight_through", scored)
    assert verdict("straight_through_is_unbiased") == HOLDS
