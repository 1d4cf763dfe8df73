"""The studies of theory: runs are kept and measure themselves; tables say what records made by hand hold."""

import functools
import json
import math
from pathlib import Path

import msgspec
import pytest
from records import NOWHERE
from tinylatent_theory.claims import study as claims
from tinylatent_theory.claims.ledger import FAMILY, LEDGER
from tinylatent_theory.claims.study import Check
from tinylatent_theory.predictions import estimators, phase_curve
from tinylatent_theory.predictions.estimators import Against, Case
from tinylatent_theory.predictions.phase_curve import Width
from tinylatent_theory.stored import stored

from tinylatent.core.files import read_json, read_lines, write_text
from tinylatent.core.identity import checksum
from tinylatent.lab.findings import FAILS, HOLDS, OPEN
from tinylatent.lab.run import VERSION, read_record
from tinylatent.lab.study import FINDINGS, RUNS, rebuild
from tinylatent.lab.tables import provenance

FIRST = Path(__file__).resolve().parents[1] / "data/first_edition"


@functools.cache
def trained(width):
    return phase_curve.trained(stored(phase_curve.BUDGETS, "table.csv"), width)


def record_of(run, **fields):
    """A record of a run that was not measured."""
    about = {"version": VERSION, "id": run.identity, "run": run.to_json(), "environments": NOWHERE}
    return run.record(**about, **fields)


def changed(record, **fields):
    return msgspec.structs.replace(record, **fields)


def case_record(case):
    """Numbers that depend on estimator and seed alone: REINFORCE errs by nothing, the paper's ratio turns and calms."""
    errors = {"none": 0.0, "leave-one-out": 0.0, "mean": 1 / 8, "std": 0.9, "straight-through": 0.2}
    found = {
        name: Against(error=error, cosine=1.0 if error < 0.2 else 0.99, noise=4.0, variance=1.0)
        for name, error in errors.items()
        if name != "straight-through" or (case.samples and case.ratio == "exact")
    }
    if case.ratio == "paper":
        cosine, noise = 0.95 - 0.01 * case.seed, 2.0 + 0.1 * case.seed
        found = {name: changed(each, error=0.3, cosine=cosine, noise=noise) for name, each in found.items()}
    grid_error = 0.004 if case.gamma else None
    return record_of(case, objective=0.5, norm=1.0, paths=9, estimators=found, grid_error=grid_error)


def width_record(case):
    """Shares that fall from all to none through the predicted middle; without the sum, those of Wendel."""
    middle = phase_curve.middle(case.width, case.vocabulary) + 0.1
    shares = [
        1 / (1 + math.exp(k - middle)) if case.known_sum else phase_curve.wendel(case.width, k, case.vocabulary)
        for k in case.states
    ]
    beside = trained(case.width) if case.known_sum and case.vocabulary == phase_curve.VOCABULARY else []
    held = [round(share * case.draws) for share in shares]
    return record_of(case, states=[*case.states], held=held, trained=beside)


def check_record(check):
    """The verdict on record and no curves."""
    claim = LEDGER[check.claim]
    example = None if claim.counterexample is None else "one"
    return record_of(
        check, verdict=claim.recorded, evidence="1 to 2", counterexample=example, seconds=1.0, seed=len(check.claim)
    )


MADE = {estimators.STUDY: case_record, phase_curve.STUDY: width_record, claims.STUDY: check_record}


def records_of(study, profile="full"):
    return [MADE[study](run) for run in study.grid(profile)]


def sentences(table):
    return "\n".join(each.sentence() for each in table.findings)


# ---------------------------------------------------------------------------------------------------------------------
# All three


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["quick", "full"])
@pytest.mark.parametrize("study", MADE, ids=lambda study: study.name)
def test_every_profile_can_be_shown(study, profile, tmp_path):
    """Tables hold no absent column, each has findings of a named family, and the figure is drawn."""
    lines = ({"study": study.name, "profile": profile, **each.to_json()} for each in records_of(study, profile))
    write_text(tmp_path / RUNS, "".join(json.dumps(line) + "\n" for line in lines))
    outcome = rebuild(study, tmp_path)
    for table in outcome.tables:
        assert table.rows
        assert {name for row in table.rows for name in row} <= set(table.columns)
        assert {each.family for each in table.findings} <= {"estimators", "capacity", FAMILY}
        assert all(each.claim and each.evidence for each in table.findings)
        said = [each.claim for each in table.findings]
        assert len({*said}) == len(said), "a claim has one verdict"
    assert len(read_json(outcome.files[FINDINGS])["findings"]) == sum(len(table.findings) for table in outcome.tables)
    assert outcome.files["figure.png"].stat().st_size > 1000


@pytest.mark.parametrize(
    "run", [Case(2, 1, 2), Case(2, 1, gamma=5.0), Width(4, 3, vocabulary=9), Check("kurtosis_range")], ids=repr
)
def test_a_run_measures_itself_and_says_how_far_it_is(run, tmp_path):
    told = []
    record = run.measure(tmp_path, on_progress=lambda step, loss: told.append(step))
    assert told == [*range(1, run.work + 1)]
    assert run.done(tmp_path) == run.work
    assert read_record(type(run), json.loads(json.dumps(record.to_json()))) == record
    assert record.environments.training == []
    assert record.summary()


