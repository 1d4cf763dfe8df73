"""Each study says what its records say: checked on records made by hand, where every number is known.

A record here has ten keys of a hundred problems each, so that an accuracy is the mean of ten percentages.
"""

import itertools
import json
import math
import re
from dataclasses import replace
from statistics import fmean, stdev

import pytest

from theory.claims.ledger import LEDGER, OPEN
from theory.claims.study import Check
from theory.predictions import estimators, phase_curve
from theory.predictions.estimators import Case
from theory.predictions.phase_curve import Width
from tinylatent.core.files import write_text
from tinylatent.core.seeds import Seeds
from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.measure import EQUAL_KS, ITSELF, KS
from tinylatent.lab.studies import (
    compare,
    lineup,
    mnns,
    mnns_budget,
    mnns_faithful,
    mnns_passk,
    mnns_rl,
    mnns_tuning,
    mnns_variance,
    rl_lineup,
    search,
    task_lineup,
    tasks,
)
from tinylatent.lab.study import rebuild, studies
from tinylatent.methods import Coconut, CoT2, DiscreteCoT
from tinylatent.training.config import Training

JITTER = {"cot2": 1, "cot2-4": 2, "coconut": 3}


def latent(method):
    """Whether the controls apply to a method."""
    return method.name in ("coconut", "cot2") or (method.name == "grpo" and (method.gamma or method.samples > 1))


def record(experiment, percent, controls=()):
    """What `measure` returns, with this percentage right over ten keys; controls have percentages of their own.

    Latent methods scatter from key to key, each in its own way: where all keys agree, an interval is a bound for keys
    that were not seen, and ten tell nothing.
    """
    values = json.loads(json.dumps(experiment.to_json()))
    name = values["method"]["name"] + ("-4" if values["method"].get("budget") == 4 else "")

    def evaluation(percent, scale=0):
        right = [percent + scale * offset for offset in (-2, -1, 0, 1, 2, -2, -1, 0, 1, 2)]
        return {
            "right": right,
            "kl": [0.1, 0.2],
            "entropy": [1.0, 0.8, 0.6, 0.5],
            "norm": [1.0, 3.0],
            "problems_per_s": 1000,
        }

    share = {"right": [50] * 10, "of": 1}
    levels = enumerate(experiment.task.ladder())
    climbed = {
        str(level): evaluation(percent - 10 * up, JITTER.get(name, 0)) | {"total": [100] * 10, "keys": level}
        for up, level in levels
    }
    ks = KS if experiment.start is None else EQUAL_KS
    sampling = {
        f"{temperature:g}": {name: {str(k): share for k in ks} for name in ("pass", "majority")}
        for temperature in experiment.method.temperatures
    }
    judged = {
        "evaluations": {
            ITSELF: evaluation(percent, JITTER.get(name, 0)),
            **{control: evaluation(value) for control, value in dict(controls).items()},
            **{reading: evaluation(percent + 2) for reading in experiment.method.decoders},
        },
        "sampling": {"samples": 32, "temperatures": sampling} if sampling else None,
    }
    line = {"step": 5, "reward": 0.5, "silent_groups": 0.25, "gradient_norm": 1.0}
    learning = {"before": judged, "metrics": [line, {**line, "step": 10, "reward": 0.75}]}
    return {
        "id": experiment.identity,
        "experiment": values,
        "keys": [str(key) for key in range(10)],
        "total": [100] * 10,
        **judged,
        **({} if experiment.start is None else learning),
        **({"ladder": climbed} if climbed else {}),
        "stages": [{"step": 5, "right": [60] * 10}] if isinstance(experiment.method, Coconut) else [],
        "constant": 0.4,
        "attainable": 1.0,
        "parameters": 10,
        "cost": {"steps": 4, "slots": 8, "flops": 4000, "training_seconds": 2.0},
        "environment": {"commit": "none"},
    }


def case_record(case):
    """What `theory.predictions.estimators.measure` returns, with numbers that depend on estimator and seed."""
    names = ["none", "leave-one-out", "mean", "std"]
    names += ["straight-through"] if case.samples and case.ratio == "exact" else []
    return {
        "id": case.identity,
        "experiment": json.loads(json.dumps(case.to_json())),
        "estimators": {
            name: {"error": 0.1 * place, "cosine": 1 - 0.01 * place - 0.001 * case.seed, "noise": 3.0 - 0.5 * place}
            for place, name in enumerate(names)
        },
        "environment": {"commit": "none"},
    }


