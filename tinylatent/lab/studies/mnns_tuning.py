"""Study `mnns-tuning`: the same search for every method, on splits kept for tuning.

Twelve configurations (four peak learning rates times three weight decays) train on split seed 100. The better half goes
on to seeds 101 and 102 (one round of successive halving, Karnin et al. 2013). The best of these, by its mean over the
three seeds, is tried at half and at twice its rate on all three, to look past the grid's edge where it stands there.
Coconut, whose schedule of stages has settings that the others lack, is last tried with four other schedules. The best
of all is frozen in `lineup`. Everything else is the default recipe. No reported result uses these splits.
"""

from itertools import product
from pathlib import Path

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.plots import figure, shade
from tinylatent.lab.report import Table, Value
from tinylatent.lab.studies.compare import accuracy, grouped, listed, method_of, percent
from tinylatent.lab.studies.lineup import LABELS
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
from tinylatent.lab.study import Profile, Record, Study
from tinylatent.methods import METHODS as KINDS
from tinylatent.methods import Coconut
from tinylatent.objectives.method import Method
from tinylatent.training.config import Training

METHODS: tuple[Method, ...] = tuple(KINDS[name]() for name in LABELS)
OWN: dict[str, tuple[Method, ...]] = {
    "coconut": (Coconut(share=0.1), Coconut(share=0.3), Coconut(mixing=0.0), Coconut(mixing=0.3))
}
"""Settings of a method's own that are tried last."""
RATES = (5e-4, 2e-3, 5e-3, 1e-2)
DECAYS = (0.01, 0.05, 0.25)
NEIGHBOURS = (0.5, 2.0)
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


def configurations(profile: Profile) -> list[Configuration]:
    """The grid: everything, or the quick profile's corners."""
    full = profile == "full"
    return list(product(RATES if full else RATES[1:3], DECAYS if full else DECAYS[:2], ("",)))


def run(method: Method, configuration: Configuration, seed: int, profile: Profile) -> Experiment:
    """One run of the search; the quick profile takes a tenth of the steps."""
    rate, decay, _ = configuration
    steps = Training().steps if profile == "full" else Training().steps // 10
    return Experiment(method=method, training=Training(steps, rate=rate, weight_decay=decay), seeds=Seeds.all(seed))


def grid(profile: Profile) -> list[Experiment]:
    """The first round: every method and configuration on the first seed."""
    return [run(method, each, FIRST, profile) for method in METHODS for each in configurations(profile)]


def after(profile: Profile, records: list[Record]) -> list[Experiment]:
    """Each method's better half on the other seeds; then the best one's neighbours; then the method's own settings."""
    groups, runs = grouped(records, method_of), []
    for method in METHODS:
        group, half = groups[method.name], better_half(groups[method.name], configurations(profile))
        runs += [run(method, each, seed, profile) for each in half for seed in OTHERS]
        found = tried_on_all(group)
        if not found.keys() >= set(half):
            continue
        rate, decay, _ = best({each: found[each] for each in half})
        beside = [(rate * factor, decay, "") for factor in NEIGHBOURS]
        runs += [run(method, each, seed, profile) for each in beside for seed in (FIRST, *OTHERS)]
        if found.keys() >= set(beside):
            usual = best({each: seen for each, seen in found.items() if not each[2]})
            others = OWN.get(method.name, ())
            runs += [run(other, usual, seed, profile) for other in others for seed in (FIRST, *OTHERS)]
    return runs


def tables(records: list[Record]) -> list[Table]:
    """Every configuration of every method, which was chosen, and how surely."""
    rows: list[dict[str, Value]] = []
    groups = grouped(records, method_of)
    for name, group in groups.items():
        chosen = winner(group)
        for each, runs in searched(group).items():
            rate, decay, settings = each
            row: dict[str, Value] = {"method": LABELS[name], "rate": rate, "weight decay": decay, "own": settings}
            mark = "yes" if each == chosen else ""
            rows.append({**row, "seeds": len(runs), **percent(accuracy(runs)), "chosen": mark})
    notes = [LEGEND, *listed(margin(LABELS[name], group) for name, group in groups.items())]
    return [Table("The same search for every method, on tuning splits", COLUMNS, rows, notes)]


def draw(records: list[Record], path: Path) -> None:
    """A panel a method: accuracy against rate, a line a decay, intervals drawn; full dots saw all seeds."""
    groups = grouped(records, method_of)
    with figure(path, 1.9 * len(groups) + 0.6, 2.6, columns=len(groups), sharey=True) as panels:
        for axes, (name, group) in zip(panels, groups.items(), strict=True):
            found = searched(group)
            decays = sorted({decay for _, decay, _ in found})
            for place, decay in enumerate(decays):
                here = {rate: runs for (rate, d, settings), runs in found.items() if d == decay and not settings}
                points = [(rate, accuracy(runs), len(runs)) for rate, runs in here.items()]
                colour, apart = shade(name, place, len(decays)), 1.06 ** (place - (len(decays) - 1) / 2)
                x = [rate * apart for rate, _, _ in points]
                axes.plot(x, [100 * i.value for _, i, _ in points], color=colour, label=f"decay {decay:g}")
                axes.vlines(x, [100 * i.low for _, i, _ in points], [100 * i.high for _, i, _ in points], color=colour)
                for at, (_, interval, seeds) in zip(x, points, strict=True):
                    axes.plot(at, 100 * interval.value, "o", color=colour, mfc=colour if seeds > 1 else "white", ms=4)
            axes.set(title=LABELS[name], xlabel="peak learning rate", xscale="log", ylim=(0, 102))
            axes.xaxis.minorticks_off()
            axes.legend(fontsize=7, loc="lower center")
        panels[0].text(0.03, 0.97, "hollow: one seed", transform=panels[0].transAxes, fontsize=7, va="top")
        panels[0].set_ylabel("validation accuracy, % (95 %)")


STUDY = Study(
    "mnns-tuning",
    "Which learning rate and weight decay suit each method of study mnns, given the same search?",
    grid,
    tables,
    draw,
    after,
)
