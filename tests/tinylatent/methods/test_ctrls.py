"""CTRLS-style states before steps: the thought, its plan, its loss and its limits; invariants by their number.

Those of features and clusters are in test_ctrls_states, of reinforcement learning in test_ctrls_rl. Float64 to 1e-9
unless said otherwise.
"""

import itertools
import math
from dataclasses import replace

import losses
import pytest
import torch
from cases import assert_a_thought_is_its_definition
from fakes import random, state
from hypothesis import given
from hypothesis import strategies as st
from losses import enter
from naive import Done, Naive
from thoughts import D, drawn
from tinylatent_tasks import MNNS, Arithmetic, MultiHop
from torch.distributions import Dirichlet

from tinylatent.core.seeds import Streams
from tinylatent.engine.controls import CONTROLS, controlled
from tinylatent.engine.distributions import log_dirichlet
from tinylatent.engine.force import force, replay
from tinylatent.engine.plan import ANSWER, Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thought import Action
from tinylatent.engine.thoughts import GREEDY
from tinylatent.evaluation.evaluate import evaluate
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import train
from tinylatent.methods.ctrls import CTRLS, STATE, STEP, interleaved, states_of, targets, transition_of
from tinylatent.methods.ctrls_rl import CTRLSRL
from tinylatent.methods.ctrls_states import States, steps_of
from tinylatent.methods.ctrls_thought import (
    LatentState,
    Prefix,
    Transition,
    dirichlet_entropy,
    divergence,
    mean_of,
    point_log_density,
    state_entropy,
    state_log_prob,
    total_variance,
)
from tinylatent.methods.discrete import DiscreteCoT
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import TrainState
from tinylatent.training.config import Training

RAGGED = MultiHop(hops=4, least=1, nodes=5)
LONG = Arithmetic(operations=3, least=2, modulus=5)
TRAIN = TrainState(3, 10, 5)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
EVERY = (
    CTRLS(count=3),
    CTRLS(count=3, draws=True),
    CTRLS(count=3, draws=True, feed="hard"),
    CTRLS(count=3, draws=True, feed="hard", transition="categorical"),
    CTRLS(count=3, feed="hard"),
    CTRLS(states="prefix"),
    CTRLS(count=3, gold=True),
    CTRLSRL(count=3, epsilon=0.3),
    CTRLSRL(count=3, temperature=1.2, feed="hard"),
)
alphas = st.lists(st.floats(0.05, 20), min_size=2, max_size=5).map(lambda a: torch.tensor(a, dtype=torch.float64))


def examples_of(task=RAGGED, rows=6):
    return losses.examples_of(CTRLS(), task, task.problems(rows, seed=1))


def model_of(method, task=RAGGED, dtype=torch.float64, examples=None):
    """A model whose states are fitted to what its large weights make of steps."""
    model = losses.model_of(method, task)
    if not isinstance(method, CTRLSRL):
        enter(method, model, 0, examples_of(task, 20))
    return model.to(dtype)


