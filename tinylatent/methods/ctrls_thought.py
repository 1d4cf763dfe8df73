"""The thought of CTRLS-style methods: a state of reasoning, and the network that says which one follows.

A RECONSTRUCTION, as `ctrls` says; no equation here is the paper's.

    alpha = softplus(f(h)) + floor           f: the transition network, h: hidden state after all that was read
    a ~ Dirichlet(alpha), read as x + a U    or z ~ Cat(a), read as x + U_z; U: state embeddings, x: the input before
    with probability epsilon a ~ Dirichlet(1) instead; its density is that of the mixture, which no draw can tell apart

Letters: D width, K states, H width of the network; `*rows` is B, or B T for a whole segment.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinylatent.core.precision import back, wide
from tinylatent.core.seeds import Streams
from tinylatent.engine.distributions import categorical, dirichlet_log_density, log_dirichlet
from tinylatent.engine.thought import Action, State, Thought
from tinylatent.methods.ctrls_states import States

Policy = Literal["dirichlet", "categorical"]
"""What a transition draws: "dirichlet" a point a of the simplex, a ~ Dirichlet(alpha); "categorical" a state, z ~ m."""
Feed = Literal["soft", "hard"]
"""What the model reads: "soft" the mixture a U; "hard" the embedding of one state, drawn from a or likeliest in it."""
Density = Literal["mixture", "naive"]
"""Probability of what exploration drew: "mixture" that which it was drawn with; "naive" as if nothing was explored."""


# ---------------------------------------------------------------------------------------------------------------------
# Distributions over states


def mean_of(alpha: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows K"]:
    """m = alpha / alpha_0, the mean of Dirichlet(alpha) and the probability of a state drawn from a draw of it."""
    return alpha / alpha.sum(-1, keepdim=True)


def divergence(q: Float[Tensor, "*rows K"], m: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows"]:
    """KL(q || m) of distributions over states, m positive."""
    return (torch.xlogy(q, q) - q * m.log()).sum(-1)


def dirichlet_entropy(alpha: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows"]:
    """H = log B(alpha) + (alpha_0 - K) psi(alpha_0) - sum_k (alpha_k - 1) psi(alpha_k): largest at all ones."""
    total, K = alpha.sum(-1), alpha.shape[-1]
    log_b = torch.lgamma(alpha).sum(-1) - torch.lgamma(total)
    inner = ((alpha - 1) * torch.digamma(alpha)).sum(-1)
    return log_b + (total - K) * torch.digamma(total) - inner


def state_entropy(alpha: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows"]:
    """Entropy of a single drawn state, H(m)."""
    return torch.special.entr(mean_of(alpha)).sum(-1)


def total_variance(alpha: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows"]:
    """sum_k Var a_k = (1 - sum_k m_k^2) / (alpha_0 + 1): how much distributions differ."""
    return (1 - (mean_of(alpha) ** 2).sum(-1)) / (alpha.sum(-1) + 1)


def point_log_density(
    alpha: Float[Tensor, "*rows K"], log_a: Float[Tensor, "*rows K"], epsilon: float, density: Density = "mixture"
) -> Float[Tensor, "*rows"]:
    """log[(1 - epsilon) Dir(a; alpha) + epsilon Dir(a; 1)], or log Dir(a; alpha) if naive; see `dirichlet_log_density`.

    The factor that this laboratory's density has beside the usual one is that of a alone, the same in both.
    """
    chosen = dirichlet_log_density(alpha.log(), log_a)
    return mixed(chosen, dirichlet_log_density(torch.zeros_like(alpha), log_a), epsilon, density)


def state_log_prob(
    alpha: Float[Tensor, "*rows K"], z: Int[Tensor, "*rows"], epsilon: float, density: Density = "mixture"
) -> Float[Tensor, "*rows"]:
    """log[(1 - epsilon) m_z + epsilon / K], or log m_z if naive."""
    chosen = mean_of(alpha).log().gather(-1, z[..., None]).squeeze(-1)
    return mixed(chosen, torch.full_like(chosen, -math.log(alpha.shape[-1])), epsilon, density)


def mixed(chosen: Tensor, uniform: Tensor, epsilon: float, density: Density) -> Tensor:
    """The logarithm of the mixture of two densities; the first alone if naive or without exploration."""
    if density == "naive" or epsilon == 0:
        return chosen
    if epsilon == 1:
        return uniform + 0 * chosen  # keeps the graph, whose gradient is 0
    return torch.logaddexp(chosen + math.log1p(-epsilon), uniform + math.log(epsilon))


class Transition(nn.Module):
    """alpha = softplus(f(h)) + floor, the concentrations of the next state; f has one hidden layer with a GELU."""

    def __init__(self, inputs: int, width: int, K: int, floor: float, generator: torch.Generator):
        super().__init__()

        def uniform(*shape: int) -> nn.Parameter:
            weights = torch.empty(*shape)
            return nn.Parameter(nn.init.uniform_(weights, -(shape[-1] ** -0.5), shape[-1] ** -0.5, generator=generator))

        self.floor = floor
        self.first_HD, self.bias_H = uniform(width, inputs), nn.Parameter(torch.zeros(width))
        self.second_KH, self.bias_K = uniform(K, width), nn.Parameter(torch.zeros(K))

    def forward(self, hidden: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows K"]:
        """The concentrations."""
        inner = F.gelu(F.linear(hidden.to(self.first_HD), self.first_HD, self.bias_H))
        return F.softplus(F.linear(inner, self.second_KH, self.bias_K)) + self.floor


# ---------------------------------------------------------------------------------------------------------------------
# The thoughts


class LatentState(Thought):
    """A state of the transition: the prior's mean (or likeliest state), or a draw.

    Its slot takes no position, and repeats the token before it: what is said next is said from there.

    Args:
        states, transition: the method's parts.
        policy, feed: what is drawn, and what is read.
        draws: whether anything is drawn.
        epsilon: probability of drawing uniformly instead.
        density: of draws.
    """

    has_latent = True
    parallel = True
    placed = False
    echoes = True

    def __init__(
        self,
        states: States,
        transition: Transition,
        policy: Policy = "dirichlet",
        feed: Feed = "soft",
        draws: bool = False,
        epsilon: float = 0.0,
        density: Density = "mixture",
    ):
        super().__init__()
        self.states, self.transition = states, transition
        self.policy, self.feed, self.epsilon, self.density = policy, feed, epsilon, density
        self.needs_streams = draws

    def sample(self, state: State, streams: Streams | None) -> Action:
        """The point of the simplex that is read; what was drawn, if anything is."""
        alpha_BK = self.transition(state.hidden)
        if not self.needs_streams:
            m_BK = mean_of(alpha_BK)
            return self.given(F.one_hot(m_BK.argmax(-1), m_BK.shape[-1]).to(m_BK) if self.feed == "hard" else m_BK)
        assert streams is not None, "the engine demands streams for sampling thoughts"
        alpha_BK = alpha_BK.detach()
        if self.policy == "categorical":
            every_BK = torch.arange(alpha_BK.shape[-1], device=alpha_BK.device).expand_as(alpha_BK)
            logits_BK = torch.stack([state_log_prob(alpha_BK, z_B, self.epsilon) for z_B in every_BK.unbind(-1)], -1)
            return Action({"z": categorical(streams, logits_BK)[0].squeeze(-1)})
        explored_B1 = back(streams.uniform(1) < self.epsilon, alpha_BK.device)
        log_a_BK = log_dirichlet(streams, wide(alpha_BK).log().masked_fill(explored_B1.to(wide(alpha_BK).device), 0.0))
        values = {"log_a": back(log_a_BK, alpha_BK.device)}
        if self.feed == "hard":
            values["z"] = categorical(streams, values["log_a"])[0].squeeze(-1)
        return Action(values)

    def given(self, a: Float[Tensor, "*rows K"]) -> Action:
        """The action that reads this point of the simplex; it has no probability."""
        return Action({"a": a})

    def log_prob(self, state: State, action: Action) -> Float[Tensor, "*rows"]:
        """Log-density of a point, log-probability of a state, or of both one after the other; 0 for the mean."""
        if "a" in action.values:
            return super().log_prob(state, action)
        alpha = wide(self.transition(state.hidden))
        if "log_a" not in action.values:
            found = state_log_prob(alpha, action["z"].to(alpha.device), self.epsilon, self.density)
            return back(found, state.hidden.device)
        log_a = wide(action["log_a"])
        found = point_log_density(alpha, log_a, self.epsilon, self.density)
        if "z" in action.values:
            found = found + log_a.gather(-1, action["z"].to(log_a.device)[..., None]).squeeze(-1)
        return back(found, state.hidden.device)

    def latent(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """a U, or the row of U."""
        embedding_KD, values = self.states.embedding_KD, action.values
        if "z" in values:
            found = embedding_KD[values["z"]]
        else:
            found = (values["a"] if "a" in values else values["log_a"].exp()).to(embedding_KD) @ embedding_KD
        return found.to(state.table.weight.dtype)


class Prefix(Thought):
    """One learned vector in every state's slot; as a pause it has neither token nor latent part of its own."""

    parallel = True
    placed = False
    echoes = True

    def __init__(self, states: States):
        super().__init__()
        self.states = states

    def sample(self, state: State, streams: Streams | None) -> Action:
        """The only action there is."""
        return self.given(state.hidden[..., :1])

    def given(self, a: Float[Tensor, "*rows K"]) -> Action:
        """The only action there is, for rows of this shape."""
        return Action({"none": a[..., :0]})

    def compose(self, state: State, action: Action, latent: Tensor | None) -> Float[Tensor, "*rows D"]:
        """The learned vector."""
        vector_D = self.states.embedding_KD[0].to(state.table.weight.dtype)
        return vector_D.expand(*action["none"].shape[:-1], -1)
