"""Coconut: its loss is a plain loop over hidden states, its stages come in order, and training restarts at each."""

import shutil
from dataclasses import replace
from functools import partial
from itertools import pairwise

import losses
import numpy as np
import pytest
import torch
from losses import assert_same, enter, loss_and_gradients, loss_of
from scipy.stats import binom, chisquare
from tinylatent_tasks import MNNS, Arithmetic

from tinylatent.core.files import DamagedError
from tinylatent.core.seeds import Seeds
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import Hidden
from tinylatent.evaluation.evaluate import evaluate
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import load, train
from tinylatent.lab.measure import measure
from tinylatent.lab.records import DEFAULT
from tinylatent.methods import Coconut, Direct, DiscreteCoT
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import TrainState
from tinylatent.training.checkpoints import WEIGHTS, find_checkpoint, load_weights
from tinylatent.training.config import Training
from tinylatent.training.loop import STAGES, batch_indices
from tinylatent.training.optimizer import set_learning_rate

TASK = MNNS(4, 1, 4)
ROWS = np.array([[1, 2, 4, 3], [4, 4, 4, 4], [3, 1, 1, 2], [2, 4, 3, 3], [1, 3, 2, 1]])


model_of = partial(losses.model_of, task=TASK)


def examples_of(rows=ROWS):
    return losses.examples_of(Coconut(), TASK, rows)


def state_of(method, stage, total=100):
    """The first moment of a stage."""
    return TrainState(method.stage_starts(total)[stage], total, 0)


def naive_loss(model, examples, latent, per_step, detach=False, each=1):
    """One slot after another, everything recomputed at each: hidden states first, then the words that are left.

    Every step of reasoning has `each` words; all rows are of one length.
    """
    backbone, loss = model.backbone, 0.0
    inputs_BSD = backbone.embedding[examples.prompt_BN]

    def last_hidden():
        return backbone.forward(inputs_BSD)[0][:, -1]

    for _ in range(latent * per_step):
        thought_BD = last_hidden()
        inputs_BSD = torch.cat([inputs_BSD, (thought_BD.detach() if detach else thought_BD)[:, None]], 1)
    for word_B in examples.chain_BT[:, latent * each :].T:
        logs_BV = (last_hidden() @ backbone.embedding.T).log_softmax(-1)
        loss = loss - logs_BV[range(len(word_B)), word_B].mean()
        inputs_BSD = torch.cat([inputs_BSD, backbone.embedding[word_B][:, None]], 1)
    return loss


# ---------------------------------------------------------------------------------------------------------------------
# Loss and inference


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("per_step", [1, 2, 3])
def test_loss_is_the_plain_loop_with_gradients_through_every_latent(stage, per_step):
    method = Coconut(per_step=per_step, mixing=0.0)
    model, examples = model_of(method, stage=stage), examples_of()
    ours = loss_and_gradients(model, loss_of(method, model, examples, state_of(method, stage)))
    assert_same(ours, loss_and_gradients(model, naive_loss(model, examples, stage, per_step)))
    if stage:
        cut = loss_and_gradients(model, naive_loss(model, examples, stage, per_step, detach=True))
        gap = max((ours[1][name] - cut[1][name]).abs().max().item() for name in cut[1])
        assert gap > 1e-3, "cutting the gradient at the latents shows, so the test above can fail"


def test_fewer_stages_leave_the_end_of_the_chain_in_words():
    method = Coconut(stages=1, mixing=0.0)
    model, examples = model_of(method, stage=1), examples_of()
    ours = loss_and_gradients(model, loss_of(method, model, examples, TrainState(99, 100, 0)))
    assert_same(ours, loss_and_gradients(model, naive_loss(model, examples, 1, 1)))
    assert [segment.longest for segment in method.plan(model, examples)] == [1, 2, 1]


def test_more_stages_than_steps_end_in_latents_alone():
    method = Coconut(stages=9, share=0.1, mixing=0.0)
    model, examples = model_of(method, stage=9), examples_of()
    ours = loss_and_gradients(model, loss_of(method, model, examples, TrainState(99, 100, 0)))
    assert_same(ours, loss_and_gradients(model, naive_loss(model, examples, 3, 1)))
    assert [segment.longest for segment in method.plan(model, examples)] == [3, 0, 1]


