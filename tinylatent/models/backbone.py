"""Backbone: what a method may ask of a model, and all it may ask.

A model is an embedding table, blocks, and a readout. Our Decoder implements the protocol, and so does the wrapper round
any Hugging Face causal language model. Methods never know which one they hold.

Letters: B rows, T new slots, R slots whose result is read, S all slots so far (cache and new ones), D width, V
vocabulary, K tokens of a mixture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Site = Literal["resid_in", "attn_add", "mlp_add", "resid_out"]
SITES: tuple[Site, ...] = ("resid_in", "attn_add", "mlp_add", "resid_out")

Edit = Callable[[int, Site, Tensor, range], Tensor]
"""edit(layer, site, tensor_BTD, slots) -> tensor_BTD: reads (returns it unchanged) or changes the activity at a site.

`slots` are the places of the T slots within the whole sequence, range(past, past + T). A looped stack counts its layers
on: loop l of L blocks has layers l L .. l L + L - 1.
"""


@dataclass(frozen=True)
class Table:
    """An embedding table: rows of ids, mixtures of rows, and the scale that a model multiplies both by."""

    weight: Float[Tensor, "V D"]
    scale: float | None = None
    """None for 1: nothing is multiplied then. Scaling comes after the lookup, never over the whole table."""

    def __len__(self) -> int:
        """V, the number of rows."""
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        """D."""
        return self.weight.shape[1]

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.scale is None else x * self.scale

    def rows(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """The embedding of each id."""
        return self._scaled(F.embedding(ids, self.weight))

    def mix(self, shares: Float[Tensor, "*shape U"]) -> Float[Tensor, "*shape D"]:
        """sum_v shares_v E[v]: a mixture of the first U rows, usually of all (tokens may have been added behind)."""
        known = shares.shape[-1]
        return self._scaled(shares @ (self.weight if known == len(self) else self.weight[:known]))

    def mix_rows(
        self, ids: Int[Tensor, "*shape K"], shares: Float[Tensor, "*shape K"] | None = None
    ) -> Float[Tensor, "*shape D"]:
        """sum_k shares_k E[id_k]: a mixture of few rows; their mean where no shares are given."""
        rows = F.embedding(ids, self.weight)
        return self._scaled(rows.mean(-2) if shares is None else (rows * shares[..., None]).sum(-2))

    def unit(self) -> Float[Tensor, ""]:
        """Mean norm of an embedding: the unit that lengths of latents are given in."""
        return self._scaled(self.weight.norm(dim=-1).mean())


@dataclass(frozen=True)
class Cache:
    """Keys and values of the past. A value, never changed in place: keeping one and going on twice from it is safe."""

    size: int
    """Slots it holds."""
    layers: tuple[Any, ...]
    """Tensors of the model's own, in nested tuples; rows are the first axis of each."""

    def fork(self, times: int) -> "Cache":
        """Every row repeated `times` times in place: row b becomes rows b*times .. b*times + times - 1."""
        return Cache(self.size, _each(self.layers, lambda x: x.repeat_interleave(times, 0)))


def _each(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return change(tree) if isinstance(tree, Tensor) else tuple(_each(branch, change) for branch in tree)


@runtime_checkable
class Backbone(Protocol):
    """A causal model over embeddings. Any object with these members will do; no inheritance needed."""

    @property
    def table(self) -> Table:
        """The input embedding table."""
        ...

    def forward(
        self,
        embeddings_BTD: Float[Tensor, "B T D"],
        cache: Cache | None = None,
        mask_BS: Bool[Tensor, "B S"] | None = None,
        positions_BT: Int[Tensor, "rows T"] | None = None,
        edit: Edit | None = None,
        read_from: int = 0,
    ) -> tuple[Float[Tensor, "B R D"], Cache]:
        """Hidden states after the last norm of the new slots from `read_from` on, and the cache that includes all.

        Args:
            embeddings_BTD: inputs of the new slots.
            cache: what an earlier forward returned; None at the start.
            mask_BS: True where a slot may be attended to, over cache and new slots together; None if all may.
            positions_BT: position of each new slot; by default the number of unmasked slots before it.
            edit: called at every site of every layer, with all new slots.
            read_from: first new slot whose hidden state is wanted; earlier ones may be left out of the last layer.
        """
        ...

    def readout(self, hidden: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape V"]:
        """Logits over the vocabulary."""
        ...

    def flops(self, new: int, past: int = 0, read: int | None = None) -> int:
        """Floating-point operations of a forward over `new` slots of one row after `past` cached ones, of which the
        last `read` (None: all) give hidden states; embedding and readout not counted. A multiply-add is two."""
        ...


def default_positions(
    past: int, new: int, mask_BS: Bool[Tensor, "B S"] | None, device: torch.device
) -> Int[Tensor, "rows new"]:
    """Positions of the new slots: per row the number of unmasked slots before each; one row serves all without mask."""
    if mask_BS is None:
        return torch.arange(past, past + new, device=device)[None]
    return (mask_BS.long().cumsum(1) - 1).clamp(min=0)[:, past : past + new]


# ---------------------------------------------------------------------------------------------------------------------
# Weights that move


VERSION = attrgetter("_version")


def weights_version(backbone: Any) -> int:
    """A number that grows whenever weights change: by `weights_moved`, or in place by anybody.

    The parameters are those that the model had when it was first asked. Others that are put in their place go unseen,
    as do changes through `.data`: tell them by `weights_moved`.
    """
    if not isinstance(backbone, nn.Module):
        return 0
    own = backbone.__dict__  # past nn.Module's own attributes, which cost a microsecond each
    if "_watched" not in own:
        own["_watched"] = tuple(backbone.parameters())
    return own.get("_moves", 0) + sum(map(VERSION, own["_watched"]))


def weights_moved(backbone: Any) -> None:
    """Counts one change of weights; parameters that are views of one flat tensor do not show theirs by themselves."""
    if isinstance(backbone, nn.Module):
        backbone.__dict__["_moves"] = backbone.__dict__.get("_moves", 0) + 1
