"""Words instead of a bar, where standard error is no terminal: how far runs are, a line a minute."""

import math
import sys
import time

FIRST_WORD_S, LATER_WORDS_S = 10, 60
"""Seconds until it is first said how far the runs are where there is no bar, and from then on between such lines."""


class Words:
    """Lines on standard error that tell how far runs are.

    Args:
        units: of all runs.
        say: what is to be done; a first line begins with it, there is none if it is empty.
        of: what the units are.
    """

    def __init__(self, units: int, say: str = "", of: str = "steps"):
        self.units, self.of, self.began = units, of, time.monotonic()
        self.before: int | None = None
        self.next = self.began + FIRST_WORD_S
        if say:
            print(f"{say}, {units:,} {of} in all; how far they are is told every minute", file=sys.stderr, flush=True)

    def tell(self, done: int) -> None:
        """Prints a line if it is time for one.

        done: units so far, of all runs.
        """
        now = time.monotonic()
        if self.before is None:
            self.before = done  # an interrupted run brings steps that took no time
        if now < self.next or done >= self.units:
            return
        pace = (done - self.before) / (now - self.began)
        minutes = (self.units - done) / pace / 60 if pace > 0 else math.inf
        about = f"about {minutes:.0f} minutes" if minutes >= 1.5 else "about a minute"
        left = f", {about} left" if pace > 0 else ""
        print(f"  {done:,} of {self.units:,} {self.of}{left}", file=sys.stderr, flush=True)
        self.next = now + LATER_WORDS_S
