"""Losses of supervised methods, in float64 to 1e-9, against plain loops that recompute everything at every step."""

import math
from dataclasses import dataclass, replace
from functools import partial

import losses
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from losses import assert_same, loss_and_gradients, loss_of, with_targets
from tinylatent_tasks import MNNS, Arithmetic, Composition

from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY, HIDDEN, Mixture, Pause
from tinylatent.evaluation.evaluate import evaluate
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import train
from tinylatent.methods import METHODS, CoT2, Direct, DiscreteCoT, PauseTokens
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.examples import Targets
from tinylatent.objectives.losses import mixture_loss
from tinylatent.objectives.method import Method, TrainState
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.config import Training

TASK = MNNS(3, 1, 4)
ROWS = np.array([[1, 2, 4], [4, 4, 4], [3, 1, 1], [2, 4, 3], [1, 3, 2]])
EARLY = TrainState(0, 10, 0)
model_of, examples_of = partial(losses.model_of, task=TASK), partial(losses.examples_of, task=TASK, rows=ROWS)


def naive_csft(model, examples, own):
    """CSFT's loss, one step after another, with everything recomputed at every step: no cache, no parallel forward.

    own: whether the model reads its own latents (with their gradients) instead of the target's.
    """
    backbone, loss, target_BTV = model.backbone, 0.0, examples.frontier.dense()
    inputs_BSD = backbone.embedding[examples.prompt_BN]
    for t in range(examples.chain_BT.shape[1]):
        hidden_BSD, _ = backbone.forward(inputs_BSD)
        logs_BV = (hidden_BSD[:, -1] @ backbone.embedding.T).log_softmax(-1)
        loss = loss - (target_BTV[:, t] * logs_BV).sum(-1).mean()
        alpha_BV = logs_BV.exp() if own else target_BTV[:, t]
        inputs_BSD = torch.cat([inputs_BSD, (alpha_BV @ backbone.embedding)[:, None]], 1)
    return loss


def test_teacher_forcing_in_one_forward_is_step_by_step():
    method = CoT2()
    model, examples = model_of(method), examples_of(method)
    at_once = loss_and_gradients(model, loss_of(method, model, examples, EARLY))
    assert_same(at_once, loss_and_gradients(model, naive_csft(model, examples, own=False)))


def test_teacher_forcing_in_one_forward_is_the_cached_rollout():
    method = CoT2()
    model, examples = model_of(method), examples_of(method)
    forced = Segment(Mixture(), examples.num_steps, examples.frontier.given(examples.max_steps))
    run = rollout(model.backbone, (forced, method.plan(model, examples)[-1]), examples.prompt_BN, grad=True)
    stepwise = loss_and_gradients(model, mixture_loss(run, examples.frontier))
    assert_same(loss_and_gradients(model, loss_of(method, model, examples, EARLY)), stepwise)


def test_self_feeding_is_step_by_step_with_gradients_through_the_latents():
    method = CoT2(prefix="self")
    model, examples = model_of(method), examples_of(method)
    fed = loss_and_gradients(model, loss_of(method, model, examples, EARLY))
    assert_same(fed, loss_and_gradients(model, naive_csft(model, examples, own=True)))
    teacher = loss_and_gradients(model, naive_csft(model, examples, own=False))
    assert abs(fed[0] - teacher[0]) > 1e-3, "the prefixes differ here, so the test above can fail"


def test_discrete_is_the_same_loop_over_tokens():
    method = DiscreteCoT()
    model, examples = model_of(method), examples_of(method)
    one_hot = with_targets(examples, F.one_hot(examples.chain_BT, len(TASK.vocabulary)).double())
    loop = loss_and_gradients(model, naive_csft(model, one_hot, own=False))
    assert_same(loss_and_gradients(model, loss_of(method, model, examples, EARLY)), loop)


def test_discrete_is_cot2_with_one_trace():
    discrete, mixed = DiscreteCoT(), CoT2(budget=1)
    model = model_of(discrete)
    a = loss_and_gradients(model, loss_of(discrete, model, examples_of(discrete), EARLY))
    b = loss_and_gradients(model, loss_of(mixed, model, examples_of(mixed), EARLY))
    assert_same(a, b)
    full = loss_and_gradients(model, loss_of(CoT2(), model, examples_of(CoT2()), EARLY))
    assert abs(full[0] - a[0]) > 1e-3, "more traces make another loss, so the test above can fail"


