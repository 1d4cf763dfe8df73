"""Claims about outlier features: matrices by hand, and what they rest on broken on purpose."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tinylatent_theory.claims import outliers
from tinylatent_theory.claims.outliers import flattest, rotation
from verdicts import verdict

from tinylatent.lab.findings import FAILS, HOLDS
from tinylatent.lenses.outliers import Moments


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_rotations_are_orthogonal():
    turn_dd = rotation(5, generator())
    torch.testing.assert_close(turn_dd @ turn_dd.T, torch.eye(5, dtype=torch.float64))


@given(st.integers(0, 10_000), st.integers(2, 8))
def test_flattest_rows_have_one_energy(seed, d):
    row_d = flattest(torch.randn(d, generator=generator(seed), dtype=torch.float64))
    torch.testing.assert_close(row_d**2 / (row_d**2).mean(), torch.ones(d, dtype=torch.float64), rtol=0, atol=1e-4)


def test_counterexamples_of_kurtosis_by_hand():
    """Energies 1, 1, 0 are 1.5, 1.5, 0 of their mean, whose variance is 0.5, or 0.75 by one neuron less."""
    assert outliers.one_neuron_of_two().endswith("kurtosis less one is 0.5, and 0.75 is logged")
    assert outliers.one_feature_rotated().endswith("has kurtosis 2; rotated by 45 degrees 1")
    assert outliers.equal_rows().endswith("input correlation 1, kurtosis 1")


def participation(x_nd):
    """As kurtosis, but of the energies along the principal axes: a rotation changes nothing."""
    gram_dd = x_nd.T @ x_nd
    return (gram_dd**2).sum() * len(gram_dd) / gram_dd.trace() ** 2


@pytest.mark.parametrize("name", ["kurtosis_is_basis_free", "bad_signal_propagation_forces_outliers"])
def test_a_measure_without_basis_flips_the_verdict(name, monkeypatch):
    monkeypatch.setattr(outliers, "kurtosis", participation)
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
    monkeypatch.setattr(outliers, "kurtosis", broken)
    assert verdict(name) == FAILS


def test_an_unbiased_variance_is_seen_where_kurtosis_saturates(monkeypatch):
    monkeypatch.setattr(outliers, "kurtosis", unbiased)
    assert verdict("kurtosis_saturates_while_rounding_grows") == FAILS


def test_a_code_that_logs_what_it_says_flips_the_verdict(monkeypatch):
    monkeypatch.setattr(outliers, "logged", lambda x_nd: float(outliers.kurtosis(x_nd)) - 1)
    assert verdict("logged_kurtosis_is_kurtosis_less_one") == HOLDS


def test_a_term_that_is_wrong_flips_the_verdict(monkeypatch):
    """2 p^2 where it is 4 p^2."""

    def wrong(x_nd, change_nd):
        v_d, p_d, q_d = (x_nd**2).mean(0), (x_nd * change_nd).mean(0), (change_nd**2).mean(0)
        terms = 4 * v_d * p_d, 2 * p_d**2 + 2 * v_d * q_d, 4 * p_d * q_d, q_d**2
        first, second, third, fourth = (float(term_d.mean()) for term_d in terms)
        return Moments((0.0, 0.0), (first, second, third, fourth))

    monkeypatch.setattr(outliers, "moments", wrong)
    assert verdict("fourth_moment_bookkeeping") == FAILS


def test_what_is_not_rounded_flips_the_verdict(monkeypatch):
    """And what is not rounded loses nothing."""
    monkeypatch.setattr(outliers, "rounded", lambda x_nd: x_nd)
    assert verdict("kurtosis_saturates_while_rounding_grows") == FAILS
