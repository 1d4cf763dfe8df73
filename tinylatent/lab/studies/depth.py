"""Study `depth`: how does a model trained from scratch use its layers on problems of one to four hops?

After Csordás et al. 2025 (arXiv 2505.13898), whose small models trained on answers alone did use more layers for later
steps, judged by eye on four examples, while large language models did not. Here: compositions of fixed permutations,
five seeds, intervals over them. A token's last use is the last layer before which its residual, replaced by the mean
one, still changes the answer by more than USED; a staircase is a last use that rises from every function to the next.
Depth scores are of effects on the future where the answer is predicted. Claims are about answers alone against all
tokens; other arms change one thing each. Only runs that have learnt count (`by_hops`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from tinylatent.lab.depth_reading import FLOOR, OTHER, DepthReading, DepthRecord
from tinylatent.lab.findings import Finding
from tinylatent.lab.plots import figure, legend_below
from tinylatent.lab.recipes_depth import ALL, ANSWER, ARMS, EARLY, LAYERS, SHALLOW, TASK, arm_of, build
from tinylatent.lab.studies.by_hops import LEARNT, USED, above, has_learnt, learnt, mean, more, slope
from tinylatent.lab.studies.compare import grouped, over_seeds
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value

if TYPE_CHECKING:
    import matplotlib.axes  # which commands that draw nothing do not load

SEEDS: dict[Profile, range] = {"quick": range(3), "full": range(5, 10)}
QUICK, QUICK_STEPS, QUICK_PROBLEMS = (ANSWER, EARLY, ALL), 700, 24
KNOWS = 1.0
"""Nats of KL(lens || final) below which the lens has the answer."""
FAMILY = "use of depth"
MAPS = {OTHER: "answers alone, another seed", FLOOR: "the same, from a model never trained"}
"""Where maps of a run lead to, in words."""
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


def climb(record: DepthRecord) -> float | None:
    """How much later the last function is used than the first, in layers, in problems of most hops."""
    uses = last_use(record, TASK.hops)[1 : TASK.hops + 1]
    return None if min(uses) < 0 else float(uses[-1] - uses[0])


def step(record: DepthRecord) -> float | None:
    """The least rise of the last use from a function to the next, in layers, in problems of most hops."""
    uses = last_use(record, TASK.hops)[1 : TASK.hops + 1]
    return None if min(uses) < 0 else float(min(after - before for before, after in pairwise(uses)))


def late(record: DepthRecord, name: str) -> float | None:
    """Mean of a measure over the later half of the layers."""
    values = {**record.sizes, "future": record.output["future"]}[name]
    return fmean(values[len(record.output["all"]) // 2 :])


def tables(records: list[DepthRecord]) -> list[Table]:
    """Findings and accuracy; last uses, depth scores, layers, the lens, maps, outliers."""
    groups = grouped(records, lambda record: arm_of(record.reading.start))
    told = learnt(groups)
    mapped = [_maps(told)] if any(each.maps for group in told.values() for each in group) else []
    return [_learnt(groups), _uses(told), _scores(told), _layers(told), *mapped, _outliers(told)]


# ---------------------------------------------------------------------------------------------------------------------
# Findings


def _findings(groups: Groups) -> Iterator[Finding]:
    answer, early, every = groups[ANSWER], groups[EARLY], groups[ALL]
    yield above("answers alone: the last function is used later in depth than the first", answer, climb, "layers")
    yield above("answers alone: every function is used later than the one before (a staircase)", answer, step, "layers")
    yield above("all tokens: every function is used later than the one before (a staircase)", every, step, "layers")
    for score in ("contributions, mean", "output, mean"):
        told = f"the depth score ({score}) grows with the number of hops"
        yield above(f"answers alone: {told}", answer, partial(slope, score=score), "layers a hop")
        yield above(f"all tokens: {told}", every, partial(slope, score=score), "layers a hop")
        yield more(
            f"the depth score ({score}) grows more with hops after answers alone than after all tokens",
            early, every, partial(slope, score=score), "layers a hop",
        )  # fmt: skip
    yield more(
        "the last function is later than the first by more layers after answers alone than after all tokens",
        early, every, climb, "layers",
    )  # fmt: skip
    yield more(
        "after all tokens the later half of layers strengthens what is there more than after answers alone",
        every, early, partial(late, name="cosine_layer"), "cosine",
    )  # fmt: skip
    yield more(
        "after answers alone the later half of layers changes later predictions more than after all tokens",
        early, every, partial(late, name="future"), "distance",
    )  # fmt: skip
    for arm in ("tied", "post", "after", "decay-30"):
        if arm in groups:
            yield more(
                f"{ARMS[arm].label}: the depth score (contributions, mean) grows more with hops than in the first arm",
                groups[arm], answer, partial(slope, score="contributions, mean"), "layers a hop",
            )  # fmt: skip


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
        held = [each.levels[str(TASK.hops)] for each in group]
        row["held out"] = 100 * fmean(each.held_right / max(1, each.held_total) for each in held)
        row["missed"] = max(level.missed for each in group for level in each.levels.values())
        rows.append({**row, "learnt": sum(map(has_learnt, group)), "seeds": len(group)})
    columns = {"arm": "s", **{f"{hops} hops": ".1f" for hops in _hops(groups[ANSWER])}}
    columns |= {"held out": ".1f", "missed": ".3f", "learnt": "d", "seeds": "d"}
    legend = (
        f"percent right of all problems, mean over seeds; held out: of {TASK.hops} hops that no run trained on. "
        f"learnt: runs that answer {100 * LEARNT:g} % at every number of hops; no other counts below. missed: largest "
        "error of integrated gradients, in probability."
    )
    return Table("What was learnt", columns, rows, legend, [replace(each, family=FAMILY) for each in _findings(groups)])


def _hops(group: Sequence[DepthRecord]) -> list[int]:
    return sorted(map(int, group[0].levels))


def _uses(groups: Groups) -> Table:
    """The last use of every token of the longest problems."""
    names = ["start", *(f"f{hop}" for hop in range(1, TASK.hops + 1)), "="]
    rows: Rows = []
    for arm, group in groups.items():
        uses = [last_use(each, TASK.hops) for each in group]
        gap = over_seeds([each for each in map(climb, group) if each is not None])
        rows.append(
            {
                "arm": ARMS[arm].label,
                **{name: fmean(each[place] for each in uses) for place, name in enumerate(names)},
                "climb": gap.value, "climb low": gap.low, "climb high": gap.high, "seeds": len(group),
            }
        )  # fmt: skip
    columns = {"arm": "s", **dict.fromkeys(names, ".1f"), "climb": "+.2f", "climb low": "+.2f", "climb high": "+.2f"}
    columns["seeds"] = "d"
    legend = (
        f"in problems of {TASK.hops} hops: the last layer before which a token's residual, if erased, changes the "
        f"answer's probabilities by more than {USED:g}; -1 for none; layers from 0, {LAYERS} is after the last of six. "
        "climb: of the last function over the first, with its 95 % interval over seeds where both are used."
    )
    return Table("Last uses of tokens", columns, rows, legend)


def _scores(groups: Groups) -> Table:
    """Depth scores by number of hops."""
    rows: Rows = []
    for arm, group in groups.items():
        for score in group[0].levels[str(TASK.least)].scores:
            row: dict[str, Value] = {"arm": ARMS[arm].label, "score": score}
            for hops in _hops(group):
                row[f"{hops} hops"] = mean(each.levels[str(hops)].scores[score] for each in group)
            gap = over_seeds([each for each in (slope(each, score) for each in group) if each is not None])
            rows.append({**row, "slope": gap.value, "slope low": gap.low, "slope high": gap.high})
    columns = {"arm": "s", "score": "s", **{f"{hops} hops": ".2f" for hops in range(TASK.least, TASK.hops + 1)}}
    columns |= {"slope": "+.3f", "slope low": "+.3f", "slope high": "+.3f"}
    legend = (
        "the mean layer, counted from 0, weighted by its effect where the answer is predicted: on contributions of "
        "later layers or on the output, as the mean, the 0.9 quantile or the maximum over splits, mean over problems. "
        "slope: layers a hop, with its 95 % interval over seeds. A score that saturates is half way, (layers - 1) / 2."
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
        for name in MAPS:
            maps = [each.maps[name] for each in group if name in each.maps]
            for layer in range(len(maps[0].r2[0]) if maps else 0):
                columns_of = [[row[layer] for row in each.r2] for each in maps]
                best = [column.index(max(column)) for column in columns_of]
                rows.append(
                    {
                        "from": ARMS[arm].label,
                        "to": MAPS[name],
                        "layer": layer,
                        "best source": fmean(best),
                        "r2": fmean(map(max, columns_of)),
                        "relative error": fmean(min(row[layer] for row in each.relative_error) for each in maps),
                    }
                )
    columns = {"from": "s", "to": "s", "layer": "d", "best source": ".1f", "r2": ".3f", "relative error": ".3f"}
    legend = (
        "ridge maps with an offset, fitted to 80 % of the tokens of problems, trained on or not, and asked for the "
        "others, whose problems are different but may begin alike; by layer of the second model, the layer of the "
        "first that predicts it best, and how well. From a model never trained: the floor, what any features of the "
        "same tokens explain of the second. Means over seeds."
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
    """Both losses: the staircase, and effects of skipped layers on later ones; depth scores by the number of hops."""
    groups = learnt(grouped(records, lambda record: arm_of(record.reading.start)))
    with figure(path, 17, 3.6, columns=6) as panels:
        for place, arm in enumerate((EARLY, ALL)):
            if arm in groups:
                _staircase(panels[place], groups[arm], ARMS[arm].label)
                _heat(panels[2 + place], groups[arm], ARMS[arm].label)
        for axes, score in zip(panels[4:], ("contributions, mean", "output, mean"), strict=True):
            for arm, group in groups.items():
                points = {k: [each.levels[str(k)].scores[score] for each in group] for k in _hops(group)}
                known = {k: [value for value in values if value is not None] for k, values in points.items()}
                means = {k: over_seeds(values) for k, values in known.items() if values}
                low, value, high = ([getattr(each, end) for each in means.values()] for end in ("low", "value", "high"))
                colour = ARMS[arm].colour
                axes.fill_between([*means], low, high, color=colour, alpha=0.15, linewidth=0)
                axes.plot([*means], value, "o-", ms=3, color=colour, label=ARMS[arm].label)
            axes.set(title=f"depth score: {score}", xlabel="hops", xticks=range(TASK.least, TASK.hops + 1))
        if groups:
            legend_below(panels[4:], 4)


def _heat(axes: "matplotlib.axes.Axes", group: Sequence[DepthRecord], title: str) -> None:
    """Effects of skipped layers on later ones, where the answer is predicted, mean over seeds."""
    import numpy as np

    mean_LL = np.array([each.contributions["future"] for each in group]).mean(0)
    axes.imshow(np.where(mean_LL > 0, mean_LL, np.nan), origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=1)
    axes.set(title=f"{title}: effect on later layers", xlabel="layer", ylabel="skipped before a split")
    axes.grid(visible=False)


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
