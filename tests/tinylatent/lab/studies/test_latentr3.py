"""Study `latentr3` says what its records say: credit for rewards, rankings against the ceiling, the tail, labels."""

import math

import pytest
from records import changed, evaluation, ranking, record_of

from tinylatent.lab import directions
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import FAILS, HOLDS, OPEN
from tinylatent.lab.recipes_latentr3 import (
    ARMS,
    FAMILIES,
    MORE,
    PLACES,
    SEARCHED,
    SECOND,
    arm_of,
    build,
    family_of,
    split,
)
from tinylatent.lab.records import Before
from tinylatent.lab.studies import latentr3, latentr3_tables, latentr3_tuning
from tinylatent.methods import CoT2, LatentR3, LatentR3RL

SEEDS = range(5)
TURNS = {"surrogate": -1, "attention": 2, "score": -2}
"""How far keys of an arm scatter: differences that are all alike leave the interval a bound, which tells nothing."""
CONTROLS = {"noise": 20, "shuffled": 30, "zero": 10}


@pytest.fixture(autouse=True)
def known_directions(monkeypatch):
    """Cosines that are told, not computed: down for the surrogate, up for the others."""
    told = {"surrogate": (-0.5, -0.4, -0.6, -0.5, -0.3)}
    up = (0.9, 0.8, 1.0, 0.9, 0.7)
    monkeypatch.setattr(latentr3_tables, "cosines", lambda method: told.get(method.estimator, up))


def record(arm, seed, percent, **told):
    """A run with this hit rate or accuracy; `told` goes to `records.ranking`."""
    made, turn = record_of(build(arm, seed), percent), TURNS.get(split(arm)[1], 1)
    if made.ranking is None:
        judged = {**made.evaluations, "default": evaluation(percent + seed, turn)}
        before = Before(evaluations={"default": evaluation(50, 1)}, sampling=None)
        return changed(made, evaluations=judged, **({} if made.before is None else {"before": before}))
    return changed(made, ranking=ranking(percent + seed, **{"turn": turn, "controls": CONTROLS, **told}))


def place(prefix="", kinds=("direct", "attention", *SECOND), **arms):
    """Five seeds of kinds of arms by kind: 60 percent, or what a test says of an arm."""
    every = dict.fromkeys((*kinds, *arms))
    given = {kind: arms.get(kind, 60) for kind in every}
    told = {kind: each if isinstance(each, dict) else {"percent": each} for kind, each in given.items()}
    return {kind: [record(prefix + kind, seed, **each) for seed in SEEDS] for kind, each in told.items()}


def found(table):
    """(verdict, estimate) by claim."""
    return {each.claim: (each.verdict, round(each.estimate.value, 6)) for each in table.findings}


def credit(kind):
    return (
        f"{SECOND[kind][0]}: reinforcement earns its gain: it ranks higher than training on the likelihood, with noise "
        "and without, and than its start, by hit rate at 5"
    )


@pytest.mark.slow
def test_reinforcement_earns_credit_where_it_beats_both_likelihoods_and_its_start():
    assert found(latentr3_tables.second(place(surrogate=80)))[credit("surrogate")] == (HOLDS, 0.2)
    assert found(latentr3_tables.second(place(surrogate=80, score=40)))[credit("score")] == (FAILS, -0.2)
    for arm in ("likelihood", "plain", "attention"):
        judged = found(latentr3_tables.second(place(surrogate=80, **{arm: 90})))
        assert judged[credit("surrogate")] == (FAILS, -0.1)
        equal = found(latentr3_tables.second(place(surrogate=80, **{arm: 80})))
        assert equal[credit("surrogate")][0] == OPEN


def test_a_part_of_the_rivals_gives_no_credit():
    groups = place("", ("direct", "attention", "likelihood"), surrogate=80)
    assert credit("surrogate") not in found(latentr3_tables.second(groups))


def test_the_second_stage_stands_beside_its_start_and_its_direction():
    table = latentr3_tables.second(place(surrogate=80, group=70))
    judged = found(table)
    assert judged["RL: surrogate, batch baseline: the second stage improves the first, by hit rate at 5"] == (
        HOLDS,
        0.2,
    )
    batch = "RL: surrogate, batch baseline ranks higher than RL: surrogate, group baseline, by hit rate at 5"
    assert judged[batch] == (HOLDS, 0.1)
    follows = "in small cases its update follows the slope of the expected reward"
    assert judged[f"RL: surrogate, batch baseline: {follows}"] == (FAILS, -0.46)
    assert judged[f"RL: score function: {follows}"] == (HOLDS, 0.86)
    rows = {row["arm"]: row for row in table.rows}
    row = rows["RL: surrogate, batch baseline"]
    assert (row["hit"], row["gain"], row["cosine"]) == tuple(map(pytest.approx, (82, 20, -0.46)))
    assert (row["least"], row["most"], row["reward first"], row["reward last"]) == (-0.6, -0.3, 0.5, 0.75)
    assert "gain" not in rows["attention"]


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
    judged = found(latentr3_tables.rankings("ndcg", groups))
    assert judged["attention ranks higher than direct, by NDCG at 5"] == (HOLDS, 0.2)
    against = "RL: surrogate, batch baseline ranks higher than SASRec, item tokens, by NDCG at 5"
    assert judged[against] == (FAILS, -0.1)


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
    claim = "attention needs its own latents, by hit rate at 5"
    assert found(latentr3_tables.controls(place()))[claim][0] == HOLDS
    other = place(attention={"percent": 60, "controls": {**CONTROLS, "zero": 80}})
    assert found(latentr3_tables.controls(other))[claim][0] == FAILS


