"""Study `outliers` says what its records say. Records made by hand; one run that is measured for real, in short."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from records import NOWHERE, shown
from tinylatent_tasks import MNNS

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.findings import FAILS, HOLDS, OPEN
from tinylatent.lab.folders import load, train
from tinylatent.lab.outlier_reading import FACTORS, PROBLEMS, WAYS, Answers, Injected, OutlierReading, OutlierRecord
from tinylatent.lab.recipes_outliers import ARMS, LONGER, STEPS, arm_of, build
from tinylatent.lab.run import VERSION, read_record
from tinylatent.lab.studies import outliers
from tinylatent.lenses.outliers import kurtosis
from tinylatent.lenses.quantised import quantised
from tinylatent.lenses.residuals import record_tokens
from tinylatent.methods import CoT2, Direct
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training


def told(right, loss, moved=0.01):
    return Answers(right=right, loss=loss, moved=moved)


def record(arm, seed, high=4.0, lost=0.5, saturated=True, right=95, profile="full"):
    """A reading of an arm's run whose largest kurtosis is `high`, and which loses so much under int8."""
    reading = outliers.reading(arm, seed, profile)
    wobble = 1 + 0.01 * (seed % 5)
    answers = {name: told(right, 0.1, lost * wobble if name == "tensor" else 0.0) for name in WAYS}
    grown = [60.0, 61.0, 62.0, 63.0, 64.0] if saturated else [4.0, 8.0, 16.0, 32.0, 64.0]
    fields = {}
    if reading.start.model.norm == "pre":
        fields = {
            "rotated": {name: told(95, 0.1, 0.2) for name in WAYS},
            "folded": {name: told(95, 0.1, 0.2 + lost * wobble) for name in WAYS},
            "rotated_kurtosis": [1.0, 2.0 * wobble, 1.0, 1.0, 1.0],
            "injected": [
                Injected(
                    factor=factor, kurtosis=value * wobble, max_median=factor,
                    answers={name: told(90, 0.1 * factor * wobble, 0.01 * factor) for name in WAYS},
                )
                for factor, value in zip(FACTORS, grown, strict=True)
            ],
        }  # fmt: skip
    names = ("max-median", "input correlation", "norms", "inputs", "neurons")
    others = {name: [high * wobble, 1.0, 1.0, 1.0, 1.0] for name in names}
    return OutlierRecord(
        version=VERSION, id=reading.identity, run=reading.to_json(), environments=NOWHERE, total=100, answers=answers,
        stream={"kurtosis": [1.0, high * wobble, 2.0, 1.0, 1.0], **others},
        read={"blocks.0.mlp.up_proj": (high, 3.0 + high), "blocks.1.mlp.down_proj": (7.0, None)},
        steps=100 + seed, **fields,
    )  # fmt: skip


def records(**settings):
    """Readings of every arm on five seeds; settings: those of `record` by arm, dashes written as underscores."""
    chosen = {name.replace("_", "-"): values for name, values in settings.items()}
    return [record(arm, seed, **chosen.get(arm, {})) for arm in ARMS for seed in outliers.SEEDS["full"]]


def verdicts(found):
    return {each.claim: each.verdict for each in outliers.tables(found)[0].findings}


def test_what_records_say_is_said():
    found = verdicts(
        records(
            fast={"high": 20.0, "lost": 3.0},
            slow={"high": 2.0, "lost": 0.1},
            epsilon={"high": 8.0},
            longer={"high": 30.0},
        )
    )
    assert found["a rate of 1e-3 makes more than one of 3e-4"] == HOLDS
    assert found["a rate of 3e-3 makes more than one of 1e-3"] == HOLDS
    assert found["epsilon 1e-8 makes more than 1e-4"] == FAILS
    assert found["usual blocks make more than protected ones, at 1e-3"] == OPEN
    assert found["usual blocks make more than protected ones, at 3e-3"] == HOLDS
    assert found["AdamW makes more than SOAP, at 3e-3"] == HOLDS
    assert found["training that goes on makes more than training that stops, at 3e-3"] == HOLDS
    for name in ("kurtosis of the residual stream", "max-median ratio of the residual stream"):
        assert (
            found[f"of arms that stop, those with a larger {name} answer more differently when all is rounded to int8"]
            == HOLDS
        )
    at = "AdamW 1e-3: from an outlier of {} times the"
    assert found[at.format("1 times to one of 30") + " kurtosis of what is read doubles"] == FAILS
    assert found[at.format("30 times to one of 300") + " kurtosis of what is read doubles"] == FAILS
    assert found[at.format("30 times to one of 300") + " KL of answers when all is rounded to int8 doubles"] == HOLDS
    assert found["AdamW 1e-3: a random basis of the residual stream has less kurtosis"] == HOLDS
    assert (
        found["AdamW 3e-3: rounding everything to int8 moves answers more in the usual basis than in a random one"]
        == HOLDS
    )


