"""How fast this machine is: `bench`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinylatent.cli.terminal import Device, refuse_idle
from tinylatent.core.environment import environment
from tinylatent.core.files import json_text
from tinylatent.lab import bench
from tinylatent.lab.bench_checkpoint import checkpoint
from tinylatent.lab.bench_decoding import decoding
from tinylatent.lab.experiment import device_named
from tinylatent.models.pretrained import Precision, Pretrained


@dataclass(frozen=True)
class Bench:
    """Speed on this machine, one thread: training, evaluation, and the same without the laboratory around it."""

    rounds: int = 20
    """Rounds of short interleaved timings; ratios are taken within a round, medians over rounds."""
    groups: tuple[int, ...] = ()
    """Time GRPO's rollouts at these group sizes instead, such as 8 64 256."""
    model: Path | None = None
    """Time decoding on the model of transformers in this folder instead, beside its own `generate`, and a checkpoint of
    it with its optimizer's state."""
    rows: tuple[int, ...] = (1, 8)
    """With --model: numbers of rows to decode at once."""
    dtype: Precision = "float32"
    """With --model: the precision that it computes in."""
    frozen: bool = False
    """With --model: time the compiled step too; compiling takes a minute."""
    device: Device = "cpu"
    """Where those are timed."""
    json: bool = False
    """Print JSON instead of a table."""
    profile: bool = True
    """Show where a training step's time goes (on standard error with --json)."""

    def run(self) -> None:
        """Times everything in turn and prints medians."""
        torch.set_num_threads(1)
        where = device_named(self.device)
        if self.groups and self.model is not None:
            raise ValueError("--groups beside --model: expected one of the two")
        if self.rounds < 1 or min(self.rows, default=0) < 1:
            raise ValueError(f"--rounds {self.rounds}, --rows {list(self.rows)}: expected whole numbers from 1 on")
        if self.model is None:
            refuse_idle(self, ("rows", "dtype", "frozen"), "without --model")
            metrics = self._ours(where)
        else:
            settings = Pretrained(str(self.model), dtype=self.dtype).found()
            tokens = len(settings.tokenizer())
            backbone = settings.backbone(tokens, [], torch.Generator()).to(where)
            metrics = decoding(backbone, self.rows, self.rounds, self.frozen) | checkpoint(backbone)
        if self.json:
            name = torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
            about: dict[str, Any] = {"rounds": self.rounds, "device": name, "environment": environment(where)}
            if self.model is not None:
                about = {"model": self.model.name, "dtype": self.dtype, **about}
            print(json_text({**metrics, **about}))
        else:
            for name, value in metrics.items():
                print(f"{name:24s} {value:12,.3f}" if value < 100 else f"{name:24s} {value:12,.0f}")
        if self.profile and not self.groups and self.model is None:
            print("\n" + bench.profile(), file=sys.stderr if self.json else sys.stdout)

    def _ours(self, where: torch.device) -> dict[str, float]:
        """What is timed without a model of transformers."""
        if self.groups:
            return bench.grouped_rollouts(self.groups, self.rounds, where)
        if where.type != "cpu":
            raise ValueError("bench compares with one CPU thread: give --groups or --model to time another device")
        return bench.measure(self.rounds)
