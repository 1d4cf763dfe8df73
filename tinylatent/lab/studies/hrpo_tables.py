"""Tables of study `hrpo`: accuracy before and after, the course of the hidden ratio beside its controls, and lengths.

Records of a place are grouped by kind of arm (`recipes_hrpo`), in the order of their seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from tinylatent.engine.controls import CONTROLS as REPLACED
from tinylatent.evaluation.statistics import Interval, mean_interval, paired_difference
from tinylatent.lab.findings import Finding, decided
from tinylatent.lab.recipes_hrpo import CONTROLS, KINDS
from tinylatent.lab.records import DEFAULT
from tinylatent.lab.studies.compare import Records, accuracy, difference, percent, positive, rights, totals
from tinylatent.lab.tables import Table, Value

Groups = Mapping[str, Records]
"""Records of one place by kind."""
THROUGH = 0.9
"""Accuracy from which a run counts as broken through."""
RIVALS = {
    "token": "token-only GRPO",
    "noise": "HRPO with noise of their norm in place of soft tokens",
    "shuffled": "HRPO with another problem's soft tokens",
    "zero": "HRPO with zero in place of soft tokens",
    "fixed": "HRPO with gates that do not learn",
}
"""What HRPO is compared with, by arm, in words."""
VARIANTS = {
    "undecayed": "without weight decay on Lambda, HRPO ends higher",
    "r90": "started at r_min .9 instead of .5, HRPO ends higher",
    "r95": "started at r_min .95 instead of .5, HRPO ends higher",
    "r99": "started at r_min .99 instead of .5, HRPO ends higher",
    "official": "in the official code's mode, HRPO ends higher",
    "rates": "with the published factors of the learning rate, HRPO ends higher",
    "graph": "with gradients through soft tokens, HRPO ends higher",
}
MATCHED = {"hrpo": ("permuted", "decay"), "undecayed": ("permuted-undecayed",)}
"""Arms whose hidden ratio has controls: trained alike, from the same gates, without what rewards tell."""
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


def before(group: Records) -> list[list[int]]:
    """Right answers per key of each run before it was trained, read as its own method reads.

    Raises:
        ValueError: a run starts from no other.
    """
    found = []
    for record in group:
        if record.before is None:
            raise ValueError(f"run {record.id} was not evaluated before its training: expected a run with a start")
        found.append(record.before.evaluations[DEFAULT].right)
    return found


def gain(group: Records) -> Interval:
    """Accuracy after minus before, on the same problems."""
    return paired_difference(rights(group), before(group), totals(group))


def course(group: Records, metric: str, at: float) -> list[float]:
    """A logged metric of each run, at a share of its lines: 0 is the first, 1 the last; missing values left out."""
    found = []
    for record in group:
        values = [line[metric] for line in record.metrics if line.get(metric) is not None]
        if values:
            found.append(values[round(at * (len(values) - 1))])
    return found


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean and interval over seeds; a single seed has no width of its own."""
    if len(values) < 2:
        value = values[0] if values else float("nan")
        return Interval(value, value, value, "one run")
    return mean_interval(values)


def against(ours: Records, theirs: Records, metric: str, at: float = 1.0) -> Interval:
    """A logged metric of one arm minus another's, over seeds, run by run."""
    pairs = zip(course(ours, metric, at), course(theirs, metric, at), strict=True)
    return over_seeds([a - b for a, b in pairs])


def signed(gap: Interval, digits: int = 3) -> str:
    """A difference with its interval."""
    return f"{gap.value:+.{digits}f} [{gap.low:+.{digits}f}, {gap.high:+.{digits}f}]"


# ---------------------------------------------------------------------------------------------------------------------
# Accuracy


