"""Study `methods` says what its records say: clusters instead of means, controls, and cells without meaning."""

from dataclasses import replace

import pytest
from records import changed, evaluation, record_of

from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import FAILS, HOLDS, OPEN
from tinylatent.lab.recipes_methods import (
    ARMS,
    BEFORE,
    FAMILIES,
    PLACES,
    READ,
    REGULAR,
    RETRAINED,
    SEARCHED,
    arm_of,
    build,
    split,
)
from tinylatent.lab.records import Answered
from tinylatent.lab.studies import methods, methods_tuning
from tinylatent.methods import METHODS, CoLaR, CoT2
from tinylatent.methods.searching import Search
from tinylatent.objectives.policy_gradient import PolicyGradient

SEEDS = range(5)
TURNS = {"cot2": 1, "plain": 2, "latentr3": 3}
"""How far keys of an arm scatter: differences that are all alike leave the interval a bound, which tells nothing."""
CONTROLS = {"noise": 20, "shuffled": 30, "zero": 10}


def record(arm, seed, percent):
    """A run with this percentage right; its latents replaced, less."""
    made, turn = record_of(build(arm, seed), percent), TURNS.get(split(arm)[1], 4)
    found = {name: evaluation(CONTROLS[name]) for name in made.evaluations if name in CONTROLS}
    if split(arm)[1] in READ:
        found[READ[split(arm)[1]]] = evaluation(percent, turn)
        percent = 10  # sampled, which is not looked at
    train = Answered(right=[90, 100], total=[100, 100])
    return changed(made, evaluations={"default": evaluation(percent, turn), **found}, train=train)


def place(prefix="mnns-", **arms):
    """Five seeds of kinds of arms: a percentage, or one for each seed."""
    given = {kind.replace("_", "-"): each if isinstance(each, tuple) else (each,) * 5 for kind, each in arms.items()}
    return {
        kind: [record(prefix + kind, seed, percent) for seed, percent in zip(SEEDS, each, strict=True)]
        for kind, each in given.items()
    }


def found(table):
    """(verdict, estimate) by claim."""
    return {each.claim: (each.verdict, round(each.estimate.value, 6)) for each in table.findings}


def test_an_arm_is_held_against_its_retrained_control():
    claim = "MNNS: CoT2 is more often right than its retrained control, discrete CoT, length given"
    assert found(methods.compared("mnns-", place(cot2=80, plain=60)))[claim] == (HOLDS, 0.2)
    assert found(methods.compared("mnns-", place(cot2=50, plain=60)))[claim] == (FAILS, -0.1)
    row = methods.compared("mnns-", place(cot2=80, plain=60)).rows[0]
    name = "discrete CoT, length given"
    assert (row["as"], row["retrained"], row["gain"]) == (name, pytest.approx(60), pytest.approx(20))
    assert (row["by"], row["control"]) == ("shuffled", pytest.approx(30))
    assert row["train"] == pytest.approx(95)


def test_second_stages_are_held_against_what_they_start_from():
    table = methods.compared("mnns-", place(cot2=60, grpo=80))
    claim = "MNNS: CoT2, GRPO on 3 tokens is more often right than what it starts from, CoT2"
    assert found(table)[claim] == (HOLDS, 0.2)
    assert {row["method"]: row["from"] for row in table.rows} == {"CoT2": None, "CoT2, GRPO on 3 tokens": "CoT2"}


def test_two_clusters_have_no_mean_and_no_finding():
    """Runs at 20 and at 90 percent: how many broke through is told."""
    groups = place(cot2=(20, 90, 20, 90, 90), pause=60)
    (row, *_), table = methods.headline({"mnns-": groups}).rows, methods.compared("mnns-", groups)
    assert (row["method"], row["MNNS"]) == ("CoT2", "3 of 5 at 90, 2 at 20")
    assert not [claim for claim in found(table) if "CoT2" in claim]
    told = {row["method"]: (row["least"], row["most"], row["through"]) for row in table.rows}
    assert told["CoT2"] == (pytest.approx(20), pytest.approx(90), 3)
    assert methods.headline({"mnns-": place(cot2=(70, 90, 80, 90, 95))}).rows[0]["MNNS"] == "85.0"


def test_a_cell_without_meaning_says_why():
    places = {"mnns-": place(cot2=80), "chain-": place("chain-", latentseek=70)}
    table = methods.headline(places)
    rows = {row["method"]: row for row in table.rows}
    assert "arithmetic" not in rows["CoT2"]
    assert rows["LatentSeek, certified"]["arithmetic"] == "70.0"
    assert "MNNS: no latentseek, since nothing short of the truth proves an answer here." in table.remarks
    assert float(rows["most frequent answer"]["MNNS"]) < float(rows["ceiling"]["MNNS"])


