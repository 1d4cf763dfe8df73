"""Study `mnns-rl`: does reinforcement learning improve sampled latents on MNNS, and which way of sampling is best?

GRPO (Gozeten et al. 2025, section 5) from two starts of study `mnns`, discrete chain of thought and CoT2, with K
sampled tokens a latent step, with the paper's and the official code's ratio, with Dirichlet latents of matched variance
and with a K that grows. Every arm has the learning rate that study `mnns-rl-tuning` chose for it. Then chains: at equal
sampled tokens, N chains of K tokens against N K discrete ones.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from tinylatent.evaluation.statistics import Interval, mean_interval, paired_difference
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.measure import ITSELF
from tinylatent.lab.plots import COLOURS, figure, interval_column
from tinylatent.lab.report import Table, Value
from tinylatent.lab.studies.compare import (
    accuracy,
    controls,
    difference,
    finding,
    grouped,
    latents_matter,
    listed,
    percent,
    require_same_splits,
    rights,
    sampled_accuracy,
    sampled_counts,
    scaled,
    totals,
    verdict,
)
from tinylatent.lab.studies.rl_lineup import ARMS, STARTS, arm_of, experiment, start_of
from tinylatent.lab.study import Profile, Record, Study

SEEDS: dict[Profile, range] = {"quick": range(2), "full": range(5)}
QUICK_ARMS, QUICK_STEPS = ("K = 1", "K = 3", "Dirichlet 2"), 200
RIVALS = (
    ("K = 3", "K = 1"), ("K = 6", "K = 1"), ("K = 1, 3, 6", "K = 6"), ("Dirichlet 2", "K = 3"),
    ("Dirichlet 5", "K = 6"), ("K = 3, paper", "K = 3"), ("K = 3, official", "K = 3"),
)  # fmt: skip
"""Pairs of arms: is the first better than the second?"""
OWN = {"discrete CoT": "greedy", "CoT2": "mixture"}
"""How each start answers without sampling."""
VOTERS, TOKENS = {"K = 1": 1, "K = 3": 3, "K = 6": 6}, (6, 12, 24)
COLUMNS = {
    "start": "s", "latents": "s", "rate": "g", "before": ".2f", "after": ".2f", "low": ".2f", "high": ".2f",
    "gain": "+.2f", "gain low": "+.2f", "gain high": "+.2f", "greedy": ".2f", "mixture": ".2f", "noise": ".2f",
    "shuffled": ".2f", "zero": ".2f", "seeds": "d", "train_s": ".0f",
}  # fmt: skip
LEARNING = {
    "start": "s", "latents": "s", "entropy before": ".3f", "entropy after": ".3f", "change": "+.3f", "low": "+.3f",
    "high": "+.3f", "step 1": "+.3f", "step 2": "+.3f", "step 3": "+.3f", "answer": "+.3f", "reward first": ".3f",
    "reward last": ".3f", "silent first": ".3f", "silent last": ".3f", "gradient norm": ".3f", "stopped": "d",
}  # fmt: skip
CHAINS = {
    "start": "s", "when": "s", "tokens": "d", "K": "d", "N": "d", "one chain": ".2f", "majority@N": ".2f", "low": ".2f",
    "high": ".2f", "pass@N": ".2f", "pass low": ".2f", "pass high": ".2f",
}  # fmt: skip
Arm = tuple[str, str]


def grid(profile: Profile) -> list[Experiment]:
    """Every arm from every start on every seed."""
    runs = [
        experiment(start, arm, seed)
        for start in STARTS
        for arm in (ARMS if profile == "full" else QUICK_ARMS)
        for seed in SEEDS[profile]
    ]
    if profile == "full":
        return runs
    return [replace(run, training=replace(run.training, steps=QUICK_STEPS, log_every=20)) for run in runs]


def arm(record: Record) -> Arm:
    """Start and arm of a record."""
    return start_of(record), arm_of(record)


def before(group: list[Record]) -> list[Record]:
    """The records as they would be without reinforcement learning: the start under the arm's inference."""
    return [{**record, **record["before"]} for record in group]


