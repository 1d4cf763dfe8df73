"""Losses with their gradients, what it means that two are the same, and examples and models for tests of methods."""

from dataclasses import replace

import pytest
import torch

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.examples import Targets
from tinylatent.objectives.method import TrainState
from tinylatent.objectives.speakers import Symbols

MODEL = ModelConfig(16, 2, 2)
EXPONENTS = ("log_std", "openness_D")
"""Weights whose exponentials count: ten times as much would shut a gate, or swallow every other digit of a loss."""


def loss_and_gradients(model, loss):
    """The loss and the gradient of every trained parameter by name; zeros where it has none."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    names, parameters = zip(*trained, strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return loss.item(), dict(zip(names, gradients, strict=True))


def assert_same(a, b):
    """Two pairs of loss and gradients are equal to 1e-9."""
    assert a[0] == pytest.approx(b[0], abs=1e-9)
    assert a[1].keys() == b[1].keys()
    for name in a[1]:
        torch.testing.assert_close(
            a[1][name], b[1][name], atol=1e-9, rtol=1e-9, msg=lambda text, name=name: name + text
        )


def loss_of(method, model, examples, state):
    """The first loss of a training step: of the examples, or of rollouts of them."""
    return method.loss(model, method.collect(model, examples, state), state).value


def in_double(examples):
    """The same examples, their targets in float64 as the models of these tests."""
    if examples.frontier.dense_BTV is not None:
        return with_targets(examples, examples.frontier.dense_BTV.double())
    ids_BTS, shares_BTS = examples.frontier.sparse()
    return replace(examples, frontier=Targets(examples.frontier.vocabulary, ids_BTS, shares_BTS.double()))


def with_targets(examples, target_BTV):
    """The same examples, taught these distributions."""
    return replace(examples, frontier=Targets(target_BTV.shape[2], dense_BTV=target_BTV))


def enter(method, model, stage, examples):
    """Puts a model into a stage, as training does at the stage's first step."""
    method.enter(model, stage, examples, TrainState(method.stage_starts(100)[stage], 100, 0))


def examples_of(method, task, rows):
    """What a method learns from these problems, in float64."""
    return in_double(method.supervise(Symbols(task, rows)))


def model_of(method, task, stage=0, config=MODEL, **seeds):
    """A float64 model in a stage, its weights large enough that every input matters."""
    model = Experiment(task, method, config, seeds=Seeds(**seeds)).fresh().double()
    enter(method, model, stage, examples_of(method, task, task.problems(8, seed=0)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.std(correction=0) > 0 and not any(part in name for part in EXPONENTS):
                parameter.mul_(10)
    return model


@torch.no_grad()
def spread(model):
    """The model with queries and keys of its attention over the prompt as small as they began: no share is one-hot."""
    for name, part in model.parts.items():
        if name == "attention":
            for layer in (part.query, part.key):
                layer.weight.div_(10)
                layer.bias.div_(10)
    return model
