"""Ridge maps against least squares, and what maps promise; invariant 10 of the sheet."""

import pytest
import torch
from fakes import random

from tinylatent.lenses.maps import ridge_maps, tokens
from tinylatent.lenses.residuals import record_tokens

SOURCE = random(2, 60, 4, seed=1)
TARGET = random(3, 60, 5, seed=2) + SOURCE[0] @ random(4, 5, seed=3) + 2


def close(found, wanted, tolerance=1e-6):
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_maps_are_least_squares_on_the_first_tokens_and_are_asked_for_the_others():
    found = ridge_maps(SOURCE, TARGET, fit=0.75, ridge=1e-12)
    for point in range(2):
        ones = torch.cat([SOURCE[point], torch.ones(60, 1, dtype=torch.float64)], 1)
        for layer in range(3):
            solved = torch.linalg.lstsq(ones[:45], TARGET[layer, :45]).solution
            error = (ones[45:] @ solved - TARGET[layer, 45:]).norm(dim=1)
            close(found.relative_error_ML[point, layer], (error / TARGET[layer, 45:].norm(dim=1)).mean())
            spread = (TARGET[layer, 45:] - TARGET[layer, 45:].mean(0)).square().sum()
            close(found.r2_ML[point, layer], 1 - error.square().sum() / spread)
    assert found.r2_ML.max() <= 1
    assert found.r2_ML.argmax(0).tolist() == [0, 0, 0]


def test_a_stream_predicts_itself_and_a_constant_is_its_offset():
    found = ridge_maps(SOURCE, torch.cat([SOURCE, torch.full_like(SOURCE[:1], 3.0)]), ridge=1e-14)
    assert found.relative_error_ML.diagonal().abs().max() < 1e-9
    close(found.r2_ML[:2, :2].diagonal(), torch.ones(2, dtype=torch.float64))
    assert found.relative_error_ML[:, 2].max() < 1e-9


def test_a_source_that_is_the_same_everywhere_explains_nothing():
    """Such as the stream before the first layer at a slot that always holds one token."""
    found = ridge_maps(torch.full((1, 60, 4), 1.5), TARGET)
    error = (TARGET[:, :48].mean(1, keepdim=True) - TARGET[:, 48:]).square().sum((1, 2))
    spread = (TARGET[:, 48:] - TARGET[:, 48:].mean(1, keepdim=True)).square().sum((1, 2))
    close(found.r2_ML[0], 1 - error / spread)
    assert found.r2_ML.max() <= 0


def test_an_affine_change_of_the_source_changes_nothing():
    changed = SOURCE @ random(4, 4, seed=5) + 7
    close(ridge_maps(changed, TARGET, ridge=1e-14).r2_ML, ridge_maps(SOURCE, TARGET, ridge=1e-14).r2_ML)


def test_a_common_offset_makes_relative_errors_small_and_not_the_share_of_variance():
    plain, moved = ridge_maps(SOURCE, TARGET), ridge_maps(SOURCE, TARGET + 1000)
    close(plain.r2_ML, moved.r2_ML)
    assert (moved.relative_error_ML < plain.relative_error_ML / 50).all()


def test_more_features_never_fit_worse():
    more = torch.cat([SOURCE, random(2, 60, 3, seed=8)], 2)
    fitted = [ridge_maps(x.repeat(1, 2, 1), TARGET.repeat(1, 2, 1), 0.5, 1e-14).r2_ML for x in (SOURCE, more)]
    assert (fitted[1] >= fitted[0] - 1e-9).all(), "both halves hold the same tokens: what is held out is what is fitted"


def test_tokens_are_those_that_count(tiny):
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
    known = record_tokens(tiny(), torch.tensor([[0, 3, 4, 5], [6, 2, 1, 4]]), mask)
    found = tokens([known, known])
    assert found.shape == (3, 10, 8)
    assert torch.equal(found[1, :5], torch.cat([known.stream[1, 0, 2:], known.stream[1, 1, 1:]]))
    assert torch.equal(found[:, 5:], found[:, :5])
    assert tokens([known], keep_first=0).shape == (3, 7, 8)


def test_what_cannot_be_mapped_is_told(unchecked):
    with pytest.raises(ValueError, match="60 tokens of the first model and 59 of the second: expected the same"):
        ridge_maps(SOURCE, TARGET[:, 1:])
    with pytest.raises(ValueError, match="4 of 5 tokens to fit maps from width 4: expected more than 4, and some left"):
        ridge_maps(SOURCE[:, :5], TARGET[:, :5])
