"""Tables of study `hrpo`: accuracy before and after, the course of the hidden ratio beside its controls, and lengths.

Records of a place are grouped by kind of arm (`recipes_hrpo`); arms are compared run by run, each with the one of its
seed.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from tinylatent.engine.controls import CONTROLS as REPLACED
from tinylatent.evaluation.statistics import Interval, paired_difference
from tinylatent.lab.findings import Finding, decided
from tinylatent.lab.recipes_hrpo import FREELY, KINDS
from tinylatent.lab.records import DEFAULT, ExperimentRecord
from tinylatent.lab.studies.compare import (
    Records,
    accuracy,
    before,
    course,
    difference,
    latents_matter,
    lead,
    logged,
    needs_own,
    over_seeds,
    paired,
    percent,
    placed,
    positive,
    rights,
    totals,
)
from tinylatent.lab.tables import Table, Value

Groups = Mapping[str, Records]
"""Records of one place by kind."""
RIVALS = {
    "token": "token-only GRPO",
    "noise": "HRPO with noise of their norm in place of soft tokens",
    "shuffled": "HRPO with another problem's soft tokens",
    "zero": "HRPO with zero in place of soft tokens",
    "fixed": "HRPO with gates that do not learn",
}
"""What HRPO is compared with, by arm, in words."""
VARIANTS = {
    "hrpo" + FREELY: "without weight decay on Lambda, HRPO ends higher",
    "r90": "started at r_min .9 instead of .5, HRPO ends higher",
    "r95": "started at r_min .95 instead of .5, HRPO ends higher",
    "r99": "started at r_min .99 instead of .5, HRPO ends higher",
    "official": "in the official code's mode, HRPO ends higher",
    "rates": "with the published factors of the learning rate, HRPO ends higher",
    "graph": "with gradients through soft tokens, HRPO ends higher",
}
ABSENT = {
    "permuted": "its rewards permuted within groups",
    "unrewarded": "no rewards",
    "decay": "weight decay alone",
    "noise": "noise of their norm in place of soft tokens",
    "shuffled": "another problem's soft tokens",
    "zero": "zero in place of soft tokens",
}
"""What HRPO's hidden ratio is held against, by arm, in words: rewards that tell nothing, and latents that do not."""
PUBLISHED: dict[str, tuple[float, float]] = {
    "GSM8K, greedy, best of a grid": (71.1, 72.0),
    "MATH, greedy, best of a grid": (50.2, 51.8),
    "MATH500, greedy, best of a grid": (52.4, 53.6),
    "MMLU-ST, greedy, best of a grid": (56.2, 56.9),
    "ARC-C, greedy, best of a grid": (73.7, 74.2),
    "GSM8K, sampled": (71.0, 71.2),
    "MATH, sampled": (51.0, 51.5),
    "MATH500, sampled": (51.2, 51.7),
    "MMLU-ST, sampled": (55.4, 56.5),
    "ARC-C, sampled": (72.2, 73.1),
}
"""Accuracy of GRPO and of HRPO in percent, Qwen2.5-1.5B, tables 2 and 9 of the paper."""


def gain(group: Records) -> Interval:
    """Accuracy after minus before, on the same problems."""
    return paired_difference(rights(group), before(group), totals(group))


def against(ours: Records, theirs: Records, metric: str) -> Interval:
    """A logged metric of one arm minus another's, seed by seed, at the last step where both runs of a seed logged it.

    Raises:
        ValueError: two runs of a seed have no such step.
    """
    gaps = []
    for pair in zip(*paired(ours, theirs), strict=True):
        mine, other = (logged(record, metric) for record in pair)
        if not mine.keys() & other.keys():
            raise ValueError(f"runs {pair[0].id} and {pair[1].id} share no step with {metric}: expected one at least")
        last = max(mine.keys() & other.keys())
        gaps.append(mine[last] - other[last])
    return over_seeds(gaps)


DIGITS = 3


