"""Claims about the gate of HRPO, hybrid latent reasoning by reinforcement learning (Yue et al. 2025, arXiv 2505.18454).

While it thinks, the model is fed a gated mix of the sampled token's embedding e and a soft token h, the embeddings
weighted by the next-token distribution p: a e + sqrt(1 - a^2) (i h), coordinate by coordinate, with gates a and i that
look at e. The hidden ratio is sqrt(1 - a^2).

What is checked is the method's own code (`tinylatent.methods.hrpo`), the sign of whose gate is that of the authors'.

Letters: V vocabulary, D width, T latent steps, N cases, n paths; u the gate a at r = 1, Lambda the weight behind it.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tinylatent.lab.findings import FAILS, HOLDS, STRICTER, Finding
from tinylatent.methods.hrpo import (
    SHARPNESS,
    hidden_ratio,
    initial_openness,
    log_gate,
    logged_ratio,
    mixed,
    soft_token,
)
from tinylatent.models.backbone import Table
from tinylatent.objectives.method import Model
from tinylatent.training.config import Training
from tinylatent.training.optimizer import make_optimizer, set_learning_rate
from tinylatent_theory.claims.ledger import EXACT, Trial, claim, judged, judged_twice

R_MAX = 0.999  # the largest u at the start
DECAY = Training(learning_rate=1e-3, weight_decay=0.1, warmup=0.1)  # of Lambda (tables 4 and 5)


def printed_log_gate(openness: Float[Tensor, "*#rows"], r: Float[Tensor, "*#rows"]) -> Float[Tensor, "*#rows"]:
    """log a = -c softplus(Lambda) r: equation 4 as printed."""
    return -SHARPNESS * F.softplus(openness) * r


def scalar(value: float) -> Float[Tensor, ""]:
    """A number."""
    return torch.tensor(value, dtype=torch.float64)


def signs(count: int) -> Float[Tensor, "N count"]:
    """Every row of +1 and -1: all values of independent variables of mean 0 and variance 1."""
    return torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * count).view(-1, count)


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Uniform random numbers."""
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)


