"""How far runs are is told in words where there is no bar."""

import time

from tinylatent.lab import trained, words
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.words import Words


def test_where_there_is_no_bar_it_is_told_in_words_how_far_the_runs_are(monkeypatch, capsys):
    """At the start, after ten seconds, and then every minute, with the time that is left at the pace so far."""
    now = iter([0.0, 1.0, 12.0, 30.0, 75.0, 76.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    told = Words(1000, "3 of 4 runs to do")
    for done in (100, 200, 400, 850, 1000):
        told.tell(done)
    assert capsys.readouterr().err.splitlines() == [
        "3 of 4 runs to do, 1,000 steps in all; how far they are is told every minute",
        "  200 of 1,000 steps, about 2 minutes left",
        "  850 of 1,000 steps, about a minute left",
    ]


def test_one_run_is_told_in_words_too(monkeypatch, capsys):
    """Without a line at the start: a short run says nothing."""
    monkeypatch.setattr(words, "FIRST_WORD_S", 0)
    with trained._bar(Experiment()) as on_progress:
        for step in (0, 100, 200):
            on_progress(step, 1.0)
    assert capsys.readouterr().err == "  0 of 9,000 steps\n"
