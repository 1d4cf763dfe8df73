"""Study `hrpo` says what its records say: gains against every control, and the hidden ratio against its controls."""

import math

import pytest
from records import changed, record_of

from tinylatent.lab.findings import FAILS, HOLDS, OPEN
from tinylatent.lab.recipes_hrpo import (
    ARMS,
    CONTROLS,
    FREELY,
    KINDS,
    PLACES,
    PREFIX,
    REPLACED,
    arm_of,
    build,
    family_of,
)
from tinylatent.lab.records import Before, Stopped
from tinylatent.lab.studies import hrpo, hrpo_tables, hrpo_tuning
from tinylatent.methods import DiscreteCoT

SEEDS = range(5)
OFFSETS = (-2, -1, 0, 1, 2) * 2
"""How far keys scatter: where all show one difference, an interval is a bound for keys that were not seen."""


def record(arm, seed, then, now, ratio=(0.5, 0.5), excess=0.0, tokens=None):
    """A run with these percentages before and after, and a hidden ratio at the first and the last line of its log."""
    made, turned = record_of(build(arm, seed), now), -1 if arm.removeprefix(PREFIX) == "hrpo" else 1

    def scattered(evaluation, percent, turned=turned):
        return changed(evaluation, right=[percent + turned * offset + seed for offset in OFFSETS])

    before = {name: scattered(each, then, 0) for name, each in made.before.evaluations.items()}
    lines = []
    for at, line in enumerate(made.metrics):
        own = {"hidden_ratio": ratio[at] + seed / 1000, "logged_ratio": 0.9} if "hidden_ratio" in line else {}
        lines.append({**line, **own, "right_excess": excess + seed / 100 if at else 0.0})
    after = {**made.evaluations, "default": scattered(made.evaluations["default"], now)}
    if tokens is not None:
        after["tokens"] = scattered(after["tokens"], tokens, 1)
    return changed(made, evaluations=after, before=Before(evaluations=before, sampling=None), metrics=lines)


def everything(prefix="", kinds=("token", "hrpo", *CONTROLS), **arms):
    """Five seeds of kinds of arms in a place: percent before and after, ratio, and what a test changes."""
    usual = {"then": 50, "now": 70, "ratio": (0.5, 0.55)}
    every = dict.fromkeys((*kinds, *arms))
    return [record(prefix + kind, seed, **{**usual, **arms.get(kind, {})}) for kind in every for seed in SEEDS]


def grouped(*kinds, **arms):
    """The same by kind, as tables of one place take them."""
    return hrpo.by_place(everything("", kinds, **arms))[""]


def found(table):
    """(verdict, estimate) by claim."""
    return {each.claim: (each.verdict, round(each.estimate.value, 6)) for each in table.findings}


@pytest.mark.slow
def test_soft_tokens_help_where_hrpo_beats_tokens_and_every_control():
    arms = {"hrpo": {"now": 80, "tokens": 60}, "graph": {"now": 60}}
    rows = hrpo_tables.accuracies("arithmetic", grouped("token", *CONTROLS, **arms))
    judged = found(rows)
    helps = (
        "arithmetic: HRPO's soft tokens help: it ends higher than tokens alone, and than with noise, another problem's "
        "soft tokens or zero in their place"
    )
    assert judged[helps] == (HOLDS, 0.1)
    assert judged["arithmetic: HRPO ends higher than token-only GRPO"] == (HOLDS, 0.1)
    assert judged["arithmetic: with gradients through soft tokens, HRPO ends higher"] == (FAILS, -0.2)
    assert judged["arithmetic: HRPO: with the gate shut at test time it is less often right"] == (HOLDS, 0.2)
    assert judged["arithmetic: HRPO: training improves the start"] == (HOLDS, 0.3)
    row = next(row for row in rows.rows if row["arm"] == "HRPO")
    assert (row["before"], row["after"], row["gain"]) == tuple(map(pytest.approx, (52, 82, 30)))
    assert (row["least"], row["most"]) == (pytest.approx(50), pytest.approx(54))
    assert row["through"] == 100
    for arm in ("token", *REPLACED):
        higher = grouped("token", *REPLACED, **{"hrpo": {"now": 80}, arm: {"now": 90}})
        assert found(hrpo_tables.accuracies("arithmetic", higher))[helps] == (FAILS, -0.1)


