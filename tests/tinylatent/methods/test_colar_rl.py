"""CoLaR's reinforcement learning: its ratio, its averages, its options, and what its likelihood counts.

Invariant 10 of the sheet; the others are in test_colar. Float64 to 1e-9 unless said otherwise.
"""

from dataclasses import replace

import losses
import pytest
import torch
from losses import assert_same, enter, loss_and_gradients, loss_of
from tinylatent_tasks import MNNS, MultiHop
from torch.distributions import Normal

from tinylatent.core.seeds import Seeds, Streams
from tinylatent.engine.force import replay
from tinylatent.engine.rollout import rollout
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import begun, train
from tinylatent.methods.colar import CoLaR, head_of
from tinylatent.methods.colar_rl import CoLaRGRPO, latents
from tinylatent.methods.discrete import END, THINKING, DiscreteCoT
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import TrainState
from tinylatent.objectives.policy_gradient import advantages, averaged, clipped
from tinylatent.training.config import Training

TASK = MultiHop(hops=6, least=1, nodes=4)
STATE = TrainState(3, 10, 5)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def examples_of(rows=6):
    return losses.examples_of(CoLaR(), TASK, TASK.problems(rows, seed=0))


def model_of(method):
    """A model whose rows stop at different times and whose answers are sometimes right."""
    model = losses.model_of(method, TASK)
    with torch.no_grad():
        table_VD = model.backbone.embedding
        table_VD[method.extra_id(model, END)] = table_VD[:-6].mean(0)
        if head_of(model).log_std is not None:
            head_of(model).log_std.weight.mul_(0.01)
    enter(method, model, 0, examples_of())
    return model


def method_of(**changes):
    return CoLaRGRPO(**{"speed": 2, "most": 4, **changes})


def by_hand(method, model, trace):
    """Log-probability of every step of a trace: densities, decisions and answers, from the definitions."""
    hidden_BTD, logits_BTV = trace.hidden_BTD, trace.logits_BTV
    within = trace.within(trace.span(THINKING))
    log_p_BTV = logits_BTV.log_softmax(-1)
    end = method.extra_id(model, END)
    found = torch.zeros(trace.rows, trace.steps, dtype=torch.float64)
    stop_BT = trace.span(THINKING).action.stop
    for row in range(trace.rows):
        for t in range(within.stop - within.start):
            step = within.start + t
            if not trace.acted_BT[row, step]:
                continue
            log_end = log_p_BTV[row, step, end]
            log_on = (1 - log_end.exp()).log() if t and method.go_on else torch.zeros(()).double()
            if stop_BT[row, t]:
                found[row, step] = log_end
                continue
            mean_D, sigma_D = head_of(model)(hidden_BTD[row, step])
            vector_D = trace.action("vector")[row, t] / head_of(model).scale
            each_D = Normal(mean_D, sigma_D).log_prob(vector_D)
            found[row, step] = log_on + (each_D.sum() if method.density == "sum" else each_D.mean())
        answer = trace.answer()[row]
        for place, token in enumerate(answer.tolist()):
            found[row, within.stop + 1 + place] = log_p_BTV[row, within.stop + 1 + place, token]
    return found


@pytest.mark.parametrize(
    "method", [method_of(), method_of(density="mean"), method_of(go_on=False), method_of(density="mean", go_on=False)]
)
def test_likelihoods_are_what_the_settings_say(method):
    """The policy's: the density over the whole width and every decision; or as in the published code."""
    model, examples = model_of(method), examples_of()
    trace = method.collect(model, examples, STATE).trace
    now = replay(model.backbone, trace)
    ours = now.log_prob_BT.masked_fill(~trace.drawn_BT, 0.0)
    torch.testing.assert_close(ours, by_hand(method, model, now), **CLOSE)
    torch.testing.assert_close(trace.sampled_log_prob_BT, ours.detach(), **CLOSE)
    stops = trace.span(THINKING).action.stop
    assert 0 < stops.any(1).sum() < len(stops), "some rows stop, some are cut at the limit"


