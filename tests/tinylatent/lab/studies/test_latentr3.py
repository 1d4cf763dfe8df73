"""Study `latentr3` says what its records say: credit for rewards, rankings against the ceiling, the tail, labels."""

import math
from dataclasses import replace

import pytest
from records import KEYS, changed, evaluation, ranking, record_of
from tinylatent_tasks import MNNS

from tinylatent.lab import directions
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import FAILS, HOLDS, OPEN
from tinylatent.lab.folders import train
from tinylatent.lab.measure import measure
from tinylatent.lab.recipes_latentr3 import (
    ARMS,
    CHAINS,
    FAMILIES,
    MORE,
    PLACES,
    SEARCHED,
    SECOND,
    SHOPS,
    arm_of,
    build,
    family_of,
    split,
)
from tinylatent.lab.records import Before
from tinylatent.lab.studies import latentr3, latentr3_chains, latentr3_second, latentr3_tables, latentr3_tuning
from tinylatent.methods import CoT2, LatentR3, LatentR3RL
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

SEEDS = range(5)
TURNS = {"surrogate": -1, "attention": 2, "score": -2}
"""How far keys of an arm scatter: differences that are all alike leave the interval a bound, which tells nothing."""
CONTROLS = {"noise": 20, "shuffled": 30, "zero": 10}


@pytest.fixture(autouse=True)
def known_directions(monkeypatch):
    """Cosines that are told, not computed: down for the surrogate, up for the others."""
    told = {"surrogate": (-0.5, -0.4, -0.6, -0.5, -0.3)}
    up = (0.9, 0.8, 1.0, 0.9, 0.7)
    monkeypatch.setattr(latentr3_second, "cosines", lambda method: told.get(method.estimator, up))


def record(arm, seed, percent, **told):
    """A run with this hit rate or accuracy; `told` goes to `records.ranking`."""
    made, turn = record_of(build(arm, seed), percent), TURNS.get(split(arm)[1], 1)
    if made.ranking is None:
        judged = {**made.evaluations, "default": evaluation(percent + seed, turn)}
        before = Before(evaluations={"default": evaluation(50, 1)}, sampling=None)
        return changed(made, evaluations=judged, **({} if made.before is None else {"before": before}))
    more = {}
    if made.before is not None:
        points = {"surrogate": -0.2, "pathwise": 0.3}.get(split(arm)[1], 0.0) + 0.01 * (seed - 2)
        more["before"] = changed(made.before, cosines=[points - 0.1, points + 0.1])
    return changed(made, ranking=ranking(percent + seed, **{"turn": turn, "controls": CONTROLS, **told}), **more)


def place(prefix="", kinds=("direct", "attention", *SECOND), **arms):
    """Five seeds of kinds of arms by kind: 60 percent, or what a test says of an arm."""
    every = dict.fromkeys((*kinds, *arms))
    given = {kind: arms.get(kind, 60) for kind in every}
    told = {kind: each if isinstance(each, dict) else {"percent": each} for kind, each in given.items()}
    return {kind: [record(prefix + kind, seed, **each) for seed in SEEDS] for kind, each in told.items()}


def found(table):
    """(verdict, estimate) by claim."""
    return {each.claim: (each.verdict, round(each.estimate.value, 6)) for each in table.findings}


BY = "by hit rate at 1, NDCG at 5 and at 10"


def credit(kind, where="recommendation"):
    return (
        f"{where}: {SECOND[kind][0]}: reinforcement earns its gain: it ranks higher than training on the likelihood, "
        f"with noise and without, and than its start, {BY}"
    )


@pytest.mark.slow
def test_reinforcement_earns_credit_where_it_beats_both_likelihoods_and_its_start():
    assert found(latentr3_second.second(place(surrogate=80)))[credit("surrogate")] == (HOLDS, 0.2)
    assert found(latentr3_second.second(place(surrogate=80, score=40)))[credit("score")] == (FAILS, -0.2)
    for arm in ("likelihood", "plain", "attention"):
        judged = found(latentr3_second.second(place(surrogate=80, **{arm: 90})))
        assert judged[credit("surrogate")] == (FAILS, -0.1)
        equal = found(latentr3_second.second(place(surrogate=80, **{arm: 80})))
        assert equal[credit("surrogate")][0] == OPEN


