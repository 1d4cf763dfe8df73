"""LatentR3's attention and its supervised stage, by the numbered invariants of the method's sheet.

Those of its second stage are in test_latentr3_rl. Float64 to 1e-9 unless said otherwise.
"""

from dataclasses import replace

import losses
import pytest
import torch
from losses import loss_and_gradients, loss_of
from tinylatent_tasks import MNNS, MultiHop, Recommendation
from variants import without_padding

from tinylatent.core.seeds import Streams
from tinylatent.engine.force import replay
from tinylatent.engine.plan import ANSWER, Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thought import Action
from tinylatent.engine.thoughts import GREEDY
from tinylatent.methods.latentr3 import BASE, LATENTS, Attention, LatentR3, PromptAttention, attention_of, rotated
from tinylatent.objectives.method import TrainState

TASKS = [MNNS(3, 1, 4), MultiHop(hops=4, least=2, nodes=5), Recommendation(4, 3, 2, events=4)]
EACH_TASK = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
PADDED = TASKS[2]
"""Prompts of different lengths, padded on the left."""
STATE = TrainState(3, 10, 5)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def made(method, task, rows=5):
    """A model whose attention is spread over several slots, with the examples of some problems."""
    return losses.spread(losses.model_of(method, task)), losses.examples_of(method, task, task.problems(rows, seed=1))


def turned_by_hand(x_D, position):
    """The rotation of one vector, coordinate by coordinate."""
    half, out_D = len(x_D) // 2, x_D.clone()
    for i in range(half):
        angle = torch.tensor(position / BASE ** (i / half), dtype=x_D.dtype)
        out_D[i] = x_D[i] * angle.cos() - x_D[i + half] * angle.sin()
        out_D[i + half] = x_D[i + half] * angle.cos() + x_D[i] * angle.sin()
    return out_D


def attended_by_hand(part, hidden_D, place, prompt_ND):
    """r of one row without padding: a query at a place, keys and values at 0, 1, 2 and so on."""
    query_D = turned_by_hand(part.query(hidden_D), place)
    scores = [query_D @ turned_by_hand(part.key(each), n) / len(query_D) ** 0.5 for n, each in enumerate(prompt_ND)]
    share_N = torch.stack(scores).softmax(0)
    return sum(share * part.value(each) for share, each in zip(share_N, prompt_ND, strict=True))


def hull_weights(values_ND, vector_D):
    """The weights that make a vector of rows, and what they miss; the rows are linearly independent."""
    weight_N = torch.linalg.lstsq(values_ND.T, vector_D[:, None]).solution[:, 0]
    return weight_N, (weight_N @ values_ND - vector_D).abs().max().item()


# ---------------------------------------------------------------------------------------------------------------------
# The attention


def test_invariant_4_a_latent_is_a_convex_combination_of_the_prompt_s_values():
    """Every latent, also those behind another: keys and values are the prompt's alone."""
    method = LatentR3(latents=3)
    model, examples = made(method, TASKS[0])
    trace = method.solve(model, examples).trace
    values_BND = attention_of(model).value(trace.history().prompt[0])
    for values_ND, vectors_LD in zip(values_BND, trace.action("vector"), strict=True):
        for vector_D in vectors_LD:
            weight_N, missed = hull_weights(values_ND, vector_D)
            assert missed < 1e-9
            assert weight_N.min() >= -1e-9
            assert weight_N.sum().item() == pytest.approx(1, abs=1e-9)


def test_invariant_4_a_prompt_of_one_token_gives_its_value():
    method = LatentR3()
    model, examples = made(method, TASKS[0])
    single = replace(examples, prompt_BN=examples.prompt_BN[:, -1:])
    trace = method.solve(model, single).trace
    value_BD = attention_of(model).value(trace.history().prompt[0][:, 0])
    torch.testing.assert_close(trace.action("vector")[:, 0], value_BD, **CLOSE)


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_invariant_4_padding_on_either_side_changes_nothing(left):
    """Of the attention itself; the engine takes padding on the left alone."""
    generator = torch.Generator().manual_seed(0)
    part = PromptAttention(8, generator).double()
    prompt_PND, hidden_BD = (torch.randn(*shape, 8, generator=generator).double() for shape in ((2, 3), (4,)))
    place_B = torch.tensor([2, 2, 4, 3])
    plain_BD = part(hidden_BD, place_B, prompt_PND, torch.ones(2, 3, dtype=torch.bool))
    junk_P2D = 100 * torch.randn(2, 2, 8, generator=generator).double()
    wide_PND = torch.cat([junk_P2D, prompt_PND] if left else [prompt_PND, junk_P2D], 1)
    real_N = torch.tensor([False] * 2 + [True] * 3 if left else [True] * 3 + [False] * 2)
    torch.testing.assert_close(part(hidden_BD, place_B, wide_PND, real_N.expand(2, -1)), plain_BD, **CLOSE)


