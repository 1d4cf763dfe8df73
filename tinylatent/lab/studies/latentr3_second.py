"""Tables of study `latentr3` about the second stage: what it adds to the first, its rewards, and the way it points.

Whether reinforcement earns its gain is asked by the three figures of `latentr3_tables.JUDGED` at once; that the second
stage leaves a ranking as it is, by a margin written down before any run. Rewards are told without noise, on problems
that were not trained on, since logged ones compare different batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.directions import CASES, cosines
from tinylatent.lab.findings import Finding, decided
from tinylatent.lab.recipes_latentr3 import ARMS, LONG, PLACES, SECOND
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.compare import (
    Records,
    course,
    over_seeds,
    paired,
    percent,
    placed,
    points,
    ranking_of,
    rate,
)
from tinylatent.lab.studies.hrpo_tables import signed
from tinylatent.lab.studies.latentr3_tables import BY, JUDGED, NAMES, PUBLISHED_AT, Groups, higher, rank_lead
from tinylatent.lab.tables import Table, Value
from tinylatent.methods import LatentR3RL

MARGIN = 0.01
"""A ranking that moves by less at all of JUDGED is called the same; written down before any run."""
CREDIT = {"likelihood": "the likelihood with noise", "plain": "the likelihood without", "attention": "its start"}
"""What reinforcement must beat before it earns credit, by arm, in words."""


def second(groups: Groups, prefix: str = "") -> Table:
    """A row an estimator: what it adds to the first stage of its place."""
    rows: list[dict[str, Value]] = []
    start, here = groups["attention"], _second(groups)
    for kind, group in {"attention": start, **here}.items():
        row: dict[str, Value] = {"arm": ARMS[prefix + kind][0], "rate": group[0].experiment.training.learning_rate}
        for figure, k in JUDGED:
            name = f"{figure} {k}"
            row[name] = 100 * rate(group, figure, k).value
            if kind in here:
                gain = rank_lead(group, start, figure, k)
                row |= percent(gain, f"gain {name}", f"low {name}", f"high {name}")
        if kind in here:
            row[f"gain hit {PUBLISHED_AT}"] = 100 * rank_lead(group, start, k=PUBLISHED_AT).value
        row["seeds"], row["train_s"] = len(group), fmean(each.cost.training_seconds for each in group)
        rows.append(row)
    columns = {"arm": "s", "rate": "g"}
    for figure, k in JUDGED:
        columns |= {f"{figure} {k}": ".2f", **{f"{each} {figure} {k}": "+.2f" for each in ("gain", "low", "high")}}
    columns |= {f"gain hit {PUBLISHED_AT}": "+.2f", "seeds": "d", "train_s": ".0f"}
    legend = (
        "hit, ndcg: hit rate and NDCG in percent at a cut-off; gain, low, high: over the first stage it starts from, "
        "on the same problems, with its 95 % interval. All second stages train the attention alone, for as many steps "
        "on as many prompts, each at a rate of its own; the last, ten times as long, shows whether there is anything "
        "to gain. likelihood with noise, and without: no advantages, the right answer's likelihood is raised; RL earns "
        "credit where it beats both and its start at all three cut-offs. A ranking that moves by less than "
        f"{100 * MARGIN:g} point at all three is called the same. train_s: seconds of the stage alone."
    )
    where = PLACES[prefix].title
    found = [placed(where, each) for each in (*credits_of(groups, prefix), *_gains(start, here, prefix))]
    return Table(f"{where.capitalize()}: what the second stage adds", columns, rows, legend, found)


def rewards(groups: Groups, prefix: str = "") -> Table:
    """A row an estimator: its reward without noise on problems it was not trained on, and the way its update points."""
    rows: list[dict[str, Value]] = []
    start, here = groups["attention"], _second(groups)
    for kind, group in {"attention": start, **here}.items():
        row: dict[str, Value] = {"arm": ARMS[prefix + kind][0]}
        row |= {"reward": fmean(map(reward_of, group)), "nll": fmean(map(nll_of, group))}
        if kind in here:
            gain = _likelier(group, start)
            row |= {"gain": gain.value, "low": gain.low, "high": gain.high}
            found = cosines(_method(kind))
            row |= {"cosine": fmean(found), "least": min(found), "most": max(found)}
            row |= dict.fromkeys(("trained", "trained low", "trained high"))
            if (trained := _trained(group)) is not None:
                row |= {"trained": trained.value, "trained low": trained.low, "trained high": trained.high}
            row["one sign"] = _logged(group, "one_signed", 1.0)
        rows.append({**row, "seeds": len(group)})
    columns = {
        "arm": "s", "reward": ".4f", "nll": ".4f", "gain": "+.4f", "low": "+.4f", "high": "+.4f",
        "cosine": "+.2f", "least": "+.2f", "most": "+.2f", "trained": "+.2f",
        "trained low": "+.2f", "trained high": "+.2f", "one sign": ".2f", "seeds": "d",
    }  # fmt: skip
    legend = (
        "reward: minus the perplexity of the right title, nll: its mean negative log-likelihood over tokens in nats, "
        "both without noise and on average over the validation problems, whose users training does not know; gain: "
        "nats a token that right titles are likelier than after the first stage, with its 95 % interval (Student's t "
        "over seeds); a mean of perplexities is that of a few titles, so that it is not judged. cosine, least, most: "
        "of the update with the slope of the expected reward in the attention's weights, by finite differences, over "
        f"{CASES} small cases with random weights, computed anew with this table (`lab/directions.py`); without noise, "
        "with the slope under the usual noise. trained: the same in the models that the stage starts from, of batches, "
        "groups and noise as in training, with the pathwise gradient over many batches, mean over batches and seeds "
        "with its 95 % interval over seeds; the pathwise arm itself tells what a batch can reach. one sign: share of "
        "prompts whose advantages all have one sign, at the end of training."
    )
    where = PLACES[prefix].title
    found_here = [placed(where, _raised(ARMS[prefix + kind][0], group, start)) for kind, group in here.items()]
    found_here += [
        placed(where, each) for kind, group in here.items() for each in _points(ARMS[prefix + kind][0], group)
    ]
    found_here += [] if prefix else [*_directions(here)]
    return Table(f"{where.capitalize()}: rewards, and which way updates point", columns, rows, legend, found_here)


def _second(groups: Groups) -> Groups:
    """The second stages among arms."""
    return {kind: groups[kind] for kind in SECOND if kind in groups}


def nll_of(record: ExperimentRecord) -> float:
    """Mean negative log-likelihood of right titles' tokens, in nats."""
    return fmean(ranking_of(record).nll)


