"""Discrete chain of thought whose model ends the chain itself: its loss, its stops, and rows that never end."""

from collections import Counter
from dataclasses import replace
from itertools import product

import losses
import numpy as np
import pytest
import torch
from losses import assert_same, loss_and_gradients, loss_of
from scipy.stats import chisquare
from tinylatent_tasks import MNNS, Arithmetic, MultiHop

from tinylatent.core.seeds import Streams
from tinylatent.engine.force import force, replay
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thought import Action
from tinylatent.engine.trace import NO_TOKEN
from tinylatent.evaluation.evaluate import evaluate
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import train
from tinylatent.methods import DiscreteCoT
from tinylatent.methods.discrete import END, THINKING, ended
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import TrainState
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.config import Training

ENDS = DiscreteCoT(ends=True)
TASK = MultiHop(hops=4, nodes=5)
"""Chains of none to three tokens before the answer, prompts padded on the left."""
ROWS = TASK.problems(40, seed=2)
EARLY = TrainState(0, 10, 0)


def case(rows=ROWS, task=TASK):
    """A float64 model of the method and examples; its greedy chains end after any number of steps, or never."""
    return losses.model_of(ENDS, task), losses.examples_of(ENDS, task, rows)


def end_id(model):
    return ENDS.extra_id(model, END)


# ---------------------------------------------------------------------------------------------------------------------
# The loss


def test_the_delimiter_follows_the_task_s_tokens_and_its_step_has_a_position():
    model, _ = case()
    assert end_id(model) == len(TASK.vocabulary) == len(model.backbone.table) - 1
    assert model.backbone.positions == TASK.positions + 1


@pytest.mark.parametrize("task", [TASK, Arithmetic(3, 5, least=2), MNNS(3, 1, 4)], ids=repr)
def test_the_loss_is_the_cross_entropy_of_chain_delimiter_and_answer(task):
    """Every row alone and without padding, one forward over its own tokens; the mean over rows."""
    model, examples = case(task.problems(6, seed=1), task)
    loss, batch = 0.0, task.batch(task.problems(6, seed=1))
    for row, steps in enumerate(batch.steps_B - 1):
        prompt_N = batch.prompt_BN[row][batch.prompt_mask_BN[row]]
        said = [*batch.chain_BT[row, :steps], end_id(model), *batch.answer_BA[row]]
        ids_1S = torch.tensor([[*prompt_N, *said]])
        hidden_1SD, _ = model.backbone.forward(model.backbone.embedding[ids_1S[:, :-1]])
        logs_TV = (hidden_1SD[0, len(prompt_N) - 1 :] @ model.backbone.embedding.T).log_softmax(-1)
        assert len(logs_TV) == len(said)
        loss = loss - logs_TV[range(len(said)), said].sum() / 6
    assert_same(loss_and_gradients(model, loss_of(ENDS, model, examples, EARLY)), loss_and_gradients(model, loss))


def test_without_ends_the_loss_lacks_the_delimiter_and_nothing_else():
    """The same weights, with a table without the delimiter's row: chain and answer as ever, and the same identity."""
    fixed, rows = DiscreteCoT(), MNNS(3, 1, 4).problems(6, seed=1)
    model, examples = losses.model_of(fixed, MNNS(3, 1, 4)), losses.examples_of(fixed, MNNS(3, 1, 4), rows)
    logs_BTV = fixed.forced(model, examples).logits_BTV.log_softmax(-1)
    loss = -logs_BTV.gather(2, examples.chain_BT[..., None]).sum() / 6
    assert loss_of(fixed, model, examples, EARLY).item() == pytest.approx(loss.item(), abs=1e-12)
    assert (fixed.extra_tokens, fixed.extra_steps, fixed.supervised) == ((), 0, True)
    assert [segment.longest for segment in fixed.plan(model, examples)] == [2, 1]
    assert Experiment(method=fixed).to_json()["method"] == {"name": "discrete", "version": 1}
    assert Experiment(method=ENDS).to_json()["method"] == {"name": "discrete", "version": 1, "ends": True}


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("group", [1, 3])
def test_a_rollout_is_teacher_forcing_of_what_it_wrote(dtype, within, group):
    """Behind left padding, of rows that end early, late and never, alone and in groups."""
    model, examples = case()
    model = model.to(dtype)
    streams = Streams(3, torch.arange(group * len(ROWS)))
    run = ENDS.solve(model, examples, streams, temperature=1.0 if group > 1 else 0.0, group=group).trace
    lengths = run.length_B - examples.answer_tokens
    assert {1, 4} <= {*lengths.tolist()}
    assert ended(run).any()
    assert not ended(run).all()
    again = replay(model.backbone, run)
    live_BT = run.live_BT
    torch.testing.assert_close(again.logits_BTV[live_BT], run.logits_BTV[live_BT], atol=within, rtol=within)
    torch.testing.assert_close(again.log_prob_BT, run.log_prob_BT, atol=within, rtol=within)
    if group > 1:
        torch.testing.assert_close(run.sampled_log_prob_BT.to(dtype), again.log_prob_BT, atol=within, rtol=within)


