"""CoLaR's claims: by hand, by property, and broken on purpose."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from theory.claims import colar
from theory.claims.ledger import LEDGER, Trial


def test_root_c_by_hand():
    tokens = torch.tensor([[1.0, 2.0], [3.0, -2.0]])
    torch.testing.assert_close(colar.compressed(tokens), torch.tensor([4.0, 0.0]) / 2**0.5)
    assert "variance 1 make a latent of 2" in colar.equal_tokens()


@given(st.integers(1, 6), st.floats(-3, 3))
def test_equal_tokens_grow_by_root_c(c, value):
    latent = colar.compressed(torch.full((c, 1), value, dtype=torch.float64))
    assert latent.item() == pytest.approx(value * c**0.5)


def test_dividing_by_c_flips_the_verdict(monkeypatch):
    monkeypatch.setattr(colar, "compressed", lambda tokens: tokens.mean(-2))
    claim = LEDGER["colar_root_c_keeps_variance"]
    assert claim.check(Trial()).verdict != claim.recorded