def test_a_question_is_trained_token_by_token():
    """Rows of different length, one at a time without padding: every token after the first, and the answer."""
    task = Composition(hops=3, items=4, functions=3)
    rows = np.array([[1, 2, -1, -1], [3, 0, 1, 2], [0, 1, 1, -1]])
    plain, asked = Direct(), Direct(question=0.5)
    model, examples = losses.model_of(plain, task=task), losses.examples_of(plain, task=task, rows=rows)
    found = loss_of(asked, model, examples, EARLY)
    expected = loss_of(plain, model, examples, EARLY)
    for ids_N, mask_N in zip(examples.prompt_BN, examples.prompt_mask_BN, strict=True):
        ids_N = ids_N[mask_N]
        hidden, _ = model.backbone.forward(model.backbone.embedding[ids_N[None]])
        logs_NV = (hidden[0] @ model.backbone.embedding.T).log_softmax(-1)
        expected = expected - 0.5 * sum(logs_NV[t, ids_N[t + 1]] for t in range(len(ids_N) - 1)) / 3
    assert_same(loss_and_gradients(model, found), loss_and_gradients(model, expected))
    metric = asked.loss(model, examples, EARLY).metrics["question_loss"]
    assert metric.item() == pytest.approx(2 * (found - loss_of(plain, model, examples, EARLY)).item())


def test_a_negative_weight_of_a_question_is_told():
    with pytest.raises(ValueError, match=r"question is -1.0: expected a weight of 0 or more; try 1"):
        Direct(question=-1.0)


@pytest.mark.parametrize("name", ["direct", "pause"])
def test_answers_alone_are_supervised_by_a_plain_loop(name):
    """Prompt, then the pauses if any, then the cross-entropy of the answer at the last slot."""
    method = METHODS[name]()
    model, examples = model_of(method), examples_of(method)
    inputs_BSD = model.backbone.embedding[examples.prompt_BN]
    if name == "pause":
        constant_D = model.parts["pause"].constant_D
        inputs_BSD = torch.cat([inputs_BSD, constant_D.expand(len(ROWS), TASK.digits - 1, -1)], 1)
    hidden_BSD, _ = model.backbone.forward(inputs_BSD)
    logs_BV = (hidden_BSD[:, -1] @ model.backbone.embedding.T).log_softmax(-1)
    loop = loss_and_gradients(model, -logs_BV[range(len(ROWS)), examples.answer_BA[:, 0]].mean())
    assert_same(loss_and_gradients(model, loss_of(method, model, examples, EARLY)), loop)


@pytest.mark.parametrize("compression", [1, 2, 5, 50])
def test_pauses_are_the_chain_over_the_compression_rounded_up(compression):
    """Chains of 12 to 24 tokens in one batch: each row has its own number, and its loss is the plain loop's alone."""
    task, method = Arithmetic(4, 5, least=2), PauseTokens(compression)
    rows = task.problems(6, seed=1)
    model, examples = losses.model_of(method, task), losses.examples_of(method, task, rows)
    counts = [math.ceil(6 * int((row[1::2] >= 0).sum()) / compression) for row in rows]
    assert len({*counts}) > 1 or compression == 50
    for plan in (method.thinking(model, examples), method.taught(model, examples)):
        assert plan[0].steps.tolist() == counts
    loss, constant_D = 0.0, model.parts["pause"].constant_D
    for number, count in enumerate(counts):
        prompt_1N = examples.prompt_BN[number][examples.prompt_mask_BN[number]][None]
        inputs_1SD = torch.cat([model.backbone.embedding[prompt_1N], constant_D.expand(1, count, -1)], 1)
        hidden_1SD, _ = model.backbone.forward(inputs_1SD)
        logs_V = (hidden_1SD[0, -1] @ model.backbone.embedding.T).log_softmax(-1)
        loss = loss - logs_V[examples.answer_BA[number, 0]] / len(rows)
    assert_same(loss_and_gradients(model, loss_of(method, model, examples, EARLY)), loss_and_gradients(model, loss))
    free = rollout(model.backbone, method.plan(model, examples), examples.prompt_BN, examples.prompt_mask_BN)
    forced = method.forced(model, examples)
    assert free.length_B.tolist() == forced.length_B.tolist() == [count + 1 for count in counts]
    torch.testing.assert_close(forced.logits_BTV[:, -1], free.logits_BTV[:, -1], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("switch", "total"), [(0.5, 10), (0.3, 10), (0.0, 10), (1.0, 10), (0.5, 7)])
def test_teacher_then_self_switches_at_its_share_of_training(switch, total):
    teacher, own, both = CoT2(), CoT2(prefix="self"), CoT2(prefix="teacher-then-self", switch=switch)
    model, examples = model_of(teacher), examples_of(teacher)
    for step in range(total):
        then = own if step >= switch * total else teacher
        state = TrainState(step, total, 0)
        assert loss_of(both, model, examples, state).item() == loss_of(then, model, examples, state).item()


