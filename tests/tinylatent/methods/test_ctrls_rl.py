"""Reinforcement learning of transitions: its gradient, its bonus, its exploration, and what it leaves alone.

Invariants by their number; the others are in test_ctrls and test_ctrls_states. Float64 to 1e-9 unless said otherwise.
"""

import itertools
from dataclasses import replace

import losses
import pytest
import torch
from losses import assert_same, enter, loss_and_gradients, loss_of
from ranks import assert_processes_agree
from tinylatent_tasks import MNNS, Arithmetic, MultiHop

from tinylatent.core.seeds import Seeds, Streams
from tinylatent.engine.force import force, replay
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thought import Action
from tinylatent.engine.trace import made_with
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import train
from tinylatent.lab.state_directions import even
from tinylatent.methods.ctrls import CTRLS, STATE, STEP, states_of, transition_of
from tinylatent.methods.ctrls_rl import CTRLSRL
from tinylatent.methods.ctrls_thought import dirichlet_entropy, point_log_density, state_entropy
from tinylatent.methods.discrete import DiscreteCoT
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import TrainState
from tinylatent.objectives.policy_gradient import Rollouts
from tinylatent.training.config import Training

TASK = MultiHop(hops=4, least=1, nodes=4)
TINY = MNNS(3, 1, 3)
LOUD = 100.0
"""What embeddings of states are multiplied with, so that states matter to a model of random weights."""


def odd(examples, trace):
    """Rewards about half of all answers."""
    return (trace.answer()[:, -1] % 2).float()


STATE_3 = TrainState(3, 10, 5, verify=odd)


def examples_of(task=TASK, rows=6):
    return losses.examples_of(CTRLS(), task, task.problems(rows, seed=1))


def model_of(method, task=TASK):
    """A model whose states change what it says, and whose transitions are neither certain nor alike."""
    model = losses.model_of(method, task)
    with torch.no_grad():
        transition_of(model).second_KH.mul_(0.1)
    enter(method, model, 0, examples_of(task))
    with torch.no_grad():
        states_of(model).embedding_KD.mul_(LOUD)
    return model


def weights(model):
    """The weights of the transition network as one vector."""
    return torch.cat([parameter.flatten() for parameter in transition_of(model).parameters()])


# ---------------------------------------------------------------------------------------------------------------------
# The estimator against finite differences of the expected reward


def rolled(method, model, examples, actions):
    """Rollouts of one problem in a group, one for each row of actions (states x values), as if they had been drawn."""
    rows = len(next(iter(actions[0].values())))
    many, number = examples.repeated(rows), iter(actions)
    plan, thought = [], method.explorer(model)
    with torch.no_grad():  # tokens are the likeliest ones behind these states
        free = tuple(
            replace(part, given=Action({k: v[:, None] for k, v in next(number).items()}))
            if part.label == STATE
            else part
            for part in method.plan(model, many, 0.0)
        )
        said = rollout(model.backbone, free, many.prompt_BN, many.prompt_mask_BN, streams=Streams(0, rows))
    for span in said.thought_spans:
        plan.append(
            Segment(thought if span.name == STATE else span.thought, span.stop - span.start, span.action, span.name)
        )
    trace = force(model.backbone, tuple(plan), many.prompt_BN, many.prompt_mask_BN, group=rows)
    spans = tuple(replace(span, drawn=span.name == STATE) for span in trace.spans)
    return replace(trace, spans=spans, version=made_with(model.backbone, spans))


def mean_gradient(method, model, examples, trace, weight_B):
    """The gradient of the method's loss, every rollout's advantage weighted by how likely it is to be drawn."""
    batch = Rollouts(examples, trace, weight_B, 1, {})
    loss = method.loss(model, batch, TrainState(0, 10, 0)).value
    return -torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(transition_of(model).parameters()))])


