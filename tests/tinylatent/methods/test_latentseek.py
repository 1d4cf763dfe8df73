"""LatentSeek and its rivals: every numbered invariant of the method, a search written a second time, and selections."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import random
from losses import enter, examples_of, model_of
from scipy.stats import chisquare
from tinylatent_tasks import MultiHop

from tinylatent.core.seeds import Streams
from tinylatent.engine.distributions import categorical
from tinylatent.engine.force import force
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thought import State
from tinylatent.engine.trace import NO_TOKEN
from tinylatent.evaluation.evaluate import evaluate
from tinylatent.methods import DiscreteCoT, latentseek
from tinylatent.methods.latentseek import LatentSeek, advanced, ascent, score
from tinylatent.methods.rivals import BestOfN, NoiseSearch, TabooSearch
from tinylatent.methods.searching import Prefixed, after, read
from tinylatent.models.backbone import Table
from tinylatent.objectives.rewards import certificate, constant, truth, written
from tinylatent.objectives.speakers import Symbols

TASK = MultiHop(hops=5, least=2, nodes=6, bound=True)
ROWS = TASK.problems(16, seed=3)
PAIR = LatentSeek(mode="sampled", samples=3, baseline="loo", share=0.7, rate=1.0, optimizer="sgd", rounds=4)
WAYS = [
    LatentSeek(share=0.7, rate=0.3, rounds=6),
    LatentSeek(share=0.7, start=0.3, rate=0.3, select="best", rounds=6),
    LatentSeek(share=0.7, rate=1.0, ends=True, rounds=4),
    PAIR,
    BestOfN(rounds=5),
    NoiseSearch(share=0.7, scale=2.0),
    TabooSearch(share=0.7, flips=2),
]
EVERY_WAY = pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.name} {way.select} {way.ends}")


@pytest.fixture(scope="module")
def made():
    """A model that is never sure, and problems of two to five tokens."""
    return model_of(DiscreteCoT(), TASK), examples_of(DiscreteCoT(), TASK, ROWS)


def made_for(way, made):
    """The same, with a delimiter where the way needs one."""
    return (model_of(DiscreteCoT(ends=True), TASK), made[1]) if way.ends else made


def streams(examples, first=0):
    return Streams(11, torch.arange(first, first + len(examples)))


def picky(examples, trace):
    """Graded rewards that a search can pass: 1 if the tokens' ids sum to a multiple of five, else by their sum."""
    total_B = written(trace).clamp(min=0).sum(1) + trace.answer().clamp(min=0).sum(1)
    return torch.where(total_B % 5 == 0, 1.0, (total_B % 7) / 10)


def never(examples, trace):
    return constant(examples, trace)


def solved(way, made, verify=picky, rows=None):
    model, examples = made_for(way, made)
    index = torch.arange(len(examples)) if rows is None else torch.tensor(rows)
    return way.solve(model, examples.rows(index), Streams(11, index), verify=verify)


def same_text(found, other, rows=slice(None)):
    """Whether two searches proposed and returned the same."""
    mine, theirs = found.text_BKW, other.text_BKW[rows]
    K, W = (min(mine.shape[n], theirs.shape[n]) for n in (1, 2))
    return (
        torch.equal(mine[:, :K, :W], theirs[:, :K, :W])
        and torch.equal(found.answer_BKA[:, :K], other.answer_BKA[rows][:, :K])
        and torch.equal(found.answer_BA, other.answer_BA[rows])
        and torch.equal(found.reward_BK[:, :K].nan_to_num(9), other.reward_BK[rows][:, :K].nan_to_num(9))
    )