def test_invariant_4_only_distances_of_positions_count():
    generator = torch.Generator().manual_seed(1)
    a_BD, b_BD = (torch.randn(6, 8, generator=generator).double() for _ in range(2))
    place_B, other_B = torch.arange(6), torch.tensor([3, 1, 4, 1, 5, 9])
    product_B = (rotated(a_BD, place_B) * rotated(b_BD, other_B)).sum(-1)
    moved_B = (rotated(a_BD, place_B + 7) * rotated(b_BD, other_B + 7)).sum(-1)
    torch.testing.assert_close(moved_B, product_B, **CLOSE)
    assert (rotated(a_BD, place_B) - rotated(a_BD, place_B + 1)).abs().max() > 0.1
    for x_D, place, turned_D in zip(a_BD, other_B.tolist(), rotated(a_BD, other_B), strict=True):
        torch.testing.assert_close(turned_D, turned_by_hand(x_D, place), **CLOSE)


def test_invariant_4_what_stands_behind_the_latent_does_not_reach_it():
    """Whatever answer is taught, r is the same, in the loss's own trace."""
    method = LatentR3(latents=2)
    model, examples = made(method, PADDED)
    other = replace(examples, chain_BT=examples.chain_BT.flip(0))
    vectors = [method.forced(model, each).action("vector") for each in (examples, other)]
    assert not torch.equal(examples.answer_BA, other.answer_BA)
    assert torch.equal(*vectors)


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="width 7: expected an even one"):
        PromptAttention(7, torch.Generator())


# ---------------------------------------------------------------------------------------------------------------------
# The two passes of the published code


def two_passes(model, prompt_N, answer_A, latents):
    """Logits of the answer, every pass over the whole sequence anew: no cache, no padding, one row."""
    backbone, part = model.backbone, attention_of(model)
    inputs_SD, N = backbone.table.rows(prompt_N), len(prompt_N)
    for _ in range(latents):
        hidden_SD = backbone.forward(inputs_SD[None])[0][0]
        r_D = attended_by_hand(part, hidden_SD[-1], len(inputs_SD) - 1, hidden_SD[:N])
        inputs_SD = torch.cat([inputs_SD, r_D[None]])
    inputs_SD = torch.cat([inputs_SD, backbone.table.rows(answer_A[:-1])])
    return backbone.readout(backbone.forward(inputs_SD[None])[0][0, -len(answer_A) :])


@EACH_TASK
@pytest.mark.parametrize("latents", [1, 2, 4])
def test_invariant_5_a_cached_rollout_is_the_explicit_two_pass_computation(task, latents):
    """Row by row, the latent being an input of the next pass over everything; gradients too."""
    method = LatentR3(latents=latents)
    model, examples = made(method, task)
    logits_BAV = method.forced(model, examples).logits_BTV[:, -examples.answer_tokens :]
    said = []
    for row, (prompt_N, answer_A) in enumerate(zip(examples.prompt_BN, examples.answer_BA, strict=True)):
        if examples.prompt_mask_BN is not None:
            prompt_N = prompt_N[examples.prompt_mask_BN[row]]
        expected_AV = two_passes(model, prompt_N, answer_A, latents)
        torch.testing.assert_close(logits_BAV[row], expected_AV, **CLOSE)
        said.append(expected_AV.log_softmax(-1).gather(-1, answer_A[:, None]).sum())
    by_hand = loss_and_gradients(model, -torch.stack(said).mean())
    losses.assert_same(loss_and_gradients(model, loss_of(method, model, examples, STATE)), by_hand)


def test_invariant_5_a_row_s_latents_do_not_depend_on_other_rows():
    method = LatentR3(latents=2)
    model, examples = made(method, PADDED)
    assert examples.prompt_mask_BN is not None
    together = method.solve(model, examples).trace.action("vector")
    for number in range(len(examples)):
        alone = without_padding(examples.rows(slice(number, number + 1)))
        vectors = method.solve(model, alone).trace.action("vector")
        torch.testing.assert_close(vectors[0], together[number], **CLOSE)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@EACH_TASK
