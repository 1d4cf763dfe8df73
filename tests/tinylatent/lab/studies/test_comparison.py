"""The table of methods side by side: means, controls, who is held against whom, what is published."""

from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from records import record_of

from tinylatent.lab.findings import HOLDS
from tinylatent.lab.recipes import recipe
from tinylatent.lab.studies.comparison import comparison, draw_accuracies
from tinylatent.methods import GRPO

PERCENTS = {"direct": 45, "pause": 40, "discrete": 80, "coconut": 90, "cot2": 94}


def runs(*names, where="mnns"):
    """Three runs of each method, as right as PERCENTS says."""
    return [record_of(recipe(f"{where}/{name}", seed), PERCENTS[name]) for name in names for seed in range(3)]


def test_every_method_has_a_row_and_latent_ones_a_row_for_each_control():
    table = comparison(runs(*PERCENTS), "Title", "mnns")
    rows = {row["method"]: row for row in table.rows}
    controls = [f"{name}, {control}" for name in ("Coconut", "CoT2") for control in ("noise", "shuffled", "zero")]
    assert list(rows) == ["direct", "pause", "discrete CoT", "Coconut", *controls[:3], "CoT2", *controls[3:]]
    assert [rows[name]["accuracy"] for name in ("discrete CoT", "CoT2, noise")] == pytest.approx([80, 20])
    assert [rows["CoT2"][name] for name in ("seeds", "steps", "kflop", "norm")] == [3, 4, 4.0, 2.0]
    assert (rows["CoT2"]["published"], rows["pause"]["published"]) == (98.94, None)
    assert "a key being a multiset of digits" in table.legend


def test_latent_methods_are_held_against_all_before_them_and_against_their_controls():
    found = comparison(runs(*PERCENTS), "Title", "mnns").findings
    better = [each.claim.split(" is more often right than ") for each in found if each.family == "methods"]
    before_coconut = ["direct", "pause", "discrete CoT"]
    assert better == [
        *(["CoT2", other] for other in (*before_coconut, "Coconut")),
        *(["Coconut", other] for other in before_coconut),
    ]
    assert [each.claim for each in found if each.family == "controls"] == [
        "Coconut needs its own latents",
        "CoT2 needs its own latents",
    ]
    assert {each.verdict for each in found} == {HOLDS}
    assert found[2].estimate.value == pytest.approx(0.14)


def test_a_latent_method_that_nobody_foresaw_is_held_against_all(monkeypatch):
    monkeypatch.setattr(GRPO, "compared", True)
    start = recipe("mnns/cot2")
    newcomer = record_of(replace(start, method=GRPO(samples=3), start=start), 50)
    table = comparison([record_of(start, 94), newcomer], "Title", "mnns")
    assert "grpo is more often right than CoT2" in [each.claim for each in table.findings]


def test_only_what_was_measured_is_set_beside_published_values():
    table = comparison(runs("direct", "discrete"), "Title", "mnns")
    assert [remark.split(":")[0] for remark in table.remarks[:-1]] == ["direct", "discrete CoT"]
    assert "majority baseline" in table.remarks[-1]
    assert "scores 40.00 %" in table.remarks[-1]
    nothing = comparison(runs("direct", where="subset-sum"), "Title", "subset-sum")
    assert "published" not in nothing.columns
    assert "published" not in nothing.legend
    assert len(nothing.remarks) == 1


def test_the_figure_shows_intervals_from_top_to_bottom():
    axes = Figure().subplots()
    draw_accuracies(axes, runs("direct", "cot2"), "mnns")
    labels = [each.get_text() for each in axes.get_yticklabels()]
    assert labels == ["zero latents", "shuffled latents", "noise latents", "CoT2", "direct"]
    diamonds = [each.get_xdata()[0] for each in axes.lines if each.get_marker() == "D" and len(each.get_xdata())]
    assert sorted(diamonds) == [68.35, 98.94]