def test_and_the_opposite_too():
    found = verdicts(records(adamw={"high": 0.5, "saturated": False}, fast={"high": 40.0, "lost": 0.001}))
    assert found["a rate of 1e-3 makes more than one of 3e-4"] == FAILS
    assert found["AdamW 1e-3: a random basis of the residual stream has less kurtosis"] == FAILS
    claim = "AdamW 1e-3: from an outlier of 30 times to one of 300 times the kurtosis of what is read doubles"
    assert found[claim] == HOLDS


def test_ratios_are_geometric_means_over_seeds():
    found = outliers.tables(records(fast={"high": 8.0}))[0].findings
    finding = next(each for each in found if each.claim == "a rate of 3e-3 makes more than one of 1e-3")
    assert finding.estimate.value == pytest.approx(2)
    assert finding.evidence == "2.00 times the kurtosis [2.00, 2.00]"
    assert finding.runs == 5


def test_rank_correlations_are_over_arms_seed_by_seed():
    """Kurtosis 4, 8, 2 and 16 against losses in the order 2, 1, 3, 4 of it: 1 - 6 * 2 / (4 * 15)."""
    arms = {"adamw": (4.0, 1.0), "slow": (2.0, 2.0), "fast": (8.0, 3.0), "soap": (16.0, 4.0)}
    groups = {arm: [record(arm, seed, high=high, lost=lost) for seed in (5, 6)] for arm, (high, lost) in arms.items()}
    assert outliers._correlations(groups, outliers.largest) == pytest.approx([0.8, 0.8])
    groups["shampoo"] = [record("shampoo", seed, high=99.0, lost=0.1, right=80) for seed in (5, 6)]
    assert outliers._correlations(groups, outliers.largest) == pytest.approx([0.8, 0.8]), "it has not learnt"


def test_runs_that_have_not_learnt_or_do_not_match_decide_nothing():
    found = records(fast={"high": 20.0, "right": 80}, soap={"high": 20.0, "right": 91}, adamw={"right": 98})
    told = {each.claim: (each.verdict, each.runs) for each in outliers.tables(found)[0].findings}
    assert told["a rate of 3e-3 makes more than one of 1e-3"] == (OPEN, 0)
    assert told["AdamW makes more than SOAP, at 1e-3"] == (OPEN, 0)
    assert told["a rate of 1e-3 makes more than one of 3e-4"][1] == 5, "98 and 95 are alike"
    assert [row["learnt"] for row in outliers.tables(found)[0].rows][:3] == [5, 5, 0]


def test_training_that_goes_on_need_not_match():
    found = outliers.tables(records(longer={"high": 20.0, "right": 100}, fast={"right": 90}))[0].findings
    told = {each.claim: (each.verdict, each.runs) for each in found}
    assert told["training that goes on makes more than training that stops, at 3e-3"] == (HOLDS, 5)


def test_tables_by_hand():
    arms, layers, rounding, put = outliers.tables(records(fast={"high": 8.0}))
    assert [row["arm"] for row in arms.rows] == [arm.label for arm in ARMS.values()]
    first = arms.rows[0]
    assert (first["right"], first["steps"], first["read"]) == (95, 107, 4), "hidden units are left out"
    assert (first["from"], first["to"]) == (95, 95)
    assert (first["least"], first["kurtosis"], first["most"]) == pytest.approx((4.0, 4.08, 4.16))
    assert layers.rows[1]["kurtosis"] == pytest.approx(4.08)
    row = next(row for row in rounding.rows if (row["arm"], row["rounded"]) == ("AdamW 1e-3", "tensor"))
    assert row["moved"] == pytest.approx(0.51)
    assert (row["moved, folded"], row["moved, turned"]) == pytest.approx((0.71, 0.2))
    assert next(row for row in rounding.rows if row["arm"].startswith("protected"))["moved, turned"] is None
    assert {row["times"] for row in put.rows} == {*FACTORS}
    assert put.rows[4]["loss"] == pytest.approx(30.6)


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_every_profile_can_be_shown(profile, tmp_path):
    arms = ARMS if profile == "full" else outliers.QUICK
    made = [record(arm, seed, profile=profile) for arm in arms for seed in outliers.SEEDS[profile]]
    assert [each.run for each in made] == [reading.to_json() for reading in outliers.grid(profile)]
    outcome = shown(outliers.STUDY, profile, made, tmp_path)
    assert outcome.files["figure.png"].stat().st_size > 10_000


def test_runs_are_of_their_arms():
    for arm in ARMS:
        run = build(arm, 7)
        assert arm_of(run) == arm
        assert arm_of(replace(run, training=replace(run.training, steps=3))) == arm
        assert run.training.steps == (LONGER if arm == outliers.UNMATCHED else STEPS)
        assert (run.training.enough is None) == (arm == outliers.UNMATCHED)
    with pytest.raises(ValueError, match="is no run of study outliers: expected one of adamw, slow"):
        arm_of(replace(build("adamw", 0), model=ModelConfig(32)))


