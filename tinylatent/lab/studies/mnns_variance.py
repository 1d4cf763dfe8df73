"""Study `mnns-variance`: how much of a method's spread over seeds is the split, the initial weights, the order?

From the run where all seeds are 0, one purpose at a time gets other seeds; the standard deviation of the accuracy over
them is that purpose's part. Beside it stands what all purposes do together, in the runs of study `mnns`.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from statistics import fmean, stdev

from tinylatent.core.seeds import Seeds
from tinylatent.evaluation.statistics import deviation_interval, deviation_ratio
from tinylatent.lab.arms import arms
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import Finding, decided
from tinylatent.lab.plots import figure
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.compare import Records, grouped, method_of
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value

VARIED = ("direct", "discrete", "cot2")
"""Arms of study `mnns` whose seeds are varied."""
PURPOSES = ("split", "init", "order")
SEEDS: dict[Profile, range] = {"quick": range(3), "full": range(6)}
COLUMNS = {
    "method": "s", "varied": "s", "seeds": "d", "accuracy": ".2f", "lowest": ".2f", "highest": ".2f", "sd": ".2f",
    "sd low": ".2f", "sd high": ".2f", "share": ".0f",
}  # fmt: skip
LEVEL = 1 - 0.05 / 3  # of the comparison of the extreme two of three purposes: any pair might have been it
LEGEND = (
    "varied: the purpose whose seed changes, all others being 0; together: all at once. accuracy: percent, mean over "
    "these runs, with the lowest and highest run. sd: standard deviation over the runs in points, with its 95 % "
    "interval for normal values (accuracies near 100 are not quite). share: percent of the sum of the three variances, "
    "no better known than they are: six runs each cannot rank the purposes, and what they do together need not be the "
    "sum. The split decides both what is trained on and which keys are asked; the run where "
    "all seeds are 0 belongs to every row."
)


def grid(profile: Profile) -> list[Experiment]:
    """Every method, with one purpose varied or all."""
    rows = (*PURPOSES, "together")
    return [
        replace(arms("mnns")[name].recipe(0), seeds=seeds)
        for name in VARIED
        for seeds in dict.fromkeys(seeds for varied in rows for seeds in _varied(varied, profile))
    ]


def _varied(varied: str, profile: Profile) -> list[Seeds]:
    """The seeds of one row of the table."""
    if varied == "together":
        return [Seeds.all(seed) for seed in SEEDS[profile]]
    return [replace(Seeds(), **{varied: seed}) for seed in SEEDS[profile]]


def accuracies(group: Records, varied: str) -> list[float]:
    """Accuracy in percent of the runs in which this purpose alone was varied, or all together."""
    found = []
    for record in group:
        seeds = asdict(record.experiment.seeds)
        together, others = len(set(seeds.values())) == 1, [seeds[name] for name in seeds if name != varied]
        if together if varied == "together" else not any(others):
            found.append(100 * record.accuracy)
    return found


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """A row a method and purpose."""
    rows: list[dict[str, Value]] = []
    known = arms("mnns")
    for name, group in grouped(records, method_of).items():
        whole = sum(stdev(accuracies(group, purpose)) ** 2 for purpose in PURPOSES)
        for varied in (*PURPOSES, "together"):
            values = accuracies(group, varied)
            sd = deviation_interval(values)
            row: dict[str, Value] = {"method": known[name].label, "varied": varied, "seeds": len(values)}
            row |= {"accuracy": fmean(values), "lowest": min(values), "highest": max(values)}
            row |= {"sd": sd.value, "sd low": sd.low, "sd high": sd.high}
            rows.append(row | {"share": 100 * sd.value**2 / whole if varied in PURPOSES and whole else None})
    title = "MNNS, m = 4: where the spread over seeds comes from"
    return [Table(title, COLUMNS, rows, LEGEND, [*_findings(records)])]


def _findings(records: Records) -> Iterator[Finding]:
    """Whether the purpose that moves a method most surely moves it more than the one that moves it least."""
    for name, group in grouped(records, method_of).items():
        label = arms("mnns")[name].label
        spread = {purpose: accuracies(group, purpose) for purpose in PURPOSES}
        ranked = sorted(PURPOSES, key=lambda purpose: -stdev(spread[purpose]))
        ratio = deviation_ratio(spread[ranked[0]], spread[ranked[-1]], LEVEL)
        yield Finding(
            f"the {ranked[0]} moves {label} more than the {ranked[-1]} does",
            decided(ratio.low > 1, ratio.high < 1, len(spread[ranked[0]])),
            f"ratio of deviations {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}], all three pairs allowed for",
            ratio if isfinite(ratio.value) else None,
            "ratio",
            "seeds",
            runs=len(spread[ranked[0]]),
        )


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """Draws every run as a dot: a panel a method, a column a purpose, with mean and one deviation to either side."""
    groups = grouped(records, method_of)
    rows = (*PURPOSES, "together")
    with figure(path, 2.7 * len(groups), 2.8, columns=len(groups)) as panels:
        for axes, (name, group) in zip(panels, groups.items(), strict=True):
            arm = arms("mnns")[name]
            for x, varied in enumerate(rows):
                values = accuracies(group, varied)
                axes.plot([x] * len(values), values, "o", color=arm.colour, alpha=0.5, markersize=5)
                mean, sd = fmean(values), stdev(values)
                axes.errorbar(x + 0.22, mean, sd, fmt="_", color=arm.colour, capsize=3, linewidth=2)
            axes.set_xticks(range(len(rows)), rows)
            axes.set(title=arm.label, xlim=(-0.5, len(rows) - 0.5))
        panels[0].set_ylabel("accuracy of each run, % (mean, one sd)")


STUDY = Study(
    "mnns-variance",
    "How much of the spread over seeds comes from the split, the initial weights and the order of the data?",
    grid,
    tables,
    draw,
)
