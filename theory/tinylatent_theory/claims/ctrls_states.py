"""Claims about CTRLS-style thoughts: the latent states, their evidence lower bound and their features.

As in `ctrls`, what is checked is a reconstruction [R] from quotations of the paper (Wu et al. 2025, arXiv 2507.08182):
text x_t is generated from a state z_t and the text before, states follow each other by P(z_t | z_t-1), a posterior Q
infers them, and the features of a step's state are the leading eigenpairs of the Gram matrix of its hidden states.

Letters: T steps, t = T - 1 transitions, Z = 2^T sequences of two states, n tokens of a step, D width, B chains.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tinylatent.core.seeds import derive
from tinylatent.evaluation.states import nmi
from tinylatent.lab.findings import STRICTER, Finding
from tinylatent.methods.ctrls_states import eigengaps, k_means, spectrum
from tinylatent_theory.claims.ctrls import SOURCE, largest
from tinylatent_theory.claims.ledger import EXACT, Trial, claim, judged, judged_twice

SURE = 30.0
"""Largest logit of a state: its probability is 1 to within 1e-13."""

# ---------------------------------------------------------------------------------------------------------------------
# The evidence lower bound


def elbo(
    first_2: Float[Tensor, " 2"],
    next_t22: Float[Tensor, "t 2 2"],
    initial_2: Float[Tensor, " 2"],
    transition_22: Float[Tensor, "2 2"],
    evidence_T2: Float[Tensor, "T 2"],
) -> Float[Tensor, ""]:
    """sum_t E[log P(x_t | x_<t, z_t)] - E[KL(Q(z_t | z_t-1, x) || P(z_t | z_t-1))], z_t-1 and z_t drawn from Q.

    Evidence is P(x_t | x_<t, z_t) of the text at hand. Rows of `next_t22` are by z_t-1; a Q that factorises over steps
    has equal rows.
    """
    bound = first_2 @ (evidence_T2[0] * initial_2 / first_2).log()
    for next_22, evidence_2 in zip(next_t22, evidence_T2[1:], strict=True):
        bound = bound + first_2 @ (next_22 * (evidence_2 * transition_22 / next_22).log()).sum(-1)
        first_2 = first_2 @ next_22
    return bound


def chains(
    initial_2: Float[Tensor, " 2"], transition_22: Float[Tensor, "2 2"], evidence_T2: Float[Tensor, "T 2"]
) -> Float[Tensor, " Z"]:
    """P(x, z) of every sequence of states, the last state fastest: the reference."""
    products = []
    for z in itertools.product((0, 1), repeat=len(evidence_T2)):
        steps = math.prod(transition_22[a, b] for a, b in itertools.pairwise(z))
        products.append(initial_2[z[0]] * steps * math.prod(evidence_T2[t, k] for t, k in enumerate(z)))
    return torch.stack(products)


def posterior(chance_Z: Float[Tensor, " Z"], T: int) -> tuple[Float[Tensor, " 2"], Float[Tensor, "t 2 2"]]:
    """The exact posterior as a first distribution and transitions, from P(x, z) of every sequence."""
    table = (chance_Z / chance_Z.sum()).view([2] * T)
    pairs_t22 = torch.stack([table.movedim((t, t + 1), (0, 1)).reshape(2, 2, -1).sum(-1) for t in range(T - 1)])
    return pairs_t22[0].sum(1), pairs_t22 / pairs_t22.sum(-1, keepdim=True)


def factorised(logits_T: Float[Tensor, " T"]) -> tuple[Float[Tensor, " 2"], Float[Tensor, "t 2 2"]]:
    """A posterior that factorises over steps, by the logit of state 0 at each.

    Logits are cut where a probability would round to 0: an ascent may try them, and 0 log 0 is not a number.
    """
    logits_T = logits_T.clamp(-SURE, SURE)
    q_T2 = torch.stack([logits_T.sigmoid(), (-logits_T).sigmoid()], 1)
    return q_T2[0], q_T2[1:, None].expand(-1, 2, -1)


def gap(world: tuple[Tensor, Tensor, Tensor], generator: torch.Generator) -> float:
    """What the best factorised posterior leaves between the bound and log P(x)."""
    T = len(world[2])
    starts_ST = 2 * torch.randn(4, T, generator=generator, dtype=torch.float64)
    best = max(largest(lambda logits_T: elbo(*factorised(logits_T), *world), start_T)[1] for start_T in starts_ST)
    return float(chains(*world).sum().log()) - best


def simplex(generator: torch.Generator, *shape: int) -> Tensor:
    """Random distributions over the last axis."""
    return F.softmax(torch.randn(*shape, generator=generator, dtype=torch.float64), -1)


@claim(
    source=SOURCE + ", evidence lower bound [R]",
    origin="here",
    statement="The step-wise evidence lower bound never exceeds log P(x), and equals it at the exact posterior.",
    conditions="two states, three steps; the exact posterior is a chain Q(z_t | z_t-1, x) and sees the whole text",
    how="exhaustive",
    recorded="holds",
)
def ctrls_elbo(trial: Trial) -> Finding:
    """All eight texts of two tokens and all eight sequences of states of random models."""
    excess, tight, total = -math.inf, 0.0, 0.0
    for number in range(trial.size(5, 50)):
        generator = trial.torch("elbo", number)
        initial_2, transition_22 = simplex(generator, 2), simplex(generator, 2, 2)
        emission_222 = simplex(generator, 2, 2, 2)  # by the last token and the state: the next token
        mass = 0.0
        for x in itertools.product((0, 1), repeat=3):
            evidence_T2 = torch.stack([emission_222[a, :, b] for a, b in itertools.pairwise((0, *x))])
            chance_Z = chains(initial_2, transition_22, evidence_T2)
            log_p, mass = chance_Z.sum().log(), mass + float(chance_Z.sum())
            for _ in range(5):
                guess = elbo(simplex(generator, 2), simplex(generator, 2, 2, 2), initial_2, transition_22, evidence_T2)
                excess = max(excess, float(guess - log_p))
            exact = elbo(*posterior(chance_Z, 3), initial_2, transition_22, evidence_T2)
            tight = max(tight, abs(float(exact - log_p)))
        total = max(total, abs(mass - 1))
    return judged(
        excess < 0 and max(tight, total) < EXACT,
        f"random posteriors stay {-excess:.1g} or more below log P(x); the exact one reaches it to {tight:.0e}",
    )


def copied_state() -> str:
    """Two steps, a state that is kept with probability 0.9, text that says nothing: every factorised Q on a grid."""
    half_2 = torch.tensor([0.5, 0.5], dtype=torch.float64)
    keep_22 = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    world = (half_2, keep_22, torch.full((2, 2), 0.5, dtype=torch.float64))
    log_p = chains(*world).sum().log()
    q = torch.arange(0.01, 1, 0.01, dtype=torch.float64).logit()
    bound = max(float(elbo(*factorised(torch.stack(pair)), *world)) for pair in itertools.product(q, q))
    exact = elbo(*posterior(chains(*world), 2), *world)
    return (
        f"two steps, a state kept with probability 0.9, text that says nothing: log P(x) is {log_p:.4f}, the best "
        f"factorised bound {bound:.4f}, that of the exact posterior {exact:.4f}"
    )


@claim(
    source=SOURCE + "; its assumption 5.2 as quoted elsewhere: the posterior is a product of Q(z_t | x_<=t)",
    origin="here",
    statement="A posterior that factorises over steps can make the evidence lower bound equal log P(x).",
    conditions="transitions that do not depend on the last state",
    how="property test",
    recorded=STRICTER,
    counterexample=copied_state,
)
def ctrls_factorised_posterior_is_exact(trial: Trial) -> Finding:
    """The best factorised posterior found by ascent, for random transitions and for ones that forget the last state."""
    left: dict[str, list[float]] = {"chain": [], "forgetful": []}
    for number in range(trial.size(8, 40)):
        generator = trial.torch("factorised", number)
        initial_2, chain_22, evidence_T2 = (simplex(generator, *shape) for shape in ((2,), (2, 2), (3, 2)))
        for name, transition_22 in (("chain", chain_22), ("forgetful", chain_22[:1].expand(2, 2))):
            left[name].append(gap((initial_2, transition_22, evidence_T2), generator))
    chain, forgetful = max(left["chain"]), max(map(abs, left["forgetful"]))
    return judged_twice(
        as_stated=max(chain, forgetful) < EXACT,
        strictly=forgetful < EXACT,
        evidence=f"the best factorised posterior stays up to {chain:.2g} nats below log P(x), "
        f"{sum(left['chain']) / len(left['chain']):.2g} on average; if transitions forget the state, {forgetful:.0e}",
        gap=left["chain"],
    )


# ---------------------------------------------------------------------------------------------------------------------
# Features


def gram_eigenvalues(tokens_nD: Float[Tensor, "n D"], divide: bool = False) -> Float[Tensor, " D"]:
    """Eigenvalues of sum_i h_i h_i^T over a step's tokens (eq. 5, as quoted elsewhere), over n on demand; falling.

    They are those that the method's features are made of, which divide by n.
    """
    n, D = tokens_nD.shape
    found = spectrum(tokens_nD, torch.ones(n, dtype=torch.bool), D).eigenvalues
    return found if divide else n * found


@claim(
    source=SOURCE + ", features of eq. 5 as quoted elsewhere",
    origin="here",
    statement="A step's Gram eigenvalues forget its tokens' order, and grow with their number unless divided by it.",
    conditions="given hidden states; a model may still put the order into them",
    how="exhaustive",
    recorded="holds",
)
def ctrls_gram_forgets_order(trial: Trial) -> Finding:
    """All orders of five tokens; a token more; every token twice. The Gram matrix itself is the second opinion."""
    order, formula, twice, fall, trace = 0.0, 0.0, 0.0, 0.0, 0.0
    for number in range(trial.size(5, 50)):
        tokens_nD = torch.randn(5, 3, generator=trial.torch("gram", number), dtype=torch.float64)
        squares_D = torch.linalg.eigvalsh(tokens_nD.T @ tokens_nD).flip(0)
        for places in itertools.permutations(range(5)):
            order = max(order, float((gram_eigenvalues(tokens_nD[list(places)]) - squares_D).abs().max()))
        for n in range(3, 5):
            less_D, more_D = gram_eigenvalues(tokens_nD[:n]), gram_eigenvalues(tokens_nD[: n + 1])
            fall = max(fall, float((less_D - more_D).max()))
            trace = max(trace, abs(float(more_D.sum() - less_D.sum() - (tokens_nD[n] ** 2).sum())))
        doubled_nD = tokens_nD.repeat(2, 1)
        twice = max(twice, float((gram_eigenvalues(doubled_nD) - 2 * squares_D).abs().max()))
        same_D = gram_eigenvalues(doubled_nD, divide=True) - squares_D / 5
        formula = max(formula, float(same_D.abs().max()))
    return judged(
        max(order, formula, twice, fall, trace) < EXACT,
        f"the squared singular values in all 120 orders, to {order:.0e}; a further token lowers none and adds its "
        f"squared norm to their sum; every token twice doubles them, and if divided by n leaves them to {formula:.0e}",
    )


SISTER = "Yu et al. 2025, arXiv 2509.00190, the Gram matrix of all steps so far [R]"


def own_eigenvalues(tokens_BTnD: Float[Tensor, "B T n D"]) -> Float[Tensor, "B T D"]:
    """Eigenvalues of the Gram matrix of every step's tokens; falling."""
    B, T, n, D = tokens_BTnD.shape
    return n * spectrum(tokens_BTnD, torch.ones(B, T, n, dtype=torch.bool), D).eigenvalues


