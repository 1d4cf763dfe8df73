"""Study `latentseek`: does a search over hidden states find right answers that sampling at equal cost does not?

Chains of thought that are right about half of the time, on arithmetic and on subset sum, are read by LatentSeek and
by its rivals: best of N, noise on the hidden states, and a taboo search over tokens. All begin with the greedy answer,
stop at the verifier's first yes, and may decode as many tokens: a budget of K is that of K further whole answers,
whatever of it is told instead of decoded. Settings of each way, as many for each, are chosen on two splits that nothing
reported uses, with the certificate as verifier.

Verifiers: the certificate, which checks what is written and does not know the answer (the headline); the truth, an
upper bound; the model's own confidence; the truth with a set rate of errors.
"""

from collections.abc import Iterable, Mapping
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
    CERTIFICATE,
    GREEDY,
    TRUTH,
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

SEEDS: dict[Profile, range] = {"quick": range(3), "full": range(5)}
TUNING: dict[Profile, tuple[int, ...]] = {"quick": (100,), "full": (100, 101)}
BUDGETS: dict[Profile, tuple[int, ...]] = {"quick": (1, 4), "full": (1, 2, 4, 8, 16, 32)}
MIDDLE: dict[Profile, int] = {"quick": 4, "full": 8}
"""The budget of tuning, of erring verifiers and of variants."""
PROBLEMS: dict[Profile, int] = {"quick": 100, "full": 400}
RIVALS = ("best-of-n", "noise", "taboo")
SHARES = (0.25, 0.5, 0.75)
KNOBS: dict[str, tuple[str, tuple[float | int, ...]]] = {
    "latentseek": ("rate", (0.03, 0.1, 0.3, 1.0)),
    "sampled": ("rate", (0.03, 0.1, 0.3, 1.0)),
    "noise": ("scale", (0.5, 1.0, 2.0, 4.0)),
    "taboo": ("flips", (1, 2, 3, 4)),
}
"""What competes in a way beside SHARES."""
TEMPERATURES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.6)
ERRORS = (0.1, 0.2, 0.3, 0.4)
CONFIDENT = -0.02
"""The reward above which a search by confidence stops: a mean probability of 0.98."""


def tried(way: str) -> list[Search]:
    """The twelve settings of a way that compete."""
    method = SEARCHES[way][1]
    if isinstance(method, BestOfN):
        return [replace(method, temperature=each) for each in TEMPERATURES]
    knob, values = KNOBS[way]
    found: list[Search] = []
    for part, value in product(SHARES, values):
        settings: dict[str, Any] = {"share": part, knob: value}
        found.append(replace(method, **settings))
    return found


def settled(method: Search, rounds: int, **changes: Any) -> Search:
    """A search with a budget, whose best answer is returned unless changes say otherwise."""
    settings: dict[str, Any] = {"rounds": rounds, "by_tokens": True, "select": "best", **changes}
    return replace(method, **settings)


def grid(profile: Profile) -> list[Reading]:
    """Every setting of every way on the tuning splits."""
    readers = [Reader(GREEDY, DiscreteCoT())]
    for way in SEARCHES:
        for number, method in enumerate(tried(way)):
            if profile == "full" or number % 4 == 1:
                name = Cell(way, CERTIFICATE, MIDDLE[profile], str(number)).name
                readers.append(Reader(name, settled(method, MIDDLE[profile]), verifier=CERTIFICATE))
    return [
        Reading(build(prefix + CHAIN, seed), tuple(readers), PROBLEMS[profile])
        for prefix in PLACES
        for seed in TUNING[profile]
    ]


def chosen(records: Iterable[ReadingRecord], way: str) -> Search:
    """The settings of a way that were right most often on the tuning splits of a place; the first of equals."""
    several = list(records)
    scores = {
        int(cell.note): fmean(sum(read(record, cell.name).right) for record in several)
        for cell in cells(several)
        if cell.way == way
    }
    return tried(way)[max(scores, key=lambda number: (scores[number], -number))]


def tuned(records: Iterable[ReadingRecord]) -> dict[str, dict[str, Search]]:
    """The chosen settings of every way, by the prefix of a place."""
    groups = grouped((record for record in records if is_tuning(record)), place_of)
    return {prefix: {way: chosen(group, way) for way in SEARCHES} for prefix, group in groups.items()}


def is_tuning(record: ReadingRecord) -> bool:
    """Whether a record is of a tuning split."""
    return record.reading.start.seeds.split in TUNING["full"]


