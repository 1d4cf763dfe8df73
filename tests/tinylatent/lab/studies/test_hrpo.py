"""Study `hrpo` says what its records say: gains against every control, and the hidden ratio against its controls."""

import math

import pytest
from records import changed, record_of

from tinylatent.lab.findings import FAILS, HOLDS, OPEN
from tinylatent.lab.recipes_hrpo import ARMS, KINDS, PLACES, PREFIX, SECOND, TRAINING, arm_of, build, family_of
from tinylatent.lab.records import Before
from tinylatent.lab.studies import hrpo, hrpo_tuning
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


def everything(prefix="", **arms):
    """Five seeds of every kind of arm in a place: percent before and after, ratio, and what a test changes."""
    usual = {"then": 50, "now": 70, "ratio": (0.5, 0.55)}
    kinds = SECOND if prefix else KINDS
    return [record(prefix + kind, seed, **{**usual, **arms.get(kind, {})}) for kind in kinds for seed in SEEDS]


def found(table):
    """(verdict, estimate) by claim."""
    return {each.claim: (each.verdict, round(each.estimate.value, 6)) for each in table.findings}


def test_latents_help_where_hrpo_beats_tokens_and_every_control():
    rows = hrpo.tables(everything(hrpo={"now": 80, "tokens": 60}, graph={"now": 60}))[0]
    judged = found(rows)
    helps = "multi-hop: HRPO's latents help: it ends higher than tokens alone and than every control"
    assert judged[helps] == (HOLDS, 0.1)
    assert judged["multi-hop: HRPO ends higher than token-only GRPO"] == (HOLDS, 0.1)
    assert judged["multi-hop: with gradients through soft tokens, HRPO ends higher"] == (FAILS, -0.2)
    assert judged["multi-hop: HRPO: with the gate shut at test time it is less often right"] == (HOLDS, 0.2)
    assert judged["multi-hop: HRPO: training improves the start"] == (HOLDS, 0.3)
    row = next(row for row in rows.rows if row["arm"] == "HRPO")
    assert (row["before"], row["after"], row["gain"]) == tuple(map(pytest.approx, (52, 82, 30)))
    assert row["through"] == 0
    one_control = hrpo.tables(everything(hrpo={"now": 80}, noise={"now": 90}))[0]
    assert found(one_control)[helps] == (FAILS, -0.1)
    assert next(row for row in one_control.rows if row["arm"] == "noise")["through"] == 5


def test_a_rise_of_the_hidden_ratio_is_no_use_of_latents_where_controls_rise_as_well():
    uses = "multi-hop: the model learns to use its latents: rewards raise the hidden ratio beyond every control"
    arms = {"hrpo": {"ratio": (0.5, 0.7)}, "undecayed": {"ratio": (0.5, 0.6)}}
    still = {kind: {"ratio": (0.5, 0.52)} for kind in ("permuted", "permuted-undecayed", "decay")}
    judged = found(hrpo.tables(everything(**arms, **still))[1])
    assert judged[uses] == (HOLDS, 0.08)
    assert judged["multi-hop: HRPO: the hidden ratio ends higher than with decay alone"] == (HOLDS, 0.18)
    assert judged["multi-hop: HRPO: the hidden ratio rises"] == (HOLDS, 0.2)
    risen = {**still, "decay": {"ratio": (0.5, 0.75)}}
    judged = found(hrpo.tables(everything(**arms, **risen))[1])
    assert judged[uses] == (FAILS, -0.05)
    assert judged["multi-hop: HRPO: the hidden ratio ends higher than with decay alone"] == (FAILS, -0.05)
    assert judged["multi-hop: HRPO: the hidden ratio rises"] == (HOLDS, 0.2)


def test_start_middle_and_end_are_told_with_intervals():
    table = hrpo.tables(everything(hrpo={"ratio": (0.5, 0.7)}))[1]
    row = next(row for row in table.rows if row["arm"] == "HRPO")
    assert (row["start"], row["end"], row["change"]) == tuple(map(pytest.approx, (0.502, 0.702, 0.2)))
    half = 2.776445 * math.sqrt(2.5) / 1000 / math.sqrt(5)  # Student's t of four degrees of freedom
    assert row["end high"] - row["end"] == pytest.approx(half, rel=1e-4)
    assert row["logged"] == pytest.approx(0.9)
    assert "tokens alone" not in {row["arm"] for row in table.rows}


def test_shorter_right_answers_are_told_against_tokens_alone():
    claim = "multi-hop: HRPO's right answers end up shorter than those of token-only GRPO"
    assert found(hrpo.tables(everything(hrpo={"excess": -0.5}))[2])[claim] == (HOLDS, -0.5)
    assert found(hrpo.tables(everything(hrpo={"excess": 0.5}))[2])[claim] == (FAILS, 0.5)


def test_both_places_are_told_apart_and_stand_beside_what_was_published():
    tables = hrpo.tables([*everything(hrpo={"now": 80}), *everything(PREFIX, hrpo={"now": 60})])
    assert [table.title.split(":")[0] for table in tables[:6]] == ["Multi-hop", "Arithmetic"] * 3
    assert found(tables[1])["arithmetic: HRPO ends higher than token-only GRPO"] == (FAILS, -0.1)
    last = tables[-1]
    assert [row["what"].split(":")[0] for row in last.rows] == ["published"] * 10 + ["measured"] * 2
    assert last.rows[0]["difference"] == pytest.approx(0.9)
    assert found(last) == {
        "multi-hop: HRPO ends higher than token-only GRPO, as published": (HOLDS, 0.1),
        "arithmetic: HRPO ends higher than token-only GRPO, as published": (FAILS, -0.1),
    }


def test_two_seeds_decide_nothing():
    records = [each for each in everything(hrpo={"now": 80}) if each.experiment.seeds.split < 2]
    assert {verdict for table in hrpo.tables(records) for verdict, _ in found(table).values()} == {OPEN}


# ---------------------------------------------------------------------------------------------------------------------
# Recipes


def test_arms_of_a_seed_share_start_task_and_problems():
    for prefix, where in PLACES.items():
        runs = [build(arm, 3) for arm in ARMS if arm.startswith(prefix) and (prefix or PREFIX not in arm)]
        assert len({run.start.identity for run in runs}) == 1
        assert {run.task for run in runs} == {where.task}
        assert {run.training.steps for run in runs} == {TRAINING.steps}
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
    runs = hrpo_tuning.grid("full")
    assert {run.seeds.split for run in runs} == {100}
    tried = {}
    for run in runs:
        tried.setdefault(arm_of(run), []).append(run.training.learning_rate)
    assert {len(rates) for rates in tried.values()} == {3}
    assert {family_of(arm) for arm in tried} == {"token", "hrpo", "control"}
    more = hrpo_tuning.after("full", [record_of(run, 50) for run in runs])
    assert {run.seeds.split for run in more} == {101}
    assert len(more) == 2 * len(tried)
    for arm, where in ((arm, PLACES[PREFIX if arm.startswith(PREFIX) else ""]) for arm in ARMS):
        assert build(arm).training.learning_rate == where.rates[family_of(arm)]
