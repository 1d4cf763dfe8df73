"""A run killed at any moment and started again ends in the same weights, bit for bit, and the same metrics.

First for real: a subprocess is killed with SIGKILL again and again, before the first checkpoint, amid training, half
way through saving and half way through removing the old checkpoint. Then in one process, where an exception stops the
run at chosen steps, for every registered method.
"""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tinylatent_tasks import MNNS

import tinylatent
from tinylatent.core.files import DamagedError, read_lines, write_json
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import train
from tinylatent.methods import GRPO, METHODS, CoT2, PauseTokens
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import ParameterGroup
from tinylatent.training import team
from tinylatent.training.checkpoints import (
    MANIFEST,
    METRICS,
    OPTIMIZER,
    WEIGHTS,
    find_checkpoint,
    load_weights,
    save_checkpoint,
)
from tinylatent.training.config import Training
from tinylatent.training.loop import STAGES, fit

MODEL = ModelConfig(16, 1, 2)


@dataclass(frozen=True)
class Thawing(PauseTokens):
    """Trains the pause alone, then the backbone alone, then both, each at its own rates."""

    name = "thawing"

    def stage_starts(self, steps):
        return (0, 5, 8)

    def parameter_groups(self, stage):
        return (
            (ParameterGroup(("backbone",), frozen=True),),
            (ParameterGroup(("parts",), frozen=True), ParameterGroup(("backbone.blocks",), learning_rate=0.002)),
            (ParameterGroup(("parts",), learning_rate=0.03, weight_decay=0.0),),
        )[stage]


@dataclass(frozen=True)
class Setting:
    """A method, with a model and a recipe that are its own."""

    method: object
    model: ModelConfig = MODEL
    recipe: tuple = ()


VARIANTS = {
    **{name: Setting(kind()) for name, kind in METHODS.items()},
    "cot2-self": Setting(CoT2(prefix="self")),
    "cot2-switch": Setting(CoT2(prefix="teacher-then-self")),
    "cot2-budget": Setting(CoT2(budget=2)),
    "cot2-dropout": Setting(CoT2(), ModelConfig(16, 2, 2, dropout=0.3), (("micro_batch", 3), ("clip_norm", 0.5))),
    "grpo-all": Setting(GRPO(samples=2, curriculum=(1,), updates=2, kl=0.1), recipe=(("micro_batch", 3),)),
    "grpo-dirichlet": Setting(GRPO(gamma=2.0)),
    "groups-that-change": Setting(Thawing()),
    "soap": Setting(CoT2(), recipe=(("optimizer", "soap"),)),
    "shampoo": Setting(CoT2(), recipe=(("optimizer", "shampoo"),)),
}


def experiment(method, model=MODEL, **recipe):
    """Eight or more training problems, positions for one digit more, a model that steps in a millisecond."""
    return Experiment(MNNS(2, 1, 4, capacity=3), method, model, Training(batch_size=4, learning_rate=0.01, **recipe))


def variant(name, **recipe):
    setting = VARIANTS[name]
    return experiment(setting.method, setting.model, **dict(setting.recipe), **recipe)


def quiet(text):
    pass


def fitted(whole, folder, on_progress=None, say=quiet):
    """The experiment's model, fitted in a folder that holds no configuration: its method need not be installed."""
    examples = whole.method.supervise(whole.speaker("train"))
    made = whole.fresh(), whole.method, examples, whole.training, whole.seeds
    spare = whole.task.positions - examples.slots - 1
    return fit(*made, spare=spare, folder=folder, on_progress=on_progress, say=say)


def lines(folder):
    """The metrics, less the timing."""
    records = read_lines(folder / METRICS)
    return [{name: value for name, value in record.items() if name != "problems_per_s"} for record in records]