def test_a_row_stops_at_its_first_delimiter_and_answers_after_it():
    model, examples = case()
    run = ENDS.solve(model, examples).trace
    span = run.span(THINKING)
    assert span.max_steps == examples.max_steps + 1 == 4
    for row in range(len(ROWS)):
        written = [id_ for id_, acted in zip(span.action["id"][row].tolist(), run.acted_BT[row], strict=False) if acted]
        assert end_id(model) not in written[:-1]
        assert (written[-1] == end_id(model)) == bool(ended(run)[row])
        assert ended(run)[row] or len(written) == 4


def test_chains_that_never_end_have_no_answer_and_are_wrong():
    """Even where the token after the cut is the right one."""
    model, examples = case()
    solution = ENDS.solve(model, examples)
    cut_B = ~ended(solution.trace)
    assert 0 < cut_B.sum() < len(ROWS)
    assert (solution.answer_BA[cut_B] == NO_TOKEN).all()
    assert torch.equal(solution.answer_BA[~cut_B], solution.trace.answer()[~cut_B])
    said_BT = torch.cat([examples.chain_BT[:, :-1], solution.trace.answer()], 1)
    claimed = replace(examples, speaker=None, chain_BT=said_BT)
    assert torch.equal(claimed.judge(solution.trace.answer()), torch.ones(len(ROWS), dtype=torch.bool))
    assert torch.equal(claimed.judge(solution.answer_BA), ~cut_B)


def test_a_delimiter_at_the_last_step_allowed_ends_the_chain():
    model, examples = case(ROWS[:2])
    id_BT = torch.full((2, 4), 5)
    id_BT[0, 3] = end_id(model)
    given = Segment(ENDS.token(model), 4, Action({"id": id_BT}, id_BT == end_id(model)), THINKING)
    assert ended(ENDS.forced(model, examples, (given,))).tolist() == [True, False]


# ---------------------------------------------------------------------------------------------------------------------
# Probabilities

TINY = MultiHop(hops=3, least=3, nodes=2)
"""Seven tokens with the delimiter, and at most three steps: 7 + 36 + 216 chains, of which each can be forced."""


def every_chain(vocabulary, end, most):
    """All chains that the limit allows: those up to their delimiter, and those cut without one."""
    others = [id_ for id_ in range(vocabulary) if id_ != end]
    ending = [[*before, end] for length in range(most) for before in product(others, repeat=length)]
    return ending + [[*cut] for cut in product(others, repeat=most)]


def test_probabilities_of_all_chains_add_up_to_one_and_are_those_of_sampling():
    """Each chain's by teacher forcing at the temperature; how often each length is drawn is within a test of 1e-6."""
    temperature, drawn = 1.7, 4000
    model, examples = case(TINY.problems(1, seed=0), TINY)
    end, most = end_id(model), examples.max_steps + 1
    chains = every_chain(len(model.backbone.table), end, most)
    assert len(chains) == 1 + 6 + 36 + 216
    id_CT = torch.tensor([chain + [0] * (most - len(chain)) for chain in chains])
    steps_C = torch.tensor([len(chain) for chain in chains])
    given = Action({"id": id_CT}, id_CT == end)
    prompt_CN = examples.prompt_BN.expand(len(chains), -1)
    with torch.no_grad():
        forced = force(model.backbone, (Segment(ENDS.token(model, temperature), steps_C, given, THINKING),), prompt_CN)
        log_prob_C = forced.log_prob_BT.sum(1)
    assert log_prob_C.exp().sum().item() == pytest.approx(1, abs=1e-9)
    expected = Counter()
    for chain, log_prob in zip(chains, log_prob_C.tolist(), strict=True):
        expected[len(chain), chain[-1] == end] += np.exp(log_prob)
    (plan,) = ENDS.thinking(model, examples, temperature)
    run = rollout(
        model.backbone,
        (plan,),
        examples.prompt_BN,
        streams=Streams(5, torch.arange(drawn)),
        group=drawn,
    )
    found = Counter(zip(run.length_B.tolist(), ended(run).tolist(), strict=True))
    assert {*found} <= {*expected}
    assert len(expected) == most + 1
    counts = [[found[outcome], drawn * share] for outcome, share in expected.items()]
    assert chisquare(*np.array(counts).T).pvalue > 1e-6


# ---------------------------------------------------------------------------------------------------------------------
# Learning


@pytest.mark.slow
def test_greedy_ends_where_it_was_trained_to():
    """Chains of none to two tokens, learnt by heart: every one is written to its end, and no further."""
    task = MultiHop(hops=3, nodes=3, bound=True)
    recipe = Training(steps=200, batch_size=16, learning_rate=0.01, num_train=16)
    each = Experiment(task, ENDS, ModelConfig(32, 1, 2), recipe)
    model, rows = train(each), each.rows("train")
    examples = ENDS.supervise(Symbols(task, rows))
    solution = ENDS.solve(model, examples)
    assert {*examples.num_steps.tolist()} == {0, 1, 2}
    assert ended(solution.trace).all()
    assert torch.equal(solution.trace.length_B, examples.num_steps + 2)
    assert torch.equal(solution.answer_BA, examples.answer_BA)
    assert evaluate(Symbols(task, rows), ENDS, model, batch=3).right_P.all()