def naive(way, made, row, verify=picky):
    """One question, recomputed from nothing at every round, with torch's own optimizer: all proposals and rewards.

    Nothing is batched, cached or masked, and the gradient goes through the head's matrix alone. Random numbers are the
    library's, drawn for this question by itself.
    """
    model, examples = made[0], made[1].rows(slice(row, row + 1))
    head_VD, prompt = model.backbone.embedding.detach(), examples.prompt_BN[examples.prompt_mask_BN].tolist()
    total = int(examples.num_steps[0]) + 1

    def hidden(tokens):
        return model.backbone.forward(model.backbone.embedding[torch.tensor([prompt + tokens])])[0][0].detach()

    def completed(tokens):
        tokens = list(tokens)
        while len(tokens) < total:
            tokens.append(int((head_VD @ hidden(tokens)[-1]).argmax()))
        return tokens

    def reward(tokens):
        plan = DiscreteCoT().plan(model, examples)
        given = [
            replace(part, given=part.thought.given(torch.tensor([ids])))
            for part, ids in zip(plan, (tokens[:-1], tokens[-1:]), strict=True)
        ]
        return float(verify(examples, rollout(model.backbone, tuple(given), torch.tensor([prompt])))) - 1

    first, sampled = completed([]), way.mode == "sampled"
    start, count = int(way.start * total + 1e-9), int(way.share * total + 1e-9)
    stop = min(start + count, total - 1)
    z = hidden(first)[len(prompt) - 1 :][start:stop].clone().requires_grad_()
    kind = torch.optim.Adam if way.optimizer == "adam" else torch.optim.SGD
    optimizer, heat = kind([z], way.rate), way.temperature if sampled else 1.0
    texts, rewards, last = [first], [reward(first)], 1

    def step():
        """The gradient of the last proposals' log-probabilities, each by its reward less the baseline."""
        loss = 0.0
        for text, mine in zip(texts[-last:], rewards[-last:], strict=True):
            others = (sum(rewards[-last:]) - mine) / max(1, last - 1)
            advantage = mine - {"none": 0.0, "mean": sum(rewards[-last:]) / last, "loo": others}[way.baseline]
            log_p = (z @ head_VD.T / heat).log_softmax(-1)
            loss = loss - advantage / last * sum(log_p[n, text[start + n]] for n in range(stop - start))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def prefixes(round):
        if not sampled:
            return [(z @ head_VD.T).argmax(-1).tolist()]
        own, found = Streams(11, torch.tensor([row])).derived("told", round), []
        for place, logits in enumerate((z @ head_VD.T).detach(), start):
            own.at(place)
            found.append(categorical(own, logits[None], way.samples, heat)[0][0].tolist())
        return [list(prefix) for prefix in zip(*found, strict=True)]

    for round in range(way.rounds if start < stop else 0):
        if max(rewards[-last:]) > way.threshold:
            break
        if round or not sampled:
            step()
        proposed = [completed(first[:start] + prefix) for prefix in prefixes(round)]
        texts, rewards, last = texts + proposed, rewards + [reward(text) for text in proposed], len(proposed)
    return texts, rewards


def texts_of(found, row):
    """Every proposal of a row as one list of tokens, and its rewards."""
    made = ~found.reward_BK[row].isnan()
    whole = torch.cat([found.text_BKW[row], found.answer_BKA[row]], 1)[made]
    return [[token for token in tokens.tolist() if token != NO_TOKEN] for tokens in whole], found.reward_BK[row][made]


# ---------------------------------------------------------------------------------------------------------------------
# The search, written a second time


@pytest.mark.parametrize(
    "way",
    [
        LatentSeek(share=0.7, rate=0.3),
        LatentSeek(share=0.7, rate=3.0, start=0.25, rounds=6),
        LatentSeek(share=0.5, rate=2.0, optimizer="sgd", threshold=-0.4),
        replace(PAIR, temperature=0.6, rate=20.0),
        replace(PAIR, temperature=1.7, baseline="mean", start=0.3, rate=2.0, optimizer="adam"),
        LatentSeek(mode="sampled", share=0.7, rate=2.0, rounds=5),
    ],
    ids=lambda way: f"{way.mode} {way.optimizer} {way.rate}",
)
@pytest.mark.slow
def test_every_proposal_is_that_of_the_plain_loop(way, made):
    """Adam's moments and steps are those of torch.optim.Adam alone, for every question in the batch."""
    found, flips, updates = solved(way, made), 0, 0
    for row in range(len(ROWS)):
        texts, rewards = naive(way, made, row)
        ours, ours_rewards = texts_of(found, row)
        assert ours == texts
        assert ours_rewards.tolist() == pytest.approx(rewards)
        flips, updates = flips + len({tuple(text) for text in texts}) - 1, updates + len(texts) - 1
    assert flips > 10
    assert updates > 20


@pytest.mark.parametrize("way", [WAYS[0], PAIR, BestOfN(rounds=5)], ids=["argmax", "sampled", "best of n"])
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_logits_of_the_search_are_those_of_teacher_forcing(dtype, close, ends, way, made):
    """At every round: prompts that were read once, told tokens and decoded ones, padding, and delimiters on the way."""
    way = replace(way, ends=ends)
    model, traces = copy.deepcopy(made_for(way, made)[0]).to(dtype), []

    def verify(examples, trace):
        traces.append(trace)
        return never(examples, trace)

    way.solve(model, made[1], streams(made[1]), verify=verify)
    assert len(traces) == way.rounds + 1
    for trace in traces:
        forced = force(trace.backbone, trace.plan(), trace.prompt_BN, trace.prompt_mask_BN)
        gap_BT = (forced.logits_BTV - trace.logits_BTV).abs().amax(-1)
        assert (gap_BT if trace.acted_BT is None else gap_BT[trace.acted_BT]).max() < close
    assert {trace.prompt_mask_BN is None for trace in traces} == {False}


