"""A reading of states asks a trained run in every way, and what it counts is what evaluations by hand count."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tinylatent_tasks import MultiHop, SubsetSum

from tinylatent.evaluation.evaluate import evaluate
from tinylatent.lab import state_reading
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import load
from tinylatent.lab.launchers.local import Local
from tinylatent.lab.run import read_record
from tinylatent.lab.state_reading import StateReading, ways
from tinylatent.lab.study import measure_all
from tinylatent.methods import CTRLS, DiscreteCoT
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.config import Training

pytestmark = pytest.mark.slow  # as users run it
TASK = MultiHop(hops=3, least=2, nodes=5, bound=True)
BRIEF = Training(steps=150, batch_size=32, num_train=200, learning_rate=1e-2)
CHAIN = Experiment(TASK, DiscreteCoT(), ModelConfig(16, 2, 1), BRIEF)
STATES = CTRLS(count=2, feed="hard", problems=64)
ASKED = {"problems": 50, "few": 50, "samples": 20}


def taught(method=STATES, chain=CHAIN):
    return Experiment(chain.task, method, chain.model, replace(BRIEF, steps=60, learning_rate=0.3), chain.seeds, chain)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Records of the chain and of its states, hard and soft, and the folder of their runs."""
    store = tmp_path_factory.mktemp("runs")
    soft = replace(STATES, feed="soft")
    readings = [
        StateReading(CHAIN, **ASKED, temperatures=(0.0, 0.7)),
        StateReading(taught(), **ASKED, temperatures=(0.0, 0.7)),
        StateReading(taught(soft), **ASKED),
    ]
    return measure_all(readings, store, Local(1)), store


def test_right_answers_are_those_of_evaluations_by_hand(found):
    (_, hard, _), store = found
    rows, run = hard.reading.spread(50), hard.reading.start
    _, model = load(store / run.identity)
    seed = run.seeds.derive("sampling", "evaluation")
    assert {*hard.right} == {"default", "plain", "drawn", "posterior", "noise", "shuffled", "zero"}
    for name, (method, control) in ways(run.method).items():
        by_hand = evaluate(Symbols(TASK, rows), method, model, control=control, seed=seed).right_P
        assert sum(hard.right[name]) == by_hand.sum(), name
    assert sum(hard.total) == 50
    assert sum(hard.few_total) == 50


def test_states_that_are_left_out_are_the_start(found):
    """The language model is frozen: read plainly it answers as the chain does."""
    (chain, hard, soft), _ = found
    for record in (hard, soft):
        assert record.right["plain"] == chain.right["default"]
        assert record.few_right["plain"] == chain.few_right["default"]


def test_no_way_to_feed_single_states_beats_their_bound(found):
    """Two states before two steps at most: four sequences; with mixtures the centre stands beside the corners."""
    (_, hard, soft), _ = found
    assert (hard.bound.sequences, hard.bound.exact) == (4, True)
    assert (soft.bound.sequences, soft.bound.exact) == (9, False)
    for best, default, fixed in zip(hard.bound.best, hard.few_right["default"], hard.bound.fixed, strict=True):
        assert max(default, fixed) <= best


def test_the_bound_counts_what_sequences_solve(found, tmp_path, monkeypatch):
    """Four sequences; a problem is solved by as many as the rest of its number by five says."""
    (_, hard, _), store = found
    asked = []

    def made_up(method, model, examples, points_QK, most):
        asked.append((len(points_QK), most))
        return SimpleNamespace(right_ZB=torch.arange(4)[:, None] < torch.arange(50) % 5)

    monkeypatch.setattr(state_reading, "reachable", made_up)
    bound = hard.reading.measure(tmp_path, start=store / hard.reading.start.identity).bound
    assert asked == [(2, state_reading.MOST)]
    assert (sum(bound.best), sum(bound.chance)) == (40, 10 * (1 + 2 + 3 + 4) * 1e6 / 4)
    assert sum(bound.fixed) == 40, "the first sequence, whichever half chooses"


def test_samples_are_counted_without_bias_and_match_in_entropy(found):
    (chain, hard, _), _ = found
    assert {*chain.draws} == {"plain 0.7"}
    assert {*hard.draws} == {"drawn", "matched", "drawn 0.7", "matched 0.7"}
    for draws in (*chain.draws.values(), *hard.draws.values()):
        passed = [sum(draws.pass_[str(n)]) for n in range(1, 21)]
        assert passed == sorted(passed)
        assert passed[-1] <= 50 * 1e6
        assert draws.samples == 20
    assert hard.draws["drawn 0.7"].entropy == pytest.approx(hard.draws["matched 0.7"].entropy, abs=0.3)


def test_meaning_is_told_of_states_alone(found):
    (chain, hard, soft), _ = found
    assert chain.meaning is None
    assert chain.bound is None
    for record in (hard, soft):
        assert {"index", "length", "tokens"} <= {*record.meaning.agreement} == {*record.meaning.chance}
        assert all(0 <= each <= 1 for each in record.meaning.agreement.values())
        assert all(each >= 0 for each in record.meaning.effect)
        assert 1 <= record.meaning.shape["effective_rank"] <= 4


def test_it_goes_to_json_and_back(found):
    for record in found[0]:
        assert StateReading.from_json(record.reading.to_json()) == record.reading
        assert read_record(StateReading, record.to_json()) == record


def test_different_derivations_are_counted_where_a_task_proves_them(tmp_path):
    chain = Experiment(SubsetSum(numbers=4), DiscreteCoT(), ModelConfig(16, 2, 1), BRIEF)
    (record,) = measure_all([StateReading(chain, **ASKED, temperatures=(0.7,))], tmp_path, Local(1))
    five, twenty = (record.draws["plain 0.7"].different[n] for n in ("5", "20"))
    assert 0 <= five <= twenty <= 20
