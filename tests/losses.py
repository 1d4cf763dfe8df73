"""Losses with their gradients, and what it means that two are the same."""

import pytest
import torch


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