@pytest.mark.slow
@pytest.mark.parametrize("verify", [truth, certificate, picky], ids=["truth", "certificate", "graded"])
def test_only_graded_rewards_guide_a_search(verify, made):
    """The perfect sparse reward is a constant one whose best answer the same verifier picks: rewards of 0 or 1 say no
    more than when to stop."""
    way = LatentSeek(share=0.7, rate=0.5, select="best")
    heard, unheard = solved(way, made, verify), solved(replace(way, guided=False), made, verify)
    assert same_text(heard, unheard) == (verify is not picky)
    blind = solved(replace(way, guided=False), made, never)
    ours, theirs = (texts_of(each, 3)[0] for each in (unheard, blind))
    assert ours == theirs[: len(ours)]


def test_random_prefixes_are_a_search_that_takes_no_step(made):
    """Rate 0 in mode sampled: the probabilities of every round are the first's, and the head is used once."""
    way = LatentSeek(mode="sampled", share=0.7, rate=0.0, rounds=4)
    found, said = solved(way, made, never), []
    for row in range(len(ROWS)):
        said.append(len({tuple(text) for text in texts_of(found, row)[0]}))
    assert max(said) > 3
    noise = solved(NoiseSearch(share=0.7, rounds=4), made, never)
    assert found.counters == noise.counters


