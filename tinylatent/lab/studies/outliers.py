"""Study `outliers`: what makes outlier features in training, what takes them away, and what they do under int8.

After He et al. 2024 (arXiv 2405.19279; text not at hand): a higher rate makes more of them, a larger epsilon fewer;
protected blocks, and optimizers that are not diagonal, make few at the same loss; and rounding to int8 hurts where
kurtosis is high. Here on compositions, where kurtosis reaches a third of its bound at high rates. Kurtosis differs
between seeds by factors, so that its logarithm is compared, seed by seed, and medians are told; it is that at the end
of training, whose rate does not fall. Arms stop at one share of right answers; pairs of runs count that both answer
LEARNT of the problems and are within ALIKE of each other, but for the arm that goes on. An outlier that is put in
without a change of the function shows whether kurtosis tells what rounding does.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.findings import Finding, decided
from tinylatent.lab.outlier_reading import FACTORS, WAYS, Injected, OutlierReading, OutlierRecord
from tinylatent.lab.plots import figure, legend_below
from tinylatent.lab.recipes_outliers import ARMS, arm_of, build
from tinylatent.lab.studies.compare import grouped, over_seeds, paired
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value

SEEDS: dict[Profile, range] = {"quick": range(3), "full": range(5, 10)}
QUICK, QUICK_STEPS = ("adamw", "fast"), 1500
PAIRS = (
    ("a rate of 1e-3 makes more than one of 3e-4", "adamw", "slow"),
    ("a rate of 3e-3 makes more than one of 1e-3", "fast", "adamw"),
    ("training that goes on makes more than training that stops, at 3e-3", "longer", "fast"),
    ("epsilon 1e-8 makes more than 1e-4", "adamw", "epsilon"),
    ("usual blocks make more than protected ones, at 1e-3", "adamw", "protected"),
    ("usual blocks make more than protected ones, at 3e-3", "fast", "protected-fast"),
    ("norms before make more than norms on additions", "adamw", "after"),
    ("AdamW makes more than SOAP, at 1e-3", "adamw", "soap"),
    ("AdamW makes more than SOAP, at 3e-3", "fast", "soap-fast"),
    ("AdamW at 3e-3 makes more than Shampoo at 0.1", "fast", "shampoo"),
)
"""Claims about outlier features, with the arm that should have more of them."""
UNMATCHED = "longer"
"""Is trained beyond what the others stop at."""
LEARNT, ALIKE = 0.9, 0.03
"""Share of right answers of a run that counts, and how far apart two matched runs may be."""
FAMILY, UNDER = "outlier features", "int8"
SMALL, MIDDLE, LAST = FACTORS[0], FACTORS[2], FACTORS[-1]
"""Sizes of an outlier; between the last two kurtosis has saturated."""
TURNED = ("adamw", "fast", UNMATCHED, "shampoo")
"""Arms whose rounding in a random basis is told: all are in the table, these have outliers, or are compared with."""
Groups = dict[str, list[OutlierRecord]]
Rows = list[dict[str, Value]]


def grid(profile: Profile) -> list[OutlierReading]:
    """A reading of every arm on every seed; three of them, briefly trained, in the quick profile."""
    arms = ARMS if profile == "full" else QUICK
    return [reading(arm, seed, profile) for arm in arms for seed in SEEDS[profile]]


def reading(arm: str, seed: int, profile: Profile = "full") -> OutlierReading:
    """What an arm's run is asked."""
    run = build(arm, seed)
    if profile == "quick":
        run = replace(run, training=replace(run.training, steps=QUICK_STEPS))
    return OutlierReading(run)


def damage(record: OutlierRecord) -> float:
    """How far answers move when everything is rounded: KL(full precision || rounded) in nats.

    The loss of the right answer moves either way by luck where few answers change.
    """
    return record.answers["tensor"].moved


def accuracy(record: OutlierRecord) -> float:
    """Share of right answers in full precision."""
    return record.answers["float"].right / record.total


def largest(record: OutlierRecord, name: str = "kurtosis") -> float:
    """The largest over layers of the residual stream."""
    return max(record.stream[name])


def tables(records: list[OutlierRecord]) -> list[Table]:
    """Arms with their findings, layers, what is read, rounding, outliers that were put in."""
    groups = grouped(records, lambda record: arm_of(record.reading.start))
    return [_arms(groups), _layers(groups), _rounded(groups), _injected(groups)]


# ---------------------------------------------------------------------------------------------------------------------
# Findings


