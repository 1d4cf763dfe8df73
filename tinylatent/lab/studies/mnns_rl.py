"""Study `mnns-rl`: does reinforcement learning improve sampled latents on MNNS, and which way of sampling is best?

GRPO (Gozeten et al. 2025, section 5) from two starts of study `mnns`, discrete chain of thought and CoT2, with K
sampled tokens a latent step, with the paper's and the official code's ratio, with Dirichlet latents of matched variance
and with a K that grows. Every sampler has the learning rate that study `mnns-rl-tuning` chose for it. Then chains: at
equal sampled tokens, N chains of K tokens against N K discrete ones.
"""

from pathlib import Path
from statistics import fmean

from tinylatent.lab.arms import arms, sampler_arms
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.plots import figure, interval_column, legend_below, legend_mark
from tinylatent.lab.recipes import SAMPLERS, STARTS, Settings
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.compare import accuracy, grouped
from tinylatent.lab.studies.mnns_rl_tables import Way, accuracies, before, chains, learning
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table

SEEDS: dict[Profile, range] = {"quick": range(2), "full": range(5)}
QUICK_SAMPLERS = ("k1", "k3", "dirichlet2")
LENGTH: dict[Profile, Settings] = {"quick": {"steps": 200, "log_every": 20}, "full": {}}


def grid(profile: Profile) -> list[Experiment]:
    """Every sampler from every start on every seed."""
    return [
        arm.recipe(seed, **LENGTH[profile])
        for start in STARTS
        for name, arm in sampler_arms(start).items()
        if profile == "full" or name in QUICK_SAMPLERS
        for seed in SEEDS[profile]
    ]


def way_of(record: ExperimentRecord) -> Way:
    """The names of a record's start and sampler.

    Raises:
        ValueError: it starts from no other run, or samples in none of these ways.
    """
    names, run = {sampler: name for name, sampler in SAMPLERS.items()}, record.experiment
    if run.start is None or run.start.method.name not in STARTS or run.method not in names:
        raise ValueError(f"run {record.id} is none of reinforcement learning on MNNS: expected a start and a sampler")
    return run.start.method.name, names[run.method]


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """Accuracy before and after, what training looked like, and chains at equal sampled tokens."""
    groups = grouped(records, way_of)
    return [accuracies(groups), learning(groups), chains(groups)]


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """A pair of panels a start: accuracy before (hollow) and after, and the reward while it learns."""
    groups, starts = grouped(records, way_of), arms("mnns")
    with figure(path, 14, 3.8, columns=4) as panels:
        for number, start in enumerate(STARTS):
            here = {arm: groups[start, name] for name, arm in sampler_arms(start).items() if (start, name) in groups}
            accuracy_axes, reward_axes = panels[2 * number : 2 * number + 2]
            for x, (arm, group) in enumerate(here.items()):
                interval_column(accuracy_axes, x - 0.1, accuracy(before(group)), arm.colour, hollow=True)
                interval_column(accuracy_axes, x + 0.1, accuracy(group), arm.colour)
                shared = min(len(record.metrics) for record in group)
                steps = [line["step"] for line in group[0].metrics[:shared]]
                rewards = [fmean([record.metrics[at]["reward"] for record in group]) for at in range(shared)]
                reward_axes.plot(steps, rewards, color=arm.colour, label=arm.label)
            accuracy_axes.set_xticks(range(len(here)), [arm.label for arm in here], rotation=40, ha="right")
            title = f"from {starts[start].label}"
            accuracy_axes.set(title=title, ylabel="validation accuracy, %", ylim=(0, 102))
            reward_axes.set(title=title, xlabel="batches of rollouts", ylabel="training reward", ylim=(0, 1.02))
        legend_mark(panels[0], "before")
        legend_mark(panels[0], "after", hollow=False)
        legend_mark(panels[0], "bar: 95 %", "|", hollow=False)
        legend_below(panels[0::3], 6)


STUDY = Study(
    "mnns-rl",
    "Does reinforcement learning improve sampled latents on MNNS, from discrete chains and from CoT2, and how sampled?",
    grid,
    tables,
    draw,
)
