"""Geometry of the MNNS frontier: how fast its support and its entropy grow with the steps, exactly, over a whole space.

A thought of CoT2 must carry the frontier: k states with unequal shares. These two numbers say how much that is, before
any model is trained: support bounds the width a lossless superposition needs, entropy the bits it holds.
"""

from dataclasses import dataclass, field

import numpy as np
from tinylatent_tasks import MNNS

from tinylatent.core.files import json_text

CHUNK = 10_000_000  # shares at a time


def growth(task: MNNS, sample: int = 20_000) -> list[dict[str, float]]:
    """Per step before the answer: mean and largest support (states), mean entropy (nats), over every problem.

    Spaces too large to list are sampled: `sample` problems under seed 0.
    """
    problems = task.space() if task.listed else task.problems(sample, seed=0)
    supports, entropies = [], []
    chunk = max(1, CHUNK // (task.digits * len(task.vocabulary)))
    for start in range(0, len(problems), chunk):
        frontier_PTV = task.frontier(problems[start : start + chunk])[:, :-1].astype(np.float64)
        supports.append((frontier_PTV > 0).sum(-1))
        logs = np.log(frontier_PTV, out=np.zeros_like(frontier_PTV), where=frontier_PTV > 0)
        entropies.append(-(frontier_PTV * logs).sum(-1))
    support_PT, entropy_PT = np.concatenate(supports), np.concatenate(entropies)
    return [
        {
            "step": t + 1,
            "support": float(support_PT[:, t].mean()),
            "largest": int(support_PT[:, t].max()),
            "entropy": float(entropy_PT[:, t].mean()),
            "traces": 2 ** (t + 1),
        }
        for t in range(support_PT.shape[1])
    ]


@dataclass(frozen=True)
class Frontier:
    """How fast the MNNS frontier grows: support and entropy step by step, over all problems."""

    task: MNNS = field(default_factory=MNNS)
    """The digits."""
    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> None:
        """Prints one line a step."""
        rows = growth(self.task)
        if self.json:
            print(json_text(rows))
            return
        print(f"{'step':>4s} {'traces':>7s} {'support':>8s} {'largest':>8s} {'entropy':>8s}")
        for row in rows:
            print(
                f"{row['step']:4d} {row['traces']:7d} {row['support']:8.2f} {row['largest']:8d} {row['entropy']:8.3f}"
            )
