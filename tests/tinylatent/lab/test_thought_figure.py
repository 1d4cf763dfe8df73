"""The figure of a thought: a panel for each step, pairs of bars for oracle and model, drawn from JSON alone."""

import json

import pytest
from matplotlib.figure import Figure

from tinylatent.lab.tasks import TASKS
from tinylatent.lab.thinking import think
from tinylatent.lab.thought_figure import FEW_BARS, MOST_BARS, REST, ROW, bars_of, draw_on, draw_thought

SHARES = [
    {"-3": {"oracle": 0.5, "model": 0.4}, "+3": {"oracle": 0.5, "model": 0.6}},
    {"+0": {"oracle": 1.0, "model": 0.75}, "+6": {"oracle": 0.0, "model": 0.25}},
]
THOUGHT = {
    "task": "mnns",
    "problem": {"digits": [3, 3]},
    "answer": 0,
    "steps": [{"step": 1, "shares": SHARES[0], "kl": 0.0204}, {"step": 2, "shares": SHARES[1], "kl": 0.2877}],
    "method": "CoT2",
    "model": 6,
    "right": False,
    "taught": True,
}


@pytest.fixture
def drawn():
    """drawn(thought) is the figure of it."""

    def draw(thought):
        figure = Figure(figsize=(9, 3), layout="constrained")
        draw_on(figure, json.loads(json.dumps(thought)))
        return figure

    return draw


def heights(axes):
    """The heights of the two kinds of bars in a panel."""
    return {bars.get_label(): [bar.get_height() for bar in bars] for bars in axes.containers}


def test_every_step_has_a_panel_with_a_pair_of_bars_for_each_state(drawn):
    figure = drawn(THOUGHT)
    assert [axes.get_title() for axes in figure.axes] == ["step 1\nKL 0.0204 nats", "step 2\nKL 0.2877 nats"]
    for axes, shares in zip(figure.axes, SHARES, strict=True):
        assert [text.get_text() for text in axes.get_xticklabels()] == [*shares]
        assert heights(axes) == {who: [share[who] for share in shares.values()] for who in ("oracle", "model")}
        wide, narrow = (bars[0].get_width() for bars in axes.containers)
        assert narrow < wide / 2
        assert axes.get_ylim()[0] == 0
    assert figure.axes[0].get_ylabel() == "share"


def test_title_and_legend_say_what_was_asked_and_who_answers(drawn):
    figure = drawn(THOUGHT)
    assert figure.get_suptitle() == "mnns: digits 3 3\nanswer 0, CoT2 says 6: wrong"
    assert [text.get_text() for text in figure.legends[0].texts] == ["exact frontier", "CoT2"]
    figure = drawn({**THOUGHT, "right": True, "taught": False})
    assert figure.get_suptitle().endswith("says 6: right")
    assert figure.legends[0].texts[1].get_text() == "CoT2, whose steps name no states"


def test_pale_and_dark_differ_in_black_and_white(drawn):
    colours = [bars[0].get_facecolor() for bars in drawn(THOUGHT).axes[0].containers]
    pale, dark = (0.3 * red + 0.59 * green + 0.11 * blue for red, green, blue, _ in colours)
    assert pale - dark > 0.3


@pytest.mark.parametrize("name", TASKS)
def test_the_frontier_of_any_task_is_drawn_without_a_model(name, drawn):
    task = TASKS[name]()
    row = task.problems(1, 3)[0]
    thought = think(task, row).to_json()
    figure = drawn(thought)
    assert len(figure.axes) == len(thought["steps"])
    for axes, step in zip(figure.axes, thought["steps"], strict=True):
        assert [*heights(axes)] == ["oracle"]
        assert sum(heights(axes)["oracle"]) == pytest.approx(sum(each["oracle"] for each in step["shares"].values()))
        assert axes.get_title() == f"step {step['step']}"
    assert [text.get_text() for text in figure.legends[0].texts] == ["exact frontier"]


def test_a_step_that_the_model_skips_has_the_oracles_bars_alone(drawn):
    """Methods without steps answer at once: only the last panel is theirs."""
    first = {state: {"oracle": share["oracle"]} for state, share in SHARES[0].items()}
    figure = drawn({**THOUGHT, "steps": [{"step": 1, "shares": first}, THOUGHT["steps"][1]]})
    assert [[*heights(axes)] for axes in figure.axes] == [["oracle"], ["oracle", "model"]]
    assert figure.axes[0].get_title() == "step 1"
    assert [text.get_text() for text in figure.legends[0].texts] == ["exact frontier", "CoT2"]


def test_small_shares_are_added_up_in_a_last_bar():
    shares = {str(i): {"oracle": 0.0, "model": 0.01} for i in range(30)}
    shares |= {"x": {"oracle": 0.6, "model": 0.0}, "y": {"oracle": 0.4, "model": 0.7}}
    found = bars_of(shares)
    assert [*found][-3:] == ["x", "y", REST]
    assert len(found) == MOST_BARS + 1
    for who in ("oracle", "model"):
        assert sum(each[who] for each in found.values()) == pytest.approx(1.0)
    assert bars_of(SHARES[0]) == SHARES[0]
    assert len(bars_of(shares, FEW_BARS)) == FEW_BARS + 1


@pytest.mark.slow
def test_many_steps_stand_in_rows_of_equally_wide_bars(drawn):
    wide = {str(i): {"oracle": 0.1, "model": 0.1} for i in range(10)}
    figure = drawn({**THOUGHT, "steps": [{"step": t, "shares": wide, "kl": 0.0} for t in range(1, 6)]})
    rows = {strip: strip.axes for strip in figure.subfigs}
    assert [len(axes) for axes in rows.values()] == [2, 2, 1]
    assert ROW // 11 == 2
    labelled = [axes.get_ylabel() for axes in figure.axes]
    assert labelled == ["share", "", "share", "", "share"]


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml"), ("PNG", b"\x89PNG")]
)
def test_the_suffix_says_the_format_and_equal_thoughts_give_equal_files(suffix, start, tmp_path):
    path, again = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    draw_thought(THOUGHT, path)
    draw_thought(json.loads(json.dumps(THOUGHT)), again)
    assert path.read_bytes().startswith(start)
    assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("name", ["a", "a.jpg", "png", ".png"])
def test_another_suffix_is_refused_before_anything_is_written(name, tmp_path):
    with pytest.raises(ValueError, match=r"names no format of figures: expected a file that ends in \.png, \.pdf or"):
        draw_thought(THOUGHT, tmp_path / name)
    assert [*tmp_path.iterdir()] == []
