"""Two layers that search a graph in superposition (Zhu et al. 2025, arXiv 2505.12514), by weights made by hand.

The thought after c steps is the normalised superposition of all nodes within c edges of the root, |V_c|^(-1/2) sum of
u_v over V_c, and is fed back unchanged, as Coconut's hidden state is. Layer 1: every slot copies what stands one and
two slots before it, and whether the question's mark lies behind it. So the second token of an edge knows the first, its
source. Layer 2: the thought attends to edges whose source it holds, all alike, and adds their targets; where there is
none it attends to <bos>, which adds nothing. Attention weighs nodes by how many edges lead to them, so an MLP sets
every node that is held to 1, and normalisation to |V|^(-1/2).

At the end the mark "?" is given once more: it attends to the two slots after the first mark, the candidates, and keeps
the one that the thought before it holds.

Letters: D width, C nodes, P positions, B problems, T steps.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from tinylatent_tasks import Reachability
from tinylatent_tasks.batch import Vocabulary
from tinylatent_tasks.checks import checked_rows
from tinylatent_tasks.graphs import adjacency, cyclic, distances
from tinylatent_tasks.reachability import MARK
from torch import Tensor

from tinylatent.engine.plan import Plan, Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY, Hidden
from tinylatent.engine.trace import Trace
from tinylatent.models.blocks import Block, Head, Heads, Unit
from tinylatent.models.decoder import Decoder
from tinylatent_theory.constructions.parts import GAP, Room, Units, circle, eye, looks_back, mlp, zeros


def bfs_width(task: Reachability) -> int:
    """D: nodes held, one slot back, two slots back, newly reached, candidates (C each), and eight more."""
    return 5 * task.nodes + 8


def bfs_searcher(task: Reachability) -> Decoder:
    """Two layers that answer every "which" problem of a task whose edges are two tokens each.

    Raises:
        ValueError: the task asks "whether", or binds edges into one token.
    """
    if task.bound or task.asks != "which":
        raise ValueError(f"{task}: expected asks 'which' and edges of two tokens; try Reachability()")
    C, positions = task.nodes, task.positions + 1  # the mark is given once more
    names = {"node": C, "before": C, "twice": C, "reached": C, "candidate": C}
    # bos, mark, the marks one and two slots back, whether a mark lies behind, parity of the position, place
    room = Room(**names, bos=1, mark=1, marked=1, marked_twice=1, behind=1, parity=1, place=2)

    tokens_VD = zeros(len(task.vocabulary), room.width)
    tokens_VD[Vocabulary.bos, room["bos"]] = 1.0
    tokens_VD[task.vocabulary.index(MARK), room["mark"]] = 1.0
    first = task.vocabulary.index("n0")
    tokens_VD[first : first + C, room["node"]] = eye(C)
    places_PD = zeros(positions, room.width)
    places_PD[:, room["place"]] = circle(positions)
    places_PD[1::2, room["parity"]] = 1.0

    copies = Block(Heads([_before(room, 1, positions), _before(room, 2, positions), _behind(room)]), None)
    steps = Block(Heads([_step(room), _candidates(room)]), mlp(_sets(room, task)))
    return Decoder(tokens_VD, places_PD, [copies, steps], Unit())


def _before(room: Room, back: int, positions: int) -> Head:
    """Copies the node and the mark of the slot one or two before."""
    node, mark = (("before", "marked"), ("twice", "marked_twice"))[back - 1]
    return looks_back(room, back, positions, room.copies(("node", node), ("mark", mark)))


def _only(room: Room, **weights: float) -> Float[Tensor, "1 D"]:
    """A row that reads ranges of size one."""
    row_1D = zeros(1, room.width)
    for name, weight in weights.items():
        row_1D[:, room[name]] = weight
    return row_1D


def _behind(room: Room) -> Head:
    """Attends to the mark where it can be seen, otherwise to <bos>; what lies behind the mark knows it."""
    key_1D = GAP * _only(room, bos=1.0, mark=2.0)
    return Head(zeros(1, room.width), key_1D, room.copies(("mark", "behind")), torch.ones(1).double())


def _step(room: Room) -> Head:
    """A head from a superposition to the edges that leave it.

    The score of an edge is at least 2 GAP where its source is held, that of <bos> is GAP, of all else at most 0. Edges
    are told from others by the second token of each: an even position, and no mark behind it.
    """
    C = room["node"].stop - room["node"].start
    sharp, never = 2 * GAP * C**0.5, 4 * GAP * C**0.5  # a node that is held has at least 1 / sqrt(C)
    query_KD, key_KD = zeros(C + 1, room.width), zeros(C + 1, room.width)
    query_KD[:C, room["node"]], key_KD[:C, room["before"]] = sharp * eye(C), eye(C)
    key_KD[C:] = GAP * _only(room, bos=1.0) - never * _only(room, behind=1.0, parity=1.0)
    return Head(query_KD, key_KD, room.copies(("node", "reached")), torch.eye(C + 1)[C].double())


def _candidates(room: Room) -> Head:
    """A head from the mark to the two slots after the first mark; from anywhere else to <bos>."""
    query_KD, key_KD = zeros(2, room.width), zeros(2, room.width)
    query_KD[0] = 2 * GAP * _only(room, mark=1.0)[0]
    key_KD[0], key_KD[1] = _only(room, marked=1.0, marked_twice=1.0)[0], GAP * _only(room, bos=1.0)[0]
    return Head(query_KD, key_KD, room.copies(("node", "candidate")), torch.tensor([0.0, 1.0]).double())


def _sets(room: Room, task: Reachability) -> Units:
    """1 for every node held or reached, and at the mark for the candidate that the thought before it holds.

    x = E (held + reached) is at least 1 for those, since attention gives at least 1/E to the target of an edge, and
    noise for others: relu(2 x - 1) - relu(2 x - 2) is 1 and 0. Candidates hold 1/2 each, a node that is held at least
    2 e = 1 / sqrt(C): relu(before + 2 candidate - 1 - e) is 0 unless both are there.
    """
    C, E = task.nodes, max(task.edges, task.nodes)
    up_CD, write_DC = zeros(C, room.width), zeros(room.width, C)
    up_CD[:, room["node"]] = up_CD[:, room["reached"]] = 2 * E * eye(C)
    write_DC[room["node"]] = eye(C)
    both_CD = zeros(C, room.width)
    both_CD[:, room["before"]], both_CD[:, room["candidate"]] = eye(C), 2 * eye(C)
    units = Units(room).add(up_CD, -1.0, write_DC).add(up_CD, -2.0, -write_DC).add(both_CD, -1 - 0.5 / C**0.5, write_DC)
    return units.clear(*room.slices)


# ---------------------------------------------------------------------------------------------------------------------
# Running it


def search(task: Reachability, machine: Decoder, problems: npt.ArrayLike, steps: int | None = None) -> Trace:
    """Thinks, then is given the mark, then answers.

    Args:
        task: what the problems belong to.
        machine: `bfs_searcher(task)`.
        problems: rows of the task.
        steps: thoughts, the first of which holds all within one edge; by default as many for each problem as its
            target is away.
    """
    prompt_BN, mask_BN = map(torch.from_numpy, task.prompt(problems))
    thoughts = torch.from_numpy(task.steps(problems)) if steps is None else steps
    mark = GREEDY.given(torch.full((len(prompt_BN), 1), task.vocabulary.index(MARK)))
    plan: Plan = (Segment(Hidden(), thoughts), Segment(GREEDY, 1, mark), Segment(GREEDY, 1))
    return rollout(machine, plan, prompt_BN, mask_BN)


def within(task: Reachability, problems: npt.ArrayLike, steps: int) -> Bool[Tensor, "B T C"]:
    """Whether each node is at most 1, .., `steps` edges from the root, by breadth-first search."""
    rows_BM = np.asarray(problems)
    links_BCC = adjacency(rows_BM[:, 3:].reshape(len(rows_BM), -1, 2), task.nodes)
    distance_BC = distances(links_BCC, rows_BM[:, 0], steps)
    return torch.from_numpy(distance_BC[:, None] <= np.arange(1, steps + 1)[:, None])


@dataclass(frozen=True)
class CyclicToo(Reachability):
    """Reachability whose problems may have cycles, as the theorem's may; a problem is taken as it is given."""

    def rows(self, problems: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Rows of root, candidates and edges, of which only the names of nodes are checked."""
        return checked_rows(problems, 3 + 2 * self.edges, -1, self.nodes - 1)


def every_graph(nodes: int, cycles: bool = False) -> npt.NDArray[np.bool_]:
    """All directed graphs on labelled nodes without self-loops as adjacency matrices (N, C, C).

    Acyclic ones are 1, 3, 25, 543, 29281 for C = 1 .. 5; with `cycles` there are 2^(C (C - 1)).
    """
    arrows = [(a, b) for a in range(nodes) for b in range(nodes) if a != b]
    graphs_NE = (np.arange(1 << len(arrows))[:, None] >> np.arange(len(arrows))) & 1
    pairs = [] if cycles else [(arrows.index((a, b)), arrows.index((b, a))) for a, b in arrows if a < b]
    for there, back in pairs:  # no two opposite edges: what is left is a small part of all
        graphs_NE = graphs_NE[graphs_NE[:, there] + graphs_NE[:, back] < 2]
    links_NCC = np.zeros((len(graphs_NE), nodes, nodes), bool)
    for place, (a, b) in enumerate(arrows):
        links_NCC[:, a, b] = graphs_NE[:, place]
    return links_NCC if cycles else links_NCC[~cyclic(links_NCC.astype(np.float32))]


def every_question(task: Reachability, nodes: int, cycles: bool = False) -> npt.NDArray[np.int64]:
    """All "which" problems on all graphs of `nodes` nodes, acyclic or all, as rows of a task that has more nodes.

    Roots, reached targets and unreached others, in both orders of the candidates; edges in the order of their nodes.
    """
    problems = []
    for links_CC in every_graph(nodes, cycles):
        edges = np.full((task.edges, 2), -1)
        there = np.argwhere(links_CC)
        edges[: len(there)] = there
        walks_CC = links_CC.copy()
        for _ in range(nodes):
            walks_CC |= walks_CC @ links_CC
        for root in range(nodes):
            for target in np.flatnonzero(walks_CC[root] & (np.arange(nodes) != root)):
                for other in np.flatnonzero(~walks_CC[root]):
                    if other != root:
                        for pair in ((target, other), (other, target)):
                            problems.append([root, *pair, *edges.ravel()])
    return np.array(problems, np.int64).reshape(-1, 3 + 2 * task.edges)
