"""Each thought does what its definition says: what it picks, how likely that was, what it feeds.

Sampling is held against exact probabilities by chi-square tests with a fixed seed; each states how often it would fail,
on correct code, if the seed were drawn anew. Controls must change what is fed and nothing else.
"""

import itertools
import math

import pytest
import torch
from scipy import stats

from tinylatent.plan import Segment, controlled
from tinylatent.rollout import rollout
from tinylatent.seeds import Streams
from tinylatent.thoughts import (
    Action,
    Control,
    Dirichlet,
    Hidden,
    Mixture,
    MultiToken,
    Noise,
    Pause,
    Shuffled,
    State,
    Thought,
    Token,
    Zero,
)

V, D = 5, 4
FALSE_ALARM = 1e-6
LATENTS = [Mixture(), Hidden(), MultiToken(99), Dirichlet(2.0)]  # so many tokens that no two rows draw alike


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def state(*rows, groups=None, seed=0):
    """A random state for rows of this shape."""
    hidden, embedding = random(*rows, D, seed=seed), random(V, D, seed=seed + 1)
    group_B = None if groups is None else torch.arange(rows[0] // groups).repeat_interleave(groups)
    return State(hidden, hidden @ embedding.T, embedding, group_B)


# Token


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_sampled_from_the_softmax_at_temperature(temperature):
    """Chi-square over 20 000 rows; false alarm 1e-6 over the three temperatures. Another temperature must fail."""
    n, logits_V = 20_000, torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0])
    at = State(torch.zeros(n, D), logits_V.expand(n, V), torch.zeros(V, D))
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
    at = State(torch.zeros(3, D), logits_V.expand(3, V), torch.zeros(V, D))
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
    assert torch.equal(Token().embed(at, Token().given(ids)), at.embedding[ids])


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


# MultiToken, Dirichlet


@pytest.mark.parametrize("samples", [1, 3, 10])
def test_means_of_tokens_have_their_mean_and_covariance(samples):
    """E^T alpha, and E^T (diag alpha - alpha alpha^T) E / K, so that K = 1 is a token and K = infinity the mixture.

    z-scores of 4 means and 16 products within 6; false alarm below 1e-6 over all. The covariance of K + 1 must fail.
    """
    n, at = 200_000, state(1)
    thought = MultiToken(samples)
    many = State(at.hidden.expand(n, D), at.logits.expand(n, V), at.embedding)
    z_BD = thought.embed(many, thought.sample(many, Streams(2, torch.arange(n))))
    alpha_V = at.logits[0].softmax(0)
    mean_D = alpha_V @ at.embedding
    covariance_DD = at.embedding.T @ (alpha_V.diag() - alpha_V.outer(alpha_V)) @ at.embedding
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
    assert not MultiToken(1).latent
    assert MultiToken(2).latent


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
    torch.testing.assert_close(thought.embed(at, action), torch.einsum("bv,vd->bd", a_BV, at.embedding))
    alike = Dirichlet(1e6).embed(at, Dirichlet(1e6).sample(at, Streams(1, torch.arange(6))))
    torch.testing.assert_close(alike, Mixture().embed(at, Mixture().sample(at, None)), atol=1e-2, rtol=0)
    assert thought.log_prob(at, action).shape == (6,)


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


# Mixture, Hidden, Pause


def test_mixture_thinks_the_softmax():
    at = state(3)
    action = Mixture().sample(at, None)
    alpha_BV = at.logits.exp() / at.logits.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(action["alpha"], alpha_BV)
    torch.testing.assert_close(Mixture().embed(at, action), torch.einsum("bv,vd->bd", alpha_BV, at.embedding))


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
    assert [thought.latent for thought in (Token(), Mixture(), Hidden(), Pause(D))] == [False, True, True, False]


def test_an_unfinished_thought_says_what_it_lacks():
    class Blank(Thought):
        pass

    for call in (lambda: Blank().sample(state(2), None), lambda: Blank().embed(state(2), Action())):
        with pytest.raises(TypeError, match="Blank does not define"):
            call()


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


# Controls


@pytest.mark.parametrize("inner", LATENTS)
def test_noise_has_the_norm_of_what_it_replaces(inner):
    noise, at = Noise(inner), state(3)
    action = noise.sample(at, Streams(0, torch.arange(3)))
    fed_BD = noise.embed(at, action)
    latent_BD = inner.embed(at, inner.sample(at, Streams(0, torch.arange(3))))
    torch.testing.assert_close(fed_BD.norm(dim=-1), latent_BD.norm(dim=-1))
    cosine_B = torch.cosine_similarity(fed_BD, action["noise"], dim=-1)
    torch.testing.assert_close(cosine_B, torch.ones_like(cosine_B))
    assert (torch.cosine_similarity(fed_BD, latent_BD, dim=-1) < 0.999).all()


