"""Rollout: runs every kind of thought, one step at a time over a cache.

`rollout` runs a plan; `resume` continues a rollout. A step samples an action from the last hidden state, then decides
which rows stop, then embeds the action. Rows that stop wait, their slots masked, until the segment ends; positions
count per row. The model runs only when its result is needed: the last action of a plan is embedded but not read.

Plans whose actions are all given run in one forward: see `force`.

Letters: B rows, N prompt, T steps of the plan, S all slots (N + T), D width, V vocabulary, G group.
"""

from copy import copy
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tinylatent.core.seeds import Streams
from tinylatent.engine.distributions import DIVERGED
from tinylatent.engine.plan import Plan, Repeat, Segment, distinct, segments
from tinylatent.engine.thought import Action, History, State, Thought
from tinylatent.engine.trace import Span, Trace, keeps_logits, made_with, prompt_span
from tinylatent.models.backbone import Backbone, Cache, Edit, default_positions

NO_STEPS = "the plan has no steps: expected at least one"
MIN_UNREAD = 16
"""The last layer skips unread slots of a prompt from this number on. For shorter prompts that would save no time, and
their numbers would depend on what is read."""


def rollout(
    backbone: Backbone,
    plan: Plan,
    prompt_BN: Int[Tensor, "B N"],
    mask_BN: Bool[Tensor, "B N"] | None = None,
    *,
    streams: Streams | None = None,
    offset_B: Int[Tensor, " B"] | None = None,
    group: int = 1,
    grad: bool = False,
    edit: Edit | None = None,
    whole: bool = False,
) -> Trace:
    """Runs a plan for a batch, over a cache.

    Args:
        backbone: the model.
        plan: the segments to run.
        prompt_BN: left-padded prompt ids.
        mask_BN: False on padding; None if there is none.
        streams: randomness, one stream for each of the B * group rows; needed by sampling thoughts.
        offset_B: position of each row's first token; 0 if None.
        group: G, rollouts per prompt; they share the prompt's cache. Row b becomes rows b*G .. b*G + G - 1.
        grad: whether to keep the graph.
        edit: reads or changes activations inside the model; see `tinylatent.models.backbone.Edit`.
        whole: whether to compute hidden states for every slot of the prompt; implied by an edit and by thoughts that
            read their history.

    Raises:
        ValueError: a thought samples and there is not one stream per row; the plan has no steps or does not fit the
            batch; a prompt is padded on the right, or has ids or positions that the model has not; actions were chosen
            from logits that are not finite.
    """
    check(plan, prompt_BN, mask_BN, group, streams)
    with torch.set_grad_enabled(grad):
        read_from = unread(plan, prompt_BN.shape[1] - 1, whole or edit is not None)
        run = Runner(backbone, prompt_BN, mask_BN, offset_B, group, edit, read_from)
        if group > 1:
            plan = tuple(part.forked(group) for part in plan)
        return run.follow(plan, streams)


def resume(
    trace: Trace,
    plan: Plan,
    *,
    backbone: Backbone | None = None,
    streams: Streams | None = None,
    grad: bool = False,
    edit: Edit | None = None,
) -> Trace:
    """Continues a rollout; the returned trace covers everything from the prompt on.

    The earlier trace is not changed and can be resumed again.

    Args:
        trace: what `rollout` or `resume` returned.
        plan: the segments to run next, for every row of the trace.
        backbone: the model that continues, from the other model's cache; the trace's own by default.
        streams, grad, edit: as for `rollout`, for the new steps.

    Raises:
        ValueError: the trace was forced in one forward, or its weights have changed since; or as `rollout`; or a
            thought reads a history that was not kept.
    """
    if trace.end is None:
        raise ValueError("this trace cannot be resumed: only what rollout or resume returned can, with all its rows")
    if backbone is None or backbone is trace.backbone:
        trace.check_weights()
    check(plan, trace.prompt_BN, trace.prompt_mask_BN, 1, streams)
    run: Runner = trace.end.copy(backbone or trace.backbone, edit)
    if run.read_from and not unread(plan, MIN_UNREAD, False):
        raise ValueError("the trace holds no hidden states of its prompt, which the plan reads: pass whole=True before")
    with torch.set_grad_enabled(grad):
        return run.follow(plan, streams)


