"""Reachability: graphs worked out by hand, all walks listed by other code, and networkx."""

from collections import Counter
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylatent_tasks import Reachability

NONE = -1


def row_of(task, root, candidates, edges):
    flat = [node for edge in edges for node in edge]
    return [root, *candidates, *flat, *[NONE] * (2 * task.edges - len(flat))]


def states(task, share_V):
    return {task.vocabulary.tokens[id_]: float(share_V[id_]) for id_ in np.flatnonzero(share_V)}


# ---------------------------------------------------------------------------------------------------------------------
# By hand. From 0 three edges lead to 1, 3 and 4; then 1 > 3, 1 > 5, 3 > 2 and 4 > 5 are all ways on, of which two end
# in 5; 5 > 6 > 8 leads on from there, 3 > 2 from 3, and from 2 no edge leads on. 7 leads to 2 and 9, nothing to 7.

EDGES = [(7, 2), (0, 4), (0, 1), (0, 3), (1, 5), (4, 5), (3, 2), (5, 6), (1, 3), (6, 8), (7, 9)]


def test_which_is_as_computed_by_hand():
    """0 > 1 > 5 > 6 > 8 and 0 > 4 > 5 > 6 > 8 are the shortest paths. The walk that is in 2 after two edges ends."""
    task = Reachability(nodes=10, edges=12, depth=4, least=1)
    batch = task.batch([row_of(task, 0, (9, 8), EDGES)])
    decode = task.vocabulary.decode
    assert decode(batch.prompt_BN[0]) == (
        "<pad> <pad> <bos> n7 n2 n0 n4 n0 n1 n0 n3 n1 n5 n4 n5 n3 n2 n5 n6 n1 n3 n6 n8 n7 n9 ? n9 n8 n0"
    )
    assert batch.prompt_mask_BN[0].tolist() == [False] * 2 + [True] * 27
    assert batch.prompt_BN.shape[1] + batch.steps_B[0] == task.positions
    assert batch.steps_B.tolist() == [4]
    assert decode(batch.chain_BT[0]) == "n1 n5 n6 n8"
    assert decode(batch.answer_BA[0]) == "n8"
    third, two_thirds = np.float32(1 / 3).item(), np.float32(2 / 3).item()
    assert [states(task, share_V) for share_V in batch.frontier_BTV[0]] == [
        {"n1": third, "n3": third, "n4": third},
        {"n2": 0.25, "n3": 0.25, "n5": 0.5},
        {"n2": third, "n6": two_thirds},
        {"n8": 1.0},
    ]


def test_a_nearer_target_is_padded():
    task = Reachability(nodes=10, edges=12, depth=4, least=1)
    batch = task.batch([row_of(task, 0, (5, 9), EDGES)])
    assert batch.steps_B.tolist() == [2]
    assert task.vocabulary.decode(batch.chain_BT[0]) == "n1 n5 <pad> <pad>"
    third = np.float32(1 / 3).item()
    shares = [states(task, share_V) for share_V in batch.frontier_BTV[0]]
    assert shares == [{"n1": third, "n3": third, "n4": third}, {"n5": 1.0}, {}, {}]


