"""GRPO: against rollouts and losses written out by hand, and its modes where they must agree.

The hand-written rollout is discrete: one row at a time, no cache, plain token draws; K tokens a step are rebuilt from
the actions of the engine's own rollout. Float64 to 1e-9 unless said otherwise.
"""

import math
from dataclasses import replace

import pytest
import torch
from losses import assert_same, enter, examples_of, loss_and_gradients, loss_of
from tinylatent_tasks import MNNS, MultiHop

from tinylatent.core.files import read_lines
from tinylatent.engine.force import replay
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import Dirichlet, MultiToken, Token
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import train
from tinylatent.lab.measure import measure
from tinylatent.lab.records import DEFAULT
from tinylatent.methods import GRPO, DiscreteCoT
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import TrainState
from tinylatent.objectives.policy_gradient import advantages
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.checkpoints import METRICS, find_checkpoint
from tinylatent.training.config import Training

TASK, MODEL = MNNS(3, 1, 3), ModelConfig(16, 2, 2)
STATE = TrainState(3, 10, 5)


def model_of(method, dtype=torch.float64, scale=6):
    """A model whose weights are large enough that every input matters, and whose answers are sometimes right."""
    model = Experiment(TASK, method, MODEL).fresh().to(dtype)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    enter(method, model, 0, asked())
    return model


def asked(rows=12):
    return examples_of(GRPO(), TASK, TASK.problems(rows, seed=1))


def rolled(method, model, examples, state=STATE):
    """The rollouts that a loss at this moment is made of."""
    return rollout(
        model.backbone,
        method.plan(model, examples, method.temperature),
        examples.prompt_BN,
        examples.prompt_mask_BN,
        streams=state.streams(len(examples) * method.group),
        group=method.group,
    )


def first_loss(method, model, examples):
    """The first loss of a step, with its metrics."""
    return method.loss(model, method.collect(model, examples, STATE), STATE)


def moved(model, by=1e-2, seed=0):
    """Changes the weights a little, as an optimizer would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter) * by)


# ---------------------------------------------------------------------------------------------------------------------
# One token is discrete chain of thought


def naive_discrete(model, examples, group, state):
    """Rollouts of discrete chains, row by row: token by token from the whole sequence, and their log-probabilities."""
    steps, rows = examples.num_steps + 1, []
    for row in range(len(examples) * group):
        inputs = [model.backbone.embedding[i] for i in examples.prompt_BN[row // group]]
        streams, said, logs = state.streams(len(examples) * group), [], []
        for step in range(steps):
            hidden_SD, _ = model.backbone.forward(torch.stack(inputs)[None])
            log_p_V = (hidden_SD[0, -1] @ model.backbone.embedding.T).log_softmax(0)
            streams.at(torch.full((len(examples) * group,), step))
            threshold = streams.uniform()[row, 0]
            token = int((log_p_V.exp().cumsum(0) > threshold).nonzero()[0])
            said.append(token)
            logs.append(log_p_V[token])
            inputs.append(model.backbone.embedding[token])
        rows.append((said, torch.stack(logs)))
    return rows


def test_one_token_is_discrete_chain_of_thought_sampled():
    """The same tokens from the same streams as Token's, the same log-probabilities, the same embeddings."""
    method = GRPO(samples=1)
    model, examples = model_of(method), asked()
    ours = rolled(method, model, examples)
    theirs = rollout(
        model.backbone,
        DiscreteCoT().plan(model, examples, 1.0),
        examples.prompt_BN,
        streams=STATE.streams(len(examples) * 8),
        group=8,
    )
    assert torch.equal(ours.action("ids")[..., 0], theirs.thought_spans[0].action["id"])
    assert torch.equal(ours.action("id"), theirs.action("id"))
    assert torch.equal(ours.log_prob_BT, theirs.log_prob_BT)
    assert torch.equal(ours.inputs_BTD, theirs.inputs_BTD)