@pytest.mark.parametrize("average", ["sequence", "sum"])
def test_10_the_gradient_is_that_of_the_surrogate_written_out(average):
    """Group advantages, ratios of one, steps averaged over a row or summed."""
    method = method_of(average=average)
    model, examples = model_of(method), examples_of()
    got = loss_and_gradients(model, loss_of(method, model, examples, STATE))
    trace = method.collect(model, examples, STATE).trace
    reward_B = (trace.answer() == examples.answer_BA.repeat_interleave(8, 0)).all(1).double()
    assert 0 < reward_B.sum() < len(reward_B)
    log_BT = by_hand(method, model, replay(model.backbone, trace))
    ratio_BT = (log_BT - log_BT.detach()).exp().masked_fill(~trace.drawn_BT, 0.0)
    per_row = ratio_BT.sum(1) / (trace.drawn_BT.sum(1) if average == "sequence" else 1)
    assert_same(got, loss_and_gradients(model, -(advantages(reward_B, 8) * per_row).mean()))


def test_10_equal_rewards_leave_the_weights_alone():
    method = method_of()
    model, examples = model_of(method), examples_of()
    silent = replace(examples, chain_BT=torch.full_like(examples.chain_BT, -1))  # no token
    _, gradients = loss_and_gradients(model, loss_of(method, model, silent, STATE))
    assert all(gradient.abs().max() == 0 for gradient in gradients.values())


def test_10_the_ratio_is_one_at_the_first_update_and_another_after_a_change():
    method = method_of(updates=2, clip=0.2)
    model, examples = model_of(method), examples_of()
    batch = method.collect(model, examples, STATE)
    first = method.loss(model, batch, STATE)
    assert first.value.item() == pytest.approx(-batch.advantage_B.mean().item(), abs=1e-12)
    assert first.metrics["clip_fraction"] == 0
    with torch.no_grad():
        head_of(model).mean.bias.add_(0.05)
    second = method.loss(model, batch, replace(STATE, update=1))
    assert abs(second.value.item() - first.value.item()) > 1e-3
    assert second.metrics["clip_fraction"] > 0


def test_10_a_mean_over_the_width_is_the_root_of_the_ratio():
    """Summed, a change of the head moves the logarithm of the ratio d times as far."""
    logs = {}
    for density in ("sum", "mean"):
        method = method_of(density=density)
        model, examples = model_of(method), examples_of()
        trace = method.collect(model, examples, STATE).trace
        before = replay(model.backbone, trace).log_prob_BT.detach()
        with torch.no_grad():
            head_of(model).mean.bias.add_(0.05)
        logs[density] = replay(model.backbone, trace).log_prob_BT.detach() - before
    within = trace.within(trace.span(THINKING))
    assert logs["sum"][:, within].abs().max() > 0.1
    torch.testing.assert_close(logs["sum"], 16 * logs["mean"], **CLOSE)  # the decisions have not changed


def test_10_the_average_over_steps_does_not_count_them():
    """Every position twice is the same to "sequence", twice as much to "sum"."""
    generator = torch.Generator().manual_seed(0)
    log_ratio_BT = 0.3 * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    mask_BT = torch.arange(5) < torch.tensor([1, 2, 3, 4, 5, 5])[:, None]
    advantage_B = torch.randn(6, generator=generator, dtype=torch.float64)
    values = {}
    for times in (1, 2):
        objective_BT, _ = clipped(log_ratio_BT.repeat(1, times), advantage_B, 0.2)
        mask = mask_BT.repeat(1, times)
        values[times] = [averaged(objective_BT, mask, over).item() for over in ("sequence", "sum")]
    assert values[2][0] == pytest.approx(values[1][0])
    assert values[2][1] == pytest.approx(2 * values[1][1])