def eigenvalues_so_far(tokens_BTnD: Float[Tensor, "B T n D"]) -> Float[Tensor, "B T D"]:
    """Eigenvalues of the Gram matrix of all tokens up to every step; falling."""
    B, T, n, D = tokens_BTnD.shape
    count_T = n * torch.arange(1, T + 1)
    real_BTL = (torch.arange(T * n) < count_T[:, None]).expand(B, -1, -1)
    all_BTLD = tokens_BTnD.flatten(1, 2)[:, None].expand(-1, T, -1, -1)
    return count_T[:, None] * spectrum(all_BTLD, real_BTL, D).eigenvalues


def agreement_with_index(values_BTD: Float[Tensor, "B T D"], seed: int) -> float:
    """How far clusters of eigenvalues, as many as steps, agree with a step's index: normalised mutual information."""
    B, T, _ = values_BTD.shape
    return nmi(k_means(values_BTD.flatten(0, 1), T, derive(seed, "clusters")).label_M, torch.arange(T).repeat(B))


@claim(
    source=SISTER,
    origin="here",
    statement="Clusters of the eigenvalues of all tokens so far number the steps, in chains that hold nothing else.",
    conditions="independent normal tokens, as many a step; four steps, four clusters",
    how="property test",
    recorded="holds",
)
def ctrls_cumulative_states_count_steps(trial: Trial) -> Finding:
    """Mutual information with the index of a step, beside that of eigenvalues of the step's own tokens."""
    fall, so_far, own = 0.0, 1.0, 0.0
    for number in range(trial.size(3, 20)):
        tokens_BTnD = torch.randn(40, 4, 12, 4, generator=trial.torch("cumulative", number), dtype=torch.float64)
        values_BTD = eigenvalues_so_far(tokens_BTnD)
        fall = max(fall, float(-values_BTD.diff(dim=1).min()))
        so_far = min(so_far, agreement_with_index(values_BTD, number))
        own = max(own, agreement_with_index(own_eigenvalues(tokens_BTnD), number))
    return judged(
        fall < EXACT and so_far > 0.5 and own < 0.1,
        f"no eigenvalue falls from a step to the next; normalised mutual information with the index is {so_far:.2f} or "
        f"more, and {own:.2f} or less if a step has its own tokens alone",
    )