def differences(model, expected, draws=12):
    """Finite differences of an expected reward along some directions, and the directions."""
    generator = torch.Generator().manual_seed(0)
    start, found, along = weights(model).detach().clone(), [], []
    for _ in range(draws):
        direction = torch.randn(start.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            torch.nn.utils.vector_to_parameters(start + sign * 1e-5 * direction, transition_of(model).parameters())
            values.append(float(expected().detach()))
        found.append((values[0] - values[1]) / 2e-5)
        along.append(direction)
    torch.nn.utils.vector_to_parameters(start, transition_of(model).parameters())
    return torch.tensor(found, dtype=torch.float64), torch.stack(along)


@pytest.mark.parametrize("epsilon", [0.0, 0.25])
def test_invariant_5_the_estimator_is_the_gradient_of_the_expected_reward_by_enumeration(epsilon):
    """Two states before each of two steps, all four sequences; the naive density is another gradient if explored."""
    options = {"count": 2, "feed": "hard", "transition": "categorical", "epsilon": epsilon, "entropy": 0.0}
    method = CTRLSRL(**options, advantage="none", average="sum")
    model, examples = model_of(method, TINY), examples_of(TINY, 1)
    z_Z2 = torch.tensor([*itertools.product(range(2), repeat=2)])
    reward_Z = torch.tensor([0.0, 1.0, 0.3, 2.0], dtype=torch.float64)

    def chances(density="mixture"):
        seen = replace(method, density=density)
        trace = rolled(seen, model, examples, [{"z": z_Z} for z_Z in z_Z2.T])
        return trace, (trace.log_prob_BT * trace.drawn_BT).sum(1).exp()

    trace, chance_Z = chances()
    assert chance_Z.sum().item() == pytest.approx(1)
    found = mean_gradient(method, model, examples, trace, (chance_Z * reward_Z).detach())
    expected, along = differences(model, lambda: (chances()[1] * reward_Z).sum())
    torch.testing.assert_close(along @ found, expected, rtol=1e-6, atol=1e-8)
    assert expected.abs().max() > 1e-3
    naive = mean_gradient(
        replace(method, density="naive"), model, examples, chances("naive")[0], (chance_Z * reward_Z).detach()
    )
    assert ((along @ naive - expected).abs().max() > 1e-3) == (epsilon > 0)


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_invariant_5_the_estimator_of_points_is_the_gradient_by_quadrature(epsilon):
    """One step, two states, a fine grid of points; the reward is the model's probability of the right answer."""
    task = MNNS(2, 1, 3)
    method = CTRLSRL(count=2, epsilon=epsilon, entropy=0.0, advantage="none", average="sum", floor=0.8)
    model, examples = model_of(method, task), examples_of(task, 1)
    x_Q = torch.arange(-40, 40, 0.05, dtype=torch.float64)
    log_a_Q2 = torch.nn.functional.logsigmoid(torch.stack([x_Q, -x_Q], 1))
    trace = rolled(method, model, examples, [{"log_a": log_a_Q2}])
    right_Q = trace.logits_BTV[:, -1].log_softmax(-1)[:, examples.answer_BA[0, 0]].exp().detach()
    assert right_Q.max() - right_Q.min() > 0.01
    hidden_D = trace.hidden_BTD[0, 0].detach()

    def expected():
        alpha_2 = transition_of(model)(hidden_D).expand(len(x_Q), 2)
        return (0.05 * point_log_density(alpha_2, log_a_Q2, epsilon).exp() * right_Q).sum()

    chance_Q = 0.05 * (trace.log_prob_BT * trace.drawn_BT).sum(1).exp().detach()
    assert chance_Q.sum().item() == pytest.approx(1, abs=1e-9)
    found = mean_gradient(method, model, examples, trace, chance_Q * right_Q)
    wanted, along = differences(model, expected)
    torch.testing.assert_close(along @ found, wanted, rtol=1e-5, atol=1e-9)
    naive = replace(method, density="naive")
    other = rolled(naive, model, examples, [{"log_a": log_a_Q2}])
    biased = mean_gradient(naive, model, examples, other, chance_Q * right_Q)
    assert ((along @ biased - wanted).abs().max() > 0.01 * wanted.abs().max()) == (epsilon > 0)


# ---------------------------------------------------------------------------------------------------------------------
# The loss


def test_the_loss_is_the_surrogate_and_the_bonus_written_out():
    """Mean over the states of a rollout, then over rollouts; both entropies are logged."""
    method = CTRLSRL(count=3, group=16, entropy=0.3, advantage="mean", floor=0.5)
    model, examples = model_of(method), examples_of()
    batch = method.collect(model, examples, STATE_3)
    loss, gradients = loss_and_gradients(model, method.loss(model, batch, STATE_3).value)
    again = replay(model.backbone, batch.trace)
    places = [again.within(span).start for span in again.thought_spans if span.name == STATE]
    total, spread, single = 0.0, 0.0, 0.0
    for row in range(again.rows):
        there = [place for place in places if again.acted_BT[row, place]]
        if not there:  # a chain of the answer alone
            continue
        alpha_SK = transition_of(model)(again.hidden_BTD[row, there])
        log_p_S = again.log_prob_BT[row, there]
        total = total - ((log_p_S - log_p_S.detach()).exp().mean() * batch.advantage_B[row]) / again.rows
        total = total - 0.3 * dirichlet_entropy(alpha_SK).mean() / again.rows
        spread += dirichlet_entropy(alpha_SK).mean().item() / again.rows
        single += state_entropy(alpha_SK).mean().item() / again.rows
    assert batch.advantage_B.abs().max() > 0.1
    assert_same((loss, gradients), loss_and_gradients(model, total))
    metrics = method.loss(model, replace(batch, old_BT=None), STATE_3).metrics
    assert metrics["dirichlet_entropy"].item() == pytest.approx(spread)
    assert metrics["state_entropy"].item() == pytest.approx(single)


def test_the_bonus_of_a_categorical_is_the_entropy_of_its_states():
    method = CTRLSRL(count=3, group=4, entropy=0.3, feed="hard", transition="categorical", signal="none")
    model, examples = model_of(method), examples_of()
    batch = method.collect(model, examples, STATE_3)
    loss = method.loss(model, batch, STATE_3)
    assert loss.value.item() == pytest.approx(-0.3 * loss.metrics["state_entropy"].item())


@pytest.mark.parametrize("settings", [{}, {"feed": "hard"}, {"feed": "hard", "transition": "categorical"}], ids=str)
def test_invariant_8_equal_rewards_without_bonus_or_exploration_leave_the_weights_alone(settings):
    method = CTRLSRL(count=3, epsilon=0.0, entropy=0.0, group=32, **settings)
    model = model_of(method)
    flat = replace(STATE_3, verify=lambda examples, trace: torch.ones(trace.rows))
    _, gradients = loss_and_gradients(model, loss_of(method, model, examples_of(), flat))
    assert all((gradient == 0).all() for gradient in gradients.values())
    _, gradients = loss_and_gradients(model, loss_of(method, model, examples_of(), STATE_3))
    assert gradients["parts.transition.second_KH"].abs().max() > 1e-6


@pytest.mark.parametrize("settings", [{}, {"feed": "hard"}, {"feed": "hard", "transition": "categorical"}], ids=str)
def test_invariant_9_exploring_always_is_uniform_and_has_no_gradient(settings):
    method = CTRLSRL(count=3, epsilon=1.0, entropy=0.0, **settings)
    model = model_of(method)
    batch = method.collect(model, examples_of(rows=60), STATE_3)
    assert batch.advantage_B.abs().max() > 0.1
    _, gradients = loss_and_gradients(model, method.loss(model, batch, STATE_3).value)
    assert all((gradient == 0).all() for gradient in gradients.values())
    for span in batch.trace.thought_spans[:1]:
        values = span.action.values
        shares_K = (
            torch.bincount(values["z"].flatten(), minlength=3) / values["z"].numel()
            if "z" in values
            else values["log_a"].exp().mean((0, 1))
        )
        torch.testing.assert_close(shares_K.double(), torch.full((3,), 1 / 3).double(), rtol=0, atol=0.08)
    naive = replace(method, density="naive")
    _, gradients = loss_and_gradients(model, loss_of(naive, model, examples_of(), STATE_3))
    assert gradients["parts.transition.second_KH"].abs().max() > 1e-6


# ---------------------------------------------------------------------------------------------------------------------
# Several processes, and one prompt


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"feed": "hard", "transition": "categorical"}], ids=str)
def test_two_processes_of_a_prompt_are_one_process_of_two(settings, tmp_path):
    """Bonus included; prompts of unlike numbers of steps."""
    method = CTRLSRL(count=3, entropy=0.3, floor=1.0, advantage="mean", **settings)
    assert_processes_agree(method, model_of(method), examples_of(rows=2), tmp_path, transition_of, verify=even)


