"""Study `colar` and its tuning say what their records say, from readings made by hand."""

import json
from dataclasses import replace

import losses
import pytest
import torch
from records import NOWHERE, record_of
from tinylatent_tasks import MultiHop

from tinylatent.core.seeds import Streams
from tinylatent.engine.counters import Counters
from tinylatent.evaluation.statistics import Interval
from tinylatent.lab import recipes_colar
from tinylatent.lab.findings import FAILS, HOLDS, OPEN
from tinylatent.lab.reading import Part, Read, Reading, ReadingRecord
from tinylatent.lab.recipes_colar import ARMS, FAMILIES, HOPS, PREFIX, build, family_of
from tinylatent.lab.run import VERSION
from tinylatent.lab.studies import colar, colar_tuning
from tinylatent.lab.studies.colar_tables import controls, cut, latents, learning
from tinylatent.lab.studies.compare import grouped
from tinylatent.lab.study import rebuild
from tinylatent.methods import Coconut, CoLaR, CoLaRGRPO, PauseTokens
from tinylatent.methods.discrete import END, THINKING, ended

NOBODY_READS = Interval(0.5, 0.4, 0.6, "made up")
LENGTHS = {"": ("12", "18", "24"), PREFIX: ("2", "4", "6")}


def read(arm, seed, percent, latents=(), other_keys=False):
    """A reading of an arm: `percent` maps a reader's name to what it has right, at every length of the chain alike."""
    run = colar.reading(arm, seed)
    offsets = (
        (-2, -1, 0, 1, 2) if arm.removeprefix(PREFIX) in ("random", "c6") else (1, -2, 2, 0, -1)
    )  # keys differ, each in its own way
    parts = {}
    for number, length in enumerate(LENGTHS[PREFIX if arm.startswith(PREFIX) else ""]):
        readers = {}
        for reader in run.readers:
            share = percent(reader.name) if callable(percent) else percent
            right = [max(0, min(100, share + offset - number)) for offset in offsets]
            spent = round(500 * dict(latents).get(reader.name, 4))
            vectors = reader.name != colar.ITSELF
            stops = 500 - 20 * vectors  # one in 25 was cut
            thought = (3 * 500, spent, stops) if vectors else (500, 0 if run.start.method.name == "pause" else spent, 0)
            tokens, has, decided = thought
            steps = tokens + spent + decided
            costs = Counters(forwards=1, slots=1, steps=steps, tokens=tokens, latents=has, flops=1, judged=0)
            none = [0] * 5
            readers[reader.name] = Read(right=right, gained=none, lost=none, costs=costs, accuracy=NOBODY_READS)
        parts[length] = Part(total=[100] * 5, keys=f"{length}{seed}{other_keys}", readers=readers)
    return of_run(run, parts)


def graded(name):
    """Worse at higher c, a little worse drawn, bad under controls, right with the chain's own vectors."""
    if name.startswith("taught"):
        return 97
    if name.split()[-1] in ("noise", "shuffled", "zero"):
        return 22
    c = next((int(word[1:]) for word in name.split() if word[0] == "x"), 1)
    return 96 - 8 * c - 2 * name.startswith("drawn")


def every(seeds=colar.SEEDS["quick"], **changes):
    """Readings of every arm; changes: percentages of arms by name, dashes written as underscores."""
    shares = {"random": graded, "odd": lambda name: graded(name) - 20 * name.endswith(("x2", "x4"))}
    shares |= dict.fromkeys(("chain", "hops-chain"), 98) | dict.fromkeys(("coconut", "hops-coconut"), 50)
    shares |= {name.replace("_", "-"): share for name, share in changes.items()}
    records = []
    for arm in ARMS:
        share = shares.get(arm, (lambda name: graded(name) - 6) if "x2" in str(ARMS[arm]) else graded)
        if arm not in shares and ARMS[arm][1].name in ("pause", "direct", "coconut"):
            share = 30
        spent = {"drawn x2": {"c2-nll": 12, "rl-mean": 8, "rl-sum": 12}.get(arm, 12)}
        for seed in seeds:
            spread = {name: value + seed / 100 for name, value in spent.items()}
            spread |= {"itself": 3 + seed, "x6": 3.5}
            records.append(read(arm, seed, share, spread))
    return records


