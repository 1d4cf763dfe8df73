"""Tables of study `colar`, from readings of trained runs: accuracy and latents by speed, chain length and part."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from tinylatent.engine.controls import CONTROLS
from tinylatent.evaluation.statistics import Interval, accuracy_interval, paired_difference
from tinylatent.lab.findings import Finding, decided
from tinylatent.lab.reading import ReadingRecord
from tinylatent.lab.recipes_colar import ARMS, PREFIX, RL_SPEED, RL_START, place_of
from tinylatent.lab.studies.compare import needs_own, over_seeds, percent, positive
from tinylatent.lab.tables import Table, Value

Readings = Sequence[ReadingRecord]
ByArm = Mapping[str, Readings]
ITSELF = "itself"
"""The reader of a method that has no speeds."""
THROUGH = 0.9
"""Accuracy from which a run counts as broken through."""
PUBLISHED = {
    "mean": {2: -3.2, 5: -6.2},
    "unlabelled": {2: -1.0, 5: -2.0},
    "deterministic": {2: -0.4, 5: -0.1},
    "nll": {2: -7.8, 5: -6.5},
}
"""GSM8k-Aug, Llama-3.2-1B, table 1 of the paper: ablation minus CoLaR, in points."""
PUBLISHED_SINGLE = {2: 0.9, 3: 1.1, 4: 1.8, 5: -3.2}
"""GSM8k, read off figure 3 of the paper: trained with c of 1 to 5 minus trained with this c alone, in points."""
PUBLISHED_SOURCE = (
    "published: on GSM8k-Aug with Llama-3.2-1B, by table 1 of the paper (differences of accuracy on its first column), "
    "and by its figure 3, read off a plot, for one c a model; another task and model, for the sign alone."
)
RATES_SHARED = (
    "Rates were chosen by study colar-tuning. All arms of CoLaR share that of c of 1 to 5, both of pause tokens "
    "theirs, all of reinforcement learning that of the mean over steps; multi-hop has the rates of arithmetic."
)
ABLATIONS = {
    "mean": "the sum over the root of c is more often right than the mean",
    "unlabelled": "labels drawn from the compressed chain help",
    "deterministic": "a head with a standard deviation is more often right than one without",
    "nll": "soft-mse is more often right than the likelihood",
}
"""What each ablation is about, by its arm: CoLaR is more often right than it."""


BASELINES = (
    ("c6", 6, "coconut"), ("c6", 6, "waiting"), ("c6", 6, "pause-c6"), ("random", 5, "pause"), ("random", 5, "icot"),
    ("random", 5, "direct"), ("hops-random", 1, "hops-coconut"), ("hops-random", 5, "hops-pause"),
    ("hops-random", 5, "hops-icot"), ("hops-random", 5, "hops-direct"),
)  # fmt: skip
"""Which arm and speed of CoLaR is compared with which baseline: where a baseline thinks, with as many latents."""


def accuracy(group: Readings, reader: str, part: str = "") -> Interval:
    """Mean accuracy of a reader over runs that differ in seeds, in one part (steps of the chain) or in all."""
    found = [record.right(reader, part) for record in group]
    return accuracy_interval([right for right, _ in found], [total for _, total in found])


def gap(ours: Readings, reader: str, theirs: Readings, other: str, part: str = "") -> Interval:
    """Accuracy of one reader minus that of another, on the same problems.

    Raises:
        ValueError: the runs cannot be compared in pairs.
    """
    require_pairs(ours, theirs)
    first, second = [record.right(reader, part) for record in ours], [record.right(other, part) for record in theirs]
    return paired_difference([right for right, _ in first], [right for right, _ in second], [of for _, of in first])


def require_pairs(ours: Readings, theirs: Readings) -> None:
    """Raises ValueError unless runs have the same seeds and were asked the same problems, run by run."""
    for a, b in zip(ours, theirs, strict=True):
        if {name: each.keys for name, each in a.parts.items()} != {name: each.keys for name, each in b.parts.items()}:
            raise ValueError("runs were not asked the same problems, so that they cannot be compared in pairs")
        if a.seeds != b.seeds:
            raise ValueError(f"runs of seeds {a.seeds} and {b.seeds}: expected the same seeds in the same order")


def latents(group: Readings, reader: str) -> list[float]:
    """Latents a problem, one number a run: vectors, hidden states or pauses, which are steps without a token."""
    costs = [record.costs(reader) for record in group]
    return [each["latents"] or each["steps"] - each["tokens"] for each in costs]


def cut(group: Readings, reader: str) -> float:
    """Share of rows of CoLaR that were cut at the limit: they took no stop, which is a step without token or latent."""
    costs = [record.costs(reader) for record in group]
    stops = fmean(each["steps"] - each["tokens"] - each["latents"] for each in costs)
    return max(0.0, 1 - stops)  # rounding may lead below 0, which a table would tell as -0.00


def readers(group: Readings) -> list[str]:
    """The names of what reads a run."""
    return [reader.name for reader in group[0].reading.readers]


def speeds(group: Readings) -> list[int]:
    """The speeds a run is read at; none for a method without speeds."""
    return [int(name[1:]) for name in readers(group) if name[0] == "x" and name[1:].isdigit()]


def own(group: Readings) -> list[tuple[str, int | None]]:
    """A run's readers at its speeds, or its only one."""
    return [(f"x{c}", c) for c in speeds(group)] or [(ITSELF, None)]


