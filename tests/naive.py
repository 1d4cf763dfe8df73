"""What results are held against: the model and the engine written a second time, for one row, and gradients.

No padding, no cache, no mask; loops over slots and heads. The model's weights are read by name; a thought is read by
the reference that is registered for its class (see `Naive`). In float64 to 1e-9 where a test says no more.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch

from tinylatent.core.seeds import Streams
from tinylatent.engine.plan import Repeat
from tinylatent.engine.thought import Action, State, Thought
from tinylatent.models.backbone import Table


def gradients(scalar, tensors):
    """Gradients as one flat tensor; zeros where the scalar does not depend on a tensor."""
    parts = torch.autograd.grad(scalar, list(tensors), materialize_grads=True, allow_unused=True, retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


def score(x):
    """A scalar that depends on every number differently."""
    return (x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sin().sum()


def assert_same_function(module, got, expected, inputs):
    """Values, and gradients with respect to all weights and the inputs, to 1e-10."""
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    wanted = [*module.parameters(), inputs]
    found = [gradients(score(x), wanted) for x in (got, expected)]
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------------------------------------------------------
# The model


def _norm(x_D, gain_D):
    centred_D = x_D - x_D.mean()
    return gain_D * centred_D / ((centred_D**2).mean() + 1e-5).sqrt()


def _attention(inputs, qkv, out, heads, norms=None):
    query, key, value = (
        torch.stack([part @ x_D for x_D in inputs]).split(len(out) // heads, 1) for part in qkv.chunk(3)
    )
    if norms is not None:
        query, key = (
            [norm_K * x_SK / ((x_SK**2).mean(1, keepdim=True) + 2.2e-16).sqrt() for x_SK in part]
            for norm_K, part in zip(norms, (query, key), strict=True)
        )
    found = []
    for t in range(len(inputs)):
        mixed = []
        for q_SK, k_SK, v_SK in zip(query, key, value, strict=True):
            scores = k_SK[: t + 1] @ q_SK[t] / math.sqrt(k_SK.shape[1])
            weights = (scores - scores.max()).exp()
            mixed.append(weights @ v_SK[: t + 1] / weights.sum())
        found.append(out @ torch.cat(mixed))
    return found


def _mlp(x_D, of, kind):
    if "mlp.router" in of:
        chances = (of["mlp.router"] @ x_D + of["mlp.router_bias"]).exp()
        best = max(range(len(chances)), key=chances.tolist().__getitem__)
        hidden = (of["mlp.up_proj"][best] @ x_D + of["mlp.up_bias"][best]).clamp(min=0)
        return (of["mlp.down_proj"][best] @ hidden + of["mlp.down_bias"][best]) * chances[best] / chances.sum()
    up = of["mlp.up_proj"] @ x_D
    if kind == "swiglu":
        gate, up = up[: len(up) // 2], up[len(up) // 2 :]
        return of["mlp.down_proj"] @ (up * gate / (1 + (-gate).exp()))
    return of["mlp.down_proj"] @ (up.clamp(min=0) if kind == "relu" else up * (1 + torch.erf(up / math.sqrt(2))) / 2)


def naive_hidden(model, inputs_SD, positions, norm="pre", mlp="gelu", loops=1):
    """Hidden states (S, D) of one row, slot by slot and head by head.

    Blocks other than the default ones are said by `norm`, `mlp` and `loops`, as in a ModelConfig.
    """
    weight = dict(model.named_parameters())
    stream = [x_D + weight["pos_emb"][p] for x_D, p in zip(inputs_SD, positions, strict=True)]
    layers = {int(name.split(".")[1]) for name in weight if name.startswith("blocks.")}
    for layer in [*sorted(layers)] * loops:
        of = {name.split(".", 2)[2]: value for name, value in weight.items() if name.startswith(f"blocks.{layer}.")}

        def normed(x_D, part, where, of=of, layer=layer):
            kept = norm == "protected" and (layer, part, where) == (0, "attn", "pre")
            return _norm(x_D, of[f"{part}_norm.weight"]) if where == norm or kept else x_D

        def added(x_D, part, of=of):
            """What is added of a part's output."""
            return normed(x_D, part, "after") * of.get(f"{part}_gain", 1.0)

        heads = model.blocks[layer].attention.heads
        seen = [normed(x_D, "attn", "pre") for x_D in stream]
        norms = [of[f"attention.{name}_norm"] for name in ("query", "key")] if norm == "protected" else None
        mixed = _attention(seen, of["attention.qkv_proj"], of["attention.out_proj"], heads, norms)
        stream = [normed(x_D + added(m_D, "attn"), "attn", "post") for x_D, m_D in zip(stream, mixed, strict=True)]
        stream = [normed(x_D + added(_mlp(normed(x_D, "mlp", "pre"), of, mlp), "mlp"), "mlp", "post") for x_D in stream]
    last = norm in ("pre", "after", "protected")
    return torch.stack([_norm(x_D, weight["norm.weight"]) if last else x_D for x_D in stream])


