"""Study `methods`: every method of the laboratory on five tasks, each in one place with one model, length and search.

MNNS, multi-hop with two facts a node, subset sum, arithmetic, and recommendation to unknown users. Whatever is taught
makes as many steps on as many problems, whatever is rewarded likewise; direct answers and pauses are there with dropout
and a large weight decay too, since they over-fit. The first table is the headline; then a table a task, with what
thinking costs, what is left when latents are replaced, and the arm that does as much without what is claimed to help.

Where runs of an arm lie in two clusters, those that have broken through and those that have not, their mean says
nothing: how many are in either, and where, is told instead. Seeds of the full profile are none of those of the quick
one or of tuning.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from tinylatent.evaluation.statistics import Interval, paired_difference
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import Finding
from tinylatent.lab.plots import figure, interval_row, legend_below, legend_mark
from tinylatent.lab.recipes_methods import ARMS, BEFORE, PLACES, READ, RETRAINED, SEARCHED, arm_of, build, split
from tinylatent.lab.records import DEFAULT, ExperimentRecord
from tinylatent.lab.studies.compare import (
    GAP,
    Records,
    accuracy,
    clustered,
    controls,
    course,
    difference,
    grouped,
    needs_own,
    paired,
    percent,
    placed,
    positive,
    require_same_splits,
    rights,
    share,
    totals,
)
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value

SEEDS: dict[Profile, range] = {"quick": range(3), "full": range(5, 10)}
QUICK = tuple(f"mnns-{kind}" for kind in ("direct", "discrete", "cot2", "latentr3", "grpo"))
PARTS: dict[Profile, int] = {"quick": 6, "full": 1}
"""By what the steps of training are divided."""
Groups = Mapping[str, Records]
"""Records of one place by kind of arm."""


def grid(profile: Profile) -> list[Experiment]:
    """Every arm on every seed; few of them, briefly trained, in the quick profile."""
    arms = ARMS if profile == "full" else QUICK
    return [shortened(build(arm, seed), profile) for arm in arms for seed in SEEDS[profile]]


def shortened(run: Experiment, profile: Profile) -> Experiment:
    """The run as a profile has it, and what it starts from too."""
    start = None if run.start is None else shortened(run.start, profile)
    training = replace(run.training, steps=run.training.steps // PARTS[profile])
    return replace(run, training=training, start=start)


def by_place(records: list[ExperimentRecord]) -> dict[str, dict[str, Records]]:
    """Records by prefix of their place and kind of their arm, in the order of the recipes."""
    found = grouped(records, lambda record: arm_of(record.experiment))
    places: dict[str, dict[str, Records]] = {}
    for arm in ARMS:
        if arm in found:
            prefix, kind = split(arm)
            places.setdefault(prefix, {})[kind] = found[arm]
    return places


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """The headline, then a table a task."""
    places = by_place(records)
    return [headline(places), *(compared(prefix, groups) for prefix, groups in places.items())]


# ---------------------------------------------------------------------------------------------------------------------
# Clusters


def read(kind: str) -> str:
    """The evaluation that a kind of arm is judged by."""
    return READ.get(kind, DEFAULT)


def through(kind: str, record: ExperimentRecord) -> bool:
    """Whether a run is more than half of the way from the majority baseline to the ceiling of its task."""
    return share(record, read(kind)) > (record.majority_baseline + record.accuracy_ceiling) / 2


def ahead(ours: str, mine: Records, theirs: str, other: Records) -> Interval:
    """Accuracy of one kind of arm minus another's, each read as its kind is, seed by seed."""
    first, second = paired(mine, other)
    require_same_splits(first, second)
    return paired_difference(rights(first, read(ours)), rights(second, read(theirs)), totals(first))


def told(kind: str, group: Records) -> str:
    """The mean of an arm in percent; where runs lie in two clusters, how many are in the upper one, and both means."""
    if not clustered(group, read(kind)):
        return f"{100 * accuracy(group, read(kind)).value:.1f}"
    every = sorted(share(record, read(kind)) for record in group)
    place = max(range(1, len(every)), key=lambda place: every[place] - every[place - 1])
    low, high = (100 * fmean(each) for each in (every[:place], every[place:]))
    return f"{len(every) - place} of {len(every)} at {high:.0f}, {place} at {low:.0f}"


# ---------------------------------------------------------------------------------------------------------------------
# The headline


