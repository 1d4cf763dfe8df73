"""What study `ctrls` counts: shares and differences of records of states, seed by seed and problem by problem."""

from collections.abc import Callable, Mapping, Sequence

from tinylatent.evaluation.statistics import Interval, accuracy_interval, paired_difference
from tinylatent.lab.records import DEFAULT
from tinylatent.lab.state_reading import PLAIN, UNITS, Bound, StateRecord, drawn_name
from tinylatent.lab.studies.compare import paired

Records = Sequence[StateRecord]
Groups = Mapping[str, Records]
"""Records of one place by kind of their arm."""
Counted = Callable[[StateRecord], list[int]]
"""Right answers per key of the part that is asked more, in UNITS."""


def matched(ours: Records, theirs: Records) -> tuple[list[StateRecord], list[StateRecord]]:
    """The runs of two arms in the order of their seeds.

    Raises:
        ValueError: a seed is missing in one of them or there twice, or they were asked other problems.
    """
    mine, other = paired(ours, theirs)
    if any((a.keys, a.total, a.few_total) != (b.keys, b.total, b.few_total) for a, b in zip(mine, other, strict=True)):
        raise ValueError("runs of one seed were asked other problems: expected readings of one profile")
    return mine, other


def accuracy(group: Records, way: str = DEFAULT) -> Interval:
    """Mean share of right answers, read in a way."""
    return accuracy_interval([record.right[way] for record in group], [record.total for record in group])


def lead(ours: Records, theirs: Records, mine: str = DEFAULT, other: str = DEFAULT, level: float = 0.95) -> Interval:
    """Accuracy of one arm read in a way minus that of another, on the same problems, seed by seed."""
    first, second = matched(ours, theirs)
    total = [record.total for record in first]
    return paired_difference([a.right[mine] for a in first], [b.right[other] for b in second], total, level)


def few_share(group: Records, counted: Counted) -> Interval:
    """Mean of what is counted on the part that is asked more."""
    return accuracy_interval([counted(record) for record in group], _few_totals(group))


def few_lead(ours: Records, theirs: Records, mine: Counted, other: Counted, level: float = 0.95) -> Interval:
    """The same of one arm minus that of another, seed by seed."""
    first, second = matched(ours, theirs)
    counts = [mine(record) for record in first], [other(record) for record in second]
    return paired_difference(*counts, _few_totals(first), level)


def _few_totals(group: Records) -> list[list[int]]:
    return [[UNITS * total for total in record.few_total] for record in group]


# ---------------------------------------------------------------------------------------------------------------------
# What is counted


def answered(way: str = DEFAULT) -> Counted:
    """Greedy answers, read in a way."""
    return lambda record: [UNITS * right for right in record.few_right[way]]


def passed(way: str, n: int) -> Counted:
    """pass@n of a way of sampling."""
    return lambda record: record.draws[way].pass_[str(n)]


def bound_of(record: StateRecord) -> Bound:
    """What sequences of states reach.

    Raises:
        ValueError: they were not tried.
    """
    if record.bound is None:
        raise ValueError(f"run {record.id} has no bound: expected states, and few sequences of them")
    return record.bound


def best(record: StateRecord) -> list[int]:
    """Problems that some sequence solves."""
    return [UNITS * right for right in bound_of(record).best]


def fixed(record: StateRecord) -> list[int]:
    """Problems that the best single sequence solves."""
    return [UNITS * right for right in bound_of(record).fixed]


def chance(record: StateRecord) -> list[int]:
    """Problems that uniform states solve."""
    return bound_of(record).chance


def bounded(group: Records) -> bool:
    """Whether sequences of states were tried in all runs."""
    return all(record.bound is not None for record in group)


def resampled(chains: Records, n: int) -> str:
    """The way of plain sampling with the highest pass@n; picked on these very problems, which favours tokens."""
    names = [name for name, drawn in chains[0].draws.items() if name.startswith(PLAIN) and str(n) in drawn.pass_]
    if not names:
        raise ValueError(f"the chain was not sampled {n} times: expected at least as many samples as sequences")
    return max(names, key=lambda name: (few_share(chains, passed(name, n)).value, name))


def excess(record: StateRecord, label: str) -> float:
    """How far states agree with a label beyond chance, 1 where they are the same.

    Raises:
        ValueError: the run has no states, or the task no such label.
    """
    if record.meaning is None or label not in record.meaning.agreement:
        raise ValueError(f"run {record.id} knows no agreement of states with {label}")
    found, by_chance = record.meaning.agreement[label], record.meaning.chance[label]
    return (found - by_chance) / max(1e-9, 1 - by_chance)


def apart(record: StateRecord, way: str, n: int) -> float:
    """Different right derivations among n samples."""
    return record.draws[way].different[str(n)]


def pairs_of_ways(record: StateRecord) -> list[tuple[str, str]]:
    """Ways of drawing states, each with the plain way of its entropy."""
    return [
        (drawn_name("drawn", t), drawn_name("matched", t))
        for t in record.reading.temperatures
        if drawn_name("drawn", t) in record.draws
    ]
