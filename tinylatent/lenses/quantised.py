"""Quantised: what linear maps read, and what rounding it to eight bits does.

    with quantised(model, inputs="token"):        # every linear map rounds its weights and what it reads
        logits = model.readout(model.forward(x)[0])
    with watched(model) as seen:                  # outliers of what every linear map reads: what int8 sees
        model.forward(x)

Symmetric int8 as in post-training quantisation: x is rounded to a multiple of max |x| / 127, over a whole tensor or
over each token. Embeddings and the readout stay as they are, and so does attention itself. Torch's own dispatch tells
of every linear map, so that it works for a decoder and for a model of transformers alike.

Letters: n tokens, d neurons.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tinylatent.lenses.outliers import Outliers

Scale = Literal["tensor", "token"]
MOST = 127
"""The largest number of eight bits, symmetric."""


def rounded(x: Float[Tensor, "*shape d"], scale: Scale = "tensor") -> Float[Tensor, "*shape d"]:
    """x in multiples of max |x| / 127: of the whole tensor, or of each token (the last axis)."""
    largest = x.abs().amax(-1, keepdim=True) if scale == "token" else x.abs().amax()
    step = largest / MOST
    return torch.where(step > 0, (x / step).round() * step, x)


class _OnLinear(TorchFunctionMode):
    """Calls a function with what a linear map reads and with its weight, and computes with what that returns."""

    def __init__(self, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], leave: tuple[Tensor, ...]):
        super().__init__()
        self.change, self.leave = change, leave

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Passes on all but linear maps."""
        if func is F.linear and not any(args[1] is weight for weight in self.leave):
            args = (*self.change(args[0], args[1]), *args[2:])
        elif func is torch.addmm:  # GPT-2's linear maps, whose weights are transposed
            args = (args[0], *self.change(args[1], args[2]))
        return func(*args, **(kwargs or {}))


def _tables(model: Any) -> tuple[Tensor, ...]:
    """The weights of embedding and readout."""
    tables: tuple[Tensor, ...] | None = getattr(model, "tables", None)
    return (model.table.weight,) if tables is None else tables


@contextmanager
def quantised(model: nn.Module, inputs: Scale | None = "tensor", weights: bool = True) -> Iterator[None]:
    """A context in which every linear map of the model rounds its weight (as a whole) and what it reads.

    Args:
        model: a decoder, or a Hugging Face model behind a backbone.
        inputs: how what is read is rounded; None leaves it, for weights alone.
        weights: whether weights are rounded.

    Raises:
        ValueError: an unknown way to round.
    """
    if inputs is not None and inputs not in get_args(Scale):
        raise ValueError(f"inputs is {inputs!r}: expected {', '.join(get_args(Scale))}, or None for weights alone")

    def change(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return x if inputs is None else rounded(x, inputs), rounded(weight) if weights else weight

    with torch.no_grad(), _OnLinear(change, _tables(model)):
        yield


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, Outliers]]:
    """A context that measures the outliers of what every linear map reads, by the name of its weight.

    All tokens count, padding too: run prompts without padding.
    """
    names = {parameter.data_ptr(): name for name, parameter in model.named_parameters()}
    seen: dict[str, Outliers] = {}

    def look(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        name = names.get(weight.data_ptr())
        if name is not None:
            seen.setdefault(name, Outliers()).add(x.reshape(-1, x.shape[-1]))
        return x, weight

    with _OnLinear(look, _tables(model)):
        yield seen
