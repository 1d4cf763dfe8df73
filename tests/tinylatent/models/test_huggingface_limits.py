"""What a Hugging Face model would get wrong in silence is refused, and what it may leave out is left out.

Sliding windows and rows that wait, frequencies that depend on the length, rows of the table that no token owns, tied
embeddings that came apart, half precision, forwards without a cache, and blocks that are computed again.
"""

import pytest
import torch
from families import FAMILIES, HEADS, MASK, PROMPT, VOCABULARY, WINDOWS, near, same, small
from naive import score

from tinylatent.core.seeds import Streams
from tinylatent.engine.force import force, replay
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import Dirichlet, Hidden, Mixture, MultiToken, Token
from tinylatent.models.huggingface import HFBackbone

ROPE = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 8}
"""A head of width 4 has two frequencies: each is divided by a factor, and by another one beyond eight positions."""


def gradients(scalar, backbone):
    found = torch.autograd.grad(scalar, [*backbone.parameters()], allow_unused=True)
    return torch.cat([x.flatten() for x in found if x is not None])


# ---------------------------------------------------------------------------------------------------------------------
# Windows and rows that wait


@pytest.mark.parametrize("family", sorted(WINDOWS & {*FAMILIES}))
def test_rows_that_wait_over_a_window_are_refused(family):
    """By rollouts and when forced; not where all of a row's slots follow one another, or all fit into the window."""
    said = "a row waited between two slots, and . slots are more than the sliding window of 3 of"
    backbone, uneven = HFBackbone(small(family)), torch.tensor([0, 2, 1])
    plan = (Segment(Hidden(), uneven), Segment(Token(), 2))
    with pytest.raises(ValueError, match=said):
        rollout(backbone, plan, PROMPT, MASK)
    forced = (
        Segment(Token(), uneven, Token().given(PROMPT[:, :2])),
        Segment(Token(), 2, Token().given(PROMPT[:, 2:4])),
    )
    with pytest.raises(ValueError, match=said):
        force(backbone, forced, PROMPT, MASK)
    ends = (Segment(Token(), 2), Segment(Token(), uneven))  # a row that waits at its end reads nothing more
    assert rollout(backbone, ends, PROMPT, MASK).steps == 4
    wide = HFBackbone(small(family, sliding_window=16))
    assert rollout(wide, plan, PROMPT, MASK).steps == 4


# ---------------------------------------------------------------------------------------------------------------------
# Frequencies that depend on the length


def test_frequencies_that_change_with_the_length_are_refused_beyond_the_original_one():
    scheme = {"short_factor": [1.0, 1.0], "long_factor": [3.0, 5.0], "factor": 5.0}
    model = small("Llama", rope_parameters=ROPE | scheme)
    backbone, plan = HFBackbone(model), (Segment(Token(), 4),)
    found = rollout(backbone, plan, PROMPT)
    again = replay(backbone, found)
    same(found.logits_BTV, again.logits_BTV)
    with pytest.raises(ValueError, match=r"position 8, but the model has 8 positions.* kind longrope change with"):
        rollout(backbone, (Segment(Token(), 5),), PROMPT)
    table = backbone.table
    ids = torch.arange(9)[None]
    long = model.model(inputs_embeds=table.rows(ids)).last_hidden_state[:, :8]
    short = model.model(inputs_embeds=table.rows(ids[:, :8])).last_hidden_state
    assert (long - short).abs().max() > 1e-3, "which is why: all slots are read differently once there is a ninth"


# ---------------------------------------------------------------------------------------------------------------------
# Rows that no token owns


@pytest.mark.parametrize("family", ["Llama", "Gemma3"])
@pytest.mark.parametrize(
    "thought", [Token(1.0), Mixture(), MultiToken(3), Dirichlet(2.0)], ids=lambda x: type(x).__name__
)
def test_rows_that_no_token_owns_are_never_read_or_written(family, thought):
    """What stands in them changes nothing, and they get no gradient."""
    model, tokens = small(family), VOCABULARY - 4
    backbone, plan = HFBackbone(model, tokens), (Segment(thought, 2), Segment(Token(), 1, name="answer"))
    assert len(backbone.table) == tokens

    def run():
        trace = rollout(backbone, plan, PROMPT, streams=Streams(0, torch.arange(3)))
        return trace, replay(backbone, trace)

    first, forced = run()
    assert first.logits_BTV.shape == (3, 3, tokens)
    (score(forced.log_prob_BT) + score(forced.hidden_BTD)).backward()
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert module.weight.grad[:tokens].any()
        assert not module.weight.grad[tokens:].any()
        with torch.no_grad():
            module.weight[tokens:] += 100.0
    second, _ = run()
    assert torch.equal(first.hidden_BTD, second.hidden_BTD)
    with pytest.raises(ValueError, match=f"tokens is 24: expected 2 to {VOCABULARY}, the rows of the model's"):
        HFBackbone(model, 24)


def test_embeddings_that_came_apart_are_refused():
    model = small("Gemma")
    assert HFBackbone(model)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with pytest.raises(ValueError, match="input and output embeddings of GemmaForCausalLM are two tensors, though"):
        HFBackbone(model)


# ---------------------------------------------------------------------------------------------------------------------
# Half precision


