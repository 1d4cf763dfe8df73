"""Figures of what lenses see, drawn from their tables alone: `tinylatent lens` draws one for each.

sizes         norms, relative contributions, cosines, by layer
lens          the logit lens: divergence, overlap, entropy
skip          heat maps of what skipping a layer does to later ones, and to the output
outliers      kurtosis and max-median ratio of the residual stream
erasure       until which layer a token's residual is needed where it stands
attribution   integrated gradients, by token and layer
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylatent.lab.sheets import sheet
from tinylatent.lab.tables import Table, Value

if TYPE_CHECKING:
    import matplotlib.axes  # which commands that draw nothing do not load

COLOURS = {"attention": "#3b6fb6", "mlp": "#b5403a", "layer": "#222222", "residual": "#222222", "neighbours": "#7a7a7a"}
WIDEST = 60
"""Tokens of a prompt that a heat map names."""
Row = Mapping[str, Value]


def draw_lenses(found: Mapping[str, Table], folder: Path) -> list[Path]:
    """Draws a figure for every table into a folder and returns their files."""
    drawn = []
    for name, table in found.items():
        path = folder / f"{name}.png"
        FIGURES[name](table.rows, path)
        drawn.append(path)
    return drawn


def _curve(axes: "matplotlib.axes.Axes", rows: Sequence[Row], label: str, colour: Any) -> None:
    """Means by layer with their intervals."""
    layer: Any = [row["layer"] for row in rows]
    mean, low, high = ([row[name] for row in rows] for name in ("mean", "low", "high"))
    axes.fill_between(layer, low, high, color=colour, alpha=0.2, linewidth=0)  # type: ignore[arg-type]
    axes.plot(layer, mean, color=colour, label=label, marker="o", markersize=3)  # type: ignore[arg-type]


def _of(rows: Sequence[Row], **wanted: Value) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _values(rows: Sequence[Row], name: str) -> list[float]:
    """A column of numbers."""
    return [float(value) for value in (row[name] for row in rows) if isinstance(value, int | float)]


def _sizes(rows: Sequence[Row], path: Path) -> None:
    with sheet(path, 12, 3.4) as drawn:
        norms, relative, cosine = drawn.subplots(1, 3)
        for part in ("residual", "attention", "mlp"):
            _curve(norms, _of(rows, measure=part), part, COLOURS[part])
        for part in ("attention", "mlp", "layer"):
            _curve(relative, _of(rows, measure=f"relative_{part}"), part, COLOURS[part])
            _curve(cosine, _of(rows, measure=f"cosine_{part}"), part, COLOURS[part])
        _curve(cosine, _of(rows, measure="cosine_neighbours"), "stream before and after", COLOURS["neighbours"])
        norms.set(title="norm", ylim=(0, None))
        relative.set(title="contribution / residual it is added to", yscale="log")
        cosine.set(title="cosine with the residual it is added to", ylim=(-1.05, 1.05))
        cosine.axhline(0, color="black", linewidth=0.8)
        for axes in (norms, relative, cosine):
            axes.set_xlabel("layer")
            axes.legend()


def _lens(rows: Sequence[Row], path: Path) -> None:
    places = {str(row["tokens"]): None for row in rows}
    shades = {"all": "#7a7a7a", "answer": "#b5403a"}
    titles = {
        "to_final": "KL(lens || final), nats",
        "from_final": "KL(final || lens), nats",
        "overlap": "most likely tokens shared",
        "entropy": "entropy of the lens, nats",
    }
    with sheet(path, 13, 3.2) as drawn:
        for axes, (measure, title) in zip(drawn.subplots(1, 4), titles.items(), strict=True):
            for place in places:
                label = "where the answer is predicted" if place == "answer" else "all tokens but the first"
                _curve(axes, _of(rows, tokens=place, measure=measure), label, shades[place])
            axes.set(title=title, xlabel="before layer", ylim=(0, None))
        drawn.axes[0].legend()


def _skip(rows: Sequence[Row], path: Path) -> None:
    import numpy as np

    names = {
        "all": "skipped at all tokens", "all, attention": "its attention alone", "all, mlp": "its MLP alone",
        "future": "skipped before, read after a split", "direct": "read directly",
    }  # fmt: skip
    layers = 1 + max(int(row["skipped"]) for row in rows if row["skipped"] is not None)
    with sheet(path, 21, 6.4) as drawn:
        grid = drawn.add_gridspec(2, len(names), height_ratios=(2, 1))
        for column, (name, title) in enumerate(names.items()):
            mean_LL = np.full((layers, layers), np.nan)
            for row in _of(rows, **{"effect on": name}):
                if row["on"] != "output":
                    mean_LL[int(row["skipped"] or 0), int(row["on"] or 0)] = row["mean"]
            axes = drawn.add_subplot(grid[0, column])
            most = float(np.nanmax(mean_LL))
            how = {"vmin": 0, "vmax": min(1.0, max(1e-9, most)), "aspect": "auto"}
            image = axes.imshow(mean_LL, origin="lower", cmap="viridis", **how)
            drawn.colorbar(image, ax=axes, label="mean of |c - c'| / |c|", extend="max" if most > 1 else "neither")
            axes.set(title=title, xlabel="effect on layer", ylabel="layer taken away")
            axes.grid(visible=False)
            below = drawn.add_subplot(grid[1, column])
            output = _of(rows, **{"effect on": name, "on": "output"})
            _curve(below, [{**row, "layer": row["skipped"]} for row in output], "mean over prompts", "#3b6fb6")
            below.plot(_values(output, "skipped"), _values(output, "max"), "_", color="#b5403a", label="largest")
            below.axhline(2**0.5, color="black", linewidth=0.6, linestyle=":")
            below.set(xlabel="layer taken away", ylabel="|y - y'|", ylim=(0, 1.5))
        below.legend()


def _outliers(rows: Sequence[Row], path: Path) -> None:
    shades = {"all": "#7a7a7a", "without the first": "#b5403a"}
    with sheet(path, 12, 3.2) as drawn:
        for axes, measure in zip(drawn.subplots(1, 3), ("kurtosis", "max-median", "input correlation"), strict=True):
            for name, colour in shades.items():
                chosen = [row for row in _of(rows, tokens=name) if row[measure] is not None]
                label = f"{name} tokens" if name == "all" else name
                axes.plot(_values(chosen, "layer"), _values(chosen, measure), "o-", ms=3, color=colour, label=label)
            axes.set(title=measure, xlabel="before layer")
        drawn.axes[0].set_yscale("log")
        drawn.axes[1].set_yscale("log")
        drawn.axes[0].legend()


def _by_token(rows: Sequence[Row], path: Path, name: str, signed: bool) -> None:
    """A heat map for each prompt: tokens across, layers upwards."""
    import numpy as np

    prompts = sorted({int(row["prompt"] or 0) for row in rows})
    longest = max(1 + int(row["slot"] or 0) for row in rows)
    with sheet(path, max(5.0, 0.32 * min(longest, WIDEST) + 2), 3.4 * len(prompts)) as drawn:
        for axes, prompt in zip(drawn.subplots(len(prompts), 1, squeeze=False)[:, 0], prompts, strict=True):
            chosen = _of(rows, prompt=prompt)
            words = {int(row["slot"] or 0): str(row["token"]) for row in chosen}
            layers = 1 + max(int(row["layer"] or 0) for row in chosen)
            value_LS = np.zeros((layers, len(words)))
            for row in chosen:
                value_LS[int(row["layer"] or 0), int(row["slot"] or 0)] = row[name]
            most = max(1e-9, float(np.abs(value_LS[:, 1:]).max(initial=0)))  # the first token would drown the others
            colours = {"cmap": "RdBu_r", "vmin": -most, "vmax": most} if signed else {"cmap": "magma", "vmin": 0}
            image = axes.imshow(value_LS, origin="lower", aspect="auto", **colours)
            drawn.colorbar(image, ax=axes, label=name)
            if len(words) <= WIDEST:
                axes.set_xticks(range(len(words)), [_printed(word) for word in words.values()], rotation=90, fontsize=7)
            axes.set(ylabel="before layer")
            axes.grid(visible=False)


def _printed(word: str) -> str:
    """A token so that it shows, and is no formula."""
    return word.replace("\n", "\\n").replace("$", "\\$").strip() or "' '"


FIGURES: dict[str, Callable[[Sequence[Row], Path], None]] = {
    "sizes": _sizes,
    "lens": _lens,
    "skip": _skip,
    "outliers": _outliers,
    "erasure": lambda rows, path: _by_token(rows, path, "effect", signed=False),
    "attribution": lambda rows, path: _by_token(rows, path, "attribution", signed=True),
}
