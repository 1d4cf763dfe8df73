"""LatentR3's second stage: rewards, advantages, and what each estimator's gradient is of.

By the numbered invariants of the method's sheet; those of the attention are in test_latentr3. Float64 to 1e-9 unless
said otherwise.
"""

import math
from dataclasses import replace
from typing import get_args

import losses
import pytest
import torch
from losses import assert_same, loss_and_gradients, loss_of
from ranks import assert_processes_agree
from tinylatent_tasks import MNNS, MultiHop, Recommendation

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import begun, train
from tinylatent.methods.latentr3 import LATENTS, LatentR3, attention_of
from tinylatent.methods.latentr3_rl import (
    Baseline,
    Estimator,
    LatentR3RL,
    Scale,
    batch_baseline,
    compared,
    mean_log_prob,
    perplexity_reward,
)
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import TrainState, has_prefix
from tinylatent.training.config import Training
from tinylatent.training.optimizer import make_optimizer

TASKS = [MNNS(3, 1, 4), MultiHop(hops=4, least=2, nodes=5), Recommendation(4, 3, 2, events=4)]
TASK, PADDED = TASKS[0], TASKS[2]
STATE = TrainState(3, 10, 5)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
EACH = pytest.mark.parametrize("estimator", get_args(Estimator))


def made(method, task=PADDED, rows=5, **options):
    """A model whose attention is spread over several slots, with the examples of some problems."""
    model = losses.spread(losses.model_of(method, task, **options))
    return model, losses.examples_of(method, task, task.problems(rows, seed=1))


def rewards_of(*shape, seed=0):
    return -1 - torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double().exp()


# ---------------------------------------------------------------------------------------------------------------------
# Rewards and advantages


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_invariant_1_without_noise_rewards_of_a_group_are_equal(sigma):
    """Advantages are then 0 with the group's mean; with the batch's only where the batch is one prompt."""
    method = LatentR3RL(sigma=sigma)
    model, examples = made(method)
    batch = method.collect(model, examples, STATE)
    reward_PK = method.reward(model, examples, batch.trace, STATE).view(5, 8)
    assert (batch.metrics["frac_reward_zero_std"] == 1) == (sigma == 0)
    assert bool((reward_PK == reward_PK[:, :1]).all()) == (sigma == 0)
    by_group = replace(method, baseline="group").collect(model, examples, STATE).advantage_B
    assert by_group.any() == (sigma > 0)
    assert batch.advantage_B.any(), "prompts differ"
    single = method.collect(model, examples.rows(slice(0, 1)), STATE).advantage_B
    assert single.any() == (sigma > 0)


def test_invariant_2_the_baseline_is_that_of_the_batch_in_any_order():
    reward_PK = rewards_of(6, 8)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert batch_baseline(reward_PK).item() == pytest.approx(reward_PK[:, 0].mean().item())
    torch.testing.assert_close(batch_baseline(reward_PK[order]), batch_baseline(reward_PK), **CLOSE)
    torch.testing.assert_close(compared(reward_PK[order]), compared(reward_PK)[order], **CLOSE)


@pytest.mark.parametrize("baseline", get_args(Baseline))
@pytest.mark.parametrize("scale", get_args(Scale))
def test_invariant_2_advantages_have_length_one_or_what_else_the_scale_says(baseline, scale):
    reward_PK = rewards_of(6, 8)
    found_PK = compared(reward_PK, baseline, scale)
    middle = reward_PK[:, 0].mean() if baseline == "batch" else reward_PK.mean(1, keepdim=True)
    centred_PK = reward_PK - middle
    size = {"norm": centred_PK.square().sum().sqrt(), "std": centred_PK.std(), "none": torch.tensor(1.0)}[scale]
    torch.testing.assert_close(found_PK, centred_PK / size, rtol=1e-6, atol=1e-6)
    if scale == "norm":
        assert found_PK.norm().item() == pytest.approx(1, abs=1e-6)
    equal_PK = torch.full((6, 8), -1.7, dtype=torch.float64)
    assert not compared(equal_PK, "group", scale).any()
    assert compared(equal_PK, "batch", scale).abs().max() < 1e-9


