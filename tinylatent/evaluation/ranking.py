"""Ranking: log-probabilities of candidate answers after the same thinking, and the rank of the right one.

Letters: B rows, C candidates, A answer tokens.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinylatent.engine.plan import ANSWER, Segment
from tinylatent.engine.rollout import resume
from tinylatent.engine.thoughts import GREEDY
from tinylatent.engine.trace import Trace


def candidate_log_prob(
    thinking: Trace, candidates_BCA: Int[Tensor, "B C A"], mask_BCA: Bool[Tensor, "B C A"] | None = None
) -> Float[Tensor, "B C"]:
    """Log-probability of every candidate answer, the sum over its tokens.

    Args:
        thinking: a rollout of the plan without its answer; every candidate continues from its cache.
        candidates_BCA: token ids.
        mask_BCA: False beyond the end of a shorter candidate.
    """
    found = []
    for c in range(candidates_BCA.shape[1]):
        answer = Segment(GREEDY, candidates_BCA.shape[2], GREEDY.given(candidates_BCA[:, c]), ANSWER)
        trace = resume(thinking, (answer,))
        log_prob_BA = trace.log_prob_BT[:, trace.within(trace.span(ANSWER))]
        found.append(log_prob_BA if mask_BCA is None else log_prob_BA.masked_fill(~mask_BCA[:, c], 0.0))
    return torch.stack(found, 1).sum(-1)


def rank_of(score_BC: Float[Tensor, "B C"], right_B: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Rank of the right candidate, 1 for the best; candidates with an equal score or NaN rank before it."""
    right_B1 = score_BC.gather(1, right_B[:, None])
    return (~(score_BC < right_B1)).sum(1)