def check(plan: Plan, prompt_BN: Tensor, mask_BN: Tensor | None, group: int, streams: Streams | None) -> None:
    """Raises ValueError unless plan, prompt, mask, group and streams fit together."""
    if not isinstance(prompt_BN, Tensor):
        raise ValueError(f"a prompt of type {type(prompt_BN).__name__}: expected a tensor of token ids (rows, slots)")
    if prompt_BN.ndim != 2 or not prompt_BN.shape[1] or prompt_BN.is_floating_point():
        raise ValueError(
            f"a prompt of shape {tuple(prompt_BN.shape)} and type {prompt_BN.dtype}: expected token ids (rows, slots), "
            "at least one slot"
        )
    if mask_BN is not None and (mask_BN.shape != prompt_BN.shape or mask_BN.dtype != torch.bool):
        raise ValueError(
            f"a mask of shape {tuple(mask_BN.shape)} and type {mask_BN.dtype}: expected booleans like the prompt, "
            f"{tuple(prompt_BN.shape)}"
        )
    if not isinstance(plan, tuple | list) or not all(isinstance(part, Segment | Repeat) for part in plan):
        raise ValueError(
            f"a plan of {type(plan).__name__}: expected a tuple of segments, such as (Segment(thought, 3),)"
        )
    rows, samples = prompt_BN.shape[0], False
    for segment in distinct(plan):
        segment.check(rows)
        samples = samples or (segment.given is None and segment.thought.needs_streams)
    if not isinstance(group, int) or group < 1:
        raise ValueError(f"group {group}: expected 1 or more rollouts per prompt")
    if mask_BN is not None and not mask_BN[:, -1].all():
        raise ValueError("a prompt ends in padding: expected left padding, the last column of the mask all True")
    if samples and streams is None:
        raise ValueError("the plan samples: pass streams=Streams(seed, rows), one row identity per rollout")
    if streams is not None and len(streams.root_B) != rows * group:
        raise ValueError(
            f"streams for {len(streams.root_B)} rows: expected one for each of {rows * group} rollouts, "
            f"{rows} prompts times {group}"
        )


