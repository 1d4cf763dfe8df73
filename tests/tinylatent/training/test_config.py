"""Recipes that make no sense are refused in words."""

import math

import pytest

from tinylatent.training.config import Training


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"steps": -1}, r"training\.steps is -1: expected at least 1, or 0 with a run to start from"),
        ({"batch_size": 0}, r"training\.batch_size is 0: expected at least 1"),
        ({"micro_batch": 0}, r"training\.micro_batch is 0: expected at least 1"),
        ({"log_every": 0}, r"training\.log_every is 0"),
        ({"save_every": -1}, r"training\.save_every is -1"),
        ({"validate": -1}, r"training\.validate is -1: expected a number of problems, or 0 for none"),
        ({"enough": 0.0}, r"training\.enough is 0\.0 with .*: expected a share up to 1 of problems that are asked"),
        ({"enough": 0.5, "validate": 0}, r"training\.enough is 0\.5 with training\.validate 0: expected a share"),
        ({"num_train": 3}, r"training\.num_train is 3: expected at least 4"),
        ({"warmup": 1.0}, r"training\.warmup is 1\.0: expected a share"),
        ({"warmup": -0.1}, r"training\.warmup is -0\.1: expected a share"),
        ({"schedule": "linear"}, r"training\.schedule is 'linear': expected cosine or constant"),
        ({"learning_rate": 0.0}, r"training\.learning_rate is 0\.0: expected a positive"),
        ({"learning_rate": math.nan}, r"training\.learning_rate is nan: expected a positive"),
        ({"weight_decay": -1.0}, r"training\.weight_decay is -1\.0: expected 0 or more"),
        ({"optimizer": "lion"}, r"training\.optimizer is 'lion': expected one of adamw, soap, shampoo"),
        ({"epsilon": 0.0}, r"training\.epsilon is 0\.0: expected a small positive number; try 1e-8"),
        ({"beta2": 1.0}, r"training\.beta2 is 1\.0: expected a share in \[0, 1\); try 0\.9"),
        ({"optimizer": "shampoo", "beta2": 0.9}, "mean nothing to shampoo: leave them out"),
        ({"optimizer": "shampoo", "beta1": 0.5}, "mean nothing to shampoo: leave them out"),
        ({"optimizer": "shampoo", "epsilon": 1e-4}, "mean nothing to shampoo: leave them out"),
        ({"clip_norm": 0.0}, r"training\.clip_norm is 0\.0: expected a positive norm; try 1\.0"),
        ({"clip_norm": math.nan}, r"training\.clip_norm is nan: expected a positive norm"),
        ({"clip_norm": math.inf}, r"training\.clip_norm is inf: expected a positive norm"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_recipes_are_refused(recipe, said):
    with pytest.raises(ValueError, match=said):
        Training(**recipe)