def change(tokens_nD: Float[Tensor, "n D"], shift_nD: Float[Tensor, "n D"]) -> float:
    """How far a step's feature moves, in units of the shift of its hidden states."""
    both = torch.stack([tokens_nD, tokens_nD + shift_nD])
    first_F, second_F = spectrum(both, torch.ones(both.shape[:2], dtype=torch.bool), both.shape[-1]).features
    return float((second_F - first_F).norm() / shift_nD.norm())


def near_ties() -> str:
    """Two tokens as long as each other and at right angles; one token whose two entries are as large as each other."""
    tie = torch.eye(2, dtype=torch.float64)
    lean = torch.tensor([[1e-6, 0.0], [0.0, 0.0]], dtype=torch.float64)
    turn = torch.tensor([[0.0, 1e-6], [1e-6, 0.0]], dtype=torch.float64)
    split = torch.tensor([[1.0, -1.0 - 1e-6]], dtype=torch.float64)
    other = torch.tensor([[0.0, 2e-6]], dtype=torch.float64)
    return (
        f"hidden states move by a millionth: if two eigenvalues are that near, the feature moves "
        f"{change(tie + lean, turn - lean):.0e} times as far, and if the largest entries of a direction are, "
        f"{change(split, other):.0e} times, since its sign turns"
    )


