"""Runs in processes of their own that start fast, so that killing them a hundred times takes minutes."""

import argparse
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


def main(name: str, about: str | None, proved: Callable[..., dict[str, Any]], **usual: int) -> int:
    """A program: reads the options, proves, and stores what was found; returns the exit status.

    Args:
        name: of the module, and of the file that is written.
        about: its docstring.
        proved: takes the options; RuntimeError where the proof fails.
        usual: the options with their defaults.
    """
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    for option, default in usual.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    given = vars(parser.parse_args())
    try:
        found = proved(**given)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    options = " ".join(f"--{option} {value}" for option, value in given.items())
    print(store(name, f"python -m tests.robustness.{name} {options}", found))
    return 0


def store(name: str, command: str, found: dict[str, Any]) -> Path:
    """Writes what was found, with how and where, to results/robustness."""
    path = RESULTS / f"{name}.json"
    where = {**environment("cpu"), "threads": "1"}  # as every process has
    write_json(path, {"command": command, **found, "environment": where})
    return path