def reward_of(record: ExperimentRecord) -> float:
    """Mean reward of a run without noise: minus the perplexity of the right title."""
    return -float(np.exp(ranking_of(record).nll).mean())


def _likelier(group: Records, start: Records) -> Interval:
    """Nats a token that right titles are likelier than after the first stage, over seeds."""
    return over_seeds([nll_of(other) - nll_of(mine) for mine, other in zip(*paired(group, start), strict=True)])


def _raised(name: str, group: Records, start: Records) -> Finding:
    """Whether a second stage makes right titles likelier, without noise, as every reward here asks.

    It is judged by the mean log-likelihood: means of perplexities are those of a few titles.
    """
    found = _likelier(group, start)
    low, value, high = (f"{x:+.4f}" for x in (found.low, found.value, found.high))
    claim, verdict = f"{name} makes right titles likelier", decided(found.low > 0, found.high < 0, len(group))
    return Finding(claim, verdict, f"{value} nats a token [{low}, {high}]", found, "nats", "rewards", runs=len(group))


def _trained(group: Records) -> Interval | None:
    """The cosine of updates in the trained models, with its interval over seeds; None where it was not measured."""
    values = [fmean(record.before.cosines) for record in group if record.before is not None and record.before.cosines]
    return over_seeds(values) if len(values) == len(group) else None


