"""The launcher of a cluster: settings, packs, what is lost; with processes of this machine, and with a SLURM on it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tinylatent_tasks import MNNS

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.launchers import Job, launcher_named
from tinylatent.lab.launchers import slurm as launcher
from tinylatent.lab.launchers.launcher import RESULT
from tinylatent.lab.launchers.local import Local
from tinylatent.lab.launchers.slurm import ERROR, Arrays, Cluster, Pack, Slurm, settings
from tinylatent.lab.study import measure_all
from tinylatent.methods import CoT2, DiscreteCoT
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

SHORT = Training(steps=12, batch_size=8, log_every=4, save_every=4, validate=0)
SCRIPT = Path(__file__).parents[2] / "one_machine_slurm.sh"


def runs(count=3, steps=12):
    """Short runs, of which the last starts from another method's."""
    made = [
        Experiment(MNNS(digits=2, high=6), CoT2(), ModelConfig(8, 1, 1), replace(SHORT, steps=steps), Seeds.all(seed))
        for seed in range(count)
    ]
    return [*made[:-1], replace(made[-1], start=replace(made[-1], method=DiscreteCoT()))]


def told(records):
    """What records say, whoever measured them: all but times and machines."""
    found = {}
    for record in records:
        values = record.to_json()
        for name in ("environments", "metrics"):
            values.pop(name, None)
        for judged in (values, values.get("before") or {}):
            for evaluation in judged["evaluations"].values() if judged else ():
                evaluation.pop("problems_per_s")
        values["cost"].pop("training_seconds")
        found[record.id] = values
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Settings


def test_settings_come_from_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert settings() == Cluster()
    (tmp_path / "slurm.toml").write_text('partition = "gpu"\nminutes = 30\nsetup = ["module load cuda"]\n')
    assert settings() == Cluster(partition="gpu", minutes=30, setup=("module load cuda",))
    assert launcher_named("slurm", 16) == Slurm(16, Cluster(partition="gpu", minutes=30, setup=("module load cuda",)))
    (tmp_path / "other.toml").write_text('where = "local"\n')
    monkeypatch.setenv(launcher.VARIABLE, "other.toml")
    assert settings().where == "local"
    monkeypatch.setenv(launcher.VARIABLE, "none.toml")
    with pytest.raises(ValueError, match=r"none\.toml, which TINYLATENT_SLURM names, is not there"):
        settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("minutes = 2", "minutes is 2: expected 5 or more"),
        ("cpus = 0", "cpus is 0: expected 1 or more"),
        ('minutes = "an hour"', r"slurm.toml.minutes is 'an hour'"),
        ("speed = 9", "unknown setting 'speed'"),
        ("minutes", "slurm.toml: "),
        ('where = "moon"', "slurm.toml.where is 'moon'"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, monkeypatch, text, said, unchecked):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slurm.toml").write_text(text)
    with pytest.raises(ValueError, match=said):
        settings()


def test_what_is_missing_is_said(monkeypatch):
    with pytest.raises(ValueError, match="workers is 0: expected at least 1"):
        Slurm(0)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="there is no SLURM here"):
        Slurm(1, Cluster()).executor()
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ImportError, match=r"needs the package submitit: pip install 'tinylatent\[slurm\]'"):
        Slurm(1, Cluster()).executor()


# ---------------------------------------------------------------------------------------------------------------------
# Packs


