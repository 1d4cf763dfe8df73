"""Answering: which answers of prompts are right, and how layers that are skipped change what is predicted there.

How a model uses depth is asked of problems that it answers rightly: for what it cannot do it may use anything.

Letters: L layers, B problems, S slots, R rows of a sweep.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tinylatent.lab.experiment import Experiment
from tinylatent.lab.prompts import Prompts, of_rows
from tinylatent.lab.run import short
from tinylatent.lenses.depth import Effects, depth_score, local, over_later, skip
from tinylatent.lenses.reducing import per_prompt
from tinylatent.objectives.method import Model

WAYS: tuple[str | float, ...] = ("mean", 0.9, "max")
"""How effects of a problem's splits become one number."""


def counted(prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Slots that predict answers, and the right tokens there."""
    assert prompts.counted_BS is not None, "problems of a task have answers"
    assert prompts.ids_BS is not None, "problems of a task have answers"
    return prompts.counted_BS, prompts.ids_BS


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
    right_P = rights(of_rows(experiment, model, rows, device)).cpu().numpy()
    known = (rows[right_P] if right_P.sum() >= least else rows)[:most]
    return Answered(of_rows(experiment, model, known, device), int(right_P.sum()), len(rows), known)


@torch.no_grad()
def rights(prompts: Prompts) -> Tensor:
    """Which answers are right."""
    counted_BS, ids_BS = counted(prompts)
    said_n = prompts.record.logits(prompts.record.stream[-1][counted_BS]).argmax(-1)
    return said_n == ids_BS[counted_BS]


def swept_at_answers(prompts: Prompts) -> dict[str, Effects]:
    """Effects of skipped layers, counted where the answer is predicted alone."""
    record, (counted_BS, _) = prompts.record, counted(prompts)
    length = int(record.mask_BS.sum(1).min())
    splits_BN = torch.arange(2, length, device=counted_BS.device).repeat(len(counted_BS), 1)
    found = {"all": skip(record), "future": skip(record, splits_BN=splits_BN), "direct": local(record)}
    return {
        name: replace(effects, counted_RS=effects.counted_RS & counted_BS[effects.row_R])
        for name, effects in found.items()
    }


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