def width_record(case):
    """What `theory.predictions.phase_curve.measure` returns: shares that fall from all to none through the middle."""
    middle = phase_curve.middle(case.width, case.vocabulary) + 0.1
    predicted = [phase_curve.wendel(case.width, k, phase_curve.VOCABULARY) for k in case.states]
    shares = [1 / (1 + math.exp(k - middle)) for k in case.states] if case.known_sum else predicted
    return {
        "id": case.identity,
        "experiment": json.loads(json.dumps(case.to_json())),
        "states": [*case.states],
        "held": [round(share * case.draws) for share in shares],
        "trained": phase_curve.trained(case.width) if case.known_sum and case.vocabulary == 89 else [],
        "environment": {"commit": "none"},
    }


def check_record(check):
    """What `theory.claims.study.measure` returns, with the verdict on record and no curves."""
    claim = LEDGER[check.claim]
    return {
        "id": check.identity,
        "experiment": {**check.to_json(), "seeds": {"claim": 1}},
        "verdict": claim.recorded,
        "evidence": "1 to 2",
        "counterexample": None if claim.counterexample is None else "one",
        "curves": {},
        "seconds": 1.0,
        "environment": {"commit": "none"},
    }


CONTROLS = {"noise": 20, "shuffled": 30, "zero": 10}


def records_of(study, profile):
    """All rounds of a study: 90 % right in the runs of its grid, 85 % in later ones."""
    records, more, percent = [], study.grid(profile), 90
    made = {Case: case_record, Width: width_record, Check: check_record}.get(study.kind)
    if made is not None:
        return [made(case) for case in more]
    while more:
        records += [record(each, percent, CONTROLS if latent(each.method) else ()) for each in more]
        known = {each["id"] for each in records}
        more = {each for each in study.after(profile, records) if each.identity not in known}
        percent = 85
    return records


# ---------------------------------------------------------------------------------------------------------------------
# All studies


@pytest.mark.parametrize("profile", ["quick", "full"])
@pytest.mark.parametrize("study", studies().values(), ids=studies())
def test_every_profile_of_every_study_can_be_shown(study, profile, tmp_path):
    """Tables hold no absent column, the first has a sentence below it, and the figure is drawn."""
    records = records_of(study, profile)
    lines = [json.dumps({**each, "study": study.name, "profile": profile}) + "\n" for each in records]
    write_text(tmp_path / "runs.jsonl", "".join(lines))
    outcome = rebuild(study, tmp_path)
    for table in outcome.tables:
        assert table.notes
        assert table.rows
        assert {name for row in table.rows for name in row} <= set(table.columns)
    assert outcome.files["figure.png"].stat().st_size > 1000


@pytest.mark.parametrize("study", studies().values(), ids=studies())
def test_every_study_says_what_holds(study):
    """In plain words, and with an interval, below each of its tables."""
    for table in study.tables(records_of(study, "full")):
        assert re.search(r"(Holds|Fails|Not enough evidence): .*\[.*\]", " ".join(table.notes)), table.title


# ---------------------------------------------------------------------------------------------------------------------
# Words


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0.01, 0.2, "Holds"),
        (-0.2, -0.01, "Fails"),
        (-0.1, 0.1, "Not enough evidence"),
        (0.0, 0.1, "Not enough evidence"),
    ],
)
def test_a_verdict_needs_the_whole_interval(low, high, found):
    said = compare.verdict("a is better", Interval((low + high) / 2, low, high, ""), runs=2)
    assert said.startswith(f"{found}: a is better (")
    assert f"{100 * low:+.2f}" in said
    alone = compare.verdict("a is better", Interval((low + high) / 2, low, high, ""), runs=1)
    assert alone.startswith("Not enough evidence: ")
    assert "of one run" in alone