def accuracies(place: str, groups: Groups) -> Table:
    """A row an arm: accuracy before and after, with the gate shut at test time, and under controls."""
    rows: list[dict[str, Value]] = []
    for arm, group in groups.items():
        row: dict[str, Value] = {"arm": KINDS[arm][0], "rate": group[0].experiment.training.learning_rate}
        row["before"] = 100 * fmean(
            sum(right) / sum(of) for right, of in zip(before(group), totals(group), strict=True)
        )
        row |= percent(accuracy(group), "after") | percent(gain(group), "gain", "gain low", "gain high")
        for other in ("tokens", "sharp", *REPLACED):
            known = other in group[0].evaluations
            row[other] = 100 * accuracy(group, other).value if known else None
        row["through"] = sum(record.accuracy >= THROUGH for record in group)
        row["seeds"] = len(group)
        row["train_s"] = fmean([record.cost.training_seconds for record in group])
        rows.append(row)
    columns = {
        "arm": "s", "rate": "g", "before": ".2f", "after": ".2f", "low": ".2f", "high": ".2f", "gain": "+.2f",
        "gain low": "+.2f", "gain high": "+.2f", "tokens": ".2f", "sharp": ".2f", "noise": ".2f", "shuffled": ".2f",
        "zero": ".2f", "through": "d", "seeds": "d", "train_s": ".0f",
    }  # fmt: skip
    legend = (
        "before, after: percent of the validation part, greedy, latents as in training; mean over seeds with its 95 % "
        "interval (bootstrap over seeds and keys; Student's t over seeds where that is wider). gain: after minus "
        "before, problem by problem. rate: chosen by study hrpo-tuning for a family, on other splits: tokens alone, "
        "HRPO and its variants, controls. tokens: the gate shut at test time; sharp: soft tokens at temperature .1; "
        "noise, shuffled, zero: soft tokens replaced at test time. Arms of these names are trained so. through: runs "
        f"that end at {100 * THROUGH:.0f} % or more, out of seeds. Runs of a seed share start, problems and order. "
        "What a control does to the start itself (before) is part of how it ends. "
        "fixed gate: gates as they start. official mode: drawn at temperature .5 among the 50 likeliest tokens, scored "
        "at 1. permuted rewards: those of each group in random order; decay alone: none at all."
    )
    title = f"{place.capitalize()}: group advantages on tokens, and with soft tokens mixed in"
    found = [*_gains(groups), *_rivals(groups), *_gate_off(groups)]
    return Table(title, columns, rows, legend, [placed(place, each) for each in found])


def _gains(groups: Groups) -> Iterator[Finding]:
    """Whether training improves the start."""
    for arm, group in groups.items():
        yield positive(f"{KINDS[arm][0]}: training improves the start", gain(group), len(group), "gains")


def _rivals(groups: Groups) -> Iterator[Finding]:
    """Whether HRPO beats tokens and its controls, and what its variants do."""
    ours = groups["hrpo"]
    for arm, words in RIVALS.items():
        if arm in groups:
            yield positive(f"HRPO ends higher than {words}", difference(ours, groups[arm]), len(ours), "rivals")
    for arm, claim in VARIANTS.items():
        if arm in groups:
            yield positive(claim, difference(groups[arm], ours), len(ours), "variants")
    here = [groups[arm] for arm in ("token", *CONTROLS) if arm in groups]
    if len(here) == 1 + len(CONTROLS):
        gaps = [difference(ours, group) for group in here]
        least = min(gaps, key=lambda gap: gap.value)
        verdict = decided(all(gap.low > 0 for gap in gaps), any(gap.high < 0 for gap in gaps), len(ours))
        evidence = (
            f"the smallest lead is {100 * least.value:+.2f} points [{100 * least.low:+.2f}, {100 * least.high:+.2f}]"
        )
        claim = "HRPO's latents help: it ends higher than tokens alone and than every control"
        yield Finding(claim, verdict, evidence, least, family="rivals", runs=len(ours))


def _gate_off(groups: Groups) -> Iterator[Finding]:
    """Whether a trained model needs its latents at test time."""
    for arm, group in groups.items():
        if "tokens" in group[0].evaluations and arm in ("hrpo", "undecayed", "rates"):
            gap = difference(group, group, "tokens")
            claim = f"{KINDS[arm][0]}: with the gate shut at test time it is less often right"
            yield positive(claim, gap, len(group), "gate off")


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
        row["logged"] = fmean(course(group, "logged_ratio", 1.0))
        rows.append(row)
    columns = {"arm": "s"}
    for name in ("start", "middle", "end"):
        columns |= {name: ".3f", f"{name} low": ".3f", f"{name} high": ".3f"}
    columns |= {"change": "+.3f", "change low": "+.3f", "change high": "+.3f", "logged": ".3f", "seeds": "d"}
    legend = (
        "Mean of sqrt(1 - a^2) over coordinates and gated steps of the rollouts, at the first, middle and last line of "
        "the log (means of ten batches), with 95 % intervals over seeds (Student's t). change: last minus first, run "
        "by run. logged: what the authors' code logs, sqrt(1 - mean(a)^2), an upper bound. Weight decay pulls Lambda "
        "to 0, which raises the ratio without any reward, and a policy gradient of noise moves gates, too: whether a "
        "model learns to use latents is judged by the difference to the arms that see permuted rewards, or none. Under "
        "controls (noise, shuffled, zero) the ratio is the share of what stands in the soft token's place."
    )
    findings = [placed(place, each) for each in (*_uses(groups), *_rises(gated))]
    return Table(f"{place.capitalize()}: the hidden ratio", columns, rows, legend, findings)


