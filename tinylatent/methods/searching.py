"""Searching: test-time search over written chains, and the ways that a cleverer search must beat at equal cost.

A search begins with the model's greedy answer. While a verifier does not accept the answer, it proposes other first
tokens of the chain, lets the frozen model continue greedily from there, and asks the verifier again; rows that are
done leave the batch and cost nothing more. What all searches share is here: which tokens may change, proposals,
judging, the budget, and which answer is returned. LatentSeek and its rivals say what is proposed.

Letters: B rows, N places of the chain that are told, M proposals of a round, K proposals in all (the greedy answer is
the first), T tokens written, W tokens before the answer, A answer tokens, D width, V vocabulary.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinylatent.core.precision import back, full, wide
from tinylatent.core.seeds import Streams
from tinylatent.engine.controls import controlled
from tinylatent.engine.counters import Counters
from tinylatent.engine.force import force
from tinylatent.engine.plan import Plan, Repeat, Segment
from tinylatent.engine.rollout import Runner, check, unread
from tinylatent.engine.thought import State
from tinylatent.engine.thoughts import Token
from tinylatent.engine.trace import NO_TOKEN, Trace
from tinylatent.methods.discrete import DiscreteCoT, ended, ended_answer
from tinylatent.models.backbone import Backbone, Edit
from tinylatent.objectives.examples import Examples, Speaker
from tinylatent.objectives.method import Model, Solution
from tinylatent.objectives.rewards import Verifier, told, verifier_named, written

Select = Literal["last", "best", "first", "vote"]
MAX_ROUNDS = 10_000


@dataclass(frozen=True)
class Found(Solution):
    """The result of a search, with every proposal. Its trace is the chosen text, read once more; that is not counted.

    In its counters `tokens` are those decoded: told tokens are read, not written.
    """

    reward_BK: Float[Tensor, "B K"] | None = None
    """Verdict minus 1 of every proposal, the greedy answer first; NaN where a row made none, -1 in a vote."""
    text_BKW: Int[Tensor, "B K W"] | None = None
    """Tokens before the answer of every proposal; -1 behind them."""
    answer_BKA: Int[Tensor, "B K A"] | None = None
    """Answers of every proposal."""
    told_B: Int[Tensor, " B"] | None = None
    """How many tokens a proposal is told."""


@dataclass
class Asked:
    """Rows that are still searched, and what was last proposed for them."""

    index_B: Int[Tensor, " B"]
    """Their places in the whole batch."""
    examples: Examples
    hidden_BND: Float[Tensor, "B N D"]
    """The hidden states that emitted the first tokens, in float32 or better."""
    first_BN: Int[Tensor, "B N"]
    """Those tokens."""
    free_BN: Bool[Tensor, "B N"]
    """Which of them may change."""
    told_B: Int[Tensor, " B"]
    """How many tokens a proposal is told: the free ones and those before them."""
    price_B: Int[Tensor, " B"]
    """What a round costs: 1, or decoded tokens."""
    purse_B: Int[Tensor, " B"]
    """What is left to spend."""
    ids_BMN: Int[Tensor, "B M N"]
    """The last proposals; at first the greedy tokens."""
    reward_BM: Float[Tensor, "B M"]
    """Their rewards."""
    own: dict[str, Tensor] = field(default_factory=dict)
    """What a search keeps of its own, a row for each of these."""

    def rows(self, index_b: Int[Tensor, " b"]) -> "Asked":
        """Some of the rows."""
        own = {name: value[index_b] for name, value in self.own.items()}
        tensors = {name: value[index_b] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, examples=self.examples.rows(index_b), own=own, **tensors)


def read(backbone: Backbone, z: Float[Tensor, "*rows D"]) -> State:
    """What the frozen head makes of latents, each position alone; the logits are as precise as the latents."""
    return State(z, backbone.readout(z.to(backbone.table.weight.dtype)).to(z.dtype), backbone.table)


@dataclass(frozen=True)
class Search(DiscreteCoT):
    """What all searches share; by itself it proposes nothing.

    Raises ValueError for settings out of range or unknown.
    """

    compared = False
    starts_from = "discrete"
    temperatures: ClassVar[tuple[float, ...]] = ()
    recipe: ClassVar[dict[str, Any]] = {"steps": 0}
    rounds: int = 10
    """Most rounds of proposals to a question; 0 is greedy decoding."""
    by_tokens: bool = False
    """Whether `rounds` means the decoded tokens of so many whole answers: who tells tokens then makes more rounds."""
    threshold: float = -0.2
    """The search of a question stops at a reward, which is the verdict minus 1, above this."""
    select: Select = "last"
    """Which answer is returned: that of the last round, the best (the earliest of equals), the first that passes the
    threshold (the greedy one if none does), or by vote the most frequent, for which no verifier is asked."""
    judge: str = "confidence"
    """Name of the verifier where none is passed in."""

    def __post_init__(self) -> None:
        if not 0 <= self.rounds <= MAX_ROUNDS:
            raise ValueError(f"rounds {self.rounds}: expected 0 to {MAX_ROUNDS:,}; try 10")
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold {self.threshold}: expected a number; try -0.2")
        if self.select not in get_args(Select):
            raise ValueError(f"select {self.select!r}: expected one of {', '.join(get_args(Select))}")
        if verifier_named(self.judge) is None:
            raise ValueError("judge is empty: expected the name of a verifier; try confidence")

    @property
    def start_settings(self) -> Mapping[str, Any]:
        """Its chains end as this one's do."""
        return {"ends": self.ends}

    def supervise(self, speaker: Speaker, device: torch.device | str = "cpu") -> Examples:
        """Examples without targets; a task without proofs refuses a judge of certificates before it costs a run.

        Raises:
            ValueError: the task knows no proofs.
        """
        examples, task = super().supervise(speaker, device), getattr(speaker, "task", None)
        if self.judge.startswith("certificate") and task is not None:
            chain, answer = (
                np.full((len(examples), n), NO_TOKEN) for n in (examples.max_steps, examples.answer_tokens)
            )
            task.certified(examples.problems(), chain, answer)
        return examples

    @property
    def idle(self) -> Mapping[str, str]:
        """A vote needs no judge."""
        return dict.fromkeys(("judge", "threshold"), "in a vote") if self.select == "vote" else {}

    @property
    def head_uses(self) -> int:
        """Times that a round applies the head to every told position, forward or backward."""
        return 0

    @property
    def draws(self) -> bool:
        """Whether proposals are drawn at random."""
        return False

    @property
    def proposals(self) -> int:
        """M, proposals of a round."""
        return 1

    @property
    def heat(self) -> float:
        """Temperature of the tokens after those told."""
        return 0.0

    def places(self, first: Trace) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        """Begin and end of the tokens that may change, for every row of the greedy trace; none by default."""
        none_B = torch.zeros_like(first.length_B)
        return none_B, none_B

    def searched(self, free_BN: Bool[Tensor, "B N"]) -> Bool[Tensor, " B"]:
        """Which rows are searched: those with a token that may change."""
        return free_BN.any(1)

    def propose(self, model: Model, asked: Asked, round: int, streams: Streams | None) -> Int[Tensor, "B M N"]:
        """The tokens to tell next; those that may not change are overwritten by the greedy ones."""
        return asked.first_BN[:, None]

    def solve(
        self,
        model: Model,
        examples: Examples,
        streams: Streams | None = None,
        *,
        temperature: float = 0.0,
        group: int = 1,
        control: str | None = None,
        verify: Verifier | None = None,
        edit: Edit | None = None,
    ) -> Found:
        """Searches for an answer to every problem; arguments are those of `Method.solve`.

        The verifier is asked about the first answer and about every proposal. A row that is accepted, or has nothing
        left to spend, leaves the batch.

        Raises:
            ValueError: something is sampled and there is not one stream for each row.
        """
        examples = examples if group == 1 else examples.repeated(group)
        if (self.draws or temperature) and (streams is None or len(streams.root_B) != len(examples)):
            raise ValueError(f"{self.name} samples: pass streams=Streams(seed, rows) for {len(examples)} rows")
        verify = None if self.select == "vote" else verify or verifier_named(self.judge)
        writer = _Writer(self, model, temperature, control, verify, edit)
        first, reward_B = writer.judged(examples, None, streams)
        columns: list[tuple[Tensor, ...]] = [(reward_B, written(first), self.answers(first))]
        asked, round = self._begin(first, examples, reward_B), 0
        while True:
            going_B = (asked.reward_BM.amax(1) <= self.threshold) | (verify is None)
            index_b = (going_B & (asked.price_B <= asked.purse_B)).nonzero()[:, 0]
            if not len(index_b):
                break
            asked = asked if len(index_b) == len(going_B) else asked.rows(index_b)
            told, after = (
                None if streams is None else streams.derived(part, round).rows(asked.index_B)
                for part in ("told", "after")
            )
            ids_BMN = self.propose(model, asked, round, told)
            asked.ids_BMN = torch.where(asked.free_BN[:, None], ids_BMN, asked.first_BN[:, None])
            trace, reward_b = writer.judged(asked.examples, asked, after)
            asked.reward_BM, asked.purse_B = reward_b.view(len(index_b), -1), asked.purse_B - asked.price_B
            columns += _scattered(asked.index_B, len(examples), reward_b, written(trace), self.answers(trace))
            round += 1
        return self._found(writer, examples, first, columns)

    def answers(self, trace: Trace) -> Int[Tensor, "B A"]:
        """The answers of a trace; NO_TOKEN where a chain was not ended."""
        return ended_answer(trace) if self.ends else trace.answer()

    def _begin(self, first: Trace, examples: Examples, reward_B: Tensor) -> Asked:
        """All rows before the first round; those that are not searched have nothing to spend."""
        start_B, stop_B = self.places(first)
        place_N = torch.arange(int(stop_B.max()) if len(stop_B) else 0, device=stop_B.device)
        free_BN = (place_N >= start_B[:, None]) & (place_N < stop_B[:, None])
        told_B, length_B = stop_B * free_BN.any(1), first.length_B
        first_BN = written(first)[:, : len(place_N)].clamp(min=0)
        hidden_BND = first.hidden_BTD[:, : len(place_N)].detach()
        each_B = length_B if self.by_tokens else torch.ones_like(length_B)
        return Asked(
            index_B=torch.arange(len(examples), device=stop_B.device),
            examples=examples,
            hidden_BND=full(hidden_BND),
            first_BN=first_BN,
            free_BN=free_BN,
            told_B=told_B,
            price_B=self.proposals * (length_B - told_B) if self.by_tokens else each_B,
            purse_B=torch.where(self.searched(free_BN), self.rounds * each_B, -1),
            ids_BMN=first_BN[:, None],
            reward_BM=reward_B[:, None],
        )

    def _found(self, writer: "_Writer", examples: Examples, first: Trace, columns: list[tuple[Tensor, ...]]) -> Found:
        """The chosen answers, with a trace of the chosen texts."""
        reward_BK = torch.stack([reward_B for reward_B, _, _ in columns], 1)
        text_BKW, answer_BKA = (_stacked([column[part] for column in columns]) for part in (1, 2))
        chosen_B = self._chosen(reward_BK, answer_BKA)
        row_B = torch.arange(len(examples), device=chosen_B.device)
        text_BW, answer_BA = text_BKW[row_B, chosen_B], answer_BKA[row_B, chosen_B]
        trace = writer.again(examples, text_BW, answer_BA) if chosen_B.any() else first
        return Found(answer_BA, trace, writer.spent, reward_BK, text_BKW, answer_BKA, self.places(first)[1])

    def _chosen(self, reward_BK: Tensor, answer_BKA: Tensor) -> Int[Tensor, " B"]:
        """Which proposal of every row is returned; the earliest of equals."""
        made_BK = ~reward_BK.isnan()
        if self.select == "vote":
            votes_BK = made_BK & (answer_BKA != NO_TOKEN).any(-1)  # a chain that was cut has no answer to vote for
            same_BKK = (answer_BKA[:, :, None] == answer_BKA[:, None]).all(-1) & votes_BK[:, None]
            return (same_BKK.sum(-1) * votes_BK).argmax(1)
        reward_BK = reward_BK.masked_fill(~made_BK, -torch.inf)
        if self.select == "first":
            return (reward_BK > self.threshold).to(torch.int8).argmax(1)
        if self.select == "last":
            round_K = torch.arange(reward_BK.shape[1], device=reward_BK.device).add(self.proposals - 1)
            round_BK = (round_K // self.proposals).expand_as(reward_BK)
            reward_BK = reward_BK.masked_fill(round_BK < (round_BK * made_BK).amax(1, keepdim=True), -torch.inf)
        return reward_BK.argmax(1)


@dataclass(frozen=True)
class Prefixed(Search):
    """Searches that tell the model the first tokens of its chain: floor(share T) of the T written ones."""

    share: float = 0.2
    """Share of the written tokens that may change (rho)."""
    start: float = 0.0
    """Share of the written tokens before the first that may change."""
    max_positions: int = 300
    """Most tokens that may change."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.share <= 1 and 0 <= self.start < 1):
            raise ValueError(f"share {self.share}, start {self.start}: expected shares from 0 to 1; try 0.2 and 0.0")
        if self.max_positions < 1:
            raise ValueError(f"max_positions {self.max_positions}: expected at least 1; try 300")

    def places(self, first: Trace) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        """floor(share T) tokens after the first floor(start T), as far as they stand before the answer."""
        length_B, chain_B = wide(first.length_B), (written(first) != NO_TOKEN).sum(1)
        shares = ((x * length_B + 1e-9).floor().long() for x in (self.start, self.share))
        start_B, many_B = (back(share_B, chain_B.device) for share_B in shares)
        return start_B, torch.minimum(start_B + many_B.clamp(max=self.max_positions), chain_B)


class _Writer:
    """Writes and judges chains for one call of `solve`, and counts what that costs."""

    def __init__(
        self,
        method: Search,
        model: Model,
        temperature: float,
        control: str | None,
        verify: Verifier | None,
        edit: Edit | None,
    ):
        self.method, self.model, self.temperature = method, model, temperature
        self.control, self.verify, self.edit = control, verify, edit
        self.spent = Counters()
        self.prompts: Runner | None = None

    def judged(self, examples: Examples, asked: Asked | None, streams: Streams | None) -> tuple[Trace, Tensor]:
        """A chain of every row, or M of them after told tokens, and their rewards."""
        M = 1 if asked is None else asked.ids_BMN.shape[1]
        run = self._read(examples) if asked is None else self._reread(asked, M)
        if M > 1:
            examples, streams = examples.repeated(M), None if streams is None else streams.repeated(M)
        heat = self.temperature if asked is None else self.temperature or self.method.heat
        plan = self.method.plan(self.model, examples, heat)
        told_B = None
        if asked is not None and asked.told_B.any():
            told_B = asked.told_B.repeat_interleave(M)
            plan = after(plan, asked.ids_BMN.flatten(0, 1), told_B)
        plan = plan if self.control is None else controlled(plan, self.control)
        check(plan, run.prompt_BN, run.prompt_mask_BN, 1, streams)
        with torch.no_grad():
            trace = run.follow(plan, streams)
        self._count(trace, told_B, asked is None)
        if self.verify is None:
            return trace, trace.hidden_BTD.new_full((len(examples),), -1.0)
        verdict_B = told(self.verify(examples, trace), trace)
        if self.method.ends:
            verdict_B = verdict_B * ended(trace)  # a chain that was cut has no answer to accept
        return trace, verdict_B - 1

    @torch.no_grad()
    def _read(self, examples: Examples) -> Runner:
        """All rows, their prompts read; these are kept for every round."""
        prompt_BN, mask_BN = examples.prompt_BN, examples.prompt_mask_BN
        read_from = unread(self.method.plan(self.model, examples), prompt_BN.shape[1] - 1, self.edit is not None)
        self.prompts = Runner(self.model.backbone, prompt_BN, mask_BN, examples.offset_B, 1, self.edit, read_from)
        return self.prompts.copy(self.model.backbone, self.edit)

    def _reread(self, asked: Asked, M: int) -> Runner:
        """M copies of the rows that are asked, from their prompts on."""
        assert self.prompts is not None, "the greedy answers come first"
        if M == 1 and len(asked.index_B) == len(self.prompts.prompt_BN):
            return self.prompts.copy(self.model.backbone, self.edit)
        return self.prompts.rows(asked.index_B.repeat_interleave(M))

    def _count(self, trace: Trace, told_B: Tensor | None, first: bool) -> None:
        """Adds a trace to what was spent; prompts are read once, before the first answers."""
        cost = trace.counters
        if not first:
            prompt = trace.prompt_counters
            cost = replace(
                cost, forwards=cost.forwards - 1, slots=cost.slots - prompt.slots, flops=cost.flops - prompt.flops
            )
        if told_B is not None:
            span = trace.thought_spans[0]
            told = span.stop - span.start if trace.acted_BT is None else trace.acted_BT[:, trace.within(span)].sum(1)
            read = int(told.sum()) if isinstance(told, Tensor) else told * trace.rows
            table = self.model.backbone.table
            flops = 2 * len(table) * table.width * read * self.method.head_uses
            cost = replace(cost, tokens=cost.tokens - read, flops=cost.flops + flops)
        self.spent = self.spent + replace(cost, judged=0 if self.verify is None else trace.rows)

    @torch.no_grad()
    def again(self, examples: Examples, text_BW: Int[Tensor, "B W"], answer_BA: Int[Tensor, "B A"]) -> Trace:
        """The trace of chosen texts, in one forward."""
        (thinking, thought), (answer, last) = map(_in_tokens, self.method.plan(self.model, examples))
        length_B, filler = (text_BW != NO_TOKEN).sum(1), (*examples.stop_ids, 0)[0]
        given = thought.given(text_BW.masked_fill(text_BW == NO_TOKEN, 0))
        said = last.given(answer_BA.masked_fill(answer_BA == NO_TOKEN, filler))
        plan = (
            Segment(thought, even(length_B), given, thinking.name),
            Segment(last, answer_BA.shape[1], said, answer.name),
        )
        prompt_BN, mask_BN = examples.prompt_BN, examples.prompt_mask_BN
        return force(self.model.backbone, plan, prompt_BN, mask_BN, offset_B=examples.offset_B)


def after(plan: Plan, ids_BN: Int[Tensor, "B N"], told_B: Int[Tensor, " B"]) -> Plan:
    """A plan whose first segment is told its first tokens; a stop among them ends it, whatever was told behind."""
    (thinking, thought), *others = _in_tokens(plan[0]), *plan[1:]
    given = thought.given(ids_BN)
    left = thinking.steps - told_B
    if given.stop is not None:
        told_BN = torch.arange(ids_BN.shape[1], device=ids_BN.device) < told_B[:, None]
        left = left.masked_fill((given.stop & told_BN).any(1), 0)
    told = Segment(thought, even(told_B), given, thinking.name)
    return (told, Segment(thought, even(left), name=thinking.name), *others)


def _in_tokens(part: Segment | Repeat) -> tuple[Segment, Token]:
    """A segment of a chain, and its thought."""
    assert isinstance(part, Segment), "a written chain is a segment, and so is its answer"
    assert isinstance(part.thought, Token), "both are written in tokens"
    return part, part.thought


def even(steps_B: Int[Tensor, " B"]) -> int | Int[Tensor, " B"]:
    """One number where all rows take as many steps, so that no row waits and nothing is masked."""
    fewest, most = steps_B.aminmax()
    return int(most) if fewest == most else steps_B


def _scattered(index_B: Tensor, rows: int, reward_b: Tensor, *found: Tensor) -> list[tuple[Tensor, ...]]:
    """Columns of all rows, from M consecutive rewards, texts and answers of some; NaN and NO_TOKEN elsewhere."""
    columns = []
    for place in range(len(reward_b) // len(index_B)):
        each = slice(place, None, len(reward_b) // len(index_B))
        reward_B = reward_b.new_full((rows,), torch.nan).index_copy(0, index_B, reward_b[each])
        others = (x.new_full((rows, x.shape[1]), NO_TOKEN).index_copy(0, index_B, x[each]) for x in found)
        columns.append((reward_B, *others))
    return columns


def _stacked(parts: list[Tensor]) -> Int[Tensor, "B K W"]:
    """Tokens (B, .) as one tensor, padded with NO_TOKEN."""
    most = max(part.shape[1] for part in parts)
    return torch.stack([F.pad(part, (0, most - part.shape[1]), value=NO_TOKEN) for part in parts], 1)
