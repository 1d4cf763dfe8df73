"""The thoughts of the engine, each with its definition written out for one row (see naive.Naive)."""

import torch
import torch.nn.functional as F
from fakes import Aside, Gated, Head, Recall
from naive import Done, Naive, naive
from scipy import special

from tinylatent.engine.distributions import log_dirichlet
from tinylatent.engine.thought import Action
from tinylatent.engine.thoughts import Dirichlet, Hidden, Mixture, MultiToken, Pause, Stopping, Token

V, D = 7, 8
"""Vocabulary and width of the small model of these tests."""


def drawn(logits, threshold):
    """The token at which the cumulative distribution passes the threshold."""
    total = 0.0
    for i, p in enumerate(logits.softmax(0).tolist()):
        total += p
        if threshold < total:
            return torch.tensor(i)


class NaiveToken(Naive, of=Token):
    """E[id], with id from the softmax at its temperature; stop tokens are barred while a stop is not allowed."""

    def given(self, rows, steps, generator):
        return self.thought.given(torch.randint(V, (rows, steps), generator=generator))

    def logits(self, now):
        barred = torch.tensor([now.early and i in self.thought.stop_ids for i in range(V)])
        return now.logits.masked_fill(barred, -torch.inf)

    def choose(self, now):
        temperature = self.thought.temperature
        return drawn(self.logits(now) / temperature, now.uniform()) if temperature else self.logits(now).argmax()

    def input(self, now, id):
        return now.table_VD[id]

    def act(self, now, id):
        log_prob = (self.logits(now) / (self.thought.temperature or 1)).log_softmax(0)[id]
        stop = int(id) in self.thought.stop_ids
        return Done(self.input(now, id), log_prob, stop, self.thought.stop_slot or not stop)


class NaiveMixture(Naive, of=Mixture):
    """E^T softmax(logits); given ones may be few tokens with their shares."""

    def given(self, rows, steps, generator):
        if torch.randint(2, (), generator=generator):
            ids = torch.randint(V, (rows, steps, 3), generator=generator)
            shares = torch.rand(rows, steps, 3, generator=generator, dtype=torch.float64)
            return self.thought.given_sparse(ids, shares.requires_grad_())
        alpha = torch.rand(rows, steps, V, generator=generator, dtype=torch.float64)
        return self.thought.given((alpha / alpha.sum(-1, keepdim=True)).requires_grad_())

    def read(self, action):
        if "shares" in action.values:
            return sum(action["shares"][k] * F.one_hot(action["ids"][k], V) for k in range(3))
        return action["alpha"]

    def choose(self, now):
        return now.logits.exp() / now.logits.exp().sum()

    def act(self, now, alpha):
        return Done(sum(alpha[i] * now.table_VD[i] for i in range(V)))


class NaiveHidden(Naive, of=Hidden):
    """The last hidden state."""

    def given(self, rows, steps, generator):
        return Action(
            {"hidden": torch.randn(rows, steps, D, generator=generator, dtype=torch.float64).requires_grad_()}
        )

    def choose(self, now):
        return now.hidden

    def act(self, now, hidden):
        return Done(hidden)


class NaivePause(Naive, of=Pause):
    """A constant."""

    def given(self, rows, steps, generator):
        return self.thought.given((rows, steps))

    def choose(self, now):
        return None

    def act(self, now, _):
        return Done(self.thought.constant_D)


class NaiveAside(NaivePause, of=Aside):
    """The same; the reference asks the thought whether its slots take positions."""


class NaiveMultiToken(Naive, of=MultiToken):
    """The mean of the K tokens' rows, and the sum of their log-probabilities."""

    def given(self, rows, steps, generator):
        return self.thought.given(torch.randint(V, (rows, steps, self.thought.samples), generator=generator))

    def choose(self, now):
        thresholds = [now.uniform() for _ in range(self.thought.samples)]
        return torch.stack([drawn(now.logits / self.thought.temperature, threshold) for threshold in thresholds])

    def act(self, now, ids):
        log_p_V = (now.logits / self.thought.temperature).log_softmax(0)
        return Done(sum(now.table_VD[i] for i in ids) / self.thought.samples, sum(log_p_V[i] for i in ids))


