"""LatentR3, first stage: the next input is an attention over the prompt's last hidden states.

Zhang et al. 2025, arXiv 2505.19092, after its published code (its text was not at hand). Behind a prompt x of n tokens
come N latents, made one after another, then the answer y:

    H = hidden states of x after the final norm             (n, D)
    K, V = rope(H Wk + bk), H Wv + bv                       of the prompt alone, padding masked
    q_i = rope(h_i Wq + bq)                                 h_1 the last of H; h_i the hidden state at r_(i-1)
    r_i = softmax(q_i K^T / sqrt(D)) V                      one head, no output projection, residual or norm
    loss = - sum_t log p(y_t | x, r_1 .. r_N, y_<t)         everything is trained

Rotary positions (base 1000) turn the whole width of queries and keys, so that only distances count. r_i is fed as it
is. The published code makes a second pass over x, r and y; a cached rollout that appends r as an input step is the same
function, since the model is causal, and a test says so.

Options replace the attention by the raw hidden state, or by one learned vector: as many forwards without content. One
adds the cross-entropy of the prompt's own next tokens, so that a recommender learns from every item of a history.
Reinforcement learning goes on from here: see `latentr3_rl`.

Letters: B rows = P prompts * G, N slots of the prompt, D width; `*rows` is any number of leading axes.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tinylatent.core.precision import back
from tinylatent.core.seeds import Streams
from tinylatent.engine.plan import Plan, Segment
from tinylatent.engine.thought import Action, State, Thought
from tinylatent.engine.thoughts import HIDDEN, Pause
from tinylatent.methods.colar import log_density
from tinylatent.methods.pause import pause_of
from tinylatent.methods.sasrec import next_token_loss
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import Loss, Method, Model, TrainState

Kind = Literal["attention", "hidden", "constant"]
"""What is fed as a latent: "attention" over the prompt, "hidden" the raw last hidden state, "constant" a learned
vector, the same everywhere."""
BASE = 1000.0
"""Base of the rotary positions in the published code; its paper names none that we know of."""
LATENTS = "latents"
"""Name of the segment of latents."""
MAX_LATENTS = 64

# ---------------------------------------------------------------------------------------------------------------------
# The attention


def rotated(x: Float[Tensor, "*rows D"], position: Int[Tensor, "*#rows"]) -> Float[Tensor, "*rows D"]:
    """x with coordinates i and i + D/2 turned by the angle position / BASE^(2i/D)."""
    D = x.shape[-1]
    speed_D = BASE ** (-torch.arange(0, D, 2, device=x.device, dtype=x.dtype) / D)
    angle = position[..., None].to(x) * speed_D
    cos, sin = angle.cos(), angle.sin()
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class PromptAttention(nn.Module):
    """One head over the prompt's hidden states: three D x D projections with biases, and nothing behind them.

    Args:
        width: D.
        generator: draws the initial values, uniform in +-1 / sqrt(D).

    Raises:
        ValueError: an odd width, which rotary positions cannot halve.
    """

    def __init__(self, width: int, generator: torch.Generator):
        super().__init__()
        if width % 2:
            raise ValueError(
                f"width {width}: expected an even one, whose halves rotary positions turn; try {width + 1}"
            )
        self.query, self.key, self.value = (_linear(width, generator) for _ in range(3))

    def forward(
        self,
        hidden_BD: Float[Tensor, "B D"],
        position_B: Int[Tensor, " B"],
        prompt_PND: Float[Tensor, "P N D"],
        mask_PN: Bool[Tensor, "P N"],
    ) -> Float[Tensor, "B D"]:
        """r of every row, from the hidden state of its last slot.

        Args:
            hidden_BD: hidden states; B / P consecutive rows share a prompt.
            position_B: positions of these slots, the prompt's first token being 0.
            prompt_PND: hidden states of the prompts.
            mask_PN: False on padding.
        """
        dtype, (P, _, D) = hidden_BD.dtype, prompt_PND.shape
        prompt_PND, hidden_BD = prompt_PND.to(self.key.weight), hidden_BD.to(self.key.weight)
        keys_PND = rotated(self.key(prompt_PND), (mask_PN.long().cumsum(1) - 1).clamp(min=0))
        queries_PGD = rotated(self.query(hidden_BD), position_B).view(P, -1, D)
        scores_PGN = (queries_PGD @ keys_PND.mT / D**0.5).masked_fill(~mask_PN[:, None], -torch.inf)
        return (F.softmax(scores_PGN, -1) @ self.value(prompt_PND)).view_as(hidden_BD).to(dtype)


def _linear(width: int, generator: torch.Generator) -> nn.Linear:
    """A square linear layer with weights and biases uniform in +-1 / sqrt(width), torch's own default."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, width, width)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -(width**-0.5), width**-0.5, generator=generator)
    return layer


