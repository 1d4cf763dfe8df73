"""Reducing: one number per prompt from what was measured at every slot, then means over prompts with their intervals.

    share = per_prompt(effects.output, effects.counted_RS, "mean", effects.row_R)      # (layers, prompts)
    mean, low, high = bootstrap(share)                                                # over prompts, layer by layer

Tokens of a prompt are not independent, so that a prompt is what is drawn anew. A maximum over tokens says what a layer
is used for at all, but it saturates, and it grows with the number of tokens; a mean or a quantile does neither.

Letters: B prompts, R rows of a sweep (several may belong to a prompt), S slots, D bootstrap draws.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Numbers = npt.NDArray[np.float64]


def per_prompt(
    values: Float[Tensor, "*shape R S"],
    counted_RS: Bool[Tensor, "R S"],
    how: str | float = "mean",
    row_R: Int[Tensor, " R"] | None = None,
) -> Float[Tensor, "*shape B"]:
    """One number per prompt: over the counted slots of all rows that belong to it.

    Args:
        values: what was measured.
        counted_RS: which slots count.
        how: "mean", "max", or a quantile between 0 and 1 (0.5: the median).
        row_R: the prompt of each row, every prompt having one; rows are prompts by default.

    Raises:
        ValueError: an unknown `how`, or a prompt of which no slot counts.
    """
    if how not in ("mean", "max") and not (isinstance(how, float) and 0 <= how <= 1):
        raise ValueError(f"how is {how!r}: expected mean, max, or a quantile from 0 to 1, such as 0.9")
    if row_R is None:
        row_R = torch.arange(len(counted_RS), device=counted_RS.device)
    found = []
    for prompt in range(int(row_R.max()) + 1):
        rows_R = row_R == prompt
        counted_rS = counted_RS[rows_R]
        if not counted_rS.any():
            raise ValueError(f"no slot of prompt {prompt} is counted: give it longer text, or count more of it")
        kept = values[..., rows_R, :][..., counted_rS]
        if how == "mean":
            found.append(kept.mean(-1))
        else:
            found.append(kept.amax(-1) if how == "max" else kept.quantile(float(how), -1))
    return torch.stack(found, -1)


@dataclass(frozen=True)
class Means:
    """Means over prompts, with the ends of their bootstrap intervals."""

    value: Numbers
    low: Numbers
    high: Numbers


def bootstrap(values: Float[Tensor, "*shape B"], level: float = 0.95, draws: int = 2000, seed: int = 0) -> Means:
    """Means over the last axis with percentile intervals, all from the same draws of prompts.

    Of one prompt the interval is the value itself, and says nothing.

    Raises:
        ValueError: a level outside (0, 1), or no draws.
    """
    if not 0 < level < 1 or draws < 1:
        raise ValueError(f"level {level}, draws {draws}: expected a level between 0 and 1, and a draw at least")
    numbers: Numbers = values.detach().cpu().double().numpy()
    B = numbers.shape[-1]
    weight_DB = np.random.default_rng(seed).multinomial(B, np.full(B, 1 / B), size=draws) / B
    low, high = np.quantile(numbers @ weight_DB.T, [(1 - level) / 2, (1 + level) / 2], axis=-1)
    return Means(*(np.asarray(x) for x in (numbers.mean(-1), low, high)))
