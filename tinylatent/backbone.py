"""Backbone: what a method may ask of a model, and all it may ask.

Our Transformer implements it, and so does the wrapper round any Hugging Face causal language model. Methods never know
which one they hold.

Letters: B rows, T steps, D width, V vocabulary, S all slots so far (cache and new ones).
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Site = Literal["resid_in", "attn_add", "mlp_add", "resid_out"]
SITES: tuple[Site, ...] = ("resid_in", "attn_add", "mlp_add", "resid_out")

Edit = Callable[[int, Site, Tensor], Tensor]
"""edit(layer, site, tensor_BTD) -> tensor_BTD: reads (return it unchanged) or changes the activity at a site."""

Cache = Any
"""Keys and values of the past. A value, never changed in place: keeping one and going on twice from it is safe."""


@runtime_checkable
class Backbone(Protocol):
    """A causal model over embeddings. Any object with these members will do; no inheritance needed."""

    @property
    def embedding(self) -> Float[Tensor, "V D"]:
        """The input embedding matrix."""
        ...

    def embed(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """Input embeddings of token ids, without positions."""
        ...

    def forward(
        self,
        embeddings_BTD: Float[Tensor, "B T D"],
        cache: Cache | None = None,
        mask_BT: Bool[Tensor, "B S"] | None = None,
        positions_BT: Int[Tensor, "B T"] | None = None,
        edit: Edit | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Cache]:
        """Hidden states after the last norm for the new slots, and the cache that includes them.

        Args:
            embeddings_BTD: inputs of the new slots.
            cache: what an earlier forward returned; None at the start.
            mask_BT: True where a slot may be attended to, over cache and new slots together; None if all may.
            positions_BT: position of each new slot; by default the number of unmasked slots before it.
            edit: called at every site of every layer.
        """
        ...

    def readout(self, hidden: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape V"]:
        """Logits over the vocabulary."""
        ...

    def fork(self, cache: Cache, times: int) -> Cache:
        """The cache with every row repeated `times` times in place (row b becomes rows b*times ... )."""
        ...


def default_positions(
    past: int, new: int, mask_BS: Bool[Tensor, "B S"] | None, device: torch.device
) -> Int[Tensor, "rows new"]:
    """Positions of the new slots: per row the number of unmasked slots before each; one row serves all without mask."""
    if mask_BS is None:
        return torch.arange(past, past + new, device=device)[None]
    return (mask_BS.long().cumsum(1) - 1).clamp(min=0)[:, past : past + new]