@pytest.mark.parametrize(
    ("published", "place"), [(89.0, "below"), (99.9, "above"), (95.0, "inside"), (90.0, "inside"), (99.0, "inside")]
)
def test_published_values_are_placed(published, place):
    said = compare.against_published("X", Interval(0.95, 0.90, 0.99, ""), published)
    assert said == f"X: the published {published:.2f} lies {place} what was measured, 95.00 [90.00, 99.00]."


@pytest.mark.parametrize(
    ("zero", "found"),
    [(10, "Holds"), (90, "Not enough evidence"), (93, "Fails")],
    ids=["harmful", "harmless", "helpful"],
)
def test_latents_matter_only_if_every_control_hurts(zero, found):
    runs = [record(Experiment(seeds=Seeds.all(s)), 90, {**CONTROLS, "zero": zero}) for s in range(3)]
    said = compare.latents_matter("X", runs)
    assert said.startswith(f"{found}: X needs its own latents (+70.00 points")
    assert "+60.00 points [+59.50, +60.50] over shuffled" in said
    assert compare.latents_matter("X", runs[:1]).startswith("Not enough evidence")


def test_differences_demand_the_same_splits():
    ours, theirs = ([record(Experiment(method=each), 90)] for each in (CoT2(), DiscreteCoT()))
    assert compare.difference(ours, theirs).value == 0
    theirs[0]["keys"] = ["00", "02"]
    with pytest.raises(ValueError, match="runs of cot2 and discrete are not on the same splits"):
        compare.difference(ours, theirs)


def test_the_comparison_reports_means_and_differences():
    percents = {"direct": 45, "pause": 40, "discrete": 80, "coconut": 90, "cot2": 94}
    records = [
        record(each, percents[each.method.name], CONTROLS if latent(each.method) else ()) for each in mnns.grid("full")
    ]
    table, stages = mnns.tables(records)
    rows = {row["method"]: row for row in table.rows}
    assert rows["discrete CoT"]["accuracy"] == pytest.approx(80)
    assert rows["CoT2, noise"]["accuracy"] == pytest.approx(20)
    assert rows["CoT2"]["norm"] == 2.0
    notes = "\n".join(table.notes)
    assert "Holds: CoT2 is more often right than discrete CoT (+14.00 points" in notes
    assert "Holds: Coconut is more often right than pause (+50.00 points" in notes
    assert "Coconut is more often right than CoT2" not in notes
    assert [row["accuracy"] for row in stages.rows] == pytest.approx([60, 90])
    assert [row["until step"] for row in stages.rows] == [5, Training().steps]


# ---------------------------------------------------------------------------------------------------------------------
# Tasks


def test_tasks_are_compared_each_on_its_own_and_beyond_training():
    percents = {"direct": 50, "pause": 50, "discrete": 60, "coconut": 80, "cot2": 90}
    records = [
        record(each, percents[each.method.name], CONTROLS if latent(each.method) else ()) for each in tasks.grid("full")
    ]
    overview, *compared, ladder, published = tasks.tables(records)
    assert [row["accuracy"] for row in overview.rows] == pytest.approx([*percents.values()] * 4)
    for place in task_lineup.TASKS:
        assert f"Holds: {place}: CoT2 is more often right than discrete CoT (+30.00 points" in " ".join(overview.notes)
    assert [table.title.split(":")[0] for table in compared] == ["MNNS", "Subset sum", "Multi-hop", "Reachability"]
    assert "a key being a multiset of numbers and the target" in compared[1].notes[0]
    hops = [row for row in ladder.rows if (row["task"], row["method"]) == ("multi-hop", "CoT2")]
    assert [row["accuracy"] for row in hops] == pytest.approx([90, 80, 70, 60, 50, 40])
    assert [row["trained"] for row in hops] == ["yes"] * 3 + ["no"] * 3
    assert "Holds: multi-hop at 4, beyond training: CoT2 is more often right than discrete CoT (+30.00 points" in (
        " ".join(ladder.notes)
    )
    assert [row["here"] for row in published.rows] == pytest.approx([*percents.values()])
    assert published.rows[-1]["CoT2 paper, ProsQA"] == 93.37
    assert "published" not in compared[1].columns
    assert "published" not in compared[1].notes[0]
    next(each for each in records if "ladder" in each and compare.method_of(each) == "cot2")["ladder"]["5"]["keys"] = (
        "x"
    )
    with pytest.raises(ValueError, match="not on the same rungs"):
        tasks.tables(records)


