"""Thoughts that several methods share; a thought of one method alone is in that method's file.

    thought      action              next input          log-probability     source
    Token        id                  E[id]               log alpha[id]       discrete chain of thought
    Mixture      alpha               E^T alpha           0                   base CoT2, Gozeten et al. 2025, section 2
    MultiToken   K ids               mean of E[id_k]     sum log alpha[id_k] CoT2-MTS, the same paper
    Dirichlet    log a               E^T a               Dirichlet density   CoT2-Dirichlet, the same paper
    Hidden       hidden state        the same            0                   Coconut, Hao et al. 2024
    Pause        nothing             a learned vector    0                   baseline of equal compute
    Stopping     inner's and a stop  inner's             inner's and stop's  latents that end by themselves

Letters: B rows, T steps, D width, V vocabulary, K samples; `*rows` is B, or B T for a whole segment.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinylatent.core.precision import back, wide
from tinylatent.core.seeds import Streams
from tinylatent.engine.distributions import categorical, dirichlet_log_density, log_concentration, log_dirichlet
from tinylatent.engine.thought import Action, State, Thought


class Token(Thought):
    """A discrete token: greedy at temperature 0, otherwise drawn from softmax(logits / temperature).

    Args:
        temperature: 0 for the most likely token.
        stop_ids: tokens that end a row's segment; while a stop is not allowed yet they have probability 0.
        stop_slot: whether a stop token is written; if not, a given segment after this one writes the delimiter.

    Raises:
        ValueError: negative temperature.
    """

    parallel = True

    def __init__(self, temperature: float = 0.0, stop_ids: tuple[int, ...] = (), stop_slot: bool = True):
        super().__init__()
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature {temperature}: expected 0 (greedy) or more; try 1.0")
        self.temperature, self.stop_ids, self.stop_slot = temperature, stop_ids, stop_slot
        self.needs_streams = temperature > 0

    def _logits(self, state: State) -> Float[Tensor, "*rows V"]:
        """The logits, with stop tokens at -inf where a stop is not allowed."""
        if not self.stop_ids or state.may_stop is True:
            return state.logits
        barred_V = torch.zeros(state.logits.shape[-1], dtype=torch.bool, device=state.logits.device)
        barred_V[list(self.stop_ids)] = True
        may_stop = torch.as_tensor(state.may_stop, device=state.logits.device)
        return state.logits.masked_fill(barred_V & ~may_stop[..., None], -torch.inf)

    def sample(self, state: State, streams: Streams | None) -> Action:
        """One token id per row, by inverting the cumulative distribution at the row's uniform."""
        logits_BV = self._logits(state)
        if self.temperature == 0:
            return self.given(logits_BV.argmax(-1))
        assert streams is not None, "the engine demands streams for sampling thoughts"
        id_B1, log_p_B1 = categorical(streams, logits_BV, temperature=self.temperature)
        return self.given(id_B1.squeeze(1), log_p_B1.squeeze(1))

    def given(self, id: Int[Tensor, "*rows"], log_prob: Tensor | None = None) -> Action:
        """The action that writes these tokens."""
        stop = torch.isin(id, torch.tensor(self.stop_ids, device=id.device)) if self.stop_ids else None
        return Action({"id": id}, stop, self.stop_slot, log_prob)

    def log_prob(self, state: State, action: Action) -> Float[Tensor, "*rows"]:
        """log softmax(logits / temperature)[id]; with temperature 1 in place of 0 (greedy decoding)."""
        scaled = self._logits(state) / (self.temperature or 1.0)
        return F.log_softmax(scaled, -1).gather(-1, action["id"][..., None]).squeeze(-1)

    def token(self, action: Action) -> Int[Tensor, "*rows"]:
        """The id."""
        return action["id"]


GREEDY = Token()
"""The greedy token: it has no parameters, so one instance is shared."""


