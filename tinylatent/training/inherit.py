"""Inherit: copies weights from an earlier model, by name."""

from collections.abc import Sequence

import torch
from torch import nn

from tinylatent.objectives.method import has_prefix

TABLES = ("backbone.embedding", "backbone.pos_emb")  # tensors that may have more rows than the earlier model's


@torch.no_grad()
def inherit_weights(model: nn.Module, earlier: nn.Module, prefixes: Sequence[str]) -> list[str]:
    """Copies every tensor of the earlier model whose name has one of the prefixes; returns the names.

    A table with more rows than the earlier one (added tokens or positions) keeps its own rows beyond those copied.
    Tensors that the earlier model lacks keep their initial values, except in the backbone, where none may be missing.

    Raises:
        ValueError: a tensor has another shape, the earlier backbone lacks one, or a prefix fits no tensor here.
    """
    ours, theirs, taken = model.state_dict(), earlier.state_dict(), []
    for prefix in prefixes:
        if not any(has_prefix(name, (prefix,)) for name in ours):
            raise ValueError(f"no part of the model begins with {prefix}: correct `inherits` of its method")
    for name, own in ours.items():
        if not has_prefix(name, tuple(prefixes)):
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
