"""Curves of training: `plot`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tinylatent.cli.runs import Where, Words
from tinylatent.lab.curves import draw_curves, points, read_metrics
from tinylatent.lab.names import short
from tinylatent.lab.sheets import format_of
from tinylatent.lab.store import Stored, pick

MOST = 32
"""Most runs that one figure tells apart."""


@dataclass(frozen=True, kw_only=True)
class Plot(Where):
    """Draw loss and validation accuracy of runs against their steps, also while they are trained."""

    runs: Annotated[Words, tyro.conf.arg(metavar="ID|NAME|FOLDER ...")]
    """Which: 4 or more digits of an id, a name in quotes, or a folder. A part of a name stands for all that it fits."""
    output: Path = Path("curves.png")
    """File for the figure, PNG, PDF or SVG by its suffix."""

    def run(self) -> None:
        """Draws, and says where.

        Raises:
            ValueError: there is no such run, too many fit, one has no metrics yet, or the suffix names no format.
        """
        format_of(self.output)
        if not self.runs:
            raise ValueError("plot needs the id, name or folder of a run; `tinylatent runs list` shows them")
        stored = self.stored(self.runs)
        chosen = [*{each.folder: each for name in self.runs for each in pick(stored, name)}.values()]
        if len(chosen) > MOST:
            raise ValueError(f"{len(chosen)} runs fit: a figure tells {MOST} apart; give more of their names, or ids")
        curves = {}
        for each, label in zip(chosen, _labels(chosen), strict=True):
            if each.reason:
                raise ValueError(f"{each.folder} is unreadable: {each.reason}")
            curves[label] = read_metrics(each.metrics)
            if not points(curves[label], "loss")[0]:
                raise ValueError(f"{each.folder} has no metrics yet: let its training reach the first line")
            if not points(curves[label], "validation_accuracy")[0]:
                print(f"{label} has no validation accuracy in its metrics", file=sys.stderr)
        draw_curves(curves, self.output)
        print(f"figure: {self.output}")


def _labels(runs: list[Stored]) -> list[str]:
    """What the legend calls each run: its name, with its folder where another is called the same."""
    names = [short(each.name) for each in runs]
    return [
        f"{name} ({each.folder})" if names.count(name) > 1 else name for name, each in zip(names, runs, strict=True)
    ]
