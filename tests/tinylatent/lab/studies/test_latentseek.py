"""Study `latentseek` says what its records say: settings from the tuning splits alone, differences at equal tokens."""

from dataclasses import replace

import pytest
from records import NOWHERE, changed

from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.findings import FAILS, HOLDS, OPEN
from tinylatent.lab.reading import ALL, Costs, Part, Read, Reading, ReadingRecord
from tinylatent.lab.recipes_latentseek import ARMS, PLACES, SEARCHES, build
from tinylatent.lab.run import VERSION
from tinylatent.lab.studies import latentseek
from tinylatent.lab.studies.latentseek_tables import CERTIFICATE, PRIMARY, TRUTH, Cell, cells, place_of
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
        costs = Costs(forwards=9, slots=9, steps=9, tokens=tokens, latents=0, flops=9, judged=2000)
        gained = [max(0, value - 50)] * 10
        lost = [max(0, 50 - value)] * 10
        readers[reader.name] = Read(right=right, gained=gained, lost=lost, costs=costs, accuracy=NOBODY)
    part = Part(total=[100] * 10, keys="k", readers=readers)
    return ReadingRecord(
        version=VERSION, id=reading.identity, run=reading.to_json(), environments=NOWHERE, parts={ALL: part}
    )


def tuning_percent(cell):
    """One setting of each way is best."""
    return 70 if cell.note == ("1" if cell.way == "best-of-n" else "5") else 60


def reported_percent(cell):
    """Best of N finds most, then LatentSeek, the others less; twice the budget finds more; the last answer is worse."""
    base = {"best-of-n": 70, "latentseek": 62, "sampled": 61, "noise": 55, "taboo": 54}[cell.way]
    if "flipped" in cell.verifier:
        return base - 20
    return base + (cell.budget > 1) - 5 * (cell.note == "last")


def records_of(profile):
    tuning = [record_of(reading, tuning_percent) for reading in latentseek.grid(profile)]
    return tuning + [record_of(reading, reported_percent) for reading in latentseek.after(profile, tuning)]


def test_every_way_has_as_many_settings_and_the_best_on_the_tuning_splits_is_read():
    assert {way: len(latentseek.tried(way)) for way in SEARCHES} == dict.fromkeys(SEARCHES, 12)
    tuning = [record_of(reading, tuning_percent) for reading in latentseek.grid("full")]
    assert {record.reading.start.seeds.split for record in tuning} == {100, 101}
    assert all(cell.verifier == CERTIFICATE for cell in cells(tuning))
    reported = latentseek.after("full", tuning)
    assert {reading.start.seeds.split for reading in reported} == set(range(5))
    assert len(reported) == 5 * len(PLACES)
    for reader in reported[0].readers:
        cell = Cell.named(reader.name)
        if cell is None:
            assert reader.method == DiscreteCoT()
            continue
        if cell.note in ("", "last", "first") and cell.way != "best-of-n":
            setting = latentseek.tried(cell.way)[5]
            changes = {name: getattr(reader.method, name) for name in ("rounds", "by_tokens", "select", "threshold")}
            assert reader.method == replace(setting, **changes)
        if cell.way == "best-of-n":
            assert reader.method.temperature == latentseek.TEMPERATURES[1]
        assert reader.method.rounds == cell.budget
    again = latentseek.after("full", tuning + [record_of(reading, reported_percent) for reading in reported])
    assert [reading.identity for reading in again] == [reading.identity for reading in reported]


def test_a_better_setting_of_one_split_alone_is_not_chosen():
    tuning = [
        record_of(reading, lambda cell, seed=reading.start.seeds.split: 70 + 10 * (cell.note == str(seed % 100)))
        for reading in latentseek.grid("full")
    ]
    assert latentseek.chosen(tuning[:2], "taboo") == latentseek.tried("taboo")[0], "both are as good: the first"
    worse = [record_of(latentseek.grid("full")[0], lambda cell: 60 + (cell.note == "2"))]
    assert latentseek.chosen([*worse], "noise") == latentseek.tried("noise")[2]


def test_all_compared_readers_may_spend_the_same():
    for profile in ("quick", "full"):
        for reading in latentseek.after(
            profile, [record_of(each, tuning_percent) for each in latentseek.grid(profile)]
        ):
            for reader in reading.readers[1:]:
                cell = Cell.named(reader.name)
                assert reader.method.by_tokens == (cell.note != "one shot")
                assert reader.verifier == ("" if cell.note == "vote" else cell.verifier)
                told = {CERTIFICATE, TRUTH, "confidence"}
                if cell.note == "" and cell.verifier in told:
                    assert reader.method.select == "best"
            assert place_of(record_of(reading, reported_percent)) in PLACES


def test_tables_say_what_the_records_say():
    by_budget, differences, erring, variants, settings, published = latentseek.tables(records_of("quick"))
    rows = {(row["task"], row["verifier"], row["way"], row["budget"]): row for row in by_budget.rows}
    assert rows["arithmetic", "-", "greedy", 0]["right"] == pytest.approx(50)
    assert rows["arithmetic", "certificate", "LatentSeek", 4]["right"] == pytest.approx(63)
    assert rows["subset sum", "truth", "best of N", 1]["right"] == pytest.approx(70)
    assert rows["subset sum", "truth", "best of N", 1]["gained"] == pytest.approx(20)
    assert rows["subset sum", "truth", "best of N", 4]["tokens"] == pytest.approx(50)
    assert rows["arithmetic", "-", "greedy", 0]["asked"] == pytest.approx(2)
    found = {(row["task"], row["verifier"], row["rival"], row["budget"]): row for row in differences.rows}
    assert found["arithmetic", "certificate", "best of N", 4]["difference"] == pytest.approx(-8)
    assert found["arithmetic", "truth flipped 0.3", "noise", 4]["difference"] == pytest.approx(7)
    primary = [each for each in differences.findings if each.family == PRIMARY]
    assert [each.verdict for each in primary] == [FAILS, HOLDS, HOLDS] * 2
    assert all(each.exploratory for each in differences.findings)
    wide, narrow = (
        next(each for each in differences.findings if each.family == family and "noise" in each.claim).estimate
        for family in (PRIMARY, "rivals")
    )
    assert wide.high - wide.low > narrow.high - narrow.low  # corrected for six claims
    worse = {row["way"]: row for row in erring.rows if row["verifier"] == "truth flipped 0.4"}
    assert worse["LatentSeek"]["lost"] == pytest.approx(8)
    assert {each.verdict for each in erring.findings if "flipped" in each.claim} == {FAILS}
    last = next(each for each in variants.findings if 'as "last"' in each.claim)
    assert (last.verdict, last.estimate.value) == (HOLDS, pytest.approx(0.05))
    best = [row for row in settings.rows if row["chosen"]]
    assert len(best) == len(SEARCHES) * len(PLACES)
    assert all(row["right"] == max(each["right"] for each in settings.rows) for row in best)
    assert {each.verdict for each in settings.findings} == {OPEN}  # two splits decide nothing
    assert [row["task"] for row in published.rows][-2:] == ["here: arithmetic", "here: subset sum"]
    for table in (by_budget, differences, erring, variants, settings, published):
        assert {name for row in table.rows for name in row} == set(table.columns), table.title
        assert all(each.family and each.runs for each in table.findings), table.title


def test_the_figure_is_drawn(tmp_path):
    latentseek.draw(records_of("quick"), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


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
