"""What study `mnns-rl` found: accuracy before and after, what training did to the latents, and votes of chains.

Records are grouped by way: the name of the method that training started from, and the name of the sampler.
"""

from collections.abc import Iterator, Mapping
from statistics import fmean

import msgspec

from tinylatent.evaluation.statistics import Interval, mean_interval, paired_difference
from tinylatent.lab.arms import arms, sampler_arms
from tinylatent.lab.findings import HOLDS, Finding, decided
from tinylatent.lab.recipes import SAMPLERS, STARTS
from tinylatent.lab.records import DEFAULT, ExperimentRecord
from tinylatent.lab.studies.compare import (
    Records,
    accuracy,
    controls,
    difference,
    latents_matter,
    percent,
    positive,
    require_same_splits,
    rights,
    sampled_accuracy,
    sampled_counts,
    scaled,
    totals,
)
from tinylatent.lab.tables import Table, Value
from tinylatent.methods import GRPO

RIVALS = (
    ("k3", "k1"), ("k6", "k1"), ("k136", "k6"), ("dirichlet2", "k3"), ("dirichlet5", "k6"), ("k3-paper", "k3"),
    ("k3-official", "k3"),
)  # fmt: skip
"""Pairs of samplers: is the first better than the second?"""
TOKENS = (6, 12, 24)
"""Sampled tokens a step at which chains vote."""
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
STEPS = ("step 1", "step 2", "step 3", "answer")
CHAINS = {
    "start": "s", "when": "s", "tokens": "d", "K": "d", "N": "d", "one chain": ".2f", "majority@N": ".2f", "low": ".2f",
    "high": ".2f", "pass@N": ".2f", "pass low": ".2f", "pass high": ".2f",
}  # fmt: skip
Way = tuple[str, str]


def before(group: Records) -> Records:
    """The records as they would be without reinforcement learning: the start with the same inference.

    Raises:
        ValueError: a record starts from no other run.
    """
    found = []
    for record in group:
        then = record.before
        if then is None:
            raise ValueError(f"run {record.id} was not evaluated before its training: expected a run with a start")
        found.append(msgspec.structs.replace(record, evaluations=then.evaluations, sampling=then.sampling))
    return found


def gain(group: Records, decoder: str = DEFAULT) -> Interval:
    """Accuracy after minus before, on the same problems."""
    return paired_difference(rights(group, decoder), rights(before(group), decoder), totals(group))


def _labels(way: Way) -> tuple[str, str]:
    """What tables call a start and a sampler."""
    start, sampler = way
    return arms("mnns")[start].label, sampler_arms(start)[sampler].label


def _words(way: Way) -> str:
    """The same in one phrase."""
    return ", ".join(_labels(way))


def _names(way: Way) -> dict[str, Value]:
    """The cells that name a start and a sampler."""
    return dict(zip(("start", "latents"), _labels(way), strict=True))


def _unsampled(start: str) -> str:
    """The decoder of GRPO that thinks as a start does, without sampling."""
    return next(name for name, method in GRPO().decoders.items() if method.name == start)


# ---------------------------------------------------------------------------------------------------------------------
# Accuracy


def accuracies(groups: Mapping[Way, Records]) -> Table:
    """A row a way: accuracy before and after, with other decoders, and under controls."""
    rows: list[dict[str, Value]] = []
    gains = {way: gain(group) for way, group in groups.items()}
    for way, group in groups.items():
        row = {
            **_names(way),
            "rate": group[0].experiment.training.learning_rate,
            "before": 100 * accuracy(before(group)).value,
            **percent(accuracy(group), "after"),
            **percent(gains[way], "gain", "gain low", "gain high"),
            "seeds": len(group),
            "train_s": fmean([record.cost.training_seconds for record in group]),
        }
        for other in ("greedy", "mixture", *controls(group)):
            row[other] = 100 * accuracy(group, other).value
        rows.append(row)
    legend = (
        "before, after: percent of the validation part, latents sampled as in training, answer greedy; mean over seeds "
        "with its 95 % interval (bootstrap over seeds and keys, a key being a multiset of digits; Student's t over "
        "seeds where that is wider). gain: after minus before, problem by problem with the same random numbers. rate: "
        "the best of those tried for each way by study mnns-rl-tuning; where rates differ, ways differ in them as "
        "well. greedy, mixture: the trained weights thinking in their likeliest token, and in mixtures (base CoT2). "
        "noise, shuffled, zero: latents replaced at evaluation. Reward: 1 for a right answer of a training problem, "
        "groups of 8, one update a batch, so that the ratio is 1 where it is used and its clip of 0.1 cannot act, no "
        "KL. K = 1 is plain discrete GRPO. official draws from logits divided by K before training as well, which is "
        "why it begins so low. The published study reports gains for K of 1, 3 and 6; its cells were not available to "
        "set beside these. There is a verdict for every way to sample and no correction for their number."
    )
    title = "MNNS, m = 4: reinforcement learning with sampled latents"
    findings = [*_gain_findings(groups, gains)]
    return Table(title, COLUMNS, rows, legend, [*findings, *_accuracy_findings(groups)], [*_shares(findings, gains)])