# ---------------------------------------------------------------------------------------------------------------------
# Tuning


def tuning(name, scores):
    """Records of one method's first round: an accuracy for each configuration."""
    runs = [each for each in mnns_tuning.grid("full") if each.method.name == name]
    return [record(each, score) for each, score in zip(runs, scores, strict=True)]


def test_every_method_gets_the_same_search():
    grid = mnns_tuning.grid("full")
    by_method = compare.grouped([record(each, 50) for each in grid], compare.method_of)
    assert list(by_method) == [method.name for method in lineup.METHODS]
    searches = [list(search.searched(group)) for group in by_method.values()]
    assert all(search == searches[0] for search in searches)
    assert len(searches[0]) == 12


def test_the_better_half_goes_on_and_the_best_mean_wins():
    scores = [10, 20, 30, 40, 50, 60, 93, 80, 70, 65, 64, 5]
    first = tuning("cot2", scores)
    configurations = mnns_tuning.configurations("full")
    half = search.better_half(first, configurations)
    assert set(half) == {configurations[i] for i in range(6, 11)} | {configurations[5]} - {configurations[11]}
    others = [each for each in mnns_tuning.after("full", _everybody(first)) if each.method.name == "cot2"]
    assert {each.seeds for each in others} == {Seeds.all(101), Seeds.all(102)}
    assert len(others) == 12
    # the best of the first round falls back, the second comes out best, and its neighbours are tried
    second = [record(each, 10 if _pair(each) == configurations[6] else 80) for each in others]
    assert search.winner(first + second) == configurations[7]
    third = [
        each
        for each in mnns_tuning.after("full", _everybody(first) + second)
        if each.method.name == "cot2" and each not in others
    ]
    rate, decay, _ = configurations[7]
    beyond = [each for each in third if _pair(each) == (rate / 2, decay, "")]
    assert [each.seeds for each in beyond] == [Seeds.all(seed) for seed in (100, 101, 102)]
    assert {_pair(each) for each in third} == {(rate / 2, decay, ""), configurations[10]}, (
        "twice the rate is in the grid"
    )
    # a neighbour wins in the end, and asks for none of its own
    last = [record(each, 90) for each in beyond]
    assert search.winner(first + second + last) == (rate / 2, decay, "")
    rest = mnns_tuning.after("full", _everybody(first) + second + last)
    assert {each for each in rest if each.method.name == "cot2"} == {*others, *third}


def test_only_coconut_has_settings_of_its_own_to_try():
    """After its neighbours, its best rate and decay are tried with four other schedules, on all seeds."""
    records = [record(each, 50) for each in mnns_tuning.grid("full")]
    rounds = []
    for _ in range(4):
        known = {each["id"] for each in records}
        rounds.append([each for each in mnns_tuning.after("full", records) if each.identity not in known])
        records += [record(each, 60 if each.method == Coconut(share=0.3) else 50) for each in rounds[-1]]
    assert {each.method for each in rounds[2]} == set(mnns_tuning.OWN["coconut"])
    assert len(rounds[2]) == 4 * 3
    assert rounds[3] == []
    group = compare.grouped(records, compare.method_of)["coconut"]
    assert search.winner(group) == (2.5e-4, 0.01, "share 0.3"), "ties go to the smaller rate"
    notes = "\n".join(mnns_tuning.tables(records)[0].notes)
    assert "the best of Coconut (rate 0.00025, decay 0.01) is better than its second best (+10.00 points" in notes


def test_winners_at_an_edge_are_told():
    scores = dict(zip(mnns_tuning.configurations("full"), range(40, 52), strict=True))
    records = tuning("cot2", scores.values())
    for _ in range(2):
        new = {each.identity: each for each in mnns_tuning.after("full", _everybody(records))}
        known = [each["id"] for each in records]
        records += [
            record(each, scores.get(_pair(each), 10))
            for identity, each in new.items()
            if identity not in known and each.method.name == "cot2"
        ]
    assert search.winner(records) == (1e-2, 0.25, "")
    said = search.margin("CoT2", records)
    assert said.endswith("It has the highest decay that was tried: better ones may lie beyond."), "2e-2 was tried too"


