"""Answering: which answers of prompts are right, and how layers that are skipped change what is predicted there.

How a model uses depth is asked of problems that it answers rightly: for what it cannot do it may use anything.

Letters: L layers, B problems, S slots, R rows of a sweep.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from tinylatent.lab.experiment import Experiment
from tinylatent.lab.prompts import Prompts, of_rows
from tinylatent.lab.run import short
from tinylatent.lenses.depth import Effects, depth_score, over_later, skip
from tinylatent.lenses.reducing import per_prompt
from tinylatent.objectives.method import Model

WAYS: tuple[str | float, ...] = ("mean", 0.9, "max")
"""How effects of a problem's splits become one number."""


@dataclass(frozen=True)
class Answered:
    """Problems of one number of steps that were asked."""

    prompts: Prompts
    """Of the first that were answered rightly; of the first of all where there are too few such."""
    right: int
    """Right answers to all."""
    total: int
    """How many there were."""
    rows: np.ndarray
    """The problems that the prompts are of."""


def answered(
    experiment: Experiment, model: Model, rows: np.ndarray, most: int, device: torch.device | str, least: int = 2
) -> Answered:
    """Asks a run's model problems and keeps at most so many that it answers rightly.

    Fewer than `least` would not do: then it keeps any.
    """
    prompts = of_rows(experiment, model, rows, device)
    right_B = rights(prompts)
    known = right_B if right_B.sum() >= least else torch.ones_like(right_B)
    index_b = known.nonzero()[:most, 0]
    return Answered(prompts.rows(index_b), int(right_B.sum()), len(rows), rows[index_b.cpu().numpy()])


@torch.no_grad()
def rights(prompts: Prompts) -> Bool[Tensor, " B"]:
    """Which answers are right, in all their tokens."""
    counted_BS, ids_BS = prompts.answers()
    wrong_BS = torch.zeros_like(counted_BS)
    wrong_BS[counted_BS] = prompts.record.logits(prompts.record.stream[-1][counted_BS]).argmax(-1) != ids_BS[counted_BS]
    return ~wrong_BS.any(1)


def at_answers(prompts: Prompts, effects: Effects) -> Effects:
    """Effects that are counted where the answer is predicted alone."""
    counted_BS, _ = prompts.answers()
    return replace(effects, counted_RS=effects.counted_RS & counted_BS[effects.row_R])


def on_answers(prompts: Prompts) -> Effects:
    """Effects on the future where the answer is predicted, of layers skipped before every split there is."""
    mask_BS = prompts.record.mask_BS
    splits_BN = torch.arange(2, int(mask_BS.sum(1).min()), device=mask_BS.device).repeat(len(mask_BS), 1)
    return at_answers(prompts, skip(prompts.record, splits_BN=splits_BN))


def share_right(levels: Mapping[str, Any]) -> float:
    """Share of right answers over all levels."""
    return sum(each.right for each in levels.values()) / sum(each.total for each in levels.values())


def depth_scores(future: Effects) -> dict[str, float | None]:
    """Depth scores of the mean effect over problems: splits first, then later layers, then problems.

    By what is affected and how a problem's splits are taken together; None where nothing has an effect.
    """
    found: dict[str, float | None] = {}
    for how in WAYS:
        contribution, output = (
            per_prompt(values, future.counted_RS, how, future.row_R) for values in (future.contribution, future.output)
        )
        by_layer = {"contributions": over_later(contribution).mean(1), "output": output.mean(1)}
        for name, effect_L in by_layer.items():
            score = float(depth_score(effect_L))
            found[f"{name}, {how}"] = None if math.isnan(score) else short(score)
    return found