# ---------------------------------------------------------------------------------------------------------------------
# The thought


def policy_density(
    vector: Float[Tensor, "*rows D"], mean: Float[Tensor, "*rows D"], std: Float[Tensor, "*#rows 1"]
) -> Float[Tensor, "*rows"]:
    """log N(vector; mean, std^2 I), summed over the width."""
    return log_density(vector, mean, std.expand_as(vector))


class Attention(Thought):
    """r, or r with normal noise; a group's first rollout has none.

    The action holds the vector as it is fed and, with noise, the noise itself and its standard deviation, which is a
    constant to every gradient.

    Args:
        part: the projections.
        sigma: standard deviation of the noise, as a multiple of the root mean square of r.
        absolute: whether sigma is the standard deviation itself.
        renewed: whether an action is fed as r of now with the action's old noise, whose gradient is that of r, instead
            of the action's old vector.
    """

    has_latent = True
    reads_history = True

    def __init__(self, part: PromptAttention, sigma: float = 0.0, absolute: bool = False, renewed: bool = False):
        super().__init__()
        self.part, self.sigma, self.absolute, self.renewed = part, sigma, absolute, renewed
        self.needs_streams = sigma > 0

    def mean(self, state: State) -> Float[Tensor, "B D"]:
        """r, from what the rows have read."""
        assert state.history is not None, "the engine gives its history to a thought that reads it"
        history = state.history()
        hidden_BND, mask_BN = history.prompt
        last_B = history.mask_BS.sum(1) - 1
        return self.part(state.hidden, last_B, hidden_BND[:: state.group], mask_BN[:: state.group])

    def sample(self, state: State, streams: Streams | None) -> Action:
        """r, with noise in all places of a group but the first."""
        mean_BD = self.mean(state)
        if not self.needs_streams:
            return Action({"vector": mean_BD})
        assert streams is not None, "the engine demands streams for sampling thoughts"
        noise_BD = back(streams.normal(mean_BD.shape[-1]), mean_BD.device).to(mean_BD)
        size_B1 = mean_BD.detach().square().mean(-1, keepdim=True).sqrt()
        std_B1 = self.sigma * (torch.ones_like(size_B1) if self.absolute else size_B1)
        epsilon_BD = std_B1 * noise_BD.masked_fill(self._quiet(state)[:, None], 0.0)
        return Action({"vector": mean_BD + epsilon_BD, "epsilon": epsilon_BD, "std": std_B1})

    def _quiet(self, state: State) -> Bool[Tensor, " B"]:
        """Which rows are the first of their group."""
        return state.index_in_group_B == 0

    def log_prob(self, state: State, action: Action) -> Float[Tensor, " B"]:
        """Normal log-density of the vector around r; 0 where no noise is added.

        Renewed, the vector moves with r, so that its density is that of the noise.
        """
        if "epsilon" not in action.values:
            return super().log_prob(state, action)
        std_B1 = action["std"]
        if self.renewed:
            density_B = policy_density(action["epsilon"], torch.zeros_like(action["epsilon"]), std_B1)
        else:
            density_B = policy_density(action["vector"], self.mean(state), std_B1)
        return density_B.masked_fill(self._quiet(state), 0.0)

    def latent(self, state: State, action: Action) -> Float[Tensor, "B D"]:
        """The vector; renewed, r of now with the action's noise."""
        if not self.renewed:
            return action["vector"]
        mean_BD = self.mean(state)
        return mean_BD + action["epsilon"] if "epsilon" in action.values else mean_BD