@pytest.mark.parametrize("settings", [{}, {"feed": "hard"}, {"feed": "hard", "transition": "categorical"}], ids=str)
def test_one_prompt_alone_is_enough(settings):
    method = CTRLSRL(count=3, group=32, **settings)
    model = model_of(method)
    value, gradients = loss_and_gradients(model, loss_of(method, model, examples_of(rows=1), STATE_3))
    assert value == value  # not NaN
    assert gradients["parts.transition.second_KH"].abs().max() > 1e-6


# ---------------------------------------------------------------------------------------------------------------------
# Training and inference


def trained(method, start):
    """A short run, from another's weights."""
    return train(Experiment(TINY, method, ModelConfig(8, 1, 1), Training(steps=4, batch_size=8), Seeds(), start))


def moved(model, before):
    """The tensors that are not those of an earlier model."""
    earlier = before.state_dict()
    return {name for name, x in model.state_dict().items() if name in earlier and not torch.equal(x, earlier[name])}


def starts(task=TINY, **settings):
    """Runs of a chain of thought, and of states around it."""
    recipe, config = Training(steps=4, batch_size=8), ModelConfig(8, 1, 1)
    base = Experiment(task, DiscreteCoT(), config, recipe)
    return base, Experiment(task, CTRLS(count=3, **settings), config, recipe, Seeds(), base)


def test_invariant_8_training_moves_the_transition_alone(unchecked):
    base, before = starts()
    plain, states = train(base), train(before)
    for method in (CTRLSRL(count=3, group=4), CTRLSRL(count=3, group=4, kl=0.1, updates=2)):
        after = trained(method, before)
        assert moved(after, states) == {f"parts.transition.{n}" for n, _ in transition_of(after).named_parameters()}
    for name, tensor in plain.backbone.state_dict().items():
        assert torch.equal(states.backbone.state_dict()[name], tensor), name
    assert states_of(states).centre_Kp.abs().sum() > 0


