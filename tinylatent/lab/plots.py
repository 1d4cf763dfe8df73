"""One look for every figure: measured values with their intervals drawn, published values hollow and named so."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from tinylatent.evaluation.statistics import Interval

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


@contextmanager
def figure(
    path: Path, width: float | int, height: float | int, columns: int = 1, sharey: bool = False
) -> Iterator[list[Axes]]:
    """Axes side by side, saved to `path` as PNG at the end; sizes in inches. No display is touched."""
    with matplotlib.rc_context(STYLE):
        sheet = Figure(figsize=(width, height), layout="constrained")
        yield list(sheet.subplots(1, columns, squeeze=False, sharey=sharey)[0])
        sheet.savefig(path, format="png", dpi=160, metadata={"Software": None})


def interval_row(axes: Axes, y: int, interval: Interval, colour: str, hollow: bool = False) -> None:
    """A horizontal interval with its value, in percent."""
    low, value, high = 100 * interval.low, 100 * interval.value, 100 * interval.high
    axes.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="round")
    axes.plot(value, y, "o", color=colour, markerfacecolor="white" if hollow else colour, markersize=5)


def interval_column(
    axes: Axes, x: float | int, interval: Interval, colour: Any, hollow: bool = False, label: str | None = None
) -> None:
    """A vertical interval with its value, in percent."""
    low, value, high = 100 * interval.low, 100 * interval.value, 100 * interval.high
    axes.plot([x, x], [low, high], color=colour, linewidth=2, solid_capstyle="round")
    axes.plot(x, value, "o", color=colour, markerfacecolor="white" if hollow else colour, ms=5, label=label)


def published_mark(axes: Axes, x: Any = (), y: Any = (), label: str | None = None) -> None:
    """Hollow diamonds: values that others published; without x and y, an entry of the legend."""
    axes.plot(x, y, "D", color="black", markerfacecolor="none", markersize=6, label=label)


def shade(colour: str, index: int, count: int) -> Any:
    """One of `count` shades of a colour, from pale (index 0) to full (the last)."""
    weight = (index + 1) / count
    return tuple(1 - weight * (1 - part) for part in to_rgb(colour))
