"""Study `depth-latent`: how does a step of latent thought use the layers of a model?

Discrete chains of thought, CoT2 and Coconut, with direct answers and pauses beside, on compositions of permutations and
on multi-hop lookup with several states a step. The published analyses of depth (Csordás et al. 2025, arXiv 2505.13898)
look at models that answer at once or write. Here: where in depth do the states of a step appear, as the model's own
readout shows them and as a linear map finds them? Does a step compute, so that its input holds the states before and
its output the next, or refine what it was fed? Does a problem of more hops use more depth where steps are taken one at
a time? Intervals are over seeds. Only runs that have learnt count (`by_hops`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from tinylatent.lab.findings import Finding
from tinylatent.lab.plots import figure, legend_below
from tinylatent.lab.recipes_thought_depth import ARMS, HOPS, LAYERS, PLACES, TAUGHT, UNTAUGHT, arm_of, build, split
from tinylatent.lab.studies.by_hops import LEARNT, above, has_learnt, mean, more, slope
from tinylatent.lab.studies.compare import grouped, over_seeds, placed
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value
from tinylatent.lab.thought_depth_reading import ThoughtDepthReading, ThoughtDepthRecord

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


def readout(record: ThoughtDepthRecord) -> list[list[list[float]]]:
    """What the readout shows: of the best walk, if that is what the arm says, else of the frontier."""
    _, kind = split(arm_of(record.reading.start))
    return record.frontier.walk if kind == "discrete" else record.frontier.lens


def own(cube: list[list[list[float]]], back: int = 0) -> list[Curve]:
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


def depth_of(record: ThoughtDepthRecord) -> float | None:
    """The mean layer at which the readout shows the states of a step, over the slots that predict one."""
    return mean(appears(curve, 0.5, SURE) for curve in own(readout(record)))


def computes(record: ThoughtDepthRecord) -> float | None:
    """How much more of a step's frontier a linear map finds after the last layer than in the slot's input, on average.

    Of slots from the second on: the input of the first is the prompt's last token.
    """
    return mean(curve[-1] - curve[0] for curve in own(record.frontier.probe)[1:]) if thinks(record) else None


def refines(record: ThoughtDepthRecord) -> float | None:
    """By how much more what two following slots say overlaps than what they should say, on average."""
    _, kind = split(arm_of(record.reading.start))
    should = 2 if kind == "discrete" else 1
    return fmean(pair[0] - pair[should] for pair in record.overlap) if record.overlap else None


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
    thinking = {kind: group for kind, group in here.items() if kind in TAUGHT}
    for kind, group in thinking.items():
        name = ARMS[prefix + kind][0]
        claim = f"{name}: a step computes: a linear map finds more of its states after the last layer than in its input"
        yield above(claim, group, computes, "of the variance")
        yield above(f"{name}: what steps say overlaps more than what they should say", group, refines, "probability")
    for ours, theirs in (("cot2", "discrete"), ("coconut", "discrete"), ("coconut", "cot2")):
        if {ours, theirs} <= thinking.keys():
            names = [ARMS[prefix + kind][0] for kind in (ours, theirs)]
            claim = "{}: the states of a step appear later in depth than in {}".format(*names)
            yield more(claim, here[ours], here[theirs], depth_of, "layers")
            if prefix:
                claim = "{}: a linear map finds more of the frontier than in {}".format(*names)
                yield more(claim, here[ours], here[theirs], frontier_found, "of the variance")
    for score in SCORES:
        told = f"the depth score ({score}) grows with the number of hops"
        for kind, group in here.items():
            yield above(f"{ARMS[prefix + kind][0]}: {told}", group, partial(slope, score=score), "layers a hop")
        for kind, group in thinking.items():
            if "direct" in here:
                claim = f"{told}, more without steps than in {ARMS[prefix + kind][0]}"
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
    told = {arm: kept for arm, group in groups.items() if (kept := [each for each in group if has_learnt(each)])}
    shown = told or groups
    return [_learnt(groups), _steps(shown), _curves(shown), _scores(shown), _layers(shown)]


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
        rows.append({**row, "learnt": sum(map(has_learnt, group)), "seeds": len(group)})
    columns = NAMED | {f"{hops} hops": ".1f" for hops in range(1, HOPS + 1)} | {"learnt": "d", "seeds": "d"}
    legend = (
        f"percent right of all problems, mean over seeds. learnt: runs that answer {100 * LEARNT:g} % at every number "
        "of hops; no other counts below."
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
            lens = [own(readout(each))[slot] for each in group]
            probe, floor = ([own(cube)[slot] for cube in cubes] for cubes in _probes(group))
            row |= {"lens, input": fmean(curve[0] for curve in lens), "lens": fmean(curve[-1] for curve in lens)}
            row["appears"] = mean(appears(curve, 0.5, SURE) for curve in lens)
            row |= {"map, input": fmean(curve[0] for curve in probe), "map": fmean(curve[-1] for curve in probe)}
            row["untrained"] = fmean(max(curve) for curve in floor)
            row["before"] = mean(own(each.frontier.probe, 1)[slot - 1][-1] for each in group) if slot else None
            pairs = [each.overlap[slot - 1] for each in group] if slot else []
            for place, name in enumerate(("overlap", "of frontiers", "of walks")):
                row[name] = mean(pair[place] for pair in pairs)
            rows.append({**row, "seeds": len(group)})
    columns = NAMED | {
        "step": "s", "lens, input": ".3f", "lens": ".3f", "appears": ".2f", "map, input": ".3f", "map": ".3f",
        "untrained": ".3f", "before": ".3f", "overlap": ".3f", "of frontiers": ".3f", "of walks": ".3f", "seeds": "d",
    }  # fmt: skip
    legend = (
        f"in problems of {HOPS} hops, where a step or the answer is predicted. lens: how often the readout ranks a "
        "state of the step above another, after the last layer and of the slot's input; 0.5 by chance; of the "
        "frontier, in discrete CoT of the best walk. appears: the layer, from 0, the input, to "
        f"{LAYERS}, the output, at which it is half way from chance. map: share of the frontier's variance that a "
        "linear map explains in problems it was not fitted to; untrained: the most at any layer of a model never "
        "trained; before: of the step before, after the last layer. overlap: of the readout's probabilities of states "
        "here and at the slot before; of frontiers, of walks: what it should be. Means over seeds."
    )
    return Table("Where the states of a step are", columns, rows, legend)


def _probes(group: Sequence[ThoughtDepthRecord]) -> tuple[list[list[list[list[float]]]], ...]:
    """What maps find in every run, and in models never trained."""
    return [each.frontier.probe for each in group], [each.frontier.untrained for each in group]


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
        "over splits, mean over problems. Latents are not made anew. slope: layers a hop, with its 95 % interval over "
        "seeds. Of multi-hop, one hop is not trained on."
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
                rows.append(row)
    columns = NAMED | {"slots": "s", "layer": "d", "relative layer": ".2f", "cosine layer": "+.2f", "skipped": ".3f"}
    legend = (
        f"in problems of {HOPS} hops, by kind of slot: prompt, those that predict steps, the one that predicts the "
        "answer. relative layer, cosine layer: of what a layer adds, to what enters it. skipped: distance of "
        "probabilities there if the layer is skipped at all tokens but the first. Means over seeds."
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
    groups = grouped(records, lambda record: arm_of(record.reading.start))
    prefixes = [prefix for prefix in PLACES if any(split(arm)[0] == prefix for arm in groups)]
    with figure(path, 3.4 * 3 * len(prefixes), 3.8, columns=3 * len(prefixes)) as panels:
        for place, prefix in enumerate(prefixes):
            lens, probe, score = panels[3 * place : 3 * place + 3]
            for arm, group in groups.items():
                if split(arm)[0] == prefix:
                    _drawn(lens, probe, score, arm, group)
            title = PLACES[prefix].title
            lens.set(title=f"{title}: readout ranks\nthe step's states first", xlabel="layer", ylim=(0.3, 1.02))
            probe.set(title="a map's R²: next states,\ndashed the ones before", xlabel="layer", ylim=(-0.1, 1.02))
            score.set(title="depth score\n(contributions, mean)", xlabel="hops", xticks=range(1, HOPS + 1))
        legend_below(panels, 8)


def _drawn(
    lens: "matplotlib.axes.Axes",
    probe: "matplotlib.axes.Axes",
    score: "matplotlib.axes.Axes",
    arm: str,
    group: Sequence[ThoughtDepthRecord],
) -> None:
    """One arm's curves, means over slots from the second on and over seeds."""
    label, _, colour = ARMS[arm]

    def over(curves: Callable[[ThoughtDepthRecord], list[Curve]]) -> list[float]:
        every = [curve for each in group for curve in curves(each)[-(HOPS - 1) :]]
        return [fmean(layer) for layer in zip(*every, strict=True)]

    lens.plot(over(lambda each: own(readout(each))), "o-", ms=3, color=colour, label=label)
    probe.plot(over(lambda each: own(each.frontier.probe)), "o-", ms=3, color=colour)
    if thinks(group[0]):
        probe.plot(over(lambda each: own(each.frontier.probe, 1)), "--", color=colour)
    known = [hops for hops in range(1, HOPS + 1) if str(hops) in group[0].levels]
    values = [mean(each.levels[str(hops)].scores[SCORES[0]] for each in group) for hops in known]
    points = {hops: value for hops, value in zip(known, values, strict=True) if value is not None}
    score.plot([*points], [*points.values()], "o-", ms=3, color=colour)


STUDY = Study(
    "depth-latent",
    "How does a step of latent thought use the layers of a model?",
    grid,
    tables,
    draw,
    kind=ThoughtDepthReading,
)