def test_runs_that_halve_the_errors_of_their_start_break_through():
    """Errors fall from 50 and 49 percent to 27 and 26, too little, and from 48, 47 and 46 to 22, 21 and 20."""
    runs = [record("hrpo", seed, 50, 76 if seed > 1 else 73) for seed in SEEDS]
    assert hrpo_tables.accuracies("arithmetic", {"hrpo": runs}).rows[0]["through"] == pytest.approx(60)


ABSENT = ("permuted", "unrewarded", "decay", "noise", "shuffled", "zero")


def uses(label):
    return (
        f"arithmetic: {label}: the model learns to use its latents, as far as the hidden ratio tells: it ends higher "
        "than with permuted rewards, with none, with weight decay alone, and with noise, other problems' soft tokens "
        "or zero in the soft token's place"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "label"), [("", "HRPO"), (FREELY, "HRPO, no decay of Lambda")])
def test_a_rise_of_the_hidden_ratio_is_no_use_of_latents_where_any_control_rises_as_well(ending, label):
    """With decay and without; by whatever control it is, or where a single interval reaches 0."""
    ours = [record("hrpo" + ending, seed, 50, 70, (0.5, 0.7)) for seed in SEEDS]

    def judged(**ends):
        """Findings where the ratio of an arm ends at .52, or so that it differs from seed to seed."""
        runs = {}
        for arm in ABSENT:
            at = zip(SEEDS, ends.get(arm, [0.52] * 5), strict=True)
            runs[arm + ending] = [record(arm + ending, seed, 50, 70, (0.5, end)) for seed, end in at]
        return found(hrpo_tables.ratios("arithmetic", {"hrpo" + ending: ours, **runs}))

    still = judged()
    assert still[uses(label)] == (HOLDS, 0.18)
    assert still[f"arithmetic: {label}: the hidden ratio ends higher than with no rewards"] == (HOLDS, 0.18)
    assert still[f"arithmetic: {label}: the hidden ratio rises"] == (HOLDS, 0.2)
    for arm in ABSENT:
        assert judged(**{arm: [0.75] * 5})[uses(label)] == (FAILS, -0.05)
        assert judged(**{arm: [0.6, 0.7, 0.8, 0.5, 0.6]})[uses(label)][0] == OPEN
    zero = f"arithmetic: {label}: the hidden ratio ends higher than with zero in place of soft tokens"
    assert judged(zero=[0.75] * 5)[zero] == (FAILS, -0.05)


@pytest.mark.parametrize(("lead", "verdict"), [(0.022, OPEN), (0.0227, HOLDS)])
def test_a_bound_that_is_told_as_0_decides_nothing(lead, verdict):
    """Of five gaps around `lead`, whose interval begins at .0003 or .001."""
    ours = [record("hrpo", seed, 50, 70, (0.5, 0.7)) for seed in SEEDS]
    ends = [0.7 - lead - 0.0221 * step / 2 for step in range(-2, 3)]
    theirs = [record("unrewarded", seed, 50, 70, (0.5, end)) for seed, end in zip(SEEDS, ends, strict=True)]
    gap = hrpo_tables.against(ours, theirs, "hidden_ratio")
    assert 0 < gap.low < 0.0011
    claim = "arithmetic: HRPO: the hidden ratio ends higher than with no rewards"
    assert found(hrpo_tables.ratios("arithmetic", {"hrpo": ours, "unrewarded": theirs}))[claim][0] == verdict


def test_a_part_of_the_controls_does_not_tell_whether_latents_are_used():
    assert uses("HRPO") not in found(hrpo_tables.ratios("arithmetic", grouped("hrpo", *ABSENT[:-1])))


