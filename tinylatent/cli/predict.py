"""`predict`: one of our own models answers problems that come as JSON lines."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tinylatent_tasks.checks import short
from tinylatent_tasks.published import Line as Question

from tinylatent.cli.exported import by_task, reader_for
from tinylatent.cli.lines import Line, check_output, identity, progress, read_lines, write_lines
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import load
from tinylatent.lab.lines import LinesFile
from tinylatent.objectives.method import Model
from tinylatent.objectives.text import Lines, Text


@dataclass(frozen=True)
class Predict:
    """Answers of a trained model: problems as JSON lines in, one JSON answer a line out."""

    checkpoint: Path
    """Folder of a run."""
    input: Path | None = None
    """File of problems, such as {"digits": [3, 5, 2, 8]} a line, or as `export` wrote it; standard input by default."""
    output: Path | None = None
    """File for the answers, written whole or not at all; standard output by default."""
    overwrite: bool = False
    """Replace the output if it exists; never a file that is read."""

    def run(self) -> None:
        """Checks every line first, then answers them all in batches."""
        check_output(self.output, self.overwrite, self.checkpoint, self.input)
        experiment, model = load(self.checkpoint)
        if isinstance(experiment.task, LinesFile):
            told = _to_questions(experiment, model, read_lines(self.input))
            write_lines(told, self.output, len(told))
            return
        problem = reader_for(experiment.task)
        lines = read_lines(self.input)
        read = [problem(where, value) for where, value in progress(lines, "checking", "line")]
        answers: list[dict[str, Any]] = [{} for _ in read]
        for task, index, rows in by_task(read):
            for number, answer in zip(index, _answers(experiment, task, model, rows), strict=True):
                where, value = lines[number]
                named = isinstance(value, dict) and "id" in value
                answers[number] = ({"id": identity(value, where)} if named else {}) | answer
        write_lines(answers, self.output, len(answers))


def _answers(experiment: Experiment, task: Any, model: Model, rows_P: np.ndarray) -> list[dict[str, Any]]:
    """The model's answers to problems of one task, as JSON values."""
    answers: list[dict[str, Any]] = []
    for start in progress(range(0, len(rows_P), size := experiment.asked_at_once), "answering", "batch"):
        rows = rows_P[start : start + size]
        streams = experiment.streams(torch.arange(start, start + len(rows)))
        speaker = experiment.asks(rows, task)
        answer_BA = experiment.method.solve(model, speaker.examples(), streams).answer_BA
        answers += (
            _in_words(task, rows, speaker, answer_BA)
            if isinstance(speaker, Text)
            else task.written(rows, answer_BA.numpy())
        )
    return answers


def _in_words(task: Any, rows: np.ndarray, speaker: Text, answer_BA: torch.Tensor) -> list[dict[str, Any]]:
    """Problems with answers in text, which the task reads or not."""
    said = speaker.wording.texts(answer_BA)
    return [
        {**task.to_json(row), "answer": text, "right": bool(right)}
        for row, text, right in zip(rows.tolist(), said, task.judged(rows, said), strict=True)
    ]


def _to_questions(experiment: Experiment, model: Model, lines: list[Line]) -> list[dict[str, Any]]:
    """Answers to questions of the user's own; whether they are right, where a line brings the answer.

    How long to think nobody knows of them: as long as about half of the lines need that the model was trained on.
    """
    trained: Any = experiment.speaker("train")
    middle = sorted(trained.problems, key=lambda line: len("".join(line.steps)))[len(trained.problems) // 2]
    asked = []
    for where, value in lines:
        if not isinstance(value, dict) or not isinstance(value.get("question"), str) or not value["question"].strip():
            raise ValueError(f'{where} is {short(value)}: expected a question, such as {{"question": "2 plus 3?"}}')
        asked.append(Question(value["question"].strip(), middle.steps, str(value.get("answer", "?"))))
    answers: list[dict[str, Any]] = []
    for start in progress(range(0, len(asked), size := experiment.asked_at_once), "answering", "batch"):
        speaker = Lines(asked[start : start + size], experiment.wording)
        streams = experiment.streams(torch.arange(start, start + len(speaker.problems)))
        examples = speaker.examples()
        answer_BA = experiment.method.solve(model, examples, streams).answer_BA
        verdicts, said = speaker.judge(examples, answer_BA).tolist(), speaker.wording.texts(answer_BA)
        for (where, value), text, right in zip(lines[start : start + size], said, verdicts, strict=True):
            named = {"id": identity(value, where)} if "id" in value else {}
            known = {"right": right} if "answer" in value else {}
            answers.append({**named, "question": value["question"], "answer": text, **known})
    return answers
