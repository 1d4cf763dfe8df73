"""Tables of study `ctrls`: accuracy, what states reach, what they mean, exploration, the grid, and costs.

Records of a place are grouped by kind of arm (`recipes_ctrls`); arms are compared seed by seed. All of it is about a
reconstruction, and nothing is compared with numbers of the paper.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from statistics import fmean

from tinylatent.engine.controls import CONTROLS
from tinylatent.lab.findings import Finding, decided
from tinylatent.lab.recipes_ctrls import CHAIN, GRID, KINDS, PLACES, STARTS, TOKENS
from tinylatent.lab.records import DEFAULT
from tinylatent.lab.state_directions import cosines
from tinylatent.lab.state_reading import BLOCKS, DRAWN, PLAIN, Meaning, StateRecord
from tinylatent.lab.studies.compare import needs_own, over_seeds, percent, placed, positive
from tinylatent.lab.studies.ctrls_counts import (
    Groups,
    Records,
    accuracy,
    answered,
    best,
    bound_of,
    bounded,
    chance,
    few_lead,
    few_share,
    fixed,
    lead,
    pairs_of_ways,
    passed,
    resampled,
)
from tinylatent.lab.studies.ctrls_nulls import ALIKE, ALIKE_SHARE, several, unlike
from tinylatent.lab.studies.latentr3_second import follows
from tinylatent.lab.tables import Table, Value
from tinylatent.methods import CTRLSRL

Places = Mapping[str, Groups]
"""Groups by the prefix of their place."""
OURS = "A reconstruction of CTRLS; nothing here is a statement about the paper. "
"""Begins every legend."""
WAYS = (PLAIN, DRAWN, "posterior", *CONTROLS)
"""Ways to read a run beside its own, each with a column."""
PASSES = (1, 5, 10, 20)
LABELS = ("true", "index", "tokens", "next", "length")


def before(kind: str) -> str:
    """The kind that an arm starts from; the chain for what is taught, and for the chain itself."""
    return STARTS.get(kind, "fitted") if kind.startswith("rl") else CHAIN


# ---------------------------------------------------------------------------------------------------------------------
# Accuracy


def accuracies(prefix: str, groups: Groups) -> Table:
    """A row an arm: accuracy, its gain over what it starts from, and read without states, with drawn ones and so on."""
    rows: list[dict[str, Value]] = []
    findings: list[Finding] = []
    for kind, group in groups.items():
        training = group[0].reading.start.training
        row: dict[str, Value] = {"arm": KINDS[kind][0], "rate": training.learning_rate, **percent(accuracy(group))}
        row |= {way: 100 * accuracy(group, way).value if way in group[0].right else None for way in WAYS}
        start = before(kind)
        row |= dict.fromkeys(("gain", "gain low", "gain high"))
        if kind != CHAIN and start in groups:
            found = lead(group, groups[start])
            row |= percent(found, "gain", "gain low", "gain high")
            claim = f"{KINDS[kind][0]}: more often right than what it starts from ({KINDS[start][0]})"
            findings.append(placed(PLACES[prefix].title, positive(claim, found, len(group), "gains")))
        rows.append({**row, "seeds": len(group), "train_s": fmean(record.seconds for record in group)})
    findings += [placed(PLACES[prefix].title, each) for each in _rivals(groups)]
    columns = {
        "arm": "s", "rate": "g", "accuracy": ".2f", "low": ".2f", "high": ".2f", "gain": "+.2f", "gain low": "+.2f",
        "gain high": "+.2f", **dict.fromkeys(WAYS, ".2f"), "seeds": "d", "train_s": ".0f",
    }  # fmt: skip
    legend = (
        f"{OURS}accuracy: percent of validation problems, greedy, with the prior's mean as states (the likeliest, if "
        "hard); 95 % interval (bootstrap over seeds and keys; Student's t over seeds where that is wider). gain: over "
        "what the arm starts from, problem by problem: the chain of thought for states, states for rewards, the chain "
        "for token GRPO. plain: the same weights without states, which is the chain that all start from. drawn: states "
        "drawn from the prior. posterior: states of the chain's own steps, which knows the right chain. noise, "
        "shuffled, zero: what is fed is replaced at test time. shuffled, random states and learned prefix are trained "
        "as such, as long as the others. rate: peak learning rate, of every family its own. train_s: seconds of the "
        "arm alone."
    )
    return Table(
        f"{PLACES[prefix].title.capitalize()}: states around a frozen chain of thought", columns, rows, legend, findings
    )


def _rivals(groups: Groups) -> Iterator[Finding]:
    """Whether states steer beyond a prefix, what unfreezing and soft draws buy, whether rewards matter, densities."""
    for ours, prefix in (("fitted", "prefix"), ("rl-warm", "rl-prefix")):
        if {ours, prefix} <= groups.keys():
            group = groups[ours]
            gaps = {KINDS[prefix][0]: lead(group, groups[prefix]), "no states": lead(group, group, other=PLAIN)}
            claim = f"{KINDS[ours][0]} steer beyond a prefix: more often right than it, and than without states"
            yield replace(needs_own(claim, gaps, len(group)), family="steering")
    for ours, theirs, claim in (
        (TOKENS, "rl", "training the language model itself buys more than training transitions"),
        ("rl", "rl-hard", "soft draws end higher than single states"),
        ("rl", "rl-permuted", "rewards end higher than permuted ones"),
        (GRID[0.3, 0.01], "rl-naive", "the density of the mixture ends higher than the naive one"),
        ("eight", "fitted", "eight states are more often right than four"),
    ):
        if {ours, theirs} <= groups.keys():
            yield positive(claim, lead(groups[ours], groups[theirs]), len(groups[ours]), "rivals")


# ---------------------------------------------------------------------------------------------------------------------
# What states reach


def reaches(places: Places) -> Table:
    """A row an arm with few sequences of states: the best for each problem, the best for all, and samples of tokens."""
    rows: list[dict[str, Value]] = []
    findings: list[Finding] = []
    for prefix, groups in places.items():
        for kind, group in groups.items():
            if not bounded(group):
                continue
            whole = bound_of(group[0])
            row: dict[str, Value] = {"task": PLACES[prefix].title, "arm": KINDS[kind][0]}
            row |= {"sequences": whole.sequences, "all": "yes" if whole.exact else "lattice"}
            for name, counted in (("plain", answered(PLAIN)), ("accuracy", answered()), ("fixed", fixed)):
                row[name] = 100 * few_share(group, counted).value
            row["uniform"] = 100 * few_share(group, chance).value
            row |= percent(few_share(group, best), "best")
            row["tokens"] = None
            if CHAIN in groups:
                way = resampled(groups[CHAIN], whole.sequences)
                row["tokens"] = 100 * few_share(groups[CHAIN], passed(way, whole.sequences)).value
            rows.append({**row, "seeds": len(group)})
            gap = few_lead(group, group, best, answered(DEFAULT))
            claim = f"{KINDS[kind][0]}: some sequence of states is right where the policy's own is not"
            findings.append(placed(PLACES[prefix].title, positive(claim, gap, len(group), "reach")))
    columns = {
        "task": "s", "arm": "s", "sequences": "d", "all": "s", "plain": ".2f", "accuracy": ".2f", "fixed": ".2f",
        "uniform": ".2f", "best": ".2f", "low": ".2f", "high": ".2f", "tokens": ".2f", "seeds": "d",
    }  # fmt: skip
    legend = (
        f"{OURS}Percent of the problems that are asked more. sequences: of states before all steps; all: whether these "
        "are all that can be fed, or of mixtures the corners and the centre. best: problems that some sequence solves, "
        "the bound of any choice of states; somebody would have to know which. fixed: the best single sequence for all "
        "problems, chosen on half of the keys and counted on the other half. uniform: a sequence drawn at random. "
        "tokens: at least one of as many plain samples is right, at the temperature that suits them best. Answers are "
        "few, so that many samples are right by luck. accuracy: the arm's own policy; plain: without states."
    )
    return Table("What sequences of states can reach", columns, rows, legend, findings)


# ---------------------------------------------------------------------------------------------------------------------
# What states mean


def meanings(places: Places) -> Table:
    """A row an arm with states: agreement with labels beside chance, and what telling another state does."""
    rows: list[dict[str, Value]] = []
    findings: list[Finding] = []
    for prefix, groups in places.items():
        for kind, group in groups.items():
            if kind.startswith("rl") or any(record.meaning is None for record in group):
                continue
            row: dict[str, Value] = {"task": PLACES[prefix].title, "arm": KINDS[kind][0]}
            for label in LABELS:
                row[label], row[f"{label} chance"] = _agreement(group, label)
            effects = [fmean(_known(record).effect) for record in group]
            gains = over_seeds([_known(record).gain for record in group])
            row |= {"effect": fmean(effects), "gain": gains.value, "low": gains.low, "high": gains.high}
            row["rank"] = fmean(_known(record).shape["effective_rank"] for record in group)
            row |= {name: fmean(_known(record).sharpness[name] for record in group) for name in ("largest", "entropy")}
            rows.append({**row, "seeds": len(group)})
            told = f"{gains.value:+.4f} nats [{gains.low:+.4f}, {gains.high:+.4f}]"
            claim = f"{KINDS[kind][0]}: chains are likelier with their own states than with another problem's"
            verdict = decided(gains.low > 0, gains.high < 0, len(group))
            said = Finding(claim, verdict, told, gains, "nats", "states", runs=len(group))
            findings.append(placed(PLACES[prefix].title, said))
    columns = {"task": "s", "arm": "s"}
    for label in LABELS:
        columns |= {label: ".3f", f"{label} chance": ".3f"}
    columns |= {"effect": ".4f", "gain": "+.4f", "low": "+.4f", "high": "+.4f", "rank": ".2f"}
    columns |= {"largest": ".3f", "entropy": ".3f", "seeds": "d"}
    legend = (
        f"{OURS}true, index, tokens, next, length: normalised mutual information of a step's likeliest state with what "
        "the task says of the step, with its place in the chain, with clusters of its bag of tokens, with the token "
        "behind it (which hidden states behind the final norm foretell), and with its length; chance: the same with "
        "states permuted. Length is 0 where all steps have as many tokens, as on all of these "
        "tasks. Subset sum's states are not told for every step, so that true is empty there. On multi-hop lookup and "
        "subset sum a step is one token, whose bag is the token. effect: divergence of a step's tokens under one "
        "state from those under another, in nats a step, before any rewards; near 0 there is nothing to steer. gain: "
        "nats that a chain loses when told another problem's states, interval over seeds. rank: effective rank of a "
        "step's features, 1 where a step is one token. largest, entropy: of the posterior of a step, mean over steps; "
        "near 1 / K and log K a soft state is the same vector everywhere."
    )
    return Table("What states of steps mean", columns, rows, legend, findings)


def _known(record: StateRecord) -> Meaning:
    """What a run's states mean."""
    assert record.meaning is not None, "the caller has looked"
    return record.meaning