def title(arm: str) -> str:
    """The task of an arm, in words."""
    return place_of(arm).title


def overview(groups: ByArm) -> Table:
    """A row an arm and speed: closed loop, the chain's own latents given, drawn as in the paper; how many latents."""
    rows: list[dict[str, Value]] = []
    for arm, group in groups.items():
        known = readers(group)
        for reader, c in own(group):
            row: dict[str, Value] = {"task": title(arm), "arm": ARMS[arm][0], "c": c}
            row |= percent(accuracy(group, reader))
            for way in ("taught", "drawn"):
                name = f"{way} {reader}"
                row[way] = 100 * accuracy(group, name).value if name in known else None
            row["cut"] = None if c is None else 100 * cut(group, reader)
            through = [accuracy([record], reader).value >= THROUGH for record in group]
            row |= {"latents": fmean(latents(group, reader)), "through": sum(through), "seeds": len(group)}
            rows.append(row)
    columns = {
        "task": "s", "arm": "s", "c": "d", "accuracy": ".2f", "low": ".2f", "high": ".2f", "taught": ".2f",
        "drawn": ".2f", "latents": ".2f", "cut": ".2f", "through": "d", "seeds": "d",
    }  # fmt: skip
    legend = (
        "accuracy in percent on problems of keys never trained on, closed loop, with its 95 % interval over seeds and "
        "keys. taught: the chain's own vectors given; the chain of arithmetic contains its answer, so that this says "
        "there no more than that the last vectors can be read. drawn: vectors and stops drawn, as in the paper. "
        "latents: mean number a problem of vectors, hidden states or pauses. cut: rows of CoLaR in percent that had "
        "not stopped at the limit, one vector more than the longest chain has groups; the delimiter is written behind "
        "them as behind all, as in the paper, and they answer, while a chain of thought that is cut has no answer and "
        f"counts as wrong. through: runs that are right at least {100 * THROUGH:.0f} % of the time. {RATES_SHARED}"
    )
    return Table("Accuracy by c", columns, rows, legend, _against_baselines(groups))


def _against_baselines(groups: ByArm) -> list[Finding]:
    """Whether CoLaR beats each baseline of its task, with the latents that both take."""
    found = []
    for ours, c, theirs in BASELINES:
        if {ours, theirs} <= groups.keys():
            lengths = fmean(latents(groups[ours], f"x{c}")), fmean(latents(groups[theirs], ITSELF))
            claim = (
                f"{title(ours)}: {ARMS[ours][0]}, at c = {c} ({lengths[0]:.2f} latents) is more often right than "
                f"{ARMS[theirs][0]} ({lengths[1]:.2f} latents)"
            )
            better = gap(groups[ours], f"x{c}", groups[theirs], ITSELF)
            found.append(positive(claim, better, len(groups[ours]), "baselines"))
    return found