def test_invariant_3_the_reward_is_minus_the_perplexity():
    """At most -1, which is certainty; -V under a uniform model; tokens beyond the end of an answer do not count."""
    log_BA = torch.tensor([[1.0, 1.0], [0.5, 1.0], [0.1, 0.1]], dtype=torch.float64).log()
    torch.testing.assert_close(
        perplexity_reward(log_BA), torch.tensor([-1.0, -(2**0.5), -10.0], dtype=torch.float64), **CLOSE
    )
    said_BA = torch.tensor([[True, False]] * 3)
    torch.testing.assert_close(
        perplexity_reward(log_BA, said_BA), torch.tensor([-1.0, -2.0, -10.0], dtype=torch.float64), **CLOSE
    )
    torch.testing.assert_close(mean_log_prob(log_BA, said_BA), log_BA[:, 0], **CLOSE)
    method = LatentR3RL()
    model, examples = made(method)
    with torch.no_grad():
        model.backbone.norm.weight.zero_()
    batch = method.collect(model, examples, STATE)
    assert batch.metrics["reward"].item() == pytest.approx(-model.backbone.embedding.shape[0], abs=1e-9)


@pytest.mark.parametrize("rewarded", ["perplexity", "nll"])
def test_rewards_are_of_the_right_answer_and_nothing_is_decoded(rewarded):
    """From the probabilities of its three tokens behind every noisy latent; no verifier is asked."""

    def refuse(examples, trace):
        raise AssertionError("nobody asks a verifier")

    method = LatentR3RL(rewarded=rewarded)
    model, examples = made(method)
    state = replace(STATE, verify=refuse)
    trace = method.collect(model, examples, state).trace
    answer_BA = examples.answer_BA.repeat_interleave(8, 0)
    assert torch.equal(trace.answer(), answer_BA)
    log_BA = trace.logits_BTV[:, 1:].log_softmax(-1).gather(-1, answer_BA[..., None])[..., 0]
    expected_B = log_BA.mean(1) if rewarded == "nll" else -(1 / log_BA.exp().prod(1) ** (1 / 3))
    torch.testing.assert_close(method.reward(model, examples, trace, state), expected_B, **CLOSE)
    assert trace.counters.tokens == answer_BA.numel()


def test_shorter_answers_are_rewarded_for_their_own_tokens():
    method = LatentR3RL()
    model, examples = made(method)
    said_BA = torch.tensor([[True, False, False], [True] * 3, [True, True, False], [True] * 3, [True] * 3])
    masked = replace(examples, answer_mask_BA=said_BA)
    trace = method.collect(model, masked, STATE).trace
    reward_B = method.reward(model, masked, trace, STATE)
    torch.testing.assert_close(reward_B[:8], -1 / trace.log_prob_BT[:8, 1].exp(), **CLOSE)
    gradients = loss_and_gradients(model, loss_of(method, model, masked, STATE))[1]
    changed = replace(masked, chain_BT=torch.where(masked.answer_mask_BA.logical_not(), 3, masked.chain_BT[:, 1:]))
    changed = replace(changed, chain_BT=torch.cat([examples.chain_BT[:, :1], changed.chain_BT], 1))
    again = loss_and_gradients(model, loss_of(method, model, changed, STATE))[1]
    for name, gradient in gradients.items():
        if name.startswith("parts"):
            torch.testing.assert_close(again[name], gradient, **CLOSE)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


