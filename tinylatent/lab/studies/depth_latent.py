"""Study `depth-latent`: how does a step of latent thought use the layers of a model?

Discrete chains of thought, CoT2 and Coconut, with direct answers and pauses beside, on compositions of permutations and
on multi-hop lookup with several states a step. The published analyses of depth (Csordás et al. 2025, arXiv 2505.13898)
look at models that answer at once or write. Here: where in depth do the states of a step appear, as the model's own
readout shows them and as a linear map finds them? Does a thought carry the states of its step, and does what a step
says hold on to those before? Does the depth score of an answer grow with the number of hops where it is given clean
steps? Intervals are over seeds. Only runs that have learnt count, and of those what they answer rightly (`by_hops`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.findings import Finding
from tinylatent.lab.plots import figure, legend_below
from tinylatent.lab.recipes_thought_depth import ARMS, HOPS, LAYERS, PLACES, TAUGHT, UNTAUGHT, arm_of, build, split
from tinylatent.lab.studies.by_hops import LEARNT, above, apart, has_learnt, learnt, mean, more, slope
from tinylatent.lab.studies.compare import grouped, over_seeds, placed
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value
from tinylatent.lab.thought_depth_reading import ANEW, ThoughtDepthReading, ThoughtDepthRecord

if TYPE_CHECKING:
    import matplotlib.axes  # which commands that draw nothing do not load

SEEDS: dict[Profile, range] = {"quick": range(3), "full": range(5, 10)}
QUICK, QUICK_STEPS, QUICK_PROBLEMS, QUICK_PROBED = ("discrete", "cot2"), 400, 16, 400
SURE = 0.75
"""How often a reader has to rank right states above others for them to have appeared."""
SCORES = ("contributions, mean", "output, mean")
FAMILY = "depth of thoughts"
Groups = Mapping[str, Sequence[ThoughtDepthRecord]]
Rows = list[dict[str, Value]]
Curve = Sequence[float]
Cube = list[list[list[float]]]
READERS = {"lens": "states of a step's frontier", "walk": "states of the best walk"}
"""What the readout is asked for, and in words."""


def grid(profile: Profile) -> list[ThoughtDepthReading]:
    """A reading of every arm on every seed; two of them, briefly trained, in the quick profile."""
    arms = ARMS if profile == "full" else QUICK
    return [reading(arm, seed, profile) for arm in arms for seed in SEEDS[profile]]


def reading(arm: str, seed: int, profile: Profile = "full") -> ThoughtDepthReading:
    """What an arm's run is asked."""
    run = build(arm, seed)
    if profile == "full":
        return ThoughtDepthReading(run)
    run = replace(run, training=replace(run.training, steps=QUICK_STEPS))
    return ThoughtDepthReading(run, QUICK_PROBLEMS, QUICK_PROBED)


# ---------------------------------------------------------------------------------------------------------------------
# What is read off a record


def thinks(record: ThoughtDepthRecord) -> bool:
    """Whether there is a slot for every step, and not the answer's alone."""
    return len(record.frontier.lens) > 1


def own(cube: Cube, back: int = 0) -> list[Curve]:
    """By predicting slot: the curve over layers of the step that it predicts, or of one so many before it."""
    slots, steps = len(cube), len(cube[0])
    pairs = [(slot, steps - slots + slot - back) for slot in range(slots)]
    return [cube[slot][step] for slot, step in pairs if step >= 0]


def appears(curve: Curve, floor: float, least: float) -> float | None:
    """The layer at which a curve has come half of the way from a floor to its end, between layers by a straight line.

    0 where it has at the start, None where it ends below `least`.
    """
    if curve[-1] < least:
        return None
    half = (floor + curve[-1]) / 2
    place = next(layer for layer, value in enumerate(curve) if value >= half)
    if place == 0:
        return 0.0
    before, after = curve[place - 1], curve[place]
    return place - 1 + (half - before) / (after - before)


