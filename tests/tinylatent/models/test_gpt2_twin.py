"""Our decoder, its weights copied into a GPT-2, is the same function: rollouts, their gradients, edits, methods."""

from dataclasses import replace

import pytest
import torch
from families import MASK, POSITIONS, PROMPT, VOCABULARY, WIDTH, same, spread
from naive import score
from tinylatent_tasks import MNNS

from tinylatent.core.seeds import Streams
from tinylatent.engine.force import replay
from tinylatent.engine.plan import Repeat, Segment
from tinylatent.engine.rollout import resume, rollout
from tinylatent.engine.thoughts import Hidden, Mixture, Pause, Token
from tinylatent.lenses.residuals import record_trace
from tinylatent.methods import METHODS
from tinylatent.models.backbone import SITES
from tinylatent.models.blocks import Block, Head, Heads, Norm
from tinylatent.models.decoder import Decoder, ModelConfig
from tinylatent.models.huggingface import HFBackbone, as_gpt2
from tinylatent.objectives.examples import Targets
from tinylatent.objectives.method import TrainState
from tinylatent.objectives.speakers import Symbols


@pytest.fixture
def ours():
    return spread(Decoder.fresh(VOCABULARY, POSITIONS, ModelConfig(WIDTH, 2, 4)).double())


@pytest.fixture
def theirs(ours):
    return HFBackbone(as_gpt2(ours))


def test_logits_agree(ours, theirs):
    hidden_BND, _ = ours.forward(ours.table.rows(PROMPT))
    same(theirs.model(input_ids=PROMPT).logits, ours.readout(hidden_BND))
    same(theirs.forward(theirs.table.rows(PROMPT))[0], hidden_BND)
    same(theirs.readout(hidden_BND), ours.readout(hidden_BND))


def test_the_copy_has_no_biases_shares_nothing_and_leaves_the_global_generator_alone(ours):
    before = torch.get_rng_state()
    copy = as_gpt2(ours)
    assert torch.equal(torch.get_rng_state(), before)
    assert copy.lm_head.weight is copy.transformer.wte.weight
    biases = [parameter for name, parameter in copy.named_parameters() if name.endswith("bias")]
    assert len(biases) == 13
    assert not any(bias.any() for bias in biases)
    ours.embedding.data.add_(1)
    same(copy.lm_head.weight + 1, ours.embedding)


@pytest.mark.parametrize(
    "kind",
    [
        {"norm": "post"},
        {"norm": "after"},
        {"norm": "protected"},
        {"norm": "none"},
        {"mlp": "relu"},
        {"mlp": "swiglu"},
        {"experts": 2},
        {"loops": 2},
    ],
)
def test_other_blocks_than_those_of_gpt2_cannot_be_copied(kind):
    with pytest.raises(ValueError, match="only a decoder with the blocks of GPT-2 can be copied: expected norm 'pre'"):
        as_gpt2(Decoder.fresh(VOCABULARY, POSITIONS, ModelConfig(WIDTH, 2, 4, **kind)))


