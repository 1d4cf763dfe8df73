"""Study `depth`: how does a model trained from scratch use its layers on problems of one to four hops?

After Csordás et al. 2025 (arXiv 2505.13898), whose small models trained on answers alone did use more layers for later
steps, judged by eye on four examples, while large language models did not. Here: compositions of fixed permutations,
five seeds, intervals over them. A token's residual, replaced by the mean one before a layer, changes the answer: it is
read until the layer behind which that effect stays below half of its largest. A staircase is a place that rises from
every function's slot to the next. Depth scores are of effects on the future where the answer is predicted, and findings
about them of two hops and more: problems of one hop are 48 in all, most of them trained on. Answers alone stand there
trained to the end and stopped; neither is equal to all tokens at every number of hops, so that both are compared with
it. Other arms change one thing each. Only runs that have learnt count (`by_hops`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from tinylatent.lab.depth_reading import AT_ANSWER, FLOOR, OTHER, DepthReading, DepthRecord
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
SCORES = ("contributions, mean", "output, mean")
"""Depth scores that claims are about."""
FILLERS = {"erased": "mean of all tokens", "erased_same": "mean of the slot"}
"""What replaces a residual, in words."""
SHARES = (0.25, 0.5, 0.75)
"""Shares of the largest effect of a token above which it counts as read; claims are about the middle one."""
FAMILY = "use of depth"
UNTRAINED = {OTHER: "", FLOOR: ", never trained"}
"""What is said of the model that a map begins at; all lead to answers alone on another seed."""
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


def read_until(record: DepthRecord, token: int, share: float = 0.5, filler: str = "erased") -> float | None:
    """The layer behind which erasing a token's residual does less than a share of the most it does, between layers by a
    straight line, in problems of most hops; None for one that never has an effect."""
    grid: list[list[float]] = getattr(record.levels[str(TASK.hops)], filler)
    curve = [row[token] for row in grid]
    bar = share * max(curve)
    if max(curve) <= USED:
        return None
    place = max(layer for layer, value in enumerate(curve) if value > bar)
    if place == len(curve) - 1:
        return float(place)
    return place + (curve[place] - bar) / (curve[place] - curve[place + 1])


def steps(record: DepthRecord, share: float = 0.5, filler: str = "erased") -> list[float] | None:
    """How much later each function's slot is read than the one before; None where one is never read."""
    found = [read_until(record, 1 + hop, share, filler) for hop in range(TASK.hops)]
    known = [place for place in found if place is not None]
    return [after - before for before, after in pairwise(known)] if len(known) == len(found) else None


def climb(record: DepthRecord) -> float | None:
    """How much later the last function's slot is read than the first's, in layers."""
    found = steps(record)
    return None if found is None else sum(found)


def step(record: DepthRecord) -> float | None:
    """The least rise from a function's slot to the next, in layers."""
    found = steps(record)
    return None if found is None else min(found)