def run(method, model, examples, group=1, **options):
    """A rollout as training makes it, if it makes any, else as inference does."""
    plan = method.sampled_plan if isinstance(method, CTRLSRL) else method.plan
    return rollout(
        model.backbone,
        plan(model, examples),
        examples.prompt_BN,
        examples.prompt_mask_BN,
        streams=Streams(5, len(examples) * group),
        group=group,
        **options,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The thought's definition, for one row


def own_parts(K=3, width=D):
    generator = torch.Generator().manual_seed(0)
    states, transition = States(width, K, 2, 4, generator), Transition(width, 6, K, 0.2, generator)
    for parameter in [*states.parameters(), *transition.parameters()]:
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return states.double(), transition.double()


class NaiveLatentState(Naive, of=LatentState):
    """The equations, for one row."""

    def given(self, rows, steps, generator):
        a = torch.rand(rows, steps, 3, generator=generator, dtype=torch.float64)
        return self.thought.given((a / a.sum(-1, keepdim=True)).requires_grad_())

    def alpha(self, now):
        net = self.thought.transition
        inner = torch.nn.functional.gelu(net.first_HD @ now.hidden + net.bias_H)
        return (1 + (net.second_KH @ inner + net.bias_K).exp()).log() + net.floor

    def read(self, action):
        values = action.values
        if "a" in values:
            return {"a": values["a"]}
        return {name: value for name, value in values.items()}

    def choose(self, now):
        thought, alpha = self.thought, self.alpha(now)
        if not thought.needs_streams:
            m = alpha / alpha.sum()
            return {"a": m if thought.feed == "soft" else torch.nn.functional.one_hot(m.argmax(), 3).double()}
        epsilon = thought.epsilon
        if thought.policy == "categorical":
            return {"z": drawn(((1 - epsilon) * alpha / alpha.sum() + epsilon / 3).log(), now.uniform())}
        alpha = torch.ones(3).double() if now.uniform() < epsilon else alpha
        found = {"log_a": log_dirichlet(now.streams, alpha.detach().log()[None])[0]}
        return found if thought.feed == "soft" else {**found, "z": drawn(found["log_a"], now.uniform())}

    def act(self, now, chosen):
        thought, alpha, U = self.thought, self.alpha(now), self.thought.states.embedding_KD
        if "a" in chosen:
            return Done(sum(chosen["a"][k] * U[k] for k in range(3)))
        if "log_a" not in chosen:
            p = (1 - thought.epsilon) * alpha / alpha.sum() + thought.epsilon / 3
            return Done(U[chosen["z"]], p[chosen["z"]].log())
        log_a = chosen["log_a"]

        def density(alpha):
            return (torch.lgamma(alpha.sum()) + (alpha * log_a - torch.lgamma(alpha)).sum()).exp()

        p = (1 - thought.epsilon) * density(alpha) + thought.epsilon * density(torch.ones(3).double())
        if "z" in chosen:
            return Done(U[chosen["z"]], p.log() + log_a[chosen["z"]])
        return Done(sum(log_a[k].exp() * U[k] for k in range(3)), p.log())


class NaivePrefix(Naive, of=Prefix):
    """A constant."""

    def given(self, rows, steps, generator):
        return self.thought.given(torch.zeros(rows, steps, 1, dtype=torch.float64))

    def choose(self, now):
        return None

    def act(self, now, _):
        return Done(self.thought.states.embedding_KD[0])


@pytest.mark.parametrize(
    "thought",
    [
        LatentState(*own_parts()),
        LatentState(*own_parts(), feed="hard"),
        LatentState(*own_parts(), draws=True),
        LatentState(*own_parts(), draws=True, epsilon=0.4),
        LatentState(*own_parts(), feed="hard", draws=True, epsilon=0.4),
        LatentState(*own_parts(), "categorical", "hard", draws=True, epsilon=0.4),
        Prefix(own_parts()[0]),
    ],
    ids=["mean", "likeliest", "point", "explored", "state of a point", "categorical", "prefix"],
)
def test_a_thought_is_its_definition(model, thought):
    """In the engine: sampled, given, forced, replayed; padded, shifted, in groups, steps of each row; and gradients."""
    assert_a_thought_is_its_definition(model, thought)


# ---------------------------------------------------------------------------------------------------------------------
# Distributions


@given(alphas, st.integers(0, 99))
def test_invariant_2_the_divergence_is_positive_and_zero_for_equals_alone(alpha, seed):
    m = mean_of(alpha)
    q = mean_of(random(len(alpha), seed=seed).exp())
    assert divergence(m, m).item() == pytest.approx(0, abs=1e-12)
    assert divergence(q, m) > 0 or (q - m).abs().max() < 1e-6
    torch.testing.assert_close(divergence(q, m), (q * (q / m).log()).sum())
    corner = torch.eye(len(alpha), dtype=torch.float64)[0]
    torch.testing.assert_close(divergence(corner, m), -m[0].log())


@given(alphas, st.integers(0, 99))
def test_invariant_2_formulas_are_those_of_torch(alpha, seed):
    log_a = random(len(alpha), seed=seed).log_softmax(-1)
    torch.testing.assert_close(dirichlet_entropy(alpha), Dirichlet(alpha).entropy(), rtol=1e-6, atol=1e-6)
    usual = point_log_density(alpha, log_a, 0.0) - log_a.sum()
    torch.testing.assert_close(usual, Dirichlet(alpha).log_prob(log_a.exp()), rtol=1e-9, atol=1e-6)
    mixture = (0.7 * usual.exp() + 0.3 * Dirichlet(torch.ones_like(alpha)).log_prob(log_a.exp()).exp()).log()
    torch.testing.assert_close(point_log_density(alpha, log_a, 0.3) - log_a.sum(), mixture)
    torch.testing.assert_close(point_log_density(alpha, log_a, 0.3, "naive") - log_a.sum(), usual)


def points(alpha_K, draws=20_000, **options):
    """Draws of a thought whose concentrations are these, whatever the state is."""
    states, transition = own_parts(len(alpha_K))
    with torch.no_grad():
        transition.second_KH.zero_()
        transition.floor = 0.0
        alpha_K = torch.as_tensor(alpha_K, dtype=torch.float64)
        transition.bias_K.copy_(alpha_K + (-(-alpha_K).expm1()).log())  # softplus of this
    thought = LatentState(states, transition, draws=True, **options)
    at = state(draws, size=(5, D))
    action = thought.sample(at, Streams(0, draws))
    assert thought.log_prob(at, action).isfinite().all()
    return action


def test_invariant_3_mean_and_variance_of_points():
    alpha_K = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    a_BK = points(alpha_K)["log_a"].exp()
    torch.testing.assert_close(a_BK.mean(0), mean_of(alpha_K), rtol=0, atol=0.01)
    m_K = mean_of(alpha_K)
    torch.testing.assert_close(a_BK.var(0), m_K * (1 - m_K) / (alpha_K.sum() + 1), rtol=0.05, atol=0)
    torch.testing.assert_close(a_BK.var(0).sum(), total_variance(alpha_K), rtol=0.05, atol=0)


def test_invariant_3_large_sums_give_the_mean_and_small_ones_corners():
    m_K = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    assert (points(1e5 * m_K, 100)["log_a"].exp() - m_K).abs().max() < 0.01
    assert points(0.01 * m_K, 2000)["log_a"].exp().amax(1).mean() > 0.98
    assert points(0.1 * torch.ones(4).double() / 4, 4000)["log_a"].exp().amax(1).mean() == pytest.approx(0.96, abs=0.02)


@pytest.mark.parametrize("options", [{"feed": "hard"}, {"feed": "hard", "policy": "categorical"}], ids=str)
def test_invariant_3_the_sum_has_no_effect_on_single_states(options):
    m_K = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    for alpha_0 in (0.2, 3.0, 100.0):
        z_B = points(alpha_0 * m_K, **options)["z"]
        torch.testing.assert_close(torch.bincount(z_B, minlength=3) / len(z_B), m_K.float(), rtol=0, atol=0.015)


@pytest.mark.parametrize("K", [2, 3, 6])
def test_invariant_4_the_entropy_is_largest_at_ones(K):
    def entropy(value):
        return dirichlet_entropy(torch.full((K,), value, dtype=torch.float64)).item()

    assert entropy(1.0) == pytest.approx(-math.lgamma(K))
    assert all(entropy(value) < entropy(1.0) for value in (0.05, 0.5, 0.99, 1.01, 2.0, 50.0))


def test_invariant_4_both_entropies_by_hand():
    alpha = torch.tensor([3.0, 1.0], dtype=torch.float64)
    assert state_entropy(alpha).item() == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    four = torch.full((4,), 0.1, dtype=torch.float64), torch.full((4,), 100.0, dtype=torch.float64)
    assert [round(dirichlet_entropy(each).item(), 1) for each in four] == [-20.1, -7.5]


def test_exploration_draws_uniformly_as_often_as_it_says():
    """A certain transition, a quarter explored."""
    z_B = points([1e4, 1e-2, 1e-2], feed="hard", policy="categorical", epsilon=0.25)["z"]
    torch.testing.assert_close(
        torch.bincount(z_B, minlength=3) / len(z_B), torch.tensor([10, 1, 1]) / 12, rtol=0, atol=0.01
    )
    first_B = points([1e4, 1e-2, 1e-2], epsilon=0.25)["log_a"][:, 0].exp()
    assert (first_B < 0.99).double().mean().item() == pytest.approx(0.25 * 0.99**2, abs=0.01)
    least = state_log_prob(torch.tensor([1e4, 1e-9, 1e-9]).double(), torch.tensor(1), 0.25).exp()
    assert least >= 0.25 / 3


# ---------------------------------------------------------------------------------------------------------------------
# Plans and rollouts


@pytest.mark.parametrize("task", [RAGGED, LONG, MNNS(3, 1, 4)], ids=lambda task: task.name)
def test_a_state_stands_before_every_step(task):
    method, examples = CTRLS(count=3), examples_of(task)
    model = model_of(method, task)
    trace, steps = run(method, model, examples, grad=False), steps_of(examples)
    live_BT = torch.ones(trace.rows, trace.steps).bool() if trace.live_BT is None else trace.live_BT
    for row in range(len(examples)):
        names = [
            span.name
            for span in trace.thought_spans
            for slot in range(trace.within(span).start, trace.within(span).stop)
            if live_BT[row, slot]
        ]
        counts = steps.count_BS[row][steps.live_BS[row]].tolist()
        assert names == [name for n in counts for name in (STATE, *[STEP] * n)] + [ANSWER] * examples.answer_tokens
    assert targets(examples, steps)[2] == [
        trace.within(span).start for span in trace.thought_spans if span.name == STATE
    ]


@pytest.mark.parametrize("task", [RAGGED, LONG], ids=lambda task: task.name)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["64", "32"])
@pytest.mark.parametrize("method", EVERY, ids=repr)
def test_a_rollout_is_the_teacher_forced_pass(method, dtype, close, task):
    """Left padding, groups, rows that stop early."""
    model, examples = model_of(method, task), examples_of(task)
    with torch.no_grad():  # as large as a trained model's, so that rounding is no larger than there
        for parameter in model.parameters():
            parameter.div_(3)
    model.to(dtype)
    assert examples.prompt_mask_BN is not None
    trace = run(method, model, examples, group=3)
    assert trace.live_BT is not None
    again = replay(model.backbone, trace)
    assert again.at_once
    for name in ("logits_BTV", "inputs_BTD", "log_prob_BT"):
        torch.testing.assert_close(
            getattr(again, name), getattr(trace, name), rtol=close, atol=close, check_dtype=False
        )
    if any(span.drawn for span in trace.thought_spans):
        torch.testing.assert_close(
            again.log_prob_BT * trace.drawn_BT, trace.sampled_log_prob_BT, rtol=close, atol=close, check_dtype=False
        )


