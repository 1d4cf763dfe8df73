"""Rollout: the one engine that runs every way of thinking.

`rollout` runs a plan step by step over a cache; `force` runs a plan whose actions are all given, in one parallel
forward where the thoughts allow it; `replay` forces what an earlier rollout did, under the weights of today.

Every step picks an action from the last hidden state, then decides who stops, then embeds. Rows that stop wait, their
slots masked, until their segment ends; positions count per row. A model's forward is made only when its result is
needed: the last action of a plan is embedded but not read.

Letters: B rows, N prompt, T steps of the plan, S all slots (N + T), D width, V vocabulary, G group.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tinylatent.backbone import Backbone, Cache, Edit, default_positions
from tinylatent.plan import Plan, Repeat, Segment
from tinylatent.seeds import Streams
from tinylatent.thoughts import Action, History, State
from tinylatent.trajectory import Span, Trajectory

NO_STEPS = "the plan has no steps: expected at least one"


# ---------------------------------------------------------------------------------------------------------------------
# Step by step


class _Slots:
    """All slots so far: cache, mask and the last state; grows one slot at a time and never looks back."""

    def __init__(
        self,
        backbone: Backbone,
        prompt_BN: Tensor,
        mask_BN: Tensor | None,
        offset_B: Tensor | None,
        groups: int,
        edit: Edit | None,
    ):
        self.backbone, self.edit = backbone, edit
        inputs_BND = backbone.embed(prompt_BN)
        positions_BN = shifted_positions(0, prompt_BN.shape[1], mask_BN, offset_B)
        hidden_BND, cache = backbone.forward(inputs_BND, mask_BT=mask_BN, positions_BT=positions_BN, edit=edit)
        self.offset_B = None if offset_B is None else offset_B.repeat_interleave(groups)
        if groups > 1:
            cache = backbone.fork(cache, groups)
            inputs_BND, hidden_BND = (x.repeat_interleave(groups, 0) for x in (inputs_BND, hidden_BND))
            mask_BN = None if mask_BN is None else mask_BN.repeat_interleave(groups, 0)
        self.cache: Cache = cache
        self.mask_BS = mask_BN
        self.inputs, self.hiddens = [inputs_BND], [hidden_BND]
        self.spans: list[tuple[str, int, int]] = [("prompt", 0, inputs_BND.shape[1])]
        self.group_B = torch.arange(len(prompt_BN), device=prompt_BN.device).repeat_interleave(groups)
        self.taken_B = torch.zeros_like(self.group_B)
        self.hidden_BD = hidden_BND[:, -1]
        self.pending: tuple[Tensor, Tensor | None] | None = None

    def copy(self, backbone: Backbone, edit: Edit | None) -> "_Slots":
        """A copy that grows on its own; nothing it shares is changed in place."""
        twin = object.__new__(_Slots)
        twin.__dict__ = {name: list(value) if isinstance(value, list) else value for name, value in vars(self).items()}
        twin.backbone, twin.edit = backbone, edit
        return twin

    @property
    def size(self) -> int:
        return self.spans[-1][2]

    def push(self, name: str, input_BD: Tensor, live_B: Tensor | None) -> None:
        """Appends an input; the forward over it waits until `state` is asked for."""
        self.pending = (input_BD, live_B)
        self.taken_B = self.taken_B + (1 if live_B is None else live_B.long())
        if self.mask_BS is None and live_B is not None:
            self.mask_BS = live_B.new_ones(len(live_B), self.size)
        if self.mask_BS is not None:
            column_B1 = self.mask_BS.new_ones(len(input_BD), 1) if live_B is None else live_B[:, None]
            self.mask_BS = torch.cat([self.mask_BS, column_B1], 1)
        last, start, stop = self.spans[-1]
        self.spans[-1:] = [(last, start, stop + 1)] if last == name else [(last, start, stop), (name, stop, stop + 1)]

    def state(self) -> State:
        """The state after all that was pushed. A waiting row keeps the state it had."""
        if self.pending is not None:
            (input_BD, live_B), self.pending = self.pending, None
            positions_B1 = shifted_positions(self.size - 1, 1, self.mask_BS, self.offset_B)
            hidden_B1D, self.cache = self.backbone.forward(
                input_BD[:, None], self.cache, mask_BT=self.mask_BS, positions_BT=positions_B1, edit=self.edit
            )
            self.inputs.append(input_BD[:, None])
            self.hiddens.append(hidden_B1D)
            fresh_BD = hidden_B1D[:, 0]
            self.hidden_BD = fresh_BD if live_B is None else torch.where(live_B[:, None], fresh_BD, self.hidden_BD)
        logits_BV = self.backbone.readout(self.hidden_BD)
        return State(self.hidden_BD, logits_BV, self.backbone.embedding, self.group_B, self.history)

    def history(self) -> History:
        """Everything read so far, as one record."""
        inputs_BSD, hidden_BSD = torch.cat(self.inputs, 1), torch.cat(self.hiddens, 1)
        mask_BS = self.mask_BS
        if mask_BS is None:
            mask_BS = torch.ones(inputs_BSD.shape[:2], dtype=torch.bool, device=inputs_BSD.device)
        return History(inputs_BSD, hidden_BSD, mask_BS, tuple(self.spans))


class _Recorder:
    """Runs segments over slots and keeps what happened."""

    def __init__(self, slots: _Slots, streams: Streams | None):
        self.slots, self.streams = slots, streams
        self.steps: list[tuple[State, Tensor, Tensor | None]] = []
        self.spans: list[Span] = []

    def segment(self, segment: Segment, active_B: Tensor | None) -> None:
        """One segment, for the rows that are active (None: all)."""
        thought, start, actions = segment.thought, len(self.steps), []
        rows, device = len(self.slots.group_B), self.slots.group_B.device
        wanted_BT = None if isinstance(segment.steps, int) else segment.live_BT(rows, device)
        live_B = active_B
        for t in range(segment.longest):
            state = self.slots.state()
            if segment.given is not None:
                action = segment.given.step(t)
            else:
                if self.streams is not None:
                    self.streams.at(self.slots.taken_B)
                action = thought.sample(state, self.streams)
            here_B = _both(live_B, None if wanted_BT is None else wanted_BT[:, t])
            input_BD = thought.embed(state, action)
            self.slots.push(type(thought).__name__, input_BD, here_B)
            self.steps.append((state, input_BD, here_B))
            actions.append(action)
            if action.stop is not None:
                live_B = _both(live_B, ~action.stop)
                if segment.given is None and live_B is not None and not live_B.any():
                    break
        if actions:
            self.spans.append(Span(thought, start, len(self.steps), Action.stack(actions)))

    def repeat(self, repeat: Repeat) -> None:
        """Passes over the segments until every row is done."""
        active_B = torch.ones_like(self.slots.group_B, dtype=torch.bool)
        for left in reversed(range(repeat.at_most)):
            for segment in repeat.segments:
                self.segment(segment, active_B)
            if left:  # after the last pass the answer would change nothing, and cost a forward
                active_B = active_B & ~repeat.until(self.slots.state())
                if not active_B.any():
                    return


def shifted_positions(past: int, new: int, mask_BS: Tensor | None, offset_B: Tensor | None) -> Tensor | None:
    """Positions that start at each row's offset instead of 0, shape (B, new); None where there is no offset."""
    if offset_B is None:
        return None
    return default_positions(past, new, mask_BS, offset_B.device) + offset_B[:, None]


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a & b