def _makes(groups: Groups) -> Iterator[Finding]:
    """Which arm has more outlier features, by the ratio of kurtosis over the seeds where both count."""
    for claim, more, fewer in PAIRS:
        if more not in groups or fewer not in groups:
            continue
        logs = []
        for mine, other in zip(*paired(groups[more], groups[fewer]), strict=True):
            apart = round(abs(accuracy(mine) - accuracy(other)), 6)  # shares of a thousand: no rounding decides
            alike = more == UNMATCHED or apart <= ALIKE
            if alike and min(accuracy(mine), accuracy(other)) >= LEARNT:
                logs.append(math.log(largest(mine) / largest(other)))
        yield _times(claim, logs, 1.0, FAMILY, "times the kurtosis")


def _hurts(groups: Groups) -> Iterator[Finding]:
    """Whether kurtosis tells what rounding does: between arms, and where an outlier is put in."""
    measures: dict[str, Callable[[OutlierRecord], float]] = {
        "kurtosis of the residual stream": largest,
        "kurtosis of what linear maps read": read_kurtosis,
        "max-median ratio of the residual stream": lambda each: largest(each, "max-median"),
        "max-median ratio of what linear maps read": lambda each: max(
            r for _, r in each.read.values() if r is not None
        ),
        "loss in full precision": lambda each: each.answers["float"].loss,
    }
    stopped = {arm: group for arm, group in groups.items() if arm != UNMATCHED}
    for name, value in measures.items():
        known = _correlations(stopped, value)
        ranks = over_seeds(known)
        claim = f"of arms that stop, those with a larger {name} answer more differently when all is rounded to int8"
        told = f"rank correlation over these arms {ranks.value:+.2f} [{ranks.low:+.2f}, {ranks.high:+.2f}]"
        verdict = decided(ranks.low > 0, ranks.high < 0, len(known))
        estimate = ranks if known else None
        yield Finding(claim, verdict, told, estimate, "rank correlation", UNDER, runs=len(known))
    first = next(iter(groups))
    grow: dict[str, Callable[[Injected], float]] = {
        "kurtosis of what is read": lambda each: each.kurtosis,
        "KL of answers when all is rounded to int8": lambda each: each.answers["tensor"].moved,
    }
    for name, at in grow.items():
        for low, high in ((SMALL, MIDDLE), (MIDDLE, LAST)):
            claim = f"{ARMS[first].label}: from an outlier of {low:g} times to one of {high:g} times the {name} doubles"
            yield _times(claim, [math.log(at(_put(each, high)) / at(_put(each, low))) for each in groups[first]], 2.0)
    for arm in TURNED:
        turned = [each for each in groups.get(arm, ()) if accuracy(each) >= LEARNT]
        if not turned:
            continue
        less = [math.log(largest(each) / max(each.rotated_kurtosis)) for each in turned]
        yield _times(f"{ARMS[arm].label}: a random basis of the residual stream has less kurtosis", less, 1.0)
        for way, told in (("tensor", "everything"), ("weights", "weights alone")):
            logs = [math.log(each.folded[way].moved / each.rotated[way].moved) for each in turned]
            claim = (
                f"{ARMS[arm].label}: rounding {told} to int8 moves answers more in the usual basis than in a random one"
            )
            yield _times(claim, logs, 1.0)


def read_kurtosis(record: OutlierRecord) -> float:
    """The largest kurtosis of what a linear map reads, but for hidden units: four times as wide, and sparse by ReLU."""
    return max(kurtosis for name, (kurtosis, _) in record.read.items() if not name.endswith("down_proj"))


def _correlations(groups: Groups, value: Callable[[OutlierRecord], float]) -> list[float]:
    """Spearman's rank correlation of a number with the damage, over arms that have learnt, seed by seed."""
    from scipy import stats  # half a second that most commands do not need

    found = []
    for every in zip(*(paired(group, group)[0] for group in groups.values()), strict=False):
        same = [each for each in every if accuracy(each) >= LEARNT]
        numbers, lost = [value(each) for each in same], [damage(each) for each in same]
        if len(same) > 2 and len({*numbers}) > 1 and len({*lost}) > 1:
            found.append(float(stats.spearmanr(numbers, lost).statistic))
    return found


def _put(record: OutlierRecord, factor: float) -> Injected:
    """The run with an outlier of this size."""
    return next(each for each in record.injected if each.factor == factor)


