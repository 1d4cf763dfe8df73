"""Tables of study `latentr3` on recommendation: rankings against the ceiling, the tail, checks, costs, publications.

Records of a place are grouped by kind of arm (`recipes_latentr3`); arms are compared run by run, each with the one of
its seed. One arm ranks higher than another where it does by all three of JUDGED; where one number must do it is the hit
rate at 1. At 5, the first of the published cut-offs, the task asks for less: whoever knows a user's last item, but not
the intent, can list the few items that may follow.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from tinylatent.engine.controls import CONTROLS
from tinylatent.evaluation.ranking import KS, QUINTILES
from tinylatent.evaluation.statistics import Interval, mean_interval
from tinylatent.lab.findings import Finding, decided
from tinylatent.lab.recipes_latentr3 import ARMS, MORE, split
from tinylatent.lab.records import BEAM, ExperimentRecord
from tinylatent.lab.studies.compare import (
    Records,
    gained,
    needs_own,
    over_seeds,
    paired,
    percent,
    points,
    positive,
    ranking_of,
    rate,
    rate_difference,
)
from tinylatent.lab.tables import Table, Value

Groups = Mapping[str, Records]
"""Records of one place by kind."""
ITEMS = "items-"
EARLY = "early-"
AT, PUBLISHED_AT = 1, 5
"""The cut-off of what is told with one number, and that of the published ones."""
NAMES = {"hit": "hit rate", "ndcg": "NDCG"}
JUDGED = (("hit", 1), ("ndcg", 5), ("ndcg", 10))
"""What rankings are compared by."""
BY = "by hit rate at 1, NDCG at 5 and at 10"
WITHOUT = {
    "counts": "most asked for in training",
    "popularity": "most popular",
    "bayes": "the exact probability of each item",
}
"""Rankings without a model, in words."""
CONTRASTS = (
    ("attention", "direct"), ("attention", "constant"), ("attention", "hidden"), ("hidden", "direct"),
    ("sasrec", "attention"), ("everywhere", "attention"), ("everywhere", "sasrec"),
    *((more, "attention") for more in MORE),
    (f"{ITEMS}attention", f"{ITEMS}direct"), (f"{ITEMS}everywhere", f"{ITEMS}sasrec"),
    (f"{ITEMS}surrogate", f"{ITEMS}attention"), (f"{ITEMS}surrogate", f"{ITEMS}sasrec"),
    ("surrogate", f"{ITEMS}sasrec"), ("everywhere", f"{ITEMS}sasrec"),
)  # fmt: skip
"""Arms of which the first should rank higher, by what is published or asked: the first stage, and item tokens."""
PUBLISHED: dict[str, tuple[float, float, float, float]] = {
    "Toys": (0.0701, 0.0821, 0.0508, 0.0600),
    "CDs": (0.0757, 0.0934, float("nan"), float("nan")),
    "Games": (0.0461, 0.0580, float("nan"), float("nan")),
    "Instruments": (0.0938, 0.1029, float("nan"), float("nan")),
    "Toys, D3": (0.0830, 0.0898, 0.0610, 0.0670),
    "CDs, D3": (0.1122, 0.1137, float("nan"), float("nan")),
    "Games, D3": (0.0608, 0.0716, float("nan"), float("nan")),
    "Instruments, D3": (0.0984, 0.1066, float("nan"), float("nan")),
}
"""Hit rate at 5 without and with LatentR3, then NDCG at 5, where it is known."""
ABLATIONS: dict[str, tuple[str, float, float]] = {
    "no latent": ("direct", 0.0701, 0.0757),
    "raw hidden state": ("hidden", 0.0772, 0.0705),
    "first stage alone": ("attention", 0.0804, 0.0830),
    "group baseline": ("group", 0.0812, 0.0828),
    "all of it": ("surrogate", 0.0821, 0.0934),
}
"""Arm of ours, and published hit rate at 5 on Toys and on CDs."""


def rank_lead(
    ours: Records, theirs: Records, figure: str = "hit", k: int = AT, quintile: int | None = None
) -> Interval:
    """Hit rate or NDCG of one arm minus another's, on the same problems, seed by seed."""
    return rate_difference(*paired(ours, theirs), figure, k, quintile=quintile)


