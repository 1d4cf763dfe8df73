"""CoLaR: groups, labels, losses and sequences against their definitions; rollouts against teacher forcing.

Tests are named for the invariants of its sheet where one says so: `test_01` is the first, and so on; those of
reinforcement learning are in test_colar_rl. Float64 to 1e-9 unless said otherwise.
"""

import math
from dataclasses import replace
from functools import partial

import losses
import pytest
import torch
from fakes import random
from hypothesis import given
from hypothesis import strategies as st
from losses import assert_same, enter, loss_and_gradients, loss_of
from numpy.polynomial.hermite_e import hermegauss
from scipy.stats import chisquare
from tinylatent_tasks import MNNS, Arithmetic, MultiHop
from torch.distributions import Normal

from tinylatent.core.seeds import Seeds, Streams
from tinylatent.engine.force import force, replay
from tinylatent.engine.plan import ANSWER, Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thought import Action, State
from tinylatent.engine.thoughts import GREEDY
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import begun, train
from tinylatent.methods.colar import (
    CoLaR,
    Ending,
    Gaussian,
    LatentHead,
    grouped,
    head_of,
    log_density,
    nll,
    pooled,
    soft_mse,
    speed_token,
)
from tinylatent.methods.discrete import END, THINKING, DiscreteCoT
from tinylatent.models.backbone import Table
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import TrainState
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.config import Training

TASK = MultiHop(hops=8, least=1, nodes=5)
"""Prompts padded on the left, chains of zero to seven tokens before the answer."""
STATE = TrainState(3, 10, 5)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def examples_of(task=TASK, rows=9, seed=0):
    return losses.examples_of(CoLaR(), task, task.problems(rows, seed=seed))


model_of = partial(losses.model_of, task=TASK)


def speeds(c):
    """A method of one speed, among the tokens of five."""
    return CoLaR(speeds=(c, *(5,) * (c < 5)), speed=c)


def now(hidden):
    """A state of which nothing but the hidden state is looked at."""
    return State(hidden, hidden, Table(hidden))


def calm(model):
    """The model with standard deviations near 1: densities are as precise as vectors are, over sigma."""
    with torch.no_grad():
        if head_of(model).log_std is not None:
            head_of(model).log_std.weight.mul_(0.01)
    return model


def at(method, c):
    """A moment of training at which the speed is c."""
    return next(state for step in range(99) if method.drawn(state := TrainState(step, 99, 1)) == c)


chains = st.integers(1, 5).flatmap(
    lambda rows: st.tuples(
        st.lists(st.integers(0, 9), min_size=rows, max_size=rows),
        st.integers(0, 3),
        st.integers(1, 6),
    )
)
"""Steps of some rows, columns beyond the longest, and c."""


def numbered(steps, spare):
    """Chains whose tokens tell row and place: 100 row + place + 1; 0 beyond the steps."""
    W = max(steps) + spare
    place_W, steps_B = torch.arange(W), torch.tensor(steps)
    chain_BW = 100 * torch.arange(len(steps))[:, None] + place_W + 1
    return chain_BW.masked_fill(place_W >= steps_B[:, None], 0), steps_B


# ---------------------------------------------------------------------------------------------------------------------
# 1. One token a vector is chain of thought


class Longer(DiscreteCoT):
    """A chain that ends by itself, in a table that has the tokens of speeds too."""

    extra_tokens = CoLaR().extra_tokens


def test_01_one_token_a_vector_is_chain_of_thought():
    """Vectors, labels, loss and gradients of the tokens, the same prompt given: it ends in the speed's token."""
    method = CoLaR(speeds=(1, 5), speed=1)
    model, examples = model_of(method), examples_of()
    state = at(method, 1)
    chain_BW = examples.chain_BT[:, : examples.max_steps]
    groups = grouped(chain_BW, examples.num_steps, 1)
    vectors_BGD, live_BG = method.vectors(model, examples, groups), groups.live_BG
    assert torch.equal(vectors_BGD[live_BG], model.backbone.embedding[chain_BW[live_BG]])  # bit for bit
    assert torch.equal(groups.labels_BG(torch.rand(live_BG.shape))[live_BG], chain_BW[live_BG])
    asked = replace(
        examples,
        prompt_BN=torch.nn.functional.pad(examples.prompt_BN, (0, 1), value=method.extra_id(model, "<x1>")),
        prompt_mask_BN=torch.nn.functional.pad(examples.prompt_mask_BN, (0, 1), value=True),
    )
    theirs = Longer(ends=True).loss(model, asked, STATE).value
    assert method.loss(model, examples, state).metrics["token_loss"].item() == pytest.approx(theirs.item(), abs=1e-12)
    words = replace(method)
    object.__setattr__(words, "error", lambda head, hidden, target: torch.zeros_like(hidden[..., 0]))
    assert_same(loss_and_gradients(model, words.loss(model, examples, state).value), loss_and_gradients(model, theirs))


