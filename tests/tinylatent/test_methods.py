"""Every method keeps the promises of the interface, and the methods are equal where theory says so.

The first part runs over all of METHODS: a method added there is tested here. The second holds losses and gradients, in
float64 to 1e-9, to plain loops that recompute everything at every step, and ragged batches to their rows alone.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from losses import assert_same, loss_and_gradients

from tasks import MNNS, Batch
from tinylatent.evaluation import cost
from tinylatent.experiment import Experiment, Training
from tinylatent.methods import GRPO, METHODS, Coconut, CoT2, Direct, DiscreteCoT, Moment
from tinylatent.methods.base import mixture_loss, token_loss
from tinylatent.plan import Segment
from tinylatent.problems import Problems
from tinylatent.rollout import rollout
from tinylatent.seeds import PURPOSES, Seeds, Streams
from tinylatent.thoughts import Mixture, Pause
from tinylatent.training import train
from tinylatent.transformer import Shape

EVERY = pytest.mark.parametrize("method", [kind() for kind in METHODS.values()], ids=list(METHODS))
VARIANTS = [
    *(kind() for kind in METHODS.values()),
    Coconut(stages=2, per_step=2),
    CoT2(budget=2),
    CoT2(prefix="self"),
    CoT2(prefix="teacher-then-self"),
    GRPO(samples=1, updates=2, kl=0.1),
    GRPO(samples=2, curriculum=(1,), ratio="paper"),
    GRPO(ratio="official", average="token", advantage="leave-one-out"),
    GRPO(gamma=2.0),
]
WITH_VARIANTS = pytest.mark.parametrize("method", VARIANTS, ids=repr)
UNMIXED = pytest.mark.parametrize(
    "method",
    [replace(each, mixing=0.0) if isinstance(each, Coconut) else each for each in VARIANTS if each.name != "grpo"],
    ids=repr,
)
"""The variants with a loss that samples nothing: a row's draw would depend on its place in the batch."""
TASK = MNNS(3, 1, 4)
ROWS = np.array([[1, 2, 4], [4, 4, 4], [3, 1, 1], [2, 4, 3], [1, 3, 2]])
MOMENT, LATE = Moment(0, 10, 0), Moment(9, 10, 0)
MOMENTS = pytest.mark.parametrize("moment", [MOMENT, LATE], ids=["first", "last"])


def model_of(method, task=TASK, moment=LATE, **seeds):
    """A float64 model with weights large enough that every input matters, in the stage of a moment (the last)."""
    model = Experiment(task, method, Shape(16, 2, 2), seeds=Seeds(**seeds)).model().double()
    method.enter(model, method.stage(moment))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.std(correction=0) > 0:
                parameter.mul_(10)
    return model


def upload(batch):
    problems = Problems.upload(batch)
    return replace(problems, target_BTV=problems.target_BTV.double())


def inferred(method, model, problems, first=0):
    """The method's own inference; what it samples belongs to the row, `first` being the number of the first."""
    streams = Streams(7, torch.arange(first, first + len(problems)))
    plan = method.plan(model, problems)
    return rollout(model.backbone, plan, problems.prompt_BN, problems.prompt_mask_BN, streams=streams)


def problems_of(method, task=TASK, rows=ROWS):
    return upload(method.supervise(task, rows))


# ---------------------------------------------------------------------------------------------------------------------
# Every method


def test_registered_under_its_name():
    assert all(kind.name == name for name, kind in METHODS.items())


@MOMENTS
@UNMIXED
def test_loss_reaches_every_weight_it_should_and_nothing_else(method, moment):
    """All matrices and gains, all tokens (they are the readout too), the places of the slots read, and own thoughts."""
    model, problems = model_of(method, moment=moment), problems_of(method)
    loss, gradients = loss_and_gradients(model, method.loss(model, problems, moment))
    assert math.isfinite(loss)
    slots = cost(model.backbone.shape, len(TASK.vocabulary), method, model, problems)["slots"]
    places = gradients.pop("backbone.places")
    assert (places.abs().amax(1) > 0).tolist() == [place < slots for place in range(len(places))]
    assert (gradients.pop("backbone.tokens").abs().amax(1) > 0).all()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
    assert all(tensor.grad is None for tensor in vars(problems).values() if isinstance(tensor, torch.Tensor))