def without_states(plan, rows):
    """The plan with every state's slot left out, by steps of every row."""
    none_B = torch.zeros(rows, dtype=torch.int64)
    return tuple(replace(part, steps=none_B) if part.label == STATE else part for part in plan)


@pytest.mark.parametrize("task", [RAGGED, LONG], ids=lambda task: task.name)
def test_left_out_states_are_plain_chain_of_thought_and_zero_ones_are_not(task):
    """A slot that is masked changes nothing, positions included; one that holds zero is attended to."""
    method, examples = CTRLS(count=3), examples_of(task)
    model, plain = model_of(method, task), DiscreteCoT()
    answer = Segment(GREEDY, examples.answer_tokens, GREEDY.given(examples.answer_BA), ANSWER)
    expected = plain.forced(model, examples)
    told = method.taught(model, examples)
    options = (examples.prompt_BN, examples.prompt_mask_BN)
    _, mask_BT, _ = targets(examples, steps_of(examples))
    for shut in (True, False):
        plan = without_states(told, len(examples)) if shut else controlled(told, "zero")
        trace = force(model.backbone, (*plan, answer), *options)
        gap = 0.0
        for row in range(len(examples)):
            steps = int(torch.as_tensor(examples.num_steps).expand(len(examples))[row])
            mine_TV = trace.logits_BTV[row][mask_BT[row]]
            plain_TV = torch.cat([expected.logits_BTV[row, :steps], expected.logits_BTV[row, examples.max_steps :]])
            gap = max(gap, float((mine_TV - plain_TV).detach().abs().max()))
        assert gap < 1e-9 if shut else gap > 1e-3
    closed = rollout(model.backbone, without_states(method.plan(model, examples), len(examples)), *options)
    assert torch.equal(closed.answer(), plain.solve(model, examples).answer_BA)


