"""Curves: loss and validation accuracy of runs against their steps, as metrics.jsonl has them."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

import msgspec

from tinylatent.core.files import DamagedError, read_lines
from tinylatent.lab.sheets import sheet

COLOURS = ("#b5403a", "#3b6fb6", "#3c7a4c", "#c08a3e", "#7b5ea7", "#2f8f9d", "#8c8c8c", "#000000")
DASHES = ("-", "--", "-.", ":")
"""With the colours they tell lines apart, in black and white too."""
WIDTH, HEIGHT, LINE = 9.0, 3.4, 0.2
"""The sheet without its legend, and a line of that, in inches."""
PANELS = {"loss": "loss", "validation_accuracy": "validation accuracy, %"}
"""What is drawn, by its name in metrics.jsonl, and what the axis says."""


def draw_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draws a panel for the loss and one for the validation accuracy, where a run has it.

    Args:
        runs: lines of metrics.jsonl by what the legend calls the run.
        path: a file that ends in .png, .pdf or .svg.

    Raises:
        ValueError: the suffix names no format.
    """
    with sheet(path, WIDTH, HEIGHT + LINE * len(runs)) as drawn:
        draw_on(drawn, runs)


def draw_on(drawn: Any, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Draws the panels on a matplotlib Figure; see `draw_curves`."""
    from matplotlib.ticker import LogLocator, NullLocator

    curves = {what: {name: points(lines, what) for name, lines in runs.items()} for what in PANELS}
    shown = [what for what in PANELS if any(steps for steps, _ in curves[what].values())]
    panels = drawn.subplots(1, len(shown), squeeze=False)[0]
    looks = cycle((colour, dash) for dash, colour in product(DASHES, COLOURS))
    styles = {name: next(looks) for name in runs}
    for axes, what in zip(panels, shown, strict=True):
        scale = 100 if what == "validation_accuracy" else 1
        for name, (steps, values) in curves[what].items():
            colour, dash = styles[name]
            mark = "o" if len(steps) == 1 else ""  # one point alone makes no line
            axes.plot(steps, [scale * y for y in values], dash, marker=mark, color=colour, lw=1.3, label=name)
        axes.set_xlabel("step")
        axes.set_ylabel(PANELS[what])
        axes.set_xlim(left=0)
    if "loss" in shown and all(y > 0 for _, values in curves["loss"].values() for y in values):
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[0].yaxis.set_minor_locator(NullLocator())
        panels[0].yaxis.set_major_formatter("{x:g}")
    if "validation_accuracy" in shown:
        panels[-1].set_ylim(0, 101)
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left")


class _Line(msgspec.Struct):
    """What is drawn of a line of metrics.jsonl."""

    step: int
    loss: float | None = None
    validation_accuracy: float | None = None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a metrics.jsonl; the last one may be half written.

    Raises:
        DamagedError: the file is missing, or a line has no step, or no number or null for what is drawn.
    """
    if not path.is_file():
        raise DamagedError(f"{path} is missing: expected the metrics of the run, which training writes")
    lines = read_lines(path, whole=True)
    for number, line in enumerate(lines, 1):
        try:
            drawn = msgspec.convert(line, _Line)
            if not all(math.isfinite(value or 0.0) for value in (drawn.loss, drawn.validation_accuracy)):
                raise ValueError("a number is not finite")
        except ValueError as error:  # a ValidationError is one
            raise DamagedError(
                f"{path}, line {number} is damaged ({error}): expected a step and its metrics"
            ) from error
    return lines


def points(lines: Sequence[Mapping[str, Any]], what: str) -> tuple[list[int], list[float]]:
    """Steps, and the values of a metric there, where it was logged.

    Args:
        lines: of metrics.jsonl.
        what: the metric's name.
    """
    logged = [line for line in lines if line.get(what) is not None]
    return [line["step"] for line in logged], [line[what] for line in logged]
