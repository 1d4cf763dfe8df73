"""Every method keeps the promises of the interface, and what is random in it is decided by its seeds.

A method that any installed package registers is tested here, and in test_batches.
"""

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from losses import assert_same, enter, loss_and_gradients, loss_of
from tinylatent_tasks import MNNS
from variants import (
    BY_ROW,
    EARLY,
    EVERY,
    FIXED,
    LATE,
    MORE,
    OURS,
    ROWS,
    STATES,
    TASK,
    VARIANTS,
    WITH_VARIANTS,
    examples_of,
    inferred,
    logits_of,
    model_of,
    one,
    with_methods,
)

from tinylatent.core.seeds import PURPOSES, Seeds
from tinylatent.engine.plan import ANSWER
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import train
from tinylatent.methods import METHODS, Direct
from tinylatent.models.decoder import Decoder, ModelConfig
from tinylatent.objectives.losses import token_loss
from tinylatent.objectives.method import has_prefix
from tinylatent.training.config import Training


@EVERY
def test_a_method_is_registered_under_its_name(method):
    assert METHODS[method.name] is type(method)


@STATES
@FIXED
def test_loss_reaches_every_weight_it_should_and_nothing_else(method, state, monkeypatch):
    """All matrices and gains, all tokens (they are the readout too), the places of the slots read, and own thoughts.

    Gradients pass through a backbone that is frozen as a whole, whose own the optimizer leaves out.
    """
    model, examples = model_of(method, state=state), examples_of(method)
    forward, slots = Decoder.forward, 0

    def counted(self, inputs_BTD, *arguments, **options):
        nonlocal slots
        mask_BS, positions_BT, new = options.get("mask_BS"), options.get("positions_BT"), inputs_BTD.shape[1]
        if torch.is_grad_enabled():
            if positions_BT is not None:  # slots may share their places
                slots = positions_BT.max() + 1
            else:
                slots += new if mask_BS is None else mask_BS[:, -new:].sum(1)  # one that nobody writes has no place
        return forward(self, inputs_BTD, *arguments, **options)

    monkeypatch.setattr(Decoder, "forward", counted)
    loss, gradients = loss_and_gradients(model, loss_of(method, model, examples, state))
    assert math.isfinite(loss)
    slots = int(torch.as_tensor(slots).max())
    assert examples.prompt_BN.shape[1] <= slots <= examples.slots + method.extra_steps
    places = gradients.pop("backbone.pos_emb")
    assert (places.abs().amax(1) > 0).tolist() == [place < slots for place in range(len(places))]
    assert (gradients.pop("backbone.embedding").abs().amax(1) > 0).all()
    groups = method.parameter_groups(method.stage_at(state.step, state.total))
    frozen = tuple(part for group in groups if group.frozen for part in group.parts)
    for name, gradient in gradients.items():
        passed = "backbone" in frozen and has_prefix(name, ("backbone",))
        assert (gradient.abs().max() > 0) != (has_prefix(name, frozen) and not passed), name
    tensors = [*vars(examples).values(), *vars(examples.frontier).values()]
    assert all(tensor.grad is None for tensor in tensors if isinstance(tensor, torch.Tensor))


@STATES
@WITH_VARIANTS
def test_loss_does_not_touch_weights_or_examples(method, state):
    model, examples = model_of(method), examples_of(method)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    target_BTV, chain_BT = examples.frontier.dense().clone(), examples.chain_BT.clone()
    assert loss_of(method, model, examples, state).item() == loss_of(method, model, examples, state).item()
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert torch.equal(examples.frontier.dense(), target_BTV)
    assert torch.equal(examples.chain_BT, chain_BT)


@pytest.mark.parametrize("name", OURS)
def test_only_pause_has_parameters_of_its_own(name):
    own = [name for name, _ in model_of(METHODS[name]()).parts.named_parameters()]
    assert own == (["pause.constant_D"] if name == "pause" else [])


