"""Lensed: a trained run, or a model of transformers with some prompts, looked into by every lens; tables of all.

Prompts of a run are problems of its validation part, solved as its method solves them, latent steps included. A model
of transformers reads texts from a file, with their answers behind them where they have some. Which slots predict the
answer is known then: erasure and integrated gradients are about these, and are left out without answers.

Letters: B prompts, S slots, N splits.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tinylatent.core.seeds import derive
from tinylatent.engine.plan import ANSWER
from tinylatent.engine.trace import PROMPT
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.run import short
from tinylatent.lab.tables import Table, Value
from tinylatent.lenses.attribution import Target, integrated_gradients
from tinylatent.lenses.depth import Effects, Sizes, depth_score, erase, local, mean_stream, over_later, sizes, skip
from tinylatent.lenses.logit_lens import logit_lens
from tinylatent.lenses.outliers import input_correlation, stream_outliers
from tinylatent.lenses.reducing import bootstrap, per_prompt
from tinylatent.lenses.residuals import Record, record_tokens, record_trace
from tinylatent.models.pretrained import Pretrained
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import Model

SAMPLE = 2048
"""Most tokens whose correlation is measured."""
MEASURED = tuple(name for name in Sizes.__dataclass_fields__)
"""What `sizes` measures."""
Rows = list[dict[str, Value]]


@dataclass(frozen=True)
class Prompts:
    """What is looked into."""

    record: Record
    words: list[list[str]]
    """What stands in every slot of every prompt."""
    counted_BS: Bool[Tensor, "B S"] | None = None
    """Slots that predict an answer; None where no answers are known."""
    ids_BS: Int[Tensor, "B S"] | None = None
    """The right token at each of these; of a run's own answer, behind what it said before."""


# ---------------------------------------------------------------------------------------------------------------------
# Where prompts come from


def of_run(experiment: Experiment, model: Model, count: int, device: torch.device | str = "cpu") -> Prompts:
    """Problems of a run's validation part, as its method solves them.

    Raises:
        ValueError: the model's layers cannot be looked into.
    """
    return of_rows(experiment, model, drawn(experiment.rows("validation"), count), device)