@pytest.mark.parametrize("family", [pytest.param(x, marks=[pytest.mark.slow] * (x != "Llama")) for x in FAMILIES])
def test_log_probabilities_of_half_precision_are_those_of_its_hidden_states(family):
    """Float32 for logits, shares, log-probabilities and losses; what the model reads stays in its own precision."""
    model = small(family).bfloat16()
    backbone = HFBackbone(model)
    plan = (Segment(Mixture(), 2), Segment(MultiToken(3), 2), Segment(Token(1.0), 1, name="answer"))
    trace = rollout(backbone, plan, PROMPT, MASK, streams=Streams(0, torch.arange(3)))
    assert trace.hidden_BTD.dtype == trace.inputs_BTD.dtype == torch.bfloat16
    assert trace.logits_BTV.dtype == trace.log_prob_BT.dtype == torch.float32
    alpha = trace.action("alpha")
    torch.testing.assert_close(alpha.sum(-1), torch.ones(3, 2), rtol=0, atol=1e-6)
    logs_BTV = model.lm_head(trace.hidden_BTD)
    logs_BTV = HEADS.get(family, lambda logits: logits)(logs_BTV).float().log_softmax(-1)
    wanted = logs_BTV[:, 2:4].gather(2, trace.action("ids")).sum(-1)
    torch.testing.assert_close(trace.log_prob_BT[:, 2:4], wanted, rtol=1e-5, atol=1e-5)
    forced = replay(backbone, trace)
    assert all(x.isfinite().all() for x in (trace.log_prob_BT, forced.log_prob_BT, forced.hidden_BTD.float()))
    assert gradients(forced.log_prob_BT.sum(), backbone).isfinite().all()


# ---------------------------------------------------------------------------------------------------------------------
# Forwards without a cache, and blocks that are computed again


@pytest.mark.parametrize("masked", [False, True])
def test_a_forward_without_a_cache_computes_the_same(masked):
    for family in ("Llama", "Gemma3", "Mistral"):
        backbone, mask = HFBackbone(small(family)), MASK if masked else None
        x_BND = backbone.table.rows(PROMPT)
        kept, cache = backbone.forward(x_BND, mask_BS=mask)
        found, none = backbone.forward(x_BND, mask_BS=mask, keep=False)
        same(found[MASK], kept[MASK])
        assert (cache.size, none.size, len(cache.layers), none.layers) == (5, 5, 2, ())
        _, before = backbone.forward(x_BND[:, :3], mask_BS=None if mask is None else mask[:, :3])
        later, none = backbone.forward(x_BND[:, 3:], before, mask, keep=False)
        same(later[MASK[:, 3:]], kept[:, 3:][MASK[:, 3:]])
        assert none.layers == ()


@pytest.mark.parametrize("family", ["Llama", "Gemma3"])
def test_a_position_that_comes_twice_begins_no_new_sequence(family):
    """Slots without a place of their own repeat that before; transformers would cut the row there."""
    backbone, positions = HFBackbone(small(family)), torch.tensor([[0, 1, 2, 2, 3]])
    x_BND = backbone.table.rows(PROMPT)
    same(
        backbone.forward(x_BND, positions_BT=positions, keep=False)[0],
        backbone.forward(x_BND, positions_BT=positions)[0],
    )


@pytest.mark.parametrize("family", ["Llama", pytest.param("Gemma3", marks=pytest.mark.slow)])
def test_blocks_are_computed_again_without_dropout(family):
    """Each block runs twice, and values and gradients are what they were; rollouts keep their cache all the same."""
    model = small(family)
    backbone = HFBackbone(model)
    plan = (Segment(Mixture(), 2), Segment(Token(), 2))
    trace = rollout(backbone, plan, PROMPT, MASK)
    plain = replay(backbone, trace)
    wanted = gradients(score(plain.logits_BTV), backbone)
    model.activation_checkpointing_enable()
    HFBackbone(model).forward(backbone.table.rows(PROMPT), keep=False)  # which looks whether that is right
    backbone.train()
    calls = []
    for block in model.model.layers:
        block.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    again = replay(backbone, trace)
    same(again.logits_BTV, plain.logits_BTV)
    first = len(calls)
    same(gradients(score(again.logits_BTV), backbone), wanted)
    assert len(calls) == first + 2
    same(rollout(backbone, plan, PROMPT, MASK).logits_BTV, trace.logits_BTV)
    assert not any(module.training for module in model.modules())


def test_blocks_that_drop_something_themselves_are_not_computed_again():
    model = small("Llama")

    def forward(self, hidden, **options):
        dropped = torch.nn.functional.dropout(hidden, 0.5, self.training)
        return type(self).mro()[0].original(self, dropped, **options)

    kind = type(model.model.layers[0])
    drops = type("Drops", (kind,), {"original": kind.forward, "forward": forward})
    for block in model.model.layers:
        block.__class__ = drops
    model.activation_checkpointing_enable()
    backbone = HFBackbone(model)
    x_BND = backbone.table.rows(PROMPT)
    for _ in range(2):
        with pytest.raises(ValueError, match="LlamaForCausalLM computes something else with activation checkpointing"):
            backbone.forward(x_BND, keep=False)
    model.activation_checkpointing_disable()
    near(backbone.forward(x_BND, keep=False)[0], backbone.forward(x_BND)[0])
