"""Sums under choices, for P problems at once: the shares of all traces, and the best traces of a budget.

A trace chooses one of two factors for each of m numbers, such as -1 or +1 (MNNS), 0 or 1 (subset sum); its state after
step t is the sum of the first t numbers times their factors. There are 2^t traces up to step t (CoT2, arXiv
2505.23648). Two independent algorithms compute a frontier: a dynamic programme over sums (`all_shares`) and an
enumeration of choices (`best_traces`); they agree when the budget is all traces.

Letters: P problems, M numbers, G sums, K = 2^m traces, B chosen traces.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tinylatent_tasks.batch import Integers, Shares

Choices = tuple[int, int]
"""The two factors of a number, the smaller first; the larger is not negative."""


def all_shares(numbers_PM: Integers, high: int, choices: Choices) -> Iterator[Shares]:
    """Share of all 2^t traces in each sum, for t = 1..m: arrays (P, G) over the sums t*a*high..t*b*high.

    share_t(g) = share_{t-1}(g - a d_t) / 2 + share_{t-1}(g - b d_t) / 2 for the choices (a, b). The grid grows with
    each step, so no mass can leave it; shares are multiples of 2^-t, exact in float32 up to m = 24.
    """
    least, most = choices
    span = (most - least) * high
    rows_P = np.arange(len(numbers_PM))
    shares_PG = np.ones((len(numbers_PM), 1), np.float32)
    for number_P in numbers_PM.T:
        # Window k of the grid padded on both sides: the share of g - most * high + k for all sums g of the next grid.
        padded_PG = np.pad(shares_PG, ((0, 0), (span, span)))
        windows_PKG = np.lib.stride_tricks.sliding_window_view(padded_PG, shares_PG.shape[1] + span, axis=1)
        below_PG, above_PG = (windows_PKG[rows_P, most * high - factor * number_P] for factor in choices)
        shares_PG = (above_PG + below_PG) / 2
        yield shares_PG


def all_choices(count: int, choices: Choices) -> npt.NDArray[np.int32]:
    """All tuples of factors (2^count, count) in lexicographic order, the smaller before the larger."""
    return np.array(choices, np.int32)[np.indices((2,) * count).reshape(count, -1).T]


def best_traces(
    numbers_PM: Integers, choices: Choices, cost: Callable[[npt.NDArray[np.int32]], npt.NDArray[np.int32]], budget: int
) -> npt.NDArray[np.int32]:
    """Partial sums (P, B, m) of the traces whose final sums cost least, in no particular order; B = min(budget, 2^m).

    `cost` maps final sums (P, K) to non-negative integers; ties go to the first tuple of choices in lexicographic
    order, the smaller before the larger.
    """
    factors_KM = all_choices(numbers_PM.shape[1], choices)
    cost_PK = cost(numbers_PM.astype(np.int32) @ factors_KM.T)
    # The index of the choices in the lowest digits breaks ties, and is recovered from the smallest composites.
    count = len(factors_KM)
    composite_PK = cost_PK.astype(np.int64) * count + np.arange(count)
    kept = min(budget, count)
    trace_PB = np.partition(composite_PK, kept - 1, axis=1)[:, :kept] % count
    return np.cumsum(factors_KM[trace_PB] * numbers_PM[:, None, :].astype(np.int32), axis=2, dtype=np.int32)


def shares_of(sums_PBT: npt.NDArray[Any], counts_PB: npt.NDArray[np.bool_], size: int) -> Shares:
    """Shares (P, T, V) of states among traces, from state ids (P, B, T); `counts_PB` says which traces count."""
    P, _, T = sums_PBT.shape
    cells_PBT = np.arange(P * T).reshape(P, 1, T) * size + sums_PBT
    counts = np.bincount(cells_PBT[counts_PB].ravel(), minlength=P * T * size).reshape(P, T, size)
    return (counts / counts_PB.sum(axis=1)[:, None, None]).astype(np.float32)
