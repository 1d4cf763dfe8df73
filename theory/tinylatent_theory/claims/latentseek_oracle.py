"""A claim about LatentSeek's results: what a search owes to an oracle that stops it (arXiv 2505.13308).

With the perfect sparse reward the search is that of a constant reward, stopped at its first success (see the claims of
`latentseek`). So it is a list of proposals, worth no more than what the same oracle finds among them.

Letters: N positions, V vocabulary, D width, P = V^N prefixes, K proposals.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tinylatent.lab.findings import FAILS, Finding
from tinylatent_theory.claims.latentseek import (
    RATE,
    ROUNDS,
    between_two,
    constant,
    drawn,
    prefixes,
    search,
    shown,
    token_log_prob,
)
from tinylatent_theory.claims.ledger import Trial, claim, judged


@dataclass(frozen=True)
class Chances:
    """Exact probabilities to find the only right prefix, given that the greedy one is wrong."""

    search: float
    """By the search, whose proposals are always the same."""
    samples: float
    """By as many independent samples from the latents: pass@N."""
    most: float
    """By as many different prefixes, the likeliest ones: no proposals that know the model alone do better."""


def chances(
    z_ND: Float[Tensor, "N D"],
    head_VD: Float[Tensor, "V D"],
    law_P: Float[Tensor, " P"],
    proposals: int,
    rate: float = RATE,
) -> Chances:
    """All prefixes are enumerated; by the law one of them is right.

    Proposals of the search are those of a constant reward, since the oracle only stops it.
    """
    tokens_PN, first_N = prefixes(len(head_VD), len(z_ND)), shown(z_ND, head_VD)
    p_P = token_log_prob(z_ND, head_VD, tokens_PN).sum(1).exp()
    wrong_P = (tokens_PN == first_N).all(1)
    law_P = law_P.masked_fill(wrong_P, 0.0) / law_P[~wrong_P].sum()
    said_KN = shown(search(z_ND, head_VD, constant(-1.0), proposals, rate), head_VD)[1:]
    found_P = (tokens_PN[:, None] == said_KN).all(2).any(1)
    best_P = law_P.topk(min(proposals, len(law_P))).values
    return Chances(
        float(law_P[found_P].sum()), float((law_P * (1 - (1 - p_P) ** proposals)).sum()), float(best_P.sum())
    )


def same_wrong_answer() -> str:
    """One position, two tokens: ten steps do not reach the other token, ten samples very likely do."""
    z_ND, head_VD = between_two(1.0)
    found = chances(z_ND, head_VD, torch.ones(2, dtype=torch.float64), ROUNDS)
    return (
        f"one latent between two tokens, the wrong one of probability {1 / (1 + math.exp(-1)):.4f}: in {ROUNDS} "
        f"proposals the search says the right one with probability {found.search:.4g}, samples with {found.samples:.4f}"
    )


@claim(
    source="[R] of LatentSeek, section 3.3 and table 3, where the search is stopped by an oracle and best-of-N is not",
    origin="here",
    statement="Stopped by an oracle, the search finds a right prefix more often than as many samples do (pass@N).",
    conditions="a right prefix as likely as the model says, or all equally likely; released rate and 10 proposals",
    how="exhaustive",
    recorded=FAILS,
    counterexample=same_wrong_answer,
)
def latentseek_oracle_stop_beats_pass_at_n(trial: Trial) -> Finding:
    """Random latents and heads, all prefixes, both laws of which prefix is right; a greater rate beside."""
    V, N, heads = 5, 3, trial.size(40, 300)
    words, wins, curve = [], [], []
    for law in ("likely as the model says", "uniform"):
        for rate in (RATE, 10 * RATE):
            found = []
            for number in range(heads):
                z_ND, head_VD, _ = drawn(trial, "oracle", number, V, N, D=6)
                p_P = token_log_prob(z_ND, head_VD, prefixes(V, N)).sum(1).exp()
                law_P = torch.ones_like(p_P) if law == "uniform" else p_P
                found.append(chances(z_ND, head_VD, law_P, ROUNDS, rate))
            more = sum(each.search > each.samples for each in found) / heads
            means = [sum(getattr(each, name) for each in found) / heads for name in ("search", "samples", "most")]
            wins.append(more)
            curve += means
            words.append(
                f"{law}, rate {rate:g}: search {means[0]:.3f}, pass@{ROUNDS} {means[1]:.3f}, at most {means[2]:.3f}, "
                f"the search ahead in {more:.0%}"
            )
    return judged(min(wins) == 1, f"mean over {heads} heads of {V**N} prefixes: " + "; ".join(words), chances=curve)
