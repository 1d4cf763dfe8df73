"""Examples: problems with their targets as tensors on the model's device, uploaded once and indexed from then on.

Names are those of a task's Batch: prompt, chain, frontier, answer. One difference: the last step of a Batch stands for
the answer; in examples the answer's tokens, one or many, take its place.

Letters: B rows, N prompt, T tokens of the chain (its steps before the answer, then the answer's tokens), V vocabulary,
S most states of a target, A answer tokens.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from tinylatent_tasks import Batch
from torch import Tensor

from tinylatent.engine.thought import Action
from tinylatent.engine.thoughts import MIXTURE
from tinylatent.engine.trace import Trace

DENSE_BYTES = 2**30
"""Targets are dense (a share for every token) up to this size in all, else sparse (ids with shares)."""


@dataclass(frozen=True)
class Targets:
    """The target distribution of every token of the chain: sparse (ids with shares) or dense (a share a token)."""

    vocabulary: int
    """V."""
    ids_BTS: Int[Tensor, "B T S"] | None = None
    shares_BTS: Float[Tensor, "B T S"] | None = None
    """Shares of the ids; 0 where a target has fewer than S states. They sum to 1, or to 0 beyond a row's chain."""
    dense_BTV: Float[Tensor, "B T V"] | None = None

    @classmethod
    def from_dense(cls, frontier_BTV: np.ndarray | Tensor) -> "Targets":
        """The sparse form of dense shares."""
        dense = torch.as_tensor(frontier_BTV)
        most = max(1, int((dense > 0).sum(-1).max())) if dense.numel() else 1
        shares, ids = dense.topk(most, dim=-1)
        return cls(dense.shape[-1], ids, shares)

    def rows(self, index: Int[Tensor, " b"] | slice) -> "Targets":
        """The targets of some rows."""
        if self.dense_BTV is not None:
            return Targets(self.vocabulary, dense_BTV=_cut(self.dense_BTV, index))
        return Targets(self.vocabulary, *(_cut(x, index) for x in self.sparse()))

    def parts(self, size: int) -> "list[Targets]":
        """The targets in parts of `size` rows."""
        if self.dense_BTV is not None:
            return [Targets(self.vocabulary, dense_BTV=part) for part in self.dense_BTV.split(size)]
        pairs = zip(*(x.split(size) for x in self.sparse()), strict=True)
        return [Targets(self.vocabulary, ids, shares) for ids, shares in pairs]

    def sparse(self) -> tuple[Int[Tensor, "B T S"], Float[Tensor, "B T S"]]:
        """Ids and shares, extracted from dense targets where needed."""
        if self.dense_BTV is not None:
            return Targets.from_dense(self.dense_BTV).sparse()
        assert self.ids_BTS is not None, "targets are dense or sparse"
        assert self.shares_BTS is not None, "ids have shares"
        return self.ids_BTS, self.shares_BTS

    def dense(self, size: int | None = None) -> Float[Tensor, "B T V"]:
        """A share for every token; `size` is the model's vocabulary, if that is larger than the task's."""
        size = size or self.vocabulary
        if self.dense_BTV is not None:
            missing = size - self.dense_BTV.shape[-1]
            return F.pad(self.dense_BTV, (0, missing)) if missing else self.dense_BTV
        ids_BTS, shares_BTS = self.sparse()
        B, T, _ = ids_BTS.shape
        return shares_BTS.new_zeros(B, T, size).scatter_add_(-1, ids_BTS, shares_BTS)

    def given(self, steps: int) -> Action:
        """The targets of the first `steps` tokens as given actions of a Mixture."""
        if self.dense_BTV is not None:
            return MIXTURE.given(self.dense_BTV[:, :steps])
        return MIXTURE.given_sparse(*(x[:, :steps] for x in self.sparse()))


