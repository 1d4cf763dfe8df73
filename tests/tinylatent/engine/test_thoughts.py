"""Each thought does what its definition says: what it picks, how likely that was, what it feeds.

Sampling is held against exact probabilities by chi-square tests with a fixed seed; each states how often it would fail,
on correct code, if the seed were drawn anew."""

import itertools
import math

import pytest
import torch
from cases import assert_a_thought_is_its_definition
from fakes import Head, random, state
from scipy import stats
from thoughts import THOUGHTS, dirichlet_density

from tinylatent.core.seeds import Streams
from tinylatent.engine.thought import Action, State, Thought
from tinylatent.engine.thoughts import Dirichlet, Hidden, Mixture, MultiToken, Pause, Stopping, Token
from tinylatent.models.backbone import Table

V, D = 5, 4
FALSE_ALARM = 1e-6
LATENTS = [Mixture(), Hidden(), MultiToken(99), Dirichlet(2.0)]  # so many tokens that no two rows draw alike


@pytest.mark.parametrize("name", THOUGHTS)
def test_every_thought_is_its_definition(model, name):
    assert_a_thought_is_its_definition(model, THOUGHTS[name])


# ---------------------------------------------------------------------------------------------------------------------
# Token


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_sampled_from_the_softmax_at_temperature(temperature):
    """Chi-square over 20 000 rows; false alarm 1e-6 over the three temperatures. Another temperature must fail."""
    n, logits_V = 20_000, torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0])
    at = State(torch.zeros(n, D), logits_V.expand(n, V), Table(torch.zeros(V, D)))
    ids_B = Token(temperature).sample(at, Streams(5, torch.arange(n)))["id"]
    counts = torch.bincount(ids_B, minlength=V).numpy()

    def p_value(temperature):
        weights = [math.exp(logit / temperature) for logit in logits_V.tolist()]
        return stats.chisquare(counts, [n * weight / sum(weights) for weight in weights]).pvalue

    assert p_value(temperature) > FALSE_ALARM / 3
    assert p_value(temperature * 1.25) < FALSE_ALARM / 3


def test_impossible_tokens_are_never_sampled():
    """Not even where the uniform is as close to 0 or 1 as it gets; of two equal halves the second begins at 0.5."""

    class Extremes(Streams):
        def uniform(self, count=1):
            return torch.tensor([[2.0**-53], [0.5], [1 - 2.0**-53]], dtype=torch.float64)

    logits_V = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
    at = State(torch.zeros(3, D), logits_V.expand(3, V), Table(torch.zeros(V, D)))
    assert Token(1.0).sample(at, Extremes(0, torch.arange(3)))["id"].tolist() == [1, 3, 3]


def test_greedy_takes_the_most_likely_token():
    at = state(6)
    assert torch.equal(Token().sample(at, None)["id"], at.logits.argmax(-1))
    assert not Token().needs_streams
    assert Token(0.1).needs_streams


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
def test_token_log_prob_is_the_log_softmax_at_temperature(temperature):
    """Of any leading axes; greedy counts as temperature 1. All tokens together have probability 1."""
    token, at = Token(temperature), state(2, 3)
    total = torch.zeros(2, 3).double()
    for i in range(V):
        got_BT = token.log_prob(at, token.given(torch.full((2, 3), i)))
        weights_BTV = (at.logits / (temperature or 1)).exp()
        torch.testing.assert_close(got_BT, (weights_BTV[..., i] / weights_BTV.sum(-1)).log())
        total += got_BT.exp()
    torch.testing.assert_close(total, torch.ones_like(total))


def test_tokens_embed_as_rows_of_the_matrix():
    at, ids = state(2, 3), torch.tensor([[0, 4, 2], [1, 1, 3]])
    assert torch.equal(Token().embed(at, Token().given(ids)), at.table.weight[ids])


def test_stop_ids_stop():
    ids = torch.tensor([[0, 4, 2], [1, 1, 3]])
    assert Token(stop_ids=(4, 1)).given(ids).stop.tolist() == [[False, True, False], [True, True, False]]
    assert Token().given(ids).stop is None
    at = state(6)
    greedy_B = at.logits.argmax(-1)
    assert torch.equal(Token(stop_ids=(int(greedy_B[0]),)).sample(at, None).stop, greedy_B == greedy_B[0])


def test_negative_temperatures_are_rejected():
    with pytest.raises(ValueError, match=r"temperature -0.5: expected 0 \(greedy\) or more; try 1.0"):
        Token(-0.5)


# ---------------------------------------------------------------------------------------------------------------------
# MultiToken, Dirichlet