class Mixture(Thought):
    """Base CoT2: the whole softmax output as a superposition of tokens, z = E^T alpha (Gozeten et al., section 2).

    Given actions may be sparse: few ids with their shares, instead of a share for each token.
    """

    has_latent = True
    parallel = True
    mixes_table = True

    def sample(self, state: State, streams: Streams | None) -> Action:
        """alpha = softmax(logits)."""
        return self.given(F.softmax(state.logits, dim=-1))

    def given(self, alpha: Float[Tensor, "*rows V"]) -> Action:
        """The action with this distribution."""
        return Action({"alpha": alpha})

    def given_sparse(self, ids: Int[Tensor, "*rows K"], shares: Float[Tensor, "*rows K"]) -> Action:
        """The action with these tokens in these shares."""
        return Action({"ids": ids, "shares": shares})

    def latent(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """E^T alpha."""
        if "alpha" in action.values:
            return state.table.mix(action["alpha"])
        return state.table.mix_rows(action["ids"], action["shares"])


MIXTURE = Mixture()
"""The mixture: it has no parameters, so one instance is shared."""
MAX_GAMMA = 1e6  # beyond, a draw is the mixture to within rounding


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
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(f"samples {samples}: expected at least 1 token a step, a whole number; try 3")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature {temperature}: expected more than 0; try 1.0")
        self.samples, self.temperature = samples, temperature
        self.has_latent = samples > 1

    def sample(self, state: State, streams: Streams | None) -> Action:
        """K token ids per row."""
        assert streams is not None, "the engine demands streams for sampling thoughts"
        ids_BK, log_p_BK = categorical(streams, state.logits, self.samples, self.temperature)
        return self.given(ids_BK, log_p_BK.sum(-1))

    def given(self, ids: Int[Tensor, "*rows K"], log_prob: Tensor | None = None) -> Action:
        """The action with these tokens."""
        return Action({"ids": ids}, log_prob=log_prob)

    def log_prob(self, state: State, action: Action) -> Float[Tensor, "*rows"]:
        """sum_k log softmax(logits / temperature)[id_k]: the probability of the tokens in this order."""
        return F.log_softmax(state.logits / self.temperature, -1).gather(-1, action["ids"]).sum(-1)

    def token(self, action: Action) -> Int[Tensor, "*rows"] | None:
        """The token if K is 1, else None."""
        return action["ids"][..., 0] if self.samples == 1 else None

    def latent(self, state: State, action: Action) -> Float[Tensor, "*rows D"] | None:
        """Mean of E[id_k]."""
        return state.table.mix_rows(action["ids"]) if self.has_latent else None


class Dirichlet(Thought):
    """CoT2-Dirichlet: a point of the simplex, a ~ Dirichlet(gamma softmax(logits)) (Gozeten et al., section 5).

    Mean and covariance are those of MultiToken(gamma + 1). The action is log a, drawn in log space.

    Args:
        gamma: sum of the concentrations; the larger, the closer to Mixture.

    Raises:
        ValueError: gamma is not positive.
    """

    has_latent = True
    parallel = True
    needs_streams = True
    mixes_table = True

    def __init__(self, gamma: float):
        super().__init__()
        if not 0 < gamma <= MAX_GAMMA:
            raise ValueError(
                f"gamma {gamma}: expected a positive number up to {MAX_GAMMA:g}; try 2.0, as varied as three tokens"
            )
        self.gamma = gamma

    def sample(self, state: State, streams: Streams | None) -> Action:
        """log a per row."""
        assert streams is not None, "the engine demands streams for sampling thoughts"
        logits_BV = state.logits.detach()
        log_a_BV = log_dirichlet(streams, log_concentration(logits_BV, self.gamma))
        return self.given(log_a_BV, self._density(logits_BV, log_a_BV))

    def given(self, log_a: Float[Tensor, "*rows V"], log_prob: Tensor | None = None) -> Action:
        """The action with this point."""
        return Action({"log_a": log_a}, log_prob=log_prob)

    def log_prob(self, state: State, action: Action) -> Float[Tensor, "*rows"]:
        """Log-density, up to a term that depends on the action alone: see `dirichlet_log_density`.

        The value is float64 whatever the logits are: terms of size gamma log(gamma) cancel in it, and ratios of old and
        new policy would be noise in float32. The gradient has no such cancellation and is computed in the logits'
        precision.
        """
        logits, log_a = state.logits, action["log_a"]
        if logits.dtype == torch.float64:
            return dirichlet_log_density(log_concentration(logits, self.gamma), log_a)
        with torch.no_grad():
            value = self._density(logits, log_a)
        if not (torch.is_grad_enabled() and logits.requires_grad):
            return value
        rough = dirichlet_log_density(log_concentration(logits, self.gamma), log_a)
        return value + (rough - rough.detach())

    def _density(self, logits: Tensor, log_a: Tensor) -> Float[Tensor, "*rows"]:
        """The log-density in float64; in float32 on a device without that."""
        log_c = log_concentration(wide(logits), self.gamma)
        return back(dirichlet_log_density(log_c, wide(log_a)), logits.device)

    def latent(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """E^T a."""
        return state.table.mix(action["log_a"].exp())


class Hidden(Thought):
    """Coconut: the last hidden state, after the final norm, is the next input unchanged (Hao et al., section 3)."""

    has_latent = True
    parallel = True

    def sample(self, state: State, streams: Streams | None) -> Action:
        """The hidden state itself."""
        return Action({"hidden": state.hidden})

    def latent(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """The hidden state itself."""
        return action["hidden"]


HIDDEN = Hidden()
"""The hidden state as the next input: it has no parameters, so one instance is shared."""


class Pause(Thought):
    """A learned vector: as much computation as a thought, without content (pause tokens, Goyal et al. 2023)."""

    parallel = True

    def __init__(self, width: int, generator: torch.Generator | None = None):
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.constant_D = nn.Parameter(torch.empty(width).normal_(0.0, 0.02, generator=generator))

    def sample(self, state: State, streams: Streams | None) -> Action:
        """The only action there is."""
        return self.given(state.hidden.shape[:-1], state.hidden.device)

    def given(self, rows: tuple[int, ...] | torch.Size, device: torch.device | None = None) -> Action:
        """The only action there is, for rows of this shape; its tensor is empty and only carries the shape."""
        return Action({"none": torch.empty(*rows, 0, device=device)})

    def compose(self, state: State, action: Action, latent: Tensor | None) -> Float[Tensor, "*rows D"]:
        """The learned vector, which is neither a token nor a latent."""
        return self.constant_D.expand(*action["none"].shape[:-1], -1)


class Stopping(Thought):
    """Another thought with a learned stop: the decision takes no slot, its probability is part of the action's.

    A row stops with probability sigmoid(head(hidden)); at temperature 0, where that exceeds one half. While a stop is
    not allowed, it goes on with probability 1. A subclass may take the stop from elsewhere: see `logit`.

    Args:
        inner: the thought until the stop; it must not stop by itself.
        head: maps hidden states (*rows, D) to logits (*rows, 1).
        temperature: 0 thresholds the probability, 1 samples.

    Raises:
        ValueError: another temperature.
    """

    def __init__(self, inner: Thought, head: nn.Module, temperature: float = 1.0):
        super().__init__()
        if temperature not in (0, 1):
            raise ValueError(f"temperature {temperature}: expected 0 (decide) or 1 (draw)")
        self.inner, self.head, self.temperature = inner, head, temperature
        self.parallel, self.has_latent = inner.parallel, inner.has_latent
        self.reads_history, self.mixes_table = inner.reads_history, inner.mixes_table
        self.placed, self.echoes = inner.placed, inner.echoes
        self.needs_streams = inner.needs_streams or temperature > 0

    def logit(self, state: State) -> Float[Tensor, "*rows"]:
        """The logit of a stop, by the head."""
        return self.head(state.hidden).squeeze(-1)

    def _logit(self, state: State) -> Float[Tensor, "*rows"]:
        """The logit of a stop, -inf where a stop is not allowed."""
        logit = self.logit(state)
        if state.may_stop is True:
            return logit
        return logit.masked_fill(~torch.as_tensor(state.may_stop, device=logit.device), -torch.inf)

    def sample(self, state: State, streams: Streams | None) -> Action:
        """The inner action, and whether the row stops instead of taking it."""
        inner, logit_B = self.inner.sample(state, streams), self._logit(state)
        if self.temperature == 0:
            stop_B = logit_B > 0
        else:
            assert streams is not None, "the engine demands streams for sampling thoughts"
            stop_B = back(streams.uniform(1)[:, 0] < wide(logit_B).sigmoid(), logit_B.device)
        action = Action(inner.values, stop_B, stop_slot=False)
        if not self.needs_streams:
            return action
        with torch.no_grad():
            return Action(inner.values, stop_B, False, self._scored(logit_B, stop_B, state, inner))

    def _scored(self, logit: Tensor, stop: Tensor, state: State, action: Action) -> Float[Tensor, "*rows"]:
        chosen = action.log_prob if action.log_prob is not None else self.inner.log_prob(state, action)
        if self.temperature == 0:
            return torch.where(stop, torch.zeros_like(chosen), chosen)
        return torch.where(stop, F.logsigmoid(logit), F.logsigmoid(-logit) + chosen)

    def log_prob(self, state: State, action: Action) -> Float[Tensor, "*rows"]:
        """log P(stop), or log P(go on) and the inner action's log-probability."""
        assert action.stop is not None, "actions of this thought carry their stop"
        inner = Action(action.values)
        return self._scored(self._logit(state), action.stop, state, inner)

    def token(self, action: Action) -> Int[Tensor, "*rows"] | None:
        """The inner token."""
        return self.inner.token(action)

    def latent(self, state: State, action: Action) -> Float[Tensor, "*rows D"] | None:
        """The inner latent."""
        return self.inner.latent(state, action)

    def compose(self, state: State, action: Action, latent: Tensor | None) -> Float[Tensor, "*rows D"]:
        """The inner input."""
        return self.inner.compose(state, action, latent)
