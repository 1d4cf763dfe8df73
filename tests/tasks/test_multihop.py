"""Multi-hop lookup: examples worked out by hand, and all walks listed by other code."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylatent_tasks import MultiHop


def states(task, share_V):
    return {task.vocabulary.tokens[id_]: float(share_V[id_]) for id_ in np.flatnonzero(share_V)}


def test_an_example_with_one_fact_a_node_is_as_computed_by_hand():
    """2 > 0 > 3 > 0: from 2, two hops end in 3; 1 leads to 0 as well, and plays no part."""
    task = MultiHop(nodes=4, hops=3)
    batch = task.batch([[2, 2, 1, 0, 2, 0, 0, 3, 3, 0], [2, 3, 1, 0, 2, 0, 0, 3, 3, 0]])
    decode = task.vocabulary.decode
    assert decode(batch.prompt_BN[0]) == "<pad> <bos> n1 n0 n2 n0 n0 n3 n3 n0 > > n2"
    assert decode(batch.prompt_BN[1]) == "<bos> n1 n0 n2 n0 n0 n3 n3 n0 > > > n2"
    assert batch.prompt_mask_BN.sum(axis=1).tolist() == [12, 13]
    assert batch.steps_B.tolist() == [2, 3]
    assert [decode(chain_T) for chain_T in batch.chain_BT] == ["n0 n3 <pad>", "n0 n3 n0"]
    assert [decode(answer_A) for answer_A in batch.answer_BA] == ["n3", "n0"]
    assert [states(task, share_V) for share_V in batch.frontier_BTV[0]] == [{"n0": 1}, {"n3": 1}, {}]
    assert [states(task, share_V) for share_V in batch.frontier_BTV[1]] == [{"n0": 1}, {"n3": 1}, {"n0": 1}]


# Two facts a node: 0 > 3 4, 1 > 0 2, 2 > 1 4, 3 > 1 2, 4 > 1 3. From 0, walks of three hops in order of their nodes:
#   3 1 0, 3 1 2, 3 2 1, 3 2 4, 4 1 0, 4 1 2, 4 3 1, 4 3 2
# and in the order of their ends: 3 1 0, 4 1 0 | 3 2 1, 4 3 1 | 3 1 2, 4 1 2, 4 3 2 | 3 2 4.
HAND = [0, 3, 4, 3, 0, 3, 1, 0, 2, 4, 3, 1, 0, 4, 2, 1, 1, 2, 3, 2, 4, 1]


@pytest.mark.parametrize(
    ("budget", "first", "second"),
    [
        (None, {"n3": 1 / 2, "n4": 1 / 2}, {"n1": 1 / 2, "n2": 1 / 4, "n3": 1 / 4}),
        (1, {"n3": 1}, {"n1": 1}),
        (2, {"n3": 1 / 2, "n4": 1 / 2}, {"n1": 1}),
        (3, {"n3": 2 / 3, "n4": 1 / 3}, {"n1": 2 / 3, "n2": 1 / 3}),
        (5, {"n3": 3 / 5, "n4": 2 / 5}, {"n1": 3 / 5, "n2": 1 / 5, "n3": 1 / 5}),
        (7, {"n3": 3 / 7, "n4": 4 / 7}, {"n1": 4 / 7, "n2": 1 / 7, "n3": 2 / 7}),
        (8, {"n3": 1 / 2, "n4": 1 / 2}, {"n1": 1 / 2, "n2": 1 / 4, "n3": 1 / 4}),
        (9, {"n3": 1 / 2, "n4": 1 / 2}, {"n1": 1 / 2, "n2": 1 / 4, "n3": 1 / 4}),
    ],
)
def test_an_example_with_two_facts_a_node_is_as_computed_by_hand(budget, first, second):
    task = MultiHop(nodes=5, hops=3, branching=2)
    batch = task.batch([HAND], budget)
    assert task.vocabulary.decode(batch.prompt_BN[0]) == (
        "<bos> n4 n3 n0 n3 n1 n0 n2 n4 n3 n1 n0 n4 n2 n1 n1 n2 n3 n2 n4 n1 > > > n0"
    )
    assert task.vocabulary.decode(batch.chain_BT[0]) == "n3 n1 n0"
    assert task.vocabulary.decode(batch.answer_BA[0]) == "n0"
    expected = [{node: np.float32(share).item() for node, share in step.items()} for step in (first, second, {"n0": 1})]
    assert [states(task, share_V) for share_V in batch.frontier_BTV[0]] == expected


# ---------------------------------------------------------------------------------------------------------------------
# At random


def drawn_by_us(task, count, seed):
    """Problems the package would draw with other probabilities: few targets, facts in the order of their sources."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        facts = []
        for source in range(task.nodes):
            others = [node for node in range(task.nodes) if node != source]
            facts += [
                (source, target) for target in others[-task.branching - random.integers(0, 2) :][: task.branching]
            ]
        rows.append([random.integers(task.nodes), random.integers(task.least, task.hops + 1), *np.ravel(facts)])
    return np.array(rows)


