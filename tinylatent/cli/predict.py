"""`predict`: one of our own models answers problems that come as JSON lines."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinylatent.cli.exported import by_task, reader_for
from tinylatent.cli.lines import check_output, identity, progress, read_lines, write_lines
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import load
from tinylatent.objectives.method import Model
from tinylatent.objectives.speakers import Symbols

CHUNK = 1024
"""Problems that are answered at a time."""


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
    answers = []
    for start in progress(range(0, len(rows_P), CHUNK), "answering", "batch"):
        rows = rows_P[start : start + CHUNK]
        streams = experiment.streams(torch.arange(start, start + len(rows)))
        ids_BA = experiment.method.solve(model, Symbols(task, rows).examples(), streams).answer_BA.numpy()
        answers += task.written(rows, ids_BA)
    return answers