def test_rollout_logits_are_teacher_forced_logits(task, dtype, close):
    """With groups, left padding and several latents: the actions of a rollout given, and a pass over its inputs."""
    method = LatentR3(latents=2)
    model, examples = made(method, task)
    model = model.to(dtype)
    noisy = Segment(Attention(attention_of(model), 0.5), 2, name=LATENTS)
    given = Segment(GREEDY, examples.answer_tokens, GREEDY.given(examples.answer_BA), ANSWER)
    prompts = examples.prompt_BN, examples.prompt_mask_BN
    trace = rollout(model.backbone, (noisy, given), *prompts, streams=Streams(0, 15), group=3)
    torch.testing.assert_close(replay(model.backbone, trace).logits_BTV, trace.logits_BTV, rtol=close, atol=close)
    inputs_BSD, N = torch.cat(trace.inputs, 1), prompts[0].shape[1]
    hidden_BSD, _ = model.backbone.forward(inputs_BSD, mask_BS=trace.mask_BS[:, :-1])
    logits_BTV = model.backbone.readout(hidden_BSD[:, N - 1 :])
    torch.testing.assert_close(logits_BTV, trace.logits_BTV, rtol=close, atol=close)


def test_invariant_10_padding_does_not_change_log_probabilities():
    """Left padding against none, in float32 to 1e-5; padding on the right is refused."""
    method = LatentR3()
    model, examples = made(method, PADDED)
    model = model.float()
    whole_BA = method.forced(model, examples).log_prob_BT[:, -3:]
    for number in range(len(examples)):
        alone = without_padding(examples.rows(slice(number, number + 1)))
        alone_A = method.forced(model, alone).log_prob_BT[0, -3:]
        torch.testing.assert_close(alone_A, whole_BA[number], rtol=1e-5, atol=1e-5)
    right = replace(examples, prompt_BN=examples.prompt_BN.flip(1), prompt_mask_BN=examples.prompt_mask_BN.flip(1))
    with pytest.raises(ValueError, match="a prompt ends in padding: expected left padding"):
        method.forced(model, right)


# ---------------------------------------------------------------------------------------------------------------------
# What is fed


@pytest.mark.parametrize("latents", [1, 2, 3, 4])
def test_latents_are_made_one_after_another(latents):
    """Each is an input step of its own; a chain without steps before its answer has none."""
    method = LatentR3(latents=latents)
    model, examples = made(method, TASKS[0])
    trace = method.solve(model, examples).trace
    torch.testing.assert_close(trace.inputs_BTD[:, :latents], trace.action("vector"), **CLOSE)
    assert trace.steps == latents + 1
    assert trace.counters.latents == latents * len(examples)
    task = MultiHop(hops=3, least=1, nodes=5)
    model, examples = made(method, task, rows=12)
    length_B = method.solve(model, examples).trace.length_B - 1
    assert length_B.tolist() == [latents * (steps > 0) for steps in examples.num_steps.tolist()]
    assert {*length_B.tolist()} == {0, latents}


@pytest.mark.parametrize("thought", ["attention", "hidden", "constant"])
def test_options_feed_what_they_say(thought):
    method = LatentR3(latents=2, thought=thought)
    model, examples = made(method, TASKS[0])
    trace = method.forced(model, examples)
    vectors_BLD = trace.inputs_BTD[:, :2]
    expected = {
        "attention": lambda: trace.action("vector"),
        "hidden": lambda: trace.hidden_BTD[:, :2],
        "constant": lambda: model.parts["pause"].constant_D.expand(len(examples), 2, -1),
    }[thought]()
    torch.testing.assert_close(vectors_BLD, expected, **CLOSE)
    assert [*model.parts] == {"attention": ["attention"], "hidden": [], "constant": ["pause"]}[thought]
    assert trace.counters.slots == examples.prompt_BN.numel() + 2 * len(examples), "as many slots for all"


@pytest.mark.parametrize("thought", ["attention", "constant"])
@EACH_TASK
def test_the_prompt_s_own_tokens_are_taught_beside_the_answer(task, thought):
    """The loss is that of the answer behind its latents, plus that of a language model of the prompt alone."""
    model, examples = made(LatentR3(2, thought), task)
    found = loss_and_gradients(model, loss_of(LatentR3(2, thought, teach_prompt=True), model, examples, STATE))
    mask_BN = examples.prompt_mask_BN
    prompts = 0.0
    for row, ids_N in enumerate(examples.prompt_BN):
        ids_N = ids_N if mask_BN is None else ids_N[mask_BN[row]]
        hidden, _ = model.backbone.forward(model.backbone.embedding[ids_N[:-1]][None])
        log_prob_TV = (hidden[0] @ model.backbone.embedding.T).log_softmax(-1)
        prompts = prompts - log_prob_TV.gather(1, ids_N[1:, None]).sum() / len(examples)
    expected = loss_and_gradients(model, loss_of(LatentR3(2, thought), model, examples, STATE) + prompts)
    losses.assert_same(found, expected)
    assert LatentR3(teach_prompt=True).forwards == 2 * LatentR3().forwards


