"""What all tests share: one thread, reproducible searches, a small model, and the model written a second time.

`naive_hidden` is the reference of the transformer and of the engine: one row, no padding, no cache, no mask, loops over
queries and heads. It reads the weights by name and shares no code with the package.
"""

import math

import pytest
import torch
from hypothesis import settings
from jaxtyping import config

torch.set_num_threads(1)
settings.register_profile("tinylatent", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("tinylatent")


@pytest.fixture
def unchecked():
    """Shapes go unchecked, as they do for users: training is faster, and bad values reach the code's own words."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tiny():
    """Makes a small float64 model whose weights are large enough to matter; read-only for tests."""
    from tinylatent.transformer import Shape, Transformer  # not at the top: the shape checks hook in before this import

    def make(seed=0, vocabulary=7, positions=64):
        generator = torch.Generator().manual_seed(seed)
        model = Transformer(vocabulary, positions, Shape(width=8, layers=2, heads=2)).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.4)
        return model

    return make


@pytest.fixture(scope="session")
def model(tiny):
    """The small model most tests use."""
    return tiny()


@pytest.fixture(scope="session")
def naive_hidden():
    """naive_hidden(model, inputs_SD, positions) -> hidden states (S, D) of one row, slot by slot and head by head."""

    def norm(x_D, gain_D):
        centred_D = x_D - x_D.mean()
        return gain_D * centred_D / ((centred_D**2).mean() + 1e-5).sqrt()

    def gelu(x):
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2

    def attention(normed, split, merge, heads):
        query, key, value = ([part @ x_D for x_D in normed] for part in split.chunk(3))
        K = len(merge) // heads
        out = []
        for t in range(len(normed)):
            mixed = []
            for head in (slice(h * K, (h + 1) * K) for h in range(heads)):
                scores = torch.stack([query[t][head] @ key[s][head] / math.sqrt(K) for s in range(t + 1)])
                weights = (scores - scores.max()).exp()
                mixed.append(weights @ torch.stack([value[s][head] for s in range(t + 1)]) / weights.sum())
            out.append(merge @ torch.cat(mixed))
        return out

    def hidden(model, inputs_SD, positions):
        weight = dict(model.named_parameters())
        stream = [x_D + weight["places"][p] for x_D, p in zip(inputs_SD, positions, strict=True)]
        for layer in range(model.shape.layers):
            of = {name.split(".", 2)[2]: value for name, value in weight.items() if name.startswith(f"layers.{layer}.")}
            normed = [norm(x_D, of["gain_attn"]) for x_D in stream]
            added = attention(normed, of["split"], of["merge"], model.shape.heads)
            stream = [x_D + add_D for x_D, add_D in zip(stream, added, strict=True)]
            stream = [x_D + of["down"] @ gelu(of["up"] @ norm(x_D, of["gain_mlp"])) for x_D in stream]
        return torch.stack([norm(x_D, weight["gain"]) for x_D in stream])

    return hidden


@pytest.fixture(scope="session")
def gradients():
    """gradients(scalar, tensors) -> one flat tensor; zeros where the scalar does not depend on a tensor."""

    def flat(scalar, tensors):
        parts = torch.autograd.grad(scalar, list(tensors), materialize_grads=True, allow_unused=True, retain_graph=True)
        return torch.cat([part.flatten() for part in parts])

    return flat
