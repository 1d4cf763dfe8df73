"""Layers of a Hugging Face model: where edits hook in, what a layer adds, and how to run some layers alone.

A layer adds the output of its attention and of its MLP to the residual stream or, where norms stand after them (OLMo 2,
Gemma 2 and 3, GLM 4), what the norms make of these. Which modules these are is found by trying: the stream after a
layer has to be the stream before it and both additions.

Nothing here changes a model for longer than a `with` block, whatever happens inside it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tinylatent.core.precision import wide
from tinylatent.models.backbone import SITES, Edit, Site

STACKS = ("h", "layers")
ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")
AFTER = (("post_attention_layernorm", "post_feedforward_layernorm"), ("post_self_attn_layernorm", "post_mlp_layernorm"))
"""Names of norms after attention and MLP, where a family has them."""


@dataclass(frozen=True)
class Layer:
    """A block, and the two modules whose outputs it adds to the residual stream."""

    block: nn.Module
    attention: nn.Module
    mlp: nn.Module
    is_tuple: bool = False
    """Whether the block returns its stream as the first of several values."""


def candidates(model: nn.Module, name: str) -> list[list[Layer]]:
    """The layers of a base model: with attention and MLP themselves and, if there are such, with norms after them.

    Raises:
        ValueError: its blocks have unknown names.
    """
    for stack in STACKS:
        blocks = list(getattr(model, stack, ()))
        attention = next((x for x in ATTENTIONS if blocks and all(hasattr(block, x) for block in blocks)), None)
        if attention is not None and all(hasattr(block, "mlp") for block in blocks):
            pairs = [(attention, "mlp"), *(pair for pair in AFTER if all(hasattr(blocks[0], x) for x in pair))]
            return [[Layer(block, *(getattr(block, x) for x in pair)) for block in blocks] for pair in pairs]
    raise ValueError(
        f"{name} cannot be edited: expected blocks {' or '.join(STACKS)}, each with mlp and {', '.join(ATTENTIONS)}"
    )


def adding(run: Callable[[], object], kinds: Sequence[Sequence[Layer]], name: str) -> tuple[Sequence[Layer], bool]:
    """The layers whose modules are what is added, and whether an MLP reads what its attention reads.

    Args:
        run: a forward of two slots.
        kinds: what `candidates` returned.
        name: of the model, for the error.

    Raises:
        ValueError: no kind adds up.
    """
    tuples = _returning_tuples(run, [layer.block for layer in kinds[0]])
    best, least = kinds[0], float("inf")
    for layers in kinds:
        seen = _seen(run, layers)
        error = max(_missed(*(seen[layer, site] for site in SITES)) for layer in range(len(layers)))
        if error < least:
            best, least = layers, error
    if not least <= 1:
        raise ValueError(f"{name} cannot be edited: expected blocks that only add attention and MLP")
    usual, silent = _seen(run, best), _seen(run, best, lambda n, site, x, _: x * 0 if site == "attn_add" else x)
    found = [replace(layer, is_tuple=is_tuple) for layer, is_tuple in zip(best, tuples, strict=True)]
    return found, close(silent[0, "mlp_add"], usual[0, "mlp_add"])


def _missed(before: Tensor, attention: Tensor, mlp: Tensor, after: Tensor) -> float:
    """By how much a sum misses the stream after a layer, in units of what rounding explains.

    Rounding is that of the stream; what is missed must also be small beside what was added, however large the stream.
    """
    eps = torch.finfo(after.dtype).eps
    before, attention, mlp, after = (wide(x) for x in (before, attention, mlp, after))
    error = (before + attention + mlp - after).abs().max()
    rounding = 4 * eps * torch.stack([before, attention, mlp, after]).abs().max()
    added = eps**0.5 * (attention.abs() + mlp.abs()).max()
    return float(error / torch.maximum(rounding, added).clamp(min=torch.finfo(error.dtype).tiny))


def _returning_tuples(run: Callable[[], object], blocks: Sequence[nn.Module]) -> list[bool]:
    """Which blocks return more than their stream."""
    found: list[bool] = []
    with torch.no_grad(), ExitStack() as hooks:
        for block in blocks:
            hooks.enter_context(
                block.register_forward_hook(lambda module, inputs, output: found.append(isinstance(output, tuple)))
            )
        run()
    return found


def _seen(
    run: Callable[[], object], layers: Sequence[Layer], change: Edit | None = None
) -> dict[tuple[int, Site], Tensor]:
    """The activity at every site of a forward."""
    seen: dict[tuple[int, Site], Tensor] = {}

    def look(layer: int, site: Site, x: Tensor, slots: range) -> Tensor:
        return seen.setdefault((layer, site), x if change is None else change(layer, site, x, slots))

    with torch.no_grad(), edited(layers, look, range(2)):
        run()
    return seen


def edited(layers: Sequence[Layer], edit: Edit, slots: range) -> ExitStack:
    """A context in which the edit is called at the four sites of every layer."""

    def call(layer: int, site: Site, module: nn.Module, inputs: tuple, output: Any = None) -> Any:
        x = inputs if output is None else output  # hooks that run before a module get no output
        return (edit(layer, site, x[0], slots), *x[1:]) if isinstance(x, tuple) else edit(layer, site, x, slots)

    hooks = ExitStack()
    for number, layer in enumerate(layers):
        hooks.enter_context(layer.block.register_forward_pre_hook(partial(call, number, "resid_in")))
        hooks.enter_context(layer.attention.register_forward_hook(partial(call, number, "attn_add")))
        hooks.enter_context(layer.mlp.register_forward_hook(partial(call, number, "mlp_add")))
        hooks.enter_context(layer.block.register_forward_hook(partial(call, number, "resid_out")))
    return hooks


@contextmanager
def alone(layers: Sequence[Layer], chosen: range, stream: Tensor) -> Iterator[None]:
    """A context in which only the chosen layers compute, the first of them from this stream.

    The others hand on what they are given, at no cost, while the model itself still makes masks and rotary embeddings.
    """
    with ExitStack() as undo:
        if chosen.start == 0 and len(chosen):
            first = layers[0].block.register_forward_pre_hook(lambda module, inputs: (stream, *inputs[1:]))
            undo.enter_context(first)
        for number, layer in enumerate(layers):
            if number not in chosen:
                given = stream if number < chosen.start or not len(chosen) else None
                undo.enter_context(_passed_by(layer, given))
        yield


@contextmanager
def _passed_by(layer: Layer, given: Tensor | None) -> Iterator[None]:
    """A context in which a block returns what it is given, or this stream."""

    def hand_on(hidden_states: Tensor, *rest: Any, **more: Any) -> Any:
        stream = hidden_states if given is None else given
        return (stream,) if layer.is_tuple else stream

    own = vars(layer.block)
    before = own.get("forward")
    own["forward"] = hand_on
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:  # somebody else's, such as accelerate's
            own["forward"] = before


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two results agree up to the rounding of their precision."""
    return bool((a - b).abs().max() <= torch.finfo(a.dtype).eps ** 0.5 * b.abs().max())
