"""Thought: how the next input of the model is made, and from what.

A thought is a policy. `sample` picks an action from the state; `log_prob` is the action's log-probability, the decision
to stop or go on included; `token` and `latent` are the two parts of the action, and `embed` composes them into the next
input. Deterministic thoughts return actions too (Mixture its alpha, Hidden its hidden state), so that any action can be
given instead of sampled: teacher forcing and replay are one code path.

Controls replace the latent part alone: a gated thought keeps its token under them, and a pause has neither part, so
that they do not apply to it.

Every function accepts any number of leading axes, so that a whole segment is embedded and scored at once.

Letters: B rows, T steps, S slots, D width, V vocabulary; `*rows` is B, or B T for a whole segment.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tinylatent.core.seeds import Streams
from tinylatent.models.backbone import Table


@dataclass(frozen=True)
class History:
    """Everything a row has read so far: S slots, waiting ones masked out."""

    inputs_BSD: Float[Tensor, "B S D"]
    hidden_BSD: Float[Tensor, "B S D"]
    mask_BS: Bool[Tensor, "B S"]
    spans: tuple[Any, ...]
    """The spans of these slots (engine.trace.Span), with their thoughts and actions; the prompt's first."""

    @property
    def prompt(self) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
        """Hidden states and mask of the prompt."""
        stop = self.spans[0].stop
        return self.hidden_BSD[:, :stop], self.mask_BS[:, :stop]


@dataclass(frozen=True)
class State:
    """What a thought may look at when it acts."""

    hidden: Float[Tensor, "*rows D"]
    """Last hidden state, after the final norm."""
    read: Float[Tensor, "*rows V"] | Callable[[], Tensor]
    """Its logits, or a function that computes them when a thought asks for `logits`."""
    table: Table
    """The model's input embeddings."""
    group: int = 1
    """Rollouts of one prompt: rows b*group .. b*group + group - 1 share prompt b."""
    history: Callable[[], History] | None = None
    """Builds the history up to this state when called; for thoughts with `reads_history`."""
    may_stop: Bool[Tensor, " T"] | bool = True
    """Whether a row may stop at this step; for a whole segment, one value per step."""

    @cached_property
    def logits(self) -> Float[Tensor, "*rows V"]:
        """The readout of the hidden state."""
        return self.read if isinstance(self.read, Tensor) else self.read()

    @property
    def index_in_group_B(self) -> Int[Tensor, " B"]:
        """Index of every row within its group."""
        return torch.arange(len(self.hidden), device=self.hidden.device) % self.group


@dataclass(frozen=True)
class Action:
    """Named tensors with the same leading axes, and whether the row stops."""

    values: Mapping[str, Tensor] = field(default_factory=dict)
    stop: Bool[Tensor, "*rows"] | None = None
    stop_slot: bool = True
    """Whether a step that stops writes its input, as a stop token does; if not, the stop is a decision without slot."""
    log_prob: Float[Tensor, "*rows"] | None = None
    """Log-probability of a sampled action when it was drawn, stop included, without a graph; None if not sampled."""

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.values:
            raise KeyError(f"the action holds {', '.join(self.values) or 'nothing'}, not {name!r}")
        return self.values[name]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Action":
        """The action with `change` applied to every tensor."""
        stop, log_prob = (None if x is None else change(x) for x in (self.stop, self.log_prob))
        return Action({name: change(value) for name, value in self.values.items()}, stop, self.stop_slot, log_prob)

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
        stop, log_prob = (
            None if any(x is None for x in parts) else torch.stack(parts, 1)  # type: ignore[arg-type]
            for parts in ([action.stop for action in actions], [action.log_prob for action in actions])
        )
        return Action(values, stop, first.stop_slot, log_prob)


class Thought(nn.Module):
    """Base of all thoughts; a subclass defines `sample`, and `token`, `latent` or both.

    Attributes:
        has_latent: whether the next input has a latent part, which the controls replace.
        parallel: whether `embed` reads only the action and parameters, so that a segment runs in one forward.
        needs_streams: whether `sample` draws random numbers; the engine then stores log-probabilities.
        reads_history: whether it calls `state.history`; hidden states of the whole prompt are computed then.
        mixes_table: whether it mixes all rows of the table, which costs as much as a readout.
        placed: whether its slots take positions; if not, a slot has that of the slot before it, and what follows has
            the positions it would have without.
        echoes: whether its slots repeat the input of the row's slot before them, and what `embed` makes is added: so
            that what is said next still stands behind that input.
    """

    has_latent = False
    parallel = False
    needs_streams = False
    reads_history = False
    mixes_table = False
    placed = True
    echoes = False

    def sample(self, state: State, streams: Streams | None) -> Action:
        """Picks the action of one step from the state and every row's own stream; TypeError if not defined."""
        raise TypeError(f"{type(self).__name__} does not define sample")

    def log_prob(self, state: State, action: Action) -> Float[Tensor, "*rows"]:
        """Log-probability (or density) of the action; 0 for deterministic thoughts."""
        return torch.zeros_like(state.hidden[..., 0])

    def token(self, action: Action) -> Int[Tensor, "*rows"] | None:
        """The token part of the next input; None if the thought has none."""
        return None

    def latent(self, state: State, action: Action) -> Float[Tensor, "*rows D"] | None:
        """The latent part of the next input; None if the thought has none."""
        return None

    def compose(self, state: State, action: Action, latent: Tensor | None) -> Float[Tensor, "*rows D"]:
        """The next input, from the action's token and a latent part: by default the latent if there is one.

        Raises:
            TypeError: the subclass defines neither token nor latent.
        """
        if latent is not None:
            return latent
        token = self.token(action)
        if token is None:
            raise TypeError(f"{type(self).__name__} defines neither token nor latent, nor compose")
        return state.table.rows(token)

    def embed(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """The next input, composed of the action's token and latent part."""
        return self.compose(state, action, self.latent(state, action))
