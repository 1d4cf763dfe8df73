"""Plots: figures in any format, the same file twice, and legends that hide no data."""

from pathlib import Path

import pytest
from drawn import legends_on_data

from tinylatent.cli.main import main
from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.plots import figure, interval_column, legend_below, legend_mark, legend_under, published_mark

RESULTS = Path(__file__).resolve().parents[3] / "results"
GAP = Interval(0.5, 0.25, 0.75, "by hand")


def draw(path):
    with figure(path, 4, 3, columns=2, sharey=True) as panels:
        for axes in panels:
            interval_column(axes, 1, GAP, "#3b6fb6", label="measured")
            published_mark(axes, 1, 60, "published")
        legend_mark(panels[0], "hollow: one seed")
        legend_below(panels, 3)
    return panels


@pytest.mark.parametrize(("form", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_suffix_is_the_format_and_the_same_figure_is_the_same_file(form, start, tmp_path):
    first, second = tmp_path / f"a.{form}", tmp_path / f"b.{form}"
    draw(first)
    draw(second)
    assert first.read_bytes().startswith(start)
    assert first.read_bytes() == second.read_bytes()


def test_another_suffix_is_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(ValueError, match=r"expected a file that ends in \.png, \.pdf or \.svg"):
        draw(tmp_path / "figure.gif")
    assert list(tmp_path.iterdir()) == []


def test_a_legend_below_names_each_label_once(tmp_path):
    (legend,) = draw(tmp_path / "a.png")[0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["measured", "published", "hollow: one seed"]


def test_a_legend_on_data_would_be_seen(tmp_path):
    with figure(tmp_path / "a.png", 4, 3) as (axes,):
        axes.plot([1, 2], label="line")
        axes.legend()
    assert legends_on_data(axes.figure)[0]
    with figure(tmp_path / "a.png", 4, 3) as (axes,):
        axes.plot([1, 2], label="line")
        axes.set_xlabel("x")
        legend_under(axes)
    assert legends_on_data(axes.figure)[0] == []


@pytest.mark.slow
def test_rebuild_draws_a_figure_for_print_beside_the_png(tmp_path, capsys):
    folder = tmp_path / "capacity"
    folder.mkdir()
    (folder / "runs.jsonl").write_bytes((RESULTS / "capacity/runs.jsonl").read_bytes())
    assert main(["rebuild", "capacity", "--results", str(tmp_path), "--format", "pdf"]) == 0
    assert str(folder / "figure.pdf") in capsys.readouterr().out.splitlines()
    assert (folder / "figure.pdf").read_bytes().startswith(b"%PDF")
    assert (folder / "figure.png").exists()