@pytest.mark.parametrize("control", CONTROLS)
def test_controls_replace_the_state_s_vector_alone(control):
    method, examples = CTRLS(count=3), examples_of(MNNS(3, 1, 4))
    model = model_of(method, MNNS(3, 1, 4))
    own = method.solve(model, examples, Streams(0, 6)).trace
    trace = method.solve(model, examples, Streams(0, 6), control=control).trace
    for span, other in zip(trace.thought_spans[:-1], own.thought_spans[:-1], strict=True):
        here = trace.within(span)
        fed_BD, mine_BD = trace.inputs_BTD[:, here][:, 0], own.inputs_BTD[:, here][:, 0]
        if span.name == STATE:  # a state's slot holds the token before it as well
            for each_BD, whose in ((fed_BD, trace), (mine_BD, own)):
                before_BD = model.backbone.table.rows(examples.prompt_BN[:, -1])
                each_BD -= whose.inputs_BTD[:, here.start - 1] if here.start else before_BD
        if span.name == STEP:
            torch.testing.assert_close(fed_BD, model.backbone.table.rows(span.action["id"][:, 0]))
        elif other is own.thought_spans[0]:
            torch.testing.assert_close(span.action["a"], other.action["a"])
            expected = {"zero": 0 * mine_BD, "shuffled": mine_BD.roll(1, 0)}.get(control)
            if expected is None:
                torch.testing.assert_close(fed_BD.norm(dim=1), mine_BD.norm(dim=1))
                assert (fed_BD - mine_BD).norm() > 0.1
            else:
                torch.testing.assert_close(fed_BD, expected)


