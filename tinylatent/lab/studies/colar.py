"""Study `colar`: how much of a chain can CoLaR compress, and which of its parts matter?

Every arm of `recipes_colar` starts from one chain of thought a seed and trains as long as the others; each is then read
at its speeds, with the chain's own vectors given, with vectors and stops drawn as in the paper, and with latents
replaced. The arithmetic chain has six tokens an operation, multi-hop a token a node: there c of 6 and of 1 take as many
latents as Coconut and pauses. Seeds of the full profile are none of those that sizes were tried on.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tinylatent.engine.controls import CONTROLS
from tinylatent.lab import recipes_colar
from tinylatent.lab.plots import figure, interval_column, legend_below, legend_mark
from tinylatent.lab.reading import Reader, Reading, ReadingRecord
from tinylatent.lab.recipes_colar import ARMS, PREFIX, RL_START, build
from tinylatent.lab.studies.colar_tables import (
    ITSELF,
    ByArm,
    Readings,
    ablations,
    accuracy,
    by_length,
    controls,
    learning,
    overview,
    own,
    speeds,
    title,
)
from tinylatent.lab.studies.compare import grouped
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table
from tinylatent.methods import Coconut, CoLaR, CoLaRGRPO
from tinylatent.objectives.method import Method

if TYPE_CHECKING:
    import matplotlib.axes  # which commands that draw nothing do not load

SEEDS: dict[Profile, range] = {"quick": range(3), "full": range(5, 10)}
QUICK = ("random", "c2", "direct")
QUICK_PARTS = 2
"""By what the quick profile divides the steps of training."""
PROBLEMS = 500
COMPARED = (1, 2, 5, 6)
"""Speeds at which more is asked: those of the paper's tables, of chain of thought, and of as many latents as Coconut
has."""


def grid(profile: Profile) -> list[Reading]:
    """A reading of every arm on every seed."""
    chosen = ARMS if profile == "full" else QUICK
    return [reading(arm, seed, profile) for arm in chosen for seed in SEEDS[profile]]


def reading(arm: str, seed: int, profile: Profile = "full") -> Reading:
    """What an arm's run is asked."""
    run = build(arm, seed)
    if profile == "quick":
        run = build(arm, seed, steps=run.training.steps // QUICK_PARTS)
    return Reading(run, read_by(run.method), PROBLEMS, by_steps=True)


def read_by(method: Method) -> tuple[Reader, ...]:
    """The ways to read a method: at every speed it may be asked at, or at its only one."""
    if not isinstance(method, CoLaR | CoLaRGRPO):
        latent = isinstance(method, Coconut) and method.per_step > 0 and not method.waits
        return Reader(ITSELF, method), *(Reader(f"{ITSELF} {name}", method, name) for name in CONTROLS if latent)
    asked = [*method.speeds] if len(method.speeds) == 1 else [*range(1, max(method.speeds) + 1)]
    found = [Reader(f"x{c}", replace(method, speed=c)) for c in asked]
    compared = [c for c in asked if c in COMPARED]
    found += [Reader(f"drawn x{c}", replace(method, speed=c, draws=True)) for c in compared]
    if isinstance(method, CoLaR):
        found += [Reader(f"taught x{c}", replace(method, speed=c, gold=True)) for c in asked]
        found += [Reader(f"x{c} {name}", replace(method, speed=c), name) for c in compared for name in CONTROLS]
    return tuple(found)


def arm_of(record: ReadingRecord) -> str:
    """The name of a record's arm.

    Raises:
        ValueError: it is of none.
    """
    return recipes_colar.arm_of(record.reading.start)


def tables(records: Readings) -> list[Table]:
    """Accuracy by speed and by chain length, what the parts are worth, controls, reinforcement learning."""
    groups = grouped(records, arm_of)
    found = [overview(groups), by_length(groups, "")]
    if any(arm.startswith(PREFIX) for arm in groups):
        found.append(by_length(groups, PREFIX))
    found += [ablations(groups), controls(groups)]
    return [*found, learning(groups)] if {RL_START, "rl-mean", "rl-sum"} <= groups.keys() else found


def draw(records: Readings, path: Path) -> None:
    """A pair of panels a task: accuracy against c, arms side by side; and CoLaR's against the length of the chain."""
    groups = grouped(records, arm_of)
    tasks = [prefix for prefix in ("", PREFIX) if f"{prefix}random" in groups]
    with figure(path, 6.5 * len(tasks), 3.8, columns=2 * len(tasks), sharey=True) as panels:
        for number, prefix in enumerate(tasks):
            here = {arm: group for arm, group in groups.items() if arm.startswith(PREFIX) == bool(prefix)}
            _by_speed(panels[2 * number], {arm: group for arm, group in here.items() if "rl" not in arm})
            _by_length(panels[2 * number + 1], here[f"{prefix}random"])
            panels[2 * number].set(title=f"{title(prefix)}: by tokens a vector", xlabel="c", ylim=(0, 102))
            panels[2 * number + 1].set(title=f"{title(prefix)}: CoLaR by chain", xlabel="tokens of the chain")
        panels[0].set_ylabel("accuracy, %")
        legend_mark(panels[0], "c was not trained")
        legend_below(panels, 6)


def _by_speed(axes: "matplotlib.axes.Axes", groups: ByArm) -> None:
    """Accuracy against c for methods with speeds; a dashed line for each other."""
    several = [arm for arm, group in groups.items() if speeds(group)]
    for arm, group in groups.items():
        label, method, colour = ARMS[arm]
        if arm not in several:
            level = 100 * accuracy(group, ITSELF).value
            axes.axhline(level, color=colour, linestyle="--", linewidth=1, label=label)
            continue
        assert isinstance(method, CoLaR)
        apart = 0.06 * (several.index(arm) - (len(several) - 1) / 2)
        for place, (reader, c) in enumerate(own(group)):
            assert c is not None
            unseen = c not in method.speeds
            interval_column(axes, c + apart, accuracy(group, reader), colour, unseen, None if place else label, 1.0)


def _by_length(axes: "matplotlib.axes.Axes", group: Readings) -> None:
    """A line a speed."""
    lengths = sorted(map(int, group[0].parts))
    for c in speeds(group):
        values = [100 * accuracy(group, f"x{c}", str(n)).value for n in lengths]
        shade = (0.2 + 0.15 * c, 0.2, 0.9 - 0.15 * c)
        axes.plot(lengths, values, "o-", color=shade, markersize=4, linewidth=1, label=f"c = {c}")
    axes.set_xticks(lengths)


STUDY = Study(
    "colar",
    "How much of a chain can CoLaR compress, and which of its parts matter?",
    grid,
    tables,
    draw,
    kind=Reading,
)
