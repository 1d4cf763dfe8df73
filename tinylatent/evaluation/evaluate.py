"""Evaluation: solves all problems of a speaker in batches, and has the speaker judge the answers.

It also measures the KL divergence of every step from the oracle's frontier and the entropy of every step, under the
method's own inference or under a control, and the cost in forwards, operations and seconds.

Letters: P problems, B rows of a batch, S samples, T steps before the answer, A answer tokens.
"""

import time
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tinylatent.core.precision import wide
from tinylatent.core.seeds import Streams, derive
from tinylatent.engine.counters import Counters
from tinylatent.engine.plan import ANSWER
from tinylatent.engine.trace import NO_TOKEN, Trace
from tinylatent.objectives.examples import Examples, Speaker
from tinylatent.objectives.method import Method, Model
from tinylatent.objectives.policy_gradient import entropy_of
from tinylatent.objectives.rewards import Verifier

BATCH = 1024


@dataclass(frozen=True)
class Evaluation:
    """Measurements over P problems."""

    right_P: np.ndarray
    """Whether answers are right."""
    answer_PA: np.ndarray
    """The answers, as token ids; -1 for no token."""
    kl_T: list[float]
    """Mean KL(oracle frontier || model) of every step in nats; empty if the steps are not supervised."""
    entropy_T: list[float]
    """Mean entropy of every step's distribution in nats, the answer's included."""
    norm_T: list[float]
    """Mean norm of the input that a step before the answer makes, in units of the token embeddings' mean norm; without
    steps at which no row writes one."""
    counters: Counters
    """What solving all problems cost."""
    seconds: float
    """Wall-clock time of solving."""


def evaluate(
    speaker: Speaker,
    method: Method,
    model: Model,
    *,
    control: str | None = None,
    seed: int = 0,
    batch: int = BATCH,
    device: torch.device | str = "cpu",
    verify: Verifier | None = None,
) -> Evaluation:
    """Solves every problem of a speaker, with greedy answers.

    Args:
        speaker: gives the problems and the frontier of all traces, and judges the answers.
        method, model: solve them.
        control: "noise", "shuffled" or "zero" to replace the latents; None for the method itself.
        seed: of everything random: sampled latents, noise, and the order of problems.
        batch: most problems at a time.
        device: the model's device.
        verify: judges answers during a search; the method's own judge by default.

    Raises:
        ValueError: unknown control, no problems, a batch below 1, or a speaker whose judgements are not booleans.
    """
    index_GB = batches(len(speaker.problems), batch, seed)
    answers, rights, kls, entropies, norms, spent, seconds = [], [], [], [], [], [], 0.0
    unit = model.backbone.table.unit().detach()
    for index_B in index_GB:
        examples = speaker.part(index_B).examples(device)
        streams = Streams(seed, torch.from_numpy(index_B).to(device))
        begin = time.perf_counter()
        solution = method.solve(model, examples, streams, control=control, verify=verify)
        answer_BA = solution.answer_BA.cpu()
        seconds += time.perf_counter() - begin
        answers.append(answer_BA.numpy())
        rights.append(_judged(examples, solution.answer_BA))
        trace = solution.trace
        before = trace.within(trace.span(ANSWER)).start
        with torch.no_grad():
            if method.supervised:
                kls.append(_split(divergence(trace, examples, before), before))
            entropies.append(_split(entropy_of(trace), before))
            norm_BT = trace.inputs_BTD[:, :before].norm(dim=-1) / unit
        norm_BT = norm_BT if trace.live_BT is None else norm_BT.masked_fill(~trace.live_BT[:, :before], torch.nan)
        norms.append((norm_BT, norm_BT[:, :0]))
        spent.append(solution.counters)
    back_P = np.argsort(np.concatenate(index_GB))
    right_P, answer_PA = np.concatenate(rights)[back_P], _stacked(answers)[back_P]
    kl_T = _mean(kls) if method.supervised else []
    return Evaluation(right_P, answer_PA, kl_T, _mean(entropies), _mean(norms), reduce(add, spent), seconds)


