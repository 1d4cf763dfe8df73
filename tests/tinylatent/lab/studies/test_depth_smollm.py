"""Study `depth-smollm` on a small random model in the place of the real one, and its slope by hand."""

import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from tinylatent.core.files import write_text
from tinylatent.lab.lensed import tables
from tinylatent.lab.model_reading import SETTINGS, ModelReading, Seen, on_answer
from tinylatent.lab.run import read_record
from tinylatent.lab.studies import depth_smollm
from tinylatent.lab.study import rebuild
from tinylatent.lab.tables import Table
from tinylatent.lenses.depth import skip
from tinylatent.models.huggingface_small import save_small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_small_model(folder, positions=512)
    return folder


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """Readings of two problems of every number of hops, on two draws."""
    folder = tmp_path_factory.mktemp("runs")
    readings = [ModelReading(hops, seed, 2, 2, folder=str(model)) for hops in (1, 2, 3) for seed in (0, 1)]
    return [each.measure(folder / str(place)) for place, each in enumerate(readings)]


def test_a_reading_is_what_lenses_see(model, made):
    reading = ModelReading(2, 1, 2, 2, folder=str(model))
    prompts = reading.prompts()
    (found,) = (each for each in made if each.reading == reading)
    table = tables(prompts, SETTINGS)["sizes"]
    for row, kept in zip(table.rows, found.seen["sizes"].rows, strict=True):
        assert (row["measure"], row["layer"]) == (kept["measure"], kept["layer"])
        assert kept["mean"] == pytest.approx(row["mean"], rel=1e-4)
    logs = prompts.record.logits(prompts.record.stream[-1]).log_softmax(-1)
    by_hand = (logs.gather(2, prompts.ids_BS[..., None])[..., 0] * prompts.counted_BS).sum(1).exp()
    np.testing.assert_allclose(found.likely, by_hand.detach(), rtol=1e-3)
    said = (logs.argmax(-1) == prompts.ids_BS) | ~prompts.counted_BS
    assert found.right == said.all(1).tolist()
    assert {len(values) for values in found.scores.values()} == {2}


def test_effects_are_of_layers_before_the_answer_and_read_there(model):
    """Row by row: skipped up to the slot before the one that predicts the answer's first token."""
    prompts = ModelReading(2, 1, 2, 2, folder=str(model)).prompts()
    effects = on_answer(prompts)
    assert (effects.counted_RS == prompts.counted_BS).all()
    for row in range(2):
        alone = prompts.record.alone(row)
        here = prompts.counted_BS[row, prompts.record.mask_BS[row]]
        first = int(here.nonzero()[0, 0])
        wanted = skip(alone, splits_BN=torch.tensor([[first]])).output[:, 0, here]
        torch.testing.assert_close(effects.output[:, row, prompts.counted_BS[row]], wanted, rtol=1e-3, atol=1e-6)


def test_a_reading_is_written_and_read(made):
    for each in made:
        assert read_record(ModelReading, json.loads(json.dumps(each.to_json()))) == each
    reading = made[0].reading
    assert replace(reading, folder="elsewhere").identity == reading.identity
    with pytest.raises(ValueError, match="not a reading of a model of version 1"):
        ModelReading.from_json({**reading.to_json(), "version": 2})
    with pytest.raises(ValueError, match="not a reading of a model this version can read"):
        ModelReading.from_json({**reading.to_json(), "layers": 3})


def test_what_cannot_be_read_is_told(tmp_path):
    with pytest.raises(ValueError, match="problems is 1: expected 2 or more; try 8"):
        ModelReading(1, problems=1)
    with pytest.raises(ValueError, match="none is not there: `make model` fetches the model"):
        ModelReading(1, folder=str(tmp_path / "none")).measure(tmp_path)


