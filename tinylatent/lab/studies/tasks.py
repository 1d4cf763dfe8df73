"""Study `tasks`: five ways of answering on four tasks, and how far each reaches beyond what it was trained on.

MNNS, subset sum, multi-hop lookup and reachability at one small size each, in models of the same kind; learning rates
are each method's own on each task (`tasks-tuning`; on MNNS those of study `mnns`). Two of the tasks have room to spare:
MNNS is trained on 4 numbers and asked about 5, lookup trained on up to 3 hops and asked about 6; there training places
prompts at random positions, so that none is new.
"""

from collections.abc import Iterator
from pathlib import Path

from tinylatent.evaluation.statistics import Interval, accuracy_interval, paired_difference
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.measure import ITSELF
from tinylatent.lab.plots import COLOURS, figure, interval_column
from tinylatent.lab.report import Table, Value
from tinylatent.lab.studies.compare import accuracy, better, grouped, listed, method_of, percent, verdict
from tinylatent.lab.studies.lineup import LABELS, METHODS, comparison
from tinylatent.lab.studies.task_lineup import TASKS, experiment, place_of
from tinylatent.lab.study import Profile, Record, Study

SEEDS: dict[Profile, range] = {"quick": range(2), "full": range(5)}
PUBLISHED = {
    "CoT2 paper, ProsQA": {"direct": 54.91, "discrete": 68.50, "coconut": 90.03, "cot2": 93.37},
    "CoT2 paper, ProntoQA": {"direct": 73.65, "discrete": 82.47, "coconut": 96.94, "cot2": 98.01},
    "Coconut paper, ProsQA": {"direct": 76.7, "pause": 75.9, "discrete": 77.5, "coconut": 97.0},
    "Coconut paper, ProntoQA": {"direct": 93.8, "pause": 77.7, "discrete": 98.8, "coconut": 99.8},
}
"""Accuracy in percent as others published it. Coconut's values are from memory of its paper, not verified."""
KEYS = {
    "MNNS": "a multiset of digits",
    "subset sum": "a multiset of numbers and the target",
    "multi-hop": "facts and start up to names and order",
    "reachability": "a graph with its question up to names and order",
}
NOT_COMPARABLE = (
    "here: this study's reachability, for orientation only: the others are not the same task. ProsQA's published "
    "validation items are stories in words about 17 to 28 nodes; ours are lists of edges, an edge a token, between 10 "
    "nodes, all targets three edges away and both candidates drawn alike. The Coconut paper trains GPT-2 small, "
    "pretrained, and its values here are from memory, unverified; the CoT2 paper trains small models from scratch, how "
    "small on these tasks is unverified, too; ours has 30 thousand weights. ProntoQA asks whether one node can be "
    "reached within 5 steps, which `reachability` can pose (asks=whether) but this study does not."
)
LADDER_LEGEND = (
    "accuracy in percent at each difficulty alone, mean over seeds, with its 95 % interval; at most 1000 problems a "
    "seed, of keys held out from training (in multi-hop a key is facts and start, whatever the hops). trained: whether "
    "such problems were trained on. Every method takes as many steps as the longer chain has. Coconut's last stage has "
    "three latent steps and says what follows them in tokens, which that stage never trained; CoT2 and discrete chain "
    "of thought do more of the same."
)


def grid(profile: Profile) -> list[Experiment]:
    """Every method on every task and seed."""
    return [
        experiment(place, method, seed, profile) for place in TASKS for method in METHODS for seed in SEEDS[profile]
    ]


def tables(records: list[Record]) -> list[Table]:
    """The overview, a comparison a task, the ladders, and what others published."""
    places = grouped(records, place_of)
    compared = [
        comparison(group, f"{place[:1].upper()}{place[1:]}: {TASKS[place]}", {}, KEYS[place])
        for place, group in places.items()
    ]
    return [_overview(places), *compared, _ladders(places), _published(places["reachability"])]


def _overview(places: dict[str, list[Record]]) -> Table:
    """A row a method and task, and whether superposition beats one discrete chain on each."""
    rows: list[dict[str, Value]] = []
    notes = []
    for place, records in places.items():
        groups = grouped(records, method_of)
        for name, group in groups.items():
            rows.append({"task": place, "method": LABELS[name], **percent(accuracy(group)), "seeds": len(group)})
        for other in ("discrete", "coconut"):
            notes.append(better(f"{place}: CoT2", groups["cot2"], LABELS[other], groups[other]))
    legend = "accuracy: percent of problems of keys never seen in training, mean over seeds, with its 95 % interval."
    columns = {"task": "s", "method": "s", "accuracy": ".2f", "low": ".2f", "high": ".2f", "seeds": "d"}
    return Table("Five ways of answering on four tasks", columns, rows, [legend, *listed(notes)])


def rungs(group: list[Record]) -> dict[int, Interval]:
    """Accuracy of runs that differ in seeds, at each difficulty of their task's ladder."""
    return {int(level): accuracy_interval(*_rung(group, level)) for level in group[0].get("ladder", {})}


