"""Scores of all titles and beams are those of a plain rollout for every title and of a search written in loops.

Weights are random and so large that every token matters; numbers are float64.
"""

import numpy as np
import pytest
import torch
from losses import model_of
from tinylatent_tasks import Recommendation

from tinylatent.core.seeds import Streams
from tinylatent.engine.controls import controlled
from tinylatent.engine.plan import ANSWER, Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY
from tinylatent.evaluation import retrieval
from tinylatent.evaluation.evaluate import evaluate
from tinylatent.evaluation.retrieval import PAST, Trie, beam_search, scores_and_beams, thought_out, title_log_prob
from tinylatent.methods import GRPO, METHODS, CoT2, Direct, DiscreteCoT, PauseTokens
from tinylatent.objectives.method import Method
from tinylatent.objectives.speakers import Symbols

TASK = Recommendation(4, 3, 2, events=4)
ROWS = TASK.problems(11, seed=3)
SPEAKER = Symbols(TASK, ROWS)
EXAMPLES = SPEAKER.examples()
EVERY = [*(kind() for kind in METHODS.values()), DiscreteCoT(ends=True)]
ODD = np.array([[3, 8, 10], [3, 8, 11], [4, 8, 10], [3, 9, 12], [5, 5, 5], [3, 8, 12], [4, 7, 10]])
"""Titles that are no product of parts, in no order."""
RAGGED = np.array([[3, 8, 10], [3, 8, PAST], [4, PAST, PAST], [3, 9, 12], [5, 5, PAST], [3, 8, 12]])
"""Titles of one to three tokens, some of which begin others."""


def streams(rows=11):
    return Streams(7, torch.arange(rows))


def one_by_one(method, model, titles_IA, control=None, examples=EXAMPLES):
    """The log-probability of every title, each in a rollout of its own with its tokens given."""
    found = []
    for title in titles_IA.tolist():
        given = GREEDY.given(torch.tensor([title] * len(examples)))
        plan = (*method.plan(model, examples)[:-1], Segment(GREEDY, len(title), given, ANSWER))
        trace = rollout(
            model.backbone,
            plan if control is None else controlled(plan, control),
            examples.prompt_BN,
            examples.prompt_mask_BN,
            streams=streams(len(examples)),
            offset_B=examples.offset_B,
        )
        found.append(trace.log_prob_BT[:, trace.within(trace.span(ANSWER))].sum(1))
    return torch.stack(found, 1)


def scores(method, model, titles_IA, control=None, examples=EXAMPLES):
    front = thought_out(method, model, examples, streams(len(examples)), control)
    return title_log_prob(front, Trie.of(titles_IA))


def beams_in_loops(score, titles_IA, width):
    """What a beam keeps, from the log-probability of every prefix of one problem; ids of titles, best first."""
    kept = [()]
    for length in range(1, titles_IA.shape[1] + 1):
        known = {tuple(title[:length]) for title in titles_IA.tolist()}
        longer = [prefix for prefix in known if prefix[:-1] in kept]
        kept = sorted(longer, key=lambda prefix: -score[prefix])[:width]
    return [titles_IA.tolist().index(list(title)) for title in kept]


@pytest.mark.parametrize(
    ("method", "titles_IA"),
    [*((method, ODD) for method in EVERY), (Direct(), TASK.catalogue), (CoT2(), TASK.catalogue)],
    ids=lambda part: part.name if isinstance(part, Method) else str(len(part)),
)
def test_scores_are_those_of_a_rollout_for_every_title(method, titles_IA):
    model = model_of(method, TASK)
    found_BI = scores(method, model, titles_IA)
    torch.testing.assert_close(found_BI, one_by_one(method, model, titles_IA), rtol=1e-9, atol=1e-9)
    assert (found_BI.exp().sum(1) < 1).all()
    assert found_BI.std(0).min() > 0.01, "prompts matter"


