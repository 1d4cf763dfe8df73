"""The ledger: every claim is whole, every verdict is the one on record, and the statistical test is sound."""

import inspect
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from scipy import stats
from tinylatent_theory.claims import ledger, study  # noqa: F401 - the study loads every claim
from tinylatent_theory.claims.ledger import ALPHA, LEDGER, OURS, POWER, Origin, Trial, z_test

from tinylatent.lab.findings import FAILS, HOLDS, OPEN, STRICTER, Verdict

ROOT = Path(ledger.__file__).parent
SLOW = {
    "late_layers_turn_the_residual_less",
    "cot2_one_layer_solves_mnns",
    "prenorm_residual_grows_like_sqrt",
    "cot2_fourier_basis_solves_mnns",
    "latentr3_surrogate_follows_reward",
    "superposition_has_a_phase_transition",
    "superposition_holds_what_wendel_says",
    "two_layers_search_every_dag",
    "reinforce_is_unbiased",
    "leave_one_out_is_unbiased",
    "latentr3_score_function_follows_reward",
    "discrete_chains_must_commit",
    "search_takes_as_many_thoughts_as_the_distance",
    "ctrls_factorised_posterior_is_exact",
    "traces_double_and_states_do_not",
    "latentseek_psrm_is_constant_reward_with_oracle_stop",
    "latentseek_oracle_stop_beats_pass_at_n",
}
"""Claims whose checks take a third of a second or more."""


def test_there_are_many_and_of_every_verdict():
    assert len(LEDGER) >= 60
    assert {claim.recorded for claim in LEDGER.values()} == set(get_args(Verdict))


@pytest.mark.parametrize("claim", LEDGER.values(), ids=lambda claim: claim.name)
def test_an_entry_is_whole_and_leads_to_its_code(claim):
    assert claim.check.__name__ == claim.name
    found = [path for path in ROOT.glob("*.py") if re.search(rf"^def {claim.name}\(", path.read_text(), re.MULTILINE)]
    assert len(found) == 1
    assert inspect.getdoc(claim.check)
    assert claim.source
    assert claim.origin in get_args(Origin)
    assert claim.conditions
    assert claim.statement.endswith(".")
    if claim.recorded in (STRICTER, FAILS):
        assert re.fullmatch(r".*\d.*", claim.counterexample()), "one line, with numbers"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in LEDGER]
)
def test_verdicts_are_those_on_record(name, unchecked):
    """Under the seed of the command's quick profile; the tests that break a claim take it too."""
    claim = LEDGER[name]
    finding = claim.examine(Trial())
    assert finding.verdict == claim.recorded, finding.evidence
    assert finding.claim + "." == claim.statement
    assert finding.family == ledger.FAMILY
    assert finding.evidence
    if claim.how == "statistical":
        assert "level 1e-06" in finding.evidence
        assert "noticed with probability 0.99" in finding.evidence


def test_a_name_is_taken_once_and_failures_bring_a_counterexample():
    def enter(recorded, name="a_new_claim", source="s", origin="paper"):
        def check(trial):
            """Nothing."""

        check.__name__ = name
        words = {"source": source, "origin": origin, "statement": "S.", "conditions": "c", "how": "exhaustive"}
        ledger.claim(**words, recorded=recorded)(check)

    with pytest.raises(ValueError, match="expected a counterexample that can be run"):
        enter(FAILS)
    with pytest.raises(ValueError, match="'maybe': expected one of holds"):
        enter("maybe")
    with pytest.raises(ValueError, match="stands in the ledger already"):
        enter(HOLDS, next(iter(LEDGER)))
    with pytest.raises(ValueError, match="'rumour': expected one of paper, code, folklore, here"):
        enter(HOLDS, origin="rumour")
    for origin, source in (("paper", "CoT2, section 5 [R]"), ("folklore", "[R]"), ("here", "CoT2, section 5")):
        with pytest.raises(ValueError, match=r"expected \[R\] just where it is here"):
            enter(HOLDS, source=source, origin=origin)
    assert "a_new_claim" not in LEDGER


def test_what_we_say_is_not_ascribed_to_others():
    """Nobody is shown to have claimed eleven of the statements that fail."""
    marked = {name for name, claim in LEDGER.items() if OURS in claim.source}
    assert marked == {name for name, claim in LEDGER.items() if claim.origin == "here"}
    refuted = {name for name, claim in LEDGER.items() if claim.recorded == FAILS}
    assert refuted & marked == {
        "kurtosis_is_basis_free",
        "bad_signal_propagation_forces_outliers",
        "straight_through_is_unbiased",
        "hrpo_one_hot_is_no_op",
        "hrpo_detached_latent_bias",
        "latentseek_bfloat16_steps",
        "latentseek_oracle_stop_beats_pass_at_n",
        "mixtures_average_chains_of_a_transformer",
        "attention_alone_keeps_weights_equal",
        "frontier_and_superposition_hold_the_same_nodes",
        "ctrls_naive_density_under_epsilon_greedy",
    }
    assert all(claim.origin == "here" for name, claim in LEDGER.items() if name.startswith("ctrls"))


@pytest.mark.parametrize("paper", ["CoT2, section", "Zhu et al. 2025", "Coconut (", "CoLaR, section"])
def test_sections_that_were_not_read_say_so(paper):
    """Of these papers the sheets held notes alone, so that numbers of sections and theorems are to be verified."""
    named = [claim for claim in LEDGER.values() if paper in claim.source]
    assert named
    assert all(re.search("texts? not at hand", claim.source) for claim in named)


def test_every_claim_is_named_in_a_test_that_breaks_or_shows_it():
    """Beside this file, which asks of all the same."""
    folder = Path(__file__).parents[1]
    told = "".join(path.read_text() for path in folder.rglob("test_*.py") if path != Path(__file__))
    assert [name for name in LEDGER if name not in told] == []


def test_seeds_by_purpose():
    trial = Trial(seed=3)
    assert trial.numpy("a").random() == trial.numpy("a").random() != trial.numpy("b").random()
    assert trial.torch("a").initial_seed() != Trial(seed=4).torch("a").initial_seed()
    assert (Trial("quick").size(1, 9), Trial("full").size(1, 9)) == (1, 9)


def test_the_z_test_is_the_textbooks():
    values = np.array([1.0, 2.0, 4.0, 5.0] * 100)
    test = z_test(values, 2.5)
    assert test.error == pytest.approx(values.std(ddof=1) / 20)
    assert test.rejected == (stats.ttest_1samp(values, 2.5).pvalue < ALPHA)
    assert stats.norm.sf(test.limit - test.detectable / test.error) == pytest.approx(POWER)
    assert z_test(values, 2.5, looks=10).limit > test.limit
    with pytest.raises(ValueError, match="50 values: expected at least 100"):
        z_test(values[:50], 2.5)
    assert not z_test(values, 3.0).rejected
    assert z_test(values, 3.0 + 6 * test.error).rejected
    assert z_test([*values[:-1], float("nan")], 3.0).rejected


def test_verdict_words():
    found = ledger.judged(True, "e", curve=[1.0])
    assert (found.verdict, found.evidence, found.family, found.curves) == (HOLDS, "e", ledger.FAMILY, {"curve": [1.0]})
    assert ledger.judged(False, "e").verdict == FAILS
    assert ledger.judged_twice(True, True, "e").verdict == HOLDS
    assert ledger.judged_twice(False, True, "e").verdict == STRICTER
    assert ledger.judged_twice(True, False, "e").verdict == FAILS
    assert ledger.concluded(OPEN, "e").verdict == OPEN