def rollout(
    backbone: Backbone,
    plan: Plan,
    prompt_BN: Int[Tensor, "B N"] | Trajectory,
    mask_BN: Bool[Tensor, "B N"] | None = None,
    *,
    streams: Streams | None = None,
    offset_B: Int[Tensor, " B"] | None = None,
    groups: int = 1,
    grad: bool = False,
    edit: Edit | None = None,
) -> Trajectory:
    """Runs a plan for a batch, over a cache.

    Args:
        backbone: the model.
        plan: what to think.
        prompt_BN: left-padded prompt ids; or an earlier trajectory, from whose cache the rollout goes on.
        mask_BN: False on padding; None if there is none.
        streams: randomness, one stream for each of the B * groups rows; needed by sampling thoughts.
        offset_B: position of each row's first token; 0 if None.
        groups: rollouts per prompt G; they share the prompt's cache. Row b becomes rows b*G .. b*G + G - 1.
        grad: whether to keep the graph.
        edit: reads or changes activity inside the model, in the forwards this call makes; see Backbone.

    Raises:
        ValueError: a thought samples and there is not one stream per row; the plan has no steps or does not fit the
            batch; a prompt is padded on the right; an earlier trajectory cannot be continued, or not this way.
    """
    if isinstance(prompt_BN, Trajectory):
        earlier = prompt_BN
        if earlier.end is None:
            raise ValueError("this trajectory was forced all at once: only what `rollout` returned can be continued")
        if mask_BN is not None or offset_B is not None or groups != 1:
            raise ValueError("a continued rollout keeps its mask, offsets and groups: leave these arguments out")
        prompt_BN, mask_BN = earlier.prompt_BN, earlier.prompt_mask_BN
        slots = earlier.end.copy(backbone, edit)
    else:
        slots = None
    _check(plan, prompt_BN, mask_BN, groups, streams)
    with torch.set_grad_enabled(grad):
        if slots is None:
            slots = _Slots(backbone, prompt_BN, mask_BN, offset_B, groups, edit)
        if groups > 1:
            plan = tuple(part.forked(groups) for part in plan)
            prompt_BN = prompt_BN.repeat_interleave(groups, 0)
            mask_BN = None if mask_BN is None else mask_BN.repeat_interleave(groups, 0)
        return _run(slots, plan, prompt_BN, mask_BN, streams)


