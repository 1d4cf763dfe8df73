"""LatentSeek: test-time search over the hidden states of a frozen model (Li et al. 2025, arXiv 2505.13308).

The hidden states that emitted the first N = floor(rho T) of T written tokens become free vectors z, read by the frozen
head W, each position alone; the blocks never see them. Each round (sections 3.1 and 3.2, equations 3 to 8)

    1. scores the current answer:      R in [-1, 0], the verifier's verdict minus 1
    2. stops if                        R > threshold
    3. follows the score of its prefix z_t <- z_t + rate R (W[x_t] - sum_v p_v W[v]),   p = softmax(W z_t)     eq. 5, 7
    4. reads the next prefix           x_t = argmax (W z_t), or sampled,  all positions at once
    5. tells the model these tokens, and lets it write the rest greedily

Two modes. "sampled" (algorithm 1) draws M prefixes from softmax(W z / temperature) and is a policy gradient: its mean
step is the gradient of the expected reward (eq. 7). "argmax", which the released code runs, is NO policy gradient: it
scores the most likely prefix alone. As rewards are never positive, it walks away from whatever was just rejected, a
taboo search in the space of the head; under a constant reward, whose gradient is 0, it moves all the same.

Where this differs from the released code: z and Adam's moments are float32 or better (in bfloat16 a step of 0.03 is
lost on numbers from 8 on); a delimiter within the prefix ends the chain; positions lie before the answer; the last
answer is returned by default, as there, but the best and the first accepted can be (`select`).

Letters: B rows, M sampled prefixes, N positions, D width, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinylatent.core.seeds import Streams
from tinylatent.engine.distributions import categorical
from tinylatent.engine.thought import State
from tinylatent.engine.thoughts import GREEDY, Token
from tinylatent.methods.searching import Asked, Prefixed, read
from tinylatent.objectives.method import Model

Mode = Literal["argmax", "sampled"]
Baseline = Literal["none", "mean", "loo"]
Optimizer = Literal["adam", "sgd"]
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Adam's, as released: torch's defaults."""
Read = Callable[[Tensor], State]


def score(
    read: Read,
    z_BND: Float[Tensor, "B N D"],
    ids_BMN: Int[Tensor, "B M N"],
    weight_BMN: Float[Tensor, "B M N"],
    temperature: float = 1.0,
) -> Float[Tensor, "B N D"]:
    """The gradient in z of sum_m weight_m log softmax(W z / temperature)[ids_m]; no weight of the model has one.

    With one prefix of weight 1 it is W[x_t] - sum_v p_v W[v] at every position (eq. 7).

    read: what the head makes of latents.
    """
    with torch.enable_grad():
        z = z_BND.detach().requires_grad_()
        state, thought = read(z), Token(temperature)
        hidden_BMND, logits_BMNV = (x[:, None].expand(*ids_BMN.shape, -1) for x in (state.hidden, state.logits))
        log_p_BMN = thought.log_prob(State(hidden_BMND, logits_BMNV, state.table), thought.given(ids_BMN))
        total = (weight_BMN * log_p_BMN).sum()
        return torch.autograd.grad(total, z)[0]


def advantages(reward_BM: Float[Tensor, "B M"], baseline: Baseline) -> Float[Tensor, "B M"]:
    """Rewards less the baseline: nothing, the mean of the M rewards, or the mean of the others (leave-one-out)."""
    if baseline == "none":
        return reward_BM
    mean_B1, M = reward_BM.mean(1, keepdim=True), reward_BM.shape[1]
    return (reward_BM - mean_B1) * (M / (M - 1) if baseline == "loo" else 1.0)


def ascent(
    read: Read,
    z_BND: Float[Tensor, "B N D"],
    ids_BMN: Int[Tensor, "B M N"],
    reward_BM: Float[Tensor, "B M"],
    free_BN: Bool[Tensor, "B N"] | None = None,
    baseline: Baseline = "none",
    temperature: float = 1.0,
) -> Float[Tensor, "B N D"]:
    """The direction in which z moves: the mean over prefixes of advantage times score (eq. 7); 0 where not free.

    With prefixes drawn at this temperature its mean is the gradient of the expected reward; with baseline "mean" it is
    that times 1 - 1/M. With the most likely prefix alone it is the step of mode "argmax".
    """
    weight_BMN = advantages(reward_BM, baseline)[..., None].expand(ids_BMN.shape) / ids_BMN.shape[1]
    if free_BN is not None:
        weight_BMN = weight_BMN * free_BN[:, None]
    return score(read, z_BND, ids_BMN, weight_BMN, temperature)