def assert_same_run(folder, reference, whole=None, model=None):
    """Equal weights and optimizer, bit for bit, in all checkpoints, equal metrics; and the model is the checkpoint."""
    have, want = find_checkpoint(folder), find_checkpoint(reference)
    assert have.step == want.step
    for name in (WEIGHTS, OPTIMIZER):
        assert (have.folder / name).read_bytes() == (want.folder / name).read_bytes(), name
    assert lines(folder) == lines(reference)
    ends = [sorted(path.name for path in (each / STAGES).glob("*")) for each in (folder, reference)]
    assert ends[0] == ends[1]
    for stage in ends[0]:
        have, want = (find_checkpoint(each / STAGES / stage) for each in (folder, reference))
        assert have.step == want.step
        assert (have.folder / WEIGHTS).read_bytes() == (want.folder / WEIGHTS).read_bytes(), stage
    if model is not None:
        stored = whole.fresh()
        load_weights(find_checkpoint(folder), stored)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, stored.state_dict()[name]), name


# ---------------------------------------------------------------------------------------------------------------------
# Killed for real

CHILD = """
import os, shutil, signal, sys
from pathlib import Path

import torch

from tinylatent.core.files import DamagedError, read_json, read_lines, write_json
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import train

torch.set_num_threads(1)
folder, moment = Path(sys.argv[1]), sys.argv[2]
experiment = Experiment.from_json(read_json(Path(sys.argv[3])))


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def on_progress(step, loss):
    print(step, flush=True)
    if str(step) == moment:
        sys.stdin.read()  # no further: should the parent be slow, wait for its signal


if moment == "saving":
    Path.rename = die
if moment == "removing":
    shutil.rmtree = die
train(experiment, folder, on_progress=on_progress, say=print)
"""


def start(folder, written, state, after=None):
    """Runs the child until it dies at `moment`, or is killed at its line number `after`; returns its lines and code.

    A moment is "saving", "removing" or, lest the child outrun the parent, the step it may not pass.
    """
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), state, str(written)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(tinylatent.__file__).parents[1])},
        text=True,
    )
    with child:
        said = []
        for line in child.stdout:
            said.append(line.strip())
            if after is not None and len(said) == after:
                child.kill()
    return said, child.returncode


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_one_that_was_not(tmp_path):
    """Each start names the step it resumed from, so that no death is only imagined."""
    whole = experiment(CoT2(), steps=300, log_every=5, save_every=40)
    reference, folder, written = tmp_path / "reference", tmp_path / "run", tmp_path / "experiment.json"
    train(whole, reference, say=quiet)
    write_json(written, whole.to_json())

    said, code = start(folder, written, "35", after=3)
    assert (said[:3], code) == (["0", "5", "10"], -signal.SIGKILL)
    assert [record["step"] for record in lines(folder)][:2] == [5, 10]

    said, code = start(folder, written, "removing")
    assert code == -signal.SIGKILL
    kept = sorted(path.name for path in folder.glob("step-*"))
    assert len(kept) == 2, "the old checkpoint is still there"
    newest = int(kept[1].removeprefix("step-"))

    said, code = start(folder, written, "saving")
    assert code == -signal.SIGKILL
    assert f"resumed at step {newest}" in said[0]
    assert len(list(folder.glob(".step-*"))) == 1, "a checkpoint that was never named is left"

    said, code = start(folder, written, str(newest + 110), after=14)
    assert code == -signal.SIGKILL
    assert f"resumed at step {newest}, " in said[0]
    assert said[1:14] == [str(step) for step in range(newest, newest + 65, 5)]

    remarks = []
    model = train(whole, folder, say=remarks.append)
    assert int(remarks[0].split("resumed at step ")[1].split(",")[0]) >= newest + 40
    assert_same_run(folder, reference, whole, model)


# ---------------------------------------------------------------------------------------------------------------------
# Stopped in one process


class Stop(Exception):
    """The run ends here."""


def stop_at(step):
    """What stops a run once `step` steps are done."""

    def on_progress(done, loss):
        if done == step:
            raise Stop

    return on_progress


