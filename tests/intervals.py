"""Intervals: those of all stored tables, as they were computed once, so that tests need not resample for minutes.

`python -m tests.intervals` rebuilds every stored study and writes results/intervals.jsonl anew: a line for every
interval, with a digest of the counts it is of, below one that lists how they were computed. Tests that rebuild stored
tables take intervals from there, all but one in SAMPLE, which they compute and compare. An interval that is not there
is computed too, and told.
"""

import json
import tempfile
from pathlib import Path

from tinylatent.core.files import write_text
from tinylatent.evaluation import statistics
from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.study import kept, rebuild, study_of

RESULTS = Path(__file__).resolve().parents[1] / "results"
STORED = RESULTS / "intervals.jsonl"
SAMPLE = 25
"""One in so many is computed anew, by its digest."""


def stored() -> dict[bytes, Interval]:
    """The intervals on record by their digests."""
    kinds, *lines = map(json.loads, STORED.read_text(encoding="utf-8").splitlines())
    return {bytes.fromhex(of): Interval(value, low, high, kinds[kind]) for of, value, low, high, kind in lines}


def sampled(known: dict[bytes, Interval]) -> dict[bytes, Interval]:
    """Those that tests compute anew."""
    return {key: found for key, found in known.items() if key[0] % SAMPLE == 0}


def main() -> None:
    """Computes all intervals of all stored studies."""
    statistics.MEMO.clear()
    for folder in kept(RESULTS):
        with tempfile.TemporaryDirectory() as aside:
            (Path(aside) / "runs.jsonl").write_bytes((folder / "runs.jsonl").read_bytes())
            rebuild(study_of(folder), Path(aside))
        print(f"{folder.name}: {len(statistics.MEMO):,} intervals", flush=True)
    write(statistics.MEMO)


def write(known: dict[bytes, Interval]) -> None:
    """Puts intervals on record."""
    kinds = sorted({found.kind for found in known.values()})
    rows = [
        [key.hex(), found.value, found.low, found.high, kinds.index(found.kind)] for key, found in sorted(known.items())
    ]
    write_text(STORED, "".join(json.dumps(row) + "\n" for row in (kinds, *rows)))


if __name__ == "__main__":
    main()