@MOMENTS
@WITH_VARIANTS
def test_loss_does_not_touch_weights_or_problems(method, moment):
    model, problems = model_of(method), problems_of(method)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    target_BTV = problems.target_BTV.clone()
    assert method.loss(model, problems, moment).item() == method.loss(model, problems, moment).item()
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert torch.equal(problems.target_BTV, target_BTV)


def test_only_pause_has_parameters_of_its_own():
    own = {method: [name for name, _ in model_of(METHODS[method]()).thoughts.named_parameters()] for method in METHODS}
    assert own.pop("pause") == ["pause.constant_D"]
    assert not any(own.values())


@WITH_VARIANTS
def test_inference_is_the_same_alone_and_in_a_batch(method):
    model, problems = model_of(method), problems_of(method)
    together = inferred(method, model, problems)
    for number in range(len(ROWS)):
        alone = inferred(method, model, problems.rows(slice(number, number + 1)), first=number)
        assert torch.equal(alone.action("id")[0], together.action("id")[number])
        torch.testing.assert_close(alone.logits_BTV[0], together.logits_BTV[number], atol=1e-9, rtol=1e-9)


@MOMENTS
@UNMIXED
def test_loss_of_a_batch_is_the_mean_over_its_rows(method, moment):
    model, problems = model_of(method), problems_of(method)
    whole = method.loss(model, problems, moment)
    rows = [method.loss(model, problems.rows(slice(number, number + 1)), moment) for number in range(len(ROWS))]
    assert whole.item() == pytest.approx(sum(rows).item() / len(rows), abs=1e-9)


@EVERY
def test_plan_is_as_long_as_the_chain(method):
    model, problems = model_of(method), problems_of(method)
    *before, answer = [segment.longest for segment in method.plan(model, problems)]
    assert (sum(before), answer) == (0 if method.name == "direct" else TASK.digits - 1, 1)


@EVERY
def test_plan_says_whether_it_thinks_in_latents(method):
    """The controls replace what is latent, so the flag of the method must be that of its plan."""
    model, problems = model_of(method), problems_of(method)
    assert method.latent == any(segment.thought.latent for segment in method.plan(model, problems))


@pytest.mark.parametrize("method", [kind() for name, kind in METHODS.items() if name != "grpo"], ids=repr)
def test_one_digit_needs_no_thought(method):
    """With nothing to think all methods are the direct answer."""
    task = MNNS(1, 1, 4)
    model, direct = model_of(method, task), model_of(Direct(), task)
    problems = problems_of(method, task, np.array([[1], [4]]))
    loss = method.loss(model, problems, MOMENT)
    assert loss.item() == pytest.approx(Direct().loss(direct, problems, MOMENT).item(), abs=1e-9)
    assert inferred(method, model, problems).logits_BTV.shape[1] == 1


@WITH_VARIANTS
def test_offsets_move_positions_and_nothing_else(method):
    """With room to spare, a loss at offset k is the loss at offset 0 of a model whose places start at k."""
    task = MNNS(3, 1, 4, room=5)
    model, moved, problems = model_of(method, task), model_of(method, task), problems_of(method, task)
    method.enter(model, method.stage(LATE))  # a reference is what the weights are now
    plain = loss_and_gradients(model, method.loss(model, problems, MOMENT))
    for offset in (0, 1, task.positions - problems.slots):
        with torch.no_grad():
            moved.backbone.places.copy_(model.backbone.places.roll(offset, 0))
        method.enter(moved, method.stage(LATE))
        there = replace(problems, offset_B=torch.full((len(ROWS),), offset))
        loss, gradients = loss_and_gradients(moved, method.loss(moved, there, MOMENT))
        gradients["backbone.places"] = gradients["backbone.places"].roll(-offset, 0)
        assert_same((loss, gradients), plain)