def signed(gap: Interval) -> str:
    """A difference with its interval."""
    return f"{gap.value:+.{DIGITS}f} [{gap.low:+.{DIGITS}f}, {gap.high:+.{DIGITS}f}]"


def above(gap: Interval) -> bool:
    """Whether a whole interval is above 0 as it is told: a bound that is told as 0 decides nothing."""
    return round(gap.low, DIGITS) > 0


def below(gap: Interval) -> bool:
    """Whether a whole interval is below 0 as it is told."""
    return round(gap.high, DIGITS) < 0


# ---------------------------------------------------------------------------------------------------------------------
# Accuracy


def accuracies(place: str, groups: Groups) -> Table:
    """A row an arm: accuracy before and after, with the gate shut at test time, and under controls."""
    rows: list[dict[str, Value]] = []
    for arm, group in groups.items():
        row: dict[str, Value] = {"arm": KINDS[arm][0], "rate": group[0].experiment.training.learning_rate}
        starts = [sum(right) / sum(of) for right, of in zip(before(group), totals(group), strict=True)]
        row |= {"before": 100 * fmean(starts), "least": 100 * min(starts), "most": 100 * max(starts)}
        row |= percent(accuracy(group), "after") | percent(gain(group), "gain", "gain low", "gain high")
        for other in ("tokens", "sharp", *REPLACED):
            known = other in group[0].evaluations
            row[other] = 100 * accuracy(group, other).value if known else None
        row["through"] = 100 * fmean(map(through, group))
        row["seeds"] = len(group)
        row["tflop"] = fmean([record.cost.training_flops for record in group]) / 1e12
        rows.append(row)
    columns = {
        "arm": "s", "rate": "g", "before": ".2f", "least": ".2f", "most": ".2f", "after": ".2f", "low": ".2f",
        "high": ".2f", "gain": "+.2f", "gain low": "+.2f", "gain high": "+.2f", "tokens": ".2f", "sharp": ".2f",
        "noise": ".2f", "shuffled": ".2f", "zero": ".2f", "through": ".0f", "seeds": "d", "tflop": ".2f",
    }  # fmt: skip
    legend = (
        "before, after: percent of the validation part, greedy, latents as in training; mean over seeds, after with "
        "its 95 % interval (bootstrap over seeds and keys; Student's t over seeds where that is wider). least, most: "
        "of the seeds' starts, which differ. gain: after minus before, problem by problem. rate: chosen by study "
        "hrpo-tuning, for tokens alone, for HRPO, which its variants share, and for noise, which all controls share. "
        "tokens: the gate shut at test time; sharp: soft tokens at temperature .1; noise, shuffled, zero: soft tokens "
        "replaced at test time; where the gate is shut the whole token is fed, under zero a share of it alone, an "
        "input smaller than any that was trained. Arms of these names are trained so. through: percent of the runs "
        "that leave at most half of the errors of their start on tokens. Runs of a seed share start, problems and "
        "order, and differences are of such pairs. What a control does to the start itself (before) is part of how it "
        "ends. fixed gate: gates as they start. official mode: drawn at temperature .5 among the 50 likeliest tokens, "
        "which here are all, scored at 1. permuted rewards: those of each group in random order. no rewards: weight "
        "decay and the divergence from the start; weight decay alone: without the divergence, too. no decay of Lambda: "
        "all other weights decay as ever. tflop: operations of a run's training, in 10^12."
    )
    title = f"{place.capitalize()}: group advantages on tokens, and with soft tokens mixed in"
    found = [*_gains(groups), *_rivals(groups), *_gate_off(groups)]
    return Table(title, columns, rows, legend, [placed(place, each) for each in found], _other_starts(groups))


