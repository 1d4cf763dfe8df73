"""Claims about CoT2's expressivity, by weights made by hand (Gozeten et al. 2025, arXiv 2505.23648, section 4).

The machines run through the same engine as trained models, in float32, over every problem of a stated size.

Letters: m digits, R largest state, W coordinates of the state.
"""

import itertools

import numpy as np

from tasks import MNNS, SubsetSum
from theory.claims.ledger import HOLDS, OPEN, Finding, Trial, claim, judged
from theory.constructions.checks import Deviation, deviation
from theory.constructions.choice_sums import (
    BasisName,
    mnns_leakage,
    mnns_solver,
    mnns_width,
    modulus,
    reach,
    subset_sum_leakage,
    subset_sum_solver,
    subset_sum_width,
)
from theory.constructions.commit import best_online, committed, committed_by_engine
from theory.predictions.frontier import growth
from theory.predictions.phase_curve import STORED
from tinylatent import storage
from tinylatent.studies import mnns_budget

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
        said.append(
            f"m = {digits}, {low}..{high}: {found.wrong} of {found.problems} wrong, shares off by at most "
            f"{found.thoughts:.1e}, leakage {found.leakage:.2e} (bound {mnns_leakage(task):.2e}), width {machine.width}"
        )
    return sound, "; ".join(said)


@claim(
    source="CoT2, section 4 (proposition on MNNS)",
    statement="One layer with attention and a mixture-of-experts MLP solves MNNS by base CoT2.",
    conditions="hand-made weights, float32, width 2 max(m - 1, 1) high + 1 + 2 (high - low + 1) + 3; every problem of "
    "(m = 4, 1..9), (5, 1..9), (6, 1..4)",
    how="exhaustive",
    recorded=HOLDS,
)
def cot2_one_layer_solves_mnns(trial: Trial) -> Finding:
    """Every problem through the engine, every thought against the oracle's frontier."""
    return judged(*_solved("one-hot"))


@claim(
    source="CoT2, section 4 (sinusoidal embeddings of the states)",
    statement="States held as sinusoids do as well: one step multiplies the coefficient of frequency w by cos(w d).",
    conditions="max(m - 1, 1) high + 1 frequencies for m > 2 (the rank of all frontiers), one coordinate for the sign",
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
    source="CoT2, section 4, by the same idea [R]",
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
    source="CoT2, sections 1 and 4; the comparison reviewers asked for [R]",
    statement="A discrete chain has to commit to one partial sum, and loses where the superposition does not.",
    conditions="the same weights, thoughts sampled as tokens: success is the share of the first m - 1 signs that still "
    "reach the optimum",
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
    return judged(
        gap < FRONTIER and below,
        f"engine and closed form differ by at most {gap:.0e}; digits 1..9, m = 2, 3, 4, 5: drawn signs are right in "
        f"{_percents(by_coin)} % of problems, the best signs without knowing later digits in {_percents(online)} %, "
        "CoT2 in 100 %",
        digits=[2.0, 3.0, 4.0, 5.0],
        by_coin=by_coin,
        online=online,
    )


def _percents(shares: list[float]) -> str:
    return ", ".join(f"{100 * share:.1f}" for share in shares)


@claim(
    source="CoT2, section 3; geometry of the frontier [R]",
    statement="Traces double with every step, but the states they are in do not: a thought holds few of them.",
    conditions="after t digits of 1..high at most min(2^t, t high + 1) sums are reached, all of one parity",
    how="exhaustive",
    recorded=HOLDS,
)
def traces_double_and_states_do_not(trial: Trial) -> Finding:
    """Support and entropy of the frontier over all problems, step by step."""
    bounded, curves = True, {}
    for digits, high in ((6, 4), (5, 9)):
        rows = growth(MNNS(digits=digits, high=high))
        bounded &= all(row["largest"] <= min(row["traces"], row["step"] * high + 1) for row in rows)
        curves[f"support_{high}"] = [row["support"] for row in rows]
        curves[f"entropy_{high}"] = [row["entropy"] for row in rows]
    last, least = rows[-1], curves["entropy_9"][0]
    return judged(
        bounded and last["support"] < last["traces"],
        f"m = 5, 1..9: after step {last['step']} {last['traces']} traces are in {last['support']:.2f} states on "
        f"average, at most {last['largest']}; entropy grows from {least:.3f} to {last['entropy']:.3f} nats",
        **curves,
    )


@claim(
    source="CoT2, section 3 (budget and embedding dimension)",
    statement="The best number of traces in the supervision grows with the width.",
    conditions="MNNS, m = 4, digits 1..9, widths 16, 24, 32, five seeds (study mnns-budget)",
    how="stored study",
    recorded=OPEN,
)
def best_budget_grows_with_width(trial: Trial) -> Finding:
    """What the stored study says of it, from its runs."""
    records = storage.read_lines(STORED.parent / "runs.jsonl")
    (note,) = (
        line
        for table in mnns_budget.STUDY.tables(records)
        for line in "\n".join(table.notes).splitlines()
        if "the best budget grows with the width" in line
    )
    verdicts = {"- Holds": HOLDS, "- Fails": "fails: counterexample", "- Not enough evidence": OPEN}
    word, _, said = note.partition(": ")
    return Finding(verdicts[word], said)
