"""Preserving: other weights, the same function. Outlier features are put in and taken out, and no logit changes.

    sharp = inject(decoder, layer=1, part="mlp", channel=3, factor=100.0)     # one neuron carries all: int8 suffers
    flat = rotated(decoder, generator)                                        # the residual stream in another basis

Both need a decoder with norms before attention and MLP: the norm's weight can be moved into the matrix after it. What
int8 does to such a pair differs by the outlier alone, since both compute the same function in full precision.

Letters: D width.
"""

import copy
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinylatent.models.blocks import MLP, Attention, Block, Norm
from tinylatent.models.decoder import Decoder

Part = Literal["attention", "mlp"]


@torch.no_grad()
def inject(decoder: Decoder, layer: int, part: Part, channel: int, factor: float) -> Decoder:
    """A copy in which one channel of what a layer's attention or MLP reads is multiplied, and divided by its weights.

    Raises:
        ValueError: another placement of norms, or a layer, part, channel or factor out of range.
    """
    blocks = _parts(decoder)
    if not 0 <= layer < len(blocks) or not 0 <= channel < decoder.width:
        raise ValueError(
            f"layer {layer}, channel {channel}: expected a layer below {len(blocks)} and a channel below "
            f"{decoder.width}"
        )
    if part not in get_args(Part) or not factor > 0:
        raise ValueError(f"part {part!r}, factor {factor}: expected {' or '.join(get_args(Part))}, and a positive one")
    changed = copy.deepcopy(decoder)
    norm, matrix = _readers(_parts(changed)[layer])[part]
    norm.weight[channel] *= factor
    matrix[:, channel] /= factor
    return changed


@torch.no_grad()
def rotated(decoder: Decoder, generator: torch.Generator | None) -> Decoder:
    """A copy whose residual stream is written in a random orthogonal basis, logits being the same; None turns nothing.

    Weights of norms go into the matrices after them first, which alone changes what rounding does: a copy that is not
    turned is what one that is turned is to be compared with. A layer norm takes the mean over neurons away, so that the
    basis keeps that one direction. The last norm reads the stream turned back.

    Raises:
        ValueError: another placement of norms.
    """
    _parts(decoder)
    changed = copy.deepcopy(decoder)
    turn_DD = torch.eye(decoder.embedding.shape[1]).to(decoder.embedding)
    if generator is not None:
        turn_DD = _turn(decoder.embedding, generator)
    changed.embedding.copy_(changed.embedding @ turn_DD)
    changed.pos_emb.copy_(changed.pos_emb @ turn_DD)
    for block in _parts(changed):
        for norm, matrix in _readers(block).values():
            matrix.copy_((matrix * norm.weight) @ turn_DD)
            norm.weight.fill_(1.0)
        for matrix in (block.attention.out_proj, block.mlp.down_proj):
            matrix.copy_(turn_DD.T @ matrix)
    changed.norm = _Turned(changed.norm, turn_DD)
    return changed


class _Turned(nn.Module):
    """A norm of a stream that is written in another basis."""

    def __init__(self, norm: Any, turn_DD: Float[Tensor, "D D"]):
        super().__init__()
        self.norm = norm
        self.register_buffer("turn", turn_DD)

    turn: Tensor

    def forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        """The normalised vectors, in that basis."""
        return self.norm(x @ self.turn.T) @ self.turn


def _turn(like: Tensor, generator: torch.Generator) -> Float[Tensor, "D D"]:
    """A random rotation that leaves the direction (1, .., 1) as it is: D - 1 directions across it are mixed."""
    D = like.shape[1]
    normal = torch.randn(D - 1, D - 1, generator=generator, dtype=torch.float64)
    mixed = torch.linalg.qr(normal)[0]
    start = torch.eye(D, dtype=torch.float64)
    start[:, 0] = 1.0
    across = torch.linalg.qr(start)[0]  # its first column is that direction
    inner = torch.block_diag(torch.ones(1, 1, dtype=torch.float64), mixed)
    return (across @ inner @ across.T).to(like)


def _parts(decoder: Decoder) -> list[Any]:
    """The blocks, all of them with norms before attention and MLP."""
    blocks: list[Any] = [*decoder.blocks]
    fits = [isinstance(x, Block) and x.placement == "pre" and isinstance(x.attention, Attention) for x in blocks]
    if not blocks or not all(fits) or not all(isinstance(x.mlp, MLP) for x in blocks):
        raise ValueError("weights can be moved only where norms stand before attention and MLP: expected norm 'pre'")
    return blocks


def _readers(block: Any) -> dict[Part, tuple[Norm, Tensor]]:
    """The norm before each part, and the matrix that reads it."""
    return {
        "attention": (block.attn_norm, block.attention.qkv_proj),
        "mlp": (block.mlp_norm, block.mlp.up_proj),
    }