@pytest.mark.parametrize("control", ["noise", "shuffled", "zero"])
def test_controls_replace_the_latent(control):
    method = LatentR3()
    model, examples = made(method, TASKS[0])
    streams = Streams(0, len(examples))
    trace = method.solve(model, examples, streams, control=control).trace
    vector_BD, fed_BD = trace.action("vector")[:, 0], trace.inputs_BTD[:, 0]
    if control == "zero":
        assert not fed_BD.any()
    elif control == "shuffled":
        torch.testing.assert_close(fed_BD, vector_BD.roll(1, 0), **CLOSE)
    else:
        torch.testing.assert_close(fed_BD.norm(dim=-1), vector_BD.norm(dim=-1), **CLOSE)
        assert torch.cosine_similarity(fed_BD, vector_BD).abs().max() < 0.95
    plain = method.solve(model, examples).trace.logits_BTV[:, -1]
    assert (trace.logits_BTV[:, -1] - plain).abs().max() > 1e-3


def test_the_log_probability_of_a_noisy_vector_is_its_normal_density():
    """Around r, with a standard deviation relative to r's size; 0 in each group's first place, which has no noise."""
    method = LatentR3(latents=2)
    model, examples = made(method, PADDED)
    part, prompts = attention_of(model), (examples.prompt_BN, examples.prompt_mask_BN)
    for absolute in (False, True):
        plan = (Segment(Attention(part, 0.5, absolute), 2, name=LATENTS),)
        trace = rollout(model.backbone, plan, *prompts, streams=Streams(0, 20), group=4)
        prompt_BND, mask_BN = trace.history().prompt
        for row in range(20):
            for step in range(2):
                real_ND = prompt_BND[row][mask_BN[row]]
                r_D = attended_by_hand(part, trace.hidden_BTD[row, step], len(real_ND) - 1 + step, real_ND)
                vector_D = trace.action("vector")[row, step]
                if row % 4 == 0:
                    torch.testing.assert_close(vector_D, r_D, **CLOSE)
                    assert trace.log_prob_BT[row, step] == trace.sampled_log_prob_BT[row, step] == 0
                    continue
                std = 0.5 if absolute else 0.5 * r_D.square().mean().sqrt()
                density = torch.distributions.Normal(r_D, std).log_prob(vector_D).sum()
                torch.testing.assert_close(trace.log_prob_BT[row, step], density, **CLOSE)
                torch.testing.assert_close(trace.sampled_log_prob_BT[row, step], density, **CLOSE)
        assert trace.action("epsilon").view(5, 4, 2, -1)[:, 1:].std().item() > 0.05


def test_a_renewed_action_keeps_its_noise_and_follows_the_weights():
    """The vector is r of now with the old noise; its density is that of the noise."""
    method = LatentR3()
    model, examples = made(method, TASKS[0])
    part = attention_of(model)
    plan = (Segment(Attention(part, 0.5), 1, name=LATENTS), Segment(GREEDY, 1, name=ANSWER))
    trace = rollout(model.backbone, plan, examples.prompt_BN, streams=Streams(0, 20), group=4)
    before_BD, epsilon_BD = trace.action("vector")[:, 0], trace.action("epsilon")[:, 0]
    with torch.no_grad():
        part.value.bias.add_(1.0)
    old, new = (
        replay(model.backbone, trace, thought=Attention(part, 0.5, renewed=renewed)) for renewed in (False, True)
    )
    torch.testing.assert_close(old.inputs_BTD[:, 0], before_BD, **CLOSE)
    torch.testing.assert_close(new.inputs_BTD[:, 0], before_BD + 1.0, **CLOSE)
    assert (old.log_prob_BT[:, 0] - trace.sampled_log_prob_BT[:, 0]).abs().max() > 0.1
    torch.testing.assert_close(new.log_prob_BT[:, 0], trace.sampled_log_prob_BT[:, 0], **CLOSE)
    quiet = Action({"vector": before_BD[:, None]})
    run = rollout(model.backbone, (Segment(Attention(part), 1, quiet, LATENTS),), trace.prompt_BN)
    assert not run.log_prob_BT.any(), "a given vector without noise is deterministic"
    assert epsilon_BD.abs().max() > 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"latents": 0}, "latents 0: expected 1 to 64"),
        ({"thought": "pause"}, "thought 'pause': expected one of attention, hidden, constant"),
    ],
)
def test_bad_settings_are_refused(fields, said, unchecked):
    with pytest.raises(ValueError, match=said):
        LatentR3(**fields)
