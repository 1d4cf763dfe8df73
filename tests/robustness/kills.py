"""Kills: runs killed at random moments, again and again until they end, end as runs that were not, bit for bit.

Four methods: CoT2, Coconut with its stages, GRPO from a start that is trained first, pause tokens. A run is killed by
SIGKILL, SIGTERM or SIGINT at a moment drawn uniformly, while it starts, trains, saves, validates or is evaluated, and
started again, until it has its record. Compared are weights and optimizer of the last checkpoint, weights at the ends
of stages, metrics and record, without what tells times; in the start's folder too.

    python -m tests.robustness.kills --kills 100

writes results/robustness/kills.json, and ends with status 1 at the first difference.
"""

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinylatent_tasks import MNNS

from tests.robustness.jobs import FAILED, main, started
from tinylatent.core.files import read_json
from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.launchers.launcher import RESULT, Job
from tinylatent.methods import GRPO, Coconut, CoT2, PauseTokens
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.checkpoints import (
    CONFIG,
    MANIFEST,
    OPTIMIZER,
    STAGES,
    WEIGHTS,
    find_checkpoint,
    read_metrics,
)
from tinylatent.training.config import Training

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SHARE = 0.5
"""Share of the time of a whole run within which it is killed."""
TIMES = ("problems_per_s", "training_seconds", "environments", "seal")
"""What differs from run to run: times, and the commit, which may change meanwhile."""


def _run(method: Any, start: Experiment | None = None, **recipe: Any) -> Experiment:
    """Seconds of training, with many lines and checkpoints at steps that do not coincide."""
    usual = {"steps": 400, "batch_size": 16, "learning_rate": 0.01, "log_every": 15, "save_every": 20, "validate": 32}
    return Experiment(
        MNNS(3, 1, 4), method, ModelConfig(16, 1, 2), Training(**{**usual, **recipe}), Seeds.all(1), start
    )


def experiments() -> dict[str, Experiment]:
    """The runs that are killed, by their method."""
    cot2 = _run(CoT2())
    few = {"steps": 60, "learning_rate": 0.001, "log_every": 4, "save_every": 5, "batch_size": 8}
    return {
        "cot2": cot2,
        "coconut": _run(Coconut(stages=2, share=0.3)),
        "grpo": _run(GRPO(samples=2, group=4, updates=2, kl=0.05), _run(CoT2(), steps=150), **few),
        "pause": _run(PauseTokens(), clip_norm=0.5),
    }


@dataclass
class Tally:
    """How often runs of a method were killed, and when."""

    runs: int = 0
    signals: Counter[str] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)

    @property
    def kills(self) -> int:
        """Processes that a signal ended."""
        return self.signals.total()

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"runs": self.runs, "kills": self.kills, "signals": dict(self.signals), "moments": dict(self.moments)}


def work(experiment: Experiment, folder: Path) -> None:
    """What a process does: trains, evaluates and stores its record, as `tinylatent run` does."""
    Job(experiment, folder).do()


def until_it_ends(experiment: Experiment, folder: Path, draw: random.Random, seconds: float, tally: Tally) -> None:
    """Starts a run and kills it at random moments until it has ended by itself.

    Args:
        experiment: what to run.
        folder: where it is kept.
        draw: chooses moments and signals.
        seconds: how long a run takes that nobody kills.
        tally: counts the kills.

    Raises:
        RuntimeError: it ended in an error.
    """
    while True:
        process, number = started(work, experiment, folder), draw.choice(SIGNALS)
        process.join(draw.uniform(0, SHARE * seconds))
        alive = process.is_alive()
        if alive:
            assert process.pid is not None, "it was started"
            os.kill(process.pid, number)
            process.join()
        if process.exitcode == 0:
            tally.runs += 1
            return
        if not alive or process.exitcode == FAILED:
            raise RuntimeError(f"{folder} ended in an error, status {process.exitcode}")
        tally.signals[number.name] += 1
        tally.moments[moment(experiment, folder)] += 1