def test_controls_pass_a_prefix_by():
    method, examples = CTRLS(states="prefix"), examples_of()
    model = model_of(method)
    own, zero = (method.solve(model, examples, control=control).trace for control in (None, "zero"))
    assert torch.equal(own.inputs_BTD, zero.inputs_BTD)


# ---------------------------------------------------------------------------------------------------------------------
# The posterior


@pytest.mark.parametrize("task", [RAGGED, LONG], ids=lambda task: task.name)
def test_posterior_features_are_of_the_plain_chain_s_hidden_states(task):
    """Row by row, from one plain forward over prompt and chain."""
    method, examples = CTRLS(count=3, directions=2), examples_of(task)
    model = model_of(method, task)
    steps = steps_of(examples)
    features_BSF = method.spectra(model, examples, steps).features
    for row in range(len(examples)):
        N = examples.prompt_BN.shape[1]
        prompt = examples.prompt_BN[row][examples.prompt_mask_BN[row]]
        tokens = torch.cat([prompt, examples.chain_BT[row, : examples.max_steps]])[None]
        hidden_SD = model.backbone.forward(model.backbone.table.rows(tokens))[0][0][len(prompt) :]
        assert len(prompt) <= N
        for s in range(steps.live_BS.shape[1]):
            index = steps.index_BSn[row, s][steps.real_BSn[row, s]]
            if len(index):
                _, values, right = torch.linalg.svd(hidden_SD[index].detach() / len(index) ** 0.5)
                for k in range(2):
                    got = features_BSF[row, s].view(2, -1)[k]
                    if k >= len(values):
                        assert (got == 0).all()
                    else:
                        torch.testing.assert_close(got.abs(), (values[k] * right[k]).abs(), rtol=0, atol=1e-8)