def test_ties_go_to_the_smaller_rate():
    grid = mnns_tuning.configurations("full")
    assert search.better_half(tuning("cot2", [50] * 12), grid) == grid[:6]


def _pair(experiment):
    return experiment.training.rate, experiment.training.weight_decay, ""


def _everybody(first):
    """A first round of all methods in which one has these records."""
    name = compare.method_of(first[0])
    rest = [record(each, 50) for each in mnns_tuning.grid("full") if each.method.name != name]
    return rest + first


# ---------------------------------------------------------------------------------------------------------------------
# Budgets


def budget_records(percents):
    """Records of the full grid with a percentage for every (width, budget)."""
    runs = []
    for each in mnns_budget.grid("full"):
        blank = record(each, 50, CONTROLS if latent(each.method) else ())
        value = percents[mnns_budget.cell(blank)]
        runs.append(record(each, value, CONTROLS if latent(each.method) else ()))
    return runs


def test_cells_are_those_of_the_published_table():
    cells = compare.grouped(records_of(mnns_budget.STUDY, "full"), mnns_budget.cell)
    assert cells.keys() == mnns_budget.PUBLISHED.keys()
    assert {len(group) for group in cells.values()} == {5}


@pytest.mark.parametrize(
    ("narrow", "wide", "found"),
    [
        ({1: 50, 4: 70, 16: 60}, {1: 50, 4: 90, 16: 95}, "Holds: the best budget grows"),
        ({1: 50, 4: 60, 16: 70}, {1: 50, 4: 90, 16: 95}, "Fails: the best budget grows"),
        ({1: 50, 4: 70, 16: 60}, {1: 50, 4: 95, 16: 90}, "Fails: the best budget grows"),
        ({1: 50, 4: 60, 16: 60}, {1: 50, 4: 90, 16: 95}, "Not enough evidence: the best budget grows"),
        ({1: 60, 4: 50, 16: 55}, {1: 50, 4: 90, 16: 95}, "Holds: the best budget grows"),
        ({1: 50, 4: 70, 16: 60}, {1: 97, 4: 90, 16: 95}, "Fails: the best budget grows"),
        ({1: 70, 4: 50, 16: 60}, {1: 97, 4: 90, 16: 95}, "Fails: the best budget grows"),
    ],
)
def test_the_best_budget_grows_only_where_both_ends_say_so(narrow, wide, found):
    percents = {(w, b): (narrow if w == 16 else wide)[b] for w, b in itertools.product((16, 24, 32), (1, 4, 16))}
    (table,) = mnns_budget.tables(budget_records(percents))
    assert any(found in note for note in table.notes)
    row = next(row for row in table.rows if (row["width"], row["budget"]) == (32, 4))
    assert row["accuracy"] == pytest.approx(wide[4])
    assert row["published"] == 99.04
    assert row["zero"] == pytest.approx(10)


def test_the_best_budget_of_a_width_is_named():
    percents = {(w, b): 50 + b * (w > 16) - b * (w == 16) for w, b in itertools.product((16, 24, 32), (1, 4, 16))}
    notes = "\n".join(mnns_budget.tables(budget_records(percents))[0].notes)
    assert "Holds: at d = 16 B = 1, the best measured, is better than B = 4" in notes
    assert "Holds: at d = 32 B = 16, the best measured, is better than B = 4, the second best (+12.00 points" in notes


# ---------------------------------------------------------------------------------------------------------------------
# pass@k


def passk_records(single, shares):
    """CoT2 right on `single` percent; discrete chains with a share for each (figure, temperature, k)."""
    runs = []
    for each in mnns_passk.grid("full"):
        run = record(each, single, CONTROLS if latent(each.method) else ())
        if run["sampling"]:
            for temperature, figures in run["sampling"]["temperatures"].items():
                for name, ks in figures.items():
                    for k in ks:
                        ks[k] = {"right": [round(100 * 7 * shares(name, temperature, int(k)))] * 10, "of": 7}
        runs.append(run)
    return runs


