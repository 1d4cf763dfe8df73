"""Outlier features by their definitions; the sheet's invariants (outlier_features.md, section 8) 1 to 7."""

import math

import pytest
import torch
from fakes import random
from hypothesis import given
from hypothesis import strategies as st

from tinylatent.lenses.outliers import (
    Outliers,
    budget,
    centred,
    input_correlation,
    kurtosis,
    max_median,
    moments,
    stream_outliers,
)
from tinylatent.lenses.residuals import record_tokens

sizes = st.integers(2, 9)
seeds = st.integers(0, 10**6)


def uneven(n, d, seed):
    """Neurons of very unequal energy, tokens that share a part."""
    return (random(n, d, seed=seed) + random(1, d, seed=seed + 1)) * (2 * random(d, seed=seed + 2)).exp()


def orthogonal(n, seed):
    return torch.linalg.qr(random(n, n, seed=seed))[0]


@given(sizes, sizes, seeds)
def test_kurtosis_is_its_definition_and_in_range(n, d, seed):
    """Invariants 1 and 3: from RMS values of neurons, and from the variance of their energies."""
    x = uneven(n, d, seed)
    rms = [math.sqrt(sum(x[a, j].item() ** 2 for a in range(n)) / n) for j in range(d)]
    m2, m4 = (sum(s**k for s in rms) / d for k in (2, 4))
    assert kurtosis(x).item() == pytest.approx(m4 / m2**2)
    assert 1 - 1e-12 <= kurtosis(x).item() <= d * (1 + 1e-12)
    v = torch.tensor(rms, dtype=torch.float64) ** 2
    assert kurtosis(x).item() == pytest.approx(1 + (v / v.mean()).var(correction=0).item())


@given(sizes, sizes, seeds)
def test_what_leaves_kurtosis_alone(n, d, seed):
    """Invariant 2: a scale, an order, a mixing of tokens, a second copy of every token."""
    x, wanted = uneven(n, d, seed), kurtosis(uneven(n, d, seed)).item()
    order = torch.randperm(d, generator=torch.Generator().manual_seed(seed))
    for same in (7 * x, x.flip(0), x[:, order], orthogonal(n, seed) @ x, torch.cat([x, x])):
        assert kurtosis(same).item() == pytest.approx(wanted)


def test_kurtosis_at_its_ends():
    """One energy everywhere, all of it in one neuron, in k equal ones; a common offset hides what centring shows."""
    signs = torch.tensor([[1.0, -1.0, 1.0, 1.0], [-1.0, 1.0, 1.0, -1.0]])
    assert kurtosis(signs) == 1
    assert kurtosis(signs * torch.tensor([0.0, 1.0, 0.0, 0.0])) == 4
    assert kurtosis(signs * torch.tensor([2.0, 2.0, 0.0, 0.0])) == 2
    x = uneven(50, 6, 1)
    assert kurtosis(x + 1000).item() == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(centred(x + 1000), centred(x), rtol=0, atol=1e-9)


def test_normal_entries_have_kurtosis_one_and_two_over_n():
    """Invariant 7, within four standard errors over 40 matrices: a false alarm in 16,000 seeds."""
    values = torch.stack([kurtosis(random(100, 400, seed=seed)) for seed in range(40)])
    assert abs(values.mean().item() - 1.02) < 4 * values.std().item() / 40**0.5 + 1e-4


@given(sizes, sizes, seeds)
def test_the_budget_adds_up(n, d, seed):
    """Invariant 4: the trace identity, each part by its definition."""
    x = uneven(n, d, seed)
    found, x = budget(x), x / x.square().mean().sqrt()
    tokens, neurons = x @ x.T, x.T @ x
    whole = n * n * d
    assert found.norms == pytest.approx(sum(tokens[a, a].item() ** 2 for a in range(n)) / whole)
    assert found.inputs == pytest.approx(
        sum(tokens[a, b].item() ** 2 for a in range(n) for b in range(n) if a != b) / whole
    )
    assert found.neurons == pytest.approx(
        sum(neurons[i, j].item() ** 2 for i in range(d) for j in range(d) if i != j) / whole
    )
    assert found.kurtosis == pytest.approx(kurtosis(x).item(), rel=1e-9, abs=1e-9)


@given(sizes, sizes, seeds)
def test_input_correlation_is_its_definition_and_bounded(n, d, seed):
    x = uneven(n, d, seed)
    unit = x / x.square().mean().sqrt()
    pairs = [(unit[a] @ unit[b]).item() / d for a in range(n) for b in range(n) if a != b]
    assert input_correlation(x) == pytest.approx(sum(pairs) / len(pairs))
    assert input_correlation(x) >= -1 / (n - 1) - 1e-9


