"""HRPO's training: rewards, loss, reference and gradients, against what is written out; invariants by their number.

Float64 to 1e-9 unless said otherwise.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from fakes import random
from hybrids import TASK, asked, gated_BT, model_of, opened
from losses import loss_and_gradients
from naive import gradients

from tinylatent.core.seeds import Seeds
from tinylatent.engine.force import force, replay
from tinylatent.engine.plan import Segment
from tinylatent.engine.thought import Action
from tinylatent.engine.trace import NO_TOKEN
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import train
from tinylatent.lab.measure import idle_settings, measure
from tinylatent.methods import HRPO, DiscreteCoT
from tinylatent.methods.discrete import THINKING, ended
from tinylatent.methods.hrpo import Gate, Gated, hidden_ratio, initial_openness
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import TrainState
from tinylatent.training.config import Training
from tinylatent.training.loop import fit
from tinylatent.training.optimizer import make_optimizer


def even(examples, trace):
    """Rewards even tokens, so that models that know nothing are rewarded differently within a group."""
    return (trace.answer()[:, 0] % 2 == 0).double()


STATE = TrainState(3, 10, 5, verify=even)
OPEN = {"r_min": 0.3, "r_max": 0.6, "group": 4}


def entered(method, **options):
    """A model whose reference is what it is at the start."""
    model = model_of(method, **options)
    method.enter(model, 0, asked(), STATE)
    return model


def collected(method, model, rows=8, state=STATE):
    return method.collect(model, asked(rows), state)


def first_loss(method, model, batch=None, state=STATE):
    return method.loss(model, collected(method, model, state=state) if batch is None else batch, state)


def moved(model, by=0.05):
    """Changes the policy a little, its reference not."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if not name.startswith("parts.reference"):
                parameter.add_(random(*parameter.shape, seed=number), alpha=by)


# ---------------------------------------------------------------------------------------------------------------------
# Written out


def written_out(model, batch, gate, temperature):
    """Log-probabilities of every row's actions, from its own whole sequence; the gate spelled out, none if None."""
    trace, backbone, rows = batch.trace, model.backbone, []
    span, answer = trace.span(THINKING), trace.span("answer")
    for row in range(trace.rows):
        prompt = trace.prompt_BN[row][trace.mask_BS[row, : trace.prompt_BN.shape[1]]]
        inputs, ids = [backbone.embedding[i] for i in prompt], []
        for id, soft, stop in zip(span.action["id"][row], softs(span)[row], span.action.stop[row], strict=True):
            e = backbone.embedding[id]
            ids.append(id)
            if gate is not None and not stop:
                r, i = (1 / (1 + (-part).exp()) for part in (gate.weight @ e + gate.bias).chunk(2))
                a = (1 + (-gate.openness_D).exp()) ** (-8 * r)
                e = a * e + (1 - a**2).sqrt() * i * soft
            inputs.append(e)
            if stop:
                break
        ids.append(answer.action["id"][row, 0])
        hidden_1SD, _ = backbone.forward(torch.stack(inputs)[None])
        log_p_SV = (backbone.readout(hidden_1SD[0, len(prompt) - 1 :]) / temperature).log_softmax(-1)
        rows.append(log_p_SV[torch.arange(len(ids)), torch.stack(ids)])
    return rows


def softs(span):
    """The stored soft tokens; zeros where there are none."""
    return span.action.values.get("soft", torch.zeros(*span.action["id"].shape, 16, dtype=torch.float64))


