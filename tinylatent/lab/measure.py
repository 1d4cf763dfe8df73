"""Measure: train one experiment, put it through every evaluation, and return one flat record for runs.jsonl.

A record holds right and all answers per key (from which every interval is computed later), the distance of each step
from the oracle's frontier, the same under each control and at the end of each stage, sampling figures, and what it all
cost.
"""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks import Task
from tinylatent.core.environment import environment
from tinylatent.core.files import read_lines
from tinylatent.core.identity import checksum
from tinylatent.core.seeds import derive
from tinylatent.engine.controls import CONTROLS
from tinylatent.engine.plan import distinct
from tinylatent.evaluation.evaluate import cost, evaluate, sample_answers
from tinylatent.evaluation.statistics import cluster_counts, majority_at_k, pass_at_k
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.run import begun, train
from tinylatent.objectives.method import Method, Model
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.checkpoints import METRICS, Saved, find_checkpoint, load_weights
from tinylatent.training.loop import stage_end

ITSELF = "itself"
SAMPLES = 32
KS = (1, 2, 5, 10, 14)
EQUAL_KS = (1, 2, 3, 4, 6, 8, 12, 24)
"""Chains in a vote where methods that draw several tokens a step are compared at equal sampled tokens."""
RUNG = 1000
"""Most problems of each difficulty of a task's ladder."""


def measure(
    experiment: Experiment,
    folder: Path | None,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int, float], None] | None = None,
    start: Path | None = None,
) -> dict[str, Any]:
    """One record: the experiment trained (resumed if it was begun) and evaluated on its whole validation part.

    start: folder of the run it starts from, if it does; by default that is trained first, under folder/start. What the
    weights could do before is measured as well then, under "before".
    """
    task, method = experiment.task, experiment.method
    rows = experiment.rows("validation")  # before training: a request that cannot be met should not cost a run
    rungs = _rungs(experiment)
    if len(rows) < 2:
        raise ValueError(f"a validation part of {len(rows)} problems tells nothing: use more digits or a larger range")
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return measure(experiment, Path(temporary), device, on_progress, start)
    model = train(experiment, folder, device, on_progress, start=start)
    saved = find_checkpoint(folder)
    assert saved is not None, "a finished run has a checkpoint"
    train_seconds = saved.manifest["seconds"]  # of all sittings, where a run was resumed
    keys, total = np.unique(task.key(rows), return_counts=True)
    costs = cost(method, model, Symbols(task, rows[:1]).examples(device))
    seen = saved.step * experiment.training.batch
    return {
        "id": experiment.identity,
        "experiment": experiment.to_json(),
        "keys": [f"{key:016x}" for key in keys.tolist()],
        "total": total.tolist(),
        **_judged(experiment, model, rows, device),
        "stages": _stages(experiment, saved, folder, rows, device),
        **_ladder(experiment, rungs, model, device),
        **_learning(experiment, saved, folder, rows, start, device),
        **({"stopped": {"step": saved.step, "advice": advice}} if (advice := saved.manifest.get("stopped")) else {}),
        "constant": _constant(experiment, rows),
        "attainable": task.attainable(rows),
        "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "cost": {
            **costs,
            "training_flops": costs["flops"] * method.forwards * seen,
            "training_seconds": round(train_seconds, 1),
        },
        "environment": environment(),
    }


def _judged(experiment: Experiment, model: Model, rows: np.ndarray, device: torch.device | str) -> dict[str, Any]:
    """What a model can do: under its method, under each control, under other decoders, and sampled several times."""
    task, method = experiment.task, experiment.method
    seed = experiment.seeds.derive("sampling", "evaluation")
    evaluations: dict[str, Any] = {}
    ways: list[tuple[str, Method, str | None]] = [(ITSELF, method, None)]
    one = Symbols(task, rows[:1]).examples(device)
    latent = any(segment.thought.has_latent for segment in distinct(method.plan(model, one)))  # by now, in its stage
    ways += [(control, method, control) for control in CONTROLS if latent]
    ways += [(name, other, None) for name, other in method.decoders.items()]
    keys_P = task.key(rows)
    for name, way, control in ways:
        result = evaluate(Symbols(task, rows), way, model, control=control, seed=seed, device=device)
        _, right, _ = cluster_counts(keys_P, result.right_P)
        evaluations[name] = {
            "right": right.tolist(),
            "kl": result.kl_T,
            "entropy": result.entropy_T,
            "norm": result.norm_T,
            "problems_per_s": round(len(rows) / result.seconds),
        }
    sampled = method.temperatures and experiment.training.problems is None  # else the whole part is not there to ask
    return {
        "evaluations": evaluations,
        "sampling": _sampling(experiment, model, rows, seed, device) if sampled else None,
    }


