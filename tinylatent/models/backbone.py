"""Backbone: the protocol through which engine and methods use a model.

A model is an embedding table, blocks, and a readout. Our Decoder implements the protocol, and so does the wrapper for
Hugging Face causal language models. Methods work with either.

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

`slots` are the indices of the T slots in the whole sequence, range(past, past + T). A looped stack numbers its layers
consecutively: loop l of L blocks has layers l L .. l L + L - 1.
"""


@dataclass(frozen=True)
class Table:
    """An embedding table: rows of ids, mixtures of rows, and the scale that a model multiplies both by."""

    weight: Float[Tensor, "known D"]
    """Of the model itself; all rows, if none were added."""
    scale: float | None = None
    """Factor on every embedding; None for 1. It is applied after the lookup, never to the whole table."""
    added: Float[Tensor, "A D"] | None = None
    """Rows of tokens that were added after those, if they are kept apart."""

    def __len__(self) -> int:
        """V, the number of rows."""
        return self.weight.shape[0] + (0 if self.added is None else self.added.shape[0])

    @property
    def width(self) -> int:
        """D."""
        return self.weight.shape[1]

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.scale is None else x * self.scale

    def rows(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """The embedding of each id.

        Raises:
            ValueError: an id is no row of the table (on a GPU it is torch's own error).
        """
        return self._scaled(self._looked_up(ids))

    def _looked_up(self, ids: Tensor) -> Tensor:
        known = self.weight.shape[0]
        try:
            if self.added is None:
                return F.embedding(ids, self.weight)
            rows = F.embedding(ids.clamp(max=known - 1), self.weight)
            more = F.embedding((ids - known).clamp(min=0), self.added.to(rows))
            return torch.where((ids < known)[..., None], rows, more)
        except IndexError:
            raise ValueError(
                f"token ids from {int(ids.min())} to {int(ids.max())}: expected 0 to {len(self) - 1}, the rows of the "
                "model's embedding table; was the prompt made for another task or tokenizer?"
            ) from None

    def mix(self, shares: Float[Tensor, "*shape U"]) -> Float[Tensor, "*shape D"]:
        """sum_v shares_v E[v]: a mixture of the first U rows; of all, unless tokens were added after them."""
        count, known, shares = shares.shape[-1], self.weight.shape[0], shares.to(self.weight)
        if count <= known:
            return self._scaled(shares @ (self.weight if count == known else self.weight[:count]))
        assert self.added is not None, "there are more shares than rows"
        more = shares[..., known:] @ self.added[: count - known].to(self.weight)
        return self._scaled(shares[..., :known] @ self.weight + more)

    def mix_rows(
        self, ids: Int[Tensor, "*shape K"], shares: Float[Tensor, "*shape K"] | None = None
    ) -> Float[Tensor, "*shape D"]:
        """sum_k shares_k E[id_k]: a mixture of K rows; their mean where no shares are given. Raises as `rows` does."""
        rows = self._looked_up(ids)
        return self._scaled(rows.mean(-2) if shares is None else (rows * shares[..., None].to(rows)).sum(-2))

    def unit(self) -> Float[Tensor, ""]:
        """Mean norm of an embedding, the unit in which norms of latents are reported."""
        norm_V = self.weight.norm(dim=-1)
        return self._scaled((norm_V if self.added is None else torch.cat([norm_V, self.added.norm(dim=-1)])).mean())


@dataclass(frozen=True)
class Cache:
    """Keys and values of past slots. Immutable, so two continuations may start from the same cache."""

    size: int
    """Number of cached slots."""
    layers: tuple[Any, ...]
    """The model's own tensors in nested tuples; the first axis of every tensor is the row."""

    def fork(self, times: int) -> "Cache":
        """A cache with every row repeated: row b becomes rows b*times .. b*times + times - 1."""
        return Cache(self.size, _map_tree(self.layers, lambda x: x.repeat_interleave(times, 0)))

    def rows(self, index_b: Tensor) -> "Cache":
        """A cache of some rows, which may be named more than once."""
        return Cache(self.size, _map_tree(self.layers, lambda x: x.index_select(0, index_b)))


def _map_tree(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return change(tree) if isinstance(tree, Tensor) else tuple(_map_tree(branch, change) for branch in tree)


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
        keep: bool = True,
    ) -> tuple[Float[Tensor, "B R D"], Cache]:
        """Hidden states (after the last norm) of the new slots from `read_from` on, and the cache with all new slots.

        Args:
            embeddings_BTD: inputs of the new slots.
            cache: what an earlier forward returned; None at the start.
            mask_BS: True where a slot may be attended to, over cache and new slots together; None if all may.
            positions_BT: position of each new slot; by default the number of unmasked slots before it.
            edit: called at every site of every layer, with all new slots.
            read_from: first new slot whose hidden state is returned; the last layer may skip earlier ones.
            keep: whether the cache is wanted. If not, it comes back without layers, and nothing can follow it.
        """
        ...

    def readout(self, hidden: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape V"]:
        """Logits over the vocabulary, in float32 at least: in half precision a token's log-probability would be off by
        about 0.03 nats."""
        ...

    def flops(self, new: int, past: int = 0, read: int | None = None) -> int:
        """Floating-point operations of a forward over `new` slots of one row after `past` cached ones, of which the
        last `read` (None: all) give hidden states; embedding and readout not counted. A multiply-add is two."""
        ...


@runtime_checkable
class Layered(Backbone, Protocol):
    """A backbone whose layers can be run one at a time, over whole sequences and without a cache: what lenses need."""

    @property
    def depth(self) -> int:
        """L, the number of layers that every slot passes; a looped stack counts each pass."""
        ...

    @property
    def parallel(self) -> bool:
        """Whether a layer's MLP reads what its attention reads, not the sum of both (GPT-NeoX, GPT-J)."""
        ...

    @property
    def sums(self) -> bool:
        """Whether the stream after a layer is that before it and what is recorded as added, and nothing else."""
        ...

    def through(
        self,
        stream_BSD: Float[Tensor, "B S D"],
        layers: range,
        mask_BS: Bool[Tensor, "B S"] | None = None,
        positions_BS: Int[Tensor, "rows S"] | None = None,
        edit: Edit | None = None,
    ) -> Float[Tensor, "B S D"]:
        """The residual stream after these layers, given the one that enters the first of them.

        Mask, positions and edit are those of `forward`; the edit is called at the sites of these layers alone.
        """
        ...

    def finish(self, stream_BSD: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """The hidden states that the last norm makes of the stream after the last layer."""
        ...


def default_positions(
    past: int, new: int, mask_BS: Bool[Tensor, "B S"] | None, device: torch.device
) -> Int[Tensor, "rows new"]:
    """Positions of the new slots: per row the number of unmasked slots before each; one row serves all without mask."""
    if mask_BS is None:
        return torch.arange(past, past + new, device=device)[None]
    return (mask_BS.long().cumsum(1) - 1).clamp(min=0)[:, past : past + new]


def check_positions(positions_BT: Int[Tensor, "rows T"] | range, known: int, remedy: str) -> None:
    """Checks that every position is one of the `known` ones of a model, counted from 0.

    Raises:
        ValueError: a position is not; the message ends in the remedy.
    """
    if not len(positions_BT):
        return
    if isinstance(positions_BT, range):
        first, last = positions_BT[0], positions_BT[-1]
    else:
        first, last = torch.stack(positions_BT.aminmax()).tolist() if positions_BT.numel() else (0, 0)
    if first < 0 or last >= known:
        wrong = first if first < 0 else last
        raise ValueError(f"position {wrong}, but the model has {known} positions, 0 to {known - 1}: {remedy}")


@torch.no_grad()
def set_last_rows(backbone: Any, rows_MD: Float[Tensor, "M D"]) -> None:
    """Replaces the last rows of a backbone's table, wherever it keeps them."""
    added = getattr(backbone, "added", None)
    if added is None:
        backbone.table.weight[-len(rows_MD) :] = rows_MD.to(backbone.table.weight)
    else:
        added.set_last(rows_MD)


# ---------------------------------------------------------------------------------------------------------------------
# Version number of weights


VERSION = attrgetter("_version")


def weights_version(backbone: Any) -> int:
    """A number that grows whenever the weights change in place, or `weights_moved` is called.

    It watches the parameters that the model had at the first call. Call `weights_moved` after replacing a parameter or
    writing through `.data`: torch does not count those changes.
    """
    if not isinstance(backbone, nn.Module):
        return 0
    own = backbone.__dict__  # past nn.Module's own attributes, which cost a microsecond each
    if "_watched" not in own:
        own["_watched"] = tuple(backbone.parameters())
    return own.get("_moves", 0) + sum(map(VERSION, own["_watched"]))


def weights_moved(backbone: Any) -> None:
    """Records a change of weights that torch does not count, as in parameters that are views of one flat tensor."""
    if isinstance(backbone, nn.Module):
        backbone.__dict__["_moves"] = backbone.__dict__.get("_moves", 0) + 1
