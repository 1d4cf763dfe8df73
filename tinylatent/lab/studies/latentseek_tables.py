"""What study `latentseek` found: accuracy and cost by budget, differences at equal cost, erring verifiers, variants.

Records are grouped by place: what stands before the names of its arms in `recipes_latentseek`. A reader's name says its
cell: the way, the verifier, the budget, and what else is peculiar to it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tinylatent.evaluation.statistics import Interval, accuracy_interval, paired_difference
from tinylatent.lab.findings import Finding
from tinylatent.lab.reading import ALL, Read, ReadingRecord
from tinylatent.lab.recipes_latentseek import PLACES, SEARCHES
from tinylatent.lab.studies.compare import percent, positive
from tinylatent.lab.tables import Table, Value
from tinylatent.objectives.method import Method

Records = Sequence[ReadingRecord]
Groups = Mapping[str, Records]
"""Records by place."""
GREEDY = "greedy"
"""The reader that gained and lost are counted against."""
PRIMARY = "primary"
"""The family of the main claims, whose intervals are corrected for their number."""
CERTIFICATE, TRUTH, CONFIDENCE = "certificate", "truth", "confidence"
CALLS, UNGUIDED = "equal calls", "unguided"
"""Notes of cells: the budget counts calls of the verifier; proposals do not hear it."""
COUNTS = {
    "right": ".2f", "low": ".2f", "high": ".2f", "gained": ".2f", "lost": ".2f", "tokens": ".1f", "asked": ".2f",
    "MFLOP": ".2f",
}  # fmt: skip
COUNTED = (
    "right: percent of the validation problems asked, mean over seeds, with its 95 % interval (bootstrap over seeds "
    "and keys; Student's t over seeds where that is wider). gained, lost: percent that greedy decoding has wrong and "
    "this way right, and the other way round. tokens: decoded on average for a question; tokens that a proposal is "
    "told are read, not decoded. asked: how often the verifier was asked about a question. MFLOP: millions of "
    "operations of the model on a question, told tokens and steps on latents included; what a verifier costs is not."
)
PUBLISHED: dict[str, dict[str, float]] = {
    "GSM8K, prompt 1": {
        "CoT": 73.43, "best of N": 80.47, "LatentSeek": 83.29, "one-shot noise": 72.2, "middle": 78.15,
    },
    "GSM8K, prompt 2": {
        "CoT": 61.56, "best of N": 61.95, "LatentSeek": 77.18, "one-shot noise": 61.3, "constant reward": 62.97,
        "middle": 67.17,
    },
    "MATH-500, prompt 1": {"CoT": 60.76, "best of N": 61.24, "LatentSeek": 64.64},
    "MATH-500, prompt 2": {"CoT": 45.80, "best of N": 47.08, "LatentSeek": 50.96},
    "AIME 2024, prompt 1": {"CoT": 4.00, "best of N": 5.33, "LatentSeek": 10.00},
    "AIME 2024, prompt 2": {"CoT": 0.67, "best of N": 5.33, "LatentSeek": 7.33},
    "GSM8K, both prompts": {"LatentSeek": 80.2, "LatentSeek by the truth": 90.2},
    "MATH-500, both prompts": {"LatentSeek": 57.8, "LatentSeek by the truth": 75.5},
    "AIME 2024, both prompts": {"LatentSeek": 8.6, "LatentSeek by the truth": 13.0},
}  # fmt: skip
"""Percent, means over five language models, as the paper's third version has them; one-shot noise at variance 0.5."""


@dataclass(frozen=True)
class Cell:
    """What a reader does."""

    way: str
    verifier: str
    budget: int
    note: str = ""

    @property
    def name(self) -> str:
        """The reader's name."""
        return " | ".join([self.way, self.verifier or "nobody", str(self.budget), *filter(None, [self.note])])

    @classmethod
    def named(cls, name: str) -> "Cell | None":
        """The cell of a name; None for greedy decoding."""
        parts = name.split(" | ")
        return None if len(parts) < 3 else cls(parts[0], parts[1], int(parts[2]), *parts[3:])

    @property
    def label(self) -> str:
        """What tables call the way."""
        return ", ".join(filter(None, [SEARCHES[self.way][0], self.note]))


def place_of(record: ReadingRecord) -> str:
    """The prefix of a record's place.

    Raises:
        ValueError: there is none.
    """
    for prefix, place in PLACES.items():
        if place.task == record.reading.start.task:
            return prefix
    raise ValueError(f"run {record.id} is on {record.reading.start.task}: expected a task of recipes_latentseek")


