"""Claims about depth: sums by hand, the model's own readout, broken on purpose."""

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
    stack,
    stream,
)
from tinylatent_theory.claims.ledger import Trial
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
# The depth score


def test_leaning_models_differ_in_where_they_lean_alone():
    early, late = (depth.leaning(Trial(), x) for x in (True, False))
    for number in range(4):
        ratio = early.blocks[number].mlp.down_proj / late.blocks[number].mlp.down_proj
        torch.testing.assert_close(ratio, torch.full_like(ratio, 3.0 if number < 2 else 1 / 3))
        assert torch.equal(early.blocks[number].mlp.up_proj, late.blocks[number].mlp.up_proj)


def counted_from_one(effect_L):
    place_L = torch.arange(1, len(effect_L) + 1)
    return (place_L * effect_L).sum() / effect_L.sum()


def test_layers_counted_from_one_flip_the_verdict(monkeypatch):
    monkeypatch.setattr(depth, "depth_score", counted_from_one)
    assert verdict("saturated_depth_scores_say_nothing") == FAILS


def test_predictions_that_are_not_certain_flip_the_verdict(monkeypatch):
    monkeypatch.setattr(depth, "SURE", 1.0)
    assert verdict("saturated_depth_scores_say_nothing") == FAILS
