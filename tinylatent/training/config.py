"""Settings of a training run: steps, batches, learning rate, logging."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Optimizer = Literal["adamw", "soap", "shampoo"]


@dataclass(frozen=True)
class Training:
    """Settings of the optimizer, with linear warm-up, then cosine decay to zero or a constant learning rate.

    Raises ValueError for settings out of range.
    """

    steps: int = 9000
    """Batches to train on; 0 for methods that only search, in a model that another run has trained."""
    batch_size: int = 64
    """Problems per batch."""
    learning_rate: float = 5e-3
    """Peak learning rate."""
    warmup: float = 0.05
    """Share of the steps with linear warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The learning rate after the warm-up: half a cosine to zero, or constant."""
    weight_decay: float = 0.05
    """Decoupled weight decay, on all weights."""
    num_train: int | None = None
    """Number of training problems; a quarter as many, at most 1000, are for validation. All problems by default; spaces
    too large to list need a number."""
    log_every: int = 100
    """Steps between lines in metrics.jsonl."""
    save_every: int = 1000
    """Steps between checkpoints."""
    validate: int = 256
    """Problems of the validation part that are asked for every line in metrics.jsonl, always the same; 0 for none. It
    changes no weight; with `enough` it decides when training stops."""
    enough: float | None = None
    """Share of right answers to the `validate` problems at which training stops, for a model that is meant to err; the
    whole length by default."""
    micro_batch: int | None = None
    """Problems per forward and backward; the whole batch by default. Gradients of a batch's parts are added up. As many
    are asked at a time when training validates."""
    clip_norm: float | None = None
    """Largest norm of the gradient; larger gradients are scaled down. No limit by default."""
    optimizer: Optimizer = "adamw"
    """AdamW; or SOAP (arXiv 2409.11321) or Shampoo (arXiv 1802.09568), which need the extra "optimizers"."""
    epsilon: float = 1e-8
    """Added to the root of AdamW's or SOAP's second moments; gradients much smaller than it move weights less. Shampoo
    adds its own 1e-6 to its matrices."""
    beta1: float | None = None
    """Decay of first moments; 0.9 for AdamW and 0.95 for SOAP by default. Shampoo has none."""
    beta2: float | None = None
    """Decay of second moments; 0.999 for AdamW and 0.95 for SOAP by default. Shampoo sums them."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"training.steps is {self.steps}: expected at least 1, or 0 with a run to start from")
        for name in ("batch_size", "log_every", "save_every", "micro_batch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}: expected at least 1")
        if self.validate < 0:
            raise ValueError(f"training.validate is {self.validate}: expected a number of problems, or 0 for none")
        if self.enough is not None and not (0 < self.enough <= 1 and self.validate):
            raise ValueError(
                f"training.enough is {self.enough} with training.validate {self.validate}: expected a share up to 1 of "
                "problems that are asked; try 0.5 and 256"
            )
        if self.num_train is not None and self.num_train < 4:
            raise ValueError(
                f"training.num_train is {self.num_train}: expected at least 4, or nothing for all; try 10000"
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(f"training.warmup is {self.warmup}: expected a share of the steps in [0, 1); try 0.05")
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(f"training.schedule is {self.schedule!r}: expected cosine or constant")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"training.learning_rate is {self.learning_rate}: expected a positive learning rate; try 5e-3"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"training.weight_decay is {self.weight_decay}: expected 0 or more; try 0.05")
        if self.optimizer not in get_args(Optimizer):
            raise ValueError(
                f"training.optimizer is {self.optimizer!r}: expected one of {', '.join(get_args(Optimizer))}"
            )
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"training.epsilon is {self.epsilon}: expected a small positive number; try 1e-8")
        for name in ("beta1", "beta2"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}: expected a share in [0, 1); try 0.9")
        if self.optimizer == "shampoo" and (self.beta1, self.beta2, self.epsilon) != (None, None, type(self).epsilon):
            raise ValueError("training.beta1, beta2 and epsilon mean nothing to shampoo: leave them out")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ValueError(f"training.clip_norm is {self.clip_norm}: expected a positive norm; try 1.0")