def test_runs_are_compared_with_those_of_their_seed_whatever_their_order():
    """Ratios of a seed differ by the same .2, those of seeds by more, so that other pairs would tell nothing."""
    ours = [record("hrpo", seed, 50, 70, (0.5, 0.7 + seed)) for seed in SEEDS]
    theirs = [record("permuted", seed, 50, 70, (0.5, 0.5 + seed)) for seed in reversed(SEEDS)]
    gap = hrpo_tables.against(ours, theirs, "hidden_ratio")
    assert (gap.low, gap.high) == (pytest.approx(0.2), pytest.approx(0.2))
    assert hrpo_tables.lead(ours, theirs) == hrpo_tables.lead(ours, theirs[::-1])
    for others in (theirs[1:], [*theirs, theirs[0]], [*theirs[1:], record("permuted", 7, 50, 70)]):
        for compare in (hrpo_tables.lead, lambda a, b: hrpo_tables.against(a, b, "reward")):
            with pytest.raises(ValueError, match="are no pairs: expected one run of either arm for every seed"):
                compare(ours, others)


def test_a_run_that_stopped_early_is_compared_where_it_stopped():
    ours = [record("hrpo", seed, 50, 70, (0.5, 0.7)) for seed in SEEDS]
    theirs = [record("permuted", seed, 50, 70, (0.4, 0.9)) for seed in SEEDS]
    short = [changed(each, metrics=each.metrics[:1], stopped=Stopped(step=5, advice="")) for each in theirs]
    assert hrpo_tables.against(ours, theirs, "hidden_ratio").value == pytest.approx(-0.2)
    assert hrpo_tables.against(ours, short, "hidden_ratio").value == pytest.approx(0.1)
    steps, values = hrpo.mean_course([*ours, short[0]], "hidden_ratio")
    assert steps == [5]
    assert values == [pytest.approx((5 * 0.5 + 0.010 + 0.4) / 6)]
    with pytest.raises(ValueError, match="share no step with entropy"):
        hrpo_tables.against(ours, theirs, "entropy")
    rows = hrpo_tables.lengths("arithmetic", {**grouped("token", "hrpo"), "permuted": short}).rows
    assert [(row["arm"], row["stopped"]) for row in rows[1:]] == [("HRPO", 0), ("permuted rewards", 5)]


def test_latents_are_needed_at_test_time_where_every_control_of_a_reading_costs():
    judged = found(hrpo_tables.accuracies("arithmetic", grouped(hrpo={"now": 80})))
    assert judged["arithmetic: HRPO, at test time, needs its own latents"][0] == HOLDS


def test_start_middle_and_end_are_told_with_intervals():
    table = hrpo_tables.ratios("arithmetic", grouped("token", hrpo={"ratio": (0.5, 0.7)}))
    row = next(row for row in table.rows if row["arm"] == "HRPO")
    assert (row["start"], row["end"], row["change"]) == tuple(map(pytest.approx, (0.502, 0.702, 0.2)))
    half = 2.776445 * math.sqrt(2.5) / 1000 / math.sqrt(5)  # Student's t of four degrees of freedom
    assert row["end high"] - row["end"] == pytest.approx(half, rel=1e-4)
    assert row["logged"] == pytest.approx(0.9)
    assert "tokens alone" not in {row["arm"] for row in table.rows}


def test_shorter_right_answers_are_told_against_tokens_alone():
    claim = "arithmetic: HRPO's right answers end up shorter than those of token-only GRPO"
    assert found(hrpo_tables.lengths("arithmetic", grouped("token", hrpo={"excess": -0.5})))[claim] == (HOLDS, -0.5)
    assert found(hrpo_tables.lengths("arithmetic", grouped("token", hrpo={"excess": 0.5})))[claim] == (FAILS, 0.5)