def test_tables_and_figure_have_every_place(tmp_path, few_draws):
    records = [record(arm, seed, 60 + seed) for arm in ARMS for seed in range(2)]
    tables = methods.tables(records)
    assert [table.title.split(":")[0] for table in tables] == [
        "Every method on every task", "MNNS", "Multi-hop, branching 2", "Subset sum", "Arithmetic", "Recommendation",
    ]  # fmt: skip
    for table in tables[1:]:
        assert {name for row in table.rows for name in row} == {*table.columns}
        assert {each.verdict for each in table.findings} == {OPEN}
    assert len(tables[0].rows) == 2 + len({split(arm)[1] for arm in ARMS})
    methods.draw(records, tmp_path / "figure.png")


# ---------------------------------------------------------------------------------------------------------------------
# Recipes


def test_every_method_is_an_arm_or_a_rival_of_one():
    """Searches by noise and taboo stand in for best of N in study `latentseek`."""
    names = {method.name for _, method, _ in ARMS.values()}
    assert {*METHODS} - names == {"noise-search", "taboo-search"}


def test_arms_of_a_place_share_model_steps_and_problems():
    for prefix, where in PLACES.items():
        runs = {kind: build(prefix + kind, 3) for kind in where.kinds}
        assert {run.task for run in runs.values()} == {where.task}
        trained = {kind: run for kind, run in runs.items() if not isinstance(run.method, Search)}
        for rewarded in (True, False):
            group = [run for run in trained.values() if isinstance(run.method, PolicyGradient) == rewarded]
            told = {(run.training.steps, run.training.num_train, run.training.batch_size) for run in group}
            assert len(told) == 1, prefix
        plain = [run for kind, run in runs.items() if not kind.endswith("-regular")]
        assert {run.model for run in plain} == {where.model}
        assert runs["direct-regular"].model.dropout == REGULAR["dropout"]
        for kind in BEFORE.keys() & runs.keys():
            assert runs[kind].start == runs[BEFORE[kind]], kind
    assert len({build(arm, 3).identity for arm in ARMS}) == len(ARMS)
    assert {*RETRAINED} | {*RETRAINED.values()} <= {split(arm)[1] for arm in ARMS}


def test_an_arm_is_known_by_its_run():
    assert [arm_of(build(arm)) for arm in ARMS] == [*ARMS]
    with pytest.raises(ValueError, match="of no arm of study methods"):
        arm_of(Experiment(method=CoT2(budget=4)))
    with pytest.raises(ValueError, match="unknown arm 'soft' of methods"):
        build("soft")


def test_every_arm_is_tuned_alike_and_starts_from_what_was_found():
    """On one task, where the best rate is the second of four: what starts from an arm waits for its rate."""
    arms = [arm for arm in FAMILIES if split(arm)[0] == "mnns-"]
    search, records, rounds = replace(methods_tuning.SEARCH, arms={"full": arms}), [], []
    best = {arm: methods_tuning.rates_of(arm)[1] for arm in arms}
    more = search.grid("full")
    while more:
        rounds.append({arm_of(run) for run in more})
        records += [record_of(run, 80 if run.training.learning_rate == best[arm_of(run)] else 50) for run in more]
        known = {record.id for record in records}
        more = [run for run in search.after("full", records) if run.identity not in known]
    tried = {(arm_of(run), run.seeds.split): [] for run in (record.experiment for record in records)}
    for run in (record.experiment for record in records):
        tried[arm_of(run), run.seeds.split].append(run.training.learning_rate)
        if run.start is not None and isinstance(run.start.method, CoT2 | CoLaR):
            assert run.start.training.learning_rate == best[arm_of(run.start)]
    assert {len(rates) for (_, seed), rates in tried.items() if seed == 100} == {4}
    assert {len(rates) for (_, seed), rates in tried.items() if seed == 101} == {2}
    assert {arm for arm, _ in tried} == {*arms}
    assert [len(each) for each in rounds[::2]] == [len(each) for each in rounds[1::2]]
    assert "mnns-cot2" in rounds[0]
    assert "mnns-grpo" in rounds[2]
    assert "mnns-colar-rl" in rounds[4]
    assert len(rounds) == 6
    assert {split(arm)[0] for arm in FAMILIES} == {*PLACES}
    assert SEARCHED == ()


def test_reported_seeds_are_none_of_the_quick_profile_or_of_tuning():
    seeds = {profile: {run.seeds.split for run in methods.grid(profile)} for profile in ("quick", "full")}
    assert seeds == {"quick": {0, 1, 2}, "full": {5, 6, 7, 8, 9}}
    assert {arm_of(run) for run in methods.grid("full")} == {*ARMS}