def test_pass_and_majority_stand_beside_their_steps():
    def shares(name, temperature, k):
        return min(1.0, 0.06 * k + 0.1 * float(temperature) + 0.05 * (name == "pass"))

    _, table = mnns_passk.tables(passk_records(70, shares))
    assert len(table.rows) == len(DiscreteCoT.temperatures) * len(KS)
    for row in table.rows:
        k = int(row["k"])
        assert row["steps"] == 4 * k
        assert row["pass@k"] == pytest.approx(100 * shares("pass", row["temperature"], k), abs=0.1)
        assert row["majority@k"] == pytest.approx(100 * shares("majority", row["temperature"], k), abs=0.1)
        assert row["published"] == (mnns_passk.PUBLISHED_PASS.get(str(k)) if row["temperature"] == "1" else None)
    notes = "\n".join(table.notes)
    # at temperature 1.4 majority@5 is 44 %, pass@10 is 79 %
    assert (
        "Holds: one shot of CoT2 (4 steps) is above majority@5 of discrete CoT (20 decoded steps, temperature 1.4) (+26"
        in notes
    )
    assert (
        "Fails: one shot of CoT2 (4 steps) is above pass@10 of discrete CoT (40 decoded steps, temperature 1.4) (-9"
        in notes
    )


# ---------------------------------------------------------------------------------------------------------------------
# Reinforcement learning, and estimators


def rl_record(start, arm, seed, then, now, votes=None, entropy=(1.0, 0.4)):
    """A run of study mnns-rl with these percentages before and after; votes: majority by (when, k), of 32 // k."""
    made = record(rl_lineup.experiment(start, arm, seed), now, CONTROLS if arm != "K = 1" else ())
    made["before"] = json.loads(json.dumps(made["before"]))
    offsets = (-2, -1, 0, 1, 2, -2, -1, 0, 1, 2)
    turned = {"K = 1": -1, "K = 3": 2}[arm]  # keys change each in their own way, and not alike in both arms
    for judged, percent, nats, by in ((made["before"], then, entropy[0], 1), (made, now, entropy[1], turned)):
        ours = [percent + by * offset + seed for offset in offsets]
        judged["evaluations"][ITSELF] |= {"right": ours, "entropy": [nats, nats, nats, 0.0]}
    made["before"]["evaluations"]["mixture"]["right"] = [95, 97, 99, 96, 98, 95, 97, 99, 96, 98]
    for (when, k), percent in (votes or {}).items():
        of = 32 // k
        share = {"right": [percent * of] * 9 + [percent * of + seed], "of": of}
        place = made["before"] if when == "before" else made
        place["sampling"]["temperatures"]["1"]["majority"][str(k)] = share
    return made


def test_rl_says_what_changed_and_which_way():
    records = []
    for seed in range(5):
        records += [
            rl_record("discrete CoT", "K = 1", seed, 60, 70),
            rl_record("discrete CoT", "K = 3", seed, 60, 55, entropy=(0.5, 0.75)),
            rl_record("CoT2", "K = 1", seed, 30, 50),
            rl_record("CoT2", "K = 3", seed, 40, 80),
        ]
    accuracies, learning, _ = mnns_rl.tables(records)
    rows = {(row["start"], row["latents"]): row for row in accuracies.rows}
    assert rows["discrete CoT", "K = 1"]["gain"] == pytest.approx(10)
    assert rows["discrete CoT", "K = 3"]["gain"] == pytest.approx(-5)
    assert rows["CoT2", "K = 3"]["before"] == pytest.approx(42)
    said = "\n".join(accuracies.notes)
    assert "Holds: discrete CoT, K = 1: reinforcement learning improves it (+10.00" in said
    assert "Fails: discrete CoT, K = 3: reinforcement learning improves it (-5.00" in said
    assert "From discrete CoT, reinforcement learning surely improves 1 of 2 ways to sample (gains between -5" in said
    assert "From CoT2, reinforcement learning surely improves 2 of 2 ways" in said
    assert "Fails: discrete CoT: K = 3 ends higher than K = 1 (-15.00" in said
    assert "Holds: CoT2: K = 3 ends higher than K = 1 (+30.00" in said
    # mixtures: 97 % before, 82 % after (two points above the run's own)
    assert "Fails: CoT2, K = 3: it improves the weights as the start reads them, without sampling (mixture) (-1" in said
    assert "Fails: CoT2, K = 1: sampled, better after it than the start was without sampling (mixture)" in said
    change = {(row["start"], row["latents"]): row["change"] for row in learning.rows}
    assert change["discrete CoT", "K = 1"] == pytest.approx(-0.6)
    assert change["discrete CoT", "K = 3"] == pytest.approx(0.25)
    assert learning.rows[0]["step 1"] == pytest.approx(-0.6)
    assert learning.rows[0]["answer"] == 0
    said = "\n".join(learning.notes)
    assert "Holds: discrete CoT, K = 1: it lowers the entropy of the latent steps (-0.600 nats" in said
    assert "Fails: discrete CoT, K = 3: it lowers the entropy of the latent steps (+0.250 nats" in said