def _times(claim: str, logs: Sequence[float], least: float, family: str = UNDER, unit: str = "times") -> Finding:
    """Whether a ratio is above `least`, from its logarithm in each run: the geometric mean with its interval."""
    gap = over_seeds(logs)
    low, ratio, high = (math.exp(x) for x in (gap.low, gap.value, gap.high))
    told = f"{ratio:.2f} {unit} [{low:.2f}, {high:.2f}]"
    estimate = Interval(ratio, low, high, gap.kind) if logs else None
    return Finding(claim, decided(low > least, high < least, len(logs)), told, estimate, unit, family, runs=len(logs))


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _arms(groups: Groups) -> Table:
    """Accuracy and outlier features by arm, with the findings."""
    rows: Rows = []
    for arm, group in groups.items():
        kurtosis = [largest(each) for each in group]
        rows.append(
            {
                "arm": ARMS[arm].label,
                "steps": fmean(each.steps for each in group),
                "right": 100 * fmean(map(accuracy, group)),
                "from": 100 * min(map(accuracy, group)),
                "to": 100 * max(map(accuracy, group)),
                "learnt": sum(accuracy(each) >= LEARNT for each in group),
                "loss": fmean(each.answers["float"].loss for each in group),
                "kurtosis": median(kurtosis),
                "least": min(kurtosis),
                "most": max(kurtosis),
                "max-median": median(largest(each, "max-median") for each in group),
                "read": median(map(read_kurtosis, group)),
                "turned": median(max(each.rotated_kurtosis) for each in group) if group[0].rotated_kurtosis else None,
                "seeds": len(group),
            }
        )
    columns = {
        "arm": "s", "steps": ".0f", "right": ".1f", "from": ".1f", "to": ".1f", "learnt": "d", "loss": ".3f",
        "kurtosis": ".2f", "least": ".2f", "most": ".2f", "turned": ".2f", "max-median": ".1f", "read": ".2f",
        "seeds": "d",
    }  # fmt: skip
    legend = (
        "right: percent of problems, trained on or not, mean over seeds; from, to: of single runs; learnt: runs with "
        "90 % and more, which count; loss: in nats. steps: batches until 90 % of 512 problems never trained on were "
        "right, or all there were. kurtosis, max-median: the largest over layers of the residual stream, first tokens "
        "left out, median over seeds with the least and most of a seed; at most 64. turned: kurtosis in a random "
        "basis. read: the largest kurtosis of what a linear map reads, hidden units of MLPs left out."
    )
    return Table("What makes outlier features", columns, rows, legend, [*_makes(groups), *_hurts(groups)])


def _layers(groups: Groups) -> Table:
    """Kurtosis by layer, and what it is made of."""
    rows: Rows = []
    for arm, group in groups.items():
        for layer in range(len(group[0].stream["kurtosis"])):
            row: dict[str, Value] = {"arm": ARMS[arm].label, "layer": layer}
            for name in ("kurtosis", "max-median", "input correlation", "norms", "inputs", "neurons"):
                row[name] = median(each.stream[name][layer] for each in group)
            rows.append(row)
    columns = {
        "arm": "s", "layer": "d", "kurtosis": ".2f", "max-median": ".1f", "input correlation": ".3f", "norms": ".3f",
        "inputs": ".3f", "neurons": ".3f",
    }  # fmt: skip
    legend = (
        "of the residual stream before each layer and after the last; medians over seeds. norms + inputs - neurons is "
        "the kurtosis of a sample: the share of tokens' own norms, of their likeness, less that of correlated neurons."
    )
    return Table("Layers", columns, rows, legend)


def _rounded(groups: Groups) -> Table:
    """What rounding does, in the usual basis and in a random one."""
    rows: Rows = []
    for arm, group in groups.items():
        for way in WAYS:
            row: dict[str, Value] = {"arm": ARMS[arm].label, "rounded": way}
            row["right"] = 100 * fmean(each.answers[way].right / each.total for each in group)
            row["loss"] = fmean(each.answers[way].loss for each in group)
            row["moved"] = fmean(each.answers[way].moved for each in group)
            row["most moved"] = max(each.answers[way].moved for each in group)
            turned = [each for each in group if each.rotated]
            row |= dict.fromkeys(("right, turned", "moved, folded", "moved, turned"))
            if turned:
                row["right, turned"] = 100 * fmean(each.rotated[way].right / each.total for each in turned)
                row["moved, folded"] = fmean(each.folded[way].moved for each in turned)
                row["moved, turned"] = fmean(each.rotated[way].moved for each in turned)
            rows.append(row)
    columns = {
        "arm": "s", "rounded": "s", "right": ".2f", "loss": ".4f", "moved": ".5f", "most moved": ".5f",
        "right, turned": ".2f", "moved, folded": ".5f", "moved, turned": ".5f",
    }  # fmt: skip
    legend = (
        "int8, symmetric: tensor and token say over what the largest entry is taken of what linear maps read, weights "
        "being rounded too; weights: these alone. loss: of the right answer; moved: KL(full precision || rounded) of "
        "answers, both in nats; most moved: of a single run. folded: weights of norms within the matrices after them, "
        "the same function; turned: the residual stream in a random basis as well. Means over seeds."
    )
    return Table("Rounding to int8", columns, rows, legend)


