"""Study `ctrls` says what its records say: every null hypothesis may hold, fail, or stay open. Records made by hand."""

import json
from dataclasses import replace

import pytest
from records import KEYS, NOWHERE, OFFSETS, changed, record_of

from tinylatent.evaluation.statistics import Interval
from tinylatent.lab import state_directions
from tinylatent.lab.findings import FAILS, HOLDS, OPEN
from tinylatent.lab.recipes_ctrls import (
    ARMS,
    CANDIDATES,
    CHAIN,
    GRID,
    KINDS,
    PLACES,
    SEARCHED,
    TOKENS,
    arm_of,
    build,
    family_of,
    split,
)
from tinylatent.lab.run import VERSION, read_record
from tinylatent.lab.state_reading import UNITS, Bound, Draws, Meaning, StateReading, StateRecord, fixed_elsewhere, ways
from tinylatent.lab.studies import ctrls, ctrls_nulls, ctrls_tables, ctrls_tuning
from tinylatent.lab.studies.ctrls_nulls import NULLS, Part, nulls
from tinylatent.methods.ctrls import Stateful
from tinylatent.methods.ctrls_rl import CTRLSRL

SEEDS = range(5)
TURNS = {"chain": -1, "fitted": 1, "rl": 3, "hard": 1, "rl-hard": 1, "rl-warm": 1, GRID[0.0, 0.0]: 4}
"""How far keys of an arm scatter: differences that are all alike leave the interval a bound, which tells nothing."""
AGREEMENT = {"true": 0.5, "index": 0.2, "tokens": 0.3, "next": 0.3, "length": 0.0}
LINE = {"step": 10, "reward": 0.5, "state_entropy": 1.0, "concentration": 3.0, "frac_reward_zero_std": 0.25}


@pytest.fixture(autouse=True)
def known_directions(monkeypatch):
    """Cosines that are told, not computed."""
    told = {"permuted": (-0.1, 0.9, -0.9, 0.2, -0.7)}
    up = (0.9, 0.8, 1.0, 0.9, 0.7)
    monkeypatch.setattr(
        ctrls_tables, "cosines", lambda method: told.get(method.signal, None if method.temperature else up)
    )


def counts(percent, turn=1, scale=1):
    """Right answers of ten keys of a hundred problems each."""
    return [scale * (percent + turn * offset) for offset in OFFSETS]


def draws(percent, turn, twenty=None, different=()):
    """Sampled chains: this percentage at every n; another at 20, if a test says so."""
    passed = {str(n): counts(percent, turn, UNITS) for n in (1, 5, 10, 64, 125)}
    passed["20"] = counts(percent if twenty is None else twenty, turn, UNITS)
    return Draws(samples=40, temperature=0.0, entropy=1.0, pass_=passed, different=dict(different))


def record(arm, seed, percent=60, **told):
    """A reading of an arm's run with this percentage right.

    told: best, fixed, plain, drawn, matched: percentages; agreement; apart: different derivations of either way.
    """
    run, kind = ctrls.reading(arm, seed), split(arm)[1]
    turn, method = TURNS.get(kind, 2), run.start.method
    right = {name: counts(50, turn + 1) if name == "plain" else counts(percent, turn) for name in ways(method)}
    fields = {"bound": None, "meaning": None, "draws": {}}
    if isinstance(method, Stateful) and method.states != "prefix":
        apart = told.get("apart", (1.0, 1.0))
        for (way, percentage), turns, count in zip(
            (("drawn", told.get("drawn", 70)), ("matched", told.get("matched", 70))), (1, 2), apart, strict=True
        ):
            known = {"5": count, "20": count + 0.01 * seed * turns}
            fields["draws"][way] = draws(60, turns, percentage, known)
        if kind not in ("eight", "rl-eight"):
            bounds = counts(told.get("best", 90), 3), counts(told.get("fixed", 55), 4), counts(40, 1, UNITS)
            exact = method.feed == "hard"
            best, fixed, chance = bounds
            fields["bound"] = Bound(sequences=64 if exact else 125, exact=exact, best=best, fixed=fixed, chance=chance)
        agreement = {name: value + 0.001 * seed for name, value in told.get("agreement", AGREEMENT).items()}
        gain = 0.1 + 0.01 * seed
        shape = {"effective_rank": 2.0, "first_eigengap": 0.5}
        fields["meaning"] = Meaning(
            steps=100, agreement=agreement, chance=dict.fromkeys(agreement, 0.01), effect=[0.2, 0.3], gain=gain,
            shape=shape, sharpness={"largest": 0.8, "entropy": 0.5},
        )  # fmt: skip
    if kind == CHAIN:
        fields["draws"] = {"plain 0.5": draws(told.get("tokens", 80), -2), "plain 1": draws(70, -2)}
    about = {"version": VERSION, "id": run.identity, "run": run.to_json(), "environments": NOWHERE}
    return StateRecord(
        **about, total=[100] * 10, keys=f"{len(KEYS)} of {seed}", right=right, few_total=[100] * 10,
        few_right={name: right[name] for name in ("default", "plain") if name in right}, seconds=2.0, flops=10**6,
        metrics=[] if kind == CHAIN else [LINE, {**LINE, "step": 20, "reward": 0.75}], **fields,
    )  # fmt: skip