@pytest.mark.parametrize("samples", [1, 3, 10])
def test_means_of_tokens_have_their_mean_and_covariance(samples):
    """E^T alpha, and E^T (diag alpha - alpha alpha^T) E / K, so that K = 1 is a token and K = infinity the mixture.

    z-scores of 4 means and 16 products within 6; false alarm below 1e-6 over all. The covariance of K + 1 must fail.
    """
    n, at = 200_000, state(1)
    thought = MultiToken(samples)
    many = State(at.hidden.expand(n, D), at.logits.expand(n, V), at.table)
    z_BD = thought.embed(many, thought.sample(many, Streams(2, torch.arange(n))))
    alpha_V = at.logits[0].softmax(0)
    mean_D = alpha_V @ at.table.weight
    covariance_DD = at.table.weight.T @ (alpha_V.diag() - alpha_V.outer(alpha_V)) @ at.table.weight
    centred_BD = z_BD - mean_D
    products_BDD = centred_BD[:, :, None] * centred_BD[:, None]

    def furthest(values, expected):
        return ((values.mean(0) - expected) / (values.std(0) / math.sqrt(n))).abs().max()

    assert furthest(z_BD, mean_D) < 6
    assert furthest(products_BDD, covariance_DD / samples) < 6
    assert furthest(products_BDD, covariance_DD / (samples + 1)) > 6


def test_one_token_of_many_is_a_token():
    """The same uniforms give the same ids, embeddings, probabilities; and it counts as no latent."""
    at = state(50)
    for temperature in (0.7, 1.0):
        many, one = MultiToken(1, temperature), Token(temperature)
        ids_B1 = many.sample(at, Streams(0, torch.arange(50)))["ids"]
        action = one.sample(at, Streams(0, torch.arange(50)))
        assert torch.equal(ids_B1[:, 0], action["id"])
        assert torch.equal(many.embed(at, many.given(ids_B1)), one.embed(at, action))
        assert torch.equal(many.log_prob(at, many.given(ids_B1)), one.log_prob(at, action))
    assert not MultiToken(1).has_latent
    assert MultiToken(2).has_latent


def test_probabilities_of_all_orders_sum_to_one():
    thought, at = MultiToken(3, 1.4), state(2, 2)
    total = torch.zeros(2, 2).double()
    for ids in itertools.product(range(V), repeat=3):
        total += thought.log_prob(at, thought.given(torch.tensor(ids).expand(2, 2, 3))).exp()
    torch.testing.assert_close(total, torch.ones_like(total))


def test_equal_tokens_are_that_token():
    at, ids = state(2, 3), torch.tensor([[0, 4, 2], [1, 1, 3]])
    thought = MultiToken(4)
    torch.testing.assert_close(
        thought.embed(at, thought.given(ids[..., None].expand(2, 3, 4))), Token().embed(at, Token().given(ids))
    )


def test_dirichlet_feeds_the_point_it_drew():
    at, thought = state(6), Dirichlet(2.0)
    action = thought.sample(at, Streams(1, torch.arange(6)))
    a_BV = action["log_a"].exp()
    torch.testing.assert_close(a_BV.sum(-1), torch.ones(6).double())
    torch.testing.assert_close(thought.embed(at, action), torch.einsum("bv,vd->bd", a_BV, at.table.weight))
    alike = Dirichlet(1e6).embed(at, Dirichlet(1e6).sample(at, Streams(1, torch.arange(6))))
    torch.testing.assert_close(alike, Mixture().embed(at, Mixture().sample(at, None)), atol=1e-2, rtol=0)
    assert thought.log_prob(at, action).shape == (6,)