def read(record: ReadingRecord, name: str) -> Read:
    """What a reader made of a record's problems."""
    return record.parts[ALL].readers[name]


def cells(group: Records) -> list[Cell]:
    """The cells of a group's readers, in order."""
    named = [Cell.named(reader.name) for reader in group[0].reading.readers]
    return [cell for cell in named if cell is not None]


def share(group: Records, name: str, what: str = "right") -> Interval:
    """The mean share of problems that a reader has right, gained or lost."""
    return accuracy_interval([getattr(read(record, name), what) for record in group], _totals(group))


def gap(group: Records, ours: str, theirs: str, level: float = 0.95) -> Interval:
    """Right answers of one reader minus those of another, on the same problems."""
    mine, other = ([read(record, name).right for record in group] for name in (ours, theirs))
    return paired_difference(mine, other, _totals(group), level)


def _totals(group: Records) -> list[list[int]]:
    return [record.parts[ALL].total for record in group]


def middle(group: Records) -> int:
    """The budget at which settings were chosen, and variants are compared."""
    return next(cell.budget for cell in cells(group) if cell.way == "sampled")


def counted(group: Records, name: str) -> dict[str, Value]:
    """The cells of COUNTS for a reader."""
    costs = [record.costs(name) for record in group]
    return {
        **percent(share(group, name), "right"),
        "gained": 100 * share(group, name, "gained").value,
        "lost": 100 * share(group, name, "lost").value,
        "tokens": sum(each["tokens"] for each in costs) / len(costs),
        "asked": sum(each["judged"] for each in costs) / len(costs),
        "MFLOP": sum(each["flops"] for each in costs) / len(costs) / 1e6,
    }


# ---------------------------------------------------------------------------------------------------------------------
# By budget


def curve(group: Records, way: str, verifier: str) -> list[str]:
    """The readers of a way by a verifier, greedy first, then by budget."""
    return [GREEDY, *(cell.name for cell in cells(group) if cell == Cell(way, verifier, cell.budget))]


def budgets_table(groups: Groups, ways: Sequence[str]) -> Table:
    """A row a task, verifier, way and budget: accuracy, what was gained and lost, and what it cost."""
    rows: list[dict[str, Value]] = []
    findings: list[Finding] = []
    for prefix, group in groups.items():
        title = PLACES[prefix].title
        rows.append({"task": title, "verifier": "-", "way": "greedy", "budget": 0, **counted(group, GREEDY)})
        for verifier in (CERTIFICATE, TRUTH):
            for way in ways:
                names = curve(group, way, verifier)
                for name in names[1:]:
                    cell = Cell.named(name)
                    assert cell is not None, "greedy stands first"
                    about: dict[str, Value] = {"task": title, "verifier": verifier, "way": cell.label}
                    rows.append({**about, "budget": cell.budget, **counted(group, name)})
                claim = (
                    f"{title}, {verifier}: {SEARCHES[way][0]} finds more with the greatest budget than with the least"
                )
                findings.append(positive(claim, gap(group, names[-1], names[1]), len(group), "budgets"))
    proofs = "; ".join(f"on {place.title}, {place.proves}" for place in PLACES.values())
    legend = (
        f"{COUNTED} budget: tokens that may be decoded after the greedy answer, in whole answers; a question stops "
        "when the verifier accepts. The best answer found is returned, the greedy one if none is better. certificate: "
        f"the task checks what is written, without knowing the answer ({proofs}). truth: the verifier knows the "
        "answer, so that this is an upper bound, as pass@N is; a right answer after a wrong chain counts, which "
        "guessing among few answers often gives."
    )
    columns = {"task": "s", "verifier": "s", "way": "s", "budget": "d", **COUNTS}
    return Table("Right answers by budget", columns, rows, legend, findings)