def test_stage_zero_is_discrete_chain_of_thought():
    coconut, discrete = Coconut(mixing=0.0), DiscreteCoT()
    model, examples = model_of(coconut), examples_of()
    ours = loss_and_gradients(model, loss_of(coconut, model, examples, TrainState(0, 100, 0)))
    assert_same(ours, loss_and_gradients(model, loss_of(discrete, model, examples, TrainState(0, 100, 0))))
    runs = [rollout(model.backbone, each.plan(model, examples), examples.prompt_BN) for each in (coconut, discrete)]
    assert torch.equal(runs[0].logits_BTV, runs[1].logits_BTV)


@pytest.mark.parametrize("stage", range(4))
def test_inference_feeds_hidden_states_then_its_own_words(stage):
    method = Coconut()
    model, examples = model_of(method, stage=stage), examples_of()
    run = rollout(model.backbone, method.plan(model, examples), examples.prompt_BN)
    inputs_BSD = model.backbone.embedding[examples.prompt_BN]
    for t in range(4):
        hidden_BD = model.backbone.forward(inputs_BSD)[0][:, -1]
        logits_BV = hidden_BD @ model.backbone.embedding.T
        torch.testing.assert_close(run.logits_BTV[:, t], logits_BV, atol=1e-9, rtol=1e-9)
        fed_BD = hidden_BD if t < stage else model.backbone.embedding[logits_BV.argmax(-1)]
        inputs_BSD = torch.cat([inputs_BSD, fed_BD[:, None]], 1)
    assert isinstance(run.thought_spans[0].thought, Hidden) == (stage > 0)