def test_states_are_fitted_the_same_each_time_and_to_each_model():
    method, examples = CTRLS(count=3), examples_of(LONG, 20)
    model = model_of(method, LONG)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    enter(method, model, 0, examples)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0 if "embedding_KD" not in name else 1e-12)
    with torch.no_grad():
        model.backbone.pos_emb.mul_(2)
    enter(method, model, 0, examples)
    assert not torch.equal(model.parts["states"].centre_Kp, before["parts.states.centre_Kp"])


def test_fitting_takes_as_many_problems_as_it_is_told():
    examples = examples_of(LONG, 20)
    few, many = (model_of(CTRLS(count=3, problems=n), LONG) for n in (4, 1000))
    assert not torch.equal(few.parts["states"].mean_F, many.parts["states"].mean_F)
    steps = steps_of(examples)
    features_MF = CTRLS().spectra(many, examples, steps).features[steps.live_BS]
    torch.testing.assert_close(many.parts["states"].mean_F, features_MF.mean(0))


def test_embeddings_start_at_a_share_of_the_table_s_scale():
    method = CTRLS(count=8)
    model = losses.model_of(method, LONG)
    enter(method, model, 0, examples_of(LONG))
    spread = model.parts["states"].embedding_KD.std(correction=0).item()
    assert spread == pytest.approx(0.05 * model.backbone.embedding.std().item())


@pytest.mark.slow
def test_a_state_s_slot_holds_the_token_before_it():
    """So that a step is said from behind its predecessor: states that have not learnt hardly harm a chain that has."""
    task, config, size = MultiHop(hops=2, least=2, nodes=4, bound=True), ModelConfig(32, 2, 2), {"num_train": 5000}
    chain = Experiment(task, DiscreteCoT(), config, Training(steps=1500, batch_size=64, learning_rate=3e-3, **size))
    states = Experiment(task, CTRLS(count=2), config, Training(steps=1, learning_rate=1e-9, **size), start=chain)
    model, speaker = train(states), states.speaker("validation")
    plain, fresh = (evaluate(speaker, method, model).right_P.mean() for method in (DiscreteCoT(), CTRLS(count=2)))
    assert plain > 0.9
    assert fresh > plain - 0.1


def test_shuffled_states_are_of_the_bank_and_belong_to_problem_and_step():
    method, examples = CTRLS(count=3, states="shuffled"), examples_of(LONG)
    model, steps = model_of(method, LONG), steps_of(examples)
    q_BSK = method.posterior(model, examples, steps)
    bank_MK = states_of(model).bank_MK
    assert ((q_BSK[:, :, None] - bank_MK).abs().amax(-1).amin(-1) < 1e-12).all()
    alone = examples.rows(slice(3, 4))
    alone_SK = method.posterior(model, alone, steps_of(alone))[0]
    assert torch.equal(alone_SK, q_BSK[3, : len(alone_SK)])
    assert len(q_BSK[steps.live_BS].unique(dim=0)) > 3


# ---------------------------------------------------------------------------------------------------------------------
# The loss


def test_the_loss_is_its_definition():
    """Tokens and answer behind the posterior's states, and the divergence of the prior, row by row."""
    method, examples = CTRLS(count=3, beta=0.7), examples_of(LONG)
    model, steps = model_of(method, LONG), steps_of(examples)
    q_BSK = method.posterior(model, examples, steps)
    said = kl = 0.0
    for row in range(len(examples)):
        alone = examples.rows(slice(row, row + 1))
        prompt = alone.prompt_BN[0][alone.prompt_mask_BN[0]]
        inputs, wanted, asked = [*model.backbone.embedding[prompt]], [], []
        places = [*range(len(prompt))]
        for s in range(steps.live_BS.shape[1]):
            index = steps.index_BSn[row, s][steps.real_BSn[row, s]]
            if len(index):
                asked.append((len(inputs) - 1, s))
                inputs.append(inputs[-1] + q_BSK[row, s] @ states_of(model).embedding_KD)
                places.append(places[-1])
                for token in examples.chain_BT[row, index]:
                    wanted.append((len(inputs) - 1, token))
                    inputs.append(model.backbone.embedding[token])
                    places.append(places[-1] + 1)
        wanted.append((len(inputs) - 1, examples.answer_BA[row, 0]))
        positions = torch.tensor(places)[None]
        hidden_SD = model.backbone.forward(torch.stack(inputs)[None], positions_BT=positions)[0][0]
        log_p_SV = model.backbone.readout(hidden_SD).log_softmax(-1)
        said -= sum(log_p_SV[place, token].item() for place, token in wanted)
        for place, s in asked:
            alpha_K = transition_of(model)(hidden_SD[place])
            kl += divergence(q_BSK[row, s], alpha_K / alpha_K.sum()).item()
    found = method.loss(model, examples, TRAIN)
    assert found.metrics["token_loss"].item() == pytest.approx(said / 6)
    assert found.metrics["state_kl"].item() == pytest.approx(kl / 6)
    assert found.value.item() == pytest.approx(said / 6 + 0.7 * kl / 6)