def _check(plan: Plan, prompt_BN: Tensor, mask_BN: Tensor | None, groups: int, streams: Streams | None) -> None:
    """Raises the ValueErrors of `rollout` and `force` that can be told in advance."""
    flat = [segment for part in plan for segment in (part.segments if isinstance(part, Repeat) else (part,))]
    for segment in flat:
        segment.check(len(prompt_BN))
    if groups < 1:
        raise ValueError(f"groups {groups}: expected 1 or more rollouts per prompt")
    if mask_BN is not None and not mask_BN[:, -1].all():
        raise ValueError("a prompt ends in padding: expected left padding, the last column of the mask all True")
    if any(segment.thought.needs_streams and segment.given is None for segment in flat):
        if streams is None:
            raise ValueError("the plan samples: pass streams=Streams(seed, rows), one row identity per rollout")
        if len(streams.root_B) != len(prompt_BN) * groups:
            raise ValueError(
                f"streams for {len(streams.root_B)} rows: expected one for each of {len(prompt_BN) * groups} rollouts, "
                f"{len(prompt_BN)} prompts times {groups}"
            )


def _run(slots: _Slots, plan: Plan, prompt_BN: Tensor, mask_BN: Tensor | None, streams: Streams | None) -> Trajectory:
    """Runs a plan from these slots on; plan, prompt and mask are already those of every row."""
    recorder = _Recorder(slots, streams)
    for part in plan:
        if isinstance(part, Repeat):
            recorder.repeat(part)
        else:
            recorder.segment(part, None)
    if not recorder.steps:
        raise ValueError(NO_STEPS)
    states, inputs, lives = zip(*recorder.steps, strict=True)
    live_BT = None
    if any(live is not None for live in lives):
        every_B = torch.ones_like(slots.group_B, dtype=torch.bool)
        live_BT = torch.stack([every_B if live is None else live for live in lives], 1)
    return Trajectory(
        prompt_BN,
        mask_BN,
        tuple(recorder.spans),
        torch.stack([state.hidden for state in states], 1),
        torch.stack([state.logits for state in states], 1),
        torch.stack(inputs, 1)[:, :-1],
        live_BT,
        slots.group_B,
        slots.backbone.embedding,
        slots.offset_B,
        slots,
    )


# ---------------------------------------------------------------------------------------------------------------------
# All at once


def force(
    backbone: Backbone,
    plan: Plan,
    prompt_BN: Int[Tensor, "B N"],
    mask_BN: Bool[Tensor, "B N"] | None = None,
    *,
    offset_B: Int[Tensor, " B"] | None = None,
    edit: Edit | None = None,
) -> Trajectory:
    """Runs a plan whose actions are all given, keeping the graph: one forward if every thought is parallel.

    Teacher forcing is this. Equal to `rollout(..., grad=True)` of the same plan, in values and gradients; only under
    torch.no_grad() is there no graph.

    Raises:
        ValueError: an action is not given; the plan has no steps or does not fit the batch; right padding.
    """
    return _force(backbone, plan, prompt_BN, mask_BN, offset_B, edit, group_B=None)


