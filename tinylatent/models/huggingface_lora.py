"""LoRA: low-rank adapters in the layers of a Hugging Face model, by the package peft (Hu et al. 2021).

    add_lora(model, LoRA(rank=16), generator)
    backbone = HFBackbone(model)

Adapters are all that is trained then, and rows of added tokens. Switched off, they leave the model as it was: that is
the reference of a policy gradient with a KL term, which needs no copy. When such training begins, what they have
learned before is folded into the model, so that the reference is the policy of that moment.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tinylatent.core.extras import MissingExtraError
from tinylatent.core.precision import full, is_half
from tinylatent.models.backbone import Backbone, Cache, Table

ALL_LINEAR = "all-linear"
ADAPTER = "default"


@dataclass(frozen=True)
class LoRA:
    """Settings of adapters.

    Raises ValueError for a rank or alpha that is not positive.
    """

    rank: int = 16
    """Rank of what is added to a matrix."""
    alpha: float = 32.0
    """What is added is multiplied by alpha / rank."""
    targets: tuple[str, ...] = (ALL_LINEAR,)
    """Ends of the names of layers that get adapters, such as "q_proj"; all linear layers but the head by default."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise ValueError(f"rank {self.rank} and alpha {self.alpha}: expected positive ones, such as 16 and 32")


def add_lora(model: Any, settings: LoRA, generator: torch.Generator | None = None) -> None:
    """Puts adapters into a model of transformers, and freezes everything else. They add nothing at first.

    Args:
        model: changed in place.
        settings: of the adapters.
        generator: draws their first matrices (seed 0 by default); the second ones are zero.

    Raises:
        ImportError: peft is not installed.
        ValueError: no layer has one of these names.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("LoRA needs", "peft", "lora") from error
    targets: Any = ALL_LINEAR if settings.targets == (ALL_LINEAR,) else list(settings.targets)
    alpha: Any = settings.alpha  # which need not be whole
    config = LoraConfig(r=settings.rank, lora_alpha=alpha, target_modules=targets)
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator; what it drew is replaced below
        inject_adapter_in_model(config, model, ADAPTER)
    generator = generator or torch.Generator().manual_seed(0)
    model.requires_grad_(False)
    for layer in adapted(model):
        first, second = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        drawn = torch.empty(first.weight.shape).uniform_(-1, 1, generator=generator) / math.sqrt(first.weight.shape[1])
        like = full(first.weight)  # float32 also beside a model of half precision, whose steps would be too coarse
        first.weight = nn.Parameter(drawn.to(like))
        second.weight = nn.Parameter(torch.zeros_like(second.weight, dtype=like.dtype))


def adapted(model: nn.Module) -> list[Any]:
    """The layers of a model that have adapters."""
    return [module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "enable_adapters")]


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """A context in which adapters add nothing; which of them are trained stays as it is."""
    layers = adapted(model)
    trained = [(parameter, parameter.requires_grad) for layer in layers for parameter in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, was in trained:
            parameter.requires_grad_(was)


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Adds what adapters add to the matrices themselves, and lets the adapters begin anew from nothing.

    Raises:
        ValueError: matrices have half precision, whose grid most of what adapters learned would fall between; nothing
            is changed then.
    """
    layers = [(layer, name) for layer in adapted(model) for name in layer.active_adapters]
    learned = [(layer, name) for layer, name in layers if layer.lora_B[name].weight.any()]
    half = [weight for layer, _ in learned if is_half(weight := layer.get_base_layer().weight)]
    if half:
        raise ValueError(
            f"adapters have learned something, which a model in {str(half[0].dtype).removeprefix('torch.')} is too "
            "coarse to take in, as the reference of a KL term needs: load it as float32, or leave the KL term out "
            "(method.kl 0)"
        )
    for layer, name in learned:
        weight = layer.get_base_layer().weight
        weight += layer.get_delta_weight(name).to(weight)
        layer.lora_B[name].weight.zero_()


class SwitchedOff:
    """A backbone without what its adapters and its added rows have learned; it shares all weights.

    Args:
        backbone: of a model with adapters.
    """

    def __init__(self, backbone: Any):
        self._backbone = backbone

    @property
    def table(self) -> Table:
        """That of the backbone."""
        with self._off():
            table: Table = self._backbone.table
        return table

    def forward(self, embeddings_BTD: Tensor, *others: Any, **options: Any) -> tuple[Tensor, Cache]:
        """As Backbone.forward."""
        with self._off():
            found: tuple[Tensor, Cache] = self._backbone.forward(embeddings_BTD, *others, **options)
        return found

    def readout(self, hidden: Tensor) -> Tensor:
        """As Backbone.readout."""
        with self._off():
            logits: Tensor = self._backbone.readout(hidden)
        return logits

    def flops(self, new: int, past: int = 0, read: int | None = None) -> int:
        """That of the backbone, adapters included."""
        count: int = self._backbone.flops(new, past, read)
        return count

    def start_here(self) -> None:
        """Makes what the model computes now that which it computes without adapters."""
        fold(self._backbone.model)
        self._backbone.is_moved = True
        for rows in self._backbone.every_added:
            rows.fold()

    @contextmanager
    def _off(self) -> Iterator[None]:
        """A context in which nothing that was learned counts."""
        for rows in self._backbone.every_added:
            rows.is_off = True
        try:
            with switched_off(self._backbone.model):
                yield
        finally:
            for rows in self._backbone.every_added:
                rows.is_off = False


def reference_of(backbone: Any) -> Backbone | None:
    """A view of what a backbone computes without its adapters; None if it has none, or weights beside them train."""
    layers = adapted(backbone) if isinstance(backbone, nn.Module) else []
    within = {id(parameter) for layer in layers for name, parameter in layer.named_parameters() if "lora_" in name}
    within |= {id(rows.learned_AD) for rows in getattr(backbone, "every_added", ())}
    if not layers or any(p.requires_grad and id(p) not in within for p in backbone.parameters()):
        return None
    return SwitchedOff(backbone)
