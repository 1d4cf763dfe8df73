"""Study `depth`: how does a model trained from scratch use its layers on problems of one to four hops?

After Csordás et al. 2025 (arXiv 2505.13898), whose small models trained on answers alone did use more layers for later
steps, judged by eye on four examples, while large language models did not. Here: compositions of fixed permutations,
five seeds, intervals over them. A token's last use is the last layer before which its residual, replaced by the mean
one, still changes the answer by more than USED; a staircase is a last use that rises from function to function. Depth
scores are of effects on the future, problem by problem, since a maximum over all saturates. Claims are about answers
alone against all tokens; other arms change one thing each.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.depth_reading import UNTRAINED, DepthReading, DepthRecord
from tinylatent.lab.findings import Finding, decided
from tinylatent.lab.plots import figure, legend_below
from tinylatent.lab.recipes_depth import ALL, ANSWER, ARMS, LAYERS, SHALLOW, TASK, arm_of, build
from tinylatent.lab.studies.compare import grouped, over_seeds, paired
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value

if TYPE_CHECKING:
    import matplotlib.axes  # which commands that draw nothing do not load

SEEDS: dict[Profile, range] = {"quick": range(3), "full": range(5, 10)}
QUICK, QUICK_STEPS, QUICK_PROBLEMS = (ANSWER, ALL), 700, 24
USED = 0.1
"""Distance of probabilities, of at most the root of two, that counts as a use."""
KNOWS = 1.0
"""Nats of KL(lens || final) below which the lens has the answer."""
FAMILY = "use of depth"
Groups = dict[str, list[DepthRecord]]
Rows = list[dict[str, Value]]


def grid(profile: Profile) -> list[DepthReading]:
    """A reading of every arm on every seed; two of them, briefly trained, in the quick profile."""
    arms = ARMS if profile == "full" else QUICK
    return [reading(arm, seed, profile) for arm in arms for seed in SEEDS[profile]]


def reading(arm: str, seed: int, profile: Profile = "full") -> DepthReading:
    """What an arm's run is asked. The first and the shallow arm predict the first arm's stream on the next seed."""
    run = build(arm, seed)
    if profile == "quick":
        run = replace(run, training=replace(run.training, steps=QUICK_STEPS))
        return DepthReading(run, QUICK_PROBLEMS)
    seeds = SEEDS[profile]
    after = seeds[(seed - seeds.start + 1) % len(seeds)]
    return DepthReading(run, target=build(ANSWER, after) if arm in (ANSWER, SHALLOW) else None)


def last_use(record: DepthRecord, hops: int) -> list[int]:
    """The last layer before which each token after the first is used, by token; -1 for one that is not."""
    erased = record.levels[str(hops)].erased
    return [
        max((layer for layer, row in enumerate(erased) if row[token] > USED), default=-1)
        for token in range(len(erased[0]))
    ]


def climb(record: DepthRecord) -> float:
    """How much later the last function is used than the first, in layers, in problems of most hops."""
    uses = last_use(record, TASK.hops)
    return float(uses[TASK.hops] - uses[1])


def slope(record: DepthRecord, score: str) -> float:
    """Least-squares slope of a depth score with the number of hops, in layers a hop."""
    points = [(int(hops), level.scores[score]) for hops, level in record.levels.items()]
    centre = fmean(hops for hops, _ in points)
    return sum((hops - centre) * value for hops, value in points) / sum((hops - centre) ** 2 for hops, _ in points)


def late(record: DepthRecord, name: str) -> float:
    """Mean of a measure over the later half of the layers."""
    values = {**record.sizes, "future": record.output["future"]}[name]
    return fmean(values[len(record.output["all"]) // 2 :])


def tables(records: list[DepthRecord]) -> list[Table]:
    """Findings and accuracy; last uses, depth scores, layers, the lens, maps, outliers."""
    groups = grouped(records, lambda record: arm_of(record.reading.start))
    return [_learnt(groups), _uses(groups), _scores(groups), _layers(groups), _maps(groups), _outliers(groups)]


# ---------------------------------------------------------------------------------------------------------------------
# Findings


def _findings(groups: Groups) -> Iterator[Finding]:
    answer, every = groups[ANSWER], groups[ALL]
    yield _above("answers alone: the last function is used later in depth than the first", answer, climb, "layers")
    for score in ("contributions, mean", "output, mean"):
        told = f"the depth score ({score}) grows with the number of hops"
        yield _above(f"answers alone: {told}", answer, partial(slope, score=score), "layers a hop")
        yield _above(f"all tokens: {told}", every, partial(slope, score=score), "layers a hop")
        yield _more(
            f"the depth score ({score}) grows more with hops after answers alone than after all tokens",
            answer, every, partial(slope, score=score), "layers a hop",
        )  # fmt: skip
    yield _more(
        "the last function is later than the first by more layers after answers alone than after all tokens",
        answer, every, climb, "layers",
    )  # fmt: skip
    yield _more(
        "after all tokens the later half of layers strengthens what is there more than after answers alone",
        every, answer, partial(late, name="cosine_layer"), "cosine",
    )  # fmt: skip
    yield _more(
        "after answers alone the later half of layers changes later predictions more than after all tokens",
        answer, every, partial(late, name="future"), "distance",
    )  # fmt: skip
    for arm in ("tied", "looped", "post", "after", "decay-0", "decay-30"):
        if arm in groups:
            yield _more(
                f"{ARMS[arm].label}: the depth score (contributions, mean) grows more with hops than in the first arm",
                groups[arm], answer, partial(slope, score="contributions, mean"), "layers a hop",
            )  # fmt: skip


def _above(claim: str, group: Sequence[DepthRecord], value: Callable[[DepthRecord], float], unit: str) -> Finding:
    return _found(claim, over_seeds([value(each) for each in group]), len(group), unit)


def _more(
    claim: str,
    ours: Sequence[DepthRecord],
    theirs: Sequence[DepthRecord],
    value: Callable[[DepthRecord], float],
    unit: str,
) -> Finding:
    """Whether a value is larger in one arm than in another, on the same seeds."""
    pairs = zip(*paired(ours, theirs), strict=True)
    gaps = [value(mine) - value(other) for mine, other in pairs]
    return _found(claim, over_seeds(gaps), len(gaps), unit)


def _found(claim: str, gap: Interval, runs: int, unit: str) -> Finding:
    verdict = decided(gap.low > 0, gap.high < 0, runs)
    evidence = f"{gap.value:+.2f} {unit} [{gap.low:+.2f}, {gap.high:+.2f}]"
    return Finding(claim, verdict, evidence, gap, unit, FAMILY, runs=runs)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _learnt(groups: Groups) -> Table:
    """Accuracy by arm and number of hops, with the findings."""
    rows: Rows = []
    for arm, group in groups.items():
        row: dict[str, Value] = {"arm": ARMS[arm].label}
        for hops in _hops(group):
            levels = [each.levels[str(hops)] for each in group]
            row[f"{hops} hops"] = 100 * fmean(level.right / level.total for level in levels)
        worst = min(100 * each.accuracy for each in group)
        rows.append({**row, "least": worst, "seeds": len(group)})
    columns = {"arm": "s", **{f"{hops} hops": ".1f" for hops in _hops(groups[ANSWER])}, "least": ".1f", "seeds": "d"}
    legend = (
        "percent right of validation problems, mean over seeds; least: all hops, of the worst run. An arm that does "
        "not learn says nothing about depth."
    )
    return Table("What was learnt", columns, rows, legend, [*_findings(groups)])


def _hops(group: Sequence[DepthRecord]) -> list[int]:
    return sorted(map(int, group[0].levels))


def _uses(groups: Groups) -> Table:
    """The last use of every token of the longest problems."""
    names = ["start", *(f"f{hop}" for hop in range(1, TASK.hops + 1)), "="]
    rows: Rows = []
    for arm, group in groups.items():
        uses = [last_use(each, TASK.hops) for each in group]
        by_token = {name: over_seeds([float(each[place]) for each in uses]) for place, name in enumerate(names)}
        rows.append({"arm": ARMS[arm].label, **{name: each.value for name, each in by_token.items()}})
        rows[-1] |= {"climb low": (gap := over_seeds([climb(each) for each in group])).low, "climb": gap.value}
        rows[-1] |= {"climb high": gap.high}
    columns = {"arm": "s", **dict.fromkeys(names, ".1f"), "climb": "+.2f", "climb low": "+.2f", "climb high": "+.2f"}
    legend = (
        f"in problems of {TASK.hops} hops: the last layer before which a token's residual, if erased, changes the "
        f"answer's probabilities by more than {USED:g}; -1 for none; layers from 0, {LAYERS} is after the last of six. "
        "climb: of the last function over the first, with its 95 % interval over seeds."
    )
    return Table("Last uses of tokens", columns, rows, legend)


def _scores(groups: Groups) -> Table:
    """Depth scores by number of hops."""
    rows: Rows = []
    for arm, group in groups.items():
        for score in group[0].levels[str(TASK.least)].scores:
            row: dict[str, Value] = {"arm": ARMS[arm].label, "score": score}
            for hops in _hops(group):
                row[f"{hops} hops"] = fmean(each.levels[str(hops)].scores[score] for each in group)
            gap = over_seeds([slope(each, score) for each in group])
            rows.append({**row, "slope": gap.value, "slope low": gap.low, "slope high": gap.high})
    columns = {"arm": "s", "score": "s", **{f"{hops} hops": ".2f" for hops in _hops(groups[ANSWER])}}
    columns |= {"slope": "+.3f", "slope low": "+.3f", "slope high": "+.3f"}
    legend = (
        "the mean layer, counted from 0, weighted by its effect on later tokens: on contributions of later layers or "
        "on the output, problem by problem as the mean, the 0.9 quantile or the maximum over tokens. slope: layers a "
        "hop, with its 95 % interval over seeds. A score that saturates is half way, (layers - 1) / 2."
    )
    return Table("Depth scores", columns, rows, legend)


def _layers(groups: Groups) -> Table:
    """What every layer adds and what it changes, medians over seeds."""
    rows: Rows = []
    for arm, group in groups.items():
        for layer in range(len(group[0].output["all"])):
            row: dict[str, Value] = {"arm": ARMS[arm].label, "layer": layer}
            for name in ("residual", "relative_layer", "cosine_layer"):
                row[name.replace("_", " ")] = median(each.sizes[name][layer] for each in group)
            for name in ("all", "future", "direct"):
                row[f"output, {name}"] = median(each.output[name][layer] for each in group)
            for hops in (TASK.least, TASK.hops):
                row[f"lens, {hops}"] = median(each.levels[str(hops)].lens["to_final"][layer] for each in group)
            rows.append(row)
    columns = {
        "arm": "s", "layer": "d", "residual": ".1f", "relative layer": ".2f", "cosine layer": "+.2f",
        "output, all": ".3f", "output, future": ".3f", "output, direct": ".3f",
        **{f"lens, {hops}": ".2f" for hops in (TASK.least, TASK.hops)},
    }  # fmt: skip
    legend = (
        "residual: norm of what enters the layer; relative layer, cosine layer: of what it adds, to that. output: "
        "distance of probabilities if the layer is skipped at all tokens, before a split, or taken from the readout's "
        "input alone. lens, k: KL(lens || final) in nats before the layer where the answer to k hops is predicted. "
        "Medians over seeds."
    )
    return Table("Layers", columns, rows, legend)


def _maps(groups: Groups) -> Table:
    """How well one model's stream predicts another's."""
    rows: Rows = []
    for arm, group in groups.items():
        for name in (UNTRAINED, "other"):
            maps = [each.maps[name] for each in group if name in each.maps]
            for layer in range(len(maps[0].r2[0]) if maps else 0):
                columns_of = [[row[layer] for row in each.r2] for each in maps]
                best = [column.index(max(column)) for column in columns_of]
                rows.append(
                    {
                        "from": ARMS[arm].label,
                        "to": "a model never trained" if name == UNTRAINED else "answers alone, another seed",
                        "layer": layer,
                        "best source": fmean(best),
                        "r2": fmean(map(max, columns_of)),
                        "relative error": fmean(min(row[layer] for row in each.relative_error) for each in maps),
                    }
                )
    columns = {"from": "s", "to": "s", "layer": "d", "best source": ".1f", "r2": ".3f", "relative error": ".3f"}
    legend = (
        "ridge maps with an offset, fitted to 80 % of the tokens of validation problems and asked for the others; by "
        "layer of the second model, the layer of the first that predicts it best, and how well. Means over seeds."
    )
    return Table("Maps", columns, rows, legend)


def _outliers(groups: Groups) -> Table:
    """Kurtosis of the residual stream, median and range over seeds."""
    rows: Rows = []
    for arm, group in groups.items():
        for layer in range(len(group[0].outliers["kurtosis"])):
            values = [each.outliers["kurtosis"][layer] for each in group]
            row: dict[str, Value] = {"arm": ARMS[arm].label, "layer": layer, "kurtosis": median(values)}
            row |= {"least": min(values), "most": max(values)}
            for name in ("max-median", "input correlation"):
                row[name] = median(each.outliers[name][layer] for each in group)
            rows.append(row)
    columns = {
        "arm": "s", "layer": "d", "kurtosis": ".2f", "least": ".2f", "most": ".2f", "max-median": ".1f",
        "input correlation": ".3f",
    }  # fmt: skip
    legend = "of the residual stream before each layer and after the last, first tokens left out; medians over seeds."
    return Table("Outlier features", columns, rows, legend)


# ---------------------------------------------------------------------------------------------------------------------
# The figure


def draw(records: list[DepthRecord], path: Path) -> None:
    """The staircase of both losses, and depth scores by the number of hops."""
    groups = grouped(records, lambda record: arm_of(record.reading.start))
    with figure(path, 13, 3.6, columns=4) as panels:
        for axes, arm in zip(panels[:2], (ANSWER, ALL), strict=True):
            _staircase(axes, groups[arm], ARMS[arm].label)
        for axes, score in zip(panels[2:], ("contributions, mean", "output, mean"), strict=True):
            for arm, group in groups.items():
                hops = _hops(group)
                means = [over_seeds([each.levels[str(k)].scores[score] for each in group]) for k in hops]
                axes.fill_between(
                    hops, [each.low for each in means], [each.high for each in means],
                    color=ARMS[arm].colour, alpha=0.15, linewidth=0,
                )  # fmt: skip
                axes.plot(
                    hops, [each.value for each in means], "o-", ms=3, color=ARMS[arm].colour, label=ARMS[arm].label
                )
            axes.set(title=f"depth score: {score}", xlabel="hops", xticks=hops)
        legend_below(panels[2:], 5)


def _staircase(axes: "matplotlib.axes.Axes", group: Sequence[DepthRecord], title: str) -> None:
    """Effects of erased residuals, mean over seeds."""
    import numpy as np

    grids = np.array([each.levels[str(TASK.hops)].erased for each in group])
    axes.imshow(grids.mean(0), origin="lower", aspect="auto", cmap="magma", vmin=0, vmax=2**0.5)
    names = ["s", *(f"f{hop}" for hop in range(1, TASK.hops + 1)), "="]
    axes.set_xticks(range(grids.shape[2]), names)
    axes.set(title=f"{title}: erased before layer", ylabel="layer")
    axes.grid(visible=False)


STUDY = Study(
    "depth",
    "How does a model trained from scratch use its layers on problems of one to four hops?",
    grid,
    tables,
    draw,
    kind=DepthReading,
)