@EACH
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_invariant_6_the_projections_alone_are_trained(estimator, task):
    """3 d^2 + 3 d numbers move in training; the backbone stays bit for bit."""
    method = LatentR3RL(estimator=estimator)
    model, examples = made(method, task, config=ModelConfig(8, 1, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = make_optimizer(model, Training(learning_rate=1e-2, weight_decay=0.1), method.parameter_groups(0))
    method.loss(model, method.collect(model, examples, STATE), STATE).value.backward()
    optimizer.step()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sum(model.get_parameter(name).numel() for name in trained) == 3 * 8**2 + 3 * 8
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != has_prefix(name, ("parts.attention",)), name


def test_invariant_6_the_same_latents_have_the_same_answers_whatever_was_trained():
    """So that a divergence from a reference is 0, and its weight is refused."""
    method = LatentR3RL(estimator="score")
    model, examples = made(method)
    batch = method.collect(model, examples, STATE)
    before_BA = batch.trace.log_prob_BT[:, 1:]
    with torch.no_grad():
        for parameter in attention_of(model).parameters():
            parameter.add_(0.3)
    torch.testing.assert_close(method.again(model, batch).log_prob_BT[:, 1:], before_BA, **CLOSE)
    with pytest.raises(ValueError, match=r"kl 0\.1: expected 0"):
        LatentR3RL(kl=0.1)


def test_invariant_7_the_surrogate_s_ratio_is_one_and_its_gradient_weighs_the_likelihood():
    """Value minus the mean advantage; gradient -A times that of the mean log-probability at the noisy latent."""
    method = LatentR3RL(latents=2)
    model, examples = made(method)
    batch = method.collect(model, examples, STATE)
    got = loss_and_gradients(model, method.loss(model, batch, STATE).value)
    assert got[0] == pytest.approx(-batch.advantage_B.mean().item(), abs=1e-12)
    now = method.again(model, batch)
    weighed = -(batch.advantage_B * now.log_prob_BT[:, 2:].mean(1)).mean()
    expected = loss_and_gradients(model, weighed)[1]
    assert_same((0.0, got[1]), (0.0, expected))
    assert got[1]["parts.attention.value.weight"].abs().max() > 1e-4
    torch.testing.assert_close(now.action("epsilon"), batch.trace.action("epsilon"), **CLOSE)
    torch.testing.assert_close(now.inputs_BTD[:, :2], batch.trace.inputs_BTD[:, :2], **CLOSE)


@pytest.mark.parametrize("estimator", ["surrogate", "score"])
def test_invariant_7_the_ratio_moves_and_is_clipped_at_later_updates(estimator):
    """Its gradient at the second update is that of the ratio, where it is not clipped."""
    method = LatentR3RL(estimator=estimator, updates=2, clip=0.05)
    model, examples = made(method)
    batch = method.collect(model, examples, STATE)
    first = method.loss(model, batch, STATE)
    assert first.metrics["clip_fraction"] == 0
    with torch.no_grad():
        attention_of(model).value.weight.mul_(-1)
    second = method.loss(model, batch, replace(STATE, update=1))
    assert abs(second.value.item() - first.value.item()) > 1e-5
    assert 0 < second.metrics["clip_fraction"] < 1
    now = method.again(model, batch).log_prob_BT
    now_BT = now[:, 1:] if estimator == "surrogate" else now[:, :1]
    ratio_BT, A_B1 = (now_BT - batch.old_BT).exp(), batch.advantage_B[:, None]
    least_BT = torch.minimum(ratio_BT * A_B1, ratio_BT.clamp(0.95, 1.05) * A_B1)
    assert second.value.item() == pytest.approx(-least_BT.mean(1).mean().item(), abs=1e-12)


def test_the_score_s_gradient_weighs_the_density_of_vectors_that_stand_still():
    """-A times the gradient of log N(r_k; r, std) in r, std constant: A (r_k - r) / std^2 through r."""
    method = LatentR3RL(estimator="score", baseline="group", scale="none")
    model, examples = made(method)
    batch = method.collect(model, examples, STATE)
    got = loss_and_gradients(model, method.loss(model, batch, STATE).value)[1]
    quiet = replace(method, estimator="pathwise", sigma=0.0)
    r_BD = quiet.again(model, quiet.collect(model, examples, STATE)).inputs_BTD[:, 0]
    vector_BD, std_B1 = batch.trace.action("vector")[:, 0], batch.trace.action("std")[:, 0]
    slope_BD = batch.advantage_B[:, None] * (vector_BD - r_BD).detach() / std_B1**2
    expected = loss_and_gradients(model, -(slope_BD * r_BD).sum(1).mean())[1]
    assert_same((0.0, got), (0.0, expected))


@pytest.mark.parametrize("rewarded", ["perplexity", "nll"])
def test_the_other_estimators_are_gradients_of_what_they_are_named_after(rewarded):
    """Pathwise of the mean reward, likelihood of the noisy log-likelihood, plain of the first stage's loss."""
    method = LatentR3RL(estimator="pathwise", rewarded=rewarded)
    model, examples = made(method)
    batch = method.collect(model, examples, STATE)
    expected = []
    for estimator in ("pathwise", "likelihood"):
        said_B = method.again(model, batch).log_prob_BT[:, 1:].mean(1)
        gain_B = -(-said_B).exp() if (estimator, rewarded) == ("pathwise", "perplexity") else said_B
        expected.append(loss_and_gradients(model, -gain_B.mean()))
        got = loss_of(replace(method, estimator=estimator), model, examples, STATE)
        assert_same(loss_and_gradients(model, got), expected[-1])
    assert (expected[0][0] == expected[1][0]) == (rewarded == "nll")
    plain = replace(method, estimator="plain")
    first = loss_of(LatentR3(), model, examples, STATE) / examples.answer_tokens
    assert_same(loss_and_gradients(model, loss_of(plain, model, examples, STATE)), loss_and_gradients(model, first))
    assert plain.collect(model, examples, STATE).trace.rows == len(examples)


def flat(gradients):
    return torch.cat([gradient.flatten() for name, gradient in gradients.items() if name.startswith("parts")])


def slope_by_differences(method, model, examples):
    """The gradient of the expected reward in the projections, by central differences at common noise."""
    slopes = []
    for parameter in attention_of(model).parameters():
        values, step = parameter.data.view(-1), 1e-4
        for i in range(len(values)):
            ends = []
            for sign in (1, -1):
                values[i] += sign * step
                parameter.add_(0)  # torch counts changes of parameters, not of their data
                ends.append(method.collect(model, examples, STATE).metrics["reward"])
                values[i] -= sign * step
            slopes.append((ends[0] - ends[1]) / (2 * step))
    return torch.stack(slopes)


@pytest.mark.slow
@torch.no_grad()
def test_invariant_8_which_estimators_follow_the_expected_reward():
    """Cosines of updates with the slope of the expected reward, groups of a thousand standing for expectations.

    Pathwise is that slope, the score its estimate, and likelihoods go along with it. The published surrogate does not
    follow it: how it points depends on the baseline and on how the likelihood bends. Here it goes against the slope
    with the batch's baseline; with a linear softmax behind the latent it does with the group's (claims of the ledger).
    """
    options = {"group": 1000, "sigma": 0.4, "absolute": True, "scale": "none"}
    method = LatentR3RL(**options)
    task = MNNS(2, 1, 3)
    model = losses.spread(losses.model_of(method, task, config=ModelConfig(4, 1, 1)))
    examples = losses.examples_of(method, task, task.problems(6, seed=0))
    slope = slope_by_differences(method, model, examples)
    found = {}
    for baseline in get_args(Baseline):
        for estimator in get_args(Estimator):
            asked = replace(method, estimator=estimator, baseline=baseline)
            with torch.enable_grad():
                update = -flat(loss_and_gradients(model, loss_of(asked, model, examples, STATE))[1])
            found[estimator, baseline] = torch.cosine_similarity(update, slope, dim=0).item()
    assert found["pathwise", "batch"] > 1 - 1e-5
    assert min(found["score", baseline] for baseline in get_args(Baseline)) > 0.95
    assert min(found[name, "batch"] for name in ("likelihood", "plain")) > 0.8
    assert found["surrogate", "batch"] < 0
    assert found["surrogate", "group"] < 0.9


# ---------------------------------------------------------------------------------------------------------------------
# Several processes, and one prompt


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "baseline", "scale"),
    [("surrogate", "batch", "norm"), ("score", "group", "std"), ("pathwise", "batch", "norm")],
)
def test_invariant_9_two_processes_of_a_prompt_are_one_process_of_two(estimator, baseline, scale, tmp_path):
    """Advantages, the loss and its gradients, summed over processes that talk by gloo."""
    method = LatentR3RL(estimator=estimator, baseline=baseline, scale=scale)
    model, examples = made(method, rows=2)
    assert_processes_agree(method, model, examples, tmp_path, lambda model: model.parts)


