"""What all tests share: one thread, reproducible searches, a small model, and the model written a second time.

`naive_hidden` is the reference of the decoder and of the engine: one row, no padding, no cache, no mask, loops over
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
    from tinylatent.models.decoder import Decoder, ModelConfig  # not at the top: shape checks hook in first

    def make(seed=0, vocabulary=7, positions=64, spread=0.4, **kind):
        generator = torch.Generator().manual_seed(seed)
        model = Decoder.fresh(vocabulary, positions, ModelConfig(width=8, layers=2, heads=2, **kind)).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=spread)
        return model

    return make


@pytest.fixture(scope="session")
def model(tiny):
    """The small model most tests use."""
    return tiny()


def _norm(x_D, gain_D):
    centred_D = x_D - x_D.mean()
    return gain_D * centred_D / ((centred_D**2).mean() + 1e-5).sqrt()


def _attention(inputs, qkv, out, heads):
    query, key, value = ([part @ x_D for x_D in inputs] for part in qkv.chunk(3))
    K = len(out) // heads
    found = []
    for t in range(len(inputs)):
        mixed = []
        for head in (slice(h * K, (h + 1) * K) for h in range(heads)):
            scores = torch.stack([query[t][head] @ key[s][head] / math.sqrt(K) for s in range(t + 1)])
            weights = (scores - scores.max()).exp()
            mixed.append(weights @ torch.stack([value[s][head] for s in range(t + 1)]) / weights.sum())
        found.append(out @ torch.cat(mixed))
    return found


def _mlp(x_D, of, kind):
    if "mlp.router" in of:
        chances = (of["mlp.router"] @ x_D + of["mlp.router_bias"]).exp()
        best = max(range(len(chances)), key=chances.tolist().__getitem__)
        hidden = (of["mlp.up_proj"][best] @ x_D + of["mlp.up_bias"][best]).clamp(min=0)
        return (of["mlp.down_proj"][best] @ hidden + of["mlp.down_bias"][best]) * chances[best] / chances.sum()
    up = of["mlp.up_proj"] @ x_D
    if kind == "swiglu":
        gate, up = up[: len(up) // 2], up[len(up) // 2 :]
        return of["mlp.down_proj"] @ (up * gate / (1 + (-gate).exp()))
    return of["mlp.down_proj"] @ (up.clamp(min=0) if kind == "relu" else up * (1 + torch.erf(up / math.sqrt(2))) / 2)


@pytest.fixture(scope="session")
def naive_hidden():
    """naive_hidden(model, inputs_SD, positions) -> hidden states (S, D) of one row, slot by slot and head by head.

    Blocks other than the default ones are said by `norm`, `mlp` and `loops`, as in a ModelConfig.
    """

    def hidden(model, inputs_SD, positions, norm="pre", mlp="gelu", loops=1):
        weight = dict(model.named_parameters())
        stream = [x_D + weight["pos_emb"][p] for x_D, p in zip(inputs_SD, positions, strict=True)]
        layers = {int(name.split(".")[1]) for name in weight if name.startswith("blocks.")}
        for layer in [*sorted(layers)] * loops:
            of = {name.split(".", 2)[2]: value for name, value in weight.items() if name.startswith(f"blocks.{layer}.")}

            def normed(x_D, part, where, of=of):
                return _norm(x_D, of[f"{part}_norm.weight"]) if where == norm else x_D

            heads = model.blocks[layer].attention.heads
            seen = [normed(x_D, "attn", "pre") for x_D in stream]
            added = _attention(seen, of["attention.qkv_proj"], of["attention.out_proj"], heads)
            stream = [normed(x_D + add_D, "attn", "post") for x_D, add_D in zip(stream, added, strict=True)]
            stream = [normed(x_D + _mlp(normed(x_D, "mlp", "pre"), of, mlp), "mlp", "post") for x_D in stream]
        return torch.stack([_norm(x_D, weight["norm.weight"]) if norm == "pre" else x_D for x_D in stream])

    return hidden


@pytest.fixture(scope="session")
def gradients():
    """gradients(scalar, tensors) -> one flat tensor; zeros where the scalar does not depend on a tensor."""

    def flat(scalar, tensors):
        parts = torch.autograd.grad(scalar, list(tensors), materialize_grads=True, allow_unused=True, retain_graph=True)
        return torch.cat([part.flatten() for part in parts])

    return flat
