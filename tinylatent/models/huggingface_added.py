"""Rows of tokens that a run adds to a model of transformers: kept beside its tables, which stay as they are.

A table of 150,000 rows is neither copied nor trained for the sake of ten. Like adapters, what rows learn is a parameter
of its own, in float32, and can be switched off.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class AddedRows(nn.Module):
    """Rows of added tokens in one table.

    Args:
        given_AD: as they begin.
    """

    def __init__(self, given_AD: Float[Tensor, "A D"]):
        super().__init__()
        self.given_AD = nn.Parameter(given_AD, requires_grad=False)  # several processes share parameters, not buffers
        self.learned_AD = nn.Parameter(torch.zeros_like(given_AD))
        self.is_off = False

    def now(self) -> Float[Tensor, "A D"]:
        """The rows; as they began, while what they learned is switched off."""
        return self.given_AD if self.is_off else self.given_AD + self.learned_AD

    @torch.no_grad()
    def fold(self) -> None:
        """Makes what they have become that with which they began."""
        self.given_AD.add_(self.learned_AD)
        self.learned_AD.zero_()

    @torch.no_grad()
    def set_last(self, rows_MD: Float[Tensor, "M D"]) -> None:
        """Replaces the last rows."""
        self.given_AD[-len(rows_MD) :] = rows_MD
        self.learned_AD[-len(rows_MD) :] = 0


@torch.no_grad()
def begun_rows(
    table: Float[Tensor, "V D"], known: int, added: Sequence[Sequence[int]], generator: torch.Generator
) -> AddedRows:
    """Rows as they begin, in float32: each the mean of the rows of some other tokens, or drawn.

    Args:
        table: of the model.
        known: number of its tokens.
        added: for each added token, ids whose rows it is the mean of; none for a row that is drawn, as far from the
            mean of all as others.
        generator: draws.
    """
    weight_VD: Any = table[:known].float()
    mean_D, spread_D = weight_VD.mean(0), weight_VD.std(0)
    rows = []
    for ids in added:
        if ids:
            rows.append(weight_VD[torch.tensor(ids, device=weight_VD.device)].mean(0))
        else:
            drawn_D = torch.empty(len(mean_D)).normal_(generator=generator)
            rows.append(mean_D + spread_D * drawn_D.to(mean_D))
    return AddedRows(torch.stack(rows))
