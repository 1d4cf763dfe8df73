"""Search: how a study tunes a method on splits kept for it, and says what it found.

Every configuration of a grid trains on split seed 100, the better half on seeds 101 and 102 as well, or on 101 alone
where runs are dear (one round of successive halving, Karnin et al. 2013); the best mean over these seeds is chosen. No
reported result uses these splits.
"""

import json
from pathlib import Path
from statistics import fmean

from tinylatent.lab.plots import COLOURS, figure, interval_column
from tinylatent.lab.report import Table, Value
from tinylatent.lab.studies.compare import accuracy, difference, grouped, listed, percent, share, verdict
from tinylatent.lab.studies.lineup import LABELS
from tinylatent.lab.study import Record
from tinylatent.methods import METHODS

FIRST, OTHERS = 100, (101, 102)
SEEDS = 1 + len(OTHERS)
Configuration = tuple[float, float, str]
"""Peak learning rate, weight decay, and in words what is not the method's default."""
Contender = tuple[str, str]
"""A method's name, or what tells it from others, and in words where it is tuned: a shape, a task or a start."""
RATE_COLUMNS = {"rate": "g", "seeds": "d", "accuracy": ".2f", "low": ".2f", "high": ".2f", "chosen": "s"}
RATE_LEGEND = (
    "accuracy: percent of the validation part, mean over seeds 100 (seeds 1) or 100 to {last} (seeds {seeds}), 95 % "
    "interval (bootstrap over seeds and keys, or Student's t over seeds where that is wider; over keys alone for one "
    "seed). Weight decay is {decay:g} throughout. chosen: the best mean over {words} seeds."
)


def searched(records: list[Record]) -> dict[Configuration, list[Record]]:
    """One method's records by configuration."""

    def configuration(record: Record) -> Configuration:
        training = record["experiment"]["training"]
        return training["rate"], training["weight_decay"], own(record)

    return dict(sorted(grouped(records, configuration).items()))


def own(record: Record) -> str:
    """In words, what of a record's method is not the default."""
    method = dict(record["experiment"]["method"])
    usual = json.loads(json.dumps(vars(METHODS[method["name"]]())))  # as records have it: lists for tuples
    return ", ".join(f"{name} {method[name]}" for name in usual if method[name] != usual[name])


def better_half(records: list[Record], among: list[Configuration]) -> list[Configuration]:
    """The better half of a grid on the first seed, by one method's records; ties go to the smaller rate, then decay."""
    first = [record for record in records if record["experiment"]["seeds"]["split"] == FIRST]
    scores = {each: _mean(group) for each, group in searched(first).items() if each in among}
    return sorted(sorted(scores, key=lambda each: -scores[each])[: (len(scores) + 1) // 2])


def tried_on_all(records: list[Record], seeds: int = SEEDS) -> dict[Configuration, list[Record]]:
    """One method's records by configuration, of those that saw every seed."""
    return {each: group for each, group in searched(records).items() if len(group) == seeds}


def winner(records: list[Record], seeds: int = SEEDS) -> Configuration:
    """The best mean of one method over all seeds, among the configurations that saw them all."""
    return best(tried_on_all(records, seeds))


def best(found: dict[Configuration, list[Record]]) -> Configuration:
    """The configuration of the best mean."""
    return max(found, key=lambda each: _mean(found[each]))


def _mean(group: list[Record]) -> float:
    return fmean(map(share, group))


def margin(label: str, group: list[Record], seeds: int = SEEDS) -> str:
    """Whether a method's best is surely better than its second best, and whether it stands at an edge."""
    found = tried_on_all(group, seeds)
    first, second = sorted(found, key=lambda each: -_mean(found[each]))[:2]
    said = verdict(
        f"the best of {label} (rate {first[0]:g}, decay {first[1]:g}) is better than its second best",
        difference(found[first], found[second]),
        len(found[first]),
    )
    edges = []
    for place, name in enumerate(("rate", "decay")):
        tried = {each[place] for each in searched(group)}
        ends = {min(tried): "lowest", max(tried): "highest"} if len(tried) > 1 else {}
        edges += [f"the {end} {name}" for value, end in ends.items() if value == first[place]]
    return f"{said} It has {' and '.join(edges)} that was tried: better ones may lie beyond." if edges else said


def better_rates(records: list[Record], rates: tuple[float, ...], decay: float | int) -> list[float]:
    """The better half of a grid of rates at one weight decay, on the first seed."""
    settings = own(records[0])
    return [rate for rate, _, _ in better_half(records, [(rate, decay, settings) for rate in rates])]


def rates_table(title: str, heading: str, groups: dict[Contender, list[Record]], seeds: int = SEEDS) -> Table:
    """Every rate of every contender, which was chosen on that many seeds, and how surely."""
    rows: list[dict[str, Value]] = []
    for (name, where), group in groups.items():
        chosen = winner(group, seeds)
        for each, runs in searched(group).items():
            row: dict[str, Value] = {
                "method": LABELS.get(name, name),
                heading: where,
                "rate": each[0],
                "seeds": len(runs),
            }
            rows.append(row | {**percent(accuracy(runs)), "chosen": "yes" if each == chosen else ""})
    found = (
        margin(f"{LABELS.get(name, name)} {where if where.startswith('from') else f'at {where}'}", group, seeds)
        for (name, where), group in groups.items()
    )
    columns = {"method": "s", heading: "s", **RATE_COLUMNS}
    decay = next(iter(groups.values()))[0]["experiment"]["training"]["weight_decay"]
    legend = RATE_LEGEND.format(last=FIRST + seeds - 1, seeds=seeds, words={2: "two", 3: "three"}[seeds], decay=decay)
    return Table(title, columns, rows, [legend, *listed(found)])


def draw_rates(groups: dict[Contender, list[Record]], path: Path) -> None:
    """A panel a place: accuracy against rate, a line a method, intervals drawn; hollow dots saw one seed."""
    places = list(dict.fromkeys(where for _, where in groups))
    with figure(path, 2.7 * len(places), 2.8, columns=len(places), sharey=True) as panels:
        for axes, where in zip(panels, places, strict=True):
            here = {name: searched(group) for (name, place), group in groups.items() if place == where}
            for name, found in here.items():
                for (rate, _, _), runs in found.items():
                    interval_column(axes, rate, accuracy(runs), COLOURS[name], len(runs) == 1)
                values = [100 * accuracy(runs).value for runs in found.values()]
                axes.plot([rate for rate, _, _ in found], values, color=COLOURS[name], label=LABELS.get(name, name))
            axes.set(title=where, xlabel="peak learning rate", xscale="log", ylim=(0, 102))
            rates = sorted({rate for found in here.values() for rate, _, _ in found})
            axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
            axes.minorticks_off()
        panels[0].set_ylabel("validation accuracy, % (95 %)")
        panels[0].legend(loc="lower center")
        panels[-1].text(0.03, 0.03, "hollow: one seed", transform=panels[-1].transAxes, fontsize=7)