def higher(claim: str, ours: Records, theirs: Mapping[str, Records], family: str = "") -> Finding:
    """Whether an arm ranks higher than all others, by their names, at every cut-off of JUDGED."""
    gaps = {
        f"{name}, {NAMES[figure]} at {k}": rank_lead(ours, group, figure, k)
        for name, group in theirs.items()
        for figure, k in JUDGED
    }
    return replace(needs_own(claim, gaps, len(ours)), family=family)


def label(arm: str) -> str:
    """What tables call an arm, and where it is if not in the main place."""
    where = {"": "", ITEMS: ", item tokens", EARLY: ", short first stage"}
    return ARMS[arm][0] + where[split(arm)[0]]


# ---------------------------------------------------------------------------------------------------------------------
# Rankings


def rankings(figure: str, groups: Groups) -> Table:
    """A row an arm, and a row a ranking without a model: a figure at every cut-off, and the ceiling."""
    rows: list[dict[str, Value]] = []
    for arm, group in groups.items():
        row: dict[str, Value] = {"arm": label(arm), "rate": group[0].experiment.training.learning_rate}
        rows.append({**row, **_at_all(group, figure), "seeds": len(group)})
    some = next(iter(groups.values()))
    for way, words in WITHOUT.items():
        rows.append({"arm": words, **_at_all(some, figure, way), "seeds": len(some)})
    best = {f"at {k}": 100 * fmean(ranking_of(each).ceiling[figure][str(k)] for each in some) for k in KS}
    rows.append({"arm": "ceiling", **best, "seeds": len(some)})
    columns = {"arm": "s", "rate": "g"}
    for k in KS:
        columns |= {f"at {k}": ".2f", f"low {k}": ".2f", f"high {k}": ".2f"}
    legend = (
        f"{NAMES[figure]} in percent among all titles, ranked by the log-probability of their tokens; mean over seeds "
        "with its 95 % interval over seeds and users (Student's t over seeds where that is wider). Users of the "
        "validation part are none of training. ceiling: the highest that can be expected, since the next item is "
        "partly chance; ranking by exact probabilities attains it but for luck. rate: peak learning rate, of every "
        "kind of arm its own, but for more latents, which share that of one. Arms of the second stage start from "
        "attention. learned constant: as many slots and forwards as attention, without content. NDCG at 1 is the hit "
        "rate."
    )
    found = [_below_ceiling(figure, groups), *(_contrasts(groups) if figure == "hit" else ())]
    title = f"Recommendation: {NAMES[figure]} of every arm, against the ceiling"
    return Table(title, {**columns, "seeds": "d"}, rows, legend, found)


def _at_all(group: Records, figure: str, way: str = "default") -> dict[str, Value]:
    """A figure at every cut-off with its interval, as cells."""
    cells: dict[str, Value] = {}
    for k in KS:
        cells |= percent(rate(group, figure, k, way), f"at {k}", f"low {k}", f"high {k}")
    return cells


def _below_ceiling(figure: str, groups: Groups) -> Finding:
    """Whether no arm stands above the ceiling at any cut-off; intervals are corrected for how many are looked at."""
    level, found = 1 - 0.05 / (len(groups) * len(KS)), {}
    for arm, group in groups.items():
        for k in KS:
            over = [ranking_of(record).excess[figure][str(k)].value for record in group]
            found[f"{label(arm)} at {k}"] = mean_interval(over, level) if len(over) > 1 else over_seeds(over)
    name = max(found, key=lambda each: found[each].low)
    above = found[name].low > 0
    runs = min(map(len, groups.values()))
    return Finding(
        f"no arm's {NAMES[figure]} is above the ceiling by more than sampling explains",
        decided(not above, above, runs),
        f"the nearest is {name}, {points(found[name])}",
        found[name],
        family="ceiling",
        runs=runs,
    )