def _agreement(group: Records, label: str) -> tuple[float | None, float | None]:
    """Agreement with a label and by chance; None where the task has no such label."""
    found = [_known(record) for record in group]
    if any(label not in each.agreement for each in found):
        return None, None
    return fmean(each.agreement[label] for each in found), fmean(each.chance[label] for each in found)


# ---------------------------------------------------------------------------------------------------------------------
# Exploration


def explorations(places: Places) -> Table:
    """A row a way of sampling: entropy of its chains, pass@n, and different right derivations."""
    rows: list[dict[str, Value]] = []
    findings: list[Finding] = []
    for prefix, groups in places.items():
        for kind, group in groups.items():
            rows += [_sampled(prefix, kind, group, way) for way in group[0].draws]
            for drawn, matched in pairs_of_ways(group[0]):
                if unlike(group, drawn, matched):
                    continue
                n = max(PASSES)
                gap = few_lead(group, group, passed(drawn, n), passed(matched, n))
                claim = f"{KINDS[kind][0]}, {drawn}: pass@{n} is above that of plain tokens of equal entropy"
                findings.append(placed(PLACES[prefix].title, positive(claim, gap, len(group), "exploration")))
    columns = {
        "task": "s", "arm": "s", "way": "s", "samples": "d", "temperature": ".3f", "entropy": ".3f",
        **{f"pass@{n}": ".2f" for n in PASSES}, **{f"different {n}": ".3f" for n in BLOCKS}, "seeds": "d",
    }  # fmt: skip
    legend = (
        f"{OURS}drawn: states are drawn from the prior, tokens are the likeliest, or drawn at the temperature in the "
        "name. matched: the chain of thought without states at the temperature at which its chains have the same "
        "entropy, found for each run by halving; the mean temperature is shown. plain: without states, at the "
        "temperature in the name. entropy: of a problem's chains with their answers, from the samples themselves, in "
        "nats; at most the logarithm of their number. Where both entropies of a pair are apart by more than "
        f"{ALIKE:g} nats or {100 * ALIKE_SHARE:g} % of the larger in a run, no temperature made them alike, and the "
        "pair is not judged. pass@n: unbiased; percent. different: mean number of different "
        "derivations that prove a right answer among n samples; empty on arithmetic and multi-hop lookup, where a "
        "problem has one. Subset sum proves a yes alone."
    )
    return Table("Draws of states beside draws of tokens", columns, rows, legend, findings)


