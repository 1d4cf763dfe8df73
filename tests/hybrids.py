"""What tests of HRPO share: a task with chains of several lengths, models whose inputs matter, and rollouts."""

import torch
from tinylatent_tasks import MultiHop

from tinylatent.core.seeds import Streams
from tinylatent.engine.rollout import rollout
from tinylatent.lab.experiment import Experiment
from tinylatent.methods.discrete import THINKING
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.speakers import Symbols

TASK = MultiHop(hops=4, nodes=5, bound=True)


def model_of(method, task=TASK, dtype=torch.float64, scale=8):
    """A model whose weights are large enough that every input matters; the gate is as it starts."""
    model = Experiment(task, method, ModelConfig(16, 2, 2)).fresh().to(dtype)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return model


def asked(rows=6, task=TASK):
    return Symbols(task, task.problems(rows, seed=1)).examples()


def rolled(method, model, examples, group=4):
    """A rollout as training makes it: sampled thoughts and answers."""
    return rollout(
        model.backbone,
        method.plan(model, examples, method.temperature),
        examples.prompt_BN,
        examples.prompt_mask_BN,
        streams=Streams(5, len(examples) * group),
        group=group,
    )


def gated_BT(trace):
    """Steps of the thinking whose input has a latent part."""
    span = trace.span(THINKING)
    return trace.acted_BT[:, trace.within(span)] & ~span.action.stop


def opened(model, value):
    """The model with Lambda at one value."""
    with torch.no_grad():
        model.parts["gate"].openness_D.fill_(value)
    return model


def one_row(model, trace, row):
    """Logits of a row's own inputs, without padding, cache or neighbours; a step sees the last slot before it."""
    N, live_S = trace.prompt_BN.shape[1], trace.mask_BS[row]
    inputs_SD = torch.cat([model.backbone.table.rows(trace.prompt_BN[row]), trace.inputs_BTD[row]])[live_S[:-1]]
    hidden_1SD, _ = model.backbone.forward(inputs_SD[None])
    place_T = (live_S.cumsum(0) - 1)[N - 1 : -1]
    return model.backbone.readout(hidden_1SD[0, place_T[trace.acted_BT[row]]])
