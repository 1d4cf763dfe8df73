"""A decoder-only transformer, written to be read in one sitting.

Pre-norm, learned positions, tied embeddings, GELU MLP, no biases: GPT-2's function with its biases at zero, which a
test proves by copying the weights over. It speaks the Backbone protocol: embeddings in, hidden states after the last
norm out, with an immutable cache, masks, explicit positions and edits.

Letters: B rows, T new slots, S all slots (cache and new), D width, H heads, K width of a head, V vocabulary.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tinylatent.backbone import Edit, default_positions

LayerCache = tuple[Tensor, Tensor]  # keys and values, each (B, H, S, K)
MOST_WIDTH, MOST_LAYERS = 8192, 256
VECTOR = 16  # floats in a vector register: softmax over shorter rows falls back to scalar code


@dataclass(frozen=True)
class Shape:
    """Size of a transformer; vocabulary and positions come from the task."""

    width: int = 32
    """Width D of the residual stream (a multiple of heads)."""
    layers: int = 2
    """Number of layers."""
    heads: int = 2
    """Attention heads per layer."""

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads) < 1 or self.width % self.heads:
            raise ValueError(
                f"width {self.width}, layers {self.layers}, heads {self.heads}: expected positive sizes with width a "
                f"multiple of heads; try width {max(1, self.heads) * 16}"
            )
        if self.width > MOST_WIDTH or self.layers > MOST_LAYERS:
            raise ValueError(
                f"width {self.width}, layers {self.layers}: expected at most {MOST_WIDTH} and {MOST_LAYERS}; "
                "for larger models wrap a Hugging Face one (tinylatent.adapters.hf)"
            )


class Transformer(nn.Module):
    """The model. Weights are drawn from `generator` alone, so a seed fixes them.

    Args:
        vocabulary: number of token ids V.
        positions: longest sequence it can place.
        shape: width, layers, heads.
        generator: where the initial weights come from.
    """

    def __init__(self, vocabulary: int, positions: int, shape: Shape, generator: torch.Generator | None = None):
        super().__init__()
        self.shape, self.positions = shape, positions
        self.tokens = nn.Parameter(torch.empty(vocabulary, shape.width))
        self.places = nn.Parameter(torch.empty(positions, shape.width))
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.gain = nn.Parameter(torch.ones(shape.width))
        self.initialise(generator or torch.Generator().manual_seed(0))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """GPT-2's initialisation: normal(0, 0.02), projections into the residual stream divided by sqrt(2 layers)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                into_residual = name.endswith(("merge", "down"))
                std = 0.02 / math.sqrt(2 * self.shape.layers) if into_residual else 0.02
                parameter.normal_(0.0, std, generator=generator)

    @property
    def embedding(self) -> Float[Tensor, "V D"]:
        """The input embedding matrix, tied to the readout."""
        return self.tokens

    def embed(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """Input embeddings of token ids, without positions."""
        return F.embedding(ids, self.tokens)

    def readout(self, hidden: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape V"]:
        """Logits over the vocabulary, by the tied embedding matrix."""
        return F.linear(hidden, self.tokens)

    def forward(
        self,
        embeddings_BTD: Float[Tensor, "B T D"],
        cache: tuple[LayerCache, ...] | None = None,
        mask_BT: Bool[Tensor, "B S"] | None = None,
        positions_BT: Int[Tensor, "B T"] | None = None,
        edit: Edit | None = None,
    ) -> tuple[Float[Tensor, "B T D"], tuple[LayerCache, ...]]:
        """Hidden states after the last norm, and the grown cache; see Backbone.forward.

        Raises:
            ValueError: the sequence is longer than the model has positions.
        """
        T = embeddings_BTD.shape[1]
        past = 0 if cache is None else cache[0][0].shape[2]
        bias = attention_bias(past, T, mask_BT, embeddings_BTD)
        if positions_BT is None and mask_BT is None:
            if past + T > self.positions:
                raise ValueError(f"{past + T} slots: the model has {self.positions} positions; give its task more room")
            x_BTD = embeddings_BTD + self.places[past : past + T]  # what the general case gives, at half the price
        else:
            if positions_BT is None:
                positions_BT = default_positions(past, T, mask_BT, embeddings_BTD.device)
            x_BTD = embeddings_BTD + F.embedding(positions_BT, self.places)
        grown = []
        for number, layer in enumerate(self.layers):
            x_BTD, kept = layer(x_BTD, None if cache is None else cache[number], bias, number, edit)
            grown.append(kept)
        return norm(x_BTD, self.gain), tuple(grown)

    def fork(self, cache: tuple[LayerCache, ...], times: int) -> tuple[LayerCache, ...]:
        """The cache with every row repeated `times` times; see Backbone.fork."""
        return tuple((keys.repeat_interleave(times, 0), values.repeat_interleave(times, 0)) for keys, values in cache)


class Layer(nn.Module):
    """One pre-norm layer: x + attention(norm(x)), then x + mlp(norm(x)). One product gives queries, keys and values."""

    def __init__(self, shape: Shape):
        super().__init__()
        D = shape.width
        self.heads = shape.heads
        self.gain_attn = nn.Parameter(torch.ones(D))
        self.split = nn.Parameter(torch.empty(3 * D, D))
        self.merge = nn.Parameter(torch.empty(D, D))
        self.gain_mlp = nn.Parameter(torch.ones(D))
        self.up = nn.Parameter(torch.empty(4 * D, D))
        self.down = nn.Parameter(torch.empty(D, 4 * D))

    def forward(
        self, x_BTD: Tensor, cache: LayerCache | None, bias: Tensor | None, number: int, edit: Edit | None
    ) -> tuple[Tensor, LayerCache]:
        """The residual stream after this layer, and the layer's keys and values."""
        if edit is None:
            attn_BTD, cache = self.attention(norm(x_BTD, self.gain_attn), cache, bias)
            x_BTD = x_BTD + attn_BTD
            return x_BTD + self.mlp(norm(x_BTD, self.gain_mlp)), cache
        x_BTD = edit(number, "resid_in", x_BTD)
        attn_BTD, cache = self.attention(norm(x_BTD, self.gain_attn), cache, bias)
        x_BTD = x_BTD + edit(number, "attn_add", attn_BTD)
        x_BTD = x_BTD + edit(number, "mlp_add", self.mlp(norm(x_BTD, self.gain_mlp)))
        return edit(number, "resid_out", x_BTD), cache

    def attention(self, x_BTD: Tensor, cache: LayerCache | None, bias: Tensor | None) -> tuple[Tensor, LayerCache]:
        """Attention's addition to the residual stream, and keys and values including the cache's."""
        B, T, D = x_BTD.shape
        q, k, v = (
            part.view(B, T, self.heads, D // self.heads).transpose(1, 2)
            for part in F.linear(x_BTD, self.split).split(D, dim=-1)
        )
        if cache is not None:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        mixed_BHTK = attend(q, k, v, bias)
        return F.linear(mixed_BHTK.transpose(1, 2).reshape(B, T, D), self.merge), (k, v)

    def mlp(self, x_BTD: Tensor) -> Tensor:
        """The MLP's addition to the residual stream: width D to 4 D, GELU, and back."""
        return F.linear(F.gelu(F.linear(x_BTD, self.up)), self.down)


def norm(x: Tensor, gain: Tensor) -> Tensor:
    """Layer normalisation of the last axis with a gain and no offset."""
    return F.layer_norm(x, gain.shape, gain)


# ---------------------------------------------------------------------------------------------------------------------
# Masks and the product itself


def attention_bias(past: int, T: int, mask_BS: Tensor | None, like: Tensor) -> Tensor | None:
    """What is added to the scores: 0 where a query may look, -inf elsewhere; None for plain causal attention.

    A masked slot still sees itself: its output is never used, but a softmax over nothing would be NaN.
    """
    if mask_BS is None and (past == 0 or T == 1):
        return None
    allowed = torch.ones(T, past + T, dtype=torch.bool, device=like.device).tril(past)
    if mask_BS is not None:
        itself = torch.eye(T, dtype=torch.bool, device=like.device)
        allowed = (allowed & mask_BS[:, None]) | F.pad(itself, (past, 0))
        allowed = allowed[:, None]
    return torch.zeros(allowed.shape, dtype=like.dtype, device=like.device).masked_fill(~allowed, -math.inf)


def attend(
    q: Float[Tensor, "B H T K"], k: Float[Tensor, "B H S K"], v: Float[Tensor, "B H S K"], bias: Tensor | None
) -> Float[Tensor, "B H T K"]:
    """softmax(q k^T / sqrt(K) + bias) v, causal where bias is None."""
    B, _, T, _ = q.shape
    pack = -(-VECTOR // T)
    if bias is None and k.shape[2] == T and 1 < T < VECTOR and B % pack == 0 and B >= 4 * VECTOR and q.is_cpu:
        return attend_packed(q, k, v, pack)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None and T > 1)


def attend_packed(q: Tensor, k: Tensor, v: Tensor, pack: int) -> Tensor:
    """Causal attention with `pack` neighbouring rows laid end to end and kept apart by the mask.

    The same function as `attend`; on a CPU it is a third faster for short sequences, because softmax then works on
    whole vector registers.
    """
    B, H, T, K = q.shape
    q, k, v = (x.transpose(1, 2).reshape(B // pack, pack * T, H, K).transpose(1, 2) for x in (q, k, v))
    weights = F.softmax(torch.matmul(q * K**-0.5, k.transpose(-1, -2)) + _packed_bias(T, pack, q.dtype), dim=-1)
    return torch.matmul(weights, v).transpose(1, 2).reshape(B, T, H, K).transpose(1, 2)


@lru_cache(maxsize=32)
def _packed_bias(T: int, pack: int, dtype: torch.dtype) -> Tensor:
    """0 where a slot may look, -inf elsewhere, for `pack` causal sequences of T slots end to end."""
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    apart = torch.block_diag(*[causal] * pack)
    return torch.zeros(apart.shape, dtype=dtype).masked_fill(~apart, -math.inf)
