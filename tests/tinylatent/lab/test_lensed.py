"""What lenses see of a run and of a model of transformers: which slots, which words, and numbers as by hand."""

import csv
import io

import numpy as np
import pytest
import torch
from tinylatent_tasks import Composition

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.lens_figures import FIGURES, draw_lenses
from tinylatent.lab.lensed import Settings, on_future, scores_of, splits_of, tables
from tinylatent.lab.prompts import Passage, drawn, of_examples, of_model, of_run, read_passages
from tinylatent.lenses.depth import depth_score, skip
from tinylatent.lenses.logit_lens import logit_lens
from tinylatent.methods import METHODS
from tinylatent.models.decoder import ModelConfig
from tinylatent.models.huggingface_small import save_small_model
from tinylatent.models.pretrained import Pretrained
from tinylatent.objectives.text import Line, Lines, Wording
from tinylatent.training.config import Training


def experiment(name):
    task = Composition(hops=3, items=4, functions=3)
    model = ModelConfig(8, 2, 2)
    return Experiment(task, METHODS[name](), model, Training(steps=1, num_train=200), Seeds.all(0))


def asked(name, count=6):
    whole = experiment(name)
    return whole, of_run(whole, whole.fresh(), count)


@pytest.mark.parametrize("name", ["direct", "discrete", "coconut", "cot2", "pause"])
def test_the_right_answer_is_what_counted_slots_should_predict(name):
    """Exactly one slot a row, the last one that is read; its logits are those the answer is chosen from."""
    whole, prompts = asked(name)
    rows = drawn(whole.rows("validation"), 6)
    assert prompts.counted_BS.sum(1).tolist() == [1] * 6
    row_B, slot_B = prompts.counted_BS.nonzero(as_tuple=True)
    wanted = whole.task.answer_ids(whole.task.answer(rows))[:, 0]
    assert prompts.ids_BS[row_B, slot_B].tolist() == wanted.tolist()
    examples = whole.asks(rows).examples()
    solved = whole.method.solve(whole.fresh(), examples, whole.streams(torch.arange(6)))
    chosen = prompts.record.logits(prompts.record.stream[-1][row_B, slot_B]).argmax(-1)
    assert chosen.tolist() == solved.answer_BA[:, 0].tolist()


def test_words_are_tokens_and_numbered_latents():
    whole, prompts = asked("cot2")
    row = drawn(whole.rows("validation"), 6)[0]
    steps = int(whole.task.steps(row[None])[0])
    words = [word for word, live in zip(prompts.words[0], prompts.record.mask_BS[0], strict=True) if live]
    told = whole.task.describe(row).splitlines()[0].split()[1:]
    assert words == ["<bos>", *told, "=", *(f"({step + 1})" for step in range(steps - 1))]
    assert {len(each) for each in prompts.words} == {prompts.record.mask_BS.shape[1]}


def test_problems_are_drawn_not_taken_from_the_head():
    whole = experiment("direct")
    rows = whole.rows("validation")
    found = drawn(rows, 8)
    assert {tuple(row) for row in found.tolist()} <= {tuple(row) for row in rows.tolist()}
    assert len(set(found[:, 0].tolist())) > 1
    assert np.array_equal(found, drawn(rows, 8))
    assert not np.array_equal(found, drawn(rows, 8, seed=1))


def test_splits_are_possible_and_the_same_every_time():
    _, prompts = asked("direct", 20)
    length_B = prompts.record.mask_BS.sum(1)
    splits_BN = splits_of(prompts.record, 9, seed=1)
    assert splits_BN.shape == (20, int(length_B.min()) - 2)
    assert (splits_BN >= 2).all()
    assert (splits_BN < length_B[:, None]).all()
    assert all(len(set(row)) == len(row) for row in splits_BN.tolist())
    assert torch.equal(splits_BN, splits_of(prompts.record, 9, seed=1))
    assert not torch.equal(splits_of(prompts.record, 1, seed=1), splits_of(prompts.record, 1, seed=2))


def read(table):
    return list(csv.DictReader(io.StringIO(table.csv())))


def test_tables_hold_what_the_lenses_measure():
    _, prompts = asked("cot2", 8)
    record, heard = prompts.record, []
    found = tables(prompts, Settings(splits=2, shown=1, most=9), heard.append)
    assert [*found] == heard == ["sizes", "lens", "skip", "outliers", "erasure", "attribution"]
    free_BS = record.mask_BS & (record.rank_BS() >= 1)
    norm = record.stream.norm(dim=-1)
    by_hand = np.mean([norm[1, row][free_BS[row]].mean().item() for row in range(8)])
    (row,) = (each for each in read(found["sizes"]) if (each["measure"], each["layer"]) == ("residual", "1"))
    assert float(row["mean"]) == pytest.approx(by_hand, abs=1e-3)
    assert float(row["low"]) < float(row["mean"]) < float(row["high"])
    lens = logit_lens(record).to_final[1][prompts.counted_BS].mean().item()
    (row,) = (
        each
        for each in read(found["lens"])
        if (each["tokens"], each["measure"], each["layer"]) == ("answer", "to_final", "1")
    )
    assert float(row["mean"]) == pytest.approx(lens, abs=1e-3)
    effects = skip(record, splits_BN=splits_of(record, 2, 0))
    mean_LB = torch.stack(
        [
            torch.stack([x[effects.row_R == b][effects.counted_RS[effects.row_R == b]].mean() for b in range(8)])
            for x in effects.output
        ]
    )
    (row,) = (
        each
        for each in read(found["skip"])
        if (each["effect on"], each["skipped"], each["on"]) == ("future", "0", "output")
    )
    assert float(row["mean"]) == pytest.approx(mean_LB[0].mean().item(), abs=1e-3)
    assert float(row["max"]) == pytest.approx(effects.output[0].max().item(), abs=1e-3)
    score_B = depth_score(mean_LB.T)
    assert any(f"(output, mean): {score_B.mean().item():.2f} [" in remark for remark in found["skip"].remarks)
    kept = scores_of(on_future(record, Settings(splits=2)))["output, mean"]
    torch.testing.assert_close(torch.tensor(kept), score_B, rtol=1e-3, atol=1e-4)
    assert {each["token"] for each in read(found["erasure"])} <= {word for each in prompts.words for word in each}


