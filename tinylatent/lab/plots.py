"""One look for every figure: measured values with their intervals drawn, published values hollow and named so.

Legends stand outside the axes, and name every mark that is not labelled where it stands.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.sheets import sheet

if TYPE_CHECKING:
    import matplotlib.axes  # which commands that draw nothing do not load

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "axes.titlesize": 9,
}


@contextmanager
def figure(
    path: Path, width: float | int, height: float | int, columns: int = 1, sharey: bool = False
) -> Iterator[list["matplotlib.axes.Axes"]]:
    """Axes side by side, saved to `path` at the end; sizes in inches. No display is touched.

    Raises:
        ValueError: the path's suffix names no format of figures.
    """
    with sheet(path, width, height) as drawn:
        yield list(drawn.subplots(1, columns, squeeze=False, sharey=sharey)[0])


def legend_below(panels: Sequence["matplotlib.axes.Axes"], columns: int) -> None:
    """One legend for these axes below the whole figure, each label once, with so many columns."""
    drawn = panels[0].figure
    entries = {label: mark for axes in panels for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    drawn.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)


def legend_under(axes: "matplotlib.axes.Axes", columns: int = 2) -> None:
    """The legend of one panel below its label of the x axis."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns)


def legend_mark(
    axes: "matplotlib.axes.Axes", label: str, marker: str = "o", hollow: bool = True, colour: Any = "black"
) -> None:
    """An entry of the legend for a mark that stands for something in all colours."""
    face = "white" if hollow else colour
    axes.plot([], [], marker, color=colour, markerfacecolor=face, markersize=5, linestyle="", label=label)


def interval_row(axes: "matplotlib.axes.Axes", y: int, interval: Interval, colour: str, hollow: bool = False) -> None:
    """A horizontal interval with its value, in percent."""
    low, value, high = 100 * interval.low, 100 * interval.value, 100 * interval.high
    axes.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="round")
    axes.plot(value, y, "o", color=colour, markerfacecolor="white" if hollow else colour, markersize=5)


def interval_column(
    axes: "matplotlib.axes.Axes",
    x: float | int,
    interval: Interval,
    colour: Any,
    hollow: bool = False,
    label: str | None = None,
    linewidth: float = 2,
) -> None:
    """A vertical interval with its value, in percent."""
    low, value, high = 100 * interval.low, 100 * interval.value, 100 * interval.high
    axes.plot([x, x], [low, high], color=colour, linewidth=linewidth, solid_capstyle="round")
    axes.plot(x, value, "o", color=colour, markerfacecolor="white" if hollow else colour, ms=5, label=label)


def published_mark(
    axes: "matplotlib.axes.Axes", x: Any = (), y: Any = (), label: str | None = None, colour: Any = "black"
) -> None:
    """Hollow diamonds: values that others published; without x and y, an entry of the legend."""
    axes.plot(x, y, "D", color=colour, markerfacecolor="none", markersize=6, linestyle="", label=label)


def shade(colour: str, index: int, count: int) -> Any:
    """One of `count` shades of a colour, from pale (index 0) to full (the last)."""
    from matplotlib.colors import to_rgb

    weight = (index + 1) / count
    return tuple(1 - weight * (1 - part) for part in to_rgb(colour))
