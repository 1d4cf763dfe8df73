"""Quantised: what linear maps read, and what rounding it to eight bits does.

    with watched(model) as seen:                  # outliers of what every linear map reads: what int8 sees
        model.forward(x)
    with quantised(model, "tensor", seen):        # every linear map rounds its weights and what it reads
        logits = model.readout(model.forward(x)[0])

Symmetric int8 as in post-training quantisation: x is rounded to a multiple of max |x| / 127. The largest entry is that
of a token, or of a tensor: of all that was watched before on prompts without padding, so that what else is in a batch
does not matter. Embeddings and the readout stay as they are, and so does attention itself. Torch's own dispatch tells
of every linear map whose weight is a parameter of the model, in a decoder and in a model of transformers alike.

Letters: n tokens, d neurons.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
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


def rounded(
    x: Float[Tensor, "*shape d"], scale: Scale = "tensor", largest: float | None = None
) -> Float[Tensor, "*shape d"]:
    """x in multiples of max |x| / 127: of the whole tensor, or of each token (the last axis).

    largest: stands for the maximum of a tensor; what is beyond it is cut off.
    """
    if not x.numel():
        return x
    most = x.abs().amax(-1, keepdim=True) if scale == "token" else x.abs().amax()
    if scale == "tensor" and largest is not None:
        most = most.new_tensor(largest)
    step = most / MOST
    return torch.where(step > 0, (x / step).round().clamp(-MOST, MOST) * step, x)


class _OnLinear(TorchFunctionMode):
    """Calls a function with what a linear map reads, its weight and the weight's name; computes with what it returns.

    Maps whose weights are no parameters of the model, or its tables, are passed on as they are.
    """

    def __init__(self, model: Any, change: Callable[[Tensor, Tensor, str], tuple[Tensor, Tensor]]):
        super().__init__()
        self.change = change
        tables = {id(table) for table in getattr(model, "tables", (model.table.weight,))}
        places = [
            (parameter.data_ptr(), parameter.data_ptr() + parameter.numel() * parameter.element_size(), name)
            for name, parameter in model.named_parameters()
            if id(parameter) not in tables and parameter.ndim > 1
        ]
        self.places = sorted(places)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Passes on all but linear maps."""
        first = {F.linear: 0, torch.addmm: 1}.get(func)  # GPT-2's maps are addmm, with transposed weights
        if first is not None:
            name = self._name(args[first + 1])
            if name is not None:
                changed = self.change(args[first], args[first + 1], name)
                args = (*args[:first], *changed, *args[first + 2 :])
        return func(*args, **(kwargs or {}))

    def _name(self, weight: Tensor) -> str | None:
        """The parameter that a weight is, or is a part of."""
        at = weight.data_ptr()
        place = bisect_right(self.places, (at, float("inf"), "")) - 1
        if place < 0:
            return None
        _, stop, name = self.places[place]
        return name if at < stop else None


@contextmanager
def quantised(
    model: nn.Module,
    inputs: Scale | None = "tensor",
    seen: Mapping[str, Outliers] | None = None,
    weights: bool = True,
) -> Iterator[None]:
    """A context in which every linear map of the model rounds its weight (as a whole) and what it reads.

    Args:
        model: a decoder, or a Hugging Face model behind a backbone.
        inputs: how what is read is rounded; None leaves it, for weights alone.
        seen: what `watched` saw on prompts without padding, whose largest entries scale tensors; without it a tensor's
            own entry does, and results depend on what else is in a batch.
        weights: whether weights are rounded.

    Raises:
        ValueError: an unknown way to round.
    """
    if inputs is not None and inputs not in get_args(Scale):
        raise ValueError(f"inputs is {inputs!r}: expected {', '.join(get_args(Scale))}, or None for weights alone")

    def change(x: Tensor, weight: Tensor, name: str) -> tuple[Tensor, Tensor]:
        largest = None if seen is None or name not in seen else seen[name].largest
        read = x if inputs is None else rounded(x, inputs, largest)
        return read, rounded(weight) if weights else weight

    with torch.no_grad(), _OnLinear(model, change):
        yield


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, Outliers]]:
    """A context that measures the outliers of what every linear map reads, by the name of its weight.

    All tokens count, padding too: run prompts without padding.
    """
    seen: dict[str, Outliers] = {}

    def look(x: Tensor, weight: Tensor, name: str) -> tuple[Tensor, Tensor]:
        if x.numel():
            seen.setdefault(name, Outliers()).add(x.reshape(-1, x.shape[-1]))
        return x, weight

    with _OnLinear(model, look):
        yield seen