def late(record: DepthRecord, name: str) -> float | None:
    """Mean of a measure over the later half of the layers; of effects without the last layer's, which are 0."""
    values = record.output["future"] if name == "future" else record.at_answer[name]
    return fmean(values[len(values) // 2 : len(values) - (name == "future")])


def tables(records: list[DepthRecord]) -> list[Table]:
    """Findings and accuracy; where tokens are read, depth scores, effects, layers with the lens, maps, outliers."""
    groups = grouped(records, lambda record: arm_of(record.reading.start))
    told = learnt(groups)
    mapped = [_maps(told)] if any(each.maps for group in told.values() for each in group) else []
    return [_learnt(groups), _uses(told), _scores(told), _effects(told), _layers(told), *mapped, _outliers(told)]


# ---------------------------------------------------------------------------------------------------------------------
# Findings


def _findings(groups: Groups) -> Iterator[Finding]:
    every, alone = groups[ALL], {"answers alone": groups[ANSWER], "answers alone, stopped": groups[EARLY]}
    for name, group in {**alone, "all tokens": every}.items():
        yield above(
            f"{name}: the last function's slot is read until later in depth than the first's", group, climb, "layers"
        )
        claim = f"{name}: every function's slot is read until later than the one before (a staircase)"
        yield above(claim, group, step, "layers")
        for score in SCORES:
            claim = f"{name}: the depth score ({score}) grows with the number of hops, from two on"
            yield above(claim, group, rise(score), "layers a hop")
    for name, group in alone.items():
        for score in SCORES:
            claim = f"the depth score ({score}) grows more with hops, from two on, with {name} than with all tokens"
            yield more(claim, group, every, rise(score), "layers a hop")
        claim = f"from the first function's slot to the last's it is more layers with {name} than with all tokens"
        yield more(claim, group, every, climb, "layers")
        claim = (
            "where the answer is predicted the later half of layers strengthens what is there more with all tokens "
            f"than with {name}"
        )
        yield more(claim, every, group, partial(late, name="cosine_layer"), "cosine")
        claim = f"skipping a later layer before the answer changes it more with {name} than with all tokens"
        yield more(claim, group, every, partial(late, name="future"), "distance")
    for arm in ("tied", "post", "after", "decay-30"):
        for score in SCORES if arm in groups else ():
            claim = (
                f"{ARMS[arm].label}: the depth score ({score}) grows more with hops, from two on, than in the first arm"
            )
            yield more(claim, groups[arm], groups[ANSWER], rise(score), "layers a hop")


def rise(score: str) -> Callable[[DepthRecord], float | None]:
    """The slope of a score from two hops on."""
    return partial(slope, score=score, least=2)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _learnt(groups: Groups) -> Table:
    """Accuracy by arm and number of hops, with the findings."""
    rows: Rows = []
    for arm, group in groups.items():
        row: dict[str, Value] = {"arm": ARMS[arm].label, "batches": fmean(each.steps for each in group)}
        for hops in _hops(group):
            levels = [each.levels[str(hops)] for each in group]
            row[f"{hops} hops"] = 100 * fmean(level.right / level.total for level in levels)
            unseen = sum(level.held_total for level in levels)
            row[f"unseen, {hops}"] = 100 * sum(level.held_right for level in levels) / unseen if unseen else None
        row["sure"] = fmean(level.likely for each in group for level in each.levels.values())
        rows.append({**row, "learnt": sum(map(has_learnt, group)), "seeds": len(group)})
    hops_of = _hops(groups[ANSWER])
    columns = {"arm": "s", "batches": ".0f", **{f"{hops} hops": ".1f" for hops in hops_of}}
    columns |= {f"unseen, {hops}": ".1f" for hops in hops_of} | {"sure": ".3f", "learnt": "d", "seeds": "d"}
    legend = (
        "batches: of training, mean over seeds. k hops: percent right of different problems, trained on or not, mean "
        "over seeds; unseen, k: of the part that a run did not train on, over all seeds, of which arms that stop at a "
        "share have looked at 256. sure: mean probability of right answers. learnt: runs that answer "
        f"{100 * LEARNT:g} % at every number of hops; no other counts below; it was 90 % until runs were seen."
    )
    return Table("What was learnt", columns, rows, legend, [replace(each, family=FAMILY) for each in _findings(groups)])


def _hops(group: Sequence[DepthRecord]) -> list[int]:
    return sorted(map(int, group[0].levels))


def _uses(groups: Groups) -> Table:
    """Until where every token of the longest problems is read, by what it is replaced by and what counts as read."""
    names = ["start", *(f"f{hop}" for hop in range(1, TASK.hops + 1)), "="]
    rows: Rows = []
    for arm, group in groups.items():
        for filler, said in FILLERS.items():
            for share in SHARES:
                row: dict[str, Value] = {"arm": ARMS[arm].label, "replaced by": said, "share": share}
                for token, name in enumerate(names):
                    places = [read_until(each, token, share, filler) for each in group]
                    known = [place for place in places if place is not None]
                    row[name] = median(known) if known else None
                found = [each for each in (steps(record, share, filler) for record in group) if each is not None]
                gap = over_seeds([sum(each) for each in found])
                row |= {"climb": gap.value, "climb low": gap.low, "climb high": gap.high}
                rows.append({**row, "stairs": sum(min(each) > 0 for each in found), "seeds": len(found)})
    columns = {"arm": "s", "replaced by": "s", "share": ".2f", **dict.fromkeys(names, ".2f")}
    columns |= {"climb": "+.2f", "climb low": "+.2f", "climb high": "+.2f", "stairs": "d", "seeds": "d"}
    legend = (
        f"in problems of {TASK.hops} hops: the layer behind which replacing a token's residual changes the answer's "
        f"probabilities by less than this share of the most it does at any, from 0 to {LAYERS}, after the last of six; "
        "medians over seeds. No token before = can be read after the last layer. replaced by: the mean residual of all "
        "tokens, or of this slot, which says as much of its place. climb: from the first function to the last, with "
        "its 95 % interval over seeds. stairs: seeds in which it rises from every function to the next; seeds: those "
        f"with an effect above {USED:g} of all functions."
    )
    return Table("Until where tokens are read", columns, rows, legend)


def _scores(groups: Groups) -> Table:
    """Depth scores by number of hops."""
    rows: Rows = []
    for arm, group in groups.items():
        for score in group[0].levels[str(TASK.least)].scores:
            row: dict[str, Value] = {"arm": ARMS[arm].label, "score": score}
            for hops in _hops(group):
                row[f"{hops} hops"] = mean(each.levels[str(hops)].scores[score] for each in group)
            for name, least in (("slope", TASK.least), ("from two", 2)):
                gap = over_seeds([each for each in (slope(each, score, least) for each in group) if each is not None])
                row |= {name: gap.value, f"{name} low": gap.low, f"{name} high": gap.high}
            rows.append(row)
    columns = {"arm": "s", "score": "s", **{f"{hops} hops": ".2f" for hops in range(TASK.least, TASK.hops + 1)}}
    for name in ("slope", "from two"):
        columns |= {name: "+.3f", f"{name} low": "+.3f", f"{name} high": "+.3f"}
    legend = (
        "the mean layer, counted from 0, weighted by its effect where the answer is predicted: on contributions of "
        "later layers or on the output, as the mean, the 0.9 quantile or the maximum over splits, or of the last split "
        "alone, mean over problems. slope: layers a hop, over all hops and from two on, with 95 % intervals over "
        "seeds. More hops are also more tokens and splits, k + 1 of these. The last layer moves nothing to "
        "later tokens, so that a score that saturates is (layers - 2) / 2. Scores of small effects are scores too."
    )
    return Table("Depth scores", columns, rows, legend)


def _effects(groups: Groups) -> Table:
    """What depth scores are scores of."""
    rows: Rows = []
    for arm, group in groups.items():
        for score in (*SCORES, "output, last"):
            for layer in range(len(group[0].output["all"])):
                row: dict[str, Value] = {"arm": ARMS[arm].label, "effect on": score, "layer": layer}
                for hops in _hops(group):
                    row[f"{hops} hops"] = fmean(each.levels[str(hops)].effects[score][layer] for each in group)
                rows.append(row)
    columns = {"arm": "s", "effect on": "s", "layer": "d"}
    columns |= {f"{hops} hops": ".3f" for hops in range(TASK.least, TASK.hops + 1)}
    legend = (
        "of skipping this layer before a split, where the answer is predicted: mean |c - c'| / |c| of later layers, or "
        "distance of probabilities, of at most 1.41; mean over splits, or of the last alone. Means over seeds."
    )
    return Table("Effects behind depth scores", columns, rows, legend)


def _layers(groups: Groups) -> Table:
    """What every layer adds and what it changes, medians over seeds."""
    rows: Rows = []
    for arm, group in groups.items():
        for layer in range(len(group[0].output["all"])):
            row: dict[str, Value] = {"arm": ARMS[arm].label, "layer": layer}
            for name in ("residual", "relative_layer", "cosine_layer"):
                row[name.replace("_", " ")] = median(each.sizes[name][layer] for each in group)
            for name in AT_ANSWER:
                row[f"{name.partition('_')[0]} at ="] = median(each.at_answer[name][layer] for each in group)
            for name in ("all", "mean", "future", "direct"):
                row[f"output, {name}"] = median(each.output[name][layer] for each in group)
            for hops in (TASK.least, TASK.hops):
                for name, key in (("lens", "to_final"), ("from", "from_final")):
                    row[f"{name}, {hops}"] = median(each.levels[str(hops)].lens[key][layer] for each in group)
            rows.append(row)
    columns = {
        "arm": "s", "layer": "d", "residual": ".1f", "relative layer": ".2f", "cosine layer": "+.2f",
        "relative at =": ".2f", "cosine at =": "+.2f", "output, all": ".3f", "output, mean": ".3f",
        "output, future": ".3f", "output, direct": ".3f",
        **{f"{name}, {hops}": ".2f" for hops in (TASK.least, TASK.hops) for name in ("lens", "from")},
    }  # fmt: skip
    legend = (
        "residual: norm of what enters the layer; relative layer, cosine layer: of what it adds, to that, over all "
        "tokens but the first, most of which predict nothing that is asked of answers alone; at =: where the answer is "
        "predicted. output: distance of probabilities if the layer is skipped at all tokens, adds its mean there "
        "instead, is skipped before a split, or is taken from the readout's input alone. lens, k: KL(lens || final) in "
        "nats before the layer where the answer to k hops is predicted; from, k: KL(final || lens). Medians over seeds."
    )
    return Table("Layers", columns, rows, legend)


def _maps(groups: Groups) -> Table:
    """How well one model's stream predicts another's."""
    rows: Rows = []
    for arm, group in groups.items():
        for name, said in UNTRAINED.items():
            maps = [each.maps[name] for each in group if name in each.maps]
            for layer in range(len(maps[0].r2[0]) if maps else 0):
                columns_of = [[row[layer] for row in each.r2] for each in maps]
                best = [column.index(max(column)) for column in columns_of]
                rows.append(
                    {
                        "from": ARMS[arm].label + said,
                        "to": f"{ARMS[ANSWER].label}, another seed",
                        "layer": layer,
                        "best source": fmean(best),
                        "r2": fmean(map(max, columns_of)),
                        "relative error": fmean(min(row[layer] for row in each.relative_error) for each in maps),
                    }
                )
    columns = {"from": "s", "to": "s", "layer": "d", "best source": ".1f", "r2": ".3f", "relative error": ".3f"}
    legend = (
        "ridge maps with an offset of the residual where the answer is predicted, fitted to 80 % of different "
        "problems, trained on or not, and asked for the others; by layer of the second model, the layer of the first "
        "that predicts it best there, and how well; the smallest relative error may be another layer's. From a model "
        "never trained: the floor, what any features of the same tokens explain of the second. Means over seeds."
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
    axes.set(title=f"{title}:\neffect on later layers, 0 to 1", xlabel="layer", ylabel="skipped before a split")
    axes.grid(visible=False)


def _staircase(axes: "matplotlib.axes.Axes", group: Sequence[DepthRecord], title: str) -> None:
    """Effects of erased residuals, in the run of the first seed."""
    grid = group[0].levels[str(TASK.hops)].erased
    axes.imshow(grid, origin="lower", aspect="auto", cmap="magma", vmin=0, vmax=2**0.5)
    names = ["s", *(f"f{hop}" for hop in range(1, TASK.hops + 1)), "="]
    axes.set_xticks(range(len(names)), names)
    axes.set(title=f"{title}:\nerased before layer, 0 to 1.41", ylabel="layer")
    axes.grid(visible=False)


STUDY = Study(
    "depth",
    "How does a model trained from scratch use its layers on problems of one to four hops?",
    grid,
    tables,
    draw,
    kind=DepthReading,
)