@EVERY
def test_trains_with_room_and_validates_longer_problems(method):
    """What was trained on three digits runs on five: vocabulary and positions are large enough."""
    task = MNNS(3, 1, 4, room=5)
    model = train(Experiment(task, method, Shape(8, 1, 1), Training(steps=8, batch=8)))
    longer = MNNS(5, 1, 4)
    problems = problems_of(method, longer, longer.problems(4, seed=0))
    assert inferred(method, model, problems).logits_BTV.isfinite().all()


@EVERY
def test_temperature_samples_the_answer(method):
    model, problems = model_of(method), problems_of(method)
    *_, answer = method.plan(model, problems, temperature=0.7)
    assert answer.thought.temperature == 0.7
    assert answer.steps == problems.answer_tokens
    *_, answer = method.plan(model, problems)
    assert not answer.thought.needs_streams


# ---------------------------------------------------------------------------------------------------------------------
# Seeds


@dataclass(frozen=True)
class Spy(Direct):
    """Answers directly and writes down what it was given."""

    seen: dict = field(default_factory=dict)

    def loss(self, model, problems, moment):
        self.seen.setdefault("order", []).append((problems.prompt_BN.tolist(), problems.offset_B.tolist()))
        self.seen.setdefault("sampling", []).append(moment.streams(3).uniform(2).tolist())
        if moment.step == 0:
            self.seen["init"] = model.backbone.tokens.tolist()
        return super().loss(model, problems, moment)


def spied(**seeds):
    """What a run with these seeds gets: weights, order, sampling; and for the split all problems of an epoch."""
    spy = Spy()
    task = MNNS(3, 1, 4, room=4)
    rows = Experiment(task, spy, seeds=Seeds(**seeds)).rows("train")
    train(Experiment(task, spy, Shape(8, 1, 1), Training(steps=4, batch=8), Seeds(**seeds)))
    return {**spy.seen, "split": rows.tolist()}


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_seed_changes_what_it_should_and_only_that(purpose):
    """Another split brings other problems into the same order, so order is then compared by itself."""
    base, changed = spied(), spied(**{purpose: 1})
    assert {name for name in base if base[name] != changed[name]} - {"order"} == {purpose} - {"order"}
    if purpose != "split":
        assert (base["order"] != changed["order"]) == (purpose == "order")
    else:
        offsets = [[offset_B for _, offset_B in run["order"]] for run in (base, changed)]
        assert offsets[0] == offsets[1]


@WITH_VARIANTS
def test_same_seeds_same_weights(method):
    def weights(seeds):
        whole = Experiment(TASK, method, Shape(8, 1, 1), Training(steps=8, batch=8), seeds)
        return torch.cat([tensor.flatten() for tensor in train(whole).state_dict().values()])

    base = weights(Seeds())
    assert torch.equal(base, weights(Seeds()))
    assert not torch.equal(base, weights(Seeds(init=1)))
    assert not torch.equal(base, weights(Seeds(order=1)))
    assert not torch.equal(base, weights(Seeds(split=1)))


def test_moments_draw_afresh_at_every_step():
    draws = {tuple(Moment(step, 10, seed).streams(1).uniform(1)[0].tolist()) for step in range(5) for seed in (0, 1)}
    assert len(draws) == 10
    assert Moment(5, 10, 0).progress == 0.5


def test_methods_share_initial_weights():
    """The backbone is drawn before any thought: methods are compared from the same start."""
    models = [model_of(kind()) for kind in METHODS.values()]
    for model in models[1:]:
        assert torch.equal(model.backbone.tokens, models[0].backbone.tokens)


# ---------------------------------------------------------------------------------------------------------------------
# Losses, by plain loops


