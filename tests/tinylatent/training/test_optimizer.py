"""The optimizer is AdamW over named groups, each with its own rate and decay, and some of them frozen; or another."""

import copy
import itertools
import math
import sys
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from losses import loss_of
from pytorch_optimizer import SOAP, Shampoo
from tinylatent_tasks import MNNS

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import train
from tinylatent.methods import CoT2, PauseTokens
from tinylatent.models.backbone import weights_version
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import ParameterGroup, TrainState
from tinylatent.training.config import Training
from tinylatent.training.loop import batch_indices, train_step
from tinylatent.training.optimizer import (
    clip_gradient,
    flatten,
    gradient_norm,
    make_optimizer,
    set_learning_rate,
    trainable,
    zero_gradients,
)

TASK, SEEDS = MNNS(2, 1, 4), Seeds.all(3)


def experiment(method, **recipe):
    shape = ModelConfig(8, 2, 1)
    return Experiment(
        TASK, method, shape, Training(**{"steps": 8, "batch_size": 4, "learning_rate": 0.01, **recipe}), SEEDS
    )


# ---------------------------------------------------------------------------------------------------------------------
# Learning rate


def rates(recipe):
    """The rate of every step, as the optimizer would use it."""
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "peak": recipe.learning_rate}], lr=123.0)
    values = []
    for step in range(recipe.steps):
        set_learning_rate(optimizer, recipe, step, recipe.steps)
        values.append(optimizer.param_groups[0]["lr"])
    return values


def test_rate_rises_in_a_line_and_falls_along_half_a_cosine():
    values = rates(Training(steps=20, learning_rate=0.4, warmup=0.2))
    assert values[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert values[12] == pytest.approx(0.2), "half way down"
    assert values[8] == pytest.approx(0.4 * (2 + math.sqrt(2)) / 4), "a quarter of the way: cos(pi / 4)"
    assert all(a >= b for a, b in itertools.pairwise(values[4:]))
    assert 0 < values[-1] < 0.01


def test_a_constant_rate_stays_at_its_peak():
    assert rates(Training(steps=5, learning_rate=0.4, warmup=0.4, schedule="constant")) == pytest.approx(
        [0.2] + [0.4] * 4
    )


@pytest.mark.parametrize("recipe", [Training(steps=1), Training(steps=3, warmup=0.0), Training(steps=4, warmup=0.99)])
def test_rate_is_positive_and_reaches_the_peak_in_the_shortest_runs(recipe):
    values = rates(recipe)
    assert max(values) == recipe.learning_rate
    assert min(values) > 0


# ---------------------------------------------------------------------------------------------------------------------
# Groups


@dataclass(frozen=True)
class Grouped(PauseTokens):
    """The pause fast and undecayed, one layer slowly, another not at all, the rest as the recipe says."""

    name = "grouped"

    def parameter_groups(self, stage):
        return (
            ParameterGroup(("parts.pause",), learning_rate=0.03, weight_decay=0.0),
            ParameterGroup(("backbone.blocks.1.mlp.up_proj", "backbone.embedding"), rate_factor=0.2),
            ParameterGroup(("backbone.blocks.1", "backbone.norm"), frozen=True),
            ParameterGroup(("backbone.pos_emb",), weight_decay=0.9),
        )


def by_hand(whole, told, kind=torch.optim.AdamW):
    """The loop written again over single parameters.

    told: (peak rate, decay) of a parameter by its name, None where it is frozen.
    kind: makes the optimizer of groups.
    """
    model, examples = whole.fresh(), whole.speaker("train").examples()
    recipe, order = whole.training, batch_indices(len(examples), whole.training.batch_size, 0, SEEDS)
    groups = []
    for name, parameter in model.named_parameters():
        if told(name) is not None:
            rate, decay = told(name)
            groups.append({"params": [parameter], "peak": rate, "weight_decay": decay})
    optimizer = kind(groups)
    for step in range(recipe.steps):
        set_learning_rate(optimizer, recipe, step, recipe.steps)
        optimizer.zero_grad()
        loss_of(whole.method, model, examples.rows(next(order)), TrainState(step, recipe.steps, 0)).backward()
        for parameter in model.parameters():  # what no loss reaches is decayed like the rest
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
    return model


def test_training_is_adamw_by_hand():
    """Over the separate parameters: weights equal to 1e-6."""
    whole = experiment(CoT2(), weight_decay=0.3)
    trained = train(whole)
    for name, tensor in by_hand(whole, lambda name: (0.01, 0.3)).state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)


