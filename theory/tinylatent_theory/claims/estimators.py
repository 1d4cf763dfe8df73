"""Claims about policy gradients for sampled thoughts: which estimators have the gradient of the expected reward.

Most are settled by enumeration: on a small random world (`tinylatent_theory.predictions.enumeration`) the objective,
its gradient and the mean of every estimator are sums over all paths, so that bias is a fact. An estimator is judged
where old and new policy are equal, with steps summed.

Letters: V vocabulary, n paths, B rows = prompts V * paths n * answers V, T steps, K tokens of a latent step, G rollouts
of a group, N outcomes of a group, D weights, p success probability of a prompt, c = gamma alpha concentrations of a
Dirichlet.
"""

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property

import scipy
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tinylatent.core.seeds import derive
from tinylatent.engine.force import force
from tinylatent.engine.plan import Segment
from tinylatent.engine.thought import State
from tinylatent.engine.thoughts import GREEDY, Dirichlet, MultiToken
from tinylatent.lab.findings import FAILS, HOLDS, STRICTER, Finding
from tinylatent.methods import GRPO
from tinylatent.models.backbone import Table
from tinylatent.objectives.method import Model, TrainState
from tinylatent.objectives.policy_gradient import Advantage, Rollouts, advantages
from tinylatent_theory.claims.ledger import EXACT, Trial, claim, judged, judged_twice, relative
from tinylatent_theory.predictions.enumeration import (
    Moments,
    Paths,
    StraightThrough,
    World,
    combined,
    gradient,
    group_estimate,
    objective,
    score_moments,
    simplex_paths,
    straight_through,
    token_paths,
    walked,
)

# ---------------------------------------------------------------------------------------------------------------------
# Worlds, and what an estimator makes of them


@dataclass(frozen=True)
class Case:
    """One policy in one world, with its exact gradient."""

    world: World
    paths: Paths

    @cached_property
    def truth(self) -> Float[Tensor, " D"]:
        """The gradient of the expected reward."""
        return gradient(self.world, objective(self.world, self.paths))

    @cached_property
    def moments(self) -> list[Moments]:
        """The moments of every prompt's scores."""
        return [score_moments(self.world, self.paths, prompt) for prompt in range(self.world.vocabulary)]

    def mean(self, kind: Advantage, group: int) -> Float[Tensor, " D"]:
        """The mean of a group estimator."""
        return combined([group_estimate(each, kind, group) for each in self.moments]).mean

    def error(self, kind: Advantage, group: int) -> float:
        """Relative error of that mean."""
        return relative(self.mean(kind, group), self.truth)

    def parts(self) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
        """The gradient's two parts: through the choice of the latent steps, and through the answer's."""
        zero = torch.zeros((), dtype=torch.float64)
        of_latent, of_answer = zero, zero
        for prompt, right in enumerate(self.world.answers):
            latent_n, answer_nV = walked(self.world, self.paths, prompt)
            latent_n, right_n = latent_n.exp(), answer_nV[:, right].exp()
            of_latent = of_latent + (latent_n * right_n.detach()).sum() / len(self.world.answers)
            of_answer = of_answer + (latent_n.detach() * right_n).sum() / len(self.world.answers)
        return gradient(self.world, of_latent), gradient(self.world, of_answer)

    def of_prompt(self, prompt: int) -> tuple[float, Float[Tensor, " D"]]:
        """A prompt's success probability and its gradient."""
        latent_n, answer_nV = walked(self.world, self.paths, prompt)
        chance = (latent_n + answer_nV[:, self.world.answers[prompt]]).exp().sum()
        return chance.item(), gradient(self.world, chance)


def turned(got: Tensor, truth: Tensor) -> float:
    """Sine of the angle between two vectors; 1 where it is not an acute one."""
    along = got @ truth / (truth @ truth)
    return float((got - along * truth).norm() / got.norm()) if along > 0 else 1.0


def token_cases(trial: Trial, samples: tuple[int, ...] = (1, 2, 3)) -> list[Case]:
    """Sampled tokens on random worlds of two or three tokens and one or two latent steps."""
    sizes = [(2, 2), (3, 1)] if trial.profile == "quick" else [(2, 2), (3, 1), (2, 3), (3, 2)]
    seeds = [derive(trial.seed, "world", number) for number in range(trial.size(2, 3))]
    return [
        Case(World(V, T, seed), token_paths(MultiToken(K), V, T)) for V, T in sizes for K in samples for seed in seeds
    ]