def moved(group: Records) -> Interval:
    """The hidden ratio at the end minus at the start, over seeds."""
    ends, starts = course(group, "hidden_ratio", 1.0), course(group, "hidden_ratio", 0.0)
    return over_seeds([a - b for a, b in zip(ends, starts, strict=True)])


def _uses(groups: Groups) -> Iterator[Finding]:
    """Whether rewards raise the hidden ratio beyond what happens without them, and beyond that of controls."""
    parts = []
    for arm, controls in MATCHED.items():
        for control in controls:
            if arm in groups and control in groups:
                ours = groups[arm]
                gap = against(ours, groups[control], "hidden_ratio")
                claim = f"{KINDS[arm][0]}: the hidden ratio ends higher than with {KINDS[control][0]}"
                parts.append(_judged(claim, gap, len(ours), "hidden ratio"))
                yield parts[-1]
    if len(parts) == sum(map(len, MATCHED.values())):
        gaps = [part.estimate for part in parts if part.estimate is not None]
        least = min(gaps, key=lambda gap: gap.value)
        runs = len(groups["hrpo"])
        verdict = decided(all(gap.low > 0 for gap in gaps), any(gap.high < 0 for gap in gaps), runs)
        claim = "the model learns to use its latents: rewards raise the hidden ratio beyond every control"
        yield Finding(
            claim, verdict, f"the smallest difference is {signed(least)}", least, "ratio", "hidden ratio", runs=runs
        )
    for control in CONTROLS[:3]:
        if control in groups and "hrpo" in groups:
            gap = against(groups["hrpo"], groups[control], "hidden_ratio")
            claim = f"the hidden ratio ends higher with soft tokens than with {KINDS[control][0]} in their place"
            yield _judged(claim, gap, len(groups["hrpo"]), "hidden ratio")


def _rises(groups: Groups) -> Iterator[Finding]:
    """Whether the hidden ratio rises during training, whatever the reason."""
    for arm, group in groups.items():
        yield _judged(f"{KINDS[arm][0]}: the hidden ratio rises", moved(group), len(group), "hidden ratio")


def _judged(claim: str, gap: Interval, runs: int, family: str) -> Finding:
    """Whether a difference of ratios is positive."""
    return Finding(claim, decided(gap.low > 0, gap.high < 0, runs), signed(gap), gap, "ratio", family, runs=runs)


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
        kl = course(group, "reference_kl", 1.0)
        row["kl last"] = fmean(kl) if kl else None
        rows.append(row)
    columns = {"arm": "s"}
    for name in ("length", "excess", "ended", "reward", "silent"):
        columns |= {f"{name} {when}": "+.3f" if name == "excess" else ".3f" for when in ("first", "last")}
    columns |= {"kl last": ".3f", "seeds": "d"}
    legend = (
        "Rollouts of training, at the first and the last line of the log, means over seeds. length: steps before the "
        "answer, the delimiter not counted. excess: the same of right rollouts alone, less the steps of their "
        "problems' chains, so that it does not depend on which problems are right; below 0, steps are left out. ended: "
        "share of chains with a delimiter. silent: share of groups whose rewards are all alike. kl: k3 to the "
        "token-only start. Steps are averaged within a rollout, here as in the paper: that alone favours short right "
        "answers, for tokens as for HRPO, so that lengths are compared with tokens alone."
    )
    findings = []
    if "token" in groups:
        gap = against(groups["hrpo"], groups["token"], "right_excess")
        claim = "HRPO's right answers end up shorter than those of token-only GRPO"
        verdict = decided(gap.high < 0, gap.low > 0, len(groups["hrpo"]))
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
        gap = difference(ours, theirs)
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


def placed(place: str, found: Finding) -> Finding:
    """A finding whose claim says where."""
    return replace(found, claim=f"{place}: {found.claim}")
