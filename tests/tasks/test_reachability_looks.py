"""Reachability has no shortcut: a classifier that does not follow edges from the root is right by chance."""

from functools import cache

import numpy as np
import pytest
from classifier import accuracy_of_logistic_regression
from tinylatent_tasks import Reachability


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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["which", "whether"])
def test_candidates_cannot_be_told_apart_by_their_looks(kind):
    """No better than chance without the root; with one feature that does follow edges from it, nearly always right.

    Answers are fair coins, so that a useless classifier is right on 10,000 items in 50 % with a standard deviation of
    half a point: 3 points are six of them, a false alarm in 10^8 seeds (the largest share of one answer moves by as
    little, and what it and the accuracy have in common cancels).
    """
    (train_PF, train_root_P, train_P), (test_PF, test_root_P, test_P) = looks_and_label(kind)
    chance = 0.5 if kind == "which" else max(test_P.mean(), 1 - test_P.mean())
    assert abs(chance - 0.5) < 0.03
    accuracy = accuracy_of_logistic_regression(train_PF, train_P, test_PF, test_P)
    assert abs(accuracy - chance) < 0.03
    train_PF, test_PF = np.column_stack([train_PF, train_root_P]), np.column_stack([test_PF, test_root_P])
    assert accuracy_of_logistic_regression(train_PF, train_P, test_PF, test_P) > 0.95


@pytest.mark.slow
def test_root_and_candidate_together_say_little():
    """Products of the root's looks and the candidates' tell a little, as both ends of a side are alike: some 55 %.

    No promise of the task, but what a model might find without a search; the bound leaves five standard deviations.
    """
    (train_PF, train_P), (test_PF, test_P) = products_and_label("which")
    assert accuracy_of_logistic_regression(train_PF, train_P, test_PF, test_P) < 0.58


@cache
def parts(kind):
    """A task, and problems to train and to judge a classifier with."""
    task = Reachability(kind)
    return task, (task.split("train", 0, 12_000), task.split("validation", 0, 10_000))


def products_and_label(kind):
    """For both parts the candidates' looks, and the root's times these (P, F), and whether the first is right (P,)."""
    task, problems = parts(kind)
    for rows, (looks_PF, _, right_P) in zip(problems, looks_and_label(kind), strict=True):
        root_P1 = rows[:, :1]
        of_root_P2F, _ = features(task, np.column_stack([root_P1, root_P1, root_P1, rows[:, 3:]]))
        products_PFF = of_root_P2F[:, 0, :, None] * looks_PF[:, None]
        yield np.concatenate([looks_PF, products_PFF.reshape(len(rows), -1)], axis=1), right_P


@cache
def looks_and_label(kind):
    """For both parts: features (P, F), the one that asks for the root, whether the first, or yes, is right (P,)."""
    task, problems = parts(kind)
    found = []
    for rows in problems:
        looks_P2F, found_P2 = features(task, rows)
        if kind == "whether":
            found.append((looks_P2F[:, 0], found_P2[:, 0], task.answer(rows) == 1))
        else:
            gaps = looks_P2F[:, 0] - looks_P2F[:, 1], found_P2[:, 0] - found_P2[:, 1]
            found.append((*gaps, task.answer(rows) == rows[:, 1]))
    return found