def headline(places: Mapping[str, Groups]) -> Table:
    """A row a method, a column a task."""
    kinds = dict.fromkeys(kind for groups in places.values() for kind in groups)
    rows: list[dict[str, Value]] = []
    for kind in kinds:
        here = {prefix: groups[kind] for prefix, groups in places.items() if kind in groups}
        label = ARMS[next(iter(here)) + kind][0]
        rows.append({"method": label, **{PLACES[prefix].title: told(kind, group) for prefix, group in here.items()}})
    best: dict[str, Value] = {"method": "ceiling"}
    least: dict[str, Value] = {"method": "most frequent answer"}
    for prefix, groups in places.items():
        every = [record for group in groups.values() for record in group]
        best[PLACES[prefix].title] = f"{100 * fmean(record.accuracy_ceiling for record in every):.1f}"
        least[PLACES[prefix].title] = f"{100 * fmean(record.majority_baseline for record in every):.1f}"
    columns = {"method": "s", **{PLACES[prefix].title: "s" for prefix in places}}
    legend = (
        "Percent of right answers on problems of keys never trained on, mean over seeds. Where runs lie in two "
        f"clusters, more than {100 * GAP:g} points apart, a mean over all says nothing: how many runs are in either, "
        "and where. On recommendation: the right title, word by word. GRPO is read without sampling, as its start is. "
        "certified: a search whose answers are checked by what the chain proves, never by the truth. An empty cell: "
        "the method does not apply, for the reason below. Intervals, costs and controls stand in the tables of the "
        "tasks."
    )
    remarks = [
        f"{PLACES[prefix].title}: no {kind}, since {why}."
        for prefix in places
        for kind, why in PLACES[prefix].absent.items()
    ]
    return Table("Every method on every task", columns, [*rows, best, least], legend, remarks=remarks)


# ---------------------------------------------------------------------------------------------------------------------
# A task


def compared(prefix: str, groups: Groups) -> Table:
    """A row an arm: accuracy, break-throughs, what it costs, and its controls."""
    rows = [_row(prefix, kind, group, groups) for kind, group in groups.items()]
    columns = {
        "method": "s", "from": "s", "rate": "g", "accuracy": ".2f", "low": ".2f", "high": ".2f", "least": ".2f",
        "most": ".2f", "through": "d", "seeds": "d", "train": ".2f", "silent": ".2f", "latents": ".2f", "tokens": ".2f",
        "MFLOP": ".3f", "training": ".3f", "train_s": ".0f", "parameters": "d", "control": ".2f", "by": "s",
        "retrained": ".2f", "as": "s", "gain": "+.2f", "gain low": "+.2f", "gain high": "+.2f",
    }  # fmt: skip
    legend = (
        "accuracy: percent of right answers on problems of keys never trained on, mean over seeds with its 95 % "
        "interval (bootstrap over seeds and keys; Student's t over seeds where that is wider). least, most: of the "
        "runs. through: runs that came more than half of the way from the most frequent answer to the ceiling. train: "
        "percent right on problems of training. from: what it starts from; it is trained on top of that. silent: share "
        "of groups whose rewards are all alike at the end, which teach nothing; what starts from a chain that hardly "
        "errs has little to learn from rewards. latents, tokens, MFLOP: latent inputs, tokens said and operations (in "
        "10^6) of an answer, on average; what searches spend on all their rounds is counted, a pause is no latent. "
        "training: operations in 10^12; train_s: seconds; both of the arm alone. parameters: those that are trained. "
        "control, by: the best accuracy with latents replaced at test time, and how. retrained, as: an arm that is "
        "trained alike without what is claimed to help; gain: over it, problem by problem. GRPO is read without "
        "sampling, token by token or in mixtures, as its start is. rate: peak learning rate, "
        + ("chosen for each arm by the same search." if SEARCHED else "a guess, since no search has been run.")
    )
    title = PLACES[prefix].title
    found = [placed(title, each) for each in findings(prefix, groups)]
    return Table(f"{title[:1].upper()}{title[1:]}: {PLACES[prefix].task}", columns, rows, legend, found)


