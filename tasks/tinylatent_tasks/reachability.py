"""Graph reachability: which of two nodes can be reached from the root, or whether one can within a number of steps.

The symbolic form of ProsQA ("which", Coconut, arXiv 2412.06769) and ProntoQA ("whether", as posed in CoT2, arXiv
2505.23648, within 5 steps); Zhu et al., arXiv 2505.12514, show how two layers solve it by superposition. The state
after step t is a node t edges from the root, so the frontier over all walks is (walks of t edges that end in v) / (all
walks of t edges): breadth-first search in one vector. In generated graphs both candidates have the same distribution:
see `tinylatent_tasks.dags`.

"which": the number of steps is the target's distance, so a method knows it; in generated graphs both candidates have
this distance from a root. The best trace is the shortest path whose nodes come first in the vocabulary; its last node,
the reached candidate, is the answer. "whether": `depth` steps, then yes or no; in generated graphs a no means that the
candidate cannot be reached at all. A walk that arrives at the candidate, or at a node without outgoing edges, stays
there; the best trace is a shortest path to the candidate, or without one the first walk in the vocabulary's order.

Prompt: padding <bos> u_1 v_1 .. u_E v_E ? candidates root; with `bound` an edge is one token "n0>n3", so that a model
need not learn to pair sources with targets before it can learn to follow edges.

Letters: P problems, M integers of a problem (root, two candidates, then edges; -1 where there is none), E edges,
C nodes, T steps, V vocabulary, A = 1 answer token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt

from tinylatent_tasks.answers import NO, YES, read_as, truth
from tinylatent_tasks.batch import SPECIAL_TOKENS, Integers, Keys, Mask, Shares, Vocabulary
from tinylatent_tasks.checks import (
    check_choice,
    check_flag,
    check_integer,
    checked_rows,
    is_integer,
    joined,
    refuse_rows,
    short,
)
from tinylatent_tasks.dags import shuffled, two_sided
from tinylatent_tasks.graphs import (
    DRAWS,
    UNREACHED,
    adjacency,
    canonical_hash,
    cyclic,
    distances,
    edge_tokens,
    enough_classes,
    first_walks,
    named_by_appearance,
    node_tokens,
    path_counts,
)
from tinylatent_tasks.keys import derived_seed, stable_hash
from tinylatent_tasks.reachability_slowly import solve_reachability_slowly
from tinylatent_tasks.task import Task, check_budget, chunks, one_hot

Question = Literal["which", "whether"]
MAX_NODES = 64
MAX_DEPTH = 12
MAX_EDGES = 512
WITHIN = 5
"""Number of steps for "whether" if a problem does not say: ProntoQA's."""
MARK = "?"
NONE = -1
"""Stands for a missing edge, and for the second candidate of "whether"."""
EXPECTED = 'a problem is {"root": 0, "candidates": [4, 7], "edges": [[0, 3], [3, 4], ...]}'