def test_it_can_be_shown(made, tmp_path):
    lines = ({"study": "depth-smollm", "profile": "quick", **each.to_json()} for each in made)
    write_text(tmp_path / "runs.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    own = replace(depth_smollm.STUDY, grid=lambda profile: [each.reading for each in made])
    outcome = rebuild(own, tmp_path)
    for table in outcome.tables:
        assert {name for row in table.rows for name in row} == set(table.columns), table.title
    scores = outcome.tables[0]
    right = [sum(sum(each.right) for each in made[2 * place : 2 * place + 2]) for place in range(3)]
    assert [row["questions"] for row in scores.rows] == [4] * 12 + [each for each in right for _ in range(4)]
    assert len(scores.findings) == 5, "none of so few right answers"
    first = [value for each in made[:2] for value in each.scores["contributions, mean"]]
    assert scores.rows[0]["mean"] == pytest.approx(np.mean(first))
    skips = next(table for table in outcome.tables if table.title == "Effects of skipping a layer")
    assert [row["layers, 1"] for row in skips.rows if row["skipped"] == 1] == [0.0] * 6
    (used,) = (table for table in outcome.tables if table.title == "Tokens that the answer uses, by layer")
    assert {row["questions"] for row in used.rows} == {4}
    assert outcome.files["figure.png"].stat().st_size > 10_000


def seen_of(lens, name, values):
    """A record's table of tokens: two questions, two layers, three slots of which the last predicts."""
    rows = [
        {"prompt": prompt, "layer": layer, "slot": slot, "token": "x", "predicts": int(slot == 2),
         name: values[prompt][layer][slot], "missed": -0.2}
        for prompt in range(2) for layer in range(2) for slot in range(3)
    ]  # fmt: skip
    return {lens: Seen.of(Table(lens, dict.fromkeys(rows[0], ".3f"), rows))}


def test_what_tokens_do_by_hand(made):
    effects = [[[0.0, 0.5, 0.9], [0.0, 0.05, 0.9]], [[0.0, 0.2, 0.9], [0.15, 0.3, 0.9]]]
    shares = [[[1.0, -2.0, 9.0], [0.0, 0.0, 9.0]], [[0.0, 1.0, 9.0], [0.5, 0.5, 9.0]]]
    seen = seen_of("erasure", "effect", effects) | seen_of("attribution", "attribution", shares)
    record = msgspec.structs.replace(made[0], seen=seen)
    assert depth_smollm.last_uses([record]) == [0, 1]
    first, second = depth_smollm._tokens({1: [record]}).rows
    assert (first["largest effect"], first["tokens used"], first["still used"]) == (0.35, 1, 2)
    assert (second["largest effect"], second["tokens used"], second["still used"]) == (0.175, 1, 1)
    assert (first["attribution"], second["attribution"], first["missed"]) == (2, 0.5, 0.2)
    faint = msgspec.structs.replace(made[0], seen=seen_of("erasure", "effect", np.zeros((2, 2, 3)).tolist()))
    assert depth_smollm.last_uses([faint]) == [-1, -1]


def test_slopes_by_hand():
    """1, 2, 3 hops with means 0, 1, 5: half of the difference of the ends."""
    found = depth_smollm._slope({1: [0.0, 0.0], 2: [1.0, 1.0], 3: [4.0, 6.0]})
    assert found.value == pytest.approx(2.5)
    assert (found.low, found.high) == pytest.approx((2.0, 3.0))


def test_grids_of_both_profiles():
    assert len(depth_smollm.grid("quick")) == 3
    full = depth_smollm.grid("full")
    assert len({each.identity for each in full}) == len(full) == 15
    assert {each.work for each in full} == {6}


def test_numbers_are_kept_to_five_digits():
    seen = Seen.of(Table("t", {"a": "s", "b": ".2f"}, [{"a": "x", "b": 1 / 3}, {"a": "y"}]))
    assert seen.rows == [{"a": "x", "b": 0.33333}, {"a": "y", "b": None}]
    assert torch.tensor(seen.cells["b"][0]).item() == pytest.approx(1 / 3, abs=1e-5)
