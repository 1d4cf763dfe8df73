"""Claims about LatentSeek, test-time policy gradient in latent space ("Seek in the Dark", 2025, arXiv 2505.13308).

The hidden states that emitted the first N tokens of an answer become free vectors z, read by the frozen head, each
position alone. A reward of at most 0 scores the answer that those tokens lead to; a step of Adam on z follows the score
of the tokens; the next answer has the most likely token of every position. The continuation after the prefix is greedy,
so a reward is a function of the prefix. The score, the direction and the step are those of the shipped method
(`tinylatent.methods.latentseek`). Points about the released code are about the repository of the paper's authors.

Letters: N positions, V vocabulary, D width, P = V^N prefixes, K steps of the search.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinylatent.engine.thought import State
from tinylatent.engine.thoughts import GREEDY, Token
from tinylatent.lab.findings import FAILS, STRICTER, Finding
from tinylatent.methods.latentseek import EPSILON, LatentSeek, advanced, ascent, score
from tinylatent.models.backbone import Table
from tinylatent_theory.claims.ledger import EXACT, Trial, claim, judged, judged_twice, relative

RATE, THRESHOLD, ROUNDS = LatentSeek.rate, LatentSeek.threshold, LatentSeek.rounds
"""The released defaults: Adam's rate, the reward above which the search stops, and the most proposals."""
Reward = Callable[[Int[Tensor, " N"]], float]


def reader(head_VD: Float[Tensor, "V D"]) -> Callable[[Tensor], State]:
    """What the frozen head makes of latents, each position alone."""
    return lambda z: State(z, z @ head_VD.T, Table(head_VD))


def token_log_prob(
    z_ND: Float[Tensor, "N D"], head_VD: Float[Tensor, "V D"], tokens: Int[Tensor, "*rows N"]
) -> Float[Tensor, "*rows N"]:
    """log softmax(W z_t)[x_t] of every position (eq. 4), as the laboratory's tokens have it."""
    thought = Token(temperature=1.0)
    return thought.log_prob(reader(head_VD)(z_ND.expand(*tokens.shape, -1)), thought.given(tokens))


def token_score(
    z_ND: Float[Tensor, "N D"], head_VD: Float[Tensor, "V D"], tokens_N: Int[Tensor, " N"]
) -> Float[Tensor, "N D"]:
    """The method's score of one prefix (eq. 7)."""
    return score(reader(head_VD), z_ND[None], tokens_N[None, None], torch.ones_like(z_ND[None, None, :, 0]))[0]


def argmax_update(z_ND: Float[Tensor, "N D"], head_VD: Float[Tensor, "V D"], reward: Reward) -> Float[Tensor, "N D"]:
    """What mode argmax ascends, and the released code: reward times score of the most likely tokens alone."""
    tokens_N = shown(z_ND, head_VD)
    return ascent(reader(head_VD), z_ND[None], tokens_N[None, None], z_ND.new_tensor([[reward(tokens_N)]]))[0]


def sampled_update(
    z_ND: Float[Tensor, "N D"], head_VD: Float[Tensor, "V D"], reward_P: Float[Tensor, " P"]
) -> Float[Tensor, "N D"]:
    """The mean of mode sampled (eq. 7): all prefixes, each by its probability."""
    tokens_PN = prefixes(len(head_VD), len(z_ND))
    weight_P = token_log_prob(z_ND, head_VD, tokens_PN).sum(1).exp() * len(tokens_PN)
    return ascent(reader(head_VD), z_ND[None], tokens_PN[None], (weight_P * reward_P)[None])[0]


def objective(
    z_ND: Float[Tensor, "N D"], head_VD: Float[Tensor, "V D"], reward_P: Float[Tensor, " P"]
) -> Float[Tensor, ""]:
    """J (eq. 3): the mean reward, contracted position by position; the reference, it shares no code with the rest."""
    mean, V = reward_P, len(head_VD)
    for z_D in z_ND:
        mean = F.softmax(head_VD @ z_D, 0) @ mean.view(V, -1)
    return mean.squeeze()


def objective_gradient(
    z_ND: Float[Tensor, "N D"], head_VD: Float[Tensor, "V D"], reward_P: Float[Tensor, " P"]
) -> Float[Tensor, "N D"]:
    """The gradient of J in z, by automatic differentiation."""
    z = z_ND.detach().requires_grad_()
    return torch.autograd.grad(objective(z, head_VD, reward_P), z)[0]


