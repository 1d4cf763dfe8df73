"""Study `mnns-rates`: the same four learning rates for every method of study `mnns`, on splits kept for tuning.

Splits 100 and 101 are never used for reported results. The rate with the best mean accuracy is frozen in study `mnns`.
"""

from pathlib import Path
from statistics import fmean

from tinylatent.experiment import Experiment, Training
from tinylatent.measure import ITSELF
from tinylatent.plots import COLOURS, figure
from tinylatent.report import Table, Value
from tinylatent.seeds import Seeds
from tinylatent.statistics import Interval, accuracy_interval
from tinylatent.studies.mnns import LABELS, METHODS, by_method
from tinylatent.study import Profile, Record, Study

RATES = (5e-4, 1e-3, 2e-3, 5e-3)
TUNING_SEEDS = (100, 101)
COLUMNS = {"method": "s", "rate": "g", "accuracy": ".2f", "low": ".2f", "high": ".2f", "chosen": "s"}


def grid(profile: Profile) -> list[Experiment]:
    """Every method at every rate on every tuning seed; the quick profile takes one seed and a tenth of the steps."""
    seeds, steps = (TUNING_SEEDS, 9000) if profile == "full" else (TUNING_SEEDS[:1], 900)
    return [
        Experiment(method=method, training=Training(rate=rate, steps=steps), seeds=Seeds.all(seed))
        for method in METHODS
        for rate in RATES
        for seed in seeds
    ]


def accuracies(records: list[Record]) -> dict[str, dict[float, list[Record]]]:
    """Records by method and rate."""
    found: dict[str, dict[float, list[Record]]] = {}
    for name, group in by_method(records).items():
        for record in group:
            found.setdefault(name, {}).setdefault(record["experiment"]["training"]["rate"], []).append(record)
    return found


def _accuracy(group: list[Record]) -> float:
    return fmean(sum(r["evaluations"][ITSELF]["right"]) / sum(r["total"]) for r in group)


def best(records: list[Record]) -> dict[str, float]:
    """The rate with the best mean accuracy of each method; ties go to the smaller rate."""
    chosen = {}
    for name, rates in accuracies(records).items():
        scores = {rate: _accuracy(group) for rate, group in sorted(rates.items())}
        chosen[name] = max(scores, key=scores.__getitem__)
    return chosen


def _interval(group: list[Record]) -> Interval:
    return accuracy_interval([r["evaluations"][ITSELF]["right"] for r in group], [r["total"] for r in group])


def tables(records: list[Record]) -> list[Table]:
    """Accuracy of every method at every rate."""
    rows: list[dict[str, Value]] = []
    chosen = best(records)
    for name, rates in accuracies(records).items():
        for rate, group in sorted(rates.items()):
            interval, mark = _interval(group), "yes" if chosen[name] == rate else ""
            low, value, high = (100 * x for x in (interval.low, interval.value, interval.high))
            rows.append(
                {"method": LABELS[name], "rate": rate, "accuracy": value, "low": low, "high": high, "chosen": mark}
            )
    return [Table("Peak learning rate on tuning splits", COLUMNS, rows)]


def draw(records: list[Record], path: Path) -> None:
    """Accuracy against learning rate, with intervals; methods stand a little apart so that those can be told apart."""
    with figure(path, 5.5, 3.2) as (axes,):
        for place, (name, rates) in enumerate(accuracies(records).items()):
            apart = 1.03 ** (place - 1.5)
            found = [(rate * apart, _interval(group)) for rate, group in sorted(rates.items())]
            axes.plot(
                [x for x, _ in found], [100 * i.value for _, i in found], "o-", color=COLOURS[name], label=LABELS[name]
            )
            axes.vlines(
                [x for x, _ in found],
                [100 * i.low for _, i in found],
                [100 * i.high for _, i in found],
                color=COLOURS[name],
            )
        axes.set(xlabel="peak learning rate", ylabel="validation accuracy, % (95 %)", xscale="log")
        axes.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
        axes.xaxis.minorticks_off()
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


STUDY = Study(
    "mnns-rates", "Which learning rate suits each method of study mnns, given the same four to try?", grid, tables, draw
)
