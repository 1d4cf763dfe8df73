"""Reachability: graphs worked out by hand, all walks listed by other code, networkx, and a search for shortcuts."""

from collections import Counter
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
from classifier import accuracy_of_logistic_regression
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import Reachability

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


def test_hand_computed_which():
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


def test_hand_computed_which_of_a_nearer_target_is_padded():
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
def test_hand_computed_whether(candidate, chain, second, third):
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
    room = draw(st.none() | st.integers(depth, depth + 1))
    nodes = 2 * ((room or depth) + 1) + draw(st.integers(0, 3))
    kind = draw(st.sampled_from(["which", "whether"]))
    edges = nodes - 2 + draw(st.integers(0, 7))
    return Reachability(kind, nodes, edges, depth, draw(st.integers(1, depth)), draw(st.booleans()), room)


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
# No shortcut


def features(task, rows):
    """(looks, found) of every candidate: (P, 2, F) properties that do not ask for the root; (P, 2) reached from it.

    Looks: in- and out-degree, longest path and shortest distance from any source, ancestors, descendants, and the
    first, last and mean place in the prompt of the edges that name the candidate.
    """
    place_P = np.arange(len(rows))
    edges_PE2 = rows[:, 3:].reshape(len(rows), -1, 2)
    link_PCC = np.zeros((len(rows), task.nodes, task.nodes), bool)
    for source_P, end_P in edges_PE2.transpose(1, 2, 0):
        link_PCC[place_P[source_P >= 0], source_P[source_P >= 0], end_P[source_P >= 0]] = True
    before_PC, after_PC = link_PCC.sum(axis=1), link_PCC.sum(axis=2)
    longest_PC = np.zeros(before_PC.shape)
    nearest_PC = np.where(before_PC == 0, 0, 99.0)
    reach_PCC = link_PCC.copy()
    for _ in range(task.nodes):
        longer_PC = np.where(link_PCC, longest_PC[:, :, None] + 1, 0).max(axis=1)
        nearest_PC = np.minimum(nearest_PC, np.where(link_PCC, nearest_PC[:, :, None] + 1, 99).min(axis=1))
        if np.array_equal(longer_PC, longest_PC):
            break  # nor does any nearest source change: no path is longer than this
        longest_PC = longer_PC
    for middle in range(task.nodes):
        reach_PCC |= reach_PCC[:, :, [middle]] & reach_PCC[:, [middle]]
    per_node = [before_PC, after_PC, longest_PC, nearest_PC, reach_PCC.sum(axis=1), reach_PCC.sum(axis=2)]
    candidate_P2 = rows[:, 1:3]
    looks = [np.take_along_axis(array_PC, candidate_P2, axis=1) for array_PC in per_node]
    named_P2E = (edges_PE2[:, None] == candidate_P2[:, :, None, None]).any(axis=3)
    number_E = np.arange(edges_PE2.shape[1])
    looks.append(named_P2E.argmax(axis=2))
    looks.append(len(number_E) - 1 - named_P2E[..., ::-1].argmax(axis=2))
    looks.append((named_P2E * number_E).sum(axis=2) / np.maximum(named_P2E.sum(axis=2), 1))
    return np.stack(looks, axis=2).astype(float), reach_PCC[place_P[:, None], rows[:, :1], candidate_P2].astype(float)


@pytest.mark.parametrize("kind", ["which", "whether"])
def test_candidates_cannot_be_told_apart_by_their_looks(kind):
    """No better than chance without the root; with one feature that does follow edges from it, nearly always right.

    Answers are fair coins, so that a useless classifier is right on 10,000 items in 50 % with a standard deviation of
    half a point: 3 points are six of them, a false alarm in 10^8 seeds (the largest share of one answer moves by as
    little, and what it and the accuracy have in common cancels).
    """
    task = Reachability(kind)
    parts = [task.split("train", 0, 12_000), task.split("validation", 0, 10_000)]
    (train_PF, train_root_P, train_P), (test_PF, test_root_P, test_P) = (looks_and_label(task, rows) for rows in parts)
    chance = 0.5 if kind == "which" else max(test_P.mean(), 1 - test_P.mean())
    assert abs(chance - 0.5) < 0.03
    accuracy = accuracy_of_logistic_regression(train_PF, train_P, test_PF, test_P)
    assert abs(accuracy - chance) < 0.03
    train_PF, test_PF = np.column_stack([train_PF, train_root_P]), np.column_stack([test_PF, test_root_P])
    assert accuracy_of_logistic_regression(train_PF, train_P, test_PF, test_P) > 0.95


def test_root_and_candidate_together_say_little():
    """Products of the root's looks and the candidates' tell a little, as both ends of a side are alike: some 55 %.

    No promise of the task, but what a model might find without a search; the bound leaves five standard deviations.
    """
    task = Reachability()
    parts = [task.split("train", 0, 12_000), task.split("validation", 0, 10_000)]
    (train_PF, train_P), (test_PF, test_P) = (products_and_label(task, rows) for rows in parts)
    assert accuracy_of_logistic_regression(train_PF, train_P, test_PF, test_P) < 0.58


def products_and_label(task, rows):
    """Candidates' looks, and the root's times these (P, F), and whether the first candidate is right (P,)."""
    root_P1 = rows[:, :1]
    of_root_P2F, _ = features(task, np.column_stack([root_P1, root_P1, root_P1, rows[:, 3:]]))
    looks_PF, _, right_P = looks_and_label(task, rows)
    products_PFF = of_root_P2F[:, 0, :, None] * looks_PF[:, None]
    return np.concatenate([looks_PF, products_PFF.reshape(len(rows), -1)], axis=1), right_P


def looks_and_label(task, rows):
    """Features (P, F), the one that asks for the root (P,), and whether the first candidate, or yes, is right (P,)."""
    looks_P2F, found_P2 = features(task, rows)
    if task.asks == "whether":
        return looks_P2F[:, 0], found_P2[:, 0], task.answer(rows) == 1
    return looks_P2F[:, 0] - looks_P2F[:, 1], found_P2[:, 0] - found_P2[:, 1], task.answer(rows) == rows[:, 1]


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


def test_the_ladder_shares_vocabulary_and_positions():
    task = Reachability(nodes=12, edges=16, depth=3, least=2, room=5)
    ladder = task.ladder()
    assert list(ladder) == [2, 3, 4, 5]
    for depth, rung in ladder.items():
        assert (rung.vocabulary, rung.positions) == (task.vocabulary, task.positions)
        assert (rung.steps(rung.problems(50, 0)) == depth).all()
    assert Reachability().ladder() == {}
