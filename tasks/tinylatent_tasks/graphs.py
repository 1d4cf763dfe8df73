"""Directed graphs as edge lists, P of them at once: path counts, distances, first shortest paths, and a canonical hash.

A graph is a list of edges (P, E, 2) between nodes 0..C-1; -1, -1 stands for no edge. Loops run over edges and steps,
never over graphs.

Letters: P graphs, E edges, C nodes, T steps.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from tinylatent_tasks.batch import Integers, Keys, Mask
from tinylatent_tasks.keys import stable_hash

UNREACHED = 2**30
"""The distance of a node that is not reached."""
DRAWS, ENOUGH_CLASSES = 10_000, 1000
"""Number of problems drawn to count isomorphism classes, and the fewest classes for splits by class."""
ROUNDS = 8
"""Rounds of colour refinement; a node's colour then depends on nodes up to eight edges away."""


def node_tokens(nodes: int, bound: bool) -> list[str]:
    """Tokens of nodes ("n0"), and if edges are bound, then tokens of all pairs of nodes ("n0>n3")."""
    names = [f"n{node}" for node in range(nodes)]
    return [*names, *(f"{source}>{target}" for source in names for target in names)] if bound else names


def edge_tokens(edges_X2: Integers, nodes: int, bound: bool) -> Integers:
    """Indices in `node_tokens` of the tokens of edges (..., 2), flattened: two nodes per edge, or one pair if bound."""
    return (edges_X2 @ np.array([nodes, 1]) + nodes if bound else edges_X2).ravel()


def adjacency(edges_PE2: Integers, nodes: int) -> npt.NDArray[np.float32]:
    """Numbers of edges from node to node, (P, C, C)."""
    links_PCC = np.zeros((len(edges_PE2), nodes, nodes), np.float32)
    row_PE = np.broadcast_to(np.arange(len(edges_PE2))[:, None], edges_PE2.shape[:2])
    there_PE = edges_PE2[..., 0] >= 0
    np.add.at(links_PCC, (row_PE[there_PE], *edges_PE2[there_PE].T), 1)
    return links_PCC


def path_counts(links_PCC: npt.NDArray[np.float32], start_P: Integers, steps: int) -> Iterator[npt.NDArray[np.float64]]:
    """Yields the number of walks of t edges from the start to every node, for t = 1..steps: (P, C), exact to 2^53."""
    counts_PC = np.zeros(links_PCC.shape[:2])
    counts_PC[np.arange(len(start_P)), start_P] = 1
    for _ in range(steps):
        counts_PC = np.einsum("pc,pcd->pd", counts_PC, links_PCC)
        yield counts_PC


def distances(links_PCC: npt.NDArray[np.float32], start_P: Integers, most: int) -> Integers:
    """Distances from the start to every node (P, C), up to `most` edges; UNREACHED beyond."""
    reached_PC = np.zeros(links_PCC.shape[:2], np.float32)
    reached_PC[np.arange(len(start_P)), start_P] = 1
    distance_PC = np.where(reached_PC > 0, 0, UNREACHED)
    for step in range(1, most + 1):
        reached_PC = ((reached_PC[:, None] @ links_PCC)[:, 0] > 0).astype(np.float32)
        distance_PC = np.where((reached_PC > 0) & (distance_PC == UNREACHED), step, distance_PC)
    return distance_PC


def cyclic(links_PCC: npt.NDArray[np.float32]) -> Mask:
    """True (P,) where a graph has a cycle."""
    left_PC = np.ones(links_PCC.shape[:2], np.float32)
    for _ in range(links_PCC.shape[1]):  # what still has a predecessor after C rounds lies on or behind a cycle
        left_PC = ((left_PC[:, None] @ links_PCC)[:, 0] > 0).astype(np.float32)
    return np.any(left_PC, axis=1)


def first_walks(links_PCC: npt.NDArray[np.float32], start_P: Integers, allowed_PTC: Mask, steps: int) -> Integers:
    """The walk (P, T) of `steps` nodes after the start that takes the lowest allowed node at every step.

    allowed_PTC: the nodes that a step may take. Where none is left the walk goes to node 0; callers rule that out or
    ignore it.
    """
    rows_P, here_P = np.arange(len(start_P)), start_P
    walk_PT = np.zeros((len(start_P), steps), np.int64)
    for step in range(steps):
        open_PC = (links_PCC[rows_P, here_P] > 0) & allowed_PTC[:, step]
        here_P = walk_PT[:, step] = open_PC.argmax(axis=1)
    return walk_PT


def follows(edges_PE2: Integers, start_P: Integers, walk_PT: Integers, steps_P: Integers) -> Mask:
    """True (P,) where the first `steps` nodes of a walk are reached from the start, each over an edge from the last."""
    here_P, sound_P = start_P, np.ones(len(start_P), bool)
    for step, node_P in enumerate(walk_PT.T):
        hop_PE = (
            (edges_PE2[..., 0] == here_P[:, None]) & (edges_PE2[..., 1] == node_P[:, None]) & (node_P[:, None] >= 0)
        )
        sound_P = sound_P & (hop_PE.any(axis=1) | (step >= steps_P))
        here_P = node_P
    return sound_P


def canonical_hash(edges_PE2: Integers, colour_PC: Keys) -> Keys:
    """Hashes (P,) of graphs with coloured nodes that do not depend on the nodes' names or the edges' order.

    Weisfeiler and Leman's colour refinement: every node mixes its colour with the sums of its successors' and its
    predecessors', ROUNDS times. Isomorphic graphs have equal hashes; some other graphs may have, too.
    """
    rows_P = np.arange(len(edges_PE2))
    for _ in range(ROUNDS):
        forth_PC, back_PC = _mixed(colour_PC, 1), _mixed(colour_PC, 2)
        after_PC, before_PC = np.zeros_like(colour_PC), np.zeros_like(colour_PC)
        for source_P, target_P in edges_PE2.transpose(1, 2, 0):
            there_P = (source_P >= 0).astype(np.uint64)
            after_PC[rows_P, source_P] += forth_PC[rows_P, target_P] * there_P
            before_PC[rows_P, target_P] += back_PC[rows_P, source_P] * there_P
        colour_PC = stable_hash(np.stack([colour_PC, after_PC, before_PC], -1).reshape(-1, 3)).reshape(colour_PC.shape)
    return _mixed(colour_PC, 3).sum(axis=1, dtype=np.uint64)


def enough_classes(class_P: Keys) -> bool:
    """Whether DRAWS random problems have enough isomorphism classes for splits by class."""
    return len(np.unique(class_P)) >= ENOUGH_CLASSES


def _mixed(colour_PC: Keys, seed: int) -> Keys:
    """Colours hashed under a seed, so that different sets of colours hardly ever have equal sums."""
    return stable_hash(colour_PC.reshape(-1, 1), seed).reshape(colour_PC.shape)


def named_by_appearance(names_PM: Integers, nodes: int) -> Integers:
    """Names (P, M) replaced by their rank of first appearance in the row; names of -1 stay."""
    first_PC = np.stack([_first(names_PM == name) for name in range(nodes)], axis=1)
    rank_PC = np.argsort(np.argsort(first_PC, axis=1, kind="stable"), axis=1, kind="stable")
    named_PM = np.take_along_axis(rank_PC, np.maximum(names_PM, 0), axis=1)
    return np.where(names_PM < 0, -1, named_PM)


def _first(found_PM: Mask) -> Integers:
    """Index of the first True (P,), or the row's length."""
    return np.where(found_PM.any(axis=1), found_PM.argmax(axis=1), found_PM.shape[1])