def _force(
    backbone: Backbone,
    plan: Plan,
    prompt_BN: Tensor,
    mask_BN: Tensor | None,
    offset_B: Tensor | None,
    edit: Edit | None,
    group_B: Tensor | None,
) -> Trajectory:
    """`force`, for rows that may belong to groups."""
    segments = [part for part in plan if isinstance(part, Segment)]
    if len(segments) < len(plan) or any(segment.given is None for segment in segments):
        raise ValueError("force needs every action given; use rollout for plans that choose")
    _check(plan, prompt_BN, mask_BN, 1, None)
    if not all(segment.thought.parallel for segment in segments):
        slots = _Slots(backbone, prompt_BN, mask_BN, offset_B, 1, edit)
        if group_B is not None:
            slots.group_B = group_B
        return _run(slots, plan, prompt_BN, mask_BN, None)
    if not any(segment.longest for segment in segments):
        raise ValueError(NO_STEPS)
    spans, live_BT = _lay_out(segments, prompt_BN)
    inputs_BTD = _embed_all(backbone.embedding, spans)
    N, T = prompt_BN.shape[1], inputs_BTD.shape[1] + 1
    mask_BS = None
    if mask_BN is not None or live_BT is not None:
        whole_BS = prompt_BN.new_ones(len(prompt_BN), N + T, dtype=torch.bool)
        before_BN = whole_BS[:, :N] if mask_BN is None else mask_BN
        after_BT = whole_BS[:, N:] if live_BT is None else live_BT
        mask_BS = torch.cat([before_BN, after_BT[:, :-1]], 1)
    sequence_BSD = torch.cat([backbone.embed(prompt_BN), inputs_BTD], 1)
    positions_BS = shifted_positions(0, N + T - 1, mask_BS, offset_B)
    hidden_BSD, _ = backbone.forward(sequence_BSD, mask_BT=mask_BS, positions_BT=positions_BS, edit=edit)
    hidden_BTD = hidden_BSD[:, N - 1 :]
    if live_BT is not None:  # a waiting row's state is that of its last live slot
        slot_T = torch.arange(T, device=live_BT.device)
        last_BT = torch.where(live_BT, slot_T + 1, 0).cummax(1).values
        source_BT = torch.cat([torch.zeros_like(last_BT[:, :1]), last_BT[:, :-1]], 1)
        hidden_BTD = hidden_BTD.gather(1, source_BT[..., None].expand_as(hidden_BTD))
    return Trajectory(
        prompt_BN, mask_BN, spans, hidden_BTD, backbone.readout(hidden_BTD), inputs_BTD, live_BT,
        group_B, backbone.embedding, offset_B,
    )  # fmt: skip


def _lay_out(segments: list[Segment], prompt_BN: Tensor) -> tuple[tuple[Span, ...], Tensor | None]:
    """Spans of the given segments, and which rows are live at which step (None: all, always)."""
    spans, lives, start = [], [], 0
    whole = all(segment.whole for segment in segments)
    for segment in segments:
        assert segment.given is not None
        stop = start + segment.longest
        if segment.longest:
            spans.append(Span(segment.thought, start, stop, segment.given.first(segment.longest)))
            if not whole:
                lives.append(segment.live_BT(len(prompt_BN), prompt_BN.device))
        start = stop
    return tuple(spans), None if whole else torch.cat(lives, 1)


def _embed_all(embedding: Tensor, spans: tuple[Span, ...]) -> Tensor:
    """The inputs all actions but the last turn into, (B, T - 1, D)."""
    V, D = embedding.shape
    unseen = State(embedding.new_empty(0, D), embedding.new_empty(0, V), embedding)
    last = spans[-1]
    parts = [span.thought.embed(unseen, span.action) for span in spans[:-1]]
    if last.stop - last.start > 1 or not parts:
        parts.append(last.thought.embed(unseen, last.action.first(last.stop - last.start - 1)))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def replay(backbone: Backbone, trajectory: Trajectory, edit: Edit | None = None) -> Trajectory:
    """A trajectory's actions again, under current weights and with the graph: for ratios of old and new policies.

    Raises:
        ValueError: the trajectory continues an earlier one, so that it does not start from its prompt.
    """
    if trajectory.end is not None and trajectory.end.size != trajectory.prompt_BN.shape[1] + trajectory.steps:
        raise ValueError("a continued trajectory lacks its beginning and cannot be replayed; roll it out in one plan")
    return _force(
        backbone,
        trajectory.plan(),
        trajectory.prompt_BN,
        trajectory.prompt_mask_BN,
        trajectory.offset_B,
        edit,
        trajectory.group_B,
    )
