"""ProsQA's published format: a file of our own, every kind of bad file, and the published items where present."""

import json
from itertools import pairwise
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from tinylatent_tasks.prosqa import pose, read_items

SMALL = Path(__file__).parents[1] / "data" / "prosqa_small.json"
PUBLISHED = Path(__file__).parents[2].parent / "shared/data/prosqa_valid.json"
DISTANCES = [2, 3, 2, 4, 5]


def graph_of(item):
    graph = nx.DiGraph(item.edges)
    graph.add_nodes_from(range(len(item.symbols)))
    return graph


def test_the_small_file_is_read():
    items = read_items(SMALL)
    assert [len(item.symbols) for item in items] == [6, 8, 9, 11, 12]
    assert [item.target_first for item in items] == [True, False, True, False, True]
    first = items[0]
    assert first.symbols == ("Ada", "Ove", "glimmet", "brask", "vontle", "quend")
    assert first.edges == ((0, 2), (1, 3), (2, 4), (3, 5))
    assert (first.root, first.target, first.neg_target, first.steps) == (0, 4, 5, (2, 4))
    assert first.question.endswith("Is Ada a vontle or quend?")


def check_posed(items):
    """Oracle, batch and stored fields say the same of every item."""
    task, rows = pose(items)
    batch = task.batch(rows)
    names = np.array(task.vocabulary.tokens)
    for place, item in enumerate(items):
        graph = graph_of(item)
        assert nx.is_directed_acyclic_graph(graph)
        steps = nx.shortest_path_length(graph, item.root, item.target)
        assert batch.steps_B[place] == len(item.steps) == steps
        assert not nx.has_path(graph, item.root, item.neg_target)
        assert nx.is_path(graph, [item.root, *item.steps])
        assert item.steps[-1] == item.target
        chain = [int(name[1:]) for name in names[batch.chain_BT[place, :steps]]]
        assert [item.root, *chain] in [*nx.all_shortest_paths(graph, item.root, item.target)]
        candidates = (item.target, item.neg_target) if item.target_first else (item.neg_target, item.target)
        edges = " ".join(f"n{source} n{end}" for source, end in item.edges)
        prompt = task.vocabulary.decode(batch.prompt_BN[place][batch.prompt_mask_BN[place]])
        assert prompt == f"<bos> {edges} ? n{candidates[0]} n{candidates[1]} n{item.root}"
    assert task.answer(rows).tolist() == [item.target for item in items]
    live_BT = np.arange(task.depth) < batch.steps_B[:, None]
    np.testing.assert_allclose(batch.frontier_BTV.sum(axis=2), live_BT, rtol=0, atol=1e-6)
    return task, rows


def test_the_small_file_can_be_posed_in_the_smallest_task():
    items = read_items(SMALL)
    task, rows = check_posed(items)
    assert (task.asks, task.nodes, task.edges, task.depth, task.least) == ("which", 12, 12, 5, 1)
    assert task.steps(rows).tolist() == DISTANCES
    alone, row = pose(items[:1])
    assert (alone.nodes, alone.edges, alone.depth) == (6, 4, 2)
    assert row.tolist() == [[0, 4, 5, 0, 2, 1, 3, 2, 4, 3, 5]]
    swapped, row = pose(items[1:2])
    assert (swapped.nodes, swapped.edges, swapped.depth) == (8, 8, 3)
    assert row[0, :3].tolist() == [1, 6, 7]
    with pytest.raises(ValueError, match="no items to pose"):
        pose([])


@pytest.mark.slow
@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published validation items are not at hand")
def test_the_published_items_agree_with_networkx():
    items = read_items(PUBLISHED)
    assert len(items) == 300
    assert {item.target_first for item in items} == {True, False}
    task, rows = check_posed(items)
    assert rows.shape == (300, 3 + 2 * task.edges)
    assert task.nodes == max(len(item.symbols) for item in items)
    assert task.edges == max(len(item.edges) for item in items)
    assert [task.solve_slowly(row)[0] for row in rows[:50]] == [item.target for item in items[:50]]


# ---------------------------------------------------------------------------------------------------------------------
# Bad files. Item 3 of the small file is changed: Liv (1) reaches drint (9) by 6, 7, 8; glimmet (5) is Ezra's.


def changed(**fields):
    return lambda item: item | fields


def with_edges(*edges):
    return lambda item: item | {"edges": [*item["edges"], *edges]}


def with_steps(*numbers):
    return lambda item: item | {"steps": [item["steps"][number] for number in numbers]}


def asking(text):
    return lambda item: item | {"question": f"Liv is a pludge. {text}"}


def without(field):
    return lambda item: {name: value for name, value in item.items() if name != field}


