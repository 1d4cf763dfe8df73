"""Signed sums of P problems at once: the shares of all traces, and the best traces of a budget.

A trace gives each of m digits a sign, -1 or +1; its state after step t is the sum of the first t signed digits.
There are 2^t traces up to step t (CoT2, arXiv 2505.23648, the task MNNS). Two independent routes lead to a frontier:
a dynamic programme over sums (`all_shares`) and an enumeration of signs (`best_traces`); they agree when the budget
is all traces.

Letters: P problems, M digits, G sums, K = 2^m traces, B chosen traces.
"""

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from tasks.batch import Integers, Mask, Shares

Rule = Literal["absolute", "nonnegative"]
RULES: tuple[str, ...] = get_args(Rule)


def all_shares(digits_PM: Integers, high: int) -> Iterator[Shares]:
    """Share of all 2^t traces in each sum, for t = 1..m: arrays (P, 2 * t * high + 1) for the sums -t*high..t*high.

    share_t(g) = share_{t-1}(g - d_t) / 2 + share_{t-1}(g + d_t) / 2. The grid grows by `high` on both sides with
    each step, so no mass can leave it; shares are multiples of 2^-t, exact in float32 up to m = 24.
    """
    rows_P = np.arange(len(digits_PM))
    shares_PG = np.ones((len(digits_PM), 1), np.float32)
    for digit_P in digits_PM.T:
        # Window k of the doubly padded grid holds, for each sum g of the next grid, the share of g - high + k.
        padded_PG = np.pad(shares_PG, ((0, 0), (2 * high, 2 * high)))
        windows_PKG = np.lib.stride_tricks.sliding_window_view(padded_PG, shares_PG.shape[1] + 2 * high, axis=1)
        shares_PG = (windows_PKG[rows_P, high - digit_P] + windows_PKG[rows_P, high + digit_P]) / 2
        yield shares_PG


def least_sums(digits_PM: Integers, high: int) -> Integers:
    """The minimum non-negative sum of all digits (P,), by the dynamic programme.

    It always exists: turning all signs maps a sum s to -s.
    """
    *_, shares_PG = all_shares(digits_PM, high)
    zero = digits_PM.shape[1] * high
    return (shares_PG[:, zero:] > 0).argmax(axis=1)


def all_signs(digits: int) -> npt.NDArray[np.int32]:
    """Every tuple of signs (2^digits, digits) in lexicographic order, -1 before +1."""
    return np.indices((2,) * digits, np.int32).reshape(digits, -1).T * 2 - 1


def best_traces(digits_PM: Integers, budget: int, rule: Rule) -> tuple[npt.NDArray[np.int32], Mask]:
    """Sums after every step (P, B, m) of the best traces, and which of them count (P, B); B = min(budget, 2^m).

    "absolute" takes the smallest |final sum|, non-negative before negative; "nonnegative" takes the smallest final
    sum among those >= 0, of which a problem may have fewer than B: the rest do not count. Ties under both rules go
    to the first tuple of signs in lexicographic order, -1 before +1. The chosen traces come in no stated order.
    """
    signs_KM = all_signs(digits_PM.shape[1])
    final_PK = digits_PM.astype(np.int32) @ signs_KM.T
    if rule == "absolute":
        cost_PK = 2 * np.abs(final_PK) + (final_PK < 0)
    else:
        worst = np.abs(final_PK).max(initial=0) + 1
        cost_PK = np.where(final_PK < 0, worst, final_PK)
    # The rank of the signs in the lowest digits breaks ties, and is read back from the smallest composite keys.
    count = len(signs_KM)
    composite_PK = cost_PK.astype(np.int64) * count + np.arange(count)
    kept = min(budget, count)
    trace_PB = np.partition(composite_PK, kept - 1, axis=1)[:, :kept] % count
    sums_PBM = np.cumsum(signs_KM[trace_PB] * digits_PM[:, None, :].astype(np.int32), axis=2, dtype=np.int32)
    counts_PB = (sums_PBM[:, :, -1] >= 0) if rule == "nonnegative" else np.ones(trace_PB.shape, bool)
    return sums_PBM, counts_PB