def test_what_is_made_by_hand_cannot_be_copied():
    head = Head(torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(4, 4))
    for blocks in ([], [Block(Heads([head]), None)]):
        with pytest.raises(ValueError, match="only a decoder with the blocks of GPT-2"):
            as_gpt2(Decoder(torch.zeros(3, 4), torch.zeros(5, 4), blocks, Norm(4)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_explicit_positions_agree_in_one_forward_and_over_a_cache(ours, theirs, masked, rows):
    """Positions jump and run backwards; one row of them may serve all rows of the batch."""
    positions = torch.stack([torch.tensor([3, 4, 0, 1, 30]).roll(row) for row in range(rows)])
    mask = MASK if masked else None
    x_BND = ours.table.rows(PROMPT)
    wanted, _ = ours.forward(x_BND, mask_BS=mask, positions_BT=positions.expand(3, -1))
    found, _ = theirs.forward(x_BND, mask_BS=mask, positions_BT=positions)
    first, cache = theirs.forward(x_BND[:, :2], None, None if mask is None else mask[:, :2], positions[:, :2])
    second, _ = theirs.forward(x_BND[:, 2:], cache, mask, positions[:, 2:])
    same(found[MASK], wanted[MASK])
    same(torch.cat([first, second], 1)[MASK], wanted[MASK])


def test_default_positions_count_unmasked_slots(ours, theirs):
    x_BND = ours.table.rows(PROMPT)
    same(theirs.forward(x_BND, mask_BS=MASK)[0][MASK], ours.forward(x_BND, mask_BS=MASK)[0][MASK])
    _, cache = theirs.forward(x_BND)
    _, cache_ours = ours.forward(x_BND)
    same(theirs.forward(x_BND[:, :3], cache)[0], ours.forward(x_BND[:, :3], cache_ours)[0])


def test_operations_are_those_of_the_same_decoder(ours, theirs):
    for new, past in ((1, 0), (5, 0), (3, 7)):
        assert theirs.flops(new, past) == ours.flops(new, past) == theirs.flops(new, past, read=1)


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts

PAUSE = Pause(WIDTH).double()
EVEN = tuple(range(0, VOCABULARY, 2))
PLANS = {
    "mixture": (Segment(Mixture(), 3), Segment(Token(), 2)),
    "hidden": (Segment(Hidden(), 3), Segment(Token(), 2)),
    "greedy": (Segment(Token(), 4),),
    "sampled": (Segment(Token(1.0), 4),),
    "pause": (Segment(PAUSE, 2), Segment(Token(), 2)),
    "all": (Segment(PAUSE, 1), Segment(Hidden(), 2), Segment(Mixture(), 1), Segment(Token(1.0), 2)),
    "uneven": (Segment(Hidden(), torch.tensor([0, 3, 1])), Segment(Mixture(), 1), Segment(Token(), 2)),
    "stopping": (Segment(Token(1.0, stop_ids=EVEN), 4), Segment(Mixture(), 1), Segment(Token(), 1)),
    "repeated": (Repeat((Segment(Hidden(), 1),), lambda state: state.logits[:, 0] > 0, 3), Segment(Token(), 2)),
}  # fmt: skip
ALL = "offset, padded, groups"
CALLS = {
    "whole": {},
    "padded": {"mask_BN": MASK},
    "groups": {"mask_BN": MASK, "group": 3},
    "offset": {"offset_B": torch.tensor([0, 9, 4])},
    ALL: {"mask_BN": MASK, "offset_B": torch.tensor([7, 0, 20]), "group": 2},
}


def think(model, plan, call, **options):
    """A differentiable rollout; sampling thoughts get the same streams whichever model thinks."""
    streams = Streams(3, torch.arange(len(PROMPT) * call.get("group", 1)))
    return rollout(model, PLANS[plan], PROMPT, streams=streams, grad=True, **call, **options)


def assert_same_trace(found, wanted):
    for name in ("hidden_BTD", "logits_BTV", "inputs_BTD", "log_prob_BT"):
        same(getattr(found, name), getattr(wanted, name))
    assert torch.equal(found.length_B, wanted.length_B)
    assert torch.equal(found.action("id"), wanted.action("id"))


def assert_same_gradients(found, wanted, ours, gpt2):
    """Of all weights, the input embedding first among them, and of the constant that pauses."""
    pairs = [(ours.embedding, gpt2.wte), (ours.pos_emb, gpt2.wpe), (ours.norm.weight, gpt2.ln_f)]
    linear = []
    for a, b in zip(ours.blocks, gpt2.h, strict=True):
        pairs += [(a.attn_norm.weight, b.ln_1), (a.mlp_norm.weight, b.ln_2)]
        linear += [(a.attention.qkv_proj, b.attn.c_attn), (a.attention.out_proj, b.attn.c_proj)]
        linear += [(a.mlp.up_proj, b.mlp.c_fc), (a.mlp.down_proj, b.mlp.c_proj)]

    def gradients(trace, weights):
        loss = score(trace.logits_BTV) + trace.log_prob_BT.sum()
        weights = [*weights, PAUSE.constant_D]
        return torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True)

    mine = gradients(wanted, [a for a, _ in pairs + linear])
    his = gradients(found, [b.weight for _, b in pairs + linear])
    for number, (a, b) in enumerate(zip(mine, his, strict=True)):
        same(b.T if len(pairs) <= number < len(pairs + linear) else b, a)
    assert mine[0].any()


@pytest.mark.parametrize("call", [pytest.param(call, marks=[pytest.mark.slow] * (call != ALL)) for call in CALLS])
@pytest.mark.parametrize("plan", PLANS)
def test_rollouts_agree_in_values_and_gradients(ours, theirs, plan, call):
    wanted, found = think(ours, plan, CALLS[call]), think(theirs, plan, CALLS[call])
    assert_same_trace(found, wanted)
    assert_same_gradients(found, wanted, ours, theirs.model.transformer)


@pytest.mark.parametrize("call", ["whole", ALL])
def test_continuing_twice_agrees(ours, theirs, call):
    wanted, found = think(ours, "hidden", CALLS[call]), think(theirs, "hidden", CALLS[call])
    for plan in ("mixture", "pause", "mixture"):
        again, again_ours = (
            resume(t, PLANS[plan], backbone=m, grad=True) for m, t in ((theirs, found), (ours, wanted))
        )
        assert_same_trace(again, again_ours)
        assert_same_gradients(again, again_ours, ours, theirs.model.transformer)


@pytest.mark.parametrize("plan", ["uneven", "stopping"])
def test_replay_agrees(ours, theirs, plan):
    wanted, found = (replay(model, think(model, plan, CALLS["groups"])) for model in (ours, theirs))
    assert_same_trace(found, wanted)
    assert_same_gradients(found, wanted, ours, theirs.model.transformer)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_thinks_the_same_on_a_wrapped_model(name):
    task, method = MNNS(digits=3, high=5), METHODS[name]()
    examples = method.supervise(Symbols(task, task.problems(6, seed=0)))
    examples = replace(examples, frontier=Targets(len(task.vocabulary), dense_BTV=examples.frontier.dense_BTV.double()))
    vocabulary, positions = len(task.vocabulary) + len(method.extra_tokens), task.positions + method.extra_steps
    backbone = spread(Decoder.fresh(vocabulary, positions, ModelConfig(16, 2, 2)).double())
    losses, gradients, runs = [], [], []
    for each in (backbone, HFBackbone(as_gpt2(backbone))):
        model, state = method.model(each, torch.Generator().manual_seed(1)).double(), TrainState(0, 10, 0)
        method.enter(model, 0, examples, state)
        loss = method.loss(model, method.collect(model, examples, state), state).value
        losses.append(loss)
        gradients.append(torch.autograd.grad(loss, each.table.weight)[0])
        runs.append(method.solve(model, examples, Streams(0, torch.arange(6))))
    same(*losses)
    same(*gradients)
    same(*(run.trace.logits_BTV for run in runs))
    assert torch.equal(*(run.answer_BA for run in runs))


# ---------------------------------------------------------------------------------------------------------------------
# Edits


@pytest.mark.parametrize("site", SITES)
def test_edits_see_and_change_the_same_values(ours, theirs, site):
    """At every step of a rollout, in the same order; one site is changed, all are recorded."""
    direction_D = torch.linspace(-1, 2, WIDTH, dtype=torch.float64)

    def recorder(seen):
        def edit(layer, where, x_BTD, slots):
            seen.append((layer, where, slots, x_BTD))
            return x_BTD * (1 + layer) + direction_D if where == site else x_BTD

        return edit

    seen_ours, seen = [], []
    wanted = think(ours, "all", {}, edit=recorder(seen_ours))
    found = think(theirs, "all", {}, edit=recorder(seen))
    assert_same_trace(found, wanted)
    assert_same_gradients(found, wanted, ours, theirs.model.transformer)
    seen = seen[-len(seen_ours) :]
    assert [entry[:3] for entry in seen] == [entry[:3] for entry in seen_ours]
    for (*_, x), (*_, x_ours) in zip(seen, seen_ours, strict=True):
        same(x, x_ours)
    assert not torch.allclose(found.logits_BTV, think(theirs, "all", {}).logits_BTV)  # and the hooks are gone


def test_residuals_are_recorded_the_same(ours, theirs):
    """Over a prompt and steps, rows forking in between."""
    wanted, found = (record_trace(think(m, "all", {"group": 2})) for m in (ours, theirs))
    for name in ("stream", "attention", "mlp", "mask_BS", "positions_BS"):
        same(getattr(found, name), getattr(wanted, name))
    assert found.gap() < 1e-14


def test_an_edit_that_fails_leaves_no_hook_behind(theirs):
    x_BND = theirs.table.rows(PROMPT)
    theirs.forward(x_BND, edit=lambda layer, site, x, _: x)

    def fail(layer, site, x, slots):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        theirs.forward(x_BND, edit=fail)
    theirs.forward(x_BND)