def _other_starts(groups: Groups) -> list[str]:
    """A remark on arms whose starts, read on tokens, are not those of most arms, though of the same seeds."""
    starts = {arm: tuple(tuple(on_tokens(record)) for record in group) for arm, group in groups.items()}
    usual = Counter(starts.values()).most_common(1)[0][0]
    others = [KINDS[arm][0] for arm, start in starts.items() if start != usual]
    if not others:
        return []
    told = "Not from the same weights as the other arms, but from starts of the same seeds that were trained elsewhere"
    return [f"{told}, where rounding led to others: {', '.join(others)}."]


def _gains(groups: Groups) -> Iterator[Finding]:
    """Whether training improves the start."""
    for arm, group in groups.items():
        yield positive(f"{KINDS[arm][0]}: training improves the start", gain(group), len(group), "gains")


def _rivals(groups: Groups) -> Iterator[Finding]:
    """Whether HRPO beats tokens and its controls, and what its variants do."""
    ours = groups["hrpo"]
    for arm, words in RIVALS.items():
        if arm in groups:
            yield positive(f"HRPO ends higher than {words}", lead(ours, groups[arm]), len(ours), "rivals")
    for arm, claim in VARIANTS.items():
        if arm in groups:
            yield positive(claim, lead(groups[arm], ours), len(ours), "variants")
    here = {arm: lead(ours, groups[arm]) for arm in ("token", *REPLACED) if arm in groups}
    if len(here) == 1 + len(REPLACED):
        claim = (
            "HRPO's soft tokens help: it ends higher than tokens alone, and than with noise, another problem's soft "
            "tokens or zero in their place"
        )
        yield replace(needs_own(claim, {KINDS[arm][0]: gap for arm, gap in here.items()}, len(ours)), family="rivals")


def _gate_off(groups: Groups) -> Iterator[Finding]:
    """Whether a trained model needs its latents at test time."""
    for arm in (each for each in ("hrpo", "hrpo" + FREELY, "rates") if each in groups):
        label, group = KINDS[arm][0], groups[arm]
        gap = difference(group, group, "tokens")
        yield positive(f"{label}: with the gate shut at test time it is less often right", gap, len(group), "gate off")
        yield latents_matter(f"{label}, at test time,", group)


def through(record: ExperimentRecord) -> bool:
    """Whether a run leaves at most half of the errors of its start, which is read on tokens alone."""
    return 1 - record.accuracy <= (1 - sum(on_tokens(record)) / sum(record.total)) / 2


def on_tokens(record: ExperimentRecord) -> Sequence[int]:
    """Right answers of a run's start on tokens, by key."""
    assert record.before is not None, "an arm begins with a start"
    found = record.before.evaluations
    return found.get("tokens", found[DEFAULT]).right


# ---------------------------------------------------------------------------------------------------------------------
# The hidden ratio