@pytest.mark.parametrize("gamma", [2.0, 1e5])
def test_ratios_of_densities_are_right_in_float32(gamma):
    """Terms of 1e6 cancel at gamma 1e5: in float32 the log-ratio of neighbouring weights would be off by 0.1.

    The gradient has no such cancellation: it is that of float64 up to the rounding of float32.
    """
    thought, table = Dirichlet(gamma), Table(torch.zeros(89, 2))
    old_BV, near_BV = random(32, 89).float(), (random(32, 89) + 1e-4 * random(32, 89, seed=1)).float()
    states = [State(torch.zeros(32, 2), x.requires_grad_(), table) for x in (old_BV, near_BV)]
    action = thought.sample(states[0], Streams(0, torch.arange(32)))
    now_B, then_B = (thought.log_prob(state, action) for state in reversed(states))
    log_a = action["log_a"]
    assert log_a.dtype == torch.float32
    expected_B = dirichlet_density(near_BV, log_a, gamma) - dirichlet_density(old_BV, log_a, gamma)
    assert (now_B - then_B).tolist() == pytest.approx(expected_B.tolist(), abs=1e-6)
    assert torch.equal(action.log_prob, then_B)  # as stored when it was drawn
    with torch.no_grad():
        assert torch.equal(thought.log_prob(states[0], action), then_B)
    (found_BV,) = torch.autograd.grad(now_B.sum(), near_BV)
    wide_BV = near_BV.detach().double().requires_grad_()
    density_B = thought.log_prob(State(torch.zeros(32, 2), wide_BV, table), thought.given(log_a.double()))
    (expected_BV,) = torch.autograd.grad(density_B.sum(), wide_BV)
    assert (found_BV - expected_BV).norm() < 1e-3 * expected_BV.norm()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MultiToken(0), "samples 0: expected at least 1 token a step"),
        (lambda: MultiToken(2, 0.0), r"temperature 0\.0: expected more than 0"),
        (lambda: Dirichlet(0.0), r"gamma 0\.0: expected a positive number"),
        (lambda: Dirichlet(math.inf), r"gamma inf: expected a positive number up to 1e\+06"),
    ],
)
def test_impossible_latents_are_rejected(make, said):
    with pytest.raises(ValueError, match=said):
        make()


# ---------------------------------------------------------------------------------------------------------------------
# Mixture, Hidden, Pause


def test_mixture_thinks_the_softmax():
    at = state(3)
    action = Mixture().sample(at, None)
    alpha_BV = at.logits.exp() / at.logits.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(action["alpha"], alpha_BV)
    torch.testing.assert_close(Mixture().embed(at, action), torch.einsum("bv,vd->bd", alpha_BV, at.table.weight))


def test_a_one_hot_mixture_is_a_token():
    at, ids = state(2, 3), torch.tensor([[0, 4, 2], [1, 1, 3]])
    one_hot = torch.nn.functional.one_hot(ids, V).double()
    torch.testing.assert_close(
        Mixture().embed(at, Mixture().given(one_hot)), Token().embed(at, Token().given(ids)), rtol=0, atol=0
    )


def test_hidden_feeds_the_state_back():
    at = state(3)
    action = Hidden().sample(at, None)
    assert torch.equal(Hidden().embed(at, action), at.hidden)
    other = random(3, D, seed=9)
    assert torch.equal(Hidden().embed(at, Action({"hidden": other})), other)


def test_pause_feeds_its_constant_and_learns_it():
    pause, at = Pause(D).double(), state(3)
    fed_BD = pause.embed(at, pause.sample(at, None))
    assert torch.equal(fed_BD, pause.constant_D.expand(3, D))
    assert pause.embed(at, pause.given((2, 5))).shape == (2, 5, D)
    fed_BD.sum().backward()
    assert torch.equal(pause.constant_D.grad, torch.full((D,), 3.0).double())
    assert [name for name, _ in pause.named_parameters()] == ["constant_D"]


def test_the_pause_comes_from_its_generator():
    constants = [Pause(D, torch.Generator().manual_seed(seed)).constant_D for seed in (3, 3, 4)]
    assert torch.equal(constants[0], constants[1])
    assert not torch.equal(constants[0], constants[2])


@pytest.mark.parametrize("thought", [Mixture(), Hidden(), Pause(D)])
@pytest.mark.parametrize("rows", [(3,), (2, 3)])
def test_deterministic_thoughts_have_log_probability_zero(thought, rows):
    at = state(*rows)
    log_prob = thought.log_prob(at, thought.sample(at, None))
    assert torch.equal(log_prob, torch.zeros(rows).double())


def test_only_mixture_and_hidden_are_latent():
    thoughts = (Token(), Mixture(), Hidden(), Pause(D), MultiToken(1), MultiToken(2), Dirichlet(1.0))
    assert [thought.has_latent for thought in thoughts] == [False, True, True, False, False, True, True]


@pytest.mark.parametrize("thought", [Token(1.0), MultiToken(1), *LATENTS, Pause(D)])
def test_the_parts_make_up_the_input(thought):
    """A token, a latent, or neither; what there is of the two is what is fed."""
    at = state(3)
    action = thought.sample(at, Streams(0, torch.arange(3)))
    token, latent = thought.token(action), thought.latent(at, action)
    assert (latent is not None) == thought.has_latent
    if latent is not None:
        assert token is None
        assert torch.equal(thought.embed(at, action), latent)
    elif token is not None:
        assert torch.equal(thought.embed(at, action), at.table.rows(token))
    else:
        assert isinstance(thought, Pause)


