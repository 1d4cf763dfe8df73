"""Thinking: one problem, step by step; the oracle's exact frontier beside what a model holds at the same step."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tinylatent_tasks import Task
from torch import Tensor

from tinylatent.engine.plan import ANSWER
from tinylatent.engine.thought import Action
from tinylatent.engine.trace import Trace
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.thought_figure import draw_thought
from tinylatent.methods import METHODS
from tinylatent.models.backbone import Table
from tinylatent.objectives.method import Method, Model
from tinylatent.objectives.text import Lines, Text

VISIBLE = 1e-3
"""Smallest share that is worth a line."""
MOST_LINES = 12
"""Most states of a step that are printed: those with the largest shares."""


@dataclass(frozen=True)
class Step:
    """Where oracle and model are after one step of reasoning."""

    oracle: Mapping[str, float]
    """Share of every state that either of the two holds to more than VISIBLE, by its token."""
    model: Mapping[str, float] | None
    """The model's shares of the same states: those of the mixture of tokens that is fed back, or where the thought is
    none the distribution that the model reads out. None where its method takes no such step."""
    kl: float | None
    """KL(oracle || model) in nats over all states; None without a model's step."""


@dataclass(frozen=True)
class Thinking:
    """A problem, its answer, and every step."""

    task: str
    """Name of the task."""
    problem: dict[str, Any]
    """As JSON."""
    right: Any
    """The right answer, as JSON."""
    steps: list[Step]
    method: str | None = None
    """What the model's method is called; None without a model."""
    answer: Any = None
    """The model's answer, as JSON; None where it is no answer, and without a model."""
    is_right: bool | None = None
    """Whether the model's answer is right; None without a model."""
    is_taught: bool = True
    """Whether the method trains its steps to be read as states; where not, the model's shares are no belief."""
    is_held: bool = True
    """Whether what is fed back are the shown mixtures; where not, all shares are what the model reads out."""

    def draw(self, path: Path | str) -> None:
        """Draws a panel for each step into a file, PNG, PDF or SVG by its suffix.

        Raises:
            ValueError: the suffix names no format.
        """
        draw_thought(self.to_json(), Path(path))

    def to_json(self) -> dict[str, Any]:
        """The problem and its steps as plain values: the shares of every state by oracle and model."""
        steps = [
            {
                "step": number,
                "shares": {
                    token: {"oracle": share} | ({} if step.model is None else {"model": step.model[token]})
                    for token, share in step.oracle.items()
                },
            }
            | ({} if step.kl is None else {"kl": step.kl})
            for number, step in enumerate(self.steps, 1)
        ]
        asked = {"task": self.task, "problem": self.problem, "answer": self.right, "steps": steps}
        if self.method is None:
            return asked
        model = {"method": self.method, "model": self.answer, "right": self.is_right}
        model |= {"taught": self.is_taught, "held": self.is_held}
        return {**asked, **model}

    def __str__(self) -> str:
        """A line for each state of each step."""
        lines = [f"problem {' '.join(map(str, self.problem.values()))}, answer {self.right}"]
        for number, step in enumerate(self.steps, 1):
            kl = "" if step.kl is None else f"   KL {step.kl:.4f} nats"
            lines.append(f"step {number:<4d} oracle   {self.method or ''}".rstrip() + kl)
            lines += self._lines(step)
        if self.method is not None and not self.is_taught:
            lines.append(f"{self.method} trains its answer alone: what it holds before is not taught to name states")
        elif self.method is not None and not self.is_held:
            lines.append(f"{self.method} feeds back no mixture of tokens: shown is what it reads out")
        if self.method is not None:
            lines.append(f"{self.method} answers {self.answer}: {'right' if self.is_right else 'wrong'}")
        return "\n".join(lines)

    def _lines(self, step: Step) -> list[str]:
        """A line for each state with a large share, in the task's order, and one for all others."""
        most = {token: max(share, (step.model or {}).get(token, 0.0)) for token, share in step.oracle.items()}
        shown = {*sorted(most, key=lambda token: -most[token])[:MOST_LINES]}
        rest = [token for token in step.oracle if token not in shown]
        rows = [(token, [token]) for token in step.oracle if token in shown]
        rows += [(f"{len(rest)} more", rest)] if rest else []
        lines = []
        for name, tokens in rows:
            model = "" if self.method is None else f"{'-':>8s}"
            if step.model is not None:
                model = f"{sum(step.model[token] for token in tokens):8.4f}"
            lines.append(f"{name:>9s} {sum(step.oracle[token] for token in tokens):7.4f} {model}".rstrip())
        return lines


