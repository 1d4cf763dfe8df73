"""Verifiers: what they say yes to, how often they err, and certificates against every chain there is."""

import itertools
import math

import numpy as np
import pytest
import torch
from losses import examples_of, model_of
from scipy.stats import binomtest
from tinylatent_tasks import MNNS, MultiHop, SubsetSum

from tinylatent.core.seeds import Streams
from tinylatent.engine.plan import ANSWER, Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY, HIDDEN, Token
from tinylatent.methods import CoT2, DiscreteCoT
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.rewards import (
    certificate,
    confidence,
    constant,
    noisy,
    truth,
    verifier_named,
    written,
)
from tinylatent.objectives.speakers import Symbols

SUMS, WALKS = SubsetSum(numbers=3, high=4), MultiHop(hops=3, least=1, nodes=4, bound=True)


def told(task, rows, chains, answers):
    """Examples of problems, and a trace that writes these tokens: chains one after another, each with its answer."""
    examples = examples_of(DiscreteCoT(), task, np.asarray(rows))
    model, steps = model_of(DiscreteCoT(), task), torch.tensor([len(chain) for chain in chains])
    ids_BW = torch.zeros(len(chains), max(1, int(steps.max())), dtype=torch.int64)
    for row, chain in enumerate(chains):
        ids_BW[row, : len(chain)] = torch.tensor(chain)
    plan = (
        Segment(GREEDY, steps, GREEDY.given(ids_BW)),
        Segment(GREEDY, 1, GREEDY.given(torch.tensor(answers)[:, None]), ANSWER),
    )
    return examples, rollout(model.backbone, plan, examples.prompt_BN, examples.prompt_mask_BN)


def test_written_tokens_stand_together():
    """Whatever waits and padding stood between them; the delimiter is among them or not."""
    plan = (
        Segment(Token(), torch.tensor([1, 2]), GREEDY.given(torch.tensor([[4, 0], [5, 6]]))),
        Segment(Token(stop_ids=(3,)), 3, Token(stop_ids=(3,)).given(torch.tensor([[7, 3, 1], [3, 1, 1]]))),
        Segment(GREEDY, 1, GREEDY.given(torch.tensor([[8], [9]])), ANSWER),
    )
    model = model_of(DiscreteCoT(), MNNS(4, 1, 4)).backbone
    trace = rollout(model, plan, torch.tensor([[1], [1]]))
    assert written(trace).tolist() == [[4, 7, 3], [5, 6, 3]]
    assert written(trace, delimiter=False).tolist() == [[4, 7], [5, 6]]
    assert trace.answer().tolist() == [[8], [9]]


# ---------------------------------------------------------------------------------------------------------------------
# Certificates


def test_a_certificate_of_subset_sum_is_a_subset():
    """All chains of three sums for some problems, by what the subsets' sums are; nothing proves a no."""
    rows = SUMS.problems(12, seed=1).tolist()
    zero, yes, no = SUMS.vocabulary.index("=0"), SUMS.vocabulary.index("yes"), SUMS.vocabulary.index("no")
    sums = list(itertools.product(range(13), repeat=3))
    for *numbers, target in rows:
        proofs = {
            tuple(np.cumsum([take * number for take, number in zip(takes, numbers, strict=True)]).tolist())
            for takes in itertools.product((0, 1), repeat=3)
            if sum(take * number for take, number in zip(takes, numbers, strict=True)) == target
        }
        chains, problem = zero + np.array(sums), np.tile([*numbers, target], (len(sums), 1))
        found = SUMS.certified(problem, chains, np.full((len(sums), 1), yes))
        assert {tuple(each) for each in np.array(sums)[found].tolist()} == proofs
        assert bool(proofs) == bool(SUMS.answer([[*numbers, target]])[0])
        assert not SUMS.certified(problem, chains, np.full((len(sums), 1), no)).any()
    proof, short = np.array([[zero, zero + 3, zero + 3]]), np.array([[zero, zero + 3]])
    problem = [[2, 3, 1, 3]]
    assert SUMS.certified(problem, proof, [[yes]]).all()
    assert SUMS.certified(problem, np.pad(proof, ((0, 0), (0, 1)), constant_values=-1), [[yes]]).all()
    assert not SUMS.certified(problem, short, [[yes]]).any()
    assert not SUMS.certified(problem, np.pad(proof, ((0, 0), (0, 1)), constant_values=zero + 3), [[yes]]).any()
    assert not SUMS.certified(problem, proof, [[-1]]).any()