@pytest.mark.parametrize("ratio", ["exact", "paper", "official"])
def test_one_token_has_the_gradient_of_discrete_grpo(ratio):
    """Written out: sampled chains, group advantages, REINFORCE with steps averaged. All ratios are one at K = 1."""
    method = GRPO(samples=1, ratio=ratio)
    model, examples = model_of(method), asked(6)
    got = loss_and_gradients(model, loss_of(method, model, examples, STATE))
    rows = naive_discrete(model, examples, 8, STATE)
    right_B = [said[-1] == int(examples.answer_BA[b // 8, 0]) for b, (said, _) in enumerate(rows)]
    assert 0 < sum(right_B) < len(right_B)
    advantage_B = advantages(torch.tensor(right_B, dtype=torch.float64), 8)
    surrogate = sum(a * (logs - logs.detach()).exp().mean() for a, (_, logs) in zip(advantage_B, rows, strict=True))
    assert_same(got, loss_and_gradients(model, -surrogate / len(rows)))


def test_rewards_are_ones_for_the_right_answer():
    """Counted by the task's own oracle."""
    method = GRPO(samples=2)
    model, examples = model_of(method), asked()
    first = first_loss(method, model, examples)
    answers = rolled(method, model, examples).action("id")
    rows = TASK.problems(12, seed=1).repeat(8, axis=0)
    assert first.metrics["reward"].item() == pytest.approx(TASK.score(rows, answers.numpy()).mean())


# ---------------------------------------------------------------------------------------------------------------------
# Ratios


@pytest.mark.parametrize("method", [GRPO(), GRPO(ratio="paper"), GRPO(ratio="official"), GRPO(gamma=2.0)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_replay_under_equal_weights_is_the_same_policy(method, dtype):
    """log-ratio 0: 1e-9 in float64; in float32 1e-4 for tokens, 5e-3 for densities, sums over 89 tokens."""
    task = MNNS()
    model = Experiment(task, method).fresh().to(dtype)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.mul_(6 if parameter.ndim > 1 else 1)
    examples = Symbols(task, task.problems(40, seed=0)).examples()
    run = rolled(method, model, examples)
    log_ratio_BT = method.ratio_log_prob(replay(model.backbone, run)) - method.ratio_log_prob(run)
    bound = 1e-9 if dtype == torch.float64 else 5e-3 if method.gamma else 1e-4
    assert log_ratio_BT.abs().max() < bound


@pytest.mark.parametrize("ratio", ["exact", "paper", "official"])
def test_log_probabilities_are_counted_as_the_ratio_says(ratio):
    """After the weights moved: the product of the K probabilities, its K-th root, or the product of tempered ones."""
    method = GRPO(samples=3, ratio=ratio)
    model, examples = model_of(method), asked()
    run = rolled(method, model, examples)
    moved(model)
    now = replay(model.backbone, run)
    got_BT = method.ratio_log_prob(now)
    temperature = 3 if ratio == "official" else 1
    for b in range(0, 96, 7):
        for t in range(3):
            logits_V = now.logits_BTV[b, t]
            if t < 2:
                ids = run.action("ids")[b, t].tolist()
                each = [(logits_V / temperature).softmax(0)[i].log() for i in ids]
                expected = sum(each) / (3 if ratio == "paper" else 1)
            else:
                expected = logits_V.softmax(0)[run.action("id")[b, 0]].log()
            assert got_BT[b, t].item() == pytest.approx(expected.item(), abs=1e-9)


def test_official_samples_at_temperature_k_but_answers_at_one():
    method = GRPO(samples=3, ratio="official")
    model, examples = model_of(method), asked()
    for temperature in (0.0, 1.0):  # evaluation included
        latent, answer = (segment.thought for segment in method.plan(model, examples, temperature))
        assert isinstance(latent, MultiToken)
        assert (latent.samples, latent.temperature) == (3, 3)
        assert isinstance(answer, Token)
        assert answer.temperature == temperature


def test_gamma_asks_for_points_of_the_simplex():
    method = GRPO(gamma=2.5)
    model, examples = model_of(method), asked()
    latent, _ = (segment.thought for segment in method.plan(model, examples))
    assert isinstance(latent, Dirichlet)
    assert latent.gamma == 2.5


# ---------------------------------------------------------------------------------------------------------------------
# Updates, clipping, the reference


def test_later_updates_compare_with_the_policy_that_sampled():
    """Two updates a batch: the second loss is the clipped surrogate of moved weights, computed here from the ratio."""
    method = GRPO(samples=2, updates=2, clip=0.05)
    model, examples = model_of(method), asked()
    run = rolled(method, model, examples)
    old_BT = method.ratio_log_prob(run)
    batch = method.collect(model, examples, STATE)
    first = method.loss(model, batch, STATE)
    assert first.metrics["clip_fraction"] == 0
    moved(model, 3e-2)
    second = method.loss(model, batch, replace(STATE, update=1))
    ratio_BT = (method.ratio_log_prob(replay(model.backbone, run)) - old_BT).exp()
    reward_B = (run.action("id") == examples.answer_BA.repeat_interleave(8, 0)).all(1).double()
    advantage_B1 = advantages(reward_B, 8)[:, None]
    plain_BT, held_BT = ratio_BT * advantage_B1, ratio_BT.clamp(0.95, 1.05) * advantage_B1
    assert second.value.item() == pytest.approx(-torch.minimum(plain_BT, held_BT).mean().item(), abs=1e-9)
    share = (held_BT < plain_BT).double().mean().item()
    assert 0 < share < 1
    assert second.metrics["clip_fraction"].item() == pytest.approx(share)
    assert set(second.metrics) == {"clip_fraction"}
    moved(model, 1e-2)
    last_BT = (method.ratio_log_prob(replay(model.backbone, run)) - old_BT).exp()
    end = method.after(model, batch, replace(STATE, update=1))
    kl = (last_BT - 1 - last_BT.log()).mean().item()
    assert end["approximate_kl"].item() == pytest.approx(kl)
    assert set(end) == {"approximate_kl"}


def test_the_reference_is_where_training_began():
    method = GRPO(samples=2, kl=0.5)
    model, examples = model_of(method), asked()
    plain = GRPO(samples=2)
    assert_same(
        loss_and_gradients(model, loss_of(method, model, examples, STATE)),
        loss_and_gradients(model, loss_of(plain, model, examples, STATE)),
    )
    run = rolled(method, model, examples)
    there_BT = method.ratio_log_prob(run)
    moved(model)
    first = first_loss(method, model, examples)
    again = rolled(method, model, examples)
    gap_BT = method.ratio_log_prob(replay(model.parts["reference"].backbone, again)) - method.ratio_log_prob(again)
    divergence = (gap_BT.exp() - 1 - gap_BT).mean().item()
    assert divergence > 1e-6
    assert first.metrics["reference_kl"].item() == pytest.approx(divergence)
    assert first.value.item() == pytest.approx(0.5 * divergence, abs=1e-9)  # the surrogate itself is 0 at ratio 1
    unmoved = replay(model.parts["reference"].backbone, run)
    torch.testing.assert_close(method.ratio_log_prob(unmoved), there_BT, rtol=1e-9, atol=1e-9)
    assert not any(parameter.requires_grad for parameter in model.parts["reference"].parameters())


def test_equal_rewards_leave_the_weights_alone():
    """Nobody can be right: no group teaches anything, and the gradient is exactly zero."""
    method = GRPO(samples=2)
    model, examples = model_of(method), asked()
    silent = replace(examples, chain_BT=torch.full_like(examples.chain_BT, -1))  # no token
    loss = first_loss(method, model, silent)
    assert loss.metrics["reward"] == 0
    assert loss.metrics["frac_reward_zero_std"] == 1
    _, gradients = loss_and_gradients(model, loss_of(method, model, silent, STATE))
    assert all(gradient.abs().max() == 0 for gradient in gradients.values())


def test_ragged_rows_count_their_own_steps():
    """Rows of one to three hops: waiting steps have no part in loss, figures or entropy."""
    task = MultiHop(nodes=5, hops=3)
    method = GRPO(samples=2, average="sequence")
    model = Experiment(task, method, MODEL).fresh().double()
    examples = examples_of(method, task, task.problems(16, seed=0))
    assert not isinstance(examples.num_steps, int)
    loss = first_loss(method, model, examples)
    run = rolled(method, model, examples)
    entropy_T = loss.metrics["entropy"]
    assert len(entropy_T) == examples.chain_BT.shape[1]
    for t in range(run.steps):
        live = [b for b in range(len(run.prompt_BN)) if run.live_BT[b, t]]
        p_BV = run.logits_BTV[live, t].softmax(-1)
        assert entropy_T[t].item() == pytest.approx(-(p_BV * p_BV.log()).sum(-1).mean().item())


# ---------------------------------------------------------------------------------------------------------------------
# Stages, logs and advice


def test_the_curriculum_takes_more_tokens_stage_by_stage():
    method = GRPO(samples=6, curriculum=(1, 3))
    assert method.stage_starts(900) == (0, 300, 600)
    model = model_of(method)
    for stage, samples in enumerate((1, 3, 6)):
        enter(method, model, stage, asked())
        assert method.thought(model).samples == samples


def recipe(**changes):
    return Training(
        **{"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "weight_decay": 0.0, "log_every": 2, **changes}
    )


def experiment(method, **changes):
    """A short run from fresh weights."""
    return Experiment(TASK, method, ModelConfig(16, 1, 1), recipe(**changes))


def quiet(text):
    pass


def test_every_diagnostic_is_logged(tmp_path, unchecked):
    train(experiment(GRPO(samples=2, updates=2, kl=0.1)), tmp_path, say=quiet)
    lines = read_lines(tmp_path / METRICS)
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        assert len(line["entropy"]) == 3
        for name in ("clip_fraction", "approximate_kl", "frac_reward_zero_std", "reward", "reference_kl"):
            assert math.isfinite(line[name]), name
        assert 0 <= line["reward"] <= 1
        assert line["gradient_norm"] > 0
        assert line["approximate_kl"] > 0  # of the second updates


def lines(**metrics):
    steps = len(next(iter(metrics.values())))
    return [{"step": 10 * (i + 1), **{name: values[i] for name, values in metrics.items()}} for i in range(steps)]


@pytest.mark.parametrize(
    ("silent", "reward", "said"),
    [
        ([1.0, 1.0], 0.0, None),
        ([1.0, 0.9999, 1.0], 0.4, "40 % of the answers being right: the policy says the same whatever it samples"),
        (
            [1.0, 1.0, 1.0],
            0.0,
            "last 30 batches of rollouts: nearly no answer is right; start from a better run (--start)",
        ),
        ([0.5, 1.0, 1.0, 1.0], 0.99, "last 30 batches of rollouts: nearly every answer is right"),
        ([1.0, 1.0, 0.9], 0.0, None),
        ([1.0, 0.9, 1.0, 1.0], 0.0, None),
        ([], 0.0, None),
    ],
)
def test_advice_comes_with_patience(silent, reward, said):
    logged = lines(frac_reward_zero_std=silent, reward=[reward] * len(silent)) if silent else []
    found = GRPO(patience=30).early_stop(logged, ends=False)
    assert found is None if said is None else said in found


def test_a_run_that_was_silent_from_end_to_end_says_so_at_its_end():
    """However short; but not one that taught something once."""
    assert "nearly no answer" in GRPO(patience=30).early_stop(
        lines(frac_reward_zero_std=[1.0, 1.0], reward=[0.0, 0.0]), True
    )
    assert GRPO(patience=30).early_stop(lines(frac_reward_zero_std=[0.5, 1.0], reward=[0.0, 0.0]), True) is None
    assert GRPO(patience=30).early_stop([], True) is None


def test_a_run_without_signal_stops_and_says_so(tmp_path, unchecked):
    """From fresh weights nothing is right: it stops, keeps its checkpoint, and a second start changes nothing."""
    remarks = []
    task = MNNS(3, 1, 30)  # too many sums to guess one of eight
    whole = Experiment(task, GRPO(patience=4, group=2), ModelConfig(8, 1, 1), recipe(steps=100, num_train=64))
    train(whole, tmp_path, say=remarks.append)
    assert len(remarks) == 1
    assert "nearly no answer is right; start from a better run" in remarks[0]
    saved = find_checkpoint(tmp_path)
    assert saved.step < 100
    train(whole, tmp_path, say=remarks.append)
    assert len(remarks) == 1
    assert find_checkpoint(tmp_path).step == saved.step


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"samples": 0}, "samples 0: expected 1 to 1000"),
        ({"curriculum": (1, 0)}, r"curriculum \(1, 0\) before samples 3: expected tokens a step that grow"),
        ({"curriculum": (1, 3)}, r"curriculum \(1, 3\) before samples 3: expected tokens a step that grow"),
        ({"samples": 10**9}, "samples 1000000000: expected 1 to 1000"),
        ({"group": -1, "advantage": "none"}, "group -1: expected 1 to 1000"),
        ({"kl": math.inf}, "kl inf: expected 0 or more"),
        ({"gamma": 0.0}, r"gamma 0\.0: expected a positive number"),
        ({"gamma": 2.0, "ratio": "paper"}, "gamma excludes samples, curriculum, ratio and temperature"),
        ({"gamma": 2.0, "samples": 6}, "gamma excludes samples, curriculum, ratio and temperature"),
        ({"ratio": "other"}, "ratio 'other': expected one of exact, paper, official"),
        ({"group": 1}, "group 1: expected at least 2 rollouts"),
        ({"clip": 0.0}, r"clip 0\.0: expected more than 0"),
        ({"kl": -1.0}, r"kl -1\.0: expected 0 or more"),
        ({"temperature": 0.0}, r"temperature 0\.0: expected 0\.01 to 100"),
        ({"updates": 0}, "updates 0: expected 1 to 1000"),
        ({"advantage": "z"}, "advantage 'z': expected one of"),
        ({"average": "z"}, "average 'z': expected one of"),
    ],
)
def test_bad_settings_are_refused(fields, said, unchecked):
    with pytest.raises(ValueError, match=said):
        GRPO(**fields)


@pytest.mark.slow
def test_a_half_trained_chain_learns_from_rewards():
    start = Experiment(
        MNNS(3, 1, 4), DiscreteCoT(), ModelConfig(16, 2, 2), Training(steps=250, batch_size=32, learning_rate=5e-3)
    )
    whole = replace(
        start,
        method=GRPO(samples=1),
        training=Training(steps=150, batch_size=32, learning_rate=1e-3, weight_decay=0.0, log_every=10),
        start=start,
    )
    record = measure(whole, None)
    first, last = (record.metrics[i]["reward"] for i in (0, -1))
    assert 0.1 < first < 0.9
    assert last > first + 0.1


def test_groups_of_one_learn_where_nobody_is_compared():
    """REINFORCE: a right answer teaches, a wrong one does not, and only batches without a right one are silent."""
    method = GRPO(samples=2, group=1, advantage="none")
    model, examples = model_of(method), asked(64)
    loss = first_loss(method, model, examples)
    assert 0 < loss.metrics["reward"] < 1
    assert loss.metrics["frac_reward_zero_std"].item() == pytest.approx(1 - loss.metrics["reward"].item())


@pytest.mark.parametrize("method", [GRPO(samples=2), GRPO(gamma=2.0, updates=4)], ids=["tokens", "simplex"])
def test_training_that_diverges_says_so(method, tmp_path, unchecked):
    """In the sampler, before any line of the log; nothing was learnt, so the folder is free for other settings."""
    said = r"the logits are not finite, training diverged; lower training\.learning_rate"
    with pytest.raises(ValueError, match=said):
        train(experiment(method, learning_rate=1e30, log_every=1000, steps=50), tmp_path, say=quiet)
    train(experiment(method), tmp_path, say=quiet)


def test_controls_are_those_of_the_stage_reached(unchecked):
    """A curriculum that stopped while it drew one token has no latents to replace."""
    task, method = MNNS(3, 1, 30), GRPO(samples=2, curriculum=(1,), patience=2, group=2)
    record = measure(Experiment(task, method, ModelConfig(8, 1, 1), recipe(steps=50, num_train=64)), None)
    assert record.stopped.step < 25
    assert set(record.evaluations) == {DEFAULT, "greedy", "mixture"}