def place(*kinds, prefix="", **arms):
    """Five seeds of kinds of arms: 60 percent, or what a test says of an arm, dashes written as underscores."""
    given = {kind: {} for kind in kinds} | {kind.replace("_", "-"): told for kind, told in arms.items()}
    return {kind: [record(prefix + kind, seed, **told) for seed in SEEDS] for kind, told in given.items()}


def verdicts(groups, null, prefix=""):
    """The verdicts on the parts of a null hypothesis, by a part of their claim."""
    found = nulls({prefix: groups}).findings
    return {each.claim: each.verdict for each in found if each.family == f"null {null}"}


def only(groups, null, prefix=""):
    """The set of verdicts on a null hypothesis."""
    return {*verdicts(groups, null, prefix).values()}


# ---------------------------------------------------------------------------------------------------------------------
# Null hypotheses


@pytest.mark.parametrize(
    ("low", "high", "equal", "below", "verdict"),
    [
        (-0.02, 0.02, True, False, HOLDS),
        (0.04, 0.09, True, False, FAILS),
        (-0.09, -0.04, True, False, FAILS),
        (-0.01, 0.05, True, False, OPEN),
        (-0.09, -0.04, False, False, HOLDS),
        (0.04, 0.09, False, False, FAILS),
        (-0.02, 0.04, False, False, OPEN),
        (-0.09, -0.04, False, True, OPEN),
        (0.04, 0.09, False, True, FAILS),
    ],
)
def test_a_part_holds_within_its_margin_and_fails_beyond_it(low, high, equal, below, verdict):
    part = Part(1, "no more", 5, lambda level: Interval((low + high) / 2, low, high, ""), equal=equal, below=below)
    assert part.judged(0.95).verdict == verdict
    assert not part.judged(0.95).exploratory
    few = Part(1, "no more", 2, part.gap, equal=equal, below=below)
    assert few.judged(0.95).verdict == OPEN


def test_the_bound_is_held_against_as_many_samples_of_tokens():
    """Single states can hold and fail; mixtures are known from below, so that they can fail alone."""
    assert only(place(CHAIN, hard={"best": 60}), 1) == {HOLDS}
    assert only(place(CHAIN, hard={"best": 90}), 1) == {FAILS}
    assert only(place(CHAIN, fitted={"best": 60}), 1) == {OPEN}
    assert only(place(CHAIN, fitted={"best": 90}), 1) == {FAILS}
    claim = next(iter(verdicts(place(CHAIN, "hard"), 1)))
    assert "best of 64 sequences solves no more than 64 samples of tokens (plain 0.5)" in claim


def test_rewards_are_held_against_the_best_fixed_sequence():
    assert only(place(rl={"percent": 60, "fixed": 60}, rl_hard={"percent": 50, "fixed": 60}), 1) == {HOLDS}
    assert only(place(rl={"percent": 80, "fixed": 60}), 1) == {OPEN}, "a lattice may have missed the best one"
    assert only(place(rl_hard={"percent": 80, "fixed": 60}), 1) == {FAILS}


def test_dirichlet_is_held_against_categorical_in_both_directions():
    assert only(place("rl-hard", "rl-categorical"), 2) == {HOLDS}
    assert only(place("rl-categorical", rl_hard={"percent": 80}), 2) == {FAILS}
    assert only(place("rl-categorical", rl_hard={"percent": 40}), 2) == {FAILS}