def _injected(groups: Groups) -> Table:
    """Outliers that were put in without a change of the function."""
    rows: Rows = []
    for arm, group in groups.items():
        for place, first in enumerate(group[0].injected):
            put = [each.injected[place] for each in group]
            row: dict[str, Value] = {"arm": ARMS[arm].label, "times": first.factor}
            row |= {"kurtosis": median(each.kurtosis for each in put)}
            row |= {"max-median": median(each.max_median for each in put)}
            for way in WAYS:
                row[way] = 100 * fmean(
                    each.answers[way].right / whole.total for each, whole in zip(put, group, strict=True)
                )
            row["loss"] = fmean(each.answers["tensor"].loss for each in put)
            row["moved"] = fmean(each.answers["tensor"].moved for each in put)
            rows.append(row)
    columns = {"arm": "s", "times": ".0f", "kurtosis": ".2f", "max-median": ".1f", **dict.fromkeys(WAYS, ".1f")}
    columns |= {"loss": ".3f", "moved": ".5f"}
    legend = (
        "one neuron of what the second layer's MLP reads is multiplied, and its weights divided, so that the function "
        "stays: float. kurtosis, max-median: of what that MLP reads, medians over seeds. tensor, token, weights: "
        "percent right under int8; loss, and moved, KL(full precision || rounded): in nats under tensor."
    )
    return Table("Outliers put in", columns, rows, legend)


# ---------------------------------------------------------------------------------------------------------------------
# The figure


def draw(records: list[OutlierRecord], path: Path) -> None:
    """Kurtosis of every run by arm, damage beside kurtosis, and an outlier that is put in."""
    groups = grouped(records, lambda record: arm_of(record.reading.start))
    width = records[0].reading.start.model.width
    with figure(path, 13, 4.2, columns=3) as (made, hurt, put):
        for place, (arm, group) in enumerate(groups.items()):
            colour, label = ARMS[arm].colour, ARMS[arm].label
            for learnt in (True, False):
                here = [each for each in group if (accuracy(each) >= LEARNT) == learnt]
                look: dict[str, Any] = {"ms": 4, "color": colour, "mfc": colour if learnt else "none"}
                made.plot([largest(each) for each in here], [-place] * len(here), "o", **look)
                if learnt:
                    kurtosis, moved = [largest(each) for each in here], [damage(each) for each in here]
                    hurt.plot(kurtosis, moved, "o", label=label, **look)
        made.set_yticks([-place for place in range(len(groups))], [ARMS[arm].label for arm in groups], fontsize=7)
        made.set(xscale="log", xlabel="largest kurtosis of the residual stream, every seed; hollow: not learnt")
        hurt.set(xscale="log", yscale="log", xlabel="largest kurtosis", ylabel="KL(full || int8), nats")
        for axis in (made.xaxis, hurt.xaxis, hurt.yaxis):
            axis.set_minor_formatter("")
        for axes in (made, hurt):
            axes.set_xticks(ticks := [1, 2, 5, 10, 20, 50], map(str, ticks))
            axes.set_xlim(1, width)
        arm, group = next(iter(groups.items()))
        factors = [each.factor for each in group[0].injected]
        for name, colour in (("tensor", "#b5403a"), ("token", "#c08a3e"), ("weights", "#4f8f5b")):
            right = [
                fmean(each.injected[place].answers[name].right / each.total for each in group)
                for place in range(len(factors))
            ]
            put.plot(factors, right, "o-", ms=4, color=colour, label=f"right, int8: {name}")
        share = [fmean(each.injected[place].kurtosis for each in group) / width for place in range(len(factors))]
        put.plot(factors, share, "s--", ms=4, color="black", label="kurtosis / its bound")
        put.set(xscale="log", xlabel=f"times an outlier was put in ({ARMS[arm].label})", ylabel="share", ylim=(0, 1.05))
        legend_below([hurt, put], 5)


STUDY = Study(
    "outliers",
    "What makes outlier features in training, what takes them away, and what do they do under int8?",
    grid,
    tables,
    draw,
    kind=OutlierReading,
)
