"""Sums under choices by brute force, one problem at a time, in plain Python: the reference for tests of `choice_sums`.

It shares no code with the fast algorithms.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import accumulate, product

Trace = tuple[int, ...]


def traces_slowly(numbers: Sequence[int], choices: Sequence[int]) -> list[Trace]:
    """The partial sums of all 2^m traces, in the lexicographic order of their choices."""
    options = [[choice * number for choice in choices] for number in map(int, numbers)]
    return [tuple(accumulate(chosen)) for chosen in product(*options)]


def shares_slowly(traces: Iterable[Trace]) -> list[dict[int, Fraction]]:
    """A dictionary {state: share of the traces} per step."""
    chosen = list(traces)
    return [
        {state: Fraction(count, len(chosen)) for state, count in Counter(states).items()}
        for states in zip(*chosen, strict=True)
    ]


def solve_mnns_slowly(problem: Sequence[int]) -> tuple[int, list[int]]:
    """The minimum non-negative sum, and the partial sums of the first trace that reaches it."""
    traces = traces_slowly(problem, (-1, 1))
    answer = min(trace[-1] for trace in traces if trace[-1] >= 0)
    return answer, next(list(trace) for trace in traces if trace[-1] == answer)


def mnns_frontier_slowly(problem: Sequence[int], budget: int | None, rule: str) -> list[dict[int, Fraction]]:
    """A dictionary {sum: share of the chosen traces} per step of MNNS; the last step has the answer alone.

    budget None takes all traces; otherwise the `budget` best by the order of `rule` ("absolute" or "nonnegative").
    """
    traces = traces_slowly(problem, (-1, 1))
    if budget is not None and rule == "nonnegative":
        traces = [trace for trace in traces if trace[-1] >= 0]
    # sorted() is stable: equal traces stay in the order of their signs.
    chosen = sorted(traces, key=lambda trace: (abs(trace[-1]), trace[-1] < 0))[:budget]
    return [*shares_slowly(chosen)[:-1], {solve_mnns_slowly(problem)[0]: Fraction(1)}]


def solve_subset_slowly(numbers: Sequence[int], target: int) -> tuple[bool, Trace]:
    """Whether a subset sums to the target, and the partial sums of the first subset that comes nearest to it."""
    traces = traces_slowly(numbers, (0, 1))
    nearest = min(traces, key=lambda trace: abs(trace[-1] - target))
    return nearest[-1] == target, nearest
