"""ProsQA as published with Coconut (arXiv 2412.06769): a JSON list of items, checked and converted to Reachability.

An item is a graph in words ("Tom is a terpus. Every terpus is a brimpus. .. Is Tom a lempus or scrompus?") together
with the graph itself: symbols, edges, root, the candidate that can be reached (target), the one that cannot
(neg_target), and the sentences of one path (steps). Every item is checked against its own graph; ValueError names the
file and the item, counted from 0, in one line.

Nodes and edges keep the file's order, which is the order in which the graph was generated, and a problem's number of
steps is the target's distance; the deeper of the two candidates is mostly the target. Use it as a test set for models
trained elsewhere: training on it would teach these shortcuts.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinylatent_tasks.batch import Integers
from tinylatent_tasks.checks import SHORT, is_integer, short
from tinylatent_tasks.reachability import MAX_DEPTH, MAX_EDGES, MAX_NODES, NONE, Reachability

FIELDS = ("question", "answer", "steps", "idx_to_symbol", "edges", "root", "target", "neg_target")
STATEMENT = re.compile(r"(?:Every )?(\S+) is an? (\S+)\.")
ASKED = re.compile(r"(?:^|\s)Is (\S+) an? (\S+) or (?:an? )?(\S+)\?\s*$")

Edges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Item:
    """One item of ProsQA; nodes are indices in `symbols`."""

    question: str
    """The graph and the question in words."""
    symbols: tuple[str, ...]
    """The name of every node."""
    edges: Edges
    """(from, to) of every edge."""
    root: int
    """The node that the question asks about."""
    target: int
    """The candidate that can be reached from the root."""
    neg_target: int
    """The candidate that cannot."""
    steps: tuple[int, ...]
    """The nodes of the stored path after the root; the last is the target."""
    target_first: bool
    """Whether the question names the target before the other candidate."""


def read_items(path: Path) -> list[Item]:
    """The items of a file in the published format.

    Raises ValueError for a file that is not a JSON list in UTF-8 and for an item that is incomplete, too large for
    Reachability, or inconsistent with its own graph; OSError for a file that cannot be opened.
    """
    try:
        found = json.loads(path.read_text("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: not UTF-8 text (byte {error.start}); expected JSON, save it as UTF-8") from None
    except RecursionError:
        raise ValueError(f"{path.name}: nested too deeply; expected a JSON list of items") from None
    except ValueError as error:
        raise ValueError(f"{path.name}: not JSON ({error}); expected a JSON list of items") from None
    if not isinstance(found, list):
        raise ValueError(f"{path.name}: got {short(found)}, but a JSON list of items was expected; try [item]")
    items = []
    for index, value in enumerate(found):
        try:
            items.append(_item(value))
        except ValueError as error:
            raise ValueError(f"{path.name}, item {index}: {error}; correct or remove the item") from None
    return items


def pose(items: Sequence[Item]) -> tuple[Reachability, Integers]:
    """The smallest Reachability("which") that fits all items, and the items as its problems (P, M), in order.

    Candidates keep the order of the question. Raises ValueError if there are no items.
    """
    if not items:
        raise ValueError("there are no items to pose, but at least one was expected; try a file with items")
    depth = max(_distances(item.edges, item.root)[item.target] for item in items)
    nodes = max(2 * (depth + 1), *(len(item.symbols) for item in items))
    edges = max(nodes - 2, *(len(item.edges) for item in items))
    task = Reachability("which", nodes=nodes, edges=edges, depth=depth, least=1)
    rows_PM = np.full((len(items), 3 + 2 * edges), NONE, np.int64)
    for row_M, item in zip(rows_PM, items, strict=True):
        candidates = (item.target, item.neg_target) if item.target_first else (item.neg_target, item.target)
        row_M[:3] = item.root, *candidates
        row_M[3 : 3 + 2 * len(item.edges)] = np.ravel(item.edges)
    return task, task.rows(rows_PM)


# ---------------------------------------------------------------------------------------------------------------------
# One item. These functions raise ValueError; `read_items` adds file and item to the message.


def _item(value: Any) -> Item:
    """A JSON value as an item, its parts checked against each other."""
    if not isinstance(value, dict):
        raise ValueError(f"got {short(value)}, but an object with the fields {', '.join(FIELDS)} was expected")
    missing = [field for field in FIELDS if field not in value]
    if missing:
        raise ValueError(f"the field {missing[0]!r} is missing; expected {', '.join(FIELDS)}")
    for field in ("question", "answer"):
        if not isinstance(value[field], str):
            raise ValueError(f"{field} is {short(value[field])}, but a string was expected")
    for field in ("steps", "idx_to_symbol"):
        if not isinstance(value[field], list) or not all(isinstance(text, str) for text in value[field]):
            raise ValueError(f"{field} is {short(value[field])}, but a list of strings was expected")
    symbols = tuple(value["idx_to_symbol"])
    if not symbols:
        raise ValueError("idx_to_symbol is empty, but a name for every node was expected")
    if len(symbols) > MAX_NODES:
        raise ValueError(f"there are {len(symbols)} symbols, but at most {MAX_NODES} nodes have tokens")
    twice = [symbol for symbol in symbols if symbols.count(symbol) > 1]
    if twice:
        raise ValueError(f"the symbol {short(twice[0])} stands for two nodes, but every node needs its own")
    root, target, neg_target = (_node(field, value[field], len(symbols)) for field in ("root", "target", "neg_target"))
    edges = _edges(value["edges"], len(symbols))
    _check_graph(symbols, edges, root, target, neg_target)
    return Item(
        question=value["question"],
        symbols=symbols,
        edges=edges,
        root=root,
        target=target,
        neg_target=neg_target,
        steps=_path(value["steps"], symbols, edges, root, target),
        target_first=_target_first(
            value["question"], value["answer"], symbols[root], symbols[target], symbols[neg_target]
        ),
    )


def _node(name: str, value: Any, nodes: int) -> int:
    if not is_integer(value):
        raise ValueError(f"{name} is {short(value)}, but an integer was expected")
    if not 0 <= value < nodes:
        raise ValueError(f"{name} is {short(value)}, but nodes are numbered from 0 to {nodes - 1}")
    return int(value)


def _edges(value: Any, nodes: int) -> Edges:
    """Checked edges of an acyclic graph."""
    if not isinstance(value, list):
        raise ValueError(f"edges is {short(value)}, but a list of pairs [from, to] was expected")
    if len(value) > MAX_EDGES:
        raise ValueError(f"there are {len(value)} edges, but at most {MAX_EDGES} have room")
    edges: dict[tuple[int, int], None] = {}
    for number, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"edge {number} is {short(pair)}, but a pair [from, to] was expected")
        source, end = (_node(f"a node of edge {number}", node, nodes) for node in pair)
        if (source, end) in edges:
            raise ValueError(f"edge {number}, {pair}, is there twice, but every edge was expected once")
        edges[source, end] = None
    return tuple(edges)


def _check_graph(symbols: tuple[str, ...], edges: Edges, root: int, target: int, neg_target: int) -> None:
    """ValueError unless the graph is acyclic and the target alone is reached, within MAX_DEPTH."""
    cycle = _cycle(edges)
    if cycle:
        names = short(" > ".join(symbols[node] for node in cycle))
        raise ValueError(f"the edges make a cycle, {names}, where an acyclic graph was expected")
    if len({root, target, neg_target}) < 3:
        raise ValueError(f"root, target and neg_target are {root}, {target}, {neg_target}; expected three nodes")
    distance = _distances(edges, root)
    names = f"{short(symbols[target])} from the root {short(symbols[root])}"
    if target not in distance:
        raise ValueError(f"no path leads to the target {names}, but one was expected")
    if distance[target] > MAX_DEPTH:
        raise ValueError(f"{distance[target]} edges lead to the target {names}, but at most {MAX_DEPTH} have room")
    if neg_target in distance:
        raise ValueError(f"a path leads to the neg_target {short(symbols[neg_target])}, but none was expected")


def _cycle(edges: Edges) -> list[int]:
    """Nodes of a cycle in the edges' direction, the first repeated at the end; empty if there is no cycle."""
    left = set(edges)
    while left:
        fed = {end for _, end in left}
        inner = {(source, end) for source, end in left if source in fed}
        if inner == left:  # every remaining edge follows another one: going backwards never ends
            break
        left = inner
    before = {end: source for source, end in left}
    seen: list[int] = []
    node = next(iter(before), None)
    while node is not None and node not in seen:
        seen.append(node)
        node = before[node]
    return [] if node is None else [*seen[seen.index(node) :], node][::-1]


