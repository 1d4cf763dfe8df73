"""`python -m tests.real_model` runs docs/real_model.md on the real model, and stores what its code prints.

The page shows it from there. It takes some minutes, on one thread.
"""

import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path

from tests.pages import FENCED, ROOT

PAGE, STORED, MODELS = "docs/real_model.md", ROOT / "results/bench/real_model.json", ROOT / "models"


def printed(blocks):
    """What each block of code prints, run one after the other in a folder that has the model."""
    found, names = [], {"__name__": "tour"}
    with tempfile.TemporaryDirectory() as aside, contextlib.chdir(aside):
        os.symlink(MODELS, "models")
        for code in blocks:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(code, PAGE, "exec"), names)
            found.append(out.getvalue())
    return found


if __name__ == "__main__":
    from tinylatent.core.environment import environment

    assert (MODELS / "smollm2").exists(), "the model is not here: make model"
    began = time.perf_counter()
    said = printed(FENCED["python"].findall((ROOT / PAGE).read_text(encoding="utf-8")))
    stored = {"printed": said, "seconds": round(time.perf_counter() - began), "environment": environment("cpu")}
    Path(STORED).write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    print(f"{STORED.relative_to(ROOT)}: {stored['seconds']} s; python -m tests.pages puts it on the page")