def walks_of(row):
    """All walks of a problem as tuples of the nodes after the start, the best first."""
    start, hops, *flat = row
    ahead = {}
    for source, target in zip(flat[::2], flat[1::2], strict=True):
        ahead.setdefault(source, set()).add(target)
    walks = [(start,)]
    for _ in range(hops):
        walks = [(*walk, target) for walk in walks for target in ahead[walk[-1]]]
    return sorted((walk[1:] for walk in walks), key=lambda walk: (walk[-1], walk))


def shares_of(walks):
    """{node: share of the walks} for each step; the last holds the first walk's end alone."""
    shares = []
    for nodes in zip(*walks, strict=True):
        shares.append({node: Fraction(count, len(walks)) for node, count in Counter(nodes).items()})
    return [*shares[:-1], {walks[0][-1]: Fraction(1)}]


@st.composite
def tasks(draw):
    branching = draw(st.integers(1, 3))
    hops = draw(st.integers(1, {1: 6, 2: 4, 3: 3}[branching]))
    nodes = branching + 1 + draw(st.integers(0, 5))
    capacity = draw(st.none() | st.integers(hops, hops + 2))
    return MultiHop(hops, draw(st.integers(1, hops)), nodes, branching, draw(st.booleans()), capacity)


@pytest.mark.slow
def test_ten_thousand_random_problems_agree_with_all_walks():
    seen = Counter()

    @settings(max_examples=100)
    @given(tasks(), st.integers(0, 2**32), st.integers(1, 30))
    def check(task, seed, small):
        rows = np.concatenate([task.problems(80, seed), drawn_by_us(task, 20, seed)])
        tokens = np.array(task.vocabulary.tokens)
        first_node = task.vocabulary.index("n0")
        batch = task.batch(rows)
        answers = task.answer(rows)
        frontiers = {None: batch.frontier_BTV, small: task.frontier(rows, small), 1: task.frontier(rows, 1)}
        live_BT = np.arange(task.hops) < batch.steps_B[:, None]
        chain_BTV = np.eye(len(tokens), dtype=np.float32)[batch.chain_BT] * live_BT[..., None]
        assert np.array_equal(frontiers[1], chain_BTV)
        assert ((batch.chain_BT == 0) == ~live_BT).all()
        assert batch.prompt_BN.shape[1] + task.hops <= task.positions
        for place, row in enumerate(rows.tolist()):
            start, hops, *flat = row
            walks = walks_of(row)
            assert len(walks) == task.branching**hops
            assert answers[place] == walks[0][-1] == batch.answer_BA[place, 0] - first_node
            assert batch.steps_B[place] == hops
            assert (batch.chain_BT[place, :hops] - first_node).tolist() == list(walks[0])
            assert task.solve_slowly(row) == (walks[0][-1], list(walks[0]))
            pads = ["<pad>"] * (task.hops - hops)
            names = [f"n{node}" for node in flat]
            facts = [f"{a}>{b}" for a, b in zip(names[::2], names[1::2], strict=True)] if task.bound else names
            prompt = [*pads, "<bos>", *facts, *[">"] * hops, f"n{start}"]
            assert tokens[batch.prompt_BN[place]].tolist() == prompt
            assert batch.prompt_mask_BN[place].tolist() == [token != "<pad>" for token in prompt]
            for budget, frontier_BTV in frontiers.items():
                listed = shares_of(walks[:budget])
                ids = [{node + first_node: np.float32(float(share)) for node, share in step.items()} for step in listed]
                found = [{i: share_V[i] for i in np.flatnonzero(share_V)} for share_V in frontier_BTV[place]]
                assert found == ids + [{}] * (task.hops - hops)
            seen[task.branching, hops] += 1
            seen[task.bound] += 1

    check()
    assert seen.pop(True) + seen.pop(False) >= 10_000
    assert {branching for branching, _ in seen} == {1, 2, 3}
    assert {hops for _, hops in seen} >= {1, 2, 3, 4}