def think(task: Task, row: np.ndarray, experiment: Experiment | None = None, model: Model | None = None) -> Thinking:
    """One problem of a task, step by step.

    Args:
        task: what the problem is of.
        row: the problem (M,).
        experiment, model: who thinks about it beside the oracle; nobody by default.
    """
    problem = task.to_json(row.tolist())
    if experiment is not None and model is not None and experiment.text is not None:
        return _in_words(task, problem, row, experiment, model)
    batch, names = task.batch(row[None]), task.vocabulary.tokens
    oracle_TV = batch.frontier_BTV[0, : batch.steps_B[0]]
    right = task.say(task.answer_ids(task.answer(row[None]))[0])
    if experiment is None or model is None:
        return Thinking(task.name, problem, right, [_step(oracle_V, None, names) for oracle_V in oracle_TV])
    device = model.backbone.table.weight.device
    examples = experiment.asks(row[None], task).examples(device)
    solution = experiment.method.solve(model, examples, experiment.streams(torch.arange(1, device=device)))
    found_TV, is_held = _held(solution.trace, model.backbone.table)
    model_TV = found_TV.cpu().numpy()
    # Answers of several tokens end later than the oracle, which knows the last of them alone; and a method that skips
    # steps ends with the answer too.
    ahead = len(model_TV) - len(oracle_TV)
    steps = [
        _step(oracle_V, model_TV[t + ahead] if t + ahead >= 0 else None, names) for t, oracle_V in enumerate(oracle_TV)
    ]
    written = task.write(row.tolist(), solution.answer_BA[0].cpu().numpy())
    method = experiment.method
    said = called(method), written["answer"], written["right"], method.supervised, is_held
    return Thinking(task.name, problem, right, steps, *said)


def _in_words(task: Any, problem: dict[str, Any], row: np.ndarray, experiment: Experiment, model: Model) -> Thinking:
    """One problem in text: the tokens of the oracle's targets beside those that the model holds, token by token."""
    speaker, method, device = experiment.asks(row[None], task), experiment.method, model.backbone.table.weight.device
    assert isinstance(speaker, Text | Lines), "text has a speaker of text"
    examples = speaker.examples(device)
    solution = method.solve(model, examples, experiment.streams(torch.arange(1, device=device)))
    trace = solution.trace
    found_TV, is_held = _held(trace, model.backbone.table)
    before = examples.max_steps
    ahead = trace.within(trace.span(ANSWER)).start - before  # a method that skips steps ends with the answer too
    ids_TS, shares_TS = (x[0, :before].cpu() for x in examples.frontier.sparse())
    steps = []
    for t, (ids_S, shares_S) in enumerate(zip(ids_TS, shares_TS, strict=True)):
        target_V = torch.zeros(found_TV.shape[-1]).scatter_add_(0, ids_S, shares_S)
        held_V = found_TV[t + ahead].float().cpu() if t + ahead >= 0 else None
        steps.append(_tokens(target_V, held_V, speaker))
    answer_BA = solution.answer_BA
    right, said = speaker.told(0), speaker.wording.texts(answer_BA)[0]
    is_right = bool(speaker.judge(examples, answer_BA)[0])
    return Thinking(task.name, problem, right, steps, called(method), said, is_right, method.supervised, is_held)