def later(mine: ThoughtDepthRecord, other: ThoughtDepthRecord, reader: str) -> float | None:
    """How many layers later a reader shows the states of a step in one run than in another, over the slots where it
    shows them in both."""
    cubes: tuple[Cube, Cube] = getattr(mine.frontier, reader), getattr(other.frontier, reader)
    pairs = zip(*(map(lambda curve: appears(curve, 0.5, SURE), own(cube)) for cube in cubes), strict=True)
    return mean(None if ours is None or theirs is None else ours - theirs for ours, theirs in pairs)


def carries(record: ThoughtDepthRecord) -> float | None:
    """How much more of a step's states a linear map finds in the step's thought, as the next slot is fed it, than in
    that of a model never trained, on average."""
    if not thinks(record):
        return None
    fed, floor = (own(each.probe, 1) for each in (record.frontier, record.untrained))
    return fmean(curve[0] for curve in fed) - fmean(curve[0] for curve in floor)


def holds_on(record: ThoughtDepthRecord) -> float | None:
    """How much more often than by chance what a step says ranks states that were possible before, and are so no longer,
    above states that are neither; on average from the second slot on."""
    return fmean(curve[-1] for curve in own(record.frontier.before)[1:]) - 0.5 if thinks(record) else None


def lost_in_thought(record: ThoughtDepthRecord) -> float | None:
    """The share of answers that a skipped layer costs by what is no longer thought: right with clean steps, and not
    with steps made without it; mean over layers, in problems of most hops."""
    found = record.levels[str(HOPS)].without
    return fmean(found.given) - fmean(found.anew) if thinks(record) else None


def staircase(record: ThoughtDepthRecord) -> float | None:
    """How many layers later the answer is found than the first step's state, by linear maps, where the answer is
    predicted; None where one of them is not found."""
    first, *_, last = (_found(curve) for curve in record.frontier.probe[-1])
    return None if first is None or last is None else last - first


def _found(curve: Curve) -> float | None:
    """The layer at which a linear map finds half of the most it ever does; None where that is little."""
    most = max(curve)
    return appears([*curve[: list(curve).index(most)], most], 0.0, 0.3)


def frontier_found(record: ThoughtDepthRecord) -> float | None:
    """The most that a linear map finds of a step's frontier at any layer, mean over steps before the answer."""
    return mean(max(curve) for curve in own(record.frontier.probe)[:-1]) if thinks(record) else None


# ---------------------------------------------------------------------------------------------------------------------
# Findings


def _findings(groups: Groups, prefix: str) -> Iterator[Finding]:
    """What is claimed in one place."""
    here = {kind: groups[prefix + kind] for kind in (*UNTAUGHT, *TAUGHT) if prefix + kind in groups}
    names = {kind: ARMS[prefix + kind][0] for kind in here}
    thinking = {kind: group for kind, group in here.items() if kind in TAUGHT}
    for kind, group in thinking.items():
        claim = f"{names[kind]}: a linear map finds more of a step's states in its thought than without training"
        yield above(claim, group, carries, "of the variance")
        claim = (
            f"{names[kind]}: what a step says ranks states of the step before, that are its own no longer, above others"
        )
        yield above(claim, group, holds_on, "of pairs")
    for ours, theirs in (("cot2", "discrete"), ("coconut", "discrete"), ("coconut", "cot2")):
        if {ours, theirs} <= thinking.keys():
            for reader, what in READERS.items() if prefix else [("lens", "the states of a step")]:
                claim = f"{names[ours]}: {what} appear later in depth than in {names[theirs]}"
                yield apart(claim, here[ours], here[theirs], partial(later, reader=reader), "layers")
            if prefix:
                claim = f"{names[ours]}: a linear map finds more of the frontier than in {names[theirs]}"
                yield more(claim, here[ours], here[theirs], frontier_found, "of the variance")
    for kind, group in thinking.items():
        claim = f"{names[kind]}: without a layer fewer answers are right where steps are made anew than with clean ones"
        yield above(claim, group, lost_in_thought, "of answers")
        claim = f"{names[kind]}: the depth score (output) of an answer whose steps are made anew grows with hops"
        yield above(claim, group, partial(slope, score=ANEW), "layers a hop")
    for score in SCORES:
        told = f"the depth score ({score}) of an answer"
        for kind, group in here.items():
            given = ", given clean steps," if kind in thinking else ""
            claim = f"{names[kind]}: {told}{given} grows with the number of hops"
            yield above(claim, group, partial(slope, score=score), "layers a hop")
        for kind, group in thinking.items():
            if "direct" in here:
                claim = f"{told} grows more with hops without steps than in {names[kind]}, given clean ones"
                yield more(claim, here["direct"], group, partial(slope, score=score), "layers a hop")
    if "direct" in here:
        claim = "direct: the answer is found later in depth than the first state, where it is predicted"
        yield above(claim, here["direct"], staircase, "layers")


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def tables(records: list[ThoughtDepthRecord]) -> list[Table]:
    """Findings and accuracy; where states appear, step by step and layer by layer; depth scores; layers."""
    groups = grouped(records, lambda record: arm_of(record.reading.start))
    groups = {arm: groups[arm] for arm in ARMS if arm in groups}
    told = learnt(groups)
    return [_learnt(groups), _steps(told), _curves(told), _scores(told), _layers(told)]


