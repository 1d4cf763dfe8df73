"""CoLaR: compressed latent reasoning. One latent stands for c tokens of the chain, and c is chosen by a token.

Tan et al. 2025, arXiv 2505.16552, after its published code (its text was not at hand). From a run that writes its chain
and ends it by itself (DiscreteCoT with `ends`), sections 3 and 4 there:

    z_g = sum of E[x_i] over group g / sqrt(n_g)      groups of c tokens from the left; the last has n_g <= c of them
    prompt <xC> z_1 .. z_G <end> answer               c is drawn for every batch, and written as a token
    mu, sigma = head(h)                               at <xC> and every z_g: the next z_g over s_E; E[<end>] at the last
    loss = CE of (a token of group g, <end>, answer) + mean over the width of the latent loss

    soft-mse   (mu - z)^2 + sigma^2 - alpha H(sigma), the expectation of (mu + sigma epsilon - z)^2 in closed form
    nll        (mu - z)^2 / (2 sigma^2) + log sigma + constant

s_E is the standard deviation of the table's entries. The table does not move, so that targets do not either. At
inference the model feeds back s_E mu, or a draw of s_E (mu + sigma epsilon), at least once, until its own next token
would be <end>: that decision takes no slot, and <end> is written behind every row, also one that was cut at the limit.
Reinforcement learning goes on from here: see `colar_rl`.

Letters: B rows, W tokens of the chain before the answer, c tokens of a group, G groups, T steps, D width, V vocabulary.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tinylatent.core.precision import back
from tinylatent.core.seeds import Streams, derive
from tinylatent.engine.plan import Plan, Segment
from tinylatent.engine.thought import Action, State, Thought
from tinylatent.engine.thoughts import GREEDY, Stopping
from tinylatent.methods.discrete import END, THINKING
from tinylatent.models.backbone import Table, set_last_rows
from tinylatent.models.decoder import MAX_WIDTH
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.losses import token_loss
from tinylatent.objectives.method import TABLE, Loss, Method, Model, ParameterGroup, TrainState

Pooling = Literal["sum", "mean"]
"""How a group becomes a vector: "sum" its tokens' sum over the root of their number, "mean" over their number."""
LatentLoss = Literal["soft-mse", "nll"]
Density = Literal["sum", "mean"]
"""Log-density of a vector: "sum" over its width, which is the policy's; "mean", of which the ratio is a d-th root."""
MIN_LOG_STD, MAX_LOG_STD, MAX_SPEED, MAX_LATENTS = -7.0, 2.0, 64, 1024
SPEED, DELIMITER = "speed", "delimiter"  # names of the segments around the latents


# ---------------------------------------------------------------------------------------------------------------------
# Groups, and the losses of a vector


class Groups(NamedTuple):
    """Chains cut into groups of c tokens."""

    ids_BGc: Int[Tensor, "B G c"]
    """Tokens, 0 where a group has fewer."""
    real_BGc: Bool[Tensor, "B G c"]
    """Where there is a token."""

    @property
    def live_BG(self) -> Bool[Tensor, "B G"]:
        """Which groups a row has."""
        return self.real_BGc[..., 0]

    def labels_BG(self, uniform_BG: Float[Tensor, "B G"]) -> Int[Tensor, "B G"]:
        """A token of every group, each of its tokens being as likely."""
        count_BG = self.real_BGc.sum(-1)
        place_BG = back((uniform_BG * count_BG.to(uniform_BG.device)).long(), self.ids_BGc.device)
        return self.ids_BGc.gather(-1, place_BG[..., None]).squeeze(-1)