KINDS = {
    "epsilon": ({"epsilon": 1e-3, "beta2": 0.9}, partial(torch.optim.AdamW, betas=(0.9, 0.9), eps=1e-3)),
    "soap": ({"optimizer": "soap", "epsilon": 1e-4}, partial(SOAP, betas=(0.95, 0.95), eps=1e-4)),
    "soap, others": ({"optimizer": "soap", "beta1": 0.7, "beta2": 0.8}, partial(SOAP, betas=(0.7, 0.8), eps=1e-8)),
    "shampoo": (
        {"optimizer": "shampoo"},
        partial(Shampoo, momentum=0.0, weight_decouple=True, preconditioning_compute_steps=10, matrix_eps=1e-3),
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_other_optimizers_are_those_of_their_packages_by_hand(name):
    """Twelve steps, so that matrices are refreshed; and none of them ends where AdamW does."""
    settings, kind = KINDS[name]
    whole = experiment(CoT2(), weight_decay=0.3, steps=12, **settings)
    trained, usual = train(whole), train(experiment(CoT2(), weight_decay=0.3, steps=12))
    for parameter, tensor in by_hand(whole, lambda name: (0.01, 0.3), kind).state_dict().items():
        torch.testing.assert_close(trained.state_dict()[parameter], tensor, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(trained.backbone.embedding, usual.backbone.embedding, atol=1e-3)


def test_an_optimizer_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ImportError, match=r"optimizer soap needs the package pytorch_optimizer: pip install 'tinylat"):
        train(experiment(CoT2(), optimizer="soap"))


def test_every_group_follows_its_own_rate_and_decay():
    """The first group that fits a name has it, the recipe what none does; frozen weights stay bit for bit."""

    def told(name):
        if name.startswith("parts.pause"):
            return 0.03, 0.0
        if name.startswith(("backbone.blocks.1.mlp.up_proj", "backbone.embedding")):
            return 0.002, 0.3
        if name.startswith(("backbone.blocks.1", "backbone.norm")):
            return None
        return 0.01, 0.9 if name.startswith("backbone.pos_emb") else 0.3

    whole = experiment(Grouped(), weight_decay=0.3)
    trained, fresh, frozen = train(whole), whole.fresh().state_dict(), []
    wanted = by_hand(whole, told).state_dict()
    for name, tensor in trained.named_parameters():
        torch.testing.assert_close(tensor.detach(), wanted[name], atol=1e-6, rtol=1e-5)
        if torch.equal(tensor, fresh[name]):
            frozen.append(name)
        assert tensor.requires_grad  # frozen is what a stage does, no mark of the model
    assert frozen == [name for name, _ in trained.named_parameters() if told(name) is None]
    assert len(frozen) == 6


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rate_factor": 0.0}, r"factor 0\.0 and decay None: expected positive ones"),
        ({"learning_rate": -1.0}, r"learning rate -1\.0, factor 1\.0"),
        ({"weight_decay": -0.1}, "decay -0.1: expected positive ones and no negative decay"),
        ({"learning_rate": 0.1, "rate_factor": 2.0}, "expected one of the two"),
    ],
)
def test_rates_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        ParameterGroup(("backbone",), **settings)


def test_a_group_of_no_parameters_is_refused():
    model = experiment(PauseTokens()).fresh()
    groups = [ParameterGroup(("backbone",)), ParameterGroup(("parts.gate", "parts.pauses"))]
    with pytest.raises(ValueError, match=r"no parameter of the model begins with parts\.gate: correct"):
        make_optimizer(model, Training(), groups)