def test_forced_plan_is_the_loss_s_own_chain():
    method = Coconut(mixing=0.0)
    model, examples = model_of(method, stage=2), examples_of()
    logs_BTV = method.forced(model, examples).logits_BTV.log_softmax(-1)
    chain_BT = examples.chain_BT[:, 2:]
    loss = -logs_BTV[:, 2:].gather(2, chain_BT[..., None]).sum() / len(chain_BT)
    assert loss_of(method, model, examples, state_of(method, 2)).item() == pytest.approx(loss.item(), abs=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Steps of several tokens, and steps that are removed

EQUATIONS = Arithmetic(4, 5, least=2)
"""Two to four steps of six tokens each."""


def equations(*counts):
    """Problems of EQUATIONS with these numbers of operations."""
    rows = EQUATIONS.problems(60, seed=1)
    found = (rows[:, 1::2] >= 0).sum(1)
    return np.array([rows[found == count][place] for place, count in enumerate(counts)])


def alone(method, rows):
    """Every problem in a batch of its own, as the task with as many operations makes it: without padding."""
    found = []
    for row in rows:
        task = Arithmetic(int((row[1::2] >= 0).sum()), 5)
        found.append(losses.examples_of(method, task, task.read(EQUATIONS.to_json(row))[None]))
    return found


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("per_step", [0, 1, 2])
def test_a_stage_replaces_whole_steps_of_reasoning(stage, per_step):
    """All six tokens of each, whatever lengths the chains of a batch have; the plain loop sees every row alone."""
    method, rows = Coconut(per_step=per_step, mixing=0.0), equations(2, 4, 3)
    model, together = losses.model_of(method, EQUATIONS, stage), losses.examples_of(method, EQUATIONS, rows)
    each = [
        naive_loss(model, examples, min(stage, count), per_step, each=6)
        for examples, count in zip(alone(method, rows), (2, 4, 3), strict=True)
    ]
    ours = loss_and_gradients(model, loss_of(method, model, together, state_of(method, stage)))
    assert_same(ours, loss_and_gradients(model, sum(each) / 3))


def test_steps_of_reasoning_are_counted_for_each_row():
    """Three stages replace all steps of two and of three, and three of four, of which six tokens are left."""
    method, rows = Coconut(per_step=2), equations(2, 4, 3)
    model, examples = losses.model_of(method, EQUATIONS, 3), losses.examples_of(method, EQUATIONS, rows)
    latent, words, answer = method.plan(model, examples)
    assert latent.steps.tolist() == [4, 6, 6]
    assert words.steps.tolist() == [0, 6, 0]
    assert answer.steps == 1
    (chain,) = method.taught(model, examples)
    assert chain.steps.tolist() == [4, 12, 6]
    assert chain.longest == 12
    assert chain.given["latent"].sum(1).tolist() == [4, 6, 6]
    fixed = Arithmetic(3, 5)
    same = losses.examples_of(method, fixed, fixed.problems(4, seed=0))
    assert [segment.longest for segment in method.plan(model, same)] == [6, 0, 1]


def test_inference_in_latents_is_the_loss_s_own_forward():
    """At the last stage all is latent and nothing is chosen before the answer, so both see the same logits."""
    method, rows = Coconut(stages=4, share=0.15, per_step=2), equations(2, 4, 3, 2)
    model, examples = losses.model_of(method, EQUATIONS, 4), losses.examples_of(method, EQUATIONS, rows)
    run = rollout(model.backbone, method.plan(model, examples), examples.prompt_BN, examples.prompt_mask_BN)
    forced = method.forced(model, examples)
    assert run.length_B.tolist() == forced.length_B.tolist() == [5, 9, 7, 5]
    torch.testing.assert_close(run.logits_BTV[:, -1], forced.logits_BTV[:, -1], atol=1e-9, rtol=1e-9)


def test_a_token_that_is_a_step_is_replaced_as_one_without_steps():
    """Told that every token is a step of its own, the method does what it does untold."""
    for method in (Coconut(mixing=1.0), Coconut(mixing=1.0, per_step=2), Coconut(mixing=1.0, per_step=0)):
        model, examples = model_of(method), examples_of()
        told = replace(examples, step_BT=examples.steps_BT)
        state = TrainState(5, 100, 3)
        ours, same = (loss_and_gradients(model, loss_of(method, model, each, state)) for each in (examples, told))
        assert_same(ours, same)


def test_steps_that_are_removed_leave_nothing_behind():
    """With per_step 0, as in iCoT: the loss of discrete chain of thought on the chain without its first steps."""
    method, task = Coconut(per_step=0, mixing=0.0), EQUATIONS
    rows = equations(4, 4, 4)
    examples = losses.examples_of(method, task, rows)
    for stage in range(4):
        model = losses.model_of(method, task, stage)
        shorter = replace(
            examples,
            num_steps=24 - 6 * stage,
            chain_BT=examples.chain_BT[:, 6 * stage :],
            step_BT=examples.step_BT[:, 6 * stage :],
        )
        ours = loss_and_gradients(model, loss_of(method, model, examples, state_of(method, stage)))
        assert_same(ours, loss_and_gradients(model, loss_of(DiscreteCoT(), model, shorter, TrainState(0, 100, 0))))
        assert [segment.longest for segment in method.plan(model, examples)] == [0, 24 - 6 * stage, 1]
    assert method.extra_steps == 0


def test_removing_every_step_ends_in_the_direct_answer():
    method = Coconut(per_step=0, stages=9, share=0.1, mixing=0.0)
    model, examples = model_of(method, stage=9), examples_of()
    ours = loss_and_gradients(model, loss_of(method, model, examples, TrainState(99, 100, 0)))
    assert_same(ours, loss_and_gradients(model, loss_of(Direct(), model, examples, TrainState(99, 100, 0))))
    assert not method.forced(model, examples).counters.latents


def test_answers_of_unequal_length_are_learnt_behind_more_latents_than_tokens():
    """The mask covers the slots that a stage adds; a token behind the end of a shorter answer teaches nothing."""
    method = Coconut(per_step=3, stages=2, mixing=0.0)
    model, examples = model_of(method, stage=2), examples_of()
    one = replace(examples, answer_mask_BA=torch.ones(5, 1, dtype=torch.bool))
    longer = replace(
        one,
        chain_BT=torch.cat([examples.chain_BT, torch.full((5, 1), 3)], 1),
        answer_tokens=2,
        answer_mask_BA=torch.tensor([[True, False]] * 5),
    )
    plain = loss_and_gradients(model, loss_of(method, model, examples, state_of(method, 2)))
    for each in (one, longer):
        assert_same(loss_and_gradients(model, loss_of(method, model, each, state_of(method, 2))), plain)


# ---------------------------------------------------------------------------------------------------------------------
# Pauses as thoughts


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("per_step", [1, 2])
def test_pauses_as_thoughts_are_the_stages_with_a_learned_vector(stage, per_step):
    """Row by row in full, gradients too: the vector is fed where Coconut feeds the hidden state; one forward does."""
    method = Coconut(per_step=per_step, mixing=0.0, thought="pause")
    rows = equations(2, 4, 3)
    model, together = losses.model_of(method, EQUATIONS, stage), losses.examples_of(method, EQUATIONS, rows)
    backbone, pause_D, total = model.backbone, model.parts["pause"].constant_D, 0.0
    for examples, count in zip(alone(method, rows), (2, 4, 3), strict=True):
        latent, ids = min(stage, count), examples.chain_BT[0, 6 * min(stage, count) :]
        words_SD = torch.cat([backbone.embedding[examples.prompt_BN[0]], pause_D.expand(latent * per_step, -1)])
        inputs_SD = torch.cat([words_SD, backbone.embedding[ids[:-1]]])
        log_p_SV = (backbone.forward(inputs_SD[None])[0][0, len(words_SD) - 1 :] @ backbone.embedding.T).log_softmax(-1)
        total = total - log_p_SV[range(len(ids)), ids].sum()
    ours = loss_and_gradients(model, loss_of(method, model, together, state_of(method, stage)))
    assert_same(ours, loss_and_gradients(model, total / 3))
    assert method.forced(model, together).counters.forwards == 1
    run = method.solve(model, together).trace
    assert run.counters.latents == 0
    if stage == 3:
        hidden = Coconut(per_step=per_step, mixing=0.0).solve(losses.model_of(Coconut(), EQUATIONS, 3), together).trace
        assert run.length_B.tolist() == hidden.length_B.tolist(), "as many steps"


def test_pauses_leave_the_usual_method_alone():
    """Its weights are drawn as they are without the option; where steps are removed the option has no effect."""
    usual, paused = model_of(Coconut()), model_of(Coconut(thought="pause"))
    for name, tensor in usual.state_dict().items():
        assert torch.equal(paused.state_dict()[name], tensor), name
    assert not [*usual.parts.named_parameters()]
    assert [name for name, _ in paused.parts.named_parameters()] == ["pause.constant_D"]
    assert set(Coconut(per_step=0).idle) == {"thought"}
    assert not Coconut(thought="pause").idle
    assert "thought" not in experiment(Coconut()).to_json()["method"], "identities of stored runs stay"


# ---------------------------------------------------------------------------------------------------------------------
# Mixing


def test_a_mixed_batch_is_the_mean_of_its_rows_each_in_its_own_stage():
    for method in (Coconut(mixing=1.0), Coconut(mixing=1.0, per_step=2), Coconut(mixing=1.0, per_step=0)):
        model, examples = model_of(method), examples_of()
        state = TrainState(5, 100, 3)
        stages = method.drawn(state, examples).tolist()
        assert len(set(stages)) > 1
        alone = [
            naive_loss(model, examples.rows(slice(row, row + 1)), stage, method.per_step)
            for row, stage in enumerate(stages)
        ]
        ours = loss_and_gradients(model, loss_of(method, model, examples, state))
        assert_same(ours, loss_and_gradients(model, sum(alone) / len(alone)))


def test_stages_are_mixed_with_their_probability():
    """Counts over 20,000 rows, false alarm 1e-6 each: a tenth are drawn anew, a quarter of those as before."""
    examples = examples_of(np.tile(ROWS, (4000, 1)))
    method = Coconut(mixing=0.1)
    stages = method.drawn(state_of(method, 2), examples)
    others = int((stages != 2).sum())
    low, high = binom.interval(1 - 1e-6, len(stages), 0.1 * 3 / 4)
    assert low <= others <= high
    assert chisquare(torch.bincount(stages, minlength=4)[[0, 1, 3]].numpy()).pvalue > 1e-6
    every = Coconut(mixing=1.0).drawn(state_of(method, 2), examples)
    assert chisquare(torch.bincount(every, minlength=4).numpy()).pvalue > 1e-6
    assert (Coconut(mixing=0.0).drawn(state_of(method, 2), examples) == 2).all()


def test_every_step_mixes_afresh():
    method, examples = Coconut(mixing=1.0), examples_of(np.tile(ROWS, (10, 1)))
    draws = {tuple(method.drawn(TrainState(step, 100, 0), examples).tolist()) for step in range(10)}
    assert len(draws) == 10


# ---------------------------------------------------------------------------------------------------------------------
# Stages of training


def test_stages_take_their_share_and_the_last_what_is_left():
    method = Coconut(stages=3, share=0.2)
    assert method.stage_starts(100) == (0, 20, 40, 60)
    assert [method.stage_at(step, 100) for step in (0, 19, 20, 39, 40, 59, 60, 99)] == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
    ]