@dataclass(frozen=True)
class Examples:
    """What methods train on and solve. A mask is None where nothing is masked, so that the common case is free."""

    prompt_BN: Int[Tensor, "B N"]
    prompt_mask_BN: Bool[Tensor, "B N"] | None
    num_steps: int | Int[Tensor, " B"]
    """Steps of the chain before the answer: one number for all rows, or one per row."""
    chain_BT: Int[Tensor, "B T"]
    """Token ids of the best trace: its steps before the answer, then the answer's tokens."""
    frontier: Targets
    """CSFT's targets: the frontier before the answer, then one-hot on the answer's tokens."""
    answer_tokens: int
    """A, the number of tokens of an answer; of the longest, where answers differ (`answer_mask_BA`)."""
    speaker: "Speaker | None" = None
    """Made the examples and judges answers to them; None for bare tensors, whose answers must have equal ids."""
    row_B: Int[Tensor, " B"] | None = None
    """Index of every example among the speaker's rows; None for 0, 1, 2 and so on."""
    answer_mask_BA: Bool[Tensor, "B A"] | None = None
    """False beyond the end of a shorter answer; None if all have A tokens."""
    step_BT: Int[Tensor, "B T"] | None = None
    """Index of the step of reasoning that a token of the chain belongs to; None if every token is a step."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end an answer; the chain includes one where answers differ in length, and judging ignores it."""
    offset_B: Int[Tensor, " B"] | None = None
    """Position of every row's first token (training draws it at random if there are spare positions); 0 if None."""

    @classmethod
    def upload(
        cls, batch: Batch, device: torch.device | str = "cpu", speaker: "Speaker | None" = None, dense: bool = True
    ) -> "Examples":
        """A task's batch as tensors, its frontier dense or sparse."""

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        answer_BA, V = tensor(batch.answer_BA), batch.frontier_BTV.shape[2]
        if dense:
            frontier_BTV = tensor(batch.frontier_BTV)
            answers_BAV = F.one_hot(answer_BA, V).to(frontier_BTV)
            frontier = Targets(V, dense_BTV=torch.cat([frontier_BTV[:, :-1], answers_BAV], 1))
        else:
            ids_BTS, shares_BTS = (x.to(device) for x in Targets.from_dense(batch.frontier_BTV[:, :-1]).sparse())
            padding = (0, ids_BTS.shape[2] - 1)
            ids_BTS = torch.cat([ids_BTS, F.pad(answer_BA[..., None], padding)], 1)
            ones_BAS = F.pad(torch.ones_like(answer_BA, dtype=torch.float32)[..., None], padding)
            frontier = Targets(V, ids_BTS, torch.cat([shares_BTS, ones_BAS], 1))
        uniform = bool((batch.steps_B == batch.steps_B[0]).all())
        return cls(
            prompt_BN=tensor(batch.prompt_BN),
            prompt_mask_BN=None if batch.prompt_mask_BN.all() else tensor(batch.prompt_mask_BN),
            num_steps=int(batch.steps_B[0]) - 1 if uniform else tensor(batch.steps_B) - 1,
            chain_BT=torch.cat([tensor(batch.chain_BT)[:, :-1], answer_BA], 1),
            frontier=frontier,
            answer_tokens=answer_BA.shape[1],
            speaker=speaker,
        )

    def __len__(self) -> int:
        return self.prompt_BN.shape[0]

    def rows(self, index: Int[Tensor, " b"] | slice) -> "Examples":
        """Some of the examples, by index or slice."""

        def cut(x: Any) -> Any:
            return _cut(x, index) if isinstance(x, Tensor) else x

        row_B = self.row_B
        if row_B is None:
            row_B = index if isinstance(index, Tensor) else torch.arange(len(self), device=self.prompt_BN.device)[index]
        else:
            row_B = _cut(row_B, index)
        return Examples(
            cut(self.prompt_BN),
            cut(self.prompt_mask_BN),
            cut(self.num_steps),
            cut(self.chain_BT),
            self.frontier.rows(index),
            self.answer_tokens,
            self.speaker,
            row_B,
            cut(self.answer_mask_BA),
            cut(self.step_BT),
            self.stop_ids,
            cut(self.offset_B),
        )

    def repeated(self, times: int) -> "Examples":
        """Every example `times` times in a row, as the rollouts of a group are ordered."""
        return self.rows(torch.arange(len(self), device=self.prompt_BN.device).repeat_interleave(times))

    def parts(self, size: int | None) -> "list[Examples]":
        """The examples in parts of at most `size`; in one part if that is None."""
        if size is None or size >= len(self):
            return [self]
        starts = range(0, len(self), size)
        row_B = torch.arange(len(self), device=self.prompt_BN.device) if self.row_B is None else self.row_B
        frontier = self.frontier.parts(size)

        def cut(x: Any) -> Any:
            return x.split(size) if isinstance(x, Tensor) else [x] * len(starts)

        columns = (
            cut(self.prompt_BN),
            cut(self.prompt_mask_BN),
            cut(self.num_steps),
            cut(self.chain_BT),
            frontier,
            cut(self.answer_tokens),
            cut(self.speaker),
            cut(row_B),
            cut(self.answer_mask_BA),
            cut(self.step_BT),
            cut(self.stop_ids),
            cut(self.offset_B),
        )
        return [Examples(*part) for part in zip(*columns, strict=True)]

    def with_offsets(self, offset_B: Int[Tensor, " B"]) -> "Examples":
        """The examples with their first tokens at these positions."""
        return replace(self, offset_B=offset_B)

    @property
    def slots(self) -> int:
        """Number of slots a model reads: the prompt, and the chain without its last token."""
        return self.prompt_BN.shape[1] + self.chain_BT.shape[1] - 1

    @property
    def answer_BA(self) -> Int[Tensor, "B A"]:
        """The answer's tokens."""
        return self.chain_BT[:, -self.answer_tokens :]

    @property
    def max_steps(self) -> int:
        """Most steps before the answer of any row."""
        return self.chain_BT.shape[1] - self.answer_tokens

    @cached_property
    def steps_BT(self) -> Int[Tensor, "B T"]:
        """Index of the step of reasoning that a token of the chain belongs to."""
        if self.step_BT is not None:
            return self.step_BT
        return torch.arange(self.chain_BT.shape[1], device=self.chain_BT.device).expand(len(self), -1)

    def loss_mask(self, trace: Trace) -> Bool[Tensor, "B T"] | None:
        """True for steps of a trace of the whole chain that have a target: taken, within the answer; None if all."""
        if self.answer_mask_BA is None:
            return trace.acted_BT
        before = self.chain_BT.new_ones(len(self), trace.steps - self.answer_tokens, dtype=torch.bool)
        mask_BT = torch.cat([before, self.answer_mask_BA], 1)
        return mask_BT if trace.acted_BT is None else mask_BT & trace.acted_BT

    def problems(self) -> Any:
        """The speaker's own rows of these examples.

        Raises:
            ValueError: the examples have no speaker.
        """
        if self.speaker is None:
            raise ValueError("these examples have no speaker: make them by Symbols(task).examples(rows)")
        rows = self.speaker.problems
        if self.row_B is None:
            return rows[: len(self)]
        return (
            rows[self.row_B.cpu().numpy()] if isinstance(rows, np.ndarray) else [rows[i] for i in self.row_B.tolist()]
        )

    def judge(self, answer_BA: Int[Tensor, "B A"]) -> Bool[Tensor, " B"]:
        """Whether answers are right; the speaker judges.

        answer_BA: token ids, -1 for no token; one answer per example, or equally many consecutive ones.
        """
        if self.speaker is None:
            return same_tokens(self, answer_BA)
        return self.speaker.judge(self, answer_BA)


