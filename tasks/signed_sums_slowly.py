"""Signed sums by brute force, one problem at a time, in plain Python: the second opinion for `tasks.signed_sums`.

Nothing here shares code with the fast routes. Only tests and readers who want to check a line by hand need it.
"""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, product

Trace = tuple[int, ...]


def traces_slowly(problem: Sequence[int]) -> list[Trace]:
    """The partial sums of all 2^m traces, in the lexicographic order of their signs, -1 before +1."""
    choices = [(-digit, digit) for digit in map(int, problem)]
    return [tuple(accumulate(signed)) for signed in product(*choices)]


def solve_slowly(problem: Sequence[int]) -> tuple[int, list[int]]:
    """The minimum non-negative sum, and the partial sums of the first trace that reaches it."""
    answer = min(trace[-1] for trace in traces_slowly(problem) if trace[-1] >= 0)
    return answer, next(list(trace) for trace in traces_slowly(problem) if trace[-1] == answer)


def frontier_slowly(problem: Sequence[int], budget: int | None, rule: str) -> list[dict[int, Fraction]]:
    """For each step a dictionary {sum: share of the chosen traces}; the last step holds the answer alone.

    budget None takes all traces; otherwise the `budget` best by the order of `rule` ("absolute" or "nonnegative").
    """
    traces = traces_slowly(problem)
    if budget is not None and rule == "nonnegative":
        traces = [trace for trace in traces if trace[-1] >= 0]
    # sorted() is stable: equal traces stay in the order of their signs.
    chosen = sorted(traces, key=lambda trace: (abs(trace[-1]), trace[-1] < 0))[:budget]
    frontier = []
    for states in zip(*chosen, strict=True):
        frontier.append({state: Fraction(count, len(chosen)) for state, count in Counter(states).items()})
    frontier[-1] = {solve_slowly(problem)[0]: Fraction(1)}
    return frontier
