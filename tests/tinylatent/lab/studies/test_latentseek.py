"""Study `latentseek` says what its records say: settings from the tuning splits alone, differences at equal cost."""

from dataclasses import replace
from functools import cache

import pytest
from records import NOWHERE, changed

from tinylatent.engine.counters import Counters
from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.findings import FAILS, HOLDS, OPEN
from tinylatent.lab.reading import ALL, Part, Read, Reading, ReadingRecord
from tinylatent.lab.recipes_latentseek import ARMS, PLACES, SEARCHES, build
from tinylatent.lab.run import VERSION
from tinylatent.lab.studies import latentseek
from tinylatent.lab.studies.latentseek_tables import (
    CALLS,
    CERTIFICATE,
    CONFIDENCE,
    PRIMARY,
    TRUTH,
    UNGUIDED,
    Cell,
    cells,
    edge,
    place_of,
)
from tinylatent.methods import METHODS, DiscreteCoT
from tinylatent.methods.searching import Search

OFFSETS = (-2, -1, 0, 1, 2) * 2
NOBODY = Interval(0.5, 0.4, 0.6, "made by hand")


def record_of(reading, percent):
    """A record of a reading in which every reader has a percentage right; greedy 50, `percent(cell)` the others."""
    readers = {}
    for number, reader in enumerate(reading.readers):
        cell = Cell.named(reader.name)
        value = 50 if cell is None else percent(cell)
        usual = cell is not None and cell.way == "latentseek" and not cell.note
        turn = 0 if usual else 1 + number % 4  # keys scatter in each reader's own way
        right = [value + offset for offset in OFFSETS[turn:] + OFFSETS[:turn]]
        tokens = 1000 * (10 if cell is None else 10 * (1 + cell.budget))
        costs = Counters(forwards=9, slots=9, steps=9, tokens=tokens, latents=0, flops=9, judged=2000)
        gained = [max(0, value - 50)] * 10
        lost = [max(0, 50 - value)] * 10
        readers[reader.name] = Read(right=right, gained=gained, lost=lost, costs=costs, accuracy=NOBODY)
    part = Part(total=[100] * 10, keys="k", readers=readers)
    return ReadingRecord(
        version=VERSION, id=reading.identity, run=reading.to_json(), environments=NOWHERE, parts={ALL: part}
    )


def tuning_percent(cell):
    """One setting of each way is best, and one level."""
    return 70 if cell.note in ("8", "0.95") else 60


def reported_percent(cell):
    """Best of N finds most, then LatentSeek, the others less; twice the budget finds more, at equal calls LatentSeek
    less; the last answer is worse; nothing but confidence guides."""
    base = {"best-of-n": 70, "latentseek": 62, "sampled": 61, "plain": 63, "vote": 56}.get(cell.way, 55)
    if "flipped" in cell.verifier:
        return base - 20
    if cell.verifier == CONFIDENCE and cell.note == UNGUIDED:
        return 52
    return base + (cell.budget > 1) - 5 * (cell.note in ("last", "constant reward")) - 4 * (cell.note == CALLS)


@cache
def stages(profile):
    """Records of settings, of levels, and those that are reported."""
    settings = [record_of(reading, tuning_percent) for reading in latentseek.grid(profile)]
    levels = [record_of(reading, tuning_percent) for reading in latentseek.after(profile, settings)]
    reported = [record_of(reading, reported_percent) for reading in latentseek.after(profile, settings + levels)]
    return settings, levels, reported


@cache
def records_of(profile):
    return [record for records in stages(profile) for record in records]


@cache
def quick_tables():
    return latentseek.tables(records_of("quick"))


