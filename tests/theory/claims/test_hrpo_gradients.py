"""HRPO's gradients: its hybrid model path by path, scores by hand, and verdicts broken on purpose."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naive import gradients, naive_hidden
from tinylatent_theory.claims import hrpo_gradients
from tinylatent_theory.claims.ledger import LEDGER, Trial
from tinylatent_theory.predictions.enumeration import Paths, World, objective, walked
from verdicts import broken, number

from tinylatent.engine.controls import controlled
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY
from tinylatent.lab.findings import OPEN
from tinylatent.methods.hrpo import Gated


def hybrid(world, u):
    """A hybrid thought and all its paths in a world."""
    thought = hrpo_gradients.hybrid(world, u, torch.Generator().manual_seed(3), graph=True)
    ids = torch.tensor(list(itertools.product(range(world.vocabulary), repeat=world.steps)))
    return thought, Paths(thought, thought.given(ids), torch.zeros(len(ids), dtype=torch.float64))


def test_the_objective_path_by_path():
    """The same from a model written a second time: no engine, no batches, the gate spelled out."""
    world, total = World(3, 2, width=4), 0.0
    thought, paths = hybrid(world, 0.7)
    E, answers = world.model.embedding, world.answers
    for prompt, ids in itertools.product(range(3), paths.action["id"].tolist()):
        inputs, chance = [E[prompt]], 1.0
        for token in [*ids, answers[prompt]]:
            p = (E @ naive_hidden(world.model, inputs, range(len(inputs)))[-1]).softmax(0)
            chance = chance * p[token]
            r, i = (1 / (1 + (-(gates @ E[token])).exp()) for gates in thought.gate.weight.chunk(2))
            a = 0.7**r
            inputs.append(a * E[token] + (1 - a**2).sqrt() * i * (E.T @ p) / (p @ p).sqrt())
        total += chance.item() / 3
    assert objective(world, paths).item() == pytest.approx(total, rel=1e-12)


def test_controls_replace_the_soft_token_and_keep_the_token():
    world = World(3, 2, width=4)
    thought, paths = hybrid(world, 0.7)
    ids = paths.action["id"]
    plan = controlled((Segment(thought, 2, paths.action), Segment(GREEDY, 1)), "zero")
    trace = rollout(world.model, plan, torch.zeros(len(ids), 1, dtype=torch.int64))
    e = world.model.table.rows(ids).detach()
    torch.testing.assert_close(trace.inputs_BTD, (thought.gate(e)[0].exp() * e).detach())
    assert torch.equal(trace.thought_spans[0].thought.token(trace.thought_spans[0].action), ids)
    assert (trace.counters.latents, trace.counters.tokens) == (2 * len(ids), 3 * len(ids))


@pytest.mark.parametrize("detached", [False, True])
def test_the_gradient_is_the_mean_score(detached):
    """sum over paths of chance x gradient of its logarithm, one path after the other, is what autograd makes of J."""
    world = World(3, 2)
    thought, paths = hybrid(world, 0.7)
    each = (
        hrpo_gradients.stored(world, paths, Gated(thought.gate, 1.0, soft_temperature=1.0)) if detached else [paths] * 3
    )
    weights = [*world.model.parameters(), *thought.parameters()]
    mean = 0.0
    for prompt, right in enumerate(world.answers):
        latent, answer = walked(world, each[prompt], prompt)
        for log_chance in latent + answer[:, right]:
            mean = mean + log_chance.exp().item() * gradients(log_chance, weights) / 3
    value = hrpo_gradients.of_prompts(world, each)
    assert value.item() == pytest.approx(objective(world, paths).item(), rel=1e-12)
    torch.testing.assert_close(gradients(value, weights), mean, rtol=1e-9, atol=1e-12)


def test_the_gap_vanishes_in_proportion_to_the_hidden_ratio():
    near, nearer = (hrpo_gradients.bias(World(3, 2), 1 - x, torch.Generator().manual_seed(0))[1] for x in (1e-6, 1e-8))
    assert near["hidden ratio"] / nearer["hidden ratio"] == pytest.approx(10, rel=1e-3)
    assert near["relative error"] / nearer["relative error"] == pytest.approx(10, rel=1e-2)
    assert "relative error 0.0072" in hrpo_gradients.one_step()


@pytest.mark.slow
def test_a_kept_gradient_and_a_wrong_slope_flip_the_verdict(monkeypatch):
    claim, slope = LEDGER["hrpo_detached_latent_bias"], hrpo_gradients.slope
    with monkeypatch.context() as patch:
        patch.setattr(hrpo_gradients, "slope", lambda *arguments: 1.01 * slope(*arguments))
        assert claim.check(Trial()).verdict == OPEN

    whole = hrpo_gradients.stored
    monkeypatch.setattr(
        hrpo_gradients, "stored", lambda world, paths, thought: [paths] * len(whole(world, paths, thought))
    )
    assert broken("hrpo_detached_latent_bias")


# ---------------------------------------------------------------------------------------------------------------------
# Scores at another temperature


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=6), st.integers(1, 6))
def test_the_mean_score_is_what_is_drawn_less_what_is_scored(logits, top_k):
    logits = number(logits)
    p, kept = logits.softmax(0), logits >= logits.topk(min(top_k, len(logits))).values[-1]
    drawn = (2 * logits).masked_fill(~kept, -torch.inf).softmax(0)
    torch.testing.assert_close(hrpo_gradients.logit_bias(logits, min(top_k, len(logits))), drawn - p)
    torch.testing.assert_close(hrpo_gradients.logit_bias(logits), (2 * logits).softmax(0) - p)


def test_scores_of_small_models_by_hand():
    """Of one step the mean score is that of the logits, through the model's own derivative."""
    world = World(3, 1)
    generator = torch.Generator().manual_seed(1)
    own, official, cosine = hrpo_gradients.mean_scores(world, 0.8, generator)
    weights = hrpo_gradients.weights_of(world, hrpo_gradients.hybrid(world, 0.8, torch.Generator().manual_seed(1)))
    total, square = 0.0, 0.0
    for prompt in range(3):
        hidden = naive_hidden(world.model, [world.model.embedding[prompt]], range(1))[-1]
        logits = world.model.embedding @ hidden
        q = (2 * logits).softmax(0).detach()
        scores = [gradients(log_p, weights) for log_p in logits.log_softmax(0)]
        total = total + sum(share * score for share, score in zip(q, scores, strict=True))
        square = square + sum(share * score @ score for share, score in zip(q, scores, strict=True))
    assert own < 1e-12
    assert official == pytest.approx((total.norm() / (3 * square).sqrt()).item(), rel=1e-9)
    assert -1 <= cosine < 1


def test_scores_at_the_sampler_s_temperature_flip_the_verdict(monkeypatch):
    assert "mean score is 0.1333" in hrpo_gradients.sharp()
    with monkeypatch.context() as patch:
        patch.setattr(hrpo_gradients, "mean_scores", lambda *arguments: (0.1, 0.1, 1.0))
        assert LEDGER["hrpo_scores_at_another_temperature"].check(Trial()).verdict == OPEN
    monkeypatch.setattr(
        hrpo_gradients, "Gated", lambda *fixed, score_temperature=None, **others: Gated(*fixed, **others)
    )
    assert broken("hrpo_scores_at_another_temperature")