def _contrasts(groups: Groups) -> Iterator[Finding]:
    """Whether arms of the first stage, and those of item tokens, rank as published or asked."""
    for ours, theirs in CONTRASTS:
        if {ours, theirs} <= groups.keys():
            claim = f"{label(ours)} ranks higher than {label(theirs)}, {BY}"
            family = "latents" if ours in MORE else "first stage"
            yield higher(claim, groups[ours], {label(theirs): groups[theirs]}, family)


# ---------------------------------------------------------------------------------------------------------------------
# The tail


TAIL = ("attention", "surrogate", "likelihood", "plain")
"""Arms whose gains over direct answers are told by popularity."""


def tail(groups: Groups) -> Table:
    """A row an arm and fifth of the items by popularity: absolute and relative gains over direct answers."""
    rows: list[dict[str, Value]] = []
    findings: list[Finding] = []
    direct = groups["direct"]
    for kind in ("direct", *(each for each in TAIL if each in groups)):
        group = groups[kind]
        for fifth in range(1, QUINTILES + 1):
            asked = fmean(fmean(each == fifth for each in ranking_of(record).quintile) for record in group)
            best = fmean(ranking_of(each).by_quintile["hit"][str(AT)][fifth - 1] for each in group)
            row: dict[str, Value] = {"arm": ARMS[kind][0], "fifth": fifth, "asked": 100 * asked, "ceiling": 100 * best}
            if all(fifth in ranking_of(record).quintile for record in group):
                row |= percent(rate(group, "hit", AT, quintile=fifth), "hit")
                if kind != "direct":
                    row |= percent(rank_lead(group, direct, quintile=fifth), "gain", "gain low", "gain high")
                    base = rate(direct, "hit", AT, quintile=fifth).value
                    row["relative"] = 100 * rank_lead(group, direct, quintile=fifth).value / base if base else None
            rows.append(row)
        if kind != "direct":
            findings += _tail_gains(kind, group, direct)
    columns = {
        "arm": "s", "fifth": "d", "asked": ".1f", "ceiling": ".2f", "hit": ".2f", "low": ".2f", "high": ".2f",
        "gain": "+.2f", "gain low": "+.2f", "gain high": "+.2f", "relative": "+.1f",
    }  # fmt: skip
    legend = (
        "fifth: of the items by popularity, 1 the most popular, equally many items each. asked: percent of the "
        f"problems whose right item is in it. hit: hit rate at {AT} in percent; ceiling: what the ranking by exact "
        "probabilities expects there, which another ranking may exceed at a cost elsewhere. gain: over direct answers "
        "in points; relative: the same in percent of theirs. A relative gain may be larger where less is right to "
        "begin with, though the absolute one is not: both are told. Findings compare the last fifth with the first, "
        "run by run (Student's t)."
    )
    return Table("Recommendation: gains by popularity", columns, rows, legend, findings)


def _tail_gains(kind: str, group: Records, direct: Records) -> Iterator[Finding]:
    """Whether the gain over direct answers is larger in the least popular fifth than in the most popular."""
    pairs = [*zip(*paired(group, direct), strict=True)]
    rare = all({1, QUINTILES} <= {*ranking_of(record).quintile} for record in (*group, *direct))
    rates = [[_both(record) for record in pair] for pair in pairs] if rare else []
    absolute = [(ours[1] - theirs[1]) - (ours[0] - theirs[0]) for ours, theirs in rates]
    relative = [ours[1] / theirs[1] - ours[0] / theirs[0] for ours, theirs in rates if min(theirs) > 0]
    for word, values in (("absolute", absolute), ("relative", relative)):
        if len(values) == len(pairs):  # else a fifth is never asked for, or never right
            claim = f"{ARMS[kind][0]}: the {word} gain over direct answers is larger for the least popular items"
            yield positive(claim, over_seeds(values), len(values), "long tail")


