"""Figures looked at once they are drawn."""

from tinylatent.lab import sheets


def legends_on_data(drawn):
    """Legends whose box meets the inside of any axes."""
    boxes = [axes.get_window_extent() for axes in drawn.axes]
    legends = [*drawn.legends, *(axes.get_legend() for axes in drawn.axes if axes.get_legend())]
    return [each for each in legends if any(each.get_window_extent().overlaps(box) for box in boxes)], legends


def remembered(monkeypatch):
    """A list that every figure is added to once it is saved."""
    saved, Sheet = [], sheets.sheet
    monkeypatch.setattr("tinylatent.lab.plots.sheet", lambda *size: Remembered(Sheet(*size), saved))
    return saved


class Remembered:
    """A sheet that is kept when it has been saved."""

    def __init__(self, sheet, kept):
        self.sheet, self.kept = sheet, kept

    def __enter__(self):
        self.kept.append(self.sheet.__enter__())
        return self.kept[-1]

    def __exit__(self, *error):
        return self.sheet.__exit__(*error)
