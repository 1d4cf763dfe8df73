"""The training loop: data stays on the device, every step is one call of the method's loss, and any run can be resumed.

Order, initial weights and sampling are pure functions of the seeds and the step number, so that a checkpoint needs no
generator state: resuming after a kill gives the same weights, bit for bit, on the same machine and thread count.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from tinylatent import storage
from tinylatent.experiment import Experiment, Training
from tinylatent.methods import Loss, Method, Model, Moment
from tinylatent.problems import Problems
from tinylatent.seeds import Seeds
from tinylatent.storage import CONFIG

STAGES = "stages"  # folder of what each stage but the last had learnt
START = "start"  # folder of the run that another starts from
MOST_BYTES = 4 * 10**9  # of training frontiers kept on the device


def train(
    experiment: Experiment,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    tick: Callable[[int, float], None] | None = None,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    start: Path | None = None,
) -> Model:
    """Trains to the end, from the newest checkpoint under `folder` if there is one.

    Args:
        experiment: what to train.
        folder: where config.json, metrics.jsonl and checkpoints go; None keeps nothing.
        device: where to train.
        tick: told (steps done, loss) at the start and whenever metrics are logged; progress bars hang here.
        say: receives one-line remarks, such as where a run was resumed.
        start: folder of the run to start from, if there is one; by default it is trained first, under folder/start.

    Raises:
        ValueError: the folder holds another experiment or is in use, a stage has no steps, a batch exceeds the training
            part, the training part exceeds memory, the start is another or unfinished, or training diverged.
        storage.DamagedError: a stored file is damaged.
    """
    rows = _training_rows(experiment)
    if start is not None:
        _check_start(experiment, start)
    if folder is None:
        return _train(experiment, rows, None, device, tick, say, start)
    _check_folder(experiment, folder)
    with storage.locked(folder):
        if not (folder / CONFIG).exists():
            storage.write_json(folder / CONFIG, experiment.to_json())
        try:
            return _train(experiment, rows, folder, device, tick, say, start)
        except ValueError:
            if not any(path.name != CONFIG and not path.name.startswith(".") for path in folder.iterdir()):
                (folder / CONFIG).unlink()  # nothing was learnt: other settings may have the folder
            raise


def begun(
    experiment: Experiment,
    folder: Path | None,
    device: torch.device | str,
    say: Callable[[str], None],
    start: Path | None = None,
) -> Model:
    """The model as training finds it: fresh, or with the weights of the run it starts from, trained if need be."""
    model = experiment.model(device)
    if experiment.start is None:
        return model
    if start is None:
        earlier = train(experiment.start, None if folder is None else folder / START, device, say=say)
    else:
        _, earlier = load(start, device)
    model.backbone.load_state_dict(earlier.backbone.state_dict())
    return model


def _check_start(experiment: Experiment, start: Path) -> None:
    """Raises ValueError unless the folder holds the very run that an experiment starts from, trained to its end."""
    found, _ = load(start)
    if found != experiment.start:
        raise ValueError(f"{start} holds another run than this experiment starts from: choose its own")
    saved = storage.find_checkpoint(start)
    if saved is None or not ended(saved, found):
        raise ValueError(f"{start} is not trained to its end: let it finish before starting from it")


def ended(saved: storage.Saved, experiment: Experiment) -> bool:
    """Whether a checkpoint is a run's last."""
    return saved.step >= experiment.training.steps or saved.manifest.get("stopped") is not None


def _train(
    experiment: Experiment,
    rows: np.ndarray,
    folder: Path | None,
    device: torch.device | str,
    tick: Callable[[int, float], None] | None,
    say: Callable[[str], None],
    start: Path | None,
) -> Model:
    """`train`, in a folder that is ours."""
    recipe, model = experiment.training, begun(experiment, folder, device, say, start)
    began = time.perf_counter()
    task, method = experiment.task, experiment.method
    problems = Problems.upload(method.supervise(task, rows), device)
    optimizer = make_optimizer(model, recipe)
    saved = None if folder is None else _open_run(experiment, folder, model, optimizer, say)
    first, spent = (0, 0.0) if saved is None else (saved.step, saved.manifest["seconds"])
    log = _Log(folder, first, recipe.batch, tick or (lambda step, loss: None))
    if saved is not None and saved.manifest.get("stopped") is not None:
        return model
    order = batches(len(problems), recipe.batch, first, experiment.seeds)
    seed = experiment.seeds.derive("sampling", "train")
    spare = task.positions - problems.slots - 1  # positions count the answer too, which is never read
    starts = method.starts(recipe.steps)
    for step in range(first, recipe.steps):
        if folder is not None and step > first and step % recipe.save_every == 0:
            storage.save_checkpoint(folder, step, model, optimizer, spent + time.perf_counter() - began)
            log.figures = {}  # a resumed run starts from none: so must one that goes on
        if step in starts:
            _enter(method, starts.index(step), step, model, optimizer, folder)
        batch = problems.rows(next(order).to(device))
        if spare > 0:
            batch = replace(batch, offset_B=offsets(len(batch), spare, experiment.seeds, step).to(device))
        log.add(one_step(experiment, model, optimizer, batch, step, seed))
        if (step + 1) % recipe.log_every == 0 or step + 1 == recipe.steps:
            log.write(step + 1, optimizer)
            advice = method.hopeless(log.lines, step + 1 == recipe.steps)
            if advice is not None:
                say(f"stopped at step {step + 1}: {advice}")
                if folder is not None:
                    seconds = spent + time.perf_counter() - began
                    storage.save_checkpoint(folder, step + 1, model, optimizer, seconds, stopped=advice)
                return model
    if folder is not None and first < recipe.steps:
        storage.save_checkpoint(folder, recipe.steps, model, optimizer, spent + time.perf_counter() - began)
    return model