def test_hard_states_are_drawn_from_the_posterior():
    method = CTRLS(count=3, feed="hard")
    q_BSK = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).expand(4000, 2, -1)
    z_BSK = method.fed(q_BSK, TRAIN)
    assert ((z_BSK == 0) | (z_BSK == 1)).all()
    torch.testing.assert_close(z_BSK.mean(0), q_BSK[0], rtol=0, atol=0.03)
    torch.testing.assert_close(method.fed(q_BSK)[0, 0], torch.eye(3, dtype=torch.float64)[0])
    assert method.fed(q_BSK[:4], TRAIN).tolist() == z_BSK[:4].tolist()
    assert torch.equal(CTRLS().fed(q_BSK, TRAIN), q_BSK)


SMALL = MNNS(4, 1, 3)


def sequences(K=2, S=3):
    return [torch.eye(K, dtype=torch.float64)[list(z)] for z in itertools.product(range(K), repeat=S)]


def joint(method, model, examples, z_SK):
    """log P(x, z) of one problem and a sequence of states, by the model's own forward."""
    trace = method.forced(model, examples, method.given(model, examples, steps_of(examples), z_SK[None]))
    ids_BT, mask_BT, places = targets(examples, steps_of(examples))
    said = trace.logits_BTV.log_softmax(-1).gather(-1, ids_BT[..., None]).squeeze(-1)[mask_BT].sum()
    m_SK = mean_of(transition_of(model)(trace.hidden_BTD[0, places]))
    return (said + (m_SK.log() * z_SK).sum()).detach()


def bound(method, model, examples, q_SK, monkeypatch):
    """Minus the mean of the loss over states drawn from q, by enumeration."""
    monkeypatch.setattr(CTRLS, "posterior", lambda *_: q_SK[None])
    total = 0.0
    for z_SK in sequences():
        monkeypatch.setattr(CTRLS, "fed", lambda self, q, state=None, z=z_SK: z[None])
        chance = (q_SK * z_SK).sum(-1).prod()
        total += float((chance * method.loss(model, examples, TRAIN).value).detach())
    return -total


@pytest.mark.parametrize("seed", range(4))
def test_invariant_1_the_hard_loss_is_the_evidence_lower_bound(seed, monkeypatch):
    """Two states, three steps: all eight sequences. The bound itself, from P(x, z), and that it never exceeds log P(x).

    It is reached where the exact posterior factorises: where embeddings are alike, and it is the prior.
    """
    method = CTRLS(count=2, feed="hard")
    model, examples = model_of(method, SMALL), losses.examples_of(method, SMALL, SMALL.problems(1, seed=seed))
    assert len(steps_of(examples).live_BS[0]) == 3
    q_SK = random(3, 2, seed=seed).softmax(-1)
    log_p_Z = torch.stack([joint(method, model, examples, z_SK) for z_SK in sequences()])
    chance_Z = torch.stack([(q_SK * z_SK).sum(-1).prod() for z_SK in sequences()])
    found = bound(method, model, examples, q_SK, monkeypatch)
    assert found == pytest.approx(float((chance_Z * (log_p_Z - chance_Z.log())).sum()), abs=1e-9)
    assert found < float(log_p_Z.logsumexp(0)) - 1e-6
    with torch.no_grad():
        states_of(model).embedding_KD[1] = states_of(model).embedding_KD[0]
    log_p_Z = torch.stack([joint(method, model, examples, z_SK) for z_SK in sequences()])
    trace = method.forced(model, examples, method.given(model, examples, steps_of(examples), q_SK[None]))
    prior_SK = mean_of(transition_of(model)(trace.hidden_BTD[0, targets(examples, steps_of(examples))[2]])).detach()
    reached = bound(method, model, examples, prior_SK, monkeypatch)
    assert reached == pytest.approx(float(log_p_Z.logsumexp(0)), abs=1e-9)


