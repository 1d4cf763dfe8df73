"""Ranking: log-probabilities of candidate answers, the rank of the right one, and hit rate and NDCG with their ceiling.

One candidate is right, so NDCG at k is 1 / log2(1 + rank), or 0 beyond k (LatentR3, arXiv 2505.19092, reports both).
Where the right one is partly chance, no ranking can do better, on average, than the one by the exact probability of
each candidate: its expected hit rate and NDCG are the ceiling.

Letters: B rows, C candidates, A answer tokens, P problems, I items of a catalogue, k cut-off of a list, U users.
"""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinylatent.engine.plan import ANSWER, Segment
from tinylatent.engine.rollout import resume
from tinylatent.engine.thoughts import GREEDY
from tinylatent.engine.trace import Trace
from tinylatent.evaluation.statistics import Interval

FIGURES = ("hit", "ndcg")
KS = (1, 5, 10)
"""Cut-offs at which hit rate and NDCG are reported."""
QUINTILES = 5


@runtime_checkable
class Shop(Protocol):
    """A task that asks for one item of a catalogue and knows how probable each is."""

    @property
    def catalogue(self) -> Any:
        """Token ids of every title (I, A)."""

    @property
    def popularity(self) -> Any:
        """How often each item (I,) is chosen by popularity alone."""

    def answer(self, problems: Any) -> Any:
        """The right items (P,)."""

    def predictive(self, problems: Any) -> Any:
        """The exact probability (P, I) that each item is right, given what the problem shows."""


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


def ranks(scores_PI: np.ndarray, right_P: np.ndarray) -> np.ndarray:
    """Rank (P,) of the right item by scores of all items, or by the same scores (I,) for every problem.

    Items with an equal score or NaN rank before the right one. Raises ValueError for scores of another shape.
    """
    scores, right = np.asarray(scores_PI, np.float64), np.asarray(right_P)
    if scores.ndim == 1:
        scores = np.broadcast_to(scores, (len(right), len(scores)))
    if scores.ndim != 2 or len(scores) != len(right):
        raise ValueError(f"scores of shape {scores.shape}: expected a score for every item of {len(right)} problems")
    return rank_of(torch.tensor(scores), torch.tensor(right)).numpy()


def listed_ranks(items_PW: np.ndarray, right_P: np.ndarray, items: int) -> np.ndarray:
    """Rank (P,) of the right item in lists of W items, best first; the last of all `items` where it is not listed."""
    found_PW = np.asarray(items_PW) == np.asarray(right_P)[:, None]
    return np.where(found_PW.any(1), found_PW.argmax(1) + 1, items)


def gains(rank_P: np.ndarray, figure: str, k: int) -> np.ndarray:
    """What each rank is worth: 1 ("hit") or 1 / log2(1 + rank) ("ndcg") up to rank k, 0 beyond.

    Raises ValueError for another figure or a k below 1.
    """
    if figure not in FIGURES or k < 1:
        raise ValueError(f"{figure!r} at {k}: expected one of {', '.join(FIGURES)}, at 1 or more; try 'hit' at 10")
    rank = np.asarray(rank_P)
    return np.where(rank <= k, 1.0 if figure == "hit" else 1 / np.log2(1 + np.maximum(rank, 1)), 0.0)


def quintiles(popularity_I: np.ndarray) -> np.ndarray:
    """The popularity quintile (I,) of every item, 1 for the most popular fifth of the items to 5 for the least.

    Fifths are of the number of items, not of their popularity, so that each has enough problems; equally popular items
    go by their numbers.
    """
    order_I = np.argsort(-np.asarray(popularity_I), kind="stable")
    found_I = np.empty(len(order_I), np.int64)
    found_I[order_I] = 1 + np.arange(len(order_I)) * QUINTILES // len(order_I)
    return found_I


def best_gains(predictive_PI: np.ndarray, figure: str, k: int) -> np.ndarray:
    """The highest expected gain (P,) of each problem: that of ranking items by their exact probability."""
    best_PI = -np.sort(-np.asarray(predictive_PI), axis=1)
    return best_PI @ gains(np.arange(1, best_PI.shape[1] + 1), figure, k)


def best_by_quintile(predictive_PI: np.ndarray, quintile_I: np.ndarray, figure: str, k: int) -> list[float]:
    """Expected gain of the best ranking where the right item is of each quintile, the most popular first.

    It is the ceiling of all problems told apart by quintile. A ranking that favours a quintile can do better there, at
    a cost elsewhere. A quintile that can never be right has 0.
    """
    predictive = np.asarray(predictive_PI)
    order_PI = np.argsort(-predictive, axis=1, kind="stable")
    worth_PI = np.take_along_axis(predictive, order_PI, axis=1) * gains(np.arange(1, order_PI.shape[1] + 1), figure, k)
    found = []
    for quintile in range(1, QUINTILES + 1):
        mass = predictive[:, quintile_I == quintile].sum()
        found.append(float(worth_PI[quintile_I[order_PI] == quintile].sum() / mass) if mass > 0 else 0.0)
    return found


def excess(gain_P: np.ndarray, best_P: np.ndarray, key_P: np.ndarray, level: float = 0.95) -> Interval:
    """By how much gains exceed the highest expected ones, on average over problems, with its interval over users.

    Whatever a ranking looks at, the expectation is at most 0; a lower end above 0 says that it has seen the answers, or
    that the ceiling is wrong. The interval is Student's t over users (keys), whose problems are dependent, by the
    linearised ratio of sums.

    Raises ValueError unless there are as many of all three, of at least two users.
    """
    more_P, (_, user_P) = np.asarray(gain_P) - np.asarray(best_P), np.unique(np.asarray(key_P), return_inverse=True)
    users = int(user_P.max(initial=-1)) + 1
    if more_P.shape != user_P.shape or users < 2:
        raise ValueError(
            f"gains of shape {more_P.shape} for {users} users: expected one for each problem, of two users or more"
        )
    from scipy.stats import t  # half a second that most commands do not need

    value = float(more_P.mean())
    apart_U = np.bincount(user_P, more_P - value)
    error = np.sqrt(users / (users - 1) * (apart_U**2).sum()) / len(more_P)
    half = float(t.ppf((1 + level) / 2, users - 1) * error)
    return Interval(value, value - half, value + half, "Student's t over users")