def _points(name: str, group: Records) -> Iterator[Finding]:
    """Whether an estimator's update follows the slope of its expected reward in the trained models."""
    if (found := _trained(group)) is not None:
        claim = f"{name}: in the trained models its update follows the slope of the expected reward"
        verdict = decided(found.low > 0, found.high < 0, len(group))
        yield Finding(claim, verdict, signed(found), found, "cosine", "trained directions", runs=len(group))


def _method(kind: str) -> LatentR3RL:
    """The method of a second stage."""
    method = ARMS[kind][1]
    assert isinstance(method, LatentR3RL)
    return method


def _logged(group: Records, metric: str, at: float) -> float | None:
    """The mean of a logged metric at a share of the run; None where it was not logged."""
    values = course(group, metric, at)
    return fmean(values) if values else None


def credits_of(groups: Groups, prefix: str = "") -> Iterator[Finding]:
    """Whether reinforcement earns its gain: an estimator beats likelihoods at equal steps, and its start."""
    for kind in ("surrogate", "surrogate-nll", "score", "score-nll"):
        if {kind, *CREDIT} <= groups.keys():
            claim = (
                f"{ARMS[prefix + kind][0]}: reinforcement earns its gain: it ranks higher than training on the "
                f"likelihood, with noise and without, and than its start, {BY}"
            )
            yield higher(claim, groups[kind], {words: groups[arm] for arm, words in CREDIT.items()}, "credit")


def _gains(start: Records, here: Groups, prefix: str) -> Iterator[Finding]:
    """Whether each second stage improves the first, or leaves it, and how they compare with the published one."""
    for kind, group in here.items():
        name = ARMS[prefix + kind][0]
        yield higher(f"{name}: the second stage improves the first, {BY}", group, {"its start": start}, "second stage")
        yield _same(f"{name}: the second stage moves the ranking by less than a point, {BY}", group, start)
    for ours, theirs in (
        ("surrogate", "likelihood"), ("surrogate", "plain"), ("surrogate", "group"), ("surrogate", "published"),
        ("surrogate-nll", "surrogate"), ("score", "surrogate"), ("score-nll", "score"), ("pathwise", "surrogate"),
        (LONG, "surrogate"),
    ):  # fmt: skip
        if {ours, theirs} <= here.keys():
            mine, other = (ARMS[prefix + kind][0] for kind in (ours, theirs))
            yield higher(f"{mine} ranks higher than {other}, {BY}", here[ours], {other: here[theirs]}, "estimators")


def _same(claim: str, group: Records, start: Records) -> Finding:
    """Whether a ranking moves by less than MARGIN at all of JUDGED; the estimate is the largest move."""
    gaps = [rank_lead(group, start, figure, k) for figure, k in JUDGED]
    inside = all(max(-gap.low, gap.high) < MARGIN for gap in gaps)
    outside = any(gap.low > MARGIN or gap.high < -MARGIN for gap in gaps)
    told = ", ".join(f"{points(gap)} {NAMES[figure]} at {k}" for gap, (figure, k) in zip(gaps, JUDGED, strict=True))
    most = max(gaps, key=lambda gap: abs(gap.value))
    return Finding(claim, decided(inside, outside, len(group)), told, most, family="same", runs=len(group))


def _directions(here: Groups) -> Iterator[Finding]:
    """Whether each estimator's update follows the slope of its expected reward in the small case."""
    for kind in here:
        yield follows(ARMS[kind][0], cosines(_method(kind)))


def follows(name: str, found: Sequence[float]) -> Finding:
    """Whether updates follow the slope of their expected reward in small cases, by their cosines.

    Estimates have three decimals, which are the same on every processor.
    """
    whole = over_seeds(found)
    claim = f"{name}: in small cases its update follows the slope of the expected reward"
    told = replace(whole, value=round(whole.value, 3), low=round(whole.low, 3), high=round(whole.high, 3))
    verdict = decided(whole.low > 0, whole.high < 0, len(found))
    return Finding(claim, verdict, signed(whole), told, "cosine", "directions", runs=len(found))