def _tokens(target_V: Tensor, held_V: Tensor | None, speaker: Text | Lines) -> Step:
    """A step of text: the shares of tokens by name, the model's largest ones, and how far the two are apart."""
    shown = {*target_V.nonzero()[:, 0].tolist()}
    if held_V is not None:
        largest, ids = held_V.topk(min(MOST_LINES, len(held_V)))
        shown |= {id_ for id_, share in zip(ids.tolist(), largest.tolist(), strict=True) if share > VISIBLE}
    names: dict[int, str] = {}
    for id_ in sorted(shown):
        name = speaker.name(id_)
        name = name if name.isprintable() and name == name.strip() and name else repr(name)
        names[id_] = name if name not in names.values() else f"{name} ({id_})"
    oracle = {name: float(target_V[id_]) for id_, name in names.items()}
    if held_V is None:
        return Step({name: share for name, share in oracle.items() if share > 0}, None, None)
    kl = float(torch.special.xlogy(target_V, target_V / held_V.clamp(min=1e-30)).sum())
    return Step(oracle, {name: float(held_V[id_]) for id_, name in names.items()}, kl)


def called(method: Method) -> str:
    """What to call a method: its label, or the name of its class where that is no registered method's."""
    if METHODS.get(method.name) is type(method):
        return method.label or method.name
    return type(method).__name__


@torch.no_grad()
def _held(trace: Trace, table: Table) -> tuple[Tensor, bool]:
    """What every step of the first row holds (T, V), and whether each latent is the mixture that is told.

    It is the mixture of tokens that is fed back, or where that is none what the model reads out.
    """
    held_TV, is_held = trace.logits_BTV[0].softmax(-1), True
    for span in trace.thought_spans:
        if not span.thought.has_latent:
            continue
        steps = trace.within(span)
        mixture_TV = _mixture(span.action, held_TV[steps])
        inputs_TD = trace.inputs_BTD[0, steps]
        if mixture_TV is not None and _is_fed_back(table.mix(mixture_TV), inputs_TD):
            held_TV[steps] = mixture_TV
        else:
            is_held = False
    return held_TV, is_held


def _is_fed_back(mixed_TD: Tensor, inputs_TD: Tensor) -> bool:
    """Whether inputs are these mixtures, to within rounding."""
    return torch.allclose(mixed_TD, inputs_TD, rtol=1e-4, atol=1e-4 * float(inputs_TD.abs().max()))


def _mixture(action: Action | None, like_TV: Tensor) -> Tensor | None:
    """The shares of tokens in the inputs that actions make, for the first row; None where they name none."""
    values = {} if action is None else {name: value[0] for name, value in action.values.items()}
    mixture_TV = torch.zeros_like(like_TV)
    dense = values["log_a"].exp() if "log_a" in values else values.get("alpha")
    if dense is not None and dense.ndim == 2 and dense.shape[-1] <= mixture_TV.shape[-1]:
        mixture_TV[:, : dense.shape[-1]] = dense
    elif dense is None and "ids" in values and values["ids"].ndim == 2:
        ids = values["ids"]
        shares = values.get("shares", torch.full_like(ids, 1 / ids.shape[-1], dtype=like_TV.dtype))
        mixture_TV.scatter_add_(1, ids, shares.to(like_TV))
    else:
        return None
    whole = torch.allclose(mixture_TV.sum(-1), mixture_TV.new_ones(()), atol=1e-3)
    return mixture_TV if whole else None


def _step(oracle_V: np.ndarray, model_V: np.ndarray | None, names: Any) -> Step:
    """A step's shares by token, and how far the two are apart. A model knows tokens that the task has not."""
    if model_V is None:
        return Step({names[i]: float(oracle_V[i]) for i in np.flatnonzero(oracle_V > VISIBLE)}, None, None)
    model_V = model_V[: len(oracle_V)]
    shown = np.flatnonzero((oracle_V > VISIBLE) | (model_V > VISIBLE))
    held = oracle_V > 0
    kl = float((oracle_V[held] * np.log(oracle_V[held] / model_V[held].clip(1e-30))).sum())
    return Step({names[i]: float(oracle_V[i]) for i in shown}, {names[i]: float(model_V[i]) for i in shown}, kl)