# ---------------------------------------------------------------------------------------------------------------------
# What both stages share


def attention_of(model: Model) -> PromptAttention:
    """A model's projections."""
    part = model.parts["attention"]
    assert isinstance(part, PromptAttention)
    return part


def latent_steps(examples: Examples, latents: int) -> int | Int[Tensor, " B"]:
    """How many latents every row has: none where the chain has no step before the answer, as with every method."""
    return latents * (examples.num_steps > 0)


def check_latents(latents: int) -> None:
    """Raises ValueError for a number of latents out of range."""
    if not 1 <= latents <= MAX_LATENTS:
        raise ValueError(f"latents {latents}: expected 1 to {MAX_LATENTS}; try 1, the paper's best")


# ---------------------------------------------------------------------------------------------------------------------
# The supervised stage


@dataclass(frozen=True)
class LatentR3(Method):
    """Learns to answer behind latents that attend to the prompt; the answer alone is taught.

    Raises ValueError for settings out of range.
    """

    name = "latentr3"
    label = "LatentR3"
    colour = "#b0603a"
    compared = False  # it has a study of its own

    latents: int = 1
    """N, latents of a problem, made one after another."""
    thought: Kind = "attention"
    """What is fed as a latent: attention over the prompt, the last hidden state, or a learned vector."""
    teach_prompt: bool = False
    """Whether the prompt's own tokens are taught beside the answer, as `sasrec` does; a forward more a step."""

    def __post_init__(self) -> None:
        check_latents(self.latents)
        if self.thought not in get_args(Kind):
            raise ValueError(f"thought {self.thought!r}: expected one of {', '.join(get_args(Kind))}")

    def parts(self, backbone: Any, generator: torch.Generator) -> nn.ModuleDict:
        """The projections, or the learned vector."""
        if self.thought == "attention":
            return nn.ModuleDict({"attention": PromptAttention(backbone.table.width, generator)})
        return nn.ModuleDict({"pause": Pause(backbone.table.width, generator)} if self.thought == "constant" else {})

    @property
    def extra_steps(self) -> int:
        """All latents: a chain may have fewer steps than they are."""
        return self.latents

    def thinking(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """N latents."""
        made: dict[str, Any] = {"hidden": lambda: HIDDEN, "constant": lambda: pause_of(model)}
        thought = made[self.thought]() if self.thought in made else Attention(attention_of(model))
        return (Segment(thought, latent_steps(examples, self.latents), name=LATENTS),)

    def taught(self, model: Model, examples: Examples) -> Plan | None:
        """Learned vectors given, so that one forward runs them; other latents are the model's own."""
        if self.thought != "constant":
            return None
        pause = pause_of(model)
        given = pause.given((len(examples), self.latents), examples.prompt_BN.device)
        return (Segment(pause, latent_steps(examples, self.latents), given, LATENTS),)

    @property
    def forwards(self) -> int:
        """Cost of training on a prompt, in forwards: three, and as many again for the prompt's own tokens."""
        return super().forwards * (1 + self.teach_prompt)

    def loss(self, model: Model, batch: Any, state: TrainState) -> Loss:
        """The cross-entropy of the answer behind its latents, and of the prompt's next tokens where they are taught."""
        answers = super().loss(model, batch, state)
        if not self.teach_prompt:
            return answers
        return Loss(answers.value + next_token_loss(model, batch, state.rows, answers=False), answers.metrics)
