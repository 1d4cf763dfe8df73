"""Several processes: one model trained by all that torchrun starts, each on its share of every batch.

    torchrun --nproc-per-node 8 -m tinylatent run cot2 --hf.path models/x --text.task multihop --spread fsdp --out a \
        --device cuda

`ddp` keeps the whole model in every process, `fsdp` a part of weights, gradients and moments in each (fully_shard, the
second edition of FSDP), which it gathers for the time of a step. Batches, their order, and what each row samples are
those of one process: a process takes its rows of the batch that all would see, and the losses are divided by the rows
of the whole batch, so that gradients add up. Checkpoints are those of torch.distributed.checkpoint; any number of
processes goes on from them, and one alone reads them.

Two things are as they are for a reason. Losses are computed inside the wrapped model's forward, since outside of it
weights are parts. And gathered weights stay until the backward, or a rollout would gather every layer at each step.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import Loss, Method, Model, ParameterGroup, TrainState
from tinylatent.training.checkpoints import MODEL, Checkpoint, check_finite, given, left_out, save_checkpoint
from tinylatent.training.config import Training
from tinylatent.training.optimizer import make_optimizer
from tinylatent.training.team import Alone

Spread = Literal["ddp", "fsdp"]
OPTIMIZER = "optimizer"


class Together(Alone):
    """The processes of a group that has been joined.

    Args:
        spread: whether each has the whole model ("ddp") or a part of it ("fsdp").
        half: whether "fsdp" computes in bfloat16, with weights, gradients and moments in their own precision.

    Raises:
        ValueError: half precision for "ddp".
    """

    def __init__(self, spread: Spread, half: bool = False):
        if half and spread != "fsdp":
            raise ValueError("half precision is for fsdp: a model of transformers has a precision of its own")
        self.spread, self.half = spread, half
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.leads = self.rank == 0
        self._wrapped: Any = None
        self._sharded: Model | None = None

    # -----------------------------------------------------------------------------------------------------------------
    # Weights

    def check(self, method: Method) -> None:
        """Refuses methods that fit something to data with weights that are in parts.

        Raises:
            ValueError: the method does.
        """
        if self.spread == "fsdp" and type(method).begin_stage is not Method.begin_stage:
            raise ValueError(f"{method.name} fits something to data when a stage begins: spread it as ddp")

    def optimizer(
        self, model: Model, recipe: Training, groups: Sequence[ParameterGroup], names: Sequence[str]
    ) -> torch.optim.Optimizer:
        """The optimizer of a stage; the model is wrapped anew, as which parameters are trained may have changed.

        Raises:
            ValueError: weights are in parts, and the optimizer needs whole matrices.
        """
        if self.spread == "fsdp" and recipe.optimizer != "adamw":
            raise ValueError(f"{recipe.optimizer} needs whole matrices, and fsdp keeps them in parts: spread it as ddp")
        if self.spread == "fsdp" and self._sharded is not model:
            self._shard(model)
        optimizer = make_optimizer(model, recipe, groups, names, flat=False)
        if self.spread == "ddp":
            self._wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        return optimizer

    def _shard(self, model: Model) -> None:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if self.half else MixedPrecisionPolicy()
        how: dict[str, Any] = {"reshard_after_forward": False, "mp_policy": policy}
        for part in model.modules():
            for block in getattr(part, "layers_to_share", ()):
                fully_shard(block, **how)
        fully_shard(model, **how)
        self._sharded = model

    # -----------------------------------------------------------------------------------------------------------------
    # A step

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all processes, in order."""
        found = [torch.empty_like(rows) for _ in range(self.count)]
        dist.all_gather(found, rows.contiguous())
        return torch.cat(found)

    def share(self, batch: Examples, state: TrainState) -> tuple[Examples, TrainState]:
        """The rows of a batch that this process takes.

        Raises:
            ValueError: the batch cannot be divided among the processes.
        """
        rows, left = divmod(len(batch), self.count)
        if left:
            raise ValueError(
                f"a batch of {len(batch)} for {self.count} processes: expected training.batch_size to be a multiple"
            )
        first = self.rank * rows
        mine = batch.rows(slice(first, first + rows))
        return mine, replace(state, rows=len(batch), first=first, gather=self.gather)

    def loss(self, model: Model, call: Callable[[Model], Loss]) -> Loss:
        """What a call of the wrapped model returns."""
        loss: Loss = (model if self.spread == "fsdp" else self._wrapped)(call)
        return loss

    def ask(self, model: Model, call: Callable[[Model], Any]) -> Any:
        """What a call finds with whole weights; they are parts again when it is done."""
        if self.spread == "ddp":
            return call(model)
        found = model(call)
        for part in model.modules():
            if isinstance(part, FSDPModule):
                part.reshard()
        return found

    def backward(self, value: Tensor) -> None:
        """Adds gradients of all processes: both wrappers take the mean, so that the loss is multiplied first."""
        (value * self.count).backward()

    def whole(self, losses: list[Loss]) -> list[Loss]:
        """The sum of losses over processes, and the mean of metrics over those that have them."""
        found = []
        for loss in losses:
            value = loss.value.detach().clone()
            dist.all_reduce(value)
            found.append(Loss(value, {name: self._mean(metric) for name, metric in loss.metrics.items()}))
        return found

    def _mean(self, metric: Tensor) -> Tensor:
        return self.gather(metric.detach().float()[None]).nanmean(0)

    def agreed(self, reason: str | None) -> str | None:
        """The reason to stop of the process that leads."""
        told = [reason]
        dist.broadcast_object_list(told)
        return told[0]

    # -----------------------------------------------------------------------------------------------------------------
    # Checkpoints

    def save(
        self, folder: Path, step: int, model: Model, optimizer: torch.optim.Optimizer | None, **about: Any
    ) -> None:
        """Writes a checkpoint together: every process its part, the first what else belongs to it.

        Raises:
            ValueError: weights or moments of some process are not finite; nothing is written then.
            OSError: the first process cannot write.
        """
        self._all_finite(model, step, optimizer)
        weights, moments = get_state_dict(model, () if optimizer is None else optimizer)
        known = given(model)
        weights = {name: value for name, value in weights.items() if name not in known}
        state = {MODEL: weights, **({} if optimizer is None else {OPTIMIZER: moments})}

        def write(temporary: Path) -> dict[str, Any]:
            dist.broadcast_object_list([str(temporary)])
            checkpoint.save(state, checkpoint_id=temporary)
            return left_out(model)

        if self.leads:
            save_checkpoint(folder, step, model, None, **about, write=write)
        else:
            told: list[Any] = [None]
            dist.broadcast_object_list(told)
            checkpoint.save(state, checkpoint_id=told[0])
        self.wait()

    def _all_finite(self, model: Model, step: int, optimizer: torch.optim.Optimizer | None) -> None:
        """Raises ValueError in all processes if numbers of one of them are not finite."""
        said = None
        try:
            check_finite(model, step, optimizer)
        except ValueError as error:
            said = str(error)
        told: list[Any] = [None] * self.count
        dist.all_gather_object(told, said)
        if broken := [each for each in told if each is not None]:
            raise ValueError(broken[0])

    def restore(self, saved: Checkpoint, model: Model, optimizer: Any) -> None:
        """Loads a checkpoint that any number of processes has written together.

        Raises:
            ValueError: one process alone, which was not spread, has written it.
        """
        if not (saved.folder / ".metadata").exists():
            raise ValueError(
                f"{saved.folder} was written by a process alone: go on without --spread, or start another run from it "
                "with --start"
            )
        optimizers = () if optimizer is None else optimizer
        own, moments = get_state_dict(model, optimizers)
        known = given(model) if saved.manifest.get("given") else set()
        if not known and given(model):  # all were stored, because they have moved
            model.backbone.is_moved = True
        weights = {name: value for name, value in own.items() if name not in known}
        state: dict[str, Any] = {MODEL: weights, **({} if optimizer is None else {OPTIMIZER: moments})}
        checkpoint.load(state, checkpoint_id=saved.folder)
        found = state.get(OPTIMIZER, {})
        set_state_dict(model, optimizers, model_state_dict={**own, **state[MODEL]}, optim_state_dict=found)

    def wait(self) -> None:
        """Until all processes are here."""
        dist.barrier()


def is_started_by_torchrun() -> bool:
    """Whether torchrun, or somebody like it, has started this process as one of several."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


@contextmanager
def joined(spread: Spread, half: bool = False) -> Iterator[Together]:
    """A context in which this process is one of those that torchrun has started.

    Yields:
        the team; on a GPU of its own, where there are GPUs.

    Raises:
        ValueError: torchrun has not started it.
    """
    if not is_started_by_torchrun():
        raise ValueError(f"spread as {spread}, but this is one process: start it by torchrun --nproc-per-node N")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Together(spread, half)
        dist.barrier()
    finally:
        dist.destroy_process_group()
