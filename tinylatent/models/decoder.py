"""A decoder-only transformer, written to be read in one sitting.

An embedding table, learned position embeddings, blocks, a last norm, and the table again as the readout. By default
blocks are pre-norm with a GELU MLP and no biases: GPT-2's function with its biases at zero, which a test proves by
copying the weights. `ModelConfig` chooses other blocks; constructions by hand pass their own. It implements the
Backbone protocol: embeddings in, hidden states after the last norm out, with an immutable cache, masks, explicit
positions and edits.

Letters: B rows, T new slots, R slots whose result is read, S all slots (cache and new), D width, V vocabulary, P
positions, L layers.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tinylatent.core.precision import full
from tinylatent.models.backbone import Cache, Edit, Table, check_positions, default_positions
from tinylatent.models.blocks import (
    ACTIVATIONS,
    MLP,
    PLACEMENTS,
    Activation,
    Attention,
    Block,
    Dropout,
    Experts,
    Norm,
    Placement,
    attention_bias,
)

Init = Literal["gpt2", "fan_in"]
MAX_WIDTH, MAX_LAYERS, MAX_LOOPS, MAX_EXPERTS = 8192, 256, 64, 64
LARGER = "give its task a larger capacity, or take fewer steps"


@dataclass(frozen=True)
class ModelConfig:
    """Size and blocks of a decoder; vocabulary and positions come from the task.

    Raises ValueError for sizes out of range and unknown or incompatible kinds of blocks.
    """

    width: int = 32
    """Width D of the residual stream (a multiple of heads)."""
    layers: int = 2
    """Number of layers."""
    heads: int = 2
    """Attention heads per layer."""
    norm: Placement = "pre"
    """Placement of norms: before attention and MLP, on both sums, after both (before they are added), or nowhere; or
    blocks that are protected from outlier features."""
    mlp: Activation = "gelu"
    """Kind of MLP; experts are always ReLU."""
    experts: int = 1
    """Number of MLPs, of which a router chooses one for every slot; 1 is a plain MLP."""
    loops: int = 1
    """Passes through the stack of layers, with the same weights; with layers 1 it is one tied layer."""
    init: Init = "gpt2"
    """First matrices: normal(0, 0.02) as in GPT-2, or normal(0, 1 / sqrt(inputs)), which keeps the size of what they
    are given: deep narrow models may not learn without. Projections into the residual stream are divided by sqrt(2
    layers), but in protected blocks, whose gains begin so."""
    dropout: float = 0.0
    """Dropout on every addition to the residual stream, while supervised training computes its loss."""

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads) < 1 or self.width % self.heads:
            raise ValueError(
                f"width {self.width}, layers {self.layers}, heads {self.heads}: expected positive sizes with width a "
                f"multiple of heads; try width {max(1, self.heads) * 16}"
            )
        if self.width > MAX_WIDTH or self.layers > MAX_LAYERS:
            raise ValueError(
                f"width {self.width}, layers {self.layers}: expected at most {MAX_WIDTH} and {MAX_LAYERS}; "
                "for larger models wrap a Hugging Face one (tinylatent.models.huggingface)"
            )
        for name, options in (("norm", PLACEMENTS), ("mlp", ACTIVATIONS), ("init", get_args(Init))):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(options)}")
        if not 1 <= self.loops <= MAX_LOOPS or not 1 <= self.experts <= MAX_EXPERTS:
            raise ValueError(
                f"loops {self.loops}, experts {self.experts}: expected 1 to {MAX_LOOPS} and 1 to {MAX_EXPERTS}"
            )
        if self.experts > 1 and self.mlp not in ("gelu", "relu"):
            raise ValueError(f"mlp {self.mlp!r} with experts {self.experts}: experts are ReLU MLPs; leave mlp out")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: expected a share in [0, 1); try 0.1")


class Decoder(nn.Module):
    """An embedding table, position embeddings, blocks and a last norm.

    Args:
        embedding_VD: the table, tied to the readout.
        pos_emb_PD: added to the input at every position.
        blocks: the layers, first to last.
        norm: applied after the last block; None for no norm.
        loops: passes through the blocks.
        dropout: the object that the blocks share, switched on by `dropping`.
    """

    def __init__(
        self,
        embedding_VD: Float[Tensor, "V D"],
        pos_emb_PD: Float[Tensor, "P D"],
        blocks: Sequence[nn.Module],
        norm: nn.Module | None = None,
        loops: int = 1,
        dropout: Dropout | None = None,
    ):
        super().__init__()
        self.embedding, self.pos_emb = nn.Parameter(embedding_VD), nn.Parameter(pos_emb_PD)
        self.norm = norm
        self.blocks, self.loops, self._drop = nn.ModuleList(blocks), loops, dropout

    @classmethod
    def fresh(
        cls, vocabulary: int, positions: int, config: ModelConfig, generator: torch.Generator | None = None
    ) -> "Decoder":
        """A decoder to be trained; its weights depend on `generator` alone (seed 0 by default)."""
        D, drop = config.width, Dropout(config.dropout)
        protected, gain = config.norm == "protected", (2 * config.layers * config.loops) ** -0.5
        blocks = [
            Block(
                Attention(D, config.heads, qk_norm=protected),
                MLP(D, activation=config.mlp) if config.experts == 1 else Experts.fresh(D, config.experts),
                D,
                config.norm,
                drop,
                gain,
                first=number == 0,
            )
            for number in range(config.layers)
        ]
        last = Norm(D) if config.norm in ("pre", "after", "protected") else None
        model = cls(torch.empty(vocabulary, D), torch.empty(positions, D), blocks, last, config.loops, drop)
        model.initialise(generator or torch.Generator().manual_seed(0), config.init)
        return model

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, init: Init = "gpt2") -> None:
        """Draws every matrix anew, as `ModelConfig.init` says; norm weights, gains and biases stay as they are."""
        gained = {f"blocks.{n}." for n, x in enumerate(self.blocks) if getattr(x, "attn_gain", None) is not None}
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and not name.endswith("bias"):
                std = 0.02 if init == "gpt2" else parameter.shape[-1] ** -0.5
                if name.endswith(("out_proj", "down_proj")) and not any(map(name.startswith, gained)):
                    std /= math.sqrt(2 * self.depth)
                parameter.normal_(0.0, std, generator=generator)

    @property
    def table(self) -> Table:
        """The embedding table, tied to the readout."""
        return Table(self.embedding)

    @property
    def layers_to_share(self) -> list[nn.Module]:
        """The blocks, which several processes may keep in parts."""
        return [*self.blocks]

    @property
    def width(self) -> int:
        """D."""
        return self.embedding.shape[1]

    @property
    def positions(self) -> int:
        """P, the longest sequence there are positions for."""
        return self.pos_emb.shape[0]

    def readout(self, hidden: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape V"]:
        """Logits over the vocabulary, by the tied embedding matrix."""
        return full(F.linear(hidden, self.embedding))

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
        """Hidden states after the last norm from slot `read_from` on, and the extended cache; see Backbone.forward.

        The last layer computes queries, attention and MLP only for slots that are read, or for all under an edit.

        Raises:
            ValueError: a position is not one of the model's.
        """
        T, past = embeddings_BTD.shape[1], 0 if cache is None else cache.size
        bias = attention_bias(past, T, mask_BS, embeddings_BTD)
        x_BTD = embeddings_BTD + self._position_embeddings(past, T, mask_BS, positions_BT)
        grown, slots, stack = [], range(past, past + T), [*self.blocks] * self.loops
        for number, block in enumerate(stack):
            before = None if cache is None else cache.layers[number]
            skipped = read_from if number == len(stack) - 1 and edit is None else 0
            x_BTD, kept = block(x_BTD, before, bias, edit, number, slots, skipped)
            if keep:
                grown.append(kept)
        if read_from and edit is not None:
            x_BTD = x_BTD[:, read_from:]
        norm = self.norm
        return (x_BTD if norm is None else norm.forward(x_BTD)), Cache(past + T, tuple(grown))

    @property
    def depth(self) -> int:
        """L, the number of layers that every slot passes."""
        return len(self.blocks) * self.loops

    @property
    def parallel(self) -> bool:
        """Never: an MLP reads what its attention has added to."""
        return False

    @property
    def sums(self) -> bool:
        """Whether layers only add to the stream; norms on sums change it as well."""
        return not any(getattr(block, "placement", "none") == "post" for block in self.blocks)

    def through(
        self,
        stream_BSD: Float[Tensor, "B S D"],
        layers: range,
        mask_BS: Bool[Tensor, "B S"] | None = None,
        positions_BS: Int[Tensor, "rows S"] | None = None,
        edit: Edit | None = None,
    ) -> Float[Tensor, "B S D"]:
        """The residual stream after these layers; see Layered.through. Positions were added before the first layer."""
        bias, slots = attention_bias(0, stream_BSD.shape[1], mask_BS, stream_BSD), range(stream_BSD.shape[1])
        for number in layers:
            stream_BSD, _ = self.blocks[number % len(self.blocks)](stream_BSD, None, bias, edit, number, slots)
        return stream_BSD

    def finish(self, stream_BSD: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """The stream after the last norm, if there is one."""
        return stream_BSD if self.norm is None else self.norm(stream_BSD)

    def _position_embeddings(self, past: int, T: int, mask_BS: Tensor | None, positions_BT: Tensor | None) -> Tensor:
        """Position embeddings of the new slots, (T, D) or (rows, T, D)."""
        pos_emb_PD = self.pos_emb
        P = pos_emb_PD.shape[0]
        if positions_BT is None and mask_BS is None:
            if past + T > P:
                check_positions(range(past, past + T), P, LARGER)
            return pos_emb_PD[past : past + T]  # equals the general case, in half the time
        explicit = positions_BT is not None
        if positions_BT is None:
            positions_BT = default_positions(past, T, mask_BS, pos_emb_PD.device)
        if explicit or past + T > P:
            check_positions(positions_BT, P, LARGER)
        return F.embedding(positions_BT, pos_emb_PD)

    def flops(self, new: int, past: int = 0, read: int | None = None) -> int:
        """Operations of a forward: matrix products, and every pair of slots that may attend; see Backbone.flops.

        Every matrix of attention and MLP costs 2 operations a weight and slot, attention 4 D a pair. In the last layer
        slots that are not read cost their keys and values alone.
        """
        read, total = new if read is None else read, 0
        for number in range(self.depth):
            block: Any = self.blocks[number % len(self.blocks)]
            asked = read if number == self.depth - 1 else new
            pairs = asked * (past + new) - asked * (asked - 1) // 2  # the last query sees all, earlier ones less
            keys, pair = block.attention.key_weights, block.attention.pair_weights
            total += 2 * (keys * new + (_weights(block) - keys) * asked + pair * pairs)
        return total

    @property
    def dropout(self) -> float:
        """The dropout rate within `dropping`."""
        return 0.0 if self._drop is None else self._drop.share

    @contextlib.contextmanager
    def dropping(self, generator: torch.Generator) -> Iterator[None]:
        """Switches dropout on while the block runs, with masks from this generator; it is off otherwise."""
        if self._drop is None or self._drop.share == 0:
            yield
            return
        before, self._drop.generator = self._drop.generator, generator
        try:
            yield
        finally:
            self._drop.generator = before


def _weights(block: nn.Module) -> int:
    """Number of weights that a slot is multiplied by: all matrices of a block, counting one expert."""
    sizes = [p.shape for name, p in block.named_parameters() if p.ndim > 1 and not name.endswith("bias")]
    return sum(math.prod(size[-2:]) for size in sizes)