# ---------------------------------------------------------------------------------------------------------------------
# Keys


def relabelled(task, rows, seed):
    random = np.random.default_rng(seed)
    names_PC = random.permuted(np.tile(np.arange(task.nodes), (len(rows), 1)), axis=1)
    renamed = np.take_along_axis(names_PC, np.where(np.arange(rows.shape[1]) == 1, 0, rows), axis=1)
    renamed[:, 1] = rows[:, 1]
    return renamed


def with_facts_permuted(rows, seed):
    order = np.random.default_rng(seed).permutation((rows.shape[1] - 2) // 2)
    return np.concatenate([rows[:, :2], rows[:, 2:].reshape(len(rows), -1, 2)[:, order].reshape(len(rows), -1)], axis=1)


def with_other_hops(rows):
    return np.column_stack([rows[:, 0], rows[:, 1] % 3 + 1, rows[:, 2:]])


def test_keys_of_large_spaces_ignore_names_and_order():
    task = MultiHop()
    assert task.quotiented
    rows = task.problems(500, 0)
    keys = task.key(rows)
    assert len(np.unique(keys)) > 250
    same = with_facts_permuted(relabelled(task, rows, 1), 2)
    assert (same != rows).any(axis=1).all()
    assert np.array_equal(task.key(same), keys)
    assert np.array_equal(task.key(with_other_hops(same)), keys)
    other_start = np.column_stack([(same[:, 0] + 1) % task.nodes, same[:, 1:]])
    assert (task.key(other_start) != keys).mean() > 0.5


def test_keys_of_small_spaces_ignore_names_alone():
    task = MultiHop(nodes=4)
    assert not task.quotiented
    rows = task.problems(500, 0)
    keys = task.key(rows)
    assert len(np.unique(keys)) > 250
    assert np.array_equal(task.key(relabelled(task, rows, 1)), keys)
    assert (task.key(with_facts_permuted(rows, 2)) != keys).mean() > 0.5
    assert np.array_equal(task.key(with_other_hops(rows)), keys)


def test_keys_of_ambiguous_lookups_ignore_the_order_of_facts_alone():
    task = MultiHop(nodes=6, branching=2)
    assert not task.quotiented
    rows = task.problems(500, 0)
    keys = task.key(rows)
    assert len(np.unique(keys)) == 500
    assert np.array_equal(task.key(with_facts_permuted(rows, 1)), keys)
    renamed = relabelled(task, rows, 2)
    changed = (renamed != rows).any(axis=1)
    assert (task.key(renamed)[changed] != keys[changed]).all()
    assert np.array_equal(task.key(with_other_hops(rows)), keys)


# ---------------------------------------------------------------------------------------------------------------------
# Capacity


@pytest.mark.parametrize("nodes", [4, 7, 8, pytest.param(9, marks=pytest.mark.slow)])
def test_levels_agree_on_what_counts_as_the_same(nodes):
    """Seven nodes make nearly classes enough, eight do; every level has the task's keys: hold-outs stay held out."""
    task = MultiHop(nodes=nodes, capacity=6)
    rows = task.problems(200, 0)
    for hops, level in task.levels().items():
        assert level.quotiented == task.quotiented
        same = np.column_stack([rows[:, :1], np.full((200, 1), hops), rows[:, 2:]])
        assert np.array_equal(level.key(same), task.key(rows))


@pytest.mark.parametrize("branching", [1, 2])
def test_all_levels_share_vocabulary_and_positions(branching):
    task = MultiHop(hops=3, least=2, nodes=6, branching=branching, capacity=5)
    levels = task.levels()
    assert list(levels) == [2, 3, 4, 5]
    for hops, level in levels.items():
        assert (level.vocabulary, level.positions) == (task.vocabulary, task.positions)
        batch = level.batch(level.problems(30, 0))
        assert (batch.steps_B == hops).all()
        assert batch.prompt_mask_BN.all()
        assert batch.prompt_BN.shape[1] + hops <= task.positions
    assert batch.prompt_BN.shape[1] + hops == task.positions
    assert MultiHop().levels() == {}


def test_capacity_does_not_change_the_problems():
    narrow, wider = MultiHop(), MultiHop(capacity=6)
    assert wider.positions == narrow.positions + 6
    rows = narrow.problems(50, 0)
    assert np.array_equal(wider.problems(50, 0), rows)
    assert np.array_equal(wider.frontier(rows), narrow.frontier(rows))


# ---------------------------------------------------------------------------------------------------------------------
# Bad requests

SMALL = MultiHop(nodes=3, hops=5, least=2)
GOOD = [0, 2, 0, 1, 1, 2, 2, 0]
TWO = MultiHop(nodes=3, branching=2, hops=2)
GOOD_TWO = [0, 2, 0, 1, 0, 2, 1, 0, 1, 2, 2, 0, 2, 1]


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (SMALL, [3, *GOOD[1:]], "row 1 starts at a node outside 0 to 2"),
        (SMALL, [0, 1, *GOOD[2:]], "row 1 has hops outside 2 to 5"),
        (MultiHop(nodes=3, hops=1), [0, 2, *GOOD[2:]], "row 1 has hops outside 1 to 1"),
        (SMALL, [*GOOD[:-1], 3], "row 1 names nodes outside 0 to 2"),
        (SMALL, [0, 2, 0, 1, 1, 2, 1, 0], "row 1 has not exactly 1 fact for every node"),
        (SMALL, [0, 2, 0, 1, 1, 1, 2, 0], "row 1 has a fact that leads from a node to itself"),
        (SMALL, [-1, *GOOD[1:]], "integers from 0 to 5"),
        (SMALL, [*GOOD[:-1], 6], "integers from 0 to 5"),
        (SMALL, [*GOOD, 0, 1], "row 1 is"),
        (SMALL, GOOD[:-2], "row 1 is"),
        (SMALL, [0.0, *GOOD[1:]], "float64"),
        (TWO, [*GOOD_TWO[:-1], 0], "row 1 has a fact twice"),
        (TWO, [*GOOD_TWO[:-2], 0, 1], "row 1 has not exactly 2 facts for every node"),
    ],
)
@pytest.mark.parametrize("method", ["rows", "batch", "key"])
def test_bad_rows_are_refused_in_one_line(method, task, row, message):
    good = {SMALL: GOOD, TWO: GOOD_TWO}.get(task, [0, 1, *GOOD[2:]])
    assert len(task.rows([good, good])) == 2
    with pytest.raises(ValueError, match=message) as caught:
        getattr(task, method)([good, row])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("budget", [0, -1, 1.0, True])
def test_bad_budgets_are_refused(budget):
    with pytest.raises(ValueError, match="try budget=1"):
        SMALL.frontier([GOOD], budget)


def test_more_walks_than_can_be_listed_are_refused():
    assert MultiHop(hops=12, nodes=3, branching=2).hops == 12
    with pytest.raises(ValueError, match="16,777,216 walks, but at most 4,096"):
        MultiHop(hops=3, capacity=12, nodes=8, branching=4)