FIELDS = ("question", "answer", "steps", "idx_to_symbol", "edges", "root", "target", "neg_target")
LONG = [[node, node + 1] for node in range(13)]
BAD_ITEMS = [
    (lambda item: [item], "an object with the fields question"),
    (lambda item: None, "got None"),
    *((without(field), f"'{field}' is missing") for field in FIELDS),
    *((changed(**{field: 3}), f"{field} is 3, but a string") for field in ("question", "answer")),
    *((changed(**{field: "a"}), f"{field} is 'a', but a list of strings") for field in ("steps", "idx_to_symbol")),
    *((changed(**{field: ["a", 1]}), "but a list of strings") for field in ("steps", "idx_to_symbol")),
    *(
        (changed(**{field: bad}), f"{field} is {bad!r}, but an integer")
        for field in ("root", "target", "neg_target")
        for bad in (1.0, True, "1", None, [1])
    ),
    *(
        (changed(**{field: bad}), f"{field} is {bad}, but nodes are numbered from 0 to 10")
        for field in ("root", "target", "neg_target")
        for bad in (-1, 11)
    ),
    (changed(root=10**400), "root is 1000"),
    (changed(edges={"0": 1}), "a list of pairs"),
    (with_edges([0]), "edge 11 is [0], but a pair"),
    (with_edges([0, 1, 2]), "edge 11 is [0, 1, 2], but a pair"),
    (with_edges("01"), "edge 11 is '01', but a pair"),
    (with_edges([0, 2.0]), "a node of edge 11 is 2.0, but an integer"),
    (with_edges([True, 3]), "a node of edge 11 is True, but an integer"),
    (with_edges([0, -1]), "a node of edge 11 is -1, but nodes are numbered"),
    (with_edges([11, 0]), "a node of edge 11 is 11, but nodes are numbered"),
    (with_edges([8, 9]), "edge 11, [8, 9], is there twice"),
    (with_edges(*[[0, 2]] * 512), "523 edges, but at most 512"),
    (with_edges([9, 6]), "a cycle"),
    (with_edges([0, 0]), "a cycle, 'Ezra > Ezra'"),
    (with_edges([10, 4]), "a cycle"),
    (changed(idx_to_symbol=[f"s{n}" for n in range(65)]), "65 symbols, but at most 64"),
    (changed(idx_to_symbol=[]), "idx_to_symbol is empty"),
    (changed(idx_to_symbol=["Liv"] * 11), "'Liv' stands for two nodes"),
    (changed(neg_target=9), "expected three nodes"),
    (changed(target=1), "expected three nodes"),
    (changed(target=4), "no path leads to the target 'neffle' from the root 'Liv'"),
    (changed(neg_target=10), "a path leads to the neg_target 'harrow'"),
    (changed(idx_to_symbol=[f"s{n}" for n in range(15)], edges=LONG, root=0, target=13, neg_target=14), "at most 12"),
    (asking(""), "but 'Is Liv a drint or glimmet?' or the other order was expected"),
    (asking("Is Ezra a glimmet or drint?"), "or the other order was expected"),
    (asking("Is Liv a glimmet or harrow?"), "or the other order was expected"),
    (asking("Is Liv a drint or drint?"), "or the other order was expected"),
    (asking("Is Liv a glimmet, drint or harrow?"), "or the other order was expected"),
    (asking("Is Liv a glimmet or drint? Yes."), "or the other order was expected"),
    (changed(answer="Liv is a glimmet."), "'Liv is a drint.' was expected"),
    (changed(answer="Ezra is a drint."), "'Liv is a drint.' was expected"),
    (changed(answer="drint"), "'Liv is a drint.' was expected"),
    (with_steps(0, 1, 2), "the steps end in 'oskary', but in 'drint' was expected"),
    (with_steps(), "the steps end in 'Liv', but in 'drint' was expected"),
    (with_steps(1, 2, 3), "step 0, 'Every pludge is a sorvil.', was expected to go on from 'Liv'"),
    (with_steps(0, 1, 3), "was expected to go on from 'sorvil'"),
    (with_steps(0, 0), "was expected to go on from 'pludge'"),
    (changed(steps=["Liv is a drint."]), "step 0, 'Liv is a drint.', is no edge"),
    (changed(steps=["Liv is a kettle."]), "step 0 is 'Liv is a kettle.', but"),
    (changed(steps=["Liv, a pludge"]), "step 0 is 'Liv, a pludge', but"),
]


def refused(path):
    """The one line with which a file is refused."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        read_items(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 400
    return message


@pytest.mark.parametrize(("change", "expected"), BAD_ITEMS)
def test_a_bad_item_is_named_with_its_file(tmp_path, change, expected):
    items = json.loads(SMALL.read_text("utf-8"))
    items[3] = change(items[3])
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(items), "utf-8")
    message = refused(path)
    assert message.startswith("bad.json, item 3: ")
    assert expected in message


def test_the_cycle_that_is_named_is_one(tmp_path):
    items = json.loads(SMALL.read_text("utf-8"))
    items[3]["edges"] += [[9, 6]]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(items), "utf-8")
    names = refused(path).split("'")[1].split(" > ")
    assert names[0] == names[-1]
    assert set(names) == {"pludge", "sorvil", "oskary", "drint"}
    order = ["pludge", "sorvil", "oskary", "drint"]
    assert all(order.index(b) == (order.index(a) + 1) % 4 for a, b in pairwise(names))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not JSON"),
        (b"[{]", "not JSON"),
        (b'{"question": ""}', "a JSON list of items was expected"),
        (b"3", "a JSON list of items was expected"),
        (b'["\xff"]', "not UTF-8 text (byte 2)"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "not JSON"),
    ],
    ids=["empty", "broken", "object", "number", "latin", "nested", "long"],
)
def test_a_file_that_is_no_list_of_items_is_named(tmp_path, content, expected):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    message = refused(path)
    assert message.startswith("bad.json: ")
    assert expected in message


def test_a_byte_order_mark_is_no_error(tmp_path):
    path = tmp_path / "marked.json"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.read_bytes())
    assert read_items(path) == read_items(SMALL)


def test_a_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError, match=r"none\.json"):
        read_items(tmp_path / "none.json")