def _rung(group: list[Record], level: str) -> tuple[list[list[int]], list[list[int]]]:
    """Right answers and problems per key of each run, at one difficulty."""
    rungs = [record["ladder"][level] for record in group]
    return [rung["right"] for rung in rungs], [rung["total"] for rung in rungs]


def _require_same_rungs(ours: list[Record], theirs: list[Record], level: str) -> None:
    """Raises ValueError unless both groups were asked the same problems at a difficulty, run by run."""
    keys = [[record["ladder"][level]["keys"] for record in group] for group in (ours, theirs)]
    if keys[0] != keys[1]:
        raise ValueError(f"runs of {method_of(ours[0])} and {method_of(theirs[0])} are not on the same rungs")


def trained(place: str) -> int:
    """The greatest difficulty that a task is trained on."""
    settings = vars(TASKS[place])
    return settings["hops"] if "hops" in settings else settings["digits"]


def _climbing(places: dict[str, list[Record]]) -> Iterator[tuple[str, dict[str, list[Record]]]]:
    """Tasks that have a ladder, with their records by method."""
    for place, records in places.items():
        if "ladder" in records[0]:
            yield place, grouped(records, method_of)


def _ladders(places: dict[str, list[Record]]) -> Table:
    """A row a task, difficulty and method."""
    rows: list[dict[str, Value]] = []
    notes = []
    for place, groups in _climbing(places):
        found = {name: rungs(group) for name, group in groups.items()}
        most = trained(place)
        for level in next(iter(found.values())):
            mark = "yes" if level <= most else "no"
            rows += [
                {"task": place, "difficulty": level, "trained": mark, "method": LABELS[name], **percent(each[level])}
                for name, each in found.items()
            ]
        beyond = str(most + 1)
        for claimed, other in (("cot2", "discrete"), ("cot2", "coconut")):
            ours, totals = _rung(groups[claimed], beyond)
            _require_same_rungs(groups[claimed], groups[other], beyond)
            gap = paired_difference(ours, _rung(groups[other], beyond)[0], totals)
            claim = f"{place} at {beyond}, beyond training: {LABELS[claimed]} is more often right than {LABELS[other]}"
            notes.append(verdict(claim, gap, len(ours)))
    columns = {
        "task": "s", "difficulty": "d", "trained": "s", "method": "s", "accuracy": ".2f", "low": ".2f", "high": ".2f",
    }  # fmt: skip
    return Table("Beyond training: numbers of MNNS, hops of multi-hop", columns, rows, [LADDER_LEGEND, *listed(notes)])


def _published(records: list[Record]) -> Table:
    """A row a method: ours on reachability, and what others published on their tasks."""
    groups = grouped(records, method_of)
    rows: list[dict[str, Value]] = []
    for name, group in groups.items():
        row: dict[str, Value] = {"method": LABELS[name], **percent(accuracy(group), "here")}
        rows.append(row | {title: values.get(name) for title, values in PUBLISHED.items()})
    columns = {"method": "s", "here": ".2f", "low": ".2f", "high": ".2f", **dict.fromkeys(PUBLISHED, ".2f")}
    claim = "CoT2's lead over discrete CoT, which its paper has on both tasks, is there on ours:"
    notes = [better(f"{claim} CoT2", groups["cot2"], LABELS["discrete"], groups["discrete"])]
    return Table("Published ProsQA and ProntoQA, not comparable", columns, rows, [NOT_COMPARABLE, *listed(notes)])


def draw(records: list[Record], path: Path) -> None:
    """Accuracy a task, methods side by side with their controls hollow; then the curves beyond training."""
    places = grouped(records, place_of)
    climbing = list(_climbing(places))
    with figure(path, 5.5 + 3 * len(climbing), 3.4, columns=1 + len(climbing)) as (left, *others):
        for place, group in enumerate(places.values()):
            for offset, (name, runs) in enumerate(grouped(group, method_of).items()):
                at = place + 0.15 * (offset - 2)
                interval_column(left, at, accuracy(runs), COLOURS[name], label=LABELS[name] if not place else None)
                for control in runs[0]["evaluations"]:
                    if control != ITSELF:
                        interval_column(left, at + 0.05, accuracy(runs, control), COLOURS[name], hollow=True)
        left.set_xticks(range(len(places)), places)
        left.set(ylabel="validation accuracy, % (hollow: latents replaced)", ylim=(0, 102))
        left.legend(fontsize=7, loc="lower left")
        for axes, (task, groups) in zip(others, climbing, strict=True):
            for name, runs in groups.items():
                found = rungs(runs)
                axes.plot([*found], [100 * each.value for each in found.values()], color=COLOURS[name])
                for level, each in found.items():
                    interval_column(axes, level, each, COLOURS[name])
            axes.axvspan(trained(task) + 0.5, max(found) + 0.5, color="black", alpha=0.06, linewidth=0)
            axes.set(title=f"{task}: shaded is beyond training", ylim=(0, 102), xticks=list(found))
            axes.set_xlabel("numbers" if task == "MNNS" else "hops")


STUDY = Study(
    "tasks",
    "How do five ways of answering compare on MNNS, subset sum, multi-hop and reachability, and beyond training?",
    grid,
    tables,
    draw,
)
