"""Lensed: prompts looked into by every lens; tables of what is seen.

Erasure and integrated gradients are about the slots that predict an answer, and are left out without answers.

Letters: B prompts, S slots, N splits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tinylatent.core.seeds import derive
from tinylatent.lab.prompts import Prompts
from tinylatent.lab.run import short
from tinylatent.lab.tables import Table, Value
from tinylatent.lenses.attribution import Target, integrated_gradients
from tinylatent.lenses.depth import (
    Effects,
    Part,
    Sizes,
    depth_score,
    erase,
    local,
    mean_added,
    mean_stream,
    over_later,
    sizes,
    skip,
)
from tinylatent.lenses.logit_lens import logit_lens
from tinylatent.lenses.outliers import input_correlation, stream_outliers
from tinylatent.lenses.reducing import bootstrap, per_prompt
from tinylatent.lenses.residuals import Record

SAMPLE = 2048
"""Most tokens whose correlation is measured."""
MEASURED = tuple(name for name in Sizes.__dataclass_fields__)
"""What `sizes` measures."""
Rows = list[dict[str, Value]]


@dataclass(frozen=True)
class Settings:
    """How much is asked.

    Raises ValueError for numbers out of range.
    """

    splits: int = 4
    """Splits of every prompt for effects on the future, drawn from those that are possible."""
    shown: int = 2
    """Prompts whose residuals are erased and attributed, token by token."""
    target: Target = "probability"
    """What integrated gradients explain."""
    most: int = 243
    """Nodes of integrated gradients at most."""
    seed: int = 0
    """Draws splits."""

    def __post_init__(self) -> None:
        for name, least in (("splits", 1), ("shown", 0), ("most", 9)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: expected {least} or more")


def splits_of(record: Record, count: int, seed: int) -> Int[Tensor, "B N"]:
    """Splits of every row, drawn without repetition; all rows get as many as the shortest has.

    Raises:
        ValueError: a row is too short to be split.
    """
    length_B = record.mask_BS.sum(1).tolist()
    if min(length_B) < 4:
        raise ValueError(f"a prompt of {min(length_B)} tokens cannot be split: expected 4 or more")
    count = min(count, min(length_B) - 2)
    rows = [
        sorted(np.random.default_rng(derive(seed, row)).permutation(np.arange(2, length))[:count])
        for row, length in enumerate(length_B)
    ]
    return torch.tensor(np.array(rows), device=record.mask_BS.device)


def on_future(record: Record, settings: Settings) -> Effects:
    """Effects of skipping each layer before a split on what comes after it: the dearest of all sweeps."""
    return skip(record, splits_BN=splits_of(record, settings.splits, settings.seed))


def tables(
    prompts: Prompts,
    settings: Settings,
    tell: Callable[[str], None] = lambda name: None,
    future: Effects | None = None,
) -> dict[str, Table]:
    """Every lens's table by its name; `tell` hears which is measured now, `future` are effects that are known."""
    steps = {
        "sizes": lambda: _sizes(prompts.record),
        "lens": lambda: _lens(prompts),
        "skip": lambda: _skips(prompts.record, future or on_future(prompts.record, settings)),
        "outliers": lambda: _outliers(prompts.record),
        "erasure": lambda: _erasure(prompts, settings),
        "attribution": lambda: _attribution(prompts, settings),
    }
    known = prompts.counted_BS is not None
    found = {}
    for name, step in steps.items():
        if known or name not in ("erasure", "attribution"):
            tell(name)
            found[name] = step()
    return found


def _sizes(record: Record) -> Table:
    """Norms, ratios and cosines by layer: means over prompts of means over tokens, the first token left out."""
    measured, free_BS = sizes(record), record.mask_BS & (record.rank_BS() >= 1)
    columns = {"measure": "s", "layer": "d", "mean": ".4f", "low": ".4f", "high": ".4f"}
    rows: Rows = [row for name in MEASURED for row in _by_layer(name, getattr(measured, name), free_BS)]
    legend = "layer: residual has one more than the others, after the last. Intervals: 95 % over prompts."
    return Table("Norms, relative contributions and cosines", columns, rows, legend)


def _by_layer(name: str, values: Tensor, counted_BS: Tensor) -> Iterator[dict[str, Value]]:
    means = bootstrap(per_prompt(values, counted_BS))
    for layer, (value, low, high) in enumerate(zip(means.value, means.low, means.high, strict=True)):
        yield {"measure": name, "layer": layer, "mean": float(value), "low": float(low), "high": float(high)}


