"""Study `ctrls`: do latent states of steps steer a frozen chain of thought? A RECONSTRUCTION of CTRLS.

Wu et al. 2025 (CTRLS) is known to us by its abstracts; states, bound and rewards here are ours, so that nothing is
compared with numbers of the paper. A chain of thought that is meant to err is frozen. States of its steps are taught
around it by the bound, beside shuffled, random and no states; rewards then move transitions alone, with exploration
and bonus in a grid, beside a learned prefix and beside rewards that move the language model itself. Every run is asked
what its states mean, what sequences of states can reach at best, and whether drawing states explores more than drawing
tokens of the same entropy. The null hypotheses stand in docs/methods/ctrls.md and were written before any run.
Arithmetic, with several tokens a step, is the main place, multi-hop lookup the second; subset sum has several right
chains. Seeds of the full profile are none of those of the quick one or of tuning.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylatent.lab.experiment import Experiment
from tinylatent.lab.plots import figure, interval_row, legend_below, legend_mark
from tinylatent.lab.recipes_ctrls import ARMS, CHAIN, KINDS, PLACES, arm_of, build, split
from tinylatent.lab.state_reading import PLAIN, StateReading, StateRecord
from tinylatent.lab.studies.compare import grouped
from tinylatent.lab.studies.ctrls_counts import (
    Groups,
    Records,
    accuracy,
    best,
    bounded,
    few_lead,
    few_share,
    fixed,
    pairs_of_ways,
    passed,
)
from tinylatent.lab.studies.ctrls_nulls import EXPLORERS, nulls
from tinylatent.lab.studies.ctrls_tables import accuracies, costs, explorations, gridded, meanings, reaches
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table

if TYPE_CHECKING:
    import matplotlib.axes  # which commands that draw nothing do not load

SEEDS: dict[Profile, range] = {"quick": range(3), "full": range(5, 10)}
QUICK = (CHAIN, "fitted", "shuffled", "rl")
QUICK_STEPS = {CHAIN: 400, "taught": 100, "rewarded": 10}
QUICK_TRAIN = 2000
QUICK_ASKED: dict[str, Any] = {"problems": 200, "few": 20, "samples": 20}
SEQUENCES = {"": 125, "hops-": 125, "sums-": 256}
"""Samples of the chain, by place: as many as the most sequences of states that are tried there, of four states and the
centre before three steps, and of four states before four."""
TOKENS_AT = (0.5, 0.7, 1.0)
"""Temperatures at which the chain is sampled."""
WARM = (0.0, 0.5, 0.7)
"""Temperatures of tokens where states are drawn, for the arms that exploration is about."""


def grid(profile: Profile) -> list[StateReading]:
    """A reading of every arm on every seed; of few of them, briefly trained, in the quick profile."""
    arms = ARMS if profile == "full" else QUICK
    return [reading(arm, seed, profile) for arm in arms for seed in SEEDS[profile]]


def reading(arm: str, seed: int, profile: Profile = "full") -> StateReading:
    """What an arm's run is asked."""
    run, (prefix, kind) = shortened(build(arm, seed), profile), split(arm)
    asked: dict[str, Any] = QUICK_ASKED if profile == "quick" else {}
    if kind == CHAIN:
        return StateReading(run, **{**asked, "samples": SEQUENCES[prefix]}, temperatures=TOKENS_AT)
    warm = WARM if profile == "full" and kind in EXPLORERS else (0.0,)
    return StateReading(run, **asked, temperatures=warm)


def shortened(run: Experiment, profile: Profile) -> Experiment:
    """The run as a profile has it, and what it starts from too."""
    if profile == "full":
        return run
    stage = CHAIN if run.start is None else "taught" if run.start.start is None else "rewarded"
    start = None if run.start is None else shortened(run.start, profile)
    training = replace(run.training, steps=QUICK_STEPS[stage], num_train=QUICK_TRAIN)
    return replace(run, training=training, start=start)


def by_place(records: Iterable[StateRecord]) -> dict[str, dict[str, Records]]:
    """Records by prefix of their place and kind of their arm."""
    found: dict[str, dict[str, Records]] = {}
    for arm, group in grouped(records, lambda record: arm_of(record.reading.start)).items():
        prefix, kind = split(arm)
        found.setdefault(prefix, {})[kind] = group
    return found


def tables(records: list[StateRecord]) -> list[Table]:
    """The null hypotheses first; accuracy by place, reach, meaning, exploration, the grid, costs."""
    places = by_place(records)
    shown = [nulls(places), *(accuracies(prefix, groups) for prefix, groups in places.items())]
    shown += [reaches(places), meanings(places), explorations(places)]
    shown += [gridded(prefix, groups) for prefix, groups in places.items() if "rl" in groups]
    return [*shown, costs(places)]


def draw(records: list[StateRecord], path: Path) -> None:
    """Panels of the main place: accuracy beside the start, what sequences reach, drawn states against tokens."""
    groups: Groups = by_place(records)[""]
    with figure(path, 14, 4.8, columns=3) as panels:
        after, reach, drawn = panels
        for y, (kind, group) in enumerate(groups.items()):
            interval_row(after, -y, accuracy(group), KINDS[kind][2])
            if PLAIN in group[0].right:
                interval_row(after, -y, accuracy(group, PLAIN), KINDS[kind][2], hollow=True)
        _labels(after, groups)
        after.set(xlabel="validation accuracy, %", xlim=(0, 102))
        known = [kind for kind, group in groups.items() if bounded(group)]
        for y, kind in enumerate(known):
            interval_row(reach, -y, few_share(groups[kind], best), KINDS[kind][2])
            interval_row(reach, -y, few_share(groups[kind], fixed), KINDS[kind][2], hollow=True)
        _labels(reach, known)
        reach.set(xlabel="best sequence of states, %", xlim=(0, 102))
        sampled = [kind for kind, group in groups.items() if pairs_of_ways(group[0])]
        for y, kind in enumerate(sampled):
            ours, theirs = pairs_of_ways(groups[kind][0])[0]
            gap = few_lead(groups[kind], groups[kind], passed(ours, 20), passed(theirs, 20))
            interval_row(drawn, -y, gap, KINDS[kind][2])
        drawn.axvline(0, color="black", linewidth=0.8)
        _labels(drawn, sampled)
        drawn.set(xlabel="pass@20: states minus tokens of equal entropy, points")
        legend_mark(after, "without states; right of it, one sequence for all")
        legend_mark(after, "bar: 95 %", "_", hollow=False)
        legend_below(panels, 2)


def _labels(axes: "matplotlib.axes.Axes", kinds: Iterable[str]) -> None:
    """Arms from top to bottom."""
    names = [KINDS[kind][0] for kind in kinds]
    axes.set_yticks([-y for y in range(len(names))], names, fontsize=6)


STUDY = Study(
    "ctrls",
    f"Do latent states of steps steer a frozen chain of thought (a reconstruction, on {len(PLACES)} tasks)?",
    grid,
    tables,
    draw,
    kind=StateReading,
)