def ratios(place: str, groups: Groups) -> Table:
    """A row an arm with a gate: the hidden ratio over training, and how far it moved."""
    rows: list[dict[str, Value]] = []
    gated = {arm: group for arm, group in groups.items() if course(group, "hidden_ratio", 0.0)}
    for arm, group in gated.items():
        row: dict[str, Value] = {"arm": KINDS[arm][0], "seeds": len(group)}
        for name, at in (("start", 0.0), ("middle", 0.5), ("end", 1.0)):
            found = over_seeds(course(group, "hidden_ratio", at))
            row |= {name: found.value, f"{name} low": found.low, f"{name} high": found.high}
        change = moved(group)
        row |= {"change": change.value, "change low": change.low, "change high": change.high}
        if arm + FREELY in groups:
            decay = against(group, groups[arm + FREELY], "hidden_ratio")
            row |= {"by decay": decay.value, "by decay low": decay.low, "by decay high": decay.high}
        row["logged"] = fmean(course(group, "logged_ratio", 1.0))
        rows.append(row)
    columns = {"arm": "s"}
    for name in ("start", "middle", "end"):
        columns |= {name: ".3f", f"{name} low": ".3f", f"{name} high": ".3f"}
    for name in ("change", "by decay"):
        if any(name in row for row in rows):
            columns |= {name: "+.3f", f"{name} low": "+.3f", f"{name} high": "+.3f"}
    columns |= {"logged": ".3f", "seeds": "d"}
    legend = (
        "Mean of sqrt(1 - a^2) over coordinates and gated steps of the rollouts, at the first, middle and last line of "
        "the log (means of ten batches; before the first of them it is that of the fixed gate), with 95 % intervals "
        "over seeds (Student's t). change: last minus first, run by run. by decay: the end minus that of the same arm "
        "without decay of Lambda. logged: what the authors' code logs, sqrt(1 - mean(a)^2), an upper bound. Weight "
        "decay pulls Lambda to 0, which raises the ratio without any reward; a policy gradient of noise moves gates, "
        "too; and gates may open to whatever stands in the soft token's place (noise, shuffled, zero: the ratio is the "
        "share of that). So the ratio speaks for the use of latents only where it ends higher than under all of them, "
        "each trained from the same gates at the same factors, at the rate of its family. Where it does, it tells that "
        "gates open to soft tokens because rewards ask for it, not that answers gain: that is judged in the table of "
        "accuracy. Permuted rewards break the model, so that their gates are those of another one. Without rewards the "
        "gradient of the divergence from a start on tokens is left, which the optimizer scales up and which shuts "
        "gates; weight decay alone has no gradient."
    )
    findings = [placed(place, each) for each in (*_uses(groups), *_rises(gated))]
    return Table(f"{place.capitalize()}: the hidden ratio", columns, rows, legend, findings)


def moved(group: Records) -> Interval:
    """The hidden ratio at the end minus at the start, over seeds."""
    ends, starts = course(group, "hidden_ratio", 1.0), course(group, "hidden_ratio", 0.0)
    return over_seeds([a - b for a, b in zip(ends, starts, strict=True)])


def _uses(groups: Groups) -> Iterator[Finding]:
    """Whether the hidden ratio ends higher than without what rewards tell, and than without what soft tokens tell."""
    for ending in ("", FREELY):
        label, ours = KINDS["hrpo" + ending][0], groups.get("hrpo" + ending)
        if ours is None:
            continue
        known = {arm: groups[arm + ending] for arm in ABSENT if arm + ending in groups}
        gaps = {arm: against(ours, theirs, "hidden_ratio") for arm, theirs in known.items()}
        for arm, gap in gaps.items():
            claim = f"{label}: the hidden ratio ends higher than with {ABSENT[arm]}"
            yield _judged(claim, gap, len(ours), "hidden ratio")
        if len(gaps) == len(ABSENT):
            yield _beyond_all(label, gaps, len(ours))


def _beyond_all(label: str, gaps: Mapping[str, Interval], runs: int) -> Finding:
    """Whether the hidden ratio ends higher than in all that it is held against, by arm; the estimate is the least."""
    return Finding(
        f"{label}: the model learns to use its latents, as far as the hidden ratio tells: it ends higher than with "
        "permuted rewards, with none, with weight decay alone, and with noise, other problems' soft tokens or zero in "
        "the soft token's place",
        decided(all(map(above, gaps.values())), any(map(below, gaps.values())), runs),
        ", ".join(f"{signed(gap)} against {KINDS[arm][0]}" for arm, gap in gaps.items()),
        min(gaps.values(), key=lambda gap: gap.value),
        "ratio",
        "hidden ratio",
        runs=runs,
    )


def _rises(groups: Groups) -> Iterator[Finding]:
    """Whether the hidden ratio rises during training, whatever the reason."""
    for arm, group in groups.items():
        yield _judged(f"{KINDS[arm][0]}: the hidden ratio rises", moved(group), len(group), "hidden ratio")


def _judged(claim: str, gap: Interval, runs: int, family: str) -> Finding:
    """Whether a difference of ratios is positive."""
    return Finding(claim, decided(above(gap), below(gap), runs), signed(gap), gap, "ratio", family, runs=runs)