def advanced(
    z: Float[Tensor, "*rows D"],
    ascent: Float[Tensor, "*rows D"],
    moments: dict[str, Tensor],
    step: int,
    rate: float,
    optimizer: Optimizer = "adam",
) -> Float[Tensor, "*rows D"]:
    """Latents after a step along an ascent: plain ("sgd", eq. 5), or Adam's, as the released code takes.

    Adam treats every number by itself, so that a question's step is the one that it would have alone.

    Args:
        z, ascent: the latents and the direction.
        moments: Adam's, changed in place; empty at first.
        step: steps taken before.
        rate: learning rate.
        optimizer: which.
    """
    if optimizer == "sgd":
        return z + rate * ascent
    first, second = BETAS
    zero = torch.zeros_like(ascent)
    moments["first"] = first * moments.get("first", zero) + (1 - first) * ascent
    moments["second"] = second * moments.get("second", zero) + (1 - second) * ascent**2
    size = (moments["second"] / (1 - second ** (step + 1))).sqrt() + EPSILON
    return z + rate / (1 - first ** (step + 1)) * moments["first"] / size


@dataclass(frozen=True)
class LatentSeek(Prefixed):
    """Steps on the hidden states of the first tokens, against what was rejected; mode "argmax" is no policy gradient.

    Raises ValueError for settings out of range or unknown, and for a baseline of a single sample.
    """

    name = "latentseek"
    label = "LatentSeek"
    colour = "#7b5ea7"

    rate: float = 0.03
    """Learning rate of the latents; at 0 mode sampled proposes random prefixes, always of the same probabilities."""
    mode: Mode = "argmax"
    """How a prefix is read from the latents: the most likely tokens (as released; NO policy gradient), or sampled."""
    samples: int = 1
    """M, prefixes sampled in a round."""
    baseline: Baseline = "none"
    """What is subtracted from rewards: nothing, the mean of the M rewards, or that of the others (leave-one-out)."""
    temperature: float = 1.0
    """Temperature of sampled prefixes, and of their score."""
    optimizer: Optimizer = "adam"
    """Adam, afresh for every question (as released), or plain steps."""
    guided: bool = True
    """Whether steps follow the verifier's rewards; otherwise a constant one of -1, and the verifier only stops the
    search and selects its answer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, options in (("mode", Mode), ("baseline", Baseline), ("optimizer", Optimizer)):
            if getattr(self, name) not in get_args(options):
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(get_args(options))}")
        if not 0 <= self.rate < math.inf:
            raise ValueError(f"rate {self.rate}: expected 0 or more; try 0.03")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature {self.temperature}: expected more than 0; try 1.0")
        if self.samples < 1 or (self.mode == "argmax" and self.samples > 1):
            raise ValueError(f"samples {self.samples} in mode {self.mode}: expected 1, or more in mode sampled")
        if self.baseline != "none" and self.samples == 1:
            raise ValueError(f"baseline {self.baseline} of 1 sample: expected samples of at least 2, or baseline none")

    @property
    def idle(self) -> Mapping[str, str]:
        """Nothing is sampled in mode argmax; at rate 0 no step is taken."""
        unsampled = ("samples", "baseline", "temperature") if self.mode == "argmax" else ()
        still = () if self.rate else ("baseline", "optimizer", "guided")
        return {**super().idle, **dict.fromkeys(still, "at rate 0"), **dict.fromkeys(unsampled, "in mode argmax")}

    @property
    def head_uses(self) -> int:
        """Prefixes are read; the score, where steps are taken, is one more pass forward and one back."""
        return 3 if self.rate else 1

    @property
    def draws(self) -> bool:
        """Whether prefixes are sampled."""
        return self.mode == "sampled"

    @property
    def proposals(self) -> int:
        """M."""
        return self.samples

    @torch.no_grad()
    def propose(self, model: Model, asked: Asked, round: int, streams: Streams | None) -> Int[Tensor, "B M N"]:
        """A step on the latents, then the prefixes that are read from them.

        The greedy prefix was not sampled, so mode sampled begins to learn with its own first samples.
        """
        readout, own, sampled = partial(read, model.backbone), asked.own, self.mode == "sampled"
        z_BND, step = own.get("z", asked.hidden_BND), round - sampled
        if step >= 0 and self.rate:
            temperature = self.temperature if sampled else 1.0
            reward_BM = asked.reward_BM.to(z_BND) if self.guided else z_BND.new_full(asked.reward_BM.shape, -1.0)
            step_BND = ascent(readout, z_BND, asked.ids_BMN, reward_BM, asked.free_BN, self.baseline, temperature)
            z_BND = advanced(z_BND, step_BND, own, step, self.rate, self.optimizer)
        own["z"] = z_BND
        state = readout(z_BND)
        if not sampled:
            return GREEDY.sample(state, None)["id"][:, None]
        assert streams is not None, "solve demands streams for searches that draw"
        found = []
        for place, logits_BV in enumerate(state.logits.unbind(1)):
            streams.at(place)
            found.append(categorical(streams, logits_BV, self.samples, self.temperature)[0])
        return torch.stack(found, 2)
