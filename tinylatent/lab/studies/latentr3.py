"""Study `latentr3`: does LatentR3's reinforcement stage earn its gain?

LatentR3 (Zhang et al. 2025) lets a recommender attend to its prompt before it names an item, then moves that attention
by rewards. The published surrogate raises or lowers the likelihood of the right answer by an advantage, which is no
policy gradient; and whatever moves the attention further may gain. So the second stage is run with the published
estimator, with others, and with the likelihood alone, all from one first stage and for as many steps. It earns credit
if it beats the likelihood with noise and without, and its start. It is run after a short first stage too, and once for
ten times the steps, to see whether there was anything to gain.

The place is recommendation by titles to users that training does not know, where the best possible ranking is known;
item tokens and SASRec stand beside, and SASRec's loss on titles. Tasks with chains are study `latentr3-chains`. Seeds
of the full profile are none of those of the quick one or of tuning.
"""

from dataclasses import replace
from pathlib import Path
from statistics import fmean

from tinylatent.lab.experiment import Experiment
from tinylatent.lab.plots import figure, interval_row, legend_below, legend_mark
from tinylatent.lab.recipes_latentr3 import ARMS, SECOND, SHOPS, arm_of, build, split
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.compare import Records, grouped, ranking_of, rate
from tinylatent.lab.studies.latentr3_second import rewards, second
from tinylatent.lab.studies.latentr3_tables import (
    AT,
    EARLY,
    beams,
    controls,
    costs,
    label,
    published,
    rank_lead,
    rankings,
    tail,
)
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table

SEEDS: dict[Profile, range] = {"quick": range(3), "full": range(5, 10)}
QUICK = ("direct", "attention", "surrogate", "likelihood", "plain")
QUICK_STEPS = {"taught": 700, "reinforced": 50}
QUICK_TRAIN = 1200
"""Problems of training in the quick profile; a quarter as many are asked."""


def grid(profile: Profile) -> list[Experiment]:
    """Every arm on every seed; few of them, briefly trained, in the quick profile."""
    arms = [arm for arm in ARMS if split(arm)[0] in SHOPS] if profile == "full" else QUICK
    return [shortened(build(arm, seed), profile) for arm in arms for seed in SEEDS[profile]]


def shortened(run: Experiment, profile: Profile) -> Experiment:
    """The run as a profile has it, and what it starts from too."""
    if profile == "full":
        return run
    steps = QUICK_STEPS["taught" if run.start is None else "reinforced"]
    start = None if run.start is None else shortened(run.start, profile)
    return replace(run, training=replace(run.training, steps=steps, num_train=QUICK_TRAIN), start=start)


def by_place(records: list[ExperimentRecord]) -> dict[str, dict[str, Records]]:
    """Records by prefix of their place and kind of their arm."""
    found: dict[str, dict[str, Records]] = {}
    for arm, group in grouped(records, lambda record: arm_of(record.experiment)).items():
        prefix, kind = split(arm)
        found.setdefault(prefix, {})[kind] = group
    return found


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """The second stage first, after a short first one too; rankings, the tail, checks, costs, what was published."""
    places = by_place(records)
    titles, early = places[""], places.get(EARLY)
    every = {prefix + kind: group for prefix, groups in places.items() for kind, group in groups.items()}
    shown = [second(titles), rewards(titles)]
    if early is not None:
        shown += [second(early, EARLY), rewards(early, EARLY)]
    shown += [rankings("hit", every), rankings("ndcg", every), tail(titles), beams(every), controls(every)]
    return [*shown, costs(every), published(titles)]


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """Panels: hit rates of all arms with the ceiling; gains of second stages, those after a short first one hollow."""
    places = by_place(records)
    every = {prefix + kind: group for prefix, groups in places.items() for kind, group in groups.items()}
    with figure(path, 11, 6, columns=2) as (hits, gains):
        for y, (arm, group) in enumerate(every.items()):
            interval_row(hits, -y, rate(group, "hit", AT), ARMS[arm][2])
        best = 100 * fmean(ranking_of(each).ceiling["hit"][str(AT)] for each in every["attention"])
        hits.axvline(best, color="black", linestyle="--", linewidth=1, label="ceiling")
        hits.set_yticks([-y for y in range(len(every))], [label(arm) for arm in every], fontsize=6)
        hits.set(xlabel=f"hit rate at {AT}, %")
        stages = [(prefix, kind) for prefix in places for kind in SECOND if prefix + kind in every]
        for y, (prefix, kind) in enumerate(stages):
            gain = rank_lead(every[prefix + kind], every[f"{prefix}attention"])
            interval_row(gains, -y, gain, ARMS[kind][2], hollow=prefix == EARLY)
        gains.axvline(0, color="black", linewidth=0.8)
        gains.set_yticks(
            [-y for y in range(len(stages))], [label(prefix + kind) for prefix, kind in stages], fontsize=6
        )
        gains.set(xlabel=f"gain over the first stage, points of the hit rate at {AT}")
        if EARLY in places:
            legend_mark(gains, "after a short first stage")
        legend_mark(gains, "bar: 95 %", "_", hollow=False)
        legend_below((hits, gains), 4)


STUDY = Study("latentr3", "Does LatentR3's reinforcement stage earn its gain?", grid, tables, draw)