@pytest.mark.slow
def test_every_way_has_as_many_settings_and_the_best_on_the_tuning_splits_is_read():
    assert {way: len(latentseek.tried(way)) for way in SEARCHES} == dict.fromkeys(SEARCHES, 18)
    assert all(max(latentseek.KNOBS[way][1]) >= 10 for way in ("latentseek", "sampled", "plain"))
    settings, levels, reported = stages("full")
    for records, stage in ((settings, "settings"), (levels, "levels"), (reported, "reported")):
        assert {latentseek.stage(record) for record in records} == {stage}
    assert {record.reading.start.seeds.split for record in settings + levels} == {100, 101}
    assert all(cell.verifier == CERTIFICATE for cell in cells(settings))
    assert {record.reading.start.seeds.split for record in reported} == set(range(5, 10))
    assert len(reported) == 5 * len(PLACES)
    for reader in reported[0].reading.readers:
        cell = Cell.named(reader.name)
        if cell is None:
            assert reader.method == DiscreteCoT()
            continue
        if cell.note in ("", "last", "first", CALLS, UNGUIDED):
            free = ("rounds", "by_tokens", "select", "threshold", "guided")
            changes = {name: getattr(reader.method, name) for name in free if name in vars(reader.method)}
            assert reader.method == replace(latentseek.tried(cell.way)[8], **changes)
        if cell.verifier == CONFIDENCE:
            assert reader.method.threshold == -0.05
        assert reader.method.rounds * (1 if reader.method.by_tokens else reader.method.proposals) == cell.budget
    again = latentseek.after("full", settings + levels + reported)
    assert [reading.identity for reading in again] == [record.id for record in reported]


def test_a_better_setting_of_one_split_alone_is_not_chosen():
    tuning = [
        record_of(reading, lambda cell, seed=reading.start.seeds.split: 70 + 10 * (cell.note == str(seed % 100)))
        for reading in latentseek.grid("full")
    ]
    assert latentseek.best(tuning[:2], "taboo") == "0", "both are as good: the first"
    worse = [record_of(latentseek.grid("full")[0], lambda cell: 60 + (cell.note == "2"))]
    assert latentseek.best([*worse], "noise") == "2"


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["quick", "full"])
def test_all_compared_readers_may_spend_the_same(profile):
    _, levels, reported = stages(profile)
    for record in levels + reported:
        assert place_of(record) in PLACES
        for reader in record.reading.readers[1:]:
            cell = Cell.named(reader.name)
            assert reader.method.by_tokens == (cell.note not in (CALLS, "early", "middle", "one shot"))
            assert reader.verifier == ("" if cell.way == "vote" else cell.verifier)
            if cell.note in ("", CALLS) and cell.verifier in {CERTIFICATE, TRUTH, CONFIDENCE}:
                assert reader.method.select == "best"
    methods = {reader.name: reader.method for reader in reported[0].reading.readers}
    early, middle = (
        methods[Cell("latentseek", TRUTH, latentseek.MIDDLE[profile], note).name] for note in ("early", "middle")
    )
    assert early == replace(middle, start=0.0)
    assert middle.start + middle.share < 0.7


def test_what_is_least_or_greatest_of_the_tried_is_at_the_edge():
    tried = [{"share": share, "rate": rate} for share in (0.25, 0.5, 0.75) for rate in (0.1, 1.0, 10.0)]
    assert edge({"share": 0.5, "rate": 1.0}, tried) == ""
    assert edge({"share": 0.75, "rate": 0.1}, iter(tried)) == "share 0.75, rate 0.1"