def claims(tables):
    return {each.claim: each for table in tables for each in table.findings}


def test_every_arm_is_known_again_and_survives_the_round_trip():
    for arm in ARMS:
        run = colar.reading(arm, 0)
        assert Reading.from_json(run.to_json()) == run
        assert colar.arm_of(read(arm, 0, 50)) == arm
    other = replace(build("random"), method=CoLaR(alpha=0.5))
    stranger = of_run(Reading(other, colar.read_by(other.method)), {})
    with pytest.raises(ValueError, match="is of no arm of study colar"):
        colar.arm_of(stranger)


def of_run(run, parts):
    """The record of a reading with these parts."""
    return ReadingRecord(version=VERSION, id=run.identity, run=run.to_json(), environments=NOWHERE, parts=parts)


def test_profiles():
    """Three seeds quickly, five in full; all arms of a task start from one chain of thought a seed."""
    quick, full = colar.grid("quick"), colar.grid("full")
    assert len(quick) == 3 * len(colar.QUICK)
    assert len(full) == 5 * len(ARMS)
    assert len({run.identity for run in full}) == len(full)
    starts = {run.start.start for run in full if not isinstance(run.start.method, CoLaRGRPO)} - {None}
    assert len(starts) == 2 * 5
    assert {run.start.training.steps for run in full if run.start.start in starts} == {
        recipes_colar.ARITHMETIC.training.steps,
        HOPS.training.steps,
    }


def test_tables_tell_what_the_readings_say():
    tables = colar.tables(every())
    rows = {(row["task"], row["arm"], row["c"]): row for row in tables[0].rows}
    five = rows["arithmetic", "CoLaR, c of 1 to 5", 5]
    assert (five["accuracy"], five["taught"], five["drawn"]) == pytest.approx((55, 96, 53))
    assert (five["latents"], five["seeds"], five["through"]) == (4, 3, 0)
    assert rows["multi-hop", "Coconut", None]["accuracy"] == pytest.approx(49)
    found = claims(tables)
    six = "arithmetic: CoLaR, c of 6 alone, at c = 6 (3.50 latents) is more often right than"
    verdicts = {"Coconut": FAILS, "pause as thought": HOLDS, "pause tokens, c of 6": HOLDS}
    assert {name: found[f"{six} {name} (4.00 latents)"].verdict for name in verdicts} == verdicts
    one = "multi-hop: CoLaR, c of 1 to 5, at c = 1 (4.00 latents) is more often right than Coconut (4.00 latents)"
    assert found[one].verdict == HOLDS
    assert rows["arithmetic", "CoLaR, c of 1 to 5", 5]["cut"] == pytest.approx(4)
    assert rows["arithmetic", "Coconut", None]["cut"] is None
    assert (
        found["arithmetic, c = 5: a head with a standard deviation is more often right than one without"].verdict
        == OPEN
    )
    unseen = "a c that was trained is more often right than one between two that were"
    assert found[f"arithmetic, c = 2: {unseen}"].estimate.value == pytest.approx(0.2)
    assert found["arithmetic: CoLaR, c of 1 to 5 at c = 5 needs its own latents"].estimate.value == pytest.approx(0.34)
    lengths = tables[1].rows[1]
    assert lengths["12 tokens"] > lengths["18 tokens"] > lengths["24 tokens"]
    assert found["RL with the mean over steps shortens chains"].verdict == HOLDS
    assert found["RL with the sum over steps lengthens chains"].verdict == OPEN
    assert f"multi-hop, c = 4: {unseen}" in found
    singles = "training with c of 1 to 5 is more often right than with this c alone"
    assert {claim for claim in found if claim.endswith(singles)} == {
        *(f"arithmetic, c = {c}: {singles}" for c in (2, 3, 4, 5)),
        *(f"multi-hop, c = {c}: {singles}" for c in (2, 4)),
    }
    published = {(row["what"], row["c"]): row["published"] for row in tables[3].rows if row["task"] == "arithmetic"}
    assert published["the sum over the root of c is more often right than the mean", 5] == 6.2
    assert published["training with c of 1 to 5 is more often right than with this c alone", 5] == -3.2


