"""Study `mnns-passk`: one deterministic CoT2 chain against many sampled discrete ones.

The pass@k comparison of Gozeten et al. 2025 (1 layer, 1 head, d = 24), at several temperatures, with majority votes,
and with the number of decoded steps beside each: k chains of four steps cost 4 k, CoT2 four. Learning rates are tuned
for this shape (study `mnns-tuning-small`). Of the temperatures tried the one that suits discrete CoT best is
picked on the reported problems themselves, which favours discrete CoT; where that is the highest, a higher one may suit
it better.
"""

from collections.abc import Iterator
from pathlib import Path

from tinylatent.evaluation.statistics import Interval, paired_difference
from tinylatent.lab.arms import arms
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import Finding
from tinylatent.lab.plots import figure, interval_column, legend_below, legend_mark, published_mark, shade
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.compare import (
    Records,
    Statistic,
    accuracy,
    better,
    grouped,
    method_of,
    percent,
    positive,
    require_same_splits,
    rights,
    sampled_accuracy,
    sampled_counts,
    sampling_of,
    scaled,
)
from tinylatent.lab.studies.comparison import comparison
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value

COMPARISON = "mnns-d24-l1"
"""In the paper's smallest shape; what is published there of discrete CoT is greedy."""
STATISTICS: tuple[Statistic, ...] = ("pass", "majority")
SEEDS: dict[Profile, range] = {"quick": range(1), "full": range(5)}
PUBLISHED_PASS = {"1": 30.28, "2": 49.11, "5": 75.45, "10": 88.98, "14": 93.11}
"""pass@k of discrete CoT at temperature 1 in percent, from the paper."""
COLUMNS = {
    "temperature": "s", "k": "s", "steps": "d", "pass@k": ".2f", "pass low": ".2f", "pass high": ".2f",
    "published": ".2f", "majority@k": ".2f", "majority low": ".2f", "majority high": ".2f",
}  # fmt: skip


def grid(profile: Profile) -> list[Experiment]:
    """Discrete chain of thought and CoT2 on every seed."""
    return [arms(COMPARISON)[name].recipe(seed) for name in ("discrete", "cot2") for seed in SEEDS[profile]]


def gap(cot2: Records, discrete: Records, statistic: Statistic, temperature: str, k: str) -> Interval:
    """CoT2's single shot minus pass@k or majority@k of discrete chain of thought, on the same splits."""
    require_same_splits(cot2, discrete)
    right, of = sampled_counts(discrete, statistic, temperature, k)
    ours = [scaled(right_K, by) for right_K, by in zip(rights(cot2), of, strict=True)]
    return paired_difference(ours, right, [scaled(record.total, by) for record, by in zip(cot2, of, strict=True)])


def settings(group: Records) -> tuple[list[str], list[str]]:
    """Temperatures and ks of the records, as their keys; all records have the same."""
    temperatures = sampling_of(group[0]).temperatures
    return list(temperatures), list(next(iter(temperatures.values())).pass_)


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """Both methods in one shot, and discrete chain of thought at every temperature and k."""
    group = grouped(records, method_of)["discrete"]
    temperatures, ks = settings(group)
    rows: list[dict[str, Value]] = []
    for temperature in temperatures:
        for k in ks:
            row: dict[str, Value] = {"temperature": temperature, "k": k, "steps": int(k) * group[0].cost.steps}
            for name in STATISTICS:
                found = sampled_accuracy(group, name, temperature, k)
                row |= percent(found, f"{name}@k", f"{name} low", f"{name} high")
            rows.append(row | {"published": PUBLISHED_PASS.get(k) if temperature == "1" else None})
    samples = sampling_of(group[0]).samples
    legend = (
        f"steps: decoded steps of k chains. pass@k: unbiased from {samples} samples; it needs somebody who knows which "
        f"chain is right. majority@k: over {samples} // k disjoint blocks of k samples. published: pass@k at "
        "temperature 1 of Gozeten et al. 2025. Below, each k stands at that of these temperatures which suits it best "
        "on these very problems. That favours discrete CoT; but where it is the highest tried, a higher one may suit "
        "it better."
    )
    sampled = Table("Discrete CoT, sampled", COLUMNS, rows, legend, [*_findings(records)])
    return [comparison(records, "MNNS with 1 layer, 1 head, d = 24: one shot", COMPARISON), sampled]


def _findings(records: Records) -> Iterator[Finding]:
    """CoT2 in one shot against as many decoded steps, and against k chains at the temperature that suits k best."""
    groups = grouped(records, method_of)
    discrete, cot2 = groups["discrete"], groups["cot2"]
    temperatures, ks = settings(discrete)
    steps = cot2[0].cost.steps
    yield better(f"at equal decoded steps ({steps}) CoT2", cot2, "greedy discrete CoT", discrete, "sampling")
    for name, fewest in zip(STATISTICS, (2, 3), strict=True):  # fewer are one sample again
        for k in [k for k in ks if int(k) >= fewest]:
            best = max(temperatures, key=lambda t: (sampled_accuracy(discrete, name, t, k).value, t))
            theirs = f"{int(k) * discrete[0].cost.steps} decoded steps, temperature {best}"
            claim = f"one shot of CoT2 ({steps} steps) is above {name}@{k} of discrete CoT ({theirs})"
            yield positive(claim, gap(cot2, discrete, name, best, k), len(cot2), "sampling")


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """Draws pass@k and majority@k against decoded steps, a line a temperature, CoT2's single shot beside."""
    from matplotlib.ticker import ScalarFormatter

    groups, known = grouped(records, method_of), arms(COMPARISON)
    discrete, single, cot2 = groups["discrete"], accuracy(groups["cot2"]), known["cot2"]
    temperatures, ks = settings(discrete)
    steps = discrete[0].cost.steps
    with figure(path, 8.5, 3.9, columns=2, sharey=True) as panels:
        for axes, name in zip(panels, STATISTICS, strict=True):
            for index, temperature in enumerate(temperatures):
                tint = shade(known["discrete"].colour, index, len(temperatures))
                found = [sampled_accuracy(discrete, name, temperature, k) for k in ks]
                x = [steps * int(k) * 1.03 ** (index - 1.5) for k in ks]
                axes.plot(x, [100 * interval.value for interval in found], color=tint, linewidth=1)
                for at, interval in zip(x, found, strict=True):
                    label = f"discrete CoT, temperature {temperature}" if at == x[0] else None
                    interval_column(axes, at, interval, tint, label=label)
            interval_column(axes, steps, single, cot2.colour, label="CoT2, one shot")
            axes.axhline(100 * single.value, color=cot2.colour, linewidth=1, linestyle=":")
            axes.set(xlabel="decoded steps", ylabel=f"{name}@k, %", ylim=(0, 102), xscale="log")
            axes.set_xticks([steps * int(k) for k in ks])
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.minorticks_off()
        x, y = [steps * int(k) for k in PUBLISHED_PASS], list(PUBLISHED_PASS.values())
        published_mark(panels[0], x, y, "published: discrete CoT, temperature 1", known["discrete"].colour)
        published_mark(panels[0], steps, cot2.published, "published: CoT2, one shot", cot2.colour)
        legend_mark(panels[0], "bar: 95 %", "|", hollow=False)
        legend_below(panels, 3)


STUDY = Study(
    "mnns-passk",
    "How many sampled discrete chains is one deterministic CoT2 chain worth?",
    grid,
    tables,
    draw,
)
