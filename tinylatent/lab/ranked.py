"""Ranked: where the right title of each validation problem stands, and how high the best ranking could get.

For tasks with a catalogue alone, such as recommendation: every title is scored after the method's own thinking, under
each control, and by its other decoders; beside them stand a beam search, rankings by popularity, and Bayes' ranking.

Letters: P problems, I items.
"""

from typing import Any

import numpy as np
import torch

from tinylatent.evaluation.ranking import (
    FIGURES,
    KS,
    Shop,
    best_by_quintile,
    best_gains,
    excess,
    gains,
    listed_ranks,
    quintiles,
    ranks,
)
from tinylatent.evaluation.retrieval import PAST, scores_and_beams
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.records import BEAM, DEFAULT, Ranking
from tinylatent.objectives.method import Method, Model

DIGITS = 5
"""Decimals of what is recorded of likelihoods."""
WIDTH = 10
"""Prefixes that the beam search keeps, as in LatentR3."""

Way = tuple[str, Method, str | None]
"""A name, the method that thinks, and the control of its latents."""


def ranked(
    experiment: Experiment, model: Model, rows: np.ndarray, ways: list[Way], device: torch.device | str = "cpu"
) -> Ranking | None:
    """Ranks of right titles for the problems of the validation part; None if the task has no catalogue.

    In text a title is all the tokens that say it, and the stop behind them.

    Args:
        experiment: what was trained.
        model: its model.
        rows: the problems.
        ways: of thinking; the first is the method's own, which is searched by a beam too.
        device: the model's.
    """
    task = experiment.task
    if not isinstance(task, Shop):
        return None
    speaker: Any = experiment.asks(rows)
    titles_IA = speaker.titles
    seed, right_P = experiment.seeds.derive("sampling", "evaluation"), task.answer(rows)
    found: dict[str, np.ndarray] = {}
    for name, method, control in ways:
        scores_PI, listed_PW = scores_and_beams(
            speaker,
            method,
            model,
            titles_IA,
            width=WIDTH if name == DEFAULT else None,
            control=control,
            seed=seed,
            batch=experiment.asked_at_once,
            device=device,
        )
        found[name] = ranks(scores_PI, right_P)
        if name == DEFAULT:
            nll_P = -scores_PI[np.arange(len(rows)), right_P] / (titles_IA != PAST).sum(1)[right_P]
        if listed_PW is not None:
            found[BEAM] = listed_ranks(listed_PW, right_P, len(task.catalogue))
    predictive_PI, asked = task.predictive(rows), task.answer(experiment.rows("train"))
    baselines = {
        "counts": np.bincount(asked, minlength=len(task.catalogue)),
        "popularity": task.popularity,
        "bayes": predictive_PI,
    }
    return _ranking(experiment.task.key(rows), task, predictive_PI, right_P, found, baselines, nll_P)


def _ranking(
    key_P: np.ndarray,
    task: Shop,
    predictive_PI: np.ndarray,
    right_P: np.ndarray,
    found: dict[str, np.ndarray],
    baselines: dict[str, np.ndarray],
    nll_P: np.ndarray,
) -> Ranking:
    """The record of ranks, its problems in the order of their keys, with the ceiling."""
    order_P, quintile_I = np.argsort(key_P, kind="stable"), quintiles(task.popularity)
    items, ceiling, by_quintile, over = len(quintile_I), {}, {}, {}
    cuts = {str(k): min(k, items) for k in KS}
    for figure in FIGURES:
        best = {name: best_gains(predictive_PI, figure, k) for name, k in cuts.items()}
        ceiling[figure] = {name: float(best_P.mean()) for name, best_P in best.items()}
        by_quintile[figure] = {name: best_by_quintile(predictive_PI, quintile_I, figure, k) for name, k in cuts.items()}
        over[figure] = {name: excess(gains(found[DEFAULT], figure, k), best[name], key_P) for name, k in cuts.items()}
    return Ranking(
        quintile=quintile_I[right_P][order_P].tolist(),
        ranks={name: rank_P[order_P].tolist() for name, rank_P in found.items()},
        baselines={name: ranks(scores, right_P)[order_P].tolist() for name, scores in baselines.items()},
        ceiling=ceiling,
        by_quintile=by_quintile,
        nll=[round(value, DIGITS) for value in nll_P[order_P].tolist()],
        excess=over,
    )
