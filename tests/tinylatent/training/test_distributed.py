"""Two processes that talk by gloo train what one trains: gradients, weights, metrics; and one goes on from two."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tinylatent_tasks import MNNS

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import train
from tinylatent.methods import CTRLS, GRPO, Coconut, CoT2
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.checkpoints import find_checkpoint, load_weights, read_metrics
from tinylatent.training.config import Training
from tinylatent.training.distributed import Together, joined

TASK, CONFIG = MNNS(digits=3, high=4), ModelConfig(16, 2, 2)
RECIPE = Training(
    steps=4, batch_size=8, micro_batch=2, learning_rate=1e-2, log_every=1, save_every=2, validate=6,
    weight_decay=0.1,
)  # fmt: skip
CLIPPED = {"coconut": 0.5}
"""The largest norm of the gradient: others are not clipped, since clipping hides a factor."""
METHODS = {"csft": CoT2(), "coconut": Coconut(stages=1), "grpo": GRPO(samples=2, group=4, kl=0.1, updates=2)}
SPREADS = ("ddp", "fsdp")
CLOSE = {"rtol": 1e-6, "atol": 1e-8}
SCRIPT = Path(__file__).with_name("together.py")
ROOT = Path(__file__).resolve().parents[3]


def start(folder, spread, count, steps=0):
    """Runs so many processes to their end; with `steps` they are interrupted after as many."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    usual = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT}/tests", "GLOO_SOCKET_IFNAME": "lo"}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    words = [sys.executable, str(SCRIPT), str(folder), spread, str(steps)]
    running = [
        subprocess.Popen(words, env={**usual, **where, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(count)
    ]
    for each in running:
        _, said = each.communicate(timeout=600)  # one that waits for another would wait forever
        assert each.returncode == 0, said


def weights_in(folder, method):
    """The weights of a run's newest checkpoint, read by one process; and its metrics but for the pace."""
    model = Experiment(TASK, method, CONFIG, RECIPE, Seeds.all(1)).fresh().double()
    load_weights(find_checkpoint(folder), model)
    lines = [{name: value for name, value in line.items() if name != "problems_per_s"} for line in read_metrics(folder)]
    return model.state_dict(), lines


@pytest.fixture(scope="module", params=METHODS)
def given(request, tmp_path_factory):
    """A folder with what is to be trained, and what one process makes of it."""
    method, folder = METHODS[request.param], tmp_path_factory.mktemp(request.param)
    recipe = replace(RECIPE, clip_norm=CLIPPED.get(request.param))
    torch.save((TASK, method, CONFIG, recipe), folder / "given")
    start(folder, "alone", 1)
    return folder, method


@pytest.mark.slow
@pytest.mark.parametrize("spread", SPREADS)
def test_two_processes_do_what_one_does_and_one_goes_on_from_what_they_have_saved(given, spread):
    """Gradients of the first step, weights after the last, and every line of metrics; two make half of the steps."""
    folder, method = given
    start(folder, spread, 2, steps=3)
    wanted, found = torch.load(folder / "gradients-alone"), torch.load(folder / f"gradients-{spread}")
    assert max(float(gradient.abs().max()) for gradient in wanted.values()) > 1e-3
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, **CLOSE)
    assert find_checkpoint(folder / f"run-{spread}").step == 2
    start(folder, spread, 1)
    (weights, lines), (ours, told) = (weights_in(folder / f"run-{each}", method) for each in ("alone", spread))
    for name, tensor in weights.items():
        torch.testing.assert_close(ours[name], tensor, **CLOSE)
    assert len(lines) == len(told) == RECIPE.steps
    for one, both in zip(lines, told, strict=True):
        assert one.keys() == both.keys()
        for name, value in one.items():
            assert both[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_a_team_needs_torchrun():
    with pytest.raises(ValueError, match="spread as ddp, but this is one process: start it by torchrun"), joined("ddp"):
        pass


def test_what_cannot_be_spread_is_refused(monkeypatch):
    from tinylatent.training import distributed

    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 3)
    team = distributed.Together("fsdp")
    with pytest.raises(ValueError, match="ctrls fits something to data when a stage begins: spread it as ddp"):
        team.check(CTRLS())
    team.check(CoT2())
    distributed.Together("ddp").check(CTRLS())
    with pytest.raises(ValueError, match="half precision is for fsdp"):
        distributed.Together("ddp", half=True)
    run = Experiment(TASK, CoT2(), CONFIG, RECIPE)
    examples = run.method.supervise(run.speaker("train")).rows(slice(0, 8))
    with pytest.raises(ValueError, match="a batch of 8 for 3 processes: expected"):
        team.share(examples, None)


def test_several_do_not_go_on_from_what_one_alone_has_written(tmp_path):
    """Its checkpoint is no distributed one; the reverse goes."""
    run = Experiment(TASK, CoT2(), CONFIG, replace(RECIPE, steps=2), Seeds.all(1))
    train(run, tmp_path)
    with pytest.raises(ValueError, match="was written by a process alone: go on without --spread, or start another"):
        Together.restore(None, find_checkpoint(tmp_path), run.fresh(), None)