def test_both_places_are_told_apart_and_stand_beside_what_was_published():
    two = ("token", "hrpo")
    tables = hrpo.tables([*everything("", two, hrpo={"now": 80}), *everything(PREFIX, two, hrpo={"now": 60})])
    assert [table.title.split(":")[0] for table in tables[:6]] == ["Arithmetic", "Multi-hop"] * 3
    assert found(tables[1])["multi-hop: HRPO ends higher than token-only GRPO"] == (FAILS, -0.1)
    last = tables[-1]
    assert [row["what"].split(":")[0] for row in last.rows] == ["published"] * 10 + ["measured"] * 2
    assert last.rows[0]["difference"] == pytest.approx(0.9)
    assert found(last) == {
        "arithmetic: HRPO ends higher than token-only GRPO, as published": (HOLDS, 0.1),
        "multi-hop: HRPO ends higher than token-only GRPO, as published": (FAILS, -0.1),
    }


def test_arms_that_began_elsewhere_are_named():
    """A start of another accuracy on tokens: 51 percent on one seed instead of 50."""
    same = grouped("token", "hrpo", "zero")
    assert not hrpo_tables.accuracies("arithmetic", same).remarks
    other = {**same, "zero": [record("zero", seed, 50 + (seed == 0), 70) for seed in SEEDS]}
    (told,) = hrpo_tables.accuracies("arithmetic", other).remarks
    assert told.endswith("rounding led to others: zero.")


@pytest.mark.slow
def test_two_seeds_decide_nothing():
    records = [each for each in everything(kinds=KINDS, hrpo={"now": 80}) if each.experiment.seeds.split < 2]
    assert {verdict for table in hrpo.tables(records) for verdict, _ in found(table).values()} == {OPEN}


# ---------------------------------------------------------------------------------------------------------------------
# Recipes


def test_arms_of_a_seed_share_start_task_and_problems():
    for prefix, where in PLACES.items():
        runs = [build(arm, 3) for arm in ARMS if arm.startswith(prefix) and (prefix or PREFIX not in arm)]
        assert len({run.start.identity for run in runs}) == 1
        assert {run.task for run in runs} == {where.task}
        assert {(run.training.steps, run.training.batch_size) for run in runs} == {
            (where.training.steps, where.training.batch_size)
        }
        assert runs[0].start.method == DiscreteCoT(ends=True)
    assert len({build(arm, 3).identity for arm in ARMS}) == len(ARMS)


def test_an_arm_is_known_by_its_run():
    assert [arm_of(build(arm)) for arm in ARMS] == [*ARMS]
    assert {family_of(arm) for arm in ARMS} == {"token", "hrpo", "control"}
    assert family_of(PREFIX + "noise") == "control"
    with pytest.raises(ValueError, match="of no arm of study hrpo"):
        arm_of(build("hrpo").start)
    with pytest.raises(ValueError, match="unknown arm 'soft' of hrpo"):
        build("soft")


def test_every_family_is_tuned_with_as_many_rates_on_other_seeds():
    runs = hrpo_tuning.STUDY.grid("full")
    assert {run.seeds.split for run in runs} == {100}
    tried = {}
    for run in runs:
        tried.setdefault(arm_of(run), []).append(run.training.learning_rate)
    assert {len(rates) for rates in tried.values()} == {4}
    assert {family_of(arm) for arm in tried} == {"token", "hrpo", "control"}
    more = hrpo_tuning.STUDY.after("full", [record_of(run, 50) for run in runs])
    assert {run.seeds.split for run in more} == {101}
    assert len(more) == 2 * len(tried)
    for arm, where in ((arm, PLACES[PREFIX if arm.startswith(PREFIX) else ""]) for arm in ARMS):
        assert build(arm).training.learning_rate == where.rates[family_of(arm)]


def test_reported_seeds_are_none_that_sizes_were_tried_on_or_that_tuning_used():
    seeds = {profile: {run.seeds.split for run in hrpo.grid(profile)} for profile in ("quick", "full")}
    assert seeds == {"quick": {0, 1, 2}, "full": {5, 6, 7, 8, 9}}
    assert {run.training.steps for run in hrpo.grid("quick")} == {PLACES[""].training.steps // 3}
    assert {arm_of(run) for run in hrpo.grid("full")} == {*ARMS}
