"""Sheets: figures of any layout, saved as PNG, PDF or SVG by the suffix of their file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinylatent.core.files import atomic

FORMATS = ("png", "pdf", "svg")


def format_of(path: Path) -> str:
    """The format that a file's suffix names.

    Raises:
        ValueError: it names none of PNG, PDF and SVG.
    """
    suffix = path.suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path} names no format of figures: expected a file that ends in .png, .pdf or .svg")
    return suffix


@contextmanager
def sheet(path: Path, width: float | int, height: float | int) -> Iterator[Any]:
    """A matplotlib Figure of so many inches, saved whole at the end of the block; no display is touched.

    Equal figures give equal files: no date is written.

    Raises:
        ValueError: the path's suffix names no format.
    """
    kind = format_of(path)
    import matplotlib  # a quarter of a second that commands which draw nothing do not need
    from matplotlib.figure import Figure

    from tinylatent.lab.plots import STYLE

    unsaid = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "tinylatent"}):
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn
        with atomic(path) as temporary:
            drawn.savefig(temporary, format=kind, dpi=160, metadata=unsaid)
