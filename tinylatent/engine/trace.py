"""Trace: the record of a rollout: prompt and steps, inputs, hidden states, actions, and the thought of every slot.

Slots count from the prompt's first token: N of the prompt, then one for each of T steps. Step t writes slot N + t; its
action depends on the hidden state of the row's last live slot before it. The model has not read the last action yet.

What a thought looks at (History, State), what a rollout returns and what replay reads are views of this record. Logits
of small traces are kept; those of wide or long ones are recomputed from hidden states, a chunk of rows at a time. Both
need the weights that made the trace: once these have changed, asking for logits raises ValueError.

Letters: B rows, N prompt, T steps, S slots (N + T), D width, V vocabulary, A answer tokens, G rollouts of a group.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, reduce
from operator import add
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tinylatent.engine.counters import Counters
from tinylatent.engine.plan import ANSWER, Plan, Segment
from tinylatent.engine.thought import Action, History, State, Thought
from tinylatent.models.backbone import Backbone, default_positions, weights_version

PROMPT = "prompt"
NOBODY = Thought()  # the thought of the prompt's span
KEPT_BYTES = 2**27
"""Logits of a trace are kept up to this size, and computed in chunks of about this size beyond it."""
ALL = slice(None)
NO_TOKEN = -1
"""Fills an answer where a row wrote no token."""


def keeps_logits(rows: int, steps: int, vocabulary: int, like: Tensor) -> bool:
    """Whether logits of so many rows and steps are kept."""
    return rows * steps * vocabulary * _logit_bytes(like) <= KEPT_BYTES


def _logit_bytes(like: Tensor) -> int:
    """Bytes of a logit, which is float32 at least, where hidden states are like this."""
    return max(4, like.element_size())


@dataclass(frozen=True)
class Span:
    """Slots start..stop, written by one thought, with its actions over (B, stop - start, ...)."""

    name: str
    start: int
    stop: int
    thought: Thought = NOBODY
    action: Action = field(default_factory=Action)
    min_steps: int = 0
    """Steps a row takes before it may stop."""
    drawn: bool = False
    """Whether the actions were sampled in this trace, rather than given or deterministic."""
    max_steps: int = 0
    """Most steps the segment allows; the span is shorter where every row stopped before."""
    scored: Tensor | None = None
    """Log-probabilities (B, steps) with their graph, computed step by step for a thought that reads its history."""


@lru_cache
def prompt_span(slots: int) -> Span:
    """The span of a prompt."""
    return Span(PROMPT, 0, slots)


def made_with(backbone: Backbone, spans: tuple[Span, ...]) -> int:
    """Version number of the weights that a trace depends on: the model's and those of its thoughts."""
    version = weights_version(backbone)
    for span in spans[1:]:
        if span.thought._parameters or span.thought._modules:
            version += weights_version(span.thought)
    return version


