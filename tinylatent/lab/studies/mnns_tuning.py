"""Study `mnns-tuning`: the same search for every method, on splits kept for tuning.

Twelve configurations (four peak learning rates times three weight decays) train on split seed 100. The better half goes
on to seeds 101 and 102 (one round of successive halving, Karnin et al. 2013). The best of these, by its mean over the
three seeds, is tried at half and at twice its rate on all three, to look past the grid's edge where it stands there.
Coconut, whose schedule of stages has settings that the others lack, is last tried with four other schedules. The best
of all is what `recipes` holds. Everything else is the default recipe. No reported result uses these splits.
"""

from itertools import product
from pathlib import Path

from tinylatent.lab.arms import arms
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.plots import figure, legend_below, legend_mark, shade
from tinylatent.lab.recipes import Settings, build, contenders
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.compare import accuracy, grouped, method_of, percent
from tinylatent.lab.studies.search import (
    FIRST,
    OTHERS,
    Configuration,
    best,
    better_half,
    margin,
    searched,
    tried_on_all,
    winner,
)
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value
from tinylatent.methods import METHODS, Coconut
from tinylatent.objectives.method import Method

VARIANTS: dict[str, tuple[Method, ...]] = {
    "coconut": (Coconut(share=0.1), Coconut(share=0.3), Coconut(mixing=0.0), Coconut(mixing=0.3))
}
"""Methods with other settings of their own, which are tried last."""
RATES = (5e-4, 2e-3, 5e-3, 1e-2)
DECAYS = (0.01, 0.05, 0.25)
NEIGHBOURS = (0.5, 2.0)
LENGTH: dict[Profile, Settings] = {"quick": {"steps": 900}, "full": {}}
COLUMNS = {
    "method": "s", "rate": "g", "weight decay": "g", "own": "s", "seeds": "d", "accuracy": ".2f", "low": ".2f",
    "high": ".2f", "chosen": "s",
}  # fmt: skip
LEGEND = (
    "accuracy: percent of the validation part, mean over seeds 100 (seeds 1) or 100 to 102 (seeds 3), 95 % interval "
    "(bootstrap over seeds and keys, or Student's t over seeds where that is wider; over keys alone for one seed). The "
    "better half of the twelve at seed 100 went on to the other seeds, and the best of these was tried at half and at "
    "twice its rate too, on all three. own: settings only this method has. chosen: the best mean over three seeds."
)


def searchers() -> dict[str, Method]:
    """Every method with its default settings, by name."""
    return {name: METHODS[name]() for name in contenders()}


def configurations(profile: Profile) -> list[Configuration]:
    """The grid: everything, or the quick profile's corners."""
    full = profile == "full"
    pairs = product(RATES if full else RATES[1:3], DECAYS if full else DECAYS[:2])
    return [Configuration(rate, decay) for rate, decay in pairs]


def run(method: Method, configuration: Configuration, seed: int, profile: Profile) -> Experiment:
    """One run of the search; the quick profile takes a tenth of the steps."""
    rate, decay, _ = configuration
    return build("mnns", method, seed, learning_rate=rate, weight_decay=decay, **LENGTH[profile])


def grid(profile: Profile) -> list[Experiment]:
    """The first round: every method and configuration on the first seed."""
    return [run(method, each, FIRST, profile) for method in searchers().values() for each in configurations(profile)]


def after(profile: Profile, records: list[ExperimentRecord]) -> list[Experiment]:
    """Each method's better half on the other seeds; then the best one's neighbours; then the method's own settings."""
    groups, runs = grouped(records, method_of), []
    for name, method in searchers().items():
        if name not in groups:
            continue
        half, found = better_half(groups[name], configurations(profile)), tried_on_all(groups[name])
        runs += [run(method, each, seed, profile) for each in half for seed in OTHERS]
        if not found.keys() >= set(half):
            continue
        rate, decay, _ = best({each: found[each] for each in half})
        beside = [Configuration(rate * factor, decay) for factor in NEIGHBOURS]
        runs += [run(method, each, seed, profile) for each in beside for seed in (FIRST, *OTHERS)]
        if found.keys() >= set(beside):
            usual = best({each: seen for each, seen in found.items() if not each.own})
            others = VARIANTS.get(name, ())
            runs += [run(other, usual, seed, profile) for other in others for seed in (FIRST, *OTHERS)]
    return runs


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """Every configuration of every method, which was chosen, and how surely."""
    rows: list[dict[str, Value]] = []
    groups, known = grouped(records, method_of), arms("mnns")
    for name, group in groups.items():
        chosen = winner(group)
        for each, runs in searched(group).items():
            row: dict[str, Value] = {"method": known[name].label, "rate": each.learning_rate, "own": each.own}
            row |= {"weight decay": each.weight_decay, "seeds": len(runs), "chosen": "yes" if each == chosen else ""}
            rows.append(row | percent(accuracy(runs)))
    findings = [margin(known[name].label, group) for name, group in groups.items()]
    return [Table("The same search for every method, on tuning splits", COLUMNS, rows, LEGEND, findings)]


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """Draws a panel a method: accuracy against rate, a line a decay; full dots saw all seeds and have intervals."""
    groups, known = grouped(records, method_of), arms("mnns")
    with figure(path, 1.9 * len(groups) + 0.6, 3, columns=len(groups), sharey=True) as panels:
        for axes, (name, group) in zip(panels, groups.items(), strict=True):
            found = searched(group)
            decays = sorted({each.weight_decay for each in found})
            for index, decay in enumerate(decays):
                here = [(each, runs) for each, runs in found.items() if each.weight_decay == decay and not each.own]
                points = [(each.learning_rate, accuracy(runs), len(runs)) for each, runs in here]
                tint = shade(known[name].colour, index, len(decays))
                apart = 1.1 ** (index - (len(decays) - 1) / 2)
                axes.plot(
                    [rate * apart for rate, *_ in points], [100 * i.value for _, i, _ in points], color=tint, lw=1
                )
                for rate, interval, seeds in points:
                    if seeds > 1:
                        axes.plot([rate * apart] * 2, [100 * interval.low, 100 * interval.high], color=tint)
                    face = tint if seeds > 1 else "white"
                    axes.plot(rate * apart, 100 * interval.value, "o", color=tint, mfc=face, ms=4)
            axes.set(title=known[name].label, xlabel="peak learning rate", xscale="log", ylim=(0, 102))
            axes.xaxis.minorticks_off()
        for index, decay in enumerate(decays):
            tint = shade("#404040", index, len(decays))
            panels[0].plot([], [], "o-", color=tint, ms=4, label=f"decay {decay:g}")
        legend_mark(panels[0], "hollow: one seed")
        legend_mark(panels[0], "bar: 95 % over three seeds", "|", hollow=False)
        panels[0].set_ylabel("validation accuracy, %")
        legend_below(panels[:1], len(decays) + 2)


STUDY = Study(
    "mnns-tuning",
    "Which learning rate and weight decay suit each method of study mnns, given the same search?",
    grid,
    tables,
    draw,
    after,
)
