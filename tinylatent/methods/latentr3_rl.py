"""LatentR3's second stage: noise on the latent of LatentR3 (`latentr3`), rewarded by how likely it makes the answer.

Zhang et al. 2025, arXiv 2505.19092, after its published code (its text was not at hand). Nothing is decoded. The
backbone is frozen; the attention's projections learn. A group of K rollouts of one prompt shares x and y:

    r_k = r + eps_k, eps_k ~ N(0, (sigma RMS(r))^2 I), eps_0 = 0          `absolute`: N(0, sigma^2 I)
    s_k = -exp(-l_k), l_k = (1/|y|) sum_t log p(y_t | x, r_k, y_<t)       minus the perplexity; `rewarded` nll: l_k
    b = mean over the batch's prompts of s_0                              `baseline` group: the mean of a group
    A = (s - b) / (|s - b| + 1e-6), the norm over the batch               `scale` std: the standard deviation; none

The action is the vector, but the published surrogate differentiates the likelihood of the answer, which is always
right, weighted by an advantage that may be negative. It is neither the score function nor the gradient of the reward.
Both are here, and the likelihood without advantages; `estimator` chooses what is maximised, a mean over rollouts:

    surrogate    A_k (1/|y|) sum_t log p(y_t | x, r + eps_k, y_<t), as a clipped ratio to the policy that drew
    score        A_k log N(r_k; r, std_k), the vector a constant (Williams 1992); also as a clipped ratio
    pathwise     s_k itself
    likelihood   l_k: the first stage's loss with noise
    plain        l_0: the first stage's loss for the projections alone, one rollout a prompt

With one update a batch the ratio is 1 and never clipped. With several latents each has noise of its own.

Letters: P prompts, K rollouts of a group, B rows = P * K, A answer tokens, T steps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tinylatent.engine.plan import ANSWER, Plan, Segment
from tinylatent.engine.rollout import Runner, rollout
from tinylatent.engine.thoughts import GREEDY
from tinylatent.engine.trace import Trace
from tinylatent.methods.latentr3 import LATENTS, Attention, PromptAttention, attention_of, check_latents, latent_steps
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import Loss, Model, ParameterGroup, TrainState
from tinylatent.objectives.policy_gradient import (
    PolicyGradient,
    Rollouts,
    advantages,
    averaged,
    clipped,
    frac_reward_zero_std,
)

Estimator = Literal["surrogate", "score", "pathwise", "likelihood", "plain"]
"""What is maximised: see the table above."""
Rewarded = Literal["perplexity", "nll"]
"""The reward: minus the perplexity of the right answer, or minus its mean negative log-likelihood over its tokens."""
Baseline = Literal["batch", "group"]
"""What rewards are compared with: "batch" the mean over prompts of rewards without noise, "group" the group's mean."""
Scale = Literal["norm", "std", "none"]
"""What differences are divided by: their norm over the batch, their standard deviation over it, or nothing."""
RATED: tuple[Estimator, ...] = ("surrogate", "score")
"""Estimators that weigh rollouts by advantages."""
EPSILON = 1e-6
MAX_SIGMA = 100.0

# ---------------------------------------------------------------------------------------------------------------------
# Rewards and advantages


def mean_log_prob(
    log_prob: Float[Tensor, "*rows A"], said: Bool[Tensor, "*#rows A"] | None = None
) -> Float[Tensor, "*rows"]:
    """l, the mean over an answer's tokens of their log-probabilities; `said` is False beyond its end."""
    if said is None:
        return log_prob.mean(-1)
    return log_prob.masked_fill(~said, 0.0).sum(-1) / said.sum(-1)


def perplexity_reward(
    log_prob: Float[Tensor, "*rows A"], said: Bool[Tensor, "*#rows A"] | None = None
) -> Float[Tensor, "*rows"]:
    """s = -exp(-l): minus the perplexity of the right answer, at most -1."""
    return -(-mean_log_prob(log_prob, said)).exp()


def batch_baseline(reward_PK: Float[Tensor, "P K"]) -> Float[Tensor, ""]:
    """b: the mean over prompts of the reward without noise, each group's first."""
    return reward_PK[:, 0].mean()


