"""Speakers in words: what they pose, what they teach, and what they take for an answer."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tinylatent_tasks import MNNS, Arithmetic, MultiHop, Reachability, Recommendation, SubsetSum
from tinylatent_tasks.batch import SPECIAL_TOKENS
from tinylatent_tasks.published import Line, read_lines

from tinylatent.models.huggingface_small import byte_tokenizer
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.speakers import Symbols
from tinylatent.objectives.text import NAMES, Lines, Text, Wording

TASKS = {
    "mnns": MNNS(digits=3, high=10),
    "subset-sum": SubsetSum(numbers=3, high=12),
    "multihop": MultiHop(hops=3, least=2, branching=2),
    "reachability": Reachability(),
    "arithmetic": Arithmetic(operations=3, least=2),
    "recommendation": Recommendation(),
}
WORDING = Wording(byte_tokenizer())
EOS = WORDING.stop_id


def words_for(task):
    """A single token for every symbol."""
    single = (text([id_]) for id_ in range(len(WORDING)))
    return tuple(word for word in single if word.strip() and word.isascii() and WORDING.ids([word])[0][1:] == [])[
        : len(task.vocabulary)
    ]


def speaker(name, names="own", count=12, wording=WORDING):
    task = TASKS[name]
    return Text(task, task.problems(count, 0), wording, names, words_for(task) if names == "words" else ())


def text(ids):
    return WORDING.tokenizer.decode(ids)


def rows_of(examples):
    """Every example as its prompt, its steps with their targets, and its answer, without padding."""
    for row in range(len(examples)):
        steps = examples.num_steps if isinstance(examples.num_steps, int) else int(examples.num_steps[row])
        mask = examples.prompt_mask_BN
        prompt = examples.prompt_BN[row] if mask is None else examples.prompt_BN[row][mask[row]]
        ids, shares = (x[row, :steps] for x in examples.frontier.sparse())
        answer = examples.answer_BA[row]
        if examples.answer_mask_BA is not None:
            answer = answer[examples.answer_mask_BA[row]]
        yield prompt.tolist(), examples.chain_BT[row, :steps].tolist(), (ids, shares), answer.tolist()


def shares_of(ids_S, shares_S):
    """A target as a mapping from ids."""
    found = Counter()
    for id_, share in zip(ids_S.tolist(), shares_S.tolist(), strict=True):
        found[id_] += share
    return {id_: pytest.approx(share, abs=1e-6) for id_, share in found.items() if share > 0}


# ---------------------------------------------------------------------------------------------------------------------
# Problems of a task


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("name", TASKS)
def test_questions_chains_frontiers_and_answers_are_the_tasks(name, names):
    """Held against the task's own batch, problem by problem and state by state."""
    asked = speaker(name, names)
    task, batch = asked.task, asked.task.batch(asked.problems)
    examples = asked.examples()
    symbols = task.vocabulary.tokens
    spelled = [WORDING.ids([symbol])[0] for symbol in symbols]
    longest = max(map(len, spelled[len(SPECIAL_TOKENS) :]))
    (gap,) = WORDING.ids(["\n"])[0]
    for number, (prompt, steps, (ids, shares), answer) in enumerate(rows_of(examples)):
        row = asked.problems[number].tolist()
        assert text(prompt) == task.question(row) + "\n"
        said = text(answer[:-1])
        assert answer[-1] == EOS
        assert task.judge(row, said)
        chain = batch.chain_BT[number, : batch.steps_B[number] - 1].tolist()
        if names == "own":
            assert steps == [len(WORDING) + symbol for symbol in chain]
        elif names == "words":
            assert [text([id_]) for id_ in steps] == [asked.words[symbol] for symbol in chain]
        else:
            wanted = [spelled[symbol] + [gap] * (longest - len(spelled[symbol])) for symbol in chain]
            assert steps == [id_ for ids in wanted for id_ in ids]
        for place in range(len(steps)):
            step, piece = divmod(place, longest) if names == "spelled" else (place, 0)
            target = Counter()
            for symbol in np.flatnonzero(batch.frontier_BTV[number, step]):
                share = float(batch.frontier_BTV[number, step, symbol])
                if names == "own":
                    target[len(WORDING) + int(symbol)] += share
                elif names == "words":
                    target[WORDING.ids([asked.words[symbol]])[0][0]] += share
                else:
                    target[(spelled[symbol] + [gap] * longest)[piece]] += share
            assert shares_of(ids[place], shares[place]) == dict(target)
    assert examples.judge(examples.answer_BA.masked_fill(examples.answer_BA == EOS, -1)).all()


@pytest.mark.parametrize("names", NAMES)
def test_the_step_of_every_token_is_told(names):
    asked = speaker("multihop", names)
    steps_BT, longest = asked.examples().steps_BT, asked.piece_VL.shape[1]
    assert (longest > 1) == (names == "spelled")
    counts = asked.task.steps(asked.problems) - 1
    answer = asked.examples().answer_tokens
    for row, count in enumerate(counts.tolist()):
        assert steps_BT[row, : count * longest].tolist() == [step for step in range(count) for _ in range(longest)]
        assert steps_BT[row, -answer:].tolist() == [count] * answer


