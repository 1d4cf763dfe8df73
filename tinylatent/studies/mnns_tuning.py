"""Study `mnns-tuning`: the same search for every method, on splits kept for tuning.

Three rounds. Twelve configurations (four peak learning rates times three weight decays) train on split seed 100. The
better half goes on to seeds 101 and 102 (one round of successive halving, Karnin et al. 2013). The best of these, by
its mean over the three seeds, is tried at half and at twice its rate on all three, to look past the grid's edge where
it stands there. The best of all is frozen in `lineup.RECIPES`. Everything else is the default recipe. No reported
result uses these splits.
"""

from itertools import product
from pathlib import Path
from statistics import fmean

from tinylatent.experiment import Experiment, Training
from tinylatent.measure import ITSELF
from tinylatent.methods import Method
from tinylatent.plots import figure, shade
from tinylatent.report import Table, Value
from tinylatent.seeds import Seeds
from tinylatent.studies.compare import accuracy, grouped, method_of, percent
from tinylatent.studies.lineup import LABELS, METHODS
from tinylatent.study import Profile, Record, Study

RATES = (5e-4, 2e-3, 5e-3, 1e-2)
DECAYS = (0.01, 0.05, 0.25)
NEIGHBOURS = (0.5, 2.0)
FIRST, OTHERS = 100, (101, 102)
COLUMNS = {
    "method": "s", "rate": "g", "weight decay": "g", "seeds": "d", "accuracy": ".2f", "low": ".2f", "high": ".2f",
    "chosen": "s",
}  # fmt: skip
LEGEND = (
    "accuracy: percent of the validation part, mean over seeds 100 (seeds 1) or 100 to 102 (seeds 3), 95 % interval "
    "(bootstrap over seeds and keys). The better half of the twelve at seed 100 went on to the other seeds, and the "
    "best of these was tried at half and at twice its rate too. chosen: the best mean over three seeds."
)
Configuration = tuple[float, float]
"""Peak learning rate and weight decay."""


def configurations(profile: Profile) -> list[Configuration]:
    """What is tried: everything, or the quick profile's corners."""
    return list(product(RATES, DECAYS)) if profile == "full" else list(product(RATES[1:3], DECAYS[:2]))


def run(method: Method, configuration: Configuration, seed: int, profile: Profile) -> Experiment:
    """One run of the search; the quick profile takes a tenth of the steps."""
    rate, decay = configuration
    steps = Training().steps if profile == "full" else Training().steps // 10
    return Experiment(method=method, training=Training(steps, rate=rate, weight_decay=decay), seeds=Seeds.all(seed))


def grid(profile: Profile) -> list[Experiment]:
    """The first round: every method and configuration on the first seed."""
    return [run(method, each, FIRST, profile) for method in METHODS for each in configurations(profile)]


def after(profile: Profile, records: list[Record]) -> list[Experiment]:
    """The second round, each method's better half on the other seeds; then the third, the best one's neighbours."""
    groups, runs = grouped(records, method_of), []
    for method in METHODS:
        group = groups[method.name]
        runs += [run(method, each, seed, profile) for each in better_half(group) for seed in OTHERS]
        if tried_on_all(group):
            rate, decay = winner([record for record in group if in_grid(record)])
            neighbours = [(rate * factor, decay) for factor in NEIGHBOURS]
            runs += [run(method, each, seed, profile) for each in neighbours for seed in (FIRST, *OTHERS)]
    return runs


def searched(records: list[Record]) -> dict[Configuration, list[Record]]:
    """One method's records by configuration."""

    def configuration(record: Record) -> Configuration:
        training = record["experiment"]["training"]
        return training["rate"], training["weight_decay"]

    return dict(sorted(grouped(records, configuration).items()))


def in_grid(record: Record) -> bool:
    """Whether a record's configuration is one of the grid's."""
    training = record["experiment"]["training"]
    return training["rate"] in RATES and training["weight_decay"] in DECAYS


def better_half(records: list[Record]) -> list[Configuration]:
    """The better half of one method's grid on the first seed; ties go to the smaller rate, then decay."""
    first = [record for record in records if record["experiment"]["seeds"]["split"] == FIRST and in_grid(record)]
    scores = {each: _mean(group) for each, group in searched(first).items()}
    return sorted(sorted(scores, key=lambda each: -scores[each])[: (len(scores) + 1) // 2])


def tried_on_all(records: list[Record]) -> dict[Configuration, list[Record]]:
    """One method's records by configuration, of those that saw every seed."""
    return {each: group for each, group in searched(records).items() if len(group) == 1 + len(OTHERS)}


def winner(records: list[Record]) -> Configuration:
    """The best mean of one method over all seeds, among the configurations that saw them all."""
    found = tried_on_all(records)
    return max(found, key=lambda each: _mean(found[each]))


def _mean(group: list[Record]) -> float:
    return fmean(sum(r["evaluations"][ITSELF]["right"]) / sum(r["total"]) for r in group)


def tables(records: list[Record]) -> list[Table]:
    """Every configuration of every method, and which was chosen."""
    rows: list[dict[str, Value]] = []
    for name, group in grouped(records, method_of).items():
        chosen = winner(group)
        for each, runs in searched(group).items():
            row: dict[str, Value] = {"method": LABELS[name], "rate": each[0], "weight decay": each[1]}
            mark = "yes" if each == chosen else ""
            rows.append({**row, "seeds": len(runs), **percent(accuracy(runs)), "chosen": mark})
    return [Table("The same search for every method, on tuning splits", COLUMNS, rows, [LEGEND])]


def draw(records: list[Record], path: Path) -> None:
    """A panel a method: accuracy against rate, a line a weight decay, intervals drawn; full dots saw all seeds."""
    groups = grouped(records, method_of)
    with figure(path, 1.9 * len(groups) + 0.6, 2.6, columns=len(groups), sharey=True) as panels:
        for axes, (name, group) in zip(panels, groups.items(), strict=True):
            found = searched(group)
            decays = sorted({decay for _, decay in found})
            for place, decay in enumerate(decays):
                points = [(rate, accuracy(runs), len(runs)) for (rate, d), runs in found.items() if d == decay]
                colour, apart = shade(name, place, len(decays)), 1.06 ** (place - (len(decays) - 1) / 2)
                x = [rate * apart for rate, _, _ in points]
                axes.plot(x, [100 * i.value for _, i, _ in points], color=colour, label=f"decay {decay:g}")
                axes.vlines(x, [100 * i.low for _, i, _ in points], [100 * i.high for _, i, _ in points], color=colour)
                for at, (_, interval, seeds) in zip(x, points, strict=True):
                    axes.plot(at, 100 * interval.value, "o", color=colour, mfc=colour if seeds > 1 else "white", ms=4)
            axes.set(title=LABELS[name], xlabel="peak learning rate", xscale="log", ylim=(0, 102))
            axes.xaxis.minorticks_off()
            axes.legend(fontsize=7, loc="lower center")
        panels[0].set_ylabel("validation accuracy, % (95 %)")


STUDY = Study(
    "mnns-tuning",
    "Which learning rate and weight decay suit each method of study mnns, given the same search?",
    grid,
    tables,
    draw,
    after,
)