@pytest.mark.parametrize(("fields", "steps"), [({}, 2), ({}, 3), ({"share": 0.333}, 20)])
def test_too_few_steps_for_the_stages_are_refused_before_training(fields, steps, tmp_path):
    with pytest.raises(ValueError, match=r"steps leave a stage of coconut without any .*: raise training\.steps or"):
        train(experiment(Coconut(**fields), steps=steps), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("work", [pytest.param(measure, marks=pytest.mark.slow), train])
def test_a_missing_or_damaged_stage_is_named_before_anything_is_trained(work, tmp_path):
    """The advice names the run's folder: a stage alone cannot be made again."""
    measure(experiment(), tmp_path)
    (weights,) = (tmp_path / STAGES / "1").rglob(WEIGHTS)
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(DamagedError, match=rf"safetensors is damaged .*: delete {tmp_path} to start over"):
        work(experiment(), tmp_path)
    shutil.rmtree(tmp_path / STAGES / "1")
    with pytest.raises(DamagedError, match=rf"stages/1 holds no checkpoint: delete {tmp_path} to start over"):
        work(experiment(), tmp_path)


def experiment(method=None, steps=20, **recipe):
    training = Training(steps=steps, batch_size=8, learning_rate=0.01, **recipe)
    return Experiment(TASK, method or Coconut(mixing=0.5), ModelConfig(16, 1, 2), training)


def test_training_starts_anew_at_every_stage_but_from_the_same_weights():
    """The loop by hand: a fresh AdamW and schedule at steps 2, 4 and 6.

    Where a gradient is nearly zero AdamW makes rounding visible; what a step moves a weight by is 50 times as much.
    """
    whole = experiment(steps=10)
    trained = train(whole)
    model, examples = whole.fresh(), whole.speaker("train").examples()
    order = batch_indices(len(examples), 8, 0, whole.seeds)
    seed = whole.seeds.derive("sampling", "train")
    for stage, (start, stop) in enumerate(pairwise((0, 2, 4, 6, 10))):
        enter(whole.method, model, stage, examples)
        group = {"params": list(model.parameters()), "peak": whole.training.learning_rate}
        optimizer = torch.optim.AdamW([group], weight_decay=whole.training.weight_decay)
        for step in range(start, stop):
            set_learning_rate(optimizer, whole.training, step - start, stop - start)
            optimizer.zero_grad()
            loss_of(whole.method, model, examples.rows(next(order)), TrainState(step, 10, seed)).backward()
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            optimizer.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], tensor, atol=2e-4, rtol=0)


