"""Study `depth-latent` says what its records say. Records made by hand; runs that are measured for real, in short."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from records import NOWHERE
from tinylatent_tasks import Composition, MultiHop

from tinylatent.core.files import write_text
from tinylatent.core.seeds import Seeds
from tinylatent.lab.answering import rights
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import FAILS, HOLDS, OPEN
from tinylatent.lab.folders import load, train
from tinylatent.lab.prompts import of_rows
from tinylatent.lab.recipes_thought_depth import ARMS, HOPS, LAYERS, STEPS, UNTAUGHT, arm_of, build, split
from tinylatent.lab.run import VERSION, read_record
from tinylatent.lab.studies import depth_latent
from tinylatent.lab.study import rebuild
from tinylatent.lab.thought_depth_reading import Frontier, Steps, ThoughtDepthReading, ThoughtDepthRecord
from tinylatent.lenses.depth import skip
from tinylatent.methods import CoT2, Direct
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

SCORES = [f"{name}, {how}" for name in ("contributions", "output") for how in ("mean", 0.9, "max")]


def curve(place, end=1.0, start=0.0):
    """From `start` to `end` at once at a layer: half way a half layer before it."""
    return [start if layer < place else end for layer in range(LAYERS + 1)]


def record(arm, seed, at=2, gain=0.8, over=0.0, rise=0.0, stairs=2, held=None, right=95, profile="full"):
    """A reading.

    at: the layer at which a step's states appear. gain: what a map finds more than in the input. over: how much more
    steps overlap than they should. rise: of scores with hops. stairs: how much later a direct answer is found than its
    first state. held: the share of a step's frontier that a map finds.
    """
    reading = depth_latent.reading(arm, seed, profile)
    prefix, kind = split(arm)
    slots, more = 1 if kind == "direct" else HOPS, 0.01 * (seed % 5 - 2)
    off = HOPS - slots
    held = gain if held is None else held

    def cube(mine, other):
        return [[mine(step) if step == slot + off else other(step) for step in range(HOPS)] for slot in range(slots)]

    lens = cube(lambda step: curve(at, 1.0 + more / 10, 0.5), lambda step: [0.5] * (LAYERS + 1))
    probe = cube(lambda step: curve(at, held + more, held - gain), lambda step: [0.1] * (LAYERS + 1))
    if slots == 1:
        probe[0] = [curve(max(0, min(LAYERS, 1 + stairs * step // (HOPS - 1))), 0.9 + more) for step in range(HOPS)]
    floor = cube(lambda step: [0.05] * (LAYERS + 1), lambda step: [0.0] * (LAYERS + 1))
    first = 1 if not prefix else 2
    levels = {
        str(hops): Steps(
            right=right, total=100, scores={name: 1.0 + (rise + more / 100) * hops for name in SCORES},
            own=[[0.5] * LAYERS for _ in range(1 if kind == "direct" else hops)],
        )
        for hops in range(first, HOPS + 1)
    }  # fmt: skip
    kinds = ("prompt", "answer") if slots == 1 else ("prompt", "steps", "answer")
    sizes = {kind: {"relative_layer": [0.5] * LAYERS, "cosine_layer": [0.1] * LAYERS} for kind in kinds}
    return ThoughtDepthRecord(
        version=VERSION, id=reading.identity, run=reading.to_json(), environments=NOWHERE, levels=levels,
        frontier=Frontier(lens=lens, walk=lens, probe=probe, untrained=floor), sizes=sizes,
        overlap=[[0.3 + over + more, 0.3, 0.2] for _ in range(slots - 1)],
    )  # fmt: skip


def records(**told):
    """Readings of every arm on five seeds; told: settings of `record` by arm, "_" for "-"."""
    settings = {arm: told.get(arm.replace("-", "_"), {}) for arm in ARMS}
    return [record(arm, seed, **settings[arm]) for arm in ARMS for seed in depth_latent.SEEDS["full"]]


def verdicts(found):
    return {each.claim: each.verdict for each in depth_latent.tables(found)[0].findings}


COMPUTES = "{}: a step computes: a linear map finds more of its states after the last layer than in its input"
OVERLAPS = "{}: what steps say overlaps more than what they should say"
LATER = "{}: the states of a step appear later in depth than in {}"
GROWS = "the depth score (output, mean) grows with the number of hops"
FOUND_LATER = "composition: direct: the answer is found later in depth than the first state, where it is predicted"
MORE_FOUND = "multi-hop, branching 2: {}: a linear map finds more of the frontier than in {}"


def test_what_records_say_is_said():
    found = verdicts(
        records(cot2={"at": 3}, coconut={"over": 0.2, "gain": -0.3}, direct={"rise": 0.3}, hops_cot2={"held": 0.95})
    )
    assert found[COMPUTES.format("composition: CoT2")] == HOLDS
    assert found[COMPUTES.format("composition: Coconut")] == FAILS
    assert found[OVERLAPS.format("composition: Coconut")] == HOLDS
    assert found[OVERLAPS.format("composition: CoT2")] == OPEN
    assert found[LATER.format("composition: CoT2", "discrete CoT")] == HOLDS
    assert found[LATER.format("composition: Coconut", "CoT2")] == FAILS
    assert found[LATER.format("composition: Coconut", "discrete CoT")] == OPEN
    assert found[f"composition: direct: {GROWS}"] == HOLDS
    assert found[f"composition: CoT2: {GROWS}"] == OPEN
    assert found[f"composition: {GROWS}, more without steps than in CoT2"] == HOLDS
    assert found[FOUND_LATER] == HOLDS
    assert found[MORE_FOUND.format("CoT2", "discrete CoT")] == HOLDS
    assert found[MORE_FOUND.format("Coconut", "CoT2")] == FAILS


def test_and_the_opposite_too():
    found = verdicts(records(cot2={"at": 1, "over": -0.1, "rise": 0.3}, direct={"stairs": -2, "rise": -0.1}))
    assert found[LATER.format("composition: CoT2", "discrete CoT")] == FAILS
    assert found[OVERLAPS.format("composition: CoT2")] == FAILS
    assert found[f"composition: direct: {GROWS}"] == FAILS
    assert found[f"composition: {GROWS}, more without steps than in CoT2"] == FAILS
    assert found[FOUND_LATER] == FAILS


def test_discrete_steps_are_held_against_their_walk():
    """Whose overlap should be 0.2 where that of frontiers is 0.3."""
    assert depth_latent.refines(record("discrete", 7)) == pytest.approx(0.1)
    assert depth_latent.refines(record("cot2", 7)) == pytest.approx(0.0)
    assert depth_latent.refines(record("direct", 7)) is None


def test_runs_that_have_not_learnt_decide_nothing():
    found = depth_latent.tables(records(cot2={"right": 70}))
    told = {each.claim: (each.verdict, each.runs) for each in found[0].findings}
    assert told[COMPUTES.format("composition: CoT2")] == (OPEN, 0)
    assert told[COMPUTES.format("composition: Coconut")] == (HOLDS, 5)
    assert ("composition", "CoT2") not in {(row["task"], row["method"]) for row in found[1].rows}


def test_layers_at_which_curves_appear():
    assert depth_latent.appears([0.5, 0.5, 1.0, 1.0, 1.0], 0.5, 0.75) == pytest.approx(1.5)
    assert depth_latent.appears([0.5, 0.6, 0.9, 0.9, 0.9], 0.5, 0.75) == pytest.approx(1 + 0.1 / 0.3)
    assert depth_latent.appears([1.0, 0.5, 1.0], 0.5, 0.75) == 0
    assert depth_latent.appears([0.5, 0.6, 0.7], 0.5, 0.75) is None
    assert depth_latent._found([0.0, 0.8, 0.1]) == pytest.approx(0.5)
    assert depth_latent._found([0.0, 0.2, 0.1]) is None
    assert depth_latent.staircase(record("direct", 7, stairs=3)) == 3


def test_own_steps_and_those_before():
    cube = [[[10 * slot + step] for step in range(3)] for slot in range(3)]
    assert depth_latent.own(cube) == [[0], [11], [22]]
    assert depth_latent.own(cube, 1) == [[10], [21]]
    assert depth_latent.own(cube[2:]) == [[22]]


def test_tables_by_hand():
    learnt, steps, curves, scores, layers = depth_latent.tables(records(direct={"rise": 0.5}))
    assert [row["1 hops"] for row in learnt.rows] == [95] * 5 + [None] * 3
    row = next(row for row in steps.rows if (row["method"], row["step"]) == ("CoT2", "2"))
    assert (row["lens, input"], row["appears"], row["before"]) == pytest.approx((0.5, 1.5, 0.1))
    assert (row["map, input"], row["map"], row["untrained"]) == pytest.approx((0, 0.8, 0.05), abs=1e-9)
    assert (row["overlap"], row["of frontiers"], row["of walks"]) == pytest.approx((0.3, 0.3, 0.2))
    assert [row["step"] for row in steps.rows if row["method"] == "direct"] == ["answer"]
    row = next(r for r in curves.rows if (r["method"], r["slot"], r["states of"], r["reader"]) == ("CoT2", 2, 2, "map"))
    assert [row[str(layer)] for layer in range(LAYERS + 1)] == pytest.approx([0, 0, 0.8, 0.8, 0.8], abs=1e-9)
    row = next(row for row in scores.rows if (row["method"], row["score"]) == ("direct", "output, max"))
    assert (row["1 hops"], row["4 hops"], row["slope"]) == pytest.approx((1.5, 3.0, 0.5))
    assert [row["skipped"] for row in layers.rows if (row["method"], row["layer"]) == ("direct", 0)] == [None, 0.5]


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_every_profile_can_be_shown(profile, tmp_path):
    arms = ARMS if profile == "full" else depth_latent.QUICK
    made = [record(arm, seed, profile=profile) for arm in arms for seed in depth_latent.SEEDS[profile]]
    assert [each.run for each in made] == [reading.to_json() for reading in depth_latent.grid(profile)]
    lines = ({"study": "depth-latent", "profile": profile, **each.to_json()} for each in made)
    write_text(tmp_path / "runs.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    outcome = rebuild(depth_latent.STUDY, tmp_path)
    for table in outcome.tables:
        assert {name for row in table.rows for name in row} == set(table.columns), table.title
        assert all(each.family and each.runs and "[" in each.evidence for each in table.findings)
    assert outcome.files["figure.png"].stat().st_size > 10_000


def test_runs_are_of_their_arms():
    for arm in ARMS:
        run = build(arm, 7)
        assert arm_of(run) == arm
        assert arm_of(replace(run, training=replace(run.training, steps=3))) == arm
        assert run.training.steps == STEPS
    with pytest.raises(ValueError, match="unknown arm 'hops-direct' of depth-latent: expected one of direct"):
        build("hops-direct")
    assert not any(f"hops-{kind}" in ARMS for kind in UNTAUGHT)


# ---------------------------------------------------------------------------------------------------------------------
# A reading

TINY = Experiment(
    MultiHop(hops=3, least=2, nodes=4, branching=2, bound=True), CoT2(), ModelConfig(8, 2, 2, init="fan_in"),
    Training(steps=60, batch_size=16, num_train=60, learning_rate=1e-2), Seeds.all(0),
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train(TINY, folder / "start")
    reading = ThoughtDepthReading(TINY, problems=5, probed=60)
    return folder, reading, reading.measure(folder / "reading", start=folder / "start")


@torch.no_grad()
def test_a_reading_is_what_lenses_measure(measured):
    """Every number of one slot anew, pair by pair and by least squares."""
    folder, reading, found = measured
    _, model = load(folder / "start")
    rows = reading._levels[3][:60]
    prompts = of_rows(TINY, model, rows)
    known = prompts.record
    assert known.mask_BS.all()
    assert prompts.asked == TINY.task.prompt(rows)[0].shape[1]
    share_PTV = TINY.task.frontier(rows)
    ids = np.flatnonzero(share_PTV.any((0, 1)))
    slot, step, layer = prompts.asked, 1, 1  # the slot of the first step, which predicts the second
    logit_PC = known.logits(known.stream[layer, :, slot])[:, ids].numpy()
    kept = []
    for logits, shares in zip(logit_PC, share_PTV[:, step, ids], strict=True):
        pairs = [(a, b) for a in range(len(ids)) for b in range(len(ids)) if shares[a] > 0 and shares[b] == 0]
        if pairs:
            kept.append(np.mean([float(logits[a] > logits[b]) for a, b in pairs]))
    assert found.frontier.lens[1][step][layer] == pytest.approx(np.mean(kept), abs=1e-4)
    walk = TINY.task.chain(rows)[:, step]
    ranks = [
        np.mean([row[ids == id] > row[ids == other] for other in ids if other != id])
        for row, id in zip(logit_PC, walk, strict=True)
    ]
    assert found.frontier.walk[1][step][layer] == pytest.approx(np.mean(ranks), abs=1e-4)
    x = np.column_stack([known.stream[layer, :, slot].numpy(), np.ones(60)]).astype(float)
    y = share_PTV[:, step, ids].astype(float)
    missed = y[48:] - x[48:] @ np.linalg.lstsq(x[:48], y[:48], rcond=None)[0]
    r2 = 1 - (missed**2).sum() / ((y[48:] - y[48:].mean(0)) ** 2).sum()
    assert found.frontier.probe[1][step][layer] == pytest.approx(r2, abs=1e-3)
    said = [known.logits(known.stream[-1, :, each]).softmax(-1)[:, ids] for each in (slot - 1, slot)]
    oracle = np.minimum(share_PTV[:, 0, ids], share_PTV[:, 1, ids]).sum(1).mean()
    assert found.overlap[0][:2] == pytest.approx([torch.minimum(*said).sum(1).mean().item(), oracle], abs=1e-4)
    every = reading._levels[3][:40]
    right = rights(of_rows(TINY, model, every)).numpy()
    assert (found.levels["3"].right, found.levels["3"].total) == (right.sum(), 40)
    assert right.sum() > 1
    few = of_rows(TINY, model, every[right][:5])
    effects = skip(few.record).output[0, :, slot].mean()
    assert found.levels["3"].own[1][0] == pytest.approx(effects.item(), abs=1e-4)


def test_shapes_and_floors(measured):
    _, _, found = measured
    assert [*found.levels] == ["2", "3"]
    for name in ("lens", "walk", "probe", "untrained"):
        cube = np.array(getattr(found.frontier, name))
        assert cube.shape == (3, 3, 3), "slots, steps, layers"
        assert cube.max() <= 1
    assert np.array(found.frontier.untrained) != pytest.approx(np.array(found.frontier.probe))
    assert np.array(found.overlap).shape == (2, 3)
    assert [*found.sizes] == ["prompt", "steps", "answer"]
    assert len(found.levels["2"].own) == 2


def test_a_direct_answer_has_one_slot(tmp_path):
    run = replace(TINY, task=Composition(hops=2, items=4, functions=3), method=Direct())
    found = ThoughtDepthReading(run, problems=4, probed=40).measure(tmp_path)
    assert np.array(found.frontier.lens).shape == (1, 2, 3)
    assert found.overlap == []
    assert [*found.sizes] == ["prompt", "answer"]
    assert [*found.levels] == ["1", "2"]


def test_a_reading_is_written_and_read(measured):
    _, reading, found = measured
    assert ThoughtDepthReading.from_json(json.loads(json.dumps(reading.to_json()))) == reading
    assert read_record(ThoughtDepthReading, json.loads(json.dumps(found.to_json()))) == found
    with pytest.raises(ValueError, match="not a reading of thoughts in depth of version 1"):
        ThoughtDepthReading.from_json({**reading.to_json(), "version": 2})


def test_numbers_out_of_range_are_told():
    with pytest.raises(ValueError, match="problems is 1: expected 2 or more"):
        ThoughtDepthReading(TINY, problems=1)
    with pytest.raises(ValueError, match="probed is 15: expected 16 or more"):
        ThoughtDepthReading(TINY, probed=15)
