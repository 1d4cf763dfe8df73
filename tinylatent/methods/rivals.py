"""Rivals: the searches that LatentSeek is held against at equal decoded tokens.

    method         proposes in every round                                                     draws
    best-of-n      a new chain, sampled from its first token on; with the truth it is pass@N   yes
    noise-search   the tokens read from the first hidden states plus normal noise              yes
    taboo-search   the greedy tokens with the closest runners-up in their place                no

A vote over N sampled chains is best-of-n with `select` vote. Random prefixes, which tell what a gradient adds to the
trick of telling tokens, are LatentSeek in mode sampled at rate 0.

Letters: B rows, M proposals of a round (1), N told positions, D width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tinylatent.core.seeds import Streams
from tinylatent.engine.thoughts import GREEDY
from tinylatent.methods.searching import Asked, Prefixed, Search, read
from tinylatent.objectives.method import Model


@dataclass(frozen=True)
class BestOfN(Search):
    """Every round samples a new chain; with the truth as verifier an answer is found as often as pass@N says."""

    name = "best-of-n"
    label = "best of N"
    colour = "#6b7b3a"

    temperature: float = 1.0
    """Temperature of sampled chains."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature}: expected more than 0; try 1.0")

    @property
    def draws(self) -> bool:
        """Chains are sampled."""
        return True

    @property
    def heat(self) -> float:
        """The whole chain is sampled."""
        return self.temperature

    def searched(self, free_BN: Bool[Tensor, "B N"]) -> Bool[Tensor, " B"]:
        """All rows: nothing needs to be told."""
        return torch.ones(len(free_BN), dtype=torch.bool, device=free_BN.device)


@dataclass(frozen=True)
class NoiseSearch(Prefixed):
    """Every round reads the first tokens from the greedy chain's hidden states plus new normal noise.

    With one round and the constant verifier it is the one-shot noise of LatentSeek's ablation.
    """

    name = "noise-search"
    label = "noise"
    colour = "#8a6b1f"

    scale: float = 1.0
    """Standard deviation of the noise, in units of the hidden states' numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale >= 0:
            raise ValueError(f"scale {self.scale}: expected 0 or more; try 1.0")

    @property
    def head_uses(self) -> int:
        """The noisy states are read."""
        return 1

    @property
    def draws(self) -> bool:
        """The noise is drawn."""
        return True

    @torch.no_grad()
    def propose(self, model: Model, asked: Asked, round: int, streams: Streams | None) -> Int[Tensor, "B M N"]:
        """The most likely token at every noisy hidden state."""
        assert streams is not None, "solve demands streams for searches that draw"
        z_BND, noise = asked.hidden_BND, []
        for place in range(z_BND.shape[1]):  # a position's noise must not depend on how many there are
            streams.at(place)
            noise.append(streams.normal(z_BND.shape[2]))
        z_BND = z_BND + self.scale * torch.stack(noise, 1).to(z_BND)
        return GREEDY.sample(read(model.backbone, z_BND), None)["id"][:, None]


@dataclass(frozen=True)
class TabooSearch(Prefixed):
    """Every round replaces tokens by the best that their positions have not tried, where those come closest.

    A position's candidates are in the order of its logits in the greedy chain; how close one comes is how far its logit
    is below the greatest. Nothing is sampled.
    """

    name = "taboo-search"
    label = "taboo"
    colour = "#a0522d"

    flips: int = 1
    """Tokens replaced in a round."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flips < 1:
            raise ValueError(f"flips {self.flips}: expected at least 1")

    @torch.no_grad()
    def propose(self, model: Model, asked: Asked, round: int, streams: Streams | None) -> Int[Tensor, "B M N"]:
        """The tokens as they were, but for those with the closest untried ones."""
        if not round:
            logits_BNV = read(model.backbone, asked.hidden_BND).logits
            value_BNV, asked.own["order"] = logits_BNV.sort(stable=True, dim=-1, descending=True)
            asked.own["below"] = value_BNV[..., :1] - value_BNV
            asked.own["rank"] = torch.zeros_like(asked.first_BN)
        order_BNV, below_BNV, rank_BN = (asked.own[name] for name in ("order", "below", "rank"))
        next_BN = (rank_BN + 1).clamp(max=order_BNV.shape[2] - 1)
        gap_BN = below_BNV.gather(2, next_BN[..., None]).squeeze(2)
        gap_BN = gap_BN.masked_fill(~asked.free_BN | (next_BN == rank_BN), torch.inf)
        place_BN = gap_BN.argsort(stable=True, dim=1).argsort(1)
        asked.own["rank"] = torch.where((place_BN < self.flips) & gap_BN.isfinite(), next_BN, rank_BN)
        return order_BNV.gather(2, asked.own["rank"][..., None]).squeeze(2)[:, None]