def by_length(groups: ByArm, prefix: str) -> Table:
    """A row an arm and speed of one task, a column a chain length."""
    here = {arm: group for arm, group in groups.items() if arm.startswith(PREFIX) == bool(prefix)}
    lengths = sorted({int(part) for group in here.values() for record in group for part in record.parts})
    rows: list[dict[str, Value]] = []
    for arm, group in here.items():
        for reader, c in own(group):
            row: dict[str, Value] = {"arm": ARMS[arm][0], "c": c}
            rows.append(row | {f"{n} tokens": 100 * accuracy(group, reader, str(n)).value for n in lengths})
    findings = []
    ours = here.get(f"{prefix}random")
    if ours is not None:
        for c in (1, max(speeds(ours))):
            short, long = ([record.right(f"x{c}", str(n)) for record in ours] for n in (lengths[0], lengths[-1]))
            change = [sum(a) / sum(b) - sum(d) / sum(e) for (a, b), (d, e) in zip(short, long, strict=True)]
            claim = (
                f"{title(prefix)}, c = {c}: the shortest chains ({lengths[0]} before the answer) are more often right "
                f"than the longest ({lengths[-1]})"
            )
            findings.append(_mean_positive(claim, change, "length"))
    columns = {"arm": "s", "c": "d"} | {f"{n} tokens": ".2f" for n in lengths}
    legend = "accuracy in percent, closed loop, by the tokens of the chain before the answer; mean over seeds."
    return Table(f"Accuracy by chain length: {title(prefix)}", columns, rows, legend, findings)


def _mean_positive(
    claim: str, values: Sequence[float], family: str, unit: str = "points", of: float = 100.0
) -> Finding:
    """Whether a number is positive on average over runs, by Student's t."""
    found = over_seeds(values)
    ends = "one run" if len(values) < 2 else f"{of * found.low:+.2f}, {of * found.high:+.2f}"
    told = f"{of * found.value:+.2f} {unit} [{ends}]"
    kind = "share" if of == 100 else unit
    verdict = decided(found.low > 0, found.high < 0, len(values))
    return Finding(claim, verdict, told, found, unit=kind, family=family, runs=len(values))


def ablations(groups: ByArm) -> Table:
    """What each part of CoLaR is worth at c = 2 and 5, beside what the paper says."""
    rows: list[dict[str, Value]] = []
    findings = []

    def compared(claim: str, ours: str, theirs: str, c: int, published: float | None) -> None:
        found = gap(groups[ours], f"x{c}", groups[theirs], f"x{c}")
        row: dict[str, Value] = {"task": title(ours), "what": claim, "c": c}
        rows.append(row | percent(found, "difference") | {"published": published})
        findings.append(positive(f"{title(ours)}, c = {c}: {claim}", found, len(groups[ours]), "ablations"))

    for prefix in ("", PREFIX):
        ours = f"{prefix}random"
        for name, claim in ABLATIONS.items():
            for c in (2, 5):
                if {ours, prefix + name} <= groups.keys():
                    compared(claim, ours, prefix + name, c, None if prefix else -PUBLISHED[name][c])
        for c in PUBLISHED_SINGLE:
            if {ours, f"{prefix}c{c}"} <= groups.keys():
                claim = "training with c of 1 to 5 is more often right than with this c alone"
                compared(claim, ours, f"{prefix}c{c}", c, None if prefix else PUBLISHED_SINGLE[c])
        for c in (2, 4):
            if {ours, f"{prefix}odd"} <= groups.keys():
                claim = "a c that was trained is more often right than one between two that were"
                compared(claim, ours, f"{prefix}odd", c, None)
    columns = {
        "task": "s", "what": "s", "c": "d", "difference": ".2f", "low": ".2f", "high": ".2f", "published": ".2f",
    }  # fmt: skip
    legend = (
        "difference: in points, on the same problems, with its 95 % interval. All arms share one learning rate, that "
        f"of CoLaR with c of 1 to 5. {PUBLISHED_SOURCE}"
    )
    return Table("What its parts are worth", columns, rows, legend, findings)


