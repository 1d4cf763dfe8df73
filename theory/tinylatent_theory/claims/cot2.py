"""Claims about CoT2's expressivity, by weights made by hand (Gozeten et al. 2025, arXiv 2505.23648, section 4).

The machines run through the same engine as trained models, in float32, over every problem of a stated size.

Letters: m digits, R largest state, W coordinates of the state.
"""

import itertools
import json

import numpy as np
from tinylatent_tasks import MNNS, SubsetSum

from tinylatent.lab.findings import HOLDS, OPEN, STRICTER, Finding
from tinylatent.lab.study import FINDINGS
from tinylatent.models.blocks import Experts
from tinylatent_theory.claims.ledger import Trial, claim, concluded, judged, judged_twice
from tinylatent_theory.constructions.checks import Deviation, deviation
from tinylatent_theory.constructions.choice_sums import (
    BasisName,
    mnns_hidden,
    mnns_leakage,
    mnns_solver,
    mnns_width,
    modulus,
    reach,
    subset_sum_leakage,
    subset_sum_solver,
    subset_sum_width,
)
from tinylatent_theory.constructions.commit import best_online, committed, committed_by_engine
from tinylatent_theory.predictions.frontier import growth
from tinylatent_theory.stored import stored

FRONTIER = 1e-4
"""Largest error of a share that a construction may make in float32."""
ROUNDING = 1e-5
"""Relative error of a leakage in float32."""
MNNS_SIZES = ((4, 1, 9), (5, 1, 9), (6, 1, 4))
SUBSET_SIZES = ((3, 6), (4, 4))


def _sound(found: Deviation, leakage: float) -> bool:
    """No wrong answer, every thought the frontier, the leakage within its bound."""
    return not found.wrong and found.thoughts <= FRONTIER and found.leakage <= leakage * (1 + ROUNDING)


def _solved(basis: BasisName) -> tuple[bool, str]:
    """Whether every problem of the stated sizes is solved, and in what width."""
    sound, said = True, []
    for digits, low, high in MNNS_SIZES:
        task = MNNS(digits=digits, low=low, high=high)
        machine = mnns_solver(task, basis).float()
        found = deviation(task, machine, task.space())
        sound &= _sound(found, mnns_leakage(task)) and machine.width == mnns_width(task, basis)
        mlp = machine.blocks[0].mlp
        assert isinstance(mlp, Experts)
        hidden = mlp.up_proj.shape[1]
        sound &= basis != "one-hot" or hidden == mnns_hidden(task)
        said.append(
            f"m = {digits}, {low}..{high}: {found.wrong} of {found.problems} wrong, shares off by at most "
            f"{found.thoughts:.1e}, leakage {found.leakage:.2e} (bound {mnns_leakage(task):.2e}), "
            f"width {machine.width}, {hidden} hidden units an expert"
        )
    return sound, "; ".join(said)


@claim(
    source="CoT2, section 4 (proposition on MNNS; text not at hand)",
    origin="paper",
    statement="One layer with attention and a mixture-of-experts MLP solves MNNS by base CoT2.",
    conditions="hand-made weights, float32, width W + 2 (high - low + 1) + 3, W = 2 (m - 1) high + 1 sums (m > 1); "
    "for m > 2 W (2^(m-2) + 2) hidden units for each of 2 (high - low + 1) experts, exponential in m as "
    "the traces are; every problem of (m = 4, 1..9), (5, 1..9), (6, 1..4)",
    how="exhaustive",
    recorded=HOLDS,
)
def cot2_one_layer_solves_mnns(trial: Trial) -> Finding:
    """Every problem through the engine, every thought against the oracle's frontier."""
    return judged(*_solved("one-hot"))


@claim(
    source="CoT2, section 4 (sinusoidal embeddings of the states; text not at hand)",
    origin="paper",
    statement="States held as sinusoids do as well: one step multiplies the coefficient of frequency w by cos(w d).",
    conditions="max(m - 1, 1) high + 1 frequencies for m > 2, one coordinate for the sign; from low = 1 on that many "
    "dimensions are what all frontiers have",
    how="exhaustive",
    recorded=HOLDS,
)
def cot2_fourier_basis_solves_mnns(trial: Trial) -> Finding:
    """Zero errors with as many frequencies as the frontiers have dimensions, and wrong frontiers with one fewer."""
    sound, said = _solved("fourier")
    tight = []
    for digits, high in ((3, 4), (4, 9)):
        task = MNNS(digits=digits, high=high)
        frontiers = task.frontier(task.space())[:, :-1].astype(float)
        rank = int(np.linalg.matrix_rank(np.unique(frontiers.reshape(-1, frontiers.shape[-1]), axis=0)))
        fewer = deviation(task, mnns_solver(task, "fourier", modulus(task) - 2).float(), task.space())
        sound &= rank == modulus(task) // 2 + 1 == reach(task) + 1 and fewer.thoughts > FRONTIER
        tight.append(f"{rank} dimensions and frequencies at m = {digits}, one fewer is off by {fewer.thoughts:.2f}")
    return judged(sound, f"{said}; {'; '.join(tight)}")


@claim(
    source="CoT2, section 4 (text not at hand), by the same idea [R]",
    origin="here",
    statement="One layer with attention and a mixture-of-experts MLP decides subset sum by base CoT2.",
    conditions="hand-made weights, float32; every number and every target of (n = 3, 1..6), (4, 1..4)",
    how="exhaustive",
    recorded=HOLDS,
)
def cot2_one_layer_solves_subset_sum(trial: Trial) -> Finding:
    """Every problem, targets that are no sum of anything included."""
    sound, said = True, []
    for numbers, high in SUBSET_SIZES:
        task = SubsetSum(numbers=numbers, high=high)
        rows = itertools.product(*[range(1, high + 1)] * numbers, range(numbers * high + 1))
        machine = subset_sum_solver(task).float()
        found = deviation(task, machine, np.array([*rows]))
        sound &= _sound(found, subset_sum_leakage(task)) and machine.width == subset_sum_width(task)
        said.append(f"n = {numbers}, 1..{high}: {found.wrong} of {found.problems} wrong, off by {found.thoughts:.1e}")
    return judged(sound, "; ".join(said))