def readers(ways: Mapping[str, Search], profile: Profile) -> tuple[Reader, ...]:
    """Everybody who reads a chain: all budgets by certificate and truth, other verifiers and variants at one."""
    middle, asked = MIDDLE[profile], [Reader(GREEDY, DiscreteCoT())]

    def ask(way: str, method: Search, verifier: str, budget: int = middle, note: str = "", **changes: Any) -> None:
        name = Cell(way, verifier, budget, note).name
        asked.append(Reader(name, settled(method, budget, **changes), verifier=verifier))

    for verifier, way, budget in product((CERTIFICATE, TRUTH), ("latentseek", *RIVALS), BUDGETS[profile]):
        ask(way, ways[way], verifier, budget)
    for way, rate in product(("latentseek", *RIVALS), ERRORS):
        ask(way, ways[way], f"truth flipped {rate:g}")
    for way in ("latentseek", *RIVALS):
        ask(way, ways[way], "confidence", threshold=CONFIDENT)
    seek = ways["latentseek"]
    for verifier in (CERTIFICATE, TRUTH, "truth flipped 0.2"):
        for select in ("last", "first"):
            ask("latentseek", seek, verifier, note=select, select=select)
    for verifier in (CERTIFICATE, TRUTH):
        ask("sampled", ways["sampled"], verifier)
        ask("latentseek", seek, verifier, note="middle", start=0.4)
        ask("latentseek", seek, verifier, note="plain steps", optimizer="sgd")
        ask("latentseek", seek, verifier, note="released settings", **RELEASED)
    ask("latentseek", seek, "constant", note="constant reward", select="last")
    ask("noise", ways["noise"], "constant", 1, "one shot", select="last", by_tokens=False)
    ask("best-of-n", ways["best-of-n"], "", note="vote", select="vote")
    return tuple(asked)


RELEASED: dict[str, Any] = {"share": 0.2, "rate": 0.03, "select": "last"}
"""What the released code does, but for its ten rounds, which a budget replaces."""


def after(profile: Profile, records: list[ReadingRecord]) -> list[Reading]:
    """The reported splits, read with the settings that the tuning splits chose."""
    return [
        Reading(build(prefix + CHAIN, seed), readers(ways, profile), PROBLEMS[profile])
        for prefix, ways in tuned(records).items()
        for seed in SEEDS[profile]
    ]


def tables(records: list[ReadingRecord]) -> list[Table]:
    """Accuracy and cost by budget, differences at equal tokens, verifiers that err, variants, settings, published."""
    groups = grouped((record for record in records if not is_tuning(record)), place_of)
    settings = grouped((record for record in records if is_tuning(record)), place_of)
    return [
        budgets_table(groups, ("latentseek", *RIVALS)),
        differences_table(groups, RIVALS),
        erring_table(groups),
        variants_table(groups),
        settings_table(settings, tuned(records)),
        published_table(groups),
    ]


def draw(records: list[ReadingRecord], path: Path) -> None:
    """A panel a task: accuracy against decoded tokens a question, certificate full, truth hollow."""
    groups = grouped((record for record in records if not is_tuning(record)), place_of)
    with figure(path, 5.2 * len(groups), 4.2, columns=len(groups), sharey=True) as panels:
        for axes, (prefix, group) in zip(panels, groups.items(), strict=True):
            for way in ("latentseek", *RIVALS):
                label, _, colour = SEARCHES[way]
                for verifier in (CERTIFICATE, TRUTH):
                    names, hollow = curve(group, way, verifier), verifier == TRUTH
                    tokens = [fmean(record.costs(name)["tokens"] for record in group) for name in names]
                    shares = [share(group, name) for name in names]
                    values = [100 * each.value for each in shares]
                    axes.plot(tokens, values, "--" if hollow else "-", color=colour, linewidth=1.0)
                    for x, each in zip(tokens, shares, strict=True):
                        interval_column(axes, x, each, colour, hollow, None if hollow else label, linewidth=1.0)
            axes.set(title=PLACES[prefix].title, xlabel="decoded tokens a question", xscale="log", ylim=(0, 102))
        panels[0].set_ylabel("right answers, %")
        legend_mark(panels[0], "verifier: certificate", hollow=False)
        legend_mark(panels[0], "verifier: truth")
        legend_mark(panels[0], "bar: 95 %", "|", hollow=False)
        legend_below(panels, 7)


STUDY = Study(
    "latentseek",
    "Does a search over hidden states at test time find right answers that sampling at equal cost does not?",
    grid,
    tables,
    draw,
    after,
    Reading,
)
