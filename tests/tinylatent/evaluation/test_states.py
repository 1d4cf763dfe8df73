"""What states of steps agree with, change and reach, each against a second computation. Float64 to 1e-9."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import losses
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses import enter
from tinylatent_tasks import MNNS, Arithmetic, MultiHop, Recommendation

from tinylatent.evaluation.states import (
    agreement,
    chance_of_nmi,
    labels_of,
    lattice,
    nmi,
    reachable,
    shape,
    sharpness,
    state_effect,
    state_gain,
    stationary,
    transition_matrix,
)
from tinylatent.methods.ctrls import CTRLS, states_of, targets
from tinylatent.methods.ctrls_states import k_means, steps_of

LONG = Arithmetic(operations=3, least=2, modulus=5)
SMALL = MNNS(3, 1, 4)
labels = st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 2)), min_size=1, max_size=30)


def examples_of(task=SMALL, rows=8):
    return losses.examples_of(CTRLS(), task, task.problems(rows, seed=1))


def model_of(method, task=SMALL):
    model = losses.model_of(method, task)
    enter(method, model, 0, examples_of(task, 20))
    return model


def alike(model):
    """The model with one embedding for all states."""
    with torch.no_grad():
        states_of(model).embedding_KD.copy_(states_of(model).embedding_KD[0].clone())
    return model


# ---------------------------------------------------------------------------------------------------------------------
# Labels


def counted_nmi(pairs):
    """From counts in a dictionary, I by its definition as a divergence."""

    def entropy(counts):
        return -sum(n / len(pairs) * math.log(n / len(pairs)) for n in counts.values())

    both, a, b = Counter(pairs), Counter(x for x, _ in pairs), Counter(y for _, y in pairs)
    shared = sum(n / len(pairs) * math.log(n * len(pairs) / (a[x] * b[y])) for (x, y), n in both.items())
    mean = (entropy(a) + entropy(b)) / 2
    return shared / mean if mean else 0.0


@given(labels)
def test_nmi_is_its_definition(pairs):
    a_M, b_M = (torch.tensor(side) for side in zip(*pairs, strict=True))
    assert nmi(a_M, b_M) == pytest.approx(counted_nmi(pairs), abs=1e-9)
    assert nmi(a_M, b_M) == pytest.approx(nmi(b_M, a_M), abs=1e-12)
    assert nmi(7 - 3 * a_M, b_M) == pytest.approx(nmi(a_M, b_M), abs=1e-9)
    if len(set(a_M.tolist())) > 1:
        assert nmi(a_M, a_M) == pytest.approx(1)


def test_nmi_by_hand(unchecked):
    assert nmi(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])) == pytest.approx(0)
    assert nmi(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 5, 5])) == 0
    assert nmi(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 3])) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="expected as many of both"):
        nmi(torch.zeros(2).long(), torch.zeros(3).long())


def test_labels_agree_by_chance_in_small_samples():
    assert 0.1 > chance_of_nmi(50, 4, 4) > 0.02 > chance_of_nmi(2000, 4, 4) > 0


@pytest.mark.parametrize("task", [LONG, SMALL, MultiHop(hops=4, least=1, nodes=5)], ids=lambda task: task.name)
def test_labels_are_of_every_step(task):
    method, examples = CTRLS(count=3), examples_of(task)
    model, steps = model_of(method, task), steps_of(examples)
    found = labels_of(method, model, examples)
    places = [(row, s) for row in range(8) for s in range(steps.live_BS.shape[1]) if steps.live_BS[row, s]]
    assert {len(label_M) for label_M in found.values()} == {len(places)}
    assert found["index"].tolist() == [s for _, s in places]
    assert set(found["length"].tolist()) == {task.tokens_a_step}
    q_BSK = method.posterior(model, examples, steps)
    assert found["state"].tolist() == [int(q_BSK[place].argmax()) for place in places]
    rows = examples.problems()
    if task is LONG:
        true = [state for row in rows for state in _results(task, row)]
    else:
        own = [task.solve_slowly(row.tolist())[1] for row in rows]
        count_B = steps.live_BS.sum(1).tolist()
        true = [state for states, live in zip(own, count_B, strict=True) for state in states[:live]]
    assert found["true"].tolist() == true
    said = [steps.index_BSn[place][steps.real_BSn[place]] for place in places]
    behind = [
        torch.cat([examples.chain_BT[row][: steps.count_BS[row].sum()], examples.answer_BA[row]]) for row in range(8)
    ]
    ends = [(row, int(steps.count_BS[row, : s + 1].sum())) for row, s in places]
    assert found["next"].tolist() == [int(behind[row][end]) for row, end in ends]
    bags = [Counter(examples.chain_BT[row][index].tolist()) for (row, _), index in zip(places, said, strict=True)]
    bag_MV = torch.tensor([[bag[v] for v in range(examples.frontier.vocabulary)] for bag in bags]).double()
    assert nmi(found["tokens"], k_means(bag_MV, 3, 5).label_M) > 0.5
    assert agreement(found)["true"] == pytest.approx(nmi(found["state"], found["true"]))


def _results(task, row):
    """The results of operations, from the numbers."""
    value, found = int(row[0]), []
    for operator, number in row[1:].reshape(-1, 2).tolist():
        if operator >= 0:
            value = [value + number, value - number, value * number][operator] % task.modulus
            found.append(value)
    return found


def test_a_task_without_a_state_for_each_step_has_no_true_ones():
    task = Recommendation(4, 3, 2, events=4)
    method = CTRLS(count=2)
    assert {"state", "index", "length", "tokens"} <= {*labels_of(method, model_of(method, task), examples_of(task))}


def test_invariant_6_transitions_are_counted_shares_and_walks_come_to_rest():
    generator = torch.Generator().manual_seed(0)
    true_KK = torch.rand(3, 3, generator=generator, dtype=torch.float64) + 0.05
    true_KK = true_KK / true_KK.sum(1, keepdim=True)
    walk_BS = torch.randint(3, (4000, 1), generator=generator)
    for _ in range(12):
        step_B1 = torch.multinomial(true_KK[walk_BS[:, -1]], 1, generator=generator)
        walk_BS = torch.cat([walk_BS, step_B1], 1)
    live_BS = torch.ones_like(walk_BS, dtype=torch.bool)
    found_KK = transition_matrix(walk_BS, live_BS, 3)
    torch.testing.assert_close(found_KK.sum(1), torch.ones(3).double())
    torch.testing.assert_close(found_KK, true_KK, rtol=0, atol=0.02)
    kept_K = stationary(true_KK)
    torch.testing.assert_close(kept_K @ true_KK, kept_K)
    assert kept_K.sum().item() == pytest.approx(1)
    share_K = torch.bincount(walk_BS[:, -1], minlength=3) / len(walk_BS)
    torch.testing.assert_close(share_K.double(), kept_K, rtol=0, atol=0.03)


def test_steps_that_are_not_there_are_no_transitions():
    label_BS, live_BS = torch.tensor([[0, 1, 2], [0, 1, 0]]), torch.tensor([[True, True, False], [True, True, True]])
    found_KK = transition_matrix(label_BS, live_BS, 4)
    assert found_KK[0].tolist() == [0, 1, 0, 0]
    assert found_KK[1].tolist() == [1, 0, 0, 0]
    assert found_KK[3].tolist() == [0.25] * 4


# ---------------------------------------------------------------------------------------------------------------------
# Effects


def test_the_effect_of_a_state_is_a_divergence_pair_by_pair():
    method, examples = CTRLS(count=3), examples_of(LONG, 3)
    model, steps = model_of(method, LONG), steps_of(examples)
    places, q_BSK = targets(examples, steps)[2], method.posterior(model, examples, steps)
    found_S = state_effect(method, model, examples)
    for s in range(steps.live_BS.shape[1]):
        total, pairs = 0.0, 0
        said = []
        for k in range(3):
            a_BSK = q_BSK.clone()
            a_BSK[:, s] = torch.eye(3, dtype=torch.float64)[k]
            trace = method.forced(model, examples, method.given(model, examples, steps, a_BSK))
            said.append(trace.logits_BTV[:, places[s] + 1 : places[s] + 7].log_softmax(-1).detach())
        for row in range(3):
            for j, k in itertools.permutations(range(3), 2):
                if steps.live_BS[row, s]:
                    total += float((said[j][row].exp() * (said[j][row] - said[k][row])).sum())
                    pairs += 1
        assert found_S[s].item() == pytest.approx(total / pairs)
    assert LONG.tokens_a_step == 6, "the divergences of all six tokens add up"
    assert found_S.max() > 1e-3
    assert state_effect(method, alike(model), examples).abs().max() < 1e-12


def test_the_gain_of_own_states_is_a_difference_of_losses():
    method, examples = CTRLS(count=3), examples_of(LONG)
    model, steps = model_of(method, LONG), steps_of(examples)
    q_BSK = method.posterior(model, examples, steps)
    ids_BT, mask_BT, _ = targets(examples, steps)
    another, nats = q_BSK.clone(), []
    for s in range(q_BSK.shape[1]):
        rows = [b for b in range(len(q_BSK)) if steps.live_BS[b, s]]
        for before, b in zip([rows[-1], *rows], rows, strict=False):
            another[b, s] = q_BSK[before, s]
    assert not steps.live_BS.all(), "rows of fewer steps keep out of the exchange"
    for told in (q_BSK, another):
        trace = method.forced(model, examples, method.given(model, examples, steps, told))
        log_p_BT = trace.logits_BTV.log_softmax(-1).gather(-1, ids_BT[..., None]).squeeze(-1)
        nats.append(-float(log_p_BT[mask_BT].sum().detach()) / 8)
    assert state_gain(method, model, examples) == pytest.approx(nats[1] - nats[0])
    assert abs(state_gain(method, alike(model), examples)) < 1e-12
    with pytest.raises(ValueError, match="at least two problems"):
        state_gain(method, model, examples.rows(slice(0, 1)))


def test_sharpness_is_that_of_the_posterior():
    method, examples = CTRLS(count=3), examples_of(LONG)
    model, steps = model_of(method, LONG), steps_of(examples)
    q_MK = method.posterior(model, examples, steps)[steps.live_BS]
    own = [-float(sum(p * p.log() for p in q_K if p > 0)) for q_K in q_MK]
    found = sharpness(method, model, examples)
    assert found["entropy"] == pytest.approx(sum(own) / len(own))
    assert found["largest"] == pytest.approx(float(q_MK.max(1).values.mean()))
    sharper = sharpness(replace(method, tau=0.05), model, examples)
    assert sharper["largest"] > found["largest"]
    assert sharper["entropy"] < found["entropy"]


def test_the_shape_of_features_is_a_mean_over_steps():
    """One token a step: rank one, and no second direction."""
    method = CTRLS(count=3)
    found = shape(method, model_of(method), examples_of())
    assert found == {"effective_rank": pytest.approx(1), "first_eigengap": pytest.approx(1)}
    assert 1 < shape(method, model_of(method, LONG), examples_of(LONG))["effective_rank"] < 4


# ---------------------------------------------------------------------------------------------------------------------
# What states can reach


def test_a_lattice_has_every_point_once():
    assert torch.equal(lattice(3), torch.eye(3, dtype=torch.float64))
    found = lattice(3, 4)
    assert len(found) == math.comb(6, 2) == len({*map(tuple, found.tolist())})
    assert (found.sum(1) == 1).all()
    with pytest.raises(ValueError, match="expected 1, the corners, or more"):
        lattice(3, 0)


@pytest.mark.parametrize("task", [SMALL, MultiHop(hops=3, least=1, nodes=4)], ids=lambda task: task.name)
def test_no_choice_of_states_is_more_often_right_than_the_bound(task):
    """The method's own choices are among all sequences, problem by problem, and so are the posterior's."""
    method, examples = CTRLS(count=3, feed="hard"), examples_of(task, 30)
    model = model_of(method, task)
    found = reachable(method, model, examples)
    assert found.right_ZB.shape == (3 ** steps_of(examples).live_BS.shape[1], 30)
    for other in (method, method.decoders["posterior"]):
        right_B = examples.judge(other.solve(model, examples).answer_BA)
        assert (right_B <= found.right_ZB.any(0)).all()
    assert found.random <= found.fixed <= found.best
    same = reachable(method, alike(model), examples)
    assert same.best == same.fixed == pytest.approx(same.random)


def test_a_sequence_is_told_to_every_problem():
    """The one whose number is 5: state 1, then state 2, of three."""
    method, examples = CTRLS(count=3), examples_of()
    model = model_of(method)
    found = reachable(method, model, examples)
    z_SK = torch.eye(3, dtype=torch.float64)[[1, 2]]
    steps = steps_of(examples.rows(slice(0, 1)))
    for row in range(8):
        written = examples.rows(slice(row, row + 1))
        for place in (1, 3):  # greedily, by the teacher's pass over what was written so far
            trace = method.forced(model, written, method.given(model, written, steps, z_SK[None]))
            chain_1T = written.chain_BT.clone()
            chain_1T[0, place // 2] = trace.logits_BTV[0, place].argmax()
            written = replace(written, chain_BT=chain_1T)
        trace = method.forced(model, written, method.given(model, written, steps, z_SK[None]))
        assert found.right_ZB[5, row] == (trace.logits_BTV[0, -1].argmax() == examples.answer_BA[row, 0])


def test_a_finer_lattice_reaches_no_less():
    method, examples = CTRLS(count=2), examples_of(SMALL, 30)
    model = model_of(method)
    corners, finer = (reachable(method, model, examples, lattice(2, parts)) for parts in (1, 4))
    assert len(finer.right_ZB) == 25
    assert (corners.right_ZB.any(0) <= finer.right_ZB.any(0)).all()


def test_too_many_sequences_and_no_states_are_refused():
    method, examples = CTRLS(count=8), examples_of()
    with pytest.raises(ValueError, match="64 sequences, more than 60"):
        reachable(method, model_of(method), examples, most=60)
    prefix = CTRLS(states="prefix")
    for ask in (reachable, state_effect, state_gain):
        with pytest.raises(ValueError, match="no states to compare"):
            ask(prefix, model_of(prefix), examples)
