"""What is said of a finished run: what makes it less than it seems, accuracies, and what to compare them with."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinylatent.cli.terminal import refuse_idle
from tinylatent.core.environment import differences, environment
from tinylatent.core.files import json_text
from tinylatent.evaluation.statistics import accuracy_interval
from tinylatent.lab.experiment import Experiment, device_named
from tinylatent.lab.launchers.launcher import RESULT
from tinylatent.lab.records import DEFAULT, ExperimentRecord
from tinylatent.lab.study import STORE
from tinylatent.lab.trained import done, train_together


def kept_in(command: Any, run: Experiment) -> tuple[Path, Path | None]:
    """The folder of a run that a command does: its `out`, or one in the store under its `results`; and that store.

    Raises:
        ValueError: it names both.
    """
    if command.out is not None:
        refuse_idle(command, ("results",), "beside --out, which is the folder of the run")
        return command.out, None
    store = command.results / STORE
    return store / run.identity, store


def carried_out(command: Any, run: Experiment, start: Path | None, more: Sequence[str]) -> None:
    """Does the run of a command, alone or as one of several processes, and shows it.

    Args:
        command: has out, results, device, spread, half and json.
        run: what to do.
        start: folder of the run it starts from, if that is done.
        more: remarks.

    Raises:
        ValueError: it cannot be done, or flags do not go together.
    """
    if command.spread is None:
        refuse_idle(command, ("half",), "without --spread fsdp")
    folder, store = kept_in(command, run)
    if command.spread is not None:
        if not train_together(run, folder, command.device, command.spread, command.half, start):
            return
        store = None  # what it starts from was trained beside it
    shown(done(run, folder, command.device, start, store), folder, command.device, more, command.json)


def shown(record: ExperimentRecord, folder: Path, device: str, more: Sequence[str], json: bool) -> None:
    """Prints a record, as JSON or as a table, and beside it on standard error what to keep in mind.

    Args:
        record: of the run.
        folder: where it is kept.
        device: where it was asked to be trained.
        more: remarks.
        json: whether to print JSON.
    """
    for remark in (*remarks(record, environment(device_named(device)), folder), *more):
        say(remark)
    print(json_text(record.to_json()) if json else described(record))
    if not json:
        print(f"result: {folder / RESULT}")


def say(remark: str) -> None:
    """Prints a remark beside the result."""
    print(remark, file=sys.stderr)


def remarks(record: ExperimentRecord, now: Mapping[str, str], folder: Path) -> Iterator[str]:
    """What makes a result less than it seems: code or machine that changed on the way, an accuracy that is no feat.

    Args:
        record: the result.
        now: the environment of today.
        folder: where it is kept.
    """
    own = [*(record.environments.training or []), record.environments.measuring]
    if found := differences(own):
        yield f"trained and measured in different environments: {_listed(found)}"
    if found := differences([record.environments.measuring, now]):
        yield f"measured elsewhere than here: {_listed(found)}; delete {folder} to train and measure it again"
    accuracy = accuracy_interval([record.evaluations[DEFAULT].right], [record.total])
    if accuracy.low <= record.majority_baseline:
        yield (
            f"the accuracy is not above the majority baseline of {100 * record.majority_baseline:.2f} %: it may have "
            "learnt no more than which answer is frequent"
        )


def _listed(found: Mapping[str, Sequence[str]]) -> str:
    text = ", ".join(f"{name} {' and '.join(values)}" for name, values in found.items())
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28}", r"\1", text)  # of a commit's forty digits twelve are enough


def described(record: ExperimentRecord) -> str:
    """Accuracies with their intervals, and what they are to be compared with."""
    name = record.experiment.method.name
    rows = []
    for part, judged in (("before ", record.before), ("", record)):
        for way, evaluation in {} if judged is None else judged.evaluations.items():
            label = part + (name if way == DEFAULT else f"{name}, {way}")
            rows.append((label, evaluation.right, record.total))
    rows += [(f"difficulty {level}", each.right, each.total) for level, each in record.levels.items()]
    if record.train is not None:
        rows.append(("training problems", record.train.right, record.train.total))
    lines = [_line(*row) for row in rows]
    lines.append(f"{'majority baseline':22s} {100 * record.majority_baseline:6.2f} %  always the most frequent answer")
    if record.accuracy_ceiling < 1:
        lines.append(f"{'accuracy ceiling':22s} {100 * record.accuracy_ceiling:6.2f} %  expected of the best guess")
    if record.stopped is not None:
        lines.append(f"stopped at step {record.stopped.step}: {record.stopped.advice}")
    return "\n".join(lines)


def _line(label: str, right: list[int], total: list[int]) -> str:
    interval = accuracy_interval([right], [total])
    low, value, high = (100 * share for share in (interval.low, interval.value, interval.high))
    return f"{label:22s} {value:6.2f} %  [{low:.2f}, {high:.2f}]"