def test_votes_are_compared_at_equal_tokens_though_they_are_counted_differently():
    """Two chains of three tokens (of 16 blocks) against six discrete ones (of 5 blocks)."""
    records = []
    for seed in range(3):
        for start, shift in (("discrete CoT", 0), ("CoT2", 20)):
            records += [
                rl_record(start, "K = 1", seed, 50, 50, {("before", 6): 40 + shift, ("after", 6): 70}),
                rl_record(start, "K = 3", seed, 50, 50, {("before", 2): 55 + shift, ("after", 2): 60}),
            ]
    *_, chains = mnns_rl.tables(records)
    rows = {(r["start"], r["when"], r["tokens"], r["K"]): r for r in chains.rows}
    assert rows["discrete CoT", "before", 6, 3]["N"] == 2
    assert rows["discrete CoT", "before", 6, 3]["majority@N"] == pytest.approx(55, abs=0.1)
    assert rows["discrete CoT", "before", 6, 1]["majority@N"] == pytest.approx(40, abs=0.1)
    said = "\n".join(chains.notes)
    assert "Holds: discrete CoT, before: a vote of 2 of its chains of K = 3 beats one of 6 discrete chains of" in said
    gaps = re.findall(r"(\S+, \w+): a vote of 2 of .*? of 6 discrete chains of (.*?), \w+ .*?\(([+-]\d+\.\d)", said)
    assert [(where, whose, float(gap)) for where, whose, gap in gaps] == [
        ("CoT, before", "the same start", pytest.approx(15, abs=0.11)),
        ("CoT, after", "the same start", pytest.approx(-10, abs=0.11)),
        ("CoT2, before", "the same start", pytest.approx(15, abs=0.11)),
        ("CoT2, before", "discrete CoT", pytest.approx(35, abs=0.11)),
        ("CoT2, after", "the same start", pytest.approx(-10, abs=0.11)),
        ("CoT2, after", "discrete CoT", pytest.approx(-10, abs=0.11)),
    ]


