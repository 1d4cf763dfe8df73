"""Evaluation: every problem of a part, in batches, judged by the task's own oracle.

Besides the answer it measures how far each step's distribution is from the oracle's frontier (KL) and how spread it is
(entropy), under the method's own inference or under a control, and what it cost in tokens, operations and seconds.

Letters: P problems, B rows of a batch, S samples, T steps before the answer, A answer tokens.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tasks import Task
from tinylatent.flops import forward_flops
from tinylatent.methods import Method, Model
from tinylatent.plan import controlled, segments
from tinylatent.problems import Problems
from tinylatent.rollout import rollout
from tinylatent.seeds import Streams, derive
from tinylatent.thoughts import Dirichlet, Mixture
from tinylatent.trajectory import Trajectory
from tinylatent.transformer import Shape

BATCH = 1024


@dataclass(frozen=True)
class Evaluation:
    """What was measured over P problems."""

    right_P: np.ndarray
    """Whether each answer is right."""
    answer_PA: np.ndarray
    """The answers, as token ids."""
    kl_T: list[float]
    """Mean KL(oracle frontier || model) of each step in nats; empty if the steps are not supervised."""
    entropy_T: list[float]
    """Mean entropy of each step's distribution in nats, the answer's included."""
    norm_T: list[float]
    """Mean norm of the input each step before the answer makes, in units of the token embeddings' mean norm."""
    seconds: float
    """Wall-clock time of the rollouts."""


@torch.no_grad()
def evaluate(
    task: Task,
    method: Method,
    model: Model,
    problems_P: np.ndarray,
    control: str | None = None,
    seed: int = 0,
    batch: int = BATCH,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Solves every problem, the answer greedily.

    Args:
        task: judges the answers and gives the frontier of all traces.
        method: plans the rollouts.
        model: the trained model.
        problems_P: problems as the task gives them.
        control: "noise", "shuffled" or "zero" to replace the latents; None for the method itself.
        seed: of everything sampled (deterministic methods sample nothing; noise and sampled latents do).
        batch: rows at a time.
        device: where the model is.

    Raises:
        ValueError: unknown control, or no problems.
    """
    if len(problems_P) == 0:
        raise ValueError("no problems to evaluate: expected at least one row")
    answers, kls, entropies, norms, seconds = [], [], [], [], 0.0
    unit = model.backbone.embedding.norm(dim=-1).mean()
    # Neighbours in a listed space share most of their digits, and shuffled latents would be nearly the right ones.
    order_P = np.random.default_rng(derive(seed, "shuffle")).permutation(len(problems_P))
    parts = -(-len(problems_P) // batch)  # of even size: a last row alone would have no other to shuffle with
    for index_B in np.array_split(order_P, parts):
        problems = Problems.upload(task.batch(problems_P[index_B]), device)
        plan = method.plan(model, problems)
        if control is not None:
            plan = controlled(plan, control)
        streams = Streams(seed, torch.from_numpy(index_B).to(device))
        begin = time.perf_counter()
        run = rollout(model.backbone, plan, problems.prompt_BN, problems.prompt_mask_BN, streams=streams)
        answer_BA = run.action("id")[:, -problems.answer_tokens :].cpu()
        seconds += time.perf_counter() - begin
        answers.append(answer_BA.numpy())
        kl_BT, entropy_BT = distances(run, problems)
        kls.append(kl_BT)
        entropies.append(entropy_BT)
        before = run.steps - problems.answer_tokens
        norm_BT = run.embeddings_BTD[:, :before].norm(dim=-1) / unit
        norms.append(norm_BT if run.live_BT is None else norm_BT.masked_fill(~run.live_BT[:, :before], torch.nan))
    answer_PA = np.concatenate(answers)[np.argsort(order_P)]
    right_P = task.score(problems_P, answer_PA)
    tokens = problems.answer_tokens
    kl_T = _mean(kls, tokens) if method.supervised else []
    return Evaluation(right_P, answer_PA, kl_T, _mean(entropies, tokens), _mean(norms, 0), seconds)


def distances(run: Trajectory, problems: Problems) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """KL(frontier || model) and the model's entropy at every step, in nats; NaN where a row waited or none compares."""
    log_p_BTV = F.log_softmax(run.logits_BTV, -1)
    entropy_BT = -(log_p_BTV.exp() * log_p_BTV).sum(-1)
    if run.live_BT is not None:
        entropy_BT = entropy_BT.masked_fill(~run.live_BT, torch.nan)
    before = run.steps - problems.answer_tokens
    if before > problems.words_before:
        return torch.full_like(entropy_BT, torch.nan), entropy_BT
    # Rows of fewer steps than the task's most may be alone in a batch, which then takes fewer.
    target_BTV = problems.target_BTV
    if before < problems.words_before:
        target_BTV = torch.cat([target_BTV[:, :before], target_BTV[:, -problems.answer_tokens :]], 1)
    kl_BT = (torch.special.xlogy(target_BTV, target_BTV) - target_BTV * log_p_BTV).sum(-1)
    return kl_BT if run.live_BT is None else kl_BT.masked_fill(~run.live_BT, torch.nan), entropy_BT


def _mean(parts: list[Tensor], last: int) -> list[float]:
    """Mean over rows of (B, T) parts, waiting rows left out; parts of fewer steps lack those before the `last`."""
    most = max(part.shape[1] for part in parts)

    def widened(part_BT: Tensor) -> Tensor:
        place = part_BT.shape[1] - last
        absent = part_BT.new_full((len(part_BT), most - part_BT.shape[1]), torch.nan)
        return torch.cat([part_BT[:, :place], absent, part_BT[:, place:]], 1)

    return [round(value, 6) for value in torch.cat([widened(part) for part in parts]).double().nanmean(0).tolist()]


@torch.no_grad()
def sample_answers(
    task: Task,
    method: Method,
    model: Model,
    problems_P: np.ndarray,
    samples: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch: int = BATCH,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Answers of `samples` independent rollouts of each problem, as token ids (P, S, A); prompts are read once.

    Raises:
        ValueError: fewer than one sample, or no problems.
    """
    if len(problems_P) == 0:
        raise ValueError("no problems to sample answers for: expected at least one row")
    if samples < 1:
        raise ValueError(f"{samples} samples: expected at least 1")
    answers = []
    size = max(1, batch // samples)
    for start in range(0, len(problems_P), size):
        rows = problems_P[start : start + size]
        problems = Problems.upload(task.batch(rows), device)
        streams = Streams(seed, torch.arange(start * samples, (start + len(rows)) * samples, device=device))
        plan = method.plan(model, problems, temperature)
        run = rollout(
            model.backbone, plan, problems.prompt_BN, problems.prompt_mask_BN, streams=streams, groups=samples
        )
        answer_A = run.action("id")[:, -problems.answer_tokens :]
        answers.append(answer_A.view(len(rows), samples, -1).cpu().numpy())
    return np.concatenate(answers)


def cost(shape: Shape, vocabulary: int, method: Method, model: Model, problems: Problems) -> dict[str, int]:
    """What one problem costs at inference: steps decoded, slots read, mixtures embedded, floating-point operations."""
    plan = method.plan(model, problems.rows(slice(0, 1)))
    steps = sum(segment.longest for segment in segments(plan))
    mixtures = sum(segment.longest for segment in segments(plan) if isinstance(segment.thought, Mixture | Dirichlet))
    slots = problems.prompt_BN.shape[1] + steps - 1
    flops = forward_flops(shape, vocabulary, slots, steps, mixtures)
    return {"steps": steps, "slots": slots, "mixtures": mixtures, "flops": flops}
