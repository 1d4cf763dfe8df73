"""Retrieval: every title of a catalogue is scored, or the best are searched for, after a method's own thinking.

A title's score is the sum of its tokens' log-probabilities. Titles share prefixes, so each prefix is read once: the
catalogue is a trie, and the model continues its cache from a level of the trie to the next. Beam search keeps the best
prefixes of each level, as LatentR3 decodes (arXiv 2505.19092); only prefixes of titles are ever continued, so what it
returns are titles. With a width of all prefixes it is the exhaustive scoring. Shorter titles are filled up with PAST,
which costs nothing and is certain.

The thinking is that of the method's plan; a search over several rollouts (LatentSeek) scores its first.

Letters: B rows, b rows of a chunk, P problems, I titles, A tokens of a title, L prefixes of a level, M prefixes of the
next level, W kept prefixes, N rows of a forward, D width, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinylatent.core.seeds import Streams
from tinylatent.engine.controls import controlled
from tinylatent.engine.plan import ANSWER, Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY
from tinylatent.evaluation.evaluate import BATCH, batches
from tinylatent.models.backbone import Cache
from tinylatent.objectives.examples import Examples, Speaker
from tinylatent.objectives.method import Method, Model

PAST = -1
"""In place of a token: the title has ended."""
CHUNK_BYTES = 2**25
"""Keys, values and logits of prefixes in memory at a time, about."""


@dataclass(frozen=True)
class Level:
    """The prefixes of one length: the last token of each, and the prefix of the level before that it continues."""

    token_L: Int[Tensor, " L"]
    """PAST behind a whole title."""
    parent_L: Int[Tensor, " L"]
    """0 in the first level, whose prefixes continue the thinking."""


@dataclass(frozen=True)
class Trie:
    """The titles of a catalogue as a tree of prefixes."""

    levels: tuple[Level, ...]
    """Level a has the different prefixes of a + 1 tokens, in the order of their tokens."""
    place_I: Int[Tensor, " I"]
    """The place of each title in the last level."""

    @classmethod
    def of(cls, titles_IA: Any, device: torch.device | str = "cpu") -> "Trie":
        """The trie of titles, token ids (I, A), PAST behind shorter ones.

        Raises:
            ValueError: no titles, titles without tokens, or two titles that are the same.
        """
        ids_IA = np.asarray(titles_IA)
        if ids_IA.ndim != 2 or not ids_IA.size or ids_IA.dtype.kind not in "iu":
            raise ValueError(
                f"titles of shape {ids_IA.shape} and type {ids_IA.dtype}: expected token ids (titles, tokens), at "
                "least one of both"
            )
        levels, place_I = [], np.zeros(len(ids_IA), np.int64)
        for token_I in ids_IA.T:
            pairs_L2, place_I = np.unique(np.stack([place_I, token_I], 1), axis=0, return_inverse=True)
            parent_L, token_L = torch.tensor(pairs_L2.T, device=device)
            levels.append(Level(token_L, parent_L))
        if len(levels[-1].token_L) < len(ids_IA):
            first, second = np.flatnonzero(place_I == np.bincount(place_I).argmax())[:2]
            raise ValueError(f"titles {first} and {second} are the same: expected titles that differ")
        return cls(tuple(levels), torch.tensor(place_I, device=device))

    @property
    def widest(self) -> int:
        """Most prefixes of a level that are continued; 1 where titles have one token."""
        return max((len(level.token_L) for level in self.levels[:-1]), default=1)


@dataclass(frozen=True)
class Front:
    """The model after the thinking of B rows, or after a prefix of a title each."""

    model: Model
    hidden_BD: Float[Tensor, "B D"]
    cache: Cache
    mask_BS: Bool[Tensor, "B S"] | None
    place_B: Int[Tensor, " B"]
    """Position of each row's next slot."""

    def log_probs(self) -> Float[Tensor, "B V"]:
        """Log-probabilities of the next token, in float32 or better."""
        logits_BV = self.model.backbone.readout(self.hidden_BD)
        return logits_BV.log_softmax(-1, dtype=torch.promote_types(logits_BV.dtype, torch.float32))

    def rows(self, index_N: Int[Tensor, " N"]) -> "Front":
        """Some rows, which may be named more than once."""
        hidden_ND, place_N = self.hidden_BD.index_select(0, index_N), self.place_B.index_select(0, index_N)
        mask_NS = None if self.mask_BS is None else self.mask_BS.index_select(0, index_N)
        return Front(self.model, hidden_ND, self.cache.rows(index_N), mask_NS, place_N)

    def after(self, row_N: Int[Tensor, " N"], token_N: Int[Tensor, " N"]) -> "Front":
        """Rows, named any number of times, after one more token each; after PAST they are not to be read."""
        here, backbone = self.rows(row_N), self.model.backbone
        mask_NS = here.mask_BS
        if mask_NS is not None:
            mask_NS = torch.cat([mask_NS, mask_NS.new_ones(len(row_N), 1)], 1)
        hidden_N1D, cache = backbone.forward(
            backbone.table.rows(token_N.clamp(min=0))[:, None],
            here.cache,
            mask_BS=mask_NS,
            positions_BT=here.place_B[:, None],
        )
        return Front(self.model, hidden_N1D[:, 0], cache, mask_NS, here.place_B + 1)

    def chunks(self, times: int) -> "Iterator[Front]":
        """The rows in parts of which `times` copies, one slot longer, take about CHUNK_BYTES."""
        rows = len(self.hidden_BD)
        kept = sum(x.nbytes for x in _tensors(self.cache.layers)) // max(1, rows)
        each = times * (2 * kept + 8 * len(self.model.backbone.table))  # keys and values are copied as they grow
        size = max(1, CHUNK_BYTES // max(1, each))
        everyone = torch.arange(rows, device=self.hidden_BD.device)
        return (self.rows(index_b) for index_b in everyone.split(size))


def _tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors of nested tuples."""
    if isinstance(tree, Tensor):
        yield tree
    else:
        for branch in tree:
            yield from _tensors(branch)


@torch.no_grad()
def thought_out(
    method: Method, model: Model, examples: Examples, streams: Streams | None = None, control: str | None = None
) -> Front:
    """The model after the thinking of a method's plan, before the first token of the answer.

    Raises:
        ValueError: the plan does not end in an answer, the control is unknown, or streams are missing.
    """
    plan = method.plan(model, examples)
    if not isinstance(plan[-1], Segment) or plan[-1].name != ANSWER:
        raise ValueError(f"the plan of {method.name} does not end in an answer: titles take the place of one")
    plan = (*plan[:-1], Segment(GREEDY, 1, name=ANSWER))  # its token is chosen from the state asked for, and never read
    trace = rollout(
        model.backbone,
        plan if control is None else controlled(plan, control),
        examples.prompt_BN,
        examples.prompt_mask_BN,
        streams=streams,
        offset_B=examples.offset_B,
    )
    run = trace.end
    assert run is not None, "a rollout can be resumed"
    hidden_BD, read = trace.hidden_BTD[:, -1], run.cache.size
    mask_BS, placed_BS = (None if x is None else x[:, :read] for x in (run.mask_BS, run.placed_BS))
    placed_BS = mask_BS if placed_BS is None else placed_BS
    place_B = torch.full(hidden_BD.shape[:1], read, device=hidden_BD.device) if placed_BS is None else placed_BS.sum(1)
    return Front(model, hidden_BD, run.cache, mask_BS, place_B if run.offset_B is None else place_B + run.offset_B)


@torch.no_grad()
def title_log_prob(front: Front, trie: Trie) -> Float[Tensor, "B I"]:
    """Log-probability of every title, the sum over its tokens, in float32 or better."""
    return torch.cat([_scored(chunk, trie) for chunk in front.chunks(trie.widest)])


def _scored(front: Front, trie: Trie) -> Tensor:
    """The scores of all titles for a chunk of rows: a level after the other, all its prefixes at once."""
    rows, before = len(front.hidden_BD), 1
    row_b1 = torch.arange(rows, device=front.hidden_BD.device)[:, None]
    score_bL = front.hidden_BD.new_zeros(rows, 1)
    for number, level in enumerate(trie.levels):
        if number:
            last = trie.levels[number - 1]
            front = front.after((row_b1 * before + last.parent_L).flatten(), last.token_L.repeat(rows))
        log_bLV = front.log_probs().unflatten(0, (rows, -1))
        before = log_bLV.shape[1]
        log_bL = log_bLV[:, level.parent_L, level.token_L.clamp(min=0)]
        score_bL = score_bL[:, level.parent_L] + log_bL.masked_fill(level.token_L == PAST, 0.0)
    return score_bL[:, trie.place_I]


@torch.no_grad()
def beam_search(front: Front, trie: Trie, width: int) -> tuple[Int[Tensor, "B W"], Float[Tensor, "B W"]]:
    """The best titles that a beam finds, best first, and their log-probabilities.

    width: prefixes kept at every level, at least 1. W is that, or all titles if there are fewer: a prefix leads to one
    title or more, so that a list is never shorter.

    Raises:
        ValueError: a width below 1.
    """
    if width < 1:
        raise ValueError(f"a beam of width {width}: expected at least 1; try 10")
    parts = [_beams(chunk, trie, width) for chunk in front.chunks(min(width, trie.widest))]
    place_BW, score_BW = (torch.cat(column) for column in zip(*parts, strict=True))
    return trie.place_I.argsort()[place_BW], score_BW


def _beams(front: Front, trie: Trie, width: int) -> tuple[Tensor, Tensor]:
    """Kept places of the last level for a chunk of rows, and their scores."""
    rows, before = len(front.hidden_BD), 1
    row_b1 = torch.arange(rows, device=front.hidden_BD.device)[:, None]
    score_bW, kept_bW = front.hidden_BD.new_zeros(rows, 1), torch.zeros_like(row_b1)
    from_bW = kept_bW
    for number, level in enumerate(trie.levels):
        if number:
            token_bW = trie.levels[number - 1].token_L[kept_bW]
            front = front.after((row_b1 * before + from_bW).flatten(), token_bW.flatten())
        log_bWV = front.log_probs().unflatten(0, (rows, -1))
        before, V = log_bWV.shape[1:]
        slot_bL = kept_bW.new_full((rows, len(trie.levels[number - 1].token_L) if number else 1), -1)
        slot_bL.scatter_(1, kept_bW, torch.arange(before, device=kept_bW.device).expand(rows, -1))
        slot_bM = slot_bL[:, level.parent_L]  # where the prefix before is among the kept ones, -1 if it was dropped
        from_bM = slot_bM.clamp(min=0)
        log_bM = log_bWV.flatten(1).gather(1, from_bM * V + level.token_L.clamp(min=0))
        score_bM = score_bW.gather(1, from_bM) + log_bM.masked_fill(level.token_L == PAST, 0.0)
        score_bW, kept_bW = score_bM.masked_fill(slot_bM < 0, -torch.inf).topk(min(width, len(level.token_L)))
        from_bW = from_bM.gather(1, kept_bW)
    return kept_bW, score_bW


def scores_and_beams(
    speaker: Speaker,
    method: Method,
    model: Model,
    titles_IA: np.ndarray,
    *,
    width: int | None = None,
    control: str | None = None,
    seed: int = 0,
    batch: int = BATCH,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores of all titles for every problem (P, I), and the titles that a beam finds (P, W), best first.

    Problems think as they do in `evaluate` with the same seed, control and batch.

    Args:
        speaker: gives the problems.
        method, model: think about them.
        titles_IA: token ids of every title, PAST behind shorter ones.
        width: of the beam; None to leave the search out.
        control, seed, batch, device: as for `evaluate`.

    Raises:
        ValueError: no problems, a batch or width below 1, titles that are none, or an unknown control.
    """
    trie, index_GB = Trie.of(titles_IA, device), batches(len(speaker.problems), batch, seed)
    scores, beams = [], []
    for index_B in index_GB:
        streams = Streams(seed, torch.from_numpy(index_B).to(device))
        front = thought_out(method, model, speaker.part(index_B).examples(device), streams, control)
        scores.append(title_log_prob(front, trie).cpu().numpy())
        if width is not None:
            beams.append(beam_search(front, trie, width)[0].cpu().numpy())
    back_P = np.argsort(np.concatenate(index_GB))
    return np.concatenate(scores)[back_P], np.concatenate(beams)[back_P] if beams else None
