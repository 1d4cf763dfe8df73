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
from tinylatent import storage
from tinylatent.evaluation import cost, evaluate, sample_answers
from tinylatent.experiment import Experiment
from tinylatent.flops import training_flops
from tinylatent.methods import Model
from tinylatent.problems import Problems
from tinylatent.provenance import environment
from tinylatent.seeds import derive
from tinylatent.statistics import cluster_counts, majority_at_k, pass_at_k
from tinylatent.thoughts import CONTROLS
from tinylatent.training import stage_end, train

ITSELF = "itself"
SAMPLES = 32
TEMPERATURES = (0.5, 0.7, 1.0, 1.4)
KS = (1, 2, 5, 10, 14)
RUNG = 1000
"""Most problems of each difficulty of a task's ladder."""


def measure(
    experiment: Experiment,
    folder: Path | None,
    device: torch.device | str = "cpu",
    tick: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """One record: the experiment trained (resumed if it was begun) and evaluated on its whole validation part."""
    task, method = experiment.task, experiment.method
    rows = experiment.rows("validation")  # before training: a request that cannot be met should not cost a run
    rungs = _rungs(experiment)
    if len(rows) < 2:
        raise ValueError(f"a validation part of {len(rows)} problems tells nothing: use more digits or a larger range")
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return measure(experiment, Path(temporary), device, tick)
    model = train(experiment, folder, device, tick)
    saved = storage.find_checkpoint(folder)
    assert saved is not None, "a finished run has a checkpoint"
    train_seconds = saved.manifest["seconds"]  # of all sittings, where a run was resumed
    seed = experiment.seeds.derive("sampling", "evaluation")
    variants = (None, *CONTROLS) if method.latent else (None,)
    evaluations: dict[str, Any] = {}
    for control in variants:
        result = evaluate(task, method, model, rows, control, seed, device=device)
        keys, right, total = cluster_counts(task.key(rows), result.right_P)
        evaluations[control or ITSELF] = {
            "right": right.tolist(),
            "kl": result.kl_T,
            "entropy": result.entropy_T,
            "norm": result.norm_T,
            "problems_per_s": round(len(rows) / result.seconds),
        }
    problems = Problems.upload(task.batch(rows[:1]), device)
    costs = cost(experiment.shape, len(task.vocabulary), method, model, problems)
    mixtures = costs.pop("mixtures")
    per_problem = training_flops(experiment.shape, len(task.vocabulary), costs["slots"], costs["steps"], mixtures)
    seen = experiment.training.steps * experiment.training.batch
    return {
        "id": experiment.identity,
        "experiment": experiment.to_json(),
        "keys": [f"{key:016x}" for key in keys.tolist()],
        "total": total.tolist(),
        "evaluations": evaluations,
        "stages": _stages(experiment, folder, rows, device),
        **_ladder(experiment, rungs, model, device),
        "sampling": _sampling(experiment, model, rows, seed, device) if _sampled(experiment) else None,
        "constant": _constant(experiment, rows),
        "attainable": task.attainable(rows),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "cost": {**costs, "training_flops": per_problem * seen, "training_seconds": round(train_seconds, 1)},
        "environment": environment(),
    }


def _stages(experiment: Experiment, folder: Path, rows: np.ndarray, device: torch.device | str) -> list[dict[str, Any]]:
    """Right answers per key at the end of every stage but the last, thinking as that stage taught."""
    found = []
    for stage in range(len(experiment.method.starts(experiment.training.steps)) - 1):
        model, saved = experiment.model(device), stage_end(folder, stage)
        storage.load_weights(saved, model)
        result = evaluate(experiment.task, experiment.method, model, rows, device=device)
        _, right, _ = cluster_counts(experiment.task.key(rows), result.right_P)
        found.append({"step": saved.step, "right": right.tolist()})
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
        result = evaluate(task, experiment.method, model, rows, device=device)
        keys, right, total = cluster_counts(task.key(rows), result.right_P)
        checksum = storage.checksum(keys.tobytes())  # the keys themselves would be most of the record
        found[str(difficulty)] = {"right": right.tolist(), "total": total.tolist(), "keys": checksum}
    return {"ladder": found} if found else {}


def _constant(experiment: Experiment, rows: np.ndarray) -> float:
    """Accuracy of always saying the most frequent training answer: what no method may be praised for."""
    task = experiment.task
    answers, counts = np.unique(task.answer(experiment.rows("train")), return_counts=True)
    return float((task.answer(rows) == answers[counts.argmax()]).mean())


def _sampled(experiment: Experiment) -> bool:
    """Whether chains are sampled: discrete ones, where the whole validation part is there to be asked."""
    method = experiment.method
    return method.supervised and not method.latent and experiment.training.problems is None


def _sampling(
    experiment: Experiment, model: Model, rows: np.ndarray, seed: int, device: torch.device | str
) -> dict[str, Any]:
    """pass@k (unbiased) and majority@k of sampled chains, from SAMPLES samples a problem at every temperature."""
    task = experiment.task
    truth_PA = task.batch(rows).answer_BA
    _, key_P = np.unique(task.key(rows), return_inverse=True)

    def per_key(share_P: np.ndarray, of: int) -> dict[str, Any]:
        """Shares of `of` per problem, as whole numbers summed per key."""
        return {"right": np.bincount(key_P, np.rint(share_P * of)).astype(int).tolist(), "of": of}

    figures = {}
    for temperature in TEMPERATURES:
        own = derive(seed, f"temperature {temperature:g}")
        answers_PSA = sample_answers(task, experiment.method, model, rows, SAMPLES, temperature, own, device=device)
        right_PS = (answers_PSA == truth_PA[:, None]).all(-1)
        distinct_PS = _numbered(answers_PSA)
        truth_P = np.where(right_PS.any(1), distinct_PS[np.arange(len(rows)), right_PS.argmax(1)], -1)
        figures[f"{temperature:g}"] = {
            "pass": {str(k): per_key(pass_at_k(SAMPLES, right_PS.sum(1), k), math.comb(SAMPLES, k)) for k in KS},
            "majority": {str(k): per_key(majority_at_k(distinct_PS, truth_P, k), SAMPLES // k) for k in KS},
        }
    return {"samples": SAMPLES, "temperatures": figures}


def _numbered(answers_PSA: np.ndarray) -> np.ndarray:
    """Answers of several tokens as single integers, equal where the answers are equal."""
    flat = answers_PSA.reshape(-1, answers_PSA.shape[-1])
    return np.unique(flat, axis=0, return_inverse=True)[1].reshape(answers_PSA.shape[:2])