def test_estimators_say_what_is_biased_and_what_is_calm():
    """By hand: REINFORCE errs by nothing, the paper's ratio turns the gradient, and is half as noisy."""

    def made(case):
        found = case_record(case)
        for name, figures in found["estimators"].items():
            error = {"none": 0.0, "leave-one-out": 0.0, "mean": 1 / 8, "std": 0.9, "straight-through": 0.2}[name]
            figures |= {"error": error, "cosine": 1.0 if error < 0.2 else 0.99, "noise": 4.0}
            if case.ratio == "paper":
                figures |= {"error": 0.3, "cosine": 0.95 - 0.01 * case.seed, "noise": 2.0 + 0.1 * case.seed}
        if case.gamma:
            found["grid_error"] = 0.004
        return found

    table, information = estimators.tables([made(case) for case in estimators.grid("full")])
    said = "\n".join(table.notes)
    assert "at most 0.4 %" in said
    assert "Holds: REINFORCE is unbiased" in said
    assert "Holds: leave-one-out is unbiased" in said
    assert "Holds: subtracting the group's own mean shrinks the gradient by 1/8" in said
    assert (
        "Fails: dividing by the group's std keeps the gradient's direction (1 - cosine: mean over seeds 0.0100" in said
    )
    assert (
        "Fails: the paper's ratio keeps the gradient's direction at K = 3 (1 - cosine: mean over seeds 0.0950" in said
    )
    assert "at most 0.1400" in said
    assert "Holds: it is calmer than the exact ratio there, the difference of their noise (1.55 [" in said
    assert "over 10 seeds" in said
    assert "Not enough evidence: straight-through is calmer than leave-one-out" in said
    assert information.rows[2]["V"] == 89
    assert information.rows[2]["K = 3"] == pytest.approx(2.25, abs=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Variance and faithful


def test_each_purpose_is_varied_alone_and_all_together():
    grid = mnns_variance.grid("full")
    per_method = len(grid) // len(mnns_variance.METHODS)
    assert per_method == 1 + 5 * 4
    for purpose in mnns_variance.PURPOSES:
        moved = [
            each.seeds
            for each in grid[:per_method]
            if getattr(each.seeds, purpose) and len(set(vars(each.seeds).values())) > 1
        ]
        assert len(moved) == 5
        assert {replace(seeds, **{purpose: 0}) for seeds in moved} == {Seeds()}


def test_deviations_are_those_of_the_runs():
    """A method whose accuracy is its split seed, plus a tenth of its order seed."""
    runs = []
    for each in mnns_variance.grid("full"):
        value = 50 + 5 * each.seeds.split + each.seeds.order
        runs.append(record(each, value, CONTROLS if latent(each.method) else ()))
    (table,) = mnns_variance.tables(runs)
    rows = {row["varied"]: row for row in table.rows if row["method"] == "CoT2"}
    assert rows["split"]["sd"] == pytest.approx(stdev(range(0, 30, 5)))
    assert rows["order"]["sd"] == pytest.approx(stdev(range(6)))
    assert rows["init"]["sd"] == 0
    assert rows["together"]["sd"] == pytest.approx(stdev(range(0, 36, 6)))
    assert rows["together"]["accuracy"] == pytest.approx(fmean(50 + 6 * seed for seed in range(6)))
    assert rows["split"]["share"] == pytest.approx(100 * 25 / 26)
    assert (rows["split"]["lowest"], rows["split"]["highest"]) == (50, 75)
    assert rows["together"]["share"] is None
    assert any("the split moves CoT2 more than the init does" in note for note in table.notes)


def test_the_faithful_recipe_is_the_paper_s():
    """1000 epochs of the 5,249 or so problems of a training part in batches of 16, at 1e-4 throughout."""
    whole = mnns_faithful.grid("full")[0]
    epochs = whole.training.steps / (len(whole.rows("train")) // 16)
    assert epochs == pytest.approx(1000, rel=0.01)
    assert (whole.training.batch, whole.training.rate, whole.training.schedule) == (16, 1e-4, "constant")
    assert (whole.shape.width, whole.shape.layers, whole.shape.heads) == (32, 2, 2)


# ---------------------------------------------------------------------------------------------------------------------
# Capacity and claims


def test_capacity_says_where_the_curve_and_the_limit_hold():
    made = [width_record(case) for case in phase_curve.grid("full")]
    curve, exact, beside = ("\n".join(table.notes) for table in phase_curve.tables(made))
    assert "Holds: half of random embeddings hold as many states as Donoho and Tanner's curve says" in curve
    assert "Holds: without the sum, k states are held with Wendel's probability" in exact
    assert "Fails: a budget whose states random embeddings of that width cannot hold is out of reach" in beside
    for each in made:
        each["held"] = [0 for _ in each["held"]]
    curve, exact, _ = ("\n".join(table.notes) for table in phase_curve.tables(made))
    assert "Fails: half of random embeddings" in curve
    assert "Fails: without the sum" in exact


def test_the_ledger_says_which_verdict_changed():
    study = studies()["claims"]
    made = [check_record(check) for check in study.grid("full")]
    assert f"Holds: every verdict is the one on record [{len(made)} of {len(made)}]" in study.tables(made)[0].notes[-1]
    made[0]["verdict"] = OPEN
    (table,) = study.tables(made)
    assert f"Fails: every verdict is the one on record [{len(made) - 1} of {len(made)}]" in table.notes[-1]
    assert table.rows[0]["on record"] == LEDGER[made[0]["experiment"]["claim"]].recorded