def _both(record: ExperimentRecord) -> tuple[float, float]:
    """The hit rate of one run in the most and in the least popular fifth."""
    gains = [gained([record], "hit", AT, quintile=fifth) for fifth in (1, QUINTILES)]
    first, last = (sum(gain[0]) / sum(most[0]) for gain, most in gains)
    return first, last


# ---------------------------------------------------------------------------------------------------------------------
# Checks


NEAR = 0.01
"""A hit rate apart by less is called the same."""


def beams(groups: Groups) -> Table:
    """A row an arm: hit rates by scores of all titles and by a beam of ten."""
    rows: list[dict[str, Value]] = []
    findings = []
    for arm, group in groups.items():
        row: dict[str, Value] = {"arm": label(arm)}
        for k in KS:
            row |= {f"all {k}": 100 * rate(group, "hit", k).value, f"beam {k}": 100 * rate(group, "hit", k, BEAM).value}
        gap = rate_difference(group, group, "hit", KS[-1], BEAM)
        rows.append({**row, **percent(gap, "lost")})
        verdict = decided(max(-gap.low, gap.high) < NEAR, gap.low > NEAR or gap.high < -NEAR, len(group))
        claim = f"{label(arm)}: a beam of ten stands in for scores of all titles, to a point of the hit rate at 10"
        findings.append(Finding(claim, verdict, points(gap), gap, family="beams", runs=len(group)))
    columns = {"arm": "s", **{f"{way} {k}": ".2f" for k in KS for way in ("all", "beam")}}
    legend = (
        "Hit rates in percent. all: every title scored, as in the other tables. beam: the ten likeliest prefixes are "
        "kept at every token, only those of titles among them, as published; a title that is not listed is the last. "
        "lost: what the beam loses at 10, in points, with its interval."
    )
    columns |= {"lost": "+.2f", "low": "+.2f", "high": "+.2f"}
    return Table("Recommendation: beams of ten, as a check", columns, rows, legend, findings)


def controls(groups: Groups) -> Table:
    """A row an arm with latents: hit rate with its latents replaced."""
    rows: list[dict[str, Value]] = []
    findings = []
    for arm, group in groups.items():
        if set(CONTROLS) <= ranking_of(group[0]).ranks.keys():
            gaps = {control: rate_difference(group, group, "hit", AT, control) for control in CONTROLS}
            replaced = {control: 100 * rate(group, "hit", AT, control).value for control in CONTROLS}
            rows.append({"arm": label(arm), "hit": 100 * rate(group, "hit", AT).value, **replaced})
            findings.append(needs_own(f"{label(arm)} needs its own latents, by hit rate at {AT}", gaps, len(group)))
    columns = {"arm": "s", "hit": ".2f", **dict.fromkeys(CONTROLS, ".2f")}
    legend = (
        f"Hit rate at {AT} in percent, and with every latent replaced by noise of its norm, by another problem's, and "
        "by nothing. A learned constant is the same for all problems, so that it has no latent to replace."
    )
    return Table("Recommendation: are the latents used?", columns, rows, legend, findings)


def costs(groups: Groups) -> Table:
    """A row an arm: seconds and operations of training, its start's told apart, and what an answer costs."""
    rows: list[dict[str, Value]] = []
    for arm, group in groups.items():
        costs = [record.cost for record in group]
        each, steps = fmean(cost.training_seconds for cost in costs), group[0].experiment.training.steps
        row: dict[str, Value] = {"arm": label(arm), "train_s": each, "ms a step": 1000 * each / steps}
        row |= {"training": fmean(cost.training_flops for cost in costs) / 1e12}
        row |= {"answer": fmean(cost.flops for cost in costs) / 1e6, "slots": fmean(cost.slots for cost in costs)}
        rows.append({**row, "starts": "attention" if group[0].experiment.start is not None else ""})
    columns = {
        "arm": "s", "starts": "s", "train_s": ".0f", "ms a step": ".1f", "training": ".3f", "answer": ".3f",
        "slots": ".0f",
    }  # fmt: skip
    legend = (
        "train_s: wall-clock seconds of one core, mean over seeds, of the arm alone: a second stage comes on top of "
        "the first, named in starts. training: floating-point operations in units of 10^12, counting a prompt for "
        "every rollout, though a group reads it once. answer: operations of solving a problem, in units of 10^6; the "
        "attention's own are not counted. slots: read for it. Rewards decode nothing here; rollouts that sample "
        "answers, which the paper compares with, are no arm."
    )
    return Table("Recommendation: what arms cost", columns, rows, legend)