def test_fitted_states_are_held_against_controls_before_and_after_rewards():
    kinds = ("shuffled", "random", "prefix", "rl-shuffled", "rl-random", "rl-prefix")
    ours = {"fitted": {"percent": 50}, "rl": {"percent": 50}, "rl_warm": {"percent": 50}}
    held = verdicts(place(*kinds, **ours), 3)
    assert len(held) == 9
    assert len([claim for claim in held if claim.endswith("no better than no states")]) == 3
    assert {*held.values()} == {HOLDS}
    failed = verdicts(place(*kinds, **{kind: {"percent": 80} for kind in ours}), 3)
    assert {*failed.values()} == {FAILS}
    assert only(place("shuffled", fitted={"percent": 40}), 3) == {HOLDS}


def test_states_steer_where_they_beat_a_prefix_and_no_states():
    claim = "arithmetic: states steer beyond a prefix: more often right than it, and than without states"

    def judged(fitted, alone):
        groups = place(fitted={"percent": fitted})
        groups["prefix"] = [record("prefix", seed, alone) for seed in SEEDS]
        return {each.claim: each.verdict for each in ctrls_tables.accuracies("", groups).findings}[claim]

    assert judged(70, 60) == HOLDS
    assert judged(70, 80) == FAILS
    assert judged(40, 30) == FAILS, "the chain without states has 50"


def test_meaning_is_agreement_beyond_what_is_on_the_surface():
    assert only(place("fitted"), 4) == {FAILS}
    surface = {**AGREEMENT, "index": 0.9, "tokens": 0.9, "next": 0.9}
    assert only(place(fitted={"agreement": surface}), 4) == {HOLDS}
    on_hops = verdicts(place("fitted", prefix="hops-"), 4, "hops-")
    assert [claim for claim in on_hops if "bag of tokens" in claim] == []
    assert len(on_hops) == 2
    without = {name: value for name, value in AGREEMENT.items() if name != "true"}
    assert only(place(fitted={"agreement": without}, prefix="sums-"), 4, "sums-") == set()


def test_exploration_and_bonus_are_held_against_neither():
    assert only(place(GRID[0.0, 0.0], GRID[0.3, 0.01]), 5) == {HOLDS}
    other = {GRID[0.3, 0.01]: [record(GRID[0.3, 0.01], seed, 80) for seed in SEEDS]}
    assert only({**place(GRID[0.0, 0.0]), **other}, 5) == {FAILS}


def test_draws_of_states_are_held_against_tokens_of_equal_entropy():
    assert only(place("hard"), 5) == {HOLDS}
    assert only(place(hard={"drawn": 90}), 5) == {FAILS}
    assert only(place(hard={"drawn": 50}), 5) == {HOLDS}
    unmatched = place(hard={"drawn": 90})
    other = [
        changed(each, draws={**each.draws, "drawn": changed(each.draws["drawn"], entropy=1.5)})
        for each in unmatched["hard"]
    ]
    assert only({"hard": other}, 5) == {OPEN}, "entropies are not alike"
    assert only(place(fitted={"drawn": 90}), 5) == set(), "the bound does not teach how far mixtures scatter"
    more = verdicts(place(hard={"apart": (2.0, 1.0)}, prefix="sums-"), 5, "sums-")
    assert [verdict for claim, verdict in more.items() if "derivations" in claim] == [FAILS]
    equal = verdicts(place("hard", prefix="sums-"), 5, "sums-")
    assert [verdict for claim, verdict in equal.items() if "derivations" in claim] == [HOLDS]


def test_null_hypotheses_are_corrected_for_their_parts_and_none_is_forgotten():
    assert [*NULLS] == [*ctrls_nulls.PARTS]
    alone, among = (
        nulls({"": groups}).rows for groups in (place("fitted", "random"), place("fitted", "random", "prefix"))
    )
    wider, narrower = (
        next(row for row in rows if row["part"].endswith("no better than random")) for rows in (among, alone)
    )
    assert wider["high"] - wider["low"] > narrower["high"] - narrower["low"]
    assert wider["difference"] == narrower["difference"]


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def test_accuracy_stands_beside_what_an_arm_starts_from():
    groups = place("rl-hard", "hard", CHAIN, rl={"percent": 80}, fitted={"percent": 60}, tokens={"percent": 90})
    table = ctrls_tables.accuracies("", groups)
    rows = {row["arm"]: row for row in table.rows}
    assert (rows["RL"]["gain"], rows["RL"]["plain"]) == tuple(map(pytest.approx, (20, 50)))
    assert rows[KINDS[TOKENS][0]]["gain"] == pytest.approx(30)
    assert rows[KINDS[CHAIN][0]]["gain"] is None
    judged = {each.claim: each.verdict for each in table.findings}
    assert judged["arithmetic: training the language model itself buys more than training transitions"] == HOLDS
    assert judged["arithmetic: soft draws end higher than single states"] == HOLDS
    worse = ctrls_tables.accuracies("", place(rl={"percent": 50}, rl_permuted={"percent": 70}))
    assert {each.claim: each.verdict for each in worse.findings}[
        "arithmetic: rewards end higher than permuted ones"
    ] == FAILS