def test_token_loss_is_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    logits_BTV = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    ids_BT = torch.randint(5, (4, 3), generator=generator)
    live_BT = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [True, True, False]])

    def loop(live_BT):
        total = 0.0
        for b in range(4):
            for t in range(3):
                if live_BT[b, t]:
                    total -= logits_BTV[b, t, ids_BT[b, t]].item() - math.log(logits_BTV[b, t].exp().sum().item())
        return total / 4

    assert token_loss(logits_BTV, ids_BT).item() == pytest.approx(loop(torch.ones(4, 3, dtype=torch.bool)), abs=1e-12)
    assert token_loss(logits_BTV, ids_BT, live_BT).item() == pytest.approx(loop(live_BT), abs=1e-12)


def test_mixture_loss_is_kl_plus_entropy():
    """A constant apart from CSFT's sum of KL divergences; zeros in the target cost nothing."""
    generator = torch.Generator().manual_seed(1)
    logits_BTV = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    target_BTV = torch.rand(4, 3, 5, generator=generator, dtype=torch.float64)
    target_BTV[0, 0, :4] = 0
    target_BTV /= target_BTV.sum(-1, keepdim=True)
    live_BT = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [True, True, False]])

    def loop(live_BT):
        total = 0.0
        for b, t in live_BT.nonzero().tolist():
            shares, logs = target_BTV[b, t], logits_BTV[b, t].log_softmax(-1)
            positive = shares > 0
            kl = (shares[positive] * (shares[positive].log() - logs[positive])).sum().item()
            entropy = -(shares[positive] * shares[positive].log()).sum().item()
            total += kl + entropy
        return total / 4

    everywhere_BT = torch.ones(4, 3, dtype=torch.bool)
    assert mixture_loss(logits_BTV, target_BTV).item() == pytest.approx(loop(everywhere_BT), abs=1e-12)
    assert mixture_loss(logits_BTV, target_BTV, live_BT).item() == pytest.approx(loop(live_BT), abs=1e-12)


def naive_csft(model, problems, own):
    """CSFT's loss, one step after another, with everything recomputed at every step: no cache, no parallel forward.

    own: whether the model reads its own latents (with their gradients) instead of the target's.
    """
    backbone, loss = model.backbone, 0.0
    inputs_BSD = backbone.tokens[problems.prompt_BN]
    for t in range(problems.words_BT.shape[1]):
        hidden_BSD, _ = backbone.forward(inputs_BSD)
        logs_BV = (hidden_BSD[:, -1] @ backbone.tokens.T).log_softmax(-1)
        loss = loss - (problems.target_BTV[:, t] * logs_BV).sum(-1).mean()
        alpha_BV = logs_BV.exp() if own else problems.target_BTV[:, t]
        inputs_BSD = torch.cat([inputs_BSD, (alpha_BV @ backbone.tokens)[:, None]], 1)
    return loss


def test_teacher_forcing_in_one_forward_is_step_by_step():
    method = CoT2()
    model, problems = model_of(method), problems_of(method)
    at_once = loss_and_gradients(model, method.loss(model, problems, MOMENT))
    assert_same(at_once, loss_and_gradients(model, naive_csft(model, problems, own=False)))


def test_teacher_forcing_in_one_forward_is_the_cached_rollout():
    method = CoT2()
    model, problems = model_of(method), problems_of(method)
    forced = Segment(Mixture(), problems.thinking, Mixture().given(problems.target_BTV[:, : problems.words_before]))
    run = rollout(model.backbone, (forced, method.plan(model, problems)[-1]), problems.prompt_BN, grad=True)
    stepwise = loss_and_gradients(model, mixture_loss(run.logits_BTV, problems.target_BTV))
    assert_same(loss_and_gradients(model, method.loss(model, problems, MOMENT)), stepwise)


def test_self_feeding_is_step_by_step_with_gradients_through_the_latents():
    method = CoT2(prefix="self")
    model, problems = model_of(method), problems_of(method)
    fed = loss_and_gradients(model, method.loss(model, problems, MOMENT))
    assert_same(fed, loss_and_gradients(model, naive_csft(model, problems, own=True)))
    teacher = loss_and_gradients(model, naive_csft(model, problems, own=False))
    assert abs(fed[0] - teacher[0]) > 1e-3, "the prefixes differ here, so the test above can fail"