def simplex_cases(trial: Trial) -> list[Case]:
    """Dirichlet latents on random worlds of two tokens and one latent step."""
    seeds = [derive(trial.seed, "simplex", number) for number in range(trial.size(1, 3))]
    grids = [simplex_paths(Dirichlet(gamma), 1, reach=14.0, spacing=0.2) for gamma in (1.0, 4.0)]
    return [Case(World(2, 1, seed), grid) for grid in grids for seed in seeds]


def group_gradient(p: float, group: int, kind: Advantage) -> float:
    """Mean over all outcomes of a group of 1/G sum_i A_i s_i, for a prompt with one logit: s = r - p.

    The gradient itself is p (1 - p).
    """
    reward_NG = torch.tensor(list(itertools.product((0.0, 1.0), repeat=group)), dtype=torch.float64)
    chance_N = (reward_NG * p + (1 - reward_NG) * (1 - p)).prod(1)
    advantage_NG = advantages(reward_NG.flatten(), group, kind).view(-1, group)
    return float((chance_N * (advantage_NG * (reward_NG - p)).mean(1)).sum())


# ---------------------------------------------------------------------------------------------------------------------
# Advantages


def bias(cases: list[Case], kind: Advantage) -> Finding:
    """Whether a kind of advantage leaves the gradient unbiased, over groups of several sizes."""
    groups = (2, 3, 5)
    errors = [case.error(kind, group) for case in cases for group in groups]
    return judged(
        max(errors) < EXACT,
        f"relative error of the estimator's mean at most {max(errors):.0e}, over {len(cases)} policies in random "
        f"worlds, groups of {', '.join(map(str, groups))}",
    )


@claim(
    source="Williams 1992 (REINFORCE)",
    origin="paper",
    statement="Reward times score is an unbiased estimate of the gradient of the expected reward.",
    conditions="tokens and Dirichlet latents, the score of every choice with weight 1, steps summed",
    how="exhaustive",
    recorded=HOLDS,
)
def reinforce_is_unbiased(trial: Trial) -> Finding:
    """Sums over all paths, against autograd through the objective."""
    return bias(token_cases(trial) + simplex_cases(trial), "none")


@claim(
    source="Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740 (RLOO)",
    origin="paper",
    statement="Subtracting the mean reward of the other rollouts leaves the policy gradient unbiased.",
    conditions="independent rollouts, groups of two or more",
    how="exhaustive",
    recorded=HOLDS,
)
def leave_one_out_is_unbiased(trial: Trial) -> Finding:
    """Sums over all paths and over all counts of right answers in a group, against autograd."""
    return bias(token_cases(trial) + simplex_cases(trial), "leave-one-out")


def two_rollouts() -> str:
    """A group of two, of one prompt with one logit: all four outcomes."""
    p, group = 0.5, 2
    got, truth = group_gradient(p, group, "mean"), p * (1 - p)
    return (
        f"{group} rollouts of one logit with success probability {p:g}: {got:g} on average, the gradient is {truth:g}"
    )


@claim(
    source="folklore (Shao et al. 2024, arXiv 2402.03300, subtract it; so do Liu et al. 2025, arXiv 2503.20783)",
    origin="folklore",
    statement="Subtracting the group's own mean reward leaves the policy gradient unbiased.",
    conditions="groups of two or more; what is wrong is the size alone, by 1 - 1/G",
    how="exhaustive",
    recorded=FAILS,
    counterexample=two_rollouts,
)
def group_mean_is_unbiased(trial: Trial) -> Finding:
    """The estimator's mean against the gradient, and against 1 - 1/G of it."""
    cases, groups = token_cases(trial), (2, 3, 5)
    errors = {group: max(case.error("mean", group) for case in cases) for group in groups}
    shrunk = max(relative(case.mean("mean", group), (1 - 1 / group) * case.truth) for case in cases for group in groups)
    return judged(
        max(errors.values()) < EXACT,
        f"relative error {', '.join(f'{error:.4f} at G = {group}' for group, error in errors.items())}; it is "
        f"1 - 1/G times the gradient to {shrunk:.0e}",
    )


