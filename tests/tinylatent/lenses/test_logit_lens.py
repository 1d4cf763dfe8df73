"""The logit lens against its formulas, slot by slot; invariant 4 of the sheet."""

import math

import pytest
import torch
from families import LAYERED, ROUGHLY, layered

from tinylatent.lenses.logit_lens import logit_lens
from tinylatent.lenses.residuals import record_tokens

IDS = torch.tensor([[0, 0, 3, 4], [6, 2, 1, 4]])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)


KINDS = {
    **{norm: {"norm": norm} for norm in ("pre", "post", "after", "protected", "none")}, "loops": {"loops": 2},
    "experts": {"experts": 2},
}  # fmt: skip


@pytest.fixture(scope="module", params=[*KINDS, *LAYERED, *ROUGHLY])
def record(request, tiny):
    known = request.param in KINDS
    return record_tokens(tiny(**KINDS[request.param]) if known else layered(request.param), IDS, MASK)


def near(record):
    """How closely numbers agree: Gemma 2 computes in float32."""
    return 1e-5 if record.stream.dtype == torch.float32 else 1e-9


def test_it_is_its_formulas(record):
    found = logit_lens(record, top=3)
    for row, slot in MASK.nonzero().tolist():
        final = record.logits(record.stream[-1, row, slot][None])[0].softmax(-1).tolist()
        for layer in range(record.depth + 1):
            lens = record.logits(record.stream[layer, row, slot][None])[0].softmax(-1).tolist()
            at = (layer, row, slot)
            pairs = list(zip(lens, final, strict=True))
            assert found.to_final[at].item() == pytest.approx(
                sum(p * math.log(p / q) for p, q in pairs), abs=near(record)
            )
            assert found.from_final[at].item() == pytest.approx(
                sum(q * math.log(q / p) for p, q in pairs), abs=near(record)
            )
            assert found.entropy[at].item() == pytest.approx(-sum(p * math.log(p) for p in lens), rel=1e-5)
            best = [set(sorted(range(len(x)), key=x.__getitem__)[-3:]) for x in (lens, final)]
            assert found.overlap[at].item() == pytest.approx(len(best[0] & best[1]) / 3)


def test_bounds_and_the_last_layer(record):
    found = logit_lens(record)
    for divergence in (found.to_final, found.from_final):
        assert divergence.min() >= -near(record)
        assert divergence[-1].abs().max() < near(record)
        assert divergence[0][MASK].min() > 1e-6
    assert (found.overlap[-1][MASK] == 1).all()
    assert found.overlap.max() <= 1
    for numbers in (found.to_final, found.from_final, found.overlap, found.entropy):
        assert not numbers[:, ~MASK].any()


def test_other_rows_and_padding_do_not_matter(record):
    found = logit_lens(record)
    alone = logit_lens(record_tokens(record.model, IDS[:1, 2:]))
    torch.testing.assert_close(found.to_final[:, :1, 2:], alone.to_final, rtol=100 * near(record), atol=near(record))


def test_more_tokens_than_there_are_is_told(tiny):
    for top in (0, 8):
        with pytest.raises(ValueError, match=f"top is {top}: expected 1 to 7, the tokens of the model"):
            logit_lens(record_tokens(tiny(), IDS), top)
