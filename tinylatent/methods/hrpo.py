"""HRPO, hybrid latent reasoning by reinforcement learning (Yue et al. 2025, arXiv 2505.18454).

While it thinks, the model samples tokens, and is fed a gated mix of each token's embedding e with a soft token h, the
embeddings weighted by the distribution that the token was drawn from, coordinate by coordinate:

    h = E^T p / |p|                              with the Euclidean norm of p; keeps the scale of an embedding
    r, i = sigmoid(W e + b)                      two gates that look at the token
    log a = -c softplus(-Lambda) r               c = 8; the printed equation 4 has softplus(+Lambda), the code this
    e' = a e + sqrt(1 - a^2) (i h)               equation 4

Lambda starts so that a = u at r = 1, u uniform between `r_min` and `r_max`: nearly the token alone. The delimiter and
everything after it are plain tokens. Training is on group advantages of a 0/1 reward with one optimizer step per batch,
so that there is no ratio to clip, and a small KL term to the token-only model that training began with. Gates and
Lambda have learning rates of their own.

What only the authors' code does is an option that says so. The code's single temperature for tokens and soft tokens is
`temperature` .5 beside `soft_temperature` .5.

Letters: B rows, T steps, D width, V vocabulary; `*rows` is any number of leading axes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tinylatent.core.seeds import Streams
from tinylatent.engine.controls import CONTROLS
from tinylatent.engine.plan import ANSWER, Plan, Segment
from tinylatent.engine.thought import Action, State, Thought
from tinylatent.engine.thoughts import Token
from tinylatent.engine.trace import Trace
from tinylatent.methods.discrete import END, THINKING, ended, only_ended
from tinylatent.models.backbone import Table
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import Method, Model, ParameterGroup, Solution, TrainState
from tinylatent.objectives.policy_gradient import PolicyGradient, Rollouts

SHARPNESS = 8
"""c of the gate."""
LARGEST_GATE = 0.999999
"""Nearer to 1 Lambda is infinite in float32."""
Latent = Literal["soft", "noise", "shuffled", "zero"]
Gating = Literal["learned", "fixed", "token"]

# ---------------------------------------------------------------------------------------------------------------------
# Equations


def log_gate(openness: Float[Tensor, "*#rows"], r: Float[Tensor, "*#rows"]) -> Float[Tensor, "*#rows"]:
    """log a = -c softplus(-Lambda) r: equation 4 with the sign of the authors' code; a = sigmoid(Lambda)^(c r)."""
    return -SHARPNESS * F.softplus(-openness) * r