@pytest.mark.parametrize(
    ("candidate", "chain", "second", "third"),
    [
        # 6 is three edges away.
        (6, "n1 n5 n6 yes", {"n2": 0.25, "n3": 0.25, "n5": 0.5}, {"n2": 0.5, "n6": 0.5}),
        # 5 is two edges away, and walks stay there.
        (5, "n1 n5 n5 yes", {"n2": 0.25, "n3": 0.25, "n5": 0.5}, {"n2": 0.5, "n5": 0.5}),
        # 8 is four edges away: out of reach. Of all walks 1, 3, 2 is the first.
        (8, "n1 n3 n2 no", {"n2": 0.25, "n3": 0.25, "n5": 0.5}, {"n2": 0.5, "n6": 0.5}),
        # Walks stay in 3, at once if they go there first: after two edges 0 > 3 is still there, and 0 > 1 > 3 arrives.
        (3, "n3 n3 n3 yes", {"n3": 0.5, "n5": 0.5}, {"n3": 0.5, "n6": 0.5}),
        # No edge leads to 7.
        (7, "n1 n3 n2 no", {"n2": 0.25, "n3": 0.25, "n5": 0.5}, {"n2": 0.5, "n6": 0.5}),
    ],
)
def test_whether_is_as_computed_by_hand(candidate, chain, second, third):
    task = Reachability("whether", nodes=10, edges=12, depth=3, least=1)
    batch = task.batch([row_of(task, 0, (candidate, NONE), EDGES)])
    assert task.vocabulary.decode(batch.prompt_BN[0][-3:]) == f"? n{candidate} n0"
    assert batch.steps_B.tolist() == [4]
    assert task.vocabulary.decode(batch.chain_BT[0]) == chain
    assert task.vocabulary.decode(batch.answer_BA[0]) == chain.split()[-1]
    share = np.float32(1 / 3).item()
    first = {"n1": share, "n3": share, "n4": share}
    shares = [states(task, share_V) for share_V in batch.frontier_BTV[0]]
    assert shares == [first, second, third, {chain.split()[-1]: 1.0}]


# ---------------------------------------------------------------------------------------------------------------------
# At random, against networkx and a list of all walks