def drawn(rows: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """So many of these rows, drawn: in a space that is listed neighbours are alike."""
    return rows[np.sort(np.random.default_rng(derive(seed, "looked at")).permutation(len(rows))[:count])]


def of_rows(experiment: Experiment, model: Model, rows: np.ndarray, device: torch.device | str = "cpu") -> Prompts:
    """Problems of a run's task, as its method solves them; what is padding in all of them is left out.

    Raises:
        ValueError: the model's layers cannot be looked into.
    """
    examples = experiment.asks(rows).examples(device)
    streams = experiment.streams(torch.arange(len(rows), device=torch.device(device)))
    trace = experiment.method.solve(model, examples, streams).trace
    with torch.no_grad():
        record = record_trace(trace)
    mask_BS, (B, S) = record.mask_BS, record.mask_BS.shape
    counted_BS, ids_BS = torch.zeros_like(mask_BS), torch.zeros(B, S, dtype=torch.long, device=mask_BS.device)
    span = trace.span(ANSWER)
    for place in range(min(span.stop - span.start, examples.answer_BA.shape[1])):
        slot_B = _slot_before(mask_BS, span.start + place)
        known_B = torch.ones_like(slot_B, dtype=torch.bool)
        if examples.answer_mask_BA is not None:
            known_B = examples.answer_mask_BA[:, place]
        if trace.acted_BT is not None:
            known_B = known_B & trace.acted_BT[:, span.start + place - trace.spans[0].stop]
        row_b = known_B.nonzero()[:, 0]
        counted_BS[row_b, slot_B[row_b]] = True
        ids_BS[row_b, slot_B[row_b]] = examples.answer_BA[row_b, place]
    first = int(mask_BS.any(0).nonzero()[0, 0])
    words = [each[first:] for each in _words(experiment, trace, S)]
    return Prompts(record.cut(first), words, counted_BS[:, first:], ids_BS[:, first:])


def _slot_before(mask_BS: Tensor, slot: int) -> Tensor:
    """The last slot of every row before this one that holds an input."""
    place_S = torch.arange(slot, device=mask_BS.device)
    return torch.where(mask_BS[:, :slot], place_S, 0).amax(1)


def _words(experiment: Experiment, trace: Any, slots: int) -> list[list[str]]:
    """What stands in every slot: a token, or which latent of which segment."""
    speaker: Any = experiment.asks(experiment.rows("validation")[:1])

    def name(id: int) -> str:
        if hasattr(speaker, "name"):
            return str(speaker.name(id))
        return [*experiment.task.vocabulary.tokens, *experiment.extra_tokens][id]

    names = [[name(id) for id in row] for row in trace.prompt_BN.tolist()]
    for span in trace.spans:
        if span.name == PROMPT:
            continue
        ids = span.thought.token(span.action)
        for row, words in enumerate(names):
            for place in range(span.stop - span.start):
                words.append(f"({place + 1})" if ids is None else name(int(ids[row, place])))
    return [words[:slots] for words in names]


def of_examples(backbone: Any, examples: Examples, name: Callable[[int], str]) -> Prompts:
    """Questions with their right answers behind them, as a model reads both.

    Args:
        backbone: the model.
        examples: the questions.
        name: what a token stands for.
    """
    prompt_BN, answer_BA = examples.prompt_BN, examples.answer_BA
    known_BN = examples.prompt_mask_BN
    known_BN = torch.ones_like(prompt_BN, dtype=torch.bool) if known_BN is None else known_BN
    said_BA = examples.answer_mask_BA
    said_BA = torch.ones_like(answer_BA, dtype=torch.bool) if said_BA is None else said_BA
    ids_BS = torch.cat([prompt_BN, answer_BA], 1)
    mask_BS = torch.cat([known_BN, said_BA[:, 1:]], 1)  # nothing follows an answer's last token
    counted_BS = torch.cat([torch.zeros_like(known_BN)[:, 1:], said_BA], 1)
    with torch.no_grad():
        record = record_tokens(backbone, ids_BS[:, :-1], mask_BS)
    words = [
        [name(id) if live else "" for id, live in zip(ids, mask, strict=True)]
        for ids, mask in zip(ids_BS[:, :-1].tolist(), mask_BS.tolist(), strict=True)
    ]
    return Prompts(record, words, counted_BS, ids_BS[:, 1:])


@dataclass(frozen=True)
class Passage:
    """A text, and the answer behind it."""

    question: str
    answer: str = ""


def read_passages(path: Path) -> list[Passage]:
    """Texts from a file, a line each: plain, or JSON objects with a question and, where it is known, an answer.

    Raises:
        ValueError: there is no such file, no text in it, or a line that is neither.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: texts may hold other breaks
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): expected a text file with a prompt on every line"
        ) from error
    found = [
        _passage(line.rstrip("\r"), f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not found:
        raise ValueError(f"{path} holds no prompts: write one on every line")
    if len({bool(each.answer) for each in found}) > 1:
        raise ValueError(f"{path} has answers to some prompts and none to others: give all of them one, or none")
    return found


def _passage(line: str, where: str) -> Passage:
    if not line.lstrip().startswith("{"):
        return Passage(line)
    try:
        item = json.loads(line)
    except ValueError as error:
        raise ValueError(f'{where} is no JSON ({error}): expected such as {{"question": .., "answer": ..}}') from error
    question, answer = item.get("question"), item.get("answer", "")
    if not isinstance(question, str) or not question or not isinstance(answer, str):
        raise ValueError(f'{where} lacks a question: expected such as {{"question": "1 + 1 =", "answer": "2"}}')
    return Passage(question, answer)


def of_model(folder: Path, passages: list[Passage], device: torch.device | str = "cpu") -> Prompts:
    """Texts as a model of transformers reads them, answers after a space and teacher-forced.

    Raises:
        ValueError: the folder holds no model or tokenizer, its layers cannot be looked into, or a text is too short.
    """
    settings = Pretrained(str(folder)).found()
    tokenizer = settings.tokenizer()
    backbone = settings.backbone(len(tokenizer), [], torch.Generator()).to(device)
    rows = [_ids(tokenizer, each) for each in passages]
    longest = max(len(question) + len(answer) for question, answer in rows)
    ids_BS = torch.zeros(len(rows), longest, dtype=torch.long)
    mask_BS, counted_BS = (torch.zeros(ids_BS.shape, dtype=torch.bool) for _ in range(2))
    for row, (question, answer) in enumerate(rows):
        both = [*question, *answer]
        if len(question) < 2:
            raise ValueError(
                f"prompt {row + 1}, {passages[row].question!r}, is {len(question)} token: expected 2 or more"
            )
        ids_BS[row, -len(both) :], mask_BS[row, -len(both) :] = torch.tensor(both), True
        counted_BS[row, longest - len(answer) - 1 : -1] = True
    known = all(answer for _, answer in rows)
    with torch.no_grad():
        record = record_tokens(backbone, ids_BS.to(device), mask_BS.to(device))
    words = [[tokenizer.decode([id]) if live else "" for id, live in zip(ids, mask, strict=True)]
             for ids, mask in zip(ids_BS.tolist(), mask_BS.tolist(), strict=True)]  # fmt: skip
    if not known:
        return Prompts(record, words)
    return Prompts(record, words, counted_BS.to(device), ids_BS.roll(-1, 1).to(device))


def _ids(tokenizer: Any, passage: Passage) -> tuple[list[int], list[int]]:
    """The tokens of a text and of the answer behind a space, of both as one text.

    Raises:
        ValueError: a token reaches from the text into the answer.
    """
    question = passage.question.rstrip() if passage.answer else passage.question
    whole = f"{question} {passage.answer}" if passage.answer else question
    read = tokenizer(whole, return_offsets_mapping=True)
    pairs = list(zip(read["input_ids"], read["offset_mapping"], strict=True))
    if pairs and pairs[-1][0] == tokenizer.eos_token_id:
        pairs = pairs[:-1]
    if any(start < len(question) < stop for _, (start, stop) in pairs):
        raise ValueError(
            f"{passage.question!r} and {passage.answer!r} share a token: end the question at the end of a word"
        )
    known = [id for id, (start, stop) in pairs if stop <= len(question)]
    return known, [id for id, (_, stop) in pairs if stop > len(question)]


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


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


def tables(prompts: Prompts, settings: Settings, tell: Callable[[str], None] = lambda name: None) -> dict[str, Table]:
    """Every lens's table by its name; `tell` hears which is measured now."""
    steps = {
        "sizes": lambda: _sizes(prompts.record),
        "lens": lambda: _lens(prompts),
        "skip": lambda: _skips(prompts, settings),
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


def _skips(prompts: Prompts, settings: Settings) -> Table:
    """Effects of skipping each layer on all tokens, on later tokens, and directly on later layers."""
    record = prompts.record
    swept = {
        "all": skip(record),
        "future": skip(record, splits_BN=splits_of(record, settings.splits, settings.seed)),
        "direct": local(record),
    }
    rows: Rows = [row for name, effects in swept.items() for row in _effects(name, effects)]
    columns = {
        "effect on": "s", "skipped": "d", "on": "s", "mean": ".4f", "low": ".4f", "high": ".4f", "max": ".4f",
    }  # fmt: skip
    scores = _scores(swept["future"])
    remarks = [f"depth score of effects on the future ({name}): {_told(values)}" for name, values in scores.items()]
    legend = (
        "skipped: a layer; on: a later layer's contribution, as |c - c'| / |c|, or the output, as the distance of "
        "probabilities. all: skipped at all tokens but the first; future: skipped before a split, read after it; "
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


def scores_of(record: Record, settings: Settings) -> dict[str, list[float]]:
    """Depth scores of effects on the future, prompt by prompt, by what is affected and how tokens are taken.

    Half way where nothing has an effect.
    """
    future = skip(record, splits_BN=splits_of(record, settings.splits, settings.seed))
    return {name: short(values.nan_to_num((record.depth - 1) / 2)) for name, values in _scores(future).items()}


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
    assert prompts.counted_BS is not None, "only with answers"
    filler_LD, rows = mean_stream([prompts.record]), Rows()
    for row, part, words, live_S in _shown(prompts, settings):
        counted_1S = prompts.counted_BS[row : row + 1, live_S]
        effects = erase(part, filler_LD, counted_1S)[:, 0].amax(-1)
        rows += _by_token(row, words, effects, "effect")
    columns = {"prompt": "d", "layer": "d", "slot": "d", "token": "s", "effect": ".4f"}
    legend = (
        "effect: the largest distance between probabilities where the answer is predicted, if this token's residual "
        "before this layer is replaced by the mean one; the first token is never replaced."
    )
    return Table("Erased residuals", columns, rows, legend)


def _attribution(prompts: Prompts, settings: Settings) -> Table:
    """Integrated gradients over the residual before every layer."""
    assert prompts.counted_BS is not None, "only with answers"
    assert prompts.ids_BS is not None, "only with answers"
    rows = Rows()
    for row, part, words, live_S in _shown(prompts, settings):
        counted_1S, ids_1S = (x[row : row + 1, live_S] for x in (prompts.counted_BS, prompts.ids_BS))
        for layer in range(part.depth + 1):
            found = integrated_gradients(part, layer, counted_1S, ids_1S, settings.target, most=settings.most)
            told: dict[str, Value] = {"change": float(found.change_B[0]), "missed": float(found.error_B[0])}
            rows += [
                {"prompt": row, "layer": layer, "slot": slot, "token": word, "attribution": float(value), **told}
                for slot, (word, value) in enumerate(zip(words, found.attribution_BS[0], strict=True))
            ]
    columns = {
        "prompt": "d", "layer": "d", "slot": "d", "token": "s", "attribution": "+.4f", "change": "+.4f",
        "missed": "+.4f",
    }  # fmt: skip
    legend = (
        f"attribution: what a token's residual before a layer contributes to the answer's {settings.target}; change: "
        "what those of a layer should add up to; missed: their sum less that."
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


def _by_token(row: int, words: list[str], values_LS: Tensor, name: str) -> Rows:
    return [
        {"prompt": row, "layer": layer, "slot": slot, "token": word, name: float(values_LS[layer, slot])}
        for layer in range(len(values_LS))
        for slot, word in enumerate(words)
    ]
