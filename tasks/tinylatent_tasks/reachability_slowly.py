"""Graph reachability by listing all walks, one problem at a time: the reference for tests of `reachability`."""

from collections.abc import Sequence


def solve_reachability_slowly(problem: Sequence[int], depth: int, whether: bool) -> tuple[int, list[int]]:
    """The answer and the nodes of the best trace.

    Args:
        problem: root, two candidates (-1 for none), then the nodes of every edge (-1, -1 for none).
        depth: most edges of a walk.
        whether: asks whether the first candidate can be reached; if not, which of the two can.
    """
    root, first, second, *flat = map(int, problem)
    ahead: dict[int, list[int]] = {}
    for source, target in zip(flat[::2], flat[1::2], strict=True):
        if source >= 0 and not (whether and source == first):
            ahead.setdefault(source, []).append(target)
    walks = [[root]]
    for _ in range(depth):
        walks = [[*walk, node] for walk in walks for node in sorted(ahead.get(walk[-1], walk[-1:] * whether))]
        ended = sorted(walk for walk in walks if walk[-1] in (first, second))
        if not whether and ended:
            return ended[0][-1], ended[0][1:]
    arrived = [walk for walk in walks if walk[-1] == first]
    best = min(arrived, key=lambda walk: (walk.index(first), walk)) if arrived else min(walks)
    return int(bool(arrived)), best[1:]