def test_latents_are_needed_only_if_every_control_loses():
    """A small loss that is sure under one control leaves it open whether a larger one under another is."""

    def percent(seed):
        losses = {"noise": 9 + seed, "shuffled": 30, "zero": 15 + 30 * (seed - 1)}
        return lambda name: graded(name.rsplit(" ", 1)[0] if name[0] == "x" else name) - losses.get(name.split()[-1], 0)

    def found_on(share):
        groups = {"random": [read("random", seed, share(seed)) for seed in range(3)]}
        return claims([controls(groups)])["arithmetic: CoLaR, c of 1 to 5 at c = 5 needs its own latents"]

    found = found_on(percent)
    assert found.verdict == OPEN
    assert found.estimate.value == pytest.approx(0.1)
    assert found.evidence.count("points") == 3
    assert found_on(lambda seed: lambda name: graded(name) - 9 * seed * name.endswith("zero")).verdict == HOLDS


def test_counts_of_a_rollout_tell_latents_and_rows_that_were_cut():
    """Of models that were not trained: hidden states, pauses and vectors alike, and every stop once."""

    def read_of(method):
        model, rows = losses.model_of(method, task, len(method.stage_starts(100)) - 1), task.problems(40, seed=0)
        if isinstance(method, CoLaR):
            with torch.no_grad():  # the delimiter is neither rare nor sure
                table_VD = model.backbone.embedding
                table_VD[method.extra_id(model, END)] = 2.5 * table_VD[:-6].mean(0)
        trace = method.solve(model, losses.examples_of(method, task, rows), Streams(0, torch.arange(40))).trace
        spent = trace.counters
        told = Read(right=[0], gained=[0], lost=[0], costs=spent, accuracy=NOBODY_READS)
        return trace, [of_run(colar.reading("random", 0), {"all": Part(total=[40], keys="", readers={"it": told})})]

    task = MultiHop(hops=6, least=1, nodes=4)
    trace, group = read_of(CoLaR(speed=2, draws=True))
    assert 0 < cut(group, "it") < 1
    assert cut(group, "it") == pytest.approx(1 - ended(trace).double().mean().item())
    lengths_B = trace.live_BT[:, trace.within(trace.span(THINKING))].sum(1)
    assert latents(group, "it") == [pytest.approx(lengths_B.double().mean().item())]
    same = [latents(read_of(Coconut(stages=2, thought=kind))[1], "it") for kind in ("hidden", "pause")]
    assert same[0] == same[1]
    assert same[0][0] > 1
    assert latents(read_of(PauseTokens(compression=9))[1], "it")[0] < 1, "a chain of none has no pause"


def test_lengths_before_and_after_rewards_have_one_limit():
    """The arm before is asked at the speed and by the limit of reinforcement learning."""
    readers = {arm: {each.name: each.method for each in colar.reading(arm, 0).readers} for arm in ("c2-nll", "rl-mean")}
    for name in ("x2", "drawn x2"):
        assert {readers[arm][name].most for arm in readers} == {None}, "one more than the chain has groups"
        assert {readers[arm][name].tokens_each for arm in readers} == {recipes_colar.RL_SPEED}