@pytest.mark.parametrize("method", [Direct(), CoT2(), GRPO()], ids=lambda method: method.name)
def test_shorter_titles_are_scored_by_their_own_tokens_and_found_by_a_beam(method):
    model = model_of(method, TASK)
    whole = [one_by_one(method, model, title[title != PAST][None]) for title in RAGGED]
    found_BI = scores(method, model, RAGGED)
    torch.testing.assert_close(found_BI, torch.cat(whole, 1), rtol=1e-9, atol=1e-9)
    item_BW, score_BW = beam_search(thought_out(method, model, EXAMPLES, streams()), Trie.of(RAGGED), len(RAGGED))
    torch.testing.assert_close(score_BW, found_BI.sort(1, descending=True)[0])
    assert torch.equal(item_BW, found_BI.argsort(1, descending=True))


@pytest.mark.parametrize("control", ["zero", "noise", "shuffled"])
def test_scores_under_a_control_are_those_of_its_plan(control):
    method = CoT2()
    model = model_of(method, TASK)
    found_BI = scores(method, model, ODD, control)
    torch.testing.assert_close(found_BI, one_by_one(method, model, ODD, control), rtol=1e-9, atol=1e-9)
    assert (found_BI - scores(method, model, ODD)).abs().max() > 1e-3


def test_scores_of_rows_that_begin_elsewhere_and_of_item_tokens():
    examples = EXAMPLES.with_offsets(torch.arange(len(EXAMPLES)) % 2)
    model = model_of(PauseTokens(), Recommendation(4, 3, 2, events=6))
    moved_BI = scores(PauseTokens(), model, ODD, examples=examples)
    torch.testing.assert_close(moved_BI, one_by_one(PauseTokens(), model, ODD, examples=examples))
    assert not torch.allclose(moved_BI[1::2], scores(PauseTokens(), model, ODD)[1::2])
    task = Recommendation(4, 3, 2, events=4, item_tokens=True)
    examples, model = Symbols(task, ROWS).examples(), model_of(Direct(), task)
    found_BI = scores(Direct(), model, task.catalogue, examples=examples)
    torch.testing.assert_close(found_BI, one_by_one(Direct(), model, task.catalogue, examples=examples))


