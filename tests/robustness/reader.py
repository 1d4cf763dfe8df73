"""Reading beside a writer: runs are loaded while another process trains them and replaces a checkpoint at every step.

Every load reads config, checkpoint and weights, the metrics, and the ends of stages. The only errors that may be met
say that something is not there yet: no run, or no checkpoint.

    python -m tests.robustness.reader --loads 5000

writes results/robustness/reader.json, and ends with status 1 if anything else was met.
"""

import math
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinylatent_tasks import MNNS

from tests.robustness.jobs import main, started
from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import load, train
from tinylatent.methods import Coconut
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.checkpoints import STAGES, find_checkpoint, load_weights, look_again, read_metrics
from tinylatent.training.config import Training

NOT_YET = ("holds no run", "has no checkpoint yet")
STEPS = 60


def experiment() -> Experiment:
    """A run with stages that saves and logs at every step."""
    recipe = Training(steps=STEPS, batch_size=4, learning_rate=0.01, log_every=1, save_every=1, validate=0)
    return Experiment(MNNS(2, 1, 4), Coconut(stages=2, share=0.3), ModelConfig(8, 1, 1), recipe, Seeds.all(1))


def write(folder: Path) -> None:
    """Trains one run after another, in numbered folders, until it is killed."""
    number = 0
    while True:
        train(experiment(), folder / str(number), say=lambda text: None)
        number += 1


def read(folder: Path) -> int:
    """Loads all that a run has so far; returns the number of its metrics' lines.

    Raises:
        ValueError, OSError: something is not there, or not as it should be.
    """
    _, model = load(folder)
    for place in (folder / STAGES).glob("*"):

        def load_stage(place: Path = place) -> None:
            saved = find_checkpoint(place, folder)
            if saved is not None:
                load_weights(saved, model)

        look_again(place, load_stage)
    lines = read_metrics(folder)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), "lines are in order, each once"
    assert all(math.isfinite(line["loss"]) for line in lines), "every line is whole"
    return len(lines)


def newest(folder: Path) -> Path:
    """The folder of the run that is being trained, or is the next to be."""
    numbers = [int(path.name) for path in folder.iterdir()]
    return folder / str(max(numbers, default=0))


def proved(loads: int, told: Any = print) -> dict[str, Any]:
    """Loads so many times beside a writer; what was met, each kind of error with its number.

    Raises:
        RuntimeError: the writer ended, or an error was met that does not say "not yet"; the message is the error's.
    """
    met: Counter[str] = Counter()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        process = started(write, folder)
        try:
            while process.is_alive() and not any(folder.glob("*/step-*")):
                time.sleep(0.01)
            for number in range(1, loads + 1):
                met.update(_met(newest(folder)))
                if not process.is_alive():
                    raise RuntimeError(f"the writer ended with status {process.exitcode}")
                if number % 500 == 0:
                    told(f"{number} loads: {dict(met)}")
            runs = len([*folder.iterdir()])
        finally:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
            process.join()
    return {"loads": loads, **met, "other errors": 0, "runs": runs, "seconds": round(time.perf_counter() - began, 1)}


def _met(run: Path) -> Iterator[str]:
    """What one load met: the kind of error or none, and whether the checkpoint was replaced meanwhile."""
    before = {path.name for path in run.glob("step-*")}
    try:
        read(run)
        yield "loaded"
    except (ValueError, OSError, AssertionError) as error:
        kind = next((kind for kind in NOT_YET if kind in str(error)), None)
        if kind is None:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        yield kind
    if before and before.isdisjoint(path.name for path in run.glob("step-*")):
        yield "of these, replaced meanwhile"


if __name__ == "__main__":
    sys.exit(main("reader", __doc__, proved, loads=5000))
