"""Thoughts, heads, states and numbers that are made for tests."""

import torch

from tinylatent.engine.thought import State
from tinylatent.engine.thoughts import Pause, Token
from tinylatent.models.backbone import Table


def random(*shape, seed=0):
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def state(*rows, group=1, seed=0, size=(5, 4)):
    """A state of a vocabulary and width, for rows of this shape."""
    V, D = size
    hidden, embedding = random(*rows, D, seed=seed), random(V, D, seed=seed + 1)
    return State(hidden, hidden @ embedding.T, Table(embedding), group)


class Gated(Token):
    """A token beside the mixture of the softmax, in a fixed ratio: both parts of an input at once."""

    has_latent, parallel, mixes_table = True, False, True

    def latent(self, state, action):
        return state.table.mix(state.logits.softmax(-1))

    def compose(self, state, action, latent):
        return 0.8 * state.table.rows(action["id"]) + 0.6 * latent


class Aside(Pause):
    """A learned vector whose slots take no positions."""

    placed = False


class Recall(Token):
    """A token plus the state and the mean of everything read: `embed` needs more than the action."""

    parallel, reads_history = False, True

    def embed(self, state, action):
        history = state.history()
        mask_BS1 = history.mask_BS[..., None]
        means = [(x * mask_BS1).sum(1) / mask_BS1.sum(1) for x in (history.inputs_BSD, history.hidden_BSD)]
        return super().embed(state, action) + state.hidden / 2 + means[0] - means[1]


class Head(torch.nn.Linear):
    """A head with weights that decide: in float64, drawn from a seed."""

    def __init__(self, seed, width=8):
        super().__init__(width, 1, dtype=torch.float64)
        with torch.no_grad():
            self.weight.copy_(random(1, width, seed=seed))
            self.bias.copy_(random(1, seed=seed + 1))


class Always(torch.nn.Module):
    """A head whose logit is the same everywhere."""

    def __init__(self, logit):
        super().__init__()
        self.logit = torch.nn.Parameter(torch.tensor([float(logit)], dtype=torch.float64))

    def forward(self, hidden):
        return self.logit.expand(*hidden.shape[:-1], 1)
