"""Inherit: copies weights from an earlier model, by name."""

from collections.abc import Sequence

import torch

from tinylatent.objectives.method import Model, has_prefix, table_names

POSITIONS = "backbone.pos_emb"
"""Of our own decoder: may have more rows than the earlier model's, as tables may."""
ADDED = ("backbone.added", "backbone.added_head")
"""Rows of added tokens of a model of transformers: there may be more of them, or none in the earlier model."""


@torch.no_grad()
def inherit_weights(model: Model, earlier: Model, prefixes: Sequence[str]) -> list[str]:
    """Copies every tensor of the earlier model whose name has one of the prefixes; returns the names.

    A table with more rows than the earlier one had tokens or positions keeps its own rows beyond those copied.
    Tensors that the earlier model lacks keep their initial values, except in the backbone, where none may be missing.

    Raises:
        ValueError: a tensor has another shape, the earlier backbone lacks one, or a prefix fits no tensor here.
    """
    ours, theirs, taken = model.state_dict(), earlier.state_dict(), []
    tables = {*table_names(model, every=True)}
    for prefix in prefixes:
        if not any(has_prefix(name, (prefix,)) for name in ours):
            raise ValueError(f"no part of the model begins with {prefix}: correct `inherits` of its method")
    for name, own in ours.items():
        if not has_prefix(name, tuple(prefixes)):
            continue
        is_added = has_prefix(name, ADDED)
        if name not in theirs:
            if is_added:
                continue
            if name.startswith("backbone"):
                raise ValueError(f"the run to start from has no {name}: its model must be of the same kind")
            continue
        value = theirs[name]
        is_ours = is_added or name == POSITIONS
        known = len(value) if is_ours else len(earlier.backbone.table) if name in tables else None
        grown = known is not None and own.shape[1:] == value.shape[1:] and len(own) >= known
        if not grown and own.shape != value.shape:
            more = ", or more rows here" if known is not None else ""
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} in the run to start from and {tuple(own.shape)} here: expected "
                f"the same{more}"
            )
        (own[:known] if grown else own).copy_(value[:known] if grown else value)
        taken.append(name)
    if getattr(earlier.backbone, "is_moved", False):
        model.backbone.is_moved = True
    return taken
