"""Files of questions, steps and answers: every form is read, every stored answer is right, and a bad line is named."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
from tinylatent_tasks.published import FORMS, Line, amount, is_right, read_lines

SMALL = Path(__file__).parents[1] / "data"
SHARED = Path(__file__).parents[2].parent / "shared/data"
PUBLISHED = {
    "gsm8k_train_500.jsonl": 500, "gsm8k_equations_valid.txt": 500, "mult_4x4_valid_500.txt": 500,
    "prosqa_valid.json": 300,
}  # fmt: skip
OURS = {
    "lines": json.dumps({"question": " 2 plus 3? ", "steps": ["2 + 3", "is 5"], "answer": 5}),
    "GSM8K": json.dumps({"question": "Two and three?", "answer": "It is 2+3 = <<2+3=5>>5.\n\nFive.\n#### 5"}),
    "equations": "Two and three, twice?||<<2+3=5>> <<5*2=10>> #### 10",
    "multiplication": "2 1 * 0 2||0 4 2 + 0 0 #### 0 4 2",
}
READ = {
    "lines": Line("2 plus 3?", ("2 + 3", "is 5"), "5"),
    "GSM8K": Line("Two and three?", ("It is 2+3 = 5.", "Five."), "5"),
    "equations": Line("Two and three, twice?", ("<<2+3=5>>", "<<5*2=10>>"), "10"),
    "multiplication": Line("2 1 * 0 2", ("0 4 2", "0 0"), "0 4 2"),
}


def written(tmp_path, text):
    path = tmp_path / "some.txt"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(tmp_path, form):
    assert read_lines(written(tmp_path, f"\ufeff{OURS[form]}\n\n{OURS[form]}\n")) == [READ[form]] * 2


def test_prosqa_is_read():
    first, *_ = read_lines(SMALL / "prosqa_small.json")
    assert first.steps == ("Ada is a glimmet.", "Every glimmet is a vontle.")
    assert first.answer == "Ada is a vontle."


def test_a_list_of_what_a_line_holds_is_read(tmp_path):
    """The form in which the authors of Coconut keep what has no graph."""
    assert read_lines(written(tmp_path, f"[{OURS['lines']},\n{OURS['lines']}]")) == [READ["lines"]] * 2


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_published_files_are_read_whole_and_every_stored_answer_is_right(name, count):
    """And no other line's answer is, unless it is the same number or the same words."""
    if not (SHARED / name).exists():
        pytest.skip("the published file is not here")
    lines = read_lines(SHARED / name)
    assert len(lines) == count
    for line, other in zip(lines, lines[1:] + lines[:1], strict=True):
        assert line.question
        assert line.answer
        assert all(line.steps)
        assert is_right(line.answer, line.answer)
        assert is_right(f"The answer is **{line.answer}**.", line.answer) or len(line.answer) > 150
        same = amount(line.answer) == amount(other.answer) if amount(line.answer) is not None else False
        assert is_right(other.answer, line.answer) == (same or other.answer.lower() == line.answer.lower())
    if name.startswith("gsm8k_train"):
        assert sum(len(line.steps) for line in lines) > 3 * count
        assert not any("<<" in step for line in lines for step in line.steps)
    if name.startswith("mult"):
        assert {len(line.steps) for line in lines} == {4}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no lines: expected at least one question"),
        ("[]", "holds no lines: expected at least one question"),
        (f"[{OURS['lines']}, 3]", "item 1: 3 has no steps: expected an object with question, steps and answer"),
        ("[" + OURS["lines"], r"not JSON \(.*; expected a list of questions"),
        ("what?", 'line 1: .*neither a JSON object nor "question\\|\\|steps #### answer"'),
        ("what?||5", "line 1: .*neither a JSON object"),
        (OURS["lines"] + "\n{", r"line 2: not JSON \("),
        (OURS["lines"] + "\n" + OURS["GSM8K"], "line 2: of the form GSM8K, but the lines before are lines"),
        ('{"question": "a", "steps": [1], "answer": "b"}', r"line 1: steps is \[1\], but a list of strings"),
        ('{"question": "a", "steps": "b", "answer": "b"}', "line 1: steps is 'b', but a list of strings"),
        ('{"question": "", "steps": [], "answer": "b"}', "line 1: question is '', but a string"),
        ('{"question": "a", "steps": [], "answer": true}', "line 1: answer is True, but a string"),
        ('{"question": "a", "answer": "5"}', 'line 1: answer ends in .5., but "#### result" was expected'),
        ('{"question": "a", "answer": "5 ####"}', 'but "#### result" was expected'),
        ("a||<<1+2=3>> so #### 3", "line 1: 'so' stands between equations"),
        ("||<<1+2=3>> #### 3", "lacks its question or answer"),
        ("2 1 * 0 2||0 4 2 #### 1 4 2", "line 1: '1 4 2' is not the product of '2 1 \\* 0 2', digits in reverse"),
        ("21 * 2||4 2 #### 4 2", "line 1: '21 ' is no number in single digits"),
        ("2 * 2 * 1||4 #### 4", "is not the product"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_lines(written(tmp_path, text))


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "some.txt"
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"some\.txt: not UTF-8 text \(byte 0\)"):
        read_lines(path)


@pytest.mark.parametrize(
    "said", ["5000", "5,000", "$5,000", "5000.0", "**5,000**", "The answer is 5000.", 5000, 5000.0]
)
def test_numbers_are_compared_as_numbers(said):
    assert is_right(said, "5,000")
    assert is_right(said, "5000")


@pytest.mark.parametrize(
    "said", ["500", "5,00", "5 000", "50,00", "5000 or 6000", "not 5000", "five thousand", "", None, ["5000"], "5000.5"]
)
def test_other_answers_are_wrong(said):
    assert not is_right(said, "5,000")


def test_words_are_compared_as_words():
    assert is_right("  tom is A  lempus", "Tom is a lempus.")
    assert is_right('"Tom is a lempus."', "Tom is a lempus.")
    assert not is_right("Tom is a lempus or a rempus.", "Tom is a lempus.")
    assert is_right("word " * 80, "word " * 80), "however long"
    assert amount("-3.50") == Decimal("-3.5")
    assert amount("1.2.3") is None
