"""Inherit: what a model takes over from an earlier one, by name."""

from collections.abc import Sequence

import torch
from torch import nn


@torch.no_grad()
def take_over(model: nn.Module, earlier: nn.Module, prefixes: Sequence[str]) -> list[str]:
    """Copies every tensor of the earlier model whose name begins with a prefix; returns the names.

    A tensor that has grown along its first axis (tokens or positions were added) keeps its own values beyond what it
    takes over. Parts that the earlier run had not stay as they are, but for the backbone, which must be there.

    Raises:
        ValueError: a tensor has another shape, or the backbone lacks one.
    """
    ours, theirs, taken = model.state_dict(), earlier.state_dict(), []
    for name, own in ours.items():
        if not name.startswith(tuple(prefixes)):
            continue
        if name not in theirs:
            if name.startswith("backbone"):
                raise ValueError(f"the run to start from has no {name}: its model must be of the same kind")
            continue
        value = theirs[name]
        if own.ndim != value.ndim or own.shape[1:] != value.shape[1:] or (own.ndim and len(own) < len(value)):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} in the run to start from and {tuple(own.shape)} here: expected "
                "the same, or more rows here"
            )
        (own[: len(value)] if own.ndim else own).copy_(value)
        taken.append(name)
    return taken