@claim(
    source=SOURCE + ", features of eq. 5 as quoted elsewhere [R]",
    origin="here",
    statement="Where a step's hidden states hardly move, its feature, eigenvalues' roots times vectors, hardly moves.",
    conditions="eigenvalues, and the two largest entries of a direction, are further apart than what moves",
    how="property test",
    recorded=STRICTER,
    counterexample=near_ties,
)
def ctrls_features_are_continuous(trial: Trial) -> Finding:
    """Small shifts of random steps, by the smallest gap of eigenvalues and entries, and of steps that have a tie."""
    apart, tied = 0.0, math.inf
    for number in range(trial.size(50, 1000)):
        generator = trial.torch("continuous", number)
        tokens_nD = torch.randn(5, 3, generator=generator, dtype=torch.float64)
        shift_nD = 1e-7 * torch.randn(5, 3, generator=generator, dtype=torch.float64)
        found = spectrum(tokens_nD, torch.ones(5, dtype=torch.bool), 3)
        entries_D2 = found.directions.abs().topk(2, -1).values
        room = min(float(eigengaps(found.eigenvalues).min()), float((entries_D2[:, 0] - entries_D2[:, 1]).min()))
        if room > 1e-3:
            apart = max(apart, change(tokens_nD, shift_nD) * room)
        first_nD = torch.linalg.qr(tokens_nD.T)[0].T  # three tokens of equal length, at right angles
        tied = min(tied, change(first_nD, shift_nD[:3]))
    return judged_twice(
        as_stated=apart < 10 and tied < 10,
        strictly=apart < 10,
        evidence=f"a feature moves at most {apart:.1f} times as far as hidden states, over the smallest gap; with "
        f"equal eigenvalues {tied:.0e} times and more",
    )
