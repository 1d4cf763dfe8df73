"""Optimizer: AdamW over named parameter groups, every group in one flat tensor; or SOAP or Shampoo, matrix by matrix.

Flat tensors are a private fast path: in a small model they save half a millisecond a step. The method declares its
groups (`Method.parameter_groups`). SOAP and Shampoo are those of pytorch_optimizer: they keep second moments of the
rows and columns of every matrix, so that they need each as it is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tinylatent.core.extras import MissingExtraError
from tinylatent.core.precision import is_half
from tinylatent.models.backbone import weights_moved
from tinylatent.objectives.method import TABLE, Model, ParameterGroup, has_prefix, table_names
from tinylatent.training.config import Training

REFRESHED = 10
"""Steps between roots of Shampoo's matrices; SOAP's own are as many apart."""
DAMPED = 1e-3
"""What Shampoo's matrices begin with on their diagonal: its default of 1e-6 is lost beside summed squares in float32,
and the root of 0 is infinite. Its momentum is left out, since that feeds updates, which are scaled already, back into
what is scaled next, and grows without bound where the scale is above 1."""


def trainable(model: nn.Module) -> list[str]:
    """Names of the parameters that may be trained: all but those frozen when the model was made."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def trained(model: Model, groups: Sequence[ParameterGroup]) -> list[str]:
    """Names of the parameters that no frozen group of a stage has."""
    groups = named(groups, model)
    places = {name: _place(name, groups) for name in trainable(model)}
    return [name for name, place in places.items() if not place or not groups[place - 1].frozen]


def named(groups: Sequence[ParameterGroup], model: Model) -> list[ParameterGroup]:
    """The groups with a model's own names for its table."""

    def parts(group: ParameterGroup) -> tuple[str, ...]:
        return tuple(name for part in group.parts for name in (table_names(model) if part == TABLE else [part]))

    return [replace(group, parts=parts(group)) for group in groups]


def _place(name: str, groups: Sequence[ParameterGroup]) -> int:
    """The place of the first group that fits a name, from 1; 0 where none does."""
    return next((place for place, group in enumerate(groups, 1) if has_prefix(name, group.parts)), 0)


def make_optimizer(
    model: Model,
    recipe: Training,
    groups: Sequence[ParameterGroup] = (),
    names: Sequence[str] | None = None,
    flat: bool = True,
) -> torch.optim.Optimizer:
    """The recipe's optimizer over the named parameters (all trainable ones by default), in the groups of a stage.

    The first group of the optimizer has the parameters that no group names, with the recipe's settings. Frozen
    parameters get requires_grad False and are left out. The optimizer's step raises ValueError if the model's
    parameters have been replaced, cast, moved or resized since, or their gradients set to None: it would not move them.
    Without `flat`, and always but for AdamW, every parameter is its own, as those that several processes share must be,
    and nothing is checked.

    Raises:
        ValueError: a group fits no parameter, all parameters are frozen, or one that is trained has half precision.
        MissingExtraError: the package of SOAP and Shampoo is not there.
    """
    flat = flat and recipe.optimizer == "adamw"
    names, own = trainable(model) if names is None else names, ParameterGroup(("",))
    parameters = dict(model.named_parameters())
    for part in (part for group in groups for part in group.parts):
        if part != TABLE and not any(has_prefix(name, (part,)) for name in names):
            raise ValueError(f"no parameter of the model begins with {part}: correct parameter_groups of its method")
    groups = named(groups, model)
    sorted_out: dict[tuple[int, torch.dtype], list[nn.Parameter]] = {}
    for name in names:
        index = _place(name, groups)
        parameter, frozen = parameters[name], index > 0 and groups[index - 1].frozen
        parameter.requires_grad_(not frozen)
        if not frozen:
            _refuse_half(name, parameter)
            sorted_out.setdefault((index, parameter.dtype), []).append(parameter)
    if not sorted_out:
        raise ValueError("every part of the model is frozen: leave one for the optimizer")
    flats, every = [], []
    for (index, _), members in sorted(sorted_out.items(), key=lambda item: item[0][0]):
        group = groups[index - 1] if index else own
        rate = group.rate_factor * recipe.learning_rate if group.learning_rate is None else group.learning_rate
        decay = recipe.weight_decay if group.weight_decay is None else group.weight_decay
        every += members
        flats.append(
            {
                "params": [flatten(members)] if flat else members,
                "lr": rate,
                "peak": rate,
                "weight_decay": decay,
            }
        )
    optimizer = _optimizer(recipe, flats, fused=flat)
    backbone = model.backbone
    if flat:
        check = attached(model, every)
        optimizer.register_step_pre_hook(lambda *_: check())
    optimizer.register_step_post_hook(lambda *_: weights_moved(backbone))
    return optimizer