# ---------------------------------------------------------------------------------------------------------------------
# A reading

TINY = replace(
    build("adamw", 0), task=replace(build("adamw", 0).task, hops=2, items=4, functions=3),
    model=ModelConfig(8, 2, 2, mlp="relu", init="fan_in"), training=Training(steps=4, batch_size=8, num_train=60),
    seeds=Seeds.all(0),
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train(TINY, folder / "start")
    reading = OutlierReading(TINY)
    return folder, reading, reading.measure(folder / "reading", start=folder / "start")


def test_a_reading_is_what_lenses_measure(measured):
    folder, _, found = measured
    decoder = load(folder / "start")[1].backbone
    examples = TINY.asks(TINY.task.problems(PROBLEMS, TINY.seeds.derive("sampling", "looked at"))).examples()
    ids_BN, mask_BN = examples.prompt_BN, examples.prompt_mask_BN
    record = record_tokens(decoder, ids_BN, mask_BN)
    free = mask_BN & (record.rank_BS() >= 1)
    assert found.stream["kurtosis"][1] == pytest.approx(kurtosis(record.stream[1][free]).item(), rel=1e-3)
    assert found.total == len(ids_BN)
    assert found.steps == 4
    with quantised(decoder, "token"):
        hidden, _ = decoder.forward(decoder.table.rows(ids_BN), mask_BS=mask_BN)
    logs = decoder.readout(hidden[:, -1]).log_softmax(-1)
    loss = -logs.gather(1, examples.answer_BA).mean().item()
    assert found.answers["token"].loss == pytest.approx(loss, rel=1e-3)
    whole = decoder.readout(decoder.forward(decoder.table.rows(ids_BN), mask_BS=mask_BN)[0][:, -1]).log_softmax(-1)
    moved = (whole.exp() * (whole - logs)).sum(-1).mean().item()
    assert found.answers["token"].moved == pytest.approx(moved, rel=1e-3, abs=1e-9)
    assert found.answers["float"].moved == 0
    assert found.answers["token"].right == int((logs.argmax(-1) == examples.answer_BA[:, 0]).sum())
    for other in (found.rotated, found.folded):
        assert found.answers["float"].loss == pytest.approx(other["float"].loss, rel=1e-3)
    for each in found.injected:
        assert each.answers["float"].loss == pytest.approx(found.answers["float"].loss, rel=1e-3)
    assert [each.factor for each in found.injected] == [*FACTORS]
    ratios = [each.kurtosis for each in found.injected]
    assert ratios == sorted(ratios)
    assert ratios[-1] > 7.9


def test_what_maps_read_is_measured_without_padding(measured):
    """Row by row, over tokens that hold an input."""
    folder, _, found = measured
    decoder = load(folder / "start")[1].backbone
    examples = TINY.asks(TINY.task.problems(PROBLEMS, TINY.seeds.derive("sampling", "looked at"))).examples()
    seen = []
    for ids_N, mask_N in zip(examples.prompt_BN, examples.prompt_mask_BN, strict=True):
        stream = record_tokens(decoder, ids_N[mask_N][None]).stream[0]
        seen.append(decoder.blocks[0].attn_norm(stream)[0])
    wanted = kurtosis(torch.cat(seen)).item()
    assert found.read["blocks.0.attention.qkv_proj"][0] == pytest.approx(wanted, rel=1e-3)
    assert len(found.read) == 8
    ratios = {name: ratio for name, (_, ratio) in found.read.items()}
    assert ratios["blocks.0.mlp.down_proj"] is None, "a ReLU leaves zeros"
    assert ratios["blocks.0.attention.qkv_proj"] > 1


def test_blocks_that_cannot_be_turned_are_read_without(tmp_path):
    whole = replace(TINY, model=replace(TINY.model, norm="protected"))
    found = OutlierReading(whole).measure(tmp_path)
    assert (found.rotated, found.injected) == ({}, [])
    assert np.isfinite(found.kurtosis)


def test_a_reading_is_written_and_read(measured):
    _, reading, found = measured
    assert OutlierReading.from_json(json.loads(json.dumps(reading.to_json()))) == reading
    assert read_record(OutlierReading, json.loads(json.dumps(found.to_json()))) == found
    with pytest.raises(ValueError, match="not a reading of outliers of version 1"):
        OutlierReading.from_json({**reading.to_json(), "version": 2})
    with pytest.raises(ValueError, match="not a reading of outliers this version can read"):
        OutlierReading.from_json({"version": 1})


def test_what_cannot_be_read_is_told():
    with pytest.raises(ValueError, match="a run of cot2: expected direct, in a decoder of ours"):
        OutlierReading(Experiment(MNNS(), CoT2(), ModelConfig(8), Training(steps=1)))
    assert isinstance(TINY.method, Direct)