def test_the_reward_may_be_shared_among_vectors():
    method = method_of(per_latent=True)
    model, examples = model_of(method), examples_of()
    batch = method.collect(model, examples, STATE)
    right_B = (batch.trace.answer() == examples.answer_BA.repeat_interleave(8, 0)).all(1)
    lengths_B = batch.trace.live_BT[:, batch.trace.within(batch.trace.span(THINKING))].sum(1)
    assert torch.equal(latents(batch.trace), lengths_B)
    reward_B = method.reward(model, examples, batch.trace, STATE)
    torch.testing.assert_close(reward_B, right_B.double() / lengths_B, **CLOSE)
    assert batch.metrics["latents"].item() == pytest.approx(lengths_B.double().mean().item())
    assert batch.metrics["reward"].item() == pytest.approx(reward_B.mean().item())


def test_the_reference_keeps_its_own_head():
    """A head that drifts away from where training began shows in the divergence, though the backbone stands still."""
    method = method_of(group=4, kl=0.1)
    model, examples = model_of(method), examples_of()
    still = method.loss(model, method.collect(model, examples, STATE), STATE).metrics["reference_kl"]
    with torch.no_grad():
        head_of(model).mean.bias.add_(0.3)
    moved = method.loss(model, method.collect(model, examples, STATE), STATE).metrics["reference_kl"]
    assert still == 0
    assert moved > 0.05


def test_it_goes_on_from_colar_with_head_and_scale_and_learns(unchecked):
    """From a chain of thought by CoLaR: weights, head and scale are taken over, then the head is moved by rewards."""
    task, config = MNNS(3, 1, 3), ModelConfig(16, 1, 1)
    first = Training(steps=16, batch_size=8, learning_rate=1e-2, log_every=16)
    start = Experiment(task, DiscreteCoT(ends=True), config, first, Seeds.all(1))
    speeds = {"speeds": (1, 2)}
    middle = replace(start, method=CoLaR(**speeds, latent_loss="nll"), start=start)
    training = replace(first, steps=6, learning_rate=1e-3, log_every=2)
    whole = replace(start, method=CoLaRGRPO(**speeds), training=training, start=middle)
    before, model = begun(whole, None, "cpu", lambda text: None), train(whole)
    taught = train(middle)
    assert torch.equal(head_of(before).scale, head_of(taught).scale)
    assert torch.equal(head_of(before).mean.weight, head_of(taught).mean.weight)
    assert torch.equal(model.backbone.embedding, taught.backbone.embedding)
    assert torch.equal(head_of(model).scale, head_of(taught).scale)
    assert not torch.equal(head_of(model).mean.weight, head_of(taught).mean.weight)


def test_a_deterministic_head_learns_to_stop_alone():
    method = method_of(deterministic=True)
    assert "density" in method.idle
    model, examples = model_of(method), examples_of()
    trace = method.collect(model, examples, STATE).trace
    assert trace.log_prob_BT[trace.drawn_BT].max() <= 0, "probabilities alone"
    assert len(latents(trace).unique()) > 1


def test_evaluation_takes_the_mean_unless_it_is_told_to_draw():
    model, examples = model_of(method_of()), examples_of()
    streams = Streams(0, 6)
    runs = [rollout(model.backbone, method_of(draws=draws).plan(model, examples), examples.prompt_BN,
                    examples.prompt_mask_BN, streams=streams) for draws in (False, True)]  # fmt: skip
    assert [any(span.drawn for span in run.thought_spans) for run in runs] == [False, True]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"density": "max"}, "density 'max': expected one of sum, mean"),
        ({"speed": 9}, "speed 9: expected 1 to 5"),
        ({"group": 1}, "group 1: expected at least 2 rollouts"),
    ],
)
def test_bad_settings_are_refused(fields, said, unchecked):
    with pytest.raises(ValueError, match=said):
        CoLaRGRPO(**fields)
