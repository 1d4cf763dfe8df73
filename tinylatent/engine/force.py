"""Force: runs plans whose actions are all given, in one parallel forward where the thoughts allow it.

`force` is teacher forcing. `replay` forces the actions of an earlier trace under the current weights; another thought
may make the inputs, as in HRPO's reference policy, which sees only the tokens of a gated thought.

Letters: B rows, N prompt, T steps of the plan, S all slots (N + T), D width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinylatent.engine.plan import Plan, Segment, all_given
from tinylatent.engine.rollout import NO_STEPS, Runner, check, check_input, shifted_positions, unread
from tinylatent.engine.thought import State, Thought
from tinylatent.engine.trace import Span, Trace, keeps_logits, made_with, prompt_span
from tinylatent.models.backbone import Backbone, Edit, Table


class Unseen(State):
    """The state for thoughts with `parallel`, whose input depends on the action alone; it holds no hidden states."""

    def __init__(self, table: Table, group: int):
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "group", group)

    def __getattr__(self, name: str) -> Any:
        raise ValueError(
            f"a thought with parallel True reads {name} of its state to make its input: set parallel False"
        )


def force(
    backbone: Backbone,
    plan: Plan,
    prompt_BN: Int[Tensor, "B N"],
    mask_BN: Bool[Tensor, "B N"] | None = None,
    *,
    offset_B: Int[Tensor, " B"] | None = None,
    edit: Edit | None = None,
    group: int = 1,
    whole: bool = False,
) -> Trace:
    """Runs a plan whose actions are all given, keeping the graph: one forward if every thought is parallel.

    Values and gradients equal those of `rollout(..., grad=True)`; there is no graph under torch.no_grad().

    Args:
        backbone, plan, prompt_BN, mask_BN, offset_B, edit, whole: as for `rollout`.
        group: every `group` consecutive rows are rollouts of one prompt, which is repeated in each of them.

    Raises:
        ValueError: an action is not given; the plan has no steps or does not fit the batch; right padding.
    """
    if not all_given(plan):
        raise ValueError("force needs every action given; use rollout for plans that choose")
    given = [part for part in plan if isinstance(part, Segment)]
    check(plan, prompt_BN, mask_BN, 1, None)
    read_from = unread(plan, prompt_BN.shape[1] - 1, whole or edit is not None)
    if not all(segment.thought.parallel and not segment.thought.reads_history for segment in given):
        run = Runner(backbone, prompt_BN, mask_BN, offset_B, 1, edit, read_from)
        run.group = group
        return run.follow(plan, None)
    if not any(segment.longest for segment in given):
        raise ValueError(NO_STEPS)
    return _at_once(backbone, given, prompt_BN, mask_BN, offset_B, edit, group, read_from)


def _at_once(
    backbone: Backbone,
    given: list[Segment],
    prompt_BN: Tensor,
    mask_BN: Tensor | None,
    offset_B: Tensor | None,
    edit: Edit | None,
    group: int,
    read_from: int,
) -> Trace:
    (spans, acted_BT, live_BT), table = _lay_out(given, prompt_BN), backbone.table
    inputs_BTD = _embed_all(table, spans, group)
    N, T = prompt_BN.shape[1], inputs_BTD.shape[1] + 1
    mask_BS = None
    if mask_BN is not None or live_BT is not None:
        whole_BS = prompt_BN.new_ones(len(prompt_BN), N + T, dtype=torch.bool)
        before_BN = whole_BS[:, :N] if mask_BN is None else mask_BN
        after_BT = whole_BS[:, N:] if live_BT is None else live_BT
        mask_BS = torch.cat([before_BN, after_BT[:, :-1]], 1)
    sequence_BSD = _echoed(torch.cat([table.rows(prompt_BN), inputs_BTD], 1), spans, live_BT)
    positions_BS = shifted_positions(0, N + T - 1, mask_BS, offset_B, _placed(spans, mask_BS, prompt_BN, N + T - 1))
    hidden_BRD, _ = backbone.forward(
        sequence_BSD, mask_BS=mask_BS, positions_BT=positions_BS, edit=edit, read_from=read_from, keep=False
    )
    hidden_BTD = hidden_BRD[:, N - 1 - read_from :]
    if live_BT is not None:  # a waiting row's state is that of its last live slot
        slot_T = torch.arange(T, device=live_BT.device)
        last_BT = torch.where(live_BT, slot_T + 1, 0).cummax(1).values
        source_BT = torch.cat([torch.zeros_like(last_BT[:, :1]), last_BT[:, :-1]], 1)
        hidden_BTD = hidden_BTD.gather(1, source_BT[..., None].expand_as(hidden_BTD))
    kept = keeps_logits(prompt_BN.shape[0], T, len(table), hidden_BTD)
    return Trace(
        backbone=backbone,
        prompt_BN=prompt_BN,
        prompt_mask_BN=mask_BN,
        offset_B=offset_B,
        spans=spans,
        inputs=(sequence_BSD,),
        hidden_BTD=hidden_BTD,
        acted_BT=acted_BT,
        live_BT=live_BT,
        group=group,
        at_once=True,
        slot_hidden=None if read_from else (lambda: hidden_BRD),
        prompt_read=1 if read_from else None,
        kept_logits=backbone.readout(hidden_BTD) if kept else None,
        version=made_with(backbone, spans),
    )


def _placed(spans: tuple[Span, ...], mask_BS: Tensor | None, prompt_BN: Tensor, slots: int) -> Tensor | None:
    """Which slots take a position; None if all that are written do."""
    if all(span.thought.placed for span in spans):
        return None
    whole_BS = prompt_BN.new_ones(len(prompt_BN), slots, dtype=torch.bool) if mask_BS is None else mask_BS.clone()
    for span in spans:
        if not span.thought.placed:
            whole_BS[:, span.start : span.stop] = False
    return whole_BS


def _lay_out(given: list[Segment], prompt_BN: Tensor) -> tuple[tuple[Span, ...], Tensor | None, Tensor | None]:
    """Spans of the given segments, and which rows act and write at which step (None: all, always)."""
    spans, acted, lives, start = [prompt_span(prompt_BN.shape[1])], [], [], prompt_BN.shape[1]
    whole = all(segment.whole for segment in given)
    for segment in given:
        assert segment.given is not None
        stop = start + segment.longest
        if segment.longest:
            action = segment.given.first(segment.longest)
            span = Span(
                segment.label, start, stop, segment.thought, action, segment.min_steps, max_steps=segment.longest
            )
            spans.append(span)
            if not whole:
                acted.append(segment.acted_BT(len(prompt_BN), prompt_BN.device))
                lives.append(segment.live_BT(acted[-1]))
        start = stop
    if whole:
        return tuple(spans), None, None
    acted_BT = torch.cat(acted, 1)
    same = all(live is act for live, act in zip(lives, acted, strict=True))
    return tuple(spans), acted_BT, acted_BT if same else torch.cat(lives, 1)


def _embed_all(table: Table, spans: tuple[Span, ...], group: int) -> Tensor:
    """The inputs (B, T - 1, D) made from all actions but the last."""
    unseen = Unseen(table, group)
    parts = []
    for span in spans[1:]:
        last = span is spans[-1]
        if not last:
            parts.append(span.thought.embed(unseen, span.action))
        elif span.stop - span.start > 1 or not parts:
            parts.append(span.thought.embed(unseen, span.action.first(span.stop - span.start - 1)))
    for span, part in zip(spans[1:], parts, strict=False):
        if part.shape[-1] != table.width:
            check_input(span.thought, part, (*part.shape[:-1], table.width))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _echoed(
    sequence_BSD: Float[Tensor, "B S D"], spans: tuple[Span, ...], live_BT: Bool[Tensor, "B T"] | None
) -> Float[Tensor, "B S D"]:
    """The inputs, with that of the row's last live slot added to each that echoes."""
    echoing = {slot for span in spans if span.thought.echoes for slot in range(span.start, span.stop)}
    if not echoing:
        return sequence_BSD
    columns, prompt = [*sequence_BSD.unbind(1)], spans[0].stop
    last_BD = columns[prompt - 1]
    for slot in range(prompt, len(columns)):
        if slot in echoing:
            columns[slot] = columns[slot] + last_BD
        if live_BT is None:
            last_BD = columns[slot]
        else:
            last_BD = torch.where(live_BT[:, slot - prompt, None], columns[slot], last_BD)
    return torch.stack(columns, 1)


def replay(
    backbone: Backbone,
    trace: Trace,
    edit: Edit | None = None,
    *,
    thought: Thought | Mapping[str, Thought] | None = None,
) -> Trace:
    """Replays a trace's actions under the current weights, with the graph: for ratios of old and new policies.

    Args:
        backbone: the model.
        trace: whose actions are replayed.
        edit: as for `rollout`.
        thought: replaces the thought of every span with a latent part (a Token reads the ids of a gated thought and
            drops its latents); or a mapping from names of spans to thoughts.

    Raises:
        ValueError: as `force`.
        KeyError: an action lacks a value that the replacing thought reads.
    """
    return force(
        backbone,
        trace.plan(thought),
        trace.prompt_BN,
        trace.prompt_mask_BN,
        offset_B=trace.offset_B,
        edit=edit,
        group=trace.group,
    )
