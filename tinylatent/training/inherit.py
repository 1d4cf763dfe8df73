"""Inherit: what a model takes over from an earlier one, by name."""

from collections.abc import Sequence

import torch
from torch import nn

from tinylatent.objectives.method import under

TABLES = ("backbone.embedding", "backbone.pos_emb")  # tensors that may have grown


@torch.no_grad()
def take_over(model: nn.Module, earlier: nn.Module, beginnings: Sequence[str]) -> list[str]:
    """Copies every tensor of the earlier model whose name stands under one of the beginnings; returns the names.

    A table that has grown (tokens or positions were added) keeps its own rows beyond those it takes over. What the
    earlier run had no part for stays as it is, but for the backbone, which must be there.

    Raises:
        ValueError: a tensor has another shape, the backbone lacks one, or a beginning fits nothing here.
    """
    ours, theirs, taken = model.state_dict(), earlier.state_dict(), []
    for beginning in beginnings:
        if not any(under(name, (beginning,)) for name in ours):
            raise ValueError(f"no part of the model begins with {beginning}: mend what its method inherits")
    for name, own in ours.items():
        if not under(name, tuple(beginnings)):
            continue
        if name not in theirs:
            if name.startswith("backbone"):
                raise ValueError(f"the run to start from has no {name}: its model must be of the same kind")
            continue
        value = theirs[name]
        grown = name in TABLES and own.shape[1:] == value.shape[1:] and len(own) > len(value)
        if not grown and own.shape != value.shape:
            more = ", or more rows here" if name in TABLES else ""
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} in the run to start from and {tuple(own.shape)} here: expected "
                f"the same{more}"
            )
        (own[: len(value)] if grown else own).copy_(value)
        taken.append(name)
    return taken