@pytest.mark.parametrize("at_once", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_pack_does_what_is_not_done_and_leaves_errors(tmp_path, at_once):
    good, done, bad = runs(1, 12)[0].start, runs(2)[0], replace(runs(2)[0], training=replace(SHORT, batch_size=999))
    jobs = [Job(run, tmp_path / run.identity) for run in (good, done, bad)]
    jobs[1].folder.mkdir()
    (jobs[1].folder / RESULT).write_text("as it was")
    pack = Pack(jobs, at_once)
    pack()
    assert jobs[0].record() is not None
    assert (jobs[1].folder / RESULT).read_text() == "as it was"
    assert "a batch of 999 from" in str(launcher._left_error(jobs[2]))
    assert pack.checkpoint().function is pack


class Task:
    """A task that has left the queue."""

    job_id = "7_0"

    def done(self):
        return True

    def cancel(self, check=True):
        pass

    def wait(self):
        pass


class Executor:
    """Counts what is submitted, and loses it."""

    def __init__(self):
        self.submitted = []

    def batch(self):
        return __import__("contextlib").nullcontext()

    def submit(self, pack):
        self.submitted.append(len(pack.jobs))
        return Task()


def test_what_is_lost_is_submitted_again_a_few_times(tmp_path, monkeypatch):
    executor = Executor()
    monkeypatch.setattr(Slurm, "executor", lambda self: executor)
    monkeypatch.setattr(Arrays, "_pause", -1.0)
    jobs = [Job(run, tmp_path / run.identity) for run in runs(5)]
    with Slurm(2, Cluster(where="local", packed=2, retries=2)).submit(jobs) as submitted:
        assert executor.submitted == [2, 2, 1]
        jobs[0].folder.mkdir()
        (jobs[0].folder / RESULT).write_text("{}")
        assert submitted.ended(0) == [(jobs[0], None)]
        assert submitted.ended(0) == []
        assert executor.submitted == [2, 2, 1, 2, 2]
        jobs[1].folder.mkdir()
        (jobs[1].folder / ERROR).write_text('{"kind": "ValueError", "said": "why"}')
        ((job, error),) = submitted.ended(0)
        assert (job, str(error)) == (jobs[1], "why")
        assert submitted.ended(0) == []
        failed = submitted.ended(0)
        assert [job for job, _ in failed] == jobs[2:]
        assert all("left the queue 3 times without a result" in str(error) for _, error in failed)
        assert submitted.ended(0) == []


# ---------------------------------------------------------------------------------------------------------------------
# Whole studies


@pytest.mark.slow
def test_processes_of_this_machine_do_what_the_local_launcher_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = Slurm(2, Cluster(where="local", packed=2))
    found = measure_all(runs(), tmp_path / "a", own)
    assert told(found) == told(measure_all(runs(), tmp_path / "b", Local(1)))
    bad = replace(runs(2)[0], training=replace(SHORT, learning_rate=1e30, warmup=0.0))
    with pytest.raises(ValueError, match=r"1 of 1 runs failed: .*diverged"):
        measure_all([bad], tmp_path / "a", own)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A SLURM of this machine; its jobs run in a folder of their own."""
    if os.geteuid() != 0 or not all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged")):
        pytest.skip("there is no SLURM to start here: it needs root, and the packages slurm-wlm and munge")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    folder = tmp_path / "cluster"
    folder.mkdir()
    subprocess.run([str(SCRIPT), str(folder), str(port)], check=True)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("slurmd.pid", "ctld.pid", "munge/pid"):
        os.kill(int((folder / name).read_text()), signal.SIGTERM)


def asked(*words):
    """What a command of SLURM prints."""
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


@pytest.mark.slow
def test_a_study_ends_as_it_does_here_though_a_job_is_pre_empted_and_one_is_killed(slurm, tmp_path, monkeypatch):
    """One task is warned and put into the queue again, one is killed for good; both are in the middle of a run."""
    monkeypatch.setattr(launcher, "ASKED_S", 1.0)
    grid = runs(4, steps=600)
    store, over, harmed = tmp_path / "a", threading.Event(), []

    def harm():
        """Pre-empts the first task that has trained a while, kills the second; no one waits two minutes in a queue."""
        while not over.wait(0.2):
            running = asked("squeue", "-h", "-r", "-t", "RUNNING", "-o", "%i").split()
            busy = sum(1 for path in store.glob("*/metrics.jsonl") if path.stat().st_size > 300)
            if running and busy > len(harmed) and len(harmed) < 2:
                task = sorted(running)[0]
                if not harmed:
                    asked("scancel", "--signal=USR2", task)
                elif task not in harmed:
                    asked("scancel", task)
                else:
                    continue
                harmed.append(task)
            for line in asked("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i").split():
                asked("scontrol", "update", f"JobId={line}", "StartTime=now")

    thread = threading.Thread(target=harm, daemon=True)
    thread.start()
    try:
        found = measure_all(grid, store, Slurm(2, Cluster(packed=1, minutes=5, memory_gb=1.0)))
    finally:
        over.set()
        thread.join()
    assert len(harmed) == 2
    logs = "".join(path.read_text() for path in (tmp_path / "slurm").rglob("*.err"))
    logs += "".join(path.read_text() for path in (tmp_path / "slurm").rglob("*.out"))
    assert "resumed at step" in logs
    assert told(found) == told(measure_all(grid, tmp_path / "b", Local(2)))