def test_input_correlation_at_its_ends():
    assert input_correlation(random(1, 5).expand(4, 5)) == pytest.approx(1)
    assert input_correlation(torch.eye(4)) == pytest.approx(0)


@given(sizes, sizes, seeds)
def test_moments_of_a_change_add_up(n, d, seed):
    """Invariant 5."""
    x, change = uneven(n, d, seed), random(n, d, seed=seed + 9)
    before, after = (torch.stack([(y**2).mean(0).mean(), ((y**2).mean(0) ** 2).mean()]) for y in (x, x + change))
    found = moments(x, change)
    assert sum(found.m2) == pytest.approx((after - before)[0].item())
    assert sum(found.m4) == pytest.approx((after - before)[1].item(), rel=1e-6)
    halved = moments(x, change / 2)
    assert halved.m2 == pytest.approx([y / 2**k for k, y in enumerate(found.m2, 1)])
    assert halved.m4 == pytest.approx([y / 2**k for k, y in enumerate(found.m4, 1)])
    assert moments(x, 0 * change).m4 == (0, 0, 0, 0)


@given(sizes, sizes, seeds)
def test_max_median_is_its_definition(n, d, seed):
    """Invariant 6: 1 at least, whatever the scale."""
    x = uneven(n, d, seed)
    for row, ratio in zip(x.tolist(), max_median(x).tolist(), strict=True):
        entries = sorted(map(abs, row))
        middle = entries[d // 2] if d % 2 else (entries[d // 2 - 1] + entries[d // 2]) / 2
        assert ratio == pytest.approx(entries[-1] / middle)
        assert ratio >= 1
    torch.testing.assert_close(max_median(-3 * x), max_median(x))


def test_a_median_of_zero_is_no_number():
    x = torch.tensor([[0.0, 0.0, 3.0], [1.0, -1.0, 1.0], [2.0, 1.0, -4.0]])
    assert max_median(x)[0].isnan()
    assert max_median(x)[1:].tolist() == [1, 2]
    stats = Outliers().add(x)
    assert (stats.max_median(), stats.unrated, stats.tokens) == (1.5, 1, 3)
    assert math.isnan(Outliers().add(x[:1]).max_median())


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), sizes, seeds, st.booleans())
def test_batches_add_up_to_the_whole(batches, d, seed, centre):
    x, stats = uneven(sum(batches), d, seed), Outliers(centre)
    for part in x.split(batches):
        assert stats.add(part) is stats
    whole = centred(x) if centre else x
    assert stats.kurtosis() == pytest.approx(kurtosis(whole).item())
    assert stats.max_median() == pytest.approx(max_median(whole).nanmean().item())
    assert stats.share() == pytest.approx((kurtosis(whole).item() - 1) / (d - 1))
    assert (stats.tokens, stats.neurons) == (sum(batches), d)
    assert stats.largest == pytest.approx(whole.abs().max().item())


def test_what_the_authors_code_logs():
    """The unbiased variance of relative energies after centring: d / (d - 1) times (Kurt - 1)."""
    x, stats = uneven(30, 5, 4), Outliers(centre=True)
    v = centred(x).square().mean(0)
    logged = (v / v.mean()).var(correction=1).item()
    assert 5 / 4 * (stats.add(x).kurtosis() - 1) == pytest.approx(logged)


def test_half_precision_is_summed_in_double():
    x = torch.full((20_000, 3), 1.0, dtype=torch.bfloat16)
    assert Outliers().add(x).kurtosis() == 1


def test_the_stream_is_measured_without_padding_and_first_tokens(tiny):
    ids = torch.tensor([[0, 3, 4, 5], [6, 2, 1, 4]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
    record = record_tokens(tiny(), ids, mask)
    found = stream_outliers([record, record])
    assert [stats.tokens for stats in found] == [10, 10, 10]
    for layer, stats in enumerate(found):
        kept = torch.cat([record.stream[layer, 0, 2:], record.stream[layer, 1, 1:]])
        assert stats.kurtosis() == pytest.approx(kurtosis(kept).item())
    assert stream_outliers([record], keep_first=0)[0].tokens == 7


def test_what_cannot_be_measured_is_told():
    with pytest.raises(ValueError, match="3 neurons after 2: measure each site by itself"):
        Outliers().add(torch.ones(1, 2)).add(torch.ones(1, 3))
    with pytest.raises(ValueError, match="no tokens were added"):
        Outliers().kurtosis()
