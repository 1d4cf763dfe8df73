"""Search: how a study tunes a method on splits kept for it, and says what it found.

Every configuration of a grid trains on split seed 100, the better half on seeds 101 and 102 as well, or on 101 alone
where runs are dear (one round of successive halving, Karnin et al. 2013); the best mean over these seeds is chosen. No
reported result uses these splits.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from tinylatent.core.identity import plain
from tinylatent.lab.arms import Arm
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import FEWEST, Finding
from tinylatent.lab.plots import figure, legend_below, legend_mark
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.compare import Records, accuracy, difference, grouped, percent, positive
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value

FIRST, OTHERS = 100, (101, 102)
SEEDS = 1 + len(OTHERS)


class Configuration(NamedTuple):
    """What is searched for."""

    learning_rate: float
    """Peak learning rate."""
    weight_decay: float
    own: str = ""
    """In words, the method's settings that are not its defaults."""


Contender = tuple[str, str]
"""Who is tuned, and where: the name of a method or sampler; a shape, task or start as the table says it."""
ByConfiguration = Mapping[Configuration, Records]
RATE_COLUMNS = {"rate": "g", "seeds": "d", "accuracy": ".2f", "low": ".2f", "high": ".2f", "chosen": "s"}
RATE_LEGEND = (
    "accuracy: percent of the validation part, mean over seeds 100 (seeds 1) or 100 to {last} (seeds {seeds}), 95 % "
    "interval (bootstrap over seeds and keys, or Student's t over seeds where that is wider; over keys alone for one "
    "seed). Weight decay is {decay}. chosen: the best mean over {words} seeds."
)


def searched(records: Records) -> ByConfiguration:
    """One method's records by configuration, the lowest rate first."""
    return dict(sorted(grouped(records, configuration).items()))


def configuration(record: ExperimentRecord) -> Configuration:
    """The configuration that a record is of."""
    training = record.experiment.training
    return Configuration(training.learning_rate, training.weight_decay, own(record))


def own(record: ExperimentRecord) -> str:
    """In words, the settings of a record's method that are not its defaults."""
    return ", ".join(f"{name} {value}" for name, value in plain(record.experiment.method).items())