def batches(count: int, batch: int, seed: int) -> list[np.ndarray]:
    """Indices of `count` problems in batches of at most `batch`, in a random order that the seed decides.

    Raises:
        ValueError: no problems, or a batch below 1.
    """
    if count == 0 or batch < 1:
        raise ValueError(f"{count} problems in batches of {batch}: no problems to evaluate; expected 1 or more of both")
    # Problems that are neighbours in a listed space are alike, and their shuffled latents would be nearly right.
    order_P = np.random.default_rng(derive(seed, "shuffle")).permutation(count)
    parts = -(-count // batch)  # of even size: a last problem alone would have no other to shuffle with
    return np.array_split(order_P, parts)


def _judged(examples: Examples, answer_BA: Tensor) -> np.ndarray:
    """The speaker's judgements, checked to be one boolean per answer."""
    right_B = examples.judge(answer_BA)
    if right_B.shape != (len(answer_BA),) or right_B.dtype != torch.bool:
        raise ValueError(
            f"the speaker judged {len(answer_BA)} answers by {tuple(right_B.shape)} values of {right_B.dtype}: "
            "expected a boolean for each"
        )
    return right_B.cpu().numpy()


def divergence(trace: Trace, examples: Examples, before: int) -> Float[Tensor, "B T"]:
    """KL(frontier || model) of every step in nats; NaN where a row took no step, and everywhere without targets.

    before: steps before the answer; if there are more than the chain has, steps have no targets.
    """
    if before > examples.max_steps:
        return torch.full_like(trace.hidden_BTD[..., 0], torch.nan)

    def kl(logits_bTV: Tensor, rows: slice) -> Tensor:
        log_p_bTV, target_bTV = F.log_softmax(logits_bTV, -1), examples.frontier.rows(rows).dense(logits_bTV.shape[-1])
        if trace.steps < target_bTV.shape[1]:  # rows of few steps may be alone in a batch, and answers may end early
            answer = slice(examples.max_steps, examples.max_steps + trace.steps - before)
            target_bTV = torch.cat([target_bTV[:, :before], target_bTV[:, answer]], 1)
        return (torch.special.xlogy(target_bTV, target_bTV) - target_bTV * log_p_bTV).sum(-1)

    kl_BT = torch.cat(trace.over_logits(kl))
    return kl_BT if trace.acted_BT is None else kl_BT.masked_fill(~trace.acted_BT, torch.nan)


def _split(values_BT: Tensor, before: int) -> tuple[Tensor, Tensor]:
    """Values of the steps before the answer, and of the answer's."""
    return values_BT[:, :before], values_BT[:, before:]


def _mean(parts: list[tuple[Tensor, Tensor]]) -> list[float]:
    """Mean over rows of every step before the answer, then of the answer's; batches may differ in both numbers.

    Steps that no row has a value for are left out, such as the one where the last rows stop without writing anything.
    """
    columns = [torch.cat(_widened([part[half] for part in parts])) for half in (0, 1)]
    values_BT = wide(torch.cat(columns, 1))
    return [round(value, 6) for value in values_BT[:, ~values_BT.isnan().all(0)].nanmean(0).tolist()]


def _widened(parts: list[Tensor]) -> list[Tensor]:
    most = max(part.shape[1] for part in parts)
    return [F.pad(part, (0, most - part.shape[1]), value=torch.nan) for part in parts]


def _stacked(answers: list[np.ndarray]) -> np.ndarray:
    """Answers of several batches as one array, shorter ones padded with NO_TOKEN."""
    most = max(answer.shape[-1] for answer in answers)
    other = [(0, 0)] * (answers[0].ndim - 1)
    padded = (np.pad(answer, [*other, (0, most - answer.shape[-1])], constant_values=NO_TOKEN) for answer in answers)
    return np.concatenate(list(padded))


def sample_answers(
    speaker: Speaker,
    method: Method,
    model: Model,
    samples: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    batch: int = BATCH,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Answers of `samples` independent rollouts of every problem, as token ids (P, S, A); prompts are read once.

    Raises:
        ValueError: fewer than one sample, or no problems.
    """
    count = len(speaker.problems)
    if count == 0:
        raise ValueError("no problems to sample answers for: expected at least one row")
    if samples < 1:
        raise ValueError(f"{samples} samples: expected at least 1")
    answers, size = [], max(1, batch // samples)
    for start in range(0, count, size):
        examples = speaker.part(np.arange(start, min(start + size, count))).examples(device)
        rows = len(examples)
        streams = Streams(seed, torch.arange(start * samples, (start + rows) * samples, device=device))
        solution = method.solve(model, examples, streams, temperature=temperature, group=samples)
        answers.append(solution.answer_BA.view(rows, samples, -1).cpu().numpy())
    return _stacked(answers)


def cost(method: Method, model: Model, examples: Examples) -> dict[str, Any]:
    """Costs of solving the first problem: "steps" taken, "slots" read, and "flops"."""
    streams = Streams(0, torch.zeros(1, dtype=torch.int64, device=examples.prompt_BN.device))
    spent = method.solve(model, examples.rows(slice(0, 1)), streams).counters
    return {"steps": spent.steps, "slots": spent.slots, "flops": spent.flops}