def test_stage_is_kept_in_every_checkpoint(tmp_path):
    """The one a run is loaded from, and the one at the end of every stage."""
    whole = experiment()
    train(whole, tmp_path)
    assert int(load(tmp_path)[1].stage) == 3
    ends = [find_checkpoint(tmp_path / STAGES / str(stage)) for stage in range(3)]
    assert [saved.step for saved in ends] == [4, 8, 12]
    for stage, saved in enumerate(ends):
        model = whole.fresh()
        load_weights(saved, model)
        assert int(model.stage) == stage


def test_a_stage_s_weights_are_those_of_a_run_that_ends_there(tmp_path):
    """At a constant rate nothing in the first four steps knows what comes after; one forward rounds unlike four."""
    long = experiment(Coconut(mixing=0.0), schedule="constant", warmup=0.0)
    train(long, tmp_path)
    model = long.fresh()
    load_weights(find_checkpoint(tmp_path / STAGES / "0"), model)
    short = train(experiment(DiscreteCoT(), steps=4, schedule="constant", warmup=0.0))
    for name, tensor in short.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_record_holds_the_curve_of_stages(tmp_path):
    whole = experiment()
    record = measure(whole, tmp_path)
    assert [stage.step for stage in record.stages] == [4, 8, 12]
    for stage, found in enumerate(record.stages):
        model = whole.fresh()
        load_weights(find_checkpoint(tmp_path / STAGES / str(stage)), model)
        right = evaluate(whole.speaker("validation"), whole.method, model).right_P
        assert sum(found.right) == right.sum()


def test_more_latents_than_steps_get_positions_of_their_own():
    """With two latents for a step there are three slots more than the task counts on."""
    whole = experiment(Coconut(per_step=2))
    assert whole.fresh().backbone.positions == TASK.positions + 3
    record = measure(replace(whole, seeds=Seeds.all(1)), None)
    assert record.cost.steps == 7
    assert len(record.evaluations[DEFAULT].norm) == 6


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stages": 0}, r"stages 0: expected at least 1"),
        ({"per_step": -1}, r"per_step -1: expected 0 to 64 latent steps"),
        ({"share": 0.0}, r"share 0\.0 for 3 stages .*: expected more than 0 and less than 1 / 3, so .*; try 0\.2"),
        ({"share": 0.34}, r"share 0\.34 for 3 stages and the last: expected more than 0 and less than 1 / 3"),
        ({"per_step": 1000}, r"per_step 1000: expected 0 to 64"),
        ({"mixing": 1.1}, r"mixing 1\.1: expected a probability"),
        ({"mixing": -0.1}, r"mixing -0\.1: expected a probability"),
        ({"thought": "dots"}, "thought 'dots': expected one of hidden, pause"),
    ],
)
def test_bad_configurations_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Coconut(**fields)