def test_adam_is_torchs_for_every_question_by_itself():
    z, parameters = random(3, 2, 4), [random(3, 2, 4)[row].requires_grad_() for row in range(3)]
    optimizers, moments = [torch.optim.Adam([parameter], 0.1) for parameter in parameters], {}
    for step in range(5):
        gradient = random(3, 2, 4, seed=step + 1) * torch.tensor([1.0, 1e-4, 1e-9])[:, None, None]
        z = advanced(z, -gradient, moments, step, 0.1)
        for parameter, optimizer, each in zip(parameters, optimizers, gradient, strict=True):
            parameter.grad = each.clone()
            optimizer.step()
        torch.testing.assert_close(z, torch.stack([p.detach() for p in parameters]), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# The numbered invariants


@pytest.mark.parametrize(
    ("way", "verify"),
    [
        (LatentSeek(rounds=0, share=0.7), never),
        (LatentSeek(share=0.15), never),
        (LatentSeek(share=0.7), lambda examples, trace: constant(examples, trace) + 1),
        (LatentSeek(share=0.7, max_positions=1, start=0.99), never),
        (BestOfN(rounds=0), never),
    ],
    ids=["no rounds", "too short", "accepted", "no place left", "one of one"],
)
def test_invariant_1_without_a_search_the_answer_is_greedy(way, verify, made, monkeypatch):
    """No optimizer step, no further decoding: T is at most 5, so that a share of 0.15 of it is no whole token."""
    monkeypatch.setattr(latentseek, "advanced", None)
    model, examples = made
    greedy, found = DiscreteCoT().solve(model, examples), solved(way, made, verify)
    assert torch.equal(found.answer_BA, greedy.answer_BA)
    assert torch.equal(found.trace.action("id"), greedy.trace.action("id"))
    assert found.counters == replace(greedy.counters, judged=len(examples))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_invariant_2_the_first_latents_say_the_greedy_tokens(dtype, made):
    model = model_of(DiscreteCoT(), TASK).to(dtype)
    trace = DiscreteCoT().solve(model, made[1]).trace
    ids_BW = written(trace)
    said_BW = read(model.backbone, trace.hidden_BTD[:, : ids_BW.shape[1]]).logits.argmax(-1)
    assert torch.equal(said_BW[ids_BW != NO_TOKEN], ids_BW[ids_BW != NO_TOKEN])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_invariant_3_at_rate_0_every_answer_is_greedy(optimizer, made):
    found = solved(LatentSeek(share=0.7, rate=0.0, optimizer=optimizer), made, never)
    for row in range(len(ROWS)):
        texts, _ = texts_of(found, row)
        assert len(texts) == (11 if found.told_B[row] else 1)
        assert all(text == texts[0] for text in texts)


@pytest.mark.slow
def test_invariant_4_only_the_chosen_positions_change_and_they_say_what_the_latents_do(made, monkeypatch):
    """Told tokens before the free ones are greedy; free ones are the argmax; what follows is the model's own."""
    said, model = [], made[0]

    def spied(*arguments):
        z = advanced(*arguments)
        said.append(read(model.backbone, z).logits.argmax(-1))
        return z

    monkeypatch.setattr(latentseek, "advanced", spied)
    way = LatentSeek(share=0.5, start=0.25, rate=0.5, rounds=5)
    found = solved(way, made, never)
    length_B = made[1].num_steps + 1
    start_B = (0.25 * length_B).long()
    stop_B = torch.minimum(start_B + (0.5 * length_B).long(), length_B - 1)
    assert torch.equal(found.told_B, stop_B)
    assert len(said) == way.rounds
    searched, changed = (stop_B > start_B).nonzero()[:, 0].tolist(), 0
    for row, (start, stop) in enumerate(zip(start_B.tolist(), stop_B.tolist(), strict=True)):
        texts, _ = texts_of(found, row)
        for k, text in enumerate(texts[1:]):
            assert text[:start] == texts[0][:start]
            assert text[start:stop] == said[k][searched.index(row), start:stop].tolist()
            changed += text != texts[0]
        for text in texts:
            told = torch.tensor([text[:stop]])
            one = made[1].rows(slice(row, row + 1))
            plan = after(DiscreteCoT().plan(model, one), told, torch.tensor([stop]))
            trace = rollout(model.backbone, plan, one.prompt_BN, one.prompt_mask_BN)
            assert written(trace)[0].tolist() + trace.answer()[0].tolist() == text
    assert changed > 10


def test_invariant_4_tokens_before_the_free_ones_stay_where_prefixes_are_drawn(made):
    way = LatentSeek(mode="sampled", share=0.4, start=0.4, temperature=5.0, rounds=3)
    found, changed = solved(way, made, never), 0
    for row, length in enumerate((made[1].num_steps + 1).tolist()):
        texts, start = texts_of(found, row)[0], int(0.4 * length)
        assert all(text[:start] == texts[0][:start] for text in texts)
        changed += sum(text[start] != texts[0][start] for text in texts[1:])
    assert changed > 10


def head(V=5, N=3, D=4, seed=0):
    """Latents, and what a random head makes of them."""
    z_BND, head_VD = random(1, N, D, seed=seed), random(V, D, seed=seed + 100)
    return z_BND, (lambda z: State(z, z @ head_VD.T, Table(head_VD))), head_VD


def prefixes(V, N):
    return torch.cartesian_prod(*[torch.arange(V)] * N).view(-1, N)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_invariant_5_the_score_is_that_of_the_head(temperature):
    """-R (W[x] - sum p W) is the loss's gradient; 0 for a reward of 0; the score's mean over tokens is 0."""
    z_BND, read_head, head_VD = head()
    p_NV = (z_BND[0] @ head_VD.T / temperature).softmax(-1)
    ids_BMN = torch.tensor([[[2, 0, 4]]])
    by_hand = (head_VD[ids_BMN[0, 0]] - p_NV @ head_VD) / temperature
    found = ascent(read_head, z_BND, ids_BMN, random(1, 1) * 0 - 0.4, temperature=temperature)
    torch.testing.assert_close(found[0], -0.4 * by_hand, rtol=1e-12, atol=1e-12)
    assert not ascent(read_head, z_BND, ids_BMN, random(1, 1) * 0).any()
    every = torch.arange(5).expand(3, 5).T[None]  # token v at every position, weighted by its probability there
    assert score(read_head, z_BND, every, p_NV.T[None].contiguous(), temperature).abs().max() < 1e-12
    free_BN = torch.tensor([[True, False, True]])
    masked = ascent(read_head, z_BND, ids_BMN, random(1, 1) * 0 - 0.4, free_BN, temperature=temperature)
    assert torch.equal(masked[0] == 0, torch.tensor([[False], [True], [False]]).expand(3, 4))


def exact_gradient(z_BND, head_VD, reward_P, temperature=1.0):
    """The gradient of the mean reward, contracted position by position."""
    z = z_BND[0].clone().requires_grad_()
    mean = reward_P
    for z_D in z:
        mean = (head_VD @ z_D / temperature).softmax(0) @ mean.view(len(head_VD), -1)
    return torch.autograd.grad(mean.squeeze(), z)[0]


@pytest.mark.parametrize(("baseline", "factor"), [("none", 1.0), ("loo", 1.0), ("mean", 0.5)])
def test_invariant_6_sampled_mode_is_unbiased(baseline, factor):
    """All pairs of prefixes, weighted by their probability: the mean step is the gradient, whatever is added to R."""
    V, N, temperature = 3, 2, 0.8
    z_BND, read_head, head_VD = head(V, N)
    ids_PN, reward_P = prefixes(V, N), -random(V**N, seed=5).abs()
    p_NV = (z_BND[0] @ head_VD.T / temperature).softmax(-1)
    p_P = torch.stack([p_NV[range(N), ids].prod() for ids in ids_PN])
    exact = exact_gradient(z_BND, head_VD, reward_P, temperature)
    for shift in (0.0, -0.7):
        mean = 0.0
        for i, j in itertools.product(range(V**N), repeat=2):
            reward_BM = (reward_P + shift)[[i, j]][None]
            step = ascent(read_head, z_BND, ids_PN[[i, j]][None], reward_BM, None, baseline, temperature)
            mean = mean + p_P[i] * p_P[j] * step[0]
        torch.testing.assert_close(mean, factor * exact, rtol=1e-9, atol=1e-9)


def test_invariant_6_sampled_prefixes_have_the_probability_that_is_scored(made):
    """Each position by itself, softmax(W z / temperature); false alarm 1e-6."""
    model, examples = made[0], made[1].rows(torch.zeros(3000, dtype=torch.int64))
    way = LatentSeek(mode="sampled", share=0.7, temperature=2.0, rounds=1, select="first")
    found = way.solve(model, examples, streams(examples), verify=never)
    assert int(found.told_B[0]) == 2
    hidden = DiscreteCoT().solve(model, examples.rows(slice(0, 1))).trace.hidden_BTD[0, :2]
    for place, hidden_D in enumerate(hidden):
        p_V = (model.backbone.readout(hidden_D) / 2.0).softmax(0).detach().numpy()
        counts_V = np.bincount(found.text_BKW[:, 1, place], minlength=len(p_V))
        rank_V = np.argsort(p_V)[-6:]  # the likeliest six, and all others
        seen = [*counts_V[rank_V], 3000 - counts_V[rank_V].sum()]
        assert chisquare(seen, np.append(p_V[rank_V], 1 - p_V[rank_V].sum()) * 3000).pvalue > 1e-6


def test_invariant_6_argmax_mode_is_biased():
    """Under a constant reward the gradient is 0, and the step is not."""
    z_BND, read_head, head_VD = head()
    said = (z_BND @ head_VD.T).argmax(-1)[:, None]
    step = ascent(read_head, z_BND, said, torch.tensor([[-1.0]], dtype=torch.float64))
    assert exact_gradient(z_BND, head_VD, -torch.ones(5**3, dtype=torch.float64)).abs().max() < 1e-12
    assert step.abs().max() > 0.1


@pytest.mark.parametrize("reward", [-1.0, -0.3, 0.5])
def test_invariant_7_a_plain_step_follows_the_sign_of_the_reward(reward):
    """A negative reward lowers the probability of every token just judged, a positive one raises it."""
    for seed in range(20):
        z_BND, read_head, head_VD = head(seed=seed)
        said = (z_BND @ head_VD.T).argmax(-1)
        step = ascent(read_head, z_BND, said[:, None], torch.tensor([[reward]], dtype=torch.float64))
        after = advanced(z_BND, step, {}, 0, 1e-3, "sgd")
        rise = [(z @ head_VD.T).log_softmax(-1).gather(-1, said[..., None]) for z in (z_BND, after)]
        assert ((rise[1] - rise[0]) * reward > 0).all()


def test_invariant_8_adams_first_step_does_not_know_the_size_of_the_reward():
    z_BND, read_head, head_VD = head()
    said = (z_BND @ head_VD.T).argmax(-1)[:, None]
    steps = []
    for reward in (-1.0, -0.25):
        step = ascent(read_head, z_BND, said, torch.tensor([[reward]], dtype=torch.float64))
        assert step.abs().min() > 1e-3
        steps.append(advanced(z_BND, step, {}, 0, 0.03) - z_BND)
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-4, atol=0)
    torch.testing.assert_close(steps[0].abs(), torch.full_like(steps[0], 0.03), rtol=1e-4, atol=0)


