"""The launcher of this machine: a pool of processes with one thread each, which ends when we end, however that is."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch

from tinylatent.lab.launchers.launcher import Job


@dataclass(frozen=True)
class Local:
    """Processes of this machine."""

    workers: int = 2
    """How many at a time."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}: expected at least 1; try 2")

    @contextlib.contextmanager
    def submit(self, jobs: Sequence[Job]) -> Iterator["Futures"]:
        """Starts the jobs, as many at a time as there are workers."""
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(self.workers, len(jobs)), context, _start_worker)
        with _children_ignore_interrupts():
            futures = Futures({pool.submit(Job.do, job): job for job in jobs})
        with pool:
            try:
                yield futures
            except BaseException:
                workers = [*(pool._processes or {}).values()]  # of this pool alone
                pool.shutdown(wait=False, cancel_futures=True)
                for process in workers:
                    process.terminate()
                raise


class Futures:
    """Jobs in a pool."""

    def __init__(self, waiting: dict[Future[Any], Job]):
        self.waiting = waiting

    def ended(self, timeout: float) -> list[tuple[Job, Exception | None]]:
        """The jobs that ended since the last call, with what they raised.

        Raises:
            BrokenProcessPool: a worker was killed, so that no job of the pool can end.
        """
        finished, _ = wait(self.waiting, timeout, FIRST_COMPLETED)
        found: list[tuple[Job, Exception | None]] = []
        for future in finished:
            error = future.exception()
            if error is not None and (isinstance(error, BrokenProcessPool) or not isinstance(error, Exception)):
                raise error
            found.append((self.waiting.pop(future), error))
        return found


def _start_worker() -> None:
    """Prepares a worker: one thread, and an end when its parent ends, be it killed.

    Nobody else would end it then, and a new start needs its folders.
    """
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def _children_ignore_interrupts() -> Iterator[None]:
    """Processes started in the block leave Ctrl-C to us, from their first instruction on."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may change signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
