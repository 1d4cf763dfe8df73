"""Blocks: the layers of a decoder, trained or constructed by hand.

A block adds the outputs of its attention and its MLP to the residual stream. Norms are placed "pre", before attention
and MLP (GPT-2), "post", on both sums (the first Transformer), "after", on what is added (OLMo 2, arXiv 2501.00656), or
nowhere ("none"). A "protected" block (outlier-protected, He et al. 2024, arXiv 2405.19279) has no norms on its inputs
but one on queries and keys, and multiplies both additions by a learned gain that starts small. Attention is one product
for queries, keys and values (`Attention`), or a list of heads of any width (`Heads`); MLPs are plain (`MLP`) or a
mixture of experts (`Experts`).

Letters: B rows, T new slots, R slots whose result is read, S all slots (cache and new), D width, H heads, K width of a
head, F hidden units, X experts.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tinylatent.models.backbone import Edit, Site

Placement = Literal["pre", "post", "after", "protected", "none"]
Activation = Literal["gelu", "relu", "swiglu"]
PLACEMENTS, ACTIVATIONS = get_args(Placement), get_args(Activation)
VECTOR = 16  # floats in a vector register: softmax over shorter rows falls back to scalar code


class Dropout:
    """Dropout that is active only while a generator is set, so that it never uses the global one.

    A mask depends on the generator and on how many masks it drew before: the same rows get other masks in other
    micro-batches.
    """

    def __init__(self, share: float = 0.0):
        self.share, self.generator = share, None

    generator: torch.Generator | None

    def __call__(self, x: Tensor) -> Tensor:
        """x with a random share of its entries set to zero and the others divided by 1 - share."""
        if self.generator is None or self.share == 0:
            return x
        kept = torch.rand(x.shape, generator=self.generator, device=x.device, dtype=x.dtype) >= self.share
        return x * kept / (1 - self.share)


class Block(nn.Module):
    """One layer: x + attention, then x + MLP, with norms in one of five places.

    Args:
        attention: an Attention or Heads, or any module with their members.
        mlp: maps (B, T, D) to (B, T, D); None for a layer of attention alone.
        width: D, the size of the two norms; not needed without norms.
        placement: of the norms.
        dropout: applied to both additions; none by default.
        gain: of both additions at first, in a protected block.
        first: whether it is a model's first block, where a protected block keeps the norm before its attention, so that
            the size of embeddings does not matter.

    Raises:
        ValueError: an unknown placement, or norms without a width.
    """

    def __init__(
        self,
        attention: nn.Module,
        mlp: nn.Module | None,
        width: int | None = None,
        placement: Placement = "none",
        dropout: Dropout | None = None,
        gain: float = 1.0,
        first: bool = True,
    ):
        super().__init__()
        if placement not in PLACEMENTS:
            raise ValueError(f"norm {placement!r}: expected one of {', '.join(PLACEMENTS)}")
        if placement != "none" and not width:
            raise ValueError(f"norm {placement!r} without a width: expected the width of the residual stream")
        protected = placement == "protected"
        normed = width is not None and placement != "none"
        self.placement, self.drop = placement, dropout or Dropout()
        self.attn_norm: Any = Norm(width) if width and normed and (first or not protected) else None
        self.attn_place = None if self.attn_norm is None else "pre" if protected else placement
        self.attention = attention
        self.mlp_norm: Any = Norm(width) if width and normed and mlp is not None and not protected else None
        self.mlp_place = None if self.mlp_norm is None else placement
        self.mlp = mlp
        self.attn_gain = nn.Parameter(torch.tensor(gain)) if protected else None
        self.mlp_gain = nn.Parameter(torch.tensor(gain)) if protected and mlp is not None else None

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        cache: Any = None,
        bias: Tensor | None = None,
        edit: Edit | None = None,
        number: int = 0,
        slots: range = range(0),
        read_from: int = 0,
    ) -> tuple[Float[Tensor, "B R D"], Any]:
        """The residual stream after this layer, from slot `read_from` on, and the layer's keys and values.

        Args:
            x_BTD: the residual stream of the new slots.
            cache: this layer's keys and values of the past; None at the start.
            bias: added to the attention scores; None for plain causal attention.
            edit: called at the four sites as edit(number, site, x, slots).
            number: of the layer.
            slots: indices of the new slots in the whole sequence.
            read_from: first new slot whose result is used.
        """
        attn_norm, attn_place, mlp, mlp_norm, mlp_place = (
            self.attn_norm, self.attn_place, self.mlp, self.mlp_norm, self.mlp_place
        )  # fmt: skip
        changed = edit is not None or self.drop.generator is not None
        if edit is not None:
            x_BTD = edit(number, "resid_in", x_BTD, slots)
        # Parts are called by `forward`, past torch's hooks, which would cost as much time as the matrix products.
        seen_BTD = attn_norm.forward(x_BTD) if attn_place == "pre" else x_BTD
        added_BRD, cache = self.attention.forward(seen_BTD, cache, bias, read_from)
        if attn_place == "after":
            added_BRD = attn_norm.forward(added_BRD)
        if self.attn_gain is not None:
            added_BRD = added_BRD * self.attn_gain
        if changed:
            added_BRD = self._changed(added_BRD, edit, number, "attn_add", slots)
        x_BRD = (x_BTD[:, read_from:] if read_from else x_BTD) + added_BRD
        if attn_place == "post":
            x_BRD = attn_norm.forward(x_BRD)
        if mlp is not None:
            added_BRD = mlp.forward(mlp_norm.forward(x_BRD) if mlp_place == "pre" else x_BRD)
            if mlp_place == "after":
                added_BRD = mlp_norm.forward(added_BRD)
            if self.mlp_gain is not None:
                added_BRD = added_BRD * self.mlp_gain
            if changed:
                added_BRD = self._changed(added_BRD, edit, number, "mlp_add", slots)
            x_BRD = x_BRD + added_BRD
            if mlp_place == "post":
                x_BRD = mlp_norm.forward(x_BRD)
        return (x_BRD if edit is None else edit(number, "resid_out", x_BRD, slots)), cache

    def _changed(self, added: Tensor, edit: Edit | None, number: int, site: Site, slots: range) -> Tensor:
        """An addition to the residual stream after dropout and edit."""
        if self.drop.generator is not None:
            added = self.drop(added)
        return added if edit is None else edit(number, site, added, slots)


class Norm(nn.Module):
    """Layer normalisation over the last axis, with weight and without bias."""

    def __init__(self, width: int):
        super().__init__()
        self.shape = (width,)
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        """The normalised vectors."""
        return F.layer_norm(x, self.shape, self.weight)


class Unit(nn.Module):
    """Scales vectors to length one: RMSNorm without weight, divided by sqrt(D)."""

    def forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        """The scaled vectors."""
        return F.normalize(x, dim=-1)


# ---------------------------------------------------------------------------------------------------------------------
# MLPs


class MLP(nn.Module):
    """Width D to F hidden units and back, without biases.

    Args:
        width: D.
        hidden: F; 4 D by default.
        activation: gelu, relu, or swiglu (half the hidden units gate the others; Shazeer 2020, arXiv 2002.05202).
    """

    def __init__(self, width: int, hidden: int | None = None, activation: Activation = "gelu"):
        super().__init__()
        hidden = hidden or 4 * width
        self.activation = activation
        self.up_proj = nn.Parameter(torch.empty(2 * hidden if activation == "swiglu" else hidden, width))
        self.down_proj = nn.Parameter(torch.empty(width, hidden))

    def forward(self, x_BTD: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        """The MLP's addition to the residual stream."""
        up = F.linear(x_BTD, self.up_proj)
        if self.activation == "gelu":
            hidden = F.gelu(up)
        elif self.activation == "relu":
            hidden = F.relu(up)
        else:
            gate, value = up.chunk(2, -1)
            hidden = F.silu(gate) * value
        return F.linear(hidden, self.down_proj)