def test_targets_are_small():
    """Of 5,000 problems 50 MB at most whatever the vocabulary, since targets are ids with shares."""
    task = MNNS()
    asked = Text(task, task.problems(5000, 0), WORDING)
    examples = asked.examples()
    assert examples.frontier.dense_BTV is None
    ids, shares = examples.frontier.sparse()
    assert ids.shape[:2] == (5000, examples.chain_BT.shape[1])
    assert ids.nbytes + shares.nbytes < 50e6


def test_names_of_their_own_begin_as_the_mean_of_their_pieces():
    asked = speaker("mnns")
    assert asked.vocabulary == len(WORDING) + len(asked.task.vocabulary)
    assert [text(ids) for ids in asked.added] == list(asked.task.vocabulary.tokens)
    assert speaker("mnns", "spelled").added == []
    assert speaker("mnns", "words").vocabulary == len(WORDING)


def test_an_answer_is_read_as_the_task_reads_it():
    """Groups stand side by side; a name of a state is no part of an answer, and what cannot be read is wrong."""
    asked = speaker("mnns", count=3)
    examples = asked.examples()
    right = [str(asked.task.say(ids)) for ids in asked.task.answer_ids(asked.task.answer(asked.problems))]

    def judged(*texts, extra=()):
        ids = [[*WORDING.ids([each])[0], *extra] for each in texts]
        most = max(map(len, ids))
        return examples.judge(torch.tensor([[*row, *[-1] * (most - len(row))] for row in ids])).tolist()

    assert judged(*right) == [True] * 3
    assert judged(*(f" The answer is **{each}**. " for each in right)) == [True] * 3
    assert judged(*(each for each in right for _ in range(2))) == [True] * 6
    assert judged(right[0], "x", right[1], right[1], "", right[2]) == [True, False, True, True, False, True]
    assert judged(*right, extra=[len(WORDING) + 1]) == [False] * 3
    assert examples.rows(torch.tensor([2])).judge(torch.tensor([WORDING.ids([right[2]])[0]])).tolist() == [True]


@pytest.mark.parametrize("names", ["own", "words"])
@pytest.mark.parametrize("name", ["subset-sum", "arithmetic"])
def test_chains_are_read_back_and_prove_what_they_prove_in_symbols(name, names):
    """Right chains with right answers, and the same with another token, another answer, or none that can be read."""
    asked, symbols = speaker(name, names, count=40), Symbols(TASKS[name], TASKS[name].problems(40, 0))
    ours, theirs = asked.examples(), symbols.examples()
    before = ours.max_steps
    steps_B1 = torch.as_tensor(ours.num_steps).expand(len(ours))[:, None]
    chain_BW = ours.chain_BT[:, :before].masked_fill(torch.arange(before) >= steps_B1, -1)
    same_BW = theirs.chain_BT[:, :before].masked_fill(torch.arange(before) >= steps_B1, -1)
    answer_BA = ours.answer_BA.masked_fill(ours.answer_BA == EOS, -1)
    wanted = symbols.proved(symbols.problems, same_BW, theirs.answer_BA)
    assert wanted.any()
    assert (asked.proved(asked.problems, chain_BW, answer_BA) == wanted).all()
    strange_BW = chain_BW.clone()
    strange_BW[:, 0] = EOS
    assert not asked.proved(asked.problems, strange_BW, answer_BA).any()
    assert not asked.proved(asked.problems, chain_BW, torch.full_like(answer_BA, 40)).any()
    other_BA, told_BA = answer_BA.roll(1, 0), theirs.answer_BA.roll(1, 0)
    found = asked.proved(asked.problems, chain_BW, other_BA)
    assert (found == symbols.proved(symbols.problems, same_BW, told_BA)).all()


def test_spelled_chains_prove_nothing():
    asked = speaker("subset-sum", "spelled", count=2)
    examples = asked.examples()
    with pytest.raises(ValueError, match="a chain of spelled names cannot be read back"):
        asked.proved(asked.problems, examples.chain_BT[:, :2], examples.answer_BA)


def test_names_that_do_not_fit_are_refused(unchecked):
    task = TASKS["mnns"]
    rows = task.problems(2, 0)
    with pytest.raises(ValueError, match="names 'mine': expected one of own, words, spelled"):
        Text(task, rows, WORDING, "mine")
    with pytest.raises(ValueError, match="the word 'abc' is 3 tokens: expected one each"):
        Text(task, rows, WORDING, "words", ("a", "abc"))
    with pytest.raises(ValueError, match=r"2 words name \d+ symbols of mnns, .*: expected as many, all different"):
        Text(task, rows, WORDING, "words", ("a", "b"))
    with pytest.raises(ValueError, match="all different"):
        Text(task, rows, WORDING, "words", ("a",) * len(task.vocabulary))


# ---------------------------------------------------------------------------------------------------------------------
# Prompts


