"""The training loop: examples stay on the device, every step is one call of the method's loss, any run can be resumed.

Order, initial weights and sampling are pure functions of the seeds and the step number, so that a checkpoint needs no
generator state: resuming after a kill gives the same weights, bit for bit, on the same machine and thread count.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import reduce
from itertools import accumulate, pairwise
from operator import add
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tinylatent.core.files import DamagedError, read_lines
from tinylatent.core.seeds import Seeds, derive
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import Group, Loss, Method, Model, TrainState
from tinylatent.objectives.rewards import Verifier, truth
from tinylatent.training.checkpoints import (
    METRICS,
    Saved,
    cut_metrics,
    find_checkpoint,
    load_optimizer,
    load_weights,
    save_checkpoint,
)
from tinylatent.training.config import Training
from tinylatent.training.optimizer import (
    clip_gradient,
    gradient_norm,
    make_optimizer,
    set_rate,
    trainable,
    zero_gradients,
)

GATHERED = 16  # batches that are gathered from the examples at a time
STAGES = "stages"  # folder of what each stage but the last had learnt


def fit(
    model: Model,
    method: Method,
    examples: Examples,
    recipe: Training,
    seeds: Seeds,
    *,
    spare: int = 0,
    folder: Path | None = None,
    on_progress: Callable[[int, float], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
    verify: Verifier = truth,
) -> Model:
    """Trains a model to the end, from the newest checkpoint under `folder` if there is one.

    Args:
        model: with its initial weights; trained in place.
        method: gives the losses, and declares what is trained.
        examples: all training examples, on the model's device.
        recipe: steps, batch, rates.
        seeds: order and sampling are functions of them.
        spare: positions that examples are shifted by at random, so that all are trained.
        folder: where metrics.jsonl and checkpoints go; None keeps nothing.
        on_progress: told (steps done, loss) at the start and whenever metrics are logged; progress bars hang here.
        say: receives one-line remarks, such as where a run was resumed.
        verify: rewards the answers of methods that learn from rewards.

    Raises:
        ValueError: stages that do not grow from 0 on, fewer examples than a batch, groups that fit no parameter, or
            training diverged.
        DamagedError: a stored file is damaged.
    """
    starts = method.stage_starts(recipe.steps)
    if not starts or starts[0] != 0 or any(b <= a for a, b in pairwise(starts)):
        raise ValueError(f"stages of {method.name} that start at {starts}: expected steps that grow, from 0 on")
    names = trainable(model)
    try:
        return _fit(model, method, examples, recipe, seeds, names, spare, folder, on_progress, say, verify)
    finally:
        for name, parameter in model.named_parameters():  # what a stage froze is no mark of the model
            parameter.requires_grad_(name in names)


def _fit(
    model: Model,
    method: Method,
    examples: Examples,
    recipe: Training,
    seeds: Seeds,
    names: list[str],
    spare: int,
    folder: Path | None,
    on_progress: Callable[[int, float], None] | None,
    say: Callable[[str], None],
    verify: Verifier,
) -> Model:
    """`fit`, of the parameters that are named."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    saved = None if folder is None else find_checkpoint(folder)
    stage = 0 if saved is None else method.stage_at(max(0, saved.step - 1), recipe.steps)
    groups = method.groups(stage)
    optimizer = make_optimizer(model, recipe, groups, names)
    if folder is not None:
        _restore(folder, saved, method, recipe, model, optimizer, say)
    first, spent = (0, 0.0) if saved is None else (saved.step, saved.manifest["seconds"])
    log = _Log(folder, first, recipe.batch, on_progress or (lambda step, loss: None))
    if saved is not None and saved.manifest.get("stopped") is not None:
        return model
    served = batches(examples, recipe.batch, first, seeds)
    state = TrainState(first, recipe.steps, seeds.derive("sampling", "train"), verify=verify)
    starts, device = method.stage_starts(recipe.steps), examples.prompt_BN.device
    for step in range(first, recipe.steps):
        state = replace(state, step=step)
        if folder is not None and step > first and step % recipe.save_every == 0:
            save_checkpoint(folder, step, model, optimizer, spent + time.perf_counter() - began)
            log.metrics = {}  # a resumed run starts from none: so must one that goes on
        if step in starts:
            optimizer, groups = _enter(method, model, examples, recipe, optimizer, groups, names, state, folder)
        batch = next(served)
        if spare > 0:
            batch = batch.with_offsets(offsets(len(batch), spare, seeds, step).to(device))
        log.add(train_step(model, method, optimizer, recipe, batch, state))
        if (step + 1) % recipe.log_every == 0 or step + 1 == recipe.steps:
            log.write(step + 1, optimizer)
            reason = method.early_stop(log.lines, step + 1 == recipe.steps)
            if reason is not None:
                say(f"stopped at step {step + 1}: {reason}")
                if folder is not None:
                    seconds = spent + time.perf_counter() - began
                    save_checkpoint(folder, step + 1, model, optimizer, seconds, stopped=reason)
                return model
    if folder is not None and (saved is None or first < recipe.steps):
        save_checkpoint(folder, recipe.steps, model, optimizer, spent + time.perf_counter() - began)
    return model


