"""Guest: a thought that attends to the prompt (as LatentR3's), its noise in all places of a group but the first, and
answers ranked against candidates; a gradient reaches it by the score of what was drawn and by the path."""

from dataclasses import dataclass

import pytest
import torch
from tinylatent_tasks import MNNS
from torch import nn

from tinylatent.core.seeds import Seeds, Streams
from tinylatent.engine.force import replay
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thought import Action, Thought
from tinylatent.evaluation.ranking import candidate_log_prob, rank_of
from tinylatent.lab.experiment import Experiment
from tinylatent.objectives.method import ParameterGroup
from tinylatent.objectives.policy_gradient import PolicyGradient
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.config import Training
from tinylatent.training.loop import fit

NOISE = 0.1


class Attending(Thought):
    """Attention from the last state over the prompt's, plus noise. The action holds noise and vector: `path` says
    whether what is fed is the mean of now with the old noise, or the old vector."""

    has_latent, needs_streams, reads_history, parallel = True, True, True, False

    def __init__(self, query, path=False):
        super().__init__()
        self.query, self.path = query, path

    def mean(self, state):
        hidden_BND, mask_BN = state.history().prompt
        queries = self.query(state.hidden).view(len(hidden_BND), -1, hidden_BND.shape[-1])
        scores_BTN = (queries @ hidden_BND.mT).masked_fill(~mask_BN[:, None], -torch.inf)
        return (scores_BTN.softmax(-1) @ hidden_BND).view_as(state.hidden)

    def sample(self, state, streams):
        noise = streams.normal(state.hidden.shape[-1]).to(state.hidden) * NOISE
        noise = noise * (state.index_in_group_B > 0)[:, None]
        action = {"noise": noise, "vector": (self.mean(state) + noise).detach()}
        return Action(action, log_prob=self.log_prob(state, Action(action)).detach())

    def log_prob(self, state, action):
        gap = (action["vector"] - self.mean(state)) / NOISE
        return -(gap**2).sum(-1) / 2

    def latent(self, state, action):
        return self.mean(state) + action["noise"] if self.path else action["vector"]


@dataclass(frozen=True)
class Attention(PolicyGradient):
    """Rewards a latent by how likely it makes the right answer; the backbone stays frozen."""

    name = "attention"
    path: bool = False

    def parts(self, backbone, generator):
        query = nn.Linear(backbone.table.width, backbone.table.width, bias=False)
        nn.init.normal_(query.weight, generator=generator)
        return nn.ModuleDict({"query": query})

    def parameter_groups(self, stage):
        return (ParameterGroup(("backbone",), frozen=True),)

    def thinking(self, model, examples, temperature=0.0):
        return (Segment(Attending(model.parts["query"], self.path), 2),)

    def reward(self, model, examples, trace, state):
        prompt = trace.prompt_BN, trace.prompt_mask_BN
        thinking = rollout(model.backbone, trace.plan()[:-1], *prompt, offset_B=trace.offset_B)
        return candidate_log_prob(thinking, examples.repeated(trace.group).answer_BA[:, None])[:, 0]


TASK = MNNS(digits=3, high=3)


def begun(**options):
    method = Attention(group=4, **options)
    model = Experiment(task=TASK, method=method).fresh()
    return method, model, Symbols(TASK, TASK.split("train", 0)).examples()


def test_an_attending_thought_fits(unchecked):
    method, model, examples = begun()
    frozen, query = model.backbone.embedding.clone(), model.parts["query"].weight.clone()
    fit(model, method, examples, Training(steps=6, batch_size=4, learning_rate=1e-2, log_every=3), Seeds())
    assert torch.equal(model.backbone.embedding, frozen)
    assert not torch.equal(model.parts["query"].weight, query)
    few = examples.rows(slice(0, 3))
    trace = method.solve(model, few, Streams(0, torch.arange(12)), group=4).trace
    quiet_B = trace.action("noise").abs().sum((1, 2)) == 0
    assert quiet_B.tolist() == [True, False, False, False] * 3
    thinking = rollout(model.backbone, trace.plan()[:-1], trace.prompt_BN)
    sums = torch.arange(len(TASK.vocabulary))[None, :, None].expand(12, -1, 1)
    score_BC = candidate_log_prob(thinking, sums)  # every token as an answer
    assert torch.allclose(score_BC.exp().sum(1), torch.ones(12))
    assert torch.equal(score_BC.argmax(1), trace.answer()[:, 0])
    right_B = examples.rows(slice(0, 3)).repeated(4).answer_BA[:, 0]
    assert torch.equal(rank_of(score_BC, right_B) == 1, trace.answer()[:, 0] == right_B)


@pytest.mark.parametrize("path", [False, True])
def test_a_gradient_reaches_it_by_score_and_by_path(path, unchecked):
    method, model, examples = begun(path=path)
    few, query = examples.rows(slice(0, 3)), model.parts["query"].weight
    trace = method.solve(model, few, Streams(0, torch.arange(12)), group=4).trace
    now = replay(model.backbone, trace)
    torch.testing.assert_close(now.log_prob_BT[:, :2], trace.sampled_log_prob_BT[:, :2], rtol=1e-5, atol=1e-4)
    by_score = torch.autograd.grad(now.log_prob_BT[:, :2].sum(), query, retain_graph=True)[0]
    assert by_score.abs().max() > 0
    likelihood = now.log_prob_BT[:, 2:].sum()
    by_path = torch.autograd.grad(likelihood, query, allow_unused=True)[0]
    assert (by_path is not None and bool(by_path.abs().max() > 0)) == path