def tables(records: list[Record]) -> list[Table]:
    """Accuracy before and after, what training looked like, and chains at equal sampled tokens."""
    groups = grouped(records, arm)
    return [_accuracies(groups), _learning(groups), _chains(groups)]


def _accuracies(groups: dict[Arm, list[Record]]) -> Table:
    rows: list[dict[str, Value]] = []
    gains = {each: gain(group) for each, group in groups.items()}
    for (start, name), group in groups.items():
        row: dict[str, Value] = {
            "start": start,
            "latents": name,
            "rate": group[0]["experiment"]["training"]["rate"],
            "before": 100 * accuracy(before(group)).value,
            **percent(accuracy(group), "after"),
            **percent(gains[start, name], "gain", "gain low", "gain high"),
            "seeds": len(group),
            "train_s": fmean([record["cost"]["training_seconds"] for record in group]),
        }
        for other in ("greedy", "mixture", *controls(group)):
            row[other] = 100 * accuracy(group, other).value
        rows.append(row)
    legend = (
        "before, after: percent of the validation part, latents sampled as in training, answer greedy; mean over "
        "seeds with its 95 % interval (bootstrap over seeds and keys, a key being a multiset of digits; Student's t "
        "over seeds where that is wider). gain: after minus before, problem by problem with the same random numbers. "
        "greedy, mixture: the trained weights thinking in their likeliest token, and in mixtures (base CoT2). noise, "
        "shuffled, zero: latents replaced at evaluation. Reward: 1 for a right answer of a training problem, groups of "
        "8, one update a batch, so that the ratio is 1 where it is used and its clip of 0.1 cannot act, no KL. K = 1 "
        "is plain discrete GRPO. official draws from logits divided by K before training as well, which is why it "
        "begins so low. The published study reports gains for K of 1, 3 and 6; its cells were not available to set "
        "beside these. There is a verdict for every arm and no correction for their number."
    )
    title = "MNNS, m = 4: reinforcement learning with sampled latents"
    return Table(title, COLUMNS, rows, [legend, *listed(_findings(groups, gains))])


def gain(group: list[Record], reading: str = ITSELF) -> Interval:
    """Accuracy after minus before, on the same problems."""
    return paired_difference(rights(group, reading), rights(before(group), reading), totals(group))


def _findings(groups: dict[Arm, list[Record]], gains: dict[Arm, Interval]) -> Iterator[str]:
    """Whether each start is improved, how arms compare, and whether anything beats the start's own inference."""
    for (start, name), group in groups.items():
        yield verdict(f"{start}, {name}: reinforcement learning improves it", gains[start, name], len(group))
    for start in STARTS:
        here = [each for (its, _), each in gains.items() if its == start]
        sure = sum(each.low > 0 for each in here)
        values = [100 * each.value for each in here]
        if all(len(group) > 1 for group in groups.values()):
            yield (
                f"From {start}, reinforcement learning surely improves {sure} of {len(here)} ways to sample "
                f"(gains between {min(values):+.2f} and {max(values):+.2f} points)."
            )
    for (start, name), group in groups.items():
        own = OWN[start]
        claim = f"{start}, {name}: it improves the weights as the start reads them, without sampling ({own})"
        yield verdict(claim, gain(group, own), len(group))
    for start in STARTS:
        for claimed, other in RIVALS:
            if (start, claimed) in groups and (start, other) in groups:
                ours, theirs = groups[start, claimed], groups[start, other]
                claim = f"{start}: {claimed} ends higher than {other}"
                yield verdict(claim, difference(ours, theirs), len(ours))
    for (start, name), group in groups.items():
        claim = f"{start}, {name}: sampled, better after it than the start was without sampling ({OWN[start]})"
        without = rights(before(group), OWN[start])
        yield verdict(claim, paired_difference(rights(group), without, totals(group)), len(group))
    for (start, name), group in groups.items():
        if controls(group):
            yield latents_matter(f"{start}, {name}", group)


