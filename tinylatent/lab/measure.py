"""Measure: train one experiment, put it through every evaluation, and return its record."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tinylatent_tasks import Task

from tinylatent.core.identity import checksum, plain
from tinylatent.core.seeds import derive
from tinylatent.engine.controls import CONTROLS
from tinylatent.engine.counters import Counters
from tinylatent.engine.plan import distinct
from tinylatent.evaluation.evaluate import cost, evaluate, sample_answers
from tinylatent.evaluation.statistics import Interval, accuracy_interval, cluster_counts, majority_at_k, pass_at_k
from tinylatent.lab.directions import trained_cosines
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import begun, check_training, train
from tinylatent.lab.ranked import Way, ranked
from tinylatent.lab.records import (
    DEFAULT,
    Answered,
    Before,
    Cost,
    Counts,
    Evaluation,
    ExperimentRecord,
    Sampled,
    Sampling,
    StageEnd,
    Stopped,
)
from tinylatent.lab.run import Progress, new_record
from tinylatent.objectives.method import Model
from tinylatent.training.checkpoints import Checkpoint, find_checkpoint, load_weights, read_metrics
from tinylatent.training.loop import stage_end
from tinylatent.training.optimizer import trained

SAMPLES = 32
KS = (1, 2, 5, 10, 14)
EQUAL_KS = (1, 2, 3, 4, 6, 8, 12, 24)
"""Chains in a vote where methods that draw several tokens a step are compared at equal sampled tokens."""
MAX_OF_A_LEVEL = 1000
"""Most problems of each difficulty of a task."""
LEVELS_SEED = 0
"""Seed of what is sampled at every difficulty: the same in all runs, as in records of form 1."""
MAX_OF_TRAINING = 1000
"""Most problems of the training part that the model is asked again."""


def measure(
    experiment: Experiment,
    folder: Path | None,
    device: torch.device | str = "cpu",
    on_progress: Progress | None = None,
    start: Path | None = None,
) -> ExperimentRecord:
    """The experiment trained (resumed if it was begun) and evaluated on its whole validation part.

    Args:
        experiment: what to train.
        folder: where config.json, metrics.jsonl and checkpoints go; None keeps nothing.
        device: where to train and evaluate.
        on_progress: told (steps done, loss) whenever metrics are logged.
        start: folder of the run it starts from, if it does; by default that is trained first, under folder/start. What
            the weights could do before is measured as well then.

    Raises:
        ValueError: the validation part is too small, or training cannot be done; see `folders.train`.
    """
    rows, levels = check(experiment, folder, start)
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return measure(experiment, Path(temporary), device, on_progress, start)
    model, task = train(experiment, folder, device, on_progress, start=start), experiment.task
    judged, spent = _judged(experiment, model, rows, device)
    saved = find_checkpoint(folder)
    assert saved is not None, "a finished run has a checkpoint"
    keys, total = np.unique(task.key(rows), return_counts=True)
    advice, seed = saved.manifest.get("stopped"), experiment.seeds.derive("sampling", "evaluation")
    return new_record(
        experiment,
        training=saved.manifest.get("environments"),
        device=device,
        keys=[f"{key:016x}" for key in keys.tolist()],
        total=total.tolist(),
        **judged,
        train=_answered(experiment, model, task, _trained(experiment), seed, device),
        stages=_stages(experiment, saved, folder, rows, device),
        levels={
            str(difficulty): _answered(experiment, model, own, asked, LEVELS_SEED, device)
            for difficulty, (own, asked) in levels.items()
        },
        **_learning(experiment, saved, folder, rows, start, device),
        course=_course(folder),
        stopped=Stopped(step=saved.step, advice=advice) if advice else None,
        majority_baseline=majority_baseline(experiment, rows),
        accuracy_ceiling=task.accuracy_ceiling(rows),
        ranking=ranked(experiment, model, rows, ways(experiment, model, rows, device), device),
        parameters=_trained_parameters(experiment, model),
        cost=_cost(experiment, model, saved, rows, spent, device),
    )


def check(
    experiment: Experiment, folder: Path | None, start: Path | None = None
) -> tuple[np.ndarray, dict[int, tuple[Task, np.ndarray]]]:
    """Refuses what cannot be trained or evaluated, before anything is touched and before it costs a run.

    Returns:
        the validation problems, and those of every difficulty.

    Raises:
        ValueError: see `measure`.
    """
    for setting, why in idle_settings(experiment).items():
        raise ValueError(f"{setting} has no effect {why}: leave it out")
    rows, levels = experiment.rows("validation"), _levels(experiment)
    if len(rows) < 2:
        raise ValueError(
            f"a validation part of {len(rows)} problems tells nothing: use more digits, a larger range, or more lines"
        )
    experiment.method.supervise(experiment.asks(rows[:1]))  # it may ask for what this task has not
    check_training(experiment, folder, start)
    return rows, levels


def idle_settings(experiment: Experiment) -> dict[str, str]:
    """Settings that are given, and so make another run, and yet have no effect; with the reason, such as "with ..."."""
    method, model, training = experiment.method, experiment.model, experiment.training
    given = plain(method)
    found = {f"method.{name}": why for name, why in method.idle.items() if name in given}
    if model.experts > 1 and "mlp" in plain(model):
        found["model.mlp"] = "with experts, which are ReLU MLPs"
    if training.micro_batch is not None and training.micro_batch >= training.batch_size:
        found["training.micro_batch"] = f"with batches of {training.batch_size}, which it does not split"
    return found


def _judged(
    experiment: Experiment, model: Model, rows: np.ndarray, device: torch.device | str
) -> tuple[dict[str, Any], Counters]:
    """What a model can do: under its method, under each control, under other decoders, and sampled several times.

    Returns:
        fields of a record, and what the method itself spent on all problems.
    """
    task, method = experiment.task, experiment.method
    seed = experiment.seeds.derive("sampling", "evaluation")
    evaluations: dict[str, Evaluation] = {}
    spent: dict[str, Counters] = {}
    keys_P = task.key(rows)
    for name, way, control in ways(experiment, model, rows, device):
        size = experiment.asked_at_once
        result = evaluate(experiment.asks(rows), way, model, control=control, seed=seed, batch=size, device=device)
        _, right, total = cluster_counts(keys_P, result.right_P)
        spent[name] = result.counters
        evaluations[name] = Evaluation(
            right=right.tolist(),
            kl=result.kl_T,
            entropy=result.entropy_T,
            norm=result.norm_T,
            problems_per_s=round(len(rows) / result.seconds),
            accuracy=_accuracy(right, total),
        )
    # Where the whole part is there to ask, and answers are told apart by their tokens.
    sampled = method.temperatures and experiment.training.num_train is None and experiment.text is None
    found = {
        "evaluations": evaluations,
        "sampling": _sampling(experiment, model, rows, seed, device) if sampled else None,
    }
    return found, spent[DEFAULT]


def ways(experiment: Experiment, model: Model, rows: np.ndarray, device: torch.device | str) -> list[Way]:
    """Every way to ask a model: its method, the method under each control if it has latents, and other decoders."""
    method, one = experiment.method, experiment.asks(rows[:1]).examples(device)
    latent = any(segment.thought.has_latent for segment in distinct(method.plan(model, one)))  # by now, in its stage
    return [
        (DEFAULT, method, None),
        *((control, method, control) for control in CONTROLS if latent),
        *((name, other, None) for name, other in method.decoders.items()),
    ]


def _accuracy(right: np.ndarray, total: np.ndarray) -> Interval:
    """Accuracy of one run with its interval over keys."""
    return accuracy_interval([right], [total])


def _answered(
    experiment: Experiment, model: Model, task: Task, rows: np.ndarray, seed: int, device: torch.device | str
) -> Answered:
    """How the model answers some problems of a task."""
    speaker, size = experiment.asks(rows, task), experiment.asked_at_once
    result = evaluate(speaker, experiment.method, model, seed=seed, batch=size, device=device)
    keys, right, total = cluster_counts(task.key(rows), result.right_P)
    of_keys = checksum(keys.tobytes())  # the keys themselves would be most of the record
    return Answered(right=right.tolist(), total=total.tolist(), keys=of_keys, accuracy=_accuracy(right, total))


def _trained(experiment: Experiment) -> np.ndarray:
    """Problems of the training part, all or evenly spread ones: in a listed space neighbours are alike."""
    rows = experiment.rows("train")
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), MAX_OF_TRAINING)).astype(int)]


def _course(folder: Path) -> dict[str, float]:
    """Share of right validation answers along training, by step."""
    right = "validation_accuracy"
    return {str(line["step"]): line[right] for line in read_metrics(folder) if line.get(right) is not None}


def _learning(
    experiment: Experiment,
    saved: Checkpoint,
    folder: Path,
    rows: np.ndarray,
    start: Path | None,
    device: torch.device | str,
) -> dict[str, Any]:
    """For a run that starts from another: what it could do before, and its metrics."""
    if experiment.start is None:
        return {}
    before = begun(experiment, folder, device, say=lambda text: None, start=start)
    before.stage.fill_(experiment.method.stage_at(max(0, saved.step - 1), experiment.training.steps))
    return {
        "before": Before(
            **_judged(experiment, before, rows, device)[0], cosines=trained_cosines(experiment, before, device)
        ),
        "metrics": read_metrics(folder),
    }


def _stages(
    experiment: Experiment, saved: Checkpoint, folder: Path, rows: np.ndarray, device: torch.device | str
) -> list[StageEnd]:
    """Right answers per key at the end of every stage that was left, thinking as that stage taught."""
    found = []
    for stage, end in enumerate(experiment.method.stage_starts(experiment.training.steps)[1:]):
        if end >= saved.step:  # training stopped early
            break
        model, left = experiment.fresh(device), stage_end(folder, stage)
        load_weights(left, model)
        size = experiment.asked_at_once
        result = evaluate(experiment.asks(rows), experiment.method, model, batch=size, device=device)
        _, right, total = cluster_counts(experiment.task.key(rows), result.right_P)
        found.append(StageEnd(step=left.step, right=right.tolist(), accuracy=_accuracy(right, total)))
    return found


def _levels(experiment: Experiment) -> dict[int, tuple[Task, np.ndarray]]:
    """The task and the problems at each difficulty within its capacity, the trained ones first; none without one.

    Problems are those of the validation part under the experiment's split, at most MAX_OF_A_LEVEL of a difficulty.
    """
    found, split = {}, experiment.seeds.derive("split")
    for difficulty, task in experiment.task.levels().items():
        try:
            count = min(MAX_OF_A_LEVEL, len(task.split("validation", split))) if task.listed else MAX_OF_A_LEVEL
            found[difficulty] = task, task.split("validation", split, count)
        except ValueError as error:
            raise ValueError(f"at difficulty {difficulty}, within the capacity that was given, {error}") from None
    return found


def _trained_parameters(experiment: Experiment, model: Model) -> int:
    """How many parameters are trained in the last stage."""
    groups = experiment.method.parameter_groups(int(model.stage))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(sizes[name] for name in trained(model, groups))


def majority_baseline(experiment: Experiment, rows: np.ndarray) -> float:
    """Accuracy of always saying the most frequent training answer: what no method may be praised for."""
    task = experiment.task
    answers, counts = np.unique(task.answer(experiment.rows("train")), return_counts=True)
    return float((task.answer(rows) == answers[counts.argmax()]).mean())


def _cost(
    experiment: Experiment,
    model: Model,
    saved: Checkpoint,
    rows: np.ndarray,
    spent: Counters,
    device: torch.device | str,
) -> Cost:
    """What training cost, and what an answer costs, of which `spent` tells for all rows."""
    found = cost(experiment.method, model, experiment.asks(rows[:1]).examples(device))
    seen = saved.step * experiment.training.batch_size
    return Cost(
        **found,
        training_flops=found["flops"] * experiment.method.forwards * seen,
        training_seconds=round(saved.manifest["seconds"], 1),  # of all sittings, where a run was resumed
        tokens=spent.tokens / len(rows),
        latents=spent.latents / len(rows),
        operations=spent.flops / len(rows),
    )


def _sampling(
    experiment: Experiment, model: Model, rows: np.ndarray, seed: int, device: torch.device | str
) -> Sampling:
    """pass@k (unbiased) and majority@k of sampled chains, from SAMPLES samples a problem at every temperature."""
    task, ks = experiment.task, KS if experiment.start is None else EQUAL_KS
    truth_PA = task.batch(rows).answer_BA
    _, key_P = np.unique(task.key(rows), return_inverse=True)

    def per_key(share_P: np.ndarray, of: int) -> Counts:
        """Shares of `of` per problem, as whole numbers summed per key."""
        return Counts(right=np.bincount(key_P, np.rint(share_P * of)).astype(int).tolist(), of=of)

    found = {}
    for temperature in experiment.method.temperatures:
        own = derive(seed, f"temperature {temperature:g}")
        answers_PSA = sample_answers(
            experiment.asks(rows), experiment.method, model, SAMPLES, temperature=temperature, seed=own, device=device
        )
        right_PS = (answers_PSA == truth_PA[:, None]).all(-1)
        distinct_PS = _numbered(answers_PSA)
        truth_P = np.where(right_PS.any(1), distinct_PS[np.arange(len(rows)), right_PS.argmax(1)], -1)
        found[f"{temperature:g}"] = Sampled(
            pass_={str(k): per_key(pass_at_k(SAMPLES, right_PS.sum(1), k), math.comb(SAMPLES, k)) for k in ks},
            majority={str(k): per_key(majority_at_k(distinct_PS, truth_P, k), SAMPLES // k) for k in ks},
        )
    return Sampling(samples=SAMPLES, temperatures=found)


def _numbered(answers_PSA: np.ndarray) -> np.ndarray:
    """Answers of several tokens as single integers, equal where the answers are equal."""
    flat = answers_PSA.reshape(-1, answers_PSA.shape[-1])
    return np.unique(flat, axis=0, return_inverse=True)[1].reshape(answers_PSA.shape[:2])