@WITH_VARIANTS
def test_inference_is_the_same_alone_and_in_a_batch(method):
    model, examples = model_of(method), examples_of(method)
    together = inferred(method, model, examples)
    for number in range(len(ROWS)):
        alone = inferred(method, model, one(examples, number), first=number)
        assert torch.equal(alone.answer_BA[0], together.answer_BA[number])
        torch.testing.assert_close(logits_of(alone, 0), logits_of(together, number), atol=1e-9, rtol=1e-9)


@STATES
@BY_ROW
def test_loss_of_a_batch_is_the_mean_over_its_rows(method, state):
    """Each in its own place, so that it draws what it draws there."""
    model, examples = model_of(method), examples_of(method)
    whole = loss_of(method, model, examples, state)
    rows = [loss_of(method, model, one(examples, n), replace(state, first=n)) for n in range(len(ROWS))]
    assert whole.item() == pytest.approx(sum(rows).item() / len(rows), abs=1e-9)


@WITH_VARIANTS
def test_plan_fits_the_positions_and_ends_in_the_answer(method):
    """At most the steps of the chain and the extra ones that a method declares, but for slots that take no place."""
    model, examples = model_of(method), examples_of(method)
    *before, answer = method.plan(model, examples)
    assert sum(segment.longest for segment in before if segment.thought.placed) <= TASK.digits - 1 + method.extra_steps
    assert (answer.label, answer.longest) == (ANSWER, 1)


@pytest.mark.parametrize("name", OURS)
def test_plan_is_as_long_as_the_chain(name):
    method = METHODS[name]()
    *before, answer = [segment.longest for segment in method.plan(model_of(method), examples_of(method))]
    assert (sum(before), answer) == (0 if name == "direct" else TASK.digits - 1, 1)


@FIXED
def test_one_digit_needs_no_thought(method):
    """With nothing to think all methods are the direct answer, behind nothing but the tokens that a method adds."""
    task = MNNS(1, 1, 4)
    model, examples = model_of(method, task), examples_of(method, task, np.array([[1], [4]]))
    trace = method.forced(model, examples)
    *before, _ = trace.thought_spans
    marks_BT = torch.cat([examples.prompt_BN[:, :0], *(span.thought.token(span.action) for span in before)], 1)
    assert {*marks_BT.flatten().tolist()} <= {method.extra_id(model, token) for token in method.extra_tokens}
    marked = replace(examples, prompt_BN=torch.cat([examples.prompt_BN, marks_BT], 1))
    direct = loss_of(Direct(), model, marked, EARLY).item()
    assert token_loss(trace, examples.answer_BA, steps=slice(-1, None)).item() == pytest.approx(direct, abs=1e-9)
    if not method.extra_tokens and method.name != "sasrec":  # which learns the prompt's tokens as well
        assert loss_of(method, model, examples, EARLY).item() == pytest.approx(direct, abs=1e-9)
    assert 1 <= inferred(method, model, examples).trace.steps <= 1 + method.extra_steps


@WITH_VARIANTS
def test_offsets_move_positions_and_nothing_else(method):
    """With capacity to spare, a loss at offset k is the loss at offset 0 of a model whose places start at k."""
    task = MNNS(3, 1, 4, capacity=5)
    model, moved, examples = model_of(method, task), model_of(method, task), examples_of(method, task)
    stage = method.stage_at(LATE.step, LATE.total)
    enter(method, model, stage, examples)  # a reference is what the weights are now
    plain = loss_and_gradients(model, loss_of(method, model, examples, EARLY))
    for offset in (0, 1, task.positions - examples.slots):
        with torch.no_grad():
            moved.backbone.pos_emb.copy_(model.backbone.pos_emb.roll(offset, 0))
        there = examples.with_offsets(torch.full((len(ROWS),), offset))
        enter(method, moved, stage, there)
        loss, gradients = loss_and_gradients(moved, loss_of(method, moved, there, EARLY))
        gradients["backbone.pos_emb"] = gradients["backbone.pos_emb"].roll(-offset, 0)
        assert_same((loss, gradients), plain)


