"""Study `depth-latent` says what its records say. Records made by hand; runs that are measured for real, in short."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from records import NOWHERE, shown
from tinylatent_tasks import Composition, MultiHop

from tinylatent.core.seeds import Seeds
from tinylatent.lab.answering import Without, rights
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import FAILS, HOLDS, OPEN
from tinylatent.lab.folders import load, train
from tinylatent.lab.prompts import of_rows
from tinylatent.lab.recipes_thought_depth import ARMS, HOPS, LAYERS, STEPS, UNTAUGHT, arm_of, build, split
from tinylatent.lab.run import VERSION, read_record
from tinylatent.lab.studies import depth_latent
from tinylatent.lab.thought_depth_reading import ANEW, GIVEN, Frontier, Steps, ThoughtDepthReading, ThoughtDepthRecord
from tinylatent.lenses.depth import skip
from tinylatent.methods import CoT2, Direct
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

SCORES = [f"{name}, {how}" for name in ("contributions", "output") for how in ("mean", 0.9, "max", "last")] + [
    GIVEN,
    ANEW,
]


def curve(place, end=1.0, start=0.0):
    """From `start` to `end` at once at a layer: half way a half layer before it."""
    return [start if layer < place else end for layer in range(LAYERS + 1)]


def record(
    arm, seed, at=2, fed=0.9, on=0.0, rise=0.0, stairs=2, held=0.8, right=95, walk=None, lost=0.0, profile="full"
):
    """A reading.

    at: the layer at which a step's states appear. fed: what a map finds of the step before in a thought. on: how much
    more often than by chance states of the step before rank first. rise: of scores with hops. stairs: how much later a
    direct answer is found than its first state. held: the share of a step's frontier that a map finds. walk: the layer
    at which the best walk's state appears. lost: the share of answers that a skipped layer costs by steps made anew.
    """
    reading = depth_latent.reading(arm, seed, profile)
    prefix, kind = split(arm)
    slots, more = 1 if kind == "direct" else HOPS, 0.01 * (seed % 5 - 2)
    off = HOPS - slots

    def cube(mine, other):
        return [[mine(step) if step == slot + off else other(step) for step in range(HOPS)] for slot in range(slots)]

    def level(value):
        return [value] * (LAYERS + 1)

    lens, best = (
        cube(lambda step, place=place: curve(place, 1.0 + more / 10, 0.5), lambda step: level(0.5))
        for place in (at, at if walk is None else walk)
    )
    probe = cube(lambda step: curve(at, held + more, 0.0), lambda step: level(fed + more))
    if slots == 1:
        probe[0] = [curve(max(0, min(LAYERS, 1 + stairs * step // (HOPS - 1))), 0.9 + more) for step in range(HOPS)]
    before = cube(lambda step: level(0.5 + on + more / 10), lambda step: level(0.5))
    floor = cube(lambda step: level(0.05), lambda step: level(0.1))
    none = cube(lambda step: level(0.5), lambda step: level(0.5))
    first = 1 if not prefix else 2
    levels = {
        str(hops): Steps(
            right=right, total=100, held_right=right // 2, held_total=100,
            scores={name: 1.0 + (rise + more / 100) * hops for name in SCORES},
            own=[[0.5] * LAYERS for _ in range(1 if kind == "direct" else hops)],
            without=Without(given=[0.5] * LAYERS, anew=[0.5 - lost + more / 10] * LAYERS, moved=[0.6] * LAYERS),
        )
        for hops in range(first, HOPS + 1)
    }  # fmt: skip
    kinds = ("prompt", "answer") if slots == 1 else ("prompt", "steps", "answer")
    sizes = {kind: {"relative_layer": [0.5] * LAYERS, "cosine_layer": [0.1] * LAYERS} for kind in kinds}
    return ThoughtDepthRecord(
        version=VERSION, id=reading.identity, run=reading.to_json(), environments=NOWHERE, levels=levels,
        frontier=Frontier(lens=lens, walk=best, before=before, probe=probe),
        untrained=Frontier(lens=none, walk=none, before=none, probe=floor), sizes=sizes,
    )  # fmt: skip


def records(**told):
    """Readings of every arm on five seeds; told: settings of `record` by arm, "_" for "-"."""
    settings = {arm: told.get(arm.replace("-", "_"), {}) for arm in ARMS}
    return [record(arm, seed, **settings[arm]) for arm in ARMS for seed in depth_latent.SEEDS["full"]]


def verdicts(found):
    return {each.claim: each.verdict for each in depth_latent.tables(found)[0].findings}


CARRIES = "{}: a linear map finds more of a step's states in its thought than without training"
HOLDS_ON = "{}: what a step says ranks states of the step before, that are its own no longer, above others"
LATER = "{}: the states of a step appear later in depth than in {}"
GROWS = "the depth score (output, mean) of an answer"
FOUND_LATER = "composition: direct: the answer is found later in depth than the first state, where it is predicted"
LOST = "composition: {}: without a layer fewer answers are right where steps are made anew than with clean ones"
MADE_ANEW = "composition: {}: the depth score (output) of an answer whose steps are made anew grows with hops"
HOP = "multi-hop, branching 2: {}"
MORE_FOUND = HOP.format("{}: a linear map finds more of the frontier than in {}")


def test_what_records_say_is_said():
    found = verdicts(
        records(
            cot2={"at": 3, "lost": 0.2}, coconut={"on": 0.2, "fed": 0.0, "lost": -0.2, "rise": 0.3},
            direct={"rise": 0.3}, hops_cot2={"held": 0.95, "walk": 3},
        )
    )  # fmt: skip
    assert found[CARRIES.format("composition: CoT2")] == HOLDS
    assert found[CARRIES.format("composition: Coconut")] == FAILS
    assert found[HOLDS_ON.format("composition: Coconut")] == HOLDS
    assert found[HOLDS_ON.format("composition: CoT2")] == OPEN
    assert found[LATER.format("composition: CoT2", "discrete CoT")] == HOLDS
    assert found[LATER.format("composition: Coconut", "CoT2")] == FAILS
    assert found[LATER.format("composition: Coconut", "discrete CoT")] == OPEN
    assert found[HOP.format("CoT2: states of the best walk appear later in depth than in discrete CoT")] == HOLDS
    assert found[HOP.format("CoT2: states of a step's frontier appear later in depth than in discrete CoT")] == OPEN
    assert found[f"composition: direct: {GROWS} grows with the number of hops"] == HOLDS
    assert found[f"composition: CoT2: {GROWS}, given clean steps, grows with the number of hops"] == OPEN
    assert found[f"composition: {GROWS} grows more with hops without steps than in CoT2, given clean ones"] == HOLDS
    assert found[FOUND_LATER] == HOLDS
    assert found[MORE_FOUND.format("CoT2", "discrete CoT")] == HOLDS
    assert found[MORE_FOUND.format("Coconut", "CoT2")] == FAILS
    lost = [found[LOST.format(name)] for name in ("CoT2", "Coconut", "discrete CoT")]
    assert lost == [HOLDS, FAILS, OPEN]
    assert LOST.format("direct") not in found
    assert (found[MADE_ANEW.format("Coconut")], found[MADE_ANEW.format("CoT2")]) == (HOLDS, OPEN)


def test_and_the_opposite_too():
    found = verdicts(records(cot2={"at": 1, "on": -0.1, "rise": 0.3}, direct={"stairs": -2, "rise": -0.1}))
    assert found[LATER.format("composition: CoT2", "discrete CoT")] == FAILS
    assert found[HOLDS_ON.format("composition: CoT2")] == FAILS
    assert found[f"composition: direct: {GROWS} grows with the number of hops"] == FAILS
    assert found[f"composition: {GROWS} grows more with hops without steps than in CoT2, given clean ones"] == FAILS
    assert found[FOUND_LATER] == FAILS


def test_layers_are_compared_at_slots_where_both_show_the_states():
    mine, other = record("cot2", 7, at=3), record("discrete", 7, at=1)
    assert depth_latent.later(mine, other, "lens") == pytest.approx(2)
    other.frontier.lens[0][0][:] = [0.5, 1.0, 1.0, 1.0, 0.6]
    mine.frontier.lens[1][1][:] = curve(4, 1.0, 0.5)
    assert depth_latent.later(mine, other, "lens") == pytest.approx((3 + 2 + 2) / 3), "the first slot of it ends below"
    for slot in range(HOPS):
        mine.frontier.lens[slot][slot][:] = [0.5] * (LAYERS + 1)
    assert depth_latent.later(mine, other, "lens") is None


def test_runs_that_have_not_learnt_decide_nothing():
    found = depth_latent.tables(records(cot2={"right": 70}))
    told = {each.claim: (each.verdict, each.runs) for each in found[0].findings}
    assert told[CARRIES.format("composition: CoT2")] == (OPEN, 0)
    assert told[CARRIES.format("composition: Coconut")] == (HOLDS, 5)
    assert ("composition", "CoT2") not in {(row["task"], row["method"]) for row in found[1].rows}


def test_where_nothing_was_learnt_nothing_is_shown(tmp_path):
    none = {arm.replace("-", "_"): {"right": 70} for arm in ARMS}
    _, *others = depth_latent.tables(records(**none))
    assert not any(table.rows for table in others)
    depth_latent.draw(records(**none), tmp_path / "figure.png")


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
    assert {row["held out"] for row in learnt.rows} == {47}
    row = next(row for row in steps.rows if (row["method"], row["step"]) == ("CoT2", "2"))
    assert (row["lens, input"], row["lens"], row["lens appears"]) == pytest.approx((0.5, 1.0, 1.5))
    assert (row["map"], row["map, fed"]) == pytest.approx((0.8, 0.9))
    assert (row["untrained"], row["untrained, fed"]) == pytest.approx((0.05, 0.1))
    assert (row["holds on"], row["untrained holds on"]) == pytest.approx((0.5, 0.5))
    assert [row["step"] for row in steps.rows if row["method"] == "direct"] == ["answer"]
    row = next(r for r in curves.rows if (r["method"], r["slot"], r["states of"], r["reader"]) == ("CoT2", 2, 2, "map"))
    assert [row[str(layer)] for layer in range(LAYERS + 1)] == pytest.approx([0, 0, 0.8, 0.8, 0.8], abs=1e-9)
    row = next(row for row in scores.rows if (row["method"], row["score"]) == ("direct", "output, max"))
    assert (row["1 hops"], row["4 hops"], row["slope"]) == pytest.approx((1.5, 3.0, 0.5))
    first = [row for row in layers.rows if (row["method"], row["layer"]) == ("direct", 0)]
    assert [row["skipped"] for row in first] == [None, 0.5]
    assert [row["right, given"] for row in first] == [row["right, anew"] for row in first] == [None, 50]


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_every_profile_can_be_shown(profile, tmp_path):
    arms = ARMS if profile == "full" else depth_latent.QUICK
    made = [record(arm, seed, profile=profile) for arm in arms for seed in depth_latent.SEEDS[profile]]
    assert [each.run for each in made] == [reading.to_json() for reading in depth_latent.grid(profile)]
    outcome = shown(depth_latent.STUDY, profile, made, tmp_path)
    assert all(each.runs for table in outcome.tables for each in table.findings)
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
    every = reading._levels[3][:60]
    right = rights(of_rows(TINY, model, every)).numpy()
    rows = every[right] if right.sum() >= 16 else every
    prompts = of_rows(TINY, model, rows)
    known = prompts.record
    assert known.mask_BS.all()
    assert prompts.asked == TINY.task.prompt(rows)[0].shape[1]
    share_PTV = TINY.task.frontier(rows)
    ids = np.flatnonzero(share_PTV.any((0, 1)))
    slot, step, layer = prompts.asked, 1, 1  # the slot of the first step, which predicts the second
    logit_PC = known.logits(known.stream[layer, :, slot])[:, ids].numpy()
    now, then = share_PTV[:, step, ids] > 0, share_PTV[:, step - 1, ids] > 0

    def ranked(upper, lower):
        """Pair by pair."""
        kept = []
        for logits, ups, lows in zip(logit_PC, upper, lower, strict=True):
            pairs = [logits[a] > logits[b] for a in np.flatnonzero(ups) for b in np.flatnonzero(lows)]
            kept += [np.mean(pairs)] if pairs else []
        return np.mean(kept) if kept else 0.5

    assert found.frontier.lens[1][step][layer] == pytest.approx(ranked(now, ~now), abs=1e-4)
    walk = TINY.task.chain(rows)[:, [step]] == ids
    assert found.frontier.walk[1][step][layer] == pytest.approx(ranked(walk, ~walk), abs=1e-4)
    assert found.frontier.before[1][step][layer] == pytest.approx(ranked(then & ~now, ~then & ~now), abs=1e-4)
    fit = round(0.8 * len(rows))
    x = np.column_stack([known.stream[layer, :, slot].numpy(), np.ones(len(rows))]).astype(float)
    y = share_PTV[:, step, ids].astype(float)
    missed = y[fit:] - x[fit:] @ np.linalg.lstsq(x[:fit], y[:fit], rcond=None)[0]
    r2 = 1 - (missed**2).sum() / ((y[fit:] - y[fit:].mean(0)) ** 2).sum()
    assert found.frontier.probe[1][step][layer] == pytest.approx(0.0 if np.isnan(r2) else r2, abs=1e-2)
    every = reading._levels[3][:40]
    right = rights(of_rows(TINY, model, every)).numpy()
    assert (found.levels["3"].right, found.levels["3"].total) == (right.sum(), 40)
    assert right.sum() > 1
    few = of_rows(TINY, model, every[right][:5])
    effects = skip(few.record).output[0, :, slot].mean()
    assert found.levels["3"].own[1][0] == pytest.approx(effects.item(), abs=1e-4)
    held = TINY.rows("validation")
    assert sum(each.held_total for each in found.levels.values()) == len(held)


@torch.no_grad()
def test_steps_are_made_anew_without_a_layer(measured):
    """Slot by slot, as the method answers; the last slot that is read predicts the answer."""
    folder, reading, found = measured
    _, model = load(folder / "start")
    every = reading._levels[3][:40]
    rows = every[rights(of_rows(TINY, model, every)).numpy()][:5]
    examples, clean, told = TINY.asks(rows).examples("cpu"), of_rows(TINY, model, rows), found.levels["3"].without
    for layer in range(2):
        seen = {}

        def edit(number, site, x_BTD, slots, layer=layer, seen=seen):
            seen[number, site] = x_BTD
            if (number, site) != (layer, "resid_out"):
                return x_BTD
            kept = [x_BTD[:, place] if slot == 0 else seen[layer, "resid_in"][:, place]
                    for place, slot in enumerate(slots)]  # fmt: skip
            seen[number, site] = torch.stack(kept, 1)
            return seen[number, site]

        answer_BA = TINY.method.solve(model, examples, edit=edit).answer_BA
        assert told.anew[layer] == pytest.approx((answer_BA == examples.answer_BA).all(1).double().mean().item())
        likely, other = (
            clean.record.logits(last_BD).softmax(-1)
            for last_BD in (clean.record.stream[-1][:, -1], seen[1, "resid_out"][:, -1])
        )
        assert told.moved[layer] == pytest.approx((likely - other).norm(dim=-1).mean().item(), abs=1e-4)
    assert told.moved != pytest.approx(found.levels["3"].own[-1], abs=1e-3), "the steps are others"


def test_problems_are_different_and_few_where_there_are_few():
    rows = ThoughtDepthReading(TINY, probed=60)._levels[3]
    assert len(np.unique(rows, axis=0)) == len(rows) >= 60
    small = replace(TINY, task=Composition(hops=2, items=4, functions=3), method=Direct())
    levels = ThoughtDepthReading(small, probed=60)._levels
    assert {steps: len(rows) for steps, rows in levels.items()} == {1: 12, 2: 36}, "all there are"


def test_shapes_and_floors(measured):
    _, _, found = measured
    assert [*found.levels] == ["2", "3"]
    for part in (found.frontier, found.untrained):
        for name in ("lens", "walk", "before", "probe"):
            cube = np.array(getattr(part, name))
            assert cube.shape == (3, 3, 3), "slots, steps, layers"
            assert cube.max() <= 1
    assert np.array(found.untrained.probe) != pytest.approx(np.array(found.frontier.probe))
    assert [*found.sizes] == ["prompt", "steps", "answer"]
    assert len(found.levels["2"].own) == 2


def test_a_direct_answer_has_one_slot(tmp_path):
    run = replace(TINY, task=Composition(hops=2, items=4, functions=3), method=Direct())
    found = ThoughtDepthReading(run, problems=4, probed=40).measure(tmp_path)
    assert np.array(found.frontier.lens).shape == (1, 2, 3)
    assert [*found.sizes] == ["prompt", "answer"]
    assert [*found.levels] == ["1", "2"]
    for level in found.levels.values():  # nothing is thought, so that nothing is made anew
        assert level.without.given == level.without.anew
        assert level.without.moved == pytest.approx(level.own[-1], abs=1e-4)


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