def test_a_part_of_the_rivals_gives_no_credit():
    groups = place("", ("direct", "attention", "likelihood"), surrogate=80)
    assert credit("surrogate") not in found(latentr3_second.second(groups))


def test_the_second_stage_stands_beside_its_start_and_its_direction():
    table = latentr3_second.second(place(surrogate=80, group=70))
    judged = found(table)
    name = "recommendation: RL: surrogate, batch baseline"
    assert judged[f"{name}: the second stage improves the first, {BY}"] == (HOLDS, 0.2)
    assert judged[f"{name}: the second stage moves the ranking by less than a point, {BY}"] == (FAILS, 0.2)
    assert judged[f"{name} ranks higher than RL: surrogate, group baseline, {BY}"] == (HOLDS, 0.1)
    rows = {row["arm"]: row for row in table.rows}
    row = rows["RL: surrogate, batch baseline"]
    assert (row["hit 1"], row["gain hit 1"], row["gain ndcg 10"]) == tuple(map(pytest.approx, (82, 20, 20)))
    assert "gain hit 1" not in rows["attention"]


def test_a_ranking_that_stays_within_the_margin_is_called_the_same(monkeypatch):
    """Keys scatter by points, so that the margin is widened here."""
    claim = f"recommendation: likelihood, no noise: the second stage moves the ranking by less than a point, {BY}"
    monkeypatch.setattr(latentr3_second, "MARGIN", 0.03)
    for percent, verdict in ((60, HOLDS), (63, OPEN), (70, FAILS), (50, FAILS)):
        assert found(latentr3_second.second(place(plain=percent)))[claim][0] == verdict


def test_rewards_are_told_without_noise_on_problems_not_trained_on():
    """A title that ranks first has .25 nats a token, and any other 2."""
    table = latentr3_second.rewards(place(surrogate=80, pathwise=40))
    judged, rows = found(table), {row["arm"]: row for row in table.rows}
    step = math.exp(2) - math.exp(0.25)
    name = "RL: surrogate, batch baseline"
    assert judged[f"recommendation: {name} makes right titles likelier"] == (HOLDS, 0.35)
    assert judged["recommendation: pathwise gradient makes right titles likelier"][0] == FAILS
    assert rows["attention"]["reward"] == pytest.approx(-math.exp(0.25) - 0.38 * step)
    assert rows[name]["gain"] == pytest.approx(0.2 * 1.75)
    follows = "in small cases its update follows the slope of the expected reward"
    assert judged[f"{name}: {follows}"] == (FAILS, -0.46)
    assert judged[f"RL: score function: {follows}"] == (HOLDS, 0.86)
    assert (rows[name]["cosine"], rows[name]["least"], rows[name]["most"]) == (pytest.approx(-0.46), -0.6, -0.3)
    follows = "in the trained models its update follows the slope of the expected reward"
    assert judged[f"recommendation: {name}: {follows}"] == (FAILS, -0.2)
    assert judged[f"recommendation: pathwise gradient: {follows}"] == (HOLDS, 0.3)
    assert judged[f"recommendation: RL: score function: {follows}"][0] == OPEN
    assert rows[name]["trained"] == pytest.approx(-0.2)


def test_a_short_first_stage_has_tables_of_its_own():
    early = place("early-", ("attention", "likelihood", "plain", "long"), surrogate=80, score=60)
    for table in (latentr3_second.second(early, "early-"), latentr3_second.rewards(early, "early-")):
        assert table.title.startswith("Recommendation, short first stage: ")
        assert {each.claim.split(":")[0] for each in table.findings} == {"recommendation, short first stage"}
    judged = found(latentr3_second.second(early, "early-"))
    assert judged[credit("surrogate", "recommendation, short first stage")] == (HOLDS, 0.2)


