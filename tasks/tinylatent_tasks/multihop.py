"""Multi-hop lookup: facts in random order, a start, and a number of hops; which node is reached?

In-context composition, a common test of latent reasoning (Coconut, arXiv 2412.06769; CoLaR, arXiv 2505.16552). Every
node has `branching` facts "source target" that lead to other nodes. With one fact a node, the facts are a random
function and the answer is where k hops lead. With more the lookup is ambiguous: after t hops there are up to
branching^t walks, the frontier is their distribution over nodes, and the answer is the first node, in the order of the
vocabulary, that k hops can reach. All facts that are not on the walk are distractors.

Prompt: padding <bos> s_1 t_1 .. s_F t_F > .. > start, with a mark ">" per hop; facts precede the start, so that they
are read once and looked up at every step. With `bound` a fact is one token "n0>n3", so that a model need not learn to
pair sources with targets before it can learn to look them up. Steps: the visited nodes, the last of which is the
answer; k varies within a batch.

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

from tinylatent_tasks.answers import read_as
from tinylatent_tasks.batch import SPECIAL_TOKENS, Integers, Keys, Mask, Shares, Vocabulary
from tinylatent_tasks.checks import check_flag, check_integer, checked_rows, is_integer, joined, refuse_rows, short
from tinylatent_tasks.choice_sums import shares_of
from tinylatent_tasks.graphs import (
    DRAWS,
    adjacency,
    canonical_hash,
    edge_tokens,
    enough_classes,
    follows,
    named_by_appearance,
    node_tokens,
    path_counts,
)
from tinylatent_tasks.keys import derived_seed, random_orders, stable_hash
from tinylatent_tasks.task import Task, check_budget, chunks, of_width

MAX_HOPS = 12
MAX_NODES = 64
MAX_WALKS = 4096
HOP = ">"
EXPECTED = 'a problem is {"start": 0, "hops": 2, "facts": [[0, 3], [3, 1], ...]}, or start, hops and facts in one list'


@dataclass(frozen=True)
class MultiHop(Task):
    """Multi-hop lookup of up to `hops` hops among facts in random order; a problem is start, hops and facts.

    Raises ValueError for sizes that are not integers or out of range.
    """

    hops: int = 3
    """Most hops of a problem (1 to 12); problems draw theirs between `least` and `hops`."""
    least: int = 1
    """Fewest hops of a problem (1 to hops)."""
    nodes: int = 8
    """Number of nodes (branching + 1 to 64)."""
    branching: int = 1
    """Facts per node (at least 1); there may be at most 4096 walks."""
    bound: bool = False
    """Whether a fact is one token instead of two."""
    capacity: int | None = None
    """Most hops that positions allow (hops to 12); `hops` if not given."""

    name: ClassVar[str] = "multihop"

    def __post_init__(self) -> None:
        check_integer("hops", self.hops, 1, MAX_HOPS, "try hops=3")
        check_integer("least", self.least, 1, self.hops, "try least=1")
        check_integer("branching", self.branching, 1, MAX_NODES - 1, "try branching=1")
        check_integer("nodes", self.nodes, self.branching + 1, MAX_NODES, "every fact of a node leads to another")
        check_flag("bound", self.bound)
        check_integer("capacity", self.longest, self.hops, MAX_HOPS, f"the hops must fit: try capacity={self.hops}")
        if self.branching**self.longest > MAX_WALKS:
            raise ValueError(
                f"branching {self.branching} and {self.longest} hops make {self.branching**self.longest:,} walks, "
                f"but at most {MAX_WALKS:,} are listed; try fewer hops or less branching"
            )

    @property
    def longest(self) -> int:
        """`capacity`, or `hops` if capacity is not given."""
        return self.hops if self.capacity is None else self.capacity

    @property
    def facts(self) -> int:
        """F, the number of facts."""
        return self.nodes * self.branching

    @property
    def positions(self) -> int:
        """<bos>, one or two tokens a fact, a mark a hop, the start, and as many steps as hops."""
        return 2 + self._fact_tokens * self.facts + 2 * self.longest

    @property
    def _fact_tokens(self) -> int:
        """Tokens of a fact."""
        return 1 if self.bound else 2

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Special tokens, the mark of a hop, a token per node ("n0"), and if `bound` a token per pair of nodes."""
        return Vocabulary((*SPECIAL_TOKENS, HOP, *node_tokens(self.nodes, self.bound)))

    @property
    def _first(self) -> int:
        """The id of node 0."""
        return len(SPECIAL_TOKENS) + 1

    # -----------------------------------------------------------------------------------------------------------------
    # Problems

    def rows(self, problems: npt.ArrayLike) -> Integers:
        """Rows of start, hops and facts: `branching` facts for every node, all different and none to itself."""
        rows_PM = checked_rows(problems, 2 + 2 * self.facts, 0, max(self.nodes - 1, self.hops))
        start_P, hops_P, facts_PF2 = _parts(rows_PM)
        pair_PF = np.sort(facts_PF2[..., 0] * self.nodes + facts_PF2[..., 1], axis=1)
        many = f"{self.branching} fact{'s' * (self.branching > 1)}"
        regular_PF = pair_PF // self.nodes == np.repeat(np.arange(self.nodes), self.branching)
        refuse_rows(
            {
                f"starts at a node outside 0 to {self.nodes - 1}": start_P >= self.nodes,
                f"has hops outside {self.least} to {self.hops}": (hops_P < self.least) | (hops_P > self.hops),
                f"names nodes outside 0 to {self.nodes - 1}": (facts_PF2 >= self.nodes).any(axis=(1, 2)),
                f"has not exactly {many} for every node from n0 to n{self.nodes - 1}": ~regular_PF.all(axis=1),
                "has a fact that leads from a node to itself": (facts_PF2[..., 0] == facts_PF2[..., 1]).any(axis=1),
                "has a fact twice": (pair_PF[:, 1:] == pair_PF[:, :-1]).any(axis=1),
            }
        )
        return rows_PM

    def problems(self, n: int, seed: int, first: int = 0) -> Integers:
        """Problems first, first + 1, .. (n, M): uniform start, hops, targets and order of facts."""
        start_P = self.drawn(1, n, derived_seed(seed, "start"), 0, self.nodes - 1, first)
        hops_P = self.drawn(1, n, derived_seed(seed, "hops"), self.least, self.hops, first)
        # The lowest ranks among the other nodes are a node's targets.
        other_PC = random_orders((n * self.nodes, self.nodes - 1), derived_seed(seed, "targets"), first * self.nodes)
        target_PCB = other_PC[:, : self.branching].reshape(n, self.nodes, self.branching)
        target_PCB = target_PCB + (target_PCB >= np.arange(self.nodes)[:, None])
        source_PCB = np.broadcast_to(np.arange(self.nodes)[:, None], target_PCB.shape)
        facts_PF2 = np.stack([source_PCB, target_PCB], -1).reshape(n, self.facts, 2)
        order_PF = random_orders((n, self.facts), derived_seed(seed, "order"), first)
        facts_PF2 = np.take_along_axis(facts_PF2, order_PF[..., None], axis=1)
        return np.concatenate([start_P, hops_P, facts_PF2.reshape(n, 2 * self.facts)], axis=1)

    def key(self, problems: npt.ArrayLike) -> Keys:
        """Stable hash (P,) of facts and start, the same for equivalent problems; it ignores the hops.

        So facts and start of a training problem never appear in validation with other hops. With one fact a node,
        names do not matter: if there are enough classes (`quotiented`), problems that differ in names or in the order
        of facts share a key; otherwise those that differ in names alone. With more facts the answer depends on names,
        and only problems that differ in the order of facts share a key.
        """
        rows_PM = self.rows(problems)
        if self.branching == 1:
            return self._class(rows_PM) if self.quotiented else stable_hash(self._renamed(rows_PM))
        start_P, _, facts_PF2 = _parts(rows_PM)
        pair_PF = np.sort(facts_PF2[..., 0] * self.nodes + facts_PF2[..., 1], axis=1)
        return stable_hash(np.column_stack([start_P, pair_PF]))

    @cached_property
    def quotiented(self) -> bool:
        """Whether keys ignore names and order: True if 10,000 problems then still have at least 1,000 keys."""
        return self.branching == 1 and enough_classes(self._class(self.problems(DRAWS, seed=0)))

    def _class(self, rows_PM: Integers) -> Keys:
        """The isomorphism class of facts and start."""
        start_P, _, facts_PF2 = _parts(rows_PM)
        return canonical_hash(facts_PF2, (np.arange(self.nodes) == start_P[:, None]).astype(np.uint64))

    def _renamed(self, rows_PM: Integers) -> Integers:
        """Facts and start with nodes named by their first appearance."""
        return named_by_appearance(np.column_stack([rows_PM[:, 2:], rows_PM[:, 0]]), self.nodes)

    def levels(self) -> dict[int, Task]:
        """The task with exactly `least` hops, one more, and so on."""
        return self.at_levels(self.least, self.longest, "least", "hops")

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
        """<bos>, the facts, a mark per hop, the start; padded on the left to the most hops."""
        rows_PM = self.rows(problems)
        start_P, hops_P, facts_PF2 = _parts(rows_PM)
        index_PN = np.arange(2 + self._fact_tokens * self.facts + self.hops) - (self.hops - hops_P)[:, None]
        prompt_PN = np.where(index_PN < 0, Vocabulary.pad, self.vocabulary.index(HOP))
        prompt_PN[index_PN == 0] = Vocabulary.bos
        inside_PN = (index_PN > 0) & (index_PN <= self._fact_tokens * self.facts)
        prompt_PN[inside_PN] = edge_tokens(facts_PF2, self.nodes, self.bound) + self._first
        prompt_PN[:, -1] = start_P + self._first
        return prompt_PN, index_PN >= 0

    def chain(self, problems: npt.ArrayLike) -> Integers:
        """Token ids (P, T) of the first walk, node by node in the vocabulary's order, that ends in the answer."""
        rows_PM = self.rows(problems)
        chain_PT = np.full((len(rows_PM), self.hops), Vocabulary.pad)
        for part, hops in self._parts_by_hops(rows_PM):
            chain_PT[part, :hops] = self._best(rows_PM[part], hops, 1)[:, 0] + self._first
        return chain_PT

    def frontier(self, problems: npt.ArrayLike, budget: int | None = None) -> Shares:
        """Shares (P, T, V) of nodes among the chosen walks; a problem's last step is one-hot on the answer.

        budget None chooses all walks of the problem's hops, otherwise the `budget` whose ends come first in the
        vocabulary; ties go to the first walk in the order of its nodes. Raises ValueError for a budget below 1.
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
        """Shares (P, T, V) of nodes for problems with equal hops, before the last step is set to the answer."""
        if budget is not None:
            walks_PBT = self._best(rows_PM, hops, budget) + self._first
            return shares_of(walks_PBT, np.ones(walks_PBT.shape[:2], bool), len(self.vocabulary))
        shares_PTV = np.zeros((len(rows_PM), hops, len(self.vocabulary)), np.float32)
        start_P, _, facts_PF2 = _parts(rows_PM)
        for step, counts_PC in enumerate(path_counts(adjacency(facts_PF2, self.nodes), start_P, hops)):
            shares_PTV[:, step, self._first : self._first + self.nodes] = counts_PC / self.branching ** (step + 1)
        return shares_PTV

    def _best(self, rows_PM: Integers, hops: int, budget: int) -> Integers:
        """The walks (P, B, T) whose ends come first in the vocabulary, for problems with equal hops."""
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
        """Yields (indices of rows, their hops) in chunks of rows with equal hops."""
        for hops in np.unique(rows_PM[:, 1]).tolist():
            index_P = np.flatnonzero(rows_PM[:, 1] == hops)
            yield from ((index_P[part], hops) for part in self._chunks(len(index_P)))

    def _chunks(self, count: int) -> Any:
        return chunks(count, max(self.nodes**2, self.hops * max(len(self.vocabulary), self.branching**self.hops)))

    def certified(self, problems: npt.ArrayLike, chain_PT: npt.ArrayLike, answer_PA: npt.ArrayLike) -> Mask:
        """True (P,) where facts lead from the start over the chain's nodes to the answer, in as many hops as asked.

        Raises ValueError if nodes have several facts: a walk does not show that no other ends at an earlier node.
        """
        if self.branching > 1:
            raise ValueError(
                f"with branching {self.branching} a walk proves no answer, which is the first of all ends: take "
                "branching=1"
            )
        rows_PM, answer_PA = self.rows(problems), np.asarray(answer_PA, np.int64)
        start_P, hops_P, facts_PF2 = _parts(rows_PM)
        chain_PT, whole_P = of_width(chain_PT, self.hops - 1)
        walk_PT = np.pad(chain_PT, ((0, 0), (0, 1)), constant_values=-1)
        rows_P = np.arange(len(rows_PM))
        proved_P = whole_P & ((walk_PT != -1).sum(axis=1) == hops_P - 1)
        walk_PT[rows_P, hops_P - 1] = answer_PA[:, 0]
        return proved_P & follows(facts_PF2, start_P, walk_PT - self._first, hops_P)

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
        """One problem as lines of text: facts, start, answer, the best walk, and the largest shares of every step."""
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
        names = {f"n{node}": node for node in range(self.nodes)}
        return np.array([read_as(value, names.get, f"a node from n0 to n{self.nodes - 1}") + self._first])

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