def test_every_table_is_drawn(tmp_path):
    _, prompts = asked("cot2", 5)
    found = tables(prompts, Settings(splits=1, shown=1, most=9))
    assert [*found] == [*FIGURES]
    drawn = draw_lenses(found, tmp_path)
    assert [path.name for path in drawn] == [f"{name}.png" for name in found]
    assert all(path.stat().st_size > 5000 for path in drawn)


# ---------------------------------------------------------------------------------------------------------------------
# Models of transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_small_model(folder)
    return folder


def test_texts_are_read_with_their_answers_behind_them(folder):
    passages = [Passage("one and one =", "two"), Passage("a longer one and one is ", "zw\u00f6lf")]
    prompts = of_model(folder, passages)
    for row, text in enumerate(("one and one = two", "a longer one and one is zw\u00f6lf")):
        live = prompts.record.mask_BS[row]
        ids = [id for id, known in zip(prompts.ids_BS.roll(1, 1)[row].tolist(), live.tolist(), strict=True) if known]
        assert Pretrained(str(folder)).tokenizer().decode(ids) == text
        counted = prompts.counted_BS[row]
        assert Pretrained(str(folder)).tokenizer().decode(prompts.ids_BS[row][counted]) == (" two", " zw\u00f6lf")[row]
    alone = of_model(folder, passages[:1])
    live = prompts.record.mask_BS[0]
    torch.testing.assert_close(prompts.record.stream[:, 0][:, live], alone.record.stream[:, 0], rtol=1e-3, atol=1e-4)


def test_questions_with_their_answers_are_read_as_one_text(folder):
    """Padding before questions, and behind shorter answers; what counts says the answer, its stop token last."""
    settings = Pretrained(str(folder)).found()
    wording = Wording(settings.tokenizer())
    backbone = settings.backbone(len(wording), [], torch.Generator())
    lines = [Line("what is it?", (), "me"), Line("and what is that?", (), "you or them")]
    examples = Lines(lines, wording).examples()
    prompts = of_examples(backbone, examples, wording.name)
    for row, line in enumerate(lines):
        live = prompts.record.mask_BS[row].tolist()
        text = "".join(word for word, known in zip(prompts.words[row], live, strict=True) if known)
        assert line.question in text
        assert text.endswith(line.answer)
        said = prompts.ids_BS[row][prompts.counted_BS[row]]
        assert said[-1] == wording.stop_id
        assert wording.tokenizer.decode(said[:-1]) == line.answer
    alone = of_examples(backbone, examples.rows(slice(0, 1)), wording.name)
    shown = alone.counted_BS[0].nonzero()[:, 0]
    torch.testing.assert_close(
        prompts.record.stream[-1, 0][prompts.counted_BS[0]], alone.record.stream[-1, 0, shown], rtol=1e-3, atol=1e-4
    )


def test_without_answers_two_lenses_are_left_out(folder):
    prompts = of_model(folder, [Passage("one and one"), Passage("two and two")])
    assert prompts.counted_BS is None
    found = tables(prompts, Settings(splits=1))
    assert [*found] == ["sizes", "lens", "skip", "outliers"]
    assert {row["tokens"] for row in found["lens"].rows} == {"all"}


def test_files_of_prompts(tmp_path):
    path = tmp_path / "prompts"
    path.write_text('{"question": "1 + 1 =", "answer": "2"}\n\n{"question": "2 + 2 =", "answer": "4"}\n')
    assert read_passages(path) == [Passage("1 + 1 =", "2"), Passage("2 + 2 =", "4")]
    path.write_bytes(b"\xef\xbb\xbfone\xe2\x80\xa8text\r\nand another\n")
    assert read_passages(path) == [Passage("one\u2028text"), Passage("and another")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompts: write one on every line"),
        ('{"question": 3}', "line 1 lacks a question: expected such as"),
        ('plain\n{"question": "a"', "line 2 is no JSON"),
        ('{"question": "a", "answer": "b"}\nplain', "has answers to some prompts and none to others"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "prompts"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_passages(path)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be read .*: expected a text file with a prompt on every line"):
        read_passages(tmp_path / "none")


def test_a_prompt_that_is_too_short_is_told(folder):
    with pytest.raises(ValueError, match="prompt 2, 'a', is 1 token: expected 2 or more"):
        of_model(folder, [Passage("long enough"), Passage("a")])
    with pytest.raises(ValueError, match="a prompt of 3 tokens cannot be split: expected 4 or more"):
        tables(of_model(folder, [Passage("abc")]), Settings())


def test_settings_out_of_range_are_told():
    for name, value in (("splits", 0), ("shown", -1), ("most", 3)):
        with pytest.raises(ValueError, match=f"{name} is {value}: expected"):
            Settings(**{name: value})