def _learning(
    experiment: Experiment,
    saved: Saved,
    folder: Path,
    rows: np.ndarray,
    start: Path | None,
    device: torch.device | str,
) -> dict[str, Any]:
    """Of a run that starts from another: what it could do before, and its metrics."""
    if experiment.start is None:
        return {}
    before = begun(experiment, folder, device, say=lambda text: None, start=start)
    before.stage.fill_(experiment.method.stage_at(max(0, saved.step - 1), experiment.training.steps))
    return {
        "before": _judged(experiment, before, rows, device),
        "metrics": read_lines(folder / METRICS) if (folder / METRICS).exists() else [],
    }


def _stages(
    experiment: Experiment, saved: Saved, folder: Path, rows: np.ndarray, device: torch.device | str
) -> list[dict[str, Any]]:
    """Right answers per key at the end of every stage that was left, thinking as that stage taught."""
    found = []
    for stage, end in enumerate(experiment.method.stage_starts(experiment.training.steps)[1:]):
        if end >= saved.step:  # training stopped early
            break
        model, left = experiment.model(device), stage_end(folder, stage)
        load_weights(left, model)
        result = evaluate(Symbols(experiment.task, rows), experiment.method, model, device=device)
        _, right, _ = cluster_counts(experiment.task.key(rows), result.right_P)
        found.append({"step": left.step, "right": right.tolist()})
    return found


def _rungs(experiment: Experiment) -> dict[int, tuple[Task, np.ndarray]]:
    """The task and the problems at each difficulty that there is room for, the trained ones first; none without room.

    Problems are those of the validation part under the experiment's split, at most RUNG of a difficulty.
    """
    found, split = {}, experiment.seeds.derive("split")
    for difficulty, task in experiment.task.ladder().items():
        try:
            count = min(RUNG, len(task.split("validation", split))) if task.listed else RUNG
            found[difficulty] = task, task.split("validation", split, count)
        except ValueError as error:
            raise ValueError(f"at difficulty {difficulty}, for which room was given, {error}") from None
    return found


def _ladder(
    experiment: Experiment, rungs: dict[int, tuple[Task, np.ndarray]], model: Model, device: torch.device | str
) -> dict[str, Any]:
    """Right answers per key at each difficulty."""
    found: dict[str, Any] = {}
    for difficulty, (task, rows) in rungs.items():
        result = evaluate(Symbols(task, rows), experiment.method, model, device=device)
        keys, right, total = cluster_counts(task.key(rows), result.right_P)
        of_keys = checksum(keys.tobytes())  # the keys themselves would be most of the record
        found[str(difficulty)] = {"right": right.tolist(), "total": total.tolist(), "keys": of_keys}
    return {"ladder": found} if found else {}


def _constant(experiment: Experiment, rows: np.ndarray) -> float:
    """Accuracy of always saying the most frequent training answer: what no method may be praised for."""
    task = experiment.task
    answers, counts = np.unique(task.answer(experiment.rows("train")), return_counts=True)
    return float((task.answer(rows) == answers[counts.argmax()]).mean())


def _sampling(
    experiment: Experiment, model: Model, rows: np.ndarray, seed: int, device: torch.device | str
) -> dict[str, Any]:
    """pass@k (unbiased) and majority@k of sampled chains, from SAMPLES samples a problem at every temperature."""
    task, ks = experiment.task, KS if experiment.start is None else EQUAL_KS
    truth_PA = task.batch(rows).answer_BA
    _, key_P = np.unique(task.key(rows), return_inverse=True)

    def per_key(share_P: np.ndarray, of: int) -> dict[str, Any]:
        """Shares of `of` per problem, as whole numbers summed per key."""
        return {"right": np.bincount(key_P, np.rint(share_P * of)).astype(int).tolist(), "of": of}

    figures = {}
    for temperature in experiment.method.temperatures:
        own = derive(seed, f"temperature {temperature:g}")
        answers_PSA = sample_answers(
            Symbols(task, rows), experiment.method, model, SAMPLES, temperature=temperature, seed=own, device=device
        )
        right_PS = (answers_PSA == truth_PA[:, None]).all(-1)
        distinct_PS = _numbered(answers_PSA)
        truth_P = np.where(right_PS.any(1), distinct_PS[np.arange(len(rows)), right_PS.argmax(1)], -1)
        figures[f"{temperature:g}"] = {
            "pass": {str(k): per_key(pass_at_k(SAMPLES, right_PS.sum(1), k), math.comb(SAMPLES, k)) for k in ks},
            "majority": {str(k): per_key(majority_at_k(distinct_PS, truth_P, k), SAMPLES // k) for k in ks},
        }
    return {"samples": SAMPLES, "temperatures": figures}


def _numbered(answers_PSA: np.ndarray) -> np.ndarray:
    """Answers of several tokens as single integers, equal where the answers are equal."""
    flat = answers_PSA.reshape(-1, answers_PSA.shape[-1])
    return np.unique(flat, axis=0, return_inverse=True)[1].reshape(answers_PSA.shape[:2])