def drawn_by_us(task, count, seed):
    """Problems the package would not draw: any acyclic graph, edges missing anywhere, any root and candidates."""
    random = np.random.default_rng(seed)
    whether = task.asks == "whether"
    rows = []
    while len(rows) < count:
        order = random.permutation(task.nodes)
        pairs = [(order[i], order[j]) for i in range(task.nodes) for j in range(i + 1, task.nodes)]
        picked = random.permutation(len(pairs))[: random.integers(task.nodes // 2, task.edges + 1)]
        edges = [(int(pairs[k][0]), int(pairs[k][1])) for k in picked]
        root = int(order[random.integers(0, task.nodes // 2)])
        distance = nx.single_source_shortest_path_length(graph_of(task, edges), root)
        others = [node for node in range(task.nodes) if node != root]
        near = [node for node in others if distance.get(node, 99) <= task.depth]
        far = [node for node in others if node not in distance]
        if whether:
            candidates = [int(random.choice(others)), NONE]
        elif near and far:
            candidates = random.permutation([random.choice(near), random.choice(far)]).tolist()
        else:
            continue
        slots = [(NONE, NONE)] * task.edges
        for place, edge in zip(random.permutation(task.edges), edges, strict=False):
            slots[place] = edge
        rows.append(row_of(task, root, candidates, slots))
    return np.array(rows)


def graph_of(task, edges):
    graph = nx.DiGraph()
    graph.add_nodes_from(range(task.nodes))
    graph.add_edges_from(edges)
    return graph


def by_listing(task, row):
    """(graph, answer, best trace, [{node: share of the walks} for each step before the answer]) of one problem."""
    root, first, second, *flat = row
    edges = [(u, v) for u, v in zip(flat[::2], flat[1::2], strict=True) if u >= 0]
    graph = graph_of(task, edges)
    whether = second == NONE
    reached = [node for node in (first, second) if node >= 0 and nx.has_path(graph, root, node)]
    path = min(nx.all_shortest_paths(graph, root, reached[0]))[1:] if reached else None
    if whether and path is not None and len(path) > task.depth:
        path = None
    length = task.depth if whether else len(path)
    walks, listed = [(root,)], []
    for _ in range(length):
        longer = []
        for walk in walks:
            ahead = [v for u, v in edges if u == walk[-1]]
            if whether and (walk[-1] == first or not ahead):
                ahead = [walk[-1]]
            longer += [(*walk, node) for node in ahead]
        walks = longer
        ends = Counter(walk[-1] for walk in walks)
        listed.append({node: Fraction(count, len(walks)) for node, count in ends.items()})
    if not whether:
        return graph, reached[0], path, listed[:-1]
    best = [*path, *[first] * (length - len(path))] if path else list(min(walks)[1:])
    return graph, int(path is not None), best, listed


@st.composite
def tasks(draw):
    depth = draw(st.integers(1, 4))
    capacity = draw(st.none() | st.integers(depth, depth + 1))
    nodes = 2 * ((capacity or depth) + 1) + draw(st.integers(0, 3))
    kind = draw(st.sampled_from(["which", "whether"]))
    edges = nodes - 2 + draw(st.integers(0, 7))
    return Reachability(kind, nodes, edges, depth, draw(st.integers(1, depth)), draw(st.booleans()), capacity)


@pytest.mark.slow
def test_ten_thousand_random_problems_agree_with_networkx_and_all_walks():
    seen = Counter()

    @settings(max_examples=100)
    @given(tasks(), st.integers(0, 2**32))
    def check(task, seed):
        whether = task.asks == "whether"
        rows = np.concatenate([task.problems(80, seed), drawn_by_us(task, 20, seed)])
        batch = task.batch(rows)
        first_node = task.vocabulary.index("n0")
        assert (batch.frontier_BTV >= 0).all()
        live_BT = np.arange(batch.chain_BT.shape[1]) < batch.steps_B[:, None]
        np.testing.assert_allclose(batch.frontier_BTV.sum(axis=2), live_BT, rtol=0, atol=1e-6)
        share_BT = np.take_along_axis(batch.frontier_BTV, batch.chain_BT[..., None], axis=2)[..., 0]
        assert (share_BT[live_BT] > 0).all()
        one_hot_BTV = np.eye(len(task.vocabulary), dtype=np.float32)[batch.chain_BT] * live_BT[..., None]
        assert np.array_equal(task.frontier(rows, 1), one_hot_BTV)
        answers = task.answer(rows)
        for place, row in enumerate(rows.tolist()):
            graph, answer, best, listed = by_listing(task, row)
            assert nx.is_directed_acyclic_graph(graph)
            assert answers[place] == answer
            steps = len(best) + whether
            assert batch.steps_B[place] == steps
            word = [task.vocabulary.index("yes" if answer else "no")] if whether else []
            chain = [*(node + first_node for node in best), *word]
            assert batch.chain_BT[place].tolist() == chain + [0] * (len(batch.chain_BT[place]) - steps)
            assert batch.answer_BA[place].tolist() == chain[-1:]
            ids = [{node + first_node: np.float32(float(share)) for node, share in step.items()} for step in listed]
            found = [{i: share_V[i] for i in np.flatnonzero(share_V)} for share_V in batch.frontier_BTV[place]]
            assert found == [*ids, {chain[-1]: 1}, *[{}] * (len(found) - steps)]
            assert task.solve_slowly(row) == (answer, best)
            seen[task.asks, answer if whether else "node"] += 1

    check()
    assert seen.total() >= 10_000
    assert min(seen[kind] for kind in (("which", "node"), ("whether", 0), ("whether", 1))) >= 1000


def test_the_generated_distance_is_uniform_between_least_and_depth():
    task = Reachability(nodes=20, edges=30, depth=5, least=2)
    rows = task.problems(4000, seed=0)
    assert ((rows[:, 3:] >= 0).all(axis=1)).mean() > 0.99
    counts = np.bincount(task.steps(rows), minlength=6)
    assert counts[:2].tolist() == [0, 0]
    assert (abs(counts[2:] - 1000) < 5 * np.sqrt(750)).all()  # five standard deviations: one in 10^6 false alarms


# ---------------------------------------------------------------------------------------------------------------------
# Keys


def relabelled(task, rows, seed):
    random = np.random.default_rng(seed)
    names_PC = random.permuted(np.tile(np.arange(task.nodes), (len(rows), 1)), axis=1)
    return np.where(rows < 0, NONE, np.take_along_axis(names_PC, np.maximum(rows, 0), axis=1))


def with_edges_permuted(rows, seed):
    order = np.random.default_rng(seed).permutation((rows.shape[1] - 3) // 2)
    edges_PE2 = rows[:, 3:].reshape(len(rows), -1, 2)[:, order]
    return np.concatenate([rows[:, :3], edges_PE2.reshape(len(rows), -1)], axis=1)


def with_candidates_swapped(rows):
    return rows[:, [0, 2, 1, *range(3, rows.shape[1])]]


@pytest.mark.parametrize("kind", ["which", "whether"])
def test_keys_of_large_spaces_ignore_all_names_and_orders(kind):
    task = Reachability(kind)
    assert task.quotiented
    rows = np.concatenate([task.problems(300, 0), drawn_by_us(task, 100, 0)])
    keys = task.key(rows)
    assert len(np.unique(keys)) > 350
    same = with_edges_permuted(relabelled(task, rows, 1), 2)
    assert (same != rows).any(axis=1).all()
    assert np.array_equal(task.key(same), keys)
    if kind == "which":
        assert np.array_equal(task.key(with_candidates_swapped(same)), keys)
    # Another question about the same graph: its other root, where the generator makes one.
    turned = rows[:300].copy()
    turned[:, 3:] = turned[:, 3:].reshape(300, -1, 2)[..., ::-1].reshape(300, -1)
    turned[:, :2] = turned[:, [1, 0]]
    valid = [row for row in turned if is_problem(task, row)]
    assert len(valid) > 100
    assert not np.isin(task.key(valid), keys).any()


def is_problem(task, row):
    try:
        task.rows([row])
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("kind", ["which", "whether"])
def test_keys_of_small_spaces_ignore_names_alone(kind):
    task = Reachability(kind, nodes=6, edges=5, depth=1, least=1)
    assert not task.quotiented
    rows = np.concatenate([task.problems(300, 0), drawn_by_us(task, 100, 0)])
    keys = task.key(rows)
    assert np.array_equal(task.key(relabelled(task, rows, 1)), keys)
    assert (task.key(with_edges_permuted(rows, 2)) != keys).mean() > 0.5
    if kind == "which":
        assert (task.key(with_candidates_swapped(rows)) != keys).all()


# ---------------------------------------------------------------------------------------------------------------------
# Bad requests. GOOD: 0 > 1 > 2 > 3 and 4 > 5; 6 and 7 stand alone.

SMALL = Reachability(nodes=8, edges=6, depth=2, least=1)
GOOD = row_of(SMALL, 0, (2, 5), [(0, 1), (1, 2), (2, 3), (4, 5)])


def good_but(changes):
    row = list(GOOD)
    for place, value in changes.items():
        row[place] = value
    return row


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (good_but({11: 2, 12: 0}), "row 1 has a cycle where an acyclic graph was expected"),
        (good_but({11: 5, 12: 5}), "row 1 has a cycle"),
        (good_but({1: 6}), "row 1 has a target that cannot be reached from the root"),
        (good_but({2: 1}), "row 1 has two candidates that can be reached, where one was expected"),
        (good_but({1: 3}), "row 1 has a target more than 2 edges from the root"),
        (good_but({11: 0, 12: 1}), "row 1 has an edge twice"),
        (good_but({11: 3}), "row 1 has an edge with one end"),
        (good_but({12: 3}), "row 1 has an edge with one end"),
        (good_but({0: NONE}), "row 1 has no root or no candidate"),
        (good_but({1: NONE}), "row 1 has no root or no candidate"),
        (good_but({2: NONE}), "row 1 needs two candidates"),
        (good_but({2: 2}), "row 1 has the root or a node twice among its candidates"),
        (good_but({2: 0}), "row 1 has the root or a node twice among its candidates"),
        (good_but({3: 8}), "integers from -1 to 7"),
        (good_but({4: -2}), "integers from -1 to 7"),
        (good_but({0: 10}), "integers from -1 to 7"),
        (good_but({0: 0.5}), "float64"),
        ([*GOOD, 6, 7], "row 1 is"),
        (GOOD[:-1], "row 1 is"),
    ],
)
@pytest.mark.parametrize("method", ["rows", "batch", "key"])
def test_bad_rows_are_refused_in_one_line(method, row, message):
    assert SMALL.answer([GOOD, GOOD]).tolist() == [2, 2]
    with pytest.raises(ValueError, match=message) as caught:
        getattr(SMALL, method)([GOOD, row])
    assert "\n" not in str(caught.value)


def test_whether_wants_one_candidate_and_refuses_cycles_too():
    task = Reachability("whether", nodes=8, edges=6, depth=2, least=1)
    with pytest.raises(ValueError, match="row 0 needs exactly one candidate"):
        task.rows([GOOD])
    alone = good_but({2: NONE})
    assert task.answer([alone]).tolist() == [1]
    with pytest.raises(ValueError, match="row 0 has a cycle"):
        task.rows([[*alone[:11], 3, 1, *alone[13:]]])


def test_a_row_far_down_is_named():
    task = Reachability()
    rows = task.problems(20_000, seed=0)
    rows[19_999, 1] = rows[19_999, 0]
    with pytest.raises(ValueError, match="row 19999 "):
        task.rows(rows)
    rows = task.problems(20_000, seed=0)
    rows[19_998, 3:5] = rows[19_998, 4]
    with pytest.raises(ValueError, match="row 19998 has a cycle"):
        task.rows(rows)


@pytest.mark.parametrize("item", [{"root": 0, "candidates": [2, 5], "edges": [[0, 1], [1, 2]] * 4}, [*GOOD, 1, 6]])
def test_a_problem_with_too_many_edges_is_not_read(item):
    with pytest.raises(ValueError, match="at most 6 have room"):
        SMALL.read(item)


@pytest.mark.parametrize("budget", [2, 0, -1, 100])
def test_budgets_other_than_one_are_refused(budget):
    with pytest.raises(ValueError, match=f"budget is {budget}.*try budget=1"):
        SMALL.frontier([GOOD], budget)


def test_bound_edges_are_single_tokens_and_all_else_stays_the_same():
    for asks in ("which", "whether"):
        plain, bound = Reachability(asks, nodes=9, edges=12), Reachability(asks, nodes=9, edges=12, bound=True)
        rows = plain.problems(50, 0)
        assert np.array_equal(bound.problems(50, 0), rows)
        apart, together = plain.batch(rows), bound.batch(rows)
        size = len(plain.vocabulary)
        assert bound.vocabulary.tokens[:size] == plain.vocabulary.tokens
        for name in ("steps_B", "chain_BT", "answer_BA", "key_B"):
            assert np.array_equal(getattr(apart, name), getattr(together, name)), name
        assert np.array_equal(together.frontier_BTV[..., :size], apart.frontier_BTV)
        assert not together.frontier_BTV[..., size:].any()
        for one, two in zip(together.prompt_BN, apart.prompt_BN, strict=True):
            words = plain.vocabulary.decode(two).split()
            start = words.index("<bos>") + 1
            pairs = [f"{a}>{b}" for a, b in zip(words[start:24:2], words[start + 1 : 25 : 2], strict=True)]
            assert bound.vocabulary.decode(one).replace("<pad> ", "") == " ".join(["<bos>", *pairs, *words[25:]])


def test_all_levels_share_vocabulary_and_positions():
    task = Reachability(nodes=12, edges=16, depth=3, least=2, capacity=5)
    levels = task.levels()
    assert list(levels) == [2, 3, 4, 5]
    for depth, level in levels.items():
        assert (level.vocabulary, level.positions) == (task.vocabulary, task.positions)
        assert (level.steps(level.problems(50, 0)) == depth).all()
    assert Reachability().levels() == {}