def compared(
    reward_PK: Float[Tensor, "P K"],
    baseline: Baseline = "batch",
    scale: Scale = "norm",
    gather: Callable[[Tensor], Tensor] = lambda x: x,
) -> Float[Tensor, "P K"]:
    """The advantage of every rollout.

    Args:
        reward_PK: rewards of this process, without noise in each group's first place.
        baseline, scale: see `Baseline` and `Scale`.
        gather: maps rows of this process to those of all, for what is taken over the whole batch.
    """
    if baseline == "batch":
        centred_PK = reward_PK - batch_baseline(gather(reward_PK))
    else:
        centred_PK = advantages(reward_PK.flatten(), reward_PK.shape[1], "mean").view_as(reward_PK)
    if scale == "none":
        return centred_PK
    whole_PK = gather(centred_PK)
    return centred_PK / ((whole_PK.norm() if scale == "norm" else whole_PK.std()) + EPSILON)


def one_signed(advantage_PK: Float[Tensor, "P K"]) -> Float[Tensor, " P"]:
    """1 for prompts all of whose advantages have one sign, otherwise 0."""
    return ((advantage_PK > 0).all(1) | (advantage_PK < 0).all(1)).to(advantage_PK)


# ---------------------------------------------------------------------------------------------------------------------
# The method


