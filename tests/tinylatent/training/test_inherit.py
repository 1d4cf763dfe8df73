"""What a model takes over from an earlier one: named parts, grown tables, and nothing that does not fit."""

import pytest
import torch
from torch import nn

from tinylatent.models.decoder import Decoder, ModelConfig
from tinylatent.objectives.method import Model
from tinylatent.training.inherit import inherit_weights

MODEL = ModelConfig(8, 1, 1)


def made(seed, vocabulary=5, positions=6, config=MODEL, **parts):
    """A model with these parts, all of its tensors drawn from a seed."""
    generator = torch.Generator().manual_seed(seed)
    model = Model(Decoder.fresh(vocabulary, positions, config), nn.ModuleDict(parts))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


def values(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_parts_are_taken_over_by_name():
    """The gate is named and taken, the head is not; nor the stage; the earlier model stays as it is."""
    ours = made(0, gate=nn.Linear(2, 2), head=nn.Linear(2, 2))
    theirs = made(1, gate=nn.Linear(2, 2), head=nn.Linear(2, 2))
    theirs.stage.fill_(3)
    before, earlier = values(ours), values(theirs)
    taken = inherit_weights(ours, theirs, ("backbone", "parts.gate"))
    assert taken == [name for name in before if name.startswith(("backbone", "parts.gate"))]
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, earlier[name] if name in taken else before[name]), name
    assert all(torch.equal(theirs.state_dict()[name], tensor) for name, tensor in earlier.items())
    assert int(ours.stage) == 0


def test_buffers_are_taken_over_too():
    ours, theirs = made(0, norm=nn.BatchNorm1d(3)), made(1, norm=nn.BatchNorm1d(3))
    theirs.parts["norm"].running_mean.fill_(7.0)
    theirs.parts["norm"].num_batches_tracked.fill_(9)
    inherit_weights(ours, theirs, ("backbone", "parts"))
    assert ours.parts["norm"].running_mean.tolist() == [7.0] * 3
    assert int(ours.parts["norm"].num_batches_tracked) == 9


def test_nothing_named_is_nothing_taken():
    ours, theirs = made(0), made(1)
    before = values(ours)
    assert inherit_weights(ours, theirs, ()) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def test_grown_tables_keep_their_own_rows_beyond_what_they_take():
    """Two tokens and three positions were added."""
    ours, theirs = made(0, vocabulary=7, positions=9), made(1)
    before = values(ours)
    inherit_weights(ours, theirs, ("backbone",))
    for name, rows in (("backbone.embedding", 5), ("backbone.pos_emb", 6)):
        tensor = ours.state_dict()[name]
        assert torch.equal(tensor[:rows], theirs.state_dict()[name])
        assert torch.equal(tensor[rows:], before[name][rows:])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocabulary": 4}, r"backbone\.embedding has shape \(5, 8\) in the run to start from and \(4, 8\) here"),
        (
            {"positions": 5},
            r"backbone\.pos_emb has shape \(6, 8\) .* \(5, 8\) here: expected the same, or more",
        ),
        ({"config": ModelConfig(16, 1, 1)}, r"backbone\.embedding has shape \(5, 8\) .* and \(5, 16\) here"),
    ],
)
def test_tensors_of_another_shape_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        inherit_weights(made(0, **change), made(1), ("backbone",))


def test_only_tables_may_have_grown():
    """A SwiGLU MLP has twice the rows of a GELU one, which would fit into it and mean nothing."""
    with pytest.raises(ValueError, match=r"mlp\.up_proj has shape \(32, 8\) .* \(64, 8\) here: expected the same$"):
        inherit_weights(made(0, config=ModelConfig(8, 1, 1, mlp="swiglu")), made(1), ("backbone",))


def test_a_tensor_and_a_matrix_are_not_the_same():
    ours, theirs = made(0, scale=nn.Linear(1, 1, bias=False)), made(1, scale=nn.Linear(1, 1, bias=False))
    theirs.parts["scale"].weight = nn.Parameter(torch.zeros(()))
    with pytest.raises(ValueError, match=r"parts\.scale\.weight has shape \(\) in .* and \(1, 1\) here"):
        inherit_weights(ours, theirs, ("backbone", "parts"))


def test_a_backbone_must_be_there_and_other_parts_need_not():
    """A second layer, or another kind of MLP, has no counterpart; nor has a gate, which stays as it was drawn."""
    with pytest.raises(ValueError, match=r"the run to start from has no backbone\.blocks\.1\..*: its model must be of"):
        inherit_weights(made(0, config=ModelConfig(8, 2, 1)), made(1), ("backbone",))
    with pytest.raises(ValueError, match=r"the run to start from has no backbone\.blocks\.0\.mlp\.router"):
        inherit_weights(made(0, config=ModelConfig(8, 1, 1, mlp="relu", experts=2)), made(1), ("backbone",))
    ours = made(0, gate=nn.Linear(2, 2))
    before = values(ours)
    taken = inherit_weights(ours, made(1), ("backbone", "parts.gate"))
    assert not any(name.startswith("parts") for name in taken)
    assert torch.equal(ours.parts["gate"].weight, before["parts.gate.weight"])


def test_what_is_frozen_is_taken_over_and_keeps_no_graph():
    ours, theirs = made(0), made(1)
    ours.requires_grad_(False)
    inherit_weights(ours, theirs, ("backbone",))
    assert torch.equal(ours.backbone.embedding, theirs.backbone.embedding)
    assert not ours.backbone.embedding.requires_grad
    assert ours.backbone.embedding.is_leaf


def test_what_fits_nothing_is_named():
    """A misspelt beginning; and one that is the beginning of a word but not the whole of it."""
    for beginning in ("backbon", "parts.scales"):
        ours = made(0, scale=nn.Linear(1, 1, bias=False))
        with pytest.raises(
            ValueError, match=f"no part of the model begins with {beginning}: correct `inherits` of its method"
        ):
            inherit_weights(ours, made(1), ("backbone", beginning))
