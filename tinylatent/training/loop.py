"""The training loop: examples stay on the device, a step calls the method's loss, and any run can be resumed.

Order and sampling are pure functions of the seeds and the step number, so that a checkpoint needs no generator state:
a resumed run gives the same weights, bit for bit, on the same machine and thread count.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial, reduce
from itertools import accumulate, pairwise
from operator import add
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tinylatent.core.environment import environment
from tinylatent.core.files import DamagedError, json_text, naming, read_lines
from tinylatent.core.seeds import Seeds, derive
from tinylatent.evaluation.evaluate import BATCH
from tinylatent.objectives.examples import Examples, Speaker
from tinylatent.objectives.method import Loss, Method, Model, ParameterGroup, TrainState
from tinylatent.objectives.rewards import Verifier, truth
from tinylatent.training.checkpoints import (
    METRICS,
    STAGES,
    Checkpoint,
    check_finite,
    clear_leftovers,
    cut_metrics,
    find_checkpoint,
    restart,
)
from tinylatent.training.config import Training
from tinylatent.training.optimizer import (
    clip_gradient,
    gradient_norm,
    set_learning_rate,
    trainable,
    zero_gradients,
)
from tinylatent.training.team import ALONE, Alone
from tinylatent.training.validation import Validation

GATHERED = 16  # batches that are indexed from the examples at a time


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
    verify: Verifier | None = None,
    validation: Speaker | None = None,
    team: Alone = ALONE,
) -> Model:
    """Trains a model to the end, from the newest checkpoint under `folder` if there is one.

    Args:
        model: with its initial weights; trained in place.
        method: gives the losses, and declares what is trained.
        examples: all training examples, on the model's device.
        recipe: steps, batch size, learning rate.
        seeds: of order and sampling.
        spare: largest random shift of an example's positions, so that all positions are trained.
        folder: for metrics.jsonl and checkpoints; None stores nothing.
        on_progress: called with (steps done, loss) at the start and whenever metrics are logged.
        say: called with one-line messages, such as the step at which a run is resumed.
        verify: rewards what methods that learn from rewards write, and judges during a search; by default the true
            answer, and the searching method's own judge.
        validation: problems of which `recipe.validate` are asked whenever metrics are logged, as "validation_accuracy".
            It changes no weight, and its time does not count as training.
        team: the processes that train; this one alone by default. All of them call this with the same arguments.

    Returns:
        the model.

    Raises:
        ValueError: stages do not start at 0 and increase, a batch needs more examples than there are, a parameter
            group fits no parameter, the optimizer lost the model's parameters, or training diverged: the loss, the
            weights or the answers to validation problems are not finite. The last healthy checkpoint stays.
        DamagedError: a stored file is damaged.
    """
    starts = method.stage_starts(recipe.steps)
    if not starts or starts[0] != 0 or any(b <= a for a, b in pairwise(starts)):
        raise ValueError(f"stages of {method.name} start at {starts}: expected increasing steps, the first 0")
    team.check(method)
    names, asked = trainable(model), None
    if validation is not None and min(recipe.validate, len(validation.problems)):
        device, at_once = examples.prompt_BN.device, recipe.micro_batch or BATCH
        asked = Validation(validation, recipe.validate, seeds, device, verify, at_once)
    heard = on_progress if on_progress is not None and team.leads else lambda step, loss: None
    log = _Log(folder, recipe.batch_size, heard, asked, team)
    said = say if team.leads else lambda text: None
    try:
        return _fit(model, method, examples, recipe, seeds, names, spare, folder, log, said, verify, team)
    finally:
        for name, parameter in model.named_parameters():  # frozen for a stage, not for good
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
    log: "_Log",
    say: Callable[[str], None],
    verify: Verifier | None,
    team: Alone,
) -> Model:
    """`fit` for the named parameters."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    saved = None if folder is None else find_checkpoint(folder)
    stage = 0 if saved is None else method.stage_at(max(0, saved.step - 1), recipe.steps)
    groups = method.parameter_groups(stage)
    optimizer = team.optimizer(model, recipe, groups, names)
    if folder is not None:
        _restore(folder, saved, method, recipe, model, optimizer, say, team)
    first = log.begin(saved)
    if saved is not None and ended(saved, recipe):
        return model
    where = environments(saved, examples.prompt_BN.device) if folder is not None else []

    def save(step: int, stopped: str | None = None) -> None:
        if folder is None:
            check_finite(model, step)
        else:
            team.save(folder, step, model, optimizer, seconds=log.seconds, stopped=stopped, environments=where)

    served = batches(examples, recipe.batch_size, first, seeds)
    state = TrainState(first, recipe.steps, seeds.derive("sampling", "train"), verify=verify or truth)
    starts, device = method.stage_starts(recipe.steps), examples.prompt_BN.device
    for step in range(first, recipe.steps):
        state = replace(state, step=step)
        if folder is not None and step > first and step % recipe.save_every == 0:
            save(step)
            log.metrics = {}  # as in a resumed run, which starts without them
        if step in starts:
            optimizer, groups = _enter(method, model, examples, recipe, optimizer, groups, names, state, folder, team)
        batch = next(served)
        if spare > 0:
            batch = batch.with_offsets(offsets(len(batch), spare, seeds, step).to(device))
        log.add(train_step(model, method, optimizer, recipe, *team.share(batch, state), team))
        if (step + 1) % recipe.log_every == 0 or step + 1 == recipe.steps:
            log.write(step + 1, optimizer, method, model)
            all_there = log.lines[0]["step"] <= recipe.log_every  # else some are lost, and would look like silence
            reason = method.early_stop(log.lines, step + 1 == recipe.steps) if all_there else None
            reason = team.agreed(reason or _right_enough(recipe, log.lines[-1]))
            if reason is not None:
                say(f"stopped at step {step + 1}: {reason}")
                save(step + 1, reason)
                return model
    save(recipe.steps)
    return model


