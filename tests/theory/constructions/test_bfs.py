"""Two layers search every small acyclic graph: thoughts are normalised superpositions, answers right, in float32."""

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tinylatent_tasks import Reachability
from tinylatent_theory.constructions import bfs
from tinylatent_theory.constructions.bfs import (
    CyclicToo,
    bfs_searcher,
    bfs_width,
    every_graph,
    every_question,
    search,
    within,
)
from tinylatent_theory.constructions.checks import search_deviation


def task_of(nodes):
    return Reachability(nodes=2 * nodes, depth=nodes - 1, edges=max(nodes * (nodes - 1) // 2, 2 * nodes - 2), least=1)


@pytest.mark.parametrize(("nodes", "count"), [(1, 1), (2, 3), (3, 25), (4, 543)])
def test_every_dag_is_every_dag(nodes, count):
    """The counts are those of labelled acyclic graphs (OEIS A003024); each is acyclic, none is there twice."""
    graphs = every_graph(nodes)
    assert len({graph.tobytes() for graph in graphs}) == len(graphs) == count
    assert all(nx.is_directed_acyclic_graph(nx.from_numpy_array(g, create_using=nx.DiGraph)) for g in graphs)


@pytest.mark.parametrize(("nodes", "count"), [(1, 1), (2, 4), (3, 64), (4, 4096)])
def test_every_graph_is_every_graph(nodes, count):
    graphs = every_graph(nodes, cycles=True)
    assert len({graph.tobytes() for graph in graphs}) == len(graphs) == count
    assert not graphs[:, range(nodes), range(nodes)].any()


def test_every_question_on_every_directed_graph_of_three_nodes():
    """Cycles included, which the task itself refuses; those of four nodes are a claim of the ledger."""
    task = CyclicToo(nodes=6, depth=2, edges=6, least=1)
    questions = every_question(task, 3, cycles=True)
    found = search_deviation(task, bfs_searcher(task).float(), questions)
    assert (found.wrong, found.problems) == (0, 96)
    assert found.thoughts < 1e-6
    assert all(row[0] not in row[1:3] for row in questions.tolist())
    with pytest.raises(ValueError, match="has a cycle where an acyclic graph was expected"):
        Reachability(nodes=6, depth=2, edges=6, least=1).rows(questions)


def test_every_question_on_every_dag_of_three_nodes():
    """Larger ones are a claim of the ledger."""
    task = task_of(3)
    found = search_deviation(task, bfs_searcher(task).float(), every_question(task, 3))
    assert (found.wrong, found.problems) == (0, 48)
    assert found.thoughts < 1e-6
    assert found.leakage < 1e-12


@pytest.mark.parametrize(("nodes", "edges", "depth"), [(12, 16, 3), pytest.param(40, 200, 12, marks=pytest.mark.slow)])
def test_larger_random_graphs(nodes, edges, depth):
    task = Reachability(nodes=nodes, edges=edges, depth=depth, least=1)
    machine = bfs_searcher(task).float()
    found = search_deviation(task, machine, task.problems(50, seed=0))
    assert found.wrong == 0
    assert found.thoughts < 1e-5
    assert machine.width == bfs_width(task)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=40)
def test_any_dag_in_any_order_is_searched(data):
    """Random acyclic graphs, names and orders shuffled: breadth-first search by networkx tells every thought."""
    task = Reachability(nodes=10, depth=4, edges=12, least=1)
    order = data.draw(st.permutations(range(10)))
    pairs = [(order[a], order[b]) for a in range(10) for b in range(a + 1, 10)]
    edges = data.draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=12, unique=True))
    graph = nx.DiGraph(edges)
    graph.add_nodes_from(range(10))
    root = edges[0][0]
    far = nx.single_source_shortest_path_length(graph, root)
    reached = [node for node, steps in far.items() if 0 < steps <= 4]
    others = [node for node in range(10) if node not in far]
    assume(others)
    target, other = data.draw(st.sampled_from(reached)), data.draw(st.sampled_from(others))
    flat = [node for edge in edges for node in edge]
    problem = [root, *data.draw(st.permutations([target, other])), *flat, *[-1] * (24 - len(flat))]
    run = search(task, bfs_searcher(task).float(), [problem])
    assert run.logits_BTV[0, -1].argmax() == task.vocabulary.index(f"n{target}")
    thoughts_TD = search(task, bfs_searcher(task).float(), [problem], steps=4).action("hidden")[0]
    for step, thought_D in enumerate(thoughts_TD, 1):
        held = torch.tensor([float(far.get(node, 99) <= step) for node in range(10)])
        torch.testing.assert_close(thought_D[:10], held / held.sum() ** 0.5)


def test_one_thought_fewer_is_not_enough():
    """D - 1 thoughts hold no candidate, so that the answer is none: D are needed by this machine."""
    task = Reachability()
    problems = task.problems(100, seed=0)
    run = search(task, bfs_searcher(task), problems, steps=task.depth - 1)
    answers = run.logits_BTV[:, -1].argmax(-1).numpy()
    assert not (answers == task.answer_ids(task.answer(problems))[:, 0]).any()


def test_within_is_networkx():
    task = Reachability(nodes=16, edges=24, depth=5, least=1)
    for row, held_TC in zip(task.problems(20, 3), within(task, task.problems(20, 3), 5), strict=True):
        edges = row[3:].reshape(-1, 2)
        graph = nx.DiGraph([tuple(edge) for edge in edges[edges[:, 0] >= 0].tolist()])
        graph.add_nodes_from(range(16))
        far = nx.single_source_shortest_path_length(graph, int(row[0]))
        for step, held_C in enumerate(held_TC.tolist(), 1):
            assert held_C == [far.get(node, 99) <= step for node in range(16)]


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["sets", "source"])
def test_a_broken_part_is_noticed(broken, monkeypatch):
    task = task_of(4)
    problems = every_question(task, 4)
    if broken == "sets":  # weights by the number of edges stay as they are
        monkeypatch.setattr(bfs, "_sets", lambda room, task: whole(room, task, 1.0))
    else:  # targets instead of sources
        monkeypatch.setattr(bfs, "_before", lambda room, back, positions: original_before(room, 2, positions))
    found = search_deviation(task, bfs_searcher(task).float(), problems)
    assert found.thoughts > 1e-3


original_before = bfs._before


def whole(room, task, gain):
    """The set-maker with another gain: nodes with small weights are no longer set to 1."""
    units = bfs.Units(room)
    up_CD, write_DC = torch.zeros(task.nodes, room.width).double(), torch.zeros(room.width, task.nodes).double()
    up_CD[:, room["node"]] = up_CD[:, room["reached"]] = gain * torch.eye(task.nodes).double()
    write_DC[room["node"]] = torch.eye(task.nodes).double()
    return units.add(up_CD, 0.0, write_DC).clear(*room.slices)


def test_bad_tasks_are_told():
    for task in (Reachability(bound=True), Reachability(asks="whether")):
        with pytest.raises(ValueError, match="expected asks 'which' and edges of two tokens"):
            bfs_searcher(task)


def test_questions_are_the_tasks_own_rows():
    task = task_of(3)
    rows = every_question(task, 3)
    np.testing.assert_array_equal(task.rows(rows), rows)
