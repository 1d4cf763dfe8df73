"""Runs a machine on problems through the rollout engine and holds every step against the task's oracle.

Letters: P problems, T steps, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tinylatent_tasks import MNNS, Reachability, SubsetSum

from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY, Mixture
from tinylatent.models.decoder import Decoder
from tinylatent_theory.constructions.bfs import search, within

CHUNK = 4096  # problems at a time


@dataclass(frozen=True)
class Deviation:
    """How far a machine is from the oracle."""

    problems: int
    wrong: int
    """Wrong answers."""
    thoughts: float
    """Largest difference of a thought's coordinate from what it should be."""
    leakage: float
    """Most that a thought gives to what is not reached."""


@torch.no_grad()
def deviation(task: MNNS | SubsetSum, machine: Decoder, problems: npt.ArrayLike) -> Deviation:
    """Every problem, thought as base CoT2 does: a mixture at each step but the last, which is greedy."""
    rows_PM = task.rows(problems)
    wrong, off, leakage = 0, 0.0, 0.0
    for start in range(0, len(rows_PM), CHUNK):
        part_PM = rows_PM[start : start + CHUNK]
        truth_PTV = torch.from_numpy(task.frontier(part_PM)).to(machine.table.weight)
        T = truth_PTV.shape[1]
        plan = (Segment(Mixture(), T - 1), Segment(GREEDY, 1))
        run = rollout(machine, plan, torch.from_numpy(task.prompt(part_PM)[0]))
        answer_P = run.logits_BTV[:, -1].argmax(-1)
        wrong += int((truth_PTV[:, -1].argmax(-1) != answer_P).sum())
        if T > 1:
            thought_PTV, truth_PTV = run.action("alpha"), truth_PTV[:, :-1]
            off = max(off, float((thought_PTV - truth_PTV).abs().max()))
            leakage = max(leakage, float(thought_PTV.masked_fill(truth_PTV > 0, 0).sum(-1).max()))
    return Deviation(len(rows_PM), wrong, off, leakage)


@torch.no_grad()
def search_deviation(task: Reachability, machine: Decoder, problems: npt.ArrayLike, thoughts: bool = True) -> Deviation:
    """Every problem searched, with as many thoughts as its target is away: are answers right?

    With `thoughts` each is searched once more, as far as the task's depth: is the thought after c steps the normalised
    superposition of all nodes within c edges, and nothing else?
    """
    rows_PM = task.rows(problems)
    right_P = task.answer_ids(task.answer(rows_PM))[:, 0]
    wrong, off, leakage = 0, 0.0, 0.0
    for start in range(0, len(rows_PM), CHUNK):
        part_PM = rows_PM[start : start + CHUNK]
        answer_P = search(task, machine, part_PM).logits_BTV[:, -1].argmax(-1).numpy()
        wrong += int(np.sum(answer_P != right_P[start : start + CHUNK]))
        if thoughts:
            thought_PTD = search(task, machine, part_PM, task.depth).action("hidden")
            held_PTC = within(task, part_PM, task.depth)
            truth_PTC = torch.nn.functional.normalize(held_PTC.to(thought_PTD), dim=-1)
            node_PTC, rest_PTD = thought_PTD.split([task.nodes, machine.width - task.nodes], dim=-1)
            off = max(off, float((node_PTC - truth_PTC).abs().max()), float(rest_PTD.abs().max()))
            leakage = max(leakage, float(node_PTC.abs().masked_fill(held_PTC, 0).sum(-1).max()))
    return Deviation(len(rows_PM), wrong, off, leakage)
