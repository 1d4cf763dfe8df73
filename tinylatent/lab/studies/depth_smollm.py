"""Study `depth-smollm`: how does a real small model use its layers on questions of one to three hops?

SmolLM2-135M-Instruct, which `make model` fetches, on multi-hop questions in its chat template with the right answer
behind each: every measurement of Csordás et al. 2025 (arXiv 2505.13898), in minutes on two cores. They find that depth
scores of large models do not grow with the difficulty of problems. Scores are told of all questions and of those that
it answers rightly: for what it cannot do it may use anything. Nothing is trained, so that intervals are over problems
of several draws, and say nothing of other models.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from tinylatent.evaluation.statistics import Interval, mean_interval
from tinylatent.lab.findings import Finding, decided
from tinylatent.lab.model_reading import ModelReading, ModelRecord
from tinylatent.lab.plots import figure
from tinylatent.lab.studies.by_hops import USED
from tinylatent.lab.studies.compare import grouped
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value

if TYPE_CHECKING:
    import matplotlib.axes  # which commands that draw nothing do not load

HOPS = (1, 2, 3)
SEEDS: dict[Profile, range] = {"quick": range(1), "full": range(5, 10)}
QUICK_PROBLEMS = 4
FAMILY = "depth of a real model"
OF = ("all questions", "questions answered rightly")
FEWEST = 4
"""Questions of every number of hops, without which there is no slope."""
Rows = list[dict[str, Value]]
Groups = Mapping[int, Sequence[ModelRecord]]


def grid(profile: Profile) -> list[ModelReading]:
    """Questions of every number of hops, drawn several times."""
    problems = QUICK_PROBLEMS if profile == "quick" else ModelReading(1).problems
    return [ModelReading(hops, seed, problems) for hops in HOPS for seed in SEEDS[profile]]


def tables(records: list[ModelRecord]) -> list[Table]:
    """Depth scores by number of hops, then every lens's means by layer."""
    groups = grouped(records, lambda record: record.reading.hops)
    return [
        _scores(groups),
        *(_by_layer(groups, name) for name in ("sizes", "lens")),
        _skips(groups),
        _tokens(groups),
        _outliers(groups),
    ]


def _scores(groups: Groups) -> Table:
    """Depth scores, of all questions and of those answered rightly, and how likely right answers are."""
    rows: Rows = []
    for of in OF:
        for hops, group in groups.items():
            for name in group[0].scores:
                values = _values(group, name, of)
                found = mean_interval(values) if len(values) > 1 else None
                row: dict[str, Value] = {"of": of, "hops": hops, "score of effects on": name}
                row |= dict.fromkeys(("mean", "low", "high"))
                if found is not None:
                    row |= {"mean": found.value, "low": found.low, "high": found.high}
                row["right answer"] = fmean(value for each in group for value in each.likely)
                rows.append(row | {"questions": len(values)})
    columns = {
        "of": "s", "hops": "d", "score of effects on": "s", "mean": ".2f", "low": ".2f", "high": ".2f",
        "right answer": ".3f", "questions": "d",
    }  # fmt: skip
    legend = (
        "the mean layer, counted from 0 to 29, weighted by what skipping it at all tokens before the answer is "
        "predicted does where it is, question by question, as the mean or the maximum over the answer's tokens; 95 % "
        f"intervals over questions. of: {OF[0]}, or those that the model answers rightly. right answer: its mean "
        "probability."
    )
    return Table("Depth scores of SmolLM2-135M-Instruct", columns, rows, legend, [*_findings(groups)])


def _values(group: Sequence[ModelRecord], name: str, of: str) -> list[float]:
    """A depth score of every question that is asked for."""
    return [
        value
        for each in group
        for value, right in zip(each.scores[name], each.right, strict=True)
        if right or of == OF[0]
    ]


def _findings(groups: Groups) -> Iterator[Finding]:
    for of in OF:
        for name in next(iter(groups.values()))[0].scores:
            values = {hops: _values(group, name, of) for hops, group in groups.items()}
            if min(map(len, values.values())) < FEWEST:
                continue
            yield _rises(
                f"{of}: the depth score of effects on the answer ({name}) grows with the number of hops", values
            )
    uses = {hops: last_uses(group) for hops, group in groups.items()}
    if min(map(len, uses.values())) >= FEWEST:
        yield _rises("tokens before the answer are used until a later layer in questions of more hops", uses)


