"""Study `latentseek`: does a search over hidden states find right answers that sampling at equal cost does not?

Chains of thought that are right about half of the time, on arithmetic and on subset sum, are read by LatentSeek and
by its rivals: best of N, random prefixes, noise on the hidden states, and a taboo search over tokens. All begin with
the greedy answer, stop at the verifier's first yes, and may decode as many tokens: a budget of K is that of K further
whole answers, whatever of it is told instead of decoded. Who tells tokens asks the verifier more often for it, so all
are compared at equal calls too. Settings of each way, as many for each, are chosen on two splits that nothing reported
uses, with the certificate as verifier; then the level from which each way accepts the model's own confidence.

Verifiers: the certificate, which checks what is written and does not know the answer (the headline); the truth, an
upper bound; the model's own confidence; the truth with a set rate of errors.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from tinylatent.lab.plots import figure, interval_column, legend_below, legend_mark
from tinylatent.lab.reading import Reader, Reading, ReadingRecord
from tinylatent.lab.recipes_latentseek import CHAIN, PLACES, SEARCHES, build
from tinylatent.lab.studies.compare import grouped
from tinylatent.lab.studies.latentseek_tables import (
    CALLS,
    CERTIFICATE,
    CONFIDENCE,
    GREEDY,
    TRUTH,
    UNGUIDED,
    Cell,
    budgets_table,
    cells,
    curve,
    differences_table,
    erring_table,
    place_of,
    published_table,
    read,
    settings_table,
    share,
    variants_table,
)
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table
from tinylatent.methods import BestOfN, DiscreteCoT
from tinylatent.methods.searching import Search

SEEDS: dict[Profile, range] = {"quick": range(3), "full": range(5, 10)}
"""Those of the full profile were used by no pilot."""
TUNING: dict[Profile, tuple[int, ...]] = {"quick": (100,), "full": (100, 101)}
BUDGETS: dict[Profile, tuple[int, ...]] = {"quick": (1, 4), "full": (1, 2, 4, 8, 16, 32)}
MIDDLE: dict[Profile, int] = {"quick": 4, "full": 8}
"""The budget of tuning, of erring verifiers and of variants."""
PROBLEMS: dict[Profile, int] = {"quick": 100, "full": 400}
RIVALS = ("best-of-n", "random", "noise", "taboo")
TELLERS = ("latentseek", "random", "noise", "taboo")
"""Ways that tell tokens: at equal tokens they ask more often than best of N."""
SHARES = (0.25, 0.5, 0.75)
KNOBS: dict[str, tuple[str, tuple[float | int, ...]]] = {
    "latentseek": ("rate", (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
    "sampled": ("rate", (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
    "plain": ("rate", (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)),
    "random": ("temperature", (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)),
    "noise": ("scale", (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)),
    "taboo": ("flips", (1, 2, 3, 4, 5, 6)),
}
"""What competes in a way beside SHARES."""
TEMPERATURES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0)
QUICK = (2, 8, 13)
"""Of a way's settings, those that compete in the quick profile."""
LEVELS = (0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
"""Mean probabilities of its tokens from which an answer may be accepted by confidence."""
ERRORS = (0.1, 0.2, 0.3, 0.4)
RELEASED: dict[str, Any] = {"share": 0.2, "rate": 0.03, "select": "last"}
"""What the released code does, but for its ten rounds, which a budget replaces."""
QUARTERS = {"early": 0.0, "middle": 0.4}
"""Where a quarter of the answer's tokens is free; both end well before the result."""


def tried(way: str) -> list[Search]:
    """The settings of a way that compete, as many for each."""
    method = SEARCHES[way][1]
    if isinstance(method, BestOfN):
        return [replace(method, temperature=each) for each in TEMPERATURES]
    knob, values = KNOBS[way]
    found: list[Search] = []
    for part, value in product(SHARES, values):
        settings: dict[str, Any] = {"share": part, knob: value}
        found.append(replace(method, **settings))
    return found


def settled(method: Search, budget: int, **changes: Any) -> Search:
    """A search with a budget of tokens, or of calls where changes say by_tokens False; it returns its best answer, a
    vote the most frequent one, unless changes say otherwise."""
    select = "vote" if method.select == "vote" else "best"
    settings: dict[str, Any] = {"rounds": budget, "by_tokens": True, "select": select, **changes}
    if not settings["by_tokens"]:
        settings["rounds"] = budget // method.proposals
    return replace(method, **settings)


def grid(profile: Profile) -> list[Reading]:
    """Every setting of every way on the tuning splits."""
    asked = [Reader(GREEDY, DiscreteCoT())]
    for way in SEARCHES:
        for number, method in enumerate(tried(way)):
            if profile == "full" or number in QUICK:
                name = Cell(way, CERTIFICATE, MIDDLE[profile], str(number)).name
                asked.append(Reader(name, settled(method, MIDDLE[profile]), verifier=CERTIFICATE))
    return [each for prefix in PLACES for each in readings(prefix, TUNING[profile], asked, profile)]


def readings(prefix: str, seeds: Iterable[int], asked: Sequence[Reader], profile: Profile) -> list[Reading]:
    """A place's chains, one a seed, read by these readers."""
    return [Reading(build(prefix + CHAIN, seed), tuple(asked), PROBLEMS[profile]) for seed in seeds]


def confident(ways: Mapping[str, Search], profile: Profile) -> list[Reader]:
    """Every level of confidence for every way that is read with it, in the settings that were chosen."""
    asked = [Reader(GREEDY, DiscreteCoT())]
    for way, level in product(("latentseek", *RIVALS), LEVELS):
        name, method = Cell(way, CONFIDENCE, MIDDLE[profile], f"{level:g}").name, ways[way]
        asked.append(Reader(name, settled(method, MIDDLE[profile], threshold=below(level)), verifier=CONFIDENCE))
    return asked


def below(level: float) -> float:
    """The reward of an answer of this confidence."""
    return round(level - 1, 6)


def stage(record: ReadingRecord) -> str:
    """What a record is for: "settings" or "levels", on tuning splits, or "reported"."""
    if record.reading.start.seeds.split not in TUNING["full"]:
        return "reported"
    return "levels" if cells([record])[0].verifier == CONFIDENCE else "settings"


def staged(records: Iterable[ReadingRecord], name: str) -> dict[str, list[ReadingRecord]]:
    """The records of a stage, by the prefix of a place."""
    return grouped((record for record in records if stage(record) == name), place_of)


def best(records: Iterable[ReadingRecord], way: str) -> str:
    """The note of a way's reader that was right most often on the tuning splits of a place; the first of equals."""
    several = list(records)
    scores = {
        cell.note: fmean(sum(read(record, cell.name).right) for record in several)
        for cell in cells(several)
        if cell.way == way
    }
    return max(scores, key=lambda note: scores[note])


def tuned(records: Iterable[ReadingRecord]) -> dict[str, dict[str, Search]]:
    """The chosen settings of every way, by the prefix of a place."""
    return {
        prefix: {way: tried(way)[int(best(group, way))] for way in SEARCHES}
        for prefix, group in staged(records, "settings").items()
    }


def readers(ways: Mapping[str, Search], levels: Mapping[str, float], profile: Profile) -> list[Reader]:
    """Everybody who reads a chain: all budgets by certificate and truth, other verifiers and variants at one."""
    middle, asked = MIDDLE[profile], [Reader(GREEDY, DiscreteCoT())]

    def ask(way: str, verifier: str, budget: int = middle, note: str = "", **changes: Any) -> None:
        if verifier == CONFIDENCE:
            changes["threshold"] = below(levels[way])
        name = Cell(way, verifier, budget, note).name
        asked.append(Reader(name, settled(ways[way], budget, **changes), verifier=verifier))

    for verifier, way, budget in product((CERTIFICATE, TRUTH), ("latentseek", *RIVALS), BUDGETS[profile]):
        ask(way, verifier, budget)
        if way in TELLERS and budget in (middle, BUDGETS[profile][-1]):
            ask(way, verifier, budget, CALLS, by_tokens=False)
    for way, rate in product(("latentseek", *RIVALS), ERRORS):
        ask(way, f"truth flipped {rate:g}")
    for way in ("latentseek", *RIVALS):
        ask(way, CONFIDENCE)
    ask("vote", "")
    for verifier, select in product((CERTIFICATE, TRUTH, "truth flipped 0.2"), ("last", "first")):
        ask("latentseek", verifier, note=select, select=select)
    for verifier in (CERTIFICATE, TRUTH):
        for way in ("sampled", "plain"):
            ask(way, verifier)
            ask(way, verifier, note=CALLS, by_tokens=False)
        for note, start in QUARTERS.items():
            ask("latentseek", verifier, note=note, share=0.25, start=start, by_tokens=False)
        ask("latentseek", verifier, note="released settings", **RELEASED)
    for verifier in (CERTIFICATE, TRUTH, CONFIDENCE):
        ask("latentseek", verifier, note=UNGUIDED, guided=False)
    ask("latentseek", "constant", note="constant reward", select="last")
    ask("noise", "constant", 1, "one shot", select="last", by_tokens=False)
    return asked


def after(profile: Profile, records: list[ReadingRecord]) -> list[Reading]:
    """The levels of confidence on the tuning splits, with the settings chosen there; then the reported splits."""
    found, levels = [], staged(records, "levels")
    for prefix, ways in tuned(records).items():
        if prefix in levels:
            accepts = {way: float(best(levels[prefix], way)) for way in ("latentseek", *RIVALS)}
            found += readings(prefix, SEEDS[profile], readers(ways, accepts, profile), profile)
        else:
            found += readings(prefix, TUNING[profile], confident(ways, profile), profile)
    return found


def tables(records: list[ReadingRecord]) -> list[Table]:
    """Accuracy and cost by budget, differences at equal tokens and at equal calls, verifiers that err, variants,
    settings, published."""
    groups = staged(records, "reported")
    return [
        budgets_table(groups, ("latentseek", *RIVALS)),
        differences_table(groups, RIVALS),
        erring_table(groups),
        variants_table(groups),
        settings_table([staged(records, name) for name in ("settings", "levels")], best),
        published_table(groups),
    ]


def draw(records: list[ReadingRecord], path: Path) -> None:
    """Two panels a task: accuracy against decoded tokens and against calls of the verifier, certificate full, truth
    hollow."""
    axes_of = {"tokens": "decoded tokens a question", "judged": "calls of the verifier a question"}
    panels_of = list(product(staged(records, "reported").items(), axes_of.items()))
    with figure(path, 4.0 * len(panels_of), 4.2, columns=len(panels_of), sharey=True) as panels:
        for axes, ((prefix, group), (cost, told)) in zip(panels, panels_of, strict=True):
            for way, verifier in product(("latentseek", *RIVALS), (CERTIFICATE, TRUTH)):
                label, _, colour = SEARCHES[way]
                names, hollow = curve(group, way, verifier), verifier == TRUTH
                spent = [max(1.0, fmean(record.costs(name)[cost] for record in group)) for name in names]  # greedy: 1
                shares = [share(group, name) for name in names]
                values = [100 * each.value for each in shares]
                axes.plot(spent, values, "--" if hollow else "-", color=colour, linewidth=1.0)
                for x, each in zip(spent, shares, strict=True):
                    interval_column(axes, x, each, colour, hollow, None if hollow else label, linewidth=1.0)
            axes.set(title=PLACES[prefix].title, xlabel=told, xscale="log", ylim=(0, 102))
        panels[0].set_ylabel("right answers, %")
        legend_mark(panels[0], "verifier: certificate", hollow=False)
        legend_mark(panels[0], "verifier: truth")
        legend_mark(panels[0], "bar: 95 %", "|", hollow=False)
        legend_below(panels, 8)


STUDY = Study(
    "latentseek",
    "Does a search over hidden states at test time find right answers that sampling at equal cost does not?",
    grid,
    tables,
    draw,
    after,
    Reading,
)