def _right_enough(recipe: Training, line: Mapping[str, Any]) -> str | None:
    """The reason to stop where validation answers are right as often as the recipe asks; None to continue."""
    right = line.get("validation_accuracy", 0.0)
    if recipe.enough is None or right < recipe.enough:
        return None
    return f"{right:.1%} of validation answers are right, as training.enough {recipe.enough:g} asks; raise it for more"


def train_step(
    model: Model,
    method: Method,
    optimizer: torch.optim.Optimizer,
    recipe: Training,
    examples: Examples,
    state: TrainState,
    team: Alone = ALONE,
) -> list[Loss]:
    """Makes all optimizer steps on one batch (one for most methods) and returns their losses.

    If a method returns metrics, the norm of the gradient is added to them.
    """
    set_learning_rate(optimizer, recipe, *within(method, state))
    batch = method.collect(model, examples, state)
    parts, losses = batch.parts(recipe.micro_batch), []
    sizes, states = [len(part) for part in parts], [state]
    if len(parts) > 1:
        rows, firsts = state.rows or len(batch), [0, *accumulate(sizes)]
        states = [replace(state, rows=rows, first=state.first + first) for first in firsts[:-1]]
    for update in range(method.updates):
        values, metrics = [], []
        if update:
            states = [replace(now, update=update) for now in states]
        for part, now in zip(parts, states, strict=True):
            loss = _loss(model, method, part, now, team)
            team.backward(loss.value)
            values.append(loss.value.detach())
            metrics.append(loss.metrics)
        found = _mean(metrics, sizes)
        if found:
            found["gradient_norm"] = gradient_norm(optimizer)
        if recipe.clip_norm is not None:
            clip_gradient(optimizer, recipe.clip_norm)
        losses.append(Loss(reduce(add, values), found))
        _stepped(optimizer, recipe, state.step + 1)
        zero_gradients(optimizer)
    more = _mean([method.after(model, part, now) for part, now in zip(parts, states, strict=True)], sizes)
    losses[-1] = Loss(losses[-1].value, {**losses[-1].metrics, **more})
    return team.whole(losses)


def _stepped(optimizer: torch.optim.Optimizer, recipe: Training, step: int) -> None:
    """A step of the optimizer; ValueError where its own matrices are finite no longer."""
    try:
        optimizer.step()
    except torch.linalg.LinAlgError:
        raise ValueError(
            f"{recipe.optimizer} finds no root of its matrices at step {step}: training diverged; lower "
            "training.learning_rate"
        ) from None


