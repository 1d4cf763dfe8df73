"""Guest: states fitted by k-means at the start of a stage, with the backbone frozen from then on (as CTRLS's); a run
that stops there or after ends as one that did not."""

from dataclasses import dataclass

import pytest
import torch
from tinylatent_tasks import MNNS
from torch import nn

from tinylatent.core.seeds import Seeds, derive
from tinylatent.engine.plan import Segment
from tinylatent.engine.thought import Action, State, Thought
from tinylatent.lab.experiment import Experiment
from tinylatent.methods import DiscreteCoT
from tinylatent.objectives.method import Method, ParameterGroup
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.checkpoints import load_weights
from tinylatent.training.config import Training
from tinylatent.training.loop import fit, stage_end

STATES, STEPS, SPLIT = 4, 12, 5


class Soft(Thought):
    """A mixture of state embeddings, by how near the hidden state is to each state's mean."""

    has_latent = True

    def __init__(self, states):
        super().__init__()
        self.states = states

    def sample(self, state, streams):
        return Action({"share": (-(torch.cdist(state.hidden, self.states.mean_KD) ** 2)).softmax(-1)})

    def latent(self, state, action):
        return action["share"] @ self.states.embedding


class States(nn.Module):
    """Means of hidden states, fitted; an embedding for each, trained."""

    def __init__(self, width, generator):
        super().__init__()
        self.register_buffer("mean_KD", torch.zeros(STATES, width))
        self.embedding = nn.Parameter(torch.randn(STATES, width, generator=generator))


@dataclass(frozen=True)
class Transitions(Method):
    name = "transitions"

    def parts(self, backbone, generator):
        return nn.ModuleDict({"states": States(backbone.table.width, generator)})

    def stage_starts(self, steps):
        return (0, SPLIT)

    def parameter_groups(self, stage):
        return (ParameterGroup(("backbone",), frozen=True),) if stage else (ParameterGroup(("parts",), frozen=True),)

    def begin_stage(self, model, stage, examples, state):
        if stage == 1:  # k-means over the states in which the chain's steps are said
            with torch.no_grad():
                hidden_RD = DiscreteCoT().forced(model, examples).hidden_BTD.flatten(0, 1)
            generator = torch.Generator().manual_seed(derive(state.seed, "k-means"))
            mean_KD = hidden_RD[torch.randperm(len(hidden_RD), generator=generator)[:STATES]]
            for _ in range(10):
                near_R = torch.cdist(hidden_RD, mean_KD).argmin(1)
                mean_KD = torch.stack([hidden_RD[near_R == k].mean(0) for k in range(STATES)]).nan_to_num()
            model.parts["states"].mean_KD.copy_(mean_KD)

    def thinking(self, model, examples, temperature=0.0):
        if int(model.stage) == 0:
            return DiscreteCoT().thinking(model, examples, temperature)
        return (Segment(Soft(model.parts["states"]), examples.num_steps),)

    def loss(self, model, batch, state):
        if int(model.stage) == 0:
            return DiscreteCoT().loss(model, batch, state)
        return super().loss(model, batch, state)

    def taught(self, model, examples):
        soft = Soft(model.parts["states"])
        with torch.no_grad():
            hidden_BTD = DiscreteCoT().forced(model, examples).hidden_BTD[:, : examples.max_steps]
            share = soft.sample(State(hidden_BTD, hidden_BTD, model.backbone.table), None)
        return (Segment(soft, examples.num_steps, share),)


class Stop(Exception):
    """The run ends here."""


def run(folder, stop_at=None):
    task, method = MNNS(digits=3, high=3), Transitions()
    model = Experiment(task=task, method=method).fresh()
    examples = Symbols(task, task.split("train", 0)).examples()

    def on_progress(step, loss):
        if step == stop_at:
            raise Stop

    recipe = Training(steps=STEPS, batch_size=8, learning_rate=1e-2, log_every=1, save_every=1)
    return fit(model, method, examples, recipe, Seeds(), folder=folder, on_progress=on_progress)


def test_fitted_states_fit_and_survive_a_stop(tmp_path, unchecked):
    whole, half = run(tmp_path / "whole"), run(tmp_path / "whole")  # the second is read from the last checkpoint
    load_weights(stage_end(tmp_path / "whole", 0), half)
    assert whole.parts["states"].mean_KD.abs().sum() > 0
    assert torch.equal(half.backbone.embedding, whole.backbone.embedding)  # frozen since the second stage began
    assert not torch.equal(half.parts["states"].embedding, whole.parts["states"].embedding)
    for stop_at in (SPLIT, SPLIT + 2):  # at the very start of the stage, and within it
        folder = tmp_path / f"stopped-{stop_at}"
        with pytest.raises(Stop):
            run(folder, stop_at)
        again = run(folder)
        for (name, got), expected in zip(again.state_dict().items(), whole.state_dict().values(), strict=True):
            assert torch.equal(got, expected), name