def _row(prefix: str, kind: str, group: Records, groups: Groups) -> dict[str, Value]:
    """One arm."""
    every, costs = [share(record, read(kind)) for record in group], [record.cost for record in group]
    before = BEFORE.get(kind)
    row: dict[str, Value] = {"method": ARMS[prefix + kind][0], **percent(accuracy(group, read(kind)))}
    row |= dict.fromkeys(("control", "by", "retrained", "as", "gain", "gain low", "gain high"))
    row["from"] = None if before is None else ARMS[prefix + before][0]
    row["rate"] = group[0].experiment.training.learning_rate if group[0].experiment.training.steps else None
    row |= {"least": 100 * min(every), "most": 100 * max(every), "seeds": len(group)}
    row["through"] = sum(through(kind, record) for record in group)
    row["train"] = _mean([_trained(record) for record in group])
    row |= {name: _mean([getattr(cost, name) for cost in costs]) for name in ("latents", "tokens")}
    spent = _mean([cost.operations for cost in costs])
    row["MFLOP"] = None if spent is None else spent / 1e6
    row |= {"training": fmean(cost.training_flops for cost in costs) / 1e12, "parameters": group[0].parameters}
    row["train_s"] = fmean(cost.training_seconds for cost in costs)
    if found := {name: 100 * accuracy(group, name).value for name in controls(group)}:
        row["by"] = max(found, key=lambda name: found[name])
        row["control"] = found[str(row["by"])]
    if (rival := RETRAINED.get(kind, "")) in groups:
        row |= {"retrained": 100 * accuracy(groups[rival], read(rival)).value, "as": ARMS[prefix + rival][0]}
        row |= percent(ahead(kind, group, rival, groups[rival]), "gain", "gain low", "gain high")
    silent = course(group, "frac_reward_zero_std", 1.0)
    row["silent"] = fmean(silent) if silent else None
    return row


def _trained(record: ExperimentRecord) -> float | None:
    """Percent right on problems of training."""
    return None if record.train is None else 100 * record.train.share


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of values that are all known."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def findings(prefix: str, groups: Groups) -> Iterator[Finding]:
    """Whether arms beat their retrained controls and need their latents, and whether second stages improve the first.

    Of arms whose runs lie in two clusters nothing is claimed.
    """
    whole = {kind: group for kind, group in groups.items() if not clustered(group, read(kind))}
    for kind, rival in RETRAINED.items():
        if {kind, rival} <= whole.keys():
            claim = (
                f"{ARMS[prefix + kind][0]} is more often right than its retrained control, {ARMS[prefix + rival][0]}"
            )
            gap = ahead(kind, whole[kind], rival, whole[rival])
            yield positive(claim, gap, len(whole[kind]), "retrained controls")
    for kind, group in whole.items():
        if names := controls(group):
            gaps = {name: difference(group, group, name) for name in names}
            yield needs_own(f"{ARMS[prefix + kind][0]} needs its own latents", gaps, len(group))
    for kind, before in BEFORE.items():
        if {kind, before} <= whole.keys():
            claim = f"{ARMS[prefix + kind][0]} is more often right than what it starts from, {ARMS[prefix + before][0]}"
            gap = ahead(kind, whole[kind], before, whole[before])
            yield positive(claim, gap, len(whole[kind]), "second stages")


# ---------------------------------------------------------------------------------------------------------------------
# The figure


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """A panel a task: accuracy of every arm, a dot a run, and with its latents replaced hollow."""
    places = by_place(records)
    with figure(path, 4.2 * len(places), 5.2, columns=len(places)) as panels:
        for axes, (prefix, groups) in zip(panels, places.items(), strict=True):
            for y, (kind, group) in enumerate(groups.items()):
                colour = ARMS[prefix + kind][2]
                interval_row(axes, -y, accuracy(group, read(kind)), colour)
                axes.plot(
                    [100 * share(record, read(kind)) for record in group],
                    [-y] * len(group),
                    ".",
                    color=colour,
                    alpha=0.4,
                )
                for name in controls(group):
                    axes.plot(100 * accuracy(group, name).value, -y, "o", color=colour, markerfacecolor="none", ms=3)
            axes.axvline(100 * groups[next(iter(groups))][0].majority_baseline, color="black", linewidth=0.8, ls=":")
            axes.set_yticks([-y for y in range(len(groups))], [ARMS[prefix + kind][0] for kind in groups], fontsize=6)
            axes.set(title=PLACES[prefix].title, xlabel="validation accuracy, %", xlim=(0, 102))
        legend_mark(panels[0], "latents replaced")
        legend_mark(panels[0], "bar: 95 %", "_", hollow=False)
        legend_mark(panels[0], "a run", ".", hollow=False)
        legend_below(panels, 3)


STUDY = Study(
    "methods", "How do all methods compare on five tasks, given one model and one search?", grid, tables, draw
)
