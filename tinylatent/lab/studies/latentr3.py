"""Study `latentr3`: does LatentR3's reinforcement stage earn its gain?

LatentR3 (Zhang et al. 2025) lets a recommender attend to its prompt before it names an item, then moves that attention
by rewards. The published surrogate raises or lowers the likelihood of the right answer by an advantage, which is no
policy gradient; and whatever moves the attention further may gain. So the second stage is run with the published
estimator, with others, and with the likelihood alone, all from one first stage and for as many steps. It earns credit
if it beats the likelihood with noise and without, and its start. The main place is recommendation by titles to users
that training does not know, where the best possible ranking is known; item tokens and SASRec stand beside. On MNNS and
multi-hop, where chains are known, the same method is taught and rewarded by answers alone, beside CoT2 and CoLaR, which
learn the steps. Seeds of the full profile are none of those of the quick one or of tuning.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from tinylatent.evaluation.statistics import accuracy_interval
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import Finding
from tinylatent.lab.plots import figure, interval_row, legend_below, legend_mark
from tinylatent.lab.recipes_latentr3 import ARMS, CHAINS, LABELLED, PLACES, SECOND, arm_of, build, split
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.compare import (
    Records,
    accuracy,
    before,
    grouped,
    lead,
    needs_own,
    percent,
    placed,
    positive,
    ranking_of,
    rate,
    totals,
)
from tinylatent.lab.studies.latentr3_tables import (
    AT,
    CREDIT,
    ITEMS,
    Groups,
    beams,
    controls,
    costs,
    label,
    published,
    rank_lead,
    rankings,
    second,
    tail,
)
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value

SEEDS: dict[Profile, range] = {"quick": range(3), "full": range(5, 10)}
QUICK = ("direct", "attention", "surrogate", "likelihood", "plain")
QUICK_STEPS = {"taught": 700, "reinforced": 50}
QUICK_TRAIN = 1200
"""Problems of training in the quick profile; a quarter as many are asked."""


def grid(profile: Profile) -> list[Experiment]:
    """Every arm on every seed; few of them, briefly trained, in the quick profile."""
    arms = ARMS if profile == "full" else QUICK
    return [shortened(build(arm, seed), profile) for arm in arms for seed in SEEDS[profile]]


def shortened(run: Experiment, profile: Profile) -> Experiment:
    """The run as a profile has it, and what it starts from too."""
    if profile == "full":
        return run
    steps = QUICK_STEPS["taught" if run.start is None else "reinforced"]
    start = None if run.start is None else shortened(run.start, profile)
    return replace(run, training=replace(run.training, steps=steps, num_train=QUICK_TRAIN), start=start)


def by_place(records: list[ExperimentRecord]) -> dict[str, dict[str, Records]]:
    """Records by prefix of their place and kind of their arm."""
    found: dict[str, dict[str, Records]] = {}
    for arm, group in grouped(records, lambda record: arm_of(record.experiment)).items():
        prefix, kind = split(arm)
        found.setdefault(prefix, {})[kind] = group
    return found


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """The second stage first; rankings, the tail, checks and costs, what was published; answers without labels."""
    places = by_place(records)
    titles = places[""]
    both = {**titles, **{ITEMS + kind: group for kind, group in places.get(ITEMS, {}).items()}}
    shown = [second(titles), rankings("hit", both), rankings("ndcg", both), tail(titles), beams(both), controls(both)]
    shown += [costs(both), published(titles)]
    chains = {prefix: places[prefix] for prefix in CHAINS if prefix in places}
    return [*shown, unlabelled(chains)] if chains else shown


# ---------------------------------------------------------------------------------------------------------------------
# Without labels


def unlabelled(places: Mapping[str, Groups]) -> Table:
    """A row an arm and task with known chains: accuracy, whether steps were taught, and what the second stage adds."""
    rows: list[dict[str, Value]] = []
    findings: list[Finding] = []
    for prefix, groups in places.items():
        title = PLACES[prefix].title
        for kind, group in groups.items():
            row: dict[str, Value] = {"task": title, "arm": ARMS[prefix + kind][0]}
            row |= {"steps": "taught" if kind in LABELLED else "", **percent(accuracy(group)), "seeds": len(group)}
            if kind in SECOND:
                row["before"] = 100 * accuracy_interval(before(group), totals(group)).value
                row |= percent(lead(group, groups["attention"]), "gain", "gain low", "gain high")
            row["train_s"] = fmean(record.cost.training_seconds for record in group)
            rows.append(row)
        findings += [placed(title, each) for each in _without_labels(prefix, groups)]
    columns = {
        "task": "s", "arm": "s", "steps": "s", "accuracy": ".2f", "low": ".2f", "high": ".2f", "before": ".2f",
        "gain": "+.2f", "gain low": "+.2f", "gain high": "+.2f", "seeds": "d", "train_s": ".0f",
    }  # fmt: skip
    legend = (
        "accuracy in percent on problems of keys never trained on, greedy, with its 95 % interval. steps taught: the "
        "arm learns from the steps of chains; all others from answers alone, the second stage by minus the perplexity "
        "of the right answer. Arms with latents have as many as chains have steps at most. before, gain: of the second "
        "stage, over the first. CoLaR starts from the chain of thought, so that it is trained twice; the second stage "
        "from attention. train_s: seconds of the arm alone."
    )
    return Table("MNNS and multi-hop: who wins without labels?", columns, rows, legend, findings)


def _without_labels(prefix: str, groups: Groups) -> Iterator[Finding]:
    """Whether LatentR3 is best of those without labels, earns credit for its rewards, and loses to those with them."""
    if "surrogate" not in groups:
        return
    ours, name = groups["surrogate"], f"LatentR3, {ARMS[f'{prefix}surrogate'][0]},"
    rivals = [kind for kind in groups if kind not in (*LABELLED, "surrogate")]
    for claim, kinds in (
        (f"{name} is more often right than all others without labels", rivals),
        (f"{name} earns its gain: more often right than likelihoods, with noise and without, and its start", CREDIT),
    ):
        if {*kinds} <= groups.keys():
            gaps = {ARMS[prefix + kind][0]: lead(ours, groups[kind]) for kind in kinds}
            yield replace(needs_own(claim, gaps, len(ours)), family="without labels")
    for kind in (each for each in ("attention", "surrogate") if "direct" in groups and each in groups):
        claim = f"{ARMS[prefix + kind][0]} is more often right than direct"
        yield positive(claim, lead(groups[kind], groups["direct"]), len(ours), "without labels")
    for kind in ("cot2", "colar"):
        if kind in groups:
            claim = f"{ARMS[prefix + kind][0]}, taught steps, is more often right than {name} taught answers"
            yield positive(claim, lead(groups[kind], ours), len(ours), "labels")


# ---------------------------------------------------------------------------------------------------------------------
# The figure


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """Panels: hit rates of all arms with the ceiling; gains of second stages; accuracy without labels, if known."""
    places = by_place(records)
    titles, chains = places[""], [prefix for prefix in CHAINS if prefix in places]
    both = {**titles, **{ITEMS + kind: group for kind, group in places.get(ITEMS, {}).items()}}
    with figure(path, 11 + 4 * bool(chains), 4.8, columns=2 + bool(chains)) as panels:
        hits, gains, *others = panels
        for y, (arm, group) in enumerate(both.items()):
            interval_row(hits, -y, rate(group, "hit", AT), ARMS[arm][2])
        best = 100 * fmean(ranking_of(each).ceiling["hit"][str(AT)] for each in titles["attention"])
        hits.axvline(best, color="black", linestyle="--", linewidth=1, label="ceiling")
        hits.set_yticks([-y for y in range(len(both))], [label(arm) for arm in both], fontsize=7)
        hits.set(xlabel=f"hit rate at {AT}, %")
        stages = [kind for kind in SECOND if kind in titles]
        for y, kind in enumerate(stages):
            interval_row(gains, -y, rank_lead(titles[kind], titles["attention"]), ARMS[kind][2])
        gains.axvline(0, color="black", linewidth=0.8)
        gains.set_yticks([-y for y in range(len(stages))], [ARMS[kind][0] for kind in stages], fontsize=7)
        gains.set(xlabel=f"gain over the first stage, points of the hit rate at {AT}")
        if others:
            shown = [(prefix, kind, group) for prefix in chains for kind, group in places[prefix].items()]
            for y, (prefix, kind, group) in enumerate(shown):
                interval_row(others[0], -y, accuracy(group), ARMS[prefix + kind][2], hollow=kind in LABELLED)
            named = [f"{PLACES[prefix].title}: {ARMS[prefix + kind][0]}" for prefix, kind, _ in shown]
            others[0].set_yticks([-y for y in range(len(shown))], named, fontsize=7)
            others[0].set(xlabel="validation accuracy, %", xlim=(0, 102))
            legend_mark(others[0], "steps were taught")
        legend_mark(gains, "bar: 95 %", "_", hollow=False)
        legend_below(panels, 4)


STUDY = Study("latentr3", "Does LatentR3's reinforcement stage earn its gain?", grid, tables, draw)