@dataclass(frozen=True)
class Reachability(Task):
    """Reachability in a random acyclic graph; a problem is a root, its candidates, and the graph's edges.

    Raises ValueError for sizes that are not integers or out of range.
    """

    asks: Question = "which"
    """Which of two candidates can be reached, or whether a single one can within `depth` steps."""
    nodes: int = 12
    """Number of nodes (2 * (capacity + 1) to 64)."""
    edges: int = 16
    """Edges of a graph (nodes - 2 to 512); fewer where the nodes do not allow as many."""
    depth: int = 3
    """Most edges from a root to its target (1 to 12)."""
    least: int | None = None
    """Fewest edges from a root to its target (1 to depth); `depth` if not given."""
    bound: bool = False
    """Whether an edge is one token instead of two."""
    capacity: int | None = None
    """Largest depth that positions allow (depth to 12); `depth` if not given."""

    name: ClassVar[str] = "reachability"

    def __post_init__(self) -> None:
        check_choice("asks", self.asks, get_args(Question))
        check_integer("depth", self.depth, 1, MAX_DEPTH, "try depth=3")
        check_integer("least", self.fewest, 1, self.depth, f"try least={self.depth}")
        check_flag("bound", self.bound)
        check_integer("capacity", self.longest, self.depth, MAX_DEPTH, f"the depth must fit: try capacity={self.depth}")
        needed = 2 * (self.longest + 1)
        check_integer("nodes", self.nodes, needed, MAX_NODES, f"two paths of {self.longest} edges need {needed}")
        check_integer("edges", self.edges, self.nodes - 2, MAX_EDGES, f"try edges={self.nodes + 4}")

    @property
    def longest(self) -> int:
        """`capacity`, or `depth` if capacity is not given."""
        return self.depth if self.capacity is None else self.capacity

    @property
    def fewest(self) -> int:
        """`least`, or `depth` if least is not given."""
        return self.depth if self.least is None else self.least

    @property
    def _whether(self) -> bool:
        return self.asks == "whether"

    @property
    def positions(self) -> int:
        """<bos>, one or two tokens an edge, the mark, candidates and root, and the steps of the deepest problem."""
        return 1 + self._edge_tokens * self.edges + self._question_tokens + self.longest

    @property
    def _edge_tokens(self) -> int:
        """Tokens of an edge."""
        return 1 if self.bound else 2

    @property
    def _question_tokens(self) -> int:
        """Tokens behind the edges, at most."""
        return 4

    @cached_property
    def names(self) -> list[str]:
        """What nodes are called."""
        return node_tokens(self.nodes, bound=False)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Special tokens, the mark "?", "no", "yes", a token per node ("n0"), and if `bound` a token per pair."""
        return Vocabulary((*SPECIAL_TOKENS, MARK, NO, YES, *node_tokens(self.nodes, self.bound)))

    @property
    def _first(self) -> int:
        """The id of node 0."""
        return len(SPECIAL_TOKENS) + 3

    # -----------------------------------------------------------------------------------------------------------------
    # Problems

    def rows(self, problems: npt.ArrayLike) -> Integers:
        """Rows of root, candidates and edges: an acyclic graph in which the question has exactly one answer."""
        rows_PM = checked_rows(problems, 3 + 2 * self.edges, NONE, self.nodes - 1)
        root_P, candidate_P2, edges_PE2 = _parts(rows_PM)
        single_P = candidate_P2[:, 1] == NONE
        there_PE2 = edges_PE2 >= 0
        pair_PE = np.sort(edges_PE2[..., 0] * self.nodes + edges_PE2[..., 1], axis=1)
        refuse_rows(
            {
                "has no root or no candidate": (root_P < 0) | (candidate_P2[:, 0] < 0),
                "needs two candidates": single_P & (not self._whether),
                "needs exactly one candidate": ~single_P & self._whether,
                "has the root or a node twice among its candidates": (candidate_P2 == root_P[:, None]).any(axis=1)
                | (candidate_P2[:, 0] == candidate_P2[:, 1]),
                "has an edge with one end": (there_PE2[..., 0] != there_PE2[..., 1]).any(axis=1),
                "has an edge twice": ((pair_PE[:, 1:] == pair_PE[:, :-1]) & (pair_PE[:, 1:] >= 0)).any(axis=1),
            }
        )
        for part in self._chunks(len(rows_PM)):
            self._check_graphs(rows_PM[part], part.start)
        return rows_PM

    def _check_graphs(self, rows_PM: Integers, first: int) -> None:
        """ValueError unless the graphs are acyclic and one of two candidates is reached, within depth."""
        root_P, candidate_P2, edges_PE2 = _parts(rows_PM)
        links_PCC = adjacency(edges_PE2, self.nodes)
        complaints = {"has a cycle where an acyclic graph was expected": cyclic(links_PCC)}
        if not self._whether:
            distance_P2 = np.take_along_axis(distances(links_PCC, root_P, self.nodes), candidate_P2, axis=1)
            reached_P = (distance_P2 < UNREACHED).sum(axis=1)
            complaints |= {
                "has a target that cannot be reached from the root": reached_P == 0,
                "has two candidates that can be reached, where one was expected": reached_P == 2,
                f"has a target more than {self.depth} edges from the root": distance_P2.min(axis=1) > self.depth,
            }
        refuse_rows(complaints, first)

    def problems(self, n: int, seed: int, first: int = 0) -> Integers:
        """Problems first, first + 1, .. (n, M): a graph with two roots, targets at equal distance, all orders shuffled.

        "which" asks one root, by a fair coin, about both targets; "whether" asks it about one of them, by another coin.
        """
        distance_P = self.drawn(1, n, derived_seed(seed, "distance"), self.fewest, self.depth, first)[:, 0]
        coin_P3 = self.drawn(3, n, derived_seed(seed, "coins"), 0, 1, first)
        side = max(self.longest + 1, (self.nodes - self.nodes // 6) // 2)
        edges_PE2 = two_sided(side, self.nodes, self.edges, distance_P, derived_seed(seed, "graph"), first)
        asked_P = coin_P3[:, :1] * side
        candidate_P2 = distance_P[:, None] + side * (coin_P3[:, 1:2] ^ [0, 1])
        rows_PM = shuffled(edges_PE2, np.concatenate([asked_P, candidate_P2], axis=1), self.nodes, seed, first)
        if self._whether:
            rows_PM[:, 2] = NONE
        return rows_PM

    def key(self, problems: npt.ArrayLike) -> Keys:
        """Stable hash (P,) that ignores names, order of edges and of candidates; names alone unless `quotiented`."""
        rows_PM = self.rows(problems)
        if self.quotiented:
            return self._class(rows_PM)
        return stable_hash(named_by_appearance(np.roll(rows_PM, -3, axis=1), self.nodes))

    @cached_property
    def quotiented(self) -> bool:
        """Whether keys ignore names and orders: True if 10,000 problems then still have at least 1,000 keys."""
        widest = replace(self, least=1, depth=self.longest)  # the same for all levels of a task
        return enough_classes(widest._class(widest.problems(DRAWS, seed=0)))

    def _class(self, rows_PM: Integers) -> Keys:
        """The isomorphism class of graph, root and candidates."""
        root_P, candidate_P2, edges_PE2 = _parts(rows_PM)
        colour_PC = np.zeros((len(rows_PM), self.nodes), np.uint64)
        rows_P1 = np.arange(len(rows_PM))[:, None]
        colour_PC[rows_P1, _twice(candidate_P2)] = 2
        colour_PC[rows_P1[:, 0], root_P] = 1
        return canonical_hash(edges_PE2, colour_PC)

    def levels(self) -> dict[int, Task]:
        """The task with distance `fewest`, one more, and so on."""
        return self.at_levels(self.fewest, self.longest, "least", "depth")

    # -----------------------------------------------------------------------------------------------------------------
    # The oracle

    @property
    def _max_steps(self) -> int:
        """T: edges of the deepest problem, and for "whether" the answer after them."""
        return self.depth + self._whether

    def steps(self, problems: npt.ArrayLike) -> Integers:
        """Number of steps (P,): the distance of the target, or depth + 1 for "whether"."""
        rows_PM = self.rows(problems)
        if self._whether:
            return np.full(len(rows_PM), self._max_steps)
        return self._distance(rows_PM)

    def _distance(self, rows_PM: Integers) -> Integers:
        """Edges from the root to the nearest candidate (P,)."""
        distance_P = np.zeros(len(rows_PM), np.int64)
        for part in self._chunks(len(rows_PM)):
            root_P, candidate_P2, edges_PE2 = _parts(rows_PM[part])
            distance_PC = distances(adjacency(edges_PE2, self.nodes), root_P, self.depth)
            distance_P2 = np.take_along_axis(distance_PC, _twice(candidate_P2), axis=1)
            distance_P[part] = distance_P2.min(axis=1)
        return distance_P

    def answer(self, problems: npt.ArrayLike) -> Integers:
        """The candidate that is reached (P,); for "whether" 1 if it is, within depth, else 0."""
        rows_PM = self.rows(problems)
        if self._whether:
            return (self._distance(rows_PM) < UNREACHED).astype(np.int64)
        answer_P = np.zeros(len(rows_PM), np.int64)
        for part in self._chunks(len(rows_PM)):
            root_P, candidate_P2, edges_PE2 = _parts(rows_PM[part])
            distance_PC = distances(adjacency(edges_PE2, self.nodes), root_P, self.depth)
            first_P = np.take_along_axis(distance_PC, candidate_P2[:, :1], axis=1)[:, 0] < UNREACHED
            answer_P[part] = np.where(first_P, candidate_P2[:, 0], candidate_P2[:, 1])
        return answer_P

    def answer_ids(self, answers: npt.ArrayLike) -> Integers:
        """The tokens (P, 1) of the nodes, or of no and yes."""
        return np.asarray(answers, np.int64)[:, None] + (self.vocabulary.index(NO) if self._whether else self._first)

    def prompt(self, problems: npt.ArrayLike) -> tuple[Integers, Mask]:
        """<bos>, the edges, the mark, the candidates, the root; padded on the left to the most edges."""
        rows_PM = self.rows(problems)
        root_P, candidate_P2, edges_PE2 = _parts(rows_PM)
        asked_PQ = self._asked(root_P, candidate_P2)
        there_PE = edges_PE2[..., 0] >= 0
        missing_P1 = (~there_PE).sum(axis=1)[:, None]
        index_PN = np.arange(1 + self._edge_tokens * self.edges) - self._edge_tokens * missing_P1
        prompt_PN = np.where(index_PN < 0, Vocabulary.pad, Vocabulary.bos)
        prompt_PN[index_PN > 0] = self._told(edges_PE2[there_PE])
        mask_PN = np.concatenate([index_PN >= 0, np.ones(asked_PQ.shape, bool)], axis=1)
        return np.concatenate([prompt_PN, asked_PQ], axis=1), mask_PN

    def _told(self, edges_X2: Integers) -> Integers:
        """The tokens of edges, one edge after the other."""
        return edge_tokens(edges_X2, self.nodes, self.bound) + self._first

    def _asked(self, root_P: Integers, candidate_P2: Integers) -> Integers:
        """The tokens (P, Q) of the question."""
        mark_P = np.full(len(root_P), self.vocabulary.index(MARK))
        return np.column_stack([mark_P, candidate_P2[:, : 2 - self._whether] + self._first, root_P + self._first])

    def chain(self, problems: npt.ArrayLike) -> Integers:
        """Token ids (P, T) of the best trace, which the module describes; shorter ones are padded."""
        rows_PM = self.rows(problems)
        chain_PT = np.zeros((len(rows_PM), self._max_steps), np.int64)
        for part in self._chunks(len(rows_PM)):
            chain_PT[part, : self.depth] = self._walks(rows_PM[part]) + self._first
        if self._whether:
            chain_PT[:, -1] = self.answer_ids(self.answer(rows_PM))[:, 0]
        chain_PT[np.arange(self._max_steps) >= self.steps(rows_PM)[:, None]] = Vocabulary.pad
        return chain_PT

    def _links(self, rows_PM: Integers) -> npt.NDArray[np.float32]:
        """Edges as a matrix (P, C, C); for "whether" walks stay at the candidate and at nodes without edges."""
        _, candidate_P2, edges_PE2 = _parts(rows_PM)
        links_PCC = adjacency(edges_PE2, self.nodes)
        if self._whether:
            links_PCC[np.arange(len(rows_PM)), candidate_P2[:, 0]] = 0
            end_PC = ~links_PCC.any(axis=2)
            links_PCC[:, np.arange(self.nodes), np.arange(self.nodes)] += end_PC
        return links_PCC

    def _walks(self, rows_PM: Integers) -> Integers:
        """The nodes (P, depth) of the best walk; for "which" the entries after the target have no meaning."""
        links_PCC = self._links(rows_PM)
        target_P = rows_PM[:, 1] if self._whether else self.answer(rows_PM)
        away_PC = distances(links_PCC.transpose(0, 2, 1), target_P, self.depth)
        whole_P = np.take_along_axis(away_PC, rows_PM[:, :1], axis=1)
        left_PT = np.maximum(whole_P - 1 - np.arange(self.depth), 0)
        allowed_PTC = (away_PC[:, None] == left_PT[..., None]) | (whole_P == UNREACHED)[..., None]
        return first_walks(links_PCC, rows_PM[:, 0], allowed_PTC, self.depth)

    def frontier(self, problems: npt.ArrayLike, budget: int | None = None) -> Shares:
        """Shares (P, T, V) of nodes among all walks, or the best trace with budget 1; the last step is the answer.

        Raises ValueError for any other budget: walks that miss the target have no order of merit.
        """
        rows_PM = self.rows(problems)
        check_budget(budget)
        if budget is not None:
            if budget > 1:
                raise ValueError(f"budget is {budget}, but walks have no order of merit; try budget=1, or None for all")
            chain_PT = self.chain(rows_PM)
            return one_hot(chain_PT, len(self.vocabulary)) * (chain_PT != Vocabulary.pad)[..., None]
        frontier_PTV = np.zeros((len(rows_PM), self._max_steps, len(self.vocabulary)), np.float32)
        for part in self._chunks(len(rows_PM)):
            counts = path_counts(self._links(rows_PM[part]), rows_PM[part, 0], self.depth)
            for step, counts_PC in enumerate(counts):
                total_P1 = np.maximum(counts_PC.sum(axis=1, keepdims=True), 1)
                frontier_PTV[part, step, self._first : self._first + self.nodes] = counts_PC / total_P1
        steps_P = self.steps(rows_PM)
        frontier_PTV[np.arange(self._max_steps) >= steps_P[:, None] - 1] = 0
        frontier_PTV[np.arange(len(rows_PM)), steps_P - 1, self.answer_ids(self.answer(rows_PM))[:, 0]] = 1
        return frontier_PTV

    def _chunks(self, count: int) -> Any:
        return chunks(count, max(self.nodes**2, self._max_steps * len(self.vocabulary)))

    def solve_slowly(self, problem: Sequence[int]) -> tuple[int, list[int]]:
        """The answer and the nodes of the best trace, by listing all walks (for tests)."""
        return solve_reachability_slowly(problem, self.depth, self._whether)

    # -----------------------------------------------------------------------------------------------------------------
    # In words

    def states(self, chain_ids_T: Integers) -> list[int]:
        """The nodes, without the answer yes or no."""
        nodes_T = np.asarray(chain_ids_T) - self._first
        return (nodes_T[:-1] if self._whether else nodes_T).tolist()

    def describe(self, problem: Sequence[int]) -> str:
        """One problem as lines of text: edges, question, answer, best walk, and the largest shares of every step."""
        row_M = self.rows([problem])[0]
        steps = self.steps([row_M])[0]
        edges = row_M[3:].reshape(-1, 2)
        candidates = " or ".join(self.names[node] for node in row_M[1:3] if node >= 0)
        lines = {
            "problem": f"from {self.names[row_M[0]]} to {candidates}" + f" within {self.depth} steps" * self._whether,
            "answer": self.vocabulary.decode(self.answer_ids(self.answer([row_M]))[0]),
            "best walk": self.vocabulary.decode(self.chain([row_M])[0, : steps - self._whether]),
            "edges": ", ".join(f"{self.names[u]} {self.names[v]}" for u, v in edges if u >= 0),
        }
        return self.described(problem, lines)

    def question(self, problem: Sequence[int]) -> str:
        """The task in words."""
        value = self.to_json(problem)
        edges = " ".join(f"There is an edge from n{source} to n{target}." for source, target in value["edges"])
        names = " or ".join(f"n{node}" for node in value["candidates"])
        if self._whether:
            return (
                f"{edges} Following edges from n{value['root']}, can {names} be reached in at most {self.depth} steps? "
                "Answer yes or no."
            )
        return (
            f"{edges} Following edges from n{value['root']}, which can be reached, {names}? Answer with the name alone."
        )

    def read(self, item: Any) -> Integers:
        """{"root": .., "candidates": [..], "edges": [[from, to], ..]}, or the row as one list, as a problem (M,)."""
        numbers = _as_list(item)
        within = item.get("within", self.depth) if isinstance(item, dict) else self.depth
        if self._whether and within != self.depth:
            raise ValueError(f"the problem asks within {short(within)} steps, but this task is about {self.depth}")
        if len(numbers) > 3 + 2 * self.edges:
            raise ValueError(f"the problem has {(len(numbers) - 3) // 2} edges, but at most {self.edges} have room")
        return self.one(numbers + [NONE] * (3 + 2 * self.edges - len(numbers)))

    def to_json(self, problem: Sequence[int]) -> dict[str, Any]:
        """{"root": .., "candidates": [..], "edges": [[from, to], ..]}."""
        root, *candidates = map(int, problem[:3])
        edges = [[int(u), int(v)] for u, v in zip(problem[3::2], problem[4::2], strict=True) if u >= 0]
        value = {"root": root, "candidates": [node for node in candidates if node >= 0], "edges": edges}
        return value | ({"within": self.depth} if self._whether else {})

    def read_answer(self, value: Any) -> Integers:
        """A node, such as "n3", or yes or no."""
        if self._whether:
            return self.answer_ids([read_as(value, truth, "yes or no")])[0]
        names = {name: node for node, name in enumerate(self.names)}
        return self.answer_ids([read_as(value, names.get, f"a node from {self.names[0]} to {self.names[-1]}")])[0]

    def say(self, answer_ids_A: Integers) -> str | None:
        """The node's name, or yes or no."""
        id_ = int(answer_ids_A[0])
        token = self.vocabulary.tokens[id_] if 0 <= id_ < len(self.vocabulary) else ""
        fits = token in (NO, YES) if self._whether else 0 <= id_ - self._first < self.nodes
        return token if fits else None

    @classmethod
    def fitting(cls, item: Any) -> "Reachability":
        """The task that fits the problem's nodes, edges and distance: "whether" for a single candidate."""
        numbers = _as_list(item)
        if min(numbers[0], numbers[1]) < 0 or min(numbers) < NONE or max(numbers) >= MAX_NODES:
            raise ValueError(f"nodes are named from 0 to {MAX_NODES - 1}, but got {short(item)}: rename them")
        single = numbers[2] == NONE
        edges = np.reshape(np.array(numbers[3:], np.int64), (1, len(numbers) // 2 - 1, 2))
        nodes = max(cls.nodes, max(numbers) + 1)
        distance_C = distances(adjacency(edges, nodes), np.array(numbers[:1]), nodes)[0]
        reached = [int(distance_C[node]) for node in numbers[1:3] if node >= 0 and distance_C[node] < UNREACHED]
        within = item.get("within", WITHIN) if isinstance(item, dict) else WITHIN
        depth = within if single else min(MAX_DEPTH, max([cls.depth, *reached]))
        check_integer("within", depth, 1, MAX_DEPTH, f"try {WITHIN}")
        nodes = max(nodes, 2 * (depth + 1))
        count = max(nodes - 2, cls.edges, edges.shape[1])
        return cls("whether" if single else "which", nodes, count, depth, least=1)


def _parts(rows_PM: Integers) -> tuple[Integers, Integers, Integers]:
    """Root (P,), candidates (P, 2) and edges (P, E, 2)."""
    return rows_PM[:, 0], rows_PM[:, 1:3], rows_PM[:, 3:].reshape(len(rows_PM), rows_PM.shape[1] // 2 - 1, 2)


def _twice(candidate_P2: Integers) -> Integers:
    """Candidates (P, 2), a single one repeated."""
    return np.where(candidate_P2 < 0, candidate_P2[:, :1], candidate_P2)


def _as_list(item: Any) -> list[int]:
    """Root, two candidates (the second may be NONE) and edges in one list; ValueError for anything else."""
    numbers = item
    if isinstance(item, dict):
        candidates = item.get("candidates")
        asked = candidates if isinstance(candidates, list) and len(candidates) in (1, 2) else None
        numbers = asked and joined([item.get("root"), *asked, *[NONE] * (2 - len(asked))], item.get("edges"))
    if not isinstance(numbers, list) or not all(map(is_integer, numbers)) or len(numbers) < 3 or len(numbers) % 2 == 0:
        raise ValueError(f"got {short(item)}, but {EXPECTED}")
    return numbers