@pytest.mark.parametrize(
    "thought", [Token(0.7), MultiToken(3, 1.3), Dirichlet(2.0), Stopping(MultiToken(2), Head(9, D))]
)
def test_what_was_drawn_carries_its_log_probability(thought):
    """In float64, without a graph, and the same as `log_prob` says of it."""
    at = state(50)
    action = thought.sample(at, Streams(0, torch.arange(50)))
    torch.testing.assert_close(action.log_prob, thought.log_prob(at, action), rtol=1e-9, atol=1e-9)
    assert not action.log_prob.requires_grad


def test_stops_are_drawn_with_their_probability():
    """Binomial test of 20 000 rows, false alarm 1e-6; the inner action is thought only by rows that go on."""
    n, thought = 20_000, Stopping(Token(1.0), Head(9, D))
    hidden, embedding = random(1, D), random(V, D, seed=1)
    at = State(hidden.expand(n, D), (hidden @ embedding.T).expand(n, V), Table(embedding))
    action = thought.sample(at, Streams(2, torch.arange(n)))
    p = float(thought.head(hidden).detach().sigmoid())
    assert 0.1 < p < 0.9
    assert stats.binomtest(int(action.stop.sum()), n, p).pvalue > FALSE_ALARM
    assert not action.stop_slot
    inner = Token(1.0).log_prob(at, action)
    expected = torch.where(action.stop, math.log(p), math.log(1 - p) + inner)
    torch.testing.assert_close(thought.log_prob(at, action), expected, rtol=1e-9, atol=1e-9)
    assert Stopping(Token(), Head(9, D), 0.0).sample(at, None).stop.all() == (p > 0.5)
    with pytest.raises(ValueError, match=r"temperature 0.5: expected 0 \(decide\) or 1 \(draw\)"):
        Stopping(Token(), Head(9, D), 0.5)


def test_stop_tokens_have_no_probability_before_they_may_come():
    at = state(40)
    early = State(at.hidden, at.logits, at.table, may_stop=False)
    token = Token(1.0, stop_ids=(1, 3))
    drawn = token.sample(early, Streams(0, torch.arange(40)))
    assert not torch.isin(drawn["id"], torch.tensor([1, 3])).any()
    allowed = torch.tensor([0, 2, 4])
    expected = at.logits[:, allowed].log_softmax(-1)
    for place, i in enumerate(allowed.tolist()):
        said = token.given(torch.full((40,), i))
        torch.testing.assert_close(token.log_prob(early, said), expected[:, place], rtol=1e-12, atol=1e-12)
    later = token.sample(State(at.hidden, at.logits, at.table), Streams(0, torch.arange(40)))
    assert torch.isin(later["id"], torch.tensor([1, 3])).any()


def test_sparse_mixtures_are_dense_ones():
    ids, shares = torch.tensor([[[0, 2], [4, 4]]]), torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]).double()
    dense = torch.zeros(1, 2, V).double().scatter_add_(-1, ids, shares)
    at = state(1, 2)
    got, expected = (Mixture().embed(at, a) for a in (Mixture().given_sparse(ids, shares), Mixture().given(dense)))
    torch.testing.assert_close(got, expected)


def test_logits_are_read_when_they_are_asked_for():
    calls, at = [], state(2)
    lazy = State(at.hidden, lambda: calls.append(1) or at.logits, at.table)
    Hidden().sample(lazy, None)
    assert not calls
    assert torch.equal(Mixture().sample(lazy, None)["alpha"], Mixture().sample(at, None)["alpha"])
    assert lazy.logits is at.logits
    assert calls == [1]


def test_an_unfinished_thought_says_what_it_lacks():
    class Blank(Thought):
        pass

    with pytest.raises(TypeError, match="Blank does not define sample"):
        Blank().sample(state(2), None)
    with pytest.raises(TypeError, match="Blank defines neither token nor latent, nor compose"):
        Blank().embed(state(2), Action())


# ---------------------------------------------------------------------------------------------------------------------
# Actions


def test_actions_stack_step_and_map():
    steps = [Action({"id": torch.tensor([t, t + 1])}, torch.tensor([t == 0, True])) for t in range(3)]
    whole = Action.stack(steps)
    assert whole["id"].tolist() == [[0, 1, 2], [1, 2, 3]]
    assert whole.stop.tolist() == [[True, False, False], [True, True, True]]
    assert whole.step(1)["id"].tolist() == [1, 2]
    assert whole.step(1).stop.tolist() == [False, True]
    assert whole.first(2)["id"].tolist() == [[0, 1], [1, 2]]
    assert whole.first(2).stop.shape == (2, 2)
    assert whole.map(lambda x: x[:1])["id"].tolist() == [[0, 1, 2]]
    assert Action.stack([Action({"id": torch.tensor([1])})]).stop is None
