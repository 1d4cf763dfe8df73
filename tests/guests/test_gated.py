"""Guest: a gated thought (as HRPO's, arXiv 2505.18454), three learning rates, and a reference that sees tokens only."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from cases import assert_a_thought_is_its_definition
from thoughts import NaiveToken
from tinylatent_tasks import MNNS
from torch import nn

from tinylatent.core.seeds import Seeds, Streams
from tinylatent.engine.controls import controlled
from tinylatent.engine.force import replay
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import Token
from tinylatent.lab.experiment import Experiment
from tinylatent.objectives.method import ParameterGroup
from tinylatent.objectives.policy_gradient import PolicyGradient
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.config import Training
from tinylatent.training.loop import fit


class Gated(Token):
    """a E[id] + sqrt(1 - a^2) (i h): a token beside the mixture h; gates a, i look at the token (equation 4)."""

    has_latent, mixes_table = True, True

    def __init__(self, gate, temperature=1.0):
        super().__init__(temperature)
        self.gate, self.parallel = gate, False

    def latent(self, state, action):
        return state.table.mix(F.softmax(state.logits, -1))

    def compose(self, state, action, latent):
        token = state.table.rows(action["id"])
        r, i = F.linear(token, self.gate["project"].weight).sigmoid().chunk(2, -1)
        a = (-8 * F.softplus(-self.gate["open"].value) * r).exp()
        return a * token + (1 - a**2).clamp(min=0).sqrt() * (i * latent)


class Openness(nn.Module):
    """Lambda: the larger, the more of the token is let through."""

    def __init__(self, width, value=3.0):
        super().__init__()
        self.value = nn.Parameter(torch.full((width,), value))


class NaiveGated(NaiveToken, of=Gated):
    """The equation, for one row."""

    def input(self, now, id):
        token, gate = now.table_VD[id], self.thought.gate
        r, i = (1 / (1 + (-part @ token).exp()) for part in gate["project"].weight.chunk(2))
        a = (1 + (-gate["open"].value).exp()) ** (-8 * r)
        return a * token + (1 - a**2).sqrt() * i * (now.logits.softmax(0) @ now.table_VD)


@dataclass(frozen=True)
class Hybrid(PolicyGradient):
    name = "hybrid"
    inherits = ("backbone", "parts.gate")

    def parts(self, backbone, generator):
        width = backbone.table.width
        project = nn.Linear(width, 2 * width, bias=False)
        nn.init.normal_(project.weight, std=0.1, generator=generator)
        gate = nn.ModuleDict({"project": project, "open": Openness(width)})
        return nn.ModuleDict({"gate": gate, **super().parts(backbone, generator)})

    def reference_thought(self):
        return Token(self.temperature)

    def parameter_groups(self, stage):
        return (
            ParameterGroup(("parts.gate.open",), learning_rate=0.1, weight_decay=0.1),
            ParameterGroup(("parts.gate",), 0.01),
        )

    def thinking(self, model, examples, temperature=0.0):
        return (Segment(Gated(model.parts["gate"], self.temperature), examples.num_steps),)


TASK = MNNS(digits=3, high=3)


def test_a_gated_thought_is_its_definition(model):
    gate = Hybrid().parts(model, torch.Generator().manual_seed(0))["gate"].double()
    assert_a_thought_is_its_definition(model, Gated(gate, 1.2))


def test_a_gated_thought_fits(unchecked):
    method = Hybrid(group=4, kl=0.05)
    model = Experiment(task=TASK, method=method).fresh()
    examples = Symbols(TASK, TASK.split("train", 0)).examples()
    before = {name: value.clone() for name, value in model.named_parameters()}
    recipe = Training(
        steps=8, batch_size=4, learning_rate=1e-3, warmup=0.0, schedule="constant", log_every=2, weight_decay=0.0
    )
    fit(model, method, examples, recipe, Seeds())
    moved = {name: float((value - before[name]).detach().abs().max()) for name, value in model.named_parameters()}
    assert moved["parts.reference.backbone.embedding"] == 0
    assert 0 < moved["backbone.embedding"] < 0.01 < moved["parts.gate.project.weight"] < 0.1
    assert moved["parts.gate.open.value"] > 0.1  # decay and gradient at the gate's own rate
    few = examples.rows(slice(0, 4))
    trace = method.solve(model, few, Streams(1, torch.arange(16)), temperature=1.0, group=4).trace
    reference = model.parts["reference"].backbone
    seen, bare = replay(reference, trace, thought=method.reference_thought()), replay(reference, trace)
    assert seen.at_once
    assert torch.equal(seen.answer(), trace.answer())
    assert not torch.allclose(seen.logits_BTV[:, 1:], bare.logits_BTV[:, 1:])
    gated = method.plan(model, few)[0].thought
    closed = controlled((Segment(gated, 2), Segment(Token(), 1)), "zero")  # the latent goes, the token's share stays
    run = rollout(model.backbone, closed, few.prompt_BN, streams=Streams(0, torch.arange(4)))
    token_BTD = model.backbone.table.rows(run.spans[1].action["id"])
    share_BTD = run.inputs_BTD / token_BTD
    assert ((share_BTD > 0) & (share_BTD < 1)).all()


def test_a_closed_gate_is_a_token(unchecked):
    method = Hybrid(group=2)
    model = Experiment(task=TASK, method=method).fresh()
    model.parts["gate"]["open"].value.data.fill_(torch.inf)
    examples = Symbols(TASK, TASK.split("train", 0)[:8]).examples()
    trace = method.solve(model, examples, Streams(0, torch.arange(8)), temperature=1.0).trace
    tokens = replay(model.backbone, trace, thought=Token(1.0))
    torch.testing.assert_close(trace.inputs_BTD, tokens.inputs_BTD, rtol=0, atol=0)
    torch.testing.assert_close(trace.log_prob_BT, tokens.log_prob_BT, rtol=0, atol=1e-6)