def test_a_model_that_is_frozen_whole_is_refused():
    model = experiment(PauseTokens()).fresh()
    with pytest.raises(ValueError, match="every part of the model is frozen: leave one for the optimizer"):
        make_optimizer(model, Training(), [ParameterGroup(("backbone", "parts"), frozen=True)])


def test_copies_that_are_frozen_when_a_model_is_made_are_never_trained():
    """Nor thawed by a group that names them."""
    model = experiment(PauseTokens()).fresh()
    model.parts["copy"] = torch.nn.Linear(2, 2).requires_grad_(False)
    names = trainable(model)
    assert not any(name.startswith("parts.copy") for name in names)
    make_optimizer(model, Training(), [ParameterGroup(("parts",))], names)
    assert not any(parameter.requires_grad for parameter in model.parts["copy"].parameters())
    with pytest.raises(ValueError, match=r"no parameter of the model begins with parts\.copy"):
        make_optimizer(model, Training(), [ParameterGroup(("parts.copy",))], names)


def test_what_was_frozen_in_a_stage_is_trained_in_the_next():
    model, recipe = experiment(PauseTokens()).fresh(), Training()
    names = trainable(model)
    optimizer = make_optimizer(model, recipe, [ParameterGroup(("backbone",), frozen=True)], names)
    assert sum(group["params"][0].numel() for group in optimizer.param_groups) == 8
    optimizer = make_optimizer(model, recipe, [ParameterGroup(("parts",), frozen=True)], names)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == {
        "parts.pause.constant_D"
    }
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert sum(group["params"][0].numel() for group in optimizer.param_groups) == whole - 8


def test_making_the_optimizer_leaves_the_weights_as_they_are():
    for method in (PauseTokens(), Grouped()):
        whole = experiment(method)
        model, fresh = whole.fresh(), whole.fresh()
        make_optimizer(model, whole.training, method.parameter_groups(0))
        for name, tensor in fresh.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor)


def test_parameters_of_several_types_get_tensors_of_their_own():
    model = experiment(PauseTokens()).fresh()
    model.parts["pause"].double()
    optimizer = make_optimizer(model, Training())
    assert [group["params"][0].dtype for group in optimizer.param_groups] == [torch.float32, torch.float64]


def test_a_step_counts_as_a_change_of_weights():
    """The parameters are views of one tensor and do not show by themselves that it moved."""
    model = experiment(PauseTokens()).fresh()
    optimizer, before = make_optimizer(model, Training()), weights_version(model.backbone)
    optimizer.step()
    assert weights_version(model.backbone) != before


# ---------------------------------------------------------------------------------------------------------------------
# Parameters that the optimizer has lost


def replaced_module(model):
    model.backbone.blocks[0] = copy.deepcopy(model.backbone.blocks[0])


def resized(model):
    """As when tokens are added: a longer table takes the place of the old one."""
    (name,) = (name for name, _ in model.backbone.named_parameters() if name.endswith("embedding"))
    old = model.backbone.get_parameter(name)
    model.backbone.register_parameter(name, torch.nn.Parameter(torch.cat([old.detach(), torch.zeros(2, old.shape[1])])))


LOSSES = {
    "gradients set to None": lambda model: model.zero_grad(),
    "one gradient set to None": lambda model: setattr(model.backbone.embedding, "grad", None),
    "another gradient": lambda model: setattr(model.backbone.embedding, "grad", model.backbone.embedding.grad.clone()),
    "cast there and back": lambda model: model.double().float(),
    "cast": lambda model: model.bfloat16(),
    "data replaced": lambda model: setattr(model.backbone.embedding, "data", model.backbone.embedding.data.clone()),
    "a module replaced": replaced_module,
    "a module removed": lambda model: model.parts.pop("pause"),
    "embeddings resized": resized,
}