def _rises(claim: str, values: Mapping[int, Sequence[float]]) -> Finding:
    """Whether what was measured of questions rises with their number of hops."""
    gap = _slope(values)
    told = f"{gap.value:+.2f} layers a hop [{gap.low:+.2f}, {gap.high:+.2f}]"
    return Finding(claim, decided(gap.low > 0, gap.high < 0), told, gap, "layers a hop", FAMILY)


def _slope(values: Mapping[int, Sequence[float]]) -> Interval:
    """Least-squares slope with a bootstrap interval over questions, those of each number of hops drawn anew."""
    rng = np.random.default_rng(0)
    hops = np.array([*values], float) - fmean(values)

    def slope(means: list[float]) -> float:
        return float(hops @ means / (hops @ hops))

    drawn = [slope([float(rng.choice(each, len(each)).mean()) for each in values.values()]) for _ in range(2000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(slope([fmean(each) for each in values.values()]), float(low), float(high), "bootstrap of questions")


def _numbers(group: Sequence[ModelRecord], lens: str, *names: str) -> dict[tuple[Value, ...], float]:
    """A lens's means by what its rows say, averaged over draws of questions."""
    seen = [each.seen[lens].rows for each in group]
    keys = [tuple(row[name] for name in names) for row in seen[0]]
    found = {}
    for place, key in enumerate(keys):
        found[key] = fmean(float(rows[place]["mean"] or 0.0) for rows in seen)
    return found


def _by_layer(groups: dict[int, list[ModelRecord]], lens: str) -> Table:
    """Means of a lens by layer, by number of hops."""
    names = ("measure", "layer") if lens == "sizes" else ("tokens", "measure", "layer")
    numbers = {hops: _numbers(group, lens, *names) for hops, group in groups.items()}
    rows: Rows = [
        {**dict(zip(names, key, strict=True)), **{f"{hops} hops": each[key] for hops, each in numbers.items()}}
        for key in next(iter(numbers.values()))
    ]
    columns = {name: "d" if name == "layer" else "s" for name in names} | {f"{hops} hops": ".3f" for hops in groups}
    first = next(iter(groups.values()))[0].seen[lens]
    return Table(first.title, columns, rows, first.legend)


def _skips(groups: Groups) -> Table:
    """What skipping a layer does to the output, and on average to later layers."""
    rows: Rows = []
    numbers = {hops: _numbers(group, "skip", "effect on", "skipped", "on") for hops, group in groups.items()}
    first = next(iter(numbers.values()))
    layers = 1 + max(int(skipped or 0) for _, skipped, _ in first)
    for kind in ("all", "all, mean", "all, attention", "all, mlp", "future", "direct"):
        for skipped in range(layers):
            row: dict[str, Value] = {"effect on": kind, "skipped": skipped}
            for hops, each in numbers.items():
                later = [each[kind, skipped, str(on)] for on in range(skipped + 1, layers)]
                row[f"layers, {hops}"] = fmean(later) if later else 0.0
                row[f"output, {hops}"] = each[kind, skipped, "output"]
            rows.append(row)
    columns = {"effect on": "s", "skipped": "d"}
    columns |= {f"{what}, {hops}": ".3f" for hops in groups for what in ("layers", "output")}
    legend = (
        "layers, k: mean of |c - c'| / |c| over later layers, in questions of k hops; output, k: distance of "
        "probabilities. all: skipped at all tokens but the first, or a part of it, or (mean) "
        "adding there what it adds on average; future: at all tokens before the "
        "answer is predicted, read where it is; direct: taken from one later layer's input alone. Means over tokens, "
        "questions and draws."
    )
    return Table("Effects of skipping a layer", columns, rows, legend)


def _questions(group: Sequence[ModelRecord], lens: str) -> Iterator[dict[int, Rows]]:
    """A lens's rows of every question that was looked into, by layer, without slots that predict the answer."""
    for record in group:
        seen = [row for row in record.seen[lens].rows if not row["predicts"]]
        for question in grouped(seen, lambda row: int(row["prompt"] or 0)).values():
            yield grouped(question, lambda row: int(row["layer"] or 0))


def last_uses(group: Sequence[ModelRecord]) -> list[float]:
    """The last layer before which a token is used that does not predict the answer, by question; -1 for none."""
    return [
        float(max((layer for layer, rows in found.items() if _most(rows) > USED), default=-1))
        for found in _questions(group, "erasure")
    ]


def _most(rows: Rows) -> float:
    """The largest effect of an erased token."""
    return max(float(row["effect"] or 0.0) for row in rows)


def _tokens(groups: Groups) -> Table:
    """What tokens before the answer do to it, layer by layer: erased one at a time, and attributed."""
    rows: Rows = []
    for hops, group in groups.items():
        erased, attributed = [*_questions(group, "erasure")], [*_questions(group, "attribution")]
        lasts = last_uses(group)
        for layer in erased[0]:
            effects = [[float(row["effect"] or 0.0) for row in found[layer]] for found in erased]
            shares = [[float(row["attribution"] or 0.0) for row in found[layer]] for found in attributed]
            rows.append(
                {
                    "hops": hops,
                    "layer": layer,
                    "largest effect": fmean(map(max, effects)),
                    "tokens used": fmean(sum(effect > USED for effect in each) for each in effects),
                    "still used": sum(last >= layer for last in lasts),
                    "attribution": fmean(sum(map(abs, each)) for each in shares),
                    "missed": max(abs(float(found[layer][0]["missed"] or 0.0)) for found in attributed),
                    "questions": len(effects),
                }
            )
    columns = {
        "hops": "d", "layer": "d", "largest effect": ".3f", "tokens used": ".2f", "still used": "d",
        "attribution": ".3f", "missed": ".3f", "questions": "d",
    }  # fmt: skip
    legend = (
        "of tokens before those that predict the answer. largest effect: of one token's residual before this layer "
        "replaced by the mean one, as the distance of the answer's probabilities; tokens used: how many have an effect "
        f"above {USED:g}; still used: questions that use one here or later. attribution: sum of the absolute "
        "integrated gradients of these residuals, in the log probability of the answer; missed: the most that "
        "attributions of all tokens miss what they should add up to. Means over questions."
    )
    return Table("Tokens that the answer uses, by layer", columns, rows, legend)


def _outliers(groups: Groups) -> Table:
    """Outlier features, over all draws and numbers of hops."""
    records = [each for group in groups.values() for each in group]
    rows: Rows = []
    for same in zip(*(each.seen["outliers"].rows for each in records), strict=True):
        cells: dict[str, Value] = {name: same[0][name] for name in ("tokens", "layer")}
        for name in ("kurtosis", "share", "max-median", "input correlation"):
            cells[name] = fmean(float(row[name] or 0.0) for row in same)
        rows.append(cells)
    first = records[0].seen["outliers"]
    return Table(first.title, first.columns, rows, f"{first.legend} Means over all questions' draws.")


def draw(records: list[ModelRecord], path: Path) -> None:
    """Relative contributions, cosines, the lens, and effects on the future, by number of hops."""
    groups = grouped(records, lambda record: record.reading.hops)
    with figure(path, 14, 3.4, columns=4) as (relative, cosine, lens, future):
        for (hops, group), colour in zip(groups.items(), ("#8fb0d9", "#3b6fb6", "#1f3f7a"), strict=False):
            sizes = _numbers(group, "sizes", "measure", "layer")
            for axes, measure in ((relative, "relative_layer"), (cosine, "cosine_layer")):
                _curve(axes, {layer: v for (name, layer), v in sizes.items() if name == measure}, hops, colour)
            seen = _numbers(group, "lens", "tokens", "measure", "layer")
            at = {layer: v for (tokens, name, layer), v in seen.items() if (tokens, name) == ("answer", "to_final")}
            _curve(lens, at, hops, colour)
            skips = _numbers(group, "skip", "effect on", "skipped", "on")
            _curve(
                future, {s: v for (kind, s, on), v in skips.items() if (kind, on) == ("future", "output")}, hops, colour
            )
        relative.set(title="contribution / residual", yscale="log")
        cosine.set(title="cosine of contribution and residual")
        lens.set(title="KL(lens || final) at the answer, nats")
        future.set(title="effect on the answer")
        for axes in (relative, cosine, lens, future):
            axes.set_xlabel("layer")
        future.legend()


def _curve(axes: "matplotlib.axes.Axes", values: dict[Value, float], hops: int, colour: str) -> None:
    places = [int(layer or 0) for layer in values]
    axes.plot(places, [*values.values()], "o-", ms=2, color=colour, label=f"{hops} hop{'s' * (hops > 1)}")


STUDY = Study(
    "depth-smollm",
    "How does a real small model use its layers on questions of one to three hops?",
    grid,
    tables,
    draw,
    kind=ModelReading,
)