def test_published_numbers_are_called_published():
    table = latentr3_tables.published(place(surrogate=80))
    assert {row["what"].split(":")[0] for row in table.rows} == {"published", "measured"}
    assert table.rows[0]["gain"] == pytest.approx(1.2)
    assert found(table)["RL: surrogate, batch baseline ranks higher than direct, as published"] == (HOLDS, 0.2)
    assert not any(math.isnan(value) for row in table.rows for value in row.values() if isinstance(value, float))


@pytest.mark.slow
def test_without_labels_the_best_must_beat_all_others():
    kinds = ("direct", "constant", "hidden", "attention", "likelihood", "plain")
    name = "MNNS: LatentR3, RL: surrogate, batch baseline,"
    best = f"{name} is more often right than all others without labels"
    first = {"mnns-": place("mnns-", kinds, surrogate=80, cot2=92, colar=40)}
    judged = found(latentr3.unlabelled(first))
    assert judged[best] == (HOLDS, 0.2)
    assert judged[f"MNNS: CoT2, taught steps, is more often right than {name[6:]} taught answers"] == (HOLDS, 0.12)
    assert judged[f"MNNS: CoLaR, c of 1, taught steps, is more often right than {name[6:]} taught answers"][0] == FAILS
    for arm in kinds:
        other = {"mnns-": place("mnns-", kinds, surrogate=80, **{arm: 90})}
        assert found(latentr3.unlabelled(other))[best] == (FAILS, -0.1)


def test_tables_and_figure_have_every_place(tmp_path, few_draws):
    records = [each for prefix in PLACES for group in place(prefix, PLACES[prefix].arms).values() for each in group]
    tables = latentr3.tables(records)
    assert len(tables) == 9
    assert "second stage" in tables[0].title
    latentr3.draw(records, tmp_path / "figure.png")
    few = [each for each in records if each.experiment.seeds.split < 2]
    judged = {each.verdict for table in latentr3.tables(few) for each in table.findings if each.family != "directions"}
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


# ---------------------------------------------------------------------------------------------------------------------
# Recipes


def test_second_stages_of_a_seed_share_start_steps_and_prompts():
    for prefix, where in PLACES.items():
        runs = [build(prefix + kind, 3) for kind in where.arms if kind in SECOND]
        assert {run.start for run in runs} == {build(f"{prefix}attention", 3)}
        assert len({(run.training.steps, run.training.batch_size, run.training.num_train) for run in runs}) == 1
        assert {run.task for run in map(build, (prefix + kind for kind in where.arms))} == {where.task}
    assert len({build(arm, 3).identity for arm in ARMS}) == len(ARMS)
    assert build("surrogate", 3, num_train=800).start.training.num_train == 800
    assert [arm for arm in MORE if ARMS[arm][1] == LatentR3(int(arm[-1]))] == [*MORE]


def test_an_arm_is_known_by_its_run():
    assert [arm_of(build(arm)) for arm in ARMS] == [*ARMS]
    assert family_of("latents3") == "attention"
    assert family_of("items-sasrec") == "sasrec"
    with pytest.raises(ValueError, match="of no arm of study latentr3"):
        arm_of(Experiment(method=CoT2(budget=4)))
    with pytest.raises(ValueError, match="unknown arm 'soft' of latentr3"):
        build("soft")


def test_every_family_is_tuned_with_as_many_rates_on_other_seeds():
    tried = {}
    for study in (latentr3_tuning.STUDY, latentr3_tuning.CHAINS_STUDY):
        runs = study.grid("full")
        for run in runs:
            tried.setdefault(arm_of(run), []).append(run.training.learning_rate)
        more = study.after("full", [record_of(run, 50) for run in runs])
        assert ({run.seeds.split for run in runs}, {run.seeds.split for run in more}) == ({100}, {101})
        assert len(more) == len(runs) / 2
    assert {len(rates) for rates in tried.values()} == {4}
    assert [*tried] == [*FAMILIES]
    assert {*SEARCHED} == {arm_of(run) for run in latentr3_tuning.CHAINS_STUDY.grid("full")}


def test_reported_seeds_are_none_of_the_quick_profile_or_of_tuning():
    seeds = {profile: {run.seeds.split for run in latentr3.grid(profile)} for profile in ("quick", "full")}
    assert seeds == {"quick": {0, 1, 2}, "full": {5, 6, 7, 8, 9}}
    assert {arm_of(run) for run in latentr3.grid("full")} == {*ARMS}
    quick = latentr3.grid("quick")[-1]
    assert (quick.training.steps, quick.start.training.steps) == (50, 700)
    assert quick.start.training.num_train == quick.training.num_train
