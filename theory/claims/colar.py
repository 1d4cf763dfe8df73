"""Claims about CoLaR, compressed latent reasoning (Tan et al. 2025, arXiv 2505.16552).

A group of c token embeddings becomes one latent, their sum over sqrt(c); a latent head predicts the next one as a
normal distribution with mean mu and standard deviation sigma, by likelihood or by a softened squared error.

Letters: c tokens of a group, d width, v mean squared residual.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from theory.claims.ledger import EXACT, STRICTER, Finding, Trial, claim, judged_twice


def compressed(tokens_cd: Float[Tensor, "*rows c d"]) -> Float[Tensor, "*rows d"]:
    """CoLaR's latent of a group of token embeddings: their sum over sqrt(c) (section 3.1)."""
    return tokens_cd.sum(-2) / tokens_cd.shape[-2] ** 0.5


def equal_tokens() -> str:
    """Two equal tokens: the group's latent has twice their variance."""
    token_d = torch.tensor([1.0, -1.0], dtype=torch.float64)
    latent_d = compressed(torch.stack([token_d, token_d]))
    return f"two equal tokens of variance {token_d.var(correction=0):g} make a latent of {latent_d.var(correction=0):g}"


@claim(
    source="CoLaR, section 3.1",
    statement="Dividing the sum of c token embeddings by sqrt(c) keeps their variance.",
    conditions="independent embeddings of mean zero",
    how="exact algebra",
    recorded=STRICTER,
    counterexample=equal_tokens,
)
def colar_root_c_keeps_variance(trial: Trial) -> Finding:
    """Independent draws from random finite vocabularies: the latent's variance is a sum over all groups, exactly."""
    worst = {0.0: 0.0, 1.0: 0.0}  # relative error of the second moment, by the mean of the embeddings
    for c in (2, 3, 4):
        for mean in worst:
            tokens_V = torch.randn(5, generator=trial.torch("tokens", c), dtype=torch.float64)
            tokens_V = tokens_V - tokens_V.mean() + mean
            groups_Gc = torch.cartesian_prod(*[tokens_V] * c)
            latent_G = compressed(groups_Gc[..., None])[:, 0]
            off = float((latent_G**2).mean() / (tokens_V**2).mean() - 1)
            worst[mean] = max(worst[mean], abs(off))
    return judged_twice(
        as_published=max(worst.values()) < EXACT,
        strictly=worst[0.0] < EXACT,
        evidence=f"mean 0: the latent's scale is the tokens' to {worst[0.0]:.0e}; mean 1: off by {worst[1.0]:.2g} of it",
    )