def test_discrete_is_the_same_loop_over_tokens():
    method = DiscreteCoT()
    model, problems = model_of(method), problems_of(method)
    one_hot = replace(problems, target_BTV=F.one_hot(problems.words_BT, len(TASK.vocabulary)).double())
    loop = loss_and_gradients(model, naive_csft(model, one_hot, own=False))
    assert_same(loss_and_gradients(model, method.loss(model, problems, MOMENT)), loop)


def test_discrete_is_cot2_with_one_trace():
    discrete, mixed = DiscreteCoT(), CoT2(budget=1)
    model = model_of(discrete)
    a = loss_and_gradients(model, discrete.loss(model, problems_of(discrete), MOMENT))
    b = loss_and_gradients(model, mixed.loss(model, problems_of(mixed), MOMENT))
    assert_same(a, b)
    full = loss_and_gradients(model, CoT2().loss(model, problems_of(CoT2()), MOMENT))
    assert abs(full[0] - a[0]) > 1e-3, "more traces make another loss, so the test above can fail"


@pytest.mark.parametrize("name", ["direct", "pause"])
def test_answers_alone_are_supervised_by_a_plain_loop(name):
    """Prompt, then the pauses if any, then the cross-entropy of the answer at the last slot."""
    method = METHODS[name]()
    model, problems = model_of(method), problems_of(method)
    inputs_BSD = model.backbone.tokens[problems.prompt_BN]
    if name == "pause":
        constant_D = model.thoughts["pause"].constant_D
        inputs_BSD = torch.cat([inputs_BSD, constant_D.expand(len(ROWS), TASK.digits - 1, -1)], 1)
    hidden_BSD, _ = model.backbone.forward(inputs_BSD)
    logs_BV = (hidden_BSD[:, -1] @ model.backbone.tokens.T).log_softmax(-1)
    loop = loss_and_gradients(model, -logs_BV[range(len(ROWS)), problems.answer_BA[:, 0]].mean())
    assert_same(loss_and_gradients(model, method.loss(model, problems, MOMENT)), loop)


@pytest.mark.parametrize(("switch", "total"), [(0.5, 10), (0.3, 10), (0.0, 10), (1.0, 10), (0.5, 7)])
def test_teacher_then_self_switches_at_its_share_of_training(switch, total):
    teacher, own, both = CoT2(), CoT2(prefix="self"), CoT2(prefix="teacher-then-self", switch=switch)
    model, problems = model_of(teacher), problems_of(teacher)
    for step in range(total):
        then = own if step >= switch * total else teacher
        moment = Moment(step, total, 0)
        assert both.loss(model, problems, moment).item() == then.loss(model, problems, moment).item()


# ---------------------------------------------------------------------------------------------------------------------
# Ragged batches


RAGGED = [MNNS(digits, 1, 4, room=4) for digits in (4, 2, 3, 1)]
RAGGED_ROWS = [np.array([[1, 2, 4, 3]]), np.array([[4, 1]]), np.array([[3, 3, 1]]), np.array([[2]])]


def ragged(method):
    """Problems of four lengths in one batch, prompts padded on the left; and each of them alone."""
    batches = [method.supervise(task, rows) for task, rows in zip(RAGGED, RAGGED_ROWS, strict=True)]
    N, T = (max(getattr(batch, name).shape[1] for batch in batches) for name in ("prompt_BN", "chain_BT"))

    def left(array):
        return np.pad(array, ((0, 0), (N - array.shape[1], 0)))

    def right(array):
        return np.pad(array, ((0, 0), (0, T - array.shape[1]), *[(0, 0)] * (array.ndim - 2)))

    whole = Batch(
        prompt_BN=np.concatenate([left(batch.prompt_BN) for batch in batches]),
        prompt_mask_BN=np.concatenate([left(batch.prompt_mask_BN) for batch in batches]),
        steps_B=np.concatenate([batch.steps_B for batch in batches]),
        chain_BT=np.concatenate([right(batch.chain_BT) for batch in batches]),
        frontier_BTV=np.concatenate([right(batch.frontier_BTV) for batch in batches]),
        answer_BA=np.concatenate([batch.answer_BA for batch in batches]),
        key_B=np.concatenate([batch.key_B for batch in batches]),
    )
    return upload(whole), [upload(batch) for batch in batches]


