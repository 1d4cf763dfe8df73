"""Every registered method, and variants of ours: what tests over all methods run through."""

from dataclasses import replace
from typing import get_args

import losses
import numpy as np
import pytest
import torch
from tinylatent_tasks import MNNS

from tinylatent.core.seeds import Streams
from tinylatent.methods import GRPO, METHODS, Coconut, CoT2
from tinylatent.objectives.method import TrainState
from tinylatent.objectives.policy_gradient import Average, PolicyGradient

EVERY = pytest.mark.parametrize("method", [kind() for kind in METHODS.values()], ids=list(METHODS))
OURS = ("direct", "pause", "discrete", "coconut", "cot2", "grpo")
VARIANTS = [
    *(kind() for kind in METHODS.values()),
    Coconut(stages=2, per_step=2),
    CoT2(budget=2),
    CoT2(prefix="self"),
    CoT2(prefix="teacher-then-self"),
    GRPO(samples=1, updates=2, kl=0.1),
    GRPO(samples=2, curriculum=(1,), ratio="paper"),
    GRPO(ratio="official", average="token", advantage="leave-one-out"),
    GRPO(gamma=2.0),
]
WITH_VARIANTS = pytest.mark.parametrize("method", VARIANTS, ids=repr)
FIXED = pytest.mark.parametrize(
    "method",
    [
        replace(each, mixing=0.0) if isinstance(each, Coconut) else each
        for each in VARIANTS
        if not isinstance(each, PolicyGradient)
    ],
    ids=repr,
)
"""The variants with a loss that samples nothing."""
BY_ROW = pytest.mark.parametrize(
    "method", [each for each in VARIANTS if getattr(each, "average", None) != "token"], ids=repr
)
"""The variants whose loss is a mean over rows."""
WITH_AVERAGES = pytest.mark.parametrize(
    "method",
    [
        *VARIANTS,
        Coconut(mixing=1.0),
        *(GRPO(samples=2, updates=2, kl=0.1, average=average) for average in get_args(Average)),
        GRPO(updates=2, advantage="batch-std", average="token"),
    ],
    ids=repr,
)

TASK = MNNS(3, 1, 4)
ROWS = np.array([[1, 2, 4], [4, 4, 4], [3, 1, 1], [2, 4, 3], [1, 3, 2]])
EARLY, LATE = TrainState(0, 10, 0), TrainState(9, 10, 0)
STATES = pytest.mark.parametrize("state", [EARLY, LATE], ids=["first", "last"])


def model_of(method, task=TASK, state=LATE, **seeds):
    """A model in the stage of a step (the last)."""
    return losses.model_of(method, task, method.stage_at(state.step, state.total), **seeds)


def examples_of(method, task=TASK, rows=ROWS):
    return losses.examples_of(method, task, rows)


def one(examples, number):
    return examples.rows(slice(number, number + 1))


def inferred(method, model, examples, first=0):
    """The method's own inference; what it samples belongs to the row, `first` being the number of the first."""
    return method.solve(model, examples, Streams(7, torch.arange(first, first + len(examples)))).trace