def _refuse_half(name: str, parameter: Tensor) -> None:
    """ValueError for a parameter in half precision."""
    if is_half(parameter):
        raise ValueError(
            f"{name} is {str(parameter.dtype).removeprefix('torch.')}, whose steps are coarser than most of an "
            "optimizer's: it would not move. Load the model as float32, or train adapters (hf.lora.rank), which are; "
            "torchrun with --spread fsdp --half computes in bfloat16 beside full weights"
        )


def _optimizer(recipe: Training, groups: list[dict[str, Any]], fused: bool) -> torch.optim.Optimizer:
    """The optimizer that a recipe names, with its settings."""
    usual = (0.95, 0.95) if recipe.optimizer == "soap" else (0.9, 0.999)
    given = (recipe.beta1, recipe.beta2)
    beta1, beta2 = (own if value is None else value for own, value in zip(usual, given, strict=True))
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=(beta1, beta2), eps=recipe.epsilon, fused=fused)
    try:
        from pytorch_optimizer import SOAP, Shampoo
    except ImportError as error:
        raise MissingExtraError(f"optimizer {recipe.optimizer} needs", "pytorch_optimizer", "optimizers") from error
    if recipe.optimizer == "soap":
        return SOAP(groups, betas=(beta1, beta2), eps=recipe.epsilon)
    return Shampoo(
        groups, momentum=0.0, weight_decouple=True, preconditioning_compute_steps=REFRESHED, matrix_eps=DAMPED
    )


def attached(model: nn.Module, trained: Sequence[nn.Parameter]) -> Callable[[], None]:
    """A check that a model still has these parameters, in this memory and with these gradients.

    It looks at identities alone, which takes some microseconds, so that every step can afford it.

    Returns:
        the check, which raises ValueError if a parameter or a module was replaced, or a parameter cast, moved or
        resized, or its gradient set to None or to another tensor.
    """
    members: list[tuple[dict[str, Any], str, Any]] = []
    for module in model.modules():
        for held in (module._modules, module._parameters):
            members += [(held, name, value) for name, value in held.items()]
    memory = [(parameter, parameter.grad, parameter.data_ptr()) for parameter in trained]

    def check() -> None:
        if any(held.get(name) is not value for held, name, value in members) or any(
            parameter.grad is not gradient or parameter.data_ptr() != address for parameter, gradient, address in memory
        ):
            raise ValueError(
                "the optimizer no longer has the model's parameters: they were replaced, cast, moved or resized since "
                "it was made, or their gradients set to None; make it after such changes, and zero gradients by "
                "zero_gradients or zero_grad(set_to_none=False)"
            )

    return check


def flatten(parameters: Sequence[nn.Parameter]) -> nn.Parameter:
    """One flat parameter that concatenates these, with its gradient.

    The parameters and their gradients become views of it, so that an optimizer step on the flat parameter updates them
    all. Gradients must be zeroed in place, never set to None; `attached` notices.
    """
    flat = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    flat.grad = torch.zeros_like(flat)
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, weights, gradient in zip(parameters, flat.data.split(sizes), flat.grad.split(sizes), strict=True):
        parameter.data, parameter.grad = weights.view_as(parameter), gradient.view_as(parameter)
    return flat


def set_learning_rate(optimizer: torch.optim.Optimizer, recipe: Training, step: int, steps: int) -> None:
    """Sets the learning rate of step `step` of `steps`: linear warm-up, then half a cosine to zero, or constant."""
    warm = max(1, round(recipe.warmup * steps))
    if step < warm:
        share = (step + 1) / warm
    elif recipe.schedule == "constant":
        share = 1.0
    else:
        share = 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def zero_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Sets all gradients to zero, in place."""
    for gradient in _gradients(optimizer):
        gradient.zero_()


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Norm of the gradient over all groups."""
    norms = [_whole(gradient.norm()) for gradient in _gradients(optimizer)]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The gradients of all parameters that have one."""
    every = (parameter.grad for group in optimizer.param_groups for parameter in group["params"])
    return [gradient for gradient in every if gradient is not None]


def _whole(x: Any) -> Tensor:
    """A number that several processes hold a part of, in full."""
    full: Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return full


def clip_gradient(optimizer: torch.optim.Optimizer, most: float) -> None:
    """Scales the gradient down to a norm of at most `most`."""
    share = (most / gradient_norm(optimizer).clamp(min=1e-12)).clamp(max=1.0)
    for gradient in _gradients(optimizer):
        gradient.mul_(share)