def _training_rows(experiment: Experiment) -> np.ndarray:
    """The training problems, checked against the stages, the batch and what memory can hold."""
    rows, recipe, task = experiment.rows("train"), experiment.training, experiment.task
    starts = (*experiment.method.starts(recipe.steps), recipe.steps)
    if any(start >= after for start, after in pairwise(starts)):
        raise ValueError(
            f"{recipe.steps} steps leave a stage of {experiment.method.name} without any (stages start at "
            f"{', '.join(map(str, starts[:-1]))}): raise training.steps or change the shares of its stages"
        )
    if len(rows) < recipe.batch:
        raise ValueError(f"a batch of {recipe.batch} from {len(rows)} training problems: lower training.batch")
    bytes_each = task.batch(rows[:1]).frontier_BTV.nbytes
    if len(rows) * bytes_each > MOST_BYTES:
        fitting = MOST_BYTES // bytes_each
        raise ValueError(
            f"the frontiers of {len(rows)} training problems would take {len(rows) * bytes_each / 1e9:.1f} GB: "
            f"set training.problems to at most {fitting}"
        )
    return rows


def one_step(
    experiment: Experiment, model: Model, optimizer: torch.optim.Optimizer, batch: Problems, step: int, seed: int
) -> list[Loss]:
    """All optimizer steps on one batch, one for most methods; returns their losses.

    Where a method has figures to log, the norm of the gradient is among them.
    """
    moment = Moment(step, experiment.training.steps, seed)
    losses: list[Loss] = []
    set_rate(optimizer, experiment.training, *within(experiment.method, moment))
    for loss in experiment.method.losses(model, batch, moment):
        if loss.value is None:
            losses[-1] = Loss(losses[-1].value, {**losses[-1].figures, **loss.figures})
            continue
        loss.value.backward()
        if loss.figures:
            gradient = optimizer.param_groups[0]["params"][0].grad
            loss = Loss(loss.value, {**loss.figures, "gradient_norm": gradient.norm()})
        losses.append(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    return losses


def within(method: Method, moment: Moment) -> tuple[int, int]:
    """How many steps its stage has made at a moment, and how many it takes."""
    starts = (*method.starts(moment.total), moment.total)
    stage = method.stage(moment)
    return moment.step - starts[stage], starts[stage + 1] - starts[stage]


def _enter(
    method: Method, stage: int, step: int, model: Model, optimizer: torch.optim.Optimizer, folder: Path | None
) -> None:
    """The first step of a stage: what the last one learnt is kept, and the optimizer forgets its moments.

    A stage starts at the same step of a resumed run, and from the same weights.
    """
    if stage > 0:
        if folder is not None:
            storage.save_checkpoint(folder / STAGES / str(stage - 1), step, model, None)
        optimizer.state.clear()
    method.enter(model, stage)


def stage_end(folder: Path, stage: int) -> storage.Saved:
    """What a run's stage had learnt when it ended.

    Raises:
        storage.DamagedError: its checkpoint is damaged or missing.
    """
    saved = storage.find_checkpoint(folder / STAGES / str(stage), folder)
    if saved is None:
        raise storage.DamagedError(f"{folder / STAGES / str(stage)} holds no checkpoint: delete {folder} to start over")
    return saved


def _check_folder(experiment: Experiment, folder: Path) -> None:
    """Refuses a folder that is not this experiment's, before anything in it is touched."""
    config = folder / CONFIG
    if config.exists():
        if storage.read_json(config) != experiment.to_json():
            raise ValueError(
                f"{folder} holds another experiment (see {config}): choose another folder or delete this one"
            )
    elif folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):  # a kill leaves .config
        raise ValueError(f"{folder} is not empty and holds no {CONFIG}: choose a new or empty folder")


def _open_run(
    experiment: Experiment, folder: Path, model: Model, optimizer: torch.optim.Optimizer, say: Callable[[str], None]
) -> storage.Saved | None:
    """Prepares a run's folder, restores the newest checkpoint if there is one, and returns it."""
    saved = storage.find_checkpoint(folder)
    dropped = storage.cut_metrics(folder, saved)
    if saved is None:
        if dropped:
            say(f"{folder}: no checkpoint yet, starting over ({dropped} bytes of metrics dropped)")
        return None
    storage.load_weights(saved, model)
    storage.load_optimizer(saved, optimizer)
    for stage, end in enumerate(experiment.method.starts(experiment.training.steps)[1:]):
        if end < saved.step:
            stage_end(folder, stage)
    if not ended(saved, experiment):
        remark = f", {dropped} bytes of later metrics dropped" if dropped else ""
        say(f"{folder}: resumed at step {saved.step}{remark}")
    return saved