@runtime_checkable
class Speaker(Protocol):
    """Makes examples and judges answers to them."""

    problems: Any
    """Its own rows, in the order of `Examples.row_B`."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens V."""
        ...

    def part(self, index: np.ndarray) -> "Speaker":
        """The speaker of some of its rows."""
        ...

    def examples(self, device: torch.device | str = "cpu", **supervision: Any) -> "Examples":
        """Examples of all its rows, in order; `supervision` chooses the targets (budget, rule)."""
        ...

    def judge(self, examples: Examples, answer_BA: Int[Tensor, "B A"]) -> Bool[Tensor, " B"]:
        """Whether answers (-1 for no token) are right; there may be several to an example."""
        ...


def same_tokens(examples: Examples, answer_BA: Int[Tensor, "B A"]) -> Bool[Tensor, " B"]:
    """Whether answers have exactly the tokens of the true answer; several answers to an example are consecutive."""
    truth_BA = examples.answer_BA
    if examples.answer_mask_BA is not None:
        truth_BA = truth_BA.masked_fill(~examples.answer_mask_BA, -1)
    if examples.stop_ids:
        truth_BA = truth_BA.masked_fill(
            torch.isin(truth_BA, torch.tensor(examples.stop_ids, device=truth_BA.device)), -1
        )
    if len(answer_BA) != len(truth_BA):
        truth_BA = truth_BA.repeat_interleave(len(answer_BA) // len(truth_BA), 0)
    longer = answer_BA.shape[1] - truth_BA.shape[1]
    if longer:
        truth_BA, answer_BA = (
            F.pad(x, (0, max(0, n)), value=-1) for x, n in ((truth_BA, longer), (answer_BA, -longer))
        )
    return (answer_BA == truth_BA).all(1)


def _cut(x: Tensor, index: Tensor | slice) -> Tensor:
    return x[index] if isinstance(index, slice) else x.index_select(0, index)