def test_reach_and_exploration_and_the_grid_tell_what_was_counted():
    groups = place(CHAIN, "fitted", "rl", GRID[0.0, 0.0], "rl-prefix")
    row = ctrls_tables.reaches({"": groups}).rows[0]
    assert (row["sequences"], row["all"], row["best"]) == (125, "lattice", pytest.approx(90))
    assert (row["fixed"], row["uniform"], row["tokens"]) == tuple(map(pytest.approx, (55, 40, 80)))
    ways_of = [row["way"] for row in ctrls_tables.explorations({"": groups}).rows]
    assert ways_of[:4] == ["plain 0.5", "plain 1", "drawn", "matched"]
    table = ctrls_tables.gridded("", groups)
    assert [row["epsilon"] for row in table.rows] == [0.1, 0.0, None]
    assert {row["reward"] for row in table.rows} == {0.75}
    assert [row["cosine"] for row in table.rows] == [pytest.approx(0.86), pytest.approx(0.86), None]
    judged = {each.claim: each.verdict for each in table.findings}
    alike = "; ".join((KINDS["rl"][0], KINDS[GRID[0.0, 0.0]][0]))
    assert judged[f"{alike}: in small cases its update follows the slope of the expected reward"] == HOLDS
    elsewhere = ctrls_tables.gridded("hops-", groups).findings
    assert not any("small cases" in each.claim for each in elsewhere), "the cases are no other task's"
    table = ctrls_tables.gridded("", place("rl-permuted"))
    assert [each.verdict for each in table.findings] == [OPEN]


# ---------------------------------------------------------------------------------------------------------------------
# Directions


@pytest.mark.slow
@pytest.mark.parametrize("feed", ["soft", "hard"])
def test_updates_follow_the_slope_unless_rewards_are_permuted(feed, monkeypatch):
    """The sum of probabilities is 1 and every seed a case; what is drawn for an update has noise of its own."""
    monkeypatch.setattr(state_directions, "SEEDS", {feed: state_directions.SEEDS[feed][:2]})
    method = CTRLSRL(feed=feed, floor=1.0)
    for seed in state_directions.SEEDS[feed]:
        model, examples = state_directions.small(method, seed)
        plan, many, reward_Z = state_directions.drawn(policy := state_directions.policy_of(method), model, examples)
        assert state_directions.chances(policy, model, plan, many).sum().item() == pytest.approx(1, abs=1e-4)
        assert 0 < reward_Z.mean() < 1
    fresh = state_directions.cosines.__wrapped__
    assert min(fresh(method)) > 0.9
    permuted = fresh(replace(method, signal="permuted"))
    assert min(permuted) < 0.9
    assert fresh(replace(method, temperature=1.0)) is None