@pytest.mark.parametrize(
    "method", [HRPO(**OPEN, kl=0.1), HRPO(gate="token", group=4, kl=0.1, temperature=0.8)], ids=repr
)
def test_the_loss_is_group_advantages_without_a_ratio_and_a_divergence_from_tokens(method):
    """A (r - mean) / std in the group, the mean over a row's steps of log p A and of k3, the mean over rows."""
    model = entered(method)
    moved(model)
    batch = collected(method, model)
    gate = model.parts["gate"] if method.gate == "learned" else None
    now = written_out(model, batch, gate, method.temperature)
    then = written_out(model.parts["reference"], batch, None, method.temperature)
    reward_B = method.reward(model, batch.examples, batch.trace, STATE)
    groups = reward_B.view(-1, 4)
    assert (groups.std(1) > 0).any()
    advantage_B = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)).flatten()
    total = 0.0
    for new, ref, advantage in zip(now, then, advantage_B, strict=True):
        gap = ref.detach() - new
        total = total - (advantage * (new - new.detach() + 1) - 0.1 * (gap.exp() - gap - 1)).mean() / len(now)
    got, expected = (loss_and_gradients(model, value) for value in (first_loss(method, model, batch).value, total))
    assert got[0] == pytest.approx(expected[0], abs=1e-9)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(got[1][name], gradient, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("latent", ["soft", "shuffled"])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(latent):
    """Also where a soft token comes from a problem that another part has."""
    method = HRPO(**OPEN, kl=0.1, latent=latent)
    model = entered(method)
    moved(model)
    whole = loss_and_gradients(model, first_loss(method, model).value)
    parts = sum(method.loss(model, part, STATE).value for part in collected(method, model).parts(3))
    value, gradient = loss_and_gradients(model, parts)
    assert value == pytest.approx(whole[0], abs=1e-9)
    for name, wanted in whole[1].items():
        torch.testing.assert_close(gradient[name], wanted, rtol=1e-7, atol=1e-9)


def test_rewards_are_zero_without_a_delimiter():
    method = HRPO(**OPEN)
    model, every = entered(method), replace(STATE, verify=lambda examples, trace: torch.ones(trace.rows))
    batch = collected(method, model, state=every)
    reward_B = method.reward(model, batch.examples, batch.trace, every)
    assert torch.equal(reward_B, ended(batch.trace).double())
    assert 0 < reward_B.mean() < 1
    assert batch.metrics["reward"] == reward_B.mean()
    answer_BA = method.solve(model, asked(40)).answer_BA
    assert (answer_BA == NO_TOKEN).any()
    assert (answer_BA != NO_TOKEN).any()


# ---------------------------------------------------------------------------------------------------------------------
# Limits


@pytest.mark.parametrize("graph", [False, True])
def test_invariant_2_a_shut_gate_is_group_advantages_on_tokens(graph):
    """Bit by bit: rollouts, probabilities, and the gradient of every weight of the backbone."""
    gated, tokens = HRPO(group=4, kl=0.1, graph=graph), HRPO(group=4, kl=0.1, gate="token")
    model = opened(model_of(gated), torch.inf)
    plain = model_of(tokens)
    plain.load_state_dict(model.state_dict())
    found = []
    for method, own in ((gated, model), (tokens, plain)):
        method.enter(own, 0, asked(), STATE)
        moved(own.backbone)
        batch = collected(method, own)
        loss, gradient = loss_and_gradients(own, first_loss(method, own, batch).value)
        found.append((batch.trace, loss, gradient))
    (one, loss, gradient), (other, expected, wanted) = found
    assert torch.equal(one.inputs_BTD, other.inputs_BTD)
    assert torch.equal(one.sampled_log_prob_BT, other.sampled_log_prob_BT)
    assert loss == pytest.approx(expected, abs=1e-12)
    for name, value in wanted.items():
        torch.testing.assert_close(gradient[name], value, rtol=1e-9, atol=1e-12)
    assert gradient["backbone.embedding"].abs().max() > 1e-3
    assert all(gradient[name].abs().max() == 0 for name in gradient if name.startswith("parts.gate"))


@dataclass(frozen=True)
class Shifted(HRPO):
    """Adds a constant to every reward."""

    by: float = 0.0

    def reward(self, model, examples, trace, state):
        return super().reward(model, examples, trace, state) + self.by


def test_invariant_10_equal_rewards_leave_the_divergence_alone_and_constants_change_nothing():
    method = HRPO(**OPEN, kl=0.1)
    model, none = entered(method), replace(STATE, verify=lambda examples, trace: torch.zeros(trace.rows))
    moved(model)
    batch = collected(method, model, state=none)
    loss, gradient = loss_and_gradients(model, first_loss(method, model, batch, none).value)
    now_BT = replay(model.backbone, batch.trace).log_prob_BT
    gap_BT = batch.reference_BT - now_BT
    k3_BT = (gap_BT.exp() - gap_BT - 1) * batch.trace.acted_BT
    divergence = 0.1 * (k3_BT.sum(1) / batch.trace.acted_BT.sum(1)).mean()
    expected, wanted = loss_and_gradients(model, divergence)
    assert loss == pytest.approx(expected, abs=1e-9)
    for name, value in wanted.items():
        torch.testing.assert_close(gradient[name], value)
    without = HRPO(**OPEN, kl=0.0)
    alone = entered(without)
    _, gradient = loss_and_gradients(alone, first_loss(without, alone, state=none).value)
    assert all(value.abs().max() == 0 for value in gradient.values())
    plain, shifted = (
        loss_and_gradients(model, first_loss(Shifted(**OPEN, kl=0.1, by=by), model).value) for by in (0.0, 3.0)
    )
    for name, value in plain[1].items():
        torch.testing.assert_close(shifted[1][name], value, rtol=1e-6, atol=1e-9)
    assert plain[1]["parts.gate.openness_D"].abs().max() > 1e-4


# ---------------------------------------------------------------------------------------------------------------------
# The reference


def test_invariant_11_an_untouched_policy_with_its_gate_shut_has_no_divergence():
    shut, open_ = (opened(entered(HRPO(**OPEN, kl=0.1)), value) for value in (torch.inf, 1.0))
    (near, far) = (first_loss(HRPO(**OPEN, kl=0.1), model).metrics["reference_kl"].item() for model in (shut, open_))
    assert abs(near) < 1e-12
    assert far > 1e-3


def test_invariant_12_the_reference_ignores_gates_and_soft_tokens():
    method = HRPO(**OPEN, kl=0.1)
    model = entered(method)
    batch = collected(method, model)
    found = []
    for value in (0.5, 2.0):
        opened(model, value)
        opened(model.parts["reference"], value)
        found.append((replay(model.backbone, batch.trace).log_prob_BT, method.reference_log_prob(model, batch)))
    (new, ref), (other, same) = found
    assert (new - other).abs().max() > 1e-3
    assert torch.equal(ref, same)
    first = written_out(model.parts["reference"], batch, None, 1.0)
    for row, expected in enumerate(first):
        torch.testing.assert_close(ref[row][batch.trace.acted_BT[row]], expected)


@pytest.mark.parametrize(("score", "expected"), [(None, 0.7), (1.0, 1.0), (1.3, 1.3)])
def test_the_reference_is_scored_like_the_policy_and_can_say_every_token_that_it_draws(score, expected):
    """At `score_temperature`, else at the sampler's; among all tokens, though the policy draws from two."""
    method = HRPO(**OPEN, kl=0.1, top_k=2, temperature=0.7, score_temperature=score)
    model = entered(method)
    moved(model, by=0.5)
    batch = collected(method, model)
    reference_BT = method.reference_log_prob(model, batch)
    assert reference_BT.isfinite().all()
    for row, wanted in enumerate(written_out(model.parts["reference"], batch, None, expected)):
        torch.testing.assert_close(reference_BT[row][batch.trace.acted_BT[row]], wanted)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


def test_invariant_13_gradients_reach_the_gate_through_gated_steps_alone():
    method = HRPO(**OPEN, kl=0.0)
    model = entered(method)
    model.backbone.embedding.requires_grad_(False)
    batch = collected(method, model, rows=40)
    assert not batch.trace.span(THINKING).action["soft"].requires_grad
    assert not batch.advantage_B.requires_grad
    _, gradient = loss_and_gradients(model, first_loss(method, model, batch).value)
    assert "backbone.embedding" not in gradient
    for name in ("weight", "bias", "openness_D"):
        assert gradient[f"parts.gate.{name}"].abs().max() > 1e-6, name
    still_B = ~gated_BT(batch.trace).any(1)  # rows that end at once
    assert still_B.any()
    one = torch.where(still_B, 1.0, 0.0).double()
    _, gradient = loss_and_gradients(model, first_loss(method, model, replace(batch, advantage_B=one)).value)
    assert all(gradient[f"parts.gate.{name}"].abs().max() == 0 for name in ("weight", "bias", "openness_D"))
    assert gradient["backbone.blocks.0.attention.qkv_proj"].abs().max() > 1e-6


END = 2
STEPS = 2


def paths():
    """Every sequence of a world of three tokens, the last of which ends: at most two steps, then an answer."""
    chains = [(END,), *((x, y) for x in (0, 1) for y in (0, 1, END))]
    return [(chain, answer) for chain in chains for answer in range(3)]


def chances(model, thought, prompt, soft_BTD=None):
    """log-probability of every path, with its graph, and the soft tokens that were fed."""
    chains = [chain for chain, _ in paths()]
    id_BT = torch.tensor([[*chain, END][:STEPS] for chain in chains])
    values = {"id": id_BT} if soft_BTD is None else {"id": id_BT, "soft": soft_BTD}
    answer_B1 = torch.tensor([[answer] for _, answer in paths()])
    plan = (
        Segment(thought, STEPS, Action(values, id_BT == END), THINKING),
        Segment(
            Gated(thought.gate, 1.0), 1, Action({"id": answer_B1, "soft": torch.zeros(len(chains), 1, 8).double()})
        ),
    )
    run = force(model, plan, torch.full((len(chains), 1), prompt))
    soft_BTD = thought.soft(run._state(run.spans[1], run.logits_BTV, slice(None))).detach()
    return run.log_prob_BT.sum(1), soft_BTD


def rewards():
    """1 for the answer 1 after an ended chain."""
    return torch.tensor([float(END in chain and answer == 1) for chain, answer in paths()], dtype=torch.float64)


def mean_gradients(tiny, u):
    """Mean policy gradient of all paths with the graph of the soft token and without, and its hidden ratio."""
    model = tiny(seed=3, vocabulary=3)
    gate = gate_at(u)
    weights, found = [*model.parameters(), *gate.parameters()], []
    whole, stored = (Gated(gate, 1.0, (END,), soft_temperature=0.7, graph=graph) for graph in (True, False))
    log_p, soft_BTD = chances(model, whole, 0)
    assert log_p.exp().sum().item() == pytest.approx(1)
    cut, _ = chances(model, stored, 0, soft_BTD)
    torch.testing.assert_close(cut, log_p)
    for each in (log_p, cut):
        found.append(gradients((each.detach().exp() * rewards() * each).sum(), weights))
    ratio = hidden_ratio(gate(model.embedding)[0]).mean().item()
    return model, gate, found, ratio


def gate_at(u):
    gate = Gate(8, 0.5, 0.6, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        gate.openness_D.copy_(initial_openness(torch.full((8,), u, dtype=torch.float64)))
    return gate


@pytest.mark.parametrize("u", [0.999, 0.8, 0.2])
def test_invariant_14_the_mean_estimator_is_the_gradient_with_the_graph_and_biased_without(tiny, u):
    """All paths of a small world, against difference quotients of J along a direction."""
    model, gate, (whole, cut), _ = mean_gradients(tiny, u)
    weights = [*model.parameters(), *gate.parameters()]
    thought = Gated(gate, 1.0, (END,), soft_temperature=0.7, graph=True)
    along = random(len(whole), seed=7)
    start, quotients = torch.nn.utils.parameters_to_vector(weights).detach().clone(), 0.0
    with torch.no_grad():
        for far, share in ((1, 4 / 5), (2, -1 / 5), (3, 4 / 105), (4, -1 / 280)):
            for side in (1, -1):
                torch.nn.utils.vector_to_parameters(start + side * far * 1e-3 * along, weights)
                log_p, _ = chances(model, thought, 0)
                quotients += side * share / 1e-3 * (log_p.exp() * rewards()).sum().item()
        torch.nn.utils.vector_to_parameters(start, weights)
    assert (whole @ along).item() == pytest.approx(quotients, rel=1e-7)
    assert abs((cut @ along).item() - quotients) > 1e-4 * abs(quotients)


def test_invariant_14_the_gap_vanishes_with_the_hidden_ratio(tiny):
    gaps, ratios = [], []
    for u in (1 - 1e-4, 1 - 1e-6, 1 - 1e-8):
        _, _, (whole, cut), ratio = mean_gradients(tiny, u)
        gaps.append(float((cut - whole).norm() / whole.norm()))
        ratios.append(ratio)
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.05)
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.05)
    assert ratios[1] / ratios[2] == pytest.approx(10, rel=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Settings, rates, and a whole run


@pytest.mark.parametrize("gate_decay", [None, 0.0, 0.5])
def test_gates_and_lambda_learn_at_their_own_rates_and_have_their_own_decay(gate_decay):
    method = HRPO(gate_decay=gate_decay, openness_decay=0.3)
    model = Experiment(TASK, method).fresh()
    optimizer = make_optimizer(model, Training(learning_rate=1e-3, weight_decay=0.1), method.parameter_groups(0))
    peaks = {
        round(group["peak"], 9): (group["weight_decay"], group["params"][0].numel()) for group in optimizer.param_groups
    }
    assert peaks[0.2] == (0.3, 32)
    assert peaks[0.02] == (0.1 if gate_decay is None else gate_decay, 64 * 32 + 64)
    assert peaks[1e-3][0] == 0.1


@pytest.mark.parametrize("gate", ["learned", "fixed", "token"])
def test_only_a_learned_gate_moves(gate, unchecked):
    method = HRPO(gate=gate, group=4)
    model = Experiment(TASK, method, ModelConfig(16, 2, 2)).fresh()
    before = {name: value.clone() for name, value in model.named_parameters()}
    examples, recipe = asked(16), Training(steps=3, batch_size=8, learning_rate=1e-3, warmup=0.0, log_every=1)
    fit(model, method, examples, recipe, Seeds())
    moved_by = {name: float((value - before[name]).detach().abs().max()) for name, value in model.named_parameters()}
    assert moved_by["backbone.embedding"] > 0
    assert (moved_by["parts.gate.weight"] > 0) == (moved_by["parts.gate.openness_D"] > 0) == (gate == "learned")
    assert moved_by["parts.reference.backbone.embedding"] == 0


def test_a_gate_is_taken_over_from_a_run_that_has_one(unchecked, tmp_path):
    """So that a second training does not begin with another gate."""
    chain = Experiment(
        TASK, DiscreteCoT(ends=True), ModelConfig(8, 1, 1), Training(steps=2, batch_size=8, num_train=32)
    )
    once = Experiment(
        TASK, HRPO(group=2), ModelConfig(8, 1, 1), Training(steps=2, batch_size=8, num_train=32), start=chain
    )
    twice = replace(once, start=once, training=Training(steps=3, batch_size=8, num_train=32, learning_rate=1e-12))
    first, second = train(once, tmp_path / "a"), train(twice, tmp_path / "b")
    torch.testing.assert_close(second.parts["gate"].openness_D, first.parts["gate"].openness_D, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("latent", ["soft", "shuffled"])
def test_a_run_is_trained_and_measured_before_and_after(latent):
    """From chains that end by themselves, with its decoders and controls; metrics tell the hidden ratio."""
    chain = Experiment(TASK, DiscreteCoT(ends=True), ModelConfig(16, 1, 1), Training(steps=20, num_train=64))
    method, recipe = HRPO(group=2, latent=latent), Training(steps=4, batch_size=8, num_train=64, log_every=2)
    record = measure(Experiment(TASK, method, ModelConfig(16, 1, 1), recipe, start=chain), None)
    assert {"default", "noise", "shuffled", "zero", "tokens", "sharp"} == record.evaluations.keys()
    assert record.before.evaluations.keys() == record.evaluations.keys()
    for line in record.metrics:
        assert 0 < line["hidden_ratio"] <= line["logged_ratio"] < 1
        assert {"length", "right_length", "right_excess", "ended", "reward", "reference_kl"} <= line.keys()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"updates": 2}, "updates 2: expected 1"),
        ({"r_min": 0.0}, "r_min 0.0, r_max 0.999"),
        ({"r_min": 0.9, "r_max": 0.8}, "try .95, .999"),
        ({"r_max": 1.0}, "r_max 1.0"),
        ({"soft_temperature": 0.0}, "soft_temperature 0.0: expected 0.01 to 100"),
        ({"score_temperature": -1.0}, "score_temperature -1.0"),
        ({"top_k": 0}, "top_k 0: expected at least 1"),
        ({"latent": "hidden"}, "latent 'hidden': expected one of soft, noise, shuffled, zero"),
        ({"gate": "open"}, "gate 'open': expected one of learned, fixed, token"),
        ({"gate_rate": 0.0}, "gate_rate 0.0"),
        ({"openness_rate": float("inf")}, "openness_rate inf"),
        ({"openness_decay": -0.1}, "openness_decay -0.1"),
        ({"gate_decay": -0.1}, "gate_decay -0.1"),
    ],
)
def test_bad_settings_are_refused(settings, words, unchecked):
    with pytest.raises(ValueError, match="expected") as refused:
        HRPO(**settings)
    assert words in str(refused.value)


def test_settings_without_effect_are_named():
    def idle(**settings):
        return set(idle_settings(Experiment(TASK, HRPO(**settings), training=Training(num_train=64))))

    assert idle() == set()
    assert idle(clip=0.2) == {"method.clip"}
    assert idle(gate="fixed", openness_decay=0.0, gate_rate=2.0) == {"method.openness_decay", "method.gate_rate"}
    assert idle(latent="zero", soft_temperature=1.0, r_min=0.5) == {"method.soft_temperature"}
    assert idle(gate="token", r_min=0.5, graph=True, top_k=5) == {"method.r_min", "method.graph"}