def test_noise_is_one_normal_vector_for_each_row():
    """Kolmogorov-Smirnov over 40 000 numbers, false alarm 1e-6; rows keyed by their streams, not by their place."""
    noise, at = Noise(Hidden()), state(10_000)
    drawn_BD = noise.sample(at, Streams(0, torch.arange(10_000)))["noise"]
    assert stats.kstest(drawn_BD.flatten().numpy(), "norm").pvalue > FALSE_ALARM
    rows = torch.tensor([70, 3])
    few = State(at.hidden[rows], at.logits[rows], at.embedding)
    assert torch.equal(noise.sample(few, Streams(0, rows))["noise"], drawn_BD[rows])


@pytest.mark.parametrize("inner", LATENTS)
def test_zero_feeds_zeros(inner):
    at = state(3)
    action = Zero(inner).sample(at, Streams(0, torch.arange(3)))
    assert torch.equal(Zero(inner).embed(at, action), torch.zeros(3, D).double())


@pytest.mark.parametrize("inner", LATENTS)
@pytest.mark.parametrize(("rows", "groups"), [(4, None), (4, 1), (6, 2), (6, 3)])
def test_shuffled_feeds_another_problem(inner, rows, groups):
    """The same place in another group, and every problem's latents are used once."""
    at = state(rows, groups=groups)
    latent_BD, fed_BD = (
        thought.embed(at, thought.sample(at, Streams(0, torch.arange(rows)))) for thought in (inner, Shuffled(inner))
    )
    size = groups or 1
    source_B = [next(i for i in range(rows) if torch.equal(latent_BD[i], fed_BD[b])) for b in range(rows)]
    assert sorted(source_B) == list(range(rows))
    assert all(i // size != b // size and i % size == b % size for b, i in enumerate(source_B))


@pytest.mark.parametrize(("rows", "groups"), [(1, None), (1, 1), (3, 3)])
def test_shuffled_needs_two_problems(rows, groups):
    at, thought = state(rows, groups=groups), Shuffled(Hidden())
    with pytest.raises(ValueError, match="at least two problems in a batch; pass more problems"):
        thought.embed(at, thought.sample(at, None))


@pytest.mark.parametrize("kind", [Noise, Shuffled, Zero])
def test_controls_leave_choice_and_log_prob_alone(kind):
    inner, at = Token(1.5, stop_ids=(1,)), state(6)
    plain, action = (thought.sample(at, Streams(3, torch.arange(6))) for thought in (inner, kind(inner)))
    assert torch.equal(action["id"], plain["id"])
    assert torch.equal(action.stop, plain.stop)
    assert torch.equal(kind(inner).log_prob(at, action), inner.log_prob(at, plain))
    assert not torch.allclose(kind(inner).embed(at, action), inner.embed(at, plain))


def test_controls_say_what_they_need():
    assert [kind(Hidden()).parallel for kind in (Noise, Shuffled, Zero)] == [True, False, True]
    assert [kind(Hidden()).needs_streams for kind in (Noise, Shuffled, Zero)] == [True, False, False]
    assert Zero(Token(1.0)).needs_streams
    assert not Zero(Shuffled(Hidden())).parallel


@pytest.mark.parametrize("name", ["noise", "shuffled", "zero"])
def test_a_controlled_plan_feeds_the_control(model, name):
    """In the engine: the latents of a run are replaced, its tokens are not."""
    prompt_BN = torch.tensor([[1, 2], [3, 4], [5, 6]])
    plan = (Segment(Token(), 1), Segment(Mixture(), 2), Segment(Token(), 2))
    plain = rollout(model, plan, prompt_BN)
    run = rollout(model, controlled(plan, name), prompt_BN, streams=Streams(0, torch.arange(3)))
    assert torch.equal(run.embeddings_BTD[:, 0], plain.embeddings_BTD[:, 0])
    first_BD, fed_BD = plain.embeddings_BTD[:, 1], run.embeddings_BTD[:, 1]
    if name == "shuffled":
        assert sorted(fed_BD.tolist()) == sorted(first_BD.tolist())
        assert not any(torch.equal(a, b) for a, b in zip(fed_BD, first_BD, strict=True))
    else:
        norm_B = torch.zeros(3).double() if name == "zero" else first_BD.norm(dim=-1)
        torch.testing.assert_close(fed_BD.norm(dim=-1), norm_B)
    assert torch.equal(run.embeddings_BTD[:, 3], model.embed(run.action("id")[:, 0]))
    assert isinstance(run.spans[1].thought, Control)