def differences_table(groups: Groups, rivals: Sequence[str]) -> Table:
    """A row a task, verifier, rival and budget: LatentSeek minus the rival at equal decoded tokens, and at equal
    calls of the verifier where that was read."""
    rows: list[dict[str, Value]] = []
    leads: list[Finding] = []
    primary = [(prefix, rival) for prefix in groups for rival in rivals]
    level = 1 - 0.05 / len(primary)
    for prefix, group in groups.items():
        title, there = PLACES[prefix].title, set(cells(group))
        for cell in cells(group):
            if cell.way != "latentseek" or cell.note not in ("", CALLS):
                continue
            for theirs in (replace(cell, way=rival) for rival in rivals):
                if theirs not in there:
                    theirs = replace(theirs, note="")  # who tells nothing spends as many calls as whole answers
                about: dict[str, Value] = {"task": title, "verifier": cell.verifier, "rival": SEARCHES[theirs.way][0]}
                about |= {"equal": "calls" if cell.note else "tokens", "budget": cell.budget}
                rows.append({**about, **percent(gap(group, cell.name, theirs.name), "difference")})
                if _is_last(group, cell) and "flipped" not in cell.verifier:
                    leads.append(_beats(title, group, cell, theirs, "calls" if cell.note else "rivals"))
    named = [
        _beats(PLACES[prefix].title, group, ours, replace(ours, way=rival), PRIMARY, level)
        for prefix, rival in primary
        for group in [groups[prefix]]
        for ours in [Cell("latentseek", CERTIFICATE, middle(group))]
    ]
    legend = (
        "difference: LatentSeek's right answers minus the rival's, in points, problem by problem, with its 95 % "
        "interval. equal: what both may spend, which they need not: tokens, where both may decode as many, so that who "
        "tells tokens makes more proposals and asks the verifier more often; calls, where both may ask the verifier as "
        "often. Both have as many settings to choose from, and are stopped by the same verifier, at confidence from "
        "the level that was chosen for each. "
        f"The intervals of the first {len(named)} claims, of family {PRIMARY}, are corrected for their number "
        f"({100 * level:.2f} % each). They are leads all the same: tasks and searches were chosen by pilots that "
        "showed which way was ahead."
    )
    columns = {
        "task": "s", "verifier": "s", "rival": "s", "equal": "s", "budget": "d", "difference": "+.2f", "low": "+.2f",
        "high": "+.2f",
    }  # fmt: skip
    return Table("LatentSeek minus its rivals at equal cost", columns, rows, legend, [*named, *leads])


def _is_last(group: Records, cell: Cell) -> bool:
    """Whether a cell has the greatest budget of its verifier."""
    return cell.budget == max(other.budget for other in cells(group) if other.verifier == cell.verifier)


def _beats(title: str, group: Records, ours: Cell, theirs: Cell, family: str, level: float = 0.95) -> Finding:
    """Whether LatentSeek is more often right than a rival."""
    equal = "as many calls of the verifier" if ours.note == CALLS else "equal decoded tokens"
    claim = (
        f"{title}, {ours.verifier}, budget {ours.budget}: {SEARCHES[ours.way][0]} is more often right than "
        f"{SEARCHES[theirs.way][0]} at {equal}"
    )
    found = positive(claim, gap(group, ours.name, theirs.name, level), len(group), family)
    return replace(found, level=level)


# ---------------------------------------------------------------------------------------------------------------------
# Verifiers that err, and variants


def erring_table(groups: Groups) -> Table:
    """A row a task, verifier and way, at one budget: what verifiers that err or do not know cost."""
    rows: list[dict[str, Value]] = []
    findings: list[Finding] = []
    for prefix, group in groups.items():
        title, shown = PLACES[prefix].title, [cell for cell in cells(group) if not cell.note]
        here = [cell for cell in shown if cell.budget == middle(group) and cell.way not in OTHERS]
        for cell in sorted(here, key=lambda cell: cell.verifier):
            about: dict[str, Value] = {"task": title, "verifier": cell.verifier, "way": cell.label}
            rows.append({**about, **counted(group, cell.name)})
            if cell.verifier not in (CERTIFICATE, TRUTH) and cell.way == "latentseek":
                claim = f"{title}, {cell.verifier}: {cell.label} is more often right than greedy decoding"
                findings.append(positive(claim, gap(group, cell.name, GREEDY), len(group), "verifiers"))
    legend = (
        f"{COUNTED} All have one budget. flipped: the truth's verdict is turned round with this probability, for a "
        "question and an answer always or never. confidence: the mean probability that the model gives to its own "
        "tokens, accepted from a level on that was chosen for each way on the tuning splits; it stands in for verifier "
        "prompts, which models of symbols cannot read."
    )
    columns = {"task": "s", "verifier": "s", "way": "s", **COUNTS}
    return Table("Verifiers that err, or judge themselves", columns, rows, legend, findings)


OTHERS = ("sampled", "plain", "vote")
"""Ways that are read beside LatentSeek as it is, and not by budget."""