def train_step(
    model: Model,
    method: Method,
    optimizer: torch.optim.Optimizer,
    recipe: Training,
    examples: Examples,
    state: TrainState,
) -> list[Loss]:
    """All optimizer steps on one batch, one for most methods; returns their losses.

    Where a method has metrics to log, the norm of the gradient is among them.
    """
    set_rate(optimizer, recipe, *within(method, state))
    batch = method.collect(model, examples, state)
    parts, losses = batch.parts(recipe.micro_batch), []
    sizes, states = [len(part) for part in parts], [state]
    if len(parts) > 1:
        rows, firsts = state.rows or len(batch), [0, *accumulate(sizes)]
        states = [replace(state, rows=rows, first=state.first + first) for first in firsts[:-1]]
    for update in range(method.updates):
        values, metrics = [], []
        if update:
            states = [replace(each, update=update) for each in states]
        for part, now in zip(parts, states, strict=True):
            loss = _loss(model, method, part, now)
            loss.value.backward()
            values.append(loss.value.detach())
            metrics.append(loss.metrics)
        found = _mean(metrics, sizes)
        if found:
            found["gradient_norm"] = gradient_norm(optimizer)
        if recipe.clip_norm is not None:
            clip_gradient(optimizer, recipe.clip_norm)
        losses.append(Loss(reduce(add, values), found))
        optimizer.step()
        zero_gradients(optimizer)
    more = _mean([method.after(model, part, now) for part, now in zip(parts, states, strict=True)], sizes)
    losses[-1] = Loss(losses[-1].value, {**losses[-1].metrics, **more})
    return losses


def _mean(metrics: list[Mapping[str, Tensor]], sizes: list[int]) -> dict[str, Tensor]:
    """The mean of every metric over the parts that have it, each counting as many times as it has examples."""
    if len(metrics) == 1:
        return dict(metrics[0])
    found = {}
    for name in dict.fromkeys(name for each in metrics for name in each):
        having = [(each[name], size) for each, size in zip(metrics, sizes, strict=True) if name in each]
        values = torch.stack([value for value, _ in having])
        weights = values.new_tensor([size for _, size in having]).view(-1, *[1] * (values.ndim - 1))
        weights = weights.expand_as(values).masked_fill(values.isnan(), 0.0)  # steps that no row of a part takes
        found[name] = (values.masked_fill(values.isnan(), 0.0) * weights).sum(0) / weights.sum(0)
    return found


def _loss(model: Model, method: Method, part: Any, state: TrainState) -> Loss:
    """The loss of a part, inside the model; with the dropout of this part of this step, where there is any."""
    if not method.drops_out or not getattr(model.backbone, "dropout", 0.0):
        return model(lambda inside: method.loss(inside, part, state))
    seed = derive(state.seed, "dropout", state.step, state.update, state.first)
    generator = torch.Generator(model.backbone.table.weight.device).manual_seed(seed)
    with model.backbone.dropping(generator):
        return model(lambda inside: method.loss(inside, part, state))


def within(method: Method, state: TrainState) -> tuple[int, int]:
    """How many steps its stage has made, and how many it takes."""
    starts = (*method.stage_starts(state.total), state.total)
    stage = method.stage_at(state.step, state.total)
    return state.step - starts[stage], starts[stage + 1] - starts[stage]


def _enter(
    method: Method,
    model: Model,
    examples: Examples,
    recipe: Training,
    optimizer: torch.optim.AdamW,
    groups: tuple[Group, ...],
    names: list[str],
    state: TrainState,
    folder: Path | None,
) -> tuple[torch.optim.AdamW, tuple[Group, ...]]:
    """The first step of a stage: what the last one learnt is kept, and the optimizer forgets its moments.

    A stage starts at the same step of a resumed run, and from the same weights.
    """
    stage = method.stage_at(state.step, state.total)
    if stage > 0:
        if folder is not None:
            save_checkpoint(folder / STAGES / str(stage - 1), state.step, model, None)
        optimizer.state.clear()
    method.enter(model, stage, examples, state)
    if (now := method.groups(stage)) != groups:
        optimizer, groups = make_optimizer(model, recipe, now, names), now
    return optimizer, groups