def initial_openness(u: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """Lambda = -log(u^(-1/c) - 1), for which a = u at r = 1 (the authors' code)."""
    return -torch.expm1(-u.log() / SHARPNESS).log()


def hidden_ratio(log_a: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """sqrt(1 - a^2), the share of the latent part; exactly 0 at a = 1, where its gradient is set to 0.

    It is taken from log a: 1 - a^2 loses all digits where a rounds to 1.
    """
    square = -torch.expm1(2 * log_a)
    inside = square > 0  # the slope of the root at 0 is infinite, and infinity times zero is not a number
    return torch.where(inside, square, 1.0).sqrt().masked_fill(~inside, 0.0)


def logged_ratio(log_a: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows"]:
    """sqrt(1 - mean(a)^2) over the width: what the authors' code logs, an upper bound of the mean hidden ratio."""
    return (1 - log_a.exp().mean(-1) ** 2).clamp(min=0).sqrt()


def soft_token(p: Float[Tensor, "*rows V"], table: Table) -> Float[Tensor, "*rows D"]:
    """h = E^T p / |p|, with the Euclidean norm (the soft embedding, after equation 3)."""
    return table.mix(p) / p.norm(dim=-1, keepdim=True)


def mixed(
    e: Float[Tensor, "*#rows"], h: Float[Tensor, "*#rows"], log_a: Float[Tensor, "*#rows"], i: Float[Tensor, "*#rows"]
) -> Float[Tensor, "*#rows"]:
    """The hybrid input a e + sqrt(1 - a^2) (i h), coordinate by coordinate (equation 4)."""
    return log_a.exp() * e + hidden_ratio(log_a) * (i * h)


class Gate(nn.Module):
    """The gates a and i of a token, with Lambda (`openness_D`); float32 or better, whatever the backbone computes in.

    Args:
        width: D.
        r_min: least a at the start, at r = 1.
        r_max: largest.
        generator: draws the initial values.
    """

    def __init__(self, width: int, r_min: float, r_max: float, generator: torch.Generator):
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(2 * width, width).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.empty(2 * width).uniform_(-bound, bound, generator=generator))
        u_D = torch.empty(width).uniform_(r_min, r_max, generator=generator)
        self.openness_D = nn.Parameter(initial_openness(u_D))

    def forward(self, e: Float[Tensor, "*rows D"]) -> tuple[Float[Tensor, "*rows D"], Float[Tensor, "*rows D"]]:
        """log a and i for token embeddings."""
        r, i = F.linear(e.to(self.weight), self.weight, self.bias).sigmoid().chunk(2, -1)
        return log_gate(self.openness_D, r), i


# ---------------------------------------------------------------------------------------------------------------------
# Thoughts


class Sampled(Token):
    """A token from the likeliest `top_k`, which may be scored at another temperature than it was drawn at.

    Args:
        temperature: 0 for the most likely token.
        stop_ids: tokens that end a row's segment.
        top_k: tokens that can be drawn, at most; all if None.
        score_temperature: that of `log_prob`, then over all tokens; None for the probability it was drawn with.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        stop_ids: tuple[int, ...] = (),
        top_k: int | None = None,
        score_temperature: float | None = None,
    ):
        super().__init__(temperature, stop_ids)
        self.top_k, self.score_temperature = top_k, score_temperature

    def _logits(self, state: State) -> Float[Tensor, "*rows V"]:
        """The logits, at -inf where a token cannot be drawn."""
        return self._truncated(super()._logits(state))

    def _truncated(self, logits: Tensor, id: Tensor | None = None) -> Float[Tensor, "*rows V"]:
        """The logits with all but the `top_k` largest, and a token that was drawn, at -inf."""
        if self.top_k is None or self.top_k >= logits.shape[-1]:
            return logits
        outside = logits < logits.topk(self.top_k, -1).values[..., -1:]
        if id is not None:  # a replay may round two logits the other way round, and what was drawn can be drawn
            outside = outside.scatter(-1, id[..., None], False)
        return logits.masked_fill(outside, -torch.inf)

    def log_prob(self, state: State, action: Action) -> Float[Tensor, "*rows"]:
        """log softmax(logits / temperature)[id] among what can be drawn; at `score_temperature` among all tokens."""
        logits, id, temperature = Token._logits(self, state), action["id"], self.score_temperature
        if temperature is None:
            logits, temperature = self._truncated(logits, id), self.temperature or 1.0
        return F.log_softmax(logits / temperature, -1).gather(-1, id[..., None]).squeeze(-1)


class Gated(Sampled):
    """A sampled token, fed as the gated mix of its embedding and the soft token; a stop token is fed plain.

    The soft token is part of the action, a constant, so that a replay is one forward in which the gates alone are
    computed anew. With `graph` it is computed from the logits, with their graph, wherever the action is fed: the whole
    gradient, for as many forwards as there are steps.

    Args:
        gate: of the method.
        temperature, stop_ids, top_k, score_temperature: as for Sampled.
        soft_temperature: of the distribution that the soft token is made of; it has the support of the sampler.
        graph: whether gradients flow through the soft token.
    """

    has_latent = True
    mixes_table = True

    def __init__(
        self,
        gate: Gate,
        temperature: float = 0.0,
        stop_ids: tuple[int, ...] = (),
        top_k: int | None = None,
        score_temperature: float | None = None,
        soft_temperature: float = 0.5,
        graph: bool = False,
    ):
        super().__init__(temperature, stop_ids, top_k, score_temperature)
        self.gate, self.soft_temperature, self.graph, self.parallel = gate, soft_temperature, graph, not graph

    def soft(self, state: State) -> Float[Tensor, "*rows D"]:
        """The soft token of a state."""
        return soft_token(F.softmax(self._logits(state) / self.soft_temperature, -1), state.table)

    def sample(self, state: State, streams: Streams | None) -> Action:
        """A token, and the soft token beside it."""
        action = super().sample(state, streams)
        if self.graph:
            return action
        return replace(action, values={**action.values, "soft": self.soft(state).detach()})

    def latent(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """The soft token."""
        return self.soft(state) if self.graph else action["soft"]

    def compose(self, state: State, action: Action, latent: Tensor | None) -> Float[Tensor, "*rows D"]:
        """The hybrid input; the embedding alone for a stop token."""
        assert latent is not None, "a gated thought mixes its token with a latent part"
        e = state.table.rows(action["id"])
        log_a, i = self.gate(e)
        fed = mixed(e, latent, log_a, i).to(e)
        return fed if action.stop is None else torch.where(action.stop[..., None], e, fed)


# ---------------------------------------------------------------------------------------------------------------------
# The method


@dataclass(frozen=True)
class HRPO(PolicyGradient):
    """Learns from rewards to think in tokens mixed with soft tokens; starts from chains that end by themselves.

    Raises ValueError for settings out of range, and for more than one update per batch.
    """

    name = "hrpo"
    label = "HRPO"
    starts_from = "discrete"
    compared = False  # it has a study of its own
    temperatures = (1.0,)
    inherits = ("backbone", "parts.gate")
    recipe = MappingProxyType({"steps": 300, "learning_rate": 1e-3, "weight_decay": 0.1, "warmup": 0.1})

    kl: float = 0.005
    """Weight of the KL divergence from the initial policy on tokens alone, estimated by k3."""
    temperature: float = 1.0
    """Sampling temperature of rollouts in training; evaluation takes the likeliest token."""
    r_min: float = 0.95
    """Least gate a at the start (for r = 1): 1 is the token alone."""
    r_max: float = 0.999
    """Largest gate a at the start (for r = 1)."""
    soft_temperature: float = 0.5
    """Temperature of the distribution that the soft token is made of."""
    score_temperature: float | None = None
    """Temperature of log-probabilities in the loss, over all tokens; None for the distribution that was sampled from.
    The authors' code has 1 whatever it samples from, and the mean score is then not 0."""
    top_k: int | None = None
    """Tokens that can be sampled and mixed, at most; all if None. The authors' code has 50, its library's default."""
    graph: bool = False
    """Whether gradients flow through the soft token into the logits it was made of. The paper says that they could;
    the authors' code stores it as a constant."""
    latent: Latent = "soft"
    """What is mixed into the token: the soft token, or a control in its place, in training and after: noise of its
    norm, the soft token of another problem, or zero."""
    gate: Gating = "learned"
    """Whether gates are learned, fixed at their start, or shut: token is group advantages on tokens alone."""
    gate_rate: float = 20.0
    """Learning rate of the gates' weights, as a multiple of the recipe's."""
    gate_decay: float | None = None
    """Weight decay of the gates' weights; None for the recipe's."""
    openness_rate: float = 200.0
    """Learning rate of Lambda, as a multiple of the recipe's."""
    openness_decay: float = 0.1
    """Weight decay of Lambda: it alone raises the hidden ratio."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.updates != 1:
            raise ValueError(
                f"updates {self.updates}: expected 1, since HRPO's loss has no probability ratio; leave it out"
            )
        if not 0 < self.r_min <= self.r_max <= LARGEST_GATE:
            raise ValueError(
                f"r_min {self.r_min}, r_max {self.r_max}: expected 0 < r_min <= r_max <= {LARGEST_GATE}; try .95, .999"
            )
        for name in ("soft_temperature", "score_temperature"):
            value = getattr(self, name)
            if value is not None and not 0.01 <= value <= 100:
                raise ValueError(f"{name} {value}: expected 0.01 to 100; try 0.5")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k}: expected at least 1 token, or None for all")
        for name, options in (("latent", Latent), ("gate", Gating)):
            if getattr(self, name) not in get_args(options):
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(get_args(options))}")
        if not (0 < self.gate_rate < math.inf and 0 < self.openness_rate < math.inf):
            raise ValueError(
                f"gate_rate {self.gate_rate}, openness_rate {self.openness_rate}: expected positive factors; gate "
                "fixed keeps them still"
            )
        for name in ("gate_decay", "openness_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} {value}: expected 0 or more; try 0.1")

    @property
    def idle(self) -> Mapping[str, str]:
        """The clip, and what the gate or the latent makes idle."""
        found = dict(super().idle)
        rates = ("gate_rate", "gate_decay", "openness_rate", "openness_decay")
        if self.gate == "fixed":
            found |= dict.fromkeys(rates, "with a fixed gate")
        if self.latent == "zero":
            found |= dict.fromkeys(("soft_temperature", "graph"), "with zeros in place of the soft token")
        if self.gate == "token":
            mute = ("r_min", "r_max", "soft_temperature", "graph", "latent", *rates)
            found |= dict.fromkeys(mute, "with gate token, which mixes nothing into tokens")
        return found

    @property
    def start_settings(self) -> Mapping[str, Any]:
        """Chains that end by themselves."""
        return {"ends": True}

    @property
    def decoders(self) -> Mapping[str, Method]:
        """The same weights without soft tokens, and with sharp ones."""
        if self.gate == "token":
            return {}
        return {"tokens": replace(self, gate="token"), "sharp": replace(self, soft_temperature=0.1)}

    # -----------------------------------------------------------------------------------------------------------------
    # What it learns

    @property
    def extra_tokens(self) -> tuple[str, ...]:
        """The delimiter."""
        return (END,)

    @property
    def extra_steps(self) -> int:
        """The delimiter's step."""
        return 1

    def parts(self, backbone: Any, generator: torch.Generator) -> nn.ModuleDict:
        """The gate, which is there in every mode, so that weights of one serve another; trained in one alone."""
        gate = Gate(backbone.table.width, self.r_min, self.r_max, generator)
        return nn.ModuleDict({"gate": gate.requires_grad_(self.gate == "learned")})

    def parameter_groups(self, stage: int) -> tuple[ParameterGroup, ...]:
        """Lambda, and the other weights of the gate, at rates of their own."""
        if self.gate != "learned":
            return ()
        openness = ParameterGroup(
            ("parts.gate.openness_D",), rate_factor=self.openness_rate, weight_decay=self.openness_decay
        )
        gate = ParameterGroup(("parts.gate",), rate_factor=self.gate_rate, weight_decay=self.gate_decay)
        return (openness, gate)

    # -----------------------------------------------------------------------------------------------------------------
    # Inference

    def thought(self, model: Model, temperature: float = 0.0, rows: int = 2) -> Thought:
        """The thought of a step before the answer, for a batch of so many problems."""
        drawn = (temperature, (self.extra_id(model, END),), self.top_k, self.score_temperature)
        if self.gate == "token":
            return Sampled(*drawn)
        gate: Any = model.parts["gate"]
        gated = Gated(gate, *drawn, self.soft_temperature, self.graph)
        if self.latent == "soft" or (self.latent == "shuffled" and rows == 1):  # no other problem to take it from
            return gated
        return CONTROLS[self.latent](gated)

    def thinking(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """Steps until the delimiter, one more than the longest chain at most."""
        thought = self.thought(model, temperature, len(examples))
        return (Segment(thought, examples.max_steps + 1, name=THINKING),)

    def plan(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """Thinking, then an answer in plain tokens, drawn and scored as those before it are."""
        said = Sampled(temperature, examples.stop_ids, self.top_k, self.score_temperature)
        thinking = self.thinking(model, examples, temperature)
        return (*thinking, Segment(said, examples.answer_tokens, name=ANSWER))

    def solve(self, model: Model, examples: Examples, *arguments: Any, **options: Any) -> Solution:
        """Solves every problem with one rollout; a chain that was not ended has no answer."""
        return only_ended(super().solve(model, examples, *arguments, **options))

    # -----------------------------------------------------------------------------------------------------------------
    # Training

    def reference_thought(self) -> Mapping[str, Thought]:
        """The reference reads tokens alone, and scores them among all tokens, so that no divergence is infinite."""
        reader = Token(self.score_temperature or self.temperature)
        return {THINKING: reader, ANSWER: reader}

    def reward(self, model: Model, examples: Examples, trace: Trace, state: TrainState) -> Float[Tensor, " B"]:
        """The verifier's value; 0 without a delimiter."""
        return super().reward(model, examples, trace, state) * ended(trace)

    def _collect(self, model: Model, examples: Examples, state: TrainState) -> Rollouts:
        rollouts = super()._collect(model, examples, state)
        reward_B = self.reward(model, examples, rollouts.trace, state)
        found = self.metrics(model, examples, rollouts.trace, reward_B)
        return replace(rollouts, metrics={**rollouts.metrics, **found})

    @torch.no_grad()
    def metrics(
        self, model: Model, examples: Examples, trace: Trace, reward_B: Float[Tensor, " B"]
    ) -> Mapping[str, Tensor]:
        """What rollouts are like: their steps before the answer, and with a gate the hidden ratio.

        Returns:
            length: mean steps before the answer, the delimiter not counted; right_length: of rewarded rollouts;
            right_excess: the same less the steps of their problems' chains; ended: share of rows with a delimiter;
            hidden_ratio: mean of sqrt(1 - a^2) over coordinates and gated steps; logged_ratio: that of the authors'
            code. NaN where there is nothing to average.
        """
        span = trace.span(THINKING)
        assert span.action.stop is not None, "the delimiter is a stop"
        gated_BT = ~span.action.stop
        if trace.acted_BT is not None:
            gated_BT = gated_BT & trace.acted_BT[:, trace.within(span)]
        length_B, right_B = gated_BT.sum(1).to(reward_B), reward_B > 0
        steps = examples.num_steps
        excess_B = length_B - (steps if isinstance(steps, int) else steps.repeat_interleave(trace.group))
        found = {"length": length_B.mean(), "right_length": length_B[right_B].mean()}
        found |= {"right_excess": excess_B[right_B].mean(), "ended": ended(trace).to(reward_B).mean()}
        if self.gate != "token":
            gate: Any = model.parts["gate"]
            log_a_MD, _ = gate(model.backbone.table.rows(span.action["id"][gated_BT]))
            found |= {"hidden_ratio": hidden_ratio(log_a_MD).mean(), "logged_ratio": logged_ratio(log_a_MD).mean()}
        return found
