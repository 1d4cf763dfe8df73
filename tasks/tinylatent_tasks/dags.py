"""Random directed acyclic graphs with two roots and two targets that have the same distribution.

The sides below the two roots are drawn independently from one distribution: a path from the root to its target at the
wanted distance, further nodes attached below random ones, and further edges that shorten no distance. Shared nodes
below both sides connect them but lead back to neither. Names, order of edges and order of candidates are shuffled, and
a coin chooses the root, so that the candidates alone do not tell which is right. Root and candidate together may: a
side that is unusual is so at both ends. A test measures both.

Hidden names: 0..s-1 and s..2s-1 are the sides, root first, target at index `distance`; then the shared nodes.

Letters: P graphs, C nodes, E edges, S nodes of a side, K possible pairs of nodes.
"""

import numpy as np

from tinylatent_tasks.batch import Integers, Mask
from tinylatent_tasks.keys import derived_seed, random_orders, uniform_integers

LARGE = 2**31


def two_sided(side: int, nodes: int, edges: int, distance_P: Integers, seed: int, first: int = 0) -> Integers:
    """Edges (P, E, 2) in hidden names, filled up with -1, -1 where the nodes do not allow as many.

    Args:
        side: nodes of a side, its root included.
        nodes: nodes in all.
        edges: E.
        distance_P: edges from a root to its target.
        seed: of everything random.
        first: number of the first graph; graph i depends on its distance, the seed and i.
    """
    parent_PC = _parents(side, nodes, distance_P, seed, first)
    tree_PC2 = np.stack([parent_PC, np.broadcast_to(np.arange(nodes), parent_PC.shape)], axis=2)
    tree_PE2 = np.delete(tree_PC2, [0, side], axis=1)
    more = edges - tree_PE2.shape[1]
    source_K, target_K = np.array([*np.ndindex(nodes, nodes)]).T
    side_C = np.minimum(np.arange(nodes) // side, 2)
    orderly_K = (source_K < target_K) & ((side_C[source_K] == side_C[target_K]) | (side_C[target_K] == 2))
    source_K, target_K = source_K[orderly_K], target_K[orderly_K]
    level_PC = _levels(parent_PC, side)
    free_PK = level_PC[:, source_K] + 1 >= level_PC[:, target_K]
    free_PK &= parent_PC[:, target_K] != source_K
    rank_PK = uniform_integers(0, LARGE, free_PK.shape, derived_seed(seed, "edges"), first) + LARGE * ~free_PK
    picked_PX = np.argsort(rank_PK, axis=1, kind="stable")[:, :more]
    more_PX2 = np.stack([source_K[picked_PX], target_K[picked_PX]], axis=2)
    more_PX2[~np.take_along_axis(free_PK, picked_PX, axis=1)] = -1
    missing_PX2 = np.full((len(tree_PE2), more - picked_PX.shape[1], 2), -1)
    return np.concatenate([tree_PE2, more_PX2, missing_PX2], axis=1)


def shuffled(edges_PE2: Integers, marked_PQ: Integers, nodes: int, seed: int, first: int = 0) -> Integers:
    """Rows (P, Q + 2E) of marked nodes, then edges, under random names and in random order, absent edges last."""
    n, edges, _ = edges_PE2.shape
    order_PE = random_orders((n, edges), derived_seed(seed, "order"), first)
    edges_PE2 = np.take_along_axis(edges_PE2, order_PE[..., None], axis=1)
    last_PE = np.argsort(edges_PE2[..., 0] < 0, axis=1, kind="stable")
    edges_PE2 = np.take_along_axis(edges_PE2, last_PE[..., None], axis=1)
    hidden_PM = np.concatenate([marked_PQ, edges_PE2.reshape(n, 2 * edges)], axis=1)
    name_PC = random_orders((n, nodes), derived_seed(seed, "names"), first)
    return np.where(hidden_PM < 0, -1, np.take_along_axis(name_PC, np.maximum(hidden_PM, 0), axis=1))


def _parents(side: int, nodes: int, distance_P: Integers, seed: int, first: int) -> Integers:
    """The first parent of every node (P, C); a root is its own parent."""
    drawn_PC = uniform_integers(0, LARGE, (len(distance_P), nodes), derived_seed(seed, "parents"), first)
    node_C = np.arange(nodes)
    local_C = np.where(node_C < 2 * side, node_C % side, node_C)  # how many may be a parent
    parent_PC = drawn_PC % np.maximum(local_C, 1)
    backbone_PC: Mask = (node_C < 2 * side) & (local_C <= distance_P[:, None]) & (local_C > 0)
    parent_PC = np.where(backbone_PC, local_C - 1, parent_PC)
    return parent_PC + np.where((node_C >= side) & (node_C < 2 * side), side, 0)


def _levels(parent_PC: Integers, side: int) -> Integers:
    """Number of edges from the root along first parents (P, C), the node's distance; 0 for shared nodes."""
    level_PC = np.zeros_like(parent_PC)
    rows_P = np.arange(len(parent_PC))
    for node in range(2 * side):
        if node % side:
            level_PC[:, node] = level_PC[rows_P, parent_PC[:, node]] + 1
    return level_PC