@claim(
    source="CoT2, sections 1 and 4 (text not at hand); the comparison with chains that commit [R]",
    origin="here",
    statement="A discrete chain that gives each digit its sign without knowing the next ones loses where the "
    "superposition does not.",
    conditions="signs drawn by the same weights, or the best signs given the digits so far; a chain that looks ahead "
    "can always be right",
    how="exhaustive",
    recorded=HOLDS,
)
def discrete_chains_must_commit(trial: Trial) -> Finding:
    """The closed form against the engine along every chain, and the best that choosing signs online could do."""
    task = MNNS(digits=4, high=trial.size(5, 9))
    closed = committed(task, task.space())
    gap = float(np.abs(closed - committed_by_engine(task, mnns_solver(task).float(), task.space())).max())
    by_coin, online = [], []
    for digits in (2, 3, 4, 5):
        wide = MNNS(digits=digits)
        by_coin.append(float(committed(wide, wide.space()).mean()))
        online.append(best_online(wide))
    below = all(coin < best < 1 for coin, best in zip(by_coin, online, strict=True))
    mixed = [deviation(wide, mnns_solver(wide).float(), wide.space()) for wide in map(MNNS, (2, 3, 4))]
    kept = [1 - found.wrong / found.problems for found in mixed]
    return judged(
        gap < FRONTIER and below and min(kept) == 1,
        f"engine and closed form differ by at most {gap:.0e}; digits 1..9, m = 2, 3, 4, 5: drawn signs are right in "
        f"{_percents(by_coin)} % of problems, the best signs without knowing later digits in {_percents(online)} %, "
        f"mixtures through the same weights in {_percents(kept)} % (m = 2, 3, 4)",
        digits=[2.0, 3.0, 4.0, 5.0],
        by_coin=by_coin,
        online=online,
    )


def _percents(shares: list[float]) -> str:
    return ", ".join(f"{100 * share:.1f}" for share in shares)


def powers_of_two() -> str:
    """The digits 1, 2 and a third: after two steps each of the four traces is in a state of its own."""
    task = MNNS(digits=3)
    states = int((task.frontier([[1, 2, 4]])[0, 1] > 0).sum())
    return f"digits 1, 2, 4: after two steps four traces are in {states} states"


@claim(
    source="CoT2, section 3 (text not at hand); geometry of the frontier [R]",
    origin="here",
    statement="Traces double with every step, but the states they are in do not: many traces meet.",
    conditions="once 2^t exceeds t high + 1, the most sums of one parity that t digits of 1..high can reach",
    how="exhaustive",
    recorded=STRICTER,
    counterexample=powers_of_two,
)
def traces_double_and_states_do_not(trial: Trial) -> Finding:
    """Support, parity and entropy of the frontier over all problems, step by step."""
    bounded, met, curves = True, True, {}
    for digits, high in ((6, 4), (5, 9)):
        task = MNNS(digits=digits, high=high)
        rows = growth(task)
        bounded &= _one_parity(task) and all(row["largest"] <= row["step"] * high + 1 for row in rows)
        met &= all(row["largest"] < row["traces"] for row in rows)
        curves[f"support_{high}"] = [row["support"] for row in rows]
        curves[f"entropy_{high}"] = [row["entropy"] for row in rows]
    last, least = rows[-1], curves["entropy_9"][0]
    return judged_twice(
        as_stated=met,
        strictly=bounded,
        evidence=f"m = 5, 1..9: after step {last['step']} {last['traces']} traces are in {last['support']:.2f} states "
        f"on average, at most {last['largest']}; entropy grows from {least:.3f} to {last['entropy']:.3f} nats; m = 6, "
        f"1..4: {curves['support_4'][-1]:.2f} states of 32 traces",
        **curves,
    )


def _one_parity(task: MNNS) -> bool:
    """Whether all sums of a frontier are even, or all odd, for every problem and step before the answer."""
    frontier_PTV = task.frontier(task.space())[:, :-1] > 0
    odd_V = task.sum_values(np.arange(len(task.vocabulary))) % 2 == 1
    return not bool((frontier_PTV[..., odd_V].any(-1) & frontier_PTV[..., ~odd_V].any(-1)).any())


@claim(
    source="CoT2, section 3 (budget and embedding dimension; text not at hand)",
    origin="paper",
    statement="The best number of traces in the supervision grows with the width.",
    conditions="MNNS, m = 4, digits 1..9, widths 16, 24, 32, five seeds (study mnns-budget), by a recipe tuned "
    "here, which is not the paper's",
    how="stored study",
    recorded=OPEN,
)
def best_budget_grows_with_width(trial: Trial) -> Finding:
    """Repeats what the stored study found, and names the file it read; a test holds its findings to its runs."""
    file = stored("mnns-budget", FINDINGS)
    try:
        findings = json.loads(file.data)["findings"]
        (one,) = (each for each in findings if each["claim"] == "the best budget grows with the width")
        return concluded(one["verdict"], f"{one['evidence']}; {FINDINGS} of mnns-budget, checksum {file.checksum}")
    except (ValueError, KeyError, TypeError) as error:
        raise file.damaged("mnns-budget", error) from error