def _gain_findings(groups: Mapping[Way, Records], gains: Mapping[Way, Interval]) -> Iterator[Finding]:
    """Whether reinforcement learning improves a start, a finding for each way."""
    for way, group in groups.items():
        yield positive(f"{_words(way)}: reinforcement learning improves it", gains[way], len(group), "gains")


def _accuracy_findings(groups: Mapping[Way, Records]) -> Iterator[Finding]:
    """Whether starts gain without sampling, how samplers compare, and whether any beats the start without sampling."""
    for way, group in groups.items():
        own = _unsampled(way[0])
        claim = f"{_words(way)}: without sampling ({own}), the trained weights are more often right than the start's"
        yield positive(claim, gain(group, own), len(group), "gains")
    for start in STARTS:
        for claimed, other in RIVALS:
            if (start, claimed) in groups and (start, other) in groups:
                ours, theirs = groups[start, claimed], groups[start, other]
                (label, higher), (_, lower) = _labels((start, claimed)), _labels((start, other))
                claim = f"{label}: {higher} ends higher than {lower}"
                yield positive(claim, difference(ours, theirs), len(ours), "samplers")
    for way, group in groups.items():
        own = _unsampled(way[0])
        claim = f"{_words(way)}: sampling, the trained weights are more often right than the start without ({own})"
        gap = paired_difference(rights(group), rights(before(group), own), totals(group))
        yield positive(claim, gap, len(group), "gains")
    for way, group in groups.items():
        if controls(group):
            yield latents_matter(_words(way), group)


def _shares(findings: list[Finding], gains: Mapping[Way, Interval]) -> Iterator[str]:
    """How many ways to sample gain from each start, by the findings about gains."""
    for start in dict.fromkeys(start for start, _ in gains):
        here = [(found, gain) for found, (way, gain) in zip(findings, gains.items(), strict=True) if way[0] == start]
        values = [100 * gain.value for _, gain in here]
        improved = sum(found.verdict == HOLDS for found, _ in here)
        yield (
            f"From {arms('mnns')[start].label}, reinforcement learning surely improves {improved} of {len(here)} "
            f"ways to sample (gains between {min(values):+.2f} and {max(values):+.2f} points)."
        )


# ---------------------------------------------------------------------------------------------------------------------
# What training looked like


def entropy(record: ExperimentRecord) -> float:
    """Mean entropy of the latent steps, in nats."""
    return fmean(record.evaluations[DEFAULT].entropy[:-1])


def entropy_change(group: Records) -> Interval:
    """Mean entropy of the latent steps after minus before, over seeds."""
    return mean_interval([entropy(now) - entropy(then) for now, then in zip(group, before(group), strict=True)])


def stepwise_change(group: Records) -> list[float]:
    """Mean entropy of each step after minus before, the answer's included, over seeds."""
    now, then = (
        [fmean(at) for at in zip(*(record.evaluations[DEFAULT].entropy for record in records), strict=True)]
        for records in (group, before(group))
    )
    return [a - b for a, b in zip(now, then, strict=True)]