# ---------------------------------------------------------------------------------------------------------------------
# What training looked like


def entropy(record: Record) -> float:
    """Mean entropy of the latent steps, in nats."""
    return fmean(record["evaluations"][ITSELF]["entropy"][:-1])


def entropy_change(group: list[Record]) -> Interval:
    """Mean entropy of the latent steps after minus before, over seeds."""
    changes = [entropy(now) - entropy(then) for now, then in zip(group, before(group), strict=True)]
    return mean_interval(changes)


def stepwise_change(group: list[Record]) -> list[float]:
    """Mean entropy of each step after minus before, the answer's included, over seeds."""
    now, then = (
        [fmean(at) for at in zip(*(r["evaluations"][ITSELF]["entropy"] for r in records), strict=True)]
        for records in (group, before(group))
    )
    return [a - b for a, b in zip(now, then, strict=True)]


def _learning(groups: dict[Arm, list[Record]]) -> Table:
    rows: list[dict[str, Value]] = []
    notes = []
    for (start, name), group in groups.items():
        change, lines = entropy_change(group), [record["metrics"] for record in group]
        rows.append(
            {
                "start": start,
                "latents": name,
                "entropy before": fmean(map(entropy, before(group))),
                "entropy after": fmean(map(entropy, group)),
                "change": change.value,
                "low": change.low,
                "high": change.high,
                **dict(zip(STEPS, stepwise_change(group), strict=True)),
                **{f"reward {when}": fmean([each[at]["reward"] for each in lines]) for when, at in ENDS},
                **{f"silent {when}": fmean([each[at]["silent_groups"] for each in lines]) for when, at in ENDS},
                "gradient norm": fmean([fmean([line["gradient_norm"] for line in each]) for each in lines]),
                "stopped": sum("stopped" in record for record in group),
            }
        )
        word = finding(change.high < 0, change.low > 0, len(group))
        figures = f"{change.value:+.3f} nats [{change.low:+.3f}, {change.high:+.3f}]"
        notes.append(f"{word}: {start}, {name}: it lowers the entropy of the latent steps ({figures}).")
    legend = (
        "entropy: of the latent steps' softmax at temperature 1 in nats (official draws from a flatter one), on "
        "validation problems, mean over steps; change: after minus before, then each step's own and the answer's. The "
        "published study reports that it falls, to less for smaller K. reward, silent (share of groups that teach "
        "nothing): means over the first and the last stretch of the log; gradient norm: over all. stopped: runs that "
        "ended early for lack of signal. Every line of every log is in runs.jsonl."
    )
    return Table("What it does to the latents, and how it went", LEARNING, rows, [legend, *listed(notes)])


ENDS = (("first", 0), ("last", -1))
STEPS = ("step 1", "step 2", "step 3", "answer")

# ---------------------------------------------------------------------------------------------------------------------
# Chains at equal sampled tokens


def voters(groups: dict[Arm, list[Record]]) -> dict[tuple[str, str, int], list[Record]]:
    """The arms whose chains vote, by start, before or after, and K."""
    found: dict[tuple[str, str, int], list[Record]] = {}
    for (start, name), group in groups.items():
        if name in VOTERS:
            found |= {(start, "before", VOTERS[name]): before(group), (start, "after", VOTERS[name]): group}
    return dict(sorted(found.items(), key=lambda each: (list(STARTS).index(each[0][0]), each[0][1] == "after")))


