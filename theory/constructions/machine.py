"""Machine: a decoder whose weights are made by hand, behind the Backbone protocol, so that the one engine runs it.

What the expressivity theorems assume and the trained Transformer does not have: no norm before a sublayer, ReLU,
biases, heads of any width, a mixture of experts (one expert is a plain MLP) and, if wanted, hidden states of length
one. The rest is a transformer: causal softmax attention over a cache, residual stream, tied embeddings.

Letters: B rows, T new slots, S all slots, D width, K width of a head's keys, X experts, F hidden units, P positions, V
vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tinylatent.backbone import Edit, default_positions
from tinylatent.transformer import attention_bias

HeadCache = tuple[Tensor, Tensor]  # keys (B, S, K) and values (B, S, D)
MachineCache = tuple[tuple[HeadCache, ...], ...]


class Head(nn.Module):
    """One attention head: softmax(q k^T) v with q = x Q^T + b, k = x K^T + c, v = x V^T.

    Args:
        query_KD: Q.
        key_KD: K.
        value_DD: V, which writes into the residual stream without another matrix.
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

    def forward(self, x_BTD: Tensor, cache: HeadCache | None, bias: Tensor | None) -> tuple[Tensor, HeadCache]:
        """The head's addition to the residual stream, and its keys and values, the cache's included."""
        q_BTK = F.linear(x_BTD, self.query, self.query_bias)
        k_BSK, v_BSD = F.linear(x_BTD, self.key, self.key_bias), F.linear(x_BTD, self.value)
        if cache is not None:
            k_BSK, v_BSD = torch.cat([cache[0], k_BSK], 1), torch.cat([cache[1], v_BSD], 1)
        q, k, v = q_BTK[:, None], k_BSK[:, None], v_BSD[:, None]
        causal = bias is None and x_BTD.shape[1] > 1
        mixed_BHTD = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal, scale=1.0)
        return mixed_BHTD[:, 0], (k_BSK, v_BSD)


class Experts(nn.Module):
    """A mixture of ReLU MLPs: every slot goes through the one expert whose router score is highest.

    Args:
        router_XD, router_bias_X: scores of the experts.
        up_XFD, up_bias_XF: into the hidden units.
        down_XDF, down_bias_XD: back into the residual stream.
    """

    def __init__(
        self,
        router_XD: Float[Tensor, "X D"],
        router_bias_X: Float[Tensor, " X"],
        up_XFD: Float[Tensor, "X F D"],
        up_bias_XF: Float[Tensor, "X F"],
        down_XDF: Float[Tensor, "X D F"],
        down_bias_XD: Float[Tensor, "X D"],
    ):
        super().__init__()
        self.router, self.router_bias = nn.Parameter(router_XD), nn.Parameter(router_bias_X)
        self.up, self.up_bias = nn.Parameter(up_XFD), nn.Parameter(up_bias_XF)
        self.down, self.down_bias = nn.Parameter(down_XDF), nn.Parameter(down_bias_XD)

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The MLP's addition to the residual stream."""
        x_RD = x_BTD.reshape(-1, x_BTD.shape[-1])
        expert_R = F.linear(x_RD, self.router, self.router_bias).argmax(-1)
        out_RD = torch.zeros_like(x_RD)
        for expert in expert_R.unique().tolist():
            chosen_R = expert_R == expert
            hidden_RF = F.relu(F.linear(x_RD[chosen_R], self.up[expert], self.up_bias[expert]))
            out_RD[chosen_R] = F.linear(hidden_RF, self.down[expert], self.down_bias[expert])
        return out_RD.view_as(x_BTD)


class Block(nn.Module):
    """One layer: x + the heads, then x + the experts; either may be missing."""

    def __init__(self, heads: Sequence[Head], experts: Experts | None = None):
        super().__init__()
        self.heads, self.experts = nn.ModuleList(heads), experts

    def forward(
        self,
        x_BTD: Tensor,
        cache: tuple[HeadCache, ...] | None,
        bias: Tensor | None,
        number: int,
        edit: Edit,
    ) -> tuple[Tensor, tuple[HeadCache, ...]]:
        """The residual stream after this layer, and its heads' keys and values."""
        x_BTD = edit(number, "resid_in", x_BTD)
        kept, added_BTD = [], torch.zeros_like(x_BTD)
        for place, head in enumerate(self.heads):
            mixed_BTD, grown = head(x_BTD, None if cache is None else cache[place], bias)
            added_BTD = added_BTD + mixed_BTD
            kept.append(grown)
        x_BTD = x_BTD + edit(number, "attn_add", added_BTD)
        if self.experts is not None:
            x_BTD = x_BTD + edit(number, "mlp_add", self.experts(x_BTD))
        return edit(number, "resid_out", x_BTD), tuple(kept)


class Machine(nn.Module):
    """A transformer from hand-made parts; see Backbone for what each method promises.

    Args:
        tokens_VD: embedding matrix, tied to the readout.
        places_PD: what each position adds.
        blocks: the layers.
        unit: whether hidden states are scaled to length one at the end (a norm layer without gain, up to sqrt(D)).
    """

    def __init__(
        self,
        tokens_VD: Float[Tensor, "V D"],
        places_PD: Float[Tensor, "P D"],
        blocks: Sequence[Block],
        unit: bool = False,
    ):
        super().__init__()
        self.tokens, self.places = nn.Parameter(tokens_VD), nn.Parameter(places_PD)
        self.blocks, self.unit = nn.ModuleList(blocks), unit

    @property
    def embedding(self) -> Float[Tensor, "V D"]:
        """The embedding matrix."""
        return self.tokens

    @property
    def width(self) -> int:
        """D."""
        return self.tokens.shape[1]

    def embed(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """Input embeddings, without positions."""
        return F.embedding(ids, self.tokens)

    def readout(self, hidden: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape V"]:
        """Logits by the embedding matrix."""
        return F.linear(hidden, self.tokens)

    def forward(
        self,
        embeddings_BTD: Float[Tensor, "B T D"],
        cache: MachineCache | None = None,
        mask_BT: Bool[Tensor, "B S"] | None = None,
        positions_BT: Int[Tensor, "B T"] | None = None,
        edit: Edit | None = None,
    ) -> tuple[Float[Tensor, "B T D"], MachineCache]:
        """Hidden states of the new slots and the grown cache.

        Raises:
            ValueError: the sequence is longer than there are positions.
        """
        T = embeddings_BTD.shape[1]
        past = 0 if cache is None else cache[0][0][0].shape[1]
        if positions_BT is None:
            positions_BT = default_positions(past, T, mask_BT, embeddings_BTD.device)
        if int(positions_BT.max()) >= len(self.places):
            raise ValueError(
                f"{int(positions_BT.max()) + 1} slots: the machine has {len(self.places)} positions; build it larger"
            )
        bias = attention_bias(past, T, mask_BT, embeddings_BTD)
        x_BTD, grown = embeddings_BTD + F.embedding(positions_BT, self.places), []
        for number, block in enumerate(self.blocks):
            x_BTD, kept = block(x_BTD, None if cache is None else cache[number], bias, number, edit or _as_is)
            grown.append(kept)
        return F.normalize(x_BTD, dim=-1) if self.unit else x_BTD, tuple(grown)

    def fork(self, cache: MachineCache, times: int) -> MachineCache:
        """The cache with every row repeated."""
        return tuple(
            tuple((keys.repeat_interleave(times, 0), values.repeat_interleave(times, 0)) for keys, values in heads)
            for heads in cache
        )


def _as_is(number: int, site: str, tensor: Tensor) -> Tensor:
    return tensor