def test_no_arm_may_stand_above_the_ceiling():
    claim = "no arm's hit rate is above the ceiling by more than sampling explains"
    below = latentr3_tables.rankings("hit", place())
    assert found(below)[claim][0] == HOLDS
    above = place(direct={"percent": 60, "over": 0.3})
    assert found(latentr3_tables.rankings("hit", above))[claim] == (FAILS, 0.3)
    assert below.rows[-1] == {"arm": "ceiling", "at 1": 95, "at 5": 95, "at 10": 95, "seeds": 5}
    assert [row["arm"] for row in below.rows[-4:-1]] == [*latentr3_tables.WITHOUT.values()]
    assert below.rows[-2]["at 10"] == pytest.approx(90)


def test_item_tokens_are_compared_with_titles():
    items = place("items-", ("direct", "attention", "surrogate"), sasrec=70)
    groups = {**place(attention=80), **{f"items-{kind}": group for kind, group in items.items()}}
    judged = found(latentr3_tables.rankings("hit", groups))
    assert judged[f"attention ranks higher than direct, {BY}"] == (HOLDS, 0.2)
    assert judged[f"RL: surrogate, batch baseline ranks higher than SASRec, item tokens, {BY}"] == (FAILS, -0.1)
    assert len(latentr3_tables.rankings("ndcg", groups).findings) == 1


@pytest.mark.parametrize(("points", "verdict"), [(20, HOLDS), (-20, FAILS)])
def test_gains_among_the_least_popular_are_told_absolutely_and_relatively(points, verdict):
    """Direct answers are right in 60 to 64 of 100 cases everywhere, attention in 10 more, and so many at the tail."""
    table = latentr3_tables.tail(place(attention={"percent": 70, "tail": points}))
    absolute, relative = (
        f"attention: the {word} gain over direct answers is larger for the least popular items"
        for word in ("absolute", "relative")
    )
    judged = found(table)
    assert judged[absolute] == (verdict, pytest.approx(points / 100, abs=0.02))
    assert judged[relative][0] == verdict
    rows = [row for row in table.rows if row["arm"] == "attention"]
    assert rows[4]["relative"] == pytest.approx(100 * rows[4]["gain"] / (rows[4]["hit"] - rows[4]["gain"]))
    assert rows[0]["asked"] == 20


def test_a_beam_stands_in_for_all_scores_unless_it_loses_titles():
    claim = "direct: a beam of ten stands in for scores of all titles, to a point of the hit rate at 10"
    assert found(latentr3_tables.beams(place()))[claim] == (HOLDS, 0)
    assert found(latentr3_tables.beams(place(direct={"percent": 60, "lost": 20})))[claim] == (FAILS, 0.2)


def test_latents_are_used_where_every_control_costs():
    claim = "attention needs its own latents, by hit rate at 1"
    assert found(latentr3_tables.controls(place()))[claim][0] == HOLDS
    other = place(attention={"percent": 60, "controls": {**CONTROLS, "zero": 80}})
    assert found(latentr3_tables.controls(other))[claim][0] == FAILS


def test_published_numbers_are_called_published():
    table = latentr3_tables.published(place(surrogate=80))
    assert {row["what"].split(":")[0] for row in table.rows} == {"published", "measured"}
    assert table.rows[0]["gain"] == pytest.approx(1.2)
    assert found(table)["RL: surrogate, batch baseline ranks higher than direct by hit rate at 5, as published"] == (
        HOLDS,
        0.2,
    )
    assert not any(math.isnan(value) for row in table.rows for value in row.values() if isinstance(value, float))


@pytest.mark.slow
def test_without_labels_the_best_must_beat_all_others():
    kinds = ("direct", "constant", "hidden", "surrogate", "likelihood", "plain")
    best = "MNNS: attention is more often right than all others that are taught answers"
    first = {"mnns-": place("mnns-", kinds, attention=80, cot2=92, colar=40)}
    judged = found(latentr3_chains.unlabelled(first))
    assert judged[best] == (HOLDS, 0.2)
    assert judged["MNNS: CoT2, taught steps, is more often right than attention, taught answers"] == (HOLDS, 0.12)
    assert judged["MNNS: CoLaR, c of 1, taught steps, is more often right than attention, taught answers"][0] == FAILS
    for arm in ("direct", "constant", "hidden"):
        other = {"mnns-": place("mnns-", kinds, attention=80, **{arm: 90})}
        assert found(latentr3_chains.unlabelled(other))[best] == (FAILS, -0.1)


