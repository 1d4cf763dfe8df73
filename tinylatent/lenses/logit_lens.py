"""The logit lens: what the readout would say if it read the residual stream before each layer.

    found = logit_lens(record)
    found.to_final                # KL(lens || final) in nats, for every layer, row and slot: 0 after the last
    found.overlap                 # share of the five most likely tokens that are the final ones

Csordás et al. 2025 (arXiv 2505.13898, section 3.2) use KL(lens || final); most libraries and the follow-up work
(arXiv 2512.14064) use KL(final || lens). Both are here, by name. The idea is nostalgebraist's (2020).

Letters: B rows, S slots, L layers, V vocabulary, T most likely tokens.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tinylatent.lenses.residuals import Record, in_parts


@dataclass(frozen=True)
class Lens:
    """The lens before every layer and after the last, against the model's own prediction; 0 at masked slots."""

    to_final: Float[Tensor, "L1 B S"]
    """KL(lens || final) in nats: large where the lens is sure of what the model thinks unlikely."""
    from_final: Float[Tensor, "L1 B S"]
    """KL(final || lens) in nats: large where the lens misses what the model is sure of."""
    overlap: Float[Tensor, "L1 B S"]
    """Share of the most likely tokens that are the final ones."""
    entropy: Float[Tensor, "L1 B S"]
    """Of the lens, in nats."""


@torch.no_grad()
def logit_lens(record: Record, top: int = 5) -> Lens:
    """Reads the stream before every layer with the last norm and the readout (sheet 3.5).

    Raises:
        ValueError: `top` is not between 1 and the size of the vocabulary.
    """
    vocabulary = len(record.model.table)
    if not 1 <= top <= vocabulary:
        raise ValueError(f"top is {top}: expected 1 to {vocabulary}, the tokens of the model")
    found = record.stream.new_zeros(4, record.depth + 1, *record.mask_BS.shape)
    for rows in in_parts(record, len(record.mask_BS)):
        mask_bS = record.mask_BS[rows]
        final_nV = record.logits(record.stream[-1, rows][mask_bS]).log_softmax(-1)
        likely_nT = final_nV.topk(top).indices
        for layer in range(record.depth + 1):
            lens_nV = record.logits(record.stream[layer, rows][mask_bS]).log_softmax(-1)
            shared = (lens_nV.topk(top).indices[:, :, None] == likely_nT[:, None]).sum((1, 2)) / top
            numbers = (
                (lens_nV.exp() * (lens_nV - final_nV)).sum(-1),
                (final_nV.exp() * (final_nV - lens_nV)).sum(-1),
                shared,
                -(lens_nV.exp() * lens_nV).sum(-1),
            )
            for place, number_n in enumerate(numbers):
                found[place, layer, rows][mask_bS] = number_n.to(found)
    return Lens(*found)
