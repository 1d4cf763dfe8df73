"""Runs in processes of their own that start fast, so that killing them a hundred times takes minutes."""

import multiprocessing
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tinylatent.core.environment import environment
from tinylatent.core.files import write_json

RESULTS = Path(__file__).resolve().parents[2] / "results" / "robustness"
FAILED = 3
"""Exit status of a process that ended in an error."""


def started(work: Callable[..., Any], *arguments: Any) -> multiprocessing.Process:
    """A process that does the work; it is forked from a server that has imported the package."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "tinylatent.lab.measure", "torch._dynamo"])  # AdamW imports the latter
    process = context.Process(target=_do, args=(work, arguments), daemon=True)
    process.start()
    return process


def _do(work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Does the work with one thread; an error is printed and ends the process with FAILED."""
    torch.set_num_threads(1)
    try:
        work(*arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        sys.exit(FAILED)


def store(name: str, command: str, found: dict[str, Any]) -> Path:
    """Writes what was found, with how and where, to results/robustness."""
    path = RESULTS / f"{name}.json"
    where = {**environment("cpu"), "threads": "1"}  # as every process has
    write_json(path, {"command": command, **found, "environment": where})
    return path
