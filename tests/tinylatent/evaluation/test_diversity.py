"""Sampled chains: entropies by hand, the temperature that matches, different right ones, and tokens without states."""

import math

import numpy as np
import pytest
import torch
from tinylatent_tasks import Arithmetic

from tinylatent.core.seeds import Seeds
from tinylatent.evaluation.diversity import Chains, different, entropy, matched_temperature, sampled_chains
from tinylatent.evaluation.states import permuted_nmi
from tinylatent.lab.experiment import Experiment
from tinylatent.methods import CTRLS, DiscreteCoT
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

TASK = Arithmetic(operations=3, least=2, modulus=5)


def model_of(method):
    training = Training(steps=1, num_train=40, batch_size=8)
    return Experiment(TASK, method, ModelConfig(16, 1, 1), training, Seeds(), None).fresh()


def test_entropy_is_that_of_the_samples():
    assert entropy(np.array([[1, 1, 1, 1]])) == 0
    found = entropy(np.array([[1, 1, 2, 2], [1, 2, 3, 4]]))
    assert found == pytest.approx((math.log(2) + math.log(4)) / 2)


@pytest.mark.parametrize("target", [0.1, 1.0, 3.0])
def test_the_matching_temperature_is_found_within_the_range(target):
    found = matched_temperature(target, lambda hot: hot, halvings=20)
    assert found == pytest.approx(target, rel=1e-3)
    assert matched_temperature(-1.0, lambda hot: hot, halvings=20) == pytest.approx(0.02, rel=1e-3)


def test_different_good_chains_are_counted_in_blocks():
    number_PS, good_PS = np.array([[1, 1, 2, 3, 3, 3]]), np.array([[1, 1, 1, 0, 1, 1]], bool)
    assert different(number_PS, good_PS, 3) == pytest.approx((2 + 1) / 2)
    assert different(number_PS, good_PS, 6) == 3
    assert different(number_PS, good_PS & False, 3) == 0
    with pytest.raises(ValueError, match="7 of 6"):
        different(number_PS, good_PS, 7)


def test_equal_chains_have_equal_numbers_and_proofs_are_the_tasks():
    rows = TASK.problems(3, 0)
    chain_PT, answer_PA = TASK.chain(rows), TASK.answer_ids(TASK.answer(rows))
    before = np.where(np.arange(chain_PT.shape[1] - 1) < (TASK.steps(rows) - 1)[:, None], chain_PT[:, :-1], -1)
    chains = Chains(np.stack([before, before, before[::-1]], 1), np.stack([answer_PA] * 3, 1))
    number_PS = chains.number_PS
    assert (number_PS[:, 0] == number_PS[:, 1]).all()
    assert number_PS[0, 0] != number_PS[0, 2]
    assert chains.certified(TASK, rows)[:, :2].all()
    assert not chains.certified(TASK, rows)[0, 2]
    assert chains.right(TASK, rows).all()


def test_chains_are_written_without_their_states():
    """Plain and stateful greedy chains have as many tokens, one behind the other; draws differ by their seed alone."""
    rows = TASK.problems(6, 0)
    assert len({*TASK.steps(rows).tolist()}) > 1
    method = CTRLS(count=3, draws=True)
    model = model_of(method)
    lengths = TASK.steps(rows) - 1
    for each in (method, DiscreteCoT()):
        chains = sampled_chains(TASK, rows, each, model, 2, temperature=0.0, batch=4)
        token_PSW = chains.token_PSW
        assert ((token_PSW >= 0).sum(-1) == lengths[:, None]).all()
        assert ((token_PSW >= 0) == (np.arange(token_PSW.shape[-1]) < lengths[:, None, None])).all()
    first, again = (sampled_chains(TASK, rows, DiscreteCoT(), model, 3, temperature=1.0, seed=1) for _ in range(2))
    assert (first.token_PSW == again.token_PSW).all()
    with pytest.raises(ValueError, match="0 samples"):
        sampled_chains(TASK, rows, DiscreteCoT(), model, 0, temperature=1.0)


def test_permuted_labels_agree_by_chance():
    label_M = torch.arange(40) % 4
    assert permuted_nmi(label_M, torch.zeros(40, dtype=torch.int64)) == 0
    assert 0 < permuted_nmi(label_M, label_M) < 0.3