def _distances(edges: Edges, root: int) -> dict[int, int]:
    """Distance from the root to every node that can be reached."""
    distance = {root: 0}
    wave, step = {root}, 0
    while wave:
        step += 1
        wave = {end for source, end in edges if source in wave} - distance.keys()
        distance |= dict.fromkeys(wave, step)
    return distance


def _path(steps: list[str], symbols: tuple[str, ...], edges: Edges, root: int, target: int) -> tuple[int, ...]:
    """The nodes after the root on the path of the steps, which must follow edges from the root to the target."""
    path = [root]
    for number, text in enumerate(steps):
        found = STATEMENT.fullmatch(text)
        if found is None or not set(found.groups()) <= set(symbols):
            raise ValueError(f'step {number} is {short(text)}, but "Every <symbol> is a <symbol>." was expected')
        source, end = map(symbols.index, found.groups())
        if source != path[-1]:
            raise ValueError(f"step {number}, {short(text)}, was expected to go on from {short(symbols[path[-1]])}")
        if (source, end) not in edges:
            raise ValueError(f"step {number}, {short(text)}, is no edge of the graph, but one was expected")
        path.append(end)
    if path[-1] != target:
        raise ValueError(f"the steps end in {short(symbols[path[-1]])}, but in {short(symbols[target])} was expected")
    return tuple(path[1:])


def _target_first(question: str, answer: str, root: str, target: str, other: str) -> bool:
    """Whether the question's last sentence names the target first; checks that the answer is the target."""
    asked = ASKED.search(question)
    if asked is None or asked[1] != root or {asked[2], asked[3]} != {target, other}:
        expected = f"Is {root} a {target} or {other}?"
        raise ValueError(
            f"the question ends in {short(question[-SHORT:])}, but {expected!r} or the other order was expected"
        )
    said = STATEMENT.fullmatch(answer.strip())
    if said is None or said.groups() != (root, target):
        raise ValueError(f"the answer is {short(answer)}, but {f'{root} is a {target}.'!r} was expected")
    return asked[2] == target