def _named(arm: str) -> dict[str, Value]:
    """The first columns of every table."""
    return {"task": PLACES[split(arm)[0]].title, "method": ARMS[arm][0]}


NAMED = {"task": "s", "method": "s"}


def _learnt(groups: Groups) -> Table:
    """Accuracy by arm and number of hops, with the findings."""
    rows: Rows = []
    for arm, group in groups.items():
        row = _named(arm)
        for hops in range(1, HOPS + 1):
            levels = [each.levels[str(hops)] for each in group if str(hops) in each.levels]
            row[f"{hops} hops"] = 100 * fmean(level.right / level.total for level in levels) if levels else None
        held = [each.levels[str(HOPS)] for each in group]
        row["held out"] = mean(100 * each.held_right / each.held_total if each.held_total else None for each in held)
        rows.append({**row, "learnt": sum(map(has_learnt, group)), "seeds": len(group)})
    columns = NAMED | {f"{hops} hops": ".1f" for hops in range(1, HOPS + 1)}
    columns |= {"held out": ".1f", "learnt": "d", "seeds": "d"}
    legend = (
        f"percent right of all problems, mean over seeds; held out: of {HOPS} hops that no run trained on. learnt: "
        f"runs that answer {100 * LEARNT:g} % at every number of hops; no other counts below, nor is drawn."
    )
    found = [
        replace(placed(PLACES[prefix].title, each), family=FAMILY)
        for prefix in PLACES
        if any(split(arm)[0] == prefix for arm in groups)
        for each in _findings(groups, prefix)
    ]
    return Table("What was learnt", columns, rows, legend, found)


def _steps(groups: Groups) -> Table:
    """Where the states of a step are, at the slot that predicts it."""
    rows: Rows = []
    for arm, group in groups.items():
        slots = len(group[0].frontier.lens)
        for slot in range(slots):
            row = _named(arm) | {"step": "answer" if slot == slots - 1 else str(slot + 1)}
            for reader in READERS:
                curves = [own(getattr(each.frontier, reader))[slot] for each in group]
                row |= {f"{reader}, input": fmean(curve[0] for curve in curves)}
                row |= {reader: fmean(curve[-1] for curve in curves)}
                row[f"{reader} appears"] = mean(appears(curve, 0.5, SURE) for curve in curves)
            for name, cubes in (
                ("map", [each.frontier.probe for each in group]),
                ("untrained", [each.untrained.probe for each in group]),
            ):
                row[name] = fmean(own(cube)[slot][-1] for cube in cubes)
                row[f"{name}, fed"] = mean(own(cube, 1)[slot - 1][0] for cube in cubes) if slot else None
            held = [own(each.frontier.before)[slot][-1] for each in group] if slot else []
            row["holds on"], row["untrained holds on"] = mean(held), None
            if slot:
                row["untrained holds on"] = fmean(own(each.untrained.before)[slot][-1] for each in group)
            rows.append({**row, "seeds": len(group)})
    columns = NAMED | {"step": "s"}
    for reader in READERS:
        columns |= {f"{reader}, input": ".3f", reader: ".3f", f"{reader} appears": ".2f"}
    columns |= {
        "map": ".3f", "map, fed": ".3f", "untrained": ".3f", "untrained, fed": ".3f", "holds on": ".3f",
        "untrained holds on": ".3f", "seeds": "d",
    }  # fmt: skip
    legend = (
        f"in problems of {HOPS} hops, where a step or the answer is predicted. lens: how often the readout ranks a "
        "state of the step's frontier above another, after the last layer and of the slot's input; 0.5 by chance; "
        "walk: the same of the best walk's state. appears: the layer, from 0, the input, to "
        f"{LAYERS}, the output, at which it is half way from chance. map: share of the frontier's variance that a "
        "linear map explains in problems it was not fitted to, after the last layer; fed: of the step before, in the "
        "thought that this slot is fed. holds on: how often what is said ranks a state of the step before, if it is of "
        "this one no longer, above one of neither. untrained: in a model never trained. Means over seeds."
    )
    return Table("Where the states of a step are", columns, rows, legend)


