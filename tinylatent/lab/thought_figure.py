"""A figure of one thought: step by step, the shares that a model gives the states beside the oracle's exact frontier.

It is drawn from the JSON that `tinylatent show --json` prints, and so can be drawn again from that alone.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinylatent.lab.sheets import sheet

ORACLE, MODEL, REST = "#d4d4d4", "#b5403a", "rest"
"""Pale and dark, so that they differ in black and white as well; and the name of all states without a bar."""
MOST_BARS, FEW_BARS, LONG = 12, 4, 8
"""Most states of a step that get a bar of their own, those with the largest shares; the same where there are many
steps; and how many are many."""
LEAST, ROW, NARROWEST = 3, 26, 20
"""In bars, one between panels included: what even an empty panel takes, a row of panels, and the narrowest sheet."""
BAR, HEIGHT, HEAD = 0.35, 2.3, 0.55
"""Width of a bar with what is beside it, height of a row of panels, and of the title with the legend, in inches."""


def draw_thought(thought: Mapping[str, Any], path: Path) -> None:
    """Draws a panel for each step into a file.

    Args:
        thought: what `tinylatent show --json` prints: task, problem, answer, and steps with the shares of oracle and
            model; with a model also its method, its answer and the KL divergence of each step.
        path: a file that ends in .png, .pdf or .svg.

    Raises:
        ValueError: the suffix names no format.
    """
    rows = _rows(thought)
    with sheet(path, BAR * _widest(rows), HEIGHT * len(rows) + HEAD) as drawn:
        draw_on(drawn, thought)


def draw_on(drawn: Any, thought: Mapping[str, Any]) -> None:
    """Draws a panel for each step on a matplotlib Figure; see `draw_thought`."""
    rows, most = _rows(thought), _most(thought)
    room = drawn.get_figwidth() - (2.8 if thought.get("taught", True) else 4.6)
    drawn.suptitle(_title(thought, round(12 * room)), x=0.01, ha="left", fontsize=10)
    for strip, row in zip(drawn.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        widths = [width for _, width in row]
        spare = _widest(rows) - sum(widths) if len(rows) > 1 else 0  # bars of all rows are equally wide
        grid = strip.add_gridspec(1, len(row) + (spare > 0), width_ratios=widths + [spare] * (spare > 0))
        for column, (t, width) in enumerate(row):
            step, axes = thought["steps"][t], strip.add_subplot(grid[0, column])
            _draw_step(axes, bars_of(step["shares"], most), width - 1)
            kl = "" if "kl" not in step else f"\nKL {step['kl']:.4f} nats"
            axes.set_title(f"step {t + 1}{kl}", fontsize=9)
            axes.tick_params(labelleft=column == 0)
            if column == 0:
                axes.set_ylabel("share")
    pairs = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in drawn.axes]
    handles = {label: handle for pair in pairs for handle, label in pair}
    untaught = "" if thought.get("taught", True) else ", whose steps name no states"
    names = {"oracle": "exact frontier", "model": thought.get("method", "") + untaught}
    shown = [label for label in names if label in handles]
    drawn.legend([handles[label] for label in shown], [names[label] for label in shown], loc="upper right", ncols=2)


def bars_of(shares: Mapping[str, Mapping[str, float]], most: int = MOST_BARS) -> dict[str, dict[str, float]]:
    """The shares that get a bar, in their order; what does not fit is added up as the last one.

    Args:
        shares: of oracle and model, by state.
        most: bars, without the last one.
    """
    largest = sorted(shares, key=lambda state: -max(shares[state].values()))
    chosen = {*largest[:most]}
    found = {state: dict(each) for state, each in shares.items() if state in chosen}
    rest = [each for state, each in shares.items() if state not in chosen]
    if rest:
        found[REST] = {who: sum(each.get(who, 0.0) for each in rest) for who in rest[0]}
    return found


def _most(thought: Mapping[str, Any]) -> int:
    """Most bars of a step."""
    return MOST_BARS if len(thought["steps"]) < LONG else FEW_BARS


def _rows(thought: Mapping[str, Any]) -> list[list[tuple[int, int]]]:
    """The steps of each row of panels, each with its width in bars: as many as fit, and one at least."""
    rows: list[list[tuple[int, int]]] = [[]]
    for t, step in enumerate(thought["steps"]):
        room = max(LEAST, len(bars_of(step["shares"], _most(thought)))) + 1
        if rows[-1] and sum(width for _, width in rows[-1]) + room > ROW:
            rows.append([])
        rows[-1].append((t, room))
    return rows


def _widest(rows: Sequence[Sequence[tuple[int, int]]]) -> int:
    """The width of the sheet in bars."""
    return max(NARROWEST, *(sum(room for _, room in row) for row in rows))


def _draw_step(axes: Any, bars: Mapping[str, Mapping[str, float]], room: int) -> None:
    """A wide pale bar for the oracle, and in it a narrow dark one for the model."""
    places, oracle = range(len(bars)), [each["oracle"] for each in bars.values()]
    axes.bar(places, oracle, 0.82, color=ORACLE, edgecolor="black", linewidth=0.6, label="oracle")
    if all("model" in each for each in bars.values()):
        axes.bar(places, [each["model"] for each in bars.values()], 0.34, color=MODEL, label="model")
    axes.set_xticks(places, bars, rotation=90 if max(map(len, bars), default=0) > 3 else 0, fontsize=8)
    spare = (room - len(bars)) / 2
    axes.set_xlim(-0.6 - spare, len(bars) - 0.4 + spare)
    axes.set_ylim(0, 1.04)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="x", visible=False)
    axes.set_axisbelow(True)


def _title(thought: Mapping[str, Any], length: int) -> str:
    """The problem in so many signs, and below it the answer and what the model says."""
    facts = (f"{name} {_words(value)}" for name, value in thought["problem"].items())
    asked = textwrap.shorten(f"{thought['task']}: {', '.join(facts)}", length, placeholder=" ...")
    said = f"answer {thought['answer']}"
    if "method" in thought:
        verdict = "right" if thought["right"] else "wrong"
        said += f", {thought['method']} says {thought['model']}: {verdict}"
    return f"{asked}\n{said}"


def _words(value: Any) -> str:
    """A value of a problem in as few signs as possible."""
    return " ".join(map(_words, value)) if isinstance(value, list) else str(value)