def test_invariant_9_until_it_succeeds_a_search_by_the_truth_is_that_of_a_constant_reward(made):
    way = LatentSeek(share=0.7, rate=0.5)
    oracle, blind, succeeded = solved(way, made, truth), solved(way, made, never), 0
    for row in range(len(ROWS)):
        ours, rewards = texts_of(oracle, row)
        assert ours == texts_of(blind, row)[0][: len(ours)]
        assert (rewards[:-1] == -1).all()
        succeeded += len(ours) > 1 and float(rewards[-1]) == 0
    assert succeeded > 1


@pytest.mark.parametrize("way", [WAYS[0], PAIR], ids=["argmax", "sampled"])
def test_invariant_10_the_model_and_random_numbers_stay_as_they_are(way, made):
    """Under no_grad too; global generators are not used; two runs are equal."""
    model = made[0]
    before, state = [tensor.clone() for tensor in model.state_dict().values()], torch.random.get_rng_state()
    found = solved(way, made)
    with torch.no_grad():
        again = solved(way, made)
    assert same_text(found, again)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
@EVERY_WAY
def test_invariant_11_many_questions_at_once_are_each_alone(way, made):
    """Adam's state, places, masks and random numbers are a question's own, and so is what it costs but for forwards."""
    together, costs = solved(way, made), []
    for row in range(len(ROWS)):
        alone = solved(way, made, rows=[row])
        assert same_text(alone, together, slice(row, row + 1))
        costs.append(alone.counters)
        ours, theirs = alone.trace.logits_BTV[0], together.trace.logits_BTV[row]
        if not way.ends:
            torch.testing.assert_close(ours[-1], theirs[-1], rtol=1e-9, atol=1e-9)
    assert len(together.reward_BK[0]) > 3
    for name in ("slots", "steps", "tokens", "judged", "flops"):
        assert getattr(together.counters, name) == sum(getattr(cost, name) for cost in costs)