def test_a_certificate_of_multihop_is_the_walk():
    """Every chain of up to two nodes and every answer: only the walk of as many hops as asked is a proof."""
    first = WALKS.vocabulary.index("n0")
    for row in WALKS.problems(12, seed=1).tolist():
        answer, walk = WALKS.solve_slowly(row)
        proofs = []
        for length in range(4):
            for chain in itertools.product(range(4), repeat=length):
                for said in range(-1, 4):
                    ids = [[first + node for node in chain]]
                    if WALKS.certified([row], np.array(ids).reshape(1, length), [[first + said if said >= 0 else -1]])[
                        0
                    ]:
                        proofs.append([*chain, said])
        assert proofs == [walk]
        assert walk[-1] == answer


def test_the_verifier_reads_chain_and_answer_from_the_trace():
    """Of ragged chains; several rollouts of an example are consecutive."""
    rows = [[0, 2, 0, 1, 1, 2, 2, 3, 3, 0], [1, 3, 0, 1, 1, 2, 2, 3, 3, 0], [3, 1, 0, 1, 1, 2, 2, 3, 3, 0]]
    first = WALKS.vocabulary.index("n0")
    chains = [[first + 1], [first + 2, first + 2], []]
    examples, trace = told(WALKS, rows, chains, [first + 2, first + 0, first + 0])
    assert certificate(examples, trace).tolist() == [1, 0, 1]
    assert truth(examples, trace).tolist() == [1, 1, 1]
    assert constant(examples, trace).tolist() == [0, 0, 0]
    one = examples.rows(slice(0, 1))
    repeated = told(WALKS, rows[:1] * 3, [[first + 1]] * 3, [first + 2, first + 2, first + 1])[1]
    assert certificate(one, repeated).tolist() == [1, 1, 0]


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_checked_says_so():
    examples, trace = told(MNNS(3, 1, 4), [[1, 2, 3]], [[5, 6]], [7])
    with pytest.raises(
        ValueError, match=r"mnns has no certificates: .* use the verifier truth or confidence, or a task"
    ):
        certificate(examples, trace)
    branching = MultiHop(nodes=4, branching=2)
    row = branching.problems(1, seed=0)
    with pytest.raises(ValueError, match=r"with branching 2 a walk proves no answer"):
        branching.certified(row, [[5, 5]], [[5]])
    bare = Examples(
        *(
            getattr(examples, name)
            for name in ("prompt_BN", "prompt_mask_BN", "num_steps", "chain_BT", "frontier", "answer_tokens")
        )
    )
    with pytest.raises(ValueError, match=r"the verifier certificate needs a task: make examples by Symbols"):
        certificate(bare, trace)
    plan = (Segment(HIDDEN, 2), Segment(GREEDY, 1, name=ANSWER))
    latent = rollout(trace.backbone, plan, trace.prompt_BN)
    for verify in (certificate, confidence):
        with pytest.raises(ValueError, match=r"steps of Hidden have no tokens to judge"):
            verify(examples, latent)


# ---------------------------------------------------------------------------------------------------------------------
# The model's own judgement, and verifiers that err


def test_confidence_is_the_mean_probability_of_what_was_written():
    """Over the steps that a row took, chosen or given."""
    first = WALKS.vocabulary.index("n0")
    rows = WALKS.problems(30, seed=2)
    rows = np.concatenate([rows[rows[:, 1] == hops][:2] for hops in (1, 2, 3)])
    examples, trace = told(WALKS, rows, [[], [], [9], [first], [first, 3], [7, first]], [first] * 6)
    found = confidence(examples, trace)
    for row, steps in enumerate((1, 1, 2, 2, 3, 3)):
        ids = [*written(trace)[row].tolist(), first]
        p = [
            trace.logits_BTV[row, t].softmax(0)[token].item()
            for t, token in zip(
                [*range(steps - 1), trace.steps - 1], [token for token in ids if token >= 0], strict=True
            )
        ]
        assert found[row].item() == pytest.approx(sum(p) / steps, abs=1e-12)
    level = float(found.sort().values[3])
    assert verifier_named(f"confidence {level!r}")(examples, trace).sum() == 3
    assert torch.equal(verifier_named("confidence")(examples, trace), found)


