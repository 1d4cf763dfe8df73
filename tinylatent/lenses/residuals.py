"""Residuals: records all additions to the residual stream of a run.

    trace, residuals = record(lambda edit: rollout(model, plan, prompt, edit=edit))
    residuals.stream[2]         # the input of layer 2, for every row and slot
    residuals.attention[2]      # what its attention added
    residuals.gap()             # 0 up to rounding: the stream is the sum of its additions

Letters: B rows, S slots of the run (prompt and steps), T slots of one forward, D width, L layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from tinylatent.models.backbone import Edit, Site

Returned = TypeVar("Returned")


@dataclass(frozen=True)
class Residuals:
    """The residual stream of a run and all additions to it; a looped stack numbers its layers consecutively."""

    stream: Float[Tensor, "L1 B S D"]
    """L + 1 states: before every layer and after the last."""
    attention: Float[Tensor, "L B S D"]
    mlp: Float[Tensor, "L B S D"]
    """Zeros for a layer without MLP."""

    @property
    def layers(self) -> int:
        """L."""
        return len(self.attention)

    @property
    def contributions(self) -> Float[Tensor, "L2 B S D"]:
        """All 2 L additions in the order they were made: attention and MLP of layer 0, of layer 1, .."""
        return torch.stack([self.attention, self.mlp], 1).flatten(0, 1)

    def gap(self) -> float:
        """Largest difference between the stream and the sum of its additions, relative to the stream's largest entry.

        0 up to rounding for blocks with pre-norm or no norm. A post-norm block normalises the sum, and an edit may
        replace the stream: there the gap is not an error.
        """
        sums = self.stream[:1] + (self.attention + self.mlp).cumsum(0)
        return ((sums - self.stream[1:]).abs().max() / self.stream.abs().max()).item()


def record(run: Callable[[Edit], Returned], change: Edit | None = None) -> tuple[Returned, Residuals]:
    """Calls `run` and returns its result and the residuals of all its forwards, slots concatenated.

    Where rows fork between two forwards (row b becomes rows b G .. b G + G - 1), earlier slots are repeated.

    Args:
        run: makes forwards with the edit it is given, such as a rollout; the edit only reads.
        change: an edit applied first; what it returns is recorded.

    Raises:
        ValueError: the run made no forward with the edit, or forwards that do not follow on each other.
    """
    forwards: list[tuple[range, dict[tuple[int, Site], Tensor]]] = []

    def edit(layer: int, site: Site, x_BTD: Tensor, slots: range) -> Tensor:
        if change is not None:
            x_BTD = change(layer, site, x_BTD, slots)
        if (layer, site) == (0, "resid_in"):
            forwards.append((slots, {}))
        forwards[-1][1][layer, site] = x_BTD
        return x_BTD

    returned = run(edit)
    if not forwards:
        raise ValueError(
            "the run made no forward with the edit: expected one that passes it on: rollout(.., edit=edit)"
        )
    rows = [len(seen[0, "resid_in"]) for _, seen in forwards]
    for (before, after), few, more in zip(pairwise(slots for slots, _ in forwards), rows, rows[1:], strict=False):
        if before.stop != after.start or more % few:
            raise ValueError(
                f"{more} rows from slot {after.start} on came after {few} rows up to slot {before.stop - 1}: expected "
                "forwards that continue where the last one ended; record every run by itself"
            )
    parts = [[x.repeat_interleave(rows[-1] // x.shape[1], 1) for x in _stacked(seen)] for _, seen in forwards]
    return returned, Residuals(*(torch.cat(part, 2) for part in zip(*parts, strict=True)))


def _stacked(seen: dict[tuple[int, Site], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Stream, attention and MLP of one forward; the first axis is the layer."""
    stream = [x for (_, site), x in seen.items() if site == "resid_in"]
    last = len(stream) - 1
    attention = [seen[layer, "attn_add"] for layer in range(len(stream))]
    mlp = [seen.get((layer, "mlp_add"), torch.zeros_like(x)) for layer, x in enumerate(stream)]
    return torch.stack([*stream, seen[last, "resid_out"]]), torch.stack(attention), torch.stack(mlp)
