"""Every registered method, and variants of ours: what tests over all methods run through."""

from dataclasses import replace
from typing import get_args

import losses
import numpy as np
import pytest
import torch
from tinylatent_tasks import MNNS

from tinylatent.core.seeds import Streams
from tinylatent.methods import (
    CTRLS,
    CTRLSRL,
    GRPO,
    HRPO,
    METHODS,
    Coconut,
    CoLaR,
    CoLaRGRPO,
    CoT2,
    DiscreteCoT,
    LatentR3,
    LatentR3RL,
    LatentSeek,
    PauseTokens,
    TabooSearch,
)
from tinylatent.methods.discrete import END
from tinylatent.objectives.method import TrainState
from tinylatent.objectives.policy_gradient import Average, PolicyGradient

EVERY = pytest.mark.parametrize("method", [kind() for kind in METHODS.values()], ids=list(METHODS))
OURS = ("direct", "pause", "discrete", "coconut", "cot2", "grpo")
VARIANTS = [
    *(kind() for kind in METHODS.values()),
    Coconut(stages=2, per_step=2),
    Coconut(stages=2, thought="pause"),
    CoT2(prefix="self"),
    GRPO(samples=1, updates=2, kl=0.1),
    GRPO(gamma=2.0),
    DiscreteCoT(ends=True),
    LatentSeek(ends=True, share=1.0, mode="sampled", samples=2, rounds=3),
    LatentR3RL(latents=2, estimator="score", baseline="group", scale="none"),
]
MORE = [
    CoT2(budget=2),
    CoT2(prefix="teacher-then-self"),
    GRPO(samples=2, curriculum=(1,), ratio="paper"),
    GRPO(ratio="official", average="token", advantage="leave-one-out"),
    PauseTokens(compression=2),
    Coconut(per_step=0),
    HRPO(gate="token", top_k=4, score_temperature=1.0, temperature=0.5),
    HRPO(graph=True, r_min=0.5, r_max=0.6),
    LatentSeek(share=1.0, rounds=3),
    TabooSearch(ends=True, share=1.0, rounds=3, select="best"),
    CoLaR(speeds=(2,), latent_loss="nll", pooling="mean", labels=False, draws=True),
    CoLaRGRPO(speeds=(1,), kl=0.1, density="mean", go_on=False, per_latent=True),
    CTRLS(count=3, feed="hard", draws=True),
    CTRLS(count=3, states="shuffled", gold=True),
    CTRLS(states="prefix"),
    CTRLSRL(count=3, feed="hard", transition="categorical", updates=2, kl=0.1),
    CTRLSRL(states="prefix", temperature=1.0),
    LatentR3(latents=2),
    LatentR3(thought="hidden"),
    LatentR3(latents=2, thought="constant"),
    LatentR3RL(estimator="score", updates=2, scale="std", group=4),
    LatentR3RL(baseline="group", scale="none", latents=2, updates=2, rewarded="nll"),
    LatentR3RL(estimator="pathwise", absolute=True),
    LatentR3RL(estimator="likelihood"),
    LatentR3RL(estimator="plain"),
]
"""Variants of what is among the others already: for the slow tests."""
AVERAGES = [
    Coconut(mixing=1.0),
    *(GRPO(samples=2, updates=2, kl=0.1, average=average) for average in get_args(Average)),
    GRPO(updates=2, advantage="batch-std", average="token"),
    *(HRPO(latent=latent, r_min=0.5) for latent in ("noise", "shuffled")),
]
"""Every way to average over rows and tokens, and stages that are mixed within a batch."""


def with_methods(*methods, slow=()):
    """Runs a test with these methods, and with those beside where slow tests run too."""
    marked = [pytest.param(method, marks=pytest.mark.slow) for method in slow]
    return pytest.mark.parametrize("method", [*methods, *marked], ids=repr)


def fixed(methods):
    """Those with a loss that samples nothing."""
    still = [replace(each, mixing=0.0) if isinstance(each, Coconut) else each for each in methods]
    return [each for each in still if not isinstance(each, PolicyGradient)]


def open_ended(method):
    """Whether the model ends its chain itself; the steps it may take are then those of the batch's longest chain."""
    return END in method.extra_tokens


def by_row(methods):
    """Those whose loss is a mean over rows: no average over tokens, no advantages that compare prompts."""
    alone = [each for each in methods if not getattr(each, "across_prompts", False)]
    return [each for each in alone if getattr(each, "average", None) != "token"]


WITH_VARIANTS = with_methods(*VARIANTS, slow=MORE)
FIXED = with_methods(*fixed(VARIANTS), slow=fixed(MORE))
BY_ROW = with_methods(*by_row(VARIANTS), slow=by_row(MORE))
WITH_AVERAGES = with_methods(*VARIANTS, slow=MORE + AVERAGES)

TASK = MNNS(3, 1, 4)
ROWS = np.array([[1, 2, 4], [4, 4, 4], [3, 1, 1], [2, 4, 3], [1, 3, 2]])


def odd(examples, trace):
    """Rewards about half of all answers after about half of all lengths, so that random weights earn something."""
    return ((trace.answer()[:, -1] + trace.length_B) % 2).float()


EARLY, LATE = TrainState(0, 10, 0, verify=odd), TrainState(9, 10, 0, verify=odd)
STATES = pytest.mark.parametrize("state", [pytest.param(EARLY, marks=pytest.mark.slow), LATE], ids=["first", "last"])
"""The first step of training, and the last."""


def model_of(method, task=TASK, state=LATE, **seeds):
    """A model in the stage of a step (the last); chains that end themselves do so sooner or later, or never."""
    model = losses.model_of(method, task, method.stage_at(state.step, state.total), **seeds)
    if open_ended(method):
        with torch.no_grad():
            model.backbone.embedding[method.extra_id(model, END)] *= 3
    return model


def examples_of(method, task=TASK, rows=ROWS):
    return losses.examples_of(method, task, rows)


def one(examples, number):
    return examples.rows(slice(number, number + 1))


def without_padding(examples):
    """An example behind its own prompt alone."""
    return replace(examples, prompt_BN=examples.prompt_BN[:, examples.prompt_mask_BN[0]], prompt_mask_BN=None)


def inferred(method, model, examples, first=0):
    """The method's own inference; what it samples belongs to the row, `first` being the number of the first."""
    return method.solve(model, examples, Streams(7, torch.arange(first, first + len(examples))))


def logits_of(solution, row):
    """The logits of all steps that a row took."""
    trace = solution.trace
    return trace.logits_BTV[row] if trace.acted_BT is None else trace.logits_BTV[row, trace.acted_BT[row]]