def test_a_prefix_is_trained_by_the_scores_of_tokens(unchecked):
    _, before = starts(states="prefix")
    method = CTRLSRL(states="prefix", temperature=1.0, group=4)
    assert moved(trained(method, before), train(before)) == {"parts.states.embedding_KD"}


def test_tokens_are_the_likeliest_unless_a_temperature_says_more():
    for temperature in (0.0, 1.3):
        method = CTRLSRL(count=3, temperature=temperature)
        trace = method.collect(model_of(method), examples_of(), STATE_3).trace
        drawn = {span.name: span.drawn for span in trace.thought_spans}
        assert drawn[STATE]
        assert drawn[STEP] == (temperature > 0)


def test_inference_takes_the_mean_and_does_not_explore():
    method, examples = CTRLSRL(count=3, epsilon=0.9), examples_of()
    model = model_of(method)
    own = method.solve(model, examples)
    calm = CTRLS(count=3).solve(model, examples)
    assert torch.equal(own.trace.logits_BTV, calm.trace.logits_BTV)
    drawn = method.solve(model, examples, Streams(0, 6), temperature=1.0).trace
    spans = [span for span in drawn.thought_spans if span.name == STATE]
    assert all(span.thought.epsilon == 0 and "log_a" in span.action.values for span in spans)


def test_first_ratios_are_one_and_metrics_are_told_once():
    method = CTRLSRL(count=3, updates=2, kl=0.05)
    model, examples = model_of(method), examples_of()
    enter(method, model, 0, examples)
    batch = method.collect(model, examples, STATE_3)
    first = method.loss(model, batch, STATE_3)
    second = method.loss(model, batch, replace(STATE_3, update=1))
    assert first.metrics["reference_kl"].item() == pytest.approx(0, abs=1e-12)
    assert {"dirichlet_entropy", "state_entropy", "concentration", "reward"} <= {*first.metrics} - {*second.metrics}
    assert first.value.item() == pytest.approx(second.value.item())


@pytest.mark.parametrize("task", [TASK, Arithmetic(operations=3, least=2, modulus=5)], ids=lambda task: task.name)
@pytest.mark.parametrize("average", ["sequence", "token", "sum"])
def test_parts_of_a_batch_add_up(task, average):
    method = CTRLSRL(count=3, group=4, average=average, entropy=0.2, temperature=0.9)
    model, examples = model_of(method, task), examples_of(task)
    batch, state = method.collect(model, examples, STATE_3), replace(STATE_3, rows=6)
    parts = [method.loss(model, part, replace(state, first=4 * n)) for n, part in enumerate(batch.parts(4))]
    whole = loss_and_gradients(model, method.loss(model, batch, STATE_3).value)
    assert_same(loss_and_gradients(model, sum(part.value for part in parts)), whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": "exact"}, "density 'exact': expected one of mixture, naive"),
        ({"epsilon": 1.5}, "epsilon 1.5: expected a probability from 0 to 1"),
        ({"entropy": -0.1}, "entropy -0.1: expected 0 or more"),
        ({"temperature": -1.0}, "temperature -1.0: expected 0 to 100"),
        ({"states": "prefix"}, "states prefix draws no states to learn from: set a temperature"),
        ({"transition": "categorical"}, "cannot be fed soft: set feed hard"),
    ],
)
def test_bad_settings_are_refused(settings, message, unchecked):
    with pytest.raises(ValueError, match=message):
        CTRLSRL(**settings)


def test_without_anything_drawn_there_is_nothing_to_learn():
    method = CTRLSRL(count=3, draws=False)
    with pytest.raises(ValueError, match="samples nothing"):
        method.collect(model_of(method), examples_of(), STATE_3)


def test_settings_without_effect_say_why():
    assert "density" in CTRLSRL(epsilon=0.0).idle
    assert {"count", "epsilon", "entropy"} <= {*CTRLSRL(states="prefix", temperature=1.0).idle}
    assert {"beta", "tau"} <= {*CTRLS(states="prefix").idle}


def test_entropies_of_batches_with_longer_and_shorter_chains_align():
    method, examples = CTRLSRL(count=3, group=4), examples_of(rows=20)
    model, lengths = model_of(method), examples.num_steps
    parts = [examples.rows((lengths == steps).nonzero()[:, 0]) for steps in (1, 3)]
    shapes = [
        method.loss(model, method.collect(model, part, STATE_3), STATE_3).metrics["entropy"].shape for part in parts
    ]
    assert shapes[0] == shapes[1] == (2 * examples.max_steps + 1,)