# ---------------------------------------------------------------------------------------------------------------------
# 2. to 5. Groups


@pytest.mark.parametrize("c", [1, 2, 3])
def test_02_sums_keep_the_variance_of_independent_tokens_of_mean_zero(c):
    """Over all groups of a vocabulary, exactly: means have 1 / c of it, a mean grows by sqrt(c), equal tokens by c."""
    tokens_V = random(4, seed=c)
    tokens_V = tokens_V - tokens_V.mean()
    groups_Nc = torch.cartesian_prod(*[torch.arange(4)] * c).view(-1, c)
    real_Nc = torch.ones_like(groups_Nc, dtype=torch.bool)

    def of(values_V, pooling="sum"):
        return pooled(values_V[groups_Nc][..., None], real_Nc, pooling)[:, 0]

    var = tokens_V.var(correction=0)
    torch.testing.assert_close(of(tokens_V).var(correction=0), var, **CLOSE)
    torch.testing.assert_close(of(tokens_V, "mean").var(correction=0), var / c, **CLOSE)
    torch.testing.assert_close(of(tokens_V + 3).mean(), torch.tensor(3 * c**0.5, dtype=torch.float64), **CLOSE)
    equal_Vc = tokens_V[:, None].expand(-1, c)
    same_V = pooled(equal_Vc[..., None], torch.ones(4, c, dtype=torch.bool))[:, 0]
    torch.testing.assert_close(same_V.var(correction=0), c * var, **CLOSE)


@given(chains, st.sampled_from(["sum", "mean"]))
def test_03_a_group_divides_by_its_own_tokens(given_chains, pooling):
    """Also the last, with fewer than c: by sqrt(n), or n; what stands in places beyond the chain is nothing."""
    steps, spare, c = given_chains
    chain_BW, steps_B = numbered(steps, spare)
    garbage_BW = chain_BW.masked_fill(chain_BW == 0, 7)
    found = grouped(garbage_BW, steps_B, c)
    vectors_BGD = pooled(found.ids_BGc[..., None].double(), found.real_BGc, pooling)
    for row, n in enumerate(steps):
        parts = [chain_BW[row, start : min(start + c, n)].tolist() for start in range(0, n, c)]
        expected = [sum(part) / (len(part) if pooling == "mean" else math.sqrt(len(part))) for part in parts]
        torch.testing.assert_close(
            vectors_BGD[row, : len(parts), 0], torch.tensor(expected, dtype=torch.float64), **CLOSE
        )
        assert (vectors_BGD[row, len(parts) :] == 0).all()


