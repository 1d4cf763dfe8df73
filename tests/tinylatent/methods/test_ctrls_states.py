"""States of steps for CTRLS-style methods: chains cut into steps, features, clusters; invariants by their number.

Float64 to 1e-9 unless said otherwise.
"""

import itertools

import numpy as np
import pytest
import torch
from fakes import random
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylatent_tasks import MNNS, Arithmetic, MultiHop

from tinylatent.core.seeds import derive
from tinylatent.methods.ctrls_states import (
    BANK,
    States,
    effective_rank,
    eigengaps,
    k_means,
    principal,
    signed,
    spectrum,
    steps_of,
)
from tinylatent.objectives.speakers import Symbols

seeds = st.integers(0, 99)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def whole(n):
    return torch.ones(n, dtype=torch.bool)


def of(hidden_nD, k=3):
    return spectrum(hidden_nD, whole(len(hidden_nD)), k)


# ---------------------------------------------------------------------------------------------------------------------
# Steps


@pytest.mark.parametrize(
    "task", [MNNS(4, 1, 4), MultiHop(hops=4, least=1, nodes=5), Arithmetic(operations=4, least=2)], ids=lambda t: t.name
)
def test_steps_are_the_task_s_own(task):
    """Every token is in one step, in order; none of the answer, none beyond a row's chain."""
    examples = Symbols(task, task.problems(9, seed=0)).examples()
    steps = steps_of(examples)
    per_step, count_B = task.tokens_a_step, torch.as_tensor(examples.num_steps).expand(9)
    for row, tokens in enumerate(count_B.tolist()):
        expected = [[*range(at, at + per_step)] for at in range(0, tokens, per_step)]
        found = [
            index_n[real_n].tolist()
            for index_n, real_n in zip(steps.index_BSn[row], steps.real_BSn[row], strict=True)
            if real_n.any()
        ]
        assert found == expected
    ids_BSn = steps.ids(examples.chain_BT)
    assert torch.equal(
        ids_BSn[steps.real_BSn], torch.cat([c[:w] for c, w in zip(examples.chain_BT, count_B.tolist(), strict=True)])
    )
    assert (ids_BSn[~steps.real_BSn] == 0).all()


# ---------------------------------------------------------------------------------------------------------------------
# Features


@given(seeds, st.integers(1, 5))
def test_invariant_7_the_order_of_tokens_leaves_the_eigenvalues(seed, n):
    hidden_nD = random(n, 4, seed=seed)
    for places in itertools.islice(itertools.permutations(range(n)), 6):
        torch.testing.assert_close(of(hidden_nD[[*places]]).eigenvalues, of(hidden_nD).eigenvalues, **CLOSE)
        torch.testing.assert_close(of(hidden_nD[[*places]]).features, of(hidden_nD).features, rtol=0, atol=1e-7)


@given(seeds, st.integers(2, 3))
def test_invariant_7_all_tokens_twice_leave_eigenvalues_and_features(seed, times):
    hidden_nD = random(4, 5, seed=seed)
    again = of(hidden_nD.repeat(times, 1))
    torch.testing.assert_close(again.eigenvalues, of(hidden_nD).eigenvalues, **CLOSE)
    torch.testing.assert_close(again.features, of(hidden_nD).features, rtol=0, atol=1e-7)


@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_invariant_7_the_squared_norm_is_the_sum_of_the_leading_eigenvalues(seed, n, k):
    hidden_nD = random(n, 4, seed=seed)
    found = of(hidden_nD, k)
    values_D = torch.linalg.eigvalsh(hidden_nD.T @ hidden_nD / n).flip(0)
    torch.testing.assert_close(found.features.pow(2).sum(), values_D[:k].sum(), **CLOSE)
    torch.testing.assert_close(found.eigenvalues[: min(n, k, 4)], values_D[: min(n, k)], **CLOSE)
    assert (found.eigenvalues[min(n, 4) :] == 0).all()
    assert found.features.shape == (k * 4,)


@given(seeds)
def test_invariant_7_a_rotation_of_hidden_space_leaves_the_eigenvalues(seed):
    hidden_nD, (q_DD, _) = random(4, 5, seed=seed), torch.linalg.qr(random(5, 5, seed=seed + 1))
    torch.testing.assert_close(of(hidden_nD @ q_DD).eigenvalues, of(hidden_nD).eigenvalues, **CLOSE)


@given(seeds)
def test_directions_are_eigenvectors_and_signs_are_fixed(seed):
    hidden_nD = random(4, 5, seed=seed)
    found = of(hidden_nD)
    gram_DD = hidden_nD.T @ hidden_nD / 4
    torch.testing.assert_close(
        found.directions @ gram_DD, found.eigenvalues[:, None] * found.directions, rtol=0, atol=1e-9
    )
    torch.testing.assert_close(of(-hidden_nD).features, found.features, rtol=0, atol=1e-9)
    assert (found.directions.gather(-1, found.directions.abs().argmax(-1, keepdim=True)) > 0).all()
    assert torch.equal(signed(-found.directions), signed(found.directions))


def test_padding_changes_no_feature():
    hidden_3D = random(3, 4)
    padded_6D = torch.cat([hidden_3D, random(3, 4, seed=1)])
    torch.testing.assert_close(spectrum(padded_6D, torch.arange(6) < 3, 2).features, of(hidden_3D, 2).features, **CLOSE)