@pytest.mark.parametrize("baseline", get_args(Baseline))
@pytest.mark.parametrize("scale", get_args(Scale))
def test_invariant_9_advantages_of_each_process_are_those_of_the_whole(baseline, scale):
    """With what gathering would bring, prompt by prompt; the number of prompts may be odd, and one."""
    reward_PK = rewards_of(3, 8)
    whole_PK = compared(reward_PK, baseline, scale)
    middle = batch_baseline(reward_PK) if baseline == "batch" else reward_PK.mean(1, keepdim=True)
    answers = {0: reward_PK, 1: reward_PK - middle}
    for number in range(3):
        asked = iter([0, 1] if baseline == "batch" else [1])
        part_1K = compared(reward_PK[number : number + 1], baseline, scale, lambda x, asked=asked: answers[next(asked)])
        torch.testing.assert_close(part_1K, whole_PK[number : number + 1], rtol=1e-6, atol=1e-6)


@EACH
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_invariant_9_one_prompt_alone_is_enough(estimator, task):
    method = LatentR3RL(estimator=estimator)
    model, examples = made(method, task, rows=1)
    value, gradients = loss_and_gradients(model, loss_of(method, model, examples, STATE))
    assert math.isfinite(value)
    assert gradients["parts.attention.value.weight"].abs().max() > 0


