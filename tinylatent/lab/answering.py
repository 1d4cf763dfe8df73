"""Answering: which answers of prompts are right, and how layers that are skipped change what is predicted there.

How a model uses depth is asked of problems that it answers rightly: for what it cannot do it may use anything.

Letters: L layers, B problems, S slots, R rows of a sweep.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from tinylatent.lab.experiment import Experiment
from tinylatent.lab.prompts import Prompts, of_rows
from tinylatent.lab.run import short
from tinylatent.lenses.depth import Effects, depth_score, over_later, skip, without
from tinylatent.lenses.reducing import per_prompt
from tinylatent.objectives.method import Model

WAYS: tuple[str | float, ...] = ("mean", 0.9, "max", "last")
"""How effects of a problem's splits become one number; "last" is that of all slots before the answer's."""


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
def rights(prompts: Prompts, last_BSD: Tensor | None = None) -> Bool[Tensor, " B"]:
    """Which answers are right, in all their tokens; had this been the last stream, if one is given."""
    counted_BS, ids_BS = prompts.answers()
    last_BSD = prompts.record.stream[-1] if last_BSD is None else last_BSD
    wrong_BS = torch.zeros_like(counted_BS)
    wrong_BS[counted_BS] = prompts.record.logits(last_BSD[counted_BS]).argmax(-1) != ids_BS[counted_BS]
    return ~wrong_BS.any(1)


class Without(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers with a layer skipped at all tokens but the first, by layer."""

    given: list[float]
    """Share of right answers, given the steps of the clean run."""
    anew: list[float]
    """Share of right answers where the steps were made without that layer, too."""
    moved: list[float]
    """Mean distance of the answer's probabilities from those of the clean run, steps made anew."""


@torch.no_grad()
def without_layers(
    experiment: Experiment, model: Model, rows: np.ndarray, prompts: Prompts, device: torch.device | str
) -> Without:
    """Answers to the problems that these prompts are of, without each layer.

    Given clean steps, a skipped layer harms an answer by what is no longer read; with steps made anew, by what is no
    longer thought as well.
    """
    record, (counted_BS, _) = prompts.record, prompts.answers()
    clean_nV = record.logits(record.stream[-1][counted_BS]).softmax(-1)
    given, made, moved = [], [], []
    for layer in range(record.depth):
        given.append(_share(rights(prompts, without(record, layer))))
        anew = of_rows(experiment, model, rows, device, skipped=layer)
        made.append(_share(rights(anew)))
        found_nV = anew.record.logits(anew.record.stream[-1][anew.answers()[0]]).softmax(-1)
        moved.append(float((clean_nV - found_nV).norm(dim=-1).mean()))
    return Without(given=short(given), anew=short(made), moved=short(moved))


def _share(right_B: Tensor) -> float:
    return float(right_B.double().mean())


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
    """Depth scores of `mean_effects`, by what is affected and how a problem's splits are taken together; None where
    nothing has an effect."""
    return {name: score_of(effect_L) for name, effect_L in mean_effects(future).items()}


def mean_effects(future: Effects) -> dict[str, Tensor]:
    """Mean effect of skipping each layer (L,): splits are taken together first, then later layers, then problems.

    By what is affected and how splits are taken together; every problem has as many.
    """
    rows = len(future.row_R.unique())
    last_b = torch.arange(1, rows + 1, device=future.row_R.device) * (len(future.row_R) // rows) - 1
    found: dict[str, Tensor] = {}
    for how in WAYS:
        here = future
        if how == "last":
            kept = (future.contribution[:, :, last_b], future.output[:, last_b], future.counted_RS[last_b])
            here = Effects(*kept, future.row_R[last_b])
        contribution, output = (
            per_prompt(values, here.counted_RS, "mean" if how == "last" else how, here.row_R)
            for values in (here.contribution, here.output)
        )
        found[f"contributions, {how}"] = over_later(contribution).mean(1)
        found[f"output, {how}"] = output.mean(1)
    return found


def score_of(effect_L: Tensor) -> float | None:
    """The depth score of a mean effect by layer; None where nothing has an effect."""
    score = float(depth_score(effect_L))
    return None if math.isnan(score) else short(score)