def _mean(metrics: list[Mapping[str, Tensor]], sizes: list[int]) -> dict[str, Tensor]:
    """The mean of every metric over the parts that have it, weighted by their numbers of examples."""
    if len(metrics) == 1:
        return dict(metrics[0])
    found = {}
    for name in dict.fromkeys(name for part in metrics for name in part):
        having = [(part[name], size) for part, size in zip(metrics, sizes, strict=True) if name in part]
        values = torch.stack([value for value, _ in having])
        weights = values.new_tensor([size for _, size in having]).view(-1, *[1] * (values.ndim - 1))
        weights = weights.expand_as(values).masked_fill(values.isnan(), 0.0)  # steps that no row of a part takes
        found[name] = (values.masked_fill(values.isnan(), 0.0) * weights).sum(0) / weights.sum(0)
    return found


def _loss(model: Model, method: Method, part: Any, state: TrainState, team: Alone) -> Loss:
    """The loss of a part, computed inside the model; with dropout masks of this part and step, if there is dropout."""
    if not method.drops_out or not getattr(model.backbone, "dropout", 0.0):
        return team.loss(model, lambda inside: method.loss(inside, part, state))
    seed = derive(state.seed, "dropout", state.step, state.update, state.first)
    generator = torch.Generator(model.backbone.table.weight.device).manual_seed(seed)
    with model.backbone.dropping(generator):
        return team.loss(model, lambda inside: method.loss(inside, part, state))


def within(method: Method, state: TrainState) -> tuple[int, int]:
    """The number of steps done in the current stage, and the number of all its steps."""
    starts = (*method.stage_starts(state.total), state.total)
    stage = method.stage_at(state.step, state.total)
    return state.step - starts[stage], starts[stage + 1] - starts[stage]


def _enter(
    method: Method,
    model: Model,
    examples: Examples,
    recipe: Training,
    optimizer: torch.optim.Optimizer,
    groups: tuple[ParameterGroup, ...],
    names: list[str],
    state: TrainState,
    folder: Path | None,
    team: Alone,
) -> tuple[torch.optim.Optimizer, tuple[ParameterGroup, ...]]:
    """Begins a stage: saves the end of the last one, resets the optimizer, and calls the method's hook.

    A resumed run begins a stage at the same step and with the same weights.
    """
    stage = method.stage_at(state.step, state.total)
    if stage > 0:
        if folder is not None:
            team.save(folder / STAGES / str(stage - 1), state.step, model, None)
        optimizer.state.clear()
    method.enter(model, stage, examples, state)
    if (now := method.parameter_groups(stage)) != groups:
        optimizer, groups = team.optimizer(model, recipe, now, names), now
    return optimizer, groups


def _restore(
    folder: Path,
    saved: Checkpoint | None,
    method: Method,
    recipe: Training,
    model: Model,
    optimizer: torch.optim.Optimizer,
    say: Callable[[str], None],
    team: Alone,
) -> None:
    """Loads the checkpoint, if there is one, into model and optimizer, and cuts metrics back to it."""
    dropped = 0
    if team.leads:
        clear_leftovers(folder)
        dropped = cut_metrics(folder, saved)
    if saved is None:
        if dropped:
            say(f"{folder}: no checkpoint yet, starting over ({dropped} bytes of metrics dropped)")
        return
    if dropped < 0:
        say(
            f"{folder / METRICS} is missing: going on from the weights of step {saved.step}; its lines so far are lost,"
            " and without them training will not stop early"
        )
    team.restore(saved, model, None if ended(saved, recipe) else optimizer)
    for stage, end in enumerate(method.stage_starts(recipe.steps)[1:]):
        if end < saved.step:
            stage_end(folder, stage)
    if not ended(saved, recipe):
        remark = f", {dropped} bytes of later metrics dropped" if dropped > 0 else ""
        say(f"{folder}: resumed at step {saved.step}{remark}")


def environments(saved: Checkpoint | None, device: torch.device) -> list[dict[str, str]] | None:
    """The environments that trained a run up to its checkpoint, and this one; None where the checkpoint has none."""
    before: list[dict[str, str]] | None = [] if saved is None else saved.manifest.get("environments")
    now = environment(device)
    return before if before is None or now in before else [*before, now]


def ended(saved: Checkpoint, recipe: Training) -> bool:
    """Whether a checkpoint is the last of its run."""
    return saved.step >= recipe.steps or saved.manifest.get("stopped") is not None


def stage_end(folder: Path, stage: int) -> Checkpoint:
    """The checkpoint at the end of a stage.

    Raises:
        DamagedError: the checkpoint is damaged or missing.
    """
    saved = find_checkpoint(folder / STAGES / str(stage), folder)
    if saved is None:
        raise DamagedError(f"{folder / STAGES / str(stage)} holds no checkpoint: {restart(folder)}")
    return saved