@EVERY_WAY
def test_invariant_12_the_verifier_is_asked_once_and_once_for_every_proposal(way, made):
    asked = []

    def verify(examples, trace):
        asked.append(trace.rows)
        assert trace.rows == len(examples)
        return picky(examples, trace)

    found = solved(way, made, verify)
    made_BK = ~found.reward_BK.isnan()
    assert sum(asked) == found.counters.judged == made_BK.sum()
    assert len(asked) == (made_BK.shape[1] - 1) // way.proposals + 1
    passed_BK = found.reward_BK.nan_to_num(-9) > way.threshold
    rounds_B = (made_BK.sum(1) - 1) // way.proposals
    ends_B = passed_BK.any(1) | (rounds_B == way.rounds) | (found.told_B == 0)
    assert ends_B.all()
    assert (passed_BK.sum(1) <= way.proposals).all()  # the round that passes is the last


def test_invariant_13_a_higher_threshold_never_takes_fewer_updates(made):
    updates = [
        (~solved(LatentSeek(share=0.7, rate=0.5, threshold=tau), made).reward_BK.isnan()).sum(1)
        for tau in (-0.8, -0.5, -0.2)
    ]
    lower, middle, higher = updates
    assert (lower <= middle).all()
    assert (middle <= higher).all()
    assert lower.sum() < middle.sum() < higher.sum()


class Ends(Prefixed):
    """Tells the delimiter after one token, and tokens behind it."""

    def propose(self, model, asked, round, streams):
        ids_BN = torch.full_like(asked.first_BN, self.extra_id(model, "<end>"))
        ids_BN[:, 0] = asked.first_BN[:, 0]
        ids_BN[:, 2:] = 5
        return ids_BN[:, None]


def test_invariant_14_a_delimiter_among_the_told_tokens_ends_the_chain(made):
    """The answer follows at once; in the released code the text goes on."""
    way = Ends(share=0.7, ends=True, rounds=1)
    model, examples = made_for(way, made)
    found = way.solve(model, examples, verify=never)
    end, told_B = way.extra_id(model, "<end>"), found.told_B
    for row in (told_B > 2).nonzero()[:, 0].tolist():
        text = [token for token in found.text_BKW[row, 1].tolist() if token != NO_TOKEN]
        assert text == [int(found.text_BKW[row, 0, 0]), end]
        one = examples.rows(slice(row, row + 1))
        short = torch.tensor([text])
        plan = after(way.plan(model, one), short, torch.tensor([2]))
        trace = rollout(model.backbone, plan, one.prompt_BN, one.prompt_mask_BN)
        assert torch.equal(trace.answer()[0], found.answer_BA[row])
        assert found.answer_BA[row] != NO_TOKEN
    assert (told_B > 2).sum() > 5


# ---------------------------------------------------------------------------------------------------------------------
# Selection, budgets, costs


def test_the_last_the_best_and_the_first_answer(made):
    """One search, read four ways; the trace is of the text that is returned."""
    way = LatentSeek(share=0.7, rate=0.5)
    texts = {select: solved(replace(way, select=select), made) for select in ("last", "best", "first", "vote")}
    for row in range(len(ROWS)):
        said, rewards = texts_of(texts["last"], row)
        first = next((k for k, reward in enumerate(rewards.tolist()) if reward > -0.2), 0)
        expected = {"last": said[-1], "best": said[int(rewards.argmax())], "first": said[first]}
        votes, _ = texts_of(texts["vote"], row)
        answers = [text[-1] for text in votes]
        expected["vote"] = next(text for text in votes if text[-1] == max(answers, key=answers.count))
        for select, text in expected.items():
            found = texts[select]
            assert found.answer_BA[row].tolist() == text[-1:]
            ids = [*written(found.trace)[row].tolist(), *found.trace.answer()[row].tolist()]
            assert [token for token in ids if token != NO_TOKEN] == text
    assert texts["vote"].counters.judged == 0
    assert len({tuple(found.answer_BA[:, 0].tolist()) for found in texts.values()}) == 4


def test_of_several_samples_the_best_of_the_last_round_is_returned(made):
    found = solved(PAIR, made)
    for row in range(len(ROWS)):
        texts, rewards = texts_of(found, row)
        last = rewards[-3:] if len(rewards) > 1 else rewards
        best = texts[len(texts) - len(last) + int(last.argmax())]
        assert found.answer_BA[row].tolist() == best[-1:]


def test_told_tokens_are_not_decoded(made):
    """A round of a question decodes what follows its told tokens, and no round is made that does not fit."""
    length_B = made[1].num_steps + 1
    for way in (NoiseSearch(share=0.5, rounds=3), NoiseSearch(share=0.5, rounds=3, by_tokens=True)):
        found = solved(way, made, never)
        rounds_B = (~found.reward_BK.isnan()).sum(1) - 1
        left_B = length_B - found.told_B
        assert found.counters.tokens == int((length_B + rounds_B * left_B).sum())
        fitting_B = 3 * length_B // left_B if way.by_tokens else torch.full_like(length_B, 3)
        assert torch.equal(rounds_B, torch.where(found.told_B > 0, fitting_B, 0))
    assert rounds_B.max() > 5


