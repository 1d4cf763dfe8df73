"""Prompts that lenses look at: of a trained run, of questions with their answers, of texts from a file.

Prompts of a run are problems of its validation part, solved as its method solves them, latent steps included. A model
of transformers reads texts from a file, with their answers behind them where they have some, as one text. Which slots
predict the answer is known then.

Letters: B prompts, S slots, A answer tokens.
"""

import json
from collections.abc import Callable
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
from tinylatent.lenses.depth import skipping
from tinylatent.lenses.residuals import Record, record_tokens, record_trace
from tinylatent.models.pretrained import Pretrained
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import Model


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
    asked: int | None = None
    """Slots of the prompt, before those of a run's steps and answer; None for a text."""

    def answers(self) -> tuple[Bool[Tensor, "B S"], Int[Tensor, "B S"]]:
        """Slots that predict answers, and the right tokens there; only where answers are known."""
        assert self.counted_BS is not None, "answers are known"
        assert self.ids_BS is not None, "answers are known"
        return self.counted_BS, self.ids_BS

    def rows(self, index_b: Int[Tensor, " b"]) -> "Prompts":
        """Some of the prompts, all with known answers, of which the same was measured."""
        counted_BS, ids_BS = self.answers()
        words = [self.words[row] for row in index_b.tolist()]
        return Prompts(self.record.rows(index_b), words, counted_BS[index_b], ids_BS[index_b], self.asked)


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


def of_rows(
    experiment: Experiment,
    model: Model,
    rows: np.ndarray,
    device: torch.device | str = "cpu",
    skipped: int | None = None,
) -> Prompts:
    """Problems of a run's task, as its method solves them; what is padding in all of them is left out.

    skipped: a layer left out at all tokens but the first, from the prompt on: what is thought is thought without it.

    Raises:
        ValueError: the model's layers cannot be looked into.
    """
    speaker = experiment.asks(rows)
    examples = speaker.examples(device)
    streams = experiment.streams(torch.arange(len(rows), device=torch.device(device)))
    edit = None if skipped is None else skipping(skipped, _firsts(examples))
    trace = experiment.method.solve(model, examples, streams, edit=edit).trace
    with torch.no_grad():
        record = record_trace(trace, edit)
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
    words = [each[first:] for each in _words(experiment, speaker, trace, S)]
    return Prompts(record.cut(first), words, counted_BS[:, first:], ids_BS[:, first:], trace.spans[0].stop - first)


def _firsts(examples: Examples) -> Tensor:
    """The slot of every prompt's first token."""
    mask_BN = examples.prompt_mask_BN
    return torch.zeros_like(examples.prompt_BN[:, 0]) if mask_BN is None else mask_BN.int().argmax(1)


def _slot_before(mask_BS: Tensor, slot: int) -> Tensor:
    """The last slot of every row before this one that holds an input."""
    place_S = torch.arange(slot, device=mask_BS.device)
    return torch.where(mask_BS[:, :slot], place_S, 0).amax(1)


def _words(experiment: Experiment, speaker: Any, trace: Any, slots: int) -> list[list[str]]:
    """What stands in every slot: a token, or which latent of which segment."""
    name: Callable[[int], str] = getattr(speaker, "name", None) or (
        [*experiment.task.vocabulary.tokens, *experiment.extra_tokens].__getitem__
    )
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