def _sampled(prefix: str, kind: str, group: Records, way: str) -> dict[str, Value]:
    """The row of a way of sampling."""
    draws = [record.draws[way] for record in group]
    row: dict[str, Value] = {"task": PLACES[prefix].title, "arm": KINDS[kind][0], "way": way}
    row |= {"samples": draws[0].samples, "temperature": fmean(each.temperature for each in draws)}
    row["entropy"] = fmean(each.entropy for each in draws)
    row |= {f"pass@{n}": 100 * few_share(group, passed(way, n)).value for n in PASSES}
    there = several(group) and all(each.different for each in draws)
    row |= {f"different {n}": fmean(each.different[str(n)] for each in draws) if there else None for n in BLOCKS}
    return {**row, "seeds": len(group)}


# ---------------------------------------------------------------------------------------------------------------------
# The grid


LOGGED = ("reward", "state_entropy", "dirichlet_entropy", "concentration", "frac_reward_zero_std")
"""Metrics whose last values are told."""


def gridded(prefix: str, groups: Groups) -> Table:
    """A row a reinforced arm: exploration, bonus, accuracy, and where training ended."""
    rows: list[dict[str, Value]] = []
    findings: list[Finding] = []
    small: dict[tuple[float, ...], list[str]] = {}
    for kind, group in groups.items():
        if not kind.startswith("rl"):
            continue
        method = group[0].reading.start.method
        assert isinstance(method, CTRLSRL)
        row: dict[str, Value] = {"arm": KINDS[kind][0]}
        idle = dict(method.idle)
        row |= {name: None if name in idle else getattr(method, name) for name in ("epsilon", "entropy")}
        row |= percent(accuracy(group))
        row |= {name: _last(group, name) for name in LOGGED}
        row |= dict.fromkeys(("cosine", "least", "most"))
        if (points := cosines(method)) is not None:
            row |= {"cosine": fmean(points), "least": min(points), "most": max(points)}
            small.setdefault(points, []).append(KINDS[kind][0])
        rows.append({**row, "seeds": len(group)})
        if kind in GRID.values() and kind != GRID[0.0, 0.0] and GRID[0.0, 0.0] in groups:
            claim = f"{KINDS[kind][0]}: more often right than without exploration and bonus"
            gap = lead(group, groups[GRID[0.0, 0.0]])
            findings.append(placed(PLACES[prefix].title, positive(claim, gap, len(group), "grid")))
    columns = {
        "arm": "s", "epsilon": "g", "entropy": "g", "accuracy": ".2f", "low": ".2f", "high": ".2f",
        **dict.fromkeys(LOGGED, ".3f"), "cosine": "+.2f", "least": "+.2f", "most": "+.2f", "seeds": "d",
    }  # fmt: skip
    legend = (
        f"{OURS}epsilon: probability of uniform draws in training; entropy: weight of the bonus. reward, state_entropy "
        "(of single states), dirichlet_entropy (of mixtures, largest where all concentrations are 1), concentration "
        "(sum of them) and frac_reward_zero_std (groups whose rewards are all alike): the last line of the log, mean "
        "over seeds. RL without a remark has epsilon .1 and bonus .01. naive density: as if nothing were explored. "
        "cosine, least, most: of the update with the slope of the expected reward in the transition network's weights, "
        "by finite differences, in small cases with random weights, computed anew with this table "
        "(`lab/state_directions.py`); empty where tokens are sampled. These cases are the same whatever the task and "
        "the states, so that arms whose updates are computed alike share one finding, told with the first task."
    )
    findings += [] if prefix else [follows("; ".join(names), points) for points, names in small.items()]
    title = f"{PLACES[prefix].title.capitalize()}: exploration, bonus and density"
    return Table(title, columns, rows, legend, findings)


