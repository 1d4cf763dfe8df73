"""Recipe of a training run: how long, how fast, in what batches."""

import math
from dataclasses import dataclass, field
from typing import Literal

from tinylatent.core.identity import LATER


@dataclass(frozen=True)
class Training:
    """How long and how fast to train: AdamW, linear warm-up, then cosine decay to zero or a constant rate."""

    steps: int = 9000
    """Optimizer steps; 0 for methods that only search, in a model that another run has trained."""
    batch: int = 64
    """Problems per step."""
    rate: float = 5e-3
    """Peak learning rate."""
    warmup: float = 0.05
    """Share of the steps spent warming up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What the rate does after the warm-up: falls along half a cosine to zero, or stays at its peak."""
    weight_decay: float = 0.05
    """AdamW's decoupled weight decay, on all weights."""
    problems: int | None = None
    """Training problems to use, and a quarter as many, at most 1000, to validate on; all of them by default. Spaces too
    large to list need a number."""
    log_every: int = 100
    """Steps between lines in metrics.jsonl."""
    save_every: int = 1000
    """Steps between checkpoints."""

    micro_batch: int | None = field(default=None, metadata=LATER)
    """Problems whose loss is computed at a time; all of a batch by default. Gradients add up to those of the whole."""
    clip_norm: float | None = field(default=None, metadata=LATER)
    """Largest norm of the gradient, beyond which it is scaled down; no bound by default."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"training.steps is {self.steps}: expected at least 1, or 0 with a run to start from")
        for name in ("batch", "log_every", "save_every", "micro_batch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}: expected at least 1")
        if self.problems is not None and self.problems < 4:
            raise ValueError(
                f"training.problems is {self.problems}: expected at least 4, or nothing for all; try 10000"
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(f"training.warmup is {self.warmup}: expected a share of the steps in [0, 1); try 0.05")
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(f"training.schedule is {self.schedule!r}: expected cosine or constant")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"training.rate is {self.rate}: expected a positive learning rate; try 5e-3")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"training.weight_decay is {self.weight_decay}: expected 0 or more; try 0.05")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ValueError(f"training.clip_norm is {self.clip_norm}: expected a positive norm; try 1.0")