def judged(name, rows=4000, seed=5, answers=None):
    """What a verifier says to right and wrong answers of many different questions."""
    task = SubsetSum(numbers=4)
    speaker = Symbols(task, task.problems(rows, seed=seed))
    examples = speaker.examples()
    model = model_of(DiscreteCoT(), task).float()
    plan = (Segment(GREEDY, 1, GREEDY.given(examples.answer_BA if answers is None else answers), ANSWER),)
    trace = rollout(model.backbone, plan, examples.prompt_BN)
    return examples, trace, verifier_named(name)


def test_a_verifier_errs_at_its_rate_and_always_on_the_same():
    examples, trace, verify = judged("truth flipped 0.2")
    verdict_B = verify(examples, trace)
    assert binomtest(int((1 - verdict_B).sum()), len(verdict_B), 0.2).pvalue > 1e-6
    assert torch.equal(verify(examples, trace), verdict_B)
    some = torch.tensor([7, 3, 3000])
    part = rollout(trace.backbone, trace.plan(), trace.prompt_BN)
    assert torch.equal(verify(examples, part), verdict_B)
    short = judged("truth flipped 0.2")
    few = short[0].rows(some)
    plan = (Segment(GREEDY, 1, GREEDY.given(few.answer_BA), ANSWER),)
    assert torch.equal(verify(few, rollout(trace.backbone, plan, few.prompt_BN)), verdict_B[some])
    other = noisy(truth, 0.2, seed=1)(examples, trace)
    assert 0.25 < (other != verdict_B).float().mean() < 0.4


def test_the_same_question_with_another_answer_errs_by_itself():
    examples, trace, verify = judged("truth flipped 0.3")
    yes_no = len(SubsetSum(numbers=4).vocabulary) - torch.tensor([2, 1])
    _, swapped, _ = judged("truth", answers=yes_no.flip(0)[(examples.answer_BA == yes_no[1]).long()])
    assert not truth(examples, swapped).any()
    flips = torch.stack([verify(examples, trace) == 0, verify(examples, swapped) == 1]).float()
    assert abs(float(torch.corrcoef(flips)[0, 1])) < 5 / math.sqrt(len(examples))


def test_padding_does_not_change_what_is_flipped():
    first = WALKS.vocabulary.index("n0")
    row = WALKS.problems(60, seed=4)
    row = row[row[:, 1] == 1][:20]
    three = MultiHop(hops=1, nodes=4, bound=True)
    verify = noisy(constant, 0.5)
    padded, bare = (told(task, row, [[]] * 20, [first] * 20) for task in (WALKS, three))
    assert padded[0].prompt_BN.shape[1] > bare[0].prompt_BN.shape[1]
    assert torch.equal(verify(*padded), verify(*bare))
    assert 2 < verify(*padded).sum() < 18


def test_a_verifier_may_err_afresh_at_every_call():
    """A question's errors depend on how often it was asked, not on the batch it is asked in."""
    examples, trace, verify = judged("truth flipped 0.2 afresh", rows=500)
    first, second = verify(examples, trace), verify(examples, trace)
    assert 0.2 < (first != second).float().mean() < 0.45
    again = verifier_named("truth flipped 0.2 afresh")
    assert torch.equal(again(examples, trace), first)
    few = examples.rows(slice(4, 9))
    plan = (Segment(GREEDY, 1, GREEDY.given(few.answer_BA), ANSWER),)
    assert torch.equal(again(few, rollout(trace.backbone, plan, few.prompt_BN)), second[4:9])


def test_verifiers_by_name():
    assert verifier_named("") is None
    assert verifier_named("truth") is truth
    for name, said in (
        ("oracle", r"unknown verifier 'oracle': expected one of truth, certificate, confidence, constant, a level of"),
        ("truth 0.2", r"unknown verifier 'truth 0\.2'"),
        ("truth flipped much", r"verifier 'truth flipped much': 'much' is no share: expected a number from 0 to 1"),
        ("truth flipped 1.2", r"verifier 'truth flipped 1\.2': '1\.2' is no share: expected a number from 0 to 1"),
        ("confidence high", r"verifier 'confidence high': 'high' is no share: expected a number from 0 to 1, such as"),
        ("confidence nan", r"'nan' is no share"),
        (
            "confidence flipped 0.2",
            r"only yes or no can be flipped; give a level, as in 'confidence 0\.9 flipped 0\.2'",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            verifier_named(name)


def test_a_mixture_can_be_judged_by_the_truth_alone():
    task = SubsetSum(numbers=4)
    examples = examples_of(CoT2(), task, task.problems(3, seed=0))
    trace = CoT2().solve(model_of(CoT2(), task), examples, Streams(0, 3)).trace
    assert truth(examples, trace).shape == (3,)