@pytest.mark.slow
def test_tables_say_what_the_records_say():
    by_budget, differences, erring, variants, settings, published = quick_tables()
    rows = {(row["task"], row["verifier"], row["way"], row["budget"]): row for row in by_budget.rows}
    assert rows["arithmetic", "-", "greedy", 0]["right"] == pytest.approx(50)
    assert rows["arithmetic", "certificate", "LatentSeek", 4]["right"] == pytest.approx(63)
    assert rows["subset sum", "truth", "best of N", 1]["right"] == pytest.approx(70)
    assert rows["subset sum", "truth", "best of N", 1]["gained"] == pytest.approx(20)
    assert rows["subset sum", "truth", "best of N", 4]["tokens"] == pytest.approx(50)
    assert rows["arithmetic", "-", "greedy", 0]["asked"] == pytest.approx(2)
    assert rows["arithmetic", "-", "greedy", 0]["MFLOP"] == pytest.approx(9e-9)
    found = {(row["task"], row["verifier"], row["rival"], row["equal"], row["budget"]): row for row in differences.rows}
    assert found["arithmetic", "certificate", "best of N", "tokens", 4]["difference"] == pytest.approx(-8)
    assert found["arithmetic", "certificate", "best of N", "calls", 4]["difference"] == pytest.approx(-12)
    assert found["arithmetic", "certificate", "noise", "calls", 4]["difference"] == pytest.approx(7)
    assert found["arithmetic", "truth flipped 0.3", "random prefix", "tokens", 4]["difference"] == pytest.approx(7)
    primary = [each for each in differences.findings if each.family == PRIMARY]
    assert [each.verdict for each in primary] == [FAILS, HOLDS, HOLDS, HOLDS] * 2
    calls = [each for each in differences.findings if each.family == "calls" and "best of N" in each.claim]
    assert {each.verdict for each in calls} == {FAILS}
    assert all("as many calls of the verifier" in each.claim for each in calls)
    assert all(each.exploratory for each in differences.findings)
    wide, narrow = (
        next(each for each in differences.findings if each.family == family and "noise" in each.claim).estimate
        for family in (PRIMARY, "rivals")
    )
    assert wide.high - wide.low > narrow.high - narrow.low  # corrected for eight claims
    worse = {row["way"]: row for row in erring.rows if row["verifier"] == "truth flipped 0.4"}
    assert worse["LatentSeek"]["lost"] == pytest.approx(8)
    assert {each.verdict for each in erring.findings if "flipped" in each.claim} == {FAILS}
    best = [row for row in settings.rows if row["chosen"]]
    assert len(best) == (len(SEARCHES) + 1 + len(latentseek.RIVALS)) * len(PLACES)
    assert all(row["right"] == max(each["right"] for each in settings.rows) for row in best)
    assert {row["edge"] for row in best if row["setting"].startswith("accepts")} == {""}
    assert {each.verdict for each in settings.findings} == {OPEN}  # two splits decide nothing
    assert [row["task"] for row in published.rows][-2:] == ["here: arithmetic", "here: subset sum"]
    for table in (by_budget, differences, erring, variants, settings, published):
        assert {name for row in table.rows for name in row} == set(table.columns), table.title
        assert all(each.family and each.runs for each in table.findings), table.title


@pytest.mark.slow
def test_claims_about_variants_compare_what_they_name():
    findings = {each.claim: each for each in quick_tables()[3].findings}

    def of(*words):
        found = [each for claim, each in findings.items() if all(word in claim for word in words)]
        assert len(found) == len(PLACES), words
        return found[0].verdict, round(100 * found[0].estimate.value, 6)

    assert of("confidence: LatentSeek is more often right than a majority vote at equal decoded tokens") == (HOLDS, 6)
    assert of("nobody: majority vote is more often right than greedy decoding") == (HOLDS, 7)
    assert of("confidence: rewards guide") == (HOLDS, 11)
    assert of("certificate: rewards guide") == (OPEN, 0)
    assert of("certificate", "under a constant reward that returns its last answer")[1] == 5
    assert of("truth: LatentSeek", 'as "last"') == (HOLDS, 5)
    assert of("truth: LatentSeek", "plain steps at equal decoded tokens") == (FAILS, -1)
    assert of("truth: LatentSeek", "sampled prefixes at equal calls") == (OPEN, 1)
    assert of("certificate: LatentSeek", "noise once")[0] == HOLDS
    assert of("certificate: a quarter of the tokens")[1] == 0


@pytest.mark.slow
def test_the_figure_is_drawn(tmp_path, few_draws):
    latentseek.draw(records_of("quick"), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.slow
def test_records_of_another_task_are_refused():
    record = records_of("quick")[0]
    other = build("discrete")
    other = replace(other, task=replace(other.task, modulus=5))
    alien = changed(record, run=Reading(other, record.reading.readers).to_json())
    with pytest.raises(ValueError, match=r"is on Arithmetic.*: expected a task of recipes_latentseek"):
        place_of(alien)


def test_recipes_read_the_chain_of_their_task():
    for arm in ARMS:
        run = build(arm, 3, num_train=5000)
        searches = isinstance(run.method, Search)
        chain = run.start if searches else run
        assert METHODS[run.method.name] is type(run.method)
        assert (chain.method, chain.training.num_train, chain.seeds.split) == (DiscreteCoT(), 5000, 3)
        assert chain.task == PLACES["sums-" if arm.startswith("sums-") else ""].task
        assert run.training.steps == (0 if searches else chain.training.steps)
    with pytest.raises(ValueError, match=r"unknown arm 'discreet' of latentseek: expected one of discrete, latentseek"):
        build("discreet")