def check_input(thought: Thought, input: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless a thought made inputs of the model's width, one for each row."""
    if input.shape != shape:
        raise ValueError(
            f"{type(thought).__name__} made an input of shape {tuple(input.shape)}: expected {tuple(shape)}, a vector "
            "of the model's width for each row"
        )


def unread(plan: Plan, slots: int, whole: bool) -> int:
    """Number of slots at the start of the prompt that the last layer may skip."""
    if whole or slots < MIN_UNREAD or any(segment.thought.reads_history for segment in distinct(plan)):
        return 0
    return 0 if any(isinstance(part, Repeat) and part.reads_history for part in plan) else slots


def shifted_positions(
    past: int, new: int, mask_BS: Tensor | None, offset_B: Tensor | None, placed_BS: Tensor | None = None
) -> Tensor | None:
    """Positions of the new slots, shape (B, new), which start at each row's offset; None where they are the usual ones.

    placed_BS: which slots take a position, if not all that are written do.
    """
    if placed_BS is not None:
        positions_BT = default_positions(past, new, placed_BS, placed_BS.device)
        return positions_BT if offset_B is None else positions_BT + offset_B[:, None]
    if offset_B is None:
        return None
    return default_positions(past, new, mask_BS, offset_B.device) + offset_B[:, None]


class Runner:
    """A rollout in progress: cache, mask, last hidden state, and the record so far. It grows one slot at a time."""

    def __init__(
        self,
        backbone: Backbone,
        prompt_BN: Tensor,
        mask_BN: Tensor | None,
        offset_B: Tensor | None,
        group: int,
        edit: Edit | None,
        read_from: int,
    ):
        self.backbone, self.edit, self.group, self.read_from = backbone, edit, group, read_from
        self.prompt_BN, self.prompt_mask_BN, self.offset_B = prompt_BN, mask_BN, offset_B
        inputs_BND = backbone.table.rows(prompt_BN)
        positions_BN = shifted_positions(0, prompt_BN.shape[1], mask_BN, offset_B)
        hidden_BRD, cache = backbone.forward(
            inputs_BND, mask_BS=mask_BN, positions_BT=positions_BN, edit=edit, read_from=read_from
        )
        if group > 1:
            cache = cache.fork(group)
            inputs_BND, hidden_BRD, self.prompt_BN = (
                x.repeat_interleave(group, 0) for x in (inputs_BND, hidden_BRD, prompt_BN)
            )
            self.prompt_mask_BN, self.offset_B = (
                None if x is None else x.repeat_interleave(group, 0) for x in (mask_BN, offset_B)
            )
        self.cache: Cache = cache
        self.mask_BS = self.prompt_mask_BN
        self.placed_BS: Tensor | None = None  # which slots take a position, from the first on that is written without
        self.inputs, self.hiddens, self.forwards = [inputs_BND], [hidden_BRD], 1
        self.spans = [prompt_span(prompt_BN.shape[1])]
        self.hidden_BD, self.input_BD = hidden_BRD[:, -1], inputs_BND[:, -1]  # of every row's last live slot
        self.pending: tuple[Tensor, Tensor | None] | None = None
        self.taken: int | Tensor = 0  # actions taken: one number while all rows took as many, else one per row
        self.running: tuple[Segment, int, list[Action]] | None = None
        self.states: list[Tensor] = []
        self.logits: list[Tensor] | None = []
        self.peaks: list[Tensor] = []  # the largest logit of every step whose action was chosen from logits
        self.acted: list[Tensor | None] = []
        self.live: list[Tensor | None] = []

    def copy(self, backbone: Backbone, edit: Edit | None) -> "Runner":
        """A copy that grows independently; nothing it shares is changed in place."""
        twin = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, list):
                setattr(twin, name, list(value))
        twin.backbone, twin.edit = backbone, edit
        return twin

    def rows(self, index_b: Int[Tensor, " b"]) -> "Runner":
        """A copy of some rows, which may be named more than once; before the first step alone.

        Raises ValueError after it.
        """
        if self.states:
            raise ValueError(f"{len(self.states)} steps were taken: expected a rollout that has read its prompt alone")
        twin = self.copy(self.backbone, self.edit)
        for name in ("prompt_BN", "prompt_mask_BN", "offset_B", "mask_BS", "hidden_BD", "input_BD"):
            value = getattr(self, name)
            setattr(twin, name, None if value is None else value.index_select(0, index_b))
        twin.inputs, twin.hiddens = (
            [x.index_select(0, index_b) for x in parts] for parts in (self.inputs, self.hiddens)
        )
        twin.cache = self.cache.rows(index_b)
        return twin

    # -----------------------------------------------------------------------------------------------------------------
    # Running

    def follow(self, plan: Plan, streams: Streams | None) -> Trace:
        """Runs a plan from here on and returns the trace of everything so far; ValueError if the plan has no steps."""
        before = len(self.states)
        rows, V = len(self.prompt_BN), len(self.backbone.table)
        steps = before + sum(segment.longest for segment in segments(plan))
        if not keeps_logits(rows, steps, V, self.hidden_BD):
            self.logits = None
        for part in plan:
            if isinstance(part, Repeat):
                self._repeat(part, streams)
            else:
                self._segment(part, None, streams)
        if len(self.states) == before:
            raise ValueError(NO_STEPS)
        # Once a rollout, since it waits for a GPU. A logit of -inf is a token that cannot come; NaN is a largest logit.
        if self.peaks and not torch.stack(self.peaks).isfinite().all():
            raise ValueError(DIVERGED)
        return self._trace()

    def _segment(self, segment: Segment, active_B: Tensor | None, streams: Streams | None) -> None:
        """Runs one segment for the active rows (None: all)."""
        thought, given, start = segment.thought, segment.given, self.size
        actions: list[Action] = []
        scores: list[Tensor] = []
        rows, device = len(self.prompt_BN), self.prompt_BN.device
        wanted_BT = None if segment.whole else segment.acted_BT(rows, device)
        going_B, self.running = active_B, (segment, start, actions)
        drawn = given is None and thought.needs_streams
        for t in range(segment.longest):
            state = self._state(t >= segment.min_steps)
            if given is not None:
                action = given.step(t)
            else:
                if streams is not None:
                    streams.at(self.taken)
                action = thought.sample(state, streams if thought.needs_streams else None)
                if rows and "logits" in vars(state):  # where no thought reads them, they are not computed
                    self.peaks.append(state.logits.detach().amax())
            if thought.reads_history:
                scores.append(thought.log_prob(state, action))
            if drawn and action.log_prob is None:
                with torch.no_grad():
                    action = replace(action, log_prob=thought.log_prob(state, action))
            acted_B = live_B = _both(going_B, None if wanted_BT is None else wanted_BT[:, t])
            if action.stop is not None and not action.stop_slot:
                live_B = _both(acted_B, ~action.stop)
            input_BD = thought.embed(state, action)
            check_input(thought, input_BD, self.hidden_BD.shape)
            if thought.echoes:
                input_BD = input_BD + self.input_BD
            self._push(input_BD, live_B, thought.placed)
            self._record(state, action, acted_B, live_B)
            actions.append(action)
            if action.stop is not None:
                going_B = _both(going_B, ~action.stop)
                if given is None and going_B is not None and not going_B.any():
                    break
        if actions:
            scored = torch.stack(scores, 1) if scores else None
            where, action = (segment.label, start, self.size), Action.stack(actions)
            self.spans.append(Span(*where, thought, action, segment.min_steps, drawn, segment.longest, scored))
        self.running = None

    def _record(self, state: State, action: Action, acted_B: Tensor | None, live_B: Tensor | None) -> None:
        self.taken = self.taken + (1 if acted_B is None else acted_B.long())
        self.states.append(state.hidden)
        if self.logits is not None:
            self.logits.append(state.logits)
        self.acted.append(acted_B)
        self.live.append(live_B)

    def _repeat(self, repeat: Repeat, streams: Streams | None) -> None:
        """Repeats the segments until every row is done."""
        active_B = torch.ones(len(self.prompt_BN), dtype=torch.bool, device=self.prompt_BN.device)
        for left in reversed(range(repeat.at_most)):
            for segment in repeat.segments:
                self._segment(segment, active_B, streams)
            if left:  # after the last pass `until` would change nothing and cost a forward
                active_B = active_B & ~repeat.until(self._state())
                if not active_B.any():
                    return

    # -----------------------------------------------------------------------------------------------------------------
    # Slots and states

    @property
    def size(self) -> int:
        """Slots pushed so far."""
        return self.spans[0].stop + len(self.states)

    def _push(self, input_BD: Tensor, live_B: Tensor | None, placed: bool) -> None:
        """Appends an input; the forward over it runs when the next state is needed."""
        self.pending = (input_BD, live_B)
        self.input_BD = input_BD if live_B is None else torch.where(live_B[:, None], input_BD, self.input_BD)
        if self.placed_BS is None and not placed:
            every_BS = torch.ones(len(input_BD), self.size, dtype=torch.bool, device=input_BD.device)
            self.placed_BS = every_BS if self.mask_BS is None else self.mask_BS
        if self.placed_BS is not None:
            column_B1 = self.placed_BS.new_full((len(input_BD), 1), placed)
            column_B1 = column_B1 if live_B is None else column_B1 & live_B[:, None]
            self.placed_BS = torch.cat([self.placed_BS, column_B1], 1)
        if self.mask_BS is None and live_B is not None:
            self.mask_BS = live_B.new_ones(len(live_B), self.size)
        if self.mask_BS is not None:
            column_B1 = self.mask_BS.new_ones(len(input_BD), 1) if live_B is None else live_B[:, None]
            self.mask_BS = torch.cat([self.mask_BS, column_B1], 1)

    def _state(self, may_stop: bool = True) -> State:
        """The state after all inputs so far. A waiting row keeps its last state."""
        if self.pending is not None:
            (input_BD, live_B), self.pending = self.pending, None
            positions_B1 = shifted_positions(self.size - 1, 1, self.mask_BS, self.offset_B, self.placed_BS)
            hidden_B1D, self.cache = self.backbone.forward(
                input_BD[:, None], self.cache, mask_BS=self.mask_BS, positions_BT=positions_B1, edit=self.edit
            )
            self.inputs.append(input_BD[:, None])
            self.hiddens.append(hidden_B1D)
            self.forwards += 1
            fresh_BD = hidden_B1D[:, 0]
            self.hidden_BD = fresh_BD if live_B is None else torch.where(live_B[:, None], fresh_BD, self.hidden_BD)
        hidden_BD, readout = self.hidden_BD, self.backbone.readout
        read: Any = (lambda: readout(hidden_BD)) if self.logits is None else readout(hidden_BD)
        return State(hidden_BD, read, self.backbone.table, self.group, self._history, may_stop)

    def _history(self) -> History:
        """All slots read so far."""
        if self.read_from:
            raise ValueError(
                "the hidden states of the prompt were not all computed: a thought or a Repeat that reads its history "
                "says so by reads_history, or pass whole=True"
            )
        inputs_BSD, hidden_BSD = torch.cat(self.inputs, 1), torch.cat(self.hiddens, 1)
        mask_BS = self.mask_BS
        if mask_BS is None:
            mask_BS = torch.ones(inputs_BSD.shape[:2], dtype=torch.bool, device=inputs_BSD.device)
        spans = tuple(self.spans)
        if self.running is not None and self.running[2]:
            segment, start, actions = self.running
            stop = start + len(actions)
            spans = (
                *spans,
                Span(segment.label, start, stop, segment.thought, Action.stack(actions), segment.min_steps),
            )
        return History(inputs_BSD, hidden_BSD, mask_BS, spans)

    def _trace(self) -> Trace:
        hiddens = tuple(self.hiddens)
        return Trace(
            backbone=self.backbone,
            prompt_BN=self.prompt_BN,
            prompt_mask_BN=self.prompt_mask_BN,
            offset_B=self.offset_B,
            spans=tuple(self.spans),
            inputs=tuple(self.inputs),
            hidden_BTD=torch.stack(self.states, 1),
            acted_BT=self._stacked(self.acted),
            live_BT=self._stacked(self.live),
            group=self.group,
            forked=self.group > 1,
            forwards=self.forwards,
            slot_hidden=None if self.read_from else (lambda: torch.cat(hiddens, 1)),
            prompt_read=1 if self.read_from else None,
            kept_logits=None if self.logits is None else tuple(self.logits),
            end=self,
            version=made_with(self.backbone, tuple(self.spans)),
        )

    def _stacked(self, lives: list[Tensor | None]) -> Tensor | None:
        """Masks of all steps as (B, T); None where no row ever waited."""
        if all(live is None for live in lives):
            return None
        every_B = torch.ones(len(self.prompt_BN), dtype=torch.bool, device=self.prompt_BN.device)
        return torch.stack([every_B if live is None else live for live in lives], 1)


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a & b
