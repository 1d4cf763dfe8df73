"""Validation during training: a fixed part of the validation problems is asked again and again.

Nothing that training reads is touched: the problems and everything random follow from seeds of their own.
"""

import time
from typing import Any

import numpy as np
import torch

from tinylatent.core.seeds import Seeds, derive
from tinylatent.evaluation.evaluate import BATCH, evaluate
from tinylatent.objectives.examples import Examples, Speaker
from tinylatent.objectives.method import Method, Model
from tinylatent.objectives.rewards import Verifier


class Validation:
    """Asks the same problems of a speaker, at most `count`, drawn without replacement.

    Args:
        speaker: has the validation part.
        count: how many problems to ask.
        seeds: of what a method samples when it answers, the same each time.
        device: the model's device.
        verify: judges answers during a search; the method's own judge if None.
        batch: most problems at a time.
    """

    def __init__(
        self,
        speaker: Speaker,
        count: int,
        seeds: Seeds,
        device: torch.device,
        verify: Verifier | None,
        batch: int = BATCH,
    ):
        total = len(speaker.problems)
        self.index = np.sort(np.random.default_rng(derive(0, "validation")).permutation(total)[:count])
        self.speaker, self.seed = speaker, seeds.derive("sampling", "validation")
        self.device, self.verify, self.batch = device, verify, batch
        self.seconds = 0.0
        """Wall-clock time of asking so far."""
        self.asked: _Encoded | None = None

    def accuracy(self, method: Method, model: Model) -> float:
        """The share of right answers, six digits of it.

        Raises:
            ValueError: the model's logits are not finite.
        """
        began = time.perf_counter()
        if self.asked is None:
            self.asked = _Encoded(self.speaker.part(self.index).examples(self.device))
        how: dict[str, Any] = {"batch": self.batch, "device": self.device, "verify": self.verify}
        found = evaluate(self.asked, method, model, seed=self.seed, **how)
        self.seconds += time.perf_counter() - began
        return round(float(found.right_P.mean()), 6)


class _Encoded:
    """A speaker of problems that are encoded already: encoding takes a third of the time of asking."""

    def __init__(self, encoded: Examples):
        self.encoded, self.problems = encoded, np.arange(len(encoded))

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.encoded.frontier.vocabulary

    def part(self, index: np.ndarray) -> "_Encoded":
        """Some of the problems."""
        return _Encoded(self.encoded.rows(torch.from_numpy(index).to(self.encoded.prompt_BN.device)))

    def examples(self, device: torch.device | str = "cpu", **supervision: Any) -> Examples:
        """The problems as they were encoded."""
        return self.encoded

    def judge(self, examples: Examples, answer_BA: torch.Tensor) -> torch.Tensor:
        """Whether answers are right, by whoever encoded the problems."""
        return examples.judge(answer_BA)