@UNMIXED
def test_a_ragged_batch_is_the_mean_of_its_rows_alone(method):
    """Rows of one to four steps behind prompts of two to five tokens: no row sees another's padding or waiting."""
    model = model_of(method, RAGGED[0])
    together, alone = ragged(method)
    assert together.prompt_mask_BN is not None
    assert together.thinking.tolist() == [3, 1, 2, 0]
    for moment in (MOMENT, Moment(4, 10, 0), LATE):
        mean = sum(method.loss(model, problems, moment) for problems in alone) / len(alone)
        whole = method.loss(model, together, moment)
        assert_same(loss_and_gradients(model, whole), loss_and_gradients(model, mean))


@WITH_VARIANTS
def test_ragged_inference_is_that_of_the_rows_alone(method):
    model = model_of(method, RAGGED[0])
    together, alone = ragged(method)
    run = inferred(method, model, together)
    for number, problems in enumerate(alone):
        one = inferred(method, model, problems, first=number)
        torch.testing.assert_close(one.logits_BTV[0, -1], run.logits_BTV[number, -1], atol=1e-9, rtol=1e-9)
        assert torch.equal(one.action("id")[0, -1:], run.action("id")[number, -1:])
        assert one.length_B[0] == run.length_B[number]


def test_ragged_rows_can_be_picked():
    together, _ = ragged(CoT2())
    for index in (slice(1, 3), torch.tensor([1, 2])):
        some = together.rows(index)
        assert some.thinking.tolist() == [1, 2]
        assert torch.equal(some.prompt_mask_BN, together.prompt_mask_BN[1:3])
        assert torch.equal(some.words_BT, together.words_BT[1:3])
        assert len(some) == 2


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


def test_forced_and_free_plans_think_alike():
    """The pause's forced trace is its own inference: nothing in it depends on the target."""
    method = METHODS["pause"]()
    model, problems = model_of(method), problems_of(method)
    free = rollout(model.backbone, method.plan(model, problems), problems.prompt_BN)
    assert isinstance(free.spans[0].thought, Pause)
    torch.testing.assert_close(method.forced(model, problems).logits_BTV, free.logits_BTV, atol=1e-9, rtol=1e-9)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("method", "steps"), [(DiscreteCoT(), 400), (CoT2(), 1200), (CoT2(prefix="self"), 1200)], ids=repr
)
def test_learns_a_small_task(method, steps):
    """All problems of two digits are learned; what is left of CoT2's loss is the entropy of its targets, log 2."""
    task = MNNS(2, 1, 4)
    recipe = Training(steps=steps, batch=8, rate=0.005, log_every=steps)
    losses = []
    train(Experiment(task, method, Shape(32, 1, 2), recipe), tick=lambda step, loss: losses.append(loss))
    floor = math.log(2) if isinstance(method, CoT2) else 0.0
    assert losses[-1] - floor < 0.03


@pytest.mark.parametrize("method", [method for name, method in METHODS.items() if name != "grpo"])
def test_the_loss_does_not_notice_packed_attention(method):
    """From 64 rows on short sequences are packed two to a block: 64 rows give what two batches of 32 give."""
    experiment = Experiment(MNNS(), method(), Shape(16, 2, 2))
    model, batch = experiment.model(), method().supervise(MNNS(), MNNS().problems(64, seed=0))
    problems = Problems.upload(batch)
    whole = method().forced(model, problems).logits_BTV
    halves = [method().forced(model, problems.rows(rows)).logits_BTV for rows in (slice(0, 32), slice(32, 64))]
    torch.testing.assert_close(whole, torch.cat(halves), rtol=1e-4, atol=1e-6)
