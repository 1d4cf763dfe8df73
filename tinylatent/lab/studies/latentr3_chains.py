"""Study `latentr3-chains`: who wins without labels? LatentR3 on MNNS and multi-hop beside methods taught steps.

LatentR3's latents are taught by answers alone, and its second stage is rewarded by how likely they make the right
answer; chains are not needed. CoT2, CoLaR and the chain of thought learn from the steps that the first has no use for.
The main question is about the first stage: is attention better than no latents, a learned constant, a raw hidden state?
The second stage earns credit as in study `latentr3`; it sees the problems of the first stage again. What it does to the
reward on them, without noise, is told as the median over runs, since means of perplexities are those of a few problems.
Multi-hop is told apart by the number of hops.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean, median

from tinylatent_tasks import Task

from tinylatent.core.seeds import Seeds
from tinylatent.evaluation.statistics import accuracy_interval, paired_difference
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import Finding
from tinylatent.lab.plots import figure, interval_row, legend_below, legend_mark
from tinylatent.lab.recipes_latentr3 import ARMS, CHAINS, LABELLED, PLACES, SECOND, build, split
from tinylatent.lab.records import DEFAULT, ExperimentRecord
from tinylatent.lab.studies.compare import (
    Records,
    accuracy,
    before,
    course,
    lead,
    needs_own,
    paired,
    percent,
    placed,
    positive,
    totals,
)
from tinylatent.lab.studies.latentr3 import SEEDS, by_place, shortened
from tinylatent.lab.studies.latentr3_second import CREDIT
from tinylatent.lab.studies.latentr3_tables import Groups
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value
from tinylatent.training.config import Training

HOPS = "hops-"
QUICK = tuple(f"hops-{kind}" for kind in ("direct", "attention", "surrogate", "likelihood", "plain"))


def grid(profile: Profile) -> list[Experiment]:
    """Every arm on every seed; few of them, briefly trained, in the quick profile."""
    arms = [arm for arm in ARMS if split(arm)[0] in CHAINS] if profile == "full" else QUICK
    return [shortened(build(arm, seed), profile) for arm in arms for seed in SEEDS[profile]]


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """All arms, findings by task; multi-hop by the number of hops."""
    places = by_place(records)
    return [unlabelled(places), *(by_hops(places[HOPS]) if HOPS in places else ())]


def unlabelled(places: Mapping[str, Groups]) -> Table:
    """A row an arm and task with known chains: accuracy, whether steps were taught, and what the second stage adds."""
    rows: list[dict[str, Value]] = []
    findings: list[Finding] = []
    for prefix, groups in places.items():
        title = PLACES[prefix].title
        for kind, group in groups.items():
            row: dict[str, Value] = {"task": title, "arm": ARMS[prefix + kind][0]}
            row |= {"steps": "taught" if kind in LABELLED else "", **percent(accuracy(group)), "seeds": len(group)}
            row |= {
                "least": 100 * min(each.accuracy for each in group),
                "most": 100 * max(each.accuracy for each in group),
            }
            row["train"] = _trained(group)
            if kind in SECOND:
                row |= {"reward first": _median(group, 0.0), "reward last": _median(group, 1.0)}
                row["before"] = 100 * accuracy_interval(before(group), totals(group)).value
                row |= percent(lead(group, groups["attention"]), "gain", "gain low", "gain high")
            row["train_s"] = fmean(record.cost.training_seconds for record in group)
            rows.append(row)
        findings += [placed(title, each) for each in _without_labels(prefix, groups)]
    columns = {
        "task": "s", "arm": "s", "steps": "s", "accuracy": ".2f", "low": ".2f", "high": ".2f", "least": ".2f",
        "most": ".2f", "train": ".2f", "reward first": ".1f", "reward last": ".1f", "before": ".2f", "gain": "+.2f",
        "gain low": "+.2f", "gain high": "+.2f", "seeds": "d", "train_s": ".0f",
    }  # fmt: skip
    legend = (
        "accuracy in percent on problems of keys never trained on, greedy, with its 95 % interval; least, most: of the "
        "runs. steps taught: the arm learns from the steps of chains; all others from answers alone, the second stage "
        "by minus the perplexity of the right answer. Arms with latents have as many as chains have steps at most. "
        "train: percent right on problems of training. reward first, reward last: minus the perplexity of the right "
        "answer without noise, on the first and on the last logged batch of the second stage, median over runs. "
        "before, gain: of the second stage, over the first. CoLaR starts from the chain of thought, so that it is "
        "trained twice; the second stage from attention. train_s: seconds of the arm alone."
    )
    return Table("MNNS and multi-hop: who wins without labels?", columns, rows, legend, findings)


def _without_labels(prefix: str, groups: Groups) -> Iterator[Finding]:
    """Whether attention is best of what is taught answers, its rewards earn credit, and labelled steps beat both."""
    ours, second = groups["attention"], groups["surrogate"]
    rivals = [kind for kind in groups if kind not in (*LABELLED, *SECOND, "attention")]
    yield _best("attention is more often right than all others that are taught answers", ours, prefix, groups, rivals)
    for kind in rivals:
        claim = f"attention is more often right than {ARMS[prefix + kind][0]}"
        yield positive(claim, lead(ours, groups[kind]), len(ours), "without labels")
    if {*CREDIT} <= groups.keys():
        claim = (
            f"{ARMS[prefix + 'surrogate'][0]}: reinforcement earns its gain: it is more often right than training on "
            "the likelihood, with noise and without, and than its start"
        )
        yield _best(claim, second, prefix, groups, [*CREDIT])
    for kind in (kind for kind in LABELLED if kind in groups):
        claim = f"{ARMS[prefix + kind][0]}, taught steps, is more often right than attention, taught answers"
        yield positive(claim, lead(groups[kind], ours), len(ours), "labels")


def _best(claim: str, ours: Records, prefix: str, groups: Groups, rivals: Sequence[str]) -> Finding:
    """Whether an arm is more often right than each of its rivals."""
    gaps = {ARMS[prefix + kind][0]: lead(ours, groups[kind]) for kind in rivals}
    return replace(needs_own(claim, gaps, len(ours)), family="without labels")


def _trained(group: Records) -> float:
    """Percent right on problems of training."""
    shares = [run.train.share for run in group if run.train is not None]
    return 100 * fmean(shares) if shares else float("nan")


def _median(group: Records, at: float) -> float | None:
    """The median over runs of the reward without noise at a share of the log; None where it was not logged."""
    values = course(group, "quiet_reward", at)
    return median(values) if values else None


# ---------------------------------------------------------------------------------------------------------------------
# By hops


def by_hops(groups: Groups) -> list[Table]:
    """A row an arm and number of hops: accuracy on keys all of whose problems have so many; no table without such."""
    rows: list[dict[str, Value]] = []
    findings: list[Finding] = []
    counts = sorted({hops for record in next(iter(groups.values())) for hops in _hops_of_keys(record) if hops})
    if not counts:
        return []
    for kind, group in groups.items():
        for hops in counts:
            right, total = _at(group, hops)
            found = accuracy_interval(right, total)
            row: dict[str, Value] = {"arm": ARMS[HOPS + kind][0], "hops": hops, **percent(found)}
            rows.append({**row, "problems": sum(map(sum, total)) // len(group), "seeds": len(group)})
    ours = groups["attention"]
    for kind in (kind for kind in groups if kind not in (*LABELLED, *SECOND, "attention")):
        for hops in counts:
            mine, other = paired(ours, groups[kind])
            (first, total), (second, _) = _at(mine, hops), _at(other, hops)
            claim = f"multi-hop at {hops} hops: attention is more often right than {ARMS[HOPS + kind][0]}"
            findings.append(positive(claim, paired_difference(first, second, total), len(ours), "by hops"))
    columns = {
        "arm": "s", "hops": "d", "accuracy": ".2f", "low": ".2f", "high": ".2f", "problems": "d", "seeds": "d",
    }  # fmt: skip
    legend = (
        "accuracy in percent with its 95 % interval, on keys (facts and start) all of whose problems in the validation "
        "part have this number of hops; keys of several numbers are left out. problems: of a run, on average."
    )
    return [Table("Multi-hop: how many hops are learnt?", columns, rows, legend, findings)]


def _at(group: Records, hops: int) -> tuple[list[list[int]], list[list[int]]]:
    """Right answers and problems per key of each run, of keys with this number of hops alone."""
    right, total = [], []
    for record in group:
        here = [number for number, only in enumerate(_hops_of_keys(record)) if only == hops]
        right.append([record.evaluations[DEFAULT].right[number] for number in here])
        total.append([record.total[number] for number in here])
    return right, total


def _hops_of_keys(record: ExperimentRecord) -> tuple[int, ...]:
    """The number of hops that all problems of each key have; 0 where they differ."""
    run = record.experiment
    known = _hops_of(run.task, run.training.num_train, run.seeds)
    return tuple(known.get(key, 0) for key in record.keys)


@lru_cache
def _hops_of(task: Task, num_train: int | None, seeds: Seeds) -> dict[str, int]:
    """The same by key, of a validation part."""
    rows = Experiment(task, training=Training(num_train=num_train), seeds=seeds).rows("validation")
    hops: dict[str, set[int]] = {}
    for key, steps in zip(task.key(rows).tolist(), task.batch(rows).steps_B.tolist(), strict=True):
        hops.setdefault(f"{key:016x}", set()).add(steps)
    return {key: each.pop() if len(each) == 1 else 0 for key, each in hops.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The figure


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """A panel a task: accuracy of every arm, those that are taught steps hollow."""
    places = by_place(records)
    with figure(path, 5.5 * len(places), 4.8, columns=len(places)) as panels:
        for axes, (prefix, groups) in zip(panels, places.items(), strict=True):
            for y, (kind, group) in enumerate(groups.items()):
                interval_row(axes, -y, accuracy(group), ARMS[prefix + kind][2], hollow=kind in LABELLED)
            axes.set_yticks([-y for y in range(len(groups))], [ARMS[prefix + kind][0] for kind in groups], fontsize=7)
            axes.set(title=PLACES[prefix].title, xlabel="validation accuracy, %", xlim=(0, 102))
        legend_mark(panels[0], "steps were taught")
        legend_mark(panels[0], "bar: 95 %", "_", hollow=False)
        legend_below(panels, 2)


STUDY = Study(
    "latentr3-chains",
    "Without labels of steps, who wins on MNNS and multi-hop: LatentR3's latents or others?",
    grid,
    tables,
    draw,
)