def run_until(whole, folder, step):
    with pytest.raises(Stop):
        fitted(whole, folder, stop_at(step))


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Uninterrupted runs, each made once."""
    made = {}

    def reference(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            fitted(variant(name, steps=12, log_every=1, save_every=4), made[name])
        return made[name]

    return reference


BEFORE_A_CHECKPOINT, AFTER = (0, 1, 4, 7, 8, 11, 12), 5
"""Before the first step, before the first checkpoint, just before and after others, before the last."""
SHARP = ("coconut", "cot2-dropout", "groups-that-change")
"""Those that keep most between steps and are quick."""


@pytest.mark.parametrize(
    ("name", "step"),
    [
        *(pytest.param(name, AFTER, marks=[pytest.mark.slow] * (name not in SHARP)) for name in VARIANTS),
        *(pytest.param("grpo-all", step, marks=pytest.mark.slow) for step in BEFORE_A_CHECKPOINT),
        *(("groups-that-change", step) for step in BEFORE_A_CHECKPOINT),
    ],
)
def test_a_run_stopped_at_a_step_ends_as_one_that_was_not(name, step, references, tmp_path):
    whole = variant(name, steps=12, log_every=1, save_every=4)
    run_until(whole, tmp_path, step)
    model = fitted(whole, tmp_path)
    assert_same_run(tmp_path, references(name), whole, model)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_stopped_at_every_second_step_ends_as_one_that_was_not(name, references, tmp_path):
    whole = variant(name, steps=12, log_every=1, save_every=1)
    for step in range(2, 12, 2):
        run_until(whole, tmp_path, step)
    fitted(whole, tmp_path)
    assert [record["loss"] for record in lines(tmp_path)] == [record["loss"] for record in lines(references(name))]
    want = find_checkpoint(references(name)).folder / WEIGHTS
    assert (find_checkpoint(tmp_path).folder / WEIGHTS).read_bytes() == want.read_bytes()


@pytest.mark.parametrize("name", ["cot2", pytest.param("grpo-all", marks=pytest.mark.slow)])
def test_a_run_stopped_between_a_checkpoint_and_the_next_line_writes_the_same_lines(name, tmp_path, monkeypatch):
    """Lines every third step, checkpoints every fourth: a checkpoint lies between two lines, which hold means."""
    whole = variant(name, steps=11, log_every=3, save_every=4)
    reference, folder = tmp_path / "reference", tmp_path / "run"
    fitted(whole, reference)

    def save_and_stop(folder, *args, **options):
        save_checkpoint(folder, *args, **options)
        if folder.parent.name != STAGES:
            raise Stop

    for step in (4, 8):
        monkeypatch.setattr(team, "save_checkpoint", save_and_stop)
        with pytest.raises(Stop):
            fitted(whole, folder)
        assert find_checkpoint(folder).step == step
    monkeypatch.undo()
    fitted(whole, folder)
    assert [record["step"] for record in lines(folder)] == [3, 6, 9, 11]
    assert_same_run(folder, reference)


def test_lines_after_the_checkpoint_are_written_once(tmp_path):
    """A half-written last line, as a kill may leave, is dropped with the whole ones after the checkpoint."""
    whole = experiment(CoT2(), steps=12, log_every=1, save_every=4)
    run_until(whole, tmp_path, 7)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 8, "lo')
    remarks = []
    fitted(whole, tmp_path, say=remarks.append)
    assert [record["step"] for record in lines(tmp_path)] == list(range(1, 13))
    assert len(remarks) == 1
    assert "resumed at step 4, " in remarks[0]
    assert "bytes of later metrics dropped" in remarks[0]


def test_a_finished_run_is_not_trained_further(tmp_path):
    whole = experiment(CoT2(), steps=6, log_every=2, save_every=4)
    model = train(whole, tmp_path, say=quiet)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ticks, remarks = [], []
    again = train(whole, tmp_path, on_progress=lambda step, loss: ticks.append(step), say=remarks.append)
    assert (ticks, remarks) == ([6], [])
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_a_run_killed_before_its_configuration_was_whole_starts_over(tmp_path):
    """A temporary file is all the first kill left: the folder still counts as empty."""
    (tmp_path / ".config.json.abc.tmp").write_text('{"task": ')
    train(experiment(CoT2(), steps=2), tmp_path, say=quiet)
    assert find_checkpoint(tmp_path).step == 2


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, MANIFEST, METRICS, "config.json"])
def test_a_damaged_run_is_not_resumed(tmp_path, name):
    whole = experiment(CoT2(), steps=12, log_every=1, save_every=4)
    with pytest.raises(Stop):
        train(whole, tmp_path, on_progress=stop_at(7), say=quiet)
    (path,) = tmp_path.rglob(name)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DamagedError, match=name.replace(".", r"\.")):
        train(whole, tmp_path, say=quiet)