def learning(groups: Mapping[Way, Records]) -> Table:
    """A row a way: entropy before and after, rewards, and what the groups of rollouts taught."""
    rows: list[dict[str, Value]] = []
    findings = []
    for way, group in groups.items():
        change, logs = entropy_change(group), [record.metrics for record in group]
        row: dict[str, Value] = {
            **_names(way),
            "entropy before": fmean(map(entropy, before(group))),
            "entropy after": fmean(map(entropy, group)),
            "change": change.value,
            "low": change.low,
            "high": change.high,
            **dict(zip(STEPS, stepwise_change(group), strict=True)),
            "gradient norm": fmean([fmean([line["gradient_norm"] for line in log]) for log in logs]),
            "stopped": sum(record.stopped is not None for record in group),
        }
        for when, at in (("first", 0), ("last", -1)):
            row[f"reward {when}"] = fmean([log[at]["reward"] for log in logs])
            row[f"silent {when}"] = fmean([log[at]["frac_reward_zero_std"] for log in logs])
        rows.append(row)
        verdict = decided(change.high < 0, change.low > 0, len(group))
        evidence = f"{change.value:+.3f} nats [{change.low:+.3f}, {change.high:+.3f}]"
        claim = f"{_words(way)}: it lowers the entropy of the latent steps"
        findings.append(Finding(claim, verdict, evidence, change, "nats", "entropy", runs=len(group)))
    legend = (
        "entropy: of the latent steps' softmax at temperature 1 in nats (official draws from a flatter one), on "
        "validation problems, mean over steps; change: after minus before, then each step's own and the answer's. The "
        "published study reports that it falls, to less for smaller K; here rates differ between ways, and how far it "
        "falls is a matter of the rate, too. reward, silent (share of groups whose rewards "
        "are all alike, which teach nothing): means over the first and the last stretch of the log; gradient norm: "
        "over all. stopped: runs that ended early for lack of signal. Every line of every log is in runs.jsonl."
    )
    return Table("What it does to the latents, and how it went", LEARNING, rows, legend, findings)


# ---------------------------------------------------------------------------------------------------------------------
# Chains at equal sampled tokens


def voters(groups: Mapping[Way, Records]) -> dict[tuple[str, str, int], Records]:
    """The records whose chains vote, by start, "before" or "after", and K: samplers that are K tokens and no more."""
    plain = {name: sampler.samples for name, sampler in SAMPLERS.items() if sampler == GRPO(samples=sampler.samples)}
    return {
        (start, when, K): before(groups[start, name]) if when == "before" else groups[start, name]
        for start in STARTS
        for when in ("before", "after")
        for name, K in plain.items()
        if (start, name) in groups
    }


def chains(groups: Mapping[Way, Records]) -> Table:
    """A row for each start, before and after, tokens a step and K: votes of N chains of K tokens."""
    rows: list[dict[str, Value]] = []
    findings, found = [], voters(groups)
    labels = {start: arms("mnns")[start].label for start in STARTS}
    for (start, when, K), group in found.items():
        for tokens in TOKENS:
            k = str(tokens // K)
            row: dict[str, Value] = {"start": labels[start], "when": when, "tokens": tokens, "K": K, "N": tokens // K}
            row["one chain"] = 100 * sampled_accuracy(group, "pass", "1", "1").value
            row |= percent(sampled_accuracy(group, "majority", "1", k), "majority@N")
            row |= percent(sampled_accuracy(group, "pass", "1", k), "pass@N", "pass low", "pass high")
            rows.append(row)
            for other in dict.fromkeys((start, "discrete")) if K > 1 else ():
                claim = (
                    f"{labels[start]}, {when}: a vote of {k} of its chains of K = {K} beats one of {tokens} discrete "
                    f"chains of {'the same start' if other == start else labels[other]}, {when} ({tokens} sampled "
                    "tokens a step)"
                )
                gap = votes_gap(group, k, found[other, when, 1], str(tokens))
                findings.append(positive(claim, gap, len(group), "chains"))
    legend = (
        "N chains of K tokens sample N K tokens a latent step in either case, and an answer a chain; N chains take N "
        "times the steps of one: at equal sampled tokens fewer chains are cheaper. Answers sampled at temperature 1, "
        "32 a problem; majority@N over 32 // N disjoint blocks, ties to the answer that came first (so two chains "
        "decide as one), pass@N unbiased. before: the start; after: the trained weights of each K. Discrete chains are "
        "those of K = 1."
    )
    return Table("N chains of K tokens at equal sampled tokens", CHAINS, rows, legend, findings)


def votes_gap(ours: Records, k: str, theirs: Records, j: str) -> Interval:
    """majority@k of one group of runs minus majority@j of another, on the same splits."""
    require_same_splits(ours, theirs)
    (our_right, our_of), (right, of) = (
        sampled_counts(group, "majority", "1", votes) for group, votes in ((ours, k), (theirs, j))
    )
    a = [scaled(right_K, by) for right_K, by in zip(our_right, of, strict=True)]
    b = [scaled(right_K, by) for right_K, by in zip(right, our_of, strict=True)]
    both = [x * y for x, y in zip(our_of, of, strict=True)]
    return paired_difference(a, b, [scaled(record.total, by) for record, by in zip(ours, both, strict=True)])