def _curves(groups: Groups) -> Table:
    """Lens and map by slot, step and layer."""
    rows: Rows = []
    for arm, group in groups.items():
        first = group[0].frontier.lens
        for slot, steps in enumerate(first):
            for step in range(len(steps)):
                for name in ("lens", "walk", "probe"):
                    curves = [getattr(each.frontier, name)[slot][step] for each in group]
                    row = _named(arm) | {"slot": len(steps) - len(first) + slot + 1, "states of": step + 1}
                    row["reader"] = {"lens": "lens", "walk": "lens, best walk", "probe": "map"}[name]
                    rows.append(row | {f"{layer}": fmean(c[layer] for c in curves) for layer in range(LAYERS + 1)})
    columns = NAMED | {"slot": "d", "states of": "d", "reader": "s"}
    columns |= {f"{layer}": ".3f" for layer in range(LAYERS + 1)}
    legend = (
        "slot: by the step that it predicts, from 1 to the answer; states of: which step is looked for; then before "
        f"layer 0 to {LAYERS - 1} and after the last. Readers as above. Means over seeds."
    )
    return Table("States by slot, step and layer", columns, rows, legend)


def _scores(groups: Groups) -> Table:
    """Depth scores by number of hops."""
    rows: Rows = []
    for arm, group in groups.items():
        for score in group[0].levels[str(HOPS)].scores:
            row = _named(arm) | {"score": score}
            for hops in range(1, HOPS + 1):
                levels = [each.levels[str(hops)] for each in group if str(hops) in each.levels]
                row[f"{hops} hops"] = mean(level.scores[score] for level in levels)
            gap = over_seeds([each for each in (slope(each, score) for each in group) if each is not None])
            rows.append(row | {"slope": gap.value, "slope low": gap.low, "slope high": gap.high})
    columns = NAMED | {"score": "s"} | {f"{hops} hops": ".2f" for hops in range(1, HOPS + 1)}
    columns |= {"slope": "+.3f", "slope low": "+.3f", "slope high": "+.3f"}
    legend = (
        "the mean layer, counted from 0, weighted by what skipping it before a split does where the answer is "
        "predicted: to contributions of later layers or to the output, as the mean, the 0.9 quantile or the maximum "
        "over splits, mean over problems, given clean steps. The last two are of a layer skipped at all tokens but the "
        "first, with the clean run's steps and with steps made anew without it. slope: layers a hop, with its 95 % "
        "interval over seeds. Of multi-hop, one hop is not trained on."
    )
    return Table("Depth scores", columns, rows, legend)