@dataclass(frozen=True)
class LatentR3RL(PolicyGradient):
    """Learns where to look from how likely noisy latents make the right answer; starts from LatentR3.

    Raises ValueError for settings out of range.
    """

    name = "latentr3-rl"
    label = "LatentR3, RL"
    starts_from = "latentr3"
    inherits = ("backbone", "parts.attention")
    compared = False  # it has a study of its own
    recipe = MappingProxyType({"steps": 1000, "learning_rate": 1e-4, "weight_decay": 0.0})

    clip: float = 0.2
    """Clips the probability ratio to 1 - clip .. 1 + clip."""
    latents: int = 1
    """N, latents of a problem, made one after another."""
    sigma: float = 0.3
    """Standard deviation of the noise, as a multiple of the root mean square of the latent; 0 for none."""
    absolute: bool = False
    """Whether sigma is the standard deviation itself, as in the published code (1.5 there)."""
    estimator: Estimator = "surrogate"
    """What is maximised: surrogate, score, pathwise, likelihood or plain."""
    rewarded: Rewarded = "perplexity"
    """The reward of a rollout: minus the perplexity of the right answer, or minus its mean negative log-likelihood."""
    baseline: Baseline = "batch"
    """What rewards are compared with: the mean of the batch's rewards without noise, or the group's mean."""
    scale: Scale = "norm"
    """What the differences are divided by: their norm over the batch, their standard deviation over it, or nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_latents(self.latents)
        if not 0 <= self.sigma <= MAX_SIGMA:
            raise ValueError(f"sigma {self.sigma}: expected 0 to {MAX_SIGMA:g}; try 0.3")
        if self.kl:
            raise ValueError(
                f"kl {self.kl}: expected 0, since the same latent has the same answers in a frozen backbone"
            )
        for name, options in (
            ("estimator", Estimator),
            ("rewarded", Rewarded),
            ("baseline", Baseline),
            ("scale", Scale),
        ):
            if getattr(self, name) not in get_args(options):
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(get_args(options))}")

    @property
    def idle(self) -> Mapping[str, str]:
        """What one update makes idle, what this method has settings of its own for, and what an estimator ignores."""
        found = dict(super().idle)
        found |= {"advantage": "beside baseline and scale", "average": "beside estimator"}
        found |= {"temperature": "without sampled tokens", "patience": "with rewards that are never equal"}
        why = f"with estimator {self.estimator}"
        if self.estimator not in RATED:
            found |= dict.fromkeys(("baseline", "scale", "signal", "clip"), f"{why}, which has no advantages")
        if self.estimator in ("likelihood", "plain"):
            found["rewarded"] = f"{why}, which is no function of it"
        if self.estimator == "plain":
            found |= dict.fromkeys(("group", "sigma", "absolute"), f"{why}, which has no noise")
        elif self.sigma == 0:
            found["absolute"] = "without noise"
        return found

    @property
    def start_settings(self) -> Mapping[str, Any]:
        """As many latents."""
        return {"latents": self.latents}

    @property
    def across_prompts(self) -> bool:
        """Whether a row's loss depends on the other prompts of its batch, through advantages."""
        return self.estimator in RATED and (self.baseline == "batch" or self.scale != "none")

    # -----------------------------------------------------------------------------------------------------------------
    # What it learns

    @property
    def extra_steps(self) -> int:
        """All latents: a chain may have fewer steps than they are."""
        return self.latents

    def parts(self, backbone: Any, generator: torch.Generator) -> nn.ModuleDict:
        """The projections."""
        return nn.ModuleDict({"attention": PromptAttention(backbone.table.width, generator)})

    def parameter_groups(self, stage: int) -> tuple[ParameterGroup, ...]:
        """The backbone, frozen: the projections alone are trained."""
        return (ParameterGroup(("backbone",), frozen=True),)

    @property
    def rollouts(self) -> int:
        """Rollouts of a prompt: the group, or one where they would all be equal."""
        return 1 if self.estimator == "plain" else self.group

    @property
    def forwards(self) -> int:
        """Cost of training on a prompt, in forwards, as if every rollout read the prompt; a group reads it once."""
        return self.rollouts * (1 + 3 * self.updates)

    def thinking(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """N latents without noise."""
        return (Segment(Attention(attention_of(model)), latent_steps(examples, self.latents), name=LATENTS),)

    # -----------------------------------------------------------------------------------------------------------------
    # Rollouts

    def told(self, model: Model, examples: Examples) -> Plan:
        """Noisy latents, then the right answer."""
        sigma = 0.0 if self.estimator == "plain" else self.sigma
        noisy = Attention(attention_of(model), sigma, self.absolute)
        answer = Segment(GREEDY, examples.answer_tokens, GREEDY.given(examples.answer_BA), ANSWER)
        return Segment(noisy, latent_steps(examples, self.latents), name=LATENTS), answer

    def _collect(self, model: Model, examples: Examples, state: TrainState) -> Rollouts:
        K = self.rollouts
        trace = rollout(
            model.backbone,
            self.told(model, examples),
            examples.prompt_BN,
            examples.prompt_mask_BN,
            streams=state.streams(len(examples) * K, examples.prompt_BN.device, per_example=K),
            offset_B=examples.offset_B,
            group=K,
        )
        reward_PK = self.reward(model, examples, trace, state).view(-1, K)
        advantage_PK = self._advantages(reward_PK, state)
        metrics = {
            "reward": reward_PK.mean(),
            "quiet_reward": reward_PK[:, 0].mean(),
            "frac_reward_zero_std": frac_reward_zero_std((reward_PK - reward_PK[:, :1]).flatten(), K),
            "one_signed": one_signed(advantage_PK).mean(),
        }
        denominator = len(state.gather(advantage_PK.flatten()))
        return Rollouts(examples, replace(trace, end=None), advantage_PK.flatten(), denominator, metrics)

    def _advantages(self, reward_PK: Float[Tensor, "P K"], state: TrainState) -> Float[Tensor, "P K"]:
        """Advantages of the rewards, or of what the signal puts in their place; 0 where the estimator has none."""
        if self.estimator not in RATED or self.signal == "none":
            return torch.zeros_like(reward_PK)
        if self.signal == "permuted":
            reward_PK = reward_PK.gather(1, self._order(len(reward_PK), state).to(reward_PK.device))
        return compared(reward_PK, self.baseline, self.scale, state.gather)

    def reward(self, model: Model, examples: Examples, trace: Trace, state: TrainState) -> Float[Tensor, " B"]:
        """The reward of every rollout, from the probability of the right answer; no verifier is asked."""
        return self.rewards(*answer_of(trace, examples))

    def rewards(
        self, log_prob_BA: Float[Tensor, "B A"], said_BA: Bool[Tensor, "B A"] | None = None
    ) -> Float[Tensor, " B"]:
        """Rewards of answers with these log-probabilities, which keep their graph; `said_BA` is False beyond an end."""
        reward = perplexity_reward if self.rewarded == "perplexity" else mean_log_prob
        return reward(log_prob_BA, said_BA)

    # -----------------------------------------------------------------------------------------------------------------
    # Training

    def again(self, model: Model, batch: Rollouts) -> Trace:
        """The same noise, or for the score the same vectors, under the current weights, with the graph.

        It is a replay in which the rollouts of a group share their prompt.
        """
        examples, trace = batch.examples, batch.trace
        reader = Attention(attention_of(model), self.sigma, self.absolute, renewed=self.estimator != "score")
        prompts = examples.prompt_BN, examples.prompt_mask_BN, examples.offset_B
        run = Runner(model.backbone, *prompts, trace.group, edit=None, read_from=0)
        return run.follow(trace.plan({LATENTS: reader}), None)

    def loss(self, model: Model, batch: Rollouts, state: TrainState) -> Loss:
        """Minus what the estimator maximises, a mean over the rollouts of the whole batch."""
        now = self.again(model, batch)
        log_prob_BA, said_BA = answer_of(now, batch.examples)
        said_B = mean_log_prob(log_prob_BA, said_BA)
        metrics = {**(batch.metrics if state.update == 0 else {}), "answer_nll": -said_B.detach().mean()}
        if self.estimator in RATED:
            value, more = self._rated(now, batch, state, log_prob_BA, said_BA)
            metrics |= more
        else:
            gain_B = self.rewards(log_prob_BA, said_BA) if self.estimator == "pathwise" else said_B
            value = -gain_B.sum() / batch.denominator
        if torch.is_grad_enabled() and not value.requires_grad:  # no row of this part thinks
            value = value + 0.0 * sum(parameter.sum() for parameter in attention_of(model).parameters())
        return Loss(value, metrics)

    def _rated(
        self, now: Trace, batch: Rollouts, state: TrainState, log_prob_BA: Tensor, said_BA: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped ratio, weighted by advantages: of the answer's tokens, or of the vectors."""
        if self.estimator == "surrogate":
            now_BT, mask_BT = log_prob_BA, said_BA
        else:
            now_BT, mask_BT = latents_of(now)
        if state.update == 0:
            batch.old_BT = now_BT.detach()
        assert batch.old_BT is not None, "the first update comes first"
        objective_BT, clipped_BT = clipped(now_BT - batch.old_BT, batch.advantage_B, self.clip)
        over: Any = "sequence" if self.estimator == "surrogate" else "sum"
        value = -averaged(objective_BT, mask_BT, over, batch.denominator)
        return value, {"clip_fraction": averaged(clipped_BT.to(now_BT), mask_BT, "sequence")}

    def after(self, model: Model, batch: Rollouts, state: TrainState) -> Mapping[str, Tensor]:
        """Nothing: at the same latents the frozen backbone has not changed."""
        return {}

    def early_stop(self, lines: Sequence[Mapping[str, Any]], ends: bool) -> str | None:
        """Never: rewards are real numbers, which do not fall silent."""
        return None


def answer_of(trace: Trace, examples: Examples) -> tuple[Float[Tensor, "B A"], Bool[Tensor, "B A"] | None]:
    """Log-probabilities of the answer's tokens in a trace that was told them, and which tokens are part of it."""
    said_BA = examples.answer_mask_BA
    said_BA = None if said_BA is None else said_BA.repeat_interleave(trace.group, 0)
    return trace.log_prob_BT[:, trace.within(trace.span(ANSWER))], said_BA


def latents_of(trace: Trace) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"] | None]:
    """Log-densities of the latents of a trace, and which rows have them."""
    steps = slice(0, trace.within(trace.span(ANSWER)).start)
    return trace.log_prob_BT[:, steps], None if trace.acted_BT is None else trace.acted_BT[:, steps]
