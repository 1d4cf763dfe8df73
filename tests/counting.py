"""A run that trains nothing: it counts. So launchers, the store and studies can be asked about runs in no time."""

import contextlib
import os
import threading
from dataclasses import dataclass
from typing import ClassVar

from tinylatent.lab.run import Record, Run, new_record, note_progress


class Counted(Record, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """What counting left."""

    counted: int


@dataclass(frozen=True)
class Counting(Run):
    """Counts, one unit of work after the other."""

    record = Counted
    name: ClassVar[str] = "counting"

    up_to: int = 3
    then: str = ""
    """What follows: "raise", or "wait" for a minute; each begins when the other has come as far."""
    gate: str = ""
    """The named pipe where the two meet."""

    @property
    def work(self):
        return self.up_to

    @property
    def label(self):
        return f"counting to {self.up_to}"

    def to_json(self):
        return {"up_to": self.up_to}

    @classmethod
    def from_json(cls, values):
        return cls(**values)

    def measure(self, folder, device="cpu", on_progress=None, start=None):
        for number in range(1, self.up_to + 1):
            note_progress(folder, number, on_progress)
        if self.then == "raise":
            open(self.gate).close()  # returns when the other end is opened
            raise ValueError(f"cannot count beyond {self.up_to}")
        if self.then == "wait":
            open(self.gate, "w").close()
            threading.Event().wait(60)
            (folder / "waited").touch()  # nobody should have let it come this far: whoever waits for it must not hang
            os._exit(1)
        return new_record(self, counted=self.up_to)


class Lost(Counting):
    """Makes a mistake that is no user's."""

    def measure(self, folder, device="cpu", on_progress=None, start=None):
        return {}["no_such_task"]


class Here:
    """A launcher that does jobs in this process when it is asked what has ended; it remembers them."""

    def __init__(self):
        self.submitted, self.done = [], []

    @contextlib.contextmanager
    def submit(self, jobs):
        self.submitted.append([*jobs])
        self.waiting = [*jobs]
        yield self

    def ended(self, timeout):
        job = self.waiting.pop()  # in another order than they were submitted
        try:
            job.do()
        except ValueError as error:
            return [(job, error)]
        self.done.append(job)
        return [(job, None)]