def moment(experiment: Experiment, folder: Path) -> str:
    """How far a run came before it was killed."""
    saved = find_checkpoint(folder)
    if saved is not None:
        return "evaluation" if saved.step == experiment.training.steps else "training, after a checkpoint"
    if experiment.start is not None and (folder / "start" / CONFIG).exists():
        return "its start, or before a checkpoint"
    return "training, before a checkpoint" if (folder / CONFIG).exists() else "before training"


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run left, without what tells times."""
    found: dict[str, Any] = {
        name: untimed(read_json(folder / name)) for name in (CONFIG, RESULT) if (folder / name).exists()
    }
    found["metrics"] = untimed(read_metrics(folder))
    for name in ("", *(f"{STAGES}/{path.name}" for path in (folder / STAGES).glob("*"))):
        saved = find_checkpoint(folder / name, folder)
        assert saved is not None, f"{folder / name} has no checkpoint"
        found[f"step of {name}"] = saved.step, saved.manifest.get("stopped")
        for path in sorted(saved.folder.iterdir()):
            if path.name != MANIFEST:
                found[f"{name}/{path.name}"] = path.read_bytes()
    found["left"] = sorted(path.name for path in folder.rglob("*") if path.name[0] == "." and path.name != ".lock")
    if (folder / "start").exists():
        found |= {f"start/{name}": value for name, value in outcome(folder / "start").items()}
    return found


def untimed(value: Any) -> Any:
    """A JSON value without times."""
    if isinstance(value, dict):
        return {name: untimed(each) for name, each in value.items() if name not in TIMES}
    return [untimed(each) for each in value] if isinstance(value, list) else value


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of what two runs left that is not the same."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def proved(kills: int, seed: int, names: tuple[str, ...] = (), told: Any = print) -> dict[str, Any]:
    """Kills runs of every method in turn until there were so many kills, each run to its end; what happened.

    Raises:
        RuntimeError: a run ended otherwise than the one that nobody killed.
    """
    draw, began = random.Random(seed), time.perf_counter()
    runs = {name: run for name, run in experiments().items() if not names or name in names}
    tallies = {name: Tally() for name in runs}
    with tempfile.TemporaryDirectory() as temporary:
        started(time.sleep, 0).join()  # the server imports the package now, not within the first run
        whole, seconds = {}, {}
        for name, run in runs.items():
            start, folder = time.perf_counter(), Path(temporary) / name
            process = started(work, run, folder)
            process.join()
            if process.exitcode:
                raise RuntimeError(f"{name} ended in an error without being killed")
            seconds[name], whole[name] = time.perf_counter() - start, outcome(folder)
            parts = {WEIGHTS, OPTIMIZER} - {path.name for path in folder.rglob("*")}
            assert not parts, "there is something to compare"
            assert RESULT in whole[name], "it has its record"
            told(f"{name}: {seconds[name]:.1f} s without kills")
        while sum(tally.kills for tally in tallies.values()) < kills or not all(t.runs for t in tallies.values()):
            name = min(tallies, key=lambda name: tallies[name].kills)
            folder = Path(temporary) / f"{name}-{tallies[name].runs}"
            until_it_ends(runs[name], folder, draw, seconds[name], tallies[name])
            if different := differences(whole[name], outcome(folder)):
                raise RuntimeError(f"{name}, run {tallies[name].runs} differs in {', '.join(different)}")
            told(f"{name}: {tallies[name].kills} kills in {tallies[name].runs} runs, no difference")
    return {
        "seed": seed,
        "kills": sum(tally.kills for tally in tallies.values()),
        "runs": sum(tally.runs for tally in tallies.values()),
        "differences": 0,
        "methods": {name: tally.to_json() for name, tally in tallies.items()},
        "seconds": round(time.perf_counter() - began, 1),
    }


if __name__ == "__main__":
    sys.exit(main("kills", __doc__, proved, kills=100, seed=0))