def _lens(prompts: Prompts) -> Table:
    """The logit lens before every layer, over all tokens and where an answer is predicted."""
    record, rows = prompts.record, Rows()
    found = logit_lens(record, min(5, len(record.model.table)))
    places = {"all": record.mask_BS & (record.rank_BS() >= 1)}
    if prompts.counted_BS is not None:
        places["answer"] = prompts.counted_BS
    for place, counted_BS in places.items():
        for name in ("to_final", "from_final", "overlap", "entropy"):
            rows += [{"tokens": place, **row} for row in _by_layer(name, getattr(found, name), counted_BS)]
    columns = {"tokens": "s", "measure": "s", "layer": "d", "mean": ".4f", "low": ".4f", "high": ".4f"}
    legend = (
        "to_final: KL(lens || final) in nats; from_final: KL(final || lens); overlap: share of the five most likely "
        "tokens; the last layer is the model's own prediction."
    )
    return Table("Logit lens", columns, rows, legend)


def _skips(record: Record, future: Effects) -> Table:
    """Effects of skipping each layer on all tokens, on later tokens, and directly on later layers."""
    swept = {"all": skip(record), "future": future, "direct": local(record)}
    swept |= {f"all, {part}": skip(record, part) for part in get_args(Part) if part != "layer"}
    swept["all, mean"] = skip(record, filler_LD=mean_added([record]))
    rows: Rows = [row for name, effects in swept.items() for row in _effects(name, effects)]
    columns = {
        "effect on": "s", "skipped": "d", "on": "s", "mean": ".4f", "low": ".4f", "high": ".4f", "max": ".4f",
    }  # fmt: skip
    scores = _scores(future)
    remarks = [f"depth score of effects on the future ({name}): {_told(values)}" for name, values in scores.items()]
    legend = (
        "skipped: a layer; on: a later layer's contribution, as |c - c'| / |c|, or the output, as the distance of "
        "probabilities. all: skipped at all tokens but the first, or its attention or MLP alone; mean: it adds there "
        "what it adds on average over these tokens, instead of nothing; future: skipped before a split, read after it; "
        "direct: its contribution taken from one later layer's input alone. mean over tokens, then prompts, with 95 % "
        "intervals over prompts; max over all tokens."
    )
    return Table("Effects of skipping a layer", columns, rows, legend, remarks=remarks)


def _effects(name: str, effects: Effects) -> Iterator[dict[str, Value]]:
    L = len(effects.output)
    parts = {str(layer): effects.contribution[:, layer] for layer in range(L)} | {"output": effects.output}
    for on, values in parts.items():
        means = bootstrap(per_prompt(values, effects.counted_RS, "mean", effects.row_R))
        largest = values[:, effects.counted_RS].amax(-1)
        for layer in range(L if on == "output" else int(on) + 1):
            yield {
                "effect on": name,
                "skipped": layer,
                "on": on,
                "mean": float(means.value[layer]),
                "low": float(means.low[layer]),
                "high": float(means.high[layer]),
                "max": float(largest[layer]),
            }


def scores_of(future: Effects) -> dict[str, list[float]]:
    """Depth scores of effects on the future, prompt by prompt, by what is affected and how tokens are taken.

    Half way where nothing has an effect.
    """
    half = (len(future.output) - 1) / 2
    return {name: short(values.nan_to_num(half)) for name, values in _scores(future).items()}


def _scores(future: Effects) -> dict[str, Tensor]:
    """The score of every prompt, as the authors do for one: over tokens first, then over later layers.

    NaN where nothing has an effect.
    """

    def reduced(values: Tensor, how: str) -> Tensor:
        return per_prompt(values, future.counted_RS, how, future.row_R)

    found: dict[str, Tensor] = {}
    for how in ("mean", "max"):
        found[f"contributions, {how}"] = depth_score(over_later(reduced(future.contribution, how)).T)
        found[f"output, {how}"] = depth_score(reduced(future.output, how).T)
    return found


def _told(score_B: Tensor) -> str:
    """A mean score with its interval over prompts that have one."""
    means = bootstrap(score_B[score_B.isfinite()])
    return f"{means.value:.2f} [{means.low:.2f}, {means.high:.2f}]"