def grouped(chain_BW: Int[Tensor, "B W"], steps: int | Int[Tensor, " B"], c: int) -> Groups:
    """Every row's first `steps` tokens in groups of c from the left, whatever the other rows are."""
    B, W = chain_BW.shape
    G = -(-W // c)
    place_Gc = torch.arange(G * c, device=chain_BW.device).view(G, c)
    steps_B11 = steps if isinstance(steps, int) else steps[:, None, None]
    real_BGc = (place_Gc < steps_B11).expand(B, -1, -1)
    ids_BGc = F.pad(chain_BW, (0, G * c - W)).reshape(B, G, c).masked_fill(~real_BGc, 0)
    return Groups(ids_BGc, real_BGc)


def pooled(
    tokens: Float[Tensor, "*rows c D"], real: Bool[Tensor, "*rows c"], pooling: Pooling = "sum"
) -> Float[Tensor, "*rows D"]:
    """The vector of a group of token embeddings: the sum of the n real ones over sqrt(n), or their mean."""
    count = real.sum(-1, keepdim=True).clamp(min=1).to(tokens)
    total = tokens.masked_fill(~real[..., None], 0.0).sum(-2)
    return total / (count if pooling == "mean" else count.sqrt())


def soft_mse(
    residual: Float[Tensor, "*rows"], sigma: Float[Tensor, "*rows"] | Float[Tensor, ""], alpha: float
) -> Float[Tensor, "*rows"]:
    """E (residual + sigma epsilon)^2 - alpha H, H the entropy log(2 pi e sigma^2) / 2; least at sqrt(alpha / 2)."""
    return residual**2 + sigma**2 - alpha * (sigma.log() + 0.5 * math.log(2 * math.pi * math.e))


def nll(residual: Float[Tensor, "*rows"], sigma: Float[Tensor, "*rows"] | Float[Tensor, ""]) -> Float[Tensor, "*rows"]:
    """Negative log-density of a normal variate, residual^2 / (2 sigma^2) + log sigma + log(2 pi) / 2."""
    return residual**2 / (2 * sigma**2) + sigma.log() + 0.5 * math.log(2 * math.pi)


def log_density(
    vector: Float[Tensor, "*rows D"],
    mean: Float[Tensor, "*rows D"],
    sigma: Float[Tensor, "*rows D"],
    density: Density = "sum",
) -> Float[Tensor, "*rows"]:
    """Log-density of a vector with independent normal entries, summed over the width; or its mean over the width."""
    each = -nll(vector - mean, sigma)
    return each.sum(-1) if density == "sum" else each.mean(-1)


# ---------------------------------------------------------------------------------------------------------------------
# The thought


class LatentHead(nn.Module):
    """Predicts the next vector from a hidden state, in units in which the table's entries have standard deviation 1.

    Two linear layers with a GELU between them and a norm behind, then mean and logarithm of the standard
    deviation, or the mean alone. The table gives D and the first scale.
    """

    scale: Tensor

    def __init__(self, table: Table, width: int, deterministic: bool, generator: torch.Generator):
        super().__init__()
        D = table.width
        self.first, self.second = _linear(D, width, generator), _linear(width, width, generator)
        self.norm = nn.LayerNorm(width)
        self.mean = _linear(width, D, generator)
        self.log_std = None if deterministic else _linear(width, D, generator)
        self.register_buffer("scale", table.weight.detach().std())

    def forward(
        self, hidden: Float[Tensor, "*rows D"]
    ) -> tuple[Float[Tensor, "*rows D"], Float[Tensor, "*rows D"] | None]:
        """Mean and standard deviation; None for that of a deterministic head."""
        inner = self.norm(self.second(F.gelu(self.first(hidden))))
        if self.log_std is None:
            return self.mean(inner), None
        return self.mean(inner), self.log_std(inner).clamp(MIN_LOG_STD, MAX_LOG_STD).exp()


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with weights uniform in +-1 / sqrt(inputs) and biases of zero."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    nn.init.uniform_(layer.weight, -(inputs**-0.5), inputs**-0.5, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class Gaussian(Thought):
    """A vector drawn from the head's normal distribution, times the table's scale; its mean at temperature 0.

    The temperature is a factor on the standard deviation.
    """

    has_latent = True
    parallel = True

    def __init__(self, head: LatentHead, temperature: float = 1.0, density: Density = "sum"):
        super().__init__()
        self.head, self.density = head, density
        self.temperature = 0.0 if head.log_std is None else temperature
        self.needs_streams = self.temperature > 0

    def sample(self, state: State, streams: Streams | None) -> Action:
        """The vector as it is fed back."""
        mean_BD, sigma_BD = self.head(state.hidden)
        if self.temperature > 0:
            assert streams is not None, "the engine demands streams for sampling thoughts"
            noise_BD = back(streams.normal(mean_BD.shape[-1]), mean_BD.device).to(mean_BD)
            mean_BD = mean_BD + self.temperature * sigma_BD * noise_BD
        return self.given(self.head.scale * mean_BD)

    def given(self, vector: Float[Tensor, "*rows D"]) -> Action:
        """The action with this vector."""
        return Action({"vector": vector})

    def log_prob(self, state: State, action: Action) -> Float[Tensor, "*rows"]:
        """Log-density of the vector over the scale; 0 where the mean is taken."""
        if self.temperature == 0:
            return super().log_prob(state, action)
        mean, sigma = self.head(state.hidden)
        return log_density(action["vector"] / self.head.scale, mean, self.temperature * sigma, self.density)

    def latent(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """The vector."""
        return action["vector"]


def end_logit(logits: Float[Tensor, "*rows V"], end: int) -> Float[Tensor, "*rows"]:
    """log P(end) - log(1 - P(end)) for the softmax of logits."""
    own_V = torch.arange(logits.shape[-1], device=logits.device) == end
    return logits[..., end] - logits.masked_fill(own_V, -torch.inf).logsumexp(-1)


class Ending(Stopping):
    """A thought that stops where the model's next token would be the delimiter, by its own probability of that.

    At temperature 0 where it is more than half. Without `go_on` decisions to go on are left out of the likelihood.
    """

    def __init__(self, inner: Thought, end: int, temperature: float = 1.0, go_on: bool = True):
        super().__init__(inner, nn.Identity(), temperature)
        self.end, self.go_on = end, go_on

    def logit(self, state: State) -> Float[Tensor, "*rows"]:
        """log P(end) - log(1 - P(end))."""
        return end_logit(state.logits, self.end)

    def _scored(self, logit: Tensor, stop: Tensor, state: State, action: Action) -> Float[Tensor, "*rows"]:
        scored = super()._scored(logit, stop, state, action)
        if self.go_on or self.temperature == 0:
            return scored
        return scored - torch.where(stop, torch.zeros_like(logit), F.logsigmoid(-logit))


# ---------------------------------------------------------------------------------------------------------------------
# What both stages of training share


@dataclass(frozen=True)
class Compressing(Method):
    """Thinks in vectors that stand for several tokens of a chain, until it stops; base of CoLaR's two stages.

    Raises ValueError for settings out of range.
    """

    compared = False  # it has a study of its own

    speeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Numbers of tokens c that a vector stands for in training; one is drawn for every batch, but not under rewards."""
    speed: int | None = None
    """c at inference, up to the largest of `speeds`, which it is by default."""
    most: int | None = None
    """Most vectors of a row; by default one more than the longest chain has groups."""
    draws: bool = False
    """Whether inference draws vectors and stops, as in the paper, instead of taking the mean and the likelier."""
    deterministic: bool = False
    """Whether the head predicts the vector alone, without a standard deviation."""
    head: int | None = None
    """Width of the head's layers; the model's by default."""
    frozen: bool = True
    """Whether the embedding table, which is the readout too, stays as it was when training began."""

    def __post_init__(self) -> None:
        if not self.speeds or not all(1 <= c <= MAX_SPEED for c in self.speeds):
            raise ValueError(f"speeds {self.speeds}: expected numbers from 1 to {MAX_SPEED}; try (1, 2, 3, 4, 5)")
        if self.speed is not None and not 1 <= self.speed <= max(self.speeds):
            raise ValueError(f"speed {self.speed}: expected 1 to {max(self.speeds)}, the largest of speeds")
        for name, value, limit in (("most", self.most, MAX_LATENTS), ("head", self.head, MAX_WIDTH)):
            if value is not None and not 1 <= value <= limit:
                raise ValueError(f"{name} {value}: expected 1 to {limit}; leave it out to follow task and model")

    @property
    def tokens_each(self) -> int:
        """c at inference."""
        return max(self.speeds) if self.speed is None else self.speed

    @property
    def extra_tokens(self) -> tuple[str, ...]:
        """The delimiter, then a token for every speed."""
        return (END, *(speed_token(c) for c in range(1, max(self.speeds) + 1)))

    @property
    def extra_steps(self) -> int:
        """The speed's token, the delimiter, and one vector more than the chain has tokens; or the most there may be."""
        return 3 if self.most is None else 3 + self.most

    def parts(self, backbone: Any, generator: torch.Generator) -> nn.ModuleDict:
        """The latent head."""
        return nn.ModuleDict(
            {"head": LatentHead(backbone.table, self.head or backbone.table.width, self.deterministic, generator)}
        )

    def parameter_groups(self, stage: int) -> tuple[ParameterGroup, ...]:
        """The table, frozen."""
        return (ParameterGroup((TABLE,), frozen=True),) if self.frozen else ()

    def thought(self, model: Model, temperature: float) -> Thought:
        """The thought of a vector."""
        return Ending(Gaussian(head_of(model), temperature), self.extra_id(model, END), float(temperature > 0))

    def thinking(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """The speed, vectors until the stop, and the delimiter."""
        temperature = temperature or float(self.draws)
        most = self.most or -(-examples.max_steps // self.tokens_each) + 1
        latents = Segment(self.thought(model, temperature), most, name=THINKING, min_steps=1)
        return self.between(model, examples, latents, self.tokens_each)

    def between(self, model: Model, examples: Examples, latents: Segment, c: int) -> Plan:
        """Vectors with the token of their speed before them and the delimiter behind."""

        def written(token: str, name: str) -> Segment:
            ids_B1 = examples.prompt_BN.new_full((len(examples), 1), self.extra_id(model, token))
            return Segment(GREEDY, 1, GREEDY.given(ids_B1), name)

        return written(speed_token(c), SPEED), latents, written(END, DELIMITER)


def speed_token(c: int) -> str:
    """The token that asks for vectors of c tokens."""
    return f"<x{c}>"


def head_of(model: Model) -> LatentHead:
    """A model's latent head."""
    head = model.parts["head"]
    assert isinstance(head, LatentHead)
    return head


# ---------------------------------------------------------------------------------------------------------------------
# Supervised training


@dataclass(frozen=True)
class CoLaR(Compressing):
    """Learns to think in pooled groups of the chain's tokens, at several speeds; starts from a chain of thought.

    Raises ValueError for settings out of range, and for a likelihood without a standard deviation.
    """

    name = "colar"
    label = "CoLaR"
    colour = "#7a3e9d"
    starts_from = "discrete"

    pooling: Pooling = "sum"
    """How a group becomes a vector: its sum over the root of its size, or its mean."""
    labels: bool = True
    """Whether the model learns to say a token of the next group; without, it learns there that the chain goes on."""
    latent_loss: LatentLoss = "soft-mse"
    """Loss of a vector: a squared error softened by the entropy, or the negative log-likelihood."""
    alpha: float = 1e-6
    """Weight of the entropy in soft-mse, whose best standard deviation is sqrt(alpha / 2)."""
    gold: bool = False
    """Whether inference is given the chain's own vectors (teacher forcing), to measure what they would be worth."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, options in (("pooling", Pooling), ("latent_loss", LatentLoss)):
            if getattr(self, name) not in get_args(options):
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(get_args(options))}")
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha {self.alpha}: expected 0 or more; try 1e-6")
        if self.deterministic and self.latent_loss == "nll":
            raise ValueError("latent_loss nll has no standard deviation with deterministic: take soft-mse")

    @property
    def start_settings(self) -> Mapping[str, Any]:
        """Chains that end by themselves."""
        return {"ends": True}

    @property
    def idle(self) -> Mapping[str, str]:
        """An entropy's weight where there is no entropy."""
        if self.deterministic or self.latent_loss == "nll":
            return {"alpha": "without a standard deviation that soft-mse learns"}
        return {}

    @property
    def decoders(self) -> Mapping[str, Method]:
        """The same weights at every speed, on their own and with the chain's vectors."""
        speeds = range(1, max(self.speeds) + 1)
        own = {f"x{c}": replace(self, speed=c, gold=False) for c in speeds}
        return own | {f"taught x{c}": replace(self, speed=c, gold=True) for c in speeds}

    @torch.no_grad()
    def begin_stage(self, model: Model, stage: int, examples: Examples, state: TrainState) -> None:
        """Measures the table's scale, and lays the tokens of the speeds, its last rows, on an arc of that scale.

        It leads from the first to the last, so that a speed between two that were trained means something.
        """
        table, M = model.backbone.table, max(self.speeds)
        scale = (table.weight if table.added is not None else table.weight[:-M]).std()
        head_of(model).scale.copy_(scale)
        own_MD = table.weight[-M:] if table.added is None else table.added[-M:]
        first_D, last_D = (scale * row / row.std() for row in (own_MD[0], own_MD[-1]))
        rows = []
        for number in range(M):
            angle = 0.5 * math.pi * number / max(1, M - 1)
            row_D = math.cos(angle) * first_D + (math.sin(angle) * last_D if number else 0.0)
            rows.append(scale * row_D / row_D.std())
        set_last_rows(model.backbone, torch.stack(rows))

    def drawn(self, state: TrainState) -> int:
        """The speed of a batch, the same in all its parts."""
        return self.speeds[int(Streams(derive(state.seed, "speed", state.step), 1).uniform() * len(self.speeds))]

    def vectors(self, model: Model, examples: Examples, groups: Groups) -> Float[Tensor, "B G D"]:
        """The vectors of a chain's groups."""
        return pooled(model.backbone.table.rows(groups.ids_BGc), groups.real_BGc, self.pooling)

    def thinking(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """The speed, vectors until the stop, and the delimiter; or the chain's vectors, if they are given."""
        return self.taught(model, examples) if self.gold else super().thinking(model, examples, temperature)

    def taught(self, model: Model, examples: Examples) -> Plan:
        """The same with the chain's vectors given, at the speed of inference."""
        groups = grouped(examples.chain_BT[:, : examples.max_steps], examples.num_steps, self.tokens_each)
        return self.given(model, examples, self.vectors(model, examples, groups), self.tokens_each)

    def given(self, model: Model, examples: Examples, vectors_BGD: Float[Tensor, "B G D"], c: int) -> Plan:
        """The plan with the vectors of groups of c tokens given."""
        thought = Gaussian(head_of(model), temperature=0.0)
        latents = Segment(thought, -(-examples.num_steps // c), thought.given(vectors_BGD), THINKING)
        return self.between(model, examples, latents, c)

    def loss(self, model: Model, batch: Examples, state: TrainState) -> Loss:
        """Cross-entropy of a token of every group, the delimiter and the answer, and the loss of every vector."""
        c, rows, answer_BA, said_BA = self.drawn(state), state.rows or len(batch), batch.answer_BA, batch.answer_mask_BA
        groups = grouped(batch.chain_BT[:, : batch.max_steps], batch.num_steps, c)
        vectors_BGD, G = self.vectors(model, batch, groups), groups.ids_BGc.shape[1]
        trace = self.forced(model, batch, self.given(model, batch, vectors_BGD, c))
        label_BG = groups.labels_BG(state.streams(len(batch), batch.prompt_BN.device).uniform(G))
        end_B1 = label_BG.new_full((len(batch), 1), end := self.extra_id(model, END))
        live_BT = F.pad(groups.live_BG, (0, 1), value=True)
        mask_BT = torch.cat(
            [groups.live_BG & self.labels, end_B1 >= 0, answer_BA >= 0 if said_BA is None else said_BA], 1
        )
        ids_BT = torch.cat([label_BG, end_B1, answer_BA], 1)
        said = token_loss(trace, ids_BT, rows, mask_BT, slice(1, None))  # the first step writes the speed
        if not self.labels:
            said = said + trace.sum_over_logits(
                lambda logits, chosen: (F.softplus(end_logit(logits, end)) * groups.live_BG[chosen]).sum() / rows,
                slice(1, G + 1),
            )
        target_BTD = torch.cat([vectors_BGD, model.backbone.table.rows(end_B1)], 1).detach() / head_of(model).scale
        error_BT = self.error(head_of(model), trace.hidden_BTD[:, 1 : G + 2], target_BTD)
        drawn = error_BT.masked_fill(~live_BT, 0.0).sum() / rows
        share = len(batch) / rows  # metrics are means over the rows of a part, losses a part's share of the whole
        return Loss(said + drawn, {"token_loss": said.detach() / share, "latent_loss": drawn.detach() / share})

    def error(
        self, head: LatentHead, hidden: Float[Tensor, "*rows D"], target: Float[Tensor, "*rows D"]
    ) -> Float[Tensor, "*rows"]:
        """The latent loss of every state, a mean over the width; targets are in the head's units."""
        mean, sigma = head(hidden)
        if sigma is None:
            return ((mean - target) ** 2).mean(-1)
        each = nll(mean - target, sigma) if self.latent_loss == "nll" else soft_mse(mean - target, sigma, self.alpha)
        return each.mean(-1)