# ---------------------------------------------------------------------------------------------------------------------
# What it collects, and training


def test_the_first_of_a_group_has_no_noise_and_the_others_have_their_own():
    method = LatentR3RL(latents=2, sigma=0.5)
    model, examples = made(method)
    batch = method.collect(model, examples, STATE)
    epsilon_PKLD = batch.trace.action("epsilon").view(5, 8, 2, -1)
    assert not epsilon_PKLD[:, 0].any()
    loud_MD = epsilon_PKLD[:, 1:].flatten(0, 2)
    assert (loud_MD.abs().max(-1).values > 0).all()
    assert len(loud_MD.unique(dim=0)) == len(loud_MD)
    vector_MD = (batch.trace.action("vector") - batch.trace.action("epsilon")).view(5, 8, 2, -1)[:, 1:].flatten(0, 2)
    ratio = loud_MD.square().mean() / vector_MD.square().mean()
    assert ratio.sqrt().item() == pytest.approx(0.5, rel=0.1)


def test_metrics_tell_rewards_with_and_without_noise():
    method = LatentR3RL()
    model, examples = made(method)
    batch = method.collect(model, examples, STATE)
    reward_PK = method.reward(model, examples, batch.trace, STATE).view(5, 8)
    signs_PK = batch.advantage_B.view(5, 8).sign()
    assert batch.metrics["reward"].item() == pytest.approx(reward_PK.mean().item())
    assert batch.metrics["quiet_reward"].item() == pytest.approx(reward_PK[:, 0].mean().item())
    one = (signs_PK == signs_PK[:, :1]).all(1).double().mean().item()
    assert batch.metrics["one_signed"].item() == pytest.approx(one)
    told = method.loss(model, batch, STATE).metrics["answer_nll"].item()
    assert told == pytest.approx(-batch.trace.log_prob_BT[:, 1:].mean().item())


@pytest.mark.parametrize("signal", ["permuted", "none"])
def test_a_signal_takes_the_place_of_rewards_in_advantages_alone(signal):
    method = LatentR3RL(baseline="group", scale="none")
    model, examples = made(method)
    usual, other = (each.collect(model, examples, STATE) for each in (method, replace(method, signal=signal)))
    assert usual.metrics["reward"] == other.metrics["reward"]
    assert not torch.equal(usual.advantage_B, other.advantage_B)
    if signal == "none":
        assert not other.advantage_B.any()
    else:
        sorted_ones = [each.advantage_B.view(5, 8).sort(1).values for each in (usual, other)]
        torch.testing.assert_close(*sorted_ones, **CLOSE)