def _restore(
    folder: Path,
    saved: Saved | None,
    method: Method,
    recipe: Training,
    model: Model,
    optimizer: torch.optim.Optimizer,
    say: Callable[[str], None],
) -> None:
    """Puts the newest checkpoint, if there is one, into model and optimizer, and cuts metrics back to it."""
    dropped = cut_metrics(folder, saved)
    if saved is None:
        if dropped:
            say(f"{folder}: no checkpoint yet, starting over ({dropped} bytes of metrics dropped)")
        return
    load_weights(saved, model)
    load_optimizer(saved, optimizer)
    for stage, end in enumerate(method.stage_starts(recipe.steps)[1:]):
        if end < saved.step:
            stage_end(folder, stage)
    if not ended(saved, recipe):
        remark = f", {dropped} bytes of later metrics dropped" if dropped else ""
        say(f"{folder}: resumed at step {saved.step}{remark}")


def ended(saved: Saved, recipe: Training) -> bool:
    """Whether a checkpoint is a run's last."""
    return saved.step >= recipe.steps or saved.manifest.get("stopped") is not None


def stage_end(folder: Path, stage: int) -> Saved:
    """What a run's stage had learnt when it ended.

    Raises:
        DamagedError: its checkpoint is damaged or missing.
    """
    saved = find_checkpoint(folder / STAGES / str(stage), folder)
    if saved is None:
        raise DamagedError(f"{folder / STAGES / str(stage)} holds no checkpoint: delete {folder} to start over")
    return saved


class _Log:
    """Appends lines to metrics.jsonl and passes them on."""

    def __init__(self, folder: Path | None, first: int, batch: int, on_progress: Callable[[int, float], None]):
        self.path = None if folder is None else folder / METRICS
        self.step, self.batch, self.on_progress, self.since = first, batch, on_progress, time.perf_counter()
        self.lines = read_lines(self.path) if self.path is not None and self.path.exists() else []
        self.metrics: dict[str, list[Tensor]] = {}
        on_progress(first, math.nan)

    def add(self, losses: list[Loss]) -> None:
        """Keeps what the next line is made of: the last loss, and every metric."""
        self.loss = losses[-1].value
        for loss in losses:
            for name, value in loss.metrics.items():
                self.metrics.setdefault(name, []).append(value)

    def write(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Records the loss of one step, and the mean of every metric since the last line or checkpoint."""
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
            **{name: _plain(torch.stack(values).nanmean(0)) for name, values in self.metrics.items()},
        }
        self.lines.append(record)
        self.metrics = {}
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self.on_progress(step, value)


def _plain(value: Tensor) -> Any:
    """A number, or a list of numbers, to six digits; null where there is none."""
    if value.ndim:
        return [_plain(each) for each in value]
    return float(f"{value.item():.6g}") if value.isfinite() else None


def batches(examples: Examples, batch: int, first: int, seeds: Seeds) -> Iterator[Examples]:
    """Batch `first`, `first` + 1, ... of training; several are gathered at a time and then cut."""
    order = batch_indices(len(examples), batch, first, seeds)
    while True:
        index = torch.cat([next(order) for _ in range(GATHERED)]).to(examples.prompt_BN.device)
        yield from examples.rows(index).parts(batch)


def batch_indices(count: int, batch: int, first: int, seeds: Seeds) -> Iterator[Int[Tensor, " b"]]:
    """Row indices of batch `first`, `first` + 1, ...: each epoch a permutation of its own, the ragged end left out."""
    per_epoch = count // batch
    if per_epoch == 0:
        raise ValueError(f"a batch of {batch} from {count} examples: lower training.batch, or give more examples")
    epoch, place = divmod(first, per_epoch)
    while True:
        order = torch.randperm(count, generator=seeds.generator("order", epoch))
        for start in range(place * batch, per_epoch * batch, batch):
            yield order[start : start + batch]
        epoch, place = epoch + 1, 0


def offsets(count: int, spare: int, seeds: Seeds, step: int) -> Int[Tensor, " b"]:
    """Random position of each row's first token, 0..spare, so that every position a task has room for is trained."""
    return torch.randint(spare + 1, (count,), generator=seeds.generator("order", "offset", step))