def test_the_language_model_is_frozen_but_for_what_adapts():
    frozen = CTRLS().parameter_groups(0)
    assert [(group.parts, group.frozen) for group in frozen] == [(("backbone",), True)]
    groups = CTRLS(adapt=("backbone.norm",)).parameter_groups(0)
    assert [(group.parts, group.frozen) for group in groups] == [(("backbone.norm",), False), (("backbone",), True)]


def test_decoders_are_made_of_the_same_weights():
    for method in EVERY:
        model, examples = model_of(method), examples_of()
        for name, decoder in method.decoders.items():
            assert decoder.solve(model, examples, Streams(0, 6)).answer_BA.shape == (6, 1), name
        expected = {"plain", "drawn"} if isinstance(method, CTRLSRL) else {"plain", "drawn", "posterior"}
        assert {*method.decoders} == ({"plain"} if method.states == "prefix" else expected)


def test_likeliest_states_of_gold_inference_are_the_posterior_s():
    method, examples = CTRLS(count=3, gold=True, feed="hard"), examples_of(LONG)
    model, steps = model_of(method, LONG), steps_of(examples)
    trace = method.solve(model, examples).trace
    told = [span.action["a"][:, 0] for span in trace.thought_spans if span.name == STATE]
    q_BSK = method.posterior(model, examples, steps)
    torch.testing.assert_close(torch.stack(told, 1), method.fed(q_BSK))


def test_no_steps_need_no_states():
    examples = losses.examples_of(CTRLS(), MNNS(1, 1, 4), MNNS(1, 1, 4).problems(2, seed=0))
    model = losses.model_of(CTRLS(), MNNS(1, 1, 4))
    assert [
        part.longest for part in interleaved(examples, steps_of(examples), CTRLS().thought(model, False), GREEDY)
    ] == [0]
    assert CTRLS().loss(model, examples, TRAIN).metrics["state_kl"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"states": "learnt"}, "states 'learnt': expected one of fitted, shuffled, random, prefix"),
        ({"transition": "gamma"}, "transition 'gamma': expected one of dirichlet, categorical"),
        ({"feed": "warm"}, "feed 'warm': expected one of soft, hard"),
        ({"count": 0}, "count 0: expected 1 to 1024"),
        ({"directions": 0}, "directions 0: expected 1 to 64"),
        ({"tau": 0.0}, "tau 0.0: expected more than 0"),
        ({"floor": 0.0}, "floor 0.0: expected more than 0"),
        ({"problems": 0}, "problems 0: expected 1 to"),
        ({"network": 0}, "network 0: expected 1 to"),
        ({"beta": -1.0}, "beta -1.0: expected 0 or more"),
        ({"draws": True, "transition": "categorical"}, "cannot be fed soft: set feed hard"),
    ],
)
def test_bad_settings_are_refused(settings, message, unchecked):
    with pytest.raises(ValueError, match=message):
        CTRLS(**settings)


def test_an_action_says_what_it_is():
    thought = LatentState(*own_parts())
    at = state(4, size=(5, D))
    assert (thought.log_prob(at, thought.given(torch.full((4, 3), 1 / 3).double())) == 0).all()
    assert thought.token(Action({"a": torch.ones(4, 3)})) is None