def _outliers(record: Record) -> Table:
    """Outlier features of the residual stream, with and without first tokens."""
    rows = Rows()
    for name, keep_first in (("all", 0), ("without the first", 1)):
        free_BS = record.mask_BS & (record.rank_BS() >= keep_first)
        for layer, stats in enumerate(stream_outliers([record], keep_first)):
            sample = record.stream[layer][free_BS][:SAMPLE]
            rows.append(
                {
                    "tokens": name,
                    "layer": layer,
                    "kurtosis": stats.kurtosis(),
                    "share": stats.share(),
                    "max-median": stats.max_median(),
                    "input correlation": input_correlation(sample) if len(sample) > 1 else None,
                }
            )
    columns = {
        "tokens": "s", "layer": "d", "kurtosis": ".3f", "share": ".4f", "max-median": ".2f", "input correlation": ".4f",
    }  # fmt: skip
    neurons = record.stream.shape[-1]
    legend = f"kurtosis: neuron-RMS, between 1 and {neurons}; share: (kurtosis - 1) / {neurons - 1}."
    return Table("Outlier features of the residual stream", columns, rows, legend)


def _erasure(prompts: Prompts, settings: Settings) -> Table:
    """Effect on the answer of one token's residual replaced before one layer."""
    filler_LD, rows = mean_stream([prompts.record]), Rows()
    for row, part, words, live_S in _shown(prompts, settings):
        counted_1S = prompts.answers()[0][row : row + 1, live_S]
        effects = erase(part, filler_LD, counted_1S)[:, 0].amax(-1)
        rows += [
            {"prompt": row, "layer": layer, **told, "effect": float(value)}
            for layer, effect_S in enumerate(effects)
            for told, value in zip(_slots(words, counted_1S[0]), effect_S, strict=True)
        ]
    columns = {"prompt": "d", "layer": "d", **SLOT, "effect": ".4f"}
    legend = (
        "effect: the largest distance between probabilities where the answer is predicted, if this token's residual "
        "before this layer is replaced by the mean one; the first token is never replaced. predicts: 1 where the "
        "answer is predicted."
    )
    return Table("Erased residuals", columns, rows, legend)


def _attribution(prompts: Prompts, settings: Settings) -> Table:
    """Integrated gradients over the residual before every layer."""
    rows = Rows()
    for row, part, words, live_S in _shown(prompts, settings):
        counted_1S, ids_1S = (x[row : row + 1, live_S] for x in prompts.answers())
        for layer in range(part.depth + 1):
            found = integrated_gradients(part, layer, counted_1S, ids_1S, settings.target, most=settings.most)
            told: dict[str, Value] = {"change": float(found.change_B[0]), "missed": float(found.error_B[0])}
            rows += [
                {"prompt": row, "layer": layer, **slot, "attribution": float(value), **told}
                for slot, value in zip(_slots(words, counted_1S[0]), found.attribution_BS[0], strict=True)
            ]
    columns = {"prompt": "d", "layer": "d", **SLOT, "attribution": "+.4f", "change": "+.4f", "missed": "+.4f"}
    legend = (
        f"attribution: what a token's residual before a layer contributes to the answer's {settings.target}; change: "
        "what those of a layer should add up to; missed: their sum less that. predicts: 1 where the answer is "
        "predicted."
    )
    worst = max(rows, key=lambda row: abs(float(row["missed"] or 0)), default={"missed": 0.0, "change": 0.0})
    remark = "attributions miss what they should add up to by {missed:.4f} of {change:.4f} at most".format(**worst)
    return Table("Integrated gradients", columns, rows, legend, remarks=[remark])


def _shown(prompts: Prompts, settings: Settings) -> Iterator[tuple[int, Record, list[str], Tensor]]:
    """The first prompts, each as a record of its own without slots that hold nothing, its words, and its slots."""
    record = prompts.record
    for row in range(min(settings.shown, len(record.mask_BS))):
        live_S = record.mask_BS[row]
        words = [word for word, is_live in zip(prompts.words[row], live_S.tolist(), strict=True) if is_live]
        yield row, record.alone(row), words, live_S


SLOT = {"slot": "d", "token": "s", "predicts": "d"}


def _slots(words: list[str], counted_S: Tensor) -> Rows:
    """A slot's place, what it holds, and 1 where it predicts the answer."""
    return [
        {"slot": slot, "token": word, "predicts": int(counted)}
        for slot, (word, counted) in enumerate(zip(words, counted_S, strict=True))
    ]