class Experts(nn.Module):
    """A mixture of ReLU MLPs: every slot goes through the one expert whose router score is highest.

    Args:
        router_XD, router_bias_X: scores of the experts.
        up_XFD, up_bias_XF: into the hidden units.
        down_XDF, down_bias_XD: back into the residual stream.
        weighted: whether an expert's output is multiplied by its softmax score, so that the router can be trained
            (Fedus et al. 2021, arXiv 2101.03961); constructions by hand leave it off.
    """

    def __init__(
        self,
        router_XD: Float[Tensor, "X D"],
        router_bias_X: Float[Tensor, " X"],
        up_XFD: Float[Tensor, "X F D"],
        up_bias_XF: Float[Tensor, "X F"],
        down_XDF: Float[Tensor, "X D F"],
        down_bias_XD: Float[Tensor, "X D"],
        weighted: bool = False,
    ):
        super().__init__()
        self.weighted = weighted
        self.router, self.router_bias = nn.Parameter(router_XD), nn.Parameter(router_bias_X)
        self.up_proj, self.up_bias = nn.Parameter(up_XFD), nn.Parameter(up_bias_XF)
        self.down_proj, self.down_bias = nn.Parameter(down_XDF), nn.Parameter(down_bias_XD)

    @classmethod
    def fresh(cls, width: int, experts: int) -> "Experts":
        """Experts to be trained, half as wide as a plain MLP; matrices are empty until `Decoder.initialise`."""
        hidden = 2 * width
        return cls(
            torch.empty(experts, width),
            torch.zeros(experts),
            torch.empty(experts, hidden, width),
            torch.zeros(experts, hidden),
            torch.empty(experts, width, hidden),
            torch.zeros(experts, width),
            weighted=True,
        )

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The MLP's addition to the residual stream."""
        x_RD = x_BTD.reshape(-1, x_BTD.shape[-1])
        score_RX = F.linear(x_RD, self.router, self.router_bias)
        expert_R = score_RX.argmax(-1)
        out_RD = torch.zeros_like(x_RD)
        for expert in range(len(self.router)):
            chosen_R = expert_R == expert
            hidden_RF = F.relu(F.linear(x_RD[chosen_R], self.up_proj[expert], self.up_bias[expert]))
            out_RD[chosen_R] = F.linear(hidden_RF, self.down_proj[expert], self.down_bias[expert])
        if self.weighted:
            out_RD = out_RD * F.softmax(score_RX, -1).gather(-1, expert_R[:, None])
        return out_RD.view_as(x_BTD)