def std_weight(p: float, group: int, epsilon: float = 1e-6) -> float:
    """What dividing by the group's standard deviation multiplies the gradient of a prompt by.

    (1 - 1/G) E[v / (sqrt(v) + epsilon)] / (p (1 - p)), v the unbiased variance of G rewards of 0 or 1: sum_i A_i s_i is
    (G - 1) v / (sqrt(v) + epsilon) in every group, the gradient of its prompt being p (1 - p) in the logit [R].
    """
    variances = [right * (group - right) / (group * (group - 1)) for right in range(1, group)]
    chances = [float(scipy.stats.binom.pmf(right, group, p)) for right in range(1, group)]
    mean = sum(chance * v / (math.sqrt(v) + epsilon) for chance, v in zip(chances, variances, strict=True))
    return (1 - 1 / group) * mean / (p * (1 - p))


def graded_pairs(logits: list[float], rewards: list[float]) -> float:
    """Degrees by which dividing by the standard deviation of pairs turns the gradient of one prompt: over all pairs."""
    p_V, reward_V = F.softmax(torch.tensor(logits, dtype=torch.float64), -1), torch.tensor(rewards, dtype=torch.float64)
    pairs_N2 = torch.cartesian_prod(*[torch.arange(len(logits))] * 2)
    advantage_N2 = advantages(reward_V[pairs_N2].flatten(), 2, "std").view(-1, 2)
    score_VV = torch.eye(len(logits), dtype=torch.float64) - p_V
    got_V = p_V[pairs_N2].prod(1) @ (advantage_N2[..., None] * score_VV[pairs_N2]).mean(1)
    return math.degrees(math.asin(turned(got_V, (p_V * reward_V) @ score_VV)))


def one_prompt() -> str:
    """The fewest actions and the smallest groups that turn it, by graded rewards; and by rewards of 0 and 1."""
    group, p, q = 4, 0.5, 0.1
    got = torch.tensor([group_gradient(chance, group, "std") for chance in (p, q)], dtype=torch.float64)
    truth = torch.tensor([p * (1 - p), q * (1 - q)], dtype=torch.float64)
    weights, degrees = got / truth, math.degrees(math.asin(turned(got, truth)))
    return (
        "one prompt, groups of 2, three actions of rewards 0, 0.1, 1: the gradient is turned by "
        f"{graded_pairs([0, 0, 0], [0, 0.1, 1]):.1f} degrees where they are equally likely; by "
        f"{graded_pairs([0, 0, -3], [0, 0.05, 1]):.1f} with rewards 0, 0.05, 1 and logits 0, 0, -3. With rewards of 0 "
        f"and 1 it takes groups of {group} and two prompts: with a logit for each, success probabilities {p:g} and "
        f"{q:g}, they are multiplied by {weights[0]:.4f} and {weights[1]:.4f}, turned by {degrees:.2f} degrees"
    )


@claim(
    source="folklore (GRPO, Shao et al. 2024, arXiv 2402.03300, divides by it; that this weighs prompts by their "
    "difficulty is said by Liu et al. 2025, arXiv 2503.20783)",
    origin="folklore",
    statement="Dividing advantages by the group's standard deviation changes only the size of the policy gradient.",
    conditions="rewards of 0 and 1, and prompts of equal success probability, or groups of 2 or 3, where all groups "
    "with two different rewards have one standard deviation",
    how="exhaustive",
    recorded=STRICTER,
    counterexample=one_prompt,
)
def group_std_only_rescales(trial: Trial) -> Finding:
    """The angle between estimate and gradient by group size; of each prompt alone, its closed-form weight."""
    cases = token_cases(trial, samples=(1, 2))
    angles = {group: max(turned(case.mean("std", group), case.truth) for case in cases) for group in (2, 3, 4, 8)}
    alone = 0.0
    for case in cases:
        for prompt, moments in enumerate(case.moments):
            p, truth = case.of_prompt(prompt)
            for group in angles:
                got = group_estimate(moments, "std", group).mean
                alone = max(alone, relative(got, std_weight(p, group) * truth))
    return judged_twice(
        as_stated=max(angles.values()) < EXACT,
        strictly=max(angles[2], angles[3], alone) < EXACT,
        evidence=f"sine of the angle to the gradient at most {max(angles[2], angles[3]):.0e} in groups of 2 and 3, up "
        f"to {angles[4]:.3f} in groups of 4 and {angles[8]:.3f} in groups of 8; a prompt's own gradient is multiplied "
        f"by (1 - 1/G) E[s] / (p (1 - p)), to {alone:.0e}",
    )