@pytest.mark.parametrize("how", LOSSES)
def test_an_optimizer_that_lost_parameters_says_so_before_it_moves_anything(how):
    """Silently, half of the model would stay as it is."""
    model = experiment(PauseTokens()).fresh()
    optimizer = make_optimizer(model, Training())
    optimizer.step()
    LOSSES[how](model)
    before = [parameter.detach().clone() for group in optimizer.param_groups for parameter in group["params"]]
    with pytest.raises(
        ValueError, match="the optimizer no longer has the model's parameters: they were replaced, cast"
    ):
        optimizer.step()
    assert all(map(torch.equal, before, (group["params"][0] for group in optimizer.param_groups)))


def test_gradients_may_be_zeroed_in_place_and_weights_written_to():
    """The values are anybody's to change: of weights, gradients, and what may be trained."""
    model = experiment(PauseTokens()).fresh()
    optimizer = make_optimizer(model, Training())
    model.zero_grad(set_to_none=False)
    with torch.no_grad():
        model.backbone.embedding.mul_(2)
    model.load_state_dict(model.state_dict())
    model.requires_grad_(False).requires_grad_(True)
    model.float().to("cpu")
    optimizer.step()


def test_training_with_a_model_that_was_cast_ends_in_a_sentence():
    """Through the loop's own step, at the next batch."""
    whole = experiment(CoT2())
    model, examples = whole.fresh(), whole.speaker("train").examples().rows(slice(0, 4))
    optimizer, state = make_optimizer(model, whole.training), TrainState(0, 8, 0)
    train_step(model, whole.method, optimizer, whole.training, examples, state)
    model.zero_grad()
    with pytest.raises(ValueError, match="no longer has the model's parameters"):
        train_step(model, whole.method, optimizer, whole.training, examples, state)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


def leaves():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((2, 3), (4,), (1, 2, 2))]


def test_a_flat_parameter_and_its_parts_are_the_same_memory():
    parts = leaves()
    before = [part.detach().clone() for part in parts]
    flat = flatten(parts)
    assert all(map(torch.equal, parts, before))
    sum((part * number).sum() for number, part in enumerate(parts, 1)).backward()
    assert flat.grad.tolist() == [1.0] * 6 + [2.0] * 4 + [3.0] * 4
    with torch.no_grad():
        flat.zero_()
    assert not any(part.any() for part in parts)


def grouped_gradient():
    """An optimizer of two groups whose gradients are 3 and 4."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    optimizer = torch.optim.SGD(groups)
    for group, value in zip(optimizer.param_groups, (3.0, -4.0), strict=True):
        group["params"][0].grad = torch.tensor([value])
    return optimizer


@pytest.mark.parametrize(("most", "factor"), [(10.0, 1.0), (5.0, 1.0), (2.5, 0.5), (0.05, 0.01)])
def test_a_gradient_is_scaled_down_to_the_largest_norm(most, factor):
    """Over all groups, whose norm is 5; never up."""
    optimizer = grouped_gradient()
    assert gradient_norm(optimizer).item() == pytest.approx(5)
    clip_gradient(optimizer, most)
    gradients = [group["params"][0].grad.item() for group in optimizer.param_groups]
    assert gradients == pytest.approx([3 * factor, -4 * factor])
    zero_gradients(optimizer)
    assert gradient_norm(optimizer).item() == 0
    clip_gradient(optimizer, most)
    assert gradient_norm(optimizer).item() == 0, "no gradient is no number to divide by"


def test_training_with_a_bound_on_the_gradient_is_that_by_hand():
    whole = experiment(CoT2(), clip_norm=0.5)
    trained, unbound = train(whole), train(experiment(CoT2()))
    for name, tensor in by_hand(whole, lambda name: (0.01, 0.05)).state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)
    gaps = [(trained.state_dict()[name] - tensor).abs().max() for name, tensor in unbound.state_dict().items()]
    assert max(gaps) > 1e-4, "the bound acts, so the test above can fail"


def test_an_optimizer_whose_matrices_have_no_root_is_told(tmp_path):
    run = experiment(CoT2(), optimizer="shampoo", learning_rate=1e20, steps=60, clip_norm=None, validate=0)
    with pytest.raises(ValueError, match=r"shampoo finds no root of its matrices at step [0-9]+: training diverged"):
        train(run, tmp_path)
