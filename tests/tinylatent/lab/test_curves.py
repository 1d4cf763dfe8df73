"""Curves of training: what metrics.jsonl logged, a line for each run, told apart and named."""

import pytest
from matplotlib.figure import Figure

from tinylatent.lab.curves import COLOURS, DASHES, draw_curves, draw_on, points

LINES = [
    {"step": 100, "loss": 8.0, "validation_accuracy": 0.25},
    {"step": 200, "loss": 4.0},
    {"step": 300, "loss": None, "validation_accuracy": 0.5},
    {"step": 400, "loss": 2.0, "validation_accuracy": 1.0},
]


def drawn(runs):
    figure = Figure(figsize=(9, 4), layout="constrained")
    draw_on(figure, runs)
    return figure


def data(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_a_metric_has_a_point_wherever_it_was_logged():
    assert points(LINES, "loss") == ([100, 200, 400], [8.0, 4.0, 2.0])
    assert points(LINES, "validation_accuracy") == ([100, 300, 400], [0.25, 0.5, 1.0])
    assert points(LINES, "entropy") == points([], "loss") == ([], [])


def test_loss_and_accuracy_in_percent_stand_side_by_side_with_a_legend():
    figure = drawn({"one": LINES, "two": LINES[:2]})
    loss, accuracy = figure.axes
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss", "validation accuracy, %")
    assert data(loss) == {"one": ([100, 200, 400], [8.0, 4.0, 2.0]), "two": ([100, 200], [8.0, 4.0])}
    assert data(accuracy) == {"one": ([100, 300, 400], [25.0, 50.0, 100.0]), "two": ([100], [25.0])}
    assert [text.get_text() for text in figure.legends[0].texts] == ["one", "two"]
    assert loss.get_yscale() == "log"
    assert all(axes.get_xlabel() == "step" and axes.get_xlim()[0] == 0 for axes in figure.axes)


def test_a_line_has_the_same_look_in_both_panels_and_no_two_are_alike():
    names = [str(n) for n in range(len(COLOURS) * len(DASHES))]
    looks = []
    for axes in drawn({name: LINES for name in names}).axes:
        looks.append([(line.get_color(), line.get_linestyle()) for line in axes.lines])
    assert looks[0] == looks[1]
    assert len(set(looks[0])) == len(names)


def test_one_point_alone_is_a_mark():
    marks = {line.get_label(): line.get_marker() for line in drawn({"a": LINES, "b": LINES[:1]}).axes[0].lines}
    assert marks == {"a": "", "b": "o"}


def test_a_panel_without_points_is_left_out_and_a_loss_below_zero_is_not_logarithmic():
    figure = drawn({"rl": [{"step": 1, "loss": -0.5}, {"step": 2, "loss": 0.5}]})
    (loss,) = figure.axes
    assert (loss.get_ylabel(), loss.get_yscale()) == ("loss", "linear")


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_suffix_says_the_format(suffix, start, tmp_path):
    draw_curves({"one": LINES}, tmp_path / f"curves.{suffix}")
    assert (tmp_path / f"curves.{suffix}").read_bytes().startswith(start)