@pytest.mark.slow
def test_tables_and_figure_have_every_place(tmp_path, few_draws):
    kinds = (CHAIN, "fitted", "hard", "rl", "rl-hard", "rl-categorical", "rl-naive", "prefix", TOKENS)
    few = (f"{prefix}{kind}" for prefix in ("hops-", "sums-") for kind in (CHAIN, "fitted", "rl"))
    records = [record(arm, seed) for arm in (*kinds, *few) for seed in range(2)]
    tables = ctrls.tables(records)
    assert [table.title.split(":")[0] for table in tables[:2]] == [
        "The null hypotheses of a reconstruction",
        "Arithmetic",
    ]
    for table in tables:
        assert {name for row in table.rows for name in row} == set(table.columns), table.title
        assert "reconstruction" in table.legend.lower(), table.title
        assert all(each.family and each.runs and "[" in each.evidence for each in table.findings), table.title
        assert {each.verdict for each in table.findings if each.family != "directions"} <= {OPEN}
        assert table.csv()
        assert table.markdown()
    ctrls.draw(records, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


# ---------------------------------------------------------------------------------------------------------------------
# Readings and recipes


def test_a_record_is_read_back():
    made = record("rl", 5)
    assert read_record(StateReading, json.loads(json.dumps(made.to_json()))) == made
    assert made.reading == ctrls.reading("rl", 5)
    assert made.seeds["split"] == 5
    with pytest.raises(ValueError, match="of version 1"):
        StateReading.from_json({**made.run, "version": 2})


def test_bad_readings_are_refused():
    run = build("fitted", 0)
    for settings, match in (
        ({"few": 1}, "few 1"),
        ({"problems": 10}, "few 200"),
        ({"samples": 5}, "samples 5"),
        ({"temperatures": (-1.0,)}, "temperatures"),
    ):
        with pytest.raises(ValueError, match=match):
            StateReading(run, **settings)


def test_the_fixed_sequence_is_chosen_elsewhere():
    """Sequence 0 solves keys 0 and 2 alone, sequence 1 keys 1 and 3: chosen on one half, each fails on the other."""
    import numpy as np

    keys_P = np.array([0, 1, 2, 3])
    right_ZP = np.array([[1, 0, 1, 0], [0, 1, 0, 1]], bool)
    assert not fixed_elsewhere(right_ZP, keys_P).any()
    assert fixed_elsewhere(np.array([[1, 1, 1, 1], [0, 1, 0, 1]], bool), keys_P).all()
    assert fixed_elsewhere(right_ZP[:, :1], keys_P[:1]).tolist() == [True]


def test_arms_of_a_seed_share_their_chain_and_steps():
    for prefix, where in PLACES.items():
        runs = {kind: build(prefix + kind, 3) for kind in where.kinds}
        chain = runs[CHAIN]
        assert {run.start or run for kind, run in runs.items() if not kind.startswith("rl")} == {chain}
        assert {run.start.start for kind, run in runs.items() if kind.startswith("rl")} == {chain}
        assert {run.training.steps for kind, run in runs.items() if kind.startswith("rl")} == {100}
        assert runs[TOKENS].training.steps == 100
    assert build("rl-hard").start == build("rl-categorical").start == build("hard")
    assert build("rl-shuffled").start == build("shuffled")


def test_an_arm_is_known_by_its_run():
    assert [arm_of(build(arm)) for arm in ARMS] == [*ARMS]
    assert len({build(arm).identity for arm in ARMS}) == len(ARMS)
    families = {"eight": "states", "random": "control", "rl-naive": "rl", "rl-random": "rl-control", TOKENS: TOKENS}
    assert {kind: family_of(kind) for kind in families} == families
    with pytest.raises(ValueError, match="of no arm of study ctrls"):
        arm_of(build("fitted").__class__(task=PLACES["sums-"].task))
    with pytest.raises(ValueError, match="unknown arm 'soft' of ctrls"):
        build("soft")


def test_every_family_is_tuned_with_as_many_rates_on_other_seeds():
    tried = {}
    for study in (ctrls_tuning.STUDY, ctrls_tuning.REWARDED_STUDY):
        runs = study.grid("full")
        for run in runs:
            tried.setdefault(arm_of(run), []).append(run.training.learning_rate)
        more = study.after("full", [record_of(run, 50) for run in runs])
        assert ({run.seeds.split for run in runs}, {run.seeds.split for run in more}) == ({100}, {101})
        assert 3 * len(more) == 2 * len(runs)
    assert {len(rates) for rates in tried.values()} == {3}
    assert sorted(tried) == sorted(CANDIDATES)
    assert all(build(arm).training.learning_rate in rates for arm, rates in tried.items())
    studies = (ctrls_tuning.STUDY, ctrls_tuning.REWARDED_STUDY)
    assert {*SEARCHED} == {arm_of(run) for study in studies for run in study.grid("full")}


def test_reported_seeds_are_none_of_the_quick_profile_or_of_tuning():
    seeds = {profile: {run.start.seeds.split for run in ctrls.grid(profile)} for profile in ("quick", "full")}
    assert seeds == {"quick": {0, 1, 2}, "full": {5, 6, 7, 8, 9}}
    assert {arm_of(run.start) for run in ctrls.grid("full")} == {*ARMS}
    quick = ctrls.grid("quick")[-1].start
    assert (quick.training.steps, quick.start.training.steps, quick.start.start.training.steps) == (10, 100, 400)
    assert quick.start.training.num_train == quick.training.num_train
