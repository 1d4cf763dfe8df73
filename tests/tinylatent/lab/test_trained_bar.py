"""The bar of a run: it begins where training does, and shows no loss that there is not."""

import math

import pytest
from tinylatent_tasks import MNNS

from tinylatent.core.seeds import Seeds
from tinylatent.lab import trained
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import train
from tinylatent.methods import Direct
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

pytestmark = pytest.mark.usefixtures("unchecked")
RUN = Experiment(
    MNNS(2, 1, 4), Direct(), ModelConfig(8, 1, 1), Training(steps=6, batch_size=4, log_every=2, save_every=2), Seeds()
)


class Bar:
    """What a bar was told."""

    def __init__(self, total, initial, **how):
        self.total, self.initial, self.n, self.said = total, initial, initial, []
        self.disable = False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.said.append("closed")

    def set_postfix_str(self, text, refresh):
        self.said.append(text)

    def update(self, steps):
        self.n += steps


@pytest.fixture
def bars(monkeypatch):
    """Every bar that is made."""
    made = []
    monkeypatch.setattr(trained, "tqdm", lambda **options: made.append(Bar(**options)) or made[-1])
    return made


@pytest.mark.parametrize("before", [0, 4, 6])
def test_a_bar_begins_where_training_does(tmp_path, bars, before):
    """At its pace, steps of an earlier sitting do not count; a finished run has no loss to show."""

    def stop(step, loss):
        if step == 6:  # which is before its checkpoint is saved
            raise KeyboardInterrupt

    folder = tmp_path / "run"
    if before == 4:
        with pytest.raises(KeyboardInterrupt):
            train(RUN, folder, on_progress=stop, say=lambda text: None)
    elif before == 6:
        train(RUN, folder, say=lambda text: None)
    trained.done(RUN, folder, "cpu")
    (bar,) = bars
    assert (bar.total, bar.initial, bar.n) == (6, before, 6)
    assert len(bar.said) == (6 - before) // 2 + 1
    assert bar.said[-1] == "closed"
    assert not any(str(math.nan) in text for text in bar.said)