@pytest.mark.slow
def test_without_labels_rewards_earn_credit_over_likelihoods_and_start():
    kinds = ("direct", "constant", "hidden", "attention", "likelihood", "plain")
    claim = (
        "multi-hop: RL: surrogate, batch baseline: reinforcement earns its gain: it is more often right than training "
        "on the likelihood, with noise and without, and than its start"
    )
    assert found(latentr3_chains.unlabelled({"hops-": place("hops-", kinds, surrogate=80)}))[claim] == (HOLDS, 0.2)
    for arm in ("likelihood", "plain", "attention"):
        judged = found(latentr3_chains.unlabelled({"hops-": place("hops-", kinds, surrogate=80, **{arm: 90})}))
        assert judged[claim] == (FAILS, -0.1)


@pytest.mark.parametrize(("study", "prefixes", "count"), [(latentr3, SHOPS, 11), (latentr3_chains, CHAINS, 1)])
def test_tables_and_figure_have_every_place(study, prefixes, count, tmp_path, few_draws):
    records = [each for prefix in prefixes for group in place(prefix, PLACES[prefix].arms).values() for each in group]
    tables = study.tables(records)
    assert len(tables) == count
    study.draw(records, tmp_path / "figure.png")
    few = [each for each in records if each.experiment.seeds.split < 2]
    judged = {each.verdict for table in study.tables(few) for each in table.findings if each.family != "directions"}
    assert judged == {OPEN}


# ---------------------------------------------------------------------------------------------------------------------
# Directions


@pytest.mark.slow
def test_the_pathwise_update_is_the_slope_by_finite_differences(monkeypatch):
    """And the score's is near it, while the surrogate's is not."""
    monkeypatch.setattr(directions, "CASES", 1)
    kinds = ("pathwise", "score", "surrogate", "plain")
    found = {kind: directions.cosines.__wrapped__(LatentR3RL(**SECOND[kind][1])) for kind in kinds}
    assert {len(each) for each in found.values()} == {1}
    assert found["pathwise"][0] == pytest.approx(1, abs=1e-3)
    assert found["score"][0] > 0.7
    assert found["surrogate"][0] < 0.9


@pytest.mark.slow
def test_cosines_where_a_run_starts_are_of_its_own_batches(monkeypatch):
    """The pathwise update of a batch goes along with the slope, as far as a batch of sixteen problems tells it."""
    monkeypatch.setattr(directions, "BATCHES", 2)
    monkeypatch.setattr(directions, "REFERENCE", 8)
    start = Experiment(MNNS(2, 1, 5), LatentR3(1), ModelConfig(8, 1, 1), Training(30, 16, 3e-3))
    model = train(start)
    runs = {kind: replace(start, method=LatentR3RL(**SECOND[kind][1]), start=start) for kind in ("pathwise", "plain")}
    found = {kind: directions.trained_cosines(run, model) for kind, run in runs.items()}
    assert {len(each) for each in found.values()} == {2}
    assert min(found["pathwise"]) > 0.2
    assert found == {kind: directions.trained_cosines(run, model) for kind, run in runs.items()}
    assert directions.trained_cosines(start, model) == []
    assert measure(runs["plain"], None).before.cosines != []


# ---------------------------------------------------------------------------------------------------------------------
# Recipes


def test_second_stages_of_a_seed_share_start_steps_and_prompts():
    for prefix, where in PLACES.items():
        runs = [build(prefix + kind, 3) for kind in where.arms if kind in SECOND]
        assert {run.start for run in runs} == {build(f"{prefix}attention", 3)}
        same = [run for run in runs if run.training.steps == where.reinforced.steps]
        assert len({(run.training.batch_size, run.training.num_train) for run in runs}) == 1
        assert len(runs) - len(same) == (f"{prefix}long" in ARMS), "the arm that shows what can be gained is longer"
        assert {run.task for run in map(build, (prefix + kind for kind in where.arms))} == {where.task}
    assert len({build(arm, 3).identity for arm in ARMS}) == len(ARMS)
    assert build("surrogate", 3, num_train=800).start.training.num_train == 800
    assert [arm for arm in MORE if ARMS[arm][1] == LatentR3(int(arm[-1]))] == [*MORE]


