"""Studies `mnns-rl` and `mnns-rl-tuning` say what their records say, before and after training kept apart."""

import pytest
from records import changed, record_of

from tinylatent.core.seeds import Seeds
from tinylatent.lab.findings import FAILS, HOLDS, OPEN
from tinylatent.lab.recipes import SAMPLERS, STARTS, build, build_rl
from tinylatent.lab.records import DEFAULT, Before, Counts
from tinylatent.lab.studies import mnns_rl, mnns_rl_tuning
from tinylatent.lab.studies.mnns_rl_tables import accuracies
from tinylatent.methods import CoT2

OFFSETS = (-2, -1, 0, 1, 2) * 2
TURNED = {"k1": -1, "k3": 2}  # keys change each in their own way, and not alike with both samplers


def record(start, sampler, seed, then, now, votes=None, entropy=(1.0, 0.4)):
    """A run with these percentages before and after; votes: percent of a majority by ("before" or "after", k)."""
    made = record_of(build_rl(start, sampler, seed), now)

    def judged(when, percent, nats, turned):
        right = [percent + turned * offset + seed for offset in OFFSETS]
        own = changed(made.evaluations[DEFAULT], right=right, entropy=[nats, nats, nats, 0.0])
        sampled = made.sampling.temperatures["1"]
        majority = {
            str(k): Counts(right=[share * (32 // k)] * 9 + [share * (32 // k) + seed], of=32 // k)
            for (at, k), share in (votes or {}).items()
            if at == when
        }
        sampled = changed(sampled, majority={**sampled.majority, **majority})
        sampling = changed(made.sampling, temperatures={"1": sampled})
        return {"evaluations": {**made.evaluations, DEFAULT: own}, "sampling": sampling}

    before = judged("before", then, entropy[0], 1)
    mixture = changed(made.evaluations["mixture"], right=[95, 97, 99, 96, 98] * 2)
    before["evaluations"]["mixture"] = mixture
    return changed(made, before=Before(**before), **judged("after", now, entropy[1], TURNED[sampler]))


def findings(table):
    """(verdict, estimate in percent or nats) of a table by claim."""
    return {
        each.claim: (each.verdict, each.estimate.value * (1 if each.unit == "nats" else 100)) for each in table.findings
    }


def test_gains_are_told_apart_from_losses():
    records = []
    for seed in range(5):
        records += [
            record("discrete", "k1", seed, 60, 70),
            record("discrete", "k3", seed, 60, 55, entropy=(0.5, 0.75)),
            record("cot2", "k1", seed, 30, 50),
            record("cot2", "k3", seed, 40, 80),
        ]
    judged, learning, _ = mnns_rl.tables(records)
    rows = {(row["start"], row["latents"]): row for row in judged.rows}
    assert rows["discrete CoT", "K = 1"]["gain"] == pytest.approx(10)
    assert rows["discrete CoT", "K = 3"]["gain"] == pytest.approx(-5)
    assert rows["CoT2", "K = 3"]["before"] == pytest.approx(42)
    assert rows["CoT2", "K = 3"]["rate"] == 3e-3
    found = findings(judged)
    improves = "reinforcement learning improves it"
    assert found[f"discrete CoT, K = 1: {improves}"] == (HOLDS, pytest.approx(10))
    assert found[f"discrete CoT, K = 3: {improves}"] == (FAILS, pytest.approx(-5))
    assert found["discrete CoT: K = 3 ends higher than K = 1"] == (FAILS, pytest.approx(-15))
    assert found["CoT2: K = 3 ends higher than K = 1"] == (HOLDS, pytest.approx(30))
    unsampled = "without sampling (mixture), the trained weights are more often right than the start's"
    assert found[f"CoT2, K = 3: {unsampled}"] == (FAILS, pytest.approx(82 - 97))
    both = "sampling, the trained weights are more often right than the start without (mixture)"
    assert found[f"CoT2, K = 1: {both}"] == (FAILS, pytest.approx(52 - 97))
    assert "CoT2, K = 3 needs its own latents" in found
    assert "CoT2, K = 1 needs its own latents" not in found, "tokens are no latents"
    first, second = judged.remarks
    assert first.startswith("From discrete CoT, reinforcement learning surely improves 1 of 2 ways to sample (gains be")
    assert second.startswith("From CoT2, reinforcement learning surely improves 2 of 2 ways")
    change = {(row["start"], row["latents"]): row["change"] for row in learning.rows}
    assert change["discrete CoT", "K = 1"] == pytest.approx(-0.6)
    assert (learning.rows[0]["step 1"], learning.rows[0]["answer"]) == (pytest.approx(-0.6), 0)
    assert (learning.rows[0]["reward first"], learning.rows[0]["reward last"]) == (0.5, 0.75)
    lowers = "it lowers the entropy of the latent steps"
    found = findings(learning)
    assert found[f"discrete CoT, K = 1: {lowers}"] == (HOLDS, pytest.approx(-0.6))
    assert found[f"discrete CoT, K = 3: {lowers}"] == (FAILS, pytest.approx(0.25))


def test_a_single_run_improves_nothing_surely():
    """Its interval lies above zero: its finding and the remark say alike that this is not enough."""
    table = accuracies({("cot2", "k1"): [record("cot2", "k1", 0, 30, 50)]})
    gained = table.findings[0]
    assert (gained.verdict, gained.runs, gained.estimate.low > 0) == (OPEN, 1, True)
    assert table.remarks[0].startswith("From CoT2, reinforcement learning surely improves 0 of 1 ways")


def test_votes_are_compared_at_equal_tokens_though_they_are_counted_differently():
    """Two chains of three tokens (of 16 blocks) against six discrete ones (of 5 blocks)."""
    records = []
    for seed in range(3):
        for start, shift in (("discrete", 0), ("cot2", 20)):
            records += [
                record(start, "k1", seed, 50, 50, {("before", 6): 40 + shift, ("after", 6): 70}),
                record(start, "k3", seed, 50, 50, {("before", 2): 55 + shift, ("after", 2): 60}),
            ]
    *_, chains = mnns_rl.tables(records)
    rows = {(row["start"], row["when"], row["tokens"], row["K"]): row for row in chains.rows}
    assert rows["discrete CoT", "before", 6, 3]["N"] == 2
    assert rows["discrete CoT", "before", 6, 3]["majority@N"] == pytest.approx(55, abs=0.1)
    assert rows["discrete CoT", "before", 6, 1]["majority@N"] == pytest.approx(40, abs=0.1)
    gaps = {claim: each for claim, each in findings(chains).items() if "a vote of 2 of" in claim}

    def claim(start, when, whose):
        vote = "a vote of 2 of its chains of K = 3 beats one of 6 discrete chains"
        return f"{start}, {when}: {vote} of {whose}, {when} (6 sampled tokens a step)"

    assert gaps == {
        claim("discrete CoT", "before", "the same start"): (HOLDS, pytest.approx(15, abs=0.11)),
        claim("discrete CoT", "after", "the same start"): (FAILS, pytest.approx(-10, abs=0.11)),
        claim("CoT2", "before", "the same start"): (HOLDS, pytest.approx(15, abs=0.11)),
        claim("CoT2", "before", "discrete CoT"): (HOLDS, pytest.approx(35, abs=0.11)),
        claim("CoT2", "after", "the same start"): (FAILS, pytest.approx(-10, abs=0.11)),
        claim("CoT2", "after", "discrete CoT"): (FAILS, pytest.approx(-10, abs=0.11)),
    }


def test_a_sampler_is_known_by_all_its_settings():
    for start in STARTS:
        for sampler in SAMPLERS:
            assert mnns_rl.way_of(record_of(build_rl(start, sampler), 50)) == (start, sampler)


def test_what_is_none_of_reinforcement_learning_is_told():
    made = record("cot2", "k1", 0, 30, 50)
    with pytest.raises(ValueError, match=f"run {made.id} was not evaluated before its training: expected a run with a"):
        mnns_rl.tables([changed(made, before=None)])
    other = record_of(build("mnns", CoT2()), 50)
    with pytest.raises(ValueError, match=f"run {other.id} is none of reinforcement learning on MNNS: expected a start"):
        mnns_rl.tables([other])


def test_the_better_rates_of_every_sampler_go_on_to_a_second_seed():
    """The lowest rate is best, then the next."""
    first = [record_of(each, (90, 80, 70, 60)[index % 4]) for index, each in enumerate(mnns_rl_tuning.grid("quick"))]
    second = mnns_rl_tuning.after("quick", first)
    assert {(each.seeds, each.training.steps) for each in second} == {(Seeds.all(101), 100)}
    rates = [rate for _ in STARTS for name in SAMPLERS for rate in mnns_rl_tuning.RATES[name][:2]]
    assert [each.training.learning_rate for each in second] == rates