def variants_table(groups: Groups) -> Table:
    """A row a task, verifier and variant, beside LatentSeek as it is: selections, samples, positions, rewards."""
    rows: list[dict[str, Value]] = []
    findings: list[Finding] = []
    for prefix, group in groups.items():
        title, shown = PLACES[prefix].title, cells(group)
        variants = [cell for cell in shown if cell.note not in ("", CALLS) or cell.way in OTHERS]
        asked, budget = {cell.verifier for cell in variants}, middle(group)
        usual = [
            cell
            for cell in shown
            if (cell.way, cell.budget) == ("latentseek", budget) and cell.note in ("", CALLS) and cell.verifier in asked
        ]
        for cell in sorted([*variants, *usual], key=lambda cell: (cell.verifier, cell.way, cell.note)):
            about: dict[str, Value] = {"task": title, "verifier": cell.verifier, "way": cell.label}
            rows.append({**about, "budget": cell.budget, **counted(group, cell.name)})
        findings += [
            positive(f"{title}, {claim}", gap(group, ours.name, theirs), len(group), "variants")
            for claim, ours, theirs in compared(budget)
        ]
    legend = (
        f"{COUNTED} LatentSeek alone: mode argmax, which is no policy gradient, returns the best answer. sampled: mode "
        "sampled, four prefixes a round, leave-one-out; a last round for which tokens are left, but not for all four, "
        "is not made. plain steps: steps without Adam, their rate chosen as all settings are. equal calls: the budget "
        "counts calls of the verifier. unguided: proposals under a constant reward, while the same verifier stops and "
        "picks the best answer; with a verifier that says yes or no this is the very same search. early, middle: a "
        "quarter of the answer's tokens is free, from the first on or from 40 % of the answer on, for as many rounds. "
        "last, first: the answer of the last round (as released), the first accepted one. released settings: a share "
        "of 0.2, a rate of 0.03, the last answer. constant reward: never told anything, the last answer. one shot: "
        "noise once, whatever comes of it. majority vote: the most frequent of the sampled answers and the greedy one, "
        "no verifier."
    )
    columns = {"task": "s", "verifier": "s", "way": "s", "budget": "d", **COUNTS}
    return Table("Variants", columns, rows, legend, findings)


def compared(budget: int) -> list[tuple[str, Cell, str]]:
    """Claims about variants: in words, the cell that should be more often right, and the reader that should be less."""
    found: list[tuple[str, Cell, str]] = []
    constant, shot = Cell("latentseek", "constant", budget, "constant reward"), Cell("noise", "constant", 1, "one shot")
    vote, sure = Cell("vote", "nobody", budget), Cell("latentseek", CONFIDENCE, budget)

    def claim(words: str, ours: Cell, theirs: Cell | str) -> None:
        found.append((words, ours, theirs if isinstance(theirs, str) else theirs.name))

    for verifier in (CERTIFICATE, TRUTH):
        usual = Cell("latentseek", verifier, budget)
        as_it_is = f"{verifier}: LatentSeek is more often right as it is than"
        for way, words in (("sampled", "with sampled prefixes"), ("plain", "with plain steps")):
            for equal, note in (("decoded tokens", ""), ("calls", CALLS)):
                ours = replace(usual, note=note)
                claim(f"{as_it_is} {words} at equal {equal}", ours, replace(ours, way=way))
        for note in ("last", "first", "released settings"):
            claim(f'{as_it_is} as "{note}"', usual, replace(usual, note=note))
        early = replace(usual, note="early")
        claim(
            f"{verifier}: a quarter of the tokens that is free from the first on is worth more than one in the middle, "
            "in as many rounds",
            early,
            replace(usual, note="middle"),
        )
        claim(f"{as_it_is} under a constant reward that returns its last answer", usual, constant)
        claim(f"{as_it_is} noise once, whatever comes of it", usual, shot)
    for verifier in (CERTIFICATE, TRUTH, CONFIDENCE):
        usual = Cell("latentseek", verifier, budget)
        claim(
            f"{verifier}: rewards guide LatentSeek: it is more often right than under a constant reward whose best "
            "answer the same verifier picks",
            usual,
            replace(usual, note=UNGUIDED),
        )
    for select in ("last", "first"):
        usual = Cell("latentseek", "truth flipped 0.2", budget)
        claim(
            f'{usual.verifier}: LatentSeek is more often right as it is than as "{select}"',
            usual,
            replace(usual, note=select),
        )
    claim(f"{CONFIDENCE}: LatentSeek is more often right than a majority vote at equal decoded tokens", sure, vote)
    for cell in (constant, shot, vote):
        claim(f"{cell.verifier}: {cell.label} is more often right than greedy decoding", cell, GREEDY)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Settings, and what others published