def prefixes(vocabulary: int, positions: int) -> Int[Tensor, "P N"]:
    """All prefixes, the last position fastest."""
    return torch.cartesian_prod(*[torch.arange(vocabulary)] * positions).view(-1, positions)


def looked_up(table_P: Tensor, vocabulary: int) -> Reward:
    """The reward that reads a table over all prefixes."""
    return lambda tokens_N: float(table_P.view([vocabulary] * len(tokens_N))[tuple(tokens_N)])


def constant(worth: float) -> Reward:
    """The same reward for every prefix."""
    return lambda _: worth


def psrm(accepted_P: Bool[Tensor, " P"], vocabulary: int) -> Reward:
    """The perfect sparse reward (section 3.3): 0 if the final answer is right, otherwise -1."""
    return looked_up(accepted_P.double() - 1, vocabulary)


def search(
    z_ND: Float[Tensor, "N D"], head_VD: Float[Tensor, "V D"], reward: Reward, steps: int, rate: float = RATE
) -> Float[Tensor, "K N D"]:
    """The released loop: z before the first step and after each one, until a reward passes the threshold."""
    moments: dict[str, Tensor] = {}
    z, path = z_ND, [z_ND]
    for step in range(steps):
        worth = reward(shown(z, head_VD))
        if worth > THRESHOLD:
            break
        z = advanced(z, argmax_update(z, head_VD, constant(worth)), moments, step, rate)
        path.append(z)
    return torch.stack(path)


def shown(z: Float[Tensor, "*rows N D"], head_VD: Float[Tensor, "V D"]) -> Int[Tensor, "*rows N"]:
    """The tokens that stand in the answer: the most likely ones, each position alone."""
    return GREEDY.sample(reader(head_VD)(z), None)["id"]


