"""Ten thousand fuzzed inputs: each ends in one clear sentence or in a right result.

    python -m tests.robustness.fuzz --cases 10000 --seed 0

runs the commands in this process, with tiny models and folders of their own, and writes results/robustness/fuzz.json:
how many inputs of each kind there were, and how each ended. A case is clean if it ends with status 2 and one line on
standard error, and right if it ends with status 0 and prints what an independent solver or the healthy file gives.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.robustness import words
from tests.robustness.inputs import ROOT, Base, Kind, flat, results_file, run_file, tiny_flags, weights
from tinylatent.cli.main import main
from tinylatent.core.environment import environment
from tinylatent.core.files import write_json

SHARES: dict[str, tuple[int, Kind]] = {
    "config.json": (9, run_file("config.json")),
    "result.json": (6, run_file("result.json")),
    "metrics.jsonl": (5, run_file("metrics.jsonl", as_lines=True)),
    "manifest.json": (6, run_file("step-*/manifest.json")),
    "weights": (5, weights),
    "runs.jsonl": (4, results_file("runs.jsonl", as_lines=True)),
    "provenance.json": (1, results_file("provenance.json")),
    "problems for predict": (7, words.predict),
    "answers in every dress": (8, words.answers),
    "lines for score": (10, words.spoilt_score),
    "ProsQA file": (8, words.prosqa),
    "problem for show": (9, words.show),
    "flags of export": (8, words.export),
    "flags of run": (9, words.run),
    "words of every command": (5, words.commands),
}
"""Kinds of input, with their shares in percent."""
LIMIT_S = 60
"""Seconds after which a case counts as hanging."""
MEMORY = 8 * 2**30
"""Bytes this process may use: what asks for more must say so."""


class Stopped(BaseException):
    """Somebody ends this program; the command that ran took it for itself."""


class Hanging(BaseException):
    """A case took longer than LIMIT_S."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raises Hanging in a block that takes too long."""

    def stop(*_: Any) -> None:
        raise Hanging

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)


def ended(arguments: list[str], stdin: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command run in this process."""
    given = io.TextIOWrapper(io.BytesIO(stdin.encode("utf-8", "surrogateescape")), encoding="utf-8")
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    with limited(), mock.patch("sys.stdin", given), mock.patch("sys.stdout", out), mock.patch("sys.stderr", err):
        try:
            status = main(arguments)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 0
    if status in (130, 143):  # it is we who were asked to end
        raise Stopped
    for stream in (out, err):
        stream.flush()
    said, complained = (stream.buffer.getvalue().decode() for stream in (out, err))
    return status, said, complained


def verdict(kind: Kind, draw: Any, base: Base) -> tuple[str, str]:
    """How one case ends, "clean" or "right" or what is wrong with it, and what shows it."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        arguments, stdin, check = kind(draw, base, folder)
        shown = " ".join(arguments)
        try:
            status, out, err = ended(arguments, stdin)
        except Stopped:
            raise
        except Hanging:
            return "hangs", shown
        except BaseException:
            return "traceback", f"{shown}\n{traceback.format_exc()}"
        lines = [line for line in err.splitlines() if line.startswith("tinylatent: ")]
        if status == 2:
            whole = len(lines) == 1 and err.endswith("\n") and err.splitlines()[-1] == lines[0] and len(lines[0]) < 1200
            return ("clean", "") if whole else ("no clear line", f"{shown}\n{err}")
        if status != 0 and not (status == 1 and arguments[:2] == ["runs", "find"]):
            return f"status {status}", f"{shown}\n{err}"
        try:
            if "--help" not in arguments and status == 0:
                check(out, err)
        except BaseException:
            return "wrong", f"{shown}\n{out[:500]}\n{err[:500]}\n{traceback.format_exc()}"
    return "right", ""


def made(folder: Path) -> Base:
    """Tiny runs, problems for them, what they answer, and stored results of a study."""
    base = Base({}, {}, {}, {}, folder / "capacity")
    shutil.copytree(ROOT / "results/capacity", base.results)
    for number, name in enumerate(("mnns/cot2", "mnns/discrete", "multihop/cot2", "mnns/coconut")):
        flags, run, lines = tiny_flags(name), folder / str(number), folder / f"{number}.jsonl"
        if name == "mnns/coconut":
            flags["--training.steps"] = "6"
        base.flags[name], base.runs[name], base.lines[name] = flat(flags), run, lines
        task = flat({flag: value for flag, value in flags.items() if flag.startswith("--task")})
        for arguments in (
            ["run", name, *base.flags[name], "--out", str(run)],
            ["export", name.partition("/")[0], *task, "--count", "3", "--output", str(lines)],
            ["predict", "--checkpoint", str(run), "--input", str(lines)],
        ):
            status, out, err = ended(arguments, "")
            assert status == 0, (arguments, err)
        base.answers[name] = out
    return base


def fuzzed(name: str, cases: int, seed: int, base: Base) -> tuple[collections.Counter[str], list[str]]:
    """How the cases of one kind end, and what shows those that do not end well."""
    found: collections.Counter[str] = collections.Counter()
    shown: list[str] = []
    _, kind = SHARES[name]
    turn = 0
    while found.total() < cases:  # hypothesis stops early where it has seen all there is
        wanted = cases - found.total()

        @hypothesis.seed(f"{seed}/{name}/{turn}")
        @settings(
            max_examples=wanted,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=[*HealthCheck],
        )
        @given(st.data())
        def one(data: Any) -> None:
            ending, what = verdict(kind, data.draw, base)
            if found.total() == cases:  # hypothesis may try a few more than it was asked for
                return
            found[ending] += 1
            if what:
                shown.append(f"{name}: {ending}: {what}")
                print(shown[-1], file=sys.stderr, flush=True)

        before, turn = found.total(), turn + 1
        one()
        if found.total() == before:
            break
    return found, shown


def shares(cases: int) -> dict[str, int]:
    """Cases of each kind."""
    found = {name: max(1, cases * share // 100) for name, (share, _) in SHARES.items()}
    found["answers in every dress"] += cases - sum(found.values())
    return found


def run_all(cases: int, seed: int, only: str = "") -> tuple[dict[str, dict[str, int]], list[str]]:
    """Endings by kind, and what shows those that are neither clean nor right."""
    endings, shown = {}, []
    with tempfile.TemporaryDirectory() as folder:
        base = made(Path(folder))
        for name, count in shares(cases).items():
            if only in name:
                found, bad = fuzzed(name, count, seed, base)
                endings[name] = dict(sorted(found.items()))
                shown += bad
                print(f"{name:24s} {endings[name]}", file=sys.stderr, flush=True)
    return endings, shown


def command() -> int:
    """Fuzzes, prints what does not end well, and writes how it went. Status 1 if anything did not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a part of the name of the kinds to try; nothing is written then")
    parser.add_argument("--output", type=Path, default=ROOT / "results/robustness/fuzz.json")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    os.environ.pop("TINYLATENT_TRACEBACK", None)
    endings, _ = run_all(asked.cases, asked.seed, asked.only)
    total = collections.Counter[str]()
    for found in endings.values():
        total.update(found)
    print(json.dumps(total, indent=2))
    if not asked.only:
        write_json(
            asked.output,
            {
                "command": f"python -m tests.robustness.fuzz --cases {asked.cases} --seed {asked.seed}",
                "cases": total.total(),
                "seed": asked.seed,
                "endings": dict(sorted(total.items())),
                "kinds": endings,
                "environment": environment(),
            },
        )
    return int(total.keys() - {"clean", "right"} != set())


if __name__ == "__main__":
    raise SystemExit(command())