def test_03_the_tokens_around_the_vectors_are_no_part_of_a_group():
    """The sequence is prompt, speed, vectors, delimiter, answer: each delimiter is a token in a slot of its own."""
    method = speeds(2)
    model, examples = model_of(method), examples_of()
    trace = method.forced(model, examples)
    assert [span.name for span in trace.spans] == ["prompt", "speed", THINKING, "delimiter", ANSWER]
    table_VD, (speed, vectors, delimiter) = model.backbone.embedding, (trace.within(s) for s in trace.spans[1:4])
    for slots, token in ((speed, "<x2>"), (delimiter, END)):
        row_D = table_VD[method.extra_id(model, token)]
        assert torch.equal(trace.inputs_BTD[:, slots], row_D.expand(len(examples), 1, -1))
    assert torch.equal(trace.live_BT[:, vectors].sum(1), -(-examples.num_steps // 2))


@given(chains)
def test_04_every_token_is_in_one_group_and_no_group_is_padding(given_chains):
    """ceil(L / c) groups, their tokens in order, and nothing else: the published code fails here for r < L < 2 r."""
    steps, spare, c = given_chains
    chain_BW, steps_B = numbered(steps, spare)
    found = grouped(chain_BW, steps_B, c)
    for row, n in enumerate(steps):
        assert found.ids_BGc[row][found.real_BGc[row]].tolist() == chain_BW[row, :n].tolist()
        assert int(found.live_BG[row].sum()) == -(-n // c)
        assert found.live_BG[row, : -(-n // c)].all()
        assert found.real_BGc[row].any(-1).tolist() == found.live_BG[row].tolist()


@given(chains)
def test_05_a_row_s_groups_and_labels_are_those_it_has_alone(given_chains):
    """Whatever rows, and however many columns, are beside it."""
    steps, spare, c = given_chains
    chain_BW, steps_B = numbered(steps, spare)
    found, W = grouped(chain_BW, steps_B, c), chain_BW.shape[1]
    uniform_BG = Streams(3, len(steps)).uniform(-(-W // c))
    label_BG = found.labels_BG(uniform_BG)
    for row, n in enumerate(steps):
        alone = grouped(chain_BW[row : row + 1, :n], n, c)
        G = -(-n // c)
        assert torch.equal(alone.ids_BGc[0], found.ids_BGc[row, :G])
        assert torch.equal(alone.real_BGc[0], found.real_BGc[row, :G])
        assert torch.equal(alone.labels_BG(uniform_BG[row : row + 1, :G])[0], label_BG[row, :G])


def test_05_batch_composition_does_not_change_a_row_s_loss():
    """A row's part of the loss is the same beside any others, in its place; with the speed of the whole batch."""
    method = CoLaR()
    model, examples = model_of(method), examples_of()
    whole = loss_of(method, model, examples, STATE)
    one = [loss_of(method, model, examples.rows(slice(row, row + 1)), replace(STATE, first=row)) for row in range(9)]
    assert whole.item() == pytest.approx(sum(one).item() / 9, abs=1e-9)
    parts = [
        loss_of(method, model, examples.rows(slice(a, b)), replace(STATE, first=a, rows=9)) for a, b in ((0, 4), (4, 9))
    ]
    assert whole.item() == pytest.approx(sum(parts).item(), abs=1e-9)


def test_05_labels_are_uniform_over_a_group_s_tokens_and_never_padding():
    """Exactly on a grid of uniforms; and 20,000 rows of streams, false alarm 1e-6."""
    chain_BW, steps_B = numbered([5], 1)
    found = grouped(chain_BW, steps_B, 3)
    grid = (torch.arange(600, dtype=torch.float64) + 0.5) / 600
    label_NG = torch.cat([found.labels_BG(u.expand(1, 2)) for u in grid])
    assert torch.bincount(label_NG[:, 0]).tolist() == [0, 200, 200, 200]
    assert torch.bincount(label_NG[:, 1]).tolist() == [0, 0, 0, 0, 300, 300]
    many = grouped(chain_BW.expand(20000, -1), 5, 3)
    label_NG = many.labels_BG(STATE.streams(20000).uniform(2))
    assert chisquare(torch.bincount(label_NG[:, 0])[1:].numpy()).pvalue > 1e-6
    assert chisquare(torch.bincount(label_NG[:, 1])[4:].numpy()).pvalue > 1e-6


def test_speeds_are_drawn_anew_for_every_batch_and_alike():
    method = CoLaR(speeds=(1, 3, 5))
    drawn = [method.drawn(TrainState(step, 600, 0)) for step in range(600)]
    counts = [drawn.count(c) for c in (1, 3, 5)]
    assert chisquare(counts).pvalue > 1e-6
    assert all(method.drawn(replace(STATE, first=first)) == method.drawn(STATE) for first in range(9))


# ---------------------------------------------------------------------------------------------------------------------
# 6. to 9. Losses


numbers = st.floats(-3, 3)
scales = st.floats(0.05, 4)


@given(numbers, scales, st.floats(1e-3, 4))
def test_06_soft_mse_is_its_expectation_and_is_least_at_the_root_of_half_alpha(residual, sigma, alpha):
    """By quadrature over epsilon; the derivatives by autograd."""
    r, s = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (residual, sigma))
    loss = soft_mse(r, s, alpha)
    nodes, weights = (torch.tensor(x) for x in hermegauss(4))
    square = (weights * (r + s * nodes) ** 2).sum() / math.sqrt(2 * math.pi)
    torch.testing.assert_close(loss, square - alpha * Normal(0.0, s).entropy(), **CLOSE)
    by_r, by_s = torch.autograd.grad(loss, (r, s))
    torch.testing.assert_close(by_r, 2 * r, **CLOSE)
    torch.testing.assert_close(by_s, 2 * s - alpha / s, **CLOSE)
    best = torch.tensor(math.sqrt(alpha / 2), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(soft_mse(r.detach(), best, alpha), best)
    assert abs(slope.item()) < 1e-9


@given(numbers, scales)
def test_07_the_likelihood_has_the_squared_sigma(residual, sigma):
    r, log_s = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (residual, math.log(sigma)))
    loss = nll(r, log_s.exp())
    torch.testing.assert_close(loss, -Normal(0.0, log_s.exp()).log_prob(r), **CLOSE)
    by_r, by_log_s = torch.autograd.grad(loss, (r, log_s))
    torch.testing.assert_close(by_r, r / sigma**2, **CLOSE)
    torch.testing.assert_close(by_log_s, 1 - r**2 / sigma**2, **CLOSE)
    root = torch.tensor(max(abs(residual), 0.1), dtype=torch.float64)
    least = 0.5 * math.log(2 * math.pi * math.e * root.item() ** 2)
    assert nll(root, root).item() == pytest.approx(least)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_08_targets_are_free_of_the_table_s_scale(pooling):
    """What the head is trained to, after training has begun with a table k times as large, is what it was."""
    method = CoLaR(pooling=pooling)
    examples, found = examples_of(), {}
    for k in (1.0, 7.0):
        model, spied = model_of(method), replace(method)
        with torch.no_grad():
            model.backbone.embedding.mul_(k)
        enter(method, model, 0, examples)

        def caught(head, hidden, target, k=k):
            found[k] = target
            return torch.zeros_like(hidden[..., 0])

        object.__setattr__(spied, "error", caught)
        spied.loss(model, examples, at(method, 3))
    torch.testing.assert_close(found[7.0], found[1.0], **CLOSE)
    groups = grouped(examples.chain_BT[:, : examples.max_steps], examples.num_steps, 3)
    vectors_BGD = method.vectors(model, examples, groups) / head_of(model).scale
    torch.testing.assert_close(found[7.0][:, :-1], vectors_BGD, **CLOSE)
    assert found[1.0].std() > 0.3, "targets in units of the table's entries"


def test_08_vectors_are_fed_back_at_the_table_s_scale():
    """A scale k times as large makes them k times as large, and leaves their densities as they are."""
    head = head_of(model_of(CoLaR()))
    hidden_BD = random(6, 16)
    mean_BD, sigma_BD = head(hidden_BD)
    thought, state = Gaussian(head, 1.3), now(hidden_BD)
    noise_BD = Streams(1, 6).normal(16)
    vectors = {}
    for k in (1.0, 7.0):
        with torch.no_grad():
            head.scale.fill_(0.3 * k)
        action = thought.sample(state, Streams(1, 6))
        vectors[k] = action["vector"]
        torch.testing.assert_close(action["vector"], 0.3 * k * (mean_BD + 1.3 * sigma_BD * noise_BD), **CLOSE)
        torch.testing.assert_close(
            thought.log_prob(state, action),
            Normal(mean_BD, 1.3 * sigma_BD).log_prob(action["vector"] / (0.3 * k)).sum(1),
        )
        torch.testing.assert_close(Gaussian(head, 0.0).sample(state, None)["vector"], 0.3 * k * mean_BD, **CLOSE)
    torch.testing.assert_close(vectors[7.0], 7 * vectors[1.0], **CLOSE)


def test_08_the_scale_is_that_of_the_table_when_training_begins():
    """Without the tokens of the speeds, which are new; they get it, and an arc leads from the first to the last."""
    method = CoLaR(speeds=(1, 5))
    model = model_of(method)
    before_VD = model.backbone.embedding.detach().clone()
    enter(method, model, 0, examples_of())
    table_VD, scale = model.backbone.embedding.detach(), before_VD[:-5].std()
    assert torch.equal(table_VD[:-5], before_VD[:-5])
    torch.testing.assert_close(head_of(model).scale, scale)
    torch.testing.assert_close(table_VD[-5:].std(1), scale.expand(5))
    near = torch.nn.functional.cosine_similarity(table_VD[-5:-1], table_VD[-4:])
    far = torch.nn.functional.cosine_similarity(table_VD[-5], table_VD[-1], 0)
    assert near.min() > far + 0.1
    again = table_VD.clone()
    enter(method, model, 0, examples_of())  # as a resumed run does
    torch.testing.assert_close(model.backbone.embedding.detach(), again)


def test_08_log_std_is_bounded_and_a_deterministic_head_has_none():
    table = Table(random(5, 4))
    head = LatentHead(table, 8, False, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        head.log_std.weight.mul_(1e4)
    sigma = head(random(50, 4))[1].detach()
    assert sigma.min() == pytest.approx(math.exp(-7))
    assert math.sqrt(CoLaR().alpha / 2) < sigma.min(), "soft-mse is least below the bound, as the page says"
    assert sigma.max() == pytest.approx(math.exp(2))
    plain = LatentHead(table, 8, True, torch.Generator().manual_seed(0)).double()
    assert plain(random(3, 4))[1] is None
    thought = Gaussian(plain, 1.0)
    assert not thought.needs_streams
    state = now(random(3, 4))
    assert torch.equal(thought.log_prob(state, thought.sample(state, None)), torch.zeros(3).double())


def naive_loss(method, model, examples, c, label_BG, targets_move=False):
    """Row by row: the sequence in full, cross-entropies and latent losses as they are defined."""
    table_VD, head, total = model.backbone.embedding, head_of(model), 0.0
    for row in range(len(examples)):
        n = int(examples.num_steps[row])
        prompt = examples.prompt_BN[row][examples.prompt_mask_BN[row]].tolist()
        chain, answer = examples.chain_BT[row, :n].tolist(), examples.answer_BA[row].tolist()
        parts = [chain[start : start + c] for start in range(0, n, c)]
        root = 1.0 if method.pooling == "mean" else 0.5
        vectors = [sum(table_VD[i] for i in part) / len(part) ** root for part in parts]
        end = method.extra_id(model, END)
        inputs = [*(table_VD[i] for i in (*prompt, method.extra_id(model, speed_token(c)))), *vectors]
        inputs += [table_VD[i] for i in (end, *answer[:-1])]
        hidden_SD = model.backbone.forward(torch.stack(inputs)[None])[0][0, len(prompt) :]
        log_p = (hidden_SD @ table_VD.T).log_softmax(-1)
        labels = label_BG[row, : len(parts)].tolist() if method.labels else []
        first = len(parts) - len(labels)
        for place, label in enumerate((*labels, end, *answer), first):
            total = total - log_p[place, label]
        for place in range(first):  # the chain goes on
            total = total - (1 - log_p[place, end].exp()).log()
        for place, target in enumerate((*vectors, table_VD[end])):
            target = (target if targets_move else target.detach()) / head.scale
            mean, sigma = head(hidden_SD[place])
            if sigma is None:
                each = (mean - target) ** 2
            elif method.latent_loss == "nll":
                each = -Normal(mean, sigma).log_prob(target)
            else:
                each = (mean - target) ** 2 + sigma**2 - method.alpha * Normal(0.0, sigma).entropy()
            total = total + each.mean()
    return total / len(examples)


@pytest.mark.parametrize(
    "method",
    [
        CoLaR(),
        CoLaR(pooling="mean", latent_loss="nll"),
        CoLaR(labels=False, alpha=0.3),
        CoLaR(deterministic=True, head=5),
    ],
    ids=repr,
)
def test_09_the_loss_is_its_definition_and_its_targets_stand_still(method):
    """Gradients too: with targets that move they would be others, so that this can fail."""
    model, examples = calm(model_of(method)), examples_of(rows=5)
    state = at(method, 3)
    groups = grouped(examples.chain_BT[:, : examples.max_steps], examples.num_steps, 3)
    label_BG = groups.labels_BG(state.streams(5).uniform(groups.ids_BGc.shape[1]))
    ours = loss_and_gradients(model, loss_of(method, model, examples, state))
    assert_same(ours, loss_and_gradients(model, naive_loss(method, model, examples, 3, label_BG)))
    moving = loss_and_gradients(model, naive_loss(method, model, examples, 3, label_BG, targets_move=True))
    table = "backbone.embedding"
    assert (ours[1][table] - moving[1][table]).abs().max() > 1e-3


def test_09_the_table_does_not_move(unchecked):
    """Nor does anything of it in training, unless it is set free."""
    for frozen in (True, False):
        method = CoLaR(frozen=frozen)
        training = Training(steps=3, batch_size=8, learning_rate=0.01, num_train=40)
        whole = Experiment(TASK, method, ModelConfig(8, 1, 1), training)
        before, after = whole.fresh(), train(whole)
        rows = len(TASK.vocabulary) + 1
        assert torch.equal(before.backbone.embedding[:rows], after.backbone.embedding[:rows]) == frozen
        assert not torch.equal(head_of(before).mean.weight, head_of(after).mean.weight)


# ---------------------------------------------------------------------------------------------------------------------
# 11. and 12. Rollouts


def stopping(dtype, group=1, temperature=1.0, method=None, weight=1.0):
    """A rollout of sampled vectors whose rows stop at different times, from prompts padded on the left."""
    method = method or CoLaR(latent_loss="nll", most=6, speed=2)
    model, examples = model_of(method).to(dtype), examples_of(rows=12)
    with torch.no_grad():  # the delimiter is neither rare nor sure
        table_VD = model.backbone.embedding
        table_VD[method.extra_id(model, END)] = weight * table_VD[:-6].mean(0)
    calm(model)
    streams = Streams(0, torch.arange(12 * group))
    run = rollout(
        model.backbone,
        method.plan(model, examples, temperature),
        examples.prompt_BN,
        examples.prompt_mask_BN,
        streams=streams,
        group=group,
    )
    lengths = run.live_BT[:, run.within(run.span(THINKING))].sum(1)
    assert lengths.min() >= 1
    assert len(lengths.unique()) > 2, "rows that stop at different times"
    return method, model, examples, run, lengths


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("group", [1, 3])
def test_11_a_rollout_is_the_teacher_forced_pass_over_its_inputs(dtype, close, group):
    """Hidden states, logits and log-probabilities; padded prompts, early stops, groups.

    Numbers are as close as the largest of their kind allows; a density, which sums over the width, as many times less.
    """
    _, model, _, run, _ = stopping(dtype, group)
    assert not run.prompt_mask_BN.all()
    forced = replay(model.backbone, run)
    at_BT = run.acted_BT
    for name in ("hidden_BTD", "logits_BTV"):
        ours, theirs = getattr(run, name)[at_BT], getattr(forced, name)[at_BT].detach()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=close * max(1.0, float(theirs.abs().max())))
    span = run.span(THINKING)
    vector_BT = torch.zeros_like(run.drawn_BT)
    vector_BT[:, run.within(span)] = ~span.action.stop
    assert (vector_BT & run.drawn_BT).any()
    for ours_BT in (run.log_prob_BT, run.sampled_log_prob_BT):
        gap_BT = (ours_BT - forced.log_prob_BT.detach().masked_fill(~run.drawn_BT, 0.0)).abs()
        assert gap_BT[run.drawn_BT & ~vector_BT].max() <= close
        assert gap_BT[run.drawn_BT & vector_BT].max() <= close * model.backbone.table.width


def test_11_each_row_is_its_own_sequence_without_padding_or_cache():
    """The whole sequence of one row in one forward: what a loop that forgets its cache fails."""
    method, model, examples, run, lengths = stopping(torch.float64)
    table_VD = model.backbone.embedding
    for row, length in enumerate(lengths.tolist()):
        prompt = examples.prompt_BN[row][examples.prompt_mask_BN[row]]
        vectors = run.inputs_BTD[row, 1 : 1 + length]
        speed, end = (table_VD[method.extra_id(model, token)][None] for token in ("<x2>", END))
        sequence_SD = torch.cat([table_VD[prompt], speed, vectors, end])
        hidden_SD = model.backbone.forward(sequence_SD[None])[0][0]
        torch.testing.assert_close(run.hidden_BTD[row, 1 : 1 + length], hidden_SD[len(prompt) : -2], **CLOSE)
        torch.testing.assert_close(run.hidden_BTD[row, -1], hidden_SD[-1], **CLOSE)


def test_12_vectors_after_the_end_of_a_row_change_nothing():
    """A row alone ends where it ends; beside longer ones it waits, masked, and its answer has the same logits."""
    method, model, examples, run, lengths = stopping(torch.float64)
    for row in range(len(examples)):
        alone = rollout(
            model.backbone,
            method.plan(model, examples.rows(slice(row, row + 1)), 1.0),
            examples.prompt_BN[row : row + 1],
            examples.prompt_mask_BN[row : row + 1],
            streams=Streams(0, torch.arange(row, row + 1)),
        )
        assert alone.steps <= run.steps
        torch.testing.assert_close(alone.logits_BTV[0, -1], run.logits_BTV[row, -1], **CLOSE)
    assert lengths.min() < lengths.max()


def test_probabilities_of_all_stop_times_sum_to_one(model):
    """Stopping after 1, 2, .. vectors or never within the limit: all decisions count, so it is a distribution."""
    prompt, most = torch.tensor([[1, 2]]), 4
    head = LatentHead(model.table, 8, True, torch.Generator().manual_seed(0)).double()
    free = rollout(model, (Segment(Gaussian(head), most),), prompt)
    for go_on, whole in ((True, True), (False, False)):
        total, thought = 0.0, Ending(Gaussian(head), 3, 1.0, go_on)
        for time in range(1, most + 1):
            stop = torch.arange(most)[None] == time
            given_ = Segment(
                thought, most, Action({"vector": free.action("vector")}, stop, stop_slot=False), min_steps=1
            )
            answer = Segment(GREEDY, 1, GREEDY.given(torch.tensor([[0]])), ANSWER)
            trace = force(model, (given_, answer), prompt)
            total += float(trace.log_prob_BT[:, trace.within(trace.spans[1])].detach().sum().exp())
        assert (abs(total - 1) < 1e-9) == whole


def test_the_stop_is_the_model_s_own_probability_of_the_delimiter():
    """The logit of P(end) among all tokens; at temperature 0 a row stops where that is more than half."""
    method, model, _, run, _ = stopping(torch.float64)
    thought, end = method.thought(model, 1.0), method.extra_id(model, END)
    state = State(run.hidden_BTD[:, 1], run.logits_BTV[:, 1], model.backbone.table)
    torch.testing.assert_close(thought.logit(state).sigmoid(), state.logits.softmax(-1)[:, end], **CLOSE)
    _, _, _, decided, lengths = stopping(torch.float64, temperature=0.0, weight=16.0)
    p_BT = decided.logits_BTV.softmax(-1)[..., end]
    for row, length in enumerate(lengths.tolist()):
        assert (p_BT[row, 2 : 1 + length] <= 0.5).all()
        assert length == 6 or p_BT[row, 1 + length] > 0.5


# ---------------------------------------------------------------------------------------------------------------------
# As a method


def test_the_limit_of_vectors_follows_speed_and_task():
    examples = examples_of()
    for method, most in ((CoLaR(), 3), (CoLaR(speed=1), 8), (CoLaR(speed=2), 5), (CoLaR(most=9), 9)):
        model = model_of(method)
        plan = method.plan(model, examples)
        assert [part.longest for part in plan] == [1, most, 1, 1]
        assert plan[1].min_steps == 1
        assert model.backbone.positions >= TASK.positions + 2 + (method.most or 1)


def test_gold_vectors_are_those_of_training():
    """A reader with the chain's vectors has the hidden states of the teacher-forced pass."""
    method = speeds(3)
    model, examples = model_of(method), examples_of()
    read = replace(method, gold=True).solve(model, examples).trace
    taught = method.forced(model, examples)
    torch.testing.assert_close(read.hidden_BTD, taught.hidden_BTD.detach(), **CLOSE)


def test_every_speed_is_a_decoder_on_its_own_and_taught():
    method = CoLaR(speeds=(1, 3))
    assert list(method.decoders) == ["x1", "x2", "x3", "taught x1", "taught x2", "taught x3"]
    assert [each.tokens_each for each in method.decoders.values()] == [1, 2, 3] * 2
    assert {each.extra_tokens for each in method.decoders.values()} == {method.extra_tokens}


def test_drawn_inference_samples_and_the_usual_does_not():
    method = CoLaR(latent_loss="nll")
    model, examples = model_of(method), examples_of()
    assert not any(part.thought.needs_streams for part in method.plan(model, examples))
    drawn = replace(method, draws=True)
    assert drawn.plan(model, examples)[1].thought.needs_streams
    with pytest.raises(ValueError, match="the plan samples: pass streams"):
        drawn.solve(model, examples)


def test_a_short_training_from_an_ending_chain_learns(unchecked):
    """From a chain of thought that ends by itself, at both of its speeds."""
    task, config = Arithmetic(operations=2, modulus=5, operators="+"), ModelConfig(16, 1, 1)
    first = Training(steps=150, batch_size=16, learning_rate=1e-2, num_train=40, log_every=150)
    start = Experiment(task, DiscreteCoT(ends=True), config, first, Seeds.all(1))
    whole = replace(start, method=CoLaR(speeds=(1, 2)), start=start)
    model = begun(whole, None, "cpu", lambda text: None)
    examples = Symbols(task, whole.rows("train")).examples()
    before = [whole.method.loss(model, examples, at(whole.method, c)).value.item() for c in (1, 2)]
    model = train(whole)
    after = [whole.method.loss(model, examples, at(whole.method, c)).value.item() for c in (1, 2)]
    assert all(later < 0.5 * earlier for earlier, later in zip(before, after, strict=True))


def test_tasks_of_other_kinds_can_be_compressed():
    """Chains of equal length, prompts without padding."""
    method, task = CoLaR(speed=2), MNNS(4, 1, 4)
    model = losses.model_of(method, task)
    examples = losses.examples_of(method, task, task.problems(6, seed=0))
    assert isinstance(examples.num_steps, int)
    assert math.isfinite(loss_of(method, model, examples, STATE).item())
    assert method.solve(model, examples).answer_BA.shape == (6, 1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"speeds": ()}, r"speeds \(\): expected numbers from 1 to 64"),
        ({"speeds": (0, 2)}, r"speeds \(0, 2\): expected numbers from 1 to 64"),
        ({"speed": 6}, "speed 6: expected 1 to 5, the largest of speeds"),
        ({"most": 0}, "most 0: expected 1 to 1024; leave it out"),
        ({"head": 0}, "head 0: expected 1 to 8192"),
        ({"pooling": "max"}, "pooling 'max': expected one of sum, mean"),
        ({"latent_loss": "l1"}, "latent_loss 'l1': expected one of soft-mse, nll"),
        ({"alpha": -1.0}, r"alpha -1\.0: expected 0 or more"),
        ({"deterministic": True, "latent_loss": "nll"}, "nll has no standard deviation with deterministic"),
    ],
)
def test_bad_settings_are_refused(fields, said, unchecked):
    with pytest.raises(ValueError, match=said):
        CoLaR(**fields)


def test_settings_without_effect_are_named():
    assert not CoLaR().idle
    assert set(CoLaR(latent_loss="nll").idle) == {"alpha"}
    assert set(CoLaR(deterministic=True).idle) == {"alpha"}


def test_the_density_is_a_sum_or_its_mean():
    vector, mean, sigma = random(3, 5), random(3, 5, seed=1), random(3, 5, seed=2).exp()
    each = Normal(mean, sigma).log_prob(vector)
    torch.testing.assert_close(log_density(vector, mean, sigma), each.sum(1), **CLOSE)
    torch.testing.assert_close(log_density(vector, mean, sigma, "mean"), each.mean(1), **CLOSE)