def published(groups: Groups) -> Table:
    """Published hit rates and gains, and the same contrasts here."""
    rows: list[dict[str, Value]] = []
    for name, (without, with_it, ndcg, ndcg_with) in PUBLISHED.items():
        row: dict[str, Value] = {"what": f"published: {name}", "without": 100 * without, "with": 100 * with_it}
        row |= {"gain": 100 * (with_it - without), "relative": 100 * (with_it / without - 1)}
        if ndcg == ndcg:  # not NaN
            row |= {"ndcg without": 100 * ndcg, "ndcg with": 100 * ndcg_with}
        rows.append(row)
    for name, (kind, toys, cds) in ABLATIONS.items():
        for where, value, base in (("Toys", toys, 0.0701), ("CDs", cds, 0.0757)):
            relative = 100 * (value / base - 1)
            cells: dict[str, Value] = {"without": 100 * base, "with": 100 * value, "gain": 100 * (value - base)}
            rows.append({"what": f"published: {where}, {name}", **cells, "relative": relative})
        if {kind, "direct"} <= groups.keys():
            rows.append({"what": f"measured: {name}", **_beside_direct(groups[kind], groups["direct"])})
    columns = {
        "what": "s", "without": ".2f", "with": ".2f", "gain": "+.2f", "relative": "+.1f", "ndcg without": ".2f",
        "ndcg with": ".2f",
    }  # fmt: skip
    legend = (
        f"Hit rate and NDCG at {PUBLISHED_AT} in percent. published: Qwen2.5-1.5B on reviews of Amazon, from notes "
        "about the paper, whose text was not at hand (*unverified*); no seeds or intervals were seen. On their test "
        "sets of about six thousand problems one hit rate near .08 has a standard error of .35 points. with: "
        "LatentR3, or the ablation that is named; without: the same recommender, BIGRec unless D3 is named, and here "
        "direct answers. measured: 200 synthetic items and another model, so that signs and order can be compared, not "
        "sizes."
    )
    return Table("Beside what was published", columns, rows, legend, _published_order(groups))


def _beside_direct(group: Records, direct: Records) -> dict[str, Value]:
    """Hit rate and NDCG of an arm beside direct answers, as cells."""
    without, with_it = (rate(each, "hit", PUBLISHED_AT).value for each in (direct, group))
    cells: dict[str, Value] = {"without": 100 * without, "with": 100 * with_it, "gain": 100 * (with_it - without)}
    cells["relative"] = 100 * (with_it / without - 1) if without else None
    return cells | {
        f"ndcg {way}": 100 * rate(each, "ndcg", PUBLISHED_AT).value
        for way, each in {"without": direct, "with": group}.items()
    }


def _published_order(groups: Groups) -> Sequence[Finding]:
    """Whether the published order of ablations is there."""
    found = []
    for ours, theirs in (("surrogate", "direct"), ("surrogate", "attention"), ("surrogate", "group")):
        if {ours, theirs} <= groups.keys():
            claim = f"{ARMS[ours][0]} ranks higher than {ARMS[theirs][0]} by hit rate at {PUBLISHED_AT}, as published"
            gap = rank_lead(groups[ours], groups[theirs], k=PUBLISHED_AT)
            found.append(positive(claim, gap, len(groups[ours]), "published"))
    return found