def controls(groups: ByArm) -> Table:
    """Accuracy with the latents replaced."""
    rows: list[dict[str, Value]] = []
    findings = []
    for arm, group in groups.items():
        for reader, c in own(group):
            names = {control: f"{reader} {control}" for control in CONTROLS}
            if not set(names.values()) <= set(readers(group)):
                continue
            row: dict[str, Value] = {"task": title(arm), "arm": ARMS[arm][0], "c": c}
            row["accuracy"] = 100 * accuracy(group, reader).value
            rows.append(row | {control: 100 * accuracy(group, name).value for control, name in names.items()})
            at = "" if c is None else f" at c = {c}"
            gaps = {control: gap(group, reader, group, name) for control, name in names.items()}
            claim = f"{title(arm)}: {ARMS[arm][0]}{at} needs its own latents"
            findings.append(needs_own(claim, gaps, len(group)))
    columns = {"task": "s", "arm": "s", "c": "d", "accuracy": ".2f", **dict.fromkeys(CONTROLS, ".2f")}
    legend = (
        "accuracy in percent, closed loop, and with every latent replaced by noise of its norm, by another problem's, "
        "and by nothing. An arm needs its own latents if it loses under each of the three."
    )
    return Table("Are the latents used?", columns, rows, legend, findings)


def learning(groups: ByArm) -> Table:
    """Before and after reinforcement learning: accuracy and latents, decided and drawn."""
    rows: list[dict[str, Value]] = []
    reader, findings = f"x{RL_SPEED}", []
    before = groups[RL_START]
    for arm in (each for each in (RL_START, "rl-mean", "rl-sum", "rl-policy") if each in groups):
        group = groups[arm]
        row: dict[str, Value] = {"arm": f"before: {ARMS[arm][0]}" if arm == RL_START else ARMS[arm][0]}
        for way, name in (("", reader), ("drawn ", f"drawn {reader}")):
            row |= percent(accuracy(group, name), f"{way}accuracy", f"{way}low", f"{way}high")
            row |= {f"{way}latents": fmean(latents(group, name)), f"{way}cut": 100 * cut(group, name)}
        rows.append(row)
        if arm == RL_START:
            continue
        for way in (f"drawn {reader}", reader):
            told = "drawn" if way != reader else "decided"
            claim = f"{ARMS[arm][0]} is more often right than before it, {told}"
            findings.append(positive(claim, gap(group, way, before, way), len(group), "reinforcement"))
    for claim, more, fewer in (
        ("RL with the mean over steps shortens chains", RL_START, "rl-mean"),
        ("RL with the sum over steps lengthens chains", "rl-sum", RL_START),
        ("chains are longer with the sum over steps than with the mean", "rl-sum", "rl-mean"),
    ):
        require_pairs(groups[more], groups[fewer])
        spent = (latents(groups[arm], f"drawn {reader}") for arm in (more, fewer))
        values = [a - b for a, b in zip(*spent, strict=True)]
        findings.append(_mean_positive(claim, values, "reinforcement", "latents", 1.0))
    ways = [f"{way}{name}" for way in ("", "drawn ") for name in ("accuracy", "low", "high", "latents", "cut")]
    legend = (
        f"arithmetic at c = {RL_SPEED}. The model before stopped training at 60 % right answers or so, that rewards "
        "differ. All rows have the same limit of vectors, one more than the longest chain has groups; cut: rows in "
        "percent that had not stopped there. accuracy, latents and cut with means and decided stops; drawn: with "
        "vectors and stops drawn, as in training. The log-density of a vector is its mean over the width, as in the "
        "published code, which is not the policy's; with the ratio of the policy it is its sum. All share the rate of "
        "the mean over steps. Published, on MATH with R1-Distill-Qwen-1.5B at c = 2 (table 2): 8.94 % in 56.8 latents "
        "before, 14.3 % in 9.79 after, 13.8 % in 128, the limit, without the mean."
    )
    return Table("Reinforcement learning", {"arm": "s", **dict.fromkeys(ways, ".2f")}, rows, legend, findings)
