"""Launchers do jobs: all of them or none, their records left in their folders, progress read from there."""

import multiprocessing
import os
import subprocess
import sys

import pytest
from counting import Counting, Here
from locks import locked_elsewhere

from tinylatent.core.files import DamagedError, read_json, write_json
from tinylatent.lab import study as studies
from tinylatent.lab.launchers import LAUNCHERS, Job
from tinylatent.lab.launchers.local import Local
from tinylatent.lab.study import Study, reproduce
from tinylatent.lab.tables import Table


def drained(submitted, count):
    """The jobs as they ended, all of them, with what they raised."""
    ended = []
    while len(ended) < count:
        ended += submitted.ended(60.0)
    return ended


# ---------------------------------------------------------------------------------------------------------------------
# Jobs


def test_a_job_leaves_its_record(tmp_path):
    job = Job(Counting(4), tmp_path / "run")
    assert (job.record(), job.done) == (None, 0)
    job.do()
    assert (job.record().counted, job.done) == (4, 4)
    assert read_json(tmp_path / "run" / "result.json")["id"] == Counting(4).identity


def test_a_result_that_was_changed_by_hand_is_no_record(tmp_path):
    job = Job(Counting(4), tmp_path / "run")
    job.do()
    path = tmp_path / "run" / "result.json"
    before = read_json(path)
    write_json(path, {**before, "counted": 5})
    with pytest.raises(DamagedError, match=r"result\.json was changed after it was written: restore it"):
        job.record()
    write_json(path, {name: value for name, value in before.items() if name != "seal"})
    assert job.record().counted == 4, "as earlier versions wrote it"


def test_a_folder_that_another_has_just_taken_is_left_to_it(tmp_path):
    """It holds the other's lock and nothing else yet."""
    job = Job(Counting(4), tmp_path / "run")
    with locked_elsewhere(job.folder):
        with pytest.raises(ValueError, match="in use by another process"):
            job.do()
        assert (job.folder / ".lock").exists()


# ---------------------------------------------------------------------------------------------------------------------
# This machine's


def test_the_local_launcher_is_registered():
    assert LAUNCHERS["local"] is Local


@pytest.mark.slow
def test_jobs_are_done_by_other_processes(tmp_path):
    jobs = [Job(Counting(number), tmp_path / str(number)) for number in (1, 2, 3)]
    with Local(2).submit(jobs) as submitted:
        ended = drained(submitted, 3)
        assert submitted.ended(0.0) == []
    assert sorted((job.run.up_to, error) for job, error in ended) == [(1, None), (2, None), (3, None)]
    assert [job.record().counted for job in jobs] == [1, 2, 3]
    assert [job.done for job in jobs] == [1, 2, 3]


@pytest.mark.slow
def test_what_a_job_raises_is_passed_on_and_stops_the_others(tmp_path):
    """The one that fails does so when the other is under way, which would take a minute more."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    waiting = Job(Counting(1, "wait", str(gate)), tmp_path / "waiting")
    failing = Job(Counting(2, "raise", str(gate)), tmp_path / "failing")

    def first_ended():
        with Local(2).submit([waiting, failing]) as submitted:
            ((job, error),) = submitted.ended(60.0)
            assert job == failing
            raise error

    with pytest.raises(ValueError, match="cannot count beyond 2"):
        first_ended()
    for process in multiprocessing.active_children():
        process.join(30)  # or the pool's own thread sees its end first
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)
    assert (waiting.done, failing.done) == (1, 2)
    assert not (waiting.folder / "waited").exists()
    assert waiting.record() is failing.record() is None


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers_are_refused(workers):
    with pytest.raises(ValueError, match=f"workers is {workers}: expected at least 1; try 2"):
        Local(workers)


ORPHAN = """
import sys
from dataclasses import dataclass
from pathlib import Path
sys.path[:0] = {path}
from counting import Counting, Here
from locks import locked_elsewhere
from tinylatent.lab.launchers import Job
from tinylatent.lab.launchers.local import Local

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with Local(1).submit([Job(Counting(1, "wait", str(folder / "gate")), folder / "run")]) as submitted:
        submitted.ended(60)
"""


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(tmp_path):
    """The pipe closes only when every process that holds it has ended, so reading on waits for the worker."""
    os.mkfifo(tmp_path / "gate")
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN.replace("{path}", repr(sys.path)))
    with subprocess.Popen([sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE) as parent:
        (tmp_path / "gate").open().close()  # returns when the worker has come as far
        parent.kill()
        assert parent.stdout.read() == b""
    assert not (tmp_path / "run" / "waited").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Any other


COUNTS = Study(
    "counts",
    "How far?",
    lambda profile: [Counting(3), Counting(5)],
    lambda records: [Table("Counted", {"to": "d"}, [{"to": record.counted} for record in records])],
    lambda records, path: path.touch(),
    lambda profile, records: [Counting(records[-1].counted + 1)] if len(records) < 4 else [],
    kind=Counting,
)


def test_a_study_is_reproduced_by_any_launcher(tmp_path):
    """Each round is handed over at once, and finished runs are not handed over again."""
    launcher = Here()
    outcome = reproduce(COUNTS, "full", tmp_path, launcher)
    assert outcome.files["table.csv"].read_text() == "to\n3\n5\n6\n7\n"
    assert [[job.run.up_to for job in jobs] for jobs in launcher.submitted] == [[3, 5], [6], [7]]
    reproduce(COUNTS, "full", tmp_path, launcher)
    assert [[job.run.up_to for job in jobs] for jobs in launcher.submitted] == [[3, 5], [6], [7]]


def test_progress_is_read_from_the_metrics_of_the_runs(tmp_path, monkeypatch):
    """Also of those under way: here the other job is half done when the first ends."""
    seen = []

    class Bar:
        disable = False

        n = 0

        def __init__(self, total, **options):
            seen.append(total)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def write(self, text, file):
            pass

        def update(self, units):
            self.n += units
            seen.append(self.n)

    class Half(Here):
        def ended(self, timeout):
            for job in self.waiting[:-1]:
                job.folder.mkdir(exist_ok=True, parents=True)
                (job.folder / "metrics.jsonl").write_text('{"step": 2}\n')
            return super().ended(timeout)

    monkeypatch.setattr(studies, "tqdm", Bar)
    reproduce(Study(**{**vars(COUNTS), "after": lambda profile, records: ()}), "full", tmp_path, Half())
    assert seen == [8, 7, 8]