def drawn(trial: Trial, case: str, number: int, V: int, N: int, D: int) -> tuple[Tensor, Tensor, Tensor]:
    """A random z, head and table of rewards in [-1, 0]."""
    generator = trial.torch(case, number)
    z_ND = torch.randn(N, D, generator=generator, dtype=torch.float64)
    head_VD = torch.randn(V, D, generator=generator, dtype=torch.float64)
    return z_ND, head_VD, -torch.rand(V**N, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------------------
# The gradient


@claim(
    source="LatentSeek, section 3.1, eq. 7",
    origin="paper",
    statement="The mean of reward times score over sampled tokens is the gradient of the expected reward.",
    conditions="tokens drawn at the temperature of the loss; a constant baseline changes nothing",
    how="exhaustive",
    recorded="holds",
)
def latentseek_sampled_update_is_policy_gradient(trial: Trial) -> Finding:
    """All V^N prefixes, against automatic differentiation of J."""
    worst, V, N = 0.0, 5, 3
    for number in range(trial.size(20, 200)):
        z_ND, head_VD, reward_P = drawn(trial, "sampled", number, V, N, D=4)
        truth_ND = objective_gradient(z_ND, head_VD, reward_P)
        for baseline in (0.0, -0.7):
            worst = max(worst, relative(sampled_update(z_ND, head_VD, reward_P - baseline), truth_ND))
    return judged(worst < EXACT, f"relative error at most {worst:.0e} over all {V**N} prefixes, with any baseline")


def constant_reward() -> str:
    """One position, two tokens, one dimension, reward -1 whatever is said: nothing to gain, and yet z moves."""
    z_ND = torch.tensor([[3.0]], dtype=torch.float64).log() / 2
    head_VD = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    reward_P = torch.tensor([-1.0, -1.0], dtype=torch.float64)
    update = argmax_update(z_ND, head_VD, looked_up(reward_P, 2)).item()
    truth = objective_gradient(z_ND, head_VD, reward_P).item()
    chance = token_log_prob(z_ND, head_VD, torch.tensor([0])).exp().item()
    return (
        f"two tokens, the first of probability {chance:.4g}, both worth -1: the gradient is {abs(truth):.4g}, "
        f"the update {update:.4g}"
    )


@claim(
    source="LatentSeek, eq. 5 and 7 with the greedy tokens of section 3.1, and the released code",
    origin="code",
    statement="The update at the most likely tokens alone follows the gradient of the expected reward.",
    conditions="random latents, heads and reward tables; only where no other prefix has a reward is it exact",
    how="exhaustive",
    recorded=FAILS,
    counterexample=constant_reward,
)
def latentseek_argmax_update_is_policy_gradient(trial: Trial) -> Finding:
    """Cosines with the exact gradient over tables of graded and of sparse rewards, and both under a constant reward."""
    V, N, cases = 5, 3, trial.size(300, 1500)
    cosines: dict[str, list[float]] = {"graded": [], "sparse": []}
    moved = still = 0.0
    for number in range(cases):
        z_ND, head_VD, graded_P = drawn(trial, "argmax", number, V, N, D=4)
        for law, reward_P in (("graded", graded_P), ("sparse", (graded_P > -0.1).double() - 1)):
            update_ND = argmax_update(z_ND, head_VD, looked_up(reward_P, V))
            if update_ND.any():  # otherwise the answer is right, and the search over
                truth_ND = objective_gradient(z_ND, head_VD, reward_P)
                cosines[law].append(float(F.cosine_similarity(update_ND.flatten(), truth_ND.flatten(), 0)))
        moved += float(argmax_update(z_ND, head_VD, constant(-1.0)).norm()) / cases
        still = max(still, float(objective_gradient(z_ND, head_VD, torch.full_like(graded_P, -1)).norm()))
    worst = min(min(each) for each in cosines.values())
    mean = {law: sum(each) / len(each) for law, each in cosines.items()}
    negative = {law: sum(cosine < 0 for cosine in each) / len(each) for law, each in cosines.items()}
    return judged(
        1 - worst < EXACT and moved < EXACT,
        f"mean cosine with the gradient {mean['graded']:.2f} over {cases} tables of rewards in [-1, 0], negative in "
        f"{negative['graded']:.0%} ({mean['sparse']:.2f} and {negative['sparse']:.0%} if one prefix in ten has 0 and "
        f"the others -1); under a constant reward the gradient is {still:.0e} and the update {moved:.2g}",
        **cosines,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The search


@claim(
    source="LatentSeek, section 3.3 (PSRM) and the constant-reward ablation; [R] for the identity",
    origin="here",
    statement="Until its first success the search with the perfect sparse reward is that of a constant reward of -1.",
    conditions="the released loop: Adam, most likely tokens, threshold -0.2",
    how="property test",
    recorded="holds",
)
def latentseek_psrm_is_constant_reward_with_oracle_stop(trial: Trial) -> Finding:
    """Both searches from the same start: the second never hears of success and is cut at its first one afterwards."""
    V, N, steps, same, succeeded, other, proposed = 5, 3, 40, [], 0, 0, 0
    for number in range(trial.size(20, 200)):
        z_ND, head_VD, grade_P = drawn(trial, "psrm", number, V, N, D=6)
        accepted_P = grade_P > -0.2
        accepted_P.view(V, V, V)[tuple(shown(z_ND, head_VD))] = False  # the first answer is wrong
        oracle = looked_up(accepted_P, V)
        sparse_KND = search(z_ND, head_VD, psrm(accepted_P, V), steps)
        constant_KND = search(z_ND, head_VD, constant(-1.0), steps)
        tokens_KN = shown(constant_KND, head_VD)
        success = [k for k, tokens_N in enumerate(tokens_KN) if oracle(tokens_N)]
        cut_KND = constant_KND[: success[0] + 1] if success else constant_KND
        same.append(torch.equal(sparse_KND, cut_KND))
        succeeded += bool(success)
        proposed += len(tokens_KN.unique(dim=0))
        graded_KND = search(z_ND, head_VD, looked_up(grade_P.clamp(max=-0.3), V), steps)
        other += not torch.equal(graded_KND, constant_KND)
    return judged(
        all(same) and succeeded > 0,
        f"{sum(same)} of {len(same)} paths equal to the last bit, {succeeded} of them up to a success; "
        f"{proposed / len(same):.1f} different prefixes in {steps} steps; with graded rewards {other} paths differ",
    )


def first_step(z_ND: Tensor, head_VD: Tensor, worth: float) -> Float[Tensor, "N D"]:
    """What the first step of a search adds to z."""
    path_KND = search(z_ND, head_VD, constant(worth), steps=1)
    return path_KND[1] - path_KND[0]


def between_two(gap: float) -> tuple[Tensor, Tensor]:
    """One position and one dimension between two tokens; `gap` is the difference of their logits."""
    head_VD = torch.tensor([[0.5], [-0.5]], dtype=torch.float64)
    return torch.tensor([[gap]], dtype=torch.float64), head_VD


def nearly_certain() -> str:
    """A token so likely that its gradient is as small as Adam's epsilon."""
    gap = -torch.tensor(EPSILON, dtype=torch.float64).logit().item()
    z_ND, head_VD = between_two(gap)
    steps = [abs(first_step(z_ND, head_VD, worth).item()) / RATE for worth in (-1.0, -1 / 3)]
    return (
        f"one latent between two tokens, the second of probability {EPSILON:.0e}: the first step is {steps[0]:.3g} of "
        f"the rate at reward -1 and {steps[1]:.3g} of it at -1/3"
    )


@claim(
    source="[R] of LatentSeek's released code (Adam on the latents)",
    origin="here",
    statement="Adam erases the size of the reward: the first step is the same at reward -1 and at -1/3.",
    conditions="coordinates whose gradient is 1e-3 or more (Adam's epsilon is 1e-8); above -0.2 there is no step",
    how="property test",
    recorded=STRICTER,
    counterexample=nearly_certain,
)
def latentseek_adam_erases_reward_size(trial: Trial) -> Finding:
    """Random latents, and one between two tokens that is ever more certain; differences in units of the rate."""
    ordinary, size, curve = 0.0, 0.0, []
    for number in range(trial.size(20, 200)):
        z_ND, head_VD, _ = drawn(trial, "adam", number, V=6, N=4, D=8)
        clear_ND = token_score(z_ND, head_VD, shown(z_ND, head_VD)).abs() >= 1e-3
        one_ND, third_ND = (first_step(z_ND, head_VD, worth) / RATE for worth in (-1.0, -1 / 3))
        ordinary = max(ordinary, float((one_ND - third_ND)[clear_ND].abs().max()))
        size = max(size, float((one_ND[clear_ND].abs() - 1).abs().max()))
    for gap in (5.0, 10.0, 15.0, 20.0, 25.0):
        one, third = (first_step(*between_two(gap), worth).item() / RATE for worth in (-1.0, -1 / 3))
        curve.append(abs(one - third))
    tolerance = 3 * EPSILON / 1e-3  # of a gradient g, the step is g / (g + epsilon) of the rate
    return judged_twice(
        as_stated=max(ordinary, *curve) < tolerance,
        strictly=max(ordinary, size) < tolerance,
        evidence=f"coordinates move by the rate to {size:.0e} of it at either reward; where one token is e^5 ... e^25 "
        "times as likely as the other they differ by " + ", ".join(f"{each:.1g}" for each in curve),
        difference=curve,
    )


def rises(path_KND: Float[Tensor, "K N D"], head_VD: Float[Tensor, "V D"]) -> Float[Tensor, "steps N"]:
    """The rise of the log-probability of the tokens shown before each step; a fall is negative."""
    tokens_KN = shown(path_KND[:-1], head_VD)
    pairs = zip(path_KND[:-1], path_KND[1:], tokens_KN, strict=True)
    return torch.stack(
        [token_log_prob(after, head_VD, said) - token_log_prob(before, head_VD, said) for before, after, said in pairs]
    )


def momentum() -> str:
    """A token that has just been turned to gains from the steps that led there, though its reward is -1."""
    z_ND, head_VD = between_two(1.5 * RATE)
    path_KND = search(z_ND, head_VD, constant(-1.0), steps=3)
    said, rise = shown(path_KND, head_VD)[:, 0].tolist(), rises(path_KND, head_VD)[:, 0].tolist()
    last = token_log_prob(path_KND[2], head_VD, shown(path_KND[2], head_VD)).exp().item()
    return (
        f"one latent between two tokens, reward -1: tokens {said[0]}, {said[1]}, then {said[2]}; the third step raises "
        f"the log-probability of {said[2]} by {rise[2]:.4f}, from a probability of {last:.4f}"
    )


@claim(
    source="LatentSeek, section 3.3 and the released code (rewards in [-1, 0]); [R]",
    origin="here",
    statement="As rewards are negative, every step lowers the log-probability of the tokens just shown.",
    conditions="plain gradient steps, of any rate (the log-probability is concave in z); or Adam's first step",
    how="property test",
    recorded=STRICTER,
    counterexample=momentum,
)
def latentseek_negative_reward_only_walks_away(trial: Trial) -> Finding:
    """Plain steps from 1e-3 to 1e3 at every position, and whole searches with Adam."""
    plain, first, later = 0.0, -1.0, []
    for number in range(trial.size(20, 100)):
        z_ND, head_VD, reward_P = drawn(trial, "walk", number, V=6, N=4, D=8)
        worth = float(reward_P[0].clamp(max=-0.01))
        update_ND = argmax_update(z_ND, head_VD, constant(worth))
        for rate in (1e-3, 1.0, 1e3):
            rise_N = rises(torch.stack([z_ND, z_ND + rate * update_ND]), head_VD)[0]
            least_N = rate / abs(worth) * (update_ND**2).sum(-1)  # the fall of the tangent, which lies above
            plain = max(plain, float(((rise_N + least_N) / (1 + least_N)).max()))
        rise_TN = rises(search(z_ND, head_VD, constant(-1.0), steps=40), head_VD)
        first = max(first, float(rise_TN[0].max()))
        later.append(float((rise_TN[1:] > 0).double().mean()))
    return judged_twice(
        as_stated=plain < EXACT and first < 0 and max(later) == 0,
        strictly=plain < EXACT and first < 0,
        evidence="a plain step of rate 1e-3 ... 1e3 lowers it at every position, by rate |R| |score|^2 "
        f"{'or more' if plain < EXACT else 'but not always'}; Adam's first step lowers it by {-first:.1g} or more; of "
        f"Adam's later steps {sum(later) / len(later):.0%} raise it",
    )


# ---------------------------------------------------------------------------------------------------------------------
# Precision


def released_step(values_M: Float[Tensor, " M"], gradient: float, rate: float = RATE) -> Float[Tensor, " M"]:
    """Values after Adam's first step, computed in their own type as the released code does."""
    z = values_M.clone().requires_grad_()
    z.grad = torch.full_like(z, gradient)
    torch.optim.Adam([z], rate, eps=EPSILON).step()
    return z.detach()


def bfloat16_values() -> Float[Tensor, " M"]:
    """Every finite number of bfloat16, in order, zero once."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    return every[every.isfinite()].float().unique().bfloat16()


def stuck_at_eight() -> str:
    """A number in [8, 16) and a step of 0.03 in bfloat16."""
    value = torch.tensor([8.125], dtype=torch.bfloat16)
    after = {rate: released_step(value, -1.0, rate).item() for rate in (0.03, 0.05)}
    return f"in bfloat16, 8.125 after a step of 0.03 is {after[0.03]:g}; after one of 0.05 it is {after[0.05]:g}"


@claim(
    source="LatentSeek, appendix (Adam, bfloat16, rate 0.03) and the released code; [R]",
    origin="here",
    statement="A step of 0.03 moves every latent.",
    conditions="below 8 in size, for bfloat16 as released; in float32, below 2^18",
    how="exhaustive",
    recorded=FAILS,
    counterexample=stuck_at_eight,
)
def latentseek_bfloat16_steps(trial: Trial) -> Finding:
    """Every bfloat16 number below 2^18, up and down; a step below half the gap to the neighbour should be lost."""
    values_M = bfloat16_values()
    values_M = values_M[values_M.abs() < 2**18]
    sizes, lost, agree = [], [], True
    for gradient, along_M in ((-1.0, values_M), (1.0, values_M.flip(0))):
        lost.append((released_step(along_M, gradient) == along_M)[:-1])  # the last has no neighbour here
        sizes.append(along_M.double().abs()[:-1])
        agree &= torch.equal(lost[-1], along_M.double().diff().abs() / 2 > RATE)
    size_M, lost_M = torch.cat(sizes), torch.cat(lost)
    between = lost_M[(size_M >= 8) & (size_M < 16)].double().mean()
    fine_M = values_M.float()
    moves = (released_step(fine_M, 1.0) != fine_M).double().mean()
    return judged(
        not lost_M.any(),
        f"{lost_M[size_M < 8].double().mean():.0%} of the steps are lost below 8 in size, {between:.1%} in [8, 16) (8 "
        f"itself can go down) and {lost_M[size_M >= 16].double().mean():.0%} above, {'just' if agree else 'not'} as "
        f"half the gap to the neighbour says; in float32 {moves:.0%} of the same numbers move",
    )