# ---------------------------------------------------------------------------------------------------------------------
# Ratios of sampled tokens


def surrogate_gradient(world: World, paths: Paths, method: GRPO) -> Float[Tensor, " D"]:
    """Mean over all paths and answers of the gradient that GRPO's own loss ascends, the reward itself as advantage.

    All of them make one batch, a group for each prompt. The loss is linear in advantages, so that a mean over rollouts
    is a sum over paths whose advantages are multiplied by the paths' probabilities.
    """
    method, model, examples = replace(method, average="sum"), Model(world.model), world.examples()
    V, n, state = world.vocabulary, len(paths.log_weight), TrainState(0, 1, 0)
    thinking, answer = (part for part in method.plan(model, examples, method.temperature) if isinstance(part, Segment))
    ids_B1 = torch.arange(V).repeat(V * n)[:, None]
    latents = paths.action.map(lambda x: x.repeat_interleave(V, 0).repeat(V, *[1] * (x.ndim - 1)))
    plan = (replace(thinking, given=latents), replace(answer, given=GREEDY.given(ids_B1)))
    with torch.no_grad():
        forced = force(world.model, plan, examples.prompt_BN.repeat_interleave(n * V, 0), group=n * V)
        chance_B = (forced.log_prob_BT.sum(1) + paths.log_weight.repeat_interleave(V).repeat(V)).exp()
    trace = replace(forced, spans=tuple(replace(span, drawn=True) for span in forced.spans))
    advantage_B = chance_B * method.reward(model, examples, trace, state)
    loss = method.loss(model, Rollouts(examples, trace, advantage_B, denominator=V, metrics={}), state)
    return gradient(world, -loss.value)


def two_tokens_a_step() -> str:
    """One latent step of two tokens 0 and 1 with a logit, an answer with a logit, success probability z sigma."""
    K, logits_2 = 2, torch.zeros(2, dtype=torch.float64, requires_grad=True)  # of token 1, and of the answer
    ids_BK, thought = torch.cartesian_prod(torch.arange(2), torch.arange(2)), MultiToken(K)
    both_BV = torch.stack([logits_2.new_zeros(()), logits_2[0]]).expand(4, 2)
    state = State(torch.zeros(4, 1), both_BV, Table(torch.tensor([[0.0], [1.0]], dtype=torch.float64)))
    action, answer = thought.given(ids_BK), F.logsigmoid(logits_2[1])
    latent_B, z_B = thought.log_prob(state, action), thought.embed(state, action)[:, 0]
    success_B = (latent_B + answer).exp() * z_B
    truth = torch.autograd.grad(success_B.sum(), logits_2, retain_graph=True)[0]
    got = torch.autograd.grad((success_B.detach() * (latent_B / K + answer)).sum(), logits_2)[0]
    degrees = math.degrees(math.asin(turned(got, truth)))
    return (
        f"K = {K}, a logit for the latent step and one for the answer: ({got[0]:.4f}, {got[1]:.4f}) on average, the "
        f"gradient is ({truth[0]:.4f}, {truth[1]:.4f}): turned by {degrees:.1f} degrees"
    )