def _layers(groups: Groups) -> Table:
    """What layers add by kind of slot, and what skipping one changes."""
    rows: Rows = []
    for arm, group in groups.items():
        for kind in group[0].sizes:
            for layer in range(LAYERS):
                row = _named(arm) | {"slots": kind, "layer": layer}
                for name in group[0].sizes[kind]:
                    row[name.replace("_", " ")] = fmean(each.sizes[kind][name][layer] for each in group)
                row["skipped"] = mean(_skipped(each, kind, layer) for each in group)
                for name in ("given", "anew"):
                    kept = [getattr(each.levels[str(HOPS)].without, name)[layer] for each in group]
                    row[f"right, {name}"] = 100 * fmean(kept) if kind == "answer" else None
                rows.append(row)
    columns = NAMED | {"slots": "s", "layer": "d", "relative layer": ".2f", "cosine layer": "+.2f", "skipped": ".3f"}
    columns |= {"right, given": ".1f", "right, anew": ".1f"}
    legend = (
        f"in problems of {HOPS} hops, by kind of slot: prompt, those that predict steps, the one that predicts the "
        "answer. relative layer, cosine layer: of what a layer adds, to what enters it. skipped: distance of "
        "probabilities there if the layer is skipped at all tokens but the first. right: percent of answers, all right "
        "with every layer, that are right without this one, given the clean run's steps, or with steps made anew "
        "without it. Means over seeds."
    )
    return Table("Layers by kind of slot", columns, rows, legend)


def _skipped(record: ThoughtDepthRecord, kind: str, layer: int) -> float | None:
    """The effect of a skipped layer where steps, or the answer, are predicted."""
    *steps, answer = (effects[layer] for effects in record.levels[str(HOPS)].own)
    return {"prompt": None, "steps": mean(steps), "answer": answer}[kind]


# ---------------------------------------------------------------------------------------------------------------------
# The figure


def draw(records: list[ThoughtDepthRecord], path: Path) -> None:
    """By task: states of a step by layer, as the readout shows them, as maps find them; scores by hops."""
    every = grouped(records, lambda record: arm_of(record.reading.start))
    groups, prefixes = learnt(every), [prefix for prefix in PLACES if any(split(arm)[0] == prefix for arm in every)]
    with figure(path, 3.4 * 3 * len(prefixes), 4.2, columns=3 * len(prefixes)) as panels:
        for place, prefix in enumerate(prefixes):
            lens, probe, score = panels[3 * place : 3 * place + 3]
            for arm, group in groups.items():
                if split(arm)[0] == prefix:
                    _drawn(lens, probe, score, arm, group)
            title = PLACES[prefix].title
            lens.set(title=f"{title}: readout ranks\nthe step's states first", xlabel="layer", ylim=(0.3, 1.02))
            probe.set(
                title="a map's R²: its states, dashed\nin a model never trained", xlabel="layer", ylim=(-0.1, 1.02)
            )
            score.set(title="depth score\n(contributions, mean)", xlabel="hops", xticks=range(1, HOPS + 1))
        if groups:
            legend_below(panels, 8)


def _drawn(
    lens: "matplotlib.axes.Axes",
    probe: "matplotlib.axes.Axes",
    score: "matplotlib.axes.Axes",
    arm: str,
    group: Sequence[ThoughtDepthRecord],
) -> None:
    """One arm's curves, means over slots from the second on, with 95 % over seeds."""
    label, _, colour = ARMS[arm]

    def over(cubes: list[Cube]) -> list[Interval]:
        seeds = [[fmean(layer) for layer in zip(*own(cube)[-(HOPS - 1) :], strict=True)] for cube in cubes]
        return [over_seeds(layer) for layer in zip(*seeds, strict=True)]

    def line(axes: "matplotlib.axes.Axes", found: list[Interval], places: Sequence[int], **look: Any) -> None:
        low, value, high = ([getattr(each, end) for each in found] for end in ("low", "value", "high"))
        axes.plot(places, value, color=colour, **look)
        if len(group) > 1:
            axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)

    layers = range(LAYERS + 1)
    line(lens, over([each.frontier.lens for each in group]), layers, marker="o", ms=3, label=label)
    line(probe, over([each.frontier.probe for each in group]), layers, marker="o", ms=3)
    line(probe, over([each.untrained.probe for each in group]), layers, linestyle="--")
    points = {
        hops: [value for each in group if (value := each.levels[str(hops)].scores[SCORES[0]]) is not None]
        for hops in range(1, HOPS + 1)
        if str(hops) in group[0].levels
    }
    known = {hops: over_seeds(values) for hops, values in points.items() if values}
    line(score, [*known.values()], [*known], marker="o", ms=3)


STUDY = Study(
    "depth-latent",
    "How does a step of latent thought use the layers of a model?",
    grid,
    tables,
    draw,
    kind=ThoughtDepthReading,
)