# ---------------------------------------------------------------------------------------------------------------------
# Lengths, and what was published


def lengths(place: str, groups: Groups) -> Table:
    """A row an arm: steps before the answer, of all rollouts and of right ones, and how often chains end."""
    rows: list[dict[str, Value]] = []
    for arm, group in groups.items():
        row: dict[str, Value] = {"arm": KINDS[arm][0], "seeds": len(group)}
        for metric in ("length", "right_excess", "ended", "reward", "frac_reward_zero_std"):
            name = {"right_excess": "excess", "frac_reward_zero_std": "silent"}.get(metric, metric)
            for when, at in (("first", 0.0), ("last", 1.0)):
                row[f"{name} {when}"] = over_seeds(course(group, metric, at)).value
        row["stopped"] = sum(record.stopped is not None for record in group)
        kl = course(group, "reference_kl", 1.0)
        row["kl last"] = fmean(kl) if kl else None
        rows.append(row)
    columns = {"arm": "s"}
    for name in ("length", "excess", "ended", "reward", "silent"):
        columns |= {f"{name} {when}": "+.3f" if name == "excess" else ".3f" for when in ("first", "last")}
    columns |= {"kl last": ".3f", "stopped": "d", "seeds": "d"}
    legend = (
        "Rollouts of training, at the first and the last line of the log, means over seeds. length: steps before the "
        "answer, the delimiter not counted. excess: the same of right rollouts alone, less the steps of their "
        "problems' chains, so that it does not depend on which problems are right; below 0, steps are left out. ended: "
        "share of chains with a delimiter. silent: share of groups whose rewards are all alike. kl: k3 to the "
        "token-only start. Steps are averaged within a rollout, here as in the paper: that alone favours short right "
        "answers, for tokens as for HRPO, so that lengths are compared with tokens alone. stopped: runs that ended "
        "early, for want of groups that differ; their last line is an earlier one, and two runs of a seed are compared "
        "at the last line that both have."
    )
    findings = []
    if "token" in groups:
        gap = against(groups["hrpo"], groups["token"], "right_excess")
        claim = "HRPO's right answers end up shorter than those of token-only GRPO"
        verdict = decided(below(gap), above(gap), len(groups["hrpo"]))
        findings.append(Finding(claim, verdict, signed(gap), gap, "steps", "length", runs=len(groups["hrpo"])))
    title = f"{place.capitalize()}: steps before the answer, and how training went"
    return Table(title, columns, rows, legend, [placed(place, each) for each in findings])


def published(places: Mapping[str, Groups]) -> Table:
    """HRPO minus GRPO, as published and as measured here, by the title of a place."""
    rows: list[dict[str, Value]] = []
    for name, (grpo, hrpo) in PUBLISHED.items():
        rows.append({"what": f"published: {name}", "tokens alone": grpo, "HRPO": hrpo, "difference": hrpo - grpo})
    findings = []
    for place, groups in places.items():
        ours, theirs = groups["hrpo"], groups["token"]
        gap = lead(ours, theirs)
        row: dict[str, Value] = {"what": f"measured: {place}", "tokens alone": 100 * accuracy(theirs).value}
        rows.append({**row, "HRPO": 100 * accuracy(ours).value, **percent(gap, "difference")})
        claim = "HRPO ends higher than token-only GRPO, as published"
        findings.append(placed(place, positive(claim, gap, len(ours), "published")))
    columns = {"what": "s", "tokens alone": ".2f", "HRPO": ".2f", "difference": "+.2f", "low": "+.2f", "high": "+.2f"}
    legend = (
        "published: Qwen2.5-1.5B, tables 2 and 9 of the paper, accuracy in percent, no intervals given. The greedy "
        "rows of HRPO are the best over r_min and temperature for each column apart. Other tasks and models: the sign "
        "and the order of magnitude are what can be compared."
    )
    return Table("Beside what was published", columns, rows, legend, findings)
