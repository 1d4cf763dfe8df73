"""Numbers per prompt by hand, and intervals against a plain bootstrap and against what they promise."""

import numpy as np
import pytest
import torch
from fakes import random

from tinylatent.lenses.reducing import bootstrap, per_prompt

VALUES = torch.tensor([[[1.0, 2.0, 9.0], [4.0, 9.0, 9.0], [5.0, 6.0, 10.0]]])
COUNTED = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])


def test_a_prompt_is_reduced_over_its_counted_slots():
    assert per_prompt(VALUES, COUNTED).tolist() == [[1.5, 4.0, 7.0]]
    assert per_prompt(VALUES, COUNTED, "max").tolist() == [[2.0, 4.0, 10.0]]
    assert per_prompt(VALUES, COUNTED, 0.5).tolist() == [[1.5, 4.0, 6.0]]
    assert per_prompt(VALUES, COUNTED, 1.0).tolist() == [[2.0, 4.0, 10.0]]


def test_rows_of_a_prompt_are_taken_together():
    rows = torch.tensor([0, 1, 0])
    assert per_prompt(VALUES, COUNTED, "mean", rows).tolist() == [pytest.approx([(1 + 2 + 5 + 6 + 10) / 5, 4.0])]
    assert per_prompt(VALUES[0], COUNTED, "max", rows).tolist() == [10.0, 4.0]


def test_what_cannot_be_reduced_is_told():
    with pytest.raises(ValueError, match="no slot of prompt 1 is counted"):
        per_prompt(VALUES, COUNTED & torch.tensor([[True], [False], [True]]))
    for how in ("sum", 1.5):
        with pytest.raises(ValueError, match="expected mean, max, or a quantile from 0 to 1"):
            per_prompt(VALUES, COUNTED, how)


def test_intervals_are_those_of_a_plain_bootstrap():
    values = random(2, 12).exp()
    found = bootstrap(values, draws=4000, seed=3)
    np.testing.assert_allclose(found.value, values.mean(1).numpy())
    rng = np.random.default_rng(9)
    plain = values.numpy()[:, rng.integers(0, 12, (20_000, 12))].mean(-1)
    ends = np.quantile(plain, [0.025, 0.975], axis=1)
    spread = plain.std(axis=1)
    assert (abs(found.low - ends[0]) < 0.1 * spread).all()
    assert (abs(found.high - ends[1]) < 0.1 * spread).all()


def test_prompts_are_drawn_once_for_all_measures():
    """What is the same number plus one has the same interval plus one."""
    values = random(20)
    found = bootstrap(torch.stack([values, values + 1]))
    np.testing.assert_allclose(found.high[1] - found.high[0], 1)
    np.testing.assert_allclose(found.low[1] - found.low[0], 1)
    wider = bootstrap(values, level=0.99)
    assert wider.low < found.low[0] < found.value[0] < found.high[0] < wider.high


def test_one_prompt_has_no_spread():
    found = bootstrap(torch.tensor([3.0]))
    assert (found.value, found.low, found.high) == (3.0, 3.0, 3.0)


def test_impossible_intervals_are_told():
    for settings in ({"level": 1.0}, {"draws": 0}):
        with pytest.raises(ValueError, match="expected a level between 0 and 1, and a draw at least"):
            bootstrap(torch.ones(3), **settings)