class _Log:
    """Appends lines to metrics.jsonl and passes them on."""

    def __init__(self, folder: Path | None, first: int, batch: int, tick: Callable[[int, float], None]):
        self.path = None if folder is None else folder / storage.METRICS
        self.step, self.batch, self.tick, self.since = first, batch, tick, time.perf_counter()
        self.lines = storage.read_lines(self.path) if self.path is not None and self.path.exists() else []
        self.figures: dict[str, list[Tensor]] = {}
        tick(first, math.nan)

    def add(self, losses: list[Loss]) -> None:
        """Keeps what the next line is made of: the last loss, and every figure."""
        assert losses[-1].value is not None, "figures alone follow a loss, and belong to it"
        self.loss = losses[-1].value
        for loss in losses:
            for name, value in loss.figures.items():
                self.figures.setdefault(name, []).append(value)

    def write(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Records the loss of one step, and the mean of every figure since the last line or checkpoint."""
        value, now = self.loss.item(), time.perf_counter()
        if not math.isfinite(value):
            raise ValueError(f"the loss is {value} at step {step}: training diverged; lower training.rate")
        pace = (step - self.step) * self.batch / (now - self.since)
        self.step, self.since = step, now
        record = {
            "step": step,
            "loss": value,
            "rate": optimizer.param_groups[0]["lr"],
            "problems_per_s": round(pace, 1),
            **{name: _plain(torch.stack(values).nanmean(0)) for name, values in self.figures.items()},
        }
        self.lines.append(record)
        self.figures = {}
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self.tick(step, value)


def _plain(value: Tensor) -> Any:
    """A number, or a list of numbers, to six digits; null where there is none."""
    if value.ndim:
        return [_plain(each) for each in value]
    return float(f"{value.item():.6g}") if value.isfinite() else None


def make_optimizer(model: Model, recipe: Training) -> torch.optim.AdamW:
    """AdamW over all weights as one flat tensor: for a small model, half a millisecond a step less than one by one."""
    return torch.optim.AdamW([flatten(model)], lr=recipe.rate, weight_decay=recipe.weight_decay, fused=True)


def flatten(model: nn.Module) -> nn.Parameter:
    """One parameter that holds all trained weights end to end, with its gradient; frozen ones stay out.

    The model's own parameters and their gradients become views of it: a step of an optimizer over the flat parameter is
    a step over all. Gradients must be zeroed in place, never set to None.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    flat = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    flat.grad = torch.zeros_like(flat)
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, weights, gradient in zip(parameters, flat.data.split(sizes), flat.grad.split(sizes), strict=True):
        parameter.data, parameter.grad = weights.view_as(parameter), gradient.view_as(parameter)
    return flat


def set_rate(optimizer: torch.optim.Optimizer, recipe: Training, step: int, steps: int) -> None:
    """Learning rate of step `step` of `steps`: linear warm-up, then half a cosine down to zero, or the peak kept."""
    warm = max(1, round(recipe.warmup * steps))
    if step < warm:
        share = (step + 1) / warm
    elif recipe.schedule == "constant":
        share = 1.0
    else:
        share = 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate * share


def batches(count: int, batch: int, first: int, seeds: Seeds) -> Iterator[Int[Tensor, " b"]]:
    """Row indices of batch `first`, `first` + 1, ...: each epoch a permutation of its own, the ragged end left out."""
    per_epoch = count // batch
    epoch, place = divmod(first, per_epoch)
    while True:
        order = torch.randperm(count, generator=seeds.generator("order", epoch))
        for start in range(place * batch, per_epoch * batch, batch):
            yield order[start : start + batch]
        epoch, place = epoch + 1, 0


def offsets(count: int, spare: int, seeds: Seeds, step: int) -> Int[Tensor, " b"]:
    """Random position of each row's first token, 0..spare, so that every position a task has room for is trained."""
    return torch.randint(spare + 1, (count,), generator=seeds.generator("order", "offset", step))


def load(folder: Path, device: torch.device | str = "cpu") -> tuple[Experiment, Model]:
    """The experiment and model of a finished or interrupted run.

    Raises:
        ValueError: the folder holds no run, or no checkpoint yet.
        storage.DamagedError: a stored file is damaged.
    """
    if not (folder / CONFIG).exists():
        raise ValueError(f"{folder} holds no run: expected a folder with {CONFIG}, as `tinylatent run --out` writes")
    experiment = Experiment.from_json(storage.read_json(folder / CONFIG))
    saved = storage.find_checkpoint(folder)
    if saved is None:
        raise ValueError(f"{folder} has no checkpoint yet: let its training reach the first one")
    model = experiment.model(device)
    storage.load_weights(saved, model)
    return experiment, model