@EVERY
def test_training_with_capacity_to_spare_serves_longer_problems(method):
    """What was trained on three digits runs on five: vocabulary and positions are large enough."""
    task = MNNS(3, 1, 4, capacity=5)
    model = train(Experiment(task, method, ModelConfig(8, 1, 1), Training(steps=8, batch_size=8)))
    longer = MNNS(5, 1, 4)
    examples = examples_of(method, longer, longer.problems(4, seed=0))
    assert inferred(method, model, examples).trace.logits_BTV.isfinite().all()


@EVERY
def test_temperature_samples_the_answer(method):
    model, examples = model_of(method), examples_of(method)
    *_, answer = method.plan(model, examples, temperature=0.7)
    assert answer.thought.temperature == 0.7
    assert answer.steps == examples.answer_tokens
    *_, answer = method.plan(model, examples)
    assert not answer.thought.needs_streams


# ---------------------------------------------------------------------------------------------------------------------
# Seeds


@dataclass(frozen=True)
class Spy(Direct):
    """Answers directly and writes down what it was given."""

    seen: dict = field(default_factory=dict)

    def loss(self, model, examples, state):
        self.seen.setdefault("order", []).append((examples.prompt_BN.tolist(), examples.offset_B.tolist()))
        self.seen.setdefault("sampling", []).append(state.streams(3).uniform(2).tolist())
        if state.step == 0:
            self.seen["init"] = model.backbone.embedding.tolist()
        return super().loss(model, examples, state)


def spied(**seeds):
    """What a run with these seeds gets: weights, order, sampling; and for the split all problems of an epoch."""
    spy = Spy()
    task = MNNS(3, 1, 4, capacity=4)
    rows = Experiment(task, spy, seeds=Seeds(**seeds)).rows("train")
    train(Experiment(task, spy, ModelConfig(8, 1, 1), Training(steps=4, batch_size=8), Seeds(**seeds)))
    return {**spy.seen, "split": rows.tolist()}


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_seed_changes_what_it_should_and_only_that(purpose):
    """Another split brings other problems into the same order, so order is then compared by itself."""
    base, changed = spied(), spied(**{purpose: 1})
    assert {name for name in base if base[name] != changed[name]} - {"order"} == {purpose} - {"order"}
    if purpose != "split":
        assert (base["order"] != changed["order"]) == (purpose == "order")
    else:
        offsets = [[offset_B for _, offset_B in run["order"]] for run in (base, changed)]
        assert offsets[0] == offsets[1]


@with_methods(*(kind() for kind in METHODS.values()), slow=VARIANTS[len(METHODS) :] + MORE)
def test_same_seeds_same_weights(method):
    def weights(seeds):
        whole = Experiment(TASK, method, ModelConfig(8, 1, 1), Training(steps=5, batch_size=8), seeds)
        return torch.cat([tensor.flatten() for tensor in train(whole).state_dict().values()])

    base = weights(Seeds())
    assert torch.equal(base, weights(Seeds()))
    assert not torch.equal(base, weights(Seeds(order=1)))


def test_methods_share_initial_weights():
    """The backbone is drawn before any part beside it: methods are compared from the same start."""
    models = [model_of(kind()) for kind in METHODS.values() if not (kind().extra_tokens or kind().extra_steps)]
    assert len(models) >= len(OURS)
    for model in models[1:]:
        for name, tensor in models[0].backbone.state_dict().items():
            assert torch.equal(model.backbone.state_dict()[name], tensor), name


def test_pages_name_tests_that_exist():
    """What a page says of a method's limits is tested where it says."""
    root = Path(__file__).resolve().parents[3]
    known = {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in root.glob("tests/**/test_*.py")}
    defined = {name for text in known.values() for name in re.findall(r"^def (test_\w+)\(", text, re.MULTILINE)}
    pages = "".join(path.read_text("utf-8") for path in root.glob("docs/methods/*.md"))
    told = {*re.findall(r"`(test_\w+)`", pages)}
    assert len(told) > 15
    assert told - defined == set()