# ---------------------------------------------------------------------------------------------------------------------
# Thoughts


@dataclass
class Now:
    """Where a row stands before a step: all that a thought may look at."""

    table_VD: torch.Tensor
    inputs: list[torch.Tensor]
    """Everything read so far."""
    hidden_SD: torch.Tensor
    early: bool
    """Whether a stop is not allowed yet."""
    streams: Streams
    """The row's own, at this step."""

    @property
    def hidden(self):
        """The last hidden state."""
        return self.hidden_SD[-1]

    @cached_property
    def logits(self):
        """Its readout."""
        return self.table_VD @ self.hidden

    def uniform(self):
        """The row's next uniform."""
        return self.streams.uniform().item()


@dataclass
class Done:
    """What a step comes to."""

    input: torch.Tensor
    log_prob: torch.Tensor | float = 0.0
    stop: bool = False
    slot: bool = True
    """Whether it takes one."""


class Naive(ABC):
    """The definition of a thought, for one row at one step; a subclass registers itself: `class X(Naive, of=Thought)`.

    The test of a new thought brings its own; `cases.assert_a_thought_is_its_definition` then takes it through the
    engine.
    """

    of: ClassVar[dict[type[Thought], type["Naive"]]] = {}

    def __init_subclass__(cls, of: type[Thought]):
        Naive.of[of] = cls

    def __init__(self, thought: Any):
        self.thought = thought

    @abstractmethod
    def given(self, rows: int, steps: int, generator: torch.Generator) -> Action:
        """Any action for so many rows and steps; its numbers ask for gradients."""

    @abstractmethod
    def choose(self, now: Now) -> Any:
        """What is chosen where nothing is given."""

    def read(self, action: Action) -> Any:
        """What a given action of one row and step chooses: its only value."""
        (value,) = action.values.values()
        return value

    @abstractmethod
    def act(self, now: Now, chosen: Any) -> Done:
        """What comes of the choice."""


def naive(thought: Thought) -> Naive:
    """The reference of a thought."""
    return Naive.of[type(thought)](thought)


# ---------------------------------------------------------------------------------------------------------------------
# The engine


@dataclass
class Step:
    """One step of one row."""

    thought: str
    hidden: torch.Tensor
    logits: torch.Tensor
    input: torch.Tensor
    log_prob: torch.Tensor
    slot: bool


def naive_rollout(model, plan, prompt, offset: int, b: int, draw: Callable[[int], Streams]) -> list[Step]:
    """All steps of one rollout, each from the row's whole input sequence.

    Args:
        model: our decoder.
        plan: steps and given actions are those of its row `b`.
        prompt: token ids.
        offset: position of the first.
        b: which prompt of the batch this is.
        draw: the row's streams at a step.
    """
    table = model.embedding
    inputs, steps = [table[i] for i in prompt], []
    places = [*range(offset, offset + len(inputs))]

    def read():
        return naive_hidden(model, inputs, places)

    def take(segment, t):
        reference = naive(segment.thought)
        now = Now(table, inputs, read(), t < segment.min_steps, draw(len(steps)))
        given = segment.given
        chosen = reference.choose(now) if given is None else reference.read(given.map(lambda x: x[b, t]))
        done = reference.act(now, chosen)
        if segment.thought.echoes:
            done = replace(done, input=done.input + inputs[-1])
        log_prob = torch.as_tensor(done.log_prob, dtype=now.hidden.dtype)
        steps.append(Step(type(segment.thought).__name__, now.hidden, now.logits, done.input, log_prob, done.slot))
        if done.slot:
            inputs.append(done.input)
            places.append(places[-1] + segment.thought.placed)
        return done.stop

    for part in plan:
        for _ in range(part.at_most if isinstance(part, Repeat) else 1):
            for segment in part.segments if isinstance(part, Repeat) else (part,):
                for t in range(segment.steps if isinstance(segment.steps, int) else int(segment.steps[b])):
                    if take(segment, t):
                        break
            if isinstance(part, Repeat):
                hidden_SD = read()
                if part.until(State(hidden_SD[-1:], (table @ hidden_SD[-1])[None], Table(table))):
                    break
    return steps