class NaiveDirichlet(Naive, of=Dirichlet):
    """E^T a, with a drawn around the softmax; its density less the factor of a alone."""

    def given(self, rows, steps, generator):
        log_a = torch.randn(rows, steps, V, generator=generator, dtype=torch.float64)
        return self.thought.given(log_a.log_softmax(-1).requires_grad_())

    def choose(self, now):
        shares = self.thought.gamma * now.logits.softmax(0)
        return log_dirichlet(now.streams, shares.log()[None])[0].detach()

    def act(self, now, log_a):
        shares = self.thought.gamma * now.logits.softmax(0)
        log_prob = torch.lgamma(shares.sum()) + (shares * log_a - torch.lgamma(shares)).sum()
        return Done(sum(log_a[i].exp() * now.table_VD[i] for i in range(V)), log_prob)


def dirichlet_density(logits, log_a, gamma):
    """Log-density of a ~ Dirichlet(gamma softmax(logits)) times a_1 ... a_V, by scipy in float64."""
    c = gamma * special.softmax(logits.detach().double().numpy(), -1)
    terms = c * log_a.detach().double().numpy() - special.gammaln(c)
    return torch.from_numpy(special.gammaln(c.sum(-1)) + terms.sum(-1))


class NaiveStopping(Naive, of=Stopping):
    """Stops with the head's probability, and counts that; goes on as the thought within."""

    def __init__(self, thought):
        super().__init__(thought)
        self.inner = naive(thought.inner)

    def given(self, rows, steps, generator):
        action = self.inner.given(rows, steps, generator)
        return Action(action.values, torch.rand(rows, steps, generator=generator) < 0.3, stop_slot=False)

    def read(self, action):
        return self.inner.read(action), bool(action.stop)

    def choose(self, now):
        chosen, p = self.inner.choose(now), float(self.thought.head(now.hidden).detach().sigmoid())
        threshold = now.uniform() if self.thought.temperature else 0.5
        return chosen, not now.early and threshold < p

    def act(self, now, choice):
        chosen, stop = choice
        done, logit = self.inner.act(now, chosen), self.thought.head(now.hidden).squeeze()
        decided = self.thought.temperature and not now.early
        log_prob = (logit if stop else -logit).sigmoid().log() if decided else 0.0
        return Done(done.input, log_prob if stop else log_prob + done.log_prob, stop, not stop)


class NaiveGated(NaiveToken, of=Gated):
    """The two in their ratio."""

    def input(self, now, id):
        return 0.8 * now.table_VD[id] + 0.6 * (now.logits.softmax(0) @ now.table_VD)


class NaiveRecall(NaiveToken, of=Recall):
    """The sum of the four."""

    def input(self, now, id):
        return now.table_VD[id] + now.hidden / 2 + torch.stack(now.inputs).mean(0) - now.hidden_SD.mean(0)


PAUSE = Pause(D, torch.Generator().manual_seed(1)).double()
ASIDE = Aside(D, torch.Generator().manual_seed(2)).double()
THOUGHTS = {
    "greedy": Token(),
    "stopping": Token(stop_ids=(0, 1, 2)),
    "sampled": Token(1.5, stop_ids=(4,)),
    "mixture": Mixture(),
    "hidden": Hidden(),
    "pause": PAUSE,
    "aside": ASIDE,
    "tokens": MultiToken(2, 1.3),
    "simplex": Dirichlet(1.5),
    "recall": Recall(stop_ids=(5, 6)),
    "gated": Gated(1.2, stop_ids=(3,)),
    "slotless": Token(1.1, stop_ids=(0, 1, 2), stop_slot=False),
    "ending": Stopping(Hidden(), Head(0)),
    "ending tokens": Stopping(MultiToken(2), Head(2)),
    "deciding": Stopping(Mixture(), Head(1), temperature=0.0),
}
"""One of every kind, by a name of its own."""
PARALLEL = [name for name, thought in THOUGHTS.items() if thought.parallel]
