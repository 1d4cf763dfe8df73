"""Integrated gradients: completeness, a linear function, and slopes by finite differences; invariant 8 of the sheet."""

import pytest
import torch
from families import LAYERED, ROUGHLY, layered

from tinylatent.lenses.attribution import integrated_gradients
from tinylatent.lenses.residuals import record_tokens

IDS = torch.tensor([[0, 0, 3, 4, 5], [6, 2, 1, 4, 2]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
COUNTED = torch.tensor([[0, 0, 0, 1, 0], [0, 0, 1, 1, 0]], dtype=torch.bool)
NEXT = torch.tensor([[0, 0, 0, 5, 0], [0, 0, 4, 2, 0]])


KINDS = {
    **{norm: {"norm": norm} for norm in ("pre", "post", "after", "protected", "none")}, "loops": {"loops": 2},
    "experts": {"experts": 2},
}  # fmt: skip


def close(found, wanted):
    rough = found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=2e-3 if rough else 1e-8, atol=1e-4 if rough else 1e-10)


@pytest.fixture(scope="module", params=[*KINDS, *LAYERED, *ROUGHLY])
def known(request, tiny):
    ours = request.param in KINDS
    return record_tokens(tiny(**KINDS[request.param]) if ours else layered(request.param), IDS, MASK)


@pytest.mark.parametrize("target", ["probability", "log_probability", "logit"])
def test_attributions_add_up_to_the_change(known, target):
    """From the mean of a row's own residuals to the residuals, whatever is summed over the answer."""
    for layer in range(known.depth + 1):
        found = integrated_gradients(known, layer, COUNTED, NEXT, target, tolerance=0.05)
        jumps = "Experts" in str(getattr(known.model, "blocks", ""))  # a router's choice: no slope tells of it
        assert found.refined_B.all() or jumps
        stream, live = known.stream[layer], MASK[..., None]
        base = ((stream * live).sum(1, keepdim=True) / live.sum(1, keepdim=True)).expand_as(stream)
        wanted = []
        for x in (stream, base):
            logits = known.logits(known.on(layer, x))
            read = {"logit": logits, "probability": logits.softmax(-1), "log_probability": logits.log_softmax(-1)}
            wanted.append((read[target].gather(2, NEXT[..., None])[..., 0] * COUNTED).sum(1))
        close(found.change_B, wanted[0] - wanted[1])
        close(found.error_B, found.attribution_BS.sum(1) - found.change_B)
        small_B = found.error_B.abs() <= 0.05 * found.change_B.abs().clamp(min=0.01)
        assert torch.equal(found.refined_B, small_B)


def test_slots_that_cannot_matter_get_nothing(known):
    """After the last prediction, under the mask and, after the last layer, wherever nothing is predicted."""
    for layer in range(known.depth + 1):
        found = integrated_gradients(known, layer, COUNTED, NEXT).attribution_BS
        assert not found[~MASK].any()
        assert found[:, 4].abs().max() < 1e-12
        assert found.abs().max() > 1e-6
    assert found[~COUNTED].abs().max() < 1e-12


def test_refining_makes_the_error_of_a_midpoint_rule_nine_times_smaller(tiny):
    """Each time the nodes are tripled, where the function is smooth."""
    known, errors = record_tokens(tiny(spread=0.1), IDS, MASK), []
    for most in (9, 27, 81):
        found = integrated_gradients(known, 1, COUNTED, NEXT, tolerance=1e-12, most=most)
        assert found.nodes_B.tolist() == [most, most]
        assert not found.refined_B.any()
        errors.append(found.error_B.abs())
    assert (errors[0] / errors[1] > 8).all()
    assert (errors[0] / errors[1] < 10).all()
    assert (errors[1] / errors[2] > 8).all()
    assert (errors[1] / errors[2] < 10).all()


def test_few_nodes_find_what_an_even_rule_of_many_finds(tiny):
    """Where weights are wide and the answer jumps up in a short piece of the path."""
    known, counted_1S, next_1S = record_tokens(tiny(spread=2.0), IDS[1:]), COUNTED[1:], NEXT[1:]
    stream, even = known.stream[0], 0.0
    base = stream.mean(1, keepdim=True)
    for node in range(3000):
        x = (base + (node + 0.5) / 3000 * (stream - base)).detach().requires_grad_()
        likely = known.logits(known.on(0, x)).softmax(-1).gather(2, next_1S[..., None])[..., 0]
        (slope,) = torch.autograd.grad((likely * counted_1S).sum(), x)
        even = even + (slope * (stream - base)).sum(-1).detach() / 3000
    found = integrated_gradients(known, 0, counted_1S, next_1S, tolerance=1e-3)
    assert found.nodes_B[0] < 729
    torch.testing.assert_close(found.attribution_BS, even, rtol=0.01, atol=1e-3 * even.abs().max().item())
    assert even.abs().max() > 0.05


def test_a_linear_function_is_exact(tiny):
    """Blocks that add nothing, and no norm: logits are linear in the residual, attributions parts of a dot product."""
    linear = tiny(norm="none")
    with torch.no_grad():
        for name, parameter in linear.named_parameters():
            if name.startswith("blocks"):
                parameter.zero_()
    known = record_tokens(linear, IDS, MASK)
    found = integrated_gradients(known, 0, COUNTED, NEXT, "logit", tolerance=1e-12)
    assert found.nodes_B.tolist() == [9, 9]
    stream = known.stream[0]
    base = (stream * MASK[..., None]).sum(1, keepdim=True) / MASK.sum(1)[:, None, None]
    wanted = ((stream - base) * linear.embedding[NEXT]).sum(-1) * COUNTED
    torch.testing.assert_close(found.attribution_BS, wanted.detach(), rtol=1e-10, atol=1e-12)


def test_other_rows_and_padding_do_not_matter(known):
    """Nor do they for how finely a row is integrated."""
    alone = record_tokens(known.model, IDS[:1, 2:])
    for tolerance, most in ((1e-9, 27), (0.01, 729)):
        both = integrated_gradients(known, 1, COUNTED, NEXT, tolerance=tolerance, most=most)
        one = integrated_gradients(alone, 1, COUNTED[:1, 2:], NEXT[:1, 2:], tolerance=tolerance, most=most)
        close(both.attribution_BS[:1, 2:], one.attribution_BS)
        assert both.nodes_B[0] == one.nodes_B[0]


def test_what_cannot_be_attributed_is_told(tiny):
    known = record_tokens(tiny(), IDS, MASK)
    with pytest.raises(ValueError, match="layer is 3: expected 0 to 2, where 2 is after the last"):
        integrated_gradients(known, 3, COUNTED, NEXT)
    with pytest.raises(ValueError, match="a row has no slot that predicts its answer"):
        integrated_gradients(known, 1, COUNTED & torch.tensor([[True], [False]]), NEXT)


def test_an_unknown_target_is_told(tiny, unchecked):
    with pytest.raises(ValueError, match="target is 'loss': expected one of probability, log_probability, logit"):
        integrated_gradients(record_tokens(tiny(), IDS, MASK), 1, COUNTED, NEXT, "loss")
