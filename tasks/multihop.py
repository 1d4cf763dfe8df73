"""Multi-hop lookup: facts in random order, a start, and a number of hops; where does one end?

The in-context composition on which latent reasoning is most often shown (Coconut, arXiv 2412.06769; CoLaR, arXiv
2505.16552). Every node has `branching` facts "source target" that lead to other nodes. With one each, the facts are a
random function and the answer is where k hops lead. With more the lookup is ambiguous: after t hops there are up to
branching^t walks, the frontier is the share of them in each node, and the answer is the first node, in the order of the
vocabulary, that k hops can reach. Every fact that is not on the walk is a distractor.

Prompt: padding <bos> s_1 t_1 .. s_F t_F > .. > start, with a mark ">" for each hop; facts before the start can be read
once and looked up at every step. With `bound` a fact is one token "n0>n3", so that a model is spared learning which
source goes with which target before it can learn to look up. Steps: the visited nodes, the last being the answer; k
varies within a batch.

Letters: P problems, M integers of a problem (start, hops, then sources and targets in turn), F facts, C nodes,
B walks, T steps, V vocabulary, A = 1 answer token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tasks.batch import SPECIAL_TOKENS, Integers, Keys, Mask, Shares, Vocabulary
from tasks.checks import check_flag, check_integer, checked_rows, is_integer, joined, refuse_rows, short
from tasks.choice_sums import shares_of
from tasks.graphs import (
    DRAWS,
    adjacency,
    canonical_hash,
    edge_tokens,
    enough_classes,
    named_by_appearance,
    node_tokens,
    path_counts,
)
from tasks.keys import derived_seed, random_orders, stable_hash
from tasks.task import Task, check_budget, chunks, text_answer

MOST_HOPS = 12
MOST_NODES = 64
MOST_WALKS = 4096
HOP = ">"
EXPECTED = 'a problem is {"start": 0, "hops": 2, "facts": [[0, 3], [3, 1], ...]}, or start, hops and facts in one list'


@dataclass(frozen=True)
class MultiHop(Task):
    """Multi-hop lookup of up to `hops` hops among facts in random order; a problem is start, hops and facts.

    Raises ValueError for sizes that are not integers or out of range.
    """

    hops: int = 3
    """Most hops of a problem (1 to 12); each problem draws its own."""
    least: int = 1
    """Fewest hops of a problem (1 to hops)."""
    nodes: int = 8
    """Number of nodes (branching + 1 to 64)."""
    branching: int = 1
    """Facts of each node (at least 1); all walks together may be at most 4096."""
    bound: bool = False
    """Whether a fact is one token instead of two."""
    room: int | None = None
    """Most hops that positions have room for (hops to 12); hops when not given."""

    name: ClassVar[str] = "multihop"

    def __post_init__(self) -> None:
        check_integer("hops", self.hops, 1, MOST_HOPS, "try hops=3")
        check_integer("least", self.least, 1, self.hops, "try least=1")
        check_integer("branching", self.branching, 1, MOST_NODES - 1, "try branching=1")
        check_integer("nodes", self.nodes, self.branching + 1, MOST_NODES, "every fact of a node leads to another")
        check_flag("bound", self.bound)
        check_integer("room", self.capacity, self.hops, MOST_HOPS, f"the hops must fit: try room={self.hops}")
        if self.branching**self.capacity > MOST_WALKS:
            raise ValueError(
                f"branching {self.branching} and {self.capacity} hops make {self.branching**self.capacity:,} walks, "
                f"but at most {MOST_WALKS:,} are listed; try fewer hops or less branching"
            )

    @property
    def capacity(self) -> int:
        """`room`, or `hops` when room was not given."""
        return self.hops if self.room is None else self.room

    @property
    def facts(self) -> int:
        """F, the number of facts."""
        return self.nodes * self.branching

    @property
    def positions(self) -> int:
        """<bos>, one or two tokens a fact, a mark a hop, the start, and as many steps as hops."""
        return 2 + self._each * self.facts + 2 * self.capacity

    @property
    def _each(self) -> int:
        """Tokens of a fact."""
        return 1 if self.bound else 2

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Special tokens, the mark of a hop, a token for each node ("n0"), and, bound, for each pair of them."""
        return Vocabulary((*SPECIAL_TOKENS, HOP, *node_tokens(self.nodes, self.bound)))

    @property
    def _first(self) -> int:
        """The id of node 0."""
        return len(SPECIAL_TOKENS) + 1

    # -----------------------------------------------------------------------------------------------------------------
    # Problems

    def rows(self, problems: npt.ArrayLike) -> Integers:
        """Rows of start, hops and facts: `branching` facts for every node, each to another node and none twice."""
        rows_PM = checked_rows(problems, 2 + 2 * self.facts, 0, max(self.nodes - 1, self.hops))
        start_P, hops_P, facts_PF2 = _parts(rows_PM)
        pair_PF = np.sort(facts_PF2[..., 0] * self.nodes + facts_PF2[..., 1], axis=1)
        each = f"{self.branching} fact{'s' * (self.branching > 1)}"
        regular_PF = pair_PF // self.nodes == np.repeat(np.arange(self.nodes), self.branching)
        refuse_rows(
            {
                f"starts at a node outside 0 to {self.nodes - 1}": start_P >= self.nodes,
                f"has hops outside {self.least} to {self.hops}": (hops_P < self.least) | (hops_P > self.hops),
                f"names nodes outside 0 to {self.nodes - 1}": (facts_PF2 >= self.nodes).any(axis=(1, 2)),
                f"has not exactly {each} for every node from n0 to n{self.nodes - 1}": ~regular_PF.all(axis=1),
                "has a fact that leads from a node to itself": (facts_PF2[..., 0] == facts_PF2[..., 1]).any(axis=1),
                "has a fact twice": (pair_PF[:, 1:] == pair_PF[:, :-1]).any(axis=1),
            }
        )
        return rows_PM

    def problems(self, n: int, seed: int) -> Integers:
        """n problems (n, M): uniform start, hops, targets and order of facts."""
        start_P = self.drawn(1, n, derived_seed(seed, "start"), 0, self.nodes - 1)
        hops_P = self.drawn(1, n, derived_seed(seed, "hops"), self.least, self.hops)
        # The lowest ranks among the other nodes are a node's targets.
        other_PC = random_orders((n * self.nodes, self.nodes - 1), derived_seed(seed, "targets"))
        target_PCB = other_PC[:, : self.branching].reshape(n, self.nodes, self.branching)
        target_PCB = target_PCB + (target_PCB >= np.arange(self.nodes)[:, None])
        source_PCB = np.broadcast_to(np.arange(self.nodes)[:, None], target_PCB.shape)
        facts_PF2 = np.stack([source_PCB, target_PCB], -1).reshape(n, self.facts, 2)
        order_PF = random_orders((n, self.facts), derived_seed(seed, "order"))
        facts_PF2 = np.take_along_axis(facts_PF2, order_PF[..., None], axis=1)
        return np.concatenate([start_P, hops_P, facts_PF2.reshape(n, 2 * self.facts)], axis=1)

    def key(self, problems: npt.ArrayLike) -> Keys:
        """Stable hash (P,) of facts and start up to what does not change them; the hops do not count.

        So a start among facts that training has seen, at whatever hops, is never validated on. With one fact a node,
        names mean nothing: where there are classes enough (`quotiented`) problems share a key that differ in names or
        in the order of facts; otherwise those that differ in names alone. With more facts the answer is the first
        name, and only the order of facts is free.
        """
        rows_PM = self.rows(problems)
        if self.branching == 1:
            return self._class(rows_PM) if self.quotiented else stable_hash(self._renamed(rows_PM))
        start_P, _, facts_PF2 = _parts(rows_PM)
        pair_PF = np.sort(facts_PF2[..., 0] * self.nodes + facts_PF2[..., 1], axis=1)
        return stable_hash(np.column_stack([start_P, pair_PF]))

    @cached_property
    def quotiented(self) -> bool:
        """Whether keys ignore names and order: if 10,000 draws make at least 1,000 classes that way."""
        return self.branching == 1 and enough_classes(self._class(self.problems(DRAWS, seed=0)))

    def _class(self, rows_PM: Integers) -> Keys:
        """The isomorphism class of facts and start."""
        start_P, _, facts_PF2 = _parts(rows_PM)
        return canonical_hash(facts_PF2, (np.arange(self.nodes) == start_P[:, None]).astype(np.uint64))

    def _renamed(self, rows_PM: Integers) -> Integers:
        """Facts and start with nodes named by their first appearance."""
        return named_by_appearance(np.column_stack([rows_PM[:, 2:], rows_PM[:, 0]]), self.nodes)

    def ladder(self) -> dict[int, Task]:
        """The task with exactly 1, 2, .. hops."""
        return self.rungs(self.least, self.capacity, "least", "hops")

    # -----------------------------------------------------------------------------------------------------------------
    # The oracle

    def steps(self, problems: npt.ArrayLike) -> Integers:
        """The hops (P,)."""
        return self.rows(problems)[:, 1]

    def answer(self, problems: npt.ArrayLike) -> Integers:
        """The first node (P,) that the hops can reach."""
        rows_PM = self.rows(problems)
        answer_P = np.zeros(len(rows_PM), np.int64)
        for part in self._chunks(len(rows_PM)):
            start_P, hops_P, facts_PF2 = _parts(rows_PM[part])
            for hops, counts_PC in enumerate(path_counts(adjacency(facts_PF2, self.nodes), start_P, self.hops), 1):
                answer_P[part] = np.where(hops_P == hops, (counts_PC > 0).argmax(axis=1), answer_P[part])
        return answer_P

    def answer_ids(self, answers: npt.ArrayLike) -> Integers:
        """The nodes' tokens (P, 1)."""
        return np.asarray(answers, np.int64)[:, None] + self._first

    def prompt(self, problems: npt.ArrayLike) -> tuple[Integers, Mask]:
        """<bos>, the facts, a mark for every hop, the start; padded on the left to the most hops."""
        rows_PM = self.rows(problems)
        start_P, hops_P, facts_PF2 = _parts(rows_PM)
        place_N = np.arange(2 + self._each * self.facts + self.hops) - (self.hops - hops_P)[:, None]
        prompt_PN = np.where(place_N < 0, Vocabulary.pad, self.vocabulary.index(HOP))
        prompt_PN[place_N == 0] = Vocabulary.bos
        inside_PN = (place_N > 0) & (place_N <= self._each * self.facts)
        prompt_PN[inside_PN] = edge_tokens(facts_PF2, self.nodes, self.bound) + self._first
        prompt_PN[:, -1] = start_P + self._first
        return prompt_PN, place_N >= 0

    def chain(self, problems: npt.ArrayLike) -> Integers:
        """Token ids (P, T) of the first walk, node by node in the vocabulary's order, that ends in the answer."""
        rows_PM = self.rows(problems)
        chain_PT = np.full((len(rows_PM), self.hops), Vocabulary.pad)
        for part, hops in self._parts_by_hops(rows_PM):
            chain_PT[part, :hops] = self._best(rows_PM[part], hops, 1)[:, 0] + self._first
        return chain_PT

    def frontier(self, problems: npt.ArrayLike, budget: int | None = None) -> Shares:
        """Share of the chosen walks in each node (P, T, V); a problem's last step is one-hot on the answer.

        budget None chooses all walks of the problem's hops, otherwise the `budget` whose ends come first in the
        vocabulary, ties going to the first walk in the order of its nodes. Raises ValueError for a budget below 1.
        """
        rows_PM = self.rows(problems)
        check_budget(budget)
        frontier_PTV = np.zeros((len(rows_PM), self.hops, len(self.vocabulary)), np.float32)
        for part, hops in self._parts_by_hops(rows_PM):
            frontier_PTV[part, :hops] = self._shares(rows_PM[part], hops, budget)
            frontier_PTV[part, hops - 1] = 0
            frontier_PTV[part, hops - 1, self.answer(rows_PM[part]) + self._first] = 1
        return frontier_PTV

    def _shares(self, rows_PM: Integers, hops: int, budget: int | None) -> Shares:
        """Shares (P, T, V) of problems with equal hops, the last step not yet the answer's."""
        if budget is not None:
            walks_PBT = self._best(rows_PM, hops, budget) + self._first
            return shares_of(walks_PBT, np.ones(walks_PBT.shape[:2], bool), len(self.vocabulary))
        shares_PTV = np.zeros((len(rows_PM), hops, len(self.vocabulary)), np.float32)
        start_P, _, facts_PF2 = _parts(rows_PM)
        for step, counts_PC in enumerate(path_counts(adjacency(facts_PF2, self.nodes), start_P, hops)):
            shares_PTV[:, step, self._first : self._first + self.nodes] = counts_PC / self.branching ** (step + 1)
        return shares_PTV

    def _best(self, rows_PM: Integers, hops: int, budget: int) -> Integers:
        """The walks (P, B, T) of problems with equal hops whose ends come first, in the order of the vocabulary."""
        start_P, _, facts_PF2 = _parts(rows_PM)
        pair_PF = np.sort(facts_PF2[..., 0] * self.nodes + facts_PF2[..., 1], axis=1)
        next_PCB = (pair_PF % self.nodes).reshape(len(rows_PM), self.nodes, self.branching)
        row_P1, here_PK = np.arange(len(rows_PM))[:, None], start_P[:, None]
        choice_KT = np.array(list(product(range(self.branching), repeat=hops)))
        walk_PKT = np.zeros((len(rows_PM), *choice_KT.shape), np.int64)
        for step, choice_K in enumerate(choice_KT.T):
            here_PK = walk_PKT[..., step] = next_PCB[row_P1, here_PK, choice_K]
        best_PB = np.argsort(here_PK, axis=1, kind="stable")[:, :budget]
        return walk_PKT[row_P1, best_PB]

    def _parts_by_hops(self, rows_PM: Integers) -> Any:
        """(indices of rows, their hops) in chunks of rows with equal hops."""
        for hops in np.unique(rows_PM[:, 1]).tolist():
            index_P = np.flatnonzero(rows_PM[:, 1] == hops)
            yield from ((index_P[part], hops) for part in self._chunks(len(index_P)))

    def _chunks(self, count: int) -> Any:
        return chunks(count, max(self.nodes**2, self.hops * max(len(self.vocabulary), self.branching**self.hops)))

    def solve_slowly(self, problem: Sequence[int]) -> tuple[int, list[int]]:
        """The answer and the nodes of the best walk, by listing all walks (for tests)."""
        start, hops, *pairs = map(int, problem)
        targets: dict[int, list[int]] = {}
        for source, target in zip(pairs[::2], pairs[1::2], strict=True):
            targets.setdefault(source, []).append(target)
        walks = [[start]]
        for _ in range(hops):
            walks = [[*walk, target] for walk in walks for target in sorted(targets[walk[-1]])]
        best = min(walks, key=lambda walk: (walk[-1], walk))
        return best[-1], best[1:]

    def states(self, chain_ids_T: Integers) -> list[int]:
        """The nodes."""
        return (np.asarray(chain_ids_T) - self._first).tolist()

    # -----------------------------------------------------------------------------------------------------------------
    # In words

    def describe(self, problem: Sequence[int]) -> str:
        """One problem as lines of text: facts, start, answer, the best walk, and the largest shares of each step."""
        row_M = self.rows([problem])[0]
        tokens = self.vocabulary.decode(self.chain([row_M])[0, : row_M[1]])
        facts = ", ".join(f"n{source} n{target}" for source, target in row_M[2:].reshape(-1, 2))
        lines = {
            "problem": f"{row_M[1]} hops from n{row_M[0]}",
            "answer": tokens.split()[-1],
            "best walk": tokens,
            "facts": facts,
        }
        return self.described(problem, lines)

    def question(self, problem: Sequence[int]) -> str:
        """The task in words."""
        start, hops, *pairs = map(int, problem)
        facts = " ".join(f"n{s} leads to n{t}." for s, t in zip(pairs[::2], pairs[1::2], strict=True))
        many = f"exactly {hops} hop{'s' if hops > 1 else ''}"
        if self.branching == 1:
            return f"{facts} Starting from n{start}, where do you arrive after {many}? Answer with the name alone."
        return (
            f"{facts} Starting from n{start}, which nodes can be reached in {many}? Answer with the name of the one "
            "that has the lowest number."
        )

    def read(self, item: Any) -> Integers:
        """{"start": .., "hops": .., "facts": [[source, target], ..]}, or all in one list, as a problem (M,)."""
        return self.one(_as_list(item))

    def to_json(self, problem: Sequence[int]) -> dict[str, Any]:
        """{"start": .., "hops": .., "facts": [[source, target], ..]}."""
        start, hops, *pairs = map(int, problem)
        return {
            "start": start,
            "hops": hops,
            "facts": [list(pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)],
        }

    def read_answer(self, value: Any) -> Integers:
        """A node, such as "n3"."""
        text = text_answer(value)
        if text not in self.vocabulary.tokens[self._first : self._first + self.nodes]:
            raise ValueError(f"the answer is {text!r}; expected a node from n0 to n{self.nodes - 1}")
        return np.array([self.vocabulary.index(text)])

    def say(self, answer_ids_A: Integers) -> str | None:
        """The node's name."""
        id_ = int(answer_ids_A[0])
        return self.vocabulary.tokens[id_] if self._first <= id_ < self._first + self.nodes else None

    @classmethod
    def fitting(cls, item: Any) -> "MultiHop":
        """The task with as many nodes and facts as the problem has, and at least the default's hops."""
        numbers = _as_list(item)
        if len(numbers) < 6 or len(numbers) % 2:
            raise ValueError(f"got {len(numbers)} integers, but {EXPECTED}, with at least two facts")
        nodes = max(numbers[0], *numbers[2:]) + 1
        branching = max(1, (len(numbers) - 2) // 2 // max(1, nodes))
        return cls(hops=max(cls.hops, numbers[1]), nodes=nodes, branching=branching)


def _parts(rows_PM: Integers) -> tuple[Integers, Integers, Integers]:
    """Start (P,), hops (P,) and facts (P, F, 2)."""
    return rows_PM[:, 0], rows_PM[:, 1], rows_PM[:, 2:].reshape(len(rows_PM), rows_PM.shape[1] // 2 - 1, 2)


def _as_list(item: Any) -> list[int]:
    """Start, hops and facts in one list; ValueError for anything else."""
    numbers = joined([item.get("start"), item.get("hops")], item.get("facts")) if isinstance(item, dict) else item
    if not isinstance(numbers, list) or not all(map(is_integer, numbers)):
        raise ValueError(f"got {short(item)}, but {EXPECTED}")
    return numbers
