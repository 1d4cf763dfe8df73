"""Team: the processes that train one model. Here one alone; `distributed` has several, which do the same together."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import Loss, Method, Model, ParameterGroup, TrainState
from tinylatent.training.checkpoints import Checkpoint, load_optimizer, load_weights, save_checkpoint
from tinylatent.training.config import Training
from tinylatent.training.optimizer import make_optimizer


class Alone:
    """One process, which does everything itself."""

    leads = True
    """Whether this process writes metrics and says where it is."""

    def optimizer(
        self, model: Model, recipe: Training, groups: Sequence[ParameterGroup], names: Sequence[str]
    ) -> torch.optim.Optimizer:
        """The optimizer of a stage, for the parameters of these names in these groups."""
        return make_optimizer(model, recipe, groups, names)

    def check(self, method: Method) -> None:
        """Refuses methods that cannot be trained this way."""

    def share(self, batch: Examples, state: TrainState) -> tuple[Examples, TrainState]:
        """The rows of a batch that this process takes, and the state that they are told."""
        return batch, state

    def loss(self, model: Model, call: Callable[[Model], Loss]) -> Loss:
        """What a call of the model returns, its gradient still to be computed."""
        loss: Loss = model(call)
        return loss

    def ask(self, model: Model, call: Callable[[Model], Any]) -> Any:
        """What a call finds that reads the model without training it, as validation does."""
        return call(model)

    def backward(self, value: Tensor) -> None:
        """Adds the gradient of a part of the loss to that of the whole batch."""
        value.backward()

    def whole(self, losses: list[Loss]) -> list[Loss]:
        """Losses and metrics of the whole batch, from those of its own rows."""
        return losses

    def agreed(self, reason: str | None) -> str | None:
        """The reason to stop of the process that leads."""
        return reason

    def save(
        self, folder: Path, step: int, model: Model, optimizer: torch.optim.Optimizer | None, **about: Any
    ) -> None:
        """Writes a checkpoint; `about` is what else `checkpoints.save_checkpoint` is told."""
        save_checkpoint(folder, step, model, optimizer, **about)

    def restore(self, saved: Checkpoint, model: Model, optimizer: Any) -> None:
        """Loads a checkpoint into the model and the optimizer, if there is one."""
        load_weights(saved, model)
        if optimizer is not None:
            load_optimizer(saved, optimizer)

    def wait(self) -> None:
        """Until all processes are here."""


ALONE = Alone()
