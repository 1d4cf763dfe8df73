"""Guest: latents that stop under a head, the stop in the likelihood (as CoLaR's end of thinking)."""

from dataclasses import dataclass

import torch
from tinylatent_tasks import MNNS
from torch import nn

from tinylatent.core.seeds import Seeds, Streams
from tinylatent.engine.force import force
from tinylatent.engine.plan import ANSWER, Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thought import Action
from tinylatent.engine.thoughts import GREEDY, HIDDEN, Stopping, Token
from tinylatent.lab.experiment import Experiment
from tinylatent.objectives.method import TrainState
from tinylatent.objectives.policy_gradient import PolicyGradient
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.config import Training
from tinylatent.training.loop import fit

MOST = 5


@dataclass(frozen=True)
class Endings(PolicyGradient):
    """Thinks in hidden states until its head says stop, then writes the delimiter, then answers."""

    name = "endings"
    extra_tokens = ("<end>",)
    extra_steps = MOST + 1

    def parts(self, backbone, generator):
        head = nn.Linear(backbone.table.width, 1)
        nn.init.normal_(head.weight, std=0.1, generator=generator)
        nn.init.zeros_(head.bias)
        return nn.ModuleDict({"stop": head})

    def thinking(self, model, examples, temperature=0.0):
        end_B1 = torch.full((len(examples), 1), self.extra_id(model, "<end>"))
        stopping = Stopping(HIDDEN, model.parts["stop"], temperature=1.0)
        return (
            Segment(stopping, MOST, name="thinking", min_steps=1),
            Segment(GREEDY, 1, GREEDY.given(end_B1), "delimiter"),
        )


def test_latents_that_stop_fit(unchecked):
    task, method = MNNS(digits=3, high=3), Endings(group=8)
    model = Experiment(task=task, method=method).fresh()
    assert len(model.backbone.table) == len(task.vocabulary) + 1
    examples = Symbols(task, task.split("train", 0)).examples()
    before = model.parts["stop"].weight.clone()
    fit(model, method, examples, Training(steps=6, batch_size=8, learning_rate=1e-2, log_every=3), Seeds())
    assert not torch.equal(before, model.parts["stop"].weight)  # the decision to stop was learnt from
    trace = method.solve(
        model, examples.rows(slice(0, 8)), Streams(0, torch.arange(64)), temperature=1.0, group=8
    ).trace
    assert 2 < len(trace.length_B.unique()) <= MOST
    assert trace.length_B.min() >= 1 + 1 + 1
    assert trace.drawn_BT[:, trace.within(trace.span("delimiter"))].logical_not().all()  # given: no part of the policy
    ends_B = trace.inputs_BTD[:, trace.within(trace.span("delimiter"))]
    assert torch.equal(ends_B[0, 0], model.backbone.embedding[-1])
    assert (trace.answer() >= 0).all()


def test_the_reference_keeps_its_own_head(unchecked):
    """A head that drifts away from where training began shows in the divergence, though the backbone stands still."""
    task, method = MNNS(digits=3, high=3), Endings(group=4, kl=0.1)
    model = Experiment(task=task, method=method).fresh()
    examples, state = Symbols(task, task.split("train", 0)[:4]).examples(), TrainState(0, 1, 0)
    method.enter(model, 0, examples, state)
    still = method.loss(model, method.collect(model, examples, state), state).metrics["reference_kl"]
    model.parts["stop"].bias.data += 2
    moved = method.loss(model, method.collect(model, examples, state), state).metrics["reference_kl"]
    assert still == 0
    assert moved > 0.05


def test_probabilities_of_all_stop_times_sum_to_one(model):
    """Stopping before step 0, 1, ... or never within the limit; none before the least."""
    head, prompt = nn.Linear(8, 1).double(), torch.tensor([[1, 2]])
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    thought = Stopping(HIDDEN, head)
    for least in (0, 2):
        free = Segment(HIDDEN, MOST)
        hidden = rollout(model, (free,), prompt).action("hidden")
        total = 0.0
        for time in range(least, MOST + 1):
            stop = torch.arange(MOST)[None] == time
            given = Segment(thought, MOST, Action({"hidden": hidden}, stop, stop_slot=False), min_steps=least)
            answer = Segment(Token(), 1, GREEDY.given(torch.tensor([[0]])), ANSWER)
            trace = force(model, (given, answer), prompt)
            total += float(trace.log_prob_BT[:, trace.within(trace.spans[1])].detach().sum().exp())
        assert abs(total - 1) < 1e-9
