"""Directions: does an estimator of LatentR3's second stage move the attention up the slope of its expected reward?

The cosine between the update that an estimator asks for and the slope is 1 where it climbs as steeply as it can, and
below 0 where it descends.

In small cases the slope is known by finite differences: a model of width 4 with one layer, in float64, and six problems
of MNNS, every prompt with a group large enough to stand for the expectation over the noise. Weights are random and
large, so that every input matters; nothing is trained. All is drawn from fixed seeds, the cases among them, and told to
three decimals.

In a trained model, where a run starts, the slope is the pathwise gradient over many batches of training problems, and
updates are of batches as large as the run's own, with its groups and noise. Batches differ, so that the pathwise
gradient of one batch alone is not the slope: an estimator is to be read beside it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from tinylatent_tasks import MNNS
from torch import Tensor, nn

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.methods import LatentR3RL
from tinylatent.methods.latentr3 import attention_of
from tinylatent.methods.latentr3_rl import answer_of
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import Model, TrainState
from tinylatent.objectives.policy_gradient import Rollouts
from tinylatent.objectives.speakers import Symbols

TASK, CONFIG = MNNS(2, 1, 3), ModelConfig(4, 1, 1)
CASES, PROMPTS, GROUP = 5, 6, 400
DIGITS = 3
"""Decimals of what is told."""
LARGE = 10.0
"""What fresh weights are multiplied by; but for queries and keys, so that attention is spread over several slots."""
STEP = 1e-4
STATE = TrainState(3, 10, 5)
BATCHES, REFERENCE = 16, 64
"""Batches of a trained model whose updates are compared, and batches whose mean is the slope."""


@lru_cache
def cosines(method: LatentR3RL) -> tuple[float, ...]:
    """The cosine of a method's update with the slope of the expected reward, in every case.

    The reward is the method's own under its own noise, and under the usual noise where it has none.
    """
    rewarded, found = rewarded_by(method), []
    for case in range(CASES):
        update = update_of(method, *small(method, case))
        found.append(round(torch.cosine_similarity(update, slope_of(rewarded, case), dim=0).item(), DIGITS))
    return tuple(found)


def rewarded_by(method: LatentR3RL) -> LatentR3RL:
    """The reward of a method under its own noise, and under the usual noise where it has none."""
    return LatentR3RL(sigma=method.sigma, absolute=method.absolute, rewarded=method.rewarded)


@lru_cache
def slope_of(rewarded: LatentR3RL, case: int) -> Float[Tensor, " parameters"]:
    """The slope of a case, the same for all estimators that share reward and noise."""
    return slope_by_differences(rewarded, *small(rewarded, case))


def update_of(method: LatentR3RL, model: Model, examples: Examples) -> Float[Tensor, " parameters"]:
    """The step that a method's loss asks of the projections: minus its gradient, with a large group."""
    return asked_of(_large(method), model, examples, STATE)


def asked_of(method: LatentR3RL, model: Model, examples: Examples, state: TrainState) -> Float[Tensor, " parameters"]:
    """The step that a method's loss asks of the projections, at its own group: minus its gradient."""
    loss = method.loss(model, method.collect(model, examples, state), state).value
    return descent(loss, attention_of(model))


def descent(loss: Tensor, part: nn.Module) -> Float[Tensor, " parameters"]:
    """Minus the gradient of a loss in the parameters of a part."""
    gradients = torch.autograd.grad(loss, [*part.parameters()])
    return -torch.cat([gradient.flatten() for gradient in gradients])


@torch.no_grad()
def slope_by_differences(method: LatentR3RL, model: Model, examples: Examples) -> Float[Tensor, " parameters"]:
    """The gradient of the expected reward in the projections, by central differences at common noise.

    The standard deviation of the noise is a constant, as it is to every estimator.
    """
    asked = _large(replace(method, estimator="pathwise"))
    batch = asked.collect(model, examples, STATE)
    return differences(attention_of(model), lambda: _mean_reward(asked, model, batch))


@torch.no_grad()
def differences(part: nn.Module, value: Callable[[], Tensor]) -> Float[Tensor, " parameters"]:
    """Central differences of a value along every parameter of a part, which is left as it was."""
    slopes = []
    for parameter in part.parameters():
        values = parameter.data.view(-1)
        for place in range(len(values)):
            ends, here = [], values[place].item()
            for sign in (1, -1):
                values[place] = here + sign * STEP
                ends.append(value())
            values[place] = here
            slopes.append((ends[0] - ends[1]) / (2 * STEP))
    return torch.stack(slopes)


def _mean_reward(method: LatentR3RL, model: Model, batch: Rollouts) -> Float[Tensor, ""]:
    """The mean reward of rollouts under the current weights, their noise as it was drawn."""
    return method.rewards(*answer_of(method.again(model, batch), batch.examples)).mean()


def _large(method: LatentR3RL) -> LatentR3RL:
    """The method with one latent and a group that stands for an expectation."""
    return replace(method, latents=1, group=GROUP)


def small(method: LatentR3RL, case: int) -> tuple[Model, Examples]:
    """The model of a case, with large weights, and its examples."""
    run = Experiment(TASK, _large(method), CONFIG, seeds=Seeds.all(case))
    model = run.fresh().double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.std(correction=0) > 0 and not {"query", "key"} & {*name.split(".")}:
                parameter.mul_(LARGE)
    method.enter(model, 0, examples := method.supervise(Symbols(TASK, TASK.problems(PROMPTS, seed=case))), STATE)
    return model, examples


# ---------------------------------------------------------------------------------------------------------------------
# Where a run starts


def trained_cosines(experiment: Experiment, model: Model, device: torch.device | str = "cpu") -> list[float]:
    """Cosines of updates with the slope of the expected reward, a batch each; none for other methods.

    Args:
        experiment: a second stage.
        model: what it starts from.
        device: the model's.
    """
    method = experiment.method
    if not isinstance(method, LatentR3RL):
        return []
    size, rows = experiment.training.batch_size, experiment.rows("train")
    seed = experiment.seeds.derive("sampling", "directions")
    order = np.random.default_rng(seed).permuted(np.resize(np.arange(len(rows)), (BATCHES + REFERENCE) * size))

    def update(asked: LatentR3RL, number: int) -> Float[Tensor, " parameters"]:
        """The step that a method asks for on a batch."""
        speaker = Symbols(experiment.task, rows[order[number * size : (number + 1) * size]])
        return asked_of(asked, model, asked.supervise(speaker, device), TrainState(number, len(order), seed))

    rewarded = replace(rewarded_by(method), group=method.group, latents=method.latents, estimator="pathwise")
    slope = torch.stack([update(rewarded, BATCHES + number) for number in range(REFERENCE)]).mean(0)
    found = [torch.cosine_similarity(update(method, number), slope, dim=0).item() for number in range(BATCHES)]
    return [round(cosine, DIGITS) for cosine in found]
