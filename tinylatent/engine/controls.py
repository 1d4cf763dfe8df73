"""Controls: wrap any thought and ask whether its latent part matters. The token part stays, choice and probability too.

Letters: B rows, D width, G rollouts of a group; `*rows` is B, or B T for a whole segment.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tinylatent.core.seeds import Streams
from tinylatent.engine.plan import Plan, Repeat, Segment
from tinylatent.engine.thought import Action, State, Thought


class Control(Thought):
    """Base of the controls: samples like the thought inside, then feeds another latent part.

    Raises:
        ValueError: the thought inside has no latent part, so there is nothing to replace.
    """

    def __init__(self, inner: Thought):
        super().__init__()
        if not inner.has_latent:
            raise ValueError(f"{type(inner).__name__} has no latent part to replace: controls pass it by")
        self.inner, self.has_latent = inner, True
        self.parallel, self.needs_streams = inner.parallel, inner.needs_streams
        self.reads_history, self.mixes_table = inner.reads_history, inner.mixes_table

    def sample(self, state: State, streams: Streams | None) -> Action:
        """The action of the thought inside."""
        return self.inner.sample(state, streams)

    def log_prob(self, state: State, action: Action) -> Float[Tensor, "*rows"]:
        """That of the thought inside: a control changes what is fed, not what was chosen."""
        return self.inner.log_prob(state, action)

    def token(self, action: Action) -> Int[Tensor, "*rows"] | None:
        """The token of the thought inside."""
        return self.inner.token(action)

    def latent(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """What is fed instead of the latent of the thought inside."""
        latent = self.inner.latent(state, action)
        assert latent is not None, "a thought that has a latent part gives one"
        return self.replaced(latent, state, action)

    def compose(self, state: State, action: Action, latent: Tensor | None) -> Float[Tensor, "*rows D"]:
        """As the thought inside composes it."""
        return self.inner.compose(state, action, latent)

    def replaced(self, latent: Tensor, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """The other latent part."""
        raise TypeError(f"{type(self).__name__} does not define replaced")


class Noise(Control):
    """A random direction with the norm of the latent it replaces."""

    def __init__(self, inner: Thought):
        super().__init__(inner)
        self.needs_streams = True

    def sample(self, state: State, streams: Streams | None) -> Action:
        """The action of the thought inside, and a normal vector."""
        assert streams is not None, "the engine demands streams for sampling thoughts"
        action = self.inner.sample(state, streams)
        noise_BD = streams.normal(state.hidden.shape[-1]).to(state.hidden)
        return replace(action, values={**action.values, "noise": noise_BD})

    def replaced(self, latent: Tensor, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """The noise, scaled to the latent's norm.

        Raises:
            ValueError: the action was given without any.
        """
        if "noise" not in action.values:
            raise ValueError("noise is drawn where a step is sampled, and given actions have none: roll the plan out")
        return action["noise"] * (latent.norm(dim=-1, keepdim=True) / action["noise"].norm(dim=-1, keepdim=True))


class Shuffled(Control):
    """The latent of another problem: by default of the problem before, else of the rows that are named.

    Args:
        inner: the thought.
        source_B: prompt whose latent each prompt is fed, one may name itself; rollouts of a group keep their places.

    Raises:
        ValueError: without named rows, when the batch holds a single problem, so there is no other to take from.
    """

    def __init__(self, inner: Thought, source_B: Int[Tensor, " B"] | None = None):
        super().__init__(inner)
        self.source_B = source_B

    def replaced(self, latent: Tensor, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """The other row's latent."""
        if self.source_B is not None:
            source_B = self.source_B.repeat_interleave(state.group) * state.group
            return latent[source_B + torch.arange(len(source_B), device=source_B.device) % state.group]
        if state.group == len(latent):
            raise ValueError("shuffled latents need at least two problems in a batch; pass more problems")
        return latent.roll(state.group, 0)


class Zero(Control):
    """The zero vector."""

    def replaced(self, latent: Tensor, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """Zeros."""
        return torch.zeros_like(latent)


CONTROLS: dict[str, type[Control]] = {"noise": Noise, "shuffled": Shuffled, "zero": Zero}


def controlled(plan: Plan, control: str) -> Plan:
    """The plan with the latent part of every thought replaced by a control: "noise", "shuffled" or "zero".

    Thoughts without a latent part stay as they are; a plan of such alone is not changed.

    Raises:
        ValueError: unknown control.
    """
    if control not in CONTROLS:
        raise ValueError(f"unknown control {control!r}: expected one of {', '.join(CONTROLS)}")

    def swap(segment: Segment) -> Segment:
        if not segment.thought.has_latent:
            return segment
        return replace(segment, thought=CONTROLS[control](segment.thought), name=segment.label)

    return tuple(
        replace(part, segments=tuple(map(swap, part.segments))) if isinstance(part, Repeat) else swap(part)
        for part in plan
    )