def starts(r_min: float) -> Float[Tensor, " N"]:
    """log a at the start, r = 1/2: u on a fine grid over (r_min, R_MAX)."""
    u_N = r_min + (R_MAX - r_min) * (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    return log_gate(initial_openness(u_N), torch.full_like(u_N, 0.5))


@claim(
    source="[R]; HRPO, equation 4 and the initialisation, in the form of the authors' code",
    origin="here",
    statement="The gate exp(-c softplus(-Lambda) r) is u^r with u = sigmoid(Lambda)^c, and Lambda = -log(u^(-1/c) - 1) "
    "starts it at u for r = 1.",
    conditions="0 < u < 1",
    how="exact algebra",
    recorded=HOLDS,
)
def hrpo_gate_form(trial: Trial) -> Finding:
    """The two forms, by different functions, and the round trip through the initial weight."""
    size, generator = trial.size(200, 5000), trial.torch("form")
    weight_N, r_N = uniform(generator, -10.0, 12.0, size), uniform(generator, 0.0, 1.0, size)
    u_N = uniform(generator, 0.01, R_MAX, size)
    off = float((log_gate(weight_N, r_N).exp() / weight_N.sigmoid() ** (SHARPNESS * r_N) - 1).abs().max())
    back = float((log_gate(initial_openness(u_N), torch.ones_like(u_N)).exp() / u_N - 1).abs().max())
    ratios = ", ".join(f"{hidden_ratio(starts(low)).mean():.3f} (r_min {low})" for low in (0.9, 0.95, 0.98, 0.99))
    evidence = f"the forms agree to {off:.0e}, the round trip to {back:.0e}; mean hidden ratio at the start, r = 1/2: "
    return judged(max(off, back) < EXACT, evidence + ratios)


def smaller_weight() -> str:
    """The two signs at one weight and at a smaller one."""
    forms = (printed_log_gate, log_gate)
    values = [float(hidden_ratio(form(scalar(x), scalar(0.5)))) for form in forms for x in (0.0, -1.0)]
    moves = "as printed {:.4f} to {:.4f}, with the sign of the code {:.4f} to {:.4f}".format(*values)
    return f"the hidden ratio at r = 1/2 as Lambda goes from 0 to -1: {moves}"


@claim(
    source="HRPO, equation 4 and the remark of appendix A",
    origin="paper",
    statement="With the gate exp(-c softplus(Lambda) r), a smaller Lambda raises the hidden ratio.",
    conditions="with softplus(-Lambda), as in the authors' code",
    how="exact algebra",
    recorded=FAILS,
    counterexample=smaller_weight,
)
def hrpo_printed_sign(trial: Trial) -> Finding:
    """Gates over a random ladder of Lambda: the ratio rises where a falls, so a would have to grow with Lambda."""
    size, generator = trial.size(100, 2000), trial.torch("sign")
    weight_N, r_N = uniform(generator, -8.0, 9.0, size).sort().values, uniform(generator, 0.1, 0.9, 1).expand(size)
    forms = (printed_log_gate, log_gate)
    share = [float((form(weight_N, r_N).diff() > 0).double().mean()) for form in forms]
    start = [float(form(initial_openness(scalar(0.99)), scalar(0.5)).exp()) for form in forms]
    return judged(
        share[0] == 1,
        f"a smaller Lambda raises the ratio in {share[0]:.0%} of pairs as printed, in {share[1]:.0%} with the sign of "
        f"the code; at u = .99, r = 1/2 the printed gate would start at {start[0]:.1g}, the code's at {start[1]:.4f}",
    )


def two_gates() -> str:
    """Two coordinates whose mean hidden ratio is below the reported one."""
    log_a_N = torch.tensor([0.28, 0.96], dtype=torch.float64).log()
    mean, reported = hidden_ratio(log_a_N).mean(), logged_ratio(log_a_N)
    return f"gates .28 and .96: the mean hidden ratio is {mean:.3f}, sqrt(1 - mean(a)^2) is {reported:.3f}"


@claim(
    source="HRPO's code, the logged metric behind the figures of the hidden ratio",
    origin="code",
    statement="sqrt(1 - mean(a)^2) is the mean hidden ratio.",
    conditions="all gates equal; else it is an upper bound, by Jensen's inequality",
    how="property test",
    recorded=FAILS,
    counterexample=two_gates,
)
def hrpo_reported_ratio(trial: Trial) -> Finding:
    """Random gates of any spread, and those of the published start."""
    gaps = []
    for case in range(trial.size(50, 1000)):
        generator = trial.torch("reported", case)
        log_a_N = float(uniform(generator, 0.0, 3.0, 1)) * uniform(generator, 0.0, 1.0, 2 + case % 7).log()
        gaps.append(float(logged_ratio(log_a_N) - hidden_ratio(log_a_N).mean()))
    log_a_N = starts(0.95)
    return judged(
        max(map(abs, gaps)) < EXACT,
        f"too high in {sum(gap > 0 for gap in gaps)} of {len(gaps)} random cases, by up to {max(gaps):.2g}; at the "
        f"start with r_min .95: {logged_ratio(log_a_N):.3f} for a mean of {hidden_ratio(log_a_N).mean():.3f}",
    )


def same_sign() -> str:
    """A soft token that equals the token, as when p is certain."""
    e_N, a, one = signs(1)[:, 0], scalar(math.sqrt(0.5)), scalar(1.0)
    variance = mixed(e_N, e_N, a.log(), one).var(correction=0)
    return f"h = e = -1 or 1, a^2 = 1/2, i = 1: a variance of {variance:.4g}, not 1"


def drawn_variance(p_V: Float[Tensor, " V"], a: Float[Tensor, ""]) -> float:
    """Variance of the mix (i = 1) of a token drawn from p and the soft token of p, over all tables of signs."""
    tables_NV = signs(len(p_V))
    mix_NV = mixed(tables_NV, soft_token(p_V, Table(tables_NV.T))[:, None].expand_as(tables_NV), a.log(), scalar(1.0))
    return float((mix_NV**2 @ p_V).mean())


@claim(
    source="folklore about the square root in RG-LRU gates, which HRPO's equation 4 takes over; its conditions are not"
    " part of it",
    origin="folklore",
    statement="The hybrid input a e + sqrt(1 - a^2) (i h) keeps the variance of the embeddings.",
    conditions="e and h independent and of equal variance, i = 1; a token drawn from p has correlation |p| with h",
    how="exact algebra",
    recorded=STRICTER,
    counterexample=same_sign,
)
def hrpo_mix_keeps_norm(trial: Trial) -> Finding:
    """Sums over all pairs of signs (independent), the same with i = 1/2, and over all tables (a token drawn from p)."""
    e_N, h_N, rows = *signs(2).T, []
    for case in range(trial.size(20, 500)):
        generator = trial.torch("mix", case)
        a, p_V = uniform(generator, 0.1, 0.9, 1)[0], uniform(generator, -2.0, 2.0, 5).softmax(0)
        independent, half = (float(mixed(e_N, h_N, a.log(), scalar(i)).var(correction=0)) - 1 for i in (1.0, 0.5))
        excess = drawn_variance(p_V, a) - 1
        rows.append((independent, half, excess, excess - float(2 * a * hidden_ratio(a.log()) * p_V.norm())))
    off = [max(map(abs, column)) for column in zip(*rows, strict=True)]
    return judged_twice(
        as_stated=max(off[:3]) < EXACT,
        strictly=off[0] < EXACT,
        evidence=f"independent, i = 1: kept to {off[0]:.0e}; i = 1/2: off by up to {off[1]:.2g}; a token drawn from p, "
        f"i = 1: up to {off[2]:.2g} too much, 2 a sqrt(1 - a^2) |p| to {off[3]:.0e}",
    )


def twins() -> str:
    """Two tokens with one embedding, each with probability a half."""
    h = soft_token(torch.full((2,), 0.5, dtype=torch.float64), Table(torch.ones(2, 1, dtype=torch.float64)))
    return f"two tokens with the embedding 1, each with probability 1/2: h = {h.item():.4f}"


@claim(
    source="HRPO, the soft embedding, after equation 3; the purpose of its norm and the conditions [R]",
    origin="here",
    statement="The soft token W_e^T p / |p| has the scale of a token embedding.",
    conditions="in mean square over embeddings of equal variance that are independent and of mean zero",
    how="exact algebra",
    recorded=STRICTER,
    counterexample=twins,
)
def hrpo_soft_embedding_scale(trial: Trial) -> Finding:
    """Sums over all tables of signs (width 1): independent and centred; shifted; all tokens equal."""
    V, rows = trial.size(6, 10), []
    tables = signs(V), signs(V) + 1, signs(1).expand(2, V)
    for case in range(trial.size(20, 100)):
        p_V = uniform(trial.torch("soft", case), -5.0, 5.0, V).softmax(0)
        rows.append([float((soft_token(p_V, Table(x_NV.T)) ** 2).mean() / (x_NV**2).mean()) - 1 for x_NV in tables])
    off = [max(map(abs, column)) for column in zip(*rows, strict=True)]
    return judged_twice(
        as_stated=max(off) < EXACT,
        strictly=off[0] < EXACT,
        evidence=f"independent of mean 0: the mean square is a token's to {off[0]:.0e}; of mean 1: up to {off[1]:.2g} "
        f"times that too much; all tokens equal: up to {off[2]:.2g} times",
    )


def certain() -> str:
    """One token, certain: the hybrid input is longer than its embedding."""
    one = torch.ones(1, dtype=torch.float64)
    fed = mixed(one, soft_token(one, Table(one[:, None])), scalar(0.5).log() / 2, scalar(1.0))
    return f"one token with the embedding 1 and p = 1, a^2 = 1/2, i = 1: the input is {fed.item():.4f}"


@claim(
    source="[R]; HRPO, equation 4 and the soft embedding",
    origin="here",
    statement="When the next token is certain, the hybrid input is that token's embedding.",
    conditions="i = sqrt((1 - a) / (1 + a)) alone; else it is (a + sqrt(1 - a^2) i) times the embedding",
    how="exact algebra",
    recorded=FAILS,
    counterexample=certain,
)
def hrpo_one_hot_is_no_op(trial: Trial) -> Finding:
    """Random tables and gates: the input against the embedding, and the largest factor."""
    off = law = 0.0
    for case in range(trial.size(50, 1000)):
        generator = trial.torch("certain", case)
        (a_D, i_D), e_VD = uniform(generator, 0.0, 1.0, 2, 6), uniform(generator, -1.0, 1.0, 4, 6)
        e_D = e_VD[case % 4]
        fed_D = mixed(e_D, soft_token(F.one_hot(torch.tensor(case % 4), 4).double(), Table(e_VD)), a_D.log(), i_D)
        off = max(off, float((fed_D - e_D).norm() / e_D.norm()))
        law = max(law, float((fed_D - (a_D + hidden_ratio(a_D.log()) * i_D) * e_D).abs().max()))
    a_N, one = torch.linspace(0, 1, 100001, dtype=torch.float64), scalar(1.0)
    most = mixed(torch.ones_like(a_N), torch.ones_like(a_N), a_N.log(), one).max()
    start = mixed(one, one, log_gate(initial_openness(scalar(0.95)), scalar(0.5)), scalar(0.5))
    return judged(
        off < EXACT,
        f"off by up to {off:.2g} of the embedding; the factor a + sqrt(1 - a^2) i is right to {law:.0e}, at most "
        f"{most:.4f}, and {start:.3f} at the start with u = .95, r = i = 1/2",
    )


def decayed(weight_N: Float[Tensor, " N"], steps: int, recipe: Training) -> Float[Tensor, " N"]:
    """The weights after `steps` of the laboratory's AdamW with gradients of zero."""
    weights = nn.ParameterList([weight_N.clone()])
    optimizer = make_optimizer(Model(weights), recipe)
    for step in range(steps):
        set_learning_rate(optimizer, recipe, step, steps)
        optimizer.step()
    return weights[0].detach()


def shrinkage(steps: int, recipe: Training) -> float:
    """What decay alone leaves of a weight: the product of 1 - rate x decay, over warm-up and half a cosine ([R])."""
    warm = round(recipe.warmup * steps)
    rises = [(step + 1) / warm for step in range(warm)]
    falls = [0.5 + 0.5 * math.cos(math.pi * step / (steps - warm)) for step in range(steps - warm)]
    return math.prod(1 - recipe.learning_rate * recipe.weight_decay * share for share in rises + falls)


@claim(
    source="[R]; HRPO, appendix A (weight decay and Lambda) and tables 4 and 5",
    origin="here",
    statement="Weight decay alone raises the hidden ratio from where HRPO starts (Lambda > 0).",
    conditions="zero gradients, AdamW, rate 1e-3, decay .1, cosine, warm-up .1; r = 1/2; below 0 it would lower it",
    how="exact algebra",
    recorded=HOLDS,
)
def hrpo_weight_decay_raises_hidden_ratio(trial: Trial) -> Finding:
    """AdamW itself on Lambda, beside the closed form, and without decay as a control."""
    u_N = torch.cat([torch.tensor([0.95, 0.99, R_MAX]).double(), uniform(trial.torch("u"), 0.9, R_MAX, 50)])
    start_N, half_N, notes, off, rises = initial_openness(u_N), torch.full_like(u_N, 0.5), [], 0.0, True
    was_N = hidden_ratio(log_gate(start_N, half_N))
    for steps in (934, 1868):
        end_N = decayed(start_N, steps, DECAY)
        now_N = hidden_ratio(log_gate(end_N, half_N))
        off = max(off, float((end_N / start_N - shrinkage(steps, DECAY)).abs().max()))
        rises = rises and bool((now_N > was_N).all())
        moves = [f"{was:.3f} to {now:.3f} (u {u:g})" for u, was, now in zip(u_N[:3], was_N, now_N, strict=False)]
        notes.append(f"{steps} steps: {', '.join(moves)}")
    still = bool((decayed(start_N, 50, Training(learning_rate=DECAY.learning_rate, weight_decay=0.0)) == start_N).all())
    return judged(
        rises and still and off < EXACT,
        f"{'; '.join(notes)}; AdamW is the closed form to {off:.0e} and moves nothing without decay, so that a rise "
        "shows a use of latents only beside a control without reward",
    )