def test_every_prompt_is_read_once(made):
    """A round reads what it tells and decodes; the last token of an answer is not read."""
    model, examples = made
    found, length_B = solved(NoiseSearch(share=0.5, rounds=3), made, never), examples.num_steps + 1
    rounds_B = (~found.reward_BK.isnan()).sum(1) - 1
    prompt_B = examples.prompt_mask_BN.sum(1)
    assert found.counters.slots == int((prompt_B + (1 + rounds_B) * (length_B - 1)).sum())
    table, flops = model.backbone.table, 0
    for prompt, length, rounds, told in zip(
        *(x.tolist() for x in (prompt_B, length_B, rounds_B, found.told_B)), strict=True
    ):
        round = model.backbone.flops(length - 1, prompt) + 2 * len(table) * table.width * length
        extra = 2 * len(table) * table.width * told * NoiseSearch().head_uses
        flops += model.backbone.flops(prompt, 0, 1 if found.trace.prompt_read else None) + (1 + rounds) * round
        flops += rounds * extra
    assert found.counters.flops == flops


def test_a_round_of_several_samples_costs_as_many(made):
    """By tokens, a round of M costs M times what follows the told tokens."""
    length_B = made[1].num_steps + 1
    found = solved(replace(PAIR, rounds=8, by_tokens=True), made, never)
    rounds_B, left_B = ((~found.reward_BK.isnan()).sum(1) - 1) // 3, length_B - found.told_B
    assert torch.equal(rounds_B, torch.where(found.told_B > 0, 8 * length_B // (3 * left_B), 0))
    assert found.counters.tokens == int((length_B + 3 * rounds_B * left_B).sum())
    assert len(set(rounds_B.tolist())) > 1


def test_a_chain_that_was_cut_has_no_vote(made):
    """One answer against any number of chains that were not ended."""
    way = BestOfN(select="vote", ends=True)
    reward_BK = -torch.ones(3, 4)
    reward_BK[2, 3] = torch.nan
    answer_BKA = torch.tensor([[-1, -1, 5, -1], [4, -1, 5, 5], [-1, -1, -1, 7]])[..., None]
    assert way._chosen(reward_BK, answer_BKA).tolist() == [2, 2, 0]


def test_best_of_n_finds_what_sampling_finds(made):
    """With the truth, a question is found if the greedy chain or one of the samples is right."""
    found = solved(BestOfN(rounds=30), made, truth)
    blind = solved(BestOfN(rounds=30), made, never)
    right_BK = (blind.answer_BKA == made[1].answer_BA[:, None]).all(-1)
    assert torch.equal(made[1].judge(found.answer_BA), right_BK.any(1))
    assert right_BK.any(1).sum() > right_BK[:, 0].sum()
    sampled = [DiscreteCoT().solve(made[0], made[1], streams(made[1]), temperature=1.0).answer_BA for _ in "12"]
    assert torch.equal(*sampled)


def test_evaluation_passes_the_verifier_on_and_what_was_right_stays(made):
    """The verifier sees the task's own rows; with the truth nothing is lost."""
    speaker, asked = Symbols(TASK, ROWS), []

    def verify(examples, trace):
        asked.extend(examples.problems().tolist())
        return truth(examples, trace)

    plain = evaluate(speaker, DiscreteCoT(), made[0])
    found = evaluate(speaker, LatentSeek(share=0.7, rate=0.5), made[0], verify=verify)
    assert sorted(asked[: len(ROWS)]) == sorted(ROWS.tolist())
    assert len(asked) == found.counters.judged
    assert found.right_P[plain.right_P].all()
    assert found.right_P.sum() > plain.right_P.sum()


def test_noise_of_scale_0_is_greedy_and_great_noise_is_not(made):
    still, wild = (solved(NoiseSearch(share=0.7, scale=scale, rounds=4), made, never) for scale in (0.0, 5.0))
    assert (still.text_BKW[:, 1:][~still.reward_BK[:, 1:].isnan()] >= -1).all()
    assert all(len({tuple(text) for text in texts_of(still, row)[0]}) == 1 for row in range(len(ROWS)))
    assert sum(len({tuple(text) for text in texts_of(wild, row)[0]}) for row in range(len(ROWS))) > 3 * len(ROWS)


def test_taboo_takes_the_closest_token_that_a_position_has_not_tried(made):
    found, trace = solved(TabooSearch(share=0.7, rounds=6), made, never), DiscreteCoT().solve(*made).trace
    for row in range(len(ROWS)):
        texts, told = texts_of(found, row)[0], int(found.told_B[row])
        logits = made[0].backbone.readout(trace.hidden_BTD[row, :told]).tolist()
        tried = [{max(range(len(each)), key=each.__getitem__)} for each in logits]
        now = texts[0][:told]
        for text in texts[1:]:
            open_ = [
                (max(each) - value, place, token)
                for place, each in enumerate(logits)
                for token, value in enumerate(each)
                if token not in tried[place]
            ]
            _, place, token = min(open_)
            now[place] = token
            tried[place].add(token)
            assert text[:told] == now


def test_latents_of_a_model_in_half_precision_move_by_small_steps(made):
    """In bfloat16 a step of 0.03 would be lost on numbers from 8 on; latents are float32."""
    model = model_of(DiscreteCoT(), TASK).bfloat16()
    seen = []

    class Spied(LatentSeek):
        def propose(self, model, asked, round, streams):
            ids_BMN = super().propose(model, asked, round, streams)
            seen.append((asked.hidden_BND, asked.own["z"]))
            return ids_BMN

    Spied(share=0.7, rounds=2).solve(model, made[1], verify=never)
    for number, (before, z) in enumerate(seen):
        assert z.dtype == torch.float32
        moved = (z - before).abs()[made[1].num_steps > 2]
        assert 0 < moved.max() <= 0.03 * (number + 1) + 1e-4
    assert seen[0][0].dtype == torch.float32


def test_rollouts_of_a_group_search_by_themselves(made):
    model, examples = made[0], made[1].rows(slice(0, 4))
    found = PAIR.solve(model, examples, Streams(3, 8), group=2, verify=never)
    assert len(found.answer_BA) == 8
    assert not torch.equal(found.text_BKW[::2], found.text_BKW[1::2])
    with pytest.raises(ValueError, match=r"latentseek samples: pass streams=Streams\(seed, rows\) for 8 rows"):
        PAIR.solve(model, examples, Streams(3, 4), group=2, verify=never)


def test_without_a_verifier_the_model_judges_itself(made):
    way = LatentSeek(share=0.7, rate=1.0, select="best")
    model, examples = made
    found = way.solve(model, examples)
    trace = DiscreteCoT().solve(model, examples).trace
    assert found.reward_BK[:, 0] + 1 == pytest.approx(
        (trace.log_prob_BT.exp() * trace.acted_BT).sum(1) / trace.acted_BT.sum(1), abs=1e-9
    )


def test_a_method_is_trained_as_discrete_chain_of_thought(made):
    examples = made[1]
    for way in (LatentSeek(), LatentSeek(ends=True)):
        own, _ = made_for(way, made)
        enter(way, own, 0, examples)
        assert torch.equal(way.forced(own, examples).logits_BTV, DiscreteCoT(way.ends).forced(own, examples).logits_BTV)
    assert LatentSeek.recipe == {"steps": 0}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        (LatentSeek, {"rounds": -1}, r"rounds -1: expected 0 to 10,000; try 10"),
        (LatentSeek, {"select": "worst"}, r"select 'worst': expected one of last, best, first, vote"),
        (LatentSeek, {"judge": "me"}, r"unknown verifier 'me': expected one of truth, certificate, "),
        (LatentSeek, {"judge": ""}, r"judge is empty: expected the name of a verifier"),
        (LatentSeek, {"share": 1.2}, r"share 1\.2, start 0\.0: expected shares from 0 to 1"),
        (LatentSeek, {"start": 1.0}, r"share 0\.2, start 1\.0: expected"),
        (LatentSeek, {"max_positions": 0}, r"max_positions 0: expected at least 1; try 300"),
        (LatentSeek, {"rate": -0.1}, r"rate -0\.1: expected 0 or more; try 0\.03"),
        (LatentSeek, {"rate": float("inf")}, r"rate inf: expected 0 or more"),
        (LatentSeek, {"threshold": float("nan")}, r"threshold nan: expected a number; try -0\.2"),
        (LatentSeek, {"temperature": float("inf")}, r"temperature inf: expected more than 0"),
        (LatentSeek, {"mode": "beam"}, r"mode 'beam': expected one of argmax, sampled"),
        (LatentSeek, {"samples": 2}, r"samples 2 in mode argmax: expected 1, or more in mode sampled"),
        (LatentSeek, {"mode": "sampled", "baseline": "loo"}, r"baseline loo of 1 sample: expected samples of at least"),
        (LatentSeek, {"temperature": 0.0}, r"temperature 0\.0: expected more than 0"),
        (BestOfN, {"temperature": 0.0}, r"temperature 0\.0: expected more than 0"),
        (NoiseSearch, {"scale": -1.0}, r"scale -1\.0: expected 0 or more"),
        (TabooSearch, {"flips": 0}, r"flips 0: expected at least 1"),
    ],
)
def test_bad_settings_are_refused(kind, fields, said):
    with pytest.raises(ValueError, match=said):
        kind(**fields)


def test_settings_without_effect_are_named():
    assert set(LatentSeek().idle) == {"samples", "baseline", "temperature"}
    assert set(LatentSeek(mode="sampled", select="vote").idle) == {"judge", "threshold"}
    assert set(LatentSeek(mode="sampled", rate=0.0).idle) == {"baseline", "optimizer", "guided"}