@pytest.mark.parametrize("size", [1, 40_000])
def test_memory_is_bounded_and_changes_nothing(size, monkeypatch):
    method = CoT2()
    model = model_of(method, TASK)
    whole_BI, whole_BW = scores(method, model, ODD), beam_search(thought_out(method, model, EXAMPLES), Trie.of(ODD), 3)
    most, forward = 0, type(model.backbone).forward

    def counted(self, inputs_BTD, *others, **named):
        nonlocal most
        most = max(most, len(inputs_BTD))
        return forward(self, inputs_BTD, *others, **named)

    monkeypatch.setattr(retrieval, "CHUNK_BYTES", size)
    front, trie = thought_out(method, model, EXAMPLES), Trie.of(ODD)
    monkeypatch.setattr(type(model.backbone), "forward", counted)
    torch.testing.assert_close(title_log_prob(front, trie), whole_BI, rtol=1e-12, atol=1e-12)
    assert most <= max(trie.widest, size // 1000)
    assert torch.equal(beam_search(front, trie, 3)[0], whole_BW[0])


@pytest.mark.parametrize("method", [Direct(), CoT2(), DiscreteCoT(ends=True)], ids=repr)
def test_a_full_beam_is_the_exhaustive_scoring(method):
    model, trie = model_of(method, TASK), Trie.of(TASK.catalogue)
    front = thought_out(method, model, EXAMPLES, streams())
    item_BW, score_BW = beam_search(front, trie, 1000)
    all_BI = title_log_prob(front, trie)
    assert item_BW.shape == (len(ROWS), TASK.items)
    assert torch.equal(item_BW, all_BI.argsort(1, descending=True))
    torch.testing.assert_close(score_BW, all_BI.sort(1, descending=True).values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("titles_IA", [TASK.catalogue, ODD], ids=["catalogue", "odd"])
@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_a_beam_keeps_the_best_prefixes_of_titles(width, titles_IA):
    """Against loops; it lists titles alone, and none better than the best of all."""
    method = CoT2()
    model = model_of(method, TASK)
    front, trie = thought_out(method, model, EXAMPLES), Trie.of(titles_IA)
    item_BW, score_BW = beam_search(front, trie, width)
    parts = {}
    for length in range(1, 4):
        cut_LA = np.unique(titles_IA[:, :length], axis=0)
        parts[length] = cut_LA, one_by_one(method, model, cut_LA).tolist()
    all_BI = title_log_prob(front, trie)
    for row in range(len(ROWS)):
        score = {
            tuple(prefix): values[row][place]
            for cut_LA, values in parts.values()
            for place, prefix in enumerate(cut_LA.tolist())
        }
        assert item_BW[row].tolist() == beams_in_loops(score, titles_IA, width)
    torch.testing.assert_close(all_BI.gather(1, item_BW), score_BW)
    assert (all_BI.sort(1, descending=True).values[:, : item_BW.shape[1]] >= score_BW - 1e-12).all()


def test_a_narrow_beam_misses_what_exhaustive_scoring_finds():
    """Else the tests above would say nothing about search."""
    model, trie = model_of(Direct(), TASK), Trie.of(TASK.catalogue)
    front = thought_out(Direct(), model, EXAMPLES)
    best_B = title_log_prob(front, trie).argmax(1)
    found = [(beam_search(front, trie, width)[0][:, 0] == best_B).sum().item() for width in (1, 24)]
    assert found[0] < found[1] == len(ROWS)


@pytest.mark.parametrize("method", [Direct(), GRPO()], ids=repr)
def test_problems_keep_their_order_in_batches_and_think_as_in_evaluate(method):
    """A beam of one over tokens that are all titles says what the greedy answer says, sampled thoughts included."""
    model = model_of(method, TASK)
    V = len(TASK.vocabulary)
    grid = np.stack(np.meshgrid(*[np.arange(V)] * 2, indexing="ij"), -1).reshape(-1, 2)
    for batch in (1000, 4):
        answer_PA = evaluate(SPEAKER, method, model, seed=5, batch=batch).answer_PA
        _, beam_PW = scores_and_beams(SPEAKER, method, model, grid, width=1, seed=5, batch=batch)
        assert np.array_equal(grid[beam_PW[:, 0]], answer_PA[:, :2])
    whole, parts = (scores_and_beams(SPEAKER, method, model, ODD, seed=5, batch=size) for size in (1000, 3))
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-9)
    assert whole[1] is None
    np.testing.assert_allclose(
        scores_and_beams(SPEAKER.part(np.array([4])), Direct(), model, ODD)[0][0],
        scores_and_beams(SPEAKER, Direct(), model, ODD)[0][4],
        rtol=1e-9,
    )


@pytest.mark.parametrize(
    ("titles", "said"),
    [
        (np.zeros((0, 3), int), "expected token ids"),
        (np.zeros((3, 0), int), "expected token ids"),
        (np.zeros(3, int), "expected token ids"),
        (np.zeros((3, 2)), "expected token ids"),
        (np.array([[1, 2], [1, 3], [1, 2]]), "titles 0 and 2 are the same"),
    ],
)
def test_what_is_no_catalogue_is_refused(titles, said):
    with pytest.raises(ValueError, match=said):
        Trie.of(titles)


def test_a_beam_of_no_width_and_a_plan_without_answer_are_refused():
    model = model_of(Direct(), TASK)
    front = thought_out(Direct(), model, EXAMPLES)
    with pytest.raises(ValueError, match="a beam of width 0: expected at least 1"):
        beam_search(front, Trie.of(ODD), 0)

    class Silent(Direct):
        def plan(self, model, examples, temperature=0.0):
            return (Segment(GREEDY, 1),)

    with pytest.raises(ValueError, match="does not end in an answer"):
        thought_out(Silent(), model, EXAMPLES)
    with pytest.raises(ValueError, match="no problems"):
        scores_and_beams(SPEAKER.part(np.array([], int)), Direct(), model, ODD)
