"""Study `hrpo`: does HRPO learn to use its latents, and do they help?

HRPO (Yue et al. 2025) mixes soft tokens into sampled ones by gates that learn. From chains of thought that are right
half of the time or more often, it is trained beside token-only GRPO, and beside itself with noise, another problem's
soft token or zero in the soft token's place, and with gates that do not learn: a gain of latents must show against all
of them. The paper takes the rise of the hidden ratio for the use of latents. Weight decay raises it, too, so that its
course is judged against runs with permuted rewards, with none, and with decay alone, and against those of the controls;
all of that also without decay of Lambda. Arithmetic is the main place, where every arm is trained; multi-hop lookup has
the arms that judge it. Seeds of the full profile are none of those that sizes were tried on.
"""

from pathlib import Path
from statistics import fmean

from tinylatent.evaluation.statistics import accuracy_interval
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.plots import figure, interval_row, legend_below, legend_mark
from tinylatent.lab.recipes_hrpo import ARMS, DECAYED, KINDS, PLACES, arm_of, build, split
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.compare import Records, accuracy, before, grouped, logged, totals
from tinylatent.lab.studies.hrpo_tables import accuracies, lengths, published, ratios
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table

SEEDS: dict[Profile, range] = {"quick": range(3), "full": range(5, 10)}
QUICK = ("token", "hrpo", "noise", "permuted")
QUICK_PARTS = 3
"""By what the quick profile divides the steps of training."""
REWARDED = ("token", "hrpo", "noise", "shuffled", "zero", "fixed")
"""Arms whose rewards the figure draws."""
JUDGED = tuple(DECAYED)
"""Arms whose hidden ratio it draws."""


def grid(profile: Profile) -> list[Experiment]:
    """Every arm on every seed; in the quick profile few of them, for fewer steps."""
    if profile == "full":
        return [build(arm, seed) for arm in ARMS for seed in SEEDS[profile]]
    steps = PLACES[""].training.steps // QUICK_PARTS
    return [build(arm, seed, steps=steps) for arm in QUICK for seed in SEEDS[profile]]


def by_place(records: list[ExperimentRecord]) -> dict[str, dict[str, Records]]:
    """Records by prefix of their place and kind of their arm."""
    found: dict[str, dict[str, Records]] = {}
    for arm, group in grouped(records, lambda record: arm_of(record.experiment)).items():
        prefix, kind = split(arm)
        found.setdefault(prefix, {})[kind] = group
    return found


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """Accuracy, the hidden ratio and lengths in each place, and what was published."""
    places = {PLACES[prefix].title: groups for prefix, groups in by_place(records).items()}
    shown = [make(title, groups) for make in (accuracies, ratios, lengths) for title, groups in places.items()]
    return [*shown, published(places)]


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """Draws panels of the main place: accuracy before and after, rewards, and the hidden ratio with its controls."""
    groups = by_place(records)[""]
    with figure(path, 13, 4.8, columns=3) as panels:
        after, rewards, ratio = panels
        for y, (kind, group) in enumerate(groups.items()):
            colour = KINDS[kind][2]
            interval_row(after, -y, accuracy_interval(before(group), totals(group)), colour, hollow=True)
            interval_row(after, -y, accuracy(group), colour)
        after.set_yticks([-y for y in range(len(groups))], [KINDS[kind][0] for kind in groups], fontsize=7)
        after.set(xlabel="validation accuracy, %", xlim=(0, 102))
        for axes, shown, metric in ((rewards, REWARDED, "reward"), (ratio, JUDGED, "hidden_ratio")):
            for kind in (each for each in shown if each in groups):
                label, _, colour = KINDS[kind]
                axes.plot(*mean_course(groups[kind], metric), color=colour, label=label)
        rewards.set(xlabel="batches of rollouts", ylabel="training reward", ylim=(0, 1.02))
        ratio.set(xlabel="batches of rollouts", ylabel="hidden ratio")
        legend_mark(after, "before")
        legend_mark(after, "after", hollow=False)
        legend_mark(after, "bar: 95 %", "_", hollow=False)
        legend_below(panels, 5)


def mean_course(group: Records, metric: str) -> tuple[list[int], list[float]]:
    """Steps that all runs logged a metric at, and its mean over them."""
    lines = [logged(record, metric) for record in group]
    steps = [step for step in lines[0] if all(step in line for line in lines)]
    return steps, [fmean(line[step] for line in lines) for step in steps]


STUDY = Study("hrpo", "Does HRPO learn to use its latents, and do they help?", grid, tables, draw)