@claim(
    source="CoT2, section 5 (ratio of CoT2-MTS; text not at hand), read strictly; its public reviews call "
    "it biased, how is [R]",
    origin="here",
    statement="GRPO's loss with the geometric mean of K token ratios for a latent step has the policy gradient.",
    conditions="K = 1; for K of 2 or more its gradient is that of the answer plus 1/K of that of the latent steps",
    how="exhaustive",
    recorded=STRICTER,
    counterexample=two_tokens_a_step,
)
def mts_ratio_is_policy_gradient(trial: Trial) -> Finding:
    """GRPO's own loss, summed over all paths and answers, against autograd through the objective."""
    errors, split = {1: 0.0, 2: 0.0, 3: 0.0}, 0.0
    for K in errors:
        for case in token_cases(trial, (K,)):
            got = surrogate_gradient(case.world, case.paths, GRPO(samples=K, ratio="paper"))
            of_latent, of_answer = case.parts()
            errors[K] = max(errors[K], relative(got, case.truth))
            split = max(split, relative(got, of_answer + of_latent / K))
    return judged_twice(
        as_stated=max(errors.values()) < EXACT,
        strictly=errors[1] < EXACT,
        evidence=f"relative error {errors[1]:.0e} at K = 1, up to {errors[2]:.2f} at K = 2 and {errors[3]:.2f} at "
        f"K = 3; with the latent part of the gradient divided by K it is {split:.0e}",
    )


@claim(
    source="CoT2's official code, sampling_normalization; as a claim [R]",
    origin="here",
    statement="Dividing the latent logits by K, in the sampler and in the ratio, makes GRPO's loss unbiased for the "
    "objective of the policy that samples so, and not for that of the policy without the division.",
    conditions="K of 2 or more; the plain product of the K probabilities; the answer's logits as they are",
    how="exhaustive",
    recorded=HOLDS,
)
def official_ratio_has_its_own_objective(trial: Trial) -> Finding:
    """GRPO's own thought and loss, against autograd through both objectives."""
    own, other = 0.0, math.inf
    for K in (2, 3):
        method = GRPO(samples=K, ratio="official")
        for plain in token_cases(trial, (K,)):
            thought = method.thought(Model(plain.world.model))
            assert isinstance(thought, MultiToken)
            case = Case(plain.world, token_paths(thought, plain.world.vocabulary, plain.world.steps))
            got = surrogate_gradient(case.world, case.paths, method)
            own = max(own, relative(got, case.truth))
            other = min(other, relative(got, plain.truth))
    return judged(
        own < EXACT < other,
        f"relative error at most {own:.0e} for its own objective, at least {other:.3f} for the other",
    )


def square_reward() -> str:
    """Two tokens embedded at 0 and 1, one latent step, and a right answer of probability z squared."""
    table = Table(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    logits_V = torch.tensor([0.0, -math.log(3)], dtype=torch.float64, requires_grad=True)
    alpha_V, thought = F.softmax(logits_V, -1), StraightThrough(MultiToken(1))
    ids_B1 = torch.tensor([[0], [1]])
    state = State(torch.zeros(2, 1, dtype=torch.float64), logits_V.expand(2, 2), table)
    chance_B = thought.embed(state, thought.inner.given(ids_B1))[:, 0] ** 2
    through = torch.autograd.grad((alpha_V.detach() * chance_B).sum(), logits_V, retain_graph=True)[0]
    truth = torch.autograd.grad((alpha_V * chance_B.detach()).sum(), logits_V)[0]
    return (
        f"two tokens at 0 and 1, probabilities {alpha_V[0]:.2f} and {alpha_V[1]:.2f}, success probability z^2: in the "
        f"second logit {through[1]:.4f} on average, the gradient is {truth[1]:.4f}"
    )


@claim(
    source="[R]; Bengio et al. 2013, arXiv 1308.3432, call it biased",
    origin="here",
    statement="Feeding sampled tokens and sending the gradient straight through their mixture gives the gradient of "
    "the expected reward.",
    conditions="what follows the latent is a transformer; it would have to be linear in the latent",
    how="exhaustive",
    recorded=FAILS,
    counterexample=square_reward,
)
def straight_through_is_unbiased(trial: Trial) -> Finding:
    """The mean over all paths of the gradient through the right answer's probability, against the objective's."""
    cases = token_cases(trial)
    means = [straight_through(case.world, case.paths, 1).mean for case in cases]
    errors = [relative(mean, case.truth) for mean, case in zip(means, cases, strict=True)]
    angles = [turned(mean, case.truth) for mean, case in zip(means, cases, strict=True)]
    return judged(
        max(errors) < EXACT,
        f"relative error {min(errors):.2f} to {max(errors):.2f}, sine of the angle up to {max(angles):.2f}, over "
        f"{len(cases)} policies in random worlds",
    )