def _last(group: Records, metric: str) -> float | None:
    """The mean of a metric's last values; None where it was not logged."""
    lines = [[line[metric] for line in record.metrics if line.get(metric) is not None] for record in group]
    return fmean(each[-1] for each in lines) if all(lines) else None


# ---------------------------------------------------------------------------------------------------------------------
# Costs


def costs(places: Places) -> Table:
    """A row an arm: seconds of training, its start's told apart, and operations of an answer."""
    rows: list[dict[str, Value]] = []
    for prefix, groups in places.items():
        for kind, group in groups.items():
            training, seconds = group[0].reading.start.training, fmean(record.seconds for record in group)
            row: dict[str, Value] = {"task": PLACES[prefix].title, "arm": KINDS[kind][0], "steps": training.steps}
            row |= {"train_s": seconds, "starts": "" if kind == CHAIN else KINDS[before(kind)][0]}
            rows.append({**row, "MFLOP": fmean(record.flops for record in group) / 1e6, "seeds": len(group)})
    columns = {
        "task": "s", "arm": "s", "starts": "s", "steps": "d", "train_s": ".0f", "MFLOP": ".3f", "seeds": "d",
    }  # fmt: skip
    legend = (
        f"{OURS}train_s: wall-clock seconds of one core, mean over seeds, of the arm alone; what it starts from comes "
        "on top. steps: at most, since the chain's training stops at its share of right answers. MFLOP: operations of "
        "an answer, in units of 10^6, greedy; finding states of the posterior is not part of it."
    )
    return Table("What arms cost", columns, rows, legend)