def settings_table(stages: Sequence[Groups], best: Callable[[Records, str], str]) -> Table:
    """A row a task, way and setting that competed on the tuning splits, then levels of confidence.

    Args:
        stages: the records of settings, and those of levels.
        best: the note of the chosen reader of a way.
    """
    rows: list[dict[str, Value]] = []
    findings: list[Finding] = []
    for prefix, group in (pair for groups in stages for pair in groups.items()):
        title, methods = PLACES[prefix].title, {reader.name: reader.method for reader in group[0].reading.readers}
        for way in dict.fromkeys(cell.way for cell in cells(group)):
            competed = [cell for cell in cells(group) if cell.way == way]
            winner = best(group, way)
            values = {cell.note: knobs(cell, methods[cell.name]) for cell in competed}
            for cell in competed:
                told = ", ".join(f"{name} {value:g}" for name, value in values[cell.note].items())
                about: dict[str, Value] = {"task": title, "way": SEARCHES[way][0], "setting": told}
                chosen = "yes" if cell.note == winner else ""
                edges = edge(values[winner], values.values()) if chosen else ""
                rows.append({**about, **percent(share(group, cell.name), "right"), "chosen": chosen, "edge": edges})
                if chosen:
                    where = f", at the edge of the tried ({edges})" if edges else ""
                    claim = f"{title}: {SEARCHES[way][0]} with {told}{where}, is more often right than greedy decoding"
                    claim = claim if where else claim.replace(", is", " is")
                    findings.append(positive(claim, gap(group, cell.name, GREEDY), len(group), "tuning"))
    legend = (
        "right: percent of problems of tuning splits, which nothing reported uses, at one budget; mean over seeds, "
        "with its 95 % interval. As many settings of each way competed, judged by the certificate (a vote by nobody); "
        "the best mean was chosen, for all verifiers and budgets. Levels of confidence from which an answer is "
        "accepted competed with these settings. edge: what of the chosen is the least or the greatest that was tried, "
        "so that more might be better still. Two seeds decide nothing."
    )
    columns = {
        "task": "s", "way": "s", "setting": "s", "right": ".2f", "low": ".2f", "high": ".2f", "chosen": "s",
        "edge": "s",
    }  # fmt: skip
    return Table("Settings, on tuning splits", columns, rows, legend, findings)


KNOBS = {
    "latentseek": ("share", "rate"), "sampled": ("share", "rate"), "plain": ("share", "rate"),
    "random": ("share", "temperature"), "noise": ("share", "scale"), "taboo": ("share", "flips"),
    "best-of-n": ("temperature",), "vote": ("temperature",),
}  # fmt: skip
"""The settings of each way that compete."""


def knobs(cell: Cell, method: Method) -> dict[str, float]:
    """What competed: settings, or a level of confidence."""
    if cell.verifier == CONFIDENCE:
        return {"accepts from": float(cell.note)}
    return {name: float(getattr(method, name)) for name in KNOBS[cell.way]}


def edge(chosen: Mapping[str, float], tried: Iterable[Mapping[str, float]]) -> str:
    """Which of the chosen values are the least or the greatest tried."""
    several = list(tried)
    ends = {name: [pick(each[name] for each in several) for pick in (min, max)] for name in chosen}
    return ", ".join(f"{name} {value:g}" for name, value in chosen.items() if value in ends[name])


def published_table(groups: Groups) -> Table:
    """What was published, on other tasks with other models; ours beside it for orientation alone."""
    rows: list[dict[str, Value]] = [{"task": f"published: {task}", **values} for task, values in PUBLISHED.items()]
    for prefix, group in groups.items():
        budget = middle(group)
        readers = {
            "best of N": Cell("best-of-n", "confidence", budget),
            "LatentSeek": Cell("latentseek", "confidence", budget),
            "LatentSeek by the truth": Cell("latentseek", TRUTH, budget),
            "constant reward": Cell("latentseek", "constant", budget, "constant reward"),
            "one-shot noise": Cell("noise", "constant", 1, "one shot"),
        }
        found = {name: 100 * share(group, cell.name).value for name, cell in readers.items()}
        rows.append({"task": f"here: {PLACES[prefix].title}", "CoT": 100 * share(group, GREEDY).value, **found})
    names = (
        "CoT", "best of N", "LatentSeek", "LatentSeek by the truth", "constant reward", "one-shot noise", "middle",
    )  # fmt: skip
    legend = (
        "published: percent, means over five language models (Li et al. 2025, third version, tables 1 and 3 and the "
        "ablations; noise of variance 0.5; N is 3; ten rounds); the verifier is the model itself under four prompts, "
        "but for the column by the truth, whose rows in the paper stand beside best of N without it. here: small "
        "models on symbols, their own confidence in place of those prompts, all at one budget. The tasks are others: "
        "no number can be compared with another of its column."
    )
    return Table("Published, not comparable", {"task": "s", **dict.fromkeys(names, ".2f")}, rows, legend)