# ---------------------------------------------------------------------------------------------------------------------
# Estimators


def test_estimators_say_what_is_biased_and_what_is_calm():
    table, information = estimators.tables(records_of(estimators.STUDY))
    assert "at most 0.4 %" in table.legend
    said = sentences(table)
    for sentence in (
        "Holds: REINFORCE is unbiased",
        "Holds: leave-one-out is unbiased",
        "Holds: subtracting the group's own mean shrinks the gradient by 1/8",
        "Fails: dividing by the group's std keeps the gradient's direction (1 - cosine: mean over seeds 0.0100",
        "Fails: the paper's ratio keeps the gradient's direction at K = 3 (1 - cosine: mean over seeds 0.0950",
        "at most 0.1400",
        "Holds: the paper's ratio is calmer than the exact one at K = 3 (difference of their noise 1.55 [",
        "over 10 seeds",
        "Not enough evidence: straight-through is calmer than leave-one-out",
    ):
        assert sentence in said
    (calmer,) = (each for each in table.findings if each.claim.endswith("calmer than the exact one at K = 3"))
    assert calmer.estimate.value == pytest.approx(1.55)
    assert calmer.unit == "noise over the norm of the mean"
    assert information.rows[2]["V"] == 89
    assert information.rows[2]["K = 3"] == pytest.approx(2.25, abs=1e-3)