# ---------------------------------------------------------------------------------------------------------------------
# Attention


class Attention(nn.Module):
    """Causal attention of H heads of equal width; one product computes queries, keys and values.

    Args:
        width: D.
        heads: H.
        qk_norm: whether RMS norms of queries and keys, each with a weight that its heads share, bound attention scores.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool = False):
        super().__init__()
        self.heads = heads
        self.query_norm = nn.Parameter(torch.ones(width // heads)) if qk_norm else None
        self.key_norm = nn.Parameter(torch.ones(width // heads)) if qk_norm else None
        self.qkv_proj = nn.Parameter(torch.empty(3 * width, width))
        self.out_proj = nn.Parameter(torch.empty(width, width))

    @property
    def key_weights(self) -> int:
        """How many of its weights give keys and values."""
        return 2 * self.out_proj.numel()

    @property
    def pair_weights(self) -> int:
        """Products for each pair of slots: a score and a weighted value, of every head."""
        return 2 * len(self.out_proj)

    def forward(
        self, x_BTD: Float[Tensor, "B T D"], cache: Any = None, bias: Tensor | None = None, read_from: int = 0
    ) -> tuple[Float[Tensor, "B R D"], Any]:
        """Attention's addition for slots from `read_from` on, and all keys and values so far, each (B, H, S, K)."""
        B, T, D = x_BTD.shape
        if read_from:
            q = F.linear(x_BTD[:, read_from:], self.qkv_proj[:D])
            k, v = F.linear(x_BTD, self.qkv_proj[D:]).split(D, dim=-1)
        else:
            q, k, v = F.linear(x_BTD, self.qkv_proj).split(D, dim=-1)
        K = D // self.heads
        q = q.view(B, T - read_from, self.heads, K).transpose(1, 2)
        k, v = k.view(B, T, self.heads, K).transpose(1, 2), v.view(B, T, self.heads, K).transpose(1, 2)
        if self.query_norm is not None:
            q, k = F.rms_norm(q, (K,), self.query_norm), F.rms_norm(k, (K,), self.key_norm)
        if cache is not None:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        mixed_BHRK = attend(q, k, v, _of_read(bias, read_from, T, k))
        return F.linear(mixed_BHRK.transpose(1, 2).reshape(B, T - read_from, D), self.out_proj), (k, v)