def _chains(groups: dict[Arm, list[Record]]) -> Table:
    rows: list[dict[str, Value]] = []
    notes, found = [], voters(groups)
    for (start, when, K), group in found.items():
        for tokens in TOKENS:
            k = str(tokens // K)
            row: dict[str, Value] = {"start": start, "when": when, "tokens": tokens, "K": K, "N": tokens // K}
            row["one chain"] = 100 * sampled_accuracy(group, "pass", "1", "1").value
            row |= percent(sampled_accuracy(group, "majority", "1", k), "majority@N")
            row |= percent(sampled_accuracy(group, "pass", "1", k), "pass@N", "pass low", "pass high")
            rows.append(row)
            for other in dict.fromkeys((start, "discrete CoT")) if K > 1 else ():
                claim = (
                    f"{start}, {when}: a vote of {k} of its chains of K = {K} beats one of {tokens} discrete chains of "
                    f"{'the same start' if other == start else other}, {when} ({tokens} sampled tokens a step)"
                )
                gap = votes_gap(group, k, found[other, when, 1], str(tokens))
                notes.append(verdict(claim, gap, len(group)))
    legend = (
        "N chains of K tokens sample N K tokens a latent step in either case, and an answer a chain; N chains take N "
        "times the steps of one: at equal sampled tokens fewer chains are cheaper. Answers sampled at temperature 1, "
        "32 a problem; majority@N over 32 // N disjoint blocks, ties to the answer that came first (so two chains "
        "decide as one), pass@N unbiased. before: the start; after: each arm's own weights. Discrete chains are those "
        "of K = 1."
    )
    return Table("N chains of K tokens at equal sampled tokens", CHAINS, rows, [legend, *listed(notes)])


def votes_gap(ours: list[Record], k: str, theirs: list[Record], j: str) -> Interval:
    """majority@k of one group of runs minus majority@j of another, on the same splits."""
    require_same_splits(ours, theirs)
    (our_right, our_of), (right, of) = (
        sampled_counts(group, "majority", "1", votes) for group, votes in ((ours, k), (theirs, j))
    )
    a = [scaled(right_K, each) for right_K, each in zip(our_right, of, strict=True)]
    b = [scaled(right_K, each) for right_K, each in zip(right, our_of, strict=True)]
    both = [x * y for x, y in zip(our_of, of, strict=True)]
    return paired_difference(a, b, [scaled(r["total"], each) for r, each in zip(ours, both, strict=True)])


def draw(records: list[Record], path: Path) -> None:
    """A pair of panels a start: accuracy before (hollow) and after, and the reward while it learns."""
    groups = grouped(records, arm)
    with figure(path, 14, 3.8, columns=4) as panels:
        for number, start in enumerate(STARTS):
            here = {name: group for (its, name), group in groups.items() if its == start}
            accuracies, rewards = panels[2 * number : 2 * number + 2]
            for place, (name, group) in enumerate(here.items()):
                interval_column(accuracies, place - 0.1, accuracy(before(group)), COLOURS[name], hollow=True)
                interval_column(accuracies, place + 0.1, accuracy(group), COLOURS[name])
                steps = [line["step"] for line in group[0]["metrics"]]
                curves = [[line["reward"] for line in record["metrics"]] for record in group]
                shared = min(map(len, curves))
                rewards.plot(
                    steps[:shared], [fmean(at) for at in zip(*(c[:shared] for c in curves), strict=True)],
                    color=COLOURS[name], label=name,
                )  # fmt: skip
            accuracies.set_xticks(range(len(here)), [*here], rotation=40, ha="right")
            accuracies.set(title=f"from {start}", ylabel="validation accuracy, %", ylim=(0, 102))
            rewards.set(title=f"from {start}", xlabel="batches of rollouts", ylabel="training reward", ylim=(0, 1.02))
        panels[0].plot([], [], "o", color="black", markerfacecolor="white", label="before")
        panels[0].plot([], [], "o", color="black", label="after")
        panels[0].legend(loc="lower left")
        panels[3].legend(loc="lower right", fontsize=7)


STUDY = Study(
    "mnns-rl",
    "Does reinforcement learning improve sampled latents on MNNS, from discrete chains and from CoT2, and how sampled?",
    grid,
    tables,
    draw,
)
