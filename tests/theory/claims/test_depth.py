"""Claims about depth and outliers: sums and matrices by hand, the model's own readout, broken on purpose."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from tinylatent_theory.claims import depth
from tinylatent_theory.claims.depth import (
    ADDITION,
    DRAWN,
    energy_gap,
    expected_additions,
    expected_energy,
    exponent,
    flattest,
    input_correlation,
    kurtosis,
    rotation,
    stack,
    stream,
)
from verdicts import verdict

from tinylatent.lab.findings import FAILS, HOLDS
from tinylatent.models.blocks import Norm
from tinylatent.models.decoder import ModelConfig


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------------------------------------------------
# The residual stream


@pytest.mark.parametrize("kind", ["independent", "shared", "scaled"])
def test_stream_is_what_the_model_reads_out(kind):
    model, ids_RT = stack(kind, ModelConfig(8, 3, 2), generator()), torch.tensor([[1, 2, 3], [4, 0, 7]])
    residual_SRTD, added_SRTD = stream(model, ids_RT)
    assert residual_SRTD.shape == (7, 2, 3, 8)
    torch.testing.assert_close(residual_SRTD[0] + added_SRTD.sum(0), residual_SRTD[-1])
    hidden_RTD, _ = model.forward(model.table.rows(ids_RT))
    torch.testing.assert_close(model.norm(residual_SRTD[-1]), hidden_RTD)


def test_a_sign_is_that_of_the_weights():
    """Flipping the sign of an addition is flipping that of the projection that makes it."""
    model, ids_RT = stack("independent", ModelConfig(8, 2, 2), generator()), torch.tensor([[1, 2, 3]])
    flipped, _ = stream(model, ids_RT, torch.tensor([[1.0, -1.0, -1.0, 1.0]], dtype=torch.float64))
    with torch.no_grad():
        model.blocks[0].mlp.down_proj.neg_()
        model.blocks[1].attention.out_proj.neg_()
    torch.testing.assert_close(stream(model, ids_RT)[0], flipped)


def test_kinds_of_stacks():
    shared, scaled = (stack(kind, ModelConfig(8, 4, 2), generator()) for kind in ("shared", "scaled"))
    assert torch.equal(shared.blocks[0].mlp.up_proj, shared.blocks[3].mlp.up_proj)
    assert not torch.equal(scaled.blocks[0].mlp.up_proj, scaled.blocks[3].mlp.up_proj)
    assert scaled.blocks[3].mlp_norm.weight.tolist() == [0.5] * 8
    assert shared.blocks[3].mlp_norm.weight.tolist() == [1.0] * 8
    deep = stack("independent", ModelConfig(64, 4, 2), generator())
    assert deep.blocks[2].mlp.down_proj.std().item() == pytest.approx(ADDITION, rel=0.03)
    assert deep.blocks[2].mlp.up_proj.std().item() == pytest.approx(DRAWN, rel=0.03)


@given(st.integers(0, 1000))
def test_squared_norms_add_up_over_all_signs(seed):
    draw = generator(seed)
    assert energy_gap(stack("independent", ModelConfig(4, 2, 2), draw), torch.randint(8, (3,), generator=draw)) < 1e-12


@pytest.mark.parametrize(("kind", "layer"), [("independent", 1), ("independent", 5), ("scaled", 1), ("scaled", 5)])
def test_expected_additions_by_quadrature(kind, layer):
    width, gain = 16, 1 / math.sqrt(layer) if kind == "scaled" else 1.0
    deviation = gain * DRAWN * math.sqrt(width)

    def weighted(z):
        return (z * stats.norm.cdf(z)) ** 2 * stats.norm.pdf(z, scale=deviation)

    mlp = integrate.quad(weighted, -12 * deviation, 12 * deviation)[0]
    value = width * DRAWN**2 * gain**2 * width  # |value|^2 = D qkv^2 |norm|^2
    expected = width * ADDITION**2 * value + width * ADDITION**2 * 4 * width * mlp
    assert expected_additions(width, layer, kind)[-1].item() == pytest.approx(expected, rel=1e-6)


def test_expected_energy_adds_them_to_the_embedding():
    energy = expected_energy(16, 3)
    assert energy[0].item() == pytest.approx(2 * 16 + expected_additions(16, 1)[0].item())
    assert energy.diff().tolist() == pytest.approx([expected_additions(16, 1)[0].item()] * 2)


@given(st.floats(-2, 3), st.integers(2, 50), st.floats(0.1, 10))
def test_exponent_of_a_power(power, layers, factor):
    values_L = factor * torch.arange(1, layers + 1, dtype=torch.float64) ** power
    assert exponent(values_L) == pytest.approx(power, abs=1e-9)


def test_counterexample_by_hand():
    assert "grows from 1.414 to 7.071, 5.000 times; uncorrelated" in depth.one_layer_repeated()
    assert "2.236 times" in depth.one_layer_repeated()


@pytest.mark.slow
def test_another_size_of_additions_flips_the_verdict(monkeypatch):
    monkeypatch.setattr(depth, "expected_additions", lambda *at: 1.2 * expected_additions(*at))
    assert verdict("prenorm_residual_grows_like_sqrt") == FAILS


@pytest.mark.slow
def test_forgetting_the_scale_of_norms_flips_the_verdict(monkeypatch):
    monkeypatch.setattr(depth, "expected_additions", lambda width, layers, _="": expected_additions(width, layers))
    assert verdict("late_layers_turn_the_residual_less") == FAILS


@pytest.mark.slow
def test_a_model_without_norms_flips_the_verdict(monkeypatch):
    monkeypatch.setattr(Norm, "forward", lambda norm, x: x * norm.weight)
    assert verdict("prenorm_residual_grows_like_sqrt") == FAILS


@pytest.mark.slow
def test_independent_layers_only_would_hold(monkeypatch):
    monkeypatch.setattr(depth, "stack", lambda kind, config, draw: stack("independent", config, draw))
    assert verdict("prenorm_residual_grows_like_sqrt") == HOLDS


# ---------------------------------------------------------------------------------------------------------------------
# Outlier features


@pytest.mark.parametrize("equal", [1, 2, 5])
def test_kurtosis_of_some_equal_neurons(equal):
    x_nd = torch.zeros(3, 5, dtype=torch.float64)
    x_nd[:, :equal] = torch.tensor([[1.0], [-2.0], [0.5]])
    assert kurtosis(x_nd).item() == pytest.approx(5 / equal)


@given(st.integers(0, 10_000), st.floats(0.01, 100))
def test_kurtosis_is_one_and_the_variance_of_energies(seed, factor):
    """Whatever the scale, and whatever the order of neurons and tokens."""
    x_nd = depth.activations(generator(seed))
    v_d = (x_nd**2).mean(0)
    expected = 1 + (v_d / v_d.mean()).var(correction=0).item()
    assert kurtosis(factor * x_nd.flip(0, 1)).item() == pytest.approx(expected)


@given(st.integers(0, 10_000))
def test_kurtosis_identity_and_range(seed):
    x_nd = depth.activations(generator(seed))
    x_nd = x_nd / (x_nd**2).mean().sqrt()
    n, d = x_nd.shape
    inputs = sum(float(a @ b) ** 2 for a in x_nd for b in x_nd)
    mixed = sum(float(x_nd[:, i] @ x_nd[:, j]) ** 2 for i in range(d) for j in range(d) if i != j)
    assert n * n * d * kurtosis(x_nd).item() == pytest.approx(inputs - mixed, rel=1e-6)
    assert 1 - 1e-12 <= kurtosis(x_nd).item() <= d + 1e-12


def test_input_correlation_by_hand():
    row_d = torch.tensor([1.0, -3.0, 0.5], dtype=torch.float64)
    assert input_correlation(row_d.expand(4, 3)) == pytest.approx(1)
    assert input_correlation(torch.eye(3, dtype=torch.float64)) == pytest.approx(0)
    assert input_correlation(torch.stack([row_d, -row_d])) == pytest.approx(-1)


def test_rotations_are_orthogonal():
    turn_dd = rotation(5, generator())
    torch.testing.assert_close(turn_dd @ turn_dd.T, torch.eye(5, dtype=torch.float64))


@given(st.integers(0, 10_000), st.integers(2, 8))
def test_flattest_rows_have_one_energy(seed, d):
    row_d = flattest(torch.randn(d, generator=generator(seed), dtype=torch.float64))
    torch.testing.assert_close(row_d**2 / (row_d**2).mean(), torch.ones(d, dtype=torch.float64), rtol=0, atol=1e-4)


def test_counterexamples_of_kurtosis_by_hand():
    assert depth.one_feature_rotated().endswith("has kurtosis 2; rotated by 45 degrees 1")
    assert depth.equal_rows().endswith("input correlation 1, kurtosis 1")


def participation(x_nd):
    """As kurtosis, but of the energies along the principal axes: a rotation changes nothing."""
    gram_dd = x_nd.T @ x_nd
    return (gram_dd**2).sum() * len(gram_dd) / gram_dd.trace() ** 2


@pytest.mark.parametrize("name", ["kurtosis_is_basis_free", "bad_signal_propagation_forces_outliers"])
def test_a_measure_without_basis_flips_the_verdict(name, monkeypatch):
    monkeypatch.setattr(depth, "kurtosis", participation)
    assert verdict(name) == HOLDS


def unbiased(x_nd):
    """What a library logs that takes the unbiased variance of energies."""
    v_d = (x_nd**2).mean(0)
    return 1 + (v_d / v_d.mean()).var()


def of_entries(x_nd):
    """The kurtosis of all entries, which is another quantity."""
    return (x_nd**4).mean() / (x_nd**2).mean() ** 2


@pytest.mark.parametrize("broken", [unbiased, of_entries])
@pytest.mark.parametrize("name", ["kurtosis_identity", "kurtosis_range"])
def test_other_kurtoses_flip_the_verdict(name, broken, monkeypatch):
    monkeypatch.setattr(depth, "kurtosis", broken)
    assert verdict(name) == FAILS