def test_ranks_and_gaps_by_hand():
    values = torch.tensor([[4.0, 4.0, 0.0], [9.0, 0.0, 0.0], [4.0, 3.0, 1.0]], dtype=torch.float64)
    assert effective_rank(values).tolist() == pytest.approx([2.0, 1.0, 64 / 26])
    assert eigengaps(values).tolist() == [[0.0, 1.0], [1.0, 0.0], [0.25, 0.5]]


# ---------------------------------------------------------------------------------------------------------------------
# Clusters


@settings(max_examples=15)
@given(seeds, st.integers(1, 3))
def test_k_means_finds_the_best_partition_of_a_few_points(seed, K):
    """Against all assignments."""
    points_Mp = random(6, 2, seed=seed)
    best = min(
        sum(
            float(((group := points_Mp[np.array(label) == k]) - group.mean(0)).pow(2).sum())
            for k in range(K)
            if k in label
        )
        for label in itertools.product(range(K), repeat=6)
    )
    found = k_means(points_Mp, K, seed)
    assert found.inertia == pytest.approx(best)
    own_Mp = found.centre_Kp[found.label_M]
    assert found.inertia == pytest.approx(float((points_Mp - own_Mp).pow(2).sum()))


def test_k_means_is_the_same_for_a_seed_and_sorts_its_centres():
    points_Mp = random(200, 3)
    found = k_means(points_Mp, 5, 1)
    assert all(torch.equal(a, b) for a, b in zip(found[:2], k_means(points_Mp, 5, 1)[:2], strict=True))
    assert found.centre_Kp.tolist() == sorted(found.centre_Kp.tolist())
    turned = k_means(points_Mp.flip(0), 5, 1)
    assert turned.inertia == pytest.approx(found.inertia, rel=0.05)


def test_k_means_of_fewer_points_than_centres():
    points_Mp = random(2, 3)
    found = k_means(points_Mp, 4, 0)
    assert found.inertia == pytest.approx(0)
    assert found.centre_Kp.isfinite().all()


@pytest.mark.parametrize("arguments", [(random(0, 3), 2, 0), (random(4, 3), 0, 0), (random(4, 3), 2, 0, 0)])
def test_k_means_of_nothing_is_refused(arguments):
    with pytest.raises(ValueError, match="expected 1 or more of each"):
        k_means(*arguments)


def test_principal_directions_are_those_of_the_covariance():
    points_MF = random(40, 6) * torch.arange(1, 7)
    mean_F, found_pF = principal(points_MF, 3)
    torch.testing.assert_close(mean_F, points_MF.mean(0))
    values_F, vectors_FF = torch.linalg.eigh(torch.cov(points_MF.T))
    torch.testing.assert_close(found_pF, signed(vectors_FF.T.flip(0)[:3]), rtol=0, atol=1e-9)
    assert values_F[-1] > values_F[0]
    few_pF = principal(points_MF[:3], 5)[1]
    assert (few_pF[2:] == 0).all()
    torch.testing.assert_close(few_pF[:2] @ few_pF[:2].T, torch.eye(2, dtype=torch.float64), **CLOSE)


def own_states(K=3, p=4):
    return States(5, K, 2, p, torch.Generator().manual_seed(0)).double()


def test_soft_assignments_are_their_definition():
    states, features_MF = own_states(), random(50, 10)
    states.fit(features_MF, "fitted", 0.7, seed=3)
    q_MK = states.assigned(features_MF, 0.7)
    mean_F, principal_pF = principal(features_MF, 4)
    points_Mp = (features_MF - mean_F) @ principal_pF.T
    distance_MK = torch.cdist(points_Mp, k_means(points_Mp, 3, derive(3, "k-means")).centre_Kp) ** 2
    spread = distance_MK.amin(1).mean()
    torch.testing.assert_close(q_MK, (-distance_MK / (0.7 * spread)).softmax(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(q_MK.sum(1), torch.ones(50, dtype=torch.float64))
    hard_MK = states.assigned(features_MF, 1e-4)
    assert (hard_MK.amax(1) > 0.99).double().mean() > 0.9
    assert torch.equal(hard_MK.argmax(1), distance_MK.argmin(1))


def test_a_bank_holds_states_of_the_steps_they_were_fitted_to():
    states, features_MF = own_states(), random(50, 10)
    states.fit(features_MF, "fitted", 0.7, seed=3)
    q_MK = states.assigned(features_MF, 0.7)
    assert len(states.bank_MK) == BANK
    assert ((states.bank_MK[:, None] - q_MK).abs().amax(-1).amin(1) < 1e-9).all()


def test_random_centres_are_drawn_and_spread_as_the_points_are():
    states, features_MF = own_states(K=200), random(500, 10) * torch.arange(1, 11)
    states.fit(features_MF, "random", 1.0, seed=3)
    points_Mp = (features_MF - states.mean_F) @ states.principal_pF.T
    ratio_p = states.centre_Kp.std(0) / points_Mp.std(0)
    assert ((ratio_p > 0.8) & (ratio_p < 1.2)).all()
    other = own_states(K=200)
    other.fit(features_MF, "random", 1.0, seed=4)
    assert not torch.equal(other.centre_Kp, states.centre_Kp)


@pytest.mark.parametrize("M", [1, 2, 4])
def test_few_steps_can_be_fitted_to(M):
    states = own_states(K=4)
    states.fit(random(M, 10), "fitted", 1.0, seed=0)
    assert states.assigned(random(3, 10), 1.0).isfinite().all()
