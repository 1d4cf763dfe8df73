"""Study `depth` says what its records say. Records made by hand; one run that is measured for real, in short."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from records import NOWHERE, shown

from tinylatent.core.seeds import Seeds
from tinylatent.lab.depth_reading import FLOOR, OTHER, DepthReading, DepthRecord, Level, Map
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import FAILS, HOLDS, OPEN
from tinylatent.lab.folders import load, train
from tinylatent.lab.prompts import of_rows
from tinylatent.lab.recipes_depth import ALL, ANSWER, ARMS, EARLY, ENOUGH, LAYERS, STEPS, TASK, arm_of, build
from tinylatent.lab.run import VERSION, read_record
from tinylatent.lab.studies import depth
from tinylatent.lenses.depth import depth_score, erase, mean_added, mean_stream, sizes, skip
from tinylatent.methods import Direct
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

SCORES = [f"{name}, {how}" for name in ("contributions", "output") for how in ("mean", 0.9, "max", "last")]


def record(arm, seed, uses=(0, 0, 2, 3, 4, 6), rise=0.5, cosine=0.1, future=0.2, right=95, spread=0.01, profile="full"):
    """A reading of an arm's run: last uses of tokens in problems of most hops, and how scores rise with hops."""
    reading = depth.reading(arm, seed, profile)
    L, more = LAYERS, spread * (seed % 5 - 2)

    def erased(hops):
        tokens = hops + 2
        last = [*uses[: hops + 1], uses[-1]]
        return [[1.0 if layer <= last[token] else 0.01 for token in range(tokens)] for layer in range(L + 1)]

    levels = {
        str(hops): Level(
            right=right, total=100, held_right=right // 2, held_total=100,
            lens={name: [float(L - layer) for layer in range(L + 1)] for name in ("to_final", "from_final")},
            scores={name: 1.0 + (rise + more) * hops for name in SCORES},
            effects={name: [0.5] * L for name in SCORES}, likely=0.9, looked=64, erased=erased(hops),
            erased_same=erased(hops), attributed=erased(hops), missed=0.01, refined=1.0,
        )
        for hops in range(1, TASK.hops + 1)
    }  # fmt: skip
    plain = {name: [1.0] * L for name in ("attention", "mlp", "relative_attention", "relative_mlp", "cosine_attention")}
    square = [[0.0] * L for _ in range(L)]
    best = [[0.9 if m == layer else 0.1 for layer in range(L + 1)] for m in range(L + 1)]
    maps = {}
    if reading.target is not None:
        maps = {name: Map(r2=best, relative_error=best) for name in (OTHER, FLOOR)}
    return DepthRecord(
        version=VERSION, id=reading.identity, run=reading.to_json(), environments=NOWHERE, steps=1000, levels=levels,
        sizes={
            **plain, "residual": [2.0] * (L + 1), "relative_layer": [0.5] * L, "cosine_mlp": [0.0] * L,
            "cosine_layer": [0.0] * (L // 2) + [cosine + more] * (L - L // 2), "cosine_neighbours": [0.9] * L,
        },
        at_answer={"relative_layer": [0.5] * L, "cosine_layer": [cosine + more] * L},
        contributions=dict.fromkeys(("all", "mean", "future", "direct"), square),
        output={
            "all": [1.0] * L, "mean": [0.5] * L, "direct": [0.1] * L,
            "future": [0.0] * (L // 2) + [future + more] * (L - L // 2),
        },
        outliers={name: [1.0 + seed] * (L + 1) for name in ("kurtosis", "max-median", "input correlation")},
        maps=maps,
    )  # fmt: skip


def records(**told):
    """Readings of every arm on five seeds; told: settings of `record` by arm."""
    return [record(arm, seed, **told.get(arm, {})) for arm in ARMS for seed in depth.SEEDS["full"]]


def verdicts(found):
    return {each.claim: each.verdict for each in depth.tables(found)[0].findings}


STAIRS = "answers alone: the last function's slot is read until later in depth than the first's"
MORE_STAIRS = "from the first function's slot to the last's it is more layers with answers alone{} than with all tokens"
STAIRCASE = "{}: every function's slot is read until later than the one before (a staircase)"
GROWS = "{}: the depth score (output, mean) grows with the number of hops, from two on"
STRENGTHENS = (
    "where the answer is predicted the later half of layers strengthens what is there more with all tokens than with "
    "answers alone"
)
CHANGES = "skipping a later layer before the answer changes it more with answers alone than with all tokens"


def test_what_records_say_is_said():
    flat = {"uses": (0, 2, 2, 2, 2, 6), "rise": 0.0, "cosine": 0.5, "future": 0.1}
    found = verdicts(records(**{ALL: flat}))
    assert found[STAIRS] == found[MORE_STAIRS.format("")] == found[MORE_STAIRS.format(", stopped")] == HOLDS
    assert found[STAIRCASE.format("answers alone")] == found[GROWS.format("answers alone")] == HOLDS
    assert found[STAIRCASE.format("all tokens")] == found[GROWS.format("all tokens")] == OPEN
    assert found[STRENGTHENS] == found[CHANGES] == HOLDS


def test_and_the_opposite_too():
    falls = {"uses": (6, 5, 4, 3, 2, 6), "rise": -0.5, "cosine": 0.7, "future": 0.1}
    found = verdicts(records(**{ANSWER: falls}))
    assert found[STAIRS] == found[MORE_STAIRS.format("")] == found[GROWS.format("answers alone")] == FAILS
    assert found[MORE_STAIRS.format(", stopped")] == OPEN
    assert found[GROWS.format("all tokens")] == HOLDS
    assert found[STRENGTHENS] == found[CHANGES] == FAILS


def test_equal_arms_leave_it_open():
    found = verdicts(records())
    assert found[MORE_STAIRS.format("")] == found[STRENGTHENS] == found[CHANGES] == OPEN


def test_runs_that_have_not_learnt_decide_nothing():
    found = depth.tables(records(**{ANSWER: {"right": 70}, EARLY: {"right": 70}}))
    told = {each.claim: (each.verdict, each.runs) for each in found[0].findings}
    assert told[STAIRS] == told[MORE_STAIRS.format("")] == (OPEN, 0)
    assert told[GROWS.format("all tokens")] == (HOLDS, 5)
    assert [row["learnt"] for row in found[0].rows][:3] == [0, 0, 5]
    assert "answers alone" not in {row["arm"] for row in found[1].rows}


def test_a_function_that_is_never_read_has_no_place_in_depth():
    assert depth.climb(record(ANSWER, 7, uses=(0, -1, 2, 3, 4, 6))) is None
    told = {each.claim: each.runs for each in depth.tables(records(answer={"uses": (0, -1, 2, 3, 4, 6)}))[0].findings}
    assert told[STAIRS] == 0


def test_places_slopes_and_halves_by_hand():
    """Effects of 1 up to a layer and 0.01 behind it: half of the way between the two."""
    known = record(ANSWER, 7)
    between = 0.5 / 0.99
    places = [depth.read_until(known, token) for token in range(6)]
    assert places == pytest.approx([between, between, 2 + between, 3 + between, 4 + between, 6])
    assert depth.read_until(known, 1, share=0.75) == pytest.approx(0.25 / 0.99)
    assert depth.steps(known) == pytest.approx([2, 1, 1])
    assert (depth.climb(known), depth.step(known)) == pytest.approx((4, 1))
    assert depth.step(record(ANSWER, 7, uses=(0, 0, 3, 3, 4, 6))) == 0
    assert depth.read_until(record(ANSWER, 7, uses=(-1, 0, 2, 3, 4, 6)), 0) is None
    assert depth.slope(known, "output, mean") == depth.slope(known, "output, mean", 2) == pytest.approx(0.5)
    bent = record(ANSWER, 7)
    bent.levels["1"].scores["output, mean"] = 9.0
    assert depth.rise("output, mean")(bent) == pytest.approx(0.5)
    assert depth.slope(bent, "output, mean") < 0
    assert depth.late(known, "cosine_layer") == pytest.approx(0.1)
    assert depth.late(known, "future") == pytest.approx(0.2)


def test_where_nothing_was_learnt_nothing_is_shown(tmp_path):
    none = {arm: {"right": 70} for arm in ARMS}
    _, *others = depth.tables(records(**none))
    assert not any(table.rows for table in others)
    depth.draw(records(**none), tmp_path / "figure.png")


def test_tables_by_hand():
    learnt, uses, scores, effects, layers, maps, outliers = depth.tables(records(all={"right": 50}))
    assert [row["4 hops"] for row in learnt.rows][:3] == [95, 95, 50]
    assert (learnt.rows[0]["unseen, 1"], learnt.rows[0]["batches"], learnt.rows[0]["sure"]) == (47, 1000, 0.9)
    first = uses.rows[1]
    assert (first["arm"], first["replaced by"], first["share"]) == ("answers alone", "mean of all tokens", 0.5)
    assert first["f4"] == pytest.approx(4 + 0.5 / 0.99)
    assert (first["climb"], first["climb low"], first["stairs"], first["seeds"]) == pytest.approx((4, 4, 5, 5))
    row = next(row for row in scores.rows if (row["arm"], row["score"]) == ("answers alone", "output, max"))
    assert (row["1 hops"], row["4 hops"], row["slope"]) == pytest.approx((1.5, 3.0, 0.5))
    assert row["from two"] == pytest.approx(0.5)
    assert {row["3 hops"] for row in effects.rows} == {0.5}
    assert layers.rows[0]["lens, 4"] == layers.rows[0]["from, 4"] == LAYERS
    assert (layers.rows[0]["output, mean"], layers.rows[0]["cosine at ="]) == pytest.approx((0.5, 0.1))
    assert {row["best source"] - row["layer"] for row in maps.rows} == {0}
    whose = {row["from"] for row in maps.rows}
    assert whose == {f"{arm}{said}" for arm in ("answers alone", "three layers") for said in ("", ", never trained")}
    assert {row["to"] for row in maps.rows} == {"answers alone, another seed"}
    assert (outliers.rows[0]["kurtosis"], outliers.rows[0]["least"], outliers.rows[0]["most"]) == (8, 6, 10)


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_every_profile_can_be_shown(profile, tmp_path):
    arms = ARMS if profile == "full" else depth.QUICK
    made = [record(arm, seed, profile=profile) for arm in arms for seed in depth.SEEDS[profile]]
    assert [each.run for each in made] == [reading.to_json() for reading in depth.grid(profile)]
    outcome = shown(depth.STUDY, profile, made, tmp_path)
    assert all(each.runs for table in outcome.tables for each in table.findings)
    assert outcome.files["figure.png"].stat().st_size > 10_000


def test_runs_are_of_their_arms():
    for arm in ARMS:
        run = build(arm, 7)
        assert arm_of(run) == arm
        assert arm_of(replace(run, training=replace(run.training, steps=3))) == arm
        assert run.training.steps == (4 * STEPS if arm == ALL else STEPS)
        assert run.training.warmup * run.training.steps == pytest.approx(200)
        assert run.training.enough == (ENOUGH if arm in (EARLY, ALL) else None)
    with pytest.raises(ValueError, match="is no run of study depth: expected one of answer, early, all"):
        arm_of(replace(build(ANSWER, 0), model=ModelConfig(32)))


def test_maps_go_to_the_next_seed():
    chosen = [depth.reading(ANSWER, seed) for seed in depth.SEEDS["full"]]
    assert [each.target.seeds.split for each in chosen] == [6, 7, 8, 9, 5]
    assert depth.reading("shallow", 5).target == build(ANSWER, 6)
    assert depth.reading(ALL, 5).target is None


# ---------------------------------------------------------------------------------------------------------------------
# A reading


TINY = Experiment(
    replace(TASK, hops=2, items=4, functions=3), Direct(), ModelConfig(8, 2, 2, init="fan_in"),
    Training(steps=60, batch_size=16, num_train=60, learning_rate=1e-2), Seeds.all(0),
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train(TINY, folder / "start")
    other = replace(TINY, seeds=Seeds.all(1))
    reading = DepthReading(TINY, problems=5, target=other)
    return folder, reading, reading.measure(folder / "reading", start=folder / "start")


def _said(model, prompts):
    """The token behind the last slot of every prompt."""
    return model.backbone.readout(model.backbone.finish(prompts.record.stream[-1]))[:, -1].argmax(-1)


def test_a_reading_is_what_lenses_measure(measured):
    folder, reading, found = measured
    _, model = load(folder / "start")
    rows = reading._rows(2 * 8 * 5)
    hops_P = TINY.task.steps(rows)
    seen = {}
    for hops in (1, 2):
        every = rows[hops_P == hops]
        right = TINY.task.score(every, _said(model, of_rows(TINY, model, every))[:, None].numpy()).astype(bool)
        assert (found.levels[str(hops)].right, found.levels[str(hops)].total) == (right.sum(), len(every))
        seen[hops] = of_rows(TINY, model, (every[right] if right.sum() > 1 else every)[:5])
    assert right.sum() > 1, "of some problems it looks into those that are answered rightly"
    filler = mean_stream([each.record for each in seen.values()])
    known, counted_BS = seen[2].record, seen[2].counted_BS
    assert known.mask_BS.all()
    assert counted_BS.nonzero()[:, 1].tolist() == [4] * 5, "the slot of ="
    wanted = erase(known, filler, counted_BS).amax(-1).mean(1)[:, 1:]
    np.testing.assert_allclose(found.levels["2"].erased, wanted, rtol=1e-3, atol=1e-6)
    future = skip(known, splits_BN=torch.tensor([[2, 3, 4]] * 5))
    at_answer = future.contribution[..., 4].unflatten(-1, (5, 3)).quantile(0.9, -1)  # over the splits of a problem
    later = torch.stack(
        [at_answer[layer, layer + 1 :].mean(0) if layer < 1 else 0 * at_answer[0, 0] for layer in (0, 1)]
    )
    assert found.levels["2"].scores["contributions, 0.9"] == pytest.approx(depth_score(later.mean(1)).item(), abs=1e-3)
    output = future.output[..., 4].unflatten(-1, (5, 3)).mean((1, 2))
    assert found.levels["2"].scores["output, mean"] == pytest.approx(depth_score(output).item(), abs=1e-3)
    assert found.levels["2"].effects["output, mean"] == pytest.approx(output.tolist(), rel=1e-3)
    last = future.output[:, 2::3, 4].mean(1)
    assert found.levels["2"].effects["output, last"] == pytest.approx(last.tolist(), rel=1e-3)
    assert found.levels["2"].scores["output, last"] == pytest.approx(depth_score(last).item(), abs=1e-3)
    same = erase(known, known.stream.mean(1), counted_BS)[:, :, :, 4].mean(1)[:, 1:]
    np.testing.assert_allclose(found.levels["2"].erased_same, same, rtol=1e-3, atol=1e-6)
    likely = known.logits(known.stream[-1][:, 4]).softmax(-1).gather(1, seen[2].ids_BS[:, 4:5]).mean().item()
    assert (found.levels["2"].likely, found.levels["2"].looked) == (pytest.approx(likely, rel=1e-3), 5)
    assert 0 <= found.levels["2"].refined <= 1
    at = [sizes(each.record).cosine_layer[1, :, -1] for each in seen.values()]
    assert found.at_answer["cosine_layer"][1] == pytest.approx(torch.cat(at).mean().item(), abs=1e-4)
    added = mean_added([each.record for each in seen.values()])
    moved = [skip(each.record, filler_LD=added).output[0, :, -1] for each in seen.values()]
    assert found.output["mean"][0] == pytest.approx(torch.cat(moved).mean().item(), abs=1e-4)
    norms = [sizes(each.record).residual[1][:, 1:].mean(1) for each in seen.values()]
    assert found.sizes["residual"][1] == pytest.approx(torch.cat(norms).mean().item(), rel=1e-3)
    assert found.steps == 60
    held = TINY.rows("validation")
    assert sum(each.held_total for each in found.levels.values()) == len(held)
    assert found.maps.keys() == {OTHER, FLOOR}
    assert len(found.maps[OTHER].r2) == 3
    assert max(map(max, found.maps[OTHER].r2)) <= 1
    assert found.maps[FLOOR] != found.maps[OTHER]
    again = DepthReading(TINY, problems=5)
    assert again.measure(folder / "again", start=folder / "start").maps == {}, "there is nothing to predict"


def test_a_target_that_is_finished_is_not_trained_again(measured, monkeypatch):
    folder, reading, found = measured
    train(reading.target, folder / reading.target.identity)
    monkeypatch.setattr("tinylatent.lab.depth_reading.train", lambda *_: pytest.fail("trained again"))
    again = reading.measure(folder / "again", start=folder / "start")
    assert again.maps == found.maps


def test_a_reading_is_written_and_read(measured):
    _, reading, found = measured
    assert DepthReading.from_json(json.loads(json.dumps(reading.to_json()))) == reading
    assert read_record(DepthReading, json.loads(json.dumps(found.to_json()))) == found
    assert "target" not in DepthReading(TINY).to_json()
    with pytest.raises(ValueError, match="not a reading of depth of version 2"):
        DepthReading.from_json({**reading.to_json(), "version": 1})
    with pytest.raises(ValueError, match="not a reading of depth this version can read"):
        DepthReading.from_json({"version": 2})


def test_what_cannot_be_read_is_told():
    from tinylatent_tasks import MNNS

    with pytest.raises(ValueError, match="a run on mnns: expected one on composition"):
        DepthReading(replace(TINY, task=MNNS()))
    with pytest.raises(ValueError, match="problems is 1: expected 2 or more"):
        DepthReading(TINY, problems=1)