def test_runs_in_another_order_are_not_compared():
    """Though they were asked the same problems: lengths and accuracies are compared seed by seed."""
    groups = {arm: [read(arm, seed, graded) for seed in range(3)] for arm in ("c2-nll", "rl-mean", "rl-sum")}
    parts = [each.parts for each in groups["rl-sum"]]
    groups["rl-sum"] = [
        of_run(colar.reading("rl-sum", seed), each) for seed, each in zip((1, 0, 2), parts, strict=True)
    ]
    with pytest.raises(ValueError, match="expected the same seeds in the same order"):
        learning(groups)


def test_an_ablation_that_is_better_turns_the_verdict():
    found = claims(colar.tables(every(mean=lambda name: graded(name) + 9, nll=lambda name: graded(name) - 9)))
    assert found["arithmetic, c = 5: the sum over the root of c is more often right than the mean"].verdict == FAILS
    assert found["arithmetic, c = 2: soft-mse is more often right than the likelihood"].verdict == HOLDS


def test_other_problems_are_not_compared():
    records = [*every(), read("direct", 7, 30, other_keys=True)]
    with pytest.raises(ValueError, match=r"not asked the same problems|zip"):
        colar.tables([record for record in records if record.reading.start.seeds.split in (0, 7)])


@pytest.mark.parametrize("profile", ["quick", pytest.param("full", marks=pytest.mark.slow)])
def test_both_profiles_can_be_shown(profile, tmp_path, few_draws):
    """Rows have no column that is not there, each table has findings of a named family, and the figure is drawn."""
    made = every(colar.SEEDS[profile])
    if profile == "quick":
        by_arm = grouped(made, colar.arm_of)
        parts = [record.parts for arm in colar.QUICK for record in by_arm[arm]]
        made = [of_run(run, each) for run, each in zip(colar.grid("quick"), parts, strict=True)]
    lines = ({"study": "colar", "profile": profile, **record.to_json()} for record in made)
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = rebuild(colar.STUDY, tmp_path)
    for table in outcome.tables:
        assert {name for row in table.rows for name in row} == set(table.columns), table.title
        assert all(each.family and each.runs for each in table.findings), table.title
        assert all("[" in each.evidence for each in table.findings), table.title
    assert outcome.files["figure.png"].stat().st_size > 1000


# ---------------------------------------------------------------------------------------------------------------------
# Recipes and tuning


def test_recipes():
    assert {family_of(arm) for arm in ("random", "mean", "c5", "hops-random")} == {"colar"}
    assert (family_of("rl-sum"), family_of("hops-pause"), family_of("pause-c6")) == ("rl", "pause", "pause")
    run = build("rl-mean", 3, steps=7)
    assert (run.training.steps, run.training.weight_decay, run.seeds.split) == (7, 0.0, 3)
    assert run.training.learning_rate == recipes_colar.RATES["rl"]
    assert run.start == build("c2-nll", 3)
    assert run.start.start == build("chain", 3)
    assert build("hops-direct").start == build("hops-chain")
    with pytest.raises(ValueError, match="unknown arm 'fast' of colar: expected one of chain, random"):
        build("fast")


def test_every_family_is_tuned_alike():
    grid = colar_tuning.STUDY.grid("full")
    assert {family_of(arm) for arm in ARMS} - {"chain"} == {family_of(arm) for arm in FAMILIES}
    assert len(grid) == 6 * len(FAMILIES)
    assert len(grid) == 6 * len(FAMILIES)
    assert {run.seeds.split for run in grid} == {100}
    records = [record_of(run, 50 + number % 6) for number, run in enumerate(grid)]
    more = colar_tuning.STUDY.after("full", records)
    assert len(more) == 3 * len(FAMILIES)
    assert {run.seeds.split for run in more} == {101}
    tables = colar_tuning.STUDY.tables([*records, *(record_of(run, 60) for run in more)])
    chosen = [row for row in tables[0].rows if row["chosen"]]
    assert len(chosen) == len(FAMILIES)