def test_a_chat_template_is_used_where_there_is_one():
    wording = Wording(byte_tokenizer(chat=True))
    asked = speaker("mnns", wording=wording)
    prompt, *_ = next(rows_of(asked.examples()))
    question = asked.task.question(asked.problems[0].tolist())
    assert wording.tokenizer.decode(prompt) == f"<user>{question}<end><reply>"
    plain = Wording(byte_tokenizer(chat=True), chat=False)
    assert plain.tokenizer.decode(plain.asked([question])[0]) == f"{question}\n"
    with pytest.raises(ValueError, match="the tokenizer has no chat template: leave out chat"):
        Wording(byte_tokenizer(), chat=True)


def test_a_text_begins_as_the_tokenizer_begins_it_and_does_not_end():
    wording = Wording(byte_tokenizer(begins=True))
    (ids,) = wording.asked(["why?"])
    assert wording.tokenizer.decode(ids) == "<bos>why?\n"
    assert wording.tokenizer.decode(wording.ids(["why?"])[0]) == "why?"


def test_a_tokenizer_that_cannot_end_is_refused():
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(ValueError, match="the tokenizer has no end-of-sequence token, which ends an answer"):
        Wording(endless)


# ---------------------------------------------------------------------------------------------------------------------
# Lines


LINES = [
    Line("2 plus 3?", ("two and three", "is five"), "5"),
    Line("And 10 times 10, then?", ("1 hundred",), "1,000"),
    Line("No steps", (), "Tom is this."),
]


def test_lines_are_said_as_they_stand():
    examples = Lines(LINES, WORDING).examples()
    for line, (prompt, steps, (ids, shares), answer) in zip(LINES, rows_of(examples), strict=True):
        assert text(prompt) == line.question + "\n"
        assert text(steps) == "".join(f"{step}\n" for step in line.steps)
        assert text(answer[:-1]) == line.answer
        assert answer[-1] == EOS
        assert ids[:, 0].tolist() == steps
        assert (shares == 1).all()
    assert examples.num_steps.tolist()[2] == 0
    first = examples.steps_BT[0].tolist()
    ends = [len(WORDING.ids([step + "\n"])[0]) for step in LINES[0].steps]
    assert first[: sum(ends)] == [0] * ends[0] + [1] * ends[1]
    assert examples.steps_BT[:, -1].tolist() == [2, 1, 0]
    _, shares = examples.frontier.sparse()
    assert shares.sum(1).flatten().tolist() == [sum(ends) + examples.answer_tokens] + [
        len(WORDING.ids([f"{step}\n" for step in line.steps])[0]) + examples.answer_tokens
        if line.steps
        else examples.answer_tokens
        for line in LINES[1:]
    ]


def test_lines_are_judged_as_text():
    asked = Lines(LINES, WORDING)
    examples = asked.examples()
    answer_BA = examples.answer_BA.masked_fill(examples.answer_BA == EOS, -1)
    assert examples.judge(answer_BA).all()
    assert examples.judge(answer_BA.roll(1, 0)).tolist() == [False] * 3
    (thousand,) = WORDING.ids(["1000.0"])
    assert examples.rows(torch.tensor([1])).judge(torch.tensor([thousand, thousand])).tolist() == [True, True]
    part = asked.part(np.array([1, 2]))
    assert part.problems == LINES[1:]
    with pytest.raises(ValueError, match="no problems: expected at least one line"):
        Lines([], WORDING).examples()


def test_published_lines_are_judged_right(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text(json.dumps({"question": "Two and three?", "answer": "It is <<2+3=5>>5.\n#### 5"}), "utf-8")
    small = Path(__file__).parents[2] / "data" / "prosqa_small.json"
    for each in (path, small):
        examples = Lines(read_lines(each), WORDING).examples()
        assert isinstance(examples, Examples)
        assert examples.judge(examples.answer_BA.masked_fill(examples.answer_BA == EOS, -1)).all()


def test_shares_of_pieces_lose_which_belong_together():
    """Two states of two pieces each give four combinations: what the page on text tells of spelled names."""
    task = MNNS(digits=3, high=12)
    asked = Text(task, task.rows([[11, 12, 3]]), WORDING, "spelled")
    ids, shares = asked.examples().frontier.sparse()
    states = {task.vocabulary.tokens[place] for place in np.flatnonzero(task.batch(asked.problems).frontier_BTV[0, 0])}
    L = asked.piece_VL.shape[1]
    possible = [{text([i]) for i in shares_of(ids[0, place], shares[0, place])} for place in range(L)]
    combined = {"".join(pieces).strip() for pieces in itertools.product(*possible)}
    assert states == {"+11", "-11"}
    assert combined == states, "one piece differs here, and the others are alike"
    ids, shares = ids[0, L : 2 * L], shares[0, L : 2 * L]
    second = {task.vocabulary.tokens[place] for place in np.flatnonzero(task.batch(asked.problems).frontier_BTV[0, 1])}
    possible = [{text([i]) for i in shares_of(*pair)} for pair in zip(ids, shares, strict=True)]
    assert second < {"".join(pieces).strip() for pieces in itertools.product(*possible)}
