"""Maps: how well one model's residual stream predicts another's, layer by layer, by linear maps with an offset.

    found = ridge_maps(shallow_MNd, deep_LNk, fit=0.8)
    found.r2_ML              # share of the variance explained, on tokens that the maps were not fitted to
    found.r2_ML.argmax(0)    # for each layer of the second, the layer of the first that predicts it best

Csordás et al. 2025 (arXiv 2505.13898, section 3.4) train such maps by AdamW; here each is the ridge solution, from one
pass of second moments. Relative errors as theirs divide by the norm of the target, offset included: a large common
offset makes them small, so that the share of variance stands beside them.

Letters: M points in depth of the first model and L of the second, N tokens, d and k their widths.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tinylatent.lenses.residuals import Record


@dataclass(frozen=True)
class Maps:
    """How well each point of the first model predicts each of the second, on held-out tokens."""

    relative_error_ML: Float[Tensor, "M L"]
    """Mean of |error| / |target| over tokens."""
    r2_ML: Float[Tensor, "M L"]
    """1 - sum |error|^2 / sum |target - its mean|^2: at most 1, below 0 where the mean would be better; NaN for a
    target that is the same everywhere."""


def tokens(records: Sequence[Record], keep_first: int = 1) -> Float[Tensor, "L1 N d"]:
    """The residuals of all tokens but the first `keep_first` of every row, in the order of the rows."""
    parts = [record.stream[:, record.mask_BS & (record.rank_BS() >= keep_first)] for record in records]
    return torch.cat(parts, 1).detach()


@torch.no_grad()
def ridge_maps(
    source_MNd: Float[Tensor, "M N d"], target_LNk: Float[Tensor, "L N k"], fit: float = 0.8, ridge: float = 1e-6
) -> Maps:
    """Fits a linear map with offset for every pair on the first tokens, and asks it for the others (sheet 3.9).

    Args:
        source_MNd, target_LNk: residuals of the same tokens; whole prompts stand together, so that the held-out tokens
            at the end are of other prompts (but for one that the cut goes through).
        fit: share of the tokens that maps are fitted to.
        ridge: the penalty, as a share of the source's mean variance.

    Raises:
        ValueError: other tokens in one than in the other, or too few for maps of this width.
    """
    (M, N, d), L = source_MNd.shape, len(target_LNk)
    if target_LNk.shape[1] != N:
        raise ValueError(f"{N} tokens of the first model and {target_LNk.shape[1]} of the second: expected the same")
    known = round(fit * N)
    if not d < known < N:
        raise ValueError(
            f"{known} of {N} tokens to fit maps from width {d}: expected more than {d}, and some left over; take more "
            "prompts"
        )
    source_MNd, target_LNk = source_MNd.double(), target_LNk.double()
    offset_Lk = target_LNk[:, :known].mean(1)
    centred_LNk = target_LNk - offset_Lk[:, None]
    spread_L = (target_LNk[:, known:] - target_LNk[:, known:].mean(1, keepdim=True)).square().sum((1, 2))
    length_Ln = target_LNk[:, known:].norm(dim=-1)
    error_ML, r2_ML = (source_MNd.new_zeros(M, L) for _ in range(2))
    for point in range(M):
        x_Nd = source_MNd[point] - source_MNd[point, :known].mean(0)
        moments_dd = x_Nd[:known].T @ x_Nd[:known]
        spread = moments_dd.diagonal().mean()
        moments_dd.diagonal().add_(ridge * spread if spread > 0 else 1.0)  # one source everywhere explains nothing
        maps_Ldk = torch.linalg.solve(moments_dd, x_Nd[:known].T @ centred_LNk[:, :known])
        missed_Lnk = x_Nd[known:] @ maps_Ldk - centred_LNk[:, known:]
        error_ML[point] = (missed_Lnk.norm(dim=-1) / length_Ln).mean(1)
        r2_ML[point] = 1 - missed_Lnk.square().sum((1, 2)) / spread_L
    return Maps(error_ML, r2_ML)