class Head(nn.Module):
    """One attention head of any width: softmax(q k^T) v with q = x Q^T + b, k = x K^T + c, v = x V^T.

    Args:
        query_KD: Q.
        key_KD: K.
        value_DD: V, whose result is added to the residual stream without an output projection.
        query_bias_K: b; zero if None.
        key_bias_K: c; zero if None.
    """

    def __init__(
        self,
        query_KD: Float[Tensor, "K D"],
        key_KD: Float[Tensor, "K D"],
        value_DD: Float[Tensor, "D D"],
        query_bias_K: Float[Tensor, " K"] | None = None,
        key_bias_K: Float[Tensor, " K"] | None = None,
    ):
        super().__init__()
        none_K = torch.zeros_like(query_KD[:, 0])
        self.query, self.key, self.value = nn.Parameter(query_KD), nn.Parameter(key_KD), nn.Parameter(value_DD)
        self.query_bias = nn.Parameter(none_K if query_bias_K is None else query_bias_K)
        self.key_bias = nn.Parameter(none_K if key_bias_K is None else key_bias_K)

    def forward(
        self, x_BTD: Float[Tensor, "B T D"], cache: Any = None, bias: Tensor | None = None, read_from: int = 0
    ) -> tuple[Float[Tensor, "B R D"], Any]:
        """The head's addition for slots from `read_from` on, and keys (B, S, K) and values (B, S, D)."""
        q_BRK = F.linear(x_BTD[:, read_from:], self.query, self.query_bias)
        k_BSK, v_BSD = F.linear(x_BTD, self.key, self.key_bias), F.linear(x_BTD, self.value)
        if cache is not None:
            k_BSK, v_BSD = torch.cat([cache[0], k_BSK], 1), torch.cat([cache[1], v_BSD], 1)
        q, k, v = q_BRK[:, None], k_BSK[:, None], v_BSD[:, None]
        bias = _of_read(bias, read_from, x_BTD.shape[1], k)
        causal = bias is None and q.shape[2] > 1
        mixed_BHRD = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal, scale=1.0)
        return mixed_BHRD[:, 0], (k_BSK, v_BSD)


class Heads(nn.Module):
    """Several heads in parallel; their outputs are added."""

    def __init__(self, heads: Sequence[Head]):
        super().__init__()
        self.heads = nn.ModuleList(heads)

    @property
    def key_weights(self) -> int:
        """How many of its weights give keys and values."""
        heads: list[Any] = [*self.heads]
        return sum(head.key.numel() + head.value.numel() for head in heads)

    @property
    def pair_weights(self) -> int:
        """Products for each pair of slots: a score and a weighted value, of every head."""
        heads: list[Any] = [*self.heads]
        return sum(len(head.key) + len(head.value) for head in heads)

    def forward(
        self, x_BTD: Float[Tensor, "B T D"], cache: Any = None, bias: Tensor | None = None, read_from: int = 0
    ) -> tuple[Float[Tensor, "B R D"], Any]:
        """The sum of the heads' additions, and the keys and values of every head."""
        added_BRD, kept = torch.zeros_like(x_BTD[:, read_from:]), []
        for index, head in enumerate(self.heads):
            mixed_BRD, grown = head(x_BTD, None if cache is None else cache[index], bias, read_from)
            added_BRD = added_BRD + mixed_BRD
            kept.append(grown)
        return added_BRD, tuple(kept)


def attention_bias(past: int, T: int, mask_BS: Bool[Tensor, "B S"] | None, like: Tensor) -> Tensor | None:
    """The bias on attention scores: 0 where a query may attend, -inf elsewhere; None for plain causal attention.

    A masked slot still attends to itself: its output is never used, but a softmax over nothing would be NaN.
    """
    if mask_BS is None and (past == 0 or T == 1):
        return None
    allowed, itself = _causal(past, T, like.device)
    if mask_BS is not None:
        allowed = ((allowed & mask_BS[:, None]) | itself)[:, None]
    return torch.zeros(allowed.shape, dtype=like.dtype, device=like.device).masked_fill(~allowed, -math.inf)


@lru_cache(maxsize=256)
def _causal(past: int, T: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Masks (T, past + T) of the slots a query may attend to and of its own slot; cached, since few shapes occur."""
    itself = torch.eye(T, dtype=torch.bool, device=device)
    return torch.ones(T, past + T, dtype=torch.bool, device=device).tril(past), F.pad(itself, (past, 0))


def _of_read(bias: Tensor | None, read_from: int, T: int, keys: Tensor) -> Tensor | None:
    """The rows of the bias that belong to queries from slot `read_from` on."""
    if read_from == 0:
        return bias
    if bias is not None:
        return bias[..., read_from:, :]
    if read_from == T - 1:
        return None  # the last slot attends to all
    return torch.full((T - read_from, T), -math.inf, dtype=keys.dtype, device=keys.device).triu(read_from + 1)


def attend(
    q: Float[Tensor, "B H R K"], k: Float[Tensor, "B H S K"], v: Float[Tensor, "B H S K"], bias: Tensor | None
) -> Float[Tensor, "B H R K"]:
    """softmax(q k^T / sqrt(K) + bias) v, causal where bias is None."""
    B, _, T, _ = q.shape
    pack = -(-VECTOR // max(T, 1))
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
    """0 where a slot may attend, -inf elsewhere, for `pack` causal sequences of T slots end to end."""
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    apart = torch.block_diag(*[causal] * pack)
    return torch.zeros(apart.shape, dtype=dtype).masked_fill(~apart, -math.inf)