# ---------------------------------------------------------------------------------------------------------------------
# Configurations, and whether anything is learned


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"budget": 0}, r"budget 0: expected at least 1"),
        ({"budget": -3}, r"budget -3: expected at least 1"),
        ({"switch": -0.1}, r"switch -0\.1: expected a share of training between 0 and 1"),
        ({"switch": 1.5}, r"switch 1\.5: expected a share of training between 0 and 1"),
        ({"switch": math.nan}, r"switch nan: expected a share of training between 0 and 1"),
        ({"prefix": "both"}, r"prefix 'both': expected one of teacher, self, teacher-then-self"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_configurations_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        CoT2(**fields)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("compression", [0, -2])
def test_a_compression_below_one_is_refused(compression):
    with pytest.raises(ValueError, match=rf"compression {compression}: expected at least 1 step"):
        PauseTokens(compression)


def test_forced_and_free_plans_think_alike():
    """The pause's forced trace is its own inference: nothing in it depends on the target."""
    method = METHODS["pause"]()
    model, examples = model_of(method), examples_of(method)
    free = rollout(model.backbone, method.plan(model, examples), examples.prompt_BN)
    assert isinstance(free.thought_spans[0].thought, Pause)
    torch.testing.assert_close(method.forced(model, examples).logits_BTV, free.logits_BTV, atol=1e-9, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "steps"), [(DiscreteCoT(), 400), (CoT2(), 1200), (CoT2(prefix="self"), 1200)], ids=repr
)
def test_a_small_task_is_learnt(method, steps):
    """All problems of two digits are learned; what is left of CoT2's loss is the entropy of its targets, log 2."""
    task = MNNS(2, 1, 4)
    recipe = Training(steps=steps, batch_size=8, learning_rate=0.005, log_every=steps)
    losses = []
    train(Experiment(task, method, ModelConfig(32, 1, 2), recipe), on_progress=lambda step, loss: losses.append(loss))
    floor = math.log(2) if isinstance(method, CoT2) else 0.0
    assert losses[-1] - floor < 0.03


@dataclass(frozen=True)
class Extended(CoT2):
    """CoT2 with tokens of its own behind the task's."""

    name = "extended"

    @property
    def extra_tokens(self):
        return ("<a>", "<b>")


def test_targets_fit_a_table_with_tokens_of_the_methods_own(unchecked):
    """Losses and distances are those of targets that give the extra tokens nothing; the latents are the same."""
    task, method = MNNS(digits=3, high=3), Extended()
    model = Experiment(task=task, method=method).fresh()
    V = len(task.vocabulary)
    assert len(model.backbone.table) == V + 2
    dense = Symbols(task, task.split("train", 0)[:6]).examples()
    wide = replace(dense, frontier=Targets(V + 2, dense_BTV=F.pad(dense.frontier.dense(), (0, 2))))
    sparse = replace(dense, frontier=Targets.from_dense(dense.frontier.dense()))
    state = TrainState(0, 10, 0)
    losses = [method.loss(model, examples, state).value for examples in (wide, dense, sparse)]
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=0)
    torch.testing.assert_close(losses[2], losses[0])
    own = replace(method, prefix="self").loss(model, dense, state).value
    assert own.isfinite()
    result = evaluate(Symbols(task, task.split("validation", 0)), method, model)
    assert all(math.isfinite(value) for value in result.kl_T)


@dataclass(frozen=True)
class Untaught(DiscreteCoT):
    """Says how it thinks, and not what is taught: the model's own latents, and the answer's loss alone."""

    name = "untaught"

    def thinking(self, model, examples, temperature=0.0):
        return (Segment(HIDDEN, examples.num_steps),)

    taught, loss = Method.taught, Method.loss


def test_what_is_not_taught_the_model_thinks_itself():
    """The answer's cross-entropy after its own hidden states, with the gradient through them."""
    model, examples = model_of(Untaught()), examples_of(Untaught())
    plan = (Segment(HIDDEN, examples.num_steps), Segment(GREEDY, 1, GREEDY.given(examples.answer_BA)))
    run = rollout(model.backbone, plan, examples.prompt_BN, grad=True)
    expected = F.cross_entropy(run.logits_BTV[:, -1], examples.answer_BA[:, 0])
    got = loss_of(Untaught(), model, examples, EARLY)
    assert_same(loss_and_gradients(model, got), loss_and_gradients(model, expected))
    assert got.item() != pytest.approx(loss_of(METHODS["direct"](), model, examples, EARLY).item())