class _Log:
    """Collects metrics, appends lines to metrics.jsonl, reports progress, and times training."""

    def __init__(
        self,
        folder: Path | None,
        batch: int,
        on_progress: Callable[[int, float], None],
        asked: Validation | None,
        team: Alone,
    ):
        self.path = None if folder is None else folder / METRICS
        self.team = team
        self.batch, self.on_progress, self.asked = batch, on_progress, asked
        self.metrics: dict[str, list[Tensor]] = {}
        self.began = time.perf_counter()

    def begin(self, saved: Checkpoint | None) -> int:
        """Reads the lines up to a checkpoint, reports its step as progress, and returns it."""
        self.step = 0 if saved is None else saved.step
        self.spent: float = 0.0 if saved is None else saved.manifest["seconds"]
        self.lines = read_lines(self.path) if self.path is not None and self.path.exists() else []
        self.since = time.perf_counter()
        self.on_progress(self.step, math.nan)
        return self.step

    @property
    def seconds(self) -> float:
        """The time training took so far, in all sittings, without that of validating."""
        validating = 0.0 if self.asked is None else self.asked.seconds
        return self.spent + time.perf_counter() - self.began - validating

    def add(self, losses: list[Loss]) -> None:
        """Adds the last loss and all metrics to the next line."""
        self.loss = losses[-1].value
        for loss in losses:
            for name, value in loss.metrics.items():
                self.metrics.setdefault(name, []).append(value)

    def write(self, step: int, optimizer: torch.optim.Optimizer, method: Method, model: Model) -> None:
        """Writes a line: the loss of this step, and the mean of every metric since the last line or checkpoint.

        Raises:
            ValueError: the loss, the weights or the answers to validation problems are not finite.
        """
        value, now = self.loss.item(), time.perf_counter()
        if not math.isfinite(value):
            raise ValueError(f"the loss is {value} at step {step}: training diverged; lower training.learning_rate")
        pace = (step - self.step) * self.batch / (now - self.since)
        record = {
            "step": step,
            "loss": value,
            "learning_rate": optimizer.param_groups[0]["lr"],
            "problems_per_s": round(pace, 1),
            **{name: _plain(torch.stack(values).nanmean(0)) for name, values in self.metrics.items()},
        }
        if self.asked is not None:
            check_finite(model, step)
            record["validation_accuracy"] = self.team.ask(model, partial(self.asked.accuracy, method))
            zero_gradients(optimizer)  # a method that searches may have left some
        self.step, self.since = step, time.perf_counter()
        self.lines.append(record)
        self.metrics = {}
        if self.path is not None and self.team.leads:
            with naming(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json_text(record) + "\n")
        self.on_progress(step, value)


def _plain(value: Tensor) -> Any:
    """A number, or a list of numbers, rounded to six digits; None where it is not finite."""
    if value.ndim:
        return [_plain(entry) for entry in value]
    return float(f"{value.item():.6g}") if value.isfinite() else None


def batches(examples: Examples, batch: int, first: int, seeds: Seeds) -> Iterator[Examples]:
    """Yields batches `first`, `first` + 1, ... of training; several are indexed at a time and then split."""
    order = batch_indices(len(examples), batch, first, seeds)
    while True:
        index = torch.cat([next(order) for _ in range(GATHERED)]).to(examples.prompt_BN.device)
        yield from examples.rows(index).parts(batch)


def batch_indices(count: int, batch: int, first: int, seeds: Seeds) -> Iterator[Int[Tensor, " b"]]:
    """Yields row indices of batches `first`, `first` + 1, ...: an epoch is a permutation without an incomplete batch.

    Raises:
        ValueError: fewer rows than a batch.
    """
    per_epoch = count // batch
    if per_epoch == 0:
        raise ValueError(f"a batch of {batch} from {count} examples: lower training.batch_size, or give more examples")
    epoch, index = divmod(first, per_epoch)
    while True:
        order = torch.randperm(count, generator=seeds.generator("order", epoch))
        for start in range(index * batch, per_epoch * batch, batch):
            yield order[start : start + batch]
        epoch, index = epoch + 1, 0


def offsets(count: int, spare: int, seeds: Seeds, step: int) -> Int[Tensor, " b"]:
    """Random positions of the rows' first tokens, 0..spare, so that all positions of the model are trained."""
    return torch.randint(spare + 1, (count,), generator=seeds.generator("order", "offset", step))