def test_one_world_gives_no_estimate_and_no_interval(tmp_path):
    made = [record for record in records_of(estimators.STUDY) if record.case.seed == 0]
    findings = estimators.tables(made)[0].findings
    calmer = [each for each in findings if "calmer" in each.claim]
    assert [(each.verdict, each.estimate) for each in calmer] == [(OPEN, None)] * len(calmer)
    assert "(difference of their noise 2.00 at the only seed)" in calmer[0].sentence()
    (turned,) = (each for each in findings if each.claim.startswith("dividing by the group's std"))
    assert turned.evidence == "1 - cosine: mean over seeds 0.0100, at most 0.0100"
    assert not any("[-1" in each.sentence() for each in findings)
    estimators.draw(made, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_a_measured_case_is_what_the_enumeration_says(tmp_path):
    """REINFORCE is unbiased, the group's mean takes 1/8; a grid is compared with a finer one."""
    tokens, simplex = (Case(2, 1, **policy).measure(tmp_path) for policy in ({"samples": 2}, {"gamma": 5.0}))
    for record in (tokens, simplex):
        assert record.estimators["none"].error < estimators.EXACT
        assert record.estimators["mean"].error == pytest.approx(1 / 8)
        assert record.estimators["std"].error > 0.1
        assert record.estimators["leave-one-out"].noise < record.estimators["none"].noise
    assert tokens.paths == 3
    assert tokens.grid_error is None
    assert 0 < simplex.grid_error < 0.01
    assert "straight-through" in tokens.estimators.keys() - simplex.estimators.keys()


# ---------------------------------------------------------------------------------------------------------------------
# Capacity


@pytest.mark.slow
def test_capacity_says_where_the_curve_and_the_limit_hold():
    made = records_of(phase_curve.STUDY)
    curve, exact, beside = map(sentences, phase_curve.tables(made))
    assert "Holds: half of random embeddings hold as many states as Donoho and Tanner's curve says" in curve
    assert "Holds: without the sum, Wendel's probability of holding k states is not rejected at level 1e-06" in exact
    reach = "a budget whose states random embeddings of that width cannot hold is out of reach of training"
    assert f"Fails: {reach}: B = 16 at d = 16 (8 states" in beside
    curve, exact, _ = map(sentences, phase_curve.tables([changed(each, held=[0] * len(each.held)) for each in made]))
    assert "Fails: half of random embeddings" in curve
    assert "Fails: without the sum" in exact


@pytest.mark.slow
def test_a_curve_near_what_few_embeddings_hold_is_not_said_to_hold():
    """Ten of these draws: the middle is where it was, and may be states away."""
    made = records_of(phase_curve.STUDY)
    few = [changed(each, run={**each.run, "draws": 10}, held=[round(10 * s) for s in each.shares]) for each in made]
    assert {each.verdict for each in phase_curve.tables(few)[0].findings} == {OPEN}


@pytest.mark.slow
def test_every_budget_out_of_reach_has_a_claim_of_its_own():
    made = [changed(each, held=[0] * len(each.held)) for each in records_of(phase_curve.STUDY)]
    said = {each.claim: each.verdict for each in phase_curve.tables(made)[2].findings}
    assert len(said) == 9
    assert {*said.values()} == {FAILS, OPEN}


@pytest.mark.parametrize(
    ("held", "ends"), [([400, 200, 0], (1.908, 2.092)), ([400, 400, 400], (3, math.inf)), ([0, 0, 0], (1, 1))]
)
def test_the_middle_lies_within_what_the_shares_allow(held, ends):
    """200 of 400 are 45.0 to 55.0 percent, by Clopper and Pearson; all of them at least 99.08, none at most 0.92."""
    record = record_of(Width(4, 400), states=[1, 2, 3], held=held, trained=[])
    assert record.middle_within(0.95) == pytest.approx(ends, abs=0.002)


@pytest.mark.parametrize(("held", "middle"), [([10, 6, 2], 2.25), ([1, 0, 0], 1), ([9, 9, 9], 3)])
def test_the_middle_of_a_transition_is_read_between_states(held, middle):
    record = record_of(Width(4, 10), states=[1, 2, 3], held=held, trained=[])
    assert record.middle == pytest.approx(middle)


def test_a_measured_width_holds_one_state_and_not_all(tmp_path):
    record = Width(4, 20, vocabulary=9).measure(tmp_path)
    assert record.held[0] > 10 > record.held[-1]
    assert (record.trained, record.trained_checksum) == ([], "")


def test_a_measured_width_says_which_table_stands_beside_it(monkeypatch, tmp_path):
    monkeypatch.setattr(phase_curve, "held_share", lambda *arguments: 0.5)
    record = Width(16, 2).measure(tmp_path)
    table = stored("mnns-budget", "table.csv")
    assert record.trained == phase_curve.trained(table, 16)
    assert record.trained_checksum == checksum(table.path.read_bytes())


# ---------------------------------------------------------------------------------------------------------------------
# Claims


def test_the_grid_is_the_ledger_and_is_always_measured():
    assert sorted(check.claim for check in claims.grid("quick")) == sorted(LEDGER)
    assert claims.grid("quick")[0].claim == claims.LONGEST
    assert Check.always


def test_an_unknown_claim_is_told():
    with pytest.raises(ValueError, match="unknown claim 'kurtosis': expected ids such as kurtosis_identity"):
        Check("kurtosis")


def test_quick_is_seeded_and_full_draws_fresh_seeds(tmp_path):
    quick, again = (Check("kurtosis_range").measure(tmp_path) for _ in range(2))
    assert quick.seed == again.seed == 0
    assert quick.evidence == again.evidence
    full = [Check("kurtosis_range", "full").measure(tmp_path) for _ in range(3)]
    assert len({each.seed for each in full}) == 3
    assert len({each.id for each in full} | {quick.id}) == 2


def test_form_1_named_the_counterexample_in_the_verdict():
    line = read_lines(FIRST / "claims.jsonl")[0]
    assert read_record(Check, {**line, "verdict": "fails: counterexample"}).verdict == FAILS
    assert read_record(Check, line).verdict == HOLDS


@pytest.mark.parametrize(
    "damage", [{"verdict": "maybe"}, {"evidence": None}, {"curves": {"x": ["y"]}}, {"seconds": "fast"}]
)
def test_a_damaged_record_is_told(damage):
    whole = check_record(Check("kurtosis_range")).to_json()
    with pytest.raises(ValueError, match="no record of the kind Check"):
        read_record(Check, {**whole, **damage})


def test_the_ledger_says_which_verdict_changed():
    made = records_of(claims.STUDY)
    (table,) = claims.tables(made)
    assert table.findings[-1].sentence() == f"Holds: every verdict is the one on record ({len(made)} of {len(made)})."
    assert {row["on record"] for row in table.rows} == {"the same"}
    (table,) = claims.tables([changed(made[0], verdict=OPEN), *made[1:]])
    assert f"Fails: every verdict is the one on record ({len(made) - 1} of {len(made)})" in sentences(table)
    assert table.rows[0]["on record"] == made[0].claim.recorded


def test_a_counterexample_stands_in_the_table_and_in_the_data():
    claim = LEDGER["colar_printed_nll"]
    record = check_record(Check(claim.name))
    (table,) = claims.tables([record])
    assert table.rows[0]["verdict"] == "fails: counterexample"
    entry = table.findings[0]
    where = f"**{claim.name}**. {claim.statement} *Fails: counterexample* ({claim.conditions})."
    assert entry.sentence() == f"{where} 1 to 2. Counterexample: one."
    told = {
        "id": claim.name, "claim": claim.statement[:-1], "verdict": FAILS, "family": FAMILY, "evidence": "1 to 2",
        "conditions": claim.conditions, "counterexample": "one",
    }  # fmt: skip
    assert entry.to_json().items() >= told.items()
    (table,) = claims.tables([changed(record, counterexample=None)])
    assert table.rows[0]["verdict"] == FAILS


def test_the_seeds_that_were_drawn_stand_in_the_provenance(tmp_path):
    records = [check_record(Check(name)) for name in ("kurtosis_range", "kurtosis_identity")]
    write_text(tmp_path / RUNS, "")
    assert provenance(records, tmp_path / RUNS)["seeds"] == [{"claim": 14}, {"claim": 17}]
