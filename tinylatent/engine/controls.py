"""Controls: replace the latent part of a thought, to test whether it matters. Action, probability and token stay.

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
    """Base of all controls: samples as the wrapped thought does, then replaces the latent part of the input.

    Raises:
        ValueError: the wrapped thought has no latent part, so there is nothing to replace.
    """

    def __init__(self, inner: Thought):
        super().__init__()
        if not inner.has_latent:
            raise ValueError(
                f"{type(inner).__name__} has no latent part to replace: wrap one that has, or use controlled(plan)"
            )
        self.inner, self.has_latent = inner, True
        self.parallel, self.needs_streams = inner.parallel, inner.needs_streams
        self.reads_history, self.mixes_table = inner.reads_history, inner.mixes_table
        self.placed, self.echoes = inner.placed, inner.echoes

    def sample(self, state: State, streams: Streams | None) -> Action:
        """The action of the wrapped thought."""
        return self.inner.sample(state, streams)

    def log_prob(self, state: State, action: Action) -> Float[Tensor, "*rows"]:
        """The wrapped thought's: a control changes the input, not the action."""
        return self.inner.log_prob(state, action)

    def token(self, action: Action) -> Int[Tensor, "*rows"] | None:
        """The token of the wrapped thought."""
        return self.inner.token(action)

    def latent(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """The latent part that replaces the wrapped thought's."""
        latent = self.inner.latent(state, action)
        assert latent is not None, "a thought that has a latent part gives one"
        return self.replaced(latent, state, action)

    def compose(self, state: State, action: Action, latent: Tensor | None) -> Float[Tensor, "*rows D"]:
        """The next input, composed as by the wrapped thought."""
        return self.inner.compose(state, action, latent)

    def replaced(self, latent: Tensor, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """The replacement of `latent`; TypeError if the subclass defines none."""
        raise TypeError(f"{type(self).__name__} does not define replaced")


class Noise(Control):
    """A random direction with the norm of the latent it replaces."""

    def __init__(self, inner: Thought):
        super().__init__(inner)
        self.needs_streams = True

    def sample(self, state: State, streams: Streams | None) -> Action:
        """The action of the wrapped thought, and a normal vector."""
        assert streams is not None, "the engine demands streams for sampling thoughts"
        action = self.inner.sample(state, streams)
        noise_BD = streams.normal(state.hidden.shape[-1]).to(state.hidden)
        return replace(action, values={**action.values, "noise": noise_BD})

    def replaced(self, latent: Tensor, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """The noise, scaled to the latent's norm.

        Raises:
            ValueError: the action was given, so it holds no noise.
        """
        if "noise" not in action.values:
            raise ValueError("a given action holds no noise, which is drawn when a step is sampled: use rollout")
        return action["noise"] * (latent.norm(dim=-1, keepdim=True) / action["noise"].norm(dim=-1, keepdim=True))


class Shuffled(Control):
    """The latent of another problem: by default of the previous one in the batch.

    A sampled action holds the latent that it got, so that a replay of some of the rows feeds the same.

    Args:
        inner: the wrapped thought.
        source_B: for every prompt the index of the prompt whose latent it gets (its own is allowed); rollout i of its
            group gets the latent of rollout i of the other's.
    """

    def __init__(self, inner: Thought, source_B: Int[Tensor, " B"] | None = None):
        super().__init__(inner)
        self.source_B = source_B

    def sample(self, state: State, streams: Streams | None) -> Action:
        """The action of the wrapped thought, and the latent of another problem."""
        action = self.inner.sample(state, streams)
        return replace(action, values={**action.values, "other": super().latent(state, action)})

    def latent(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """The other problem's latent, as it was when the action was sampled; of the rows that are here if given."""
        return action["other"] if "other" in action.values else super().latent(state, action)

    def replaced(self, latent: Tensor, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """The other problem's latent.

        Raises:
            ValueError: there is a single problem in the batch, and no source_B.
        """
        if self.source_B is not None:
            source_B = self.source_B.repeat_interleave(state.group) * state.group
            return latent[source_B + torch.arange(len(source_B), device=source_B.device) % state.group]
        if state.group == len(latent):
            raise ValueError("shuffled latents need at least two problems in a batch; pass more problems")
        return latent.roll(state.group, 0)


class Zero(Control):
    """The zero vector in place of the latent."""

    def replaced(self, latent: Tensor, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """Zeros."""
        return torch.zeros_like(latent)


CONTROLS: dict[str, type[Control]] = {"noise": Noise, "shuffled": Shuffled, "zero": Zero}


def controlled(plan: Plan, control: str) -> Plan:
    """The plan with the latent part of every thought replaced by a control: "noise", "shuffled" or "zero".

    Thoughts without a latent part are not wrapped.

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
