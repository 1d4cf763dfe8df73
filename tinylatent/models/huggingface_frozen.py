"""Frozen: a Hugging Face model that only decodes, with its step compiled once.

    frozen = Frozen(backbone, rows=64, slots=200)
    rollout(frozen, plan, prompt_BN, mask_BN, group=8)   # of eight prompts

A step of a small model, or of any model on a GPU, is mostly the overhead of launching its operations one by one, and a
cache that grows is another shape every time. Here keys and values have their places from the beginning, so that every
step is the same program, which `torch.compile` writes once (half a minute or more, at the first step). Prompts are read
as ever. There are no gradients: replay actions on the backbone itself.

Letters: B rows, N slots of a cache that grew, S slots so far, L slots there is room for, H heads, K width of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tinylatent.core.extras import MissingExtraError
from tinylatent.models.backbone import Cache, Edit, Table
from tinylatent.models.huggingface import HFBackbone

try:
    from transformers import StaticCache
except ImportError as error:
    raise MissingExtraError("Hugging Face models need", "transformers", "hf") from error


@dataclass(frozen=True)
class Place(Cache):
    """How far the one cache is filled; it holds no tensors of its own, so that it cannot be copied."""

    turn: int = 0
    """Number of the rollout that filled it."""

    def fork(self, times: int) -> Cache:
        """Raises ValueError: rows are repeated after a prompt alone."""
        raise ValueError(BRANCHES)

    def rows(self, index_b: Tensor) -> Cache:
        """Raises ValueError: rows are chosen after a prompt alone."""
        raise ValueError(BRANCHES)


BRANCHES = "a frozen backbone keeps one rollout and goes on where that ended: branch on the backbone itself"


class Frozen(nn.Module):
    """A Backbone without gradients, whose steps are compiled.

    Args:
        backbone: gives weights and everything but the step. Its weights may be trained on: steps read them anew.
        rows: B of every rollout, groups included.
        slots: L, most slots of prompt and steps together.
        compiled: whether to compile; without, it is slower than the backbone, and there to be compared with.

    Raises:
        ValueError: the model has sliding windows, rows or slots are not positive, or there are more slots than it has
            positions.
    """

    def __init__(self, backbone: HFBackbone, rows: int, slots: int, compiled: bool = True):
        super().__init__()
        if rows < 1 or slots < 1:
            raise ValueError(f"{rows} rows and {slots} slots: expected at least one of each")
        if backbone.window is not None:
            raise ValueError("a model with sliding windows: expected attention to all slots in every layer")
        self.backbone, self.slots, self.size, self.turn = backbone, slots, 0, 0
        self._rows, model = rows, backbone.model
        self._cache: Any = StaticCache(config=model.config, max_cache_len=slots)
        self._slot_L = torch.arange(slots, device=self.table.weight.device)
        step: Any = model.base_model
        if compiled:  # calls between its kernels in C++, since a step is mostly these
            step = torch.compile(step, fullgraph=True, dynamic=False, options={"cpp_wrapper": True})
        self._step = step

    @property
    def table(self) -> Table:
        """That of the backbone."""
        return self.backbone.table

    def readout(self, hidden: Tensor) -> Tensor:
        """As HFBackbone.readout."""
        return self.backbone.readout(hidden)

    def flops(self, new: int, past: int = 0, read: int | None = None) -> int:
        """Those of the backbone: pairs with slots that are still empty, which a step computes too, are not counted."""
        return self.backbone.flops(new, past, read)

    @torch.no_grad()
    def forward(
        self,
        embeddings_BTD: Tensor,
        cache: Cache | None = None,
        mask_BS: Tensor | None = None,
        positions_BT: Tensor | None = None,
        edit: Edit | None = None,
        read_from: int = 0,
        keep: bool = True,
    ) -> tuple[Tensor, Cache]:
        """Hidden states of a prompt, or of one slot more; see Backbone.forward.

        Raises:
            ValueError: as HFBackbone.forward; or there is an edit, more than one new slot after others, another number
                of rows, no room left, or a cache that is not where the last rollout ended.
        """
        if edit is not None:
            raise ValueError("a frozen backbone takes no edits: use the backbone itself")
        if cache is None:
            return self.backbone.forward(embeddings_BTD, None, mask_BS, positions_BT, read_from=read_from, keep=keep)
        (B, T, _), past = embeddings_BTD.shape, cache.size
        if T != 1 or self._rows != B or past >= self.slots:
            raise ValueError(
                f"{B} rows and {T} new slots after {past}: this frozen backbone takes one slot at a time for "
                f"{self._rows} rows, up to {self.slots} slots; make one of the right size"
            )
        positions_BT = self.backbone.placed(past, 1, mask_BS, positions_BT, embeddings_BTD.device)
        if not isinstance(cache, Place):
            self._fill(cache)
        elif (cache.turn, past) != (self.turn, self.size):
            raise ValueError(BRANCHES)
        seen_BL = (self._slot_L <= past).expand(B, -1)
        if mask_BS is not None:
            seen_BL = seen_BL & torch.nn.functional.pad(mask_BS, (0, self.slots - past - 1))
        hidden = self._step(
            inputs_embeds=embeddings_BTD.contiguous(),
            **{self.backbone.cache_name: self._cache},
            attention_mask=seen_BL[:, None, None],
            position_ids=positions_BT.expand(B, -1).contiguous(),
            use_cache=True,
        ).last_hidden_state
        self.size = past + 1
        return hidden, Place(self.size, (), self.turn)

    def _fill(self, cache: Cache) -> None:
        """Puts keys and values of a prompt into their places."""
        layers: Sequence[tuple[Tensor, Tensor]] = cache.layers
        for layer, (keys_BHNK, values_BHNK) in zip(self._cache.layers, layers, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(keys_BHNK, values_BHNK)
            layer.keys[:, :, : cache.size] = keys_BHNK
            layer.values[:, :, : cache.size] = values_BHNK
            layer.cumulative_length.fill_(cache.size)
        self.turn += 1
