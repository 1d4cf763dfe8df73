"""Study `mnns-faithful`: the optimisation is the paper's."""

import pytest

from tinylatent.lab.studies import mnns_faithful


def test_the_recipe_makes_a_thousand_epochs_at_a_constant_rate():
    """Of the 5,249 or so problems of a training part in batches of 16, at 1e-4 throughout."""
    whole = mnns_faithful.grid("full")[0]
    assert whole.training.steps / (len(whole.rows("train")) // 16) == pytest.approx(1000, rel=0.01)
    assert (whole.training.batch_size, whole.training.learning_rate, whole.training.schedule) == (16, 1e-4, "constant")
    assert (whole.model.width, whole.model.layers, whole.model.heads) == (32, 2, 2)