def better_half(records: Records, among: Iterable[Configuration]) -> list[Configuration]:
    """The better half of a grid on the first seed, by one method's records; ties go to the smaller rate, then decay."""
    grid = [*among]
    first = [record for record in records if record.experiment.seeds.split == FIRST]
    scores = {each: _mean(group) for each, group in searched(first).items() if each in grid}
    return sorted(sorted(scores, key=lambda each: -scores[each])[: (len(scores) + 1) // 2])


def better_rates(records: Records, rates: Iterable[float]) -> list[float]:
    """The better half of a grid of rates on the first seed, all else being as in these records."""
    _, decay, settings = configuration(records[0])
    return [each.learning_rate for each in better_half(records, [Configuration(r, decay, settings) for r in rates])]


def tried_on_all(records: Records, seeds: int = SEEDS) -> ByConfiguration:
    """One method's records by configuration, those that saw every seed."""
    return {each: group for each, group in searched(records).items() if len(group) == seeds}


def winner(records: Records, seeds: int = SEEDS) -> Configuration:
    """The configuration of the best mean over all seeds, among one method's that saw them all."""
    return best(tried_on_all(records, seeds))


def best(found: ByConfiguration) -> Configuration:
    """The configuration of the best mean."""
    return max(found, key=lambda each: _mean(found[each]))


def _mean(group: Records) -> float:
    return fmean(record.accuracy for record in group)


# ---------------------------------------------------------------------------------------------------------------------
# What was found


def margin(name: str, group: Records, seeds: int = SEEDS) -> Finding:
    """Whether a contender's best is better than its second best; the evidence says where it stands at an edge."""
    found = tried_on_all(group, seeds)
    first, second = sorted(found, key=lambda each: -_mean(found[each]))[:2]
    rate, decay, settings = first
    claim = f"the best of {name} (rate {rate:g}, decay {decay:g}{settings and ', '}{settings}) is better than its"
    said = positive(f"{claim} second best", difference(found[first], found[second]), len(found[first]), "tuning")
    edges = [
        f"the {end} {word}"
        for word, value, tried in (
            ("rate", rate, {each.learning_rate for each in searched(group)}),
            ("decay", decay, {each.weight_decay for each in searched(group)}),
        )
        for end, edge in (("lowest", min(tried)), ("highest", max(tried)))
        if value == edge and len(tried) > 1
    ]
    if not edges:
        return said
    told = f"it has {' and '.join(edges)} that was tried, better ones may lie beyond"
    return replace(said, evidence=f"{said.evidence}; {told}")


def rates_table(
    title: str,
    heading: str,
    groups: Mapping[Contender, Records],
    known: Mapping[str, Arm],
    seeds: int = SEEDS,
) -> Table:
    """Every rate of every contender, which was chosen on that many seeds, and how surely.

    Args:
        title: of the table.
        heading: of the column that says where a contender is tuned.
        groups: records by contender.
        known: the arm of each contender, by its name.
        seeds: on which the better half was tried.
    """
    rows: list[dict[str, Value]] = []
    for (name, where), group in groups.items():
        chosen = winner(group, seeds)
        for each, runs in searched(group).items():
            row: dict[str, Value] = {"method": known[name].label, heading: where, "rate": each.learning_rate}
            mark = "yes" if each == chosen else ""
            rows.append({**row, "seeds": len(runs), **percent(accuracy(runs)), "chosen": mark})
    findings = [margin(f"{known[name].label}, {where}", group, seeds) for (name, where), group in groups.items()]
    columns = {"method": "s", heading: "s", **RATE_COLUMNS}
    decays = sorted({record.experiment.training.weight_decay for group in groups.values() for record in group})
    listed = ", ".join(f"{each:g}" for each in decays)
    decay = f"{listed} throughout" if len(decays) == 1 else f"one of {listed}, that of each recipe"
    legend = RATE_LEGEND.format(last=FIRST + seeds - 1, seeds=seeds, words={2: "two", 3: "three"}[seeds], decay=decay)
    return Table(title, columns, rows, legend, findings)


def draw_rates(groups: Mapping[Contender, Records], known: Mapping[str, Arm], path: Path) -> None:
    """Draws a panel for each shape, task or start: accuracy against rate, a line a contender, side by side.

    Bars are intervals from FEWEST seeds on; of two seeds, whose interval would be most of the scale, they lead from one
    to the other. `known` has the arm of each contender, by its name.
    """
    titles = list(dict.fromkeys(where for _, where in groups))
    most = max(len(runs) for group in groups.values() for runs in searched(group).values())
    with figure(path, max(2.7 * len(titles), 6.5), 3.4, columns=len(titles), sharey=True) as panels:
        for axes, title in zip(panels, titles, strict=True):
            here = {name: searched(group) for (name, where), group in groups.items() if where == title}
            rates = sorted({each.learning_rate for found in here.values() for each in found})
            room = 0.6 * min((log(high / low) for low, high in pairwise(rates)), default=1.0)
            for number, (name, found) in enumerate(here.items()):
                tint, apart = known[name].colour, exp(room * ((number + 0.5) / len(here) - 0.5))
                points = {apart * each.learning_rate: runs for each, runs in found.items()}
                means = [100 * accuracy(runs).value for runs in points.values()]
                axes.plot([*points], means, color=tint, linewidth=1, label=known[name].label)
                for (x, runs), mean in zip(points.items(), means, strict=True):
                    axes.plot([x, x], _spread(runs), color=tint, linewidth=1.5)
                    axes.plot(x, mean, "o", color=tint, mfc="white" if len(runs) == 1 else tint, ms=4)
            axes.set(title=title, xlabel="peak learning rate", xscale="log", ylim=(0, 102))
            axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
            axes.minorticks_off()
        panels[0].set_ylabel("validation accuracy, %")
        legend_mark(panels[0], "hollow: one seed")
        legend_mark(panels[0], "bar: both seeds" if most < FEWEST else "bar: 95 % over seeds", "|", hollow=False)
        entries = len({name for name, _ in groups}) + 2
        legend_below(panels, entries if entries < 8 else (entries + 1) // 2)


def _spread(runs: Records) -> list[float]:
    """Ends of a bar in percent: the interval of many seeds, two seeds themselves, one seed alone."""
    if len(runs) < FEWEST:
        return [100 * pick(record.accuracy for record in runs) for pick in (min, max)]
    found = accuracy(runs)
    return [100 * found.low, 100 * found.high]


# ---------------------------------------------------------------------------------------------------------------------
# A study of two rounds


@dataclass(frozen=True)
class RateSearch:
    """Every rate of every arm on the first seed, the better half of each arm's on one seed more.

    Arms that start from others follow, once the rates of those are chosen.
    """

    arms: Mapping[Profile, Sequence[str]]
    """Names of what is tuned."""
    rates: Callable[[str], Sequence[float]]
    """The rates tried for an arm."""
    run: Callable[[str, int, float, Profile, Mapping[str, float]], Experiment]
    """The run of an arm on a seed at a rate, what it starts from at the rate that was found for that arm."""
    arm_of: Callable[[Experiment], str]
    """The arm of a run."""
    contender: Callable[[str], Contender]
    """How tables call an arm, and where it is tuned."""
    looks: Mapping[str, Arm]
    """By the names that tables know contenders by."""
    titles: Mapping[str, Iterable[str]]
    """Tables by title: the names of their contenders. One without any is left out."""
    before: Callable[[str], str | None] = lambda arm: None
    """The arm that an arm starts from, if that one is searched too: it waits until the rate of that one is chosen."""

    def grid(self, profile: Profile) -> list[Experiment]:
        """The first round of what starts from no other arm."""
        return self._first(self._stages(profile)[0], profile, {})

    def after(self, profile: Profile, records: list[ExperimentRecord]) -> list[Experiment]:
        """Every later run that these records allow for: second rounds, and what starts from arms that are chosen."""
        known = {record.id: record for record in records}
        runs: list[Experiment] = []
        found: dict[str, float] = {}
        for number, stage in enumerate(self._stages(profile)):
            first = self._first(stage, profile, found)
            runs += first if number else []
            measured = [known[run.identity] for run in first if run.identity in known]
            if len(measured) < len(first):
                return runs
            groups = grouped(measured, lambda record: self.arm_of(record.experiment))
            second = [
                self.run(arm, OTHERS[0], rate, profile, found)
                for arm, group in groups.items()
                for rate in better_rates(group, self.rates(arm))
            ]
            runs += second
            measured += [known[run.identity] for run in second if run.identity in known]
            if len(measured) < len(first) + len(second):
                return runs
            groups = grouped(measured, lambda record: self.arm_of(record.experiment))
            found |= {arm: winner(group, 2).learning_rate for arm, group in groups.items()}
        return runs

    def _stages(self, profile: Profile) -> list[list[str]]:
        """Arms that start from no other first, then those that start from them, and so on."""
        left, stages = [*self.arms[profile]], []
        while left:
            stages.append([arm for arm in left if self.before(arm) not in left])
            left = [arm for arm in left if arm not in stages[-1]]
        return stages

    def _first(self, arms: Sequence[str], profile: Profile, found: Mapping[str, float]) -> list[Experiment]:
        """The first round of some arms, what they start from at the rates that were found."""
        return [self.run(arm, FIRST, rate, profile, found) for arm in arms for rate in self.rates(arm)]

    def found(self, records: list[ExperimentRecord]) -> Mapping[Contender, Records]:
        """Records by contender."""
        return grouped(records, lambda record: self.contender(self.arm_of(record.experiment)))

    def tables(self, records: list[ExperimentRecord]) -> list[Table]:
        """Every rate of every contender, and which was chosen."""
        groups, shown = self.found(records), []
        for title, names in self.titles.items():
            here = {who: group for who, group in groups.items() if who[0] in names}
            if here:
                shown.append(rates_table(title, "task", here, self.looks, 2))
        return shown

    def draw(self, records: list[ExperimentRecord], path: Path) -> None:
        """Accuracy against rate, a panel a task."""
        draw_rates(self.found(records), self.looks, path)

    def study(self, name: str, question: str) -> Study:
        """The study of this search."""
        return Study(name, question, self.grid, self.tables, self.draw, self.after)
