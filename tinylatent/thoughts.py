"""Thought: how the next input of the model is made.

A thought is a policy with three functions. `sample` looks at the state and picks an action; `log_prob` says how likely
that action was, the decision to stop or go on included; `embed` turns the action into the next input. Deterministic
thoughts return actions too (Mixture its alpha, Hidden its hidden state), so that an action can always be *given*:
teacher forcing and replay are one path.

    thought      action           next input          log-probability     source
    Token        id               E[id]               log alpha[id]       discrete chain of thought
    Mixture      alpha            E^T alpha           0                   base CoT2, Gozeten et al. 2025, section 2
    MultiToken   K ids            mean of E[id_k]     sum log alpha[id_k] CoT2-MTS, the same paper
    Dirichlet    log a            E^T a               Dirichlet density   CoT2-Dirichlet, the same paper
    Hidden       hidden state     the same            0                   Coconut, Hao et al. 2024
    Pause        nothing          a learned constant  0                   control of equal compute

`embed` and `log_prob` accept any number of leading axes, so a whole segment is embedded at once.

Letters: B rows, T steps, D width, V vocabulary, K samples; `*rows` is B, or B T for a whole segment.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tinylatent.distributions import categorical, dirichlet_log_density, log_concentration, log_dirichlet
from tinylatent.seeds import Streams


@dataclass(frozen=True)
class History:
    """Everything a row has read and thought so far: S slots, waiting ones masked out."""

    inputs_BSD: Float[Tensor, "B S D"]
    hidden_BSD: Float[Tensor, "B S D"]
    mask_BS: Bool[Tensor, "B S"]
    spans: tuple[tuple[str, int, int], ...]
    """(name of what wrote them, first slot, one past the last), the prompt first."""


@dataclass(frozen=True)
class State:
    """What a thought may look at when it acts."""

    hidden: Float[Tensor, "*rows D"]
    """Last hidden state, after the final norm."""
    logits: Float[Tensor, "*rows V"]
    """Its readout."""
    embedding: Float[Tensor, "V D"]
    """The model's input embedding matrix."""
    group_B: Int[Tensor, " B"] | None = None
    """Which prompt each row belongs to."""
    history: Callable[[], History] | None = None
    """Builds the history when called; None where actions are only embedded again."""


@dataclass(frozen=True)
class Action:
    """A small record of tensors with the same leading axes, plus whether the row stops here."""

    values: Mapping[str, Tensor] = field(default_factory=dict)
    stop: Bool[Tensor, "*rows"] | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Action":
        """The same record with every tensor changed."""
        stop = None if self.stop is None else change(self.stop)
        return Action({name: change(value) for name, value in self.values.items()}, stop)

    def step(self, t: int) -> "Action":
        """Step t of an action over (B, T, ...)."""
        return self.map(lambda x: x[:, t])

    def first(self, steps: int) -> "Action":
        """The first steps of an action over (B, T, ...)."""
        return self if all(x.shape[1] == steps for x in self.values.values()) else self.map(lambda x: x[:, :steps])

    @staticmethod
    def stack(actions: "list[Action]") -> "Action":
        """Actions of single steps (B, ...) as one over (B, T, ...)."""
        first = actions[0]
        values = {name: torch.stack([action[name] for action in actions], 1) for name in first.values}
        stops = [action.stop for action in actions if action.stop is not None]
        return Action(values, torch.stack(stops, 1) if len(stops) == len(actions) else None)