def test_an_arm_is_known_by_its_run():
    assert [arm_of(build(arm)) for arm in ARMS] == [*ARMS]
    assert family_of("latents3") == "attention"
    assert family_of("items-sasrec") == "sasrec"
    assert family_of("early-long") == "plain"
    assert build("long").training.steps == 10 * build("plain").training.steps
    assert build("early-plain").start.training.steps < build("plain").start.training.steps
    with pytest.raises(ValueError, match="of no arm of study latentr3"):
        arm_of(Experiment(method=CoT2(budget=4)))
    with pytest.raises(ValueError, match="unknown arm 'soft' of latentr3"):
        build("soft")


def test_every_family_is_tuned_with_as_many_rates_on_other_seeds():
    tried = {}
    for study in (latentr3_tuning.STUDY, latentr3_tuning.SECOND_STUDY, latentr3_tuning.CHAINS_STUDY):
        runs = study.grid("full")
        for run in runs:
            tried.setdefault(arm_of(run), []).append(run.training.learning_rate)
        more = study.after("full", [record_of(run, 50) for run in runs])
        assert ({run.seeds.split for run in runs}, {run.seeds.split for run in more}) == ({100}, {101})
        assert len(more) == len(runs) / 2
    assert {len(rates) for rates in tried.values()} == {4}
    assert sorted(tried) == sorted(FAMILIES)
    assert {*SEARCHED} == {*FAMILIES}


def test_reported_seeds_are_none_of_the_quick_profile_or_of_tuning():
    seeds = {profile: {run.seeds.split for run in latentr3.grid(profile)} for profile in ("quick", "full")}
    assert seeds == {"quick": {0, 1, 2}, "full": {5, 6, 7, 8, 9}}
    assert {arm_of(run) for study in (latentr3, latentr3_chains) for run in study.grid("full")} == {*ARMS}
    quick = latentr3.grid("quick")[-1]
    assert (quick.training.steps, quick.start.training.steps) == (50, 700)
    assert quick.start.training.num_train == quick.training.num_train


def test_hops_are_told_apart_where_a_key_has_one_number_of_them(monkeypatch):
    """Ten keys: four of two hops, five of three, one of both; attention knows two hops alone."""
    hops = dict(zip(KEYS, [2, 2, 2, 2, 3, 3, 3, 3, 3, 0], strict=True))
    monkeypatch.setattr(latentr3_chains, "_hops_of", lambda *about: hops)

    def told(arm, two, three):
        right = [two + 1, two - 1, two + 2, two - 2, three + 1, three - 1, three + 2, three - 2, three, 77]
        return [
            changed(each, evaluations={"default": changed(evaluation(50), right=right)})
            for each in place("hops-", (), **{arm: 50})[arm]
        ]

    (table,) = latentr3_chains.by_hops({"attention": told("attention", 95, 30), "direct": told("direct", 20, 31)})
    found_at = {(row["arm"], row["hops"]): (round(row["accuracy"]), row["problems"]) for row in table.rows}
    assert found_at == {
        ("attention", 2): (95, 400),
        ("attention", 3): (30, 500),
        ("direct", 2): (20, 400),
        ("direct", 3): (31, 500),
    }
    assert len(table.findings) == 2
    monkeypatch.setattr(latentr3_chains, "_hops_of", lambda *about: {})
    assert latentr3_chains.by_hops({"attention": told("attention", 95, 30)}) == []


def test_hops_of_keys_are_those_of_their_problems():
    run = build("hops-attention", 5, num_train=2000)
    rows, known = run.rows("validation"), latentr3_chains._hops_of(run.task, 2000, run.seeds)
    every = {}
    for row, key in zip(rows, run.task.key(rows).tolist(), strict=True):
        every.setdefault(f"{key:016x}", set()).add(len(run.task.solve_slowly(row.tolist())[1]))
    assert {key: hops for key, hops in known.items() if hops} == {
        key: min(h) for key, h in every.items() if len(h) == 1
    }
    assert {2, 3} <= {*known.values()}
