"""How fast this machine is: `bench`."""

import sys
from dataclasses import dataclass

import torch

from tinylatent.cli.terminal import Device
from tinylatent.core.environment import environment
from tinylatent.core.files import json_text
from tinylatent.lab import bench
from tinylatent.lab.experiment import device_named


@dataclass(frozen=True)
class Bench:
    """Speed on this machine, one thread: training, evaluation, and the same without the laboratory around it."""

    rounds: int = 20
    """Rounds of short interleaved timings; ratios are taken within a round, medians over rounds."""
    groups: tuple[int, ...] = ()
    """Time GRPO's rollouts at these group sizes instead, such as 8 64 256."""
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
        if self.groups:
            metrics = bench.grouped_rollouts(self.groups, self.rounds, where)
        elif where.type == "cpu":
            metrics = bench.measure(self.rounds)
        else:
            raise ValueError("bench compares with one CPU thread: give --groups to time rollouts on another device")
        if self.json:
            name = torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
            print(json_text({**metrics, "rounds": self.rounds, "device": name, "environment": environment()}))
        else:
            for name, value in metrics.items():
                print(f"{name:24s} {value:12,.3f}" if value < 100 else f"{name:24s} {value:12,.0f}")
        if self.profile and not self.groups:
            print("\n" + bench.profile(), file=sys.stderr if self.json else sys.stdout)