class Thought(nn.Module):
    """Base of all thoughts; a subclass gives the three functions.

    Attributes:
        latent: whether the next input carries more than a token (the controls replace those).
        parallel: whether `embed` reads only the action and parameters, so that a segment can be replayed at once.
        needs_streams: whether `sample` draws random numbers.
    """

    latent = False
    parallel = False
    needs_streams = False

    def sample(self, state: State, streams: Streams | None) -> Action:
        """Picks the action of one step, from the state and each row's own stream."""
        raise TypeError(f"{type(self).__name__} does not define sample")

    def log_prob(self, state: State, action: Action) -> Float[Tensor, "*rows"]:
        """Log-probability (or density) of the action; 0 for deterministic thoughts."""
        return torch.zeros_like(state.hidden[..., 0])

    def embed(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """The next input."""
        raise TypeError(f"{type(self).__name__} does not define embed")


class Token(Thought):
    """A discrete token: greedy at temperature 0, otherwise drawn from softmax(logits / temperature).

    Args:
        temperature: 0 for the most likely token.
        stop_ids: tokens that end a row's segment.

    Raises:
        ValueError: negative temperature.
    """

    parallel = True

    def __init__(self, temperature: float = 0.0, stop_ids: tuple[int, ...] = ()):
        super().__init__()
        if temperature < 0:
            raise ValueError(f"temperature {temperature}: expected 0 (greedy) or more; try 1.0")
        self.temperature, self.stop_ids = temperature, stop_ids
        self.needs_streams = temperature > 0

    def sample(self, state: State, streams: Streams | None) -> Action:
        """One token id per row, by inverting the cumulative distribution at the row's uniform."""
        if self.temperature == 0:
            id_B = state.logits.argmax(-1)
        else:
            assert streams is not None, "the engine demands streams for sampling thoughts"
            id_B = categorical(streams, state.logits.double() / self.temperature).squeeze(1)
        return self.given(id_B)

    def given(self, id: Int[Tensor, "*rows"]) -> Action:
        """The action that says these tokens."""
        stop = torch.isin(id, torch.tensor(self.stop_ids, device=id.device)) if self.stop_ids else None
        return Action({"id": id}, stop)

    def log_prob(self, state: State, action: Action) -> Float[Tensor, "*rows"]:
        """log softmax(logits / temperature)[id]; at temperature 0 that of temperature 1 (greedy is a limit)."""
        scaled = state.logits / (self.temperature or 1.0)
        return F.log_softmax(scaled, -1).gather(-1, action["id"][..., None]).squeeze(-1)

    def embed(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """E[id]."""
        return F.embedding(action["id"], state.embedding)


GREEDY = Token()
"""The greedy token: it has no parameters, so one serves everybody."""


class Mixture(Thought):
    """Base CoT2: the whole softmax output as a superposition of tokens, z = E^T alpha (Gozeten et al., section 2)."""

    latent = True
    parallel = True

    def sample(self, state: State, streams: Streams | None) -> Action:
        """alpha = softmax(logits)."""
        return self.given(F.softmax(state.logits, dim=-1))

    def given(self, alpha: Float[Tensor, "*rows V"]) -> Action:
        """The action that thinks this distribution."""
        return Action({"alpha": alpha})

    def embed(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """E^T alpha."""
        return action["alpha"] @ state.embedding


MOST_GAMMA = 1e6  # beyond, a draw is the mixture to within rounding


class MultiToken(Thought):
    """CoT2-MTS: the mean of K tokens, drawn with replacement from softmax(logits / temperature).

    Gozeten et al. 2025, section 5. One token is discrete chain of thought; as K grows the next input tends to Mixture's
    (at temperature 1). The official code divides the latent logits by K: that is temperature K.

    Args:
        samples: K, tokens a step.
        temperature: more than 0.

    Raises:
        ValueError: samples below 1, or a temperature that is not positive.
    """

    parallel = True
    needs_streams = True

    def __init__(self, samples: int, temperature: float = 1.0):
        super().__init__()
        if samples < 1:
            raise ValueError(f"samples {samples}: expected at least 1 token a step; try 3")
        if not temperature > 0:
            raise ValueError(f"temperature {temperature}: expected more than 0; try 1.0")
        self.samples, self.temperature = samples, temperature
        self.latent = samples > 1

    def sample(self, state: State, streams: Streams | None) -> Action:
        """K token ids per row."""
        assert streams is not None, "the engine demands streams for sampling thoughts"
        return self.given(categorical(streams, state.logits.double() / self.temperature, self.samples))

    def given(self, ids: Int[Tensor, "*rows K"]) -> Action:
        """The action that thinks these tokens at once."""
        return Action({"ids": ids})

    def log_prob(self, state: State, action: Action) -> Float[Tensor, "*rows"]:
        """Sum over the K tokens of log softmax(logits / temperature)[id]: of the tokens in this order."""
        return F.log_softmax(state.logits / self.temperature, -1).gather(-1, action["ids"]).sum(-1)

    def embed(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """Mean of E[id_k]."""
        return F.embedding(action["ids"], state.embedding).mean(-2)


class Dirichlet(Thought):
    """CoT2-Dirichlet: a point of the simplex, a ~ Dirichlet(gamma softmax(logits)) (Gozeten et al., section 5).

    Mean and covariance are those of MultiToken(gamma + 1). The action is log a, drawn in log space.

    Args:
        gamma: sum of the concentrations; the larger, the closer to Mixture.

    Raises:
        ValueError: gamma is not positive.
    """

    latent = True
    parallel = True
    needs_streams = True

    def __init__(self, gamma: float):
        super().__init__()
        if not 0 < gamma <= MOST_GAMMA:
            raise ValueError(
                f"gamma {gamma}: expected a positive number up to {MOST_GAMMA:g}; try 2.0, as varied as three tokens"
            )
        self.gamma = gamma

    def sample(self, state: State, streams: Streams | None) -> Action:
        """log a per row."""
        assert streams is not None, "the engine demands streams for sampling thoughts"
        return self.given(log_dirichlet(streams, log_concentration(state.logits, self.gamma)))

    def given(self, log_a: Float[Tensor, "*rows V"]) -> Action:
        """The action that thinks this point."""
        return Action({"log_a": log_a})

    def log_prob(self, state: State, action: Action) -> Float[Tensor, "*rows"]:
        """Log-density, up to a factor of the action alone: see `dirichlet_log_density`."""
        return dirichlet_log_density(log_concentration(state.logits, self.gamma), action["log_a"])

    def embed(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """E^T a."""
        return action["log_a"].exp() @ state.embedding


class Hidden(Thought):
    """Coconut: the last hidden state, after the final norm, is the next input unchanged (Hao et al., section 3)."""

    latent = True
    parallel = True

    def sample(self, state: State, streams: Streams | None) -> Action:
        """The hidden state itself."""
        return Action({"hidden": state.hidden})

    def embed(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """The hidden state itself."""
        return action["hidden"]


class Pause(Thought):
    """A learned constant: as much computation as a thought, and no content (Goyal et al. 2023, pause tokens)."""

    parallel = True

    def __init__(self, width: int, generator: torch.Generator | None = None):
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.constant_D = nn.Parameter(torch.empty(width).normal_(0.0, 0.02, generator=generator))

    def sample(self, state: State, streams: Streams | None) -> Action:
        """Nothing to choose."""
        return self.given(state.hidden.shape[:-1], state.hidden.device)

    def given(self, rows: tuple[int, ...] | torch.Size, device: torch.device | None = None) -> Action:
        """The only action there is, for rows of this shape (its tensor is empty and only carries the shape)."""
        return Action({"none": torch.empty(*rows, 0, device=device)})

    def embed(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """The constant."""
        return self.constant_D.expand(*action["none"].shape[:-1], -1)


# ---------------------------------------------------------------------------------------------------------------------
# Controls: wrap any thought and ask whether its content matters


class Control(Thought):
    """Base of the controls: samples like the thought inside, then feeds something else."""

    def __init__(self, inner: Thought):
        super().__init__()
        self.inner = inner
        self.parallel, self.needs_streams = inner.parallel, inner.needs_streams

    def sample(self, state: State, streams: Streams | None) -> Action:
        """The action of the thought inside."""
        return self.inner.sample(state, streams)

    def log_prob(self, state: State, action: Action) -> Float[Tensor, "*rows"]:
        """That of the thought inside: a control changes what is fed, not what was chosen."""
        return self.inner.log_prob(state, action)


class Noise(Control):
    """A random direction with the norm of the latent it replaces."""

    def __init__(self, inner: Thought):
        super().__init__(inner)
        self.needs_streams = True

    def sample(self, state: State, streams: Streams | None) -> Action:
        """The action of the thought inside, and a normal vector."""
        assert streams is not None, "the engine demands streams for sampling thoughts"
        action = self.inner.sample(state, streams)
        noise_BD = streams.normal(state.hidden.shape[-1]).to(state.hidden)
        return Action({**action.values, "noise": noise_BD}, action.stop)

    def embed(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """The noise, scaled to the latent's norm."""
        latent = self.inner.embed(state, action)
        return action["noise"] * (latent.norm(dim=-1, keepdim=True) / action["noise"].norm(dim=-1, keepdim=True))


class Shuffled(Control):
    """The latent of another problem: rows rolled by one group. The one thought that depends on the batch.

    Raises:
        ValueError: the batch holds a single problem, so there is no other row to take.
    """

    def __init__(self, inner: Thought):
        super().__init__(inner)
        self.parallel = False

    def embed(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """The previous group's latent."""
        latent = self.inner.embed(state, action)
        size = 1 if state.group_B is None else int((state.group_B == state.group_B[0]).sum())
        if size == len(latent):
            raise ValueError("shuffled latents need at least two problems in a batch; pass more problems")
        return latent.roll(size, 0)


class Zero(Control):
    """The zero vector."""

    def embed(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """Zeros."""
        return torch.zeros_like(self.inner.embed(state, action))


CONTROLS: dict[str, type[Control]] = {"noise": Noise, "shuffled": Shuffled, "zero": Zero}