def test_a_group_reads_its_prompt_once():
    """In the rollouts and in their replay with the graph."""
    method = LatentR3RL()
    model, examples = made(method)
    batch = method.collect(model, examples, STATE)
    for trace in (batch.trace, method.again(model, batch)):
        assert trace.counters.slots == int(examples.prompt_mask_BN.sum()) + 5 * 8 * 3
        assert trace.group == 8


@EACH
def test_problems_without_steps_have_no_latent_and_no_gradient(estimator):
    """A part that has such problems alone does not stop training."""
    method, task = LatentR3RL(estimator=estimator), MNNS(1, 1, 4)
    model, examples = made(method, task, rows=2)
    model.backbone.requires_grad_(False)  # as in training
    assert method.collect(model, examples, STATE).trace.steps == 1
    _, gradients = loss_and_gradients(model, loss_of(method, model, examples, STATE))
    assert not any(gradient.any() for gradient in gradients.values())


@EACH
def test_it_goes_on_from_latentr3_and_moves_the_projections(estimator, unchecked):
    """Backbone and projections are taken over, the backbone stays, the projections move."""
    task, config = MNNS(3, 1, 3), ModelConfig(16, 1, 1)
    first = Training(steps=16, batch_size=8, learning_rate=1e-2, log_every=16)
    start = Experiment(task, LatentR3(latents=2), config, first, Seeds.all(1))
    method = LatentR3RL(estimator=estimator, latents=2)
    assert method.start_settings == {"latents": 2}
    training = replace(first, steps=6, learning_rate=1e-3, log_every=2, micro_batch=3)
    whole = replace(start, method=method, training=training, start=start)
    before, model, taught = begun(whole, None, "cpu", lambda text: None), train(whole), train(start)
    for name, value in taught.state_dict().items():
        assert torch.equal(before.state_dict()[name], value), name
        if name.startswith("backbone"):
            assert torch.equal(model.state_dict()[name], value), name
    moved = [not torch.equal(model.state_dict()[name], value) for name, value in taught.state_dict().items()
             if name.startswith("parts")]  # fmt: skip
    assert all(moved)


def test_inference_has_no_noise():
    """It is that of the first stage."""
    method = LatentR3RL()
    model, examples = made(method)
    plain = method.solve(model, examples).trace
    first = LatentR3().solve(model, examples).trace
    torch.testing.assert_close(plain.logits_BTV, first.logits_BTV, **CLOSE)
    assert next(segment.label for segment in method.plan(model, examples)) == LATENTS
    assert not any(span.drawn for span in plain.thought_spans)


def test_settings_without_effect_say_so():
    assert {"clip", "advantage", "average", "temperature", "patience"} <= {*LatentR3RL().idle}
    assert "clip" not in LatentR3RL(updates=2).idle
    assert {"baseline", "scale", "signal"} <= {*LatentR3RL(estimator="pathwise").idle}
    assert "rewarded" in LatentR3RL(estimator="likelihood").idle
    assert "rewarded" not in LatentR3RL(estimator="pathwise").idle
    assert {"group", "sigma", "absolute"} <= {*LatentR3RL(estimator="plain").idle}
    assert "absolute" in LatentR3RL(sigma=0.0).idle
    assert LatentR3RL().early_stop([], True) is None
    assert LatentR3RL(estimator="plain").forwards < LatentR3RL().forwards


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sigma": -0.1}, "sigma -0.1: expected 0 to 100"),
        ({"latents": 99}, "latents 99: expected 1 to 64"),
        ({"estimator": "grpo"}, "estimator 'grpo': expected one of surrogate, score"),
        ({"rewarded": "hit"}, "rewarded 'hit': expected one of perplexity, nll"),
        ({"baseline": "none"}, "baseline 'none': expected one of batch, group"),
        ({"scale": "max"}, "scale 'max': expected one of norm, std, none"),
        ({"group": 1}, "group 1: expected at least 2 rollouts"),
    ],
)
def test_bad_settings_are_refused(fields, said, unchecked):
    with pytest.raises(ValueError, match=said):
        LatentR3RL(**fields)