@dataclass(eq=False)
class Trace:
    """The record of a rollout; treat it as immutable."""

    backbone: Backbone
    prompt_BN: Int[Tensor, "B N"]
    prompt_mask_BN: Bool[Tensor, "B N"] | None
    offset_B: Int[Tensor, " B"] | None
    """Position of each row's first token; 0 if None."""
    spans: tuple[Span, ...]
    """The prompt, then a span for every segment that ran."""
    inputs: tuple[Tensor, ...]
    """Inputs (B, s, D) in order: the prompt's, then the steps'; without the last step's, which was not read."""
    hidden_BTD: Float[Tensor, "B T D"]
    """The hidden state that every step's action was chosen from."""
    acted_BT: Bool[Tensor, "B T"] | None
    """False where a row took no action; None if all always did."""
    live_BT: Bool[Tensor, "B T"] | None
    """False where a row wrote no slot: it waited, or stopped without a slot; None if all always wrote one."""
    group: int = 1
    """G, rollouts per prompt; they are consecutive rows."""
    forked: bool = False
    """Whether a group's prompt was read once for all its rollouts."""
    at_once: bool = False
    """Whether one forward read the whole sequence."""
    forwards: int = 1
    """Calls of the model."""
    slot_hidden: Callable[[], Tensor] | None = None
    """Returns hidden states of all slots read (B, S - 1, D); None where the prompt's were not all computed."""
    prompt_read: int | None = None
    """How many of the prompt's slots the last layer computed; None for all."""
    kept_logits: Tensor | tuple[Tensor, ...] | None = None
    """Logits over (B, T, V), or one (B, V) a step; None where they are computed on request."""
    end: Any = None
    """The engine's Runner, from which `resume` continues; None for a trace that was forced in one forward."""
    version: int = -1
    """Version number of the weights that made this trace."""
    graph: bool = field(default_factory=torch.is_grad_enabled)
    """Whether the trace was made with its graph; what is computed from it later then has one too."""

    # -----------------------------------------------------------------------------------------------------------------
    # Sizes and indices

    @property
    def rows(self) -> int:
        """B."""
        return self.prompt_BN.shape[0]

    @property
    def steps(self) -> int:
        """T, waiting included."""
        return self.hidden_BTD.shape[1]

    @property
    def length_B(self) -> Int[Tensor, " B"]:
        """Number of slots every row wrote after its prompt."""
        if self.live_BT is None:
            return torch.full((self.rows,), self.steps, device=self.hidden_BTD.device)
        return self.live_BT.sum(1)

    @property
    def group_B(self) -> Int[Tensor, " B"]:
        """Index of every row's prompt."""
        return torch.arange(self.rows, device=self.hidden_BTD.device) // self.group

    @property
    def index_in_group_B(self) -> Int[Tensor, " B"]:
        """Index of every row within its group."""
        return torch.arange(self.rows, device=self.hidden_BTD.device) % self.group

    @cached_property
    def mask_BS(self) -> Bool[Tensor, "B S"]:
        """True where a slot holds an input."""
        device = self.hidden_BTD.device
        prompt_BN, live_BT = self.prompt_mask_BN, self.live_BT
        if prompt_BN is None:
            prompt_BN = torch.ones(self.prompt_BN.shape, dtype=torch.bool, device=device)
        if live_BT is None:
            live_BT = torch.ones(self.rows, self.steps, dtype=torch.bool, device=device)
        return torch.cat([prompt_BN, live_BT], 1)

    @property
    def positions_BS(self) -> Int[Tensor, "B read"]:
        """Position of every slot that the model has read: all but the last."""
        placed_BS = self.mask_BS[:, :-1].clone()
        for span in self.thought_spans:
            if not span.thought.placed:
                placed_BS[:, span.start : span.stop] = False
        positions_BS = default_positions(0, placed_BS.shape[1], placed_BS, placed_BS.device)
        return positions_BS if self.offset_B is None else positions_BS + self.offset_B[:, None]

    @property
    def thought_spans(self) -> tuple[Span, ...]:
        """All spans but the prompt."""
        return self.spans[1:]

    def within(self, span: Span) -> slice:
        """A span as a slice of the steps."""
        before = self.spans[0].stop
        return slice(span.start - before, span.stop - before)

    # -----------------------------------------------------------------------------------------------------------------
    # Inputs and actions

    @cached_property
    def inputs_BTD(self) -> Float[Tensor, "B T_minus_1 D"]:
        """The inputs made from the steps' actions, without the last one's."""
        with torch.set_grad_enabled(self.graph):
            if len(self.inputs) == 1:
                return self.inputs[0][:, self.spans[0].stop :]
            return torch.cat(self.inputs[1:], 1)

    def span(self, name: str) -> Span:
        """The last span of this name.

        Raises:
            ValueError: there is none, or it took no step.
        """
        for span in reversed(self.thought_spans):
            if span.name == name:
                return span
        there = f"there are {', '.join(span.name for span in self.spans)}"
        raise ValueError(f"no span {name!r} of at least one step: {there}; give a segment this name")

    def action(self, name: str) -> Tensor:
        """A value of the last span whose actions have one of this name, over (B, steps, ...).

        Raises:
            KeyError: no span has such a value.
        """
        for span in reversed(self.thought_spans):
            if name in span.action.values:
                return span.action[name]
        raise KeyError(name)

    def answer(self) -> Int[Tensor, "B A"]:
        """The tokens of the answer before its stop token; NO_TOKEN (-1) from there on.

        Raises:
            ValueError: the plan has no segment named "answer", or its thought has no tokens.
        """
        span = self.span(ANSWER)
        ids_BA = span.thought.token(span.action)
        if ids_BA is None:
            raise ValueError(f"the answer's thought is {type(span.thought).__name__}, which has no tokens: use a Token")
        if self.live_BT is not None:
            ids_BA = ids_BA.masked_fill(~self.live_BT[:, self.within(span)], NO_TOKEN)
        return ids_BA if span.action.stop is None else ids_BA.masked_fill(span.action.stop, NO_TOKEN)

    def plan(self, thought: Thought | Mapping[str, Thought] | None = None) -> Plan:
        """The plan that forces exactly these actions.

        thought: replaces the thought of every span with a latent part; or a mapping from names of spans to thoughts.
        """
        segments: list[Segment] = []
        for span in self.thought_spans:
            here = self.within(span)
            steps = here.stop - here.start if self.acted_BT is None else self.acted_BT[:, here].sum(1)
            if isinstance(thought, Mapping):
                reader = thought.get(span.name, span.thought)
            else:
                reader = thought if thought is not None and span.thought.has_latent else span.thought
            segments.append(Segment(reader, steps, span.action, span.name, span.min_steps))
        return tuple(segments)

    def history(self) -> History:
        """All slots that the model has read.

        Raises:
            ValueError: the prompt's hidden states were not all computed.
        """
        if self.slot_hidden is None:
            raise ValueError(
                "this trace holds no hidden states of its prompt: pass whole=True, or a thought that reads_history"
            )
        read = self.mask_BS.shape[1] - 1
        return History(torch.cat(self.inputs, 1), self.slot_hidden(), self.mask_BS[:, :read], self.spans)

    # -----------------------------------------------------------------------------------------------------------------
    # Probabilities

    def check_weights(self) -> None:
        """Raises ValueError if the weights have changed since this trace was made."""
        if self.version != made_with(self.backbone, self.spans):
            raise ValueError(
                "the weights have changed since this trace was made, so its logits cannot be computed: replay it under "
                "the current weights, or use sampled_log_prob_BT, which is stored"
            )

    @property
    def _logits_BTV(self) -> Tensor:
        kept = self.kept_logits
        if not isinstance(kept, Tensor):
            with torch.set_grad_enabled(self.graph):
                kept = self.backbone.readout(self.hidden_BTD) if kept is None else torch.stack(kept, 1)
            self.kept_logits = kept
        return kept

    @property
    def logits_BTV(self) -> Float[Tensor, "B T V"]:
        """Logits of all steps; `over_logits` needs less memory where the vocabulary is large.

        Raises:
            ValueError: the weights have changed.
        """
        self.check_weights()
        return self._logits_BTV

    def over_logits(self, function: Callable[[Tensor, slice], Tensor], steps: slice = ALL) -> list[Tensor]:
        """Calls function(logits_btV, rows) for chunks of rows and returns the results; one call where logits are kept.

        Logits are those of `steps`. The backward recomputes a chunk, so that at most one is in memory.

        Raises:
            ValueError: the weights have changed.
        """
        self.check_weights()
        if self.kept_logits is not None:
            logits_BTV = self._logits_BTV
            return [function(logits_BTV if steps == ALL else logits_BTV[:, steps], slice(0, self.rows))]
        hidden_BtD = self.hidden_BTD if steps == ALL else self.hidden_BTD[:, steps]
        row_bytes = hidden_BtD.shape[1] * len(self.backbone.table) * _logit_bytes(self.hidden_BTD)
        size, out = self.group * max(1, KEPT_BYTES // max(1, row_bytes) // self.group), []  # whole groups
        for start in range(0, self.rows, size):
            rows = slice(start, min(start + size, self.rows))
            hidden_btD = hidden_BtD[rows]

            def chunk(hidden: Tensor, rows: slice = rows) -> Tensor:
                return function(self.backbone.readout(hidden), rows)

            if torch.is_grad_enabled() and hidden_btD.requires_grad:
                out.append(checkpoint(chunk, hidden_btD, use_reentrant=False, preserve_rng_state=False))
            else:
                out.append(chunk(hidden_btD))
        return out

    def sum_over_logits(self, function: Callable[[Tensor, slice], Tensor], steps: slice = ALL) -> Tensor:
        """The sum of function(logits_btV, rows) over chunks of rows."""
        first, *others = self.over_logits(function, steps)
        return reduce(add, others, first)

    @cached_property
    def log_prob_BT(self) -> Float[Tensor, "B T"]:
        """Log-probability of every action under the logits of this trace, with its graph; 0 where a row took none.

        Raises:
            ValueError: the weights have changed since, and it was not computed before.
        """
        with torch.set_grad_enabled(self.graph):
            parts = self.over_logits(self._log_prob)
            log_prob_BT = parts[0] if len(parts) == 1 else torch.cat(parts, 0)
            return log_prob_BT if self.acted_BT is None else log_prob_BT.masked_fill(~self.acted_BT, 0.0)

    def _log_prob(self, logits_bTV: Tensor, rows: slice) -> Tensor:
        parts = []
        for span in self.thought_spans:
            if span.stop > span.start:
                if span.scored is not None:
                    parts.append(span.scored[rows])
                    continue
                action = span.action if len(logits_bTV) == self.rows else _cut(span.action, rows)
                parts.append(span.thought.log_prob(self._state(span, logits_bTV, rows), action))
        return torch.cat(parts, 1)

    def _state(self, span: Span, logits_bTV: Tensor, rows: slice) -> State:
        here = self.within(span)
        may_stop: Any = True
        if span.min_steps:
            may_stop = torch.arange(here.stop - here.start, device=logits_bTV.device) >= span.min_steps
        hidden_bTD, logits_btV = self.hidden_BTD[rows][:, here], logits_bTV[:, here]
        return State(hidden_bTD, logits_btV, self.backbone.table, self.group, may_stop=may_stop)

    @cached_property
    def sampled_log_prob_BT(self) -> Float[Tensor, "B T"]:
        """Log-probability of every sampled action, stored when it was drawn, in float32 or better; 0 elsewhere."""
        parts = []
        for span in self.thought_spans:
            here = self.within(span)
            if span.drawn and span.action.log_prob is not None:
                parts.append(span.action.log_prob)
            else:
                parts.append(torch.zeros(self.rows, here.stop - here.start, device=self.hidden_BTD.device))
        log_prob_BT = torch.cat(parts, 1)
        return log_prob_BT if self.acted_BT is None else log_prob_BT.masked_fill(~self.acted_BT, 0.0)

    @cached_property
    def drawn_BT(self) -> Bool[Tensor, "B T"] | None:
        """True where an action was sampled; None if all were. Policy gradients count these steps only."""
        if all(span.drawn for span in self.thought_spans):
            return self.acted_BT
        drawn_T = torch.zeros(self.steps, dtype=torch.bool, device=self.hidden_BTD.device)
        for span in self.thought_spans:
            drawn_T[self.within(span)] = span.drawn
        return drawn_T.expand(self.rows, -1) if self.acted_BT is None else drawn_T & self.acted_BT

    # -----------------------------------------------------------------------------------------------------------------
    # Parts, and costs

    def part(self, rows: slice) -> "Trace":
        """The trace of some rows, which must be whole groups; it cannot be resumed."""
        spans = tuple(
            replace(span, action=_cut(span.action, rows), scored=_some(span.scored, rows)) for span in self.spans
        )
        logits, whole = self.kept_logits, self.slot_hidden
        return replace(
            self,
            prompt_BN=self.prompt_BN[rows],
            prompt_mask_BN=_some(self.prompt_mask_BN, rows),
            offset_B=_some(self.offset_B, rows),
            spans=spans,
            inputs=tuple(x[rows] for x in self.inputs),
            hidden_BTD=self.hidden_BTD[rows],
            acted_BT=_some(self.acted_BT, rows),
            live_BT=_some(self.live_BT, rows),
            slot_hidden=None if whole is None else lambda: whole()[rows],
            kept_logits=tuple(x[rows] for x in logits) if isinstance(logits, tuple) else _some(logits, rows),
            end=None,
        )

    @cached_property
    def counters(self) -> Counters:
        """What making this trace cost."""
        N, read_B = self.spans[0].stop, self.mask_BS[:, :-1].sum(1)
        prompt_B = self.mask_BS[:, :N].sum(1)
        acted_BT = self.mask_BS.new_ones(self.rows, self.steps) if self.acted_BT is None else self.acted_BT
        tokens = latents = embedding = 0
        V, D = len(self.backbone.table), self.backbone.table.width
        for span in self.thought_spans:
            here = self.within(span)
            if span.thought.token(span.action.first(0)) is not None:
                tokens += int(acted_BT[:, here].sum())
            written = int((acted_BT if self.live_BT is None else self.live_BT)[:, here].sum())
            latents += written if span.thought.has_latent else 0
            embedding += 2 * V * D * written if span.thought.mixes_table else 0
        steps, shared = int(acted_BT.sum()), self.group if self.forked else 1
        slots = int(read_B.sum()) - int(prompt_B.sum()) + int(prompt_B[::shared].sum())
        blocks = 0
        for (prompt, read), count in Counter(zip(prompt_B.tolist(), read_B.tolist(), strict=True)).items():
            blocks += count * self._row_flops(prompt, read, shared)
        flops = blocks // shared + embedding + 2 * V * D * steps
        return Counters(self.forwards, slots, steps, tokens, latents, flops)

    @property
    def prompt_counters(self) -> Counters:
        """What reading the prompts cost: its share of `counters`, where no group shares them."""
        prompt_B, asked = self.mask_BS[:, : self.spans[0].stop].sum(1), self.prompt_read
        flops = sum(
            count * self.backbone.flops(prompt, 0, None if asked is None else min(asked, prompt))
            for prompt, count in Counter(prompt_B.tolist()).items()
        )
        return Counters(forwards=1, slots=int(prompt_B.sum()), flops=flops)

    def _row_flops(self, prompt: int, read: int, shared: int) -> int:
        """Operations of one row's blocks, times the number of rollouts that share its prompt."""
        count, asked = self.backbone.flops, self.prompt_read
        if self.at_once:
            return count(read, 0, None if asked is None else read - prompt + min(asked, prompt)) * shared
        return count(prompt, 0, None if asked is None else min(asked, prompt)) + shared * count(read - prompt, prompt)


def _some(x: Tensor | None, rows: slice) -> Tensor | None:
    return None if x is None else x[rows]


def _cut(action: Action, rows: slice) -> Action:
    return action.map(lambda x: x[rows])
