"""Sampled chains: how many differ, how many are right, and the temperature that makes them as diverse as others.

Ways to explore are compared at equal numbers of samples and at equal entropy of the chains that they write. Where
states are drawn and tokens are not, a chain's probability is a sum over states, so that entropy is estimated from the
samples themselves: that of the empirical distribution of a problem's chains, answer included, at most the logarithm of
the number of samples. It is too small for few samples, for all ways alike if they have as many.

Letters: P problems, S samples, W tokens of a chain, A answer tokens.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from tinylatent_tasks import Task

from tinylatent.core.seeds import Streams
from tinylatent.engine.trace import NO_TOKEN
from tinylatent.evaluation.evaluate import BATCH
from tinylatent.objectives.method import Method, Model
from tinylatent.objectives.rewards import written
from tinylatent.objectives.speakers import Symbols

COLDEST, HOTTEST = 0.02, 20.0
"""Temperatures between which one is looked for."""
HALVINGS = 8


class Chains(NamedTuple):
    """Several chains of every problem."""

    token_PSW: np.ndarray
    """Tokens before the answer, -1 behind the last."""
    answer_PSA: np.ndarray
    """The answer's tokens."""

    @property
    def number_PS(self) -> np.ndarray:
        """Chains with their answers as integers, equal where they are equal."""
        both_PSW = np.concatenate([self.token_PSW, self.answer_PSA], -1)
        _, number = np.unique(both_PSW.reshape(-1, both_PSW.shape[-1]), axis=0, return_inverse=True)
        return np.asarray(number.reshape(both_PSW.shape[:2]))

    def right(self, task: Task, rows: np.ndarray) -> np.ndarray:
        """Whether answers are right (P, S)."""
        return np.asarray((self.answer_PSA == task.batch(rows).answer_BA[:, None]).all(-1))

    def certified(self, task: Task, rows: np.ndarray) -> np.ndarray:
        """Whether chains prove their answers (P, S).

        Raises:
            ValueError: the task knows no proofs.
        """
        P, S = self.token_PSW.shape[:2]
        every = np.repeat(rows, S, axis=0), self.token_PSW.reshape(P * S, -1), self.answer_PSA.reshape(P * S, -1)
        return np.asarray(task.certified(*every)).reshape(P, S)


@torch.no_grad()
def sampled_chains(
    task: Task,
    rows: np.ndarray,
    method: Method,
    model: Model,
    samples: int,
    *,
    temperature: float,
    seed: int = 0,
    batch: int = BATCH,
    device: torch.device | str = "cpu",
) -> Chains:
    """Chains of independent rollouts of every problem.

    Args:
        task, rows: the problems.
        method, model: write the chains.
        samples: S.
        temperature: of tokens and answers; at 0 they are greedy, and chains differ if the method draws states alone.
        seed: of all draws.
        batch: most rollouts at a time.
        device: the model's.

    Raises:
        ValueError: fewer than one sample, or no problems.
    """
    if samples < 1 or not len(rows):
        raise ValueError(f"{samples} samples of {len(rows)} problems: expected 1 or more of both")
    tokens, answers, size = [], [], max(1, batch // samples)
    for start in range(0, len(rows), size):
        examples = Symbols(task, rows[start : start + size]).examples(device)
        count = len(examples)
        streams = Streams(seed, torch.arange(start * samples, (start + count) * samples, device=device))
        solution = method.solve(model, examples, streams, temperature=temperature, group=samples)
        tokens.append(written(solution.trace, latents=True).view(count, samples, -1).cpu().numpy())
        answers.append(solution.answer_BA.view(count, samples, -1).cpu().numpy())
    most = max(part.shape[-1] for part in tokens)
    padded = [np.pad(part, ((0, 0), (0, 0), (0, most - part.shape[-1])), constant_values=NO_TOKEN) for part in tokens]
    return Chains(np.concatenate(padded), np.concatenate(answers))


def entropy(number_PS: np.ndarray) -> float:
    """Mean over problems of the entropy of the empirical distribution of their samples, in nats."""
    total = 0.0
    for number_S in number_PS:
        share = np.unique(number_S, return_counts=True)[1] / len(number_S)
        total -= float((share * np.log(share)).sum())
    return total / len(number_PS)


def matched_temperature(target: float, entropy_at: Callable[[float], float], halvings: int = HALVINGS) -> float:
    """The temperature at which sampled chains have this entropy, by halving a range of its logarithm.

    The coldest or hottest of the range where none comes near; who asks compares the entropies.

    Args:
        target: the entropy, in nats.
        entropy_at: entropy at a temperature, rising; with the same random numbers at each, so that it hardly wavers.
        halvings: how often.
    """
    low, high = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(halvings):
        middle = (low + high) / 2
        if entropy_at(math.exp(middle)) < target:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def different(number_PS: np.ndarray, good_PS: np.ndarray, n: int) -> float:
    """Mean number of different good chains among n samples of a problem, over disjoint blocks of n samples.

    Raises:
        ValueError: n below 1, or more than there are samples.
    """
    S = number_PS.shape[1]
    if not 1 <= n <= S:
        raise ValueError(f"{n} of {S} samples: expected 1 to {S}")
    found = [
        len(set(number_S[start : start + n][good_S[start : start + n]].tolist()))
        for number_S, good_S in zip(number_PS, good_PS, strict=True)
        for start in range(0, S // n * n, n)
    ]
    return sum(found) / len(found)
